//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::peer::Peer;
use crate::strawman::StrawmanArguments;

/// Latency and throughput of a Corelog broker, against what its machine could do.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run workloads, interleaved, and print a table.
    Run(Box<RunArguments>),
    /// Run all workloads of a folder, interleaved, and print a table.
    Suite(Box<SuiteArguments>),
    /// Search the highest rate of an open loop that keeps its 99th percentile and lets no backlog grow.
    Ramp(Box<RampArguments>),
    /// Measure consumer groups that commit, and what that costs producers.
    Groups(GroupsArguments),
    /// Compaction of many updates of few keys, beside producers and readers of the end.
    Compaction(CompactionArguments),
    /// Measure the device and loopback TCP without a broker.
    Limits(LimitsArguments),
    /// Compare two reports; ends with 1 if the second is worse.
    Compare(CompareArguments),
    /// Serve as the least that could call itself a durable log server, to be measured.
    Strawman(StrawmanArguments),
}

/// Where things run.
#[derive(Clone, Debug, Args)]
pub struct PlaceArguments {
    /// Folder on the file system under test; data goes into a folder of its own there, which is removed.
    /// Default: where this program is.
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Processor of the broker.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub broker_cpu: usize,
    /// Processor of the generator.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub generator_cpu: usize,
    /// Pin nothing.
    #[arg(long)]
    pub no_pin: bool,
    /// Run both sides before ordinary processes (round robin; needs root).
    #[arg(long)]
    pub real_time: bool,
    /// Let fio measure the device too.
    #[arg(long)]
    pub fio: bool,
}

/// What sends the load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Driver {
    /// The wire protocol itself, with batches that are encoded once: measures the broker.
    #[default]
    Raw,
    /// A client library, as applications have it: Corelog's, and librdkafka for Kafka where that is built in.
    Client,
}

/// Whom to measure, and with what.
#[derive(Clone, Debug, Args)]
pub struct SubjectArguments {
    /// Who is measured; several take turns, on the same workloads and with the same checks.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "corelog", conflicts_with = "bootstrap")]
    pub peer: Vec<Peer>,
    /// Corelog's broker. Default: `corelog` beside this program.
    #[arg(long, value_name = "FILE", conflicts_with = "bootstrap")]
    pub broker_bin: Option<PathBuf>,
    /// One more argument of `corelog serve`, as `--set=storage.journal_bytes=1GiB`.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true, conflicts_with = "bootstrap")]
    pub broker_arg: Vec<String>,
    /// Use the broker that listens here.
    #[arg(long, value_name = "ADDRESS")]
    pub bootstrap: Option<SocketAddr>,
    /// Its process, if it runs here, to be watched.
    #[arg(long, value_name = "PID", requires = "bootstrap")]
    pub broker_pid: Option<u32>,
    /// What sends the load.
    #[arg(long, value_enum, default_value_t)]
    pub driver: Driver,
}

/// How long and how often.
#[derive(Clone, Debug, Args)]
pub struct EffortArguments {
    /// How often each is run; the workloads take turns.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// How often a repeat that others disturb is tried; the least disturbed try is kept, invalid ones always.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub attempts: u32,
    /// Seconds of warm-up, instead of the workload's.
    #[arg(long, value_name = "SECONDS")]
    pub warm_up: Option<f64>,
    /// Seconds that are measured, instead of the workload's.
    #[arg(long, value_name = "SECONDS")]
    pub measured: Option<f64>,
}

/// Where the results go, beside the table.
#[derive(Clone, Debug, Args)]
pub struct OutputArguments {
    /// Write everything here as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a report to look at here.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write each run's response times here, by second, as interval logs of the `HdrHistogram` format.
    #[arg(long, value_name = "DIR")]
    pub hlog: Option<PathBuf>,
}

/// What workloads that take turns have in common.
#[derive(Clone, Debug, Args)]
pub struct TurnsArguments {
    /// Who.
    #[command(flatten)]
    pub subjects: SubjectArguments,
    /// How long and how often.
    #[command(flatten)]
    pub effort: EffortArguments,
    /// Where results go.
    #[command(flatten)]
    pub output: OutputArguments,
    /// Where.
    #[command(flatten)]
    pub place: PlaceArguments,
}

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArguments {
    /// Scenario files: see bench/workloads.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Kill each broker (SIGKILL) so long after warm-up, start it again and check that what it acknowledged is there.
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["bootstrap", "measured"])]
    pub kill_at: Option<f64>,
    /// Who, how often and where.
    #[command(flatten)]
    pub turns: TurnsArguments,
}

/// Arguments of `suite`.
#[derive(Clone, Debug, Args)]
pub struct SuiteArguments {
    /// Folder of scenario files, as bench/workloads.
    #[arg(value_name = "DIR")]
    pub scenarios: PathBuf,
    /// Only scenarios whose names begin so; several: any of them.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Who, how often and where.
    #[command(flatten)]
    pub turns: TurnsArguments,
}

/// Arguments of `ramp`.
#[derive(Clone, Debug, Args)]
pub struct RampArguments {
    /// A scenario file with an open loop, whose rate is where the search begins.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The response time, in milliseconds, that 99% of all requests must keep within.
    #[arg(long, value_name = "MS", default_value_t = 5.0)]
    pub p99_ms: f64,
    /// The search ends when the highest rate that holds is known to within this share.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    pub within: f64,
    /// Who.
    #[command(flatten)]
    pub subjects: SubjectArguments,
    /// Where results go.
    #[command(flatten)]
    pub output: OutputArguments,
    /// Where.
    #[command(flatten)]
    pub place: PlaceArguments,
}

/// Arguments of `limits`.
#[derive(Clone, Debug, Args)]
pub struct LimitsArguments {
    /// Bytes of each write; may be given several times.
    #[arg(long, value_name = "BYTES", default_values_t = [4096, 16_384, 65_536, 262_144, 1 << 20, 4 << 20])]
    pub bytes: Vec<usize>,
    /// Seconds for each.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub seconds: f64,
    /// Where.
    #[command(flatten)]
    pub place: PlaceArguments,
}

/// Arguments of `groups`.
#[derive(Clone, Debug, Args)]
pub struct GroupsArguments {
    /// Groups, each with one member.
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub groups: u32,
    /// Partitions that each commits once a second.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub partitions: u32,
    /// Records produced in a second meanwhile.
    #[arg(long, default_value_t = 1_000.0, value_name = "RATE")]
    pub produce_rate: f64,
    /// Seconds of each phase.
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    pub seconds: f64,
    /// How often the phases without and with commits take turns.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Then so many commits as fast as they go, to see how large the store gets; an hour of the above are 3,600,000.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub fill: u64,
    /// Corelog's broker. Default: `corelog` beside this program.
    #[arg(long, value_name = "FILE")]
    pub broker_bin: Option<PathBuf>,
    /// Where.
    #[command(flatten)]
    pub place: PlaceArguments,
}

/// Arguments of `compaction`.
#[derive(Clone, Debug, Args)]
pub struct CompactionArguments {
    /// Keys that are updated, at random.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Mebibytes of updates before compaction is switched on.
    #[arg(long, default_value_t = 10_240, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    pub fill: u64,
    /// Updates produced in a second, one by one, before and while it runs.
    #[arg(long, default_value_t = 1_000.0, value_name = "RATE")]
    pub produce_rate: f64,
    /// Seconds of each phase that is measured.
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    pub seconds: f64,
    /// Phases measured before; and at least as many while it runs.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Corelog's broker. Default: `corelog` beside this program.
    #[arg(long, value_name = "FILE")]
    pub broker_bin: Option<PathBuf>,
    /// Where.
    #[command(flatten)]
    pub place: PlaceArguments,
}

/// Arguments of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArguments {
    /// What `run --json` wrote before.
    pub before: PathBuf,
    /// What it wrote after.
    pub after: PathBuf,
    /// Share by which a median may be worse.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub tolerance: f64,
}
