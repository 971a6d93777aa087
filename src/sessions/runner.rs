//! Running the turns that name this instance.
//!
//! Owns which turns run here: it takes [`Event::TurnRunnable`] for this instance, gives each a task under a limit of
//! concurrent turns, publishes the model's text to the [`Hub`], and commits the end. It never decides whose a turn is -
//! the replicated state does - and what another attempt has taken over it drops at once.
//!
//! A fencing token runs once. Whether its end was committed is asked until it is known: a repeated `Complete` under the
//! same token is the same end, and one that came too late is refused by the state machine, whatever this instance thinks.

use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use openclaw_config::{Agents, agents::Agent};
use openclaw_proto::http::ErrorCode;
use openclaw_proto::ids::{AgentId, InstanceId, SeqNum, SessionKey, TurnId};
use openclaw_proto::state::{Complete, Entry, Fail, Turn, TurnState, Usage};
use openclaw_raft::planted::{Bug, planted};
use openclaw_raft::trace;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, error, info, info_span, trace_span, warn};

use super::live::Hub;
use crate::agent::turn::TurnEvent;
use crate::agent::{context, turn};
use crate::metrics::Metrics;
use crate::models::{ModelRef, Models};
use crate::store::{Consistency, EndTurnError, Event, SessionStore};

/// Entries that one read of a transcript asks for.
const PAGE_ENTRIES: usize = 256;

/// How turns are run.
#[derive(Debug, Clone)]
pub struct Options {
    pub agents: Agents,
    /// Turns that run at once; more wait here for a place.
    pub max_running: usize,
    pub limits: turn::Limits,
    /// Deadline of one commit or read; a commit is repeated until its outcome is known.
    pub store_timeout: Duration,
    pub max_backoff: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            agents: Agents::default(),
            max_running: 4096,
            limits: turn::Limits::default(),
            store_timeout: Duration::from_secs(5),
            max_backoff: Duration::from_secs(1),
        }
    }
}

/// How many turns this instance has in hand. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Load {
    turns: Arc<AtomicU64>,
}

impl Load {
    /// Turns that run or wait for a place here, until their end is committed.
    pub fn running(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}

/// The task that runs turns.
pub struct Runner {
    shared: Arc<Shared>,
    load: Load,
    turns: HashMap<TurnId, Running>,
    ended: mpsc::UnboundedReceiver<(TurnId, u64)>,
}

/// What is known of a turn that this instance was given.
struct Running {
    token: u64,
    cancel: CancellationToken,
    /// Its task is over, but the end has not been seen applied here: the token must not run again.
    over: bool,
    /// The state does not know it any more: nothing else will be told of it.
    gone: bool,
}

struct Shared {
    me: InstanceId,
    store: Arc<dyn SessionStore>,
    models: Models,
    hub: Hub,
    metrics: Metrics,
    options: Options,
    places: Arc<Semaphore>,
    /// One message per task that ended; as many as there are turns in hand.
    ended: mpsc::UnboundedSender<(TurnId, u64)>,
}

impl Runner {
    pub fn new(
        me: InstanceId,
        store: Arc<dyn SessionStore>,
        models: Models,
        hub: Hub,
        metrics: Metrics,
        options: Options,
    ) -> Self {
        let (sender, ended) = mpsc::unbounded_channel();
        let places = Arc::new(Semaphore::new(options.max_running.clamp(1, Semaphore::MAX_PERMITS)));
        let shared = Arc::new(Shared { me, store, models, hub, metrics, options, places, ended: sender });
        Self { shared, load: Load::default(), turns: HashMap::new(), ended }
    }

    pub fn load(&self) -> Load {
        self.load.clone()
    }

    /// Runs turns until `shutdown`, then drops what still runs: another instance takes it over. Whoever wants running
    /// turns to finish waits for [`Load::running`] before.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut events = self.shared.store.events();
        // Subscribed first: what becomes runnable from here on is an event, what was before is found now.
        let mut rescan_after = self.rescan().await;
        let mut tidy = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                event = events.next() => match event {
                    Some(Event::TurnRunnable(turn)) => self.runnable(&turn),
                    Some(Event::TurnEnded(turn)) => self.turn_ended(&turn),
                    Some(Event::LeaseChanged(_) | Event::OutboxChanged { .. }) => {}
                    Some(Event::Lagged) => {
                        warn!("events were missed; reading the state again");
                        self.shared.hub.recheck();
                        rescan_after = self.rescan().await;
                    }
                    None => break,
                },
                Some((turn, token)) = self.ended.recv() => self.task_over(&turn, token),
                () = wait(rescan_after) => rescan_after = self.rescan().await,
                _ = tidy.tick() => self.shared.hub.expire(),
            }
        }
        for running in self.turns.values() {
            running.cancel.cancel();
        }
    }

    /// Compares what runs with the state. How long to wait before another try, if it could not be read.
    async fn rescan(&mut self) -> Option<Duration> {
        let read = self.shared.store.turns_of(&self.shared.me, Consistency::Stale, self.shared.options.store_timeout);
        let turns = match read.await {
            Ok(read) => read.value,
            Err(error) => {
                warn!(%error, "turns of this instance not read; trying again");
                return Some(self.shared.options.max_backoff);
            }
        };
        let mine: HashMap<&str, &Turn> = turns.iter().map(|turn| (turn.id.as_str(), turn)).collect();
        self.turns.retain(|id, running| {
            let present = mine.get(id.as_str()).is_some_and(|turn| turn.fencing_token <= running.token);
            if !present {
                running.cancel.cancel();
            }
            running.gone = !present;
            // A task that runs says itself when it is over.
            present || !running.over
        });
        for turn in turns.iter().filter(|turn| turn.state() == TurnState::Running) {
            self.runnable(turn);
        }
        None
    }

    fn runnable(&mut self, turn: &Turn) {
        let Ok(id) = TurnId::parse(turn.id.as_str()) else { return };
        self.shared.hub.observe(&id, turn);
        let token = turn.fencing_token;
        if turn.runner != self.shared.me.as_str() {
            if let Some(running) = self.turns.get(&id).filter(|running| running.token < token) {
                info!(turn_id = %id, runner = turn.runner, "turn taken over by another instance");
                if !planted(Bug::StaleToken) {
                    running.cancel.cancel();
                }
            }
            return;
        }
        match self.turns.entry(id.clone()) {
            hash_map::Entry::Occupied(mut known) => {
                if known.get().token >= token {
                    return;
                }
                known.get().cancel.cancel();
                known.insert(Running::new(token));
            }
            hash_map::Entry::Vacant(free) => {
                free.insert(Running::new(token));
            }
        }
        let Some(cancel) = self.turns.get(&id).map(|running| running.cancel.clone()) else { return };
        let task = Task::new(self.shared.clone(), self.load.clone(), id, turn.clone(), cancel);
        let span = info_span!(
            "turn",
            turn_id = turn.id,
            session_key = turn.session_key,
            attempt = turn.attempt,
            request_id = tracing::field::Empty
        );
        if !turn.request_id.is_empty() {
            span.record("request_id", &turn.request_id);
        }
        let traced = trace_span!("turn", turn_id = turn.id, attempt = turn.attempt, outcome = tracing::field::Empty);
        trace::follow(&traced, &turn.trace_parent);
        tokio::spawn(task.run(traced.clone()).instrument(span).instrument(traced));
    }

    fn turn_ended(&mut self, turn: &Turn) {
        let Ok(id) = TurnId::parse(turn.id.as_str()) else { return };
        self.shared.hub.observe(&id, turn);
        if let Some(running) = self.turns.get(&id).filter(|running| running.token <= turn.fencing_token) {
            running.cancel.cancel();
            if running.over {
                self.turns.remove(&id);
            } else if let Some(running) = self.turns.get_mut(&id) {
                // Nothing of it can start again: the end is applied here.
                running.token = u64::MAX;
            }
        }
    }

    fn task_over(&mut self, turn: &TurnId, token: u64) {
        match self.turns.get_mut(turn) {
            Some(running) if running.token == u64::MAX || (running.token == token && running.gone) => {
                self.turns.remove(turn);
            }
            Some(running) if running.token == token => running.over = true,
            Some(_) | None => {}
        }
    }
}

impl Running {
    fn new(token: u64) -> Self {
        Self { token, cancel: CancellationToken::new(), over: false, gone: false }
    }
}

async fn wait(after: Option<Duration>) {
    match after {
        Some(after) => sleep(after).await,
        None => std::future::pending().await,
    }
}

/// One attempt at one turn.
struct Task {
    shared: Arc<Shared>,
    load: Load,
    id: TurnId,
    turn: Turn,
    cancel: CancellationToken,
}

/// How the model's part of a turn ended.
enum Answer {
    Reply {
        text: String,
        model: String,
        usage: Usage,
    },
    Failed {
        code: ErrorCode,
        message: String,
    },
    /// Somebody else ends it, or has.
    Superseded,
}

impl Task {
    fn new(shared: Arc<Shared>, load: Load, id: TurnId, turn: Turn, cancel: CancellationToken) -> Self {
        load.turns.fetch_add(1, Ordering::Relaxed);
        shared.metrics.sessions_active.inc();
        Self { shared, load, id, turn, cancel }
    }

    async fn run(self, traced: Span) {
        let waiting = Gauge::new(&self.shared.metrics.turns_waiting);
        let place = tokio::select! {
            place = self.shared.places.clone().acquire_owned() => place,
            () = self.cancel.cancelled() => return,
        };
        drop(waiting);
        // The semaphore is never closed.
        let Ok(_place) = place else { return };
        let _running = Gauge::new(&self.shared.metrics.turns_running);
        let began = Instant::now();
        let answer = tokio::select! {
            answer = self.answer() => answer,
            () = self.cancel.cancelled() => Answer::Superseded,
        };
        let outcome = match answer {
            Answer::Reply { text, model, usage } => self.complete(text, model, usage).await,
            Answer::Failed { code, message } => self.fail(code, message).await,
            Answer::Superseded => "superseded",
        };
        traced.record("outcome", outcome);
        self.shared.metrics.run_duration.with_label_values(&[outcome]).observe(began.elapsed().as_secs_f64());
        debug!(outcome, took_ms = began.elapsed().as_millis(), "turn over");
    }

    async fn answer(&self) -> Answer {
        let failed = |code, message: String| Answer::Failed { code, message };
        let Ok(agent_id) = AgentId::parse(self.turn.agent_id.as_str()) else {
            return failed(ErrorCode::Internal, "the turn has no agent".to_owned());
        };
        // The instance that accepted it may know agents that this one does not, while configurations differ.
        let Some(agent) = self.shared.options.agents.resolve(&agent_id) else {
            return failed(ErrorCode::InvalidRequest, format!("there is no agent {agent_id} on {}", self.shared.me));
        };
        let chain = match chain(&agent, &self.turn.model) {
            Ok(chain) => chain,
            Err(message) => return failed(ErrorCode::InvalidRequest, message),
        };
        let history = self.history(&agent).await;
        let prompt = context::build(&history, self.turn.user_seq, &prompt_options(&agent));
        drop(history);

        // Dropped before the end is committed, so that readers have all of the text when they see it.
        let publisher = self.shared.hub.begin(&self.id, self.turn.attempt);
        let mut events =
            turn::run(&self.shared.models, &chain, Arc::new(prompt), self.shared.options.limits, self.cancel.clone());
        while let Some(event) = events.next().await {
            match event {
                TurnEvent::Delta(text) => {
                    if let Err(error) = publisher.publish(&text) {
                        return failed(ErrorCode::ModelFailed, error.to_string());
                    }
                }
                TurnEvent::Finished { text, usage, model, reason: _ } => {
                    let usage = Usage { input_tokens: usage.input_tokens, output_tokens: usage.output_tokens };
                    return Answer::Reply { text, model: model.to_string(), usage };
                }
                TurnEvent::Failed { code: ErrorCode::Cancelled, .. } => return Answer::Superseded,
                TurnEvent::Failed { code, message } => return failed(code, message),
            }
        }
        failed(ErrorCode::Internal, "the turn ended without an answer or an error".to_owned())
    }

    /// The entries that may matter to the prompt. This instance has applied them all: it saw the turn become runnable.
    async fn history(&self, agent: &Agent) -> Vec<Entry> {
        let Ok(key) = SessionKey::parse(self.turn.session_key.as_str()) else { return Vec::new() };
        let (store, timeout) = (&self.shared.store, self.shared.options.store_timeout);
        let mut backoff = Duration::from_millis(50);
        loop {
            let read = async {
                let session = store.session(&key, Consistency::Stale, timeout).await?.value.unwrap_or_default();
                // A reset after the message was accepted does not hide the message itself.
                let reset = session.reset_seq.min(self.turn.user_seq.saturating_sub(1));
                // Replies stand behind the messages that waited meanwhile, so that the newest entries are read, not
                // those up to the turn's own.
                let most = u64::from(agent.context_max_entries).saturating_add(session.queued_turns.len() as u64 + 64);
                let first = self.turn.user_seq.saturating_sub(most).max(reset);
                let mut entries = Vec::new();
                let mut after = SeqNum(first);
                loop {
                    let page = store.entries(&key, after, PAGE_ENTRIES, Consistency::Stale, timeout).await?.value;
                    let full = page.len() == PAGE_ENTRIES;
                    let Some(last) = page.last() else { break };
                    after = SeqNum(last.seq);
                    entries.extend(page);
                    if !full {
                        break;
                    }
                }
                Ok::<_, crate::store::ReadError>(entries)
            };
            match read.await {
                Ok(entries) => return entries,
                Err(error) => warn!(%error, "transcript not read; trying again"),
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(self.shared.options.max_backoff);
        }
    }

    async fn complete(&self, text: String, model: String, usage: Usage) -> &'static str {
        let command = Complete {
            turn_id: self.turn.id.clone(),
            fencing_token: self.turn.fencing_token,
            text,
            model,
            usage: Some(usage),
        };
        let store = &self.shared.store;
        match self.until_known(|| store.complete(command.clone(), self.shared.options.store_timeout)).await {
            Ok(()) => {
                self.shared.metrics.tokens(usage.input_tokens, usage.output_tokens);
                "done"
            }
            Err(EndTurnError::Refused { reason }) => {
                self.fail(ErrorCode::ModelFailed, format!("the reply cannot be stored: {reason}")).await
            }
            Err(error) => {
                info!(%error, "reply not recorded");
                "superseded"
            }
        }
    }

    async fn fail(&self, code: ErrorCode, message: String) -> &'static str {
        warn!(code = code.as_str(), error = message, "turn failed");
        self.shared.metrics.turn_failures.with_label_values(&[code.as_str()]).inc();
        let command = Fail {
            turn_id: self.turn.id.clone(),
            fencing_token: self.turn.fencing_token,
            error_code: stored_code(code).as_str().to_owned(),
            error_message: message,
        };
        let store = &self.shared.store;
        match self.until_known(|| store.fail(command.clone(), self.shared.options.store_timeout)).await {
            Ok(()) => "failed",
            Err(error) => {
                info!(%error, "failure not recorded");
                "superseded"
            }
        }
    }

    /// Commits until the outcome is known, or somebody else has the turn. There is no deadline: an instance that finds
    /// no quorum keeps the reply until it finds one, or the turn has moved on.
    async fn until_known<F>(&self, commit: impl Fn() -> F) -> Result<(), EndTurnError>
    where
        F: Future<Output = Result<crate::store::Committed<Turn>, EndTurnError>>,
    {
        let mut backoff = Duration::from_millis(25);
        loop {
            let error = match commit().await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            match &error {
                EndTurnError::Commit(cause) if cause.retryable() => {
                    warn!(error = %cause, "turn's end not acknowledged; trying again");
                }
                EndTurnError::Commit(cause) => {
                    error!(error = %cause, "turn's end not committed");
                    return Err(error);
                }
                EndTurnError::Fenced { .. }
                | EndTurnError::Ended(_)
                | EndTurnError::NotFound
                | EndTurnError::Refused { .. } => return Err(error),
            }
            tokio::select! {
                () = sleep(backoff.mul_f64(0.5 + rand::random::<f64>() / 2.0)) => {}
                () = self.cancel.cancelled() => return Err(error),
            }
            backoff = (backoff * 2).min(self.shared.options.max_backoff);
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.load.turns.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.sessions_active.dec();
        // Without a runner there is nobody to tell.
        self.shared.ended.send((self.id.clone(), self.turn.fencing_token)).ok();
    }
}

/// The models to ask: the one that was asked for, alone; else the agent's own and its fallbacks.
pub(crate) fn chain(agent: &Agent, asked: &str) -> Result<Vec<ModelRef>, String> {
    if asked.is_empty() {
        return Ok(std::iter::once(&agent.model.primary).chain(&agent.model.fallbacks).cloned().collect());
    }
    match asked.parse() {
        Ok(model) => Ok(vec![model]),
        Err(error) => Err(format!("model: {error}")),
    }
}

pub(crate) fn prompt_options(agent: &Agent) -> context::Options {
    context::Options {
        system_prompt: agent.system_prompt.clone(),
        max_entries: usize::try_from(agent.context_max_entries).unwrap_or(usize::MAX),
        max_bytes: agent.context_max_bytes.as_usize(),
        max_output_tokens: Some(agent.max_output_tokens),
        ..context::Options::default()
    }
}

/// Counts while it lives.
struct Gauge<'a>(&'a prometheus::IntGauge);

impl<'a> Gauge<'a> {
    fn new(gauge: &'a prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What a turn fails with. Whoever asks learns the code as that of the request, whose message is committed by now: codes
/// that promise the contrary are not for turns.
fn stored_code(code: ErrorCode) -> ErrorCode {
    match code {
        ErrorCode::Cancelled | ErrorCode::TurnAbandoned | ErrorCode::Internal => code,
        ErrorCode::InvalidRequest
        | ErrorCode::Unauthorized
        | ErrorCode::ForbiddenOrigin
        | ErrorCode::NotFound
        | ErrorCode::MethodNotAllowed
        | ErrorCode::PreconditionFailed
        | ErrorCode::IdempotencyKeyReused
        | ErrorCode::Conflict
        | ErrorCode::TooLarge
        | ErrorCode::UnsupportedMediaType
        | ErrorCode::Busy
        | ErrorCode::NoQuorum
        | ErrorCode::Draining
        | ErrorCode::EffectUnknown
        | ErrorCode::Timeout
        | ErrorCode::ModelFailed => ErrorCode::ModelFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::live::Limits;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn a_turn_whose_end_was_missed_is_forgotten_when_its_task_is_over() {
        let me = InstanceId::parse("node-1").unwrap();
        let store = Arc::new(MemoryStore::new(&[&me]));
        let models = Models::from_config(&openclaw_config::Models::default()).unwrap();
        let (hub, metrics) = (Hub::new(Limits::default()), Metrics::new().unwrap());
        let mut runner = Runner::new(me, store, models, hub, metrics, Options::default());
        let turn = TurnId::random();
        let running = Running::new(5);
        let cancel = running.cancel.clone();
        runner.turns.insert(turn.clone(), running);
        assert_eq!(runner.rescan().await, None);
        assert!(cancel.is_cancelled() && runner.turns.contains_key(&turn), "its task is not over yet");
        runner.task_over(&turn, 5);
        assert!(runner.turns.is_empty());
    }
}
