//! Consumer groups in the metadata store: how they are written, claimed, read and changed.
//!
//! Called by the group coordinator's hands. Invariants: a group changes only in transactions that hold its [`Claim`],
//! the revision of the group's key; whoever claims anew makes every transaction fail that was on its way before. A
//! group's key is there as long as one of its offsets is. Refuses to know what a group is allowed to become.

mod values;

use std::collections::BTreeMap;

use corelog_core::group::{Change, Committed, GroupName, PageId, StoredGroup};
use corelog_core::meta::keys::{Keys, Subject};
use corelog_core::meta::values::ReplicaIdentity;
use corelog_core::meta::{Compare, Key, Op, Revision, TXN_BYTES_MAX, TXN_OPS_MAX, Txn, TxnAnswer};
use thiserror::Error;

use super::values::ValueError;
use super::{MetaStore, Store, StoreError};

/// What a coordinator holds of a group: when its key was put last; none while the store has no such key.
pub type Claim = Option<Revision>;

/// Pages as they are to be.
pub type Pages = BTreeMap<PageId, BTreeMap<u32, Committed>>;

/// Why a group was not read, or perhaps not changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GroupStoreError {
    /// The store has no answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store holds what this broker cannot read, or the group is too large for it.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Somebody else claimed the group.
    #[error("another coordinator has claimed group {group}")]
    Claimed {
        /// The group.
        group: GroupName,
    },
}

/// Reads and changes groups.
#[derive(Debug, Clone)]
pub struct GroupStore {
    store: Store,
    keys: Keys,
    identity: ReplicaIdentity,
}

impl GroupStore {
    /// Groups under these keys, claimed in this broker's name.
    #[must_use]
    pub fn new(store: Store, keys: Keys, identity: ReplicaIdentity) -> Self {
        Self { store, keys, identity }
    }

    /// All groups, for a broker that has the store to itself: nobody else can have a change on its way, so there is
    /// nothing to claim.
    ///
    /// # Errors
    /// [`GroupStoreError`]
    pub async fn read_all(&self) -> Result<Vec<(GroupName, StoredGroup, Claim)>, GroupStoreError> {
        let mut groups = BTreeMap::new();
        for entry in self.store.range(self.keys.groups()).await?.entries {
            let Subject::Group(name) = self.keys.subject(&entry.key) else { continue };
            let membership = values::read_group(&entry.key, &entry.value)?;
            let stored = StoredGroup { membership, offsets: BTreeMap::new() };
            groups.insert(name, (stored, Some(entry.mod_revision)));
        }
        for entry in self.store.range(self.keys.offsets()).await?.entries {
            let Subject::Offsets(name, page) = self.keys.subject(&entry.key) else { continue };
            if let Some((stored, _)) = groups.get_mut(&name) {
                values::read_page(&entry.key, page, &entry.value, &mut stored.offsets)?;
            }
        }
        Ok(groups.into_iter().map(|(name, (stored, claim))| (name, stored, claim)).collect())
    }

    /// Claims a group anew, then reads it. One that the store does not have needs no claim: nobody can have been told
    /// that he is in it, and whoever makes it later finds out who was first.
    ///
    /// # Errors
    /// [`GroupStoreError`]
    pub async fn load(&self, group: &GroupName) -> Result<(Option<StoredGroup>, Claim), GroupStoreError> {
        let key = self.keys.group(group);
        let Some(entry) = self.store.get(key.clone()).await? else { return Ok((None, None)) };
        let membership = values::read_group(&key, &entry.value)?;
        let claimed = values::write_group(&key, &membership, self.identity)?;
        let held = Some(entry.mod_revision);
        let answer = self.change(&key, held, vec![Op::put(key.clone(), claimed)]).await?;
        if !answer.is_done() {
            return Err(GroupStoreError::Claimed { group: group.clone() });
        }
        let mut offsets = BTreeMap::new();
        for entry in self.store.range(self.keys.offsets_of(group)).await?.entries {
            let Subject::Offsets(_, page) = self.keys.subject(&entry.key) else { continue };
            values::read_page(&entry.key, page, &entry.value, &mut offsets)?;
        }
        Ok((Some(StoredGroup { membership, offsets }), Some(answer.revision)))
    }

    /// Changes a group under a claim, and gives the claim that holds from then on. Most changes are one transaction.
    /// Of a larger one a part may be done when this fails; no part of it is wrong without the others.
    ///
    /// # Errors
    /// [`GroupStoreError`]: the change may be done or not, wholly or in part.
    pub async fn store(
        &self,
        group: &GroupName,
        change: &Change,
        pages: Pages,
        claim: Claim,
    ) -> Result<Claim, GroupStoreError> {
        let key = self.keys.group(group);
        let mut ops = Vec::with_capacity(pages.len() + 1);
        if let Change::Put(membership) = change {
            ops.push(Op::put(key.clone(), values::write_group(&key, membership, self.identity)?));
        }
        for (page, rows) in &pages {
            let page = self.keys.offsets_page(group, *page);
            ops.push(if rows.is_empty() {
                Op::delete(page)
            } else {
                Op::put(page.clone(), values::write_page(&page, rows)?)
            });
        }
        if *change == Change::Delete {
            ops.push(Op::delete(key.clone()));
        }
        let mut claim = claim;
        while !ops.is_empty() {
            let rest = ops.split_off(ops_of_one(&ops));
            let moves_claim = ops.iter().any(|op| *op.key() == key);
            let answer = self.change(&key, claim, std::mem::replace(&mut ops, rest)).await?;
            if !answer.is_done() {
                return Err(GroupStoreError::Claimed { group: group.clone() });
            }
            if moves_claim {
                claim = (*change != Change::Delete).then_some(answer.revision);
            }
        }
        Ok(claim)
    }

    async fn change(&self, key: &Key, claim: Claim, then: Vec<Op>) -> Result<TxnAnswer, StoreError> {
        let held = match claim {
            Some(revision) => Compare::Modified(key.clone(), revision),
            None => Compare::Absent(key.clone()),
        };
        self.store.txn(Txn { compares: vec![held], then, otherwise_reads: Vec::new() }).await
    }
}

/// How many of the first of these changes fit one transaction; one at least.
fn ops_of_one(ops: &[Op]) -> usize {
    let mut bytes = 0;
    let fits = ops.iter().take(TXN_OPS_MAX).take_while(|op| {
        bytes += op.key().as_str().len();
        if let Op::Put { value, .. } = op {
            bytes += value.len();
        }
        bytes <= TXN_BYTES_MAX
    });
    fits.count().max(1)
}

#[cfg(test)]
mod tests;
