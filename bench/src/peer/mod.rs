//! Who is measured. Each peer has a way to be started, a [`crate::engine::Protocol`] for the load, and a way to read
//! everything back for `check`.
//!
//! Called by `suite` and `run`. Invariants: a peer says what its acknowledgement stands for, and rows of different classes
//! are not ranked together; all peers get the same values, from the same generator, at the same times.

pub mod corelog;
pub mod kafka;
pub mod library;
pub mod nats;
pub mod redis;
pub mod sending;
pub mod strawman;
mod turns;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use serde::Serialize;

use crate::args::Driver;
use crate::check::{Checker, Ledger};
use crate::error::{Doing, Error, Result};
use crate::follow::Tail;
use crate::payload::{Template, Values};
use crate::tally::{Outcome, Plan, Window};
use crate::workload::{Codec, Durability, Readers, Workload};

/// Who is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// The broker of this project.
    #[default]
    Corelog,
    /// The least that could call itself a durable log server: the ceiling.
    Strawman,
    /// Redis Streams, the append-only file flushed before each answer.
    RedisAlways,
    /// Redis Streams as it is when asked for an append-only file: flushed every second.
    RedisEverysec,
    /// NATS `JetStream` with file storage, which flushes every two minutes.
    Nats,
    /// Apache Kafka with its defaults, which leave flushing to the system.
    Kafka,
    /// Apache Kafka that flushes each request's records before it answers.
    KafkaFlush,
}

/// What the broker is told, unless more arguments say otherwise: a server's defaults for one shard, and memory that long
/// runs fill and use again.
const CORELOG_CONFIG: &str = "\
[broker]
shards = 1
[listen]
address = \"127.0.0.1:0\"
admin = \"127.0.0.1:0\"
[memory]
bytes_max = \"1GiB\"
";

/// How a peer is started in an empty folder.
#[derive(Debug)]
pub struct Launch {
    /// The command.
    pub command: Command,
    /// How it is known to be ready.
    pub ready: Ready,
    /// Its configuration, as far as it is not in the command.
    pub config: Option<&'static str>,
}

/// How a peer is known to be ready, and to be the process that was started.
#[derive(Debug)]
pub enum Ready {
    /// It writes this file, with its address and process.
    File(PathBuf),
    /// It answers `INFO` here, with its process.
    Redis(SocketAddr),
    /// It listens here and answers this.
    Answers(SocketAddr, fn(SocketAddr) -> bool),
}

impl Peer {
    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Corelog => "corelog",
            Self::Strawman => "strawman",
            Self::RedisAlways => "redis-always",
            Self::RedisEverysec => "redis-everysec",
            Self::Nats => "nats",
            Self::Kafka => "kafka",
            Self::KafkaFlush => "kafka-flush",
        }
    }

    /// What its acknowledgement stands for when a workload asks for this.
    ///
    /// # Errors
    /// [`Error::Setup`] if it has nothing of the kind.
    pub fn class(self, durability: Durability) -> Result<&'static str> {
        match (self, durability) {
            (Self::Corelog, durability) => Ok(durability.class()),
            (Self::Strawman | Self::RedisAlways | Self::KafkaFlush, Durability::Disk) => Ok("flushed"),
            (Self::RedisEverysec | Self::Nats | Self::Kafka, Durability::Disk) => Ok("page cache"),
            (Self::Strawman, Durability::Memory) => Ok("memory"),
            (_, Durability::Memory) => {
                Err(Error::Setup(format!("{} has no durability of memory; leave it out", self.name())))
            }
        }
    }

    /// Whether a client library for it is built in, for `--driver client`.
    #[must_use]
    pub const fn has_library(self) -> bool {
        match self {
            Self::Corelog => true,
            Self::Kafka | Self::KafkaFlush => cfg!(feature = "rdkafka"),
            Self::Strawman | Self::RedisAlways | Self::RedisEverysec | Self::Nats => false,
        }
    }

    /// Whether it can do what a workload asks for; where it cannot, others take their turns without it.
    #[must_use]
    pub fn takes(self, workload: &Workload) -> bool {
        let Readers { following, draining, lagging, .. } = workload.readers;
        let readers = following + draining + lagging > 0;
        // It has all of it in memory, and so nothing that is cold.
        let lags = lagging == 0 || !matches!(self, Self::RedisAlways | Self::RedisEverysec);
        let reads = !matches!(self, Self::Strawman | Self::Nats);
        let compresses = self == Self::Corelog || workload.records.codec == Codec::None;
        (reads || !readers) && lags && compresses && self.class(workload.topic.durability).is_ok()
    }

    /// The program, if it is not named: Corelog's is beside this one, the strawman is in it, others are installed.
    ///
    /// # Errors
    /// [`Error::Setup`] if it is not there, with how to get it.
    pub fn program(self, named: Option<&Path>) -> Result<PathBuf> {
        let own = || std::env::current_exe().doing(|| "looking for this program".to_owned());
        let (program, remedy) = match self {
            Self::Corelog => {
                let beside = own()?.with_file_name("corelog");
                let remedy = "build it (cargo build --release -p corelog-broker), or name one with --broker-bin or \
                              --bootstrap";
                (named.map_or(beside, Path::to_owned), remedy)
            }
            Self::Strawman => (own()?, ""),
            Self::RedisAlways | Self::RedisEverysec => {
                (PathBuf::from("/usr/bin/redis-server"), "install it: apt-get install redis-server")
            }
            Self::Nats => (PathBuf::from("/usr/sbin/nats-server"), "install it: apt-get install nats-server"),
            Self::Kafka | Self::KafkaFlush => {
                let target = own()?.parent().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
                (
                    target.join("kafka").join(kafka::JAR),
                    "fetch it: sh deploy/tools/kafka.sh (needs Java and Maven)",
                )
            }
        };
        if program.is_file() {
            return Ok(program);
        }
        Err(Error::Setup(format!("there is no {} at {}: {remedy}", self.name(), program.display())))
    }

    /// How to start it in this folder, which is empty and its own.
    ///
    /// # Errors
    /// [`Error::System`] if its configuration cannot be written.
    pub fn launch(self, program: &Path, arguments: &[String], folder: &Path) -> Result<Launch> {
        let mut command = Command::new(program);
        let (ready, config) = match self {
            Self::Corelog => {
                let (config, data) = (folder.join("corelog.toml"), folder.join("data"));
                std::fs::write(&config, CORELOG_CONFIG).doing(|| format!("writing {}", config.display()))?;
                command.arg("serve").arg("--config").arg(&config);
                command.arg("--set").arg(format!("broker.data_dir={}", data.display())).args(arguments);
                (Ready::File(data.join("ready.json")), Some(CORELOG_CONFIG))
            }
            Self::Strawman => {
                command.arg("strawman").arg("--folder").arg(folder).args(arguments);
                (Ready::File(folder.join("ready.json")), None)
            }
            Self::RedisAlways => (Ready::Redis(redis::arguments(&mut command, folder, "always")?), None),
            Self::RedisEverysec => (Ready::Redis(redis::arguments(&mut command, folder, "everysec")?), None),
            Self::Nats => (Ready::Answers(nats::arguments(&mut command, folder)?, nats::answers), None),
            Self::Kafka | Self::KafkaFlush => {
                let address;
                (command, address) = kafka::launch(program, folder, self == Self::KafkaFlush)?;
                (Ready::Answers(address, kafka::answers), None)
            }
        };
        Ok(Launch { command, ready, config })
    }

    /// Prepares one run.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`]; [`Error::Setup`] if the peer cannot do what the workload asks for.
    pub fn open<'a>(self, run: Run<'a>) -> Result<Box<dyn Session + 'a>> {
        Ok(match self {
            Self::Corelog => Box::new(corelog::Session::open(run)?),
            Self::Strawman => Box::new(strawman::Session::open(run)?),
            Self::RedisAlways | Self::RedisEverysec => Box::new(redis::Session::open(run)?),
            Self::Nats => Box::new(nats::Session::open(run)?),
            Self::Kafka | Self::KafkaFlush => Box::new(kafka::Session::open(run)?),
        })
    }
}

/// What a session is to do.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Where the peer listens.
    pub address: SocketAddr,
    /// Its folder, if it was started here.
    pub folder: Option<&'a Path>,
    /// The run's number, in every mark.
    pub number: u64,
    /// What is to be done.
    pub workload: &'a Workload,
    /// What requests carry, by turns.
    pub values: &'a Values,
    /// The same as batches.
    pub templates: &'a [Template],
    /// What sends the load.
    pub driver: Driver,
}

impl Run<'_> {
    /// A producer's way round the workload's partitions.
    fn turns(&self, producer: u32) -> turns::Turns {
        let Workload { topic, records, .. } = self.workload;
        turns::Turns::new(self.number, producer, topic, records.per_request, self.templates.len())
    }
}

/// One run's use of a peer.
pub trait Session: Sync {
    /// Sends the load; gives what happened and what each producer was told.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`]. Refusals are no errors.
    fn drive(&self, plan: &Plan, window: &mut dyn Window) -> Result<(Outcome, Vec<Ledger>)>;

    /// One consumer, from the topic's begin on.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`]; [`Error::Setup`] of a peer whose consumers cannot be measured here.
    fn tail(&self) -> Result<Box<dyn Tail + '_>> {
        Err(Error::Setup("this peer's consumers are not measured here: leave it out".to_owned()))
    }

    /// The peer was started again on the same folder, and listens here now.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`]; [`Error::Setup`] if it begins anew at each start.
    fn moved(&mut self, address: SocketAddr) -> Result<()>;

    /// Reads every record back into the checker; gives how many bytes they were.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    fn read_back(&mut self, checker: &mut Checker<'_>) -> Result<u64>;

    /// Removes what the run left, in a peer that goes on.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    fn remove(&mut self) -> Result<()>;
}

/// A port of loopback that nobody has. Another process could take it meanwhile: whose it is, is asked before it is used.
fn free_port() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .doing(|| "looking for a free port".to_owned())
}
