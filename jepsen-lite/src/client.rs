//! An HTTP client that says what an answer means for the write: done, certainly not done, or unknown.
//!
//! The gateway's promise (design: "503 means certainly not applied; 504 or a lost connection means unknown") is read
//! here once; workloads never look at a status. A retry carries the same idempotency key, to whichever instance.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, IF_MATCH};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use openclaw_proto::http::{
    self as api, AppendRequest, AppendResponse, ChannelList, ChannelStatus, ChatRequest, ChatResponse, Cluster,
    DeadLetterList, Entry, EntryList, ErrorBody, ErrorCode, MoveRequest, RemoveRequest, Role, StateHash, StreamEvent,
    TransferLeaderRequest, UpdateSessionRequest, Usage,
};
use openclaw_proto::ids::{IdempotencyKey, SessionKey, StreamPosition, TurnId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sse::{Event, Parser};

/// The event id of a reconnecting stream.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Entries asked for at once when a whole transcript is read.
const PAGE: usize = 200;
/// Pause between attempts: a refused connection answers at once, and a client that spins takes the servers' processor.
const PAUSE: Duration = Duration::from_millis(5);

/// Pause between two tries to read what a checker needs.
const AGAIN: Duration = Duration::from_millis(100);

/// All entries of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Transcript {
    pub entries: Vec<Entry>,
    /// Absent: up to the head. Otherwise there should be more, by what the instance itself said.
    pub cut: Option<String>,
}

/// What an answer means.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply<T> {
    Ok(T),
    /// Certainly not applied.
    Failed(Failure),
    /// It may have been applied, or may still be.
    Unknown(String),
}

/// Why a request certainly had no effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Absent: no connection could be made.
    pub status: Option<u16>,
    pub code: Option<ErrorCode>,
    pub message: String,
    /// Of the committed command that was refused, where one was.
    pub index: Option<u64>,
}

/// What was answered, and the log index in the answer's header: that of a change, or one that a read reflects at least.
#[derive(Debug, Clone, PartialEq)]
pub struct At<T> {
    pub value: T,
    pub index: Option<u64>,
}

impl<T> Reply<T> {
    fn map<U>(self, with: impl FnOnce(T) -> U) -> Reply<U> {
        match self {
            Self::Ok(value) => Reply::Ok(with(value)),
            Self::Failed(failure) => Reply::Failed(failure),
            Self::Unknown(message) => Reply::Unknown(message),
        }
    }

    /// The value, where nothing else will do.
    ///
    /// # Errors
    /// When the reply is not [`Reply::Ok`].
    pub fn ok(self) -> Result<T> {
        match self {
            Self::Ok(value) => Ok(value),
            Self::Failed(failure) => bail!("failed: {failure:?}"),
            Self::Unknown(message) => bail!("unknown: {message}"),
        }
    }
}

/// How requests travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1 with kept-alive connections.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
}

impl Protocol {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::H2c => "h2c",
        }
    }
}

/// One instance, or the balancer, as a client sees it.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
    timeout: Duration,
    token: Option<String>,
}

impl Client {
    /// A client of the server at `address` that waits at most `timeout` for each answer.
    pub fn new(address: SocketAddr, protocol: Protocol, timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let pool = Pool::builder(TokioExecutor::new())
            .http2_only(protocol == Protocol::H2c)
            .build::<_, Full<Bytes>>(connector);
        Self { pool, address, timeout, token: None }
    }

    /// The same server and connections with another time limit.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same server and connections, with a bearer token if there is one.
    pub fn with_token(self, token: Option<&str>) -> Self {
        Self { token: token.map(ToOwned::to_owned), ..self }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Appends one user entry.
    pub async fn append(&self, session: &SessionKey, text: &str, key: &IdempotencyKey) -> Reply<AppendResponse> {
        let path = format!("/api/v1/sessions/{session}/entries");
        self.post(&path, &AppendRequest { role: Role::User, text: text.to_owned() }, key).await
    }

    /// A session's metadata, read with a quorum.
    pub async fn session(&self, session: &SessionKey) -> Reply<At<api::Session>> {
        self.answer_at(self.request(Method::GET, &format!("/api/v1/sessions/{session}")).body(Full::default())).await
    }

    /// Sets a session's label, or clears it; only if the session is at the revision `if_match` still, where one is given.
    pub async fn patch_session(
        &self,
        session: &SessionKey,
        label: Option<&str>,
        if_match: Option<u64>,
        key: Option<&IdempotencyKey>,
    ) -> Reply<At<api::Session>> {
        let body = UpdateSessionRequest { label: Some(label.map(str::to_owned)), model: None };
        let body = match serde_json::to_vec(&body) {
            Ok(body) => body,
            Err(error) => return Reply::Failed(not_sent(format!("encode the request: {error}"))),
        };
        let mut request = self
            .request(Method::PATCH, &format!("/api/v1/sessions/{session}"))
            .header(CONTENT_TYPE, "application/json");
        if let Some(revision) = if_match {
            request = request.header(IF_MATCH, revision);
        }
        if let Some(key) = key {
            request = request.header(api::IDEMPOTENCY_KEY, key.as_str());
        }
        self.answer_at(request.body(Full::from(body))).await
    }

    /// One page of a transcript.
    pub async fn entries(&self, session: &SessionKey, after: u64, limit: usize) -> Reply<EntryList> {
        self.get(&format!("/api/v1/sessions/{session}/entries?after={after}&limit={limit}")).await
    }

    /// A whole transcript, page by page; an unknown session is an empty one.
    ///
    /// # Errors
    /// When a page cannot be read, or pages do not get anywhere.
    pub async fn transcript(&self, session: &SessionKey) -> Result<Vec<Entry>> {
        match self.read_transcript(session).await {
            Ok(Transcript { entries, cut: None }) => Ok(entries),
            Ok(Transcript { cut: Some(cut), .. }) => bail!("{session}: {cut}"),
            Err(why) => bail!("read {session} from {}: {why}", self.address),
        }
    }

    /// The same, where each failure is followed by another try until `deadline`; and what does not fit together is told of beside
    /// what there is.
    ///
    /// # Errors
    /// Why it could not be read, the last time.
    pub async fn transcript_until(&self, session: &SessionKey, deadline: Instant) -> Result<Transcript, String> {
        loop {
            match self.read_transcript(session).await {
                Err(_) if Instant::now() < deadline => tokio::time::sleep(AGAIN).await,
                read @ (Ok(_) | Err(_)) => return read,
            }
        }
    }

    async fn read_transcript(&self, session: &SessionKey) -> Result<Transcript, String> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let after = entries.last().map_or(0, |entry| entry.seq);
            let page = match self.entries(session, after, PAGE).await {
                Reply::Ok(page) => page,
                Reply::Failed(Failure { code: Some(ErrorCode::NotFound), .. }) => {
                    let cut = (after > 0).then(|| format!("unknown although it has {after} entries"));
                    return Ok(Transcript { entries, cut });
                }
                Reply::Failed(failure) => return Err(format!("after {after}: {failure:?}")),
                Reply::Unknown(message) => return Err(format!("after {after}: {message}")),
            };
            let advanced = page.entries.last().is_some_and(|entry| entry.seq > after);
            entries.extend(page.entries);
            if entries.last().map_or(0, |entry| entry.seq) >= page.head_seq {
                return Ok(Transcript { entries, cut: None });
            }
            if !advanced {
                let cut = Some(format!("no entries after {after} although the head is {}", page.head_seq));
                return Ok(Transcript { entries, cut });
            }
        }
    }

    /// A message and its whole reply.
    pub async fn chat(&self, request: &ChatRequest, key: &IdempotencyKey) -> Reply<ChatResponse> {
        self.post("/api/v1/chat", request, key).await
    }

    /// A message whose reply is streamed.
    pub async fn stream(&self, request: &ChatRequest, key: &IdempotencyKey) -> Reply<Stream> {
        let body = match serde_json::to_vec(request) {
            Ok(body) => body,
            Err(error) => return Reply::Failed(not_sent(format!("encode the request: {error}"))),
        };
        let request = self
            .request(Method::POST, "/api/v1/chat/stream")
            .header(CONTENT_TYPE, "application/json")
            .header(api::IDEMPOTENCY_KEY, key.as_str())
            .body(Full::from(body));
        self.open(request).await
    }

    /// The stream of a turn from where a client stands; from its start without `last`.
    pub async fn resume(&self, turn: &TurnId, last: Option<&str>) -> Reply<Stream> {
        let mut request = self.request(Method::GET, &format!("/api/v1/chat/stream?turnId={turn}"));
        if let Some(last) = last {
            request = request.header(LAST_EVENT_ID, last);
        }
        self.open(request.body(Full::default())).await
    }

    pub async fn turn(&self, turn: &TurnId) -> Reply<api::Turn> {
        self.get(&format!("/api/v1/turns/{turn}")).await
    }

    /// The bot accounts, as the instance sees them.
    pub async fn channels(&self) -> Reply<ChannelList> {
        self.get("/api/v1/channels").await
    }

    /// Messages of a bot account that were not delivered, or not known to be.
    pub async fn dead_letters(&self, account: &str) -> Reply<DeadLetterList> {
        self.get(&format!("/api/v1/channels/{account}/dead-letters")).await
    }

    /// Sends a bot account to another instance.
    pub async fn move_channel(&self, account: &str, to: &str) -> Reply<ChannelStatus> {
        let body = MoveRequest { to: to.to_owned() };
        self.post(&format!("/api/v1/channels/{account}/move"), &body, &IdempotencyKey::random()).await
    }

    /// Hands the leadership to another instance.
    pub async fn transfer_leader(&self, to: &str) -> Reply<serde_json::Value> {
        let body = TransferLeaderRequest { to: Some(to.to_owned()) };
        self.post("/api/v1/cluster/transfer-leader", &body, &IdempotencyKey::random()).await
    }

    /// Takes an instance out of the cluster for good.
    pub async fn remove(&self, instance: &str) -> Reply<Cluster> {
        let body = RemoveRequest { instance_id: instance.to_owned() };
        self.post("/api/v1/cluster/remove", &body, &IdempotencyKey::random()).await
    }

    pub async fn cluster(&self) -> Reply<Cluster> {
        self.get("/api/v1/cluster").await
    }

    /// What the instance holds, as a hash at one log index.
    pub async fn state_hash(&self) -> Reply<StateHash> {
        self.get("/api/v1/cluster/state-hash").await
    }

    /// Whether `health/ready` answers 200.
    pub async fn is_ready(&self) -> bool {
        matches!(self.get::<api::Health>("/api/v1/health/ready").await, Reply::Ok(_))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Reply<T> {
        self.answer(self.request(Method::GET, path).body(Full::default())).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize, key: &IdempotencyKey) -> Reply<T> {
        let body = match serde_json::to_vec(body) {
            Ok(body) => body,
            Err(error) => return Reply::Failed(not_sent(format!("encode the request: {error}"))),
        };
        let request = self
            .request(Method::POST, path)
            .header(CONTENT_TYPE, "application/json")
            .header(api::IDEMPOTENCY_KEY, key.as_str())
            .body(Full::from(body));
        self.answer(request).await
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    async fn answer<T: DeserializeOwned>(&self, request: http::Result<Request<Full<Bytes>>>) -> Reply<T> {
        self.answer_at(request).await.map(|at| at.value)
    }

    async fn answer_at<T: DeserializeOwned>(&self, request: http::Result<Request<Full<Bytes>>>) -> Reply<At<T>> {
        let whole = async {
            match self.send(request).await {
                Reply::Ok(response) => {
                    let index = index(response.headers());
                    match response.into_body().collect().await {
                        Ok(body) => match serde_json::from_slice(&body.to_bytes()) {
                            Ok(value) => Reply::Ok(At { value, index }),
                            Err(error) => Reply::Unknown(format!("the answer does not parse: {error}")),
                        },
                        Err(error) => Reply::Unknown(format!("the answer broke off: {error}")),
                    }
                }
                Reply::Failed(failure) => Reply::Failed(failure),
                Reply::Unknown(message) => Reply::Unknown(message),
            }
        };
        self.limited(whole).await
    }

    async fn open(&self, request: http::Result<Request<Full<Bytes>>>) -> Reply<Stream> {
        let head = async {
            match self.send(request).await {
                Reply::Ok(response) => Reply::Ok(Stream::new(response.into_body())),
                Reply::Failed(failure) => Reply::Failed(failure),
                Reply::Unknown(message) => Reply::Unknown(message),
            }
        };
        self.limited(head).await
    }

    async fn limited<T>(&self, reply: impl Future<Output = Reply<T>>) -> Reply<T> {
        match tokio::time::timeout(self.timeout, reply).await {
            Ok(reply) => reply,
            Err(_) => Reply::Unknown(format!("no answer within {:?}", self.timeout)),
        }
    }

    async fn send(&self, request: http::Result<Request<Full<Bytes>>>) -> Reply<Response<Incoming>> {
        let request = match request {
            Ok(request) => request,
            Err(error) => return Reply::Failed(not_sent(format!("not a request: {error}"))),
        };
        let response = match self.pool.request(request).await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Reply::Failed(not_sent(format!("no connection: {error:?}"))),
            Err(error) => return Reply::Unknown(format!("the connection broke: {error:?}")),
        };
        let status = response.status().as_u16();
        if response.status().is_success() {
            return Reply::Ok(response);
        }
        let index = index(response.headers());
        let body = match response.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => Bytes::new(),
        };
        match meaning(status, &body) {
            Reply::Failed(failure) => Reply::Failed(Failure { index, ..failure }),
            other @ (Reply::Ok(_) | Reply::Unknown(_)) => other,
        }
    }
}

/// The log index that an answer names.
fn index(headers: &HeaderMap) -> Option<u64> {
    headers.get(api::INDEX)?.to_str().ok()?.parse().ok()
}

/// What an answer other than 2xx means for the write.
fn meaning<T>(status: u16, body: &[u8]) -> Reply<T> {
    let error = serde_json::from_slice::<ErrorBody>(body).ok().map(|body| body.error);
    let message = match &error {
        Some(error) => error.message.clone(),
        None => String::from_utf8_lossy(body).chars().take(200).collect(),
    };
    let code = error.map(|error| error.code);
    // A 500 is a bug whose effect nobody promises anything about, and so is a status that is not documented.
    if matches!(status, 400..=499 | 503) && !code.is_some_and(ErrorCode::effect_unknown) {
        Reply::Failed(Failure { status: Some(status), code, message, index: None })
    } else {
        Reply::Unknown(format!("{status} {}: {message}", code.map_or("without a code", ErrorCode::as_str)))
    }
}

fn not_sent(message: String) -> Failure {
    Failure { status: None, code: None, message, index: None }
}

/// A write that was acknowledged, after however many attempts.
#[derive(Debug, Clone, PartialEq)]
pub struct Acknowledged<T> {
    pub value: T,
    pub attempts: u32,
    /// Index of the client that was answered.
    pub by: usize,
    /// When the attempt that succeeded was sent.
    pub sent: Instant,
}

/// A write that was not acknowledged before its deadline.
#[derive(Debug, Clone, PartialEq)]
pub struct GivenUp {
    pub attempts: u32,
    /// No attempt can have had an effect.
    pub certainly_not_applied: bool,
    pub last: String,
}

/// Repeats an append with one key, over `clients` in turn beginning with `first`, until it is acknowledged.
///
/// # Errors
/// [`GivenUp`] at the deadline, or when an instance says that repeating will not help.
pub async fn append_until(
    clients: &[Client],
    first: usize,
    session: &SessionKey,
    text: &str,
    key: &IdempotencyKey,
    deadline: Instant,
) -> Result<Acknowledged<AppendResponse>, GivenUp> {
    let mut certainly_not_applied = true;
    let mut attempts = 0;
    loop {
        let by = (first + attempts as usize) % clients.len();
        let sent = Instant::now();
        attempts += 1;
        let (last, hopeless) = match clients[by].append(session, text, key).await {
            Reply::Ok(value) => return Ok(Acknowledged { value, attempts, by, sent }),
            Reply::Failed(failure) => {
                let hopeless = failure.code.is_some_and(|code| !code.retryable());
                (format!("{failure:?}"), hopeless)
            }
            Reply::Unknown(message) => {
                certainly_not_applied = false;
                (message, false)
            }
        };
        if hopeless || Instant::now() >= deadline {
            return Err(GivenUp { attempts, certainly_not_applied, last });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The events of one connection.
#[derive(Debug)]
pub struct Stream {
    body: Incoming,
    parser: Parser,
    ready: std::collections::VecDeque<Event>,
}

impl Stream {
    fn new(body: Incoming) -> Self {
        Self { body, parser: Parser::default(), ready: std::collections::VecDeque::new() }
    }

    /// The next event; `None` when the connection ended, however it did.
    ///
    /// # Errors
    /// When the server sends what the interface does not document.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.ready.extend(self.parser.push(bytes)?);
                    }
                }
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}

/// A committed answer, as a reader put it together over any number of connections.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub turn: TurnId,
    /// The deltas of the last attempt.
    pub streamed: String,
    pub entry_id: String,
    /// What `done` names as committed.
    pub text: String,
    pub usage: Usage,
    pub deltas: u64,
    pub restarts: u32,
    pub reconnects: u32,
    /// The longest time between two events.
    pub longest_gap: Duration,
}

/// Why a reader has no whole answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReadError {
    /// It saw what a reader must never see.
    #[error("{0}")]
    Wrong(String),
    /// The turn ended without an answer, and said so.
    #[error("turn {turn} ended with {}: {message}", code.as_str())]
    Ended { turn: TurnId, code: ErrorCode, message: String },
    /// There was no end before the deadline.
    #[error("turn {turn} did not end in time; {deltas} deltas arrived")]
    Late { turn: TurnId, deltas: u64 },
    /// The connection broke before the first event, so the turn has no name here.
    #[error("the stream ended before its start")]
    NoStart,
}

/// Reads one streamed answer to its end, going on at another instance when a connection breaks.
///
/// It fails on what a reader must never see: a position that does not grow (a repeat), a text that does not match what
/// was committed (a gap), an `error` event.
#[derive(Debug)]
pub struct Reader {
    clients: Vec<Client>,
    at: usize,
    stream: Option<Stream>,
    turn: TurnId,
    position: Option<StreamPosition>,
    streamed: String,
    deltas: u64,
    restarts: u32,
    reconnects: u32,
    last_event: Instant,
    longest_gap: Duration,
    /// Of the connection that is open.
    events: u64,
}

impl Reader {
    /// Sends a message to `clients[first]` and waits for its `start`.
    ///
    /// # Errors
    /// When it is not accepted, or the first event is not `start`.
    pub async fn start(clients: &[Client], first: usize, request: &ChatRequest, key: &IdempotencyKey) -> Result<Self> {
        let client = clients.get(first).context("no such client")?;
        let stream = client.stream(request, key).await.ok().context("open the stream")?;
        Ok(Self::over(clients, first, stream).await?)
    }

    /// Goes on with a stream that `clients[first]` has just opened, and waits for its `start`.
    ///
    /// # Errors
    /// When the stream ends before, or begins with anything else.
    pub async fn over(clients: &[Client], first: usize, mut stream: Stream) -> Result<Self, ReadError> {
        let wrong = |error: &dyn std::fmt::Display| ReadError::Wrong(error.to_string());
        let event = stream.next().await.map_err(|error| wrong(&error))?.ok_or(ReadError::NoStart)?;
        let StreamEvent::Start { turn_id, .. } = &event.event else {
            return Err(wrong(&format!("the first event is {event:?}")));
        };
        let turn = TurnId::parse(turn_id.clone()).map_err(|error| wrong(&error))?;
        let position = event.id.as_deref().map(str::parse).transpose().map_err(|error| wrong(&error))?;
        Ok(Self {
            clients: clients.to_vec(),
            at: first,
            stream: Some(stream),
            turn,
            position,
            streamed: String::new(),
            deltas: 0,
            restarts: 0,
            reconnects: 0,
            last_event: Instant::now(),
            longest_gap: Duration::ZERO,
            events: 1,
        })
    }

    pub fn turn(&self) -> &TurnId {
        &self.turn
    }

    /// Reads until `deltas` deltas have arrived in all.
    ///
    /// # Errors
    /// When the answer ends before, or at the deadline.
    pub async fn read_deltas(&mut self, deltas: u64, deadline: Instant) -> Result<(), ReadError> {
        while self.deltas < deltas {
            if let Some(answer) = self.step(deadline).await? {
                return Err(ReadError::Wrong(format!("the answer ended after {} deltas", answer.deltas)));
            }
        }
        Ok(())
    }

    /// Reads until the answer goes on after a break: until an event of another attempt than now, or over another connection,
    /// however often it takes to get one. Answers when that was, and the answer if it was the end.
    ///
    /// # Errors
    /// When the stream shows what a reader must never see, or at the deadline.
    pub async fn read_past_break(&mut self, deadline: Instant) -> Result<(Instant, Option<Answer>), ReadError> {
        let (reconnects, restarts) = (self.reconnects, self.restarts);
        loop {
            let answer = self.step(deadline).await?;
            let elsewhere = self.reconnects > reconnects && self.events > 0;
            if answer.is_some() || elsewhere || self.restarts > restarts {
                return Ok((self.last_event, answer));
            }
        }
    }

    /// Drops the connection, as a client does that walks out of its network; the next read goes on at another instance.
    pub fn disconnect(&mut self) {
        self.stream = None;
    }

    /// Reads to the committed end.
    ///
    /// # Errors
    /// When the stream shows what a reader must never see, or at the deadline.
    pub async fn finish(mut self, deadline: Instant) -> Result<Answer, ReadError> {
        loop {
            if let Some(answer) = self.step(deadline).await? {
                return Ok(answer);
            }
        }
    }

    async fn step(&mut self, deadline: Instant) -> Result<Option<Answer>, ReadError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let step = async {
            let Some(stream) = &mut self.stream else { return self.reconnect().await.map(|()| None) };
            match stream.next().await.map_err(|error| ReadError::Wrong(format!("{error:#}")))? {
                Some(event) => self.take(event),
                None => {
                    self.stream = None;
                    Ok(None)
                }
            }
        };
        match tokio::time::timeout(left, step).await {
            Ok(result) => result,
            Err(_) => Err(ReadError::Late { turn: self.turn.clone(), deltas: self.deltas }),
        }
    }

    async fn reconnect(&mut self) -> Result<(), ReadError> {
        self.at = (self.at + 1) % self.clients.len();
        let last = self.position.as_ref().map(ToString::to_string);
        match self.clients[self.at].resume(&self.turn, last.as_deref()).await {
            Reply::Ok(stream) => {
                self.stream = Some(stream);
                self.reconnects += 1;
                self.events = 0;
            }
            Reply::Failed(Failure { code: Some(code), message, .. }) if !code.retryable() => {
                let refused = format!("resume of {} refused: {} {message}", self.turn, code.as_str());
                return Err(ReadError::Wrong(refused));
            }
            Reply::Failed(_) | Reply::Unknown(_) => tokio::time::sleep(PAUSE).await,
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<Option<Answer>, ReadError> {
        let now = Instant::now();
        self.longest_gap = self.longest_gap.max(now - self.last_event);
        self.last_event = now;
        self.events += 1;
        if let Some(id) = &event.id {
            let next: StreamPosition =
                id.parse().map_err(|error| ReadError::Wrong(format!("event id {id}: {error}")))?;
            must(next.turn == self.turn, || format!("event {id} is of another turn than {}", self.turn))?;
            if let Some(last) = &self.position {
                let (next, last) = ((next.attempt, next.n), (last.attempt, last.n));
                let follows = match event.event {
                    // An end leads nowhere, so it may stand where the last delta stood.
                    StreamEvent::Done { .. } | StreamEvent::Error { .. } => next >= last,
                    // What was read is void, also of this attempt, where its text is in no memory any more.
                    StreamEvent::Restart { .. } => next.0 >= last.0,
                    StreamEvent::Start { .. } | StreamEvent::Delta { .. } | StreamEvent::Tool { .. } => next > last,
                };
                must(follows, || format!("event {id} came after {}-{}: a repeat or a step back", last.0, last.1))?;
            }
            self.position = Some(next);
        }
        match event.event {
            // A reader that reconnects without a position is told the start again.
            StreamEvent::Start { turn_id, .. } => {
                must(turn_id == self.turn.as_str(), || "start of another turn".to_owned())?;
            }
            StreamEvent::Delta { text } => {
                self.deltas += 1;
                self.streamed.push_str(&text);
            }
            StreamEvent::Tool { .. } => {}
            StreamEvent::Restart { .. } => {
                self.restarts += 1;
                self.streamed.clear();
            }
            StreamEvent::Done { entry_id, text, usage, .. } => {
                must(self.streamed == text, || {
                    let streamed = &self.streamed;
                    format!(
                        "the deltas do not add up to the committed text:\nstreamed  {streamed:?}\ncommitted {text:?}"
                    )
                })?;
                return Ok(Some(Answer {
                    turn: self.turn.clone(),
                    streamed: std::mem::take(&mut self.streamed),
                    entry_id,
                    text,
                    usage,
                    deltas: self.deltas,
                    restarts: self.restarts,
                    reconnects: self.reconnects,
                    longest_gap: self.longest_gap,
                }));
            }
            StreamEvent::Error { code, message } => {
                return Err(ReadError::Ended { turn: self.turn.clone(), code, message });
            }
        }
        Ok(None)
    }
}

/// What must hold of every stream.
fn must(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), ReadError> {
    if holds { Ok(()) } else { Err(ReadError::Wrong(otherwise())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock_gateway::{Fake, Mischief};

    fn key(text: &str) -> IdempotencyKey {
        IdempotencyKey::parse(text).unwrap()
    }

    fn session() -> SessionKey {
        SessionKey::parse("test").unwrap()
    }

    fn client(address: SocketAddr) -> Client {
        Client::new(address, Protocol::Http1, Duration::from_secs(5))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn statuses_say_what_became_of_the_write() {
        for status in [400, 401, 404, 409, 412, 413, 429, 503] {
            assert!(matches!(meaning::<()>(status, b""), Reply::Failed(_)), "{status}");
        }
        for status in [500, 502, 504, 302, 599] {
            assert!(matches!(meaning::<()>(status, b""), Reply::Unknown(_)), "{status}");
        }
    }

    #[tokio::test]
    async fn both_protocols_append_and_read_back() {
        let fake = Fake::start(Mischief::None).await;
        for protocol in [Protocol::Http1, Protocol::H2c] {
            let client = Client::new(fake.address(), protocol, Duration::from_secs(5));
            let text = format!("{protocol:?}");
            let first = client.append(&session(), &text, &key(&text)).await.ok().unwrap();
            let again = client.append(&session(), &text, &key(&text)).await.ok().unwrap();
            assert_eq!(first, again, "a repeated key gives the first answer");
            let transcript = client.transcript(&session()).await.unwrap();
            assert_eq!(transcript.last().unwrap().text, text);
        }
    }

    #[tokio::test]
    async fn a_long_transcript_is_read_page_by_page() {
        let fake = Fake::start(Mischief::None).await;
        let client = client(fake.address());
        assert_eq!(client.transcript(&session()).await.unwrap(), []);
        for n in 0..PAGE + 3 {
            client.append(&session(), &n.to_string(), &key(&n.to_string())).await.ok().unwrap();
        }
        let transcript = client.transcript(&session()).await.unwrap();
        assert_eq!(transcript.len(), PAGE + 3);
        assert!(transcript.iter().zip(1..).all(|(entry, seq)| entry.seq == seq));
    }

    #[tokio::test]
    async fn a_refused_connection_had_no_effect_and_a_slow_answer_is_unknown() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let reply = client(closed).append(&session(), "x", &key("x")).await;
        assert!(matches!(reply, Reply::Failed(Failure { status: None, .. })), "{reply:?}");

        let fake = Fake::start(Mischief::NeverAnswer).await;
        let impatient = client(fake.address()).with_timeout(Duration::from_millis(50));
        let reply = impatient.append(&session(), "x", &key("x")).await;
        assert!(matches!(reply, Reply::Unknown(_)), "{reply:?}");
    }

    #[tokio::test]
    async fn a_write_is_repeated_elsewhere_with_its_key() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let fake = Fake::start(Mischief::None).await;
        let clients = [client(closed), client(fake.address())];
        let done = append_until(&clients, 0, &session(), "x", &key("x"), soon()).await.unwrap();
        assert_eq!((done.attempts, done.by, done.value.seq), (2, 1, 1));

        let given_up = append_until(&clients[..1], 0, &session(), "y", &key("y"), Instant::now()).await.unwrap_err();
        assert!(given_up.certainly_not_applied, "{given_up:?}");
        // The same key with another body is refused for good: no attempt follows.
        let refused = append_until(&clients[1..], 0, &session(), "other", &key("x"), soon()).await.unwrap_err();
        assert_eq!(refused.attempts, 1, "{refused:?}");
    }

    #[tokio::test]
    async fn a_broken_stream_goes_on_where_it_was() {
        let fake = Fake::start(Mischief::None).await;
        let clients = [client(fake.address()), client(fake.address())];
        let request = ChatRequest { message: "one two three".into(), ..ChatRequest::default() };
        let mut reader = Reader::start(&clients, 0, &request, &key("a")).await.unwrap();
        reader.read_deltas(1, soon()).await.unwrap();
        let (_, answer) = reader.read_past_break(soon()).await.unwrap();
        assert_eq!(
            (answer, reader.deltas, reader.reconnects),
            (None, 2, 1),
            "the first event of the second connection"
        );
        // The fake closes each connection after two events, so the rest takes several.
        let answer = reader.finish(soon()).await.unwrap();
        assert_eq!(answer.text, "one two three");
        assert!(answer.reconnects >= 1, "{answer:?}");
    }

    #[tokio::test]
    async fn a_stream_that_repeats_or_skips_is_caught() {
        for (mischief, complaint) in [(Mischief::RepeatDelta, "repeat"), (Mischief::SkipDelta, "do not add up")] {
            let fake = Fake::start(mischief).await;
            let clients = [client(fake.address())];
            let request = ChatRequest { message: "one two three".into(), ..ChatRequest::default() };
            let reader = Reader::start(&clients, 0, &request, &key("a")).await.unwrap();
            let error = reader.finish(soon()).await.unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
