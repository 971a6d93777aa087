//! HAProxy with our file, and Nginx with the guide's, in front of three instances.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use jepsen_lite::cluster::{Cluster, Options};
use openclaw_config::Secret;

use crate::{
    LOOK, OPENCLAW, SOON, Server, addressed, addresses, chat, command, free, get, installed, published, run,
    three_instances, wait_listening,
};

/// What the guide says, to the letter.
pub(crate) const ROUND_ROBIN: &str = include_str!("guide/nginx-round-robin.conf");
const IP_HASH: &str = include_str!("guide/nginx-ip-hash.conf");
const HEALTH_CHECKS: &str = include_str!("guide/nginx-health-checks.conf");
const SERVER: &str = include_str!("guide/nginx-server.conf");

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const AUTHORIZED: (&str, &str) = ("Authorization", "Bearer 0123456789abcdef0123456789abcdef");

/// A running Nginx, and where it listens.
pub(crate) struct Nginx {
    pub(crate) address: SocketAddr,
    _server: Server,
    _directory: tempfile::TempDir,
}

impl Nginx {
    /// Nginx with what stands in its http section: `listen 80;` is another address here.
    pub(crate) fn start(http: &str) -> Result<Self> {
        let (directory, address) = (tempfile::tempdir()?, free()?);
        ensure!(http.contains("listen 80;"), "no \"listen 80;\" in the file");
        let http = http.replace("listen 80;", &format!("listen {address};"));
        let at = directory.path().display();
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
            .concat();
        let main = format!(
            "worker_processes 2;\npid {at}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{temp}{http}\n}}\n"
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, main)?;
        let server = Server::start(command("nginx").args(["-e", "stderr", "-g", "daemon off;"]).arg("-c").arg(&file))?;
        wait_listening(address)?;
        Ok(Self { address, _server: server, _directory: directory })
    }

    /// With the guide's server and one of its upstreams.
    pub(crate) fn of_the_guide(upstream: &str, instances: [SocketAddr; 3]) -> Result<Self> {
        Self::start(&format!("{}{SERVER}", addressed(upstream, instances)?))
    }
}

/// The instances that answered `times` messages.
fn answered_by(address: SocketAddr, times: usize) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for n in 0..times {
        let (status, answer) = chat(address, "/api/v1/chat", &[AUTHORIZED], &format!("hello {n}"))?;
        ensure!(status == 200 && answer.contains(&format!("hello {n}")), "{answer}");
        let name = answer
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("x-openclaw-instance: ").map(str::to_owned));
        names.push(name.context("no instance in the answer's head")?);
    }
    names.sort();
    names.dedup();
    Ok(names)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_own_nginx_files_serve_as_they_stand() -> Result<()> {
    if !installed("nginx") {
        return Ok(());
    }
    // Where the guide's stream location passes another `Host` on, only an instance with a token is reached.
    let options = Options::new(OPENCLAW, 3).settings(|settings| settings.gateway.auth.token = Some(Secret::new(TOKEN)));
    let cluster = Cluster::start(options, SOON).await?;
    for (upstream, spread) in [(ROUND_ROBIN, 3), (IP_HASH, 1), (HEALTH_CHECKS, 3)] {
        let nginx = Nginx::of_the_guide(upstream, addresses(&cluster)?)?;
        // Two workers take turns of their own.
        let names = answered_by(nginx.address, 12)?;
        ensure!(names.len() == spread, "{names:?} with\n{upstream}");
        ensure!(get(nginx.address, "/api/v1/health")?.0 == 200);
        ensure!(get(nginx.address, "/")?.0 == 200, "the page");
        ensure!(get(nginx.address, "/metrics")?.0 == 401, "what a proxy forwards is not from this machine");

        // This Nginx passes `Host` on without its port, or none at all: the page that it serves must work all the same.
        let page =
            |origin, site| [AUTHORIZED, ("Host", "localhost:3000"), ("Origin", origin), ("Sec-Fetch-Site", site)];
        for path in ["/api/v1/chat", "/api/v1/chat/stream"] {
            let ours = page("http://localhost:3000", "same-origin");
            let (status, answer) = chat(nginx.address, path, &ours, "[tokens=5]")?;
            ensure!(status == 200 && answer.contains('5'), "{answer}");
            ensure!(path == "/api/v1/chat" || answer.contains("event: done"), "{answer}");
            let (status, answer) = chat(nginx.address, path, &page("http://evil.example", "cross-site"), "hello")?;
            ensure!(status == 403, "{answer}");
        }
    }
    Ok(())
}

/// The published file, with other addresses.
fn haproxy_file(directory: &Path, bind: SocketAddr, instances: [SocketAddr; 3]) -> Result<std::path::PathBuf> {
    haproxy_file_of(&published("haproxy.cfg")?, directory, bind, instances)
}

fn haproxy_file_of(
    text: &str,
    directory: &Path,
    bind: SocketAddr,
    instances: [SocketAddr; 3],
) -> Result<std::path::PathBuf> {
    ensure!(text.contains("bind :3000"), "no \"bind :3000\" in the file");
    // `server openclaw-1 openclaw-1:3000`: the name stays. The address is that of a name which the hosts file has, and DNS
    // need not have.
    let text = addressed(text, instances)?
        .replace(" 127.0.0.1:", " ipv4@localhost:")
        .replace("bind :3000", &format!("bind {bind}"));
    let file = directory.join("haproxy.cfg");
    std::fs::write(&file, text)?;
    Ok(file)
}

#[test]
fn haproxy_accepts_its_file_without_a_warning() -> Result<()> {
    if !installed("haproxy") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let file = haproxy_file(directory.path(), free()?, [free()?, free()?, free()?])?;
    let said = run(command("haproxy").args(["-c", "-V", "-f"]).arg(file))?;
    ensure!(!said.to_lowercase().contains("warning"), "{said}");
    Ok(())
}

/// HAProxy's own resolver takes a server down whose name DNS does not know, half a minute later: a hosts file would not do.
#[test]
fn haproxy_takes_names_as_the_machine_does_and_asks_dns_only_where_that_is_taken_in() -> Result<()> {
    let file = published("haproxy.cfg")?;
    let active = |line: &&str| !line.trim_start().starts_with('#');
    ensure!(!file.lines().filter(active).any(|line| line.contains("resolvers")), "it asks DNS");
    if !installed("haproxy") {
        return Ok(());
    }
    // As the comment says: three lines taken in, and one in place of another.
    let lines = file.lines().filter(|line| !line.starts_with("    default-server "));
    let text: String = lines
        .map(|line| {
            let taken_in = ["#resolvers ", "#    parse-resolv-conf", "#    hold ", "    #default-server "];
            let line = if taken_in.iter().any(|start| line.starts_with(start)) {
                line.replacen('#', "", 1)
            } else {
                line.to_owned()
            };
            line + "\n"
        })
        .collect();
    ensure!(text.lines().filter(active).filter(|line| line.contains("resolvers system")).count() == 2, "{text}");
    let directory = tempfile::tempdir()?;
    let file = haproxy_file_of(&text, directory.path(), free()?, [free()?, free()?, free()?])?;
    let said = run(command("haproxy").args(["-c", "-V", "-f"]).arg(file))?;
    ensure!(!said.to_lowercase().contains("warning"), "{said}");
    Ok(())
}

/// Waits until HAProxy has seen the state of its servers.
async fn until_served_by(address: SocketAddr, wanted: &[&str]) -> Result<()> {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let names = answered_by(address, 9)?;
        if names == wanted {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "served by {names:?}, not {wanted:?}");
        tokio::time::sleep(LOOK).await;
    }
}

fn maintenance(cluster: &Cluster, index: usize, on: bool) -> Result<()> {
    let body = format!("{{\"on\": {on}}}");
    let headers = [("Content-Type", "application/json")];
    let (status, answer) = crate::ask(cluster.instances()[index].http, "POST", "/api/v1/maintenance", &headers, &body)?;
    ensure!(status == 200, "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_haproxy_no_client_sees_that_an_instance_drains_or_dies() -> Result<()> {
    if !installed("haproxy") {
        return Ok(());
    }
    let mut cluster = three_instances().await?;
    let (directory, address) = (tempfile::tempdir()?, free()?);
    let file = haproxy_file(directory.path(), address, addresses(&cluster)?)?;
    let _haproxy = Server::start(command("haproxy").arg("-db").arg("-f").arg(file))?;
    wait_listening(address)?;
    until_served_by(address, &["node-1", "node-2", "node-3"]).await?;
    let (status, stream) = chat(address, "/api/v1/chat/stream", &[], "[tokens=5]")?;
    ensure!(status == 200 && stream.contains("event: done"), "{stream}");

    maintenance(&cluster, 0, true)?;
    until_served_by(address, &["node-2", "node-3"]).await?;
    maintenance(&cluster, 0, false)?;
    until_served_by(address, &["node-1", "node-2", "node-3"]).await?;

    // Every message from here on must be answered, also those that were on their way to the one that is killed.
    cluster.instance(2).process.kill()?;
    until_served_by(address, &["node-1", "node-2"]).await?;
    Ok(())
}
