//! Rounds of compaction: segments read, files written, in a queue of their own that gives way to everything else.
//!
//! Called by the room's `perform`. What is read, kept and written is the core's to decide ([`Round`]); here it is done, a
//! slice at a time, with a look at the others between two. A file is told of only when it, its index file and both names
//! are durable. A round that fails, or that the shard's end overtakes, leaves a file that no log names.

use super::buffer::copied;
use super::error::DiskError;
use super::file::File;
use super::segments::Hold;
use super::{BLOCK_BYTES, Inner};
use crate::rt;
use bytes::Bytes;
use corelog_client::codec;
use corelog_core::compact::{Codec, CompactError, Plan, Round, Want};
use corelog_core::journal::{CompactedEntry, SegmentId};
use corelog_core::limits::{BLOCK, COMPACTION_IO_BYTES, MIB};
use corelog_core::shard::Input;
use corelog_wire::batch::Compression;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// Room is asked of the file system in these steps, and what was written is flushed as often: one flush of a whole file would
/// hold up those of the journal.
const STEP_BYTES: u64 = 8 * MIB;

/// How much longer than each slice of work, or of waiting for the device, the rest after it is: what producers and readers
/// notice of a round depends on it (docs/performance.md).
const PAUSE_SHARE: u32 = 4;

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Content(#[from] CompactError),
}

/// The client library's codecs.
struct Codecs;

impl Codec for Codecs {
    fn decompress(&self, compression: Compression, body: Bytes) -> Result<Bytes, String> {
        match compression {
            Compression::None => Ok(body),
            compression => codec::decompress(compression, &body, codec::BODY_BYTES_MAX).map(Bytes::from),
        }
    }

    fn compress(&self, compression: Compression, records: &[u8]) -> Result<Bytes, String> {
        let mut body = Vec::new();
        codec::compress(compression, records, &mut body).map_err(|error| error.to_string())?;
        Ok(body.into())
    }
}

/// A file under construction.
struct Output {
    file: Rc<File>,
    hold: Hold,
    /// Not flushed yet.
    unflushed: u64,
}

impl Inner {
    /// Goes through a round, once what a crash left of one is gone.
    pub(super) fn compact(self: &Rc<Self>, plan: Plan) {
        let holds: BTreeMap<SegmentId, Hold> =
            plan.inputs.iter().map(|input| (input.segment, self.hold(input.segment))).collect();
        self.in_queue(self.queues.compaction, move |inner| async move {
            inner.sweeping.idle().await;
            let tp = plan.tp;
            let mut output = None;
            let done = match inner.go_through(Round::new(plan), &holds, &mut output).await {
                Ok(done) => done,
                Err(error) => {
                    inner.meters.failures.add(1);
                    tracing::error!(%tp, %error, "a round of compaction ended early; the log stays as it is");
                    false
                }
            };
            if let Some(Output { hold, .. }) = output {
                inner.segments.remove(hold.id(), inner.queues.background, &inner.gate);
            }
            inner.results.completed(Input::CompactionOver { tp, done });
        });
    }

    /// Whether the round came to its end: it does not if the shard ends.
    async fn go_through(
        &self,
        mut round: Round,
        holds: &BTreeMap<SegmentId, Hold>,
        output: &mut Option<Output>,
    ) -> Result<bool, RoundError> {
        while !self.ending.get() {
            let began = Instant::now();
            match round.advance(&Codecs)? {
                Want::Turn => {}
                Want::Read { segment, from, bytes, file_end } => {
                    // A round reads nothing but its inputs.
                    let Some(hold) = holds.get(&segment) else { return Ok(false) };
                    let start = from / BLOCK * BLOCK;
                    let end = (from + bytes.max(COMPACTION_IO_BYTES as u64)).min(file_end.max(from + bytes));
                    let file = self.segments.open(hold).await?;
                    let length = usize::try_from(end - start).unwrap_or(usize::MAX);
                    let read = file.read(start, length.next_multiple_of(BLOCK_BYTES)).await?;
                    self.meters.compaction_read_bytes.add(read.len() as u64);
                    round.feed(Bytes::copy_from_slice(&read), start)?;
                }
                Want::Write { segment, file_position, bytes } => {
                    self.write_output(output, segment, file_position, &bytes).await?;
                }
                Want::Finish { done, index_file } => {
                    if let Some(written) = output {
                        self.finish_output(written, done, index_file).await?;
                    }
                    *output = None;
                }
                Want::Done => return Ok(true),
            }
            // The executor looks for what others have to do only when nobody is at work.
            rt::sleep(began.elapsed() * PAUSE_SHARE).await;
        }
        Ok(false)
    }

    async fn write_output(
        &self,
        output: &mut Option<Output>,
        segment: SegmentId,
        file_position: u64,
        bytes: &[u8],
    ) -> Result<(), RoundError> {
        let output = if let Some(output) = output {
            output
        } else {
            let hold = self.segments.hold(segment, self.queues.background, &self.gate);
            let file = self.segments.create(&hold, None).await?;
            output.insert(Output { file, hold, unflushed: 0 })
        };
        let end = file_position + bytes.len() as u64;
        output.file.allocate_with_margin(end.next_multiple_of(STEP_BYTES)).await?;
        output.file.write(copied(bytes), file_position).await?;
        self.meters.compaction_written_bytes.add(bytes.len() as u64);
        output.unflushed += bytes.len() as u64;
        if output.unflushed >= STEP_BYTES {
            output.file.flush().await?;
            output.unflushed = 0;
        }
        Ok(())
    }

    async fn finish_output(
        &self,
        output: &Output,
        done: CompactedEntry,
        index_file: Vec<u8>,
    ) -> Result<(), RoundError> {
        output.file.set_size(done.file_end).await?;
        output.file.flush().await?;
        // The folder is flushed with it, and so the name of the file.
        self.segments.write_index(&output.hold, index_file).await?;
        self.results.completed(Input::Compacted(done));
        Ok(())
    }
}
