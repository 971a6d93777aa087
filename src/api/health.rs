//! `health`: three questions that different callers ask, none of which waits for anything. `docs/health.md` has the table.
//!
//! *Live*, for who restarts processes: is another start the remedy? *Ready*, for balancers: can it serve? *Health*, for
//! people: is all well that is this instance's to mend? A deaf bot makes an instance unwell, and neither dead nor useless.

use axum::Json as Answer;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use openclaw_proto::http::{Health, HealthCondition, HealthDetail, HealthReason, HealthStatus};

use super::cluster::ClusterStatus;
use super::{Gateway, Peer};

/// What is wrong with this instance although it can serve. Whoever wires the process implements it.
pub trait HealthView: Send + Sync + 'static {
    /// Waits for nothing.
    fn reasons(&self) -> Vec<HealthReason>;
}

/// Whether the process lives: 200, until consensus has stopped in it.
#[utoipa::path(
    get, path = "/api/v1/health/live", tag = "operation",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(super) async fn live(State(gateway): State<Gateway>, request: Request) -> Response {
    let status = match gateway.cluster().status().failed {
        None => HealthStatus::Live,
        Some(_) => HealthStatus::ConsensusStopped,
    };
    answer(&gateway, &request, status)
}

/// Whether it can serve: 503 while it must not be sent anything new, or cannot reach a quorum.
#[utoipa::path(
    get, path = "/api/v1/health/ready", tag = "operation",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(super) async fn ready(State(gateway): State<Gateway>, request: Request) -> Response {
    let status = readiness(&gateway.cluster().status());
    answer(&gateway, &request, status)
}

/// Whether all is well: 503 while it cannot serve, and while something of it needs a person.
#[utoipa::path(
    get, path = "/api/v1/health", tag = "operation",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(super) async fn health(State(gateway): State<Gateway>, request: Request) -> Response {
    let mut status = readiness(&gateway.cluster().status());
    if status == HealthStatus::Ready && !gateway.parts().health.reasons().is_empty() {
        status = HealthStatus::Unwell;
    }
    answer(&gateway, &request, status)
}

fn readiness(cluster: &ClusterStatus) -> HealthStatus {
    if cluster.failed.is_some() {
        HealthStatus::ConsensusStopped
    } else if cluster.draining {
        HealthStatus::Draining
    } else if cluster.maintenance {
        HealthStatus::Maintenance
    } else if !cluster.has_quorum {
        HealthStatus::NoQuorum
    } else if cluster.starting {
        HealthStatus::Starting
    } else {
        HealthStatus::Ready
    }
}

/// Why an instance is not ready, in words.
pub fn standing(cluster: &ClusterStatus) -> Vec<HealthReason> {
    let mut reasons = Vec::new();
    let mut add = |condition, message: String| reasons.push(HealthReason { condition, account: None, message });
    if let Some(failed) = &cluster.failed {
        let message = format!("consensus has stopped: {failed}. The process ends by itself; start it again");
        add(HealthCondition::ConsensusStopped, message);
    } else if !cluster.has_quorum {
        let message = "no majority of the voters can be reached, so nothing is committed. See openclaw cluster status for who is \
                       missing; start it, or mend the network between the peer addresses";
        add(HealthCondition::NoQuorum, message.to_owned());
    }
    if cluster.starting {
        let message = "the process has not caught up with the cluster since it started; it does so by itself";
        add(HealthCondition::Starting, message.to_owned());
    }
    if cluster.draining {
        add(HealthCondition::Draining, "the process is about to end; another instance serves meanwhile".to_owned());
    }
    if cluster.maintenance {
        let message = "maintenance is on: openclaw maintenance off ends it, and so does a restart";
        add(HealthCondition::Maintenance, message.to_owned());
    }
    reasons
}

fn answer(gateway: &Gateway, request: &Request, status: HealthStatus) -> Response {
    let ok = matches!(status, HealthStatus::Live | HealthStatus::Ready);
    let code = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Answer(Health { ok, status, detail: detail(gateway, request) })).into_response()
}

/// For callers with the token alone: the rest of the world learns `ok` and `status`.
fn detail(gateway: &Gateway, request: &Request) -> Option<HealthDetail> {
    gateway.authorize(Peer::of(request), request.headers()).ok()?;
    let cluster = gateway.cluster().status();
    Some(HealthDetail {
        instance_id: gateway.parts().instance_id.as_str().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: u64::try_from(gateway.inner.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        reasons: [standing(&cluster), gateway.parts().health.reasons()].concat(),
        leader: cluster.leader.map(String::from),
        term: cluster.term,
        applied_index: cluster.applied_index,
        running_turns: gateway.parts().load.running(),
    })
}
