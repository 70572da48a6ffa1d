//! An `io_uring` of our own in each executor, for what happens with every request: commits, and sockets that become ready.
//!
//! Made with the executor; used by `net` and `disk`. glommio's rings interrupt the thread at each completion and arm every
//! wait anew; this one leaves completions until the thread enters the kernel anyway, arms a socket once for its whole life,
//! and writes from memory that need not be glommio's (`docs/decisions/0010-own-ring.md`). One task, the driver, waits through
//! glommio until the ring has completions, and hands them out.
//!
//! Invariants: what an operation points at lives until its last completion, whoever gives up meanwhile; nothing is
//! cancelled but watches; an operation is with the kernel when the call that starts it returns, or before the thread sleeps
//! and after the tasks that could run when it was started, unless the kernel is short of memory.
#![expect(unsafe_code, reason = "the kernel is given addresses and descriptors as bare numbers")]

use super::runnable::{self, Next};
use super::{Signal, tasks};
use futures_lite::future::or;
use futures_lite::io::AsyncRead;
use glommio::net::TcpStream;
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Operations that may be on their way to the kernel: each is handed over at once, or when the driver comes by.
const ENTRIES: u32 = 64;
/// Completions that wait for the driver. Beyond them the kernel keeps them, more slowly.
const COMPLETIONS: u32 = 4096;
/// The name of completions that nobody waits for.
const NOBODY: u64 = u64::MAX;
/// Longest sleep in the ring.
const SLEEP_MAX: Duration = Duration::from_millis(1);
/// Pause of the driver when the system has no descriptor or no memory for it.
const PAUSE: Duration = Duration::from_millis(1);

/// Memory that a write may be made from.
///
/// # Safety
/// [`bytes`](Self::bytes) gives the same memory at every call, nobody changes it, and it lives as long as the value.
pub unsafe trait Stable {
    /// The memory.
    fn bytes(&self) -> &[u8];
}

/// The ring of an executor. Clones are the same.
#[derive(Clone, Debug)]
pub struct Ring(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    kernel: RefCell<Kernel>,
    operations: RefCell<Operations>,
    /// The driver comes by before the thread does anything else: it hands over what is queued.
    later: Cell<bool>,
    /// The kernel left something in the queue.
    left: Signal,
}

struct Kernel(IoUring);

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoUring({})", self.0.as_raw_fd())
    }
}

/// What the kernel has, by the name that it gives back. A name is never used again: one that comes late, or that is to be
/// cancelled and is over, means nobody else.
#[derive(Debug, Default)]
struct Operations {
    under_way: BTreeMap<u64, Operation>,
    next_name: u64,
}

#[derive(Clone)]
enum Operation {
    Once(Rc<Once>),
    Watch(Rc<Watched>),
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Once(_) => "Once",
            Self::Watch(_) => "Watch",
        })
    }
}

/// An operation with one completion, and what it needs until then.
struct Once {
    _file: Rc<OwnedFd>,
    _bytes: Option<Rc<dyn Stable>>,
    result: Cell<Option<i32>>,
    waiter: Cell<Option<Waker>>,
}

/// A descriptor that is watched until it is dropped.
#[derive(Debug)]
pub struct Watch {
    ring: Weak<Inner>,
    name: u64,
    watched: Rc<Watched>,
}

#[derive(Debug)]
struct Watched {
    descriptor: Rc<OwnedFd>,
    /// Nobody is interested any more.
    over: Cell<bool>,
    reading: Side,
    writing: Side,
    /// Why the kernel watches no more, if it gave up.
    fault: Cell<Option<i32>>,
}

/// One direction of a watched descriptor.
struct Side {
    /// Something happened since it was last found wanting.
    ready: Cell<bool>,
    /// Nothing will happen any more: an end is said once, and may be said together with what came before it.
    ended: Cell<bool>,
    waiter: Cell<Option<Waker>>,
}

impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Side(ready: {})", self.ready.get())
    }
}

impl Ring {
    /// Makes the ring of this executor and starts its driver.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn start() -> io::Result<Self> {
        let builder = || {
            let mut builder = IoUring::builder();
            builder.setup_cqsize(COMPLETIONS);
            builder
        };
        let kernel = match builder().setup_coop_taskrun().setup_single_issuer().build(ENTRIES) {
            // A kernel before 6.0.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => builder().build(ENTRIES)?,
            made => made?,
        };
        let kernel = RefCell::new(Kernel(kernel));
        let ring = Self(Rc::new(Inner {
            kernel,
            operations: RefCell::default(),
            later: Cell::new(false),
            left: Signal::default(),
        }));
        let bell = runnable::bell(|| Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))?;
        // For the life of the ring: nobody reads it, each stroke is an event.
        let watched = Rc::new(Watched::new(Rc::new(bell)));
        let entry = watched.entry();
        // SAFETY: the operation owns the descriptor that the entry names.
        unsafe { ring.0.begin(entry, Operation::Watch(watched)) }?;
        tasks::spawn(ring.clone().drive());
        Ok(ring)
    }

    /// Writes all of `bytes` to a file opened for direct I/O. How many were written, which is fewer only at an end of
    /// things.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn write(&self, file: &Rc<OwnedFd>, bytes: Rc<dyn Stable>, at: u64) -> io::Result<usize> {
        let memory = bytes.bytes();
        let length = u32::try_from(memory.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let entry = opcode::Write::new(Fd(file.as_raw_fd()), memory.as_ptr(), length).offset(at).build();
        // SAFETY: the operation gets the file and the memory that the entry names.
        unsafe { self.0.once(entry, file, Some(bytes)) }?.await
    }

    /// Makes durable what was written to a file's blocks: `fdatasync`.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn flush(&self, file: &Rc<OwnedFd>) -> io::Result<()> {
        let entry = opcode::Fsync::new(Fd(file.as_raw_fd())).flags(FsyncFlags::DATASYNC).build();
        // SAFETY: the operation gets the file that the entry names.
        unsafe { self.0.once(entry, file, None) }?.await.map(drop)
    }

    /// Watches a descriptor that can be polled.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn watch(&self, descriptor: Rc<OwnedFd>) -> io::Result<Watch> {
        let watched = Rc::new(Watched::new(descriptor));
        let entry = watched.entry();
        // SAFETY: the operation owns the descriptor that the entry names.
        let name = unsafe { self.0.begin(entry, Operation::Watch(Rc::clone(&watched))) }?;
        Ok(Watch { ring: Rc::downgrade(&self.0), name, watched })
    }

    /// Hands out what is complete, for ever.
    async fn drive(self) {
        let mut completions = Vec::new();
        // Something was complete since the last sleep: more may follow soon.
        let mut busy = false;
        loop {
            self.0.take(&mut completions);
            busy |= !completions.is_empty();
            // Who is woken alone has the sleep to itself: what comes of it is handed over there.
            match completions.len() {
                0 => {}
                several => self.0.later.set(several == 1),
            }
            for (name, result, more) in completions.drain(..) {
                self.0.complete(name, result, more);
            }
            match runnable::next() {
                Next::Nobody if std::mem::take(&mut busy) => {
                    runnable::sleep_unless_woken(|| self.0.kernel.borrow_mut().sleep(SLEEP_MAX));
                }
                Next::Main => {
                    let _behind = self.0.kernel.borrow_mut().is_behind();
                    pass().await;
                }
                Next::Nobody | Next::Executor => {
                    self.0.later.set(false);
                    self.wait_outside().await;
                }
            }
        }
    }

    /// Waits as everybody else does, while the executor does what it has to.
    async fn wait_outside(&self) {
        let behind = self.0.kernel.borrow_mut().is_behind();
        match self.0.duplicate() {
            Ok(descriptor) if !behind => or(readable(descriptor), self.0.left.wait()).await,
            _ => tasks::sleep(PAUSE).await,
        }
    }
}

impl Kernel {
    /// Puts an operation into the queue, and unless that is for `later` hands it to the kernel; false if that did not take
    /// it.
    ///
    /// # Errors
    /// It is not even there.
    ///
    /// # Safety
    /// What the entry names must live until its last completion.
    unsafe fn submit(&mut self, entry: &squeue::Entry, later: bool) -> io::Result<bool> {
        // SAFETY: see above.
        if unsafe { self.0.submission().push(entry) }.is_err() {
            self.enter();
            // SAFETY: see above.
            unsafe { self.0.submission().push(entry) }.map_err(|_| io::ErrorKind::ResourceBusy)?;
        }
        Ok(later || self.enter())
    }

    /// Hands over what is queued; false if the kernel has no memory for all of it at this moment.
    fn enter(&mut self) -> bool {
        // Whatever it says: what is still in the queue was not taken, what is not has a completion.
        let _said = self.0.submit();
        self.0.submission().is_empty()
    }

    /// Waits in the kernel until something is complete.
    fn sleep(&mut self, longest: Duration) {
        let longest = Timespec::from(longest);
        // Whatever it says: the queue shows what came.
        let _said = self.0.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&longest));
    }

    /// Moves along what is queued, and completions that found no room and lie in the kernel. Whether some are left.
    fn is_behind(&mut self) -> bool {
        let left = |kernel: &mut Self| {
            let queue = kernel.0.submission();
            !queue.is_empty() || queue.cq_overflow()
        };
        if left(self) {
            self.enter();
        }
        left(self)
    }
}

impl Inner {
    /// The ring under another descriptor.
    fn duplicate(&self) -> io::Result<OwnedFd> {
        let kernel = self.kernel.borrow();
        // SAFETY: the ring, which is borrowed, keeps its descriptor open.
        let descriptor = unsafe { BorrowedFd::borrow_raw(kernel.0.as_raw_fd()) };
        Ok(fcntl_dupfd_cloexec(descriptor, 0)?)
    }

    /// Starts an operation; its name.
    ///
    /// # Safety
    /// `operation` must own what the entry names.
    unsafe fn begin(&self, entry: squeue::Entry, operation: Operation) -> io::Result<u64> {
        let name = self.operations.borrow_mut().add(operation);
        // SAFETY: the operation is kept until its last completion was taken.
        let begun = unsafe { self.submit(&entry.user_data(name)) };
        if begun.is_err() {
            self.operations.borrow_mut().under_way.remove(&name);
        }
        begun.map(|()| name)
    }

    /// Puts an operation into the queue at least.
    ///
    /// # Safety
    /// What the entry names must live until its last completion.
    unsafe fn submit(&self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: see above.
        let taken = unsafe { self.kernel.borrow_mut().submit(entry, self.later.get()) }?;
        if !taken {
            self.left.notify();
        }
        Ok(())
    }

    /// Starts an operation that has one completion; its result.
    ///
    /// # Safety
    /// The entry must name no other descriptor than `file`'s and no other memory than `bytes`.
    unsafe fn once(
        &self,
        entry: squeue::Entry,
        file: &Rc<OwnedFd>,
        bytes: Option<Rc<dyn Stable>>,
    ) -> io::Result<impl Future<Output = io::Result<usize>> + use<>> {
        let (result, waiter) = (Cell::new(None), Cell::default());
        let once = Rc::new(Once { _file: Rc::clone(file), _bytes: bytes, result, waiter });
        // SAFETY: the operation owns both.
        unsafe { self.begin(entry, Operation::Once(Rc::clone(&once))) }?;
        Ok(poll_fn(move |cx| {
            if let Some(result) = once.result.get() {
                return Poll::Ready(counted(result));
            }
            once.waiter.set(Some(cx.waker().clone()));
            Poll::Pending
        }))
    }

    fn take(&self, completions: &mut Vec<(u64, i32, bool)>) {
        let mut kernel = self.kernel.borrow_mut();
        let entries = kernel.0.completion();
        completions
            .extend(entries.map(|entry| (entry.user_data(), entry.result(), cqueue::more(entry.flags()))));
    }

    /// One completion of an operation; the last one unless there are `more`.
    fn complete(&self, name: u64, result: i32, more: bool) {
        let Some(operation) = self.operations.borrow().under_way.get(&name).cloned() else { return };
        let over = match &operation {
            Operation::Once(once) => {
                once.result.set(Some(result));
                wake(&once.waiter);
                true
            }
            Operation::Watch(watched) => {
                watched.happened(result);
                // The kernel gives a watch up when it has no room for its completions.
                !more && !self.watch_again(name, watched, result)
            }
        };
        if over {
            self.operations.borrow_mut().under_way.remove(&name);
        }
    }

    /// Arms a watch again; false if that is of no use.
    fn watch_again(&self, name: u64, watched: &Watched, result: i32) -> bool {
        if watched.over.get() || result < 0 {
            return false;
        }
        let entry = watched.entry().user_data(name);
        // SAFETY: the operation of that name owns the descriptor.
        let armed = unsafe { self.submit(&entry) }.is_ok();
        if !armed {
            watched.happened(-Errno::BUSY.raw_os_error());
        }
        armed
    }

    /// Ends a watch, if it is not over. Its descriptor goes with the last completion.
    fn end_watch(&self, name: u64) {
        if !self.operations.borrow().under_way.contains_key(&name) {
            return;
        }
        let entry = opcode::PollRemove::new(name).build().user_data(NOBODY);
        // SAFETY: the entry names no memory. If there is no room for it, the watch ends with the descriptor's peer.
        let _ended = unsafe { self.submit(&entry) };
    }
}

impl Operations {
    fn add(&mut self, operation: Operation) -> u64 {
        let name = self.next_name;
        self.next_name += 1;
        self.under_way.insert(name, operation);
        name
    }
}

impl Watched {
    fn new(descriptor: Rc<OwnedFd>) -> Self {
        let (over, fault) = (Cell::new(false), Cell::new(None));
        Self { descriptor, over, reading: Side::new(), writing: Side::new(), fault }
    }

    fn entry(&self) -> squeue::Entry {
        let events = PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP;
        opcode::PollAdd::new(Fd(self.descriptor.as_raw_fd()), u32::from(events.bits())).multi(true).build()
    }

    /// The kernel reports these events, or that it watches no more.
    fn happened(&self, result: i32) {
        let Ok(events) = u16::try_from(result).map(PollFlags::from_bits_retain) else {
            self.fault.set(Some(result));
            self.reading.wake(true);
            self.writing.wake(true);
            return;
        };
        let gone = events.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
        let read_end = gone || events.contains(PollFlags::RDHUP);
        if read_end || events.contains(PollFlags::IN) {
            self.reading.wake(read_end);
        }
        if gone || events.contains(PollFlags::OUT) {
            self.writing.wake(gone);
        }
    }

    async fn ready(&self, side: &Side) -> io::Result<()> {
        poll_fn(|cx| side.poll(cx)).await;
        self.fault.get().map_or(Ok(()), |fault| counted(fault).map(drop))
    }
}

impl Side {
    /// Ready until it is found wanting.
    fn new() -> Self {
        Self { ready: Cell::new(true), ended: Cell::new(false), waiter: Cell::default() }
    }

    fn wake(&self, ended: bool) {
        self.ready.set(true);
        self.ended.set(ended || self.ended.get());
        wake(&self.waiter);
    }

    fn wanting(&self) {
        self.ready.set(self.ended.get());
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.ready.get() {
            return Poll::Ready(());
        }
        self.waiter.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl Watch {
    /// Whether a read may find something.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.watched.reading.ready.get()
    }

    /// Whether a write may find room.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.watched.writing.ready.get()
    }

    /// A read found less than it had room for, or nothing.
    pub fn was_emptied(&self) {
        self.watched.reading.wanting();
    }

    /// A write found no room.
    pub fn was_filled(&self) {
        self.watched.writing.wanting();
    }

    /// Waits until a read may find something. One task at a time.
    ///
    /// # Errors
    /// The kernel watches the descriptor no more.
    pub async fn readable(&self) -> io::Result<()> {
        self.watched.ready(&self.watched.reading).await
    }

    /// Waits until a write may find room. One task at a time.
    ///
    /// # Errors
    /// The kernel watches the descriptor no more.
    pub async fn writable(&self) -> io::Result<()> {
        self.watched.ready(&self.watched.writing).await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watched.over.set(true);
        if let Some(ring) = self.ring.upgrade() {
            ring.end_watch(self.name);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The kernel ends what is under way after the ring is closed, at a time of its own. Only writes name memory.
        for operation in self.operations.take().under_way.into_values() {
            if matches!(operation, Operation::Once(_)) {
                std::mem::forget(operation);
            }
        }
    }
}

fn wake(waiter: &Cell<Option<Waker>>) {
    if let Some(waiter) = waiter.take() {
        waiter.wake();
    }
}

fn counted(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// Lets the tasks of this queue that can run go first.
async fn pass() {
    let mut passed = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut passed, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits until a descriptor has something to read.
async fn readable(descriptor: OwnedFd) {
    // SAFETY: `into_raw_fd` gives up the ownership of an open descriptor, and the stream takes it.
    let mut stream = unsafe { TcpStream::from_raw_fd(descriptor.into_raw_fd()) };
    // A fresh stream polls before its first read, and that read fails at once on what is no socket: readiness is all it says.
    poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut [0]).map(drop)).await;
}
