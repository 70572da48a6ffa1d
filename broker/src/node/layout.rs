//! The data directory: who may use it, and what was decided about it when it was made.
//!
//! Called by boot, before anything else is opened. `layout.json` is written last, so a directory without it was never
//! used; it is replaced whole. The lock is held by an open file, so it goes with the process however that ends.

use crate::disk::{Folders, OpenError, format, refuse_memory};
use corelog_core::journal::{SUPERBLOCK_BYTES, Superblock, SuperblockError};
use corelog_core::shard::ShardConfig;
use corelog_wire::ids::ShardId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The format of `layout.json` and of the directory around it.
const VERSION: u32 = 1;

/// What was decided when the directory was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    version: u32,
    /// Names this directory for ever: a replica is the same one only with the same data.
    pub data_id: String,
    /// How many shards its partitions are spread over.
    pub shards: u16,
    /// Size of each shard's ring.
    pub journal_bytes: u64,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The system refuses.
    #[error("{what} {path}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another broker has it.
    #[error(
        "{path} is in use by another broker (process {process}): stop it, or choose another data directory"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Whoever wrote the lock last.
        process: String,
    },
    /// It was written by a newer broker.
    #[error("{path} has layout version {version}, this broker knows {VERSION}: start a newer broker")]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It is not what a broker writes.
    #[error("{path} is damaged: {source}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Something was stored here, and the file that says how is gone.
    #[error(
        "{path} has data ({file} is in use) but no layout.json: put that file back from a backup, or choose another data \
         directory; nothing was changed"
    )]
    Lost {
        /// The directory.
        path: PathBuf,
        /// What shows it.
        file: PathBuf,
    },
    /// The files of a shard could not be made.
    #[error(transparent)]
    Format(#[from] OpenError),
}

/// A data directory that this process owns.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// Held for as long as this lives.
    _lock: File,
    layout: Layout,
    /// Whether it was made just now.
    pub is_new: bool,
}

impl DataFolder {
    /// Takes a data directory, made with these numbers if it is new. An old one keeps its own numbers, whatever is
    /// asked: compare them.
    ///
    /// # Errors
    /// See [`LayoutError`]. Blocking: a new ring is preallocated.
    pub fn open(path: &Path, shards: u16, config: &ShardConfig) -> Result<Self, LayoutError> {
        std::fs::create_dir_all(path).map_err(system("making", path))?;
        refuse_memory(path)?;
        let lock = lock(path)?;
        let (layout, is_new) = match read(&path.join("layout.json"))? {
            Some(layout) => (layout, false),
            None => (make(path, shards, config)?, true),
        };
        Ok(Self { path: path.to_owned(), _lock: lock, layout, is_new })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was decided about it.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The folders of a shard.
    #[must_use]
    pub fn folders(&self, shard: usize) -> Folders {
        Folders::new(&self.path, shard)
    }
}

fn system<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LayoutError + use<'a> {
    move |source| LayoutError::System { what, path: path.to_owned(), source }
}

fn lock(folder: &Path) -> Result<File, LayoutError> {
    let path = folder.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(system("opening", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut process = String::new();
            file.read_to_string(&mut process).map_err(system("reading", &path))?;
            let process = process.trim().to_owned();
            return Err(LayoutError::InUse { path: folder.to_owned(), process });
        }
        Err(errno) => return Err(system("locking", &path)(errno.into())),
    }
    // For whoever is refused later; the lock itself is not in the content.
    file.set_len(0).map_err(system("writing", &path))?;
    writeln!(file, "{}", std::process::id()).map_err(system("writing", &path))?;
    Ok(file)
}

fn read(path: &Path) -> Result<Option<Layout>, LayoutError> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(system("reading", path)(error)),
    };
    let damaged = |source| LayoutError::Damaged { path: path.to_owned(), source };
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
    if let Some(version) = value.get("version").and_then(serde_json::Value::as_u64)
        && version > u64::from(VERSION)
    {
        let version = u32::try_from(version).unwrap_or(u32::MAX);
        return Err(LayoutError::NewerVersion { path: path.to_owned(), version });
    }
    serde_json::from_value(value).map(Some).map_err(damaged)
}

/// Makes the files of every shard, then the layout.
fn make(folder: &Path, shards: u16, config: &ShardConfig) -> Result<Layout, LayoutError> {
    if let Some(file) = used_file(folder).map_err(system("looking at", folder))? {
        return Err(LayoutError::Lost { path: folder.to_owned(), file });
    }
    for shard in 0..shards {
        let config = ShardConfig { shard: ShardId::new(shard), ..*config };
        format(&Folders::new(folder, usize::from(shard)).shard, &config)?;
    }
    let topics = folder.join("topics");
    std::fs::create_dir_all(&topics).map_err(system("making", &topics))?;
    let data_id = random_id().map_err(system("reading", Path::new("/dev/urandom")))?;
    let layout = Layout { version: VERSION, data_id, shards, journal_bytes: config.ring_bytes };
    let path = folder.join("layout.json");
    write(folder, &path, &layout).map_err(system("writing", &path))?;
    Ok(layout)
}

/// A file that a broker has used: a journal with a session, or the metadata, which come after the layout. What a first
/// start left that did not come so far may be made anew.
fn used_file(folder: &Path) -> io::Result<Option<PathBuf>> {
    let metadata = folder.join("meta.redb");
    if metadata.try_exists()? {
        return Ok(Some(metadata));
    }
    for entry in std::fs::read_dir(folder)? {
        let journal = entry?.path().join("journal");
        let mut file = match File::open(&journal) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut start = vec![0; usize::try_from(SUPERBLOCK_BYTES).unwrap_or(usize::MAX)];
        let used = file.read_exact(&mut start).is_ok()
            && match Superblock::parse_newest(&start) {
                Ok((superblock, _)) => !superblock.is_unused(),
                Err(error) => matches!(error, SuperblockError::NewerVersion { .. }),
            };
        if used {
            return Ok(Some(journal));
        }
    }
    Ok(None)
}

/// Replaces the layout as a whole, durably.
fn write(folder: &Path, path: &Path, layout: &Layout) -> io::Result<()> {
    let draft = path.with_extension("json.tmp");
    let mut file = File::create(&draft)?;
    serde_json::to_writer_pretty(&mut file, layout)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}

/// A random uuid (version 4), written.
fn random_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(corelog_wire::ids::TopicId::from_bytes(bytes).to_string())
}

#[cfg(test)]
mod tests {
    use super::{DataFolder, LayoutError, ShardConfig, ShardId};
    use crate::disk::OpenError;

    fn config() -> ShardConfig {
        ShardConfig {
            shard: ShardId::new(0),
            ring_bytes: 1 << 20,
            tail_cache_bytes: 1 << 20,
            disk_bytes_max: 1 << 30,
            recycled_bytes_max: 0,
            prewrite: false,
        }
    }

    #[test]
    fn a_directory_keeps_what_was_decided_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataFolder::open(folder.path(), 2, &config()).unwrap();
        assert!(first.is_new && folder.path().join("shard-1/journal").exists());
        let layout = first.layout().clone();
        drop(first);
        let again = DataFolder::open(folder.path(), 3, &config()).unwrap();
        assert!(!again.is_new);
        assert_eq!((again.layout(), layout.shards), (&layout, 2));
    }

    #[test]
    fn a_second_broker_is_refused_and_told_by_whom() {
        let folder = tempfile::tempdir().unwrap();
        let _first = DataFolder::open(folder.path(), 1, &config()).unwrap();
        let refused = DataFolder::open(folder.path(), 1, &config()).unwrap_err();
        let LayoutError::InUse { process, .. } = refused else { panic!("{refused}") };
        assert_eq!(process, std::process::id().to_string());
    }

    #[test]
    fn a_newer_layout_and_a_damaged_one_are_refused_untouched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layout.json");
        std::fs::write(&path, r#"{"version": 2, "more": true}"#).unwrap();
        let refused = DataFolder::open(folder.path(), 1, &config()).unwrap_err();
        assert!(matches!(refused, LayoutError::NewerVersion { version: 2, .. }), "{refused}");
        std::fs::write(&path, "{").unwrap();
        let refused = DataFolder::open(folder.path(), 1, &config()).unwrap_err();
        assert!(matches!(refused, LayoutError::Damaged { .. }), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{");
    }

    #[test]
    fn data_without_its_layout_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataFolder::open(folder.path(), 1, &config()).unwrap());
        // A first start that was cut short may be repeated.
        std::fs::remove_file(folder.path().join("layout.json")).unwrap();
        drop(DataFolder::open(folder.path(), 1, &config()).unwrap());
        let journal = folder.path().join("shard-0/journal");
        let used = corelog_core::journal::Superblock::fresh(1 << 20)
            .with_new_session(corelog_core::journal::Position::default());
        let mut bytes = std::fs::read(&journal).unwrap();
        bytes[..8_192].copy_from_slice(&used.encode_both());
        std::fs::write(&journal, &bytes).unwrap();
        std::fs::remove_file(folder.path().join("layout.json")).unwrap();
        let refused = DataFolder::open(folder.path(), 1, &config()).unwrap_err();
        assert!(matches!(&refused, LayoutError::Lost { file, .. } if *file == journal), "{refused}");
        assert_eq!(std::fs::read(&journal).unwrap(), bytes);
    }

    #[test]
    fn memory_is_no_place_for_a_log() {
        // /dev/shm is tmpfs on every Linux that has it.
        let folder = tempfile::tempdir_in("/dev/shm").expect("this test needs /dev/shm");
        let refused = DataFolder::open(folder.path(), 1, &config()).unwrap_err();
        assert!(
            matches!(&refused, LayoutError::Format(OpenError::InMemory { file_system: "tmpfs", .. })),
            "{refused}"
        );
    }
}
