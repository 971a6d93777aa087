//! A network of its own for a cluster: each instance in a network namespace with its own address, on a switch in user space.
//!
//! Nothing of the machine's network is touched, and nothing outside can be reached. [`enter`] puts the whole program into
//! namespaces, where it may do as it likes; in them [`ports`] makes one namespace per instance, `switch` carries the frames
//! between them, each ordered pair under a [`Shape`] of its own that a `line` computes, and `cuts` separates them by
//! nftables. The harness has an address on the same switch, [`CONTROLLER`]; its clients and balancers reach instances from
//! there, and `loopback` leads instances to what listens on the harness's loopback, such as fakes.

mod cuts;
pub mod enter;
mod line;
mod loopback;
pub mod ports;
pub mod shape;
mod switch;
pub mod tools;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};

use cuts::Cuts;
pub use line::Counts;
use ports::Port;
pub use ports::{CONTROLLER, address};
pub use shape::Shape;
use switch::Switch;

/// What the network is like before any fault.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// Of every link between two instances; the harness's own are never shaped.
    pub shape: Shape,
    /// Draws which frames are lost, held back, or sent twice.
    pub seed: u64,
}

/// One network. There is at most one at a time, because the addresses are fixed.
#[derive(Debug)]
pub struct Lab {
    ports: Vec<Port>,
    cuts: Cuts,
    shape: Shape,
    // Dropped with the fields, and so after the namespaces are removed.
    switch: Switch,
}

impl Lab {
    /// Makes the namespaces of so many instances and connects them.
    ///
    /// # Errors
    /// When this program is not in namespaces of its own, see [`enter`], or a device or namespace cannot be made.
    pub fn start(instances: usize, options: &Options) -> Result<Self> {
        ensure!(enter::is_inside(), "a lab is made in namespaces only, and this program has not entered any");
        let ports = ports::all(instances)?;
        let switch = Switch::start(&ports, options.seed)?;
        let lab = Self { cuts: Cuts::new(ports.clone()), shape: options.shape, switch, ports };
        ports::connect(&lab.ports)?;
        loopback::join(&lab.ports)?;
        lab.reshape();
        Ok(lab)
    }

    /// How many instances it has place for.
    pub fn instances(&self) -> usize {
        self.ports.len() - 1
    }

    pub fn address(&self, index: usize) -> Ipv4Addr {
        self.ports[index].address
    }

    /// What runs a program in the namespace of an instance when it is put before it. It becomes the program, by exec.
    ///
    /// # Errors
    /// When `ip` is missing.
    pub fn through(&self, index: usize) -> Result<Vec<OsString>> {
        let namespace = self.ports[index].namespace.clone().unwrap_or_default();
        Ok(vec![tools::IP.path()?.into(), "netns".into(), "exec".into(), namespace.into()])
    }

    /// Has instances hear nothing from others, for each pair as (from, to); all of it begins at about the same moment.
    ///
    /// # Errors
    /// When rules cannot be loaded.
    pub fn cut_all(&self, pairs: &[(usize, usize)]) -> Result<()> {
        self.cuts.add(pairs)
    }

    /// Cuts an instance off from the harness - clients, balancers and fakes - and from nobody else.
    ///
    /// # Errors
    /// When rules cannot be loaded.
    pub fn cut_clients(&self, index: usize) -> Result<()> {
        let controller = self.instances();
        self.cuts.add(&[(controller, index), (index, controller)])
    }

    /// Gives the link from one instance to another a shape.
    pub fn set_shape(&self, from: usize, to: usize, shape: Shape) {
        self.switch.set_shape(from, to, shape);
    }

    /// Has one direction of a link take so much longer than it did at the beginning; whatever else it does stays.
    pub fn delay(&self, from: usize, to: usize, delay: Duration) {
        let shape = self.switch.shape(from, to);
        self.switch.set_shape(from, to, Shape { delay: self.shape.delay + delay, ..shape });
    }

    /// What was done to frames between instances so far.
    pub fn counts(&self) -> Counts {
        self.pairs().map(|(from, to)| self.switch.counts(from, to)).fold(Counts::default(), Counts::plus)
    }

    /// Ends all cuts, and gives every link the shape that it began with.
    ///
    /// # Errors
    /// When rules cannot be removed.
    pub fn heal(&self) -> Result<()> {
        self.reshape();
        self.cuts.clear()
    }

    fn reshape(&self) {
        self.pairs().for_each(|(from, to)| self.switch.set_shape(from, to, self.shape));
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let instances = self.instances();
        (0..instances).flat_map(move |from| (0..instances).filter(move |to| *to != from).map(move |to| (from, to)))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A namespace that was never made is not an error worth a word; the next network would be, and says so.
        // The rules in the harness's own namespace would hold for the next network as well.
        if let Err(error) = self.cuts.clear().and_then(|()| ports::disconnect(&self.ports))
            && !std::thread::panicking()
        {
            eprintln!("cannot remove namespaces: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_of_namespaces_there_is_no_lab() {
        let error = Lab::start(3, &Options::default()).unwrap_err().to_string();
        assert!(error.contains("not entered"), "{error}");
    }
}
