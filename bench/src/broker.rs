//! The broker under test: started on an empty directory and a processor of its own, or named by the asker.
//!
//! Called by `run`. Invariants: what was started here is ended here, by its process id, even after an error; its data is
//! removed. A port that others listen on cannot be taken for ours, because the broker chooses a free one and says which.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::error::{Doing, Error, Result};
use crate::peer::{Launch, Peer, Ready, redis};
use crate::pin::ThreadPlace;

/// How long a start or a stop may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// How to start a broker.
#[derive(Clone, Debug)]
pub struct Start {
    /// Whose.
    pub peer: Peer,
    /// The program.
    pub program: PathBuf,
    /// More arguments.
    pub arguments: Vec<String>,
    /// In which its data directory is made.
    pub folder: PathBuf,
    /// Where and how urgently it runs.
    pub place: ThreadPlace,
}

/// A broker that runs.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    data: PathBuf,
    address: SocketAddr,
    command: String,
    config: Option<&'static str>,
    start_took: Duration,
}

/// What a broker writes when it is ready.
#[derive(Deserialize)]
struct ReadyFile {
    address: SocketAddr,
    pid: u32,
}

impl Broker {
    /// Starts a broker in an empty directory and waits until it is ready.
    ///
    /// # Errors
    /// [`Error::Setup`] if it ends instead; the end of its log is in the message.
    pub fn start(start: &Start) -> Result<Self> {
        let data = start.folder.join(format!("corelog-bench-{}", std::process::id()));
        if data.exists() {
            return Err(Error::Setup(format!("{} is not empty; remove it", data.display())));
        }
        std::fs::create_dir_all(&data).doing(|| format!("making {}", data.display()))?;
        Self::launch(start, &data).inspect_err(|_| remove(&data))
    }

    /// Starts it again on what it left, once it has ended.
    ///
    /// # Errors
    /// As [`Broker::start`]; what it left is removed then.
    pub fn start_again(mut self, start: &Start) -> Result<Self> {
        self.child.wait().doing(|| "waiting for the broker's end".to_owned())?;
        let data = std::mem::take(&mut self.data);
        Self::launch(start, &data).inspect_err(|_| remove(&data))
    }

    fn launch(start: &Start, data: &Path) -> Result<Self> {
        let log = data.join("broker.log");
        let file = File::options().append(true).create(true).open(&log);
        let file = file.doing(|| format!("opening {}", log.display()))?;
        let errors = file.try_clone().doing(|| "duplicating a descriptor".to_owned())?;
        let Launch { mut command, ready, config } =
            start.peer.launch(&start.program, &start.arguments, data)?;
        if let Ready::File(path) = &ready
            && path.exists()
        {
            std::fs::remove_file(path).doing(|| format!("removing {}", path.display()))?;
        }
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let line = format!("{command:?}").replace('"', "");
        let began = Instant::now();
        let mut broker = Self {
            child: spawn(command, start)?,
            data: PathBuf::new(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            command: line,
            config,
            start_took: Duration::ZERO,
        };
        broker.await_ready(&ready, &log, began)?;
        data.clone_into(&mut broker.data);
        Ok(broker)
    }

    fn await_ready(&mut self, ready: &Ready, log: &Path, began: Instant) -> Result<()> {
        loop {
            if let Some((address, pid)) = who_is_ready(ready, self.child.id())? {
                if pid != self.child.id() {
                    return Err(Error::Setup(format!("process {pid} is ready, not ours")));
                }
                self.address = address;
                self.start_took = began.elapsed();
                return Ok(());
            }
            let ended = self.child.try_wait().doing(|| "waiting for the broker".to_owned())?;
            if ended.is_some() || began.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                return Err(Error::Setup(format!("the broker did not start:\n{}", tail.join("\n"))));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it was started.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Its configuration file.
    #[must_use]
    pub const fn config(&self) -> Option<&'static str> {
        self.config
    }

    /// Its folder, which is removed with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.data
    }

    /// How long it took to be ready.
    #[must_use]
    pub const fn start_took(&self) -> Duration {
        self.start_took
    }

    /// Ends it as an operator would, and removes its data.
    ///
    /// # Errors
    /// [`Error::System`]; [`Error::Peer`] if it had to be killed.
    pub fn stop(mut self) -> Result<()> {
        self.terminate()
    }

    /// Ends it as an operator would, and starts it again on what it left.
    ///
    /// # Errors
    /// As [`Broker::stop`] and [`Broker::start_again`].
    pub fn restart(mut self, start: &Start) -> Result<Self> {
        self.terminate()?;
        self.start_again(start)
    }

    fn terminate(&mut self) -> Result<()> {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .doing(|| "telling the broker to stop".to_owned())?;
        }
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if self.child.try_wait().doing(|| "waiting for the broker".to_owned())?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(Error::Peer(format!("did not stop within {PATIENCE:?} and was killed")))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Ended already, or there is nothing more that could be done.
        drop(self.child.kill());
        drop(self.child.wait());
        // Without a name: it is another one's by now.
        if !self.data.as_os_str().is_empty() {
            remove(&self.data);
        }
    }
}

/// Where the broker listens and which process it is, once it is ready.
fn who_is_ready(ready: &Ready, child: u32) -> Result<Option<(SocketAddr, u32)>> {
    match ready {
        Ready::File(path) => {
            let Ok(text) = std::fs::read_to_string(path) else { return Ok(None) };
            let said: ReadyFile = serde_json::from_str(&text)
                .map_err(|error| Error::Peer(format!("{} says {text:?}: {error}", path.display())))?;
            Ok(Some((said.address, said.pid)))
        }
        Ready::Answers(address, answers) => {
            Ok((listens(child, address.port()) && answers(*address)).then_some((*address, child)))
        }
        Ready::Redis(address) => Ok(redis::process(*address).map(|pid| (*address, pid))),
    }
}

/// Whether a process listens on this port. Not by asking the port: somebody else's answer would do as well.
fn listens(process: u32, port: u16) -> bool {
    // Source: proc_net(5). The local address is the second field, the state the fourth (0A: listening), the inode the tenth.
    let tables = ["tcp", "tcp6"].map(|table| std::fs::read_to_string(format!("/proc/net/{table}")));
    let inodes: Vec<String> = tables
        .iter()
        .flatten()
        .flat_map(|table| table.lines())
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let &[_, local, _, "0A", _, _, _, _, _, inode, ..] = &fields[..] else { return None };
            local.ends_with(&format!(":{port:04X}")).then(|| format!("socket:[{inode}]"))
        })
        .collect();
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    let targets = descriptors.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.into_iter().any(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
}

fn remove(data: &Path) {
    if let Err(error) = std::fs::remove_dir_all(data) {
        eprintln!("warning: {} could not be removed: {error}", data.display());
    }
}

/// Starts it from a thread that has the affinity and the priority which the process inherits.
fn spawn(mut command: Command, start: &Start) -> Result<Child> {
    let place = start.place;
    let program = start.program.clone();
    let spawned = std::thread::spawn(move || {
        place.take()?;
        command.spawn().doing(|| format!("starting {}", program.display()))
    });
    spawned.join().unwrap_or_else(|_| Err(Error::Setup("the starting thread ended".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn whose_port_it_is_can_be_told() {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens(std::process::id(), port));
        assert!(!listens(1, port));
        drop(listener);
        assert!(!listens(std::process::id(), port));
    }
}
