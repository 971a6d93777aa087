//! Discord that is not Discord: its gateway and its REST API as its documentation describes them, with the users in the hand
//! of the test and every failure on request.
//!
//! [`start`] gives a [`Handle`], which is everything but the bot: users who say things, the operator of the platform who breaks it,
//! and the witness who knows what was asked, sent, and by whom a session was held. The bot comes over the network, by whatever
//! client library it has.
//!
//! Inside: `world` (users, channels, messages), `sessions` (numbered events), `state` (both, and what one means for the other),
//! `gateway` and `rest` (the ways in), `limits`, `faults`, `record`. All state is behind one lock, and whoever waits is woken by every
//! change of it: a fake for tests, not for load.

pub mod close;
mod faults;
mod gateway;
mod intents;
mod limits;
mod multipart;
mod record;
mod rest;
mod sessions;
mod state;
#[cfg(test)]
mod tests;
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::Label;
use super::connection::serve;
use faults::Order;
pub use faults::{Fault, Route, Which};
pub use intents::MESSAGE_CONTENT;
pub use limits::{Limit, Limits, StartLimit};
pub use record::{Answer, By, Door, Held, Moment, Overlap, Recorded, Request, Shard, What, held, overlaps};
use state::Shared;
use world::Draft;
pub use world::{Id, Message};

/// What Discord asks for.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(41_250);
/// What a client may send to the gateway.
const SENDS_PER_MINUTE: usize = 120;

#[derive(Debug, Clone)]
pub struct Options {
    /// Without `Bot ` before it.
    pub token: String,
    /// Absent: Discord's. With another one, heartbeats do not count as sends.
    pub heartbeat_interval: Option<Duration>,
    /// Privileged intents that are enabled for the application, as bits.
    pub privileged_intents: u64,
    /// How many shards `GET /gateway/bot` recommends.
    pub shards: u32,
    pub start_limit: StartLimit,
    /// How long a session can be resumed after its connection. Discord does not say; it is some minutes.
    pub session_lifetime: Duration,
    /// How long `enforce_nonce` looks back. Discord says "the past few minutes".
    pub nonce_lifetime: Duration,
    pub limits: Limits,
    /// How many entries the record keeps; the oldest are forgotten first.
    pub remembered: usize,
    /// Absent: the record names nobody.
    pub label: Option<Label>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: "fake-token".to_owned(),
            heartbeat_interval: None,
            privileged_intents: MESSAGE_CONTENT,
            shards: 1,
            start_limit: StartLimit::default(),
            session_lifetime: Duration::from_secs(180),
            nonce_lifetime: Duration::from_secs(300),
            limits: Limits::default(),
            remembered: 100_000,
            label: None,
        }
    }
}

/// A session that can be resumed, or is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionView {
    pub id: String,
    pub shard: Shard,
    /// The number of its last event.
    pub seq: u64,
    /// Absent: nobody is connected.
    pub peer: Option<SocketAddr>,
}

/// A fake that runs until it is stopped or dropped.
pub struct Handle {
    address: SocketAddr,
    resume_address: SocketAddr,
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

/// Starts a fake on `address` and, for resumed sessions, on a free port of the same host; port 0 takes a free one.
///
/// # Errors
/// When an address cannot be bound.
pub async fn start(address: SocketAddr, options: Options) -> Result<Handle> {
    let bind = async |address: SocketAddr| -> Result<(TcpListener, SocketAddr)> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("bind {address}"))?;
        let address = listener.local_addr().context("read the bound address")?;
        Ok((listener, address))
    };
    let (listener, address) = bind(address).await?;
    let (resume_listener, resume_address) = bind(SocketAddr::new(address.ip(), 0)).await?;
    let shared = Arc::new(Shared::new(options, address, resume_address));
    let router = |door| Router::new().fallback(rest::answer).with_state((shared.clone(), door));
    let tasks = [
        tokio::spawn(serve(listener, router(Door::Gateway))),
        tokio::spawn(serve(resume_listener, router(Door::Resume))),
    ];
    Ok(Handle { address, resume_address, shared, tasks })
}

impl Drop for Handle {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Where it is.
impl Handle {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What stands for `https://discord.com` in a client: the paths begin with `/api/v10` after it.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn gateway_url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Another address than [`Self::gateway_url`], as in reality.
    pub fn resume_gateway_url(&self) -> String {
        format!("ws://{}", self.resume_address)
    }

    /// Closes the listeners and every connection, whatever is on it.
    pub async fn stop(mut self) {
        for task in &mut self.tasks {
            task.abort();
            // The task was cancelled: that is its only end.
            drop(task.await);
        }
    }
}

/// The users' side.
impl Handle {
    pub fn bot(&self) -> Id {
        self.shared.look().world.bot
    }

    pub fn user(&self, name: &str) -> Id {
        self.shared.change(|state| state.world.add_user(name))
    }

    /// A guild that everybody is in, the bot too; live sessions hear of it.
    pub fn guild(&self, name: &str) -> Id {
        self.shared.change(|state| state.add_guild(name))
    }

    /// A text channel.
    ///
    /// # Errors
    /// When there is no such guild.
    pub fn channel(&self, guild: Id, name: &str) -> Result<Id> {
        self.shared.change(|state| {
            let channel = state.world.add_channel(guild, name).with_context(|| format!("no guild {guild}"))?;
            state.tell_channel("CHANNEL_CREATE", channel);
            Ok(channel)
        })
    }

    /// The channel of this user and the bot.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn dm(&self, user: Id) -> Result<Id> {
        self.shared.change(|state| state.world.dm(user)).with_context(|| format!("no user {user}"))
    }

    /// A thread, on a message or by itself.
    ///
    /// # Errors
    /// When the channel is not one of a guild, or the message is not in it, or has a thread.
    pub fn thread(&self, channel: Id, on: Option<Id>, user: Id, name: &str) -> Result<Id> {
        self.shared.change(|state| {
            if let Some(on) = on {
                let there = state.world.channel(channel).is_some_and(|channel| channel.message(on).is_some());
                ensure!(there, "no message {on} in {channel}");
                ensure!(state.world.channel(on).is_none(), "message {on} has a thread");
            }
            state.add_thread(channel, on, user, name).with_context(|| format!("{channel} is no channel of a guild"))
        })
    }

    /// A message of a user; `<@id>` in it mentions somebody.
    ///
    /// # Errors
    /// When there is no such channel or user, or a user speaks in another one's DM.
    pub fn say(&self, channel: Id, user: Id, text: &str) -> Result<Id> {
        self.post(channel, user, text, None)
    }

    /// A message of a user that answers another message of the channel.
    ///
    /// # Errors
    /// As [`Self::say`], and when there is no such message.
    pub fn reply(&self, channel: Id, user: Id, to: Id, text: &str) -> Result<Id> {
        self.post(channel, user, text, Some(to))
    }

    fn post(&self, channel: Id, user: Id, text: &str, reference: Option<Id>) -> Result<Id> {
        self.shared.change(|state| {
            ensure!(user != state.world.bot && state.world.user(user).is_some(), "no user {user}");
            let place = state.world.channel(channel).with_context(|| format!("no channel {channel}"))?;
            match place.place {
                world::Place::Dm { user: other } => ensure!(other == user, "{channel} is the DM of {other}"),
                world::Place::Guild { .. } | world::Place::Thread { .. } => {}
            }
            if let Some(reference) = reference {
                place.message(reference).with_context(|| format!("no message {reference} in {channel}"))?;
            }
            let draft = Draft { content: text.to_owned(), reference, ..Draft::default() };
            let message = state.add_message(channel, user, draft).with_context(|| format!("no channel {channel}"))?;
            Ok(message.id)
        })
    }

    /// A user changes what a message says.
    ///
    /// # Errors
    /// When there is no such message.
    pub fn edit(&self, channel: Id, message: Id, text: &str) -> Result<()> {
        let edited = self.shared.change(|state| state.edit_message(channel, message, text));
        edited.map(drop).with_context(|| format!("no message {message} in {channel}"))
    }

    /// # Errors
    /// When there is no such message.
    pub fn delete(&self, channel: Id, message: Id) -> Result<()> {
        let deleted = self.shared.change(|state| state.delete_message(channel, message));
        deleted.with_context(|| format!("no message {message} in {channel}"))
    }

    /// Whether the bot is refused with 50007 in this user's DM.
    pub fn refuse_dms(&self, user: Id, refused: bool) {
        self.shared.change(|state| {
            if let Some(user) = state.world.user_mut(user) {
                user.refuses_dms = refused;
            }
        });
    }

    /// Whether the bot is refused with 50013 in this channel.
    pub fn mute(&self, channel: Id, muted: bool) {
        self.shared.change(|state| {
            if let Some(channel) = state.world.channel_mut(channel) {
                channel.muted = muted;
            }
        });
    }

    /// All that was said there, oldest first, by whomever; none for an unknown channel.
    pub fn messages(&self, channel: Id) -> Vec<Message> {
        let state = self.shared.look();
        state.world.channel(channel).map(|channel| channel.messages.iter().cloned().collect()).unwrap_or_default()
    }

    /// How often the bot showed that it was typing there.
    pub fn typing(&self, channel: Id) -> u64 {
        self.shared.look().world.channel(channel).map_or(0, |channel| channel.typing)
    }
}

/// The side of who runs the platform, and breaks it.
impl Handle {
    /// Does `fault` to the next `times` requests of this kind, after those that are planned for it already.
    pub fn fail(&self, route: Route, times: u32, fault: Fault) {
        self.shared.change(|state| state.faults.plan(route, times, fault));
    }

    /// Forgets the faults that no request has met.
    pub fn clear_faults(&self) {
        self.shared.change(|state| state.faults.clear());
    }

    fn order(&self, which: &Which, order: Order) -> usize {
        self.shared.change(|state| state.order(which, order))
    }

    /// Asks for a reconnect (op 7). This and the following answer how many connections are meant.
    pub fn reconnect(&self, which: &Which) -> usize {
        self.order(which, Order::Reconnect)
    }

    /// Takes the session away (op 9); it can be resumed or is gone.
    pub fn invalidate(&self, which: &Which, resumable: bool) -> usize {
        self.order(which, Order::Invalidate { resumable })
    }

    pub fn close(&self, which: &Which, code: u16) -> usize {
        self.order(which, Order::Close(code))
    }

    /// Closes the socket without a close frame.
    pub fn drop_connections(&self, which: &Which) -> usize {
        self.order(which, Order::Drop)
    }

    /// Says nothing more on the connection, and does not close it either; only `close` and `drop_connections` end that.
    pub fn hang(&self, which: &Which) -> usize {
        self.order(which, Order::Hang)
    }

    /// Leaves heartbeats without their answer, or answers them again.
    pub fn acknowledge(&self, which: &Which, acknowledges: bool) -> usize {
        self.shared.change(|state| state.meant(which).map(|link| link.acknowledges = acknowledges).count())
    }

    /// Ends all sessions that nobody is connected to, as if their time were over.
    pub fn expire_sessions(&self) {
        self.shared.change(|state| state.sessions.end_left());
    }
}

/// The witness's side.
impl Handle {
    /// Everything that is remembered, in the order in which it happened.
    pub fn record(&self) -> Vec<Recorded> {
        self.shared.look().record.entries().cloned().collect()
    }

    /// How many entries were too many to remember.
    pub fn forgotten(&self) -> usize {
        self.shared.look().record.forgotten()
    }

    /// In which times which connection held a session.
    ///
    /// # Errors
    /// When part of the record was forgotten, and so nothing is certain.
    pub fn held(&self) -> Result<Vec<Held>> {
        let state = self.shared.look();
        let forgotten = state.record.forgotten();
        ensure!(forgotten == 0, "{forgotten} entries of the record were forgotten");
        Ok(held(state.record.entries()))
    }

    /// Every time in which two peers held sessions of a shard at once; `label` says whose an address is.
    ///
    /// # Errors
    /// When part of the record was forgotten, and so nothing is certain.
    pub fn overlaps<L: PartialEq>(&self, label: impl Fn(SocketAddr) -> L) -> Result<Vec<Overlap<L>>> {
        Ok(overlaps(&self.held()?, label))
    }

    pub fn sessions(&self) -> Vec<SessionView> {
        let mut state = self.shared.look();
        let state = &mut *state;
        let view = |(id, session): (&String, &mut sessions::Session)| SessionView {
            id: id.clone(),
            shard: session.shard,
            seq: session.last(),
            peer: session.connection.and_then(|number| Some(state.links.get(&number)?.peer)),
        };
        state.sessions.live().map(view).collect()
    }

    /// How many answers of this window were 401, 403 or 429.
    pub fn invalid_requests(&self) -> u32 {
        self.shared.look().limits.invalid()
    }

    /// How many sessions may still be started in this window.
    pub fn starts_remaining(&self) -> u32 {
        self.shared.look().starts.remaining()
    }

    /// Whether the bot identified so often that its token is void.
    pub fn token_is_reset(&self) -> bool {
        self.shared.look().token_is_reset()
    }

    /// Waits until `look` finds something; it looks after every change.
    ///
    /// # Errors
    /// When it has found nothing `within` this time; the error names `what` was waited for.
    pub async fn wait<T>(&self, within: Duration, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + within;
        let mut changes = self.shared.changes();
        loop {
            changes.borrow_and_update();
            if let Some(found) = look(self) {
                return Ok(found);
            }
            match timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                // The sender is in `shared`, which we have.
                Ok(Err(_)) | Err(_) => bail!("no {what} within {within:?}"),
            }
        }
    }

    /// The first message of the channel that is so, as it is then.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn wait_for_message(
        &self,
        channel: Id,
        within: Duration,
        is: impl Fn(&Message) -> bool,
    ) -> Result<Message> {
        let what = format!("such message in channel {channel}");
        self.wait(within, &what, |handle| handle.messages(channel).into_iter().find(&is)).await
    }

    /// The first remembered entry that is so.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn wait_for_entry(&self, within: Duration, is: impl Fn(&Recorded) -> bool) -> Result<Recorded> {
        let find = |handle: &Self| handle.shared.look().record.entries().find(|entry| is(entry)).cloned();
        self.wait(within, "such entry in the record", find).await
    }

    /// The connected sessions, once there are so many.
    ///
    /// # Errors
    /// When there are not, in time.
    pub async fn wait_for_sessions(&self, count: usize, within: Duration) -> Result<Vec<SessionView>> {
        let connected = |handle: &Self| {
            let all: Vec<_> = handle.sessions().into_iter().filter(|session| session.peer.is_some()).collect();
            (all.len() == count).then_some(all)
        };
        self.wait(within, &format!("moment with {count} connected sessions"), connected).await
    }
}
