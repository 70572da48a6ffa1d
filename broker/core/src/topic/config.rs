//! The settings of a topic: reading them from `(key, value)` strings, layering them, checking them together.
//!
//! Layers, later wins: built in, the broker's `[topic_defaults]`, the topic's own overrides. Only the last is stored
//! with the topic.

mod setting;

use std::collections::BTreeMap;

use thiserror::Error;

use crate::group::GroupName;
use crate::limits::{self, BLOCK, DELETE_RETENTION_MS_DEFAULT, RETENTION_MS_DEFAULT, SEGMENT_BYTES_DEFAULT};
pub use setting::{CleanupPolicy, ConfigKey, ConfigValue, Durability, FullPolicy};

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
        "full_policy {} would drop keys of a topic with cleanup_policy compact: use block-producer, or compact,delete",
        ConfigValue::FullPolicy(*.policy)
    )]
    DropsKeys {
        /// The policy that would.
        policy: FullPolicy,
    },
    /// Nobody is named whose unread records are to be protected.
    #[error("full_policy protect-unread needs the groups that it protects: name them in protect_groups")]
    ProtectsNobody,
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
        self.0.extend(other.0.iter().map(|(key, value)| (*key, value.clone())));
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
    pub fn iter(&self) -> impl Iterator<Item = (ConfigKey, &ConfigValue)> + '_ {
        self.0.iter().map(|(key, value)| (*key, value))
    }

    /// Whether nothing was chosen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn get(&self, key: ConfigKey) -> Option<&ConfigValue> {
        self.0.get(&key)
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
    /// Groups before whose offsets retention stops, in the order of their names.
    pub protect_groups: Vec<GroupName>,
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
        if config.drops_keys() || config.protects_nobody() {
            config.full_policy = FullPolicy::BlockProducer;
        }
        debug_assert_eq!(config.broken_rule(replicas), config.replicas_rule(replicas));
        config
    }

    /// As [`TopicConfig::resolve`], but refuses settings that do not go together. For creating and altering.
    ///
    /// # Errors
    /// [`ConfigError::TooLargeFor`], [`ConfigError::DropsKeys`], [`ConfigError::ProtectsNobody`].
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
            ConfigKey::ProtectGroups => ConfigValue::Groups(self.protect_groups.clone()),
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
            protect_groups: Vec::new(),
            cleanup_policy: CleanupPolicy::Delete,
            delete_retention_ms: DELETE_RETENTION_MS_DEFAULT,
            min_compaction_lag_ms: 0,
        }
    }

    /// Whether a full disk would take keys from a topic that keeps them for ever.
    fn drops_keys(&self) -> bool {
        self.full_policy != FullPolicy::BlockProducer && !self.cleanup_policy.deletes()
    }

    fn protects_nobody(&self) -> bool {
        self.full_policy == FullPolicy::ProtectUnread && self.protect_groups.is_empty()
    }

    fn layered(topic: &TopicOverrides, broker: &TopicOverrides, replicas: u16) -> Self {
        let mut config = Self::built_in(replicas);
        for (key, value) in broker.iter().chain(topic.iter()) {
            config.put(key, value);
        }
        config
    }

    /// Takes one value. Values of the wrong kind cannot come here: overrides hold what their key parsed.
    fn put(&mut self, key: ConfigKey, value: &ConfigValue) {
        match (key, value) {
            (ConfigKey::RetentionMs, ConfigValue::Number(n)) => self.retention_ms = Some(*n),
            (ConfigKey::RetentionMs, ConfigValue::Unlimited) => self.retention_ms = None,
            (ConfigKey::RetentionBytes, ConfigValue::Number(n)) => self.retention_bytes = Some(*n),
            (ConfigKey::RetentionBytes, ConfigValue::Unlimited) => self.retention_bytes = None,
            (ConfigKey::SegmentBytes, ConfigValue::Number(n)) => self.segment_bytes = *n,
            (ConfigKey::DeleteRetentionMs, ConfigValue::Number(n)) => self.delete_retention_ms = *n,
            (ConfigKey::MinCompactionLagMs, ConfigValue::Number(n)) => self.min_compaction_lag_ms = *n,
            (ConfigKey::RecordBytesMax, ConfigValue::Number(n)) => self.record_bytes_max = *n,
            (ConfigKey::BatchBytesMax, ConfigValue::Number(n)) => self.batch_bytes_max = *n,
            (ConfigKey::MinInsyncReplicas, ConfigValue::Number(n)) => {
                self.min_insync_replicas = u16::try_from(*n).unwrap_or(u16::MAX);
            }
            (ConfigKey::Durability, ConfigValue::Durability(d)) => self.durability = *d,
            (ConfigKey::FullPolicy, ConfigValue::FullPolicy(p)) => self.full_policy = *p,
            (ConfigKey::CleanupPolicy, ConfigValue::CleanupPolicy(p)) => self.cleanup_policy = *p,
            (ConfigKey::ProtectGroups, ConfigValue::Groups(groups)) => {
                self.protect_groups.clone_from(groups);
            }
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
            return Some(ConfigError::DropsKeys { policy: self.full_policy });
        }
        if self.protects_nobody() {
            return Some(ConfigError::ProtectsNobody);
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
mod tests;
