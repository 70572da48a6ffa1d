//! The files of segments: where they are, which are open, which may go.
//!
//! Called by `extents`, `cold` and the room's `perform`. Invariant: a file is removed only while nobody holds it, and
//! so it is never opened while it is being removed (glommio panics when a file vanishes within its open).

use super::error::{DiskError, Result};
use super::file::{File, check_room};
use crate::rt;
use corelog_core::journal::{SegmentId, SegmentUse};
use corelog_core::segment::{IndexFile, file_name, folder_name, index_file_name, parse_file_name};
use corelog_core::shard::COMPACTED_USES;
use corelog_wire::ids::TopicPartition;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Open files per shard. Beyond it the longest unused is closed.
const OPEN_MAX: usize = 256;
/// Index files kept in memory per shard: at most [`INDEX_ENTRIES_MAX`](corelog_core::limits::INDEX_ENTRIES_MAX) entries
/// each, a few tens of KiB.
const INDEXES_MAX: usize = 128;

/// A file that is being written has its name with this behind it.
const DRAFT_SUFFIX: &str = ".tmp";

/// The segment files of one shard.
#[derive(Debug)]
pub(super) struct Segments {
    topics: PathBuf,
    open: RefCell<Recent<Rc<File>>>,
    /// `None`: there is no sound index file.
    indexes: RefCell<Recent<Option<Rc<IndexFile>>>>,
    holds: RefCell<BTreeMap<SegmentId, Held>>,
    /// Partitions whose folders are made and durable, and how many removals they wait for if they are to go.
    folders: RefCell<BTreeSet<TopicPartition>>,
    leaving: RefCell<BTreeMap<TopicPartition, Leaving>>,
}

/// Who uses a file.
#[derive(Debug, Default)]
struct Held {
    users: usize,
    /// To be removed when nobody does.
    doomed: bool,
}

/// A partition that loses files.
#[derive(Debug, Default)]
struct Leaving {
    removals: usize,
    whole: bool,
}

/// A segment's files stay while this lives.
#[derive(Debug)]
pub(super) struct Hold {
    segments: Rc<Segments>,
    id: SegmentId,
    removal: rt::Queue,
    gate: rt::Gate,
}

impl Segments {
    /// The segments below `topics`.
    pub(super) fn new(topics: PathBuf) -> Self {
        Self {
            topics,
            open: RefCell::new(Recent::new(OPEN_MAX)),
            indexes: RefCell::new(Recent::new(INDEXES_MAX)),
            holds: RefCell::default(),
            folders: RefCell::default(),
            leaving: RefCell::default(),
        }
    }

    fn folder(&self, tp: TopicPartition) -> PathBuf {
        self.topics.join(folder_name(tp))
    }

    /// Where a segment's file is.
    pub(super) fn path(&self, hold: &Hold) -> PathBuf {
        self.folder(hold.id.tp).join(file_name(hold.id))
    }

    /// Keeps a segment's files from being removed.
    pub(super) fn hold(self: &Rc<Self>, id: SegmentId, removal: rt::Queue, gate: &rt::Gate) -> Hold {
        self.holds.borrow_mut().entry(id).or_default().users += 1;
        Hold { segments: Rc::clone(self), id, removal, gate: gate.clone() }
    }

    /// Opens a segment's file, which is there.
    pub(super) async fn open(&self, hold: &Hold) -> Result<Rc<File>> {
        if let Some(file) = self.open.borrow_mut().get(hold.id) {
            return Ok(file);
        }
        let path = self.folder(hold.id.tp).join(file_name(hold.id));
        let file = Rc::new(File::open(&path, false).await?);
        self.open.borrow_mut().insert(hold.id, Rc::clone(&file));
        Ok(file)
    }

    /// Makes a segment's file, of that of another segment which left the log if nobody reads it any more, and its folder if it
    /// is the partition's first. Whatever the file had stays until it is overwritten; the name is durable after
    /// [`flush_name`](Self::flush_name).
    pub(super) async fn create(self: &Rc<Self>, hold: &Hold, of: Option<SegmentId>) -> Result<Rc<File>> {
        let folder = self.folder(hold.id.tp);
        if !self.folders.borrow().contains(&hold.id.tp) {
            let (topics, made) = (self.topics.clone(), folder.clone());
            rt::blocking(move || make_folder(&topics, &made))
                .await
                .map_err(|error| DiskError::system("making", &folder, error))?;
            self.folders.borrow_mut().insert(hold.id.tp);
        }
        let path = folder.join(file_name(hold.id));
        if let Some(old) = of {
            self.recycle(old, path.clone(), hold).await?;
        }
        let file = Rc::new(File::open(&path, true).await?);
        self.open.borrow_mut().insert(hold.id, Rc::clone(&file));
        Ok(file)
    }

    /// Gives the file of a segment that left the log another name. One that is being read is removed instead, when it no
    /// longer is; one that is gone is no loss.
    async fn recycle(self: &Rc<Self>, old: SegmentId, path: PathBuf, hold: &Hold) -> Result<()> {
        if self.holds.borrow().contains_key(&old) {
            self.remove(old, hold.removal, &hold.gate);
            return Ok(());
        }
        self.open.borrow_mut().remove(old);
        self.indexes.borrow_mut().remove(old);
        let folder = self.folder(old.tp);
        let (file, index) = (folder.join(file_name(old)), folder.join(index_file_name(old)));
        let renamed = rt::blocking(move || {
            present(std::fs::rename(&file, &path))?;
            present(std::fs::remove_file(&index)).map(drop)
        });
        renamed.await.map_err(|error| DiskError::system("renaming a file of", &folder, error))
    }

    /// Makes the name of a segment's new file durable.
    pub(super) async fn flush_name(&self, hold: &Hold) -> Result<()> {
        flush_folder(&self.folder(hold.id.tp)).await
    }

    /// Puts an index file into place, durable before its name is.
    pub(super) async fn write_index(&self, hold: &Hold, content: Vec<u8>) -> Result<()> {
        let folder = self.folder(hold.id.tp);
        let path = folder.join(index_file_name(hold.id));
        let target = path.clone();
        let written = rt::blocking(move || {
            let mut draft = target.clone().into_os_string();
            draft.push(DRAFT_SUFFIX);
            check_room(&folder, content.len() as u64)?;
            let mut file = std::fs::File::create(&draft)?;
            file.write_all(&content)?;
            file.sync_all()?;
            std::fs::rename(&draft, &target)?;
            sync_folder(&folder)
        });
        written.await.map_err(|error| DiskError::system("writing", &path, error))?;
        self.indexes.borrow_mut().remove(hold.id);
        Ok(())
    }

    /// A segment's index file, if there is a sound one.
    pub(super) async fn index(&self, hold: &Hold) -> Option<Rc<IndexFile>> {
        let id = hold.id;
        if let Some(known) = self.indexes.borrow_mut().get(id) {
            return known;
        }
        let path = self.folder(id.tp).join(index_file_name(id));
        let source = path.clone();
        let index = match rt::blocking(move || std::fs::read(&source)).await {
            Ok(bytes) => IndexFile::open(&bytes, id)
                .inspect_err(
                    |error| tracing::warn!(path = %path.display(), %error, "an index file is of no use"),
                )
                .ok()
                .map(Rc::new),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "an index file cannot be read");
                }
                None
            }
        };
        self.indexes.borrow_mut().insert(id, index.clone());
        index
    }

    /// Removes a segment's files, now or when the last hold on them goes.
    pub(super) fn remove(self: &Rc<Self>, id: SegmentId, queue: rt::Queue, gate: &rt::Gate) {
        self.leaving.borrow_mut().entry(id.tp).or_default().removals += 1;
        if let Some(held) = self.holds.borrow_mut().get_mut(&id) {
            held.doomed = true;
            return;
        }
        self.unlink(id, queue, gate);
    }

    /// Removes a partition's folder once its files are gone.
    pub(super) fn remove_partition(self: &Rc<Self>, tp: TopicPartition, queue: rt::Queue, gate: &rt::Gate) {
        self.leaving.borrow_mut().entry(tp).or_default().whole = true;
        let (segments, pass) = (Rc::clone(self), gate.enter());
        rt::spawn_in(queue, async move {
            segments.settle(tp).await;
            drop(pass);
        });
    }

    /// Removes the files in a partition's folder that belong to no segment in `kept`, which is in order. Files of later uses than `newest_use`
    /// were made since the start, unless they are of compaction: that waits for this.
    pub(super) async fn sweep(&self, tp: TopicPartition, kept: Vec<SegmentId>, newest_use: SegmentUse) {
        let folder = self.folder(tp);
        let swept = rt::blocking(move || {
            let Some(entries) = present(std::fs::read_dir(&folder))? else { return Ok(0) };
            let mut swept = 0;
            for entry in entries {
                let path = entry?.path();
                let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
                let Some((base, segment_use)) =
                    parse_file_name(name.strip_suffix(DRAFT_SUFFIX).unwrap_or(name))
                else {
                    continue;
                };
                if (segment_use <= newest_use || segment_use >= COMPACTED_USES)
                    && kept.binary_search(&SegmentId { tp, base, segment_use }).is_err()
                {
                    present(std::fs::remove_file(&path))?;
                    swept += 1;
                }
            }
            Ok::<_, io::Error>(swept)
        });
        match swept.await {
            Ok(0) => {}
            Ok(files) => tracing::info!(%tp, files, "files of segments that left the log were removed"),
            Err(error) => tracing::warn!(%tp, %error, "a partition's folder cannot be swept"),
        }
    }

    fn unlink(self: &Rc<Self>, id: SegmentId, queue: rt::Queue, gate: &rt::Gate) {
        self.open.borrow_mut().remove(id);
        self.indexes.borrow_mut().remove(id);
        let folder = self.folder(id.tp);
        let (segments, pass) = (Rc::clone(self), gate.enter());
        rt::spawn_in(queue, async move {
            let paths = [folder.join(file_name(id)), folder.join(index_file_name(id))];
            let unlinked = rt::blocking(move || {
                paths.iter().try_for_each(|path| present(std::fs::remove_file(path)).map(drop))
            });
            if let Err(error) = unlinked.await {
                tracing::warn!(?id, %error, "a segment that is not needed cannot be removed");
            }
            if let Some(leaving) = segments.leaving.borrow_mut().get_mut(&id.tp) {
                leaving.removals -= 1;
            }
            segments.settle(id.tp).await;
            drop(pass);
        });
    }

    /// Removes the folder of a partition that is to go and waits for no file any more.
    async fn settle(&self, tp: TopicPartition) {
        let whole = match self.leaving.borrow().get(&tp) {
            Some(leaving) if leaving.removals == 0 => leaving.whole,
            Some(_) | None => return,
        };
        self.leaving.borrow_mut().remove(&tp);
        if !whole {
            return;
        }
        self.folders.borrow_mut().remove(&tp);
        let (folder, topics) = (self.folder(tp), self.topics.clone());
        let removed = rt::blocking(move || {
            present(std::fs::remove_dir_all(&folder))?;
            // The topic's folder goes with its last partition, whichever shard has that, and durably: nothing will name
            // it any more.
            match folder.parent() {
                Some(topic) if std::fs::remove_dir(topic).is_ok() => sync_folder(&topics),
                Some(_) | None => Ok(()),
            }
        });
        if let Err(error) = removed.await {
            tracing::warn!(%tp, %error, "the folder of a removed partition cannot be removed");
        }
    }

    /// Closes every open file.
    pub(super) async fn close(&self) -> Result<()> {
        let files = self.open.borrow_mut().drain();
        for file in files {
            if let Ok(file) = Rc::try_unwrap(file) {
                file.close().await?;
            }
        }
        Ok(())
    }
}

impl Hold {
    /// Whose files.
    pub(super) const fn id(&self) -> SegmentId {
        self.id
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let doomed = {
            let mut holds = self.segments.holds.borrow_mut();
            let Some(held) = holds.get_mut(&self.id) else { return };
            held.users -= 1;
            if held.users > 0 {
                return;
            }
            holds.remove(&self.id).is_some_and(|held| held.doomed)
        };
        if doomed {
            self.segments.unlink(self.id, self.removal, &self.gate);
        }
    }
}

/// What there is; that there is nothing is no error.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a partition's folder and everything up to `topics` durable. Another shard may remove the topic's folder when
/// it was empty, so it may take a second try.
fn make_folder(topics: &Path, folder: &Path) -> io::Result<()> {
    const TRIES: usize = 4;
    let mut made = std::fs::create_dir_all(folder);
    for _ in 1..TRIES {
        if made.is_ok() {
            break;
        }
        made = std::fs::create_dir_all(folder);
    }
    made?;
    if let Some(topic) = folder.parent() {
        sync_folder(topic)?;
    }
    sync_folder(topics)
}

/// The same as [`sync_folder`], beside the executor: on a busy file system it takes seconds.
pub(super) async fn flush_folder(folder: &Path) -> Result<()> {
    let synced = folder.to_owned();
    rt::blocking(move || sync_folder(&synced))
        .await
        .map_err(|error| DiskError::system("flushing", folder, error))
}

/// Makes the names in a folder durable. In full: flushing only a folder's data is not certain to.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// A bounded map by segment that forgets the longest unused.
#[derive(Debug)]
pub(super) struct Recent<T> {
    entries: BTreeMap<SegmentId, (u64, T)>,
    by_use: BTreeMap<u64, SegmentId>,
    uses: Cell<u64>,
    entries_max: usize,
}

impl<T: Clone> Recent<T> {
    pub(super) fn new(entries_max: usize) -> Self {
        Self { entries: BTreeMap::new(), by_use: BTreeMap::new(), uses: Cell::new(0), entries_max }
    }

    fn next_use(&self) -> u64 {
        self.uses.set(self.uses.get() + 1);
        self.uses.get()
    }

    pub(super) fn get(&mut self, id: SegmentId) -> Option<T> {
        let now = self.next_use();
        let (last, value) = self.entries.get_mut(&id)?;
        self.by_use.remove(last);
        self.by_use.insert(now, id);
        *last = now;
        Some(value.clone())
    }

    pub(super) fn insert(&mut self, id: SegmentId, value: T) {
        let now = self.next_use();
        if let Some((last, _)) = self.entries.insert(id, (now, value)) {
            self.by_use.remove(&last);
        }
        self.by_use.insert(now, id);
        while self.entries.len() > self.entries_max
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.entries.remove(&oldest);
        }
    }

    pub(super) fn remove(&mut self, id: SegmentId) {
        if let Some((last, _)) = self.entries.remove(&id) {
            self.by_use.remove(&last);
        }
    }

    fn drain(&mut self) -> Vec<T> {
        self.by_use.clear();
        std::mem::take(&mut self.entries).into_values().map(|(_, value)| value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Recent;
    use corelog_core::journal::{SegmentId, SegmentUse};
    use corelog_wire::ids::{Offset, TopicId, TopicPartition};

    fn id(base: u64) -> SegmentId {
        let tp = TopicPartition::new(TopicId::from_bytes([1; 16]), 0);
        SegmentId { tp, base: Offset::new(base), segment_use: SegmentUse(0) }
    }

    #[test]
    fn the_longest_unused_is_forgotten() {
        let mut recent = Recent::new(2);
        recent.insert(id(1), 'a');
        recent.insert(id(2), 'b');
        assert_eq!(recent.get(id(1)), Some('a'));
        recent.insert(id(3), 'c');
        assert_eq!((recent.get(id(1)), recent.get(id(2)), recent.get(id(3))), (Some('a'), None, Some('c')));
        recent.remove(id(1));
        assert_eq!((recent.get(id(1)), recent.drain()), (None, vec!['c']));
    }
}
