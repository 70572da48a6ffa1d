//! The machine header: figures count only with what they were measured on.
//!
//! Called by `run` and `limits`. Invariant: what cannot be found out is absent, never guessed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{major, minor};
use serde::Serialize;

use crate::error::{Doing, Result};
use crate::limits::WriteFlush;

/// What the figures were measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: Option<String>,
    /// Processors that are online.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Operating system, release and version.
    pub kernel: String,
    /// Where the data is.
    pub folder: PathBuf,
    /// File system and mount options.
    pub mount: Option<Mount>,
    /// The device under it.
    pub device: Option<BlockDevice>,
    /// Write and flush of 4 KiB into written blocks.
    pub flush_4k: Option<WriteFlush>,
    /// Processes that wanted to run in the last minute, before the run.
    pub load_average: Option<f64>,
    /// How both sides were pinned and scheduled.
    pub pinning: String,
    /// The generator's version.
    pub generator: String,
    /// The broker's version.
    pub broker: Option<String>,
    /// Revision of the source, with `-dirty` if it was changed.
    pub revision: Option<String>,
    /// When the run began, in milliseconds since 1970.
    pub time_ms: u64,
}

/// Where a folder is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Kind of file system.
    pub kind: String,
    /// Its options.
    pub options: String,
}

/// A block device.
#[derive(Clone, Debug, Serialize)]
pub struct BlockDevice {
    /// Its name in /sys/block.
    pub name: String,
    /// `write back` if it has a volatile cache, so that a flush does something.
    pub write_cache: Option<String>,
    /// Whether it writes past its cache on request.
    pub fua: Option<String>,
    /// The scheduler in force, in brackets.
    pub scheduler: Option<String>,
    /// Its counters.
    pub stat: PathBuf,
}

impl Machine {
    /// Finds out what there is to know of the machine and of the folder's device.
    ///
    /// # Errors
    /// [`crate::error::Error::System`] if the folder does not exist.
    pub fn look(folder: &Path, broker: Option<&Path>, pinning: String) -> Result<Self> {
        let folder = folder.canonicalize().doing(|| format!("looking for {}", folder.display()))?;
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let loadavg = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Ok(Self {
            cpu: value_of(&cpuinfo, "model name"),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_bytes: value_of(&meminfo, "MemTotal")
                .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
                .map(|kib| kib * 1024),
            kernel: [uname.sysname(), uname.release(), uname.version()].map(text).join(" "),
            mount: Mount::of(&mountinfo, &folder),
            device: BlockDevice::of(&folder),
            folder,
            flush_4k: None,
            load_average: loadavg.split_whitespace().next().and_then(|load| load.parse().ok()),
            pinning,
            generator: env!("CARGO_PKG_VERSION").to_owned(),
            broker: broker.and_then(|program| output(Command::new(program).arg("--version"))),
            revision: output(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"])),
            time_ms: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        })
    }

    /// The header above a table.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let or_unknown = |text: Option<&String>| text.map_or("unknown", String::as_str).to_owned();
        let memory =
            self.memory_bytes.map_or_else(|| "unknown".to_owned(), |bytes| format!("{} GiB", bytes >> 30));
        let mount = self
            .mount
            .as_ref()
            .map_or_else(|| "unknown".to_owned(), |mount| format!("{} ({})", mount.kind, mount.options));
        let device = self.device.as_ref().map_or_else(
            || "no block device of its own: device counters are missing".to_owned(),
            |device| {
                format!(
                    "{}, cache {}, FUA {}, scheduler {}",
                    device.name,
                    or_unknown(device.write_cache.as_ref()),
                    or_unknown(device.fua.as_ref()),
                    or_unknown(device.scheduler.as_ref()),
                )
            },
        );
        let flush = self.flush_4k.as_ref().map_or_else(
            || "not measured".to_owned(),
            |flush| format!("p50 {} us, p99 {} us", microseconds(flush.p50_ns), microseconds(flush.p99_ns)),
        );
        vec![
            format!("cpu        {} x {}, memory {memory}", self.cpus, or_unknown(self.cpu.as_ref())),
            format!("kernel     {}", self.kernel),
            format!("data       {} on {mount}", self.folder.display()),
            format!("device     {device}; 4 KiB write + flush: {flush}"),
            format!("pinning    {}", self.pinning),
            format!(
                "versions   corelog-bench {}, broker {}, revision {}",
                self.generator,
                or_unknown(self.broker.as_ref()),
                or_unknown(self.revision.as_ref())
            ),
            format!(
                "load       {} before the run",
                self.load_average.map_or_else(|| "unknown".to_owned(), |load| format!("{load:.2}"))
            ),
        ]
    }
}

/// Nanoseconds as microseconds; a dash for what is not claimed.
#[must_use]
pub fn microseconds(ns: Option<u64>) -> String {
    ns.map_or_else(|| "-".to_owned(), |ns| (ns / 1000).to_string())
}

impl Mount {
    /// The mount with the longest path that the folder is under.
    fn of(mountinfo: &str, folder: &Path) -> Option<Self> {
        let mut best: Option<(usize, Self)> = None;
        for line in mountinfo.lines() {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split_whitespace().skip(4);
            let (path, options) = (before.next()?, before.next()?);
            let kind = after.split_whitespace().next()?;
            let length = path.len();
            // A later mount on the same path hides the earlier one.
            if folder.starts_with(path) && best.as_ref().is_none_or(|(longest, _)| length >= *longest) {
                best = Some((length, Self { kind: kind.to_owned(), options: options.to_owned() }));
            }
        }
        best.map(|(_, mount)| mount)
    }
}

impl BlockDevice {
    /// The whole device that a folder is on.
    fn of(folder: &Path) -> Option<Self> {
        let device = std::fs::metadata(folder).ok()?.dev();
        let link = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
        let mut path = link.canonicalize().ok()?;
        if path.join("partition").exists() {
            path = path.parent()?.to_owned();
        }
        let read = |name: &str| {
            let text = std::fs::read_to_string(path.join("queue").join(name)).ok()?;
            Some(text.trim().to_owned())
        };
        Some(Self {
            name: path.file_name()?.to_string_lossy().into_owned(),
            write_cache: read("write_cache"),
            fua: read("fua"),
            scheduler: read("scheduler"),
            stat: path.join("stat"),
        })
    }
}

/// What follows the colon of the first line that begins with `name`.
fn value_of(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
23 22 0:30 / /data rw,noatime shared:1 - xfs /dev/vdb rw\n\
24 22 0:31 / /dat rw - tmpfs none rw\n";

    #[test]
    fn the_longest_mount_wins() {
        let mount = |path: &str| Mount::of(MOUNTS, Path::new(path)).unwrap();
        assert_eq!(mount("/data/x"), Mount { kind: "xfs".to_owned(), options: "rw,noatime".to_owned() });
        assert_eq!(mount("/database").kind, "ext4");
    }

    #[test]
    fn this_machine_has_a_header() {
        let machine = Machine::look(Path::new("."), None, "none".to_owned()).unwrap();
        assert!(machine.cpus > 0 && machine.memory_bytes.unwrap() > 1 << 20);
        assert!(machine.kernel.starts_with("Linux "));
        assert_eq!(machine.lines().len(), 7);
        assert!(Machine::look(Path::new("/nowhere"), None, String::new()).is_err());
    }
}
