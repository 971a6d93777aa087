//! What the gateway writes about itself: one line per event, as JSON for machines or text for terminals.
//!
//! Owns the subscriber and the thread that writes. Logging never holds the gateway up: lines wait in a bounded queue, and
//! when whoever reads our output stops reading, lines are dropped and counted rather than turns delayed. It redacts
//! nothing, because nothing secret comes this far: secrets are [`openclaw_config::Secret`], which prints as `***`, and user text
//! is never a field.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use openclaw_config::Logging;
use openclaw_config::logging::{Format, Level, Output};
use openclaw_proto::ids::{InstanceId, RequestId};
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{self as format, FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::traces::Traces;

/// Lines that may wait for the writer.
const QUEUE_LINES: usize = 8192;
/// How long the last lines may take when the process ends.
const FLUSH: Duration = Duration::from_secs(1);
/// Libraries that tell at `info` what we would call `debug`, and openraft, which warns of every message that a dead peer
/// does not get: hundreds of lines a second. `RUST_LOG` may ask for more.
const QUIET: &str = "openraft=error,h2=warn,hyper=warn,hyper_util=warn,rustls=warn,tonic=warn,tower=warn,reqwest=warn";

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the log file {} cannot be opened: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("RUST_LOG does not name what to log: {0}")]
    Filter(#[from] ParseError),
    #[error("the log's thread cannot be started: {0}")]
    Thread(io::Error),
    #[error("this process logs already")]
    Twice,
}

/// Writes what is still waiting when it is dropped. Keep it until the process ends.
#[must_use = "the last lines are lost without it"]
#[derive(Debug)]
pub struct Guard {
    lines: SyncSender<Message>,
    traces: Option<Traces>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Before the lines: the collector may refuse the last spans.
        drop(self.traces.take());
        let (written, done) = sync_channel(1);
        if self.lines.try_send(Message::Flush(written)).is_ok() {
            // A stuck reader must not keep the process from ending; its lines are lost.
            done.recv_timeout(FLUSH).ok();
        }
    }
}

tokio::task_local! {
    static REQUEST: RequestId;
}

/// Runs `work` for a request: whatever it asks of other instances is told the request's id, for their logs.
pub fn of_request<F: Future>(id: RequestId, work: F) -> impl Future<Output = F::Output> {
    REQUEST.scope(id, work)
}

/// As [`of_request`], for one step of work that is polled by others.
pub fn of_request_now<T>(id: &RequestId, work: impl FnOnce() -> T) -> T {
    REQUEST.sync_scope(id.clone(), work)
}

/// The request that this task works for.
pub fn request_id() -> Option<RequestId> {
    REQUEST.try_with(Clone::clone).ok()
}

/// Lines that were dropped since the process started, because whoever reads the log did not.
pub fn dropped_lines() -> &'static AtomicU64 {
    &DROPPED
}

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Starts logging for the whole process, as `logging` says, in the name of `instance`, and `traces` if there are any.
///
/// # Errors
/// [`Error`], with nothing changed.
pub fn start(logging: &Logging, instance: &InstanceId, traces: Option<Traces>) -> Result<Guard, Error> {
    let (output, terminal): (Box<dyn Write + Send>, bool) = match &logging.output {
        Output::Stdout => (Box::new(io::stdout()), io::stdout().is_terminal()),
        Output::Stderr => (Box::new(io::stderr()), io::stderr().is_terminal()),
        Output::File(path) => {
            let open = File::options().append(true).create(true).open(path);
            (Box::new(open.map_err(|source| Error::Open { path: path.clone(), source })?), false)
        }
    };
    let json = match logging.format {
        Format::Json => true,
        Format::Text => false,
        Format::Auto => !terminal,
    };
    let filter = filter(logging.level, std::env::var("RUST_LOG").ok().as_deref())?;
    let name = logging.include_instance_id.then(|| instance.to_string());
    let (sender, receiver) = sync_channel(QUEUE_LINES);
    let queue = Queue { lines: sender.clone(), dropped: Arc::default() };
    let lost = Lost { dropped: queue.dropped.clone(), json, instance: name.clone() };
    std::thread::Builder::new()
        .name("log".into())
        .spawn(move || write_lines(&receiver, output, &lost))
        .map_err(Error::Thread)?;
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let installed = match &traces {
        None if json => tracing::subscriber::set_global_default(json_subscriber(filter, name, queue)),
        None => tracing::subscriber::set_global_default(text_subscriber(filter, name, colours, queue)),
        // What is logged and what is traced are two questions, each with a filter of its own.
        Some(traces) => {
            let lines = if json {
                let lines = format::layer().fmt_fields(JsonFields).event_format(JsonLine { instance: name });
                lines.with_writer(queue).with_filter(filter).boxed()
            } else {
                let lines = format::layer().with_timer(TimeAndInstance { instance: name }).with_ansi(colours);
                lines.with_writer(queue).with_filter(filter).boxed()
            };
            tracing::subscriber::set_global_default(Registry::default().with(lines).with(traces.layer()))
        }
    };
    installed.map_err(|_| Error::Twice)?;
    Ok(Guard { lines: sender, traces })
}

fn filter(level: Level, more: Option<&str>) -> Result<EnvFilter, ParseError> {
    let level = match level {
        Level::Silent => "off",
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    // At `error` and `off` the list of quiet libraries would make them louder.
    let quiet = if matches!(level, "off" | "error") { "" } else { QUIET };
    EnvFilter::builder().parse([level, quiet, more.unwrap_or_default()].join(","))
}

fn json_subscriber<W>(filter: EnvFilter, instance: Option<String>, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(JsonFields)
        .event_format(JsonLine { instance })
        .with_writer(writer)
        .finish()
}

fn text_subscriber<W>(
    filter: EnvFilter,
    instance: Option<String>,
    colours: bool,
    writer: W,
) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(TimeAndInstance { instance })
        .with_ansi(colours)
        .with_writer(writer)
        .finish()
}

/// Text lines begin `2026-11-22T20:05:29.123456Z node-1`.
struct TimeAndInstance {
    instance: Option<String>,
}

impl FormatTime for TimeAndInstance {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(writer)?;
        match &self.instance {
            Some(instance) => write!(writer, " {instance}"),
            None => Ok(()),
        }
    }
}

/// Fields of a span, kept as the members of a JSON object.
struct JsonFields;

impl<'writer> FormatFields<'writer> for JsonFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = Members(Map::new());
        fields.record(&mut visitor);
        write!(writer, "{}", Value::Object(visitor.0))
    }

    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        let mut members = match serde_json::from_str(&current.fields) {
            Ok(Value::Object(members)) => Members(members),
            _ => Members(Map::new()),
        };
        fields.record(&mut members);
        current.fields = Value::Object(members.0).to_string();
        Ok(())
    }
}

/// One JSON object per event: `timestamp`, `level`, `target`, `instanceId`, `requestId`, `message`, `fields`, `spans`.
struct JsonLine {
    instance: Option<String>,
}

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut visitor = Members(Map::new());
        event.record(&mut visitor);
        let Members(mut fields) = visitor;
        let message = fields.remove("message");
        let own_request_id = fields.remove("request_id");
        let mut request_id = None;

        let mut spans = Vec::new();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let mut members = Map::from_iter([("name".to_owned(), json!(span.name()))]);
            let extensions = span.extensions();
            let recorded = extensions.get::<FormattedFields<JsonFields>>().map(|fields| fields.fields.as_str());
            if let Some(Ok(Value::Object(recorded))) = recorded.map(serde_json::from_str) {
                // The innermost request is the one that this is about.
                request_id = recorded.get("request_id").cloned().or(request_id);
                members.extend(recorded);
            }
            spans.push(Value::Object(members));
        }

        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let metadata = event.metadata();
        // Written member by member, so that a person reading raw lines finds them in the same order.
        write!(writer, "{{\"timestamp\":\"{timestamp}\",\"level\":\"{}\"", level_word(*metadata.level()))?;
        write!(writer, ",\"target\":{}", json!(metadata.target()))?;
        if let Some(instance) = &self.instance {
            write!(writer, ",\"instanceId\":{}", json!(instance))?;
        }
        if let Some(request_id) = own_request_id.or(request_id) {
            write!(writer, ",\"requestId\":{request_id}")?;
        }
        if let Some(message) = message {
            write!(writer, ",\"message\":{message}")?;
        }
        if !fields.is_empty() {
            write!(writer, ",\"fields\":{}", Value::Object(fields))?;
        }
        if !spans.is_empty() {
            write!(writer, ",\"spans\":{}", Value::Array(spans))?;
        }
        writeln!(writer, "}}")
    }
}

fn level_word(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG => "debug",
        tracing::Level::TRACE => "trace",
    }
}

/// Collects fields as JSON values.
struct Members(Map<String, Value>);

impl Members {
    fn put(&mut self, field: &Field, value: Value) {
        // `r#type` is how a field named like a keyword is written.
        let name = field.name().strip_prefix("r#").unwrap_or(field.name());
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Members {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, json!(value));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, json!(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, json!(value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, json!(value));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, json!(value));
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            if write!(text, ": {cause}").is_err() {
                break;
            }
            source = cause.source();
        }
        self.put(field, json!(text));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, json!(format!("{value:?}")));
    }
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Where formatted lines go.
#[derive(Clone)]
struct Queue {
    lines: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Queue {
    /// The formatter hands over whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.lines.try_send(Message::Line(line.to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says how many lines are missing, in the form of the others.
struct Lost {
    dropped: Arc<AtomicU64>,
    json: bool,
    instance: Option<String>,
}

impl Lost {
    fn line(&self) -> Option<String> {
        let count = self.dropped.swap(0, Ordering::Relaxed);
        if count == 0 {
            return None;
        }
        let mut timestamp = String::new();
        if SystemTime.format_time(&mut Writer::new(&mut timestamp)).is_err() {
            timestamp.clear();
        }
        let instance = self.instance.as_deref().unwrap_or_default();
        Some(if self.json {
            let fields = json!({ "lines": count });
            let mut line =
                format!("{{\"timestamp\":\"{timestamp}\",\"level\":\"warn\",\"target\":\"openclaw::logging\"");
            if !instance.is_empty() {
                line.push_str(&format!(",\"instanceId\":{}", json!(instance)));
            }
            line.push_str(&format!(",\"message\":\"log lines were dropped\",\"fields\":{fields}}}\n"));
            line
        } else {
            format!("{timestamp} {instance}  WARN openclaw::logging: log lines were dropped lines={count}\n")
        })
    }
}

fn write_lines(messages: &Receiver<Message>, mut output: Box<dyn Write + Send>, lost: &Lost) {
    while let Ok(message) = messages.recv() {
        let written = match message {
            Message::Line(line) => {
                let missing = lost.line().map_or(Ok(()), |line| output.write_all(line.as_bytes()));
                missing.and_then(|()| output.write_all(&line))
            }
            Message::Flush(done) => {
                let flushed = output.flush();
                // Nobody waits any more when the flush took too long, and then nobody is told.
                done.send(()).ok();
                flushed
            }
        };
        if written.is_err() {
            // A log that cannot be written (reader gone, disk full) has nowhere to say so; the next line may fit.
            lost.dropped.fetch_add(1, Ordering::Relaxed);
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Memory {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    impl Memory {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn logged(level: Level, more: Option<&str>, log: impl FnOnce()) -> Vec<Value> {
        let memory = Memory::default();
        let subscriber = json_subscriber(filter(level, more).unwrap(), Some("node-1".into()), memory.clone());
        tracing::subscriber::with_default(subscriber, log);
        memory.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn every_line_is_an_object_that_names_instance_and_request() {
        let lines = logged(Level::Info, None, || {
            let span = tracing::info_span!("request", request_id = "r-1", method = tracing::field::Empty);
            let _entered = span.enter();
            span.record("method", "GET");
            tracing::warn!(count = 3_u64, error = %"line\nend", "odd \"thing\"");
        });
        let line = &lines[0];
        assert_eq!(lines.len(), 1);
        assert_eq!(line["level"], "warn");
        assert_eq!(line["instanceId"], "node-1");
        assert_eq!(line["requestId"], "r-1");
        assert_eq!(line["message"], "odd \"thing\"");
        assert_eq!(line["fields"], json!({ "count": 3, "error": "line\nend" }));
        assert_eq!(line["spans"], json!([{ "name": "request", "request_id": "r-1", "method": "GET" }]));
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(timestamp.ends_with('Z') && timestamp.contains('T'), "{timestamp}");
    }

    #[test]
    fn libraries_are_quiet_until_asked() {
        let chatter = || {
            tracing::info!(target: "openraft::core", "chatter");
            tracing::debug!("a step");
        };
        assert!(logged(Level::Info, None, chatter).is_empty());
        let unreachable = || tracing::warn!(target: "openraft::replication", "a peer is unreachable");
        assert!(logged(Level::Info, None, unreachable).is_empty());
        assert_eq!(logged(Level::Info, Some("openraft=info"), chatter).len(), 1);
        assert_eq!(logged(Level::Debug, None, chatter).len(), 1);
        let bad = || tracing::error!(target: "openraft", "x");
        assert!(logged(Level::Silent, None, bad).is_empty());
        assert_eq!(logged(Level::Error, None, bad).len(), 1);
        assert!(filter(Level::Info, Some("a=b=c")).is_err());
    }

    #[test]
    fn a_secret_prints_masked() {
        let secret = openclaw_config::Secret::new("hunter2hunter2");
        let lines = logged(Level::Info, None, || tracing::info!(?secret, "set up"));
        assert!(!lines[0].to_string().contains("hunter2"), "{}", lines[0]);
    }

    #[test]
    fn text_lines_begin_with_time_and_instance() {
        let memory = Memory::default();
        let filter = filter(Level::Info, None).unwrap();
        let subscriber = text_subscriber(filter, Some("node-1".into()), false, memory.clone());
        tracing::subscriber::with_default(subscriber, || tracing::info!("ready"));
        let text = memory.text();
        assert!(text.contains("Z node-1  INFO ") && text.ends_with("ready\n"), "{text}");
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_not_time_and_is_told() {
        let (sender, receiver) = sync_channel(2);
        let mut queue = Queue { lines: sender.clone(), dropped: Arc::default() };
        for line in ["1\n", "2\n", "3\n", "4\n"] {
            assert_eq!(queue.write(line.as_bytes()).unwrap(), 2);
        }
        let lost = Lost { dropped: queue.dropped.clone(), json: true, instance: Some("node-1".into()) };
        drop((sender, queue));
        let memory = Memory::default();
        write_lines(&receiver, Box::new(memory.clone()), &lost);
        let text = memory.text();
        let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((&first["fields"]["lines"], &first["instanceId"]), (&json!(2), &json!("node-1")));
        assert!(text.ends_with("}\n1\n2\n"), "{text}");
    }
}
