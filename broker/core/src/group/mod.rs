//! Consumer groups: who is in one, who has which partition, and whose commits count.
//!
//! Nothing of the broker calls this room yet. Invariants, refusals and the order of things are said by its parts.

mod assign;

pub use assign::Assignor;
