//! A gateway of a few lines, in memory, for the tests of the harness itself: right by default, wrong on request.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Json, Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response, Sse, sse};
use axum::routing::{get, post};
use openclaw_proto::http as api;
use serde_json::{Value, json};

/// What it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mischief {
    None,
    NeverAnswer,
    /// Acknowledges every tenth append without keeping it.
    DropTenth,
    /// Shows no session's last entry, and counts it.
    LoseEnd,
    /// Answers each question for entries with a 500.
    BreakReads,
    /// Refuses every other one, as if there were no quorum.
    RefuseSomeReads,
    /// Keeps what a repeated key brings a second time.
    ForgetKeys,
    RepeatDelta,
    SkipDelta,
    /// Shows a label as it was before the last change, now and then.
    StaleLabel,
    /// Acknowledges every tenth change of a label without making it.
    LoseLabel,
    /// Does not look at the revision that a change expects, now and then.
    IgnoreRevision,
    /// Makes every tenth change of a label and says that it certainly did not.
    DenyLabel,
    /// Makes every tenth change of a label, or does not, and does not say which.
    HideLabel,
}

/// What a label was and is, with its revisions.
#[derive(Default, Clone)]
struct Register {
    before: (Option<String>, u64),
    now: (Option<String>, u64),
}

#[derive(Default)]
struct Tables {
    sessions: HashMap<String, Vec<api::Entry>>,
    keys: HashMap<String, (String, api::AppendResponse)>,
    turns: HashMap<String, String>,
    appends: u64,
    registers: HashMap<String, Register>,
    /// Of the log that it would have.
    index: u64,
    asked: u64,
}

#[derive(Clone)]
struct Shared {
    mischief: Mischief,
    tables: Arc<Mutex<Tables>>,
}

pub(crate) struct Fake {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Fake {
    pub(crate) async fn start(mischief: Mischief) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/api/v1/sessions/{key}/entries", post(append).get(entries))
            .route("/api/v1/sessions/{key}", get(session).patch(update))
            .route("/api/v1/chat/stream", post(stream).get(resume))
            .route("/api/v1/turns/{id}", get(|| async { refusal(StatusCode::NOT_FOUND, api::ErrorCode::NotFound) }))
            .route("/api/v1/health/ready", get(|| async { Json(json!({"ok": true, "status": "ready"})) }))
            .with_state(Shared { mischief, tables: Arc::default() });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A write without a key is like no other.
fn key(headers: &HeaderMap) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    match headers.get(api::IDEMPOTENCY_KEY) {
        Some(key) => key.to_str().unwrap().to_owned(),
        None => format!("none-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
    }
}

fn refusal(status: StatusCode, code: api::ErrorCode) -> Response {
    let error = api::Error { code, message: String::new(), retryable: code.retryable(), request_id: "r".into() };
    (status, Json(api::ErrorBody { error })).into_response()
}

async fn append(
    State(shared): State<Shared>,
    Path(session): Path<String>,
    headers: HeaderMap,
    Json(body): Json<api::AppendRequest>,
) -> Response {
    if shared.mischief == Mischief::NeverAnswer {
        std::future::pending::<()>().await;
    }
    let key = key(&headers);
    let mut tables = shared.tables.lock().unwrap();
    if shared.mischief != Mischief::ForgetKeys
        && let Some((text, answer)) = tables.keys.get(&key)
    {
        if *text != body.text {
            return refusal(StatusCode::CONFLICT, api::ErrorCode::IdempotencyKeyReused);
        }
        return (StatusCode::CREATED, Json(answer.clone())).into_response();
    }
    tables.appends += 1;
    let drop_it = shared.mischief == Mischief::DropTenth && tables.appends % 10 == 0;
    let entries = tables.sessions.entry(session.clone()).or_default();
    let seq = entries.len() as u64 + 1;
    let answer = api::AppendResponse { seq, id: format!("{session}-{seq}") };
    if !drop_it {
        entries.push(api::Entry {
            seq,
            id: answer.id.clone(),
            role: body.role,
            text: body.text.clone(),
            created_ms: 0,
            turn_id: None,
            model: None,
            usage: None,
        });
    }
    tables.keys.insert(key, (body.text, answer.clone()));
    (StatusCode::CREATED, Json(answer)).into_response()
}

async fn entries(
    State(shared): State<Shared>,
    Path(session): Path<String>,
    Query(query): Query<HashMap<String, usize>>,
) -> Response {
    let mut tables = shared.tables.lock().unwrap();
    tables.asked += 1;
    if shared.mischief == Mischief::BreakReads {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if shared.mischief == Mischief::RefuseSomeReads && tables.asked % 2 == 1 {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, api::ErrorCode::NoQuorum);
    }
    let Some(all) = tables.sessions.get(&session) else {
        return refusal(StatusCode::NOT_FOUND, api::ErrorCode::NotFound);
    };
    let shown = all.len() - usize::from(shared.mischief == Mischief::LoseEnd && !all.is_empty());
    let entries = all[..shown].iter().skip(query["after"]).take(query["limit"]).cloned().collect();
    Json(api::EntryList { entries, head_seq: all.len() as u64 }).into_response()
}

fn shown(session: &str, (label, revision): &(Option<String>, u64), index: u64) -> Response {
    let body = json!({
        "sessionKey": session, "agentId": "main", "label": label, "revision": revision, "createdMs": 0, "updatedMs": 0,
        "headSeq": 0, "resetSeq": 0, "turnCount": 0, "queuedTurns": [],
        "usage": {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0},
    });
    ([(api::INDEX, index.to_string())], Json(body)).into_response()
}

async fn session(State(shared): State<Shared>, Path(session): Path<String>) -> Response {
    let mut tables = shared.tables.lock().unwrap();
    tables.asked += 1;
    let (index, stale) = (tables.index, shared.mischief == Mischief::StaleLabel && tables.asked.is_multiple_of(10));
    match tables.registers.get(&session) {
        Some(register) if stale && register.before.1 > 0 => shown(&session, &register.before, index),
        Some(register) => shown(&session, &register.now, index),
        None => refusal(StatusCode::NOT_FOUND, api::ErrorCode::NotFound),
    }
}

async fn update(
    State(shared): State<Shared>,
    Path(session): Path<String>,
    headers: HeaderMap,
    Json(body): Json<api::UpdateSessionRequest>,
) -> Response {
    // As long as a commit takes, so that calls overlap.
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    let mut tables = shared.tables.lock().unwrap();
    tables.asked += 1;
    tables.index += 1;
    let (index, tenth) = (tables.index, tables.asked.is_multiple_of(10));
    let mut register = tables.registers.get(&session).cloned().unwrap_or_default();
    let expected = headers.get("if-match").map(|revision| revision.to_str().unwrap().parse::<u64>().unwrap());
    let looks = !(tenth && shared.mischief == Mischief::IgnoreRevision);
    if looks && expected.is_some_and(|expected| expected != register.now.1) {
        let refused = refusal(StatusCode::PRECONDITION_FAILED, api::ErrorCode::PreconditionFailed);
        return ([(api::INDEX, index.to_string())], refused).into_response();
    }
    register.before = std::mem::replace(&mut register.now, (body.label.flatten(), index));
    let answer = shown(&session, &register.now, index);
    let hides = tenth && shared.mischief == Mischief::HideLabel;
    let loses = tenth && shared.mischief == Mischief::LoseLabel || hides && index.is_multiple_of(2);
    if !loses {
        tables.registers.insert(session, register);
    }
    if hides {
        refusal(StatusCode::GATEWAY_TIMEOUT, api::ErrorCode::EffectUnknown)
    } else if tenth && shared.mischief == Mischief::DenyLabel {
        refusal(StatusCode::SERVICE_UNAVAILABLE, api::ErrorCode::NoQuorum)
    } else {
        answer
    }
}

async fn stream(State(shared): State<Shared>, headers: HeaderMap, Json(body): Json<api::ChatRequest>) -> Response {
    let turn = key(&headers);
    shared.tables.lock().unwrap().turns.insert(turn.clone(), body.message.clone());
    events(&shared, &turn, &body.message, 0)
}

async fn resume(
    State(shared): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let turn = &query["turnId"];
    let message = shared.tables.lock().unwrap().turns[turn].clone();
    let seen = headers["last-event-id"].to_str().unwrap().rsplit_once('-').unwrap().1.parse().unwrap();
    events(&shared, turn, &message, seen)
}

/// The events after `seen`, two on each connection, so that every reader has to come back.
fn events(shared: &Shared, turn: &str, message: &str, seen: usize) -> Response {
    let mut all = vec![("start", json!({"turnId": turn, "sessionKey": "s", "instanceId": "fake"}))];
    all.extend(message.split_inclusive(' ').map(|word| ("delta", json!({"text": word}))));
    let usage = json!({"inputTokens": 1, "outputTokens": 1, "totalTokens": 2});
    all.push(("done", json!({"entryId": "e", "text": message, "usage": usage, "model": "fake/fake"})));
    let mut numbered: Vec<(usize, (&str, Value))> = (1..).zip(all).collect();
    match shared.mischief {
        Mischief::RepeatDelta => numbered.insert(2, numbered[1].clone()),
        Mischief::SkipDelta => drop(numbered.remove(2)),
        Mischief::None
        | Mischief::NeverAnswer
        | Mischief::DropTenth
        | Mischief::LoseEnd
        | Mischief::BreakReads
        | Mischief::RefuseSomeReads
        | Mischief::ForgetKeys
        | Mischief::StaleLabel
        | Mischief::LoseLabel
        | Mischief::IgnoreRevision
        | Mischief::DenyLabel
        | Mischief::HideLabel => {}
    }
    let some: Vec<_> = numbered
        .into_iter()
        .filter(|(n, _)| *n > seen)
        .take(if shared.mischief == Mischief::None { 2 } else { usize::MAX })
        .map(|(n, (name, data))| {
            Ok::<_, Infallible>(sse::Event::default().id(format!("{turn}.1-{n}")).event(name).data(data.to_string()))
        })
        .collect();
    Sse::new(futures::stream::iter(some)).into_response()
}
