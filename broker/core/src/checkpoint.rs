//! The checkpoint: what a shard needs to know to replay only the end of its journal.
//!
//! Two slots, written in turn. A slot is one block of header and, per partition, one rkyv archive of a
//! [`PartitionImage`]. Partitions are captured in slices over several turns, so images of one slot stem from different
//! moments; that is sound because replay is by offset: an entry that an image knows already changes nothing. A slot
//! may be written only when everything its images know is durable, else it would remember what a crash forgot.
//!
//! Called by `shard` to capture and by `recovery` to read. Layout: docs/FORMAT.md.

use crate::journal::{Position, SegmentUse};
use crate::limits::BLOCK;
use crate::log::{Appended, EpochTable, Log, LogOffsets, Producer, ProducerTable, Seal, Segment, Segments};
use crate::segment::{Index, ProducerBatch, ProducerRecord};
use corelog_wire::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, TopicId, TopicPartition};
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize, rancor};

const MAGIC: [u8; 4] = *b"CLC1";
const VERSION: u8 = 2;
const HEADER_BYTES: usize = 64;
const BLOCK_BYTES: usize = 4096;
const _: () = assert!(BLOCK_BYTES as u64 == BLOCK);

/// What the header of a slot says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotHeader {
    /// Rises with every checkpoint; the newest good slot counts.
    pub generation: u64,
    /// The journal is needed from here on.
    pub replay_from: Position,
    /// The journal was known to be flushed up to here.
    pub flushed_to: Position,
    /// Segment uses up to this one are taken.
    pub next_use: SegmentUse,
    /// Every block of the ring was written once, so that a flush changes no metadata of the file system.
    pub written_in_full: bool,
}

/// Why a slot cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// It is shorter than it says, or has no header.
    #[error("the slot is truncated")]
    Truncated,
    /// It does not begin like a checkpoint.
    #[error("this is not a checkpoint")]
    NotACheckpoint,
    /// A newer broker wrote it.
    #[error("checkpoint version {0} is newer than this broker reads ({VERSION})")]
    NewerVersion(u8),
    /// A checksum does not match.
    #[error("a checksum of the slot does not match")]
    Checksum,
    /// Its parts contradict each other.
    #[error("the slot contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// One partition as a checkpoint remembers it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub struct PartitionImage {
    topic: [u8; 16],
    partition: u32,
    log_start: u64,
    destaged_end: u64,
    end: u64,
    epochs: Vec<(u32, u64)>,
    producers: Vec<ProducerRecord>,
    segments: Vec<SegmentImage>,
    clean_end: u64,
}

/// The same in version 1, which did not know compaction.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
struct PartitionImage1 {
    topic: [u8; 16],
    partition: u32,
    log_start: u64,
    destaged_end: u64,
    end: u64,
    epochs: Vec<(u32, u64)>,
    producers: Vec<ProducerRecord>,
    segments: Vec<SegmentImage>,
}

impl From<PartitionImage1> for PartitionImage {
    fn from(image: PartitionImage1) -> Self {
        let PartitionImage1 { topic, partition, log_start, destaged_end, end, epochs, producers, segments } =
            image;
        Self { topic, partition, log_start, destaged_end, end, epochs, producers, segments, clean_end: 0 }
    }
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
struct SegmentImage {
    base: u64,
    segment_use: u32,
    full: bool,
    sealed: bool,
    created: bool,
    end: u64,
    proven_end: u64,
    bytes: u64,
    file_end: u64,
    allocated: u64,
    max_timestamp_ms: i64,
    opened_ms: i64,
    last_append_ms: i64,
    index: Option<Index>,
    /// The log's epochs and producers when it was opened, until it is sealed.
    opening: Option<OpeningImage>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
struct OpeningImage {
    epochs: Vec<(u32, u64)>,
    producers: Vec<ProducerRecord>,
}

impl PartitionImage {
    /// What is to be remembered of a log now.
    #[must_use]
    pub fn capture(log: &Log) -> Self {
        Self {
            topic: *log.tp().topic.as_bytes(),
            partition: log.tp().partition,
            log_start: log.log_start().get(),
            destaged_end: log.destaged_end().get(),
            end: log.end().get(),
            epochs: capture_epochs(&log.epochs),
            producers: capture_producers(&log.producers),
            segments: log.segments.iter().map(capture_segment).collect(),
            clean_end: log.clean_end().get(),
        }
    }

    /// The log it remembers, without what only the journal holds.
    ///
    /// # Errors
    /// Its parts contradict each other.
    pub fn restore(self) -> Result<Log, SlotError> {
        let tp = TopicPartition::new(TopicId::from_bytes(self.topic), self.partition);
        let epochs = restore_epochs(&self.epochs)?;
        let producers = restore_producers(&self.producers)?;
        let mut segments = Segments::default();
        for image in self.segments {
            segments.restore(restore_segment(image)?);
        }
        let offsets = LogOffsets {
            log_start: Offset::new(self.log_start),
            destaged_end: Offset::new(self.destaged_end),
            end: Offset::new(self.end),
            clean_end: Offset::new(self.clean_end),
        };
        let log = Log::restore(tp, offsets, epochs, producers, segments);
        match log.broken_invariant() {
            Some(what) => Err(SlotError::Contradiction(what)),
            None => Ok(log),
        }
    }

    /// Appends it to a slot under construction.
    ///
    /// # Errors
    /// The archive could not be made: memory.
    pub fn encode_into(&self, body: &mut Vec<u8>) -> Result<(), rancor::Error> {
        let archive = rkyv::to_bytes::<rancor::Error>(self)?;
        let bytes = u32::try_from(archive.len()).unwrap_or(u32::MAX);
        body.extend_from_slice(&bytes.to_le_bytes());
        body.extend_from_slice(&crc32fast::hash(&archive).to_le_bytes());
        body.extend_from_slice(&archive);
        body.resize(body.len().next_multiple_of(8), 0);
        Ok(())
    }
}

/// A log's epochs as a checkpoint and an index file remember them.
#[must_use]
pub fn capture_epochs(epochs: &EpochTable) -> Vec<(u32, u64)> {
    epochs.entries().iter().map(|(epoch, start)| (epoch.get(), start.get())).collect()
}

/// A log's producers as a checkpoint and an index file remember them.
#[must_use]
pub fn capture_producers(producers: &ProducerTable) -> Vec<ProducerRecord> {
    let record = |(id, producer): (ProducerId, &Producer)| ProducerRecord {
        id: id.get(),
        epoch: producer.epoch.get(),
        batches: producer.batches.iter().map(capture_batch).collect(),
    };
    producers.iter().map(record).collect()
}

fn capture_batch(batch: &Appended) -> ProducerBatch {
    ProducerBatch {
        first_sequence: batch.first.get(),
        last_sequence: batch.last.get(),
        base_offset: batch.base.get(),
        end_offset: batch.end.get(),
        append_timestamp_ms: batch.append_timestamp_ms,
    }
}

fn restore_epochs(epochs: &[(u32, u64)]) -> Result<EpochTable, SlotError> {
    let entries =
        epochs.iter().map(|(epoch, start)| (LeaderEpoch::new(*epoch), Offset::new(*start))).collect();
    EpochTable::from_entries(entries).ok_or(SlotError::Contradiction("epochs do not rise"))
}

fn restore_producers(records: &[ProducerRecord]) -> Result<ProducerTable, SlotError> {
    let mut table = ProducerTable::default();
    for record in records {
        let batches = record.batches.iter().map(restore_batch).collect();
        let producer = Producer { epoch: ProducerEpoch::new(record.epoch), batches };
        if !table.restore(ProducerId::new(record.id), producer) {
            return Err(SlotError::Contradiction("a producer's batches are not consecutive"));
        }
    }
    Ok(table)
}

fn restore_batch(batch: &ProducerBatch) -> Appended {
    Appended {
        first: Sequence::new(batch.first_sequence),
        last: Sequence::new(batch.last_sequence),
        base: Offset::new(batch.base_offset),
        end: Offset::new(batch.end_offset),
        append_timestamp_ms: batch.append_timestamp_ms,
    }
}

fn capture_segment(segment: &Segment) -> SegmentImage {
    SegmentImage {
        base: segment.base.get(),
        segment_use: segment.segment_use.0,
        full: segment.full,
        sealed: segment.seal == Seal::Done,
        created: segment.created,
        end: segment.end.get(),
        proven_end: segment.proven_end.get(),
        bytes: segment.bytes,
        file_end: segment.file_end,
        allocated: segment.allocated,
        max_timestamp_ms: segment.max_timestamp_ms,
        opened_ms: segment.opened_ms,
        last_append_ms: segment.last_append_ms,
        index: segment.index.clone(),
        opening: segment.opening.as_deref().map(|(epochs, producers)| OpeningImage {
            epochs: capture_epochs(epochs),
            producers: capture_producers(producers),
        }),
    }
}

fn restore_segment(image: SegmentImage) -> Result<Segment, SlotError> {
    let opening = match &image.opening {
        Some(image) => Some(Box::new((restore_epochs(&image.epochs)?, restore_producers(&image.producers)?))),
        None => None,
    };
    if image.index.as_ref().is_some_and(|index| index.broken_invariant().is_some()) {
        return Err(SlotError::Contradiction("an index is out of order"));
    }
    Ok(Segment {
        base: Offset::new(image.base),
        segment_use: SegmentUse(image.segment_use),
        end: Offset::new(image.end),
        proven_end: Offset::new(image.proven_end),
        bytes: image.bytes,
        file_end: image.file_end,
        assigned_end: image.file_end,
        allocated: image.allocated,
        created: image.created,
        made_of: None,
        written: false,
        full: image.full,
        seal: if image.sealed { Seal::Done } else { Seal::Open },
        max_timestamp_ms: image.max_timestamp_ms,
        opened_ms: image.opened_ms,
        last_append_ms: image.last_append_ms,
        index: image.index,
        opening,
    })
}

/// A whole slot: the header, the images encoded into `body`, zeros up to the block.
#[must_use]
pub fn encode_slot(header: &SlotHeader, partitions: u32, body: &[u8]) -> Vec<u8> {
    let mut slot = vec![0u8; BLOCK_BYTES];
    slot[0..4].copy_from_slice(&MAGIC);
    slot[4] = VERSION;
    slot[5] = u8::from(header.written_in_full);
    slot[8..16].copy_from_slice(&header.generation.to_le_bytes());
    slot[16..24].copy_from_slice(&header.replay_from.get().to_le_bytes());
    slot[24..32].copy_from_slice(&header.flushed_to.get().to_le_bytes());
    slot[32..36].copy_from_slice(&header.next_use.0.to_le_bytes());
    slot[36..40].copy_from_slice(&partitions.to_le_bytes());
    slot[40..48].copy_from_slice(&(body.len() as u64).to_le_bytes());
    slot[48..52].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    let header_crc = crc32fast::hash(&slot[..HEADER_BYTES - 4]);
    slot[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&header_crc.to_le_bytes());
    slot.extend_from_slice(body);
    slot.resize(slot.len().next_multiple_of(BLOCK_BYTES), 0);
    slot
}

/// Reads a slot; never trusts a byte of it.
///
/// # Errors
/// See [`SlotError`].
pub fn decode_slot(slot: &[u8]) -> Result<(SlotHeader, Vec<PartitionImage>), SlotError> {
    let head = slot.get(..HEADER_BYTES).ok_or(SlotError::Truncated)?;
    if head[0..4] != MAGIC {
        return Err(SlotError::NotACheckpoint);
    }
    if head[4] > VERSION {
        return Err(SlotError::NewerVersion(head[4]));
    }
    if crc32fast::hash(&head[..HEADER_BYTES - 4]) != u32_at(head, HEADER_BYTES - 4) {
        return Err(SlotError::Checksum);
    }
    let header = SlotHeader {
        generation: u64_at(head, 8),
        replay_from: Position::new(u64_at(head, 16)),
        flushed_to: Position::new(u64_at(head, 24)),
        next_use: SegmentUse(u32_at(head, 32)),
        written_in_full: head[5] & 1 == 1,
    };
    let body_bytes = usize::try_from(u64_at(head, 40)).map_err(|_| SlotError::Truncated)?;
    let body_end = BLOCK_BYTES.checked_add(body_bytes).ok_or(SlotError::Truncated)?;
    let mut body = slot.get(BLOCK_BYTES..body_end).ok_or(SlotError::Truncated)?;
    if crc32fast::hash(body) != u32_at(head, 48) {
        return Err(SlotError::Checksum);
    }
    let mut images = Vec::new();
    for _ in 0..u32_at(head, 36) {
        let (image, rest) = decode_image(head[4], body)?;
        images.push(image);
        body = rest;
    }
    Ok((header, images))
}

fn decode_image(version: u8, body: &[u8]) -> Result<(PartitionImage, &[u8]), SlotError> {
    let head = body.get(..8).ok_or(SlotError::Truncated)?;
    let bytes = u32_at(head, 0) as usize;
    let archive = body.get(8..8 + bytes).ok_or(SlotError::Truncated)?;
    if crc32fast::hash(archive) != u32_at(head, 4) {
        return Err(SlotError::Checksum);
    }
    let mut aligned = AlignedVec::<16>::with_capacity(bytes);
    aligned.extend_from_slice(archive);
    let image = match version {
        1 => rkyv::from_bytes::<PartitionImage1, rancor::Error>(&aligned).map(PartitionImage::from),
        _ => rkyv::from_bytes::<PartitionImage, rancor::Error>(&aligned),
    };
    let image = image.map_err(|_| SlotError::Contradiction("an archive is not valid"))?;
    let rest = body.get((8 + bytes).next_multiple_of(8)..).unwrap_or(&[]);
    Ok((image, rest))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MIB;

    fn log() -> Log {
        let tp = TopicPartition::new(TopicId::from_bytes([3; 16]), 5);
        let producers = vec![ProducerRecord {
            id: 9,
            epoch: 1,
            batches: vec![ProducerBatch {
                first_sequence: 0,
                last_sequence: 3,
                base_offset: 10,
                end_offset: 14,
                append_timestamp_ms: 77,
            }],
        }];
        let mut index = Index::default();
        index.push(Offset::new(10), BLOCK, 400, 70);
        let image = PartitionImage {
            topic: *tp.topic.as_bytes(),
            partition: tp.partition,
            log_start: 10,
            destaged_end: 12,
            end: 14,
            epochs: vec![(1, 10), (2, 12)],
            producers: producers.clone(),
            segments: vec![SegmentImage {
                base: 10,
                segment_use: 4,
                full: false,
                sealed: false,
                created: true,
                end: 14,
                proven_end: 12,
                bytes: 800,
                file_end: 2 * BLOCK,
                allocated: MIB,
                max_timestamp_ms: 70,
                opened_ms: 71,
                last_append_ms: 77,
                index: Some(index),
                opening: Some(OpeningImage { epochs: vec![(1, 10)], producers }),
            }],
            clean_end: 11,
        };
        image.restore().unwrap()
    }

    fn header() -> SlotHeader {
        SlotHeader {
            generation: 6,
            replay_from: Position::new(8 * BLOCK),
            flushed_to: Position::new(9 * BLOCK),
            next_use: SegmentUse(4),
            written_in_full: true,
        }
    }

    fn slot() -> Vec<u8> {
        let mut body = Vec::new();
        PartitionImage::capture(&log()).encode_into(&mut body).unwrap();
        encode_slot(&header(), 1, &body)
    }

    #[test]
    fn a_slot_gives_back_what_it_took() {
        let (read, images) = decode_slot(&slot()).unwrap();
        assert_eq!(read, header());
        let [image] = &images[..] else { panic!("one partition") };
        let restored = image.clone().restore().unwrap();
        assert_eq!(format!("{restored:?}"), format!("{:?}", log()));
    }

    /// A slot of version 1 is read as one that knows nothing of compaction.
    #[test]
    fn version_1_is_read() {
        let text: String = include_str!("../golden/checkpoint_v1.hex").split_whitespace().collect();
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        let mut slot: Vec<u8> = (0..text.len()).step_by(2).map(byte).collect();
        slot.resize(slot.len().next_multiple_of(BLOCK_BYTES), 0);
        let (read, images) = decode_slot(&slot).unwrap();
        assert_eq!(read, header());
        let [image] = &images[..] else { panic!("one partition") };
        let expected = PartitionImage { clean_end: 0, ..PartitionImage::capture(&log()) };
        assert_eq!(
            format!("{:?}", image.clone().restore().unwrap()),
            format!("{:?}", expected.restore().unwrap())
        );
    }

    /// The bytes of version 2, by checksum. A change of them is a change of the format: raise the version.
    #[test]
    fn the_bytes_of_version_2_stay() {
        let slot = slot();
        assert_eq!(slot[..8], *b"CLC1\x02\x01\x00\x00");
        assert_eq!((slot.len(), crc32fast::hash(&slot)), (8192, GOLDEN_CRC));
    }

    const GOLDEN_CRC: u32 = 3_720_841_603;

    #[test]
    fn no_single_bit_goes_unnoticed_in_header_or_images() {
        let good = slot();
        let used = BLOCK_BYTES + usize::try_from(u64_at(&good, 40)).unwrap();
        for bit in (0..HEADER_BYTES * 8).chain(BLOCK_BYTES * 8..used * 8) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_slot(&bad).is_err(), "bit {bit}");
        }
        for length in 0..good.len().min(used) {
            assert!(decode_slot(&good[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut newer = slot();
        newer[4] = 3;
        assert!(matches!(decode_slot(&newer), Err(SlotError::NewerVersion(3))));
    }
}
