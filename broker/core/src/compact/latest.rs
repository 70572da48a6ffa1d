//! The newest offset of each key.
//!
//! Keys are known by 128 bits of a hash whose secret is new for each round, so that nobody can choose keys that meet; by
//! chance two of a million keys do once in 10^26 rounds. A key costs some forty bytes, however long it is.

use corelog_wire::ids::Offset;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// See the module.
#[derive(Debug)]
pub(super) struct Latest {
    secrets: [RandomState; 2],
    offsets: HashMap<u128, Offset, BuildHasherDefault<AsItIs>>,
}

impl Latest {
    /// For so many keys: with fewer it is never moved, which would keep others waiting.
    pub(super) fn for_keys(keys: usize) -> Self {
        let offsets = HashMap::with_capacity_and_hasher(keys, BuildHasherDefault::default());
        Self { secrets: [RandomState::new(), RandomState::new()], offsets }
    }

    /// A record of this key is at this offset, which is later than those before.
    pub(super) fn note(&mut self, key: &[u8], offset: Offset) {
        self.offsets.insert(self.name(key), offset);
    }

    /// The newest record of a key.
    pub(super) fn of(&self, key: &[u8]) -> Option<Offset> {
        self.offsets.get(&self.name(key)).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    fn name(&self, key: &[u8]) -> u128 {
        let [high, low] = &self.secrets;
        u128::from(high.hash_one(key)) << 64 | u128::from(low.hash_one(key))
    }
}

/// What is a hash already needs no hashing.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }
}
