//! People who write to a bot on a chat platform that is not one, and get an answer to each message.
//!
//! Everything is judged from the fake platform's own record, which knows each moment and, by way of the kernel, which
//! instance it was. What a platform is to the judge is [`Platform`].

mod discord;
mod telegram;

pub use discord::Discord;
pub use telegram::Telegram;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openclaw_proto::http::{DeadLetter, Entry, Role};
use openclaw_proto::ids::SessionKey;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{Judged, Shared};
use crate::checkers::answers::{self, Answered, Asked, Question, Unsent, Verdict};
use crate::checkers::single_owner::{self, Listened, Stop, Word};
use crate::checkers::{Check, Found};
use crate::client::Client;
use crate::cluster::Names;
use crate::fakes::Label;
use crate::history::{Answer, Call};

/// People who write to the bot, in a chat of their own each.
pub const PEOPLE: usize = 20;
/// How long a bot may go without an owner, and a message without an answer.
pub const GIVE_UP: Duration = Duration::from_secs(60);
pub const POLL: Duration = Duration::from_millis(20);

/// What the rounds and the judge need of a platform and of the people on it. Moments are those of its own record.
pub trait Platform: Send + Sync + 'static {
    /// As on the command line.
    const NAME: &'static str;
    /// What a new owner does first.
    const BEGINNING: &'static str;

    /// The account that is broken.
    fn account(&self) -> String {
        format!("{}:default", Self::NAME)
    }

    /// The setting `channels`.
    fn settings(&self) -> Value;

    /// Waits until somebody listens for the bot.
    fn is_listened_to(&self) -> impl Future<Output = Result<()>> + Send;

    /// One of the people, `n` says which, sends the bot a text.
    ///
    /// # Errors
    /// When the platform does not take it.
    fn say(&self, n: usize, text: &str) -> Result<Question>;

    /// The first to begin after `after` that is not `old`: its name and when.
    fn next_owner(&self, old: &str, after: Instant) -> impl Future<Output = Result<(String, Instant)>> + Send;

    /// Who listened when, as far as it is remembered.
    fn listened(&self) -> Vec<Listened>;

    /// What instances said, apart from what keeps a connection alive.
    fn words(&self) -> Vec<Word>;

    /// What the bot told people.
    fn answered(&self) -> Vec<Answered>;

    /// Whether more happened than its record has: then what is not seen in it proves nothing.
    fn forgot(&self) -> bool;

    /// Where listening is by sessions: how they began.
    fn sessions(&self) -> Option<Sessions>;
}

/// How connections to a platform got their sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sessions {
    /// Begun anew; what is said between two of them is lost, and platforms count them.
    pub begun: usize,
    /// Gone on with.
    pub resumed: usize,
}

/// Has a fake name its callers.
fn label(names: &Names) -> Label {
    let names = names.clone();
    Label::new(move |peer, local| names.of(peer, local))
}

/// Says one thing after the other until it is told to stop.
#[derive(Debug)]
pub struct Talk {
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<tokio::sync::Notify>,
    task: JoinHandle<Result<()>>,
}

impl Talk {
    pub fn start(platform: Arc<impl Platform>, pause: Duration) -> Self {
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let stop = Arc::new(tokio::sync::Notify::new());
        let (all, stopped) = (asked.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let mut n = 0;
            loop {
                let question = platform.say(n, &text(n))?;
                all.lock().unwrap_or_else(PoisonError::into_inner).push(Asked { question, at: unix_now() });
                n += 1;
                tokio::select! {
                    () = stopped.notified() => return Ok(()),
                    () = tokio::time::sleep(pause) => {}
                }
            }
        });
        Self { asked, stop, task }
    }

    pub fn count(&self) -> usize {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// # Errors
    /// When whoever talks failed.
    pub async fn stop(self) -> Result<Vec<Asked>> {
        self.stop.notify_one();
        self.task.await.context("whoever talks panicked")??;
        Ok(std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn unix_now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// People who talk to a bot beside other workloads of a run.
#[derive(Debug)]
pub struct Load<P> {
    platform: Arc<P>,
    clients: Vec<Client>,
    shared: Shared,
    talk: Talk,
}

impl<P: Platform> Load<P> {
    /// Waits until an instance listens for the bot, and begins to talk.
    ///
    /// # Errors
    /// When no instance listens.
    pub async fn start(platform: Arc<P>, pause: Duration, clients: &[Client], shared: &Shared) -> Result<Self> {
        platform.is_listened_to().await.with_context(|| format!("wait for the bot on {}", P::NAME))?;
        let talk = Talk::start(platform.clone(), pause);
        Ok(Self { platform, clients: clients.to_vec(), shared: shared.clone(), talk })
    }

    /// Stops talking, waits for the answers, and judges: answers and owners. Processes were stopped as `stops` say, and
    /// somebody must have listened within `bound` after each of `healed`. `names` are the instances. If the cluster has not
    /// `settled`, they are not asked what they hold, and answers that are missing are not judged.
    ///
    /// # Errors
    /// When whoever talks failed.
    pub async fn judge(
        self,
        names: &[String],
        stops: &[Stop],
        healed: &[Instant],
        bound: Duration,
        settled: bool,
    ) -> Result<Judged> {
        let asked = self.talk.stop().await?;
        let verdict = match settled {
            true => judge_answers(&self.clients, &*self.platform, &asked, GIVE_UP).await?,
            false => answers::check_answers(&asked, &self.platform.answered()),
        };
        let (until, forgot) = (Instant::now(), self.platform.forgot());
        let answered = self.platform.answered();
        remember(&self.shared, &self.platform.account(), &asked, &answered);
        let found = |anomaly: &str, message: String| Found { anomaly: anomaly.to_owned(), message, ops: Vec::new() };
        let answers = Check {
            checker: format!("{} answers", P::NAME),
            decided: settled && !forgot,
            figures: json!(verdict),
            found: verdict.anomalies.iter().map(|message| found("answers", message.clone())).collect(),
        };
        let (mut listened, mut words) = (self.platform.listened(), self.platform.words());
        // Whose connection closed before the kernel was asked whose it was has no name, and is nobody else.
        let calls = words.len();
        listened.retain(|one| names.contains(&one.who));
        words.retain(|one| names.contains(&one.who));
        let begin = self.shared.recorder.begin();
        let anomalies = single_owner::check_run(begin, until, &listened, &words, stops);
        let mut owners: Vec<Found> = anomalies.into_iter().map(|anomaly| found("owner", anomaly.to_string())).collect();
        let mut longest = Duration::ZERO;
        for moment in healed {
            let time = single_owner::unowned(*moment, until, &listened, stops).unwrap_or(until - *moment);
            longest = longest.max(time);
            if time > bound {
                let at = moment.saturating_duration_since(begin).as_secs_f64();
                let time = time.as_secs_f64();
                owners
                    .push(found("unowned", format!("nobody listened for {time:.1} s after the healing at {at:.1} s")));
            }
        }
        let figures = json!({
            "listened": listened.len(),
            "calls": calls,
            "callsWithoutName": calls - words.len(),
            "healed": healed.len(),
            "longestUnownedMs": longest.as_secs_f64() * 1000.0,
            "sessions": self.platform.sessions(),
        });
        let owners = Check { checker: format!("{} owners", P::NAME), decided: !forgot, figures, found: owners };
        Ok(Judged { checks: vec![answers, owners] })
    }
}

/// Puts what people said, and when they were answered, into the history: the platform kept the record.
fn remember(shared: &Shared, account: &str, asked: &[Asked], answered: &[Answered]) {
    let (now, unix_now) = (shared.recorder.begin().elapsed(), unix_now());
    let people: Vec<u32> = (0..PEOPLE).map(|_| shared.recorder.process()).collect();
    let at_us = |at: Duration| u64::try_from(now.saturating_sub(unix_now.saturating_sub(at)).as_micros()).unwrap_or(0);
    for (one, number) in asked.iter().zip(0_usize..) {
        let Question { chat, message } = one.question.clone();
        let answer = answered.iter().find(|answer| answer.chat == chat && answer.to.as_ref() == Some(&message));
        let process = people[number % PEOPLE];
        let call = Call::Say { account: account.to_owned(), chat, message };
        let ended = answer.map(|answer| (at_us(answer.at).max(at_us(one.at)), Answer::Answered));
        shared.recorder.add(process, call, at_us(one.at), ended);
    }
}

/// Messages that the gateway lists as not sent, each with the question that it answers, where its conversation says which.
async fn unsent(client: &Client, account: &str, asked: &[Asked]) -> Result<Unsent, String> {
    let mut unsent = Unsent::default();
    let list = client.dead_letters(account).await.ok().map_err(|error| format!("{error:#}"))?;
    for letter in list.dead_letters {
        if letter.state != "unknown" {
            *unsent.failed.entry(letter.chat).or_default() += 1;
            continue;
        }
        match question(client, &letter, asked).await {
            Some(question) => drop(unsent.questions.insert(question)),
            None => *unsent.unknown.entry(letter.chat).or_default() += 1,
        }
    }
    Ok(unsent)
}

/// The question of a letter: what was said in the turn of which its entry is.
async fn question(client: &Client, letter: &DeadLetter, asked: &[Asked]) -> Option<Question> {
    let session = SessionKey::parse(letter.session_key.clone()?).ok()?;
    let entries = client.transcript(&session).await.ok()?;
    let turn = entries.iter().find(|entry| Some(entry.seq) == letter.seq)?.turn_id.as_deref()?;
    let own = |entry: &&Entry| entry.role == Role::User && entry.turn_id.as_deref() == Some(turn);
    let [said] = entries.iter().filter(own).collect::<Vec<_>>()[..] else { return None };
    let (_, one) = asked.iter().enumerate().find(|(n, _)| text(*n) == said.text)?;
    Some(one.question.clone())
}

/// What is said as the `n`th message.
fn text(n: usize) -> String {
    format!("message {n}")
}

/// Answers that are on their way arrive; then what is missing is what is held. That no instance says what is held, one after the
/// other as long as the patience lasts, is an anomaly.
///
/// # Errors
/// When there is nobody to ask.
pub async fn judge_answers(
    clients: &[Client],
    platform: &impl Platform,
    asked: &[Asked],
    patience: Duration,
) -> Result<Verdict> {
    ensure!(!clients.is_empty(), "no instance to ask");
    let begin = Instant::now();
    let mut at = 0;
    loop {
        let (answered, late) = (platform.answered(), begin.elapsed() > patience);
        match unsent(&clients[at], &platform.account(), asked).await {
            Ok(unsent) if late || !answers::is_open(asked, &answered, &unsent) => {
                return Ok(answers::check(asked, &answered, &unsent));
            }
            Ok(_) => {}
            Err(why) if late => {
                let mut verdict = answers::check_answers(asked, &answered);
                verdict.anomalies.push(format!("no instance says which answers are held: {why}"));
                return Ok(verdict);
            }
            Err(_) => at = (at + 1) % clients.len(),
        }
        tokio::time::sleep(POLL * 10).await;
    }
}
