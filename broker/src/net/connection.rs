//! One connection: what its reading side, its answers and the shard's clock share.
//!
//! Called by `read` (requests in), `reply` (answers out) and the tick (deadlines). Invariants: a connection ends once,
//! with one cause; what it holds is bounded by its own limits, so it costs only itself. This file refuses to know what
//! requests say.

use super::Inner;
use super::config::{NetConfig, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN, WINDOW_QUICK, WINDOWS_MAX};
use super::metrics::Cause;
use super::output::{OutFrame, Output};
use super::socket::Socket;
use crate::rt::{self, Signal};
use corelog_wire::frame::Kind;
use rustix::net::Shutdown;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What the reading side does, for those who look at the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Between two frames.
    Nothing,
    /// Some of a frame came; more is awaited.
    Frame { since: Instant },
    /// Not reading until earlier requests are answered.
    Held,
    /// Not reading in the middle of a frame, of which so many bytes are missing: waits for memory.
    Starved { since: Instant, missing: usize },
    /// Drops what comes after a refusal that ends the connection.
    Lingering { since: Instant },
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Closed(Cause),
    /// Another shard serves it now.
    HandedOver,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: Socket,
    /// Its place in the shard's list.
    pub(super) place: Cell<usize>,
    pub(super) accepted_at: Instant,
    pub(super) greeted: Cell<bool>,
    pub(super) reading: Cell<Reading>,
    /// Bytes charged for the frame that is being read.
    pub(super) held_bytes: Cell<u64>,
    /// When bytes last came.
    pub(super) received_at: Cell<Instant>,
    /// Requests that wait for their answer, and their bytes.
    pub(super) in_flight: Cell<u32>,
    pub(super) in_flight_bytes: Cell<u64>,
    /// Those of them that wait at the end of a log: they hold up nothing and are counted apart.
    parked: Cell<u32>,
    /// Bytes of the headers of these, as far as they are charged, and since when there are any.
    parked_bytes: Cell<u64>,
    parked_since: Cell<Instant>,
    /// Bytes that answers under way may bring, without those that wait at the end of a log.
    pub(super) promised_bytes: Cell<u64>,
    /// Most bytes that the next fetch may bring.
    pub(super) window_bytes: Cell<u32>,
    output: RefCell<Output>,
    /// Whether somebody is about to send: the flusher, or the connection's own task while the socket has no room.
    sending: Cell<bool>,
    /// Tells the reading side that something above changed.
    pub(super) changed: Signal,
    end: Cell<Option<End>>,
}

impl Connection {
    pub(super) fn new(socket: Socket, now: Instant) -> Self {
        Self {
            socket,
            place: Cell::new(usize::MAX),
            accepted_at: now,
            greeted: Cell::new(false),
            reading: Cell::new(Reading::Nothing),
            held_bytes: Cell::new(0),
            received_at: Cell::new(now),
            in_flight: Cell::new(0),
            in_flight_bytes: Cell::new(0),
            parked: Cell::new(0),
            parked_bytes: Cell::new(0),
            parked_since: Cell::new(now),
            promised_bytes: Cell::new(0),
            window_bytes: Cell::new(WINDOW_BYTES_MIN),
            output: RefCell::new(Output::new(now)),
            sending: Cell::new(false),
            changed: Signal::default(),
            end: Cell::new(None),
        }
    }

    /// Ends the connection now; both sides wake up and find it so. Later causes do not count.
    pub(super) fn end(&self, end: End) {
        if self.end.get().is_none() {
            self.end.set(Some(end));
            self.output.borrow_mut().clear();
            if matches!(end, End::Closed(_)) {
                self.socket.shutdown(Shutdown::Both);
            }
            self.changed.notify();
        }
    }

    pub(super) fn close(&self, cause: Cause) {
        self.end(End::Closed(cause));
    }

    pub(super) fn ended(&self) -> Option<End> {
        self.end.get()
    }

    /// Waits until the connection ended or this holds.
    pub(super) async fn wait_until(&self, holds: impl Fn(&Self) -> bool) {
        while self.ended().is_none() && !holds(self) {
            self.changed.wait().await;
        }
    }

    /// A request whose header is charged with so many bytes waits at the end of a log from now on.
    pub(super) fn parks(&self, bytes: u64) {
        if self.parked_bytes.get() == 0 {
            self.parked_since.set(Instant::now());
        }
        self.parked.set(self.parked.get() + 1);
        self.parked_bytes.set(self.parked_bytes.get() + bytes);
    }

    /// It does so no more.
    pub(super) fn unparks(&self, bytes: u64) {
        self.parked.set(self.parked.get() - 1);
        self.parked_bytes.set(self.parked_bytes.get() - bytes);
    }

    /// Whether another request may be read: requests and answers under way are within their limits.
    pub(super) fn may_read(&self, config: &NetConfig) -> bool {
        let windows = WINDOWS_MAX * u64::from(self.window_bytes.get());
        self.in_flight.get() - self.parked.get() < config.in_flight_max
            && self.parked.get() < config.parked_max
            && self.in_flight_bytes.get() < config.connection_input_bytes_max
            && self.output.borrow().bytes() + self.promised_bytes.get()
                < windows.min(config.connection_output_bytes_max)
    }

    /// Whether every request is answered and every answer sent.
    pub(super) fn is_settled(&self) -> bool {
        self.in_flight.get() == 0 && self.output.borrow().is_empty()
    }

    /// Whether there is nothing to send.
    pub(super) fn is_sent(&self) -> bool {
        self.output.borrow().is_empty()
    }

    /// Queues a frame. Whether the flusher must be told.
    pub(super) fn push(&self, frame: OutFrame) -> bool {
        if self.ended().is_some() {
            return false;
        }
        self.output.borrow_mut().push(frame);
        !self.sending.replace(true)
    }

    /// What is wrong with the connection at this moment, if anything: see the deadlines of [`NetConfig`]. `input_short`,
    /// `output_short`: others wait for that memory.
    pub(super) fn overdue(
        &self,
        now: Instant,
        config: &NetConfig,
        input_short: bool,
        output_short: bool,
    ) -> Option<Cause> {
        let longer = |since: Instant, than: Duration| now.saturating_duration_since(since) >= than;
        if !self.greeted.get() && longer(self.accepted_at, config.hello_deadline) {
            return Some(Cause::HelloDeadline);
        }
        match self.reading.get() {
            Reading::Frame { since } if longer(since, config.frame_deadline) => {
                return Some(Cause::FrameDeadline);
            }
            Reading::Frame { since }
                if input_short
                    && self.held_bytes.get() > 0
                    && (longer(since, config.pressure_patience)
                        || longer(since.max(self.received_at.get()), config.pressure_stall_max)) =>
            {
                return Some(Cause::Pressure);
            }
            Reading::Starved { since, .. } if longer(since, config.frame_deadline) => {
                return Some(Cause::Pressure);
            }
            // Only who holds a part is looked at: the pool bounds how many these are.
            Reading::Starved { missing, .. } if self.held_bytes.get() > 0 && self.socket.is_cut(missing) => {
                return Some(Cause::Broken);
            }
            Reading::Lingering { since } if longer(since, config.linger) => return Some(Cause::Refused),
            _ => {}
        }
        // Who waits with large headers holds up those who have something to send.
        if input_short
            && self.parked_bytes.get() > 0
            && longer(self.parked_since.get(), config.pressure_patience)
        {
            return Some(Cause::Pressure);
        }
        let (queued, progress) = self.output.borrow().waiting_since()?;
        if longer(progress, config.write_stall_max) {
            Some(Cause::WriteStall)
        } else if output_short
            && (longer(queued, config.pressure_patience) || longer(progress, config.pressure_stall_max))
        {
            Some(Cause::Pressure)
        } else {
            None
        }
    }
}

impl Inner {
    /// Sends the next piece. Called by the flusher, which was told of the connection. Whether there is more to send now.
    pub(super) fn flush(self: &Rc<Self>, connection: &Rc<Connection>) -> bool {
        let sent = {
            let output = connection.output.borrow();
            if output.is_empty() {
                connection.sending.set(false);
                return false;
            }
            let mut slices = Vec::new();
            output.gather(&mut slices);
            connection.socket.try_send(&slices)
        };
        match sent {
            Ok(Some(bytes)) => {
                self.sent(connection, bytes);
                true
            }
            Ok(None) => {
                // The room is awaited by a task of its own, so that this connection delays no other.
                rt::spawn(Rc::clone(self).send_slowly(Rc::clone(connection)));
                false
            }
            Err(_) => {
                connection.close(Cause::Broken);
                false
            }
        }
    }

    async fn send_slowly(self: Rc<Self>, connection: Rc<Connection>) {
        match connection.socket.writable().await {
            Ok(()) if !connection.is_sent() => self.tell_flusher(&connection),
            Ok(()) => connection.sending.set(false),
            Err(_) => connection.close(Cause::Broken),
        }
    }

    fn sent(&self, connection: &Connection, bytes: usize) {
        self.metrics.bytes_out.add_len(bytes);
        let now = Instant::now();
        connection.output.borrow_mut().advance(bytes, now, |frame| {
            if let Some((kind, arrived)) = frame.request {
                self.metrics.answered(kind, now.saturating_duration_since(arrived));
            }
            connection.adapt_window(&frame, now);
        });
        connection.changed.notify();
    }
}

impl Connection {
    /// A client that takes large answers quickly gets larger ones. One that is slow, or for which there is not that
    /// much, gets smaller ones.
    fn adapt_window(&self, frame: &OutFrame, now: Instant) {
        if !matches!(frame.request, Some((Kind::Fetch, _))) {
            return;
        }
        let window = self.window_bytes.get();
        let bytes = u32::try_from(frame.payload_bytes()).unwrap_or(u32::MAX);
        let took = now.saturating_duration_since(frame.queued);
        let next = if took >= 4 * WINDOW_QUICK {
            window / 2
        } else if bytes >= window / 2 && took <= WINDOW_QUICK {
            window.saturating_mul(2)
        } else if bytes < window / 4 {
            bytes.saturating_mul(2).next_power_of_two()
        } else {
            window
        };
        self.window_bytes.set(next.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX));
    }

    /// Copies what a slow reader has not taken, at most about so many bytes; how many. See [`Output::detach`].
    pub(super) fn detach(&self, now: Instant, bytes_max: usize) -> usize {
        let mut output = self.output.borrow_mut();
        match output.waiting_since() {
            Some((queued, _)) if now.saturating_duration_since(queued) >= WINDOW_QUICK => {
                output.detach(bytes_max)
            }
            _ => 0,
        }
    }
}
