//! OpenAI's chat completions, for clients that speak it.
//!
//! With `user` or the header `x-openclaw-session-key` a request is a turn of that session: its last user message is the
//! message, and the history is the session's own. Without, it goes straight to the models: nothing of it is stored, and
//! it needs no quorum.
//!
//! The protocol has no word for another attempt. When a turn loses its runner, the text that was sent is compared with
//! what the next attempt says: as long as they agree the stream just goes on, else it ends with an error.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json as Answer;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::HeaderMap;
use openclaw_proto::http::{
    AssistantMessage, ChatChoice, ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, ChatContent, ChatMessage,
    ChunkChoice, ChunkDelta, CompletionUsage, ErrorCode, Model, ModelList, StreamEvent, Usage,
};
use openclaw_proto::ids::{AgentId, TurnId};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::chat::{Incoming, accept, check_model, follow, wait, with_index};
use super::error::{ApiError, OpenAiErrorBody, openai_error};
use super::extract::{Json, Name, single};
use super::{Gateway, limits, sse};
use crate::metrics::Metrics;
use crate::models::{AttemptEvent, ChainError, FinishReason, ModelRef, Prompt, PromptMessage, Role};
use crate::sessions::follow::Follower;
use crate::sessions::router::{Address, MAIN_AGENT};
use crate::sessions::runner;

const SESSION_KEY: &str = "x-openclaw-session-key";
const AGENT_ID: &str = "x-openclaw-agent-id";
const MODEL: &str = "x-openclaw-model";

/// Most messages of one stateless request.
const MAX_MESSAGES: usize = 2048;

/// What a request's `model` means.
struct Target {
    agent_id: AgentId,
    /// Asked for by name, instead of the agent's own.
    model: Option<ModelRef>,
}

fn target(gateway: &Gateway, headers: &HeaderMap, model: &str) -> Result<Target, ApiError> {
    let named = single(headers, AGENT_ID)?;
    let of_model = agent_name(model);
    let agent = named.or(of_model).unwrap_or(MAIN_AGENT).to_lowercase();
    let agent_id = AgentId::parse(agent).map_err(|error| ApiError::invalid(format!("{AGENT_ID}: {error}")))?;
    if gateway.parts().agents.resolve(&agent_id).is_none() {
        return Err(ApiError::new(ErrorCode::NotFound, format!("there is no agent {agent_id}")));
    }
    let model = match (single(headers, MODEL)?, of_model) {
        (Some(model), _) => Some(check_model(gateway, model)?),
        (None, Some(_)) => None,
        (None, None) => {
            let asked = check_model(gateway, model);
            Some(asked.map_err(|error| ApiError::new(ErrorCode::NotFound, format!("{error}; see /v1/models")))?)
        }
    };
    Ok(Target { agent_id, model })
}

/// Whether a model name says which agent, and not just that it is one.
fn names_agent(model: &str) -> bool {
    !matches!(model, "openclaw" | "openclaw/default" | "openclaw:default") && agent_name(model).is_some()
}

/// The agent that a model name stands for, in each of upstream's spellings.
fn agent_name(model: &str) -> Option<&str> {
    match model {
        "openclaw" | "openclaw/default" | "openclaw:default" => Some(MAIN_AGENT),
        other => ["openclaw/", "openclaw:", "agent:"].iter().find_map(|prefix| other.strip_prefix(prefix)),
    }
}

/// A chat completion.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai", request_body = ChatCompletionRequest,
    params(
        ("x-openclaw-session-key" = Option<String>, Header, description = "Makes it a turn of this session"),
        ("x-openclaw-agent-id" = Option<String>, Header),
        ("x-openclaw-model" = Option<String>, Header, description = "`<provider>/<model>`"),
        ("Idempotency-Key" = Option<String>, Header, description = "With a session: repeated, it gives the first answer"),
    ),
    responses((status = 200, description = "Or chunks as server-sent events, with `stream`", body = ChatCompletion))
)]
pub(super) async fn completions(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    Json(body): Json<ChatCompletionRequest>,
) -> Result<Response, ApiError> {
    let until = Instant::now() + gateway.limits().chat_request;
    if let Some(n) = body.n.filter(|n| *n != 1) {
        return Err(ApiError::invalid(format!("n is {n}; a request has one answer")));
    }
    let target = target(&gateway, &headers, &body.model)?;
    let session_key = single(&headers, SESSION_KEY)?;
    let include_usage = body.stream_options.as_ref().is_some_and(|options| options.include_usage);
    let user = body.user.as_deref().filter(|user| !user.is_empty());
    if session_key.is_some() || user.is_some() {
        let message = last_user_text(&body.messages)?;
        let model = target.model.as_ref().map(ModelRef::to_string);
        // A session key may name its agent, and needs no other; one that the request names too must be the same.
        let named = single(&headers, AGENT_ID)?.is_some() || names_agent(&body.model);
        let agent_id = (session_key.is_none() || named).then_some(target.agent_id.as_str());
        let incoming =
            Incoming { address: Address { session_key, agent_id, user }, message: &message, model: model.as_deref() };
        return if body.stream {
            let place = limits::stream(&gateway)?;
            let begun = accept(&gateway, &headers, incoming).await?;
            let follower = follow(&gateway, &begun).await?;
            let chunks = Chunks::new(turn_completion_id(&begun.turn), body.model, include_usage);
            Ok(with_index(sse::respond(&gateway, place, TurnFrames::new(follower, chunks)), begun.index))
        } else {
            let _place = limits::request(&gateway)?;
            let begun = accept(&gateway, &headers, incoming).await?;
            let answer = wait(&gateway, &begun, until).await?;
            let id = turn_completion_id(&begun.turn);
            let completion = completion(id, answer.model, answer.reply.text, "stop", answer.usage);
            Ok(with_index(Answer(completion), begun.index))
        };
    }
    stateless(&gateway, target, body, include_usage, until).await
}

async fn stateless(
    gateway: &Gateway,
    target: Target,
    body: ChatCompletionRequest,
    include_usage: bool,
    until: Instant,
) -> Result<Response, ApiError> {
    let agent = gateway.parts().agents.resolve(&target.agent_id).ok_or_else(|| ApiError::not_found("agent"))?;
    if body.temperature.is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
        return Err(ApiError::invalid("temperature must be between 0 and 2"));
    }
    let asked_tokens = body.max_completion_tokens.or(body.max_tokens);
    if asked_tokens == Some(0) {
        return Err(ApiError::invalid("max_tokens must be at least 1"));
    }
    let chain = match &target.model {
        Some(model) => vec![model.clone()],
        None => runner::chain(&agent, "").map_err(|message| ApiError::new(ErrorCode::Internal, message))?,
    };
    let prompt = Prompt {
        // Whoever names a model speaks to it alone.
        system: agent.system_prompt.filter(|_| target.model.is_none()),
        messages: messages(&body.messages)?,
        max_output_tokens: asked_tokens.or((target.model.is_none()).then_some(agent.max_output_tokens)),
        temperature: body.temperature,
    };
    let events = gateway.parts().models.stream(&chain, Arc::new(prompt));
    let id = format!("chatcmpl-{}", TurnId::random());
    if body.stream {
        let place = limits::stream(gateway)?;
        let mut frames = ModelFrames {
            events,
            first: None,
            chunks: Chunks::new(id, body.model, include_usage),
            metrics: gateway.metrics().clone(),
            stopping: gateway.parts().stopping.clone(),
        };
        // What fails before any text is an HTTP status, not an event.
        frames.first = timeout_at(until, first(&mut frames.events)).await.map_err(|_| too_late(gateway))??;
        return Ok(sse::respond(gateway, place, frames));
    }
    let _place = limits::request(gateway)?;
    let answer = async {
        let (mut events, mut text) = (events, String::new());
        while let Some(event) = events.next().await {
            match event.map_err(failed)? {
                AttemptEvent::Started { .. } => {}
                AttemptEvent::Delta(delta) => text.push_str(&delta),
                AttemptEvent::Finished { usage, model, reason } => {
                    gateway.metrics().tokens(usage.input_tokens, usage.output_tokens);
                    return Ok(completion(id, model.to_string(), text, reason_of(reason), counted(usage)));
                }
            }
        }
        Err(ApiError::new(ErrorCode::ModelFailed, "the model ended without an answer"))
    };
    let stopping = &gateway.parts().stopping;
    let answer = timeout_at(until, stopping.run_until_cancelled(answer)).await.map_err(|_| too_late(gateway))?;
    Ok(Answer(answer.ok_or_else(stops)??).into_response())
}

fn too_late(gateway: &Gateway) -> ApiError {
    ApiError::no_answer(gateway.limits().chat_request)
}

/// Nothing of it is kept, so that another instance can answer it as well.
fn stops() -> ApiError {
    ApiError::new(ErrorCode::Draining, "this instance is stopping; ask again")
}

fn failed(error: ChainError) -> ApiError {
    ApiError::new(error.code(), error.to_string())
}

type ModelEvents = BoxStream<'static, Result<AttemptEvent, ChainError>>;

/// The first event that says anything.
async fn first(events: &mut ModelEvents) -> Result<Option<AttemptEvent>, ApiError> {
    loop {
        match events.next().await.transpose().map_err(failed)? {
            Some(AttemptEvent::Started { .. }) => {}
            other @ (Some(AttemptEvent::Delta(_) | AttemptEvent::Finished { .. }) | None) => return Ok(other),
        }
    }
}

/// # Errors
/// For parts that are no text: an answer to a picture that was not seen would be made up.
fn text_of(at: usize, message: &ChatMessage) -> Result<String, ApiError> {
    match &message.content {
        None => Ok(String::new()),
        Some(ChatContent::Text(text)) => Ok(text.clone()),
        Some(ChatContent::Parts(parts)) => {
            if let Some((n, part)) = parts.iter().enumerate().find(|(_, part)| part.kind != "text") {
                let kind: String = part.kind.chars().take(64).collect();
                return Err(ApiError::invalid(format!(
                    "messages[{at}].content[{n}].type is {kind:?}; only text is read"
                )));
            }
            Ok(parts.iter().filter_map(|part| part.text.as_deref()).collect::<Vec<_>>().join("\n"))
        }
    }
}

fn role(at: usize, message: &ChatMessage) -> Result<Role, ApiError> {
    match message.role.as_str() {
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "system" | "developer" => Ok(Role::System),
        "tool" => Ok(Role::Tool),
        other => {
            let other: String = other.chars().take(64).collect();
            Err(ApiError::invalid(format!(
                "messages[{at}].role is {other:?}; allowed are system, developer, user, assistant and tool"
            )))
        }
    }
}

fn messages(given: &[ChatMessage]) -> Result<Vec<PromptMessage>, ApiError> {
    if given.len() > MAX_MESSAGES {
        return Err(ApiError::invalid(format!(
            "there are {} messages; at most {MAX_MESSAGES} are allowed",
            given.len()
        )));
    }
    let mut messages = Vec::with_capacity(given.len());
    for (at, message) in given.iter().enumerate() {
        let (role, text) = (role(at, message)?, text_of(at, message)?);
        if !text.is_empty() {
            messages.push(PromptMessage { role, text });
        }
    }
    if messages.is_empty() {
        return Err(ApiError::invalid("messages must hold at least one text"));
    }
    Ok(messages)
}

fn last_user_text(given: &[ChatMessage]) -> Result<String, ApiError> {
    for (at, message) in given.iter().enumerate() {
        role(at, message)?;
    }
    let last = given.iter().enumerate().rev().find(|(_, message)| message.role == "user");
    let last = last.map(|(at, message)| text_of(at, message)).transpose()?;
    last.filter(|text| !text.trim().is_empty()).ok_or_else(|| ApiError::invalid("messages must hold a user's text"))
}

/// Clients know no other words, and some refuse an answer that has one.
fn reason_of(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Other => FinishReason::Stop.as_str(),
        FinishReason::Stop | FinishReason::Length | FinishReason::Filtered => reason.as_str(),
    }
}

fn turn_completion_id(turn: &TurnId) -> String {
    format!("chatcmpl-{turn}")
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn counted(usage: crate::models::Usage) -> Usage {
    Usage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        total_tokens: usage.input_tokens.saturating_add(usage.output_tokens),
    }
}

fn completion_usage(usage: Usage) -> CompletionUsage {
    CompletionUsage {
        prompt_tokens: usage.input_tokens,
        completion_tokens: usage.output_tokens,
        total_tokens: usage.total_tokens,
    }
}

fn completion(id: String, model: String, text: String, reason: &str, usage: Usage) -> ChatCompletion {
    ChatCompletion {
        id,
        object: "chat.completion".to_owned(),
        created: now_secs(),
        model,
        choices: vec![ChatChoice {
            index: 0,
            message: AssistantMessage { role: "assistant".to_owned(), content: text },
            finish_reason: reason.to_owned(),
        }],
        usage: completion_usage(usage),
    }
}

/// Writes one stream's chunks.
struct Chunks {
    id: String,
    model: String,
    created: u64,
    include_usage: bool,
    begun: bool,
    over: bool,
}

impl Chunks {
    fn new(id: String, model: String, include_usage: bool) -> Self {
        Self { id, model, created: now_secs(), include_usage, begun: false, over: false }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<CompletionUsage>) -> String {
        data(&ChatCompletionChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
        })
    }

    fn choice(&self, delta: ChunkDelta, finish_reason: Option<&str>) -> String {
        self.chunk(vec![ChunkChoice { index: 0, delta, finish_reason: finish_reason.map(str::to_owned) }], None)
    }

    fn text(&mut self, text: String) -> Bytes {
        let role = (!self.begun).then(|| "assistant".to_owned());
        self.begun = true;
        self.choice(ChunkDelta { role, content: Some(text) }, None).into()
    }

    fn done(&mut self, reason: &str, usage: Usage) -> Bytes {
        self.over = true;
        let mut text = self.choice(ChunkDelta::default(), Some(reason));
        if self.include_usage {
            text += &self.chunk(Vec::new(), Some(completion_usage(usage)));
        }
        text += "data: [DONE]\n\n";
        text.into()
    }

    fn error(&mut self, error: &ApiError) -> Bytes {
        self.over = true;
        data(&OpenAiErrorBody { error: openai_error(error) }).into()
    }
}

fn data(value: &impl Serialize) -> String {
    // Texts and numbers always serialize.
    format!("data: {}\n\n", serde_json::to_string(value).unwrap_or_default())
}

/// A stateless answer as it is read.
struct ModelFrames {
    events: ModelEvents,
    first: Option<AttemptEvent>,
    chunks: Chunks,
    metrics: Metrics,
    stopping: CancellationToken,
}

impl sse::Frames for ModelFrames {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.chunks.over {
                return None;
            }
            let event = match self.first.take() {
                Some(event) => Some(Ok(event)),
                None => match self.stopping.run_until_cancelled(self.events.next()).await {
                    Some(event) => event,
                    None => return Some(self.chunks.error(&stops())),
                },
            };
            return Some(match event {
                Some(Ok(AttemptEvent::Started { .. })) => continue,
                Some(Ok(AttemptEvent::Delta(text))) => self.chunks.text(text),
                Some(Ok(AttemptEvent::Finished { usage, reason, .. })) => {
                    self.metrics.tokens(usage.input_tokens, usage.output_tokens);
                    self.chunks.done(reason_of(reason), counted(usage))
                }
                Some(Err(error)) => self.chunks.error(&failed(error)),
                None => self.chunks.error(&ApiError::new(ErrorCode::ModelFailed, "the model ended without an answer")),
            });
        }
    }

    fn late(&mut self) -> Option<Bytes> {
        let message = "the model goes on, but this stream has lasted as long as a request may";
        (!self.chunks.over).then(|| self.chunks.error(&ApiError::new(ErrorCode::Timeout, message)))
    }
}

/// A turn as it is read.
struct TurnFrames {
    follower: Follower,
    chunks: Chunks,
    sent: Sent,
}

/// The text that the client has, and what another attempt says so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sent {
    text: String,
    again: Option<String>,
}

impl Sent {
    fn restart(&mut self) {
        if !self.text.is_empty() {
            self.again = Some(String::new());
        }
    }

    /// Whether the client has exactly this text.
    fn is(&self, text: &str) -> bool {
        self.again.is_none() && self.text == text
    }

    /// What to send of this delta; `None` if it contradicts what was sent.
    fn delta(&mut self, delta: String) -> Option<String> {
        let Some(again) = &mut self.again else {
            self.text.push_str(&delta);
            return Some(delta);
        };
        again.push_str(&delta);
        if let Some(new) = again.strip_prefix(self.text.as_str()) {
            let new = new.to_owned();
            self.text.push_str(&new);
            self.again = None;
            return Some(new);
        }
        self.text.starts_with(again.as_str()).then(String::new)
    }
}

impl TurnFrames {
    fn new(follower: Follower, chunks: Chunks) -> Self {
        Self { follower, chunks, sent: Sent::default() }
    }

    fn other_answer(&mut self) -> Bytes {
        let message = "the turn was started again on another instance and its answer is another; ask for it again";
        self.chunks.error(&ApiError::new(ErrorCode::TurnAbandoned, message))
    }

    fn event(&mut self, event: StreamEvent) -> Option<Bytes> {
        match event {
            StreamEvent::Start { .. } | StreamEvent::Tool { .. } => None,
            StreamEvent::Restart { .. } => {
                self.sent.restart();
                None
            }
            StreamEvent::Delta { text } => match self.sent.delta(text) {
                Some(text) if text.is_empty() => None,
                Some(text) => Some(self.chunks.text(text)),
                None => Some(self.other_answer()),
            },
            // The other attempt's answer ended before it had repeated what the client has.
            StreamEvent::Done { text, .. } if !self.sent.is(&text) => Some(self.other_answer()),
            StreamEvent::Done { usage, .. } => Some(self.chunks.done("stop", usage)),
            StreamEvent::Error { code, message } => Some(self.chunks.error(&ApiError::new(code, message))),
        }
    }
}

impl sse::Frames for TurnFrames {
    async fn next(&mut self) -> Option<Bytes> {
        while !self.chunks.over {
            let Some(followed) = self.follower.next().await else {
                return Some(self.chunks.error(&stops()));
            };
            if let Some(bytes) = self.event(followed.event) {
                return Some(bytes);
            }
        }
        None
    }

    fn late(&mut self) -> Option<Bytes> {
        let message = "the turn goes on, but this stream has lasted as long as a request may; ask for its session";
        (!self.chunks.over).then(|| self.chunks.error(&ApiError::new(ErrorCode::EffectUnknown, message)))
    }
}

fn model_entry(id: String) -> Model {
    Model { id, object: "model".to_owned(), created: 0, owned_by: "openclaw".to_owned() }
}

async fn listed(gateway: &Gateway) -> Vec<Model> {
    let agents = gateway.parts().agents.entries.keys().map(|agent| format!("openclaw/{agent}"));
    let mut models: Vec<_> = std::iter::once("openclaw".to_owned()).chain(agents).map(model_entry).collect();
    let providers = gateway.parts().models.list().await;
    models.extend(
        providers.into_iter().map(|model| Model { owned_by: model.provider.clone(), ..model_entry(model.to_string()) }),
    );
    models
}

/// What may stand as `model`: agents, then the models that providers tell of.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, body = ModelList)))]
pub(super) async fn models(State(gateway): State<Gateway>) -> Answer<ModelList> {
    Answer(ModelList { object: "list".to_owned(), data: listed(&gateway).await })
}

/// One of them.
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = "openai", params(("id" = String, Path, description = "It may hold slashes")),
    responses((status = 200, body = Model), (status = 404))
)]
pub(super) async fn model(State(gateway): State<Gateway>, Name(id): Name) -> Result<Answer<Model>, ApiError> {
    let found = listed(&gateway).await.into_iter().find(|model| model.id == id);
    found.map(Answer).ok_or_else(|| ApiError::not_found("model"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_attempt_goes_on_where_it_agrees() {
        let mut sent = Sent::default();
        assert_eq!(sent.delta("ab".into()).as_deref(), Some("ab"));
        sent.restart();
        assert_eq!(sent.delta("a".into()).as_deref(), Some(""));
        assert_eq!(sent.delta("bc".into()).as_deref(), Some("c"));
        assert_eq!(sent.delta("d".into()).as_deref(), Some("d"));
        sent.restart();
        assert_eq!(sent.delta("abX".into()), None);
    }

    #[test]
    fn another_attempt_that_ends_sooner_is_another_answer() {
        let mut sent = Sent::default();
        sent.delta("Hello world, how".into());
        assert!(sent.is("Hello world, how"));
        sent.restart();
        assert_eq!(sent.delta("Hello world".into()).as_deref(), Some(""));
        assert!(!sent.is("Hello world"), "the client has more than was committed");
        assert_eq!(sent.delta(", how are".into()).as_deref(), Some(" are"));
        assert!(sent.is("Hello world, how are"));
    }

    #[test]
    fn agents_have_several_names() {
        for (model, agent) in [
            ("openclaw", Some("main")),
            ("openclaw/default", Some("main")),
            ("openclaw/ops", Some("ops")),
            ("openclaw:ops", Some("ops")),
            ("agent:ops", Some("ops")),
            ("echo/echo", None),
            ("gpt-4o", None),
        ] {
            assert_eq!(agent_name(model), agent, "{model}");
        }
    }
}
