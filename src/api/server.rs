//! Connections: accepted, bounded, served, and ended.
//!
//! `axum::serve` would do but for what keeps a public listener alive: a time for headers to arrive (it installs no
//! timer, so that slow clients hold sockets for ever), a time in which a reader must take something, a limit of
//! connections, and an end in which no connection is lost that a client has opened. HTTP/1.1 and HTTP/2 without TLS on one
//! port.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use openclaw_config::gateway::Limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::Peer;
use crate::metrics::Metrics;

/// The connection preface of HTTP/2. Until so many bytes have come, nobody else counts the time.
const PREFACE_BYTES: u64 = 24;
/// How long to leave a listener alone that cannot accept: the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// For how long a listener for which no connection is made any more is asked for those that were being made.
const LAST_CONNECTIONS: Duration = Duration::from_millis(200);
/// Those that were made last have so long to send something.
const FIRST_BYTES: Duration = Duration::from_millis(100);

/// How connections are served.
#[derive(Debug, Clone)]
pub struct Options {
    pub header_read: Duration,
    pub header_bytes: usize,
    pub max_connections: usize,
    /// A connection that takes none of what is written to it for so long is closed: a slow reader continues elsewhere.
    pub write_stall: Duration,
}

impl From<&Limits> for Options {
    fn from(limits: &Limits) -> Self {
        Self {
            header_read: limits.header_read,
            header_bytes: limits.header_bytes.as_usize(),
            max_connections: limits.max_connections as usize,
            write_stall: Duration::from_secs(30),
        }
    }
}

/// Serves the public listener until `shutdown`, then no more than what is under way, to its end: dropping this ends it.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: Options,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let server = Server::new(router, options, metrics);
    let graceful = GracefulShutdown::new();
    shutdown.run_until_cancelled(server.run(&listener, &graceful)).await;
    // Connections that the kernel has made already are served; whoever connects later is refused, and goes elsewhere.
    if let Err(error) = refuse_connections(&listener) {
        debug!(%error, "a connection that is made at this moment may be lost");
    }
    let until = Instant::now() + LAST_CONNECTIONS;
    while let Ok(accepted) = timeout_at(until, Accept::accept(&listener)).await {
        server.take(accepted, &graceful).await;
    }
    drop(listener);
    // Of a connection that nothing was read from yet hyper thinks that nothing came.
    sleep(FIRST_BYTES).await;
    graceful.shutdown().await;
}

/// Serves the admin socket, in the same way: callers are operators.
pub async fn serve_unix(
    listener: UnixListener,
    router: Router,
    options: Options,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let server = Server::new(router, options, metrics);
    let graceful = GracefulShutdown::new();
    shutdown.run_until_cancelled(server.run(&listener, &graceful)).await;
    drop(listener);
    graceful.shutdown().await;
}

/// Has the kernel make no new connection, while those that it is making, or has made, can still be accepted.
///
/// Closing a listener resets the connections that wait in it, which clients took for made and may have sent requests on. A
/// filter that drops what asks for a new one (SYN) lets the listener run dry first. Whoever asked in that moment asks again
/// after a second, as TCP does, and is refused then.
#[cfg(target_os = "linux")]
fn refuse_connections(listener: &TcpListener) -> io::Result<()> {
    /// Of the packet's TCP header.
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    // Classic BPF: load the byte with the flags; if SYN is set take nothing of the packet, else all of it.
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    socket2::SockRef::from(listener).attach_filter(&[
        socket2::SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        socket2::SockFilter::new(JUMP_IF_SET, 0, 1, SYN),
        socket2::SockFilter::new(RETURN, 0, 0, 0),
        socket2::SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

#[cfg(not(target_os = "linux"))]
fn refuse_connections(_: &TcpListener) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes the admin socket, which only this user may open. A socket that an earlier process left is replaced: the caller
/// holds the data directory's lock, so nobody serves it.
///
/// # Errors
/// The path cannot be bound, or is something else than a socket.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;

    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the path of the admin socket is taken by a file",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Bound under another name and moved into place: at no moment can others open it.
    let fresh = path.with_extension("new");
    if fresh.exists() {
        fs::remove_file(&fresh)?;
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    Ok(listener)
}

/// A listener of either kind.
trait Accept: Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = TcpListener::accept(self).await?;
        // Answers are small and awaited.
        stream.set_nodelay(true)?;
        Ok((stream, Peer::Tcp(address)))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = UnixListener::accept(self).await?;
        Ok((stream, Peer::Operator))
    }
}

struct Server {
    router: Router,
    builder: auto::Builder<TokioExecutor>,
    options: Options,
    metrics: Metrics,
    places: Arc<Semaphore>,
}

impl Server {
    fn new(router: Router, options: Options, metrics: Metrics) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(options.header_read)
            // hyper's least.
            .max_buf_size(options.header_bytes.max(8192));
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .max_header_list_size(u32::try_from(options.header_bytes).unwrap_or(u32::MAX));
        let places = Arc::new(Semaphore::new(options.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
        Self { router, builder, options, metrics, places }
    }

    /// Accepts and serves for ever.
    async fn run(&self, listener: &impl Accept, graceful: &GracefulShutdown) {
        loop {
            self.take(listener.accept().await, graceful).await;
        }
    }

    /// Serves what was accepted, in a task of its own.
    async fn take<S>(&self, accepted: io::Result<(S, Peer)>, graceful: &GracefulShutdown)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_connection(&error) => return,
            Err(error) => {
                warn!(%error, "no connection accepted; trying again");
                return sleep(ACCEPT_PAUSE).await;
            }
        };
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.metrics.http_refused_connections.inc();
            return;
        };
        let stream = Guarded::new(stream, self.options.header_read, self.options.write_stall);
        let router = self.router.clone();
        let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(peer);
            router.clone().oneshot(request.map(Body::new))
        });
        let connection = self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        let open = self.metrics.http_connections.clone();
        open.inc();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection ended early");
            }
            open.dec();
            drop(place);
        });
    }
}

/// The listener is sound; only this connection is not.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotConnected
    )
}

/// A connection that must make progress: its first bytes within a time, and whatever is written to it within another.
struct Guarded<S> {
    stream: S,
    read: u64,
    first_bytes: Option<Pin<Box<Sleep>>>,
    write_stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    fn new(stream: S, first_bytes: Duration, write_stall: Duration) -> Self {
        Self { stream, read: 0, first_bytes: Some(Box::pin(sleep(first_bytes))), write_stall, stalled: None }
    }

    /// Times a write that does not progress.
    fn timed<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let deadline = Instant::now() + self.write_stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the reader takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(context, buffer);
        let Some(deadline) = &mut this.first_bytes else { return result };
        if result.is_ready() {
            this.read += (buffer.filled().len() - before) as u64;
            if this.read >= PREFACE_BYTES {
                this.first_bytes = None;
            }
            return result;
        }
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request came")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.timed(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.timed(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.timed(context, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(context);
        self.timed(context, result)
    }
}
