//! The network hands of one shard: connections, frames, and the way of each request to whoever answers it.
//!
//! Called by boot (`Port`, `mesh`, [`Net`]) and by the shard's pump ([`Answers`]). Invariants: memory that clients can
//! make the broker hold is charged to a pool before it is reserved, and everything else they can ask for is counted and
//! bounded; a client that is slow, silent or malicious loses its own connection and nothing else; every request that
//! was read is answered once, within its deadline and a second, unless its connection ended. This room refuses to know
//! what is in a batch, where records are, and what a topic is beyond the shard that owns its partitions.
//!
//! The files, from the socket inwards: `listen` (the port), `accept`, `socket` (system calls), `connection` (one
//! connection's state), `read` (frames in), `serve` (a connection's life), `request` (to the shards), `gather` and
//! `merge` (requests across shards), `reply` and `output` (answers out), `mesh` (between shards), `budget` (memory),
//! `pending` (who waits), `metrics`, `config`, `seam` (what the rest of the broker sees).

mod accept;
mod budget;
mod config;
mod connection;
mod gather;
mod listen;
mod merge;
mod mesh;
mod metrics;
mod output;
mod payload;
mod pending;
mod read;
mod reply;
mod request;
mod seam;
mod serve;
mod socket;

#[cfg(test)]
mod tests;

pub use self::config::NetConfig;
pub use self::listen::{ListenFault, Port, ShardListener};
pub use self::mesh::{Endpoint, mesh};
pub use self::metrics::{Cause, NetSnapshot};
pub use self::seam::{
    ControlRequest, Doors, FetchReady, FetchReadyRow, Inbox, PayloadSlice, Place, View, listing_bytes,
};

use self::budget::Pool;
use self::config::{DETACH_BYTES_MAX, READ_AHEAD_BYTES, SMALL_FRAME_BYTES, SMALL_FRAMES_SHARE, TICK_SLICE};
use self::connection::{Connection, End};
use self::mesh::{Greeting, HandedOver, PeerAnswer, Reply, ToShard};
use self::metrics::Metrics;
use self::pending::Pending;
use self::reply::{Asked, Owner, Waiting, last_moment};
use self::socket::Socket;
use crate::rt::{self, Gate, Ring, Signal};
use corelog_core::shard::{Input, RequestId};
use corelog_wire::ids::ShardId;
use corelog_wire::message::Answer;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// The network hands of one shard. Made and used on the shard's executor; clones are the same hands.
#[derive(Clone)]
pub struct Net {
    inner: Rc<Inner>,
}

/// Where the pump puts answers. Clones lead to the same place.
#[derive(Clone)]
pub struct Answers(Rc<Inner>);

struct Inner {
    config: Arc<NetConfig>,
    ring: Ring,
    shard: ShardId,
    inbox: OnceCell<Rc<dyn Inbox>>,
    doors: Doors,
    views: RefCell<watch::Receiver<Arc<View>>>,
    view: RefCell<Arc<View>>,
    requests: Vec<mpsc::Sender<ToShard>>,
    answers: Vec<mpsc::Sender<PeerAnswer>>,
    /// Until this shard serves.
    from_peers: RefCell<Option<(mpsc::Receiver<ToShard>, mpsc::Receiver<PeerAnswer>)>>,
    /// Bytes of small requests, of all others, and of answers.
    small_input: Pool,
    input: Pool,
    output: Pool,
    /// One buffer for what is received before it is known what it is; borrowed only within a call.
    scratch: RefCell<Vec<u8>>,
    connections: RefCell<Connections>,
    pending: RefCell<Pending<Waiting>>,
    /// Requests of this shard that another one has not answered.
    forwarded_out: Cell<usize>,
    /// Requests of other shards under way here, by the asker and its name for them.
    forwarded_here: RefCell<BTreeMap<(ShardId, RequestId), RequestId>>,
    to_flush: RefCell<VecDeque<Rc<Connection>>>,
    flusher: Signal,
    /// The time, as of the last tick.
    now: Cell<Instant>,
    draining: Cell<bool>,
    listener: RefCell<Option<Rc<OwnedFd>>>,
    stopped: Cell<bool>,
    gate: Gate,
    metrics: Metrics,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Net(shard {})", self.inner.shard)
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answers(shard {})", self.0.shard)
    }
}

/// The connections of the shard; a place is used again.
#[derive(Default)]
struct Connections {
    places: Vec<Option<Rc<Connection>>>,
    free: Vec<usize>,
}

impl Net {
    /// The hands of the endpoint's shard. They do nothing before [`Net::serve`].
    ///
    /// `doors`: lead to what the control thread answers. `views`: tells which shard owns which partition.
    #[must_use]
    pub fn new(
        config: Arc<NetConfig>,
        ring: Ring,
        endpoint: Endpoint,
        doors: Doors,
        views: watch::Receiver<Arc<View>>,
    ) -> Self {
        let Endpoint { shard, requests, answers, requests_in, answers_in } = endpoint;
        let small_input_bytes =
            (config.input_bytes_max / SMALL_FRAMES_SHARE).max(2 * SMALL_FRAME_BYTES as u64);
        let view = RefCell::new(Arc::clone(&views.borrow()));
        // What other shards send before this one serves waits in the channels.
        let from_peers = RefCell::new(Some((requests_in, answers_in)));
        let inner = Rc::new(Inner {
            from_peers,
            small_input: Pool::new(small_input_bytes),
            input: Pool::new(config.input_bytes_max.saturating_sub(small_input_bytes)),
            output: Pool::new(config.output_bytes_max),
            config,
            ring,
            shard,
            inbox: OnceCell::new(),
            doors,
            views: RefCell::new(views),
            view,
            requests,
            answers,
            scratch: RefCell::new(vec![0; READ_AHEAD_BYTES]),
            connections: RefCell::default(),
            pending: RefCell::new(Pending::new()),
            forwarded_out: Cell::new(0),
            forwarded_here: RefCell::default(),
            to_flush: RefCell::default(),
            flusher: Signal::default(),
            now: Cell::new(Instant::now()),
            draining: Cell::new(false),
            listener: RefCell::default(),
            stopped: Cell::new(false),
            gate: Gate::default(),
            metrics: Metrics::new(),
        });
        Self { inner }
    }

    /// Where the pump puts answers.
    #[must_use]
    pub fn answers(&self) -> Answers {
        Answers(Rc::clone(&self.inner))
    }

    /// Begins to accept and to serve; returns at once.
    ///
    /// # Panics
    /// When called twice: a bug of the caller.
    pub fn serve(&self, inbox: Rc<dyn Inbox>, listener: ShardListener) {
        let inner = &self.inner;
        let from_peers = inner.from_peers.take().filter(|_| inner.inbox.set(inbox).is_ok());
        let Some((requests, answers)) = from_peers else {
            panic!("a shard's network hands are started once");
        };
        rt::spawn(Rc::clone(inner).take_requests(requests));
        rt::spawn(Rc::clone(inner).take_answers(answers));
        let listener = Rc::new(listener.0);
        *inner.listener.borrow_mut() = Some(Rc::clone(&listener));
        rt::spawn(Rc::clone(inner).flush_forever());
        rt::spawn(Rc::clone(inner).tick_forever());
        rt::spawn(Rc::clone(inner).accept_forever(listener));
    }

    /// The counters as they are now.
    #[must_use]
    pub fn snapshot(&self) -> NetSnapshot {
        let Inner { metrics, pending, connections, small_input, input, output, .. } = &*self.inner;
        NetSnapshot {
            connections: connections.borrow().count() as u64,
            accepted: metrics.accepted.get(),
            handed_over: metrics.handed_over.get(),
            closed: metrics.closes(),
            accept_faults: metrics.accept_faults.get(),
            bytes_in: metrics.bytes_in.get(),
            bytes_out: metrics.bytes_out.get(),
            in_flight: pending.borrow().len() as u64,
            forwarded: metrics.forwarded.get(),
            throttled: metrics.throttled.get(),
            expired: metrics.expired.get(),
            input_bytes: (small_input.used() + input.used(), small_input.bytes_max() + input.bytes_max()),
            output_bytes: (output.used(), output.bytes_max()),
            latency_us: metrics.latencies(),
        }
    }

    /// Stops: no new connection is accepted, new requests are refused with `SHUTTING_DOWN`, those under way are answered
    /// if that takes no longer than `patience`, then every connection is closed. The pump must still run.
    pub async fn drain(&self, patience: Duration) {
        let inner = &self.inner;
        inner.draining.set(true);
        if let Some(listener) = inner.listener.borrow_mut().take() {
            // Wakes the accepting task, which finds that it is over.
            socket::stop_listening(&listener);
        }
        let until = Instant::now() + patience;
        while Instant::now() < until && !inner.is_settled() {
            rt::sleep(inner.config.tick.min(Duration::from_millis(5))).await;
        }
        for connection in inner.connections.borrow().all() {
            connection.close(Cause::ShuttingDown);
        }
        inner.gate.idle().await;
        inner.stopped.set(true);
        inner.flusher.notify();
    }
}

impl Answers {
    /// A complete answer. For a fetch that has nothing to read, too.
    pub fn answer(&self, request: RequestId, answer: Answer) {
        self.0.complete(request, Reply::Message(answer));
    }

    /// A fetch whose bytes are at hand.
    pub fn fetched(&self, ready: FetchReady) {
        self.0.complete(ready.request, Reply::Fetched(ready.rows));
    }
}

impl Inner {
    fn now(&self) -> Instant {
        self.now.get()
    }

    /// Where the memory of a frame of this size comes from.
    fn pool_for(&self, frame_bytes: usize) -> &Pool {
        if frame_bytes <= SMALL_FRAME_BYTES { &self.small_input } else { &self.input }
    }

    fn shards(&self) -> u16 {
        u16::try_from(self.requests.len()).unwrap_or(u16::MAX)
    }

    fn submit(&self, input: Input) {
        // There is one before the first request is read.
        if let Some(inbox) = self.inbox.get() {
            inbox.submit(input);
        }
    }

    /// The latest picture of who owns which partition.
    fn view(&self) -> Arc<View> {
        let mut views = self.views.borrow_mut();
        // An error means that the control thread is gone; its last picture stays.
        if views.has_changed().unwrap_or(false) {
            *self.view.borrow_mut() = Arc::clone(&views.borrow_and_update());
        }
        Arc::clone(&self.view.borrow())
    }

    fn is_settled(&self) -> bool {
        let settled = self.connections.borrow().all().all(|connection| connection.is_settled());
        settled && self.pending.borrow().len() == 0
    }

    /// Takes a connected socket in and serves it, if there is room.
    fn admit(self: &Rc<Self>, descriptor: OwnedFd, greeting: Option<Greeting>) {
        if self.draining.get() || self.connections.borrow().count() >= self.config.connections_max {
            let cause = if self.draining.get() { Cause::ShuttingDown } else { Cause::TooMany };
            self.metrics.closed(cause);
            return;
        }
        let Ok(socket) = Socket::new(&self.ring, descriptor) else {
            self.metrics.closed(Cause::Broken);
            return;
        };
        let connection = Rc::new(Connection::new(socket, Instant::now()));
        self.connections.borrow_mut().add(&connection);
        let pass = self.gate.enter();
        let net = Rc::clone(self);
        rt::spawn(async move {
            // Made here: made outside, the task would hold it twice, and so would ten thousand idle connections.
            net.serve(connection, greeting).await;
            drop(pass);
        });
    }

    fn remove_connection(&self, connection: &Rc<Connection>) {
        self.connections.borrow_mut().remove(connection);
        if let Some(End::Closed(cause)) = connection.ended() {
            self.metrics.closed(cause);
        }
    }

    async fn flush_forever(self: Rc<Self>) {
        while !self.stopped.get() {
            let next = self.to_flush.borrow_mut().pop_front();
            match next {
                None => self.flusher.wait().await,
                Some(connection) => {
                    if self.flush(&connection) {
                        self.to_flush.borrow_mut().push_back(connection);
                    }
                    rt::yield_if_needed().await;
                }
            }
        }
    }

    /// Looks at all deadlines, every tick: cheaper than a timer for each, and nothing here needs to be exact.
    async fn tick_forever(self: Rc<Self>) {
        while !self.stopped.get() {
            rt::sleep(self.config.tick).await;
            let now = Instant::now();
            self.now.set(now);
            let input_short = self.input.contended() || self.small_input.contended();
            let output_short = self.output.contended();
            let mut copied = 0;
            let places = self.connections.borrow().places.len();
            // Ten thousand idle connections must not hold up a request.
            for from in (0..places).step_by(TICK_SLICE) {
                for connection in
                    self.connections.borrow().places.iter().skip(from).take(TICK_SLICE).flatten()
                {
                    copied += connection.detach(now, DETACH_BYTES_MAX.saturating_sub(copied));
                    if let Some(cause) = connection.overdue(now, &self.config, input_short, output_short) {
                        connection.close(cause);
                    }
                }
                rt::yield_now().await;
            }
            self.expire(now);
        }
    }

    /// What other shards ask of this one.
    async fn take_requests(self: Rc<Self>, mut requests: mpsc::Receiver<ToShard>) {
        while let Some(message) = requests.recv().await {
            match message {
                ToShard::Adopt(moved) => {
                    let HandedOver { descriptor, greeting } = *moved;
                    self.admit(descriptor, Some(greeting));
                }
                ToShard::Request { from, request, ask } if ask.is_silent() => {
                    let _ = (from, request);
                    self.submit(ask.into_input(RequestId(0)));
                }
                ToShard::Request { from, request, ask } => {
                    let until = last_moment(&self.config, ask.wait_max());
                    let owner = Owner::Peer { shard: from, request };
                    let waiting = Waiting { owner, asked: Asked::Shard(self.shard) };
                    let here = self.pending.borrow_mut().insert(waiting, until);
                    self.forwarded_here.borrow_mut().insert((from, request), here);
                    self.submit(ask.into_input(here));
                }
                ToShard::Forget { from, request } => {
                    let here = self.forwarded_here.borrow_mut().remove(&(from, request));
                    if let Some(here) = here {
                        self.forget(here);
                        self.abandon(here);
                    }
                }
            }
            rt::yield_if_needed().await;
        }
    }

    /// What other shards answered this one.
    async fn take_answers(self: Rc<Self>, mut answers: mpsc::Receiver<PeerAnswer>) {
        while let Some(PeerAnswer { request, reply }) = answers.recv().await {
            self.complete(request, reply.into_local());
            rt::yield_if_needed().await;
        }
    }
}

impl Connections {
    fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn all(&self) -> impl Iterator<Item = &Rc<Connection>> {
        self.places.iter().flatten()
    }

    fn add(&mut self, connection: &Rc<Connection>) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        connection.place.set(place);
        self.places[place] = Some(Rc::clone(connection));
    }

    fn remove(&mut self, connection: &Rc<Connection>) {
        let place = connection.place.get();
        if self.places.get_mut(place).and_then(Option::take).is_some() {
            self.free.push(place);
        }
    }
}
