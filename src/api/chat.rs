//! `chat`, `chat/stream` and `chat/command`: a message in, its turn's reply out, or the gateway's own answer.

use axum::Json as Answer;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use openclaw_proto::http::{
    ChatRequest, ChatResponse, CommandRequest, CommandResponse, ErrorCode, INDEX, REQUEST_ID, Reply,
};
use openclaw_proto::ids::{StreamPosition, TurnId};
use openclaw_proto::state::Accept;
use openclaw_raft::trace;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::Gateway;
use super::error::ApiError;
use super::extract::{Json, Params, inbox_key, single};
use super::{limits, sse};
use crate::models::ModelRef;
use crate::sessions::commands::{self, Done};
use crate::sessions::follow::{Ended, FollowError, Follower, usage};
use crate::sessions::router::{Address, Route, route};
use crate::store::{Accepted, Committed, Consistency};

pub(super) const INDEX_HEADER: HeaderName = HeaderName::from_static(INDEX);

/// Longest message, in bytes; the replicated state refuses longer ones.
const MAX_MESSAGE_BYTES: usize = openclaw_raft::state_machine::MAX_TEXT_BYTES;

/// A message on its way in.
pub(super) struct Incoming<'a> {
    pub(super) address: Address<'a>,
    pub(super) message: &'a str,
    pub(super) model: Option<&'a str>,
}

/// A turn that is committed, and the index that shows it.
pub(super) struct Begun {
    pub(super) turn: TurnId,
    pub(super) index: u64,
}

/// Says what is wrong with a message, before anything is committed.
fn check(gateway: &Gateway, incoming: &Incoming<'_>) -> Result<Route, ApiError> {
    if incoming.message.trim().is_empty() {
        return Err(ApiError::invalid("message must not be empty"));
    }
    let bytes = incoming.message.len();
    if bytes > MAX_MESSAGE_BYTES {
        let message = format!("message has {bytes} bytes; at most {MAX_MESSAGE_BYTES} are allowed");
        return Err(ApiError::new(ErrorCode::TooLarge, message));
    }
    let route = route(incoming.address)?;
    if gateway.parts().agents.resolve(&route.agent_id).is_none() {
        return Err(ApiError::invalid(format!("there is no agent {}", route.agent_id)));
    }
    if let Some(model) = incoming.model {
        check_model(gateway, model)?;
    }
    Ok(route)
}

/// Says whether a request may ask for this model.
///
/// # Errors
/// `invalid_request` when it is no name, or of no provider that is configured.
pub(super) fn check_model(gateway: &Gateway, model: &str) -> Result<ModelRef, ApiError> {
    let model: ModelRef = model.parse().map_err(|error| ApiError::invalid(format!("model: {error}")))?;
    if gateway.parts().models.has_provider(&model.provider) {
        Ok(model)
    } else {
        Err(ApiError::invalid(format!("model: there is no provider {:?}", model.provider)))
    }
}

/// Commits a message and the turn that answers it; a repetition finds the first turn.
///
/// # Errors
/// Whatever the message breaks, or the store says.
pub(super) async fn accept(gateway: &Gateway, headers: &HeaderMap, incoming: Incoming<'_>) -> Result<Begun, ApiError> {
    let Route { session_key, agent_id } = check(gateway, &incoming)?;
    // The hash is over what the request means, so that `chat` repeated as `chat/stream` is the same message.
    let meaning = (session_key.as_str(), agent_id.as_str(), incoming.model, incoming.message);
    let inbox = inbox_key(headers, "chat", &meaning)?;
    let runner = gateway.cluster().runner_for_new_turn(&session_key).map_err(ApiError::from)?;
    let command = Accept {
        inbox: Some(inbox),
        session_key: session_key.into(),
        turn_id: TurnId::random().into(),
        text: incoming.message.to_owned(),
        agent_id: agent_id.into(),
        model: incoming.model.unwrap_or_default().to_owned(),
        runner: runner.into(),
        max_queued: gateway.parts().max_queued,
        request_id: single(headers, REQUEST_ID)?.unwrap_or_default().to_owned(),
        trace_parent: trace::parent(),
        ..Accept::default()
    };
    let Committed { index, value } = gateway.store().accept(command, gateway.limits().request).await?;
    let id = match value {
        Accepted::New(turn) => turn.id,
        Accepted::Duplicate { turn_id, .. } => {
            gateway.metrics().dedupe_hits.inc();
            turn_id
        }
    };
    let turn = TurnId::parse(id).map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
    Ok(Begun { turn, index })
}

fn incoming(body: &ChatRequest) -> Incoming<'_> {
    Incoming {
        address: Address {
            session_key: body.session_key.as_deref(),
            agent_id: body.agent_id.as_deref(),
            user: body.user.as_deref(),
        },
        message: &body.message,
        model: body.model.as_deref(),
    }
}

/// A reader of the turn that was just accepted.
///
/// # Errors
/// `effect_unknown` when this instance cannot read it yet.
pub(super) async fn follow(gateway: &Gateway, begun: &Begun) -> Result<Follower, ApiError> {
    let follower = gateway.parts().follow.open(&begun.turn, None, Consistency::AtLeast(begun.index)).await;
    follower.map_err(|error| after_accept(&begun.turn, error))
}

/// Why there is no answer to a message that is committed, and will be answered: no code may deny that.
fn after_accept(turn: &TurnId, error: FollowError) -> ApiError {
    match error {
        FollowError::NotFound => error.into(),
        FollowError::Stopping | FollowError::Read(_) => {
            let message = format!("turn {turn} was accepted, but its answer cannot be waited for here: {error}");
            ApiError::new(ErrorCode::EffectUnknown, message)
        }
    }
}

/// Waits for a turn's end as long as a chat request may take.
///
/// # Errors
/// What the turn failed with; `effect_unknown` when it goes on longer.
pub(super) async fn wait(gateway: &Gateway, begun: &Begun, until: Instant) -> Result<ChatResponse, ApiError> {
    let ended = gateway.parts().follow.ended(&begun.turn, Consistency::AtLeast(begun.index));
    let ended = timeout_at(until, ended).await.map_err(|_| {
        let waited = gateway.limits().chat_request;
        let message = format!("turn {} was accepted, but has not ended within {waited:?}", begun.turn);
        ApiError::new(ErrorCode::EffectUnknown, message)
    })?;
    let ended = ended.map_err(|error| after_accept(&begun.turn, error))?;
    match ended {
        Ended::Replied { turn, reply } => Ok(ChatResponse {
            turn_id: turn.id,
            session_key: turn.session_key,
            reply: Reply { entry_id: reply.id, text: reply.text },
            usage: usage(turn.usage.unwrap_or_default()),
            model: turn.answered_by,
            instance_id: turn.runner,
        }),
        Ended::Failed(turn) => Err(ApiError::new(ErrorCode::from_stored(&turn.error_code), turn.error_message)),
        Ended::Cancelled(turn) => Err(ApiError::new(ErrorCode::Cancelled, format!("turn {} was cancelled", turn.id))),
    }
}

/// The log index of a commit, for a later read that must see it.
pub(super) fn with_index(response: impl IntoResponse, index: u64) -> Response {
    let mut response = response.into_response();
    response.headers_mut().insert(INDEX_HEADER, HeaderValue::from(index));
    response
}

/// Sends a message and waits for the reply.
#[utoipa::path(
    post, path = "/api/v1/chat", tag = "chat", request_body = ChatRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeated, it gives the first answer")),
    responses(
        (status = 200, description = "The committed reply", body = ChatResponse),
        (status = "4XX", description = "Certainly not applied", body = openclaw_proto::http::ErrorBody),
        (status = "5XX", description = "503: certainly not applied; 502: the model failed; 504: repeat it with the same key", body = openclaw_proto::http::ErrorBody),
    )
)]
pub(super) async fn chat(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    Json(body): Json<ChatRequest>,
) -> Result<Response, ApiError> {
    let until = Instant::now() + gateway.limits().chat_request;
    let begun = accept(&gateway, &headers, incoming(&body)).await?;
    let answer = wait(&gateway, &begun, until).await?;
    Ok(with_index(Answer(answer), begun.index))
}

/// Sends a message and streams the reply.
#[utoipa::path(
    post, path = "/api/v1/chat/stream", tag = "chat", request_body = ChatRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeated, it follows the first turn")),
    responses(
        (status = 200, description = "Events: start, delta, restart, done, error", body = openclaw_proto::http::StreamEvent, content_type = "text/event-stream"),
        (status = "4XX", description = "Certainly not applied", body = openclaw_proto::http::ErrorBody),
        (status = "5XX", description = "503: certainly not applied; 504: repeat it with the same key", body = openclaw_proto::http::ErrorBody),
    )
)]
pub(super) async fn stream(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    Json(body): Json<ChatRequest>,
) -> Result<Response, ApiError> {
    let place = limits::stream(&gateway)?;
    let begun = accept(&gateway, &headers, incoming(&body)).await?;
    let follower = follow(&gateway, &begun).await?;
    Ok(with_index(sse::respond(&gateway, place, sse::TurnFrames::new(follower)), begun.index))
}

/// Carries out a chat command - `/new`, `/stop`, `/retry`, `/status`, `/model`, `/help` - as on every channel.
#[utoipa::path(
    post, path = "/api/v1/chat/command", tag = "chat", request_body = CommandRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeated, it changes nothing more")),
    responses(
        (status = 200, description = "Either the gateway's answer, or what is to be sent as a message", body = CommandResponse),
        (status = "4XX", description = "Certainly not applied", body = openclaw_proto::http::ErrorBody),
    )
)]
pub(super) async fn command(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    Json(body): Json<CommandRequest>,
) -> Result<Answer<CommandResponse>, ApiError> {
    let address = Address {
        session_key: body.session_key.as_deref(),
        agent_id: body.agent_id.as_deref(),
        user: body.user.as_deref(),
    };
    let Route { session_key, agent_id } = check(&gateway, &Incoming { address, message: &body.text, model: None })?;
    let inbox = inbox_key(&headers, "command", &(session_key.as_str(), agent_id.as_str(), &body.text))?;
    let done = match commands::parse(&body.text, &gateway.parts().reset_triggers) {
        Some(command) => {
            let (store, to) = (gateway.store().as_ref(), (&session_key, &agent_id));
            gateway.parts().commander.run(store, to, command, inbox).await?
        }
        None => Done::Ask(body.text),
    };
    let (reply, message) = match done {
        Done::Said(text) => (Some(text), None),
        Done::Ask(text) => (None, Some(text)),
    };
    Ok(Answer(CommandResponse { session_key: session_key.into(), reply, message }))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ResumeParams {
    turn_id: Option<String>,
}

/// Continues a stream, on any instance.
///
/// With `Last-Event-ID` it goes on after that event, or begins with `restart` where that text is no longer in memory.
#[utoipa::path(
    get, path = "/api/v1/chat/stream", tag = "chat",
    params(
        ("turnId" = Option<String>, Query, description = "Without it, the turn of Last-Event-ID"),
        ("Last-Event-ID" = Option<String>, Header, description = "The last event that was read"),
    ),
    responses(
        (status = 200, description = "Events: start, delta, restart, done, error", body = openclaw_proto::http::StreamEvent, content_type = "text/event-stream"),
        (status = 404, description = "No such turn", body = openclaw_proto::http::ErrorBody),
    )
)]
pub(super) async fn resume(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    Params(params): Params<ResumeParams>,
) -> Result<Response, ApiError> {
    let place = limits::stream(&gateway)?;
    let after: Option<StreamPosition> = match single(&headers, "last-event-id")? {
        None | Some("") => None,
        Some(text) => {
            Some(text.parse().map_err(|error| ApiError::invalid(format!("the Last-Event-ID header: {error}")))?)
        }
    };
    let turn = match (params.turn_id, &after) {
        (Some(id), _) => TurnId::parse(id).map_err(|error| ApiError::invalid(format!("turnId: {error}")))?,
        (None, Some(position)) => position.turn.clone(),
        (None, None) => return Err(ApiError::invalid("either turnId or the Last-Event-ID header must be given")),
    };
    if let Some(position) = after.as_ref().filter(|position| position.turn != turn) {
        let message = format!("the Last-Event-ID header is of turn {}, not of {turn}", position.turn);
        return Err(ApiError::invalid(message));
    }
    let follower = gateway.parts().follow.open(&turn, after, Consistency::Linearizable).await?;
    Ok(sse::respond(&gateway, place, sse::TurnFrames::new(follower)))
}
