//! A proxy in front of each peer listener, with a switch per directed link: faults on loopback, without any privilege.
//!
//! Every instance is told one address per peer, that of the peer's proxy, so the bootstrap lists are equal and the
//! server needs no setting for it. Which instance dialled is read from the kernel: the client's port in /proc/net/tcp
//! gives the socket's inode, and the inode is found among the open files of the processes that the harness started. So
//! a link is known in both directions: what i sends to j are the requests on connections that i dialled and the answers
//! on those that j dialled, and all of them stop when i -> j is cut.
//!
//! A cut holds bytes back and closes nothing, as a lost route does; after healing they arrive late. A connection made
//! during a cut is accepted by the proxy and then stays silent, where a real one would time out connecting.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::opener::process_of;

/// Chunks that wait in one direction of one connection; past it the sender's own socket fills up.
const WAITING_CHUNKS: usize = 64;
const CHUNK_BYTES: usize = 64 << 10;

/// What happens to bytes from one instance to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    open: bool,
    delay: Duration,
}

const FREE: Link = Link { open: true, delay: Duration::ZERO };

/// The proxies of one cluster.
#[derive(Debug)]
pub struct Proxies {
    /// `links[from][to]`
    links: Vec<Vec<watch::Sender<Link>>>,
    addresses: Vec<SocketAddr>,
    owners: Arc<Mutex<HashMap<u32, usize>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Proxies {
    /// Opens a proxy for each of `listeners`, the addresses at which the instances really listen.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(listeners: &[SocketAddr]) -> Result<Self> {
        let count = listeners.len();
        let links: Vec<Vec<_>> = (0..count).map(|_| (0..count).map(|_| watch::Sender::new(FREE)).collect()).collect();
        let owners = Arc::new(Mutex::new(HashMap::new()));
        let (mut addresses, mut tasks) = (Vec::new(), Vec::new());
        for (to, &target) in listeners.iter().enumerate() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("bind a proxy")?;
            addresses.push(listener.local_addr().context("address of a proxy")?);
            let front = Front {
                to,
                target,
                owners: Arc::clone(&owners),
                forward: links.iter().map(|from| from[to].subscribe()).collect(),
                backward: links[to].iter().map(watch::Sender::subscribe).collect(),
            };
            tasks.push(tokio::spawn(front.run(listener)));
        }
        Ok(Self { links, addresses, owners, tasks })
    }

    pub fn instances(&self) -> usize {
        self.links.len()
    }

    /// Where peers reach instance `index`.
    pub fn address(&self, index: usize) -> SocketAddr {
        self.addresses[index]
    }

    /// Says which process is which instance; a restart says it again.
    pub fn set_owner(&self, pid: u32, index: usize) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, owner| *owner != index);
        owners.insert(pid, index);
    }

    /// Stops what `from` sends to `to`; the other direction is left alone.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.change(from, to, |link| link.open = false);
    }

    /// Holds every byte from `from` to `to` back for `delay`.
    pub fn delay(&self, from: usize, to: usize, delay: Duration) {
        self.change(from, to, |link| link.delay = delay);
    }

    /// Opens every link and takes every delay away.
    pub fn heal(&self) {
        for link in self.links.iter().flatten() {
            link.send_replace(FREE);
        }
    }

    fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        self.links[from][to].send_modify(change);
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The proxy before one instance.
struct Front {
    to: usize,
    target: SocketAddr,
    owners: Arc<Mutex<HashMap<u32, usize>>>,
    /// Links from each instance to this one.
    forward: Vec<watch::Receiver<Link>>,
    /// Links from this instance to each.
    backward: Vec<watch::Receiver<Link>>,
}

impl Front {
    async fn run(self, listener: TcpListener) {
        // Dropping the set with this task drops every connection with it.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok((client, source)) = listener.accept().await else { continue };
            let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Ok(local) = client.local_addr() else { continue };
            let from = tokio::task::spawn_blocking(move || dialler(source, local, &owners)).await.ok().flatten();
            // A stranger, such as a test's own client, is never cut.
            let free = || watch::Sender::new(FREE).subscribe();
            let (forward, backward) = match from {
                Some(from) if from != self.to => (self.forward[from].clone(), self.backward[from].clone()),
                Some(_) | None => (free(), free()),
            };
            let target = self.target;
            connections.spawn(async move {
                let Ok(server) = TcpStream::connect(target).await else { return };
                if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
                    return;
                }
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                // An end of either direction that is not orderly ends both, as a reset does.
                let result = tokio::try_join!(
                    pump(client_read, server_write, forward),
                    pump(server_read, client_write, backward)
                );
                // Both sides see the connection close; there is nobody else to tell.
                drop(result);
            });
        }
    }
}

/// Moves bytes one way under the rule of one link.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut link: watch::Receiver<Link>,
) -> io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(WAITING_CHUNKS);
    let read = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 || sender.send((Instant::now(), Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((arrived, chunk)) = receiver.recv().await {
            let delay = link.borrow().delay;
            if !delay.is_zero() {
                tokio::time::sleep_until(arrived + delay).await;
            }
            opened(&mut link).await;
            to.write_all(&chunk).await?;
        }
        // A cut hides the end of a connection as well.
        opened(&mut link).await;
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(|((), ())| ())
}

async fn opened(link: &mut watch::Receiver<Link>) {
    // The sender is gone when the network is: then nothing is cut any more.
    if link.wait_for(|link| link.open).await.is_err() {}
}

/// Which instance opened the connection from `source` to `local`.
fn dialler(source: SocketAddr, local: SocketAddr, owners: &HashMap<u32, usize>) -> Option<usize> {
    process_of(source, local, owners.keys().copied()).and_then(|pid| owners.get(&pid).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(10);

    /// Two listeners behind proxies, where this process plays instance 0.
    async fn pair() -> (Proxies, TcpListener) {
        let own = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let network = Proxies::start(&[own.local_addr().unwrap(), other.local_addr().unwrap()]).await.unwrap();
        network.set_owner(std::process::id(), 0);
        (network, other)
    }

    async fn connect(network: &Proxies, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let (client, server) = tokio::join!(TcpStream::connect(network.address(1)), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    async fn arrives(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        from.write_all(b"x").await.unwrap();
        tokio::time::timeout(Duration::from_millis(100), to.read_u8()).await.is_ok()
    }

    #[tokio::test]
    async fn a_cut_stops_one_direction_and_healing_delivers_what_was_held() {
        let (network, listener) = pair().await;
        let (mut client, mut server) = connect(&network, &listener).await;
        assert!(arrives(&mut client, &mut server).await && arrives(&mut server, &mut client).await);
        network.cut_one_way(0, 1);
        assert!(!arrives(&mut client, &mut server).await);
        assert!(arrives(&mut server, &mut client).await, "the other direction is left alone");
        network.heal();
        tokio::time::timeout(WAIT, server.read_u8()).await.unwrap().unwrap();
        network.cut_one_way(0, 1);
        network.cut_one_way(1, 0);
        assert!(!arrives(&mut client, &mut server).await && !arrives(&mut server, &mut client).await);
    }

    #[tokio::test]
    async fn a_delay_holds_each_byte_back() {
        let (network, listener) = pair().await;
        let (mut client, mut server) = connect(&network, &listener).await;
        network.delay(0, 1, Duration::from_millis(60));
        let begin = Instant::now();
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(60));
    }

    #[tokio::test]
    async fn a_closed_connection_closes_the_other_side() {
        let (network, listener) = pair().await;
        let (client, mut server) = connect(&network, &listener).await;
        drop(client);
        let mut rest = Vec::new();
        tokio::time::timeout(WAIT, server.read_to_end(&mut rest)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_process_of_no_instance_is_never_cut() {
        let (network, listener) = pair().await;
        network.set_owner(u32::MAX, 0);
        network.cut_one_way(0, 1);
        network.cut_one_way(1, 0);
        let (mut client, mut server) = connect(&network, &listener).await;
        assert!(arrives(&mut client, &mut server).await);
    }
}
