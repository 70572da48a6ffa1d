//! What a broken or slow drive does, and the ledger of what it spoiled.
//!
//! A fault is armed for a class of files and strikes the next operation of that class. The ledger says which sectors
//! no longer hold what was written: the checker excuses the loss of these bytes, and of no others. A fault that the
//! broker is told about (an error) excuses nothing: what was never confirmed cannot be lost.

use super::{BLOCK, Bytes, Disk, DiskError, FileId, Pending, lay, store};
use crate::rng::Rng;
use crate::world::{MICROS, MILLIS};
use std::collections::BTreeSet;
use std::ops::Bound;

/// What a file is for; faults are aimed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A shard's journal.
    Journal,
    /// A checkpoint slot.
    Checkpoint,
    /// A segment.
    Segment,
    /// A segment's index.
    Index,
}

/// One thing that can go wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A write fails and leaves each of its sectors old, new or garbage.
    WriteError,
    /// A flush fails; each sector it should have covered is durable or back to what it was, and a later flush that
    /// succeeds says nothing about them.
    FlushError,
    /// A write is confirmed and never lands.
    LostWrite,
    /// A write is confirmed and lands elsewhere in the file.
    MisdirectedWrite,
}

impl Fault {
    pub(super) const fn is_of_writes(self) -> bool {
        !matches!(self, Self::FlushError)
    }
}

/// How long operations take.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Shortest and longest ordinary write.
    pub write: (u64, u64),
    /// Shortest and longest ordinary flush.
    pub flush: (u64, u64),
    /// Shortest and longest ordinary read.
    pub read: (u64, u64),
    /// One operation in this many takes up to fifty times longer.
    pub spike_one_in: u64,
    /// Until then everything takes longer by this factor.
    pub slow: (u64, u64),
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            write: (30 * MICROS, 300 * MICROS),
            flush: (100 * MICROS, 2 * MILLIS),
            read: (50 * MICROS, 500 * MICROS),
            spike_one_in: 200,
            slow: (0, 1),
        }
    }
}

impl Weather {
    pub(super) fn write_nanos(&self, rng: &mut Rng, now: u64, bytes: u64) -> u64 {
        self.nanos(self.write, rng, now) + bytes
    }

    pub(super) fn flush_nanos(&self, rng: &mut Rng, now: u64) -> u64 {
        self.nanos(self.flush, rng, now)
    }

    pub(super) fn read_nanos(&self, rng: &mut Rng, now: u64) -> u64 {
        self.nanos(self.read, rng, now)
    }

    fn nanos(&self, (low, high): (u64, u64), rng: &mut Rng, now: u64) -> u64 {
        let ordinary = rng.between(low, high);
        let spike = if rng.one_in(self.spike_one_in) { rng.between(2, 50) } else { 1 };
        let slow = if now < self.slow.0 { self.slow.1 } else { 1 };
        ordinary * spike * slow
    }
}

/// Blocks whose bytes are not those that were written and confirmed.
#[derive(Debug, Default)]
pub struct Damage(BTreeSet<(FileId, u64)>);

impl Damage {
    pub(super) fn add(&mut self, file: FileId, offset: u64, bytes: u64) {
        for block in offset / BLOCK..(offset + bytes).div_ceil(BLOCK) {
            self.0.insert((file, block));
        }
    }

    pub(super) fn repair(&mut self, file: FileId, offset: u64, bytes: u64) {
        for block in offset / BLOCK..(offset + bytes).div_ceil(BLOCK) {
            self.0.remove(&(file, block));
        }
    }

    /// Whether any block of this range is spoiled.
    #[must_use]
    pub fn touches(&self, file: FileId, offset: u64, bytes: u64) -> bool {
        let blocks = (file, offset / BLOCK)..(file, (offset + bytes).div_ceil(BLOCK));
        self.0.range(blocks).next().is_some()
    }

    /// Whether nothing is spoiled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Disk {
    /// The next operation of this class that the fault applies to suffers it.
    pub fn arm(&mut self, fault: Fault, class: Class) {
        self.armed.push((fault, class));
    }

    /// Everything that is armed and has not struck is forgotten, and the disk is fast again.
    pub fn heal(&mut self) {
        self.armed.clear();
        self.weather.slow = (0, 1);
    }

    /// Everything takes longer by `factor` until then.
    pub fn slow_until(&mut self, until: u64, factor: u64) {
        self.weather.slow = (until, factor);
    }

    /// The ledger of what was spoiled.
    #[must_use]
    pub const fn damage(&self) -> &Damage {
        &self.damage
    }

    /// Whether a fault ever spoiled a file whose path starts like this.
    #[must_use]
    pub fn was_spoiled(&self, prefix: &str) -> bool {
        let first = self.spoiled.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)).next();
        first.is_some_and(|path| path.starts_with(prefix))
    }

    fn spoil(&mut self, id: FileId, offset: u64, bytes: u64) {
        self.damage.add(id, offset, bytes);
        if let Some(file) = self.files.get(&id) {
            self.spoiled.insert(file.path.clone());
        }
    }

    /// Durable bytes of a file rot: one bit to one sector changes in each place, somewhere in the range. `false`: the
    /// range holds nothing durable.
    pub fn rot(&mut self, id: FileId, offset: u64, bytes: u64) -> bool {
        let Some(file) = self.files.get_mut(&id) else { return false };
        let end = (offset + bytes).min(file.durable.len() as u64);
        if offset >= end {
            return false;
        }
        let at = self.rng.between(offset, end - 1);
        let length = if self.rng.percent(50) { 1 } else { self.rng.between(1, self.sector.min(end - at)) };
        for byte in &mut file.durable[at as usize..(at + length) as usize] {
            *byte ^= self.rng.between(1, 255) as u8;
        }
        self.spoil(id, at, length);
        true
    }

    pub(super) fn take_armed(&mut self, class: Class, fits: impl Fn(Fault) -> bool) -> Option<Fault> {
        let at = self.armed.iter().position(|&(fault, of)| of == class && fits(fault))?;
        Some(self.armed.remove(at).0)
    }

    pub(super) fn break_write(
        &mut self,
        fault: Fault,
        write: Pending,
        id: FileId,
    ) -> Result<Bytes, DiskError> {
        let (offset, length) = (write.offset, write.bytes.len() as u64);
        match fault {
            Fault::LostWrite => {
                self.spoil(id, offset, length);
                Ok(Bytes::new())
            }
            Fault::MisdirectedWrite => {
                let blocks = self.size(id).saturating_sub(length) / BLOCK;
                // Not over the first two blocks, a journal's superblocks: losing both is a case of its own.
                let elsewhere = self.rng.between(2.min(blocks), blocks) * BLOCK;
                if elsewhere != offset {
                    self.spoil(id, offset, length);
                    self.spoil(id, elsewhere, length);
                }
                if let Some(file) = self.files.get_mut(&id) {
                    file.pending.push(Pending { offset: elsewhere, ..write });
                }
                Ok(Bytes::new())
            }
            Fault::WriteError | Fault::FlushError => {
                let old = self.peek(id, offset, length);
                let bytes = self.mixed(&old, &[&write], offset, super::CutStyle::Torn);
                if let Some(file) = self.files.get_mut(&id) {
                    file.pending.push(Pending { bytes: Bytes::from(bytes), ..write });
                }
                Err(DiskError::Io)
            }
        }
    }

    /// The drive gave up on what the flush should have covered: each sector is durable, or gone for good.
    pub(super) fn break_flush(&mut self, id: FileId, moment: u64) {
        let Some(file) = self.files.get_mut(&id) else { return };
        let (covered, kept) = std::mem::take(&mut file.pending).into_iter().partition(|w| w.moment < moment);
        file.pending = kept;
        let covered: Vec<Pending> = covered;
        for write in covered {
            let mut old = vec![0; write.bytes.len()];
            if let Some(file) = self.files.get(&id) {
                lay(&mut old, write.offset, &file.durable, 0);
            }
            let bytes = self.mixed(&old, &[&write], write.offset, super::CutStyle::OldOrNew);
            if let Some(file) = self.files.get_mut(&id) {
                store(&mut file.durable, write.offset, &bytes);
            }
        }
    }
}
