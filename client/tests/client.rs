//! The whole client on tokio against a broker in memory that speaks the real bytes; time is virtual.

#![cfg(test)]

mod support;

use std::time::Duration;

use corelog_client::{
    Acks, Compression, Error, ErrorCode, ErrorKind, NewTopic, Partitioner, Producer, Record, RecordRef, Start,
};
use corelog_wire::message::Refusal;
use support::{Broker, Fault};

/// Everything of a partition, from its start.
async fn read_all(broker: &Broker, topic: &str, partition: u32, records: usize) -> Vec<(u64, String)> {
    let client = broker.client().await;
    let reader = client.reader(topic, partition).from(Start::Earliest).build().unwrap();
    let mut all = Vec::new();
    while all.len() < records {
        let batch = reader.next().await.unwrap().unwrap();
        let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap_or_default().to_vec()).unwrap();
        all.extend(batch.iter().map(|record| (record.offset(), text(record.value()))));
    }
    all
}

fn numbered(records: usize) -> Vec<(u64, String)> {
    (0..records).map(|number| (number as u64, format!("record {number}"))).collect()
}

/// Sends numbered records, each a batch of its own, and checks what each ticket says.
async fn send_numbered(producer: &Producer, records: usize) {
    let mut tickets = Vec::new();
    for (_, text) in numbered(records) {
        tickets.push(producer.enqueue(text).await.unwrap());
    }
    for (number, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(ticket.await.unwrap().offset, Some(number as u64));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_is_read() {
    let broker = Broker::new().with_topic("t", 1);
    let client = broker.client().await;
    let producer = client.producer("t").build().unwrap();
    let delivery = producer.send(Record::new("hello").key("k").header("h", "v")).await.unwrap();
    assert_eq!((delivery.partition, delivery.offset, delivery.durable), (0, Some(0), true));
    assert_eq!(producer.send("again").await.unwrap().offset, Some(1));
    let reader = client.reader("t", 0).from(Start::Earliest).build().unwrap();
    let batch = reader.next().await.unwrap().unwrap();
    let record = batch.get(0).unwrap();
    assert_eq!((record.key(), record.value()), (Some(&b"k"[..]), Some(&b"hello"[..])));
    let header = record.headers().next().unwrap();
    assert_eq!((&header.name[..], header.value.as_deref()), (&b"h"[..], Some(&b"v"[..])));
    let batch = reader.next().await.unwrap().unwrap();
    assert_eq!(batch.get(0).unwrap().value(), Some(&b"again"[..]));
    assert_eq!((reader.position(0), reader.high_watermark(0), reader.lag(0)), (Some(2), Some(2), Some(0)));
}

#[tokio::test(start_paused = true)]
async fn tombstones_empty_values_and_empty_keys_stay_what_they_are() {
    let broker = Broker::new().with_topic("t", 1);
    let client = broker.client().await;
    let producer = client.producer("t").build().unwrap();
    for record in [Record::tombstone("k"), Record::new(""), Record::new("v").key("")] {
        producer.send(record).await.unwrap();
    }
    let mut records = client.reader("t", 0).build().unwrap().records();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let record = records.next().await.unwrap().unwrap();
        seen.push((record.key, record.value));
    }
    let bytes = |text: &'static str| Some(bytes::Bytes::from_static(text.as_bytes()));
    assert_eq!(seen, [(bytes("k"), None), (None, bytes("")), (bytes(""), bytes("v"))]);
}

#[tokio::test(start_paused = true)]
async fn every_codec_goes_round() {
    for compression in
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd]
    {
        let broker = Broker::new().with_topic("t", 1);
        let client = broker.client().await;
        let producer = client.producer("t").compression(compression).build().unwrap();
        let values: Vec<String> = (0..5_000).map(|number| format!("line {number} of a log\n")).collect();
        let records: Vec<RecordRef<'_>> =
            values.iter().map(|value| RecordRef::new(value.as_bytes())).collect();
        producer.enqueue_all(&records).await.unwrap();
        producer.flush().await.unwrap();
        let read = read_all(&broker, "t", 0, values.len()).await;
        assert!(read.into_iter().map(|(_, value)| value).eq(values), "{}", compression.name());
        let stored: usize = broker.log("t", 0).batches.iter().map(|batch| batch.bytes.len()).sum();
        assert_eq!(stored < 100_000, compression != Compression::None, "{}", compression.name());
    }
}

#[tokio::test(start_paused = true)]
async fn keys_go_to_their_partitions_and_connections_to_their_shards() {
    let broker = Broker::new().with_topic("t", 4);
    let client = broker.client().await;
    let producer = client.producer("t").build().unwrap();
    for (key, partition) in [("21", 0), ("abc", 3)] {
        let delivery = producer.send(Record::new("v").key(key)).await.unwrap();
        assert_eq!(delivery.partition, partition);
    }
    let fixed = client.producer("t").partitioner(Partitioner::Explicit(2)).build().unwrap();
    assert_eq!(fixed.send(Record::new("v").key("abc")).await.unwrap().partition, 2);
    assert_eq!(fixed.send(Record::new("v").partition(1)).await.unwrap().partition, 1);
    // The first connection wants no shard; partitions are spread over two of them.
    let mut hellos = broker.world.lock().unwrap().hellos.clone();
    assert_eq!(hellos.remove(0), None);
    hellos.sort_unstable();
    assert_eq!(hellos, [Some(0), Some(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_drops_costs_no_record_and_doubles_none() {
    for fault in [Fault::CloseBefore, Fault::CloseMidAnswer, Fault::DeadlineAfter, Fault::Silence] {
        let broker = Broker::new().with_topic("t", 1);
        let producer = broker.client().await.producer("t").batch_bytes(1).build().unwrap();
        broker.fault("Produce", [None, Some(fault.clone()), None, Some(fault.clone()), Some(fault.clone())]);
        send_numbered(&producer, 40).await;
        assert_eq!(read_all(&broker, "t", 0, 40).await, numbered(40), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_breaks_the_protocol_loses_its_connection_and_nothing_else() {
    for fault in [Fault::AnswerTwice, Fault::UnknownCorrelation, Fault::Oversized] {
        let broker = Broker::new().with_topic("t", 1);
        let client = broker.client().await;
        let reader = client.reader("t", 0).build().unwrap();
        let producer = client.producer("t").build().unwrap();
        producer.send("record 0").await.unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap().len(), 1);
        let before = broker.world.lock().unwrap().connections;
        broker.fault("InitProducerId", [Some(fault.clone())]);
        let other = client.producer("t").build().unwrap();
        // The answer that broke the protocol fails what shares its connection; the next attempt is on another.
        let sent = other.send("record 1").await;
        assert!(sent.is_ok() || matches!(sent, Err(Error::Protocol { .. })), "{fault:?}: {sent:?}");
        if sent.is_err() {
            other.send("record 1").await.unwrap();
        }
        assert_eq!(read_all(&broker, "t", 0, 2).await, numbered(2), "{fault:?}");
        assert!(broker.world.lock().unwrap().connections > before, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_moved_is_looked_up_and_order_is_kept() {
    let broker = Broker::new().with_topic("t", 1);
    let producer = broker.client().await.producer("t").batch_bytes(1).build().unwrap();
    let moved = || Some(Fault::RefuseRows(ErrorCode::NotLeader));
    broker.fault("Produce", [None, moved(), None, moved(), moved(), None, moved()]);
    let before = broker.count("Metadata");
    send_numbered(&producer, 30).await;
    assert_eq!(read_all(&broker, "t", 0, 30).await, numbered(30));
    assert!(broker.count("Metadata") > before);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_says_slow_down_is_obeyed() {
    let broker = Broker::new().with_topic("t", 1);
    let producer = broker.client().await.producer("t").build().unwrap();
    producer.send("record 0").await.unwrap();
    let refusal = Refusal { throttle_ms: 5_000, ..Refusal::new(ErrorCode::Throttled, "slow down") };
    broker.fault("Produce", [Some(Fault::Refuse(refusal))]);
    let before = tokio::time::Instant::now();
    producer.send("record 1").await.unwrap();
    assert!(before.elapsed() >= Duration::from_secs(5), "{:?}", before.elapsed());
    assert_eq!(read_all(&broker, "t", 0, 2).await, numbered(2));
}

#[tokio::test(start_paused = true)]
async fn a_gap_in_the_sequences_is_told_and_the_next_records_go_on_under_another_name() {
    let broker = Broker::new().with_topic("t", 1);
    let producer = broker.client().await.producer("t").build().unwrap();
    producer.send("record 0").await.unwrap();
    broker.fault("Produce", [Some(Fault::RefuseRows(ErrorCode::OutOfOrderSequence))]);
    let error = producer.send("lost").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::OutOfOrderSequence));
    assert!(!error.is_retriable());
    assert_eq!(producer.undelivered(), 1);
    producer.send("record 1").await.unwrap();
    assert_eq!(broker.count("InitProducerId"), 2);
    assert_eq!(read_all(&broker, "t", 0, 2).await, numbered(2));
    let error = producer.flush().await.unwrap_err();
    assert!(matches!(error, Error::Undelivered { records: 1, .. }), "{error}");
    producer.flush().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_fenced_producer_stops() {
    let broker = Broker::new().with_topic("t", 1);
    let producer = broker.client().await.producer("t").build().unwrap();
    broker.fault("Produce", [Some(Fault::RefuseRows(ErrorCode::FencedProducer))]);
    for _ in 0..2 {
        assert_eq!(producer.send("x").await.unwrap_err().code(), Some(ErrorCode::FencedProducer));
    }
    assert_eq!(broker.log("t", 0).end, 0);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_delivered_fails_at_its_deadline_with_the_reason() {
    let broker = Broker::new().with_topic("t", 1);
    let client = broker.client().await;
    let producer = client.producer("t").delivery_deadline(Duration::from_secs(10)).build().unwrap();
    producer.send("record 0").await.unwrap();
    broker.fault("Produce", vec![Some(Fault::RefuseRows(ErrorCode::DiskFull)); 1_000]);
    let before = tokio::time::Instant::now();
    let error = producer.send("late").await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Deadline, Some(ErrorCode::DiskFull)));
    let took = before.elapsed();
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(12), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_full_buffer_holds_back_and_a_dead_broker_does_not_hold_for_ever() {
    let broker = Broker::new().with_topic("t", 1);
    let client = broker.client().await;
    let builder = client.producer("t").memory_bytes(64 << 10).batch_bytes(16 << 10);
    let producer = builder.delivery_deadline(Duration::from_secs(10)).build().unwrap();
    producer.send("first").await.unwrap();
    broker.fault("Produce", vec![Some(Fault::RefuseRows(ErrorCode::NotEnoughReplicas)); 10_000]);
    let mut taken = 0;
    let refused = loop {
        match producer.try_enqueue(vec![7; 1_000]) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!((40..=66).contains(&taken), "{taken} records of 1,000 bytes in 64 KiB");
    assert!(producer.buffered_bytes() <= 64 << 10);
    // Room comes when what is buffered has failed.
    let ticket = producer.enqueue(vec![7; 1_000]).await.unwrap();
    assert_eq!(producer.undelivered(), taken);
    assert_eq!(ticket.await.unwrap_err().kind(), ErrorKind::Deadline);
}

#[tokio::test(start_paused = true)]
async fn without_acknowledgements_a_record_is_done_when_it_is_written() {
    let broker = Broker::new().with_topic("t", 1);
    let client = broker.client().await;
    let producer = client.producer("t").acks(Acks::None).build().unwrap();
    assert_eq!(producer.send("record 0").await.unwrap().offset, None);
    producer.close().await.unwrap();
    assert_eq!(read_all(&broker, "t", 0, 1).await, numbered(1));
    assert_eq!(broker.count("InitProducerId"), 0);
    let contradiction = client.producer("t").acks(Acks::None).idempotent(true).build();
    assert_eq!(contradiction.err().map(|error| error.kind()), Some(ErrorKind::Usage));
}

#[tokio::test(start_paused = true)]
async fn records_gather_while_batches_are_under_way() {
    let broker = Broker::new().with_topic("t", 1);
    let producer = broker.client().await.producer("t").build().unwrap();
    producer.send("first").await.unwrap();
    let before = broker.count("Produce");
    let tickets: Vec<_> = (0..1_000).map(|_| producer.try_enqueue("x").unwrap()).collect();
    for ticket in tickets {
        ticket.await.unwrap();
    }
    assert!(broker.count("Produce") - before <= 3);
    let lingering = broker.client().await.producer("t").linger(Duration::from_millis(50)).build().unwrap();
    let before = (tokio::time::Instant::now(), broker.count("Produce"));
    let (a, b) = (lingering.enqueue("a").await.unwrap(), lingering.enqueue("b").await.unwrap());
    let (a, b) = (a.await.unwrap(), b.await.unwrap());
    assert_eq!(a.offset.unwrap() + 1, b.offset.unwrap());
    assert_eq!(broker.count("Produce"), before.1 + 1);
    assert!(before.0.elapsed() >= Duration::from_millis(50));
}

#[tokio::test(start_paused = true)]
async fn closing_sends_what_was_taken_and_takes_no_more() {
    let broker = Broker::new().with_topic("t", 1);
    let producer = broker.client().await.producer("t").linger(Duration::from_hours(1)).build().unwrap();
    let ticket = producer.enqueue("record 0").await.unwrap();
    producer.close().await.unwrap();
    assert_eq!(ticket.try_result().unwrap().unwrap().offset, Some(0));
    assert_eq!(producer.enqueue("x").await.map(|_| ()).unwrap_err().kind(), ErrorKind::Closed);
    // Dropping does the same, in the background.
    let dropped = broker.client().await.producer("t").linger(Duration::from_hours(1)).build().unwrap();
    let ticket = dropped.enqueue("record 1").await.unwrap();
    drop(dropped);
    assert_eq!(ticket.await.unwrap().offset, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_does_not_exist_is_created_only_by_leave() {
    let broker = Broker::new();
    let client = broker.client().await;
    let producer = client.producer("t").auto_create(false).build().unwrap();
    let error = producer.send("x").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
    let reader = client.reader("t", 0).build().unwrap();
    assert_eq!(reader.next().await.unwrap_err().code(), Some(ErrorCode::UnknownTopic));
    client.producer("t").build().unwrap().send("record 0").await.unwrap();
    // The reader has gone on looking.
    let found = loop {
        match reader.next().await {
            Ok(batch) => break batch.unwrap(),
            Err(error) => assert_eq!(error.code(), Some(ErrorCode::UnknownTopic)),
        }
    };
    assert_eq!(found.len(), 1);
    let beyond = client.producer("t").partitioner(Partitioner::Explicit(9)).build().unwrap();
    assert_eq!(beyond.send("x").await.unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(client.reader("t", 9).build().unwrap().next().await.unwrap_err().kind(), ErrorKind::Usage);
}

#[tokio::test(start_paused = true)]
async fn reading_begins_where_it_is_told() {
    let broker = Broker::new().with_topic("t", 1);
    let client = broker.client().await;
    let producer = client.producer("t").linger(Duration::from_secs(1)).build().unwrap();
    // Two batches of five records, a second apart from record to record.
    for half in 0..2 {
        for number in half * 5..half * 5 + 5 {
            let record = Record::new(format!("record {number}")).timestamp_ms(number * 1_000);
            drop(producer.enqueue(record).await.unwrap());
        }
        producer.flush().await.unwrap();
    }
    assert_eq!(broker.log("t", 0).batches.len(), 2);
    let first = async |start| {
        let reader = client.reader("t", 0).from(start).build().unwrap();
        let batch = reader.next().await.unwrap().unwrap();
        (batch.first_offset(), batch.len())
    };
    assert_eq!(first(Start::Earliest).await, (0, 5));
    assert_eq!(first(Start::Offset(7)).await, (7, 3));
    assert_eq!(first(Start::Timestamp(3_000)).await, (3, 2));
    assert_eq!(first(Start::Timestamp(4_500)).await, (5, 5));
    let latest = client.reader("t", 0).from(Start::Latest).build().unwrap();
    assert!(latest.try_next().unwrap().is_none());
    let waiting = tokio::spawn(async move { latest.next().await.unwrap().unwrap().first_offset() });
    // The reader must know its place before more is written.
    while broker.count("Fetch") < 5 {
        tokio::task::yield_now().await;
    }
    drop(producer.enqueue("more").await.unwrap());
    assert_eq!(waiting.await.unwrap(), 10);
    let offsets = client.admin().list_offsets("t", Start::Timestamp(3_000)).await.unwrap();
    assert_eq!((offsets[0].offset, offsets[0].timestamp_ms), (0, Some(4_000)));
}

#[tokio::test(start_paused = true)]
async fn an_offset_outside_the_log_is_an_error_or_the_reset_that_was_chosen() {
    let broker = Broker::new().with_topic("t", 1);
    let client = broker.client().await;
    let producer = client.producer("t").build().unwrap();
    for number in 0..3 {
        producer.send(format!("record {number}")).await.unwrap();
    }
    assert_eq!(client.admin().delete_records("t", 0, 1).await.unwrap(), 1);
    let reader = client.reader("t", 0).from(Start::Offset(0)).build().unwrap();
    for _ in 0..2 {
        let error = reader.next().await.unwrap_err();
        assert!(matches!(error, Error::OffsetOutOfRange { offset: 0, log_start: 1, high_watermark: 3 }));
    }
    reader.seek(0, Start::Offset(2)).unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap().first_offset(), 2);
    let lenient = client.reader("t", 0).from(Start::Offset(99)).reset(Start::Earliest).build().unwrap();
    assert_eq!(lenient.next().await.unwrap().unwrap().first_offset(), 1);
}

#[tokio::test(start_paused = true)]
async fn damage_is_told_and_never_skipped() {
    let broker = Broker::new().with_topic("t", 1);
    let client = broker.client().await;
    let producer = client.producer("t").build().unwrap();
    producer.send("a value of some length, so that a bit of it can turn").await.unwrap();
    producer.send("record 1").await.unwrap();
    broker.fault("Fetch", vec![Some(Fault::Rot)]);
    let reader = client.reader("t", 0).build().unwrap();
    let mut error = None;
    for _ in 0..3 {
        match reader.next().await {
            Ok(batch) => assert_eq!(batch.unwrap().first_offset(), 0),
            Err(found) => error = Some(found),
        }
    }
    let Some(Error::Corrupt { partition: 0, offset, .. }) = error else { panic!("no damage: {error:?}") };
    reader.seek(0, Start::Offset(offset)).unwrap();
    assert_eq!(
        reader.next().await.unwrap().unwrap().first_offset(),
        offset,
        "it was damaged only on its way"
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_batch_is_not_passed_over() {
    let broker = Broker::new().with_topic("t", 1);
    let client = broker.client().await;
    let producer = client.producer("t").build().unwrap();
    for number in 0..3 {
        producer.send(format!("record {number}")).await.unwrap();
    }
    broker.world.lock().unwrap().topics.get_mut("t").unwrap().1[0].batches.remove(1);
    let reader = client.reader("t", 0).build().unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap().first_offset(), 0);
    let error = reader.next().await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { offset: 1, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_reader_survives_lost_connections_and_moved_leaders() {
    let broker = Broker::new().with_topic("t", 2);
    let client = broker.client().await;
    let reader = client.topic_reader("t").build().unwrap();
    let producer = client.producer("t").build().unwrap();
    let moved = || Some(Fault::RefuseRows(ErrorCode::NotLeader));
    broker.fault("Fetch", [None, moved(), Some(Fault::CloseMidAnswer), None, moved(), Some(Fault::Silence)]);
    let mut seen = [0, 0];
    for number in 0..20_u64 {
        let partition = u32::try_from(number % 2).unwrap();
        producer.send(Record::new(format!("{number}")).partition(partition)).await.unwrap();
        let batch = loop {
            match reader.next().await {
                Ok(batch) => break batch.unwrap(),
                // A broker that says nothing is told after a while.
                Err(error) => assert_eq!(error.kind(), ErrorKind::Deadline),
            }
        };
        let place = batch.partition() as usize;
        assert_eq!(batch.first_offset(), seen[place]);
        seen[place] = batch.next_offset();
    }
    assert_eq!(seen, [10, 10]);
}

#[tokio::test(start_paused = true)]
async fn a_paused_partition_gives_nothing_until_it_is_resumed() {
    let broker = Broker::new().with_topic("t", 2);
    let client = broker.client().await;
    let producer = client.producer("t").build().unwrap();
    for partition in [0, 1, 0] {
        producer.send(Record::new("x").partition(partition)).await.unwrap();
    }
    let reader = client.topic_reader("t").build().unwrap();
    assert!(reader.next().await.unwrap().is_some());
    reader.pause(0).unwrap();
    let mut rest = Vec::new();
    while let Ok(batch) = tokio::time::timeout(Duration::from_secs(5), reader.next()).await {
        rest.push(batch.unwrap().unwrap().partition());
    }
    assert!(rest.iter().all(|&partition| partition == 1), "{rest:?}");
    reader.resume(0).unwrap();
    let batch = reader.next().await.unwrap().unwrap();
    assert_eq!(batch.partition(), 0);
    reader.close();
    assert!(reader.next().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn prefetching_stops_at_its_bound() {
    let broker = Broker::new().with_topic("t", 1);
    let client = broker.client().await;
    let producer = client.producer("t").batch_bytes(10_000).build().unwrap();
    let value = vec![7; 9_000];
    for _ in 0..200 {
        drop(producer.enqueue(value.clone()).await.unwrap());
    }
    producer.flush().await.unwrap();
    let builder = client.reader("t", 0).prefetch_bytes(200_000).fetch_bytes(50_000, 50_000);
    let reader = builder.build().unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
    let fetches = broker.count("Fetch");
    assert!(fetches <= 4, "{fetches} fetches although nobody takes anything");
    let mut records = 0;
    while records < 200 {
        records += reader.next().await.unwrap().unwrap().len();
    }
    assert!(broker.count("Fetch") > 20);
}

#[tokio::test(start_paused = true)]
async fn topics_are_administered() {
    let broker = Broker::new();
    let admin = broker.client().await.admin();
    admin.create_topic("orders", NewTopic::partitions(3)).await.unwrap();
    let error = admin.create_topic("orders", NewTopic::partitions(3)).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), (Some(ErrorCode::Exists), ErrorKind::Refused));
    admin.ensure_topic("orders", NewTopic::partitions(3)).await.unwrap();
    admin.create_topic("a", NewTopic::partitions(1)).await.unwrap();
    let topics = admin.list_topics().await.unwrap();
    let topics: Vec<_> = topics.iter().map(|topic| (&*topic.name, topic.partition_count())).collect();
    assert_eq!(topics, [("a", 1), ("orders", 3)]);
    admin.delete_topic("orders").await.unwrap();
    assert_eq!(admin.topic("orders").await.unwrap_err().code(), Some(ErrorCode::UnknownTopic));
    assert_eq!(admin.list_offsets("a", Start::Latest).await.unwrap()[0].offset, 0);
}

#[tokio::test(start_paused = true)]
async fn the_offsets_of_many_partitions_are_asked_for_in_portions() {
    // The broker in memory spreads them over two shards, of which each has more than a request may ask for.
    let broker = Broker::new().with_topic("t", 9_000);
    let admin = broker.client().await.admin();
    let listed = admin.list_offsets("t", Start::Latest).await.unwrap();
    assert!(listed.iter().map(|listed| listed.partition).eq(0..9_000));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_not_there_is_told_at_once_and_awaited_later() {
    let broker = Broker::new().with_topic("t", 1);
    broker.world.lock().unwrap().down = true;
    let builder = corelog_client::Client::builder().bootstrap("broker:1, broker:2");
    let error = builder.clone().connect_on(broker.clone()).await.err().unwrap();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    let wrong = corelog_client::Client::builder().bootstrap("broker").connect_on(broker.clone()).await;
    assert_eq!(wrong.err().unwrap().kind(), ErrorKind::Usage);
    broker.world.lock().unwrap().down = false;
    let client = builder.connect_on(broker.clone()).await.unwrap();
    let producer = client.producer("t").build().unwrap();
    let reader = client.reader("t", 0).patience(Duration::from_secs(3)).build().unwrap();
    producer.send("record 0").await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap().len(), 1);
    // The broker goes away; whoever waits hears of it, and all goes on when it is back.
    broker.world.lock().unwrap().down = true;
    broker.fault("Fetch", vec![Some(Fault::CloseMidAnswer); 2]);
    broker.fault("Produce", [Some(Fault::CloseBefore)]);
    let ticket = producer.enqueue("record 1").await.unwrap();
    let error = reader.next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Deadline);
    broker.world.lock().unwrap().down = false;
    assert_eq!(ticket.await.unwrap().offset, Some(1));
    assert_eq!(reader.next().await.unwrap().unwrap().first_offset(), 1);
}

#[tokio::test(start_paused = true)]
async fn handles_can_go_to_other_threads_and_outlive_each_other() {
    fn check<T: Clone + Send + Sync + 'static>(_: &T) {}
    let broker = Broker::new().with_topic("t", 1);
    let client = broker.client().await;
    let producer = client.producer("t").build().unwrap();
    let reader = client.reader("t", 0).build().unwrap();
    check(&client);
    check(&producer);
    check(&reader);
    check(&client.admin());
    drop(client);
    producer.send("record 0").await.unwrap();
    drop(producer);
    assert_eq!(reader.next().await.unwrap().unwrap().len(), 1);
}
