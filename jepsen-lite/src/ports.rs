//! Ports for programs that we start, which stay theirs while they are down.
//!
//! A port is reserved by a socket with an abstract name, which the kernel takes back when its process ends, however it ends:
//! harnesses that run side by side never choose the same one. It is never one that the kernel gives to outgoing connections.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::{Deref, Range, RangeInclusive};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use anyhow::{Context, Result, ensure};
use rand::Rng as _;

/// Where to choose from, but for [`outgoing`].
const RANGE: Range<u16> = 12_000..32_000;
/// How often to try for each that is wanted: most of the range may belong to outgoing connections.
const TRIES: usize = 1_000;

/// Ports on loopback that nobody listened on, all different; no other harness chooses them until this is dropped.
#[derive(Debug)]
pub struct Ports {
    ports: Vec<u16>,
    /// By which they are reserved; nobody ever connects to them.
    _reservations: Vec<UnixListener>,
}

impl Ports {
    /// # Errors
    /// When too few are found after many tries.
    pub fn reserve(count: usize) -> Result<Self> {
        let taken = outgoing()?;
        let mut rng = rand::rng();
        let (mut ports, mut reservations) = (Vec::new(), Vec::new());
        for _ in 0..count * TRIES {
            if ports.len() == count {
                break;
            }
            let port = rng.random_range(RANGE);
            if taken.contains(&port) {
                continue;
            }
            if let Some(reservation) = reservation(port)? {
                ports.push(port);
                reservations.push(reservation);
            }
        }
        ensure!(ports.len() == count, "only {} of {count} free ports were found", ports.len());
        Ok(Self { ports, _reservations: reservations })
    }
}

impl Deref for Ports {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        &self.ports
    }
}

/// Reserves `port`, unless it is reserved already or somebody listens on it.
fn reservation(port: u16) -> Result<Option<UnixListener>> {
    let name = UnixAddr::from_abstract_name(format!("openclaw-port-{port}")).context("name a reservation")?;
    // It comes first: whoever has it is the only one of us who tries the port.
    let Ok(reservation) = UnixListener::bind_addr(&name) else { return Ok(None) };
    let free = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok();
    Ok(free.then_some(reservation))
}

/// From which the kernel takes a port for an outgoing connection, which may be that of a program that is down just now.
fn outgoing() -> Result<RangeInclusive<u16>> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = std::fs::read_to_string(FILE).with_context(|| format!("read {FILE}"))?;
    parse(&text).with_context(|| format!("two ports in {FILE}: {text:?}"))
}

fn parse(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    Some(first.parse().ok()?..=last.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_and_not_those_of_outgoing_connections() {
        let ports = Ports::reserve(20).unwrap();
        let mut unique = ports.to_vec();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 20);
        let outgoing = outgoing().unwrap();
        assert!(ports.iter().all(|port| RANGE.contains(port) && !outgoing.contains(port)));
    }

    #[test]
    fn a_port_is_reserved_while_nobody_listens_on_it_and_until_it_is_dropped() {
        let ports = Ports::reserve(1).unwrap();
        let port = ports[0];
        drop(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
        assert!(reservation(port).unwrap().is_none());
        drop(ports);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(reservation(port).unwrap().is_none(), "somebody listens there");
        drop(listener);
        assert!(reservation(port).unwrap().is_some());
    }

    #[test]
    fn the_kernels_range_is_read_and_anything_else_refused() {
        assert_eq!(parse("32768\t60999\n"), Some(32768..=60999));
        assert_eq!(parse("1024 65535"), Some(1024..=65535));
        for text in ["", "32768", "32768 many", "0 70000"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
