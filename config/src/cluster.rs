//! `cluster`: this instance's name, its peers, and the clocks of consensus and leases.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use openclaw_proto::ids::{ClusterId, InstanceId};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::values::{HostPort, ParseError, Secret, as_text, list_or_text, millis, span};

/// This instance and its peers. Every key needs a restart to take effect.
///
/// Without any of these keys the instance is a cluster of one: the same code, the same storage, and it can grow later by
/// `join`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cluster {
    /// Whether this instance belongs to a cluster. Default: true when `bootstrap` or `join` is given, else false.
    /// `true` with neither of them starts a cluster of one and warns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Name of the cluster; instances of another name are refused. Default: made at bootstrap and kept on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub id: Option<ClusterId>,
    /// Name of this instance, unique in the cluster; also the name of its directory. Needed in a cluster; default
    /// `node-1` for an instance alone. Also `--instance-id`, `OPENCLAW_INSTANCE_ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub instance_id: Option<InstanceId>,
    /// The first members, the same list on every instance: `node-1=10.0.0.1:3100,node-2=10.0.0.2:3100`, or a list of such
    /// texts. Read until the cluster has formed; what is on disk wins. Default none.
    /// Also `--bootstrap`, `OPENCLAW_CLUSTER_BOOTSTRAP`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "members")]
    #[schemars(with = "TextOrList")]
    pub bootstrap: Vec<Member>,
    /// Members of a running cluster to join through: `host:port`, separated by commas, or a list. Default none.
    /// Also `--join`, `OPENCLAW_CLUSTER_JOIN`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "seeds")]
    #[schemars(with = "TextOrList")]
    pub join: Vec<HostPort>,
    /// The listener for other instances.
    pub peer: Peer,
    /// Where other instances and their clients reach this one's public listener, as `host:port`. Default: the host of the
    /// peer address with `gateway.port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_http: Option<HostPort>,
    /// Consensus.
    pub raft: Raft,
    /// Ownership of channels and turns.
    pub lease: Lease,
    /// Which channels an instance is preferred for: instance id to names of channels, `telegram` for all of its accounts or
    /// `telegram:<account>` for one, which wins. A preference, not an assignment. Default none: every channel goes to the
    /// least loaded instance.
    #[schemars(with = "BTreeMap<String, Vec<String>>")]
    pub channel_binding: BTreeMap<InstanceId, Vec<String>>,
    /// Return of channels to the instance they prefer.
    pub failback: Failback,
}

impl Cluster {
    /// The name of an instance that runs alone and was given none.
    pub const DEFAULT_INSTANCE_ID: &str = "node-1";

    /// Whether the instance is meant to have peers.
    pub fn is_clustered(&self) -> bool {
        self.enabled.unwrap_or(!self.bootstrap.is_empty() || !self.join.is_empty())
    }

    /// The configured name, or the one of an instance that runs alone.
    pub fn instance_id_or_default(&self) -> InstanceId {
        match &self.instance_id {
            Some(id) => id.clone(),
            None => InstanceId::parse(Self::DEFAULT_INSTANCE_ID).expect("the default name follows the rules of names"),
        }
    }

    /// Whether `channel_binding` prefers `instance` for `account`, `telegram:default`. At most one instance is preferred.
    pub fn preferred(&self, instance: &InstanceId, account: &str) -> bool {
        let bound = |name: &str| {
            let binds = |channels: &Vec<String>| channels.iter().any(|channel| channel == name);
            self.channel_binding.iter().find_map(|(instance, channels)| binds(channels).then_some(instance))
        };
        let channel = account.split_once(':').map_or(account, |(channel, _)| channel);
        bound(account).or_else(|| bound(channel)) == Some(instance)
    }

    /// Where other instances reach this one: `peer.advertise`, else its entry in `bootstrap`, else `peer.listen` unless
    /// that is a wildcard address or port.
    pub fn peer_address(&self) -> Option<HostPort> {
        let own = |member: &&Member| Some(&member.id) == self.instance_id.as_ref();
        let listen = self.peer.listen;
        let bootstrap = || self.bootstrap.iter().find(own).map(|member| member.address.clone());
        let listens = || (!listen.ip().is_unspecified() && listen.port() != 0).then(|| listen.into());
        self.peer.advertise.clone().or_else(bootstrap).or_else(listens)
    }
}

/// One of the first members: `<instance id>=<host>:<port>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its instance id.
    pub id: InstanceId,
    /// Where its peer listener is reached.
    pub address: HostPort,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.id, self.address)
    }
}

impl FromStr for Member {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let Some((id, address)) = text.split_once('=') else {
            return Err(ParseError(format!("{text:?} is not <instance id>=<host>:<port>")));
        };
        let id = InstanceId::parse(id.trim()).map_err(|error| ParseError(format!("{text:?}: {error}")))?;
        let address = address.trim().parse().map_err(|error| ParseError(format!("{text:?}: {error}")))?;
        Ok(Self { id, address })
    }
}

as_text!(Member, "<instance id>=<host>:<port>");

/// The schema of a list that may be one text with commas.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum TextOrList {
    Text(String),
    List(Vec<String>),
}

/// As `SocketAddr` reads it, with a message that shows the form.
fn socket_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let refuse = |_| format!("{text:?} is not an IP address and port such as \"0.0.0.0:3100\"");
    text.parse().map_err(refuse).map_err(serde::de::Error::custom)
}

fn members<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Member>, D::Error> {
    list_or_text(deserializer, "a list of <instance id>=<host>:<port>")
}

fn seeds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<HostPort>, D::Error> {
    list_or_text(deserializer, "a list of host:port")
}

/// The listener for other instances. Beyond loopback it needs `tls` or `secret`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Peer {
    /// Address and port to listen on. Default `127.0.0.1:3100`. Also `--peer-listen`, `OPENCLAW_PEER_LISTEN`.
    #[serde(deserialize_with = "socket_address")]
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// Where other instances reach this listener, as `host:port`. Default: this instance's entry in `cluster.bootstrap`,
    /// else `listen`. Also `--peer-advertise`, `OPENCLAW_PEER_ADVERTISE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<HostPort>,
    /// Mutual TLS between instances. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<PeerTls>,
    /// A secret that all instances share, in place of `tls`; at least 32 characters. Default none.
    /// Also `OPENCLAW_CLUSTER_SECRET`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
}

impl Default for Peer {
    fn default() -> Self {
        Self { listen: (Ipv4Addr::LOCALHOST, 3100).into(), advertise: None, tls: None, secret: None }
    }
}

/// Files of mutual TLS between instances, in PEM. All three are needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerTls {
    /// Certificate of the authority that signed every instance's certificate.
    pub ca: PathBuf,
    /// This instance's certificate; it names the instance id.
    pub cert: PathBuf,
    /// This instance's private key.
    pub key: PathBuf,
}

/// Consensus. The same values on every instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Raft {
    /// Time between two heartbeats of the leader, in milliseconds. Default 50; range 5 to 10000, below half of
    /// `electionTimeoutMs`.
    #[serde(rename = "heartbeatMs", with = "millis")]
    #[schemars(with = "u64")]
    pub heartbeat: Duration,
    /// Shortest silence after which an instance stands for election, in milliseconds; the longest is twice that.
    /// Default 150; at most 60000.
    #[serde(rename = "electionTimeoutMs", with = "millis")]
    #[schemars(with = "u64")]
    pub election_timeout: Duration,
    /// Log entries between two snapshots; 256 MiB of them are a reason too. Default 500000; at least 100.
    pub snapshot_every: u64,
    /// Log entries kept behind a snapshot, for instances that lag. Default 50000; at least 0.
    pub log_keep: u64,
}

impl Default for Raft {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election_timeout: Duration::from_millis(150),
            snapshot_every: 500_000,
            log_keep: 50_000,
        }
    }
}

impl Raft {
    /// The longest silence after which an instance stands for election.
    pub fn election_timeout_max(&self) -> Duration {
        self.election_timeout.saturating_mul(2)
    }
}

/// Ownership of channels and turns. The same values on every instance; the rules between them are what keeps two
/// instances from owning one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Lease {
    /// How long an owner may act after the start of its last acknowledged renewal, in milliseconds. Default 2000;
    /// range 100 to 600000.
    #[serde(rename = "validityMs", with = "millis")]
    #[schemars(with = "u64")]
    pub validity: Duration,
    /// How long the leader waits after a renewal before it gives the ownership to another, in milliseconds. Default 3000;
    /// at least 1.5 times `validityMs`.
    #[serde(rename = "waitMs", with = "millis")]
    #[schemars(with = "u64")]
    pub wait: Duration,
    /// Time between two renewals, in milliseconds. Default 500; at most a quarter of `validityMs`.
    #[serde(rename = "renewMs", with = "millis")]
    #[schemars(with = "u64")]
    pub renew: Duration,
    /// Time in which an owner that loses its validity stops everything it does, in milliseconds. Default 250; at most an
    /// eighth of `validityMs`.
    #[serde(rename = "stopBudgetMs", with = "millis")]
    #[schemars(with = "u64")]
    pub stop_budget: Duration,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            validity: Duration::from_millis(2000),
            wait: Duration::from_millis(3000),
            renew: Duration::from_millis(500),
            stop_budget: Duration::from_millis(250),
        }
    }
}

/// Return of channels to the instance they prefer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Failback {
    /// How long the preferred instance must have been stable: `"60s"`, `"5m"`, or milliseconds. Default `"1m"`; at most 24 h.
    #[serde(with = "span")]
    #[schemars(with = "String")]
    pub after: Duration,
}

impl Default for Failback {
    fn default() -> Self {
        Self { after: Duration::from_secs(60) }
    }
}
