//! `overview`: the cluster at a glance, for the dashboard and for scripts.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::State;
use futures::future::BoxFuture;
use openclaw_proto::http::{ErrorBody, Overview};
use tokio::time::timeout;

use super::Gateway;
use super::cluster::ClusterError;
use super::error::ApiError;
use super::extract::Params;

/// The whole cluster as this instance can find it out. Whoever wires the process implements it.
pub trait OverviewView: Send + Sync + 'static {
    /// At most a second old, however many ask. An instance that does not answer soon is shown as one that does not.
    fn overview(&self) -> BoxFuture<'static, Result<Arc<Overview>, ClusterError>>;
}

#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Whether to add the last minutes, step by step.
    #[serde(default)]
    series: bool,
}

/// Instances, channels, work and recent events, of all instances that answer the one that is asked.
#[utoipa::path(
    get, path = "/api/v1/overview", tag = "operation", params(Wanted),
    responses((status = 200, body = Overview), (status = 503, body = ErrorBody))
)]
pub(super) async fn get(
    State(gateway): State<Gateway>,
    Params(wanted): Params<Wanted>,
) -> Result<Answer<Overview>, ApiError> {
    let deadline = gateway.limits().request;
    let overview = timeout(deadline, gateway.parts().overview.overview()).await;
    let overview = overview.map_err(|_| ApiError::no_answer(deadline))??;
    let mut overview = Arc::unwrap_or_clone(overview);
    if !wanted.series {
        overview.series = None;
    }
    Ok(Answer(overview))
}
