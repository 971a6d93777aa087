//! What is done to a cluster, and when: drawn from a seed, written down before it begins, and then done.
//!
//! [`schedule`] is pure: the same seed gives the same faults, moments and choices. [`inject`] does them. Which instance
//! leads at a moment is not in a seed; a fault that is meant for the leader finds it when it comes.

pub mod inject;
pub mod schedule;

use serde::{Deserialize, Serialize};

use crate::names;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// kill -9 of any one instance
    KillOne,
    /// kill -9 of the leader
    KillLeader,
    /// kill -9 of a majority at once
    KillMajority,
    /// kill -9 of all at once
    KillAll,
    /// SIGSTOP of any one instance
    PauseOne,
    /// SIGSTOP of the leader
    PauseLeader,
    /// Any one instance cut off from its peers
    IsolateOne,
    /// The leader cut off from its peers
    IsolateLeader,
    /// A minority cut off from the majority
    Halves,
    /// A majority-ring: each instance lacks one peer, so that no two see the same majority
    Ring,
    /// One link cut in both directions
    Link,
    /// One instance sends and nobody hears it; what it is sent arrives
    Mute,
    /// One instance is sent nothing that arrives; what it sends does
    Deaf,
    /// The leader is cut off and connected again, several times a second
    Flap,
    /// Every message between instances takes 20 to 100 ms longer
    Slow,
    /// One instance after the other is stopped by SIGTERM and started again
    RollingRestart,
    /// Leadership is handed from instance to instance
    MoveLeadership,
}

impl Kind {
    /// All of them, in the order of `list`.
    pub const ALL: [Self; 17] = [
        Self::KillOne,
        Self::KillLeader,
        Self::KillMajority,
        Self::KillAll,
        Self::PauseOne,
        Self::PauseLeader,
        Self::IsolateOne,
        Self::IsolateLeader,
        Self::Halves,
        Self::Ring,
        Self::Link,
        Self::Mute,
        Self::Deaf,
        Self::Flap,
        Self::Slow,
        Self::RollingRestart,
        Self::MoveLeadership,
    ];

    /// As on the command line.
    pub fn name(self) -> String {
        names::name(&self)
    }

    /// Whether a majority stays up and connected, so that writes go on while it lasts.
    pub fn leaves_a_majority(self) -> bool {
        match self {
            Self::KillMajority | Self::KillAll | Self::Flap | Self::RollingRestart => false,
            Self::KillOne
            | Self::KillLeader
            | Self::PauseOne
            | Self::PauseLeader
            | Self::IsolateOne
            | Self::IsolateLeader
            | Self::Halves
            | Self::Ring
            | Self::Link
            | Self::Mute
            | Self::Deaf
            | Self::Slow
            | Self::MoveLeadership => true,
        }
    }
}
