//! Members, network, store and coordinator in bad weather: words are late, overtake each other or are lost; the store
//! refuses, or does what it does not confirm; the coordinator starts again; members die, leave and come.
//!
//! Members are as the client library has to be: they work on nothing that they were not given, stop by themselves when
//! their session must have ended, and read the committed offset before they work on a partition.

use super::*;

const BEAT_MS: u64 = 200;
/// After this a member takes its connection for broken and asks again.
const PATIENCE_MS: u64 = 500;

#[derive(Debug)]
enum Event {
    Arrive {
        life: u64,
        ask_id: AskId,
        ask: Ask,
    },
    Answer {
        ask_id: AskId,
        reply: GroupReply,
    },
    /// A change reaches the store; whether it is confirmed there is drawn then.
    Write {
        life: u64,
        change: Change,
        pages: BTreeMap<PageId, BTreeMap<u32, Committed>>,
    },
    Written {
        life: u64,
        done: bool,
    },
    Read {
        life: u64,
    },
    Wake {
        client: usize,
    },
    Tick,
}

#[derive(Debug, Default)]
struct Client {
    member: u128,
    beats: u64,
    dead: bool,
    joined: bool,
    epoch: u64,
    may: BTreeSet<TopicPartition>,
    /// What it works on, with the next offset to read.
    has: BTreeMap<TopicPartition, u64>,
    /// Asked and not answered: what, when.
    asked: Option<(AskId, u64)>,
    /// Its session lasts at least until then.
    until: u64,
}

struct Weather {
    state: u64,
    now: u64,
    calm: bool,
    calendar: BTreeMap<(u64, u64), Event>,
    events: u64,
    coordinator: Coordinator,
    /// Coordinators so far: the claim. What an earlier one is told is nobody's, and what it stores is refused.
    life: u64,
    asks: u64,
    members: u128,
    clients: Vec<Client>,
    stored: Option<StoredGroup>,
    /// One time in so many somebody comes.
    come_seldom: u64,
    /// How often the group went.
    deletions: u64,
}

impl Weather {
    fn new(seed: u64) -> Self {
        let mut weather = Self {
            state: seed,
            now: 0,
            calm: false,
            calendar: BTreeMap::new(),
            events: 0,
            coordinator: Coordinator::new(topics(), SETTINGS),
            life: 0,
            asks: 0,
            members: 0,
            clients: Vec::new(),
            stored: None,
            come_seldom: if seed.is_multiple_of(3) { 500 } else { 100 },
            deletions: 0,
        };
        weather.start();
        weather.plan(1, Event::Tick);
        for _ in 0..if seed.is_multiple_of(3) { 1 } else { 3 } {
            weather.come();
        }
        weather
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % below
    }

    fn plan(&mut self, after: u64, event: Event) {
        self.events += 1;
        self.calendar.insert((self.now + after, self.events), event);
    }

    /// How long something takes on its way; none if it is lost.
    fn way(&mut self) -> Option<u64> {
        match self.draw(40) {
            0 if !self.calm => None,
            1..=4 if !self.calm => Some(self.draw(1_500)),
            _ => Some(self.draw(5)),
        }
    }

    fn start(&mut self) {
        self.life += 1;
        self.coordinator = Coordinator::new(topics(), SETTINGS);
        self.read();
    }

    fn come(&mut self) {
        self.members += 1;
        self.clients.push(Client { member: self.members, ..Client::default() });
        self.plan(1, Event::Wake { client: self.clients.len() - 1 });
    }

    fn tell(&mut self, input: GroupInput) {
        let mut out = Vec::new();
        let is_read = matches!(input, GroupInput::Loaded { .. });
        let read_up_to =
            |coordinator: &Coordinator| coordinator.read_up_to(tp(0).topic, PARTITIONS, &[group()]);
        let before = read_up_to(&self.coordinator);
        self.coordinator.step(at(self.now), input, &mut out);
        let went_back = (0..).zip(before.into_iter().zip(read_up_to(&self.coordinator)));
        let went_back = went_back.filter(|(_, (before, after))| before > after).map(|(number, _)| tp(number));
        let said = out.iter().filter_map(|effect| match effect {
            GroupEffect::WentBack { partitions } => Some(partitions),
            _ => None,
        });
        // What is read anew is said with the next look: nobody was answered.
        if !is_read {
            assert!(went_back.eq(said.flatten().copied()));
        }
        let life = self.life;
        for effect in out {
            match effect {
                GroupEffect::WentBack { .. } => {}
                GroupEffect::Load { .. } => self.plan(3, Event::Read { life }),
                GroupEffect::Store { change, pages, .. } => {
                    let after = self.draw(20);
                    self.plan(after, Event::Write { life, change, pages });
                }
                GroupEffect::Reply { ask_id, reply } => {
                    if let Some(after) = self.way() {
                        self.plan(after, Event::Answer { ask_id, reply });
                    }
                }
            }
        }
    }

    fn read(&mut self) {
        let stored = self.stored.clone();
        self.tell(GroupInput::Loaded { group: group(), stored });
    }

    /// The store takes a change if its coordinator still has the claim.
    fn write(&mut self, life: u64, change: &Change, pages: BTreeMap<PageId, BTreeMap<u32, Committed>>) {
        let luck = if self.calm { 9 } else { self.draw(20) };
        let done = life == self.life && luck > 0;
        if done {
            let mut stored = self.stored.take().unwrap_or_default();
            for (page, rows) in pages {
                for (&partition, next) in &rows {
                    let before =
                        stored.offsets.get(&tp(partition)).map_or(0, |committed| committed.offset.get());
                    assert!(next.offset.get() >= before, "what was committed in partition {partition} fell");
                }
                stored.offsets.retain(|tp, _| PageId::of(*tp) != page);
                let places = rows.into_iter().map(|(partition, row)| (tp(partition), row));
                stored.offsets.extend(places);
            }
            if let Change::Put(membership) = change {
                // As it is written, and read again.
                stored.membership = Membership::restore(membership.record()).unwrap();
            }
            self.stored = Some(stored).filter(|_| *change != Change::Delete);
            self.deletions += u64::from(self.stored.is_none());
        }
        self.plan(1, Event::Written { life, done: done && luck > 1 });
    }

    fn works(&self, client: &Client) -> bool {
        !client.dead && client.joined && self.now < client.until
    }

    fn wake(&mut self, number: usize) {
        let pause = 1 + self.draw(60);
        self.plan(pause, Event::Wake { client: number });
        let now = self.now;
        // In calm weather nobody dies or leaves.
        let trouble = if self.calm { 2 + self.draw(98) } else { self.draw(100) };
        let client = &mut self.clients[number];
        if client.dead {
            return;
        }
        if client.joined && now >= client.until {
            self.members += 1;
            self.clients[number] = Client { member: self.members, ..Client::default() };
            return;
        }
        if client.asked.is_some_and(|(_, sent)| now < sent + PATIENCE_MS) {
            return;
        }
        let Some(ask) = ask_of(client, trouble) else {
            client.dead = true;
            return;
        };
        if matches!(ask, Ask::Leave { .. }) {
            (client.dead, client.joined) = (true, false);
        }
        self.asks += 1;
        let ask_id = AskId(self.asks);
        client.asked = Some((ask_id, now));
        if let Some(after) = self.way() {
            let life = self.life;
            self.plan(after, Event::Arrive { life, ask_id, ask });
        }
    }

    fn answer(&mut self, ask_id: AskId, reply: GroupReply) {
        let asked = |client: &Client| client.asked.is_some_and(|(asked, _)| asked == ask_id);
        let Some(number) = self.clients.iter().position(asked) else { return };
        let members = self.members;
        let client = &mut self.clients[number];
        let Some((_, sent)) = client.asked.take().filter(|_| !client.dead) else { return };
        match reply {
            GroupReply::Granted { epoch, partitions } => {
                (client.joined, client.epoch, client.may) = (true, epoch.get(), partitions);
                client.until = sent + u64::try_from(SESSION.as_millis()).unwrap();
            }
            GroupReply::Offsets(offsets) => {
                for tp in client.may.clone() {
                    let from = offsets.get(&tp).map_or(0, |committed| committed.offset.get());
                    client.has.entry(tp).or_insert(from);
                }
            }
            GroupReply::Refused(GroupRefusal::Member(_)) => {
                self.members += 1;
                *client = Client { member: members + 1, ..Client::default() };
            }
            GroupReply::Committed(_) | GroupReply::Left | GroupReply::Deleted | GroupReply::Refused(_) => {}
        }
        self.check();
    }

    fn check(&self) {
        let mut worked_on = BTreeSet::new();
        for client in self.clients.iter().filter(|client| self.works(client)) {
            for tp in client.has.keys() {
                assert!(worked_on.insert(*tp), "two members work on partition {}", tp.partition);
            }
        }
    }

    fn run_until(&mut self, end: u64) {
        while let Some(entry) = self.calendar.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((now, _), event) = entry.remove_entry();
            self.now = now;
            match event {
                Event::Arrive { life, ask_id, ask } if life == self.life => {
                    self.tell(GroupInput::Ask { ask_id, group: group(), ask });
                }
                Event::Write { life, change, pages } => self.write(life, &change, pages),
                Event::Written { life, done } if life == self.life => {
                    self.tell(GroupInput::Stored { group: group(), done });
                }
                Event::Read { life } if life == self.life => self.read(),
                Event::Arrive { .. } | Event::Written { .. } | Event::Read { .. } => {}
                Event::Answer { ask_id, reply } => self.answer(ask_id, reply),
                Event::Wake { client } => self.wake(client),
                Event::Tick => {
                    self.tell(GroupInput::Tick);
                    self.plan(10, Event::Tick);
                    if !self.calm && self.draw(400) == 0 {
                        self.start();
                    }
                    if !self.calm && self.draw(100) == 0 {
                        self.asks += 1;
                        let (ask_id, ask) = (AskId(self.asks), Ask::Delete { topic: None });
                        self.tell(GroupInput::Ask { ask_id, group: group(), ask });
                    }
                    if !self.calm && self.clients.len() < 12 && self.draw(self.come_seldom) == 0 {
                        self.come();
                    }
                }
            }
        }
    }

    /// Every partition is worked on, evenly, by those who are left, and all of them get on.
    fn check_calm(&mut self, end: u64) {
        let offsets = |weather: &Self| weather.stored.clone().unwrap_or_default().offsets;
        let before = offsets(self);
        self.run_until(end);
        let alive: Vec<&Client> = self.clients.iter().filter(|client| !client.dead).collect();
        if alive.is_empty() {
            return;
        }
        let loads: Vec<usize> = alive.iter().map(|client| client.has.len()).collect();
        let spread = loads.iter().max().unwrap() - loads.iter().min().unwrap();
        assert!(spread <= 1, "{loads:?}");
        assert_eq!(loads.iter().sum::<usize>(), usize::try_from(PARTITIONS).unwrap());
        let after = offsets(self);
        for partition in 0..PARTITIONS {
            let now = after[&tp(partition)].offset;
            let stuck = before.get(&tp(partition)).is_some_and(|before| before.offset >= now);
            assert!(!stuck, "nobody gets on with partition {partition}");
        }
    }
}

/// What a member does next; none if it dies.
fn ask_of(client: &mut Client, trouble: u64) -> Option<Ask> {
    let member = MemberId::new(client.member);
    if !client.joined {
        return Some(Ask::Join { member, info: info() });
    }
    let epoch = MemberEpoch::new(client.epoch);
    Some(match trouble {
        0 => return None,
        1 => Ask::Leave { member, away: false },
        _ if client.may.iter().any(|tp| !client.has.contains_key(tp)) => Ask::Offsets,
        2..=40 => {
            client.has.values_mut().for_each(|offset| *offset += 1);
            commit_of(client)
        }
        _ => {
            client.has.retain(|tp, _| client.may.contains(tp));
            let has = client.has.keys().copied().collect();
            client.beats += 1;
            let beat = client.beats;
            Ask::Heartbeat { member, epoch, has, beat, info: None, wait: Duration::from_millis(BEAT_MS) }
        }
    })
}

fn commit_of(client: &Client) -> Ask {
    let member = Some((MemberId::new(client.member), MemberEpoch::new(client.epoch)));
    let offsets = client.has.iter().map(|(&tp, &offset)| (tp, committed(offset))).collect();
    Ask::Commit { member, offsets }
}

#[test]
fn a_group_in_bad_weather_works_on_everything_once_and_gets_on_when_it_calms() {
    let mut deletions = 0;
    for seed in 0..300 {
        let mut weather = Weather::new(seed);
        weather.run_until(10_000);
        weather.calm = true;
        weather.run_until(17_000);
        weather.check_calm(30_000);
        deletions += weather.deletions;
    }
    assert!(deletions > 10, "the group went {deletions} times only");
}
