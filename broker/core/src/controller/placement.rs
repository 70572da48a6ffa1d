//! Which shard of a broker a partition belongs to.

use corelog_wire::ids::{ShardId, TopicPartition};

/// The shard of a partition by rendezvous hash: of the weights that all shards draw for the partition the largest wins,
/// so that another shard count moves only the partitions that must move.
///
/// Called once per partition and broker: the answer is recorded locally and stays, because the bytes are there. The
/// hash must never change, or a record that was lost would be replaced by another answer.
///
/// # Panics
/// With no shards at all.
#[must_use]
pub fn shard_of(tp: TopicPartition, shards: u16) -> ShardId {
    assert!(shards > 0, "a broker has at least one shard");
    let bytes = tp.topic.as_bytes();
    let (high, low) = bytes.split_at(8);
    let word = |half: &[u8]| half.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let seed = mix(mix(word(high)) ^ word(low)) ^ u64::from(tp.partition);
    let weight = |shard: u16| mix(mix(seed) ^ u64::from(shard));
    let heaviest = (0..shards).max_by_key(|shard| (weight(*shard), *shard));
    ShardId::new(heaviest.unwrap_or(0))
}

/// The finaliser of splitmix64: every bit of the input moves every bit of the output.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use corelog_wire::ids::TopicId;

    fn tp(topic: u8, partition: u32) -> TopicPartition {
        TopicPartition::new(TopicId::from_bytes([topic; 16]), partition)
    }

    #[test]
    fn the_hash_never_changes() {
        let shards: Vec<u16> = (0..16).map(|n| shard_of(tp(7, n), 4).get()).collect();
        assert_eq!(shards, [3, 2, 0, 2, 3, 3, 2, 2, 2, 3, 0, 0, 3, 1, 1, 1]);
    }

    #[test]
    fn shards_share_evenly() {
        let mut counts = [0u32; 8];
        for topic in 0..100 {
            for partition in 0..80 {
                counts[usize::from(shard_of(tp(topic, partition), 8).get())] += 1;
            }
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn another_shard_takes_its_share_and_moves_nothing_else() {
        let all = (0..50).flat_map(|topic| (0..20).map(move |partition| tp(topic, partition)));
        let moved: Vec<u16> =
            all.filter(|tp| shard_of(*tp, 3) != shard_of(*tp, 4)).map(|tp| shard_of(tp, 4).get()).collect();
        assert!((200..300).contains(&moved.len()), "{}", moved.len());
        assert!(moved.iter().all(|shard| *shard == 3));
    }
}
