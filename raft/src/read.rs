//! Linearizable reads from any instance, and what they see.

use std::time::Duration;

use openclaw_proto::http::ErrorCode;
use openclaw_proto::ids::{ChannelAccount, InstanceId, SeqNum, SessionKey, TurnId};
use openclaw_proto::raft as pb;
use openclaw_proto::state;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::group::Group;
use crate::leadership;
use crate::planted::{Bug, planted};
use crate::state_machine::{TableError, format, read};
use crate::storage::TableReader;

/// Reads that may wait for the leader's word.
const QUEUE: usize = 16 * 1024;
/// Questions to the leader under way; each answers all reads that waited when it was asked.
const IN_FLIGHT: usize = 4;
/// One question to the leader, after which it is asked again.
const ATTEMPT: Duration = Duration::from_millis(500);
/// Past a read's deadline, the time in which its batch answers for itself.
const LATE: Duration = Duration::from_millis(100);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Why a read was not answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    #[error("no leader with a quorum within {waited:?}: {reason}")]
    NoQuorum { waited: Duration, reason: String },
    #[error("this instance had not applied log index {index} within {waited:?}")]
    Behind { index: u64, waited: Duration },
    #[error("too many reads wait on this instance")]
    Busy,
}

impl ReadError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoQuorum { .. } => ErrorCode::NoQuorum,
            Self::Behind { .. } => ErrorCode::Timeout,
            Self::Busy => ErrorCode::Busy,
        }
    }
}

/// The replicated state, at some log index or later.
#[derive(Clone)]
pub struct View {
    applied: u64,
    tables: TableReader,
}

impl View {
    /// Reads reflect at least this log index.
    pub fn applied_index(&self) -> u64 {
        self.applied
    }

    /// # Errors
    /// The disk's, or damaged rows.
    pub fn session(&self, key: &SessionKey) -> Result<Option<state::Session>, TableError> {
        read::session(&self.tables, key)
    }

    /// Sessions in key order, from behind `after` on.
    ///
    /// # Errors
    /// The disk's, or damaged rows.
    pub fn sessions(&self, after: Option<&SessionKey>, limit: usize) -> Result<Vec<state::Session>, TableError> {
        read::sessions(&self.tables, after, limit)
    }

    /// Entries in sequence order, from behind `after` on.
    ///
    /// # Errors
    /// The disk's, or damaged rows.
    pub fn entries(&self, key: &SessionKey, after: SeqNum, limit: usize) -> Result<Vec<state::Entry>, TableError> {
        read::entries(&self.tables, key, after, limit)
    }

    /// # Errors
    /// The disk's, or damaged rows.
    pub fn turn(&self, id: &TurnId) -> Result<Option<state::Turn>, TableError> {
        read::turn(&self.tables, id)
    }

    /// The turns that `runner` runs or will run.
    ///
    /// # Errors
    /// The disk's, or damaged rows.
    pub fn turns_of(&self, runner: &InstanceId) -> Result<Vec<state::Turn>, TableError> {
        read::turns_of(&self.tables, runner)
    }

    /// # Errors
    /// The disk's, or damaged rows.
    pub fn instances(&self) -> Result<Vec<state::Instance>, TableError> {
        read::instances(&self.tables)
    }

    /// The newest format that every instance reads.
    ///
    /// # Errors
    /// The disk's, or damaged rows.
    pub fn format(&self) -> Result<u32, TableError> {
        format::active(&self.tables)
    }

    /// Who runs which channel account.
    ///
    /// # Errors
    /// [`TableError`] when the disk cannot be read.
    pub fn leases(&self) -> Result<Vec<state::Lease>, TableError> {
        read::leases(&self.tables)
    }

    /// Where the account's owner stands with its platform.
    ///
    /// # Errors
    /// [`TableError`] when the disk cannot be read.
    pub fn cursor(&self, account: &ChannelAccount) -> Result<Option<state::Cursor>, TableError> {
        read::cursor(&self.tables, account)
    }

    /// At most `limit` intents of an account, oldest first, those after `after`.
    ///
    /// # Errors
    /// [`TableError`] when the disk cannot be read.
    pub fn outbox(&self, account: &ChannelAccount, after: u64, limit: usize) -> Result<Vec<state::Intent>, TableError> {
        read::outbox(&self.tables, account, after, limit)
    }

    /// Those who wait for approval, and those who have it; of one account or of all.
    ///
    /// # Errors
    /// [`TableError`] when the disk cannot be read.
    pub fn pairings(&self, account: Option<&ChannelAccount>) -> Result<Vec<state::Pairing>, TableError> {
        read::pairings(&self.tables, account.map(ChannelAccount::as_str))
    }

    /// Whether somebody was approved.
    ///
    /// # Errors
    /// [`TableError`] when the disk cannot be read.
    pub fn is_paired(&self, account: &ChannelAccount, sender_id: &str) -> Result<bool, TableError> {
        read::is_paired(&self.tables, account, sender_id)
    }
}

struct Waiting {
    since: Instant,
    deadline: Instant,
    answer: oneshot::Sender<Result<u64, ReadError>>,
}

/// Asks the leader for all reads that wait at once; cheap to clone.
#[derive(Clone)]
pub(crate) struct Reader {
    group: Group,
    queue: mpsc::Sender<Waiting>,
}

impl Reader {
    pub(crate) fn spawn(group: Group) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(run(group.clone(), waiting));
        Self { group, queue }
    }

    pub(crate) fn local(&self) -> View {
        let (applied, tables) = self.group.state().tables();
        View { applied, tables }
    }

    /// Reads all rows.
    pub(crate) fn state_hash(&self) -> std::io::Result<(u64, [u8; 32])> {
        self.group.state().state_hash()
    }

    pub(crate) async fn linearizable(&self, timeout: Duration) -> Result<View, ReadError> {
        if planted(Bug::StaleRead) {
            return Ok(self.local());
        }
        let since = Instant::now();
        let deadline = since + timeout;
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Waiting { since, deadline, answer }).map_err(|_| ReadError::Busy)?;
        let stopped = |_| ReadError::NoQuorum { waited: since.elapsed(), reason: "this instance is stopping".into() };
        let overdue =
            |_| ReadError::NoQuorum { waited: since.elapsed(), reason: "the leader was not asked yet".into() };
        let answer = tokio::time::timeout_at(deadline + LATE, answered).await.map_err(overdue)?;
        let index = answer.map_err(stopped)??;
        self.at_least(index, deadline.saturating_duration_since(Instant::now())).await
    }

    pub(crate) async fn at_least(&self, index: u64, timeout: Duration) -> Result<View, ReadError> {
        let mut applied = self.group.state().applied();
        let waited = tokio::time::timeout(timeout, applied.wait_for(|applied| *applied >= index)).await;
        match waited {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Err(ReadError::Behind { index, waited: timeout }),
        }
        Ok(self.local())
    }
}

async fn run(group: Group, mut queue: mpsc::Receiver<Waiting>) {
    let mut questions = JoinSet::new();
    let mut batch = Vec::new();
    loop {
        while questions.len() >= IN_FLIGHT {
            questions.join_next().await;
        }
        if queue.recv_many(&mut batch, QUEUE).await == 0 {
            break;
        }
        while questions.try_join_next().is_some() {}
        questions.spawn(settle(group.clone(), std::mem::take(&mut batch)));
    }
}

/// Asks until there is an answer for all, or each deadline has passed.
async fn settle(group: Group, mut batch: Vec<Waiting>) {
    let mut status = group.status();
    let mut reason = "no leader is known".to_owned();
    loop {
        let now = Instant::now();
        let (expired, rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(|waiting| waiting.deadline <= now);
        for waiting in expired {
            let error = ReadError::NoQuorum { waited: waiting.since.elapsed(), reason: reason.clone() };
            drop(waiting.answer.send(Err(error)));
        }
        let Some(latest) = rest.iter().map(|waiting| waiting.deadline).max() else { return };
        batch = rest;
        let attempt = latest.saturating_duration_since(now).min(ATTEMPT);
        let (leader, stopped) = {
            let status = status.borrow_and_update();
            (status.leader_node, status.failed.is_some())
        };
        if stopped {
            // Nothing changes any more, so every further question would fail at once, as fast as the processor can ask.
            for waiting in batch {
                let (waited, reason) = (waiting.since.elapsed(), "this instance is stopping".to_owned());
                drop(waiting.answer.send(Err(ReadError::NoQuorum { waited, reason })));
            }
            return;
        }
        let asked = match leader {
            None => Err("no leader is known".to_owned()),
            Some(leader) if leader == group.own_node() => leadership::read_index(&group, attempt)
                .await
                .map(|log_id| log_id.index)
                .map_err(|error| error.to_string()),
            Some(leader) => read_index_there(&group, leader, attempt).await,
        };
        match asked {
            Ok(index) => {
                for waiting in batch {
                    drop(waiting.answer.send(Ok(index)));
                }
                return;
            }
            Err(error) => reason = error,
        }
        let pause = Instant::now() + RETRY_PAUSE;
        drop(tokio::time::timeout_at(pause, status.wait_for(|status| status.leader_node != leader)).await);
    }
}

/// Asks another instance, as only members may.
pub(crate) async fn read_index_there(group: &Group, leader: u64, timeout: Duration) -> Result<u64, String> {
    let (instance, addr) =
        group.address_of(leader).ok_or_else(|| format!("the address of node {leader} is not known"))?;
    if group.peers().is_cut(&instance) {
        return Err("the link is cut".to_owned());
    }
    let request = pb::ReadIndexRequest {
        header: Some(group.peers().header(group.id(), leader)),
        timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
    };
    let mut client = group.peers().client(&instance, &addr);
    let answer = tokio::time::timeout(timeout, client.read_index(request))
        .await
        .map_err(|_| format!("{instance} at {addr} did not answer"))?
        .map_err(|status| {
            group.refused(&status);
            format!("{instance} at {addr}: {}", status.message())
        })?;
    answer.into_inner().log_id.map(|id| id.index).ok_or_else(|| format!("{instance} answered without a log id"))
}
