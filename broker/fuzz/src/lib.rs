//! What the targets share: sound images of a disk, and changes to them that a fuzzer's bytes describe.
//!
//! Random bytes hardly ever have a checksum that holds, so a target starts from a sound image, changes it as its input
//! says and, where the input asks for it, makes the checksums hold again (as docs/FORMAT.md has them): then what lies
//! behind the checksums is reached, too.

/// The broker's configuration, by symbolic links to its source.
pub mod node {
    pub mod config;
}

use bytes::Bytes;
use corelog_core::journal::{
    Commit, CompactedEntry, Entry, ExtentEntry, Packer, Position, SegmentId, SegmentUse, Session, Superblock,
};
use corelog_wire::batch::{BatchFields, BatchLimits, CheckedBatch, Stamp, seal_body};
use corelog_wire::ids::{LeaderEpoch, Offset, TopicId, TopicPartition};
use corelog_wire::keys::bloom_of;

/// Unit of everything on disk.
pub const BLOCK: usize = 4096;
/// Size of a ring that [`journal`] does not fill.
pub const RING_BYTES: u64 = 32 * BLOCK as u64;
/// Size of a ring that [`journal`] wraps around, by one block.
pub const RING_BYTES_WRAPPED: u64 = 24 * BLOCK as u64;

/// One of two partitions.
#[must_use]
pub fn tp(partition: u32) -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes([0xa5; 16]), partition)
}

/// The segment all images speak of.
#[must_use]
pub fn segment() -> SegmentId {
    SegmentId { tp: tp(0), base: Offset::new(0), segment_use: SegmentUse(1) }
}

/// A batch as a producer sends it.
///
/// # Panics
/// Never: the batch is sound.
#[must_use]
pub fn batch(partition: u32, body: usize, records: u32, time: i64) -> CheckedBatch {
    let tag_bloom = if records % 2 == 0 { bloom_of(b"red") } else { 0 };
    let fields = BatchFields { tag_bloom, ..BatchFields::plain(records, time) };
    let bytes = seal_body(&vec![7; body], &fields, tp(partition));
    let limits = BatchLimits { batch_bytes_max: 1 << 23 };
    CheckedBatch::check(bytes, tp(partition), &limits).expect("a sound batch")
}

/// The same as a broker stores it.
#[must_use]
pub fn stored(batch: &CheckedBatch, base: u64, epoch: u32) -> Vec<u8> {
    let mut bytes = batch.bytes().to_vec();
    bytes[..24].copy_from_slice(&stamp(base, epoch).encode(batch.header().header_crc));
    bytes
}

fn stamp(base: u64, epoch: u32) -> Stamp {
    Stamp {
        base_offset: Offset::new(base),
        append_timestamp_ms: 1_700_000_000_000,
        leader_epoch: LeaderEpoch::new(epoch),
    }
}

/// Superblocks and ring of a journal: two sessions, every kind of entry.
///
/// # Panics
/// Never: the ring is small.
#[must_use]
pub fn journal(ring_bytes: u64) -> Vec<u8> {
    let first = Superblock::fresh(ring_bytes).next().with_new_session(Position::new(0));
    let mut file = vec![0; BLOCK * 2];
    file.resize(BLOCK * 2 + ring_offset(ring_bytes), 0);
    let mut writer =
        Writer { ring_bytes, file, packer: Packer::new(Session(1), 0), at: 0, flushed_to: 0, ends: [0; 2] };
    writer.commit(1, vec![writer.append(0, 1_000), writer.append(1, 5_000)]);
    for size in [100, 9_000, 3_900] {
        writer.commit(1, vec![writer.append(0, size)]);
    }
    let superblock = first.with_new_session(Position::new(writer.at));
    writer.packer = Packer::new(Session(2), writer.packer.last_crc());
    for size in [300, 20_000, 10, 4_000, 8_000, 200, 16_000, 50] {
        let mut entries = vec![writer.append(1, size)];
        if size == 200 {
            entries.push(extent(writer.ends[0]));
            entries.push(Entry::LogStart { tp: tp(0), log_start: Offset::new(1) });
            entries.push(Entry::Removed { tp: tp(2) });
            entries.push(Entry::Compacted(CompactedEntry {
                segment: segment(),
                end: Offset::new(writer.ends[0]),
                bytes: 16_000,
                file_end: 6 * BLOCK as u64,
                max_timestamp_ms: 1_000,
                last_append_ms: 1_000,
                clean_end: Offset::new(1),
            }));
        }
        if size == 50 {
            entries.push(writer.direct(0, 600));
        }
        writer.commit(2, entries);
    }
    writer.commit(2, Vec::new());
    for version in [&first, &superblock] {
        let at = usize::try_from(version.slot_offset()).expect("a small offset");
        writer.file[at..at + BLOCK].copy_from_slice(&version.encode());
    }
    writer.file
}

fn extent(end: u64) -> Entry {
    Entry::Extent(ExtentEntry {
        segment: segment(),
        file_position: BLOCK as u64,
        bytes: 16_000,
        first: Offset::new(0),
        end: Offset::new(end),
    })
}

struct Writer {
    ring_bytes: u64,
    file: Vec<u8>,
    packer: Packer,
    at: u64,
    flushed_to: u64,
    ends: [u64; 2],
}

impl Writer {
    fn append(&self, partition: u32, body: usize) -> Entry {
        let batch = batch(partition, body, 1, 1_000);
        let base = self.ends[partition as usize];
        Entry::Batch {
            tp: tp(partition),
            segment_use: SegmentUse(1 + partition),
            stamp: stamp(base, 1),
            batch,
        }
    }

    /// A batch that is in its segment behind the extent of [`extent`].
    fn direct(&self, partition: u32, body: usize) -> Entry {
        let Entry::Batch { tp, segment_use, stamp, batch } = self.append(partition, body) else {
            unreachable!("what is appended is a batch")
        };
        Entry::Direct { tp, segment_use, stamp, batch, file_position: 5 * BLOCK as u64 }
    }

    fn commit(&mut self, session: u64, entries: Vec<Entry>) {
        let mut bytes = 64;
        for entry in &entries {
            bytes += match entry {
                Entry::Batch { tp, batch, .. } => {
                    self.ends[tp.partition as usize] += 1;
                    32 + batch.bytes().len()
                }
                Entry::Direct { tp, .. } => {
                    self.ends[tp.partition as usize] += 1;
                    32 + 8 + 96
                }
                Entry::Extent(_) => 72,
                Entry::Compacted(_) => 88,
                Entry::LogStart { .. } => 40,
                Entry::Removed { .. } => 32,
            };
        }
        let mut packed = vec![0; bytes.next_multiple_of(BLOCK)];
        let (at, flushed_to) = (Position::new(self.at), Position::new(self.flushed_to));
        let bytes = packed.len() as u64;
        let (session, direct) = (Session(session), Vec::new());
        self.packer.pack(&Commit { at, bytes, session, flushed_to, entries, direct }, &mut packed);
        for (index, block) in packed.chunks_exact(BLOCK).enumerate() {
            let at = 2 * BLOCK + ring_offset((self.at + (index * BLOCK) as u64) % self.ring_bytes);
            self.file[at..at + BLOCK].copy_from_slice(block);
        }
        self.flushed_to = self.at;
        self.at += bytes;
    }
}

fn ring_offset(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a small ring")
}

/// A segment file: first block and two extents.
#[must_use]
pub fn segment_file() -> Vec<u8> {
    let mut file = corelog_core::segment::first_block(segment());
    let mut base = 0;
    for sizes in [&[100, 4_000, 700][..], &[9_000, 50]] {
        for &size in sizes {
            file.extend(stored(&batch(0, size, 3, 1_000 + i64::try_from(base).unwrap_or(0)), base, 1));
            base += 3;
        }
        file.resize(file.len().next_multiple_of(BLOCK), 0);
    }
    file
}

/// The bytes of an input, taken from its front; zeros when there are none left.
pub struct Input<'data>(pub &'data [u8]);

impl Input<'_> {
    /// The next byte; none at the end.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A number below `bound`, of at most 65,536.
    pub fn below(&mut self, bound: usize) -> usize {
        let number = usize::from(self.byte().unwrap_or(0)) << 8 | usize::from(self.byte().unwrap_or(0));
        number % bound.max(1)
    }

    /// A number of 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte().unwrap_or(0)))
    }

    /// Changes `image` as the input says, up to its end or to a byte of 255. `reseal(image, block)` makes the checksums
    /// of what starts at this block hold.
    pub fn change(&mut self, image: &mut [u8], reseal: impl Fn(&mut [u8], usize)) {
        let blocks = image.len() / BLOCK;
        while let Some(op) = self.byte() {
            let block = self.below(blocks);
            let start = block * BLOCK;
            match op {
                255 => return,
                // What is interesting lies near the start of a block.
                0..60 => {
                    let at = self.below(160);
                    image[start + at] = self.byte().unwrap_or(0);
                }
                60..120 => {
                    let at = self.below(160);
                    image[start + at] = self.byte().unwrap_or(0);
                    reseal(image, block);
                }
                120..140 => {
                    let at = self.below(BLOCK);
                    image[start + at] ^= self.byte().unwrap_or(0);
                }
                140..160 => image[start..start + BLOCK].fill(0),
                160..180 => {
                    let from = self.below(blocks) * BLOCK;
                    image.copy_within(from..from + BLOCK, start);
                }
                180..200 => {
                    let at = self.below(BLOCK / 8 - 1) * 8;
                    image[start + at..start + at + 8].copy_from_slice(&self.u64().to_le_bytes());
                }
                _ => reseal(image, block),
            }
        }
    }
}

/// CRC-32 from a seed.
#[must_use]
pub fn seeded_crc(bytes: &[u8], seed: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// Makes the checksums of a 64-byte header hold that ends with its own.
pub fn reseal_header(header: &mut [u8], seed: u32) {
    let crc = seeded_crc(&header[..60], seed);
    header[60..64].copy_from_slice(&crc.to_le_bytes());
}

/// Makes header checksum and stamp of a batch hold, and all else as it is.
pub fn reseal_batch(batch: &mut [u8], partition: u32) {
    let Some(first) = batch.first_chunk_mut::<96>() else { return };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(tp(partition).topic.as_bytes());
    hasher.update(&partition.to_le_bytes());
    hasher.update(&first[24..88]);
    first[88..92].copy_from_slice(&hasher.finalize().to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&first[..20]);
    hasher.update(&first[88..92]);
    first[20..24].copy_from_slice(&hasher.finalize().to_le_bytes());
}

/// A little-endian number of 32 bits; 0 beyond the end.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u32::from_le_bytes)
}

/// The bytes of an image as a read gives them.
#[must_use]
pub fn read(image: &[u8], start: u64, bytes: u64) -> Bytes {
    let start = usize::try_from(start).unwrap_or(usize::MAX).min(image.len());
    let end = start.saturating_add(usize::try_from(bytes).unwrap_or(usize::MAX)).min(image.len());
    Bytes::copy_from_slice(&image[start..end])
}
