//! Transcripts of a reader: what goes in, what comes out. Time stands still unless a test moves it.

use bytes::BytesMut;
use corelog_wire::batch::{BatchFields, STAMP_BYTES, Stamp};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Kind;
use corelog_wire::ids::{BrokerId, LeaderEpoch, ShardId, TopicId, TopicPartition};
use corelog_wire::message::{
    Answer, FetchAnswer, FetchedRow, ListOffsetsAnswer, ListedRow, MetadataAnswer, MetadataBroker,
    MetadataPartition, MetadataTopic, Request,
};
use corelog_wire::records::RecordsBuilder;

use super::*;
use crate::core::Outgoing;

const ID: TopicId = TopicId::from_bytes([1; 16]);

/// A stored batch of records whose values are their offsets and whose times are a thousand times that. Even ones have the
/// tag `even`.
fn batch(partition: u32, offsets: std::ops::Range<u64>) -> Vec<u8> {
    sealed(TopicPartition::new(ID, partition), offsets)
}

pub(in crate::core) fn sealed(tp: TopicPartition, offsets: std::ops::Range<u64>) -> Vec<u8> {
    let mut records = RecordsBuilder::with_capacity(0);
    let time = |offset: u64| i64::try_from(offset).unwrap() * 1_000;
    for (delta, offset) in (0..).zip(offsets.clone()) {
        let value = offset.to_string();
        let headers: &[(&[u8], Option<&[u8]>)] =
            if offset % 2 == 0 { &[(b"other", Some(b"odd")), (b"tag", Some(b"even"))] } else { &[] };
        let delta_ms = time(offset) - time(offsets.start);
        records.push(delta, delta_ms, None, Some(value.as_bytes()), headers).unwrap();
    }
    let fields =
        BatchFields { max_timestamp_ms: time(offsets.end - 1), ..BatchFields::plain(1, time(offsets.start)) };
    let bytes = records.into_batch(&fields, tp);
    let (header, _) = corelog_wire::batch::parse_header(&bytes, tp).unwrap();
    let stamp = Stamp {
        base_offset: Offset::new(offsets.start),
        append_timestamp_ms: 7,
        leader_epoch: LeaderEpoch::new(1),
    };
    let mut stored = BytesMut::from(&stamp.encode(header.header_crc)[..]);
    stored.extend_from_slice(&bytes[STAMP_BYTES..]);
    stored.to_vec()
}

/// What a broker says of topic `t`, all of whose partitions it leads.
pub(in crate::core) fn topic_told(partitions: u32) -> Answer {
    let partition = |partition| MetadataPartition {
        partition,
        leader: Some(BrokerId::new(1)),
        leader_epoch: LeaderEpoch::new(1),
        shard: ShardId::new(0),
        replicas: vec![],
        in_sync_replicas: vec![],
    };
    let topic = MetadataTopic {
        error: ErrorCode::None,
        name: "t".into(),
        id: ID,
        partitions: (0..partitions).map(partition).collect(),
    };
    let brokers = vec![MetadataBroker { id: BrokerId::new(1), address: "a:1".into() }];
    Answer::Metadata(MetadataAnswer { brokers, topics: vec![topic], revision: 1 })
}

struct Rig {
    now: Instant,
    reader: Reader,
    open: Vec<Outgoing>,
    transcript: Vec<String>,
}

impl Rig {
    fn new(config: ReaderConfig) -> Self {
        let now = Instant::now();
        let mut rig = Self { now, reader: Reader::new(config, 1).unwrap(), open: vec![], transcript: vec![] };
        rig.handle(Input::Tick);
        rig
    }

    /// One that knows its topic of `partitions`.
    fn ready(config: ReaderConfig, partitions: u32) -> Self {
        let mut rig = Self::new(config);
        rig.tell_topic(partitions);
        rig
    }

    fn handle(&mut self, input: Input) {
        let mut out = Vec::new();
        self.reader.handle(self.now, input, &mut out);
        assert_eq!(self.reader.broken_invariant(), None);
        for effect in out {
            if let Effect::Send(outgoing) = effect {
                self.transcript.push(describe(&outgoing.request));
                self.open.push(outgoing);
            }
        }
    }

    fn wait(&mut self) {
        self.now = self.reader.deadline().expect("it waits for something");
        self.handle(Input::Tick);
    }

    fn take(&mut self, kind: Kind) -> Outgoing {
        let place = self.open.iter().position(|outgoing| outgoing.request.kind() == kind);
        self.open.remove(place.unwrap_or_else(|| panic!("no {} is open: {:?}", kind.name(), self.transcript)))
    }

    fn answer(&mut self, id: RequestId, answer: Answer, payload: Vec<u8>) {
        self.handle(Input::Answered { id, answer, payload: payload.into() });
    }

    fn tell_topic(&mut self, partitions: u32) {
        let id = self.take(Kind::Metadata).id;
        self.answer(id, topic_told(partitions), vec![]);
    }

    fn tell_offset(&mut self, offset: u64) {
        let outgoing = self.take(Kind::ListOffsets);
        let Request::ListOffsets(request) = &outgoing.request else { panic!("not a ListOffsets") };
        let rows = request.rows.iter().map(|row| ListedRow {
            tp: row.tp,
            error: ErrorCode::None,
            offset: Offset::new(offset),
            timestamp_ms: -1,
            leader_epoch: LeaderEpoch::new(1),
        });
        let rows = rows.collect();
        self.answer(outgoing.id, Answer::ListOffsets(ListOffsetsAnswer { rows }), vec![]);
    }

    /// Answers the oldest Fetch: each row with the bytes or the error of its place.
    fn fetched(&mut self, rows: &[Result<Vec<u8>, ErrorCode>]) {
        self.fetched_up_to(None, rows);
    }

    /// As [`Rig::fetched`], when batches up to an offset were left out.
    fn fetched_up_to(&mut self, next: Option<u64>, rows: &[Result<Vec<u8>, ErrorCode>]) {
        let outgoing = self.take(Kind::Fetch);
        let Request::Fetch(request) = &outgoing.request else { panic!("not a Fetch") };
        assert_eq!(request.rows.len(), rows.len(), "{:?}", self.transcript);
        let mut payload = Vec::new();
        let fetched = request.rows.iter().zip(rows).map(|(row, result)| {
            let first_byte = u32::try_from(payload.len()).unwrap();
            let bytes = result.as_ref().map_or(0, Vec::len);
            payload.extend_from_slice(result.as_deref().unwrap_or_default());
            FetchedRow {
                tp: row.tp,
                error: *result.as_ref().err().unwrap_or(&ErrorCode::None),
                message: String::new(),
                high_watermark: Offset::new(100),
                log_start: Offset::new(3),
                log_end: Offset::new(100),
                leader_epoch: LeaderEpoch::new(1),
                first_byte,
                bytes: u32::try_from(bytes).unwrap(),
                next_offset: next.map(Offset::new),
            }
        });
        let rows = fetched.collect();
        self.answer(outgoing.id, Answer::Fetch(FetchAnswer { throttle_ms: 0, rows }), payload);
    }

    /// What the taker gets, in words.
    fn taken(&mut self) -> Option<String> {
        let taken = self.reader.take()?;
        self.handle(Input::Tick);
        Some(match taken {
            Err(error) => error.to_string(),
            Ok(batch) => {
                for record in &batch {
                    assert_eq!(record.value(), Some(record.offset().to_string().as_bytes()));
                }
                format!("{}:{}..{}", batch.partition(), batch.first_offset(), batch.next_offset())
            }
        })
    }

    fn said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.transcript)
    }
}

fn describe(request: &Request) -> String {
    match request {
        Request::Fetch(fetch) => {
            let rows: Vec<_> =
                fetch.rows.iter().map(|row| format!("{}@{}", row.tp.partition, row.offset)).collect();
            format!("fetch {}", rows.join(" "))
        }
        Request::ListOffsets(list) => {
            let rows: Vec<_> =
                list.rows.iter().map(|row| format!("{}@{:?}", row.tp.partition, row.at)).collect();
            format!("list {}", rows.join(" "))
        }
        other => format!("ask {}", other.kind().name()),
    }
}

fn from(start: Start) -> ReaderConfig {
    ReaderConfig { start, ..ReaderConfig::new("t") }
}

#[test]
fn it_finds_its_place_and_goes_on_from_there() {
    let mut rig = Rig::ready(from(Start::Earliest), 2);
    rig.tell_offset(3);
    rig.fetched(&[Ok(batch(0, 3..5)), Ok([batch(1, 3..4), batch(1, 4..6)].concat())]);
    assert_eq!(
        rig.said(),
        ["ask Metadata", "list 0@Earliest 1@Earliest", "fetch 0@3 1@3", "fetch 0@5 1@6"],
        "the next is asked for before anything is taken"
    );
    let taken: Vec<_> = std::iter::from_fn(|| rig.taken()).collect();
    assert_eq!(taken, ["0:3..5", "1:3..4", "1:4..6"]);
    assert_eq!((rig.reader.position(0), rig.reader.position(1)), (Some(5), Some(6)));
    assert_eq!((rig.reader.high_watermark(0), rig.reader.log_start(0)), (Some(100), Some(3)));
}

#[test]
fn records_without_the_tag_are_left_out_and_count_as_read() {
    let tagged = |tag| ReaderConfig { tags: vec![Bytes::from_static(tag)], ..from(Start::Offset(3)) };
    let offsets = |taken: Option<Result<Batch, Error>>| -> Vec<u64> {
        taken.unwrap().unwrap().iter().map(|record| record.offset()).collect()
    };
    let mut rig = Rig::ready(tagged(b"even"), 1);
    let Request::Fetch(request) = &rig.open[0].request else { panic!("not a Fetch") };
    assert_eq!(request.filter, TagFilter::of(["even"]).unwrap());
    // What comes may lack batches before, between and after what is there.
    rig.fetched_up_to(Some(40), &[Ok([batch(0, 5..9), batch(0, 20..22)].concat())]);
    assert_eq!(offsets(rig.reader.take()), [6, 8]);
    assert_eq!(rig.reader.position(0), Some(9));
    assert_eq!(offsets(rig.reader.take()), [20]);
    assert_eq!(rig.reader.position(0), Some(40));
    rig.handle(Input::Tick);
    // Nothing at all, and nothing but neighbours of what is asked for.
    rig.fetched_up_to(Some(60), &[Ok(vec![])]);
    assert_eq!((rig.reader.position(0), rig.taken()), (Some(60), None));
    rig.fetched_up_to(Some(80), &[Ok(batch(0, 61..62))]);
    assert_eq!((rig.taken(), rig.reader.position(0)), (None, Some(80)));
    assert_eq!(rig.said(), ["ask Metadata", "fetch 0@3", "fetch 0@40", "fetch 0@60", "fetch 0@80"]);

    let mut rig = Rig::ready(tagged(b"odd"), 1);
    rig.fetched_up_to(Some(10), &[Ok(batch(0, 3..9))]);
    assert_eq!(rig.taken(), None, "a header of another name is no tag");
    let seventeen = ReaderConfig { tags: vec![Bytes::new(); 17], ..ReaderConfig::new("t") };
    assert!(seventeen.check().unwrap_err().to_string().contains("at most 16 tags"));
}

#[test]
fn records_before_the_offset_are_dropped() {
    let mut rig = Rig::ready(from(Start::Offset(7)), 1);
    rig.fetched(&[Ok(batch(0, 5..10))]);
    assert_eq!(rig.taken().unwrap(), "0:7..10");
}

#[test]
fn records_before_the_time_are_dropped_in_the_first_batch_only() {
    let mut rig = Rig::ready(from(Start::Timestamp(6_500)), 1);
    rig.tell_offset(5);
    rig.fetched(&[Ok([batch(0, 5..10), batch(0, 10..12)].concat())]);
    assert_eq!(rig.taken().unwrap(), "0:7..10");
    assert_eq!(rig.taken().unwrap(), "0:10..12");
}

#[test]
fn a_gap_an_old_batch_or_one_of_another_topic_is_damage() {
    let foreign = sealed(TopicPartition::new(TopicId::from_bytes([9; 16]), 0), 7..9);
    let mut cut = batch(0, 7..9);
    cut.truncate(cut.len() - 8);
    let mut rotten = batch(0, 7..9);
    let at = rotten.len() - 12;
    rotten[at] ^= 1;
    for (bytes, words) in [
        (batch(0, 8..9), "offset 7 is missing"),
        (batch(0, 5..7), "offset 7 is missing"),
        (foreign, "checksum is wrong for this topic"),
        (cut, "the batch needs"),
        (rotten, "the body's checksum is wrong"),
        ([batch(0, 7..9), batch(0, 8..10)].concat(), "offset 9 is missing"),
    ] {
        let mut rig = Rig::ready(from(Start::Offset(7)), 1);
        rig.fetched(&[Ok(bytes)]);
        let mut taken = rig.taken().unwrap();
        if taken.starts_with("0:7") {
            taken = rig.taken().unwrap();
        }
        assert!(taken.contains(words), "{taken}");
        assert_eq!(rig.taken().unwrap(), taken, "it stays");
        rig.reader.seek(0, Start::Offset(20)).unwrap();
        rig.handle(Input::Tick);
        assert_eq!(rig.said().last().unwrap(), "fetch 0@20");
    }
}

#[test]
fn damage_found_when_a_batch_is_opened_stays_although_the_next_was_asked_for_already() {
    let mut rotten = batch(0, 7..9);
    let at = rotten.len() - 12;
    rotten[at] ^= 1;
    let words = "damaged data in partition 0 near offset 7: the body's checksum is wrong";
    for reset in [None, Some(Start::Latest)] {
        for ahead in [Ok(batch(0, 9..11)), Err(ErrorCode::OffsetOutOfRange)] {
            let mut rig = Rig::ready(ReaderConfig { reset, ..from(Start::Offset(7)) }, 1);
            rig.fetched(&[Ok(rotten.clone())]);
            assert_eq!(rig.said().last().unwrap(), "fetch 0@9", "it is asked for before anything is taken");
            assert_eq!(rig.taken().unwrap(), words);
            rig.fetched(&[ahead]);
            assert_eq!((rig.taken().unwrap(), rig.taken().unwrap()), (words.to_owned(), words.to_owned()));
            assert_eq!((rig.reader.position(0), rig.said()), (Some(7), vec![]));
            rig.reader.seek(0, Start::Offset(9)).unwrap();
            rig.handle(Input::Tick);
            rig.fetched(&[Ok(batch(0, 9..11))]);
            assert_eq!(rig.taken().unwrap(), "0:9..11");
        }
    }
}

#[test]
fn an_offset_outside_is_an_error_unless_a_reset_was_chosen() {
    let mut rig = Rig::ready(from(Start::Offset(1)), 1);
    rig.fetched(&[Err(ErrorCode::OffsetOutOfRange)]);
    let expected = "offset 1 is outside the log: it begins at 3 and ends at 100";
    assert_eq!((rig.taken().unwrap(), rig.taken().unwrap()), (expected.to_owned(), expected.to_owned()));
    let reset = ReaderConfig { reset: Some(Start::Earliest), ..from(Start::Offset(1)) };
    let mut rig = Rig::ready(reset, 1);
    rig.said();
    rig.fetched(&[Err(ErrorCode::OffsetOutOfRange)]);
    assert_eq!(rig.said(), ["list 0@Earliest"]);
}

#[test]
fn an_answer_from_before_a_seek_does_not_count() {
    let mut rig = Rig::ready(from(Start::Offset(5)), 1);
    rig.reader.seek(0, Start::Offset(9)).unwrap();
    rig.handle(Input::Tick);
    rig.fetched(&[Ok(batch(0, 5..7))]);
    assert_eq!(rig.taken(), None);
    rig.fetched(&[Ok(batch(0, 9..11))]);
    assert_eq!(rig.taken().unwrap(), "0:9..11");
}

#[test]
fn trouble_is_waited_out_and_told_when_it_lasts() {
    let patience = Duration::from_secs(5);
    let mut rig = Rig::ready(ReaderConfig { patience, ..from(Start::Offset(5)) }, 1);
    let started = rig.now;
    let told = loop {
        if rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::Fetch) {
            rig.fetched(&[Err(ErrorCode::NotLeader)]);
        } else if rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::Metadata) {
            rig.tell_topic(1);
        } else {
            rig.wait();
        }
        if let Some(told) = rig.taken() {
            break told;
        }
    };
    let took = rig.now - started;
    assert!(took >= patience && took < patience * 2, "{took:?}");
    assert!(
        told.contains("fetching was not done within its deadline") && told.contains("NOT_LEADER"),
        "{told}"
    );
    while !rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::Fetch) {
        rig.wait();
    }
    rig.fetched(&[Ok(batch(0, 5..6))]);
    assert_eq!(rig.taken().unwrap(), "0:5..6");
}

#[test]
fn a_broker_that_is_busy_or_stopping_is_asked_for_the_topic_again() {
    for (code, at_once) in
        [(ErrorCode::Throttled, false), (ErrorCode::ShuttingDown, false), (ErrorCode::UnknownTopic, true)]
    {
        let mut rig = Rig::new(from(Start::Offset(0)));
        let id = rig.take(Kind::Metadata).id;
        let refusal = corelog_wire::message::Refusal::new(code, "no");
        rig.answer(id, Answer::Refused { kind: Kind::Metadata, refusal }, vec![]);
        assert_eq!(rig.taken().is_some(), at_once, "{code}");
        rig.wait();
        rig.tell_topic(1);
        rig.fetched(&[Ok(batch(0, 0..2))]);
        assert_eq!(rig.taken().unwrap(), "0:0..2");
    }
}

#[test]
fn a_topic_that_was_deleted_is_told_after_seconds() {
    let mut rig = Rig::ready(from(Start::Offset(5)), 1);
    let started = rig.now;
    let told = loop {
        if rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::Fetch) {
            rig.fetched(&[Err(ErrorCode::UnknownTopic)]);
        } else if rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::Metadata) {
            let id = rig.take(Kind::Metadata).id;
            let refusal = corelog_wire::message::Refusal::new(ErrorCode::UnknownTopic, "no");
            rig.answer(id, Answer::Refused { kind: Kind::Metadata, refusal }, vec![]);
        } else {
            rig.wait();
        }
        if let Some(told) = rig.taken() {
            break told;
        }
    };
    let took = rig.now - started;
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(6), "{took:?}");
    assert!(told.contains("UNKNOWN_TOPIC") && !told.contains("deadline"), "{told}");
}

#[test]
fn what_is_buffered_is_bounded() {
    let config = ReaderConfig {
        prefetch_bytes_max: 4_000,
        fetch_bytes_max: 1_000,
        partition_bytes_max: 1_000,
        ..from(Start::Offset(0))
    };
    let mut rig = Rig::ready(config, 8);
    for _ in 0..20 {
        let Some(place) = rig.open.iter().position(|o| o.request.kind() == Kind::Fetch) else { break };
        let Request::Fetch(fetch) = &rig.open[place].request else { panic!("not a Fetch") };
        let rows: Vec<_> = fetch
            .rows
            .iter()
            .map(|row| Ok(batch(row.tp.partition, row.offset.get()..row.offset.get() + 10)))
            .collect();
        let fetch = rig.open.remove(place);
        rig.open.insert(0, fetch);
        rig.fetched(&rows);
    }
    assert!(!rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::Fetch), "it stops by itself");
    let most = 4_000 + 8 * batch(0, 0..10).len();
    assert!(rig.reader.buffered_bytes() <= most, "{}", rig.reader.buffered_bytes());
    while rig.taken().is_some() {}
    assert!(rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::Fetch), "and goes on");
}

#[test]
fn partitions_that_wait_for_records_leave_room_for_those_that_are_behind() {
    let config = ReaderConfig {
        prefetch_bytes_max: 40_000,
        fetch_bytes_max: 40_000,
        partition_bytes_max: 400,
        ..from(Start::Offset(0))
    };
    let mut rig = Rig::ready(config, 8);
    let whole = |partition| Ok(batch(partition, 0..100));
    rig.fetched(&(0..8).map(whole).collect::<Vec<_>>());
    rig.said();
    // They come to their ends one by one.
    for partition in 0..7 {
        assert_eq!(rig.taken().unwrap(), format!("{partition}:0..100"));
    }
    assert_eq!(rig.said(), ["fetch 0@100", "fetch 1@100", "fetch 2@100", "fetch 3@100"], "no more may wait");
    rig.reader.seek(7, Start::Offset(0)).unwrap();
    rig.handle(Input::Tick);
    assert_eq!(rig.said(), ["fetch 7@0"], "one that is behind does not wait for them");
    rig.fetched(&[Ok(vec![])]);
    assert_eq!(rig.said(), ["fetch 0@100 4@100 5@100 6@100"], "those that rested wait together");
}

#[test]
fn rows_that_do_not_match_are_not_believed() {
    let mut rig = Rig::ready(from(Start::Offset(0)), 2);
    let outgoing = rig.take(Kind::Fetch);
    rig.answer(outgoing.id, Answer::Fetch(FetchAnswer { throttle_ms: 0, rows: vec![] }), vec![]);
    assert!(rig.taken().unwrap().contains("do not match"));
}

#[test]
fn a_partition_that_is_added_is_read_from_its_start() {
    let mut rig = Rig::ready(from(Start::Latest), 1);
    rig.tell_offset(50);
    rig.said();
    rig.now += Duration::from_mins(1);
    rig.handle(Input::Tick);
    rig.tell_topic(2);
    assert_eq!(rig.said(), ["ask Metadata", "list 1@Earliest"]);
}

#[test]
fn a_paused_partition_is_neither_fetched_nor_taken() {
    let mut rig = Rig::ready(from(Start::Offset(0)), 2);
    rig.fetched(&[Ok(batch(0, 0..2)), Ok(batch(1, 0..2))]);
    rig.reader.pause(0).unwrap();
    assert_eq!(std::iter::from_fn(|| rig.taken()).collect::<Vec<_>>(), ["1:0..2"]);
    rig.reader.resume(0).unwrap();
    assert_eq!(rig.taken().unwrap(), "0:0..2");
    assert!(rig.reader.pause(7).is_err());
}

#[test]
fn a_closed_reader_gives_and_asks_nothing() {
    let mut rig = Rig::ready(from(Start::Offset(0)), 1);
    rig.fetched(&[Ok(batch(0, 0..2))]);
    rig.said();
    rig.reader.close();
    rig.handle(Input::Tick);
    assert_eq!((rig.taken(), rig.reader.deadline()), (None, None));
    assert!(rig.said().is_empty());
}
