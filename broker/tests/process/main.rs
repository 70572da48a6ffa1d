//! Tests against the real binary: processes, sockets, files.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod compaction;
mod dev;
mod disk_full;
mod groups;
mod kill;
mod lag;
mod output;
mod protect;
mod round_trip;
mod support;
mod tags;
mod wire;
