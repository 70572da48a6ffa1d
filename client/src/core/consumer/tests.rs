//! Transcripts of a consumer: what goes in, what comes out. Time stands still unless a test moves it. What many members
//! do together is the simulator's to try.

use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Kind;
use corelog_wire::ids::{LeaderEpoch, MemberEpoch, Offset};
use corelog_wire::message::{
    CommittedRow, FetchAnswer, FetchedRow, GroupHeartbeatAnswer, GroupHeartbeatRequest, Leave,
    ListOffsetsAnswer, ListedRow, OffsetCommitAnswer, OffsetCommitRequest, OffsetFetchAnswer, OffsetRow,
    Refusal, Request, TopicShare,
};

use super::*;
use crate::core::reader::tests::{sealed, topic_told};

mod committing;

const ID: TopicId = TopicId::from_bytes([1; 16]);
const SESSION: Duration = Duration::from_secs(3);

fn tp(partition: u32) -> TopicPartition {
    TopicPartition::new(ID, partition)
}

struct Rig {
    now: Instant,
    consumer: Consumer,
    open: Vec<Outgoing>,
    committed: Vec<(CommitId, Result<(), Error>)>,
}

fn config() -> ConsumerConfig {
    let mut config = ConsumerConfig::new("g");
    config.wishes.topics = vec!["t".to_owned()];
    config.wishes.session_timeout = SESSION;
    config.processing_max = Duration::from_mins(1);
    config
}

impl Rig {
    fn new(config: ConsumerConfig) -> Self {
        let consumer = Consumer::new(config, 1).unwrap();
        let mut rig = Self { now: Instant::now(), consumer, open: Vec::new(), committed: Vec::new() };
        rig.tick();
        rig
    }

    /// One that was granted these partitions in epoch 1, and begins in each where the group has come to.
    fn reading(config: ConsumerConfig, partitions: &[u32], committed: &[(u32, u64)]) -> Self {
        let mut rig = Self::new(config);
        rig.grant(1, partitions);
        rig.tell_offsets(committed);
        rig
    }

    fn handle(&mut self, input: Input) {
        let mut out = Vec::new();
        self.consumer.handle(self.now, input, &mut out);
        for effect in out {
            match effect {
                Effect::Send(outgoing) => self.open.push(outgoing),
                Effect::Event(ConsumerEvent::Committed(id, result)) => self.committed.push((id, result)),
                Effect::Event(ConsumerEvent::Changed) => {}
            }
        }
    }

    fn tick(&mut self) {
        self.handle(Input::Tick);
    }

    fn after(&mut self, time: Duration) {
        self.now += time;
        self.tick();
    }

    /// The oldest request of a kind that is not answered.
    fn asked(&mut self, kind: Kind) -> Option<Outgoing> {
        let place = self.open.iter().position(|outgoing| outgoing.request.kind() == kind)?;
        Some(self.open.remove(place))
    }

    fn answer(&mut self, id: RequestId, answer: Answer) {
        self.handle(Input::Answered { id, answer, payload: Bytes::new() });
    }

    fn heartbeat(&mut self) -> (RequestId, GroupHeartbeatRequest) {
        let Some(Outgoing { id, request: Request::GroupHeartbeat(heartbeat), .. }) =
            self.asked(Kind::GroupHeartbeat)
        else {
            panic!("no heartbeat")
        };
        (id, heartbeat)
    }

    /// Answers the oldest heartbeat, which it gives.
    fn grant(&mut self, epoch: u64, partitions: &[u32]) -> GroupHeartbeatRequest {
        let (id, heartbeat) = self.heartbeat();
        let share = TopicShare { topic: ID, name: "t".to_owned(), partitions: partitions.to_vec() };
        let granted = if partitions.is_empty() { Vec::new() } else { vec![share] };
        let answer = GroupHeartbeatAnswer { member_epoch: MemberEpoch::new(epoch), granted };
        self.answer(id, Answer::GroupHeartbeat(answer));
        heartbeat
    }

    fn refuse(&mut self, kind: Kind, code: ErrorCode) {
        let id = self.asked(kind).unwrap().id;
        self.answer(id, Answer::Refused { kind, refusal: Refusal::new(code, "no") });
    }

    fn tell_offsets(&mut self, committed: &[(u32, u64)]) {
        let id = self.asked(Kind::OffsetFetch).expect("it asks where to begin").id;
        let row = |&(partition, offset): &(u32, u64)| OffsetRow {
            tp: tp(partition),
            offset: Offset::new(offset),
            leader_epoch: LeaderEpoch::new(1),
            metadata: String::new(),
        };
        self.answer(id, Answer::OffsetFetch(OffsetFetchAnswer { rows: committed.iter().map(row).collect() }));
    }

    fn tell_topic(&mut self, partitions: u32) {
        let id = self.asked(Kind::Metadata).unwrap().id;
        self.answer(id, topic_told(partitions));
    }

    /// Answers the oldest fetch: each partition has a batch of these offsets, whatever was asked for.
    fn bring(&mut self, offsets: std::ops::Range<u64>) {
        self.bring_up_to(None, offsets);
    }

    /// As [`Rig::bring`], when batches up to an offset were left out. It may be that there is none.
    fn bring_up_to(&mut self, next: Option<u64>, offsets: std::ops::Range<u64>) {
        let Some(Outgoing { id, request: Request::Fetch(fetch), .. }) = self.asked(Kind::Fetch) else {
            panic!("no fetch")
        };
        let mut payload = Vec::new();
        let row = |row: &corelog_wire::message::FetchRow| {
            let first = payload.len();
            if !offsets.is_empty() {
                payload.extend_from_slice(&sealed(row.tp, offsets.clone()));
            }
            FetchedRow {
                tp: row.tp,
                error: ErrorCode::None,
                message: String::new(),
                high_watermark: Offset::new(offsets.end),
                log_start: Offset::ZERO,
                log_end: Offset::new(offsets.end),
                leader_epoch: LeaderEpoch::new(1),
                first_byte: u32::try_from(first).unwrap(),
                bytes: u32::try_from(payload.len() - first).unwrap(),
                next_offset: next.map(Offset::new),
            }
        };
        let rows = fetch.rows.iter().map(row).collect();
        let answer = Answer::Fetch(FetchAnswer { throttle_ms: 0, rows });
        self.handle(Input::Answered { id, answer, payload: payload.into() });
    }

    /// Answers the oldest fetch: no partition has what was asked for.
    fn refuse_fetch(&mut self, error: ErrorCode) {
        let Some(Outgoing { id, request: Request::Fetch(fetch), .. }) = self.asked(Kind::Fetch) else {
            panic!("no fetch")
        };
        let row = |row: &corelog_wire::message::FetchRow| FetchedRow {
            tp: row.tp,
            error,
            message: String::new(),
            high_watermark: Offset::new(5),
            log_start: Offset::ZERO,
            log_end: Offset::new(5),
            leader_epoch: LeaderEpoch::new(1),
            first_byte: 0,
            bytes: 0,
            next_offset: None,
        };
        let answer = FetchAnswer { throttle_ms: 0, rows: fetch.rows.iter().map(row).collect() };
        self.answer(id, Answer::Fetch(answer));
    }

    /// What the user gets; what he had is done with.
    fn take(&mut self) -> Option<Taken> {
        let taken = self.consumer.take(self.now);
        self.tick();
        taken.transpose().unwrap()
    }

    fn take_records(&mut self) -> (u32, u64, u64) {
        match self.take() {
            Some(Taken::Records(batch)) => (batch.partition(), batch.first_offset(), batch.next_offset()),
            other => panic!("{other:?}"),
        }
    }

    fn commit_rows(&mut self) -> Option<(RequestId, OffsetCommitRequest)> {
        let Outgoing { id, request: Request::OffsetCommit(commit), .. } = self.asked(Kind::OffsetCommit)?
        else {
            panic!("not a commit")
        };
        Some((id, commit))
    }

    /// Takes the commit that is under way; gives what it says.
    fn commit(&mut self) -> Vec<(u32, u64)> {
        let (id, commit) = self.commit_rows().expect("a commit is under way");
        let row =
            |row: &OffsetRow| CommittedRow { tp: row.tp, error: ErrorCode::None, message: String::new() };
        let rows = commit.rows.iter().map(row).collect();
        self.answer(id, Answer::OffsetCommit(OffsetCommitAnswer { rows }));
        commit.rows.iter().map(|row| (row.tp.partition, row.offset.get())).collect()
    }
}

fn owned(heartbeat: &GroupHeartbeatRequest) -> Vec<u32> {
    heartbeat.owned.iter().map(|tp| tp.partition).collect()
}

#[test]
fn it_joins_hears_what_it_has_and_begins_where_the_group_has_come_to() {
    let mut rig = Rig::new(config());
    let join = rig.grant(1, &[0, 2]);
    assert_eq!((join.member_epoch, join.leave), (MemberEpoch::new(0), Leave::No));
    assert_eq!(join.wishes.unwrap().topics, ["t"]);
    // What it was given is acknowledged at once, under the epoch it was given in.
    let (_, heartbeat) = rig.heartbeat();
    assert_eq!((heartbeat.member_epoch, owned(&heartbeat)), (MemberEpoch::new(1), vec![0, 2]));
    assert!(heartbeat.wishes.is_none() && u128::from(heartbeat.max_wait_ms) == SESSION.as_millis() / 3);
    rig.tell_offsets(&[(2, 40)]);
    rig.tell_topic(3);
    let Some(Outgoing { request: Request::ListOffsets(list), .. }) = rig.asked(Kind::ListOffsets) else {
        panic!("nothing is committed in partition 0: its start is asked for")
    };
    assert_eq!(list.rows[0].tp, tp(0));
    let Some(Outgoing { request: Request::Fetch(fetch), .. }) = rig.asked(Kind::Fetch) else {
        panic!("no fetch")
    };
    assert_eq!((fetch.rows[0].tp, fetch.rows[0].offset), (tp(2), Offset::new(40)));
}

#[test]
fn a_partition_goes_when_its_records_are_done_with_and_committed() {
    let mut rig = Rig::reading(config(), &[0, 1], &[(0, 0), (1, 0)]);
    rig.tell_topic(2);
    rig.bring(0..3);
    assert_eq!(rig.take_records(), (0, 0, 3));
    assert!(rig.commit_rows().is_none(), "the user is at work on it");
    assert_eq!(rig.take_records(), (1, 0, 3));
    assert_eq!(rig.commit(), [(0, 3)]);
    // Partition 1 is to go, and its user is not done.
    rig.grant(1, &[0, 1]);
    rig.after(Duration::from_millis(20));
    rig.grant(2, &[0]);
    assert_eq!(owned(&rig.heartbeat().1), [0, 1]);
    assert!(rig.take().is_none());
    assert_eq!(rig.commit(), [(1, 3)]);
    assert_eq!(owned(&rig.heartbeat().1), [0]);
}

#[test]
fn a_user_who_says_how_far_he_is_keeps_a_partition_until_he_is_through() {
    let manual = ConsumerConfig { commit: CommitMode::Manual, ..config() };
    let refused = Consumer::new(manual, 1).unwrap().by_record();
    assert!(refused.unwrap_err().to_string().contains("CommitMode::After"));
    let (mut config, pause) = (config(), Duration::from_millis(20));
    config.commit = CommitMode::After(pause);
    let mut rig = Rig::new(config);
    rig.consumer.by_record().unwrap();
    rig.grant(1, &[0, 1]);
    assert!(matches!(rig.take(), Some(Taken::Assigned(_))));
    rig.tell_offsets(&[(0, 0), (1, 0)]);
    rig.tell_topic(2);
    rig.bring(0..3);
    assert_eq!((rig.take_records(), rig.take_records()), ((0, 0, 3), (1, 0, 3)));
    assert!(rig.take().is_none() && rig.commit_rows().is_none(), "taking again says nothing");
    let share = Share { topic: "t".into(), partition: 1 };
    rig.consumer.done_with(rig.now, &share, 2);
    rig.consumer.done_with(rig.now, &share, 1);
    rig.consumer.done_with(rig.now, &share, 9);
    rig.after(pause);
    assert_eq!(rig.commit(), [(1, 2)], "not back, and not beyond what was given");
    rig.grant(1, &[0, 1]);
    rig.after(pause);
    rig.grant(2, &[0]);
    assert!(matches!(rig.take(), Some(Taken::Revoked(_))));
    assert!(rig.take().is_none());
    assert_eq!(owned(&rig.heartbeat().1), [0, 1], "one record is at work");
    rig.consumer.done_with(rig.now, &share, 3);
    assert!(rig.take().is_none());
    assert_eq!(rig.commit(), [(1, 3)]);
    assert_eq!(owned(&rig.heartbeat().1), [0]);
    rig.consumer.close(rig.now);
    rig.tick();
    assert!(rig.commit_rows().is_none(), "what is at work in partition 0 is not done");
}

#[test]
fn whoever_listens_hears_what_goes_before_it_does() {
    let mut rig = Rig::new(config());
    rig.consumer.listen();
    rig.grant(1, &[0, 1]);
    let Some(Taken::Assigned(shares)) = rig.take() else { panic!("nothing was assigned") };
    assert_eq!(shares.len(), 2);
    rig.tell_offsets(&[]);
    rig.grant(1, &[0, 1]);
    rig.after(Duration::from_millis(20));
    rig.grant(2, &[0]);
    let Some(Taken::Revoked(shares)) = rig.take() else { panic!("nothing was revoked") };
    assert_eq!(shares, [Share { topic: "t".into(), partition: 1 }]);
    assert_eq!(owned(&rig.heartbeat().1), [0, 1], "he was told, and is not back");
    assert!(rig.take().is_none());
    assert_eq!(owned(&rig.heartbeat().1), [0]);
}

#[test]
fn it_stops_when_its_session_must_have_ended_and_joins_again() {
    let mut rig = Rig::reading(config(), &[0], &[(0, 0)]);
    rig.tell_topic(1);
    let (_, heartbeat) = rig.heartbeat();
    rig.bring(0..3);
    rig.consumer.listen();
    let almost = Duration::from_millis(2_999);
    rig.after(almost);
    assert_eq!(rig.consumer.holds(rig.now).count(), 1);
    rig.after(SESSION.saturating_sub(almost));
    assert_eq!(rig.consumer.holds(rig.now).count(), 0);
    assert!(matches!(rig.take(), Some(Taken::Assigned(_))));
    let Some(Taken::Lost(shares)) = rig.take() else { panic!("nothing was lost") };
    assert_eq!(shares.len(), 1);
    assert!(rig.take().is_none(), "what was buffered is not given any more");
    // The group may still keep everything for the one that it was.
    let farewell = rig.grant(9, &[]);
    assert_eq!((farewell.member, farewell.leave), (heartbeat.member, Leave::Yes));
    assert!(farewell.beat > heartbeat.beat);
    let (_, join) = rig.heartbeat();
    assert_eq!((join.member_epoch, join.leave), (MemberEpoch::new(0), Leave::No));
    assert!(join.member != heartbeat.member && owned(&join).is_empty());
}

#[test]
fn a_refused_member_joins_again_and_its_commits_fail() {
    let mut rig = Rig::reading(config(), &[0], &[(0, 0)]);
    let mine = vec![(Share { topic: "t".into(), partition: 0 }, Progress::at(5))];
    let id = rig.consumer.commit_offsets(mine.clone()).unwrap();
    rig.tick();
    let member = rig.commit_rows().unwrap().1.member;
    rig.refuse(Kind::GroupHeartbeat, ErrorCode::FencedMember);
    let [(failed, Err(error))] = &rig.committed[..] else { panic!("{:?}", rig.committed) };
    assert_eq!((*failed, error.code()), (id, Some(ErrorCode::UnknownMember)));
    assert!(rig.consumer.commit_offsets(mine).is_err(), "it is not its partition any more");
    rig.after(Duration::from_millis(50));
    assert_ne!(member.map(|(id, _)| id), Some(rig.heartbeat().1.member));
}

#[test]
fn a_user_who_is_away_for_too_long_holds_up_nobody() {
    let mut rig =
        Rig::reading(ConsumerConfig { processing_max: Duration::from_secs(2), ..config() }, &[0], &[(0, 0)]);
    rig.tell_topic(1);
    rig.bring(0..3);
    rig.take_records();
    rig.grant(1, &[0]);
    rig.after(Duration::from_secs(2));
    let leaves = std::iter::from_fn(|| rig.asked(Kind::GroupHeartbeat)).last().unwrap();
    let Request::GroupHeartbeat(leaves) = leaves.request else { panic!("not a heartbeat") };
    assert_eq!(leaves.leave, Leave::Yes);
    rig.after(Duration::from_mins(1));
    assert!(rig.asked(Kind::GroupHeartbeat).is_none(), "it rests until he comes back");
    assert!(rig.take().is_none());
    assert_eq!(rig.heartbeat().1.member_epoch, MemberEpoch::new(0));
    // Waiting for records is not being away.
    rig.after(Duration::from_mins(1));
    assert!(rig.consumer.shares().next().is_none());
}

#[test]
fn a_user_with_a_record_that_never_ends_holds_up_nobody_however_often_he_takes() {
    let impatient = ConsumerConfig { processing_max: Duration::from_secs(2), ..config() };
    let mut rig = Rig::new(impatient);
    rig.consumer.by_record().unwrap();
    rig.grant(1, &[0]);
    assert!(matches!(rig.take(), Some(Taken::Assigned(_))));
    rig.tell_offsets(&[(0, 0)]);
    rig.tell_topic(1);
    rig.bring(0..3);
    assert_eq!(rig.take_records(), (0, 0, 3));
    let share = Share { topic: "t".into(), partition: 0 };
    for done in [1, 2] {
        rig.grant(1, &[0]);
        rig.after(Duration::from_millis(1_500));
        assert!(rig.take().is_none());
        rig.consumer.done_with(rig.now, &share, done);
    }
    rig.grant(1, &[0]);
    rig.after(Duration::from_millis(1_500));
    assert!(rig.take().is_none());
    rig.grant(1, &[0]);
    rig.after(Duration::from_millis(500));
    let leaves = std::iter::from_fn(|| rig.asked(Kind::GroupHeartbeat)).last().unwrap();
    let Request::GroupHeartbeat(leaves) = leaves.request else { panic!("not a heartbeat") };
    assert_eq!(leaves.leave, Leave::Yes);
}

#[test]
fn a_user_who_never_takes_holds_up_nobody_either() {
    let impatient = ConsumerConfig { processing_max: Duration::from_secs(2), ..config() };
    let mut rig = Rig::reading(impatient, &[0], &[(0, 0)]);
    rig.tell_topic(1);
    rig.bring(0..3);
    rig.grant(1, &[0]);
    rig.after(Duration::from_secs(2));
    assert!(rig.consumer.shares().next().is_none());
}

#[test]
fn what_a_filter_leaves_out_is_committed_unless_the_user_is_at_work_before_it() {
    let (mut config, pause) = (config(), Duration::from_millis(100));
    config.commit = CommitMode::After(pause);
    config.reader.tags = vec![bytes::Bytes::from_static(b"even")];
    let mut rig = Rig::reading(config, &[0], &[(0, 10)]);
    rig.tell_topic(1);
    rig.bring_up_to(Some(20), 0..0);
    rig.after(pause);
    assert_eq!(rig.commit(), [(0, 20)]);
    rig.bring_up_to(Some(30), 20..22);
    assert_eq!(rig.take_records(), (0, 20, 30));
    rig.bring_up_to(Some(40), 0..0);
    rig.after(pause);
    assert_eq!(rig.commit_rows(), None, "he may be at work on 20");
    assert!(rig.take().is_none());
    rig.after(pause);
    assert_eq!(rig.commit(), [(0, 40)]);
}

#[test]
fn the_end_commits_what_was_taken_and_leaves() {
    let mut rig = Rig::reading(config(), &[0], &[(0, 0)]);
    rig.tell_topic(1);
    rig.bring(0..3);
    rig.take_records();
    rig.consumer.close(rig.now);
    rig.tick();
    assert!(rig.consumer.is_over() && !rig.consumer.is_closed());
    assert_eq!(rig.commit(), [(0, 3)]);
    let last = rig.open.iter().rposition(|outgoing| outgoing.request.kind() == Kind::GroupHeartbeat).unwrap();
    let Outgoing { id, request: Request::GroupHeartbeat(leaves), .. } = rig.open.remove(last) else {
        panic!()
    };
    assert_eq!(leaves.leave, Leave::Yes);
    rig.answer(
        id,
        Answer::GroupHeartbeat(GroupHeartbeatAnswer { member_epoch: MemberEpoch::new(0), granted: vec![] }),
    );
    assert!(rig.consumer.is_closed());
}

#[test]
fn one_that_gives_up_its_last_batch_does_not_commit_it() {
    let mut rig = Rig::reading(config(), &[0], &[(0, 0)]);
    rig.tell_topic(1);
    rig.bring(0..3);
    rig.take_records();
    rig.consumer.drop_out(rig.now);
    rig.tick();
    assert!(rig.commit_rows().is_none());
}

#[test]
fn an_instance_goes_away_instead_of_leaving() {
    let mut named = config();
    named.wishes.instance = Some("till-4".to_owned());
    let mut rig = Rig::reading(named, &[0], &[(0, 0)]);
    rig.consumer.close(rig.now);
    rig.tick();
    let last = std::iter::from_fn(|| rig.asked(Kind::GroupHeartbeat)).last().unwrap();
    assert!(matches!(last.request, Request::GroupHeartbeat(heartbeat) if heartbeat.leave == Leave::Away));
    rig.after(Duration::from_secs(5));
    assert!(rig.consumer.is_closed(), "it waits no longer than its patience");
}

#[test]
fn refusals_that_stay_are_told() {
    let mut rig = Rig::new(config());
    rig.refuse(Kind::GroupHeartbeat, ErrorCode::InvalidGroup);
    assert_eq!(rig.consumer.take(rig.now).unwrap().unwrap_err().code(), Some(ErrorCode::InvalidGroup));
    let patience = rig.consumer.config.reader.patience;
    let began = rig.now;
    while rig.now < began + patience * 2 {
        let wait = rig.consumer.deadline().unwrap().saturating_duration_since(rig.now);
        rig.after(wait);
        if rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::GroupHeartbeat) {
            rig.refuse(Kind::GroupHeartbeat, ErrorCode::InstanceInUse);
        }
    }
    assert!(rig.consumer.take(rig.now).unwrap().unwrap_err().to_string().contains("INSTANCE_IN_USE"));
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let mut nothing = config();
    nothing.wishes.topics.clear();
    assert!(Consumer::new(nothing, 1).is_err());
    let mut short = config();
    short.wishes.session_timeout = Duration::ZERO;
    assert!(Consumer::new(short, 1).is_err());
}
