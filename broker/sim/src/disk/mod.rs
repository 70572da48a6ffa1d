//! A disk that keeps real bytes and three states of each: issued, completed, durable.
//!
//! A write that completed can be read, and a crash of the process leaves it; only a flush that was *issued after* the
//! write completed makes it outlive a power cut. A file's size is made durable by a flush of the file, its name by a
//! flush of its folder. Each file is flushed alone: what a flush of one file does for another on a real device is luck,
//! and the simulator grants none. What a power cut leaves is in `power`, what a broken drive does in `faults`.
//!
//! Invariants: bytes that are durable change only by a write that completed, by a power cut during such a write or by
//! a fault that is in the [`Damage`] ledger. Refuses to know what the bytes mean.

mod faults;
mod power;
#[cfg(test)]
mod tests;

pub use faults::{Class, Damage, Fault, Weather};
pub use power::CutStyle;

use crate::rng::Rng;
use crate::trace::Trace;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Unit of every write: what the hands align to.
pub const BLOCK: u64 = 4096;

/// One file, for as long as somebody holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(u32);

/// One operation under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(u64);

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// No room is left on the file system.
    NoSpace,
    /// The device said no.
    Io,
}

/// The disk of one broker.
#[derive(Debug)]
pub struct Disk {
    rng: Rng,
    sector: u64,
    files: BTreeMap<FileId, File>,
    /// What a process sees.
    names: BTreeMap<String, Node>,
    /// What a power cut leaves for certain.
    names_durable: BTreeMap<String, Node>,
    /// Changes of names that no flush of their folder covers yet, in order.
    names_pending: Vec<NameChange>,
    ops: BTreeMap<OpId, Op>,
    issued: u64,
    /// Orders completions against the issue of flushes.
    moment: u64,
    weather: Weather,
    armed: Vec<(Fault, Class)>,
    damage: Damage,
    /// Every file that a fault ever spoiled.
    spoiled: BTreeSet<String>,
    capacity: u64,
    /// Operations that were issued since the caller last looked: their id and when they complete.
    scheduled: Vec<(OpId, u64)>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Folder,
    File(FileId),
}

#[derive(Debug)]
struct NameChange {
    moment: u64,
    path: String,
    node: Option<Node>,
}

#[derive(Debug)]
struct File {
    path: String,
    class: Class,
    durable: Vec<u8>,
    size_durable: u64,
    size: u64,
    sizes: Vec<(u64, u64)>,
    /// Completed writes that are not durable, in order of completion.
    pending: Vec<Pending>,
    /// No name leads here any more.
    unlinked: bool,
    /// Handles that a process holds.
    held: u32,
}

#[derive(Clone, Debug)]
struct Pending {
    moment: u64,
    offset: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Op {
    Write { file: FileId, offset: u64, bytes: Bytes },
    Flush { file: FileId, moment: u64 },
    FlushFolder { path: String, moment: u64 },
    Read { file: FileId, offset: u64, bytes: u64 },
}

impl Disk {
    /// An empty disk of `capacity` bytes whose sectors have 512 or 4,096 bytes.
    #[must_use]
    pub fn new(rng: Rng, sector: u64, capacity: u64, weather: Weather) -> Self {
        Self {
            rng,
            sector,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            names_pending: Vec::new(),
            ops: BTreeMap::new(),
            issued: 0,
            moment: 0,
            weather,
            armed: Vec::new(),
            damage: Damage::default(),
            spoiled: BTreeSet::new(),
            capacity,
            scheduled: Vec::new(),
        }
    }

    /// The operations issued since the last call, and when each completes.
    pub fn take_scheduled(&mut self) -> Vec<(OpId, u64)> {
        std::mem::take(&mut self.scheduled)
    }

    /// Opens a file by name.
    #[must_use]
    pub fn open(&self, path: &str) -> Option<FileId> {
        match self.names.get(path)? {
            Node::File(file) => Some(*file),
            Node::Folder => None,
        }
    }

    /// Keeps a file's bytes while its name may go: what an open handle does.
    pub fn hold(&mut self, file: FileId) {
        if let Some(file) = self.files.get_mut(&file) {
            file.held += 1;
        }
    }

    /// Gives a handle back.
    pub fn let_go(&mut self, file: FileId) {
        if let Some(file) = self.files.get_mut(&file) {
            file.held = file.held.saturating_sub(1);
        }
    }

    /// Whether every byte of the range that a process reads now would outlive a power cut.
    #[must_use]
    pub fn is_durable(&self, file: FileId, offset: u64, bytes: u64) -> bool {
        let Some(file) = self.files.get(&file) else { return false };
        let end = offset + bytes;
        let pending =
            |write: &Pending| write.offset < end && offset < write.offset + write.bytes.len() as u64;
        end <= file.size_durable && !file.pending.iter().any(pending)
    }

    /// Puts other bytes under a write that has not completed: what reusing its buffer does.
    pub fn scribble(&mut self, op: OpId, with: &Bytes) {
        if let Some(Op::Write { bytes, .. }) = self.ops.get_mut(&op) {
            let mut scribbled = bytes.to_vec();
            let common = scribbled.len().min(with.len());
            scribbled[..common].copy_from_slice(&with[..common]);
            *bytes = Bytes::from(scribbled);
        }
    }

    /// Whether the folder is there.
    #[must_use]
    pub fn has_folder(&self, path: &str) -> bool {
        self.names.get(path) == Some(&Node::Folder)
    }

    /// Makes an empty file, or a folder where `class` is `None`. Its name is durable once its folder was flushed.
    pub fn create(&mut self, path: &str, class: Option<Class>) -> FileId {
        let id = FileId(self.next() as u32);
        let node = match class {
            None => Node::Folder,
            Some(class) => {
                self.files.insert(id, File::new(path, class));
                Node::File(id)
            }
        };
        self.name(path, Some(node));
        id
    }

    /// Takes a name away. The bytes stay for as long as an operation uses them.
    pub fn remove(&mut self, path: &str) {
        let node = self.names.get(path).copied();
        self.name(path, None);
        if let Some(Node::File(id)) = node
            // A rename that a power cut met half-way leaves two names.
            && !self.names.values().any(|other| Some(*other) == node)
            && let Some(file) = self.files.get_mut(&id)
        {
            file.unlinked = true;
        }
    }

    /// Gives a file another name. A power cut may leave either, both or, unlike most file systems, none, until the folders are
    /// flushed.
    pub fn rename(&mut self, from: &str, to: &str) {
        let Some(node) = self.names.get(from).copied() else { return };
        self.name(to, Some(node));
        self.name(from, None);
        if let Node::File(id) = node
            && let Some(file) = self.files.get_mut(&id)
        {
            to.clone_into(&mut file.path);
        }
    }

    /// Whether somebody holds the file open.
    #[must_use]
    pub fn is_held(&self, file: FileId) -> bool {
        self.files.get(&file).is_some_and(|file| file.held > 0)
    }

    /// Paths of the files below a folder.
    #[must_use]
    pub fn list(&self, folder: &str) -> Vec<String> {
        let prefix = format!("{folder}/");
        let below = self.names.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        below.filter(|(_, node)| matches!(node, Node::File(_))).map(|(path, _)| path.clone()).collect()
    }

    /// Grows a file to at least `size` bytes (zeros), with room reserved.
    ///
    /// # Errors
    /// [`DiskError::NoSpace`] leaves the file as it was.
    pub fn allocate(&mut self, file: FileId, size: u64) -> Result<(), DiskError> {
        self.allocate_leaving(file, size, 0)
    }

    /// The same, but leaves `margin` bytes free.
    ///
    /// # Errors
    /// [`DiskError::NoSpace`] leaves the file as it was.
    pub fn allocate_leaving(&mut self, file: FileId, size: u64, margin: u64) -> Result<(), DiskError> {
        let have = self.size(file);
        if size <= have {
            return Ok(());
        }
        if self.used() + (size - have) + margin > self.capacity {
            return Err(DiskError::NoSpace);
        }
        self.resize(file, size);
        Ok(())
    }

    /// Sets the size of a file.
    pub fn resize(&mut self, file: FileId, size: u64) {
        let moment = self.next();
        if let Some(file) = self.files.get_mut(&file) {
            file.size = size;
            file.sizes.push((moment, size));
        }
    }

    /// Bytes of a file, as a process sees it.
    #[must_use]
    pub fn size(&self, file: FileId) -> u64 {
        self.files.get(&file).map_or(0, |file| file.size)
    }

    /// Bytes that all files take.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.files.values().filter(|file| !file.unlinked).map(|file| file.size).sum()
    }

    /// Changes the room on the file system.
    pub fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
    }

    /// Issues a write of whole blocks inside the file's size.
    pub fn write(&mut self, now: u64, file: FileId, offset: u64, bytes: Bytes) -> OpId {
        assert!(
            offset.is_multiple_of(BLOCK) && (bytes.len() as u64).is_multiple_of(BLOCK),
            "unaligned write"
        );
        assert!(offset + bytes.len() as u64 <= self.size(file), "a write must not extend a file");
        let wait = self.weather.write_nanos(&mut self.rng, now, bytes.len() as u64);
        self.issue(Op::Write { file, offset, bytes }, now + wait)
    }

    /// Issues a flush of a file's bytes and size.
    pub fn flush(&mut self, now: u64, file: FileId) -> OpId {
        let wait = self.weather.flush_nanos(&mut self.rng, now);
        let moment = self.next();
        self.issue(Op::Flush { file, moment }, now + wait)
    }

    /// Issues a flush of the names in a folder.
    pub fn flush_folder(&mut self, now: u64, path: &str) -> OpId {
        let wait = self.weather.flush_nanos(&mut self.rng, now);
        let moment = self.next();
        self.issue(Op::FlushFolder { path: path.to_owned(), moment }, now + wait)
    }

    /// Issues a read.
    pub fn read(&mut self, now: u64, file: FileId, offset: u64, bytes: u64) -> OpId {
        let wait = self.weather.read_nanos(&mut self.rng, now);
        self.issue(Op::Read { file, offset, bytes }, now + wait)
    }

    /// What a process reads right now: shorter than asked at the end of the file.
    #[must_use]
    pub fn peek(&self, file: FileId, offset: u64, bytes: u64) -> Vec<u8> {
        let Some(file) = self.files.get(&file) else { return Vec::new() };
        let end = (offset + bytes).min(file.size);
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        lay(&mut out, offset, &file.durable, 0);
        for write in &file.pending {
            lay(&mut out, offset, &write.bytes, write.offset);
        }
        out
    }

    /// An operation's time has come. `None`: a crash took it first.
    pub fn complete(&mut self, op: OpId, trace: &mut Trace) -> Option<Result<Bytes, DiskError>> {
        let done = match self.ops.remove(&op)? {
            Op::Write { file, offset, bytes } => self.written(file, offset, bytes, trace),
            Op::Flush { file, moment } => self.flushed(file, moment, trace),
            Op::FlushFolder { path, moment } => {
                trace.event("disk.flush_folder", &[op.0, u64::from(crc32fast::hash(path.as_bytes()))]);
                self.folder_flushed(&path, moment);
                Ok(Bytes::new())
            }
            Op::Read { file, offset, bytes } => {
                let bytes = self.peek(file, offset, bytes);
                trace.event("disk.read", &[u64::from(file.0), offset, u64::from(crc32fast::hash(&bytes))]);
                Ok(Bytes::from(bytes))
            }
        };
        self.forget_unlinked();
        Some(done)
    }

    fn written(
        &mut self,
        id: FileId,
        offset: u64,
        bytes: Bytes,
        trace: &mut Trace,
    ) -> Result<Bytes, DiskError> {
        let moment = self.next();
        let Some(class) = self.files.get(&id).map(|file| file.class) else { return Err(DiskError::Io) };
        trace.event(
            "disk.write",
            &[u64::from(id.0), offset, bytes.len() as u64, u64::from(crc32fast::hash(&bytes))],
        );
        let fault = self.take_armed(class, Fault::is_of_writes);
        if let Some(fault) = fault {
            trace.event("disk.fault", &[fault as u64, u64::from(id.0), offset]);
            return self.break_write(fault, Pending { moment, offset, bytes }, id);
        }
        self.damage.repair(id, offset, bytes.len() as u64);
        if let Some(file) = self.files.get_mut(&id) {
            file.pending.push(Pending { moment, offset, bytes });
        }
        Ok(Bytes::new())
    }

    fn flushed(&mut self, id: FileId, moment: u64, trace: &mut Trace) -> Result<Bytes, DiskError> {
        trace.event("disk.flush", &[u64::from(id.0), moment]);
        let Some(class) = self.files.get(&id).map(|file| file.class) else { return Err(DiskError::Io) };
        if let Some(fault) = self.take_armed(class, |fault| fault == Fault::FlushError) {
            trace.event("disk.fault", &[fault as u64, u64::from(id.0), 0]);
            self.break_flush(id, moment);
            return Err(DiskError::Io);
        }
        if let Some(file) = self.files.get_mut(&id) {
            file.make_durable(moment);
        }
        Ok(Bytes::new())
    }

    fn folder_flushed(&mut self, path: &str, moment: u64) {
        let mut kept = Vec::new();
        for change in std::mem::take(&mut self.names_pending) {
            if change.moment < moment && folder_of(&change.path) == path {
                put(&mut self.names_durable, change.path, change.node);
            } else {
                kept.push(change);
            }
        }
        self.names_pending = kept;
    }

    fn name(&mut self, path: &str, node: Option<Node>) {
        let moment = self.next();
        put(&mut self.names, path.to_owned(), node);
        self.names_pending.push(NameChange { moment, path: path.to_owned(), node });
    }

    fn issue(&mut self, op: Op, at: u64) -> OpId {
        self.issued += 1;
        let id = OpId(self.issued);
        self.ops.insert(id, op);
        self.scheduled.push((id, at));
        id
    }

    fn next(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// Drops the bytes of files that have neither a name, now or after any power cut, nor an operation.
    fn forget_unlinked(&mut self) {
        if !self.files.values().any(|file| file.unlinked) {
            return;
        }
        let named = |names: &BTreeMap<String, Node>, id| names.values().any(|node| *node == Node::File(id));
        let (durable, pending, ops) = (&self.names_durable, &self.names_pending, &self.ops);
        self.files.retain(|&id, file| {
            !file.unlinked
                || file.held > 0
                || named(durable, id)
                || pending.iter().any(|change| change.node == Some(Node::File(id)))
                || ops.values().any(|op| op.file() == Some(id))
        });
    }
}

impl Op {
    fn file(&self) -> Option<FileId> {
        match self {
            Self::Write { file, .. } | Self::Flush { file, .. } | Self::Read { file, .. } => Some(*file),
            Self::FlushFolder { .. } => None,
        }
    }
}

impl File {
    fn new(path: &str, class: Class) -> Self {
        Self {
            path: path.to_owned(),
            class,
            durable: Vec::new(),
            size_durable: 0,
            size: 0,
            sizes: Vec::new(),
            pending: Vec::new(),
            unlinked: false,
            held: 0,
        }
    }

    /// Everything that completed before `moment` outlives a power cut from now on.
    fn make_durable(&mut self, moment: u64) {
        for write in std::mem::take(&mut self.pending) {
            if write.moment < moment {
                store(&mut self.durable, write.offset, &write.bytes);
            } else {
                self.pending.push(write);
            }
        }
        for (at, size) in std::mem::take(&mut self.sizes) {
            if at < moment {
                self.size_durable = size;
            } else {
                self.sizes.push((at, size));
            }
        }
    }
}

/// The folder that a path is in.
fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn put(names: &mut BTreeMap<String, Node>, path: String, node: Option<Node>) {
    match node {
        Some(node) => {
            names.insert(path, node);
        }
        None => {
            names.remove(&path);
        }
    }
}

/// Copies what `bytes` (at `at` in the file) have of the window `out` (at `start`).
fn lay(out: &mut [u8], start: u64, bytes: &[u8], at: u64) {
    let low = start.max(at);
    let high = (start + out.len() as u64).min(at + bytes.len() as u64);
    if low < high {
        let (from, to) = ((low - at) as usize, (high - at) as usize);
        out[(low - start) as usize..(high - start) as usize].copy_from_slice(&bytes[from..to]);
    }
}

/// Puts `bytes` at `offset`, growing `data` with zeros.
fn store(data: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if data.len() < end {
        data.resize(end, 0);
    }
    data[offset as usize..end].copy_from_slice(bytes);
}
