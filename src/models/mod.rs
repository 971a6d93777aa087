//! The models behind one trait: what is asked, what comes back, and what can go wrong.
//!
//! Owns the vocabulary ([`Prompt`], [`ModelEvent`], [`Error`]), one file per provider, and [`Models`], which adds limits,
//! time-outs, retries and fallbacks to them. It never sees a session, a channel or the store: a prompt comes from
//! `agent`, and events go back to it. Provider settings come from the configuration's `models` section.

mod anthropic;
mod call;
mod echo;
mod error;
mod http;
mod openai;
mod registry;
mod retry;
pub mod scripted;

pub use anthropic::Anthropic;
pub use echo::Echo;
pub use error::{Error, Phase};
pub use http::{BuildError, HttpOptions, Timeouts};
pub use openai::OpenAi;
pub use openclaw_config::ModelRef;
pub use registry::{Limits, Models};
pub use retry::{AttemptEvent, ChainError, Failure, RetryOptions};

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;

/// What a model is asked: the whole conversation, oldest message first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    pub system: Option<String>,
    pub messages: Vec<PromptMessage>,
    /// Absent: the provider's own limit.
    pub max_output_tokens: Option<u32>,
    /// Absent: the provider's own.
    pub temperature: Option<f32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptMessage {
    pub role: Role,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    User,
    Assistant,
    System,
    Tool,
}

impl Prompt {
    /// The newest message of the user; empty when there is none.
    pub fn last_user_text(&self) -> &str {
        self.messages.iter().rev().find(|message| message.role == Role::User).map_or("", |message| &message.text)
    }
}

/// A piece of an answer. A stream of them ends with `Finished` or with an error, never silently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelEvent {
    /// More text, never empty.
    Delta(String),
    Finished {
        usage: Usage,
        reason: FinishReason,
    },
}

/// Tokens as the provider counted them; zero where it did not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// Why a model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    Stop,
    /// The limit of output tokens.
    Length,
    /// The provider withheld the rest.
    Filtered,
    /// A reason of the provider's own.
    Other,
}

impl FinishReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Filtered => "content_filter",
            Self::Other => "other",
        }
    }
}

/// One answer in the making. Dropping it ends the request at the provider.
pub type EventStream = BoxStream<'static, Result<ModelEvent, Error>>;

/// Something that answers prompts. It makes one request per call: limits, retries and fallbacks are [`Models`]' work.
pub trait ModelProvider: Send + Sync {
    /// Asks `model`, and returns once the provider has begun to answer.
    ///
    /// # Errors
    /// Whatever the provider refused the request with; what goes wrong later is an item of the stream.
    fn stream<'a>(&'a self, model: &'a str, prompt: Arc<Prompt>) -> BoxFuture<'a, Result<EventStream, Error>>;

    /// The models it offers, by their names without the provider.
    ///
    /// # Errors
    /// The provider could not be asked, or does not tell.
    fn models(&self) -> BoxFuture<'_, Result<Vec<String>, Error>>;
}
