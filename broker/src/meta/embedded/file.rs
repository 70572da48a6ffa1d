//! The redb file: its tables, its version, and the check that runs before the first byte of it is written.
//!
//! `format` holds the version, `state` the store's revision, `entries` the keys, `local` what concerns this broker
//! alone and has no revision. Invariant: a file that is damaged, foreign or newer is left untouched. So it is first
//! opened as a copy in memory, where redb may repair what it likes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use corelog_core::meta::{Key, KeyValue, Revision, SessionId};
use redb::backends::InMemoryBackend;
use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase as _, ReadableTable,
    StorageBackend as _, TableDefinition,
};
use thiserror::Error;

/// The version that is written, and the newest that is read.
const VERSION: u64 = 1;
/// Metadata is small; so is its cache.
const CACHE_BYTES: usize = 4 << 20;

const FORMAT: TableDefinition<'_, &str, u64> = TableDefinition::new("format");
pub(super) const STATE: TableDefinition<'_, &str, u64> = TableDefinition::new("state");
pub(super) const ENTRIES: TableDefinition<'_, &str, StoredEntry> = TableDefinition::new("entries");
pub(super) const LOCAL: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("local");

const VERSION_KEY: &str = "version";
pub(super) const REVISION_KEY: &str = "revision";

/// Create revision, mod revision, session (0 for none), value.
pub(super) type StoredEntry = (u64, u64, u64, &'static [u8]);

/// Why the file cannot be used. It is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("metadata file {} is in use by another broker: stop that one first", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Written by a newer broker.
    #[error("metadata file {} has format {version}; this broker reads up to {VERSION}: run the newer one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u64,
    },
    /// Not a metadata file, or a damaged one.
    #[error("metadata file {} is damaged or not a metadata file ({what}): restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file system refused.
    #[error("metadata file {} cannot be opened: {what}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        what: String,
    },
}

/// What an entry looks like with its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) entry: KeyValue,
    pub(super) session: Option<SessionId>,
}

impl Held {
    pub(super) fn new(key: &Key, stored: (u64, u64, u64, &[u8])) -> Self {
        let (created, modified, session, value) = stored;
        let entry = KeyValue {
            key: key.clone(),
            value: bytes::Bytes::copy_from_slice(value),
            create_revision: Revision::new(created),
            mod_revision: Revision::new(modified),
        };
        Self { entry, session: Some(SessionId::new(session)).filter(|session| session.get() != 0) }
    }
}

/// Opens the file, or makes it.
///
/// # Errors
/// [`OpenError`].
pub(super) fn open(path: &Path) -> Result<Database, OpenError> {
    if let Some(bytes) = read_whole(path)? {
        check_copy(path, &bytes)?;
    }
    let database =
        Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(|error| sort(path, error))?;
    // New, or the first start was cut short after redb had made the file and before the tables were made.
    if is_blank(&database) {
        make_tables(&database).map_err(|error| io(path, error))?;
        sync_parent(path)?;
    }
    Ok(database)
}

/// The file's bytes; none if it is not there or was left empty by a start that was cut short.
fn read_whole(path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(path, error)),
    };
    match file.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => return Err(io(path, error)),
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| io(path, error))?;
    Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
}

/// Opens a copy in memory, checks every page, and reads every table.
fn check_copy(path: &Path, bytes: &[u8]) -> Result<(), OpenError> {
    let damaged = |what: String| OpenError::Damaged { path: path.to_owned(), what };
    let copy = InMemoryBackend::new();
    let filled = copy.set_len(bytes.len() as u64).and_then(|()| copy.write(0, bytes));
    filled.map_err(|error| io(path, error))?;
    let mut database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(copy)
        .map_err(|error| damaged(error.to_string()))?;
    check_version(path, &database)?;
    // A file that had to be repaired after a crash passes; one with a broken page does not.
    match database.check_integrity() {
        Ok(true) => {}
        Ok(false) => return Err(damaged("a page does not match its checksum".to_owned())),
        Err(error) => return Err(damaged(error.to_string())),
    }
    let transaction = database.begin_read().map_err(|error| damaged(error.to_string()))?;
    check_tables(&transaction).map_err(damaged)
}

fn check_version(path: &Path, database: &Database) -> Result<(), OpenError> {
    let damaged = |what: String| OpenError::Damaged { path: path.to_owned(), what };
    let version = || -> Result<Option<u64>, redb::Error> {
        let table = database.begin_read()?.open_table(FORMAT)?;
        Ok(table.get(VERSION_KEY)?.map(|version| version.value()))
    };
    match version() {
        Ok(Some(version)) if version > VERSION => Err(OpenError::Newer { path: path.to_owned(), version }),
        Ok(Some(VERSION)) => Ok(()),
        Ok(version) => Err(damaged(format!("format {version:?}"))),
        Err(redb::Error::TableDoesNotExist(_)) if is_blank(database) => Ok(()),
        Err(error) => Err(damaged(error.to_string())),
    }
}

/// Made by redb, but not yet by us: the first start was cut short.
fn is_blank(database: &Database) -> bool {
    database.begin_read().is_ok_and(|read| read.list_tables().is_ok_and(|mut tables| tables.next().is_none()))
}

fn check_tables(read: &ReadTransaction) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    if read.list_tables().map_err(|error| said(&error))?.next().is_none() {
        return Ok(());
    }
    let entries = read.open_table(ENTRIES).map_err(|error| said(&error))?;
    let state = read.open_table(STATE).map_err(|error| said(&error))?;
    let revision =
        state.get(REVISION_KEY).map_err(|error| said(&error))?.map_or(0, |revision| revision.value());
    for entry in entries.iter().map_err(|error| said(&error))? {
        let (key, stored) = entry.map_err(|error| said(&error))?;
        let (created, modified, _, _) = stored.value();
        if created == 0 || created > modified || modified > revision {
            return Err(format!("{} has revisions {created}, {modified} of {revision}", key.value()));
        }
    }
    read.open_table(LOCAL).map(drop).map_err(|error| said(&error))
}

/// Makes all tables in one commit: a file has none or all of them.
fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    write.open_table(FORMAT)?.insert(VERSION_KEY, VERSION)?;
    write.open_table(STATE)?.insert(REVISION_KEY, 0)?;
    write.open_table(ENTRIES)?;
    write.open_table(LOCAL)?;
    write.commit()?;
    Ok(())
}

/// The new file's name must survive a power cut, too.
fn sync_parent(path: &Path) -> Result<(), OpenError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    OpenOptions::new().read(true).open(parent).and_then(|dir| dir.sync_all()).map_err(|error| io(path, error))
}

fn sort(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.to_owned() },
        DatabaseError::Storage(redb::StorageError::Io(error)) => io(path, error),
        error => OpenError::Damaged { path: path.to_owned(), what: error.to_string() },
    }
}

fn io(path: &Path, error: impl std::fmt::Display) -> OpenError {
    OpenError::Io { path: path.to_owned(), what: error.to_string() }
}
