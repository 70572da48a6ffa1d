//! The Corelog broker and command line.
pub mod admin;
pub mod cli;
pub mod disk;
pub mod doctor;
pub mod meta;
pub mod net;
pub mod node;
pub mod rt;
