//! The commands: workloads that take turns, and the machine's limits.
//!
//! Called by `main`. Invariant: repeats are interleaved (A B C A B C), so that a slow minute is everybody's.

use std::io::Write as _;
use std::path::PathBuf;

use crate::args::{EffortArguments, LimitsArguments, RunArguments, SuiteArguments, TurnsArguments};
use crate::error::{Doing, Error, Result};
use crate::limits::{BLOCK_BYTES, Device, Limits};
use crate::machine::{Machine, microseconds};
use crate::stage::{Stage, folder, pinning, seconds, thread_places};
use crate::workload::Workload;

/// Runs the workloads; whether all runs are valid.
///
/// # Errors
/// [`Error`] if one could not be run.
pub fn run(arguments: &RunArguments) -> Result<bool> {
    take_turns(&arguments.files, &arguments.turns, arguments.kill_at)
}

/// Runs all workloads of a folder; whether all runs are valid.
///
/// # Errors
/// [`Error`] if one could not be run.
pub fn all(arguments: &SuiteArguments) -> Result<bool> {
    let folder = &arguments.scenarios;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).doing(|| format!("reading {}", folder.display()))? {
        let path = entry.doing(|| format!("reading {}", folder.display()))?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let only = &arguments.only;
        let wanted = only.is_empty() || only.iter().any(|prefix| name.starts_with(&**prefix));
        if wanted && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort_unstable();
    if files.is_empty() {
        return Err(Error::Setup(format!("{} has no such scenario", folder.display())));
    }
    take_turns(&files, &arguments.turns, None)
}

fn take_turns(files: &[PathBuf], turns: &TurnsArguments, kill_at: Option<f64>) -> Result<bool> {
    let effort = &turns.effort;
    let workloads = workloads(files, effort)?;
    let mut stage = Stage::set(&turns.place, &turns.subjects, kill_at)?;
    stage.report.workloads.clone_from(&workloads);
    for repeat in 0..effort.repeat {
        for workload in &workloads {
            for subject in 0..stage.subjects.len() {
                let peer = stage.subjects[subject].peer();
                if !peer.takes(workload) {
                    eprintln!("{} {}: left out, it has nothing of the kind", workload.name, peer.name());
                    continue;
                }
                eprint!("{} {} {}/{} ... ", workload.name, peer.name(), repeat + 1, effort.repeat);
                std::io::stderr().flush().doing(|| "writing progress".to_owned())?;
                stage.run(workload, repeat, subject, effort.attempts)?;
            }
        }
    }
    stage.publish(&turns.output)
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
    println!();
    let limits =
        Limits::measure(Some(&device), broker_place, generator_place, for_time, arguments.place.fio)?;
    for line in limits.lines() {
        println!("{line}");
    }
    Ok(())
}

fn workloads(files: &[PathBuf], effort: &EffortArguments) -> Result<Vec<Workload>> {
    let mut workloads = Vec::new();
    for file in files {
        let mut workload = Workload::read(file)?;
        if let Some(warm_up) = effort.warm_up {
            workload.time.warm_up_s = seconds(warm_up)?.as_secs_f64();
        }
        if let Some(measured) = effort.measured {
            workload.time.measured_s = seconds(measured)?.as_secs_f64().max(0.1);
        }
        if workloads.iter().any(|other: &Workload| other.name == workload.name) {
            return Err(Error::Setup(format!("two workloads are named {}", workload.name)));
        }
        workloads.push(workload);
    }
    Ok(workloads)
}
