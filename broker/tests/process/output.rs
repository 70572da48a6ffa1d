//! What commands write and how they end: when nobody reads it, when Ctrl-C comes, and when a program wants JSON.

use crate::support::{Broker, CORELOG, data_folder, path};
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// A command against this address that reads nothing and whose output is kept.
fn command(address: &str, args: &[&str]) -> Command {
    let mut command = Command::new(CORELOG);
    command.args(args).env("CORELOG_BOOTSTRAP", address);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A pipe that nobody reads from.
fn unread() -> PipeWriter {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer
}

/// Looks again and again until there is something to see.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Its exit code; it is ended if it does not end by itself.
fn code(mut child: Child) -> Option<i32> {
    let began = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if began.elapsed() > PATIENCE => child.kill().unwrap(),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    status.code()
}

#[test]
fn records_are_sent_although_nobody_reads_the_acknowledgements() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    let args = ["produce", "lines", "--output", "json"];
    let mut produce = command(&broker.address, &args).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = produce.stdin.take().unwrap();
    let mut acknowledged = String::new();
    let mut sent = Vec::new();
    for number in 0..10 {
        let line = format!("line {number}\n");
        input.write_all(line.as_bytes()).unwrap();
        sent.extend_from_slice(line.as_bytes());
        let is_there =
            || broker.succeed(&["consume", "lines", "--from", "earliest", "--until-end"], b"") == sent;
        if let Some(output) = produce.stdout.take() {
            // Somebody reads the first line and goes away.
            BufReader::new(output).read_line(&mut acknowledged).unwrap();
        }
        wait_for("the record is there", || is_there().then_some(()));
    }
    assert!(acknowledged.contains("\"offset\":0"), "{acknowledged}");
    drop(input);
    assert_eq!(code(produce), Some(0));
    // Nor does it hide that the broker refused a record.
    let settings = ["--config", "record_bytes_max=1KiB", "--config", "batch_bytes_max=4KiB"];
    broker.succeed(&[&["topic", "create", "small"][..], &settings].concat(), b"");
    let file = path(&folder, "lines");
    std::fs::write(&file, ["fits\n".repeat(5_000), "x".repeat(5_000)].concat()).unwrap();
    let args =
        ["produce", "small", "--output", "json", "--batch-bytes", "2048", "--file", file.to_str().unwrap()];
    let status = command(&broker.address, &args).stdout(unread()).status().unwrap();
    assert_eq!(status.code(), Some(3), "refused");
}
