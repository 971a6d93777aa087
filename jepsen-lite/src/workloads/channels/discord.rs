//! A Discord bot: an owner is who holds a connection to the gateway, from its IDENTIFY or RESUME on.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{GIVE_UP, PEOPLE, Platform, Sessions, label};
use crate::checkers::answers::{Answered, Question};
use crate::checkers::single_owner::{Listened, Word};
use crate::cluster::Names;
use crate::fakes::discord::{self, Handle, Id, Recorded, Route, What};

const TOKEN: &str = "fake-token";
/// A whole run: who held a session when is not known from a part of it.
const REMEMBERED: usize = 1_000_000;

pub struct Discord {
    handle: Handle,
    /// Each with the channel that only they and the bot are in.
    people: Vec<(Id, Id)>,
}

impl Discord {
    /// # Errors
    /// When it cannot be served.
    pub async fn start(names: &Names) -> Result<Self> {
        let options = discord::Options {
            token: TOKEN.to_owned(),
            label: Some(label(names)),
            remembered: REMEMBERED,
            ..discord::Options::default()
        };
        let handle = discord::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options).await?;
        let person = |_| {
            let user = handle.user("ann");
            Ok((user, handle.dm(user)?))
        };
        let people = (0..PEOPLE).map(person).collect::<Result<_>>()?;
        Ok(Self { handle, people })
    }
}

impl Platform for Discord {
    const NAME: &'static str = "discord";
    const BEGINNING: &'static str = "RESUME or IDENTIFY";

    fn settings(&self) -> Value {
        json!({"discord": {
            "token": TOKEN,
            "apiRoot": self.handle.base_url(),
            "dmPolicy": "open",
            "allowFrom": ["*"],
            "unknown": "hold",
        }})
    }

    async fn is_listened_to(&self) -> Result<()> {
        self.handle.wait_for_sessions(1, GIVE_UP).await.map(drop)
    }

    fn say(&self, n: usize, text: &str) -> Result<Question> {
        let (user, channel) = self.people[n % self.people.len()];
        let message = self.handle.say(channel, user, text)?;
        Ok(Question { chat: channel.to_string(), message: message.to_string() })
    }

    async fn next_owner(&self, old: &str, after: Instant) -> Result<(String, Instant)> {
        let is = |entry: &Recorded| begins(entry) && entry.started.at > after && another(entry, old);
        let first = self.handle.wait_for_entry(GIVE_UP, is).await?;
        Ok((first.caller.context("a caller with a name")?, first.started.at))
    }

    fn listened(&self) -> Vec<Listened> {
        listened(&self.handle.record())
    }

    fn words(&self) -> Vec<Word> {
        words(&self.handle.record())
    }

    fn answered(&self) -> Vec<Answered> {
        let of = |(_, channel): &(Id, Id)| self.handle.messages(*channel);
        let by_bot = self.people.iter().flat_map(of).filter(|message| message.by_bot);
        let one = |message: discord::Message| Answered {
            chat: message.channel.to_string(),
            to: message.reference.map(|to| to.to_string()),
            at: Duration::from_millis(message.unix_ms),
        };
        by_bot.map(one).collect()
    }

    fn forgot(&self) -> bool {
        self.handle.forgotten() > 0
    }

    fn sessions(&self) -> Option<Sessions> {
        let record = self.handle.record();
        let count = |is: fn(&What) -> bool| record.iter().filter(|entry| is(&entry.what)).count();
        Some(Sessions {
            begun: count(|what| matches!(what, What::Identify { .. })),
            resumed: count(|what| matches!(what, What::Resumed { .. })),
        })
    }
}

fn begins(entry: &Recorded) -> bool {
    matches!(entry.what, What::Identify { .. } | What::Resume { .. })
}

fn another(entry: &Recorded, old: &str) -> bool {
    entry.caller.as_deref().is_some_and(|caller| caller != old)
}

/// Who has no name is nobody else.
fn who(entry: &Recorded) -> String {
    entry.caller.clone().unwrap_or_else(|| format!("somebody at {}", entry.peer))
}

/// Up to the connection's end: one whose session was taken by another is still there, and should have gone before.
fn listened(record: &[Recorded]) -> Vec<Listened> {
    let mut all: Vec<(Option<u64>, Listened)> = Vec::new();
    for entry in record {
        let ends = matches!(entry.what, What::InvalidSession { .. } | What::Closed { .. });
        if begins(entry) {
            all.push((entry.connection, Listened { who: who(entry), from: entry.started.at, to: None }));
        } else if ends && let Some((_, open)) = all.iter_mut().rfind(|(connection, _)| *connection == entry.connection)
        {
            open.to = open.to.or(Some(entry.started.at));
        }
    }
    all.into_iter().map(|(_, listened)| listened).collect()
}

/// What people see. Questions to Discord, signs of typing and heartbeats harm nobody.
fn words(record: &[Recorded]) -> Vec<Word> {
    let word = |entry: &Recorded| {
        let What::Request(request) = &entry.what else { return None };
        let seen = matches!(request.route?, Route::CreateMessage | Route::EditMessage | Route::DeleteMessage);
        let what = format!("{} {}", request.method, request.path);
        seen.then(|| Word { who: who(entry), what, at: entry.started.at })
    };
    record.iter().filter_map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::single_owner::{Anomaly, Change, check};
    use crate::fakes::discord::{Answer, By, Moment, Request, Shard};

    const SHARD: Shard = Shard { id: 0, total: 1 };

    /// What happened, by whom, on which connection, and in which millisecond.
    fn record(start: Instant, steps: &[(&str, u64, u64, What)]) -> Vec<Recorded> {
        let entry = |(who, connection, ms, what): &(&str, u64, u64, What)| {
            let at = Moment { at: start + Duration::from_millis(*ms), unix_ms: *ms };
            Recorded {
                started: at,
                ended: Some(at),
                peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
                caller: Some((*who).to_owned()),
                connection: (*connection > 0).then_some(*connection),
                session: None,
                what: what.clone(),
            }
        };
        steps.iter().map(entry).collect()
    }

    fn identify() -> What {
        What::Identify { shard: SHARD, intents: 0, properties: Value::Null }
    }

    fn closed() -> What {
        What::Closed { code: None, by: By::Client }
    }

    fn request(route: Route) -> What {
        What::Request(Request {
            method: "POST".into(),
            route: Some(route),
            path: "/there".into(),
            user_agent: None,
            body: Value::Null,
            answer: Some(Answer::Status(200)),
        })
    }

    /// The fault at 100, the next owner at 200.
    fn judged(paused: bool, steps: &[(&str, u64, u64, What)]) -> Vec<Anomaly> {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (old, next) = ("a".to_owned(), "b".to_owned());
        let change = Change { old, fault: at(100), paused, next, began: at(200), until: at(1000) };
        let record = record(start, steps);
        check(&change, &listened(&record), &words(&record))
    }

    fn taken_over() -> [(&'static str, u64, u64, What); 5] {
        [
            ("a", 1, 0, identify()),
            ("b", 2, 200, What::Resume { seq: 1 }),
            ("a", 1, 200, What::Superseded),
            ("b", 2, 200, What::Resumed { shard: SHARD, replayed: 0 }),
            ("a", 1, 230, closed()),
        ]
    }

    #[test]
    fn an_instance_that_is_connected_still_when_the_next_one_resumes_is_caught() {
        let lasted = Duration::from_millis(30);
        let caught = Anomaly::Overlap { first: "a".into(), second: "b".into(), lasted };
        assert_eq!(judged(false, &taken_over()), [caught]);
        assert_eq!(judged(true, &taken_over()), [], "it could not know");
        let gone = [("a", 1, 0, identify()), ("a", 1, 150, closed()), ("b", 2, 200, What::Resume { seq: 1 })];
        assert_eq!(judged(false, &gone), []);
        // A session that was refused is none.
        let refused = [
            ("a", 1, 0, identify()),
            ("a", 1, 50, What::InvalidSession { resumable: false }),
            ("b", 2, 200, identify()),
            ("a", 1, 900, closed()),
        ];
        assert_eq!(judged(false, &refused), []);
    }

    #[test]
    fn an_instance_that_writes_to_people_after_its_end_is_caught() {
        let late = |route| [taken_over().as_slice(), &[("a", 0, 700, request(route))]].concat();
        let after = Duration::from_millis(500);
        let caught = Anomaly::Spoke { who: "a".into(), what: "POST /there".into(), after };
        assert_eq!(judged(true, &late(Route::CreateMessage)), [caught]);
        assert_eq!(judged(true, &late(Route::TriggerTyping)), [], "nobody is told anything");
    }
}
