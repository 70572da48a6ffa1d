//! What is shown: tables of words, made of two samples.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::metrics::{Labels, Sample};
use crate::cli::table::table;

/// A broker between two moments.
#[derive(Debug, Serialize)]
pub(super) struct View {
    pub(super) broker: String,
    pub(super) cluster: String,
    pub(super) version: String,
    pub(super) uptime_seconds: f64,
    pub(super) shards: Vec<Shard>,
    pub(super) topics: Vec<Topic>,
    pub(super) groups: Vec<Group>,
    /// Whether the broker shows only the first groups by name.
    pub(super) groups_left_out: bool,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "as in the JSON of the other commands")]
pub(super) struct Shard {
    shard: String,
    partitions: f64,
    /// Share of a core.
    busy: f64,
    requests_per_second: f64,
    produce_p99_seconds: Option<f64>,
    flush_p99_seconds: Option<f64>,
    received_bytes_per_second: f64,
    sent_bytes_per_second: f64,
    journal_used_bytes: f64,
    disk_used_bytes: f64,
    connections: f64,
    /// What an operator should look at.
    state: &'static str,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "as in the JSON of the other commands")]
pub(super) struct Topic {
    topic: String,
    partitions: f64,
    records_in_per_second: f64,
    bytes_in_per_second: f64,
    records_out_per_second: f64,
    bytes_out_per_second: f64,
    size_bytes: f64,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "as in the JSON of the other commands")]
pub(super) struct Group {
    group: String,
    topic: String,
    members: f64,
    lag_records: f64,
    lag_bytes: f64,
    /// Of the partition that is furthest behind.
    lag_seconds: f64,
}

/// Heads and rows of a table.
pub(super) type Table = (&'static [&'static str], Vec<Vec<String>>);

impl View {
    /// What happened between two samples. Busiest topics and groups that are furthest behind come first.
    pub(super) fn between(before: &Sample, now: &Sample) -> Self {
        let identity =
            now.all("corelog_broker").first().map(|(labels, _)| labels.clone()).unwrap_or_default();
        let label = |name: &str| identity.get(name).cloned().unwrap_or_default();
        let delta = Delta { before, now, seconds: now.at.saturating_duration_since(before.at).as_secs_f64() };
        let shards = now.values("corelog_shard_partitions", "shard");
        let mut topics: Vec<Topic> = now
            .values("corelog_topic_partitions", "topic")
            .into_iter()
            .map(|topic| delta.topic(topic))
            .collect();
        topics.sort_by(|a, b| {
            b.bytes_in_per_second
                .total_cmp(&a.bytes_in_per_second)
                .then(b.size_bytes.total_cmp(&a.size_bytes))
        });
        let mut groups = groups(now);
        groups.sort_by(|a, b| {
            b.lag_seconds.total_cmp(&a.lag_seconds).then(b.lag_records.total_cmp(&a.lag_records))
        });
        Self {
            broker: label("broker"),
            cluster: label("cluster"),
            version: label("version"),
            uptime_seconds: now.sum("corelog_uptime_seconds", &[]),
            shards: shards.into_iter().map(|shard| delta.shard(shard)).collect(),
            topics,
            groups,
            groups_left_out: now.sum("corelog_groups_left_out", &[]) > 0.0,
        }
    }

    pub(super) fn title(&self) -> String {
        let Self { broker, cluster, version, uptime_seconds, .. } = self;
        format!("broker {broker} of {cluster}, corelog {version}, up {}", time(*uptime_seconds))
    }

    pub(super) fn shard_table(&self) -> Table {
        const HEADS: &[&str] = &[
            "shard",
            "partitions",
            "busy",
            "requests/s",
            "produce p99",
            "flush p99",
            "in/s",
            "out/s",
            "journal",
            "disk",
            "connections",
            "state",
        ];
        let row = |shard: &Shard| {
            vec![
                shard.shard.clone(),
                count(shard.partitions),
                format!("{:.0}%", 100.0 * shard.busy),
                count(shard.requests_per_second),
                shard.produce_p99_seconds.map_or_else(|| "-".to_owned(), latency),
                shard.flush_p99_seconds.map_or_else(|| "-".to_owned(), latency),
                bytes(shard.received_bytes_per_second),
                bytes(shard.sent_bytes_per_second),
                bytes(shard.journal_used_bytes),
                bytes(shard.disk_used_bytes),
                count(shard.connections),
                shard.state.to_owned(),
            ]
        };
        (HEADS, self.shards.iter().map(row).collect())
    }

    pub(super) fn topic_table(&self) -> Table {
        const HEADS: &[&str] =
            &["topic", "partitions", "records in/s", "in/s", "records out/s", "out/s", "size"];
        let row = |topic: &Topic| {
            vec![
                topic.topic.clone(),
                count(topic.partitions),
                count(topic.records_in_per_second),
                bytes(topic.bytes_in_per_second),
                count(topic.records_out_per_second),
                bytes(topic.bytes_out_per_second),
                bytes(topic.size_bytes),
            ]
        };
        (HEADS, self.topics.iter().map(row).collect())
    }

    pub(super) fn group_table(&self) -> Table {
        const HEADS: &[&str] =
            &["group", "topic", "members", "records behind", "bytes behind", "time behind"];
        let row = |group: &Group| {
            vec![
                group.group.clone(),
                group.topic.clone(),
                count(group.members),
                count(group.lag_records),
                bytes(group.lag_bytes),
                time(group.lag_seconds),
            ]
        };
        (HEADS, self.groups.iter().map(row).collect())
    }

    /// All of it as lines.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}\n", self.title());
        for (heads, rows) in [self.shard_table(), self.topic_table(), self.group_table()] {
            if !rows.is_empty() {
                let _ = write!(text, "\n{}", table(heads, rows.into_iter()));
            }
        }
        if self.groups_left_out {
            text += "there are more groups: see corelog group list\n";
        }
        text
    }

    pub(super) fn json(&self) -> String {
        // Numbers and strings: nothing in it can fail.
        serde_json::to_string(self).map(|json| json + "\n").unwrap_or_default()
    }
}

/// Two samples and the time between them.
struct Delta<'a> {
    before: &'a Sample,
    now: &'a Sample,
    seconds: f64,
}

impl Delta<'_> {
    /// How fast a counter rose; one that began anew counts from zero.
    fn rate(&self, name: &str, with: &[(&str, &str)]) -> f64 {
        let (now, before) = (self.now.sum(name, with), self.before.sum(name, with));
        let more = if now < before { now } else { now - before };
        if self.seconds > 0.0 { more / self.seconds } else { 0.0 }
    }

    fn shard(&self, shard: String) -> Shard {
        let with = [("shard", &shard[..])];
        let produce = [with[0], ("kind", "Produce")];
        let p99 = |name, with: &[(&str, &str)]| self.now.quantile(self.before, name, with, 0.99);
        let is = |name| self.now.sum(name, &with) > 0.0;
        Shard {
            partitions: self.now.sum("corelog_shard_partitions", &with),
            busy: self.rate("corelog_shard_busy_seconds_total", &with),
            requests_per_second: self.rate("corelog_request_duration_seconds_count", &with),
            produce_p99_seconds: p99("corelog_request_duration_seconds_bucket", &produce),
            flush_p99_seconds: p99("corelog_flush_duration_seconds_bucket", &with),
            received_bytes_per_second: self.rate("corelog_network_received_bytes_total", &with),
            sent_bytes_per_second: self.rate("corelog_network_sent_bytes_total", &with),
            journal_used_bytes: self.now.sum("corelog_journal_used_bytes", &with),
            disk_used_bytes: self.now.sum("corelog_disk_used_bytes", &with),
            connections: self.now.sum("corelog_connections", &with),
            state: match () {
                () if is("corelog_shard_poisoned") => "POISONED",
                () if is("corelog_shard_read_only") => "READ ONLY",
                () if is("corelog_shard_disk_full") => "DISK FULL",
                () => "ok",
            },
            shard,
        }
    }

    fn topic(&self, topic: String) -> Topic {
        let with = [("topic", &topic[..])];
        Topic {
            partitions: self.now.sum("corelog_topic_partitions", &with),
            records_in_per_second: self.rate("corelog_topic_records_in_total", &with),
            bytes_in_per_second: self.rate("corelog_topic_in_bytes_total", &with),
            records_out_per_second: self.rate("corelog_topic_records_out_total", &with),
            bytes_out_per_second: self.rate("corelog_topic_out_bytes_total", &with),
            size_bytes: self.now.sum("corelog_topic_size_bytes", &with),
            topic,
        }
    }
}

/// Each group in each of its topics.
fn groups(now: &Sample) -> Vec<Group> {
    let name = |labels: &Labels, label: &str| labels.get(label).cloned().unwrap_or_default();
    let members = now.all("corelog_group_members").iter();
    let members: BTreeMap<String, f64> =
        members.map(|(labels, number)| (name(labels, "group"), *number)).collect();
    let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
    for family in ["corelog_group_lag_records", "corelog_group_lag_bytes", "corelog_group_lag_seconds"] {
        for (labels, number) in now.all(family) {
            let (group, topic) = (name(labels, "group"), name(labels, "topic"));
            let row = groups.entry((group.clone(), topic.clone())).or_insert_with(|| Group {
                members: members.get(&group).copied().unwrap_or_default(),
                lag_records: 0.0,
                lag_bytes: 0.0,
                lag_seconds: 0.0,
                group,
                topic,
            });
            match family {
                "corelog_group_lag_records" => row.lag_records += number,
                "corelog_group_lag_bytes" => row.lag_bytes += number,
                _ => row.lag_seconds = row.lag_seconds.max(*number),
            }
        }
    }
    groups.into_values().collect()
}

fn count(number: f64) -> String {
    format!("{number:.0}")
}

fn bytes(number: f64) -> String {
    let mut number = number;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if number < 1024.0 {
            return if unit == "B" { format!("{number:.0} B") } else { format!("{number:.1} {unit}") };
        }
        number /= 1024.0;
    }
    format!("{number:.1} TiB")
}

fn latency(seconds: f64) -> String {
    match seconds {
        seconds if seconds.is_infinite() => "more".to_owned(),
        seconds if seconds < 0.01 => format!("{:.2} ms", seconds * 1e3),
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 60.0 => format!("{seconds:.1} s"),
        seconds if seconds < 3_600.0 => format!("{:.1} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.1} h", seconds / 3_600.0),
        seconds => format!("{:.1} days", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::{Sample, View, bytes, latency, time};

    #[test]
    fn rates_are_of_the_time_between_and_the_worst_comes_first() {
        let sample = |records: u64, lag: u64| {
            Sample::parse(&format!(
                "corelog_broker{{version=\"1\",cluster=\"c\",broker=\"7\"}} 1\ncorelog_shard_partitions{{shard=\"0\"}} 3\n\
                 corelog_topic_partitions{{topic=\"quiet\"}} 1\ncorelog_topic_partitions{{topic=\"busy\"}} 2\n\
                 corelog_topic_records_in_total{{topic=\"busy\"}} {records}\ncorelog_topic_in_bytes_total{{topic=\"busy\"}} {records}\n\
                 corelog_group_members{{group=\"g\"}} 1\ncorelog_group_lag_records{{group=\"g\",topic=\"busy\",partition=\"0\"}} {lag}\n\
                 corelog_group_lag_records{{group=\"g\",topic=\"busy\",partition=\"1\"}} 1\n\
                 corelog_group_lag_seconds{{group=\"g\",topic=\"busy\",partition=\"1\"}} 90\n\
                 corelog_group_lag_records{{group=\"g\",topic=\"quiet\",partition=\"0\"}} 0\n"
            ))
        };
        let (mut before, now) = (sample(1_000, 3), sample(3_000, 4));
        before.at = now.at.checked_sub(std::time::Duration::from_secs(2)).unwrap();
        let view = View::between(&before, &now);
        assert_eq!(view.title(), "broker 7 of c, corelog 1, up 0.0 s");
        assert_eq!(view.topic_table().1[0], ["busy", "2", "1000", "1000 B", "0", "0 B", "0 B"]);
        assert_eq!(view.group_table().1[0], ["g", "busy", "1", "5", "0 B", "1.5 min"]);
        assert!(view.text().contains("quiet") && view.json().contains("\"records_in_per_second\":1000.0"));
        // After a restart a counter begins anew.
        assert_eq!(View::between(&now, &sample(10, 0)).topics.len(), 2);
    }

    #[test]
    fn numbers_are_read_at_a_glance() {
        assert_eq!([bytes(0.0), bytes(1_536.0), bytes(5e12)], ["0 B", "1.5 KiB", "4.5 TiB"]);
        assert_eq!([latency(0.00042), latency(0.25), latency(3.0)], ["0.42 ms", "250 ms", "3.0 s"]);
        assert_eq!([time(5.0), time(7_200.0), time(1e6)], ["5.0 s", "2.0 h", "11.6 days"]);
    }
}
