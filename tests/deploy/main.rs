//! The files of `deploy/`, judged by the programs that read them, and the published guide's own files, which people copy.
//!
//! A program that is missing is said to be, and its test skipped; on CI it fails (`scripts/setup.sh --tests` installs them).
//! `tests/nginx.rs` has the two Nginx files.

mod balancers;
mod containers;
mod docker;
mod monitoring;
mod rolling;
mod systemd;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::ports::Ports;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use openclaw_config::{Config, Loaded, Sources, load};

/// The binary under test.
const OPENCLAW: &str = env!("CARGO_BIN_EXE_openclaw");
/// For anything that ends by itself.
const SOON: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
/// Longer than a gateway takes from SIGTERM to its end beside `gateway.shutdown.drainMs`: the sum of the other limits in
/// `app::App::stop`, and some for storage.
const BESIDE_DRAIN: Duration = Duration::from_secs(35);

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

/// The text of a published file.
fn published(name: &str) -> Result<String> {
    std::fs::read_to_string(path(name)).with_context(|| format!("read deploy/{name}"))
}

/// Whether a program is there. On CI a missing one is a failure.
fn installed(program: &str) -> bool {
    let found = program_at(program).is_some();
    assert!(found || std::env::var_os("CI").is_none(), "{program} is not installed, and CI needs it");
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Debian keeps servers where only root looks.
fn program_at(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.map(|directory| directory.join(program)).find(|file| file.is_file())
}

fn command(program: &str) -> Command {
    Command::new(program_at(program).unwrap_or_else(|| program.into()))
}

/// Runs it to its end, which must be a good one, and gives all that it said.
fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(said)
}

/// The settings of an instance that is started with these environment variables.
fn settings(file: Option<PathBuf>, environment: &BTreeMap<String, String>) -> Result<Loaded> {
    let env = |name: &str| environment.get(name).cloned();
    load(Sources { file, env: &env, overrides: Vec::new(), lenient: false })
        .map_err(|errors| anyhow::anyhow!("{errors}"))
        .context("the settings are refused")
}

/// YAML, one value for each document in it.
fn yaml(text: &str) -> Result<Vec<serde_json::Value>> {
    serde_saphyr::from_multiple(text).context("parse YAML")
}

/// A string that must be there.
fn text(value: &serde_json::Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is not a text"))
}

/// A server that a test started: asked to stop when it is dropped.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("start {command:?}"))?;
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM, so that a master tells its workers; a killed one leaves them behind.
        if let Ok(pid) = i32::try_from(self.0.id())
            && kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok()
            && let Err(error) = self.0.wait()
        {
            eprintln!("cannot reap a server: {error}");
        }
    }
}

/// Longer than a gateway with these settings takes from SIGTERM to its end. What stops instances must allow for it.
fn longest_stop(config: &Config) -> Duration {
    config.gateway.shutdown.drain + BESIDE_DRAIN
}

/// An address for a server, which no other test is given.
fn free() -> Result<SocketAddr> {
    static RESERVED: Mutex<Vec<Ports>> = Mutex::new(Vec::new());
    let ports = Ports::reserve(1)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0]));
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(ports);
    Ok(address)
}

/// Waits until something answers there.
fn wait_listening(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while let Err(error) = TcpStream::connect(address) {
        ensure!(Instant::now() < deadline, "nobody listens on {address}: {error}");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// One request; the whole answer, head and body.
fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, SOON).context("connect")?;
    stream.set_read_timeout(Some(SOON))?;
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request.push_str(&format!("Host: {address}\r\n"));
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    write!(stream, "{request}\r\n{body}").context("send")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("receive")?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("an answer without a head")? + 4;
    let (head, body) = answer.split_at(end);
    let head = String::from_utf8_lossy(head).into_owned();
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { dechunked(body)? } else { body.to_vec() };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("no status in {head:?}"))?, head + &String::from_utf8_lossy(&body)))
}

fn dechunked(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|bytes| bytes == b"\r\n").context("a chunk without a length")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line])?, 16).context("a chunk's length")?;
        let chunk = rest.get(line + 2..line + 2 + length).context("a chunk that breaks off")?;
        if length == 0 {
            return Ok(body);
        }
        body.extend_from_slice(chunk);
        rest = rest.get(line + 4 + length..).context("a chunk without an end")?;
    }
}

fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    ask(address, "GET", path, &[], "")
}

/// A chat message as a client sends it that knows of nothing: no key, no session.
fn chat(address: SocketAddr, path: &str, headers: &[(&str, &str)], message: &str) -> Result<(u16, String)> {
    let body = serde_json::json!({"message": message}).to_string();
    ask(address, "POST", path, &[&[("Content-Type", "application/json")], headers].concat(), &body)
}

async fn three_instances() -> Result<Cluster> {
    Cluster::start(Options::new(OPENCLAW, 3), SOON).await
}

/// The public addresses of three instances.
fn addresses(cluster: &Cluster) -> Result<[SocketAddr; 3]> {
    let all: Vec<SocketAddr> = cluster.instances().iter().map(|instance| instance.http).collect();
    all.try_into().map_err(|all| anyhow::anyhow!("not three instances: {all:?}"))
}

/// A file with the instances' addresses in place of the published names, which resolve only in the published network.
fn addressed(text: &str, instances: [SocketAddr; 3]) -> Result<String> {
    let mut text = text.to_owned();
    for (n, instance) in (1..).zip(instances) {
        let name = format!("openclaw-{n}:3000");
        if !text.contains(&name) {
            bail!("{name} is not in the file");
        }
        text = text.replace(&name, &instance.to_string());
    }
    Ok(text)
}
