//! The REST API: which request is meant, whether it may be, what it does, and Discord's way to answer.

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State as AxumState;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::super::connection::Connection;
use super::faults::{Fault, Route};
use super::gateway::{self, text};
use super::intents;
use super::limits::{Bucket, Limited};
use super::multipart;
use super::record::{self, Answer, Door, Moment, Recorded, What};
use super::state::{Shared, State};
use super::world::{Draft, Id, Place};

/// Discord's own limit of a request with files, and a little.
const BODY_BYTES: usize = 26 << 20;
/// Bodies that the record keeps.
const RECORDED_BYTES: usize = 64 << 10;
const CONTENT_CHARS: usize = 2000;
const NONCE_CHARS: usize = 25;

/// A request, as far as its path goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    route: Route,
    /// The major parameter, by which requests are limited apart.
    channel: Option<Id>,
    message: Option<Id>,
    user: Option<Id>,
}

impl Call {
    /// `None`: nothing that the fake knows.
    fn parse(method: &Method, path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/api/")?;
        let (version, rest) = rest.split_once('/')?;
        if !["v8", "v9", "v10"].contains(&version) {
            return None;
        }
        let parts: Vec<&str> = rest.split('/').collect();
        let plain = |route| Some(Self { route, channel: None, message: None, user: None });
        let channel = |route, id: &str| Some(Self { channel: Some(id.parse().ok()?), ..plain(route)? });
        let message =
            |route, id: &str, message: &str| Some(Self { message: Some(message.parse().ok()?), ..channel(route, id)? });
        match (method.as_str(), parts.as_slice()) {
            ("GET", ["gateway"]) => plain(Route::GetGateway),
            ("GET", ["gateway", "bot"]) => plain(Route::GetGatewayBot),
            ("GET", ["users", "@me"]) => plain(Route::GetCurrentUser),
            ("GET", ["users", id]) => Some(Self { user: Some(id.parse().ok()?), ..plain(Route::GetUser)? }),
            ("GET", ["applications", "@me"] | ["oauth2", "applications", "@me"]) => plain(Route::GetApplication),
            ("POST", ["users", "@me", "channels"]) => plain(Route::CreateDm),
            ("GET", ["channels", id]) => channel(Route::GetChannel, id),
            ("GET", ["channels", id, "messages"]) => channel(Route::GetMessages, id),
            ("POST", ["channels", id, "messages"]) => channel(Route::CreateMessage, id),
            ("POST", ["channels", id, "typing"]) => channel(Route::TriggerTyping, id),
            ("POST", ["channels", id, "threads"]) => channel(Route::StartThread, id),
            ("GET", ["channels", id, "messages", of]) => message(Route::GetMessage, id, of),
            ("PATCH", ["channels", id, "messages", of]) => message(Route::EditMessage, id, of),
            ("DELETE", ["channels", id, "messages", of]) => message(Route::DeleteMessage, id, of),
            ("POST", ["channels", id, "messages", of, "threads"]) => message(Route::StartThreadOnMessage, id, of),
            (_, _) => None,
        }
    }
}

/// An answer in the making.
#[derive(Debug, Default)]
struct Reply {
    status: u16,
    /// Absent: no content.
    body: Option<Value>,
    bucket: Option<Bucket>,
    limited: Option<Limited>,
}

impl Reply {
    fn new(status: u16, body: Value) -> Self {
        Self { status, body: Some(body), ..Self::default() }
    }

    fn empty() -> Self {
        Self { status: 204, ..Self::default() }
    }
}

/// An error, in Discord's numbering.
///
/// Source: discord-api-docs, topics/opcodes-and-status-codes, "JSON error codes".
#[derive(Debug, PartialEq)]
struct Refusal {
    status: u16,
    code: u32,
    message: &'static str,
    /// Which field is wrong, how, and why.
    field: Option<(&'static str, &'static str, String)>,
}

impl Refusal {
    const fn new(status: u16, code: u32, message: &'static str) -> Self {
        Self { status, code, message, field: None }
    }

    fn form(field: &'static str, code: &'static str, why: impl Into<String>) -> Self {
        Self { field: Some((field, code, why.into())), ..Self::new(400, 50035, "Invalid Form Body") }
    }

    fn reply(self) -> Reply {
        let mut body = json!({"message": self.message, "code": self.code});
        if let Some((field, code, why)) = self.field {
            body["errors"] = json!({field: {"_errors": [{"code": code, "message": why}]}});
        }
        Reply::new(self.status, body)
    }
}

const UNAUTHORIZED: Refusal = Refusal::new(401, 0, "401: Unauthorized");
const NOT_FOUND: Refusal = Refusal::new(404, 0, "404: Not Found");
const UNKNOWN_CHANNEL: Refusal = Refusal::new(404, 10003, "Unknown Channel");
const UNKNOWN_MESSAGE: Refusal = Refusal::new(404, 10008, "Unknown Message");
const UNKNOWN_USER: Refusal = Refusal::new(404, 10013, "Unknown User");
const NOT_AUTHOR: Refusal = Refusal::new(403, 50005, "Cannot edit a message authored by another user");
const EMPTY_MESSAGE: Refusal = Refusal::new(400, 50006, "Cannot send an empty message");
const CANNOT_DM: Refusal = Refusal::new(403, 50007, "Cannot send messages to this user");
const MISSING_PERMISSIONS: Refusal = Refusal::new(403, 50013, "Missing Permissions");
const WRONG_CHANNEL_TYPE: Refusal = Refusal::new(400, 50024, "Cannot execute action on this channel type");
const INVALID_RECIPIENTS: Refusal = Refusal::new(400, 50033, "Invalid Recipient(s)");
const BAD_JSON: Refusal = Refusal::new(400, 50109, "The request body contains invalid JSON.");
const THREAD_EXISTS: Refusal = Refusal::new(400, 160_004, "A thread has already been created for this message");

/// Answers whatever comes to one of the two addresses.
pub(super) async fn answer(
    AxumState((shared, door)): AxumState<(Arc<Shared>, Door)>,
    Extension(connection): Extension<Connection>,
    request: Request<Body>,
) -> Response {
    // Before anything else: a process that dies next cannot be asked for any more.
    shared.name(&connection);
    if gateway::is_upgrade(request.headers()) {
        let mut running = Running::begin(&shared, &connection, &request, Some(Route::Connect), Value::Null);
        match fail(&shared, &connection, &mut running, Some(Route::Connect)).await {
            Some(Fate::Answered(response)) => return response,
            Some(Fate::ActAndClose) | None => {}
        }
        let response = gateway::upgrade(&shared, door, &connection, request);
        running.end(Answer::Status(response.status().as_u16()));
        return response;
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES).await else {
        return render(Refusal::new(413, 0, "413: Request Entity Too Large").reply());
    };
    let call = Call::parse(&parts.method, parts.uri.path());
    let form = Form::parse(&parts.headers, &body);
    let kept = form.as_ref().map_or(Value::Null, |form| form.kept.clone());
    let request = Request::from_parts(parts, Body::empty());
    let route = call.map(|call| call.route);
    let mut running = Running::begin(&shared, &connection, &request, route, kept);
    let fate = fail(&shared, &connection, &mut running, route).await;
    if let Some(Fate::Answered(response)) = fate {
        return response;
    }
    let token = text(request.headers(), &header::AUTHORIZATION);
    let query = request.uri().query().unwrap_or_default().to_owned();
    let reply = shared.change(|state| state.serve(call, token.as_deref(), form, &query));
    if let Some(Fate::ActAndClose) = fate {
        running.end(Answer::Cut { acted: true });
        return connection.cut().await;
    }
    running.end(Answer::Status(reply.status));
    render(reply)
}

/// What a fault leaves of a request.
enum Fate {
    Answered(Response),
    ActAndClose,
}

/// Does to the request what the test planned for it; `None`: it goes on as if nothing were.
async fn fail(
    shared: &Arc<Shared>,
    connection: &Connection,
    running: &mut Running,
    route: Option<Route>,
) -> Option<Fate> {
    let route = route?;
    let fault = shared.change(|state| state.faults.next(route))?;
    let reply = match fault {
        Fault::Status(status) => Reply::new(status, json!({"message": "failed on request", "code": 0})),
        Fault::RateLimited { retry_after, global: true } => limited(Limited::Global { retry_after }),
        Fault::RateLimited { retry_after, global: false } => {
            let bucket = Bucket {
                name: format!("fake-{route:?}"),
                limit: 1,
                remaining: 0,
                reset_after: retry_after,
                reset_unix_ms: record::unix_ms() + u64::try_from(retry_after.as_millis()).unwrap_or(0),
            };
            limited(Limited::Bucket { bucket, retry_after })
        }
        Fault::ActAndClose if route != Route::Connect => return Some(Fate::ActAndClose),
        Fault::CloseBefore | Fault::ActAndClose => {
            running.end(Answer::Cut { acted: false });
            return connection.cut().await;
        }
        Fault::Delay(delay) => {
            tokio::time::sleep(delay).await;
            return None;
        }
        Fault::Hang => return std::future::pending().await,
    };
    shared.change(|state| state.limits.count_invalid(reply.status));
    running.end(Answer::Status(reply.status));
    Some(Fate::Answered(render(reply)))
}

fn limited(limited: Limited) -> Reply {
    let (message, global) = match &limited {
        Limited::Bucket { .. } => ("You are being rate limited.", false),
        Limited::Global { .. } => ("You are being rate limited.", true),
        Limited::Banned { .. } => ("You are being blocked from accessing our API temporarily.", false),
    };
    let (Limited::Bucket { retry_after, .. } | Limited::Global { retry_after } | Limited::Banned { retry_after }) =
        &limited;
    let body = json!({"message": message, "retry_after": retry_after.as_secs_f64(), "global": global, "code": 0});
    let bucket = match &limited {
        Limited::Bucket { bucket, .. } => Some(bucket.clone()),
        Limited::Global { .. } | Limited::Banned { .. } => None,
    };
    Reply { status: 429, body: Some(body), bucket, limited: Some(limited) }
}

fn render(reply: Reply) -> Response {
    let mut response = Response::new(reply.body.as_ref().map_or_else(Body::empty, |body| Body::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    let mut set = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    if reply.body.is_some() {
        set("content-type", "application/json".to_owned());
    }
    if let Some(bucket) = &reply.bucket {
        set("x-ratelimit-bucket", bucket.name.clone());
        set("x-ratelimit-limit", bucket.limit.to_string());
        set("x-ratelimit-remaining", bucket.remaining.to_string());
        set("x-ratelimit-reset", format!("{}.{:03}", bucket.reset_unix_ms / 1000, bucket.reset_unix_ms % 1000));
        set("x-ratelimit-reset-after", format!("{:.3}", bucket.reset_after.as_secs_f64()));
    }
    let (scope, retry_after) = match &reply.limited {
        None => return response,
        Some(Limited::Bucket { retry_after, .. }) => (Some("user"), retry_after),
        Some(Limited::Global { retry_after }) => {
            set("x-ratelimit-global", "true".to_owned());
            (Some("global"), retry_after)
        }
        Some(Limited::Banned { retry_after }) => (None, retry_after),
    };
    if let Some(scope) = scope {
        set("x-ratelimit-scope", scope.to_owned());
    }
    // Whole seconds here, fractions in the body.
    set("retry-after", retry_after.as_secs_f64().ceil().to_string());
    response
}

/// The entry of a request in the record. Dropped before its end, the client had gone.
struct Running {
    shared: Arc<Shared>,
    number: usize,
    ended: bool,
}

impl Running {
    fn begin(
        shared: &Arc<Shared>,
        connection: &Connection,
        request: &Request<Body>,
        route: Option<Route>,
        body: Value,
    ) -> Self {
        let what = What::Request(record::Request {
            method: request.method().to_string(),
            route,
            path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
            user_agent: text(request.headers(), &header::USER_AGENT),
            body,
            answer: None,
        });
        let entry = Recorded {
            started: Moment::now(),
            ended: None,
            peer: connection.peer(),
            caller: shared.name(connection),
            connection: None,
            session: None,
            what,
        };
        let number = shared.change(|state| state.record.push(entry));
        Self { shared: shared.clone(), number, ended: false }
    }

    fn end(&mut self, answer: Answer) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.shared.change(|state| {
            let Some(entry) = state.record.entry(self.number) else {
                return;
            };
            entry.ended = Some(Moment::now());
            if let What::Request(request) = &mut entry.what {
                request.answer = Some(answer);
            }
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Answer::Abandoned);
    }
}

/// What a body says: JSON, or a form with JSON and files in it.
#[derive(Debug, Default)]
struct Form {
    json: Value,
    files: Vec<(String, usize)>,
    /// The JSON again, unless it is too large to keep.
    kept: Value,
}

impl Form {
    fn parse(headers: &HeaderMap, body: &Bytes) -> Result<Self, Refusal> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        let kind = text(headers, &header::CONTENT_TYPE).unwrap_or_default();
        let (json, files) = match kind.strip_prefix("multipart/form-data") {
            Some(rest) => {
                let boundary = rest.split_once("boundary=").map(|(_, boundary)| boundary.trim_matches('"'));
                let parts = multipart::parse(boundary.unwrap_or_default(), body).ok_or(BAD_JSON)?;
                (parts.payload_json, parts.files)
            }
            None => (body.to_vec(), Vec::new()),
        };
        let kept = json.len() <= RECORDED_BYTES;
        let json: Value =
            if json.is_empty() { json!({}) } else { serde_json::from_slice(&json).map_err(|_| BAD_JSON)? };
        let kept = if kept { json.clone() } else { Value::Null };
        Ok(Self { json, files, kept })
    }
}

impl State {
    /// Counts the request against every limit, and does it.
    fn serve(&mut self, call: Option<Call>, token: Option<&str>, form: Result<Form, Refusal>, query: &str) -> Reply {
        if let Some(banned) = self.limits.banned() {
            return limited(banned);
        }
        let reply = self.check_and_act(call, token, form, query);
        self.limits.count_invalid(reply.status);
        reply
    }

    fn check_and_act(
        &mut self,
        call: Option<Call>,
        token: Option<&str>,
        form: Result<Form, Refusal>,
        query: &str,
    ) -> Reply {
        let Some(call) = call else {
            return NOT_FOUND.reply();
        };
        let bucket = match self.limits.take(call.route, call.channel) {
            Ok(bucket) => bucket,
            Err(why) => return limited(why),
        };
        let result = if call.route != Route::GetGateway && !self.authorized(token) {
            Err(UNAUTHORIZED)
        } else {
            form.and_then(|form| self.act(call, form, query))
        };
        Reply { bucket: Some(bucket), ..result.unwrap_or_else(Refusal::reply) }
    }

    fn act(&mut self, call: Call, form: Form, query: &str) -> Result<Reply, Refusal> {
        let channel = call.channel.ok_or(UNKNOWN_CHANNEL);
        let message = call.message.ok_or(UNKNOWN_MESSAGE);
        let body = match call.route {
            Route::GetGateway => json!({"url": self.gateway_url()}),
            Route::GetGatewayBot => self.gateway_bot(),
            Route::GetCurrentUser => self.world.me_json(),
            Route::GetApplication => self.world.application_json(),
            Route::GetUser => {
                let user = call.user.filter(|user| self.world.user(*user).is_some()).ok_or(UNKNOWN_USER)?;
                self.world.user_json(user)
            }
            Route::CreateDm => {
                let user = form.json["recipient_id"].as_str().and_then(|id| id.parse().ok());
                let channel = user.and_then(|user| self.world.dm(user)).ok_or(INVALID_RECIPIENTS)?;
                self.world.channel_json(channel)
            }
            Route::GetChannel => {
                let channel = channel?;
                self.world.channel(channel).ok_or(UNKNOWN_CHANNEL)?;
                self.world.channel_json(channel)
            }
            Route::GetMessages => self.messages(channel?, query)?,
            Route::GetMessage => {
                let message = self.world.channel(channel?).ok_or(UNKNOWN_CHANNEL)?.message(message?);
                self.world.message_json(message.ok_or(UNKNOWN_MESSAGE)?, self.app_intents())
            }
            Route::CreateMessage => self.create_message(channel?, form)?,
            Route::EditMessage => self.edit(channel?, message?, &form.json)?,
            Route::DeleteMessage => {
                let (channel, message) = (channel?, message?);
                let place = self.world.channel(channel).ok_or(UNKNOWN_CHANNEL)?;
                let by_bot = place.message(message).ok_or(UNKNOWN_MESSAGE)?.by_bot;
                if !by_bot && (place.muted || place.place.guild().is_none()) {
                    return Err(MISSING_PERMISSIONS);
                }
                self.delete_message(channel, message);
                return Ok(Reply::empty());
            }
            Route::TriggerTyping => {
                let channel = channel?;
                self.may_send(channel)?;
                self.world.channel_mut(channel).ok_or(UNKNOWN_CHANNEL)?.typing += 1;
                return Ok(Reply::empty());
            }
            Route::StartThreadOnMessage => self.start_thread(channel?, Some(message?), &form.json)?,
            Route::StartThread => self.start_thread(channel?, None, &form.json)?,
            Route::Connect => return Err(NOT_FOUND),
        };
        let created = matches!(call.route, Route::StartThread | Route::StartThreadOnMessage);
        Ok(Reply::new(if created { 201 } else { 200 }, body))
    }

    fn gateway_url(&self) -> String {
        format!("ws://{}", self.gateway)
    }

    fn gateway_bot(&mut self) -> Value {
        let limit = self.starts.limit();
        json!({
            "url": self.gateway_url(), "shards": self.options.shards,
            "session_start_limit": {
                "total": limit.starts.requests, "remaining": self.starts.remaining(),
                "reset_after": u64::try_from(self.starts.reset_after().as_millis()).unwrap_or(u64::MAX),
                "max_concurrency": limit.max_concurrency,
            },
        })
    }

    /// REST shows what messages say to whom the gateway could show it.
    fn app_intents(&self) -> u64 {
        self.options.privileged_intents & intents::MESSAGE_CONTENT
    }

    fn messages(&self, channel: Id, query: &str) -> Result<Value, Refusal> {
        let place = self.world.channel(channel).ok_or(UNKNOWN_CHANNEL)?;
        let of = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let limit: usize = of("limit").map_or(Ok(50), str::parse).unwrap_or(0);
        if !(1..=100).contains(&limit) {
            return Err(Refusal::form("limit", "NUMBER_TYPE_MAX", "int value should be between 1 and 100."));
        }
        let bound = |name| of(name).and_then(|id| id.parse::<Id>().ok());
        let found: Vec<_> = match (bound("before"), bound("after")) {
            (_, Some(after)) => {
                let mut found: Vec<_> = place.messages.iter().filter(|one| one.id > after).take(limit).collect();
                found.reverse();
                found
            }
            (before, None) => {
                let older = place.messages.iter().rev().filter(|one| before.is_none_or(|before| one.id < before));
                older.take(limit).collect()
            }
        };
        Ok(found.into_iter().map(|one| self.world.message_json(one, self.app_intents())).collect())
    }

    fn may_send(&self, channel: Id) -> Result<(), Refusal> {
        let channel = self.world.channel(channel).ok_or(UNKNOWN_CHANNEL)?;
        match channel.place {
            Place::Dm { user } if self.world.user(user).is_some_and(|user| user.refuses_dms) => Err(CANNOT_DM),
            Place::Dm { .. } | Place::Guild { .. } | Place::Thread { .. } => {
                if channel.muted {
                    Err(MISSING_PERMISSIONS)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn create_message(&mut self, channel: Id, form: Form) -> Result<Value, Refusal> {
        self.may_send(channel)?;
        let mut draft = draft(form)?;
        if let Some(nonce) = &draft.nonce.1
            && draft.nonce.0
            && let Some(before) = self.world.by_nonce(nonce, self.options.nonce_lifetime)
        {
            return Ok(self.world.message_json(before, self.app_intents()));
        }
        if let Some(answered) = draft.message.reference
            && self.world.channel(channel).is_none_or(|channel| channel.message(answered).is_none())
        {
            if draft.must_exist {
                return Err(Refusal::form("message_reference", "REPLIES_UNKNOWN_MESSAGE", "Unknown message"));
            }
            draft.message.reference = None;
        }
        draft.message.nonce = draft.nonce.1;
        let message = self.add_message(channel, self.world.bot, draft.message).ok_or(UNKNOWN_CHANNEL)?;
        Ok(self.world.message_json(&message, self.app_intents()))
    }

    fn edit(&mut self, channel: Id, message: Id, json: &Value) -> Result<Value, Refusal> {
        let place = self.world.channel(channel).ok_or(UNKNOWN_CHANNEL)?;
        let known = place.message(message).ok_or(UNKNOWN_MESSAGE)?;
        if !known.by_bot {
            return Err(NOT_AUTHOR);
        }
        let text = content(json)?.map_or_else(|| known.content.clone(), str::to_owned);
        if text.trim().is_empty() && known.files.is_empty() && known.embeds.is_empty() {
            return Err(EMPTY_MESSAGE);
        }
        let message = self.edit_message(channel, message, &text).ok_or(UNKNOWN_MESSAGE)?;
        Ok(self.world.message_json(&message, self.app_intents()))
    }

    fn start_thread(&mut self, channel: Id, on: Option<Id>, json: &Value) -> Result<Value, Refusal> {
        let place = self.world.channel(channel).ok_or(UNKNOWN_CHANNEL)?;
        match place.place {
            Place::Guild { .. } => {}
            Place::Dm { .. } | Place::Thread { .. } => return Err(WRONG_CHANNEL_TYPE),
        }
        if place.muted {
            return Err(MISSING_PERMISSIONS);
        }
        if let Some(on) = on {
            place.message(on).ok_or(UNKNOWN_MESSAGE)?;
            if self.world.channel(on).is_some() {
                return Err(THREAD_EXISTS);
            }
        }
        let name = json["name"].as_str().unwrap_or_default();
        if !(1..=100).contains(&name.chars().count()) {
            let why = "Must be between 1 and 100 in length.";
            return Err(Refusal::form("name", "BASE_TYPE_BAD_LENGTH", why));
        }
        let thread = self.add_thread(channel, on, self.world.bot, name).ok_or(WRONG_CHANNEL_TYPE)?;
        Ok(self.world.channel_json(thread))
    }
}

fn content(json: &Value) -> Result<Option<&str>, Refusal> {
    let content = match &json["content"] {
        Value::Null => return Ok(None),
        Value::String(content) => content,
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            return Err(Refusal::form("content", "BASE_TYPE_BAD_STRING", "Could not interpret as string."));
        }
    };
    if content.chars().count() > CONTENT_CHARS {
        let why = format!("Must be {CONTENT_CHARS} or fewer in length.");
        return Err(Refusal::form("content", "BASE_TYPE_MAX_LENGTH", why));
    }
    Ok(Some(content))
}

/// A message as a client asks for it.
struct Asked {
    message: Draft,
    /// Whether it has to be the only one, and the nonce.
    nonce: (bool, Option<Value>),
    /// Whether the message that it answers must be there.
    must_exist: bool,
}

fn draft(form: Form) -> Result<Asked, Refusal> {
    let json = form.json;
    let content = content(&json)?.unwrap_or_default().to_owned();
    let embeds = json["embeds"].as_array().cloned().unwrap_or_default();
    let other = ["components", "sticker_ids", "poll"].iter().any(|name| match &json[name] {
        Value::Null => false,
        Value::Array(some) => !some.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => true,
    });
    if content.trim().is_empty() && embeds.is_empty() && form.files.is_empty() && !other {
        return Err(EMPTY_MESSAGE);
    }
    let nonce = match &json["nonce"] {
        Value::Null => None,
        Value::String(nonce) if nonce.chars().count() > NONCE_CHARS => {
            let why = format!("Must be {NONCE_CHARS} or fewer in length.");
            return Err(Refusal::form("nonce", "BASE_TYPE_MAX_LENGTH", why));
        }
        nonce @ (Value::String(_) | Value::Number(_)) => Some(nonce.clone()),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            return Err(Refusal::form("nonce", "BASE_TYPE_BAD_STRING", "Could not interpret as string."));
        }
    };
    let reference = &json["message_reference"];
    let answered = match &reference["message_id"] {
        Value::String(id) => id.parse().ok(),
        Value::Number(id) => id.as_u64().map(Id),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    Ok(Asked {
        message: Draft { content, nonce: None, reference: answered, files: form.files, embeds },
        nonce: (json["enforce_nonce"] == true, nonce),
        must_exist: reference["fail_if_not_exists"] != false,
    })
}
