//! Faults that were found once, each by its symptom.

use super::*;
use crate::journal::Verdict;

fn value(bytes: usize) -> Vec<u8> {
    vec![3; bytes]
}

fn delete_before(hands: &mut Hands, partition: u32, before: u64) -> RequestId {
    let request = hands.request();
    hands.step(Input::DeleteRecords { request, rows: vec![(tp(partition), Offset::new(before))] });
    request
}

fn deleted(hands: &Hands, request: RequestId) -> Option<ErrorCode> {
    match hands.answers.get(&request)? {
        Answer::DeleteRecords(answer) => Some(answer.rows[0].error),
        other => panic!("not an answer to a deletion: {other:?}"),
    }
}

fn drops(hands: &Hands) -> usize {
    hands.notes.iter().filter(|note| matches!(note, Note::LogStartMoved { .. })).count()
}

/// Fills the ring with undestaged bytes until the file system must take some.
fn fill(hands: &mut Hands, partition: u32) -> Vec<ErrorCode> {
    let requests: Vec<_> =
        (0..30).map(|_| hands.produce(partition, batch_of(partition, -1, -1, 1, &value(40_000)))).collect();
    requests.into_iter().filter_map(|request| hands.produced(request)).map(|(error, _)| error).collect()
}

#[test]
fn a_partition_removed_under_an_extent_keeps_its_folder_until_the_extent_is_over() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.hold_extents = true;
    fill(&mut hands, 0);
    assert_eq!(hands.held_extents.len(), 1);
    hands.step(Input::Remove { tp: tp(0) });
    assert_eq!(hands.shard.describe(tp(0)), None);
    assert_eq!((hands.removed.len(), hands.files.len()), (0, 1));
    hands.finish_extents();
    assert_eq!((hands.removed.as_slice(), hands.files.len()), (&[tp(0)][..], 0));
}

#[test]
fn a_full_file_system_costs_drop_oldest_one_segment_a_try() {
    let mut hands = Hands::new(small());
    let config = settings(|config| {
        config.full_policy = FullPolicy::DropOldest;
        config.segment_bytes = 1 << 20;
    });
    hands.lead(0, config);
    for _ in 0..8 {
        fill(&mut hands, 0);
    }
    assert!(hands.files.len() > 5);
    assert_eq!(drops(&hands), 0);
    hands.disk_full = true;
    let refused = fill(&mut hands, 0);
    assert!(refused.contains(&ErrorCode::DiskFull), "{refused:?}");
    assert_eq!(drops(&hands), 1, "more than the first segment went");
    // The next try fails too: one more.
    hands.pass(Duration::from_secs(1));
    hands.pass(Duration::from_secs(1));
    fill(&mut hands, 0);
    assert_eq!(drops(&hands), 2);
    hands.disk_full = false;
    hands.pass(Duration::from_secs(1));
    hands.pass(Duration::from_secs(1));
    assert_eq!(fill(&mut hands, 0), [ErrorCode::None; 30]);
    assert!(!hands.shard.snapshot().disk_full);
    hands.read_all(0);
}

#[test]
fn a_checkpoint_that_finds_no_room_is_tried_again_and_poisons_nothing() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.disk_full = true;
    fill(&mut hands, 0);
    let (checkpoints, slots) = (hands.shard.snapshot().checkpoints, hands.slots.clone());
    assert!(hands.shard.snapshot().disk_full && !hands.shard.snapshot().poisoned);
    assert_eq!(hands.slots, slots);
    hands.disk_full = false;
    hands.pass(Duration::from_secs(1));
    hands.pass(Duration::from_secs(1));
    for _ in 0..4 {
        assert_eq!(fill(&mut hands, 0), [ErrorCode::None; 30]);
    }
    assert!(hands.shard.snapshot().checkpoints > checkpoints);
    assert!(!hands.shard.snapshot().disk_full);
    let before = hands.read_all(0);
    assert_eq!(hands.restart().read_all(0), before);
}

#[test]
fn a_shard_on_a_full_file_system_stops_cleanly() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.disk_full = true;
    fill(&mut hands, 0);
    hands.step(Input::Drain);
    assert!(hands.notes.iter().any(|note| matches!(note, Note::Drained)), "{:?}", hands.shard);
}

#[test]
fn a_shard_of_many_partitions_stops_without_waiting_for_housekeeping() {
    let mut hands = Hands::new(small());
    for partition in 0..1_000 {
        hands.lead(partition, settings(|_| ()));
    }
    hands.produce(0, batch_of(0, -1, -1, 1, b"one"));
    hands.step(Input::Drain);
    // As the pump does: a turn whenever one is due.
    let drained = |hands: &Hands| hands.notes.iter().any(|note| matches!(note, Note::Drained));
    while !drained(&hands) {
        let due = hands.shard.next_deadline().expect("something is due");
        assert!(due <= hands.now.instant, "it waits until {due:?}, now is {:?}", hands.now.instant);
        hands.step(Input::Tick);
    }
}

#[test]
fn a_log_start_at_the_end_of_the_log_is_replayed_as_it_was_lived() {
    // Beside the deletion: nothing, a batch appended before it whose commit is still under way, one appended after.
    for (before, after) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let mut hands = Hands::new(small());
        hands.lead(0, settings(|_| ()));
        for _ in 0..10 {
            hands.produce(0, batch_of(0, -1, -1, 1, &value(500)));
        }
        let slots = hands.slots.clone();
        hands.hold_flushes = true;
        // Two commits are under way, so that the next entries gather in one.
        hands.lead(1, settings(|_| ()));
        hands.produce(1, batch_of(1, -1, -1, 1, b"x"));
        hands.produce(1, batch_of(1, -1, -1, 1, b"x"));
        for _ in 0..before {
            hands.produce(0, batch_of(0, -1, -1, 1, b"before"));
        }
        let request = delete_before(&mut hands, 0, 10);
        for _ in 0..after {
            hands.produce(0, batch_of(0, -1, -1, 1, b"after"));
        }
        hands.hold_flushes = false;
        hands.flush();
        hands.flush();
        assert_eq!(deleted(&hands, request), Some(ErrorCode::None));
        // Enough for the segment to be destaged, with the slots of then: everything is replayed.
        for _ in 0..8 {
            hands.produce(0, batch_of(0, -1, -1, 1, &value(40_000)));
        }
        assert!(!hands.files.is_empty());
        let (segments, all) = (segments_of(&hands), hands.read_all(0));
        assert_eq!(all[0].0, 10);
        hands.slots = slots;
        let mut hands = hands.restart();
        assert_eq!(segments_of(&hands), segments, "{before} before, {after} after");
        assert_eq!(hands.read_all(0), all);
    }
}

fn segments_of(hands: &Hands) -> Vec<(SegmentId, Offset, Offset)> {
    let log = &hands.shard.partitions[&tp(0)].log;
    log.segments.iter().map(|segment| (segment.id(tp(0)), segment.end, segment.proven_end)).collect()
}

#[test]
fn deletions_at_the_end_of_the_log_do_not_wear_the_disk_budget_down() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    for offset in 1..50 {
        hands.produce(0, batch_of(0, -1, -1, 1, &value(20_000)));
        delete_before(&mut hands, 0, offset);
        hands.produce(0, batch_of(0, -1, -1, 1, &value(20_000)));
    }
    assert_eq!(hands.shard.disk_bytes_leaving, 0);
}

#[test]
fn a_topic_that_turns_to_memory_releases_no_acknowledgement_that_says_flushed() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.hold_flushes = true;
    let flushed = hands.produce(0, batch_of(0, -1, -1, 1, b"a"));
    let memory = settings(|config| config.durability = Durability::Memory);
    hands.step(Input::Configure { tp: tp(0), config: memory });
    hands.produce(0, batch_of(0, -1, -1, 1, b"b"));
    assert_eq!(hands.produced(flushed), None);
    hands.flush();
    assert_eq!(hands.produced(flushed), Some((ErrorCode::None, 0)));
}

#[test]
fn a_topic_that_turns_to_disk_shows_no_less_than_before() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|config| config.durability = Durability::Memory));
    hands.hold_flushes = true;
    hands.produce(0, batch_of(0, -1, -1, 1, b"a"));
    let end = hands.ask_end(0);
    assert_eq!(hands.end(end), Some(1));
    hands.step(Input::Configure { tp: tp(0), config: settings(|_| ()) });
    let end = hands.ask_end(0);
    assert_eq!(hands.end(end), Some(1));
    assert_eq!(hands.shard.describe(tp(0)).unwrap().high_watermark, Offset::new(1));
    let flushed = hands.produce(0, batch_of(0, -1, -1, 1, b"b"));
    assert_eq!(hands.produced(flushed), None);
    hands.flush();
    assert_eq!(hands.produced(flushed), Some((ErrorCode::None, 1)));
}

#[test]
fn deletions_leave_the_journal_room_for_what_frees_it() {
    let mut hands = Hands::new(small());
    for partition in 0..2 {
        hands.lead(partition, settings(|_| ()));
    }
    hands.produce(1, batch_of(1, -1, -1, 1_000, b"x"));
    hands.disk_full = true;
    fill(&mut hands, 0);
    for offset in 1..1_000 {
        delete_before(&mut hands, 1, offset);
    }
    let snapshot = hands.shard.snapshot();
    assert!(small().ring_bytes - snapshot.journal_used_bytes > small().ring_bytes / 32, "{snapshot:?}");
    let refused = delete_before(&mut hands, 0, 1);
    assert_eq!(deleted(&hands, refused), Some(ErrorCode::Throttled));
    hands.disk_full = false;
    hands.pass(Duration::from_secs(1));
    hands.pass(Duration::from_secs(1));
    for _ in 0..4 {
        assert_eq!(fill(&mut hands, 0), [ErrorCode::None; 30]);
    }
}

#[test]
fn the_chain_of_commits_holds_across_a_session_that_began_where_the_scan_did() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.produce(0, batch_of(0, -1, -1, 1, b"a"));
    let older = hands.slots.clone();
    let end = hands.shard.describe(tp(0)).unwrap().log_end.get();
    delete_before(&mut hands, 0, end);
    hands.step(Input::Drain);
    assert_ne!(hands.slots, older, "a clean stop leaves a checkpoint");
    // Nothing is to be replayed: the scan begins at the head and sees no commit before the new session's first.
    let mut hands = hands.restart();
    for text in ["b", "c"] {
        hands.produce(0, batch_of(0, -1, -1, 1, text.as_bytes()));
    }
    let all = hands.read_all(0);
    assert_eq!(all.len(), 2);
    // The newest slot rots; the older one replays from before the session.
    hands.slots = older;
    let mut hands = hands.restart();
    assert!(!hands.shard.snapshot().read_only);
    assert_eq!(hands.read_all(0), all);
}

#[test]
fn a_full_budget_does_not_wait_for_a_partition_that_is_going() {
    let mut hands = Hands::new(ShardConfig { disk_bytes_max: 6 * MIB, ..small() });
    for partition in 0..2 {
        let config = settings(|config| {
            config.full_policy = FullPolicy::DropOldest;
            config.segment_bytes = 1 << 20;
        });
        hands.lead(partition, config);
    }
    for _ in 0..6 {
        fill(&mut hands, 0);
    }
    hands.hold_flushes = true;
    hands.step(Input::Remove { tp: tp(0) });
    let refused = fill(&mut hands, 1);
    assert!(refused.contains(&ErrorCode::DiskFull), "{refused:?}");
}

#[test]
fn what_a_corrupt_journal_lost_is_an_error_to_its_readers() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    for sequence in 0..30 {
        hands.produce(0, batch_of(0, 1, sequence, 1, &value(10_000)));
    }
    assert!(hands.shard.snapshot().checkpoints > 0);
    let first = hands.shard.partitions[&tp(0)].log.first_undestaged().unwrap();
    let at = usize::try_from(first.in_ring(small().ring_bytes)).unwrap();
    hands.ring[at + 100] ^= 1;
    let mut hands = hands.restart();
    assert!(hands.shard.snapshot().read_only);
    let log = &hands.shard.partitions[&tp(0)].log;
    let (held, durable) = (log.held_end().get(), log.durable_end().get());
    assert!(held < durable);
    let request = hands.fetch(0, held, 0);
    assert_eq!(hands.reads[&request][0].0, ErrorCode::CorruptBatch);
}

#[test]
fn the_epoch_that_wrote_the_log_is_not_led_in_again_after_a_start() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.produce(0, batch_of(0, -1, -1, 1, b"a"));
    let mut hands = Hands::recover(hands.config, hands.ring, hands.superblocks, hands.slots, hands.files);
    hands.lead(0, settings(|_| ()));
    assert!(matches!(hands.notes[..], [Note::EpochBehind { .. }]));
    let refused = hands.produce(0, batch_of(0, -1, -1, 1, b"b"));
    assert_eq!(hands.produced(refused).unwrap().0, ErrorCode::NotLeader);
}

#[test]
fn a_record_larger_than_the_topic_takes_is_refused() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|config| config.record_bytes_max = 1_000));
    for (records, bytes, expected) in
        [(1, 1_000, ErrorCode::None), (1, 1_001, ErrorCode::TooLarge), (100, 900, ErrorCode::None)]
    {
        let request = hands.produce(0, batch_of(0, -1, -1, records, &value(bytes)));
        assert_eq!(hands.produced(request).unwrap().0, expected, "{records} records of {bytes} bytes");
    }
}

/// How recovery judges the journal when the drive cannot read one block of the ring.
fn verdict_without(hands: &Hands, lost: u64) -> Verdict {
    let mut recovery = Recovery::new(hands.config, &hands.superblocks, &hands.slots).unwrap();
    while let Some(read) = recovery.next_read() {
        for at in (read.ring_offset..read.ring_offset + read.bytes).step_by(usize::try_from(BLOCK).unwrap()) {
            let from = usize::try_from(at).unwrap();
            if at == lost {
                recovery.feed_unreadable();
            } else {
                recovery.feed(&hands.ring[from..from + usize::try_from(BLOCK).unwrap()]);
            }
        }
    }
    recovery.finish().unwrap().report.verdict
}

#[test]
fn a_block_that_cannot_be_read_is_never_taken_for_the_end_of_the_journal() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    // One commit of a block, one of three, both flushed and not marked.
    hands.produce(0, batch_of(0, -1, -1, 1, b"a"));
    hands.produce(0, batch_of(0, -1, -1, 1, &value(10_000)));
    let end = hands.shard.snapshot().journal_head;
    assert_eq!(end, 4 * BLOCK);
    for (lost, from) in [(0, 0), (1, 1), (2, 1), (3, 1)] {
        let verdict = verdict_without(&hands, lost * BLOCK);
        let Verdict::Corrupt { from: found, .. } = verdict else { panic!("block {lost}: {verdict:?}") };
        assert_eq!(found.get(), from * BLOCK, "block {lost}");
    }
    // Behind the first block that nothing was written to.
    assert_eq!(verdict_without(&hands, end + BLOCK), Verdict::Clean { end: Position::new(end) });
}

#[test]
fn many_extents_that_find_no_room_in_one_try_cost_one_segment_together() {
    let mut hands = Hands::new(ShardConfig { ring_bytes: 4 * MIB, ..small() });
    let config = settings(|config| {
        config.full_policy = FullPolicy::DropOldest;
        config.segment_bytes = 1 << 20;
    });
    for partition in 0..8 {
        hands.lead(partition, config.clone());
        for _ in 0..4 {
            fill(&mut hands, partition);
        }
    }
    hands.disk_full = true;
    for _ in 0..8 {
        for partition in 0..8 {
            hands.produce(partition, batch_of(partition, -1, -1, 1, &value(60_000)));
        }
    }
    assert!(hands.shard.is_stuck());
    assert_eq!(drops(&hands), 1);
}

#[test]
fn who_lacks_descriptors_drops_nothing_and_is_not_full() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|config| config.full_policy = FullPolicy::DropOldest));
    fill(&mut hands, 0);
    let mut out = Effects::default();
    hands.shard.pause(hands.now, false, &mut out);
    fill(&mut hands, 0);
    assert_eq!((drops(&hands), hands.shard.snapshot().disk_full), (0, false));
    hands.pass(Duration::from_secs(1));
    hands.pass(Duration::from_secs(1));
    assert_eq!(fill(&mut hands, 0), [ErrorCode::None; 30]);
}

#[test]
fn an_index_that_could_not_be_written_is_written_later() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|config| config.segment_bytes = 1 << 20));
    // These hands never can.
    for _ in 0..3 {
        fill(&mut hands, 0);
    }
    let seals = |hands: &Hands| -> Vec<crate::log::Seal> {
        hands.shard.partitions[&tp(0)].log.segments.iter().map(|segment| segment.seal).collect()
    };
    assert!(seals(&hands).contains(&crate::log::Seal::Failed));
    hands.can_seal = true;
    hands.pass(Duration::from_secs(1));
    hands.pass(Duration::from_secs(1));
    assert!(
        seals(&hands).contains(&crate::log::Seal::Done) && !seals(&hands).contains(&crate::log::Seal::Failed)
    );
}

#[test]
fn a_fetch_that_is_answered_for_a_removed_partition_shows_what_another_acknowledged() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|config| config.durability = Durability::Memory));
    hands.lead(1, settings(|_| ()));
    hands.hold_flushes = true;
    for _ in 0..2 {
        hands.produce(1, batch_of(1, -1, -1, 1, b"under way"));
    }
    let acknowledged = hands.produce(0, batch_of(0, -1, -1, 1, b"a"));
    assert_eq!(hands.produced(acknowledged), Some((ErrorCode::None, 0)));
    let request = hands.request();
    let rows = [0, 1].map(|partition| FetchRow {
        tp: tp(partition),
        offset: Offset::ZERO,
        bytes_max: 1 << 20,
        leader_epoch: None,
    });
    hands.step(Input::Fetch(Fetch {
        request,
        wait_max: Duration::from_secs(1),
        bytes_min: 1,
        bytes_max: 1 << 20,
        rows: rows.to_vec(),
        filter: TagFilter::of(&[] as &[&str]).unwrap(),
    }));
    assert!(!hands.reads.contains_key(&request));
    hands.step(Input::Remove { tp: tp(1) });
    assert!(!hands.reads[&request][0].1.is_empty());
}
