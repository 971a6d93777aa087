//! Reading a turn as it happens, whichever instance runs it.
//!
//! Owns the reader's state: where it stands, and from where it can be served - the live text of this instance, that of
//! the runner through a [`Relay`], or the committed reply. It never changes a turn. Rows and replies come from the
//! store, text from [`live`](super::live); events go to HTTP.
//!
//! What a reader is promised:
//! - Event ids are positions, `<turn>.<attempt>-<n>`, and a position can be continued on any instance.
//! - While the attempt's text is in memory somewhere, a reader that continues gets what follows its position: no gap, no
//!   repeat. Deltas that it fell behind on arrive as one, under the number of the last.
//! - When another attempt begins, or the text is no longer in memory, it first gets `restart`: what it has is void. Then
//!   comes the whole text.
//! - `done` comes only after the reply is committed, and carries it. It and the delta that holds a whole committed text
//!   stand at the position [`WHOLE`], which no live delta has.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use openclaw_proto::http::{ErrorCode, StreamEvent, Usage};
use openclaw_proto::ids::{InstanceId, SeqNum, SessionKey, StreamPosition, TurnId};
use openclaw_proto::state::{Entry, Turn, TurnState};
use openclaw_raft::planted::{Bug, planted};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::live::{Hub, Piece, Watch};
use crate::store::{Consistency, ReadError, SessionStore};

/// The `n` of a reader that has the whole committed reply. Live deltas never get there: a text has fewer bytes.
pub const WHOLE: u64 = u32::MAX as u64;

/// Live text of turns that run on other instances.
pub trait Relay: Send + Sync + 'static {
    /// What `runner` has of the turn after the position, and then what comes.
    fn watch<'a>(
        &'a self,
        runner: &'a InstanceId,
        turn: &'a TurnId,
        after_attempt: u32,
        after_n: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<RelayEvent, RelayError>>, RelayError>>;
}

/// What an instance says about a turn that runs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayEvent {
    Delta {
        attempt: u32,
        n: u64,
        text: String,
    },
    /// All of the attempt was sent; how it ended is in the replicated state.
    Ended {
        attempt: u32,
    },
    /// The turn does not run there, as far as that instance has applied.
    NotHere,
}

/// Another instance could not be asked, or stopped answering.
#[derive(Debug, Clone, thiserror::Error)]
#[error("relay from {instance}: {reason}")]
pub struct RelayError {
    pub instance: InstanceId,
    pub reason: String,
}

/// Timing of readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Deadline of one read of the store.
    pub read_timeout: Duration,
    /// How often a waiting reader looks at this instance's state, although no event told it to.
    pub recheck: Duration,
    /// How long an ended attempt's runner may take to send what a reader has not read.
    pub drain: Duration,
    /// Longest wait before a lost runner is asked again.
    pub max_backoff: Duration,
    /// How long [`Follow::serve`] waits for an attempt that this instance has not begun yet.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_timeout: Duration::from_secs(5),
            recheck: Duration::from_secs(5),
            drain: Duration::from_secs(2),
            max_backoff: Duration::from_secs(1),
            patience: Duration::from_secs(2),
        }
    }
}

/// Why a turn cannot be followed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FollowError {
    #[error("no such turn")]
    NotFound,
    /// The turn goes on without this instance.
    #[error("this instance is stopping before the turn has ended")]
    Stopping,
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl FollowError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound => ErrorCode::NotFound,
            Self::Stopping => ErrorCode::EffectUnknown,
            Self::Read(error) => error.code(),
        }
    }
}

/// One event with the position that it leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Followed {
    pub position: StreamPosition,
    pub event: StreamEvent,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    Replied { turn: Turn, reply: Entry },
    Failed(Turn),
    Cancelled(Turn),
}

/// Makes readers. Cheap to clone.
#[derive(Clone)]
pub struct Follow {
    inner: Arc<Inner>,
}

struct Inner {
    me: InstanceId,
    store: Arc<dyn SessionStore>,
    hub: Hub,
    relay: Arc<dyn Relay>,
    options: Options,
    stopping: CancellationToken,
}

impl Follow {
    /// Readers end, with a position to continue from, once `stopping` is cancelled.
    pub fn new(
        me: InstanceId,
        store: Arc<dyn SessionStore>,
        hub: Hub,
        relay: Arc<dyn Relay>,
        options: Options,
        stopping: CancellationToken,
    ) -> Self {
        Self { inner: Arc::new(Inner { me, store, hub, relay, options, stopping }) }
    }

    /// A reader of the turn, from `after` on. Without it, it begins with `start`.
    ///
    /// # Errors
    /// [`FollowError::NotFound`] for a turn that was never accepted, or too long ago.
    pub async fn open(
        &self,
        turn: &TurnId,
        after: Option<StreamPosition>,
        consistency: Consistency,
    ) -> Result<Follower, FollowError> {
        // Watched first: no event between the read and the watching is missed.
        let watch = self.inner.hub.watch(turn);
        let version = watch.row_version();
        let row = self.inner.row(turn, consistency).await?.ok_or(FollowError::NotFound)?;
        let mut follower = Follower {
            follow: self.inner.clone(),
            version,
            watch,
            attempt: after.as_ref().map_or(row.attempt, |position| position.attempt),
            n: after.as_ref().map_or(0, |position| position.n),
            turn: turn.clone(),
            row,
            drained: None,
            remote: None,
            asked_for_rest: false,
            backoff: Duration::ZERO,
            ready: VecDeque::new(),
            over: false,
        };
        if after.is_none() {
            follower.push(StreamEvent::Start {
                turn_id: turn.as_str().to_owned(),
                session_key: follower.row.session_key.clone(),
                instance_id: follower.row.runner.clone(),
            });
        }
        Ok(follower)
    }

    /// Waits for the turn's end.
    ///
    /// # Errors
    /// [`FollowError::NotFound`] for a turn that was never accepted, or is gone with its session;
    /// [`FollowError::Stopping`] once this instance cannot wait any longer.
    pub async fn ended(&self, turn: &TurnId, consistency: Consistency) -> Result<Ended, FollowError> {
        let watch = self.inner.hub.watch(turn);
        let mut row = self.inner.row(turn, consistency).await?.ok_or(FollowError::NotFound)?;
        let mut stopping = false;
        loop {
            let (version, seen) = watch.row();
            if let Some(seen) = seen
                && (seen.fencing_token, seen.state) > (row.fencing_token, row.state)
            {
                row = seen;
            }
            match row.state() {
                TurnState::Done => {
                    let reply = self.inner.reply(&row).await?.ok_or(FollowError::NotFound)?;
                    return Ok(Ended::Replied { turn: row, reply });
                }
                TurnState::Failed => return Ok(Ended::Failed(row)),
                TurnState::Cancelled => return Ok(Ended::Cancelled(row)),
                TurnState::Queued | TurnState::Running | TurnState::Unspecified if stopping => {
                    return Err(FollowError::Stopping);
                }
                TurnState::Queued | TurnState::Running | TurnState::Unspecified => {}
            }
            // Either way the state here is the newest that can be had; an event may have been missed.
            tokio::select! {
                _ = timeout(self.inner.options.recheck, watch.row_changed(version)) => {}
                () = self.inner.stopping.cancelled() => stopping = true,
            }
            row = self.inner.row(turn, Consistency::Stale).await?.ok_or(FollowError::NotFound)?;
        }
    }

    /// The live text of a turn that runs here, for another instance's readers: ends with `Ended` or `NotHere`.
    pub fn serve(&self, turn: TurnId, after_attempt: u32, after_n: u64) -> BoxStream<'static, RelayEvent> {
        let watch = self.inner.hub.watch(&turn);
        let after_n = if planted(Bug::SkippedDelta) && after_n > 0 { after_n + 1 } else { after_n };
        let state = (self.inner.clone(), watch, turn, Some((after_attempt, after_n)));
        stream::unfold(state, |(follow, watch, turn, position)| async move {
            let (attempt, n) = position?;
            let (event, position) = match follow.serve_next(&watch, &turn, attempt, n).await {
                RelayEvent::Delta { attempt, n, text } => (RelayEvent::Delta { attempt, n, text }, Some((attempt, n))),
                last @ (RelayEvent::Ended { .. } | RelayEvent::NotHere) => (last, None),
            };
            Some((event, (follow, watch, turn, position)))
        })
        .boxed()
    }
}

impl Inner {
    async fn row(&self, turn: &TurnId, consistency: Consistency) -> Result<Option<Turn>, ReadError> {
        Ok(self.store.turn(turn, consistency, self.options.read_timeout).await?.value)
    }

    /// The entry that a done turn wrote. Whoever saw the row here can read it here; else the leader is asked.
    async fn reply(&self, row: &Turn) -> Result<Option<Entry>, ReadError> {
        let Ok(key) = SessionKey::parse(row.session_key.as_str()) else { return Ok(None) };
        let after = SeqNum(row.reply_seq.saturating_sub(1));
        for consistency in [Consistency::Stale, Consistency::Linearizable] {
            let entries = self.store.entries(&key, after, 1, consistency, self.options.read_timeout).await?.value;
            // Another session may have taken the key since.
            if let Some(entry) = entries.into_iter().find(|e| e.seq == row.reply_seq && e.turn_id == row.id) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    async fn serve_next(&self, watch: &Watch, turn: &TurnId, attempt: u32, n: u64) -> RelayEvent {
        let began = Instant::now();
        loop {
            let (version, _) = watch.row();
            match watch.read(attempt, n) {
                Piece::Delta { attempt, n, text } => return RelayEvent::Delta { attempt, n, text },
                Piece::Ended { attempt } => return RelayEvent::Ended { attempt },
                Piece::Waiting => watch.changed(attempt, n, version).await,
                Piece::Absent => {
                    let row = self.row(turn, Consistency::Stale).await.ok().flatten();
                    let ours = row.is_none_or(|row| {
                        matches!(row.state(), TurnState::Queued | TurnState::Running) && row.runner == self.me.as_str()
                    });
                    let patience = self.options.patience.saturating_sub(began.elapsed());
                    if !ours || timeout(patience, watch.changed(attempt, n, version)).await.is_err() {
                        return RelayEvent::NotHere;
                    }
                }
            }
        }
    }
}

/// A reader of one turn. [`Follower::next`] may be dropped at any await and called again.
pub struct Follower {
    follow: Arc<Inner>,
    watch: Watch,
    turn: TurnId,
    row: Turn,
    /// Version of the watched row that `row` reflects.
    version: u64,
    attempt: u32,
    n: u64,
    /// The attempt of which everything was read.
    drained: Option<u32>,
    remote: Option<BoxStream<'static, Result<RelayEvent, RelayError>>>,
    /// The runner of an ended turn was asked, once, for what it still has in memory.
    asked_for_rest: bool,
    backoff: Duration,
    ready: VecDeque<Followed>,
    over: bool,
}

impl Follower {
    pub fn turn(&self) -> &TurnId {
        &self.turn
    }

    /// The newest row that the reader knows.
    pub fn row(&self) -> &Turn {
        &self.row
    }

    /// The next event; `None` after the last, or when the reader has to continue elsewhere.
    pub async fn next(&mut self) -> Option<Followed> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            let stopping = self.follow.stopping.clone();
            tokio::select! {
                () = self.step() => {}
                () = stopping.cancelled() => self.over = true,
            }
        }
    }

    fn push(&mut self, event: StreamEvent) {
        let position = StreamPosition { turn: self.turn.clone(), attempt: self.attempt, n: self.n };
        self.ready.push_back(Followed { position, event });
    }

    /// Either makes an event ready, or waits until one may be.
    async fn step(&mut self) {
        self.take_row().await;
        if self.over || !self.ready.is_empty() {
            return;
        }
        match self.row.state() {
            TurnState::Queued | TurnState::Unspecified => self.wait_for_row(self.follow.options.recheck).await,
            TurnState::Running if self.row.runner == self.follow.me.as_str() => self.read_here().await,
            TurnState::Running => self.read_there().await,
            TurnState::Done => self.finish().await,
            TurnState::Failed => {
                let code = ErrorCode::from_stored(&self.row.error_code);
                self.fail(code, self.row.error_message.clone());
            }
            TurnState::Cancelled => self.fail(ErrorCode::Cancelled, "the turn was cancelled".to_owned()),
        }
    }

    /// Takes over what an event showed, or reads the row again where events may have been missed.
    async fn take_row(&mut self) {
        let (version, seen) = self.watch.row();
        if version == self.version {
            return;
        }
        let seen = seen.filter(|seen| (seen.fencing_token, seen.state) > (self.row.fencing_token, self.row.state));
        match seen {
            Some(row) => self.row = row,
            None => self.reload().await,
        }
        self.version = version;
        self.backoff = Duration::ZERO;
    }

    async fn reload(&mut self) {
        match self.follow.row(&self.turn, Consistency::Stale).await {
            Ok(Some(row)) => {
                if (row.fencing_token, row.state) >= (self.row.fencing_token, self.row.state) {
                    self.row = row;
                }
            }
            // This instance may not have applied the turn yet. If it is gone for good, the leader knows.
            Ok(None) => match self.follow.row(&self.turn, Consistency::Linearizable).await {
                Ok(Some(row)) => self.row = row,
                Ok(None) => self.fail(ErrorCode::NotFound, "the turn is gone".to_owned()),
                Err(error) => debug!(turn_id = %self.turn, %error, "turn not read"),
            },
            Err(error) => debug!(turn_id = %self.turn, %error, "turn not read"),
        }
    }

    async fn wait_for_row(&mut self, recheck: Duration) {
        if timeout(recheck, self.watch.row_changed(self.version)).await.is_err() {
            self.reload().await;
        }
    }

    async fn read_here(&mut self) {
        self.remote = None;
        match self
            .watch
            .read(self.attempt.max(self.row.attempt), if self.attempt < self.row.attempt { 0 } else { self.n })
        {
            Piece::Delta { attempt, n, text } => self.delta(attempt, n, text),
            Piece::Ended { attempt } => {
                self.drained = Some(attempt);
                if planted(Bug::EarlyDone) {
                    return self.done_uncommitted(attempt);
                }
                self.wait_for_row(self.follow.options.recheck).await;
            }
            Piece::Waiting | Piece::Absent => {
                self.begin(self.row.attempt);
                if !self.ready.is_empty() {
                    return;
                }
                let changed = self.watch.changed(self.attempt, self.n, self.version);
                if timeout(self.follow.options.recheck, changed).await.is_err() {
                    self.reload().await;
                }
            }
        }
    }

    async fn read_there(&mut self) {
        self.begin(self.row.attempt);
        if !self.ready.is_empty() {
            return;
        }
        if self.drained == Some(self.row.attempt) {
            // Its end is being committed. If the runner died in between, the row changes too.
            return self.wait_for_row(self.follow.options.recheck).await;
        }
        if self.remote.is_none() {
            if !self.backoff.is_zero() && timeout(self.backoff, self.watch.row_changed(self.version)).await.is_ok() {
                return;
            }
            self.reload().await;
            if self.row.state() != TurnState::Running || self.over {
                return;
            }
            let Ok(runner) = InstanceId::parse(self.row.runner.as_str()) else {
                return self.fail(ErrorCode::Internal, "the turn has no runner".to_owned());
            };
            let connect = self.follow.relay.watch(&runner, &self.turn, self.attempt, self.n);
            match timeout(self.follow.options.read_timeout, connect).await {
                Ok(Ok(events)) => self.remote = Some(events),
                Ok(Err(error)) => return self.lost(&error.to_string()),
                Err(_) => return self.lost("no answer in time"),
            }
        }
        let Some(events) = self.remote.as_mut() else { return };
        tokio::select! {
            event = events.next() => self.take_remote(event),
            () = self.watch.row_changed(self.version) => {}
        }
    }

    fn take_remote(&mut self, event: Option<Result<RelayEvent, RelayError>>) {
        match event {
            Some(Ok(RelayEvent::Delta { attempt, n, text })) => {
                self.backoff = Duration::ZERO;
                self.delta(attempt, n, text);
            }
            Some(Ok(RelayEvent::Ended { attempt })) => {
                self.drained = Some(attempt);
                self.remote = None;
            }
            Some(Ok(RelayEvent::NotHere)) => self.lost("the turn does not run there"),
            Some(Err(error)) => self.lost(&error.to_string()),
            None => self.lost("the relay ended"),
        }
    }

    fn lost(&mut self, reason: &str) {
        debug!(turn_id = %self.turn, runner = %self.row.runner, reason, "live text lost");
        self.remote = None;
        let least = Duration::from_millis(25);
        self.backoff = (self.backoff * 2).clamp(least, self.follow.options.max_backoff.max(least));
    }

    /// The attempt from which text comes now. What an older one said is void, if it said anything. A runner may know of an
    /// attempt before this instance has applied its beginning; there is no way back from it.
    fn begin(&mut self, attempt: u32) {
        if self.attempt >= attempt {
            return;
        }
        let said = self.n > 0;
        (self.attempt, self.n) = (attempt, 0);
        if said && !planted(Bug::SilentRestart) {
            self.push(StreamEvent::Restart { attempt });
        }
    }

    fn delta(&mut self, attempt: u32, n: u64, text: String) {
        if attempt < self.row.attempt || (attempt == self.attempt && n <= self.n) {
            return;
        }
        self.begin(attempt);
        self.n = n;
        self.push(StreamEvent::Delta { text });
    }

    /// The reply is committed: the rest of the text, where somebody has it in memory, then `done`.
    async fn finish(&mut self) {
        let last = self.row.attempt;
        if self.attempt > last {
            // A position that nobody was given: there is none after the last.
            (self.attempt, self.n) = (last, 0);
            return self.push(StreamEvent::Restart { attempt: last });
        }
        let has_all = self.attempt == last && self.n >= WHOLE;
        if !has_all && self.drained != Some(last) && self.read_rest(last).await {
            return;
        }
        let reply = match self.follow.reply(&self.row).await {
            Ok(Some(reply)) => reply,
            Ok(None) => return self.fail(ErrorCode::NotFound, "the reply was deleted with its session".to_owned()),
            Err(error) => return self.fail(error.code(), error.to_string()),
        };
        if !has_all && self.drained != Some(last) {
            let said = self.n > 0;
            (self.attempt, self.n) = (last, 0);
            if said {
                self.push(StreamEvent::Restart { attempt: last });
            }
            self.n = WHOLE;
            self.push(StreamEvent::Delta { text: reply.text.clone() });
        }
        (self.attempt, self.n) = (last, WHOLE);
        self.push(StreamEvent::Done {
            entry_id: reply.id,
            text: reply.text,
            usage: usage(self.row.usage.unwrap_or_default()),
            model: self.row.answered_by.clone(),
        });
        self.over = true;
    }

    /// Only for [`Bug::EarlyDone`]: what the reply will be, if nothing comes between.
    fn done_uncommitted(&mut self, attempt: u32) {
        if let Piece::Delta { text, .. } = self.watch.read(attempt, 0) {
            (self.attempt, self.n) = (attempt, WHOLE);
            self.push(StreamEvent::Done {
                entry_id: format!("{:08x}", self.row.user_seq + 1),
                text,
                usage: Usage::default(),
                model: String::new(),
            });
        }
        self.over = true;
    }

    /// True while the rest may still come from memory: an event is ready, or it is worth another look.
    async fn read_rest(&mut self, last: u32) -> bool {
        let position = if self.attempt == last { self.n } else { 0 };
        match self.watch.read(last, position) {
            Piece::Delta { attempt, n, text } if attempt == last => {
                self.delta(attempt, n, text);
                return true;
            }
            Piece::Ended { attempt } if attempt == last && position > 0 => {
                self.drained = Some(last);
                return true;
            }
            Piece::Delta { .. } | Piece::Ended { .. } | Piece::Waiting | Piece::Absent => {}
        }
        let continues = self.attempt == last && self.n > 0;
        if self.remote.is_none() && continues && !self.asked_for_rest && self.row.runner != self.follow.me.as_str() {
            self.asked_for_rest = true;
            if let Ok(runner) = InstanceId::parse(self.row.runner.as_str()) {
                let connect = self.follow.relay.watch(&runner, &self.turn, self.attempt, self.n);
                self.remote = timeout(self.follow.options.drain, connect).await.ok().and_then(Result::ok);
            }
        }
        let Some(events) = self.remote.as_mut() else { return false };
        match timeout(self.follow.options.drain, events.next()).await {
            Ok(event) => self.take_remote(event),
            Err(_) => self.remote = None,
        }
        !self.ready.is_empty() || self.drained == Some(last)
    }

    fn fail(&mut self, code: ErrorCode, message: String) {
        self.push(StreamEvent::Error { code, message });
        self.over = true;
    }
}

/// Token counts as HTTP shows them.
pub fn usage(usage: openclaw_proto::state::Usage) -> Usage {
    Usage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        total_tokens: usage.input_tokens.saturating_add(usage.output_tokens),
    }
}

/// For a cluster of one: nothing runs elsewhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRelay;

impl Relay for NoRelay {
    fn watch<'a>(
        &'a self,
        runner: &'a InstanceId,
        _: &'a TurnId,
        _: u32,
        _: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<RelayEvent, RelayError>>, RelayError>> {
        let error = RelayError { instance: runner.clone(), reason: "there is no other instance".to_owned() };
        Box::pin(async move {
            // Time passes, so that a caller that asks again does not spin.
            sleep(Duration::from_millis(10)).await;
            Err(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use openclaw_proto::state::command::Kind as Command;
    use openclaw_proto::state::outcome::Kind as Outcome;
    use openclaw_proto::state::{Accept, Complete, InboxKey};

    use super::*;
    use crate::sessions::live::Limits;
    use crate::store::memory::MemoryStore;

    /// A runner that says this much, and then nothing for ever.
    struct Says(Vec<RelayEvent>);

    impl Relay for Says {
        fn watch<'a>(
            &'a self,
            _: &'a InstanceId,
            _: &'a TurnId,
            after_attempt: u32,
            after_n: u64,
        ) -> BoxFuture<'a, Result<BoxStream<'static, Result<RelayEvent, RelayError>>, RelayError>> {
            let later = |event: &RelayEvent| match event {
                RelayEvent::Delta { attempt, n, .. } => (*attempt, *n) > (after_attempt, after_n),
                RelayEvent::Ended { .. } | RelayEvent::NotHere => true,
            };
            let events: Vec<_> = self.0.iter().filter(|event| later(event)).cloned().map(Ok).collect();
            Box::pin(async move { Ok(stream::iter(events).chain(stream::pending()).boxed()) })
        }
    }

    /// A turn of `runner`, which waits for it.
    fn accepted(store: &MemoryStore, runner: &str) -> TurnId {
        let turn = TurnId::random();
        let accepted = store.apply(Command::Accept(Accept {
            inbox: Some(InboxKey { account: "x".into(), external_id: "1".into(), body_hash: vec![0; 32].into() }),
            session_key: "s".into(),
            turn_id: turn.as_str().into(),
            text: "question".into(),
            agent_id: "main".into(),
            runner: runner.into(),
            max_queued: 1,
            ..Accept::default()
        }));
        assert!(matches!(accepted.value, Outcome::Accepted(_)), "{:?}", accepted.value);
        turn
    }

    #[tokio::test(start_paused = true)]
    async fn a_position_of_an_attempt_that_never_was_begins_again_with_the_last_one() {
        let me = InstanceId::parse("node-1").unwrap();
        let store = MemoryStore::new(&[&me]);
        let turn = accepted(&store, me.as_str());
        let row = store.turn(&turn, Consistency::Stale, Duration::from_secs(1)).await.unwrap().value.unwrap();
        let hub = Hub::new(Limits::default());
        hub.begin(&turn, row.attempt).publish("reply").unwrap();
        store.apply(Command::Complete(Complete {
            turn_id: row.id,
            fencing_token: row.fencing_token,
            text: "reply".into(),
            ..Complete::default()
        }));
        let (relay, options) = (Arc::new(NoRelay), Options::default());
        let follow = Follow::new(me, Arc::new(store), hub, relay, options, CancellationToken::new());
        let made_up = StreamPosition { turn: turn.clone(), attempt: 9, n: 1 };
        let mut reader = follow.open(&turn, Some(made_up), Consistency::Stale).await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < 10
            && let Some(followed) = timeout(options.recheck, reader.next()).await.unwrap()
        {
            seen.push((followed.position.attempt, followed.event.name()));
        }
        assert_eq!(seen, [(1, "restart"), (1, "delta"), (1, "done")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_never_goes_back_to_an_attempt_that_is_void() {
        let id = |name: &str| InstanceId::parse(name).unwrap();
        let store = MemoryStore::new(&[&id("node-1"), &id("node-2")]);
        let turn = accepted(&store, "node-2");
        // Attempt 2 runs there already, and here its beginning is not applied yet.
        let delta = |attempt, text: &str| RelayEvent::Delta { attempt, n: 1, text: text.into() };
        let (hub, options) = (Hub::new(Limits::default()), Options::default());
        let follow = Follow::new(
            id("node-1"),
            Arc::new(store),
            hub,
            Arc::new(Says(vec![delta(1, "old"), delta(2, "new")])),
            options,
            CancellationToken::new(),
        );
        let mut reader = follow.open(&turn, None, Consistency::Stale).await.unwrap();
        let mut seen = Vec::new();
        while let Ok(Some(followed)) = timeout(2 * options.recheck, reader.next()).await {
            seen.push((followed.position.attempt, followed.event.name()));
        }
        assert_eq!(seen, [(1, "start"), (1, "delta"), (2, "restart"), (2, "delta")]);
    }
}
