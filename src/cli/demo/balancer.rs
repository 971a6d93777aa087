//! A small L4 balancer: bytes from a client to one instance and back, nothing of HTTP.
//!
//! Round robin over the instances that accept a connection. One that refused lately is asked last, so that a dead instance
//! costs one connection attempt a second and not one per client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

/// Clients at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an instance that refused is asked last.
const AVOID: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Balancer {
    backends: Vec<Backend>,
    next: AtomicUsize,
    slots: Arc<Semaphore>,
}

#[derive(Debug)]
struct Backend {
    address: SocketAddr,
    refused_at: Mutex<Option<Instant>>,
}

impl Backend {
    fn avoided(&self) -> bool {
        self.refused_at.lock().is_some_and(|at| at.elapsed() < AVOID)
    }
}

impl Balancer {
    pub(super) fn new(backends: impl IntoIterator<Item = SocketAddr>) -> Arc<Self> {
        let backends = backends.into_iter().map(|address| Backend { address, refused_at: Mutex::new(None) }).collect();
        Arc::new(Self { backends, next: AtomicUsize::new(0), slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)) })
    }

    /// Until the task is dropped.
    pub(super) async fn run(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(slot) = self.slots.clone().acquire_owned().await else { return };
            let client = match listener.accept().await {
                Ok((client, _)) => client,
                Err(error) => {
                    // Out of descriptors, most likely: some connection has to end first.
                    debug!(%error, "no connection accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let balancer = self.clone();
            tokio::spawn(async move {
                balancer.carry(client).await;
                drop(slot);
            });
        }
    }

    async fn carry(&self, mut client: TcpStream) {
        // No instance: closing is what an L4 balancer has to say.
        let Some(mut instance) = self.connect().await else { return };
        let delayed = client.set_nodelay(true).and_then(|()| instance.set_nodelay(true));
        if let Err(error) = delayed {
            debug!(%error, "small packets may wait");
        }
        if let Err(error) = copy_bidirectional(&mut client, &mut instance).await {
            debug!(%error, "a connection ended early");
        }
    }

    async fn connect(&self) -> Option<TcpStream> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.backends.len();
        let in_turn = || (0..count).map(|n| &self.backends[first.wrapping_add(n) % count]);
        let (avoided, preferred): (Vec<_>, Vec<_>) = in_turn().partition(|backend| backend.avoided());
        for backend in preferred.into_iter().chain(avoided) {
            if let Ok(Ok(stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(backend.address)).await {
                *backend.refused_at.lock() = None;
                return Some(stream);
            }
            *backend.refused_at.lock() = Some(Instant::now());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers every connection with `name`, then echoes until the client stops.
    async fn instance(name: &'static str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    stream.write_all(name.as_bytes()).await.unwrap();
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                });
            }
        });
        (address, task)
    }

    async fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"-ping").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn clients_go_round_and_never_to_a_dead_instance() {
        let (one, task) = instance("one").await;
        let (two, _task) = instance("two").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(Balancer::new([one, two]).run(listener));

        let mut answers = vec![ask(address).await, ask(address).await];
        answers.sort();
        assert_eq!(answers, ["one-ping", "two-ping"]);

        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        for _ in 0..4 {
            assert_eq!(ask(address).await, "two-ping");
        }
    }

    #[tokio::test]
    async fn without_any_instance_the_connection_just_ends() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(Balancer::new([gone]).run(listener));
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
}
