//! Clients that read, set and compare-and-set the labels of a few sessions, each label unique in the run.
//!
//! Nothing is repeated: what a client was not told stays unknown, and its next calls are another process's, since the
//! lost one may still have its effect. A session is retired after some calls, and its clients go on with a fresh one,
//! so that each stays cheap to judge (`checkers::register`).

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use openclaw_proto::http::{ErrorCode, Session};
use openclaw_proto::ids::SessionKey;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::checkers::{Check, Found, register};
use crate::client::{At, Client, Failure, Reply};
use crate::history::{Answer, Call, Recorder, What};
use crate::workloads::Shared;
use crate::workloads::progress::Progress;

/// Clients of one session at most: with more at once, a search for an order may not come to its end.
const MOST_CLIENTS: u32 = 10;
/// Calls of one session, before its clients go on with the next: Jepsen's rule.
const MOST_CALLS: u32 = 200;
/// Pause after a call that certainly had no effect: a refused connection answers at once.
const PAUSE: Duration = Duration::from_millis(5);

/// The shape of the load.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names the run: its sessions are its own.
    pub run: String,
    pub clients: u32,
    /// Clients that share a session; at most 10.
    pub sharing: u32,
    /// Calls after which a session is retired; at most 200.
    pub calls: u32,
    /// Acknowledged changes after which the load ends; absent: when it is told to.
    pub changes: Option<u64>,
    /// How long a call waits for its answer, drawn anew for each client.
    pub attempt_ms: Range<u64>,
    /// How long the last reads are repeated, which must succeed.
    pub give_up: Duration,
    /// Pause of a client after each call, which makes the load a light one.
    pub pause: Duration,
    pub seed: u64,
}

/// The session that some clients share now.
#[derive(Debug)]
struct Group {
    name: String,
    calls: u32,
    now: Mutex<Current>,
    /// All that there were.
    sessions: Arc<Mutex<BTreeSet<SessionKey>>>,
}

#[derive(Debug, Clone, Default)]
struct Current {
    generation: u32,
    calls: u32,
    /// What one of them was shown last.
    known: Known,
}

/// A label and its revision, as somebody was shown them.
#[derive(Debug, Clone, Default)]
struct Known {
    label: Option<String>,
    revision: u64,
}

impl Group {
    /// The session of the next call, its generation, and what is known of it.
    fn next(&self) -> Result<(SessionKey, u32, Known)> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.calls == self.calls {
            *now = Current { generation: now.generation + 1, ..Current::default() };
        }
        now.calls += 1;
        let current = now.clone();
        drop(now);
        let key =
            SessionKey::parse(format!("{}-{}", self.name, current.generation)).context("session key of the run")?;
        if current.calls == 1 {
            self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        }
        Ok((key, current.generation, current.known))
    }

    fn learn(&self, generation: u32, known: &Known) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.generation == generation {
            now.known.clone_from(known);
        }
    }
}

/// A load that is running.
#[derive(Debug)]
pub struct Load {
    options: Options,
    clients: Vec<Client>,
    shared: Shared,
    sessions: Arc<Mutex<BTreeSet<SessionKey>>>,
    tasks: JoinSet<Result<()>>,
}

impl Load {
    /// Starts the clients, spread over `targets`.
    ///
    /// # Errors
    /// When the options ask for more than can be judged, or there are no targets.
    pub fn start(options: Options, targets: &[Client]) -> Result<Self> {
        Self::start_among(options, targets, &Shared::default())
    }

    /// The same beside other workloads of one run.
    ///
    /// # Errors
    /// When the options ask for more than can be judged, or there are no targets.
    pub fn start_among(options: Options, targets: &[Client], shared: &Shared) -> Result<Self> {
        if targets.is_empty()
            || !(1..=MOST_CLIENTS).contains(&options.sharing)
            || !(1..=MOST_CALLS).contains(&options.calls)
        {
            bail!(
                "at most {MOST_CLIENTS} clients and {MOST_CALLS} calls of a session, and somebody to ask: {options:?}"
            );
        }
        let sessions = Arc::new(Mutex::default());
        let mut tasks = JoinSet::new();
        let mut rng = StdRng::seed_from_u64(options.seed);
        let groups: Vec<Arc<Group>> = (0..options.clients.div_ceil(options.sharing))
            .map(|group| {
                Arc::new(Group {
                    name: format!("{}-register-{group}", options.run),
                    calls: options.calls,
                    now: Mutex::default(),
                    sessions: Arc::clone(&sessions),
                })
            })
            .collect();
        for number in 0..options.clients {
            let timeout = Duration::from_millis(rng.random_range(options.attempt_ms.clone()));
            let caller = Caller {
                process: shared.recorder.process(),
                group: Arc::clone(&groups[(number / options.sharing) as usize]),
                targets: targets.iter().map(|target| target.with_timeout(timeout)).collect(),
                rng: StdRng::seed_from_u64(rng.random()),
                seen: (0, Known::default()),
                options: options.clone(),
                shared: shared.clone(),
            };
            tasks.spawn(caller.run());
        }
        Ok(Self { options, clients: targets.to_vec(), shared: shared.clone(), sessions, tasks })
    }

    /// Of changes: a read is no sign that a quorum is back.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.shared.progress
    }

    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.shared.recorder
    }

    /// Ends the load: every client finishes the call it is at.
    pub fn stop(&self) {
        self.shared.progress.stop();
    }

    /// Waits until every client has ended, then reads every session from every instance, into the same history: what
    /// was lost since shows there. Returns what could not be read, though it was tried until the deadline of all.
    ///
    /// # Errors
    /// When a client failed for a reason of its own.
    async fn finish(mut self) -> Result<Vec<Found>> {
        self.ended().await?;
        let sessions = std::mem::take(&mut *self.sessions.lock().unwrap_or_else(PoisonError::into_inner));
        let process = self.shared.recorder.process();
        let deadline = Instant::now() + self.options.give_up;
        let mut unread = Vec::new();
        for session in &sessions {
            for (instance, client) in self.clients.iter().enumerate() {
                while !get(client, session, instance, process, &self.shared.recorder).await {
                    if Instant::now() >= deadline {
                        let message = format!("{session} could not be read from instance {instance} in the end");
                        unread.push(Found { anomaly: "unreadable".to_owned(), message, ops: Vec::new() });
                        break;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Ok(unread)
    }

    async fn ended(&mut self) -> Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a client panicked")??;
        }
        Ok(())
    }

    /// Finishes, and judges the registers of the whole history.
    ///
    /// # Errors
    /// As [`Load::finish`].
    pub async fn judge(self) -> Result<Check> {
        let recorder = Arc::clone(&self.shared.recorder);
        let unread = self.finish().await?;
        let mut check = register::check(&recorder.events());
        check.found.extend(unread);
        Ok(check)
    }

    /// Judges by the history alone, when the instances cannot be asked in the end: undecided, if nothing is found.
    ///
    /// # Errors
    /// When a client failed for a reason of its own.
    pub async fn judge_history(mut self) -> Result<Check> {
        self.ended().await?;
        Ok(Check { decided: false, ..register::check(&self.shared.recorder.events()) })
    }
}

/// One recorded read of the end. False: there was no answer.
async fn get(client: &Client, session: &SessionKey, instance: usize, process: u32, recorder: &Recorder) -> bool {
    let op = recorder.invoke(process, Call::Get { session: session.to_string(), instance });
    let end = end_of_get(op, client.session(session).await);
    let answered = matches!(end, What::Ok { .. });
    recorder.note(end);
    answered
}

/// A read has no effect, so one without an answer certainly failed.
fn end_of_get(op: u64, reply: Reply<At<Session>>) -> What {
    match reply {
        Reply::Ok(at) => What::Ok { op, attempts: 1, answer: shown(at) },
        // A session that nobody has set yet does not exist.
        Reply::Failed(Failure { code: Some(ErrorCode::NotFound), index, .. }) => {
            What::Ok { op, attempts: 1, answer: Answer::Register { label: None, revision: 0, index } }
        }
        Reply::Failed(failure) => What::Fail { op, attempts: 1, message: format!("{failure:?}") },
        Reply::Unknown(message) => What::Fail { op, attempts: 1, message },
    }
}

fn end_of_change(op: u64, is_cas: bool, reply: Reply<At<Session>>) -> What {
    match reply {
        Reply::Ok(at) => What::Ok { op, attempts: 1, answer: shown(at) },
        Reply::Failed(Failure { code: Some(ErrorCode::PreconditionFailed), index, .. }) if is_cas => {
            What::Ok { op, attempts: 1, answer: Answer::Mismatch { index } }
        }
        Reply::Failed(failure) => What::Fail { op, attempts: 1, message: format!("{failure:?}") },
        Reply::Unknown(message) => What::Info { op, attempts: 1, message },
    }
}

fn shown(At { value, index }: At<Session>) -> Answer {
    Answer::Register { label: value.label, revision: value.revision, index }
}

struct Caller {
    process: u32,
    group: Arc<Group>,
    targets: Vec<Client>,
    rng: StdRng,
    /// What this client was shown last, and of which generation of the session.
    seen: (u32, Known),
    options: Options,
    shared: Shared,
}

impl Caller {
    async fn run(mut self) -> Result<()> {
        for n in 0_u64.. {
            if self.shared.progress.is_over(self.options.changes) {
                break;
            }
            let (session, generation, known) = self.group.next()?;
            if !self.call(n, &session, generation, known).await {
                tokio::time::sleep(PAUSE).await;
            }
            if !self.options.pause.is_zero() {
                tokio::time::sleep(self.options.pause).await;
            }
        }
        Ok(())
    }

    /// False: it was not answered.
    async fn call(&mut self, n: u64, session: &SessionKey, generation: u32, known: Known) -> bool {
        let instance = self.rng.random_range(0..self.targets.len());
        let client = self.targets[instance].clone();
        let label = format!("{}-{n}", self.process);
        let name = session.to_string();
        // What another was shown last is mostly right; what this one was, often not any more: both answers are wanted.
        let own = self.rng.random_bool(0.4) && self.seen.0 == generation;
        let known = if own { self.seen.1.clone() } else { known };
        let sent = Instant::now();
        let (end, is_change) = match self.rng.random_range(0..10) {
            0..=2 => {
                let op = self.shared.recorder.invoke(self.process, Call::Get { session: name, instance });
                (end_of_get(op, client.session(session).await), false)
            }
            3..=4 => {
                let call = Call::Set { session: name, label: label.clone(), instance };
                let op = self.shared.recorder.invoke(self.process, call);
                (end_of_change(op, false, client.patch_session(session, Some(&label), None, None).await), true)
            }
            _ => {
                let Known { label: from, revision } = known;
                let call = Call::Cas { session: name, from, revision, label: label.clone(), instance };
                let op = self.shared.recorder.invoke(self.process, call);
                let reply = client.patch_session(session, Some(&label), Some(revision), None).await;
                (end_of_change(op, true, reply), true)
            }
        };
        self.shared.recorder.note(end.clone());
        match end {
            What::Ok { answer: Answer::Register { label, revision, .. }, .. } => {
                let known = Known { label, revision };
                self.group.learn(generation, &known);
                self.seen = (generation, known);
                if is_change {
                    self.shared.progress.acknowledge(sent);
                }
                true
            }
            What::Info { .. } => {
                self.process = self.shared.recorder.process();
                false
            }
            What::Fail { .. } => false,
            What::Ok { .. } => true,
            What::Invoke { .. } | What::Fault { .. } | What::Leader { .. } | What::Owner { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Protocol;
    use crate::history::Event;
    use crate::mock_gateway::{Fake, Mischief};

    fn options() -> Options {
        Options {
            run: "test".into(),
            clients: 8,
            sharing: 4,
            calls: 40,
            changes: Some(300),
            attempt_ms: 4000..5000,
            give_up: Duration::from_secs(10),
            pause: Duration::ZERO,
            seed: 1,
        }
    }

    async fn run(mischief: Mischief) -> (Check, Vec<Event>) {
        let fake = Fake::start(mischief).await;
        let target = Client::new(fake.address(), Protocol::Http1, Duration::from_secs(5));
        let load = Load::start(options(), &[target.clone(), target]).unwrap();
        let recorder = load.recorder().clone();
        let check = load.judge().await.unwrap();
        (check, recorder.events())
    }

    fn count(check: &Check, anomaly: &str) -> usize {
        check.found.iter().filter(|one| one.anomaly == anomaly).count()
    }

    #[tokio::test]
    async fn a_correct_gateway_passes_and_sessions_are_retired() {
        let (check, history) = run(Mischief::None).await;
        assert!(check.passed(), "{check:#?}");
        let number = |name: &str| check.figures[name].as_u64().unwrap();
        assert!(number("registers") >= 8, "{check:#?}");
        // The calls of its clients, and the last reads.
        assert!(number("mostOperationsOfARegister") <= 42, "{check:#?}");
        for name in ["gets", "sets", "swaps", "mismatches"] {
            assert!(number(name) > 20, "{name}: {check:#?}");
        }
        let labels: Vec<&String> = history
            .iter()
            .filter_map(|event| {
                let What::Invoke { call, .. } = &event.what else { return None };
                if let Call::Set { label, .. } | Call::Cas { label, .. } = call { Some(label) } else { None }
            })
            .collect();
        assert_eq!(labels.iter().collect::<BTreeSet<_>>().len(), labels.len(), "labels are unique");
    }

    #[tokio::test]
    async fn planted_a_gateway_that_shows_old_labels() {
        let (check, _) = run(Mischief::StaleLabel).await;
        assert!(count(&check, "stale-read") > 0 && count(&check, "not-linearizable") > 0, "{check:#?}");
    }

    #[tokio::test]
    async fn planted_a_gateway_that_acknowledges_what_it_drops() {
        let (check, _) = run(Mischief::LoseLabel).await;
        assert!(count(&check, "stale-read") > 0 && count(&check, "not-linearizable") > 0, "{check:#?}");
    }

    #[tokio::test]
    async fn planted_a_gateway_that_does_not_compare() {
        let (check, _) = run(Mischief::IgnoreRevision).await;
        assert!(count(&check, "lost-update") > 0 && count(&check, "not-linearizable") > 0, "{check:#?}");
    }

    #[tokio::test]
    async fn planted_a_gateway_that_denies_what_it_did() {
        let (check, _) = run(Mischief::DenyLabel).await;
        assert!(count(&check, "effect-of-failed") > 0 && count(&check, "not-linearizable") > 0, "{check:#?}");
    }

    #[tokio::test]
    async fn whoever_is_left_without_an_answer_goes_on_as_somebody_else() {
        let (check, history) = run(Mischief::HideLabel).await;
        assert!(check.passed(), "{check:#?}");
        let unknown = check.figures["unknown"].as_u64().unwrap();
        assert!(unknown > 10 && check.figures["unknownSeen"].as_u64().unwrap() > 0, "{check:#?}");
        let mut lost = BTreeSet::new();
        let mut processes = std::collections::HashMap::new();
        for event in &history {
            if let What::Invoke { op, process, .. } = &event.what {
                assert!(!lost.contains(process), "process {process} went on after a call without an answer");
                processes.insert(*op, *process);
            } else if let What::Info { op, .. } = &event.what {
                lost.insert(processes[op]);
            }
        }
        assert_eq!(lost.len() as u64, unknown);
    }

    #[tokio::test]
    async fn two_loads_write_one_history() {
        let fake = Fake::start(Mischief::None).await;
        let targets = [Client::new(fake.address(), Protocol::H2c, Duration::from_secs(5))];
        let shared = Shared::default();
        let registers = Load::start_among(Options { changes: None, ..options() }, &targets, &shared).unwrap();
        let appends = crate::workloads::append::Load::start_among(
            crate::workloads::append::Options {
                run: "test".into(),
                clients: 4,
                sessions: 2,
                appends: None,
                attempt_ms: 4000..5000,
                give_up: Duration::from_secs(10),
                pause: Duration::ZERO,
                repeat_one_in: 10,
                read_one_in: 10,
                seed: 1,
            },
            &targets,
            &shared,
        )
        .unwrap();
        shared.progress.reached(200, Duration::from_secs(10)).await.unwrap();
        shared.progress.stop();
        assert_eq!(appends.judge().await.unwrap().anomalies, []);
        let check = registers.judge().await.unwrap();
        assert!(check.passed(), "{check:#?}");
        let mut ops = BTreeSet::new();
        for event in shared.recorder.events() {
            if let What::Invoke { op, .. } = event.what {
                assert!(ops.insert(op), "operation {op} is there twice");
            }
        }
    }

    #[test]
    fn more_than_can_be_judged_is_refused() {
        let nobody = Load::start(options(), &[]).unwrap_err().to_string();
        assert!(nobody.contains("somebody to ask"), "{nobody}");
    }
}
