//! Crashes and faults at chosen moments: what recovery must make of each.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "counts of a few hundred"
)]

use corelog_core::journal::Verdict;
use corelog_core::shard::{Input, Note, RequestId};
use corelog_core::topic::FullPolicy;
use corelog_sim::disk::Class;
use corelog_sim::disk::{CutStyle, Fault};
use corelog_sim::rig::Rig;
use corelog_sim::world::SECONDS;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::Offset;

const RING: u64 = 1 << 20;
const STYLES: [CutStyle; 4] = [CutStyle::AllOld, CutStyle::AllNew, CutStyle::OldOrNew, CutStyle::Torn];

fn offsets(count: u64) -> Vec<u64> {
    (0..count).collect()
}

/// Appends `count` batches of `bytes` to a partition, each acknowledged before the next.
fn append_all(rig: &mut Rig, partition: usize, from: i32, count: i32, bytes: usize) {
    for sequence in from..from + count {
        assert_eq!(rig.append(partition, 1, sequence, bytes), Ok(u64::from(sequence.cast_unsigned())));
    }
}

#[test]
fn a_torn_last_commit_is_cut_and_the_shard_goes_on() {
    let mut torn = 0;
    for seed in 0..64 {
        let mut rig = Rig::new(seed, RING, 1);
        append_all(&mut rig, 0, 0, 3, 9_000);
        let batch = rig.batch(0, 1, 3, 9_000);
        rig.produce(0, &batch);
        if seed % 2 == 0 {
            rig.complete_next();
        }
        rig.cut(CutStyle::Torn);
        let report = rig.boot();
        match report.verdict {
            Verdict::Corrupt { .. } => panic!("seed {seed}: {report}"),
            Verdict::Torn { .. } => torn += 1,
            Verdict::Clean { .. } => {}
        }
        let left = rig.read(0, 0).unwrap();
        assert!(left == offsets(3) || left == offsets(4), "seed {seed}: {left:?}");
        // The producer sends it again: appended, or answered with where it is.
        append_all(&mut rig, 0, 3, 2, 9_000);
        assert_eq!(rig.read(0, 0), Ok(offsets(5)), "seed {seed}");
    }
    assert!(torn > 5, "{torn} of 64 cuts tore the last commit");
}

#[test]
fn a_rotten_acknowledged_commit_makes_the_shard_read_only_and_nothing_is_cut() {
    let mut rig = Rig::new(1, RING, 1);
    append_all(&mut rig, 0, 0, 5, 2_000);
    let commit = rig.hands().shadow().commits()[2].clone();
    let (offset, bytes) = rig.hands().shadow().ranges(&commit)[0];
    let journal = rig.hands().journal();
    assert!(rig.disk.rot(journal, offset, bytes.min(2_000)));
    let before = rig.disk.peek(journal, 0, u64::MAX / 2);
    rig.cut(CutStyle::AllOld);
    let report = rig.boot();
    match report.verdict {
        Verdict::Corrupt { from, flushed_to } => {
            assert_eq!(from, commit.at);
            assert!(flushed_to > from);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.append(0, 1, 5, 100), Err(ErrorCode::ReadOnly));
    assert_eq!(rig.read(0, 0), Ok(offsets(2)), "what stands before the damage is served");
    rig.wait(5 * SECONDS);
    assert!(rig.disk.peek(journal, 0, u64::MAX / 2) == before, "nothing was written");
    // Nor does another start think better of it.
    rig.kill();
    assert!(matches!(rig.boot().verdict, Verdict::Corrupt { .. }));
}

#[test]
fn a_crash_between_the_flush_of_an_extent_and_its_entry_loses_nothing() {
    for (seed, style) in STYLES.into_iter().enumerate() {
        let mut rig = Rig::new(seed as u64, RING / 4, 2);
        let mut sequence = 0;
        // Until an extent is flushed and the shard has not heard of it.
        while rig.hands().extents_flushed() == 0 {
            let batch = rig.batch(0, 1, sequence, 7_000);
            rig.produce(0, &batch);
            sequence += 1;
            while rig.hands().extents_flushed() == 0 && rig.complete_next() {
                if rig.hands().extents_flushed() == 0 {
                    rig.turn();
                }
            }
            assert!(sequence < 100, "no extent was ever written");
        }
        let proven = rig.hands().shadow().extents().count();
        assert_eq!(proven, 0, "its entry is not written");
        rig.cut(style);
        rig.boot();
        let left = rig.read(0, 0).unwrap().len();
        assert!(left as i32 >= sequence - 1, "{style:?}: {left} of {sequence}");
        append_all(&mut rig, 0, left as i32, 60, 7_000);
        let all = offsets(left as u64 + 60);
        assert_eq!(rig.read(0, 0).as_ref(), Ok(&all), "{style:?}");
        rig.cut(CutStyle::AllOld);
        rig.boot();
        assert_eq!(rig.read(0, 0), Ok(all), "{style:?}");
    }
}

/// Appends 60 batches in several segments and asks for the first 40 to be deleted.
fn delete_forty(rig: &mut Rig) -> RequestId {
    append_all(rig, 0, 0, 60, 7_000);
    let request = RequestId(1 << 40);
    let rows = vec![(rig.tp(0), Offset::new(40))];
    rig.tell(Input::DeleteRecords { request, rows });
    rig.turn();
    request
}

fn segment_files(rig: &Rig) -> usize {
    rig.disk.list("topics").iter().filter(|path| path.rsplit('.').next() == Some("log")).count()
}

#[test]
fn a_crash_between_a_log_start_and_the_removal_of_its_files_keeps_the_log_start() {
    let mut never_crashed = Rig::new(1, RING / 4, 1);
    delete_forty(&mut never_crashed);
    never_crashed.settle();
    let files_needed = segment_files(&never_crashed);

    let mut rig = Rig::new(1, RING / 4, 1);
    delete_forty(&mut rig);
    let files = segment_files(&rig);
    assert!(files > files_needed);
    // The entry's commit completes; the shard, which would remove the files now, never hears of it.
    while rig.complete_next() {}
    assert_eq!(segment_files(&rig), files);
    rig.cut(CutStyle::AllOld);
    rig.boot();
    assert_eq!(rig.read(0, 0), Err(ErrorCode::OffsetOutOfRange));
    assert_eq!(rig.read(0, 40), Ok((40..60).collect()));
}

#[test]
fn a_removal_that_the_power_cut_undid_does_not_bring_records_back() {
    let mut rig = Rig::new(1, RING / 4, 1);
    delete_forty(&mut rig);
    rig.settle();
    // The names' removal was never flushed: the files are there again.
    rig.cut(CutStyle::AllOld);
    rig.boot();
    assert_eq!(rig.read(0, 0), Err(ErrorCode::OffsetOutOfRange));
    assert_eq!(rig.read(0, 40), Ok((40..60).collect()));
}

#[test]
fn a_retry_is_answered_only_once_the_first_copy_is_durable() {
    let mut rig = Rig::new(1, RING, 1);
    let batch = rig.batch(0, 1, 0, 500);
    let first = rig.produce(0, &batch);
    let retry = rig.produce(0, &batch);
    let mut completions = 0;
    while rig.produced(first).is_none() {
        assert_eq!(rig.produced(retry), None, "the retry was answered before its batch was durable");
        assert!(rig.complete_next());
        completions += 1;
        rig.turn();
    }
    assert!(completions >= 2, "a write and a flush came first");
    let (first, retry) = (rig.produced(first).unwrap(), rig.produced(retry).unwrap());
    assert_eq!((first.error, first.base_offset), (ErrorCode::None, Offset::new(0)));
    assert_eq!((retry.error, retry.base_offset), (ErrorCode::None, Offset::new(0)));
    rig.cut(CutStyle::AllOld);
    rig.boot();
    let again = rig.produce(0, &batch);
    assert_eq!(rig.produced(again).map(|row| row.base_offset), Some(Offset::new(0)));
    assert_eq!(rig.read(0, 0), Ok(offsets(1)));
}

#[test]
fn of_two_commits_under_way_the_later_one_is_never_acknowledged_first() {
    for earlier_first in [true, false] {
        let mut rig = Rig::new(1, RING, 1);
        let (one, two) = (rig.batch(0, 1, 0, 500), rig.batch(0, 1, 1, 500));
        let first = rig.produce(0, &one);
        let writes_of_first = rig.under_way();
        let second = rig.produce(0, &two);
        let writes = rig.under_way();
        assert_eq!((writes_of_first.len(), writes.len()), (1, 2), "two commits are under way at once");
        let later = writes.into_iter().find(|op| !writes_of_first.contains(op)).unwrap();
        let order = if earlier_first { [writes_of_first[0], later] } else { [later, writes_of_first[0]] };
        for (step, write) in order.into_iter().enumerate() {
            let before = rig.under_way();
            rig.complete(write);
            let flush = rig.under_way().into_iter().find(|op| !before.contains(op)).unwrap();
            rig.complete(flush);
            rig.turn();
            let answered = [rig.produced(first).is_some(), rig.produced(second).is_some()];
            let expected = match (step, earlier_first) {
                (0, true) => [true, false],
                (0, false) => [false, false],
                _ => [true, true],
            };
            assert_eq!(answered, expected, "step {step}, earlier first: {earlier_first}");
        }
    }
    // The later one alone survives: it never was.
    let mut rig = Rig::new(1, RING, 1);
    let (one, two) = (rig.batch(0, 1, 0, 500), rig.batch(0, 1, 1, 500));
    rig.produce(0, &one);
    let first = rig.under_way();
    rig.produce(0, &two);
    let later = rig.under_way().into_iter().find(|op| !first.contains(op)).unwrap();
    rig.complete(later);
    rig.complete_next();
    rig.cut(CutStyle::AllOld);
    assert!(!matches!(rig.boot().verdict, Verdict::Corrupt { .. }));
    assert_eq!(rig.read(0, 0), Ok(Vec::new()));
    append_all(&mut rig, 0, 0, 2, 500);
}

fn generation(slot: &[u8]) -> u64 {
    slot[8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[test]
fn a_rotten_newest_checkpoint_slot_costs_nothing_but_a_longer_replay() {
    let mut rig = Rig::new(1, RING / 4, 2);
    append_all(&mut rig, 0, 0, 200, 3_000);
    assert!(rig.hands().shard().snapshot().checkpoints >= 3);
    let slots = [0, 1].map(|slot| rig.disk.open(&format!("shard-0/checkpoint-{slot}")).unwrap());
    let newest = slots.into_iter().max_by_key(|slot| generation(&rig.disk.peek(*slot, 0, 64))).unwrap();
    assert!(rig.disk.rot(newest, 0, 64));
    rig.cut(CutStyle::AllOld);
    let report = rig.boot();
    assert!(report.older_slot, "{report}");
    assert!(!matches!(report.verdict, Verdict::Corrupt { .. }), "{report}");
    assert_eq!(rig.read(0, 0), Ok(offsets(200)));
    append_all(&mut rig, 0, 200, 50, 3_000);
    assert_eq!(rig.read(0, 0), Ok(offsets(250)));
}

/// Appends until the broker refuses or `most` batches are in; gives the next sequence and the refusal.
fn fill(rig: &mut Rig, mut sequence: i32, most: i32) -> (i32, Option<ErrorCode>) {
    while sequence < most {
        match rig.append(0, 1, sequence, 7_000) {
            Ok(_) => sequence += 1,
            Err(ErrorCode::Throttled) => rig.wait(SECONDS),
            Err(code) => return (sequence, Some(code)),
        }
    }
    (sequence, None)
}

#[test]
fn a_full_budget_blocks_producers_until_there_is_room() {
    let mut rig = Rig::new(1, RING / 4, 1);
    rig.kill();
    rig.set_budget(2 << 20);
    rig.boot();
    rig.topic.full_policy = FullPolicy::BlockProducer;
    rig.configure();
    let (sequence, refusal) = fill(&mut rig, 0, 2_000);
    assert_eq!(refusal, Some(ErrorCode::DiskFull));
    assert_eq!(rig.read(0, 0), Ok(offsets(sequence as u64)), "what was acknowledged is there");
    rig.topic.retention_bytes = Some(128 << 10);
    rig.configure();
    rig.wait(3 * SECONDS);
    let (after, refusal) = fill(&mut rig, sequence, sequence + 20);
    assert_eq!((after, refusal), (sequence + 20, None), "there is room again");
}

#[test]
fn a_full_budget_drops_the_oldest_segments_where_the_topic_says_so() {
    let mut rig = Rig::new(1, RING / 4, 1);
    rig.kill();
    rig.set_budget(2 << 20);
    rig.boot();
    rig.topic.full_policy = FullPolicy::DropOldest;
    rig.configure();
    let (sequence, refusal) = fill(&mut rig, 0, 600);
    assert_eq!((sequence, refusal), (600, None));
    let start = rig.hands().shard().describe(rig.tp(0)).unwrap().log_start.get();
    assert!(start > 0);
    let by_budget = |note: &Note| matches!(note, Note::LogStartMoved { reason: "disk_bytes_max", .. });
    assert!(rig.take_notes().iter().any(by_budget), "and the operator was told");
    assert_eq!(rig.read(0, start), Ok((start..600).collect()));
    assert!(rig.hands().shard().snapshot().disk_bytes <= 2 << 20);
}

#[test]
fn a_full_file_system_stops_appends_and_lets_them_go_on() {
    let mut rig = Rig::new(1, RING / 4, 1);
    let (sequence, refusal) = fill(&mut rig, 0, 10);
    assert_eq!(refusal, None);
    rig.disk.set_capacity(rig.disk.used() + corelog_sim::hands::MARGIN_BYTES + (256 << 10));
    // The ring takes what it can; then producers wait, and nothing is lost.
    let mut full = sequence;
    let mut refused = 0;
    while refused < 20 && full < 1_000 {
        if rig.append(0, 1, full, 7_000).is_ok() {
            full += 1;
        } else {
            refused += 1;
            rig.wait(SECONDS / 2);
        }
    }
    assert_eq!(refused, 20, "appends stop when nothing can be moved to segments");
    assert!(!rig.hands().shard().snapshot().poisoned, "a full disk is not a broken one");
    assert_eq!(rig.read(0, 0).map(|offsets| offsets.len()), Ok(full as usize));
    rig.disk.set_capacity(256 << 20);
    rig.wait(2 * SECONDS);
    let (after, refusal) = fill(&mut rig, full, full + 30);
    assert_eq!((after, refusal), (full + 30, None));
}

#[test]
fn what_a_kill_left_in_the_drives_cache_is_flushed_before_it_counts() {
    // After a kill the last commit is in the cache only. Whenever the power goes while the shard starts, and whatever
    // it leaves, the next start must neither lose what was acknowledged nor see corruption.
    for style in STYLES {
        for seed in 0..16 {
            for steps in 0..10 {
                let mut rig = Rig::new(seed, RING, 1);
                append_all(&mut rig, 0, 0, 3, 9_000);
                let batch = rig.batch(0, 1, 3, 9_000);
                rig.produce(0, &batch);
                rig.complete_next();
                rig.kill();
                if rig.boot_steps(steps).is_some() {
                    // Ready: what was found counts, and is there for good.
                    let found = rig.read(0, 0).unwrap();
                    rig.cut(style);
                    rig.boot();
                    assert_eq!(rig.read(0, 0), Ok(found), "seed {seed}, {style:?}");
                    break;
                }
                rig.cut(style);
                let report = rig.boot();
                assert!(
                    !matches!(report.verdict, Verdict::Corrupt { .. }),
                    "seed {seed}, {style:?} after {steps} steps: {report}"
                );
                assert!(rig.read(0, 0).unwrap().len() >= 3, "seed {seed}, {style:?} after {steps} steps");
            }
        }
    }
}

#[test]
fn a_failed_flush_stops_acknowledgements_until_the_next_start() {
    for seed in 0..32 {
        let mut rig = Rig::new(seed, RING, 1);
        append_all(&mut rig, 0, 0, 3, 5_000);
        rig.disk.arm(Fault::FlushError, Class::Journal);
        assert_eq!(rig.append(0, 1, 3, 5_000), Err(ErrorCode::LogPoisoned));
        assert_eq!(rig.append(0, 1, 4, 5_000), Err(ErrorCode::LogPoisoned));
        assert_eq!(rig.read(0, 0), Ok(offsets(3)), "what is durable stays readable");
        assert!(rig.take_notes().iter().any(|note| matches!(note, Note::Poisoned { .. })));
        rig.kill();
        rig.boot();
        let left = rig.read(0, 0).unwrap();
        assert!(left.len() >= 3);
        append_all(&mut rig, 0, 3, 3, 5_000);
        rig.cut(CutStyle::AllOld);
        rig.boot();
        assert_eq!(rig.read(0, 0), Ok(offsets(6)), "seed {seed}");
    }
}
