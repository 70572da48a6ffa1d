//! `corelog-bench`: how fast a broker is, against what its machine could do.
//!
//! Called by the program of the same name. The load is an open loop unless a workload says otherwise, so that a stall
//! cannot hide; every record is read back and checked, so that a benchmark is a test; device flushes are counted beside
//! every figure, so that a durability that is only claimed is seen. `suite` runs workloads in turns, `run` runs one,
//! `engine` is the generator, and each peer is behind its `Protocol`.

pub mod args;
pub mod audit;
pub mod broker;
pub mod canary;
pub mod chart;
pub mod check;
pub mod compaction;
pub mod compare;
pub mod engine;
pub mod error;
pub mod follow;
pub mod groups;
pub mod history;
pub mod hlog;
pub mod html;
pub mod limits;
mod line;
pub mod load;
pub mod machine;
pub mod measure;
pub mod payload;
pub mod peer;
pub mod pin;
pub mod ramp;
pub mod report;
pub mod run;
pub mod schedule;
pub mod stage;
pub mod strawman;
pub mod suite;
pub mod tally;
pub mod workload;
