//! Redis Streams: a request's records are as many `XADD`, pipelined; it is answered when the last of them is.
//!
//! Called by `run`. The protocol is RESP2 (<https://redis.io/docs/latest/develop/reference/protocol-spec/>), spoken here
//! without a client library, so that the generator's cost is the same for every peer: what is sent is encoded once and
//! only its marks are written anew. A partition is a stream of its own.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::BytesMut;

use super::turns::{self, Turns};
use super::{Run, free_port};
use crate::check::{Checker, Ledger};
use crate::engine::{Answered, Outgoing, Protocol};
use crate::error::{Doing, Error, Result};
use crate::follow::{self, Tail};
use crate::payload::{MARK_BYTES, Mark};
use crate::tally::{Outcome, Plan, Window};

/// Digits of a stream's number, so that all names are as long.
const DIGITS: usize = 5;
/// Records of one `XRANGE`.
const READ_RECORDS: u32 = 1000;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest bulk string that is taken, and most elements of an array: more than a run has.
const LENGTH_MAX: usize = 64 << 20;

/// Gives a server its arguments and a free port of loopback.
///
/// # Errors
/// [`Error::System`] if there is none.
pub fn arguments(command: &mut Command, folder: &Path, fsync: &str) -> Result<SocketAddr> {
    let address = free_port()?;
    command.args(["--bind", "127.0.0.1", "--port"]).arg(address.port().to_string());
    command.arg("--dir").arg(folder).args(["--save", "", "--appendonly", "yes", "--appendfsync", fsync]);
    // In its favour: it does not write its file anew while it is measured.
    command.args(["--auto-aof-rewrite-percentage", "0"]);
    Ok(address)
}

/// The process that listens here; none while it does not answer, or still reads its file.
#[must_use]
pub fn process(address: SocketAddr) -> Option<u32> {
    let mut connection = Connection::open(address).ok()?;
    connection.ask(&["PING"]).ok()?;
    let Ok(Value::Bulk(info)) = connection.ask(&["INFO", "server"]) else { return None };
    let info = String::from_utf8_lossy(&info).into_owned();
    info.lines().find_map(|line| line.strip_prefix("process_id:"))?.trim().parse().ok()
}

/// A stream's name.
fn key(run: u64, partition: u32) -> String {
    format!("bench-{run:016x}-{partition:0DIGITS$}")
}

/// One run.
#[derive(Debug)]
pub struct Session<'a> {
    run: Run<'a>,
    /// One for each of the workload's.
    requests: Vec<Requests>,
}

impl<'a> Session<'a> {
    /// Encodes the requests.
    ///
    /// # Errors
    /// [`Error::Setup`] if there are more partitions than names.
    pub fn open(run: Run<'a>) -> Result<Self> {
        if run.workload.topic.partitions as usize >= 10_usize.pow(5) {
            return Err(Error::Setup(
                "the Redis driver has names for fewer than 100,000 partitions".to_owned(),
            ));
        }
        let requests = run.values.requests().iter().map(|values| Requests::new(run.number, values));
        Ok(Self { run, requests: requests.collect() })
    }
}

impl super::Session for Session<'_> {
    fn drive(&self, plan: &Plan, window: &mut dyn Window) -> Result<(Outcome, Vec<Ledger>)> {
        let mut connections = Vec::new();
        for number in 0..plan.load.connections() {
            let stream = TcpStream::connect(self.run.address)
                .doing(|| format!("connecting to {}", self.run.address))?;
            connections.push((stream, Producer::new(self, number)));
        }
        turns::drive(connections, plan, window, |producer| producer.turns.ledger)
    }

    fn tail(&self) -> Result<Box<dyn Tail + '_>> {
        let partitions = self.run.workload.topic.partitions;
        let name = |partition| (key(self.run.number, partition), "0-0".to_owned());
        let connection = Connection::open(self.run.address)?;
        Ok(Box::new(Following { connection, last: (0..partitions).map(name).collect() }))
    }

    fn moved(&mut self, address: SocketAddr) -> Result<()> {
        self.run.address = address;
        Ok(())
    }

    fn read_back(&mut self, checker: &mut Checker<'_>) -> Result<u64> {
        let mut connection = Connection::open(self.run.address)?;
        let mut bytes = 0;
        for partition in 0..self.run.workload.topic.partitions {
            checker.begin(partition, 0);
            let key = key(self.run.number, partition);
            let mut from = "-".to_owned();
            let mut offset = 0;
            loop {
                let count = READ_RECORDS.to_string();
                let Value::Array(entries) = connection.ask(&["XRANGE", &key, &from, "+", "COUNT", &count])?
                else {
                    return Err(Error::Peer("XRANGE gave no array".to_owned()));
                };
                let Some(last) = entries.last() else { break };
                from = format!("({}", entry(last)?.0);
                for one in &entries {
                    let (_, value) = entry(one)?;
                    bytes += value.len() as u64;
                    checker.record(offset, Some(value));
                    offset += 1;
                }
            }
            checker.end();
        }
        Ok(bytes)
    }

    fn remove(&mut self) -> Result<()> {
        let mut connection = Connection::open(self.run.address)?;
        for partition in 0..self.run.workload.topic.partitions {
            connection.ask(&["DEL", &key(self.run.number, partition)])?;
        }
        Ok(())
    }
}

/// A consumer of all streams.
struct Following {
    connection: Connection,
    /// Each stream and the last entry that was read.
    last: Vec<(String, String)>,
}

impl Tail for Following {
    fn poll(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let (wait, count) = (follow::POLL.as_millis().to_string(), READ_RECORDS.to_string());
        let mut words = vec!["XREAD", "COUNT", &count, "BLOCK", &wait, "STREAMS"];
        words.extend(self.last.iter().map(|(key, _)| &**key));
        words.extend(self.last.iter().map(|(_, last)| &**last));
        let Value::Array(streams) = self.connection.ask(&words)? else {
            return Err(Error::Peer("XREAD gave no array".to_owned()));
        };
        for stream in streams {
            let Value::Array(parts) = stream else { continue };
            let [Value::Bulk(key), Value::Array(entries)] = &parts[..] else { continue };
            let known = self.last.iter_mut().find(|(name, _)| name.as_bytes() == key);
            let Some((_, last)) = known else { continue };
            for one in entries {
                let (id, value) = entry(one)?;
                each(value);
                *last = id;
            }
        }
        Ok(())
    }
}

/// An entry's id and its only field's value.
fn entry(value: &Value) -> Result<(String, &[u8])> {
    if let Value::Array(parts) = value
        && let [Value::Bulk(id), Value::Array(fields)] = &parts[..]
        && let [_, Value::Bulk(value)] = &fields[..]
    {
        return Ok((String::from_utf8_lossy(id).into_owned(), value));
    }
    Err(Error::Peer("an entry of a stream is not an id and a field".to_owned()))
}

/// A request's bytes, and what of them changes.
#[derive(Debug)]
struct Requests {
    bytes: Vec<u8>,
    /// Where the stream's number is, for each record.
    keys: Vec<Range<usize>>,
    /// Where the marks are.
    marks: Vec<usize>,
}

impl Requests {
    fn new(run: u64, values: &[Vec<u8>]) -> Self {
        let key = key(run, 0);
        let mut this = Self { bytes: Vec::new(), keys: Vec::new(), marks: Vec::new() };
        for value in values {
            let head = format!("*5\r\n$4\r\nXADD\r\n${}\r\n{key}", key.len());
            this.bytes.extend_from_slice(head.as_bytes());
            this.keys.push(this.bytes.len() - DIGITS..this.bytes.len());
            this.bytes
                .extend_from_slice(format!("\r\n$1\r\n*\r\n$1\r\nv\r\n${}\r\n", value.len()).as_bytes());
            this.marks.push(this.bytes.len());
            this.bytes.extend_from_slice(value);
            this.bytes.extend_from_slice(b"\r\n");
        }
        this
    }

    /// Makes a request of a buffer that is empty or was filled here.
    fn fill(&self, buffer: &mut BytesMut, mut mark: Mark) {
        if buffer.is_empty() {
            buffer.extend_from_slice(&self.bytes);
        }
        let digits = format!("{:0DIGITS$}", mark.partition);
        for (key, &at) in self.keys.iter().zip(&self.marks) {
            buffer[key.clone()].copy_from_slice(digits.as_bytes());
            buffer[at..at + MARK_BYTES].copy_from_slice(&mark.encode());
            mark.sequence += 1;
        }
    }
}

/// One connection's load, round the partitions, a request each.
#[derive(Debug)]
struct Producer<'a> {
    session: &'a Session<'a>,
    turns: Turns,
    /// Partition and sequence of what waits for an answer, in order.
    waiting: VecDeque<(u32, u64)>,
    /// Number of the first that waits.
    first: u64,
    /// Answers of its records, and the first refusal among them.
    answers: u32,
    refused: Option<String>,
}

impl<'a> Producer<'a> {
    fn new(session: &'a Session<'a>, number: u32) -> Self {
        Self {
            session,
            turns: session.run.turns(number),
            waiting: VecDeque::new(),
            first: 0,
            answers: 0,
            refused: None,
        }
    }

    /// Notes the answer to one record; gives the request's answer if it was the last one's.
    fn answer(&mut self, line: &str) -> Result<Option<Answered>> {
        let Some(&(partition, sequence)) = self.waiting.front() else {
            return Err(Error::Peer(format!("{line:?}, where no request waits")));
        };
        if let Some(refusal) = line.strip_prefix('-') {
            self.refused.get_or_insert_with(|| refusal.to_owned());
        }
        self.answers += 1;
        if self.answers < self.session.run.workload.records.per_request {
            return Ok(None);
        }
        self.answers = 0;
        self.waiting.pop_front();
        let request = self.first;
        self.first += 1;
        let refused = self.refused.take();
        if refused.is_none() {
            self.turns.ledger.acknowledged_somewhere(partition, sequence);
        }
        Ok(Some(Answered { request, refused }))
    }
}

impl Protocol for Producer<'_> {
    fn request(&mut self, intended: Duration, out: &mut Outgoing) {
        let (mark, kind) = self.turns.next(intended);
        self.waiting.push_back((mark.partition, mark.sequence));
        if self.session.requests.len() > 1 {
            out.payload.clear();
        }
        self.session.requests[kind].fill(&mut out.payload, mark);
        out.head.clear();
    }

    fn answers(&mut self, input: &[u8], answered: &mut Vec<Answered>) -> Result<usize> {
        let mut taken = 0;
        while let Some((line, mut end)) = line(&input[taken..])? {
            // An id is a bulk string: its length, then itself.
            if let Some(length) = line.strip_prefix('$') {
                let length: usize = number(length)?;
                end += length + 2;
                if input.len() < taken + end {
                    break;
                }
            } else if !line.starts_with('-') {
                return Err(Error::Peer(format!("{line:?} is no answer to XADD")));
            }
            answered.extend(self.answer(line)?);
            taken += end;
        }
        Ok(taken)
    }
}

/// The first line without its end, and where the next one begins.
fn line(input: &[u8]) -> Result<Option<(&str, usize)>> {
    let Some(at) = input.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&input[..at]).map_err(|error| Error::Peer(error.to_string()))?;
    Ok(Some((text, at + 2)))
}

fn number(text: &str) -> Result<usize> {
    let number = text.parse().ok().filter(|&number| number <= LENGTH_MAX);
    number.ok_or_else(|| Error::Peer(format!("{text:?} is not the length of an answer")))
}

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
enum Value {
    Line(String),
    Bulk(Vec<u8>),
    Array(Vec<Self>),
}

/// A connection that asks one thing at a time.
struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).doing(|| format!("connecting to {address}"))?;
        stream.set_read_timeout(Some(PATIENCE)).doing(|| "setting a read timeout".to_owned())?;
        Ok(Self { stream: BufReader::with_capacity(1 << 20, stream) })
    }

    fn ask(&mut self, words: &[&str]) -> Result<Value> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            _ = write!(request, "${}\r\n{word}\r\n", word.len());
        }
        self.stream.get_mut().write_all(request.as_bytes()).doing(|| format!("asking {words:?}"))?;
        value(&mut self.stream)
    }
}

/// Reads one answer.
fn value(from: &mut impl BufRead) -> Result<Value> {
    let doing = || "waiting for an answer".to_owned();
    let mut text = String::new();
    from.read_line(&mut text).doing(doing)?;
    let Some(text) = text.strip_suffix("\r\n") else {
        return Err(Error::Peer("the connection ended within an answer".to_owned()));
    };
    let (kind, rest) = text.split_at_checked(1).unwrap_or_default();
    match kind {
        "+" | ":" => Ok(Value::Line(rest.to_owned())),
        "$" => {
            let mut bytes = vec![0; number(rest)? + 2];
            from.read_exact(&mut bytes).doing(doing)?;
            bytes.truncate(bytes.len() - 2);
            Ok(Value::Bulk(bytes))
        }
        // Nothing came before a wait was over.
        "*" if rest == "-1" => Ok(Value::Array(Vec::new())),
        "*" => (0..number(rest)?).map(|_| value(from)).collect::<Result<_>>().map(Value::Array),
        _ => Err(Error::Peer(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let mut bytes = &b"*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nv\r\n$4\r\na\r\nb\r\n+OK\r\n-ERR no\r\n"[..];
        let first = value(&mut bytes).unwrap();
        assert_eq!(entry(&first).unwrap(), ("1-0".to_owned(), &b"a\r\nb"[..]));
        assert_eq!(value(&mut bytes).unwrap(), Value::Line("OK".to_owned()));
        assert!(value(&mut bytes).unwrap_err().to_string().contains("ERR no"));
        assert!(value(&mut bytes).is_err());
        assert!(value(&mut &b"$999999999999\r\n"[..]).is_err());
    }

    #[test]
    fn a_line_is_taken_when_it_is_whole() {
        assert_eq!(line(b"$3\r").unwrap(), None);
        assert_eq!(line(b"$3\r\n1-0").unwrap(), Some(("$3", 4)));
        assert!(line(b"\xff\r\n").is_err());
    }
}
