//! A black-box harness: it starts built binaries, breaks them on purpose, and judges what their clients were told.
//!
//! It knows what a client and an operator know: the HTTP bodies and ids of `openclaw-proto` and the settings of
//! `openclaw-config`. It never links the server. Everything stays on loopback or in network namespaces of its own, and only processes that the
//! harness started are ever signalled.
//!
//! Reading order: [`process`] (one child, dead when dropped), [`ports`] (which it listens on), [`cluster`] (instances with their ports, directories and
//! logs), [`network`] (what can be done to the links between them: by proxies on loopback, or in a lab; and a balancer), [`lab`]
//! (network namespaces on a switch of our own), [`disk`] (a disk for an instance, and what disks do wrong), [`clock`] (clocks that are
//! wrong), [`client`] (what an answer means: done, certainly not done, unknown), [`history`] (what was asked, answered, and when),
//! [`workloads`] (who asks), [`nemesis`] (what is done to them meanwhile), [`checkers`] (what must hold), [`figures`] (latencies),
//! [`run`] (the plan and the verdict of a run), [`report`] (its page), [`bench`] (load against us and against etcd),
//! [`fakes`] (model servers, Telegram and Discord for tests), [`commands`] (the program's subcommands).

pub mod bench;
pub mod checkers;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod disk;
pub mod fakes;
pub mod figures;
pub mod history;
pub mod lab;
pub mod names;
pub mod nemesis;
pub mod network;
pub mod ports;
pub mod process;
pub mod report;
pub mod run;
pub mod sse;
pub mod workloads;

#[cfg(test)]
mod mock_gateway;
