//! Dials peers: resolve, TCP, handshake, and the peer's own verdict, within one deadline.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use openclaw_proto::ids::InstanceId;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, DnsName, ServerName};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tonic::transport::Uri;
use tower::Service;

use super::refusals::{hung_up, not_tls, tls_error};
use super::stream::PeerStream;
use super::verify::{CertificateFault, Objection};
use super::{PeerSecurity, TlsIdentity};

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Why a peer could not be connected to. The text is ready for a log line or an operator.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot resolve {addr}: {source}")]
    Resolve { addr: String, source: io::Error },
    #[error("cannot reach {addr}: {source}")]
    Unreachable { addr: String, source: io::Error },
    #[error("{addr} did not answer within {limit:?}, while {step}")]
    TimedOut { addr: String, step: &'static str, limit: Duration },
    /// This instance refused the peer.
    #[error("refused {addr}: {fault}")]
    Certificate { addr: String, fault: CertificateFault },
    /// The peer refused this instance.
    #[error("{addr} refused this instance: {objection}")]
    RefusedByPeer { addr: String, objection: Objection },
    #[error("{addr} does not speak TLS, which this instance requires of its peers")]
    NotTls { addr: String },
    #[error("{addr} closed the connection before it answered; its log says why")]
    Closed { addr: String },
    #[error("the handshake with {addr} failed: {detail}")]
    Handshake { addr: String, detail: String },
}

impl ConnectError {
    /// Whether trying again may help without anyone changing a certificate or a setting.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Closed { .. } => true,
            Self::Certificate { .. } | Self::RefusedByPeer { .. } | Self::NotTls { .. } | Self::Handshake { .. } => {
                false
            }
        }
    }

    /// For a log field or a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "unresolved",
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::Certificate { fault, .. } => fault.label(),
            Self::RefusedByPeer { .. } => "refused_by_peer",
            Self::NotTls { .. } => "not_tls",
            Self::Closed { .. } => "closed",
            Self::Handshake { .. } => "handshake_failed",
        }
    }

    /// The cause behind what tonic reports of a connection or of a call that needed one.
    pub fn in_chain<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
    }

    fn of(addr: &str, error: &io::Error) -> Self {
        let addr = addr.to_owned();
        let Some(tls) = tls_error(error) else {
            return if hung_up(error) {
                Self::Closed { addr }
            } else {
                Self::Handshake { addr, detail: error.to_string() }
            };
        };
        if let Some(fault) = CertificateFault::of(tls) {
            Self::Certificate { addr, fault }
        } else if let rustls::Error::AlertReceived(alert) = tls {
            Self::RefusedByPeer { addr, objection: (*alert).into() }
        } else if not_tls(tls) {
            Self::NotTls { addr }
        } else {
            Self::Handshake { addr, detail: tls.to_string() }
        }
    }
}

/// Dials one peer; for tonic's `Endpoint::connect_with_connector` and `connect_with_connector_lazy`, which ignore
/// everything but the scheme of the URI they are given. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PeerConnector {
    tls: Option<(Arc<TlsIdentity>, Arc<ClientConfig>)>,
    addr: Arc<str>,
    expected: Option<InstanceId>,
    deadline: Duration,
}

/// How to reach the peer at `addr` (`host:port`), which must be `expected`; None takes any instance of the cluster, as
/// `--join` does. `deadline` covers everything from resolving the name to the peer's first bytes.
pub fn connector(
    security: &PeerSecurity,
    addr: impl Into<Arc<str>>,
    expected: Option<InstanceId>,
    deadline: Duration,
) -> PeerConnector {
    let tls = match security {
        PeerSecurity::Plaintext => None,
        PeerSecurity::Tls(identity) => Some((identity.clone(), identity.client_config(expected.clone()))),
    };
    PeerConnector { tls, addr: addr.into(), expected, deadline }
}

impl PeerConnector {
    /// Connects. Under TLS the peer has accepted this instance when this returns; [`PeerStream::identity`] says who
    /// it is.
    ///
    /// # Errors
    /// [`ConnectError`] with the cause.
    pub async fn connect(&self) -> Result<PeerStream, ConnectError> {
        let until = Instant::now() + self.deadline;
        let (tcp, remote) = self.dial(until).await?;
        let Some((identity, config)) = &self.tls else {
            return Ok(PeerStream::dialled_plain(tcp, remote));
        };
        let failed = |error: io::Error| ConnectError::of(&self.addr, &error);
        let handshake = TlsConnector::from(config.clone()).connect(unused_name(), tcp);
        let tls = timeout_at(until, handshake).await.map_err(|_| self.timed_out("shaking hands"))?.map_err(failed)?;

        let certificate = tls.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
        let name = certificate
            .ok_or_else(|| CertificateFault::Damaged { detail: "it is missing".to_owned() })
            .and_then(|certificate| identity.trust.name(certificate, self.expected.as_ref()))
            .map_err(|fault| ConnectError::Certificate { addr: self.addr.to_string(), fault })?;

        let mut stream = PeerStream::tls(tls.into(), remote, name.instance_id);
        timeout_at(until, stream.wait_for_first_bytes())
            .await
            .map_err(|_| self.timed_out("waiting for its first bytes"))?
            .map_err(failed)?;
        Ok(stream)
    }

    /// Tries the addresses of the name in turn, each for its share of the time that is left.
    async fn dial(&self, until: Instant) -> Result<(TcpStream, SocketAddr), ConnectError> {
        let resolving = timeout_at(until, tokio::net::lookup_host(&*self.addr)).await;
        let addresses: Vec<_> = resolving
            .map_err(|_| self.timed_out("resolving its name"))?
            .map_err(|source| ConnectError::Resolve { addr: self.addr.to_string(), source })?
            .take(MAX_ADDRESSES)
            .collect();
        let mut last = ConnectError::Resolve {
            addr: self.addr.to_string(),
            source: io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
        };
        for (tried, address) in addresses.iter().enumerate() {
            let shares = u32::try_from(addresses.len() - tried).unwrap_or(1);
            let now = Instant::now();
            let share = now + until.saturating_duration_since(now) / shares;
            let connected = timeout_at(share, TcpStream::connect(address)).await;
            last = match connected.map(|tcp| tcp.and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))) {
                Ok(Ok(tcp)) => return Ok((tcp, *address)),
                Ok(Err(source)) => ConnectError::Unreachable { addr: self.addr.to_string(), source },
                Err(_) => self.timed_out("connecting"),
            };
        }
        Err(last)
    }

    fn timed_out(&self, step: &'static str) -> ConnectError {
        ConnectError::TimedOut { addr: self.addr.to_string(), step, limit: self.deadline }
    }
}

/// rustls asks for a name; it is neither sent nor checked, since the verifier knows whom it expects.
fn unused_name() -> ServerName<'static> {
    ServerName::DnsName(DnsName::try_from("peer.openclaw.internal").expect("a constant host name"))
}

impl Service<Uri> for PeerConnector {
    type Response = TokioIo<PeerStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}
