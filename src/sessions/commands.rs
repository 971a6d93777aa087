//! What people say to the gateway rather than to the model: `/new`, `/stop`, `/status` and the like. Pure.

/// A chat command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatCommand {
    /// Begin anew; the rest of the message, if any, is the first of the new conversation.
    Reset {
        rest: String,
    },
    /// Cancel the answer that is being written.
    Stop,
    /// Try once more what got no answer.
    Retry,
    Status,
    /// Use another model from now on; none: say which one is used.
    Model(Option<String>),
    Help,
}

/// The text of `/help`.
pub const HELP: &str = "\
/new or /reset - begin a new conversation
/stop - stop the answer that is being written
/retry - try once more what got no answer
/status - which agent, model and conversation this is
/model [provider/model] - show or choose the model of this conversation
/help - this list";

/// The command that `text` is, if it is one. A slash and anything else is for the model.
pub fn parse(text: &str, reset_triggers: &[String]) -> Option<ChatCommand> {
    let text = text.trim();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    // In groups clients write the bot's name behind the command; who is meant has been settled by then.
    let word = word.split_once('@').map_or(word, |(word, _)| word).to_lowercase();
    let rest = rest.trim();
    if reset_triggers.contains(&word) {
        return Some(ChatCommand::Reset { rest: rest.to_owned() });
    }
    match &*word {
        "/stop" => Some(ChatCommand::Stop),
        "/retry" => Some(ChatCommand::Retry),
        "/status" => Some(ChatCommand::Status),
        "/model" => Some(ChatCommand::Model((!rest.is_empty()).then(|| rest.to_owned()))),
        "/help" | "/start" => Some(ChatCommand::Help),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<ChatCommand>) {
        let triggers = ["/new".to_owned(), "/reset".to_owned()];
        assert_eq!(parse(text, &triggers), expected, "{text:?}");
    }

    #[test]
    fn commands_are_words_at_the_beginning() {
        check("/stop", Some(ChatCommand::Stop));
        check("/retry", Some(ChatCommand::Retry));
        check(" /STATUS ", Some(ChatCommand::Status));
        check("/help@my_bot", Some(ChatCommand::Help));
        check("/start", Some(ChatCommand::Help));
        check("/new", Some(ChatCommand::Reset { rest: String::new() }));
        check(
            "/reset and now for something else",
            Some(ChatCommand::Reset { rest: "and now for something else".into() }),
        );
        check("/model", Some(ChatCommand::Model(None)));
        check("/model echo/echo", Some(ChatCommand::Model(Some("echo/echo".into()))));
    }

    #[test]
    fn anything_else_is_for_the_model() {
        for text in ["", "/", "stop", "please /stop", "/stopped", "/usr/bin/env", "//new", "/unknown"] {
            check(text, None);
        }
    }
}
