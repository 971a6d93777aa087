//! `sessions`: conversations and their entries.

use axum::Json as Answer;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use openclaw_proto::http::{
    AppendRequest, AppendResponse, DeleteResponse, Entry, EntryList, ErrorBody, ErrorCode, ResetResponse, Role,
    Session, SessionList, UpdateSessionRequest,
};
use openclaw_proto::ids::{SeqNum, SessionKey};
use openclaw_proto::state;
use serde::Deserialize;

use super::Gateway;
use super::chat::{check_model, with_index};
use super::error::ApiError;
use super::extract::{Json, Name, Params, Reads, consistency, if_match, inbox_key};
use super::turns::ReadParams;
use crate::sessions::follow::usage;
use crate::store::{Committed, Consistency};

const DEFAULT_PAGE: usize = 50;
const MAX_PAGE: usize = 200;

fn page(limit: Option<u64>) -> Result<usize, ApiError> {
    match limit {
        None => Ok(DEFAULT_PAGE),
        Some(limit) => match usize::try_from(limit) {
            Ok(limit @ 1..=MAX_PAGE) => Ok(limit),
            Ok(_) | Err(_) => Err(ApiError::invalid(format!("limit is {limit}; allowed are 1 to {MAX_PAGE}"))),
        },
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    limit: Option<u64>,
    cursor: Option<String>,
    consistency: Option<Reads>,
}

/// Sessions, in the order of their keys.
#[utoipa::path(
    get, path = "/api/v1/sessions", tag = "sessions",
    params(
        ("limit" = Option<u64>, Query, description = "1 to 200; 50 if absent"),
        ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
        ("consistency" = Option<String>, Query, description = "`stale`: what this instance has applied"),
    ),
    responses((status = 200, body = SessionList), (status = 400, body = ErrorBody))
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    Params(params): Params<ListParams>,
) -> Result<Answer<SessionList>, ApiError> {
    let limit = page(params.limit)?;
    let cursor = params.cursor.map(SessionKey::parse).transpose();
    let after = cursor.map_err(|error| ApiError::invalid(format!("cursor: {error}")))?;
    let consistency = consistency(&headers, params.consistency)?;
    // One more than asked for shows whether there is a next page.
    let read = gateway.store().sessions(after.as_ref(), limit + 1, consistency, gateway.limits().request).await?;
    let mut rows = read.value;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = rows.last().filter(|_| more).map(|row| row.key.clone());
    Ok(Answer(SessionList { sessions: rows.into_iter().map(session).collect(), next_cursor }))
}

/// A session's metadata.
#[utoipa::path(
    get, path = "/api/v1/sessions/{key}", tag = "sessions",
    params(("key" = String, Path), ("consistency" = Option<String>, Query)),
    responses((status = 200, body = Session), (status = 404, body = ErrorBody))
)]
pub(super) async fn get(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    name: Name,
    Params(params): Params<ReadParams>,
) -> Result<Response, ApiError> {
    let key = name.session_key()?;
    let consistency = consistency(&headers, params.consistency)?;
    let read = gateway.store().session(&key, consistency, gateway.limits().request).await?;
    let row = read.value.ok_or_else(|| ApiError::not_found("session"))?;
    Ok(with_index(Answer(session(row)), read.index))
}

/// Sets a session's label, its model or both; a session that does not exist yet begins with it.
#[utoipa::path(
    patch, path = "/api/v1/sessions/{key}", tag = "sessions", request_body = UpdateSessionRequest,
    params(
        ("key" = String, Path),
        ("Idempotency-Key" = Option<String>, Header),
        ("If-Match" = Option<String>, Header, description = "The `revision` that the session must have; 0 where there is none"),
    ),
    responses(
        (status = 200, body = Session),
        (status = 412, description = "The revision is another", body = ErrorBody),
    )
)]
pub(super) async fn update(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    name: Name,
    Json(body): Json<UpdateSessionRequest>,
) -> Result<Response, ApiError> {
    let key = name.session_key_to_write()?;
    if body.label.is_none() && body.model.is_none() {
        return Err(ApiError::invalid("there is nothing to set: give a label, a model or both; null clears"));
    }
    for (field, value) in [("label", &body.label), ("model", &body.model)] {
        if value.as_ref().is_some_and(|value| value.as_ref().is_some_and(String::is_empty)) {
            return Err(ApiError::invalid(format!("{field} must not be empty; null clears it")));
        }
    }
    if let Some(Some(model)) = &body.model {
        check_model(&gateway, model)?;
    }
    let expected_revision = if_match(&headers)?;
    let inbox = inbox_key(&headers, "update", &(key.as_str(), &body))?;
    let command = state::UpdateSession {
        inbox: Some(inbox),
        session_key: key.into(),
        label: body.label.map(Option::unwrap_or_default),
        model: body.model.map(Option::unwrap_or_default),
        expected_revision,
    };
    let Committed { index, value } = gateway.store().update(command, gateway.limits().request).await?;
    Ok(with_index(Answer(session(value)), index))
}

/// Deletes a session with its entries; its turns that have not ended are cancelled.
#[utoipa::path(
    delete, path = "/api/v1/sessions/{key}", tag = "sessions",
    params(("key" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = DeleteResponse), (status = 404, body = ErrorBody))
)]
pub(super) async fn delete(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    name: Name,
) -> Result<Response, ApiError> {
    let key = name.session_key_to_write()?;
    let inbox = inbox_key(&headers, "delete", &key)?;
    let command = state::DeleteSession { inbox: Some(inbox), session_key: key.as_str().to_owned() };
    let Committed { index, value } = gateway.store().delete(command, gateway.limits().request).await?;
    Ok(with_index(Answer(DeleteResponse { session_key: key.into(), entry_count: value }), index))
}

/// Hides the transcript so far from the model.
#[utoipa::path(
    post, path = "/api/v1/sessions/{key}/reset", tag = "sessions",
    params(("key" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = ResetResponse), (status = 404, body = ErrorBody))
)]
pub(super) async fn reset(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    name: Name,
) -> Result<Response, ApiError> {
    let key = name.session_key_to_write()?;
    let inbox = inbox_key(&headers, "reset", &key)?;
    let command = state::ResetSession { inbox: Some(inbox), session_key: key.as_str().to_owned() };
    let Committed { index, value } = gateway.store().reset(command, gateway.limits().request).await?;
    Ok(with_index(Answer(ResetResponse { session_key: key.into(), reset_seq: value.0 }), index))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EntryParams {
    after: Option<u64>,
    limit: Option<u64>,
    consistency: Option<Reads>,
}

/// A session's entries, in sequence.
#[utoipa::path(
    get, path = "/api/v1/sessions/{key}/entries", tag = "sessions",
    params(
        ("key" = String, Path),
        ("after" = Option<u64>, Query, description = "Only entries with a larger sequence number"),
        ("limit" = Option<u64>, Query, description = "1 to 200; 50 if absent"),
        ("consistency" = Option<String>, Query, description = "`stale`: what this instance has applied"),
    ),
    responses((status = 200, body = EntryList), (status = 404, body = ErrorBody))
)]
pub(super) async fn entries(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    name: Name,
    Params(params): Params<EntryParams>,
) -> Result<Answer<EntryList>, ApiError> {
    let key = name.session_key()?;
    let limit = page(params.limit)?;
    let consistency = consistency(&headers, params.consistency)?;
    let (store, deadline) = (gateway.store(), gateway.limits().request);
    let row = store.session(&key, consistency, deadline).await?;
    let head_seq = row.value.ok_or_else(|| ApiError::not_found("session"))?.head_seq;
    // The second read needs no quorum: this instance has applied what the first one saw.
    let after = SeqNum(params.after.unwrap_or(0));
    let read = store.entries(&key, after, limit, Consistency::AtLeast(row.index), deadline).await?;
    let entries: Vec<_> = read.value.into_iter().map(entry).collect();
    // It may have seen more than the first.
    let head_seq = entries.last().map_or(head_seq, |last| last.seq.max(head_seq));
    Ok(Answer(EntryList { entries, head_seq }))
}

/// Appends an entry without a model.
#[utoipa::path(
    post, path = "/api/v1/sessions/{key}/entries", tag = "sessions", request_body = AppendRequest,
    params(
        ("key" = String, Path),
        ("Idempotency-Key" = Option<String>, Header),
        ("If-Match" = Option<String>, Header, description = "The `headSeq` that the session must have"),
    ),
    responses(
        (status = 201, body = AppendResponse),
        (status = 412, description = "The head is another", body = ErrorBody),
    )
)]
pub(super) async fn append(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    name: Name,
    Json(body): Json<AppendRequest>,
) -> Result<Response, ApiError> {
    let key = name.session_key_to_write()?;
    let limit = openclaw_raft::state_machine::MAX_TEXT_BYTES;
    if body.text.len() > limit {
        let message = format!("text has {} bytes; at most {limit} are allowed", body.text.len());
        return Err(ApiError::new(ErrorCode::TooLarge, message));
    }
    let expected_head = if_match(&headers)?;
    let inbox = inbox_key(&headers, "append", &(key.as_str(), &body))?;
    let role = match body.role {
        Role::User => state::Role::User,
        Role::Assistant => state::Role::Assistant,
        Role::System => state::Role::System,
        Role::Tool => state::Role::Tool,
    };
    let command = state::AppendEntry {
        inbox: Some(inbox),
        session_key: key.into(),
        role: role.into(),
        text: body.text,
        expected_head,
    };
    let Committed { index, value: (seq, id) } = gateway.store().append(command, gateway.limits().request).await?;
    Ok(with_index((StatusCode::CREATED, Answer(AppendResponse { seq: seq.0, id })), index))
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn session(row: state::Session) -> Session {
    Session {
        session_key: row.key,
        agent_id: row.agent_id,
        label: given(row.label),
        model: given(row.model),
        revision: row.revision,
        created_ms: row.created_ms,
        updated_ms: row.updated_ms,
        head_seq: row.head_seq,
        reset_seq: row.reset_seq,
        turn_count: row.turn_count,
        usage: usage(row.usage.unwrap_or_default()),
        running_turn: given(row.running_turn),
        queued_turns: row.queued_turns,
    }
}

fn entry(row: state::Entry) -> Entry {
    let role = match row.role() {
        state::Role::User | state::Role::Unspecified => Role::User,
        state::Role::Assistant => Role::Assistant,
        state::Role::System => Role::System,
        state::Role::Tool => Role::Tool,
    };
    Entry {
        seq: row.seq,
        id: row.id,
        role,
        text: row.text,
        created_ms: row.created_ms,
        turn_id: given(row.turn_id),
        model: given(row.model),
        usage: row.usage.map(usage),
    }
}
