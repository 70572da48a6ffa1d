//! What the machine did meanwhile: the device's flushes and writes, the broker's processor time and memory, and how
//! much of the processors others took. So that a durability that is only claimed is seen.
//!
//! Called by `run` at the edges of a measured window. Invariant: counters are read from the kernel and only subtracted
//! here. The device's counters are everybody's: what other processes wrote is in them, and is shown beside.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Doing, Error, Result};

/// Bytes of a sector in /sys/block/*/stat, whatever the device's are.
const SECTOR_BYTES: u64 = 512;

/// A block device's counters since it appeared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceCounters {
    /// Reads that completed.
    pub reads: u64,
    /// Bytes of them.
    pub bytes_read: u64,
    /// Writes that completed.
    pub writes: u64,
    /// Bytes of them.
    pub bytes_written: u64,
    /// Flushes that completed.
    pub flushes: u64,
}

impl DeviceCounters {
    /// Reads a line of /sys/block/*/stat; none if it is not one, or of a kernel before 5.5, which counts no flushes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fields: Vec<u64> =
            text.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>().ok()?;
        Some(Self {
            reads: *fields.first()?,
            bytes_read: fields.get(2)? * SECTOR_BYTES,
            writes: *fields.get(4)?,
            bytes_written: fields.get(6)? * SECTOR_BYTES,
            flushes: *fields.get(15)?,
        })
    }

    /// What was added since.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            reads: self.reads.saturating_sub(earlier.reads),
            bytes_read: self.bytes_read.saturating_sub(earlier.bytes_read),
            writes: self.writes.saturating_sub(earlier.writes),
            bytes_written: self.bytes_written.saturating_sub(earlier.bytes_written),
            flushes: self.flushes.saturating_sub(earlier.flushes),
        }
    }
}

/// A process's counters since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProcessCounters {
    /// Processor time in ticks, of all threads.
    pub cpu_ticks: u64,
    /// Bytes that it caused to be written to devices.
    pub bytes_written: u64,
    /// Switches of all threads, voluntary or not.
    pub context_switches: u64,
    /// Resident memory now.
    pub rss_bytes: u64,
    /// Its highest.
    pub rss_peak_bytes: u64,
}

impl ProcessCounters {
    /// Of this process.
    ///
    /// # Errors
    /// [`Error::System`] if it has ended.
    pub fn of(pid: u32) -> Result<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))
        };
        let status = read("status")?;
        let mut context_switches = 0;
        let tasks = folder.join("task");
        for task in std::fs::read_dir(&tasks).doing(|| format!("reading {}", tasks.display()))?.flatten() {
            // A thread that has just ended is no fault.
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            context_switches += number_after(&status, "voluntary_ctxt_switches:").unwrap_or_default();
            context_switches += number_after(&status, "nonvoluntary_ctxt_switches:").unwrap_or_default();
        }
        let kib = |name| number_after(&status, name).unwrap_or_default() * 1024;
        Ok(Self {
            cpu_ticks: cpu_ticks(&read("stat")?).unwrap_or_default(),
            bytes_written: number_after(&read("io").unwrap_or_default(), "write_bytes:").unwrap_or_default(),
            context_switches,
            rss_bytes: kib("VmRSS:"),
            rss_peak_bytes: kib("VmHWM:"),
        })
    }
}

/// User and system ticks of /proc/PID/stat. The name, in brackets, may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

/// The number in the line that begins with `name`.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Ticks that all processors together were busy, steal included, from /proc/stat.
fn machine_busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal (guest is in user)
    let at = |index: usize| fields.get(index).copied();
    Some(at(0)? + at(1)? + at(2)? + at(5)? + at(6)? + at(7).unwrap_or_default())
}

/// All counters at one time.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    device: Option<DeviceCounters>,
    broker: Option<ProcessCounters>,
    generator_ticks: u64,
    machine_ticks: u64,
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The device's stat file, if the data directory is on one.
    pub device_stat: Option<PathBuf>,
    /// The broker's process, if it runs here.
    pub broker: Option<u32>,
}

impl Watch {
    /// Reads everything now.
    ///
    /// # Errors
    /// [`Error::System`] if the broker has ended or /proc is not there.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let device = self.device_stat.as_deref().map(read_device).transpose()?;
        let broker = self.broker.map(ProcessCounters::of).transpose()?;
        let own = ProcessCounters::of(std::process::id())?;
        let stat = std::fs::read_to_string("/proc/stat").doing(|| "reading /proc/stat".to_owned())?;
        let machine_ticks = machine_busy_ticks(&stat).unwrap_or_default();
        Ok(Snapshot { device, broker, generator_ticks: own.cpu_ticks, machine_ticks })
    }
}

fn read_device(path: &Path) -> Result<DeviceCounters> {
    let text = std::fs::read_to_string(path).doing(|| format!("reading {}", path.display()))?;
    DeviceCounters::parse(&text)
        .ok_or_else(|| Error::Setup(format!("{} does not count flushes: {text}", path.display())))
}

/// What happened between two snapshots.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Audit {
    /// Seconds between them.
    pub seconds: f64,
    /// The device, all processes together.
    pub device: Option<DeviceCounters>,
    /// Bytes that the broker caused to be written.
    pub broker_bytes_written: Option<u64>,
    /// The broker's processor time.
    pub broker_cpu_s: Option<f64>,
    /// Its context switches.
    pub broker_context_switches: Option<u64>,
    /// Its resident memory at the end.
    pub broker_rss_bytes: Option<u64>,
    /// Its highest, since it started.
    pub broker_rss_peak_bytes: Option<u64>,
    /// The generator's processor time.
    pub generator_cpu_s: f64,
    /// Processor time of everybody else, kernel threads and interrupts included.
    pub others_cpu_s: f64,
}

impl Audit {
    /// What happened between two snapshots.
    #[must_use]
    pub fn between(before: &Snapshot, after: &Snapshot, seconds: f64) -> Self {
        let per_second = rustix::param::clock_ticks_per_second();
        #[expect(clippy::cast_precision_loss, reason = "ticks of a run are few")]
        let cpu_s = |ticks: u64| ticks as f64 / per_second as f64;
        let broker = before.broker.zip(after.broker);
        let added = |of: fn(&ProcessCounters) -> u64| {
            broker.map(|(before, after)| of(&after).saturating_sub(of(&before)))
        };
        let broker_ticks = added(|process| process.cpu_ticks);
        let generator_ticks = after.generator_ticks.saturating_sub(before.generator_ticks);
        let machine_ticks = after.machine_ticks.saturating_sub(before.machine_ticks);
        let others = machine_ticks.saturating_sub(generator_ticks + broker_ticks.unwrap_or_default());
        Self {
            seconds,
            device: before.device.zip(after.device).map(|(before, after)| after.since(&before)),
            broker_bytes_written: added(|process| process.bytes_written),
            broker_cpu_s: broker_ticks.map(cpu_s),
            broker_context_switches: added(|process| process.context_switches),
            broker_rss_bytes: after.broker.map(|process| process.rss_bytes),
            broker_rss_peak_bytes: after.broker.map(|process| process.rss_peak_bytes),
            generator_cpu_s: cpu_s(generator_ticks),
            others_cpu_s: cpu_s(others),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "  291823  23    17391204  38239   588871  10293  73920112   29384 0 20394 29384 10 0 80 2 190228 3\n";
    const AFTER: &str = "  291824  23    17391212  38239   588971  10293  73920912   29384 0 20394 29384 10 0 80 2 190278 3\n";

    #[test]
    fn the_device_counts_flushes_writes_and_bytes() {
        let (before, after) = (DeviceCounters::parse(BEFORE).unwrap(), DeviceCounters::parse(AFTER).unwrap());
        assert_eq!(
            after.since(&before),
            DeviceCounters { reads: 1, bytes_read: 4096, writes: 100, bytes_written: 409_600, flushes: 50 }
        );
    }

    #[test]
    fn an_old_kernel_or_another_text_is_not_taken_for_zero_flushes() {
        let old: Vec<&str> = BEFORE.split_whitespace().take(15).collect();
        assert_eq!(DeviceCounters::parse(&old.join(" ")), None);
        assert_eq!(DeviceCounters::parse(""), None);
        assert_eq!(DeviceCounters::parse("a b c"), None);
    }

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "12 (a) b) S 1 1 1 0 -1 4194560 100 0 0 0 70 30 0 0 20 0 5 0 100 1 1";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(cpu_ticks("12 (a"), None);
    }

    #[test]
    fn this_process_is_seen_working() {
        let before = ProcessCounters::of(std::process::id()).unwrap();
        let began = std::time::Instant::now();
        while began.elapsed().as_millis() < 100 {
            std::hint::black_box(crate::schedule::Random::new(1).bits());
        }
        let after = ProcessCounters::of(std::process::id()).unwrap();
        assert!(after.cpu_ticks > before.cpu_ticks);
        assert!(after.rss_bytes > 100_000 && after.rss_peak_bytes >= after.rss_bytes);
    }

    #[test]
    fn idle_time_is_not_busy() {
        let stat = "cpu  10 20 30 1000 2000 40 50 60 5 0\ncpu0 1 2 3\n";
        assert_eq!(machine_busy_ticks(stat), Some(210));
        assert_eq!(machine_busy_ticks("intr 1 2\n"), None);
    }

    #[test]
    fn lines_are_found_by_their_whole_name() {
        let status = "VmHWM:\t  5000 kB\nVmRSS:\t  4000 kB\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t9\n";
        assert_eq!(number_after(status, "VmRSS:"), Some(4000));
        assert_eq!(number_after(status, "voluntary_ctxt_switches:"), Some(7));
        assert_eq!(number_after(status, "nothing:"), None);
    }
}
