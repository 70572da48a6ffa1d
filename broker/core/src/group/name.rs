//! A group's name: legal wherever a topic's is, so that it can be a key of the metadata store and a label of a metric.

use std::fmt;

use thiserror::Error;

use crate::topic::{TopicName, TopicNameError};

/// A legal name of a group: 1 to 249 characters of `[a-zA-Z0-9._-]`, but neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName(TopicName);

/// Why a text is no group's name. Maps to `INVALID_GROUP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a group is named by the rule of topics: {0}")]
pub struct GroupNameError(#[from] TopicNameError);

impl GroupName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`GroupNameError`] says which part of the rule was broken, and where.
    pub fn new(name: &str) -> Result<Self, GroupNameError> {
        Ok(Self(TopicName::new(name)?))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
