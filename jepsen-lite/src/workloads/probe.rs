//! One write after the other to each instance, each sent once: whether it is answered in time, whatever the answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use openclaw_proto::ids::{IdempotencyKey, SessionKey};
use tokio::task::JoinSet;

use super::{Judged, Shared};
use crate::checkers::availability::{self, Bounds, Probe};
use crate::client::{Client, Failure, Reply};
use crate::cluster::Instance;
use crate::history::{Answer, Call, What};
use crate::process::Lifeline;

/// Between two writes to one instance.
const PAUSE: Duration = Duration::from_millis(250);
/// How long an answer is waited for: far longer than any bound.
const PATIENCE: Duration = Duration::from_secs(20);

/// Since when something is broken; whoever breaks things keeps it.
#[derive(Debug, Clone, Default)]
pub struct Broken(Arc<Mutex<Option<Instant>>>);

impl Broken {
    pub fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Probes that are running.
#[derive(Debug)]
pub struct Load {
    tasks: JoinSet<Result<Vec<Probe>>>,
}

impl Load {
    /// Begins to ask each of `instances`, by the client beside it. If they write `alone`, in a run of bots, whoever breaks things
    /// waits for their acknowledgements; beside others they would blur how soon those get theirs.
    ///
    /// # Errors
    /// When the run's name does not fit into a session key.
    pub fn start(
        run: &str,
        instances: &[Instance],
        clients: &[Client],
        broken: &Broken,
        alone: bool,
        shared: &Shared,
    ) -> Result<Self> {
        let mut tasks = JoinSet::new();
        for ((instance, client), number) in instances.iter().zip(clients).zip(0_u32..) {
            let prober = Prober {
                process: shared.recorder.process(),
                instance: number as usize,
                name: instance.id.to_string(),
                session: SessionKey::parse(format!("{run}-probe-{number}")).context("session key of the run")?,
                client: client.with_timeout(PATIENCE),
                lifeline: instance.process.lifeline().clone(),
                broken: broken.clone(),
                alone,
                shared: shared.clone(),
            };
            tasks.spawn(prober.run());
        }
        Ok(Self { tasks })
    }

    /// Waits for the last answers and judges all.
    ///
    /// # Errors
    /// When a prober failed for a reason of its own.
    pub async fn judge(mut self, bounds: Bounds) -> Result<Judged> {
        let mut probes = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            probes.extend(ended.context("a prober panicked")??);
        }
        Ok(Judged { checks: vec![availability::check(&probes, bounds)] })
    }
}

struct Prober {
    process: u32,
    instance: usize,
    name: String,
    session: SessionKey,
    client: Client,
    lifeline: Lifeline,
    broken: Broken,
    alone: bool,
    shared: Shared,
}

impl Prober {
    async fn run(self) -> Result<Vec<Probe>> {
        let mut probes = Vec::new();
        for n in 0_u64.. {
            if self.shared.progress.is_over(None) {
                break;
            }
            probes.extend(self.probe(n).await?);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(probes)
    }

    /// `None`: the instance was not up all the time.
    async fn probe(&self, n: u64) -> Result<Option<Probe>> {
        let (session, text) = (self.session.to_string(), n.to_string());
        let key = IdempotencyKey::parse(format!("{session}:{n}")).context("key of a write")?;
        let call = Call::Probe { session, instance: self.instance, text: text.clone() };
        let op = self.shared.recorder.invoke(self.process, call);
        let since = self.broken.since();
        let sent = Instant::now();
        let reply = self.client.append(&self.session, &text, &key).await;
        let answered = Instant::now();
        let refused = matches!(reply, Reply::Failed(Failure { status: Some(503), .. }));
        let attempts = 1;
        if self.alone && matches!(reply, Reply::Ok(_)) {
            self.shared.progress.acknowledge(sent);
        }
        self.shared.recorder.note(match reply {
            Reply::Ok(value) => What::Ok { op, attempts, answer: Answer::Appended(value) },
            Reply::Failed(failure) => What::Fail { op, attempts, message: failure.message },
            Reply::Unknown(message) => What::Info { op, attempts, message },
        });
        // What began or ended meanwhile would be another case for each half.
        let into_fault = since.filter(|_| self.broken.since() == since).map(|since| sent - since);
        let (instance, took) = (self.name.clone(), answered - sent);
        Ok(self.lifeline.was_up(sent, answered).then_some(Probe { op, instance, took, into_fault, refused }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Protocol;
    use crate::mock_gateway::{Fake, Mischief};

    #[tokio::test]
    async fn only_where_nobody_else_writes_a_probe_tells_that_a_write_was_acknowledged() {
        let fake = Fake::start(Mischief::None).await;
        for (alone, acknowledged) in [(true, 1), (false, 0)] {
            let shared = Shared::default();
            let prober = Prober {
                process: 0,
                instance: 0,
                name: "node-1".into(),
                session: SessionKey::parse("probe").unwrap(),
                client: Client::new(fake.address(), Protocol::Http1, PATIENCE),
                lifeline: Lifeline::default(),
                broken: Broken::default(),
                alone,
                shared: shared.clone(),
            };
            prober.probe(u64::from(alone)).await.unwrap();
            assert_eq!(shared.progress.acknowledged(), acknowledged, "alone: {alone}");
        }
    }
}
