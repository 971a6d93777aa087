//! Traces on their way out: which spans are told, and the thread that sends them.
//!
//! Owns the tracer, a bounded queue and the export: OTLP as protobuf over HTTP. It never holds the gateway up: a span that
//! finds the queue full is dropped and counted, a collector that fails costs the spans that it was given, and at the end
//! of the process what waits has two seconds to leave. Spans come from `tracing`; which of them are told is in `SPANS`, and
//! their fields are ids, names and numbers, never what people or models wrote. Without an endpoint nothing of this
//! exists. How a trace crosses instances is in [`openclaw_raft::trace`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use openclaw_config::diagnostics::Otel;
use openclaw_proto::ids::InstanceId;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor};
use parking_lot::Mutex;
use tracing::{Level, Subscriber, info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::http_client;

/// The spans that are told, by name. Others are for the log alone.
/// They are spans of the lowest level, so that they cost nothing where nobody traces; the log has its own.
const SPANS: [&str; 8] = ["http", "message", "propose", "commit", "turn", "model", "deliver", "relay"];
/// Spans that may wait to be sent.
const QUEUE: usize = 4096;
/// Of one export.
const BATCH: usize = 512;
/// How long a span waits for others to go with it.
const GATHER: Duration = Duration::from_secs(1);
const EXPORT: Duration = Duration::from_secs(5);
/// How long the last spans may take when the process ends.
const FLUSH: Duration = Duration::from_secs(2);
/// Between two attempts to put the last word into a full queue.
const FULL: Duration = Duration::from_millis(10);
const CONNECT: Duration = Duration::from_secs(3);
const USER_AGENT: &str = concat!("openclaw/", env!("CARGO_PKG_VERSION"));
/// What a collector may say to an export.
const ANSWER_BYTES: usize = 64 * 1024;

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("diagnostics.otel: the exporter cannot be set up: {0}")]
    Exporter(String),
    #[error("the thread of the traces cannot be started: {0}")]
    Thread(std::io::Error),
}

/// What became of spans, since the process started.
#[derive(Debug, Default)]
pub struct Counters {
    pub exported: AtomicU64,
    /// The queue was full.
    pub dropped: AtomicU64,
    /// The collector did not take them.
    pub failed: AtomicU64,
}

static COUNTERS: Counters =
    Counters { exported: AtomicU64::new(0), dropped: AtomicU64::new(0), failed: AtomicU64::new(0) };

/// Of this process.
pub fn counters() -> &'static Counters {
    &COUNTERS
}

enum Message {
    Span(Box<SpanData>),
    Flush(SyncSender<()>),
}

/// Sends what is still waiting when it is dropped. Keep it until the process ends.
#[must_use = "the last spans are lost without it"]
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    queue: SyncSender<Message>,
}

impl Traces {
    /// Starts to send, if the settings have an endpoint.
    ///
    /// # Errors
    /// [`Error`], with nothing started.
    pub fn start(otel: &Otel, instance: &InstanceId) -> Result<Option<Self>, Error> {
        let Some(endpoint) = otel.traces_endpoint() else { return Ok(None) };
        let resource = Resource::builder_empty()
            .with_service_name(otel.service_name.clone())
            .with_attributes([
                KeyValue::new("service.instance.id", instance.as_str().to_owned()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .build();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
        let cause = Arc::default();
        let exporter = {
            let _runtime = runtime.enter();
            exporter(otel, &endpoint, &resource, Arc::clone(&cause))?
        };
        let (queue, waiting) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("traces".into())
            .spawn(move || send(&waiting, &runtime, &exporter, &cause))
            .map_err(Error::Thread)?;
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(otel.sample_rate.0))))
            .with_resource(resource)
            .with_span_processor(Queue(queue.clone()))
            .build();
        Ok(Some(Self { provider, queue }))
    }

    /// What turns spans of the gateway into spans of a trace.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("openclaw"))
            // Where in the code a span begins is nobody's business, and how long it was idle is not worth the clock.
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_level(false)
            // No events: a log line's error may quote what a provider said.
            .with_filter(filter_fn(|metadata| {
                metadata.is_span()
                    && *metadata.level() == Level::TRACE
                    && metadata.target().starts_with("openclaw")
                    && SPANS.contains(&metadata.name())
            }))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        let until = Instant::now() + FLUSH;
        let (sent, done) = sync_channel(1);
        let mut message = Message::Flush(sent);
        // A collector that hangs must not keep the process from ending; its spans are lost.
        loop {
            match self.queue.try_send(message) {
                Ok(()) => {
                    done.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
                    return;
                }
                Err(TrySendError::Full(back)) if Instant::now() < until => message = back,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => return,
            }
            std::thread::sleep(FULL);
        }
    }
}

fn exporter(
    otel: &Otel,
    endpoint: &str,
    resource: &Resource,
    cause: Arc<Mutex<Option<String>>>,
) -> Result<SpanExporter, Error> {
    let failed = |error: String| Error::Exporter(error);
    let url = reqwest::Url::parse(endpoint).map_err(|error| failed(error.to_string()))?;
    let http = http_client::builder(&url, USER_AGENT, CONNECT)
        .timeout(EXPORT)
        .build()
        .map_err(|error| failed(http_client::causes(error)))?;
    let headers = otel.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client { http, cause })
        .with_endpoint(endpoint)
        // Whatever OTEL_EXPORTER_OTLP_PROTOCOL says: nothing else is spoken here.
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(EXPORT)
        .with_headers(headers)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    exporter.set_resource(resource);
    Ok(exporter)
}

/// Takes ended spans, and waits for nobody.
#[derive(Debug)]
struct Queue(SyncSender<Message>);

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        match self.0.try_send(Message::Span(Box::new(span))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                COUNTERS.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The thread: gathers spans, and sends them, until nobody makes any.
fn send(
    waiting: &Receiver<Message>,
    runtime: &tokio::runtime::Runtime,
    exporter: &SpanExporter,
    cause: &Mutex<Option<String>>,
) {
    let mut failing = false;
    let mut over = false;
    while !over {
        let mut batch = Vec::new();
        let mut flushed = None;
        let mut until = None;
        while batch.len() < BATCH {
            let left = until
                .map_or(Duration::from_secs(3600), |until: Instant| until.saturating_duration_since(Instant::now()));
            match waiting.recv_timeout(left) {
                Ok(Message::Span(span)) => {
                    until.get_or_insert_with(|| Instant::now() + GATHER);
                    batch.push(*span);
                }
                Ok(Message::Flush(done)) => {
                    flushed = Some(done);
                    break;
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    over = true;
                    break;
                }
            }
        }
        if !batch.is_empty() {
            let count = batch.len() as u64;
            let exported = runtime.block_on(async { tokio::time::timeout(EXPORT, exporter.export(batch)).await });
            let error = match exported {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(cause.lock().take().unwrap_or_else(|| error.to_string())),
                Err(_) => Some(format!("no answer within {EXPORT:?}")),
            };
            let counter = if error.is_none() { &COUNTERS.exported } else { &COUNTERS.failed };
            counter.fetch_add(count, Ordering::Relaxed);
            match &error {
                Some(error) if !failing => warn!(error, "the collector takes no traces"),
                None if failing => info!("the collector takes traces again"),
                Some(_) | None => {}
            }
            failing = error.is_some();
        }
        if let Some(done) = flushed {
            // Nobody waits any more when the export took too long.
            done.send(()).ok();
        }
    }
}

/// The HTTP client that the gateway has anyway.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    /// Why the last request came to nothing: the exporter itself says no more than that it did.
    cause: Arc<Mutex<Option<String>>>,
}

impl Client {
    fn failed(&self, error: reqwest::Error) -> HttpError {
        let cause = http_client::causes(error);
        *self.cause.lock() = Some(cause.clone());
        cause.into()
    }
}

#[tonic::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = request.try_into().map_err(|error| self.failed(error))?;
        let mut answer = self.http.execute(request).await.map_err(|error| self.failed(error))?;
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| self.failed(error))? {
            if body.len() + piece.len() > ANSWER_BYTES {
                return Err(format!("the collector's answer is larger than {ANSWER_BYTES} bytes").into());
            }
            body.extend_from_slice(&piece);
        }
        Ok(Response::builder().status(answer.status()).body(body.into())?)
    }
}
