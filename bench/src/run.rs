//! A run: a broker on an empty directory, a topic, the load, everything read back and checked, the broker gone; the
//! device and loopback measured in the same minute.
//!
//! Called by `main` for each repeat of each workload. Invariant: a result says whether it may be believed
//! ([`RunResult::marks`]), and is never left out because of what it says.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::args::Driver;
use crate::audit::{Audit, Snapshot, Watch};
use crate::broker::{Broker, Start};
use crate::check::{Checker, Ledger, Verdict};
use crate::error::{Error, Result};
use crate::limits::{Device, Fio, WriteFlush};
use crate::measure::{Latencies, Summary};
use crate::payload::Template;
use crate::peer::{Peer, Run, Session};
use crate::pin::{self, ThreadPlace};
use crate::schedule::Random;
use crate::tally::{Outcome, Plan, Second, Window};
use crate::workload::{Load, Workload};

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
    /// The file on the device under test.
    pub device: Option<Device>,
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

/// What one run gave.
#[derive(Clone, Debug, Serialize)]
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
    /// All requests that were sent.
    pub sent: u64,
    /// Requests that were refused, and the first reason.
    pub refused: u64,
    /// The first reason.
    pub refusal: Option<String>,
    /// Requests without an answer.
    pub unanswered: u64,
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
    let peer = subject.peer();
    let class = peer.class(workload.topic.durability)?;
    let device_4k = measure_device(place, crate::limits::BLOCK_BYTES, DEVICE_TIME)?;
    let (broker, address, pid) = match subject {
        Subject::Start(start) => {
            let broker = Broker::start(start)?;
            let (address, pid) = (broker.address(), broker.pid());
            (Some(broker), address, Some(pid))
        }
        Subject::Running(address, pid) => (None, *address, *pid),
    };
    std::thread::sleep(workload.time.settle());
    let template = Template::new(workload.records.per_request, workload.records.bytes, workload.seed)?;
    let number = run_number(workload.seed, repeat);
    let folder = broker.as_ref().map(Broker::folder);
    let driver = place.driver;
    let mut session = peer.open(Run { address, folder, number, workload, template: &template, driver })?;
    let watch = Watch { device_stat: place.device_stat.clone(), broker: pid };
    let (outcome, audit, ledgers) = load(workload, place, &*session, &watch)?;
    let began = Instant::now();
    let mut checker = Checker::new(number, &ledgers);
    let bytes = session.read_back(&mut checker)?;
    let read_back_mb_per_second = mega(bytes) / began.elapsed().as_secs_f64();
    let mut result = summarise(workload, repeat, (peer, class), outcome, audit, checker.finish());
    result.read_back_mb_per_second = read_back_mb_per_second;
    if broker.is_none() {
        session.remove()?;
    }
    drop(session);
    if let Some(broker) = broker {
        result.broker_command = Some(broker.command().to_owned());
        result.broker_config = broker.config();
        result.broker_start_s = Some(broker.start_took().as_secs_f64());
        broker.stop()?;
    }
    result.device_4k = device_4k;
    if let (Some(bytes), Some(device)) = (result.bytes_per_flush(), &place.device) {
        result.device_same = measure_device(place, bytes, DEVICE_TIME)?;
        if place.fio {
            result.fio_same = device.fio(bytes, DEVICE_TIME * 4)?;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let processors = place.cpus.max(1) as f64;
    result.others_share = result.audit.others_cpu_s / (result.audit.seconds * processors);
    result.marks.extend(marks(&result));
    Ok(result)
}

/// The generator's part, on a thread that is pinned and scheduled as the place says.
fn load(
    workload: &Workload,
    place: &Place,
    session: &dyn Session,
    watch: &Watch,
) -> Result<(Outcome, Audit, Vec<Ledger>)> {
    let plan = Plan {
        load: workload.load,
        seed: workload.seed,
        warm_up: workload.time.warm_up(),
        measured: workload.time.measured(),
        drain: workload.time.drain(),
    };
    let mut edges = Edges { watch, begin: None, end: None, began: None };
    std::thread::scope(|scope| {
        let generator = scope.spawn(|| {
            place.generator.take()?;
            pin::sharp_timers()?;
            let (outcome, ledgers) = session.drive(&plan, &mut edges)?;
            Ok((outcome, edges.audit()?, ledgers))
        });
        generator.join().unwrap_or_else(|_| Err(Error::Setup("the generator's thread ended".to_owned())))
    })
}

/// Takes the snapshots.
struct Edges<'a> {
    watch: &'a Watch,
    begin: Option<Result<Snapshot>>,
    began: Option<Instant>,
    end: Option<(Result<Snapshot>, Duration)>,
}

impl Window for Edges<'_> {
    fn begins(&mut self) {
        self.began = Some(Instant::now());
        self.begin = Some(self.watch.snapshot());
    }

    fn ends(&mut self) {
        let took = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        self.end = Some((self.watch.snapshot(), took));
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

fn summarise(
    workload: &Workload,
    repeat: u32,
    (peer, class): (Peer, &'static str),
    outcome: Outcome,
    audit: Audit,
    verdict: Verdict,
) -> RunResult {
    let seconds = outcome.window.as_secs_f64();
    let requests_per_second = float(outcome.answered) / seconds;
    let records_per_second = requests_per_second * f64::from(workload.records.per_request);
    let values = outcome.answered * u64::from(workload.records.per_request) * workload.records.bytes as u64;
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
        seconds: outcome.seconds,
        sent: outcome.sent,
        refused: outcome.refused,
        refusal: outcome.refusal,
        unanswered: outcome.unanswered,
        backlog: outcome.backlog,
        acks_per_flush: acks_per_flush.map(|device| float(outcome.answered) / float(device.flushes)),
        write_amplification: written.map(|written| float(written) / float(values)),
        audit,
        verdict,
        read_back_mb_per_second: 0.0,
        others_share: 0.0,
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
    /// Whether what was acknowledged is there.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.verdict.is_valid() && self.unanswered == 0
    }

    /// Whether others took so much of the machine that the run should be repeated.
    #[must_use]
    pub fn is_disturbed(&self) -> bool {
        self.others_share > OTHERS_MAX
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
    if !result.verdict.is_valid() {
        marks.push(result.verdict.line());
    }
    if result.unanswered > 0 {
        marks.push(format!("INVALID: {} requests were never answered", result.unanswered));
    }
    if let Some(reason) = &result.refusal {
        marks.push(format!("{} requests were refused, the first: {reason}", result.refused));
    }
    let Audit { seconds, generator_cpu_s, .. } = result.audit;
    if generator_cpu_s > GENERATOR_BUSY * seconds {
        marks.push("generator-limited: its processor was busy all the time".to_owned());
    }
    if result.backlog.1 > result.backlog.0 + result.sent / 20 {
        marks.push(format!("overload: the backlog grew from {} to {}", result.backlog.0, result.backlog.1));
    }
    if result.is_disturbed() {
        let percent = result.others_share * 100.0;
        marks.push(format!("disturbed: others took {percent:.0}% of the processors"));
    }
    marks
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
