//! What every request and answer has in common: an id, a place in a trace, a check of its origin, an end even if a handler
//! panics, headers that say who answered, and its place in the metrics.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, BodyDataStream};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{FutureExt, Stream};
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL, CONNECTION,
    HeaderName, HeaderValue, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, StatusCode, Version};
use http_body::Body as _;
use openclaw_proto::http::{ErrorCode, INSTANCE, REQUEST_ID, TRACE_PARENT};
use openclaw_proto::ids::RequestId;
use openclaw_raft::trace;
use tracing::field::display;
use tracing::{Instrument, Span, debug, error, info_span, trace_span};

use super::error::{self, ApiError};
use super::origin::Verdict;
use super::{Gateway, Peer, client};
use crate::logging;

const INSTANCE_HEADER: HeaderName = HeaderName::from_static(INSTANCE);
const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static(REQUEST_ID);

/// What is asked again and again, and would be most of what a collector gets: traced only for who brings a trace.
const UNTRACED: [&str; 14] = [
    "/",
    "/{asset}",
    "/cluster",
    "/api/v1/cluster",
    "/api/v1/overview",
    "/api/v1/health",
    "/api/v1/health/live",
    "/api/v1/health/ready",
    "/health",
    "/healthz",
    "/ready",
    "/readyz",
    "/metrics",
    "/api/v1/metrics",
];

/// The outermost middleware.
pub(super) async fn wrap(State(gateway): State<Gateway>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let request_id = given_id(&request).unwrap_or_else(RequestId::random);
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        // The one that counts, for handlers.
        request.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    let method = request.method().clone();
    let version = request.version();
    let openai = request.uri().path().starts_with("/v1/");
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unmatched", MatchedPath::as_str);

    let client = client::address(Peer::of(&request), request.headers(), gateway.trusted_proxies());
    let traced = traced(&request, &request_id, &method, route);
    traced.record("client.address", client.map(display));
    let span = info_span!("request", request_id = %request_id, method = %method, route, client = client.map(display));
    let verdict = gateway.origins().check(request.version(), request.uri(), request.headers());
    let mut response = match &verdict {
        Ok(Verdict::CrossOrigin(_)) if is_preflight(&request) => StatusCode::NO_CONTENT.into_response(),
        Ok(_) => {
            let handling = next.run(request).instrument(span.clone()).instrument(traced.clone());
            let handled = AssertUnwindSafe(logging::of_request(request_id.clone(), handling)).catch_unwind().await;
            handled.unwrap_or_else(|_| {
                // The panic hook has logged where; this line says which request met it.
                error!(%request_id, %method, route, "request handler panicked");
                ApiError::new(ErrorCode::Internal, "a bug in the gateway; its log has this request id").into_response()
            })
        }
        Err(error) => error.clone().into_response(),
    };

    if let Some(code) = error::render(&mut response, &request_id, openai) {
        gateway.metrics().http_errors.with_label_values(&[code.as_str()]).inc();
        traced.record("code", code.as_str());
        debug!(%request_id, client = client.map(display), code = code.as_str(), "request refused");
    }
    let streams = response.body().size_hint().exact().is_none();
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

    // Whoever keeps the connection makes the next one elsewhere, rather than meet one that is being closed. When a stream ends its
    // instance may be on its way out, and nobody knows that now. HTTP/2 has frames for that.
    if version < Version::HTTP_2 && (streams || gateway.cluster().is_draining()) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }

    let (status, took) = (response.status().as_u16(), began.elapsed());
    traced.record("status", status);
    if response.status().is_server_error() {
        traced.record("otel.status_code", "error");
    }
    let response = response.map(|body| if streams { follow(body, span, traced, &request_id) } else { body });
    gateway.metrics().http_request(route, method_label(&method), status, took);
    debug!(%request_id, %method, route, status, took_us = took.as_micros(), client = client.map(display), "request answered");
    response
}

/// What a collector is told of the request, until its answer's last byte.
fn traced(request: &Request, request_id: &RequestId, method: &Method, route: &str) -> Span {
    let parent = request.headers().get(TRACE_PARENT).and_then(|value| value.to_str().ok());
    let (parent, method) = (parent.filter(|text| trace::is_parent(text)), method_label(method));
    if parent.is_none() && UNTRACED.contains(&route) {
        return Span::none();
    }
    let span = trace_span!(
        "http", otel.name = %format_args!("{method} {route}"), otel.kind = "server", %request_id, method, route,
        client.address = tracing::field::Empty, status = tracing::field::Empty, code = tracing::field::Empty, otel.status_code = tracing::field::Empty
    );
    trace::follow(&span, parent.unwrap_or_default());
    span
}

/// A body that is made while it is read: what is logged meanwhile belongs to the request as well.
fn follow(body: Body, span: Span, traced: Span, request_id: &RequestId) -> Body {
    Body::from_stream(Following { body: body.into_data_stream(), span, traced, request_id: request_id.clone() })
}

struct Following {
    body: BodyDataStream,
    span: Span,
    traced: Span,
    request_id: RequestId,
}

impl Stream for Following {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let (_traced, _span) = (this.traced.enter(), this.span.enter());
        logging::of_request_now(&this.request_id, || Pin::new(&mut this.body).poll_next(context))
    }
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
            "authorization, content-type, idempotency-key, if-match, last-event-id, traceparent, x-openclaw-min-index, \
             x-openclaw-model, x-openclaw-agent-id, x-openclaw-session-key, x-request-id",
        ),
    );
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("retry-after, x-openclaw-instance, x-openclaw-index, x-request-id"),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
}
