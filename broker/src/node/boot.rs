//! Boot: from settings to a serving broker, and back to a clean stop.
//!
//! Called by the `dev` and `serve` commands. The order is the point: the data directory is locked and the port taken
//! before anything is touched; administration answers before anything is recovered; every shard has recovered before
//! metadata says what it leads; it leads before a connection is accepted. At the stop the same way back: connections, then shards, then the metadata store.
//! Threads: this one runs the control plane (tokio); every shard has a core of its own.

use super::command::{COMMANDS_MAX, Command, ShardLink, ShardReport};
use super::config::Config;
use super::control::{Control, Shown};
use super::descriptors;
use super::groups::{Groups, LagMeter, Protecting};
use super::layout::{DataFolder, LayoutError};
use super::operators::Operators;
use super::pump::Pump;
use super::shard::ShardHandle;
use crate::admin::gather::{Gatherer, ShardSource};
use crate::admin::state::BrokerInfo;
use crate::disk::{Folders, Queues};
use crate::meta::control::{ControlError, ControlPlane, random_bytes};
use crate::meta::embedded::OpenError;
use crate::meta::groups::{GroupStore, GroupStoreError};
use crate::meta::{EmbeddedStore, Store, StoreError};
use crate::net::{Doors, Endpoint, ListenFault, Net, NetConfig, Port, ShardListener, View, mesh};
use crate::rt::{self, ShardContext, StartError};
use corelog_core::group::{CoordinatorSettings, Topics};
use corelog_core::limits;
use corelog_core::meta::keys::{ClusterNameError, Keys};
use corelog_core::meta::values::{DataDirId, ProcessId, ReplicaIdentity};
use corelog_core::recovery::Report;
use corelog_core::shard::ShardConfig;
use corelog_wire::ids::{BrokerId, ShardId, TopicId, TopicPartition};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

/// Control requests that may wait.
const CONTROL_REQUESTS_MAX: usize = 1_024;
/// Requests about groups that may wait to be looked at; whoever commits and beats does so often.
const GROUP_REQUESTS_MAX: usize = 8_192;
/// How long a port in use is tried, and how often.
const PORT_PATIENCE: Duration = Duration::from_secs(1);
/// See [`PORT_PATIENCE`].
const PORT_RETRY: Duration = Duration::from_millis(20);
/// Exit code of a process that an interrupt ended.
const INTERRUPTED: i32 = 130;
/// How long connections may take to finish at a stop.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a shard may take to make everything durable at a stop; a device that hangs is left behind.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// How long the control plane may take to end what it does, and the metadata store to close.
const CONTROL_PATIENCE: Duration = Duration::from_secs(5);

/// Why a broker did not start, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The data directory.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The data directory was made with other numbers.
    #[error("{path} was made with {found} {what}; start with that number, or with another data directory")]
    OtherLayout {
        /// The directory.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What it was made with.
        found: u64,
    },
    /// The data directory's identity is not one.
    #[error("the data_id in layout.json is not a uuid")]
    DataId,
    /// The port.
    #[error(transparent)]
    Listen(#[from] ListenFault),
    /// The administration's port.
    #[error("cannot listen on {address} for administration: {source}")]
    Admin {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The cluster's name.
    #[error(transparent)]
    Cluster(#[from] ClusterNameError),
    /// The metadata store's file.
    #[error(transparent)]
    MetaOpen(#[from] OpenError),
    /// The metadata store.
    #[error(transparent)]
    Meta(#[from] StoreError),
    /// The control plane.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The consumer groups.
    #[error(transparent)]
    Groups(#[from] GroupStoreError),
    /// The executors.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A shard's files.
    #[error("shard {shard}: {what}")]
    Shard {
        /// Which.
        shard: usize,
        /// What is wrong.
        what: String,
    },
    /// The system refuses something small.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// What a started broker tells whoever started it.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where operators look.
    pub admin: SocketAddr,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Whether it was made by this start.
    pub is_new: bool,
    /// Shards.
    pub shards: u16,
    /// What each shard recovered.
    pub reports: Vec<Report>,
    /// From the start of boot until connections are accepted.
    pub took: Duration,
}

/// What one shard's thread is given.
struct Work {
    endpoint: Endpoint,
    net: Arc<NetConfig>,
    folders: Folders,
    config: ShardConfig,
    clock: rt::Clock,
    commands: mpsc::Receiver<Command>,
    doors: Doors,
    views: watch::Receiver<Arc<View>>,
    up: oneshot::Sender<Result<Up, String>>,
    listener: oneshot::Receiver<ShardListener>,
}

/// A shard that recovered.
struct Up {
    report: Report,
    partitions: Vec<TopicPartition>,
}

/// Starts a broker, calls `ready` when it serves, and runs until it is told to stop (SIGINT, SIGTERM).
///
/// # Errors
/// See [`BootError`].
pub fn run(config: &Config, pin: bool, ready: impl FnOnce(&Ready)) -> Result<(), BootError> {
    let began = Instant::now();
    let folder = DataFolder::open(&config.data_dir, config.shards, &shard_config(config, config.shards, 0))?;
    // Left by a broker that was killed: from here on it would be a lie.
    forget_ready(folder.path())?;
    check_layout(&folder, config)?;
    let port = take_port(config.listen)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| BootError::System { what: "starting the control thread", source })?;
    let running = runtime.block_on(serve(config, pin, &folder, port, began, ready))?;
    // Every shard closed its files, or is left behind with a device that hangs.
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Some(running) = running {
        running.join()?;
    }
    forget_ready(folder.path())
}

async fn serve(
    config: &Config,
    pin: bool,
    folder: &DataFolder,
    port: Port,
    began: Instant,
    ready: impl FnOnce(&Ready),
) -> Result<Option<rt::Running>, BootError> {
    let mut stop = StopSignals::catch()?;
    let mut operators = Operators::begin(config.admin).await?;
    let store = EmbeddedStore::open(&folder.path().join("meta.redb"))?;
    let kept = Store::Embedded(store.clone());
    let keys = Keys::new(&config.cluster)?;
    let identity = identity(config.broker, folder)?;
    let (plane, leadership) =
        ControlPlane::start(kept.clone(), keys.clone(), identity, config.topic_defaults.clone()).await?;

    let address = port.address();
    let (view, views) = watch::channel(Arc::new(View::default()));
    let (topics, known_topics) = watch::channel(Arc::new(Topics::new()));
    let (protecting, known_protecting) = watch::channel(Arc::new(Protecting::new()));
    let (control, requests) = mpsc::channel(CONTROL_REQUESTS_MAX);
    let (groups, group_requests) = mpsc::channel(GROUP_REQUESTS_MAX);
    let doors = Doors { control, groups };
    let (works, mut sides) = works(config, folder, &doors, &views);
    let running = rt::start(&rt::Options { pin, ..rt::Options::default() }, works, shard_main)?;
    let up = tokio::select! {
        up = all_up(&mut sides) => up,
        // Nothing was accepted yet, so nothing is lost by ending here and now.
        () = stop.any() => std::process::exit(INTERRUPTED),
    };
    let (reports, held) = match up {
        Ok(up) => up,
        Err(error) => {
            stop_shards(&sides).await;
            running.join()?;
            return Err(error);
        }
    };

    let advertised = config.advertised.clone().unwrap_or_else(|| address.to_string());
    let links: Vec<ShardLink> = sides.iter().map(|side| side.commands.clone()).collect();
    let auto_create = config.auto_create;
    let shown = Shown { view, topics, protecting };
    let control =
        Control::new(plane, store.clone(), links.clone(), advertised, config.broker, auto_create, shown);
    let mut control = control.await?;
    control.begin(leadership, held).await?;
    let (stop_control, control_stopped) = oneshot::channel();
    let control = tokio::spawn(control.run(requests, control_stopped));
    let groups = GroupStore::new(kept, keys, identity);
    let meter = LagMeter { views, shards: links };
    let groups = Groups::new(groups, group_settings(config), known_topics, known_protecting, meter).await?;
    let (stop_groups, groups_stopped) = oneshot::channel();
    let groups = tokio::spawn(groups.run(group_requests, groups_stopped));
    accept(&mut sides, port)?;
    operators.serve(Gatherer {
        broker: broker_info(config, folder, address),
        started: began,
        doors,
        shards: shard_sources(folder, &sides, &running),
    });

    let started = Ready {
        address,
        admin: operators.address,
        data_dir: folder.path().to_owned(),
        is_new: folder.is_new,
        shards: folder.layout().shards,
        reports,
        took: began.elapsed(),
    };
    write_ready(&started)?;
    ready(&started);
    stop.any().await;
    tracing::info!("stopping; interrupt once more to end at once");
    stop.end_at_the_next();
    operators.stopping();
    // Whoever waits for news of a group would hold up the connections.
    drop(stop_groups);
    drop(tokio::time::timeout(CONTROL_PATIENCE, groups).await);
    let clean = stop_shards(&sides).await;
    if !clean {
        tracing::warn!("not every shard came to its end in time: the next start replays its journal");
    }
    operators.end();
    drop(stop_control);
    // What it does may wait for a shard that does not end.
    drop(tokio::time::timeout(CONTROL_PATIENCE, control).await);
    drop(tokio::time::timeout(CONTROL_PATIENCE, store.close()).await);
    Ok(clean.then_some(running))
}

/// Lets every shard accept connections.
fn accept(sides: &mut [Side], port: Port) -> Result<(), BootError> {
    let shards = u16::try_from(sides.len()).unwrap_or(u16::MAX);
    for (side, listener) in sides.iter_mut().zip(port.share(shards)?) {
        if let Some(start) = side.listener.take() {
            drop(start.send(listener));
        }
    }
    Ok(())
}

fn broker_info(config: &Config, folder: &DataFolder, address: SocketAddr) -> BrokerInfo {
    BrokerInfo {
        id: config.broker.get(),
        cluster: config.cluster.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        address: address.to_string(),
        data_dir: folder.path().display().to_string(),
        shards: folder.layout().shards,
        ..BrokerInfo::default()
    }
}

fn shard_sources(folder: &DataFolder, sides: &[Side], running: &rt::Running) -> Vec<ShardSource> {
    let journal_bytes = folder.layout().journal_bytes;
    let source =
        |(side, pulse): (&Side, _)| ShardSource { link: side.commands.clone(), pulse, journal_bytes };
    sides.iter().zip(running.pulses()).map(source).collect()
}

/// Takes the port. A broker that was killed a moment ago may still be listening: the kernel closes what its rings held
/// some milliseconds after the process is gone. So a port in use is tried for a second.
fn take_port(address: SocketAddr) -> Result<Port, ListenFault> {
    let began = Instant::now();
    loop {
        match Port::take(address) {
            Err(ListenFault::InUse { .. }) if began.elapsed() < PORT_PATIENCE => {
                std::thread::sleep(PORT_RETRY);
            }
            taken => return taken,
        }
    }
}

/// The control thread's side of one shard.
struct Side {
    commands: ShardLink,
    up: Option<oneshot::Receiver<Result<Up, String>>>,
    listener: Option<oneshot::Sender<ShardListener>>,
}

fn works(
    config: &Config,
    folder: &DataFolder,
    doors: &Doors,
    views: &watch::Receiver<Arc<View>>,
) -> (Vec<Work>, Vec<Side>) {
    let shards = folder.layout().shards;
    let net = Arc::new(net_config(config, shards));
    let disk_bytes_max = config.disk_bytes_max.bytes_of(file_system_bytes(folder.path()));
    let clock = rt::Clock::new();
    let mut works = Vec::new();
    let mut sides = Vec::new();
    for (shard, endpoint) in mesh(shards, &net).into_iter().enumerate() {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (up, is_up) = oneshot::channel();
        let (listener, listen) = oneshot::channel();
        let number = ShardId::new(u16::try_from(shard).unwrap_or(u16::MAX));
        works.push(Work {
            endpoint,
            net: Arc::clone(&net),
            folders: folder.folders(shard),
            config: ShardConfig { shard: number, ..shard_config(config, shards, disk_bytes_max) },
            clock,
            commands: inbox,
            doors: doors.clone(),
            views: views.clone(),
            up,
            listener: listen,
        });
        sides.push(Side { commands, up: Some(is_up), listener: Some(listener) });
    }
    (works, sides)
}

type AllUp = (Vec<Report>, Vec<(ShardId, Vec<TopicPartition>)>);

async fn all_up(sides: &mut [Side]) -> Result<AllUp, BootError> {
    let (mut reports, mut held) = (Vec::new(), Vec::new());
    for (shard, side) in sides.iter_mut().enumerate() {
        let Some(up) = side.up.take() else { continue };
        let up = up.await.unwrap_or_else(|_| Err("its thread ended while it recovered".to_owned()));
        let up = up.map_err(|what| BootError::Shard { shard, what })?;
        held.push((ShardId::new(u16::try_from(shard).unwrap_or(u16::MAX)), up.partitions));
        reports.push(up.report);
    }
    Ok((reports, held))
}

/// Stops every shard; false if one did not end in time.
async fn stop_shards(sides: &[Side]) -> bool {
    for side in sides {
        // A shard that has ended already needs no telling.
        drop(side.commands.send(Command::Stop).await);
    }
    let all_gone = async {
        for side in sides {
            side.commands.closed().await;
        }
    };
    tokio::time::timeout(DRAIN_PATIENCE + STOP_PATIENCE, all_gone).await.is_ok()
}

/// One shard's thread, from recovery to its end.
async fn shard_main(context: ShardContext, work: Work) {
    let Work { endpoint, net, folders, config, clock, commands, doors, views, up, listener } = work;
    let net = Net::new(net, context.ring.clone(), endpoint, doors, views);
    let queues =
        Queues { cold: context.cold, background: context.background, compaction: context.compaction };
    let (pump, report) = match Pump::open(folders, config, context.ring, queues, clock).await {
        Ok(opened) => opened,
        Err(error) => return drop(up.send(Err(error.to_string()))),
    };
    let handle = pump.handle();
    handle.reply_to(Rc::new(net.answers()));
    let partitions = handle.partitions();
    drop(up.send(Ok(Up { report, partitions })));
    rt::spawn(take_commands(handle.clone(), net, clock, commands, listener));
    if let Err(error) = pump.run().await {
        tracing::error!(%error, "a shard's files were not closed cleanly");
    }
}

async fn take_commands(
    handle: ShardHandle,
    net: Net,
    clock: rt::Clock,
    mut commands: mpsc::Receiver<Command>,
    listener: oneshot::Receiver<ShardListener>,
) {
    rt::spawn({
        let (handle, net) = (handle.clone(), net.clone());
        async move {
            // No listener: the broker stops before it served.
            if let Ok(listener) = listener.await {
                net.serve(Rc::new(handle), listener);
            }
        }
    });
    while let Some(command) = commands.recv().await {
        match command {
            Command::Input(input) => handle.push(input),
            // Requests come into the same mailbox, so whatever is sent from now on comes later.
            Command::Taken { reply } => drop(reply.send(())),
            Command::Describe { partitions, reply } => {
                drop(reply.send(partitions.into_iter().map(|tp| handle.describe(tp)).collect()));
            }
            Command::Lag { rows, reply } => {
                let now_ms = clock.now().wall_ms;
                let lag = |reader| handle.lag(&reader, now_ms);
                drop(reply.send(rows.into_iter().map(lag).collect()));
            }
            Command::Glance { reply } => drop(reply.send(handle.snapshot())),
            Command::Report { reply } => drop(reply.send(report(&handle, &net))),
            Command::Stop => break,
        }
    }
    net.drain(DRAIN_PATIENCE).await;
    handle.drain().await;
    handle.stop();
}

fn report(handle: &ShardHandle, net: &Net) -> ShardReport {
    ShardReport {
        shard: handle.snapshot(),
        disk: handle.disk_snapshot(),
        net: Some(net.snapshot()),
        traffic: handle.traffic(),
    }
}

fn check_layout(folder: &DataFolder, config: &Config) -> Result<(), BootError> {
    let layout = folder.layout();
    let differs = [
        ("shards", u64::from(layout.shards), u64::from(config.shards)),
        ("bytes of journal per shard", layout.journal_bytes, config.journal_bytes),
    ];
    match differs.into_iter().find(|(_, found, asked)| found != asked) {
        Some((what, found, _)) => Err(BootError::OtherLayout { path: folder.path().to_owned(), what, found }),
        None => Ok(()),
    }
}

fn shard_config(config: &Config, shards: u16, disk_bytes_max: u64) -> ShardConfig {
    let shards = u64::from(shards.max(1));
    ShardConfig {
        shard: ShardId::new(0),
        ring_bytes: config.journal_bytes,
        tail_cache_bytes: config.memory_bytes_max / shards / 4,
        // The budget is the data directory's: the rings are part of it.
        disk_bytes_max: (disk_bytes_max / shards).saturating_sub(config.journal_bytes),
        recycled_bytes_max: config.segment_pool_bytes / shards,
        prewrite: true,
    }
}

fn group_settings(config: &Config) -> CoordinatorSettings {
    CoordinatorSettings {
        offset_interval: limits::OFFSET_INTERVAL,
        offsets_retention: config.offsets_retention,
    }
}

/// Size of the file system that holds `path`; without an answer, no budget by share.
fn file_system_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(u64::MAX, |file_system| file_system.f_blocks * file_system.f_frsize)
}

fn net_config(config: &Config, shards: u16) -> NetConfig {
    let of_shard = config.memory_bytes_max / u64::from(shards.max(1));
    NetConfig {
        connections_max: descriptors::connections_max(descriptors::limit(), shards),
        input_bytes_max: of_shard / 4,
        output_bytes_max: of_shard / 4,
        ..NetConfig::new(config.cluster.clone(), config.broker)
    }
}

fn identity(broker: BrokerId, folder: &DataFolder) -> Result<ReplicaIdentity, BootError> {
    let system = |source| BootError::System { what: "drawing a process id", source };
    let process = ProcessId::new(u64::from_le_bytes(random_bytes::<8>().map_err(system)?));
    let data_id: TopicId = folder.layout().data_id.parse().map_err(|_| BootError::DataId)?;
    let data_dir = DataDirId::from_bytes(*data_id.as_bytes());
    Ok(ReplicaIdentity { broker, data_dir, process })
}

/// Leaves the addresses where scripts find them, whole: written aside, then renamed.
fn write_ready(ready: &Ready) -> Result<(), BootError> {
    let text = serde_json::json!({
        "address": ready.address.to_string(),
        "admin": ready.admin.to_string(),
        "pid": std::process::id(),
        "shards": ready.shards,
    });
    let (aside, path) = (ready.data_dir.join("ready.json.new"), ready.data_dir.join("ready.json"));
    let system = |source| BootError::System { what: "writing ready.json", source };
    std::fs::write(&aside, format!("{text}\n")).map_err(system)?;
    std::fs::rename(&aside, &path).map_err(system)
}

/// Nobody finds the addresses of a broker that does not serve.
fn forget_ready(data_dir: &Path) -> Result<(), BootError> {
    match std::fs::remove_file(data_dir.join("ready.json")) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(BootError::System { what: "removing ready.json", source })
        }
        _ => Ok(()),
    }
}

/// The signals that stop a broker, caught from here on.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn catch() -> Result<Self, BootError> {
        let system = |source| BootError::System { what: "listening for signals", source };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(system)?,
            terminate: signal(SignalKind::terminate()).map_err(system)?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Ends the process at the next interrupt: whoever asks twice does not want to wait. Like a crash, it loses
    /// nothing that was acknowledged.
    fn end_at_the_next(mut self) {
        tokio::spawn(async move {
            if self.interrupt.recv().await.is_some() {
                std::process::exit(INTERRUPTED);
            }
        });
    }
}
