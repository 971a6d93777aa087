//! A balancer that people run, Nginx or HAProxy, with a configuration file as it is published: its addresses alone are
//! replaced.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const START: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// Which program reads the file, and where in its configuration the file belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nginx, inside of `http {}`.
    Nginx,
    /// Nginx, beside it.
    NginxStream,
    Haproxy,
}

/// A running balancer; dropping it ends it.
#[derive(Debug)]
pub struct Program {
    address: SocketAddr,
    child: Child,
}

impl Program {
    /// Starts the balancer in front of `instances`, which the file calls `openclaw-1:3000` and so on. `directory` takes its files.
    ///
    /// # Errors
    /// When the program is not installed, refuses the file, or does not listen.
    pub fn start(kind: Kind, file: &Path, directory: &Path, instances: &[SocketAddr]) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = address.context("find a port for the balancer")?;
        let text = addressed(&text, address, instances)?;
        let path = directory.join("balancer.conf");
        let mut command = match kind {
            Kind::Nginx | Kind::NginxStream => {
                std::fs::write(&path, nginx(kind, &text, directory)).context("write Nginx's configuration")?;
                let mut command = Command::new("nginx");
                command.args(["-e", "stderr", "-g", "daemon off;", "-c"]).arg(&path);
                command
            }
            Kind::Haproxy => {
                std::fs::write(&path, text).context("write HAProxy's configuration")?;
                let mut command = Command::new("haproxy");
                command.args(["-db", "-f"]).arg(&path);
                command
            }
        };
        let log = std::fs::File::create(directory.join("balancer.log")).context("make the balancer's log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the balancer's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {:?}", command.get_program()))?;
        let mut program = Self { address, child };
        program.wait(&directory.join("balancer.log"))?;
        Ok(program)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn wait(&mut self, log: &Path) -> Result<()> {
        let begin = Instant::now();
        while std::net::TcpStream::connect(self.address).is_err() {
            let ended = self.child.try_wait().context("look at the balancer")?;
            let said = || std::fs::read_to_string(log).unwrap_or_default();
            if let Some(ended) = ended {
                bail!("the balancer ended with {ended}: {}", said());
            }
            ensure!(begin.elapsed() < START, "the balancer does not listen: {}", said());
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Asked, so that Nginx's master ends its worker too: one that is killed leaves it behind. Either may fail because it has
        // ended already.
        let pid = i32::try_from(self.child.id()).map(Pid::from_raw);
        pid.map(|pid| kill(pid, Signal::SIGTERM).ok()).ok();
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < START {
            std::thread::sleep(POLL);
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The file with other addresses than the published ones, which resolve in the published network alone.
fn addressed(text: &str, listen: SocketAddr, instances: &[SocketAddr]) -> Result<String> {
    let mut changed = text.to_owned();
    for (n, instance) in (1..).zip(instances) {
        let name = format!("openclaw-{n}:3000");
        ensure!(changed.contains(&name), "the file does not name {name}");
        changed = changed.replace(&name, &instance.to_string());
    }
    for (published, here) in [
        ("listen 80;", format!("listen {listen};")),
        ("listen 3000;", format!("listen {listen};")),
        ("bind :3000", format!("bind {listen}")),
    ] {
        changed = changed.replace(published, &here);
    }
    ensure!(changed.contains(&listen.to_string()), "the file listens on neither port 80 nor 3000");
    Ok(changed)
}

/// A whole configuration around the part that is published, with everything below `directory`.
fn nginx(kind: Kind, part: &str, directory: &Path) -> String {
    let mut paths = String::new();
    for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let place: PathBuf = directory.join(name);
        writeln!(paths, "{name}_temp_path {};", place.display()).ok();
    }
    let head = format!(
        "worker_processes 1;\npid {}/balancer.pid;\nerror_log stderr;\nevents {{ worker_connections 4096; }}\n",
        directory.display()
    );
    match kind {
        Kind::Nginx => format!("{head}http {{\naccess_log off;\n{paths}{part}\n}}\n"),
        Kind::NginxStream | Kind::Haproxy => {
            // Debian has the module in a file of its own, which only its own configuration loads.
            let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
            let load = if module.exists() { format!("load_module {};\n", module.display()) } else { String::new() };
            format!("{load}{head}http {{\naccess_log off;\n{paths}}}\n{part}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_replaced_and_those_that_are_missing_are_told() {
        let listen: SocketAddr = "127.0.0.1:9000".parse().unwrap();
        let instances: Vec<SocketAddr> = vec!["127.0.0.1:9001".parse().unwrap(), "127.0.0.1:9002".parse().unwrap()];
        let text = "server openclaw-1:3000; server openclaw-2:3000; listen 80;";
        let changed = addressed(text, listen, &instances).unwrap();
        assert_eq!(changed, "server 127.0.0.1:9001; server 127.0.0.1:9002; listen 127.0.0.1:9000;");
        assert!(addressed("server openclaw-1:3000; listen 80;", listen, &instances).is_err());
        assert!(addressed("openclaw-1:3000 openclaw-2:3000 bind :8443", listen, &instances).is_err());
        let haproxy = addressed("bind :3000\nserver a openclaw-1:3000\nserver b openclaw-2:3000", listen, &instances);
        assert!(haproxy.unwrap().starts_with("bind 127.0.0.1:9000\n"));
    }
}
