//! What this instance has done lately, in steps of some seconds, out of the counters that its metrics keep anyway.
//!
//! Pure but for [`totals`], which reads them.

use std::collections::VecDeque;

use openclaw_proto::http::{Activity, Lines, Quantiles};
use openclaw_proto::peer::Sample;
use prometheus::core::Collector;
use prometheus::proto::{LabelPair, Metric, MetricFamily};

use crate::metrics::Metrics;

/// One sample covers this much, and so many are kept: ten minutes.
pub const STEP_MS: u64 = 5_000;
pub const STEPS: usize = 120;
/// What counts as lately: a minute.
pub const RECENT: usize = 12;

/// Routes that clients use to converse. What operators, probes and this page ask is none of it.
const CLIENTS: [&str; 5] = ["/api/v1/chat", "/api/v1/sessions", "/api/v1/turns", "/api/v1/webhooks", "/v1/"];

/// How many observations lie in each bucket, and above all bounds.
type Times = Vec<u64>;

/// Everything since the process started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    requests: u64,
    refused: u64,
    turns: u64,
    failed_turns: u64,
    input_tokens: u64,
    output_tokens: u64,
    request_times: Times,
    turn_times: Times,
    commit_times: Times,
}

/// Reads the counters, and the bounds of the times in them, in seconds.
pub fn totals(metrics: &Metrics) -> (Totals, Vec<f64>) {
    let mut totals = Totals::default();
    let mut bounds = Vec::new();
    for metric in of(&metrics.http_requests).iter().filter(|metric| is_clients(label(metric, "route"))) {
        let count = whole(metric.get_counter().get_value());
        totals.requests += count;
        let status = label(metric, "status");
        totals.refused += if status == "429" || status.starts_with('5') { count } else { 0 };
    }
    for metric in of(&metrics.http_request_duration).iter().filter(|metric| is_clients(label(metric, "route"))) {
        add(&mut totals.request_times, &times(metric, &mut bounds));
    }
    // A superseded attempt is no end of its turn.
    for metric in of(&metrics.run_duration).iter().filter(|metric| label(metric, "outcome") != "superseded") {
        let count = metric.get_histogram().get_sample_count();
        totals.turns += count;
        totals.failed_turns += if label(metric, "outcome") == "failed" { count } else { 0 };
        add(&mut totals.turn_times, &times(metric, &mut bounds));
    }
    for metric in of(&metrics.raft_proposal_duration) {
        add(&mut totals.commit_times, &times(&metric, &mut bounds));
    }
    for metric in of(&metrics.model_tokens) {
        let count = whole(metric.get_counter().get_value());
        match label(&metric, "token_type") {
            "input" => totals.input_tokens += count,
            _ => totals.output_tokens += count,
        }
    }
    (totals, bounds)
}

fn is_clients(route: &str) -> bool {
    CLIENTS.iter().any(|prefix| route.starts_with(prefix))
}

fn of(series: &impl Collector) -> Vec<Metric> {
    series.collect().iter_mut().flat_map(MetricFamily::take_metric).collect()
}

fn label<'a>(metric: &'a Metric, name: &str) -> &'a str {
    metric.get_label().iter().find(|pair| pair.name() == name).map_or("", LabelPair::value)
}

/// A counter is a whole number, in a type that others share.
fn whole(count: f64) -> u64 {
    count as u64
}

/// The counts of one histogram. All of them have the same bounds.
fn times(metric: &Metric, bounds: &mut Vec<f64>) -> Times {
    let histogram = metric.get_histogram();
    let buckets = histogram.get_bucket();
    if bounds.is_empty() {
        bounds.extend(buckets.iter().map(prometheus::proto::Bucket::upper_bound));
    }
    let upto = buckets.iter().map(prometheus::proto::Bucket::cumulative_count).chain([histogram.get_sample_count()]);
    let mut before = 0;
    upto.map(|upto| upto.saturating_sub(std::mem::replace(&mut before, upto))).collect()
}

fn add(sum: &mut Times, times: &[u64]) {
    if sum.len() < times.len() {
        sum.resize(times.len(), 0);
    }
    sum.iter_mut().zip(times).for_each(|(sum, count)| *sum += count);
}

/// What is more now; empty: nothing is.
fn grown(now: &[u64], before: &[u64]) -> Times {
    let before = before.iter().copied().chain(std::iter::repeat(0));
    let grown: Times = now.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect();
    if grown.iter().all(|count| *count == 0) { Vec::new() } else { grown }
}

/// The last minutes.
#[derive(Debug, Default)]
pub struct Samples {
    /// As of the last one, or of the start.
    last: Totals,
    samples: VecDeque<Sample>,
}

impl Samples {
    /// Takes a sample that ends now and began with the one before.
    pub fn take(&mut self, now: Totals, at_ms: u64, took_ms: u64) {
        let before = std::mem::replace(&mut self.last, now);
        let now = &self.last;
        let sample = Sample {
            at_ms,
            took_ms,
            requests: now.requests - before.requests,
            refused: now.refused - before.refused,
            turns: now.turns - before.turns,
            failed_turns: now.failed_turns - before.failed_turns,
            input_tokens: now.input_tokens - before.input_tokens,
            output_tokens: now.output_tokens - before.output_tokens,
            request_times: grown(&now.request_times, &before.request_times),
            turn_times: grown(&now.turn_times, &before.turn_times),
            commit_times: grown(&now.commit_times, &before.commit_times),
        };
        if self.samples.len() == STEPS {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    pub fn all(&self) -> Vec<Sample> {
        self.samples.iter().cloned().collect()
    }
}

/// Two instances' samples of the same time as one.
pub fn join(sum: &mut Sample, other: &Sample) {
    sum.at_ms = sum.at_ms.max(other.at_ms);
    sum.requests += other.requests;
    sum.refused += other.refused;
    sum.turns += other.turns;
    sum.failed_turns += other.failed_turns;
    sum.input_tokens += other.input_tokens;
    sum.output_tokens += other.output_tokens;
    add(&mut sum.request_times, &other.request_times);
    add(&mut sum.turn_times, &other.turn_times);
    add(&mut sum.commit_times, &other.commit_times);
}

/// Samples of one instance, one after the other, as one.
pub fn lately(samples: &[Sample]) -> Sample {
    let mut sum = Sample::default();
    for sample in samples.iter().rev().take(RECENT) {
        join(&mut sum, sample);
        sum.took_ms += sample.took_ms;
    }
    sum
}

/// What a sample says, in averages over its time.
pub fn activity(sample: &Sample, bounds: &[f64]) -> Activity {
    let rate = |count: u64| per_second(count, sample.took_ms).unwrap_or_default();
    Activity {
        over_ms: sample.took_ms,
        requests_per_second: rate(sample.requests),
        refused_per_second: rate(sample.refused),
        turns_per_second: rate(sample.turns),
        failed_turns_per_second: rate(sample.failed_turns),
        input_tokens_per_second: rate(sample.input_tokens),
        output_tokens_per_second: rate(sample.output_tokens),
        request_time: quantiles(bounds, &sample.request_times),
        turn_time: quantiles(bounds, &sample.turn_times),
        commit_time: quantiles(bounds, &sample.commit_times),
    }
}

/// Samples as lines with a value for each step that ends with the slot `end`; a slot is the time of day in steps.
pub fn lines<'a>(samples: impl IntoIterator<Item = &'a Sample>, bounds: &[f64], end: u64) -> Lines {
    let mut slots: Vec<Option<Sample>> = vec![None; STEPS];
    for sample in samples {
        let back = usize::try_from(end.saturating_sub(slot(sample.at_ms))).unwrap_or(usize::MAX);
        let Some(place) = STEPS.checked_sub(back + 1).and_then(|at| slots.get_mut(at)) else { continue };
        match place {
            Some(sum) => join(sum, sample),
            None => *place = Some(sample.clone()),
        }
    }
    let line = |value: &dyn Fn(&Sample) -> Option<f64>| {
        slots.iter().map(|sample| sample.as_ref().and_then(value).map(rounded)).collect()
    };
    let p95 = |times: &[u64]| quantile(bounds, times, 0.95).map(|seconds| seconds * 1_000.0);
    Lines {
        requests_per_second: line(&|sample| per_second(sample.requests, sample.took_ms)),
        turns_per_second: line(&|sample| per_second(sample.turns, sample.took_ms)),
        tokens_per_second: line(&|sample| per_second(sample.input_tokens + sample.output_tokens, sample.took_ms)),
        request_p95_ms: line(&|sample| p95(&sample.request_times)),
        turn_p95_ms: line(&|sample| p95(&sample.turn_times)),
        commit_p95_ms: line(&|sample| p95(&sample.commit_times)),
    }
}

/// The step in which a time of day lies.
pub fn slot(unix_ms: u64) -> u64 {
    unix_ms / STEP_MS
}

fn per_second(count: u64, over_ms: u64) -> Option<f64> {
    (over_ms > 0).then(|| rounded(count as f64 * 1_000.0 / over_ms as f64))
}

/// Thousandths are enough, and short to write.
fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

fn quantiles(bounds: &[f64], times: &[u64]) -> Option<Quantiles> {
    let ms = |q: f64| quantile(bounds, times, q).map(|seconds| rounded(seconds * 1_000.0));
    Some(Quantiles { p50_ms: ms(0.5)?, p95_ms: ms(0.95)?, p99_ms: ms(0.99)? })
}

/// The value below which the share `q` of the observations lies, as Prometheus' `histogram_quantile` estimates it: evenly
/// spread within a bucket, and above all bounds the highest of them. None where there are no observations.
fn quantile(bounds: &[f64], times: &[u64], q: f64) -> Option<f64> {
    let all: u64 = times.iter().sum();
    if all == 0 {
        return None;
    }
    let rank = q * all as f64;
    let (mut below, mut from) = (0.0, 0.0);
    for (to, count) in bounds.iter().zip(times) {
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            return Some(from + (to - from) * (rank - below) / count);
        }
        (below, from) = (below + count, *to);
    }
    bounds.last().copied()
}

/// Counts under the bounds of another release as counts under ours: each goes to the first of our buckets that holds all of it,
/// so that nothing looks faster than it was.
pub fn under(ours: &[f64], theirs: &[f64], times: &[u64]) -> Times {
    if times.is_empty() || ours == theirs {
        return times.to_vec();
    }
    let mut counts = vec![0; ours.len() + 1];
    for (at, count) in times.iter().enumerate() {
        let place = theirs.get(at).map_or(ours.len(), |bound| ours.partition_point(|ours| ours < bound));
        counts[place] += count;
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BOUNDS: [f64; 3] = [0.001, 0.01, 0.1];

    #[test]
    fn quantiles_are_spread_evenly_in_their_bucket() {
        for (times, q, expected) in [
            (&[0, 0, 0, 0][..], 0.5, None),
            (&[], 0.5, None),
            (&[10, 0, 0, 0], 0.5, Some(0.0005)),
            (&[0, 10, 0, 0], 0.5, Some(0.0055)),
            (&[5, 5, 0, 0], 0.5, Some(0.001)),
            (&[90, 0, 10, 0], 0.95, Some(0.055)),
            (&[1, 0, 0, 99], 0.95, Some(0.1)),
        ] {
            let found = quantile(&BOUNDS, times, q);
            assert!(
                found.zip(expected).map_or(found == expected, |(a, b)| (a - b).abs() < 1e-9),
                "{times:?} {q}: {found:?} and not {expected:?}"
            );
        }
    }

    #[test]
    fn counters_become_rates_of_what_clients_did() {
        let metrics = Metrics::new().unwrap();
        let mut samples = Samples::default();
        let ms = Duration::from_millis;
        metrics.http_request("/api/v1/chat", "POST", 200, ms(3));
        samples.take(totals(&metrics).0, 5_000, 5_000);
        for _ in 0..9 {
            metrics.http_request("/api/v1/chat", "POST", 200, ms(3));
        }
        metrics.http_request("/v1/chat/completions", "POST", 503, ms(3));
        metrics.http_request("/api/v1/sessions", "GET", 404, ms(3));
        metrics.http_request("/metrics", "GET", 500, ms(3));
        metrics.http_request("/api/v1/overview", "GET", 200, ms(3));
        metrics.run_duration.with_label_values(&["done"]).observe(1.5);
        metrics.run_duration.with_label_values(&["failed"]).observe(1.5);
        metrics.run_duration.with_label_values(&["superseded"]).observe(1.5);
        metrics.raft_proposal_duration.observe(0.002);
        metrics.tokens(5, 20);
        let (now, bounds) = totals(&metrics);
        samples.take(now, 10_000, 5_000);
        let all = samples.all();
        assert_eq!((all[0].requests, all[1].requests, all[1].refused), (1, 11, 1));
        assert!(all[0].turn_times.is_empty());
        let activity = activity(&lately(&all), &bounds);
        assert_eq!((activity.over_ms, activity.requests_per_second, activity.refused_per_second), (10_000, 1.2, 0.1));
        assert_eq!((activity.turns_per_second, activity.failed_turns_per_second), (0.2, 0.1));
        assert_eq!((activity.input_tokens_per_second, activity.output_tokens_per_second), (0.5, 2.0));
        let turn = activity.turn_time.unwrap();
        assert!(1_000.0 < turn.p50_ms && turn.p50_ms < turn.p99_ms && turn.p99_ms <= 2_500.0, "{turn:?}");
        let commit = activity.commit_time.unwrap();
        assert!(1.0 < commit.p50_ms && commit.p99_ms <= 2.5, "{commit:?}");
    }

    #[test]
    fn samples_have_an_end_and_recent_is_a_minute() {
        let mut samples = Samples::default();
        for n in 1..=500 {
            let now = Totals { turns: n * n, ..Totals::default() };
            samples.take(now, n * STEP_MS, STEP_MS);
        }
        let all = samples.all();
        assert_eq!((all.len(), all[0].at_ms), (STEPS, 381 * STEP_MS));
        let recent = lately(&all);
        assert_eq!((recent.took_ms, recent.turns), (60_000, 500 * 500 - 488 * 488));
    }

    #[test]
    fn lines_put_each_sample_in_its_step_and_leave_gaps() {
        let sample = |at_ms, turns| Sample { at_ms, took_ms: 5_000, turns, ..Sample::default() };
        // Two instances, whose steps do not begin at the same moment; one of them was not there in the third.
        let samples = [sample(5_000, 5), sample(11_000, 10), sample(9_000, 20), sample(13_000, 5), sample(1, 99)];
        let lines = lines(&samples, &BOUNDS, slot(19_000));
        let turns = &lines.turns_per_second;
        assert_eq!(turns.len(), STEPS);
        assert_eq!(turns[STEPS - 4..], [Some(19.8), Some(5.0), Some(3.0), None]);
        assert_eq!(lines.turn_p95_ms[STEPS - 2], None, "there was nothing to take time");
        let late = super::lines(&samples, &BOUNDS, slot(5_000 * 1_000));
        assert!(late.turns_per_second.iter().all(Option::is_none));
    }

    #[test]
    fn bounds_of_another_release_make_nothing_faster() {
        assert_eq!(under(&BOUNDS, &BOUNDS, &[1, 2, 3, 4]), [1, 2, 3, 4]);
        assert_eq!(under(&BOUNDS, &[0.005, 0.01, 1.0], &[1, 2, 3, 4]), [0, 3, 0, 7]);
        assert_eq!(under(&BOUNDS, &[0.005], &[]), [] as [u64; 0]);
    }
}
