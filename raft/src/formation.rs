//! From an empty data directory to a member: alone, by bootstrap, or by joining.
//!
//! A data directory gets a random node id before its instance first speaks, so an instance that lost its disk comes
//! back as somebody new: it cannot vote a second time in a term in which it has forgotten its vote. A list of instances
//! becomes a cluster once all of them have been seen with an empty directory; the first of the list then writes the
//! first entry, for all. An instance that finds the cluster formed without its node id joins it, in place of the
//! member of its name.

use std::collections::BTreeMap;
use std::time::Duration;

use openclaw_proto::ids::{ClusterId, InstanceId};
use openclaw_proto::raft as pb;
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use crate::group::Group;
use crate::network::peers::client_of_any;
use crate::network::security::{ConnectError, PeerSecurity};
use crate::read::read_index_there;
use crate::state_machine::format;
use crate::types::{MemberNode, NodeId};
use crate::wire;

const ASK_DEADLINE: Duration = Duration::from_secs(1);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// A learner first takes over the whole state.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);
/// Between two log lines about what is still missing.
const REMIND: Duration = Duration::from_secs(5);
/// Without a leader for this long, an instance asks whether it still belongs.
const LONELY: Duration = Duration::from_secs(2);

/// How this instance comes to belong to a cluster, the first time it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Formation {
    /// A cluster of one, which others may join.
    Alone,
    /// One of these, all of which start with the same list.
    Bootstrap(Vec<(InstanceId, String)>),
    /// Joins a running cluster through one of these addresses.
    Join(Vec<String>),
}

/// Why an instance does not become a member. Nothing changes by waiting.
#[derive(Debug, thiserror::Error)]
pub enum FormationError {
    #[error("the bootstrap list does not name this instance, {0}")]
    NotInList(InstanceId),
    #[error(
        "this data directory was bootstrapped with [{stored}], but the list now is [{given}]; the directory decides: \
         change members with --join and `openclaw cluster remove`, not with the list"
    )]
    OtherList { stored: String, given: String },
    #[error("this data directory is of instance {stored}, not {given}")]
    OtherInstance { stored: String, given: InstanceId },
    #[error("this data directory is of cluster {stored}, not {given}")]
    OtherCluster { stored: String, given: ClusterId },
    #[error("{peer} is of cluster {theirs}, this instance of {ours}")]
    PeerOfOtherCluster { peer: String, theirs: String, ours: ClusterId },
    #[error(
        "this instance was removed from the cluster; to use it again, move its data directory out of storage.dataDir and \
         start it with --join"
    )]
    Removed,
    #[error("none of {addrs} answered: {last}")]
    NobodyToJoin { addrs: String, last: String },
}

/// The id of a cluster that was not given one: the same on all who start from the same list.
pub(crate) fn cluster_id_of(list: &[(InstanceId, String)]) -> ClusterId {
    let mut sorted: Vec<_> = list.iter().map(|(id, addr)| format!("{id}={addr}")).collect();
    sorted.sort();
    named_after(&Sha256::digest(sorted.join(",")))
}

/// An id for a cluster of one.
pub(crate) fn random_cluster_id() -> ClusterId {
    named_after(&rand::random::<[u8; 8]>())
}

fn named_after(bytes: &[u8]) -> ClusterId {
    let hex: String = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    #[expect(clippy::expect_used, reason = "hexadecimal digits are allowed in a cluster id")]
    ClusterId::parse(format!("oc-{hex}")).expect("a valid cluster id")
}

pub(crate) fn list_text(list: &[pb::Node]) -> String {
    let mut texts: Vec<_> = list.iter().map(|node| format!("{}={}", node.instance_id, node.peer_addr)).collect();
    texts.sort();
    texts.join(", ")
}

/// Holds what is on disk against what the operator says now.
pub(crate) fn check_identity(
    stored: &pb::Identity,
    instance: &InstanceId,
    cluster: Option<&ClusterId>,
    formation: &Formation,
) -> Result<(), FormationError> {
    if stored.instance_id != instance.as_str() {
        return Err(FormationError::OtherInstance { stored: stored.instance_id.clone(), given: instance.clone() });
    }
    if let Some(cluster) = cluster
        && stored.cluster_id != cluster.as_str()
    {
        return Err(FormationError::OtherCluster { stored: stored.cluster_id.clone(), given: cluster.clone() });
    }
    if let Formation::Bootstrap(list) = formation {
        let (given, known) = (list_text(&to_nodes(list)), list_text(&stored.bootstrap));
        if given != known {
            return Err(FormationError::OtherList { stored: known, given });
        }
    }
    Ok(())
}

pub(crate) fn to_nodes(list: &[(InstanceId, String)]) -> Vec<pb::Node> {
    list.iter()
        .map(|(id, addr)| pb::Node {
            instance_id: id.as_str().to_owned(),
            peer_addr: addr.clone(),
            http_addr: String::new(),
        })
        .collect()
}

/// Asks the instances to be joined which cluster they are of.
pub(crate) async fn cluster_to_join(
    addrs: &[String],
    security: &PeerSecurity,
    own: &InstanceId,
) -> Result<ClusterId, FormationError> {
    let mut last = "no address was given".to_owned();
    for addr in addrs {
        let question = pb::DescribeRequest { cluster_id: String::new(), instance_id: own.as_str().to_owned() };
        let mut client = client_of_any(security, addr);
        last = match tokio::time::timeout(ASK_DEADLINE * 3, client.describe(question)).await {
            Ok(Ok(answer)) => match ClusterId::parse(answer.into_inner().cluster_id) {
                Ok(id) => return Ok(id),
                Err(error) => format!("{addr}: {error}"),
            },
            Ok(Err(status)) => format!("{addr}: {}", describe_failure(&status)),
            Err(_) => format!("{addr}: no answer"),
        };
    }
    Err(FormationError::NobodyToJoin { addrs: addrs.join(", "), last })
}

/// What an operator can act on: why there is no connection, or what the peer said.
pub(crate) fn describe_failure(status: &tonic::Status) -> String {
    ConnectError::in_chain(status).map_or_else(|| status.message().to_owned(), ToString::to_string)
}

/// Makes this instance a member, however long its peers take. Ends when it is one.
pub(crate) async fn become_member(group: Group, own: MemberNode, formation: Formation, security: PeerSecurity) {
    // One that is taken out while it has no vote yet must not come back by itself.
    tokio::select! {
        () = group.removed() => {}
        () = ask_for_vote(&group, own, formation, security) => {}
    }
}

/// Makes sure that one which was removed while it was down is told so. Nobody sends it anything, and its own log says that it has a
/// vote; the leader that it knew may be gone, so it asks all that it knows whenever it hears of none.
pub(crate) async fn ask_whether_removed(group: Group) {
    let mut status = group.status();
    while status.wait_for(|status| !status.has_quorum).await.is_ok() {
        let heard = status.wait_for(|status| status.has_quorum);
        if tokio::time::timeout(LONELY, heard).await.is_ok() || !group.has_belonged() {
            continue;
        }
        let metrics = group.metrics();
        for (node, _) in metrics.membership_config.membership().nodes().filter(|(node, _)| **node != group.own_node()) {
            // The answer is noted where it comes in.
            drop(read_index_there(&group, *node, ASK_DEADLINE).await);
        }
    }
}

async fn ask_for_vote(group: &Group, own: MemberNode, formation: Formation, security: PeerSecurity) {
    let mut reminded = tokio::time::Instant::now();
    loop {
        if is_member(group) {
            return;
        }
        let mut known = known_peers(group);
        let missing = match &formation {
            // A learner that was started again knows whom to ask, whatever it was started with.
            formation if !known.is_empty() => {
                // One that was removed meanwhile is to be told, and not to come back by itself.
                if group.has_belonged()
                    && let Some(leader) = group.status_now().leader_node.filter(|leader| *leader != group.own_node())
                {
                    drop(read_index_there(group, leader, ASK_DEADLINE).await);
                }
                if let Formation::Join(addrs) = formation {
                    // The known ones, which are asked first, may all have moved.
                    known.splice(0..0, addrs.iter().cloned());
                }
                join(group, &own, &known, &security).await
            }
            Formation::Alone => initialize(group, BTreeMap::from([(group.own_node(), own.clone())])).await,
            Formation::Bootstrap(list) => bootstrap(group, &own, list, &security).await,
            Formation::Join(addrs) => join(group, &own, addrs, &security).await,
        };
        if let Err(reason) = missing
            && reminded.elapsed() >= REMIND
        {
            reminded = tokio::time::Instant::now();
            tracing::warn!(reason, "not a member of the cluster yet");
        }
        // A vote shows in the status; whatever else happens, ask again soon.
        let mut status = group.status();
        let member = status.wait_for(|_| is_member(group));
        drop(tokio::time::timeout(ASK_AGAIN, member).await);
    }
}

/// Whether this instance has a vote: a learner that was left behind by a join which came to nothing asks again.
fn is_member(group: &Group) -> bool {
    group.has_vote(group.own_node())
}

/// Where the other members are, as far as this instance was told.
fn known_peers(group: &Group) -> Vec<String> {
    let metrics = group.metrics();
    let nodes = metrics.membership_config.membership().nodes();
    nodes.filter(|(id, _)| **id != group.own_node()).map(|(_, node)| node.peer_addr.clone()).collect()
}

async fn initialize(group: &Group, members: BTreeMap<NodeId, MemberNode>) -> Result<(), String> {
    // Refused when there is a log already, which is what it was to make.
    match group.raft().initialize(members).await {
        Ok(()) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

async fn ask(group: &Group, addr: &str, security: &PeerSecurity) -> Result<pb::DescribeResponse, String> {
    let question = pb::DescribeRequest {
        cluster_id: group.cluster_id().as_str().to_owned(),
        instance_id: group.peers().own_id().as_str().to_owned(),
    };
    match tokio::time::timeout(ASK_DEADLINE, client_of_any(security, addr).describe(question)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(describe_failure(&status)),
        Err(_) => Err("no answer".to_owned()),
    }
}

async fn bootstrap(
    group: &Group,
    own: &MemberNode,
    list: &[(InstanceId, String)],
    security: &PeerSecurity,
) -> Result<(), String> {
    let mut asking = JoinSet::new();
    for (id, addr) in list.iter().filter(|(id, _)| id.as_str() != own.instance_id) {
        let (group, id, addr, security) = (group.clone(), id.clone(), addr.clone(), security.clone());
        asking.spawn(async move { (ask(&group, &addr, &security).await, id, addr) });
    }
    let mut members = BTreeMap::from([(group.own_node(), own.clone())]);
    let mut missing = Vec::new();
    let mut formed = None;
    while let Some(Ok((answer, id, addr))) = asking.join_next().await {
        match answer {
            Err(reason) => missing.push(format!("{id} ({addr}): {reason}")),
            Ok(answer) if answer.instance_id != id.as_str() => {
                missing.push(format!("{id} ({addr}): {} answers there", answer.instance_id));
            }
            Ok(answer) if answer.formed => {
                let membership = answer.membership.and_then(|stored| stored.membership).unwrap_or_default();
                let votes = membership.configs.iter().any(|config| config.voters.contains(&group.own_node()));
                formed = Some((addr, votes));
            }
            Ok(answer) => {
                let node = pb::Node { instance_id: id.as_str().to_owned(), peer_addr: addr, http_addr: String::new() };
                members.insert(answer.node_id, wire::from_node(node));
            }
        }
    }
    match formed {
        // The leader will speak to this node.
        Some((_, true)) => Ok(()),
        Some((addr, false)) => join(group, own, &[addr], security).await,
        None if !missing.is_empty() => Err(format!("waiting for {}", missing.join(", "))),
        None => {
            let first = list.iter().map(|(id, _)| id.as_str()).min();
            if first == Some(own.instance_id.as_str()) { initialize(group, members).await } else { Ok(()) }
        }
    }
}

async fn join(group: &Group, own: &MemberNode, addrs: &[String], security: &PeerSecurity) -> Result<(), String> {
    let mut last = Err("no address was given".to_owned());
    let mut addrs: Vec<String> = addrs.to_vec();
    let mut redirects = 0;
    while let Some(addr) = addrs.pop() {
        let request = pb::JoinRequest {
            cluster_id: group.cluster_id().as_str().to_owned(),
            node_id: group.own_node(),
            node: Some(wire::to_node(own)),
            timeout_ms: u32::try_from(JOIN_DEADLINE.as_millis()).unwrap_or(u32::MAX),
            format: format::supported(),
        };
        let mut client = client_of_any(security, &addr);
        last = match tokio::time::timeout(JOIN_DEADLINE + ASK_DEADLINE, client.join(request)).await {
            Err(_) => Err(format!("{addr}: no answer")),
            Ok(Err(status)) => Err(format!("{addr}: {}", describe_failure(&status))),
            Ok(Ok(answer)) => match answer.into_inner().result {
                Some(pb::join_response::Result::Joined(_)) => return Ok(()),
                Some(pb::join_response::Result::Leader(leader)) if redirects < 3 => {
                    redirects += 1;
                    addrs.push(leader.peer_addr);
                    continue;
                }
                Some(pb::join_response::Result::Leader(leader)) => Err(format!("{addr} names {}", leader.instance_id)),
                Some(pb::join_response::Result::Refused(reason)) => Err(format!("{addr}: {reason}")),
                None => Err(format!("{addr}: an answer that cannot be read")),
            },
        };
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> InstanceId {
        InstanceId::parse(text).unwrap()
    }

    fn list(items: &[(&str, &str)]) -> Vec<(InstanceId, String)> {
        items.iter().map(|(name, addr)| (id(name), (*addr).to_owned())).collect()
    }

    #[test]
    fn the_order_of_the_list_does_not_name_another_cluster() {
        let one = list(&[("a", "h1:1"), ("b", "h2:1")]);
        let other = list(&[("b", "h2:1"), ("a", "h1:1")]);
        assert_eq!(cluster_id_of(&one), cluster_id_of(&other));
        assert_ne!(cluster_id_of(&one), cluster_id_of(&list(&[("a", "h1:1"), ("b", "h2:2")])));
    }

    #[test]
    fn what_is_on_disk_wins_and_a_contradiction_names_both() {
        let first = list(&[("a", "h1:1"), ("b", "h2:1")]);
        let stored = pb::Identity {
            cluster_id: "oc-1".into(),
            instance_id: "a".into(),
            node_id: 7,
            bootstrap: to_nodes(&first),
        };
        let check = |instance: &str, cluster: Option<&str>, formation: Formation| {
            let cluster = cluster.map(|text| ClusterId::parse(text).unwrap());
            check_identity(&stored, &id(instance), cluster.as_ref(), &formation).map_err(|error| error.to_string())
        };
        check("a", None, Formation::Bootstrap(first)).unwrap();
        check("a", Some("oc-1"), Formation::Alone).unwrap();
        let other = check("a", None, Formation::Bootstrap(list(&[("a", "h1:1"), ("c", "h3:1")]))).unwrap_err();
        assert!(other.contains("[a=h1:1, b=h2:1]") && other.contains("[a=h1:1, c=h3:1]"), "{other}");
        assert!(check("b", None, Formation::Alone).unwrap_err().contains("of instance a, not b"));
        assert!(check("a", Some("oc-2"), Formation::Alone).unwrap_err().contains("of cluster oc-1, not oc-2"));
    }
}
