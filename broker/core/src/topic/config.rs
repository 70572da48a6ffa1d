//! The settings of a topic: reading them from `(key, value)` strings, layering them, checking them together.
//!
//! Layers, later wins: built in, the broker's `[topic_defaults]`, the topic's own overrides. Only the last is stored
//! with the topic.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

use super::quantity::{parse_bytes, parse_millis};
use crate::limits::{
    self, BLOCK, DELETE_RETENTION_MS_DEFAULT, RETENTION_MS_DEFAULT, RETENTION_MS_MAX, SEGMENT_BYTES_DEFAULT,
    SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
};

/// Built-in bound of one record.
const RECORD_BYTES_MAX: u64 = limits::RECORD_BYTES_MAX as u64;
/// Built-in bound of one record batch; no topic may ask for more, since a request payload could not carry it.
const BATCH_BYTES_MAX: u64 = limits::BATCH_BYTES_MAX as u64;
/// A record travels in a batch: its header and padding come on top.
const BATCH_OVERHEAD_BYTES: u64 = 128;
/// A batch lives in a segment: the file's first block and the extent's padding come on top.
const SEGMENT_OVERHEAD_BYTES: u64 = 2 * BLOCK;

const _: () = assert!(RECORD_BYTES_MAX + BATCH_OVERHEAD_BYTES <= BATCH_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX + SEGMENT_OVERHEAD_BYTES <= SEGMENT_BYTES_DEFAULT);

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
    pub const ALL: [Self; 11] = [
        Self::BatchBytesMax,
        Self::CleanupPolicy,
        Self::DeleteRetentionMs,
        Self::Durability,
        Self::FullPolicy,
        Self::MinCompactionLagMs,
        Self::MinInsyncReplicas,
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
            Self::FullPolicy => "block-producer or drop-oldest",
            Self::MinInsyncReplicas => "a number from 1 to 255",
            Self::RecordBytesMax => "a size from 1B to 8MiB",
            Self::RetentionBytes => "a size of at least 1MiB, or none",
            Self::RetentionMs => "a duration from 1ms to 100 years, or none",
            Self::SegmentBytes => "a size from 1MiB to 1GiB in steps of 4KiB",
        }
    }

    /// Reads a value of this key.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`], or [`ConfigError::NotYet`] for a value that is planned.
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
            Self::Durability => match text {
                "disk" => Ok(ConfigValue::Durability(Durability::Disk)),
                "memory" => Ok(ConfigValue::Durability(Durability::Memory)),
                _ => Err(bad()),
            },
            Self::FullPolicy => match text {
                "block-producer" => Ok(ConfigValue::FullPolicy(FullPolicy::BlockProducer)),
                "drop-oldest" => Ok(ConfigValue::FullPolicy(FullPolicy::DropOldest)),
                "protect-unread" => Err(ConfigError::NotYet { key: self, value: value.to_owned() }),
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

fn in_bounds(number: Option<u64>, min: u64, max: u64) -> Option<ConfigValue> {
    number.filter(|number| (min..=max).contains(number)).map(ConfigValue::Number)
}

/// A value that is legal for its key. Prints in the form in which it is stored: plain bytes and milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
}

impl fmt::Display for ConfigValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Number(number) => return number.fmt(f),
            Self::Unlimited => "none",
            Self::Durability(Durability::Disk) => "disk",
            Self::Durability(Durability::Memory) => "memory",
            Self::FullPolicy(FullPolicy::BlockProducer) => "block-producer",
            Self::FullPolicy(FullPolicy::DropOldest) => "drop-oldest",
            Self::CleanupPolicy(CleanupPolicy::Delete) => "delete",
            Self::CleanupPolicy(CleanupPolicy::Compact) => "compact",
            Self::CleanupPolicy(CleanupPolicy::CompactDelete) => "compact,delete",
        })
    }
}

/// Why a setting was refused. Maps to `INVALID_CONFIG`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No setting has this name.
    #[error("unknown topic setting {key:?}; known are {}", known_keys())]
    UnknownKey {
        /// What was asked for.
        key: String,
    },
    /// The same setting was given twice in one request.
    #[error("topic setting {key} was given twice")]
    Twice {
        /// The setting.
        key: ConfigKey,
    },
    /// The value is not one this setting takes.
    #[error("topic setting {key} does not take {value:?}; allowed: {}", key.allowed())]
    BadValue {
        /// The setting.
        key: ConfigKey,
        /// What was given.
        value: String,
    },
    /// The value is planned, but this version cannot serve it.
    #[error("topic setting {key} does not take {value:?} yet; allowed in this version: {}", key.allowed())]
    NotYet {
        /// The setting.
        key: ConfigKey,
        /// What was given.
        value: String,
    },
    /// Two settings that are legal alone do not go together.
    #[error(
        "topic setting {key} ({value}) is too large for {bound} ({bound_value}): lower {key} or raise {bound}"
    )]
    TooLargeFor {
        /// The setting that is too large.
        key: ConfigKey,
        /// Its value.
        value: u64,
        /// What bounds it: another setting, or the number of replicas.
        bound: &'static str,
        /// The value of the bound.
        bound_value: u64,
    },
    /// What keeps the newest record of each key cannot drop the oldest records.
    #[error(
        "full_policy drop-oldest would drop keys of a topic with cleanup_policy compact: use block-producer, or compact,delete"
    )]
    DropsKeys,
}

fn known_keys() -> String {
    ConfigKey::ALL.map(ConfigKey::name).join(", ")
}

/// The settings somebody chose. Everything else is a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TopicOverrides(BTreeMap<ConfigKey, ConfigValue>);

impl TopicOverrides {
    /// Reads settings from `(key, value)` pairs.
    ///
    /// # Errors
    /// The first pair that is unknown, illegal or given twice.
    pub fn from_pairs<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Result<Self, ConfigError>
    where
        K: AsRef<str>,
        V: AsRef<str>,
    {
        let mut overrides = Self::default();
        for (key, value) in pairs {
            let key = ConfigKey::from_name(key.as_ref())?;
            let value = key.parse(value.as_ref())?;
            if overrides.0.insert(key, value).is_some() {
                return Err(ConfigError::Twice { key });
            }
        }
        Ok(overrides)
    }

    /// Chooses one setting, in place of what was chosen before.
    ///
    /// # Errors
    /// [`ConfigError`] when the key is unknown or the value illegal; nothing was changed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let key = ConfigKey::from_name(key)?;
        self.0.insert(key, key.parse(value)?);
        Ok(())
    }

    /// Takes all settings of `other`, which win.
    pub fn merge(&mut self, other: &Self) {
        self.0.extend(other.0.iter());
    }

    /// Returns one setting to its default.
    ///
    /// # Errors
    /// [`ConfigError::UnknownKey`].
    pub fn unset(&mut self, key: &str) -> Result<(), ConfigError> {
        self.0.remove(&ConfigKey::from_name(key)?);
        Ok(())
    }

    /// The chosen settings, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (ConfigKey, ConfigValue)> + '_ {
        self.0.iter().map(|(key, value)| (*key, *value))
    }

    /// Whether nothing was chosen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn get(&self, key: ConfigKey) -> Option<ConfigValue> {
        self.0.get(&key).copied()
    }
}

/// Who decided a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigSource {
    /// Built in.
    BuiltIn,
    /// The broker's `[topic_defaults]`.
    Broker,
    /// The topic itself.
    Topic,
}

/// One line of a topic's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigEntry {
    /// The setting.
    pub key: ConfigKey,
    /// The value in force, in stored form.
    pub value: String,
    /// Who decided it.
    pub source: ConfigSource,
}

impl ConfigEntry {
    /// Whether the topic itself did not choose this value.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.source != ConfigSource::Topic
    }
}

/// The settings in force for one topic.
///
/// Invariant: `record_bytes_max` fits `batch_bytes_max`, which fits `segment_bytes`, with their overheads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    /// Records older than this may go; none keeps them for ever.
    pub retention_ms: Option<u64>,
    /// Bytes of a partition beyond this may go, oldest first; none keeps them all.
    pub retention_bytes: Option<u64>,
    /// Size of a segment file.
    pub segment_bytes: u64,
    /// Largest encoded record.
    pub record_bytes_max: u64,
    /// Largest record batch, header included.
    pub batch_bytes_max: u64,
    /// What an acknowledgement proves.
    pub durability: Durability,
    /// `acks = all` is refused while fewer replicas are in sync.
    pub min_insync_replicas: u16,
    /// What gives way at the disk budget.
    pub full_policy: FullPolicy,
    /// What happens past retention.
    pub cleanup_policy: CleanupPolicy,
    /// How long compaction keeps a tombstone, so that readers see it.
    pub delete_retention_ms: u64,
    /// Records younger than this are not compacted.
    pub min_compaction_lag_ms: u64,
}

impl TopicConfig {
    /// The settings in force: the topic's, else the broker's, else built in.
    ///
    /// Never fails: a topic admitted under other defaults must stay usable, so a batch bound that no longer fits the
    /// segment is lowered until it does. [`TopicConfig::check`] is the door where such a combination is refused.
    #[must_use]
    pub fn resolve(topic: &TopicOverrides, broker: &TopicOverrides, replicas: u16) -> Self {
        let mut config = Self::layered(topic, broker, replicas);
        config.batch_bytes_max = config.batch_bytes_max.min(config.segment_bytes - SEGMENT_OVERHEAD_BYTES);
        config.record_bytes_max = config.record_bytes_max.min(config.batch_bytes_max - BATCH_OVERHEAD_BYTES);
        if config.drops_keys() {
            config.full_policy = FullPolicy::BlockProducer;
        }
        debug_assert_eq!(config.broken_rule(replicas), config.replicas_rule(replicas));
        config
    }

    /// As [`TopicConfig::resolve`], but refuses settings that do not go together. For creating and altering.
    ///
    /// # Errors
    /// [`ConfigError::TooLargeFor`], [`ConfigError::DropsKeys`].
    pub fn check(
        topic: &TopicOverrides,
        broker: &TopicOverrides,
        replicas: u16,
    ) -> Result<Self, ConfigError> {
        let config = Self::layered(topic, broker, replicas);
        match config.broken_rule(replicas) {
            Some(error) => Err(error),
            None => Ok(config),
        }
    }

    /// Every setting with its value in force and who decided it, in the order of their names.
    #[must_use]
    pub fn describe(&self, topic: &TopicOverrides, broker: &TopicOverrides) -> Vec<ConfigEntry> {
        let source = |key| match (topic.get(key), broker.get(key)) {
            (Some(_), _) => ConfigSource::Topic,
            (None, Some(_)) => ConfigSource::Broker,
            (None, None) => ConfigSource::BuiltIn,
        };
        let entry = |key| ConfigEntry { key, value: self.value(key).to_string(), source: source(key) };
        ConfigKey::ALL.map(entry).into()
    }

    /// The value in force of one key.
    #[must_use]
    pub fn value(&self, key: ConfigKey) -> ConfigValue {
        let bound = |bound: Option<u64>| bound.map_or(ConfigValue::Unlimited, ConfigValue::Number);
        match key {
            ConfigKey::BatchBytesMax => ConfigValue::Number(self.batch_bytes_max),
            ConfigKey::CleanupPolicy => ConfigValue::CleanupPolicy(self.cleanup_policy),
            ConfigKey::DeleteRetentionMs => ConfigValue::Number(self.delete_retention_ms),
            ConfigKey::Durability => ConfigValue::Durability(self.durability),
            ConfigKey::FullPolicy => ConfigValue::FullPolicy(self.full_policy),
            ConfigKey::MinCompactionLagMs => ConfigValue::Number(self.min_compaction_lag_ms),
            ConfigKey::MinInsyncReplicas => ConfigValue::Number(u64::from(self.min_insync_replicas)),
            ConfigKey::RecordBytesMax => ConfigValue::Number(self.record_bytes_max),
            ConfigKey::RetentionBytes => bound(self.retention_bytes),
            ConfigKey::RetentionMs => bound(self.retention_ms),
            ConfigKey::SegmentBytes => ConfigValue::Number(self.segment_bytes),
        }
    }

    fn built_in(replicas: u16) -> Self {
        Self {
            retention_ms: Some(RETENTION_MS_DEFAULT),
            retention_bytes: None,
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            record_bytes_max: RECORD_BYTES_MAX,
            batch_bytes_max: BATCH_BYTES_MAX,
            durability: Durability::Disk,
            min_insync_replicas: if replicas >= 3 { 2 } else { 1 },
            full_policy: FullPolicy::BlockProducer,
            cleanup_policy: CleanupPolicy::Delete,
            delete_retention_ms: DELETE_RETENTION_MS_DEFAULT,
            min_compaction_lag_ms: 0,
        }
    }

    /// Whether a full disk would take keys from a topic that keeps them for ever.
    fn drops_keys(&self) -> bool {
        self.full_policy == FullPolicy::DropOldest && !self.cleanup_policy.deletes()
    }

    fn layered(topic: &TopicOverrides, broker: &TopicOverrides, replicas: u16) -> Self {
        let mut config = Self::built_in(replicas);
        for (key, value) in broker.iter().chain(topic.iter()) {
            config.put(key, value);
        }
        config
    }

    /// Takes one value. Values of the wrong kind cannot come here: overrides hold what their key parsed.
    fn put(&mut self, key: ConfigKey, value: ConfigValue) {
        match (key, value) {
            (ConfigKey::RetentionMs, ConfigValue::Number(n)) => self.retention_ms = Some(n),
            (ConfigKey::RetentionMs, ConfigValue::Unlimited) => self.retention_ms = None,
            (ConfigKey::RetentionBytes, ConfigValue::Number(n)) => self.retention_bytes = Some(n),
            (ConfigKey::RetentionBytes, ConfigValue::Unlimited) => self.retention_bytes = None,
            (ConfigKey::SegmentBytes, ConfigValue::Number(n)) => self.segment_bytes = n,
            (ConfigKey::DeleteRetentionMs, ConfigValue::Number(n)) => self.delete_retention_ms = n,
            (ConfigKey::MinCompactionLagMs, ConfigValue::Number(n)) => self.min_compaction_lag_ms = n,
            (ConfigKey::RecordBytesMax, ConfigValue::Number(n)) => self.record_bytes_max = n,
            (ConfigKey::BatchBytesMax, ConfigValue::Number(n)) => self.batch_bytes_max = n,
            (ConfigKey::MinInsyncReplicas, ConfigValue::Number(n)) => {
                self.min_insync_replicas = u16::try_from(n).unwrap_or(u16::MAX);
            }
            (ConfigKey::Durability, ConfigValue::Durability(d)) => self.durability = d,
            (ConfigKey::FullPolicy, ConfigValue::FullPolicy(p)) => self.full_policy = p,
            (ConfigKey::CleanupPolicy, ConfigValue::CleanupPolicy(p)) => self.cleanup_policy = p,
            (key, value) => unreachable!("{key} cannot hold {value:?}"),
        }
    }

    fn broken_rule(&self, replicas: u16) -> Option<ConfigError> {
        let too_large = |key, value, bound: ConfigKey, bound_value| {
            Some(ConfigError::TooLargeFor { key, value, bound: bound.name(), bound_value })
        };
        let (record, batch, segment) = (self.record_bytes_max, self.batch_bytes_max, self.segment_bytes);
        if record.saturating_add(BATCH_OVERHEAD_BYTES) > batch {
            return too_large(ConfigKey::RecordBytesMax, record, ConfigKey::BatchBytesMax, batch);
        }
        if batch.saturating_add(SEGMENT_OVERHEAD_BYTES) > segment {
            return too_large(ConfigKey::BatchBytesMax, batch, ConfigKey::SegmentBytes, segment);
        }
        if self.drops_keys() {
            return Some(ConfigError::DropsKeys);
        }
        self.replicas_rule(replicas)
    }

    fn replicas_rule(&self, replicas: u16) -> Option<ConfigError> {
        if self.min_insync_replicas <= replicas {
            return None;
        }
        Some(ConfigError::TooLargeFor {
            key: ConfigKey::MinInsyncReplicas,
            value: u64::from(self.min_insync_replicas),
            bound: "the number of replicas",
            bound_value: u64::from(replicas),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(pairs: &[(&str, &str)]) -> TopicOverrides {
        TopicOverrides::from_pairs(pairs.iter().copied()).unwrap()
    }

    fn resolve(pairs: &[(&str, &str)]) -> TopicConfig {
        TopicConfig::resolve(&overrides(pairs), &TopicOverrides::default(), 1)
    }

    #[test]
    fn defaults_are_those_of_the_format_page() {
        let config = resolve(&[]);
        assert_eq!(config.retention_ms, Some(604_800_000));
        assert_eq!(config.retention_bytes, None);
        assert_eq!(config.segment_bytes, 268_435_456);
        assert_eq!(config.record_bytes_max, 4_194_304);
        assert_eq!(config.batch_bytes_max, 8_388_608);
        assert_eq!(config.durability, Durability::Disk);
        assert_eq!(config.min_insync_replicas, 1);
        assert_eq!(config.full_policy, FullPolicy::BlockProducer);
        let none = TopicOverrides::default();
        assert_eq!(TopicConfig::resolve(&none, &none, 2).min_insync_replicas, 1);
        assert_eq!(TopicConfig::resolve(&none, &none, 3).min_insync_replicas, 2);
    }

    #[test]
    fn units_and_plain_numbers_mean_the_same() {
        assert_eq!(resolve(&[("retention_ms", "7d")]), resolve(&[("retention_ms", "604800000")]));
        assert_eq!(resolve(&[("segment_bytes", "1GiB")]), resolve(&[("segment_bytes", "1073741824")]));
        for unlimited in ["none", "-1", "unlimited"] {
            assert_eq!(resolve(&[("retention_ms", unlimited)]).retention_ms, None);
        }
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let chosen = overrides(&[
            ("retention_ms", "none"),
            ("retention_bytes", "10GiB"),
            ("segment_bytes", "64MiB"),
            ("record_bytes_max", "1MiB"),
            ("batch_bytes_max", "2MiB"),
            ("durability", "memory"),
            ("min_insync_replicas", "2"),
            ("full_policy", "drop-oldest"),
            ("cleanup_policy", "compact,delete"),
            ("delete_retention_ms", "1h"),
            ("min_compaction_lag_ms", "5s"),
        ]);
        let stored: Vec<(String, String)> =
            chosen.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        assert_eq!(stored.len(), ConfigKey::ALL.len());
        assert_eq!(TopicOverrides::from_pairs(stored).unwrap(), chosen);
    }

    #[test]
    fn later_layers_win_and_are_named() {
        let broker = overrides(&[("retention_ms", "1h"), ("full_policy", "drop-oldest")]);
        let topic = overrides(&[("retention_ms", "2h")]);
        let config = TopicConfig::resolve(&topic, &broker, 1);
        assert_eq!(config.retention_ms, Some(7_200_000));
        assert_eq!(config.full_policy, FullPolicy::DropOldest);
        let lines: Vec<String> = config
            .describe(&topic, &broker)
            .iter()
            .map(|entry| format!("{}={} {:?} {}", entry.key, entry.value, entry.source, entry.is_default()))
            .collect();
        assert_eq!(
            lines,
            [
                "batch_bytes_max=8388608 BuiltIn true",
                "cleanup_policy=delete BuiltIn true",
                "delete_retention_ms=86400000 BuiltIn true",
                "durability=disk BuiltIn true",
                "full_policy=drop-oldest Broker true",
                "min_compaction_lag_ms=0 BuiltIn true",
                "min_insync_replicas=1 BuiltIn true",
                "record_bytes_max=4194304 BuiltIn true",
                "retention_bytes=none BuiltIn true",
                "retention_ms=7200000 Topic false",
                "segment_bytes=268435456 BuiltIn true",
            ]
        );
    }

    #[test]
    fn refusals_name_the_key_the_value_and_what_is_allowed() {
        let refusal =
            |key: &str, value: &str| TopicOverrides::from_pairs([(key, value)]).unwrap_err().to_string();
        assert_eq!(
            refusal("retention.ms", "5s"),
            "unknown topic setting \"retention.ms\"; known are batch_bytes_max, cleanup_policy, \
             delete_retention_ms, durability, full_policy, min_compaction_lag_ms, min_insync_replicas, \
             record_bytes_max, retention_bytes, retention_ms, segment_bytes"
        );
        assert_eq!(
            refusal("durability", "flash"),
            "topic setting durability does not take \"flash\"; allowed: disk or memory"
        );
        assert_eq!(
            refusal("cleanup_policy", "shred"),
            "topic setting cleanup_policy does not take \"shred\"; allowed: delete, compact or compact,delete"
        );
        let keys = overrides(&[("cleanup_policy", "compact"), ("full_policy", "drop-oldest")]);
        let refused = TopicConfig::check(&keys, &TopicOverrides::default(), 1);
        assert_eq!(refused, Err(ConfigError::DropsKeys));
        let resolved = TopicConfig::resolve(&keys, &TopicOverrides::default(), 1);
        assert_eq!(resolved.full_policy, FullPolicy::BlockProducer);
        assert_eq!(
            refusal("full_policy", "protect-unread"),
            "topic setting full_policy does not take \"protect-unread\" yet; allowed in this version: \
             block-producer or drop-oldest"
        );
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for (key, value) in [
            ("retention_ms", "0"),
            ("retention_ms", "-2"),
            ("retention_ms", "18446744073709551615"),
            ("retention_bytes", "1KiB"),
            ("segment_bytes", "1"),
            ("segment_bytes", "1MB"),
            ("segment_bytes", "5GiB"),
            ("segment_bytes", "none"),
            ("record_bytes_max", "0"),
            ("batch_bytes_max", "17MiB"),
            ("min_insync_replicas", "0"),
            ("min_insync_replicas", "256"),
            ("min_insync_replicas", ""),
            ("durability", "Disk"),
        ] {
            let expected =
                ConfigError::BadValue { key: ConfigKey::from_name(key).unwrap(), value: value.to_owned() };
            assert_eq!(TopicOverrides::from_pairs([(key, value)]), Err(expected));
        }
    }

    #[test]
    fn a_setting_given_twice_is_refused() {
        let twice = TopicOverrides::from_pairs([("durability", "disk"), ("durability", "memory")]);
        assert_eq!(twice, Err(ConfigError::Twice { key: ConfigKey::Durability }));
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused_at_the_door_and_lowered_in_use() {
        let none = TopicOverrides::default();
        let small_segment = overrides(&[("segment_bytes", "1MiB")]);
        let refused = TopicConfig::check(&small_segment, &none, 1).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "topic setting batch_bytes_max (8388608) is too large for segment_bytes (1048576): \
             lower batch_bytes_max or raise segment_bytes"
        );
        let in_use = TopicConfig::resolve(&small_segment, &none, 1);
        assert_eq!(in_use.batch_bytes_max, (1 << 20) - SEGMENT_OVERHEAD_BYTES);
        assert_eq!(in_use.record_bytes_max, in_use.batch_bytes_max - BATCH_OVERHEAD_BYTES);
        let large_record = overrides(&[("record_bytes_max", "8MiB")]);
        assert!(TopicConfig::check(&large_record, &none, 1).is_err());
        let strict = overrides(&[("min_insync_replicas", "2")]);
        assert!(TopicConfig::check(&strict, &none, 1).is_err());
        assert!(TopicConfig::check(&strict, &none, 2).is_ok());
        assert_eq!(TopicConfig::resolve(&strict, &none, 1).min_insync_replicas, 2);
    }

    #[test]
    fn the_smallest_legal_segment_still_holds_a_batch() {
        let tiny = resolve(&[("segment_bytes", "1MiB"), ("batch_bytes_max", "1KiB")]);
        assert_eq!((tiny.batch_bytes_max, tiny.record_bytes_max), (1024, 1024 - BATCH_OVERHEAD_BYTES));
    }

    #[test]
    fn unset_returns_to_the_default() {
        let mut chosen = overrides(&[("durability", "memory")]);
        chosen.set("retention_ms", "1h").unwrap();
        chosen.unset("durability").unwrap();
        assert_eq!(chosen, overrides(&[("retention_ms", "1h")]));
        assert!(chosen.unset("nothing").is_err());
        assert!(chosen.set("durability", "none").is_err());
        assert_eq!(chosen, overrides(&[("retention_ms", "1h")]));
    }
}
