//! Connections that were refused: the causes, counted, and logged without letting a stranger fill the log.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::verify::{CertificateFault, Objection};

/// One line per cause and address in this span; the next one says how many it stands for.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Addresses remembered at once; strangers beyond share one line per cause.
const MAX_REMEMBERED: usize = 1024;

/// Why the listener did not take a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Certificate(#[from] CertificateFault),
    #[error("no certificate was presented")]
    NoCertificate,
    #[error("plaintext was spoken to this port, which takes TLS")]
    Plaintext,
    #[error("TLS was spoken to this port, which takes plaintext")]
    Tls,
    #[error("the handshake was not done within {limit:?}")]
    TimedOut { limit: Duration },
    #[error("gave way to a newer connection: {limit} handshakes were in progress")]
    Displaced { limit: usize },
    #[error("the peer refused this instance: {0}")]
    ByPeer(Objection),
    #[error("the connection was closed during the handshake")]
    Closed,
    #[error("the handshake failed: {detail}")]
    Handshake { detail: String },
}

impl Refusal {
    /// For a log field or a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Certificate(fault) => fault.label(),
            Self::NoCertificate => "no_certificate",
            Self::Plaintext => "plaintext_to_tls",
            Self::Tls => "tls_to_plaintext",
            Self::TimedOut { .. } => "handshake_timed_out",
            Self::Displaced { .. } => "handshake_displaced",
            Self::ByPeer(_) => "refused_by_peer",
            Self::Closed => "closed",
            Self::Handshake { .. } => "handshake_failed",
        }
    }

    pub(super) fn of(error: &io::Error) -> Self {
        let Some(tls) = tls_error(error) else {
            return if hung_up(error) { Self::Closed } else { Self::Handshake { detail: error.to_string() } };
        };
        if let Some(fault) = CertificateFault::of(tls) {
            fault.into()
        } else if let rustls::Error::AlertReceived(alert) = tls {
            Self::ByPeer((*alert).into())
        } else if *tls == rustls::Error::NoCertificatesPresented {
            Self::NoCertificate
        } else if not_tls(tls) {
            Self::Plaintext
        } else {
            Self::Handshake { detail: tls.to_string() }
        }
    }
}

pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

pub(super) fn hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Whether the first record was none: its first byte is no TLS content type.
pub(super) fn not_tls(error: &rustls::Error) -> bool {
    *error == rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)
}

/// Counts refusals by cause and writes the log lines.
#[derive(Debug, Default)]
pub struct Refusals {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<&'static str, u64>,
    lines: BTreeMap<(&'static str, IpAddr), Line>,
}

#[derive(Debug)]
struct Line {
    written: Instant,
    since: u64,
}

impl Refusals {
    /// How many connections were refused, by [`Refusal::label`].
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().counts.clone()
    }

    pub(super) fn record(&self, remote: SocketAddr, refusal: &Refusal) {
        let cause = refusal.label();
        let admitted = self.state.lock().admit(cause, remote.ip().to_canonical(), Instant::now());
        let Some(suppressed) = admitted else { return };
        // Load balancers and orchestrators probe ports by connecting and closing.
        if *refusal == Refusal::Closed {
            tracing::debug!(%remote, cause, suppressed, "peer connection refused");
        } else {
            tracing::warn!(%remote, cause, reason = %refusal, suppressed, "peer connection refused");
        }
    }
}

impl State {
    /// Some: write a line, which stands for that many earlier ones too.
    fn admit(&mut self, cause: &'static str, address: IpAddr, now: Instant) -> Option<u64> {
        *self.counts.entry(cause).or_default() += 1;
        let mut key = (cause, address);
        if !self.lines.contains_key(&key) && self.lines.len() >= MAX_REMEMBERED {
            self.lines.retain(|_, line| now.duration_since(line.written) < LOG_EVERY);
            if self.lines.len() >= MAX_REMEMBERED {
                key = (cause, Ipv6Addr::UNSPECIFIED.into());
            }
        }
        match self.lines.get_mut(&key) {
            Some(line) if now.duration_since(line.written) < LOG_EVERY => {
                line.since += 1;
                None
            }
            Some(line) => {
                line.written = now;
                Some(std::mem::take(&mut line.since))
            }
            None => {
                self.lines.insert(key, Line { written: now, since: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from(n).into()
    }

    #[test]
    fn one_line_per_cause_and_address_each_minute() {
        let (mut state, start) = (State::default(), Instant::now());
        let mut admit = |cause, n, at: u64| state.admit(cause, address(n), start + Duration::from_secs(at));
        assert_eq!(admit("a", 1, 0), Some(0));
        assert_eq!(admit("a", 1, 1), None);
        assert_eq!(admit("a", 1, 59), None);
        assert_eq!(admit("b", 1, 59), Some(0), "another cause");
        assert_eq!(admit("a", 2, 59), Some(0), "another address");
        assert_eq!(admit("a", 1, 60), Some(2), "with the two that were left out");
        assert_eq!(state.counts, BTreeMap::from([("a", 5), ("b", 1)]));
    }

    #[test]
    fn strangers_beyond_the_limit_share_a_line_until_the_others_are_forgotten() {
        let (mut state, start) = (State::default(), Instant::now());
        for n in 0..5000 {
            state.admit("a", address(n), start);
        }
        assert_eq!(state.lines.len(), MAX_REMEMBERED + 1);
        assert_eq!(state.admit("a", address(9999), start + LOG_EVERY), Some(0));
        assert_eq!(state.lines.len(), 1);
        assert_eq!(state.counts["a"], 5001);
    }
}
