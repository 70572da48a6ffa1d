//! Answers the administration's questions: asks the shards and the control actor, and turns what they say into plain
//! data.
//!
//! Runs as a task of the control thread. Invariant: an answer comes within thrice [`PATIENCE`]; who has not answered by
//! then is left out and named. All shards are asked at once, so that a slow one costs no more than itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corelog_core::shard::{PartitionSnapshot, ShardSnapshot};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Kind;
use corelog_wire::ids::{BrokerId, ShardId, TopicPartition};
use corelog_wire::message::{
    Answer, DescribeTopicRequest, MetadataAnswer, MetadataRequest, MetadataTopic, Request,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::groups;
use super::state::{
    BrokerInfo, BudgetNumbers, Distribution, Health, PartitionInfo, PartitionStanding, Question, SettingInfo,
    ShardHealth, ShardNumbers, Snapshot, TopicInfo,
};
use crate::net::{ControlRequest, Doors, NetSnapshot};
use crate::node::command::{Command, PartitionTraffic, ShardLink, ShardReport};
use crate::rt::Pulse;

/// How long the control actor, and then the shards, may take.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Said when the control actor is silent.
const NO_CONTROL: &str = "the control plane does not answer; topics are not shown";

/// How to ask one shard.
#[derive(Debug, Clone)]
pub struct ShardSource {
    /// Takes commands.
    pub link: ShardLink,
    /// Counts its executor's work.
    pub pulse: Arc<Pulse>,
    /// Size of its journal ring.
    pub journal_bytes: u64,
}

/// Whom to ask.
#[derive(Debug, Clone)]
pub struct Gatherer {
    /// What the broker is, as far as it does not change.
    pub broker: BrokerInfo,
    /// When it was started.
    pub started: Instant,
    /// Lead to the control thread's actors.
    pub doors: Doors,
    /// By number.
    pub shards: Vec<ShardSource>,
}

/// What one shard said.
struct Told {
    report: ShardReport,
    standing: Vec<(TopicPartition, PartitionSnapshot)>,
}

impl Gatherer {
    /// Answers until nobody can ask any more.
    pub async fn run(self, mut questions: mpsc::Receiver<Question>) {
        let (this, one_picture) = (Arc::new(self), Arc::new(tokio::sync::Mutex::new(())));
        while let Some(question) = questions.recv().await {
            match question {
                // Beside the loop, one at a time; whoever asked may have given up waiting meanwhile.
                Question::Picture(reply) => {
                    let (this, one_picture) = (Arc::clone(&this), Arc::clone(&one_picture));
                    tokio::spawn(async move {
                        let _turn = one_picture.lock().await;
                        if !reply.is_closed() {
                            drop(reply.send(this.snapshot().await));
                        }
                    });
                }
                // Not behind the pictures, which take long when a shard hangs.
                Question::Health(reply) => {
                    let this = Arc::clone(&this);
                    tokio::spawn(async move { drop(reply.send(this.health().await)) });
                }
                Question::Settings { topic, reply } => {
                    let settings = this.settings(topic).await;
                    drop(reply.send(settings));
                }
                Question::Group { name, reply } => {
                    let this = Arc::clone(&this);
                    tokio::spawn(async move {
                        let group = timeout(PATIENCE, groups::one(&this.doors.groups, &name)).await;
                        drop(reply.send(group.ok().flatten()));
                    });
                }
            }
        }
    }

    async fn snapshot(&self) -> Snapshot {
        let uptime_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut broker = BrokerInfo { uptime_ms, ..self.broker.clone() };
        let metadata = self.metadata().await;
        if metadata.is_none() {
            broker.problems.push(NO_CONTROL.to_owned());
        }
        let metadata =
            metadata.unwrap_or(MetadataAnswer { brokers: Vec::new(), topics: Vec::new(), revision: 0 });
        broker.metadata_revision = metadata.revision;

        // One group after the other, those that were asked in time.
        let groups = timeout(2 * PATIENCE, groups::all(&self.doors.groups, PATIENCE));
        let (told, groups) = tokio::join!(self.ask_shards(&metadata.topics), groups);
        let (groups, groups_left_out) = groups.unwrap_or_default();
        let mut snapshot = Snapshot { broker, groups, groups_left_out, ..Snapshot::default() };
        let mut standing = BTreeMap::new();
        for (number, (source, told)) in (0_u16..).zip(self.shards.iter().zip(told)) {
            let Some(told) = told else {
                snapshot.silent.push(number);
                continue;
            };
            let traffic: BTreeMap<TopicPartition, PartitionTraffic> =
                told.report.traffic.iter().copied().collect();
            let stand = |(tp, snapshot): (TopicPartition, PartitionSnapshot)| {
                (tp, partition_standing(&snapshot, traffic.get(&tp).copied().unwrap_or_default()))
            };
            standing.extend(told.standing.into_iter().map(stand));
            snapshot.shards.push(shard_numbers(number, source, &told.report));
        }
        snapshot.topics = metadata.topics.into_iter().map(|topic| topic_info(topic, &standing)).collect();
        snapshot.topics.sort_by(|left, right| left.name.cmp(&right.name));
        snapshot
    }

    async fn health(&self) -> Health {
        let mut asked = JoinSet::new();
        for (number, source) in (0_u16..).zip(&self.shards) {
            let link = source.link.clone();
            asked.spawn(async move {
                let (reply, seen) = oneshot::channel();
                let glance = async {
                    link.send(Command::Glance { reply }).await.ok()?;
                    seen.await.ok()
                };
                (number, timeout(PATIENCE, glance).await.ok().flatten())
            });
        }
        let mut health = Health::default();
        let nothing = MetadataRequest { topics: Some(Vec::new()), auto_create: false };
        if self.ask_control(Request::Metadata(nothing)).await.is_none() {
            health.problems.push(NO_CONTROL.to_owned());
        }
        let mut seen: BTreeMap<u16, ShardSnapshot> = BTreeMap::new();
        while let Some(answered) = asked.join_next().await {
            if let Ok((number, Some(snapshot))) = answered {
                seen.insert(number, snapshot);
            }
        }
        for (number, _) in (0_u16..).zip(&self.shards) {
            match seen.get(&number) {
                Some(snapshot) => health.shards.push(ShardHealth {
                    shard: number,
                    poisoned: snapshot.poisoned,
                    read_only: snapshot.read_only,
                    disk_full: snapshot.disk_full,
                }),
                None => health.silent.push(number),
            }
        }
        health
    }

    async fn metadata(&self) -> Option<MetadataAnswer> {
        let request = Request::Metadata(MetadataRequest { topics: None, auto_create: false });
        match self.ask_control(request).await? {
            Answer::Metadata(answer) => Some(answer),
            _ => None,
        }
    }

    async fn settings(&self, name: String) -> Option<Vec<SettingInfo>> {
        let request = Request::DescribeTopic(DescribeTopicRequest { name });
        let Answer::DescribeTopic(answer) = self.ask_control(request).await? else { return None };
        let setting = |setting: corelog_wire::message::TopicSetting| SettingInfo {
            name: setting.name,
            value: setting.value,
            is_default: setting.is_default,
        };
        Some(answer.config.into_iter().map(setting).collect())
    }

    async fn ask_control(&self, request: Request) -> Option<Answer> {
        let asked = async {
            let (reply, answer) = oneshot::channel();
            // This answer crosses no network.
            let answer_bytes_max = u64::MAX;
            self.doors.control.send(ControlRequest { request, answer_bytes_max, reply }).await.ok()?;
            answer.await.ok()
        };
        timeout(PATIENCE, asked).await.ok().flatten()
    }

    /// What each shard says, by number; none for one that says nothing in time.
    async fn ask_shards(&self, topics: &[MetadataTopic]) -> Vec<Option<Told>> {
        let mut wanted: BTreeMap<ShardId, Vec<TopicPartition>> = BTreeMap::new();
        let this = BrokerId::new(self.broker.id);
        for topic in topics.iter().filter(|topic| topic.error == ErrorCode::None) {
            for partition in topic.partitions.iter().filter(|partition| partition.replicas.contains(&this)) {
                let tp = TopicPartition::new(topic.id, partition.partition);
                wanted.entry(partition.shard).or_default().push(tp);
            }
        }
        let mut asked = JoinSet::new();
        for (number, source) in (0_u16..).zip(&self.shards) {
            let (link, wanted) =
                (source.link.clone(), wanted.remove(&ShardId::new(number)).unwrap_or_default());
            asked.spawn(async move {
                (usize::from(number), timeout(PATIENCE, ask_shard(link, wanted)).await.ok().flatten())
            });
        }
        let mut told: Vec<Option<Told>> = self.shards.iter().map(|_| None).collect();
        while let Some(answered) = asked.join_next().await {
            if let Ok((number, answer)) = answered
                && let Some(place) = told.get_mut(number)
            {
                *place = answer;
            }
        }
        told
    }
}

async fn ask_shard(link: ShardLink, partitions: Vec<TopicPartition>) -> Option<Told> {
    let (reply, report) = oneshot::channel();
    link.send(Command::Report { reply }).await.ok()?;
    let (reply, standing) = oneshot::channel();
    link.send(Command::Describe { partitions: partitions.clone(), reply }).await.ok()?;
    let report = report.await.ok()?;
    let standing = partitions.into_iter().zip(standing.await.ok()?);
    Some(Told { report, standing: standing.filter_map(|(tp, at)| Some((tp, at?))).collect() })
}

fn topic_info(topic: MetadataTopic, standing: &BTreeMap<TopicPartition, PartitionStanding>) -> TopicInfo {
    let id = topic.id;
    let numbers = |brokers: Vec<BrokerId>| brokers.into_iter().map(BrokerId::get).collect::<Vec<u32>>();
    let partitions: Vec<PartitionInfo> = topic
        .partitions
        .into_iter()
        .map(|partition| PartitionInfo {
            partition: partition.partition,
            leader: partition.leader.map(BrokerId::get),
            leader_epoch: partition.leader_epoch.get(),
            shard: partition.shard.get(),
            replicas: numbers(partition.replicas),
            in_sync_replicas: numbers(partition.in_sync_replicas),
            standing: standing.get(&TopicPartition::new(id, partition.partition)).copied(),
        })
        .collect();
    let replicas = partitions.first().map_or(0, |partition| partition.replicas.len());
    TopicInfo {
        name: topic.name,
        id: id.to_string(),
        replication_factor: u16::try_from(replicas).unwrap_or(u16::MAX),
        config: Vec::new(),
        partitions,
    }
}

fn partition_standing(snapshot: &PartitionSnapshot, traffic: PartitionTraffic) -> PartitionStanding {
    PartitionStanding {
        log_start: snapshot.log_start.get(),
        high_watermark: snapshot.high_watermark.get(),
        log_end: snapshot.log_end.get(),
        bytes: snapshot.bytes,
        segments: snapshot.segments,
        records_in: traffic.records_in,
        bytes_in: traffic.bytes_in,
        records_out: traffic.records_out,
        bytes_out: traffic.bytes_out,
    }
}

fn shard_numbers(number: u16, source: &ShardSource, report: &ShardReport) -> ShardNumbers {
    let ShardReport { shard, disk, net, traffic: _ } = report;
    let numbers = ShardNumbers {
        shard: number,
        busy: source.pulse.busy(),
        partitions: shard.partitions,
        journal_committed_bytes: shard.journal_head,
        journal_used_bytes: shard.journal_used_bytes,
        journal_bytes_max: source.journal_bytes,
        journal_pending_bytes: shard.journal_pending_bytes,
        commits: disk.commits,
        flush: Distribution::of_micros(&disk.commit_micros),
        produces_parked: shard.parked_produces,
        fetches_parked: shard.parked_fetches,
        tail_cache_hits: disk.tail_reads,
        tail_cache_misses: disk.cold_reads,
        tail_cache_hit_bytes: disk.tail_read_bytes,
        tail_cache_miss_bytes: disk.cold_read_bytes,
        compaction_read_bytes: disk.compaction_read_bytes,
        compaction_written_bytes: disk.compaction_written_bytes,
        memory: vec![
            BudgetNumbers { name: "tail_cache", bytes: disk.tail_bytes, bytes_max: None },
            BudgetNumbers { name: "idle_buffers", bytes: disk.idle_bytes, bytes_max: None },
            BudgetNumbers { name: "cold_reads", bytes: disk.cold_bytes_held, bytes_max: None },
        ],
        disk_bytes: shard.disk_bytes,
        disk_bytes_max: shard.disk_bytes_max,
        disk_failures: disk.failures,
        checkpoints: shard.checkpoints,
        poisoned: shard.poisoned,
        read_only: shard.read_only,
        disk_full: shard.disk_full,
        ..ShardNumbers::default()
    };
    match net {
        Some(net) => with_network(numbers, net),
        None => numbers,
    }
}

fn with_network(mut numbers: ShardNumbers, net: &NetSnapshot) -> ShardNumbers {
    let budget =
        |name, (bytes, bytes_max): (u64, u64)| BudgetNumbers { name, bytes, bytes_max: Some(bytes_max) };
    numbers.memory.push(budget("requests", net.input_bytes));
    numbers.memory.push(budget("answers", net.output_bytes));
    let label = |kind: Kind| kind.name().to_owned();
    let durations = |(kind, histogram): &(Kind, _)| (label(*kind), Distribution::of_micros(histogram));
    ShardNumbers {
        requests: net.latency_us.iter().map(durations).collect(),
        requests_in_flight: net.in_flight,
        requests_forwarded: net.forwarded,
        requests_throttled: net.throttled,
        requests_expired: net.expired,
        connections: net.connections,
        connections_accepted: net.accepted,
        connections_closed: net.closed.iter().map(|(cause, count)| (cause.name(), *count)).collect(),
        network_received_bytes: net.bytes_in,
        network_sent_bytes: net.bytes_out,
        ..numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskSnapshot;
    use corelog_wire::ids::{LeaderEpoch, Offset, TopicId};
    use corelog_wire::message::{DescribeTopicAnswer, MetadataPartition, TopicSetting};
    use hdrhistogram::Histogram;

    fn tp(partition: u32) -> TopicPartition {
        TopicPartition::new(TopicId::from_bytes([3; 16]), partition)
    }

    fn metadata() -> MetadataAnswer {
        let partition = |number: u32| MetadataPartition {
            partition: number,
            leader: Some(BrokerId::new(1)),
            leader_epoch: LeaderEpoch::new(4),
            shard: ShardId::new(u16::try_from(number).unwrap()),
            replicas: vec![BrokerId::new(1)],
            in_sync_replicas: vec![BrokerId::new(1)],
        };
        let topic = MetadataTopic {
            error: ErrorCode::None,
            name: "orders".to_owned(),
            id: tp(0).topic,
            partitions: vec![partition(0), partition(1)],
        };
        MetadataAnswer { brokers: Vec::new(), topics: vec![topic], revision: 9 }
    }

    fn doors() -> Doors {
        let (control, mut inbox) = mpsc::channel::<ControlRequest>(4);
        tokio::spawn(async move {
            while let Some(ControlRequest { request, reply, .. }) = inbox.recv().await {
                let answer = match request {
                    Request::Metadata(_) => Answer::Metadata(metadata()),
                    Request::DescribeTopic(_) => {
                        let setting = TopicSetting {
                            name: "durability".to_owned(),
                            value: "disk".to_owned(),
                            is_default: true,
                        };
                        let id = tp(0).topic;
                        Answer::DescribeTopic(DescribeTopicAnswer {
                            id,
                            config: vec![setting],
                            partitions: Vec::new(),
                        })
                    }
                    request => panic!("{request:?}"),
                };
                reply.send(answer).unwrap();
            }
        });
        // Nobody asks about groups here.
        let (groups, _) = mpsc::channel(1);
        Doors { control, groups }
    }

    fn report(wanted: u32) -> ShardReport {
        let shard = ShardSnapshot {
            partitions: 1,
            journal_head: 100,
            journal_flushed: 90,
            journal_used_bytes: 80,
            journal_pending_bytes: 10,
            tail_bytes: 7,
            disk_bytes: 6,
            disk_bytes_max: 60,
            parked_produces: 2,
            parked_fetches: 3,
            checkpoints: 4,
            poisoned: false,
            read_only: false,
            disk_full: false,
        };
        let disk = DiskSnapshot {
            commits: 11,
            commit_bytes: 12,
            extents: 0,
            extent_bytes: 0,
            tail_reads: 13,
            tail_read_bytes: 14,
            cold_reads: 15,
            cold_read_bytes: 16,
            cold_file_bytes: 17,
            compaction_read_bytes: 0,
            compaction_written_bytes: 0,
            failures: 0,
            tail_bytes: 7,
            idle_bytes: 8,
            cold_bytes_held: 9,
            commit_micros: Histogram::new(2).unwrap(),
        };
        let traffic = PartitionTraffic { records_in: 5, bytes_in: 500, records_out: 2, bytes_out: 50 };
        ShardReport { shard, disk, net: None, traffic: vec![(tp(wanted), traffic)] }
    }

    fn shard(number: u32) -> ShardSource {
        let (link, mut commands) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(command) = commands.recv().await {
                match command {
                    Command::Report { reply } => drop(reply.send(report(number))),
                    Command::Glance { reply } => drop(reply.send(report(number).shard)),
                    Command::Describe { partitions, reply } => {
                        assert_eq!(partitions, [tp(number)]);
                        let at = PartitionSnapshot {
                            log_start: Offset::new(1),
                            high_watermark: Offset::new(2),
                            log_end: Offset::new(3),
                            leader_epoch: None,
                            bytes: 1_000,
                            segments: 1,
                        };
                        drop(reply.send(vec![Some(at)]));
                    }
                    command => panic!("{command:?}"),
                }
            }
        });
        ShardSource { link, pulse: Arc::default(), journal_bytes: 4_096 }
    }

    /// A shard that takes commands and answers none.
    fn hung() -> (ShardSource, mpsc::Receiver<Command>) {
        let (link, commands) = mpsc::channel(4);
        (ShardSource { link, pulse: Arc::default(), journal_bytes: 4_096 }, commands)
    }

    fn gatherer(shards: Vec<ShardSource>) -> Gatherer {
        let broker = BrokerInfo { id: 1, ..BrokerInfo::default() };
        Gatherer { broker, started: Instant::now(), doors: doors(), shards }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_picture_has_what_shards_and_control_say() {
        run(async {
            let snapshot = gatherer(vec![shard(0), shard(1)]).snapshot().await;
            assert_eq!(snapshot.broker.metadata_revision, 9);
            assert_eq!((snapshot.silent.len(), snapshot.broker.problems.len()), (0, 0));
            let shard = &snapshot.shards[1];
            assert_eq!((shard.shard, shard.journal_used_bytes, shard.journal_bytes_max), (1, 80, 4_096));
            assert_eq!((shard.tail_cache_hits, shard.tail_cache_misses, shard.commits), (13, 15, 11));
            let partition = &snapshot.topics[0].partitions[1];
            let standing = partition.standing.unwrap();
            assert_eq!((partition.shard, standing.high_watermark, standing.records_in), (1, 2, 5));
        });
    }

    #[test]
    fn a_shard_that_hangs_is_left_out_and_named() {
        run(async {
            let (hung, _commands) = hung();
            let snapshot = gatherer(vec![shard(0), hung]).snapshot().await;
            assert_eq!(snapshot.silent, [1]);
            assert_eq!(snapshot.shards.len(), 1);
            assert!(snapshot.topics[0].partitions[0].standing.is_some());
            assert_eq!(snapshot.topics[0].partitions[1].standing, None);
        });
    }

    #[test]
    fn health_is_a_glance_at_each_shard_that_waits_for_no_picture() {
        run(async {
            let (link, mut commands) = mpsc::channel(4);
            let source = ShardSource { link, pulse: Arc::default(), journal_bytes: 4_096 };
            let (questions, inbox) = mpsc::channel(4);
            tokio::spawn(gatherer(vec![source]).run(inbox));
            let (reply, _picture) = oneshot::channel();
            questions.send(Question::Picture(reply)).await.unwrap();
            let Some(Command::Report { reply: _waits }) = commands.recv().await else {
                panic!("a picture first")
            };
            let (reply, health) = oneshot::channel();
            questions.send(Question::Health(reply)).await.unwrap();
            let glance = loop {
                match commands.recv().await {
                    Some(Command::Glance { reply }) => break reply,
                    // Of the picture, which goes on.
                    Some(Command::Describe { .. }) => {}
                    command => panic!("{command:?}"),
                }
            };
            let snapshot = ShardSnapshot { disk_full: true, ..report(0).shard };
            glance.send(snapshot).unwrap();
            let health = health.await.unwrap();
            let shard = ShardHealth { shard: 0, poisoned: false, read_only: false, disk_full: true };
            assert_eq!(health, Health { shards: vec![shard], ..Health::default() });
            let (hung, _commands) = hung();
            assert_eq!(gatherer(vec![super::tests::shard(0), hung]).health().await.silent, [1]);
        });
    }

    #[test]
    fn questions_are_answered_until_nobody_asks() {
        run(async {
            let (questions, inbox) = mpsc::channel(1);
            let gathering = tokio::spawn(gatherer(vec![shard(0), shard(1)]).run(inbox));
            let (reply, answer) = oneshot::channel();
            questions.send(Question::Settings { topic: "orders".to_owned(), reply }).await.unwrap();
            assert_eq!(answer.await.unwrap().unwrap()[0].name, "durability");
            let (reply, answer) = oneshot::channel();
            questions.send(Question::Picture(reply)).await.unwrap();
            assert_eq!(answer.await.unwrap().topics.len(), 1);
            drop(questions);
            gathering.await.unwrap();
        });
    }
}
