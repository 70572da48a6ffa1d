//! Brokers without disks: executors with the network hands and, behind the seam, shards that keep batches in a map; and
//! clients that are plain sockets.

use crate::net::{
    Answers, Cause, ControlRequest, Doors, FetchReady, FetchReadyRow, Inbox, Net, NetConfig, NetSnapshot,
    PayloadSlice, Port, View, mesh,
};
use crate::rt;
use bytes::Bytes;
use corelog_core::shard::{Fetch, FetchRow, Input, Produce, ProduceRow, RequestId};
use corelog_wire::batch::{BatchFields, seal_body};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::{Caps, Kind, PRELUDE_BYTES, Prelude};
use corelog_wire::ids::{BrokerId, CorrelationId, LeaderEpoch, Offset, ShardId, TopicId, TopicPartition};
use corelog_wire::message::{
    Acks, Answer, DeleteRecordsAnswer, DeletedRow, FetchAnswer, FetchRequest, HelloAnswer, HelloRequest,
    InitProducerIdAnswer, ListOffsetsAnswer, ListedRow, MetadataAnswer, ProduceAnswer, ProduceRequest,
    ProducedRow, Refusal, Request,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Far longer than anything here takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);
const CAPS: Caps = Caps { header_bytes_max: 1 << 20, payload_bytes_max: 64 << 20 };

pub(super) fn config() -> NetConfig {
    NetConfig { tick: Duration::from_millis(5), ..NetConfig::new("test", BrokerId::new(7)) }
}

/// Partition `n` of the one topic belongs to shard `n % shards`, for `n` below 8.
pub(super) fn tp(partition: u32) -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes([9; 16]), partition)
}

/// A batch of one record; what it says is padded to what a record has at least.
pub(super) fn batch(tp: TopicPartition, body: &[u8]) -> Bytes {
    let mut body = body.to_vec();
    body.resize(body.len().max(8), 0);
    seal_body(&body, &BatchFields::plain(1, 1_000), tp)
}

/// A shard of a few lines. It answers within `submit`, which is the hardest for its caller.
pub(super) struct FakeShard {
    answers: Answers,
    log: RefCell<BTreeMap<TopicPartition, Vec<Bytes>>>,
    parked: RefCell<Vec<Fetch>>,
    /// While set, produce requests wait here with their batches.
    pub(super) holds: Cell<bool>,
    pub(super) held: RefCell<Vec<Produce>>,
    pub(super) forgotten: Cell<usize>,
    pub(super) silent: Cell<usize>,
}

impl FakeShard {
    fn new(answers: Answers) -> Self {
        Self {
            answers,
            log: RefCell::default(),
            parked: RefCell::default(),
            holds: Cell::new(false),
            held: RefCell::default(),
            forgotten: Cell::new(0),
            silent: Cell::new(0),
        }
    }

    pub(super) fn parked(&self) -> usize {
        self.parked.borrow().len()
    }

    pub(super) fn batches(&self, tp: TopicPartition) -> usize {
        self.log.borrow().get(&tp).map_or(0, Vec::len)
    }

    /// Looks at the parked fetches again, as the step does that moves a high watermark.
    pub(super) fn wake(&self) {
        let parked = self.parked.take();
        for fetch in parked {
            self.fetch(fetch);
        }
    }

    /// Fills a partition directly.
    pub(super) fn append(&self, tp: TopicPartition, batch: Bytes) {
        self.log.borrow_mut().entry(tp).or_default().push(batch);
    }

    pub(super) fn release(&self) {
        self.holds.set(false);
        let held = self.held.take();
        for produce in held {
            self.produce(produce);
        }
    }

    fn produce(&self, produce: Produce) {
        let Produce { request, acks, rows, .. } = produce;
        let rows = rows.into_iter().map(|row| self.append_row(row)).collect();
        if acks == Acks::None {
            assert_eq!(request, RequestId(0));
            self.silent.set(self.silent.get() + 1);
        } else {
            self.answers.answer(request, Answer::Produce(ProduceAnswer { throttle_ms: 0, rows }));
        }
        self.wake();
    }

    fn append_row(&self, ProduceRow { tp, batch }: ProduceRow) -> ProducedRow {
        let (error, message, base) = match batch {
            Ok(batch) => {
                let mut log = self.log.borrow_mut();
                let log = log.entry(tp).or_default();
                // The shard copies what it keeps; the payload goes.
                log.push(Bytes::copy_from_slice(batch.bytes()));
                (ErrorCode::None, String::new(), log.len() as u64 - 1)
            }
            Err((code, message)) => (code, message, 0),
        };
        ProducedRow {
            tp,
            error,
            message,
            base_offset: Offset::new(base),
            append_timestamp_ms: 5,
            log_start: Offset::new(0),
            replicas_reached: 1,
            durable: true,
        }
    }

    fn fetch(&self, fetch: Fetch) {
        let mut left = fetch.bytes_max as usize;
        let rows: Vec<_> = fetch.rows.iter().map(|row| self.read(row, &mut left)).collect();
        let bytes: usize = rows.iter().flat_map(|row| &row.slices).map(PayloadSlice::len).sum();
        let refused = rows.iter().any(|row| row.error != ErrorCode::None);
        if bytes < fetch.bytes_min as usize && !refused && !fetch.wait_max.is_zero() {
            self.parked.borrow_mut().push(fetch);
        } else {
            self.answers.fetched(FetchReady { request: fetch.request, rows });
        }
    }

    fn read(&self, row: &FetchRow, left: &mut usize) -> FetchReadyRow {
        let log = self.log.borrow();
        let log = log.get(&row.tp).map_or(&[][..], Vec::as_slice);
        let from = usize::try_from(row.offset.get()).unwrap();
        let mut slices = Vec::new();
        for batch in log.iter().skip(from) {
            if batch.len() > *left && !slices.is_empty() {
                break;
            }
            *left = left.saturating_sub(batch.len());
            slices.push(PayloadSlice::owned(batch.clone()));
        }
        let end = Offset::new(log.len() as u64);
        FetchReadyRow {
            tp: row.tp,
            error: if from > log.len() { ErrorCode::OffsetOutOfRange } else { ErrorCode::None },
            message: String::new(),
            high_watermark: end,
            log_start: Offset::new(0),
            log_end: end,
            leader_epoch: LeaderEpoch::new(1),
            next_offset: None,
            slices,
        }
    }
}

impl Inbox for FakeShard {
    fn submit(&self, input: Input) {
        match input {
            Input::Produce(produce) if self.holds.get() => self.held.borrow_mut().push(produce),
            Input::Produce(produce) => self.produce(produce),
            Input::Fetch(fetch) => self.fetch(fetch),
            Input::ListOffsets { request, rows } => {
                let listed = |tp| ListedRow {
                    tp,
                    error: ErrorCode::None,
                    offset: Offset::new(self.batches(tp) as u64),
                    timestamp_ms: -1,
                    leader_epoch: LeaderEpoch::new(1),
                };
                let rows = rows.iter().map(|row| listed(row.tp)).collect();
                self.answers.answer(request, Answer::ListOffsets(ListOffsetsAnswer { rows }));
            }
            Input::DeleteRecords { request, rows } => {
                let deleted = |(tp, before)| DeletedRow { tp, error: ErrorCode::None, log_start: before };
                let rows = rows.into_iter().map(deleted).collect();
                self.answers.answer(request, Answer::DeleteRecords(DeleteRecordsAnswer { rows }));
            }
            Input::Forget { request } => {
                self.forgotten.set(self.forgotten.get() + 1);
                self.parked.borrow_mut().retain(|fetch| fetch.request != request);
            }
            other => panic!("the network does not say {other:?}"),
        }
    }
}

/// What runs on one executor.
pub(super) struct Core {
    pub(super) net: Net,
    pub(super) shard: Rc<FakeShard>,
}

type Errand = Box<dyn FnOnce(&Core) + Send>;

/// A broker of such shards.
pub(super) struct Broker {
    pub(super) address: SocketAddr,
    errands: Vec<mpsc::UnboundedSender<Errand>>,
    /// What asks the control thread; answered by tests that want to.
    pub(super) control: mpsc::Receiver<ControlRequest>,
    /// What asks about groups.
    pub(super) groups: mpsc::Receiver<ControlRequest>,
    pub(super) views: watch::Sender<Arc<View>>,
    running: Option<rt::Running>,
}

pub(super) fn view(shards: u16) -> View {
    let owners = (0..8).map(|partition| Some(ShardId::new(partition % shards))).collect();
    View::new([(tp(0).topic, owners)])
}

impl Broker {
    pub(super) fn start(shards: u16, config: NetConfig) -> Self {
        let port = Port::take((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = port.address();
        let (control_in, control) = mpsc::channel(4);
        let (groups_in, groups) = mpsc::channel(4);
        let doors = Doors { control: control_in, groups: groups_in };
        let (views, view_out) = watch::channel(Arc::new(view(shards)));
        let config = Arc::new(config);
        let mut errands = Vec::new();
        let mut work = Vec::new();
        for (listener, endpoint) in port.share(shards).unwrap().into_iter().zip(mesh(shards, &config)) {
            let (sender, receiver) = mpsc::unbounded_channel::<Errand>();
            errands.push(sender);
            let parts = (Arc::clone(&config), endpoint, doors.clone(), view_out.clone());
            work.push((parts, listener, receiver));
        }
        let options = rt::Options { pin: false, ..rt::Options::default() };
        let running = rt::start(&options, work, |context, (parts, listener, mut errands)| async move {
            let (config, endpoint, doors, views) = parts;
            let net = Net::new(config, context.ring, endpoint, doors, views);
            let shard = Rc::new(FakeShard::new(net.answers()));
            net.serve(Rc::<FakeShard>::clone(&shard), listener);
            let core = Core { net, shard };
            while let Some(errand) = errands.recv().await {
                errand(&core);
            }
            core.shard.release();
            core.net.drain(Duration::from_millis(200)).await;
        });
        Self { address, errands, control, groups, views, running: Some(running.unwrap()) }
    }

    /// Does something on a shard's executor and brings back what it says.
    pub(super) fn on<T: Send + 'static>(
        &self,
        shard: usize,
        errand: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> T {
        let (done, result) = std::sync::mpsc::channel();
        let errand: Errand = Box::new(move |core| drop(done.send(errand(core))));
        assert!(self.errands[shard].send(errand).is_ok(), "the shard runs");
        result.recv_timeout(PATIENCE).unwrap()
    }

    pub(super) fn snapshot(&self, shard: usize) -> NetSnapshot {
        self.on(shard, |core| core.net.snapshot())
    }

    /// Asks a shard until it says yes.
    pub(super) fn until(&self, shard: usize, holds: impl Fn(&Core) -> bool + Send + Clone + 'static) {
        let start = Instant::now();
        while !self.on(shard, holds.clone()) {
            let mut counters = self.snapshot(shard);
            counters.latency_us.clear();
            assert!(start.elapsed() < PATIENCE, "it never came to that: {counters:?}");
            std::thread::yield_now();
        }
    }

    pub(super) fn until_closed(&self, shard: usize, cause: Cause, times: u64) {
        self.until(shard, move |core| core.net.snapshot().closed.contains(&(cause, times)));
    }

    pub(super) fn client(&self) -> Client {
        Client::greeted(self.address, None).0
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.errands.clear();
        if let Some(running) = self.running.take()
            && !std::thread::panicking()
        {
            running.join().unwrap();
        }
    }
}

/// An answer's frame.
pub(super) struct Reply {
    pub(super) prelude: Prelude,
    pub(super) answer: Answer,
    pub(super) payload: Vec<u8>,
}

/// A socket and a counter.
pub(super) struct Client {
    pub(super) socket: TcpStream,
    next: u64,
}

pub(super) fn hello(shard: Option<u16>) -> Request {
    Request::Hello(HelloRequest {
        client_name: "test".to_owned(),
        client_version: String::new(),
        version_min: 1,
        version_max: 1,
        features: 0,
        shard: shard.map(ShardId::new),
    })
}

pub(super) fn frame(correlation: u64, request: &Request, payload: &[u8]) -> Vec<u8> {
    let header = request.encode();
    let payload_bytes = u32::try_from(payload.len()).unwrap();
    let prelude = Prelude::request(request.kind(), CorrelationId::new(correlation), &header, payload_bytes);
    [&prelude.encode()[..], &header, payload].concat()
}

pub(super) fn produce(acks: Acks, batches: &[(TopicPartition, Bytes)]) -> (Request, Vec<u8>) {
    let mut payload = Vec::new();
    let mut rows = Vec::new();
    for (tp, batch) in batches {
        rows.push(corelog_wire::message::ProduceRow {
            tp: *tp,
            first_byte: u32::try_from(payload.len()).unwrap(),
            bytes: u32::try_from(batch.len()).unwrap(),
        });
        payload.extend_from_slice(batch);
    }
    (Request::Produce(ProduceRequest { acks, deadline_ms: 20_000, rows }), payload)
}

pub(super) fn fetch(max_wait_ms: u32, max_bytes: u32, rows: &[(TopicPartition, u64)]) -> Request {
    let rows = rows.iter().map(|(tp, offset)| corelog_wire::message::FetchRow {
        tp: *tp,
        offset: Offset::new(*offset),
        max_bytes,
        leader_epoch: None,
    });
    Request::Fetch(FetchRequest {
        max_wait_ms,
        min_bytes: 1,
        max_bytes,
        rows: rows.collect(),
        filter: corelog_wire::keys::TagFilter::ALL,
    })
}

impl Client {
    /// A connection on which nothing was said.
    pub(super) fn silent(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, next: 1 }
    }

    /// A connection after Hello.
    pub(super) fn greeted(address: SocketAddr, shard: Option<u16>) -> (Self, HelloAnswer) {
        let mut client = Self::silent(address);
        let answer = client.ask(&hello(shard));
        let Answer::Hello(answer) = answer else { panic!("{answer:?}") };
        (client, answer)
    }

    pub(super) fn send(&mut self, request: &Request, payload: &[u8]) -> u64 {
        let correlation = self.next;
        self.next += 1;
        self.socket.write_all(&frame(correlation, request, payload)).unwrap();
        correlation
    }

    pub(super) fn receive(&mut self) -> Reply {
        let mut prelude = [0; PRELUDE_BYTES];
        self.socket.read_exact(&mut prelude).unwrap();
        let prelude = Prelude::decode(&prelude, &CAPS).unwrap();
        assert!(prelude.answer);
        let mut header = vec![0; prelude.header_bytes as usize];
        self.socket.read_exact(&mut header).unwrap();
        corelog_wire::frame::check_header(&prelude, &header).unwrap();
        let mut payload = vec![0; prelude.payload_bytes as usize];
        self.socket.read_exact(&mut payload).unwrap();
        let answer = Kind::from_u16(prelude.kind).map_or_else(
            || Answer::Refused { kind: Kind::Hello, refusal: Refusal::decode(&header).unwrap().unwrap() },
            |kind| Answer::decode(kind, &header).unwrap(),
        );
        Reply { prelude, answer, payload }
    }

    /// One request, its answer and no payload.
    pub(super) fn ask(&mut self, request: &Request) -> Answer {
        let correlation = self.send(request, &[]);
        let reply = self.receive();
        assert_eq!(reply.prelude.correlation.get(), correlation);
        reply.answer
    }

    pub(super) fn produce(&mut self, batches: &[(TopicPartition, Bytes)]) -> Vec<ProducedRow> {
        let (request, payload) = produce(Acks::All, batches);
        self.send(&request, &payload);
        let Answer::Produce(answer) = self.receive().answer else { panic!("not an answer to Produce") };
        answer.rows
    }

    pub(super) fn fetch(&mut self, request: &Request) -> (FetchAnswer, Vec<u8>) {
        self.send(request, &[]);
        self.fetched()
    }

    pub(super) fn fetched(&mut self) -> (FetchAnswer, Vec<u8>) {
        let Reply { answer, payload, .. } = self.receive();
        let Answer::Fetch(answer) = answer else { panic!("{answer:?}") };
        answer.rows_within(payload.len()).unwrap();
        (answer, payload)
    }

    /// The refusal that comes next.
    pub(super) fn refusal(&mut self) -> (u64, Refusal) {
        let reply = self.receive();
        let Answer::Refused { refusal, .. } = reply.answer else { panic!("{:?}", reply.answer) };
        (reply.prelude.correlation.get(), refusal)
    }

    /// The broker says nothing more and closes.
    pub(super) fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        // A reset says the same.
        let end = self.socket.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{} bytes came", rest.len());
        assert!(end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    }
}

/// The answers of the control thread to what these tests ask.
pub(super) fn control_answer(request: &Request) -> Answer {
    match request {
        Request::Metadata(_) => {
            Answer::Metadata(MetadataAnswer { brokers: vec![], topics: vec![], revision: 4 })
        }
        Request::InitProducerId(_) => Answer::InitProducerId(InitProducerIdAnswer {
            producer_id: corelog_wire::ids::ProducerId::new(11),
            producer_epoch: corelog_wire::ids::ProducerEpoch::new(0),
        }),
        other => panic!("{other:?}"),
    }
}
