//! How instances reach each other: one HTTP/2 connection per peer, recognised by certificate, for everything that
//! crosses between them.
//!
//! [`security`] makes and accepts connections. [`peers`] holds one channel per peer. `client` is what openraft sends
//! through, `service` what it receives by; `contact` notices at once when the leader's process is gone.

mod client;
mod contact;
pub(crate) mod peers;
pub mod security;
mod service;

pub(crate) use client::NetworkFactory;
pub(crate) use contact::Contact;
pub use peers::Links;
pub(crate) use peers::{Peers, Purpose, never_sent};
pub(crate) use service::{Groups, Service, is_removal};
