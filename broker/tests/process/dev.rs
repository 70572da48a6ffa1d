//! `corelog dev` as a new user meets it: quick, small, on loopback, clean to stop, and honest about what it found.

use crate::support::{Broker, CORELOG, data_folder, get, path};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The most that an idle broker with one shard may have resident: 60 MB.
const IDLE_BYTES_MAX: u64 = 60_000_000;
/// The longest that a start on an empty directory may take, the process's own start included.
const READY_MAX: Duration = Duration::from_millis(150);

#[test]
fn an_empty_directory_is_served_quickly() {
    let mut best = Duration::MAX;
    // What else goes on here disturbs some of the starts.
    for _ in 0..10 {
        let folder = data_folder();
        let broker = Broker::dev(folder.path(), 0, 1);
        best = best.min(broker.took);
        assert_eq!(broker.interrupt(), Some(0));
        if best <= READY_MAX {
            break;
        }
    }
    println!("ready after {best:?}");
    assert!(best <= READY_MAX, "ready after {best:?} at the best");
}

#[test]
fn a_new_broker_is_small_and_stops_cleanly_and_the_second_start_says_what_it_recovered() {
    let folder = data_folder();
    let broker = Broker::dev(folder.path(), 0, 1);
    assert!(broker.address.starts_with("127.0.0.1:"), "loopback only: {}", broker.address);
    assert!(broker.said.contains("new"), "{}", broker.said);
    let idle = broker.resident_kib() * 1_024;
    println!("{idle} bytes resident when ready");
    assert!(idle <= IDLE_BYTES_MAX, "{idle} bytes resident");
    let ready: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path(&folder, "ready.json")).unwrap()).unwrap();
    assert_eq!(ready["address"], broker.address.as_str());
    assert!(broker.get("/healthz").starts_with("HTTP/1.1 200"));
    assert!(broker.get("/readyz").starts_with("HTTP/1.1 200"));
    broker.succeed(&["produce", "greetings"], b"hello\nworld\n");
    assert!(broker.get("/metrics").contains("corelog_"));
    let port = broker.port();
    assert_eq!(broker.interrupt(), Some(0));
    assert!(!path(&folder, "ready.json").exists(), "a stopped broker is not ready");

    let broker = Broker::dev(folder.path(), port, 1);
    assert!(broker.said.contains("recovered") && broker.said.contains("2 records"), "{}", broker.said);
    assert_eq!(
        broker.succeed(&["consume", "greetings", "--from", "earliest", "--until-end"], b""),
        b"hello\nworld\n"
    );
}

/// Runs a broker that must refuse to start; gives its exit code and what it said.
fn refused(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(CORELOG).args(args).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_second_broker_is_refused_on_the_same_data_and_on_the_same_port() {
    let folder = data_folder();
    let data = path(&folder, "data");
    let broker = Broker::dev(&data, 0, 1);
    let port = broker.port().to_string();
    let (code, said) =
        refused(&["dev", "--data-dir", data.to_str().unwrap(), "--port", "0", "--admin-port", "0"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("in use") && said.contains(&broker.pid().to_string()), "{said}");
    let other = path(&folder, "other");
    let (code, said) =
        refused(&["dev", "--data-dir", other.to_str().unwrap(), "--port", &port, "--admin-port", "0"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("in use"), "{said}");
}

#[test]
fn another_shard_count_and_bad_settings_are_refused_with_what_to_do() {
    let folder = data_folder();
    let data = path(&folder, "data");
    assert_eq!(Broker::dev(&data, 0, 1).interrupt(), Some(0));
    let data = data.to_str().unwrap();
    let (code, said) =
        refused(&["dev", "--data-dir", data, "--port", "0", "--admin-port", "0", "--shards", "2"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("1 shards"), "{said}");
    let file = path(&folder, "corelog.toml");
    std::fs::write(&file, "[storage]\nsegment_byte = \"1GiB\"\n").unwrap();
    let (code, said) = refused(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("segment_byte") && said.contains("line 2"), "{said}");
}

#[test]
fn serve_runs_by_its_configuration() {
    let folder = data_folder();
    let broker = Broker::serve(folder.path(), 2, "disk_bytes_max = \"2GiB\"");
    assert!(broker.said.contains("2 shards"), "{}", broker.said);
    let unknown = broker.run(&["consume", "nothing", "--until-end"], b"");
    assert_eq!(unknown.status.code(), Some(3), "topics are not made by asking: {unknown:?}");
    // So many that a hash that puts all of them on one shard is no chance (8 did once in 128 runs).
    broker.succeed(&["topic", "create", "orders", "--partitions", "64"], b"");
    let described = broker.succeed(&["--output", "json", "topic", "describe", "orders"], b"");
    let described: serde_json::Value = serde_json::from_slice(&described).unwrap();
    let shards: std::collections::BTreeSet<u64> = described["partitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["shard"].as_u64().unwrap())
        .collect();
    assert_eq!(shards.len(), 2, "{described}");
}

/// Looks again and again until it is so.
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_mins(1), "never {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_start_takes_back_what_a_killed_broker_said_of_being_ready() {
    let folder = data_folder();
    Broker::dev(folder.path(), 0, 1).kill();
    assert!(path(&folder, "ready.json").exists());
    // This start goes no further than the port.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let data = folder.path().to_str().unwrap();
    let (code, said) = refused(&["dev", "--data-dir", data, "--port", &port, "--admin-port", "0"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(!path(&folder, "ready.json").exists());
}

#[test]
fn a_broker_whose_words_nobody_reads_goes_on() {
    let folder = data_folder();
    let mut child = Command::new(CORELOG)
        .args(["dev", "--data-dir", folder.path().to_str().unwrap(), "--port", "0", "--admin-port", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    until("ready", || path(&folder, "ready.json").exists());
    let ready: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path(&folder, "ready.json")).unwrap()).unwrap();
    assert!(get(ready["admin"].as_str().unwrap(), "/readyz").starts_with("HTTP/1.1 200"));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn top_shows_a_broker_at_a_glance() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 2);
    broker.succeed(&["topic", "create", "orders", "--partitions", "3"], b"");
    broker.succeed(&["produce", "orders"], b"one\ntwo\nthree\n");
    broker.succeed(&["consume", "orders", "--group", "billing", "--count", "1"], b"");
    let top = |more: &[&str]| {
        let args = [&["top", "--admin", &broker.admin, "--interval", "50ms"], more].concat();
        String::from_utf8(broker.succeed(&args, b"")).unwrap()
    };
    // The lag of a group is looked at now and then.
    until("the group is shown", || top(&["--once"]).contains("billing"));
    let shown = top(&[]);
    assert!(shown.starts_with("broker 1 of dev") && shown.contains("produce p99"), "{shown}");
    let orders = shown.lines().find(|line| line.starts_with("orders")).unwrap();
    assert_eq!(orders.split_whitespace().nth(1), Some("3"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&top(&["--output", "json"])).unwrap();
    assert_eq!(json["shards"].as_array().unwrap().len(), 2);
    assert_eq!(json["groups"][0]["lag_records"], 2.0);
    let busy = broker.run(&["top", "--admin", &broker.admin, "--interval", "0"], b"");
    assert_eq!(busy.status.code(), Some(2), "{busy:?}");
    let nobody = broker.run(&["top", "--admin", "127.0.0.1:1", "--once"], b"");
    assert_eq!(nobody.status.code(), Some(4), "{nobody:?}");
    let other = broker.run(&["top", "--admin", &broker.address, "--once"], b"");
    assert_eq!(other.status.code(), Some(4), "no metrics there: {other:?}");
    assert_eq!(broker.interrupt(), Some(0));
}
