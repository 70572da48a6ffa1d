//! One connection: bytes in, answers out; requests in, bytes out.
//!
//! Driven by a driver that owns a socket, or by the simulator. It lets the driver read into its own buffer, so that a
//! payload is never copied between the socket and the records handed to the user.
//!
//! Invariants: Hello goes first and alone, the rest once it is answered; an answer is taken only if its request is
//! awaited, and its lengths are held against that request's caps before a byte is reserved; each request ends once, in
//! an answer or a failure; after [`Effect::Close`] nothing more happens. It refuses to know what requests mean, and what
//! an address is.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use corelog_wire::frame::{self, Caps, Kind, PRELUDE_BYTES, Prelude};
use corelog_wire::ids::{CorrelationId, ShardId};
use corelog_wire::message::{Answer, HelloAnswer, HelloRequest, Request};

use crate::error::Error;

/// Longest header of an answer that is taken.
const ANSWER_HEADER_BYTES_MAX: u32 = 4 << 20;
/// The same of Metadata, which may speak of all topics: 100,000 partitions, which is what a shard takes, each the only one
/// of a topic whose name is of the longest kind, are 40 MB.
const METADATA_HEADER_BYTES_MAX: u32 = 64 << 20;
/// Longest payload of an answer to Fetch: the broker's 16 MiB, or a single largest batch.
const FETCH_PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// How much is read at once while no long frame is awaited.
const READ_BYTES: usize = 64 << 10;
/// Pieces in one vectored write.
const SLICES_MAX: usize = 64;

/// The protocol version that this client speaks.
const VERSION: u8 = 1;

/// A request to send.
#[derive(Debug)]
pub struct Submission<T> {
    /// What the caller knows it by.
    pub token: T,
    /// The request.
    pub request: Request,
    /// Its payload, in pieces.
    pub payload: Vec<Bytes>,
    /// When to give up. The connection ends then: a broker that answers nothing is no use.
    pub deadline: Instant,
    /// Whether an answer comes at all; otherwise the request is done when it was written.
    pub answered: bool,
}

/// What happens to a connection.
#[derive(Debug)]
pub enum Input<T> {
    /// A request to send.
    Submit(Submission<T>),
    /// The driver read into [`Connection::receive_room`].
    Received,
    /// The driver wrote this many of the bytes of [`Connection::outgoing`].
    Written(usize),
    /// Time passed.
    Tick,
    /// The socket ended.
    Lost(Error),
}

/// What a connection wants.
#[derive(Debug)]
pub enum Effect<T> {
    /// The broker said Hello.
    Greeted(HelloAnswer),
    /// A request was answered, perhaps with a refusal.
    Answered {
        /// The request.
        token: T,
        /// The answer.
        answer: Answer,
        /// The answer's payload.
        payload: Bytes,
    },
    /// A request that gets no answer was written.
    Sent {
        /// The request.
        token: T,
    },
    /// A request failed; it may have taken effect.
    Failed {
        /// The request.
        token: T,
        /// Why.
        error: Error,
    },
    /// Close the socket and drop the connection. All requests have ended.
    Close(Error),
}

/// A request under way.
#[derive(Debug)]
struct Awaited<T> {
    /// None for Hello.
    token: Option<T>,
    kind: Kind,
    deadline: Instant,
}

/// A piece to write.
#[derive(Debug)]
struct Piece<T> {
    bytes: Bytes,
    /// Whose request is done when this piece was written.
    done: Option<Silent<T>>,
}

/// A request that gets no answer, until its last byte is written.
#[derive(Debug)]
struct Silent<T> {
    token: Option<T>,
    kind: Kind,
    deadline: Instant,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection<T> {
    greeting: Option<HelloAnswer>,
    closed: bool,
    next_correlation: u64,
    /// Requests that wait for Hello.
    held: VecDeque<Submission<T>>,
    awaited: BTreeMap<u64, Awaited<T>>,
    outgoing: VecDeque<Piece<T>>,
    incoming: BytesMut,
    /// The prelude at the front of `incoming`, once it was checked.
    prelude: Option<Prelude>,
}

impl<T> Connection<T> {
    /// A connection that begins with Hello, which must be answered by `deadline`.
    #[must_use]
    pub fn new(client_name: &str, shard: Option<ShardId>, deadline: Instant) -> Self {
        let mut connection = Self {
            greeting: None,
            closed: false,
            next_correlation: 0,
            held: VecDeque::new(),
            awaited: BTreeMap::new(),
            outgoing: VecDeque::new(),
            incoming: BytesMut::new(),
            prelude: None,
        };
        let hello = Request::Hello(HelloRequest {
            client_name: client_name.to_owned(),
            client_version: env!("CARGO_PKG_VERSION").to_owned(),
            version_min: VERSION,
            version_max: VERSION,
            features: 0,
            shard,
        });
        connection.send(None, &hello, &hello.encode(), vec![], deadline, true);
        connection
    }

    /// Takes an input.
    pub fn handle(&mut self, now: Instant, input: Input<T>, out: &mut Vec<Effect<T>>) {
        match input {
            Input::Submit(submission) if self.closed => {
                out.push(Effect::Failed { token: submission.token, error: Error::Closed });
            }
            _ if self.closed => {}
            Input::Submit(submission) if self.greeting.is_none() => self.held.push_back(submission),
            Input::Submit(submission) => self.submit(submission, out),
            Input::Received => self.received(out),
            Input::Written(bytes) => self.written(bytes, out),
            Input::Tick => self.expire(now, out),
            Input::Lost(error) => self.close(error, out),
        }
    }

    /// When to come back with [`Input::Tick`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let held = self.held.iter().map(|submission| submission.deadline);
        let silent = self.silent().map(|silent| silent.deadline);
        self.awaited.values().map(|awaited| awaited.deadline).chain(held).chain(silent).min()
    }

    /// Where to read to, and how many bytes at most; the room is reserved. A long frame is asked for exactly, so that
    /// its payload lies in an allocation of its own.
    pub fn receive_room(&mut self) -> (&mut BytesMut, usize) {
        let room = match self.frame_bytes() {
            Some(frame_bytes) if frame_bytes > READ_BYTES => frame_bytes - self.incoming.len(),
            _ => READ_BYTES,
        };
        if self.incoming.capacity() - self.incoming.len() < room.min(READ_BYTES / 2) || room > READ_BYTES {
            self.incoming.reserve(room);
        }
        (&mut self.incoming, room)
    }

    /// The bytes to write next, at most 64 pieces.
    pub fn outgoing<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        slices.extend(self.outgoing.iter().take(SLICES_MAX).map(|piece| IoSlice::new(&piece.bytes)));
    }

    /// Whether there is something to write.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.greeting.is_some() && self.awaited.is_empty() && self.outgoing.is_empty()
    }

    /// The requests without an answer that are not written yet.
    fn silent(&self) -> impl Iterator<Item = &Silent<T>> {
        self.outgoing.iter().filter_map(|piece| piece.done.as_ref())
    }

    fn submit(&mut self, submission: Submission<T>, out: &mut Vec<Effect<T>>) {
        let Submission { token, request, payload, deadline, answered } = submission;
        let header = request.encode();
        let payload_bytes: usize = payload.iter().map(Bytes::len).sum();
        if let Some(greeting) = &self.greeting {
            for (bytes, bytes_max) in
                [(header.len(), greeting.header_bytes_max), (payload_bytes, greeting.payload_bytes_max)]
            {
                let (bytes, bytes_max) = (bytes as u64, u64::from(bytes_max));
                if bytes > bytes_max {
                    out.push(Effect::Failed { token, error: Error::TooLarge { bytes, bytes_max } });
                    return;
                }
            }
        }
        self.send(Some(token), &request, &header, payload, deadline, answered);
    }

    fn send(
        &mut self,
        token: Option<T>,
        request: &Request,
        header: &[u8],
        payload: Vec<Bytes>,
        deadline: Instant,
        answered: bool,
    ) {
        let payload_bytes: usize = payload.iter().map(Bytes::len).sum();
        // Held against the broker's limit, a u32, in `submit`; Hello has none.
        let payload_bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
        let correlation = self.next_correlation;
        self.next_correlation += 1;
        let kind = request.kind();
        let prelude = Prelude::request(kind, CorrelationId::new(correlation), header, payload_bytes);
        let mut head = BytesMut::with_capacity(PRELUDE_BYTES + header.len());
        head.extend_from_slice(&prelude.encode());
        head.extend_from_slice(header);
        self.outgoing.push_back(Piece { bytes: head.freeze(), done: None });
        let payload = payload.into_iter().filter(|bytes| !bytes.is_empty());
        self.outgoing.extend(payload.map(|bytes| Piece { bytes, done: None }));
        if answered {
            self.awaited.insert(correlation, Awaited { token, kind, deadline });
        } else if let Some(last) = self.outgoing.back_mut() {
            last.done = Some(Silent { token, kind, deadline });
        }
    }

    fn written(&mut self, mut bytes: usize, out: &mut Vec<Effect<T>>) {
        while let Some(piece) = self.outgoing.front_mut() {
            if bytes < piece.bytes.len() {
                let _ = piece.bytes.split_to(bytes);
                return;
            }
            bytes -= piece.bytes.len();
            let done = self.outgoing.pop_front().and_then(|piece| piece.done);
            if let Some(token) = done.and_then(|silent| silent.token) {
                out.push(Effect::Sent { token });
            }
        }
    }

    fn received(&mut self, out: &mut Vec<Effect<T>>) {
        while !self.closed {
            match self.frame() {
                Ok(Some((prelude, header, payload))) => {
                    if let Err(error) = self.answered(&prelude, &header, payload, out) {
                        self.close(error, out);
                    }
                }
                Ok(None) => return,
                Err(error) => self.close(error, out),
            }
        }
    }

    /// Length of the frame that is being received, once it is known.
    fn frame_bytes(&self) -> Option<usize> {
        let prelude = self.prelude.as_ref()?;
        Some(PRELUDE_BYTES + prelude.header_bytes as usize + prelude.payload_bytes as usize)
    }

    /// The next whole frame, if it is there.
    fn frame(&mut self) -> Result<Option<(Prelude, Bytes, Bytes)>, Error> {
        let prelude = match self.prelude {
            Some(prelude) => prelude,
            None => match self.incoming.first_chunk::<PRELUDE_BYTES>() {
                Some(bytes) => self.check_prelude(&bytes.clone())?,
                None => return Ok(None),
            },
        };
        self.prelude = Some(prelude);
        if self.frame_bytes().is_none_or(|bytes| self.incoming.len() < bytes) {
            return Ok(None);
        }
        self.prelude = None;
        let _ = self.incoming.split_to(PRELUDE_BYTES);
        let header = self.incoming.split_to(prelude.header_bytes as usize).freeze();
        let payload = self.incoming.split_to(prelude.payload_bytes as usize).freeze();
        frame::check_header(&prelude, &header).map_err(|error| Error::protocol(error.to_string()))?;
        Ok(Some((prelude, header, payload)))
    }

    /// Whether this frame is awaited and within its caps: asked before a byte is reserved for it.
    fn check_prelude(&self, bytes: &[u8; PRELUDE_BYTES]) -> Result<Prelude, Error> {
        let broken = |error: frame::FrameError| Error::protocol(error.to_string());
        let widest =
            Caps { header_bytes_max: METADATA_HEADER_BYTES_MAX, payload_bytes_max: FETCH_PAYLOAD_BYTES_MAX };
        let prelude = Prelude::decode(bytes, &widest).map_err(broken)?;
        if !prelude.answer {
            return Err(Error::protocol("it sent a request"));
        }
        let correlation = prelude.correlation.get();
        let Some(awaited) = self.awaited.get(&correlation) else {
            return Err(Error::protocol(format!("answer {correlation} was not asked for, or came twice")));
        };
        if prelude.kind != awaited.kind.as_u16() {
            let asked = awaited.kind.name();
            return Err(Error::protocol(format!("{asked} got an answer of kind {}", prelude.kind)));
        }
        let caps = match awaited.kind {
            Kind::Hello => Caps::BEFORE_HELLO,
            Kind::Metadata => Caps { payload_bytes_max: 0, ..widest },
            Kind::Fetch => Caps { header_bytes_max: ANSWER_HEADER_BYTES_MAX, ..widest },
            _ => Caps { header_bytes_max: ANSWER_HEADER_BYTES_MAX, payload_bytes_max: 0 },
        };
        prelude.check_caps(&caps).map_err(broken)?;
        Ok(prelude)
    }

    fn answered(
        &mut self,
        prelude: &Prelude,
        header: &[u8],
        payload: Bytes,
        out: &mut Vec<Effect<T>>,
    ) -> Result<(), Error> {
        // It was awaited when the prelude came, and nothing but an answer ends the waiting without closing.
        let Some(awaited) = self.awaited.remove(&prelude.correlation.get()) else {
            return Err(Error::protocol("an answer was not asked for"));
        };
        let answer = match Answer::decode(awaited.kind, header) {
            Ok(answer) => answer,
            Err(error) => {
                let error = Error::protocol(error.to_string());
                if let Some(token) = awaited.token {
                    out.push(Effect::Failed { token, error: error.clone() });
                }
                return Err(error);
            }
        };
        match (awaited.token, answer) {
            (Some(token), answer) => out.push(Effect::Answered { token, answer, payload }),
            (None, Answer::Hello(greeting)) => self.greeted(greeting, out)?,
            (None, Answer::Refused { refusal, .. }) => return Err(refusal.into()),
            (None, _) => return Err(Error::protocol("Hello got another answer")),
        }
        Ok(())
    }

    fn greeted(&mut self, greeting: HelloAnswer, out: &mut Vec<Effect<T>>) -> Result<(), Error> {
        if greeting.version != VERSION {
            return Err(Error::protocol(format!(
                "it chose version {}, offered was {VERSION}",
                greeting.version
            )));
        }
        self.greeting = Some(greeting.clone());
        out.push(Effect::Greeted(greeting));
        for submission in std::mem::take(&mut self.held) {
            self.submit(submission, out);
        }
        Ok(())
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<Effect<T>>) {
        let awaited = self.awaited.values().map(|awaited| (awaited.deadline, awaited.kind));
        // A broker that takes no bytes is no better than one that gives none; nor can a request be taken back of which
        // some bytes may have been written.
        let silent = self.silent().map(|silent| (silent.deadline, silent.kind));
        let late = awaited.chain(silent).find(|(deadline, _)| *deadline <= now);
        if let Some((_, kind)) = late {
            self.close(Error::deadline(kind.name(), None), out);
            return;
        }
        let (late, held) = std::mem::take(&mut self.held).into_iter().partition(|held| held.deadline <= now);
        self.held = held;
        let late: VecDeque<Submission<T>> = late;
        for Submission { token, request, .. } in late {
            out.push(Effect::Failed { token, error: Error::deadline(request.kind().name(), None) });
        }
    }

    fn close(&mut self, error: Error, out: &mut Vec<Effect<T>>) {
        self.closed = true;
        let awaited = std::mem::take(&mut self.awaited).into_values().filter_map(|awaited| awaited.token);
        let held = std::mem::take(&mut self.held).into_iter().map(|held| held.token);
        let unwritten = std::mem::take(&mut self.outgoing).into_iter().filter_map(|piece| piece.done);
        let unwritten = unwritten.filter_map(|silent| silent.token);
        for token in awaited.chain(held).chain(unwritten) {
            out.push(Effect::Failed { token, error: error.clone() });
        }
        self.incoming = BytesMut::new();
        out.push(Effect::Close(error));
    }
}

#[cfg(test)]
mod tests;
