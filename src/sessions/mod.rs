//! Order, exclusion and durability of turns.
//!
//! Owns everything between an accepted message and its committed reply: which session it belongs to, which task runs it
//! here, what its text is while it runs, and how anybody reads it. It never speaks to a client and never decides what a
//! command does. Requests come from `api`; commands go to `store`, prompts to `agent`.
//!
//! Reading order: [`router`] (request -> session), [`runner`] (the turns of this instance), [`live`] (the text of
//! running turns), [`follow`] (reading a turn wherever it runs).

pub mod relay;
pub mod router;

pub mod runner;

pub mod live;

pub mod commands;
pub mod follow;
