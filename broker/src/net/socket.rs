//! One connected socket: system calls first, the runtime only to wait.
//!
//! Called by a connection's two sides, each from a task of its own. `recv` and `sendmsg` are tried without blocking;
//! only when the kernel has nothing (or no room) does glommio wait for it. Invariant: the descriptor stays open as long
//! as this value lives, and has no other owner. This file refuses to know frames.
#![expect(unsafe_code, reason = "glommio takes and shows descriptors only as bare numbers")]

use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec, ioctl_fionread};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::Poll;

/// A connected socket of this executor.
#[derive(Debug)]
pub(super) struct Socket {
    stream: RefCell<TcpStream>,
    number: RawFd,
}

/// A stream of this executor. Any descriptor that can be polled will do.
fn adopt(descriptor: OwnedFd) -> TcpStream {
    // SAFETY: `into_raw_fd` gives up the ownership of an open descriptor, and the stream takes it.
    unsafe { TcpStream::from_raw_fd(descriptor.into_raw_fd()) }
}

/// Waits until a listening socket has a connection to accept, or is shut down.
pub(super) async fn acceptable(listener: &OwnedFd) -> io::Result<()> {
    // A fresh stream polls before its first read, and that read fails at once on a listener: readiness is all it says.
    let mut stream = adopt(fcntl_dupfd_cloexec(listener, 0)?);
    poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut [0]).map(drop)).await;
    Ok(())
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

/// Makes a listening socket refuse, and wakes whoever waits in [`acceptable`].
pub(super) fn stop_listening(listener: &OwnedFd) {
    let _stopped_already = rustix::net::shutdown(listener, Shutdown::Both);
}

impl Socket {
    /// Takes a connected socket; must be called from within an executor.
    pub(super) fn new(descriptor: OwnedFd) -> Self {
        let number = descriptor.as_raw_fd();
        Self { stream: RefCell::new(adopt(descriptor)), number }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: `number` is the descriptor of `stream`, which this value owns and never replaces, so it is open for
        // as long as the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.number) }
    }

    /// The same socket under another descriptor, to be taken to another executor.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(fcntl_dupfd_cloexec(self.descriptor(), 0)?)
    }

    /// Whether the peer is gone, or will never send so many bytes more. For a connection that nobody reads from, and so
    /// nobody would be told.
    pub(super) fn is_cut(&self, missing: usize) -> bool {
        let descriptor = self.descriptor();
        let mut asked = [PollFd::new(&descriptor, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !matches!(poll(&mut asked, Some(&at_once)), Ok(1..)) {
            return false;
        }
        let said = asked[0].revents();
        // Who only ended sending may still wait for the answer to a frame that is whole.
        let unread = || ioctl_fionread(descriptor).unwrap_or(0);
        said.intersects(PollFlags::HUP | PollFlags::ERR)
            || said.contains(PollFlags::RDHUP) && unread() < missing as u64
    }

    /// Ends sending, or both directions; both tasks of the connection wake up.
    pub(super) fn shutdown(&self, how: Shutdown) {
        // It fails only when the peer is gone already, which is what is wanted.
        let _gone = rustix::net::shutdown(self.descriptor(), how);
    }

    /// Receives into the buffer's spare capacity, which must not be empty. `Some(0)`: the peer sends no more. `None`:
    /// nothing there yet.
    pub(super) fn try_receive(&self, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
        retry(|| {
            rustix::net::recv(self.descriptor(), spare_capacity(buffer), RecvFlags::DONTWAIT)
                .map(|(_, got)| got)
        })
    }

    /// Receives into a slice. See [`Socket::try_receive`].
    pub(super) fn try_receive_into(&self, slice: &mut [u8]) -> io::Result<Option<usize>> {
        retry(|| rustix::net::recv(self.descriptor(), &mut *slice, RecvFlags::DONTWAIT).map(|(_, got)| got))
    }

    /// Waits until there is something to receive and receives it into `scratch`, which is borrowed only while bytes are
    /// moved and never while waiting: one for all connections of the shard. Calls `take` with the bytes received.
    pub(super) async fn receive<T>(
        &self,
        scratch: &RefCell<Vec<u8>>,
        mut take: impl FnMut(&[u8]) -> T,
    ) -> io::Result<T> {
        poll_fn(|cx| {
            let mut scratch = scratch.borrow_mut();
            let mut stream = self.stream.borrow_mut();
            loop {
                return match Pin::new(&mut *stream).poll_read(cx, &mut scratch) {
                    Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Poll::Ready(result) => Poll::Ready(result.map(|got| take(&scratch[..got]))),
                    Poll::Pending => Poll::Pending,
                };
            }
        })
        .await
    }

    /// Sends what there is room for. `None`: there is none.
    pub(super) fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut control = SendAncillaryBuffer::default();
        retry(|| rustix::net::sendmsg(self.descriptor(), slices, &mut control, flags))
    }

    /// Waits until there is room and sends the beginning of what `bytes` gives to its argument, which is called anew at
    /// every attempt.
    pub(super) async fn send(
        &self,
        mut bytes: impl FnMut(&mut dyn FnMut(&[u8]) -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>>,
    ) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut stream = self.stream.borrow_mut();
            loop {
                return match bytes(&mut |bytes| Pin::new(&mut *stream).poll_write(cx, bytes)) {
                    Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                    result => result,
                };
            }
        })
        .await
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
