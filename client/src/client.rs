//! The client: one handle, from which producers, readers and administration are made.
//!
//! Invariant: handles are cheap to clone, and may be used from any thread, whatever runtime serves them. The connections
//! end with the last handle.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use corelog_wire::message::{Answer, MetadataRequest, Request};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::admin::Admin;
use crate::consumer::ConsumerBuilder;
use crate::core::{Backoff, Call, Effect, Input, Outgoing, Question, Target};
use crate::driver::{Cell, Driver, Job, Pool, Runtime};
use crate::error::{Error, Result};
use crate::producer::ProducerBuilder;
use crate::reader::ReaderBuilder;

/// How often connecting is tried at least; the waits in between are those of [`Backoff`], a tenth of a second in all.
const CONNECT_ATTEMPTS_MIN: u32 = 3;

/// A client of a Corelog cluster.
#[derive(Clone)]
pub struct Client {
    pub(crate) pool: Arc<Pool>,
    pub(crate) now: fn() -> Instant,
    request_deadline: Duration,
}

/// How a client works, before it does.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    bootstrap: Vec<Arc<str>>,
    client_name: String,
    connect_deadline: Duration,
    request_deadline: Duration,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            bootstrap: Vec::new(),
            client_name: "corelog-client-rust".to_owned(),
            connect_deadline: Duration::from_secs(5),
            request_deadline: Duration::from_secs(30),
        }
    }
}

impl ClientBuilder {
    /// One more address (host:port, or several with commas between them) of a broker. One that answers is enough.
    #[must_use]
    pub fn bootstrap(mut self, addresses: &str) -> Self {
        let addresses = addresses.split(',').map(str::trim).filter(|address| !address.is_empty());
        self.bootstrap.extend(addresses.map(Arc::from));
        self
    }

    /// The name by which brokers know this client in logs and metrics.
    #[must_use]
    pub fn client_name(self, client_name: impl Into<String>) -> Self {
        Self { client_name: client_name.into(), ..self }
    }

    /// How long connecting to a broker may take, its Hello included. 5 s unless said otherwise.
    #[must_use]
    pub fn connect_deadline(self, connect_deadline: Duration) -> Self {
        Self { connect_deadline, ..self }
    }

    /// How long administrative requests may take. 30 s unless said otherwise.
    #[must_use]
    pub fn request_deadline(self, request_deadline: Duration) -> Self {
        Self { request_deadline, ..self }
    }

    /// Connects, on the tokio runtime of the caller.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect_on`].
    #[cfg(feature = "tokio")]
    pub async fn connect(self) -> Result<Client> {
        self.connect_on(crate::driver::Tokio).await
    }

    /// Connects on this runtime.
    ///
    /// # Errors
    /// [`Error::Usage`] for an address without a port; [`Error::Unreachable`] if none of the brokers answers; what the
    /// broker says against the client.
    pub async fn connect_on<R: Runtime>(self, runtime: R) -> Result<Client> {
        if self.bootstrap.is_empty() {
            return Err(Error::usage("no broker to connect to: give one as host:port"));
        }
        for address in &self.bootstrap {
            if address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                return Err(Error::usage(format!(
                    "{address} is not an address: give host:port, as localhost:9640"
                )));
            }
        }
        let (commands, receiver) = mpsc::unbounded_channel();
        let pool = Pool::new(self.client_name, self.bootstrap, self.connect_deadline, commands);
        runtime.spawn(Driver::root(runtime.clone(), receiver));
        let client = Client { pool: Arc::new(pool), now: R::now, request_deadline: self.request_deadline };
        let request = Request::Metadata(MetadataRequest { topics: Some(vec![]), auto_create: false });
        // Each address, and a broker that is just starting once more: who is not there is told quickly all the same.
        let addresses = u32::try_from(client.pool.bootstrap_count()).unwrap_or(u32::MAX);
        let attempts_max = addresses.max(CONNECT_ATTEMPTS_MIN);
        client.ask(Target::Any, request, true, attempts_max).await?;
        Ok(client)
    }
}

impl Client {
    /// Connects to the broker at `bootstrap` (host:port), on the tokio runtime of the caller.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect_on`].
    #[cfg(feature = "tokio")]
    pub async fn connect(bootstrap: &str) -> Result<Self> {
        Self::builder().bootstrap(bootstrap).connect().await
    }

    /// To connect in a way of one's own.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Topics, offsets, retention.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// To write to a topic.
    pub fn producer(&self, topic: &str) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), topic)
    }

    /// To read one partition of a topic.
    pub fn reader(&self, topic: &str, partition: u32) -> ReaderBuilder {
        self.topic_reader(topic).partitions([partition])
    }

    /// To read all partitions of a topic.
    pub fn topic_reader(&self, topic: &str) -> ReaderBuilder {
        ReaderBuilder::new(self.clone(), topic)
    }

    /// To read topics as a member of a consumer group.
    pub fn consumer(&self, group: &str) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), group)
    }

    /// Asks until there is an answer that is not a refusal, or the deadline.
    pub(crate) async fn call(&self, target: Target, request: Request, repeatable: bool) -> Result<Answer> {
        self.ask(target, request, repeatable, u32::MAX).await
    }

    async fn ask(
        &self,
        target: Target,
        request: Request,
        repeatable: bool,
        attempts_max: u32,
    ) -> Result<Answer> {
        let deadline = self.request_deadline;
        let question = Question { target, request, deadline, attempts_max, repeatable };
        let (sender, result) = oneshot::channel();
        let call = Call::new(question, Backoff::default(), seed());
        let answer = CallCell { call: Mutex::new((call, Some(sender))), bell: Notify::new() };
        self.pool.work(Job::new(Arc::new(answer), self.pool.clone()));
        result.await.unwrap_or(Err(Error::Closed))
    }
}

/// A seed that differs from one machine to the next.
pub(crate) fn seed() -> u64 {
    RandomState::new().hash_one(0)
}

/// A call behind its lock.
struct CallCell {
    call: Mutex<(Call, Option<oneshot::Sender<Result<Answer>>>)>,
    bell: Notify,
}

impl Cell for CallCell {
    fn handle(&self, now: Instant, input: Input, out: &mut Vec<Outgoing>) {
        let mut call = self.call.lock().unwrap_or_else(PoisonError::into_inner);
        let mut effects = Vec::new();
        call.0.handle(now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Send(outgoing) => out.push(outgoing),
                Effect::Event(result) => {
                    // Nobody waits if the caller has gone away.
                    let _ = call.1.take().map(|sender| sender.send(result));
                }
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.call.lock().unwrap_or_else(PoisonError::into_inner).0.deadline()
    }

    fn bell(&self) -> &Notify {
        &self.bell
    }

    fn is_done(&self) -> bool {
        self.call.lock().unwrap_or_else(PoisonError::into_inner).0.is_done()
    }

    fn abandoned(&self) {
        self.call.lock().unwrap_or_else(PoisonError::into_inner).1 = None;
    }
}
