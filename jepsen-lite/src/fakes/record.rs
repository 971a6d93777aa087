//! What a fake was asked, and how each answer ended.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub at: Instant,
    pub path: String,
    pub model: String,
    pub body: Value,
    /// Absent: the answer is being given.
    pub ended: Option<(Instant, Ended)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Complete,
    /// An error status.
    Refused(u16),
    /// By us, as the model's name asks.
    Broken,
    /// The client went away first.
    Disconnected,
}

#[derive(Default)]
struct State {
    requests: VecDeque<Recorded>,
    /// How many requests were forgotten: the number of the first one remembered.
    forgotten: usize,
    per_model: HashMap<String, u32>,
    running: usize,
    max_concurrent: usize,
}

/// Different names a fake counts; past them the counts begin anew.
const MODELS: usize = 10_000;

pub(super) struct Record {
    state: Mutex<State>,
    remembered: usize,
}

impl Record {
    pub(super) fn new(remembered: usize) -> Self {
        Self { state: Mutex::default(), remembered }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(self: &Arc<Self>, path: &str, model: &str, body: Value) -> Running {
        let mut state = self.state();
        let number = state.forgotten + state.requests.len();
        state.requests.push_back(Recorded {
            at: Instant::now(),
            path: path.to_owned(),
            model: model.to_owned(),
            body,
            ended: None,
        });
        while state.requests.len() > self.remembered {
            state.requests.pop_front();
            state.forgotten += 1;
        }
        if state.per_model.len() >= MODELS {
            state.per_model.clear();
        }
        *state.per_model.entry(model.to_owned()).or_default() += 1;
        state.running += 1;
        state.max_concurrent = state.max_concurrent.max(state.running);
        drop(state);
        Running { record: self.clone(), number, ended: false.into() }
    }

    pub(super) fn requests(&self) -> Vec<Recorded> {
        self.state().requests.iter().cloned().collect()
    }

    /// Requests for this model so far.
    pub(super) fn count(&self, model: &str) -> u32 {
        self.state().per_model.get(model).copied().unwrap_or(0)
    }

    pub(super) fn running(&self) -> usize {
        self.state().running
    }

    pub(super) fn max_concurrent(&self) -> usize {
        self.state().max_concurrent
    }
}

/// An answer in the making. Dropped before its end, it was not wanted any more.
pub(super) struct Running {
    record: Arc<Record>,
    number: usize,
    ended: std::sync::atomic::AtomicBool,
}

impl Running {
    /// The first end counts.
    pub(super) fn end(&self, how: Ended) {
        if self.ended.swap(true, std::sync::atomic::Ordering::SeqCst) {
            return;
        }
        let mut state = self.record.state();
        state.running -= 1;
        let place = self.number.checked_sub(state.forgotten);
        if let Some(recorded) = place.and_then(|place| state.requests.get_mut(place)) {
            recorded.ended = Some((Instant::now(), how));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Ended::Disconnected);
    }
}
