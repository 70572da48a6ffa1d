//! Hostile clients against the real binary. A program of its own, so that no other test runs beside what is measured here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod attack;
mod hostile;
#[path = "../process/support.rs"]
#[expect(dead_code, reason = "shared with the other tests of processes")]
mod support;
#[path = "../process/wire.rs"]
mod wire;
