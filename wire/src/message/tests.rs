//! Every kind in both directions: golden bytes, round trips, refusals, and bytes that are not messages.

use std::time::Duration;

use super::*;
use crate::ids::{BrokerId, LeaderEpoch, MemberEpoch, MemberId, Offset, ProducerEpoch, ProducerId, ShardId};
use crate::keys::TagFilter;
use crate::testing::{Rng, golden};

fn topic(byte: u8) -> TopicId {
    TopicId::from_bytes([byte; 16])
}

fn tp(partition: u32) -> TopicPartition {
    TopicPartition::new(topic(0xa5), partition)
}

fn requests() -> Vec<Request> {
    vec![
        Request::Hello(HelloRequest {
            client_name: "corelog-rust".into(),
            client_version: "0.1.0".into(),
            version_min: 1,
            version_max: 2,
            features: 0x8000_0000_0000_0001,
            shard: Some(ShardId::new(0)),
        }),
        Request::Metadata(MetadataRequest {
            topics: Some(vec!["orders".into(), "päyments".into()]),
            auto_create: true,
        }),
        Request::CreateTopic(CreateTopicRequest {
            name: "orders".into(),
            partitions: 3,
            replication_factor: 2,
            config: vec![("retention_ms".into(), "1000".into()), ("cleanup_policy".into(), String::new())],
        }),
        Request::DeleteTopic(DeleteTopicRequest { name: "orders".into() }),
        Request::AlterTopic(AlterTopicRequest {
            name: "orders".into(),
            config: vec![("retention_ms".into(), None), ("full_policy".into(), Some("drop-oldest".into()))],
            partitions: Some(6),
        }),
        Request::DescribeTopic(DescribeTopicRequest { name: "orders".into() }),
        Request::Produce(ProduceRequest {
            acks: Acks::All,
            deadline_ms: 30_000,
            rows: vec![
                ProduceRow { tp: tp(0), first_byte: 0, bytes: 104 },
                ProduceRow { tp: tp(1), first_byte: 104, bytes: 96 },
            ],
        }),
        Request::Fetch(FetchRequest {
            max_wait_ms: 500,
            min_bytes: 1,
            max_bytes: 16 << 20,
            rows: vec![
                FetchRow {
                    tp: tp(0),
                    offset: Offset::new(1 << 40),
                    max_bytes: 1 << 20,
                    leader_epoch: Some(LeaderEpoch::new(0)),
                },
                FetchRow { tp: tp(1), offset: Offset::ZERO, max_bytes: 1, leader_epoch: None },
            ],
            filter: TagFilter::of(["red", "green"]).unwrap(),
        }),
        Request::ListOffsets(ListOffsetsRequest {
            rows: vec![
                ListOffsetsRow { tp: tp(0), at: At::Earliest },
                ListOffsetsRow { tp: tp(1), at: At::Latest },
                ListOffsetsRow { tp: tp(2), at: At::Timestamp(-1) },
            ],
        }),
        Request::InitProducerId(InitProducerIdRequest {}),
        Request::DeleteRecords(DeleteRecordsRequest {
            rows: vec![DeleteRecordsRow { tp: tp(7), before: Offset::new(99) }],
        }),
        Request::GroupHeartbeat(GroupHeartbeatRequest {
            group: "billing".into(),
            member: member(1),
            member_epoch: MemberEpoch::new(1 << 33),
            leave: Leave::Away,
            max_wait_ms: 3000,
            owned: vec![tp(0), tp(9)],
            beat: 17,
            wishes: Some(Box::new(wishes())),
        }),
        Request::OffsetCommit(OffsetCommitRequest {
            group: "billing".into(),
            member: Some((member(1), MemberEpoch::new(7))),
            rows: vec![offset_row(0), offset_row(1)],
        }),
        Request::OffsetFetch(OffsetFetchRequest { group: "billing".into() }),
        Request::ListGroups(ListGroupsRequest { after: "alpha".into() }),
        Request::DescribeGroup(DescribeGroupRequest { group: "billing".into() }),
        Request::DeleteGroup(DeleteGroupRequest { group: "billing".into(), topic: Some(topic(1)) }),
    ]
}

fn member(number: u128) -> MemberId {
    MemberId::new(number << 100 | 0xee)
}

fn wishes() -> MemberWishes {
    MemberWishes {
        session_timeout: Duration::from_secs(10),
        topics: vec!["orders".into(), "payments".into()],
        patterns: vec!["eu.*".into()],
        assignor: Assignor::Range,
        instance: Some("till-4".into()),
        client_name: "till".into(),
    }
}

#[test]
fn assignors_are_found_by_their_names() {
    for assignor in Assignor::ALL {
        assert_eq!(Assignor::named(assignor.name()), Some(assignor));
    }
    assert_eq!(Assignor::named("sticky"), None);
}

fn offset_row(partition: u32) -> OffsetRow {
    OffsetRow {
        tp: tp(partition),
        offset: Offset::new(1 << 50),
        leader_epoch: LeaderEpoch::new(3),
        metadata: "half of ünit 7".into(),
    }
}

fn describe_group_answer() -> DescribeGroupAnswer {
    let row = |partition, lag| GroupPartition {
        tp: tp(partition),
        topic: "orders".into(),
        member: Some(member(1)),
        leaving: true,
        committed: Some(Offset::new(12)),
        metadata: "note".into(),
        lag,
    };
    let lag = |overtaken_in| GroupLag {
        log_start: Offset::new(2),
        high_watermark: Offset::new(30),
        bytes: 4096,
        behind: Duration::from_millis(2500),
        overtaken_in,
    };
    DescribeGroupAnswer {
        epoch: 8,
        members: vec![MemberDescription {
            member: member(1),
            member_epoch: MemberEpoch::new(8),
            away: true,
            wishes: wishes(),
        }],
        partitions: vec![
            row(0, Some(lag(Some(Duration::from_mins(1))))),
            row(1, Some(lag(None))),
            GroupPartition { member: None, leaving: false, committed: None, ..row(2, None) },
        ],
    }
}

fn metadata_answer() -> MetadataAnswer {
    let partition = |partition, leader: Option<u32>| MetadataPartition {
        partition,
        leader: leader.map(BrokerId::new),
        leader_epoch: LeaderEpoch::new(5),
        shard: ShardId::new(1),
        replicas: vec![BrokerId::new(1), BrokerId::new(2)],
        in_sync_replicas: leader.map(BrokerId::new).into_iter().collect(),
    };
    MetadataAnswer {
        brokers: vec![
            MetadataBroker { id: BrokerId::new(1), address: "one:9640".into() },
            MetadataBroker { id: BrokerId::new(2), address: "[::1]:9640".into() },
        ],
        topics: vec![
            MetadataTopic {
                error: ErrorCode::None,
                name: "orders".into(),
                id: topic(1),
                partitions: vec![partition(0, Some(0)), partition(1, None)],
            },
            MetadataTopic {
                error: ErrorCode::UnknownTopic,
                name: "nothing".into(),
                id: topic(0),
                partitions: vec![],
            },
        ],
        revision: 77,
    }
}

fn produce_answer() -> ProduceAnswer {
    ProduceAnswer {
        throttle_ms: 20,
        rows: vec![
            ProducedRow {
                tp: tp(0),
                error: ErrorCode::None,
                message: String::new(),
                base_offset: Offset::new(1000),
                append_timestamp_ms: 1_700_000_000_000,
                log_start: Offset::new(10),
                replicas_reached: 3,
                durable: true,
            },
            ProducedRow {
                tp: tp(1),
                error: ErrorCode::NotLeader,
                message: "broker 2 leads it".into(),
                base_offset: Offset::ZERO,
                append_timestamp_ms: 0,
                log_start: Offset::ZERO,
                replicas_reached: 0,
                durable: false,
            },
        ],
    }
}

fn fetch_answer() -> FetchAnswer {
    let row = |partition, error, first_byte, bytes| FetchedRow {
        tp: tp(partition),
        error,
        message: error.help().into(),
        high_watermark: Offset::new(50),
        log_start: Offset::new(1),
        log_end: Offset::new(60),
        leader_epoch: LeaderEpoch::new(4),
        first_byte,
        bytes,
        next_offset: (bytes > 0).then_some(Offset::new(40)),
    };
    FetchAnswer {
        throttle_ms: 0,
        rows: vec![row(0, ErrorCode::None, 8, 192), row(1, ErrorCode::OffsetOutOfRange, 0, 0)],
    }
}

fn answers() -> Vec<Answer> {
    vec![
        Answer::Hello(HelloAnswer {
            version: 1,
            features: 2,
            cluster: "harbour".into(),
            broker: BrokerId::new(0),
            shard: ShardId::new(1),
            shards: 2,
            header_bytes_max: 1 << 20,
            payload_bytes_max: 16 << 20,
            record_bytes_max: 4 << 20,
            batch_bytes_max: 8 << 20,
        }),
        Answer::Metadata(metadata_answer()),
        Answer::CreateTopic(CreateTopicAnswer { id: topic(3) }),
        Answer::DeleteTopic(DeleteTopicAnswer {}),
        Answer::AlterTopic(AlterTopicAnswer {}),
        Answer::DescribeTopic(DescribeTopicAnswer {
            id: topic(4),
            config: vec![TopicSetting { name: "retention_ms".into(), value: "7".into(), is_default: true }],
            partitions: vec![PartitionDescription {
                partition: 0,
                leader: Some(BrokerId::new(0)),
                leader_epoch: LeaderEpoch::new(1),
                shard: ShardId::new(0),
                log_start: Offset::new(2),
                high_watermark: Offset::new(3),
                log_end: Offset::new(u64::MAX),
                bytes: 5,
                segments: 6,
            }],
        }),
        Answer::Produce(produce_answer()),
        Answer::Fetch(fetch_answer()),
        Answer::ListOffsets(ListOffsetsAnswer {
            rows: vec![ListedRow {
                tp: tp(0),
                error: ErrorCode::None,
                offset: Offset::new(12),
                timestamp_ms: -1,
                leader_epoch: LeaderEpoch::new(2),
            }],
        }),
        Answer::InitProducerId(InitProducerIdAnswer {
            producer_id: ProducerId::new(0),
            producer_epoch: ProducerEpoch::new(0),
        }),
        Answer::DeleteRecords(DeleteRecordsAnswer {
            rows: vec![DeletedRow { tp: tp(0), error: ErrorCode::None, log_start: Offset::new(99) }],
        }),
        Answer::GroupHeartbeat(GroupHeartbeatAnswer {
            member_epoch: MemberEpoch::new(9),
            granted: vec![
                TopicShare { topic: topic(1), name: "orders".into(), partitions: vec![0, 7] },
                TopicShare { topic: topic(2), name: String::new(), partitions: vec![] },
            ],
        }),
        Answer::OffsetCommit(OffsetCommitAnswer {
            rows: vec![
                CommittedRow { tp: tp(0), error: ErrorCode::None, message: String::new() },
                CommittedRow { tp: tp(1), error: ErrorCode::NotHolder, message: "not yours".into() },
            ],
        }),
        Answer::OffsetFetch(OffsetFetchAnswer { rows: vec![offset_row(4)] }),
        Answer::ListGroups(ListGroupsAnswer {
            groups: vec![ListedGroup { name: "billing".into(), members: 3 }],
            more: true,
        }),
        Answer::DescribeGroup(describe_group_answer()),
        Answer::DeleteGroup(DeleteGroupAnswer {}),
    ]
}

#[test]
fn golden_requests() {
    let requests = requests();
    assert_eq!(requests.iter().map(Request::kind).collect::<Vec<_>>(), Kind::ALL);
    for request in requests {
        let name = request.kind().name();
        let bytes = golden(&format!("request_{name}"), &request.encode());
        assert!(bytes.len().is_multiple_of(8), "{name}");
        assert_eq!(Request::decode(request.kind(), &bytes), Ok(request), "{name}");
    }
}

#[test]
fn golden_answers() {
    let answers = answers();
    assert_eq!(answers.iter().map(Answer::kind).collect::<Vec<_>>(), Kind::ALL);
    for answer in answers {
        let name = answer.kind().name();
        let bytes = golden(&format!("answer_{name}"), &answer.encode());
        assert!(bytes.len().is_multiple_of(8), "{name}");
        assert_eq!(Refusal::decode(&bytes), Ok(None), "{name}");
        assert_eq!(Answer::decode(answer.kind(), &bytes), Ok(answer), "{name}");
    }
}

#[test]
fn a_refusal_answers_every_kind() {
    let refusal =
        Refusal { code: ErrorCode::Throttled, message: "9 s of work are waiting".into(), throttle_ms: 9000 };
    let bytes = golden("refusal", &refusal.encode());
    assert_eq!(Refusal::decode(&bytes), Ok(Some(refusal.clone())));
    for &kind in Kind::ALL {
        let expected = Answer::Refused { kind, refusal: refusal.clone() };
        assert_eq!(expected.kind(), kind);
        assert_eq!(expected.encode(), bytes);
        assert_eq!(Answer::decode(kind, &bytes), Ok(expected));
    }
}

#[test]
fn a_newer_brokers_code_refuses_too() {
    let mut b = FlatBufferBuilder::new();
    let root = fb::Refusal::create(&mut b, &fb::RefusalArgs { error: 31, ..Default::default() });
    let refusal = Refusal::decode(&finish(b, root)).unwrap().unwrap();
    assert_eq!(refusal.code, ErrorCode::Unrecognised);
}

#[test]
fn empty_and_absent_are_told_apart() {
    for topics in [None, Some(vec![])] {
        let request = MetadataRequest { topics, auto_create: false };
        assert_eq!(MetadataRequest::decode(&request.encode()), Ok(request));
    }
    for shard in [None, Some(ShardId::new(0))] {
        let Request::Hello(request) = requests().remove(0) else { panic!("not a Hello") };
        let request = HelloRequest { shard, ..request };
        assert_eq!(HelloRequest::decode(&request.encode()), Ok(request));
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let Request::Hello(hello) = requests().remove(0) else { panic!("not a Hello") };
    let error = HelloRequest::decode(&HelloRequest { version_min: 0, ..hello.clone() }.encode()).unwrap_err();
    assert_eq!(error, MessageError::OutOfRange { field: "version_min", value: 0 });
    let error = HelloRequest::decode(&HelloRequest { version_min: 3, ..hello }.encode()).unwrap_err();
    assert_eq!(error, MessageError::OutOfRange { field: "version_max", value: 2 });
    assert_eq!(error.code(), ErrorCode::Malformed);

    let Answer::Hello(hello) = answers().remove(0) else { panic!("not a Hello") };
    let outside = HelloAnswer { shard: ShardId::new(2), ..hello };
    assert_eq!(
        HelloAnswer::decode(&outside.encode()),
        Err(MessageError::OutOfRange { field: "shard", value: 2 })
    );
    let unnamed =
        InitProducerIdAnswer { producer_id: ProducerId::NONE, producer_epoch: ProducerEpoch::new(0) };
    assert_eq!(
        InitProducerIdAnswer::decode(&unnamed.encode()),
        Err(MessageError::OutOfRange { field: "producer_id", value: -1 })
    );
    let Request::GroupHeartbeat(heartbeat) = requests().remove(11) else { panic!("not a heartbeat") };
    let joins = GroupHeartbeatRequest {
        member_epoch: MemberEpoch::new(0),
        leave: Leave::No,
        wishes: None,
        ..heartbeat
    };
    assert_eq!(
        GroupHeartbeatRequest::decode(&joins.encode()),
        Err(MessageError::Missing { field: "wishes" })
    );
    // A bare beginning without an error is no answer.
    let bare = Answer::DeleteTopic(DeleteTopicAnswer {}).encode();
    assert_eq!(Answer::decode(Kind::CreateTopic, &bare), Err(MessageError::Missing { field: "topic" }));
}

fn heartbeat_args<'b>(
    b: &mut FlatBufferBuilder<'b>,
) -> crate::generated::groups::GroupHeartbeatRequestArgs<'b> {
    let group = Some(b.create_string("billing"));
    let member = Some(b.create_vector(&[7u8; 16]));
    crate::generated::groups::GroupHeartbeatRequestArgs {
        group,
        member,
        member_epoch: 1,
        ..Default::default()
    }
}

#[test]
fn an_unknown_number_of_anything_is_refused() {
    use crate::generated::{fetch, groups, produce};

    let mut b = FlatBufferBuilder::new();
    let root = produce::ProduceRequest::create(
        &mut b,
        &produce::ProduceRequestArgs { acks: 3, ..Default::default() },
    );
    let error = ProduceRequest::decode(&finish(b, root)).unwrap_err();
    assert_eq!(error, MessageError::OutOfRange { field: "acks", value: 3 });

    let mut b = FlatBufferBuilder::new();
    let short = Some(b.create_vector(&[7u8; 15]));
    let args = groups::GroupHeartbeatRequestArgs { member: short, leave: 3, ..heartbeat_args(&mut b) };
    let root = groups::GroupHeartbeatRequest::create(&mut b, &args);
    let error = GroupHeartbeatRequest::decode(&finish(b, root)).unwrap_err();
    assert_eq!(error, MessageError::OutOfRange { field: "leave", value: 3 });

    let mut b = FlatBufferBuilder::new();
    let short = Some(b.create_vector(&[7u8; 15]));
    let args = groups::GroupHeartbeatRequestArgs { member: short, ..heartbeat_args(&mut b) };
    let root = groups::GroupHeartbeatRequest::create(&mut b, &args);
    let error = GroupHeartbeatRequest::decode(&finish(b, root)).unwrap_err();
    assert_eq!(error, MessageError::OutOfRange { field: "member length", value: 15 });

    let mut b = FlatBufferBuilder::new();
    let wishes = groups::MemberWishesArgs { assignor: 2, ..Default::default() };
    let wishes = Some(groups::MemberWishes::create(&mut b, &wishes));
    let args = groups::GroupHeartbeatRequestArgs { wishes, ..heartbeat_args(&mut b) };
    let root = groups::GroupHeartbeatRequest::create(&mut b, &args);
    let error = GroupHeartbeatRequest::decode(&finish(b, root)).unwrap_err();
    assert_eq!(error, MessageError::OutOfRange { field: "assignor", value: 2 });

    let mut b = FlatBufferBuilder::new();
    let place = wire_partition(tp(0));
    let args = fetch::ListOffsetsRowArgs { topic_partition: Some(&place), at: 3, timestamp_ms: 0 };
    let row = fetch::ListOffsetsRow::create(&mut b, &args);
    let rows = Some(b.create_vector(&[row]));
    let root = fetch::ListOffsetsRequest::create(&mut b, &fetch::ListOffsetsRequestArgs { rows });
    let error = ListOffsetsRequest::decode(&finish(b, root)).unwrap_err();
    assert_eq!(error, MessageError::OutOfRange { field: "at", value: 3 });

    let mut b = FlatBufferBuilder::new();
    let rows = Some(b.create_vector::<flatbuffers::WIPOffset<fetch::FetchRow<'_>>>(&[]));
    let tag_blooms = Some(b.create_vector(&[1_u64; 17]));
    let args = fetch::FetchRequestArgs { rows, tag_blooms, ..Default::default() };
    let root = fetch::FetchRequest::create(&mut b, &args);
    let error = FetchRequest::decode(&finish(b, root)).unwrap_err();
    assert_eq!(error, MessageError::OutOfRange { field: "tag_blooms", value: 17 });
}

#[test]
fn rows_must_lie_within_the_payload() {
    let produce = |claims: &[(u32, u32)]| ProduceRequest {
        acks: Acks::Leader,
        deadline_ms: 0,
        rows: claims.iter().map(|&(first_byte, bytes)| ProduceRow { tp: tp(0), first_byte, bytes }).collect(),
    };
    assert_eq!(produce(&[]).rows_within(0), Ok(()));
    assert_eq!(produce(&[(0, 96), (104, 96)]).rows_within(200), Ok(()));
    for (claims, row) in [
        (&[(0, 96), (104, 96)][..], 1),
        (&[(0, 104), (96, 96)], 1),
        (&[(96, 96), (0, 96)], 1),
        (&[(4, 96)], 0),
        (&[(0, 97)], 0),
        (&[(0, 96), (0, 96)], 1),
        (&[(u32::MAX - 7, u32::MAX - 7)], 0),
    ] {
        let error = produce(claims).rows_within(199).unwrap_err();
        let (first_byte, bytes) = claims[row];
        assert_eq!(error, MessageError::RowOutside { row, first_byte, bytes, payload_bytes: 199 });
        assert_eq!(error.code(), ErrorCode::Malformed);
    }
    assert_eq!(fetch_answer().rows_within(200), Ok(()));
    assert!(fetch_answer().rows_within(199).is_err());
}

#[test]
fn many_rows_pass_our_limits() {
    let rows: Vec<_> = (0..20_000).map(|n| ProduceRow { tp: tp(n), first_byte: n * 96, bytes: 96 }).collect();
    let request = ProduceRequest { acks: Acks::All, deadline_ms: 1, rows };
    assert_eq!(ProduceRequest::decode(&request.encode()).as_ref(), Ok(&request));

    let rows = vec![fetch_answer().rows.remove(0); 20_000];
    let answer = FetchAnswer { throttle_ms: 0, rows };
    assert_eq!(FetchAnswer::decode(&answer.encode()).as_ref(), Ok(&answer));

    let mut metadata = metadata_answer();
    let partition = metadata.topics[0].partitions[0].clone();
    metadata.topics[0].partitions = vec![partition; 20_000];
    assert_eq!(MetadataAnswer::decode(&metadata.encode()).as_ref(), Ok(&metadata));
}

#[test]
fn rows_that_share_their_bytes_do_not_multiply_work() {
    // 100,000 places that all point at one row: 400 kB that would become 100,000 rows.
    let mut b = FlatBufferBuilder::new();
    let place = wire_partition(tp(0));
    let args =
        crate::generated::produce::ProduceRowArgs { topic_partition: Some(&place), first_byte: 0, bytes: 96 };
    let row = crate::generated::produce::ProduceRow::create(&mut b, &args);
    let rows = Some(b.create_vector(&vec![row; 100_000]));
    let args = crate::generated::produce::ProduceRequestArgs { acks: 2, deadline_ms: 1, rows };
    let root = crate::generated::produce::ProduceRequest::create(&mut b, &args);
    assert!(matches!(ProduceRequest::decode(&finish(b, root)), Err(MessageError::Invalid(_))));
}

#[test]
fn mutated_headers_never_panic() {
    let mut rng = Rng(2);
    let originals: Vec<(Kind, Vec<u8>)> = requests()
        .iter()
        .map(|request| (request.kind(), request.encode()))
        .chain(answers().iter().map(|answer| (answer.kind(), answer.encode())))
        .collect();
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..2_000 {
        for (kind, original) in &originals {
            let bytes = rng.mutated(original);
            // Bytes of one kind are also read as another's: a peer may send anything.
            let other = Kind::ALL[rng.below(Kind::ALL.len())];
            for kind in [*kind, other] {
                for read in [
                    Request::decode(kind, &bytes).map(|request| request.encode()),
                    Answer::decode(kind, &bytes).map(|answer| answer.encode()),
                ] {
                    match read {
                        Ok(bytes) => accepted += usize::from(!bytes.is_empty()),
                        Err(_) => refused += 1,
                    }
                }
            }
        }
    }
    assert!(accepted > 1000 && refused > 1000, "{accepted} accepted, {refused} refused");
}
