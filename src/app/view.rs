//! What HTTP shows and changes of the cluster.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use openclaw_proto::http::{Cluster, ErrorCode, Maintenance, Member, MemberRole, StateHash};
use openclaw_proto::ids::{InstanceId, SessionKey};
use openclaw_proto::state::Lease;
use openclaw_raft::{MembershipError, Node, Status, TableError};
use tokio::sync::Semaphore;

use super::backup::Backups;
use crate::api::{BackupStream, ClusterError, ClusterStatus, ClusterView};
use crate::cluster;
use crate::cluster::readiness::{NotNow, Readiness};
use crate::sessions::runner::Load;

const CHANGE: Duration = Duration::from_secs(15);
const READ: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// The node and this instance's readiness, as one view.
pub(super) struct View {
    pub(super) node: Node,
    pub(super) readiness: Readiness,
    pub(super) load: Load,
    /// One state hash at a time: each reads all there is.
    pub(super) hashing: Arc<Semaphore>,
    pub(super) backups: Backups,
}

impl View {
    /// Waits a little until this instance sees a change that was made, so that it shows it next.
    async fn see(&self, change: &'static str, seen: impl FnMut(&Status) -> bool) {
        let mut status = self.node.watch_status();
        if !matches!(tokio::time::timeout(READ, status.wait_for(seen)).await, Ok(Ok(_))) {
            tracing::debug!(change, "made, but this instance does not see it yet");
        }
    }

    /// Waits a little until the group knows whether this instance drains: until then a turn that is accepted here may be
    /// given to another, or to this one.
    async fn others_know(&self, draining: bool) {
        let own = self.node.instance_id().as_str();
        let begin = tokio::time::Instant::now();
        while begin.elapsed() < READ {
            let rows = self.node.read_local().instances().unwrap_or_default();
            // Not registered: there is nothing to be known.
            if rows.iter().find(|row| row.instance_id == own).is_none_or(|row| row.draining == draining) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        tracing::debug!(draining, "in effect here, but not committed yet");
    }

    fn channels_to_hand_over(&self) -> u64 {
        let (view, me) = (self.node.read_local(), self.node.instance_id().as_str());
        let (Ok(leases), Ok(rows)) = (view.leases(), view.instances()) else { return 0 };
        let here = |lease: &&Lease| lease.owner == me && cluster::another_takes(&rows, me, &lease.account);
        leases.iter().filter(here).count() as u64
    }

    fn warnings(status: &Status) -> Vec<String> {
        let voters = status.voter_count();
        let mut warnings = Vec::new();
        if voters > 0 && !status.has_quorum {
            warnings.push(
                "this instance hears of no majority: nothing can be written, and who is live is as it was before"
                    .to_owned(),
            );
        }
        match voters {
            2 => warnings.push(
                "two voters tolerate no failure: when either is down nothing can be committed; add a third".to_owned(),
            ),
            0 => warnings.push("this instance is not a member of a formed cluster yet".to_owned()),
            _ => {}
        }
        warnings
    }
}

fn internal(error: impl std::fmt::Display) -> ClusterError {
    ClusterError { code: ErrorCode::Internal, message: error.to_string() }
}

/// Whom a majority follows; without a quorum a status still names who led last.
fn leader(status: &Status) -> Option<InstanceId> {
    status.leader.clone().filter(|_| status.has_quorum)
}

fn role(role: MemberRole, has_quorum: bool) -> MemberRole {
    match role {
        MemberRole::Leader if !has_quorum => MemberRole::Follower,
        MemberRole::Leader | MemberRole::Follower | MemberRole::Learner => role,
    }
}

fn not_now(error: NotNow) -> ClusterError {
    let code = match &error {
        NotNow::Needed(_) | NotNow::Unregistered => ErrorCode::Conflict,
        // Whether the others know of it or not: this instance goes on to serve.
        NotNow::Uncommitted(_) => ErrorCode::NoQuorum,
    };
    ClusterError { code, message: error.to_string() }
}

fn refused(error: MembershipError) -> ClusterError {
    let code = match &error {
        MembershipError::NotAMember(_) => ErrorCode::NotFound,
        MembershipError::NotAVoter(_)
        | MembershipError::LastVoter(_)
        | MembershipError::Needed { .. }
        | MembershipError::NobodyElse
        | MembershipError::NoAnswer(_)
        | MembershipError::Behind { .. }
        | MembershipError::AnotherLeads { .. }
        | MembershipError::Refused(_) => ErrorCode::Conflict,
        MembershipError::NoLeader => ErrorCode::NoQuorum,
        MembershipError::Timeout { .. } => ErrorCode::EffectUnknown,
    };
    ClusterError { code, message: error.to_string() }
}

impl ClusterView for View {
    fn status(&self) -> ClusterStatus {
        let status = self.node.status();
        ClusterStatus {
            leader: leader(&status),
            term: status.term,
            applied_index: status.applied_index,
            has_quorum: status.has_quorum,
            starting: !self.readiness.has_begun(),
            maintenance: self.readiness.is_in_maintenance(),
            draining: self.readiness.is_stopping(),
            failed: status.failed,
        }
    }

    fn cluster(&self) -> BoxFuture<'_, Result<Cluster, ClusterError>> {
        Box::pin(async move {
            let status = self.node.status();
            // As this instance sees it: an operator asks above all when there is no quorum.
            let view = self.node.read_local();
            let internal = |error: &TableError| ClusterError { code: ErrorCode::Internal, message: error.to_string() };
            let rows = view.instances().map_err(|error| internal(&error))?;
            let now = rows.iter().map(|row| row.last_seen_ms).max().unwrap_or_default();
            let mut members: Vec<Member> = status
                .members
                .iter()
                .map(|member| {
                    let row = rows.iter().find(|row| row.instance_id == member.instance_id.as_str());
                    let is_self = member.instance_id == *self.node.instance_id();
                    let http_addr = row.map(|row| row.http_addr.clone()).filter(|addr| !addr.is_empty());
                    Member {
                        instance_id: member.instance_id.as_str().to_owned(),
                        role: role(member.role, status.has_quorum),
                        http_addr: http_addr.unwrap_or_else(|| member.http_addr.clone()),
                        peer_addr: member.peer_addr.clone(),
                        applied_index: if is_self { Some(status.applied_index) } else { member.matched_index },
                        version: row.map(|row| row.version.clone()),
                        epoch: row.map(|row| row.epoch),
                        live: row.is_some_and(|row| row.live),
                        draining: row.is_some_and(|row| row.draining),
                        last_seen_ms: row.map(|row| now.saturating_sub(row.last_seen_ms)),
                    }
                })
                .collect();
            members.sort_by(|a, b| a.instance_id.cmp(&b.instance_id));
            Ok(Cluster {
                cluster_id: self.node.cluster_id().as_str().to_owned(),
                instance_id: self.node.instance_id().as_str().to_owned(),
                leader: leader(&status).map(String::from),
                term: status.term,
                commit_index: status.committed_index,
                format: view.format().map_err(|error| internal(&error))?,
                members,
                warnings: Self::warnings(&status),
            })
        })
    }

    fn state_hash(&self) -> BoxFuture<'_, Result<StateHash, ClusterError>> {
        Box::pin(async {
            let busy = || ClusterError {
                code: ErrorCode::Busy,
                message: "another state hash is being made here; try again when it is done".to_owned(),
            };
            // Held by the thread that reads, which goes on when nobody waits for it any more.
            let only = self.hashing.clone().try_acquire_owned().map_err(|_| busy())?;
            let node = self.node.clone();
            let hash = tokio::task::spawn_blocking(move || {
                let _only = only;
                node.state_hash()
            });
            let hash = hash.await.map_err(internal)?;
            let (applied_index, hash) = hash.map_err(internal)?;
            let sha256 = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(StateHash { instance_id: self.node.instance_id().as_str().to_owned(), applied_index, sha256 })
        })
    }

    fn backup(&self, stale: bool) -> BoxFuture<'_, Result<BackupStream, ClusterError>> {
        Box::pin(self.backups.begin(&self.node, stale))
    }

    fn maintenance(&self) -> Maintenance {
        let (running_turns, channels) = (self.load.running(), self.channels_to_hand_over());
        let on = self.readiness.is_in_maintenance();
        Maintenance {
            instance_id: self.node.instance_id().as_str().to_owned(),
            on,
            running_turns,
            channels,
            drained: on && running_turns == 0 && channels == 0 && self.readiness.is_free(),
        }
    }

    fn is_draining(&self) -> bool {
        self.readiness.is_draining()
    }

    fn set_maintenance(&self, on: bool, force: bool) -> BoxFuture<'_, Result<Maintenance, ClusterError>> {
        Box::pin(async move {
            if on && !force {
                let readiness = self.readiness.clone();
                // Of its own: the caller may go away, when others know already that this instance drains.
                let begun = tokio::spawn(async move { readiness.begin_maintenance().await }).await;
                begun.map_err(internal)?.map_err(not_now)?;
            } else {
                self.readiness.set_maintenance(on);
            }
            self.others_know(on).await;
            Ok(self.maintenance())
        })
    }

    fn transfer_leader(&self, to: Option<InstanceId>) -> BoxFuture<'_, Result<InstanceId, ClusterError>> {
        Box::pin(async move {
            let leader = self.node.transfer_leader(to.as_ref(), CHANGE).await.map_err(refused)?;
            self.see("the new leader", |status| status.leader.as_ref() == Some(&leader)).await;
            Ok(leader)
        })
    }

    fn remove(&self, instance: InstanceId) -> BoxFuture<'_, Result<(), ClusterError>> {
        Box::pin(async move {
            self.node.remove(&instance, CHANGE).await.map_err(refused)?;
            self.see("a removal", |status| status.members.iter().all(|member| member.instance_id != instance)).await;
            Ok(())
        })
    }

    fn runner_for_new_turn(&self, session: &SessionKey) -> Result<InstanceId, ClusterError> {
        let me = self.node.instance_id();
        if !self.readiness.is_draining() {
            return Ok(me.clone());
        }
        let rows = self
            .node
            .read_local()
            .instances()
            .map_err(|error| ClusterError { code: ErrorCode::Internal, message: error.to_string() })?;
        cluster::other_runner(&rows, me, session).ok_or_else(|| ClusterError {
            code: ErrorCode::Draining,
            message: "this instance takes no new work, and no other instance does".to_owned(),
        })
    }
}
