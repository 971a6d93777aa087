//! Every metric of an instance: name, unit and help text, in one place.
//!
//! Owns the registry and its series; it never decides when something happened, others tell it. Labels come from closed
//! sets: routes as they are matched, methods, statuses, kinds of tokens, accounts of the configuration - never from ids or texts of users, since the
//! page may be read by whoever may scrape it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openclaw_raft::{Counters, Status};
use prometheus::{
    Counter, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Bucket bounds in seconds, 1 ms to 300 s: from an answer out of memory to the longest turn.
const DURATION_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 100.0, 300.0];

/// A name or bound that the metrics library refuses: a bug, found by every test that builds an instance.
#[derive(Debug, thiserror::Error)]
#[error("register metrics: {0}")]
pub struct RegisterError(#[from] prometheus::Error);

/// The series. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    pub http_requests: IntCounterVec,
    pub http_request_duration: HistogramVec,
    pub http_connections: IntGauge,
    pub http_streams: IntGauge,
    pub http_refused_connections: IntCounter,
    pub model_tokens: IntCounterVec,
    pub run_duration: HistogramVec,
    pub turns_running: IntGauge,
    pub turns_waiting: IntGauge,
    pub sessions_active: IntGauge,
    pub dedupe_hits: IntCounter,
    pub channel_starts: IntCounterVec,
    pub channel_connected: IntGaugeVec,
    pub channel_messages: IntCounterVec,
    pub channel_calls: IntCounterVec,
    pub channel_delivery_duration: HistogramVec,
    pub channel_outbox_waiting: IntGaugeVec,
    pub channel_outbox_oldest: IntGaugeVec,
    pub raft_term: IntGauge,
    pub raft_commit_index: IntGauge,
    pub raft_applied_index: IntGauge,
    pub raft_is_leader: IntGauge,
    pub raft_has_quorum: IntGauge,
    pub raft_leader_changes: IntCounter,
    pub raft_proposals: IntCounterVec,
    pub raft_proposal_duration: Histogram,
    pub raft_fsyncs: IntCounter,
    pub raft_fsync_seconds: Counter,
    pub raft_fsync_requests: IntCounter,
    pub raft_entries_appended: IntCounter,
    pub raft_commands_applied: IntCounter,
    pub raft_snapshots: IntCounterVec,
}

impl Metrics {
    /// Registers every series.
    ///
    /// # Errors
    /// [`RegisterError`] for a name that is used twice or not valid.
    pub fn new() -> Result<Self, RegisterError> {
        let r = Registry::new();
        Ok(Self {
            http_requests: counters(
                &r,
                "openclaw_http_requests_total",
                "HTTP requests answered, by matched route.",
                &["route", "method", "status"],
            )?,
            http_request_duration: durations(
                &r,
                "openclaw_http_request_duration_seconds",
                "Time from a request's head to its answer's head, by matched route.",
                &["route", "method"],
            )?,
            http_connections: gauge(&r, "openclaw_http_connections", "Open client connections.")?,
            http_streams: gauge(&r, "openclaw_http_streams", "Event streams that are being read.")?,
            http_refused_connections: counter(
                &r,
                "openclaw_http_refused_connections_total",
                "Client connections closed at once because the limit was reached.",
            )?,
            model_tokens: counters(
                &r,
                "openclaw_model_tokens_total",
                "Tokens as model providers counted them.",
                &["token_type"],
            )?,
            run_duration: durations(
                &r,
                "openclaw_run_duration_seconds",
                "Time from a turn's start on this instance to its committed end.",
                &["outcome"],
            )?,
            turns_running: gauge(&r, "openclaw_turns_running", "Turns that this instance runs.")?,
            turns_waiting: gauge(
                &r,
                "openclaw_turns_waiting",
                "Runnable turns that wait for a free place on this instance.",
            )?,
            sessions_active: gauge(
                &r,
                "openclaw_sessions_active",
                "Sessions with a turn that runs or waits on this instance.",
            )?,
            dedupe_hits: counter(
                &r,
                "openclaw_dedupe_hits_total",
                "Messages whose idempotency key had been accepted before.",
            )?,
            channel_starts: counters(
                &r,
                "openclaw_channel_starts_total",
                "Times that this instance became the owner of a bot account and ran it.",
                &["account"],
            )?,
            channel_connected: gauges(
                &r,
                "openclaw_channel_connected",
                "1 while the account runs here and its platform answers, else 0.",
                &["account"],
            )?,
            channel_messages: counters(
                &r,
                "openclaw_channel_messages_total",
                "Messages of people that came in here, by what became of them.",
                &["channel", "verdict"],
            )?,
            channel_calls: counters(
                &r,
                "openclaw_channel_calls_total",
                "Sends and edits asked of a platform from here, by what it answered.",
                &["channel", "call", "outcome"],
            )?,
            channel_delivery_duration: durations(
                &r,
                "openclaw_channel_delivery_duration_seconds",
                "Time from a committed reply to the platform's word that it has all of it.",
                &["channel"],
            )?,
            channel_outbox_waiting: gauges(
                &r,
                "openclaw_channel_outbox_waiting",
                "Committed messages that wait to be sent by an account that runs here.",
                &["account"],
            )?,
            channel_outbox_oldest: gauges(
                &r,
                "openclaw_channel_outbox_oldest_seconds",
                "Age of the oldest of them.",
                &["account"],
            )?,
            raft_term: gauge(&r, "openclaw_raft_term", "Current Raft term.")?,
            raft_commit_index: gauge(&r, "openclaw_raft_commit_index", "Highest log index known to be committed.")?,
            raft_applied_index: gauge(&r, "openclaw_raft_applied_index", "Highest log index applied here.")?,
            raft_is_leader: gauge(&r, "openclaw_raft_is_leader", "1 while this instance leads, else 0.")?,
            raft_has_quorum: gauge(
                &r,
                "openclaw_raft_has_quorum",
                "1 while a quorum is known to be reachable, else 0.",
            )?,
            raft_leader_changes: counter(
                &r,
                "openclaw_raft_leader_changes_total",
                "Times that another instance, or this one, became the leader.",
            )?,
            raft_proposals: counters(
                &r,
                "openclaw_raft_proposals_total",
                "Commands proposed by this instance, by result.",
                &["result"],
            )?,
            raft_proposal_duration: duration(
                &r,
                "openclaw_raft_proposal_duration_seconds",
                "Time from a proposal to its acknowledged outcome.",
            )?,
            raft_fsyncs: counter(&r, "openclaw_raft_fsyncs_total", "Waits for the log's disk.")?,
            raft_fsync_seconds: seconds(&r, "openclaw_raft_fsync_seconds_total", "Time spent in those waits.")?,
            raft_fsync_requests: counter(
                &r,
                "openclaw_raft_fsync_requests_total",
                "Appends and votes that those waits covered; per wait, how many shared one.",
            )?,
            raft_entries_appended: counter(&r, "openclaw_raft_entries_appended_total", "Log entries appended here.")?,
            raft_commands_applied: counter(
                &r,
                "openclaw_raft_commands_applied_total",
                "Commands that the state machine here has applied.",
            )?,
            raft_snapshots: counters(
                &r,
                "openclaw_raft_snapshots_total",
                "Snapshots written here, and taken over from a leader.",
                &["kind"],
            )?,
            registry: Arc::new(r),
        })
    }

    /// The page that Prometheus reads, text format 0.0.4.
    ///
    /// # Errors
    /// [`RegisterError`] if a series cannot be written as text.
    pub fn page(&self) -> Result<String, RegisterError> {
        Ok(TextEncoder::new().encode_to_string(&self.registry.gather())?)
    }

    /// Counts one answered request. `route` is the matched pattern.
    pub fn http_request(&self, route: &str, method: &str, status: u16, took: Duration) {
        let mut digits = [0; 3];
        self.http_requests.with_label_values(&[route, method, status_text(status, &mut digits)]).inc();
        self.http_request_duration.with_label_values(&[route, method]).observe(took.as_secs_f64());
    }

    /// Takes over what consensus says of itself. One task calls it, whenever the status changes and every few seconds;
    /// `leader_changed` where another instance leads than at the call before.
    pub fn raft(&self, status: &Status, counters: &Counters, leader_changed: bool) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.raft_term.set(gauge(status.term));
        self.raft_commit_index.set(gauge(status.committed_index));
        self.raft_applied_index.set(gauge(status.applied_index));
        self.raft_is_leader.set(i64::from(status.is_leader));
        self.raft_has_quorum.set(i64::from(status.has_quorum));
        if leader_changed {
            self.raft_leader_changes.inc();
        }
        catch_up(&self.raft_fsyncs, &counters.syncs);
        catch_up(&self.raft_fsync_requests, &counters.sync_requests);
        catch_up(&self.raft_entries_appended, &counters.entries_appended);
        catch_up(&self.raft_commands_applied, &counters.commands_applied);
        catch_up(&self.raft_snapshots.with_label_values(&["built"]), &counters.snapshots_built);
        catch_up(&self.raft_snapshots.with_label_values(&["installed"]), &counters.snapshots_installed);
        let seconds = Duration::from_micros(counters.sync_micros.load(Ordering::Relaxed)).as_secs_f64();
        self.raft_fsync_seconds.inc_by((seconds - self.raft_fsync_seconds.get()).max(0.0));
    }

    /// Counts the tokens of one answer.
    pub fn tokens(&self, input: u64, output: u64) {
        self.model_tokens.with_label_values(&["input"]).inc_by(input);
        self.model_tokens.with_label_values(&["output"]).inc_by(output);
    }
}

/// Brings a counter to a total that somebody else counts.
fn catch_up(counter: &IntCounter, total: &AtomicU64) {
    counter.inc_by(total.load(Ordering::Relaxed).saturating_sub(counter.get()));
}

/// The status in digits, without allocating.
fn status_text(status: u16, digits: &mut [u8; 3]) -> &str {
    for (at, unit) in [100, 10, 1].into_iter().enumerate() {
        digits[at] = b'0' + u8::try_from(status / unit % 10).unwrap_or(0);
    }
    std::str::from_utf8(digits).unwrap_or("000")
}

fn counters(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    let series = IntCounterVec::new(Opts::new(name, help), labels)?;
    r.register(Box::new(series.clone()))?;
    Ok(series)
}

fn gauges(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    let series = IntGaugeVec::new(Opts::new(name, help), labels)?;
    r.register(Box::new(series.clone()))?;
    Ok(series)
}

fn counter(r: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let series = IntCounter::new(name, help)?;
    r.register(Box::new(series.clone()))?;
    Ok(series)
}

fn gauge(r: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let series = IntGauge::new(name, help)?;
    r.register(Box::new(series.clone()))?;
    Ok(series)
}

fn durations(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, prometheus::Error> {
    let series = HistogramVec::new(HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec()), labels)?;
    r.register(Box::new(series.clone()))?;
    Ok(series)
}

fn duration(r: &Registry, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
    let series = Histogram::with_opts(HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec()))?;
    r.register(Box::new(series.clone()))?;
    Ok(series)
}

fn seconds(r: &Registry, name: &str, help: &str) -> Result<Counter, prometheus::Error> {
    let series = Counter::new(name, help)?;
    r.register(Box::new(series.clone()))?;
    Ok(series)
}

#[cfg(test)]
mod tests {
    use prometheus::proto::MetricType;

    use super::*;

    /// What a gauge or histogram without a unit counts.
    const COUNTS: [&str; 11] = [
        "connections",
        "streams",
        "running",
        "waiting",
        "active",
        "connected",
        "term",
        "index",
        "leader",
        "quorum",
        "seconds",
    ];

    #[test]
    fn names_say_area_what_and_unit() {
        let metrics = Metrics::new().unwrap();
        metrics.http_request("/api/v1/chat", "POST", 200, Duration::from_millis(3));
        metrics.tokens(1, 2);
        metrics.run_duration.with_label_values(&["done"]).observe(1.0);
        metrics.raft_proposals.with_label_values(&["ok"]).inc();
        metrics.channel_starts.with_label_values(&["telegram:default"]).inc();
        metrics.channel_connected.with_label_values(&["telegram:default"]).set(1);
        metrics.channel_messages.with_label_values(&["telegram", "answered"]).inc();
        metrics.channel_calls.with_label_values(&["telegram", "send", "done"]).inc();
        metrics.channel_delivery_duration.with_label_values(&["telegram"]).observe(0.1);
        metrics.channel_outbox_waiting.with_label_values(&["telegram:default"]).set(1);
        metrics.channel_outbox_oldest.with_label_values(&["telegram:default"]).set(1);
        for family in metrics.registry.gather() {
            let name = family.name();
            assert!(name.starts_with("openclaw_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(name.split('_').count() >= 3, "{name}");
            assert!(family.help().ends_with('.'), "{name}");
            let unit = name.rsplit('_').next().unwrap();
            match family.get_field_type() {
                MetricType::COUNTER => assert_eq!(unit, "total", "{name}"),
                MetricType::GAUGE | MetricType::HISTOGRAM | MetricType::SUMMARY | MetricType::UNTYPED => {
                    assert!(COUNTS.contains(&unit), "{name}");
                }
            }
        }
        let page = metrics.page().unwrap();
        assert!(page.contains(r#"openclaw_http_requests_total{method="POST",route="/api/v1/chat",status="200"} 1"#));
        assert!(page.contains(r#"openclaw_model_tokens_total{token_type="output"} 2"#));
    }

    #[test]
    fn statuses_are_three_digits() {
        let mut digits = [0; 3];
        assert_eq!(status_text(503, &mut digits), "503");
        assert_eq!(status_text(200, &mut digits), "200");
    }
}
