//! The shard driven by small hands in memory.
//!
//! The weather (lost, torn, rotten, slow) belongs to the simulator; here are the rules of the room itself.

use super::*;
use crate::group::GroupName;
use crate::journal::{Packer, RING_DATA_START};
use crate::limits::{BLOCK, LAZY_COMMIT_AFTER, LAZY_COMMIT_BYTES, MIB, RETENTION_WAITS_LONG};
use crate::recovery::{Recovered, Recovery, format};
use crate::segment::{BatchScan, Next};
use crate::topic::{Durability, FullPolicy, TopicConfig, TopicOverrides};
use bytes::Bytes;
use corelog_wire::batch::{BatchFields, BatchLimits, BodyCheck, CheckedBatch, StoredBatches};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{ProducerEpoch, ProducerId, Sequence, TopicId};
use corelog_wire::keys::{TagFilter, bloom_of};
use corelog_wire::message::{self as wire, Acks, Answer, At, ListOffsetsRow};
use corelog_wire::records::RecordsBuilder;
use std::time::Duration;

const TOPIC: TopicId = TopicId::from_bytes([7; 16]);

fn tp(partition: u32) -> TopicPartition {
    TopicPartition::new(TOPIC, partition)
}

fn small() -> ShardConfig {
    ShardConfig {
        shard: ShardId::new(0),
        ring_bytes: MIB,
        tail_cache_bytes: 64 << 10,
        disk_bytes_max: 64 * MIB,
        recycled_bytes_max: 0,
        prewrite: false,
    }
}

fn settings(change: impl FnOnce(&mut TopicConfig)) -> TopicConfig {
    let mut config = TopicConfig::resolve(&TopicOverrides::default(), &TopicOverrides::default(), 1);
    change(&mut config);
    config
}

fn value_of(batch: &CheckedBatch) -> Bytes {
    let mut records = corelog_wire::records::Records::new(batch.body(), batch.header().record_count);
    records.next().unwrap().unwrap().value.unwrap()
}

fn batch_of(partition: u32, producer: i64, sequence: i32, records: u32, value: &[u8]) -> Bytes {
    let mut body = RecordsBuilder::with_capacity(0);
    for record in 0..records {
        body.push(record, 0, None, Some(value), &[]).unwrap();
    }
    let fields = BatchFields {
        producer_id: ProducerId::new(producer),
        producer_epoch: ProducerEpoch::new(0),
        base_sequence: Sequence::new(sequence),
        ..BatchFields::plain(records, 500)
    };
    body.into_batch(&fields, tp(partition))
}

#[test]
fn an_acknowledgement_follows_the_flush() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.hold_flushes = true;
    let request = hands.produce(0, batch_of(0, 1, 0, 3, b"a"));
    let waiting = hands.fetch(0, 0, 1_000);
    assert_eq!(hands.produced(request), None);
    assert!(!hands.reads.contains_key(&waiting));
    hands.flush();
    assert_eq!(hands.produced(request), Some((ErrorCode::None, 0)));
    assert!(hands.reads.contains_key(&waiting));
    assert_eq!(hands.shard.describe(tp(0)).unwrap().high_watermark, Offset::new(3));
}

/// A batch of one record, by its tag.
fn tagged(tag: &str) -> Bytes {
    let mut body = RecordsBuilder::with_capacity(0);
    body.push(0, 0, None, Some(tag.as_bytes()), &[]).unwrap();
    body.into_batch(&BatchFields { tag_bloom: bloom_of(tag.as_bytes()), ..BatchFields::plain(1, 500) }, tp(0))
}

#[test]
fn a_fetch_by_tag_waits_for_a_match_and_says_how_far_it_came() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    for tag in ["red", "green", "green"] {
        hands.produce(0, tagged(tag));
    }
    let taken = |hands: &Hands, request| {
        let (error, bytes, next): &(ErrorCode, Bytes, Option<Offset>) = &hands.reads.get(&request)?[0];
        assert_eq!(*error, ErrorCode::None);
        let stored = StoredBatches::new(bytes.clone(), tp(0), BodyCheck::Verify);
        Some((stored.map(Result::unwrap).count(), next.unwrap().get()))
    };
    let red = hands.fetch_of(&["red"], 0, 0, 1_000);
    assert_eq!(taken(&hands, red), Some((1, 3)));
    let both = hands.fetch_of(&["blue", "green"], 0, 0, 1_000);
    assert_eq!(taken(&hands, both), Some((2, 3)));
    let none = hands.fetch_of(&["blue"], 0, 0, 0);
    assert_eq!(taken(&hands, none), Some((0, 3)));

    let waits = hands.fetch_of(&["red"], 0, 1, 1_000);
    hands.produce(0, tagged("green"));
    assert_eq!(taken(&hands, waits), None);
    hands.produce(0, tagged("red"));
    hands.produce(0, tagged("green"));
    assert_eq!(taken(&hands, waits), Some((1, 5)));
    let late = hands.fetch_of(&["blue"], 0, 1, 1_000);
    hands.produce(0, tagged("green"));
    hands.pass(Duration::from_secs(1));
    assert_eq!(taken(&hands, late), Some((0, 7)));
}

#[test]
fn a_memory_topic_is_acknowledged_before_the_flush() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|config| config.durability = Durability::Memory));
    hands.hold_flushes = true;
    let request = hands.produce(0, batch_of(0, 1, 0, 1, b"a"));
    assert_eq!(hands.produced(request), Some((ErrorCode::None, 0)));
    assert_eq!(hands.read_all(0), [(0, Bytes::from_static(b"a"))]);
}

#[test]
fn what_nobody_waits_for_gets_its_commit_late_or_when_it_is_much_or_with_others() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|config| config.durability = Durability::Memory));
    hands.lead(1, settings(|_| ()));
    let head = |hands: &Hands| hands.shard.snapshot().journal_head;
    let before = head(&hands);
    for _ in 0..3 {
        let request = hands.produce(0, batch_of(0, -1, -1, 1, b"a"));
        assert_eq!(hands.produced(request).unwrap().0, ErrorCode::None);
    }
    assert_eq!(head(&hands), before, "each batch got a commit of its own");
    hands.pass(LAZY_COMMIT_AFTER);
    let one = head(&hands) - before;
    assert_eq!(one, BLOCK);
    hands.produce(0, batch_of(0, -1, -1, 1, b"a"));
    assert_eq!(head(&hands) - before, one);
    let waits = hands.produce(1, batch_of(1, -1, -1, 1, b"a"));
    assert_eq!(hands.produced(waits), Some((ErrorCode::None, 0)));
    assert_eq!(head(&hands) - before, 2 * one, "the commit of the one who waits took both");
    for _ in 0..=LAZY_COMMIT_BYTES / 1_000 {
        hands.produce(0, batch_of(0, -1, -1, 1, &[b'a'; 1_000]));
    }
    assert!(head(&hands) - before > LAZY_COMMIT_BYTES);
}

#[test]
fn what_a_memory_topic_acknowledged_is_seen_by_whoever_asks_next() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|config| config.durability = Durability::Memory));
    // Soon as many commits are under way as may be.
    hands.hold_flushes = true;
    for expected in 0..5 {
        let request = hands.produce(0, batch_of(0, -1, -1, 1, b"a"));
        assert_eq!(hands.produced(request), Some((ErrorCode::None, expected)));
        let read = hands.fetch(0, expected, 0);
        assert_eq!(
            hands.reads.contains_key(&read),
            expected < 2,
            "it waits for a commit to end, for a while"
        );
        if expected == 2 {
            hands.pass(Duration::from_millis(100));
            assert!(hands.reads.contains_key(&read));
            continue;
        }
        let end = hands.ask_end(0);
        assert_eq!(hands.end(end), Some(expected + 1));
        assert_eq!(hands.reads[&read][0].1.len(), batch_of(0, -1, -1, 1, b"a").len());
    }
    let waits = hands.fetch(0, 5, 1_000);
    let request = hands.produce(0, batch_of(0, -1, -1, 1, b"a"));
    assert_eq!(hands.produced(request), None, "who waits for it sees it when the producer is told");
    assert!(!hands.reads.contains_key(&waits));
    hands.flush();
    assert_eq!(hands.produced(request), Some((ErrorCode::None, 5)));
    assert!(hands.reads.contains_key(&waits));
    hands.produce(0, batch_of(0, -1, -1, 1, b"a"));
    hands.step(Input::PrewriteFailed);
    assert_eq!(hands.read_all(0).len(), 7, "the device failed, and memory did not");
}

#[test]
fn a_duplicate_is_answered_with_the_first_offsets_when_those_are_durable() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.hold_flushes = true;
    hands.produce(0, batch_of(0, 1, 0, 2, b"a"));
    let again = hands.produce(0, batch_of(0, 1, 0, 2, b"a"));
    assert_eq!(hands.produced(again), None);
    hands.flush();
    assert_eq!(hands.produced(again), Some((ErrorCode::None, 0)));
    let gap = hands.produce(0, batch_of(0, 1, 5, 1, b"b"));
    assert_eq!(hands.produced(gap).unwrap().0, ErrorCode::OutOfOrderSequence);
    let unknown = hands.produce(0, batch_of(0, 2, 5, 1, b"b"));
    assert_eq!(hands.produced(unknown).unwrap().0, ErrorCode::UnknownProducer);
}

#[test]
fn a_deadline_answers_what_is_not_durable_as_unknown() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.hold_flushes = true;
    let request = hands.produce(0, batch_of(0, 1, 0, 1, b"a"));
    hands.pass(Duration::from_secs(11));
    assert_eq!(hands.produced(request).unwrap().0, ErrorCode::Deadline);
    hands.flush();
    assert_eq!(hands.read_all(0).len(), 1);
}

/// Many laps of a ring of 1 MiB, over several partitions and segments, with kills in between.
#[test]
fn everything_acknowledged_is_read_back_after_kills_and_laps_of_the_ring() {
    let mut hands = Hands::new(small());
    for partition in 0..3 {
        hands.lead(partition, settings(|config| config.segment_bytes = 1 << 20));
    }
    let mut written: [Vec<(u64, Bytes)>; 3] = Default::default();
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    for round in 0..600_i32 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let partition = u32::try_from(seed % 3).unwrap();
        let value = vec![u8::try_from(round % 251).unwrap(); usize::try_from(seed % 40_000).unwrap() + 1];
        let sequence = i32::try_from(written[partition as usize].len()).unwrap();
        let request =
            hands.produce(partition, batch_of(partition, i64::from(partition), sequence, 1, &value));
        let (error, offset) = hands.produced(request).unwrap();
        assert_eq!(error, ErrorCode::None, "{:?}", hands.answers[&request]);
        written[partition as usize].push((offset, Bytes::from(value)));
        if round % 97 == 96 {
            hands = hands.restart();
        }
        if round % 53 == 0 {
            hands.pass(Duration::from_millis(100));
        }
    }
    hands = hands.restart();
    for partition in 0..3_u32 {
        assert_eq!(hands.read_all(partition), written[partition as usize], "partition {partition}");
    }
    assert!(hands.shard.ring.head().get() > 8 * MIB, "the ring went around");
}

#[test]
fn an_old_slot_serves_when_the_newest_is_bad() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    let mut written = Vec::new();
    for round in 0..200_i32 {
        let value = vec![1; 9_000];
        let request = hands.produce(0, batch_of(0, 1, round, 1, &value));
        written.push((hands.produced(request).unwrap().1, Bytes::from(value)));
    }
    assert!(hands.shard.checkpoints >= 2);
    let newest = usize::from(hands.shard.generation % 2 == 1);
    hands.slots[newest].as_mut().unwrap()[20] ^= 1;
    let mut hands = hands.restart();
    assert_eq!(hands.read_all(0), written);
}

#[test]
fn retention_by_time_clears_an_idle_partition() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|config| config.retention_ms = Some(60_000)));
    hands.produce(0, batch_of(0, 1, 0, 1, b"a"));
    hands.pass(Duration::from_secs(30));
    assert_eq!(hands.shard.describe(tp(0)).unwrap().log_start, Offset::ZERO);
    hands.pass(Duration::from_secs(31));
    let snapshot = hands.shard.describe(tp(0)).unwrap();
    assert_eq!((snapshot.log_start, snapshot.log_end, snapshot.bytes), (Offset::new(1), Offset::new(1), 0));
    let late = hands.fetch(0, 0, 0);
    assert_eq!(hands.reads[&late][0].0, ErrorCode::OffsetOutOfRange);
    let mut hands = hands.restart();
    let request = hands.produce(0, batch_of(0, 1, 1, 1, b"b"));
    assert_eq!(hands.produced(request), Some((ErrorCode::None, 1)));
}

#[test]
fn a_full_budget_blocks_or_drops_the_oldest() {
    for policy in [FullPolicy::BlockProducer, FullPolicy::DropOldest] {
        let mut hands = Hands::new(ShardConfig { disk_bytes_max: 6 * MIB, ..small() });
        hands.lead(
            0,
            settings(|config| {
                config.full_policy = policy;
                config.segment_bytes = 1 << 20;
            }),
        );
        let value = vec![3; 60_000];
        let mut refused = 0;
        for sequence in 0..300 {
            let request = hands.produce(0, batch_of(0, -1, -1, 1, &value));
            match hands.produced(request).unwrap().0 {
                ErrorCode::None => {}
                ErrorCode::DiskFull => refused += 1,
                other => panic!("{other:?} at {sequence}"),
            }
        }
        let on_disk: usize = hands.files.values().map(Vec::len).sum();
        assert!(on_disk as u64 <= 6 * MIB, "{policy:?}: {on_disk} bytes");
        assert_eq!(refused > 0, policy == FullPolicy::BlockProducer, "{policy:?}");
        let log_start = hands.shard.describe(tp(0)).unwrap().log_start.get();
        assert_eq!(log_start > 0, policy == FullPolicy::DropOldest, "{policy:?}");
        hands.read_all(0);
    }
}

#[test]
fn what_protected_groups_have_not_read_stays_at_the_budget_and_past_retention() {
    let mut hands = Hands::new(ShardConfig { disk_bytes_max: 6 * MIB, ..small() });
    let readers = |names: &[&str]| names.iter().map(|name| GroupName::new(name).unwrap()).collect::<Vec<_>>();
    let protecting = |groups: &[GroupName]| {
        settings(|config| {
            config.full_policy = FullPolicy::ProtectUnread;
            config.protect_groups = groups.to_vec();
            config.segment_bytes = 1 << 20;
            config.retention_bytes = Some(1 << 20);
            config.retention_ms = Some(1);
        })
    };
    let both = readers(&["audit", "billing"]);
    let tell = |hands: &mut Hands, groups: &[GroupName], offset| {
        let rows = vec![(tp(0), Offset::new(offset))];
        hands.step(Input::GroupsRead(vec![ReadUpTo { groups: groups.to_vec(), rows }]));
    };
    let fill = |hands: &mut Hands| {
        let value = vec![3; 60_000];
        for _ in 0..300 {
            let request = hands.produce(0, batch_of(0, -1, -1, 1, &value));
            if hands.produced(request).unwrap().0 == ErrorCode::DiskFull {
                hands.pass(Duration::from_mins(1));
                return hands.shard.describe(tp(0)).unwrap();
            }
        }
        panic!("nothing was refused");
    };
    hands.lead(0, protecting(&both));

    // Before the first word of what was read, and when it is of others, all is unread.
    assert_eq!(fill(&mut hands).log_start, Offset::ZERO);
    tell(&mut hands, &readers(&["audit"]), 50);
    assert_eq!(fill(&mut hands).log_start, Offset::ZERO);

    // Of those nothing is known. When it is, and goes on, somebody should hear of it, once.
    let waits = |hands: &Hands| {
        let notes = hands.notes.iter().filter(|note| matches!(note, Note::RetentionWaits { .. }));
        notes.cloned().collect::<Vec<_>>()
    };
    assert_eq!(waits(&hands), []);
    tell(&mut hands, &both, 1);
    hands.pass(RETENTION_WAITS_LONG / 2);
    assert_eq!(waits(&hands), []);
    hands.pass(2 * RETENTION_WAITS_LONG);
    let read_up_to = Offset::new(1);
    assert_eq!(waits(&hands), [Note::RetentionWaits { tp: tp(0), groups: both.clone(), read_up_to }]);

    // What was read gives way, and no more than that.
    tell(&mut hands, &both, 50);
    let stands = fill(&mut hands);
    assert!((20..=50).contains(&stands.log_start.get()), "{:?}", stands.log_start);

    // So retention does not overtake them there; others it may.
    let overtaken_in = |hands: &Hands| {
        let of =
            |group| Reader { group: GroupName::new(group).unwrap(), tp: tp(0), next: Some(Offset::new(50)) };
        let left = |group| hands.shard.lag(&of(group), hands.now.wall_ms).unwrap().overtaken_in;
        (left("billing"), left("somebody"))
    };
    assert!(matches!(overtaken_in(&hands), (None, Some(_))), "{:?}", overtaken_in(&hands));

    // A group that is named now has read nothing yet.
    let three = readers(&["audit", "billing", "newcomer"]);
    hands.step(Input::Configure { tp: tp(0), config: protecting(&three) });
    tell(&mut hands, &both, 80);
    assert_eq!(fill(&mut hands).log_start, stands.log_start);
    hands.read_all(0);

    // Nobody protected: retention goes on.
    hands.step(Input::Configure { tp: tp(0), config: settings(|config| config.retention_ms = Some(1)) });
    assert!(matches!(overtaken_in(&hands), (Some(_), Some(_))));
    hands.pass(Duration::from_mins(1));
    assert_eq!(hands.shard.describe(tp(0)).unwrap().log_start, stands.high_watermark);
}

#[test]
fn records_can_be_deleted_and_a_removed_partition_leaves_nothing() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|config| config.segment_bytes = 1 << 20));
    let value = vec![9; 50_000];
    for sequence in 0..100 {
        hands.produce(0, batch_of(0, 1, sequence, 1, &value));
    }
    assert!(hands.files.len() > 1);
    let request = hands.request();
    hands.step(Input::DeleteRecords { request, rows: vec![(tp(0), Offset::new(70))] });
    assert!(
        matches!(&hands.answers[&request], Answer::DeleteRecords(answer) if answer.rows[0].log_start.get() == 70)
    );
    assert_eq!(hands.read_all(0).first().unwrap().0, 70);
    hands = hands.restart();
    assert_eq!(hands.read_all(0).first().unwrap().0, 70);
    hands.step(Input::Remove { tp: tp(0) });
    assert!(hands.files.is_empty(), "{:?}", hands.files.keys());
    assert_eq!(hands.shard.describe(tp(0)), None);
    let hands = Hands::recover(hands.config, hands.ring, hands.superblocks, hands.slots, hands.files);
    assert_eq!(hands.shard.describe(tp(0)), None);
}

#[test]
fn a_failed_flush_poisons_and_what_was_durable_stays_readable() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.produce(0, batch_of(0, 1, 0, 1, b"a"));
    hands.hold_flushes = true;
    let request = hands.produce(0, batch_of(0, 1, 1, 1, b"b"));
    let at = hands.held[0];
    hands.step(Input::CommitFailed { at });
    assert_eq!(hands.produced(request).unwrap().0, ErrorCode::LogPoisoned);
    let refused = hands.produce(0, batch_of(0, 1, 2, 1, b"c"));
    assert_eq!(hands.produced(refused).unwrap().0, ErrorCode::LogPoisoned);
    assert_eq!(hands.read_all(0), [(0, Bytes::from_static(b"a"))]);
    assert!(matches!(hands.notes[..], [Note::Poisoned { .. }]));
}

#[test]
fn a_rotten_commit_below_the_mark_is_corruption_and_nothing_is_cut() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    for sequence in 0..3 {
        hands.produce(0, batch_of(0, 1, sequence, 1, b"acked"));
    }
    let second = usize::try_from(BLOCK).unwrap();
    hands.ring[second + 200] ^= 0x40;
    let before = hands.ring.clone();
    let mut hands = hands.restart();
    assert!(hands.shard.snapshot().read_only);
    let refused = hands.produce(0, batch_of(0, 1, 3, 1, b"more"));
    assert_eq!(hands.produced(refused).unwrap().0, ErrorCode::ReadOnly);
    assert_eq!(hands.read_all(0).len(), 1);
    assert_eq!(hands.ring, before);
}

#[test]
fn a_torn_last_commit_is_cut_and_the_log_goes_on() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.produce(0, batch_of(0, 1, 0, 1, b"acked"));
    hands.hold_flushes = true;
    hands.produce(0, batch_of(0, 1, 1, 1, b"not acked"));
    let torn = usize::try_from(BLOCK).unwrap();
    hands.ring[torn + 200] ^= 0x40;
    let mut hands = hands.restart();
    let request = hands.produce(0, batch_of(0, 1, 1, 1, b"again"));
    assert_eq!(hands.produced(request), Some((ErrorCode::None, 1)));
    let all: Vec<_> = hands.read_all(0).into_iter().map(|(_, value)| value).collect();
    assert_eq!(all, [Bytes::from_static(b"acked"), Bytes::from_static(b"again")]);
}

#[test]
fn an_idle_shard_marks_its_last_commit() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.produce(0, batch_of(0, 1, 0, 1, b"acked"));
    assert!(hands.shard.next_deadline().is_some());
    hands.pass(Duration::from_millis(60));
    hands.ring[200] ^= 1;
    let hands = hands.restart();
    assert!(hands.shard.snapshot().read_only, "rot in a marked commit is told from a torn tail");
}

#[test]
fn offsets_are_found_by_time_in_memory() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    for sequence in 0..3 {
        hands.produce(0, batch_of(0, 1, sequence, 1, b"x"));
    }
    for (at, expected) in
        [(At::Earliest, 0), (At::Latest, 3), (At::Timestamp(400), 0), (At::Timestamp(501), 3)]
    {
        let request = hands.request();
        hands.step(Input::ListOffsets { request, rows: vec![ListOffsetsRow { tp: tp(0), at }] });
        let Answer::ListOffsets(answer) = &hands.answers[&request] else { panic!("{at:?}") };
        assert_eq!(answer.rows[0].offset.get(), expected, "{at:?}");
    }
}

#[test]
fn a_clean_stop_is_checkpointed() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.produce(0, batch_of(0, 1, 0, 1, b"x"));
    hands.step(Input::Drain);
    assert_eq!(hands.notes, [Note::Drained]);
    let refused = hands.produce(0, batch_of(0, 1, 1, 1, b"y"));
    assert_eq!(hands.produced(refused).unwrap().0, ErrorCode::ShuttingDown);
    assert_eq!(RING_DATA_START, 2 * BLOCK);
}

#[test]
fn more_than_the_ring_holds_waits_for_room_and_is_acknowledged_in_order() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.hold_flushes = true;
    // All at once, three times what the ring holds: a checkpoint waits for what is queued, so what is queued must
    // always have room.
    let value = vec![7; 10_000];
    let requests: Vec<RequestId> =
        (0..300).map(|_| hands.produce(0, batch_of(0, -1, -1, 1, &value))).collect();
    let mut next = 0;
    for _ in 0..3_000 {
        hands.flush();
        while next < requests.len()
            && let Some(produced) = hands.produced(requests[next])
        {
            assert_eq!(produced, (ErrorCode::None, next as u64));
            next += 1;
        }
    }
    assert_eq!(next, requests.len(), "{:?}", hands.shard.snapshot());
}

#[test]
fn who_waits_for_room_is_told_when_the_deadline_passes_and_nothing_was_appended() {
    let mut hands = Hands::new(small());
    hands.lead(0, settings(|_| ()));
    hands.hold_flushes = true;
    let value = vec![7; 10_000];
    let requests: Vec<RequestId> =
        (0..300).map(|_| hands.produce(0, batch_of(0, -1, -1, 1, &value))).collect();
    let appended = hands.shard.describe(tp(0)).unwrap().log_end.get();
    assert!(appended < 300);
    hands.now.instant = hands.now.instant.after(Duration::from_secs(31));
    hands.step(Input::Tick);
    assert_eq!(hands.produced(requests[299]), Some((ErrorCode::Throttled, 0)));
    assert_eq!(hands.shard.describe(tp(0)).unwrap().log_end.get(), appended);
}

/// Also for callgrind, which counts the instructions of what it is told to: docs/performance.md has the command. `COST_REQUESTS`
/// requests of `COST_RECORDS` records of `COST_BYTES` each, one after the other, into segments of `COST_SEGMENT_BYTES`.
#[test]
fn one_request_after_the_other_has_the_next_offset() {
    let setting = |name: &str, otherwise: u32| {
        std::env::var(name).map_or(otherwise, |value| value.parse().expect("a number"))
    };
    let (requests, records) = (setting("COST_REQUESTS", 1_000), setting("COST_RECORDS", 1));
    let value = vec![7; usize::try_from(setting("COST_BYTES", 100)).unwrap()];
    let mut hands = Hands::new(ShardConfig { ring_bytes: 64 * MIB, disk_bytes_max: 4096 * MIB, ..small() });
    hands.lead(
        0,
        settings(|config| config.segment_bytes = u64::from(setting("COST_SEGMENT_BYTES", 128 << 20))),
    );
    let batch = batch_of(0, -1, -1, records, &value);
    let rows = vec![wire::ProduceRow { tp: tp(0), first_byte: 0, bytes: batch.len().try_into().unwrap() }];
    let header = wire::ProduceRequest { acks: Acks::All, deadline_ms: 1_000, rows }.encode();
    for number in 0..requests {
        assert!(wire::ProduceRequest::decode(&header).is_ok());
        let request = hands.produce(0, batch.clone());
        assert!(!hands.answers[&request].encode().is_empty());
        let base = u64::from(number) * u64::from(records);
        assert_eq!(hands.produced(request), Some((ErrorCode::None, base)));
    }
}

mod hands;
mod recycle;
mod regressions;

use hands::Hands;
