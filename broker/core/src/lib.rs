//! Every decision of a Corelog broker, as functions: same state, same inputs, same effects.
//!
//! No async, no clock, no random numbers, no thread, no lock, no file, no socket. The hands (`corelog-broker`) and the
//! weather (`corelog-sim`) drive it. The rooms: `shard` (one core's partitions: the step), `log` (one partition's
//! offsets, epochs, producers, segments), `journal`, `segment` and `checkpoint` (bytes on disk), `recovery` (from bytes
//! back to a shard), `topic`, `meta` and `controller` (what a cluster agrees on), `group` (who consumes what), `limits`,
//! `time`.

pub mod checkpoint;
pub mod compact;
pub mod controller;
pub mod group;
pub mod journal;
pub mod limits;
pub mod log;
pub mod meta;
pub mod recovery;
pub mod segment;
pub mod shard;
pub mod time;
pub mod topic;
