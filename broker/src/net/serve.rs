//! The reading side of a connection: frame by frame, from the first byte to its end.
//!
//! One task per connection. Invariants: a frame is answered once, or the connection ends; nothing but Hello is taken
//! before Hello; requests of a connection are handed on in the order in which they came. What requests ask for is
//! `request`'s to know.

use super::Inner;
use super::budget::Charge;
use super::config::{CAPS, LINGER_BYTES_MAX, VERSION_MAX, VERSION_MIN, caps};
use super::connection::{Connection, End, Reading};
use super::mesh::{Greeting, HandedOver, Reply, ToShard};
use super::metrics::Cause;
use super::payload::Payload;
use super::read::{FrameReader, Stop};
use super::reply::{Addressee, Ticket};
use bytes::Bytes;
use corelog_core::limits;
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::{Caps, FrameError, Kind, Prelude, Remedy, check_header};
use corelog_wire::ids::{CorrelationId, ShardId};
use corelog_wire::message::{Answer, HelloAnswer, HelloRequest, Refusal, Request};
use rustix::net::Shutdown;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Instant;

/// A whole frame, its header read.
pub(super) struct Frame {
    pub(super) correlation: CorrelationId,
    pub(super) request: Request,
    /// The payload; the whole frame is charged until its last part is dropped.
    pub(super) payload: Bytes,
    pub(super) payload_bytes: usize,
    /// The frame's charge, if there is no payload to carry it: until the answer leaves.
    pub(super) charge: Charge,
    pub(super) arrived: Instant,
}

/// A payload and its frame's charge, which ends with the last reference to it, wherever that is.
struct Charged {
    bytes: Payload,
    _charge: Charge,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a frame turned out to be.
enum Incoming {
    Request(Frame),
    /// Refused and skipped: the connection goes on.
    Skipped,
    /// Refused; the connection ends.
    Last,
    /// The client sends no more.
    Nothing,
}

impl Inner {
    /// Serves a connection to its end. `greeting`: it was handed over by another shard.
    pub(super) async fn serve(self: Rc<Self>, connection: Rc<Connection>, greeting: Option<Greeting>) {
        let mut reader = FrameReader::new(Vec::new());
        let mut said = None;
        if let Some(Greeting { hello, correlation, arrived, unread }) = greeting {
            reader = FrameReader::new(unread);
            said = Some((hello, correlation, arrived));
        }
        let end = match self.converse(&connection, &mut reader, said).await {
            Ok(Next::HandOver(hello, correlation, arrived)) => {
                let greeting = Greeting { hello, correlation, arrived, unread: reader.into_unread() };
                self.hand_over(&connection, greeting);
                connection.ended().unwrap_or(End::HandedOver)
            }
            Ok(Next::Finish) => {
                connection.reading.set(Reading::Nothing);
                connection.wait_until(Connection::is_settled).await;
                connection.ended().unwrap_or(End::Closed(Cause::Client))
            }
            Ok(Next::Linger) => {
                self.linger(&connection, &mut reader).await;
                connection.ended().unwrap_or(End::Closed(Cause::Refused))
            }
            Err(Stop(end)) => end,
        };
        connection.end(end);
        self.retire(&connection);
    }

    async fn converse(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        reader: &mut FrameReader,
        greeting: Option<(HelloRequest, CorrelationId, Instant)>,
    ) -> Result<Next, Stop> {
        if let Some((hello, correlation, arrived)) = greeting
            && let Some(next) = self.hello(connection, hello, correlation, arrived, false)
        {
            return Ok(next);
        }
        loop {
            connection.reading.set(Reading::Held);
            connection.wait_until(|connection| connection.may_read(&self.config)).await;
            connection.reading.set(Reading::Nothing);
            connection.held_bytes.set(0);
            let frame = match self.incoming(connection, reader).await? {
                Incoming::Request(frame) => frame,
                Incoming::Skipped => continue,
                Incoming::Last => return Ok(Next::Linger),
                Incoming::Nothing => return Ok(Next::Finish),
            };
            connection.held_bytes.set(0);
            connection.reading.set(Reading::Held);
            let Frame { correlation, request, arrived, .. } = frame;
            match request {
                Request::Hello(hello) => {
                    if let Some(next) = self.hello(connection, hello, correlation, arrived, true) {
                        return Ok(next);
                    }
                }
                request => self.request(connection, Frame { request, ..frame }).await?,
            }
            crate::rt::yield_if_needed().await;
        }
    }

    /// Reads the next frame, refusing what is to be refused.
    async fn incoming(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        reader: &mut FrameReader,
    ) -> Result<Incoming, Stop> {
        let Some(prelude) = reader.prelude(self, connection).await? else { return Ok(Incoming::Nothing) };
        let greeted = connection.greeted.get();
        let (prelude, kind) = match check_prelude(&prelude, greeted) {
            Ok(checked) => checked,
            Err(refused) => return self.refuse_frame(connection, reader, refused).await,
        };
        if !greeted && kind != Kind::Hello {
            let why = "the first request of a connection must be Hello";
            self.refuse(connection, prelude.kind, prelude.correlation, ErrorCode::Malformed, why);
            return Ok(Incoming::Last);
        }
        let header_bytes = prelude.header_bytes as usize;
        let pool = self.pool_for(header_bytes + prelude.payload_bytes as usize);
        // One charge for the whole frame: a header that is held makes its payload one of those who hold a part.
        let mut charge = pool.empty_charge();
        reader.need(self, connection, header_bytes, &mut charge).await?;
        let header = reader.peek(header_bytes);
        let decoded = match check_header(&prelude, header) {
            Ok(()) => decode(kind, header, prelude.payload_bytes as usize),
            Err(error) => Err((ErrorCode::Malformed, error.to_string())),
        };
        reader.consume(header_bytes);
        let payload_bytes = prelude.payload_bytes as usize;
        let request = match decoded {
            Ok(request) => request,
            Err((code, why)) => {
                self.refuse(connection, prelude.kind, prelude.correlation, code, &why);
                if !greeted {
                    return Ok(Incoming::Last);
                }
                reader.skip(self, connection, payload_bytes).await?;
                return Ok(Incoming::Skipped);
            }
        };
        let (payload, charge) = if payload_bytes == 0 {
            (Bytes::new(), charge)
        } else {
            let bytes = reader.payload(self, connection, payload_bytes, &mut charge).await?;
            (Bytes::from_owner(Charged { bytes: Payload::new(bytes), _charge: charge }), pool.empty_charge())
        };
        let arrived = Instant::now();
        let correlation = prelude.correlation;
        Ok(Incoming::Request(Frame { correlation, request, payload, payload_bytes, charge, arrived }))
    }

    /// Does what the protocol asks for after a frame that is not accepted.
    async fn refuse_frame(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        reader: &mut FrameReader,
        refused: Refused,
    ) -> Result<Incoming, Stop> {
        let Refused { error, kind, within_caps } = refused;
        let (code, correlation) = match error.remedy() {
            Remedy::Close => return Err(Stop(End::Closed(Cause::Garbage))),
            Remedy::SkipAndRefuse { code, correlation } | Remedy::RefuseThenClose { code, correlation } => {
                (code, correlation)
            }
        };
        // What is within the caps of all kinds can be skipped, so the connection need not end.
        let skippable = within_caps.filter(|_| connection.greeted.get());
        if let Some(prelude) = skippable {
            reader.skip(self, connection, prelude.header_bytes as usize).await?;
            reader.skip(self, connection, prelude.payload_bytes as usize).await?;
        }
        self.refuse(connection, kind, correlation, code, &error.to_string());
        Ok(if skippable.is_some() { Incoming::Skipped } else { Incoming::Last })
    }

    /// Answers a Hello, or says that the connection goes elsewhere.
    fn hello(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        hello: HelloRequest,
        correlation: CorrelationId,
        arrived: Instant,
        may_move: bool,
    ) -> Option<Next> {
        let kind = Kind::Hello.as_u16();
        if connection.greeted.get() {
            self.refuse(
                connection,
                kind,
                correlation,
                ErrorCode::Malformed,
                "Hello was said on this connection already",
            );
            return None;
        }
        if hello.version_min > VERSION_MAX || hello.version_max < VERSION_MIN {
            let HelloRequest { version_min, version_max, .. } = hello;
            let why = format!(
                "this broker speaks versions {VERSION_MIN} to {VERSION_MAX} of the protocol, the client {version_min} to \
                 {version_max}"
            );
            self.refuse(connection, kind, correlation, ErrorCode::UnsupportedVersion, &why);
            return Some(Next::Linger);
        }
        let elsewhere = hello.shard.filter(|shard| *shard != self.shard && self.takes_more(*shard));
        if may_move && elsewhere.is_some() {
            return Some(Next::HandOver(hello, correlation, arrived));
        }
        connection.greeted.set(true);
        let answer = HelloAnswer {
            version: VERSION_MAX.min(hello.version_max),
            features: 0,
            cluster: self.config.cluster.clone(),
            broker: self.config.broker,
            shard: self.shard,
            shards: self.shards(),
            header_bytes_max: CAPS.header_bytes_max,
            payload_bytes_max: CAPS.payload_bytes_max,
            record_bytes_max: limits::RECORD_BYTES_MAX,
            batch_bytes_max: limits::BATCH_BYTES_MAX,
        };
        let charge = self.input.empty_charge();
        let ticket = Ticket::new(Rc::clone(connection), Kind::Hello, correlation, arrived, 0, charge);
        self.answer(ticket, Reply::Message(Answer::Hello(answer)));
        None
    }

    /// Whether there is such a shard and its channel has room. Without room the connection stays: correct, and slower.
    fn takes_more(&self, shard: ShardId) -> bool {
        self.requests.get(usize::from(shard.get())).is_some_and(|requests| requests.capacity() > 0)
    }

    /// Gives the connection to the shard that its Hello named. If that shard takes no more, this one ends it.
    fn hand_over(self: &Rc<Self>, connection: &Rc<Connection>, greeting: Greeting) {
        let Some(shard) = greeting.hello.shard else { return };
        let Ok(descriptor) = connection.socket.duplicate() else {
            // No descriptors left: the client finds its connection closed and tries again.
            connection.close(Cause::TooMany);
            return;
        };
        let moved = HandedOver { descriptor, greeting };
        match self.requests[usize::from(shard.get())].try_send(ToShard::Adopt(Box::new(moved))) {
            Ok(()) => self.metrics.handed_over.add(1),
            Err(_) => connection.close(Cause::TooMany),
        }
    }

    /// Lets a refusal reach a client that still sends: closing at once would make the kernel discard it.
    async fn linger(self: &Rc<Self>, connection: &Rc<Connection>, reader: &mut FrameReader) {
        connection.reading.set(Reading::Lingering { since: self.now() });
        connection.wait_until(Connection::is_settled).await;
        if connection.ended().is_none() {
            connection.socket.shutdown(Shutdown::Write);
            reader.drop_rest(self, connection, LINGER_BYTES_MAX).await;
        }
    }

    /// Refuses a request as a whole, with what went wrong and what to do.
    pub(super) fn refuse(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        kind: u16,
        correlation: CorrelationId,
        code: ErrorCode,
        why: &str,
    ) {
        let refusal = Refusal::new(code, format!("{why}. {}", code.help()));
        let to = Addressee { kind, correlation, request: None };
        self.send(connection, to, (refusal.encode(), Vec::new()), self.output.empty_charge());
    }
}

/// What a connection does next.
enum Next {
    /// The client sends no more: answer what is under way.
    Finish,
    /// A refusal was the last word.
    Linger,
    /// Another shard is to answer this Hello.
    HandOver(HelloRequest, CorrelationId, Instant),
}

/// A prelude that is not accepted, and what of it can be trusted.
struct Refused {
    error: FrameError,
    /// The kind's number, known or not.
    kind: u16,
    /// The prelude, if the frame's lengths are sound and within the caps.
    within_caps: Option<Prelude>,
}

/// The prelude and its kind, if the frame may be read.
fn check_prelude(bytes: &[u8; 32], greeted: bool) -> Result<(Prelude, Kind), Refused> {
    let caps_now = if greeted { CAPS } else { Caps::BEFORE_HELLO };
    let kind = u16::from_le_bytes([bytes[6], bytes[7]]);
    let refused = |error, within_caps| Refused { error, kind, within_caps };
    let prelude = Prelude::decode(bytes, &caps_now).map_err(|error| refused(error, None))?;
    let trusted = |error| refused(error, Some(prelude));
    let kind = prelude.known_kind().map_err(trusted)?;
    if prelude.answer {
        // Brokers ask clients nothing.
        return Err(trusted(FrameError::UnknownFlags { flags: bytes[5] }));
    }
    prelude.check_caps(&caps(kind)).map_err(trusted)?;
    Ok((prelude, kind))
}

/// The request that a header holds, with what can be said of its rows before the payload is read.
fn decode(kind: Kind, header: &[u8], payload_bytes: usize) -> Result<Request, (ErrorCode, String)> {
    let mut request = Request::decode(kind, header).map_err(|error| (error.code(), error.to_string()))?;
    let rows = match &mut request {
        Request::Metadata(metadata) => metadata.topics.as_mut().map_or(0, |names| {
            let asked = names.len();
            // The answer lists every partition of a topic: once, however often the topic is named.
            let mut seen = BTreeSet::new();
            names.retain(|name| asked <= limits::ROWS_MAX && seen.insert(name.clone()));
            asked
        }),
        Request::Produce(produce) => {
            produce.rows_within(payload_bytes).map_err(|error| (error.code(), error.to_string()))?;
            produce.rows.len()
        }
        Request::Fetch(fetch) => fetch.rows.len(),
        Request::ListOffsets(list) => list.rows.len(),
        Request::DeleteRecords(delete) => delete.rows.len(),
        _ => 0,
    };
    if rows > limits::ROWS_MAX {
        return Err((ErrorCode::TooLarge, format!("{rows} rows, at most {} are taken", limits::ROWS_MAX)));
    }
    Ok(request)
}
