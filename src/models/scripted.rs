//! A provider that follows a script, for tests of everything above the models: no network, no clock but tokio's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_stream::try_stream;
use futures::StreamExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::{Error, EventStream, FinishReason, ModelEvent, ModelProvider, Prompt, Usage};

/// What happens next in an answer. A script without `Finish` or `Error` ends its stream silently, as a broken provider would.
#[derive(Debug, Clone)]
pub enum Step {
    Delta(String),
    Delay(Duration),
    Finish {
        usage: Usage,
        reason: FinishReason,
    },
    Error(Error),
    /// Nothing, for ever.
    Hang,
}

impl Step {
    pub fn delta(text: &str) -> Self {
        Self::Delta(text.to_owned())
    }

    pub fn finish() -> Self {
        Self::Finish { usage: Usage { input_tokens: 1, output_tokens: 1 }, reason: FinishReason::Stop }
    }
}

/// Answers each request with the next script, and remembers what it was asked.
pub struct Scripted {
    scripts: Mutex<VecDeque<Vec<Step>>>,
    /// After the last script.
    fallback: Vec<Step>,
    requests: Mutex<Vec<(String, Arc<Prompt>)>>,
    running: Arc<AtomicUsize>,
    max_concurrent: AtomicUsize,
}

impl Scripted {
    /// One script per request; requests beyond them are refused.
    pub fn new(scripts: impl IntoIterator<Item = Vec<Step>>) -> Arc<Self> {
        let said = "the script is over".to_owned();
        Self::build(scripts, vec![Step::Error(Error::Invalid { provider: "scripted".to_owned(), said })])
    }

    /// The same script for every request.
    pub fn always(script: Vec<Step>) -> Arc<Self> {
        Self::build([], script)
    }

    fn build(scripts: impl IntoIterator<Item = Vec<Step>>, fallback: Vec<Step>) -> Arc<Self> {
        Arc::new(Self {
            scripts: Mutex::new(scripts.into_iter().collect()),
            fallback,
            requests: Mutex::default(),
            running: Arc::default(),
            max_concurrent: AtomicUsize::new(0),
        })
    }

    /// Model and prompt of each request so far.
    pub fn requests(&self) -> Vec<(String, Arc<Prompt>)> {
        self.requests.lock().clone()
    }

    /// Answers in the making; a dropped one no longer counts.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    pub fn max_concurrent(&self) -> usize {
        self.max_concurrent.load(Ordering::SeqCst)
    }
}

/// Counts an answer until it ends or is dropped.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ModelProvider for Scripted {
    fn stream<'a>(&'a self, model: &'a str, prompt: Arc<Prompt>) -> BoxFuture<'a, Result<EventStream, Error>> {
        self.requests.lock().push((model.to_owned(), prompt));
        let script = self.scripts.lock().pop_front().unwrap_or_else(|| self.fallback.clone());
        self.max_concurrent.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let running = Running(self.running.clone());
        let events = try_stream! {
            let _running = running;
            for step in script {
                match step {
                    Step::Delta(text) => yield ModelEvent::Delta(text),
                    Step::Delay(time) => tokio::time::sleep(time).await,
                    Step::Finish { usage, reason } => yield ModelEvent::Finished { usage, reason },
                    Step::Error(error) => Err(error)?,
                    Step::Hang => std::future::pending().await,
                }
            }
        };
        Box::pin(async move { Ok(events.boxed()) })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        Box::pin(async { Ok(vec!["scripted".to_owned()]) })
    }
}
