//! Every metric of an instance: name, unit and help text, in one place. `docs/metrics.md` is made from here.
//!
//! Owns the registry and its series; it never decides when something happened, others tell it. Labels come from closed
//! sets: routes as they are matched, methods, statuses, kinds of tokens, accounts and providers of the configuration,
//! members of the cluster - never from ids or texts of users, since the page may be read by whoever may scrape it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openclaw_proto::http::MemberRole;
use openclaw_raft::{Counters, Status};
use parking_lot::Mutex;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Bucket bounds in seconds, 1 ms to 300 s: from an answer out of memory to the longest turn.
const DURATION_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 100.0, 300.0];

/// A name or bound that the metrics library refuses: a bug, found by every test that builds an instance.
#[derive(Debug, thiserror::Error)]
#[error("register metrics: {0}")]
pub struct RegisterError(#[from] prometheus::Error);

/// A metric as it is documented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub name: String,
    pub kind: &'static str,
    pub labels: Vec<String>,
    pub help: String,
}

/// The series. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    described: Arc<Vec<Described>>,
    /// Peers whose lag is shown.
    peers: Arc<Mutex<BTreeSet<String>>>,
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
    pub raft_members: IntGauge,
    pub raft_has_quorum: IntGauge,
    pub raft_leader_changes: IntCounter,
    pub raft_proposals: IntCounterVec,
    pub raft_proposal_duration: Histogram,
    pub raft_fsyncs: IntCounter,
    pub raft_fsync_seconds: Counter,
    pub raft_fsync_requests: IntCounter,
    pub raft_fsync_age: Gauge,
    pub raft_entries_appended: IntCounter,
    pub raft_commands_applied: IntCounter,
    pub raft_snapshots: IntCounterVec,
    pub raft_snapshot_seconds: Counter,
    pub raft_replication_lag: IntGaugeVec,
    pub http_errors: IntCounterVec,
    pub turn_failures: IntCounterVec,
    pub model_calls: IntCounterVec,
    pub model_calls_running: IntGaugeVec,
    pub model_call_duration: HistogramVec,
    pub model_first_token: HistogramVec,
    pub model_retries: IntCounterVec,
    pub model_fallbacks: IntCounterVec,
    pub channel_silence: IntGaugeVec,
    pub lease_validity: Gauge,
    pub lease_losses: IntCounter,
    pub instance_draining: IntGauge,
    pub instance_maintenance: IntGauge,
    pub health_failing: IntGaugeVec,
    pub storage_free: IntGauge,
    pub storage_size: IntGauge,
    pub log_dropped_lines: IntCounter,
    pub trace_spans: IntCounterVec,
}

impl Metrics {
    /// Registers every series.
    ///
    /// # Errors
    /// [`RegisterError`] for a name that is used twice or not valid.
    pub fn new() -> Result<Self, RegisterError> {
        let r = Register::default();
        r.registry.register(Box::new(ProcessCollector::for_self()))?;
        let build = gauges(&r, "openclaw_build_info", "1, with the version of this instance.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
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
                "Age of the oldest message that waits to be sent by an account that runs here.",
                &["account"],
            )?,
            raft_term: gauge(&r, "openclaw_raft_term", "Current Raft term.")?,
            raft_commit_index: gauge(&r, "openclaw_raft_commit_index", "Highest log index known to be committed.")?,
            raft_applied_index: gauge(&r, "openclaw_raft_applied_index", "Highest log index applied here.")?,
            raft_is_leader: gauge(&r, "openclaw_raft_is_leader", "1 while this instance leads, else 0.")?,
            raft_members: gauge(
                &r,
                "openclaw_raft_members",
                "Members of the cluster that this instance knows of, itself among them; the leader knows best.",
            )?,
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
            raft_fsync_seconds: seconds(
                &r,
                "openclaw_raft_fsync_seconds_total",
                "Time spent with waiting for the log's disk.",
            )?,
            raft_fsync_requests: counter(
                &r,
                "openclaw_raft_fsync_requests_total",
                "Appends and votes that the waits for the log's disk covered; per wait, how many shared one.",
            )?,
            raft_fsync_age: age(
                &r,
                "openclaw_raft_fsync_age_seconds",
                "Time that the log's disk has been waited for by now; 0 while nobody waits.",
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
            raft_snapshot_seconds: seconds(
                &r,
                "openclaw_raft_snapshot_seconds_total",
                "Time spent with writing snapshots.",
            )?,
            raft_replication_lag: gauges(
                &r,
                "openclaw_raft_replication_lag_entries",
                "Log entries that a peer is not known to have on its disk; the leader alone shows it.",
                &["peer"],
            )?,
            http_errors: counters(
                &r,
                "openclaw_http_errors_total",
                "HTTP requests answered with an error, by its code.",
                &["code"],
            )?,
            turn_failures: counters(
                &r,
                "openclaw_turn_failures_total",
                "Attempts at turns that failed here, by the code of the error.",
                &["code"],
            )?,
            model_calls: counters(
                &r,
                "openclaw_model_calls_total",
                "Requests to model providers, by how they ended.",
                &["provider", "outcome"],
            )?,
            model_calls_running: gauges(
                &r,
                "openclaw_model_calls_running",
                "Requests that providers are answering now.",
                &["provider"],
            )?,
            model_call_duration: durations(
                &r,
                "openclaw_model_call_duration_seconds",
                "Time from asking a provider to the end of its answer.",
                &["provider"],
            )?,
            model_first_token: durations(
                &r,
                "openclaw_model_first_token_seconds",
                "Time from asking a provider to the first text of its answer.",
                &["provider"],
            )?,
            model_retries: counters(
                &r,
                "openclaw_model_retries_total",
                "Times that a provider was asked again after a failure.",
                &["provider"],
            )?,
            model_fallbacks: counters(
                &r,
                "openclaw_model_fallbacks_total",
                "Times that a provider was given up for the next model.",
                &["provider"],
            )?,
            channel_silence: gauges(
                &r,
                "openclaw_channel_silence_seconds",
                "Time since the platform of an account that runs here last answered; 0 where it does not run.",
                &["account"],
            )?,
            lease_validity: {
                let gauge = Gauge::new(
                    "openclaw_lease_validity_seconds",
                    "How long this instance may still act as an owner unless a renewal is acknowledged.",
                )?;
                r.add("gauge", &[], gauge)?
            },
            lease_losses: counter(
                &r,
                "openclaw_lease_losses_total",
                "Times that this instance had to stop to act as an owner.",
            )?,
            instance_draining: gauge(
                &r,
                "openclaw_instance_draining",
                "1 while this instance is on its way out, else 0.",
            )?,
            instance_maintenance: gauge(
                &r,
                "openclaw_instance_maintenance",
                "1 while this instance is in maintenance, else 0.",
            )?,
            health_failing: gauges(
                &r,
                "openclaw_health_failing",
                "1 while /api/v1/health is false for this reason, else 0.",
                &["condition"],
            )?,
            storage_free: gauge(&r, "openclaw_storage_free_bytes", "Room on the disk of the data directory.")?,
            storage_size: gauge(&r, "openclaw_storage_size_bytes", "Size of the disk of the data directory.")?,
            log_dropped_lines: counter(
                &r,
                "openclaw_log_dropped_lines_total",
                "Lines of the log that were dropped because nobody took them.",
            )?,
            trace_spans: counters(
                &r,
                "openclaw_trace_spans_total",
                "Spans that were exported, refused by the collector (failed), or dropped because too many waited.",
                &["result"],
            )?,
            described: Arc::new(r.described.take()),
            registry: Arc::new(r.registry),
            peers: Arc::default(),
        })
    }

    /// Every metric of ours, by name.
    pub fn described(&self) -> Vec<Described> {
        let mut described = (*self.described).clone();
        described.sort_by(|a, b| a.name.cmp(&b.name));
        described
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
        self.raft_members.set(i64::try_from(status.members.len()).unwrap_or(i64::MAX));
        self.raft_has_quorum.set(i64::from(status.has_quorum));
        if leader_changed {
            self.raft_leader_changes.inc();
        }
        catch_up(&self.raft_fsyncs, &counters.syncs);
        catch_up(&self.raft_fsync_requests, &counters.sync_requests);
        self.raft_fsync_age.set(counters.sync_age().unwrap_or_default().as_secs_f64());
        catch_up(&self.raft_entries_appended, &counters.entries_appended);
        catch_up(&self.raft_commands_applied, &counters.commands_applied);
        catch_up(&self.raft_snapshots.with_label_values(&["built"]), &counters.snapshots_built);
        catch_up(&self.raft_snapshots.with_label_values(&["installed"]), &counters.snapshots_installed);
        let seconds = Duration::from_micros(counters.sync_micros.load(Ordering::Relaxed)).as_secs_f64();
        self.raft_fsync_seconds.inc_by((seconds - self.raft_fsync_seconds.get()).max(0.0));
        let seconds = Duration::from_micros(counters.snapshot_micros.load(Ordering::Relaxed)).as_secs_f64();
        self.raft_snapshot_seconds.inc_by((seconds - self.raft_snapshot_seconds.get()).max(0.0));
        self.lag(status);
    }

    /// How far the others are behind, where this instance leads; a peer that is none any more is not shown.
    fn lag(&self, status: &Status) {
        let last = status.last_log_index.max(status.committed_index);
        let followers = status.members.iter().filter(|member| status.is_leader && member.role != MemberRole::Leader);
        let mut shown = self.peers.lock();
        let before = std::mem::take(&mut *shown);
        for member in followers {
            let peer = member.instance_id.as_str();
            let lag = last.saturating_sub(member.matched_index.unwrap_or_default());
            self.raft_replication_lag.with_label_values(&[peer]).set(i64::try_from(lag).unwrap_or(i64::MAX));
            shown.insert(peer.to_owned());
        }
        for gone in before.difference(&shown) {
            // There may be nothing to remove.
            self.raft_replication_lag.remove_label_values(&[gone]).ok();
        }
    }

    /// Counts the tokens of one answer.
    pub fn tokens(&self, input: u64, output: u64) {
        self.model_tokens.with_label_values(&["input"]).inc_by(input);
        self.model_tokens.with_label_values(&["output"]).inc_by(output);
    }
}

/// Brings a counter to a total that somebody else counts.
pub fn catch_up(counter: &IntCounter, total: &AtomicU64) {
    counter.inc_by(total.load(Ordering::Relaxed).saturating_sub(counter.get()));
}

/// The status in digits, without allocating.
fn status_text(status: u16, digits: &mut [u8; 3]) -> &str {
    for (at, unit) in [100, 10, 1].into_iter().enumerate() {
        digits[at] = b'0' + u8::try_from(status / unit % 10).unwrap_or(0);
    }
    std::str::from_utf8(digits).unwrap_or("000")
}

/// Series as they are registered, and what is said of them.
#[derive(Default)]
struct Register {
    registry: Registry,
    described: RefCell<Vec<Described>>,
}

impl Register {
    fn add<C>(&self, kind: &'static str, labels: &[&str], series: C) -> Result<C, prometheus::Error>
    where
        C: prometheus::core::Collector + Clone + 'static,
    {
        for desc in series.desc() {
            self.described.borrow_mut().push(Described {
                name: desc.fq_name.clone(),
                kind,
                labels: labels.iter().map(|label| (*label).to_owned()).collect(),
                help: desc.help.clone(),
            });
        }
        self.registry.register(Box::new(series.clone()))?;
        Ok(series)
    }
}

fn counters(r: &Register, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    r.add("counter", labels, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauges(r: &Register, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    r.add("gauge", labels, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn counter(r: &Register, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    r.add("counter", &[], IntCounter::new(name, help)?)
}

fn gauge(r: &Register, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    r.add("gauge", &[], IntGauge::new(name, help)?)
}

fn age(r: &Register, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    r.add("gauge", &[], Gauge::new(name, help)?)
}

fn durations(r: &Register, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, prometheus::Error> {
    let series = HistogramVec::new(HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec()), labels)?;
    r.add("histogram", labels, series)
}

fn duration(r: &Register, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
    let series = Histogram::with_opts(HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec()))?;
    r.add("histogram", &[], series)
}

fn seconds(r: &Register, name: &str, help: &str) -> Result<Counter, prometheus::Error> {
    r.add("counter", &[], Counter::new(name, help)?)
}

#[cfg(test)]
mod tests {
    use openclaw_raft::Member;

    use super::*;

    /// What a gauge or histogram without a unit counts, and units.
    const COUNTS: [&str; 18] = [
        "connections",
        "streams",
        "running",
        "waiting",
        "active",
        "members",
        "connected",
        "term",
        "index",
        "leader",
        "quorum",
        "draining",
        "maintenance",
        "failing",
        "info",
        "entries",
        "bytes",
        "seconds",
    ];

    #[test]
    fn names_say_area_what_and_unit() {
        let metrics = Metrics::new().unwrap();
        for Described { name, kind, labels, help } in metrics.described() {
            assert!(name.starts_with("openclaw_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(name.split('_').count() >= 3, "{name}");
            assert!(help.ends_with('.'), "{name}");
            let unit = name.rsplit('_').next().unwrap();
            match kind {
                "counter" => assert_eq!(unit, "total", "{name}"),
                _ => assert!(COUNTS.contains(&unit), "{name}"),
            }
            // Prometheus' own.
            assert!(
                labels.iter().all(|label| !["job", "instance", "le", "quantile"].contains(&label.as_str())),
                "{name}"
            );
        }
        metrics.http_request("/api/v1/chat", "POST", 200, Duration::from_millis(3));
        metrics.tokens(1, 2);
        let page = metrics.page().unwrap();
        assert!(page.contains(r#"openclaw_http_requests_total{method="POST",route="/api/v1/chat",status="200"} 1"#));
        assert!(page.contains(r#"openclaw_model_tokens_total{token_type="output"} 2"#));
        assert!(page.contains(concat!("openclaw_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")), "{page}");
        for process in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
            assert!(page.contains(&format!("\n{process} ")), "{process}");
        }
    }

    /// The table of `docs/metrics.md`.
    fn table(metrics: &Metrics) -> String {
        let row = |one: Described| {
            let labels: Vec<_> = one.labels.iter().map(|label| format!("`{label}`")).collect();
            format!("| `{}` | {} | {} | {} |\n", one.name, one.kind, labels.join(", "), one.help.replace('|', "\\|"))
        };
        let rows: String = metrics.described().into_iter().map(row).collect();
        format!("| name | kind | labels | meaning |\n|---|---|---|---|\n{rows}")
    }

    #[test]
    fn every_metric_is_documented_as_it_is() {
        const BEGIN: &str =
            "<!-- made from src/metrics.rs; OPENCLAW_WRITE_DOCS=1 cargo test -p openclaw --lib metrics -->\n";
        const END: &str = "<!-- end -->\n";
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = text.split_once(BEGIN).unwrap();
        let (written, after) = rest.split_once(END).unwrap();
        let today = table(&Metrics::new().unwrap());
        if std::env::var_os("OPENCLAW_WRITE_DOCS").is_some() {
            std::fs::write(&path, format!("{before}{BEGIN}{today}{END}{after}")).unwrap();
            return;
        }
        assert_eq!(written, today, "docs/metrics.md says something else");
    }

    #[test]
    fn the_leader_alone_shows_how_far_its_peers_are_behind() {
        let metrics = Metrics::new().unwrap();
        let member = |id: &str, role, matched_index| Member {
            instance_id: openclaw_proto::ids::InstanceId::parse(id).unwrap(),
            role,
            peer_addr: String::new(),
            http_addr: String::new(),
            matched_index,
        };
        let mut status = Status::default();
        (status.is_leader, status.last_log_index) = (true, 10);
        status.members = vec![
            member("node-1", MemberRole::Leader, Some(10)),
            member("node-2", MemberRole::Follower, Some(7)),
            member("node-3", MemberRole::Learner, None),
        ];
        let shown = |status: &Status| {
            metrics.raft(status, &Counters::default(), false);
            let page = metrics.page().unwrap();
            let lines = page.lines().filter(|line| line.starts_with("openclaw_raft_replication_lag_entries{"));
            lines.map(|line| line.split_once('{').unwrap().1.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(shown(&status), [r#"peer="node-2"} 3"#, r#"peer="node-3"} 10"#]);
        assert_eq!(metrics.raft_members.get(), 3);
        status.members.pop();
        assert_eq!(shown(&status), [r#"peer="node-2"} 3"#]);
        status.is_leader = false;
        assert_eq!(shown(&status), [""; 0]);
    }

    #[test]
    fn statuses_are_three_digits() {
        let mut digits = [0; 3];
        assert_eq!(status_text(503, &mut digits), "503");
        assert_eq!(status_text(200, &mut digits), "200");
    }
}
