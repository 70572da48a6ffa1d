//! Whether this process may use `io_uring` at all, asked before the first executor: glommio answers a refusal with a
//! panic in the executor's thread.

use io_uring::IoUring;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// glommio refuses to start an executor with less than this.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// Why executors cannot run here, with the remedy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// The kernel setting forbids it.
    #[error(
        "io_uring is switched off (kernel.io_uring_disabled = {0}): set it to 0, or to 1 with this user's group in \
         kernel.io_uring_group"
    )]
    Disabled(String),
    /// A system call filter forbids it, or the kernel lacks it.
    #[error(
        "io_uring is refused ({0}): in a container, use a seccomp profile that allows io_uring_setup, io_uring_enter \
         and io_uring_register (docker: --security-opt seccomp=...); otherwise use kernel 5.13 or later"
    )]
    Forbidden(Errno),
    /// The limit on locked memory is too small.
    #[error(
        "the limit on locked memory is {0} bytes, less than 512 KiB: raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=)"
    )]
    LockedMemory(u64),
}

/// Whether executors can run in this process.
///
/// # Errors
/// What stands in the way, with the remedy.
pub fn preflight() -> Result<(), Refused> {
    if let Some(bytes) = getrlimit(Resource::Memlock).current
        && bytes < MEMLOCK_BYTES_MIN
    {
        return Err(Refused::LockedMemory(bytes));
    }
    // Made and closed again: the only way to know.
    let refused = IoUring::new(2).err();
    match refused.map(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOSYS)) {
        None => Ok(()),
        Some(errno) => Err(match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
            Ok(value) if value.trim() != "0" && errno == Errno::PERM => {
                Refused::Disabled(value.trim().to_owned())
            }
            _ => Refused::Forbidden(errno),
        }),
    }
}
