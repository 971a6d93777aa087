//! People who talk to the model through any instance and read its answers as they come, going on at another instance
//! when a connection breaks.
//!
//! The model is the one in the binary, which counts as far as it is told to, so that the right answer is known. Two people
//! share a session, so that turns wait for each other. A message is repeated with its key until it is accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use openclaw_proto::http::{ChatRequest, Entry, ErrorCode, Turn, TurnState};
use openclaw_proto::ids::{IdempotencyKey, SessionKey, TurnId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::{Judged, Shared};
use crate::checkers::conversations::{self, Final};
use crate::checkers::{Check, Found};
use crate::client::{Answer as Read, Client, ReadError, Reader, Reply, Transcript};
use crate::history::{Answer, Call, What};

/// How far the model counts, and how slowly: up to about a second and a half.
const TOKENS: std::ops::RangeInclusive<u64> = 3..=30;
const DELAY_MS: std::ops::RangeInclusive<u64> = 5..=50;
/// Between two tries to have a message accepted, and two looks at turns that have not ended.
const PAUSE: Duration = Duration::from_millis(20);

/// The shape of the load.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names the run: its sessions and keys are its own.
    pub run: String,
    pub clients: u32,
    /// How long a message is repeated, and then its answer waited for.
    pub give_up: Duration,
    /// Pause of a client after each answer.
    pub pause: Duration,
    pub seed: u64,
}

/// A load that is running.
#[derive(Debug)]
pub struct Load {
    options: Options,
    clients: Vec<Client>,
    shared: Shared,
    tasks: JoinSet<Result<Vec<Found>>>,
}

impl Load {
    /// Starts the clients, over all `targets`.
    ///
    /// # Errors
    /// When the run's name does not fit into a session key.
    pub fn start(options: Options, targets: &[Client], shared: &Shared) -> Result<Self> {
        let mut tasks = JoinSet::new();
        let mut rng = StdRng::seed_from_u64(options.seed);
        for number in 0..options.clients {
            let talker = Talker {
                process: shared.recorder.process(),
                session: session(&options, number / 2)?,
                targets: targets.to_vec(),
                rng: StdRng::seed_from_u64(rng.random()),
                options: options.clone(),
                shared: shared.clone(),
            };
            tasks.spawn(talker.run());
        }
        Ok(Self { options, clients: targets.to_vec(), shared: shared.clone(), tasks })
    }

    /// Waits until every client has ended and every turn has, then judges. What cannot be read until then is an anomaly.
    ///
    /// # Errors
    /// When a client failed for a reason of its own.
    pub async fn judge(mut self) -> Result<Judged> {
        let mut found = self.ended().await?;
        let deadline = Instant::now() + self.options.give_up;
        let last = self.last(deadline, &mut found).await?;
        let mut check = conversations::check(&self.shared.recorder.events(), &last);
        check.found.extend(found);
        Ok(Judged { checks: vec![check] })
    }

    /// Judges by what clients were told alone, when the instances cannot be asked what is there in the end: undecided, if nothing
    /// is found.
    ///
    /// # Errors
    /// When a client failed for a reason of its own.
    pub async fn judge_history(mut self) -> Result<Check> {
        let found = self.ended().await?;
        let mut check = conversations::check(&self.shared.recorder.events(), &Final::default());
        check.found.extend(found);
        Ok(Check { decided: false, ..check })
    }

    /// What readers saw that they must never see.
    async fn ended(&mut self) -> Result<Vec<Found>> {
        let mut seen = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            seen.extend(ended.context("a client panicked")??);
        }
        Ok(seen)
    }

    /// What is there once every turn has ended, or at the deadline.
    async fn last(&self, deadline: Instant, found: &mut Vec<Found>) -> Result<Final> {
        let client = self.clients.first().context("no instance to ask")?;
        let mut transcripts = BTreeMap::new();
        for number in 0..self.options.clients.div_ceil(2) {
            let session = session(&self.options, number)?;
            if let Some(entries) = transcript(client, &session, deadline, found).await {
                transcripts.insert(session.to_string(), entries);
            }
        }
        let named: BTreeSet<&String> =
            transcripts.values().flatten().filter_map(|entry| entry.turn_id.as_ref()).collect();
        let mut last = Final::default();
        for name in named {
            let id = TurnId::parse(name.clone()).context("the turn of an entry")?;
            match turn(client, &id, deadline).await {
                Ok(turn) => drop(last.turns.insert(name.clone(), turn)),
                Err(why) => found.push(unreadable(format!("turn {id}: {why}"))),
            }
        }
        // Replies that came in between belong to those turns.
        for name in transcripts.keys() {
            let session = SessionKey::parse(name.clone()).context("session key")?;
            if let Some(entries) = transcript(client, &session, deadline, found).await {
                last.transcripts.insert(name.clone(), entries);
            }
        }
        Ok(last)
    }
}

fn unreadable(message: String) -> Found {
    Found { anomaly: "unreadable".to_owned(), message, ops: Vec::new() }
}

async fn transcript(
    client: &Client,
    session: &SessionKey,
    deadline: Instant,
    found: &mut Vec<Found>,
) -> Option<Vec<Entry>> {
    match client.transcript_until(session, deadline).await {
        Ok(Transcript { entries, cut }) => {
            found.extend(cut.map(|cut| unreadable(format!("{session}: {cut}"))));
            Some(entries)
        }
        Err(why) => {
            found.push(unreadable(format!("{session}: {why}")));
            None
        }
    }
}

/// A turn once it has ended, or as it is at the deadline.
async fn turn(client: &Client, id: &TurnId, deadline: Instant) -> Result<Turn, String> {
    loop {
        let late = Instant::now() > deadline;
        match client.turn(id).await {
            Reply::Ok(turn) if late || !matches!(turn.state, TurnState::Queued | TurnState::Running) => {
                return Ok(turn);
            }
            Reply::Failed(failure) if late || failure.code == Some(ErrorCode::NotFound) => {
                return Err(format!("{failure:?}"));
            }
            Reply::Unknown(message) if late => return Err(message),
            Reply::Ok(_) | Reply::Failed(_) | Reply::Unknown(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

fn session(options: &Options, number: u32) -> Result<SessionKey> {
    SessionKey::parse(format!("{}-talk-{number}", options.run)).context("session key of the run")
}

struct Talker {
    process: u32,
    session: SessionKey,
    targets: Vec<Client>,
    rng: StdRng,
    options: Options,
    shared: Shared,
}

/// What came of a message.
enum Told {
    Answer(Read),
    Ended { turn: TurnId, code: String },
    Refused(String),
    Unknown(String),
    Wrong(String),
}

impl Talker {
    /// What readers saw that they must never see.
    async fn run(mut self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for n in 0_u64.. {
            if self.shared.progress.is_over(None) {
                break;
            }
            let (tokens, delay) = (self.rng.random_range(TOKENS), self.rng.random_range(DELAY_MS));
            let message = format!("[tokens={tokens} delay={delay}ms] {}:{n}", self.process);
            let key = IdempotencyKey::parse(format!("{}:turn:{}:{n}", self.options.run, self.process))
                .context("key of a message")?;
            let (session, text) = (self.session.to_string(), message.clone());
            let call = Call::Turn { session, message: text, tokens, key: key.to_string() };
            let op = self.shared.recorder.invoke(self.process, call);
            let (attempts, told) = self.ask(message, &key).await;
            self.shared.recorder.note(match told {
                Told::Answer(read) => {
                    let (turn, entry, text) = (read.turn.to_string(), read.entry_id, read.text);
                    let (restarts, reconnects) = (read.restarts, read.reconnects);
                    let answer = Answer::Replied { turn, entry, text, restarts, reconnects };
                    What::Ok { op, attempts, answer }
                }
                Told::Ended { turn, code } => {
                    What::Ok { op, attempts, answer: Answer::Ended { turn: turn.to_string(), code } }
                }
                Told::Refused(message) => What::Fail { op, attempts, message },
                Told::Unknown(message) => What::Info { op, attempts, message },
                Told::Wrong(message) => {
                    let said = format!("{}: {message}", self.session);
                    found.push(Found { anomaly: "stream".to_owned(), message: said, ops: vec![op] });
                    What::Info { op, attempts, message }
                }
            });
            tokio::time::sleep(self.options.pause).await;
        }
        Ok(found)
    }

    async fn ask(&mut self, message: String, key: &IdempotencyKey) -> (u32, Told) {
        let request = ChatRequest { session_key: Some(self.session.to_string()), message, ..ChatRequest::default() };
        let deadline = Instant::now() + self.options.give_up;
        let (mut attempts, mut certainly_not_accepted) = (0, true);
        let mut at = self.rng.random_range(0..self.targets.len());
        loop {
            attempts += 1;
            let sent = Instant::now();
            let refused = match self.targets[at].stream(&request, key).await {
                Reply::Ok(stream) => match Reader::over(&self.targets, at, stream).await {
                    Ok(reader) => {
                        self.shared.progress.acknowledge(sent);
                        return (attempts, read(reader, Instant::now() + self.options.give_up).await);
                    }
                    Err(ReadError::Wrong(message)) => return (attempts, Told::Wrong(message)),
                    Err(error) => {
                        certainly_not_accepted = false;
                        error.to_string()
                    }
                },
                Reply::Failed(failure) => {
                    if failure.code.is_some_and(|code| !code.retryable()) {
                        let message = format!("{failure:?}");
                        let told = if certainly_not_accepted { Told::Refused(message) } else { Told::Unknown(message) };
                        return (attempts, told);
                    }
                    failure.message
                }
                Reply::Unknown(message) => {
                    certainly_not_accepted = false;
                    message
                }
            };
            if Instant::now() > deadline {
                let told = if certainly_not_accepted { Told::Refused(refused) } else { Told::Unknown(refused) };
                return (attempts, told);
            }
            at = (at + 1) % self.targets.len();
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn read(reader: Reader, deadline: Instant) -> Told {
    match reader.finish(deadline).await {
        Ok(answer) => Told::Answer(answer),
        Err(ReadError::Ended { turn, code, .. }) => Told::Ended { turn, code: code.as_str().to_owned() },
        Err(ReadError::Wrong(message)) => Told::Wrong(message),
        Err(error @ (ReadError::Late { .. } | ReadError::NoStart)) => Told::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Protocol;
    use crate::mock_gateway::{Fake, Mischief};

    async fn told(mischief: Mischief) -> Told {
        let fake = Fake::start(mischief).await;
        let options = Options {
            run: "test".into(),
            clients: 1,
            give_up: Duration::from_secs(10),
            pause: Duration::ZERO,
            seed: 1,
        };
        let mut talker = Talker {
            process: 0,
            session: session(&options, 0).unwrap(),
            targets: vec![Client::new(fake.address(), Protocol::Http1, Duration::from_secs(5))],
            rng: StdRng::seed_from_u64(1),
            options,
            shared: Shared::default(),
        };
        talker.ask("one two three".into(), &IdempotencyKey::parse("a").unwrap()).await.1
    }

    #[tokio::test]
    async fn an_answer_is_read_over_connections_that_break() {
        let Told::Answer(answer) = told(Mischief::None).await else { panic!("no answer") };
        assert!(answer.text == "one two three" && answer.reconnects > 0, "{answer:?}");
    }

    #[tokio::test]
    async fn planted_a_turn_whose_row_is_lost_and_a_session_that_cannot_be_read() {
        let client = async |mischief| {
            let fake = Fake::start(mischief).await;
            (Client::new(fake.address(), Protocol::Http1, Duration::from_secs(5)), fake)
        };
        let (gateway, _fake) = client(Mischief::None).await;
        let id = TurnId::parse("0123456789abcdef0123456789abcdef").unwrap();
        let why = turn(&gateway, &id, Instant::now() + Duration::from_secs(60)).await.unwrap_err();
        assert!(why.contains("NotFound"), "at once, and not at the deadline: {why}");

        let (gateway, _fake) = client(Mischief::BreakReads).await;
        let (session, mut found) = (SessionKey::parse("s").unwrap(), Vec::new());
        assert_eq!(transcript(&gateway, &session, Instant::now(), &mut found).await, None);
        assert!(found.len() == 1 && found[0].anomaly == "unreadable", "{found:?}");
    }

    #[tokio::test]
    async fn planted_a_stream_with_a_repeat_or_a_gap() {
        for mischief in [Mischief::RepeatDelta, Mischief::SkipDelta] {
            assert!(matches!(told(mischief).await, Told::Wrong(_)), "{mischief:?}");
        }
    }
}
