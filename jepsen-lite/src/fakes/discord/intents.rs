//! Which events a session asked for.
//!
//! Source: discord-api-docs, topics/gateway, "List of intents".

pub(super) const GUILDS: u64 = 1 << 0;
const GUILD_MEMBERS: u64 = 1 << 1;
const GUILD_PRESENCES: u64 = 1 << 8;
pub(super) const GUILD_MESSAGES: u64 = 1 << 9;
pub(super) const DIRECT_MESSAGES: u64 = 1 << 12;
/// Says what a message holds, not whether it comes.
pub const MESSAGE_CONTENT: u64 = 1 << 15;

/// The ones that have to be enabled for an application first.
pub(super) const PRIVILEGED: u64 = GUILD_MEMBERS | GUILD_PRESENCES | MESSAGE_CONTENT;
/// All that exist: 0 to 16, 20, 21, 24 and 25.
pub(super) const KNOWN: u64 = 0x1_ffff | 1 << 20 | 1 << 21 | 1 << 24 | 1 << 25;

/// What a message in a guild, or outside of one, needs.
pub(super) fn of_messages(in_guild: bool) -> u64 {
    if in_guild { GUILD_MESSAGES } else { DIRECT_MESSAGES }
}
