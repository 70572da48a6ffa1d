//! One broker: what it is configured with, how it starts and stops, and the pump of each shard.
//!
//! `start` (the commands), `config` (what was asked for), `descriptors` (open files), `boot` (start and stop),
//! `operators` (administration around it), `layout` (what the data directory is), `shard` and `pump` (one shard's loop),
//! `control` and `groups` (the control thread's actors), `command` (the way from there to a shard).

pub mod boot;
pub mod command;
pub mod config;
pub mod control;
mod descriptors;
pub mod groups;
pub mod layout;
mod operators;
pub mod pump;
pub mod shard;
pub mod start;
