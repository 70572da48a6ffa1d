//! The strawman as a process: what it acknowledges is in its file, also when the file has been written round and round.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::path::PathBuf;

use corelog_bench::args::Driver;
use corelog_bench::broker::Start;
use corelog_bench::peer::Peer;
use corelog_bench::pin::ThreadPlace;
use corelog_bench::run::{Place, RunResult, Subject, once};
use corelog_bench::workload::Workload;

/// Of the shortest file; a run of large requests writes more than that.
const FILE_MEBIBYTES: u64 = 64;

fn run(name: &str, records: &str, load: &str) -> RunResult {
    run_with(name, "", records, load)
}

fn run_with(name: &str, topic: &str, records: &str, load: &str) -> RunResult {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let subject = Subject::Start(Start {
        peer: Peer::Strawman,
        program: env!("CARGO_BIN_EXE_corelog-bench").into(),
        arguments: vec!["--mebibytes".to_owned(), FILE_MEBIBYTES.to_string()],
        folder,
        place: ThreadPlace::default(),
    });
    let place = Place {
        driver: Driver::Raw,
        device_stat: None,
        generator: ThreadPlace::default(),
        broker: ThreadPlace::default(),
        cpus: 2,
        kill_at: None,
        fio: false,
        device: None,
        quiet: None,
    };
    let workload = format!(
        "name = \"{name}\"\nabout = \"\"\n[topic]\npartitions = 1\n{topic}\n[records]\n{records}\n[load]\n{load}\n\
         [time]\nsettle_s = 0.0\nwarm_up_s = 0.1\nmeasured_s = 1.0\n"
    );
    once(&Workload::parse(&workload).unwrap(), 0, &subject, &place).unwrap()
}

#[test]
fn single_records_are_acknowledged_and_there() {
    let load = "mode = \"closed\"\nconnections = 8\nin_flight = 2";
    let result = run("strawman-single", "bytes = 1000\nper_request = 1", load);
    assert!(result.is_valid() && result.refused == 0, "{:?} {:?}", result.verdict, result.marks);
    assert!(result.verdict.acknowledged > 0 && result.verdict.read >= result.verdict.acknowledged.min(1));
}

#[test]
fn what_is_acknowledged_from_memory_is_written_without_a_flush() {
    let load = "mode = \"closed\"\nconnections = 8\nin_flight = 2";
    let records = "bytes = 1000\nper_request = 1";
    let result = run_with("strawman-memory", "durability = \"memory\"", records, load);
    assert!(result.is_valid() && result.refused == 0, "{:?} {:?}", result.verdict, result.marks);
    assert_eq!(result.class, "memory");
    assert!(result.verdict.read > 0, "{:?}", result.verdict);
}

#[test]
fn a_file_written_round_and_round_has_the_newest() {
    let load = "mode = \"closed\"\nconnections = 2\nin_flight = 4";
    // Until the file was written more than once, as machines differ.
    let result = run("strawman-round", "bytes = 1024\nper_request = 1016", load);
    assert!(result.is_valid() && result.refused == 0, "{:?} {:?}", result.verdict, result.marks);
    assert!(result.verdict.read > 0, "{:?}", result.verdict);
}
