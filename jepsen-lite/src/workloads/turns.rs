//! People who talk to the model through any instance and read its answers as they come, going on at another instance
//! when a connection breaks.
//!
//! The model is the one in the binary, which counts as far as it is told to, so that the right answer is known. Two people
//! share a session, so that turns wait for each other. A message is repeated with its key until it is accepted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use openclaw_proto::http::{ChatRequest, TurnState};
use openclaw_proto::ids::{IdempotencyKey, SessionKey, TurnId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::{Judged, Shared};
use crate::checkers::Found;
use crate::checkers::conversations::{self, Final};
use crate::client::{Answer as Read, Client, ReadError, Reader, Reply};
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

    /// Waits until every client has ended and every turn has, then judges.
    ///
    /// # Errors
    /// When a client failed for a reason of its own, or the instances do not answer.
    pub async fn judge(mut self) -> Result<Judged> {
        let mut seen = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            seen.extend(ended.context("a client panicked")??);
        }
        let deadline = Instant::now() + self.options.give_up;
        let last = self.last(deadline).await?;
        let mut check = conversations::check(&self.shared.recorder.events(), &last);
        check.found.extend(seen);
        Ok(Judged { checks: vec![check] })
    }

    /// What is there once every turn has ended, or at the deadline.
    async fn last(&self, deadline: Instant) -> Result<Final> {
        let client = self.clients.first().context("no instance to ask")?;
        let mut last = Final::default();
        for number in 0..self.options.clients.div_ceil(2) {
            let session = session(&self.options, number)?;
            last.transcripts.insert(session.to_string(), client.transcript(&session).await?);
        }
        let named: Vec<String> =
            last.transcripts.values().flatten().filter_map(|entry| entry.turn_id.clone()).collect();
        for name in named {
            if last.turns.contains_key(&name) {
                continue;
            }
            let id = TurnId::parse(name.clone()).context("the turn of an entry")?;
            let turn = loop {
                let turn = client.turn(&id).await.ok().with_context(|| format!("read turn {id}"))?;
                let ended = !matches!(turn.state, TurnState::Queued | TurnState::Running);
                if ended || Instant::now() > deadline {
                    break turn;
                }
                tokio::time::sleep(PAUSE).await;
            };
            last.turns.insert(name, turn);
        }
        // Replies that came in between belong to those turns.
        for (name, entries) in &mut last.transcripts {
            *entries = client.transcript(&SessionKey::parse(name.clone()).context("session key")?).await?;
        }
        Ok(last)
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
    async fn planted_a_stream_with_a_repeat_or_a_gap() {
        for mischief in [Mischief::RepeatDelta, Mischief::SkipDelta] {
            assert!(matches!(told(mischief).await, Told::Wrong(_)), "{mischief:?}");
        }
    }
}
