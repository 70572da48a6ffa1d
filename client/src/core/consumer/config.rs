//! How a consumer works, and whether that makes sense.

use std::time::Duration;

use corelog_wire::message::{Assignor, MemberWishes};

use crate::core::{ReaderConfig, Start};
use crate::error::Error;

/// When a consumer commits how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitMode {
    /// After the records are done with, this often, and before a partition is let go of: at least once.
    After(Duration),
    /// Before records are given: at most once.
    Before,
    /// When the user says so.
    Manual,
}

/// How a consumer works.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// The group.
    pub group: String,
    /// What it says of itself.
    pub wishes: MemberWishes,
    /// Where to begin where nothing is committed.
    pub start: Start,
    /// When it commits.
    pub commit: CommitMode,
    /// How long the user may be away with records.
    pub processing_max: Duration,
    /// How long committing and leaving may take at the end.
    pub close_patience: Duration,
    /// How its readers work; the topic and the partitions are the group's to say.
    pub reader: ReaderConfig,
}

impl ConsumerConfig {
    /// The defaults for a group.
    #[must_use]
    pub fn new(group: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            wishes: MemberWishes {
                session_timeout: Duration::from_secs(10),
                topics: Vec::new(),
                patterns: Vec::new(),
                assignor: Assignor::Uniform,
                instance: None,
                client_name: String::new(),
            },
            start: Start::Earliest,
            commit: CommitMode::After(Duration::from_secs(1)),
            processing_max: Duration::from_mins(5),
            close_patience: Duration::from_secs(5),
            reader: ReaderConfig::new(""),
        }
    }

    /// Whether the settings make sense together.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn check(&self) -> Result<(), Error> {
        if self.wishes.topics.is_empty() && self.wishes.patterns.is_empty() {
            return Err(Error::usage("a consumer needs at least one topic or pattern"));
        }
        if self.wishes.session_timeout.is_zero() || self.processing_max.is_zero() {
            return Err(Error::usage("a session and the time for records last longer than nothing"));
        }
        self.reader.check()
    }
}
