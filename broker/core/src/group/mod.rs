//! Consumer groups: who is in one, who has which partition, and whose commits count.
//!
//! Nothing of the broker calls this room yet. Invariants, refusals and the order of things are said by its parts:
//! `assign` computes who is to have what, `membership` brings it about without two members ever having the same.

mod assign;
mod membership;
mod subscription;

pub use assign::Assignor;
pub use membership::{MemberInfo, MemberRefusal, Membership, Topics};
pub use subscription::Subscription;
