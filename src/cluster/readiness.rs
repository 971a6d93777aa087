//! Whether this instance takes work: maintenance, and being on its way out.
//!
//! A property of the running process: a restart clears it. Turning it on keeps serving: new turns are given to others,
//! leadership is handed over, and what runs here runs to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openclaw_raft::{MembershipError, Node};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::session::Session;

const HAND_OVER: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(500);

/// Says and changes whether this instance takes work; cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    node: Node,
    session: Session,
    maintenance: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
    /// Ends the hand-over that is under way when maintenance ends.
    shutdown: CancellationToken,
}

impl Readiness {
    pub fn new(node: Node, session: Session, shutdown: CancellationToken) -> Self {
        Self { node, session, maintenance: Arc::default(), stopping: Arc::default(), shutdown }
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

    /// Nobody else depends on this instance's leadership.
    pub fn is_free(&self) -> bool {
        let status = self.node.status();
        !status.is_leader || status.voter_count() < 2
    }

    /// Takes effect at once here; others learn of it by the next commit.
    pub fn set_maintenance(&self, on: bool) {
        if self.maintenance.swap(on, Ordering::AcqRel) != on {
            tracing::info!(on, "maintenance");
            self.session.set_draining(self.is_draining());
            if on {
                let readiness = self.clone();
                let shutdown = self.shutdown.clone();
                tokio::spawn(async move { shutdown.run_until_cancelled(readiness.hand_over()).await });
            }
        }
    }

    /// From here on this process only ends.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.session.set_draining(true);
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
