//! Which member is to have which partition: pure functions from who subscribes to what to a target assignment.
//!
//! Called by the group's membership whenever a member, a subscription or a partition comes or goes. Invariants: every
//! partition of a subscribed topic has exactly one owner, who subscribes to its topic; the same input gives the same
//! assignment. Refuses to know who holds a partition at the moment beyond what it is told, and when a move is safe.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use corelog_wire::ids::{TopicId, TopicPartition};
use corelog_wire::message::Assignor;

/// Gives every partition of a subscribed topic to one subscriber.
///
/// `subscriptions` are each member's topics; `partitions` is how many partitions a topic has, and a topic that is not in
/// it does not exist; `current` is who had what before.
#[must_use]
pub(super) fn assign<M: Copy + Ord>(
    assignor: Assignor,
    subscriptions: &BTreeMap<M, BTreeSet<TopicId>>,
    partitions: &BTreeMap<TopicId, u32>,
    current: &BTreeMap<TopicPartition, M>,
) -> BTreeMap<TopicPartition, M> {
    match assignor {
        Assignor::Uniform => Uniform::new(subscriptions, partitions, current).assign(),
        Assignor::Range => range(subscriptions, partitions),
    }
}

/// Contiguous ranges per topic; the first members get one partition more where the division leaves a rest.
fn range<M: Copy + Ord>(
    subscriptions: &BTreeMap<M, BTreeSet<TopicId>>,
    partitions: &BTreeMap<TopicId, u32>,
) -> BTreeMap<TopicPartition, M> {
    let mut target = BTreeMap::new();
    for (&topic, &count) in partitions {
        let members: Vec<M> = subscribers(subscriptions, topic).collect();
        let Ok(shares) = u32::try_from(members.len()) else { continue };
        if shares == 0 {
            continue;
        }
        let (share, rest) = (count / shares, count % shares);
        let mut next = 0;
        for (place, &member) in (0u32..).zip(&members) {
            let end = next + share + u32::from(place < rest);
            target.extend((next..end).map(|partition| (TopicPartition::new(topic, partition), member)));
            next = end;
        }
    }
    target
}

fn subscribers<M: Copy + Ord>(
    subscriptions: &BTreeMap<M, BTreeSet<TopicId>>,
    topic: TopicId,
) -> impl Iterator<Item = M> {
    subscriptions.iter().filter(move |(_, topics)| topics.contains(&topic)).map(|(&member, _)| member)
}

/// A spread under construction: what each member has, by topic.
///
/// Evenness is that of an optimal semi-matching: no partition can be handed along a chain of members so that a member
/// loses one and another, who then still has fewer, gains one (Harvey, Ladner, Lovász, Tamir: "Semi-matchings for
/// bipartite graphs and load balancing", 2003). With equal subscriptions loads differ by one at most.
struct Uniform<'a, M> {
    subscriptions: &'a BTreeMap<M, BTreeSet<TopicId>>,
    held: BTreeMap<M, BTreeMap<TopicId, BTreeSet<u32>>>,
    loads: BTreeMap<M, usize>,
    /// Partitions nobody has, in order.
    free: Vec<TopicPartition>,
}

impl<'a, M: Copy + Ord> Uniform<'a, M> {
    /// Leaves every partition with the member that has it, where that member may still have it.
    fn new(
        subscriptions: &'a BTreeMap<M, BTreeSet<TopicId>>,
        partitions: &BTreeMap<TopicId, u32>,
        current: &BTreeMap<TopicPartition, M>,
    ) -> Self {
        let mut spread = Self {
            subscriptions,
            held: subscriptions.keys().map(|&member| (member, BTreeMap::new())).collect(),
            loads: subscriptions.keys().map(|&member| (member, 0)).collect(),
            free: Vec::new(),
        };
        for (&topic, &count) in partitions {
            for partition in 0..count {
                let tp = TopicPartition::new(topic, partition);
                match current.get(&tp) {
                    Some(&member) if spread.may_have(member, topic) => spread.give(member, tp),
                    _ => spread.free.push(tp),
                }
            }
        }
        spread
    }

    fn assign(mut self) -> BTreeMap<TopicPartition, M> {
        for tp in std::mem::take(&mut self.free) {
            let lightest = subscribers(self.subscriptions, tp.topic).min_by_key(|member| self.loads[member]);
            // A topic without subscribers is nobody's.
            if let Some(member) = lightest {
                self.give(member, tp);
            }
        }
        while let Some(chain) = self.uneven_chain() {
            self.hand_along(&chain);
        }
        let mut target = BTreeMap::new();
        for (member, topics) in self.held {
            for (topic, partitions) in topics {
                target.extend(
                    partitions.into_iter().map(|number| (TopicPartition::new(topic, number), member)),
                );
            }
        }
        target
    }

    fn may_have(&self, member: M, topic: TopicId) -> bool {
        self.subscriptions.get(&member).is_some_and(|topics| topics.contains(&topic))
    }

    fn give(&mut self, member: M, tp: TopicPartition) {
        let topics = self.held.entry(member).or_default();
        if topics.entry(tp.topic).or_default().insert(tp.partition) {
            *self.loads.entry(member).or_default() += 1;
        }
    }

    /// The members along which a partition each should be handed: the first has at least two more than the last. Looks
    /// from the heaviest member down.
    fn uneven_chain(&self) -> Option<Vec<(M, TopicId)>> {
        let mut heaviest: Vec<(usize, M)> =
            self.loads.iter().map(|(&member, &load)| (load, member)).collect();
        heaviest.sort_by_key(|&(load, member)| (std::cmp::Reverse(load), member));
        let lightest = heaviest.last()?.0;
        let heavy = heaviest.into_iter().take_while(|&(load, _)| load >= lightest + 2);
        heavy.map(|(_, member)| member).find_map(|member| self.chain_from(member))
    }

    /// The shortest chain from a member to the lightest that it reaches, as (receiver, topic) pairs behind a first pair
    /// that names the giver. None if that one is not lighter by two.
    fn chain_from(&self, giver: M) -> Option<Vec<(M, TopicId)>> {
        let mut reached_by: BTreeMap<M, (M, TopicId)> = BTreeMap::new();
        let mut queue = VecDeque::from([giver]);
        while let Some(member) = queue.pop_front() {
            let topics = self.held[&member].iter().filter(|(_, partitions)| !partitions.is_empty());
            for (&topic, _) in topics {
                for receiver in subscribers(self.subscriptions, topic) {
                    if receiver != giver && !reached_by.contains_key(&receiver) {
                        reached_by.insert(receiver, (member, topic));
                        queue.push_back(receiver);
                    }
                }
            }
        }
        let last = reached_by.keys().copied().min_by_key(|member| self.loads[member])?;
        if self.loads[&last] + 2 > self.loads[&giver] {
            return None;
        }
        let mut chain = Vec::new();
        let mut member = last;
        while member != giver {
            let (from, topic) = reached_by[&member];
            chain.push((member, topic));
            member = from;
        }
        let first_topic = chain.last().map(|&(_, topic)| topic)?;
        chain.push((giver, first_topic));
        chain.reverse();
        Some(chain)
    }

    /// Hands one partition from each member of a chain to the next.
    fn hand_along(&mut self, chain: &[(M, TopicId)]) {
        for pair in chain.windows(2) {
            let [(from, _), (to, topic)] = *pair else { continue };
            let partitions = self.held.get_mut(&from).and_then(|topics| topics.get_mut(&topic));
            if let Some(partition) = partitions.and_then(BTreeSet::pop_last) {
                *self.loads.entry(from).or_default() -= 1;
                self.give(to, TopicPartition::new(topic, partition));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Subscriptions = BTreeMap<u32, BTreeSet<TopicId>>;
    type Assignment = BTreeMap<TopicPartition, u32>;

    fn topic(number: u8) -> TopicId {
        TopicId::from_bytes([number; 16])
    }

    fn subscriptions(members: &[(u32, &[u8])]) -> Subscriptions {
        members
            .iter()
            .map(|&(member, topics)| (member, topics.iter().map(|&number| topic(number)).collect()))
            .collect()
    }

    fn partitions(topics: &[(u8, u32)]) -> BTreeMap<TopicId, u32> {
        topics.iter().map(|&(number, count)| (topic(number), count)).collect()
    }

    fn loads(assignment: &Assignment, members: &Subscriptions) -> Vec<usize> {
        members.keys().map(|member| assignment.values().filter(|owner| *owner == member).count()).collect()
    }

    fn moved(before: &Assignment, after: &Assignment) -> usize {
        before.iter().filter(|(tp, owner)| after.get(tp).is_some_and(|now| now != *owner)).count()
    }

    #[test]
    fn range_keeps_neighbours_together_and_topics_aligned() {
        let members = subscriptions(&[(1, &[1, 2]), (2, &[1, 2]), (3, &[1, 2])]);
        let target = assign(Assignor::Range, &members, &partitions(&[(1, 7), (2, 7)]), &BTreeMap::new());
        for number in [1, 2] {
            let owners: Vec<u32> =
                (0..7).map(|partition| target[&TopicPartition::new(topic(number), partition)]).collect();
            assert_eq!(owners, [1, 1, 1, 2, 2, 3, 3]);
        }
    }

    #[test]
    fn a_member_that_joins_takes_its_share_and_nothing_else_moves() {
        let topics = partitions(&[(1, 24)]);
        let mut current = Assignment::new();
        let mut members = Subscriptions::new();
        for joined in 1..=6u32 {
            members.extend(subscriptions(&[(joined, &[1])]));
            let target = assign(Assignor::Uniform, &members, &topics, &current);
            let share = 24 / usize::try_from(joined).unwrap();
            if joined > 1 {
                assert_eq!(moved(&current, &target), share, "{joined} members");
            }
            current = target;
        }
        assert_eq!(loads(&current, &members), [4; 6]);
    }

    #[test]
    fn a_member_that_goes_leaves_only_its_own_partitions_to_be_moved() {
        let topics = partitions(&[(1, 23)]);
        let mut members = subscriptions(&[(1, &[1]), (2, &[1]), (3, &[1]), (4, &[1])]);
        let before = assign(Assignor::Uniform, &members, &topics, &BTreeMap::new());
        let had = before.values().filter(|owner| **owner == 2).count();
        members.remove(&2);
        let after = assign(Assignor::Uniform, &members, &topics, &before);
        assert_eq!(moved(&before, &after), had);
        let loads = loads(&after, &members);
        assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{loads:?}");
    }

    #[test]
    fn surplus_members_are_idle_and_topics_without_subscribers_are_nobodys() {
        let members = subscriptions(&[(1, &[1]), (2, &[1]), (3, &[1])]);
        let target = assign(Assignor::Uniform, &members, &partitions(&[(1, 2), (2, 5)]), &BTreeMap::new());
        assert_eq!(target.len(), 2);
        assert_eq!(loads(&target, &members), [1, 1, 0]);
        assert!(assign(Assignor::Uniform, &Subscriptions::new(), &partitions(&[(1, 2)]), &target).is_empty());
    }

    #[test]
    fn a_load_moves_along_a_chain_of_members_where_no_direct_move_helps() {
        // The first has six of topic 1 and may give them to the second only, who may give topic 2 to the third.
        let members = subscriptions(&[(1, &[1]), (2, &[1, 2]), (3, &[2])]);
        let topics = partitions(&[(1, 6), (2, 3)]);
        let mut current = Assignment::new();
        current.extend((0..6).map(|partition| (TopicPartition::new(topic(1), partition), 1)));
        current.extend((0..3).map(|partition| (TopicPartition::new(topic(2), partition), 2)));
        let target = assign(Assignor::Uniform, &members, &topics, &current);
        assert_eq!(loads(&target, &members), [3, 3, 3]);
    }

    /// Small random worlds, members coming, going and changing their minds, against what must hold.
    #[test]
    fn assignments_are_whole_legal_and_even_whatever_happens() {
        let mut state = 1u64;
        let mut draw = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let topics: BTreeMap<TopicId, u32> =
                (1..=3).map(|number| (topic(number), u32::try_from(draw(12)).unwrap())).collect();
            let mut current = Assignment::new();
            for _ in 0..4 {
                let equal = draw(2) == 0;
                let mut members = Subscriptions::new();
                for member in 0..=u32::try_from(draw(6)).unwrap() {
                    let chosen: BTreeSet<TopicId> =
                        topics.keys().copied().filter(|_| equal || draw(2) == 0).collect();
                    members.insert(member, chosen);
                }
                for assignor in [Assignor::Range, Assignor::Uniform] {
                    let target = assign(assignor, &members, &topics, &current);
                    assert_eq!(target, assign(assignor, &members, &topics, &current));
                    for (&topic, &count) in &topics {
                        let wanted = members.values().any(|chosen| chosen.contains(&topic));
                        for partition in 0..count {
                            let owner = target.get(&TopicPartition::new(topic, partition));
                            assert_eq!(owner.is_some(), wanted);
                            assert!(owner.is_none_or(|owner| members[owner].contains(&topic)));
                        }
                    }
                    if assignor == Assignor::Uniform {
                        let loads = loads(&target, &members);
                        let spread = loads.iter().max().unwrap() - loads.iter().min().unwrap();
                        assert!(!equal || spread <= 1, "{loads:?}");
                        current = target;
                    }
                }
            }
        }
    }
}
