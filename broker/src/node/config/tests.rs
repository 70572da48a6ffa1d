//! Layers, units, messages, absurd values.

use super::*;
use corelog_core::topic::{ConfigKey, ConfigValue, FullPolicy};

fn host() -> Host {
    let environment = BTreeMap::from([("HOME".to_owned(), "/home/ann".to_owned())]);
    Host { cpus: 4, memory_bytes: 8 << 30, environment }
}

fn with_env(variables: &[(&str, &str)]) -> Host {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Host { environment: variables.collect(), ..host() }
}

/// The configuration of a file with this text.
fn file(text: &str, sets: &[&str], host: &Host) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("corelog.toml");
    std::fs::write(&path, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Config::serve(Some(&path), &sets, host)
}

const DATA_DIR: &str = "[broker]\ndata_dir = \"/data\"\n";

/// The message, without the path of the temporary file.
fn message(result: Result<Config, ConfigError>) -> String {
    match result.unwrap_err() {
        ConfigError::File { what, .. } => what,
        error => error.to_string(),
    }
}

#[test]
fn defaults_are_those_of_the_format_page() {
    let config = file(DATA_DIR, &[], &host()).unwrap();
    assert_eq!(config.broker, BrokerId::new(1));
    assert_eq!(config.data_dir, Path::new("/data"));
    assert_eq!(config.shards, 4);
    assert_eq!(config.listen.to_string(), "127.0.0.1:9640");
    assert_eq!(config.admin.to_string(), "127.0.0.1:9644");
    assert_eq!(config.journal_bytes, 256 << 20);
    assert_eq!(config.segment_pool_bytes, 1 << 30);
    assert_eq!(config.disk_bytes_max, DiskBudget::Percent(80));
    assert_eq!(config.disk_bytes_max.bytes_of(1_000), 800);
    assert!(!config.auto_create);
    assert!(config.topic_defaults.is_empty());
}

#[test]
fn every_key_of_the_format_page_is_read() {
    let config = file(
        r#"
[broker]
id = 7
cluster = "prod"
data_dir = "/var/lib/corelog"
shards = 2
rack = "a"
[listen]
address = "0.0.0.0:9640"
advertised = "broker-7.example:9640"
admin = "localhost:9700"
[storage]
disk_bytes_max = "500GiB"
journal_bytes = "1GiB"
segment_pool_bytes = 1073741824
[memory]
bytes_max = "4GiB"
[metadata]
store = "embedded"
endpoints = []
[groups]
offsets_retention = "30d"
[topic_defaults]
retention_ms = "1d"
full_policy = "drop-oldest"
segment_bytes = 67108864
"#,
        &[],
        &host(),
    )
    .unwrap();
    assert_eq!(config.broker, BrokerId::new(7));
    assert_eq!((config.cluster.as_str(), config.shards, config.rack.as_deref()), ("prod", 2, Some("a")));
    assert_eq!(config.advertised.as_deref(), Some("broker-7.example:9640"));
    assert_eq!(config.admin.to_string(), "127.0.0.1:9700");
    assert_eq!(config.disk_bytes_max, DiskBudget::Bytes(500 << 30));
    assert_eq!((config.journal_bytes, config.segment_pool_bytes), (1 << 30, 1 << 30));
    assert_eq!(config.memory_bytes_max, 4 << 30);
    assert_eq!(config.offsets_retention, std::time::Duration::from_hours(30 * 24));
    let defaults: Vec<_> = config.topic_defaults.iter().collect();
    assert_eq!(
        defaults,
        [
            (ConfigKey::FullPolicy, &ConfigValue::FullPolicy(FullPolicy::DropOldest)),
            (ConfigKey::RetentionMs, &ConfigValue::Number(86_400_000)),
            (ConfigKey::SegmentBytes, &ConfigValue::Number(64 << 20)),
        ]
    );
}

#[test]
fn later_layers_win() {
    let text = "[broker]\ndata_dir = \"/file\"\nshards = 1\ncluster = \"file\"\n[topic_defaults]\nretention_ms = \"1h\"\n";
    let host = with_env(&[
        ("CORELOG_BROKER_CLUSTER", "env"),
        ("CORELOG_BROKER_SHARDS", "2"),
        ("CORELOG_TOPIC_DEFAULTS_RETENTION_MS", "2h"),
        ("CORELOG_TOPIC_DEFAULTS_DURABILITY", "memory"),
        ("CORELOG_BOOTSTRAP", "elsewhere:1"),
        ("CORELOG_BUILD", "x"),
    ]);
    let config = file(text, &["broker.shards=3", "storage.journal_bytes = 64MiB"], &host).unwrap();
    assert_eq!(config.data_dir, Path::new("/file"));
    assert_eq!(config.cluster, "env");
    assert_eq!(config.shards, 3);
    assert_eq!(config.journal_bytes, 64 << 20);
    let defaults: Vec<String> = config.topic_defaults.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(defaults, ["durability=memory", "retention_ms=7200000"]);
}

#[test]
fn overrides_are_read_as_what_their_key_takes() {
    let sets = [
        "broker.cluster=7",
        "broker.id=3",
        "metadata.endpoints=[]",
        "listen.address=[::1]:1234",
        "memory.bytes_max=2147483648",
    ];
    let config = file(DATA_DIR, &sets, &host()).unwrap();
    assert_eq!((config.cluster.as_str(), config.broker), ("7", BrokerId::new(3)));
    assert_eq!(config.listen.to_string(), "[::1]:1234");
    assert_eq!(config.memory_bytes_max, 2 << 30);
    let sets = ["broker.data_dir=/a=b", "storage.disk_bytes_max=50%"];
    let config = file("", &sets, &host()).unwrap();
    assert_eq!(config.data_dir, Path::new("/a=b"));
    assert_eq!(config.disk_bytes_max, DiskBudget::Percent(50));
}

#[test]
fn unknown_keys_of_the_file_are_shown_where_they_are() {
    let text = "[broker]\ndata_dir = \"/data\"\n[storage]\njournal_byte = \"1GiB\"\n";
    assert_eq!(
        message(file(text, &[], &host())),
        "TOML parse error at line 4, column 1\n  |\n4 | journal_byte = \"1GiB\"\n  | ^^^^^^^^^^^^\n\
         unknown field `journal_byte`, expected one of `disk_bytes_max`, `journal_bytes`, `segment_pool_bytes`\n"
    );
    let section = message(file("[brokre]\nid = 1\n", &[], &host()));
    assert!(section.contains("line 1, column 2"), "{section}");
    assert!(section.contains("unknown field `brokre`, expected one of `broker`"), "{section}");
    let topic = message(file("[topic_defaults]\nretention.ms = 5\n", &[], &host()));
    assert!(topic.contains("unknown topic setting \"retention\"; known are batch_bytes_max"), "{topic}");
}

#[test]
fn absurd_values_of_the_file_are_shown_where_they_are() {
    for (text, place, said) in [
        ("[storage]\njournal_bytes = \"1 gigabyte\"", "line 2, column 17", "expected a size"),
        ("[storage]\njournal_bytes = -1", "line 2, column 17", "expected a size such as \"64MiB\""),
        ("[storage]\njournal_bytes = true", "line 2, column 17", "expected a size such as \"64MiB\""),
        ("[storage]\njournal_bytes = 1.5", "line 2, column 17", "expected a size such as \"64MiB\""),
        ("[storage]\ndisk_bytes_max = \"100%\"", "line 2, column 18", "expected a share from 1% to 95%"),
        ("[memory]\nbytes_max = \"99999999TiB\"", "line 2, column 13", "too large"),
        ("[listen]\naddress = \"here\"", "line 2, column 11", "expected an IP address and a port"),
        ("[listen]\naddress = \"127.0.0.1:99999\"", "line 2, column 11", "expected an IP address and a port"),
        ("[listen]\nadvertised = \"broker\"", "line 2, column 14", "expected a host and a port"),
        ("[broker]\nid = -1", "line 2, column 6", "expected u32"),
        ("[broker]\nid = \"one\"", "line 2, column 6", "expected u32"),
        ("[broker]\nshards = 70000", "line 2, column 10", "expected u16"),
        ("[broker\nid = 1", "line 1", ""),
        ("[broker]\nid = 1\nid = 2", "line 3", "duplicate key"),
        ("[topic_defaults]\ndurability = \"flash\"", "line", "allowed: disk or memory"),
        ("[topic_defaults]\ndurability = []", "line 2", "expected a text or a number"),
    ] {
        let message = message(file(text, &[], &host()));
        assert!(message.contains(place) && message.contains(said), "{text:?} gave {message}");
    }
}

#[test]
fn absurd_overrides_are_named_by_where_they_came_from() {
    for (set, said) in [
        ("storage", "--set storage: expected section.key=value"),
        ("storage=1", "--set storage=1: expected section.key=value"),
        ("storage.journal_byte=1", "--set storage.journal_byte=1: unknown field `journal_byte`"),
        ("storage.journal_bytes=lots", "--set storage.journal_bytes=lots: \"lots\": expected a size"),
        ("nothing.at=all", "--set nothing.at=all: unknown field `nothing`"),
        ("broker.shards=many", "--set broker.shards=many: invalid type: string \"many\", expected u16"),
        ("groups.offsets_retention=soon", "expected a "),
        ("groups.offsets_retention=5s", "a time of at least 1m"),
        ("topic_defaults.full_policy=protect", "does not take \"protect\""),
    ] {
        let error = file(DATA_DIR, &[set], &host()).unwrap_err().to_string();
        assert!(error.contains(said), "{set} gave {error}");
    }
    let host = with_env(&[("CORELOG_STORAGE_JOURNAL_BYTE", "1GiB")]);
    let error = file(DATA_DIR, &[], &host).unwrap_err().to_string();
    assert!(error.starts_with("CORELOG_STORAGE_JOURNAL_BYTE: unknown field `journal_byte`"), "{error}");
}

#[test]
fn what_cannot_be_started_is_refused_with_what_could() {
    for (sets, said) in [
        (&["broker.id=0"][..], "broker.id = 0 cannot be used: use a number from 1"),
        (&["broker.shards=0"], "broker.shards = 0 cannot be used: use 1 to 256"),
        (&["broker.shards=257"], "broker.shards = 257 cannot be used"),
        (&["broker.cluster=a/b"], "broker.cluster = \"a/b\" cannot be used: a cluster name has"),
        (&["broker.data_dir="], "broker.data_dir is missing"),
        (&["storage.journal_bytes=1MiB"], "storage.journal_bytes = 1MiB cannot be used: use 64MiB to 64GiB"),
        (&["storage.journal_bytes=67108865"], "in steps of 1MiB"),
        (&["storage.journal_bytes=16777215TiB"], "cannot be used: use 64MiB to 64GiB"),
        (
            &["storage.disk_bytes_max=1GiB"],
            "storage.disk_bytes_max = 1GiB cannot be used: 4 shards with journals of 256MiB need at least 4GiB",
        ),
        (
            &["storage.disk_bytes_max=5GiB", "storage.segment_pool_bytes=6GiB"],
            "storage.segment_pool_bytes = 6GiB cannot be used",
        ),
        (
            &["memory.bytes_max=100MiB"],
            "memory.bytes_max = 100MiB cannot be used: 4 shards with journals of 256MiB need at least 1280MiB, 64MiB \
             and a journal each: allow more, or use fewer broker.shards",
        ),
        (&["listen.admin=127.0.0.1:9640"], "listen.address uses it already"),
        (&["listen.address=0.0.0.0:9640"], "listen.advertised is missing"),
        (&["metadata.store=etcd"], "metadata.store = etcd cannot be used: not served yet"),
        (&["metadata.store=sqlite"], "metadata.store = \"sqlite\" cannot be used"),
        (&["metadata.endpoints=[\"a:1\"]"], "metadata.endpoints = [\"a:1\"] cannot be used"),
        (
            &["topic_defaults.segment_bytes=1MiB"],
            "[topic_defaults]: topic setting batch_bytes_max (8388608) is too large",
        ),
    ] {
        let error = file(DATA_DIR, sets, &host()).unwrap_err().to_string();
        assert!(error.contains(said), "{sets:?} gave {error}");
    }
}

#[test]
fn memory_holds_what_is_in_the_journals_and_no_segment_yet() {
    let least = "memory.bytes_max=1280MiB";
    assert!(file(DATA_DIR, &[least], &host()).is_ok());
    let larger = file(DATA_DIR, &[least, "storage.journal_bytes=257MiB"], &host()).unwrap_err();
    assert!(larger.to_string().contains("at least 1284MiB"), "{larger}");
    assert!(file(DATA_DIR, &["memory.bytes_max=512MiB", "storage.journal_bytes=64MiB"], &host()).is_ok());
    // By default half of the machine's memory, which may be too little for a shard on each CPU.
    let small = Host { memory_bytes: 2 << 30, ..host() };
    let error = file(DATA_DIR, &[], &small).unwrap_err().to_string();
    assert!(error.contains("use fewer broker.shards or smaller storage.journal_bytes"), "{error}");
    assert!(file(DATA_DIR, &["broker.shards=3"], &small).is_ok());
}

#[test]
fn settings_without_effect_are_named() {
    assert!(file(DATA_DIR, &[], &host()).unwrap().ineffective.is_empty());
    let config = file(DATA_DIR, &["broker.rack=a", "storage.segment_pool_bytes=1GiB"], &host()).unwrap();
    assert_eq!(config.ineffective, ["broker.rack"]);
}

#[test]
fn a_missing_file_and_a_missing_directory_are_said() {
    let error = Config::serve(Some(Path::new("/nonexistent.toml")), &[], &host()).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot read the configuration file /nonexistent.toml: No such file"),
        "{error}"
    );
    let error = Config::serve(None, &[], &host()).unwrap_err();
    assert!(matches!(error, ConfigError::Missing { key: "broker.data_dir", .. }), "{error}");
}

#[test]
fn dev_needs_nothing_and_stays_on_loopback() {
    let config = Config::dev(&DevOptions::default(), &[], &host()).unwrap();
    assert_eq!(config.data_dir, Path::new("/home/ann/.local/share/corelog/dev"));
    assert_eq!((config.shards, config.journal_bytes, config.segment_pool_bytes), (1, 64 << 20, 0));
    assert_eq!(config.disk_bytes_max, DiskBudget::Bytes(10 << 30));
    assert!(config.auto_create && config.listen.ip().is_loopback() && config.admin.ip().is_loopback());

    let data_home = with_env(&[("XDG_DATA_HOME", "/data"), ("HOME", "/home/ann")]);
    let config = Config::dev(&DevOptions::default(), &[], &data_home).unwrap();
    assert_eq!(config.data_dir, Path::new("/data/corelog/dev"));
    let relative = with_env(&[("XDG_DATA_HOME", "data"), ("HOME", "/home/ann")]);
    let config = Config::dev(&DevOptions::default(), &[], &relative).unwrap();
    assert_eq!(config.data_dir, Path::new("/home/ann/.local/share/corelog/dev"));
    let error = Config::dev(&DevOptions::default(), &[], &with_env(&[])).unwrap_err().to_string();
    assert!(error.contains("--data-dir"), "{error}");

    let options =
        DevOptions { data_dir: Some("/d".into()), port: Some(0), admin_port: Some(0), shards: Some(2) };
    let config = Config::dev(&options, &["storage.journal_bytes=128MiB".to_owned()], &with_env(&[])).unwrap();
    assert_eq!((config.listen.port(), config.admin.port(), config.shards), (0, 0, 2));
    assert_eq!(config.journal_bytes, 128 << 20);
    assert!(Config::dev(&DevOptions { shards: Some(0), ..options }, &[], &host()).is_err());
}

#[test]
fn this_machine_is_seen() {
    let host = Host::probe();
    assert!(host.cpus >= 1);
    assert!(host.memory_bytes > 64 << 20);
}
