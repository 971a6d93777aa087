//! What goes wrong on request: which calls, how often, and how.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::sync::watch;
use tokio::time::timeout;

use super::ids::BotId;
use super::methods::Method;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answers this status without acting.
    Status(u16),
    /// Answers 429 with these seconds, without acting.
    RetryAfter(u32),
    /// Closes the connection without acting.
    Close,
    /// Acts, then closes the connection without an answer: the client cannot know.
    ActThenClose,
    /// Acts after that long.
    Delay(Duration),
    /// Acts once [`Injection::release`] is called; never, if the client goes away before.
    Hang,
    /// Acts at once, and answers once [`Injection::release`] is called.
    ActThenHang,
}

/// A fault and the calls that it is for: all of them, until narrowed.
#[derive(Debug, Clone)]
pub struct Rule {
    fault: Fault,
    bot: Option<BotId>,
    method: Option<Method>,
    times: Option<u32>,
}

impl Rule {
    /// For the next call of any method of any bot.
    pub fn once(fault: Fault) -> Self {
        Self { fault, bot: None, method: None, times: Some(1) }
    }

    /// For every call until it is released.
    pub fn always(fault: Fault) -> Self {
        Self { times: None, ..Self::once(fault) }
    }

    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    pub fn bot(self, bot: BotId) -> Self {
        Self { bot: Some(bot), ..self }
    }

    pub fn method(self, method: Method) -> Self {
        Self { method: Some(method), ..self }
    }
}

/// A fault that was asked for. Dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Injection(Arc<Active>);

#[derive(Debug)]
struct Active {
    rule: Rule,
    hits: watch::Sender<u32>,
    left: AtomicU32,
    released: watch::Sender<bool>,
}

impl Injection {
    /// How many calls it met.
    pub fn hits(&self) -> u32 {
        *self.0.hits.borrow()
    }

    /// Waits until it met so many calls.
    ///
    /// # Errors
    /// When it does not within that time.
    pub async fn wait_for_hits(&self, hits: u32, within: Duration) -> Result<()> {
        let mut receiver = self.0.hits.subscribe();
        if timeout(within, receiver.wait_for(|so_far| *so_far >= hits)).await.is_err() {
            bail!("{:?} met {} calls instead of {hits} within {within:?}", self.0.rule, self.hits());
        }
        Ok(())
    }

    /// Ends it: what hangs goes on, and no other call meets it.
    pub fn release(&self) {
        self.0.released.send_replace(true);
    }

    pub(super) fn fault(&self) -> Fault {
        self.0.rule.fault.clone()
    }

    pub(super) async fn released(&self) {
        let mut receiver = self.0.released.subscribe();
        // The sender lives as long as this does.
        drop(receiver.wait_for(|released| *released).await);
    }

    fn over(&self) -> bool {
        *self.0.released.borrow() || self.0.left.load(Ordering::SeqCst) == 0
    }
}

/// As many as the test asked for and are not over; the oldest that fits a call is the one it meets.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Injection>>);

impl Faults {
    fn active(&self) -> MutexGuard<'_, Vec<Injection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, rule: Rule) -> Injection {
        let left = AtomicU32::new(rule.times.unwrap_or(u32::MAX));
        let active = Active { rule, hits: watch::Sender::new(0), left, released: watch::Sender::new(false) };
        let injection = Injection(Arc::new(active));
        self.active().push(injection.clone());
        injection
    }

    pub(super) fn meet(&self, bot: BotId, method: Method) -> Option<Injection> {
        let mut all = self.active();
        all.retain(|injection| !injection.over());
        let fits = |rule: &Rule| rule.bot.is_none_or(|of| of == bot) && rule.method.is_none_or(|of| of == method);
        let met = all.iter().find(|injection| fits(&injection.0.rule))?.clone();
        if met.0.rule.times.is_some() {
            met.0.left.fetch_sub(1, Ordering::SeqCst);
        }
        met.0.hits.send_modify(|hits| *hits += 1);
        Some(met)
    }
}
