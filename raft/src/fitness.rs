//! Whether the others could go on without this instance: asked before it is taken out of service.

use std::time::Duration;

use openclaw_proto::ids::InstanceId;
use openclaw_proto::raft as pb;
use tokio::task::JoinSet;

use crate::group::Group;
use crate::types::NodeId;

/// One that does not answer within this time is not there.
const ANSWERS: Duration = Duration::from_secs(1);
/// Entries that a voter may lack and still count as caught up: what is on its way to it under load.
pub(crate) const CLOSE: u64 = 1000;

/// Another voter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    pub instance_id: InstanceId,
    /// Why it could not carry the group; none: it could.
    pub unfit: Option<String>,
}

impl Group {
    /// The voters beside this instance, each asked how it is. Empty where this instance has no vote, so that nobody misses it.
    pub(crate) async fn other_voters(&self) -> Vec<Other> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        if !voters.contains(&self.own_node()) {
            return Vec::new();
        }
        let committed = metrics.local_committed.as_ref().map_or(0, |id| id.index);
        let mut asking = JoinSet::new();
        for node in voters.into_iter().filter(|node| *node != self.own_node()) {
            let group = self.clone();
            asking.spawn(async move {
                let (instance_id, address) = group.address_of(node)?;
                let unfit =
                    group.ask(&instance_id, &address).await.map_or_else(Some, |answer| judge(committed, &answer));
                Some(Other { instance_id, unfit })
            });
        }
        let mut others: Vec<Other> = asking.join_all().await.into_iter().flatten().collect();
        others.sort_by(|a, b| a.instance_id.cmp(&b.instance_id));
        others
    }

    async fn ask(&self, instance: &InstanceId, address: &str) -> Result<pb::DescribeResponse, String> {
        if self.peers().is_cut(instance) {
            return Err("the link is cut".to_owned());
        }
        let mut client = self.peers().client(instance, address);
        let question =
            pb::DescribeRequest { cluster_id: self.cluster_id().as_str().to_owned(), ..pb::DescribeRequest::default() };
        match tokio::time::timeout(ANSWERS, client.describe(question)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(_)) | Err(_) => Err("does not answer".to_owned()),
        }
    }
}

/// Why the instance that answered so could not carry a group that has committed up to `committed`.
fn judge(committed: u64, answer: &pb::DescribeResponse) -> Option<String> {
    let missing = committed.saturating_sub(answer.applied_index);
    if answer.leader_node == 0 {
        Some("knows no leader".to_owned())
    } else if missing > CLOSE {
        Some(format!("is {missing} log entries behind"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lags_or_knows_no_leader_cannot_carry_the_group() {
        let answer =
            |leader_node, applied_index| pb::DescribeResponse { leader_node, applied_index, ..Default::default() };
        assert_eq!(judge(5000, &answer(1, 5000)), None);
        assert_eq!(judge(5000, &answer(1, 4000)), None, "that is on its way");
        assert_eq!(judge(5000, &answer(1, 6000)), None, "ahead of what is known here");
        assert_eq!(judge(5000, &answer(1, 3000)).unwrap(), "is 2000 log entries behind");
        assert_eq!(judge(5000, &answer(0, 5000)).unwrap(), "knows no leader");
    }
}
