//! Fetch, `ListOffsets` and `DeleteRecords`: reading a log and moving its start.
//!
//! Part of `message`; its invariants hold here. The batches lie in the payload of the answer; what they hold is
//! `batch`'s to check.

use flatbuffers::{FlatBufferBuilder, WIPOffset};

use super::{
    MessageError, Refusal, claims_within, each, finish, owned, partition, root, text, wire_partition,
};
use crate::error::ErrorCode;
use crate::generated::fetch as fb;
use crate::ids::{LeaderEpoch, Offset, TopicPartition};
use crate::keys::TagFilter;

/// One log to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRow {
    /// Which log.
    pub tp: TopicPartition,
    /// From which offset; the first batch may begin before it.
    pub offset: Offset,
    /// Most bytes of this log. At least one batch comes, even if it alone is longer.
    pub max_bytes: u32,
    /// The leader epoch that the client knows; if given, another one is refused.
    pub leader_epoch: Option<LeaderEpoch>,
}

/// Reads logs, waiting for new batches if there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// How long the answer may wait for `min_bytes`.
    pub max_wait_ms: u32,
    /// The answer waits until this many bytes are at hand.
    pub min_bytes: u32,
    /// Most bytes in all. At least one batch comes, even if it alone is longer.
    pub max_bytes: u32,
    /// The logs, the most urgent first.
    pub rows: Vec<FetchRow>,
    /// Which of their batches; with it, `max_bytes` and `min_bytes` count those that are sent.
    pub filter: TagFilter,
}

/// What was read of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedRow {
    /// Which log.
    pub tp: TopicPartition,
    /// Why nothing was read; [`ErrorCode::None`] if the log was read.
    pub error: ErrorCode,
    /// Details of the error for a person.
    pub message: String,
    /// Lowest offset that consumers cannot read yet.
    pub high_watermark: Offset,
    /// Lowest offset that can be read.
    pub log_start: Offset,
    /// The offset that the next record gets.
    pub log_end: Offset,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
    /// Where the run of whole batches begins in the payload, a multiple of 8.
    pub first_byte: u32,
    /// The run's length; 0 if there is nothing new.
    pub bytes: u32,
    /// Where to go on, if the run may lack batches that were not asked for: every batch before it that was is in the run.
    /// None if the run lacks nothing.
    pub next_offset: Option<Offset>,
}

/// What was read, a row for each log, in the request's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchAnswer {
    /// How long the client should wait before its next request.
    pub throttle_ms: u32,
    /// The rows, in the order in which their runs lie in the payload.
    pub rows: Vec<FetchedRow>,
}

/// A place in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Its start.
    Earliest,
    /// Its high watermark, where consumers find what comes next.
    Latest,
    /// The first batch with a record of this time (milliseconds since 1970) or later.
    Timestamp(i64),
}

/// A place to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListOffsetsRow {
    /// In which log.
    pub tp: TopicPartition,
    /// Which place.
    pub at: At,
}

/// Looks for offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListOffsetsRequest {
    /// The places.
    pub rows: Vec<ListOffsetsRow>,
}

/// A place that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRow {
    /// In which log.
    pub tp: TopicPartition,
    /// Why it was not found; [`ErrorCode::None`] if it was.
    pub error: ErrorCode,
    /// For a time: base offset of the first batch whose latest record is of that time or later, within which the client
    /// looks on; the log's end if there is none.
    pub offset: Offset,
    /// That batch's latest time; -1 for any other place.
    pub timestamp_ms: i64,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
}

/// The places that were found, in the request's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListOffsetsAnswer {
    /// The rows.
    pub rows: Vec<ListedRow>,
}

/// A log whose start shall move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteRecordsRow {
    /// Which log.
    pub tp: TopicPartition,
    /// Its new start: records below go.
    pub before: Offset,
}

/// Raises the start of logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRecordsRequest {
    /// The logs.
    pub rows: Vec<DeleteRecordsRow>,
}

/// A log whose start was to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedRow {
    /// Which log.
    pub tp: TopicPartition,
    /// Why it did not move; [`ErrorCode::None`] if it did.
    pub error: ErrorCode,
    /// Its start now.
    pub log_start: Offset,
}

/// Where the logs start now, in the request's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRecordsAnswer {
    /// The rows.
    pub rows: Vec<DeletedRow>,
}

impl FetchRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + 64 * self.rows.len());
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let tp = wire_partition(row.tp);
                let args = fb::FetchRowArgs {
                    topic_partition: Some(&tp),
                    offset: row.offset.get(),
                    bytes_max: row.max_bytes,
                    leader_epoch: row.leader_epoch.map(LeaderEpoch::get),
                };
                fb::FetchRow::create(&mut b, &args)
            })
            .collect();
        let rows = Some(b.create_vector(&rows));
        let tag_blooms = (!self.filter.is_all()).then(|| b.create_vector(self.filter.blooms()));
        let args = fb::FetchRequestArgs {
            wait_ms_max: self.max_wait_ms,
            bytes_min: self.min_bytes,
            bytes_max: self.max_bytes,
            rows,
            tag_blooms,
        };
        let root = fb::FetchRequest::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`]; there are at most [`TAGS_PER_FILTER_MAX`](crate::keys::TAGS_PER_FILTER_MAX) tags.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::FetchRequest<'_>>(bytes)?;
        let rows = each(table.rows(), |row: fb::FetchRow<'_>| {
            Ok(FetchRow {
                tp: partition(row.topic_partition()),
                offset: Offset::new(row.offset()),
                max_bytes: row.bytes_max(),
                leader_epoch: row.leader_epoch().map(LeaderEpoch::new),
            })
        })?;
        let blooms: Vec<u64> = table.tag_blooms().into_iter().flatten().collect();
        let value = i64::try_from(blooms.len()).unwrap_or(i64::MAX);
        let too_many = MessageError::OutOfRange { field: "tag_blooms", value };
        Ok(Self {
            filter: TagFilter::from_blooms(blooms).ok_or(too_many)?,
            max_wait_ms: table.wait_ms_max(),
            min_bytes: table.bytes_min(),
            max_bytes: table.bytes_max(),
            rows,
        })
    }
}

impl FetchAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + 96 * self.rows.len());
        let rows: Vec<_> = self.rows.iter().map(|row| row.write(&mut b)).collect();
        let rows = Some(b.create_vector(&rows));
        let args = fb::FetchAnswerArgs { throttle_ms: self.throttle_ms, rows, ..Default::default() };
        let root = fb::FetchAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header. [`FetchAnswer::rows_within`] remains to be asked.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::FetchAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        let rows = each(table.rows(), |row| Ok(FetchedRow::read(&row)))?;
        Ok(Self { throttle_ms: table.throttle_ms(), rows })
    }

    /// Whether the rows that have bytes, in their order, claim aligned, disjoint pieces of a payload of this length.
    ///
    /// # Errors
    /// [`MessageError::RowOutside`].
    pub fn rows_within(&self, payload_bytes: usize) -> Result<(), MessageError> {
        let with_bytes = self.rows.iter().filter(|row| row.bytes > 0);
        claims_within(with_bytes.map(|row| (row.first_byte, row.bytes)), payload_bytes)
    }
}

impl FetchedRow {
    fn write<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::FetchedRow<'b>> {
        let message = text(b, &self.message);
        let tp = wire_partition(self.tp);
        let args = fb::FetchedRowArgs {
            topic_partition: Some(&tp),
            error: self.error.as_u16(),
            message,
            high_watermark: self.high_watermark.get(),
            log_start: self.log_start.get(),
            log_end: self.log_end.get(),
            leader_epoch: self.leader_epoch.get(),
            first_byte: self.first_byte,
            bytes: self.bytes,
            next_offset: self.next_offset.map(Offset::get),
        };
        fb::FetchedRow::create(b, &args)
    }

    fn read(table: &fb::FetchedRow<'_>) -> Self {
        Self {
            tp: partition(table.topic_partition()),
            error: ErrorCode::received(table.error()),
            message: owned(table.message()),
            high_watermark: Offset::new(table.high_watermark()),
            log_start: Offset::new(table.log_start()),
            log_end: Offset::new(table.log_end()),
            leader_epoch: LeaderEpoch::new(table.leader_epoch()),
            first_byte: table.first_byte(),
            bytes: table.bytes(),
            next_offset: table.next_offset().map(Offset::new),
        }
    }
}

impl At {
    /// Its number on the wire, and the time that goes with it.
    const fn numbers(self) -> (u8, i64) {
        match self {
            Self::Earliest => (0, 0),
            Self::Latest => (1, 0),
            Self::Timestamp(timestamp_ms) => (2, timestamp_ms),
        }
    }
}

impl ListOffsetsRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + 64 * self.rows.len());
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let tp = wire_partition(row.tp);
                let (at, timestamp_ms) = row.at.numbers();
                let args = fb::ListOffsetsRowArgs { topic_partition: Some(&tp), at, timestamp_ms };
                fb::ListOffsetsRow::create(&mut b, &args)
            })
            .collect();
        let rows = Some(b.create_vector(&rows));
        let root = fb::ListOffsetsRequest::create(&mut b, &fb::ListOffsetsRequestArgs { rows });
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`]; each place must be known.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::ListOffsetsRequest<'_>>(bytes)?;
        let rows = each(table.rows(), |row: fb::ListOffsetsRow<'_>| {
            let at = match row.at() {
                0 => At::Earliest,
                1 => At::Latest,
                2 => At::Timestamp(row.timestamp_ms()),
                other => return Err(MessageError::OutOfRange { field: "at", value: other.into() }),
            };
            Ok(ListOffsetsRow { tp: partition(row.topic_partition()), at })
        })?;
        Ok(Self { rows })
    }
}

impl ListOffsetsAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + 96 * self.rows.len());
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let tp = wire_partition(row.tp);
                let args = fb::ListedRowArgs {
                    topic_partition: Some(&tp),
                    error: row.error.as_u16(),
                    offset: row.offset.get(),
                    timestamp_ms: row.timestamp_ms,
                    leader_epoch: row.leader_epoch.get(),
                };
                fb::ListedRow::create(&mut b, &args)
            })
            .collect();
        let rows = Some(b.create_vector(&rows));
        let args = fb::ListOffsetsAnswerArgs { rows, ..Default::default() };
        let root = fb::ListOffsetsAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::ListOffsetsAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        let rows = each(table.rows(), |row: fb::ListedRow<'_>| {
            Ok(ListedRow {
                tp: partition(row.topic_partition()),
                error: ErrorCode::received(row.error()),
                offset: Offset::new(row.offset()),
                timestamp_ms: row.timestamp_ms(),
                leader_epoch: LeaderEpoch::new(row.leader_epoch()),
            })
        })?;
        Ok(Self { rows })
    }
}

impl DeleteRecordsRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + 64 * self.rows.len());
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let tp = wire_partition(row.tp);
                let args = fb::DeleteRecordsRowArgs { topic_partition: Some(&tp), before: row.before.get() };
                fb::DeleteRecordsRow::create(&mut b, &args)
            })
            .collect();
        let rows = Some(b.create_vector(&rows));
        let root = fb::DeleteRecordsRequest::create(&mut b, &fb::DeleteRecordsRequestArgs { rows });
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::DeleteRecordsRequest<'_>>(bytes)?;
        let rows = each(table.rows(), |row: fb::DeleteRecordsRow<'_>| {
            Ok(DeleteRecordsRow { tp: partition(row.topic_partition()), before: Offset::new(row.before()) })
        })?;
        Ok(Self { rows })
    }
}

impl DeleteRecordsAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + 64 * self.rows.len());
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let tp = wire_partition(row.tp);
                let args = fb::DeletedRowArgs {
                    topic_partition: Some(&tp),
                    error: row.error.as_u16(),
                    log_start: row.log_start.get(),
                };
                fb::DeletedRow::create(&mut b, &args)
            })
            .collect();
        let rows = Some(b.create_vector(&rows));
        let args = fb::DeleteRecordsAnswerArgs { rows, ..Default::default() };
        let root = fb::DeleteRecordsAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::DeleteRecordsAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        let rows = each(table.rows(), |row: fb::DeletedRow<'_>| {
            Ok(DeletedRow {
                tp: partition(row.topic_partition()),
                error: ErrorCode::received(row.error()),
                log_start: Offset::new(row.log_start()),
            })
        })?;
        Ok(Self { rows })
    }
}
