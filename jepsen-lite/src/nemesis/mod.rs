//! What is done to a cluster, and when: drawn from a seed, written down before it begins, and then done.
//!
//! [`schedule`] is pure: the same seed gives the same faults, moments and choices. [`inject`] does them. Which instance
//! leads at a moment is not in a seed; a fault that is meant for the leader finds it when it comes.

pub mod inject;
pub mod schedule;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{clock, disk, names};

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
    /// Every message between instances takes 20 to 50 ms longer
    Slow,
    /// One instance after the other is stopped by SIGTERM and started again
    RollingRestart,
    /// Leadership is handed from instance to instance
    MoveLeadership,
    /// kill -9 of any one instance, and all that it stored is gone: it comes back as somebody new
    WipeOne,
    /// One instance is removed from the cluster, and an empty one joins in its place
    ReplaceOne,
    /// kill -9 of any one instance, and half a record behind the end of its log: it must drop that and start
    TornLog,
    /// kill -9 of any one instance, and acknowledged bytes of its log are damaged: it must refuse to start, and comes back empty
    DamagedLog,
    /// The time of day of any one instance jumps by up to an hour, and back
    ClockJump,
    /// Syncs of one instance's log take up to half a second
    SlowFsync,
    /// Syncs of one instance's log fail: it must end by itself
    FailingFsync,
    /// The power of any one instance goes: what it did not sync is lost
    PowerCutOne,
    /// The power of all goes at once
    PowerCutAll,
    /// One instance's disk is full
    FullDisk,
    /// Any one instance cut off from its clients; its peers reach it
    CutClients,
    /// Every link loses, repeats and reorders frames
    Rough,
}

/// What a fault needs of the machine and of the way instances are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// Instances with clocks of their own.
    Clocks,
    /// Tracing of a process.
    Tracing,
    /// Links on which frames can be lost.
    Namespaces,
    /// Instances with disks of their own, which are mounted in namespaces only.
    Disks,
}

impl Kind {
    /// All of them, in the order of `list`.
    pub const ALL: [Self; 29] = [
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
        Self::WipeOne,
        Self::ReplaceOne,
        Self::TornLog,
        Self::DamagedLog,
        Self::ClockJump,
        Self::SlowFsync,
        Self::FailingFsync,
        Self::PowerCutOne,
        Self::PowerCutAll,
        Self::FullDisk,
        Self::CutClients,
        Self::Rough,
    ];

    /// As on the command line.
    pub fn name(self) -> String {
        names::name(&self)
    }

    /// What it needs.
    pub fn needs(self) -> Needs {
        match self {
            Self::ClockJump => Needs::Clocks,
            Self::SlowFsync | Self::FailingFsync => Needs::Tracing,
            Self::CutClients | Self::Rough => Needs::Namespaces,
            Self::PowerCutOne | Self::PowerCutAll | Self::FullDisk => Needs::Disks,
            Self::KillOne
            | Self::KillLeader
            | Self::KillMajority
            | Self::KillAll
            | Self::PauseOne
            | Self::PauseLeader
            | Self::IsolateOne
            | Self::IsolateLeader
            | Self::Halves
            | Self::Ring
            | Self::Link
            | Self::Mute
            | Self::Deaf
            | Self::Flap
            | Self::Slow
            | Self::RollingRestart
            | Self::MoveLeadership
            | Self::WipeOne
            | Self::ReplaceOne
            | Self::TornLog
            | Self::DamagedLog => Needs::Nothing,
        }
    }

    /// Whether it can be done to instances in namespaces, or on loopback.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn possible(self, namespaces: bool) -> Result<()> {
        let inside = || {
            ensure!(namespaces, "it needs --environment namespaces");
            Ok(())
        };
        match self.needs() {
            Needs::Nothing => Ok(()),
            Needs::Clocks => clock::usable(),
            Needs::Tracing => disk::usable(),
            Needs::Namespaces => inside(),
            Needs::Disks => inside().and_then(|()| disk::usable()),
        }
    }

    /// How many instances there must be at least, so that it does anything.
    pub fn least_instances(self) -> usize {
        match self {
            Self::KillOne | Self::KillAll | Self::PauseOne | Self::PowerCutOne | Self::PowerCutAll => 1,
            // A minority is somebody, and is cut off from more.
            Self::Halves | Self::Ring => 3,
            Self::KillLeader
            | Self::KillMajority
            | Self::PauseLeader
            | Self::IsolateOne
            | Self::IsolateLeader
            | Self::Link
            | Self::Mute
            | Self::Deaf
            | Self::Flap
            | Self::Slow
            | Self::RollingRestart
            | Self::MoveLeadership
            | Self::WipeOne
            | Self::ReplaceOne
            | Self::TornLog
            | Self::DamagedLog
            | Self::ClockJump
            | Self::SlowFsync
            | Self::FailingFsync
            | Self::FullDisk
            | Self::CutClients
            | Self::Rough => 2,
        }
    }

    /// Whether it may be done beside another one: it takes no instance away.
    pub fn is_background(self) -> bool {
        matches!(self, Self::Slow | Self::Rough | Self::SlowFsync | Self::ClockJump)
    }

    /// Whether every process that lives when it begins goes on.
    pub fn spares_processes(self) -> bool {
        matches!(
            self,
            Self::IsolateOne
                | Self::IsolateLeader
                | Self::Halves
                | Self::Ring
                | Self::Link
                | Self::Mute
                | Self::Deaf
                | Self::Flap
                | Self::Slow
                | Self::Rough
                | Self::MoveLeadership
                | Self::ClockJump
                | Self::CutClients
        )
    }

    /// Whether a majority stays up and connected for as long as it lasts, so that writes go on.
    pub fn leaves_a_majority(self) -> bool {
        !matches!(
            self,
            Self::KillMajority
                | Self::KillAll
                | Self::PowerCutAll
                | Self::Flap
                | Self::RollingRestart
                | Self::WipeOne
                | Self::ReplaceOne
                | Self::TornLog
                | Self::DamagedLog
        )
    }
}
