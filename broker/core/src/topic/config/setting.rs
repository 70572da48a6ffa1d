//! One setting of a topic: its name, the values it takes, and how they are read and printed.
//!
//! Called by the layers in [`super`]. Invariant: what a value prints, its key reads back as the same value. Refuses to know
//! what other settings a value goes together with.

use std::collections::BTreeSet;
use std::fmt;

use super::{BATCH_BYTES_MAX, ConfigError};
use crate::group::GroupName;
use crate::limits::{BLOCK, PROTECTED_GROUPS_MAX, RETENTION_MS_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::topic::quantity::{parse_bytes, parse_millis};

/// What an acknowledgement proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// Acknowledged after the bytes were flushed to disk.
    Disk,
    /// Acknowledged when in memory; written right behind.
    Memory,
}

/// What gives way when the data directory is at its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FullPolicy {
    /// Producers wait; nothing is dropped.
    BlockProducer,
    /// The oldest segments of the topic go.
    DropOldest,
    /// The oldest segments go that every group of `protect_groups` has read; if there are none, producers wait.
    ProtectUnread,
}

/// What happens to records past their retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CleanupPolicy {
    /// Whole segments are deleted.
    Delete,
    /// Of each key the newest record is kept, for ever.
    Compact,
    /// Both.
    CompactDelete,
}

impl CleanupPolicy {
    /// Whether only the newest record of each key is kept.
    #[must_use]
    pub const fn compacts(self) -> bool {
        matches!(self, Self::Compact | Self::CompactDelete)
    }

    /// Whether whole segments go by age and size.
    #[must_use]
    pub const fn deletes(self) -> bool {
        matches!(self, Self::Delete | Self::CompactDelete)
    }
}

/// The name of a topic setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConfigKey {
    /// `batch_bytes_max`
    BatchBytesMax,
    /// `cleanup_policy`
    CleanupPolicy,
    /// `delete_retention_ms`
    DeleteRetentionMs,
    /// `durability`
    Durability,
    /// `full_policy`
    FullPolicy,
    /// `min_compaction_lag_ms`
    MinCompactionLagMs,
    /// `min_insync_replicas`
    MinInsyncReplicas,
    /// `protect_groups`
    ProtectGroups,
    /// `record_bytes_max`
    RecordBytesMax,
    /// `retention_bytes`
    RetentionBytes,
    /// `retention_ms`
    RetentionMs,
    /// `segment_bytes`
    SegmentBytes,
}

impl ConfigKey {
    /// Every key, in the order of their names.
    pub const ALL: [Self; 12] = [
        Self::BatchBytesMax,
        Self::CleanupPolicy,
        Self::DeleteRetentionMs,
        Self::Durability,
        Self::FullPolicy,
        Self::MinCompactionLagMs,
        Self::MinInsyncReplicas,
        Self::ProtectGroups,
        Self::RecordBytesMax,
        Self::RetentionBytes,
        Self::RetentionMs,
        Self::SegmentBytes,
    ];

    /// The key as written in CLI, configuration and wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BatchBytesMax => "batch_bytes_max",
            Self::CleanupPolicy => "cleanup_policy",
            Self::DeleteRetentionMs => "delete_retention_ms",
            Self::Durability => "durability",
            Self::FullPolicy => "full_policy",
            Self::MinCompactionLagMs => "min_compaction_lag_ms",
            Self::MinInsyncReplicas => "min_insync_replicas",
            Self::ProtectGroups => "protect_groups",
            Self::RecordBytesMax => "record_bytes_max",
            Self::RetentionBytes => "retention_bytes",
            Self::RetentionMs => "retention_ms",
            Self::SegmentBytes => "segment_bytes",
        }
    }

    /// Finds a key by its name.
    ///
    /// # Errors
    /// [`ConfigError::UnknownKey`] lists the known ones.
    pub fn from_name(name: &str) -> Result<Self, ConfigError> {
        let found = Self::ALL.into_iter().find(|key| key.name() == name);
        found.ok_or_else(|| ConfigError::UnknownKey { key: name.to_owned() })
    }

    /// The values this key takes, in words.
    #[must_use]
    pub fn allowed(self) -> &'static str {
        match self {
            Self::BatchBytesMax => "a size from 1KiB to 8MiB",
            Self::CleanupPolicy => "delete, compact or compact,delete",
            Self::DeleteRetentionMs | Self::MinCompactionLagMs => "a duration up to 100 years",
            Self::Durability => "disk or memory",
            Self::FullPolicy => "block-producer, drop-oldest or protect-unread",
            Self::MinInsyncReplicas => "a number from 1 to 255",
            Self::ProtectGroups => "up to 16 names of consumer groups, with commas between them, or none",
            Self::RecordBytesMax => "a size from 1B to 8MiB",
            Self::RetentionBytes => "a size of at least 1MiB, or none",
            Self::RetentionMs => "a duration from 1ms to 100 years, or none",
            Self::SegmentBytes => "a size from 1MiB to 1GiB in steps of 4KiB",
        }
    }

    /// Reads a value of this key.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`].
    pub fn parse(self, value: &str) -> Result<ConfigValue, ConfigError> {
        let text = value.trim();
        let bad = || ConfigError::BadValue { key: self, value: value.to_owned() };
        let size = |min, max| in_bounds(parse_bytes(text).ok(), min, max).ok_or_else(bad);
        match self {
            Self::BatchBytesMax => size(1 << 10, BATCH_BYTES_MAX),
            Self::RecordBytesMax => size(1, BATCH_BYTES_MAX),
            Self::SegmentBytes => match size(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)? {
                ConfigValue::Number(bytes) if !bytes.is_multiple_of(BLOCK) => Err(bad()),
                value => Ok(value),
            },
            Self::RetentionBytes | Self::RetentionMs if means_unlimited(text) => Ok(ConfigValue::Unlimited),
            Self::RetentionBytes => size(SEGMENT_BYTES_MIN, u64::MAX),
            Self::DeleteRetentionMs | Self::MinCompactionLagMs => {
                in_bounds(parse_millis(text).ok(), 0, RETENTION_MS_MAX).ok_or_else(bad)
            }
            Self::RetentionMs => in_bounds(parse_millis(text).ok(), 1, RETENTION_MS_MAX).ok_or_else(bad),
            Self::MinInsyncReplicas => in_bounds(text.parse().ok(), 1, 255).ok_or_else(bad),
            Self::ProtectGroups => group_names(text).map(ConfigValue::Groups).ok_or_else(bad),
            Self::Durability => match text {
                "disk" => Ok(ConfigValue::Durability(Durability::Disk)),
                "memory" => Ok(ConfigValue::Durability(Durability::Memory)),
                _ => Err(bad()),
            },
            Self::FullPolicy => match text {
                "block-producer" => Ok(ConfigValue::FullPolicy(FullPolicy::BlockProducer)),
                "drop-oldest" => Ok(ConfigValue::FullPolicy(FullPolicy::DropOldest)),
                "protect-unread" => Ok(ConfigValue::FullPolicy(FullPolicy::ProtectUnread)),
                _ => Err(bad()),
            },
            Self::CleanupPolicy => match text {
                "delete" => Ok(ConfigValue::CleanupPolicy(CleanupPolicy::Delete)),
                "compact" => Ok(ConfigValue::CleanupPolicy(CleanupPolicy::Compact)),
                "compact,delete" | "delete,compact" => {
                    Ok(ConfigValue::CleanupPolicy(CleanupPolicy::CompactDelete))
                }
                _ => Err(bad()),
            },
        }
    }
}

impl fmt::Display for ConfigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn means_unlimited(text: &str) -> bool {
    matches!(text, "none" | "unlimited" | "-1")
}

/// Names with commas between them, in their order and each once; none of them is one that means none, however it is written.
fn group_names(text: &str) -> Option<Vec<GroupName>> {
    if means_unlimited(text) {
        return Some(Vec::new());
    }
    let names = text.split(',').map(|name| {
        GroupName::new(name.trim()).ok().filter(|name| !means_unlimited(&name.as_str().to_ascii_lowercase()))
    });
    let names = names.collect::<Option<BTreeSet<GroupName>>>()?;
    (names.len() <= PROTECTED_GROUPS_MAX).then(|| names.into_iter().collect())
}

fn in_bounds(number: Option<u64>, min: u64, max: u64) -> Option<ConfigValue> {
    number.filter(|number| (min..=max).contains(number)).map(ConfigValue::Number)
}

/// A value that is legal for its key. Prints in the form in which it is stored: plain bytes and milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConfigValue {
    /// Bytes, milliseconds or a count, by the key.
    Number(u64),
    /// No bound.
    Unlimited,
    /// Of `durability`.
    Durability(Durability),
    /// Of `full_policy`.
    FullPolicy(FullPolicy),
    /// Of `cleanup_policy`.
    CleanupPolicy(CleanupPolicy),
    /// Of `protect_groups`, in the order of their names.
    Groups(Vec<GroupName>),
}

impl fmt::Display for ConfigValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Number(number) => return number.fmt(f),
            Self::Groups(groups) if !groups.is_empty() => {
                let names: Vec<&str> = groups.iter().map(GroupName::as_str).collect();
                return f.write_str(&names.join(","));
            }
            Self::Unlimited | Self::Groups(_) => "none",
            Self::Durability(Durability::Disk) => "disk",
            Self::Durability(Durability::Memory) => "memory",
            Self::FullPolicy(FullPolicy::BlockProducer) => "block-producer",
            Self::FullPolicy(FullPolicy::DropOldest) => "drop-oldest",
            Self::FullPolicy(FullPolicy::ProtectUnread) => "protect-unread",
            Self::CleanupPolicy(CleanupPolicy::Delete) => "delete",
            Self::CleanupPolicy(CleanupPolicy::Compact) => "compact",
            Self::CleanupPolicy(CleanupPolicy::CompactDelete) => "compact,delete",
        })
    }
}
