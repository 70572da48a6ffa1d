use super::super::asks::{CommitRefusal, PageId, StoredGroup};
use super::super::{MemberInfo, MemberRefusal, Subscription};
use super::*;
use crate::limits::OFFSETS_RETENTION;
use corelog_wire::ids::{LeaderEpoch, MemberEpoch, MemberId, Offset, TopicId};
use corelog_wire::message::Assignor;

const SESSION: Duration = Duration::from_secs(2);
const PARTITIONS: u32 = 6;

const SETTINGS: CoordinatorSettings =
    CoordinatorSettings { offset_interval: Duration::from_millis(10), offsets_retention: OFFSETS_RETENTION };

fn group() -> GroupName {
    GroupName::new("billing").unwrap()
}

fn tp(partition: u32) -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes([1; 16]), partition)
}

fn topics() -> Topics {
    Topics::from([("orders".to_owned(), (TopicId::from_bytes([1; 16]), PARTITIONS))])
}

fn info() -> MemberInfo {
    let names = BTreeSet::from(["orders".to_owned()]);
    MemberInfo {
        session_timeout: SESSION,
        instance: None,
        subscription: Subscription { names, patterns: BTreeSet::new() },
        assignor: Assignor::Uniform,
        client_name: String::new(),
    }
}

fn at(ms: u64) -> Now {
    let wall_ms = 1_700_000_000_000 + i64::try_from(ms).unwrap();
    Now { instant: Instant::from_nanos(ms * 1_000_000), wall_ms }
}

fn committed(offset: u64) -> Committed {
    Committed { offset: Offset::new(offset), leader_epoch: LeaderEpoch::new(1), metadata: String::new() }
}

fn join(member: u128) -> Ask {
    Ask::Join { member: MemberId::new(member), info: info() }
}

fn heartbeat(member: u128, epoch: u64, has: &[u32], wait_ms: u64) -> Ask {
    Ask::Heartbeat {
        member: MemberId::new(member),
        epoch: MemberEpoch::new(epoch),
        has: has.iter().map(|&partition| tp(partition)).collect(),
        beat: 0,
        info: None,
        wait: Duration::from_millis(wait_ms),
    }
}

fn commit(member: u128, epoch: u64, partition: u32, offset: u64) -> Ask {
    let member = Some((MemberId::new(member), MemberEpoch::new(epoch)));
    Ask::Commit { member, offsets: vec![(tp(partition), committed(offset))] }
}

/// A coordinator with one group, whose store does what the test says.
struct Desk {
    coordinator: Coordinator,
    now: u64,
    asked: u64,
}

impl Desk {
    fn new() -> Self {
        Self { coordinator: Coordinator::new(topics(), SETTINGS), now: 0, asked: 0 }
    }

    fn step(&mut self, input: GroupInput) -> Vec<GroupEffect> {
        let mut out = Vec::new();
        self.coordinator.step(at(self.now), input, &mut out);
        out
    }

    /// Asks; a group that the coordinator does not know is not in the store either.
    fn ask(&mut self, ask: Ask) -> (AskId, Vec<GroupEffect>) {
        self.asked += 1;
        let ask_id = AskId(self.asked);
        let effects = self.step(GroupInput::Ask { ask_id, group: group(), ask });
        if matches!(effects[..], [GroupEffect::Load { .. }]) {
            return (ask_id, self.loaded(None));
        }
        (ask_id, effects)
    }

    fn loaded(&mut self, membership: Option<Membership>) -> Vec<GroupEffect> {
        let stored = membership.map(|membership| StoredGroup { membership, offsets: BTreeMap::new() });
        self.step(GroupInput::Loaded { group: group(), stored })
    }

    fn stored(&mut self, done: bool) -> Vec<GroupEffect> {
        self.step(GroupInput::Stored { group: group(), done })
    }

    fn tick_at(&mut self, ms: u64) -> Vec<GroupEffect> {
        self.now = ms;
        self.step(GroupInput::Tick)
    }

    /// Asks what has to be stored, and has it stored.
    fn through(&mut self, ask: Ask) -> GroupReply {
        let (ask_id, effects) = self.ask(ask);
        assert!(matches!(effects[..], [GroupEffect::Store { .. }]), "{effects:?}");
        let replies = self.stored(true);
        replies.into_iter().find_map(|effect| of(ask_id, effect)).unwrap()
    }
}

fn of(wanted: AskId, effect: GroupEffect) -> Option<GroupReply> {
    match effect {
        GroupEffect::Reply { ask_id, reply } if ask_id == wanted => Some(reply),
        _ => None,
    }
}

fn granted(reply: &GroupReply) -> (u64, Vec<u32>) {
    let GroupReply::Granted { epoch, partitions } = reply else { panic!("{reply:?}") };
    (epoch.get(), partitions.iter().map(|tp| tp.partition).collect())
}

fn unavailable(ask_id: AskId) -> GroupEffect {
    refused(ask_id, GroupRefusal::Unavailable)
}

#[test]
fn nobody_is_answered_before_the_store_has_it() {
    let mut desk = Desk::new();
    let ask = GroupInput::Ask { ask_id: AskId(1), group: group(), ask: join(1) };
    assert_eq!(desk.step(ask), [GroupEffect::Load { group: group() }]);
    let effects = desk.loaded(None);
    assert!(matches!(effects[..], [GroupEffect::Store { .. }]), "{effects:?}");
    let effects = desk.stored(true);
    let [GroupEffect::Reply { reply, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(granted(reply), (1, (0..PARTITIONS).collect()));
}

#[test]
fn what_is_asked_while_a_change_is_on_its_way_makes_the_next_one_together() {
    let mut desk = Desk::new();
    desk.ask(join(1));
    assert_eq!(desk.ask(join(2)).1, []);
    assert_eq!(desk.ask(join(3)).1, []);
    let effects = desk.stored(true);
    assert!(matches!(effects[..], [GroupEffect::Reply { .. }, GroupEffect::Store { .. }]), "{effects:?}");
    assert_eq!(desk.stored(true).len(), 2);
}

#[test]
fn a_change_that_may_not_have_happened_is_not_answered_as_done() {
    let mut desk = Desk::new();
    let (first, _) = desk.ask(join(1));
    let (second, _) = desk.ask(join(2));
    assert_eq!(desk.stored(false), [unavailable(first), GroupEffect::Load { group: group() }]);
    // It did happen, as the store says when it is read again.
    let mut membership = Membership::default();
    membership.join(MemberId::new(1), info(), &topics()).unwrap();
    desk.loaded(Some(membership));
    let replies = desk.stored(true);
    let reply = replies.into_iter().find_map(|effect| of(second, effect)).unwrap();
    assert_eq!(granted(&reply).1, [0; 0], "all partitions are with the first member");
}

#[test]
fn a_heartbeat_is_held_until_something_changes_or_its_time_is_over() {
    let mut desk = Desk::new();
    let (epoch, _) = granted(&desk.through(join(1)));
    let all: Vec<u32> = (0..PARTITIONS).collect();
    let (held, effects) = desk.ask(heartbeat(1, epoch, &all, 500));
    assert_eq!(effects, []);
    assert_eq!(desk.tick_at(499), []);
    let effects = desk.tick_at(500);
    assert_eq!(
        effects.into_iter().find_map(|effect| of(held, effect)).map(|reply| granted(&reply).0),
        Some(epoch)
    );

    let (held, _) = desk.ask(heartbeat(1, epoch, &all, 500));
    desk.ask(join(2));
    let reply = desk.stored(true).into_iter().find_map(|effect| of(held, effect)).unwrap();
    assert_eq!(granted(&reply).1, [0, 1, 2]);
    // What it does not know yet is said at once.
    let (late, effects) = desk.ask(heartbeat(1, epoch, &all, 500));
    assert!(effects.into_iter().find_map(|effect| of(late, effect)).is_some());
}

#[test]
fn a_heartbeat_that_comes_again_sends_the_one_before_away() {
    let mut desk = Desk::new();
    let (epoch, all) = granted(&desk.through(join(1)));
    let (first, _) = desk.ask(heartbeat(1, epoch, &all, 500));
    let (_, effects) = desk.ask(heartbeat(1, epoch, &all, 500));
    assert_eq!(effects.len(), 1);
    assert!(effects.into_iter().find_map(|effect| of(first, effect)).is_some());
}

#[test]
fn a_silent_member_loses_what_it_has_when_its_session_ends() {
    let mut desk = Desk::new();
    let (epoch, all) = granted(&desk.through(join(1)));
    desk.through(join(2));
    desk.now = 1_500;
    desk.ask(heartbeat(1, epoch, &all, 0));
    assert!(matches!(desk.tick_at(2_000)[..], [GroupEffect::Store { .. }]), "the second was silent");
    desk.stored(true);
    assert_eq!(desk.tick_at(3_499), []);
    assert!(matches!(desk.tick_at(3_500)[..], [GroupEffect::Store { .. }]));
    desk.stored(true);
    let (late, effects) = desk.ask(heartbeat(1, epoch, &all, 0));
    let unknown = GroupReply::Refused(MemberRefusal::UnknownMember.into());
    assert_eq!(effects, [GroupEffect::Reply { ask_id: late, reply: unknown }]);
    assert_eq!(desk.coordinator.len(), 0, "nothing is kept of a group without members and offsets");
}

#[test]
fn offsets_are_stored_together_and_not_more_often_than_the_interval_says() {
    let mut desk = Desk::new();
    let (epoch, _) = granted(&desk.through(join(1)));
    let ok = |partition, offset| {
        (commit(1, epoch, partition, offset), GroupReply::Committed(vec![(tp(partition), Ok(()))]))
    };
    let (ask, reply) = ok(0, 5);
    assert_eq!(desk.through(ask), reply);
    desk.now = 3;
    for (ask, _) in [ok(0, 7), ok(1, 8)] {
        assert_eq!(desk.ask(ask).1, []);
    }
    // Who reads, and what the member says next, waits for them.
    let (reading, effects) = desk.ask(Ask::Offsets);
    assert_eq!(effects, []);
    let (leaving, effects) = desk.ask(Ask::Leave { member: MemberId::new(1), away: false });
    assert_eq!(effects, []);
    assert_eq!(desk.tick_at(9), []);
    let effects = desk.tick_at(10);
    let [GroupEffect::Store { pages, change: Change::Put(_), .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    let page = BTreeMap::from([(0, committed(7)), (1, committed(8))]);
    assert_eq!(*pages, BTreeMap::from([(PageId::of(tp(0)), page)]));
    let replies = desk.stored(true);
    let read = replies.iter().cloned().find_map(|effect| of(reading, effect)).unwrap();
    assert_eq!(read, GroupReply::Offsets(BTreeMap::from([(tp(0), committed(7)), (tp(1), committed(8))])));
    assert!(replies.into_iter().find_map(|effect| of(leaving, effect)).is_some());
}

#[test]
fn a_commit_of_a_former_holder_is_refused_and_stores_nothing() {
    let mut desk = Desk::new();
    let (epoch, _) = granted(&desk.through(join(1)));
    desk.through(join(2));
    let (_, effects) = desk.ask(heartbeat(1, epoch, &[0, 1, 2, 3, 4, 5], 0));
    let [GroupEffect::Reply { reply, .. }] = &effects[..] else { panic!("{effects:?}") };
    let (now, left) = granted(reply);
    desk.through(heartbeat(1, now, &left, 0));
    let refused = Err(MemberRefusal::NotHolder { tp: tp(5) }.into());
    let (ask_id, effects) = desk.ask(commit(1, epoch, 5, 99));
    let reply = GroupReply::Committed(vec![(tp(5), refused)]);
    assert_eq!(effects, [GroupEffect::Reply { ask_id, reply }]);
}

#[test]
fn commits_from_outside_need_an_empty_group_and_may_go_back() {
    let mut desk = Desk::new();
    let outside = |offset| Ask::Commit { member: None, offsets: vec![(tp(0), committed(offset))] };
    desk.through(outside(9));
    desk.now = 20;
    assert_eq!(desk.through(outside(4)), GroupReply::Committed(vec![(tp(0), Ok(()))]));
    let (epoch, _) = granted(&desk.through(join(1)));
    desk.now = 40;
    let (ask_id, effects) = desk.ask(outside(0));
    assert_eq!(effects, [refused(ask_id, GroupRefusal::NotEmpty)]);
    // A late word of a member does not undo its progress.
    let (_, effects) = desk.ask(commit(1, epoch, 0, 3));
    let [GroupEffect::Reply { reply: GroupReply::Committed(rows), .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(rows[..], [(tp(0), Ok(()))]);
    let (_, effects) = desk.ask(Ask::Offsets);
    let [GroupEffect::Reply { reply: GroupReply::Offsets(offsets), .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(offsets[&tp(0)], committed(4));
}

#[test]
fn a_group_without_members_can_be_deleted_and_begun_again() {
    let mut desk = Desk::new();
    let (epoch, _) = granted(&desk.through(join(1)));
    desk.through(commit(1, epoch, 0, 9));
    let delete = || Ask::Delete { topic: None };
    let (ask_id, effects) = desk.ask(delete());
    assert_eq!(effects, [refused(ask_id, GroupRefusal::NotEmpty)]);
    desk.through(Ask::Leave { member: MemberId::new(1), away: false });

    // What is asked after the deletion is not lost with it.
    let (gone, effects) = desk.ask(delete());
    let [GroupEffect::Store { change: Change::Delete, pages, .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(*pages, BTreeMap::from([(PageId::of(tp(0)), BTreeMap::new())]));
    let (joined, _) = desk.ask(join(2));
    let effects = desk.stored(true);
    let deleted = GroupEffect::Reply { ask_id: gone, reply: GroupReply::Deleted };
    assert_eq!(effects[..2], [GroupEffect::WentBack { partitions: vec![tp(0)] }, deleted]);
    let reply = desk.stored(true).into_iter().find_map(|effect| of(joined, effect)).unwrap();
    assert_eq!(granted(&reply), (1, (0..PARTITIONS).collect()));
    desk.through(Ask::Leave { member: MemberId::new(2), away: false });
    assert_eq!(desk.coordinator.groups.len(), 0);

    let (ask_id, effects) = desk.ask(delete());
    assert_eq!(effects, [refused(ask_id, GroupRefusal::UnknownGroup)]);
    assert_eq!(desk.coordinator.groups.len(), 0, "a question does not make a group");
}

#[test]
fn what_is_asked_together_with_a_deletion_is_done_after_it() {
    let mut desk = Desk::new();
    let outside = |offset| Ask::Commit { member: None, offsets: vec![(tp(0), committed(offset))] };
    desk.through(outside(5));
    // A change is on its way, so that the next two wait for each other.
    desk.now = 20;
    desk.ask(outside(6));
    desk.ask(Ask::Delete { topic: None });
    let (commit, _) = desk.ask(outside(7));
    assert!(
        desk.stored(true)
            .iter()
            .any(|effect| matches!(effect, GroupEffect::Store { change: Change::Delete, .. }))
    );
    desk.stored(true);
    assert!(matches!(desk.tick_at(30)[..], [GroupEffect::Store { change: Change::Put(_), .. }]));
    let reply = desk.stored(true).into_iter().find_map(|effect| of(commit, effect)).unwrap();
    assert_eq!(reply, GroupReply::Committed(vec![(tp(0), Ok(()))]));
    let (_, offsets) = desk.coordinator.group(&group()).unwrap();
    assert_eq!(offsets[&tp(0)], committed(7));
}

#[test]
fn offsets_of_one_topic_are_deleted_alone() {
    let mut desk = Desk::new();
    let offsets = vec![(tp(0), committed(5)), (tp(5), committed(6))];
    desk.through(Ask::Commit { member: None, offsets });
    let other = Some(TopicId::from_bytes([2; 16]));
    let (ask_id, effects) = desk.ask(Ask::Delete { topic: other });
    assert_eq!(effects, [refused(ask_id, GroupRefusal::UnknownGroup)]);
    assert_eq!(desk.through(Ask::Delete { topic: Some(tp(0).topic) }), GroupReply::Deleted);
    assert!(desk.coordinator.group(&group()).is_none(), "nothing is left of it");
}

#[test]
fn offsets_of_a_topic_go_with_it_and_those_of_no_partition_are_refused() {
    let mut desk = Desk::new();
    let nowhere = TopicPartition::new(TopicId::from_bytes([2; 16]), 0);
    let offsets = vec![(tp(0), committed(5)), (tp(PARTITIONS), committed(5)), (nowhere, committed(5))];
    let GroupReply::Committed(rows) = desk.through(Ask::Commit { member: None, offsets }) else { panic!() };
    let results: Vec<_> = rows.into_iter().map(|(_, result)| result).collect();
    let refusals = [
        Ok(()),
        Err(CommitRefusal::UnknownPartition(tp(PARTITIONS))),
        Err(CommitRefusal::UnknownTopic(nowhere.topic)),
    ];
    assert_eq!(results, refusals);
    let effects = desk.step(GroupInput::Topics(Topics::new()));
    assert!(matches!(effects[..], [GroupEffect::Store { change: Change::Delete, .. }]), "{effects:?}");
}

#[test]
fn offsets_of_a_group_that_nobody_uses_expire_and_a_commit_prolongs_them() {
    let mut desk = Desk::new();
    let day = 24 * 3_600_000;
    let outside = |offset| Ask::Commit { member: None, offsets: vec![(tp(0), committed(offset))] };
    desk.through(outside(5));
    desk.now = 5 * day;
    desk.through(outside(6));
    assert_eq!(desk.tick_at(12 * day - 1), []);
    // Another coordinator goes by the same time.
    let (membership, offsets) = desk.coordinator.group(&group()).unwrap();
    let stored = Some(StoredGroup { membership: membership.clone(), offsets: offsets.clone() });
    desk.coordinator = Coordinator::new(topics(), SETTINGS);
    assert_eq!(desk.step(GroupInput::Loaded { group: group(), stored }), []);
    assert_eq!(desk.coordinator.next_tick(), Some(at(12 * day).instant));
    let effects = desk.tick_at(12 * day);
    assert!(matches!(effects[..], [GroupEffect::Store { change: Change::Delete, .. }]), "{effects:?}");
    desk.stored(true);
    assert_eq!((desk.coordinator.groups.len(), desk.coordinator.next_tick()), (0, None));
}

#[test]
fn offsets_of_a_group_that_a_topic_protects_are_kept_until_none_does() {
    let mut desk = Desk::new();
    let year = 365 * 24 * 3_600_000;
    desk.step(GroupInput::Protected(BTreeSet::from([group()])));
    desk.through(Ask::Commit { member: None, offsets: vec![(tp(0), committed(5))] });
    assert_eq!(desk.coordinator.next_tick(), None);
    assert_eq!(desk.tick_at(year), []);
    assert_eq!(desk.step(GroupInput::Protected(BTreeSet::new())), []);
    assert_eq!(desk.coordinator.next_tick(), Some(at(year).instant));
    let effects = desk.tick_at(year);
    assert!(matches!(effects[..], [GroupEffect::Store { change: Change::Delete, .. }]), "{effects:?}");
}

#[test]
fn who_goes_back_is_told_of_before_the_answer() {
    let mut desk = Desk::new();
    let commit = |offsets: [u64; 2]| {
        let offsets = (0..).zip(offsets).map(|(partition, offset)| (tp(partition), committed(offset)));
        Ask::Commit { member: None, offsets: offsets.collect() }
    };
    let back = |effects: Vec<GroupEffect>| match effects.into_iter().next() {
        Some(GroupEffect::WentBack { partitions }) => partitions,
        _ => Vec::new(),
    };
    desk.ask(commit([5, 5]));
    assert_eq!(back(desk.stored(true)), []);
    desk.now += 1_000;
    desk.ask(commit([5, 6]));
    assert_eq!(back(desk.stored(true)), []);
    let topic = tp(0).topic;
    assert_eq!(desk.coordinator.read_up_to(topic, 3, &[group()]), [5, 6, 0].map(Offset::new));
    let nobody = GroupName::new("nobody").unwrap();
    assert_eq!(desk.coordinator.read_up_to(topic, 2, &[group(), nobody]), [Offset::ZERO; 2]);

    desk.now += 1_000;
    desk.ask(commit([4, 7]));
    assert_eq!(back(desk.stored(false)), [], "nobody knows whether it went back");
    let (membership, offsets) = desk.coordinator.group(&group()).unwrap();
    let stored = Some(StoredGroup { membership: membership.clone(), offsets: offsets.clone() });
    desk.step(GroupInput::Loaded { group: group(), stored });
    desk.ask(commit([4, 7]));
    let effects = desk.stored(true);
    assert!(matches!(effects.last(), Some(GroupEffect::Reply { .. })), "{effects:?}");
    assert_eq!(back(effects), [tp(0)]);
    desk.ask(Ask::Delete { topic: None });
    assert_eq!(back(desk.stored(true)), [tp(0), tp(1)]);
}

#[test]
fn a_late_heartbeat_says_nothing_and_strangers_are_not_remembered() {
    let mut desk = Desk::new();
    let (epoch, _) = granted(&desk.through(join(1)));
    desk.through(join(2));
    let beat = |number, has: &[u32]| {
        let Ask::Heartbeat { member, epoch, has, info, wait, .. } = heartbeat(1, epoch, has, 0) else {
            panic!()
        };
        Ask::Heartbeat { member, epoch, has, beat: number, info, wait }
    };
    let (_, effects) = desk.ask(beat(1, &[0, 1, 2, 3, 4, 5]));
    let [GroupEffect::Reply { reply, .. }] = &effects[..] else { panic!("{effects:?}") };
    let (now, left) = granted(reply);
    let let_go = |number, has: &[u32]| {
        let Ask::Heartbeat { member, has, info, wait, .. } = heartbeat(1, now, has, 0) else { panic!() };
        Ask::Heartbeat { member, epoch: MemberEpoch::new(now), has, beat: number, info, wait }
    };
    desk.through(let_go(3, &left));
    // What it said before it let go arrives now: it would claim what is not its own any more.
    let (_, effects) = desk.ask(let_go(2, &[0, 1, 2, 3, 4, 5]));
    let [GroupEffect::Reply { reply, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(granted(reply).1, left);

    for stranger in 100..200 {
        desk.ask(heartbeat(stranger, 1, &[], 0));
    }
    assert_eq!(desk.coordinator.groups[&group()].beats.len(), 1);
}

mod weather;
