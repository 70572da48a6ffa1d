//! What the runtime promises, and the traps of glommio 0.9.0 that it has to keep us out of.

use super::runnable::{self, Next};
use super::{
    Gate, Options, Signal, Stable, allowed_cpus, blocking, sleep, spawn, spawn_in, start, yield_now,
};
use glommio::channels::channel_mesh::MeshBuilder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Far longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// Runs `main` on `shards` executors and ends the test if they do not end.
fn run_bounded<F, Task>(options: &Options, shards: usize, main: F)
where
    F: Fn(super::ShardContext) -> Task + Clone + Send + 'static,
    Task: Future<Output = ()> + 'static,
{
    let running = start(options, vec![(); shards], move |context, ()| main(context)).unwrap();
    let (done, ended) = channel();
    std::thread::spawn(move || done.send(running.join().map_err(|error| error.to_string())));
    ended.recv_timeout(PATIENCE).expect("the executors hang").unwrap();
}

#[test]
fn two_cores_that_answer_each_other_do_not_hang() {
    // A short preempt timer and spinning make the lost wake-up frequent: without the pacemaker some of these rounds
    // never end.
    for _ in 0..4 {
        let options = Options {
            preempt_timer: Duration::from_millis(2),
            spin_before_park: Duration::from_micros(100),
            ..Options::default()
        };
        let mesh = MeshBuilder::full(2, 1024);
        run_bounded(&options, 2, move |_| {
            let mesh = mesh.clone();
            async move {
                let (sender, mut receiver) = mesh.join().await.unwrap();
                let (_, receiver) = receiver.streams().pop().unwrap();
                let peer = 1 - sender.peer_id();
                if sender.peer_id() == 1 {
                    while let Some(message) = receiver.recv().await {
                        if message == u64::MAX || sender.send_to(peer, message).await.is_err() {
                            break;
                        }
                    }
                } else {
                    let start = Instant::now();
                    let mut message = 0;
                    while start.elapsed() < Duration::from_secs(1) {
                        sender.send_to(peer, message).await.unwrap();
                        assert_eq!(receiver.recv().await, Some(message));
                        message += 1;
                    }
                    sender.send_to(peer, u64::MAX).await.unwrap();
                    assert!(message > 100, "{message} round trips in a second");
                }
            }
        });
    }
}

#[test]
fn every_executor_answers_beats_and_counts_its_busy_time() {
    let running = start(&Options::default(), vec![(), ()], |_, ()| async {
        sleep(Duration::from_millis(100)).await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            super::yield_if_needed().await;
        }
        sleep(Duration::from_millis(100)).await;
    })
    .unwrap();
    let pulses = running.pulses();
    running.join().unwrap();
    for pulse in pulses {
        assert!(pulse.beats() >= 5, "{} beats", pulse.beats());
        assert!(pulse.busy() >= Duration::from_millis(20), "{:?}", pulse.busy());
    }
}

#[test]
fn the_first_sleep_of_a_serving_executor_is_not_late() {
    // Best of a few: another process may hold the core.
    let (best_tx, best_rx) = channel();
    for _ in 0..5 {
        let best_tx = best_tx.clone();
        run_bounded(&Options::default(), 1, move |_| {
            let best_tx = best_tx.clone();
            async move {
                let start = Instant::now();
                sleep(Duration::from_millis(1)).await;
                best_tx.send(start.elapsed()).unwrap();
            }
        });
    }
    drop(best_tx);
    let best = best_rx.iter().min().unwrap();
    assert!(best < Duration::from_millis(9), "{best:?}");
}

#[test]
fn queues_signals_gates_and_blocking_calls() {
    run_bounded(&Options::default(), 1, |context| async move {
        let (gate, signal, sum) = (Gate::default(), Rc::new(Signal::default()), Rc::new(Cell::new(0)));
        for number in 1..=10 {
            let (pass, sum) = (gate.enter(), Rc::clone(&sum));
            let queue = if number % 2 == 0 { context.cold } else { context.background };
            spawn_in(queue, async move {
                let doubled = blocking(move || number * 2).await;
                sum.set(sum.get() + doubled);
                drop(pass);
            });
        }
        let (gate_too, signal_too) = (gate.clone(), Rc::clone(&signal));
        spawn(async move {
            gate_too.idle().await;
            signal_too.notify();
        });
        signal.wait().await;
        assert_eq!((sum.get(), gate.under_way()), (110, 0));
    });
}

#[test]
fn an_alarm_fires_without_a_signal_and_a_signal_comes_before_it() {
    run_bounded(&Options::default(), 1, |_| async {
        let (alarm, signal) = (super::Alarm::default(), Rc::new(Signal::default()));
        let start = Instant::now();
        assert!(!alarm.wait(&signal, Some(Duration::from_millis(10))).await);
        assert!(start.elapsed() >= Duration::from_millis(10));
        let signal_too = Rc::clone(&signal);
        spawn(async move {
            super::yield_now().await;
            signal_too.notify();
        });
        assert!(alarm.wait(&signal, Some(PATIENCE)).await);
    });
}

#[test]
fn a_silent_executor_is_reported() {
    use super::pacemaker::{Pulse, run};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    static STALLED: AtomicUsize = AtomicUsize::new(usize::MAX);
    let (stop, stopped) = std::sync::mpsc::sync_channel(0);
    let thread = std::thread::spawn(move || {
        run(&[Arc::new(Pulse::default())], &stopped, Duration::from_millis(30), |shard, _| {
            STALLED.store(shard, Ordering::Release);
        });
    });
    let start = Instant::now();
    while STALLED.load(Ordering::Acquire) != 0 {
        assert!(start.elapsed() < PATIENCE, "the watchdog sleeps");
        std::thread::yield_now();
    }
    drop(stop);
    thread.join().unwrap();
}

#[test]
fn the_cpus_of_this_process_are_known() {
    assert!(!allowed_cpus().is_empty());
    assert_eq!(super::preflight(), Ok(()));
}

/// A pair of sockets: one for the ring, one for the test.
fn pair() -> (Rc<OwnedFd>, UnixStream) {
    let (watched, other) = UnixStream::pair().unwrap();
    watched.set_nonblocking(true).unwrap();
    (Rc::new(watched.into()), other)
}

/// What there is to read, at most `room` bytes.
fn read(socket: &OwnedFd, room: usize) -> rustix::io::Result<usize> {
    rustix::io::read(socket, &mut vec![0; room])
}

#[test]
fn a_watched_socket_tells_of_bytes_of_room_and_of_the_end() {
    run_bounded(&Options::default(), 1, |context| async move {
        let (socket, mut other) = pair();
        let watch = context.ring.watch(Rc::clone(&socket)).unwrap();
        // Nothing is known yet: it may be worth a try.
        assert!(watch.is_readable() && watch.is_writable());
        for _ in 0..3 {
            watch.was_emptied();
            assert!(!watch.is_readable());
            let sent = std::thread::spawn(move || {
                other.write_all(b"bytes").unwrap();
                other
            });
            watch.readable().await.unwrap();
            other = sent.join().unwrap();
            assert_eq!(read(&socket, 64), Ok(5));
        }
        let mut filled = 0;
        while let Ok(more) = rustix::io::write(&socket, &[0; 4_096]) {
            filled += more;
        }
        watch.was_filled();
        let drained = std::thread::spawn(move || {
            other.read_exact(&mut vec![0; filled]).unwrap();
            other
        });
        watch.writable().await.unwrap();
        assert!(rustix::io::write(&socket, &[0; 4_096]).is_ok());
        let mut other = drained.join().unwrap();
        // The last bytes and the end may be one event: who has read the bytes must still learn of the end.
        other.write_all(b"last").unwrap();
        drop(other);
        watch.was_emptied();
        watch.readable().await.unwrap();
        assert_eq!(read(&socket, 64), Ok(4));
        watch.was_emptied();
        watch.readable().await.unwrap();
        assert!(matches!(read(&socket, 64), Ok(0) | Err(rustix::io::Errno::CONNRESET)));
    });
}

#[test]
fn a_watch_that_is_dropped_lets_go_of_its_socket() {
    run_bounded(&Options::default(), 1, |context| async move {
        let sockets = 100;
        let mut others = Vec::new();
        for _ in 0..sockets {
            let (socket, other) = pair();
            let watch = context.ring.watch(Rc::clone(&socket)).unwrap();
            watch.was_emptied();
            drop((watch, socket));
            others.push(other);
        }
        for mut other in others {
            // Ends when the ring has closed its side.
            let ended = blocking(move || other.read(&mut [0]).unwrap());
            assert_eq!(ended.await, 0);
        }
    });
}

#[test]
fn more_completions_than_the_ring_has_room_for_are_all_handed_out() {
    run_bounded(&Options::default(), 1, |context| async move {
        // Each of them makes a completion for each of several events before the driver runs.
        let pairs: Vec<_> = (0..2_000).map(|_| pair()).collect();
        let watches: Vec<_> =
            pairs.iter().map(|(socket, _)| context.ring.watch(Rc::clone(socket)).unwrap()).collect();
        for _ in 0..4 {
            for ((socket, other), watch) in pairs.iter().zip(&watches) {
                watch.was_emptied();
                let mut other = other;
                other.write_all(b"a byte and some").unwrap();
                let _ = read(socket, 1);
            }
            for watch in &watches {
                watch.readable().await.unwrap();
            }
        }
    });
}

struct Zeros(Vec<u8>);

// SAFETY: a vector that nobody changes.
#[expect(unsafe_code, reason = "what a test promises the ring")]
unsafe impl Stable for Zeros {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[test]
fn a_write_that_nobody_waits_for_is_made_all_the_same() {
    run_bounded(&Options::default(), 1, |context| async move {
        let (socket, mut other) = pair();
        let write = |byte: u8| context.ring.write(&socket, Rc::new(Zeros(vec![byte; 1_000])), 0);
        assert_eq!(write(1).await.unwrap(), 1_000);
        {
            let given_up = write(2);
            futures_lite::pin!(given_up);
            assert!(futures_lite::future::poll_once(&mut given_up).await.is_none());
        }
        let read = blocking(move || {
            let mut bytes = vec![0; 2_000];
            other.read_exact(&mut bytes).unwrap();
            bytes
        });
        let bytes = read.await;
        assert!(bytes[..1_000].iter().all(|&byte| byte == 1) && bytes[1_000..].iter().all(|&byte| byte == 2));
        let (socket, other) = pair();
        drop(other);
        let broken = context.ring.write(&socket, Rc::new(Zeros(vec![0; 8])), 0).await;
        assert!(broken.is_err());
    });
}

#[test]
fn a_task_counts_from_its_wake_to_its_step_and_never_after_its_end() {
    // Without an executor, whose pacemaker wakes a task of its own.
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let signal = Rc::new(Signal::default());
    let waits = || {
        let signal = Rc::clone(&signal);
        async move { signal.wait().await }
    };
    let mut task = Box::pin(runnable::counted(waits()));
    assert_eq!(runnable::next(), Next::Main, "it has its first step before it");
    assert!(task.as_mut().poll(&mut cx).is_pending());
    assert_eq!(runnable::next(), Next::Nobody);
    signal.notify();
    assert_eq!(runnable::next(), Next::Main);
    assert!(task.as_mut().poll(&mut cx).is_ready());
    assert_eq!(runnable::next(), Next::Nobody);

    let mut aside = Box::pin(runnable::counted_aside(waits()));
    assert_eq!(runnable::next(), Next::Executor, "only the executor takes tasks of other queues");
    assert!(aside.as_mut().poll(&mut cx).is_pending());
    signal.notify();
    assert_eq!(runnable::next(), Next::Executor);
    drop(aside);
    assert_eq!(runnable::next(), Next::Nobody, "a task that went counts no more");

    let mut outside = Box::pin(runnable::outside(std::future::pending::<()>()));
    assert!(outside.as_mut().poll(&mut cx).is_pending());
    assert_eq!(runnable::next(), Next::Executor);
    drop(outside);
    assert_eq!(runnable::next(), Next::Nobody);
}

#[test]
fn a_wake_from_another_thread_ends_the_sleep() {
    run_bounded(&Options::default(), 1, |_| async move {
        let bell = runnable::bell(|| unreachable!("the ring has made it")).unwrap();
        let (asks, asked) = channel::<tokio::sync::oneshot::Sender<()>>();
        let answers = std::thread::spawn(move || asked.into_iter().for_each(|reply| reply.send(()).unwrap()));
        let mut slept = 0;
        while slept < 100 {
            let _beats_before = rustix::io::read(&bell, &mut [0; 8]);
            let (reply, answer) = tokio::sync::oneshot::channel();
            spawn(async move { answer.await.unwrap() });
            let mut reply = Some(reply);
            runnable::sleep_unless_woken(|| {
                asks.send(reply.take().unwrap()).unwrap();
                let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
                let rung = poll(&mut [PollFd::new(&bell, PollFlags::IN)], Some(&patience));
                assert!(rung == Ok(1) || rung == Err(Errno::INTR), "nobody rang: {rung:?}");
                slept += 1;
            });
            // Not if a beat came before.
            if let Some(reply) = reply {
                asks.send(reply).unwrap();
            }
            // The executor looks for what others woke, or nothing would be asleep any more.
            sleep(Duration::from_millis(1)).await;
        }
        drop(asks);
        answers.join().unwrap();
    });
}

#[test]
fn what_a_lone_waker_starts_is_made_whatever_it_waits_for_next() {
    run_bounded(&Options::default(), 1, |context| async move {
        let (socket, mut other) = pair();
        let watch = context.ring.watch(Rc::clone(&socket)).unwrap();
        let (written, mut reader) = pair();
        for round in 0..300 {
            watch.was_emptied();
            other.write_all(b"a").unwrap();
            watch.readable().await.unwrap();
            assert_eq!(read(&socket, 64), Ok(1));
            let write = context.ring.write(&written, Rc::new(Zeros(vec![7; 8])), 0);
            futures_lite::pin!(write);
            let begun = futures_lite::future::poll_once(&mut write).await;
            match round % 3 {
                0 => blocking(|| ()).await,
                1 => yield_now().await,
                _ => {}
            }
            let bytes = match begun {
                Some(bytes) => bytes,
                None => write.await,
            };
            assert_eq!(bytes.unwrap(), 8);
            reader.read_exact(&mut [0; 8]).unwrap();
        }
    });
}
