//! The two commands: workloads that take turns, and the machine's limits.
//!
//! Called by `main`. Invariant: repeats are interleaved (A B C A B C), so that a slow minute is everybody's.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::{Driver, LimitsArguments, PlaceArguments, RunArguments};
use crate::broker::Start;
use crate::error::{Doing, Error, Result};
use crate::html;
use crate::limits::{BLOCK_BYTES, Device, loopback};
use crate::machine::{Machine, microseconds};
use crate::peer::Peer;
use crate::pin::ThreadPlace;
use crate::report::{Report, SCHEMA};
use crate::run::{Place, RunResult, Subject, measure_device, once};
use crate::workload::Workload;

/// How long flushes are measured for the header: enough for a p99.
const FLUSH_TIME: Duration = Duration::from_secs(2);
/// How long loopback is measured.
const LOOPBACK_TIME: Duration = Duration::from_secs(1);

/// Runs the workloads; whether all runs are valid.
///
/// # Errors
/// [`Error`] if one could not be run.
pub fn run(arguments: &RunArguments) -> Result<bool> {
    let workloads = workloads(arguments)?;
    let folder = folder(&arguments.place)?;
    let (broker_place, generator_place) = thread_places(&arguments.place);
    let subjects = subjects(arguments, &folder, broker_place)?;
    let corelog = subjects.iter().find_map(|subject| match subject {
        Subject::Start(start) if start.peer == Peer::Corelog => Some(&*start.program),
        Subject::Start(_) | Subject::Running(..) => None,
    });
    let mut machine = Machine::look(&folder, corelog, pinning(&arguments.place))?;
    let place = Place {
        driver: arguments.driver,
        device_stat: machine.device.as_ref().map(|device| device.stat.clone()),
        generator: generator_place,
        broker: broker_place,
        cpus: machine.cpus,
        fio: arguments.place.fio,
        device: device(&folder),
    };
    machine.flush_4k = measure_device(&place, BLOCK_BYTES, FLUSH_TIME)?;
    let loopback = Some(loopback(generator_place, broker_place, LOOPBACK_TIME)?);
    let mut report = Report {
        schema: SCHEMA,
        command: std::env::args().collect(),
        machine,
        loopback,
        workloads,
        runs: Vec::new(),
    };
    for repeat in 0..arguments.repeat {
        for workload in &report.workloads {
            for subject in &subjects {
                let peer = subject.peer().name();
                eprint!("{} {peer} {}/{} ... ", workload.name, repeat + 1, arguments.repeat);
                std::io::stderr().flush().doing(|| "writing progress".to_owned())?;
                let result = least_disturbed(workload, repeat, subject, &place, arguments.attempts)?;
                eprintln!(
                    "{:.1} MB/s, {:.0} requests/s, p50 {} us, p99 {} us{}",
                    result.mb_per_second,
                    result.requests_per_second,
                    microseconds(result.response.p50),
                    microseconds(result.response.p99),
                    [&[String::new()], &result.marks[..]].concat().join("; ")
                );
                report.runs.push(result);
            }
        }
    }
    print!("{}", report.text());
    if let Some(path) = &arguments.json {
        let json = serde_json::to_vec(&report).map_err(|error| Error::Setup(error.to_string()))?;
        std::fs::write(path, json).doing(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &arguments.html {
        std::fs::write(path, html::page(&report)).doing(|| format!("writing {}", path.display()))?;
    }
    Ok(report.is_valid())
}

/// Runs a workload until nobody disturbs it, or the attempts are used up. What counts is how much of the processors
/// others took, and nothing that the run itself gave; an invalid run is never left out.
fn least_disturbed(
    workload: &Workload,
    repeat: u32,
    subject: &Subject,
    place: &Place,
    attempts: u32,
) -> Result<RunResult> {
    let mut best = once(workload, repeat, subject, place)?;
    for attempt in 1..attempts {
        if !best.is_disturbed() || !best.is_valid() {
            break;
        }
        let next = once(workload, repeat, subject, place)?;
        if !next.is_valid() || next.others_share < best.others_share {
            best = next;
        }
        best.discarded = attempt;
    }
    Ok(best)
}

/// Measures the device and loopback.
///
/// # Errors
/// [`Error`] if they cannot be measured.
pub fn limits(arguments: &LimitsArguments) -> Result<()> {
    let folder = folder(&arguments.place)?;
    let (broker_place, generator_place) = thread_places(&arguments.place);
    let for_time = seconds(arguments.seconds)?;
    let mut machine = Machine::look(&folder, None, pinning(&arguments.place))?;
    let device = Device::prepare(&folder)?;
    broker_place.take()?;
    machine.flush_4k = Some(device.write_flush(BLOCK_BYTES, for_time)?);
    for line in machine.lines() {
        println!("{line}");
    }
    println!("\nsequential direct write + fdatasync, one at a time, into written blocks:\n");
    println!("|   bytes |      per s |     MB/s |   p50 us |   p99 us | fio MB/s |");
    println!("| ------: | ---------: | -------: | -------: | -------: | -------: |");
    for &bytes in &arguments.bytes {
        let one = device.write_flush(bytes, for_time)?;
        let fio = if arguments.place.fio { device.fio(bytes, for_time)? } else { None };
        println!(
            "| {:>7} | {:>10.0} | {:>8.1} | {:>8} | {:>8} | {:>8} |",
            one.bytes,
            one.per_second,
            one.mb_per_second,
            microseconds(one.p50_ns),
            microseconds(one.p99_ns),
            fio.map_or_else(|| "-".to_owned(), |fio| format!("{:.1}", fio.mb_per_second))
        );
    }
    let loopback = loopback(generator_place, broker_place, for_time)?;
    println!(
        "\nloopback TCP: {:.0} MB/s one stream; 64 B round trip p50 {} us, p99 {} us",
        loopback.mb_per_second,
        microseconds(loopback.round_trip_p50_ns),
        microseconds(loopback.round_trip_p99_ns)
    );
    Ok(())
}

fn workloads(arguments: &RunArguments) -> Result<Vec<Workload>> {
    let mut workloads = Vec::new();
    for file in &arguments.files {
        let mut workload = Workload::read(file)?;
        if let Some(warm_up) = arguments.warm_up {
            workload.time.warm_up_s = seconds(warm_up)?.as_secs_f64();
        }
        if let Some(measured) = arguments.measured {
            workload.time.measured_s = seconds(measured)?.as_secs_f64().max(0.1);
        }
        if workloads.iter().any(|other: &Workload| other.name == workload.name) {
            return Err(Error::Setup(format!("two workloads are named {}", workload.name)));
        }
        workloads.push(workload);
    }
    Ok(workloads)
}

fn seconds(value: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(value)
        .ok()
        .filter(|time| time.as_secs() < 86_400)
        .ok_or_else(|| Error::Setup(format!("{value} s is not a time of less than a day")))
}

fn beside_this_program() -> Result<PathBuf> {
    let program = std::env::current_exe().doing(|| "looking for this program".to_owned())?;
    Ok(program.parent().map(Path::to_owned).unwrap_or_default())
}

fn folder(place: &PlaceArguments) -> Result<PathBuf> {
    place.folder.clone().map_or_else(beside_this_program, Ok)
}

/// Who takes turns.
fn subjects(arguments: &RunArguments, folder: &Path, place: ThreadPlace) -> Result<Vec<Subject>> {
    if let Some(address) = arguments.bootstrap {
        return Ok(vec![Subject::Running(address, arguments.broker_pid)]);
    }
    if arguments.driver == Driver::Client && arguments.peer != [Peer::Corelog] {
        return Err(Error::Setup(
            "--driver client is Corelog's own library: leave other peers out".to_owned(),
        ));
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
fn thread_places(place: &PlaceArguments) -> (ThreadPlace, ThreadPlace) {
    let at = |cpu: usize| ThreadPlace { cpu: (!place.no_pin).then_some(cpu), real_time: place.real_time };
    (at(place.broker_cpu), at(place.generator_cpu))
}

fn pinning(place: &PlaceArguments) -> String {
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
