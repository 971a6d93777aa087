//! Whether this instance takes work: maintenance, and being on its way out.
//!
//! A property of the running process: a restart clears it. Turning it on keeps serving: new turns are given to others,
//! leadership is handed over, and what runs here runs to its end. It is refused while the others could not do without this
//! instance; a process that is told to stop is not asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openclaw_proto::ids::InstanceId;
use openclaw_proto::state::{Instance, SetDraining, command, outcome};
use openclaw_raft::{MembershipError, Node, Other, ProposeError};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::session::Session;

const HAND_OVER: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(500);
const COMMIT: Duration = Duration::from_secs(5);

/// Why an instance does not go into maintenance. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum NotNow {
    #[error("{0}")]
    Needed(String),
    #[error("this instance is not registered with the cluster yet")]
    Unregistered,
    #[error(transparent)]
    Uncommitted(ProposeError),
}

/// Why the group could not go on without `me`; none: it could.
fn needed(me: &InstanceId, others: &[Other], rows: &[Instance]) -> Option<String> {
    let majority = others.len().div_ceil(2) + 1;
    let unfit: Vec<String> = others.iter().filter_map(|other| unfit(other, rows)).collect();
    match others.len() {
        // Nobody else would serve anyway, and an operator knows that.
        0 => None,
        1 => Some(format!(
            "{me} and {} are the only voters: without either nothing can be committed; add a third instance",
            others[0].instance_id
        )),
        count if count - unfit.len() < majority => {
            let voters = count + 1;
            Some(format!("without {me} there would be no quorum ({majority} of {voters} voters): {}", unfit.join(", ")))
        }
        _ => None,
    }
}

/// Why that instance could not carry the group and its work.
fn unfit(other: &Other, rows: &[Instance]) -> Option<String> {
    let name = &other.instance_id;
    if let Some(why) = &other.unfit {
        return Some(format!("{name} {why}"));
    }
    match rows.iter().find(|row| row.instance_id == name.as_str()) {
        Some(row) if row.live && row.draining => Some(format!("{name} drains itself")),
        Some(row) if row.live => None,
        Some(_) | None => Some(format!("{name} has only begun to start")),
    }
}

/// Says and changes whether this instance takes work; cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    node: Node,
    session: Session,
    maintenance: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
    /// Since when this instance takes no new work.
    drains_since: Arc<Mutex<Option<Instant>>>,
    /// Ends the hand-over that is under way when maintenance ends.
    shutdown: CancellationToken,
}

impl Readiness {
    pub fn new(node: Node, session: Session, shutdown: CancellationToken) -> Self {
        Self {
            node,
            session,
            maintenance: Arc::default(),
            stopping: Arc::default(),
            drains_since: Arc::default(),
            shutdown,
        }
    }

    /// This process was registered once, and had applied all that was committed before.
    pub fn has_begun(&self) -> bool {
        self.session.has_begun()
    }

    pub fn is_in_maintenance(&self) -> bool {
        self.maintenance.load(Ordering::Acquire)
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// New turns go to others.
    pub fn is_draining(&self) -> bool {
        self.is_in_maintenance() || self.is_stopping()
    }

    /// For how long whoever looks at its health has been able to know.
    pub fn has_drained_for(&self) -> Duration {
        self.drains_since.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Nobody else depends on this instance's leadership.
    pub fn is_free(&self) -> bool {
        let status = self.node.status();
        !status.is_leader || status.voter_count() < 2
    }

    /// Switches maintenance on unless the cluster needs this instance, or another is in maintenance. Others know of it then.
    ///
    /// # Errors
    /// [`NotNow`].
    pub async fn begin_maintenance(&self) -> Result<(), NotNow> {
        if self.is_in_maintenance() {
            return Ok(());
        }
        let others = self.node.other_voters().await;
        let rows = self.node.read_local().instances().unwrap_or_default();
        needed(self.node.instance_id(), &others, &rows).map_or(Ok(()), |why| Err(NotNow::Needed(why)))?;
        // Two that ask at once have both seen the other at work: the log decides which of them goes.
        if !others.is_empty() {
            let epoch = self.session.epoch().ok_or(NotNow::Unregistered)?;
            let instance_id = self.node.instance_id().as_str().to_owned();
            let command = command::Kind::SetDraining(SetDraining { instance_id, epoch, draining: true, alone: true });
            match self.node.propose(command, COMMIT).await.map(|committed| committed.outcome) {
                Ok(outcome::Kind::Done(_)) => {}
                Ok(outcome::Kind::Conflict(_)) => return Err(NotNow::Needed("another instance drains".to_owned())),
                Ok(_) => return Err(NotNow::Unregistered),
                Err(error) => {
                    // It may commit yet.
                    self.session.say_again();
                    return Err(NotNow::Uncommitted(error));
                }
            }
        }
        self.set_maintenance(true);
        Ok(())
    }

    /// Takes effect at once here, whatever the others can do; they learn of it by the next commit.
    pub fn set_maintenance(&self, on: bool) {
        // What others were told last may not have been what was true last.
        self.session.say_again();
        if self.maintenance.swap(on, Ordering::AcqRel) != on {
            tracing::info!(on, "maintenance");
            *self.drains_since.lock() = self.is_draining().then(Instant::now);
            self.session.set_draining(self.is_draining());
            if on {
                self.spawn_hand_over();
            }
        }
    }

    /// From here on this process only ends.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.drains_since.lock().get_or_insert_with(Instant::now);
        self.session.set_draining(true);
        if !self.is_in_maintenance() {
            self.spawn_hand_over();
        }
    }

    fn spawn_hand_over(&self) {
        let (readiness, shutdown) = (self.clone(), self.shutdown.clone());
        tokio::spawn(async move { shutdown.run_until_cancelled(readiness.hand_over()).await });
    }

    /// Gives leadership away, and again if it comes back, for as long as this instance drains.
    async fn hand_over(&self) {
        while self.is_draining() {
            if !self.is_free() {
                self.give_up_leadership().await;
            }
            sleep(AGAIN).await;
        }
    }

    /// One attempt to have another instance lead.
    pub async fn give_up_leadership(&self) {
        if self.is_free() {
            return;
        }
        match self.node.transfer_leader(None, HAND_OVER).await {
            Ok(to) => tracing::info!(%to, "leadership handed over"),
            Err(MembershipError::NobodyElse) => {}
            Err(error) => tracing::warn!(%error, "leadership not handed over"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(name: &str, unfit: Option<&str>) -> Other {
        Other { instance_id: InstanceId::parse(name).unwrap(), unfit: unfit.map(str::to_owned) }
    }

    fn row(name: &str, live: bool, draining: bool) -> Instance {
        Instance { instance_id: name.into(), live, draining, ..Instance::default() }
    }

    #[test]
    fn an_instance_may_go_while_a_majority_of_all_stays_at_work() {
        let me = InstanceId::parse("a").unwrap();
        let rows = ["a", "b", "c", "d", "e"].map(|name| row(name, true, false));
        let names = ["b", "c", "d", "e"];
        let others = |fit: usize, of: usize| -> Vec<Other> {
            let all = names[..of].iter().enumerate();
            all.map(|(n, name)| other(name, (n >= fit).then_some("does not answer"))).collect()
        };
        for (fit, of, may) in [
            (0, 0, true),
            (1, 1, false),
            (2, 2, true),
            (1, 2, false),
            (3, 3, true),
            (2, 3, false),
            (4, 4, true),
            (3, 4, true),
            (2, 4, false),
        ] {
            assert_eq!(needed(&me, &others(fit, of), &rows).is_none(), may, "{fit} of {of} others are fit");
        }
        assert_eq!(
            needed(&me, &others(1, 2), &rows).unwrap(),
            "without a there would be no quorum (2 of 3 voters): c does not answer"
        );
    }

    #[test]
    fn one_that_drains_or_is_not_back_yet_does_not_count() {
        let me = InstanceId::parse("a").unwrap();
        let others = [other("b", None), other("c", None)];
        let why = |rows: &[Instance]| needed(&me, &others, rows);
        assert_eq!(why(&[row("b", true, false), row("c", true, false)]), None);
        assert!(why(&[row("b", true, true), row("c", true, false)]).unwrap().ends_with("b drains itself"));
        assert!(why(&[row("b", false, false), row("c", true, false)]).unwrap().ends_with("b has only begun to start"));
        assert!(why(&[row("b", true, false)]).unwrap().ends_with("c has only begun to start"));
    }
}
