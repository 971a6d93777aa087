use std::sync::Arc;
use std::time::Duration;

use async_stream::stream;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use openclaw_proto::http::ErrorCode;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::models::{AttemptEvent, FinishReason, ModelRef, Models, Prompt, Usage};

/// How long and how large a reply may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_reply_bytes: usize,
    /// Of the whole turn: waiting, retries and fallbacks included.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_reply_bytes: 1024 * 1024, timeout: Duration::from_secs(900) }
    }
}

/// What happens in a turn. The last event is `Finished` or `Failed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnEvent {
    Delta(String),
    /// `text` is all deltas together, and never empty.
    Finished {
        text: String,
        usage: Usage,
        model: ModelRef,
        reason: FinishReason,
    },
    Failed {
        code: ErrorCode,
        message: String,
    },
}

/// Answers `prompt` with the first model of `chain` that can.
///
/// Dropping the stream, or `cancel`, ends the request at the provider at once.
pub fn run(
    models: &Models,
    chain: &[ModelRef],
    prompt: Arc<Prompt>,
    limits: Limits,
    cancel: CancellationToken,
) -> BoxStream<'static, TurnEvent> {
    let mut events = models.stream(chain, prompt);
    stream! {
        let mut late = Box::pin(sleep(limits.timeout).fuse());
        let mut cancelled = Box::pin(cancel.cancelled_owned().fuse());
        let mut text = String::new();
        loop {
            let event = tokio::select! {
                // Who cancels wants no more text, even where some is ready.
                biased;
                () = &mut cancelled => {
                    drop(events);
                    yield failed(ErrorCode::Cancelled, "the turn was cancelled".to_owned());
                    return;
                }
                () = &mut late => {
                    drop(events);
                    yield failed(ErrorCode::Timeout, format!("no complete reply within {:?}", limits.timeout));
                    return;
                }
                event = events.next() => event,
            };
            match event {
                Some(Ok(AttemptEvent::Started { .. })) => {}
                Some(Ok(AttemptEvent::Delta(delta))) => {
                    if text.len() + delta.len() > limits.max_reply_bytes {
                        let message = format!("the reply is larger than {} bytes", limits.max_reply_bytes);
                        drop(events);
                        yield failed(ErrorCode::ModelFailed, message);
                        return;
                    }
                    text.push_str(&delta);
                    yield TurnEvent::Delta(delta);
                }
                Some(Ok(AttemptEvent::Finished { usage, model, reason })) => {
                    yield if text.is_empty() {
                        // An empty reply would look like a fault of ours, and tell nobody what to change.
                        failed(ErrorCode::ModelFailed, format!("{model} answered without a text ({})", reason.as_str()))
                    } else {
                        TurnEvent::Finished { text, usage, model, reason }
                    };
                    return;
                }
                Some(Err(error)) => {
                    yield failed(error.code(), error.to_string());
                    return;
                }
                None => {
                    yield failed(ErrorCode::Internal, "the models ended without an answer or an error".to_owned());
                    return;
                }
            }
        }
    }
    .boxed()
}

fn failed(code: ErrorCode, message: String) -> TurnEvent {
    TurnEvent::Failed { code, message }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::models::Error;
    use crate::models::scripted::{Scripted, Step};

    fn start(scripted: &Arc<Scripted>, limits: Limits, cancel: CancellationToken) -> BoxStream<'static, TurnEvent> {
        let models = Models::default().with_provider("a", scripted.clone(), crate::models::Limits::default());
        run(&models, &["a/m".parse().unwrap()], Arc::default(), limits, cancel)
    }

    /// Runs one script; the deltas as one text, and the last event.
    async fn check(script: Vec<Step>, limits: Limits) -> (String, TurnEvent) {
        let mut text = String::new();
        let mut events = start(&Scripted::always(script), limits, CancellationToken::new());
        while let Some(event) = events.next().await {
            match event {
                TurnEvent::Delta(delta) => text.push_str(&delta),
                last @ (TurnEvent::Finished { .. } | TurnEvent::Failed { .. }) => {
                    assert_eq!(events.next().await, None);
                    return (text, last);
                }
            }
        }
        panic!("ended silently");
    }

    fn code(event: &TurnEvent) -> ErrorCode {
        match event {
            TurnEvent::Failed { code, .. } => *code,
            other @ (TurnEvent::Delta(_) | TurnEvent::Finished { .. }) => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_reply_is_its_deltas_together() {
        let (text, last) = check(vec![Step::delta("a"), Step::delta("b"), Step::finish()], Limits::default()).await;
        assert_eq!(text, "ab");
        let TurnEvent::Finished { text, usage, model, .. } = last else { panic!("{last:?}") };
        assert_eq!((text.as_str(), usage.output_tokens, model.to_string().as_str()), ("ab", 1, "a/m"));
    }

    #[tokio::test]
    async fn a_reply_has_a_size_limit() {
        let limits = Limits { max_reply_bytes: 3, ..Limits::default() };
        let fits = check(vec![Step::delta("ab"), Step::delta("c"), Step::finish()], limits).await;
        assert!(matches!(fits.1, TurnEvent::Finished { .. }));
        let (text, last) = check(vec![Step::delta("ab"), Step::delta("cd"), Step::finish()], limits).await;
        assert_eq!((text.as_str(), code(&last)), ("ab", ErrorCode::ModelFailed));
    }

    #[tokio::test]
    async fn an_empty_reply_is_a_failure_that_says_why() {
        let script = vec![Step::Finish { usage: Usage::default(), reason: FinishReason::Length }];
        let (_, last) = check(script, Limits::default()).await;
        let message = "a/m answered without a text (length)".to_owned();
        assert_eq!(last, TurnEvent::Failed { code: ErrorCode::ModelFailed, message });
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_at_its_deadline() {
        let limits = Limits { timeout: Duration::from_secs(5), ..Limits::default() };
        let (text, last) = check(vec![Step::delta("a"), Step::Hang], limits).await;
        assert_eq!((text.as_str(), code(&last)), ("a", ErrorCode::Timeout));
    }

    #[tokio::test]
    async fn a_failure_after_output_fails_the_turn() {
        let error = Error::Unavailable { provider: "a".into(), said: "reset".into() };
        let (text, last) = check(vec![Step::delta("a"), Step::Error(error)], Limits::default()).await;
        assert_eq!((text.as_str(), code(&last)), ("a", ErrorCode::ModelFailed));
    }

    #[tokio::test]
    async fn cancelling_ends_the_request_at_the_provider() {
        let scripted = Scripted::always(vec![Step::delta("a"), Step::Hang]);
        let cancel = CancellationToken::new();
        let mut events = start(&scripted, Limits::default(), cancel.clone());
        assert_eq!(events.next().await, Some(TurnEvent::Delta("a".into())));
        assert_eq!(scripted.running(), 1);
        cancel.cancel();
        assert_eq!(code(&events.next().await.unwrap()), ErrorCode::Cancelled);
        assert_eq!(events.next().await, None);
        assert_eq!(scripted.running(), 0);
    }
}
