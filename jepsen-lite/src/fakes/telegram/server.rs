//! The whole state behind one lock, and how an update reaches whoever waits for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::chats::{Chats, Person};
use super::faults::Faults;
use super::ids::{BotId, ChatId, UpdateId};
use super::limits::Sent;
use super::polls::Polls;
use super::queue::Queue;
use super::record::Record;
use super::webhook::Webhook;
use super::{Account, Options};

/// Every kind of update there is; bots get all but the last three unless they ask otherwise.
const UPDATE_KINDS: [&str; 27] = [
    "message",
    "edited_message",
    "channel_post",
    "edited_channel_post",
    "inline_query",
    "chosen_inline_result",
    "callback_query",
    "custom_event",
    "custom_query",
    "shipping_query",
    "pre_checkout_query",
    "poll",
    "poll_answer",
    "my_chat_member",
    "chat_join_request",
    "chat_boost",
    "removed_chat_boost",
    "business_connection",
    "business_message",
    "edited_business_message",
    "deleted_business_messages",
    "purchased_paid_media",
    "managed_bot",
    "guest_message",
    "chat_member",
    "message_reaction",
    "message_reaction_count",
];
/// Pressed buttons that wait for an answer; the oldest become too old.
const CALLBACKS: usize = 1_000;

pub(super) struct Server {
    pub(super) options: Options,
    pub(super) record: Arc<Record>,
    pub(super) faults: Faults,
    state: Mutex<State>,
    /// A version of all that can be seen from outside.
    pub(super) changed: watch::Sender<u64>,
}

pub(super) struct State {
    pub(super) bots: BTreeMap<BotId, Bot>,
    pub(super) chats: Chats,
}

pub(super) struct Bot {
    pub(super) account: Account,
    pub(super) queue: Queue,
    pub(super) polls: Polls,
    pub(super) webhook: Option<Webhook>,
    /// When a webhook was last set.
    pub(super) webhook_set: Option<tokio::time::Instant>,
    /// Which kinds it wants; absent: the usual.
    pub(super) allowed: Option<BTreeSet<String>>,
    pub(super) commands: Value,
    pub(super) sent: Sent,
    /// Pressed buttons, and how the bot answered.
    pub(super) callbacks: VecDeque<(String, Option<Map<String, Value>>)>,
}

impl Server {
    pub(super) fn new(options: Options) -> Self {
        let changed = watch::Sender::new(0);
        let record = Arc::new(Record::new(options.remembered, changed.clone()));
        let state = State { bots: BTreeMap::new(), chats: Chats::default() };
        Self { options, record, faults: Faults::default(), state: Mutex::new(state), changed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state())
    }

    /// Tells everybody who waits.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.send_modify(|version| *version += 1);
        result
    }

    /// As [`Server::change`], for one bot.
    pub(super) fn change_bot<T>(&self, bot: BotId, change: impl FnOnce(&mut Bot) -> T) -> Option<T> {
        self.change(|state| state.bots.get_mut(&bot).map(change))
    }

    pub(super) fn unix(&self) -> Duration {
        self.options.clock.unix()
    }

    pub(super) fn add_bot(&self, account: Account) {
        self.change(|state| {
            let (first_name, username) = (account.name.clone(), Some(account.username.clone()));
            state.chats.add_person(account.id().0, Person { first_name, username, is_bot: true });
            let bot = Bot {
                queue: Queue::new(self.options.keep_updates),
                account,
                polls: Polls::default(),
                webhook: None,
                webhook_set: None,
                allowed: None,
                commands: json!([]),
                sent: Sent::default(),
                callbacks: VecDeque::new(),
            };
            state.bots.insert(bot.account.id(), bot);
        });
    }
}

impl State {
    /// Whose token that is.
    pub(super) fn bot_of(&self, token: &str) -> Option<BotId> {
        self.bots.values().find(|bot| bot.account.token == token).map(|bot| bot.account.id())
    }

    /// `None`: the bot does not want it, or its queue is full.
    pub(super) fn update(
        &mut self,
        bot: BotId,
        chat: ChatId,
        kind: &str,
        value: Value,
        now: Duration,
    ) -> Option<UpdateId> {
        let bot = self.bots.get_mut(&bot)?;
        if !bot.wants(kind) {
            return None;
        }
        let id = bot.queue.push(chat, kind, value, now)?;
        bot.polls.wake();
        if let Some(webhook) = &bot.webhook {
            webhook.wake();
        }
        Some(id)
    }
}

impl Bot {
    fn wants(&self, kind: &str) -> bool {
        match &self.allowed {
            Some(allowed) => allowed.contains(kind),
            None => usual_kinds().contains(&kind),
        }
    }

    /// As `allowed_updates` says; what cannot be read changes nothing, and none that is known means the usual ones.
    pub(super) fn set_allowed(&mut self, allowed: Option<&Value>) {
        let Some(list) = allowed.and_then(Value::as_array) else { return };
        let Some(names) = list.iter().map(Value::as_str).collect::<Option<Vec<_>>>() else { return };
        let names = names.into_iter().map(str::to_ascii_lowercase);
        let known: BTreeSet<_> = names.filter(|name| UPDATE_KINDS.contains(&name.as_str())).collect();
        self.allowed = Some(known).filter(|known| !known.is_empty());
    }

    pub(super) fn add_callback(&mut self, id: String) {
        if self.callbacks.len() >= CALLBACKS {
            self.callbacks.pop_front();
        }
        self.callbacks.push_back((id, None));
    }
}

fn usual_kinds() -> &'static [&'static str] {
    &UPDATE_KINDS[..UPDATE_KINDS.len() - 3]
}
