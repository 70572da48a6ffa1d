//! What one seed does: how large everything is, how the disk behaves, which troubles come.
//!
//! Each seed enables its own subset of troubles (swarm testing): a run with all of them hides what only some bring out.
//! A share of the seeds has very small limits, so that what is rare in the field (a full ring, a rolled segment, an
//! evicted cache) happens all the time.

use crate::disk::Weather;
use crate::rng::Rng;
use crate::world::{MICROS, MILLIS, SECONDS};
use corelog_core::group::GroupName;
use corelog_core::limits::{GROWTH_STEP_BYTES, KIB, MIB};
use corelog_core::shard::ShardConfig;
use corelog_core::topic::{Durability, FullPolicy, TopicConfig, TopicOverrides};
use corelog_wire::ids::ShardId;

/// How long troubles come, in virtual time; producing goes on a little longer, and everything is read once more after it.
pub const TROUBLE: u64 = 60 * SECONDS;

/// Troubles that a seed may bring. Each has its own section in docs/SIMULATION.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The process is killed.
    Kill,
    /// The power is cut.
    PowerCut,
    /// The broker is stopped and started in good order.
    Restart,
    /// A write fails.
    WriteError,
    /// A flush fails.
    FlushError,
    /// A confirmed write never lands.
    LostWrite,
    /// A confirmed write lands elsewhere.
    MisdirectedWrite,
    /// Durable journal bytes rot.
    JournalRot,
    /// Durable segment bytes rot.
    SegmentRot,
    /// A checkpoint slot or an index file rots.
    CheckpointRot,
    /// The file system fills up.
    FullDisk,
    /// The disk is slow for a while.
    SlowDisk,
    /// The wall clock jumps.
    ClockJump,
    /// Connections break.
    Disconnect,
    /// Topics are created, changed and deleted.
    Topics,
    /// Clients delete records.
    DeleteRecords,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Kill,
        Self::PowerCut,
        Self::Restart,
        Self::WriteError,
        Self::FlushError,
        Self::LostWrite,
        Self::MisdirectedWrite,
        Self::JournalRot,
        Self::SegmentRot,
        Self::CheckpointRot,
        Self::FullDisk,
        Self::SlowDisk,
        Self::ClockJump,
        Self::Disconnect,
        Self::Topics,
        Self::DeleteRecords,
    ];
}

/// One topic at the start.
#[derive(Clone, Debug)]
pub struct TopicPlan {
    /// How many partitions it has.
    pub partitions: u32,
    /// Its settings.
    pub config: TopicConfig,
}

/// Everything that is decided before a run begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it was drawn from.
    pub seed: u64,
    /// How many shards the broker has.
    pub shards: u16,
    /// Bytes of a disk sector.
    pub sector: u64,
    /// Room on the file system.
    pub capacity: u64,
    /// How the disk behaves.
    pub weather: Weather,
    /// Size of each shard's ring.
    pub ring_bytes: u64,
    /// Tail cache of each shard.
    pub tail_cache_bytes: u64,
    /// Disk budget of each shard.
    pub disk_bytes_max: u64,
    /// What files may take that wait to be used again.
    pub recycled_bytes_max: u64,
    /// Whether the ring is written once in the background.
    pub prewrite: bool,
    /// Bytes of a segment read.
    pub chunk_bytes: u64,
    /// Inputs that the pump takes in one turn.
    pub inputs_max: usize,
    /// Topics at the start.
    pub topics: Vec<TopicPlan>,
    /// Producers that retry under a producer id.
    pub producers: usize,
    /// Producers without one.
    pub plain_producers: usize,
    /// Producers that are the client library's.
    pub libraries: usize,
    /// Readers.
    pub consumers: usize,
    /// Largest value.
    pub value_bytes_max: u64,
    /// Shortest and longest time between a producer's batches.
    pub pause: (u64, u64),
    /// Troubles come until then.
    pub trouble_until: u64,
    /// Producers stop here.
    pub produce_until: u64,
    /// Everything must have its answer by then.
    pub settled_by: u64,
    /// Everything must have been read once more by then.
    pub end: u64,
    /// Which troubles come.
    pub troubles: Vec<Trouble>,
    /// Mean time between two troubles.
    pub trouble_every: u64,
    /// How many blocks may be spoiled in this run.
    pub damages_max: u32,
}

impl Plan {
    /// What this seed does.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let tiny = rng.percent(40);
        let ring_bytes =
            rng.pick(if tiny { &[256 * KIB, 512 * KIB, 768 * KIB] } else { &[MIB, 2 * MIB, 4 * MIB] });
        let troubles = draw_troubles(&mut rng);
        let full = troubles.contains(&Trouble::FullDisk);
        let topics: Vec<_> = (0..rng.between(1, 3)).map(|_| draw_topic(&mut rng, tiny, ring_bytes)).collect();
        // A tight budget still has room for what no policy removes: a few files of every partition.
        let files = |topic: &TopicPlan| {
            u64::from(topic.partitions) * topic.config.segment_bytes.max(GROWTH_STEP_BYTES)
        };
        let tight = topics.iter().map(files).sum::<u64>() * rng.between(4, 6);
        let tight = (full && rng.percent(60)).then_some(tight);
        Self {
            seed,
            shards: if rng.percent(30) { 2 } else { 1 },
            sector: if rng.percent(30) { 512 } else { 4096 },
            capacity: 256 * MIB,
            weather: draw_weather(&mut rng),
            ring_bytes,
            tail_cache_bytes: rng.pick(if tiny {
                &[0, 4 * KIB, 64 * KIB]
            } else {
                &[64 * KIB, MIB, 8 * MIB]
            }),
            disk_bytes_max: tight.unwrap_or(128 * MIB),
            // By another generator, so that what older seeds do stays what it was.
            recycled_bytes_max: Rng::new(!seed).pick(&[0, MIB, 16 * MIB, 64 * MIB]),
            prewrite: rng.percent(50),
            chunk_bytes: rng.pick(&[4 * KIB, 16 * KIB, 64 * KIB]),
            inputs_max: rng.pick(&[1, 4, 64]),
            topics,
            producers: rng.between(1, 4) as usize,
            plain_producers: rng.below(2) as usize,
            libraries: rng.below(3) as usize,
            consumers: rng.between(1, 4) as usize,
            value_bytes_max: rng.pick(&[64, 512, 2_000, 6_000]),
            pause: rng.pick(&[
                (5 * MILLIS, 40 * MILLIS),
                (20 * MILLIS, 100 * MILLIS),
                (MILLIS, 200 * MILLIS),
            ]),
            trouble_until: TROUBLE,
            produce_until: TROUBLE + 5 * SECONDS,
            settled_by: TROUBLE + 25 * SECONDS,
            end: TROUBLE + 33 * SECONDS,
            troubles,
            trouble_every: rng.pick(&[1_500 * MILLIS, 4 * SECONDS, 10 * SECONDS]),
            damages_max: rng.between(1, 3) as u32,
        }
    }

    /// What one shard is made with.
    #[must_use]
    pub fn shard_config(&self, shard: u16) -> ShardConfig {
        ShardConfig {
            shard: ShardId::new(shard),
            ring_bytes: self.ring_bytes,
            tail_cache_bytes: self.tail_cache_bytes,
            disk_bytes_max: self.disk_bytes_max,
            recycled_bytes_max: self.recycled_bytes_max,
            prewrite: self.prewrite,
        }
    }

    /// A topic that somebody creates while the run goes on.
    pub fn another_topic(&self, rng: &mut Rng) -> TopicPlan {
        draw_topic(rng, self.ring_bytes < MIB, self.ring_bytes)
    }

    /// Largest batch that this run's rings and segments take, with room to spare.
    #[must_use]
    pub fn batch_bytes_max(&self) -> u64 {
        (self.ring_bytes / 5).min(48 * KIB) - 2 * KIB
    }
}

fn draw_troubles(rng: &mut Rng) -> Vec<Trouble> {
    // Some seeds spoil nothing: there, nothing at all is excused.
    let spoiling = rng.percent(35);
    let spoils = |trouble: Trouble| {
        matches!(
            trouble,
            Trouble::LostWrite
                | Trouble::MisdirectedWrite
                | Trouble::JournalRot
                | Trouble::SegmentRot
                | Trouble::CheckpointRot
        )
    };
    Trouble::ALL.into_iter().filter(|trouble| (spoiling || !spoils(*trouble)) && rng.percent(45)).collect()
}

fn draw_weather(rng: &mut Rng) -> Weather {
    let mut weather = Weather::default();
    if rng.percent(30) {
        weather.flush = (500 * MICROS, 12 * MILLIS);
    }
    if rng.percent(30) {
        weather.write = (10 * MICROS, 5 * MILLIS);
    }
    weather.spike_one_in = rng.pick(&[20, 200, 2_000]);
    weather
}

fn draw_topic(rng: &mut Rng, tiny: bool, ring_bytes: u64) -> TopicPlan {
    let none = TopicOverrides::default();
    let mut config = TopicConfig::resolve(&none, &none, 1);
    config.segment_bytes =
        rng.pick(if tiny { &[64 * KIB, 128 * KIB] } else { &[128 * KIB, 512 * KIB, 2 * MIB] });
    config.batch_bytes_max = (ring_bytes / 5).min(48 * KIB);
    config.record_bytes_max = config.batch_bytes_max - KIB;
    config.retention_ms = rng.pick(&[None, Some(5_000), Some(20_000), Some(7 * 86_400_000)]);
    config.retention_bytes = rng.pick(&[None, None, Some(256 * KIB), Some(2 * MIB)]);
    config.durability = if rng.percent(15) { Durability::Memory } else { Durability::Disk };
    config.full_policy =
        rng.pick(&[FullPolicy::BlockProducer, FullPolicy::DropOldest, FullPolicy::ProtectUnread]);
    if config.full_policy == FullPolicy::ProtectUnread || rng.percent(30) {
        config.protect_groups = GroupName::new("readers").into_iter().collect();
    }
    TopicPlan { partitions: rng.between(1, 3) as u32, config }
}
