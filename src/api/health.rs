//! `health`: whether this process lives, and whether it can serve. It waits for nothing.

use axum::Json as Answer;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use openclaw_proto::http::{Health, HealthDetail, HealthStatus};

use super::{Gateway, Peer};

/// Whether the process lives: 200, always.
#[utoipa::path(get, path = "/api/v1/health/live", tag = "operation", responses((status = 200, body = Health)))]
pub(super) async fn live(State(gateway): State<Gateway>, request: Request) -> Response {
    let health = Health { ok: true, status: HealthStatus::Live, detail: detail(&gateway, &request) };
    Answer(health).into_response()
}

/// Whether it can serve: 503 while it must not be sent anything new, or cannot reach a quorum.
#[utoipa::path(
    get, path = "/api/v1/health/ready", tag = "operation",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(super) async fn ready(State(gateway): State<Gateway>, request: Request) -> Response {
    let cluster = gateway.cluster().status();
    let status = if cluster.draining {
        HealthStatus::Draining
    } else if cluster.maintenance {
        HealthStatus::Maintenance
    } else if cluster.has_quorum {
        HealthStatus::Ready
    } else {
        HealthStatus::NoQuorum
    };
    let ok = status == HealthStatus::Ready;
    let code = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Answer(Health { ok, status, detail: detail(&gateway, &request) })).into_response()
}

/// For callers with the token alone: the rest of the world learns `ok` and `status`.
fn detail(gateway: &Gateway, request: &Request) -> Option<HealthDetail> {
    gateway.authorize(Peer::of(request), request.headers()).ok()?;
    let cluster = gateway.cluster().status();
    Some(HealthDetail {
        instance_id: gateway.parts().instance_id.as_str().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: u64::try_from(gateway.inner.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        leader: cluster.leader.map(String::from),
        term: cluster.term,
        applied_index: cluster.applied_index,
        running_turns: gateway.parts().load.running(),
    })
}
