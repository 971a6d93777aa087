//! `maintenance`: taking this instance out, and back in.

use axum::Json as Answer;
use axum::extract::State;
use openclaw_proto::http::{ErrorBody, Maintenance, MaintenanceRequest};

use super::Gateway;
use super::cluster::bounded;
use super::error::ApiError;
use super::extract::Json;

/// Whether maintenance is on, and how far this instance has drained.
#[utoipa::path(get, path = "/api/v1/maintenance", tag = "operation", responses((status = 200, body = Maintenance)))]
pub(super) async fn get(State(gateway): State<Gateway>) -> Answer<Maintenance> {
    Answer(gateway.cluster().maintenance())
}

/// Switches maintenance on or off. A restart switches it off. Refused (`409`) while the others could not do without this
/// instance: one is down or behind, or in maintenance itself; `force` does it all the same.
#[utoipa::path(
    post, path = "/api/v1/maintenance", tag = "operation", request_body = MaintenanceRequest,
    responses((status = 200, body = Maintenance), (status = "4XX", body = ErrorBody))
)]
pub(super) async fn set(
    State(gateway): State<Gateway>,
    Json(body): Json<MaintenanceRequest>,
) -> Result<Answer<Maintenance>, ApiError> {
    Ok(Answer(bounded(&gateway, gateway.cluster().set_maintenance(body.on, body.force)).await?))
}
