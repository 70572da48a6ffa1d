//! Produce, and the names of idempotent producers.
//!
//! Part of `message`; its invariants hold here. The batches lie in the payload; what they hold is `batch`'s to check.

use flatbuffers::{FlatBufferBuilder, WIPOffset};

use super::{
    MessageError, Refusal, claims_within, each, finish, owned, partition, root, text, wire_partition,
};
use crate::error::ErrorCode;
use crate::generated::produce as fb;
use crate::ids::{Offset, ProducerEpoch, ProducerId, TopicPartition};

/// What a producer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Acks {
    /// Nothing: no answer is sent.
    None = 0,
    /// The leader has it.
    Leader = 1,
    /// Every in-sync replica has it.
    All = 2,
}

impl Acks {
    /// The value of this number on the wire.
    #[must_use]
    pub const fn from_u8(acks: u8) -> Option<Self> {
        match acks {
            0 => Some(Self::None),
            1 => Some(Self::Leader),
            2 => Some(Self::All),
            _ => None,
        }
    }
}

/// One batch to append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceRow {
    /// Where to.
    pub tp: TopicPartition,
    /// Where the batch begins in the payload, a multiple of 8.
    pub first_byte: u32,
    /// The batch's length, a multiple of 8.
    pub bytes: u32,
}

/// Appends batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProduceRequest {
    /// What the answer waits for.
    pub acks: Acks,
    /// How long it may wait, from the request's arrival.
    pub deadline_ms: u32,
    /// The batches, in the order in which they lie in the payload.
    pub rows: Vec<ProduceRow>,
}

/// What became of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducedRow {
    /// Where to.
    pub tp: TopicPartition,
    /// Why not; [`ErrorCode::None`] if it was appended. The fields below then hold.
    pub error: ErrorCode,
    /// Details of the error for a person.
    pub message: String,
    /// Offset of the batch's first record.
    pub base_offset: Offset,
    /// When the leader appended it, in milliseconds since 1970.
    pub append_timestamp_ms: i64,
    /// The log's start offset.
    pub log_start: Offset,
    /// How many replicas had it, the leader included, when the answer was sent.
    pub replicas_reached: u16,
    /// Whether each of them had flushed it to its disk.
    pub durable: bool,
}

/// What became of the batches, a row for each, in the request's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProduceAnswer {
    /// How long the client should wait before its next request.
    pub throttle_ms: u32,
    /// The rows.
    pub rows: Vec<ProducedRow>,
}

/// Asks for the name of an idempotent producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitProducerIdRequest {}

/// The name of an idempotent producer, never given before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitProducerIdAnswer {
    /// Its id, 0 or more.
    pub producer_id: ProducerId,
    /// Its epoch, 0 or more.
    pub producer_epoch: ProducerEpoch,
}

impl ProduceRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + 64 * self.rows.len());
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let tp = wire_partition(row.tp);
                let args = fb::ProduceRowArgs {
                    topic_partition: Some(&tp),
                    first_byte: row.first_byte,
                    bytes: row.bytes,
                };
                fb::ProduceRow::create(&mut b, &args)
            })
            .collect();
        let rows = Some(b.create_vector(&rows));
        let args = fb::ProduceRequestArgs { acks: self.acks as u8, deadline_ms: self.deadline_ms, rows };
        let root = fb::ProduceRequest::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header. [`ProduceRequest::rows_within`] remains to be asked.
    ///
    /// # Errors
    /// [`MessageError`]; acks must be known.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::ProduceRequest<'_>>(bytes)?;
        let acks = Acks::from_u8(table.acks())
            .ok_or(MessageError::OutOfRange { field: "acks", value: table.acks().into() })?;
        let rows = each(table.rows(), |row: fb::ProduceRow<'_>| {
            Ok(ProduceRow {
                tp: partition(row.topic_partition()),
                first_byte: row.first_byte(),
                bytes: row.bytes(),
            })
        })?;
        Ok(Self { acks, deadline_ms: table.deadline_ms(), rows })
    }

    /// Whether the rows, in their order, claim aligned, disjoint pieces of a payload of this length. Gaps are allowed.
    ///
    /// # Errors
    /// [`MessageError::RowOutside`].
    pub fn rows_within(&self, payload_bytes: usize) -> Result<(), MessageError> {
        claims_within(self.rows.iter().map(|row| (row.first_byte, row.bytes)), payload_bytes)
    }
}

impl ProduceAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + 96 * self.rows.len());
        let rows: Vec<_> = self.rows.iter().map(|row| row.write(&mut b)).collect();
        let rows = Some(b.create_vector(&rows));
        let args = fb::ProduceAnswerArgs { throttle_ms: self.throttle_ms, rows, ..Default::default() };
        let root = fb::ProduceAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::ProduceAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        let rows = each(table.rows(), |row| Ok(ProducedRow::read(&row)))?;
        Ok(Self { throttle_ms: table.throttle_ms(), rows })
    }
}

impl ProducedRow {
    fn write<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::ProducedRow<'b>> {
        let message = text(b, &self.message);
        let tp = wire_partition(self.tp);
        let args = fb::ProducedRowArgs {
            topic_partition: Some(&tp),
            error: self.error.as_u16(),
            message,
            base_offset: self.base_offset.get(),
            append_timestamp_ms: self.append_timestamp_ms,
            log_start: self.log_start.get(),
            replicas_reached: self.replicas_reached,
            durable: self.durable,
        };
        fb::ProducedRow::create(b, &args)
    }

    fn read(table: &fb::ProducedRow<'_>) -> Self {
        Self {
            tp: partition(table.topic_partition()),
            error: ErrorCode::received(table.error()),
            message: owned(table.message()),
            base_offset: Offset::new(table.base_offset()),
            append_timestamp_ms: table.append_timestamp_ms(),
            log_start: Offset::new(table.log_start()),
            replicas_reached: table.replicas_reached(),
            durable: table.durable(),
        }
    }
}

impl InitProducerIdRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(32);
        let root = fb::InitProducerIdRequest::create(&mut b, &fb::InitProducerIdRequestArgs::default());
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        root::<fb::InitProducerIdRequest<'_>>(bytes)?;
        Ok(Self {})
    }
}

impl InitProducerIdAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64);
        let args = fb::InitProducerIdAnswerArgs {
            producer_id: self.producer_id.get(),
            producer_epoch: self.producer_epoch.get(),
            ..Default::default()
        };
        let root = fb::InitProducerIdAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`]; id and epoch must not be negative.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::InitProducerIdAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        if table.producer_id() < 0 {
            return Err(MessageError::OutOfRange { field: "producer_id", value: table.producer_id() });
        }
        if table.producer_epoch() < 0 {
            return Err(MessageError::OutOfRange {
                field: "producer_epoch",
                value: table.producer_epoch().into(),
            });
        }
        Ok(Self {
            producer_id: ProducerId::new(table.producer_id()),
            producer_epoch: ProducerEpoch::new(table.producer_epoch()),
        })
    }
}
