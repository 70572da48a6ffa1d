//! The sections of the configuration as they are written. Every field may be left out; none is unknown.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use corelog_core::topic::quantity::{parse_bytes, parse_millis};
use corelog_core::topic::{ConfigError, ConfigKey, ConfigValue};
use serde::de::{Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Sections {
    pub(super) broker: Broker,
    pub(super) listen: Listen,
    pub(super) storage: Storage,
    pub(super) memory: Memory,
    pub(super) metadata: Metadata,
    pub(super) groups: Groups,
    pub(super) topic_defaults: TopicDefaults,
}

impl Sections {
    /// The sections' names, as in variables of the environment.
    pub(super) const NAMES: [&'static str; 7] =
        ["broker", "listen", "storage", "memory", "metadata", "groups", "topic_defaults"];
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Broker {
    pub(super) id: Option<u32>,
    pub(super) cluster: Option<String>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) shards: Option<u16>,
    pub(super) rack: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Listen {
    pub(super) address: Option<Address>,
    pub(super) advertised: Option<Endpoint>,
    pub(super) admin: Option<Address>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Storage {
    pub(super) disk_bytes_max: Option<Budget>,
    pub(super) journal_bytes: Option<Size>,
    pub(super) segment_pool_bytes: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Memory {
    pub(super) bytes_max: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metadata {
    pub(super) store: Option<String>,
    pub(super) endpoints: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Groups {
    pub(super) offsets_retention: Option<Time>,
}

/// Topic settings, each known and legal alone.
#[derive(Debug, Default)]
pub(super) struct TopicDefaults(BTreeMap<ConfigKey, ConfigValue>);

impl TopicDefaults {
    pub(super) fn into_pairs(self) -> impl Iterator<Item = (&'static str, String)> {
        self.0.into_iter().map(|(key, value)| (key.name(), value.to_string()))
    }
}

/// A number of bytes: `"64MiB"` or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// A time: `"7d"`, or a plain number of milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time(pub(super) Duration);

/// A number of bytes, or a share such as `"80%"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Budget {
    Bytes(u64),
    Percent(u64),
}

/// An address to listen on: `"127.0.0.1:9640"`, `"[::]:9640"`, `"localhost:9640"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(pub(super) SocketAddr);

/// A host, by name or number, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint(pub(super) String);

/// A value that is written as a text or as a number; anything else is refused by what was expected.
struct Scalar<T, F> {
    expected: &'static str,
    parse: F,
    as_is: std::marker::PhantomData<T>,
}

impl<T, F, M> Visitor<'_> for Scalar<T, F>
where
    F: Fn(&str) -> Result<T, M>,
    M: fmt::Display,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(|error| E::custom(format_args!("{text:?}: {error}")))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        (self.parse)(&number.to_string()).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
    }
}

fn scalar<'de, D, T, M>(
    deserializer: D,
    expected: &'static str,
    parse: impl Fn(&str) -> Result<T, M>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    M: fmt::Display,
{
    deserializer.deserialize_any(Scalar { expected, parse, as_is: std::marker::PhantomData })
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "a size such as \"64MiB\"", |text| parse_bytes(text).map(Self))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "a time such as \"7d\"", |text| {
            parse_millis(text).map(|millis| Self(Duration::from_millis(millis)))
        })
    }
}

impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "a size such as \"500GiB\" or a share such as \"80%\"", |text| {
            match text.trim().strip_suffix('%') {
                None => parse_bytes(text).map(Self::Bytes).map_err(|error| error.to_string()),
                Some(percent) => match percent.trim().parse() {
                    Ok(percent @ 1..=95) => Ok(Self::Percent(percent)),
                    _ => Err("expected a share from 1% to 95%".to_owned()),
                },
            }
        })
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "an address such as \"127.0.0.1:9640\"", |text| {
            let parsed = match text.strip_prefix("localhost:") {
                Some(port) => port.parse().ok().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
                None => text.parse().ok(),
            };
            parsed
                .map(Self)
                .ok_or("expected an IP address and a port, such as \"127.0.0.1:9640\" or \"[::]:9640\"")
        })
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "a host and a port such as \"broker-1.example:9640\"", |text| {
            let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
            let host = |host: &str| !host.is_empty() && !host.contains([' ', '/', '@']);
            match text.rsplit_once(':') {
                Some((name, number)) if host(name) && port(number) => Ok(Self(text.to_owned())),
                _ => Err("expected a host and a port, such as \"broker-1.example:9640\""),
            }
        })
    }
}

impl<'de> Deserialize<'de> for TopicDefaults {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TopicDefaultsVisitor)
    }
}

struct TopicDefaultsVisitor;

/// The text of a setting, whether it was written as a text or as a number.
struct SettingText(String);

impl<'de> Deserialize<'de> for SettingText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let take = |text: &str| Ok::<_, ConfigError>(Self(text.to_owned()));
        scalar(deserializer, "a text or a number", take)
    }
}

impl<'de> Visitor<'de> for TopicDefaultsVisitor {
    type Value = TopicDefaults;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("topic settings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TopicDefaults, A::Error> {
        let mut settings = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let key = ConfigKey::from_name(&name).map_err(A::Error::custom)?;
            let SettingText(text) = map.next_value()?;
            settings.insert(key, key.parse(&text).map_err(A::Error::custom)?);
        }
        Ok(TopicDefaults(settings))
    }
}
