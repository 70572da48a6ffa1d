//! The network hands on real executors and real sockets, with a shard of a few lines behind the seam.

mod hostile;
mod memory;
mod requests;
mod shards;
mod world;
