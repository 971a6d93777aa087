//! `turns`: what became of an accepted message.

use axum::Json as Answer;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use openclaw_proto::http::{ErrorBody, ErrorCode, Turn, TurnError, TurnState};
use openclaw_proto::state;
use serde::Deserialize;

use super::Gateway;
use super::chat::with_index;
use super::error::ApiError;
use super::extract::{Name, Params, Reads, consistency};
use crate::sessions::follow::usage;
use crate::store::EndTurnError;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadParams {
    pub(super) consistency: Option<Reads>,
}

/// A turn's state.
#[utoipa::path(
    get, path = "/api/v1/turns/{id}", tag = "chat",
    params(("id" = String, Path), ("consistency" = Option<String>, Query, description = "`stale`: what this instance has applied")),
    responses((status = 200, body = Turn), (status = 404, body = ErrorBody))
)]
pub(super) async fn get(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    name: Name,
    Params(params): Params<ReadParams>,
) -> Result<Answer<Turn>, ApiError> {
    let id = name.turn_id()?;
    let consistency = consistency(&headers, params.consistency)?;
    let read = gateway.store().turn(&id, consistency, gateway.limits().request).await?;
    Ok(Answer(turn(read.value.ok_or_else(|| ApiError::not_found("turn"))?)))
}

/// Ends a turn that nobody wants answered any more.
#[utoipa::path(
    post, path = "/api/v1/turns/{id}/cancel", tag = "chat", params(("id" = String, Path)),
    responses(
        (status = 200, description = "It is cancelled, or was before", body = Turn),
        (status = 404, body = ErrorBody),
        (status = 409, description = "It ended otherwise", body = ErrorBody),
    )
)]
pub(super) async fn cancel(State(gateway): State<Gateway>, name: Name) -> Result<Response, ApiError> {
    let id = name.turn_id()?;
    match gateway.store().cancel(&id, gateway.limits().request).await {
        Ok(ended) => Ok(with_index(Answer(turn(ended.value)), ended.index)),
        Err(EndTurnError::Ended(ended)) => {
            let how = turn_state(ended.state()).map_or("over", word);
            Err(ApiError::new(ErrorCode::Conflict, format!("the turn is {how} already")))
        }
        Err(
            error @ (EndTurnError::Fenced { .. }
            | EndTurnError::NotFound
            | EndTurnError::Refused { .. }
            | EndTurnError::Commit(_)),
        ) => Err(error.into()),
    }
}

fn word(state: TurnState) -> &'static str {
    match state {
        TurnState::Queued => "queued",
        TurnState::Running => "running",
        TurnState::Done => "done",
        TurnState::Failed => "failed",
        TurnState::Cancelled => "cancelled",
    }
}

fn turn_state(state: state::TurnState) -> Option<TurnState> {
    match state {
        state::TurnState::Unspecified => None,
        state::TurnState::Queued => Some(TurnState::Queued),
        state::TurnState::Running => Some(TurnState::Running),
        state::TurnState::Done => Some(TurnState::Done),
        state::TurnState::Failed => Some(TurnState::Failed),
        state::TurnState::Cancelled => Some(TurnState::Cancelled),
    }
}

fn turn(row: state::Turn) -> Turn {
    let state = turn_state(row.state()).unwrap_or(TurnState::Queued);
    let given = |text: String| (!text.is_empty()).then_some(text);
    let at = |ms: u64| (ms > 0).then_some(ms);
    Turn {
        turn_id: row.id,
        session_key: row.session_key,
        state,
        attempt: row.attempt,
        runner: row.runner,
        accepted_ms: row.accepted_ms,
        started_ms: at(row.started_ms),
        finished_ms: at(row.finished_ms),
        usage: usage(row.usage.unwrap_or_default()),
        model: given(row.answered_by),
        error: given(row.error_code).map(|code| TurnError { code, message: row.error_message }),
    }
}
