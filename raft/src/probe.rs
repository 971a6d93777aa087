//! What a peer says to somebody who only looks.

use std::time::{Duration, Instant};

use openclaw_proto::ids::InstanceId;
use openclaw_proto::raft as pb;
use tokio::time::timeout;

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
    /// From a question to its answer, the quickest of a few on one connection.
    pub round_trip: Duration,
}

/// Questions after the first, which had the connection to make.
const AGAIN: usize = 2;

/// Asks the peer at `addr` who it is: connects as `own` does, both ends recognise each other, and nothing changes.
///
/// # Errors
/// What an operator can act on: why there is no connection, or what the peer said.
pub async fn look_at(security: &PeerSecurity, addr: &str, own: &InstanceId, within: Duration) -> Result<Seen, String> {
    let question = pb::DescribeRequest { cluster_id: String::new(), instance_id: own.as_str().to_owned() };
    let mut client = client_of_any(security, addr);
    let begin = Instant::now();
    let answer = match timeout(within, client.describe(question.clone())).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return Err(describe_failure(&status)),
        Err(_) => return Err(format!("no answer within {within:?}")),
    };
    let mut round_trip = begin.elapsed();
    for _ in 0..AGAIN {
        let asked = Instant::now();
        let left = within.saturating_sub(begin.elapsed());
        if let Ok(Ok(_)) = timeout(left, client.describe(question.clone())).await {
            round_trip = round_trip.min(asked.elapsed());
        }
    }
    let pb::DescribeResponse { cluster_id, instance_id, formed, .. } = answer;
    Ok(Seen { cluster_id, instance_id, formed, round_trip })
}
