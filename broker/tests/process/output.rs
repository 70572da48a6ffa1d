//! What commands write and how they end: when nobody reads it, when Ctrl-C comes, and when a program wants JSON.

use crate::support::{Broker, CORELOG, data_folder, path};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
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

fn interrupt(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
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

#[test]
fn a_closed_output_is_no_reason_to_abort() {
    let completions = command("127.0.0.1:9", &["completions", "bash"]).stdout(unread()).status().unwrap();
    assert_eq!(completions.code(), Some(0), "its reader has what it wanted");
    for (args, expected) in [(&["topic", "list"][..], 4), (&["topic", "list", "--output", "json"], 4)] {
        let status = command("127.0.0.1:9", args).stderr(unread()).status().unwrap();
        assert_eq!(status.code(), Some(expected), "{args:?}");
    }
}

#[test]
fn ctrl_c_ends_a_command_also_while_it_waits_for_the_last_acknowledgements() {
    let folder = data_folder();
    let broker = Broker::dev(folder.path(), 0, 1);
    broker.succeed(&["produce", "t"], b"first\n");
    let mut consume = command(&broker.address, &["consume", "t"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(consume.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "first\n");
    interrupt(&consume);
    assert_eq!(code(consume), Some(130));

    let args = ["produce", "t", "--output", "json"];
    let mut produce = command(&broker.address, &args).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = produce.stdin.take().unwrap();
    let mut acknowledged = BufReader::new(produce.stdout.take().unwrap());
    input.write_all(b"second\n").unwrap();
    acknowledged.read_line(&mut line).unwrap();
    let process = |pid: u32, what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap();
    kill_process(Pid::from_raw(i32::try_from(broker.pid()).unwrap()).unwrap(), Signal::STOP).unwrap();
    wait_for("the broker stops", || process(broker.pid(), "status").contains("State:\tT").then_some(()));
    input.write_all(b"third\n").unwrap();
    drop(input);
    // The thread that reads the input ends with it; what is left waits for the broker.
    wait_for("the input ends", || process(produce.id(), "status").contains("Threads:\t1\n").then_some(()));
    interrupt(&produce);
    assert_eq!(code(produce), Some(130));
}

#[test]
fn programs_get_json_from_a_broker_that_starts_and_from_a_wrong_command_line() {
    let folder = data_folder();
    let data = path(&folder, "data");
    let start = |expected: &str| {
        let args = ["dev", "--output", "json", "--port", "0", "--admin-port", "0", "--shards", "2"];
        let mut child = Command::new(CORELOG)
            .args(args)
            .arg("--data-dir")
            .arg(&data)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        interrupt(&child);
        assert_eq!(code(child), Some(0), "{expected}: {line}");
        serde_json::from_str::<Value>(&line).unwrap()
    };
    let ready = start("a new broker");
    for field in ["address", "admin"] {
        let address: std::net::SocketAddr = ready[field].as_str().unwrap().parse().unwrap();
        assert!(address.ip().is_loopback() && address.port() > 0, "{ready}");
    }
    assert_eq!((&ready["shards"], &ready["is_new"]), (&Value::from(2), &Value::from(true)), "{ready}");
    assert_eq!(ready["data_dir"], data.to_str().unwrap());
    assert!(ready["took_ms"].is_u64() && ready["recovered"].as_array().unwrap().is_empty(), "{ready}");
    let again = start("the same once more");
    assert_eq!(again["recovered"].as_array().unwrap().len(), 2, "{again}");
    assert_eq!(again["recovered"][1]["damaged"], false, "{again}");

    let data = data.to_str().unwrap();
    let wrong: [&[&str]; 4] = [
        &["topic", "list", "--nonsense", "--output", "json"],
        &["--output=json", "nonsense"],
        &["--output", "json", "topic"],
        &["dev", "--output", "json", "--shards", "1", "--data-dir", data, "--port", "0", "--admin-port", "0"],
    ];
    for args in wrong {
        let output = command("127.0.0.1:9", args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        // A broker's log goes to standard error too.
        let error: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(error["error"]["code"], "USAGE", "{args:?}: {said}");
        assert!(!error["error"]["message"].as_str().unwrap().is_empty(), "{args:?}: {said}");
    }
}
