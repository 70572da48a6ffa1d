//! A connection on which requests do not wait for answers, and loads of single requests over it.
//!
//! Called by `groups` and `compaction`. Invariant: latencies are from the moment a request was meant to be sent, and an
//! answer that refuses anything is an error.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use corelog_wire::error::ErrorCode;
use corelog_wire::frame::{Caps, Kind, PRELUDE_BYTES, Prelude};
use corelog_wire::ids::CorrelationId;
use corelog_wire::message::{Answer, Request};
use hdrhistogram::Histogram;

use crate::error::{Doing, Error, Result};
use crate::measure::{histogram, nanoseconds};
use crate::peer::corelog::Connection;

const CAPS: Caps = Caps { header_bytes_max: 4 << 20, payload_bytes_max: 1 << 20 };

/// When each request that waits for its answer was meant to be sent.
type Waiting = Arc<Mutex<HashMap<u64, (Instant, Kind)>>>;

/// Sends at an even rate, whatever the answers do; gives the latencies from the intended times.
pub(crate) fn open_loop(
    address: SocketAddr,
    rate: f64,
    time: Duration,
    mut request: impl FnMut(u64) -> (Request, Vec<u8>),
) -> Result<Histogram<u64>> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of requests")]
    let count = (rate * time.as_secs_f64()) as u64;
    let mut line = Line::open(address, count, usize::MAX)?;
    let began = Instant::now();
    for number in 0..count {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let due = began + Duration::from_secs_f64(number as f64 / rate);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let (request, payload) = request(number);
        line.send(due, &request, &payload)?;
    }
    line.end()
}

/// Sends as fast as answers come, `window` requests at a time.
pub(crate) fn closed_loop(
    address: SocketAddr,
    count: u64,
    window: usize,
    mut request: impl FnMut(u64) -> (Request, Vec<u8>),
) -> Result<Histogram<u64>> {
    let mut line = Line::open(address, count, window)?;
    for number in 0..count {
        let (request, payload) = request(number);
        line.send(Instant::now(), &request, &payload)?;
    }
    line.end()
}

/// A connection on which requests do not wait for answers.
struct Line {
    stream: TcpStream,
    correlation: u64,
    waiting: Waiting,
    window: mpsc::SyncSender<()>,
    reading: thread::JoinHandle<Result<Histogram<u64>>>,
}

impl Line {
    fn open(address: SocketAddr, count: u64, window: usize) -> Result<Self> {
        let (stream, correlation) = Connection::open(address)?.0.into_stream();
        let mut incoming = stream.try_clone().doing(|| "duplicating a descriptor".to_owned())?;
        let waiting = Waiting::default();
        let (places, taken) = mpsc::sync_channel(window.min(1 << 20));
        let asked = Arc::clone(&waiting);
        let reading = thread::spawn(move || {
            let mut latencies = histogram();
            for _ in 0..count {
                let latency = read_answer(&mut incoming, &asked)?;
                latencies.saturating_record(nanoseconds(latency));
                // The sender may have ended.
                let _ = taken.recv();
            }
            Ok(latencies)
        });
        Ok(Self { stream, correlation, waiting, window: places, reading })
    }

    fn send(&mut self, due: Instant, request: &Request, payload: &[u8]) -> Result<()> {
        let (kind, header) = (request.kind(), request.encode());
        // Full: waits for an answer. Closed: the reader has ended with an error, which `end` tells.
        let _ = self.window.send(());
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(self.correlation, (due, kind));
        let correlation = CorrelationId::new(self.correlation);
        self.correlation += 1;
        let bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut frame = Prelude::request(kind, correlation, &header, bytes).encode().to_vec();
        frame.extend_from_slice(&header);
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).doing(|| format!("asking {}", kind.name()))
    }

    fn end(self) -> Result<Histogram<u64>> {
        self.reading.join().map_err(|_| Error::Peer("the reading thread ended early".to_owned()))?
    }
}

fn read_answer(stream: &mut TcpStream, waiting: &Waiting) -> Result<Duration> {
    let doing = || "waiting for an answer".to_owned();
    let mut prelude = [0; PRELUDE_BYTES];
    stream.read_exact(&mut prelude).doing(doing)?;
    let prelude = Prelude::decode(&prelude, &CAPS).map_err(|error| Error::Peer(error.to_string()))?;
    let mut header = vec![0; prelude.header_bytes as usize];
    stream.read_exact(&mut header).doing(doing)?;
    let asked = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&prelude.correlation.get());
    let (due, kind) = asked.ok_or_else(|| Error::Peer("an answer that nobody asked for".to_owned()))?;
    let latency = due.elapsed();
    let answer = Answer::decode(kind, &header).map_err(|error| Error::Peer(error.to_string()))?;
    match answer {
        Answer::GroupHeartbeat(_) => Ok(latency),
        Answer::OffsetCommit(answer) if answer.rows.iter().all(|row| row.error == ErrorCode::None) => {
            Ok(latency)
        }
        Answer::Produce(answer) if answer.rows.iter().all(|row| row.error == ErrorCode::None) => Ok(latency),
        other => Err(Error::Peer(format!("{other:?}"))),
    }
}

/// p50, p99 and the largest, in milliseconds.
pub(crate) fn percentiles(latencies: &Histogram<u64>) -> [f64; 3] {
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of seconds")]
    [latencies.value_at_quantile(0.5), latencies.value_at_quantile(0.99), latencies.max()]
        .map(|nanoseconds| nanoseconds as f64 / 1e6)
}

/// The median.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
