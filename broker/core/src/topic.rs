//! Topic names and topic settings: what is legal, what it means, what holds when nothing was said.
//!
//! Called by the controller (to admit a topic), by the configuration (to check `[topic_defaults]`), and by whoever
//! opens a partition (to resolve the settings in force).
//!
//! Invariants: a [`TopicName`] exists only if it is legal; a [`TopicOverrides`] holds only settings that are legal
//! on their own; a [`TopicConfig`] exists only if its settings are legal together. Overrides are stored, defaults are
//! resolved at use: raising a default reaches every topic that did not say otherwise.
//!
//! Refuses to know: where overrides are stored, and what a partition does with a setting.

mod config;
pub mod quantity;

use std::fmt;
use std::str::FromStr;

pub use config::{
    CleanupPolicy, ConfigEntry, ConfigError, ConfigKey, ConfigSource, ConfigValue, Durability, FullPolicy,
    TopicConfig, TopicOverrides,
};
use thiserror::Error;

/// The longest topic name, in bytes (Kafka's bound: the name must fit a file name with a suffix).
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// A legal topic name: 1 to 249 characters of `[a-zA-Z0-9._-]`, but neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Box<str>);

impl TopicName {
    /// Checks `name` against Kafka's rule.
    ///
    /// # Errors
    /// [`TopicNameError`] says which part of the rule was broken, and where.
    pub fn new(name: &str) -> Result<Self, TopicNameError> {
        if name.is_empty() {
            return Err(TopicNameError::Empty);
        }
        if name.len() > TOPIC_NAME_BYTES_MAX {
            return Err(TopicNameError::TooLong { bytes: name.len() });
        }
        if name == "." || name == ".." {
            return Err(TopicNameError::Dots);
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        match name.char_indices().find(|(_, c)| !legal(*c)) {
            Some((at, character)) => Err(TopicNameError::Character { character, at }),
            None => Ok(Self(name.into())),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for TopicName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for TopicName {
    type Err = TopicNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

/// Why a name is not a topic's. Maps to `INVALID_NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TopicNameError {
    /// No character at all.
    #[error("a topic name must not be empty; use 1 to 249 characters of a-z A-Z 0-9 . _ -")]
    Empty,
    /// Longer than [`TOPIC_NAME_BYTES_MAX`].
    #[error("the topic name has {bytes} bytes; at most 249 are allowed")]
    TooLong {
        /// The name's length.
        bytes: usize,
    },
    /// The name is `.` or `..`.
    #[error("a topic must not be named \".\" or \"..\"")]
    Dots,
    /// A character outside the alphabet.
    #[error("the topic name has {character:?} at byte {at}; allowed are a-z A-Z 0-9 . _ -")]
    Character {
        /// The first illegal character.
        character: char,
        /// Its byte position in the name.
        at: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_names_are_kept_as_they_are() {
        for name in ["a", "orders", "Orders-2.eu_west", "...", "-", "_", &"x".repeat(249)] {
            assert_eq!(TopicName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn illegal_names_are_refused_by_their_fault() {
        assert_eq!(TopicName::new(""), Err(TopicNameError::Empty));
        assert_eq!(TopicName::new("."), Err(TopicNameError::Dots));
        assert_eq!(TopicName::new(".."), Err(TopicNameError::Dots));
        assert_eq!(TopicName::new(&"x".repeat(250)), Err(TopicNameError::TooLong { bytes: 250 }));
        for (name, character, at) in
            [("a/b", '/', 1), ("a b", ' ', 1), ("naïve", 'ï', 2), ("a\0", '\0', 1), ("a\n", '\n', 1)]
        {
            assert_eq!(TopicName::new(name), Err(TopicNameError::Character { character, at }));
        }
    }
}
