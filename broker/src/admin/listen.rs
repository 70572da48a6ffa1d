//! The administration's listener: few connections, none for ever.
//!
//! Called by [`serve`](super::serve). Whoever opens connections and says nothing, or a byte now and then, takes places
//! from operators for a bounded time. Invariants: at most so many connections are open; one is closed when nothing
//! moved on it for a while, and at the end of its life. This file refuses to know HTTP.

use axum::serve::Listener;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections at once; more wait in the kernel.
    pub(super) connections: usize,
    /// How long nothing may move: longer than any answer takes.
    pub(super) silence: Duration,
    /// How long one may last. A scraper that keeps its connection makes a new one.
    pub(super) life: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { connections: 64, silence: Duration::from_secs(10), life: Duration::from_mins(1) }
    }
}

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Bounded {
    listener: TcpListener,
    bounds: Bounds,
    room: Arc<Semaphore>,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener, bounds: Bounds) -> Self {
        Self { listener, bounds, room: Arc::new(Semaphore::new(bounds.connections)) }
    }
}

impl Listener for Bounded {
    type Io = Guarded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guarded, SocketAddr) {
        // Nobody closes the semaphore.
        let place = Arc::clone(&self.room).acquire_owned().await.ok();
        let (stream, from) = Listener::accept(&mut self.listener).await;
        let guarded = Guarded {
            stream,
            patience: self.bounds.silence,
            silence: Box::pin(sleep(self.bounds.silence)),
            life: Box::pin(sleep(self.bounds.life)),
            _place: place,
        };
        (guarded, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with its clocks.
#[derive(Debug)]
pub(super) struct Guarded {
    stream: TcpStream,
    patience: Duration,
    silence: Pin<Box<Sleep>>,
    life: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Guarded {
    /// What the socket said; if it said nothing yet, whether that took too long.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, said: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if said.is_ready() {
            self.silence.as_mut().reset(Instant::now() + self.patience);
            return said;
        }
        let late = self.silence.as_mut().poll(cx).is_ready() || self.life.as_mut().poll(cx).is_ready();
        if late { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let said = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.in_time(cx, said)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.in_time(cx, said)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
