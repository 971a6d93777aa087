//! From a caller's command to its outcome, whoever leads.
//!
//! Commands that wait go together: into one message to the leader, or into one call of openraft. A command whose fate
//! is not known is proposed again, which is safe because every command of the state machine carries what makes it
//! idempotent (an external id, a fencing token, an epoch): the second time it has no effect and the same answer.

use std::time::Duration;

use bytes::Bytes;
use openclaw_proto::http::ErrorCode;
use openclaw_proto::raft as pb;
use openclaw_proto::state::{Command, command, outcome};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::command as encoding;
use crate::group::Group;
use crate::network::never_sent;
use crate::trace;

/// Commands that may wait before a caller is told that this instance is busy.
const QUEUE: usize = 16 * 1024;
/// Commands and bytes that go together at most.
const MAX_BATCH: usize = 1024;
const MAX_BATCH_BYTES: usize = 4 << 20;
/// Batches under way. Few, so that commands gather meanwhile.
const IN_FLIGHT: usize = 4;
/// Between two attempts, unless the leader changes before.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Past a command's deadline, the time in which its batch answers for itself, and more exactly.
const LATE: Duration = Duration::from_millis(100);
/// A leader's own deadline ends this long before the caller's.
const ANSWER_MARGIN: Duration = Duration::from_millis(20);

/// A command that a quorum has stored and this cluster has applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    pub log_index: u64,
    pub outcome: outcome::Kind,
}

/// Why there is no outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    #[error("no leader with a quorum within {waited:?}: {reason}")]
    NoQuorum { waited: Duration, reason: String },
    #[error("too many commands wait on this instance")]
    Busy,
    #[error("no answer within {waited:?}; the command may still commit")]
    EffectUnknown { waited: Duration },
    #[error("this instance is stopping")]
    Stopped,
    #[error(transparent)]
    TooLarge(#[from] encoding::CommandError),
}

impl ProposeError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoQuorum { .. } => ErrorCode::NoQuorum,
            Self::Busy => ErrorCode::Busy,
            Self::EffectUnknown { .. } => ErrorCode::EffectUnknown,
            Self::Stopped => ErrorCode::Draining,
            Self::TooLarge(_) => ErrorCode::TooLarge,
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    pub fn effect_unknown(&self) -> bool {
        self.code().effect_unknown()
    }
}

type Answer = oneshot::Sender<Result<Committed, ProposeError>>;

struct Waiting {
    command: Bytes,
    /// Of who proposes; empty where nobody traces.
    trace_parent: String,
    since: Instant,
    deadline: Instant,
    /// Some attempt may have put it into the log.
    sent: bool,
    reason: String,
    answer: Answer,
}

impl Waiting {
    /// Consensus has stopped here.
    fn stop(self) {
        let waited = self.since.elapsed();
        let error = if self.sent { ProposeError::EffectUnknown { waited } } else { ProposeError::Stopped };
        drop(self.answer.send(Err(error)));
    }

    fn expire(self) {
        let waited = self.since.elapsed();
        let error = if self.sent {
            ProposeError::EffectUnknown { waited }
        } else {
            ProposeError::NoQuorum { waited, reason: self.reason }
        };
        // The caller may have gone.
        drop(self.answer.send(Err(error)));
    }
}

/// Takes commands; cheap to clone. The task ends when the last one is dropped.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Waiting>,
}

impl Proposer {
    pub(crate) fn spawn(group: Group) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(run(group, waiting));
        Self { queue }
    }

    pub(crate) async fn propose(&self, command: command::Kind, timeout: Duration) -> Result<Committed, ProposeError> {
        let command = encoding::encode(&Command { now_ms: 0, kind: Some(command) })?.into();
        let since = Instant::now();
        let (answer, answered) = oneshot::channel();
        let reason = "no leader is known".to_owned();
        let trace_parent = trace::parent();
        let waiting = Waiting { command, trace_parent, since, deadline: since + timeout, sent: false, reason, answer };
        self.queue.try_send(waiting).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy,
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
        })?;
        // Batches under way may wait for a leader longer than this command may wait behind them.
        let unknown = || ProposeError::EffectUnknown { waited: since.elapsed() };
        let answer = tokio::time::timeout_at(since + timeout + LATE, answered).await.map_err(|_| unknown())?;
        answer.map_err(|_| unknown())?
    }
}

async fn run(group: Group, mut queue: mpsc::Receiver<Waiting>) {
    let mut batches = JoinSet::new();
    let mut held: Option<Waiting> = None;
    loop {
        while batches.len() >= IN_FLIGHT {
            batches.join_next().await;
        }
        let first = match held.take() {
            Some(first) => first,
            None => match queue.recv().await {
                Some(first) => first,
                None => break,
            },
        };
        while batches.try_join_next().is_some() {}
        let mut bytes = first.command.len();
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH {
            let Ok(next) = queue.try_recv() else { break };
            bytes += next.command.len();
            if bytes > MAX_BATCH_BYTES {
                held = Some(next);
                break;
            }
            batch.push(next);
        }
        batches.spawn(settle(group.clone(), batch));
    }
    while batches.join_next().await.is_some() {}
}

/// Proposes `batch` until each command has its outcome or its deadline has passed.
async fn settle(group: Group, mut batch: Vec<Waiting>) {
    let mut status = group.status();
    loop {
        let now = Instant::now();
        let (expired, rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(|waiting| waiting.deadline <= now);
        expired.into_iter().for_each(Waiting::expire);
        let Some(earliest) = rest.iter().map(|waiting| waiting.deadline).min() else { return };
        batch = rest;

        let (leader, stopped) = {
            let status = status.borrow_and_update();
            (status.leader_node, status.failed.is_some())
        };
        if stopped {
            // Nothing changes any more, so every further attempt would fail at once, as fast as the processor can.
            batch.into_iter().for_each(Waiting::stop);
            return;
        }
        if group.was_removed() {
            // As final: nobody takes anything from it any more.
            batch.into_iter().for_each(Waiting::expire);
            return;
        }
        let Some(leader) = leader else {
            wait_for_change(&mut status, earliest).await;
            continue;
        };
        let commands = batch.iter().map(|waiting| waiting.command.clone()).collect();
        let timeout = earliest.saturating_duration_since(now);
        let traces = traces(&batch);
        let results = if leader == group.own_node() {
            group.propose_here(commands, traces, timeout).await
        } else {
            tokio::select! {
                results = propose_there(&group, leader, commands, traces, timeout) => results,
                // Who was asked may be cut off, and would not answer before the deadline.
                () = another_leads(&mut status, leader) => {
                    failures(batch.len(), true, "another instance leads now".to_owned())
                }
            }
        };
        batch = batch.into_iter().zip(results).filter_map(|(waiting, result)| take(waiting, result)).collect();
        if !batch.is_empty() {
            wait_for_change(&mut status, Instant::now() + RETRY_PAUSE).await;
        }
    }
}

/// Who traces each command; empty if nobody traces any.
fn traces(batch: &[Waiting]) -> Vec<String> {
    if batch.iter().all(|waiting| waiting.trace_parent.is_empty()) {
        return Vec::new();
    }
    batch.iter().map(|waiting| waiting.trace_parent.clone()).collect()
}

/// Answers the caller, or gives the command back for another attempt.
fn take(mut waiting: Waiting, result: pb::ProposeResult) -> Option<Waiting> {
    match result.result {
        Some(pb::propose_result::Result::Committed(committed)) => {
            let outcome = committed.outcome.and_then(|outcome| outcome.kind);
            let answer = match outcome {
                Some(outcome) => Ok(Committed { log_index: committed.log_index, outcome }),
                // From a newer release, whose outcomes this one cannot read.
                None => Err(ProposeError::EffectUnknown { waited: waiting.since.elapsed() }),
            };
            drop(waiting.answer.send(answer));
            None
        }
        Some(pb::propose_result::Result::Failure(failure)) => {
            waiting.sent |= failure.effect_unknown;
            waiting.reason = failure.reason;
            Some(waiting)
        }
        None => {
            waiting.sent = true;
            Some(waiting)
        }
    }
}

async fn wait_for_change(status: &mut watch::Receiver<crate::status::Status>, until: Instant) {
    let leader = status.borrow().leader_node;
    // Ends by time as well; and when the sender is gone, each command ends by its deadline.
    drop(tokio::time::timeout_at(until, status.wait_for(|status| status.leader_node != leader)).await);
}

/// Ends when `leader` is known to have a successor.
async fn another_leads(status: &mut watch::Receiver<crate::status::Status>, leader: u64) {
    let succeeded = status.wait_for(|status| status.leader_node.is_some_and(|node| node != leader)).await.is_ok();
    if !succeeded {
        std::future::pending().await
    }
}

/// The same for each of `count` commands.
fn failures(count: usize, effect_unknown: bool, reason: String) -> Vec<pb::ProposeResult> {
    let failure = pb::ProposeFailure { effect_unknown, reason, leader_node: 0 };
    vec![pb::ProposeResult { result: Some(pb::propose_result::Result::Failure(failure)) }; count]
}

async fn propose_there(
    group: &Group,
    leader: u64,
    commands: Vec<Bytes>,
    trace_parents: Vec<String>,
    timeout: Duration,
) -> Vec<pb::ProposeResult> {
    let count = commands.len();
    let all = |effect_unknown: bool, reason: String| failures(count, effect_unknown, reason);
    let Some((instance, addr)) = group.address_of(leader) else {
        return all(false, format!("the address of node {leader} is not known"));
    };
    if group.peers().is_cut(&instance) {
        return all(false, "the link is cut".to_owned());
    }
    let remote = timeout.saturating_sub(ANSWER_MARGIN).max(Duration::from_millis(1));
    let request = pb::ProposeRequest {
        header: Some(group.peers().header(group.id(), leader)),
        commands,
        timeout_ms: u32::try_from(remote.as_millis()).unwrap_or(u32::MAX),
        trace_parents,
    };
    let mut client = group.peers().client(&instance, &addr);
    match tokio::time::timeout(timeout, client.propose(request)).await {
        Ok(Ok(response)) => {
            let mut results = response.into_inner().results;
            results.resize_with(count, || pb::ProposeResult { result: None });
            results
        }
        Ok(Err(status)) => {
            group.refused(&status);
            all(!never_sent(&status), format!("{instance} at {addr}: {}", status.message()))
        }
        Err(_) => all(true, format!("{instance} at {addr} did not answer")),
    }
}
