//! Telegram's numbers, so that a chat is not taken for a user.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// The number before the colon of a bot's token; also its id as a user.
    BotId(i64)
);
id!(UserId(i64));
id!(
    /// A private chat has its user's number, a group a negative one, a supergroup one of -1 000 000 000 000 and below.
    ChatId(i64)
);
id!(
    /// Counted in each chat.
    MessageId(i32)
);
id!(
    /// A topic of a forum.
    ThreadId(i32)
);
id!(
    /// Counted for each bot.
    UpdateId(i32)
);

impl UserId {
    /// The chat between this user and any bot.
    pub fn chat(self) -> ChatId {
        ChatId(self.0)
    }
}
