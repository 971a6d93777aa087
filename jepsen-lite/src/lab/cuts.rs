//! Who hears nothing from whom: nftables rules in the namespace of the one who does not hear.
//!
//! A rule by the sender's address on the way in works for any ordered pair, and the sender notices nothing: a rule on its way out
//! would give it an error at once. The rules of a namespace are replaced as a whole, in one transaction.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::runtime::RuntimeFlavor;

use super::ports::Port;
use super::tools::{self, IP, NFT};

/// The cuts in force, as (from, to).
type Set = BTreeSet<(usize, usize)>;

#[derive(Debug)]
pub(super) struct Cuts {
    ports: Vec<Port>,
    cut: Mutex<Set>,
}

impl Cuts {
    pub(super) fn new(ports: Vec<Port>) -> Self {
        Self { ports, cut: Mutex::new(Set::new()) }
    }

    /// Cuts these ordered pairs of ports in addition.
    pub(super) fn add(&self, pairs: &[(usize, usize)]) -> Result<()> {
        self.change(|cut| cut.extend(pairs.iter().copied().filter(|(from, to)| from != to)))
    }

    pub(super) fn clear(&self) -> Result<()> {
        self.change(Set::clear)
    }

    fn change(&self, change: impl FnOnce(&mut Set)) -> Result<()> {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = cut.clone();
        change(&mut next);
        let touched: BTreeSet<usize> = cut.symmetric_difference(&next).map(|(_, to)| *to).collect();
        waits_for_programs(|| {
            // All at once, since a cut is meant to be of one moment.
            let started: Vec<_> = touched.iter().map(|to| self.load(*to, &next)).collect::<Result<_>>()?;
            *cut = next;
            started.into_iter().try_for_each(|nft| nft.wait().context("load rules"))
        })
    }

    fn load(&self, to: usize, cut: &Set) -> Result<tools::Started> {
        let sources =
            cut.iter().filter(|(_, dropped)| *dropped == to).flat_map(|(from, _)| self.ports[*from].addresses());
        let nft = NFT.path()?;
        let mut command = match &self.ports[to].namespace {
            Some(namespace) => {
                let mut command = IP.command()?;
                command.args(["netns", "exec", namespace]).arg(nft);
                command
            }
            None => NFT.command()?,
        };
        tools::start(command.args(["-f", "-"]), &rules(sources))
    }
}

/// Lets the other tasks of this thread, such as clients, go on elsewhere meanwhile, where the runtime can do that.
fn waits_for_programs<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        Ok(_) | Err(_) => work(),
    }
}

/// The whole of a namespace's rules when it hears nothing from `sources`.
fn rules(sources: impl Iterator<Item = Ipv4Addr>) -> String {
    let sources: Vec<String> = sources.map(|address| address.to_string()).collect();
    // A table that may not exist cannot be deleted, so it is added before.
    let empty = "add table inet cuts\ndelete table inet cuts\n".to_owned();
    if sources.is_empty() {
        return empty;
    }
    format!(
        "{empty}table inet cuts {{\n  chain arriving {{\n    type filter hook input priority 0; policy accept;\n    \
         ip saddr {{ {} }} drop\n  }}\n}}\n",
        sources.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_replace_whatever_was_there() {
        let text = rules([Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 3)].into_iter());
        assert_eq!(
            text,
            "add table inet cuts\ndelete table inet cuts\ntable inet cuts {\n  chain arriving {\n    \
             type filter hook input priority 0; policy accept;\n    ip saddr { 10.77.0.2, 10.77.0.3 } drop\n  }\n}\n"
        );
    }

    #[test]
    fn without_cuts_there_is_no_table() {
        assert_eq!(rules(std::iter::empty()), "add table inet cuts\ndelete table inet cuts\n");
    }
}
