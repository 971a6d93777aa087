//! One turn: history in, a reply out.
//!
//! Owns how a transcript becomes a prompt ([`context`]) and how an answer becomes the turn's events ([`turn`]). It stores nothing and
//! sends nothing: history comes from `sessions`, which also commits what comes out, and models are reached through `models`.

pub mod context;
pub mod turn;
