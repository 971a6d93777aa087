//! What every request and answer has in common: an id, a check of its origin, an end even if a handler panics, headers
//! that say who answered, and its place in the metrics.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL, CONNECTION,
    HeaderName, HeaderValue, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, StatusCode, Version};
use openclaw_proto::http::{ErrorCode, INSTANCE, REQUEST_ID};
use openclaw_proto::ids::RequestId;
use tracing::{Instrument, debug, error, info_span};

use super::Gateway;
use super::error::{self, ApiError};
use super::origin::Verdict;

const INSTANCE_HEADER: HeaderName = HeaderName::from_static(INSTANCE);
const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static(REQUEST_ID);

/// The outermost middleware.
pub(super) async fn wrap(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let request_id = given_id(&request).unwrap_or_else(RequestId::random);
    let method = request.method().clone();
    let version = request.version();
    let openai = request.uri().path().starts_with("/v1/");
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unmatched", MatchedPath::as_str);

    let verdict = gateway.origins().check(request.version(), request.uri(), request.headers());
    let mut response = match &verdict {
        Ok(Verdict::CrossOrigin(_)) if is_preflight(&request) => StatusCode::NO_CONTENT.into_response(),
        Ok(_) => {
            let span = info_span!("request", request_id = %request_id, method = %method, route);
            let handled = AssertUnwindSafe(next.run(request).instrument(span)).catch_unwind().await;
            handled.unwrap_or_else(|_| {
                // The panic hook has logged where; this line says which request met it.
                error!(%request_id, %method, route, "request handler panicked");
                ApiError::new(ErrorCode::Internal, "a bug in the gateway; its log has this request id").into_response()
            })
        }
        Err(error) => error.clone().into_response(),
    };

    error::render(&mut response, &request_id, openai);
    let headers = response.headers_mut();
    if let Ok(Verdict::CrossOrigin(origin)) = verdict {
        allow_origin(headers, &origin);
    }
    headers.insert(INSTANCE_HEADER, gateway.instance_header());
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        headers.insert(REQUEST_ID_HEADER, value);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Conversations are nobody's to keep on the way.
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));

    // Whoever keeps the connection makes the next one elsewhere, rather than meet one that is being closed. HTTP/2 has frames
    // for that.
    if version < Version::HTTP_2 && gateway.cluster().is_stopping() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }

    let (status, took) = (response.status().as_u16(), began.elapsed());
    gateway.metrics().http_request(route, method_label(&method), status, took);
    debug!(%request_id, %method, route, status, took_us = took.as_micros(), "request answered");
    response
}

fn given_id(request: &Request) -> Option<RequestId> {
    RequestId::parse(request.headers().get(REQUEST_ID_HEADER)?.to_str().ok()?).ok()
}

/// A closed set, whatever clients send.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

fn allow_origin(headers: &mut http::HeaderMap, origin: &str) {
    let Ok(origin) = HeaderValue::from_str(origin) else { return };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(VARY, HeaderValue::from_static("origin"));
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PATCH, DELETE"));
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(
            "authorization, content-type, idempotency-key, if-match, last-event-id, x-openclaw-min-index, \
             x-openclaw-model, x-openclaw-agent-id, x-openclaw-session-key, x-request-id",
        ),
    );
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("retry-after, x-openclaw-instance, x-openclaw-index, x-request-id"),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
}
