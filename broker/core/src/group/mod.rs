//! Consumer groups: who is in one, who has which partition, how far it has come, and whose commits count.
//!
//! Nothing of the broker calls this room yet. Invariants, refusals and the order of things are said by its parts:
//! `assign` computes who is to have what, `membership` brings it about without two members ever having the same, and
//! `coordinator` lets nobody know of it before it is stored.

mod assign;
mod coordinator;
mod membership;
mod subscription;

pub use coordinator::{
    Ask, AskId, Committed, Coordinator, GroupEffect, GroupInput, GroupRefusal, GroupReply,
};
pub use membership::{MemberInfo, MemberRefusal, Membership, Topics};
pub use subscription::Subscription;
