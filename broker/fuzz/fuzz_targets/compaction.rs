//! A segment with a body of any bytes goes through a round. Either the round ends early, or what it writes is a segment
//! without gaps that covers the same offsets.
#![no_main]

use bytes::Bytes;
use corelog_broker_fuzz::{BLOCK, Input, stored, tp};
use corelog_core::compact::{Codec, Input as Segment, Plan, Round, Want};
use corelog_core::journal::{SegmentId, SegmentUse};
use corelog_core::segment::{BatchScan, Next, first_block};
use corelog_core::shard::{SegmentRead, SegmentStart};
use corelog_wire::batch::{BatchFields, BatchLimits, CheckedBatch, Compression, seal_body};
use corelog_wire::ids::{LeaderEpoch, Offset};
use libfuzzer_sys::fuzz_target;

struct Plain;

impl Codec for Plain {
    fn decompress(&self, _: Compression, body: Bytes) -> Result<Bytes, String> {
        Ok(body)
    }

    fn compress(&self, _: Compression, records: &[u8]) -> Result<Bytes, String> {
        Ok(Bytes::copy_from_slice(records))
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (batches, mut base) = (1 + input.below(3), 0_u64);
    let id = SegmentId { tp: tp(0), base: Offset::new(0), segment_use: SegmentUse(1) };
    let (mut file, mut bytes) = (first_block(id), 0);
    for _ in 0..batches {
        let records = 1 + u32::try_from(input.below(8)).unwrap_or(0);
        let length = input.below(200).min(input.0.len());
        let (body, rest) = input.0.split_at(length);
        input.0 = rest;
        let sealed = seal_body(body, &BatchFields::plain(records, 1_000), tp(0));
        let limits = BatchLimits { batch_bytes_max: 1 << 20 };
        // One with more records than its body can hold is refused at the door.
        let Ok(batch) = CheckedBatch::check(sealed, tp(0), &limits) else { return };
        let batch = stored(&batch, base, 1);
        bytes += batch.len() as u64;
        file.extend_from_slice(&batch);
        base += u64::from(records);
    }
    file.resize(file.len().next_multiple_of(BLOCK), 0);
    let (end, file_end) = (Offset::new(base), file.len() as u64);
    let segment = Segment { segment: id, end, file_end, bytes, last_append_ms: 1_000 };
    let plan = Plan {
        tp: tp(0),
        inputs: vec![segment],
        start: Offset::new(0),
        clean_end: Offset::new(0),
        tombstones_before_ms: if input.byte() == Some(1) { i64::MAX } else { 0 },
        unread_from: Offset::new(u64::MAX),
        keys_max: 1 + input.below(10),
        segment_bytes: 1 << 20,
        first_use: SegmentUse(1 << 31),
        epochs: vec![(LeaderEpoch::new(1), Offset::new(0))],
    };
    go_through(&mut Round::new(plan), &file);
});

fn go_through(round: &mut Round, file: &[u8]) {
    let mut written: Vec<u8> = Vec::new();
    for _ in 0..1_000 {
        match round.advance(&Plain) {
            Err(_) | Ok(Want::Done) => return,
            Ok(Want::Turn) => {}
            Ok(Want::Read { from, .. }) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                if round.feed(Bytes::copy_from_slice(&file[from..]), from as u64).is_err() {
                    return;
                }
            }
            Ok(Want::Write { file_position, bytes, .. }) => {
                assert_eq!(file_position, written.len() as u64);
                written.extend_from_slice(&bytes);
            }
            Ok(Want::Finish { done, .. }) => {
                let read = SegmentRead {
                    segment: done.segment,
                    start: SegmentStart::At(BLOCK as u64),
                    file_end: done.file_end,
                    from: done.segment.base,
                    until: done.end,
                    bytes_max: u32::MAX,
                };
                let mut scan = BatchScan::new(&read, BLOCK as u64);
                let taken = scan.take(&written, 0).expect("a sound segment");
                assert_eq!((taken.next, scan.next_offset()), (Next::Done, done.end));
            }
        }
    }
    panic!("the round does not end");
}
