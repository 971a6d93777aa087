//! An instance's loopback leads to the harness's own.
//!
//! Fakes listen on loopback, and instances are told so: a gateway sends a bot's token in the clear to nobody but its own machine.
//! In a namespace of its own nobody else is there, so what it sends to 127.0.0.1 by TCP goes over the switch to the harness, by
//! way of an address that stands for it, [`LOOPBACK`]. The harness sees it come from the instance's address.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::ports::{INTERFACE, LOOPBACK, Port};
use super::tools::{self, IP, NFT};

/// Sets the two translations up, of each instance and of the harness.
pub(super) fn join(ports: &[Port]) -> Result<()> {
    let started: Vec<_> = ports.iter().map(start).collect::<Result<_>>()?;
    started.into_iter().try_for_each(|one| one.wait().context("join loopbacks"))
}

fn start(port: &Port) -> Result<tools::Started> {
    let nft = NFT.path()?;
    match &port.namespace {
        Some(namespace) => {
            let mut command = IP.command()?;
            command.args(["netns", "exec", namespace, "sh", "-c", "echo 1 > $0 && exec $1 -f -", &routable(INTERFACE)]);
            tools::start(command.arg(nft), &of_instance(port.address))
        }
        None => {
            let file = routable(&port.device);
            std::fs::write(&file, "1").with_context(|| format!("write {file}"))?;
            tools::start(NFT.command()?.args(["-f", "-"]), &of_harness())
        }
    }
}

/// The kernel lets loopback addresses pass an interface only where this is set.
fn routable(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/route_localnet")
}

fn of_instance(address: Ipv4Addr) -> String {
    format!(
        "table ip loopback {{\n  chain leaving {{\n    type nat hook output priority -100; policy accept;\n    \
         ip daddr 127.0.0.1 meta l4proto tcp dnat to {LOOPBACK};\n  }}\n  chain left {{\n    \
         type nat hook postrouting priority 100; policy accept;\n    \
         oifname \"{INTERFACE}\" ip saddr 127.0.0.0/8 snat to {address};\n  }}\n}}\n"
    )
}

/// The harness's namespace outlives a network, and so may hold the table of an earlier one.
fn of_harness() -> String {
    format!(
        "add table ip loopback\ndelete table ip loopback\ntable ip loopback {{\n  chain arriving {{\n    \
         type nat hook prerouting priority -100; policy accept;\n    \
         ip daddr {LOOPBACK} dnat to 127.0.0.1;\n  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_to_loopback_goes_to_the_harness_under_the_instances_address() {
        let text = of_instance(Ipv4Addr::new(10, 77, 0, 2));
        assert!(text.contains("ip daddr 127.0.0.1 meta l4proto tcp dnat to 10.77.0.253;"), "{text}");
        assert!(text.contains("ip saddr 127.0.0.0/8 snat to 10.77.0.2;"), "{text}");
        assert!(of_harness().contains("ip daddr 10.77.0.253 dnat to 127.0.0.1;"));
    }
}
