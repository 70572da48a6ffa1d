//! The benchmark's runs against the real broker: what it promises of its readers and of a kill holds.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::time::Duration;

use corelog_bench::args::Driver;
use corelog_bench::broker::Start;
use corelog_bench::peer::Peer;
use corelog_bench::pin::ThreadPlace;
use corelog_bench::run::{Place, RunResult, Subject, once};
use corelog_bench::workload::Workload;

fn run(workload: &str, kill_at: Option<Duration>) -> RunResult {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let place = Place {
        driver: Driver::Raw,
        device_stat: None,
        generator: ThreadPlace::default(),
        broker: ThreadPlace::default(),
        cpus: 1,
        kill_at,
        fio: false,
        device: None,
        quiet: None,
    };
    let arguments = ["journal_bytes=64MiB", "disk_bytes_max=4GiB"].map(|set| format!("--set=storage.{set}"));
    let subject = Subject::Start(Start {
        peer: Peer::Corelog,
        program: Path::new(env!("CARGO_BIN_EXE_corelog")).to_owned(),
        arguments: arguments.to_vec(),
        folder: folder.path().to_owned(),
        place: ThreadPlace::default(),
    });
    once(&Workload::parse(workload).unwrap(), 0, &subject, &place).unwrap()
}

const LOAD: &str = r#"
    name = "readers"
    about = "A small load."
    [topic]
    partitions = 3
    [records]
    bytes = 200
    per_request = 10
    [time]
    settle_s = 0.0
    warm_up_s = 0.1
    measured_s = 1.0
"#;

#[test]
fn consumers_that_follow_and_drain_have_every_record_once_and_in_order() {
    let load = "[load]\nmode = \"open\"\nconnections = 4\nrate = 500.0\n";
    let result = run(&format!("{LOAD}{load}[readers]\nfollowing = 2\ndraining = 3\nrounds = 2\n"), None);
    assert!(result.is_valid(), "{:?}", result.marks);
    let acknowledged = result.verdict.acknowledged;
    assert!(acknowledged > 1000, "{result:?}");
    let followed = result.followed.unwrap();
    assert_eq!((followed.consumers, followed.records), (2, 2 * acknowledged));
    // Each consumer times each record that was due within the window.
    assert_eq!(followed.end_to_end.samples, 2 * 10 * result.response.samples);
    let drained = result.drained.unwrap();
    assert_eq!((drained.followed.consumers, drained.followed.records), (3, 2 * 3 * acknowledged));
}

#[test]
fn consumers_that_lag_behind_read_what_is_there_beside_the_load() {
    let load = "[load]\nmode = \"open\"\nconnections = 2\nrate = 200.0\n";
    let readers = "[readers]\nfollowing = 1\nlagging = 2\nhistory_s = 0.3\n";
    let result = run(&format!("{LOAD}{load}{readers}"), None);
    assert!(result.is_valid(), "{:?}", result.marks);
    assert_eq!(result.followed.unwrap().records, result.verdict.acknowledged);
    let lagged = result.lagged.unwrap();
    assert!(lagged.is_whole() && lagged.consumers == 2, "{lagged:?}");
    // All of the history was read back, and some of it beside the load, from the device.
    assert_eq!(lagged.verdict.read, lagged.history_records);
    assert!(lagged.history_records > 1000 && lagged.bytes > 1_000_000, "{lagged:?}");
}

#[test]
fn a_killed_broker_has_what_it_acknowledged() {
    let load = "[load]\nmode = \"closed\"\nconnections = 4\nin_flight = 4\n";
    let result = run(&format!("{LOAD}{load}"), Some(Duration::from_millis(500)));
    assert!(result.is_valid(), "{:?}", result.marks);
    let killed = result.killed.unwrap();
    assert!(killed.unanswered > 0 && killed.ready_after_s > 0.0, "{killed:?}");
    assert_eq!(result.verdict.lost, 0);
    assert!(result.verdict.acknowledged > 100 && result.verdict.read >= result.verdict.acknowledged);
}

/// Batches of a megabyte to a partition at its retention limit: they go past the journal.
const STREAM: &str = r#"
    name = "stream"
    about = "A large stream."
    [topic]
    partitions = 1
    [topic.config]
    retention_bytes = "32MiB"
    segment_bytes = "16MiB"
    [records]
    bytes = 1024
    per_request = 1000
    [load]
    mode = "closed"
    connections = 4
    [time]
    settle_s = 0.0
    warm_up_s = 3.0
    measured_s = 1.0
"#;

#[test]
fn a_stream_into_files_that_were_used_before_is_written_once() {
    let result = run(STREAM, None);
    assert!(result.is_valid() && result.refused == 0, "{:?}", result.marks);
    let written = result.write_amplification.unwrap();
    // Twice when it goes through the journal; some does at the begin of each segment.
    assert!(written < 1.7, "{written} bytes to the device for one");
}

#[test]
fn a_killed_broker_has_what_it_acknowledged_of_a_stream() {
    let result = run(STREAM, Some(Duration::from_millis(700)));
    assert!(result.is_valid(), "{:?}", result.marks);
    assert!(result.killed.unwrap().unanswered > 0 && result.verdict.lost == 0);
}
