//! Turns facts into findings. Pure: the same facts, the same words.

use std::io;
use std::path::Path;
use std::time::Duration;

use corelog_core::topic::quantity::format_bytes;

use super::flush::Measured;
use super::probe::{Device, FileSystem};
use super::{Finding, Level};
use crate::rt::Refused;

/// First kernel whose `io_uring` has what the runtime uses.
const KERNEL_LEAST: (u32, u32) = (5, 13);
/// First kernel with the fixes that a broker under load wants.
const KERNEL_WANTED: (u32, u32) = (5, 15);
/// Locked memory that each shard's rings and registered buffers take at most.
const SHARD_LOCKED_BYTES: u64 = 32 << 20;
/// The runtime refuses to start with less.
const LOCKED_BYTES_LEAST: u64 = 512 << 10;
const OPEN_FILES_WANTED: u64 = 65_536;
const OPEN_FILES_LEAST: u64 = 1_024;
const ROOM_BYTES_LEAST: u64 = 1 << 30;
const ROOM_BYTES_WANTED: u64 = 10 << 30;
const FLUSH_SLOW: Duration = Duration::from_millis(10);
/// No device flushes to something that survives a power cut in less than this.
const FLUSH_INCREDIBLE: Duration = Duration::from_micros(5);

/// File systems by the kernel's magic number: name, how good, what to do.
const FILE_SYSTEMS: [(u64, &str, Level, &str); 12] = [
    (0xef53, "ext4", Level::Good, ""),
    (0x5846_5342, "xfs", Level::Good, ""),
    (0x9123_683e, "btrfs", Level::Warning, COPY_ON_WRITE),
    (0x2fc1_2fc1, "zfs", Level::Warning, COPY_ON_WRITE),
    (0xf2f5_2010, "f2fs", Level::Warning, COPY_ON_WRITE),
    (0x0102_1994, "tmpfs", Level::Error, MEMORY),
    (0x8584_58f6, "ramfs", Level::Error, MEMORY),
    (
        0x794c_7630,
        "overlayfs",
        Level::Error,
        "a container's own layer is no place for data: mount a volume on ext4 or XFS",
    ),
    (0x6969, "NFS", Level::Error, REMOTE),
    (0xff53_4d42, "CIFS", Level::Error, REMOTE),
    (0xfe53_4d42, "SMB2", Level::Error, REMOTE),
    (
        0x6573_5546,
        "FUSE",
        Level::Error,
        "a flush means whatever its program makes of it: put the data directory on ext4 or XFS",
    ),
];
const COPY_ON_WRITE: &str =
    "every write moves to new blocks, so that flushes are slow and uneven: use ext4 or XFS";
const MEMORY: &str =
    "this is memory, and a flush proves nothing: choose a data directory on ext4 or XFS, with --data-dir";
const REMOTE: &str =
    "locks and flushes cannot be relied on over the network: use a local disk with ext4 or XFS";

pub(super) fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => {
            return Finding::new(
                "kernel",
                Level::Note,
                release,
                "its version is unknown here; 5.15 or later is wanted",
            );
        }
    };
    if version < KERNEL_LEAST {
        return Finding::new(
            "kernel",
            Level::Error,
            release,
            "io_uring is too old: use kernel 5.15 or later",
        );
    }
    if version < KERNEL_WANTED {
        return Finding::new("kernel", Level::Warning, release, "it works, but use kernel 5.15 or later");
    }
    Finding::good("kernel", release)
}

pub(super) fn io_uring(tried: &Result<(), Refused>) -> Finding {
    match tried {
        Ok(()) => Finding::good("io_uring", "a ring can be made"),
        Err(refused) => {
            let text = refused.to_string();
            let (found, fix) = text.split_once(": ").unwrap_or((&text, "see the kernel's log"));
            Finding::new("io_uring", Level::Error, found, fix)
        }
    }
}

pub(super) fn filter(mode: Option<u32>) -> Finding {
    match mode {
        Some(0) => Finding::good("seccomp", "no system call filter"),
        Some(_) => {
            let fix = "nothing, if io_uring above is ok; else allow io_uring_setup, io_uring_enter and io_uring_register";
            Finding::new("seccomp", Level::Note, "a system call filter is active (a container?)", fix)
        }
        None => {
            Finding::new("seccomp", Level::Note, "unknown: /proc/self/status says nothing", "mount /proc")
        }
    }
}

pub(super) fn locked_memory(limit: Option<u64>, shards: u16) -> Finding {
    let check = "locked memory";
    let Some(bytes) = limit else { return Finding::good(check, "no limit") };
    let found = format!("at most {}", format_bytes(bytes));
    let fix = "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit";
    if bytes < LOCKED_BYTES_LEAST {
        return Finding::new(check, Level::Error, found, fix);
    }
    if bytes < SHARD_LOCKED_BYTES.saturating_mul(u64::from(shards)) {
        let fix = format!("{fix}; with less, {shards} shards copy where they could register buffers");
        return Finding::new(check, Level::Note, found, fix);
    }
    Finding::good(check, found)
}

pub(super) fn open_files((now, most): (Option<u64>, Option<u64>)) -> Finding {
    let check = "open files";
    let Some(files) = now else { return Finding::good(check, "no limit") };
    let found = format!("at most {files}");
    let fix = match most {
        Some(most) if most < OPEN_FILES_WANTED => {
            "LimitNOFILE=1048576 in the unit, or nofile in /etc/security/limits.conf"
        }
        _ => "ulimit -n 65536, or LimitNOFILE=1048576 in the unit",
    };
    match files {
        ..OPEN_FILES_LEAST => Finding::new(check, Level::Error, found, fix),
        OPEN_FILES_LEAST..OPEN_FILES_WANTED => {
            let found = format!("{found}: connections, segments and spares share them");
            Finding::new(check, Level::Warning, found, fix)
        }
        _ => Finding::good(check, found),
    }
}

pub(super) fn clock(source: Option<&str>) -> Finding {
    let check = "clock source";
    match source {
        Some(source @ ("tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page" | "arch_sys_counter")) => {
            Finding::good(check, source)
        }
        Some(source) => {
            let found = format!("{source}: every look at the clock is a system call");
            let fix = "boot with clocksource=tsc tsc=reliable if the CPU's counter is stable (dmesg says why it was dropped)";
            Finding::new(check, Level::Warning, found, fix)
        }
        None => Finding::new(check, Level::Note, "unknown", "make /sys readable"),
    }
}

pub(super) fn governor(governor: Option<&str>) -> Finding {
    let check = "CPU frequency";
    match governor {
        Some("powersave" | "ondemand" | "conservative") => {
            let found = format!("governor {}", governor.unwrap_or_default());
            Finding::new(check, Level::Note, found, "for flat latency: cpupower frequency-set -g performance")
        }
        Some(governor) => Finding::good(check, format!("governor {governor}")),
        None => Finding::good(check, "not set by this system"),
    }
}

pub(super) fn data_dir(asked: &Path, existing: Option<&Path>) -> Finding {
    let check = "data directory";
    match existing {
        Some(folder) if folder == asked => Finding::good(check, asked.display().to_string()),
        Some(folder) => Finding::good(
            check,
            format!("{} is not there yet; looking at {}", asked.display(), folder.display()),
        ),
        None => Finding::new(
            check,
            Level::Error,
            asked.display().to_string(),
            "nothing of this path exists: choose another",
        ),
    }
}

/// Whether nothing written there survives.
pub(super) fn is_memory(file_system: &FileSystem) -> bool {
    FILE_SYSTEMS.iter().any(|(kind, _, _, fix)| *kind == file_system.kind && *fix == MEMORY)
}

pub(super) fn file_system(file_system: Result<&FileSystem, &io::Error>) -> Finding {
    let check = "file system";
    let file_system = match file_system {
        Ok(file_system) => file_system,
        Err(error) => {
            return Finding::new(
                check,
                Level::Error,
                error.to_string(),
                "choose a directory that can be read",
            );
        }
    };
    if file_system.read_only {
        return Finding::new(
            check,
            Level::Error,
            "mounted read-only",
            "remount it read-write, or choose another",
        );
    }
    match FILE_SYSTEMS.iter().find(|(kind, ..)| *kind == file_system.kind) {
        Some((_, name, Level::Good, _)) => Finding::good(check, *name),
        Some((_, name, level, fix)) => Finding::new(check, *level, *name, *fix),
        None => {
            let found = format!("of an unknown type ({:#x})", file_system.kind);
            Finding::new(check, Level::Warning, found, "only ext4 and XFS are tested: use one of them")
        }
    }
}

pub(super) fn room(file_system: Result<&FileSystem, &io::Error>) -> Finding {
    let check = "disk room";
    let Ok(file_system) = file_system else {
        return Finding::new(check, Level::Note, "unknown", "choose a directory that can be read");
    };
    // In whole GiB, or MiB where that says more.
    let whole = |bytes: u64| match bytes {
        ..ROOM_BYTES_WANTED => format_bytes(bytes >> 20 << 20),
        _ => format_bytes(bytes >> 30 << 30),
    };
    let found = format!("{} free of {}", whole(file_system.bytes_free), whole(file_system.bytes));
    match file_system.bytes_free {
        ..ROOM_BYTES_LEAST => {
            Finding::new(check, Level::Error, found, "a journal and a segment need 1GiB at least: make room")
        }
        ROOM_BYTES_LEAST..ROOM_BYTES_WANTED => Finding::new(
            check,
            Level::Warning,
            found,
            "set storage.disk_bytes_max to what is left, or make room",
        ),
        _ => Finding::good(check, found),
    }
}

pub(super) fn device(device: Option<&Device>) -> Finding {
    let check = "device";
    let Some(device) = device else {
        let fix = "nothing, unless the file system is meant to be on a local disk";
        return Finding::new(check, Level::Note, "no block device is known below this file system", fix);
    };
    let blocks = match (device.logical_block_bytes, device.physical_block_bytes) {
        (Some(logical), Some(physical)) => Some(format!("blocks of {logical}/{physical} bytes")),
        _ => None,
    };
    let cache = device.write_cache.as_ref().map(|cache| format!("cache {cache}"));
    let fua = device.fua.map(|fua| if fua { "FUA" } else { "no FUA" }.to_owned());
    let scheduler = device.scheduler.as_ref().map(|scheduler| format!("scheduler {scheduler}"));
    let known = [Some(device.name.clone()), blocks, cache, fua, scheduler];
    let found = known.into_iter().flatten().collect::<Vec<String>>().join(", ");
    if device.rotational == Some(true) && device.write_cache.as_deref() == Some("write back") {
        let fix = "a flush waits for the platter, if this is really a hard disk: use an SSD for acks=all with low latency";
        return Finding::new(check, Level::Note, format!("{found}, rotational"), fix);
    }
    if device.write_cache.as_deref() == Some("write back") && device.fua == Some(false) {
        let fix = "nothing: each commit is a write and a flush; a device with power-loss protection makes flushes free";
        return Finding::new(check, Level::Note, found, fix);
    }
    Finding::good(check, found)
}

pub(super) fn direct(measured: Result<&Measured, &io::Error>) -> Finding {
    let check = "direct I/O";
    match measured {
        Ok(Measured { alignment: Some((memory, offset)), .. }) if *offset > 4_096 => {
            let found = format!("works, aligned to {memory} bytes in memory and {offset} in the file");
            Finding::new(
                check,
                Level::Error,
                found,
                "blocks larger than 4 KiB are not supported: use another disk",
            )
        }
        Ok(Measured { alignment: Some((memory, offset)), .. }) => Finding::good(
            check,
            format!("works, aligned to {memory} bytes in memory and {offset} in the file"),
        ),
        Ok(_) => Finding::good(check, "works"),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            let found = "the file system refuses O_DIRECT";
            Finding::new(check, Level::Error, found, "put the data directory on ext4 or XFS")
        }
        Err(error) => {
            let found = format!("a file cannot be written here: {error}");
            Finding::new(
                check,
                Level::Error,
                found,
                "give this user the directory (chown), or choose another",
            )
        }
    }
}

pub(super) fn flush(measured: &Measured) -> Finding {
    let check = "flush";
    let found = format!(
        "4KiB written and flushed in {:.2?} (p50), {:.2?} (p99) of {}",
        measured.p50, measured.p99, measured.flushes
    );
    if measured.p50 < FLUSH_INCREDIBLE {
        let fix = "the disk or the hypervisor ignores flushes: turn that off, or a power cut loses acknowledged records";
        return Finding::new(check, Level::Warning, format!("{found}: too fast to be true"), fix);
    }
    if measured.p50 > FLUSH_SLOW {
        let fix = "every acknowledgement with durability=disk takes at least this: use an SSD, best with power-loss protection";
        return Finding::new(check, Level::Warning, found, fix);
    }
    Finding::good(check, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    fn levels<T>(cases: &[(T, Level)], judge: impl Fn(&T) -> Finding) {
        for (case, level) in cases {
            let finding = judge(case);
            assert_eq!(finding.level, *level, "{finding:?}");
            assert_eq!(finding.fix.is_none(), *level == Level::Good, "{finding:?}");
        }
    }

    #[test]
    fn kernels_are_told_apart() {
        levels(
            &[
                ("6.18.44-generic", Level::Good),
                ("5.15.0", Level::Good),
                ("5.13.19-2-pve", Level::Warning),
                ("5.11.22-1-pve", Level::Error),
                ("4.19", Level::Error),
                ("weird", Level::Note),
            ],
            |release| kernel(release),
        );
    }

    #[test]
    fn a_refused_ring_comes_with_its_remedy() {
        let disabled = io_uring(&Err(Refused::Disabled("2".to_owned())));
        assert_eq!(disabled.level, Level::Error);
        assert_eq!(disabled.found, "io_uring is switched off (kernel.io_uring_disabled = 2)");
        assert!(disabled.fix.unwrap().starts_with("set it to 0"));
        let forbidden = io_uring(&Err(Refused::Forbidden(Errno::PERM)));
        assert!(forbidden.fix.unwrap().contains("seccomp"));
        assert_eq!(io_uring(&Ok(())).level, Level::Good);
        levels(&[(Some(0), Level::Good), (Some(2), Level::Note), (None, Level::Note)], |mode| filter(*mode));
    }

    #[test]
    fn limits_are_judged_by_what_shards_need() {
        levels(
            &[
                ((None, 4), Level::Good),
                ((Some(64 << 10), 1), Level::Error),
                ((Some(8 << 20), 1), Level::Note),
                ((Some(64 << 20), 2), Level::Good),
                ((Some(64 << 20), 3), Level::Note),
            ],
            |(bytes, shards)| locked_memory(*bytes, *shards),
        );
        levels(
            &[
                ((None, None), Level::Good),
                ((Some(256), Some(256)), Level::Error),
                ((Some(1_024), Some(1 << 20)), Level::Warning),
                ((Some(20_000), Some(20_000)), Level::Warning),
                ((Some(1 << 20), Some(1 << 20)), Level::Good),
            ],
            |limits| open_files(*limits),
        );
    }

    fn of_kind(kind: u64) -> FileSystem {
        FileSystem { kind, bytes: 100 << 30, bytes_free: 50 << 30, read_only: false }
    }

    #[test]
    fn only_ext4_and_xfs_are_good() {
        levels(
            &[
                (0xef53, Level::Good),
                (0x5846_5342, Level::Good),
                (0x9123_683e, Level::Warning),
                (0x0102_1994, Level::Error),
                (0x794c_7630, Level::Error),
                (0x6969, Level::Error),
                (0x1234, Level::Warning),
            ],
            |kind| file_system(Ok(&of_kind(*kind))),
        );
        assert!(is_memory(&of_kind(0x0102_1994)) && !is_memory(&of_kind(0xef53)));
        let read_only = FileSystem { read_only: true, ..of_kind(0xef53) };
        assert_eq!(file_system(Ok(&read_only)).level, Level::Error);
        assert_eq!(file_system(Err(&io::Error::from(Errno::ACCESS))).level, Level::Error);
    }

    #[test]
    fn room_is_judged_in_whole_numbers() {
        levels(
            &[(u64::MAX >> 1, Level::Good), (5 << 30, Level::Warning), (1 << 20, Level::Error)],
            |bytes_free| room(Ok(&FileSystem { bytes_free: *bytes_free, ..of_kind(0xef53) })),
        );
        let odd = FileSystem { bytes_free: (20 << 30) + 12_345, ..of_kind(0xef53) };
        assert_eq!(room(Ok(&odd)).found, "20GiB free of 100GiB");
    }

    #[test]
    fn devices_are_described() {
        let nvme = Device {
            name: "nvme0n1p2".to_owned(),
            write_cache: Some("write back".to_owned()),
            fua: Some(true),
            rotational: Some(false),
            logical_block_bytes: Some(512),
            physical_block_bytes: Some(4_096),
            scheduler: Some("none".to_owned()),
        };
        let found = device(Some(&nvme));
        assert_eq!(found.found, "nvme0n1p2, blocks of 512/4096 bytes, cache write back, FUA, scheduler none");
        assert_eq!(found.level, Level::Good);
        let virtual_disk = Device { fua: Some(false), ..nvme.clone() };
        assert_eq!(device(Some(&virtual_disk)).level, Level::Note);
        let platter = Device { rotational: Some(true), ..nvme };
        assert!(device(Some(&platter)).fix.unwrap().contains("SSD"));
        assert_eq!(device(None).level, Level::Note);
    }

    fn measured(p50: Duration, alignment: Option<(u32, u32)>) -> Measured {
        Measured { flushes: 100, p50, p99: p50 * 2, alignment }
    }

    #[test]
    fn flushes_can_be_slow_or_too_good_to_be_true() {
        levels(
            &[
                (Duration::from_micros(1_300), Level::Good),
                (Duration::from_millis(14), Level::Warning),
                (Duration::from_micros(2), Level::Warning),
            ],
            |p50| flush(&measured(*p50, None)),
        );
        let found = flush(&measured(Duration::from_micros(1_300), None)).found;
        assert_eq!(found, "4KiB written and flushed in 1.30ms (p50), 2.60ms (p99) of 100");
    }

    #[test]
    fn direct_io_says_its_alignment_or_why_not() {
        let fine = measured(Duration::from_millis(1), Some((512, 512)));
        assert_eq!(direct(Ok(&fine)).found, "works, aligned to 512 bytes in memory and 512 in the file");
        let large = measured(Duration::from_millis(1), Some((512, 16_384)));
        assert_eq!(direct(Ok(&large)).level, Level::Error);
        let refused = direct(Err(&io::Error::from(Errno::INVAL)));
        assert!(refused.fix.unwrap().contains("ext4"));
        let forbidden = direct(Err(&io::Error::from(Errno::ACCESS)));
        assert!(forbidden.fix.unwrap().contains("chown"));
    }

    #[test]
    fn clocks_and_frequencies() {
        levels(
            &[
                (Some("tsc"), Level::Good),
                (Some("kvm-clock"), Level::Good),
                (Some("hpet"), Level::Warning),
                (None, Level::Note),
            ],
            |source| clock(*source),
        );
        levels(
            &[(Some("performance"), Level::Good), (Some("powersave"), Level::Note), (None, Level::Good)],
            |name| governor(*name),
        );
    }

    #[test]
    fn a_data_directory_need_not_be_there() {
        let asked = Path::new("/data/corelog");
        assert_eq!(data_dir(asked, Some(asked)).found, "/data/corelog");
        let absent = data_dir(asked, Some(Path::new("/data")));
        assert_eq!(absent.found, "/data/corelog is not there yet; looking at /data");
        assert_eq!(data_dir(asked, None).level, Level::Error);
    }
}
