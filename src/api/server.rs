//! Connections: accepted, bounded, served, and ended.
//!
//! `axum::serve` would do but for what keeps a public listener alive: a time for headers to arrive (it installs no
//! timer, so that slow clients hold sockets for ever), a time in which a reader must take something, a limit of
//! connections, and an end that is not waited for longer than allowed. HTTP/1.1 and HTTP/2 without TLS on one port.

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
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::Peer;
use crate::metrics::Metrics;

/// The connection preface of HTTP/2. Until so many bytes have come, nobody else counts the time.
const PREFACE_BYTES: u64 = 24;
/// How long to leave a listener alone that cannot accept: the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How connections are served.
#[derive(Debug, Clone)]
pub struct Options {
    pub header_read: Duration,
    pub header_bytes: usize,
    pub max_connections: usize,
    /// A connection that takes none of what is written to it for so long is closed: a slow reader continues elsewhere.
    pub write_stall: Duration,
    /// How long requests may take to end after shutdown began.
    pub drain: Duration,
}

impl From<&Limits> for Options {
    fn from(limits: &Limits) -> Self {
        Self {
            header_read: limits.header_read,
            header_bytes: limits.header_bytes.as_usize(),
            max_connections: limits.max_connections as usize,
            write_stall: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}

/// Serves the public listener until `shutdown`, then lets requests end for as long as allowed.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: Options,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let server = Server::new(router, options, metrics);
    let graceful = server.run(&listener, &shutdown).await;
    // Whoever connects now is refused, and goes to another instance.
    drop(listener);
    server.drain(graceful).await;
}

/// Serves the admin socket: callers are operators.
pub async fn serve_unix(
    listener: UnixListener,
    router: Router,
    options: Options,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let server = Server::new(router, options, metrics);
    let graceful = server.run(&listener, &shutdown).await;
    drop(listener);
    server.drain(graceful).await;
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

    async fn run(&self, listener: &impl Accept, shutdown: &CancellationToken) -> GracefulShutdown {
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return graceful,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_of_connection(&error) => continue,
                Err(error) => {
                    warn!(%error, "no connection accepted; trying again");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                self.metrics.http_refused_connections.inc();
                continue;
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

    async fn drain(&self, graceful: GracefulShutdown) {
        let open = graceful.count();
        if timeout(self.options.drain, graceful.shutdown()).await.is_err() {
            info!(open, waited = ?self.options.drain, "connections were still open at the end of the drain");
        }
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
