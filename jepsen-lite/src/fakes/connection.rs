//! The accept loop of every fake, what a handler may do to the connection that its request came on, and who is at its other end.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::{Extension, Router};
use futures::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What a test calls a fake's callers, by the caller's address and ours: asked once per connection, at its first request,
/// while its socket is still open.
#[derive(Clone)]
pub struct Label(Arc<Name>);

type Name = dyn Fn(SocketAddr, SocketAddr) -> Option<String> + Send + Sync;

impl Label {
    pub fn new(name: impl Fn(SocketAddr, SocketAddr) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(name))
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Label")
    }
}

/// The connection of a request; handlers find it among the request's extensions.
#[derive(Clone)]
pub(super) struct Connection {
    number: u64,
    peer: SocketAddr,
    local: SocketAddr,
    name: Arc<OnceLock<Option<String>>>,
    cut: Arc<Notify>,
    afterwards: Arc<Mutex<Option<BoxFuture<'static, ()>>>>,
}

impl Connection {
    fn new(number: u64, peer: SocketAddr, local: SocketAddr) -> Self {
        Self { number, peer, local, name: Arc::default(), cut: Arc::default(), afterwards: Arc::default() }
    }

    /// Counts the server's connections from 0.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What the test calls the peer.
    pub(super) fn name(&self, label: Option<&Label>) -> Option<String> {
        self.name.get_or_init(|| label.and_then(|Label(name)| name(self.peer, self.local))).clone()
    }

    /// Breaks the connection, whatever is on it.
    pub(super) fn hang_up(&self) {
        self.cut.notify_one();
    }

    /// Breaks the connection; whoever calls it gives no answer any more.
    pub(super) async fn cut<T>(&self) -> T {
        self.hang_up();
        std::future::pending().await
    }

    /// What the connection is for once HTTP has left it (an upgrade): as long-lived as the connection itself.
    pub(super) fn afterwards(&self, future: BoxFuture<'static, ()>) {
        *self.afterwards.lock().unwrap_or_else(PoisonError::into_inner) = Some(future);
    }

    fn take_afterwards(&self) -> Option<BoxFuture<'static, ()>> {
        self.afterwards.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Serves until it is dropped, and with it every connection.
pub(super) async fn serve(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    let mut number = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An accept that fails is the peer's loss or a lack of files: the next may go well.
                let Ok((stream, peer)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let Ok(local) = stream.set_nodelay(true).and_then(|()| stream.local_addr()) else { continue };
                let connection = Connection::new(number, peer, local);
                number += 1;
                let service = TowerToHyperService::new(router.clone().layer(Extension(connection.clone())));
                connections.spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    tokio::select! {
                        // How a connection ends shows in the record of its requests.
                        ended = builder.serve_connection_with_upgrades(TokioIo::new(stream), service) => drop(ended),
                        () = connection.cut.notified() => return,
                    }
                    if let Some(afterwards) = connection.take_afterwards() {
                        afterwards.await;
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
