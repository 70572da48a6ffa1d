//! The configuration: what an operator may say, and what holds when nothing was said.
//!
//! Called by the `dev` and `serve` commands. Layers, later wins: defaults, the file, `CORELOG_*` in the environment,
//! `--set a.b=c`. Each layer is checked alone first, so that an error names the line of the file, the variable or the
//! option it came from; what only shows together (bounds against each other) is checked on the result.
//!
//! Invariant: a [`Config`] exists only if a broker can be started from it. Refuses to know: whether the machine obeys
//! (the data directory, the ports): that is preflight's and boot's affair.

mod layers;
mod sections;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use corelog_core::limits;
use corelog_core::meta::keys::Keys;
use corelog_core::topic::quantity::format_bytes;
use corelog_core::topic::{ConfigError as TopicConfigError, TopicConfig, TopicOverrides};
use corelog_wire::ids::BrokerId;
use thiserror::Error;

use layers::merged;
use sections::{Budget, Sections};

/// Most shards of one broker: more cores than one process should own.
pub const SHARDS_MAX: u16 = 256;
/// Largest journal ring of a shard.
pub const JOURNAL_BYTES_MAX: u64 = 64 << 30;
/// Least memory of one shard beside the bytes that it must hold until they are in a segment, which may be as many as
/// its journal has: a largest request, its answer, cold reads, and a tail cache that holds a few of them.
pub const SHARD_MEMORY_BYTES_MIN: u64 = 64 << 20;

const PORT: u16 = 9_640;
const ADMIN_PORT: u16 = 9_644;
const DEV_DISK_BYTES_MAX: u64 = 10 << 30;
const DEV_SHARD_MEMORY_BYTES: u64 = 256 << 20;
const SEGMENT_POOL_BYTES: u64 = 1 << 30;
/// A shorter time would take offsets from a group whose members are only started again.
const OFFSETS_RETENTION_MIN: Duration = Duration::from_mins(1);
const DISK_SHARE_PERCENT: u64 = 80;
/// A broker's buffers and caches take this share of the machine's memory unless told otherwise.
const MEMORY_SHARE_PERCENT: u64 = 50;

/// What the configuration needs to know of the machine. Handed in, so that tests choose.
#[derive(Debug, Clone)]
pub struct Host {
    /// CPUs this process may use.
    pub cpus: u16,
    /// Memory of the machine, or of its control group.
    pub memory_bytes: u64,
    /// The environment.
    pub environment: BTreeMap<String, String>,
}

impl Host {
    /// This machine.
    #[must_use]
    pub fn probe() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { cpus: u16::try_from(cpus).unwrap_or(u16::MAX), memory_bytes: memory_bytes(), environment }
    }
}

/// What the `dev` command was told.
#[derive(Debug, Clone, Default)]
pub struct DevOptions {
    /// Instead of `$XDG_DATA_HOME/corelog/dev`.
    pub data_dir: Option<PathBuf>,
    /// Instead of 9640; 0 takes a free one.
    pub port: Option<u16>,
    /// Instead of 9644; 0 takes a free one.
    pub admin_port: Option<u16>,
    /// Instead of 1.
    pub shards: Option<u16>,
}

/// How much of the data directory's file system the broker may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskBudget {
    /// So many bytes.
    Bytes(u64),
    /// A share of the file system, in percent.
    Percent(u64),
}

impl DiskBudget {
    /// The budget on a file system of this size.
    #[must_use]
    pub fn bytes_of(self, file_system_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => file_system_bytes / 100 * percent,
        }
    }
}

/// Where metadata lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataStore {
    /// In one file of the data directory.
    Embedded,
}

/// What a broker is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This broker's number in its cluster.
    pub broker: BrokerId,
    /// The cluster's name.
    pub cluster: String,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// How many shards a new data directory gets.
    pub shards: u16,
    /// Where this broker stands, for placement. Read and kept; takes effect with a later version.
    pub rack: Option<String>,
    /// Where clients connect to; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What clients are told to connect to, if not `listen`.
    pub advertised: Option<String>,
    /// Where operators connect to; port 0 takes a free one.
    pub admin: SocketAddr,
    /// How much of the disk the broker may take.
    pub disk_bytes_max: DiskBudget,
    /// Size of each shard's journal ring.
    pub journal_bytes: u64,
    /// What segment files may take that left their log and wait to be used again, of all shards together.
    pub segment_pool_bytes: u64,
    /// Memory for requests, answers and tail caches, of all shards together. A tail cache grows beyond its share while
    /// bytes wait to be written to segments, by a journal's size at most, so each shard must have that, too.
    pub memory_bytes_max: u64,
    /// Where metadata lives.
    pub metadata: MetadataStore,
    /// How long a group without members keeps its offsets.
    pub offsets_retention: Duration,
    /// Settings of topics that choose none.
    pub topic_defaults: TopicOverrides,
    /// Whether producing to an unknown topic makes it. Only in `dev`.
    pub auto_create: bool,
    /// Keys that were set and take effect with a later version only.
    pub ineffective: Vec<&'static str>,
}

/// Why there is no configuration. Maps to exit code 2.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file says something that is not configuration.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where, and what was expected.
        what: String,
    },
    /// A variable or an option says something that is not configuration.
    #[error("{origin}: {what}")]
    Override {
        /// The variable, or the option.
        origin: String,
        /// What was expected.
        what: String,
    },
    /// A value that cannot be used.
    #[error("{key} = {value} cannot be used: {allowed}")]
    Value {
        /// The key with its section.
        key: &'static str,
        /// The value in force.
        value: String,
        /// What could be.
        allowed: String,
    },
    /// A topic default that cannot be used.
    #[error("[topic_defaults]: {0}")]
    TopicDefault(#[from] TopicConfigError),
    /// Something without which a broker cannot start was not said.
    #[error("{key} is missing: {hint}")]
    Missing {
        /// The key with its section.
        key: &'static str,
        /// How to say it.
        hint: &'static str,
    },
}

impl Config {
    /// The configuration of `corelog serve`: defaults, `file`, the environment, `sets` (each `section.key=value`).
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn serve(file: Option<&Path>, sets: &[String], host: &Host) -> Result<Self, ConfigError> {
        let sections = merged(file, &host.environment, sets)?;
        let shards = host.cpus.clamp(1, SHARDS_MAX);
        let base = Self {
            broker: BrokerId::new(1),
            cluster: "corelog".to_owned(),
            data_dir: PathBuf::new(),
            shards,
            rack: None,
            listen: SocketAddr::from(([127, 0, 0, 1], PORT)),
            advertised: None,
            admin: SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT)),
            disk_bytes_max: DiskBudget::Percent(DISK_SHARE_PERCENT),
            journal_bytes: limits::JOURNAL_BYTES_DEFAULT,
            segment_pool_bytes: SEGMENT_POOL_BYTES,
            memory_bytes_max: host.memory_bytes / 100 * MEMORY_SHARE_PERCENT,
            metadata: MetadataStore::Embedded,
            offsets_retention: limits::OFFSETS_RETENTION,
            topic_defaults: TopicOverrides::default(),
            auto_create: false,
            ineffective: Vec::new(),
        };
        base.with(sections)?.checked()
    }

    /// The configuration of `corelog dev`: loopback, small, in the user's data folder, topics made when asked for.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn dev(options: &DevOptions, sets: &[String], host: &Host) -> Result<Self, ConfigError> {
        let data_dir = match &options.data_dir {
            Some(data_dir) => data_dir.clone(),
            None => dev_data_dir(&host.environment)?,
        };
        let shards = options.shards.unwrap_or(1);
        let base = Self {
            broker: BrokerId::new(1),
            cluster: "dev".to_owned(),
            data_dir,
            shards,
            rack: None,
            listen: SocketAddr::from(([127, 0, 0, 1], options.port.unwrap_or(PORT))),
            advertised: None,
            admin: SocketAddr::from(([127, 0, 0, 1], options.admin_port.unwrap_or(ADMIN_PORT))),
            disk_bytes_max: DiskBudget::Bytes(DEV_DISK_BYTES_MAX),
            journal_bytes: limits::JOURNAL_BYTES_MIN,
            segment_pool_bytes: 0,
            memory_bytes_max: DEV_SHARD_MEMORY_BYTES.saturating_mul(u64::from(shards)),
            metadata: MetadataStore::Embedded,
            offsets_retention: limits::OFFSETS_RETENTION,
            topic_defaults: TopicOverrides::default(),
            auto_create: true,
            ineffective: Vec::new(),
        };
        base.with(merged(None, &BTreeMap::new(), sets)?)?.checked()
    }

    /// What was said, over what holds otherwise.
    fn with(self, sections: Sections) -> Result<Self, ConfigError> {
        let Sections { broker, listen, storage, memory, metadata, groups, topic_defaults } = sections;
        if metadata.store.as_deref() == Some("etcd") {
            return Err(value("metadata.store", "etcd", "not served yet in this version; use \"embedded\""));
        }
        if let Some(other) = metadata.store.filter(|store| store != "embedded") {
            return Err(value("metadata.store", &format!("{other:?}"), "use \"embedded\""));
        }
        if let Some(endpoints) = metadata.endpoints.filter(|endpoints| !endpoints.is_empty()) {
            let allowed = "the embedded store has no endpoints: leave it empty";
            return Err(value("metadata.endpoints", &format!("{endpoints:?}"), allowed));
        }
        let topic_defaults = TopicOverrides::from_pairs(topic_defaults.into_pairs())?;
        let set = [("broker.rack", broker.rack.is_some())];
        let ineffective = set.into_iter().filter(|(_, is_set)| *is_set).map(|(key, _)| key).collect();
        Ok(Self {
            broker: broker.id.map_or(self.broker, BrokerId::new),
            cluster: broker.cluster.unwrap_or(self.cluster),
            data_dir: broker.data_dir.unwrap_or(self.data_dir),
            shards: broker.shards.unwrap_or(self.shards),
            rack: broker.rack.or(self.rack),
            listen: listen.address.map_or(self.listen, |address| address.0),
            advertised: listen.advertised.map(|address| address.0).or(self.advertised),
            admin: listen.admin.map_or(self.admin, |address| address.0),
            disk_bytes_max: match storage.disk_bytes_max {
                None => self.disk_bytes_max,
                Some(Budget::Bytes(bytes)) => DiskBudget::Bytes(bytes),
                Some(Budget::Percent(percent)) => DiskBudget::Percent(percent),
            },
            journal_bytes: storage.journal_bytes.map_or(self.journal_bytes, |size| size.0),
            segment_pool_bytes: storage.segment_pool_bytes.map_or(self.segment_pool_bytes, |size| size.0),
            memory_bytes_max: memory.bytes_max.map_or(self.memory_bytes_max, |size| size.0),
            offsets_retention: groups.offsets_retention.map_or(self.offsets_retention, |time| time.0),
            topic_defaults,
            ineffective,
            ..self
        })
    }

    fn checked(self) -> Result<Self, ConfigError> {
        self.check_identity()?;
        self.check_sizes()?;
        // Checked against as many replicas as there could ever be: a default must not refuse every topic.
        TopicConfig::check(&self.topic_defaults, &TopicOverrides::default(), 255)?;
        Ok(self)
    }

    fn check_identity(&self) -> Result<(), ConfigError> {
        if self.broker.get() == 0 {
            return Err(value("broker.id", "0", "use a number from 1"));
        }
        if let Err(error) = Keys::new(&self.cluster) {
            return Err(value("broker.cluster", &format!("{:?}", self.cluster), &error.to_string()));
        }
        if self.data_dir.as_os_str().is_empty() {
            let hint = "say where the data goes, for example data_dir = \"/var/lib/corelog\" under [broker]";
            return Err(ConfigError::Missing { key: "broker.data_dir", hint });
        }
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            let allowed = format!("use 1 to {SHARDS_MAX}, at most one per core");
            return Err(value("broker.shards", &self.shards.to_string(), &allowed));
        }
        if self.listen == self.admin && self.listen.port() != 0 {
            return Err(value("listen.admin", &self.admin.to_string(), "listen.address uses it already"));
        }
        if self.listen.ip().is_unspecified() && self.advertised.is_none() {
            let hint = "clients cannot connect to an unspecified address; say which one they should use";
            return Err(ConfigError::Missing { key: "listen.advertised", hint });
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), ConfigError> {
        if self.offsets_retention < OFFSETS_RETENTION_MIN {
            let given = format!("{} ms", self.offsets_retention.as_millis());
            return Err(value("groups.offsets_retention", &given, "a time of at least 1m"));
        }
        let shards = u64::from(self.shards);
        if !(limits::JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&self.journal_bytes)
            || !self.journal_bytes.is_multiple_of(limits::MIB)
        {
            let (least, most) = (format_bytes(limits::JOURNAL_BYTES_MIN), format_bytes(JOURNAL_BYTES_MAX));
            let allowed = format!("use {least} to {most} in steps of 1MiB");
            return Err(value("storage.journal_bytes", &format_bytes(self.journal_bytes), &allowed));
        }
        // The journals and one segment of each shard must fit, with as much again for data.
        let least = 2 * shards * (self.journal_bytes + limits::SEGMENT_BYTES_DEFAULT);
        match self.disk_bytes_max {
            DiskBudget::Bytes(bytes) if bytes < least => {
                let allowed = format!(
                    "{shards} shards with journals of {} need at least {}",
                    format_bytes(self.journal_bytes),
                    format_bytes(least)
                );
                return Err(value("storage.disk_bytes_max", &format_bytes(bytes), &allowed));
            }
            DiskBudget::Bytes(bytes) if self.segment_pool_bytes > bytes => {
                let allowed = "the pool is part of storage.disk_bytes_max; use less";
                return Err(value(
                    "storage.segment_pool_bytes",
                    &format_bytes(self.segment_pool_bytes),
                    allowed,
                ));
            }
            DiskBudget::Bytes(_) | DiskBudget::Percent(_) => {}
        }
        let least = shards.saturating_mul(SHARD_MEMORY_BYTES_MIN + self.journal_bytes);
        if self.memory_bytes_max < least {
            let allowed = format!(
                "{shards} shards with journals of {} need at least {}, {} and a journal each: allow more, or use fewer \
                 broker.shards or smaller storage.journal_bytes (from {})",
                format_bytes(self.journal_bytes),
                format_bytes(least),
                format_bytes(SHARD_MEMORY_BYTES_MIN),
                format_bytes(limits::JOURNAL_BYTES_MIN)
            );
            return Err(value("memory.bytes_max", &format_bytes(self.memory_bytes_max), &allowed));
        }
        Ok(())
    }
}

fn value(key: &'static str, value: &str, allowed: &str) -> ConfigError {
    ConfigError::Value { key, value: value.to_owned(), allowed: allowed.to_owned() }
}

/// `$XDG_DATA_HOME/corelog/dev`. A relative value of the variable is ignored, as its specification asks.
fn dev_data_dir(environment: &BTreeMap<String, String>) -> Result<PathBuf, ConfigError> {
    let absolute = |name: &str| environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || absolute("HOME").map(|home| home.join(".local/share"));
    let data_home = absolute("XDG_DATA_HOME").or_else(home);
    let hint = "neither XDG_DATA_HOME nor HOME is set; say --data-dir";
    data_home.map(|path| path.join("corelog/dev")).ok_or(ConfigError::Missing { key: "--data-dir", hint })
}

/// Memory of the machine, or less if the control group says so.
fn memory_bytes() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse::<u64>().ok());
    machine.unwrap_or(1 << 30).min(group.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
