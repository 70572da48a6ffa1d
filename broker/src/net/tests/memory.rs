//! What clients can make the broker hold: nothing grows beyond its limit, and who holds too long goes first.

use super::world::{Broker, Client, batch, config, fetch, frame, produce, tp};
use crate::net::{Cause, NetConfig};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::{Kind, Prelude};
use corelog_wire::ids::CorrelationId;
use corelog_wire::message::{Acks, Answer, ListOffsetsRequest, Request};
use std::io::{Read, Write};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Bytes of memory that this process has.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1_024
}

/// A frame of Produce that announces 16 MiB, and its first bytes.
fn announcement(sent: usize) -> Vec<u8> {
    let (request, payload) = produce(Acks::All, &[(tp(0), batch(tp(0), &[0; 1_000]))]);
    let header = request.encode();
    let prelude = Prelude::request(Kind::Produce, CorrelationId::new(1), &header, 16 << 20);
    let mut bytes = [&prelude.encode()[..], &header, &payload].concat();
    bytes.resize(bytes.len() - payload.len() + sent, 0);
    bytes
}

#[test]
fn a_payload_that_is_announced_and_not_sent_costs_its_first_step() {
    let broker = Broker::start(1, config());
    let mut liars: Vec<_> = (0..50).map(|_| broker.client()).collect();
    for liar in &mut liars {
        liar.socket.write_all(&announcement(1)).unwrap();
    }
    broker.until(0, |core| core.net.snapshot().input_bytes.0 == 50 * ((64 << 10) + 512));
    // Who sends half of it pays for at most four times of what came.
    let mut half = broker.client();
    half.socket.write_all(&announcement(1 << 20)).unwrap();
    broker.until(0, |core| (51 * MIB / 16 + MIB..8 * MIB).contains(&core.net.snapshot().input_bytes.0));
    assert_eq!(
        broker.client().produce(&[(tp(0), batch(tp(0), &vec![1; 1_000_000]))])[0].error,
        ErrorCode::None
    );
    drop((liars, half));
    broker.until(0, |core| core.net.snapshot().input_bytes.0 == 0);
}

#[test]
fn who_holds_memory_that_others_need_goes() {
    let limits =
        NetConfig { input_bytes_max: 8 * MIB, pressure_patience: Duration::from_secs(1), ..config() };
    let broker = Broker::start(1, limits);
    let mut holders: Vec<_> = (0..3).map(|_| broker.client()).collect();
    for holder in &mut holders {
        holder.socket.write_all(&announcement(3 << 20)).unwrap();
    }
    // Six healthy requests of 4 MiB each need what the three hold.
    let healthy: Vec<_> = (0..6)
        .map(|_| {
            let mut client = broker.client();
            std::thread::spawn(move || client.produce(&[(tp(0), batch(tp(0), &vec![1; 4 << 20]))])[0].error)
        })
        .collect();
    for client in healthy {
        assert_eq!(client.join().unwrap(), ErrorCode::None);
    }
    let closed = broker.snapshot(0).closed.iter().find(|(cause, _)| *cause == Cause::Pressure).unwrap().1;
    assert!(closed >= 1, "somebody was in the way");
    assert!(broker.snapshot(0).input_bytes.0 <= 8 * MIB + 16 * MIB);
    drop(holders);
    broker.until(0, |core| core.net.snapshot().input_bytes.0 == 0);
}

/// A frame of Produce whose header has 1 MiB, most of it padding.
fn padded(body: &[u8]) -> Vec<u8> {
    let (request, payload) = produce(Acks::All, &[(tp(0), batch(tp(0), body))]);
    let mut header = request.encode();
    header.resize(1 << 20, 0);
    let payload_bytes = u32::try_from(payload.len()).unwrap();
    let prelude = Prelude::request(Kind::Produce, CorrelationId::new(1), &header, payload_bytes);
    [&prelude.encode()[..], &header, &payload].concat()
}

#[test]
fn headers_that_fill_the_pool_do_not_wait_for_each_other_for_ever() {
    let broker = Broker::start(1, NetConfig { input_bytes_max: 8 * MIB, ..config() });
    let frame = padded(b"behind a large header");
    // Six of the eight are for large frames: nobody waits yet, so nobody is in the way.
    let (most, rest) = frame.split_at((1 << 20) + 31);
    let mut clients: Vec<_> = (0..6).map(|_| broker.client()).collect();
    for client in &mut clients {
        client.socket.write_all(most).unwrap();
    }
    broker.until(0, |core| core.net.snapshot().input_bytes.0 == 6 * MIB);
    for client in &mut clients {
        client.socket.write_all(rest).unwrap();
    }
    for client in &mut clients {
        let Answer::Produce(answer) = client.receive().answer else { panic!("not an answer to Produce") };
        assert_eq!(answer.rows[0].error, ErrorCode::None);
    }
    broker.until(0, |core| core.net.snapshot().input_bytes.0 == 0);
}

#[test]
fn who_waits_for_memory_is_missed_when_it_leaves_and_not_kept_for_ever() {
    let limits = NetConfig { input_bytes_max: 8 * MIB, frame_deadline: Duration::from_secs(2), ..config() };
    let broker = Broker::start(1, limits);
    broker.on(0, |core| core.shard.holds.set(true));
    // Two that hold a part and send a little more, which only the kernel takes: in between the pool is filled and
    // overdrawn by requests that nobody answers.
    let (mut leaves, mut stays) = (broker.client(), broker.client());
    let frame = padded(b"never whole");
    for client in [&mut leaves, &mut stays] {
        client.socket.write_all(&frame[..100_000]).unwrap();
    }
    broker.until(0, |core| core.net.snapshot().input_bytes.0 >= 200_000);
    let mut full = [broker.client(), broker.client()];
    for (client, bytes) in full.iter_mut().zip([(11 << 20) / 2, 1 << 20]) {
        let (request, payload) = produce(Acks::All, &[(tp(0), batch(tp(0), &vec![1; bytes]))]);
        client.send(&request, &payload);
    }
    broker.until(0, |core| core.shard.held.borrow().len() == 2);
    for client in [&mut leaves, &mut stays] {
        client.socket.write_all(&frame[100_000..160_000]).unwrap();
    }
    drop(leaves);
    broker.until_closed(0, Cause::Broken, 1);
    broker.until_closed(0, Cause::Pressure, 1);
    stays.assert_closed();
    broker.on(0, |core| core.shard.release());
    for client in &mut full {
        client.receive();
    }
    broker.until(0, |core| core.net.snapshot().input_bytes.0 == 0);
}

#[test]
fn large_frames_that_hold_everything_do_not_keep_out_small_ones() {
    let never = Duration::from_hours(1);
    let patient = NetConfig {
        input_bytes_max: 8 * MIB,
        frame_deadline: never,
        pressure_patience: never,
        pressure_stall_max: never,
        ..config()
    };
    let broker = Broker::start(1, patient);
    let mut holders: Vec<_> = (0..8).map(|_| broker.client()).collect();
    for holder in &mut holders {
        holder.socket.set_nonblocking(true).unwrap();
        let _as_much_as_goes = holder.socket.write(&announcement(3 << 20));
    }
    let mut client = broker.client();
    broker.until(0, |core| core.net.snapshot().input_bytes.0 >= MIB);
    for _ in 0..100 {
        assert_eq!(client.produce(&[(tp(0), batch(tp(0), &[1; 10_000]))])[0].error, ErrorCode::None);
    }
    assert!(broker.snapshot(0).input_bytes.0 <= 8 * MIB + 16 * MIB);
}

#[test]
fn producers_stop_being_read_when_the_shard_does_not_keep_up() {
    let broker = Broker::start(1, NetConfig { input_bytes_max: 8 * MIB, ..config() });
    broker.on(0, |core| core.shard.holds.set(true));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut client = broker.client();
            std::thread::spawn(move || {
                let (request, payload) = produce(Acks::All, &[(tp(0), batch(tp(0), &vec![1; 1 << 20]))]);
                for _ in 0..8 {
                    client.send(&request, &payload);
                }
                (0..8).for_each(|_| drop(client.receive()));
            })
        })
        .collect();
    broker.until(0, |core| core.net.snapshot().input_bytes.0 > 6 * MIB);
    // Others are still answered, and nothing grows: 64 requests wait to be read.
    for _ in 0..100 {
        broker.client().ask(&Request::ListOffsets(ListOffsetsRequest { rows: vec![] }));
        assert!(broker.snapshot(0).input_bytes.0 <= 10 * MIB, "{:?}", broker.snapshot(0).input_bytes);
    }
    broker.on(0, |core| core.shard.release());
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(broker.on(0, |core| core.shard.batches(tp(0))), 64);
}

#[test]
fn a_client_that_does_not_read_holds_little_and_is_closed() {
    let limits = NetConfig { write_stall_max: Duration::from_millis(500), ..config() };
    let broker = Broker::start(1, limits);
    broker.on(0, |core| {
        for _ in 0..64 {
            core.shard.append(tp(0), batch(tp(0), &vec![1; 1 << 20]));
        }
    });
    let mut slow = broker.client();
    let ask = fetch(0, 16 << 20, &[(tp(0), 0)]);
    for _ in 0..100 {
        slow.send(&ask, &[]);
    }
    let mut healthy = broker.client();
    let mut most = 0;
    let closed = |broker: &Broker| broker.snapshot(0).closed.contains(&(Cause::WriteStall, 1));
    while !closed(&broker) {
        let (_, payload) = healthy.fetch(&fetch(0, 1 << 20, &[(tp(0), 3)]));
        assert!(!payload.is_empty());
        most = most.max(broker.snapshot(0).output_bytes.0);
    }
    // Eight batches of a megabyte, larger than the windows in which they were asked for: for both clients.
    assert!(most <= 10 * MIB, "{most} bytes were held");
    drop(slow);
    broker.until(0, |core| core.net.snapshot().output_bytes.0 < 3 * (1 << 20));
    assert!(!healthy.fetch(&fetch(0, 1 << 20, &[(tp(0), 3)])).1.is_empty());
}

#[test]
fn a_client_that_reads_gets_larger_and_larger_answers() {
    let broker = Broker::start(1, config());
    broker.on(0, |core| {
        for _ in 0..64 {
            core.shard.append(tp(0), batch(tp(0), &vec![1; 500_000]));
        }
    });
    let mut client = broker.client();
    let mut largest = 0;
    for _ in 0..20 {
        largest = largest.max(client.fetch(&fetch(0, 16 << 20, &[(tp(0), 0)])).1.len());
    }
    assert!(largest > 3 << 20, "{largest}");
}

#[test]
fn fetches_that_are_woken_at_once_stay_within_the_memory_for_answers() {
    let broker = Broker::start(1, NetConfig { output_bytes_max: MIB, ..config() });
    let mut readers: Vec<_> = (0..64).map(|_| broker.client()).collect();
    for reader in &mut readers {
        reader.send(&fetch(30_000, 16 << 20, &[(tp(0), 0)]), &[]);
    }
    broker.until(0, |core| core.shard.parked() == 64);
    // What waits has reserved nothing: others are answered.
    broker.on(0, |core| core.shard.append(tp(1), batch(tp(1), &[3; 100])));
    assert!(!broker.client().fetch(&fetch(0, 1 << 20, &[(tp(1), 0)])).1.is_empty());
    // Within one turn, so that nothing leaves in between.
    let record = batch(tp(0), &vec![1; 200_000]);
    let shared = record.clone();
    let used = broker.on(0, move |core| {
        core.shard.append(tp(0), shared);
        core.shard.wake();
        core.net.snapshot().output_bytes.0
    });
    assert!(used > 0 && used <= MIB + MIB / 16, "{used} bytes of answers");
    for reader in &mut readers {
        assert!(reader.fetched().1 == record);
    }
    broker.until(0, |core| core.net.snapshot().output_bytes.0 == 0);
}

#[test]
fn a_thousand_idle_connections_cost_little_and_disturb_nobody() {
    let broker = Broker::start(2, config());
    let before = resident_bytes();
    let idle: Vec<_> = (0..1_000).map(|_| broker.client()).collect();
    let connections: u64 = (0..2).map(|shard| broker.snapshot(shard).connections).sum();
    assert_eq!(connections, 1_000);
    let each = resident_bytes().saturating_sub(before) / 1_000;
    assert!(each < 20_000, "{each} bytes per idle connection");
    let mut client = broker.client();
    for _ in 0..100 {
        assert_eq!(client.produce(&[(tp(0), batch(tp(0), b"busy"))])[0].error, ErrorCode::None);
    }
    drop(idle);
    drop(client);
    for shard in 0..2 {
        broker.until(shard, |core| core.net.snapshot().connections == 0);
    }
}

#[test]
fn one_byte_at_a_time_is_still_an_answer() {
    let broker = Broker::start(1, config());
    broker.on(0, |core| core.shard.append(tp(0), batch(tp(0), &[8; 100])));
    let mut client = broker.client();
    client.socket.write_all(&frame(5, &fetch(0, 1_000, &[(tp(0), 0)]), &[])).unwrap();
    let mut all = Vec::new();
    let mut byte = [0];
    while all.len() < 32 || all.len() < whole(&all) {
        client.socket.read_exact(&mut byte).unwrap();
        all.push(byte[0]);
    }
    let header_end = 32 + u32::from_le_bytes(all[8..12].try_into().unwrap()) as usize;
    let Answer::Fetch(answer) = Answer::decode(Kind::Fetch, &all[32..header_end]).unwrap() else {
        panic!("no fetch")
    };
    assert_eq!(answer.rows[0].bytes as usize, all.len() - header_end);
}

fn whole(frame: &[u8]) -> usize {
    let length = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().unwrap()) as usize;
    32 + length(8) + length(12)
}

#[test]
fn answers_that_nobody_takes_hold_up_others_for_a_moment_only() {
    let limits =
        NetConfig { output_bytes_max: 2 * MIB, pressure_patience: Duration::from_millis(100), ..config() };
    let broker = Broker::start(1, limits);
    broker.on(0, |core| {
        for _ in 0..64 {
            core.shard.append(tp(0), batch(tp(0), &vec![1; 1 << 20]));
        }
    });
    let mut slow: Vec<_> = (0..8).map(|_| Client::greeted(broker.address, None).0).collect();
    for client in &mut slow {
        for _ in 0..8 {
            client.send(&fetch(0, 16 << 20, &[(tp(0), 0)]), &[]);
        }
    }
    broker.until(0, |core| core.net.snapshot().output_bytes.0 > MIB);
    let mut healthy = broker.client();
    for _ in 0..5 {
        assert!(!healthy.fetch(&fetch(0, 1 << 20, &[(tp(0), 3)])).1.is_empty());
    }
    let pressed = broker.snapshot(0).closed.iter().find(|(cause, _)| *cause == Cause::Pressure).unwrap().1;
    assert!(pressed >= 1);
}
