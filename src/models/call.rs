//! One request to a provider, from its slot to its end, as metrics and a trace tell it. Which requests there are, and what
//! becomes of their errors, is for `retry`.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{Span, trace_span};

use super::{Error, ModelRef};
use crate::metrics::Metrics;

/// Dropped before its end: nobody wants the answer any more.
pub(super) struct Call {
    metrics: Option<Metrics>,
    provider: String,
    began: Instant,
    first: bool,
    outcome: &'static str,
    span: Span,
}

impl Call {
    pub(super) fn begin(metrics: Option<&Metrics>, model: &ModelRef, attempt: u32) -> Self {
        if let Some(metrics) = metrics {
            metrics.model_calls_running.with_label_values(&[&model.provider]).inc();
        }
        let span = trace_span!(
            "model",
            provider = model.provider,
            model = model.model,
            attempt,
            otel.kind = "client",
            outcome = tracing::field::Empty,
            otel.status_code = tracing::field::Empty
        );
        Self {
            metrics: metrics.cloned(),
            provider: model.provider.clone(),
            began: Instant::now(),
            first: true,
            outcome: "cancelled",
            span,
        }
    }

    /// Text has come.
    pub(super) fn text(&mut self) {
        if std::mem::take(&mut self.first)
            && let Some(metrics) = &self.metrics
        {
            metrics.model_first_token.with_label_values(&[&self.provider]).observe(self.took().as_secs_f64());
        }
    }

    pub(super) fn answered(mut self) {
        self.outcome = "ok";
    }

    pub(super) fn failed(mut self, error: &Error) {
        self.outcome = outcome(error);
        self.span.record("otel.status_code", "error");
    }

    fn took(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.span.record("outcome", self.outcome);
        let Some(metrics) = &self.metrics else { return };
        let provider = self.provider.as_str();
        metrics.model_calls_running.with_label_values(&[provider]).dec();
        metrics.model_calls.with_label_values(&[provider, self.outcome]).inc();
        metrics.model_call_duration.with_label_values(&[provider]).observe(self.took().as_secs_f64());
    }
}

/// A closed set, whatever providers say.
pub(super) fn outcome(error: &Error) -> &'static str {
    match error {
        Error::Unauthorized { .. } => "unauthorized",
        Error::NotFound { .. } => "not_found",
        Error::Invalid { .. } => "invalid",
        Error::RateLimited { .. } => "rate_limited",
        Error::Overloaded { .. } => "overloaded",
        Error::Unavailable { .. } => "unavailable",
        Error::Timeout { .. } => "timeout",
        Error::BadAnswer { .. } => "bad_answer",
        Error::Interrupted { .. } => "interrupted",
        Error::Busy { .. } => "busy",
    }
}
