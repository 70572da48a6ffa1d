//! Any text as a configuration file, variables of the environment and `--set` options. What is accepted can be
//! started from: its invariant is asked again.
//!
//! The input is pieces between zero bytes: the file; then options (`section.key=value`), variables where they start
//! with `CORELOG_`.
#![no_main]

use corelog_broker_fuzz::node::config::{Config, DevOptions, Host, SHARDS_MAX};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

/// In memory, one per process: several may run.
static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| PathBuf::from(format!("/dev/shm/corelog-fuzz-config-{}.toml", std::process::id())));

fuzz_target!(|data: &[u8]| {
    let mut pieces = data.split(|byte| *byte == 0);
    let file = pieces.next().unwrap_or_default();
    let texts: Vec<String> = pieces.map(|piece| String::from_utf8_lossy(piece).into_owned()).collect();
    let (variables, sets): (Vec<String>, Vec<String>) =
        texts.into_iter().partition(|text| text.starts_with("CORELOG_"));
    let split = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut environment: BTreeMap<String, String> = variables.iter().filter_map(split).collect();
    environment.insert("HOME".to_owned(), "/home/someone".to_owned());
    let host = Host { cpus: 4, memory_bytes: 8 << 30, environment };

    if std::fs::write(&*FILE, file).is_err() {
        return;
    }
    let read = Config::serve(Some(&FILE), &sets, &host);
    let _ = std::fs::remove_file(&*FILE);
    let options = DevOptions::default();
    for config in [read, Config::serve(None, &sets, &host), Config::dev(&options, &sets, &host)] {
        match config {
            Ok(config) => check(&config),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});

fn check(config: &Config) {
    assert!((1..=SHARDS_MAX).contains(&config.shards));
    assert!(config.broker.get() > 0 && !config.cluster.is_empty());
    assert!(!config.data_dir.as_os_str().is_empty());
    assert!(config.journal_bytes.is_multiple_of(1 << 20) && config.journal_bytes >= 64 << 20);
    assert!(config.memory_bytes_max > 0);
}
