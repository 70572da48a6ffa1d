//! The strawman: the least that could call itself a durable log server. What it reaches is the ceiling of the machine.
//!
//! Called by `main` as `corelog-bench strawman`, and started by `run --peer strawman`. Requests are Corelog's frames with
//! one sealed batch each; they are checked, written one after the other into a file whose blocks are written already, and
//! acknowledged after the flush that follows. It has no topics, partitions, offsets, index, recovery or limits, and
//! overwrites its file round and round: nothing to be used, only to be measured. Rooms: `block` (memory), `ring` (the
//! kernel's side), `frames` (bytes), `commit` (what is acknowledged when), `server` (the loop).

mod block;
mod commit;
mod frames;
mod ring;
mod server;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;

use self::block::Block;
pub use self::commit::Lap;
pub use self::frames::{PAYLOAD_BYTES_MAX, place};
use crate::error::{Doing, Error, Result};

/// The file's name in the folder.
pub const LOG_NAME: &str = "strawman.log";
/// Bytes of a write while the file's blocks are written.
const FILL_BYTES: usize = 4 << 20;

/// Arguments of `strawman`.
#[derive(Clone, Debug, Args)]
pub struct StrawmanArguments {
    /// An existing folder for its file, and for `ready.json`, which says where it listens.
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
    /// Length of its file, which is written round and round.
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(64..=65_536))]
    pub mebibytes: u64,
}

/// Serves on a free port of loopback until the process is ended.
///
/// # Errors
/// [`Error::System`], if the file cannot be written directly or the kernel has no `io_uring`.
pub fn serve(arguments: &StrawmanArguments) -> Result<()> {
    let file_bytes = arguments.mebibytes << 20;
    let file = filled(&arguments.folder.join(LOG_NAME), file_bytes)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = TcpListener::bind(address).doing(|| "binding a port".to_owned())?;
    let address = listener.local_addr().doing(|| "asking for the port".to_owned())?;
    let server = server::Server::new(OwnedFd::from(listener), file, file_bytes)?;
    announce(&arguments.folder, address)?;
    server.run()
}

/// The file, with all its blocks written and flushed.
fn filled(path: &Path, file_bytes: u64) -> Result<OwnedFd> {
    let direct =
        i32::try_from(rustix::fs::OFlags::DIRECT.bits()).map_err(|error| Error::Setup(error.to_string()))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(direct)
        .open(path)
        .doing(|| format!("making {} for direct writes", path.display()))?;
    let zeros = Block::zeroed(FILL_BYTES);
    for position in (0..file_bytes).step_by(FILL_BYTES) {
        file.write_all_at(&zeros, position).doing(|| format!("writing {}", path.display()))?;
    }
    file.sync_all().doing(|| format!("flushing {}", path.display()))?;
    Ok(OwnedFd::from(file))
}

/// Says where it listens, in a file that is there only when it is whole.
fn announce(folder: &Path, address: SocketAddr) -> Result<()> {
    let (partial, ready) = (folder.join("ready.json.partial"), folder.join("ready.json"));
    let doing = || format!("writing {}", ready.display());
    let text = serde_json::json!({ "address": address, "pid": std::process::id() }).to_string();
    std::fs::write(&partial, text).doing(doing)?;
    std::fs::rename(&partial, &ready).doing(doing)?;
    let mut out = std::io::stdout();
    writeln!(out, "the strawman listens on {address}").doing(|| "writing".to_owned())
}
