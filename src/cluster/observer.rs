//! How the instances are and what happened: each watches the cluster and counts its own work, and tells the others when they
//! ask, so that any of them can show the whole.
//!
//! Owns a bounded history of events and of samples, in memory alone: a restart begins anew, and the others still know. It
//! decides nothing, and nobody decides by it. It looks when the node says that something changed, and once a second, since
//! the stream of events may have been too fast for it.

use std::error::Error;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use openclaw_proto::ids::InstanceId;
use openclaw_proto::peer::observers_client::ObserversClient;
use openclaw_proto::peer::observers_server::{Observers, ObserversServer};
use openclaw_proto::peer::{Observation, ObserveRequest};
use openclaw_raft::{Event, Node};
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use tracing::debug;

use super::history::{History, Moment, Sight};
use super::rates::{STEP_MS, Samples, totals};
use super::session::Session;
use crate::metrics::Metrics;

/// An instance that does not answer in this time is shown as one that does not.
const ANSWER: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What this instance has seen and done. Cheap to clone.
#[derive(Clone)]
pub struct Observer {
    node: Node,
    metrics: Metrics,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    history: History,
    samples: Samples,
    bounds: Vec<f64>,
}

impl Observer {
    pub fn new(node: Node, metrics: Metrics) -> Self {
        let history = History::new(node.instance_id().as_str().to_owned());
        let seen = Seen { history, samples: Samples::default(), bounds: Vec::new() };
        Self { node, metrics, seen: Arc::new(Mutex::new(seen)) }
    }

    /// Watches until `shutdown`, from the moment when this process is registered: what is applied before that happened long
    /// ago.
    pub async fn run(self, session: Session, shutdown: CancellationToken) {
        let mut sampled = Instant::now();
        if shutdown.run_until_cancelled(session.registered()).await.is_none() {
            return;
        }
        let (mut events, mut status) = (self.node.events(), self.node.watch_status());
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_sample = tokio::time::Instant::now() + to_next_sample(now_ms(), Duration::MAX);
        loop {
            let look = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = status.changed() => match changed {
                    Ok(()) => true,
                    // The node has stopped, and so will this process.
                    Err(_) => return shutdown.cancelled().await,
                },
                event = events.recv() => match event {
                    Ok(
                        Event::InstanceLive { .. }
                        | Event::InstanceGone { .. }
                        | Event::LeaseChanged(_)
                        | Event::StateReplaced,
                    )
                    | Err(RecvError::Lagged(_)) => true,
                    Ok(Event::TurnRunnable(_) | Event::TurnEnded(_) | Event::OutboxChanged { .. }) => false,
                    Err(RecvError::Closed) => return shutdown.cancelled().await,
                },
                _ = ticks.tick() => true,
                () = sleep_until(next_sample) => {
                    self.sample(sampled.elapsed());
                    sampled = Instant::now();
                    next_sample = tokio::time::Instant::now() + to_next_sample(now_ms(), Duration::ZERO);
                    false
                }
            };
            if look {
                self.look();
            }
        }
    }

    fn look(&self) {
        let (status, view) = (self.node.status(), self.node.read_local());
        let (Ok(instances), Ok(leases)) = (view.instances(), view.leases()) else {
            debug!("the state cannot be read, so nothing is seen of it");
            return;
        };
        let leader = status.leader.filter(|_| status.has_quorum).map(String::from);
        let sight = Sight { leader, term: status.term, heard: status.heard, instances, leases };
        self.seen.lock().history.look(Moment { unix_ms: now_ms(), instant: Instant::now() }, sight);
    }

    fn sample(&self, took: Duration) {
        let (now, bounds) = totals(&self.metrics);
        let mut seen = self.seen.lock();
        seen.samples.take(now, now_ms(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        seen.bounds = bounds;
    }

    /// What this instance says when it is asked.
    pub fn observation(&self) -> Observation {
        let status = self.node.status();
        let count = |gauge: &prometheus::IntGauge| u64::try_from(gauge.get()).unwrap_or_default();
        let seen = self.seen.lock();
        let leaderless = seen.history.leaderless(Instant::now()).unwrap_or_default();
        Observation {
            since_ms: seen.history.since_ms().unwrap_or_default(),
            term: status.term,
            leader: status.leader.filter(|_| status.has_quorum).map(String::from).unwrap_or_default(),
            commit_index: status.committed_index,
            applied_index: status.applied_index,
            leaderless_ms: u64::try_from(leaderless.as_millis()).unwrap_or(u64::MAX),
            turns_running: count(&self.metrics.turns_running),
            turns_waiting: count(&self.metrics.turns_waiting),
            streams: count(&self.metrics.http_streams),
            connections: count(&self.metrics.http_connections),
            bounds: seen.bounds.clone(),
            samples: seen.samples.all(),
            events: seen.history.events().cloned().collect(),
        }
    }

    /// Asks another instance; the reason if it does not answer.
    async fn ask(&self, instance: &InstanceId) -> Result<Observation, String> {
        let channel = self.node.peer_channel(instance).ok_or("it is no member here")?;
        let request = ObserveRequest { cluster_id: self.node.cluster_id().as_str().to_owned() };
        let mut client = ObserversClient::new(channel);
        match timeout(ANSWER, client.observe(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                debug!(%instance, %status, "it does not say how it is");
                Err(why(&status))
            }
            Err(_) => Err(format!("no answer within {ANSWER:?}")),
        }
    }

    /// What each of `members` says, itself included, in their order.
    pub async fn ask_all(&self, members: &[InstanceId]) -> Vec<Result<Observation, String>> {
        let asked = members.iter().map(|instance| async move {
            if instance == self.node.instance_id() { Ok(self.observation()) } else { self.ask(instance).await }
        });
        join_all(asked).await
    }
}

/// For operators: what tonic says of a connection is a chain of causes that all mean this.
fn why(status: &Status) -> String {
    if status.code() == Code::Unimplemented {
        "its release does not answer this yet".to_owned()
    } else if status.source().is_some() || status.message().is_empty() {
        "it cannot be reached".to_owned()
    } else {
        status.message().to_owned()
    }
}

/// The next moment in the middle of a step, so that the instances' steps agree and none falls into two. Not by much more than
/// a step from the last one, though the time of day may jump.
fn to_next_sample(unix_ms: u64, since_last: Duration) -> Duration {
    let middle = STEP_MS / 2;
    let wait = Duration::from_millis(STEP_MS - (unix_ms + STEP_MS - middle) % STEP_MS);
    // One that has just been taken a little before its time is not taken again.
    if since_last < Duration::from_millis(middle) && wait < Duration::from_millis(middle) {
        wait + Duration::from_millis(STEP_MS)
    } else {
        wait
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What other instances ask of this one. It listens before there is anything to tell, so it is told later.
#[derive(Clone, Default)]
pub struct Service {
    observer: Arc<OnceLock<Observer>>,
}

impl Service {
    pub fn server(&self) -> ObserversServer<Self> {
        ObserversServer::new(self.clone())
    }

    /// From here on it answers members of the cluster.
    pub fn open(&self, observer: Observer) {
        // Opened once, by whoever wires the process.
        if self.observer.set(observer).is_err() {
            tracing::error!("the observer was opened twice");
        }
    }
}

#[tonic::async_trait]
impl Observers for Service {
    async fn observe(&self, request: Request<ObserveRequest>) -> Result<Response<Observation>, Status> {
        let observer = self.observer.get().ok_or_else(|| Status::unavailable("this instance is still starting"))?;
        let cluster_id = observer.node.cluster_id().as_str();
        if request.into_inner().cluster_id != cluster_id {
            return Err(Status::permission_denied(format!("this instance is of cluster {cluster_id}")));
        }
        Ok(Response::new(observer.observation()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_taken_in_the_middle_of_steps_and_not_twice_in_one() {
        let ms = Duration::from_millis;
        for (unix_ms, since_last, wait) in [
            (10_000, 5_000, 2_500),
            (12_400, 5_000, 100),
            (12_500, 5_000, 5_000),
            (12_600, 0, 4_900),
            // The timer was early, or the time of day was set back a little.
            (12_499, 0, 5_001),
            (11_000, 100, 6_500),
        ] {
            assert_eq!(to_next_sample(unix_ms, ms(since_last)), ms(wait), "{unix_ms} after {since_last}");
        }
    }
}
