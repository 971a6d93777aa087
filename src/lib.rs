//! One instance of the gateway.
//!
//! A message's way: [`api`] parses and authenticates it, [`sessions`] finds its session, and one command in the
//! [`store`] accepts it - only then is it acknowledged. The instance that the turn names runs it: [`sessions::runner`]
//! reads the history, [`agent`] turns it into a prompt and the model's answer into text, [`models`] speaks to the
//! provider. Text streams to readers from memory, on this instance or, by way of [`sessions::relay`], on any other. One
//! more command records the reply; only then does a stream end with `done`.
//!
//! Reading order: [`app`] wires it all; then top to bottom. Imports point down.

pub mod cli;

pub mod app;

pub mod api;
pub mod channels;
pub mod maintenance;

pub mod sessions;

pub mod agent;
pub mod cluster;

pub mod models;
pub mod store;

pub mod http_client;
pub mod logging;
pub mod message;
pub mod metrics;
pub mod service_manager;
pub mod traces;
