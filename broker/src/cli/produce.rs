//! `corelog produce`: a file or standard input, record by record, into a topic.
//!
//! Invariants: the records are the input, byte for byte, in its order per partition; the command succeeds only if each
//! was acknowledged; with JSON output a line is written for each acknowledged record, and for no other, as long as
//! somebody reads them.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use corelog_client::{Acks, Delivery, Error, Partitioner, Producer, RecordRef, TAG_HEADER, Ticket};

use super::args::ProduceArgs;
use super::failure::Failure;
use super::input::{self, Pieces};
use super::progress::Progress;
use super::{Interrupts, OutputFormat, complain, connect};

/// How long what was taken may take to be delivered after Ctrl-C.
const LAST_WORDS: Duration = Duration::from_secs(5);

pub(super) async fn run(args: ProduceArgs, output: OutputFormat) -> Result<(), Failure> {
    // Before the broker is asked for anything: an input that cannot be read is no reason to create a topic.
    let (source, length) = input::open(args.file.as_deref())?;
    if args.file.is_none() && io::stdin().is_terminal() && output == OutputFormat::Text {
        complain("One record a line; Ctrl-D ends.");
    }
    let client = connect(&args.client).await?;
    let mut builder = client
        .producer(&args.topic)
        .acks(args.acks.acks())
        .compression(args.compression.compression())
        .linger(Duration::from_millis(args.linger_ms))
        .batch_bytes(args.batch_bytes);
    if let Some(partition) = args.partition {
        builder = builder.partitioner(Partitioner::Explicit(partition));
    }
    let producer = builder.build()?;
    let mut job = Job {
        chunks: input::chunks(source, args.delimiter),
        progress: Progress::new(length, output, false),
        json: (output == OutputFormat::Json).then(|| Acknowledged::new(&args)),
        producer,
        args,
    };
    let mut interrupts = Interrupts::new();
    let sent = tokio::select! {
        sent = job.send() => sent,
        interrupt = interrupts.next() => Err(interrupt),
    };
    let patience = if sent.is_ok() { Duration::MAX } else { LAST_WORDS };
    let closed = tokio::select! {
        closed = tokio::time::timeout(patience, job.close()) => closed,
        interrupt = interrupts.next() => Ok(Err(interrupt)),
    };
    match (sent, closed) {
        (Err(failure), _) | (Ok(()), Ok(Err(failure))) => Err(failure),
        (Ok(()), Ok(Ok(()))) => {
            job.progress.finish("sent");
            Ok(())
        }
        (Ok(()), Err(_)) => Err(Error::Deadline { what: "closing", last: None }.into()),
    }
}

struct Job {
    args: ProduceArgs,
    producer: Producer,
    chunks: tokio::sync::mpsc::Receiver<input::Chunk>,
    progress: Progress,
    json: Option<Acknowledged>,
}

impl Job {
    /// Hands over the whole input.
    async fn send(&mut self) -> Result<(), Failure> {
        loop {
            // Acknowledgements are written while there is nothing to read.
            let chunk = match &mut self.json {
                None => self.chunks.recv().await,
                Some(json) => loop {
                    tokio::select! {
                        biased;
                        chunk = self.chunks.recv() => break chunk,
                        written = json.write_some() => written?,
                    }
                },
            };
            let Some(chunk) = chunk else { return Ok(()) };
            let chunk = chunk.map_err(|error| Failure::fault("cannot read the input", &error))?;
            let records = match &mut self.json {
                None => send_chunk(&self.args, &self.producer, &chunk).await?,
                Some(json) => json.send_chunk(&self.args, &self.producer, &chunk).await?,
            };
            self.progress.add(chunk.len() as u64, records);
            // A turn for the driver, so that it sends while the next chunk is read.
            tokio::task::yield_now().await;
            if self.producer.undelivered() > 0 {
                // What follows a lost record is not sent: closing says what happened.
                return Ok(());
            }
        }
    }

    /// Waits for everything that was handed over.
    async fn close(&mut self) -> Result<(), Failure> {
        match &mut self.json {
            Some(json) => {
                let (closed, written) = tokio::join!(self.producer.close(), json.write_all());
                // A record that is not there matters more than a line that is not.
                closed.map_err(Failure::from).and(written)
            }
            None => self.producer.close().await.map_err(Failure::from),
        }
    }
}

/// A record of the input as the arguments say.
fn record<'a>(args: &ProduceArgs, headers: &'a Headers<'a>, piece: &'a [u8]) -> RecordRef<'a> {
    let piece = if args.chomp { input::chomp(piece, args.delimiter) } else { piece };
    let (key, value) = match &args.key_separator {
        Some(separator) => input::split_key(piece, separator.as_bytes()),
        None => (None, piece),
    };
    let value = Some(value).filter(|value| !(args.tombstones && value.is_empty()));
    RecordRef { key, value, headers, ..RecordRef::new(&[]) }
}

type Headers<'a> = [(&'a [u8], Option<&'a [u8]>)];

/// The headers of every record.
fn headers(args: &ProduceArgs) -> Vec<(&[u8], Option<&[u8]>)> {
    args.tag.iter().map(|tag| (TAG_HEADER.as_bytes(), Some(tag.as_bytes()))).collect()
}

async fn send_chunk(args: &ProduceArgs, producer: &Producer, chunk: &[u8]) -> Result<u64, Failure> {
    let headers = headers(args);
    let records: Vec<RecordRef<'_>> =
        Pieces::new(chunk, args.delimiter).map(|piece| record(args, &headers, piece)).collect();
    producer.enqueue_all(&records).await?;
    Ok(records.len() as u64)
}

/// The tickets that wait for their acknowledgement, and the lines written about those that got it.
struct Acknowledged {
    /// By partition: there, acknowledgements come in order.
    waiting: BTreeMap<u32, VecDeque<Ticket>>,
    out: BufWriter<io::Stdout>,
    /// The topic as a JSON string.
    topic: String,
    /// Nothing is acknowledged at all.
    silent: bool,
    /// Nobody reads the lines any more. The records are sent all the same.
    unread: bool,
}

impl Acknowledged {
    fn new(args: &ProduceArgs) -> Self {
        Self {
            waiting: BTreeMap::new(),
            out: BufWriter::with_capacity(64 << 10, io::stdout()),
            topic: serde_json::Value::from(args.topic.as_str()).to_string(),
            silent: args.acks.acks() == Acks::None,
            unread: false,
        }
    }

    async fn send_chunk(
        &mut self,
        args: &ProduceArgs,
        producer: &Producer,
        chunk: &[u8],
    ) -> Result<u64, Failure> {
        let mut records = 0;
        let headers = headers(args);
        for piece in Pieces::new(chunk, args.delimiter) {
            let record = record(args, &headers, piece);
            let ticket = loop {
                tokio::select! {
                    biased;
                    ticket = producer.enqueue_ref(&record) => break ticket?,
                    written = self.write_some() => written?,
                }
            };
            if !self.unread {
                self.waiting.entry(ticket.partition()).or_default().push_back(ticket);
            }
            records += 1;
        }
        Ok(records)
    }

    /// Waits for acknowledgements and writes those that are there; for ever if none is awaited.
    async fn write_some(&mut self) -> Result<(), Failure> {
        let acknowledged = poll_fn(|cx| self.poll(cx)).await;
        let written = acknowledged.iter().try_for_each(|delivery| self.write(delivery));
        match written.and_then(|()| self.out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.unread = true;
                self.waiting.clear();
                Ok(())
            }
            written => written.map_err(|error| Failure::output(&error)),
        }
    }

    async fn write_all(&mut self) -> Result<(), Failure> {
        while !self.waiting.is_empty() {
            self.write_some().await?;
        }
        Ok(())
    }

    /// The deliveries that are known; ready also if tickets only failed, as closing will say so.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Vec<Delivery>> {
        let mut acknowledged = Vec::new();
        let mut ended = false;
        for tickets in self.waiting.values_mut() {
            while let Some(ticket) = tickets.front_mut() {
                let Poll::Ready(result) = Pin::new(ticket).poll(cx) else { break };
                ended = true;
                acknowledged.extend(result.ok());
                tickets.pop_front();
            }
        }
        self.waiting.retain(|_, tickets| !tickets.is_empty());
        if ended { Poll::Ready(acknowledged) } else { Poll::Pending }
    }

    fn write(&mut self, delivery: &Delivery) -> io::Result<()> {
        let (Some(offset), false) = (delivery.offset, self.silent) else { return Ok(()) };
        let (topic, partition, timestamp) = (&self.topic, delivery.partition, delivery.timestamp_ms);
        writeln!(
            self.out,
            r#"{{"topic":{topic},"partition":{partition},"offset":{offset},"timestamp":{timestamp}}}"#
        )
    }
}
