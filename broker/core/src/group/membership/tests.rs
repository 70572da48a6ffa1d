use super::*;
use std::time::Duration;

fn topic(number: u8) -> TopicId {
    TopicId::from_bytes([number; 16])
}

fn topics(partitions: u32) -> Topics {
    Topics::from([("orders".to_owned(), (topic(1), partitions))])
}

fn tp(partition: u32) -> TopicPartition {
    TopicPartition::new(topic(1), partition)
}

fn id(number: u128) -> MemberId {
    MemberId::new(number)
}

fn info() -> MemberInfo {
    let names = BTreeSet::from(["orders".to_owned()]);
    MemberInfo { subscription: Subscription { names, ..Subscription::default() }, ..nothing() }
}

fn nothing() -> MemberInfo {
    MemberInfo {
        session_timeout: Duration::from_secs(10),
        instance: None,
        subscription: Subscription::default(),
        assignor: Assignor::Uniform,
        client_name: String::new(),
    }
}

fn instance(name: &str) -> MemberInfo {
    MemberInfo { instance: Some(name.to_owned()), ..info() }
}

fn numbers(has: &BTreeSet<TopicPartition>) -> Vec<u32> {
    has.iter().map(|tp| tp.partition).collect()
}

fn granted(group: &Membership, member: u128) -> (MemberEpoch, Vec<u32>) {
    let (epoch, has) = group.granted(id(member)).unwrap();
    (epoch, numbers(&has))
}

fn set(partitions: &[u32]) -> BTreeSet<TopicPartition> {
    partitions.iter().map(|&partition| tp(partition)).collect()
}

/// A group of the members 1 and 2 over four partitions, in the middle of the move of two of them.
fn moving() -> (Membership, MemberEpoch) {
    let mut group = Membership::default();
    group.join(id(1), info(), &topics(4)).unwrap();
    assert_eq!(granted(&group, 1).1, [0, 1, 2, 3]);
    let before = granted(&group, 1).0;
    group.join(id(2), info(), &topics(4)).unwrap();
    (group, before)
}

#[test]
fn partitions_go_over_only_after_their_holder_let_go() {
    let (mut group, before) = moving();
    let (epoch, left) = granted(&group, 1);
    assert!(epoch > before);
    assert_eq!(left, [0, 1]);
    assert_eq!(granted(&group, 2).1, [0; 0]);

    group.heard(id(1), epoch, &set(&[0, 1, 2, 3])).unwrap();
    assert_eq!(granted(&group, 2).1, [0; 0], "it works on them still");
    group.heard(id(1), epoch, &set(&[0, 1, 3])).unwrap();
    assert_eq!(granted(&group, 2).1, [2]);
    group.heard(id(1), epoch, &set(&[0, 1])).unwrap();
    assert_eq!(granted(&group, 2).1, [2, 3]);
    assert_eq!(granted(&group, 1), (epoch, vec![0, 1]), "what stays with a member is never touched");
}

#[test]
fn a_word_said_before_a_member_knew_releases_nothing() {
    let (mut group, before) = moving();
    group.heard(id(1), before, &set(&[])).unwrap();
    assert_eq!(granted(&group, 2).1, [0; 0]);
}

#[test]
fn a_member_that_claims_what_it_was_not_given_is_fenced() {
    let (mut group, _) = moving();
    let epoch = granted(&group, 2).0;
    let ahead = MemberEpoch::new(epoch.get() + 1);
    assert_eq!(group.heard(id(2), ahead, &set(&[])), Err(MemberRefusal::Fenced));
    assert_eq!(group.heard(id(2), epoch, &set(&[0])), Err(MemberRefusal::Fenced));
    assert_eq!(group.heard(id(3), epoch, &set(&[])), Err(MemberRefusal::UnknownMember));
}

#[test]
fn a_member_whose_answer_was_lost_joins_again_and_keeps_what_it_has() {
    let (mut group, _) = moving();
    let before = group.clone();
    group.join(id(1), info(), &topics(4)).unwrap();
    assert_eq!(group, before);
}

#[test]
fn what_a_member_has_is_free_when_it_leaves() {
    let (mut group, _) = moving();
    group.leave(id(1), &topics(4));
    assert_eq!(granted(&group, 2).1, [0, 1, 2, 3]);
    assert_eq!(group.granted(id(1)), None);
    let epoch = group.epoch();
    group.leave(id(1), &topics(4));
    assert_eq!(group.epoch(), epoch);
}

#[test]
fn a_partition_that_is_to_stay_after_all_stays() {
    let (mut group, _) = moving();
    let told = granted(&group, 1).0;
    group.leave(id(2), &topics(4));
    let (epoch, has) = granted(&group, 1);
    assert_eq!(has, [0, 1, 2, 3]);
    // It let go of one before it knew: it gets that one again, as it was never anybody else's.
    group.heard(id(1), told, &set(&[0, 1, 2])).unwrap();
    assert_eq!(granted(&group, 1), (epoch, vec![0, 1, 2, 3]));
}

#[test]
fn commits_count_only_from_the_holder_of_the_time() {
    let (mut group, before) = moving();
    assert_eq!(group.check_commit(id(1), before, tp(3)), Ok(()), "it still works on it");
    let epoch = granted(&group, 1).0;
    group.heard(id(1), epoch, &set(&[0, 1])).unwrap();
    let not_holder = Err(MemberRefusal::NotHolder { tp: tp(3) });
    assert_eq!(group.check_commit(id(1), epoch, tp(3)), not_holder);
    assert_eq!(group.check_commit(id(1), before, tp(1)), Ok(()), "what did not move is not fenced");
    let (new, _) = granted(&group, 2);
    assert_eq!(group.check_commit(id(2), new, tp(3)), Ok(()));
    assert_eq!(group.check_commit(id(2), MemberEpoch::new(new.get() - 1), tp(3)), not_holder);
    assert_eq!(group.check_commit(id(9), new, tp(3)), Err(MemberRefusal::UnknownMember));
}

#[test]
fn a_member_that_restarts_under_its_instance_id_finds_its_seat() {
    let mut group = Membership::default();
    group.join(id(1), instance("a"), &topics(4)).unwrap();
    group.join(id(2), instance("b"), &topics(4)).unwrap();
    let epoch = granted(&group, 1).0;
    group.heard(id(1), epoch, &set(&[0, 1])).unwrap();
    let other = granted(&group, 2);

    assert_eq!(group.join(id(3), instance("a"), &topics(4)), Err(MemberRefusal::InstanceInUse));
    group.go_away(id(1), &topics(4));
    assert_eq!(granted(&group, 2), other, "nothing moves while it is away");
    group.join(id(3), instance("a"), &topics(4)).unwrap();
    assert_eq!(granted(&group, 3).1, [0, 1]);
    assert_eq!(granted(&group, 2), other);
    let not_holder = group.check_commit(id(1), epoch, tp(0));
    assert_eq!(not_holder, Err(MemberRefusal::UnknownMember), "the process from before is fenced");
    group.go_away(id(9), &topics(4));
    assert_eq!(group.members().count(), 2);
}

#[test]
fn new_partitions_are_given_and_those_of_a_deleted_topic_are_let_go_of() {
    let mut group = Membership::default();
    group.join(id(1), info(), &Topics::new()).unwrap();
    assert_eq!(granted(&group, 1).1, [0; 0]);
    group.topics_changed(&topics(2)).unwrap();
    assert_eq!(granted(&group, 1).1, [0, 1]);
    group.topics_changed(&topics(3)).unwrap();
    assert_eq!(granted(&group, 1).1, [0, 1, 2]);
    group.topics_changed(&Topics::new()).unwrap();
    let (epoch, left) = granted(&group, 1);
    assert_eq!(left, [0; 0]);
    group.heard(id(1), epoch, &set(&[])).unwrap();
    assert_eq!(group.broken_invariant(), None);
}

#[test]
fn a_full_group_takes_nobody_but_those_it_has() {
    let mut group = Membership::default();
    let last = u128::try_from(GROUP_MEMBERS_MAX).unwrap();
    for member in 1..=last {
        group.join(id(member), info(), &Topics::new()).unwrap();
    }
    assert_eq!(group.join(id(last + 1), info(), &Topics::new()), Err(MemberRefusal::GroupFull));
    assert_eq!(group.join(id(last), info(), &Topics::new()), Ok(()));
}

#[test]
fn a_member_may_change_its_mind() {
    let (mut group, _) = moving();
    group.change(id(1), nothing(), &topics(4)).unwrap();
    let (epoch, left) = granted(&group, 1);
    assert_eq!(left, [0; 0]);
    group.heard(id(1), epoch, &set(&[])).unwrap();
    assert_eq!(granted(&group, 2).1, [0, 1, 2, 3]);
    assert_eq!(group.change(id(9), nothing(), &topics(4)), Err(MemberRefusal::UnknownMember));
}

/// A member as it sees itself.
#[derive(Default)]
struct Client {
    epoch: u64,
    /// What it works on.
    has: BTreeSet<TopicPartition>,
    /// What it was told last that it may have.
    may: BTreeSet<TopicPartition>,
}

/// A group in bad weather: words are lost, late and come twice; members take their time to let go, die, and come.
struct Weather {
    group: Membership,
    clients: BTreeMap<u128, Client>,
    next: u128,
    partitions: u32,
    /// Words on their way to the group.
    words: Vec<(u128, u64, BTreeSet<TopicPartition>)>,
    state: u64,
}

impl Weather {
    fn new(seed: u64) -> Self {
        let (group, clients, words) = (Membership::default(), BTreeMap::new(), Vec::new());
        Self { group, clients, next: 0, partitions: 4, words, state: seed }
    }

    fn draw(&mut self, below: usize) -> usize {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.state >> 33).unwrap() % below
    }

    fn topics(&self) -> Topics {
        topics(self.partitions)
    }

    fn step(&mut self) {
        match self.draw(12) {
            0 if self.clients.len() < 6 => self.join(),
            // Its session ended: it has stopped by itself before.
            1 => self.any_client().into_iter().for_each(|member| {
                self.clients.remove(&member);
                let topics = self.topics();
                self.group.leave(id(member), &topics);
            }),
            2 if self.partitions < 12 => {
                self.partitions += 1;
                let topics = self.topics();
                self.group.topics_changed(&topics).unwrap();
            }
            3..=6 => self.any_client().into_iter().for_each(|member| self.speak(member)),
            _ => self.hear(),
        }
        self.check();
    }

    fn any_client(&mut self) -> Option<u128> {
        let members: Vec<u128> = self.clients.keys().copied().collect();
        (!members.is_empty()).then(|| members[self.draw(members.len())])
    }

    fn join(&mut self) {
        self.next += 1;
        let topics = self.topics();
        self.group.join(id(self.next), info(), &topics).unwrap();
        self.clients.insert(self.next, Client::default());
        self.answer(self.next);
    }

    /// Lets go of some of what it should, takes up what it may, and says so.
    fn speak(&mut self, member: u128) {
        let all = self.draw(2) == 0;
        let Some(client) = self.clients.get_mut(&member) else { return };
        let going: Vec<TopicPartition> = client.has.difference(&client.may).copied().collect();
        for tp in going.into_iter().take(if all { usize::MAX } else { 1 }) {
            client.has.remove(&tp);
        }
        client.has.extend(client.may.iter().copied());
        self.words.push((member, client.epoch, client.has.clone()));
    }

    /// One of the words arrives, sometimes to come once more.
    fn hear(&mut self) {
        if self.words.is_empty() {
            return;
        }
        let (chosen, again) = (self.draw(self.words.len()), self.draw(4) == 0);
        let (member, epoch, has) =
            if again { self.words[chosen].clone() } else { self.words.swap_remove(chosen) };
        let heard = self.group.heard(id(member), MemberEpoch::new(epoch), &has);
        // A word that overtook others gets an answer that nobody waits for any more.
        if heard.is_ok() && self.draw(3) > 0 {
            self.answer(member);
        }
    }

    fn answer(&mut self, member: u128) {
        let Some((epoch, may)) = self.group.granted(id(member)) else { return };
        if let Some(client) = self.clients.get_mut(&member) {
            (client.epoch, client.may) = (epoch.get(), may);
        }
    }

    fn check(&self) {
        assert_eq!(self.group.broken_invariant(), None);
        let mut held = BTreeSet::new();
        for client in self.clients.values() {
            for tp in &client.has {
                assert!(held.insert(*tp), "two members work on partition {}", tp.partition);
            }
        }
    }

    /// Everybody is heard and answered: all partitions are worked on, as evenly as can be.
    fn calm_down(&mut self) {
        // One round lets go, the next takes up.
        for _ in 0..2 {
            for member in self.clients.keys().copied().collect::<Vec<_>>() {
                self.answer(member);
                let Some(client) = self.clients.get_mut(&member) else { continue };
                client.has = client.may.clone();
                let (epoch, has) = (MemberEpoch::new(client.epoch), client.has.clone());
                self.group.heard(id(member), epoch, &has).unwrap();
                self.check();
            }
        }
        let loads: Vec<usize> = self.clients.values().map(|client| client.has.len()).collect();
        let Some(most) = loads.iter().max() else { return };
        assert!(most - loads.iter().min().unwrap() <= 1, "{loads:?}");
        assert_eq!(loads.iter().sum::<usize>(), usize::try_from(self.partitions).unwrap());
    }
}

#[test]
fn no_two_members_ever_work_on_the_same_partition_whatever_the_weather() {
    for seed in 0..400 {
        let mut weather = Weather::new(seed);
        for _ in 0..200 {
            weather.step();
        }
        weather.calm_down();
    }
}
