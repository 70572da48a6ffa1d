//! The load generator: one thread, one epoll, many connections, no runtime between the clock and the socket.
//!
//! Called by `run` with connections whose protocols are behind [`Protocol`]. Invariants: in open loop the intended times
//! come from the schedule alone, a late request is sent at once and none is skipped; a request's intended, sent and
//! answered times are all taken here; what was sent during warm-up is sent, answered and checked, but not measured.
//! This file refuses to know what a request holds.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::error::{Doing, Error, Result};
use crate::schedule::Schedule;
use crate::tally::{Outcome, Plan, Tally, Window};
use crate::workload::Load;

/// One request on its way out. Buffers are reused.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// What describes it.
    pub head: Vec<u8>,
    /// What is described.
    pub payload: BytesMut,
    written: usize,
}

/// One answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    /// Counts the connection's requests, from 0.
    pub request: u64,
    /// Why it was refused, if it was.
    pub refused: Option<String>,
}

/// One connection's side of a peer's protocol.
pub trait Protocol {
    /// Makes the next request of buffers that are empty or that this connection filled before. Requests are numbered
    /// from 0 in the order of the calls.
    fn request(&mut self, intended: Duration, out: &mut Outgoing);

    /// Reads the whole answers at the beginning of `input`; gives how many bytes they are.
    ///
    /// # Errors
    /// [`Error::Peer`] if these bytes are not the protocol's.
    fn answers(&mut self, input: &[u8], answered: &mut Vec<Answered>) -> Result<usize>;
}

/// Drives the load and waits for the last answers; gives the protocols back, with what they learnt. The streams must have
/// said all that comes before the load.
///
/// # Errors
/// [`Error::System`]; [`Error::Gone`] if a connection ends, unless the plan allows it; [`Error::Peer`] if one speaks another
/// protocol. Refusals are no errors.
pub fn drive<P: Protocol>(
    connections: Vec<(TcpStream, P)>,
    plan: &Plan,
    window: &mut dyn Window,
) -> Result<(Outcome, Vec<P>)> {
    let mut engine = Engine::new(connections, plan)?;
    match engine.run(window) {
        Err(Error::Gone(_)) if plan.may_go => {}
        other => other?,
    }
    Ok(engine.outcome())
}

/// How long before an intended time the generator stops sleeping and looks at the clock.
const SPIN: Duration = Duration::from_micros(50);
/// The timer's event.
const TIMER: u64 = u64::MAX;
/// Slices of one write.
const SLICES_MAX: usize = 32;
/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;
/// Bytes of requests that are made before sockets take them.
const QUEUED_BYTES_MAX: usize = 512 << 20;

struct Waiting {
    intended: Duration,
    sent: Duration,
    answered: bool,
}

struct Lane<P> {
    stream: TcpStream,
    protocol: P,
    /// Sent and unanswered, in order of their numbers; those answered out of order stay until they are the first.
    in_flight: VecDeque<Waiting>,
    /// Number of the first in flight.
    first: u64,
    outgoing: VecDeque<Outgoing>,
    spare: Vec<Outgoing>,
    partial: Vec<u8>,
    /// Whether the socket is full and epoll watches for room.
    blocked: bool,
}

struct Engine<'p, P> {
    plan: &'p Plan,
    lanes: Vec<Lane<P>>,
    epoll: OwnedFd,
    timer: OwnedFd,
    start: Instant,
    schedule: Option<Schedule>,
    due: Option<Duration>,
    lane_next: usize,
    tally: Tally,
    /// What the timer is set for.
    armed: Option<Duration>,
    /// Bytes of requests that were made and not yet written.
    queued_bytes: usize,
    input: Vec<u8>,
    scratch: Vec<Answered>,
}

impl<'p, P: Protocol> Engine<'p, P> {
    fn new(connections: Vec<(TcpStream, P)>, plan: &'p Plan) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).doing(|| "making an epoll".to_owned())?;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )
        .doing(|| "making a timer".to_owned())?;
        // Edge-triggered, so that the timer need not be read.
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)
            .doing(|| "watching the timer".to_owned())?;
        let mut lanes = Vec::with_capacity(connections.len());
        for (number, (stream, protocol)) in (0..).zip(connections) {
            stream.set_nodelay(true).doing(|| "setting TCP_NODELAY".to_owned())?;
            stream.set_nonblocking(true).doing(|| "making a socket non-blocking".to_owned())?;
            epoll::add(&epoll, &stream, EventData::new_u64(number), EventFlags::IN)
                .doing(|| "watching a socket".to_owned())?;
            lanes.push(Lane {
                stream,
                protocol,
                in_flight: VecDeque::new(),
                first: 0,
                outgoing: VecDeque::new(),
                spare: Vec::new(),
                partial: Vec::new(),
                blocked: false,
            });
        }
        let mut schedule = match plan.load {
            Load::Open { rate, arrival, .. } => Some(Schedule::new(rate, arrival, plan.seed)),
            Load::Closed { .. } => None,
        };
        let due = schedule.as_mut().and_then(Iterator::next);
        Ok(Self {
            plan,
            lanes,
            epoll,
            timer,
            start: Instant::now(),
            schedule,
            due,
            lane_next: 0,
            tally: Tally::new(plan),
            armed: None,
            queued_bytes: 0,
            input: vec![0; READ_BYTES],
            scratch: Vec::new(),
        })
    }

    fn run(&mut self, window: &mut dyn Window) -> Result<()> {
        let mut events = Vec::with_capacity(self.lanes.len() + 1);
        self.start = Instant::now();
        window.starts(self.start);
        if let Load::Closed { in_flight, .. } = self.plan.load {
            for _ in 0..in_flight {
                for lane in 0..self.lanes.len() {
                    self.issue(lane, None);
                }
            }
            for lane in 0..self.lanes.len() {
                self.write(lane)?;
            }
        }
        let send_until = self.tally.send_until();
        loop {
            let now = self.start.elapsed();
            self.tally.pass_edges(now, window);
            self.issue_due(now, send_until)?;
            if self.tally.is_settled() || now > self.tally.wait_until() {
                return Ok(());
            }
            self.wait(now, &mut events)?;
            for event in &events {
                let epoll::Event { flags, data, .. } = *event;
                if data.u64() == TIMER {
                    self.armed = None;
                    continue;
                }
                let Ok(lane) = usize::try_from(data.u64()) else { continue };
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.read(lane, send_until)?;
                }
                self.write(lane)?;
            }
        }
    }

    /// Open loop: sends all that is due, the late ones at once.
    fn issue_due(&mut self, now: Duration, send_until: Duration) -> Result<()> {
        let mut touched = 0;
        while let Some(due) = self.due {
            if due >= send_until {
                self.due = None;
                break;
            }
            // Requests that no socket takes wait unmade: they are as late, and need no memory.
            if due > now || self.queued_bytes > QUEUED_BYTES_MAX {
                break;
            }
            let lane = self.lane_next;
            self.lane_next = (lane + 1) % self.lanes.len();
            self.issue(lane, Some(due));
            self.due = self.schedule.as_mut().and_then(Iterator::next);
            touched = (touched + 1).min(self.lanes.len());
            if touched == self.lanes.len() {
                // So that the first of many late ones does not wait for the last one's encoding.
                break;
            }
        }
        for back in 1..=touched {
            let lane = (self.lane_next + self.lanes.len() - back) % self.lanes.len();
            self.write(lane)?;
        }
        Ok(())
    }

    /// Makes a request and queues its bytes; its time of sending is now, before they are made.
    fn issue(&mut self, lane: usize, intended: Option<Duration>) {
        let sent = self.start.elapsed();
        let lane = &mut self.lanes[lane];
        let intended = intended.unwrap_or(sent);
        let mut out = lane.spare.pop().unwrap_or_default();
        out.written = 0;
        lane.protocol.request(intended, &mut out);
        self.queued_bytes += out.head.len() + out.payload.len();
        lane.outgoing.push_back(out);
        lane.in_flight.push_back(Waiting { intended, sent, answered: false });
        self.tally.sent();
    }

    /// Sleeps until something can be done.
    fn wait(&mut self, now: Duration, events: &mut Vec<epoll::Event>) -> Result<()> {
        let edge = self.tally.next_edge();
        let next = self.due.map_or(edge, |due| due.min(edge));
        let ahead = next.saturating_sub(now);
        let spinning = ahead <= SPIN;
        if !spinning && self.armed != Some(next) {
            let value = timespec(ahead.saturating_sub(SPIN));
            let spec = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: value };
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)
                .doing(|| "setting the timer".to_owned())?;
            self.armed = Some(next);
        }
        let none = timespec(Duration::ZERO);
        events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), spinning.then_some(&none)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).doing(|| "waiting for sockets".to_owned()),
        }
    }

    /// Takes what a socket has, and in a closed loop sends a request for each answer.
    fn read(&mut self, number: usize, send_until: Duration) -> Result<()> {
        loop {
            let lane = &mut self.lanes[number];
            let bytes = match lane.stream.read(&mut self.input) {
                Ok(0) => return Err(Error::Gone(number)),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if is_gone(&error) => return Err(Error::Gone(number)),
                Err(source) => return Err(source).doing(|| format!("reading from connection {number}")),
            };
            let answered = self.start.elapsed();
            self.scratch.clear();
            if lane.partial.is_empty() {
                let taken = lane.protocol.answers(&self.input[..bytes], &mut self.scratch)?;
                lane.partial.extend_from_slice(&self.input[taken..bytes]);
            } else {
                lane.partial.extend_from_slice(&self.input[..bytes]);
                let taken = lane.protocol.answers(&lane.partial, &mut self.scratch)?;
                lane.partial.drain(..taken);
            }
            let answers = std::mem::take(&mut self.scratch);
            for answer in &answers {
                self.settle(number, answer, answered)?;
                let closed = matches!(self.plan.load, Load::Closed { .. });
                if closed && answered < send_until {
                    self.issue(number, None);
                }
            }
            self.scratch = answers;
            if bytes < READ_BYTES {
                return Ok(());
            }
        }
    }

    /// Accounts for one answer.
    fn settle(&mut self, number: usize, answer: &Answered, answered: Duration) -> Result<()> {
        let lane = &mut self.lanes[number];
        let waiting = answer
            .request
            .checked_sub(lane.first)
            .and_then(|place| usize::try_from(place).ok())
            .and_then(|place| lane.in_flight.get_mut(place))
            .filter(|waiting| !waiting.answered);
        let Some(waiting) = waiting else {
            return Err(Error::Peer(format!(
                "an answer to request {}, which waits for none",
                answer.request
            )));
        };
        waiting.answered = true;
        let (intended, sent) = (waiting.intended, waiting.sent);
        while lane.in_flight.front().is_some_and(|first| first.answered) {
            lane.in_flight.pop_front();
            lane.first += 1;
        }
        self.tally.answered(intended, sent, answered, answer.refused.as_deref());
        Ok(())
    }

    /// Writes what a lane has, as far as the socket takes it.
    fn write(&mut self, number: usize) -> Result<()> {
        let lane = &mut self.lanes[number];
        while !lane.outgoing.is_empty() {
            let wrote = write_some(&mut lane.stream, &lane.outgoing);
            match wrote {
                Ok(bytes) => {
                    let mut bytes = bytes;
                    while let Some(first) = lane.outgoing.front_mut() {
                        let left = first.head.len() + first.payload.len() - first.written;
                        if bytes < left {
                            first.written += bytes;
                            break;
                        }
                        bytes -= left;
                        self.queued_bytes -= first.head.len() + first.payload.len();
                        lane.spare.extend(lane.outgoing.pop_front());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_gone(&error) => return Err(Error::Gone(number)),
                Err(source) => return Err(source).doing(|| format!("writing to connection {number}")),
            }
        }
        let blocked = !lane.outgoing.is_empty();
        if blocked != lane.blocked {
            lane.blocked = blocked;
            let flags = if blocked { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.epoll, &lane.stream, EventData::new_u64(number as u64), flags)
                .doing(|| "watching a socket".to_owned())?;
        }
        Ok(())
    }

    fn outcome(self) -> (Outcome, Vec<P>) {
        let outcome = self.tally.finish();
        (outcome, self.lanes.into_iter().map(|lane| lane.protocol).collect())
    }
}

/// Whether the other side ended the connection.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}

/// One vectored write of as many requests as fit.
fn write_some(stream: &mut TcpStream, outgoing: &VecDeque<Outgoing>) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let mut used = 0;
    for out in outgoing.iter().take(SLICES_MAX / 2) {
        let head = out.head.get(out.written..).unwrap_or_default();
        let payload = &out.payload[out.written.saturating_sub(out.head.len()).min(out.payload.len())..];
        for piece in [head, payload] {
            if !piece.is_empty() {
                slices[used] = IoSlice::new(piece);
                used += 1;
            }
        }
    }
    stream.write_vectored(&slices[..used])
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread::JoinHandle;

    use super::*;
    use crate::measure::Percentile;
    use crate::schedule::Arrival;

    /// Requests are 8 bytes, their number; an answer repeats them.
    #[derive(Default)]
    struct Numbers {
        next: u64,
        intended: Vec<Duration>,
    }

    impl Protocol for Numbers {
        fn request(&mut self, intended: Duration, out: &mut Outgoing) {
            out.head.clear();
            out.head.extend_from_slice(&self.next.to_le_bytes());
            self.next += 1;
            self.intended.push(intended);
        }

        fn answers(&mut self, input: &[u8], answered: &mut Vec<Answered>) -> Result<usize> {
            let (numbers, _) = input.as_chunks::<8>();
            for number in numbers {
                answered.push(Answered { request: u64::from_le_bytes(*number), refused: None });
            }
            Ok(numbers.len() * 8)
        }
    }

    struct NoWindow;

    impl Window for NoWindow {
        fn starts(&mut self, _: Instant) {}
        fn begins(&mut self) {}
        fn ends(&mut self) {}
    }

    /// A peer of one connection that answers in the order in which `order` puts what it read, after a stall.
    fn peer(stall: Option<(Duration, Duration)>, order: fn(&mut [[u8; 8]])) -> (TcpStream, JoinHandle<u64>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        let peer = std::thread::spawn(move || {
            let began = Instant::now();
            let mut stall = stall;
            let mut requests = 0;
            let mut buffer = vec![0; 1 << 16];
            let mut kept = Vec::new();
            loop {
                let bytes = other.read(&mut buffer).unwrap();
                if bytes == 0 {
                    return requests;
                }
                if let Some((at, length)) = stall
                    && began.elapsed() >= at
                {
                    // The fault under test, not a way to wait for something.
                    std::thread::sleep(length);
                    stall = None;
                }
                kept.extend_from_slice(&buffer[..bytes]);
                let (whole, rest) = kept.as_chunks_mut::<8>();
                let rest = rest.to_vec();
                order(whole);
                requests += whole.len() as u64;
                other.write_all(whole.as_flattened()).unwrap();
                kept = rest;
            }
        });
        (stream, peer)
    }

    fn plan(load: Load, measured_ms: u64) -> Plan {
        Plan {
            load,
            seed: 3,
            warm_up: Duration::from_millis(100),
            measured: Duration::from_millis(measured_ms),
            drain: Duration::from_secs(5),
            may_go: false,
        }
    }

    fn open(rate: f64) -> Load {
        Load::Open { connections: 1, rate, arrival: Arrival::Poisson, acks: crate::workload::Acks::All }
    }

    #[test]
    fn an_open_loop_sends_what_the_schedule_says_and_nothing_else() {
        let (stream, peer) = peer(None, |_| {});
        let plan = plan(open(2000.0), 500);
        let (outcome, numbers) = drive(vec![(stream, Numbers::default())], &plan, &mut NoWindow).unwrap();
        let until = plan.warm_up + plan.measured;
        let wanted: Vec<Duration> =
            Schedule::new(2000.0, Arrival::Poisson, 3).take_while(|&at| at < until).collect();
        assert_eq!(numbers[0].intended, wanted);
        assert_eq!((outcome.sent, outcome.unanswered, outcome.refused), (wanted.len() as u64, 0, 0));
        let measured = wanted.iter().filter(|&&at| at >= plan.warm_up).count() as u64;
        assert_eq!(outcome.latencies.response.len(), measured);
        drop(numbers);
        assert_eq!(peer.join().unwrap(), outcome.sent);
    }

    #[test]
    fn a_stall_of_the_peer_shows_in_every_response_that_was_due_meanwhile() {
        let stall = Duration::from_millis(200);
        let (stream, peer) = peer(Some((Duration::from_millis(200), stall)), |_| {});
        let plan = plan(open(2000.0), 600);
        let (outcome, _) = drive(vec![(stream, Numbers::default())], &plan, &mut NoWindow).unwrap();
        peer.join().unwrap();
        assert!(outcome.latencies.response.max() > 150_000_000, "{}", outcome.latencies.response.max());
        // A third of the window's requests were due in the stall: a closed loop would show one slow request.
        let slow = outcome.latencies.response.count_between(20_000_000, u64::MAX);
        assert!(
            slow * 5 > outcome.latencies.response.len(),
            "{slow} of {}",
            outcome.latencies.response.len()
        );
        assert!(Percentile::P50.of(&outcome.latencies.response).is_some());
    }

    #[test]
    fn a_closed_loop_keeps_its_number_in_flight_and_takes_answers_in_any_order() {
        let (stream, peer) = peer(None, <[[u8; 8]]>::reverse);
        let load = Load::Closed { connections: 1, in_flight: 7, acks: crate::workload::Acks::All };
        let plan = plan(load, 300);
        let (outcome, numbers) = drive(vec![(stream, Numbers::default())], &plan, &mut NoWindow).unwrap();
        assert_eq!(outcome.unanswered, 0);
        assert!(outcome.answered > 100 && outcome.sent > outcome.answered);
        assert!(outcome.backlog.0 <= 7 && outcome.backlog.1 <= 7);
        assert_eq!(numbers[0].next, outcome.sent);
        drop(numbers);
        peer.join().unwrap();
    }

    #[test]
    fn a_peer_that_goes_away_is_an_error() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(listener.accept().unwrap());
        let plan = plan(open(100.0), 200);
        let gone =
            drive(vec![(stream, Numbers::default())], &plan, &mut NoWindow).map(|(outcome, _)| outcome);
        assert!(matches!(gone, Err(Error::Gone(0))), "{gone:?}");
    }

    #[test]
    fn a_peer_that_may_go_ends_the_load_with_what_it_left_unanswered() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        let peer = std::thread::spawn(move || {
            let mut request = [0; 8];
            other.read_exact(&mut request).unwrap();
            other.write_all(&request).unwrap();
            other.read_exact(&mut request).unwrap();
        });
        let load = Load::Closed { connections: 1, in_flight: 1, acks: crate::workload::Acks::All };
        let plan = Plan { may_go: true, ..plan(load, 60_000) };
        let (outcome, _) = drive(vec![(stream, Numbers::default())], &plan, &mut NoWindow).unwrap();
        peer.join().unwrap();
        assert_eq!((outcome.sent, outcome.unanswered), (2, 1));
    }
}
