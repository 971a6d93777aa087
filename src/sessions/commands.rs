//! What people say to the gateway rather than to the model: `/new`, `/stop`, `/status` and the like, on every channel.
//!
//! [`parse`] is pure. [`Commander`] does what a command says, safely repeated: each change carries the inbox key that the
//! caller makes of the message.

use std::time::Duration;

use openclaw_config::Agents;
use openclaw_proto::http::ErrorCode;
use openclaw_proto::ids::{AgentId, InstanceId, SeqNum, SessionKey, TurnId};
use openclaw_proto::state::command::Kind as Command;
use openclaw_proto::state::outcome::Kind as Outcome;
use openclaw_proto::state::{InboxKey, ResetSession, Role, Session, SetModel};

use crate::models::{ModelRef, Models};
use crate::store::{CommitError, Consistency, EndTurnError, ReadError, SessionStore, WriteError};

/// Entries among which the message to try once more is looked for.
const RETRY_WITHIN: u64 = 16;

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

/// What a command leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// This is the answer.
    Said(String),
    /// This is for the model.
    Ask(String),
}

/// A command that could not be carried out now; it is safe to repeat.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(WriteError),
    #[error(transparent)]
    End(EndTurnError),
}

impl CommandError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Commit(error) => error.code(),
            Self::Read(error) => error.code(),
            Self::Write(error) => error.code(),
            Self::End(error) => error.code(),
        }
    }
}

/// Carries commands out.
#[derive(Debug, Clone)]
pub struct Commander {
    pub me: InstanceId,
    pub models: Models,
    pub agents: Agents,
    /// Of each commit and read.
    pub timeout: Duration,
}

impl Commander {
    /// Does what `command` says to the conversation. `inbox` names the write that it makes.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn run(
        &self,
        store: &dyn SessionStore,
        (key, agent): (&SessionKey, &AgentId),
        command: ChatCommand,
        inbox: InboxKey,
    ) -> Result<Done, CommandError> {
        Ok(match command {
            ChatCommand::Help => Done::Said(HELP.to_owned()),
            ChatCommand::Status => Done::Said(self.status(store, key, agent).await?),
            ChatCommand::Stop => {
                let stopped = self.stop(store, key).await?;
                Done::Said(if stopped { "Stopped." } else { "Nothing is being answered." }.to_owned())
            }
            ChatCommand::Retry => self.retry(store, key).await?,
            ChatCommand::Reset { rest } => {
                let reset = ResetSession { inbox: Some(inbox), session_key: key.as_str().to_owned() };
                match store.reset(reset, self.timeout).await {
                    // What was never begun is new already.
                    Ok(_) | Err(WriteError::NotFound | WriteError::KeyReused) => {}
                    Err(error) => return Err(CommandError::Write(error)),
                }
                if rest.is_empty() { Done::Said("A new conversation begins.".to_owned()) } else { Done::Ask(rest) }
            }
            ChatCommand::Model(None) => Done::Said(format!("The model is {}.", self.model(store, key, agent).await?)),
            ChatCommand::Model(Some(name)) => Done::Said(match name.parse::<ModelRef>() {
                Ok(model) if self.models.has_provider(&model.provider) => {
                    let session_key = key.as_str().to_owned();
                    let command = SetModel { inbox: Some(inbox), session_key, model: model.to_string() };
                    let committed = store.commit(Command::SetModel(command), self.timeout).await?;
                    if let Outcome::Refused(refused) = committed.value {
                        format!("That is no model: {}.", refused.reason)
                    } else {
                        format!("The model is {model} from now on.")
                    }
                }
                Ok(model) => format!("There is no provider {}.", model.provider),
                Err(error) => format!("That is no model: {error}."),
            }),
        })
    }

    /// Cancels the turn that runs in the conversation. False if none does.
    async fn stop(&self, store: &dyn SessionStore, key: &SessionKey) -> Result<bool, CommandError> {
        let Some(row) = self.session(store, key).await? else { return Ok(false) };
        let Ok(turn) = TurnId::parse(row.running_turn) else { return Ok(false) };
        match store.cancel(&turn, self.timeout).await {
            Ok(_) => Ok(true),
            Err(EndTurnError::Ended(_) | EndTurnError::NotFound) => Ok(false),
            Err(error) => Err(CommandError::End(error)),
        }
    }

    /// Asks what nobody answers and nobody has answered, once more.
    async fn retry(&self, store: &dyn SessionStore, key: &SessionKey) -> Result<Done, CommandError> {
        let nothing = || Done::Said("There is nothing to retry.".to_owned());
        let Some(row) = self.session(store, key).await? else { return Ok(nothing()) };
        if !row.running_turn.is_empty() {
            return Ok(Done::Said("It is being answered.".to_owned()));
        }
        let after = SeqNum(row.head_seq.saturating_sub(RETRY_WITHIN).max(row.reset_seq));
        let limit = usize::try_from(RETRY_WITHIN).unwrap_or(usize::MAX);
        let entries = store.entries(key, after, limit, Consistency::Linearizable, self.timeout).await?.value;
        let said = entries.into_iter().rev().find(|entry| matches!(entry.role(), Role::User | Role::Assistant));
        Ok(said.filter(|entry| entry.role() == Role::User).map_or_else(nothing, |entry| Done::Ask(entry.text)))
    }

    async fn session(&self, store: &dyn SessionStore, key: &SessionKey) -> Result<Option<Session>, ReadError> {
        Ok(store.session(key, Consistency::Linearizable, self.timeout).await?.value)
    }

    async fn model(&self, store: &dyn SessionStore, key: &SessionKey, agent: &AgentId) -> Result<String, CommandError> {
        let chosen = self.session(store, key).await?.map(|row| row.model).filter(|model| !model.is_empty());
        let own = || self.agents.resolve(agent).map(|agent| agent.model.primary.to_string());
        Ok(chosen.or_else(own).unwrap_or_else(|| "not known".to_owned()))
    }

    async fn status(
        &self,
        store: &dyn SessionStore,
        key: &SessionKey,
        agent: &AgentId,
    ) -> Result<String, CommandError> {
        let row = self.session(store, key).await?.unwrap_or_default();
        let usage = row.usage.unwrap_or_default();
        Ok(format!(
            "Conversation: {key}\nAgent: {agent}\nModel: {}\nMessages: {}\nTokens: {} in, {} out\nAnswering: {}\nWaiting: {}\nInstance: {}",
            self.model(store, key, agent).await?,
            row.head_seq.saturating_sub(row.reset_seq),
            usage.input_tokens,
            usage.output_tokens,
            if row.running_turn.is_empty() { "no" } else { "yes" },
            row.queued_turns.len(),
            self.me,
        ))
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
