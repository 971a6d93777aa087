//! Clients that append texts, unique in the run, to a few sessions, each write under its own idempotency key.
//!
//! A client sends one write at a time and repeats it, with its key and over all instances in turn, until it is
//! acknowledged. Now and then it sends an acknowledged write once more, to see whether the answer is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use openclaw_proto::http::{Entry, ErrorCode};
use openclaw_proto::ids::{IdempotencyKey, SessionKey};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::checkers::Check;
use crate::checkers::append::{self, Anomaly, Verdict};
use crate::client::{Client, Failure, Reply, Transcript, append_until};
use crate::history::{Answer, Call, Recorder, What};
use crate::workloads::Shared;
use crate::workloads::progress::Progress;

/// A read begins so many entries before the last one that its client wrote, and is of at most so many.
const BEFORE: u64 = 2;
const PAGE: usize = 20;

/// The shape of the load.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names the run: its sessions and keys are its own.
    pub run: String,
    pub clients: u32,
    pub sessions: u32,
    /// Acknowledged writes after which the load ends; absent: when it is told to.
    pub appends: Option<u64>,
    /// How long one attempt waits for its answer, drawn anew for each client.
    pub attempt_ms: Range<u64>,
    /// How long one write is repeated before it is given up as unknown.
    pub give_up: Duration,
    /// Pause of a client after each write, which makes the load a light one.
    pub pause: Duration,
    /// One in so many acknowledged writes is sent once more.
    pub repeat_one_in: u32,
    /// After one in so many acknowledged writes, the end of the session is read from any instance.
    pub read_one_in: u32,
    pub seed: u64,
}

impl Options {
    /// Eight clients on four sessions until they are told to stop, which ask another instance when one is slow.
    pub fn steady(run: impl Into<String>, give_up: Duration) -> Self {
        Self {
            run: run.into(),
            clients: 8,
            sessions: 4,
            appends: None,
            attempt_ms: 900..1100,
            give_up,
            pause: Duration::ZERO,
            repeat_one_in: 20,
            read_one_in: 20,
            seed: 1,
        }
    }
}

/// A load that is running.
#[derive(Debug)]
pub struct Load {
    options: Options,
    clients: Vec<Client>,
    shared: Shared,
    tasks: JoinSet<Result<()>>,
}

impl Load {
    /// Starts the clients, spread over `targets`.
    ///
    /// # Errors
    /// When the run's name does not fit into a session key.
    pub fn start(options: Options, targets: &[Client]) -> Result<Self> {
        Self::start_among(options, targets, &Shared::default())
    }

    /// The same beside other workloads of one run.
    ///
    /// # Errors
    /// When the run's name does not fit into a session key.
    pub fn start_among(options: Options, targets: &[Client], shared: &Shared) -> Result<Self> {
        let mut tasks = JoinSet::new();
        let mut rng = StdRng::seed_from_u64(options.seed);
        for number in 0..options.clients {
            let timeout = Duration::from_millis(rng.random_range(options.attempt_ms.clone()));
            let writer = Writer {
                process: shared.recorder.process(),
                session: session(&options, number % options.sessions)?,
                targets: targets.iter().map(|target| target.with_timeout(timeout)).collect(),
                rng: StdRng::seed_from_u64(rng.random()),
                options: options.clone(),
                shared: shared.clone(),
            };
            tasks.spawn(writer.run());
        }
        Ok(Self { options, clients: targets.to_vec(), shared: shared.clone(), tasks })
    }

    pub fn progress(&self) -> &Arc<Progress> {
        &self.shared.progress
    }

    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.shared.recorder
    }

    /// Waits until every client has ended, then reads every session from every instance and judges. What cannot be read, though
    /// it is tried for as long as a write is repeated, is an anomaly.
    ///
    /// # Errors
    /// When a client failed for a reason of its own.
    pub async fn judge(mut self) -> Result<Verdict> {
        self.ended().await?;
        let deadline = Instant::now() + self.options.give_up;
        let mut transcripts: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        let (mut anomalies, mut unread) = (Vec::new(), BTreeSet::new());
        for number in 0..self.options.sessions {
            let session = session(&self.options, number)?;
            let name = session.to_string();
            for (index, client) in self.clients.iter().enumerate() {
                let instance = format!("instance {index}");
                let unreadable = |why| Anomaly::Unreadable { session: name.clone(), instance: instance.clone(), why };
                let Transcript { entries, cut } = match client.transcript_until(&session, deadline).await {
                    Ok(transcript) => transcript,
                    Err(why) => {
                        anomalies.push(unreadable(why));
                        continue;
                    }
                };
                anomalies.extend(cut.map(unreadable));
                match transcripts.get(&name) {
                    Some(first) => anomalies.extend(append::compare(&instance, &name, first, &entries)),
                    None => drop(transcripts.insert(name.clone(), entries)),
                }
            }
            if !transcripts.contains_key(&name) {
                unread.insert(name);
            }
        }
        let mut verdict = append::check_some(&self.shared.recorder.events(), &transcripts, &unread);
        verdict.anomalies.append(&mut anomalies);
        Ok(verdict)
    }

    async fn ended(&mut self) -> Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a client panicked")??;
        }
        Ok(())
    }

    /// [`Self::judge`] as a check, whose anomalies name their operations.
    ///
    /// # Errors
    /// As [`Self::judge`].
    pub async fn judge_all(self) -> Result<Check> {
        let recorder = self.shared.recorder.clone();
        Ok(append::named(self.judge().await?, &recorder.events()))
    }

    /// Judges by the history alone, when the instances cannot be asked what is there in the end: undecided, if nothing is found.
    ///
    /// # Errors
    /// When a client failed for a reason of its own.
    pub async fn judge_history(mut self) -> Result<Check> {
        self.ended().await?;
        let unread = (0..self.options.sessions)
            .map(|number| Ok(session(&self.options, number)?.to_string()))
            .collect::<Result<_>>()?;
        let events = self.shared.recorder.events();
        let verdict = append::check_some(&events, &BTreeMap::new(), &unread);
        Ok(Check { decided: false, ..append::named(verdict, &events) })
    }
}

fn session(options: &Options, number: u32) -> Result<SessionKey> {
    SessionKey::parse(format!("{}-{number}", options.run)).context("session key of the run")
}

struct Writer {
    process: u32,
    session: SessionKey,
    targets: Vec<Client>,
    rng: StdRng,
    options: Options,
    shared: Shared,
}

impl Writer {
    async fn run(mut self) -> Result<()> {
        let mut last = 0;
        for n in 0_u64.. {
            if self.shared.progress.is_over(self.options.appends) {
                break;
            }
            let text = format!("{}:{n}", self.process);
            let key = IdempotencyKey::parse(format!("{}:{text}", self.options.run)).context("key of a write")?;
            let call = Call::Append { session: self.session.to_string(), text: text.clone(), key: key.to_string() };
            let done = self.write(call, &text, &key).await;
            last = done.unwrap_or(last);
            if done.is_some() && self.rng.random_ratio(1, self.options.read_one_in) {
                self.read(last).await;
            }
            if done.is_some() && self.rng.random_ratio(1, self.options.repeat_one_in) {
                let call = Call::Repeat { session: self.session.to_string(), text: text.clone(), key: key.to_string() };
                self.write(call, &text, &key).await;
            }
            if !self.options.pause.is_zero() {
                tokio::time::sleep(self.options.pause).await;
            }
        }
        Ok(())
    }

    /// Reads what came after the last entry but some that this client wrote: all of that must be there.
    async fn read(&mut self, last: u64) {
        let instance = self.rng.random_range(0..self.targets.len());
        let after = last.saturating_sub(BEFORE);
        let call = Call::Read { session: self.session.to_string(), instance, after, limit: PAGE as u64 };
        let op = self.shared.recorder.invoke(self.process, call);
        let (attempts, reply) = (1, self.targets[instance].entries(&self.session, after, PAGE).await);
        self.shared.recorder.note(match reply {
            Reply::Ok(list) => {
                let tail = list.entries.into_iter().map(|entry| (entry.seq, entry.text)).collect();
                What::Ok { op, attempts, answer: Answer::Read { head: list.head_seq, tail } }
            }
            Reply::Failed(Failure { code: Some(ErrorCode::NotFound), .. }) => {
                What::Ok { op, attempts, answer: Answer::Read { head: 0, tail: Vec::new() } }
            }
            // A read has no effect, so whatever else became of it, it says nothing.
            Reply::Failed(failure) => What::Fail { op, attempts, message: failure.message },
            Reply::Unknown(message) => What::Fail { op, attempts, message },
        });
    }

    /// Where it stands, if it was acknowledged.
    async fn write(&mut self, call: Call, text: &str, key: &IdempotencyKey) -> Option<u64> {
        let first_time = matches!(call, Call::Append { .. });
        let first = self.rng.random_range(0..self.targets.len());
        let op = self.shared.recorder.invoke(self.process, call);
        let deadline = Instant::now() + self.options.give_up;
        match append_until(&self.targets, first, &self.session, text, key, deadline).await {
            Ok(done) => {
                let seq = done.value.seq;
                let answer = Answer::Appended(done.value);
                self.shared.recorder.note(What::Ok { op, attempts: done.attempts, answer });
                if first_time {
                    self.shared.progress.acknowledge(done.sent);
                }
                Some(seq)
            }
            Err(given_up) => {
                let (attempts, message) = (given_up.attempts, given_up.last);
                self.shared.recorder.note(if given_up.certainly_not_applied {
                    What::Fail { op, attempts, message }
                } else {
                    What::Info { op, attempts, message }
                });
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Protocol;
    use crate::mock_gateway::{Fake, Mischief};

    fn options() -> Options {
        Options {
            run: "test".into(),
            clients: 4,
            sessions: 2,
            appends: Some(200),
            attempt_ms: 4000..5000,
            give_up: Duration::from_secs(10),
            pause: Duration::ZERO,
            repeat_one_in: 10,
            read_one_in: 4,
            seed: 1,
        }
    }

    async fn run(mischief: Mischief) -> Verdict {
        let fake = Fake::start(mischief).await;
        let targets = [Client::new(fake.address(), Protocol::Http1, Duration::from_secs(5))];
        Load::start(options(), &targets).unwrap().judge().await.unwrap()
    }

    #[tokio::test]
    async fn a_correct_gateway_passes() {
        let verdict = run(Mischief::None).await;
        assert_eq!(verdict.anomalies, []);
        assert!(verdict.acknowledged >= 200 && verdict.repeats > 0, "{verdict:?}");
    }

    #[tokio::test]
    async fn planted_a_gateway_that_acknowledges_what_it_drops() {
        let verdict = run(Mischief::DropTenth).await;
        assert!(verdict.count(|anomaly| matches!(anomaly, Anomaly::Lost { .. })) > 0, "{verdict:?}");
    }

    #[tokio::test]
    async fn planted_a_gateway_whose_head_is_behind_its_entries() {
        let verdict = run(Mischief::LoseEnd).await;
        let cut = |anomaly: &Anomaly| matches!(anomaly, Anomaly::Unreadable { why, .. } if why.contains("the head is"));
        assert_eq!(verdict.count(cut), 2, "{verdict:?}");
        assert!(verdict.count(|anomaly| matches!(anomaly, Anomaly::Lost { .. })) > 0, "{verdict:?}");
    }

    #[tokio::test]
    async fn planted_a_session_that_cannot_be_read() {
        let options = Options { give_up: Duration::from_millis(300), read_one_in: u32::MAX, ..options() };
        let fake = Fake::start(Mischief::BreakReads).await;
        let targets = [Client::new(fake.address(), Protocol::Http1, Duration::from_secs(5))];
        let verdict = Load::start(options, &targets).unwrap().judge().await.unwrap();
        assert_eq!(verdict.anomalies.len(), 2, "one for each session, and none that only follows: {verdict:?}");
        let of_500 = |anomaly: &Anomaly| matches!(anomaly, Anomaly::Unreadable { why, .. } if why.contains("500"));
        assert_eq!(verdict.count(of_500), 2, "{verdict:?}");
    }

    #[tokio::test]
    async fn what_failed_once_in_the_end_is_read_again() {
        assert_eq!(run(Mischief::RefuseSomeReads).await.anomalies, []);
    }

    #[tokio::test]
    async fn without_a_look_at_the_end_a_history_proves_nothing_and_still_shows_what_is_wrong() {
        let judged = async |mischief| {
            let fake = Fake::start(mischief).await;
            let targets = [Client::new(fake.address(), Protocol::Http1, Duration::from_secs(5))];
            let load = Load::start(Options { repeat_one_in: 2, ..options() }, &targets).unwrap();
            load.judge_history().await.unwrap()
        };
        let check = judged(Mischief::None).await;
        assert!(!check.decided && check.found.is_empty(), "{check:?}");
        let check = judged(Mischief::ForgetKeys).await;
        assert!(check.found.iter().any(|found| found.anomaly == "answer-changed"), "{check:?}");
    }

    #[tokio::test]
    async fn planted_a_gateway_that_forgets_keys() {
        let verdict = run(Mischief::ForgetKeys).await;
        assert!(verdict.count(|anomaly| matches!(anomaly, Anomaly::AnswerChanged { .. })) > 0, "{verdict:?}");
        assert!(verdict.count(|anomaly| matches!(anomaly, Anomaly::Doubled { .. })) > 0, "{verdict:?}");
    }

    #[tokio::test]
    async fn a_load_without_a_number_ends_when_told() {
        let fake = Fake::start(Mischief::None).await;
        let targets = [Client::new(fake.address(), Protocol::H2c, Duration::from_secs(5))];
        let load = Load::start(Options { appends: None, ..options() }, &targets).unwrap();
        load.progress().reached(20, Duration::from_secs(10)).await.unwrap();
        load.progress().stop();
        assert_eq!(load.judge().await.unwrap().anomalies, []);
    }
}
