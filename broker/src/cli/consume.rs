//! `corelog consume`: the records of a topic, to standard output.
//!
//! Invariants: values are written as they are, nothing added; `--until-end` stops exactly at the records that were there
//! when the command began.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::{Duration, Instant};

use corelog_client::{
    Batch, Client, Consumer, ConsumerBuilder, ErrorCode, Progress as Place, Reader, ReaderBuilder, Share,
    Start, Taken,
};

use super::args::ConsumeArgs;
use super::failure::Failure;
use super::format::{Format, Template};
use super::progress::Progress;
use super::{Interrupts, OutputFormat, complain, connect};

/// What is gathered before it is written.
const OUT_BYTES: usize = 1 << 20;
/// Who has got nothing for so long looks whether all was read.
const END_LOOK: Duration = Duration::from_millis(100);

pub(super) async fn run(args: ConsumeArgs, output: OutputFormat) -> Result<(), Failure> {
    let format = match (output, &args.format) {
        (OutputFormat::Json, Some(_)) => {
            return Err(Failure::Usage("--format and --output json exclude each other".to_owned()));
        }
        (OutputFormat::Json, None) => Format::Json,
        (OutputFormat::Text, None) => Format::Value,
        (OutputFormat::Text, Some(text)) => Format::Template(Template::parse(text).map_err(Failure::Usage)?),
    };
    if args.count == Some(0) {
        return Ok(());
    }
    let client = connect(&args.client).await?;
    if let Some(group) = &args.group {
        return as_member(&client, group, &args, format, output).await;
    }
    let ends = if args.until_end { Some(ends(&client, &args, args.from).await?) } else { None };
    if ends.as_ref().is_some_and(BTreeMap::is_empty) {
        return Ok(());
    }
    let reader = match args.partition {
        Some(partition) => client.reader(&args.topic, partition),
        None => client.topic_reader(&args.topic),
    };
    let reader = reader.from(args.from).tags(&args.tag);
    let reader = args.reset.into_iter().fold(reader, ReaderBuilder::reset).build()?;
    let stdout = io::stdout();
    let progress = Progress::new(None, output, stdout.is_terminal());
    let out = BufWriter::with_capacity(OUT_BYTES, stdout);
    let mut job = Job { format, ends, written: 0, remaining: args.count, out, progress };
    let mut interrupts = Interrupts::new();
    let copied = tokio::select! {
        copied = job.copy(&reader) => copied,
        interrupt = interrupts.next() => Err(interrupt),
    };
    let flushed = job.out.flush().map_err(|error| Failure::output(&error));
    reader.close();
    copied?;
    flushed?;
    job.progress.finish("read");
    Ok(())
}

/// Reads as a member of a group. A batch counts as done when it was written out and the next is asked for.
async fn as_member(
    client: &Client,
    group: &str,
    args: &ConsumeArgs,
    format: Format,
    output: OutputFormat,
) -> Result<(), Failure> {
    // A group may wait for a topic to come; somebody who types its name would rather know.
    client.admin().topic(&args.topic).await?;
    // Where the group goes on is not known yet: what it has read is left out later.
    let ends = if args.until_end { Some(ends(client, args, Start::Earliest).await?) } else { None };
    if ends.as_ref().is_some_and(BTreeMap::is_empty) {
        return Ok(());
    }
    let builder = client.consumer(group).topics([args.topic.as_str()]).from(args.from);
    let builder = builder.session_timeout(args.session_timeout).tags(&args.tag);
    let builder = args.reset.into_iter().fold(builder, ConsumerBuilder::reset);
    let consumer = match &args.instance {
        Some(instance) => builder.instance(instance).build()?,
        None => builder.build()?,
    };
    let stdout = io::stdout();
    let progress = Progress::new(None, output, stdout.is_terminal());
    let out = BufWriter::with_capacity(OUT_BYTES, stdout);
    let mut job = Job { format, ends, written: 0, remaining: args.count, out, progress };
    let mut interrupts = Interrupts::new();
    let copied = tokio::select! {
        copied = job.share(client, group, &args.topic, &consumer) => copied,
        interrupt = interrupts.next() => Err(interrupt),
    };
    match &copied {
        // Whatever was taken has been written: there is nothing to wait for between the two.
        Ok(()) | Err(Failure::Interrupted | Failure::Terminated) => consumer.close().await,
        Err(_) => consumer.leave().await,
    }
    copied?;
    job.progress.finish("read");
    Ok(())
}

/// The partitions that have something to read now from there on, and where each ends.
async fn ends(client: &Client, args: &ConsumeArgs, from: Start) -> Result<BTreeMap<u32, u64>, Failure> {
    let admin = client.admin();
    let starts = admin.list_offsets(&args.topic, from).await?;
    let ends = admin.list_offsets(&args.topic, Start::Latest).await?;
    let wanted = |partition: u32| args.partition.is_none_or(|only| only == partition);
    if !ends.iter().any(|end| wanted(end.partition)) {
        let partition = args.partition.unwrap_or_default();
        let reason =
            format!("topic {} has {} partitions, but no partition {partition}", args.topic, ends.len());
        return Err(Failure::Usage(reason));
    }
    // An offset beyond the end is left in: the broker says what is wrong with it.
    let beyond = matches!(from, Start::Offset(_));
    let pairs = starts.iter().zip(&ends).filter(|(_, end)| wanted(end.partition));
    let pairs =
        pairs.filter(|(start, end)| start.offset < end.offset || (beyond && start.offset > end.offset));
    Ok(pairs.map(|(_, end)| (end.partition, end.offset)).collect())
}

/// How far a group has committed in each partition of a topic.
async fn committed(client: &Client, group: &str, topic: &str) -> Result<BTreeMap<u32, u64>, Failure> {
    match client.admin().describe_group(group).await {
        Ok(described) => {
            let rows = described.partitions.into_iter().filter(|row| row.topic == topic);
            Ok(rows.filter_map(|row| Some((row.tp.partition, row.committed?.get()))).collect())
        }
        // It comes to be with its first member, which this one may be.
        Err(error) if error.code() == Some(ErrorCode::UnknownGroup) => Ok(BTreeMap::new()),
        Err(error) => Err(error.into()),
    }
}

struct Job<W: Write> {
    format: Format,
    /// The partitions that have not been read to their end, if there is one.
    ends: Option<BTreeMap<u32, u64>>,
    /// Records of the last batch that were written.
    written: usize,
    /// Records still to be written, if they are counted.
    remaining: Option<u64>,
    out: BufWriter<W>,
    progress: Progress,
}

impl<W: Write> Job<W> {
    async fn copy(&mut self, reader: &Reader) -> Result<(), Failure> {
        loop {
            let mut batch = reader.try_next()?;
            if batch.is_none() {
                // Whoever reads the output should not wait while we do.
                self.out.flush().map_err(|error| Failure::output(&error))?;
                if self.ends.is_none() {
                    batch = reader.next().await?;
                } else if let Ok(next) = tokio::time::timeout(END_LOOK, reader.next()).await {
                    batch = next?;
                } else {
                    // A filter may leave out everything up to the end.
                    if self.is_at_the_ends(|partition| reader.position(partition)) {
                        return Ok(());
                    }
                    continue;
                }
            }
            let Some(batch) = batch else { return Ok(()) };
            self.write(&batch).map_err(|error| Failure::output(&error))?;
            if self.remaining == Some(0) {
                return Ok(());
            }
            if self.is_at_the_ends(|read| (read == batch.partition()).then_some(batch.next_offset())) {
                return Ok(());
            }
            // A turn for the driver, so that it fetches while we write.
            tokio::task::yield_now().await;
        }
    }

    async fn share(
        &mut self,
        client: &Client,
        group: &str,
        topic: &str,
        consumer: &Consumer,
    ) -> Result<(), Failure> {
        let (mut looked, mut is_idle) = (Instant::now(), false);
        loop {
            // Others of the group may have read what this member waits for.
            if self.ends.is_some() && looked.elapsed() >= END_LOOK {
                let shares = if is_idle { consumer.partitions() } else { Vec::new() };
                let read = shares.iter().filter(|share| consumer.lag(share) == Some(0));
                let read: BTreeSet<u32> = read.map(|share| share.partition).collect();
                let committed = committed(client, group, topic).await?;
                // What a filter leaves out up to the end is read when nothing has come for a while.
                let place = |partition: u32| {
                    if read.contains(&partition) {
                        Some(u64::MAX)
                    } else {
                        committed.get(&partition).copied()
                    }
                };
                if self.is_at_the_ends(place) {
                    return Ok(());
                }
                looked = Instant::now();
            }
            let taken = tokio::time::timeout(END_LOOK, consumer.next_event()).await;
            is_idle = taken.is_err();
            let Ok(taken) = taken else { continue };
            let batch = match taken? {
                Some(Taken::Records(batch)) => batch,
                Some(Taken::Lost(shares)) => {
                    let places: Vec<String> =
                        shares.iter().map(|share| format!("{}/{}", share.topic, share.partition)).collect();
                    complain(&format!(
                        "corelog: lost {}: the group heard nothing of this member for its session timeout. Others go on \
                         from what was committed",
                        places.join(" ")
                    ));
                    continue;
                }
                Some(Taken::Assigned(_) | Taken::Revoked(_)) => continue,
                None => return Ok(()),
            };
            let written = self.write(&batch).and_then(|()| self.out.flush());
            written.map_err(|error| Failure::output(&error))?;
            if self.remaining == Some(0) {
                return self.stop_within(consumer, &batch).await;
            }
            if self.ends.is_some() {
                // The rest is for whoever reads once this command is over.
                self.stop_within(consumer, &batch).await?;
                if self.is_at_the_ends(|read| (read == batch.partition()).then_some(batch.next_offset())) {
                    return Ok(());
                }
            }
        }
    }

    /// Leaves the records of a batch that were not written to whoever reads next.
    async fn stop_within(&self, consumer: &Consumer, batch: &Batch) -> Result<(), Failure> {
        let share = Share { topic: batch.topic().clone(), partition: batch.partition() };
        let Some(next) = batch.iter().nth(self.written).map(|record| record.offset()) else { return Ok(()) };
        let stopped = async {
            consumer.pause(&share)?;
            consumer.seek(&share, Start::Offset(next))?;
            consumer.commit_offsets(vec![(share.clone(), Place::at(next))]).await
        };
        match stopped.await {
            // It was given to somebody else meanwhile, who goes on from what was committed.
            Err(_) if !consumer.partitions().contains(&share) => Ok(()),
            stopped => Ok(stopped?),
        }
    }

    /// Whether the last partition was read to its end, given how far some were.
    fn is_at_the_ends(&mut self, position: impl Fn(u32) -> Option<u64>) -> bool {
        let Some(ends) = &mut self.ends else { return false };
        ends.retain(|&partition, end| position(partition).is_none_or(|position| position < *end));
        ends.is_empty()
    }

    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        let end = match &self.ends {
            None => u64::MAX,
            // A partition that was read to its end, or had nothing to read.
            Some(ends) => ends.get(&batch.partition()).copied().unwrap_or(0),
        };
        let (mut bytes, mut records) = (0, 0);
        for record in batch {
            if record.offset() >= end || self.remaining == Some(0) {
                break;
            }
            self.format.write(&record, batch.topic(), &mut self.out)?;
            bytes += record.value().map_or(0, <[u8]>::len) as u64;
            records += 1;
            self.remaining = self.remaining.map(|remaining| remaining - 1);
        }
        self.written = usize::try_from(records).unwrap_or(usize::MAX);
        self.progress.add(bytes, records);
        Ok(())
    }
}
