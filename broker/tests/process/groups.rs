//! A consumer group of real processes: members that join, leave, are killed and are stopped while records come.
//!
//! Members are `corelog consume --group`; what each wrote, and when, is what was processed. `GROUP_SECONDS`,
//! `GROUP_RECORDS` (a second, over all partitions), `GROUP_VALUE_BYTES` make a longer or heavier run, `GROUP_SEED` another
//! one; `GROUP_STRICT=1` holds gaps against their targets, which a machine shared with other tests may miss.

use crate::support::{Broker, CORELOG, Random, data_folder, host_log, path, setting};
use corelog_client::{Acks, Client, NewTopic, Record};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const TOPIC: &str = "lines";
const GROUP: &str = "readers";
const PARTITIONS: u32 = 24;
const MEMBERS: usize = 6;
/// A member that goes on after it was stopped may still write what it had taken; what was written is read by then.
const AFTERMATH: Duration = Duration::from_secs(2);
/// How old what a member has not committed may be, where the store is not kept waiting by other tests.
const COMMIT_AGE_MAX: Duration = Duration::from_millis(3_500);
/// How often it is looked at what is committed.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_mins(2);
/// Every partition gets records this often.
const BEAT: Duration = Duration::from_millis(20);

/// One record, as a member wrote it.
#[derive(Clone, Copy)]
struct Seen {
    member: usize,
    at: Instant,
}

/// What all members wrote.
#[derive(Default)]
struct Ledger {
    records: Mutex<BTreeMap<(u32, u64), Vec<Seen>>>,
    /// Who said that he lost his session, and when.
    losses: Mutex<Vec<(usize, Instant)>>,
    /// What was seen to be committed in each partition, and when: only where it had moved.
    commits: Mutex<BTreeMap<u32, Vec<(Instant, u64)>>>,
    changed: Condvar,
}

impl Ledger {
    fn note(&self, member: usize, line: &str) {
        let (partition, offset) = line.trim().split_once(' ').unwrap();
        let place = (partition.parse().unwrap(), offset.parse().unwrap());
        let seen = Seen { member, at: Instant::now() };
        self.records.lock().unwrap().entry(place).or_default().push(seen);
        self.changed.notify_all();
    }

    fn note_committed(&self, partition: u32, next: u64) {
        let mut commits = self.commits.lock().unwrap();
        let seen = commits.entry(partition).or_default();
        if seen.last().is_none_or(|(_, last)| *last < next) {
            seen.push((Instant::now(), next));
        }
    }

    /// Waits until so many different records were processed.
    fn wait_for(&self, records: u64) {
        let seen = self.records.lock().unwrap();
        let short = |seen: &mut BTreeMap<(u32, u64), Vec<Seen>>| (seen.len() as u64) < records;
        let (seen, waited) = self.changed.wait_timeout_while(seen, PATIENCE, short).unwrap();
        assert!(!waited.timed_out(), "{} of {records} records were processed", seen.len());
    }
}

/// A member: a process, and who listens to it.
struct Member {
    number: usize,
    child: Child,
    listener: JoinHandle<()>,
}

/// What was done to a member.
#[derive(Default)]
struct Fate {
    killed: Option<Instant>,
    /// From when to when.
    stopped: Vec<(Instant, Option<Instant>)>,
}

impl Fate {
    fn mishaps(&self) -> impl Iterator<Item = Instant> {
        self.killed.into_iter().chain(self.stopped.iter().map(|(at, _)| *at))
    }

    /// Whether what was processed then may have been taken before a stop.
    fn is_aftermath(&self, at: Instant) -> bool {
        let after =
            |(from, to): &(Instant, Option<Instant>)| at >= *from && to.is_none_or(|to| at <= to + AFTERMATH);
        self.stopped.iter().any(after)
    }
}

/// Looks at what is committed until it is told to stop.
struct Observer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Observer {
    fn start(address: &str, ledger: &Arc<Ledger>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, ledger, address) = (Arc::clone(&stop), Arc::clone(ledger), address.to_owned());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(observe(&address, &ledger, &stopped));
        });
        Self { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

async fn observe(address: &str, ledger: &Ledger, stop: &AtomicBool) {
    let client = Client::connect(address).await.unwrap();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        // There is no group before its first member.
        let Ok(group) = client.admin().describe_group(GROUP).await else { continue };
        for part in group.partitions {
            if let Some(committed) = part.committed {
                ledger.note_committed(part.tp.partition, committed.get());
            }
        }
    }
}

/// A group under observation.
struct Group {
    broker: Broker,
    ledger: Arc<Ledger>,
    observer: Option<Observer>,
    members: Vec<Member>,
    fates: Vec<Fate>,
    session: Duration,
}

impl Group {
    fn new(broker: Broker, session: Duration) -> Self {
        let ledger = Arc::default();
        let observer = Some(Observer::start(&broker.address, &ledger));
        let mut group = Self { broker, ledger, observer, members: Vec::new(), fates: Vec::new(), session };
        for _ in 0..MEMBERS {
            group.join();
        }
        group
    }

    fn join(&mut self) {
        let number = self.fates.len();
        let session = format!("{}s", self.session.as_secs());
        let args =
            ["consume", TOPIC, "--group", GROUP, "--session-timeout", &session, "--format", "%p %o\\n"];
        let mut child = Command::new(CORELOG)
            .args(args)
            .env("CORELOG_BOOTSTRAP", &self.broker.address)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (out, ledger) = (BufReader::new(child.stdout.take().unwrap()), Arc::clone(&self.ledger));
        let (complaints, losses) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&self.ledger));
        let complained = std::thread::spawn(move || {
            for line in complaints.lines().map_while(Result::ok) {
                println!("member {number}: {line}");
                if line.contains("lost") {
                    losses.losses.lock().unwrap().push((number, Instant::now()));
                }
            }
        });
        let listener = std::thread::spawn(move || {
            // The last line of one that was killed may be cut short.
            for line in out.lines().map_while(Result::ok).filter(|line| line.contains(' ')) {
                ledger.note(number, &line);
            }
            complained.join().unwrap();
        });
        self.members.push(Member { number, child, listener });
        self.fates.push(Fate::default());
    }

    fn take(&mut self, random: &mut Random) -> Member {
        let place = random.below(self.members.len() as u64);
        self.members.remove(usize::try_from(place).unwrap())
    }

    /// Ctrl-C, and its end awaited: it commits and leaves.
    fn leave(member: Member) {
        let Member { mut child, listener, .. } = member;
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        listener.join().unwrap();
    }

    fn kill(&mut self, member: Member) {
        let Member { number, mut child, listener } = member;
        self.fates[number].killed = Some(Instant::now());
        child.kill().unwrap();
        child.wait().unwrap();
        listener.join().unwrap();
    }

    fn signal(&mut self, place: usize, signal: Signal) {
        let member = &self.members[place];
        kill_process(Pid::from_child(&member.child), signal).unwrap();
        let fate = &mut self.fates[member.number];
        if signal == Signal::STOP {
            fate.stopped.push((Instant::now(), None));
        } else if let Some((_, resumed)) = fate.stopped.last_mut() {
            *resumed = Some(Instant::now());
        }
    }

    /// Every member leaves, and nobody looks any more.
    fn end(&mut self) {
        for member in std::mem::take(&mut self.members) {
            Self::leave(member);
        }
        self.observer.take().unwrap().stop();
    }

    /// Whether a record may have been processed a second time: by one who went on after a stop, or since something
    /// happened to the first before his commit was seen.
    fn explains(&self, partition: u32, offset: u64, first: Seen, second: Seen) -> bool {
        // A machine may be too busy for a short session: then its member says so, some time after others went on.
        let losses = self.ledger.losses.lock().unwrap();
        let lost = |seen: Seen| {
            let of = losses.iter().filter(move |(member, _)| *member == seen.member);
            of.map(|(_, at)| *at).filter(move |at| *at + AFTERMATH >= seen.at)
        };
        let went_on = |at: Instant| at <= second.at + self.session + AFTERMATH;
        if self.fates[second.member].is_aftermath(second.at) || lost(second).any(went_on) {
            return true;
        }
        let fate = &self.fates[first.member];
        let since = if setting("GROUP_STRICT", 0) == 1 { COMMIT_AGE_MAX } else { PATIENCE };
        let hit = |at: Instant| at + AFTERMATH >= first.at && at <= second.at && at <= first.at + since;
        let commits = self.ledger.commits.lock().unwrap();
        let committed = |(at, next): &(Instant, u64)| *next > offset && *at + AFTERMATH < second.at;
        let hurt = fate.mishaps().any(hit) || lost(first).any(went_on);
        hurt && !commits.get(&partition).into_iter().flatten().any(committed)
    }
}

/// Produces lines to all partitions at an even rate until it is told to stop.
struct Source {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Source {
    fn start(address: &str) -> Self {
        let per_second = setting("GROUP_RECORDS", 2_400);
        let value_bytes = usize::try_from(setting("GROUP_VALUE_BYTES", 0)).unwrap();
        let (stop, address) = (Arc::new(AtomicBool::new(false)), address.to_owned());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(produce(&address, per_second, value_bytes, &stopped))
        });
        Self { stop, thread }
    }

    /// How many records there are.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

async fn produce(address: &str, per_second: u64, value_bytes: usize, stop: &AtomicBool) -> u64 {
    let client = Client::connect(address).await.unwrap();
    let producer = client.producer(TOPIC).acks(Acks::All).build().unwrap();
    let log = host_log();
    let lines: Vec<&[u8]> = log.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
    let mut lines = lines.iter().cycle();
    let began = tokio::time::Instant::now();
    let (mut sent, mut beat) = (0_u64, 0_u32);
    while !stop.load(Ordering::Relaxed) {
        beat += 1;
        let due = u64::from(beat) * u64::try_from(BEAT.as_millis()).unwrap() * per_second / 1_000;
        while sent < due {
            let mut value = lines.next().unwrap().to_vec();
            while value.len() < value_bytes {
                value.extend_from_slice(lines.next().unwrap());
            }
            let partition = u32::try_from(sent % u64::from(PARTITIONS)).unwrap();
            // Every ticket is answered by the flush at the end, or that fails.
            drop(producer.enqueue(Record::new(value).partition(partition)).await.unwrap());
            sent += 1;
        }
        // The rate is the load; nothing is waited for here.
        tokio::time::sleep_until(began + BEAT * beat).await;
    }
    producer.close().await.unwrap();
    sent
}

async fn create_topic(address: &str) {
    let client = Client::connect(address).await.unwrap();
    client.admin().ensure_topic(TOPIC, NewTopic::partitions(PARTITIONS)).await.unwrap();
}

fn start(folder: &tempfile::TempDir, session: Duration) -> Group {
    let broker = Broker::dev(&path(folder, "data"), 0, 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(create_topic(&broker.address));
    Group::new(broker, session)
}

/// The longest pauses, by what happened to the one who had the partition before.
#[derive(Default, Debug)]
struct Gaps {
    /// The partition stayed where it was.
    unmoved: Duration,
    /// Its holder let go of it, or left.
    handed_over: Duration,
    /// Its holder was killed or stopped, or whoever was to have it next.
    orphaned: Duration,
}

/// Checks that nothing is missing, and that only what may be is there twice.
fn check(group: &Group, produced: u64, began: Instant) -> (Gaps, u64) {
    let records = group.ledger.records.lock().unwrap();
    assert_eq!(records.len() as u64, produced, "records that were never produced, or are missing");
    let mut repeated = 0;
    for ((partition, offset), seen) in records.iter() {
        let share = produced / u64::from(PARTITIONS) + 1;
        assert!(*offset < share, "offset {offset} of partition {partition} was never produced");
        for pair in seen.windows(2) {
            repeated += 1;
            assert!(
                group.explains(*partition, *offset, pair[0], pair[1]),
                "offset {offset} of partition {partition} was processed by member {} and again by {}; {}",
                pair[0].member,
                pair[1].member,
                history(group, &records, *partition, began),
            );
        }
    }
    let mut gaps = Gaps::default();
    for partition in 0..PARTITIONS {
        let places = records.range((partition, 0)..(partition + 1, 0));
        let mut last: Option<Seen> = None;
        for seen in places.map(|(_, seen)| seen[0]).filter(|seen| seen.at > began) {
            if let Some(last) = last {
                let gap = seen.at.saturating_duration_since(last.at);
                let within = |mishap: Instant| mishap >= last.at && mishap <= seen.at;
                // Whoever was to have it next may have been hit before he could begin, and be waited for.
                let lately = |mishap: Instant| mishap + group.session >= last.at && mishap <= seen.at;
                let moved = last.member != seen.member;
                let kind = if group.fates[last.member].mishaps().any(within)
                    || moved && group.fates.iter().any(|fate| fate.mishaps().any(lately))
                {
                    &mut gaps.orphaned
                } else if !moved {
                    &mut gaps.unmoved
                } else {
                    &mut gaps.handed_over
                };
                *kind = gap.max(*kind);
            }
            last = Some(seen);
        }
    }
    (gaps, repeated)
}

/// Who processed what of a partition, and what happened to him, in milliseconds since the beginning.
fn history(
    group: &Group,
    records: &BTreeMap<(u32, u64), Vec<Seen>>,
    partition: u32,
    began: Instant,
) -> String {
    let ms = |at: Instant| at.saturating_duration_since(began).as_millis();
    let mut seen: Vec<(Instant, usize, u64)> = records
        .range((partition, 0)..(partition + 1, 0))
        .flat_map(|((_, offset), seen)| seen.iter().map(|seen| (seen.at, seen.member, *offset)))
        .collect();
    seen.sort_unstable();
    let mut text = String::new();
    for run in seen.chunk_by(|left, right| left.1 == right.1) {
        let (first, last) = (run[0], run[run.len() - 1]);
        let fate = &group.fates[first.1];
        let stopped: Vec<_> = fate.stopped.iter().map(|(from, to)| (ms(*from), to.map(ms))).collect();
        let _ = write!(
            text,
            "\nmember {}: {} to {} at {} to {} ms, killed {:?}, stopped {stopped:?}",
            first.1,
            first.2,
            last.2,
            ms(first.0),
            ms(last.0),
            fate.killed.map(ms),
        );
    }
    text
}

fn finish(mut group: Group, source: Source, began: Instant) -> u64 {
    let produced = source.stop();
    group.ledger.wait_for(produced);
    group.end();
    let committed = group.ledger.commits.lock().unwrap().len();
    assert_eq!(committed, PARTITIONS as usize, "partitions in which a commit was seen");
    let (gaps, repeated) = check(&group, produced, began);
    println!(
        "{produced} records, {repeated} processed twice, {} members in all; gaps {gaps:?}",
        group.fates.len()
    );
    if setting("GROUP_STRICT", 0) == 1 {
        assert!(gaps.unmoved <= Duration::from_millis(200), "{gaps:?}");
        assert!(gaps.handed_over <= group.session / 3, "{gaps:?}");
        assert!(gaps.orphaned <= group.session + Duration::from_secs(1), "{gaps:?}");
    }
    assert_eq!(group.broker.interrupt(), Some(0));
    repeated
}

#[test]
fn members_that_join_and_leave_process_every_record_once() {
    let (seconds, seed) = (setting("GROUP_SECONDS", 8), setting("GROUP_SEED", 1));
    let folder = data_folder();
    let mut group = start(&folder, Duration::from_secs(10));
    let source = Source::start(&group.broker.address);
    group.ledger.wait_for(u64::from(PARTITIONS));
    let (began, mut random) = (Instant::now(), Random(seed));
    for second in 0..seconds {
        if group.members.len() <= 3 || group.members.len() < 9 && random.below(2) == 0 {
            group.join();
        } else {
            let member = group.take(&mut random);
            Group::leave(member);
        }
        until(began + Duration::from_secs(second + 1));
    }
    let repeated = finish(group, source, began);
    assert_eq!(repeated, 0, "nobody was killed or stopped");
}

#[test]
fn members_that_die_or_hang_lose_no_record_and_repeat_what_was_not_committed() {
    let (seconds, seed) = (setting("GROUP_SECONDS", 8), setting("GROUP_SEED", 2));
    let folder = data_folder();
    let mut group = start(&folder, Duration::from_secs(2));
    let source = Source::start(&group.broker.address);
    group.ledger.wait_for(u64::from(PARTITIONS));
    let (began, mut random) = (Instant::now(), Random(seed));
    // Who was stopped goes on after twice the session timeout.
    let mut stopped: Option<(usize, u64)> = None;
    for second in 0..seconds + 5 {
        if let Some((number, _)) = stopped.take_if(|(_, until)| *until <= second) {
            let place = group.members.iter().position(|member| member.number == number).unwrap();
            group.signal(place, Signal::CONT);
        }
        let free = |member: &Member| stopped.is_none_or(|(number, _)| number != member.number);
        let places: Vec<usize> =
            (0..group.members.len()).filter(|&place| free(&group.members[place])).collect();
        let place = places[usize::try_from(random.below(places.len() as u64)).unwrap()];
        match random.below(3) {
            _ if second >= seconds => {}
            0 => {
                let member = group.members.remove(place);
                group.kill(member);
                group.join();
            }
            1 if stopped.is_none() => {
                group.signal(place, Signal::STOP);
                stopped = Some((group.members[place].number, second + 4));
            }
            _ if group.members.len() < 9 => group.join(),
            _ => {
                let member = group.members.remove(place);
                Group::leave(member);
            }
        }
        until(began + Duration::from_secs(second + 1));
    }
    assert!(stopped.is_none());
    finish(group, source, began);
}

/// The rhythm of the storm; nothing is waited for here.
fn until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}

#[test]
fn groups_are_read_shown_reset_and_deleted_by_command() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    let text = |args: &[&str]| String::from_utf8(broker.succeed(args, b"")).unwrap();
    let refused = |args: &[&str]| {
        let output = broker.run(args, b"");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(text(&["group", "list"]).contains("no groups yet"));
    assert_eq!(refused(&["group", "describe", "billing"]).0, 3);
    broker.succeed(&["topic", "create", "orders", "--partitions", "2"], b"");
    let lines = (0..100).fold(String::new(), |lines, number| lines + &format!("line {number}\n"));
    broker.succeed(&["produce", "orders", "--partition", "1"], lines.as_bytes());

    // In the middle of a batch, then on from there, then nothing.
    let read = |count: &[&str]| text(&[&["consume", "orders", "--group", "billing"], count].concat());
    let first = read(&["--count", "30"]);
    let rest = read(&["--until-end"]);
    assert_eq!(first + &rest, lines);
    assert_eq!(read(&["--until-end"]), "");
    assert!(text(&["group", "list"]).contains("billing  0"));

    let describe = || -> serde_json::Value {
        serde_json::from_str(&text(&["group", "describe", "billing", "--output", "json"])).unwrap()
    };
    let at = |described: &serde_json::Value| {
        let row = &described["partitions"][1];
        (row["committed"].as_u64(), row["lag_records"].as_u64())
    };
    assert_eq!(at(&describe()), (Some(100), Some(0)));
    let planned = text(&["group", "reset", "billing", "orders", "--shift", "-5", "--partition", "1"]);
    assert!(planned.contains("100        95") && planned.contains("--execute"), "{planned}");
    assert_eq!(at(&describe()), (Some(100), Some(0)));
    text(&["group", "reset", "billing", "orders", "--to", "40", "--partition", "1", "--execute"]);
    assert_eq!(at(&describe()), (Some(40), Some(60)));
    assert_eq!(read(&["--until-end"]).lines().count(), 60);

    // What comes while nobody is there is behind, too, also where the group never was.
    let altered = broker.run(&["topic", "alter", "orders", "--partitions", "3"], b"");
    let said = String::from_utf8(altered.stderr).unwrap();
    assert!(altered.status.success() && said.contains("belong to the new partitions"), "{said}");
    broker.succeed(&["produce", "orders", "--partition", "2"], b"a\nb\nc\n");
    let new = &describe()["partitions"][2];
    assert_eq!((new["committed"].as_u64(), new["lag_records"].as_u64()), (None, Some(3)));

    // What needs an empty group is refused while a member is there, and says what to do.
    let mut member = Command::new(CORELOG)
        .args(["consume", "orders", "--group", "billing", "--instance", "till-4"])
        .env("CORELOG_BOOTSTRAP", &broker.address)
        .spawn()
        .unwrap();
    crate::dev::until("it is a member", || describe()["members"][0]["instance"] == "till-4");
    for command in [
        &["group", "delete", "billing"][..],
        &["group", "reset", "billing", "orders", "--to", "0", "--execute"],
    ] {
        let (code, words) = refused(command);
        assert_eq!(code, 3, "{words}");
        assert!(words.contains("GROUP_NOT_EMPTY") && words.contains("Stop the members"), "{words}");
    }
    kill_process(Pid::from_child(&member), Signal::INT).unwrap();
    assert_eq!(member.wait().unwrap().code(), Some(130));
    // It has a name to come back under, so its seat is kept until its session ends: a new one takes it.
    assert_eq!(describe()["members"][0]["away"], true);
    assert_eq!(refused(&["group", "delete", "billing", "--topic", "orders"]).0, 3);
    let (code, words) = refused(&["consume", "orders", "--group", "a/b", "--until-end"]);
    assert!(code == 3 && words.contains("INVALID_GROUP"), "{words}");
    for usage in [
        &["group", "reset", "billing", "orders"][..],
        &["group", "reset", "billing", "orders", "--to", "0", "--shift", "1"],
        &["consume", "orders", "--group", "billing", "--partition", "1"],
        &["consume", "orders", "--instance", "till-4"],
    ] {
        assert_eq!(refused(usage).0, 2, "{usage:?}");
    }
    assert_eq!(broker.interrupt(), Some(0));
}

/// What was processed of each key: its numbers, in the order of processing.
type ByKey = std::cell::RefCell<BTreeMap<Vec<u8>, Vec<u64>>>;

async fn process_by_key(client: &Client, seen: &ByKey, records: usize) {
    let consumer = client.consumer(GROUP).topics([TOPIC]).build().unwrap();
    let processed = std::cell::Cell::new(0);
    let (mut random, most) = (Random(3), std::cell::Cell::new((0, 0)));
    let process = |record: corelog_client::ConsumedRecord| {
        let pause = Duration::from_micros(random.below(2_000));
        let (processed, most) = (&processed, &most);
        async move {
            let (at_work, at_most) = most.get();
            most.set((at_work + 1, at_most.max(at_work + 1)));
            // The work takes as long as it takes.
            tokio::time::sleep(pause).await;
            let number = u64::from_le_bytes(record.value.unwrap()[..].try_into().unwrap());
            seen.borrow_mut().entry(record.key.unwrap().to_vec()).or_default().push(number);
            processed.set(processed.get() + 1);
            most.set((most.get().0 - 1, most.get().1));
            if processed.get() >= records { Err("enough") } else { Ok(()) }
        }
    };
    let ended = consumer.for_each_key(8, process).await;
    assert!(matches!(ended, Err(corelog_client::ProcessError::Process("enough"))), "{ended:?}");
    assert!((4..=8).contains(&most.get().1), "{} records at work at once", most.get().1);
    consumer.close().await;
}

#[test]
fn records_are_processed_many_at_once_in_order_of_each_key_and_committed_without_a_gap() {
    const RECORDS: u64 = 2_000;
    const KEYS: u64 = 40;
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let seen = ByKey::default();
    runtime.block_on(async {
        create_topic(&broker.address).await;
        let client = Client::connect(&broker.address).await.unwrap();
        let producer = client.producer(TOPIC).build().unwrap();
        for number in 0..RECORDS {
            let key = (number % KEYS).to_string().into_bytes();
            drop(producer.enqueue(Record::new(number.to_le_bytes().to_vec()).key(key)).await.unwrap());
        }
        producer.close().await.unwrap();
        // The first ends in the middle: the record that it failed at comes again, and what is behind it.
        process_by_key(&client, &seen, 700).await;
        let first: u64 = seen.borrow().values().map(|numbers| numbers.len() as u64).sum();
        let committed = |group: corelog_client::GroupDescription| -> u64 {
            group
                .partitions
                .iter()
                .filter_map(|part| part.committed)
                .map(corelog_wire::ids::Offset::get)
                .sum()
        };
        let described = committed(client.admin().describe_group(GROUP).await.unwrap());
        assert!(described < first && described + 500 > first, "{described} of {first} are committed");
        let rest = RECORDS - described;
        process_by_key(&client, &seen, usize::try_from(rest).unwrap()).await;
        let all = committed(client.admin().describe_group(GROUP).await.unwrap());
        assert!(all >= RECORDS - 1 - 8 * 64, "{all} are committed");
    });
    let seen = seen.into_inner();
    assert_eq!(seen.len() as u64, KEYS);
    for (key, numbers) in seen {
        // It may have begun anew once, never skipped one.
        let begins_anew = numbers.windows(2).filter(|pair| pair[1] != pair[0] + KEYS);
        assert!(
            begins_anew.clone().count() <= 1 && begins_anew.clone().all(|pair| pair[1] <= pair[0]),
            "{numbers:?}"
        );
        let mut once = numbers.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len() as u64, RECORDS / KEYS, "{key:?}");
    }
    assert_eq!(broker.interrupt(), Some(0));
}

#[test]
fn a_member_whose_output_nobody_takes_stays_in_its_group() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    broker.succeed(&["topic", "create", "orders"], b"");
    // More than a pipe takes, so that the member has to wait.
    let line = [b"x".repeat(999), b"\n".to_vec()].concat();
    broker.succeed(&["produce", "orders", "--batch-bytes", "1000"], &line.repeat(500));
    let args = ["consume", "orders", "--group", "billing", "--session-timeout", "1s", "--count", "500"];
    let mut member = Command::new(CORELOG)
        .args(args)
        .env("CORELOG_BOOTSTRAP", &broker.address)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let describe = || -> serde_json::Value {
        let output = broker.succeed(&["group", "describe", "billing", "--output", "json"], b"");
        serde_json::from_slice(&output).unwrap()
    };
    let group = || String::from_utf8(broker.run(&["group", "list"], b"").stdout).unwrap();
    crate::dev::until("it is a member", || group().contains("billing  1"));
    let before = describe()["members"][0]["id"].clone();
    // Longer than its session.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_eq!(describe()["members"][0]["id"], before);
    }
    let out = BufReader::new(member.stdout.take().unwrap());
    assert_eq!(out.lines().map_while(Result::ok).count(), 500);
    assert!(member.wait().unwrap().success());
    assert_eq!(broker.interrupt(), Some(0));
}

#[test]
fn a_command_up_to_the_end_ends_though_producers_and_members_go_on() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    broker.succeed(&["topic", "create", "live", "--partitions", "2"], b"");
    let read = || {
        String::from_utf8(broker.succeed(&["consume", "live", "--group", "g", "--until-end"], b"")).unwrap()
    };
    let sent = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let mut all = std::thread::scope(|scope| {
        let producing = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = Client::connect(&broker.address).await.unwrap();
                let producer = client.producer("live").build().unwrap();
                while !over.load(Ordering::Relaxed) {
                    let number = sent.load(Ordering::Relaxed);
                    producer.send(format!("{number}\n")).await.unwrap();
                    sent.store(number + 1, Ordering::Relaxed);
                }
            });
        });
        // A failure here must not leave the producer at work for ever.
        let reading = scope.spawn(|| {
            let mut all = String::new();
            for _ in 0..3 {
                let before = sent.load(Ordering::Relaxed);
                all += &read();
                assert!(all.lines().count() as u64 >= before, "{before} were there when it began");
            }
            all
        });
        let all = reading.join();
        over.store(true, Ordering::Relaxed);
        producing.join().unwrap();
        all.unwrap()
    });
    all += &read();
    let mut numbers: Vec<u64> = all.lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..sent.into_inner()).collect::<Vec<_>>(), "each once");

    // A member that has every partition has read them all; another one that gets none need not wait for ever.
    let mut member = Command::new(CORELOG)
        .args(["consume", "live", "--group", "g"])
        .env("CORELOG_BOOTSTRAP", &broker.address)
        .spawn()
        .unwrap();
    let members = || {
        let described = broker.succeed(&["group", "describe", "g", "--output", "json"], b"");
        let described: serde_json::Value = serde_json::from_slice(&described).unwrap();
        described["members"].as_array().unwrap().len()
    };
    crate::dev::until("it is a member", || members() == 1);
    for _ in 0..3 {
        assert_eq!(read(), "");
    }
    // SIGTERM is a clean end: nobody waits for its session.
    kill_process(Pid::from_child(&member), Signal::TERM).unwrap();
    assert_eq!(member.wait().unwrap().code(), Some(143));
    assert_eq!(members(), 0);
    assert_eq!(broker.interrupt(), Some(0));
}
