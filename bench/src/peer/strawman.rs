//! The strawman's protocol: a sealed batch a request, an empty answer when it is flushed.
//!
//! Called by `run`. Invariant: what is read back is the file itself, in the order in which it was written, so that an
//! acknowledgement without a write is found. All producers write one log, whatever the workload's partitions.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use corelog_wire::batch::{ALIGNMENT, BatchFields, HEADER_BYTES, parse_header};
use corelog_wire::frame::{Caps, Kind, PRELUDE_BYTES, Prelude};
use corelog_wire::ids::CorrelationId;
use corelog_wire::records::Records;

use super::Run;
use super::turns::{self, Turns};
use crate::check::{Checker, Ledger};
use crate::engine::{Answered, Outgoing, Protocol};
use crate::error::{Doing, Error, Result};
use crate::limits::BLOCK_BYTES;
use crate::payload::Template;
use crate::strawman::{LOG_NAME, Lap, PAYLOAD_BYTES_MAX, place};
use crate::tally::{Outcome, Plan, Window};
use crate::workload::{Durability, Topic};

const CAPS: Caps = Caps { header_bytes_max: 4096, payload_bytes_max: 0 };

/// One run.
#[derive(Debug)]
pub struct Session<'a> {
    run: Run<'a>,
    file: PathBuf,
}

impl<'a> Session<'a> {
    /// Of a strawman that was started here.
    ///
    /// # Errors
    /// [`Error::Setup`] if it was not, or requests are longer than it takes.
    pub fn open(run: Run<'a>) -> Result<Self> {
        let bytes = run.templates.iter().map(Template::batch_bytes).max().unwrap_or_default();
        if bytes > PAYLOAD_BYTES_MAX as usize {
            return Err(Error::Setup(format!("the strawman takes {PAYLOAD_BYTES_MAX} bytes, not {bytes}")));
        }
        let folder =
            run.folder.ok_or_else(|| Error::Setup("only a strawman that is started here".to_owned()))?;
        Ok(Self { run, file: folder.join(LOG_NAME) })
    }

    /// Where the strawman's writes are.
    fn lap(&self) -> Result<Lap> {
        let doing = || "asking the strawman where its writes are".to_owned();
        let mut stream = TcpStream::connect(self.run.address).doing(doing)?;
        let request = Prelude::request(Kind::DescribeTopic, CorrelationId::new(0), &[], 0);
        stream.write_all(&request.encode()).doing(doing)?;
        let mut prelude = [0; PRELUDE_BYTES];
        stream.read_exact(&mut prelude).doing(doing)?;
        let prelude = Prelude::decode(&prelude, &CAPS).map_err(|error| Error::Peer(error.to_string()))?;
        let mut header = vec![0; prelude.header_bytes as usize];
        stream.read_exact(&mut header).doing(doing)?;
        Lap::decode(&header).ok_or_else(|| Error::Peer(format!("a lap of {} bytes", header.len())))
    }

    fn region(&self, range: Range<u64>) -> Result<Bytes> {
        let doing = || format!("reading {}", self.file.display());
        let mut file = File::open(&self.file).doing(doing)?;
        file.seek(SeekFrom::Start(range.start)).doing(doing)?;
        let mut bytes = Vec::new();
        file.take(range.end - range.start).read_to_end(&mut bytes).doing(doing)?;
        Ok(Bytes::from(bytes))
    }
}

impl super::Session for Session<'_> {
    fn drive(&self, plan: &Plan, window: &mut dyn Window) -> Result<(Outcome, Vec<Ledger>)> {
        let mut connections = Vec::new();
        for number in 0..plan.load.connections() {
            let stream = TcpStream::connect(self.run.address)
                .doing(|| format!("connecting to {}", self.run.address))?;
            connections.push((stream, Producer::new(self.run, number)));
        }
        turns::drive(connections, plan, window, |producer| producer.turns.ledger)
    }

    fn moved(&mut self, _: SocketAddr) -> Result<()> {
        Err(Error::Setup("the strawman begins anew at each start: leave it out of kill runs".to_owned()))
    }

    fn read_back(&mut self, checker: &mut Checker<'_>) -> Result<u64> {
        let lap = self.lap()?;
        checker.begin(0, lap.laps.min(1));
        let mut offset = lap.laps.min(1);
        let mut bytes = 0;
        if lap.laps > 0 {
            bytes += scan(&self.region(lap.position..lap.end_before)?, &mut offset, checker);
        }
        bytes += scan(&self.region(0..lap.position)?, &mut offset, checker);
        checker.end();
        Ok(bytes)
    }

    fn remove(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Reads the batches of a region in their order. Behind the last batch of a write are zeros up to the next block; what
/// begins in the middle of an older write is passed over a block at a time.
fn scan(region: &Bytes, offset: &mut u64, checker: &mut Checker<'_>) -> u64 {
    let (mut at, mut bytes) = (0, 0);
    while at < region.len() {
        let Some((next, records)) = batch(region, at) else {
            at = (at + 1).next_multiple_of(BLOCK_BYTES);
            continue;
        };
        for value in records {
            checker.record(*offset, value.as_deref());
            *offset += 1;
        }
        bytes += (next - at) as u64;
        at = next;
    }
    bytes
}

/// The values of the sound batch that begins here, and where it ends.
fn batch(region: &Bytes, at: usize) -> Option<(usize, Vec<Option<Bytes>>)> {
    let (header, _) = parse_header(&region[at..], place()).ok()?;
    let body_at = at + HEADER_BYTES;
    let body = body_at..body_at.checked_add(header.body_bytes as usize)?;
    if region.len() < body.end || header.checksum_of_body(&region[body.clone()]) != header.body_crc32c {
        return None;
    }
    let values: std::result::Result<Vec<_>, _> =
        Records::new(region.slice(body), header.record_count).map(|record| record.map(|r| r.value)).collect();
    Some((at + (header.batch_bytes as usize).next_multiple_of(ALIGNMENT), values.ok()?))
}

/// One connection's load.
#[derive(Debug)]
struct Producer<'a> {
    run: Run<'a>,
    turns: Turns,
    correlation_next: u64,
    /// Sequences of what waits for an answer, from `waiting_first` on.
    waiting: VecDeque<Option<u64>>,
    waiting_first: u64,
}

impl<'a> Producer<'a> {
    fn new(run: Run<'a>, number: u32) -> Self {
        // One log, whatever partitions the workload has.
        let log = Topic { partitions: 1, ..run.workload.topic.clone() };
        Self {
            run,
            turns: Turns::new(
                run.number,
                number,
                &log,
                run.workload.records.per_request,
                run.templates.len(),
            ),
            correlation_next: 0,
            waiting: VecDeque::new(),
            waiting_first: 0,
        }
    }

    fn answer(&mut self, request: u64) -> Result<()> {
        let place = request.checked_sub(self.waiting_first).and_then(|place| usize::try_from(place).ok());
        let Some(sequence) = place.and_then(|place| self.waiting.get_mut(place)).and_then(Option::take)
        else {
            return Err(Error::Peer(format!("an answer to request {request}, which waits for none")));
        };
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.waiting_first += 1;
        }
        self.turns.ledger.acknowledged_somewhere(0, sequence);
        Ok(())
    }
}

impl Protocol for Producer<'_> {
    fn request(&mut self, intended: Duration, out: &mut Outgoing) {
        let (mark, kind) = self.turns.next(intended);
        let template = &self.run.templates[kind];
        if self.run.templates.len() > 1 {
            out.payload.clear();
        }
        self.waiting.push_back(Some(mark.sequence));
        let fields = BatchFields::plain(template.records(), 0);
        template.fill(&mut out.payload, mark, &fields, place());
        let payload_bytes = u32::try_from(out.payload.len()).unwrap_or(u32::MAX);
        // Any header, of a multiple of eight bytes, asks for an acknowledgement from memory.
        let header: &[u8] = match self.run.workload.topic.durability {
            Durability::Disk => &[],
            Durability::Memory => b"memory..",
        };
        let prelude =
            Prelude::request(Kind::Produce, CorrelationId::new(self.correlation_next), header, payload_bytes);
        self.correlation_next += 1;
        out.head.clear();
        out.head.extend_from_slice(&prelude.encode());
        out.head.extend_from_slice(header);
    }

    fn answers(&mut self, input: &[u8], answered: &mut Vec<Answered>) -> Result<usize> {
        let mut taken = 0;
        while let Some(bytes) = input[taken..].first_chunk::<PRELUDE_BYTES>() {
            let prelude = Prelude::decode(bytes, &CAPS).map_err(|error| Error::Peer(error.to_string()))?;
            let request = prelude.correlation.get();
            self.answer(request)?;
            answered.push(Answered { request, refused: None });
            taken += PRELUDE_BYTES + prelude.header_bytes as usize;
        }
        Ok(taken)
    }
}
