//! The part of a run that is under load: the generator, the consumers that follow it and those that lag behind, the kill if
//! there is one, and what the machine did between the edges of the measured window.
//!
//! Called by `run`. Invariant: the generator has a thread of its own, pinned and scheduled as the place says; consumers share
//! its processor, so that the broker has the other one to itself.

use std::sync::mpsc;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::audit::{Audit, Snapshot, Watch};
use crate::check::Ledger;
use crate::error::{Doing, Error, Result};
use crate::follow::{self, Followed};
use crate::history::{History, Meter};
use crate::peer::Session;
use crate::pin;
use crate::run::Place;
use crate::tally::{Outcome, Plan, Window};
use crate::workload::{Readers, Workload};

/// How much longer than until its kill a broker could be under load.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// What the load gave.
#[derive(Debug)]
pub struct Loaded {
    /// Times and counts.
    pub outcome: Outcome,
    /// What the machine did within the window.
    pub audit: Audit,
    /// What each producer was told.
    pub ledgers: Vec<Ledger>,
    /// What the consumers saw that followed.
    pub followed: Option<Followed>,
    /// What those saw that lagged behind, and how fast they were.
    pub lagged: Option<(Followed, Meter)>,
}

/// Drives a session's load, and lets its consumers follow until they have everything, beside those that lag behind.
///
/// # Errors
/// [`Error`] if it could not be driven.
pub fn load(
    workload: &Workload,
    number: u64,
    place: &Place,
    session: &dyn Session,
    watch: &Watch,
    history: Option<&History<'_>>,
) -> Result<Loaded> {
    let plan = Plan {
        load: workload.load,
        seed: workload.seed,
        warm_up: workload.time.warm_up(),
        // A killed broker ends the load; it must be under load then.
        measured: place.kill_at.map_or(workload.time.measured(), |at| at + KILL_PATIENCE),
        drain: workload.time.drain(),
        may_go: place.kill_at.is_some(),
    };
    let shared = follow::Load::new(number, plan.warm_up..plan.warm_up + plan.measured);
    let shared = &shared;
    // Consumers would end with a broker that is killed.
    let following = if plan.may_go { 0 } else { workload.readers.following };
    let (begun, begins) = mpsc::channel();
    let meter = Meter::default();
    let mut edges = Edges { watch, shared, meter: &meter, begin: None, end: None, began: None, begun };
    let (loaded, lagged) = std::thread::scope(|scope| {
        let (lagging, meter) = (workload.readers.lagging, &meter);
        let lagging =
            history.map(|history| scope.spawn(move || history.read_beside(lagging, place.generator, meter)));
        let generator = scope.spawn(move || {
            place.generator.take()?;
            pin::sharp_timers()?;
            let (mut outcome, ledgers) = session.drive(&plan, &mut edges)?;
            let Some(at) = place.kill_at else { return Ok((outcome, edges.audit()?, ledgers)) };
            outcome.window = at;
            Ok((outcome, Audit { seconds: at.as_secs_f64(), ..Audit::default() }, ledgers))
        });
        let consumers = (following > 0)
            .then(|| scope.spawn(move || follow::follow(session, following, 1, place.generator, shared)));
        if let (Some(at), Some(pid)) = (place.kill_at, watch.broker)
            && let Ok(began) = begins.recv()
        {
            kill(pid, at.saturating_sub(began.elapsed()))?;
        }
        let ended = || Err(Error::Setup("the generator's thread ended".to_owned()));
        let driven = generator.join().unwrap_or_else(|_| ended());
        meter.stop();
        let ledgers = driven.as_ref().map(|(.., ledgers)| &ledgers[..]).unwrap_or_default();
        shared.is_over(ledgers.iter().map(Ledger::records_acknowledged).sum());
        let followed = consumers.map(joined).transpose();
        let lagged = lagging.map(joined).transpose();
        let (outcome, audit, ledgers) = driven?;
        Ok((Loaded { outcome, audit, ledgers, followed: followed?, lagged: None }, lagged?))
    })?;
    Ok(Loaded { lagged: lagged.map(|lagged| (lagged, meter)), ..loaded })
}

/// What consumers' thread gave.
fn joined<T>(consumers: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    consumers.join().unwrap_or_else(|_| Err(Error::Setup("the consumers' thread ended".to_owned())))
}

/// Everything was read from the begin.
#[derive(Clone, Debug, Serialize)]
pub struct Drained {
    /// Whether the broker was started anew before.
    pub cold: bool,
    /// What the consumers saw.
    pub followed: Followed,
    /// Until the last one had everything.
    pub seconds: f64,
    /// Megabytes (1e6) of values a second, of all consumers together.
    pub mb_per_second: f64,
    /// What the machine did meanwhile.
    pub audit: Audit,
}

/// Lets consumers read what the load left.
///
/// # Errors
/// The first consumer's.
pub fn drain(
    workload: &Workload,
    number: u64,
    ledgers: &[Ledger],
    place: &Place,
    session: &dyn Session,
    watch: &Watch,
) -> Result<Drained> {
    let shared = follow::Load::new(number, Duration::ZERO..Duration::ZERO);
    shared.is_over(ledgers.iter().map(Ledger::records_acknowledged).sum());
    let before = watch.snapshot()?;
    let began = Instant::now();
    let Readers { draining, rounds, cold, .. } = workload.readers;
    let followed = follow::follow(session, draining, rounds, place.generator, &shared)?;
    let seconds = began.elapsed().as_secs_f64();
    let audit = Audit::between(&before, &watch.snapshot()?, seconds);
    #[expect(clippy::cast_precision_loss, reason = "for a rate")]
    let mb_per_second = followed.bytes as f64 / 1e6 / seconds;
    Ok(Drained { cold, followed, seconds, mb_per_second, audit })
}

/// Kills a process so much later.
fn kill(pid: u32, later: Duration) -> Result<()> {
    std::thread::sleep(later);
    let pid = rustix::process::Pid::from_raw(pid.cast_signed());
    let pid = pid.ok_or_else(|| Error::Setup("a broker to kill is one that was started here".to_owned()))?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)
        .doing(|| "killing the broker".to_owned())
}

/// Takes the snapshots.
struct Edges<'a> {
    watch: &'a Watch,
    shared: &'a follow::Load,
    meter: &'a Meter,
    begin: Option<Result<Snapshot>>,
    began: Option<Instant>,
    end: Option<(Result<Snapshot>, Duration)>,
    begun: mpsc::Sender<Instant>,
}

impl Window for Edges<'_> {
    fn starts(&mut self, at: Instant) {
        self.shared.starts(at);
    }

    fn begins(&mut self) {
        let now = Instant::now();
        self.began = Some(now);
        self.begin = Some(self.watch.snapshot());
        self.meter.begins();
        // Only a run whose broker is killed listens.
        _ = self.begun.send(now);
    }

    fn ends(&mut self) {
        let took = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        self.end = Some((self.watch.snapshot(), took));
        self.meter.ends();
    }
}

impl Edges<'_> {
    fn audit(self) -> Result<Audit> {
        let (Some(begin), Some((end, took))) = (self.begin, self.end) else {
            return Err(Error::Setup("the measured window never came".to_owned()));
        };
        Ok(Audit::between(&begin?, &end?, took.as_secs_f64()))
    }
}
