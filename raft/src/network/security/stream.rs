//! A peer connection whose other end has been recognised, as tonic and hyper want it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use openclaw_proto::ids::InstanceId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use super::refusals::{Refusal, Refusals};

/// An HTTP/2 server opens with a SETTINGS frame of a few dozen bytes.
const FIRST_BYTES: usize = 512;
/// First byte of a TLS record: an alert, or a handshake message. No HTTP/2 connection begins with either.
const TLS_RECORD: [u8; 2] = [0x15, 0x16];

/// Who is at the other end; in the extensions of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Proven by certificate. None: plaintext, where anyone on this machine can call.
    pub instance_id: Option<InstanceId>,
    pub remote_addr: SocketAddr,
}

/// A connection to a peer.
#[derive(Debug)]
pub struct PeerStream {
    io: Io,
    identity: PeerIdentity,
    /// Read ahead while waiting for the verdict of the peer; handed out first.
    first: Vec<u8>,
    /// Some until the first byte of a plaintext connection was looked at.
    unseen: Option<Unseen>,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Whom to tell when TLS is spoken on a plaintext connection.
#[derive(Debug)]
enum Unseen {
    Accepted(Arc<Refusals>),
    Dialled,
}

impl PeerStream {
    pub(super) fn accepted_plain(tcp: TcpStream, remote_addr: SocketAddr, refusals: Arc<Refusals>) -> Self {
        Self::plain(tcp, remote_addr, Unseen::Accepted(refusals))
    }

    pub(super) fn dialled_plain(tcp: TcpStream, remote_addr: SocketAddr) -> Self {
        Self::plain(tcp, remote_addr, Unseen::Dialled)
    }

    fn plain(tcp: TcpStream, remote_addr: SocketAddr, unseen: Unseen) -> Self {
        let identity = PeerIdentity { instance_id: None, remote_addr };
        Self { io: Io::Plain(tcp), identity, first: Vec::new(), unseen: Some(unseen) }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, remote_addr: SocketAddr, instance_id: InstanceId) -> Self {
        let identity = PeerIdentity { instance_id: Some(instance_id), remote_addr };
        Self { io: Io::Tls(Box::new(stream)), identity, first: Vec::new(), unseen: None }
    }

    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// Waits until the other end has sent something, which it does only after it accepted this one.
    pub(super) async fn wait_for_first_bytes(&mut self) -> io::Result<()> {
        let mut bytes = vec![0; FIRST_BYTES];
        let read = self.read(&mut bytes).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.truncate(read);
        self.first = bytes;
        Ok(())
    }

    fn look_at(&mut self, first: u8) -> io::Result<()> {
        let Some(unseen) = self.unseen.take() else { return Ok(()) };
        if !TLS_RECORD.contains(&first) {
            return Ok(());
        }
        match unseen {
            Unseen::Accepted(refusals) => {
                refusals.record(self.identity.remote_addr, &Refusal::Tls);
                Err(io::Error::new(io::ErrorKind::InvalidData, Refusal::Tls))
            }
            Unseen::Dialled => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer speaks TLS, but this instance is set up for plaintext between peers",
            )),
        }
    }
}

impl Connected for PeerStream {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.identity.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.first.is_empty() {
            let count = this.first.len().min(buf.remaining());
            buf.put_slice(&this.first[..count]);
            this.first.drain(..count);
            if this.first.is_empty() {
                // A connection lives for weeks.
                this.first = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(match &mut this.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Io::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        })?;
        if let Some(byte) = buf.filled().get(before) {
            this.look_at(*byte)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Io::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Io::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(tcp) => tcp.is_write_vectored(),
            Io::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Io::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Io::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
