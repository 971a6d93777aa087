//! Everything that was asked of the fake and that it did, in the order in which it did it; and what follows from it:
//! who held a session when, and who held one at the same time.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::faults::Route;
use super::world::Id;

/// One moment on both clocks: the first orders and measures, the second compares with logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub at: Instant,
    pub unix_ms: u64,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { at: Instant::now(), unix_ms: unix_ms() }
    }
}

pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    pub started: Moment,
    /// Absent: a request being answered, or a connection that is open. What takes no time ends when it starts.
    pub ended: Option<Moment>,
    pub peer: SocketAddr,
    /// What `Options::label` calls the peer.
    pub caller: Option<String>,
    /// Which connection to the gateway, counted from 1; absent for requests.
    pub connection: Option<u64>,
    pub session: Option<String>,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    Request(Request),
    /// To the gateway; it ends with the connection.
    Connected {
        door: Door,
        user_agent: Option<String>,
    },
    Identify {
        shard: Shard,
        intents: u64,
        properties: Value,
    },
    Resume {
        seq: u64,
    },
    /// From here on the connection holds a session.
    Ready {
        shard: Shard,
    },
    /// From here on the connection holds a session.
    Resumed {
        shard: Shard,
        replayed: u64,
    },
    Dispatch {
        seq: u64,
        kind: &'static str,
        about: Option<Id>,
    },
    Heartbeat {
        seq: Option<u64>,
        acknowledged: bool,
    },
    /// Another operation of the client, such as a change of presence.
    Other {
        op: u64,
    },
    /// The client was told to reconnect (op 7).
    Reconnect,
    /// The connection holds no session any more (op 9).
    InvalidSession {
        resumable: bool,
    },
    /// Another connection resumed this one's session.
    Superseded,
    /// Absent code: without a close frame.
    Closed {
        code: Option<u16>,
        by: By,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub method: String,
    /// Absent: nothing that the fake knows.
    pub route: Option<Route>,
    /// With its query.
    pub path: String,
    pub user_agent: Option<String>,
    /// The JSON of the body; null when there was none, or it was larger than is kept.
    pub body: Value,
    /// Absent: it is being answered.
    pub answer: Option<Answer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Status(u16),
    /// Closed without an answer, on request; done or not before.
    Cut {
        acted: bool,
    },
    /// The client went away first.
    Abandoned,
}

/// At which address a client came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The one that `GET /gateway` names.
    Gateway,
    /// The one that READY names for resuming.
    Resume,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Client,
    Server,
}

/// Number `id` of `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    pub id: u64,
    pub total: u64,
}

pub(super) struct Record {
    entries: VecDeque<Recorded>,
    /// How many were forgotten: the number of the first one kept.
    forgotten: usize,
    remembered: usize,
}

impl Record {
    pub(super) fn new(remembered: usize) -> Self {
        Self { entries: VecDeque::new(), forgotten: 0, remembered }
    }

    /// Answers the entry's number.
    pub(super) fn push(&mut self, entry: Recorded) -> usize {
        let number = self.forgotten + self.entries.len();
        self.entries.push_back(entry);
        while self.entries.len() > self.remembered {
            self.entries.pop_front();
            self.forgotten += 1;
        }
        number
    }

    /// Absent: it was forgotten.
    pub(super) fn entry(&mut self, number: usize) -> Option<&mut Recorded> {
        self.entries.get_mut(number.checked_sub(self.forgotten)?)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Recorded> {
        self.entries.iter()
    }

    pub(super) fn forgotten(&self) -> usize {
        self.forgotten
    }
}

/// A time in which a connection held a session: from READY or RESUMED to its loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub peer: SocketAddr,
    pub connection: u64,
    pub session: String,
    pub shard: Shard,
    pub from: Moment,
    /// Absent: it holds it still.
    pub to: Option<Moment>,
}

/// Two connections of different peers that held a session of one shard at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Overlap<L> {
    pub labels: (L, L),
    pub held: (Held, Held),
    /// Up to now, when both hold theirs still.
    pub lasted: Duration,
}

/// Who held a session when, by the start of it. The record has to be whole.
pub fn held<'a>(entries: impl IntoIterator<Item = &'a Recorded>) -> Vec<Held> {
    let mut all: Vec<Held> = Vec::new();
    for entry in entries {
        let Some(connection) = entry.connection else {
            continue;
        };
        match &entry.what {
            What::Ready { shard } | What::Resumed { shard, .. } => all.push(Held {
                peer: entry.peer,
                connection,
                session: entry.session.clone().unwrap_or_default(),
                shard: *shard,
                from: entry.started,
                to: None,
            }),
            What::InvalidSession { .. } | What::Superseded | What::Closed { .. } => {
                let open = all.iter_mut().rev().find(|held| held.connection == connection && held.to.is_none());
                if let Some(held) = open {
                    held.to = Some(entry.started);
                }
            }
            What::Request(_)
            | What::Connected { .. }
            | What::Identify { .. }
            | What::Resume { .. }
            | What::Dispatch { .. }
            | What::Heartbeat { .. }
            | What::Other { .. }
            | What::Reconnect => {}
        }
    }
    all
}

/// Every pair that held sessions at once, when `label` tells the two peers apart. One shard of another total is another
/// split of the same guilds, so it counts as the same; two shards of one total have no guild in common.
pub fn overlaps<L: PartialEq>(held: &[Held], label: impl Fn(SocketAddr) -> L) -> Vec<Overlap<L>> {
    let now = Instant::now();
    let end = |held: &Held| held.to.map_or(now, |to| to.at);
    let mut found = Vec::new();
    for (n, one) in held.iter().enumerate() {
        for other in &held[n + 1..] {
            let labels = (label(one.peer), label(other.peer));
            let apart = one.shard.total == other.shard.total && one.shard.id != other.shard.id;
            let from = one.from.at.max(other.from.at);
            let to = end(one).min(end(other));
            if labels.0 != labels.1 && !apart && from < to {
                found.push(Overlap { labels, held: (one.clone(), other.clone()), lasted: to - from });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(steps: &[(u64, u64, Option<u64>)]) -> Vec<Recorded> {
        let start = Moment::now();
        let after = |ms| Moment { at: start.at + Duration::from_millis(ms), unix_ms: start.unix_ms + ms };
        let shard = Shard { id: 0, total: 1 };
        let entry = |connection: u64, at: Moment, what| Recorded {
            started: at,
            ended: Some(at),
            peer: SocketAddr::from(([127, 0, 0, 1], u16::try_from(connection).unwrap())),
            caller: None,
            connection: Some(connection),
            session: Some("s".to_owned()),
            what,
        };
        let mut all = Vec::new();
        for (connection, from, to) in steps {
            all.push(entry(*connection, after(*from), What::Ready { shard }));
            all.extend(to.map(|to| entry(*connection, after(to), What::Closed { code: None, by: By::Client })));
        }
        all
    }

    /// Ports `1` and `11` are one peer, `2` another; milliseconds.
    fn check(steps: &[(u64, u64, Option<u64>)], expected: &[(u16, u16, Option<u64>)]) {
        let held = held(&entries(steps));
        let found: Vec<_> = overlaps(&held, |peer| peer.port() % 10)
            .into_iter()
            .map(|overlap| {
                let open = overlap.held.0.to.is_none() && overlap.held.1.to.is_none();
                let lasted = (!open).then(|| u64::try_from(overlap.lasted.as_millis()).unwrap());
                (overlap.held.0.peer.port(), overlap.held.1.peer.port(), lasted)
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn two_sessions_at_once_are_found() {
        check(&[(1, 0, Some(50)), (2, 30, Some(90))], &[(1, 2, Some(20))]);
    }

    #[test]
    fn one_after_the_other_is_no_overlap() {
        check(&[(1, 0, Some(50)), (2, 50, Some(90))], &[]);
    }

    #[test]
    fn one_peer_may_have_several() {
        check(&[(1, 0, Some(50)), (11, 10, Some(90))], &[]);
    }

    #[test]
    fn an_open_session_lasts_until_now() {
        let long_ago = Instant::now();
        let mut all = held(&entries(&[(1, 0, None), (2, 0, None)]));
        for held in &mut all {
            held.from.at = long_ago;
        }
        assert_eq!(overlaps(&all, |peer| peer.port()).len(), 1);
        all[1].shard = Shard { id: 0, total: 2 };
        assert_eq!(overlaps(&all, |peer| peer.port()).len(), 1, "another total is another split of the same guilds");
        all[0].shard = Shard { id: 1, total: 2 };
        assert_eq!(overlaps(&all, |peer| peer.port()).len(), 0);
    }
}
