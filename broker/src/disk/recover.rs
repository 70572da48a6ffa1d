//! From files to a shard that may start: drives `corelog_core::recovery`.
//!
//! Called by `node` once per shard and start, on the shard's own executor. What is read may still be only in the
//! drive's cache after a kill. So everything that the new session counts as flushed is flushed before the superblock
//! says that it is: the journal, both slots, and their names. Segments were flushed before the entries that count them.

use super::BLOCK_BYTES;
use super::buffer::copied;
use super::checkpoint;
use super::error::DiskError;
use super::file::{File, probe, read_whole};
use super::segments::{flush_folder, sync_folder};
use crate::rt;
use bytes::Bytes;
use corelog_core::journal::{Position, RING_DATA_START, RingRead};
use corelog_core::recovery::{Recovered, Recovery, RecoveryFault, Report};
use corelog_core::shard::{Shard, ShardConfig};
use corelog_wire::ids::TopicPartition;
use glommio::io::ReadResult;
use rustix::fs::{FallocateFlags, fallocate, statfs};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;

/// The journal's name in the folder of its shard.
pub(super) const JOURNAL_NAME: &str = "journal";
/// Reads of the journal under way at once.
const READS_AHEAD: usize = 3;
/// File systems in memory: what is flushed there is gone with the power, and direct I/O does not exist.
const IN_MEMORY: [(i64, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];

/// Why a shard does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its files cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What is in them does not make a shard.
    #[error(transparent)]
    Recovery(#[from] RecoveryFault),
    /// Not a place for a log.
    #[error("{path} is on {file_system}, which is memory: choose a data directory on a disk (ext4 or XFS)")]
    InMemory {
        /// Which folder.
        path: String,
        /// The kind of its file system.
        file_system: &'static str,
    },
}

/// Makes the files of a shard that never was, durable when this returns. Blocking; before any executor opens them.
/// A start that did not come this far is repeated as a whole, so files that are there are written anew.
///
/// # Errors
/// The file system refuses, or is none.
pub fn format(folder: &Path, config: &ShardConfig) -> Result<(), OpenError> {
    refuse_memory(folder.parent().unwrap_or(folder))?;
    let system = |what, path: &Path| {
        let path = path.to_owned();
        move |error| DiskError::system(what, &path, error)
    };
    std::fs::create_dir_all(folder).map_err(system("making", folder))?;
    let contents = corelog_core::recovery::format(config);
    let journal = folder.join(JOURNAL_NAME);
    let bytes = RING_DATA_START + config.ring_bytes;
    write_new(&journal, &contents.superblocks, Some(bytes)).map_err(system("writing", &journal))?;
    let slot = folder.join(checkpoint::file_name(contents.checkpoint.slot));
    write_new(&slot, &contents.checkpoint.bytes, None).map_err(system("writing", &slot))?;
    sync_folder(folder).map_err(system("flushing", folder))?;
    if let Some(above) = folder.parent() {
        sync_folder(above).map_err(system("flushing", above))?;
    }
    Ok(())
}

fn write_new(path: &Path, content: &[u8], allocate: Option<u64>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(path)?;
    if let Some(bytes) = allocate {
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    }
    file.write_all(content)?;
    file.sync_all()
}

/// Refuses a folder on a file system that is memory.
///
/// # Errors
/// [`OpenError::InMemory`], or the folder cannot be looked at.
pub fn refuse_memory(folder: &Path) -> Result<(), OpenError> {
    let stat = statfs(folder).map_err(|errno| DiskError::system("looking at", folder, errno.into()))?;
    match IN_MEMORY.iter().find(|(kind, _)| *kind == stat.f_type) {
        None => Ok(()),
        Some((_, file_system)) => {
            Err(OpenError::InMemory { path: folder.display().to_string(), file_system })
        }
    }
}

/// What a recovery leaves for the hands.
pub(super) struct Opened {
    pub(super) shard: Shard,
    pub(super) report: Report,
    pub(super) kept: Vec<(Position, Bytes)>,
    pub(super) removed: Vec<TopicPartition>,
}

/// Recovers a shard from the files in its folder.
pub(super) async fn recover(folder: &Path, config: ShardConfig) -> Result<Opened, OpenError> {
    refuse_memory(folder)?;
    probe(folder).await?;
    let journal = Rc::new(File::open(&folder.join(JOURNAL_NAME), false).await?);
    let superblocks = read_superblocks(&journal).await?;
    let slots = [read_slot(folder, 0).await?, read_slot(folder, 1).await?];
    let mut recovery = Recovery::new(config, &superblocks, &slots)?;
    scan(&journal, &mut recovery).await?;
    let Recovered { shard, report, kept, removed, superblocks } = recovery.finish()?;
    if !superblocks.is_empty() {
        flush_all(folder, &journal).await?;
    }
    for superblock in superblocks {
        journal.write(copied(&superblock.bytes), superblock.file_offset).await?;
        journal.flush().await?;
    }
    let Some(journal) = Rc::into_inner(journal) else {
        unreachable!("every read of the journal was awaited")
    };
    journal.close().await?;
    Ok(Opened { shard, report, kept, removed })
}

/// Both superblocks, each read by itself: one that the drive cannot read is as bad as one with a wrong checksum.
async fn read_superblocks(journal: &File) -> Result<Vec<u8>, DiskError> {
    let mut both = Vec::new();
    for at in (0..RING_DATA_START).step_by(BLOCK_BYTES) {
        match journal.read(at, BLOCK_BYTES).await {
            Ok(read) => both.extend_from_slice(&read),
            Err(error) if error.is_media() => {
                tracing::error!(%error, "a superblock of the journal cannot be read");
                both.resize(both.len() + BLOCK_BYTES, 0);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(both)
}

/// A slot's bytes. One that the drive cannot read is as bad as one with a wrong checksum: the other one counts.
async fn read_slot(folder: &Path, slot: u8) -> Result<Option<Vec<u8>>, DiskError> {
    match read_whole(&folder.join(checkpoint::file_name(slot))).await {
        Err(error) if error.is_media() => {
            tracing::error!(%error, "a checkpoint slot cannot be read");
            Ok(Some(Vec::new()))
        }
        read => read,
    }
}

/// Makes durable what recovery read.
async fn flush_all(folder: &Path, journal: &File) -> Result<(), DiskError> {
    journal.flush().await?;
    for slot in 0..2 {
        let path = folder.join(checkpoint::file_name(slot));
        if path.exists() {
            let file = File::open(&path, false).await?;
            file.flush().await?;
            file.close().await?;
        }
    }
    flush_folder(folder).await
}

/// Feeds the whole ring to recovery; while it judges one part the next is being read.
async fn scan(journal: &Rc<File>, recovery: &mut Recovery) -> Result<(), DiskError> {
    let mut under_way: VecDeque<(RingRead, Rc<Ahead>)> = VecDeque::new();
    loop {
        while under_way.len() < READS_AHEAD
            && let Some(wanted) = recovery.next_read()
        {
            under_way.push_back((wanted, Ahead::begin(journal, wanted)));
        }
        let Some((wanted, ahead)) = under_way.pop_front() else { return Ok(()) };
        match ahead.read().await {
            Ok(read) => recovery.feed(&read),
            Err(error) if error.is_media() => feed_blocks(journal, &wanted, recovery).await?,
            Err(error) => return Err(error),
        }
        rt::yield_if_needed().await;
    }
}

/// A read of the ring that is under way.
#[derive(Default)]
struct Ahead {
    result: RefCell<Option<Result<ReadResult, DiskError>>>,
    done: rt::Signal,
}

impl Ahead {
    fn begin(journal: &Rc<File>, wanted: RingRead) -> Rc<Self> {
        let (ahead, journal) = (Rc::new(Self::default()), Rc::clone(journal));
        let begun = Rc::clone(&ahead);
        rt::spawn(async move {
            let bytes = usize::try_from(wanted.bytes).unwrap_or(usize::MAX);
            let result = journal.read(RING_DATA_START + wanted.ring_offset, bytes).await;
            drop(journal);
            begun.result.replace(Some(result));
            begun.done.notify();
        });
        ahead
    }

    async fn read(&self) -> Result<ReadResult, DiskError> {
        loop {
            let result = self.result.take();
            match result {
                Some(result) => return result,
                None => self.done.wait().await,
            }
        }
    }
}

/// Reads a part of the ring block by block, where it cannot be read as a whole: recovery decides what the loss of a block
/// means.
async fn feed_blocks(journal: &File, wanted: &RingRead, recovery: &mut Recovery) -> Result<(), DiskError> {
    for at in (0..wanted.bytes).step_by(BLOCK_BYTES) {
        match journal.read(RING_DATA_START + wanted.ring_offset + at, BLOCK_BYTES).await {
            Ok(read) => recovery.feed(&read),
            Err(error) if error.is_media() => {
                tracing::error!(%error, "a block of the journal cannot be read");
                recovery.feed_unreadable();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
