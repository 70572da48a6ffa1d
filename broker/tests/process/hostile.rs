//! Hostile clients beside a healthy one: the broker neither ends nor grows, says what is wrong where it can, and serves on.
//!
//! The healthy client's latency before and during is printed; it is a figure to look at, not a condition of a test.
//! `CORELOG_IDLE_CONNECTIONS` sets how many connections stay idle.

use crate::dev::{get, until};
use crate::support::{Broker, Random, data_folder, setting};
use corelog_client::{Client, NewTopic, Record};
use corelog_wire::batch::{BatchFields, HEADER_BYTES};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::{Caps, Kind, Prelude};
use corelog_wire::ids::{CorrelationId, Offset, TopicId, TopicPartition};
use corelog_wire::message::{
    Acks, Answer, FetchRequest, FetchRow, HelloRequest, MetadataRequest, ProduceRequest, ProduceRow, Request,
};
use corelog_wire::records::RecordsBuilder;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const TOPIC: &str = "healthy";
/// What is read from the broker is not distrusted here.
const ANY_SIZE: Caps = Caps { header_bytes_max: u32::MAX, payload_bytes_max: u32::MAX };

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn frame(request: &Request, correlation: u64, payload: &[u8]) -> Vec<u8> {
    let header = request.encode();
    let prelude = Prelude::request(
        request.kind(),
        CorrelationId::new(correlation),
        &header,
        payload.len().try_into().unwrap(),
    );
    [&prelude.encode()[..], &header, payload].concat()
}

fn hello() -> Vec<u8> {
    let request = Request::Hello(HelloRequest {
        client_name: "hostile".to_owned(),
        client_version: "1".to_owned(),
        version_min: 1,
        version_max: 1,
        features: 0,
        shard: None,
    });
    frame(&request, 1, &[])
}

fn greeted(address: &str) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(&hello()).unwrap();
    assert!(matches!(answer(&mut stream), Some(Answer::Hello(_))));
    stream
}

/// The next answer; none if the broker closed the connection.
fn answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut prelude = [0; 32];
    match stream.read_exact(&mut prelude) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            return None;
        }
        Err(error) => panic!("no answer and no end within {PATIENCE:?}: {error}"),
    }
    let prelude = Prelude::decode(&prelude, &ANY_SIZE).unwrap();
    let mut header = vec![0; prelude.header_bytes as usize];
    stream.read_exact(&mut header).unwrap();
    let mut payload = vec![0; prelude.payload_bytes as usize];
    stream.read_exact(&mut payload).unwrap();
    Some(Answer::decode(prelude.known_kind().unwrap_or(Kind::Fetch), &header).unwrap())
}

fn refusal(stream: &mut TcpStream) -> Option<ErrorCode> {
    match answer(stream)? {
        Answer::Refused { refusal, .. } => Some(refusal.code),
        other => panic!("not refused: {other:?}"),
    }
}

fn produce_frame(tp: TopicPartition, batch: &[u8]) -> Vec<u8> {
    let rows = vec![ProduceRow { tp, first_byte: 0, bytes: batch.len().try_into().unwrap() }];
    frame(&Request::Produce(ProduceRequest { acks: Acks::All, deadline_ms: 5_000, rows }), 7, batch)
}

fn produced(stream: &mut TcpStream) -> ErrorCode {
    match answer(stream) {
        Some(Answer::Produce(answer)) => answer.rows[0].error,
        other => panic!("not an answer to a produce: {other:?}"),
    }
}

fn batch(tp: TopicPartition, value: &[u8]) -> Vec<u8> {
    let mut records = RecordsBuilder::with_capacity(value.len());
    records.push(0, 0, None, Some(value), &[]).unwrap();
    records.into_batch(&BatchFields::plain(1, 0), tp).to_vec()
}

#[test]
fn a_hostile_client_costs_only_itself() {
    let folder = data_folder();
    let broker = Broker::dev(folder.path(), 0, 1);
    let address = broker.address.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (client, tp) = runtime.block_on(async {
        let client = Client::connect(&address).await.unwrap();
        let id = client.admin().create_topic(TOPIC, NewTopic::partitions(1)).await.unwrap();
        (client, TopicPartition::new(id, 0))
    });
    let quiet = runtime.block_on(latencies(&client));
    let before = broker.resident_kib();

    garbage_ends_the_connection(&address);
    half_frames_are_waited_for_without_memory(&broker);
    what_can_be_answered_is_answered(&address, tp);
    let readers = slow_readers(&address, tp);
    let idle: Vec<TcpStream> = (0..setting("CORELOG_IDLE_CONNECTIONS", 2_000))
        .map(|_| TcpStream::connect(&address).unwrap())
        .collect();

    let beside = runtime.block_on(latencies(&client));
    let after = broker.resident_kib();
    println!("healthy client, 99 of 100 within: alone {quiet:?}, beside the hostile ones {beside:?}");
    println!("resident: {before} KiB alone, {after} KiB with {} idle connections", idle.len());
    // The dev broker's budget for requests, answers and caches is 512 MiB; what is held here is far less.
    assert!(after < before + 250_000, "grew from {before} to {after} KiB");
    drop((readers, idle));
    assert_eq!(broker.interrupt(), Some(0));
}

/// Latency that 99 of 100 single acknowledged records stay within.
async fn latencies(client: &Client) -> Duration {
    let producer = client.producer(TOPIC).build().unwrap();
    let mut taken = Vec::new();
    for _ in 0..300 {
        let began = Instant::now();
        producer.send(Record::new("healthy")).await.unwrap();
        taken.push(began.elapsed());
    }
    producer.close().await.unwrap();
    taken.sort();
    taken[taken.len() * 99 / 100]
}

fn garbage_ends_the_connection(address: &str) {
    let mut random = Random(3);
    for length in [1, 31, 32, 33, 1_000, 70_000] {
        let mut stream = connect(address);
        let bytes: Vec<u8> = (0..length).map(|_| random.next().to_le_bytes()[0]).collect();
        // The broker may close while this is still being written.
        drop(stream.write_all(&bytes));
        drop(stream.shutdown(std::net::Shutdown::Write));
        assert_eq!(answer(&mut stream), None, "{length} bytes of garbage");
    }
    // A sound prelude that claims a gibibyte, before and after Hello.
    for mut stream in [connect(address), greeted(address)] {
        let request = Request::Produce(ProduceRequest { acks: Acks::All, deadline_ms: 1, rows: Vec::new() });
        let prelude = Prelude::request(Kind::Produce, CorrelationId::new(9), &request.encode(), 1 << 30);
        stream.write_all(&prelude.encode()).unwrap();
        assert!(matches!(refusal(&mut stream), None | Some(ErrorCode::TooLarge | ErrorCode::Malformed)));
        drop(stream.shutdown(std::net::Shutdown::Write));
        assert_eq!(answer(&mut stream), None, "the connection ends");
    }
}

fn half_frames_are_waited_for_without_memory(broker: &Broker) {
    let before = broker.resident_kib();
    let request = Request::Produce(ProduceRequest { acks: Acks::All, deadline_ms: 1, rows: Vec::new() });
    let header = request.encode();
    let prelude = Prelude::request(Kind::Produce, CorrelationId::new(9), &header, 16 << 20);
    let held: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = greeted(&broker.address);
            stream.write_all(&[&prelude.encode()[..], &header, &[0; 1_000]].concat()).unwrap();
            stream
        })
        .collect();
    // 200 claims of 16 MiB are 3 GiB.
    let after = broker.resident_kib();
    assert!(after < before + 100_000, "{} half frames: {before} to {after} KiB", held.len());
}

fn what_can_be_answered_is_answered(address: &str, tp: TopicPartition) {
    let mut stream = greeted(address);
    let prelude = Prelude { kind: 999, ..Prelude::request(Kind::Fetch, CorrelationId::new(5), &[], 0) };
    stream.write_all(&prelude.encode()).unwrap();
    assert_eq!(refusal(&mut stream), Some(ErrorCode::UnsupportedKind));

    let mut stream = greeted(address);
    let mut bad_header = frame(
        &Request::Fetch(FetchRequest { max_wait_ms: 0, min_bytes: 0, max_bytes: 1, rows: Vec::new() }),
        6,
        &[],
    );
    let last = bad_header.len() - 1;
    bad_header[last] ^= 0xFF;
    stream.write_all(&bad_header).unwrap();
    assert_eq!(refusal(&mut stream), Some(ErrorCode::Malformed));

    let mut stream = greeted(address);
    let good = batch(tp, b"value");
    for at in [30, 45, 90, HEADER_BYTES + 2] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        stream.write_all(&produce_frame(tp, &bad)).unwrap();
        assert_eq!(produced(&mut stream), ErrorCode::CorruptBatch, "a flipped bit in byte {at}");
    }
    let elsewhere = TopicPartition::new(TopicId::from_bytes([9; 16]), 0);
    stream.write_all(&produce_frame(elsewhere, &batch(elsewhere, b"value"))).unwrap();
    assert_eq!(produced(&mut stream), ErrorCode::UnknownTopic);
    // Right bytes, sealed for another topic.
    stream.write_all(&produce_frame(tp, &batch(elsewhere, b"value"))).unwrap();
    assert_eq!(produced(&mut stream), ErrorCode::CorruptBatch);
    let missing = TopicPartition::new(tp.topic, 55);
    stream.write_all(&produce_frame(missing, &batch(missing, b"value"))).unwrap();
    assert_eq!(produced(&mut stream), ErrorCode::UnknownPartition);
    // The same connection still serves.
    stream.write_all(&produce_frame(tp, &good)).unwrap();
    assert_eq!(produced(&mut stream), ErrorCode::None);
}

/// Readers that ask for a gibibyte again and again and take a byte now and then.
fn slow_readers(address: &str, tp: TopicPartition) -> Vec<TcpStream> {
    let mut filler = greeted(address);
    for _ in 0..16 {
        filler.write_all(&produce_frame(tp, &batch(tp, &vec![7; 3 << 20]))).unwrap();
        assert_eq!(produced(&mut filler), ErrorCode::None);
    }
    let row = FetchRow { tp, offset: Offset::ZERO, max_bytes: 1 << 30, leader_epoch: None };
    let request = FetchRequest { max_wait_ms: 0, min_bytes: 1, max_bytes: 1 << 30, rows: vec![row] };
    (0..50_u64)
        .map(|_| {
            let mut stream = greeted(address);
            for correlation in 10..20 {
                // It may be told to wait by a window that is closed.
                stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
                drop(stream.write_all(&frame(&Request::Fetch(request.clone()), correlation, &[])));
            }
            let mut byte = [0];
            drop(stream.read(&mut byte));
            stream
        })
        .collect()
}

#[test]
fn a_second_interrupt_ends_a_broker_that_takes_long_to_stop() {
    let folder = data_folder();
    let broker = Broker::dev(folder.path(), 0, 1);
    let mut stream = greeted(&broker.address);
    let metadata = MetadataRequest { topics: Some(vec![TOPIC.to_owned()]), auto_create: true };
    stream.write_all(&frame(&Request::Metadata(metadata), 2, &[])).unwrap();
    let Some(Answer::Metadata(metadata)) = answer(&mut stream) else { panic!("no metadata") };
    let tp = TopicPartition::new(metadata.topics[0].id, 0);
    // Whoever waits for a record keeps a stop waiting, for some seconds.
    let row = FetchRow { tp, offset: Offset::ZERO, max_bytes: 1 << 20, leader_epoch: None };
    let fetch = FetchRequest { max_wait_ms: 30_000, min_bytes: 1, max_bytes: 1 << 20, rows: vec![row] };
    stream.write_all(&frame(&Request::Fetch(fetch), 3, &[])).unwrap();
    until("parked", || get(&broker.admin, "/metrics").contains("corelog_fetches_parked{shard=\"0\"} 1"));
    broker.signal();
    until("stopping", || get(&broker.admin, "/readyz").contains("stopping"));
    assert_eq!(broker.interrupt(), Some(130));
}
