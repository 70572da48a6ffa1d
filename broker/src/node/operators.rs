//! The administration's side of boot: up before anything is recovered, told when there is somebody to ask.
//!
//! Called by boot. Invariant: from the bind on somebody answers, so that whoever watches a long recovery is told that
//! the broker is starting, not that it is gone.

use super::boot::BootError;
use crate::admin;
use crate::admin::gather::Gatherer;
use crate::admin::state::{Phase, Question, Sources};
use std::net::SocketAddr;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Questions of operators that may wait.
const QUESTIONS_MAX: usize = 16;

/// The administration's server.
#[derive(Debug)]
pub(super) struct Operators {
    /// Where operators look.
    pub(super) address: SocketAddr,
    phase: watch::Sender<Phase>,
    /// Until somebody answers.
    questions: Option<mpsc::Receiver<Question>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Operators {
    /// Listens there and says that the broker is starting.
    pub(super) async fn begin(address: SocketAddr) -> Result<Self, BootError> {
        let fault = |source| BootError::Admin { address, source };
        let listener = tokio::net::TcpListener::bind(address).await.map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let (phase, phases) = watch::channel(Phase::Starting);
        let (stop, stopped) = oneshot::channel::<()>();
        let sources = Sources { questions, phase: phases };
        let task = tokio::spawn(admin::serve(listener, sources, async { drop(stopped.await) }));
        Ok(Self { address, phase, questions: Some(asked), stop, task })
    }

    /// The broker serves, and this is who answers.
    pub(super) fn serve(&mut self, gatherer: Gatherer) {
        if let Some(questions) = self.questions.take() {
            tokio::spawn(gatherer.run(questions));
        }
        self.phase.send_replace(Phase::Ready);
    }

    /// The broker begins to stop.
    pub(super) fn stopping(&self) {
        self.phase.send_replace(Phase::Stopping);
    }

    /// Ends the server.
    pub(super) fn end(self) {
        drop(self.stop);
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[test]
    fn a_broker_that_recovers_is_alive_and_starting() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let operators = Operators::begin(([127, 0, 0, 1], 0).into()).await.unwrap();
            let answer = get(operators.address, "/healthz").await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "{answer}");
            let answer = get(operators.address, "/readyz").await;
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
            assert!(answer.ends_with("the broker is starting\n"), "{answer}");
            let answer = get(operators.address, "/metrics").await;
            assert!(answer.contains("the broker is starting"), "{answer}");
            operators.end();
        });
    }
}
