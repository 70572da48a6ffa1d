//! What is the same for all runs of a call: the machine, the places of both sides, who takes turns, and what a quiet minute
//! looks like here.
//!
//! Called by the commands. Invariant: preconditions are checked here, before anything is measured.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::{Driver, OutputArguments, PlaceArguments, SubjectArguments};
use crate::broker::Start;
use crate::canary::Canary;
use crate::error::{Doing, Error, Result};
use crate::limits::{BLOCK_BYTES, Device, Limits};
use crate::machine::{Machine, microseconds};
use crate::peer::Peer;
use crate::pin::ThreadPlace;
use crate::report::{Report, SCHEMA};
use crate::run::{Place, RunResult, Subject, measure_device, once};
use crate::workload::Workload;
use crate::{hlog, html};

/// How long flushes are measured for the header: enough for a p99.
const FLUSH_TIME: Duration = Duration::from_secs(2);
/// How long each limit is measured.
const LIMIT_TIME: Duration = Duration::from_millis(500);

/// Where runs take place, and what they have given.
#[derive(Debug)]
pub struct Stage {
    /// Who takes turns.
    pub subjects: Vec<Subject>,
    /// Both sides' places.
    pub place: Place,
    /// What was measured so far.
    pub report: Report,
}

impl Stage {
    /// Looks at the machine and measures what no broker has a part in.
    ///
    /// # Errors
    /// [`Error`] if a precondition does not hold.
    pub fn set(place: &PlaceArguments, subjects: &SubjectArguments, kill_at: Option<f64>) -> Result<Self> {
        let folder = folder(place)?;
        let (broker_place, generator_place) = thread_places(place);
        let (driver, peers) = (subjects.driver, &subjects.peer);
        if kill_at.is_some() && driver == Driver::Client {
            let reason = "--kill-at needs --driver raw: the library would wait for its broker";
            return Err(Error::Setup(reason.to_owned()));
        }
        if kill_at.is_some() && peers.contains(&Peer::Strawman) {
            let reason = "the strawman has no recovery: leave it out with --kill-at";
            return Err(Error::Setup(reason.to_owned()));
        }
        let subjects = takes_turns(subjects, &folder, broker_place)?;
        let corelog = subjects.iter().find_map(|subject| match subject {
            Subject::Start(start) if start.peer == Peer::Corelog => Some(&*start.program),
            Subject::Start(_) | Subject::Running(..) => None,
        });
        let mut machine = Machine::look(&folder, corelog, pinning(place))?;
        let mut place = Place {
            driver,
            device_stat: machine.device.as_ref().map(|device| device.stat.clone()),
            generator: generator_place,
            broker: broker_place,
            cpus: machine.cpus,
            fio: place.fio,
            kill_at: kill_at.map(seconds).transpose()?,
            device: device(&folder),
            quiet: None,
        };
        machine.flush_4k = measure_device(&place, BLOCK_BYTES, FLUSH_TIME)?;
        place.quiet = Some(Canary::sing(generator_place, machine.flush_4k.as_ref())?);
        let limits =
            Limits::measure(place.device.as_ref(), broker_place, generator_place, LIMIT_TIME, place.fio)?;
        let report = Report {
            schema: SCHEMA,
            command: std::env::args().collect(),
            machine,
            limits,
            workloads: Vec::new(),
            runs: Vec::new(),
        };
        Ok(Self { subjects, place, report })
    }

    /// Runs a workload until nobody disturbs it, or the attempts are used up; notes the result. What counts is what others
    /// did, and nothing that the run itself gave; an invalid run is never left out.
    ///
    /// # Errors
    /// [`Error`] if it could not be run.
    pub fn run(
        &mut self,
        workload: &Workload,
        repeat: u32,
        subject: usize,
        attempts: u32,
    ) -> Result<&RunResult> {
        let subject = &self.subjects[subject];
        let mut best = once(workload, repeat, subject, &self.place)?;
        for attempt in 1..attempts {
            if !best.is_disturbed() || !best.is_valid() {
                break;
            }
            let next = once(workload, repeat, subject, &self.place)?;
            if !next.is_valid() || !next.is_disturbed() || next.others_share < best.others_share {
                best = next;
            }
            best.discarded = attempt;
        }
        eprintln!(
            "{:.1} MB/s, {:.0} requests/s, p50 {} us, p99 {} us{}",
            best.mb_per_second,
            best.requests_per_second,
            microseconds(best.response.p50),
            microseconds(best.response.p99),
            [&[String::new()], &best.marks[..]].concat().join("; ")
        );
        self.report.runs.push(best);
        self.report.runs.last().ok_or_else(|| Error::Setup("no run".to_owned()))
    }

    /// Prints the tables and writes the files; whether all runs are valid.
    ///
    /// # Errors
    /// [`Error`] if a file cannot be written.
    pub fn publish(&self, output: &OutputArguments) -> Result<bool> {
        let report = &self.report;
        print!("{}", report.text());
        if let Some(path) = &output.json {
            let json = serde_json::to_vec(report).map_err(|error| Error::Setup(error.to_string()))?;
            std::fs::write(path, json).doing(|| format!("writing {}", path.display()))?;
        }
        if let Some(path) = &output.html {
            std::fs::write(path, html::page(report)).doing(|| format!("writing {}", path.display()))?;
        }
        if let Some(folder) = &output.hlog {
            hlog::write(folder, report)?;
        }
        Ok(report.is_valid())
    }
}

/// A time of the command line.
///
/// # Errors
/// [`Error::Setup`] if it is none.
pub fn seconds(value: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(value)
        .ok()
        .filter(|time| time.as_secs() < 86_400)
        .ok_or_else(|| Error::Setup(format!("{value} s is not a time of less than a day")))
}

fn beside_this_program() -> Result<PathBuf> {
    let program = std::env::current_exe().doing(|| "looking for this program".to_owned())?;
    Ok(program.parent().map(Path::to_owned).unwrap_or_default())
}

/// The folder under test.
///
/// # Errors
/// [`Error::System`] if it is not named and this program is nowhere.
pub fn folder(place: &PlaceArguments) -> Result<PathBuf> {
    place.folder.clone().map_or_else(beside_this_program, Ok)
}

fn takes_turns(arguments: &SubjectArguments, folder: &Path, place: ThreadPlace) -> Result<Vec<Subject>> {
    if let Some(address) = arguments.bootstrap {
        return Ok(vec![Subject::Running(address, arguments.broker_pid)]);
    }
    if arguments.driver == Driver::Client
        && let Some(peer) = arguments.peer.iter().find(|peer| !peer.has_library())
    {
        let name = peer.name();
        let reason =
            format!("no client library for {name} is built in (Kafka's: --features rdkafka): leave it out");
        return Err(Error::Setup(reason));
    }
    let start = |&peer: &Peer| {
        Ok(Subject::Start(Start {
            peer,
            program: peer.program(arguments.broker_bin.as_deref())?,
            arguments: if peer == Peer::Corelog { arguments.broker_arg.clone() } else { Vec::new() },
            folder: folder.to_owned(),
            place,
        }))
    };
    arguments.peer.iter().map(start).collect()
}

/// The broker's and the generator's.
#[must_use]
pub fn thread_places(place: &PlaceArguments) -> (ThreadPlace, ThreadPlace) {
    let at = |cpu: usize| ThreadPlace { cpu: (!place.no_pin).then_some(cpu), real_time: place.real_time };
    (at(place.broker_cpu), at(place.generator_cpu))
}

/// Both sides' places, in words.
#[must_use]
pub fn pinning(place: &PlaceArguments) -> String {
    let urgency = if place.real_time { "real-time round robin" } else { "ordinary scheduling" };
    if place.no_pin {
        return format!("none, {urgency}");
    }
    format!("broker on CPU {}, generator on CPU {}, {urgency}", place.broker_cpu, place.generator_cpu)
}

/// The device's file, unless the file system takes no direct writes.
fn device(folder: &Path) -> Option<Device> {
    Device::prepare(folder).map_err(|error| eprintln!("warning: no device limits: {error}")).ok()
}
