//! The group actor: the one task that turns requests about consumer groups into questions to the coordinator, carries
//! its changes to the metadata store, and answers.
//!
//! Runs on the control thread. Requests come from the network hands of every shard over one bounded channel. Changes of
//! different groups are on their way to the store at the same time; of one group there is one at most, which is the
//! coordinator's doing. Invariants: every request is answered once, a refusal when the broker stops; nothing here waits
//! for the store before it takes the next request. Refuses to know who may have what, and how groups are written.

mod lag;
mod protect;

use crate::meta::groups::{Claim, GroupStore, GroupStoreError};
use crate::net::ControlRequest;
use crate::rt::Clock;
use corelog_core::group::{
    self, Ask, AskId, Coordinator, CoordinatorSettings, GroupEffect, GroupInput, GroupName, GroupReply,
    Question, Topics,
};
use corelog_core::shard::Reader;
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Kind;
use corelog_wire::message::{Answer, Refusal, Request};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub use lag::LagMeter;
use lag::Watchman;
pub use protect::Protecting;
use protect::Protector;

/// How long a group is left alone after the store failed it.
const STORE_RETRY: Duration = Duration::from_millis(100);
/// How often shards are told what protected groups have read, and groups are looked at that retention may overtake.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long answers wait for shards that have to know before.
const TAKEN_PATIENCE: Duration = Duration::from_secs(1);
/// How long changes that are on their way may take when the broker stops.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// What the actor is given.
#[derive(Debug)]
pub struct Groups {
    coordinator: Coordinator,
    store: GroupStore,
    claims: BTreeMap<GroupName, Claim>,
    clock: Clock,
    /// Who waits for an answer.
    asked: BTreeMap<AskId, Asked>,
    next_ask: u64,
    /// Reads and changes of the store that are under way.
    work: JoinSet<Done>,
    topics: watch::Receiver<Arc<Topics>>,
    protector: Protector,
    meter: LagMeter,
    watchman: Watchman,
    /// The look at groups that retention may overtake.
    look: JoinSet<Vec<(Reader, Option<Duration>)>>,
}

/// A request that the coordinator was asked about.
#[derive(Debug)]
struct Asked {
    kind: Kind,
    answer_bytes_max: u64,
    reply: oneshot::Sender<Answer>,
}

/// What became of work.
#[derive(Debug)]
struct Done {
    group: GroupName,
    input: GroupInput,
    claim: Claim,
}

impl Groups {
    /// An actor that knows all groups of the store, and the topics as they are now.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn new(
        store: GroupStore,
        settings: CoordinatorSettings,
        mut topics: watch::Receiver<Arc<Topics>>,
        protecting: watch::Receiver<Arc<Protecting>>,
        meter: LagMeter,
    ) -> Result<Self, GroupStoreError> {
        let known = Topics::clone(&topics.borrow_and_update());
        let mut protector = Protector::new(protecting, meter.clone());
        let protected = protector.protected();
        let mut groups = Self {
            coordinator: Coordinator::new(known, settings),
            claims: BTreeMap::new(),
            clock: Clock::new(),
            asked: BTreeMap::new(),
            next_ask: 0,
            work: JoinSet::new(),
            topics,
            protector,
            meter,
            watchman: Watchman::default(),
            look: JoinSet::new(),
            store,
        };
        // Before there are groups, so that none expires that is away and protected.
        groups.tell(GroupInput::Protected(protected));
        for (group, stored, claim) in groups.store.read_all().await? {
            groups.claims.insert(group.clone(), claim);
            groups.tell(GroupInput::Loaded { group, stored: Some(stored) });
        }
        Ok(groups)
    }

    /// Answers requests until the last asker is gone or `stop` fires.
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<ControlRequest>,
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Not behind requests, of which there may be no end.
            if self.coordinator.next_tick().is_some_and(|due| due <= self.clock.instant()) {
                self.tell(GroupInput::Tick);
            }
            let tick = self.coordinator.next_tick().map(|due| self.clock.until(due));
            let due = async {
                match tick {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = &mut stop => return self.end(requests).await,
                Some(done) = self.work.join_next() => self.done(done),
                Ok(()) = self.topics.changed() => {
                    let topics = Topics::clone(&self.topics.borrow_and_update());
                    self.tell(GroupInput::Topics(topics));
                }
                () = self.protector.changed() => {
                    let protected = self.protector.protected();
                    self.tell(GroupInput::Protected(protected));
                }
                Some(seen) = self.look.join_next() => {
                    self.watchman.seen(seen.unwrap_or_default(), self.coordinator.topics());
                }
                _ = looks.tick() => {
                    self.protector.tell_all(&self.coordinator);
                    // One look at a time: a shard may take long to answer.
                    if !self.look.is_empty() {
                        continue;
                    }
                    let readers = self.watchman.next(&self.coordinator);
                    if !readers.is_empty() {
                        self.look.spawn(self.meter.clone().look(readers));
                    }
                }
                request = requests.recv() => {
                    let Some(request) = request else { return };
                    self.take(request);
                }
                // Done where the loop begins.
                () = due => {}
            }
        }
    }

    /// Answers what waits for changes that are on their way, and refuses the rest.
    async fn end(mut self, mut requests: mpsc::Receiver<ControlRequest>) {
        requests.close();
        let settled = async {
            while let Some(done) = self.work.join_next().await {
                self.done(done);
            }
        };
        drop(tokio::time::timeout(STOP_PATIENCE, settled).await);
        let asked = self.asked.into_values().map(|asked| (asked.kind, asked.reply));
        let waiting = std::iter::from_fn(|| requests.try_recv().ok());
        for (kind, reply) in asked.chain(waiting.map(|request| (request.request.kind(), request.reply))) {
            let refusal = Refusal::new(ErrorCode::ShuttingDown, "the broker is stopping");
            drop(reply.send(Answer::Refused { kind, refusal }));
        }
    }

    fn take(&mut self, request: ControlRequest) {
        let ControlRequest { request, answer_bytes_max, reply } = request;
        let kind = request.kind();
        let answer = match request {
            Request::ListGroups(list) => Answer::ListGroups(group::listed(&self.coordinator, &list)),
            Request::DescribeGroup(describe) => {
                let described = group::named(&describe.group).and_then(|group| {
                    Ok((group::described(&self.coordinator, &group, answer_bytes_max)?, group))
                });
                match described {
                    Ok((answer, group)) => {
                        tokio::spawn(self.meter.clone().complete(group, answer, reply));
                        return;
                    }
                    Err(refusal) => Answer::Refused { kind, refusal },
                }
            }
            request => match Question::of(request) {
                Ok(Question { group, ask }) => {
                    return self.ask(group, ask, Asked { kind, answer_bytes_max, reply });
                }
                Err(refusal) => Answer::Refused { kind, refusal },
            },
        };
        // An asker that left needs no answer.
        drop(reply.send(answer));
    }

    fn ask(&mut self, group: GroupName, ask: Ask, asked: Asked) {
        self.next_ask += 1;
        let ask_id = AskId(self.next_ask);
        self.asked.insert(ask_id, asked);
        self.tell(GroupInput::Ask { ask_id, group, ask });
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        // Work neither panics nor is it cancelled.
        let Ok(Done { group, input, claim }) = done else { return };
        self.claims.insert(group, claim);
        self.tell(input);
        // A group that is not kept needs no claim either.
        if self.claims.len() > 2 * self.coordinator.len() + 1_000 {
            self.claims.retain(|group, _| self.coordinator.knows(group));
        }
    }

    fn tell(&mut self, input: GroupInput) {
        let mut effects = Vec::new();
        self.coordinator.step(self.clock.now(), input, &mut effects);
        let (mut answers, mut word) = (Vec::new(), None);
        for effect in effects {
            match effect {
                GroupEffect::Reply { ask_id, reply } => answers.extend(self.answer(ask_id, reply)),
                GroupEffect::WentBack { partitions } => {
                    word = self.protector.tell_back(&partitions, &self.coordinator);
                }
                GroupEffect::Load { group } => {
                    self.work.spawn(load(self.store.clone(), group));
                }
                GroupEffect::Store { group, change, pages } => {
                    let (store, claim) = (self.store.clone(), self.claims.get(&group).copied().flatten());
                    self.work.spawn(async move {
                        let stored = store.store(&group, &change, pages, claim).await;
                        if let Err(error) = &stored {
                            tracing::warn!(%group, %error, "a change of a consumer group is not confirmed");
                            tokio::time::sleep(STORE_RETRY).await;
                        }
                        let input = GroupInput::Stored { group: group.clone(), done: stored.is_ok() };
                        Done { group, input, claim: stored.ok().flatten() }
                    });
                }
            }
        }
        let Some(word) = word else { return send(answers) };
        tokio::spawn(async move {
            // A shard that is that slow removes nothing meanwhile either.
            drop(tokio::time::timeout(TAKEN_PATIENCE, word).await);
            send(answers);
        });
    }

    fn answer(&mut self, ask_id: AskId, reply: GroupReply) -> Option<(oneshot::Sender<Answer>, Answer)> {
        let Asked { kind, answer_bytes_max, reply: asker } = self.asked.remove(&ask_id)?;
        Some((asker, group::answer(kind, reply, self.coordinator.topics(), answer_bytes_max)))
    }
}

fn send(answers: Vec<(oneshot::Sender<Answer>, Answer)>) {
    for (asker, answer) in answers {
        // An asker that left needs no answer.
        drop(asker.send(answer));
    }
}

/// Reads a group until that succeeds: nobody is answered about it meanwhile.
async fn load(store: GroupStore, group: GroupName) -> Done {
    loop {
        match store.load(&group).await {
            Ok((stored, claim)) => {
                return Done { group: group.clone(), input: GroupInput::Loaded { group, stored }, claim };
            }
            Err(error) => {
                tracing::warn!(%group, %error, "a consumer group cannot be read");
                tokio::time::sleep(STORE_RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
