use super::*;
use crate::meta::EmbeddedStore;
use corelog_core::group::{MemberInfo, Membership, Topics};
use corelog_core::limits::{OFFSET_METADATA_BYTES_MAX, OFFSETS_PER_PAGE};
use corelog_core::meta::values::{DataDirId, ProcessId};
use corelog_wire::ids::{BrokerId, LeaderEpoch, MemberId, Offset, TopicId, TopicPartition};
use corelog_wire::message::{Assignor, MemberWishes};
use std::time::Duration;

fn identity() -> ReplicaIdentity {
    ReplicaIdentity {
        broker: BrokerId::new(3),
        data_dir: DataDirId::from_bytes([1; 16]),
        process: ProcessId::new(1),
    }
}

fn keys() -> Keys {
    Keys::new("test").unwrap()
}

fn name() -> GroupName {
    GroupName::new("billing").unwrap()
}

fn topic() -> TopicId {
    TopicId::from_bytes([0xab; 16])
}

fn info(instance: Option<&str>) -> MemberInfo {
    let wishes = MemberWishes {
        session_timeout: Duration::from_secs(10),
        topics: vec!["orders".to_owned()],
        patterns: if instance.is_some() { vec!["or*".to_owned()] } else { Vec::new() },
        assignor: Assignor::Uniform,
        instance: instance.map(str::to_owned),
        client_name: "till".to_owned(),
    };
    MemberInfo::of(wishes).unwrap()
}

/// Two members, one partition on its way from the first to the second.
fn membership() -> Membership {
    let topics = Topics::from([("orders".to_owned(), (topic(), 3))]);
    let mut membership = Membership::default();
    membership.join(MemberId::new(1), info(None), &topics).unwrap();
    membership.join(MemberId::new(2), info(Some("till-4")), &topics).unwrap();
    membership.go_away(MemberId::new(2), &topics);
    membership
}

fn committed(offset: u64, metadata: &str) -> Committed {
    Committed {
        offset: Offset::new(offset),
        leader_epoch: LeaderEpoch::new(2),
        metadata: metadata.to_owned(),
    }
}

fn pages(rows: &[(u32, u64)]) -> Pages {
    let mut pages = Pages::new();
    for &(partition, offset) in rows {
        let page = PageId::of(TopicPartition::new(topic(), partition));
        pages.entry(page).or_default().insert(partition, committed(offset, ""));
    }
    pages
}

fn run<T>(test: impl AsyncFnOnce(GroupStore, Store) -> T) -> T {
    let directory = tempfile::tempdir().unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let store = Store::Embedded(EmbeddedStore::open(&directory.path().join("meta.redb")).unwrap());
        test(GroupStore::new(store.clone(), keys(), identity()), store).await
    })
}

#[test]
fn version_1_is_written_as_it_was() {
    let key = keys().group(&name());
    let written = values::write_group(&key, &membership(), identity()).unwrap();
    let golden = concat!(
        r#"{"version":1,"coordinator":3,"epoch":2,"members":["#,
        r#"{"id":"00000000000000000000000000000001","epoch":2,"session_timeout_ms":10000,"#,
        r#""topics":["orders"],"assignor":"uniform","client_name":"till"},"#,
        r#"{"id":"00000000000000000000000000000002","epoch":2,"away":true,"session_timeout_ms":10000,"#,
        r#""topics":["orders"],"patterns":["or*"],"assignor":"uniform","instance":"till-4","client_name":"till"}],"#,
        r#""held":[{"topic":"abababab-abab-abab-abab-abababababab","#,
        r#""partitions":[[0,0,1,0],[1,0,1,0],[2,0,1,1]]}]}"#,
    );
    assert_eq!(std::str::from_utf8(&written).unwrap(), golden);
    assert_eq!(values::read_group(&key, &written).unwrap(), membership());

    let rows = BTreeMap::from([(1, committed(7, "")), (15, committed(u64::MAX, "half \"way\""))]);
    let page = PageId { topic: topic(), first: 0 };
    let written = values::write_page(&key, &rows).unwrap();
    let golden = concat!(
        r#"{"version":1,"offsets":[{"partition":1,"offset":7,"leader_epoch":2},"#,
        r#"{"partition":15,"offset":18446744073709551615,"leader_epoch":2,"metadata":"half \"way\""}]}"#,
    );
    assert_eq!(std::str::from_utf8(&written).unwrap(), golden);
    let mut read = BTreeMap::new();
    values::read_page(&key, page, &written, &mut read).unwrap();
    assert_eq!(read.into_iter().map(|(tp, row)| (tp.partition, row)).collect::<BTreeMap<_, _>>(), rows);
}

#[test]
fn what_nobody_wrote_is_refused() {
    let key = keys().group(&name());
    let written = values::write_group(&key, &membership(), identity()).unwrap();
    let written = std::str::from_utf8(&written).unwrap();
    for (from, to) in [
        (r#""version":1"#, r#""version":2"#),
        (r#""version":1"#, r#""version":0"#),
        ("[2,0,1,1]", "[2,2,1,1]"),
        ("[2,0,1,1]", "[2,0,1,7]"),
        ("[2,0,1,1]", "[2,0,9,1]"),
        (r#""epoch":2,"members""#, r#""epoch":1,"members""#),
        ("uniform", "sticky"),
        ("10000", "1"),
        ("abababab-abab", "abababab_abab"),
        (r#""away":true"#, r#""away":true,"new":1"#),
        ("0000000000000002", "000000000000000Z"),
    ] {
        assert!(written.contains(from), "{from}");
        let spoilt = written.replacen(from, to, 1);
        assert!(values::read_group(&key, spoilt.as_bytes()).is_err(), "{from} -> {to}");
    }
    let page = PageId { topic: topic(), first: 16 };
    let row = br#"{"version":1,"offsets":[{"partition":15,"offset":7,"leader_epoch":2}]}"#;
    assert!(values::read_page(&key, page, row, &mut BTreeMap::new()).is_err());
}

#[test]
fn a_group_is_stored_read_and_deleted_whole() {
    run(async |groups, store| {
        assert_eq!(groups.load(&name()).await.unwrap(), (None, None));
        let put = Change::Put(membership());
        let claim = groups.store(&name(), &put, pages(&[(0, 5), (2, 6), (40, 7)]), None).await.unwrap();
        let claim = groups.store(&name(), &Change::Keep, pages(&[(40, 8)]), claim).await.unwrap();
        let (stored, claim) = {
            let all = groups.read_all().await.unwrap();
            assert_eq!(all[..], [(name(), all[0].1.clone(), claim)]);
            let (stored, claim) = groups.load(&name()).await.unwrap();
            assert_eq!(stored, Some(all[0].1.clone()));
            (stored.unwrap(), claim)
        };
        assert_eq!(stored.membership, membership());
        let offsets: Vec<_> =
            stored.offsets.iter().map(|(tp, row)| (tp.partition, row.offset.get())).collect();
        assert_eq!(offsets, [(0, 5), (2, 6), (40, 8)]);
        let none = pages(&[(0, 0), (40, 0)]).into_keys().map(|page| (page, BTreeMap::new())).collect();
        assert_eq!(groups.store(&name(), &Change::Delete, none, claim).await.unwrap(), None);
        assert_eq!(store.range(keys().root()).await.unwrap().entries, []);
    });
}

#[test]
fn a_claim_makes_all_changes_fail_that_were_on_their_way() {
    run(async |groups, _store| {
        let put = Change::Put(membership());
        let first = groups.store(&name(), &put, Pages::new(), None).await.unwrap();
        let (_, second) = groups.load(&name()).await.unwrap();
        assert_ne!(first, second);
        for claim in [None, first] {
            let late = groups.store(&name(), &Change::Keep, pages(&[(0, 5)]), claim).await;
            assert!(matches!(late, Err(GroupStoreError::Claimed { .. })), "{late:?}");
        }
        groups.store(&name(), &Change::Keep, pages(&[(0, 6)]), second).await.unwrap();
    });
}

#[test]
fn more_than_one_transaction_holds_is_stored_in_several() {
    run(async |groups, _store| {
        let long = "\"".repeat(OFFSET_METADATA_BYTES_MAX);
        let mut pages = Pages::new();
        for partition in 0..200 * OFFSETS_PER_PAGE {
            let page = PageId::of(TopicPartition::new(topic(), partition));
            pages.entry(page).or_default().insert(partition, committed(1, &long));
        }
        let put = Change::Put(membership());
        let claim = groups.store(&name(), &put, pages.clone(), None).await.unwrap();
        let (stored, _, held) = groups.read_all().await.unwrap().remove(0);
        assert_eq!((stored, held), (name(), claim));
        let offsets = groups.read_all().await.unwrap().remove(0).1.offsets;
        assert_eq!(offsets.len(), pages.values().map(BTreeMap::len).sum::<usize>());
        let none = pages.into_keys().map(|page| (page, BTreeMap::new())).collect();
        assert_eq!(groups.store(&name(), &Change::Delete, none, claim).await.unwrap(), None);
        assert_eq!(groups.read_all().await.unwrap(), []);
    });
}
