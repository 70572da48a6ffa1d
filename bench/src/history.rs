//! Consumers that lag far behind and read beside the load, as fast as they can: a topic of their own, which is filled before and
//! which the broker has not in memory by then.
//!
//! Called by `run` and `load`. Invariants: each pass over the topic has every record once and in order, and all of it is read back
//! at the end as everything is; the consumers give way to the generator, whose processor they share, so that what the load suffers
//! is the broker's doing; their rate is of the measured window.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::check::{Checker, Ledger, Verdict};
use crate::error::{Error, Result};
use crate::follow::{self, Followed};
use crate::peer::Session;
use crate::pin::{self, ThreadPlace};
use crate::tally::{Plan, Window};
use crate::workload::Workload;

/// A topic that was filled.
pub struct History<'a> {
    session: Box<dyn Session + 'a>,
    number: u64,
    ledgers: Vec<Ledger>,
    records: u64,
}

/// What consumers that lag behind read within the measured window.
#[derive(Clone, Debug, Serialize)]
pub struct Lagged {
    /// How many they were.
    pub consumers: u32,
    /// Records of the topic.
    pub history_records: u64,
    /// Bytes of values that they read within the window, together.
    pub bytes: u64,
    /// Records of whole passes that did not come.
    pub missing: u64,
    /// Records that came twice, out of order, or were of no producer of the topic.
    pub displaced: u64,
    /// What was found when all of the topic was read back.
    pub verdict: Verdict,
}

/// What the consumers, the load and its window share.
#[derive(Debug, Default)]
pub struct Meter {
    over: AtomicBool,
    bytes: AtomicU64,
    begin: AtomicU64,
    end: AtomicU64,
}

impl Meter {
    /// The window begins.
    pub fn begins(&self) {
        self.begin.store(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The window ends, and with it what they read for.
    pub fn ends(&self) {
        self.end.store(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        self.stop();
    }

    /// Ends what they read, if the window did not.
    pub fn stop(&self) {
        self.over.store(true, Ordering::Release);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl<'a> History<'a> {
    /// Fills the topic that `session` made for run `number`.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Setup`] if not all of it was acknowledged.
    pub fn fill(
        session: Box<dyn Session + 'a>,
        number: u64,
        workload: &Workload,
        place: ThreadPlace,
    ) -> Result<Self> {
        let plan = Plan {
            load: workload.load,
            seed: workload.seed,
            warm_up: Duration::ZERO,
            measured: workload.time.measured(),
            drain: workload.time.drain(),
            may_go: false,
        };
        let filled = std::thread::scope(|scope| {
            let session = &*session;
            let generator = scope.spawn(move || {
                place.take()?;
                session.drive(&plan, &mut Unwatched)
            });
            generator.join().unwrap_or_else(|_| Err(Error::Setup("the generator's thread ended".to_owned())))
        });
        let (outcome, ledgers) = filled?;
        let records = ledgers.iter().map(Ledger::records_acknowledged).sum();
        if records == 0 || outcome.refused + outcome.unanswered > 0 {
            return Err(Error::Setup(format!(
                "a history could not be written: {records} records acknowledged, {} requests refused, {} unanswered",
                outcome.refused, outcome.unanswered
            )));
        }
        Ok(Self { session, number, ledgers, records })
    }

    /// The session, when the peer was started again.
    pub fn session(&mut self) -> &mut dyn Session {
        &mut *self.session
    }

    /// Lets so many consumers read from the begin to the end, again and again, until the window is over.
    ///
    /// # Errors
    /// The first one's.
    pub fn read_beside(&self, consumers: u32, place: ThreadPlace, meter: &Meter) -> Result<Followed> {
        let place = ThreadPlace { real_time: false, ..place };
        let begin = || place.take().and_then(|()| pin::give_way());
        let shared = follow::Load::new(self.number, Duration::ZERO..Duration::ZERO);
        shared.is_over(self.records);
        follow::circle(&*self.session, consumers, &begin, &shared, &|bytes| {
            meter.bytes.fetch_add(bytes, Ordering::Relaxed);
            meter.is_over()
        })
    }

    /// Reads everything back.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    pub fn check(&mut self, seen: &Followed, meter: &Meter) -> Result<Lagged> {
        let mut checker = Checker::new(self.number, &self.ledgers);
        self.session.read_back(&mut checker)?;
        let Followed { consumers, missing, displaced, .. } = *seen;
        let (begin, end) = (meter.begin.load(Ordering::Relaxed), meter.end.load(Ordering::Relaxed));
        let (history_records, bytes) = (self.records, end - begin);
        let verdict = checker.finish();
        Ok(Lagged { consumers, history_records, bytes, missing, displaced, verdict })
    }
}

impl Lagged {
    /// Whether every record of the topic is there, and came as it should.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.missing + self.displaced == 0 && self.verdict.is_valid()
    }
}

/// A load whose window nobody watches.
struct Unwatched;

impl Window for Unwatched {
    fn starts(&mut self, _at: std::time::Instant) {}
    fn begins(&mut self) {}
    fn ends(&mut self) {}
}
