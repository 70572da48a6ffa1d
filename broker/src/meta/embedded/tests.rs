//! The embedded store on a real file: conformance, restart, damage, shared commits.

use std::collections::BTreeSet;
use std::path::PathBuf;

use corelog_core::meta::conformance::{self, Runner, SCRIPTS};
use corelog_core::meta::{Compare, Event, Op, TxnOutcome, TxnRefusal, VALUE_BYTES_MAX};
use corelog_wire::ids::{ShardId, TopicId, TopicPartition};

use super::*;

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meta.redb");
        Self { _directory: directory, path }
    }

    fn open(&self) -> EmbeddedStore {
        EmbeddedStore::open(&self.path).unwrap()
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn put(key: &str, value: &str) -> Txn {
    let op = Op::put(Key::new(key), Bytes::copy_from_slice(value.as_bytes()));
    Txn { then: vec![op], ..Txn::default() }
}

async fn values(store: &EmbeddedStore, prefix: &str) -> Vec<String> {
    let range = store.range(Key::new(prefix)).await.unwrap();
    range
        .entries
        .iter()
        .map(|entry| format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)))
        .collect()
}

/// Takes changes from a watch until there are as many as wanted.
async fn collect(watch: &mut Watch, wanted: usize) -> Result<Vec<Event>, StoreError> {
    let mut events = Vec::new();
    while events.len() < wanted {
        events.extend(watch.next().await?.events);
    }
    Ok(events)
}

/// Watches may lapse when they are opened; the script sees it when it asks.
async fn perform(
    store: &EmbeddedStore,
    watches: &mut Vec<Result<Watch, StoreError>>,
    command: conformance::Command,
) -> conformance::Answer {
    use conformance::Answer;
    match command {
        conformance::Command::Get(key) => Answer::Entry(store.get(key).await.unwrap()),
        conformance::Command::Range(prefix) => Answer::Range(store.range(prefix).await.unwrap()),
        conformance::Command::Txn(txn) => Answer::Txn(store.txn(txn).await.map_err(|error| match error {
            StoreError::Refused(refusal) => refusal,
            error => panic!("{error}"),
        })),
        conformance::Command::Open => Answer::Session(store.open_session().await.unwrap()),
        conformance::Command::End(session) => {
            store.end_session(session).await.unwrap();
            Answer::Done
        }
        conformance::Command::Watch { prefix, after, .. } => {
            watches.push(store.watch(prefix, after).await);
            Answer::Done
        }
        conformance::Command::Next { watch, events } => {
            Answer::Events(Ok(collect(watches[watch].as_mut().unwrap(), events).await.unwrap()))
        }
        conformance::Command::NextLapse { watch } => match watches[watch].as_ref() {
            Err(StoreError::Compacted(compacted)) => Answer::Events(Err(*compacted)),
            other => panic!("expected a lapse, got {other:?}"),
        },
        conformance::Command::Compact(revision) => {
            store.compact(revision).await.unwrap();
            Answer::Done
        }
    }
}

#[test]
fn it_follows_every_script() {
    let place = Place::new();
    run(async {
        let store = place.open();
        for script in SCRIPTS {
            let mut runner = Runner::new(script, &format!("/test/{}/", script.name));
            let mut watches = Vec::new();
            while let Some(command) = runner.command() {
                let answer = perform(&store, &mut watches, command).await;
                runner.answer(answer).unwrap();
            }
        }
    });
}

#[test]
fn what_was_answered_is_there_after_a_restart() {
    let place = Place::new();
    run(async {
        let store = place.open();
        store.txn(put("/a", "1")).await.unwrap();
        let second = store.txn(put("/a", "2")).await.unwrap().revision;
        store.close().await;
        let store = place.open();
        let entry = store.get(Key::new("/a")).await.unwrap().unwrap();
        assert_eq!((&entry.value[..], entry.mod_revision), (&b"2"[..], second));
        assert_eq!(entry.create_revision, Revision::new(1));
        let third = store.txn(put("/b", "3")).await.unwrap().revision;
        assert_eq!(third, second.next());
        // What happened before the restart is no longer known in detail.
        let late = store.watch(Key::new("/"), Revision::new(1)).await.unwrap_err();
        assert_eq!(late, StoreError::Compacted(corelog_core::meta::Compacted { up_to: second }));
        let mut watch = store.watch(Key::new("/"), second).await.unwrap();
        assert_eq!(watch.next().await.unwrap().events[0].key(), &Key::new("/b"));
    });
}

/// The bytes on disk after a commit, without a close: what a kill -9 leaves.
#[test]
fn what_was_answered_survives_a_kill() {
    let place = Place::new();
    let copy = Place::new();
    run(async {
        let store = place.open();
        for number in 0..20 {
            store.txn(put(&format!("/{number:02}"), "x")).await.unwrap();
            std::fs::copy(&place.path, &copy.path).unwrap();
            let survivor = copy.open();
            assert_eq!(values(&survivor, "/").await.len(), number + 1);
            survivor.close().await;
        }
    });
}

#[test]
fn sessions_end_with_their_process() {
    let place = Place::new();
    run(async {
        let store = place.open();
        let session = store.open_session().await.unwrap();
        let op = Op::Put { key: Key::new("/live"), value: Bytes::new(), session: Some(session) };
        let before = store.txn(Txn { then: vec![op], ..put("/kept", "1") }).await.unwrap().revision;
        store.txn(put("/kept", "1")).await.unwrap();
        store.close().await;
        let store = place.open();
        assert_eq!(values(&store, "/").await, ["/kept=1"]);
        assert!(store.range(Key::new("/")).await.unwrap().revision > before.next());
        let op = Op::Put { key: Key::new("/live"), value: Bytes::new(), session: Some(session) };
        let late = store.txn(Txn { then: vec![op], ..Txn::default() }).await;
        assert_eq!(late, Err(StoreError::Refused(TxnRefusal::SessionEnded { session })));
    });
}

#[test]
fn a_second_opener_is_refused() {
    let place = Place::new();
    run(async {
        let store = place.open();
        assert!(matches!(EmbeddedStore::open(&place.path), Err(OpenError::InUse { .. })));
        store.close().await;
        assert_eq!(store.get(Key::new("/a")).await, Err(StoreError::Closed));
        place.open();
    });
}

#[test]
fn dropping_the_last_handle_closes_the_file() {
    let place = Place::new();
    run(async {
        let store = place.open();
        let mut watch = store.watch(Key::new("/"), Revision::ZERO).await.unwrap();
        drop(store);
        // The watch ends when the thread has let the file go.
        assert_eq!(watch.next().await, Err(StoreError::Closed));
    });
}

#[test]
fn foreign_and_newer_files_are_refused_and_left_untouched() {
    let foreign = Place::new();
    std::fs::write(&foreign.path, vec![7; 100_000]).unwrap();
    let before = std::fs::read(&foreign.path).unwrap();
    let error = EmbeddedStore::open(&foreign.path).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert_eq!(std::fs::read(&foreign.path).unwrap(), before);

    let newer = Place::new();
    {
        let database = redb::Database::create(&newer.path).unwrap();
        let write = database.begin_write().unwrap();
        let format: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("format");
        write.open_table(format).unwrap().insert("version", 2).unwrap();
        write.commit().unwrap();
    }
    let before = std::fs::read(&newer.path).unwrap();
    let error = EmbeddedStore::open(&newer.path).unwrap_err();
    assert!(matches!(error, OpenError::Newer { version: 2, .. }), "{error}");
    assert_eq!(std::fs::read(&newer.path).unwrap(), before);
}

#[test]
fn a_first_start_that_was_cut_short_is_finished() {
    let empty = Place::new();
    std::fs::write(&empty.path, b"").unwrap();
    empty.open();
    let blank = Place::new();
    drop(redb::Database::create(&blank.path).unwrap());
    run(async {
        assert_eq!(blank.open().txn(put("/a", "1")).await.unwrap().revision, Revision::new(1));
    });
}

#[test]
fn a_damaged_file_is_refused_or_whole_and_never_changed_when_refused() {
    let place = Place::new();
    run(async {
        let store = place.open();
        for number in 0..50 {
            store.txn(put(&format!("/key/{number:02}"), &"value".repeat(50))).await.unwrap();
        }
        store.close().await;
    });
    let whole = std::fs::read(&place.path).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let mut refused = 0;
    for at in (0..used).step_by(used / 300) {
        if whole[at] == 0 {
            continue;
        }
        let hurt = Place::new();
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&hurt.path, &bytes).unwrap();
        match EmbeddedStore::open(&hurt.path) {
            Err(_) => {
                refused += 1;
                assert_eq!(std::fs::read(&hurt.path).unwrap(), bytes, "changed at {at}");
            }
            Ok(store) => run(async {
                assert_eq!(values(&store, "/key/").await.len(), 50, "byte {at}");
                store.close().await;
            }),
        }
    }
    assert!(refused > 0);
    for length in [1, 100, 4096, whole.len() / 2, used] {
        let hurt = Place::new();
        std::fs::write(&hurt.path, &whole[..length]).unwrap();
        assert!(EmbeddedStore::open(&hurt.path).is_err(), "cut at {length}");
        assert_eq!(std::fs::read(&hurt.path).unwrap(), whole[..length]);
    }
}

#[test]
fn waiting_transactions_share_a_commit_and_keep_their_order() {
    let place = Place::new();
    run(async {
        let store = place.open();
        let mut watch = store.watch(Key::new("/"), Revision::ZERO).await.unwrap();
        let writers = (0..200).map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.txn(put(&format!("/{number}"), "x")).await.unwrap().revision })
        });
        let writers: Vec<_> = writers.collect();
        let mut revisions = BTreeSet::new();
        for writer in writers {
            revisions.insert(writer.await.unwrap());
        }
        assert_eq!(revisions.len(), 200);
        let seen: Vec<Revision> =
            collect(&mut watch, 200).await.unwrap().iter().map(Event::revision).collect();
        assert_eq!(seen, revisions.into_iter().collect::<Vec<_>>());
    });
}

#[test]
fn of_many_that_compare_at_once_one_wins() {
    let place = Place::new();
    run(async {
        let store = place.open();
        let tries = (0..50).map(|number: u32| {
            let store = store.clone();
            let compares = vec![Compare::Absent(Key::new("/a"))];
            let txn =
                Txn { compares, otherwise_reads: vec![Key::new("/a")], ..put("/a", &number.to_string()) };
            tokio::spawn(async move { store.txn(txn).await.unwrap() })
        });
        let tries: Vec<_> = tries.collect();
        let mut won = 0;
        for attempt in tries {
            match attempt.await.unwrap().outcome {
                TxnOutcome::Done => won += 1,
                TxnOutcome::Refused(reads) => {
                    assert_eq!(reads[0].as_ref().unwrap().mod_revision, Revision::new(1));
                }
            }
        }
        assert_eq!(won, 1);
    });
}

#[test]
fn a_slow_watch_is_told_and_misses_nothing_unknowingly() {
    let place = Place::new();
    run(async {
        let store = place.open();
        let mut slow = store.watch(Key::new("/"), Revision::ZERO).await.unwrap();
        let writers = (0..1_100).map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.txn(put("/a", &number.to_string())).await.unwrap() })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        assert!(matches!(slow.next().await, Err(StoreError::Compacted(_))));
    });
}

#[test]
fn a_value_too_large_is_refused() {
    let place = Place::new();
    run(async {
        let store = place.open();
        let large = "x".repeat(VALUE_BYTES_MAX + 1);
        let refused = store.txn(put("/a", &large)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Refused(TxnRefusal::ValueTooLarge { .. })));
        assert_eq!(store.get(Key::new("/a")).await, Ok(None));
    });
}

#[test]
fn a_placement_is_recorded_once_and_stays() {
    let place = Place::new();
    let tp = |partition| TopicPartition::new(TopicId::from_bytes([5; 16]), partition);
    run(async {
        let store = place.open();
        let first = [(tp(0), ShardId::new(1)), (tp(1), ShardId::new(0))];
        assert_eq!(store.place(&first).await.unwrap(), first);
        let other = [(tp(1), ShardId::new(3)), (tp(2), ShardId::new(3))];
        assert_eq!(store.place(&other).await.unwrap(), [(tp(1), ShardId::new(0)), (tp(2), ShardId::new(3))]);
        store.close().await;
        let store = place.open();
        store.forget_placements(&[tp(0)]).await.unwrap();
        let left = store.placements().await.unwrap();
        assert_eq!(left, [(tp(1), ShardId::new(0)), (tp(2), ShardId::new(3))]);
        assert_eq!(store.range(Key::new("/")).await.unwrap().revision, Revision::ZERO);
    });
}
