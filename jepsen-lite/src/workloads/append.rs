//! Clients that append texts, unique in the run, to a few sessions, each write under its own idempotency key.
//!
//! A client sends one write at a time and repeats it, with its key and over all instances in turn, until it is
//! acknowledged. Now and then it sends an acknowledged write once more, to see whether the answer is the same.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use openclaw_proto::http::Entry;
use openclaw_proto::ids::{IdempotencyKey, SessionKey};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::checkers::append::{self, Verdict};
use crate::client::{Client, append_until};
use crate::history::{Answer, Call, Recorder, What};

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
    pub seed: u64,
}

/// What the load tells the one who breaks things meanwhile.
#[derive(Debug, Default)]
pub struct Progress {
    acknowledged: AtomicU64,
    stop: std::sync::atomic::AtomicBool,
    changed: Notify,
    gap: Mutex<Gap>,
}

/// The time from a moment to the first write that was both sent and acknowledged after it.
#[derive(Debug, Default)]
struct Gap {
    since: Option<Instant>,
    first: Option<Instant>,
}

impl Progress {
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the load: every client finishes the write it is at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Waits until so many writes are acknowledged.
    ///
    /// # Errors
    /// When none is for as long as `stall`.
    pub async fn reached(&self, appends: u64, stall: Duration) -> Result<()> {
        loop {
            let before = self.acknowledged();
            if before >= appends {
                return Ok(());
            }
            tokio::time::timeout(stall, self.until(|| self.acknowledged() > before)).await.with_context(|| {
                format!("no write was acknowledged for {stall:?}; {before} of {appends} were before")
            })?;
        }
    }

    /// Begins to look for the first write that is sent from now on.
    pub fn mark(&self) -> Instant {
        let now = Instant::now();
        *self.gap.lock().unwrap_or_else(PoisonError::into_inner) = Gap { since: Some(now), first: None };
        now
    }

    /// Waits for the acknowledgement of a write that was sent after the mark.
    pub async fn first_after_mark(&self) -> Instant {
        let first = || self.gap.lock().unwrap_or_else(PoisonError::into_inner).first;
        self.until(|| first().is_some()).await;
        first().unwrap_or_else(Instant::now)
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the condition is looked at, so that no change falls in between.
            changed.as_mut().enable();
            if condition() {
                return;
            }
            changed.await;
        }
    }

    fn acknowledge(&self, sent: Instant) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        let mut gap = self.gap.lock().unwrap_or_else(PoisonError::into_inner);
        if gap.first.is_none() && gap.since.is_some_and(|since| sent >= since) {
            gap.first = Some(Instant::now());
        }
        drop(gap);
        self.changed.notify_waiters();
    }

    fn is_over(&self, appends: Option<u64>) -> bool {
        self.stop.load(Ordering::Relaxed) || appends.is_some_and(|appends| self.acknowledged() >= appends)
    }
}

/// A load that is running.
#[derive(Debug)]
pub struct Load {
    options: Options,
    clients: Vec<Client>,
    recorder: Arc<Recorder>,
    progress: Arc<Progress>,
    tasks: JoinSet<Result<()>>,
}

impl Load {
    /// Starts the clients, spread over `targets`.
    ///
    /// # Errors
    /// When the run's name does not fit into a session key.
    pub fn start(options: Options, targets: &[Client]) -> Result<Self> {
        let (recorder, progress) = (Arc::new(Recorder::default()), Arc::new(Progress::default()));
        let mut tasks = JoinSet::new();
        let mut rng = StdRng::seed_from_u64(options.seed);
        for process in 0..options.clients {
            let timeout = Duration::from_millis(rng.random_range(options.attempt_ms.clone()));
            let writer = Writer {
                process,
                session: session(&options, process % options.sessions)?,
                targets: targets.iter().map(|target| target.with_timeout(timeout)).collect(),
                rng: StdRng::seed_from_u64(rng.random()),
                options: options.clone(),
                recorder: Arc::clone(&recorder),
                progress: Arc::clone(&progress),
            };
            tasks.spawn(writer.run());
        }
        Ok(Self { options, clients: targets.to_vec(), recorder, progress, tasks })
    }

    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Waits until every client has ended, then reads every session from every instance and judges.
    ///
    /// # Errors
    /// When a client failed for a reason of its own, or a session cannot be read.
    pub async fn judge(mut self) -> Result<Verdict> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a client panicked")??;
        }
        let mut transcripts: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        let mut differences = Vec::new();
        for number in 0..self.options.sessions {
            let session = session(&self.options, number)?;
            for (index, client) in self.clients.iter().enumerate() {
                let entries = client.transcript(&session).await?;
                match transcripts.get(session.as_str()) {
                    Some(first) => differences.extend(append::compare(
                        &format!("instance {index}"),
                        session.as_str(),
                        first,
                        &entries,
                    )),
                    None => drop(transcripts.insert(session.to_string(), entries)),
                }
            }
        }
        let mut verdict = append::check(&self.recorder.events(), &transcripts);
        verdict.anomalies.append(&mut differences);
        Ok(verdict)
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
    recorder: Arc<Recorder>,
    progress: Arc<Progress>,
}

impl Writer {
    async fn run(mut self) -> Result<()> {
        for n in 0_u64.. {
            if self.progress.is_over(self.options.appends) {
                break;
            }
            let text = format!("{}:{n}", self.process);
            let key = IdempotencyKey::parse(format!("{}:{text}", self.options.run)).context("key of a write")?;
            let call = Call::Append { session: self.session.to_string(), text: text.clone(), key: key.to_string() };
            let done = self.write(call, &text, &key).await;
            if done && self.rng.random_ratio(1, self.options.repeat_one_in) {
                let call = Call::Repeat { session: self.session.to_string(), text: text.clone(), key: key.to_string() };
                self.write(call, &text, &key).await;
            }
            if !self.options.pause.is_zero() {
                tokio::time::sleep(self.options.pause).await;
            }
        }
        Ok(())
    }

    /// True: acknowledged.
    async fn write(&mut self, call: Call, text: &str, key: &IdempotencyKey) -> bool {
        let first_time = matches!(call, Call::Append { .. });
        let first = self.rng.random_range(0..self.targets.len());
        let op = self.recorder.invoke(self.process, call);
        let deadline = Instant::now() + self.options.give_up;
        match append_until(&self.targets, first, &self.session, text, key, deadline).await {
            Ok(done) => {
                self.recorder.note(What::Ok { op, attempts: done.attempts, answer: Answer::Appended(done.value) });
                if first_time {
                    self.progress.acknowledge(done.sent);
                }
                true
            }
            Err(given_up) => {
                let (attempts, message) = (given_up.attempts, given_up.last);
                self.recorder.note(if given_up.certainly_not_applied {
                    What::Fail { op, attempts, message }
                } else {
                    What::Info { op, attempts, message }
                });
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::append::Anomaly;
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
    async fn planted_a_gateway_that_forgets_keys() {
        let verdict = run(Mischief::ForgetKeys).await;
        assert!(verdict.count(|anomaly| matches!(anomaly, Anomaly::AnswerChanged { .. })) > 0, "{verdict:?}");
        assert!(verdict.count(|anomaly| matches!(anomaly, Anomaly::Doubled { .. })) > 0, "{verdict:?}");
    }

    #[tokio::test]
    async fn the_gap_counts_only_writes_that_were_sent_after_the_mark() {
        let progress = Progress::default();
        let before = Instant::now();
        let mark = progress.mark();
        progress.acknowledge(before - Duration::from_millis(1));
        assert!(progress.gap.lock().unwrap().first.is_none());
        progress.acknowledge(Instant::now());
        assert!(progress.first_after_mark().await >= mark);
        progress.reached(2, Duration::ZERO).await.unwrap();
        let error = progress.reached(3, Duration::from_millis(1)).await.unwrap_err().to_string();
        assert!(error.contains("2 of 3"), "{error}");
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
