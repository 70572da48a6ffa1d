//! Corelog's wire protocol and record batches: ids, frames, FlatBuffers messages, error codes, checksums.
//!
//! Used by the broker's decisions and hands, by the client and by the simulator. Invariants: whatever was decoded or
//! checked here is trusted behind it; no bytes make it panic. It refuses to know sockets, disks, clocks and threads,
//! and it neither compresses nor decompresses. The bytes are described in docs/PROTOCOL.md and docs/FORMAT.md.

pub mod batch;
pub mod error;
pub mod frame;
// flatc writes what it writes; only what is behind `message` uses it.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::allow_attributes, unsafe_code)]
mod generated;
pub mod ids;
pub mod keys;
pub mod message;
pub mod records;

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod testing;
