//! One connected socket: system calls, and the executor's ring to wait.
//!
//! Called by a connection's two sides, each from a task of its own. `recv` and `sendmsg` never block; they are made only when
//! the ring has not seen that they would be in vain. Invariant: the descriptor stays open as long as this value lives.
//! This file refuses to know frames.

use crate::rt::{Ring, Watch};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec, ioctl_fionread};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// A connected socket of this executor.
#[derive(Debug)]
pub(super) struct Socket {
    descriptor: Rc<OwnedFd>,
    watch: Watch,
}

/// The next connection of a listening socket, if there is one.
pub(super) fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC) {
        Ok(descriptor) => Ok(Some(descriptor)),
        // The peer gave up before it was accepted, or a signal came: look again at the next readiness.
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a listening socket refuse, and wakes whoever watches it.
pub(super) fn stop_listening(listener: &OwnedFd) {
    let _stopped_already = rustix::net::shutdown(listener, Shutdown::Both);
}

impl Socket {
    /// Takes a connected socket.
    ///
    /// # Errors
    /// The ring does not take it.
    pub(super) fn new(ring: &Ring, descriptor: OwnedFd) -> io::Result<Self> {
        let descriptor = Rc::new(descriptor);
        Ok(Self { watch: ring.watch(Rc::clone(&descriptor))?, descriptor })
    }

    /// The same socket under another descriptor, to be taken to another executor.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(fcntl_dupfd_cloexec(&*self.descriptor, 0)?)
    }

    /// Whether the peer is gone, or will never send so many bytes more. For a connection that nobody reads from, and so
    /// nobody would be told.
    pub(super) fn is_cut(&self, missing: usize) -> bool {
        let mut asked = [PollFd::new(&*self.descriptor, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !matches!(poll(&mut asked, Some(&at_once)), Ok(1..)) {
            return false;
        }
        let said = asked[0].revents();
        // Who only ended sending may still wait for the answer to a frame that is whole.
        let unread = || ioctl_fionread(&*self.descriptor).unwrap_or(0);
        said.intersects(PollFlags::HUP | PollFlags::ERR)
            || said.contains(PollFlags::RDHUP) && unread() < missing as u64
    }

    /// Ends sending, or both directions; both tasks of the connection wake up.
    pub(super) fn shutdown(&self, how: Shutdown) {
        // It fails only when the peer is gone already, which is what is wanted.
        let _gone = rustix::net::shutdown(&*self.descriptor, how);
    }

    /// Receives into the buffer's spare capacity, which must not be empty. `Some(0)`: the peer sends no more. `None`:
    /// nothing there yet.
    pub(super) fn try_receive(&self, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let room = buffer.capacity() - buffer.len();
        self.try_read(room, || {
            let room = spare_capacity(buffer);
            rustix::net::recv(&*self.descriptor, room, RecvFlags::DONTWAIT).map(|(_, got)| got)
        })
    }

    /// Receives into a slice. See [`Socket::try_receive`].
    pub(super) fn try_receive_into(&self, slice: &mut [u8]) -> io::Result<Option<usize>> {
        let room = slice.len();
        self.try_read(room, || {
            rustix::net::recv(&*self.descriptor, &mut *slice, RecvFlags::DONTWAIT).map(|(_, got)| got)
        })
    }

    fn try_read(
        &self,
        room: usize,
        call: impl FnMut() -> rustix::io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        if !self.watch.is_readable() {
            return Ok(None);
        }
        let received = retry(call)?;
        if received.is_none_or(|received| received < room) {
            self.watch.was_emptied();
        }
        Ok(received)
    }

    /// Waits until there may be something to receive.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.watch.readable().await
    }

    /// Sends what there is room for. `None`: there is none.
    pub(super) fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        if !self.watch.is_writable() {
            return Ok(None);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut control = SendAncillaryBuffer::default();
        let sent = retry(|| rustix::net::sendmsg(&*self.descriptor, slices, &mut control, flags))?;
        if sent.is_none() {
            self.watch.was_filled();
        }
        Ok(sent)
    }

    /// Waits until there may be room to send.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.watch.writable().await
    }
}

/// Repeats a call that a signal interrupted; `None` when it would block.
fn retry(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        return match call() {
            Ok(count) => Ok(Some(count)),
            Err(Errno::AGAIN) => Ok(None),
            Err(Errno::INTR) => continue,
            Err(errno) => Err(errno.into()),
        };
    }
}
