//! Transcripts of what is committed, and when.

use super::*;

#[test]
fn by_hand_nothing_waits_for_ever_and_what_was_lost_is_not_committed() {
    let manual = ConsumerConfig { commit: CommitMode::Manual, ..config() };
    // Nothing to commit needs nobody.
    let mut rig = Rig::new(manual.clone());
    let id = rig.consumer.commit_taken().unwrap();
    rig.tick();
    assert!(matches!(rig.committed[..], [(done, Ok(()))] if done == id));

    let mut rig = Rig::reading(manual, &[0], &[(0, 0)]);
    rig.tell_topic(1);
    rig.bring(0..3);
    rig.take_records();
    rig.after(Duration::from_mins(2));
    let lost = rig.consumer.commit_taken().unwrap_err();
    assert_eq!(lost.code(), Some(ErrorCode::UnknownMember), "{lost}");
    // Whoever takes again knows.
    rig.take();
    rig.consumer.commit_taken().unwrap();
}

#[test]
fn commits_that_overtake_each_other_do_not_go_back() {
    let mut rig = Rig::reading(ConsumerConfig { commit: CommitMode::Manual, ..config() }, &[0], &[(0, 0)]);
    rig.tell_topic(1);
    rig.bring(0..9);
    rig.take_records();
    let share = Share { topic: "t".into(), partition: 0 };
    for offset in [3, 7, 5] {
        rig.consumer.commit_offsets(vec![(share.clone(), Progress::at(offset))]).unwrap();
    }
    rig.tick();
    assert_eq!(rig.commit(), [(0, 7)]);
    assert_eq!(rig.committed.len(), 3);
    let long = Progress { metadata: "x".repeat(1025), ..Progress::at(8) };
    assert!(matches!(rig.consumer.commit_offsets(vec![(share, long)]), Err(Error::Usage { .. })));
}

#[test]
fn by_hand_commits_what_was_taken_and_says_when_it_is_done() {
    let mut rig = Rig::reading(ConsumerConfig { commit: CommitMode::Manual, ..config() }, &[0], &[(0, 0)]);
    rig.tell_topic(1);
    rig.bring(0..3);
    rig.take_records();
    rig.after(Duration::from_secs(1));
    assert!(rig.commit_rows().is_none());
    let id = rig.consumer.commit_taken().unwrap();
    rig.tick();
    // A coordinator that cannot store at the moment is asked again.
    rig.refuse(Kind::OffsetCommit, ErrorCode::CoordinatorUnavailable);
    assert!(rig.committed.is_empty());
    rig.after(Duration::from_millis(100));
    assert_eq!(rig.commit(), [(0, 3)]);
    assert!(matches!(rig.committed[..], [(done, Ok(()))] if done == id));
    // Nothing new is nothing to wait for.
    let id = rig.consumer.commit_taken().unwrap();
    rig.tick();
    assert!(matches!(rig.committed[..], [_, (done, Ok(()))] if done == id));
}

#[test]
fn where_a_group_begins_is_committed_though_nothing_comes() {
    for commit in [CommitMode::After(Duration::from_secs(1)), CommitMode::Before, CommitMode::Manual] {
        let by_itself = commit != CommitMode::Manual;
        let mut rig = Rig::reading(ConsumerConfig { commit, start: Start::Latest, ..config() }, &[0], &[]);
        rig.tell_topic(1);
        assert!(rig.commit_rows().is_none(), "nobody knows where it begins");
        let id = rig.asked(Kind::ListOffsets).unwrap().id;
        let row = ListedRow {
            tp: tp(0),
            error: ErrorCode::None,
            offset: Offset::new(70),
            timestamp_ms: -1,
            leader_epoch: LeaderEpoch::new(1),
        };
        rig.answer(id, Answer::ListOffsets(ListOffsetsAnswer { rows: vec![row] }));
        if by_itself {
            assert_eq!(rig.commit(), [(0, 70)]);
        }
        rig.after(Duration::from_secs(1));
        assert!(rig.commit_rows().is_none());
    }
}

#[test]
fn a_place_that_the_broker_refuses_is_not_committed() {
    let mut rig = Rig::reading(ConsumerConfig { start: Start::Offset(99), ..config() }, &[0], &[]);
    rig.tell_topic(1);
    rig.refuse_fetch(ErrorCode::OffsetOutOfRange);
    assert!(rig.consumer.take(rig.now).is_some_and(|taken| taken.is_err()));
    rig.after(Duration::from_secs(1));
    assert!(rig.commit_rows().is_none());
    rig.consumer.close(rig.now);
    rig.after(Duration::from_secs(1));
    assert!(rig.commit_rows().is_none());

    let mut rig = Rig::reading(ConsumerConfig { start: Start::Offset(2), ..config() }, &[0], &[]);
    rig.tell_topic(1);
    assert!(rig.commit_rows().is_none());
    rig.bring(0..5);
    assert_eq!(rig.commit(), [(0, 2)]);
}

#[test]
fn at_most_once_commits_before_it_gives() {
    let mut rig = Rig::reading(ConsumerConfig { commit: CommitMode::Before, ..config() }, &[0], &[(0, 0)]);
    rig.tell_topic(1);
    rig.bring(0..3);
    assert!(rig.take().is_none());
    assert_eq!(rig.commit(), [(0, 3)]);
    assert_eq!(rig.take_records(), (0, 0, 3));
}
