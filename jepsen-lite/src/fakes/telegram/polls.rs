//! `getUpdates`: who waits for updates, and what happens to the one who waited when another comes.
//!
//! As the Bot API server's `Client.cpp` does it. A poll on an empty queue waits, and ends the one that waited before with
//! 409; a poll that finds updates takes them and disturbs nobody. A poll whose client went away still counts as waiting.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use super::Timing;
use super::error::Error;
use super::ids::BotId;
use super::parameters::Parameters;
use super::server::{Bot, Server};

const OTHER_POLL: &str = "terminated by other getUpdates request; make sure that only one bot instance is running";
const OTHER_WEBHOOK: &str = "terminated by setWebhook request";
const WEBHOOK_ACTIVE: &str =
    "can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first";
/// Telegram's longest timeout, in seconds.
const MAX_TIMEOUT_SECONDS: i64 = 50;
/// How long a poll that was woken waits for more.
const GATHER: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
pub(super) struct Polls {
    waiting: Option<Waiting>,
    /// The offset that was asked for last, and when.
    last: Option<(i64, Instant)>,
    /// A conflict before then is told later.
    next_conflict: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    until: Instant,
    end: oneshot::Sender<Woken>,
}

#[derive(Debug)]
enum Woken {
    Updates,
    Conflict(Conflict),
}

/// A 409, and how long to sit on it.
#[derive(Debug)]
struct Conflict {
    what: &'static str,
    after: Duration,
}

enum Begun {
    Found(Vec<Value>),
    Conflict(Conflict),
    Waits { offset: i64, limit: usize, until: Instant, woken: oneshot::Receiver<Woken> },
}

impl Polls {
    /// There are updates.
    pub(super) fn wake(&mut self) {
        self.end(|| Woken::Updates);
    }

    pub(super) fn abort_for_webhook(&mut self, timing: &Timing) {
        self.abort(OTHER_WEBHOOK, timing);
    }

    /// Whether somebody waits whose client is still there.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| !waiting.end.is_closed())
    }

    fn abort(&mut self, what: &'static str, timing: &Timing) {
        if self.waiting.as_ref().is_some_and(|waiting| waiting.until > Instant::now()) {
            let conflict = self.conflict(what, timing);
            self.end(|| Woken::Conflict(conflict));
        }
    }

    fn end(&mut self, how: impl FnOnce() -> Woken) {
        if let Some(waiting) = self.waiting.take() {
            // Its client may be gone; then there is nobody to tell.
            drop(waiting.end.send(how()));
        }
    }

    /// The first conflict is told at once; one that follows it soon, later.
    fn conflict(&mut self, what: &'static str, timing: &Timing) -> Conflict {
        let now = Instant::now();
        if self.next_conflict.is_some_and(|next| now < next) {
            return Conflict { what, after: timing.repeated_conflict };
        }
        self.next_conflict = Some(now + timing.repeated_conflict);
        Conflict { what, after: Duration::ZERO }
    }
}

impl Bot {
    fn begin_poll(&mut self, parameters: &Parameters, timing: &Timing, unix: Duration) -> Begun {
        if self.webhook.is_some() {
            return Begun::Conflict(self.polls.conflict(WEBHOOK_ACTIVE, timing));
        }
        let asked = parameters.integer("offset").unwrap_or(0);
        let mut limit = usize::try_from(parameters.clamped("limit", 100, 1, 100)).unwrap_or(100);
        let seconds = parameters.clamped("timeout", 0, 0, MAX_TIMEOUT_SECONDS);
        let mut timeout = Duration::from_secs(seconds.unsigned_abs()).min(timing.longest_poll);
        self.set_allowed(parameters.json("allowed_updates").as_ref());

        // Who asks the same again at once is slowed down.
        let now = Instant::now();
        if let Some((offset, at)) = self.polls.last
            && offset == asked
        {
            if now < at + timing.repeated_poll {
                timeout = timeout.max(timing.repeated_poll);
            }
            if now < at + timing.repeated_poll_at_once {
                limit = 1;
            }
        }
        self.polls.last = Some((asked, now));

        let (offset, updates) = self.queue.take(asked, limit, unix);
        if !updates.is_empty() || timeout.is_zero() {
            return Begun::Found(updates);
        }
        self.polls.abort(OTHER_POLL, timing);
        let (end, woken) = oneshot::channel();
        let until = now + timeout;
        self.polls.waiting = Some(Waiting { until, end });
        Begun::Waits { offset, limit, until, woken }
    }
}

pub(super) async fn get_updates(server: &Server, bot: BotId, parameters: &Parameters) -> Result<Value, Error> {
    let begun = server.change_bot(bot, |bot| bot.begin_poll(parameters, &server.options.timing, server.unix()));
    let (offset, limit) = match begun.ok_or(Error::Unauthorized)? {
        Begun::Found(updates) => return Ok(updates.into()),
        Begun::Conflict(conflict) => return Err(conflict.told().await),
        Begun::Waits { offset, limit, until, woken } => {
            tokio::select! {
                woken = woken => match woken {
                    Ok(Woken::Conflict(conflict)) => return Err(conflict.told().await),
                    Ok(Woken::Updates) => sleep(GATHER).await,
                    // The server is stopping.
                    Err(_) => {}
                },
                () = sleep_until(until) => {}
            }
            (offset, limit)
        }
    };
    let found = server.change_bot(bot, |bot| bot.queue.take(offset, limit, server.unix()).1);
    found.map(Value::from).ok_or(Error::Unauthorized)
}

impl Conflict {
    async fn told(self) -> Error {
        sleep(self.after).await;
        Error::Conflict(self.what)
    }
}
