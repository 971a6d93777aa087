//! What stands between instances, and what can be done to it.
//!
//! [`Network`] is one set of operations on two networks. The [`proxies`] on loopback need no privilege; they can hold bytes
//! back and no more, so a connection always survives them. The [`lab`](crate::lab) has real addresses and frames: a cut lets
//! connections time out, and links lose, repeat and reorder. What a network cannot do it refuses with an error that names it.

mod balancer;
mod opener;
pub mod program;
pub mod proxies;

use std::time::Duration;

use anyhow::{Result, bail};

pub use balancer::Balancer;
pub use opener::process_of;

use crate::lab::{Lab, Shape};
use proxies::Proxies;

/// The links of one cluster.
#[derive(Debug)]
pub enum Network {
    Proxies(Proxies),
    Lab(Lab),
}

impl Network {
    pub fn instances(&self) -> usize {
        match self {
            Self::Proxies(proxies) => proxies.instances(),
            Self::Lab(lab) => lab.instances(),
        }
    }

    /// Says which process is which instance; a restart says it again.
    pub fn set_owner(&self, pid: u32, index: usize) {
        match self {
            Self::Proxies(proxies) => proxies.set_owner(pid, index),
            // There the address says it.
            Self::Lab(_) => {}
        }
    }

    /// Stops what is sent from one instance to another, for each pair as (from, to).
    ///
    /// # Errors
    /// When the lab cannot load its rules.
    pub fn cut_all(&self, pairs: &[(usize, usize)]) -> Result<()> {
        match self {
            Self::Proxies(proxies) => {
                pairs.iter().for_each(|(from, to)| proxies.cut_one_way(*from, *to));
                Ok(())
            }
            Self::Lab(lab) => lab.cut_all(pairs),
        }
    }

    /// Stops what `from` sends to `to`; the other direction is left alone.
    ///
    /// # Errors
    /// As [`Self::cut_all`].
    pub fn cut_one_way(&self, from: usize, to: usize) -> Result<()> {
        self.cut_all(&[(from, to)])
    }

    /// Stops both directions between two instances.
    ///
    /// # Errors
    /// As [`Self::cut_all`].
    pub fn cut(&self, a: usize, b: usize) -> Result<()> {
        self.cut_all(&[(a, b), (b, a)])
    }

    /// Cuts one instance off from all others; its clients reach it still.
    ///
    /// # Errors
    /// As [`Self::cut_all`].
    pub fn isolate(&self, index: usize) -> Result<()> {
        let others = (0..self.instances()).filter(|other| *other != index);
        self.cut_all(&others.flat_map(|other| [(index, other), (other, index)]).collect::<Vec<_>>())
    }

    /// Cuts one instance off from clients, balancers and fakes; its peers reach it still.
    ///
    /// # Errors
    /// On loopback, which has nothing between clients and instances; and when the lab cannot load its rules.
    pub fn cut_clients(&self, index: usize) -> Result<()> {
        match self {
            Self::Proxies(_) => bail!("clients cannot be cut off on loopback; they can with --environment namespaces"),
            Self::Lab(lab) => lab.cut_clients(index),
        }
    }

    /// Has what `from` sends to `to` take so much longer; whatever else the link does stays.
    ///
    /// # Errors
    /// None so far.
    pub fn delay(&self, from: usize, to: usize, delay: Duration) -> Result<()> {
        match self {
            Self::Proxies(proxies) => proxies.delay(from, to, delay),
            Self::Lab(lab) => lab.delay(from, to, delay),
        }
        Ok(())
    }

    /// Gives one direction of a link a shape, in place of the one that it has.
    ///
    /// # Errors
    /// On loopback, when it is more than a delay.
    pub fn shape(&self, from: usize, to: usize, shape: Shape) -> Result<()> {
        match self {
            Self::Proxies(proxies) if shape == Shape::delay(shape.delay) => proxies.delay(from, to, shape.delay),
            Self::Proxies(_) => {
                bail!("links on loopback can be delayed only, not {shape}; see --environment namespaces")
            }
            Self::Lab(lab) => lab.set_shape(from, to, shape),
        }
        Ok(())
    }

    /// Opens every link, and gives it the shape with which it began.
    ///
    /// # Errors
    /// When the lab cannot remove its rules.
    pub fn heal(&self) -> Result<()> {
        match self {
            Self::Proxies(proxies) => {
                proxies.heal();
                Ok(())
            }
            Self::Lab(lab) => lab.heal(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_loopback_cannot_do_is_an_error_that_names_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let network = Network::Proxies(Proxies::start(&[listener, listener]).await.unwrap());
        for error in [
            network.cut_clients(0).unwrap_err(),
            network.shape(0, 1, Shape { loss: 0.5, ..Shape::default() }).unwrap_err(),
        ] {
            assert!(error.to_string().contains("loopback"), "{error}");
        }
        network.shape(0, 1, Shape::delay(Duration::from_millis(1))).unwrap();
        network.delay(0, 1, Duration::ZERO).unwrap();
        network.isolate(0).unwrap();
        network.heal().unwrap();
    }
}
