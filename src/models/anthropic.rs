use std::sync::Arc;

use async_stream::try_stream;
use futures::StreamExt;
use futures::future::BoxFuture;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};

use super::http::{BuildError, Http, HttpOptions};
use super::{Error, EventStream, FinishReason, ModelEvent, ModelProvider, Prompt, Role, Usage};

/// Anthropic's Messages API.
///
/// `base_url` is the server's root, with or without `/v1`.
/// Source: <https://docs.anthropic.com/en/api/messages-streaming>.
pub struct Anthropic {
    http: Arc<Http>,
    /// What stands between the base URL and `/messages`.
    root: &'static str,
}

const VERSION: &str = "2023-06-01";
/// The API requires a limit; every model it offers today allows this one.
const DEFAULT_MAX_TOKENS: u32 = 8192;
/// Stands where a conversation begins with the assistant, since the API wants the user to begin.
const OPENING: &str = "(The conversation begins with your message.)";

impl Anthropic {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`BuildError`] when the settings cannot work.
    pub fn new(options: HttpOptions) -> Result<Self, BuildError> {
        let http = Http::new(options, "x-api-key", str::to_owned)?;
        let root = if http.base().path().trim_end_matches('/').ends_with("/v1") { "" } else { "/v1" };
        Ok(Self { http: Arc::new(http), root })
    }

    async fn start(&self, model: &str, prompt: Arc<Prompt>) -> Result<EventStream, Error> {
        let request = self
            .http
            .post(&format!("{}/messages", self.root))
            .header("anthropic-version", VERSION)
            .json(&Request::new(model, &prompt));
        let answer = self.http.send(request, model).await?;
        let http = self.http.clone();
        let model = model.to_owned();
        Ok(try_stream! {
            let mut usage = Usage::default();
            let mut reason = None;
            let mut lines = Box::pin(http.events(answer));
            while let Some(line) = lines.next().await {
                let line = match line {
                    Ok(line) => line,
                    // The answer was complete, only its end was rude.
                    Err(_) if reason.is_some() => break,
                    Err(stopped) => Err(http.stopped(stopped))?,
                };
                let Some(data) = line.data else { continue };
                let event: Event = serde_json::from_str(&data)
                    .map_err(|error| http.bad_answer(&error.to_string()))?;
                match event {
                    Event::MessageStart { message } => usage = message.usage.over(usage),
                    Event::ContentBlockDelta { delta: Delta { text: Some(text) } } if !text.is_empty() => {
                        yield ModelEvent::Delta(text);
                    }
                    Event::MessageDelta { delta, usage: counted } => {
                        usage = counted.over(usage);
                        reason = delta.stop_reason.as_deref().map(reason_of).or(reason);
                    }
                    Event::MessageStop => {
                        reason = reason.or(Some(FinishReason::Stop));
                        break;
                    }
                    Event::Error { error } => Err(http.refused_in_stream(status_of(&error.kind), data.as_bytes(), &model))?,
                    Event::ContentBlockDelta { .. } | Event::Unknown => {}
                }
            }
            match reason {
                Some(reason) => yield ModelEvent::Finished { usage, reason },
                None => Err(Error::Unavailable {
                    provider: http.provider(),
                    said: "the answer ended without saying that it is complete".to_owned(),
                })?,
            }
        }
        .boxed())
    }
}

impl ModelProvider for Anthropic {
    fn stream<'a>(&'a self, model: &'a str, prompt: Arc<Prompt>) -> BoxFuture<'a, Result<EventStream, Error>> {
        Box::pin(self.start(model, prompt))
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        Box::pin(async {
            let request = self.http.get(&format!("{}/models", self.root)).header("anthropic-version", VERSION);
            let answer = self.http.send(request, "").await?;
            let list: ModelList = serde_json::from_slice(&self.http.body(answer).await?)
                .map_err(|error| self.http.bad_answer(&error.to_string()))?;
            Ok(list.data.into_iter().map(|model| model.id).collect())
        })
    }
}

fn reason_of(text: &str) -> FinishReason {
    match text {
        "end_turn" | "stop_sequence" => FinishReason::Stop,
        "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
        "refusal" => FinishReason::Filtered,
        _ => FinishReason::Other,
    }
}

/// The status that an error event would have had as an answer of its own.
fn status_of(kind: &str) -> StatusCode {
    match kind {
        "invalid_request_error" => StatusCode::BAD_REQUEST,
        "authentication_error" => StatusCode::UNAUTHORIZED,
        "billing_error" | "permission_error" => StatusCode::FORBIDDEN,
        "not_found_error" => StatusCode::NOT_FOUND,
        "request_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
        "rate_limit_error" => StatusCode::TOO_MANY_REQUESTS,
        "overloaded_error" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[derive(Debug, PartialEq, Serialize)]
struct Request<'a> {
    model: &'a str,
    max_tokens: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    system: String,
    messages: Vec<Message>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Message {
    role: &'static str,
    content: String,
}

impl<'a> Request<'a> {
    /// System messages go beside the conversation, and roles alternate, as the API wants it.
    fn new(model: &'a str, prompt: &Prompt) -> Self {
        let mut system: Vec<&str> = prompt.system.iter().map(String::as_str).collect();
        let mut messages: Vec<Message> = Vec::new();
        for message in &prompt.messages {
            let role = match message.role {
                Role::System => {
                    system.push(&message.text);
                    continue;
                }
                // A tool's result needs the id of a call, and a transcript's text has none.
                Role::User | Role::Tool => "user",
                Role::Assistant => "assistant",
            };
            // The API refuses blank text.
            if message.text.trim().is_empty() {
                continue;
            }
            match messages.last_mut() {
                Some(last) if last.role == role => {
                    last.content.push_str("\n\n");
                    last.content.push_str(&message.text);
                }
                None if role == "assistant" => {
                    messages.push(Message { role: "user", content: OPENING.to_owned() });
                    messages.push(Message { role, content: message.text.clone() });
                }
                Some(_) | None => messages.push(Message { role, content: message.text.clone() }),
            }
        }
        Self {
            model,
            max_tokens: prompt.max_output_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
            system: system.join("\n\n"),
            messages,
            stream: true,
            // Its range ends at 1, OpenAI's at 2.
            temperature: prompt.temperature.map(|temperature| temperature.clamp(0.0, 1.0)),
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Start,
    },
    ContentBlockDelta {
        delta: Delta,
    },
    MessageDelta {
        delta: End,
        #[serde(default)]
        usage: Counted,
    },
    MessageStop,
    Error {
        error: ErrorObject,
    },
    /// `ping`, block borders, and what a later version adds.
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct Start {
    #[serde(default)]
    usage: Counted,
}

/// Of text, or of something else (thinking, a tool's input) that has no `text`.
#[derive(Deserialize)]
struct Delta {
    text: Option<String>,
}

#[derive(Deserialize)]
struct End {
    stop_reason: Option<String>,
}

/// Counts are totals so far; an absent one keeps the earlier.
#[derive(Default, Deserialize)]
struct Counted {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

impl Counted {
    fn over(self, earlier: Usage) -> Usage {
        let cached = self.cache_creation_input_tokens.unwrap_or(0) + self.cache_read_input_tokens.unwrap_or(0);
        Usage {
            input_tokens: self.input_tokens.map_or(earlier.input_tokens, |tokens| tokens + cached),
            output_tokens: self.output_tokens.unwrap_or(earlier.output_tokens),
        }
    }
}

#[derive(Deserialize)]
struct ErrorObject {
    #[serde(rename = "type", default)]
    kind: String,
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::PromptMessage;

    fn check(messages: &[(Role, &str)], expected: &[(&str, &str)]) {
        let messages = messages.iter().map(|(role, text)| PromptMessage { role: *role, text: (*text).to_owned() });
        let prompt = Prompt { system: Some("s".into()), messages: messages.collect(), ..Prompt::default() };
        let request = Request::new("m", &prompt);
        let got: Vec<_> = request.messages.iter().map(|message| (message.role, message.content.as_str())).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn roles_alternate_and_the_user_begins() {
        check(
            &[(Role::User, "a"), (Role::User, "b"), (Role::Assistant, "c")],
            &[("user", "a\n\nb"), ("assistant", "c")],
        );
        check(&[(Role::Assistant, "a"), (Role::User, "b")], &[("user", OPENING), ("assistant", "a"), ("user", "b")]);
        check(&[(Role::User, "a"), (Role::System, "x"), (Role::Tool, "b"), (Role::User, " ")], &[("user", "a\n\nb")]);
    }

    #[test]
    fn system_messages_join_the_system_prompt() {
        let message = PromptMessage { role: Role::System, text: "t".into() };
        let prompt = Prompt { system: Some("s".into()), messages: vec![message], ..Prompt::default() };
        let request = Request::new("m", &prompt);
        assert_eq!((request.system.as_str(), request.max_tokens), ("s\n\nt", DEFAULT_MAX_TOKENS));
    }

    #[test]
    fn counts_replace_earlier_ones_only_where_given() {
        let start = Counted { input_tokens: Some(5), cache_read_input_tokens: Some(7), ..Counted::default() };
        let usage = start.over(Usage::default());
        let end = Counted { output_tokens: Some(3), ..Counted::default() };
        assert_eq!(end.over(usage), Usage { input_tokens: 12, output_tokens: 3 });
    }
}
