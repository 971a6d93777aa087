use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use openclaw_config::ModelRef;
use openclaw_config::models::Api;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::http::{BuildError, HttpOptions, Timeouts};
use super::retry::RetryOptions;
use super::{Anthropic, Echo, Error, ModelProvider, OpenAi};
use crate::metrics::Metrics;

/// How much a provider is asked at once, for how long, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_concurrency: usize,
    /// Requests beyond that wait for their turn; past this many, [`Error::Busy`].
    pub max_waiting: usize,
    pub whole_answer: Duration,
    pub retry: RetryOptions,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_concurrency: 64,
            max_waiting: 64 * WAITING_PER_SLOT,
            whole_answer: Timeouts::default().whole_answer,
            retry: RetryOptions::default(),
        }
    }
}

/// A queue longer than this many answers per slot is not worth waiting in.
const WAITING_PER_SLOT: usize = 16;

const LIST_TIMEOUT: Duration = Duration::from_secs(5);
const LIST_AGE: Duration = Duration::from_secs(60);

/// All configured providers. A cheap handle.
#[derive(Clone, Default)]
pub struct Models {
    providers: Arc<BTreeMap<String, Arc<Provider>>>,
    /// Absent in tests of the models alone.
    pub(super) metrics: Option<Metrics>,
}

impl Models {
    /// Sets up every provider of the configuration. Connects to nothing yet.
    ///
    /// # Errors
    /// [`BuildError`] names the provider whose settings cannot work.
    pub fn from_config(config: &openclaw_config::Models) -> Result<Self, BuildError> {
        config.providers.iter().try_fold(Self::default(), |models, (name, settings)| {
            let timeouts = Timeouts {
                first_byte: settings.first_byte_timeout,
                // Some send a first piece at once, and think then.
                next_byte: Timeouts::default().next_byte.max(settings.first_byte_timeout).min(settings.timeout),
                whole_answer: settings.timeout,
                ..Timeouts::default()
            };
            let http = || HttpOptions {
                provider: name.clone(),
                base_url: settings.base_url.clone().unwrap_or_default(),
                api_key: settings.api_key.clone(),
                headers: settings.headers.clone(),
                timeouts,
            };
            let max_concurrency = settings.max_concurrency as usize;
            let mut limits = Limits {
                max_concurrency,
                max_waiting: max_concurrency.saturating_mul(WAITING_PER_SLOT),
                whole_answer: settings.timeout,
                retry: RetryOptions { max_attempts: settings.max_retries.saturating_add(1), ..RetryOptions::default() },
            };
            let provider: Arc<dyn ModelProvider> = match settings.api {
                Api::Openai => Arc::new(OpenAi::new(http())?),
                Api::Anthropic => Arc::new(Anthropic::new(http())?),
                Api::Echo => {
                    // There is nothing behind it to protect, and trials of many streams run on it.
                    limits.max_concurrency = usize::MAX;
                    Arc::new(Echo::new(settings.token_delay))
                }
            };
            Ok(models.with_provider(name, provider, limits))
        })
    }

    /// Adds a provider, or replaces one.
    #[must_use]
    pub fn with_provider(self, name: &str, provider: Arc<dyn ModelProvider>, limits: Limits) -> Self {
        let mut providers = (*self.providers).clone();
        providers.insert(name.to_owned(), Arc::new(Provider::new(name.to_owned(), provider, limits)));
        Self { providers: Arc::new(providers), metrics: self.metrics }
    }

    /// Has every request counted.
    #[must_use]
    pub fn counted(self, metrics: Metrics) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    pub fn has_provider(&self, name: &str) -> bool {
        self.providers.contains_key(name)
    }

    /// Every model that a provider told of lately. A provider that does not answer keeps what it told before.
    pub async fn list(&self) -> Vec<ModelRef> {
        let lists = self.providers.values().map(|provider| async move {
            let models = provider.list().await;
            models.into_iter().map(|model| ModelRef { provider: provider.name.clone(), model }).collect::<Vec<_>>()
        });
        join_all(lists).await.concat()
    }

    pub(super) fn provider(&self, model: &ModelRef) -> Result<Arc<Provider>, Error> {
        self.providers.get(&model.provider).cloned().ok_or_else(|| Error::NotFound {
            provider: model.provider.clone(),
            model: model.model.clone(),
            said: format!(
                "no such provider is configured; there are: {}",
                self.providers.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
            ),
        })
    }
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Models").field("providers", &self.providers.keys()).finish_non_exhaustive()
    }
}

/// A provider with its limits.
pub(super) struct Provider {
    name: String,
    pub(super) model_provider: Arc<dyn ModelProvider>,
    pub(super) whole_answer: Duration,
    pub(super) retry: RetryOptions,
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_waiting: usize,
    listed: Mutex<List>,
}

#[derive(Default)]
struct List {
    models: Vec<String>,
    asked: Option<Instant>,
}

impl Provider {
    fn new(name: String, model_provider: Arc<dyn ModelProvider>, limits: Limits) -> Self {
        Self {
            name,
            model_provider,
            whole_answer: limits.whole_answer,
            retry: limits.retry,
            slots: Arc::new(Semaphore::new(limits.max_concurrency.clamp(1, Semaphore::MAX_PERMITS))),
            waiting: AtomicUsize::new(0),
            max_waiting: limits.max_waiting,
            listed: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Waits for a slot, in order of arrival, unless too many wait already.
    pub(super) async fn enter(&self) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            return Ok(slot);
        }
        let busy = |waiting| Error::Busy { provider: self.name.clone(), waiting };
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _place = Place(&self.waiting);
        if before >= self.max_waiting {
            return Err(busy(before));
        }
        // The semaphore is never closed.
        self.slots.clone().acquire_owned().await.map_err(|_| busy(before))
    }

    async fn list(&self) -> Vec<String> {
        {
            let listed = self.listed.lock();
            if listed.asked.is_some_and(|asked| asked.elapsed() < LIST_AGE) {
                return listed.models.clone();
            }
        }
        let answer = timeout(LIST_TIMEOUT, self.model_provider.models()).await;
        let mut listed = self.listed.lock();
        listed.asked = Some(Instant::now());
        match answer {
            Ok(Ok(models)) => listed.models = models,
            Ok(Err(error)) => warn!(provider = self.name, %error, "models not listed"),
            Err(_) => warn!(provider = self.name, waited = ?LIST_TIMEOUT, "models not listed in time"),
        }
        listed.models.clone()
    }
}

/// A place in the queue; leaving by any way gives it back.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
