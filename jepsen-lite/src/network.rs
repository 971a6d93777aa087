//! What stands between sockets: a proxy in front of each peer listener with a switch per directed link, and a balancer.
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
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

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
pub struct Network {
    /// `links[from][to]`
    links: Vec<Vec<watch::Sender<Link>>>,
    addresses: Vec<SocketAddr>,
    owners: Arc<Mutex<HashMap<u32, usize>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Network {
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

    /// Stops both directions between two instances.
    pub fn cut(&self, a: usize, b: usize) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts one instance off from all others.
    pub fn isolate(&self, index: usize) {
        for other in (0..self.links.len()).filter(|&other| other != index) {
            self.cut(index, other);
        }
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

impl Drop for Network {
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
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = socket_inode(&table, source, local)?;
    let link = format!("socket:[{inode}]");
    owners.iter().find(|(pid, _)| has_open(**pid, Path::new(&link))).map(|(_, &index)| index)
}

/// Which of `pids` holds the connection from `source` to `local`, as long as it is open.
pub fn process_of(source: SocketAddr, local: SocketAddr, pids: impl IntoIterator<Item = u32>) -> Option<u32> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = socket_inode(&table, source, local)?;
    let link = format!("socket:[{inode}]");
    pids.into_iter().find(|pid| has_open(*pid, Path::new(&link)))
}

fn has_open(pid: u32, link: &Path) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == link))
}

/// The inode of the socket bound to `local` and connected to `remote`, from the text of /proc/net/tcp.
fn socket_inode(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<&str> {
    let (local, remote) = (kernel_address(local)?, kernel_address(remote)?);
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        (fields.next()? == local && fields.next()? == remote).then(|| fields.nth(6)).flatten()
    })
}

/// As the kernel prints it: the address as a little-endian number, the port as it is.
fn kernel_address(address: SocketAddr) -> Option<String> {
    match address {
        SocketAddr::V4(v4) => Some(format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), v4.port())),
        SocketAddr::V6(_) => None,
    }
}

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
    use super::*;

    const WAIT: Duration = Duration::from_secs(10);

    #[test]
    fn the_kernels_table_names_the_socket() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0\n   \
             1: 0100007F:9C40 0100007F:0BB8 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0\n";
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(socket_inode(table, address("127.0.0.1:40000"), address("127.0.0.1:3000")), Some("222"));
        assert_eq!(socket_inode(table, address("127.0.0.1:3000"), address("127.0.0.1:40000")), None);
        assert_eq!(socket_inode(table, address("[::1]:40000"), address("127.0.0.1:3000")), None);
    }

    /// Two listeners behind proxies, where this process plays instance 0.
    async fn pair() -> (Network, TcpListener) {
        let own = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let network = Network::start(&[own.local_addr().unwrap(), other.local_addr().unwrap()]).await.unwrap();
        network.set_owner(std::process::id(), 0);
        (network, other)
    }

    async fn connect(network: &Network, listener: &TcpListener) -> (TcpStream, TcpStream) {
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
        network.isolate(1);
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
        network.isolate(1);
        let (mut client, mut server) = connect(&network, &listener).await;
        assert!(arrives(&mut client, &mut server).await);
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
