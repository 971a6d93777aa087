//! What stands before the instances in a deployment: a balancer of TCP connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A TCP balancer: each new connection goes to the next backend that accepts one.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    /// Counts up; modulo the number of backends it says whose turn it is.
    next: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Balancer {
    /// # Errors
    /// When no port can be bound.
    pub async fn start(backends: Vec<SocketAddr>) -> Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), backends).await
    }

    /// # Errors
    /// When the address cannot be bound.
    pub async fn start_at(address: SocketAddr, backends: Vec<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind(address).await.context("bind the balancer")?;
        let address = listener.local_addr().context("address of the balancer")?;
        let next = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(balance(listener, backends, Arc::clone(&next)));
        Ok(Self { address, next, task })
    }

    /// Gives the next connection to this backend, by its place in the list, if it accepts one; then it goes on from there.
    pub fn turn_to(&self, backend: usize) {
        self.next.store(backend, Ordering::Relaxed);
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn balance(listener: TcpListener, backends: Vec<SocketAddr>, next: Arc<AtomicUsize>) {
    let backends: Arc<[SocketAddr]> = backends.into();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((mut client, _)) = listener.accept().await else { continue };
        let (backends, next) = (Arc::clone(&backends), Arc::clone(&next));
        connections.spawn(async move {
            for _ in 0..backends.len() {
                let backend = backends[next.fetch_add(1, Ordering::Relaxed) % backends.len()];
                let Ok(mut server) = TcpStream::connect(backend).await else { continue };
                if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_ok() {
                    // Either side sees the other close; there is nobody else to tell.
                    drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
                }
                return;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn arrives(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        from.write_all(b"x").await.unwrap();
        tokio::time::timeout(Duration::from_millis(100), to.read_u8()).await.is_ok()
    }

    #[tokio::test]
    async fn the_balancer_takes_turns_and_passes_over_a_dead_backend() {
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (one, two) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let backends = vec![one.local_addr().unwrap(), dead, two.local_addr().unwrap()];
        let balancer = Balancer::start(backends).await.unwrap();
        for listener in [&one, &two, &one] {
            let (client, server) = tokio::join!(TcpStream::connect(balancer.address()), listener.accept());
            assert!(arrives(&mut client.unwrap(), &mut server.unwrap().0).await);
        }
        for _ in 0..2 {
            balancer.turn_to(2);
            let (client, server) = tokio::join!(TcpStream::connect(balancer.address()), two.accept());
            assert!(arrives(&mut client.unwrap(), &mut server.unwrap().0).await);
        }
    }
}
