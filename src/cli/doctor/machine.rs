//! What the machine gives a process: file descriptors, and the ports.

use std::io;
use std::net::{SocketAddr, TcpListener};

use nix::sys::resource::{Resource, getrlimit};

use super::{Finding, Patient};

/// Beside connections: tables of the database, logs, sockets between instances.
const OTHER_FILES: u64 = 1024;

pub(super) struct Machine {
    /// Of this shell, which need not be the gateway's.
    files: Result<u64, String>,
    max_connections: u64,
    /// The instance runs, so its ports are its own.
    running: bool,
    ports: Vec<Port>,
}

struct Port {
    setting: &'static str,
    address: SocketAddr,
    /// Why nobody can listen there.
    refused: Option<(io::ErrorKind, String)>,
}

pub(super) fn measure(patient: &Patient) -> Machine {
    let running = patient.running;
    let listen = patient.config.gateway.listen().into_iter().map(|address| ("gateway.port", address));
    let wanted = listen.chain([("cluster.peer.listen", patient.config.cluster.peer.listen)]);
    let ports = wanted
        .map(|(setting, address)| {
            let refused = match running {
                true => None,
                false => TcpListener::bind(address).err().map(|error| (error.kind(), error.to_string())),
            };
            Port { setting, address, refused }
        })
        .collect();
    Machine {
        // The gateway raises the other one itself.
        files: getrlimit(Resource::RLIMIT_NOFILE).map(|(_, hard)| hard).map_err(|error| error.to_string()),
        max_connections: u64::from(patient.config.gateway.limits.max_connections),
        running,
        ports,
    }
}

pub(super) fn judge(machine: &Machine) -> Vec<Finding> {
    let mut findings = vec![files(machine)];
    findings.extend(machine.ports.iter().map(|port| judge_port(port, machine.running)));
    findings
}

fn files(machine: &Machine) -> Finding {
    const CHECK: &str = "open files";
    let wanted = machine.max_connections + OTHER_FILES;
    match &machine.files {
        Err(error) => Finding::skipped(CHECK, format!("the limit cannot be asked for: {error}")),
        Ok(limit) if *limit < wanted => Finding::warning(
            CHECK,
            format!("at most {limit} here, and gateway.limits.maxConnections is {}", machine.max_connections),
            format!("raise the gateway's limit to {wanted} (LimitNOFILE, ulimit -n), or lower maxConnections"),
        ),
        Ok(limit) => Finding::ok(CHECK, format!("at most {limit} here")),
    }
}

fn judge_port(port: &Port, running: bool) -> Finding {
    const CHECK: &str = "ports";
    let Port { setting, address, refused } = port;
    match refused {
        None if running => Finding::ok(CHECK, format!("{setting}: {address} is the running instance's")),
        None => Finding::ok(CHECK, format!("{setting}: {address} is free")),
        Some((io::ErrorKind::AddrInUse, _)) => Finding::problem(
            CHECK,
            format!("{setting}: {address} is in use, and the instance does not answer"),
            format!(
                "see who listens there (ss -ltnp 'sport = :{}'): stop what is not the gateway, or use another port",
                address.port()
            ),
        ),
        Some((_, error)) => Finding::problem(
            CHECK,
            format!("{setting}: {address} cannot be listened on: {error}"),
            "use an address that this machine has, and a port from 1024 on",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn machine(files: u64, running: bool, refused: Option<io::ErrorKind>) -> Vec<Level> {
        let refused = refused.map(|kind| (kind, kind.to_string()));
        let port = Port { setting: "gateway.port", address: SocketAddr::from(([127, 0, 0, 1], 3000)), refused };
        let machine = Machine { files: Ok(files), max_connections: 10_000, running, ports: vec![port] };
        judge(&machine).into_iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn few_files_are_warned_of_and_a_port_of_somebody_else_is_a_problem() {
        assert_eq!(machine(20_000, true, None), [Level::Ok, Level::Ok]);
        assert_eq!(machine(1024, true, None), [Level::Warning, Level::Ok]);
        for kind in [io::ErrorKind::AddrInUse, io::ErrorKind::AddrNotAvailable] {
            assert_eq!(machine(20_000, false, Some(kind)), [Level::Ok, Level::Problem]);
        }
    }
}
