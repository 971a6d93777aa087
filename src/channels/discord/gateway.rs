//! The connection to Discord's gateway: sessions begun and resumed, heartbeats, and what becomes of an event.
//!
//! [`Gateway::run`] holds one connection after another for as long as the tenure lasts. What comes in goes to an
//! [`Intake`], which hands it to the inbox and keeps the cursor behind it; reading goes on meanwhile, so that a slow store
//! costs no heartbeat. A session is resumed whenever it can be: that is free, while sessions begun are counted, and who
//! begins more than 1000 a day loses the token. [`Starts`] stays far below that.
//!
//! Source: discord-api-docs, topics/gateway and topics/opcodes-and-status-codes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use serde_json::json;
use serenity::constants::Opcode;
use serenity::model::gateway::{BotGateway, GatewayIntents};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use super::client::CallError;
use super::cursor::{Intake, Position, Session, failed};
use super::parse::{self, Envelope, Hello, Ready};
use super::socket::{Came, Socket};
use super::{DEADLINE, Discord};
use crate::channels::{Inbox, ReceiveError, Reporter, Tenure};

/// How long a connection may take to get its session.
const READY: Duration = Duration::from_secs(20);
/// What a connection may take to end, and the last cursor to be stored, once nothing is owned any more.
const LEAVING: Duration = Duration::from_millis(40);
/// The last cursor's time if it is owned still.
const LAST_SAVE: Duration = Duration::from_secs(1);
/// A connection that lived so long was a good one.
const STABLE: Duration = Duration::from_secs(30);
/// Connections in a row that were none, until the supervisor decides.
const FAILURES: u32 = 5;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Sessions that are left to others, such as an instance that was faster.
const RESERVE: u64 = 5;
/// What sessions begun are apart: Discord wants 5 s; it doubles with each that follows, up to 288 a day.
const LONGEST_SPACING: Duration = Duration::from_secs(300);
const FORGOTTEN: Duration = Duration::from_secs(600);

/// When sessions were begun, as far as this process knows.
#[derive(Debug, Default)]
pub(super) struct Starts {
    last: Option<Instant>,
    /// How many followed each other closely.
    row: u32,
}

impl Starts {
    /// How long the next one has to wait.
    fn wait(&self, now: Instant, spacing: Duration) -> Duration {
        let Some(last) = self.last else {
            return Duration::ZERO;
        };
        let spacing = spacing.saturating_mul(1 << self.row.saturating_sub(1).min(16)).min(LONGEST_SPACING);
        (last + spacing).saturating_duration_since(now)
    }

    pub(super) fn begin(&mut self, now: Instant) {
        let follows = self.last.is_some_and(|last| now.duration_since(last) < FORGOTTEN);
        self.row = if follows { self.row.saturating_add(1) } else { 1 };
        self.last = Some(now);
    }
}

/// How a connection was lost, and what that means for the next one.
struct Lost {
    reason: String,
    /// The session is over.
    over: bool,
    /// Discord wants a pause.
    pause: Duration,
    /// The other end knows already.
    closed: bool,
}

impl Lost {
    fn broken(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), over: false, pause: Duration::ZERO, closed: false }
    }
}

/// What a closed connection means.
fn closed(code: Option<u16>, reason: String) -> Result<Lost, ReceiveError> {
    let refused = |why: &str| Err(ReceiveError::Refused(format!("{why} ({reason})")));
    match code {
        Some(4004) => refused("Discord refuses the bot's token; channels.discord.token needs a valid one"),
        Some(4010 | 4011) => refused("the bot is in so many guilds that it needs shards, which are not supported"),
        Some(4012) => refused("Discord has no gateway of version 10 any more; a newer release is needed"),
        Some(4013) => refused("Discord does not know an intent; a newer release is needed"),
        Some(4014) => refused(
            "Discord refuses an intent: enable the Message Content Intent for the bot in Discord's Developer Portal, \
             under Bot, Privileged Gateway Intents",
        ),
        Some(4007 | 4009) => Ok(Lost { reason, over: true, pause: Duration::ZERO, closed: true }),
        Some(_) | None => Ok(Lost { reason, over: false, pause: Duration::ZERO, closed: true }),
    }
}

/// What a call that had to come before a connection means for it.
fn call_failed(error: CallError) -> Result<Lost, ReceiveError> {
    let reason = error.to_string();
    match error {
        CallError::Unauthorized { status: 401, .. } => {
            Err(ReceiveError::Refused(format!("{reason}; channels.discord.token needs a valid one")))
        }
        CallError::Limited { after } => Err(failed(reason, Some(after))),
        CallError::Unauthorized { .. } | CallError::Refused { .. } => Err(failed(reason, None)),
        CallError::Unsent(_) | CallError::NoAnswer(_) => Ok(Lost::broken(reason)),
    }
}

/// Why a connection ended: the next one follows, or nobody wants it.
enum Stop {
    Lost(Lost),
    Receive(ReceiveError),
}

impl From<ReceiveError> for Stop {
    fn from(error: ReceiveError) -> Self {
        Self::Receive(error)
    }
}

impl From<Result<Lost, ReceiveError>> for Stop {
    fn from(end: Result<Lost, ReceiveError>) -> Self {
        end.map_or_else(Self::Receive, Self::Lost)
    }
}

impl From<String> for Stop {
    fn from(reason: String) -> Self {
        Self::Lost(Lost::broken(reason))
    }
}

/// Receives for one tenure.
pub(super) struct Gateway<'a> {
    discord: &'a Discord,
    tenure: &'a Tenure,
    reporter: &'a dyn Reporter,
    intake: Intake<'a>,
    /// The session, and the last event that was read.
    position: Option<Position>,
    /// Since when a session is connected.
    since: Option<Instant>,
}

impl<'a> Gateway<'a> {
    pub(super) fn new(
        discord: &'a Discord,
        tenure: &'a Tenure,
        inbox: &'a dyn Inbox,
        reporter: &'a dyn Reporter,
    ) -> Self {
        let intake = Intake::new(&discord.rest, inbox, discord.timing.clone());
        Self { discord, tenure, reporter, intake, position: None, since: None }
    }

    /// Leaves an open connection in `socket` when it is dropped.
    pub(super) async fn run(&mut self, socket: &mut Option<Socket>) -> ReceiveError {
        match self.intake.begin().await {
            Ok(position) => self.position = position,
            Err(error) => return error,
        }
        let mut failures = 0;
        loop {
            let lost = match self.connection(socket, failures).await {
                Stop::Lost(lost) => lost,
                Stop::Receive(error) => return error,
            };
            info!(account = %self.discord.account, reason = lost.reason, over = lost.over, "connection lost");
            let lived = self.since.take();
            if lived.is_some() {
                self.reporter.disconnected(&lost.reason);
            }
            if let Some(socket) = socket.take()
                && !lost.closed
            {
                socket.close(Instant::now() + LEAVING).await;
            }
            if lost.over {
                self.position = None;
            }
            let stable = lived.is_some_and(|since| since.elapsed() >= STABLE);
            failures = if stable { 1 } else { failures + 1 };
            if failures > FAILURES {
                return failed(lost.reason, None);
            }
            let pause = lost.pause + self.pause(failures);
            if let Err(error) = self.intake.during(sleep(pause)).await {
                return error;
            }
        }
    }

    /// Asked before whatever is sent: a process that was paused may be told later than it acts.
    fn still_owned(&self) -> Result<(), ReceiveError> {
        if self.tenure.is_over() { Err(ReceiveError::Ended) } else { Ok(()) }
    }

    /// None after the first connection that was lost.
    fn pause(&self, failures: u32) -> Duration {
        if failures < 2 {
            return Duration::ZERO;
        }
        let longest = self.discord.timing.reconnect.saturating_mul(1 << (failures - 2).min(16)).min(LONGEST_PAUSE);
        longest.mul_f64(rand::rng().random_range(0.5..1.0))
    }

    /// One connection from its beginning to its end.
    async fn connection(&mut self, slot: &mut Option<Socket>, failures: u32) -> Stop {
        let Err(stop) = self.try_connection(slot, failures).await;
        stop
    }

    async fn try_connection(&mut self, slot: &mut Option<Socket>, failures: u32) -> Result<Infallible, Stop> {
        self.still_owned()?;
        let url = match &self.position {
            // Where it is to be resumed, unless that address has gone.
            Some(position) if failures < 2 => {
                self.discord.settings.gateway_url.clone().unwrap_or_else(|| position.session.resume_url.clone())
            }
            Some(_) => self.gateway().await?.url,
            None => self.permission_to_begin().await?,
        };
        let hello_by = Instant::now() + DEADLINE;
        let http = self.discord.rest.http();
        let opening = timeout_at(hello_by, Socket::open(http, &url));
        let opened = self.intake.during(opening).await?.map_err(|_| format!("no connection within {DEADLINE:?}"))?;
        let socket = slot.insert(opened.map_err(|error| format!("Discord's gateway cannot be reached: {error}"))?);
        let greeting = timeout_at(hello_by, socket.next());
        let hello = match self.intake.during(greeting).await?.map_err(|_| format!("no word within {DEADLINE:?}"))? {
            Came::Payload(payload) => {
                parse::data::<Hello>(&payload).map_err(|_| "no greeting came first".to_owned())?
            }
            Came::Closed(code, reason) => return Err(closed(code, reason).into()),
        };
        self.still_owned()?;
        match &self.position {
            Some(Position { session, seq }) => {
                let data = json!({"token": self.token(), "session_id": session.id, "seq": seq});
                socket.send(Opcode::Resume, data).await?;
            }
            None => {
                self.discord.starts.lock().begin(Instant::now());
                socket.send(Opcode::Identify, self.identity()).await?;
            }
        }
        self.talk(socket, Duration::from_millis(hello.heartbeat_interval)).await
    }

    fn token(&self) -> &str {
        let token = self.discord.settings.token.expose();
        token.strip_prefix("Bot ").unwrap_or(token)
    }

    fn identity(&self) -> serde_json::Value {
        let intents = GatewayIntents::GUILDS
            | GatewayIntents::GUILD_MESSAGES
            | GatewayIntents::DIRECT_MESSAGES
            | GatewayIntents::MESSAGE_CONTENT;
        json!({
            "token": self.token(), "intents": intents.bits(), "shard": [0, 1], "compress": false,
            "properties": {"os": std::env::consts::OS, "browser": "openclaw", "device": "openclaw"},
        })
    }

    /// What the API says of the gateway, at the address that the settings name.
    async fn gateway(&mut self) -> Result<BotGateway, Stop> {
        let discord = self.discord;
        let mut gateway = match self.intake.during(discord.rest.gateway()).await? {
            Ok(gateway) => gateway,
            Err(error) => return Err(call_failed(error).into()),
        };
        if let Some(url) = &discord.settings.gateway_url {
            gateway.url.clone_from(url);
        }
        Ok(gateway)
    }

    /// Waits until a session may begin; answers where.
    async fn permission_to_begin(&mut self) -> Result<String, Stop> {
        let gateway = self.gateway().await?;
        let limit = &gateway.session_start_limit;
        if limit.remaining <= RESERVE.min(limit.total / 2) {
            let after = Duration::from_millis(limit.reset_after);
            let reason = format!("of {} sessions a day only {} are left", limit.total, limit.remaining);
            return Err(failed(reason, Some(after)).into());
        }
        let wait = self.discord.starts.lock().wait(Instant::now(), self.discord.timing.spacing);
        if wait > DEADLINE {
            return Err(failed("too many sessions began one after another", Some(wait)).into());
        }
        self.intake.during(sleep(wait)).await?;
        Ok(gateway.url)
    }

    /// Everything between the greeting and the end.
    async fn talk(&mut self, socket: &mut Socket, interval: Duration) -> Result<Infallible, Stop> {
        let interval = interval.max(Duration::from_millis(10));
        let mut ready_by = Instant::now() + READY;
        // Not all clients at once, after Discord came back.
        let mut beat_at = Instant::now() + interval.mul_f64(rand::rng().random_range(0.0..1.0));
        let mut acknowledged = true;
        loop {
            let wake = if self.since.is_some() { beat_at } else { beat_at.min(ready_by) };
            // What is there is read first, as an acknowledgement may be in it; but not for ever.
            let overdue = wake + interval / 10;
            let came = tokio::select! {
                biased;
                stop = self.intake.work() => return Err(stop.into()),
                () = sleep_until(overdue) => None,
                came = socket.next() => Some(came),
                () = sleep_until(wake) => None,
            };
            self.still_owned()?;
            let payload = match came {
                Some(Came::Payload(payload)) => payload,
                Some(Came::Closed(code, reason)) => return Err(closed(code, reason).into()),
                None if Instant::now() >= beat_at => {
                    if !acknowledged {
                        return Err("a heartbeat had no answer".to_owned().into());
                    }
                    socket.send(Opcode::Heartbeat, self.number()).await?;
                    acknowledged = false;
                    beat_at = Instant::now() + interval;
                    continue;
                }
                None => return Err(format!("no session within {READY:?}").into()),
            };
            let Ok(envelope) = serde_json::from_str::<Envelope>(&payload) else {
                return Err("what Discord sent is no payload".to_owned().into());
            };
            match envelope.op {
                Opcode::Dispatch => {
                    self.dispatch(&envelope, &payload)?;
                    // Repeating what was missed may take its time.
                    ready_by = Instant::now() + READY;
                }
                Opcode::Heartbeat => socket.send(Opcode::Heartbeat, self.number()).await?,
                Opcode::HeartbeatAck => {
                    acknowledged = true;
                    self.reporter.heard();
                }
                Opcode::Reconnect => return Err("Discord asked to reconnect".to_owned().into()),
                Opcode::InvalidSession => return Err(Stop::Lost(self.invalid(&payload))),
                // None of them comes from a server, today.
                Opcode::Hello
                | Opcode::Identify
                | Opcode::PresenceUpdate
                | Opcode::VoiceStateUpdate
                | Opcode::VoiceServerPing
                | Opcode::Resume
                | Opcode::RequestGuildMembers
                | Opcode::ReqeustSoundboardSounds
                | Opcode::Unknown(_)
                | _ => debug!(account = %self.discord.account, op = ?envelope.op, "unexpected operation"),
            }
        }
    }

    /// The last event's number is what a heartbeat says.
    fn number(&self) -> serde_json::Value {
        json!(self.position.as_ref().map(|position| position.seq))
    }

    fn invalid(&self, payload: &str) -> Lost {
        let over = !parse::data::<bool>(payload).unwrap_or(false);
        let pause = if over { rand::rng().random_range(self.discord.timing.invalid.clone()) } else { Duration::ZERO };
        Lost { reason: "Discord ended the session".to_owned(), over, pause, closed: false }
    }

    fn dispatch(&mut self, envelope: &Envelope, payload: &str) -> Result<(), Stop> {
        let kind = envelope.kind.as_deref().unwrap_or_default();
        self.reporter.received();
        if kind == "READY" {
            let Ok(Ready { session_id, resume_gateway_url, user }) = parse::data(payload) else {
                return Err(failed("what Discord says of a new session is no READY", None).into());
            };
            let session = Session { id: session_id, resume_url: resume_gateway_url, bot: user.id };
            self.position = Some(Position { session: Arc::new(session), seq: 0 });
        }
        let Some(position) = &mut self.position else {
            return Ok(());
        };
        position.seq = envelope.seq.unwrap_or(position.seq);
        match kind {
            "READY" | "RESUMED" => {
                info!(account = %self.discord.account, kind, seq = position.seq, "connected");
                self.since = Some(Instant::now());
                self.reporter.connected();
            }
            "MESSAGE_CREATE" => match parse::message(payload, &self.discord.account, position.session.bot) {
                Ok(Some(message)) => self.intake.take(position.clone(), message)?,
                Ok(None) => {}
                // The error quotes what somebody wrote.
                Err(error) => warn!(
                    account = %self.discord.account, at = error.column(), kind = ?error.classify(),
                    "a message was not understood, and is lost"
                ),
            },
            _ => self.intake.threads.hear(kind, payload),
        }
        self.intake.read = Some(position.clone());
        Ok(())
    }

    /// Ends the connection, if there is one, and stores the cursor. Within [`LEAVING`] when the tenure is over.
    pub(super) async fn leave(mut self, socket: Option<Socket>, error: &ReceiveError) {
        if self.since.take().is_some() {
            self.reporter.disconnected(&error.to_string());
        }
        let now = Instant::now();
        let closing = async {
            if let Some(socket) = socket {
                socket.close(now + LEAVING).await;
            }
        };
        let ended = *error == ReceiveError::Ended;
        let time = if ended { LEAVING } else { LAST_SAVE };
        let saving = async {
            tokio::select! {
                saved = timeout_at(now + time, self.intake.last_save()) => saved.is_ok(),
                () = self.tenure.ended.cancelled(), if !ended => false,
            }
        };
        if !tokio::join!(closing, saving).1 {
            debug!(account = %self.discord.account, "the last cursor was not stored in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_begin_ever_more_slowly() {
        let (mut starts, spacing) = (Starts::default(), Duration::from_secs(5));
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..9 {
            let wait = starts.wait(now, spacing);
            waits.push(wait.as_secs());
            now += wait;
            starts.begin(now);
        }
        assert_eq!(waits, [0, 5, 10, 20, 40, 80, 160, 300, 300]);
        now += FORGOTTEN;
        assert_eq!(starts.wait(now, spacing), Duration::ZERO);
        starts.begin(now);
        assert_eq!(starts.wait(now, spacing), spacing);
    }

    #[test]
    fn a_code_says_what_becomes_of_the_session() {
        for (code, over) in
            [(None, false), (Some(1000), false), (Some(4000), false), (Some(4007), true), (Some(4009), true)]
        {
            assert_eq!(closed(code, String::new()).ok().map(|lost| lost.over), Some(over), "{code:?}");
        }
        for code in [4004, 4010, 4011, 4012, 4013, 4014] {
            assert!(matches!(closed(Some(code), String::new()), Err(ReceiveError::Refused(_))), "{code}");
        }
    }
}
