//! An OpenTelemetry collector, as far as traces sent over HTTP go: it decodes what comes with the protocol's own types, keeps
//! every span, and can be in trouble.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::connection;

/// The most spans that are kept; those that follow are counted alone.
const MAX_SPANS: usize = 100_000;

/// A span as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub service: String,
    /// `service.instance.id`.
    pub instance: String,
    pub name: String,
    /// In hexadecimal.
    pub trace_id: String,
    pub span_id: String,
    /// Empty: it has none.
    pub parent_id: String,
    pub attributes: BTreeMap<String, String>,
    /// The name of its status code is an error's.
    pub failed: bool,
    /// Unix nanoseconds.
    pub start: u64,
    pub end: u64,
}

/// How the collector takes what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mood {
    #[default]
    Well,
    /// Answers with this status, and keeps nothing.
    Refuse(u16),
    /// Never answers.
    Hang,
}

#[derive(Debug, Default)]
struct Kept {
    spans: Vec<Span>,
    /// Of the last export.
    headers: BTreeMap<String, String>,
}

struct Server {
    kept: Mutex<Kept>,
    changed: watch::Sender<usize>,
    mood: watch::Sender<Mood>,
}

impl Server {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A collector that runs until it is dropped.
pub struct Handle {
    address: SocketAddr,
    server: Arc<Server>,
    task: JoinHandle<()>,
}

/// Starts a collector; port 0 takes a free one.
///
/// # Errors
/// When the address cannot be bound.
pub async fn start(address: SocketAddr) -> Result<Handle> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("bind {address}"))?;
    let address = listener.local_addr().context("read the bound address")?;
    let server = Arc::new(Server {
        kept: Mutex::default(),
        changed: watch::Sender::new(0),
        mood: watch::Sender::new(Mood::Well),
    });
    let router = Router::new().route("/v1/traces", post(traces)).with_state(server.clone());
    Ok(Handle { address, server, task: tokio::spawn(connection::serve(listener, router)) })
}

impl Handle {
    /// What exporters are configured with.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set_mood(&self, mood: Mood) {
        self.server.mood.send_replace(mood);
    }

    pub fn spans(&self) -> Vec<Span> {
        self.server.kept().spans.clone()
    }

    /// The headers of the last export, whether it was taken or not.
    pub fn headers(&self) -> BTreeMap<String, String> {
        self.server.kept().headers.clone()
    }

    /// The spans of a trace, once they are as `wanted`.
    ///
    /// # Errors
    /// When that is not so in time; the error has the spans that there are.
    pub async fn trace(&self, trace_id: &str, wanted: impl Fn(&[Span]) -> bool, within: Duration) -> Result<Vec<Span>> {
        let deadline = Instant::now() + within;
        let mut changed = self.server.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let spans: Vec<Span> = self.spans().into_iter().filter(|span| span.trace_id == trace_id).collect();
            if wanted(&spans) {
                return Ok(spans);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if tokio::time::timeout(left, changed.changed()).await.is_err() {
                let told: Vec<_> = spans.iter().map(|span| format!("{} on {}", span.name, span.instance)).collect();
                bail!("trace {trace_id} is not as it should be within {within:?}: {told:?}");
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn traces(State(server): State<Arc<Server>>, headers: HeaderMap, body: Bytes) -> Response {
    let mood = *server.mood.borrow();
    {
        let mut kept = server.kept();
        let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        kept.headers = headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
    }
    server.changed.send_modify(|count| *count += 1);
    match mood {
        Mood::Well => {}
        Mood::Refuse(status) => return StatusCode::from_u16(status).unwrap_or_default().into_response(),
        Mood::Hang => std::future::pending().await,
    }
    if headers.get(CONTENT_TYPE).is_none_or(|kind| kind != "application/x-protobuf") {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST.into_response() };
    let mut kept = server.kept();
    for resource in request.resource_spans {
        let of = attributes(&resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        let named = |name: &str| of.get(name).cloned().unwrap_or_default();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            if kept.spans.len() >= MAX_SPANS {
                continue;
            }
            kept.spans.push(Span {
                service: named("service.name"),
                instance: named("service.instance.id"),
                name: span.name,
                trace_id: hex(&span.trace_id),
                span_id: hex(&span.span_id),
                parent_id: hex(&span.parent_span_id),
                attributes: attributes(&span.attributes),
                failed: span.status.is_some_and(|status| status.code == 2),
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
            });
        }
    }
    drop(kept);
    server.changed.send_modify(|count| *count += 1);
    ([(CONTENT_TYPE, "application/x-protobuf")], ExportTraceServiceResponse::default().encode_to_vec()).into_response()
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &any_value::Value| match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::BoolValue(value) => value.to_string(),
        any_value::Value::IntValue(value) => value.to_string(),
        any_value::Value::DoubleValue(value) => value.to_string(),
        other @ (any_value::Value::ArrayValue(_)
        | any_value::Value::KvlistValue(_)
        | any_value::Value::BytesValue(_)
        | any_value::Value::StringValueStrindex(_)) => format!("{other:?}"),
    };
    let value =
        |one: &KeyValue| one.value.as_ref().and_then(|value| value.value.as_ref()).map(text).unwrap_or_default();
    list.iter().map(|one| (one.key.clone(), value(one))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
