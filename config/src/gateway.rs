//! `gateway`: the public HTTP listener.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::values::{ByteCount, IpRange, ParseError, Secret, millis};

/// The public HTTP listener. Every key needs a restart to take effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gateway {
    /// TCP port. Default 3000; range 1 to 65535. Also `--port`, `OPENCLAW_GATEWAY_PORT`.
    pub port: u16,
    /// Which addresses to listen on: `loopback`, `lan`, an IP address, or a list of IP addresses. Default `loopback`.
    /// Anything but loopback needs `gateway.auth.token`. Also `OPENCLAW_GATEWAY_BIND`.
    pub bind: Bind,
    /// Who may call.
    pub auth: Auth,
    /// Proxies whose `X-Forwarded-For` is believed, for the client's address in logs and traces: IP addresses or blocks such as
    /// `10.0.0.0/8`. Default none. It lets nobody in.
    pub trusted_proxies: Vec<IpRange>,
    /// Browser origins that may call from another site: `https://chat.example`. Default none.
    pub allowed_origins: Vec<String>,
    /// Bounds on what callers may take up.
    pub limits: Limits,
    /// What happens to requests and streams when this instance is asked to stop.
    pub shutdown: Shutdown,
    /// Which endpoints are offered.
    pub http: Http,
    /// Who reads the metrics.
    pub metrics: MetricsAccess,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            port: 3000,
            bind: Bind::Loopback,
            auth: Auth::default(),
            trusted_proxies: Vec::new(),
            allowed_origins: Vec::new(),
            limits: Limits::default(),
            shutdown: Shutdown::default(),
            http: Http::default(),
            metrics: MetricsAccess::default(),
        }
    }
}

impl Gateway {
    /// The socket addresses to listen on.
    pub fn listen(&self) -> Vec<SocketAddr> {
        self.bind.addresses().into_iter().map(|address| SocketAddr::new(address, self.port)).collect()
    }
}

/// Which addresses the public listener uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Bind {
    /// `127.0.0.1` alone.
    #[default]
    Loopback,
    /// Every IPv4 address of the machine.
    Lan,
    /// These addresses; never an empty list when it came through parsing.
    Addresses(Vec<IpAddr>),
}

impl Bind {
    const EXPECTING: &str = "\"loopback\", \"lan\", an IP address, or a list of IP addresses";

    /// The addresses that are meant.
    pub fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::Loopback => vec![Ipv4Addr::LOCALHOST.into()],
            Self::Lan => vec![Ipv4Addr::UNSPECIFIED.into()],
            Self::Addresses(addresses) => addresses.clone(),
        }
    }

    /// Whether only this machine can connect.
    pub fn is_loopback(&self) -> bool {
        self.addresses().iter().all(IpAddr::is_loopback)
    }
}

impl FromStr for Bind {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "loopback" => Ok(Self::Loopback),
            "lan" => Ok(Self::Lan),
            other => match other.split(',').map(|part| part.trim().parse()).collect() {
                Ok(addresses) => Ok(Self::Addresses(addresses)),
                Err(_) => Err(ParseError(format!("{text:?} is not {}", Self::EXPECTING))),
            },
        }
    }
}

impl Serialize for Bind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Loopback => serializer.serialize_str("loopback"),
            Self::Lan => serializer.serialize_str("lan"),
            Self::Addresses(addresses) => match addresses.as_slice() {
                [one] => serializer.collect_str(one),
                several => serializer.collect_seq(several),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Bind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Listed(IpAddr);

        impl<'de> Deserialize<'de> for Listed {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let refuse = |_| de::Error::custom(format_args!("{text:?} is not an IP address"));
                text.parse().map(Self).map_err(refuse)
            }
        }

        struct BindVisitor;

        impl<'de> Visitor<'de> for BindVisitor {
            type Value = Bind;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Bind::EXPECTING)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bind, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Bind, A::Error> {
                let mut addresses = Vec::new();
                while let Some(Listed(address)) = items.next_element()? {
                    addresses.push(address);
                }
                if addresses.is_empty() {
                    return Err(de::Error::invalid_length(0, &self));
                }
                Ok(Bind::Addresses(addresses))
            }
        }

        deserializer.deserialize_any(BindVisitor)
    }
}

impl JsonSchema for Bind {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bind".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "minItems": 1 }],
        })
    }
}

/// Who may call the public listener.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Auth {
    /// The bearer token that callers present. Default none: every caller on this machine may call, and only those.
    /// Also `OPENCLAW_GATEWAY_TOKEN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

/// Bounds on what callers may take up. Beyond each, the answer is an error that says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Longest request body, in bytes. Default 1 MiB; range 1 KiB to 64 MiB.
    pub body_bytes: ByteCount,
    /// Longest request line and headers together, in bytes. Default 16 KiB; range 8 KiB to 1 MiB.
    pub header_bytes: ByteCount,
    /// Time to receive the headers of a request, in milliseconds. Default 10 s; at least 100 ms.
    #[serde(rename = "headerReadMs", with = "millis")]
    #[schemars(with = "u64")]
    pub header_read: Duration,
    /// Deadline of a request that waits for no model, in milliseconds. Default 10 s; at least 100 ms.
    #[serde(rename = "requestMs", with = "millis")]
    #[schemars(with = "u64")]
    pub request: Duration,
    /// Deadline of a request that waits for a model's whole reply, and the longest life of a stream, in milliseconds.
    /// Default 300 s; not below `requestMs`.
    #[serde(rename = "chatRequestMs", with = "millis")]
    #[schemars(with = "u64")]
    pub chat_request: Duration,
    /// Open connections. Default 20000; at least 1.
    pub max_connections: u32,
    /// Requests under way, streams not counted. Default 4096; at least 1.
    pub max_concurrent_requests: u32,
    /// Open event streams. Default 16384; at least 1.
    pub max_streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: ByteCount::mib(1),
            header_bytes: ByteCount::kib(16),
            header_read: Duration::from_secs(10),
            request: Duration::from_secs(10),
            chat_request: Duration::from_secs(300),
            max_connections: 20_000,
            max_concurrent_requests: 4096,
            max_streams: 16_384,
        }
    }
}

/// What happens to requests and streams when this instance is asked to stop.
///
/// Whoever stops it should wait longer than `drainMs` before it kills: `stop_grace_period`, `TimeoutStopSec`,
/// `terminationGracePeriodSeconds`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Shutdown {
    /// How long it goes on to accept connections while health says `draining`, so that balancers which look at it have looked,
    /// in milliseconds. Maintenance before counts, and an instance without peers does not wait. Default 2 s; at most `drainMs`.
    #[serde(rename = "lameDuckMs", with = "millis")]
    #[schemars(with = "u64")]
    pub lame_duck: Duration,
    /// How long running turns and open streams may take to end, in milliseconds. Then streams end with an id to continue
    /// from, and turns begin again on another instance. Default 25 s; at most an hour.
    #[serde(rename = "drainMs", with = "millis")]
    #[schemars(with = "u64")]
    pub drain: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { lame_duck: Duration::from_secs(2), drain: Duration::from_secs(25) }
    }
}

/// Which endpoints are offered.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Http {
    /// Endpoints that can be switched off.
    pub endpoints: Endpoints,
}

/// Who reads the metrics.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricsAccess {
    /// From where `/metrics` is read without the token, beside this machine: IP addresses or blocks such as `10.0.0.0/8`, those
    /// of a Prometheus. What a proxy forwards needs the token all the same, if the proxy says so in a header; a balancer of TCP
    /// says nothing and does not belong here. Default none.
    pub allow_from: Vec<IpRange>,
}

/// Endpoints that can be switched off.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Endpoints {
    /// `/v1/chat/completions` and `/v1/models`, for OpenAI clients.
    pub chat_completions: Endpoint,
}

/// One endpoint's switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Endpoint {
    /// Whether it answers. Default true (upstream's is false).
    pub enabled: bool,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self { enabled: true }
    }
}
