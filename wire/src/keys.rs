//! Keys and tags: which hash slot a record's key belongs to, and the Bloom filter over a batch's tags.
//!
//! Used by the producer (partitioner, tag filter) and by the broker's filtering. Invariant: the functions never change,
//! as partitions and stored filters depend on them. This file refuses to know which partition owns a slot.

/// Number of hash slots of a topic.
pub const SLOTS: u32 = 65_536;

/// Most distinct tags in a batch for which its filter is still of use; a producer starts a new batch when more come.
pub const TAGS_PER_BATCH_MAX: usize = 8;

/// Most tags that a reader may ask for at once.
pub const TAGS_PER_FILTER_MAX: usize = 16;

/// Name of the record header whose value is a tag.
pub const TAG_HEADER: &str = "tag";

/// Kafka's murmur2 (32 bits, Kafka's seed), so that keys fall where a Kafka client would put them.
#[must_use]
pub fn murmur2(key: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const MULTIPLIER: u32 = 0x5bd1_e995;
    const SHIFT: u32 = 24;
    #[expect(clippy::cast_possible_truncation, reason = "the hash is defined over the length modulo 2^32")]
    let mut hash = SEED ^ (key.len() as u32);
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        mixed ^= mixed >> SHIFT;
        mixed = mixed.wrapping_mul(MULTIPLIER);
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed;
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |tail: u32, &byte| tail << 8 | u32::from(byte));
        hash = (hash ^ tail).wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ hash >> 15
}

/// The hash slot of a key, below [`SLOTS`]. An empty key is a key.
#[must_use]
pub fn slot_of(key: &[u8]) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % SLOTS
}

/// The four bits of a tag in a batch's filter, one in each quarter; a batch's filter is the union over its tags.
#[must_use]
pub fn bloom_of(tag: &[u8]) -> u64 {
    let hash = crc32fast::hash(tag);
    (0..4).fold(0, |bloom, i| bloom | 1 << (16 * i + (hash >> (8 * i) & 15)))
}

/// Which batches a reader asks for: those that may hold a record with one of some tags, or all if it names none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagFilter {
    /// The bits of each tag.
    blooms: Vec<u64>,
}

impl TagFilter {
    /// Every batch.
    pub const ALL: Self = Self { blooms: Vec::new() };

    /// Batches that may hold any of these tags; every batch if there is none. `None` for more than
    /// [`TAGS_PER_FILTER_MAX`].
    #[must_use]
    pub fn of<T: AsRef<[u8]>>(tags: impl IntoIterator<Item = T>) -> Option<Self> {
        Self::from_blooms(tags.into_iter().map(|tag| bloom_of(tag.as_ref())).collect())
    }

    /// As [`TagFilter::of`], from the bits of each tag.
    #[must_use]
    pub fn from_blooms(blooms: Vec<u64>) -> Option<Self> {
        (blooms.len() <= TAGS_PER_FILTER_MAX).then_some(Self { blooms })
    }

    /// The bits of each tag.
    #[must_use]
    pub fn blooms(&self) -> &[u64] {
        &self.blooms
    }

    /// Whether every batch is asked for.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.blooms.is_empty()
    }

    /// Whether a batch with this filter is asked for; if not, it holds no record with one of the tags.
    #[must_use]
    pub fn asks_for(&self, batch_bloom: u64) -> bool {
        self.is_all() || self.blooms.iter().any(|tag| batch_bloom & tag == *tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_agrees_with_kafka() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn a_slot_drops_the_sign_as_kafka_does() {
        assert_eq!(slot_of(b"21"), 63_724);
        assert_eq!(slot_of(b"abc"), 8_731);
        assert!(slot_of(b"") < SLOTS);
    }

    #[test]
    fn a_filter_holds_its_tags() {
        // By zlib crc32("red") is 0xfa615f8f, so the bits are 15, 31, 33 and 58.
        assert_eq!(bloom_of(b"red"), 0x0400_0002_8000_8000);
        let both = bloom_of(b"red") | bloom_of(b"green");
        let red = TagFilter::of(["red"]).unwrap();
        assert!(red.asks_for(both) && red.asks_for(bloom_of(b"red")));
        assert!(!red.asks_for(0) && !red.asks_for(bloom_of(b"green")));
        let either = TagFilter::of(["red", "green"]).unwrap();
        assert!(either.asks_for(bloom_of(b"red")) && either.asks_for(bloom_of(b"green")));
        assert!(!either.asks_for(bloom_of(b"blue")));
        assert!(TagFilter::ALL.asks_for(0));
        assert_eq!(TagFilter::of((0..=16_u8).map(|tag| [tag])), None);
    }
}
