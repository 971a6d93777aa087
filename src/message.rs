//! The values that flow between channels and the rest: what came in from a platform, and what goes out to it.
//!
//! The edge makes them once, from bytes that it has authenticated and bounded; past it nobody looks at a platform's own
//! form again. The return address travels with the message and is stored with the turn, so that nothing downstream has to
//! find a channel by itself. Names that people can change are for display alone; ids decide.

use openclaw_proto::ids::ChannelAccount;

/// Where a conversation takes place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// One person and the bot.
    Direct { peer: String },
    /// A group, or a topic in it (a forum topic, a thread).
    Group { id: String, topic: Option<String> },
}

/// Who wrote a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The platform's immutable id, in digits: what policies compare.
    pub id: String,
    /// For people to read; never compared.
    pub name: String,
}

/// Where a reply goes. Only the channel that made it reads more than `account` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyAddress {
    pub account: ChannelAccount,
    pub chat: String,
    pub thread: Option<String>,
    /// The message that is answered.
    pub message: Option<String>,
}

/// A message of a person to a bot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundMessage {
    pub account: ChannelAccount,
    /// Unique in the account: the platform's redelivery of the same message has the same one.
    pub external_id: String,
    pub place: Place,
    pub sender: Sender,
    /// Not empty.
    pub text: String,
    /// The bot was meant: by name, by a reply to it, or because nobody else is there.
    pub addressed: bool,
    pub reply_to: ReplyAddress,
}

/// A part of a reply as the platform takes it in one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// In the platform's own markup.
    pub body: String,
    /// The same without any, for a platform that refuses the markup.
    pub plain: String,
}
