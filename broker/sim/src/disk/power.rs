//! What is left after the process was killed, and after the power went.
//!
//! Killed: what completed is there (in the drive's cache, not durable); what was under way landed whole, in part or
//! not at all. Power cut: every sector, size and name that no flush covered is, each on its own, old or new; a sector
//! may also be torn or garbage.

use super::{Disk, Node, Op, Pending, lay, put, store};
use crate::rng::Rng;
use bytes::Bytes;

/// How unkind a power cut is. A run of cuts draws among them, so that the pure cases come up as well as the mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutStyle {
    /// Nothing that was not flushed is left.
    AllOld,
    /// Everything that was written is left.
    AllNew,
    /// Each sector is old or new.
    OldOrNew,
    /// Each sector is old, new, torn or garbage.
    Torn,
}

impl CutStyle {
    /// One of the four.
    pub fn draw(rng: &mut Rng) -> Self {
        rng.pick(&[Self::AllOld, Self::AllNew, Self::OldOrNew, Self::Torn, Self::Torn])
    }
}

impl Disk {
    /// The process is gone, the machine goes on.
    pub fn kill(&mut self) {
        let ops = std::mem::take(&mut self.ops);
        for op in ops.into_values() {
            match op {
                Op::Write { file, offset, bytes } => {
                    let landed = match self.rng.below(3) {
                        0 => 0,
                        1 => bytes.len() as u64,
                        _ => self.rng.below(bytes.len() as u64 / self.sector + 1) * self.sector,
                    };
                    let moment = self.next();
                    self.damage.repair(file, offset, landed / super::BLOCK * super::BLOCK);
                    if let Some(file) = self.files.get_mut(&file)
                        && landed > 0
                    {
                        file.pending.push(Pending { moment, offset, bytes: bytes.slice(..landed as usize) });
                    }
                }
                Op::Flush { file, moment } if self.rng.percent(50) => {
                    if let Some(file) = self.files.get_mut(&file) {
                        file.make_durable(moment);
                    }
                }
                Op::FlushFolder { path, moment } if self.rng.percent(50) => {
                    self.folder_flushed(&path, moment);
                }
                Op::Flush { .. } | Op::FlushFolder { .. } | Op::Read { .. } => {}
            }
        }
        for file in self.files.values_mut() {
            file.held = 0;
        }
        self.forget_unlinked();
    }

    /// The power goes and comes back.
    pub fn cut(&mut self, style: CutStyle) {
        let ops = std::mem::take(&mut self.ops);
        let mut unfinished: Vec<_> = ops
            .into_values()
            .filter_map(|op| match op {
                Op::Write { file, offset, bytes } => {
                    Some((file, Pending { moment: u64::MAX, offset, bytes }))
                }
                Op::Flush { .. } | Op::FlushFolder { .. } | Op::Read { .. } => None,
            })
            .collect();
        let ids: Vec<_> = self.files.keys().copied().collect();
        for id in ids {
            let mine = unfinished.extract_if(.., |(file, _)| *file == id).map(|(_, write)| write);
            let mut writes: Vec<Pending> = mine.collect();
            if let Some(file) = self.files.get_mut(&id) {
                writes.splice(0..0, std::mem::take(&mut file.pending));
            }
            self.settle(id, &writes, style);
            self.settle_size(id, style);
        }
        self.settle_names(style);
        self.names = self.names_durable.clone();
        let named: Vec<_> = self.names.values().copied().collect();
        self.files.retain(|id, _| named.contains(&Node::File(*id)));
        for file in self.files.values_mut() {
            file.unlinked = false;
            file.held = 0;
        }
    }

    fn settle(&mut self, id: super::FileId, writes: &[Pending], style: CutStyle) {
        let Some((low, high)) = writes.iter().fold(None, |range: Option<(u64, u64)>, write| {
            let (from, to) = (write.offset, write.offset + write.bytes.len() as u64);
            Some(range.map_or((from, to), |(low, high)| (low.min(from), high.max(to))))
        }) else {
            return;
        };
        let mut old = vec![0; (high - low) as usize];
        if let Some(file) = self.files.get(&id) {
            lay(&mut old, low, &file.durable, 0);
        }
        let refs: Vec<&Pending> = writes.iter().collect();
        let settled = self.mixed(&old, &refs, low, style);
        if let Some(file) = self.files.get_mut(&id) {
            store(&mut file.durable, low, &settled);
        }
    }

    fn settle_size(&mut self, id: super::FileId, style: CutStyle) {
        let Some(file) = self.files.get_mut(&id) else { return };
        let sizes = std::mem::take(&mut file.sizes);
        let pick = match style {
            CutStyle::AllOld => 0,
            CutStyle::AllNew => sizes.len(),
            CutStyle::OldOrNew | CutStyle::Torn => self.rng.below(sizes.len() as u64 + 1) as usize,
        };
        if let Some((_, size)) = pick.checked_sub(1).and_then(|last| sizes.get(last)) {
            file.size_durable = *size;
        }
        file.size = file.size_durable;
        file.durable.truncate(file.size as usize);
    }

    fn settle_names(&mut self, style: CutStyle) {
        for change in std::mem::take(&mut self.names_pending) {
            let landed = match style {
                CutStyle::AllOld => false,
                CutStyle::AllNew => true,
                CutStyle::OldOrNew | CutStyle::Torn => self.rng.percent(50),
            };
            if landed {
                put(&mut self.names_durable, change.path, change.node);
            }
        }
        // A name without its folder is nowhere.
        let names = self.names_durable.clone();
        self.names_durable.retain(|path, _| {
            path.match_indices('/').all(|(at, _)| names.get(&path[..at]) == Some(&Node::Folder))
        });
    }

    /// What is in the window of `old`, which starts at `start`, once each sector that `writes` touch has taken sides.
    pub(super) fn mixed(&mut self, old: &[u8], writes: &[&Pending], start: u64, style: CutStyle) -> Vec<u8> {
        let mut out = old.to_vec();
        if style == CutStyle::AllOld {
            return out;
        }
        if style == CutStyle::AllNew {
            for write in writes {
                lay(&mut out, start, &write.bytes, write.offset);
            }
            return out;
        }
        let sector = self.sector as usize;
        for at in (0..out.len()).step_by(sector) {
            let place = start + at as u64;
            let covers = |write: &&&Pending| {
                write.offset <= place && place + sector as u64 <= write.offset + write.bytes.len() as u64
            };
            let choices: Vec<&Bytes> = writes.iter().filter(covers).map(|write| &write.bytes).collect();
            let offsets: Vec<u64> = writes.iter().filter(covers).map(|write| write.offset).collect();
            let pick = self.rng.below(choices.len() as u64 + 1) as usize;
            let Some(chosen) = pick.checked_sub(1) else { continue };
            let from = (place - offsets[chosen]) as usize;
            let new = &choices[chosen][from..from + sector];
            let window = &mut out[at..at + sector];
            match if style == CutStyle::Torn { self.rng.below(8) } else { 7 } {
                0 => self.rng.fill(window),
                1 => {
                    let torn = self.rng.below(sector as u64) as usize;
                    window[..torn].copy_from_slice(&new[..torn]);
                }
                _ => window.copy_from_slice(new),
            }
        }
        out
    }
}
