//! Consumer groups: who is in one, who has which partition, how far it has come, and whose commits count.
//!
//! Called by the control thread's group actor. Invariants, refusals and the order of things are said by its parts:
//! `assign` computes who is to have what, `membership` brings it about without two members ever having the same, and
//! `coordinator` lets nobody know of it before it is stored.

mod asks;
mod assign;
mod coordinator;
mod membership;
mod name;
mod subscription;
mod wishes;
mod words;

pub use asks::{
    Ask, AskId, Change, CommitRefusal, Committed, GroupEffect, GroupInput, GroupRefusal, GroupReply, PageId,
    StoredGroup,
};
pub use coordinator::{Coordinator, CoordinatorSettings};
pub use membership::{
    BrokenRecord, HeldRecord, MemberRecord, MemberRefusal, Membership, MembershipRecord, Topics,
};
pub use name::{GroupName, GroupNameError};
pub use subscription::Subscription;
pub use wishes::{
    MEMBER_TEXT_BYTES_MAX, MemberInfo, SESSION_TIMEOUT_MAX, SESSION_TIMEOUT_MIN, SUBSCRIPTION_MAX,
    WishRefusal,
};
pub use words::{Question, answer, described, listed, named};
