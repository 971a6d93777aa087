//! Telegram's Bot API as bots see it, and Telegram as its users see it, in one process: the first over real HTTP, the
//! second on the [`Handle`].
//!
//! It owns bots, chats, updates and their delivery; it never judges a bot, but records every request, so that a test can.
//! Where the documentation is silent it follows the source of the real server (github.com/tdlib/telegram-bot-api).
//! README.md says what it does not model.
//!
//! Reading order: [`server`] (the state, and how an update reaches its bot), [`queue`] and [`polls`] (`getUpdates`),
//! [`webhook`], [`chats`], [`text`] (entities), [`methods`], [`http`] (one request), [`faults`], [`record`], [`user`].

mod chats;
mod clock;
mod error;
mod faults;
mod http;
mod ids;
mod limits;
mod methods;
mod parameters;
mod polls;
mod queue;
mod record;
mod server;
#[cfg(test)]
mod tests;
mod text;
mod user;
mod webhook;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use chats::{Author, ChatKind, Content, ContentKind, Message};
pub use clock::{Clock, Hand};
pub use faults::{Fault, Injection, Rule};
pub use ids::{BotId, ChatId, MessageId, ThreadId, UpdateId, UserId};
pub use limits::{Rate, RateLimits};
pub use methods::Method;
pub use record::{Ended, Moment, Overlap, Recorded};
pub use text::{Entity, EntityKind, MAX_TEXT};
pub use user::{Pressed, Said, Saying};
pub use webhook::WebhookState;

use super::Label;
use server::Server;

/// A bot, as @BotFather makes one.
#[derive(Clone)]
pub struct Account {
    /// `<id>:<secret>`.
    pub token: String,
    pub name: String,
    /// Without `@`.
    pub username: String,
    /// In groups, a bot with privacy mode on (`false`, as new bots have it) gets only what is meant for it.
    pub reads_all_group_messages: bool,
}

impl Account {
    pub fn new(token: &str) -> Self {
        let mut account = Self {
            token: token.to_owned(),
            name: "A bot".into(),
            username: String::new(),
            reads_all_group_messages: false,
        };
        account.username = format!("bot{}_bot", account.id());
        account
    }

    /// 0: the token is none.
    pub fn id(&self) -> BotId {
        BotId(self.token.split(':').next().and_then(|id| id.parse().ok()).unwrap_or(0))
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("id", &self.id()).field("username", &self.username).finish_non_exhaustive()
    }
}

/// How long things take. Defaults are Telegram's; tests shorten them.
#[derive(Debug, Clone)]
pub struct Timing {
    /// The longest long poll, whatever it asks for.
    pub longest_poll: Duration,
    /// Conflicts that follow each other sooner are told that much later.
    pub repeated_conflict: Duration,
    /// A poll that repeats an offset sooner waits at least that long.
    pub repeated_poll: Duration,
    /// A poll that repeats an offset sooner gets one update.
    pub repeated_poll_at_once: Duration,
    /// A second `setWebhook` sooner is refused.
    pub between_webhooks: Duration,
    /// How long a webhook may take to answer.
    pub webhook_answer: Duration,
    /// What a second of a webhook's `Retry-After` lasts.
    pub retry_after_second: Duration,
    /// Before the third try it is twice that, and so on.
    pub webhook_retry: Duration,
    pub webhook_retry_most: Duration,
    /// A webhook that answers 410 for longer is deleted.
    pub webhook_gone: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            longest_poll: seconds(50),
            repeated_conflict: seconds(3),
            repeated_poll: seconds(3),
            repeated_poll_at_once: Duration::from_millis(500),
            between_webhooks: seconds(1),
            webhook_answer: seconds(60),
            retry_after_second: seconds(1),
            webhook_retry: seconds(1),
            webhook_retry_most: seconds(60),
            webhook_gone: seconds(23 * 3600),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    pub bots: Vec<Account>,
    pub clock: Clock,
    /// How long updates wait to be fetched; absent: for ever.
    pub keep_updates: Option<Duration>,
    /// Absent: a bot may send as much as it likes.
    pub rate_limits: Option<RateLimits>,
    pub timing: Timing,
    /// How many requests are remembered; the oldest are forgotten first.
    pub remembered: usize,
    /// Absent: pollers have no names, and each connection counts as one.
    pub label: Option<Label>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bots: Vec::new(),
            clock: Clock::system(),
            keep_updates: Some(Duration::from_secs(24 * 3600)),
            rate_limits: None,
            timing: Timing::default(),
            remembered: 10_000,
            label: None,
        }
    }
}

impl Options {
    /// The defaults, with these bots.
    pub fn with_bots(tokens: &[&str]) -> Self {
        Self { bots: tokens.iter().map(|token| Account::new(token)).collect(), ..Self::default() }
    }
}

/// A server that runs until it is stopped or dropped, and what Telegram's users do.
pub struct Handle {
    address: SocketAddr,
    server: Arc<Server>,
    task: JoinHandle<()>,
}

/// Starts a server; port 0 takes a free one.
///
/// # Errors
/// When the address cannot be bound, or a token is none.
pub async fn start(address: SocketAddr, options: Options) -> Result<Handle> {
    let bots = options.bots.clone();
    let listener = TcpListener::bind(address).await.with_context(|| format!("bind {address}"))?;
    let address = listener.local_addr().context("read the bound address")?;
    let server = Arc::new(Server::new(options));
    let task = tokio::spawn(super::connection::serve(listener, http::router(server.clone())));
    let handle = Handle { address, server, task };
    for bot in bots {
        handle.add_bot(bot)?;
    }
    Ok(handle)
}

impl Handle {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a client is configured with, without a slash at its end: a client adds `/bot<token>/<method>`.
    pub fn api_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a bot, or makes one anew.
    ///
    /// # Errors
    /// When its token is none.
    pub fn add_bot(&self, account: Account) -> Result<BotId> {
        let id = account.id();
        ensure!(id.0 > 0 && account.token.contains(':'), "a token is <id>:<secret>");
        self.server.add_bot(account);
        Ok(id)
    }

    /// Makes calls go wrong from now on.
    pub fn inject(&self, rule: Rule) -> Injection {
        self.server.faults.add(rule)
    }

    /// The requests that were remembered, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.server.record.requests()
    }

    /// How many requests were too many to remember.
    pub fn forgotten(&self) -> u64 {
        self.server.record.forgotten()
    }

    /// When two pollers polled for one bot's updates at once, as far as requests are remembered. Every `getUpdates`
    /// counts from its arrival to its end, whatever its answer.
    pub fn overlapping_polls(&self, bot: BotId) -> Vec<Overlap> {
        record::overlaps(&self.requests(), bot, Instant::now())
    }

    /// Updates that are not confirmed, oldest first.
    pub fn pending_updates(&self, bot: BotId) -> Vec<UpdateId> {
        let unix = self.server.unix();
        let pending = self.server.change_bot(bot, |bot| {
            bot.queue.drop_expired(unix);
            bot.queue.ids()
        });
        pending.unwrap_or_default()
    }

    /// Where the bot's updates are posted; absent: nowhere.
    pub fn webhook(&self, bot: BotId) -> Option<WebhookState> {
        self.server.read(|state| Some(state.bots.get(&bot)?.webhook.as_ref()?.state()))
    }

    /// Whether a long poll of the bot waits.
    pub fn is_polled(&self, bot: BotId) -> bool {
        self.server.read(|state| state.bots.get(&bot).is_some_and(|bot| bot.polls.is_waiting()))
    }

    /// What the bot sent to a chat and did not delete, oldest first, as it reads now.
    pub fn messages(&self, bot: BotId, chat: ChatId) -> Vec<Message> {
        self.server.read(|state| {
            let messages = state.chats.get(bot, chat).into_iter().flat_map(|chat| chat.messages());
            messages.filter(|message| message.from == Author::Bot(bot)).cloned().collect()
        })
    }

    /// The first message of the bot, in whichever chat, that is as wanted, now or after an edit. `wanted` must not ask this
    /// handle: it is called under its lock.
    ///
    /// # Errors
    /// When there is none within that time.
    pub async fn wait_for_message(
        &self,
        bot: BotId,
        wanted: impl Fn(&Message) -> bool,
        within: Duration,
    ) -> Result<Message> {
        let find = || {
            self.server.read(|state| {
                let of_bot = |message: &&Message| message.from == Author::Bot(bot) && wanted(message);
                state.chats.all_of(bot).find_map(|chat| chat.messages().find(of_bot)).cloned()
            })
        };
        self.wait_for("message", find, within).await
    }

    /// The first remembered request that is as wanted, as it is then: open, or ended. `wanted` must not ask this handle.
    ///
    /// # Errors
    /// When there is none within that time.
    pub async fn wait_for_request(&self, wanted: impl Fn(&Recorded) -> bool, within: Duration) -> Result<Recorded> {
        self.wait_for("request", || self.server.record.find(&wanted), within).await
    }

    /// Until a long poll of the bot waits on an empty queue.
    ///
    /// # Errors
    /// When none does within that time.
    pub async fn wait_for_poll(&self, bot: BotId, within: Duration) -> Result<()> {
        self.wait_for("poll", || self.is_polled(bot).then_some(()), within).await
    }

    /// Until the bot has confirmed this update, by an offset or by its webhook's answer.
    ///
    /// # Errors
    /// When it has not within that time.
    pub async fn wait_for_confirmation(&self, bot: BotId, update: UpdateId, within: Duration) -> Result<()> {
        let pending =
            || self.server.read(|state| state.bots.get(&bot).is_some_and(|bot| bot.queue.ids().contains(&update)));
        self.wait_for("confirmation", || (!pending()).then_some(()), within).await
    }

    /// Until the bot has confirmed all its updates.
    ///
    /// # Errors
    /// When it has not within that time.
    pub async fn wait_until_confirmed(&self, bot: BotId, within: Duration) -> Result<()> {
        let pending = || self.server.read(|state| state.bots.get(&bot).map_or(0, |bot| bot.queue.ids().len()));
        self.wait_for("confirmation", || (pending() == 0).then_some(()), within).await
    }

    async fn wait_for<T>(&self, what: &str, mut find: impl FnMut() -> Option<T>, within: Duration) -> Result<T> {
        let mut changed = self.server.changed.subscribe();
        let found = tokio::time::timeout(within, async {
            loop {
                if let Some(found) = find() {
                    return Some(found);
                }
                changed.changed().await.ok()?;
            }
        });
        match found.await {
            Ok(Some(found)) => Ok(found),
            Ok(None) | Err(_) => bail!("no such {what} within {within:?}"),
        }
    }

    /// Closes the listener and every connection, whatever is on it, and stops every webhook.
    pub async fn stop(mut self) {
        self.task.abort();
        // The task was cancelled: that is its only end.
        drop((&mut self.task).await);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
        // A webhook's task holds the server, which holds the webhook.
        self.server.change(|state| state.bots.values_mut().for_each(|bot| bot.webhook = None));
    }
}
