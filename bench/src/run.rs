//! A run: a broker on an empty directory, a topic (and another for those who lag behind), the load, everything read back and
//! checked, the broker gone; the
//! device and loopback measured in the same minute.
//!
//! Called by `main` for each repeat of each workload. Invariant: a result says whether it may be believed
//! ([`RunResult::marks`]), and is never left out because of what it says.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::args::Driver;
use crate::audit::{Audit, Watch};
use crate::broker::{Broker, Start};
use crate::canary::Canary;
use crate::check::{Checker, Verdict};
use crate::error::{Doing, Error, Result};
use crate::follow::Followed;
use crate::history::{History, Lagged};
use crate::limits::{Device, Fio, WriteFlush};
use crate::load::{self, Drained, Loaded};
use crate::measure::{Latencies, Percentile, Summary};
use crate::payload::{Template, Values};
use crate::peer::{Peer, Run, Session};
use crate::pin::ThreadPlace;
use crate::schedule::Random;
use crate::tally::{Interval, Outcome};
use crate::workload::{Durability, Load, Readers, Workload};

/// A run in which others had more than this of all processors is marked. A peer's durable writes end in workers of the
/// kernel, which take up to an eighth and count as others.
const OTHERS_MAX: f64 = 0.15;
/// Share of its processor at which the generator may be what limits a closed loop.
const GENERATOR_BUSY: f64 = 0.95;
/// How long the device is measured each time.
const DEVICE_TIME: Duration = Duration::from_millis(500);

/// Where a run takes place.
#[derive(Debug)]
pub struct Place {
    /// What sends the load.
    pub driver: Driver,
    /// The device's stat file.
    pub device_stat: Option<PathBuf>,
    /// The generator's place.
    pub generator: ThreadPlace,
    /// The broker's place, where the device is measured too.
    pub broker: ThreadPlace,
    /// Processors of the machine.
    pub cpus: usize,
    /// Whether fio measures the device too.
    pub fio: bool,
    /// The broker is killed (SIGKILL) so long after warm-up, started again, and held to what it acknowledged.
    pub kill_at: Option<Duration>,
    /// The file on the device under test.
    pub device: Option<Device>,
    /// What timers and flushes are like when nobody disturbs; none: nobody looks.
    pub quiet: Option<Canary>,
}

/// Who is measured.
#[derive(Clone, Debug)]
pub enum Subject {
    /// A broker that is started for each run, on an empty folder.
    Start(Start),
    /// A broker of Corelog that runs already, and its process if it is here.
    Running(SocketAddr, Option<u32>),
}

impl Subject {
    /// Whose broker it is.
    #[must_use]
    pub const fn peer(&self) -> Peer {
        match self {
            Self::Start(start) => start.peer,
            Self::Running(..) => Peer::Corelog,
        }
    }
}

/// A run's broker was killed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Killed {
    /// Seconds of load after warm-up.
    pub at_s: f64,
    /// Requests that had no answer then.
    pub unanswered: u64,
    /// Until it was ready again, on what it had left.
    pub ready_after_s: f64,
}

/// What is said of an [`Interval`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Second {
    /// Seconds from the run's start.
    pub from_s: f64,
    /// Requests that were answered in a second.
    pub per_second: f64,
    /// Of the responses, if enough were answered.
    pub p99_ns: Option<u64>,
    /// The longest response.
    pub max_ns: u64,
}

impl Second {
    fn of(interval: &Interval) -> Self {
        Self {
            from_s: interval.from.as_secs_f64(),
            per_second: float(interval.response.len()) / interval.length.as_secs_f64(),
            p99_ns: Percentile::P99.of(&interval.response),
            max_ns: interval.response.max(),
        }
    }
}

/// What one run gave.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunResult {
    /// The workload.
    pub workload: String,
    /// Who was measured.
    pub peer: Peer,
    /// Which repeat, from 0.
    pub repeat: u32,
    /// What an acknowledgement stands for.
    pub class: &'static str,
    /// How the broker was started.
    pub broker_command: Option<String>,
    /// Its configuration file.
    pub broker_config: Option<&'static str>,
    /// Until it was ready, on an empty directory.
    pub broker_start_s: Option<f64>,
    /// Requests answered in a second.
    pub requests_per_second: f64,
    /// Records acknowledged in a second.
    pub records_per_second: f64,
    /// Megabytes (1e6) of values acknowledged in a second.
    pub mb_per_second: f64,
    /// From the intended time to the answer.
    pub response: Summary,
    /// From the send to the answer.
    pub service: Summary,
    /// From the intended time to the send.
    pub send_delay: Summary,
    /// By second, warm-up included.
    pub seconds: Vec<Second>,
    /// The histograms of the seconds.
    #[serde(skip)]
    pub intervals: Vec<Interval>,
    /// All requests that were sent.
    pub sent: u64,
    /// Requests that were refused, and the first reason.
    pub refused: u64,
    /// The first reason.
    pub refusal: Option<String>,
    /// Requests without an answer.
    pub unanswered: u64,
    /// The broker was killed in this run: figures are those of the time before.
    pub killed: Option<Killed>,
    /// What the consumers saw that followed.
    pub followed: Option<Followed>,
    /// What the consumers saw that read everything afterwards.
    pub drained: Option<Drained>,
    /// What the consumers read that lagged behind, beside the load.
    pub lagged: Option<Lagged>,
    /// Requests due and unanswered at the window's begin and end.
    pub backlog: (u64, u64),
    /// What the machine did.
    pub audit: Audit,
    /// Answers for each flush of the device.
    pub acks_per_flush: Option<f64>,
    /// Bytes that the broker wrote for each byte of values.
    pub write_amplification: Option<f64>,
    /// What was read back.
    pub verdict: Verdict,
    /// Megabytes (1e6) of batches a second while they were read back and checked.
    pub read_back_mb_per_second: f64,
    /// The device, 4 KiB a flush, before the run.
    pub device_4k: Option<WriteFlush>,
    /// The device with the run's own mean bytes a flush, after it.
    pub device_same: Option<WriteFlush>,
    /// The same by fio.
    pub fio_same: Option<Fio>,
    /// Share of the machine's processor time that others took.
    pub others_share: f64,
    /// What the canary sang before and after, when it was not silent.
    pub alarm: Option<String>,
    /// Other tries of this repeat that others disturbed as much or more, and that were not kept.
    pub discarded: u32,
    /// Why the figures may not be believed; empty: they may.
    pub marks: Vec<String>,
    /// The histograms, to be merged.
    #[serde(skip)]
    pub latencies: Latencies,
}

/// Runs a workload once.
///
/// # Errors
/// [`Error`] if it could not be run; a run that does not add up is a result with marks.
pub fn once(workload: &Workload, repeat: u32, subject: &Subject, place: &Place) -> Result<RunResult> {
    let class = subject.peer().class(workload.topic.durability)?;
    let Readers { cold, lagging, .. } = workload.readers;
    if matches!(subject, Subject::Running(..)) && (cold || lagging > 0) {
        let cold = "cold or lagging readers need a broker that is started here: leave --bootstrap out";
        return Err(Error::Setup(cold.to_owned()));
    }
    let device_4k = measure_device(place, crate::limits::BLOCK_BYTES, DEVICE_TIME)?;
    let before = alarm(place, device_4k.as_ref())?;
    let mut server = Server::of(subject)?;
    std::thread::sleep(workload.time.settle());
    let mut result = on(&mut server, workload, repeat, class, place)?;
    if let Some(broker) = server.broker {
        result.broker_command = Some(broker.command().to_owned());
        result.broker_config = broker.config();
        result.broker_start_s = server.start_took.map(|took| took.as_secs_f64());
        broker.stop()?;
    }
    result.device_4k = device_4k;
    if let (Some(bytes), Some(device)) = (result.bytes_per_flush(), &place.device) {
        result.device_same = measure_device(place, bytes, DEVICE_TIME)?;
        if place.fio {
            result.fio_same = device.fio(bytes, DEVICE_TIME * 4)?;
        }
    }
    result.alarm = before.or(alarm(place, None)?);
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let processors = place.cpus.max(1) as f64;
    result.others_share = result.audit.others_cpu_s / (result.audit.seconds * processors);
    result.marks.extend(marks(&result));
    Ok(result)
}

/// Fills the history if there is one, drives the load, kills what is to be killed, and reads everything back.
fn on(
    server: &mut Server<'_>,
    workload: &Workload,
    repeat: u32,
    class: &'static str,
    place: &Place,
) -> Result<RunResult> {
    let peer = server.subject.peer();
    let contents = Contents::new(workload.clone())?;
    // Lagging consumers would end with a broker that is killed.
    let filling = workload.history().filter(|_| place.kill_at.is_none());
    let filling = filling.map(Contents::new).transpose()?;
    let number = run_number(workload.seed, repeat);
    let folder = server.broker.as_ref().map(|broker| broker.folder().to_owned());
    let whom = |server: &Server<'_>| Whom {
        address: server.address,
        folder: folder.as_deref(),
        driver: place.driver,
    };
    let mut history = None;
    if let Some(filling) = &filling {
        let number = number.wrapping_add(1);
        let session = peer.open(filling.run(number, whom(server)))?;
        let filled = history.insert(History::fill(session, number, &filling.workload, place.generator)?);
        server.chill(filled.session())?;
        std::thread::sleep(workload.time.settle());
    }
    let mut session = peer.open(contents.run(number, whom(server)))?;
    let watch = server.watched(place);
    let Loaded { mut outcome, audit, ledgers, followed, lagged } =
        load::load(workload, number, place, &*session, &watch, history.as_ref())?;
    let killed = match place.kill_at {
        Some(at) => server.revive(&mut *session)?.map(|ready_after_s| {
            let unanswered = std::mem::take(&mut outcome.unanswered);
            Killed { at_s: at.as_secs_f64(), unanswered, ready_after_s }
        }),
        None => None,
    };
    let mut drained = None;
    if workload.readers.draining > 0 {
        if workload.readers.cold {
            server.chill(&mut *session)?;
        }
        let watch = server.watched(place);
        drained = Some(load::drain(workload, number, &ledgers, place, &*session, &watch)?);
    }
    let began = Instant::now();
    let mut checker = Checker::new(number, &ledgers);
    let bytes = session.read_back(&mut checker)?;
    let read_back_mb_per_second = mega(bytes) / began.elapsed().as_secs_f64();
    let lagged = match (&mut history, lagged) {
        (Some(history), Some((seen, meter))) => Some(history.check(&seen, &meter)?),
        _ => None,
    };
    if server.broker.is_none() {
        session.remove()?;
    }
    let sent = contents.values.bytes_of(outcome.answered);
    let result = summarise(workload, repeat, (peer, class), outcome, audit, checker.finish(), sent);
    Ok(RunResult { killed, followed, drained, lagged, read_back_mb_per_second, ..result })
}

/// Who is measured, started here or not.
struct Server<'a> {
    subject: &'a Subject,
    broker: Option<Broker>,
    address: SocketAddr,
    pid: Option<u32>,
    /// Until it was ready the first time.
    start_took: Option<Duration>,
}

impl<'a> Server<'a> {
    fn of(subject: &'a Subject) -> Result<Self> {
        Ok(match subject {
            Subject::Start(start) => {
                let broker = Broker::start(start)?;
                let (address, pid) = (broker.address(), Some(broker.pid()));
                let start_took = Some(broker.start_took());
                Self { subject, broker: Some(broker), address, pid, start_took }
            }
            Subject::Running(address, pid) => {
                Self { subject, broker: None, address: *address, pid: *pid, start_took: None }
            }
        })
    }

    fn watched(&self, place: &Place) -> Watch {
        Watch { device_stat: place.device_stat.clone(), broker: self.pid }
    }

    /// Stops it and starts it again, with nothing of its files in the system's page cache.
    fn chill(&mut self, session: &mut dyn Session) -> Result<()> {
        // Whoever was not started here is refused before anything is sent.
        let (Some(warm), Subject::Start(start)) = (self.broker.take(), self.subject) else { return Ok(()) };
        let cold = warm.restart(start)?;
        // Corelog reads past it.
        if self.subject.peer() != Peer::Corelog {
            drop_page_cache()?;
        }
        self.is_now(cold, session)
    }

    /// Starts it again, if it was started here, after it was killed; how long that took, in seconds.
    fn revive(&mut self, session: &mut dyn Session) -> Result<Option<f64>> {
        let (Some(dead), Subject::Start(start)) = (self.broker.take(), self.subject) else { return Ok(None) };
        let again = dead.start_again(start)?;
        let ready_after_s = again.start_took().as_secs_f64();
        self.is_now(again, session)?;
        Ok(Some(ready_after_s))
    }

    fn is_now(&mut self, broker: Broker, session: &mut dyn Session) -> Result<()> {
        (self.address, self.pid) = (broker.address(), Some(broker.pid()));
        self.broker = Some(broker);
        session.moved(self.address)
    }
}

fn summarise(
    workload: &Workload,
    repeat: u32,
    (peer, class): (Peer, &'static str),
    outcome: Outcome,
    audit: Audit,
    verdict: Verdict,
    values: u64,
) -> RunResult {
    let seconds = outcome.window.as_secs_f64();
    let requests_per_second = float(outcome.answered) / seconds;
    let records_per_second = requests_per_second * f64::from(workload.records.per_request);
    let acks_per_flush = audit.device.filter(|device| device.flushes > 0);
    let written = audit.broker_bytes_written.filter(|_| values > 0);
    let Latencies { response, service, send_delay } = &outcome.latencies;
    RunResult {
        workload: workload.name.clone(),
        peer,
        repeat,
        class,
        broker_command: None,
        broker_config: None,
        broker_start_s: None,
        requests_per_second,
        records_per_second,
        mb_per_second: mega(values) / seconds,
        response: Summary::of(response),
        service: Summary::of(service),
        send_delay: Summary::of(send_delay),
        seconds: outcome.intervals.iter().map(Second::of).collect(),
        intervals: outcome.intervals,
        sent: outcome.sent,
        refused: outcome.refused,
        refusal: outcome.refusal,
        unanswered: outcome.unanswered,
        killed: None,
        followed: None,
        drained: None,
        lagged: None,
        backlog: outcome.backlog,
        acks_per_flush: acks_per_flush.map(|device| float(outcome.answered) / float(device.flushes)),
        write_amplification: written.map(|written| float(written) / float(values)),
        audit,
        verdict,
        read_back_mb_per_second: 0.0,
        others_share: 0.0,
        alarm: None,
        discarded: 0,
        device_4k: None,
        device_same: None,
        fio_same: None,
        marks: if outcome.latencies.generator_limited() && matches!(workload.load, Load::Open { .. }) {
            vec!["generator-limited: its send delay is over a tenth of the response's p99".to_owned()]
        } else {
            Vec::new()
        },
        latencies: outcome.latencies,
    }
}

impl RunResult {
    /// Whether what was acknowledged is there, as far as it was promised: a peer whose acknowledgement is no flush may
    /// lose what it held in memory when it is killed.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let may_lose = self.killed.is_some() && self.class != Durability::Disk.class();
        let Verdict { lost, duplicated, disordered, misplaced, foreign, .. } = &self.verdict;
        let whole = duplicated + disordered + misplaced + foreign == 0;
        whole
            && (*lost == 0 || may_lose)
            && self.unanswered == 0
            && self.lagged.iter().all(Lagged::is_whole)
            && self.consumers().all(Followed::is_whole)
    }

    fn consumers(&self) -> impl Iterator<Item = &Followed> {
        let drained = self.drained.iter().map(|drained| &drained.followed);
        self.followed.iter().chain(drained)
    }

    /// Whether others took so much of the machine that the run should be repeated.
    #[must_use]
    pub fn is_disturbed(&self) -> bool {
        self.others_share > OTHERS_MAX || self.alarm.is_some()
    }

    /// Whether requests came faster than they were answered.
    #[must_use]
    pub const fn is_overloaded(&self) -> bool {
        self.backlog.1 > self.backlog.0 + self.sent / 20
    }

    /// Mean bytes that the broker wrote for each flush.
    fn bytes_per_flush(&self) -> Option<usize> {
        let flushes = self.audit.device?.flushes;
        let written = self.audit.broker_bytes_written?;
        usize::try_from(written.checked_div(flushes)?).ok()
    }
}

/// Why the figures may not be believed.
fn marks(result: &RunResult) -> Vec<String> {
    let mut marks = Vec::new();
    if let Some(Killed { at_s, unanswered, ready_after_s }) = result.killed {
        marks.push(format!(
            "killed after {at_s} s with {unanswered} requests unanswered, ready again after {ready_after_s:.2} s"
        ));
        if result.is_valid() && !result.verdict.is_valid() {
            marks.push(format!("{} (an acknowledgement promised no flush)", result.verdict.counts()));
        }
    }
    if !result.is_valid() && !result.verdict.is_valid() {
        marks.push(result.verdict.line());
    }
    for seen in result.consumers().filter(|seen| !seen.is_whole()) {
        let Followed { consumers, missing, displaced, .. } = seen;
        marks.push(format!(
            "INVALID: {consumers} consumers missed {missing} records, {displaced} were displaced"
        ));
    }
    if let Some(lagged) = result.lagged.as_ref().filter(|lagged| !lagged.is_whole()) {
        let Lagged { consumers, missing, displaced, verdict, .. } = lagged;
        marks.push(format!(
            "INVALID: {consumers} lagging consumers missed {missing} records, {displaced} were displaced; {}",
            verdict.line()
        ));
    }
    if result.unanswered > 0 {
        marks.push(format!("INVALID: {} requests were never answered", result.unanswered));
    }
    if let Some(reason) = &result.refusal {
        marks.push(format!("{} requests were refused, the first: {reason}", result.refused));
    }
    let Audit { seconds, generator_cpu_s, .. } = result.audit;
    // Those who lag behind give way to the generator.
    if result.lagged.is_none() && generator_cpu_s > GENERATOR_BUSY * seconds {
        marks.push("generator-limited: its processor was busy all the time".to_owned());
    }
    if result.is_overloaded() {
        marks.push(format!("overload: the backlog grew from {} to {}", result.backlog.0, result.backlog.1));
    }
    if result.others_share > OTHERS_MAX {
        let percent = result.others_share * 100.0;
        marks.push(format!("disturbed: others took {percent:.0}% of the processors"));
    }
    if let Some(alarm) = &result.alarm {
        marks.push(format!("disturbed: {alarm} before or after the run"));
    }
    marks
}

/// What is unusual now, if anybody looks.
fn alarm(place: &Place, flush: Option<&WriteFlush>) -> Result<Option<String>> {
    let Some(quiet) = &place.quiet else { return Ok(None) };
    Ok(Canary::sing(place.generator, flush)?.alarm(quiet))
}

/// A load and what it sends: a [`Run`] borrows it.
struct Contents {
    workload: Workload,
    values: Values,
    templates: Vec<Template>,
}

/// Whom a load is sent to, and by what.
#[derive(Clone, Copy)]
struct Whom<'a> {
    address: SocketAddr,
    folder: Option<&'a Path>,
    driver: Driver,
}

impl Contents {
    fn new(workload: Workload) -> Result<Self> {
        let values = Values::new(&workload.records, workload.seed)?;
        let templates =
            values.requests().iter().map(|values| Template::new(values)).collect::<Result<Vec<_>>>()?;
        Ok(Self { workload, values, templates })
    }

    fn run<'a>(&'a self, number: u64, Whom { address, folder, driver }: Whom<'a>) -> Run<'a> {
        let Self { workload, values, templates } = self;
        Run { address, folder, number, workload, values, templates, driver }
    }
}

/// Lets the system forget what it has of files, so that what is read next comes from the device.
fn drop_page_cache() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "1")
        .doing(|| "dropping the page cache for cold readers (needs root)".to_owned())
}

/// Writes and flushes on the broker's processor.
///
/// # Errors
/// [`Error::System`].
pub fn measure_device(place: &Place, bytes: usize, for_time: Duration) -> Result<Option<WriteFlush>> {
    let Some(device) = &place.device else { return Ok(None) };
    let measured = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            place.broker.take()?;
            device.write_flush(bytes, for_time)
        });
        writer.join().unwrap_or_else(|_| Err(Error::Setup("the device's thread ended".to_owned())))
    })?;
    Ok(Some(measured))
}

/// A number that no other run has.
fn run_number(seed: u64, repeat: u32) -> u64 {
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    Random::new(seed ^ u64::from(repeat) << 32 ^ nanoseconds).bits()
}

fn mega(bytes: u64) -> f64 {
    float(bytes) / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "for rates in tables")]
const fn float(number: u64) -> f64 {
    number as f64
}
