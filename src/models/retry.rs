use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_stream::stream;
use futures::StreamExt;
use futures::stream::BoxStream;
use openclaw_proto::http::ErrorCode;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::call::{Call, outcome};
use super::registry::Provider;
use super::{Error, FinishReason, ModelEvent, ModelRef, Models, Phase, Prompt, Usage};

/// When a model is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryOptions {
    /// Requests per model, the first one included.
    pub max_attempts: u32,
    /// The longest first wait; it doubles with each attempt, up to `max_backoff`.
    pub first_backoff: Duration,
    pub max_backoff: Duration,
    /// A provider that asks for a longer wait is given up for the next model.
    pub max_retry_after: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            first_backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(8),
            max_retry_after: Duration::from_secs(60),
        }
    }
}

impl RetryOptions {
    /// How long to wait before the attempt after `attempt` (from 1); `None`: do not try this model again.
    ///
    /// Full jitter: `random` (0 to 1) of the exponential wait, so that many who failed together do not return together.
    /// It is added to what the provider asked for, for the same reason.
    /// Source: <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>.
    fn wait(&self, error: &Error, attempt: u32, random: f64) -> Option<Duration> {
        if !error.retryable() || attempt >= self.max_attempts {
            return None;
        }
        let asked = error.retry_after().unwrap_or_default();
        if asked > self.max_retry_after {
            return None;
        }
        let doubled = self.first_backoff.saturating_mul(1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
        Some(asked + doubled.min(self.max_backoff).mul_f64(random.clamp(0.0, 1.0)))
    }
}

/// A piece of an answer from one model of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptEvent {
    /// The model is being asked; before any text, another `Started` may follow.
    Started {
        model: ModelRef,
    },
    Delta(String),
    /// The last event.
    Finished {
        usage: Usage,
        model: ModelRef,
        reason: FinishReason,
    },
}

/// Why a chain of models gave no complete answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainError {
    NoModel,
    /// Text was handed on before it failed, so that another attempt would contradict it.
    Interrupted(Failure),
    /// What each model said, in the order of asking.
    AllFailed(Vec<Failure>),
}

/// What one model said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub model: ModelRef,
    pub attempts: u32,
    pub error: Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.model, self.error)?;
        match self.attempts {
            0 | 1 => Ok(()),
            attempts => write!(f, " ({attempts} attempts)"),
        }
    }
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoModel => f.write_str("no model is configured"),
            Self::Interrupted(failure) => failure.fmt(f),
            Self::AllFailed(failures) => {
                let failures: Vec<_> = failures.iter().map(Failure::to_string).collect();
                f.write_str(&failures.join("; "))
            }
        }
    }
}

impl std::error::Error for ChainError {}

impl ChainError {
    /// The word for it that every surface shares.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoModel => ErrorCode::InvalidRequest,
            Self::Interrupted(_) => ErrorCode::ModelFailed,
            Self::AllFailed(failures) => {
                let all = |test: fn(&Error) -> bool| failures.iter().all(|failure| test(&failure.error));
                if all(|error| matches!(error, Error::Busy { .. })) {
                    ErrorCode::Busy
                } else if all(|error| matches!(error, Error::NotFound { .. } | Error::Invalid { .. })) {
                    ErrorCode::InvalidRequest
                } else {
                    ErrorCode::ModelFailed
                }
            }
        }
    }
}

impl Models {
    /// Asks the models of `chain` in order until one answers, each as often as [`RetryOptions`] allows.
    ///
    /// Shape: the last item is `Finished` or an error. Once a delta was yielded no other attempt is made.
    /// Dropping the stream ends the request at the provider.
    pub fn stream(
        &self,
        chain: &[ModelRef],
        prompt: Arc<Prompt>,
    ) -> BoxStream<'static, Result<AttemptEvent, ChainError>> {
        let models = self.clone();
        let chain = chain.to_vec();
        stream! {
            let metrics = models.metrics.as_ref();
            let mut failures: Vec<Failure> = Vec::new();
            for model in chain {
                models.count_fallback(failures.last());
                let provider = match models.provider(&model) {
                    Ok(provider) => provider,
                    Err(error) => {
                        failures.push(Failure { model, attempts: 0, error });
                        continue;
                    }
                };
                let mut attempts = 1;
                loop {
                    let mut emitted = false;
                    let mut call: Option<Call> = None;
                    let mut attempt = attempt(provider.clone(), model.clone(), prompt.clone());
                    let mut failed = None;
                    while let Some(event) = attempt.next().await {
                        match event {
                            Ok(event @ AttemptEvent::Finished { .. }) => {
                                if let Some(call) = call.take() {
                                    call.answered();
                                }
                                yield Ok(event);
                                return;
                            }
                            Ok(event) => {
                                match &event {
                                    AttemptEvent::Started { model } => call = Some(Call::begin(metrics, model, attempts)),
                                    AttemptEvent::Delta(_) => {
                                        emitted = true;
                                        if let Some(call) = &mut call {
                                            call.text();
                                        }
                                    }
                                    AttemptEvent::Finished { .. } => {}
                                }
                                yield Ok(event);
                            }
                            Err(error) => {
                                failed = Some(error);
                                break;
                            }
                        }
                    }
                    // Frees the slot: others may ask while this one waits.
                    drop(attempt);
                    let error = failed.unwrap_or_else(|| Error::BadAnswer {
                        provider: provider.name().to_owned(),
                        said: "the answer ended without an end".to_owned(),
                    });
                    match (call.take(), metrics) {
                        (Some(call), _) => call.failed(&error),
                        // It got no slot, and was not asked.
                        (None, Some(metrics)) => {
                            metrics.model_calls.with_label_values(&[provider.name(), outcome(&error)]).inc();
                        }
                        (None, None) => {}
                    }
                    if emitted {
                        yield Err(ChainError::Interrupted(Failure { model, attempts, error: error.after_output() }));
                        return;
                    }
                    match provider.retry.wait(&error, attempts, rand::random()) {
                        Some(wait) => {
                            debug!(%model, %error, attempts, ?wait, "model will be asked again");
                            if let Some(metrics) = metrics {
                                metrics.model_retries.with_label_values(&[provider.name()]).inc();
                            }
                            sleep(wait).await;
                            attempts += 1;
                        }
                        None => {
                            warn!(%model, %error, attempts, "model gave no answer");
                            failures.push(Failure { model, attempts, error });
                            break;
                        }
                    }
                }
            }
            yield Err(if failures.is_empty() { ChainError::NoModel } else { ChainError::AllFailed(failures) });
        }
        .boxed()
    }
}

impl Models {
    /// The next model of a chain is asked because of `failure`.
    fn count_fallback(&self, failure: Option<&Failure>) {
        let (Some(metrics), Some(failure)) = (&self.metrics, failure) else { return };
        // Providers that nobody configured are no label.
        if self.has_provider(&failure.model.provider) {
            metrics.model_fallbacks.with_label_values(&[&failure.model.provider]).inc();
        }
    }
}

/// One request to one model, within its provider's limits.
fn attempt(
    provider: Arc<Provider>,
    model: ModelRef,
    prompt: Arc<Prompt>,
) -> BoxStream<'static, Result<AttemptEvent, Error>> {
    async_stream::try_stream! {
        let _slot = provider.enter().await?;
        yield AttemptEvent::Started { model: model.clone() };
        let late = |_| Error::Timeout {
            provider: provider.name().to_owned(),
            phase: Phase::WholeAnswer,
            waited: provider.whole_answer,
        };
        let deadline = Instant::now() + provider.whole_answer;
        let request = provider.model_provider.stream(&model.model, prompt);
        let mut events = timeout_at(deadline, request).await.map_err(late)??;
        while let Some(event) = timeout_at(deadline, events.next()).await.map_err(late)? {
            match event? {
                ModelEvent::Delta(text) => yield AttemptEvent::Delta(text),
                ModelEvent::Finished { usage, reason } => {
                    yield AttemptEvent::Finished { usage, model: model.clone(), reason };
                    return;
                }
            }
        }
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Limits;
    use crate::models::scripted::{Scripted, Step};

    const WHOLE: Duration = Duration::from_secs(100);

    fn rate_limited(retry_after: Option<u64>) -> Error {
        Error::RateLimited {
            provider: "a".into(),
            said: "slow".into(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    fn invalid() -> Error {
        Error::Invalid { provider: "a".into(), said: "no".into() }
    }

    fn answer(text: &str) -> Vec<Step> {
        vec![Step::delta(text), Step::finish()]
    }

    fn models(providers: &[(&str, &Arc<Scripted>)], limits: Limits) -> Models {
        let limits = Limits { whole_answer: WHOLE, ..limits };
        let add = |models: Models, (name, scripted): &(&str, &Arc<Scripted>)| {
            models.with_provider(name, (*scripted).clone(), limits)
        };
        providers.iter().fold(Models::default(), add)
    }

    fn chain(refs: &[&str]) -> Vec<ModelRef> {
        refs.iter().map(|text| text.parse().unwrap()).collect()
    }

    async fn ask(models: &Models, refs: &[&str]) -> Result<(String, ModelRef), ChainError> {
        let mut events = models.stream(&chain(refs), Arc::default());
        let mut all = String::new();
        while let Some(event) = events.next().await {
            match event? {
                AttemptEvent::Started { .. } => assert_eq!(all, ""),
                AttemptEvent::Delta(text) => all.push_str(&text),
                AttemptEvent::Finished { model, .. } => {
                    assert_eq!(events.next().await, None);
                    return Ok((all, model));
                }
            }
        }
        panic!("ended silently");
    }

    #[test]
    fn waits_double_are_bounded_and_honour_what_was_asked() {
        let options = RetryOptions { max_attempts: 99, ..RetryOptions::default() };
        let ms = |error: &Error, attempt, random| options.wait(error, attempt, random).map(|wait| wait.as_millis());
        assert_eq!(ms(&rate_limited(None), 1, 1.0), Some(500));
        assert_eq!(ms(&rate_limited(None), 3, 1.0), Some(2000));
        assert_eq!(ms(&rate_limited(None), 98, 1.0), Some(8000));
        assert_eq!(ms(&rate_limited(None), 3, 0.0), Some(0));
        assert_eq!(ms(&rate_limited(Some(7)), 1, 0.5), Some(7250));
        assert_eq!(ms(&rate_limited(Some(60)), 1, 0.0), Some(60_000));
        assert_eq!(ms(&rate_limited(Some(61)), 1, 0.0), None);
        assert_eq!(ms(&rate_limited(None), 99, 0.0), None);
        assert_eq!(ms(&invalid(), 1, 0.0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_model_is_asked_again_after_the_time_it_named() {
        let a = Scripted::new([vec![Step::Error(rate_limited(Some(3)))], answer("hi")]);
        let start = Instant::now();
        let (text, model) = ask(&models(&[("a", &a)], Limits::default()), &["a/m"]).await.unwrap();
        assert_eq!((text.as_str(), model.to_string().as_str()), ("hi", "a/m"));
        let waited = start.elapsed();
        assert!(waited >= Duration::from_secs(3) && waited <= Duration::from_millis(3501), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_model_answers_when_one_is_given_up() {
        let check = async |error: Error, requests: usize| {
            let a = Scripted::always(vec![Step::Error(error)]);
            let b = Scripted::new([answer("hi")]);
            let start = Instant::now();
            let (_, model) = ask(&models(&[("a", &a), ("b", &b)], Limits::default()), &["a/m", "b/m"]).await.unwrap();
            assert_eq!((model.provider.as_str(), a.requests().len()), ("b", requests));
            assert!(start.elapsed() < Duration::from_secs(2));
        };
        check(rate_limited(None), 3).await;
        check(rate_limited(Some(61)), 1).await;
        check(invalid(), 1).await;
    }

    #[tokio::test(start_paused = true)]
    async fn every_request_is_counted_by_how_it_ended() {
        let metrics = crate::metrics::Metrics::new().unwrap();
        let a = Scripted::new([
            vec![Step::Error(rate_limited(None))],
            vec![Step::Error(invalid())],
            vec![Step::delta("half"), Step::Hang],
        ]);
        let b = Scripted::new([vec![Step::Delay(Duration::from_secs(2)), Step::delta("hi"), Step::finish()]]);
        let models = models(&[("a", &a), ("b", &b)], Limits::default()).counted(metrics.clone());
        ask(&models, &["a/m", "b/m"]).await.unwrap();
        let mut gone = models.stream(&chain(&["a/m"]), Arc::default());
        while !matches!(gone.next().await, Some(Ok(AttemptEvent::Delta(_)))) {}
        assert_eq!(metrics.model_calls_running.with_label_values(&["a"]).get(), 1);
        drop(gone);
        let calls = |provider, outcome| metrics.model_calls.with_label_values(&[provider, outcome]).get();
        assert_eq!([calls("a", "rate_limited"), calls("a", "invalid"), calls("a", "cancelled")], [1, 1, 1]);
        assert_eq!((calls("b", "ok"), metrics.model_retries.with_label_values(&["a"]).get()), (1, 1));
        assert_eq!(metrics.model_fallbacks.with_label_values(&["a"]).get(), 1);
        assert_eq!(metrics.model_calls_running.with_label_values(&["a"]).get(), 0);
        let first = metrics.model_first_token.with_label_values(&["b"]);
        assert_eq!((first.get_sample_count(), first.get_sample_sum()), (1, 2.0));
        assert_eq!(metrics.model_call_duration.with_label_values(&["a"]).get_sample_count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_says_what_each_model_said() {
        let a = Scripted::always(vec![Step::Error(rate_limited(None))]);
        let models = models(&[("a", &a)], Limits::default());
        let error = ask(&models, &["a/m", "z/m"]).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("a/m: a limits our rate: slow (3 attempts); z/m: z has no model \"m\""), "{text}");
        assert_eq!(error.code(), ErrorCode::ModelFailed);
        assert_eq!(ask(&models, &["z/m"]).await.unwrap_err().code(), ErrorCode::InvalidRequest);
        assert_eq!(ask(&models, &[]).await.unwrap_err(), ChainError::NoModel);
    }

    #[tokio::test(start_paused = true)]
    async fn after_output_nothing_is_tried_again() {
        for error in [rate_limited(None), invalid()] {
            let a = Scripted::always(vec![Step::delta("half"), Step::Error(error)]);
            let b = Scripted::new([answer("hi")]);
            let error = ask(&models(&[("a", &a), ("b", &b)], Limits::default()), &["a/m", "b/m"]).await.unwrap_err();
            assert!(
                matches!(&error, ChainError::Interrupted(Failure { error: Error::Interrupted { .. }, .. })),
                "{error:?}"
            );
            assert_eq!((a.requests().len(), b.requests().len()), (1, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_model_is_left_at_its_deadline() {
        let a = Scripted::new([vec![Step::Hang], vec![Step::delta("x"), Step::Hang]]);
        let start = Instant::now();
        let error = ask(&models(&[("a", &a)], Limits::default()), &["a/m"]).await.unwrap_err();
        assert!(matches!(error, ChainError::AllFailed(_)), "{error:?}");
        let error = ask(&models(&[("a", &a)], Limits::default()), &["a/m"]).await.unwrap_err();
        assert!(matches!(error, ChainError::Interrupted(_)), "{error:?}");
        assert!(start.elapsed() >= 2 * WHOLE);
        assert_eq!(a.requests().len(), 2, "it is not asked again what it had so long for");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_an_end_is_an_error() {
        let a = Scripted::always(vec![]);
        let error = ask(&models(&[("a", &a)], Limits::default()), &["a/m"]).await.unwrap_err();
        assert_eq!(error.to_string(), "a/m: a gave an answer that is not understood: the answer ended without an end");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_requests_run_or_wait_than_allowed() {
        let a = Scripted::always(vec![Step::Delay(Duration::from_secs(1)), Step::delta("x"), Step::finish()]);
        let models = models(&[("a", &a)], Limits { max_concurrency: 2, max_waiting: 3, ..Limits::default() });
        let start = Instant::now();
        let answers = futures::future::join_all((0..7).map(|_| ask(&models, &["a/m"]))).await;
        let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        assert_eq!(refused.iter().map(|error| error.code()).collect::<Vec<_>>(), [ErrorCode::Busy; 2]);
        assert_eq!((a.requests().len(), a.max_concurrent()), (5, 2));
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        // A caller that went away leaves no place taken.
        let gone = models.stream(&chain(&["a/m"]), Arc::default());
        drop(gone);
        assert!(ask(&models, &["a/m"]).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_between_attempts_holds_no_slot() {
        let a = Scripted::new([vec![Step::Error(rate_limited(Some(30)))], answer("b"), answer("a")]);
        let models = models(&[("a", &a)], Limits { max_concurrency: 1, max_waiting: 1, ..Limits::default() });
        let start = Instant::now();
        let second = async {
            let answer = ask(&models, &["a/m"]).await;
            (answer, start.elapsed())
        };
        let (first, (second, waited)) = tokio::join!(ask(&models, &["a/m"]), second);
        assert_eq!((first.unwrap().0.as_str(), second.unwrap().0.as_str()), ("a", "b"));
        assert!(waited < Duration::from_secs(1));
    }
}
