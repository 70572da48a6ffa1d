//! The administration's HTTP: health, metrics, and the JSON that tools and the console read.
//!
//! Runs on the control thread. Everything is read from a [`state::Snapshot`] that is taken per request; nothing here
//! can change the broker. Invariants: an answer comes within [`PATIENCE`], if need be "the broker does not answer";
//! at most [`SNAPSHOTS_MAX`] pictures are being taken at once, whoever asks how often; health costs each shard a glance,
//! however many partitions there are.
//!
//! `GET /healthz` is 200 while the broker answers; `/readyz` is 200 while it serves and nothing is wrong; `/metrics`
//! is OpenMetrics text; `/v1/broker`, `/v1/topics`, `/v1/topics/{name}` and `/v1/partitions` are JSON.

pub mod gather;
mod groups;
mod listen;
mod metrics;
pub mod state;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

use listen::{Bounded, Bounds};
use state::{BrokerInfo, GroupInfo, Health, PartitionInfo, Phase, Question, Snapshot, Sources, TopicInfo};

/// How long a picture may take.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Pictures that are taken at once.
pub const SNAPSHOTS_MAX: usize = 4;

/// Serves until `stop` is ready, then finishes the answers under way.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    sources: Sources,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    serve_within(listener, Bounds::default(), sources, stop).await
}

async fn serve_within(
    listener: TcpListener,
    bounds: Bounds,
    sources: Sources,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(Bounded::new(listener, bounds), router(sources)).with_graceful_shutdown(stop).await
}

/// What answers which path.
pub fn router(sources: Sources) -> Router {
    router_within(sources, PATIENCE)
}

fn router_within(sources: Sources, patience: Duration) -> Router {
    let admin = Admin { sources, patience, taking: Arc::new(Semaphore::new(SNAPSHOTS_MAX)) };
    Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(openmetrics))
        .route("/v1/broker", get(broker))
        .route("/v1/topics", get(topics))
        .route("/v1/topics/{name}", get(topic))
        .route("/v1/partitions", get(partitions))
        .route("/v1/groups", get(groups_list))
        .route("/v1/groups/{name}", get(group))
        .fallback(unknown_path)
        .with_state(admin)
}

#[derive(Clone)]
struct Admin {
    sources: Sources,
    patience: Duration,
    taking: Arc<Semaphore>,
}

/// Why there is no picture.
enum Silent {
    /// There is nobody to ask yet.
    Starting,
    /// Nobody answers in time.
    Hangs,
}

impl IntoResponse for Silent {
    fn into_response(self) -> Response {
        let why = match self {
            Self::Starting => "the broker is starting",
            Self::Hangs => "the broker does not answer",
        };
        refusal(StatusCode::SERVICE_UNAVAILABLE, why)
    }
}

impl Admin {
    fn phase(&self) -> Phase {
        *self.sources.phase.borrow()
    }

    async fn snapshot(&self) -> Result<Snapshot, Silent> {
        self.ask(Question::Picture).await
    }

    /// Not counted with the pictures: whoever takes many of these must not make the broker look dead.
    async fn health(&self) -> Result<Health, Silent> {
        self.ask_at_once(Question::Health).await
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Silent> {
        let asked = async {
            let _turn = self.taking.acquire().await.map_err(|_| Silent::Hangs)?;
            self.ask_at_once(question).await
        };
        tokio::time::timeout(self.patience, asked).await.unwrap_or(Err(Silent::Hangs))
    }

    async fn ask_at_once<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Result<T, Silent> {
        if self.phase() == Phase::Starting {
            return Err(Silent::Starting);
        }
        let asked = async {
            let (reply, answer) = oneshot::channel();
            self.sources.questions.send(question(reply)).await.map_err(|_| Silent::Hangs)?;
            answer.await.map_err(|_| Silent::Hangs)
        };
        tokio::time::timeout(self.patience, asked).await.unwrap_or(Err(Silent::Hangs))
    }
}

/// What is wrong with the broker, in sentences.
fn problems(health: &Health) -> Vec<String> {
    let mut problems = health.problems.clone();
    problems.extend(health.silent.iter().map(|shard| format!("shard {shard} does not answer")));
    for shard in &health.shards {
        let number = shard.shard;
        if shard.poisoned {
            problems.push(format!("shard {number}: a write fault has stopped its log; look at the disk"));
        }
        if shard.read_only {
            problems.push(format!("shard {number}: its journal is corrupt; it serves reads only"));
        }
        if shard.disk_full {
            problems.push(format!("shard {number}: the disk or its budget is full; producers wait"));
        }
    }
    problems
}

async fn health(State(admin): State<Admin>) -> Response {
    match admin.health().await {
        Ok(health) if health.silent.is_empty() => "ok\n".into_response(),
        Ok(health) => (StatusCode::SERVICE_UNAVAILABLE, lines(&problems(&health))).into_response(),
        // Before the first shard is up there is nobody to ask, and nothing is wrong.
        Err(Silent::Starting) => "ok\n".into_response(),
        Err(silent) => silent.into_response(),
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    let waiting = match admin.phase() {
        Phase::Ready => match admin.health().await {
            Ok(health) => problems(&health),
            Err(silent) => return silent.into_response(),
        },
        Phase::Starting => vec!["the broker is starting".to_owned()],
        Phase::Stopping => vec!["the broker is stopping".to_owned()],
    };
    if waiting.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, lines(&waiting)).into_response()
}

async fn openmetrics(State(admin): State<Admin>) -> Result<Response, Silent> {
    let phase = admin.phase();
    Ok(match metrics::encode(admin.snapshot().await?, phase) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written"),
    })
}

/// `/v1/broker`: what it is and how it is.
#[derive(Serialize)]
struct BrokerBody {
    #[serde(flatten)]
    broker: BrokerInfo,
    phase: Phase,
}

async fn broker(State(admin): State<Admin>) -> Result<Response, Silent> {
    let phase = admin.phase();
    let snapshot = admin.snapshot().await?;
    let broker = BrokerInfo { problems: problems(&snapshot.health()), ..snapshot.broker };
    Ok(Json(BrokerBody { broker, phase }).into_response())
}

/// `/v1/topics`.
#[derive(Serialize)]
struct Topics {
    topics: Vec<TopicLine>,
}

/// One line of `/v1/topics`.
#[derive(Serialize)]
struct TopicLine {
    name: String,
    id: String,
    partitions: usize,
    replication_factor: u16,
    bytes: u64,
}

async fn topics(State(admin): State<Admin>) -> Result<Response, Silent> {
    let line = |topic: TopicInfo| TopicLine {
        partitions: topic.partitions.len(),
        replication_factor: topic.replication_factor,
        bytes: topic.partitions.iter().filter_map(|partition| partition.standing).map(|at| at.bytes).sum(),
        name: topic.name,
        id: topic.id,
    };
    let lines: Vec<TopicLine> = admin.snapshot().await?.topics.into_iter().map(line).collect();
    Ok(Json(Topics { topics: lines }).into_response())
}

async fn topic(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Response, Silent> {
    let topics = admin.snapshot().await?.topics;
    let Some(topic) = topics.into_iter().find(|topic| topic.name == name) else {
        return Ok(no_topic(&name));
    };
    // It may have been deleted in between.
    let config = admin.ask(|reply| Question::Settings { topic: name.clone(), reply }).await?;
    Ok(match config {
        Some(config) => Json(TopicInfo { config, ..topic }).into_response(),
        None => no_topic(&name),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartitionsQuery {
    topic: Option<String>,
}

/// `/v1/partitions`.
#[derive(Serialize)]
struct Partitions {
    partitions: Vec<PartitionLine>,
}

/// One line of `/v1/partitions`.
#[derive(Serialize)]
struct PartitionLine {
    topic: String,
    #[serde(flatten)]
    partition: PartitionInfo,
}

async fn partitions(
    State(admin): State<Admin>,
    query: Result<Query<PartitionsQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Silent> {
    let Ok(Query(PartitionsQuery { topic: wanted })) = query else {
        return Ok(refusal(StatusCode::BAD_REQUEST, "the only parameter is topic=NAME"));
    };
    let mut topics = admin.snapshot().await?.topics;
    if let Some(name) = &wanted {
        topics.retain(|topic| topic.name == *name);
        if topics.is_empty() {
            return Ok(no_topic(name));
        }
    }
    let lines = |topic: TopicInfo| {
        let name = topic.name;
        let line = move |partition| PartitionLine { topic: name.clone(), partition };
        topic.partitions.into_iter().map(line)
    };
    let lines: Vec<PartitionLine> = topics.into_iter().flat_map(lines).collect();
    Ok(Json(Partitions { partitions: lines }).into_response())
}

/// `/v1/groups`.
#[derive(Serialize)]
struct Groups {
    groups: Vec<GroupLine>,
}

/// One line of `/v1/groups`.
#[derive(Serialize)]
struct GroupLine {
    name: String,
    members: usize,
    lag_records: u64,
    lag_seconds: f64,
}

async fn groups_list(State(admin): State<Admin>) -> Result<Response, Silent> {
    let line = |group: GroupInfo| {
        let lags = || group.partitions.iter().filter_map(|place| place.lag);
        GroupLine {
            members: group.members,
            lag_records: lags().map(|lag| lag.records).sum(),
            lag_seconds: lags().map(|lag| lag.seconds).fold(0.0, f64::max),
            name: group.name,
        }
    };
    let lines: Vec<GroupLine> = admin.snapshot().await?.groups.into_iter().map(line).collect();
    Ok(Json(Groups { groups: lines }).into_response())
}

async fn group(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Response, Silent> {
    let group = admin.ask(|reply| Question::Group { name: name.clone(), reply }).await?;
    Ok(match group {
        Some(group) => Json(group).into_response(),
        None => refusal(StatusCode::NOT_FOUND, &format!("there is no group {name:?}")),
    })
}

async fn unknown_path() -> Response {
    let paths = "/healthz /readyz /metrics /v1/broker /v1/topics /v1/topics/{name} /v1/partitions \
                 /v1/groups /v1/groups/{name}";
    refusal(StatusCode::NOT_FOUND, &format!("there is nothing here; known paths: {paths}"))
}

fn no_topic(name: &str) -> Response {
    refusal(StatusCode::NOT_FOUND, &format!("there is no topic {name:?}"))
}

fn refusal(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}

fn lines(sentences: &[String]) -> String {
    sentences.iter().flat_map(|sentence| [sentence.as_str(), "\n"]).collect()
}

#[cfg(test)]
mod tests;
