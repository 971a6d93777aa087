//! A black-box harness: it starts built binaries, breaks them on purpose, and judges what their clients were told.
//!
//! It knows what a client and an operator know: the HTTP bodies and ids of `openclaw-proto` and the settings of
//! `openclaw-config`. It never links the server. Everything stays on loopback, and only processes that the harness
//! started are ever signalled.

pub mod client;
pub mod cluster;
pub mod network;
pub mod process;
pub mod sse;

#[cfg(test)]
mod fake;
