//! One bare `io_uring`: operations go in with the memory and the descriptors that they need, and come back with them.
//!
//! Called by `server`, from the one thread that made the ring. Invariant: while an operation is in flight this file alone
//! owns its memory and keeps its descriptor open, so that nobody can read, move or free what the kernel may still write;
//! a ring that is dropped with operations in flight leaks their memory. This file refuses to know why anything is done.
#![expect(
    unsafe_code,
    reason = "the kernel is given addresses, whose validity only this file's bookkeeping ensures"
)]

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::block::Block;

/// Operations that may wait to be handed to the kernel.
const ENTRIES: u32 = 1024;
/// Completions that may wait to be taken: more than there are operations in flight.
const COMPLETIONS: u32 = 8192;
/// Receives until the range is full, where the kernel can (`MSG_WAITALL`).
const WAIT_ALL: i32 = 0x100;
/// Does not raise a signal when the other side is gone (`MSG_NOSIGNAL`).
const NO_SIGNAL: i32 = 0x4000;

/// What is to be done, with all that it needs.
#[derive(Debug)]
pub(super) enum Operation {
    /// Accepts connections, one completion each, for ever.
    Accept {
        /// The listening socket.
        listener: Rc<OwnedFd>,
    },
    /// Receives into a part of a block.
    Receive {
        /// From here.
        socket: Rc<OwnedFd>,
        /// Into this.
        block: Block,
        /// Which part.
        range: Range<usize>,
        /// Whether to complete only when the part is full.
        whole: bool,
    },
    /// Sends bytes.
    Send {
        /// To here.
        socket: Rc<OwnedFd>,
        /// All of them; never grown while in flight.
        bytes: Vec<u8>,
        /// From which on.
        from: usize,
    },
    /// Writes the beginning of a block to a file.
    Write {
        /// To this file.
        file: Rc<OwnedFd>,
        /// From this.
        block: Block,
        /// How many bytes of it.
        bytes: usize,
        /// Where in the file.
        position: u64,
    },
    /// Makes durable what was written to a file's blocks: `fdatasync`.
    Flush {
        /// Of this file.
        file: Rc<OwnedFd>,
    },
}

/// What became of an operation.
#[derive(Debug)]
pub(super) struct Completion<T> {
    /// What the asker called it.
    pub(super) tag: T,
    /// Bytes, or the accepted descriptor's number.
    pub(super) result: io::Result<usize>,
    /// The operation and its memory; none if more completions of it will follow.
    pub(super) operation: Option<Operation>,
}

/// The ring, and what is in flight.
pub(super) struct Ring<T> {
    kernel: IoUring,
    /// By the number that the kernel gives back.
    in_flight: Vec<Option<(T, Operation)>>,
    free: Vec<usize>,
}

impl<T: Clone> Ring<T> {
    /// A ring of the fastest kind that this kernel has.
    pub(super) fn new() -> io::Result<Self> {
        let fast = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(ENTRIES);
        let ring = match fast {
            // An older kernel.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                IoUring::builder().setup_cqsize(COMPLETIONS).build(ENTRIES)?
            }
            other => other?,
        };
        Ok(Self { kernel: ring, in_flight: Vec::new(), free: Vec::new() })
    }

    /// Queues an operation; it is handed to the kernel by the next [`Ring::turn`], or now if the queue is full.
    pub(super) fn start(&mut self, tag: T, operation: Operation) -> io::Result<()> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.in_flight.push(None);
            self.in_flight.len() - 1
        });
        let (_, operation) = self.in_flight[slot].insert((tag, operation));
        let entry = entry(operation).user_data(slot as u64);
        loop {
            // SAFETY: the entry's addresses are of memory that `in_flight[slot]` owns; nobody is given it, and it is
            // neither dropped nor changed, until `take` has seen the operation's last completion. Moving the owner (when
            // `in_flight` grows) does not move the bytes. Its descriptor is kept open by the same entry.
            let pushed = unsafe { self.kernel.submission().push(&entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            self.kernel.submit()?;
        }
    }

    /// Hands over what is queued, waits for at least one completion and takes all that there are.
    pub(super) fn turn(&mut self, completions: &mut Vec<Completion<T>>) -> io::Result<()> {
        match self.kernel.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        loop {
            let entry = self.kernel.completion().next();
            let Some(entry) = entry else { return Ok(()) };
            completions.extend(self.take(&entry));
        }
    }

    fn take(&mut self, entry: &cqueue::Entry) -> Option<Completion<T>> {
        let slot = usize::try_from(entry.user_data()).ok()?;
        let result = match entry.result() {
            number @ 0.. => Ok(number.cast_unsigned() as usize),
            error => Err(io::Error::from_raw_os_error(-error)),
        };
        if cqueue::more(entry.flags()) {
            let (tag, _) = self.in_flight.get(slot)?.as_ref()?;
            return Some(Completion { tag: tag.clone(), result, operation: None });
        }
        let (tag, operation) = self.in_flight.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(Completion { tag, result, operation: Some(operation) })
    }
}

/// The kernel's form of an operation.
fn entry(operation: &mut Operation) -> squeue::Entry {
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    match operation {
        Operation::Accept { listener } => opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build(),
        Operation::Receive { socket, block, range, whole } => {
            let part = &mut block[range.clone()];
            opcode::Recv::new(Fd(socket.as_raw_fd()), part.as_mut_ptr(), length(part.len()))
                .flags(if *whole { WAIT_ALL } else { 0 })
                .build()
        }
        Operation::Send { socket, bytes, from } => {
            let part = &bytes[*from..];
            opcode::Send::new(Fd(socket.as_raw_fd()), part.as_ptr(), length(part.len()))
                .flags(NO_SIGNAL | WAIT_ALL)
                .build()
        }
        Operation::Write { file, block, bytes, position } => {
            let part = &block[..*bytes];
            opcode::Write::new(Fd(file.as_raw_fd()), part.as_ptr(), length(part.len()))
                .offset(*position)
                .build()
        }
        Operation::Flush { file } => {
            opcode::Fsync::new(Fd(file.as_raw_fd())).flags(FsyncFlags::DATASYNC).build()
        }
    }
}

/// The descriptor that an accept gave.
pub(super) fn accepted(number: usize) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    let number = i32::try_from(number).ok()?;
    // SAFETY: the kernel has just opened this descriptor for the completion that carries its number, and the caller is
    // the only one who takes that completion.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // The kernel ends what is in flight after the ring is closed, at a time of its own.
        std::mem::forget(std::mem::take(&mut self.in_flight));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_goes_in_comes_back_with_its_memory() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let socket = Rc::new(OwnedFd::from(theirs));
        let mut ring = Ring::new().unwrap();
        let block = Block::zeroed(4096);
        let receive = Operation::Receive { socket: Rc::clone(&socket), block, range: 2..6, whole: true };
        ring.start(1, receive).unwrap();
        ring.start(2, Operation::Send { socket, bytes: b"-answer".to_vec(), from: 1 }).unwrap();
        ours.write_all(b"asked").unwrap();
        let mut done = Vec::new();
        while done.len() < 2 {
            ring.turn(&mut done).unwrap();
        }
        done.sort_by_key(|completion| completion.tag);
        assert!(matches!(done[0].result, Ok(4)) && matches!(done[1].result, Ok(6)), "{done:?}");
        let Some(Operation::Receive { block, .. }) = &done[0].operation else { panic!("{done:?}") };
        assert_eq!(&block[..8], b"\0\0aske\0\0");
        let mut answer = [0; 6];
        ours.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
    }

    #[test]
    fn a_ring_may_go_away_with_operations_in_flight() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut ring = Ring::new().unwrap();
        let block = Block::zeroed(4096);
        let receive =
            Operation::Receive { socket: Rc::new(theirs.into()), block, range: 0..4096, whole: true };
        ring.start((), receive).unwrap();
        let mut done = Vec::new();
        let bytes = b"x".to_vec();
        let (own, _other) = UnixStream::pair().unwrap();
        ring.start((), Operation::Send { socket: Rc::new(own.into()), bytes, from: 0 }).unwrap();
        ring.turn(&mut done).unwrap();
        drop(ring);
        // The receiver's memory is still there, whether or not the kernel has let go of it.
        drop(ours.write_all(b"late"));
    }
}
