//! Lays the layers over each other: the file, the environment, the options.
//!
//! Each layer is read into [`Sections`] alone, for the sake of its error message; then their tables are merged, key by
//! key, and read again.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize as _;
use toml::{Table, Value};

use super::ConfigError;
use super::sections::Sections;

const PREFIX: &str = "CORELOG_";

pub(super) fn merged(
    file: Option<&Path>,
    environment: &BTreeMap<String, String>,
    sets: &[String],
) -> Result<Sections, ConfigError> {
    let mut table = match file {
        Some(path) => read_file(path)?,
        None => Table::new(),
    };
    for (name, text) in environment {
        if let Some((section, key)) = variable(name) {
            let layer = layer(name, section, &key, text)?;
            merge(&mut table, layer);
        }
    }
    for set in sets {
        let origin = format!("--set {set}");
        let malformed = || ConfigError::Override {
            origin: origin.clone(),
            what: "expected section.key=value, such as storage.journal_bytes=1GiB".to_owned(),
        };
        let (path, text) = set.split_once('=').ok_or_else(malformed)?;
        let (section, key) = path.trim().split_once('.').ok_or_else(malformed)?;
        merge(&mut table, layer(&origin, section, key, text.trim())?);
    }
    // Each layer was read alone, so that this cannot fail; if it does, the message still says what.
    Sections::deserialize(table).map_err(|error| ConfigError::Override {
        origin: "the configuration".to_owned(),
        what: error.to_string(),
    })
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let in_file =
        |error: toml::de::Error| ConfigError::File { path: path.to_owned(), what: error.to_string() };
    toml::from_str::<Sections>(&text).map_err(in_file)?;
    toml::from_str(&text).map_err(in_file)
}

/// The section and key of a variable: `CORELOG_TOPIC_DEFAULTS_RETENTION_MS` is `topic_defaults.retention_ms`. Variables
/// of other programs that start alike, such as `CORELOG_BOOTSTRAP`, are none.
fn variable(name: &str) -> Option<(&'static str, String)> {
    let rest = name.strip_prefix(PREFIX)?.to_ascii_lowercase();
    Sections::NAMES.into_iter().find_map(|section| {
        let key = rest.strip_prefix(section)?.strip_prefix('_')?;
        Some((section, key.to_owned()))
    })
}

/// A table of one value. The text is what TOML makes of it (a number, a list), or else, or if that does not fit, a
/// plain text.
fn layer(origin: &str, section: &str, key: &str, text: &str) -> Result<Table, ConfigError> {
    let plain = Value::String(text.to_owned());
    let parsed =
        toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut line| line.remove("value"));
    let table = |value: Value| {
        Table::from_iter([(section.to_owned(), Value::Table(Table::from_iter([(key.to_owned(), value)])))])
    };
    let check = |value: &Value| Sections::deserialize(table(value.clone())).map(drop);
    let refused = |error: toml::de::Error| ConfigError::Override {
        origin: origin.to_owned(),
        what: error.message().to_owned(),
    };
    match parsed {
        None => check(&plain).map_err(refused).map(|()| table(plain)),
        Some(parsed) => match check(&parsed) {
            Ok(()) => Ok(table(parsed)),
            // `cluster=7` is a text that looks like a number.
            Err(error) => check(&plain).map_err(|_| refused(error)).map(|()| table(plain)),
        },
    }
}

fn merge(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}
