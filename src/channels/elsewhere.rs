//! What the instances tell each other of their channels: whether the platform answers, and what came in last, is known
//! where it happens alone.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::join_all;
use openclaw_proto::ids::{ChannelAccount, InstanceId};
use openclaw_proto::peer as pb;
use openclaw_proto::peer::channels_client::ChannelsClient;
use openclaw_proto::peer::channels_server::{Channels, ChannelsServer};
use openclaw_raft::Node;
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use tracing::debug;

use super::health::{self, Health};

/// An instance that does not answer in this time is left out.
const ANSWER: Duration = Duration::from_millis(500);

/// What other instances ask of this one. It listens before there is anything to tell, so it is told later.
#[derive(Clone, Default)]
pub struct Service {
    health: Arc<OnceLock<(Health, String)>>,
}

impl Service {
    pub fn server(&self) -> ChannelsServer<Self> {
        ChannelsServer::new(self.clone())
    }

    /// From here on it answers members of `cluster_id`.
    pub fn open(&self, health: Health, cluster_id: String) {
        // Opened once, by whoever wires the process.
        if self.health.set((health, cluster_id)).is_err() {
            tracing::error!("the channels were opened twice");
        }
    }
}

#[tonic::async_trait]
impl Channels for Service {
    async fn health(&self, request: Request<pb::HealthRequest>) -> Result<Response<pb::HealthAnswer>, Status> {
        let (health, cluster_id) =
            self.health.get().ok_or_else(|| Status::unavailable("this instance is still starting"))?;
        if request.into_inner().cluster_id != *cluster_id {
            return Err(Status::permission_denied(format!("this instance is of cluster {cluster_id}")));
        }
        Ok(Response::new(pb::HealthAnswer { accounts: health.all().into_iter().map(to_message).collect() }))
    }
}

fn to_message((account, status): (ChannelAccount, health::Status)) -> pb::AccountHealth {
    pb::AccountHealth {
        account: account.into(),
        runs: status.runs,
        connected: status.connected,
        last_inbound_ms: status.last_inbound_ms,
        last_error: status.last_error.unwrap_or_default(),
    }
}

/// How the accounts are, by account: as who runs it says, with the newest of what came in anywhere.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<String, pb::AccountHealth>);

impl Known {
    /// Asks `others`, and adds what this instance knows itself.
    pub async fn ask(node: &Node, health: &Health, others: impl Iterator<Item = InstanceId>) -> Self {
        let asked = others.map(|instance| async move {
            let answer = async {
                let channel = node.peer_channel(&instance).ok_or_else(|| Status::unavailable("no member"))?;
                let request = pb::HealthRequest { cluster_id: node.cluster_id().as_str().to_owned() };
                Ok::<_, Status>(ChannelsClient::new(channel).health(request).await?.into_inner().accounts)
            };
            match timeout(ANSWER, answer).await {
                Ok(Ok(accounts)) => accounts,
                Ok(Err(status)) => {
                    debug!(%instance, %status, "it does not say how its channels are");
                    Vec::new()
                }
                Err(_) => Vec::new(),
            }
        });
        let mut known = Self::default();
        for said in join_all(asked).await.into_iter().flatten().chain(health.all().into_iter().map(to_message)) {
            known.add(said);
        }
        known
    }

    /// None: nobody said anything.
    pub fn of(&self, account: &str) -> Option<&pb::AccountHealth> {
        self.0.get(account)
    }

    fn add(&mut self, said: pb::AccountHealth) {
        let known = self.0.entry(said.account.clone()).or_default();
        let last_inbound_ms = known.last_inbound_ms.max(said.last_inbound_ms);
        if said.runs || !known.runs {
            *known = said;
        }
        known.last_inbound_ms = last_inbound_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_an_account_knows_how_it_is_and_everybody_what_came_in() {
        let account = || "telegram:default".to_owned();
        let owner = |last_inbound_ms| pb::AccountHealth {
            account: account(),
            runs: true,
            connected: true,
            last_inbound_ms,
            ..pb::AccountHealth::default()
        };
        let other = |last_inbound_ms| pb::AccountHealth { account: account(), last_inbound_ms, ..Default::default() };
        for said in [[owner(5), other(7)], [other(7), owner(5)]] {
            let mut known = Known::default();
            said.into_iter().for_each(|one| known.add(one));
            assert_eq!(known.of("telegram:default"), Some(&owner(7)));
        }
    }
}
