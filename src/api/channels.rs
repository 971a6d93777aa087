//! `channels` and `pairings`: which instance runs which bot account, what could not be delivered, and who may write.

use axum::Json as Answer;
use axum::extract::{FromRequest, Path, Request, State};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::StatusCode;
use openclaw_proto::http::{
    ApproveRequest, ChannelList, ChannelStatus, DeadLetterAction, DeadLetterList, DeadLetterRequest, ErrorBody,
    ErrorCode, MoveRequest, Pairing, PairingList, RevokeRequest,
};
use openclaw_proto::ids::{ChannelAccount, InstanceId};

use super::Gateway;
use super::cluster::{ClusterError, NoParams, bounded};
use super::error::ApiError;
use super::extract::{Json, Params, Raw};

const TELEGRAM_SECRET: &str = "x-telegram-bot-api-secret-token";

/// The channels as this instance sees them, and what may be asked of them. Whoever wires the process implements it.
pub trait ChannelView: Send + Sync + 'static {
    /// Every account, with what the instances know of theirs.
    fn channels(&self) -> BoxFuture<'_, Result<ChannelList, ClusterError>>;

    /// Answers with the account once the move is ordered; its owner lets go in its own time.
    fn move_to(&self, account: ChannelAccount, to: InstanceId) -> BoxFuture<'_, Result<ChannelStatus, ClusterError>>;

    /// # Errors
    /// [`ClusterError`] when the state cannot be read, or knows no such account.
    fn dead_letters(&self, account: &ChannelAccount) -> Result<DeadLetterList, ClusterError>;

    fn decide(
        &self,
        account: ChannelAccount,
        id: u64,
        action: DeadLetterAction,
    ) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// Whether this secret opens the account's webhook.
    ///
    /// # Errors
    /// [`ClusterError`], the same where there is no such webhook.
    fn opens(&self, account: &ChannelAccount, secret: Option<&[u8]>) -> Result<(), ClusterError>;

    /// Takes what a platform sent to an account's webhook; durable once it answers.
    fn webhook(
        &self,
        account: ChannelAccount,
        secret: Option<Vec<u8>>,
        body: Bytes,
    ) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// # Errors
    /// [`ClusterError`] when the state cannot be read, or knows no such account.
    fn pairings(&self) -> Result<PairingList, ClusterError>;

    fn approve(&self, channel: String, code: String) -> BoxFuture<'_, Result<Pairing, ClusterError>>;

    fn revoke(&self, account: ChannelAccount, sender_id: String) -> BoxFuture<'_, Result<(), ClusterError>>;
}

fn account(text: &str) -> Result<ChannelAccount, ApiError> {
    // `telegram` alone means its first account, as upstream names it.
    let full = if text.contains(':') { text.to_owned() } else { format!("{text}:default") };
    ChannelAccount::parse(full).map_err(|error| ApiError::invalid(error.to_string()))
}

/// Every bot account, its owner, how it is, and what it has to send.
#[utoipa::path(get, path = "/api/v1/channels", tag = "channels", responses((status = 200, body = ChannelList)))]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Answer<ChannelList>, ApiError> {
    Ok(Answer(gateway.parts().channels.channels().await?))
}

/// Sends a bot account to another instance.
#[utoipa::path(
    post, path = "/api/v1/channels/{account}/move", tag = "channels", request_body = MoveRequest,
    params(("account" = String, Path, description = "`telegram:default`; `telegram` for short")),
    responses((status = 200, body = ChannelStatus), (status = "4XX", body = ErrorBody))
)]
pub(super) async fn move_to(
    State(gateway): State<Gateway>,
    Path(name): Path<String>,
    Json(body): Json<MoveRequest>,
) -> Result<Answer<ChannelStatus>, ApiError> {
    let to = InstanceId::parse(body.to).map_err(|error| ApiError::invalid(format!("to: {error}")))?;
    Ok(Answer(bounded(&gateway, gateway.parts().channels.move_to(account(&name)?, to)).await?))
}

/// What was not delivered, or is not known to be.
#[utoipa::path(
    get, path = "/api/v1/channels/{account}/dead-letters", tag = "channels",
    params(("account" = String, Path)),
    responses((status = 200, body = DeadLetterList), (status = "4XX", body = ErrorBody))
)]
pub(super) async fn dead_letters(
    State(gateway): State<Gateway>,
    Path(name): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Answer<DeadLetterList>, ApiError> {
    Ok(Answer(gateway.parts().channels.dead_letters(&account(&name)?)?))
}

/// Has such a message sent once more, or forgets it; answers with those that are left.
#[utoipa::path(
    post, path = "/api/v1/channels/{account}/dead-letters/{id}", tag = "channels", request_body = DeadLetterRequest,
    params(("account" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = DeadLetterList), (status = "4XX", body = ErrorBody))
)]
pub(super) async fn decide(
    State(gateway): State<Gateway>,
    Path((name, id)): Path<(String, String)>,
    Json(body): Json<DeadLetterRequest>,
) -> Result<Answer<DeadLetterList>, ApiError> {
    let account = account(&name)?;
    let id = id.parse().map_err(|_| ApiError::new(ErrorCode::NotFound, "there is no such message"))?;
    bounded(&gateway, gateway.parts().channels.decide(account.clone(), id, body.action)).await?;
    Ok(Answer(gateway.parts().channels.dead_letters(&account)?))
}

/// Where Telegram delivers, on any instance. It proves itself by the secret that the bot's webhook was set with.
#[utoipa::path(
    post, path = "/api/v1/webhooks/telegram/{account}", tag = "channels",
    params(("account" = String, Path), ("X-Telegram-Bot-Api-Secret-Token" = String, Header)),
    responses((status = 200, description = "Stored"), (status = 401, body = ErrorBody), (status = 503, body = ErrorBody))
)]
pub(super) async fn telegram_webhook(
    State(gateway): State<Gateway>,
    Path(name): Path<String>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let account = account(&format!("telegram:{name}"))?;
    let secret = request.headers().get(TELEGRAM_SECRET).map(|value| value.as_bytes().to_vec());
    // A stranger's body is not even read.
    gateway.parts().channels.opens(&account, secret.as_deref())?;
    let Raw(body) = Raw::from_request(request, &gateway).await?;
    bounded(&gateway, gateway.parts().channels.webhook(account, secret, body)).await?;
    Ok(StatusCode::OK)
}

/// Who waits for approval, and who has it.
#[utoipa::path(get, path = "/api/v1/pairings", tag = "channels", responses((status = 200, body = PairingList)))]
pub(super) async fn pairings(
    State(gateway): State<Gateway>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Answer<PairingList>, ApiError> {
    Ok(Answer(gateway.parts().channels.pairings()?))
}

/// Lets a person write to a bot, by the code that they were told.
#[utoipa::path(
    post, path = "/api/v1/pairings/approve", tag = "channels", request_body = ApproveRequest,
    responses((status = 200, body = Pairing), (status = 404, body = ErrorBody))
)]
pub(super) async fn approve(
    State(gateway): State<Gateway>,
    Json(body): Json<ApproveRequest>,
) -> Result<Answer<Pairing>, ApiError> {
    Ok(Answer(bounded(&gateway, gateway.parts().channels.approve(body.channel, body.code)).await?))
}

/// Takes that back.
#[utoipa::path(
    post, path = "/api/v1/pairings/revoke", tag = "channels", request_body = RevokeRequest,
    responses((status = 200, body = PairingList), (status = 404, body = ErrorBody))
)]
pub(super) async fn revoke(
    State(gateway): State<Gateway>,
    Json(body): Json<RevokeRequest>,
) -> Result<Answer<PairingList>, ApiError> {
    bounded(&gateway, gateway.parts().channels.revoke(account(&body.account)?, body.sender_id)).await?;
    Ok(Answer(gateway.parts().channels.pairings()?))
}
