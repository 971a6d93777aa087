//! A message's way in: who may write, which conversation it belongs to, and the one command that makes it durable.
//!
//! Everything here is safe to repeat, since the platform may deliver again whatever was not confirmed: each command
//! carries the message's own id, so the second time it changes nothing and has the same answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use openclaw_config::Session as SessionSettings;
use openclaw_config::channels::Account;
use openclaw_proto::ids::{AgentId, ChannelAccount, InstanceId, SessionKey, TurnId};
use openclaw_proto::state::command::Kind as Command;
use openclaw_proto::state::outcome::Kind as Outcome;
use openclaw_proto::state::{self, Accept, Enqueue, InboxKey, RequestPairing};
use rand::Rng;
use sha2::{Digest, Sha256};
use tracing::{Instrument, debug, info, warn};

use super::policy::{self, Verdict};
use super::{Inbox, InboxError, Tenure};
use crate::logging;
use crate::message::{InboundMessage, ReplyAddress};
use crate::metrics::Metrics;
use crate::sessions::commands::{self, ChatCommand, Commander, Done};
use crate::sessions::router::{self, RouteError};
use crate::store::channels::{ChannelStore, OwnerError};
use crate::store::{AcceptError, CommitError};
use openclaw_raft::state_machine::rendezvous;
use openclaw_raft::trace;

/// Of one commit.
pub const COMMIT: Duration = Duration::from_secs(5);
/// Of a code: nothing that looks like something else.
const CODE_ALPHABET: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
const CODE_LENGTH: usize = 8;

/// What an intake needs of the rest.
#[derive(Clone)]
pub struct Context {
    pub me: InstanceId,
    pub store: Arc<dyn ChannelStore>,
    pub commander: Commander,
    pub session: SessionSettings,
    pub max_queued: u32,
    pub metrics: Metrics,
}

/// Takes the messages of one account.
pub struct Intake {
    context: Context,
    account: ChannelAccount,
    settings: Account,
    /// None: messages that come by webhook, which any instance takes.
    tenure: Option<Tenure>,
}

impl Intake {
    pub fn new(context: Context, account: ChannelAccount, settings: Account, tenure: Option<Tenure>) -> Self {
        Self { context, account, settings, tenure }
    }

    async fn take_one(&self, message: InboundMessage) -> Result<(), InboxError> {
        let paired = self.context.store.is_paired(&self.account, &message.sender.id).map_err(unavailable)?;
        let verdict = policy::judge(&self.settings, &message, paired);
        let command = commands::parse(&message.text, &self.context.session.reset_triggers);
        let counted = match &verdict {
            Verdict::Ignore(_) => "ignored",
            Verdict::Pair => "stranger",
            Verdict::Answer if command.is_some() => "command",
            Verdict::Answer => "turn",
        };
        match verdict {
            Verdict::Ignore(reason) => {
                debug!(account = %self.account, reason, "a message is not answered");
            }
            Verdict::Pair => self.pair(message).await?,
            Verdict::Answer => match command {
                Some(command) => self.command(message, command).await?,
                None => self.accept(&message, "", message.text.clone()).await?,
            },
        }
        self.context.metrics.channel_messages.with_label_values(&[self.account.channel(), counted]).inc();
        Ok(())
    }

    fn route(&self, message: &InboundMessage) -> Result<(SessionKey, AgentId), RouteError> {
        let agent = AgentId::parse(self.settings.agent_id.as_str())
            .map_err(|error| RouteError::Field { field: "agentId", error })?;
        let (dm, group) = (self.context.session.dm_scope, self.context.session.group_scope);
        Ok((router::route_message(message, &agent, dm, group)?, agent))
    }

    /// To deliver a message again that no conversation can have changes nothing, and would hold up all that follow it.
    async fn unroutable(&self, message: &InboundMessage, error: &RouteError) -> Result<(), InboxError> {
        warn!(account = %self.account, %error, "a message belongs to no conversation");
        self.say(message, "unroutable", format!("This cannot be answered: {error}.")).await
    }

    /// Commits `text`, which is the message's or follows from it, and the turn that answers it.
    async fn accept(&self, message: &InboundMessage, part: &str, text: String) -> Result<(), InboxError> {
        let (session_key, agent_id) = match self.route(message) {
            Ok(route) => route,
            Err(error) => return self.unroutable(message, &error).await,
        };
        let instances = self.context.store.instances().map_err(unavailable)?;
        let taking = instances.iter().filter(|row| row.live && !row.draining).map(|row| row.instance_id.as_str());
        let runner = rendezvous(session_key.as_str(), taking).unwrap_or(self.context.me.as_str()).to_owned();
        let command = Accept {
            inbox: Some(inbox_key(message, part)),
            session_key: session_key.into(),
            turn_id: TurnId::random().into(),
            text,
            agent_id: agent_id.into(),
            model: String::new(),
            runner,
            max_queued: self.context.max_queued,
            reply_to: Some(to_proto(&message.reply_to)),
            sender: cut(&message.sender.name).to_owned(),
            // A webhook is an HTTP request.
            request_id: logging::request_id().map(String::from).unwrap_or_default(),
            trace_parent: trace::parent(),
        };
        match self.context.store.as_sessions().accept(command, COMMIT).await {
            Ok(_) => Ok(()),
            Err(AcceptError::QueueFull { depth }) => {
                let text = format!("{depth} messages wait for an answer already. Please send this one again later.");
                self.say(message, "full", text).await
            }
            // The same id with another text: an edit that the platform delivers under the old id. The first one counts.
            Err(AcceptError::KeyReused) => Ok(()),
            Err(AcceptError::Refused { reason }) => {
                info!(account = %self.account, reason, "a message was refused");
                self.say(message, "refused", format!("This cannot be answered: {reason}.")).await
            }
            Err(AcceptError::Commit(error)) => Err(unavailable(error)),
        }
    }

    async fn pair(&self, message: InboundMessage) -> Result<(), InboxError> {
        let code: String = {
            let mut random = rand::rng();
            (0..CODE_LENGTH).map(|_| char::from(CODE_ALPHABET[random.random_range(0..CODE_ALPHABET.len())])).collect()
        };
        let command = RequestPairing {
            inbox: Some(inbox_key(&message, "")),
            sender_id: message.sender.id.clone(),
            sender_name: cut(&message.sender.name).to_owned(),
            code,
            to: Some(to_proto(&message.reply_to)),
            text: format!(
                "I do not know you yet. Your id is {}. Whoever runs this bot can let you in with:\n\n`openclaw pairing approve {} {{code}}`",
                message.sender.id,
                self.account.channel()
            ),
        };
        let outcome = self.context.store.commit(Command::RequestPairing(command), COMMIT).await.map_err(unavailable)?;
        debug!(account = %self.account, outcome = ?outcome.value, "a stranger wrote");
        Ok(())
    }

    async fn command(&self, message: InboundMessage, command: ChatCommand) -> Result<(), InboxError> {
        let (key, agent) = match self.route(&message) {
            Ok(route) => route,
            Err(error) => return self.unroutable(&message, &error).await,
        };
        let store = self.context.store.as_sessions();
        let inbox = inbox_key(&message, "command");
        // One key for whatever comes of it: a redelivery may find another state, and then does nothing.
        match self.context.commander.run(store, (&key, &agent), command, inbox).await.map_err(unavailable)? {
            Done::Said(text) => self.say(&message, "answer", text).await,
            Done::Ask(text) => self.accept(&message, "answer", text).await,
        }
    }

    /// Has a text of our own sent in answer to `message`, once.
    async fn say(&self, message: &InboundMessage, part: &str, text: String) -> Result<(), InboxError> {
        let command = Enqueue { inbox: Some(inbox_key(message, part)), to: Some(to_proto(&message.reply_to)), text };
        let said = self.context.store.commit(Command::Enqueue(command), COMMIT).await.map_err(unavailable)?;
        if let Outcome::Refused(refused) = said.value {
            warn!(account = %self.account, reason = refused.reason, "an answer of our own was refused");
        }
        Ok(())
    }
}

impl Inbox for Intake {
    fn take(&self, messages: Vec<InboundMessage>) -> BoxFuture<'_, Result<(), InboxError>> {
        Box::pin(async move {
            // In their order, so that a conversation reads as it was written.
            for message in messages {
                let traced = tracing::trace_span!("message", account = %self.account, otel.kind = "consumer");
                self.take_one(message).instrument(traced).await?;
            }
            Ok(())
        })
    }

    fn cursor(&self) -> BoxFuture<'_, Result<Option<String>, InboxError>> {
        let cursor = self.context.store.cursor(&self.account).map_err(unavailable);
        Box::pin(std::future::ready(cursor.map(|row| row.map(|row| row.data))))
    }

    fn save_cursor(&self, cursor: String) -> BoxFuture<'_, Result<(), InboxError>> {
        Box::pin(async move {
            let Some(tenure) = &self.tenure else { return Err(InboxError::Fenced) };
            let saved = self.context.store.save_cursor(&self.account, tenure.fencing_token, cursor, COMMIT).await;
            saved.map_err(|error| match error {
                OwnerError::Fenced | OwnerError::NotFound | OwnerError::Conflict => InboxError::Fenced,
                OwnerError::Commit(error) => unavailable(error),
            })
        })
    }
}

fn unavailable(error: impl std::fmt::Display) -> InboxError {
    InboxError::Unavailable(error.to_string())
}

impl From<CommitError> for InboxError {
    fn from(error: CommitError) -> Self {
        unavailable(error)
    }
}

/// Names the write that `part` of handling a message makes.
fn inbox_key(message: &InboundMessage, part: &str) -> InboxKey {
    let external_id =
        if part.is_empty() { message.external_id.clone() } else { format!("{}/{part}", message.external_id) };
    let mut hash = Sha256::new();
    // Not over what we answer: a repetition may find another state, and gets the first answer all the same.
    for field in [part, &message.sender.id, &message.text] {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field.as_bytes());
    }
    let body_hash = Bytes::copy_from_slice(&hash.finalize());
    InboxKey { account: message.account.as_str().to_owned(), external_id, body_hash }
}

fn to_proto(address: &ReplyAddress) -> state::ReplyAddress {
    state::ReplyAddress {
        account: address.account.as_str().to_owned(),
        chat: address.chat.clone(),
        thread: address.thread.clone().unwrap_or_default(),
        message: address.message.clone().unwrap_or_default(),
    }
}

/// A name as long as it needs to be read.
fn cut(name: &str) -> &str {
    const LONGEST: usize = 128;
    &name[..name.floor_char_boundary(LONGEST)]
}
