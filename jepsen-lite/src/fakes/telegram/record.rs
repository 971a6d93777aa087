//! What was asked of the server, by whom, when, and how it ended; and when two pollers polled at once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tokio::sync::watch;

use super::ids::BotId;
use super::methods::Method;
use crate::fakes::connection::Connection;

/// The longest text of a parameter that is remembered, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 14;
/// Of larger calls, in bytes of JSON, lists and objects are not remembered.
const MAX_CALL_BYTES: usize = 1 << 16;
/// Of a method's name so many characters are remembered.
const MAX_NAME: usize = 64;
/// The most overlaps that are told of one bot: more than a few are one too many already.
const MAX_OVERLAPS: usize = 1_000;

/// A point in time, on this process's clock and on everybody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub at: Instant,
    pub unix_ms: u64,
}

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Counted from 0, in the order of arrival.
    pub number: u64,
    /// Absent: the path held no known token.
    pub bot: Option<BotId>,
    /// The method as it was called, whatever its case.
    pub called: String,
    /// Absent: there is no such method, or it is not modelled.
    pub method: Option<Method>,
    /// Without tokens and secrets, what is long cut. Empty until the body was read.
    pub parameters: Map<String, Value>,
    /// Counted from 0, in the order in which connections were accepted.
    pub connection: u64,
    pub peer: SocketAddr,
    /// What `Options::label` calls the peer.
    pub poller: Option<String>,
    pub started: Moment,
    /// Absent: it is open.
    pub ended: Option<(Moment, Ended)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Answered(u16),
    /// The client closed the connection first.
    ClientGone,
    /// We closed it, as a fault asked.
    Aborted,
}

/// Two polls for one bot's updates that were open at the same time, by different pollers.
#[derive(Debug, Clone)]
pub struct Overlap {
    /// The one that began first.
    pub first: Recorded,
    pub second: Recorded,
    pub lasted: Duration,
}

impl Moment {
    fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { at: Instant::now(), unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl Recorded {
    /// Whether both have a name and it is the same; without names, whether it is the same connection.
    fn same_poller(&self, other: &Self) -> bool {
        match (&self.poller, &other.poller) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => self.connection == other.connection,
        }
    }
}

#[derive(Default)]
struct State {
    requests: VecDeque<Recorded>,
    /// How many were forgotten: the number of the first one remembered.
    forgotten: u64,
}

impl State {
    fn get_mut(&mut self, number: u64) -> Option<&mut Recorded> {
        let place = number.checked_sub(self.forgotten)?;
        self.requests.get_mut(usize::try_from(place).ok()?)
    }
}

pub(super) struct Record {
    state: Mutex<State>,
    remembered: usize,
    changed: watch::Sender<u64>,
}

impl Record {
    pub(super) fn new(remembered: usize, changed: watch::Sender<u64>) -> Self {
        Self { state: Mutex::default(), remembered, changed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forgotten(&self) -> u64 {
        self.state().forgotten
    }

    pub(super) fn begin(
        self: &Arc<Self>,
        connection: &Connection,
        poller: Option<String>,
        bot: Option<BotId>,
        called: &str,
    ) -> Running {
        let mut state = self.state();
        let number = state.forgotten + state.requests.len() as u64;
        state.requests.push_back(Recorded {
            number,
            bot,
            called: called.chars().take(MAX_NAME).collect(),
            method: Method::parse(called),
            parameters: Map::new(),
            connection: connection.number(),
            peer: connection.peer(),
            poller,
            started: Moment::now(),
            ended: None,
        });
        while state.requests.len() > self.remembered {
            state.requests.pop_front();
            state.forgotten += 1;
        }
        drop(state);
        self.tell();
        Running { record: self.clone(), number, ended: false.into() }
    }

    pub(super) fn requests(&self) -> Vec<Recorded> {
        self.state().requests.iter().cloned().collect()
    }

    pub(super) fn find(&self, mut wanted: impl FnMut(&Recorded) -> bool) -> Option<Recorded> {
        self.state().requests.iter().find(|recorded| wanted(recorded)).cloned()
    }

    fn tell(&self) {
        self.changed.send_modify(|version| *version += 1);
    }
}

/// A request under way. Dropped before its end, its client went away.
pub(super) struct Running {
    record: Arc<Record>,
    number: u64,
    ended: std::sync::atomic::AtomicBool,
}

impl Running {
    pub(super) fn set_parameters(&self, parameters: Map<String, Value>, token: &str) {
        let mut parameters = Value::Object(parameters);
        redact(&mut parameters, token);
        if let Value::Object(object) = &mut parameters
            && serde_json::to_vec(object).is_ok_and(|json| json.len() > MAX_CALL_BYTES)
        {
            object.retain(|_, value| !value.is_array() && !value.is_object());
        }
        if let (Some(recorded), Value::Object(parameters)) = (self.record.state().get_mut(self.number), parameters) {
            recorded.parameters = parameters;
        }
        self.record.tell();
    }

    /// The first end counts.
    pub(super) fn end(&self, how: Ended) {
        if self.ended.swap(true, std::sync::atomic::Ordering::SeqCst) {
            return;
        }
        if let Some(recorded) = self.record.state().get_mut(self.number) {
            recorded.ended = Some((Moment::now(), how));
        }
        self.record.tell();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Ended::ClientGone);
    }
}

fn redact(value: &mut Value, token: &str) {
    match value {
        Value::String(text) => {
            if !token.is_empty() && text.contains(token) {
                *text = text.replace(token, "***");
            }
            if text.len() > MAX_TEXT_BYTES {
                text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| redact(value, token)),
        Value::Object(object) => {
            for (name, value) in object {
                if name == "secret_token" {
                    *value = Value::String("***".into());
                }
                redact(value, token);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The pairs of polls of `bot` that were open at once, by different pollers, in the order of their beginnings.
pub(super) fn overlaps(requests: &[Recorded], bot: BotId, now: Instant) -> Vec<Overlap> {
    let end = |recorded: &Recorded| recorded.ended.map_or(now, |(moment, _)| moment.at);
    let mut polls: Vec<_> = requests
        .iter()
        .filter(|request| request.bot == Some(bot) && request.method == Some(Method::GetUpdates))
        .collect();
    polls.sort_by_key(|poll| poll.started.at);
    let mut overlaps = Vec::new();
    let mut open: Vec<&Recorded> = Vec::new();
    for second in polls {
        open.retain(|first| end(first) > second.started.at);
        for first in open.iter().filter(|first| !first.same_poller(second)) {
            if overlaps.len() >= MAX_OVERLAPS {
                return overlaps;
            }
            let lasted = end(first).min(end(second)).saturating_duration_since(second.started.at);
            overlaps.push(Overlap { first: (*first).clone(), second: second.clone(), lasted });
        }
        open.push(second);
    }
    overlaps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls of bot 1 as `(connection, poller, from, until)`; what overlaps, as numbers and milliseconds.
    fn check(polls: &[(u64, Option<&str>, u64, Option<u64>)], expected: &[(u64, u64, u128)]) {
        let start = Instant::now();
        let moment = |ms| Moment { at: start + Duration::from_millis(ms), unix_ms: ms };
        let requests: Vec<_> = (0..)
            .zip(polls)
            .map(|(number, (connection, poller, from, until))| Recorded {
                number,
                bot: Some(BotId(1)),
                called: "getUpdates".into(),
                method: Some(Method::GetUpdates),
                parameters: Map::new(),
                connection: *connection,
                peer: ([127, 0, 0, 1], 1).into(),
                poller: poller.map(str::to_owned),
                started: moment(*from),
                ended: until.map(|until| (moment(until), Ended::Answered(200))),
            })
            .collect();
        let found = overlaps(&requests, BotId(1), start + Duration::from_millis(100));
        let found: Vec<_> =
            found.iter().map(|pair| (pair.first.number, pair.second.number, pair.lasted.as_millis())).collect();
        assert_eq!(found, expected);
        assert!(overlaps(&requests, BotId(2), start).is_empty());
    }

    #[test]
    fn two_pollers_at_once_are_found() {
        check(&[(0, None, 0, Some(20)), (1, None, 10, Some(30)), (2, None, 30, None)], &[(0, 1, 10)]);
        check(&[(0, None, 0, None), (1, None, 90, None)], &[(0, 1, 10)]);
        check(&[(0, None, 0, Some(10)), (1, None, 10, Some(20))], &[]);
        check(&[(0, None, 0, Some(50)), (1, None, 10, Some(20)), (2, None, 30, Some(60))], &[(0, 1, 10), (0, 2, 20)]);
    }

    #[test]
    fn one_poller_with_two_connections_is_one_poller_if_it_has_a_name() {
        check(&[(0, Some("a"), 0, Some(20)), (1, Some("a"), 10, Some(30))], &[]);
        check(&[(0, Some("a"), 0, Some(20)), (1, Some("b"), 10, Some(30))], &[(0, 1, 10)]);
        check(&[(0, Some("a"), 0, Some(20)), (1, None, 10, Some(30))], &[(0, 1, 10)]);
    }

    #[test]
    fn tokens_and_secrets_are_not_remembered() {
        let mut value = serde_json::json!({"url": "http://x/1:abc", "secret_token": "s", "list": ["1:abc", "y"]});
        redact(&mut value, "1:abc");
        assert_eq!(value, serde_json::json!({"url": "http://x/***", "secret_token": "***", "list": ["***", "y"]}));
    }
}
