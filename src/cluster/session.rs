//! The instance session: this process, registered, and renewed for as long as it lives.
//!
//! Each start registers with a new boot id and gets an epoch; renewals keep the epoch. An epoch that expired is never
//! revived: the instance registers again, and what it held is another's. The boot id of the process before it lies in
//! the data directory, whose lock proves that process dead, so a restart need not wait for the old epoch to expire.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openclaw_proto::state::{ExpireInstance, Instance, RegisterInstance, RenewInstance, SetDraining, command, outcome};
use openclaw_raft::state_machine::format;
use openclaw_raft::{Committed, Node, ProposeError, View};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::validity::{self, Validity};

/// Between attempts to register.
const AGAIN: Duration = Duration::from_millis(250);
/// For the last command of a process that stops.
const LEAVE: Duration = Duration::from_secs(1);
const LEAVE_ATTEMPTS: usize = 3;
/// Between log lines about an attempt that keeps failing.
const REMIND: Duration = Duration::from_secs(10);

/// What this process tells of itself.
#[derive(Debug, Clone)]
pub struct Description {
    pub boot_id: String,
    /// Of the process whose data directory this one took over; empty: none.
    pub previous_boot_id: String,
    pub http_addr: String,
    pub peer_addr: String,
    pub version: String,
    /// Channel accounts that it can run, and those of them that it should.
    pub accounts: Vec<String>,
    pub preferred: Vec<String>,
}

/// How often, and how long an answer may take.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub renew: Duration,
    pub deadline: Duration,
}

/// Knows the epoch, and says whether this instance takes work; cheap to clone.
#[derive(Debug, Clone)]
pub struct Session {
    epoch: watch::Receiver<Option<u64>>,
    begun: Arc<AtomicBool>,
    draining: Arc<watch::Sender<Draining>>,
}

/// What others are to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Draining {
    wanted: bool,
    /// Counts doubts about what they know.
    doubts: u64,
}

impl Session {
    /// None before the first registration, and between the loss of an epoch and the next.
    pub fn epoch(&self) -> Option<u64> {
        *self.epoch.borrow()
    }

    /// Whether there was an epoch.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Waits until this process is registered, and its registration applied on this instance.
    pub async fn registered(&self) {
        // The sender lives as long as the process keeps its session.
        drop(self.epoch.clone().wait_for(Option::is_some).await);
    }

    /// From the next renewal on, others know that this instance takes no new turns, or does again.
    pub fn set_draining(&self, draining: bool) {
        self.draining.send_modify(|state| state.wanted = draining);
    }

    /// Has others told once more whether this instance takes work: they may have heard otherwise.
    pub fn say_again(&self) {
        self.draining.send_modify(|state| state.doubts += 1);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.borrow().wanted
    }

    /// One that nobody keeps.
    #[cfg(test)]
    pub fn for_tests(epoch: u64) -> Self {
        Self { epoch: watch::channel(Some(epoch)).1, begun: Arc::new(true.into()), draining: Arc::default() }
    }
}

/// The file in an instance's data directory that holds the boot id of its last process: every start leaves one.
pub const BOOT_ID: &str = "boot_id";

/// Takes the boot id that the process before left, and leaves this one's.
///
/// # Errors
/// The disk's.
pub fn exchange_boot_id(data_dir: &Path, boot_id: &str) -> io::Result<String> {
    const LONGEST: usize = 64;
    let path = data_dir.join(BOOT_ID);
    let previous = match fs::read_to_string(&path) {
        // A torn one is no boot id, so it proves nothing about any process.
        Ok(text) if text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => text,
        Ok(_) => String::new(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let fresh = data_dir.join("boot_id.new");
    let mut file = fs::File::create(&fresh)?;
    file.write_all(boot_id.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, &path)?;
    fs::File::open(data_dir)?.sync_all()?;
    Ok(previous)
}

/// Makes the session and the task that keeps it until `shutdown`, and then ends the epoch: nothing of this process may act
/// under it any more when that is called. What it ran goes to others at once, instead of after the time that a silent instance
/// is given.
pub fn keep(
    node: Node,
    description: Description,
    options: Options,
    validity: Validity,
    shutdown: CancellationToken,
) -> (Session, impl Future<Output = ()> + Send) {
    let (sender, epoch) = watch::channel(None);
    let draining: Arc<watch::Sender<Draining>> = Arc::default();
    let begun = Arc::<AtomicBool>::default();
    let session = Session { epoch, begun: begun.clone(), draining: draining.clone() };
    let keeper = Keeper { node, description, options, validity, epoch: sender, begun, draining };
    let task = async move {
        shutdown.run_until_cancelled(keeper.run()).await;
        keeper.leave().await;
    };
    (session, task)
}

struct Keeper {
    node: Node,
    description: Description,
    options: Options,
    validity: Validity,
    epoch: watch::Sender<Option<u64>>,
    begun: Arc<AtomicBool>,
    draining: Arc<watch::Sender<Draining>>,
}

impl Keeper {
    async fn run(&self) {
        loop {
            let epoch = self.register().await;
            self.epoch.send_replace(Some(epoch));
            self.begun.store(true, Ordering::Release);
            self.renew(epoch).await;
            self.validity.lost();
            self.epoch.send_replace(None);
        }
    }

    /// Ends the epoch, if others are there to take over.
    async fn leave(&self) {
        let Some(epoch) = *self.epoch.borrow() else { return };
        self.validity.lost();
        // A renewal that was under way when this began may commit in between, which makes the command stale.
        for _ in 0..LEAVE_ATTEMPTS {
            let status = self.node.status();
            if status.voter_count() < 2 || !status.has_quorum {
                return;
            }
            let Some(own) = self.own_row(&self.node.read_local()).filter(|own| own.live && own.epoch == epoch) else {
                return;
            };
            let command = command::Kind::ExpireInstance(ExpireInstance {
                instance_id: own.instance_id,
                epoch,
                renewal: own.renewal,
                term: status.term,
                // A turn that is handed over has done nothing wrong.
                max_attempts: u32::MAX,
            });
            match self.node.propose(command, LEAVE).await {
                Ok(Committed { outcome: outcome::Kind::Done(_), .. }) => {
                    tracing::info!(epoch, "left: what ran here is another's now");
                    return;
                }
                Ok(committed) => drop(self.node.read_at_least(committed.log_index, LEAVE).await),
                // The leader ends the epoch in its own time, or this instance when it comes back.
                Err(error) => return tracing::debug!(%error, "the epoch did not end at once"),
            }
        }
    }

    fn own_row(&self, view: &View) -> Option<Instance> {
        let rows = view.instances().ok()?;
        rows.into_iter().find(|row| row.instance_id == self.node.instance_id().as_str())
    }

    async fn propose(&self, command: command::Kind) -> Result<(u64, outcome::Kind), ProposeError> {
        let committed = self.node.propose(command, self.options.deadline).await?;
        Ok((committed.log_index, committed.outcome))
    }

    async fn register(&self) -> u64 {
        let mut reminded: Option<Instant> = None;
        loop {
            let command = command::Kind::RegisterInstance(RegisterInstance {
                instance_id: self.node.instance_id().as_str().to_owned(),
                boot_id: self.description.boot_id.clone(),
                http_addr: self.description.http_addr.clone(),
                peer_addr: self.description.peer_addr.clone(),
                version: self.description.version.clone(),
                previous_boot_id: self.description.previous_boot_id.clone(),
                accounts: self.description.accounts.clone(),
                preferred: self.description.preferred.clone(),
                format: format::supported(),
            });
            let asked = validity::now();
            let reason = match self.propose(command).await {
                Ok((index, outcome::Kind::InstanceRegistered(registered))) => {
                    // Whoever acts on the registration reads this instance's state.
                    match self.node.read_at_least(index, self.options.deadline).await {
                        Ok(_) => {
                            self.validity.confirmed(registered.epoch, asked);
                            tracing::info!(epoch = registered.epoch, "registered");
                            return registered.epoch;
                        }
                        Err(error) => error.to_string(),
                    }
                }
                Ok((_, outcome::Kind::InstanceTaken(taken))) => format!(
                    "another process (boot id {}) is alive under this instance's name, or was a moment ago",
                    taken.boot_id
                ),
                Ok((_, other)) => format!("unexpected outcome {other:?}"),
                Err(error) => error.to_string(),
            };
            if reminded.is_none_or(|at| at.elapsed() >= REMIND) {
                reminded = Some(Instant::now());
                tracing::warn!(reason, "not registered yet");
            }
            sleep(AGAIN).await;
        }
    }

    /// Renews until the epoch is over.
    async fn renew(&self, epoch: u64) {
        let mut draining = self.draining.subscribe();
        let mut known = Draining::default();
        let mut renewal = 0;
        let mut ticks = interval(self.options.renew);
        // After a pause one renewal is due, not all that were missed.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = draining.changed() => if changed.is_err() { return },
            }
            let wanted = *draining.borrow_and_update();
            if wanted != known {
                let instance_id = self.node.instance_id().as_str().to_owned();
                let draining = SetDraining { instance_id, epoch, draining: wanted.wanted, alone: false };
                match self.propose(command::Kind::SetDraining(draining)).await {
                    Ok((_, outcome::Kind::Done(_))) => known = wanted,
                    Ok((_, _)) => {}
                    Err(error) => tracing::warn!(%error, "cannot say whether this instance takes work"),
                }
            }
            renewal += 1;
            let instance_id = self.node.instance_id().as_str().to_owned();
            let command = command::Kind::RenewInstance(RenewInstance { instance_id, epoch, renewal });
            let asked = validity::now();
            match self.propose(command).await {
                Ok((_, outcome::Kind::Done(_))) => self.validity.confirmed(epoch, asked),
                Ok((index, _)) => match self.still_lives(epoch, index).await {
                    Some(known) => renewal = renewal.max(known),
                    None => {
                        tracing::warn!(epoch, "this instance's epoch is over: what it ran is another's now");
                        return;
                    }
                },
                Err(error) => tracing::debug!(%error, "renewal failed"),
            }
        }
    }

    /// A renewal that was proposed twice is stale the second time: the row tells whether the epoch is over.
    async fn still_lives(&self, epoch: u64, index: u64) -> Option<u64> {
        let view = match self.node.read_at_least(index, self.options.deadline).await {
            Ok(view) => view,
            // Not known now; the next renewal will tell.
            Err(_) => return Some(0),
        };
        let own = self.own_row(&view)?;
        (own.live && own.epoch == epoch).then_some(own.renewal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_finds_the_boot_id_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(exchange_boot_id(dir.path(), "aa01").unwrap(), "");
        assert_eq!(exchange_boot_id(dir.path(), "bb02").unwrap(), "aa01");
        fs::write(dir.path().join("boot_id"), "torn\0\0").unwrap();
        assert_eq!(exchange_boot_id(dir.path(), "cc03").unwrap(), "");
        assert_eq!(exchange_boot_id(dir.path(), "dd04").unwrap(), "cc03");
    }
}
