//! A workload: what a scenario file (`bench/workloads/*.toml`) says, checked.
//!
//! Called by `run`. Invariant: a workload that was read can be run; what it leaves open has the defaults written here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::payload::MARK_BYTES;
use crate::schedule::Arrival;

/// One scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Its name in tables.
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// Makes payloads and arrival times.
    #[serde(default = "one")]
    pub seed: u64,
    /// Where it goes.
    pub topic: Topic,
    /// What is sent.
    pub records: RecordShape,
    /// How it is sent.
    pub load: Load,
    /// Who reads.
    #[serde(default)]
    pub readers: Readers,
    /// For how long.
    #[serde(default)]
    pub time: Times,
}

/// Consumers. Whether or not there are any, all is read back and checked at the end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Readers {
    /// So many follow the load: each has every record, and is timed from the record's intended time.
    pub following: u32,
    /// So many read everything from the begin once the load is over.
    pub draining: u32,
    /// How often they do.
    pub rounds: u32,
    /// The broker is stopped and started before they do, and the system's page cache dropped.
    pub cold: bool,
    /// So many read another topic beside the load, from the begin to the end and again, as fast as they can. Before, it was
    /// filled, the broker stopped and started, and the page cache dropped.
    pub lagging: u32,
    /// For how long that topic is filled, in seconds.
    pub history_s: f64,
}

impl Workload {
    /// The load that fills the topic of those who lag behind in this one, if any do.
    #[must_use]
    pub fn history(&self) -> Option<Self> {
        let topic = Topic { skew: 0.0, config: BTreeMap::new(), ..self.topic.clone() };
        let records = RecordShape {
            bytes: Some(1024),
            mixed: Vec::new(),
            file: None,
            per_request: 1000,
            ..self.records.clone()
        };
        let load = Load::Closed { connections: 4, in_flight: 1, acks: Acks::All };
        let time = Times { measured_s: self.readers.history_s, ..self.time };
        let filling = Self { topic, records, load, readers: Readers::default(), time, ..self.clone() };
        (self.readers.lagging > 0).then_some(filling)
    }
}

impl Default for Readers {
    fn default() -> Self {
        Self { following: 0, draining: 0, rounds: 1, cold: false, lagging: 0, history_s: 4.0 }
    }
}

/// Most consumers of a workload, a thread each.
const READERS_MAX: u32 = 1000;

/// The topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    /// Every connection goes round all of them, unless there is a skew.
    pub partitions: u32,
    /// Each request picks its partition by chance, the n-th with a weight of 1/n to this power (Zipf's law): 1 is the skew of
    /// words in a text. 0: they take turns.
    #[serde(default)]
    pub skew: f64,
    /// `disk`: flushed before the acknowledgement. `memory`: not.
    #[serde(default)]
    pub durability: Durability,
    /// Other settings.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
}

/// What an acknowledgement stands for: rows of different classes are not compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The device has flushed the record.
    #[default]
    Disk,
    /// The broker has it in memory.
    Memory,
}

impl Durability {
    /// The class's name in tables.
    #[must_use]
    pub const fn class(self) -> &'static str {
        match self {
            Self::Disk => "flushed",
            Self::Memory => "memory",
        }
    }

    /// The topic setting's value.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }
}

/// What a request carries. The values are of one size, or of several, or the lines of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordShape {
    /// Bytes of a record's value, which are random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
    /// The same, of several sizes by chance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixed: Vec<Size>,
    /// A file whose lines are the values, in their order, again from the begin when they are over. Its path is relative to the
    /// scenario's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Records of a request, in one batch.
    #[serde(default = "one_record")]
    pub per_request: u32,
    /// Whether producers have an id and sequences, so that the broker refuses duplicates.
    #[serde(default)]
    pub idempotent: bool,
    /// How the client library compresses batches (`--driver client`).
    #[serde(default)]
    pub codec: Codec,
}

/// A size of values, and how often it comes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Bytes.
    pub bytes: usize,
    /// Beside the weights of the other sizes.
    pub weight: f64,
}

/// How batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "codecs have names")]
pub enum Codec {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// What a producer waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acks {
    /// The leader has it.
    Leader,
    /// Every in-sync replica has it.
    #[default]
    All,
}

/// How requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase", tag = "mode")]
pub enum Load {
    /// At intended times that the peer has no influence on.
    Open {
        /// Connections; requests go round them.
        connections: u32,
        /// Requests a second, of all connections together.
        rate: f64,
        /// How they are spread.
        #[serde(default)]
        arrival: Arrival,
        /// What is waited for.
        #[serde(default)]
        acks: Acks,
    },
    /// The next one when one is answered: shows throughput; its latencies leave out whoever would have come meanwhile.
    Closed {
        /// Connections.
        connections: u32,
        /// Unanswered requests of each.
        #[serde(default = "one_record")]
        in_flight: u32,
        /// What is waited for.
        #[serde(default)]
        acks: Acks,
    },
}

impl Load {
    /// How many connections.
    #[must_use]
    pub const fn connections(&self) -> u32 {
        match *self {
            Self::Open { connections, .. } | Self::Closed { connections, .. } => connections,
        }
    }

    /// What is waited for.
    #[must_use]
    pub const fn acks(&self) -> Acks {
        match *self {
            Self::Open { acks, .. } | Self::Closed { acks, .. } => acks,
        }
    }

    /// For tables.
    #[must_use]
    pub fn line(&self) -> String {
        match *self {
            Self::Open { connections, rate, arrival, .. } => {
                let arrival = if arrival == Arrival::Poisson { "Poisson" } else { "constant" };
                format!("open, {rate}/s {arrival}, {connections} conns")
            }
            Self::Closed { connections, in_flight, .. } => {
                format!("closed, {connections} conns x {in_flight}")
            }
        }
    }
}

/// How long a run takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Times {
    /// Idle time after the start of a broker, in which it may write its journal's blocks for the first time.
    pub settle_s: f64,
    /// Not counted.
    pub warm_up_s: f64,
    /// Counted.
    pub measured_s: f64,
    /// How long the last answers may take.
    pub drain_s: f64,
}

impl Default for Times {
    fn default() -> Self {
        Self { settle_s: 1.0, warm_up_s: 1.0, measured_s: 5.0, drain_s: 30.0 }
    }
}

impl Times {
    /// Idle.
    #[must_use]
    pub fn settle(&self) -> Duration {
        Duration::from_secs_f64(self.settle_s)
    }

    /// Not counted.
    #[must_use]
    pub fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up_s)
    }

    /// Counted.
    #[must_use]
    pub fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.measured_s)
    }

    /// How long the last answers may take.
    #[must_use]
    pub fn drain(&self) -> Duration {
        Duration::from_secs_f64(self.drain_s)
    }
}

const fn one() -> u64 {
    1
}

const fn one_record() -> u32 {
    1
}

impl Workload {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// [`Error::Setup`] names what is wrong with it.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).doing(|| format!("reading {}", path.display()))?;
        let mut workload =
            Self::parse(&text).map_err(|error| Error::Setup(format!("{}: {error}", path.display())))?;
        if let (Some(file), Some(folder)) = (&mut workload.records.file, path.parent()) {
            *file = folder.join(&*file);
        }
        Ok(workload)
    }

    /// Reads a scenario's text.
    ///
    /// # Errors
    /// [`Error::Setup`].
    pub fn parse(text: &str) -> Result<Self> {
        let workload: Self = toml::from_str(text).map_err(|error| Error::Setup(error.to_string()))?;
        workload.check()?;
        Ok(workload)
    }

    fn check(&self) -> Result<()> {
        let fail = |reason: String| Err(Error::Setup(reason));
        let Self { topic, records, load, time, .. } = self;
        if topic.partitions == 0 || load.connections() == 0 {
            return fail("partitions and connections must be 1 or more".to_owned());
        }
        if !(0.0..=10.0).contains(&topic.skew) {
            return fail(format!("topic.skew must be from 0 to 10, not {}", topic.skew));
        }
        let kinds = [records.bytes.is_some(), !records.mixed.is_empty(), records.file.is_some()];
        if kinds.into_iter().filter(|is_there| *is_there).count() != 1 {
            return fail(
                "one of records.bytes, records.mixed and records.file says what values are".to_owned(),
            );
        }
        let mut sizes = records.mixed.iter().map(|size| size.bytes).chain(records.bytes);
        if sizes.any(|bytes| bytes < MARK_BYTES) || records.per_request == 0 {
            return fail(format!("values must have {MARK_BYTES} bytes or more, requests 1 record or more"));
        }
        if records.mixed.iter().any(|size| !(size.weight > 0.0 && size.weight <= 1e9)) {
            return fail("the weights of records.mixed must be above 0 and at most 1e9".to_owned());
        }
        match *load {
            Load::Open { rate, .. } if !(rate > 0.0 && rate <= 1e6) => {
                return fail(format!("load.rate must be above 0 and at most a million, not {rate}"));
            }
            Load::Closed { in_flight: 0, .. } => return fail("load.in_flight must be 1 or more".to_owned()),
            // The broker remembers the last five batches of a producer in a partition.
            Load::Closed { in_flight, .. } if records.idempotent && in_flight > 5 * topic.partitions => {
                return fail("an idempotent producer may have 5 batches in flight to a partition".to_owned());
            }
            Load::Open { .. } | Load::Closed { .. } => {}
        }
        let Readers { following, draining, lagging, history_s, .. } = self.readers;
        if following.max(draining).max(lagging) > READERS_MAX {
            return fail(format!("there may be {READERS_MAX} readers of a kind"));
        }
        if self.readers.rounds == 0 {
            return fail("readers.rounds must be 1 or more".to_owned());
        }
        if !(0.1..=3_600.0).contains(&history_s) {
            return fail(format!("readers.history_s must be 0.1 to 3600, not {history_s}"));
        }
        if self.readers.cold && self.readers.draining == 0 {
            return fail("readers.cold is said of readers.draining, of which there are none".to_owned());
        }
        let within = |seconds: f64, least: f64| (least..=86_400.0).contains(&seconds);
        if !within(time.settle_s, 0.0)
            || !within(time.warm_up_s, 0.0)
            || !within(time.measured_s, 0.1)
            || !within(time.drain_s, 0.1)
        {
            return fail("times must be 0.1 s (settling and warm-up 0) to a day".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: &str = r#"
        name = "x"
        about = "y"
        [topic]
        partitions = 2
        [records]
        bytes = 100
        [load]
        mode = "open"
        connections = 8
        rate = 4000.0
    "#;

    #[test]
    fn defaults_are_durable_and_open() {
        let workload = Workload::parse(OPEN).unwrap();
        assert_eq!(workload.topic.durability, Durability::Disk);
        assert_eq!(workload.load.acks(), Acks::All);
        assert_eq!(
            workload.load,
            Load::Open { connections: 8, rate: 4000.0, arrival: Arrival::Poisson, acks: Acks::All }
        );
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        for (from, to) in [
            ("bytes = 100", "bytes = 31"),
            ("partitions = 2", "partitions = 0"),
            ("partitions = 2", "partitions = 2\nskew = -1.0"),
            ("partitions = 2", "partitions = 2\nskew = nan"),
            ("connections = 8", "connections = 0"),
            ("rate = 4000.0", "rate = 0.0"),
            ("rate = 4000.0", "rate = nan"),
            ("bytes = 100", "bytes = 100\nper_request = 0"),
            ("bytes = 100", "byte = 100"),
            ("bytes = 100", ""),
            ("bytes = 100", "bytes = 100\nfile = \"x\""),
            ("bytes = 100", "mixed = [{ bytes = 100, weight = 0.0 }]"),
            ("bytes = 100", "mixed = [{ bytes = 31, weight = 1.0 }]"),
            ("bytes = 100", "bytes = 100\ncodec = \"rar\""),
            ("\"open\"", "\"half\""),
            ("[topic]", "[readers]\ncold = true\n[topic]"),
            ("[topic]", "[readers]\nfollowing = 1001\n[topic]"),
            ("[topic]", "[readers]\nrounds = 0\n[topic]"),
            ("[topic]", "[readers]\nlagging = 1001\n[topic]"),
            ("[topic]", "[readers]\nhistory_s = 0.0\n[topic]"),
        ] {
            assert!(OPEN.contains(from));
            assert!(Workload::parse(&OPEN.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn the_scenarios_of_the_repository_can_be_run() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let workload = Workload::read(&path).unwrap();
            assert_eq!(path.file_stem().unwrap().to_str().unwrap(), workload.name);
            names.push(workload.name);
        }
        assert!(names.len() >= 10, "{names:?}");
    }
}
