//! Many consumer groups that commit: how long a commit takes, what it costs producers, and how large the store gets.
//!
//! Called by `main`. Every group has a member that holds all partitions of one topic and commits them once a second, the
//! groups spread evenly over it; beside them single records are produced at an even rate. Phases without and with
//! commits take turns. Both loads are open loops: latencies are from the intended time. Invariant: an answer that
//! refuses anything ends the run.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use corelog_wire::batch::BatchFields;
use corelog_wire::ids::{LeaderEpoch, MemberEpoch, MemberId, Offset, TopicId, TopicPartition};
use corelog_wire::message::{
    Acks, Assignor, GroupHeartbeatRequest, Leave, MemberWishes, OffsetCommitRequest, OffsetRow,
    ProduceRequest, ProduceRow, Request,
};
use corelog_wire::records::RecordsBuilder;

use crate::args::GroupsArguments;
use crate::broker::{Broker, Start};
use crate::error::{Doing, Error, Result};
use crate::line::{closed_loop, median, open_loop, percentiles};
use crate::peer::Peer;
use crate::peer::corelog::Connection;
use crate::stage;

const TOPIC: &str = "committed";
const VALUE_BYTES: usize = 1_000;
/// A member that says nothing else for this long is still there.
const SESSION: Duration = Duration::from_mins(30);
/// Commits under way when the store is filled.
const FILL_WINDOW: usize = 256;

/// Measures; whether every answer was a good one is an error otherwise.
///
/// # Errors
/// [`Error`].
pub fn run(arguments: &GroupsArguments) -> Result<bool> {
    let folder = stage::folder(&arguments.place)?;
    let (broker_place, generator_place) = stage::thread_places(&arguments.place);
    let program = Peer::Corelog.program(arguments.broker_bin.as_deref())?;
    let start = Start { peer: Peer::Corelog, program, arguments: Vec::new(), folder, place: broker_place };
    let broker = Broker::start(&start)?;
    generator_place.take()?;
    let measured = measure(&broker, arguments);
    broker.stop()?;
    measured.map(|()| true)
}

fn measure(broker: &Broker, arguments: &GroupsArguments) -> Result<()> {
    let address = broker.address();
    let (mut connection, _) = Connection::open(address)?;
    let topic = connection.create_topic(TOPIC, arguments.partitions, Vec::new())?;
    let groups = Groups { count: arguments.groups, partitions: arguments.partitions, topic };
    println!(
        "{} groups with {} partitions each; durability: a commit is answered when the metadata store is flushed; {}",
        groups.count,
        groups.partitions,
        stage::pinning(&arguments.place)
    );
    groups.join(address)?;
    let phase = stage::seconds(arguments.seconds)?;
    let (mut idle, mut busy, mut commits) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..u64::from(arguments.repeat) {
        let produced = open_loop(address, arguments.produce_rate, phase, |n| groups.produce(n))?;
        idle.push(percentiles(&produced));
        let committed = thread::scope(|scope| {
            let committing = scope.spawn(|| {
                open_loop(address, f64::from(groups.count), phase, |n| groups.commit(n, 2 * round + 1))
            });
            let produced = open_loop(address, arguments.produce_rate, phase, |n| groups.produce(n))?;
            busy.push(percentiles(&produced));
            committing.join().map_err(|_| Error::Peer("the committing thread ended early".to_owned()))?
        })?;
        commits.push(percentiles(&committed));
    }
    println!("\n{:28} {:>10} {:>10} {:>10}", "median of the rounds", "p50 ms", "p99 ms", "max ms");
    for (what, rounds) in
        [("produce, groups idle", &idle), ("produce, groups committing", &busy), ("commit", &commits)]
    {
        let [p50, p99, max] =
            [0, 1, 2].map(|place| median(rounds.iter().map(|round| round[place]).collect()));
        println!("{what:28} {p50:>10.2} {p99:>10.2} {max:>10.2}");
    }
    let ratio = median(busy.iter().zip(&idle).map(|(busy, idle)| busy[1] / idle[1]).collect());
    println!("\nproduce p99, committing over idle: {ratio:.2} (median of the rounds' ratios)");
    fill(broker, &groups, arguments.fill)
}

/// The groups and their topic.
#[derive(Clone, Copy)]
struct Groups {
    count: u32,
    partitions: u32,
    topic: TopicId,
}

impl Groups {
    fn name(number: u64) -> String {
        format!("group-{number:06}")
    }

    fn member(number: u64) -> MemberId {
        MemberId::new(u128::from(number) + 1)
    }

    /// A member for each.
    fn join(self, address: SocketAddr) -> Result<()> {
        let join = |number| {
            Request::GroupHeartbeat(GroupHeartbeatRequest {
                group: Self::name(number),
                member: Self::member(number),
                member_epoch: MemberEpoch::new(0),
                leave: Leave::No,
                max_wait_ms: 0,
                owned: Vec::new(),
                beat: 1,
                wishes: Some(Box::new(MemberWishes {
                    session_timeout: SESSION,
                    topics: vec![TOPIC.to_owned()],
                    patterns: Vec::new(),
                    assignor: Assignor::Uniform,
                    instance: None,
                    client_name: "corelog-bench".to_owned(),
                })),
            })
        };
        closed_loop(address, self.count.into(), FILL_WINDOW, |number| (join(number), Vec::new())).map(drop)
    }

    /// A commit of all partitions of a group, the groups in turn.
    fn commit(self, number: u64, base: u64) -> (Request, Vec<u8>) {
        let (group, round) = (number % u64::from(self.count), number / u64::from(self.count));
        let row = |partition| OffsetRow {
            tp: TopicPartition::new(self.topic, partition),
            offset: Offset::new((base << 32) + round),
            leader_epoch: LeaderEpoch::new(1),
            metadata: String::new(),
        };
        let commit = OffsetCommitRequest {
            group: Self::name(group),
            member: Some((Self::member(group), MemberEpoch::new(1))),
            rows: (0..self.partitions).map(row).collect(),
        };
        (Request::OffsetCommit(commit), Vec::new())
    }

    /// One record, to the partitions in turn.
    fn produce(self, number: u64) -> (Request, Vec<u8>) {
        let partition = u32::try_from(number % u64::from(self.partitions)).unwrap_or(0);
        let tp = TopicPartition::new(self.topic, partition);
        let mut records = RecordsBuilder::with_capacity(VALUE_BYTES);
        // A record of this size is legal.
        let _ = records.push(0, 0, None, Some(&[7; VALUE_BYTES]), &[]);
        let batch = records.into_batch(&BatchFields::plain(1, 0), tp).to_vec();
        let bytes = u32::try_from(batch.len()).unwrap_or(0);
        let rows = vec![ProduceRow { tp, first_byte: 0, bytes }];
        (Request::Produce(ProduceRequest { acks: Acks::All, deadline_ms: 30_000, rows }), batch)
    }
}

/// Commits as many times as an hour would, as fast as that goes, and says how large the store gets.
fn fill(broker: &Broker, groups: &Groups, commits: u64) -> Result<()> {
    let store = broker.folder().join("data").join("meta.redb");
    let store = if store.exists() { store } else { broker.folder().join("meta.redb") };
    let size =
        || fs::metadata(&store).map(|meta| meta.len()).doing(|| format!("looking at {}", store.display()));
    println!("\nthe metadata store has {} KiB", size()? >> 10);
    let began = Instant::now();
    for part in 0..10 {
        let from = commits / 10 * part;
        if commits < 10 {
            return Ok(());
        }
        closed_loop(broker.address(), commits / 10, FILL_WINDOW, |number| {
            groups.commit(from + number, 1 << 20)
        })?;
        println!(
            "after {} more commits, {:.0} s: {} KiB",
            from + commits / 10,
            began.elapsed().as_secs_f64(),
            size()? >> 10
        );
    }
    Ok(())
}
