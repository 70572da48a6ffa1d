//! The loop: one thread and one ring that accept, receive, check, write, flush and acknowledge.
//!
//! Called by `serve`. Invariants: what `commit` says is all that is written and acknowledged; a connection receives only
//! while there is memory for what comes; a write or a flush that fails ends the process, which then has acknowledged
//! nothing of it. A connection that sends nonsense is closed, and nobody else is disturbed.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use corelog_wire::frame::{Kind, Prelude};
use corelog_wire::ids::CorrelationId;

use super::block::Block;
use super::commit::{Commit, Request, Write};
use super::frames::{self, Next};
use super::ring::{Completion, Operation, Ring, accepted};
use crate::error::{Doing, Error, Result};

/// What is received at once, unless it is a large payload; a small frame fits.
const INPUT_BYTES: usize = 256 << 10;

/// What an operation was for.
#[derive(Clone, Debug)]
enum Tag {
    Accept,
    Receive(usize),
    Payload(usize),
    Send(usize),
    Write(Vec<Request>),
    Flush,
}

/// A large request whose payload is received where it will be written from.
#[derive(Clone, Copy, Debug)]
struct Large {
    correlation: u64,
    /// It is acknowledged when it is in memory.
    early: bool,
    bytes: usize,
    received: usize,
}

#[derive(Debug)]
struct Connection {
    socket: Rc<OwnedFd>,
    /// None while the kernel has it, or waits for a large payload.
    input: Option<Block>,
    filled: usize,
    large: Option<Large>,
    answers: Vec<u8>,
    sending: bool,
    /// Whether there was no memory for what it sent.
    starved: bool,
}

/// The server and all that it knows.
pub(super) struct Server {
    ring: Ring<Tag>,
    listener: Rc<OwnedFd>,
    file: Rc<OwnedFd>,
    commit: Commit,
    /// By number; numbers are not used again, because operations of a closed connection may still be in flight.
    connections: Vec<Option<Connection>>,
}

impl Server {
    /// Over a file of this length whose blocks have been written, open for direct writes.
    pub(super) fn new(listener: OwnedFd, file: OwnedFd, file_bytes: u64) -> Result<Self> {
        Ok(Self {
            ring: Ring::new().doing(|| "making an io_uring".to_owned())?,
            listener: Rc::new(listener),
            file: Rc::new(file),
            commit: Commit::new(file_bytes),
            connections: Vec::new(),
        })
    }

    /// Serves until the process ends.
    pub(super) fn run(mut self) -> Result<()> {
        let listener = Rc::clone(&self.listener);
        self.start(Tag::Accept, Operation::Accept { listener })?;
        let mut completions = Vec::new();
        loop {
            self.ring.turn(&mut completions).doing(|| "waiting for completions".to_owned())?;
            for completion in completions.drain(..) {
                self.complete(completion)?;
            }
            self.feed()?;
            for Write { block, bytes, position, requests } in self.commit.writes() {
                let file = Rc::clone(&self.file);
                self.start(Tag::Write(requests), Operation::Write { file, block, bytes, position })?;
            }
            if self.commit.flush() {
                let file = Rc::clone(&self.file);
                self.start(Tag::Flush, Operation::Flush { file })?;
            }
        }
    }

    fn start(&mut self, tag: Tag, operation: Operation) -> Result<()> {
        self.ring.start(tag, operation).doing(|| "starting an operation".to_owned())
    }

    fn complete(&mut self, completion: Completion<Tag>) -> Result<()> {
        let Completion { tag, result, operation } = completion;
        match (tag, operation) {
            (Tag::Accept, operation) => {
                if operation.is_some() {
                    let listener = Rc::clone(&self.listener);
                    self.start(Tag::Accept, Operation::Accept { listener })?;
                }
                self.accept(result)
            }
            (Tag::Receive(number), Some(Operation::Receive { block, .. })) => {
                let Some(connection) = &mut self.connections[number] else { return Ok(()) };
                connection.input = Some(block);
                match result {
                    Ok(bytes @ 1..) => connection.filled += bytes,
                    Ok(0) | Err(_) => return self.close(number, None),
                }
                self.take(number)
            }
            (Tag::Payload(number), Some(Operation::Receive { block, .. })) => {
                self.receive_more(number, block, result)
            }
            (Tag::Send(number), Some(Operation::Send { bytes, from, .. })) => {
                self.sent(number, bytes, from, &result)
            }
            (Tag::Write(requests), Some(Operation::Write { block, bytes, .. })) => {
                let wrote = result.doing(|| "writing".to_owned())?;
                if wrote != bytes {
                    return Err(Error::Setup(format!("{wrote} bytes of {bytes} were written")));
                }
                self.commit.written(block, requests);
                Ok(())
            }
            (Tag::Flush, _) => {
                result.doing(|| "flushing".to_owned())?;
                for Request { connection, correlation } in self.commit.flushed() {
                    self.answer(connection, Kind::Produce, correlation, &[])?;
                }
                Ok(())
            }
            // A completion always brings its operation back, except an accept's.
            (Tag::Receive(_) | Tag::Payload(_) | Tag::Send(_) | Tag::Write(_), _) => Ok(()),
        }
    }

    fn accept(&mut self, result: io::Result<usize>) -> Result<()> {
        let Some(socket) = result.ok().and_then(accepted) else { return Ok(()) };
        rustix::net::sockopt::set_tcp_nodelay(&socket, true).doing(|| "setting TCP_NODELAY".to_owned())?;
        self.connections.push(Some(Connection {
            socket: Rc::new(socket),
            input: Some(Block::zeroed(INPUT_BYTES)),
            filled: 0,
            large: None,
            answers: Vec::new(),
            sending: false,
            starved: false,
        }));
        self.take(self.connections.len() - 1)
    }

    /// Takes the frames that a connection has sent, then receives more unless there is no memory for them.
    fn take(&mut self, number: usize) -> Result<()> {
        let Some(connection) = &mut self.connections[number] else { return Ok(()) };
        let Some(mut input) = connection.input.take() else { return Ok(()) };
        let mut at = 0;
        let (mut statuses, mut early_ones) = (Vec::new(), Vec::new());
        let mut damage = None;
        let mut large = None;
        connection.starved = false;
        loop {
            match frames::next(&input[at..connection.filled]) {
                Ok(Next::More) => break,
                Ok(Next::Whole { correlation, status: true, bytes, .. }) => {
                    statuses.push(correlation);
                    at += bytes;
                }
                Ok(Next::Whole { correlation, early, payload, bytes, .. }) => {
                    let waits = (!early).then_some(Request { connection: number, correlation });
                    connection.starved = !self.commit.small(payload, waits);
                    if connection.starved {
                        break;
                    }
                    early_ones.extend(early.then_some(correlation));
                    at += bytes;
                }
                Ok(Next::Large { correlation, early, payload_at, payload_bytes }) => {
                    let Some(mut block) = self.commit.block() else {
                        connection.starved = true;
                        break;
                    };
                    let here = &input[at + payload_at..connection.filled];
                    block[..here.len()].copy_from_slice(here);
                    large = Some((
                        block,
                        Large { correlation, early, bytes: payload_bytes, received: here.len() },
                    ));
                    at = connection.filled;
                    break;
                }
                Err(error) => {
                    damage = Some(error);
                    break;
                }
            }
        }
        input.copy_within(at..connection.filled, 0);
        connection.filled -= at;
        if let Some(error) = damage {
            return self.close(number, Some(&error));
        }
        if let Some((block, large)) = large {
            connection.input = Some(input);
            connection.large = Some(large);
            self.receive_payload(number, block)?;
        } else if connection.starved {
            connection.input = Some(input);
        } else {
            let (socket, range) = (Rc::clone(&connection.socket), connection.filled..INPUT_BYTES);
            let receive = Operation::Receive { socket, block: input, range, whole: false };
            self.start(Tag::Receive(number), receive)?;
        }
        for correlation in early_ones {
            self.answer(number, Kind::Produce, correlation, &[])?;
        }
        for correlation in statuses {
            let lap = self.commit.lap().encode();
            self.answer(number, Kind::DescribeTopic, correlation, &lap)?;
        }
        Ok(())
    }

    fn receive_payload(&mut self, number: usize, block: Block) -> Result<()> {
        let connection = self.connections[number].as_ref();
        let Some((socket, large)) = connection.and_then(|c| Some((Rc::clone(&c.socket), c.large?))) else {
            self.commit.free(block);
            return Ok(());
        };
        let range = large.received..large.bytes;
        self.start(Tag::Payload(number), Operation::Receive { socket, block, range, whole: true })
    }

    fn receive_more(&mut self, number: usize, block: Block, result: io::Result<usize>) -> Result<()> {
        let large = self.connections[number].as_mut().and_then(|connection| connection.large.as_mut());
        let (Some(large), Ok(bytes @ 1..)) = (large, result) else {
            self.commit.free(block);
            return self.close(number, None);
        };
        large.received += bytes;
        if large.received < large.bytes {
            return self.receive_payload(number, block);
        }
        let Large { correlation, early, bytes, .. } = *large;
        if let Err(error) = frames::check(&block[..bytes]) {
            self.commit.free(block);
            return self.close(number, Some(&error));
        }
        let waits = (!early).then_some(Request { connection: number, correlation });
        self.commit.large(block, bytes, waits);
        if let Some(connection) = &mut self.connections[number] {
            connection.large = None;
        }
        if early {
            self.answer(number, Kind::Produce, correlation, &[])?;
        }
        self.take(number)
    }

    /// Goes on with connections that waited for memory, as writes have given some back.
    fn feed(&mut self) -> Result<()> {
        for number in 0..self.connections.len() {
            if self.connections[number].as_ref().is_some_and(|connection| connection.starved) {
                self.take(number)?;
            }
        }
        Ok(())
    }

    fn answer(&mut self, number: usize, kind: Kind, correlation: u64, header: &[u8]) -> Result<()> {
        let Some(Some(connection)) = self.connections.get_mut(number) else { return Ok(()) };
        let prelude = Prelude::answer(kind.as_u16(), CorrelationId::new(correlation), header, 0);
        connection.answers.extend_from_slice(&prelude.encode());
        connection.answers.extend_from_slice(header);
        self.send(number)
    }

    /// Sends what there is to send; answers that come while a send is in flight go together with the next.
    fn send(&mut self, number: usize) -> Result<()> {
        let Some(Some(connection)) = self.connections.get_mut(number) else { return Ok(()) };
        if connection.sending || connection.answers.is_empty() {
            return Ok(());
        }
        connection.sending = true;
        let (socket, bytes) = (Rc::clone(&connection.socket), std::mem::take(&mut connection.answers));
        self.start(Tag::Send(number), Operation::Send { socket, bytes, from: 0 })
    }

    fn sent(&mut self, number: usize, bytes: Vec<u8>, from: usize, result: &io::Result<usize>) -> Result<()> {
        let Some(connection) = &mut self.connections[number] else { return Ok(()) };
        let Ok(sent @ 1..) = *result else { return self.close(number, None) };
        let from = from + sent;
        if from < bytes.len() {
            let socket = Rc::clone(&connection.socket);
            return self.start(Tag::Send(number), Operation::Send { socket, bytes, from });
        }
        connection.sending = false;
        self.send(number)
    }

    /// Forgets a connection; the socket is closed when nothing of it is in flight any more.
    fn close(&mut self, number: usize, why: Option<&Error>) -> Result<()> {
        if let Some(error) = why {
            eprintln!("connection {number} is closed: {error}");
        }
        if let Some(connection) = self.connections[number].take() {
            // So that operations in flight end, too.
            let both = rustix::net::Shutdown::Both;
            match rustix::net::shutdown(&*connection.socket, both) {
                Ok(()) | Err(rustix::io::Errno::NOTCONN) => {}
                Err(error) => return Err(error).doing(|| "closing a connection".to_owned()),
            }
        }
        Ok(())
    }
}
