//! The pump: drain inputs, step each, perform what they want, yield. The only loop of a shard.
//!
//! Started by boot, once per shard and executor. Time is read once a turn, here and nowhere else on the data path.
//! What gathers in one turn is written together: natural batching, without waiting.

use super::shard::{Mailbox, ShardHandle};
use crate::disk::{DiskError, Folders, OpenError, Queues, Results, ShardDisk};
use crate::rt;
use corelog_core::group::GroupName;
use corelog_core::journal::Entry;
use corelog_core::recovery::Report;
use corelog_core::shard::{Effects, Input, Note, ShardConfig};
use corelog_core::time::Instant;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// Inputs of one turn. More wait for the next, so that commits are started and answers leave.
const INPUTS_MAX: usize = 256;
/// Least time between two ticks.
const TICK_MIN: Duration = Duration::from_millis(1);

/// A shard that is recovered and not running yet.
#[derive(Debug)]
pub struct Pump {
    handle: ShardHandle,
    clock: rt::Clock,
}

impl Pump {
    /// Recovers the shard in these folders.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        folders: Folders,
        config: ShardConfig,
        ring: rt::Ring,
        queues: Queues,
        clock: rt::Clock,
    ) -> Result<(Self, Report), OpenError> {
        let mailbox = Rc::new(Mailbox::default());
        let results: Rc<dyn Results> = Rc::<Mailbox>::clone(&mailbox);
        let (shard, disk, report) = ShardDisk::open(folders, config, ring, queues, results).await?;
        let handle = ShardHandle { mailbox, shard: Rc::new(RefCell::new(shard)), disk: Rc::new(disk) };
        Ok((Self { handle, clock }, report))
    }

    /// The shard, for whoever talks to it on this executor.
    #[must_use]
    pub fn handle(&self) -> ShardHandle {
        self.handle.clone()
    }

    /// Runs the shard until it is stopped, then waits for what is under way and closes its files.
    ///
    /// # Errors
    /// A file could not be closed.
    pub async fn run(self) -> Result<(), DiskError> {
        let Self { handle, clock } = self;
        let alarm = rt::Alarm::default();
        let mut effects = Effects::default();
        while !handle.mailbox.stopped.get() {
            if handle.mailbox.inputs.borrow().is_empty() {
                let deadline = handle.shard.borrow().next_deadline();
                let wait = deadline.map(|deadline| clock.until(deadline).max(TICK_MIN));
                alarm.wait(&handle.mailbox.wake, wait).await;
            }
            turn(&handle, &clock, &mut effects);
            perform(&handle, &mut effects);
            rt::yield_now().await;
        }
        handle.disk.close().await
    }
}

/// Steps through the inputs at hand.
fn turn(handle: &ShardHandle, clock: &rt::Clock, effects: &mut Effects) {
    let now = clock.now();
    let mut shard = handle.shard.borrow_mut();
    let inputs = {
        let mut inputs = handle.mailbox.inputs.borrow_mut();
        let taken = inputs.len().min(INPUTS_MAX);
        inputs.drain(..taken).collect::<Vec<Input>>()
    };
    for input in inputs {
        shard.step(now, input, effects);
    }
    if is_due(shard.next_deadline(), now.instant) {
        shard.step(now, Input::Tick, effects);
    }
    shard.step(now, Input::Turn, effects);
}

fn is_due(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}

/// Hands the effects of a turn to the hands. Answers first: they wait for nothing.
fn perform(handle: &ShardHandle, effects: &mut Effects) {
    for (request, answer) in effects.answers.drain(..) {
        handle.mailbox.answered(request, answer);
    }
    count(handle, effects);
    handle.disk.perform(effects);
    for note in effects.notes.drain(..) {
        say(handle, &note);
    }
    debug_assert!(effects.is_empty(), "an effect that nobody performs");
}

/// Counts what goes in, for the metrics.
fn count(handle: &ShardHandle, effects: &Effects) {
    let mut traffic = handle.mailbox.traffic.borrow_mut();
    for entry in effects.commits.iter().flat_map(|commit| &commit.entries) {
        if let Entry::Batch { tp, batch, .. } = entry {
            let traffic = traffic.entry(*tp).or_default();
            traffic.records_in += u64::from(batch.header().record_count);
            traffic.bytes_in += batch.bytes().len() as u64;
        }
    }
    for tp in &effects.removed {
        traffic.remove(tp);
    }
}

fn say(handle: &ShardHandle, note: &Note) {
    match note {
        Note::Poisoned { what } => {
            tracing::error!(what, "the device failed: this shard acknowledges nothing more until a restart");
        }
        Note::DiskFull => tracing::warn!("the file system is full: appends that need room are refused"),
        Note::DiskRoom => tracing::info!("the file system has room again"),
        Note::LogStartMoved { tp, from, to, reason } => {
            tracing::info!(%tp, from = from.get(), to = to.get(), reason, "records were removed");
        }
        Note::RetentionWaits { tp, groups, read_up_to } => {
            let groups: Vec<&str> = groups.iter().map(GroupName::as_str).collect();
            let groups = groups.join(",");
            tracing::warn!(%tp, %read_up_to, groups, "retention waits for a group in protect_groups to read and commit");
        }
        Note::Compacted { tp, bytes: (before, after) } => {
            tracing::info!(%tp, before, after, "compacted");
        }
        Note::TooManyPartitions { tp } => {
            tracing::error!(%tp, "not led: the shard has as many partitions as it takes");
        }
        Note::EpochBehind { tp, epoch, newest } => {
            let newest = newest.map_or(0, corelog_wire::ids::LeaderEpoch::get);
            tracing::error!(%tp, epoch = epoch.get(), newest,
                "not led: the metadata grants an older epoch than the log has seen; was an old copy restored?");
        }
        Note::Drained => {
            handle.mailbox.drained.set(true);
            handle.mailbox.drained_signal.notify();
        }
    }
}

#[cfg(test)]
mod tests;
