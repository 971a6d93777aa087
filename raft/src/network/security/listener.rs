//! Accepts peers: TCP, handshake, recognition. tonic is handed what passed.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, Sleep, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;

use super::refusals::{Refusal, Refusals};
use super::stream::PeerStream;
use super::{PeerSecurity, TlsIdentity};

/// Rest after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long, and for how many reads, a refused peer's last bytes are taken in, so that the alert reaches it: a socket
/// closed with bytes unread resets the connection, and a reset discards what was on its way.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_READS: usize = 16;

/// What strangers may occupy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// From accept to the end of the handshake.
    pub deadline: Duration,
    /// Handshakes in progress. One more displaces the oldest: a peer needs milliseconds, so those that
    /// have waited longest are the ones that send nothing, and refusing the newest would let them keep everyone out.
    pub concurrent: usize,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(5), concurrent: 256 }
    }
}

/// Yields recognised peers, for tonic's `serve_with_incoming_shutdown`.
///
/// It holds back by not being polled: nothing is accepted then. Dropping it ends the handshakes in progress. It neither
/// ends by itself nor yields an error, since a failed accept is no reason to stop serving.
#[derive(Debug)]
pub struct PeerListener {
    tcp: TcpListener,
    security: PeerSecurity,
    limits: HandshakeLimits,
    refusals: Arc<Refusals>,
    handshakes: JoinSet<(u64, Ended)>,
    /// Those that have not ended, oldest first.
    pending: BTreeMap<u64, (AbortHandle, SocketAddr)>,
    /// Refused connections that still get their alert; as many as handshakes at most.
    closing: JoinSet<()>,
    accepted: u64,
    pause: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum Ended {
    Recognised(PeerStream),
    /// With the connection, if there is an alert on its way.
    Refused(Option<TcpStream>),
}

impl PeerListener {
    pub fn new(tcp: TcpListener, security: PeerSecurity, limits: HandshakeLimits) -> Self {
        Self {
            tcp,
            security,
            limits: HandshakeLimits { concurrent: limits.concurrent.max(1), ..limits },
            refusals: Arc::default(),
            handshakes: JoinSet::new(),
            pending: BTreeMap::new(),
            closing: JoinSet::new(),
            accepted: 0,
            pause: None,
        }
    }

    /// Who was refused, and why; outlives the listener.
    pub fn refusals(&self) -> Arc<Refusals> {
        self.refusals.clone()
    }

    fn poll_handshakes(&mut self, cx: &mut Context<'_>) -> Option<PeerStream> {
        while self.closing.try_join_next().is_some() {}
        while let Poll::Ready(Some(ended)) = self.handshakes.poll_join_next(cx) {
            match ended {
                Ok((number, ended)) => {
                    self.pending.remove(&number);
                    match ended {
                        Ended::Recognised(stream) => return Some(stream),
                        Ended::Refused(Some(tcp)) if self.closing.len() < self.limits.concurrent => {
                            self.closing.spawn(linger(tcp));
                        }
                        Ended::Refused(_) => {}
                    }
                }
                Err(error) if error.is_panic() => tracing::error!(%error, "a peer handshake panicked"),
                // Displaced, and logged when it was.
                Err(_) => {}
            }
        }
        None
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<(TcpStream, SocketAddr)> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.tcp.poll_accept(cx)) {
                Ok((tcp, remote)) => match tcp.set_nodelay(true) {
                    Ok(()) => return Poll::Ready((tcp, remote)),
                    Err(error) => tracing::debug!(%remote, %error, "a peer was gone before it was accepted"),
                },
                Err(error) if is_the_peers(&error) => {
                    tracing::debug!(%error, "a peer was gone before it was accepted");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept peers; trying again shortly");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }

    fn begin_handshake(&mut self, identity: Arc<TlsIdentity>, tcp: TcpStream, remote: SocketAddr) {
        if self.pending.len() >= self.limits.concurrent
            && let Some((_, (oldest, displaced))) = self.pending.pop_first()
        {
            oldest.abort();
            self.refusals.record(displaced, &Refusal::Displaced { limit: self.limits.concurrent });
        }
        let number = self.accepted;
        self.accepted += 1;
        let (refusals, limit) = (self.refusals.clone(), self.limits.deadline);
        let task = self.handshakes.spawn(async move {
            let ended = match handshake(&identity, tcp, remote, limit).await {
                Ok(stream) => Ended::Recognised(stream),
                Err((refusal, tcp)) => {
                    refusals.record(remote, &refusal);
                    Ended::Refused(tcp)
                }
            };
            (number, ended)
        });
        self.pending.insert(number, (task, remote));
    }
}

impl Stream for PeerListener {
    type Item = io::Result<PeerStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(stream) = this.poll_handshakes(cx) {
                return Poll::Ready(Some(Ok(stream)));
            }
            let (tcp, remote) = ready!(this.poll_accept(cx));
            match &this.security {
                PeerSecurity::Plaintext => {
                    let stream = PeerStream::accepted_plain(tcp, remote, this.refusals.clone());
                    return Poll::Ready(Some(Ok(stream)));
                }
                PeerSecurity::Tls(identity) => this.begin_handshake(identity.clone(), tcp, remote),
            }
        }
    }
}

/// Whether accept failed for one connection only (accept(2): treat those as a retry).
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

async fn handshake(
    identity: &TlsIdentity,
    tcp: TcpStream,
    remote: SocketAddr,
    limit: Duration,
) -> Result<PeerStream, (Refusal, Option<TcpStream>)> {
    let accept = TlsAcceptor::from(identity.server.clone()).accept(tcp).into_fallible();
    let stream = match timeout_at(Instant::now() + limit, accept).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, tcp))) => return Err((Refusal::of(&error), Some(tcp))),
        Err(_) => return Err((Refusal::TimedOut { limit }, None)),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
    let name = match certificate.map(|certificate| identity.trust.name(certificate, None)) {
        Some(Ok(name)) => name,
        Some(Err(fault)) => return Err((fault.into(), None)),
        None => return Err((Refusal::NoCertificate, None)),
    };
    Ok(PeerStream::tls(stream.into(), remote, name.instance_id))
}

async fn linger(mut tcp: TcpStream) {
    let until = Instant::now() + LINGER;
    if tcp.shutdown().await.is_err() {
        return;
    }
    let mut sink = [0; 4096];
    for _ in 0..LINGER_READS {
        match timeout_at(until, tcp.read(&mut sink)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) | Err(_) => return,
        }
    }
}
