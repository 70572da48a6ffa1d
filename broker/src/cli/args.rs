//! The arguments of every command, as clap reads them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use corelog_client::{Acks, Compression, Start};
use corelog_core::topic::quantity::parse_millis;

/// A distributed commit log: the broker and its tools.
#[derive(Debug, Parser)]
#[command(name = "corelog", version, about, propagate_version = true, disable_help_subcommand = true)]
pub(super) struct Cli {
    /// How results are written.
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Text, value_name = "FORMAT")]
    pub(super) output: OutputFormat,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Text,
    /// For programs: a JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a broker to try things out: one command, no configuration, data flushed to disk.
    Dev(DevArgs),
    /// Start a broker by its configuration file.
    Serve(ServeArgs),
    /// Create, list, describe, alter and delete topics.
    Topic(TopicArgs),
    /// List, describe, reset and delete consumer groups.
    Group(GroupArgs),
    /// Write records to a topic, from a file or standard input.
    Produce(ProduceArgs),
    /// Read records of a topic to standard output.
    Consume(ConsumeArgs),
    /// Show a broker's rates, latencies, topics and groups, second by second.
    Top(TopArgs),
    /// Examine this machine: what would slow a broker down or keep it from starting, and how to mend it.
    Doctor(DoctorArgs),
    /// Print the completion script of a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// Arguments of `corelog dev`.
#[derive(Clone, Debug, Args)]
pub struct DevArgs {
    /// Where the data is kept [default: `corelog/dev` below `$XDG_DATA_HOME`].
    #[arg(long, value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// Port for clients; 0 takes a free one.
    #[arg(long, default_value_t = 9640)]
    pub port: u16,
    /// Port for health, metrics and the JSON API; 0 takes a free one.
    #[arg(long, default_value_t = 9644)]
    pub admin_port: u16,
    /// Shards: one core each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub shards: u16,
}

/// Arguments of `corelog serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Change a setting of the file, as `storage.journal_bytes=1GiB`. May be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Arguments of `corelog doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// The directory whose disk is examined [default: that of `corelog dev`].
    #[arg(long, value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
}

/// Arguments of `corelog top`.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Where the broker's metrics are, host:port.
    #[arg(long, env = "CORELOG_ADMIN", default_value = "127.0.0.1:9644", value_name = "ADDRESS")]
    pub(super) admin: String,
    /// Time between two looks, as 1s; at least 50ms.
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = parse_duration)]
    pub(super) interval: Duration,
    /// Print one look and end, as when standard output is no terminal.
    #[arg(long)]
    pub(super) once: bool,
}

/// How to reach the broker.
#[derive(Clone, Debug, Args)]
pub(super) struct ClientArgs {
    /// Address of a broker, host:port; several with commas between them.
    #[arg(
        long,
        global = true,
        env = "CORELOG_BOOTSTRAP",
        default_value = "127.0.0.1:9640",
        value_name = "ADDRESS"
    )]
    pub(super) bootstrap: String,
}

#[derive(Debug, Args)]
pub(super) struct TopicArgs {
    #[command(flatten)]
    pub(super) client: ClientArgs,
    #[command(subcommand)]
    pub(super) command: TopicCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum TopicCommand {
    /// Create a topic.
    Create {
        /// Its name.
        name: String,
        /// How many partitions it has.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        partitions: u32,
        /// How many brokers hold each partition [default: the broker's].
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
        replication_factor: u16,
        /// A setting, as `retention_ms=86400000`. May be given again.
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse_setting)]
        config: Vec<(String, String)>,
        /// If it exists already, leave it as it is and succeed.
        #[arg(long)]
        if_not_exists: bool,
    },
    /// List all topics.
    List,
    /// Show a topic's settings and partitions.
    Describe {
        /// Its name.
        name: String,
    },
    /// Change a topic's settings, or give it more partitions.
    Alter {
        /// Its name.
        name: String,
        /// How many partitions it shall have, more than it has.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        partitions: Option<u32>,
        /// A setting, as `retention_ms=86400000`. May be given again.
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse_setting)]
        config: Vec<(String, String)>,
        /// A setting to put back to its default. May be given again.
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
    },
    /// Delete a topic and all its records.
    Delete {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct GroupArgs {
    #[command(flatten)]
    pub(super) client: ClientArgs,
    #[command(subcommand)]
    pub(super) command: GroupCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// List all groups.
    List,
    /// Show a group's members, and how far it is in each partition.
    Describe {
        /// Its name.
        name: String,
    },
    /// Move a group's offsets in a topic. Without --execute it only shows what would change.
    Reset {
        /// The group; it must not have members.
        name: String,
        /// The topic.
        topic: String,
        /// Only this partition. May be given again.
        #[arg(long, value_name = "N")]
        partition: Vec<u32>,
        /// Where to: earliest, latest, an offset, or a time as 2026-11-21T10:00:00Z.
        #[arg(long, value_name = "PLACE", value_parser = parse_start, required_unless_present = "shift")]
        to: Option<Start>,
        /// So many records forward, or back if negative.
        #[arg(long, value_name = "RECORDS", allow_negative_numbers = true, conflicts_with = "to")]
        shift: Option<i64>,
        /// Do it.
        #[arg(long)]
        execute: bool,
    },
    /// Delete a group without members, or only its offsets of a topic.
    Delete {
        /// Its name.
        name: String,
        /// Only its offsets of this topic.
        #[arg(long)]
        topic: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct ProduceArgs {
    #[command(flatten)]
    pub(super) client: ClientArgs,
    /// The topic.
    pub(super) topic: String,
    /// The file to read [default: standard input].
    #[arg(long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// What separates records.
    #[arg(long, value_enum, default_value_t = Delimiter::Line)]
    pub(super) delimiter: Delimiter,
    /// Leave the line end out of the value.
    #[arg(long)]
    pub(super) chomp: bool,
    /// What separates key and value: what comes before it first is the key. A line without it has no key.
    #[arg(long, value_name = "TEXT", value_parser = parse_separator)]
    pub(super) key_separator: Option<String>,
    /// An empty value is none: a tombstone, with which a topic that is compacted forgets the key.
    #[arg(long, requires = "key_separator", requires = "chomp")]
    pub(super) tombstones: bool,
    /// A tag of every record, by which readers may ask for it. May be repeated.
    #[arg(long, value_name = "TAG")]
    pub(super) tag: Vec<String>,
    /// All records to this partition.
    #[arg(long)]
    pub(super) partition: Option<u32>,
    /// When a record counts as written: in no case known, on the leader, on every in-sync replica.
    #[arg(long, value_enum, default_value_t = AcksArg::All)]
    pub(super) acks: AcksArg,
    /// How batches are compressed.
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    pub(super) compression: CompressionArg,
    /// How long a record waits for company, in milliseconds. At 0 only while batches before it are under way.
    #[arg(long, default_value_t = 0)]
    pub(super) linger_ms: u64,
    /// A batch is sent at this many bytes at the latest.
    #[arg(long, default_value_t = 1 << 20)]
    pub(super) batch_bytes: usize,
}

#[derive(Debug, Args)]
pub(super) struct ConsumeArgs {
    #[command(flatten)]
    pub(super) client: ClientArgs,
    /// The topic.
    pub(super) topic: String,
    /// Read as a member of this consumer group: its members share the partitions, and it goes on where it stopped. Records
    /// count as done when they are written out.
    #[arg(long, value_name = "GROUP", conflicts_with = "partition")]
    pub(super) group: Option<String>,
    /// A name for this member that outlives the command: started again within the session timeout after it ended by
    /// Ctrl-C or SIGTERM, it has the partitions it had. After a crash it waits until that time is over.
    #[arg(long, value_name = "NAME", requires = "group")]
    pub(super) instance: Option<String>,
    /// How long the group waits for this member when nothing is heard of it, as 10s.
    #[arg(long, value_name = "TIME", requires = "group", default_value = "10s", value_parser = parse_duration)]
    pub(super) session_timeout: Duration,
    /// Only this partition.
    #[arg(long)]
    pub(super) partition: Option<u32>,
    /// Where to begin, in a group only where it has not read yet: earliest, latest, an offset, or a time as 2026-11-21T10:00:00Z.
    #[arg(long, default_value = "earliest", value_name = "PLACE", value_parser = parse_start)]
    pub(super) from: Start,
    /// Where to go on when that is outside the log, because retention was faster: earliest, latest, or another such place. Without
    /// this, it is an error.
    #[arg(long, value_name = "PLACE", value_parser = parse_start)]
    pub(super) reset: Option<Start>,
    /// Only records with this tag, the value of a header named tag; repeated, with any of them. The broker leaves out
    /// batches that have none.
    #[arg(long, value_name = "TAG")]
    pub(super) tag: Vec<String>,
    /// Stop at the records that are there now, instead of waiting for more. With --group: when the group has read them,
    /// whichever member did.
    #[arg(long)]
    pub(super) until_end: bool,
    /// Stop after this many records.
    #[arg(long, value_name = "N")]
    pub(super) count: Option<u64>,
    /// What is written for each record: %v value, %k key, %o offset, %p partition, %t topic, %T time in milliseconds,
    /// %h headers, %% a percent sign, \n \t \r \0 \\ as usual [default: %v].
    #[arg(long, value_name = "TEMPLATE")]
    pub(super) format: Option<String>,
}

/// What separates records in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Delimiter {
    /// The end of a line, which is part of the value.
    Line,
    /// A zero byte, which is part of the value.
    Nul,
    /// Nothing: the whole input is one record.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum AcksArg {
    None,
    Leader,
    All,
}

impl AcksArg {
    pub(super) const fn acks(self) -> Acks {
        match self {
            Self::None => Acks::None,
            Self::Leader => Acks::Leader,
            Self::All => Acks::All,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum CompressionArg {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl CompressionArg {
    pub(super) const fn compression(self) -> Compression {
        match self {
            Self::None => Compression::None,
            Self::Gzip => Compression::Gzip,
            Self::Snappy => Compression::Snappy,
            Self::Lz4 => Compression::Lz4,
            Self::Zstd => Compression::Zstd,
        }
    }
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("write it as KEY=VALUE, as retention_ms=86400000".to_owned()),
    }
}

fn parse_separator(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("a separator has at least one character".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    parse_millis(text).map(Duration::from_millis).map_err(|error| error.to_string())
}

fn parse_start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        _ => match (text.parse::<u64>(), text.parse::<jiff::Timestamp>()) {
            (Ok(offset), _) => Ok(Start::Offset(offset)),
            (_, Ok(time)) => Ok(Start::Timestamp(time.as_millisecond())),
            _ => Err("write earliest, latest, an offset, or a time as 2026-11-21T10:00:00Z".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_place_to_begin_is_read() {
        assert_eq!(parse_start("earliest"), Ok(Start::Earliest));
        assert_eq!(parse_start("latest"), Ok(Start::Latest));
        assert_eq!(parse_start("42"), Ok(Start::Offset(42)));
        assert_eq!(parse_start("1970-01-01T00:00:01.5Z"), Ok(Start::Timestamp(1_500)));
        assert_eq!(parse_start("1970-01-01T01:00:00+01:00"), Ok(Start::Timestamp(0)));
        assert!(parse_start("yesterday").is_err());
        assert!(parse_start("-1").is_err());
    }

    #[test]
    fn a_setting_is_read() {
        assert_eq!(parse_setting("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(parse_setting("a").is_err());
        assert!(parse_setting("=b").is_err());
    }
}
