//! What people see of a reply while it is written: that the bot types and, where the settings say so, the reply as it
//! grows, in a message that is edited again and again.
//!
//! The reply takes the place of that message in the end. Which one it is stands with the turn as soon as the platform has
//! taken it, so whoever delivers the reply edits it, and sends no other. Showing it is worth nothing that delivery needs:
//! it takes the places in the account's pace that are free, and gives up at the first refusal. An owner that dies between
//! the sending of a preview and its record leaves it in the chat as it was; the reply follows as a message of its own. One
//! that lives but cannot commit could not record it either, so a commit says first that a preview may be sent.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use openclaw_proto::http::StreamEvent;
use openclaw_proto::ids::{InstanceId, TurnId};
use openclaw_proto::state::{Turn, TurnState};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::delivery::address;
use super::outlet::Outlet;
use super::{Channel, SendError, SendKey};
use crate::message::{Piece, ReplyAddress};
use crate::sessions::follow::Follow;
use crate::store::channels::OwnerError;
use crate::store::{CommitError, Consistency, Event};

/// Platforms show for five seconds or more that somebody types.
const TYPING_AGAIN: Duration = Duration::from_secs(4);
const TYPING_CALL: Duration = Duration::from_secs(2);
/// A reply that takes no longer comes in one piece: no sooner is it shown while it grows.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// When no place is free.
const NO_PLACE: Duration = Duration::from_millis(100);
/// Of one commit or read.
const STORE: Duration = Duration::from_secs(5);
/// Turns of one account that are shown at once.
const MAX_TURNS: usize = 64;

/// What runs of one account, as its people see it, for one tenure. Cheap to clone.
#[derive(Clone)]
pub(super) struct Writing {
    shared: Arc<Shared>,
}

struct Shared {
    outlet: Outlet,
    follow: Follow,
    turns: Mutex<BTreeMap<String, Shown>>,
}

/// A turn that is shown. Its task ends with the id of the message that shows it.
struct Shown {
    stop: CancellationToken,
    task: AbortOnDropHandle<Option<String>>,
}

impl Writing {
    pub(super) fn new(outlet: Outlet, follow: Follow) -> Self {
        Self { shared: Arc::new(Shared { outlet, follow, turns: Mutex::default() }) }
    }

    /// Runs until it is to finish, or until the tenure ends; calls under way are dropped then.
    pub(super) async fn run(&self) {
        let shared = &self.shared;
        let mut events = shared.outlet.store.events();
        // What the owner before this one showed goes on.
        self.begin_running().await;
        loop {
            tokio::select! {
                () = shared.outlet.tenure.ended.cancelled() => break,
                () = shared.outlet.finish.cancelled() => break,
                event = events.next() => match event {
                    Some(Event::TurnRunnable(turn)) => self.begin(turn),
                    // It has no reply that would ask for the preview.
                    Some(Event::TurnEnded(turn)) if turn.state() == TurnState::Cancelled => {
                        shared.turns.lock().remove(&turn.id);
                    }
                    Some(Event::Lagged) => self.begin_running().await,
                    Some(Event::TurnEnded(_) | Event::LeaseChanged(_) | Event::OutboxChanged { .. }) => {}
                    None => break,
                },
            }
        }
        let turns = std::mem::take(&mut *shared.turns.lock());
        if !shared.outlet.tenure.ended.is_cancelled() {
            for shown in turns.into_values() {
                shared.outlet.tenure.ended.run_until_cancelled(shown.task).await;
            }
        }
    }

    /// Ends the showing of a turn: the message that its reply takes the place of, if there is one.
    pub(super) async fn settle(&self, turn_id: &str) -> Option<String> {
        let shown = self.shared.turns.lock().remove(turn_id)?;
        shown.stop.cancel();
        shown.task.await.ok().flatten()
    }

    async fn begin_running(&self) {
        let Ok(instances) = self.shared.outlet.store.instances() else { return };
        for runner in instances.into_iter().filter_map(|row| InstanceId::parse(row.instance_id).ok()) {
            let Ok(turns) = self.shared.outlet.store.turns_of(&runner, Consistency::Stale, STORE).await else {
                continue;
            };
            turns.value.into_iter().filter(|turn| turn.state() == TurnState::Running).for_each(|turn| self.begin(turn));
        }
    }

    fn begin(&self, turn: Turn) {
        let account = self.shared.outlet.channel.account().as_str();
        let Some(to) = turn.reply_to.as_ref().filter(|to| to.account == account).and_then(address) else { return };
        let mut turns = self.shared.turns.lock();
        if turns.len() >= MAX_TURNS {
            // The end of a cancelled one may have been missed.
            turns.retain(|_, shown| !shown.task.is_finished());
        }
        // Another attempt of a turn that is shown is shown in the same message.
        if turns.contains_key(&turn.id) || turns.len() >= MAX_TURNS {
            return;
        }
        let stop = self.shared.outlet.finish.child_token();
        let (id, shared, stopped) = (turn.id.clone(), self.shared.clone(), stop.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::select! {
                message = shared.show(&turn, &to, &stopped) => message,
                never = shared.type_on(&to) => match never {},
            }
        }));
        turns.insert(id, Shown { stop, task });
    }
}

impl Shared {
    async fn type_on(&self, to: &ReplyAddress) -> Infallible {
        loop {
            if !self.outlet.tenure.is_over() {
                let call = timeout(TYPING_CALL, self.outlet.channel.typing(&self.outlet.tenure, to));
                self.outlet.tenure.ended.run_until_cancelled(call).await;
            }
            sleep(TYPING_AGAIN).await;
        }
    }

    /// Until the turn ends, or it is to stop. A call that was made is waited for: what it did must be known.
    async fn show(&self, turn: &Turn, to: &ReplyAddress, stop: &CancellationToken) -> Option<String> {
        let id = TurnId::parse(turn.id.as_str()).ok()?;
        let mut preview = Preview { message: given(&turn.preview), ..Preview::default() };
        if !self.outlet.settings.streaming {
            stop.run_until_cancelled(self.follow.ended(&id, Consistency::Stale)).await;
            return preview.message;
        }
        let Ok(mut reader) = self.follow.open(&id, None, Consistency::Stale).await else { return preview.message };
        let mut next = Instant::now() + FIRST_AFTER;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return preview.message,
                () = self.outlet.tenure.ended.cancelled() => return preview.message,
                event = reader.next() => match event.map(|followed| followed.event) {
                    Some(StreamEvent::Delta { text }) => preview.grow(&text),
                    Some(StreamEvent::Restart { .. }) => preview.restart(),
                    Some(StreamEvent::Start { .. } | StreamEvent::Tool { .. }) => {}
                    Some(StreamEvent::Done { .. } | StreamEvent::Error { .. }) | None => return preview.message,
                },
                () = sleep_until(next), if preview.grew => {
                    let Some(piece) = preview.piece(&*self.outlet.channel) else { continue };
                    if self.outlet.tenure.is_over() {
                        return preview.message;
                    }
                    if !self.outlet.throttle.is_free() {
                        preview.grew = true;
                        next = Instant::now() + NO_PLACE;
                        continue;
                    }
                    let put = self.put(turn, to, &piece, &mut preview, stop);
                    let wait = self.outlet.tenure.ended.run_until_cancelled(put).await.flatten();
                    let Some(wait) = wait else { return preview.message };
                    next = Instant::now() + wait;
                }
            }
        }
    }

    /// Sends or edits the message. How long it then rests; none: nothing more is shown.
    async fn put(
        &self,
        turn: &Turn,
        to: &ReplyAddress,
        piece: &Piece,
        preview: &mut Preview,
        stop: &CancellationToken,
    ) -> Option<Duration> {
        let every = self.outlet.channel.preview_every(to);
        if preview.message.is_none() {
            let (account, token) = (self.outlet.channel.account(), self.outlet.tenure.fencing_token);
            match self.outlet.store.may_show_preview(account, token, &turn.id, STORE).await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(OwnerError::Commit(error)) => {
                    debug!(%account, turn_id = turn.id, %error, "no preview where nothing commits");
                    preview.grew = true;
                    return Some(every);
                }
                Err(error) => {
                    debug!(%account, turn_id = turn.id, %error, "no preview");
                    return None;
                }
            }
        }
        let done = match &preview.message {
            Some(message) => self.outlet.edit(to, message, piece).await,
            None => self.outlet.send(to, piece, &SendKey::preview(turn)).await.map(|sent| {
                preview.message = Some(sent.message_id);
            }),
        };
        match done {
            Ok(()) => {
                preview.shows = piece.body.clone();
                let recorded = match &preview.message {
                    Some(message) if !preview.recorded => self.record(turn, message, stop).await,
                    Some(_) | None => true,
                };
                preview.recorded = recorded;
                recorded.then_some(every)
            }
            Err(SendError::Later { after, .. }) => {
                preview.grew = true;
                Some(after.max(every))
            }
            // An edit may be repeated; a message may not.
            Err(SendError::Unknown(_)) if preview.message.is_some() => {
                preview.grew = true;
                Some(every * 2)
            }
            Err(error @ (SendError::Refused(_) | SendError::Unknown(_))) => {
                debug!(account = %self.outlet.channel.account(), turn_id = turn.id, %error, "the reply is not shown any further");
                None
            }
        }
    }

    /// False where whoever delivers the reply has to be told by other means: the turn has ended, or nothing commits.
    async fn record(&self, turn: &Turn, message: &str, stop: &CancellationToken) -> bool {
        let account = self.outlet.channel.account();
        loop {
            let token = self.outlet.tenure.fencing_token;
            match self.outlet.store.show_preview(account, token, &turn.id, message, STORE).await {
                Ok(recorded) => return recorded,
                Err(OwnerError::Commit(
                    CommitError::NoQuorum { .. } | CommitError::EffectUnknown { .. } | CommitError::Busy,
                )) if !stop.is_cancelled() => sleep(Duration::from_millis(50)).await,
                Err(error) => {
                    debug!(%account, turn_id = turn.id, %error, "a preview is not recorded");
                    return false;
                }
            }
        }
    }
}

/// A reply as far as it was shown.
#[derive(Debug, Default)]
struct Preview {
    text: String,
    grew: bool,
    /// The platform's id of the message.
    message: Option<String>,
    recorded: bool,
    /// What the message says now.
    shows: String,
    /// The text has outgrown one message: the first one says what it will say in the end.
    full: bool,
}

impl Preview {
    fn grow(&mut self, text: &str) {
        self.text.push_str(text);
        self.grew = !self.full;
    }

    fn restart(&mut self) {
        (self.text, self.grew, self.full) = (String::new(), false, false);
    }

    /// What is to be shown now; none: what is shown already.
    fn piece(&mut self, channel: &dyn Channel) -> Option<Piece> {
        self.grew = false;
        if self.text.trim().is_empty() {
            return None;
        }
        let mut pieces = channel.render(&self.text).into_iter();
        let first = pieces.next()?;
        self.full = pieces.next().is_some();
        (first.body != self.shows).then_some(first)
    }
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
