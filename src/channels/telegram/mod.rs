//! Telegram: one bot, through the Bot API.
//!
//! Reading order: [`parse`] (an update to a message), [`webhook`], [`render`] (a reply to pieces).

pub mod parse;
pub mod render;
pub mod webhook;

/// The platform's part in the names of its accounts.
pub const CHANNEL: &str = "telegram";
