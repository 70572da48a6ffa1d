//! `/metrics`: a snapshot in OpenMetrics text.
//!
//! Every name starts with `corelog_` and ends with its unit; counters with `_total`. Labels are bounded by what the
//! broker has: shards, topics, kinds of requests, causes, and of consumer groups the first thousand. The text is made from one snapshot, so its numbers belong
//! together.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::state::{
    BudgetNumbers, Distribution, LagNumbers, PartitionStanding, Phase, ShardNumbers, Snapshot, TopicInfo,
};

/// The content type of OpenMetrics text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text of a snapshot.
///
/// # Errors
/// When a label or a name cannot be written, which no snapshot should bring about.
pub(super) fn encode(snapshot: Snapshot, phase: Phase) -> Result<String, Error> {
    let mut registry = Registry::with_prefix("corelog");
    registry.register_collector(Box::new(Numbers { snapshot, phase }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Numbers {
    snapshot: Snapshot,
    phase: Phase,
}

/// A number of a shard: name without unit, unit, kind, help, and where it is.
type ShardRow = (&'static str, Option<Unit>, MetricType, &'static str, fn(&ShardNumbers) -> u64);

const COUNTER: MetricType = MetricType::Counter;
const GAUGE: MetricType = MetricType::Gauge;

const SHARD_ROWS: &[ShardRow] = &[
    ("shard_partitions", None, GAUGE, "Partitions on the shard", |s| s.partitions),
    ("journal_committed", Some(Unit::Bytes), COUNTER, "Bytes committed to the journal", |s| {
        s.journal_committed_bytes
    }),
    ("journal_used", Some(Unit::Bytes), GAUGE, "Bytes of the journal that a recovery would need", |s| {
        s.journal_used_bytes
    }),
    ("journal_size", Some(Unit::Bytes), GAUGE, "Size of the journal ring", |s| s.journal_bytes_max),
    ("journal_pending", Some(Unit::Bytes), GAUGE, "Bytes that wait for a commit", |s| {
        s.journal_pending_bytes
    }),
    ("journal_commits", None, COUNTER, "Commits flushed", |s| s.commits),
    ("checkpoints", None, COUNTER, "Checkpoints written", |s| s.checkpoints),
    ("requests_in_flight", None, GAUGE, "Requests that wait for their answer", |s| s.requests_in_flight),
    ("produces_parked", None, GAUGE, "Produce requests that wait for their flush", |s| s.produces_parked),
    ("fetches_parked", None, GAUGE, "Fetch requests that wait for records", |s| s.fetches_parked),
    ("requests_forwarded", None, COUNTER, "Requests forwarded to other shards", |s| s.requests_forwarded),
    ("requests_throttled", None, COUNTER, "Requests answered with THROTTLED", |s| s.requests_throttled),
    ("requests_expired", None, COUNTER, "Requests not answered within their deadline", |s| {
        s.requests_expired
    }),
    ("tail_cache_hits", None, COUNTER, "Fetched rows found in memory", |s| s.tail_cache_hits),
    ("tail_cache_misses", None, COUNTER, "Fetched rows read from segment files", |s| s.tail_cache_misses),
    ("tail_cache_hit", Some(Unit::Bytes), COUNTER, "Bytes fetched from memory", |s| s.tail_cache_hit_bytes),
    ("tail_cache_miss", Some(Unit::Bytes), COUNTER, "Bytes fetched from segment files", |s| {
        s.tail_cache_miss_bytes
    }),
    ("compaction_read", Some(Unit::Bytes), COUNTER, "Bytes that compaction read from segment files", |s| {
        s.compaction_read_bytes
    }),
    ("compaction_written", Some(Unit::Bytes), COUNTER, "Bytes that compaction wrote to segment files", |s| {
        s.compaction_written_bytes
    }),
    ("connections", None, GAUGE, "Open connections", |s| s.connections),
    ("connections_accepted", None, COUNTER, "Connections accepted", |s| s.connections_accepted),
    ("network_received", Some(Unit::Bytes), COUNTER, "Bytes received from clients", |s| {
        s.network_received_bytes
    }),
    ("network_sent", Some(Unit::Bytes), COUNTER, "Bytes sent to clients", |s| s.network_sent_bytes),
    ("disk_used", Some(Unit::Bytes), GAUGE, "Bytes of segment files", |s| s.disk_bytes),
    ("disk_limit", Some(Unit::Bytes), GAUGE, "What segment files may take", |s| s.disk_bytes_max),
    ("disk_failures", None, COUNTER, "Operations on files that failed", |s| s.disk_failures),
    ("shard_poisoned", None, GAUGE, "1 if a write fault has stopped the log of the shard", |s| {
        u64::from(s.poisoned)
    }),
    ("shard_read_only", None, GAUGE, "1 if the journal was found corrupt and nothing is appended", |s| {
        u64::from(s.read_only)
    }),
    ("shard_disk_full", None, GAUGE, "1 if the disk or its budget is full", |s| u64::from(s.disk_full)),
];

/// A number of a topic, summed over its partitions.
type TopicRow = (&'static str, Option<Unit>, MetricType, &'static str, fn(&PartitionStanding) -> u64);

const TOPIC_ROWS: &[TopicRow] = &[
    ("topic_records_in", None, COUNTER, "Records appended", |p| p.records_in),
    ("topic_in", Some(Unit::Bytes), COUNTER, "Bytes of record batches appended", |p| p.bytes_in),
    ("topic_records_out", None, COUNTER, "Records sent to readers", |p| p.records_out),
    ("topic_out", Some(Unit::Bytes), COUNTER, "Bytes of record batches sent to readers", |p| p.bytes_out),
    ("topic_size", Some(Unit::Bytes), GAUGE, "Bytes of all record batches", |p| p.bytes),
    ("topic_segments", None, GAUGE, "Segments", |p| u64::from(p.segments)),
];

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        self.broker(&mut encoder)?;
        for row in SHARD_ROWS {
            self.shard_row(&mut encoder, row)?;
        }
        self.busy(&mut encoder)?;
        self.flushes(&mut encoder)?;
        self.requests(&mut encoder)?;
        self.memory(&mut encoder)?;
        self.closed(&mut encoder)?;
        for row in TOPIC_ROWS {
            self.topic_row(&mut encoder, row)?;
        }
        self.topic_partitions(&mut encoder)?;
        self.groups(&mut encoder)
    }
}

impl Numbers {
    fn broker(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let broker = &self.snapshot.broker;
        let (version, id) = (broker.version.as_str(), broker.id.to_string());
        let labels = [("version", version), ("cluster", broker.cluster.as_str()), ("broker", id.as_str())];
        let mut family = encoder.encode_descriptor("broker", "The broker", None, GAUGE)?;
        family.encode_family(&labels)?.encode_gauge(&1_u64)?;
        let ready = u64::from(self.phase == Phase::Ready);
        encoder.encode_descriptor("ready", "1 if the broker serves", None, GAUGE)?.encode_gauge(&ready)?;
        let help = "Time since the start of the broker";
        let uptime = std::time::Duration::from_millis(broker.uptime_ms).as_secs_f64();
        encoder.encode_descriptor("uptime", help, Some(&Unit::Seconds), GAUGE)?.encode_gauge(&uptime)?;
        let help = "Revision of the metadata that the broker knows";
        let revision = broker.metadata_revision;
        encoder.encode_descriptor("metadata_revision", help, None, GAUGE)?.encode_gauge(&revision)?;
        let help = "Shards that did not answer";
        let silent = self.snapshot.silent.len() as u64;
        encoder.encode_descriptor("shards_silent", help, None, GAUGE)?.encode_gauge(&silent)
    }

    fn shard_row(&self, encoder: &mut DescriptorEncoder<'_>, row: &ShardRow) -> Result<(), Error> {
        let (name, unit, kind, help, number) = row;
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), *kind)?;
        for shard in &self.snapshot.shards {
            put(&mut family.encode_family(&[("shard", shard.shard)])?, *kind, number(shard))?;
        }
        Ok(())
    }

    fn busy(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "Time the executor of the shard was at work";
        let mut family = encoder.encode_descriptor("shard_busy", help, Some(&Unit::Seconds), COUNTER)?;
        for shard in &self.snapshot.shards {
            let labels = [("shard", shard.shard)];
            let busy = shard.busy.as_secs_f64();
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&busy, None)?;
        }
        Ok(())
    }

    fn flushes(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "From handing a commit to the device to its flush";
        let unit = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor("flush_duration", help, unit, MetricType::Histogram)?;
        for shard in &self.snapshot.shards {
            distribution(&mut family.encode_family(&[("shard", shard.shard)])?, &shard.flush)?;
        }
        Ok(())
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "From a request read to its answer handed to the kernel";
        let unit = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor("request_duration", help, unit, MetricType::Histogram)?;
        for shard in &self.snapshot.shards {
            let number = shard.shard.to_string();
            for (kind, durations) in shard.requests.iter().filter(|(_, durations)| durations.count > 0) {
                let labels = [("shard", number.as_str()), ("kind", kind.as_str())];
                distribution(&mut family.encode_family(&labels)?, durations)?;
            }
        }
        Ok(())
    }

    fn memory(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        self.budgets(encoder, "memory_used", "Memory taken, by budget", |budget| Some(budget.bytes))?;
        self.budgets(encoder, "memory_limit", "Memory that may be taken, by budget", |budget| {
            budget.bytes_max
        })
    }

    fn budgets(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        number: fn(&BudgetNumbers) -> Option<u64>,
    ) -> Result<(), Error> {
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), GAUGE)?;
        for shard in &self.snapshot.shards {
            let of_shard = shard.shard.to_string();
            for budget in &shard.memory {
                if let Some(bytes) = number(budget) {
                    let labels = [("shard", of_shard.as_str()), ("budget", budget.name)];
                    family.encode_family(&labels)?.encode_gauge(&bytes)?;
                }
            }
        }
        Ok(())
    }

    fn closed(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "Connections ended, by cause";
        let mut family = encoder.encode_descriptor("connections_closed", help, None, COUNTER)?;
        for shard in &self.snapshot.shards {
            let number = shard.shard.to_string();
            for (cause, count) in &shard.connections_closed {
                let labels = [("shard", number.as_str()), ("cause", cause)];
                put(&mut family.encode_family(&labels)?, COUNTER, *count)?;
            }
        }
        Ok(())
    }

    fn topic_row(&self, encoder: &mut DescriptorEncoder<'_>, row: &TopicRow) -> Result<(), Error> {
        let (name, unit, kind, help, number) = row;
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), *kind)?;
        for topic in &self.snapshot.topics {
            let standings = topic.partitions.iter().filter_map(|partition| partition.standing.as_ref());
            let numbers: Vec<u64> = standings.map(number).collect();
            if !numbers.is_empty() || topic.partitions.is_empty() {
                put(&mut family.encode_family(&topic_label(topic))?, *kind, numbers.iter().sum())?;
            }
        }
        Ok(())
    }

    fn groups(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "Whether there are more groups than are shown here, which are the first thousand by name";
        encoder
            .encode_descriptor("groups_left_out", help, None, GAUGE)?
            .encode_gauge(&u64::from(self.snapshot.groups_left_out))?;
        let mut family = encoder.encode_descriptor("group_members", "Members of the group", None, GAUGE)?;
        for group in &self.snapshot.groups {
            let labels = [("group", group.name.as_str())];
            family.encode_family(&labels)?.encode_gauge(&(group.members as u64))?;
        }
        LAG_COUNTS.iter().try_for_each(|row| self.lag(encoder, row))?;
        LAG_TIMES.iter().try_for_each(|row| self.lag(encoder, row))
    }

    fn lag<N: EncodeGaugeValue>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, unit, help, number): &LagRow<N>,
    ) -> Result<(), Error> {
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), GAUGE)?;
        for group in &self.snapshot.groups {
            for place in &group.partitions {
                let Some(number) = place.lag.as_ref().and_then(number) else { continue };
                let partition = place.partition.to_string();
                let labels = [
                    ("group", group.name.as_str()),
                    ("topic", place.topic.as_str()),
                    ("partition", partition.as_str()),
                ];
                family.encode_family(&labels)?.encode_gauge(&number)?;
            }
        }
        Ok(())
    }

    fn topic_partitions(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut family =
            encoder.encode_descriptor("topic_partitions", "Partitions of the topic", None, GAUGE)?;
        for topic in &self.snapshot.topics {
            family.encode_family(&topic_label(topic))?.encode_gauge(&(topic.partitions.len() as u64))?;
        }
        Ok(())
    }
}

/// A number of a group in a partition: name without unit, unit, help, and where it is.
type LagRow<N> = (&'static str, Option<Unit>, &'static str, fn(&LagNumbers) -> Option<N>);

const LAG_COUNTS: &[LagRow<u64>] = &[
    ("group_lag_records", None, "Records that the group has not read", |lag| Some(lag.records)),
    ("group_lag", Some(Unit::Bytes), "Bytes that the group has not read", |lag| Some(lag.bytes)),
];

const LAG_TIMES: &[LagRow<f64>] = &[
    ("group_lag", Some(Unit::Seconds), "Age of the first record that the group has not read", |lag| {
        Some(lag.seconds)
    }),
    ("group_overtaken_in", Some(Unit::Seconds), "Time until retention deletes what is unread", |lag| {
        lag.overtaken_in_seconds
    }),
];

fn topic_label(topic: &TopicInfo) -> [(&'static str, &str); 1] {
    [("topic", topic.name.as_str())]
}

fn put(metric: &mut MetricEncoder<'_>, kind: MetricType, number: u64) -> Result<(), Error> {
    match kind {
        MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&number, None),
        _ => metric.encode_gauge(&number),
    }
}

fn distribution(metric: &mut MetricEncoder<'_>, durations: &Distribution) -> Result<(), Error> {
    metric.encode_histogram::<NoLabelSet>(durations.sum_seconds, durations.count, &durations.buckets, None)
}
