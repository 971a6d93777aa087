//! `metrics`: the page that Prometheus reads.
//!
//! The published `prometheus.yml` asks `/metrics` and sends no token, so callers on this machine, and from where
//! `gateway.metrics.allowFrom` says, need none. A request that a proxy forwarded is from neither, whatever its address,
//! as far as headers tell of the proxy: one that adds none, such as any balancer of TCP, belongs on another machine and not into
//! `allowFrom`. Everybody else needs the token.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, FORWARDED, HeaderMap};
use openclaw_config::IpRange;
use openclaw_proto::http::ErrorCode;

use super::error::ApiError;
use super::{Gateway, Peer};

/// Every metric, in Prometheus' text format.
#[utoipa::path(
    get, path = "/api/v1/metrics", tag = "operation",
    responses((status = 200, body = String, content_type = "text/plain"), (status = 401, body = openclaw_proto::http::ErrorBody))
)]
pub(super) async fn get(State(gateway): State<Gateway>, request: Request) -> Result<Response, ApiError> {
    let peer = Peer::of(&request);
    if !needs_no_token(peer, request.headers(), &gateway.parts().config.metrics.allow_from) {
        gateway.authorize(peer, request.headers())?;
    }
    let page = gateway.metrics().page().map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response())
}

fn needs_no_token(peer: Peer, headers: &HeaderMap, allow_from: &[IpRange]) -> bool {
    let forwarded = headers.contains_key(FORWARDED)
        || ["x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"].iter().any(|name| headers.contains_key(*name));
    match peer {
        Peer::Operator => true,
        Peer::Tcp(address) => {
            let ip = address.ip();
            !forwarded && (ip.is_loopback() || allow_from.iter().any(|range| range.contains(ip)))
        }
    }
}
