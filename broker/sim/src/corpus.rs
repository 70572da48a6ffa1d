//! Pieces of a simulated disk as seeds for the fuzz targets: bytes that real decisions wrote and real faults spoiled.
//!
//! Called by the binary, after a run. Takes from each kind of file what the target of its parser reads, as it lies on
//! the disk, a few of each and small ones only: the seeds are checked in. Refuses to judge what it takes; frames and
//! headers of messages are not here, as the simulator has none.

use crate::disk::{BLOCK, Disk};
use corelog_core::journal::{CommitHeader, EntryView, RING_DATA_START, entries};
use corelog_wire::batch::{BatchHeader, HEADER_BYTES};
use std::collections::BTreeMap;

/// Pieces of one kind from one disk.
const OF_A_KIND_MAX: usize = 3;

/// Bytes of a piece.
const BYTES_MAX: usize = 8 * 1024;

/// Seeds by the folder they belong to, relative to the root of the repository.
#[derive(Debug, Default)]
pub struct Corpus(BTreeMap<&'static str, Vec<Vec<u8>>>);

impl Corpus {
    /// What there is to take from a disk.
    #[must_use]
    pub fn of(disk: &Disk) -> Self {
        let mut corpus = Self::default();
        for path in disk.list("shard-0") {
            let bytes = read(disk, &path);
            if path.ends_with("/journal") {
                corpus.journal(&bytes);
            } else {
                corpus.add("broker/fuzz/corpus/checkpoint", used(&bytes, BLOCK as usize, 40));
            }
        }
        for path in disk.list("topics") {
            let bytes = read(disk, &path);
            if bytes.starts_with(b"CLX1") {
                corpus.add("broker/fuzz/corpus/segment_index", used(&bytes, 64, 40));
            } else {
                corpus.add("broker/fuzz/corpus/segment_scan", bytes.get(..BLOCK as usize));
            }
        }
        corpus
    }

    /// Folder and bytes of each seed.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.0.iter().flat_map(|(folder, seeds)| seeds.iter().map(|seed| (*folder, &seed[..])))
    }

    fn journal(&mut self, file: &[u8]) {
        let (superblocks, ring) = file.split_at_checked(RING_DATA_START as usize).unwrap_or((file, &[]));
        self.add("broker/fuzz/corpus/journal_scan", Some(superblocks));
        let mut at = 0;
        while let Some(commit) = ring.get(at..).filter(|rest| !rest.is_empty()) {
            // A block that is not the start of a commit is spoiled, or inside one of an earlier lap.
            let Ok(header) = CommitHeader::parse(commit) else {
                at += BLOCK as usize;
                continue;
            };
            let whole = &commit[..commit.len().min(header.bytes as usize)];
            self.add("broker/fuzz/corpus/journal_scan", Some(whole));
            for entry in entries(&header, whole).into_iter().flatten().flatten() {
                if let EntryView::Batch { at_in_commit, bytes, header, .. } = entry {
                    let batch = &whole[at_in_commit as usize..][..bytes as usize];
                    self.batch(&header, batch);
                }
            }
            at += header.bytes as usize;
        }
    }

    /// A batch, and its records behind their number.
    fn batch(&mut self, header: &BatchHeader, batch: &[u8]) {
        self.add("wire/fuzz/corpus/batch", Some(batch));
        let mut records = vec![header.record_count as u8];
        records.extend(batch.iter().skip(HEADER_BYTES).take(header.body_bytes as usize));
        self.add("wire/fuzz/corpus/records", Some(&records));
    }

    fn add(&mut self, folder: &'static str, seed: Option<&[u8]>) {
        let Some(seed) = seed.filter(|seed| !seed.is_empty() && seed.len() <= BYTES_MAX) else { return };
        let seeds = self.0.entry(folder).or_default();
        if seeds.len() < OF_A_KIND_MAX && !seeds.iter().any(|other| other == seed) {
            seeds.push(seed.to_vec());
        }
    }
}

fn read(disk: &Disk, path: &str) -> Vec<u8> {
    disk.open(path).map_or_else(Vec::new, |file| disk.peek(file, 0, disk.size(file)))
}

/// What a file's header says is used: `header` bytes and as many as the little-endian u32 at `length`.
fn used(file: &[u8], header: usize, length: usize) -> Option<&[u8]> {
    let length = file.get(length..)?.first_chunk().map(|length| u32::from_le_bytes(*length))?;
    file.get(..header + length as usize)
}
