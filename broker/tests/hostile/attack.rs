//! Clients that mean harm, each kind on a thread of its own, over and over until told to stop.
//!
//! They have a lower priority than the broker: what is measured is what the broker lets them do, not how the machine shares
//! its processors.

use crate::support::Random;
use crate::wire::{answer, batch, connect, frame, greeted, produce_frame, produced_row};
use corelog_wire::batch::HEADER_BYTES;
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::{Kind, Prelude};
use corelog_wire::ids::{CorrelationId, Offset, TopicId, TopicPartition};
use corelog_wire::message::{Acks, Answer, FetchRequest, FetchRow, ProduceRequest, Request};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two attacks of one attacker.
const PACE: Duration = Duration::from_millis(10);
/// Attacks of one attacker at most.
const ATTACKS_MAX: u64 = 50_000;
/// Half frames held at once: 200 claims of 16 MiB are 3 GiB.
const HALF_FRAMES: usize = 200;
/// One in so many of them sends a mebibyte before it stops.
const LONG_HALF_FRAMES: usize = 10;

/// One attack; an attacker repeats it.
type Attack = Box<dyn FnMut() + Send>;

/// The attackers of one round.
pub(crate) struct Attackers {
    stop: Arc<AtomicBool>,
    threads: Vec<(&'static str, Arc<AtomicU64>, JoinHandle<()>)>,
    /// How many attacked at least once.
    begun: Arc<(Mutex<usize>, Condvar)>,
}

impl Attackers {
    /// Starts one of each kind, and returns when each has attacked.
    pub(crate) fn start(address: &str, tp: TopicPartition) -> Self {
        let (stop, begun) = (Arc::<AtomicBool>::default(), Arc::<(Mutex<usize>, Condvar)>::default());
        let threads: Vec<_> = attacks(address, tp)
            .into_iter()
            .map(|(name, attack)| {
                let count = Arc::<AtomicU64>::default();
                let thread = std::thread::spawn({
                    let (stop, count, begun) = (Arc::clone(&stop), Arc::clone(&count), Arc::clone(&begun));
                    move || repeat(attack, &stop, &count, &begun)
                });
                (name, count, thread)
            })
            .collect();
        let waited = begun.1.wait_timeout_while(begun.0.lock().unwrap(), Duration::from_secs(20), |begun| {
            *begun < threads.len()
        });
        assert!(!waited.unwrap().1.timed_out(), "the attackers found no way in");
        Self { stop, threads, begun }
    }

    /// How often the one that attacked least did so.
    pub(crate) fn attacks_least(&self) -> u64 {
        self.threads.iter().map(|(_, count, _)| count.load(Ordering::Relaxed)).min().unwrap()
    }

    /// Ends them. Gives how often each attacked; what one of them did not get from the broker, it panicked about.
    pub(crate) fn stop(self) -> Vec<(&'static str, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.begun);
        let ended = self.threads.into_iter().map(|(name, count, thread)| {
            thread.join().unwrap();
            (name, count.load(Ordering::Relaxed))
        });
        ended.collect()
    }
}

fn repeat(mut attack: Attack, stop: &AtomicBool, count: &AtomicU64, begun: &(Mutex<usize>, Condvar)) {
    // Of this thread alone.
    rustix::process::nice(5).unwrap();
    while !stop.load(Ordering::Relaxed) && count.load(Ordering::Relaxed) < ATTACKS_MAX {
        attack();
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            *begun.0.lock().unwrap() += 1;
            begun.1.notify_all();
        }
        std::thread::sleep(PACE);
    }
}

fn attacks(address: &str, tp: TopicPartition) -> Vec<(&'static str, Attack)> {
    let to = || address.to_owned();
    let (address_1, address_2, address_3) = (to(), to(), to());
    let mut random = Random(3);
    let mut half = VecDeque::new();
    let (mut unknown, mut checksums, mut topics) = (greeted(address), greeted(address), greeted(address));
    vec![
        ("garbage", Box::new(move || garbage(&address_1, &mut random))),
        ("huge prefix", Box::new(move || huge_prefix(&address_2))),
        ("half frame", Box::new(move || half_frame(&address_3, &mut half))),
        ("unknown kind", Box::new(move || unknown_kind(&mut unknown))),
        ("wrong checksum", Box::new(move || wrong_checksums(&mut checksums, tp))),
        ("wrong topic id", Box::new(move || wrong_topics(&mut topics, tp))),
    ]
}

/// Bytes of no meaning end the connection.
pub(crate) fn garbage(address: &str, random: &mut Random) {
    let mut stream = connect(address);
    let length = [1, 31, 32, 33, 1_000, 70_000][usize::try_from(random.below(6)).unwrap()];
    let bytes: Vec<u8> = (0..length).map(|_| random.next().to_le_bytes()[0]).collect();
    // The broker may close while this is still being written.
    drop(stream.write_all(&bytes));
    drop(stream.shutdown(Shutdown::Write));
    assert_eq!(answer(&mut stream), None, "{length} bytes of garbage");
}

fn nothing_produced() -> Vec<u8> {
    Request::Produce(ProduceRequest { acks: Acks::All, deadline_ms: 1, rows: Vec::new() }).encode()
}

/// A sound prelude that claims a gibibyte, before and after Hello, is refused for what it is, and the connection ends.
pub(crate) fn huge_prefix(address: &str) {
    for mut stream in [connect(address), greeted(address)] {
        let prelude = Prelude::request(Kind::Produce, CorrelationId::new(9), &nothing_produced(), 1 << 30);
        stream.write_all(&prelude.encode()).unwrap();
        assert_eq!(refusal(&mut stream), Some(ErrorCode::TooLarge));
        drop(stream.shutdown(Shutdown::Write));
        assert_eq!(answer(&mut stream), None, "the connection ends");
    }
}

/// One more connection that announces 16 MiB and stops after a little; the oldest goes. The broker may close any of them
/// when others need the memory.
fn half_frame(address: &str, held: &mut VecDeque<TcpStream>) {
    if held.len() >= HALF_FRAMES {
        held.pop_front();
    }
    let header = nothing_produced();
    let prelude = Prelude::request(Kind::Produce, CorrelationId::new(9), &header, 16 << 20);
    let mut stream = greeted(address);
    let bytes = if held.len().is_multiple_of(LONG_HALF_FRAMES) { 1 << 20 } else { 1_000 };
    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    drop(stream.write_all(&[&prelude.encode()[..], &header, &vec![0; bytes]].concat()));
    held.push_back(stream);
}

/// A kind that nobody knows is refused, and the connection goes on.
pub(crate) fn unknown_kind(stream: &mut TcpStream) {
    let prelude = Prelude { kind: 999, ..Prelude::request(Kind::Fetch, CorrelationId::new(5), &[], 0) };
    stream.write_all(&prelude.encode()).unwrap();
    assert_eq!(refusal(stream), Some(ErrorCode::UnsupportedKind));
}

/// A header that does not match its checksum, and batches that do not match theirs, are refused; the connection goes on.
pub(crate) fn wrong_checksums(stream: &mut TcpStream, tp: TopicPartition) {
    let nothing = FetchRequest {
        max_wait_ms: 0,
        min_bytes: 0,
        max_bytes: 1,
        rows: Vec::new(),
        filter: corelog_wire::keys::TagFilter::ALL,
    };
    let mut bad_header = frame(&Request::Fetch(nothing), 6, &[]);
    let last = bad_header.len() - 1;
    bad_header[last] ^= 0xFF;
    stream.write_all(&bad_header).unwrap();
    assert_eq!(refusal(stream), Some(ErrorCode::Malformed));
    let good = batch(tp, b"value");
    for at in [30, 45, 90, HEADER_BYTES + 2] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        stream.write_all(&produce_frame(tp, &bad)).unwrap();
        assert_eq!(produced(stream), ErrorCode::CorruptBatch, "a flipped bit in byte {at}");
    }
}

/// Topics and partitions that are not there, and a batch that was sealed for another topic.
pub(crate) fn wrong_topics(stream: &mut TcpStream, tp: TopicPartition) {
    let elsewhere = TopicPartition::new(TopicId::from_bytes([9; 16]), 0);
    stream.write_all(&produce_frame(elsewhere, &batch(elsewhere, b"value"))).unwrap();
    assert_eq!(produced(stream), ErrorCode::UnknownTopic);
    stream.write_all(&produce_frame(tp, &batch(elsewhere, b"value"))).unwrap();
    assert_eq!(produced(stream), ErrorCode::CorruptBatch);
    let missing = TopicPartition::new(tp.topic, 55);
    stream.write_all(&produce_frame(missing, &batch(missing, b"value"))).unwrap();
    assert_eq!(produced(stream), ErrorCode::UnknownPartition);
}

/// The code of the next answer, which refuses a whole request; none if the broker closed the connection.
pub(crate) fn refusal(stream: &mut TcpStream) -> Option<ErrorCode> {
    match answer(stream)? {
        Answer::Refused { refusal, .. } => Some(refusal.code),
        other => panic!("not refused: {other:?}"),
    }
}

/// The code of the next answer, which is one to a Produce.
pub(crate) fn produced(stream: &mut TcpStream) -> ErrorCode {
    produced_row(stream).error
}

/// Readers that ask for a gibibyte each and take a byte a second, until the other end of `stopped` goes. Gives how many
/// bytes they took, and how many of them the broker closed.
pub(crate) fn slow_readers(
    address: &str,
    tp: TopicPartition,
    count: usize,
    stopped: &Receiver<()>,
) -> (usize, usize) {
    let mut streams: Vec<TcpStream> = (0..count).map(|at| greedy(address, tp, at % 2 == 0)).collect();
    let (mut taken, mut closed) = (0, 0);
    loop {
        streams.retain_mut(|stream| {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => taken += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // It was told that it is too slow.
                Ok(_) | Err(_) => {
                    closed += 1;
                    return false;
                }
            }
            true
        });
        if stopped.recv_timeout(Duration::from_secs(1)) != Err(RecvTimeoutError::Timeout) {
            return (taken, closed);
        }
    }
}

/// A connection with a gibibyte of answers asked for: by one request, or by 1,024 in a row.
fn greedy(address: &str, tp: TopicPartition, at_once: bool) -> TcpStream {
    let (requests, bytes) = if at_once { (1, 1 << 30) } else { (1_024, 1 << 20) };
    let row = FetchRow { tp, offset: Offset::ZERO, max_bytes: bytes, leader_epoch: None };
    let request = Request::Fetch(FetchRequest {
        max_wait_ms: 0,
        min_bytes: 1,
        max_bytes: bytes,
        rows: vec![row],
        filter: corelog_wire::keys::TagFilter::ALL,
    });
    let mut stream = greeted(address);
    let frames: Vec<u8> = (10..10 + requests).flat_map(|number| frame(&request, number, &[])).collect();
    // It may be told to wait by a window that is closed.
    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    drop(stream.write_all(&frames));
    stream.set_nonblocking(true).unwrap();
    stream
}
