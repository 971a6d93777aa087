//! Clients: what they ask of a cluster, and what they are told. Each writes into the history that it is given.

pub mod append;
pub mod channels;
pub mod probe;
pub mod progress;
pub mod register;
pub mod turns;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use progress::Progress;

use crate::checkers::Check;
use crate::history::Recorder;
use crate::names;

/// What clients do in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Sessions as lists: nothing acknowledged is lost, doubled or moved, a repeated key gets its first answer, a read from any instance sees all that was acknowledged before it
    Append,
    /// Labels of sessions as registers: read, set and compared-and-set at any instance, they are linearizable
    Register,
    /// Conversations with the model: each turn ends once, one at a time in a session, and streams go on at other instances without gap or repeat
    Turns,
    /// A bot on Telegram: one owner at a time, and each message has one answer
    Telegram,
    /// The same on Discord
    Discord,
}

impl Workload {
    /// All of them, in the order of `list`.
    pub const ALL: [Self; 5] = [Self::Append, Self::Register, Self::Turns, Self::Telegram, Self::Discord];

    /// As on the command line.
    pub fn name(self) -> String {
        names::name(&self)
    }

    /// Whether its clients tell of each write that is acknowledged; a bot's people write to a platform.
    pub fn writes(self) -> bool {
        match self {
            Self::Append | Self::Register | Self::Turns => true,
            Self::Telegram | Self::Discord => false,
        }
    }

    /// The operations, as the history names them, without which it did nothing.
    pub fn operations(self) -> &'static [&'static str] {
        match self {
            Self::Append => &["append", "read"],
            Self::Register => &["get", "set", "cas"],
            Self::Turns => &["turn"],
            Self::Telegram | Self::Discord => &["say"],
        }
    }
}

/// What the workloads of one run have in common.
#[derive(Debug, Clone, Default)]
pub struct Shared {
    pub recorder: Arc<Recorder>,
    pub progress: Arc<Progress>,
}

/// What the checkers of a workload said.
#[derive(Debug, Default)]
pub struct Judged {
    pub checks: Vec<Check>,
}
