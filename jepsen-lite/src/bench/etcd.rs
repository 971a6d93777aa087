//! A three-member etcd on loopback, from Debian's `etcd-server`, to be measured beside the gateway.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prost::Message;

use super::load::{self, Call};
use crate::client::Protocol;
use crate::ports::Ports;
use crate::process::{Process, Program};

const MEMBERS: usize = 3;
const POLL: Duration = Duration::from_millis(50);
/// etcd's own method for a write: `KV.Put` of its public API.
const PUT: &str = "/etcdserverpb.KV/Put";

/// The two fields of `etcdserverpb.PutRequest` that a plain write needs.
#[derive(Clone, PartialEq, Message)]
pub struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

impl PutRequest {
    /// # Errors
    /// When it is too large for a gRPC message.
    pub fn call(&self) -> Result<Call> {
        Call::grpc(PUT, self)
    }
}

/// The members; dead when dropped.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Process>,
    clients: Vec<SocketAddr>,
    _ports: Ports,
}

impl Etcd {
    /// Starts three members with their data in `directory` and waits until each of them has taken a write.
    ///
    /// # Errors
    /// When one ends, or takes no write in time.
    pub async fn start(etcd: &Path, directory: &Path, within: Duration) -> Result<Self> {
        let ports = Ports::reserve(MEMBERS * 2)?;
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let clients: Vec<SocketAddr> = ports[..MEMBERS].iter().copied().map(address).collect();
        let peers: Vec<SocketAddr> = ports[MEMBERS..].iter().copied().map(address).collect();
        let all: Vec<String> = peers.iter().zip(1..).map(|(peer, n)| format!("etcd-{n}=http://{peer}")).collect();
        let mut members = Vec::new();
        for (index, (client, peer)) in clients.iter().zip(&peers).enumerate() {
            let name = format!("etcd-{}", index + 1);
            let data = directory.join(&name);
            let arguments = [
                ("--name", name.clone()),
                ("--listen-client-urls", format!("http://{client}")),
                ("--advertise-client-urls", format!("http://{client}")),
                ("--listen-peer-urls", format!("http://{peer}")),
                ("--initial-advertise-peer-urls", format!("http://{peer}")),
                ("--initial-cluster", all.join(",")),
                ("--initial-cluster-state", "new".to_owned()),
                ("--log-level", "warn".to_owned()),
            ];
            let mut arguments: Vec<_> =
                arguments.into_iter().flat_map(|(name, value)| [name.into(), value.into()]).collect();
            arguments.extend(["--data-dir".into(), data.into()]);
            let log = directory.join(format!("{name}.log"));
            let program =
                Program { executable: etcd.into(), through: Vec::new(), arguments, environment: Vec::new(), log };
            let mut member = Process::new(program);
            member.start()?;
            members.push(member);
        }
        let mut started = Self { members, clients, _ports: ports };
        started.wait_writable(within).await?;
        Ok(started)
    }

    /// Client addresses, the leader's first.
    ///
    /// # Errors
    /// When no member says that it leads.
    pub async fn targets(&self) -> Result<Vec<SocketAddr>> {
        let mut targets = Vec::new();
        for (index, &client) in self.clients.iter().enumerate() {
            if is_leader(client).await? {
                targets.extend(self.clients.iter().cycle().skip(index).take(MEMBERS).copied());
            }
        }
        ensure!(targets.len() == MEMBERS, "no etcd member, or more than one, says that it leads");
        Ok(targets)
    }

    pub fn members(&self) -> &[Process] {
        &self.members
    }

    async fn wait_writable(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let call = PutRequest { key: b"ready".to_vec(), value: b"yes".to_vec() }.call()?;
        for (member, &client) in self.members.iter_mut().zip(&self.clients) {
            while let Err(error) = load::once(client, Protocol::H2c, &call).await {
                member.ensure_running()?;
                ensure!(Instant::now() < deadline, "etcd takes no writes: {error:#}\n{}", member.log_tail());
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }
}

/// Its metrics say it; the gRPC method that does so too would need a larger message.
async fn is_leader(client: SocketAddr) -> Result<bool> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(client).await.context("connect to etcd")?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {client}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("ask etcd for metrics")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context("read etcd's metrics")?;
    Ok(answer.lines().any(|line| line == "etcd_server_is_leader 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_real_etcd_takes_our_writes() {
        let etcd = Path::new("/usr/bin/etcd");
        if !etcd.exists() {
            eprintln!("skipped: no /usr/bin/etcd (Debian: etcd-server)");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(etcd, directory.path(), Duration::from_secs(60)).await.unwrap();
        let targets = etcd.targets().await.unwrap();
        let calls: Vec<_> = (0..4)
            .map(|n| PutRequest { key: format!("k{n}").into_bytes(), value: vec![b'x'; 256] }.call().unwrap())
            .collect();
        let options = load::Options {
            targets,
            protocol: Protocol::H2c,
            connections: 2,
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(500),
        };
        let outcome = load::run(&options, &calls, || ()).await.unwrap();
        assert_eq!((outcome.errors, outcome.first_error), (0, None));
        assert!(!outcome.samples.is_empty());
    }
}
