//! Gateway sessions: numbered events, kept for a client that comes back, and which connection has which.
//!
//! Discord excludes nobody: any number of sessions of one shard live side by side and each gets every event. A session belongs
//! to one connection at a time; whoever resumes it takes it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::record::Shard;
use super::world::Id;

/// Events that a session keeps; who asks for older ones cannot resume.
pub(super) const REPLAYED: usize = 10_000;
/// Sessions that are kept; past it those that nobody is connected to are forgotten, oldest first.
const SESSIONS: usize = 1_000;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) seq: u64,
    pub(super) kind: &'static str,
    pub(super) data: Value,
    pub(super) about: Option<Id>,
}

/// READY and RESUMED are of their connection: they are not replayed on another.
fn replayable(kind: &str) -> bool {
    !["READY", "RESUMED"].contains(&kind)
}

pub(super) struct Session {
    pub(super) shard: Shard,
    pub(super) intents: u64,
    /// The connection that has it.
    pub(super) connection: Option<u64>,
    /// Since when nobody has it.
    left: Option<Instant>,
    events: VecDeque<Event>,
    /// The last event's number.
    last: u64,
    /// The last one that was too many to keep.
    gone: u64,
    /// The last one that was given to the connection.
    sent: u64,
    /// How many are given again before the connection is told that it has resumed.
    pub(super) replayed: u64,
}

impl Session {
    pub(super) fn push(&mut self, kind: &'static str, data: Value, about: Option<Id>) {
        self.last += 1;
        self.events.push_back(Event { seq: self.last, kind, data, about });
        if self.events.len() > REPLAYED
            && let Some(event) = self.events.pop_front()
        {
            self.gone = event.seq;
        }
    }

    /// What the connection has not got yet; `None`: some of it is gone.
    pub(super) fn take(&mut self) -> Option<Vec<Event>> {
        if self.sent < self.gone {
            return None;
        }
        let at = self.events.partition_point(|event| event.seq <= self.sent);
        self.sent = self.last;
        Some(self.events.range(at..).cloned().collect())
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }
}

/// Why a session is not resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResumeError {
    /// There is none, or not any more.
    Gone,
    /// It never had this number.
    InvalidSeq,
}

pub(super) struct Sessions {
    lifetime: Duration,
    all: BTreeMap<String, Session>,
    made: u64,
}

impl Sessions {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { lifetime, all: BTreeMap::new(), made: 0 }
    }

    /// A new session, with no event yet, of this connection.
    pub(super) fn start(&mut self, connection: u64, shard: Shard, intents: u64) -> (String, &mut Session) {
        self.expire();
        if self.all.len() >= SESSIONS {
            let oldest = self.all.iter().filter_map(|(id, session)| Some((session.left?, id.clone()))).min();
            if let Some((_, id)) = oldest {
                self.all.remove(&id);
            }
        }
        self.made += 1;
        let id = format!("{:08x}{:024x}", self.made, rand::random::<u64>());
        let session = Session {
            shard,
            intents,
            connection: Some(connection),
            left: None,
            events: VecDeque::new(),
            last: 0,
            gone: 0,
            sent: 0,
            replayed: 0,
        };
        (id.clone(), self.all.entry(id).or_insert(session))
    }

    /// Gives the session to `connection`, from after `seq` on; answers the connection that had it.
    pub(super) fn resume(&mut self, id: &str, seq: u64, connection: u64) -> Result<Option<u64>, ResumeError> {
        self.expire();
        let session = self.all.get_mut(id).ok_or(ResumeError::Gone)?;
        if seq == 0 || seq > session.last {
            // Who is connected keeps it, whatever another one claims to have.
            if session.connection.is_none() {
                self.all.remove(id);
            }
            return Err(ResumeError::InvalidSeq);
        }
        if seq < session.gone {
            self.all.remove(id);
            return Err(ResumeError::Gone);
        }
        // What came before stays: the next one to resume may know less.
        session.events.retain(|event| replayable(event.kind));
        session.sent = seq;
        session.replayed = session.events.iter().filter(|event| event.seq > seq).count() as u64;
        session.left = None;
        let before = session.connection.replace(connection);
        session.push("RESUMED", serde_json::json!({"_trace": []}), None);
        Ok(before)
    }

    /// The connection is gone, and a client may come back for the session.
    pub(super) fn leave(&mut self, id: &str) {
        if let Some(session) = self.all.get_mut(id) {
            session.connection = None;
            session.left = Some(Instant::now());
        }
    }

    pub(super) fn end(&mut self, id: &str) {
        self.all.remove(id);
    }

    /// Forgets those that nobody is connected to, as if their time were over.
    pub(super) fn end_left(&mut self) {
        self.all.retain(|_, session| session.connection.is_some());
    }

    pub(super) fn end_all(&mut self) {
        self.all.clear();
    }

    fn expire(&mut self) {
        self.all.retain(|_, session| session.left.is_none_or(|left| left.elapsed() < self.lifetime));
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut Session> {
        self.all.get_mut(id)
    }

    /// Connected or not, as long as it can be resumed.
    pub(super) fn live(&mut self) -> impl Iterator<Item = (&String, &mut Session)> + '_ {
        self.expire();
        self.all.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: Shard = Shard { id: 0, total: 1 };

    fn session_with(events: usize) -> (Sessions, String) {
        let mut sessions = Sessions::new(Duration::from_secs(1000));
        let (id, session) = sessions.start(1, SHARD, 0);
        session.push("READY", Value::Null, None);
        for _ in 0..events {
            session.push("MESSAGE_CREATE", Value::Null, None);
            session.take().unwrap();
        }
        sessions.leave(&id);
        (sessions, id)
    }

    fn taken(sessions: &mut Sessions, id: &str) -> Vec<(u64, &'static str)> {
        sessions.get_mut(id).unwrap().take().unwrap().into_iter().map(|event| (event.seq, event.kind)).collect()
    }

    #[test]
    fn what_was_missed_comes_again_before_the_session_is_resumed() {
        let (mut sessions, id) = session_with(3);
        assert_eq!(sessions.resume(&id, 2, 2), Ok(None));
        assert_eq!(taken(&mut sessions, &id), [(3, "MESSAGE_CREATE"), (4, "MESSAGE_CREATE"), (5, "RESUMED")]);
        assert_eq!(taken(&mut sessions, &id), []);
    }

    #[test]
    fn neither_ready_nor_resumed_comes_again() {
        let (mut sessions, id) = session_with(0);
        sessions.resume(&id, 1, 2).unwrap();
        assert_eq!(taken(&mut sessions, &id), [(2, "RESUMED")]);
        sessions.get_mut(&id).unwrap().push("MESSAGE_CREATE", Value::Null, None);
        assert_eq!(sessions.resume(&id, 1, 3), Ok(Some(2)));
        assert_eq!(taken(&mut sessions, &id), [(3, "MESSAGE_CREATE"), (4, "RESUMED")]);
    }

    #[test]
    fn who_resumes_after_another_may_know_less_than_that_one() {
        let (mut sessions, id) = session_with(3);
        sessions.resume(&id, 4, 2).unwrap();
        assert_eq!(taken(&mut sessions, &id), [(5, "RESUMED")]);
        sessions.resume(&id, 2, 3).unwrap();
        assert_eq!(taken(&mut sessions, &id), [(3, "MESSAGE_CREATE"), (4, "MESSAGE_CREATE"), (6, "RESUMED")]);
    }

    #[test]
    fn a_number_that_never_was_ends_a_session_that_nobody_has() {
        let (mut sessions, id) = session_with(1);
        assert_eq!(sessions.resume(&id, 3, 2), Err(ResumeError::InvalidSeq));
        assert_eq!(sessions.resume(&id, 2, 2), Err(ResumeError::Gone));
        let (mut sessions, id) = session_with(1);
        sessions.resume(&id, 2, 2).unwrap();
        assert_eq!(sessions.resume(&id, 9, 3), Err(ResumeError::InvalidSeq));
        assert_eq!(sessions.resume(&id, 2, 3), Ok(Some(2)), "it was connected, and stays");
    }

    #[test]
    fn events_that_were_forgotten_cannot_be_asked_for() {
        let (mut sessions, id) = session_with(REPLAYED + 10);
        assert_eq!(sessions.resume(&id, 5, 2), Err(ResumeError::Gone));
    }

    #[test]
    fn a_session_expires_once_nobody_has_it() {
        let mut sessions = Sessions::new(Duration::ZERO);
        let (id, session) = sessions.start(1, SHARD, 0);
        session.push("READY", Value::Null, None);
        assert_eq!(sessions.resume(&id, 1, 2), Ok(Some(1)));
        sessions.leave(&id);
        assert_eq!(sessions.resume(&id, 1, 3), Err(ResumeError::Gone));
    }
}
