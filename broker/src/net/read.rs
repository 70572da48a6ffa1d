//! Frames from a socket: as many bytes in memory as came, never as many as were announced.
//!
//! Called by a connection's reading side. Invariant: what exceeds a header of the size allowed before Hello is charged
//! to the shard's pool before it is reserved. Copies: what one `recv` brings beyond the frame it was meant for lands in
//! the shard's scratch buffer first (at most 32 KiB, so the beginning of a large payload too); everything else of a
//! payload is received in place.

use super::budget::Charge;
use super::config::{
    FREE_HEADER_BYTES, IDLE_BUFFER_BYTES, PAYLOAD_STEP_BYTES, READ_AHEAD_BYTES, REQUEST_OVERHEAD_BYTES,
};
use super::connection::{Connection, Reading};
use super::metrics::Cause;
use super::payload::Payload;
use super::{Inner, connection::End};
use corelog_wire::frame::PRELUDE_BYTES;
use futures_lite::future::or;

/// The receiving end of a connection.
#[derive(Debug)]
pub(super) struct FrameReader {
    /// Received and not taken yet, from `start` on.
    buffer: Vec<u8>,
    start: usize,
}

/// The connection cannot go on reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop(pub(super) End);

impl FrameReader {
    /// Begins with bytes that were received already.
    pub(super) fn new(received: Vec<u8>) -> Self {
        Self { buffer: received, start: 0 }
    }

    /// What was received and not taken.
    pub(super) fn into_unread(mut self) -> Vec<u8> {
        self.buffer.drain(..self.start);
        self.buffer
    }

    fn available(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The next `count` bytes, which [`FrameReader::need`] has waited for.
    pub(super) fn peek(&self, count: usize) -> &[u8] {
        &self.buffer[self.start..self.start + count]
    }

    /// Drops bytes that were peeked at.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    /// The next frame's prelude; `None` if the client sends no more frames.
    pub(super) async fn prelude(
        &mut self,
        net: &Inner,
        connection: &Connection,
    ) -> Result<Option<[u8; PRELUDE_BYTES]>, Stop> {
        while self.available() < PRELUDE_BYTES {
            let begun = self.available() > 0;
            self.set_reading(net, connection);
            if self.fill(net, connection).await? == 0 {
                return if begun { Err(Stop(End::Closed(Cause::Broken))) } else { Ok(None) };
            }
        }
        self.set_reading(net, connection);
        let mut prelude = [0; PRELUDE_BYTES];
        prelude.copy_from_slice(self.peek(PRELUDE_BYTES));
        self.consume(PRELUDE_BYTES);
        Ok(Some(prelude))
    }

    /// Starts the frame's clock with its first byte.
    fn set_reading(&self, net: &Inner, connection: &Connection) {
        let reading = match (connection.reading.get(), self.available()) {
            (Reading::Frame { since }, 1..) => Reading::Frame { since },
            (_, 0) => Reading::Nothing,
            (_, 1..) => Reading::Frame { since: net.now() },
        };
        connection.reading.set(reading);
    }

    /// Waits until `count` bytes (a header) are there.
    pub(super) async fn need(
        &mut self,
        net: &Inner,
        connection: &Connection,
        count: usize,
        charge: &mut Charge,
    ) -> Result<(), Stop> {
        while self.available() < count {
            let after = self.available() + READ_AHEAD_BYTES;
            let charged = usize::try_from(charge.bytes()).unwrap_or(usize::MAX);
            if count > FREE_HEADER_BYTES && charged < after.min(count) {
                let missing = count - self.available();
                take(net, connection, charge, after.min(count) - charged, missing).await?;
            }
            if self.fill(net, connection).await? == 0 {
                return Err(Stop(End::Closed(Cause::Broken)));
            }
        }
        Ok(())
    }

    /// The next `count` bytes as a payload of their own: in memory that is idle, if some is of that size, else in memory that
    /// grows fourfold as bytes arrive. Either way one that is announced and not sent is charged its first step only.
    pub(super) async fn payload(
        &mut self,
        net: &Inner,
        connection: &Connection,
        count: usize,
        charge: &mut Charge,
    ) -> Result<Vec<u8>, Stop> {
        let missing = |payload: &Vec<u8>, reader: &Self| {
            count.saturating_sub(payload.len()).saturating_sub(reader.available())
        };
        let mut payload = Vec::new();
        take(net, connection, charge, REQUEST_OVERHEAD_BYTES, missing(&payload, self)).await?;
        if let Some(memory) = Payload::idle(count) {
            return self.payload_into(net, connection, count, charge, memory).await;
        }
        while payload.len() < count {
            if payload.len() == payload.capacity() {
                let step = PAYLOAD_STEP_BYTES.max(3 * payload.len()).min(count - payload.len());
                take(net, connection, charge, step, missing(&payload, self)).await?;
                payload.reserve_exact(step);
            }
            let room = (payload.capacity() - payload.len()).min(count - payload.len());
            let ready = self.available().min(room);
            if ready > 0 {
                payload.extend_from_slice(self.peek(ready));
                self.consume(ready);
                continue;
            }
            match connection.socket.try_receive(&mut payload) {
                Ok(Some(0)) => return Err(Stop(End::Closed(Cause::Broken))),
                Ok(Some(received)) => net.received(connection, received),
                Ok(None) => self.wait(connection).await?,
                Err(_) => return Err(stopped(connection)),
            }
            if let Some(end) = connection.ended() {
                return Err(Stop(end));
            }
            crate::rt::yield_if_needed().await;
        }
        // The buffer may have had more room than was asked for, and then it may hold the next frame's beginning.
        if payload.len() > count {
            self.buffer.extend_from_slice(&payload.split_off(count));
        }
        Ok(payload)
    }

    /// The next `count` bytes in memory that is long enough.
    async fn payload_into(
        &mut self,
        net: &Inner,
        connection: &Connection,
        count: usize,
        charge: &mut Charge,
        mut memory: Vec<u8>,
    ) -> Result<Vec<u8>, Stop> {
        let (mut filled, mut charged) = (0, 0);
        while filled < count {
            if filled == charged {
                let step = PAYLOAD_STEP_BYTES.max(3 * filled).min(count - filled);
                let missing = count.saturating_sub(filled).saturating_sub(self.available());
                take(net, connection, charge, step, missing).await?;
                charged += step;
            }
            let ready = self.available().min(charged - filled);
            if ready > 0 {
                memory[filled..filled + ready].copy_from_slice(self.peek(ready));
                self.consume(ready);
                filled += ready;
                continue;
            }
            match connection.socket.try_receive_into(&mut memory[filled..charged]) {
                Ok(Some(0)) => return Err(Stop(End::Closed(Cause::Broken))),
                Ok(Some(received)) => {
                    filled += received;
                    net.received(connection, received);
                }
                Ok(None) => self.wait(connection).await?,
                Err(_) => return Err(stopped(connection)),
            }
            if let Some(end) = connection.ended() {
                return Err(Stop(end));
            }
            crate::rt::yield_if_needed().await;
        }
        memory.truncate(count);
        Ok(memory)
    }

    /// Receives and drops `count` bytes.
    pub(super) async fn skip(
        &mut self,
        net: &Inner,
        connection: &Connection,
        mut count: usize,
    ) -> Result<(), Stop> {
        while count > 0 {
            if self.available() == 0 && self.fill(net, connection).await? == 0 {
                return Err(Stop(End::Closed(Cause::Broken)));
            }
            let ready = self.available().min(count);
            self.consume(ready);
            count -= ready;
        }
        Ok(())
    }

    /// Receives and drops whatever comes until the client stops, at most so many bytes.
    pub(super) async fn drop_rest(&mut self, net: &Inner, connection: &Connection, mut bytes_max: usize) {
        loop {
            let dropped = self.available();
            self.consume(dropped);
            match self.fill(net, connection).await {
                Ok(more) if more > 0 && more <= bytes_max => bytes_max -= more,
                _ => return,
            }
        }
    }

    /// Receives what there is, waiting for the first byte. How much; 0: the client sends no more.
    async fn fill(&mut self, net: &Inner, connection: &Connection) -> Result<usize, Stop> {
        loop {
            let received = {
                let mut scratch = net.scratch.borrow_mut();
                let received = connection.socket.try_receive_into(&mut scratch);
                if let Ok(Some(count)) = received {
                    self.buffer.extend_from_slice(&scratch[..count]);
                }
                received
            };
            if let Some(end) = connection.ended() {
                return Err(Stop(end));
            }
            match received {
                Ok(Some(count)) => {
                    net.received(connection, count);
                    crate::rt::yield_if_needed().await;
                    return connection.ended().map_or(Ok(count), |end| Err(Stop(end)));
                }
                Ok(None) => self.wait(connection).await?,
                Err(_) => return Err(stopped(connection)),
            }
        }
    }

    /// Waits for bytes. An idle connection holds next to no memory while it waits.
    async fn wait(&mut self, connection: &Connection) -> Result<(), Stop> {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.shrink_to(IDLE_BUFFER_BYTES);
        connection.socket.readable().await.map_err(|_| stopped(connection))
    }
}

impl Inner {
    fn received(&self, connection: &Connection, bytes: usize) {
        self.metrics.bytes_in.add_len(bytes);
        connection.received_at.set(self.now());
    }
}

/// Charges bytes of a frame of which so many are still `missing`; while it waits for them the frame's clock stands
/// still and another one runs.
async fn take(
    net: &Inner,
    connection: &Connection,
    charge: &mut Charge,
    bytes: usize,
    missing: usize,
) -> Result<(), Stop> {
    let bytes = bytes as u64;
    if !charge.try_grow(bytes) {
        connection.reading.set(Reading::Starved { since: net.now(), missing });
        or(charge.grow(bytes), connection.wait_until(|_| false)).await;
        if connection.ended().is_some() {
            return Err(stopped(connection));
        }
        connection.reading.set(Reading::Frame { since: net.now() });
    }
    connection.held_bytes.set(connection.held_bytes.get() + bytes);
    Ok(())
}

/// Why there is nothing more to read: somebody ended the connection, or it broke.
fn stopped(connection: &Connection) -> Stop {
    Stop(connection.ended().unwrap_or(End::Closed(Cause::Broken)))
}
