//! Starts one executor per shard and waits for them.

use super::pacemaker::{self, Pulse};
use super::ring::Ring;
use super::tasks::Queue;
use super::{Refused, preflight, runnable};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};
use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Submissions that a shard's rings hold.
const RING_DEPTH: usize = 256;
/// Shares of the queue for cold reads, and of the one for destaging and everything else that can wait.
const SHARES_COLD: usize = 250;
const SHARES_BACKGROUND: usize = 250;
/// Compaction has all the time there is.
const SHARES_COMPACTION: usize = 50;
/// Long enough that the throw-away executor really parks, which is when the kernel is told of the barriers that
/// every later park needs. Without it the first sleep of a serving executor takes ten milliseconds and more.
const PRIME: Duration = Duration::from_millis(3);

/// How executors are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The CPUs to run on; shard `n` takes the `n`th, around the end.
    pub cpus: Vec<usize>,
    /// Whether each executor stays on its CPU. Several brokers on one machine are better off without.
    pub pin: bool,
    /// Memory that glommio registers with the kernel for reads, per shard. It is charged three times against
    /// `RLIMIT_MEMLOCK`.
    pub io_memory_bytes: usize,
    /// How long a task queue runs before others and completions get their turn.
    pub preempt_timer: Duration,
    /// How long an executor that runs out of tasks looks for more before it sleeps. Off unless cores are plenty: it
    /// costs a fifth to two fifths of the throughput of two busy cores.
    pub spin_before_park: Duration,
    /// An executor that runs no task for this long ends the process.
    pub stall_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cpus: allowed_cpus(),
            pin: true,
            io_memory_bytes: 2 << 20,
            preempt_timer: Duration::from_millis(5),
            spin_before_park: Duration::ZERO,
            stall_max: Duration::from_secs(20),
        }
    }
}

/// What a shard's main task is given.
#[derive(Clone, Debug)]
pub struct ShardContext {
    /// Which shard this is.
    pub shard: usize,
    /// How many there are.
    pub shards: usize,
    /// For reads of old records: a backfill must not hurt the tail.
    pub cold: Queue,
    /// For destaging, checkpoints and everything else that can wait.
    pub background: Queue,
    /// For compaction.
    pub compaction: Queue,
    /// For what happens with every request.
    pub ring: Ring,
}

/// Why executors did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system refuses.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is nothing to run on, or nothing to run.
    #[error("no CPU or no shard to start")]
    Nothing,
    /// An executor could not be made.
    #[error("the executor of shard {shard} did not start: {cause}")]
    Executor {
        /// Which.
        shard: usize,
        /// What glommio says.
        cause: String,
    },
    /// The pacemaker's thread could not be made.
    #[error("no thread for the pacemaker: {0}")]
    Pacemaker(std::io::Error),
}

/// The executors under way.
#[derive(Debug)]
pub struct Running {
    executors: Vec<ExecutorJoinHandle<()>>,
    pulses: Vec<Arc<Pulse>>,
    pacemaker: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Running {
    /// Busy time and beats of every shard, for metrics.
    #[must_use]
    pub fn pulses(&self) -> Vec<Arc<Pulse>> {
        self.pulses.clone()
    }

    /// Waits until every shard's main task returned.
    ///
    /// # Errors
    /// The first shard that panicked (where panics do not end the process).
    pub fn join(mut self) -> Result<(), StartError> {
        let mut result = Ok(());
        for (shard, executor) in self.executors.drain(..).enumerate() {
            if let Err(error) = executor.join() {
                result = result.and(Err(StartError::Executor { shard, cause: error.to_string() }));
            }
        }
        if let Some((stop, thread)) = self.pacemaker.take() {
            drop(stop);
            // It does nothing that can fail.
            drop(thread.join());
        }
        result
    }
}

/// The CPUs this process may run on, in order.
#[must_use]
pub fn allowed_cpus() -> Vec<usize> {
    rustix::thread::sched_getaffinity(None)
        .map(|set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
        .unwrap_or_default()
}

/// Starts one executor per item of `work` and runs `main` on each. Returns when all of them run tasks.
///
/// # Errors
/// What stands in the way; executors that did start are left to end with the process.
pub fn start<W, F, Task>(options: &Options, work: Vec<W>, main: F) -> Result<Running, StartError>
where
    W: Send + 'static,
    F: Fn(ShardContext, W) -> Task + Clone + Send + 'static,
    Task: Future<Output = ()> + 'static,
{
    preflight()?;
    let shards = work.len();
    if shards == 0 || options.cpus.is_empty() {
        return Err(StartError::Nothing);
    }
    prime()?;
    let pulses: Vec<Arc<Pulse>> = work.iter().map(|_| Arc::default()).collect();
    let pacemaker = start_pacemaker(pulses.clone(), options.stall_max)?;
    let mut executors = Vec::with_capacity(shards);
    let (up, ups) = sync_channel(shards);
    for (shard, work) in work.into_iter().enumerate() {
        let (main, pulse, up) = (main.clone(), Arc::clone(&pulses[shard]), up.clone());
        let shard_main = move || async move {
            super::spawn(Arc::clone(&pulse).answer());
            let ring = match Ring::start() {
                Ok(ring) => ring,
                // The starter waits for it; if it went away there is nobody to tell.
                Err(error) => return up.send(Err(error.to_string())).unwrap_or_default(),
            };
            let context = ShardContext {
                shard,
                shards,
                cold: Queue::new(SHARES_COLD, "cold"),
                background: Queue::new(SHARES_BACKGROUND, "background"),
                compaction: Queue::new(SHARES_COMPACTION, "compaction"),
                ring,
            };
            up.send(Ok(())).unwrap_or_default();
            main(context, work).await;
            pulse.end();
        };
        let executor = builder(options, shard).spawn(move || runnable::counted(shard_main()));
        executors.push(executor.map_err(|error| StartError::Executor { shard, cause: error.to_string() })?);
    }
    drop(up);
    let running = Running { executors, pulses, pacemaker: Some(pacemaker) };
    for shard in 0..shards {
        match ups.recv() {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => return Err(StartError::Executor { shard, cause }),
            // One ended without saying so.
            Err(_) => return Err(running.join().err().unwrap_or(StartError::Nothing)),
        }
    }
    Ok(running)
}

fn builder(options: &Options, shard: usize) -> LocalExecutorBuilder {
    let cpu = options.cpus[shard % options.cpus.len()];
    let placement = if options.pin { Placement::Fixed(cpu) } else { Placement::Unbound };
    LocalExecutorBuilder::new(placement)
        .name(&format!("shard-{shard}"))
        .io_memory(options.io_memory_bytes)
        .ring_depth(RING_DEPTH)
        .preempt_timer(options.preempt_timer)
        .spin_before_park(options.spin_before_park)
        // Anywhere but on the executor's own CPU by force: renames and unlinks would stop the shard.
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
}

/// Runs a throw-away executor that parks once.
fn prime() -> Result<(), StartError> {
    let cause = |error: String| StartError::Executor { shard: 0, cause: error };
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .name("prime")
        .io_memory(64 << 10)
        .spawn(|| super::sleep(PRIME))
        .map_err(|error| cause(error.to_string()))?;
    executor.join().map_err(|error| cause(error.to_string()))
}

fn start_pacemaker(
    pulses: Vec<Arc<Pulse>>,
    stall_max: Duration,
) -> Result<(SyncSender<()>, JoinHandle<()>), StartError> {
    let (stop, stopped) = sync_channel(0);
    let thread = std::thread::Builder::new()
        .name("pacemaker".to_owned())
        .spawn(move || pacemaker::run(&pulses, &stopped, stall_max, pacemaker::abort))
        .map_err(StartError::Pacemaker)?;
    Ok((stop, thread))
}
