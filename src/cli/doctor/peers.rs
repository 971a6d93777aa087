//! The other instances on their peer listeners, and the certificates by which all know each other.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use openclaw_proto::ids::ClusterId;
use openclaw_raft::network::security::{EXPIRY_WARNING, PeerSecurity, TlsFiles};
use openclaw_raft::probe::{self, Seen};

use super::{Finding, Patient};

pub(super) struct Peers {
    /// What this instance shows of itself, and how long that is good; or why it cannot.
    own: Result<Own, String>,
    /// The cluster that this instance is of, if it is known.
    cluster: Option<String>,
    /// Before that, the others need not run either.
    running: bool,
    election_timeout: Duration,
    peers: Vec<Peer>,
}

struct Own {
    shows: String,
    left: Option<Duration>,
}

struct Peer {
    /// None: it is whoever answers there, to be joined.
    instance: Option<String>,
    addr: String,
    seen: Result<Seen, String>,
}

pub(super) async fn measure(patient: &Patient) -> Peers {
    let cluster = patient.cluster.as_ref().map(|cluster| cluster.cluster_id.clone());
    let cluster = cluster.or_else(|| patient.config.cluster.id.as_ref().map(ToString::to_string));
    let running = patient.running;
    let election_timeout = patient.config.cluster.raft.election_timeout;
    let id = cluster.as_deref().and_then(|id| ClusterId::parse(id).ok());
    let peer = &patient.config.cluster.peer;
    let security = match (&peer.tls, &peer.secret) {
        (Some(tls), _) => {
            let files = TlsFiles { ca: tls.ca.clone(), cert: tls.cert.clone(), key: tls.key.clone() };
            PeerSecurity::from_files(id.as_ref(), &patient.instance, &files)
        }
        (None, Some(secret)) => PeerSecurity::from_secret(id.as_ref(), &patient.instance, secret.expose()),
        (None, None) => PeerSecurity::plaintext(peer.listen),
    };
    let security = match security {
        Ok(security) => security,
        Err(error) => {
            return Peers { own: Err(error.to_string()), cluster, running, election_timeout, peers: Vec::new() };
        }
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let left = security
        .certificate_until()
        .map(|until| Duration::from_secs(until.as_unix_time().as_secs()).saturating_sub(now));
    let own = Own { shows: security.describe(), left };
    let asking = addresses(patient).into_iter().map(|(addr, instance)| {
        let security = &security;
        async move {
            let seen = probe::look_at(security, &addr, &patient.instance, patient.timeout).await;
            Peer { instance, addr, seen }
        }
    });
    let peers = join_all(asking).await;
    Peers { own: Ok(own), cluster, running, election_timeout, peers }
}

/// Whom to look at: the members as the running instance knows them, else whom the configuration names.
fn addresses(patient: &Patient) -> BTreeMap<String, Option<String>> {
    let own = patient.instance.as_str();
    if let Some(cluster) = &patient.cluster {
        let others = cluster.members.iter().filter(|member| member.instance_id != own);
        return others.map(|member| (member.peer_addr.clone(), Some(member.instance_id.clone()))).collect();
    }
    let cluster = &patient.config.cluster;
    let listed = cluster.bootstrap.iter().filter(|member| member.id.as_str() != own);
    let listed = listed.map(|member| (member.address.to_string(), Some(member.id.to_string())));
    listed.chain(cluster.join.iter().map(|addr| (addr.to_string(), None))).collect()
}

pub(super) fn judge(peers: &Peers) -> Vec<Finding> {
    let mut findings = vec![own(peers)];
    if peers.own.is_ok() && peers.peers.is_empty() {
        findings.push(Finding::skipped("peers", "this instance knows of no other"));
    }
    findings.extend(peers.peers.iter().map(|peer| other(peer, peers)));
    findings
}

fn own(peers: &Peers) -> Finding {
    const CHECK: &str = "certificate";
    match &peers.own {
        Err(error) => Finding::problem(
            CHECK,
            error.clone(),
            "the gateway does not start so: make certificates with `openclaw cluster certs`, or set OPENCLAW_CLUSTER_SECRET",
        ),
        Ok(Own { shows, left: Some(left) }) if *left < EXPIRY_WARNING => Finding::warning(
            CHECK,
            format!("{shows}: {} days left", left.as_secs() / 86_400),
            "issue a new one with `openclaw cluster certs`, and restart the instance",
        ),
        Ok(Own { shows, left: Some(left) }) => {
            Finding::ok(CHECK, format!("{shows}, {} days left", left.as_secs() / 86_400))
        }
        Ok(Own { shows, left: None }) => Finding::ok(CHECK, shows.clone()),
    }
}

fn other(peer: &Peer, Peers { cluster, running, election_timeout, .. }: &Peers) -> Finding {
    const CHECK: &str = "peers";
    let cluster = cluster.as_deref();
    let Peer { instance, addr, seen } = peer;
    let name = instance.as_deref().unwrap_or("somebody to join");
    match seen {
        Err(error) => {
            let saw = if error.contains(addr.as_str()) {
                format!("{name}: {error}")
            } else {
                format!("{name} at {addr}: {error}")
            };
            match advice(error) {
                NOT_STARTED if !*running => Finding::warning(CHECK, saw, NOT_STARTED),
                advice => Finding::problem(CHECK, saw, advice),
            }
        }
        Ok(seen) if instance.as_ref().is_some_and(|name| *name != seen.instance_id) => Finding::problem(
            CHECK,
            format!("{} answers at {addr}, where {name} should be", seen.instance_id),
            "give each instance its own address in cluster.bootstrap and cluster.peer.advertise",
        ),
        Ok(seen) if cluster.is_some_and(|own| own != seen.cluster_id) => Finding::problem(
            CHECK,
            format!(
                "{name} at {addr} is of cluster {}, and this instance of {}",
                seen.cluster_id,
                cluster.unwrap_or("-")
            ),
            OTHER_CLUSTER,
        ),
        // A vote that is asked for and given is there and back, and so is the leader's word that it leads.
        Ok(seen) if seen.round_trip > *election_timeout / 2 => Finding::warning(
            CHECK,
            format!(
                "{} at {addr} is {} ms away, there and back: more than half of cluster.raft.electionTimeoutMs ({})",
                seen.instance_id,
                seen.round_trip.as_millis(),
                election_timeout.as_millis()
            ),
            format!(
                "elections may come to nothing: raise cluster.raft.electionTimeoutMs on every instance to {} or more, and \
                 cluster.raft.heartbeatMs with it",
                (seen.round_trip * 4).as_millis()
            ),
        ),
        Ok(seen) => {
            let formed = if seen.formed { "" } else { ", which has not formed yet" };
            Finding::ok(
                CHECK,
                format!("{} at {addr} answers, in cluster {}{formed}", seen.instance_id, seen.cluster_id),
            )
        }
    }
}

const OTHER_CLUSTER: &str =
    "they cannot be one cluster: move the data directory of the one that is wrong away, and start it again";
const NOT_STARTED: &str =
    "is that instance started, its cluster.peer.listen not loopback alone, and the port open in between?";

/// By what the connection said, which names its cause.
fn advice(error: &str) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| error.contains(word));
    if says(&["expired"]) {
        "issue a new certificate with `openclaw cluster certs`, and restart that instance"
    } else if says(&["of cluster", "another cluster"]) {
        OTHER_CLUSTER
    } else if says(&["authority", "signed", "certificate", "decrypt", "TLS", "handshake"]) {
        "the same cluster.peer.secret, or certificates of the same authority, belong on every instance"
    } else if says(&["resolve"]) {
        "the name is not known here: look at DNS, or use an address"
    } else {
        NOT_STARTED
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn peers(own: Result<Option<u64>, &str>, seen: Result<(&str, &str), &str>) -> Vec<Finding> {
        let seen = seen
            .map(|(cluster, instance)| Seen {
                cluster_id: cluster.into(),
                instance_id: instance.into(),
                formed: true,
                round_trip: Duration::from_millis(1),
            })
            .map_err(str::to_owned);
        judged(own, seen)
    }

    fn judged(own: Result<Option<u64>, &str>, seen: Result<Seen, String>) -> Vec<Finding> {
        judge(&Peers {
            own: own
                .map(|days| Own {
                    shows: "mutual TLS".into(),
                    left: days.map(|days| Duration::from_secs(days * 86_400)),
                })
                .map_err(str::to_owned),
            cluster: Some("oc-1".into()),
            running: true,
            election_timeout: Duration::from_millis(150),
            peers: vec![Peer { instance: Some("node-2".into()), addr: "h:3100".into(), seen }],
        })
    }

    #[test]
    fn a_certificate_is_told_of_before_it_ends() {
        let level = |own| peers(own, Ok(("oc-1", "node-2")))[0].level;
        assert_eq!([level(Ok(None)), level(Ok(Some(300)))], [Level::Ok; 2]);
        assert_eq!(level(Ok(Some(3))), Level::Warning);
        assert_eq!(level(Err("it expired")), Level::Problem);
    }

    #[test]
    fn a_link_that_takes_longer_than_an_election_can_wait_is_told() {
        let found = |millis| {
            let round_trip = Duration::from_millis(millis);
            let seen = Seen { cluster_id: "oc-1".into(), instance_id: "node-2".into(), formed: true, round_trip };
            judged(Ok(None), Ok(seen)).remove(1)
        };
        assert_eq!(found(75).level, Level::Ok);
        let far = found(76);
        assert_eq!((far.level, far.saw.contains("76 ms away")), (Level::Warning, true), "{far:?}");
        assert!(far.advice.unwrap().contains("electionTimeoutMs on every instance to 304 or more"));
    }

    #[test]
    fn what_is_wrong_with_a_peer_says_what_to_do() {
        let found = |seen| peers(Ok(None), seen).remove(1);
        assert_eq!(found(Ok(("oc-1", "node-2"))).level, Level::Ok);
        assert!(found(Ok(("oc-2", "node-2"))).advice.unwrap().contains("cannot be one cluster"));
        assert!(found(Ok(("oc-1", "node-3"))).saw.contains("node-3 answers at h:3100, where node-2 should be"));
        for (error, advice) in [
            ("cannot reach h:3100: Connection refused", "is that instance started"),
            ("refused h:3100: the certificate expired on 2025-01-01", "issue a new certificate"),
            ("refused h:3100: the certificate is of cluster oc-2, not oc-1", "they cannot be one cluster"),
            ("h:3100 refused this instance: it does not know the authority", "the same cluster.peer.secret"),
            ("h:3100 does not speak TLS, which this instance requires of its peers", "the same cluster.peer.secret"),
            ("cannot resolve h:3100: no such name", "look at DNS"),
        ] {
            let finding = found(Err(error));
            assert_eq!((finding.level, &finding.saw), (Level::Problem, &format!("node-2: {error}")));
            assert!(finding.advice.as_ref().unwrap().starts_with(advice) || finding.advice.unwrap().contains(advice));
        }
    }
}
