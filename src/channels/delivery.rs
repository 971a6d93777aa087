//! What was committed, on its way to the platform: by the account's owner alone, each chat in its order.
//!
//! Before a piece is sent it is claimed, and afterwards its fate is committed, both under the owner's token. So a piece is
//! sent twice only if its fate is not known - no answer came, or the owner died in between - and the account's policy says
//! so. The deadline of the tenure is asked of the clock right before each call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use indexmap::IndexMap;
use openclaw_config::channels::UnknownPolicy;
use openclaw_proto::ids::{ChannelAccount, SeqNum, SessionKey};
use openclaw_proto::state::update_intent::Step;
use openclaw_proto::state::{Intent, IntentState};
use openclaw_raft::planted::{Bug, planted};
use openclaw_raft::trace;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{Instrument, Span, debug, info, trace_span, warn};

use super::health::Health;
use super::outlet::Outlet;
use super::writing::Writing;
use super::{SendError, SendKey, Sent};
use crate::message::{Piece, ReplyAddress};
use crate::store::channels::OwnerError;
use crate::store::{CommitError, Consistency, Event};

/// Of one commit or read.
const STORE: Duration = Duration::from_secs(5);
/// Events may be missed, and time passes: the outbox is looked at anyway.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks, at least.
const LOOK_APART: Duration = Duration::from_millis(5);
/// Intents looked at in one go.
const PAGE: usize = 256;
/// Chats that are delivered to at once.
const MAX_CHATS: usize = 32;
/// Calls without an answer, after which a message that may be sent again is not: each of them may have arrived.
const MAX_UNKNOWNS: u32 = 20;
/// Between two attempts at one piece, at most, unless the platform asked for more.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Delivers what one account has to send, for one tenure.
pub(super) struct Delivery {
    shared: Arc<Shared>,
}

struct Shared {
    outlet: Outlet,
    writing: Writing,
    health: Health,
    /// Since when each chat in which something waits has had nothing sent. Later than now: the platform asked for a pause.
    standing: Mutex<BTreeMap<String, Instant>>,
}

/// Why a chat's delivery stopped.
enum Stop {
    /// The tenure is over, or the account another's.
    Over,
    /// Nothing can be done before then.
    Until(Instant),
}

impl Delivery {
    pub(super) fn new(outlet: Outlet, writing: Writing, health: Health) -> Self {
        Self { shared: Arc::new(Shared { outlet, writing, health, standing: Mutex::default() }) }
    }

    /// Runs until it is to finish, or until the tenure ends; what is being sent then is dropped.
    pub(super) async fn run(self) {
        let ended = self.shared.outlet.tenure.ended.clone();
        let (account, metrics) = (self.shared.outlet.channel.account().clone(), self.shared.outlet.metrics.clone());
        let health = self.shared.health.clone();
        ended.run_until_cancelled(self.deliver()).await;
        // What waits is for the next owner to tell.
        for gauge in [&metrics.channel_outbox_waiting, &metrics.channel_outbox_oldest] {
            gauge.with_label_values(&[account.as_str()]).set(0);
        }
        health.waits(&account, None);
    }

    async fn deliver(self) {
        let account = self.shared.outlet.channel.account().clone();
        let mut events = self.shared.outlet.store.events();
        let mut busy: BTreeMap<String, Instant> = BTreeMap::new();
        let mut chats: JoinSet<(String, Stop)> = JoinSet::new();
        loop {
            if self.shared.outlet.finish.is_cancelled() {
                while chats.join_next().await.is_some() {}
                return;
            }
            let now = Instant::now();
            busy.retain(|_, until| *until > now);
            let waiting = self.waiting(&account);
            self.show(&account, &waiting);
            for (chat, intents) in waiting {
                if !busy.contains_key(&chat) && chats.len() < MAX_CHATS {
                    // Until its task ends, and says how long.
                    busy.insert(chat.clone(), now + Duration::from_secs(24 * 60 * 60));
                    let shared = self.shared.clone();
                    chats.spawn(async move {
                        let stop = shared.deliver_chat(intents).await;
                        (chat, stop)
                    });
                }
            }
            let mut at = busy.values().min().copied().unwrap_or(now + LOOK_EVERY).min(now + LOOK_EVERY);
            // A look reads all that waits, so what changes meanwhile is looked at together.
            let soon = now + LOOK_APART;
            while Instant::now() < at && !self.shared.outlet.finish.is_cancelled() {
                tokio::select! {
                    event = events.next() => match event {
                        Some(Event::OutboxChanged { account: of, .. }) if of == account.as_str() => at = at.min(soon),
                        Some(Event::Lagged) => at = at.min(soon),
                        Some(
                            Event::OutboxChanged { .. }
                            | Event::TurnRunnable(_)
                            | Event::TurnEnded(_)
                            | Event::LeaseChanged(_),
                        ) => {}
                        None => return,
                    },
                    Some(done) = chats.join_next() => match done {
                        Ok((_, Stop::Over)) => return,
                        Ok((chat, Stop::Until(until))) => {
                            busy.insert(chat, until);
                            at = at.min(until.max(soon));
                        }
                        Err(error) => warn!(%account, %error, "a delivery ended unexpectedly"),
                    },
                    () = sleep_until(at) => {}
                    () = self.shared.outlet.finish.cancelled() => {}
                }
            }
        }
    }

    fn show(&self, account: &ChannelAccount, waiting: &IndexMap<String, Vec<Intent>>) {
        let metrics = &self.shared.outlet.metrics;
        let set = |gauge: &prometheus::IntGaugeVec, value: u64| {
            gauge.with_label_values(&[account.as_str()]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&metrics.channel_outbox_waiting, waiting.values().map(|intents| intents.len() as u64).sum());
        let oldest = waiting.values().filter_map(|intents| intents.first()).map(|intent| intent.created_ms).min();
        set(&metrics.channel_outbox_oldest, oldest.map_or(0, |since| age_of(since).as_secs()));
        let now = Instant::now();
        let longest = {
            let mut standing = self.shared.standing.lock();
            standing.retain(|chat, _| waiting.contains_key(chat));
            for chat in waiting.keys().filter(|chat| !chat.is_empty()) {
                standing.entry(chat.clone()).or_insert(now);
            }
            standing.values().min().copied()
        };
        self.shared.health.waits(account, longest);
    }

    /// What can be sent, by chat, each in its order; the chat that has waited longest first, so that owners who follow
    /// each other quickly pass nobody over. A chat whose first intent waits for an operator or has failed goes on with
    /// the next.
    fn waiting(&self, account: &ChannelAccount) -> IndexMap<String, Vec<Intent>> {
        let mut chats: IndexMap<String, Vec<Intent>> = IndexMap::new();
        let mut after = 0;
        loop {
            let page = match self.shared.outlet.store.outbox(account, after, PAGE) {
                Ok(page) => page,
                Err(error) => {
                    warn!(%account, %error, "the outbox cannot be read");
                    return chats;
                }
            };
            let Some(last) = page.last() else { return chats };
            after = last.id;
            let full = page.len() == PAGE;
            for intent in page {
                let held = intent.state() == IntentState::Unknown && self.shared.holds(&intent);
                if intent.state() != IntentState::Failed && !held {
                    let chat = intent.to.as_ref().map(|to| to.chat.clone()).unwrap_or_default();
                    chats.entry(chat).or_default().push(intent);
                }
            }
            if !full {
                return chats;
            }
        }
    }
}

impl Shared {
    /// Whether an intent whose last call had no answer is for an operator to decide about. An edit may be repeated.
    fn holds(&self, intent: &Intent) -> bool {
        self.outlet.settings.unknown == UnknownPolicy::Hold && !replaces_preview(intent) && !planted(Bug::RepeatedSend)
    }

    /// Something was sent in the chat, or the platform asked to wait until then.
    fn moved(&self, chat: &str, at: Instant) {
        if let Some(since) = self.standing.lock().get_mut(chat) {
            *since = at.max(*since);
        }
    }

    async fn deliver_chat(&self, intents: Vec<Intent>) -> Stop {
        for intent in intents {
            let traced = if intent.trace_parent.is_empty() {
                Span::none()
            } else {
                trace_span!("deliver", account = intent.account, intent = intent.id, otel.kind = "producer")
            };
            trace::follow(&traced, &intent.trace_parent);
            if let Err(stop) = self.deliver_one(intent).instrument(traced).await {
                return stop;
            }
        }
        // New ones may have come: look again at once.
        Stop::Until(Instant::now())
    }

    async fn deliver_one(&self, mut intent: Intent) -> Result<(), Stop> {
        let id = intent.id;
        let Some(to) = intent.to.as_ref().and_then(address) else {
            return self.say(id, Step::Failed("it has no address".to_owned())).await;
        };
        match intent.state() {
            IntentState::Sending if intent.fencing_token == self.outlet.tenure.fencing_token => {
                // Claimed by this owner, whose call was dropped with its answer.
                self.say(id, Step::Unknown("no answer came".to_owned())).await?;
            }
            IntentState::Sending => {
                info!(account = %to.account, intent = id, "the owner before was sending this: unknown");
                self.say(id, Step::Unknown("its owner was lost while it was sent".to_owned())).await?;
            }
            IntentState::Pending | IntentState::Unknown => {}
            IntentState::Failed | IntentState::Unspecified => return Ok(()),
        }
        if intent.state() == IntentState::Sending && self.holds(&intent) {
            return Ok(());
        }
        if let Some(message) = self.writing.settle(&intent.turn_id).await
            && intent.state() == IntentState::Pending
            && intent.pieces_sent == 0
            && intent.preview != message
        {
            // The turn ended before that could be recorded with it.
            self.say(id, Step::Previewed(message.clone())).await?;
            intent.preview = message;
        }
        let pieces = match self.pieces(&intent).await {
            Ok(pieces) => pieces,
            Err(Some(reason)) => return self.say(id, Step::Failed(reason)).await,
            Err(None) => return Err(Stop::Until(Instant::now() + LOOK_EVERY)),
        };
        while let Some(piece) = pieces.get(intent.pieces_sent as usize) {
            let age = age_of(intent.created_ms);
            if age > self.outlet.settings.max_age {
                return self
                    .say(id, Step::Failed(format!("it is {} s old, and not sent any more", age.as_secs())))
                    .await;
            }
            let last = intent.pieces_sent as usize + 1 == pieces.len();
            // Its turn first, then the claim: what is claimed when an owner dies is unknown to the next.
            self.outlet.throttle.wait().await;
            if self.outlet.finish.is_cancelled() {
                return Err(Stop::Until(Instant::now()));
            }
            self.say(id, Step::Claimed(true)).await?;
            if self.outlet.tenure.is_over() {
                return Err(Stop::Over);
            }
            match self.call(&to, &intent, piece).await {
                Ok(sent) if last => {
                    let channel = self.outlet.channel.account().channel();
                    let took = age_of(intent.created_ms).as_secs_f64();
                    self.outlet.metrics.channel_delivery_duration.with_label_values(&[channel]).observe(took);
                    self.moved(&to.chat, Instant::now());
                    return self.delivered(id, sent.message_id).await;
                }
                Ok(sent) => {
                    self.moved(&to.chat, Instant::now());
                    self.say(id, Step::Sent(sent.message_id)).await?;
                    intent.pieces_sent += 1;
                    intent.attempts = 0;
                    self.rest().await;
                }
                Err(SendError::Refused(reason)) if replaces_preview(&intent) => {
                    debug!(account = %to.account, intent = id, reason, "the preview cannot be edited");
                    self.say(id, Step::PreviewLost(reason)).await?;
                    intent.preview.clear();
                }
                Err(SendError::Unknown(reason)) if replaces_preview(&intent) => {
                    self.say(id, Step::Unsent(reason)).await?;
                    return Err(Stop::Until(Instant::now() + patience(intent.attempts)));
                }
                Err(SendError::Refused(reason)) => {
                    warn!(account = %to.account, intent = id, reason, "the platform refuses a message");
                    return self.say(id, Step::Failed(reason)).await;
                }
                Err(SendError::Later { reason, after, asked }) => {
                    debug!(account = %to.account, intent = id, reason, ?after, "not sent yet");
                    let wait = if asked { after } else { after.max(patience(intent.attempts)) };
                    if asked {
                        self.moved(&to.chat, Instant::now() + wait);
                    }
                    // It was not sent, so only its age ends this.
                    self.say(id, Step::Unsent(reason)).await?;
                    return Err(Stop::Until(Instant::now() + wait));
                }
                Err(SendError::Unknown(reason)) => {
                    warn!(account = %to.account, intent = id, reason, "a message may or may not have been sent");
                    self.say(id, Step::Unknown(reason.clone())).await?;
                    if self.outlet.settings.unknown == UnknownPolicy::Hold {
                        return Ok(());
                    }
                    if intent.unknowns + 1 >= MAX_UNKNOWNS {
                        let reason = format!("no answer to {} attempts: {reason}", intent.unknowns + 1);
                        return self.say(id, Step::Failed(reason)).await;
                    }
                    return Err(Stop::Until(Instant::now() + patience(intent.attempts)));
                }
            }
        }
        // Rendered otherwise by another release, it has fewer pieces than were sent.
        self.say(id, Step::Claimed(true)).await?;
        self.delivered(id, String::new()).await
    }

    async fn call(&self, to: &ReplyAddress, intent: &Intent, piece: &Piece) -> Result<Sent, SendError> {
        if replaces_preview(intent) {
            let message_id = intent.preview.clone();
            return self.outlet.edit(to, &message_id, piece).await.map(|()| Sent { message_id });
        }
        let key = SendKey { intent_id: intent.id, piece: intent.pieces_sent };
        self.outlet.send(to, piece, &key).await
    }

    async fn delivered(&self, id: u64, message_id: String) -> Result<(), Stop> {
        self.say(id, Step::Delivered(message_id)).await?;
        self.rest().await;
        Ok(())
    }

    /// Commits what became of an intent, for as long as it takes: what was sent must be known as sent.
    async fn say(&self, id: u64, step: Step) -> Result<(), Stop> {
        let account = self.outlet.channel.account();
        loop {
            let said = self
                .outlet
                .store
                .update_intent(account, id, self.outlet.tenure.fencing_token, step.clone(), STORE)
                .await;
            match said {
                Ok(()) => return Ok(()),
                Err(OwnerError::Fenced) => return Err(Stop::Over),
                // Said before, by an attempt whose answer was lost; or an operator was faster. The row tells.
                Err(OwnerError::Conflict | OwnerError::NotFound) => return Err(Stop::Until(Instant::now())),
                Err(OwnerError::Commit(
                    error @ (CommitError::NoQuorum { .. } | CommitError::EffectUnknown { .. } | CommitError::Busy),
                )) => {
                    debug!(%account, %error, "not committed yet");
                    sleep(Duration::from_millis(50)).await;
                }
                Err(OwnerError::Commit(error)) => {
                    warn!(%account, intent = id, %error, "what became of a message cannot be committed");
                    return Err(Stop::Until(Instant::now() + LOOK_EVERY));
                }
            }
        }
    }

    /// The text in pieces. `Err(None)`: not to be had now.
    async fn pieces(&self, intent: &Intent) -> Result<Vec<Piece>, Option<String>> {
        if intent.session_key.is_empty() {
            return Ok(self.outlet.channel.render(&intent.text));
        }
        let key = SessionKey::parse(intent.session_key.as_str()).map_err(|error| Some(error.to_string()))?;
        let after = SeqNum(intent.seq.saturating_sub(1));
        let read = self.outlet.store.entries(&key, after, 1, Consistency::Stale, STORE).await.map_err(|_| None)?;
        match read.value.into_iter().find(|entry| entry.seq == intent.seq) {
            Some(entry) => Ok(self.outlet.channel.render(&entry.text)),
            None => Err(Some("its conversation was deleted".to_owned())),
        }
    }

    /// Between two messages to one chat.
    async fn rest(&self) {
        self.outlet.finish.run_until_cancelled(sleep(self.outlet.pace.per_chat)).await;
    }
}

/// How long to wait after an attempt that failed, `before` of which had failed before.
fn patience(before: u32) -> Duration {
    LOOK_EVERY.saturating_mul(2_u32.saturating_pow(before)).min(LONGEST_WAIT)
}

/// Whether its next piece takes the place of what showed the reply while it was written.
fn replaces_preview(intent: &Intent) -> bool {
    intent.pieces_sent == 0 && !intent.preview.is_empty()
}

/// A stored address, as channels take it.
pub(super) fn address(to: &openclaw_proto::state::ReplyAddress) -> Option<ReplyAddress> {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Some(ReplyAddress {
        account: ChannelAccount::parse(to.account.as_str()).ok()?,
        chat: to.chat.clone(),
        thread: given(&to.thread),
        message: given(&to.message),
    })
}

/// By this machine's clock; the other end of the comparison is the leader's.
fn age_of(created_ms: u64) -> Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(created_ms))
}
