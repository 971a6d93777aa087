//! A Telegram bot: an owner is who polls.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{GIVE_UP, PEOPLE, Platform, Sessions, label};
use crate::checkers::answers::{Answered, Question};
use crate::checkers::single_owner::{Listened, Word};
use crate::cluster::Names;
use crate::fakes::telegram::{self, BotId, ChatId, Handle, Method, Recorded, UserId};

const TOKEN: &str = "7000001:harness-harness-harness-harness-h";
/// More than a run of many hours asks for: a forgotten one could have been the one that was wrong.
const REMEMBERED: usize = 1_000_000;

pub struct Telegram {
    handle: Handle,
    bot: BotId,
    people: Vec<i64>,
}

impl Telegram {
    /// # Errors
    /// When it cannot be served.
    pub async fn start(names: &Names) -> Result<Self> {
        let options = telegram::Options {
            label: Some(label(names)),
            remembered: REMEMBERED,
            ..telegram::Options::with_bots(&[TOKEN])
        };
        let handle = telegram::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options).await?;
        let people: Vec<i64> = (1..).take(PEOPLE).collect();
        for person in &people {
            handle.add_user(UserId(*person), "Ann", None);
        }
        Ok(Self { handle, bot: telegram::Account::new(TOKEN).id(), people })
    }
}

impl Platform for Telegram {
    const NAME: &'static str = "telegram";
    const BEGINNING: &'static str = "first poll";

    fn settings(&self) -> Value {
        json!({"telegram": {
            "botToken": TOKEN,
            "apiRoot": self.handle.api_url(),
            "dmPolicy": "open",
            "allowFrom": ["*"],
            "unknown": "hold",
        }})
    }

    async fn is_listened_to(&self) -> Result<()> {
        self.handle.wait_for_poll(self.bot, GIVE_UP).await
    }

    fn say(&self, n: usize, text: &str) -> Result<Question> {
        let person = self.people[n % self.people.len()];
        let said = self.handle.say(self.bot, ChatId(person), UserId(person), text)?;
        Ok(Question { chat: person.to_string(), message: said.message.to_string() })
    }

    async fn next_owner(&self, old: &str, after: Instant) -> Result<(String, Instant)> {
        let is = |request: &Recorded| polls(request) && request.started.at > after && another(request, old);
        let first = self.handle.wait_for_request(is, GIVE_UP).await?;
        Ok((first.poller.context("a poller with a name")?, first.started.at))
    }

    fn listened(&self) -> Vec<Listened> {
        listened(&self.handle.requests())
    }

    fn words(&self) -> Vec<Word> {
        let word =
            |request: &Recorded| Word { who: who(request), what: request.called.clone(), at: request.started.at };
        self.handle.requests().iter().map(word).collect()
    }

    fn answered(&self) -> Vec<Answered> {
        let mut answered = Vec::new();
        for person in &self.people {
            answered.extend(self.handle.messages(self.bot, ChatId(*person)).into_iter().map(|message| Answered {
                chat: person.to_string(),
                to: message.reply_to.map(|to| to.to_string()),
                at: message.date,
            }));
        }
        answered
    }

    fn forgot(&self) -> bool {
        self.handle.forgotten() > 0
    }

    fn sessions(&self) -> Option<Sessions> {
        None
    }
}

fn polls(request: &Recorded) -> bool {
    request.method == Some(Method::GetUpdates)
}

fn another(request: &Recorded, old: &str) -> bool {
    request.poller.as_deref().is_some_and(|poller| poller != old)
}

/// Who has no name is nobody else.
fn who(request: &Recorded) -> String {
    request.poller.clone().unwrap_or_else(|| format!("somebody at {}", request.peer))
}

fn listened(requests: &[Recorded]) -> Vec<Listened> {
    let one = |request: &Recorded| Listened {
        who: who(request),
        from: request.started.at,
        to: request.ended.map(|(ended, _)| ended.at),
    };
    requests.iter().filter(|request| polls(request)).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whether_any_request_was_forgotten_is_known() {
        let options = telegram::Options { remembered: 1, ..telegram::Options::with_bots(&[TOKEN]) };
        let handle = telegram::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options).await.unwrap();
        let telegram = Telegram { handle, bot: telegram::Account::new(TOKEN).id(), people: Vec::new() };
        get_me(&telegram).await;
        assert!(!telegram.forgot());
        get_me(&telegram).await;
        assert!(telegram.forgot());
    }

    async fn get_me(telegram: &Telegram) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let url = telegram.handle.api_url();
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET /bot{TOKEN}/getMe HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    }
}
