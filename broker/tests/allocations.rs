//! What a shard's thread asks of the allocator for a request, counted in a broker that runs inside this program.
//!
//! One test, so that nothing else allocates meanwhile. A record costs none: a thousand of them cost little more than one, for the
//! bytes that are written; and a request that is alone costs only so many.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(unsafe_code, reason = "an allocator is unsafe by its trait; it only counts what it passes on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use corelog_bench::peer::corelog::Connection;
use corelog_broker::node::boot;
use corelog_broker::node::config::{Config, DevOptions, Host};
use corelog_wire::frame::Kind;
use corelog_wire::ids::{Offset, TopicPartition};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{FetchRequest, FetchRow};

#[path = "process/wire.rs"]
#[expect(dead_code, reason = "shared with the tests of processes")]
mod wire;

/// Threads that are counted one by one; later ones are not counted at all.
const THREADS: usize = 256;

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static IDS: [AtomicI32; THREADS] = [const { AtomicI32::new(0) }; THREADS];
static COUNTS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];

thread_local! {
    /// The thread's place in the tables, taken at its first allocation.
    static PLACE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The system's allocator, with a count for each thread.
struct Counting;

fn count() {
    let place = PLACE.try_with(|place| {
        if place.get() == usize::MAX {
            place.set(TAKEN.fetch_add(1, Ordering::Relaxed));
            if let Some(id) = IDS.get(place.get()) {
                id.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
            }
        }
        place.get()
    });
    if let Some(count) = place.ok().and_then(|place| COUNTS.get(place)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on as it came; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations so far of the threads whose name begins with `shard-`.
fn of_shards() -> u64 {
    let name = |id: i32| std::fs::read_to_string(format!("/proc/self/task/{id}/comm")).unwrap_or_default();
    (IDS.iter().zip(&COUNTS))
        .filter(|(id, _)| name(id.load(Ordering::Relaxed)).starts_with("shard-"))
        .map(|(_, count)| count.load(Ordering::Relaxed))
        .sum()
}

/// Allocations of the shards' threads for a call of `ask`: the least of some rounds, since what is done by the clock is counted too,
/// and on a busy machine there is more of it to a call.
fn for_each(mut ask: impl FnMut()) -> f64 {
    let rounds = (0..ROUNDS).map(|_| {
        let before = of_shards();
        (0..REQUESTS).for_each(|_| ask());
        f64::from(u32::try_from(of_shards() - before).unwrap()) / f64::from(REQUESTS)
    });
    rounds.fold(f64::INFINITY, f64::min)
}

/// Requests of a round, of each kind.
const REQUESTS: u32 = 100;
/// Rounds that are counted, after one that is not.
const ROUNDS: u32 = 5;
/// Most allocations of a produce and of a fetch that is alone, with the turns of the runtime and the commit that are for it only.
const ALONE_MAX: [f64; 2] = [50.0, 70.0];
/// Most that a thousand records cost more than one: they are a hundred times the bytes in the journal, and on the way to segments.
const THOUSAND_MAX: f64 = 50.0;
/// Records of the larger ones.
const RECORDS: u32 = 1_000;

#[test]
fn a_record_costs_no_allocation() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = DevOptions {
        data_dir: Some(folder.path().to_owned()),
        port: Some(0),
        admin_port: Some(0),
        shards: Some(1),
    };
    let config = Config::dev(&options, &[], &Host::probe()).unwrap();
    let (ready, when_ready) = mpsc::channel();
    let broker = std::thread::spawn(move || boot::run(&config, false, |up| ready.send(up.address).unwrap()));
    let Ok(address) = when_ready.recv_timeout(Duration::from_mins(1)) else {
        panic!("the broker did not start: {:?}", broker.is_finished().then(|| broker.join()));
    };

    let (mut connection, _) = Connection::open(address).unwrap();
    let topic = connection.create_topic("counted", 2, Vec::new()).unwrap();
    let mut stream = wire::greeted(&address.to_string());
    let single = TopicPartition { topic, partition: 0 };
    let many = TopicPartition { topic, partition: 1 };

    let mut produce = |tp: TopicPartition, records: u32| {
        let frame = wire::produce_frame(tp, &wire::batch_of(tp, records, &[7; 100]));
        let mut ask = || {
            std::io::Write::write_all(&mut stream, &frame).unwrap();
            assert_eq!(wire::produced_row(&mut stream).error, corelog_wire::error::ErrorCode::None);
        };
        (0..REQUESTS).for_each(|_| ask());
        for_each(ask)
    };
    let produce_one = produce(single, 1);
    let produce_many = produce(many, RECORDS);

    let mut fetch = |tp: TopicPartition, records: u32| {
        let mut offset = 0;
        let mut ask = || {
            let row = FetchRow { tp, offset: Offset::new(offset), max_bytes: 1, leader_epoch: None };
            let request = FetchRequest {
                max_wait_ms: 0,
                min_bytes: 1,
                max_bytes: 1,
                rows: vec![row],
                filter: TagFilter::ALL,
            };
            let (_, payload) = connection.ask(Kind::Fetch, &request.encode()).unwrap();
            assert!(!payload.is_empty());
            offset += u64::from(records);
        };
        (0..REQUESTS).for_each(|_| ask());
        for_each(ask)
    };
    let fetch_one = fetch(single, 1);
    let fetch_many = fetch(many, RECORDS);

    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
    broker.join().unwrap().unwrap();
    println!(
        "allocations of a request: produce of 1 record {produce_one}, of {RECORDS} {produce_many}; \
         fetch of 1 {fetch_one}, of {RECORDS} {fetch_many}"
    );
    for ((one, many), alone_max) in
        [(produce_one, produce_many), (fetch_one, fetch_many)].into_iter().zip(ALONE_MAX)
    {
        assert!(many - one < THOUSAND_MAX, "{many} allocations for {RECORDS} records, {one} for one");
        assert!(one > 1.0 && one < alone_max, "{one} allocations for a request of one record");
    }
}
