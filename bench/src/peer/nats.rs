//! NATS `JetStream`: a request's records are as many messages with a reply subject; it is answered when the last of them is.
//!
//! Called by `run`. The protocol is the client protocol (<https://docs.nats.io/reference/reference-protocols/nats-protocol>)
//! and the `JetStream` API on top of it, spoken here without a client library. A partition is a stream of its own, whose
//! sequences are offsets from 1, so that acknowledgements say where a record is.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use super::turns::{self, Turns};
use super::{Run, free_port};
use crate::check::{Checker, Ledger};
use crate::engine::{Answered, Outgoing, Protocol};
use crate::error::{Doing, Error, Result};
use crate::payload::MARK_BYTES;
use crate::tally::{Outcome, Plan, Window};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest message that is taken.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Digits of a request's number in its reply subject, and of a partition's, so that all requests are as long.
const DIGITS: usize = 12;
const PARTITION_DIGITS: usize = 5;

/// Gives a server its arguments and a free port of loopback.
///
/// # Errors
/// [`Error::System`] if there is none, or its configuration cannot be written.
pub fn arguments(command: &mut Command, folder: &Path) -> Result<SocketAddr> {
    let address = free_port()?;
    let config = folder.join("nats.conf");
    // A reader that checks what it reads is slow; with less it would be cut off.
    let text = format!(
        "listen: \"{address}\"\nmax_payload: 8388608\nmax_pending: 1073741824\njetstream {{ store_dir: \"{}\" }}\n",
        folder.join("jetstream").display()
    );
    std::fs::write(&config, text).doing(|| format!("writing {}", config.display()))?;
    command.arg("--config").arg(&config);
    Ok(address)
}

/// Whether a server with `JetStream` answers here.
#[must_use]
pub fn answers(address: SocketAddr) -> bool {
    Connection::open(address).and_then(|mut connection| connection.api("INFO", "")).is_ok()
}

fn stream(run: u64, partition: u32) -> String {
    format!("bench{run:016x}-{partition:0PARTITION_DIGITS$}")
}

/// One run.
#[derive(Debug)]
pub struct Session<'a> {
    run: Run<'a>,
}

impl<'a> Session<'a> {
    /// Creates the streams.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    pub fn open(run: Run<'a>) -> Result<Self> {
        let mut connection = Connection::open(run.address)?;
        for partition in 0..run.workload.topic.partitions {
            let name = stream(run.number, partition);
            let request = serde_json::json!({
                "name": name, "subjects": [name], "storage": "file", "retention": "limits", "num_replicas": 1,
                "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "discard": "old", "max_age": 0,
            });
            connection.api(&format!("STREAM.CREATE.{name}"), &request.to_string())?;
        }
        Ok(Self { run })
    }
}

/// What of the API's answers is used.
#[derive(Debug, Default, Deserialize)]
struct Said {
    #[serde(default)]
    seq: u64,
    error: Option<Refusal>,
    #[serde(default)]
    state: State,
}

#[derive(Debug, Default, Deserialize)]
struct State {
    #[serde(default)]
    first_seq: u64,
    #[serde(default)]
    last_seq: u64,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    description: String,
}

impl super::Session for Session<'_> {
    fn drive(&self, plan: &Plan, window: &mut dyn Window) -> Result<(Outcome, Vec<Ledger>)> {
        let mut connections = Vec::new();
        for number in 0..plan.load.connections() {
            let mut connection = Connection::open(self.run.address)?;
            connection.say(&format!("SUB _INBOX.{number}.* 1\r\nPING\r\n"))?;
            connection.until_pong()?;
            // Nothing follows the PONG that the buffer could hold.
            connections.push((connection.stream.into_inner(), Producer::new(self, number)));
        }
        turns::drive(connections, plan, window, |producer| producer.turns.ledger)
    }

    fn moved(&mut self, address: SocketAddr) -> Result<()> {
        self.run.address = address;
        Ok(())
    }

    fn read_back(&mut self, checker: &mut Checker<'_>) -> Result<u64> {
        let mut bytes = 0;
        for partition in 0..self.run.workload.topic.partitions {
            let name = stream(self.run.number, partition);
            let mut connection = Connection::open(self.run.address)?;
            let state = connection.api(&format!("STREAM.INFO.{name}"), "")?.state;
            checker.begin(partition, state.first_seq.saturating_sub(1));
            if state.last_seq >= state.first_seq.max(1) {
                connection.say("SUB bench.read 7\r\n")?;
                let request = serde_json::json!({ "stream_name": name, "config": {
                    "deliver_subject": "bench.read", "deliver_policy": "all", "ack_policy": "none",
                    "replay_policy": "instant",
                }});
                connection.api(&format!("CONSUMER.CREATE.{name}"), &request.to_string())?;
                for sequence in state.first_seq..=state.last_seq {
                    let value = connection.message("7")?;
                    bytes += value.len() as u64;
                    checker.record(sequence - 1, Some(&value));
                }
            }
            checker.end();
        }
        Ok(bytes)
    }

    fn remove(&mut self) -> Result<()> {
        let mut connection = Connection::open(self.run.address)?;
        for partition in 0..self.run.workload.topic.partitions {
            connection.api(&format!("STREAM.DELETE.{}", stream(self.run.number, partition)), "")?;
        }
        Ok(())
    }
}

/// One connection's load, round the partitions, a request each.
#[derive(Debug)]
struct Producer<'a> {
    session: &'a Session<'a>,
    number: u32,
    turns: Turns,
    request_next: u64,
    /// Requests that wait, from `first` on.
    waiting: VecDeque<Waiting>,
    first: u64,
}

/// A request that waits for its records' answers.
#[derive(Debug)]
struct Waiting {
    partition: u32,
    sequence: u64,
    answers: u32,
    /// The lowest sequence that was told.
    lowest: u64,
    refused: Option<String>,
}

impl<'a> Producer<'a> {
    fn new(session: &'a Session<'a>, number: u32) -> Self {
        Self {
            session,
            number,
            turns: session.run.turns(number),
            request_next: 0,
            waiting: VecDeque::new(),
            first: 0,
        }
    }

    /// Notes the answer to one record; gives the request's answer if it was the last one's.
    fn answer(&mut self, request: u64, payload: &[u8]) -> Result<Option<Answered>> {
        let said: Said = serde_json::from_slice(payload).map_err(|error| Error::Peer(error.to_string()))?;
        let per_request = self.session.run.workload.records.per_request;
        let place = request.checked_sub(self.first).and_then(|place| usize::try_from(place).ok());
        let waiting = place.and_then(|place| self.waiting.get_mut(place));
        let Some(waiting) = waiting.filter(|waiting| waiting.answers < per_request) else {
            return Err(Error::Peer(format!("an answer to request {request}, which waits for none")));
        };
        waiting.answers += 1;
        waiting.lowest = waiting.lowest.min(said.seq);
        if let Some(refusal) = said.error {
            waiting.refused.get_or_insert(refusal.description);
        }
        if waiting.answers < per_request {
            return Ok(None);
        }
        let refused = waiting.refused.take();
        // Messages of other connections may lie between those of a request: only the first one's place is known.
        if refused.is_none() && per_request == 1 {
            self.turns.ledger.acknowledged(
                waiting.partition,
                waiting.sequence,
                waiting.lowest.saturating_sub(1),
            );
        } else if refused.is_none() {
            self.turns.ledger.acknowledged_somewhere(waiting.partition, waiting.sequence);
        }
        while self.waiting.front().is_some_and(|first| first.answers == per_request) {
            self.waiting.pop_front();
            self.first += 1;
        }
        Ok(Some(Answered { request, refused }))
    }
}

impl Protocol for Producer<'_> {
    fn request(&mut self, intended: Duration, out: &mut Outgoing) {
        let run = &self.session.run;
        let (mut mark, kind) = self.turns.next(intended);
        let (partition, sequence) = (mark.partition, mark.sequence);
        let waiting = Waiting { partition, sequence, answers: 0, lowest: u64::MAX, refused: None };
        self.waiting.push_back(waiting);
        let reply = format!("_INBOX.{}.{:0DIGITS$}", self.number, self.request_next);
        let head = format!("PUB {} {reply} ", stream(run.number, partition));
        self.request_next += 1;
        out.payload.clear();
        for value in &run.values.requests()[kind] {
            out.payload.extend_from_slice(head.as_bytes());
            out.payload.extend_from_slice(format!("{}\r\n", value.len()).as_bytes());
            out.payload.extend_from_slice(&mark.encode());
            out.payload.extend_from_slice(&value[MARK_BYTES..]);
            out.payload.extend_from_slice(b"\r\n");
            mark.sequence += 1;
        }
        out.head.clear();
    }

    fn answers(&mut self, input: &[u8], answered: &mut Vec<Answered>) -> Result<usize> {
        let mut taken = 0;
        while let Some(Frame { line, payload, end }) = frame(&input[taken..])? {
            if line.starts_with("MSG ") {
                let request =
                    line.split(' ').nth(1).and_then(|subject| subject.rsplit('.').next()?.parse().ok());
                let request = request.ok_or_else(|| Error::Peer(format!("{line:?} is for no request")))?;
                answered.extend(self.answer(request, payload)?);
            } else if line.starts_with("-ERR") {
                return Err(Error::Peer(line.to_owned()));
            }
            taken += end;
        }
        Ok(taken)
    }
}

/// What a server says: a line, and a message's payload.
struct Frame<'a> {
    line: &'a str,
    payload: &'a [u8],
    end: usize,
}

/// The first frame of the input, if it is whole.
fn frame(input: &[u8]) -> Result<Option<Frame<'_>>> {
    let Some(at) = input.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
    let line = std::str::from_utf8(&input[..at]).map_err(|error| Error::Peer(error.to_string()))?;
    let bytes = payload_bytes(line)?;
    let (from, extra) = (at + 2, if line.starts_with("MSG ") { bytes + 2 } else { 0 });
    if input.len() < from + extra {
        return Ok(None);
    }
    Ok(Some(Frame { line, payload: &input[from..from + bytes], end: from + extra }))
}

/// The length that a line announces; 0 if it is not a message's.
fn payload_bytes(line: &str) -> Result<usize> {
    if !line.starts_with("MSG ") {
        return Ok(0);
    }
    let bytes = line.rsplit(' ').next().and_then(|bytes| bytes.parse().ok());
    bytes
        .filter(|bytes| *bytes <= MESSAGE_BYTES_MAX)
        .ok_or_else(|| Error::Peer(format!("{line:?} has no length of a message")))
}

/// A connection that asks one thing at a time.
struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).doing(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true).doing(|| "setting TCP_NODELAY".to_owned())?;
        stream.set_read_timeout(Some(PATIENCE)).doing(|| "setting a read timeout".to_owned())?;
        let mut this = Self { stream: BufReader::with_capacity(1 << 20, stream) };
        this.say("CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":false}\r\nSUB _INBOX.api 9\r\nPING\r\n")?;
        this.until_pong()?;
        Ok(this)
    }

    fn say(&mut self, text: &str) -> Result<()> {
        self.stream.get_mut().write_all(text.as_bytes()).doing(|| "asking".to_owned())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).doing(|| "waiting for an answer".to_owned())?;
        match line.strip_suffix("\r\n") {
            Some(line) if line.starts_with("-ERR") => Err(Error::Peer(line.to_owned())),
            Some("PING") => {
                self.say("PONG\r\n")?;
                self.line()
            }
            Some(line) => Ok(line.to_owned()),
            None => Err(Error::Peer("the connection ended".to_owned())),
        }
    }

    fn until_pong(&mut self) -> Result<()> {
        while self.line()? != "PONG" {}
        Ok(())
    }

    /// The next message of a subscription; those of others are passed over.
    fn message(&mut self, subscription: &str) -> Result<Vec<u8>> {
        loop {
            let line = self.line()?;
            if !line.starts_with("MSG ") {
                continue;
            }
            let mut payload = vec![0; payload_bytes(&line)? + 2];
            self.stream.read_exact(&mut payload).doing(|| "waiting for a message".to_owned())?;
            payload.truncate(payload.len() - 2);
            if line.split(' ').nth(2) == Some(subscription) {
                return Ok(payload);
            }
        }
    }

    /// Asks the `JetStream` API.
    fn api(&mut self, subject: &str, payload: &str) -> Result<Said> {
        self.say(&format!("PUB $JS.API.{subject} _INBOX.api {}\r\n{payload}\r\n", payload.len()))?;
        let answer = self.message("9")?;
        let said: Said = serde_json::from_slice(&answer).map_err(|error| Error::Peer(error.to_string()))?;
        match said.error {
            Some(refusal) => Err(Error::Peer(format!("{subject}: {}", refusal.description))),
            None => Ok(said),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_when_it_is_whole() {
        let input = b"MSG _INBOX.3.000000000017 1 4\r\nab\r\n\r\nPING\r\n";
        for cut in 0..37 {
            assert!(frame(&input[..cut]).unwrap().is_none(), "{cut}");
        }
        let first = frame(input).unwrap().unwrap();
        assert_eq!((first.payload, first.end), (&b"ab\r\n"[..], 37));
        let second = frame(&input[37..]).unwrap().unwrap();
        assert_eq!((second.line, second.payload.len(), second.end), ("PING", 0, 6));
        assert!(frame(b"MSG a 1 x\r\n").is_err());
        assert!(frame(b"MSG a 1 99999999999\r\n").is_err());
    }
}
