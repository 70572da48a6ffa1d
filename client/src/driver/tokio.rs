//! The driver on tokio.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

use super::{Driver, Runtime, Stream};

/// The tokio runtime of the caller: handles must be made within one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tokio;

impl Runtime for Tokio {
    type Stream = TokioStream<TcpStream>;
    type Sleep = Pin<Box<tokio::time::Sleep>>;

    async fn connect(&self, address: &str) -> io::Result<TokioStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        // Requests are written whole, so that there is nothing to gain from waiting for more.
        stream.set_nodelay(true)?;
        Ok(TokioStream(stream))
    }

    fn sleep_until(&self, at: Instant) -> Self::Sleep {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn spawn(&self, driver: Driver<Self>) {
        tokio::spawn(driver.run());
    }
}

/// A stream of tokio's as the driver needs it.
#[derive(Debug)]
pub struct TokioStream<S>(pub S);

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for TokioStream<S> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = buffer.limit(limit);
        // The future keeps nothing between polls.
        pin!(self.0.read_buf(&mut buffer)).poll(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }
}
