//! The driver on glommio: for load generators and links between brokers, which live on an executor of their own.
//!
//! Call from within a `LocalExecutor`; drivers are spawned on it and end with it. glommio 0.9.0 may sleep through a wake
//! that comes from another thread: an executor whose handles are used elsewhere needs a timer that ticks.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::BytesMut;
use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use glommio::timer::Timer;

use super::{Driver, Runtime, Stream};

/// What is read at once: glommio takes no uninitialised memory, so that everything is read into the same room and copied
/// once more than on tokio, which costs no more than filling new room with zeros would.
const INCOMING_BYTES: usize = 256 << 10;
/// What is gathered into one write: glommio takes only one slice.
const SCRATCH_BYTES: usize = 64 << 10;
/// A slice of this length is worth a write of its own.
const LONG_BYTES: usize = 16 << 10;

/// The glommio executor of the caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Glommio;

/// A timer of glommio's.
pub struct Sleep(Timer);

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(|_| ())
    }
}

/// A connection of glommio's.
pub struct GlommioStream {
    stream: TcpStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Runtime for Glommio {
    type Stream = GlommioStream;
    type Sleep = Sleep;

    async fn connect(&self, address: &str) -> io::Result<GlommioStream> {
        let address = resolve(address).await?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(GlommioStream {
            stream,
            incoming: vec![0; INCOMING_BYTES],
            outgoing: Vec::with_capacity(SCRATCH_BYTES),
        })
    }

    fn sleep_until(&self, at: Instant) -> Sleep {
        Sleep(Timer::new(at.saturating_duration_since(Instant::now())))
    }

    fn now() -> Instant {
        Instant::now()
    }

    fn spawn(&self, driver: Driver<Self>) {
        glommio::spawn_local(driver.run()).detach();
    }
}

/// The first address of a name. Names are looked up on another thread, as that blocks.
async fn resolve(address: &str) -> io::Result<SocketAddr> {
    if let Ok(address) = address.parse() {
        return Ok(address);
    }
    let name = address.to_owned();
    let mut found = glommio::executor().spawn_blocking(move || name.to_socket_addrs()).await?;
    found.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

impl Stream for GlommioStream {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        let Self { stream, incoming, .. } = self;
        let room = limit.min(INCOMING_BYTES);
        Pin::new(stream).poll_read(cx, &mut incoming[..room]).map_ok(|bytes| {
            buffer.extend_from_slice(&incoming[..bytes]);
            bytes
        })
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Self { stream, outgoing, .. } = self;
        outgoing.clear();
        for slice in slices {
            if slice.len() >= LONG_BYTES || outgoing.len() + slice.len() > SCRATCH_BYTES {
                break;
            }
            outgoing.extend_from_slice(slice);
        }
        // It waits for the socket to be writable and keeps nothing of what it was handed.
        match slices.first() {
            Some(first) if outgoing.is_empty() => Pin::new(stream).poll_write(cx, first),
            _ => Pin::new(stream).poll_write(cx, outgoing),
        }
    }
}
