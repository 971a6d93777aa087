//! What a peer says to somebody who only looks.

use std::time::Duration;

use openclaw_proto::ids::InstanceId;
use openclaw_proto::raft as pb;

use crate::formation::describe_failure;
use crate::network::peers::client_of_any;
use crate::network::security::PeerSecurity;

/// What a peer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub cluster_id: String,
    pub instance_id: String,
    /// It has been part of a formed cluster.
    pub formed: bool,
}

/// Asks the peer at `addr` who it is: connects as `own` does, both ends recognise each other, and nothing changes.
///
/// # Errors
/// What an operator can act on: why there is no connection, or what the peer said.
pub async fn look_at(security: &PeerSecurity, addr: &str, own: &InstanceId, within: Duration) -> Result<Seen, String> {
    let question = pb::DescribeRequest { cluster_id: String::new(), instance_id: own.as_str().to_owned() };
    match tokio::time::timeout(within, client_of_any(security, addr).describe(question)).await {
        Ok(Ok(answer)) => {
            let pb::DescribeResponse { cluster_id, instance_id, formed, .. } = answer.into_inner();
            Ok(Seen { cluster_id, instance_id, formed })
        }
        Ok(Err(status)) => Err(describe_failure(&status)),
        Err(_) => Err(format!("no answer within {within:?}")),
    }
}
