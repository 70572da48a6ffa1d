//! The runtime: one pinned executor per shard, and everything above it that waits, spawns or reads a clock.
//!
//! Called by `node` (boot and the pump), `disk` and `net`. glommio is named only here, in `disk` and in `net`, so
//! that it can be replaced. Knows nothing of partitions, files or sockets.
//!
//! Invariants: every executor is woken from outside every few milliseconds while it works (glommio 0.9.0 may park
//! with runnable tasks otherwise); an executor that stops running its tasks takes the process with it.

mod clock;
mod executor;
mod gate;
mod pacemaker;
mod preflight;
mod ring;
mod runnable;
mod signal;
mod tasks;

pub use clock::Clock;
pub use executor::{Options, Running, ShardContext, StartError, allowed_cpus, start};
pub use gate::{Gate, Pass};
pub use pacemaker::Pulse;
pub use preflight::{Refused, preflight};
pub use ring::{Ring, Stable, Watch};
pub(crate) use runnable::outside;
pub use signal::{Alarm, Signal};
pub use tasks::{Queue, blocking, sleep, spawn, spawn_in, yield_if_needed, yield_now};

#[cfg(test)]
mod tests;
