//! Which processors run what, and how urgently: pinned and said, because a wake-up of another processor costs more than
//! most requests.
//!
//! Called by `run`, `broker` and `limits`.

use std::num::NonZeroU64;
use std::process::Command;

use rustix::thread::{CpuSet, gettid, sched_setaffinity};

use crate::error::{Doing, Error, Result};

/// Priority for both sides, of 1 to 99.
const PRIORITY: &str = "20";

/// Of threads that give way: the most is 19, ordinary ones have 0.
const NICE: i32 = 15;

/// Where and how urgently a thread runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadPlace {
    /// Its processor; none: any.
    pub cpu: Option<usize>,
    /// Whether it runs before ordinary threads.
    pub real_time: bool,
}

impl ThreadPlace {
    /// Puts the calling thread, and the processes that it starts, there.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Setup`].
    pub fn take(self) -> Result<()> {
        self.cpu.map_or(Ok(()), pin)?;
        if self.real_time { round_robin() } else { Ok(()) }
    }
}

/// Lets the calling thread, and the processes that it starts, run only here.
///
/// # Errors
/// [`Error::System`] if there is no such processor.
pub fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    if cpu >= CpuSet::MAX_CPU {
        return Err(Error::Setup(format!("there is no processor {cpu}")));
    }
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).doing(|| format!("pinning to processor {cpu}"))
}

/// Lets the calling thread run after all that have not done so, where those want the processor.
///
/// # Errors
/// [`Error::System`].
pub fn give_way() -> Result<()> {
    // Of a thread: priorities are not a process's on Linux.
    rustix::process::setpriority_process(None, NICE).doing(|| "lowering a thread's priority".to_owned())
}

/// Lets the calling thread's timers fire when they are due, and not some 50 microseconds later.
///
/// # Errors
/// [`Error::System`].
pub fn sharp_timers() -> Result<()> {
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).doing(|| "setting the timer slack".to_owned())
}

/// Lets the calling thread, and the processes that it starts, run before all ordinary ones: round robin, never FIFO, under
/// which an executor that waits for its own helper thread would wait for ever.
///
/// # Errors
/// [`Error::Setup`] if the system does not allow it.
pub fn round_robin() -> Result<()> {
    let thread = gettid().as_raw_nonzero().to_string();
    let output = Command::new("chrt")
        .args(["--rr", "--pid", PRIORITY, &thread])
        .output()
        .doing(|| "running chrt (of util-linux)".to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Setup(format!(
        "real-time scheduling is not allowed here ({reason}); run as root, or without --real-time"
    )))
}
