//! The weather: a seeded, deterministic simulator of one Corelog broker, its disk, its clients and their troubles.
//!
//! Called by its tests and by the binary `corelog-sim`. It drives the very decisions that the broker runs
//! (`corelog-core`) with virtual time and a disk of real bytes, and holds what clients were told against what is there
//! (`checker`). Invariant: one seed, one run, byte for byte; the trace hash says so. It refuses to know a clock, a
//! thread, a socket, a real file, or any chance but its seed's. docs/SIMULATION.md describes it.

#![expect(
    clippy::needless_pass_by_value,
    clippy::unused_self,
    clippy::similar_names,
    clippy::match_same_arms,
    reason = "events are handed over whole, and the weather is listed case by case"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    reason = "virtual sizes fit every machine this runs on"
)]
#![expect(clippy::missing_panics_doc, reason = "a simulator that meets a contradiction stops")]

pub mod checker;
pub mod client;
pub mod corpus;
pub mod disk;
pub mod groups;
pub mod hands;
pub mod plan;
pub mod rig;
pub mod rng;
pub mod seeds;
pub mod shadow;
pub mod sim;
pub mod trace;
pub mod world;

pub use plan::Plan;
pub use sim::{Outcome, Sim};

/// Runs one seed from beginning to end.
#[must_use]
pub fn run_seed(seed: u64, printing: bool) -> Outcome {
    Sim::new(Plan::draw(seed), printing).run()
}
