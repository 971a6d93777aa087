//! Who is on the switch: the instances, each in a namespace of its own, and the harness. Addresses, names, and what makes them.
//!
//! Everybody is told everybody's hardware address when the network is made, so nobody has to ask for one: a cut or a lossy link
//! then never looks like a missing neighbour, and the switch has no broadcasts to copy.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};

use super::tools::{self, IP};

/// Where the harness is.
pub const CONTROLLER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
/// On the switch, the harness's loopback.
pub(super) const LOOPBACK: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 253);
/// Instances beyond it would come near the controller's address.
const MOST: usize = 64;
/// What an instance's interface is called in its namespace.
pub(super) const INTERFACE: &str = "eth0";

/// The address of an instance, counted from 0.
pub fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(index + 1).unwrap_or(u8::MAX))
}

/// One plug of the switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    /// Absent: the harness's own.
    pub(super) namespace: Option<String>,
    pub(super) address: Ipv4Addr,
    pub(super) hardware: [u8; 6],
    /// What its TAP device is called when it is made.
    pub(super) device: String,
}

impl Port {
    /// All addresses that it sends from.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        [Some(self.address), self.namespace.is_none().then_some(LOOPBACK)].into_iter().flatten()
    }

    fn hardware_text(&self) -> String {
        self.hardware.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// The ports of so many instances; the last one is the harness's.
pub(super) fn all(instances: usize) -> Result<Vec<Port>> {
    ensure!((1..=MOST).contains(&instances), "a lab has 1 to {MOST} instances");
    let port = |index: usize| {
        let controller = index == instances;
        Port {
            namespace: (!controller).then(|| format!("node-{}", index + 1)),
            address: if controller { CONTROLLER } else { address(index) },
            // Locally administered, and the last bytes of the address.
            hardware: [0x02, 0, 0, 77, 0, u8::try_from(index + 1).unwrap_or(u8::MAX)],
            device: format!("lab{index}"),
        }
    };
    Ok((0..=instances).map(port).collect())
}

/// Makes the namespaces and gives each its device; the devices are there already.
pub(super) fn connect(ports: &[Port]) -> Result<()> {
    let mut script = String::new();
    for port in ports {
        if let Some(namespace) = &port.namespace {
            script.push_str(&format!("netns add {namespace}\nlink set dev {} netns {namespace}\n", port.device));
        }
    }
    batch(None, &script).context("make namespaces")?;
    for port in ports {
        batch(port.namespace.as_deref(), &set_up(port, ports)).with_context(|| format!("connect {}", port.address))?;
    }
    Ok(())
}

/// Removes the namespaces, and with them all that is in them.
pub(super) fn disconnect(ports: &[Port]) -> Result<()> {
    let namespaces = ports.iter().filter_map(|port| port.namespace.as_ref());
    batch(None, &namespaces.map(|namespace| format!("netns delete {namespace}\n")).collect::<String>())
}

/// What `ip` is told in the namespace of a port.
fn set_up(port: &Port, ports: &[Port]) -> String {
    let (device, address) = (&port.device, port.address);
    let mut script = format!("link set dev {device} address {}\n", port.hardware_text());
    let device = if port.namespace.is_some() {
        script.push_str(&format!("link set lo up\nlink set dev {device} name {INTERFACE}\n"));
        script.push_str(&format!("address add {address}/24 dev {INTERFACE}\nlink set dev {INTERFACE} up\n"));
        INTERFACE
    } else {
        // The address itself is on `lo` since the namespaces were entered.
        script.push_str(&format!("link set dev {device} up\nroute add 10.77.0.0/24 dev {device} src {address}\n"));
        device
    };
    for other in ports.iter().filter(|other| *other != port) {
        let hardware = other.hardware_text();
        for address in other.addresses() {
            script.push_str(&format!("neighbour add {address} lladdr {hardware} dev {device} nud permanent\n"));
        }
    }
    script
}

fn batch(namespace: Option<&str>, script: &str) -> Result<()> {
    let mut command = IP.command()?;
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    tools::start(command.args(["-batch", "-"]), script)?.wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_an_address_of_its_own_and_the_last_is_the_harness() {
        let ports = all(3).unwrap();
        let addresses: Vec<String> = ports.iter().map(|port| port.address.to_string()).collect();
        assert_eq!(addresses, ["10.77.0.1", "10.77.0.2", "10.77.0.3", "10.77.0.254"]);
        assert_eq!(ports[3].namespace, None);
        assert!(all(0).is_err() && all(MOST + 1).is_err());
    }

    #[test]
    fn each_is_told_all_the_others() {
        let ports = all(2).unwrap();
        told(
            &set_up(&ports[0], &ports),
            "link set dev lab0 address 02:00:00:4d:00:01\nlink set lo up\nlink set dev lab0 name eth0\n\
             address add 10.77.0.1/24 dev eth0\nlink set dev eth0 up\n\
             neighbour add 10.77.0.2 lladdr 02:00:00:4d:00:02 dev eth0 nud permanent\n\
             neighbour add 10.77.0.254 lladdr 02:00:00:4d:00:03 dev eth0 nud permanent\n\
             neighbour add 10.77.0.253 lladdr 02:00:00:4d:00:03 dev eth0 nud permanent\n",
        );
        told(
            &set_up(&ports[2], &ports),
            "link set dev lab2 address 02:00:00:4d:00:03\nlink set dev lab2 up\n\
             route add 10.77.0.0/24 dev lab2 src 10.77.0.254\n\
             neighbour add 10.77.0.1 lladdr 02:00:00:4d:00:01 dev lab2 nud permanent\n\
             neighbour add 10.77.0.2 lladdr 02:00:00:4d:00:02 dev lab2 nud permanent\n",
        );
    }

    fn told(found: &str, expected: &str) {
        assert_eq!(found.lines().collect::<Vec<_>>(), expected.lines().collect::<Vec<_>>());
    }
}
