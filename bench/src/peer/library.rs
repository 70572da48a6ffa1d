//! A peer through its client library, as an application has it: batching, retries and idempotence included.
//!
//! Called by sessions of `corelog` and `kafka` with `--driver client`. A request is a workload's records, taken one by one; it
//! is answered when all of them are acknowledged. Invariant: a producer's records of a partition are taken in the order of
//! their sequences.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::LocalSet;

use super::Run;
use super::sending::{Library, Sending, Sent};
use crate::check::Ledger;
use crate::error::{Doing, Error, Result};
use crate::measure::nanoseconds;
use crate::payload::{MARK_BYTES, Mark, Values};
use crate::pin;
use crate::schedule::Schedule;
use crate::tally::{Outcome, Plan, Tally, Window};
use crate::workload::Load;

/// Drives a workload; gives what happened and what each producer was told.
///
/// # Errors
/// [`Error::System`]; [`Error::Peer`] if the topic cannot be reached.
pub fn drive(
    library: Library,
    run: &Run<'_>,
    topic: &str,
    number: u64,
    plan: &Plan,
    window: &mut dyn Window,
) -> Result<(Outcome, Vec<Ledger>)> {
    let Run { workload, values, .. } = *run;
    if workload.topic.skew > 0.0 {
        return Err(Error::Setup("--driver client has no skew: its producers take turns".to_owned()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "starting a runtime".to_owned())?;
    let local = LocalSet::new();
    local
        .block_on(&runtime, async {
            let mut producers = Vec::new();
            for lane in 0..workload.load.connections() {
                producers.push(Rc::new(producer(library, run, topic, lane).await?));
            }
            let start = Instant::now();
            window.starts(start);
            let world = Rc::new(World {
                run: number,
                start,
                values: values.clone(),
                partitions: workload.topic.partitions,
                tally: RefCell::new(Tally::new(plan)),
                producers,
            });
            match plan.load {
                Load::Closed { in_flight, .. } => {
                    for lane in
                        world.producers.iter().cycle().take(world.producers.len() * in_flight as usize)
                    {
                        tokio::task::spawn_local(closed_loop(Rc::clone(&world), Rc::clone(lane)));
                    }
                }
                Load::Open { rate, arrival, .. } => {
                    let schedule = Schedule::new(rate, arrival, plan.seed);
                    let due = pace(schedule, world.start, plan.warm_up + plan.measured);
                    tokio::task::spawn_local(open_loop(Rc::clone(&world), due));
                }
            }
            world.watch(window).await;
            Ok::<_, Error>(world)
        })
        .map(|world| {
            // What still waits is dropped with its runtime, so that nobody else holds the accounts.
            drop(local);
            world.finish(plan)
        })
}

async fn producer(library: Library, run: &Run<'_>, topic: &str, number: u32) -> Result<Lane> {
    let Run { address, workload, values, .. } = *run;
    let producer = Sending::open(library, address, topic, workload).await?;
    let sender = Sender {
        producer,
        value: Vec::new(),
        partition_next: number % workload.topic.partitions,
        kind: number as usize % values.requests().len(),
    };
    Ok(Lane { number, sender: Mutex::new(sender), ledger: RefCell::new(Ledger::new(1)) })
}

/// One producer of the load.
struct Lane {
    number: u32,
    /// Locked while a request's records are taken, so that no other's come in between. Waiters are served in order.
    sender: Mutex<Sender>,
    ledger: RefCell<Ledger>,
}

struct Sender {
    producer: Sending,
    /// A record's value; its mark is written anew for each.
    value: Vec<u8>,
    partition_next: u32,
    /// Which of the workload's requests is next.
    kind: usize,
}

struct World {
    run: u64,
    start: Instant,
    values: Values,
    partitions: u32,
    tally: RefCell<Tally>,
    producers: Vec<Rc<Lane>>,
}

impl World {
    /// Sends one request and waits for its acknowledgements.
    async fn request(&self, lane: &Lane, intended: Option<Duration>) {
        let sent = self.start.elapsed();
        let intended = intended.unwrap_or(sent);
        self.tally.borrow_mut().sent();
        let (partition, taken, mut refused) = self.take(lane, intended).await;
        for (sequence, sent) in taken {
            match sent.acknowledged().await {
                Ok(offset) => lane.ledger.borrow_mut().acknowledged(partition, sequence, offset),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let answered = self.start.elapsed();
        self.tally.borrow_mut().answered(intended, sent, answered, refused.as_deref());
    }

    async fn take(&self, lane: &Lane, intended: Duration) -> (u32, Vec<(u64, Sent)>, Option<String>) {
        let mut sender = lane.sender.lock().await;
        let Sender { producer, value, partition_next, kind } = &mut *sender;
        let partition = *partition_next;
        *partition_next = (partition + 1) % self.partitions;
        let values = &self.values.requests()[*kind];
        *kind = (*kind + 1) % self.values.requests().len();
        let mut taken = Vec::with_capacity(values.len());
        for template in values {
            let sequence = lane.ledger.borrow_mut().sent(partition);
            let mark = Mark {
                run: self.run,
                producer: lane.number,
                partition,
                sequence,
                intended_ns: nanoseconds(intended),
            };
            value.clear();
            value.extend_from_slice(&mark.encode());
            value.extend_from_slice(&template[MARK_BYTES..]);
            match producer.take(partition, value).await {
                Ok(sent) => taken.push((sequence, sent)),
                Err(error) => return (partition, taken, Some(error)),
            }
        }
        (partition, taken, None)
    }

    /// Notices the window's edges, until every answer is there or the time is over.
    async fn watch(&self, window: &mut dyn Window) {
        loop {
            let now = self.start.elapsed();
            let (settled, wait_until, edge) = {
                let mut tally = self.tally.borrow_mut();
                tally.pass_edges(now, window);
                (tally.is_settled(), tally.wait_until(), tally.next_edge())
            };
            if settled || now > wait_until {
                return;
            }
            // After the window, answers are looked for a hundred times a second.
            let after = now > edge.saturating_sub(Duration::from_millis(1)) || edge == wait_until;
            let pause = if after { Duration::from_millis(10) } else { edge.saturating_sub(now) };
            tokio::time::sleep(pause).await;
        }
    }

    fn finish(&self, plan: &Plan) -> (Outcome, Vec<Ledger>) {
        let tally = self.tally.replace(Tally::new(plan));
        let ledgers = self.producers.iter().map(|lane| lane.ledger.take());
        (tally.finish(), ledgers.collect())
    }
}

async fn closed_loop(world: Rc<World>, lane: Rc<Lane>) {
    let send_until = world.tally.borrow().send_until();
    while world.start.elapsed() < send_until {
        world.request(&lane, None).await;
    }
}

async fn open_loop(world: Rc<World>, mut due: UnboundedReceiver<Duration>) {
    let mut lanes = world.producers.iter().cycle();
    while let (Some(intended), Some(lane)) = (due.recv().await, lanes.next()) {
        let (world, lane) = (Rc::clone(&world), Rc::clone(lane));
        tokio::task::spawn_local(async move { world.request(&lane, Some(intended)).await });
    }
}

/// Says when requests are due, from a thread of its own: the runtime's timer counts in milliseconds.
fn pace(schedule: Schedule, start: Instant, send_until: Duration) -> UnboundedReceiver<Duration> {
    let (say, due) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        // A blunt timer only makes the send delay longer, which is measured.
        drop(pin::sharp_timers());
        for intended in schedule.take_while(|&intended| intended < send_until) {
            let ahead = intended.saturating_sub(start.elapsed());
            if !ahead.is_zero() {
                std::thread::sleep(ahead);
            }
            if say.send(intended).is_err() {
                return;
            }
        }
    });
    due
}
