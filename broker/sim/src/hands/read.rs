//! Fetches and time look-ups: from memory, or from segments in aligned chunks.
//!
//! Rows are read one after the other. A segment's bytes are walked with the core's scan, which checks every header it
//! serves; what it refuses is answered as corrupt, never skipped. Copies: a row's bytes are gathered into the answer's
//! payload once.

use super::{Hands, Tools};
use crate::disk::{Disk, DiskError, FileId};
use crate::trace::Trace;
use bytes::{Bytes, BytesMut};
use corelog_core::segment::{self, BatchScan, Found, IndexFile, Next};
use corelog_core::shard::{
    LookupPlan, LookupRow, ReadPlan, ReadRow, RequestId, SegmentRead, SegmentStart, Source,
};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::Offset;
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{Answer, FetchAnswer, FetchedRow, ListOffsetsAnswer, ListedRow};
use std::collections::VecDeque;

/// An answer on its way to a client.
#[derive(Clone, Debug)]
pub struct Reply {
    /// To which request.
    pub request: RequestId,
    /// The message.
    pub answer: Answer,
    /// What follows it.
    pub payload: Bytes,
}

impl Reply {
    pub(super) fn record(&self, trace: &mut Trace) {
        let (kind, number) = match &self.answer {
            Answer::Produce(answer) => (
                "produced",
                answer.rows.first().map_or(0, |row| row.base_offset.get() ^ u64::from(row.error.as_u16())),
            ),
            Answer::Fetch(answer) => {
                ("fetched", answer.rows.first().map_or(0, |row| row.high_watermark.get()))
            }
            Answer::ListOffsets(answer) => ("listed", answer.rows.first().map_or(0, |row| row.offset.get())),
            _ => ("answer", 0),
        };
        trace.event(kind, &[self.request.0, number, u64::from(crc32fast::hash(&self.payload))]);
        if trace.printing() {
            trace.say(format_args!("  reply {}", super::brief(&format!("{:?}", self.answer))));
        }
    }
}

/// One row of an answer, on its way.
enum Row {
    /// A fetched row and its bytes.
    Fetched(FetchedRow, Vec<Bytes>),
    /// A fetched row whose bytes are in a segment.
    Fetching(FetchedRow, Walk),
    /// A place that is known.
    Listed(ListedRow),
    /// A place that one of some segments knows: the time wanted, and the answer if none does.
    Listing(ListedRow, i64, Walk, Vec<Walk>),
}

/// A segment being walked for one row.
struct Walk {
    scan: BatchScan,
    /// None: the file is not there.
    file: Option<FileId>,
    /// The next chunk starts here.
    chunk_start: u64,
    /// The scan needs the file up to here.
    wanted_end: u64,
    bytes: BytesMut,
}

/// What a chunk brought.
enum Walked {
    More(Walk),
    Fetched(Bytes, Offset),
    Listed(Option<(Offset, i64)>),
    Failed(String),
}

/// A request whose rows are being read.
pub(super) struct ReadJob {
    request: RequestId,
    is_fetch: bool,
    left: VecDeque<Row>,
    fetched: Vec<FetchedRow>,
    payload: BytesMut,
    listed: Vec<ListedRow>,
}

impl Hands {
    pub(super) fn begin_fetch(&mut self, plan: ReadPlan, tools: &mut Tools<'_>) {
        let row = |row| self.fetch_row(row, &plan.filter, tools.disk);
        let left = plan.rows.into_iter().map(row).collect();
        self.begin_read(plan.request, left, true, tools);
    }

    pub(super) fn begin_lookup(&mut self, plan: LookupPlan, tools: &mut Tools<'_>) {
        let row = |row| match row {
            LookupRow::Known(row) => Row::Listed(row),
            LookupRow::Scan { reads, timestamp_ms, otherwise } => {
                let mut walks: Vec<Walk> =
                    reads.iter().map(|read| Walk::new(read, &TagFilter::ALL, tools.disk)).collect();
                let first = walks.remove(0);
                Row::Listing(otherwise, timestamp_ms, first, walks)
            }
        };
        let left = plan.rows.into_iter().map(row).collect();
        self.begin_read(plan.request, left, false, tools);
    }

    /// Takes hold of the bytes in memory and of the file: both may lose their names while other rows are read.
    fn fetch_row(&self, row: ReadRow, filter: &TagFilter, disk: &mut Disk) -> Row {
        let fetched = FetchedRow {
            tp: row.tp,
            error: row.error,
            message: String::new(),
            high_watermark: row.high_watermark,
            log_start: row.log_start,
            log_end: row.log_end,
            leader_epoch: row.leader_epoch,
            first_byte: 0,
            bytes: 0,
            next_offset: row.next_offset,
        };
        match row.source {
            Source::Nothing => Row::Fetched(fetched, Vec::new()),
            Source::Tail(slices) => {
                let held = slices.into_iter().map(|slice| self.bytes_of(slice)).collect();
                Row::Fetched(fetched, held)
            }
            Source::Segment(read) => Row::Fetching(fetched, Walk::new(&read, filter, disk)),
        }
    }

    fn begin_read(&mut self, request: RequestId, left: VecDeque<Row>, is_fetch: bool, tools: &mut Tools<'_>) {
        self.jobs_begun += 1;
        let id = self.jobs_begun;
        let (fetched, payload, listed) = (Vec::new(), BytesMut::new(), Vec::new());
        self.reads.insert(id, ReadJob { request, is_fetch, left, fetched, payload, listed });
        self.go_on_reading(id, tools);
    }

    /// Finishes rows until one needs the disk or none is left.
    fn go_on_reading(&mut self, id: u64, tools: &mut Tools<'_>) {
        let Some(mut job) = self.reads.remove(&id) else { return };
        while let Some(row) = job.left.pop_front() {
            match row {
                Row::Fetched(row, bytes) => job.push_fetched(row, &bytes),
                Row::Listed(row) => job.listed.push(row),
                Row::Fetching(row, walk) => match walk.file {
                    Some(file) => {
                        self.read_chunk(id, file, &walk, tools);
                        job.left.push_front(Row::Fetching(row, walk));
                        self.reads.insert(id, job);
                        return;
                    }
                    None => job.push_corrupt(row, "the segment file is gone".to_owned()),
                },
                Row::Listing(row, time, walk, more) => match walk.file {
                    Some(file) => {
                        self.read_chunk(id, file, &walk, tools);
                        job.left.push_front(Row::Listing(row, time, walk, more));
                        self.reads.insert(id, job);
                        return;
                    }
                    None => job.listed.push(ListedRow { error: ErrorCode::CorruptBatch, ..row }),
                },
            }
        }
        let reply = job.into_reply();
        self.reply(reply, tools);
    }

    fn read_chunk(&mut self, id: u64, file: FileId, walk: &Walk, tools: &mut Tools<'_>) {
        let bytes =
            (walk.wanted_end - walk.chunk_start).max(self.chunk_bytes).next_multiple_of(segment::BLOCK);
        let op = tools.disk.read(tools.now, file, walk.chunk_start, bytes);
        self.ops.insert(op, id);
    }

    pub(super) fn read_completed(
        &mut self,
        id: u64,
        result: Result<Bytes, DiskError>,
        tools: &mut Tools<'_>,
    ) {
        let Some(job) = self.reads.get_mut(&id) else { return };
        let (row, time, walk, mut more) = match job.left.pop_front() {
            Some(Row::Fetching(row, walk)) => (Row::Fetched(row, Vec::new()), None, walk, Vec::new()),
            Some(Row::Listing(row, time, walk, more)) => (Row::Listed(row), Some(time), walk, more),
            _ => return,
        };
        let file = walk.file;
        let walked = match result {
            Ok(chunk) => walk.take(&chunk, time),
            Err(_) => Walked::Failed("the read failed".to_owned()),
        };
        if let (Some(file), false) = (file, matches!(walked, Walked::More(_))) {
            tools.disk.let_go(file);
        }
        let next = match (row, walked) {
            (Row::Fetched(row, _), Walked::More(walk)) => Row::Fetching(row, walk),
            (Row::Listed(row), Walked::More(walk)) => {
                Row::Listing(row, time.unwrap_or(0), walk, std::mem::take(&mut more))
            }
            (Row::Listed(row), Walked::Listed(None)) if !more.is_empty() => {
                let next = more.remove(0);
                Row::Listing(row, time.unwrap_or(0), next, std::mem::take(&mut more))
            }
            (Row::Fetched(row, _), Walked::Fetched(bytes, next)) => {
                let next_offset = row.next_offset.map(|_| next);
                Row::Fetched(FetchedRow { next_offset, ..row }, vec![bytes])
            }
            (Row::Fetched(row, _), Walked::Failed(message)) => {
                Row::Fetched(corrupt(row, message), Vec::new())
            }
            (Row::Listed(row), Walked::Listed(Some((offset, timestamp_ms)))) => {
                Row::Listed(ListedRow { offset, timestamp_ms, ..row })
            }
            (Row::Listed(row), Walked::Failed(_)) => {
                Row::Listed(ListedRow { error: ErrorCode::CorruptBatch, ..row })
            }
            (row, _) => row,
        };
        for file in more.into_iter().filter_map(|walk| walk.file) {
            tools.disk.let_go(file);
        }
        job.left.push_front(next);
        self.go_on_reading(id, tools);
    }
}

impl Walk {
    fn new(read: &SegmentRead, filter: &TagFilter, disk: &mut Disk) -> Self {
        let file = Hands::open_segment(read.segment, disk);
        if let Some(file) = file {
            disk.hold(file);
        }
        let start = match read.start {
            SegmentStart::At(start) => start,
            SegmentStart::ByIndexFile => start_by_index(read, disk),
        };
        let chunk_start = start / segment::BLOCK * segment::BLOCK;
        let scan = BatchScan::new(read, start).filtered(filter.clone());
        Self { scan, file, chunk_start, wanted_end: start + 1, bytes: BytesMut::new() }
    }

    fn take(mut self, chunk: &Bytes, time: Option<i64>) -> Walked {
        let chunk_end = self.chunk_start + chunk.len() as u64;
        if chunk_end < self.wanted_end {
            return Walked::Failed("the segment file ends too early".to_owned());
        }
        let (from, bytes) = if let Some(time) = time {
            match self.scan.find_time(chunk, self.chunk_start, time) {
                Ok(Found::At(offset, timestamp_ms)) => return Walked::Listed(Some((offset, timestamp_ms))),
                Ok(Found::None) => return Walked::Listed(None),
                Ok(Found::Read { from, bytes }) => (from, bytes),
                Err(error) => return Walked::Failed(error.to_string()),
            }
        } else {
            match self.scan.take(chunk, self.chunk_start) {
                Ok(taken) => {
                    for range in taken.ranges {
                        self.bytes.extend_from_slice(&chunk[range]);
                    }
                    match taken.next {
                        Next::Done => return Walked::Fetched(self.bytes.freeze(), self.scan.next_offset()),
                        Next::Read { from, bytes } => (from, bytes),
                    }
                }
                Err(error) => return Walked::Failed(error.to_string()),
            }
        };
        self.chunk_start = from / segment::BLOCK * segment::BLOCK;
        self.wanted_end = from + bytes.max(1);
        Walked::More(self)
    }
}

/// Where the index file says to start; without a sound one, at the first extent.
fn start_by_index(read: &SegmentRead, disk: &Disk) -> u64 {
    let folder = segment::folder_name(read.segment.tp);
    let path = format!("topics/{folder}/{}", segment::index_file_name(read.segment));
    let index = disk.open(&path).map(|file| disk.peek(file, 0, u64::MAX / 2));
    let index = index.and_then(|bytes| IndexFile::open(&bytes, read.segment).ok());
    index.map_or(segment::BLOCK, |index| index.start_for(read.from))
}

fn corrupt(row: FetchedRow, message: String) -> FetchedRow {
    FetchedRow { error: ErrorCode::CorruptBatch, message, next_offset: None, ..row }
}

impl ReadJob {
    fn push_fetched(&mut self, mut row: FetchedRow, bytes: &[Bytes]) {
        row.first_byte = self.payload.len() as u32;
        row.bytes = bytes.iter().map(|bytes| bytes.len() as u32).sum();
        for bytes in bytes {
            self.payload.extend_from_slice(bytes);
        }
        self.fetched.push(row);
    }

    fn push_corrupt(&mut self, row: FetchedRow, message: String) {
        self.push_fetched(corrupt(row, message), &[]);
    }

    fn into_reply(self) -> Reply {
        let answer = if self.is_fetch {
            Answer::Fetch(FetchAnswer { throttle_ms: 0, rows: self.fetched })
        } else {
            Answer::ListOffsets(ListOffsetsAnswer { rows: self.listed })
        };
        Reply { request: self.request, answer, payload: self.payload.freeze() }
    }
}
