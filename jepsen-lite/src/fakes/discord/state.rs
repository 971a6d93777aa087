//! All that a fake is, behind one lock, and what happens in it when something changes.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::Label;
use super::super::connection::Connection;
use super::faults::{Faults, Order, Which};
use super::limits::{RateLimits, Starts};
use super::record::{By, Door, Moment, Record, Recorded, Shard, What};
use super::sessions::{ResumeError, Sessions};
use super::world::{Draft, Id, Message, World};
use super::{Options, SENDS_PER_MINUTE, close, intents};

pub(super) struct Shared {
    label: Option<Label>,
    state: Mutex<State>,
    /// Counts changes, so that those who wait look again.
    changed: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(options: Options, gateway: SocketAddr, resume: SocketAddr) -> Self {
        let label = options.label.clone();
        let state = State {
            world: World::new(),
            sessions: Sessions::new(options.session_lifetime),
            limits: RateLimits::new(options.limits),
            starts: Starts::new(options.start_limit),
            faults: Faults::default(),
            record: Record::new(options.remembered),
            links: BTreeMap::new(),
            opened: 0,
            token: Some(options.token.clone()),
            gateway,
            resume,
            options,
        };
        Self { label, state: Mutex::new(state), changed: watch::Sender::new(0) }
    }

    pub(super) fn name(&self, connection: &Connection) -> Option<String> {
        connection.name(self.label.as_ref())
    }

    /// For reading: nobody is told.
    pub(super) fn look(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.look());
        self.changed.send_modify(|changes| *changes = changes.wrapping_add(1));
        result
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

pub(super) struct State {
    pub(super) options: Options,
    /// Absent: it was reset, and no request knows the new one.
    token: Option<String>,
    pub(super) gateway: SocketAddr,
    resume: SocketAddr,
    pub(super) world: World,
    pub(super) sessions: Sessions,
    pub(super) limits: RateLimits,
    pub(super) starts: Starts,
    pub(super) faults: Faults,
    pub(super) record: Record,
    /// Open connections to the gateway.
    pub(super) links: BTreeMap<u64, Link>,
    opened: u64,
}

pub(super) struct Link {
    pub(super) peer: SocketAddr,
    caller: Option<String>,
    pub(super) session: Option<String>,
    orders: VecDeque<Order>,
    pub(super) acknowledges: bool,
    /// When it sent something within the last minute.
    sends: VecDeque<Instant>,
    /// Its entry in the record.
    entry: usize,
}

/// What a connection has to do next.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Send(Vec<Value>),
    Close(u16),
    Drop,
    Hang,
    Wait,
}

impl State {
    /// With `Bot ` before it, or, as the gateway takes it too, without.
    fn is_token(&self, presented: &str) -> bool {
        self.token.as_deref() == Some(presented.strip_prefix("Bot ").unwrap_or(presented))
    }

    pub(super) fn authorized(&self, header: Option<&str>) -> bool {
        header.is_some_and(|header| header.starts_with("Bot ") && self.is_token(header))
    }

    pub(super) fn token_is_reset(&self) -> bool {
        self.token.is_none()
    }

    fn note(&mut self, number: u64, session: Option<String>, what: What) {
        let Some(Link { peer, caller, .. }) = self.links.get(&number) else {
            return;
        };
        let (peer, caller, now) = (*peer, caller.clone(), Moment::now());
        let connection = Some(number);
        self.record.push(Recorded { started: now, ended: Some(now), peer, caller, connection, session, what });
    }

    pub(super) fn connect(
        &mut self,
        peer: SocketAddr,
        caller: Option<String>,
        door: Door,
        user_agent: Option<String>,
    ) -> u64 {
        self.opened += 1;
        let what = What::Connected { door, user_agent };
        let entry = self.record.push(Recorded {
            started: Moment::now(),
            ended: None,
            peer,
            caller: caller.clone(),
            connection: Some(self.opened),
            session: None,
            what,
        });
        let (orders, sends) = (VecDeque::new(), VecDeque::new());
        let link = Link { peer, caller, session: None, orders, acknowledges: true, sends, entry };
        self.links.insert(self.opened, link);
        self.opened
    }

    /// The connection's end. What becomes of its session depends on the code and on who said it.
    pub(super) fn disconnect(&mut self, number: u64, code: Option<u16>, by: By) {
        let Some(link) = self.links.get_mut(&number) else {
            return;
        };
        let (session, entry) = (link.session.take(), link.entry);
        self.note(number, session.clone(), What::Closed { code, by });
        if let Some(entry) = self.record.entry(entry) {
            entry.ended = Some(Moment::now());
            entry.session.clone_from(&session);
        }
        self.links.remove(&number);
        let Some(session) = session else {
            return;
        };
        match (by, code) {
            (By::Client, Some(1000 | 1001)) => self.sessions.end(&session),
            (By::Server, Some(code)) if close::ends_session(code) => self.sessions.end(&session),
            (By::Client | By::Server, _) => self.sessions.leave(&session),
        }
    }

    /// Answers how many connections are meant.
    pub(super) fn order(&mut self, which: &Which, order: Order) -> usize {
        self.meant(which).map(|link| link.orders.push_back(order)).count()
    }

    pub(super) fn meant<'a>(&'a mut self, which: &'a Which) -> impl Iterator<Item = &'a mut Link> + 'a {
        self.links.values_mut().filter(move |link| match which {
            Which::All => true,
            Which::Peer(peer) => link.peer == *peer,
            Which::Session(session) => link.session.as_ref() == Some(session),
        })
    }

    /// What the connection does now; what it is told here, it is taken to have done.
    pub(super) fn step(&mut self, number: u64) -> Step {
        let Some(link) = self.links.get_mut(&number) else {
            return Step::Drop;
        };
        match link.orders.pop_front() {
            Some(Order::Close(code)) => return Step::Close(code),
            Some(Order::Drop) => return Step::Drop,
            Some(Order::Hang) => return Step::Hang,
            Some(Order::Reconnect) => {
                let session = link.session.clone();
                self.note(number, session, What::Reconnect);
                return Step::Send(vec![json!({"op": 7, "d": null})]);
            }
            Some(Order::Invalidate { resumable }) => return Step::Send(vec![self.invalidate(number, resumable)]),
            None => {}
        }
        let Some(id) = link.session.clone() else {
            return Step::Wait;
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return Step::Close(close::UNKNOWN);
        };
        let (shard, replayed) = (session.shard, session.replayed);
        let Some(events) = session.take() else {
            return Step::Close(close::UNKNOWN);
        };
        if events.is_empty() {
            return Step::Wait;
        }
        let mut frames = Vec::with_capacity(events.len());
        for event in events {
            let what = match event.kind {
                "READY" => What::Ready { shard },
                "RESUMED" => What::Resumed { shard, replayed },
                kind => What::Dispatch { seq: event.seq, kind, about: event.about },
            };
            self.note(number, Some(id.clone()), what);
            frames.push(json!({"op": 0, "t": event.kind, "s": event.seq, "d": event.data}));
        }
        Step::Send(frames)
    }

    /// What ends a connection that says nothing: its next order to close, with a code or without a word.
    pub(super) fn end_of_hanging(&mut self, number: u64) -> Option<Option<u16>> {
        let Some(link) = self.links.get_mut(&number) else {
            return Some(None);
        };
        while let Some(order) = link.orders.pop_front() {
            match order {
                Order::Close(code) => return Some(Some(code)),
                Order::Drop => return Some(None),
                Order::Reconnect | Order::Invalidate { .. } | Order::Hang => {}
            }
        }
        None
    }

    fn invalidate(&mut self, number: u64, resumable: bool) -> Value {
        let session = self.links.get_mut(&number).and_then(|link| link.session.take());
        if let Some(session) = &session {
            if resumable {
                self.sessions.leave(session);
            } else {
                self.sessions.end(session);
            }
        }
        self.note(number, session, What::InvalidSession { resumable });
        json!({"op": 9, "d": resumable})
    }

    /// What a client said; answers what it is told at once, or with which code the connection closes.
    pub(super) fn receive(&mut self, number: u64, text: &str) -> Result<Vec<Value>, u16> {
        if text.len() > 4096 {
            return Err(close::DECODE);
        }
        let message: Value = serde_json::from_str(text).map_err(|_| close::DECODE)?;
        let op = message["op"].as_u64().ok_or(close::DECODE)?;
        // Discord counts heartbeats too. At a shortened interval they would use up all there is.
        if op != 1 || self.options.heartbeat_interval.is_none() {
            self.count_send(number)?;
        }
        let data = &message["d"];
        match op {
            1 => {
                let Some(link) = self.links.get(&number) else {
                    return Ok(Vec::new());
                };
                let (session, acknowledged) = (link.session.clone(), link.acknowledges);
                self.note(number, session, What::Heartbeat { seq: data.as_u64(), acknowledged });
                Ok(if acknowledged { vec![json!({"op": 11})] } else { Vec::new() })
            }
            2 => self.identify(number, data),
            6 => self.resume(number, data),
            3 | 4 | 8 | 31 => {
                let session = self.links.get(&number).and_then(|link| link.session.clone());
                if session.is_none() {
                    return Err(close::NOT_AUTHENTICATED);
                }
                self.note(number, session, What::Other { op });
                Ok(Vec::new())
            }
            _ => Err(close::UNKNOWN_OPCODE),
        }
    }

    fn count_send(&mut self, number: u64) -> Result<(), u16> {
        let Some(link) = self.links.get_mut(&number) else {
            return Ok(());
        };
        while link.sends.front().is_some_and(|at| at.elapsed() >= Duration::from_secs(60)) {
            link.sends.pop_front();
        }
        if link.sends.len() >= SENDS_PER_MINUTE {
            return Err(close::RATE_LIMITED);
        }
        link.sends.push_back(Instant::now());
        Ok(())
    }

    fn has_session(&self, number: u64) -> bool {
        self.links.get(&number).is_some_and(|link| link.session.is_some())
    }

    fn identify(&mut self, number: u64, data: &Value) -> Result<Vec<Value>, u16> {
        if self.has_session(number) {
            return Err(close::ALREADY_AUTHENTICATED);
        }
        let token = data["token"].as_str().ok_or(close::DECODE)?;
        let wanted = data["intents"].as_u64().ok_or(close::DECODE)?;
        let shard = match data.get("shard") {
            None | Some(Value::Null) => Shard { id: 0, total: 1 },
            Some(shard) => Shard {
                id: shard[0].as_u64().ok_or(close::INVALID_SHARD)?,
                total: shard[1].as_u64().ok_or(close::INVALID_SHARD)?,
            },
        };
        let properties = data["properties"].clone();
        self.note(number, None, What::Identify { shard, intents: wanted, properties });
        if !self.is_token(token) {
            return Err(close::AUTHENTICATION_FAILED);
        }
        if !self.starts.take() {
            self.reset_token();
            return Err(close::AUTHENTICATION_FAILED);
        }
        if shard.id >= shard.total {
            return Err(close::INVALID_SHARD);
        }
        if wanted & !intents::KNOWN != 0 {
            return Err(close::INVALID_INTENTS);
        }
        if wanted & intents::PRIVILEGED & !self.options.privileged_intents != 0 {
            return Err(close::DISALLOWED_INTENTS);
        }
        if !self.starts.may_identify(shard.id) {
            return Ok(vec![self.invalidate(number, false)]);
        }
        self.begin_session(number, shard, wanted);
        Ok(Vec::new())
    }

    fn begin_session(&mut self, number: u64, shard: Shard, wanted: u64) {
        let guilds: Vec<Id> = self.world.guilds().filter(|guild| of_shard(Some(*guild), shard)).collect();
        let unavailable: Vec<Value> = guilds.iter().map(|id| json!({"id": id, "unavailable": true})).collect();
        let (id, session) = self.sessions.start(number, shard, wanted);
        let ready = json!({
            "v": 10, "user": self.world.me_json(), "guilds": unavailable, "session_id": id, "session_type": "normal",
            "resume_gateway_url": format!("ws://{}", self.resume), "shard": [shard.id, shard.total],
            "application": {"id": self.world.bot, "flags": 0}, "relationships": [], "private_channels": [],
        });
        session.push("READY", ready, None);
        if wanted & intents::GUILDS != 0 {
            for guild in guilds {
                session.push("GUILD_CREATE", self.world.guild_json(guild), Some(guild));
            }
        }
        if let Some(link) = self.links.get_mut(&number) {
            link.session = Some(id);
        }
    }

    fn resume(&mut self, number: u64, data: &Value) -> Result<Vec<Value>, u16> {
        if self.has_session(number) {
            return Err(close::ALREADY_AUTHENTICATED);
        }
        let token = data["token"].as_str().ok_or(close::DECODE)?;
        let id = data["session_id"].as_str().ok_or(close::DECODE)?;
        let seq = data["seq"].as_u64().ok_or(close::DECODE)?;
        self.note(number, Some(id.to_owned()), What::Resume { seq });
        if !self.is_token(token) {
            return Err(close::AUTHENTICATION_FAILED);
        }
        match self.sessions.resume(id, seq, number) {
            Ok(before) => {
                if let Some(before) = before
                    && let Some(link) = self.links.get_mut(&before)
                {
                    link.session = None;
                    link.orders.push_back(Order::Close(close::UNKNOWN));
                    self.note(before, Some(id.to_owned()), What::Superseded);
                }
                if let Some(link) = self.links.get_mut(&number) {
                    link.session = Some(id.to_owned());
                }
                Ok(Vec::new())
            }
            Err(ResumeError::Gone) => Ok(vec![self.invalidate(number, false)]),
            Err(ResumeError::InvalidSeq) => Err(close::INVALID_SEQ),
        }
    }

    /// As Discord does to who identifies too often: every session ends, and the token with them.
    fn reset_token(&mut self) {
        self.token = None;
        self.sessions.end_all();
        for link in self.links.values_mut() {
            link.orders.push_back(Order::Close(close::AUTHENTICATION_FAILED));
        }
    }

    /// Tells every session of the shard that asked for it, connected or not.
    fn dispatch(
        &mut self,
        kind: &'static str,
        guild: Option<Id>,
        needed: u64,
        about: Id,
        data: impl Fn(&World, u64) -> Value,
    ) {
        for (_, session) in self.sessions.live() {
            if session.intents & needed != 0 && of_shard(guild, session.shard) {
                session.push(kind, data(&self.world, session.intents), Some(about));
            }
        }
    }

    pub(super) fn guild_of(&self, channel: Id) -> Option<Id> {
        self.world.channel(channel).and_then(|channel| channel.place.guild())
    }

    /// `None`: there is no such channel.
    pub(super) fn add_message(&mut self, channel: Id, author: Id, draft: Draft) -> Option<Message> {
        let message = self.world.add_message(channel, author, draft)?;
        self.tell("MESSAGE_CREATE", &message);
        Some(message)
    }

    pub(super) fn edit_message(&mut self, channel: Id, message: Id, content: &str) -> Option<Message> {
        let message = self.world.edit(channel, message, content)?;
        self.tell("MESSAGE_UPDATE", &message);
        Some(message)
    }

    fn tell(&mut self, kind: &'static str, message: &Message) {
        let guild = self.guild_of(message.channel);
        let needed = intents::of_messages(guild.is_some());
        self.dispatch(kind, guild, needed, message.id, |world, held| world.message_event(message, held));
    }

    pub(super) fn delete_message(&mut self, channel: Id, message: Id) -> Option<()> {
        let message = self.world.delete(channel, message)?;
        let guild = self.guild_of(channel);
        let needed = intents::of_messages(guild.is_some());
        self.dispatch("MESSAGE_DELETE", guild, needed, message.id, |_, _| {
            let mut json = json!({"id": message.id, "channel_id": channel});
            if let Some(guild) = guild {
                json["guild_id"] = json!(guild);
            }
            json
        });
        Some(())
    }

    /// `None`: no channel of a guild.
    pub(super) fn add_thread(&mut self, parent: Id, on: Option<Id>, owner: Id, name: &str) -> Option<Id> {
        let id = self.world.add_thread(parent, on, owner, name)?;
        self.tell_channel("THREAD_CREATE", id);
        Some(id)
    }

    pub(super) fn tell_channel(&mut self, kind: &'static str, id: Id) {
        let guild = self.guild_of(id);
        self.dispatch(kind, guild, intents::GUILDS, id, |world, _| {
            let mut json = world.channel_json(id);
            if kind == "THREAD_CREATE" {
                json["newly_created"] = true.into();
            }
            json
        });
    }

    pub(super) fn add_guild(&mut self, name: &str) -> Id {
        let id = self.world.add_guild(name);
        self.dispatch("GUILD_CREATE", Some(id), intents::GUILDS, id, |world, _| world.guild_json(id));
        id
    }
}

/// Messages outside of guilds belong to shard 0.
fn of_shard(guild: Option<Id>, shard: Shard) -> bool {
    guild.map_or(shard.id == 0, |guild| (guild.0 >> 22) % shard.total == shard.id)
}
