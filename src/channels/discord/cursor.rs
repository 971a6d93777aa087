//! What was read of the gateway's events, what of it the inbox has taken, and the stored cursor between the two.
//!
//! An [`Intake`] gets every message that `gateway` reads. It works beside the reading, one batch at a time and in order, and
//! a cursor never covers more than it has handed over.

use std::collections::{BTreeSet, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serenity::model::id::{ChannelId, UserId};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::Timing;
use super::client::Rest;
use super::parse::Threads;
use super::socket::address;
use crate::channels::{Inbox, InboxError, ReceiveError};
use crate::message::InboundMessage;

/// Messages that wait for the store; more are left to Discord, which repeats them.
const WAITING: usize = 1000;
/// Messages that the inbox gets at once.
const BATCH: usize = 50;
/// How long the store may refuse.
const PATIENCE: Duration = Duration::from_secs(60);
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// Events after which the cursor is stored before its time.
const EVENTS: u64 = 50;

/// What makes a session resumable by any process.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) id: String,
    pub(super) resume_url: String,
    pub(super) bot: UserId,
}

/// A session, and the last of its events that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) session: Arc<Session>,
    pub(super) seq: u64,
}

/// A [`Position`] as it is stored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cursor {
    session_id: String,
    seq: u64,
    resume_url: String,
    bot_id: UserId,
}

impl Position {
    /// `None`: nothing that this release wrote. Then a session begins.
    pub(super) fn parse(cursor: &str) -> Option<Self> {
        let Cursor { session_id, seq, resume_url, bot_id } = serde_json::from_str(cursor).ok()?;
        address(&resume_url).ok()?;
        Some(Self { session: Arc::new(Session { id: session_id, resume_url, bot: bot_id }), seq })
    }

    pub(super) fn cursor(&self) -> String {
        let Session { id, resume_url, bot } = &*self.session;
        json!({"sessionId": id, "seq": self.seq, "resumeUrl": resume_url, "botId": bot}).to_string()
    }
}

pub(super) fn failed(reason: impl Into<String>, retry_after: Option<Duration>) -> ReceiveError {
    ReceiveError::Failed { reason: reason.into(), retry_after }
}

/// How an attempt to hand over a batch went, and what was learnt about threads for it.
type Taken = (Vec<(ChannelId, Option<ChannelId>)>, Result<(), InboxError>);

/// What stands in the way of a batch.
struct Trouble {
    since: Instant,
    pause: Duration,
    again: Instant,
}

/// Hands messages to the inbox in order, one batch at a time, and keeps the cursor behind them.
pub(super) struct Intake<'a> {
    rest: &'a Rest,
    inbox: &'a dyn Inbox,
    timing: Timing,
    pub(super) threads: Threads,
    /// Up to where events were read.
    pub(super) read: Option<Position>,
    waiting: VecDeque<(Position, InboundMessage)>,
    /// What the inbox is to take now.
    batch: Vec<InboundMessage>,
    /// Up to where everything is taken once the batch is.
    reaches: Option<Position>,
    taking: Option<BoxFuture<'a, Taken>>,
    trouble: Option<Trouble>,
    /// Up to where everything is taken.
    taken: Option<Position>,
    saving: Option<(Position, BoxFuture<'a, Result<(), InboxError>>)>,
    /// What the store has.
    saved: Option<Position>,
    /// When the cursor was stored last, or was not.
    tried: Option<(Instant, bool)>,
}

impl<'a> Intake<'a> {
    pub(super) fn new(rest: &'a Rest, inbox: &'a dyn Inbox, timing: Timing) -> Self {
        Self {
            rest,
            inbox,
            timing,
            threads: Threads::default(),
            read: None,
            waiting: VecDeque::new(),
            batch: Vec::new(),
            reaches: None,
            taking: None,
            trouble: None,
            taken: None,
            saving: None,
            saved: None,
            tried: None,
        }
    }

    /// Where the owner before this one stood.
    pub(super) async fn begin(&mut self) -> Result<Option<Position>, ReceiveError> {
        let cursor = self.inbox.cursor().await.map_err(|error| match error {
            InboxError::Fenced => ReceiveError::Ended,
            InboxError::Unavailable(reason) => failed(reason, None),
        })?;
        let position = cursor.as_deref().and_then(Position::parse);
        self.saved.clone_from(&position);
        self.read.clone_from(&position);
        Ok(position)
    }

    pub(super) fn take(&mut self, position: Position, message: InboundMessage) -> Result<(), ReceiveError> {
        if self.waiting.len() >= WAITING {
            return Err(failed("messages come faster than they are stored", None));
        }
        self.waiting.push_back((position, message));
        Ok(())
    }

    /// Works while something else goes on.
    pub(super) async fn during<T>(&mut self, other: impl Future<Output = T>) -> Result<T, ReceiveError> {
        tokio::select! {
            biased;
            error = self.work() => Err(error),
            done = other => Ok(done),
        }
    }

    /// Never done, but it may have to stop. Dropping it loses nothing.
    pub(super) async fn work(&mut self) -> ReceiveError {
        loop {
            let now = Instant::now();
            self.begin_taking(now);
            self.begin_saving(now);
            let wake = self.wake();
            let done = tokio::select! {
                taken = of(&mut self.taking) => {
                    self.taking = None;
                    self.finish_taking(taken)
                }
                saved = async {
                    match &mut self.saving {
                        Some((_, saving)) => saving.await,
                        None => pending().await,
                    }
                } => self.finish_saving(saved),
                () = async {
                    match wake {
                        Some(wake) => sleep_until(wake).await,
                        None => pending().await,
                    }
                } => Ok(()),
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    fn wake(&self) -> Option<Instant> {
        let again = self.trouble.as_ref().filter(|_| self.taking.is_none()).map(|trouble| trouble.again);
        let dirty = self.saving.is_none() && self.taken != self.saved;
        let save = self.tried.filter(|_| dirty).map(|(tried, _)| tried + self.timing.save);
        again.into_iter().chain(save).min()
    }

    fn begin_taking(&mut self, now: Instant) {
        if self.taking.is_some() || self.trouble.as_ref().is_some_and(|trouble| now < trouble.again) {
            return;
        }
        if self.batch.is_empty() {
            let count = self.waiting.len().min(BATCH);
            for (position, message) in self.waiting.drain(..count) {
                self.batch.push(message);
                self.reaches = Some(position);
            }
            if self.waiting.is_empty() {
                self.reaches.clone_from(&self.read);
            }
            if self.batch.is_empty() {
                self.taken.clone_from(&self.read);
                return;
            }
        }
        let unknown: BTreeSet<ChannelId> = self.batch.iter().filter_map(|one| self.threads.unknown(one)).collect();
        let mut batch = self.batch.clone();
        batch.iter_mut().for_each(|message| self.threads.settle(message));
        let (rest, inbox) = (self.rest, self.inbox);
        self.taking = Some(
            async move {
                let asked = unknown.into_iter().map(|channel| rest.thread_of(channel).map(move |of| (channel, of)));
                let mut learnt = Threads::default();
                let mut answers = Vec::new();
                for (channel, thread_of) in join_all(asked).await {
                    match thread_of {
                        Ok(thread_of) => {
                            learnt.learn(channel, thread_of);
                            answers.push((channel, thread_of));
                        }
                        // One conversation would become two.
                        Err(error) => {
                            let reason = format!("where a message was written is not known: {error}");
                            return (answers, Err(InboxError::Unavailable(reason)));
                        }
                    }
                }
                batch.iter_mut().for_each(|message| learnt.settle(message));
                (answers, inbox.take(batch).await)
            }
            .boxed(),
        );
    }

    fn finish_taking(&mut self, (learnt, result): Taken) -> Result<(), ReceiveError> {
        for (channel, thread_of) in learnt {
            self.threads.learn(channel, thread_of);
        }
        let reason = match result {
            Ok(()) => {
                self.batch.clear();
                self.taken = self.reaches.take();
                self.trouble = None;
                return Ok(());
            }
            Err(InboxError::Fenced) => return Err(ReceiveError::Ended),
            Err(InboxError::Unavailable(reason)) => reason,
        };
        let now = Instant::now();
        let (since, pause) = match &self.trouble {
            Some(trouble) => (trouble.since, (trouble.pause * 2).min(LONGEST_RETRY)),
            None => (now, self.timing.retry),
        };
        if now.duration_since(since) > PATIENCE {
            return Err(failed(reason, None));
        }
        debug!(%reason, ?pause, "messages wait for the store");
        self.trouble = Some(Trouble { since, pause, again: now + pause });
        Ok(())
    }

    fn begin_saving(&mut self, now: Instant) {
        if self.saving.is_some() || self.taken == self.saved {
            return;
        }
        let Some(taken) = &self.taken else {
            return;
        };
        let due = match self.tried {
            None => true,
            Some((tried, stored)) => now >= tried + self.timing.save || (stored && self.is_far(taken)),
        };
        if due {
            self.saving = Some((taken.clone(), self.inbox.save_cursor(taken.cursor())));
        }
    }

    /// Whether the stored cursor is of another session, or many events old.
    fn is_far(&self, taken: &Position) -> bool {
        self.saved.as_ref().is_none_or(|saved| saved.session != taken.session || taken.seq >= saved.seq + EVENTS)
    }

    fn finish_saving(&mut self, result: Result<(), InboxError>) -> Result<(), ReceiveError> {
        let position = self.saving.take().map(|(position, _)| position);
        self.tried = Some((Instant::now(), result.is_ok()));
        match result {
            Ok(()) => self.saved = position,
            Err(InboxError::Fenced) => return Err(ReceiveError::Ended),
            // The old one stands: more would be repeated.
            Err(InboxError::Unavailable(reason)) => debug!(%reason, "the cursor was not stored"),
        }
        Ok(())
    }

    pub(super) async fn last_save(&mut self) {
        if self.taking.is_none() && self.batch.is_empty() && self.waiting.is_empty() {
            self.taken.clone_from(&self.read);
        }
        self.saving = None;
        if let Some(taken) = self.taken.as_ref().filter(|taken| self.saved.as_ref() != Some(taken))
            && let Err(error) = self.inbox.save_cursor(taken.cursor()).await
        {
            debug!(%error, "the last cursor was not stored");
        }
    }
}

async fn of<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let session =
            Session { id: "abc".to_owned(), resume_url: "wss://g.discord.gg".to_owned(), bot: UserId::new(9) };
        let position = Position { session: Arc::new(session), seq: 41 };
        let cursor = position.cursor();
        assert_eq!(cursor, r#"{"botId":"9","resumeUrl":"wss://g.discord.gg","seq":41,"sessionId":"abc"}"#);
        assert_eq!(Position::parse(&cursor), Some(position));
        for other in ["", "{}", "7", r#"{"sessionId":"a","seq":1,"resumeUrl":"http://x","botId":"9"}"#] {
            assert_eq!(Position::parse(other), None);
        }
    }
}
