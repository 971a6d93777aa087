//! Runs each channel account while this instance owns it, and only then.
//!
//! What this instance owns is in the replicated state: a lease that names it and its present epoch. How long that counts is
//! in [`Validity`]. An account starts once both agree, on this instance's own copy of the state, and stops as soon as
//! either ends. Where the account shall go elsewhere - a move, a drain - it stops first and lets go afterwards, so that the
//! next owner begins when nothing is under way any more. What was let go under a token never runs under it again, whatever
//! this copy of the state says: the next owner may have begun, and this instance not have applied it yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use openclaw_config::channels::Account;
use openclaw_proto::ids::{ChannelAccount, InstanceId};
use openclaw_proto::state::{Instance, Lease};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::delivery::Delivery;
use super::health::Health;
use super::intake::{Context, Intake};
use super::outlet::{Outlet, Pace};
use super::writing::Writing;
use super::{Channel, ReceiveError, Reporter, Tenure};
use crate::cluster;
use crate::cluster::session::Session;
use crate::cluster::validity::{Stretch, Validity};
use crate::sessions::follow::Follow;
use crate::store::Event;

const LOOK_EVERY: Duration = Duration::from_millis(500);
const STORE: Duration = Duration::from_secs(2);
/// An account that was told to stop has dropped all it did by then, or is aborted.
const STOP: Duration = Duration::from_millis(250);
/// What a planned stop waits for a message that is being sent.
const FINISH: Duration = Duration::from_secs(2);
/// Between two attempts to receive, after the first of which it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// An attempt in which the platform answered, and that lasted this long, was a good one.
const SETTLED: Duration = Duration::from_secs(10);

/// An account of this instance's configuration.
#[derive(Clone)]
pub struct Configured {
    pub channel: Arc<dyn Channel>,
    pub settings: Account,
    pub pace: Pace,
}

/// Runs the accounts that this instance owns.
pub struct Supervisor {
    pub context: Context,
    pub follow: Follow,
    pub validity: Validity,
    pub session: Session,
    pub health: Health,
    pub accounts: Vec<Configured>,
}

/// An account that runs here.
struct Running {
    fencing_token: u64,
    /// Has deliveries end between two messages.
    finish: CancellationToken,
    /// They have.
    finished: CancellationToken,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Runs until `shutdown`, then stops every account and lets it go.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut events = self.context.store.events();
        let mut stretches = self.validity.stretches();
        let mut running: BTreeMap<ChannelAccount, Running> = BTreeMap::new();
        let mut given_up: BTreeMap<ChannelAccount, u64> = BTreeMap::new();
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !shutdown.is_cancelled() {
            let stretch = stretches.borrow_and_update().clone();
            self.settle(stretch.as_ref(), &mut running, &mut given_up).await;
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    changed = stretches.changed() => {
                        if changed.is_err() { return; }
                        break;
                    }
                    event = events.next() => match event {
                        Some(Event::LeaseChanged(_) | Event::Lagged) => break,
                        Some(Event::TurnRunnable(_) | Event::TurnEnded(_) | Event::OutboxChanged { .. }) => {}
                        None => return,
                    },
                    _ = ticks.tick() => break,
                }
            }
        }
        let ends = running.into_iter().map(async |(account, one)| {
            self.finish(&account, &one).await;
            self.stop(&account, one).await;
        });
        join_all(ends).await;
    }

    /// Starts and stops accounts, so that those run which should. `given_up`: up to which token each was let go, or may
    /// have been.
    async fn settle(
        &self,
        stretch: Option<&Stretch>,
        running: &mut BTreeMap<ChannelAccount, Running>,
        given_up: &mut BTreeMap<ChannelAccount, u64>,
    ) {
        let (Ok(leases), Ok(instances)) = (self.context.store.leases(), self.context.store.instances()) else {
            return;
        };
        // Side by side: each takes seconds when a platform is slow, and a stop waits for all.
        let mut ends: Vec<BoxFuture<'_, ()>> = Vec::new();
        let mut begins = Vec::new();
        for configured in &self.accounts {
            let account = configured.channel.account();
            let lease = leases.iter().find(|lease| lease.account == account.as_str());
            let owned = lease.zip(stretch).filter(|(lease, stretch)| {
                lease.owner == self.context.me.as_str() && lease.epoch == stretch.epoch && !stretch.is_over()
            });
            let keep = owned.filter(|(lease, _)| !self.should_go(lease, &instances));
            let present = running.get(account).is_some_and(|one| {
                keep.is_some_and(|(lease, _)| lease.fencing_token == one.fencing_token)
                    && !one.stop.is_cancelled()
                    && !one.task.is_finished()
            });
            if present {
                continue;
            }
            if let Some(one) = running.remove(account) {
                given_up.insert(account.clone(), one.fencing_token);
                let let_go = owned.is_some() && keep.is_none();
                ends.push(Box::pin(async move {
                    if let_go {
                        self.finish(account, &one).await;
                    }
                    self.stop(account, one).await;
                }));
                if let_go {
                    // The state tells next what became of it.
                    continue;
                }
            } else if let Some((lease, _)) = owned
                && (keep.is_none() || given_up.get(account).is_some_and(|token| lease.fencing_token <= *token))
            {
                given_up.insert(account.clone(), lease.fencing_token);
                ends.push(Box::pin(self.release(account, lease.fencing_token)));
                continue;
            }
            if let Some((lease, stretch)) = keep
                && given_up.get(account).is_none_or(|token| lease.fencing_token > *token)
            {
                begins.push((configured, lease, stretch));
            }
        }
        join_all(ends).await;
        for (configured, lease, stretch) in begins {
            running.insert(configured.channel.account().clone(), self.start(configured, lease, stretch));
        }
    }

    /// Whether another instance shall have it, and can.
    fn should_go(&self, lease: &Lease, instances: &[Instance]) -> bool {
        let me = self.context.me.as_str();
        let able = |row: &&Instance| row.live && row.instance_id != me && row.accounts.contains(&lease.account);
        let moved = !lease.moving_to.is_empty()
            && lease.moving_to != me
            && instances.iter().filter(able).any(|row| row.instance_id == lease.moving_to);
        moved || (self.session.is_draining() && cluster::another_takes(instances, me, &lease.account))
    }

    fn start(&self, configured: &Configured, lease: &Lease, stretch: &Stretch) -> Running {
        let account = configured.channel.account().clone();
        let stop = stretch.ended.child_token();
        let finished = CancellationToken::new();
        let ended = finished.clone();
        let tenure = Tenure::new(lease.fencing_token, stop.clone(), stretch.clone());
        info!(%account, fencing_token = lease.fencing_token, previous = lease.previous_owner, "this instance runs the account");
        self.health.started(&account);
        let intake =
            Intake::new(self.context.clone(), account.clone(), configured.settings.clone(), Some(tenure.clone()));
        let outlet = Outlet::new(
            self.context.store.clone(),
            configured.channel.clone(),
            configured.settings.clone(),
            tenure.clone(),
            configured.pace,
            self.context.metrics.clone(),
        );
        let finish = outlet.finish.clone();
        let writing = Writing::new(outlet.clone(), self.follow.clone());
        let delivery = Delivery::new(outlet, writing.clone(), self.health.clone());
        let span = info_span!("channel", %account, fencing_token = lease.fencing_token);
        let (channel, health) = (configured.channel.clone(), self.health.clone());
        let task = tokio::spawn(
            async move {
                let receiving = receive(&*channel, &tenure, &intake, &health);
                let delivering = async {
                    tokio::join!(delivery.run(), writing.run());
                    ended.cancel();
                };
                tokio::join!(receiving, delivering);
            }
            .instrument(span),
        );
        Running { fencing_token: lease.fencing_token, finish, finished, stop, task }
    }

    /// Has what is being sent sent to its end, so that the next owner need not wonder. A send that takes longer is dropped.
    async fn finish(&self, account: &ChannelAccount, one: &Running) {
        one.finish.cancel();
        if timeout(FINISH, one.finished.cancelled()).await.is_err() {
            warn!(%account, "a message is still being sent, and will be unknown");
        }
    }

    /// Stops an account, and lets it go if it is still this instance's.
    async fn stop(&self, account: &ChannelAccount, one: Running) {
        one.stop.cancel();
        let abort = one.task.abort_handle();
        if timeout(STOP, one.task).await.is_err() {
            warn!(%account, "the account did not stop in time, and was cut off");
            abort.abort();
        }
        self.health.stopped(account);
        self.release(account, one.fencing_token).await;
    }

    async fn release(&self, account: &ChannelAccount, fencing_token: u64) {
        match self.context.store.release(account, fencing_token, STORE).await {
            Ok(true) => info!(%account, "let go"),
            Ok(false) => info!(%account, "it is another's already"),
            // The epoch ends by itself, and with it the lease.
            Err(error) => warn!(%account, %error, "not let go yet"),
        }
    }
}

/// Remembers whether the platform answered at all.
struct Listening<R> {
    reporter: R,
    heard: AtomicBool,
}

impl<R: Reporter> Reporter for Listening<R> {
    fn connected(&self) {
        self.heard.store(true, Ordering::Relaxed);
        self.reporter.connected();
    }

    fn heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
        self.reporter.heard();
    }

    fn disconnected(&self, reason: &str) {
        self.reporter.disconnected(reason);
    }

    fn received(&self) {
        self.reporter.received();
    }
}

/// Receives again and again, until the tenure ends.
async fn receive(channel: &dyn Channel, tenure: &Tenure, intake: &Intake, health: &Health) {
    let account = channel.account();
    let reporter = Listening { reporter: health.reporter(account), heard: AtomicBool::new(false) };
    let mut pause = FIRST_PAUSE;
    while !tenure.is_over() {
        let began = tokio::time::Instant::now();
        // It ends by itself with the tenure: some have a connection to close, so that the next owner can go on with it.
        let error = channel.receive(tenure, intake, &reporter).await;
        // A line that breaks again and again is worth a new attempt each time, a bot that never gets through is not.
        if reporter.heard.swap(false, Ordering::Relaxed) && began.elapsed() > SETTLED {
            pause = FIRST_PAUSE;
        }
        let wait = match &error {
            ReceiveError::Ended => return,
            ReceiveError::Failed { retry_after, .. } => retry_after.unwrap_or(pause),
            // Rarely, since nothing changes by itself; but a foreign poller may go away.
            ReceiveError::ForeignPoller(_) | ReceiveError::Refused(_) => LONGEST_PAUSE.max(pause),
        };
        health.failed(account, &error);
        pause = (pause * 2).min(LONGEST_PAUSE);
        if tenure.ended.run_until_cancelled(sleep(wait.mul_f64(rand::random_range(0.75..1.25)))).await.is_none() {
            return;
        }
    }
}

/// Which accounts an instance prefers, of those it has.
pub fn preferred(cluster: &openclaw_config::Cluster, me: &InstanceId, accounts: &[ChannelAccount]) -> Vec<String> {
    accounts
        .iter()
        .map(ChannelAccount::as_str)
        .filter(|account| cluster.preferred(me, account))
        .map(str::to_owned)
        .collect()
}
