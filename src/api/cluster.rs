//! `cluster`: who is in it, and what an operator does to it.

use std::io;

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http::header::CONTENT_TYPE;
use openclaw_proto::http::{
    Cluster, ErrorBody, ErrorCode, Maintenance, RemoveRequest, StateHash, TransferLeaderRequest,
};
use openclaw_proto::ids::{InstanceId, SessionKey};
use tokio::time::timeout;

use super::Gateway;
use super::error::ApiError;
use super::extract::{Json, Params, Reads};

/// The cluster as this instance sees it, and what may be asked of it.
///
/// The surface knows neither Raft nor membership: whoever wires the process implements this over both.
pub trait ClusterView: Send + Sync + 'static {
    /// What health tells; it waits for nothing.
    fn status(&self) -> ClusterStatus;

    /// Whether others should be asked rather than this instance, which is in maintenance or on its way out; asked for every answer.
    fn is_draining(&self) -> bool;

    fn cluster(&self) -> BoxFuture<'_, Result<Cluster, ClusterError>>;

    /// Reads all that this instance holds; one at a time.
    fn state_hash(&self) -> BoxFuture<'_, Result<StateHash, ClusterError>>;

    /// All that this instance holds, as a stream of bytes; one at a time. `stale`: without asking the leader how far
    /// that must be.
    fn backup(&self, stale: bool) -> BoxFuture<'_, Result<BackupStream, ClusterError>>;

    fn maintenance(&self) -> Maintenance;

    /// Answers once the change is in effect; draining goes on after that.
    ///
    /// # Errors
    /// `conflict` where the cluster could not do without this instance now, unless it is to be forced.
    fn set_maintenance(&self, on: bool, force: bool) -> BoxFuture<'_, Result<Maintenance, ClusterError>>;

    /// The instance that leads now.
    fn transfer_leader(&self, to: Option<InstanceId>) -> BoxFuture<'_, Result<InstanceId, ClusterError>>;

    fn remove(&self, instance: InstanceId) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// The instance to name in `Accept`: this one, or while it drains another that does not.
    ///
    /// # Errors
    /// `draining` when this instance takes nothing new and there is no other.
    fn runner_for_new_turn(&self, session: &SessionKey) -> Result<InstanceId, ClusterError>;
}

/// The bytes of a backup. One that breaks off ends with an error.
pub type BackupStream = BoxStream<'static, io::Result<Bytes>>;

/// What one instance knows without asking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterStatus {
    pub leader: Option<InstanceId>,
    pub term: u64,
    pub applied_index: u64,
    pub has_quorum: bool,
    /// It has not applied its own registration yet, and so may know only what was long ago.
    pub starting: bool,
    pub maintenance: bool,
    /// On its way out.
    pub draining: bool,
    /// Why consensus has stopped for good, if it has.
    pub failed: Option<String>,
}

/// Why the cluster did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ClusterError {
    pub code: ErrorCode,
    pub message: String,
}

impl From<ClusterError> for ApiError {
    fn from(error: ClusterError) -> Self {
        Self::new(error.code, error.message)
    }
}

/// Bounds an operation that may take effect even if its answer is not waited for.
pub(super) async fn bounded<T>(gateway: &Gateway, work: BoxFuture<'_, Result<T, ClusterError>>) -> Result<T, ApiError> {
    let deadline = gateway.limits().request;
    match timeout(deadline, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(ApiError::new(ErrorCode::EffectUnknown, format!("no answer within {deadline:?}"))),
    }
}

/// Members, leader and log positions, as this instance sees them.
#[utoipa::path(
    get, path = "/api/v1/cluster", tag = "operation",
    responses((status = 200, body = Cluster), (status = 503, body = ErrorBody))
)]
pub(super) async fn get(
    State(gateway): State<Gateway>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Answer<Cluster>, ApiError> {
    Ok(Answer(seen(&gateway).await?))
}

async fn seen(gateway: &Gateway) -> Result<Cluster, ApiError> {
    let deadline = gateway.limits().request;
    Ok(timeout(deadline, gateway.cluster().cluster()).await.map_err(|_| ApiError::no_answer(deadline))??)
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoParams {}

/// The hash of what this instance holds: instances that have applied the same log index have the same.
#[utoipa::path(
    get, path = "/api/v1/cluster/state-hash", tag = "operation",
    responses(
        (status = 200, body = StateHash),
        (status = 429, description = "Another question of the kind is being answered", body = ErrorBody),
    )
)]
pub(super) async fn state_hash(
    State(gateway): State<Gateway>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Answer<StateHash>, ApiError> {
    let deadline = gateway.limits().request;
    let hash = timeout(deadline, gateway.cluster().state_hash()).await;
    Ok(Answer(hash.map_err(|_| ApiError::no_answer(deadline))??))
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackupParams {
    consistency: Option<Reads>,
}

/// All that the cluster holds at one moment, as a backup that `openclaw cluster restore` reads. It holds conversations.
#[utoipa::path(
    get, path = "/api/v1/cluster/backup", tag = "operation",
    params(("consistency" = Option<String>, Query, description = "`stale`: what this instance has applied")),
    responses(
        (status = 200, description = "The backup", content_type = "application/octet-stream"),
        (status = 429, description = "Another backup is being made here", body = ErrorBody),
        (status = 503, body = ErrorBody),
    )
)]
pub(super) async fn backup(
    State(gateway): State<Gateway>,
    Params(BackupParams { consistency }): Params<BackupParams>,
) -> Result<Response, ApiError> {
    let stale = matches!(consistency, Some(Reads::Stale));
    let stream = gateway.cluster().backup(stale).await?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], Body::from_stream(stream)).into_response())
}

/// Hands leadership over, and answers with the cluster under its new leader.
#[utoipa::path(
    post, path = "/api/v1/cluster/transfer-leader", tag = "operation", request_body = TransferLeaderRequest,
    responses((status = 200, body = Cluster), (status = "4XX", body = ErrorBody))
)]
pub(super) async fn transfer_leader(
    State(gateway): State<Gateway>,
    Json(body): Json<TransferLeaderRequest>,
) -> Result<Answer<Cluster>, ApiError> {
    let to = body.to.map(|to| instance(to, "to")).transpose()?;
    let leader = bounded(&gateway, gateway.cluster().transfer_leader(to)).await?;
    // It may be known to lead before this instance has heard from it.
    Ok(Answer(Cluster { leader: Some(leader.into()), ..seen(&gateway).await? }))
}

/// Removes an instance for good, and answers with the cluster without it.
#[utoipa::path(
    post, path = "/api/v1/cluster/remove", tag = "operation", request_body = RemoveRequest,
    responses((status = 200, body = Cluster), (status = "4XX", body = ErrorBody))
)]
pub(super) async fn remove(
    State(gateway): State<Gateway>,
    Json(body): Json<RemoveRequest>,
) -> Result<Answer<Cluster>, ApiError> {
    let instance = instance(body.instance_id, "instanceId")?;
    bounded(&gateway, gateway.cluster().remove(instance)).await?;
    Ok(Answer(seen(&gateway).await?))
}

fn instance(text: String, field: &str) -> Result<InstanceId, ApiError> {
    InstanceId::parse(text).map_err(|error| ApiError::invalid(format!("{field}: {error}")))
}
