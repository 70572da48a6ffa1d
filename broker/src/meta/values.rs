//! How values are written: JSON that carries its version, readable with etcdctl.
//!
//! Every value is one object whose `version` says how to read the rest. A newer version is refused, because what it
//! means is unknown and writing it back would lose it; within a version every field is known. Golden texts in the
//! tests below keep version 1 as it is.

use std::collections::BTreeMap;

use bytes::Bytes;
use corelog_core::meta::keys::{Keys, Subject};
use corelog_core::meta::values::{
    BrokerValue, ControllerValue, DataDirId, DeletedValue, PartitionValue, ProcessId, ProducerIdsValue,
    ReplicaIdentity, TopicValue, Value,
};
use corelog_core::meta::{Event, Key, KeyValue, Range, Txn, VALUE_BYTES_MAX};
use corelog_core::topic::TopicOverrides;
use corelog_wire::ids::{BrokerId, LeaderEpoch, TopicId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The version that is written.
pub(super) const VERSION: u32 = 1;

/// Why a stored value cannot be read, or a value cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ValueError {
    /// Written by a newer broker.
    #[error(
        "metadata key {key} has version {version}; this broker reads up to {VERSION}: run a newer broker"
    )]
    Newer {
        /// The key.
        key: Key,
        /// Its version.
        version: u32,
    },
    /// Not what this version writes.
    #[error("metadata key {key} holds no valid value: {what}")]
    Malformed {
        /// The key.
        key: Key,
        /// What is wrong with it.
        what: String,
    },
    /// Larger than a store takes.
    #[error(
        "the value of metadata key {key} would have {bytes} bytes; at most {VALUE_BYTES_MAX} are allowed"
    )]
    TooLarge {
        /// The key.
        key: Key,
        /// Its length.
        bytes: usize,
    },
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Topic {
    version: u32,
    id: String,
    partitions: u32,
    replication_factor: u16,
    #[serde(default)]
    config: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Partition {
    version: u32,
    replicas: Vec<u32>,
    leader: Option<u32>,
    leader_epoch: u32,
    isr: Vec<Member>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    broker: u32,
    data_dir: String,
    process: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deleted {
    version: u32,
    name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProducerIds {
    version: u32,
    next: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Broker {
    version: u32,
    address: String,
    shards: u16,
    rack: Option<String>,
    data_dir: String,
    process: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Controller {
    version: u32,
    broker: u32,
}

/// Writes a value.
///
/// # Errors
/// [`ValueError::TooLarge`].
pub fn encode(key: &Key, value: &Value) -> Result<Bytes, ValueError> {
    match value {
        Value::Topic(topic) => write(
            key,
            &Topic {
                version: VERSION,
                id: topic.id.to_string(),
                partitions: topic.partitions,
                replication_factor: topic.replication_factor,
                config: topic
                    .overrides
                    .iter()
                    .map(|(key, value)| (key.to_string(), value.to_string()))
                    .collect(),
            },
        ),
        Value::Partition(partition) => write(
            key,
            &Partition {
                version: VERSION,
                replicas: partition.replicas.iter().map(|broker| broker.get()).collect(),
                leader: partition.leader.map(BrokerId::get),
                leader_epoch: partition.leader_epoch.get(),
                isr: partition.isr.iter().map(member).collect(),
            },
        ),
        Value::Deleted(DeletedValue { name }) => {
            write(key, &Deleted { version: VERSION, name: name.clone() })
        }
        Value::ProducerIds(ProducerIdsValue { next }) => {
            write(key, &ProducerIds { version: VERSION, next: *next })
        }
        Value::Broker(broker) => write(
            key,
            &Broker {
                version: VERSION,
                address: broker.address.clone(),
                shards: broker.shards,
                rack: broker.rack.clone(),
                data_dir: hex(broker.data_dir.as_bytes()),
                process: hex(&broker.process.get().to_be_bytes()),
            },
        ),
        Value::Controller(ControllerValue { broker }) => {
            write(key, &Controller { version: VERSION, broker: broker.get() })
        }
    }
}

/// Reads a value of a subject; none for a subject that is not the control plane's, or that this version does not know.
///
/// # Errors
/// [`ValueError`].
pub fn decode(keys: &Keys, key: &Key, bytes: &[u8]) -> Result<Option<Value>, ValueError> {
    let subject = keys.subject(key);
    let value = match subject {
        Subject::Topic(_) => Value::Topic(topic(key, read(key, bytes)?)?),
        Subject::Partition(_) => Value::Partition(partition(key, read(key, bytes)?)?),
        Subject::Deleted(_) => {
            let Deleted { name, .. } = read(key, bytes)?;
            Value::Deleted(DeletedValue { name })
        }
        Subject::ProducerIds => {
            let ProducerIds { next, .. } = read(key, bytes)?;
            Value::ProducerIds(ProducerIdsValue { next })
        }
        Subject::Broker(_) => Value::Broker(broker(key, read(key, bytes)?)?),
        Subject::Controller => {
            let Controller { broker, .. } = read(key, bytes)?;
            Value::Controller(ControllerValue { broker: BrokerId::new(broker) })
        }
        // Groups have values of their own.
        Subject::Group(_) | Subject::Offsets(..) | Subject::Unknown => return Ok(None),
    };
    Ok(Some(value))
}

/// Writes the values of a transaction.
///
/// # Errors
/// [`ValueError::TooLarge`].
pub fn encode_txn(txn: Txn<Value>) -> Result<Txn, ValueError> {
    txn.try_map(|key, value| encode(key, &value))
}

/// Reads all values of a range; those of unknown subjects are left out.
///
/// # Errors
/// [`ValueError`].
pub fn decode_range(keys: &Keys, range: Range) -> Result<Range<Value>, ValueError> {
    let mut entries = Vec::with_capacity(range.entries.len());
    for entry in range.entries {
        entries.extend(decode_entry(keys, entry)?);
    }
    Ok(Range { revision: range.revision, entries })
}

/// Reads the value of a change; none if its subject is unknown.
///
/// # Errors
/// [`ValueError`].
pub fn decode_event(keys: &Keys, event: Event) -> Result<Option<Event<Value>>, ValueError> {
    match event {
        Event::Put(entry) => Ok(decode_entry(keys, entry)?.map(Event::Put)),
        Event::Delete { key, revision } => Ok(Some(Event::Delete { key, revision })),
    }
}

fn decode_entry(keys: &Keys, entry: KeyValue) -> Result<Option<KeyValue<Value>>, ValueError> {
    let KeyValue { key, value, create_revision, mod_revision } = entry;
    let value = decode(keys, &key, &value)?;
    Ok(value.map(|value| KeyValue { key, value, create_revision, mod_revision }))
}

/// Reads an object of a version that this broker knows.
pub(super) fn read<'a, T: Deserialize<'a>>(key: &Key, bytes: &'a [u8]) -> Result<T, ValueError> {
    let Version { version } = serde_json::from_slice(bytes).map_err(|error| malformed(key, error))?;
    if version > VERSION {
        return Err(ValueError::Newer { key: key.clone(), version });
    }
    if version == 0 {
        return Err(malformed(key, "version 0"));
    }
    serde_json::from_slice(bytes).map_err(|error| malformed(key, error))
}

/// Writes an object.
pub(super) fn write(key: &Key, value: &impl Serialize) -> Result<Bytes, ValueError> {
    let written = serde_json::to_vec(value).map_err(|error| malformed(key, error))?;
    if written.len() > VALUE_BYTES_MAX {
        return Err(ValueError::TooLarge { key: key.clone(), bytes: written.len() });
    }
    Ok(written.into())
}

pub(super) fn malformed(key: &Key, what: impl std::fmt::Display) -> ValueError {
    ValueError::Malformed { key: key.clone(), what: what.to_string() }
}

fn topic(key: &Key, topic: Topic) -> Result<TopicValue, ValueError> {
    let id: TopicId = topic.id.parse().map_err(|error| malformed(key, error))?;
    let overrides = TopicOverrides::from_pairs(topic.config).map_err(|error| malformed(key, error))?;
    let Topic { partitions, replication_factor, .. } = topic;
    Ok(TopicValue { id, partitions, replication_factor, overrides })
}

fn partition(key: &Key, partition: Partition) -> Result<PartitionValue, ValueError> {
    let mut isr = Vec::with_capacity(partition.isr.len());
    for Member { broker, data_dir, process } in partition.isr {
        isr.push(ReplicaIdentity {
            broker: BrokerId::new(broker),
            data_dir: read_data_dir(key, &data_dir)?,
            process: read_process(key, &process)?,
        });
    }
    Ok(PartitionValue {
        replicas: partition.replicas.into_iter().map(BrokerId::new).collect(),
        leader: partition.leader.map(BrokerId::new),
        leader_epoch: LeaderEpoch::new(partition.leader_epoch),
        isr,
    })
}

fn broker(key: &Key, broker: Broker) -> Result<BrokerValue, ValueError> {
    Ok(BrokerValue {
        data_dir: read_data_dir(key, &broker.data_dir)?,
        process: read_process(key, &broker.process)?,
        address: broker.address,
        shards: broker.shards,
        rack: broker.rack,
    })
}

fn member(member: &ReplicaIdentity) -> Member {
    Member {
        broker: member.broker.get(),
        data_dir: hex(member.data_dir.as_bytes()),
        process: hex(&member.process.get().to_be_bytes()),
    }
}

fn read_data_dir(key: &Key, text: &str) -> Result<DataDirId, ValueError> {
    unhex(text)
        .map(DataDirId::from_bytes)
        .ok_or_else(|| malformed(key, "data_dir is not 32 hexadecimal digits"))
}

/// As text: JSON readers that know only doubles would spoil a 64-bit number.
fn read_process(key: &Key, text: &str) -> Result<ProcessId, ValueError> {
    let process = unhex(text).map(|bytes| ProcessId::new(u64::from_be_bytes(bytes)));
    process.ok_or_else(|| malformed(key, "process is not 16 hexadecimal digits"))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits: Vec<u32> = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| u8::try_from(high << 4 | low).ok()).collect();
    if rest.is_empty() { bytes?.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corelog_core::topic::TopicName;
    use corelog_wire::ids::TopicPartition;

    fn keys() -> Keys {
        Keys::new("test").unwrap()
    }

    fn identity() -> ReplicaIdentity {
        ReplicaIdentity {
            broker: BrokerId::new(1),
            data_dir: DataDirId::from_bytes([0xd1; 16]),
            process: ProcessId::new(0x00ff_1234_5678_9abc),
        }
    }

    fn id() -> TopicId {
        TopicId::from_bytes([7; 16])
    }

    /// Every kind of value with its key and the bytes that version 1 writes.
    fn golden() -> Vec<(Key, Value, &'static str)> {
        let overrides =
            TopicOverrides::from_pairs([("retention_ms", "7d"), ("durability", "memory")]).unwrap();
        let topic = TopicValue { id: id(), partitions: 3, replication_factor: 1, overrides };
        let partition = PartitionValue {
            replicas: vec![BrokerId::new(1)],
            leader: Some(BrokerId::new(1)),
            leader_epoch: LeaderEpoch::new(5),
            isr: vec![identity()],
        };
        let broker = BrokerValue {
            address: "127.0.0.1:9640".into(),
            shards: 2,
            rack: None,
            data_dir: identity().data_dir,
            process: identity().process,
        };
        let keys = keys();
        vec![
            (
                keys.topic(&TopicName::new("orders").unwrap()),
                Value::Topic(topic),
                r#"{"version":1,"id":"07070707-0707-0707-0707-070707070707","partitions":3,"replication_factor":1,"config":{"durability":"memory","retention_ms":"604800000"}}"#,
            ),
            (
                keys.partition(TopicPartition::new(id(), 2)),
                Value::Partition(partition),
                r#"{"version":1,"replicas":[1],"leader":1,"leader_epoch":5,"isr":[{"broker":1,"data_dir":"d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1","process":"00ff123456789abc"}]}"#,
            ),
            (
                keys.deleted(id()),
                Value::Deleted(DeletedValue { name: "orders".into() }),
                r#"{"version":1,"name":"orders"}"#,
            ),
            (
                keys.producer_ids(),
                Value::ProducerIds(ProducerIdsValue { next: 2_000 }),
                r#"{"version":1,"next":2000}"#,
            ),
            (
                keys.broker(BrokerId::new(1)),
                Value::Broker(broker),
                r#"{"version":1,"address":"127.0.0.1:9640","shards":2,"rack":null,"data_dir":"d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1","process":"00ff123456789abc"}"#,
            ),
            (
                keys.controller(),
                Value::Controller(ControllerValue { broker: BrokerId::new(1) }),
                r#"{"version":1,"broker":1}"#,
            ),
        ]
    }

    #[test]
    fn version_1_is_written_and_read_as_it_always_was() {
        for (key, value, text) in golden() {
            assert_eq!(encode(&key, &value).unwrap(), text.as_bytes(), "{key}");
            assert_eq!(decode(&keys(), &key, text.as_bytes()), Ok(Some(value)), "{key}");
        }
    }

    #[test]
    fn newer_versions_are_refused_whatever_else_they_hold() {
        for (key, _, _) in golden() {
            let newer = decode(&keys(), &key, br#"{"version":2,"anything":[]}"#);
            assert_eq!(newer, Err(ValueError::Newer { key, version: 2 }));
        }
    }

    #[test]
    fn every_damaged_value_is_an_error_and_never_a_panic() {
        for (key, value, text) in golden() {
            for end in 0..text.len() {
                assert!(decode(&keys(), &key, &text.as_bytes()[..end]).is_err(), "{key} cut at {end}");
            }
            for at in 0..text.len() {
                let mut bytes = text.as_bytes().to_vec();
                bytes[at] = b'~';
                let read = decode(&keys(), &key, &bytes);
                assert_ne!(read, Ok(Some(value.clone())), "{key} at {at}");
            }
            let more = text.replacen('{', r#"{"surprise":1,"#, 1);
            assert!(decode(&keys(), &key, more.as_bytes()).is_err());
        }
        let key = keys().producer_ids();
        for bytes in
            [&b""[..], b"null", b"[]", b"{}", b"\xff\xfe", br#"{"version":0,"next":1}"#, br#"{"version":-1}"#]
        {
            assert!(decode(&keys(), &key, bytes).is_err());
        }
    }

    #[test]
    fn unknown_subjects_are_left_alone() {
        let key = Key::new("/corelog/test/shadows/1");
        assert_eq!(decode(&keys(), &key, b"not even json"), Ok(None));
    }

    #[test]
    fn a_value_too_large_for_a_store_is_refused() {
        let key = keys().deleted(id());
        let value = Value::Deleted(DeletedValue { name: "x".repeat(VALUE_BYTES_MAX) });
        assert!(matches!(encode(&key, &value), Err(ValueError::TooLarge { .. })));
    }
}
