//! Files of segments that left the log, used again.

use super::*;

const WAITING_MAX: u64 = 3 * MIB;

fn recycling() -> Hands {
    Hands::new(ShardConfig { recycled_bytes_max: WAITING_MAX, ..small() })
}

fn segments_of_a_mebibyte() -> TopicConfig {
    settings(|config| config.segment_bytes = 1 << 20)
}

/// Appends this many batches of 50,000 bytes, each with bytes of its own; gives how many were taken.
fn fill(hands: &mut Hands, partition: u32, batches: u8) -> usize {
    let requests: Vec<_> = (0..batches)
        .map(|number| hands.produce(partition, batch_of(partition, -1, -1, 1, &vec![number; 50_000])))
        .collect();
    requests.into_iter().filter(|request| hands.produced(*request).unwrap().0 == ErrorCode::None).count()
}

fn delete_before(hands: &mut Hands, partition: u32, before: u64) {
    let request = hands.request();
    hands.step(Input::DeleteRecords { request, rows: vec![(tp(partition), Offset::new(before))] });
    assert!(hands.answers.contains_key(&request));
}

fn waiting(hands: &Hands) -> u64 {
    hands.shard.retired.iter().map(|retired| retired.allocated).sum()
}

#[test]
fn a_file_that_left_the_log_becomes_a_new_segment_and_its_old_bytes_are_never_read() {
    let mut hands = recycling();
    hands.lead(0, segments_of_a_mebibyte());
    for round in 1..6 {
        assert_eq!(fill(&mut hands, 0, 80), 80);
        delete_before(&mut hands, 0, round * 80 - 10);
        assert!(waiting(&hands) <= WAITING_MAX);
    }
    assert!(hands.recycled >= 4, "{} files were used again", hands.recycled);
    assert!(hands.direct_bytes > 3 * MIB, "{} bytes went past the journal", hands.direct_bytes);
    let all = hands.read_all(0);
    assert_eq!(all.len(), 10);
    assert_eq!(fill(&mut hands, 0, 200), 200);
    let all = hands.read_all(0);
    assert_eq!(all.len(), 210);
    let mut again = hands.restart();
    assert_eq!(waiting(&again), 0, "a start begins with no file that waits");
    assert_eq!(again.read_all(0), all);
}

#[test]
fn what_waits_goes_before_an_append_is_refused() {
    let taken = |recycled_bytes_max| {
        let mut hands = Hands::new(ShardConfig { recycled_bytes_max, disk_bytes_max: 8 * MIB, ..small() });
        hands.lead(0, segments_of_a_mebibyte());
        hands.lead(1, segments_of_a_mebibyte());
        assert_eq!(fill(&mut hands, 0, 100), 100);
        delete_before(&mut hands, 0, 90);
        let waited = waiting(&hands);
        let taken = fill(&mut hands, 1, 250);
        assert!(taken < 250 && waiting(&hands) == 0);
        (waited > 0, taken)
    };
    let (without, with) = (taken(0), taken(WAITING_MAX));
    assert!(!without.0 && with.0);
    // An open segment made of a file that waited counts in full from its first batch on: a segment for each partition.
    let batches_of_a_segment = 25;
    assert!(with.1 + 2 * batches_of_a_segment >= without.1, "{without:?} {with:?}");
}

#[test]
fn a_partition_that_goes_takes_what_waits_in_its_folder_along() {
    let mut hands = recycling();
    hands.lead(0, segments_of_a_mebibyte());
    fill(&mut hands, 0, 80);
    delete_before(&mut hands, 0, 70);
    assert!(waiting(&hands) > 0);
    hands.step(Input::Remove { tp: tp(0) });
    assert_eq!((waiting(&hands), hands.files.len()), (0, 0));
    assert_eq!(hands.removed, [tp(0)]);
}

#[test]
fn a_small_partition_gets_no_large_file() {
    let mut hands = recycling();
    hands.lead(0, segments_of_a_mebibyte());
    hands.lead(1, segments_of_a_mebibyte());
    fill(&mut hands, 0, 80);
    delete_before(&mut hands, 0, 70);
    let waited = waiting(&hands);
    assert!(waited > 0);
    hands.produce(1, batch_of(1, -1, -1, 1, b"small"));
    assert_eq!(waiting(&hands), waited);
    assert_eq!(hands.shard.partitions[&tp(1)].log.segments.last().unwrap().allocated, 0);
}

/// A partition whose open segment has a file that was written before, with nothing in the journal alone.
fn streaming() -> Hands {
    let mut hands = recycling();
    hands.lead(0, segments_of_a_mebibyte());
    fill(&mut hands, 0, 80);
    delete_before(&mut hands, 0, 79);
    while hands.direct_bytes == 0 {
        fill(&mut hands, 0, 1);
    }
    hands
}

#[test]
fn a_stream_is_acknowledged_with_its_commit_and_read_from_memory_then_from_its_segment() {
    let mut hands = streaming();
    hands.hold_flushes = true;
    let before = hands.direct_bytes;
    let end = hands.shard.describe(tp(0)).unwrap().high_watermark.get();
    let request = hands.produce(0, batch_of(0, -1, -1, 1, &vec![7; 50_000]));
    assert!(hands.direct_bytes > before);
    assert_eq!(hands.produced(request), None, "nothing is acknowledged before the commit is flushed");
    assert_eq!(hands.shard.describe(tp(0)).unwrap().high_watermark.get(), end);
    hands.hold_flushes = false;
    hands.flush();
    assert_eq!(hands.produced(request), Some((ErrorCode::None, end)));
    let read = hands.fetch(0, end, 0);
    assert_eq!(hands.reads[&read][0].1.len(), batch_of(0, -1, -1, 1, &vec![7; 50_000]).len());
    let all = hands.read_all(0);
    let mut again = hands.restart();
    assert_eq!(again.read_all(0), all);
    assert_eq!(
        again.shard.snapshot().tail_bytes,
        0,
        "what went past the journal is not in memory after a start"
    );
}

#[test]
fn a_small_batch_behind_a_stream_goes_through_the_journal_and_the_stream_goes_on_behind_it() {
    let mut hands = streaming();
    let before = hands.direct_bytes;
    hands.produce(0, batch_of(0, -1, -1, 1, b"small"));
    assert_eq!(hands.direct_bytes, before);
    assert!(hands.shard.partitions[&tp(0)].undestaged.is_some());
    assert_eq!(fill(&mut hands, 0, 3), 3);
    assert!(hands.direct_bytes > before);
    assert!(hands.shard.partitions[&tp(0)].undestaged.is_none());
    let all = hands.read_all(0);
    assert_eq!(all.iter().filter(|(_, value)| &value[..] == b"small").count(), 1);
    assert_eq!(hands.restart().read_all(0), all);
}

#[test]
fn a_commit_that_was_not_flushed_takes_its_direct_batches_with_it() {
    let mut hands = streaming();
    let all = hands.read_all(0);
    let ring = hands.ring.clone();
    hands.hold_flushes = true;
    let request = hands.produce(0, batch_of(0, -1, -1, 1, &vec![7; 50_000]));
    assert_eq!(hands.produced(request), None);
    // The segment has the batch, the ring has nothing of it.
    hands.ring = ring;
    let mut again = hands.restart();
    assert_eq!(again.read_all(0), all);
    let request = again.produce(0, batch_of(0, -1, -1, 1, b"another"));
    assert_eq!(again.produced(request), Some((ErrorCode::None, all.last().unwrap().0 + 1)));
}

#[test]
fn a_segment_dropped_under_a_direct_write_keeps_its_file_until_that_is_over() {
    let mut hands = streaming();
    hands.hold_flushes = true;
    hands.produce(0, batch_of(0, -1, -1, 1, &vec![7; 50_000]));
    let segment = hands.shard.partitions[&tp(0)].log.segments.last().unwrap().id(tp(0));
    hands.step(Input::Remove { tp: tp(0) });
    assert!(hands.files.contains_key(&segment));
    hands.hold_flushes = false;
    while !hands.held.is_empty() {
        hands.flush();
    }
    assert_eq!((hands.files.len(), hands.removed.as_slice()), (0, &[tp(0)][..]));
}
