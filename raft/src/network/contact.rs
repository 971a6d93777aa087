//! Whether the leader's process is still there.
//!
//! Raft learns of a dead leader by silence, which takes an election timeout. A process that was killed leaves sooner
//! evidence: its connection breaks, and its address refuses the next one. A follower that has both holds its lease on
//! that leader void: it asks to be elected at once, and it grants others what it would have refused for the lease's
//! sake. One broken connection alone changes nothing, since the address then still answers.
//!
//! This touches when elections begin, never who may win: reads never rely on the lease.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::types::NodeId;

/// What this instance knows of its group's leader from the connections between them. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contact(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The last message of a leader, and whose it was.
    heard: Option<(NodeId, Instant)>,
    gone: Option<NodeId>,
}

impl Contact {
    /// A message of the leader `node` arrived.
    pub(crate) fn heard(&self, node: NodeId) {
        let mut state = self.0.lock();
        state.heard = Some((node, Instant::now()));
        state.gone = None;
    }

    /// The process of `node` does not exist any more. False if that is no news, or a leader has spoken since.
    pub(crate) fn is_gone(&self, node: NodeId, since: Instant) -> bool {
        let mut state = self.0.lock();
        if state.heard.is_some_and(|(_, at)| at > since) {
            return false;
        }
        state.gone.replace(node) != Some(node)
    }

    /// Whether the lease on `leader`, whom this node follows, is void because its process is gone. Never of another
    /// leader, and so never of this node itself once it leads.
    pub(crate) fn lease_is_void(&self, leader: Option<NodeId>) -> bool {
        leader.is_some() && self.0.lock().gone == leader
    }

    /// When a leader was heard last.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.0.lock().heard.map(|(_, at)| at)
    }

    /// Whether a leader was heard within `limit`.
    pub(crate) fn within(&self, limit: Duration) -> bool {
        let state = self.0.lock();
        state.gone.is_none() && state.heard.is_some_and(|(_, at)| at.elapsed() <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_spoke_after_the_evidence_is_not_gone() {
        let contact = Contact::default();
        let before = Instant::now();
        contact.heard(2);
        assert!(!contact.is_gone(1, before));
        assert!(!contact.lease_is_void(Some(1)));
        assert!(contact.is_gone(2, Instant::now()));
        assert!(!contact.is_gone(2, Instant::now()), "one campaign is enough");
        assert!(contact.lease_is_void(Some(2)));
        assert!(!contact.within(Duration::from_secs(60)));
        contact.heard(3);
        assert!(!contact.lease_is_void(Some(2)));
        assert!(contact.within(Duration::from_secs(60)));
    }

    #[test]
    fn who_takes_the_lead_from_one_that_is_gone_keeps_its_own_lease() {
        let contact = Contact::default();
        assert!(contact.is_gone(1, Instant::now()));
        // This node, 2, was elected: no leader is heard any more, and a vote asked of it must respect its own lease.
        assert!(!contact.lease_is_void(Some(2)));
        assert!(!contact.lease_is_void(None));
    }
}
