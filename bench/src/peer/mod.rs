//! What is measured. Each peer has a way to prepare a topic, a [`crate::engine::Protocol`] for the load, and a way to read
//! everything back for `check`.

pub mod corelog;
pub mod library;
