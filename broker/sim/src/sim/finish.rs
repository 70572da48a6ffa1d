//! The end of a run: troubles cease, everything must be answered, and everything must be there after a last power cut.

use super::{Event, Seat, Sim};
use crate::checker::check_segments;
use crate::client::Client;
use crate::disk::CutStyle;
use crate::world::{MILLIS, SECONDS};
use corelog_core::limits::GROWTH_STEP_BYTES;
use corelog_core::topic::FullPolicy;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::TopicPartition;

/// How often it is looked whether everything has its answer.
const RECHECK: u64 = 500 * MILLIS;

/// After the last power cut everything is read once more: within this time, or further in each such time. A spoiled
/// segment is read from its start for each batch that it may still hold.
const LAST_AUDIT: u64 = 8 * SECONDS;

impl Sim {
    /// The last trouble is over. Where producers were to wait for room, an operator makes some.
    pub(super) fn heal(&mut self) {
        self.trace.event("heal", &[]);
        self.healed = true;
        self.disk.heal();
        self.disk.set_capacity(self.plan.capacity);
        for topic in 0..self.topics.len() {
            let config = &mut self.topics[topic].config;
            if config.full_policy != FullPolicy::DropOldest {
                config.full_policy = FullPolicy::BlockProducer;
                config.protect_groups.clear();
                config.retention_bytes = Some(config.segment_bytes);
                self.configure_topic(topic);
            }
        }
    }

    /// Every request must have its answer; then the power goes once more.
    pub(super) fn settle(&mut self) {
        let last = self.world.nanos() + RECHECK >= self.plan.settled_by;
        if !self.up {
            self.settle_later(last, "the broker is not up long after the last trouble".to_owned());
            return;
        }
        for index in 0..self.clients.len() {
            let Some(Client::Producer(producer)) = &self.clients[index].client else { continue };
            if let Some((tp, batch, refusal)) = producer.stuck()
                && !self.may_wait(tp, refusal)
            {
                self.settle_later(
                    last,
                    format!("{tp}: batch {batch} has no answer (last refusal {refusal})"),
                );
                return;
            }
        }
        let records = self.clients.iter().find_map(|seated| match &seated.client {
            Some(Client::Library(library)) => library.stuck(),
            _ => None,
        });
        if let Some((batch, refusal)) = records {
            self.settle_later(
                last,
                format!("batch {batch} of a library has not ended (last refusal {refusal})"),
            );
            return;
        }
        self.cut_power(CutStyle::AllOld);
        self.plan.end = self.world.nanos() + LAST_AUDIT;
    }

    fn settle_later(&mut self, last: bool, what: String) {
        if last {
            self.checker.violated(format!("liveness: {what}"));
        } else {
            self.world.after(RECHECK, Event::Settled);
        }
    }

    /// Whether a batch may be without an answer: the shard said that it is corrupt, or its budget is really used up.
    fn may_wait(&self, tp: TopicPartition, refusal: ErrorCode) -> bool {
        let shard = usize::from(self.shard_of(tp));
        let Seat::Up(hands) = &self.seats[shard] else { return false };
        let snapshot = hands.shard().snapshot();
        self.trace.say(format_args!("{snapshot:?} {:?}", hands.shard().describe(tp)));
        let used_up = snapshot.disk_bytes + 4 * GROWTH_STEP_BYTES > snapshot.disk_bytes_max;
        self.quarantined[shard] || (refusal == ErrorCode::DiskFull && used_up)
    }

    /// Gives more time to audits that came further since time was up last.
    pub(super) fn audits_go_on(&mut self) -> bool {
        let busy = |client: &Client| match client {
            Client::Auditor(auditor) if auditor.is_busy() => Some(auditor.waits_for()),
            _ => None,
        };
        let waits: Vec<_> = self.clients.iter().filter_map(|seated| busy(seated.client.as_ref()?)).collect();
        if waits.is_empty() || waits == self.audited {
            return false;
        }
        self.audited = waits;
        self.plan.end += LAST_AUDIT;
        true
    }

    /// What must hold when time is up.
    pub(super) fn finish(&mut self) {
        for seated in &self.clients {
            if let Some(Client::Auditor(auditor)) = &seated.client
                && auditor.is_busy()
            {
                let what = format!("liveness: the last audit waits for {:?}", auditor.waits_for());
                self.checker.violated(what);
            }
        }
        for seat in &self.seats {
            if let Seat::Up(hands) = seat {
                if let Err(what) = check_segments(&self.disk, hands.shadow(), &self.checker) {
                    self.checker.violated(what);
                }
                if let Some(what) = hands.shard().broken_invariant() {
                    self.checker.violated(format!("invariant at the end: {what}"));
                }
            }
        }
        if !self.up && !self.given_up {
            self.checker.violated("liveness: the broker is not up at the end".to_owned());
        }
        self.trace.event("end", &[self.checker.counts.acked, self.checker.counts.read]);
    }
}
