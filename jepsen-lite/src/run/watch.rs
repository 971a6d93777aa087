//! Asks all instances all the time who leads and who owns which bot account, for the history and for the check of leases.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use openclaw_proto::http::Cluster;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::checkers::leases::Told;
use crate::client::{Client, Reply};
use crate::history::What;
use crate::workloads::Shared;

const EVERY: Duration = Duration::from_millis(100);
/// An instance that is stopped does not answer, and the others should not wait for it.
const PATIENCE: Duration = Duration::from_millis(300);
/// A list of accounts has the word of every owner in it, for which an instance waits half a second.
const LIST_PATIENCE: Duration = Duration::from_secs(1);

/// A watch that is kept.
#[derive(Debug)]
pub(super) struct Watch {
    stop: watch::Sender<bool>,
    leaders: JoinHandle<()>,
    owners: Option<JoinHandle<Vec<Told>>>,
}

impl Watch {
    /// Begins to ask the instances named `ids`; for accounts, if `accounts`.
    pub(super) fn start(ids: &[String], clients: &[Client], accounts: bool, shared: &Shared) -> Self {
        let stop = watch::Sender::new(false);
        let patient = |patience| {
            let clients = clients.iter().map(|client| client.with_timeout(patience));
            ids.iter().cloned().zip(clients).collect::<Vec<_>>()
        };
        let leaders = watch_leaders(patient(PATIENCE), shared.clone(), stop.subscribe());
        let owners = accounts.then(|| watch_owners(patient(LIST_PATIENCE), shared.clone(), stop.subscribe()));
        Self { stop, leaders: tokio::spawn(leaders), owners: owners.map(tokio::spawn) }
    }

    /// What was told of owners; what changes from here on is not seen.
    ///
    /// # Errors
    /// When the watch panicked.
    pub(super) async fn stop(self) -> Result<Vec<Told>> {
        self.stop.send_replace(true);
        self.leaders.await.context("whoever watches leaders panicked")?;
        match self.owners {
            Some(owners) => owners.await.context("whoever watches owners panicked"),
            None => Ok(Vec::new()),
        }
    }
}

async fn watch_leaders(clients: Vec<(String, Client)>, shared: Shared, mut stopped: watch::Receiver<bool>) {
    let mut seen = Leaders::default();
    while goes_on(&mut stopped).await {
        let asked = clients.iter().map(async |(id, client)| (id, client.cluster().await));
        for (id, reply) in futures::future::join_all(asked).await {
            if let Reply::Ok(cluster) = reply
                && let Some(change) = seen.take(id, &cluster)
            {
                shared.recorder.note(change);
            }
        }
    }
}

async fn watch_owners(clients: Vec<(String, Client)>, shared: Shared, mut stopped: watch::Receiver<bool>) -> Vec<Told> {
    let mut seen = Owners::default();
    while goes_on(&mut stopped).await {
        // One that is catching up, after it lost its disk or was away, tells of what was.
        let asked = clients.iter().map(async |(id, client)| match client.is_ready().await {
            true => (id, client.channels().await),
            false => (id, Reply::Unknown("not ready".to_owned())),
        });
        for (id, reply) in futures::future::join_all(asked).await {
            let Reply::Ok(list) = reply else { continue };
            // WebChat is everybody's, and an account that nobody ever owned has no token.
            for channel in list.channels.into_iter().filter(|channel| channel.fencing_token > 0) {
                let (by, account, owner) = (id.clone(), channel.account, channel.owner);
                if let Some(change) = seen.take(Told { by, account, owner, token: channel.fencing_token }) {
                    shared.recorder.note(change);
                }
            }
        }
    }
    seen.told
}

/// Waits for the next look; false: there is none.
async fn goes_on(stopped: &mut watch::Receiver<bool>) -> bool {
    tokio::time::timeout(EVERY, stopped.wait_for(|stop| *stop)).await.is_err()
}

#[derive(Debug, Default)]
struct Leaders {
    /// By instance: the term that it knows, and whether it says that it leads.
    terms: BTreeMap<String, (u64, bool)>,
    newest: Option<(u64, Option<String>)>,
}

#[derive(Debug, Default)]
struct Owners {
    /// By account: the newest grant.
    newest: BTreeMap<String, (u64, Option<String>)>,
    /// What each instance told last of each account, so that only changes are kept.
    last: BTreeMap<(String, String), (u64, Option<String>)>,
    told: Vec<Told>,
}

impl Leaders {
    fn take(&mut self, id: &str, cluster: &Cluster) -> Option<What> {
        let leads = cluster.leader.as_deref() == Some(id);
        self.terms.insert(id.to_owned(), (cluster.term, leads));
        let term = self.terms.values().map(|(term, _)| *term).max().unwrap_or_default();
        let instance = self.terms.iter().find(|(_, state)| **state == (term, true)).map(|(id, _)| id.clone());
        let newest = Some((term, instance.clone()));
        let changed = self.newest != newest;
        self.newest = newest;
        changed.then_some(What::Leader { instance, term })
    }
}

impl Owners {
    fn take(&mut self, told: Told) -> Option<What> {
        let state = (told.token, told.owner.clone());
        let key = (told.by.clone(), told.account.clone());
        if self.last.insert(key, state.clone()).as_ref() == Some(&state) {
            return None;
        }
        // An instance that lags tells of an owner of long ago.
        let newest = self.newest.get(&told.account);
        let news = newest.is_none_or(|(token, owner)| state.0 > *token || (state.0 == *token && &state.1 != owner));
        let change = news.then(|| {
            self.newest.insert(told.account.clone(), state);
            let (account, instance, token) = (told.account.clone(), told.owner.clone(), told.token);
            What::Owner { account, instance, token }
        });
        self.told.push(told);
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(leader: Option<&str>, term: u64) -> Cluster {
        Cluster {
            cluster_id: "test".into(),
            instance_id: String::new(),
            leader: leader.map(str::to_owned),
            term,
            commit_index: 0,
            format: 1,
            members: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn leader(instance: Option<&str>, term: u64) -> What {
        What::Leader { instance: instance.map(str::to_owned), term }
    }

    #[test]
    fn the_leader_of_the_newest_term_counts_and_only_changes_are_told() {
        let mut seen = Leaders::default();
        assert_eq!(seen.take("a", &cluster(Some("a"), 1)), Some(leader(Some("a"), 1)));
        assert_eq!(seen.take("b", &cluster(Some("a"), 1)), None);
        // Cut off, `a` goes on naming itself.
        assert_eq!(seen.take("b", &cluster(None, 2)), Some(leader(None, 2)));
        assert_eq!(seen.take("a", &cluster(Some("a"), 1)), None);
        assert_eq!(seen.take("b", &cluster(Some("b"), 2)), Some(leader(Some("b"), 2)));
    }

    #[test]
    fn an_instance_that_lags_changes_no_owner() {
        let told = |by: &str, owner: Option<&str>, token| Told {
            by: by.into(),
            account: "x".into(),
            owner: owner.map(str::to_owned),
            token,
        };
        let owner = |instance: Option<&str>, token| What::Owner {
            account: "x".into(),
            instance: instance.map(str::to_owned),
            token,
        };
        let mut seen = Owners::default();
        let news = [told("a", Some("a"), 5), told("a", Some("a"), 5), told("a", None, 5), told("a", Some("b"), 9)];
        let changes: Vec<Option<What>> = news.into_iter().map(|one| seen.take(one)).collect();
        assert_eq!(changes, [Some(owner(Some("a"), 5)), None, Some(owner(None, 5)), Some(owner(Some("b"), 9))]);
        assert_eq!(seen.take(told("b", Some("a"), 5)), None);
        assert_eq!(seen.told.len(), 4, "what lags is told all the same");
    }
}
