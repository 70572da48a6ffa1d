//! Facts of this machine, read from the kernel. Judges nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statfs, statvfs, statx};
use rustix::process::{Resource, getrlimit};

/// The kernel's release, such as `6.1.0-18-amd64`.
pub(super) fn kernel() -> String {
    line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned())
}

/// Of `/proc/self/status`: 0 none, 1 strict, 2 a filter.
pub(super) fn seccomp_mode() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Seccomp:"))?.trim().parse().ok()
}

/// Bytes this process may lock; none is no limit.
pub(super) fn locked_memory() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// Files this process may have open now, and may allow itself; none is no limit.
pub(super) fn open_files() -> (Option<u64>, Option<u64>) {
    let limit = getrlimit(Resource::Nofile);
    (limit.current, limit.maximum)
}

/// What `clock_gettime` reads.
pub(super) fn clock_source() -> Option<String> {
    line("/sys/devices/system/clocksource/clocksource0/current_clocksource")
}

/// How the first CPU chooses its frequency; none where it cannot.
pub(super) fn governor() -> Option<String> {
    line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
}

/// The folder itself, or the nearest one above it that is there.
pub(super) fn existing(folder: &Path) -> Option<&Path> {
    folder
        .ancestors()
        .map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above })
        .find(|above| above.is_dir())
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileSystem {
    /// The kernel's magic number of its type.
    pub(super) kind: u64,
    pub(super) bytes: u64,
    /// Room for whoever is not root.
    pub(super) bytes_free: u64,
    pub(super) read_only: bool,
}

pub(super) fn file_system(folder: &Path) -> io::Result<FileSystem> {
    let kind = statfs(folder)?.f_type;
    let room = statvfs(folder)?;
    Ok(FileSystem {
        kind: u64::try_from(kind).unwrap_or(0),
        bytes: room.f_blocks.saturating_mul(room.f_frsize),
        bytes_free: room.f_bavail.saturating_mul(room.f_frsize),
        read_only: room.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

/// A block device, as `/sys/block` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Device {
    pub(super) name: String,
    /// `write back` (volatile) or `write through`.
    pub(super) write_cache: Option<String>,
    /// Whether single writes can bypass the cache.
    pub(super) fua: Option<bool>,
    pub(super) rotational: Option<bool>,
    pub(super) logical_block_bytes: Option<u64>,
    pub(super) physical_block_bytes: Option<u64>,
    pub(super) scheduler: Option<String>,
}

/// The device below a folder; none for file systems without one.
pub(super) fn device(folder: &Path) -> Option<Device> {
    let at = statx(CWD, folder, AtFlags::empty(), StatxFlags::BASIC_STATS).ok()?;
    let number = format!("/sys/dev/block/{}:{}", at.stx_dev_major, at.stx_dev_minor);
    let place = fs::canonicalize(number).ok()?;
    // A partition has no queue of its own: its disk has.
    let disk: PathBuf = if place.join("queue").is_dir() { place.clone() } else { place.parent()?.to_owned() };
    let read = |name: &str| line(disk.join("queue").join(name));
    let flag = |name: &str| read(name).map(|text| text != "0");
    let number = |name: &str| read(name).and_then(|text| text.parse().ok());
    Some(Device {
        name: place.file_name()?.to_string_lossy().into_owned(),
        write_cache: read("write_cache"),
        fua: flag("fua"),
        rotational: flag("rotational"),
        logical_block_bytes: number("logical_block_size"),
        physical_block_bytes: number("physical_block_size"),
        scheduler: read("scheduler").map(|text| chosen(&text).to_owned()),
    })
}

/// Of `none [mq-deadline] kyber` the one in brackets.
fn chosen(options: &str) -> &str {
    let inside = options.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(options, |(chosen, _)| chosen)
}

fn line(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_folder_that_is_there_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b/c");
        assert_eq!(existing(&deep), Some(directory.path()));
        assert_eq!(existing(directory.path()), Some(directory.path()));
        assert_eq!(existing(Path::new("nowhere/here")), Some(Path::new(".")));
    }

    #[test]
    fn the_chosen_scheduler_is_the_one_in_brackets() {
        assert_eq!(chosen("none [mq-deadline] kyber"), "mq-deadline");
        assert_eq!(chosen("none"), "none");
    }
}
