use std::sync::Arc;

use async_stream::try_stream;
use futures::StreamExt;
use futures::future::BoxFuture;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};

use super::http::{BuildError, Http, HttpOptions};
use super::{Error, EventStream, FinishReason, ModelEvent, ModelProvider, Prompt, PromptMessage, Role, Usage};

/// Any server that speaks OpenAI's chat completions: OpenAI, vLLM, Ollama, llama.cpp, OpenRouter, LiteLLM, ...
///
/// `base_url` ends where `/chat/completions` begins, mostly in `/v1`. Servers differ, so an answer counts as complete once a choice
/// says why it finished or `[DONE]` came; usage may be missing, come with the last choice or after it.
/// Source: <https://platform.openai.com/docs/api-reference/chat>.
pub struct OpenAi {
    http: Arc<Http>,
    /// OpenAI's newer models refuse `max_tokens`; most other servers know nothing else.
    limit_field: LimitField,
}

#[derive(Clone, Copy)]
enum LimitField {
    MaxTokens,
    MaxCompletionTokens,
}

impl OpenAi {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`BuildError`] when the settings cannot work.
    pub fn new(options: HttpOptions) -> Result<Self, BuildError> {
        let http = Http::new(options, "authorization", |key| format!("Bearer {key}"))?;
        let limit_field = match http.base().host_str() {
            Some("api.openai.com") => LimitField::MaxCompletionTokens,
            Some(_) | None => LimitField::MaxTokens,
        };
        Ok(Self { http: Arc::new(http), limit_field })
    }

    async fn start(&self, model: &str, prompt: Arc<Prompt>) -> Result<EventStream, Error> {
        let request = Request::new(model, &prompt, self.limit_field);
        let answer = self.http.send(self.http.post("/chat/completions").json(&request), model).await?;
        let http = self.http.clone();
        let model = model.to_owned();
        if answer.is_json() {
            // A server that cannot stream answers in one piece.
            let body = http.body(answer).await?;
            let mut state = State::default();
            let mut events = state.read(&http, &model, &body)?;
            events.push(state.finish(&http)?);
            return Ok(futures::stream::iter(events.into_iter().map(Ok)).boxed());
        }
        Ok(try_stream! {
            let mut state = State::default();
            let mut lines = Box::pin(http.events(answer));
            while let Some(line) = lines.next().await {
                let line = match line {
                    Ok(line) => line,
                    // The answer was complete, only its end was rude.
                    Err(_) if state.complete() => break,
                    Err(stopped) => Err(http.stopped(stopped))?,
                };
                let Some(data) = line.data else { continue };
                if data.trim() == "[DONE]" {
                    state.done = true;
                    break;
                }
                for event in state.read(&http, &model, data.as_bytes())? {
                    yield event;
                }
            }
            yield state.finish(&http)?;
        }
        .boxed())
    }
}

impl ModelProvider for OpenAi {
    fn stream<'a>(&'a self, model: &'a str, prompt: Arc<Prompt>) -> BoxFuture<'a, Result<EventStream, Error>> {
        Box::pin(self.start(model, prompt))
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        Box::pin(async {
            let answer = self.http.send(self.http.get("/models"), "").await?;
            let list: ModelList = serde_json::from_slice(&self.http.body(answer).await?)
                .map_err(|error| self.http.bad_answer(&error.to_string()))?;
            Ok(list.data.into_iter().map(|model| model.id).collect())
        })
    }
}

/// What was read of an answer so far.
#[derive(Default)]
struct State {
    reason: Option<FinishReason>,
    usage: Usage,
    done: bool,
}

impl State {
    fn complete(&self) -> bool {
        self.done || self.reason.is_some()
    }

    fn read(&mut self, http: &Http, model: &str, data: &[u8]) -> Result<Vec<ModelEvent>, Error> {
        let chunk: Chunk = serde_json::from_slice(data)
            // What came may be a piece of the conversation: it is not quoted.
            .map_err(|error| http.bad_answer(&error.to_string()))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(http.refused_in_stream(status_of(&error), data, model));
        }
        if let Some(usage) = chunk.usage {
            self.usage = Usage { input_tokens: usage.prompt_tokens, output_tokens: usage.completion_tokens };
        }
        let mut events = Vec::new();
        // We ask for one choice; a server that sends more gets the first one read.
        for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
            let text = choice.delta.or(choice.message).and_then(|piece| piece.content);
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                events.push(ModelEvent::Delta(text));
            }
            // Some servers send an empty one with every piece.
            if let Some(reason) = choice.finish_reason.filter(|reason| !reason.is_empty()) {
                self.reason = Some(match reason.as_str() {
                    "stop" => FinishReason::Stop,
                    "length" => FinishReason::Length,
                    "content_filter" => FinishReason::Filtered,
                    _ => FinishReason::Other,
                });
            }
        }
        Ok(events)
    }

    fn finish(&self, http: &Http) -> Result<ModelEvent, Error> {
        if !self.complete() {
            // Nothing tells a whole answer from half of one here, and half of one must not pass for an answer.
            return Err(Error::Unavailable {
                provider: http.provider(),
                said: "the answer ended without saying that it is complete".to_owned(),
            });
        }
        Ok(ModelEvent::Finished { usage: self.usage, reason: self.reason.unwrap_or(FinishReason::Stop) })
    }
}

/// The status that an error object inside a stream stands for.
fn status_of(error: &serde_json::Value) -> StatusCode {
    let number = ["code", "status"].iter().find_map(|field| match error.get(field) {
        Some(serde_json::Value::Number(number)) => number.as_u64(),
        Some(serde_json::Value::String(text)) => text.parse().ok(),
        Some(_) | None => None,
    });
    if let Some(status) = number.and_then(|number| StatusCode::from_u16(u16::try_from(number).ok()?).ok())
        && (status.is_client_error() || status.is_server_error())
    {
        return status;
    }
    let word = |field: &str| error.get(field).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    let words = format!("{} {}", word("type"), word("code"));
    if words.contains("rate_limit") || words.contains("quota") {
        StatusCode::TOO_MANY_REQUESTS
    } else if words.contains("overloaded") {
        StatusCode::SERVICE_UNAVAILABLE
    } else if words.contains("invalid_request") || words.contains("context_length") {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

impl<'a> Request<'a> {
    fn new(model: &'a str, prompt: &'a Prompt, limit_field: LimitField) -> Self {
        let system = prompt.system.iter().map(|text| Message { role: "system", content: text });
        let messages = system.chain(prompt.messages.iter().map(Message::from)).collect();
        let (max_tokens, max_completion_tokens) = match limit_field {
            LimitField::MaxTokens => (prompt.max_output_tokens, None),
            LimitField::MaxCompletionTokens => (None, prompt.max_output_tokens),
        };
        Self {
            model,
            messages,
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            max_tokens,
            max_completion_tokens,
            temperature: prompt.temperature,
        }
    }
}

impl<'a> From<&'a PromptMessage> for Message<'a> {
    fn from(message: &'a PromptMessage) -> Self {
        let role = match message.role {
            // `tool` needs the id of a call in the message before it, and a transcript's text has none.
            Role::User | Role::Tool => "user",
            Role::Assistant => "assistant",
            Role::System => "system",
        };
        Self { role, content: &message.text }
    }
}

/// A piece of a streamed answer, or a whole one: the two differ in `delta` and `message`.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<ChunkUsage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    delta: Option<Piece>,
    message: Option<Piece>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Piece {
    content: Option<String>,
}

#[derive(Deserialize)]
struct ChunkUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
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
    use serde_json::json;

    use super::*;
    use crate::models::http::Timeouts;

    #[test]
    fn requests_carry_the_conversation_and_ask_for_usage() {
        let message = |role, text: &str| PromptMessage { role, text: text.to_owned() };
        let prompt = Prompt {
            system: Some("be brief".into()),
            messages: vec![message(Role::User, "a"), message(Role::Assistant, "b"), message(Role::Tool, "c")],
            max_output_tokens: Some(9),
            temperature: Some(0.7),
        };
        let check = |field, expected: &str| {
            let sent = serde_json::to_value(Request::new("m", &prompt, field)).unwrap();
            assert_eq!(sent[expected], 9);
            assert_eq!(sent["stream_options"], json!({"include_usage": true}));
            let roles: Vec<_> =
                sent["messages"].as_array().unwrap().iter().map(|message| message["role"].as_str().unwrap()).collect();
            assert_eq!(roles, ["system", "user", "assistant", "user"]);
        };
        check(LimitField::MaxTokens, "max_tokens");
        check(LimitField::MaxCompletionTokens, "max_completion_tokens");
        let sent = serde_json::to_string(&Request::new("m", &prompt, LimitField::MaxTokens)).unwrap();
        assert!(sent.contains(r#""temperature":0.7"#) && !sent.contains("max_completion_tokens"), "{sent}");
    }

    #[test]
    fn an_empty_reason_in_every_piece_does_not_end_an_answer() {
        let _provider = rustls::crypto::ring::default_provider().install_default();
        let mut state = State::default();
        let http = Http::new(
            HttpOptions {
                provider: "p".into(),
                base_url: "http://127.0.0.1:9".into(),
                api_key: None,
                headers: std::collections::BTreeMap::default(),
                timeouts: Timeouts::default(),
            },
            "authorization",
            str::to_owned,
        )
        .unwrap();
        let piece = |reason: &str| json!({"choices": [{"delta": {"content": "half"}, "finish_reason": reason}]});
        state.read(&http, "m", piece("").to_string().as_bytes()).unwrap();
        assert!(!state.complete());
        state.read(&http, "m", piece("length").to_string().as_bytes()).unwrap();
        assert!(state.complete());
    }

    #[test]
    fn error_objects_in_a_stream_mean_a_status() {
        for (error, expected) in [
            (json!({"code": 429}), 429),
            (json!({"code": "503"}), 503),
            (json!({"status": 401}), 401),
            (json!({"type": "rate_limit_exceeded"}), 429),
            (json!({"code": "insufficient_quota"}), 429),
            (json!({"type": "overloaded_error"}), 503),
            (json!({"type": "invalid_request_error", "code": null}), 400),
            (json!({"code": 200}), 500),
            (json!({"code": 99999999}), 500),
            (json!("broken"), 500),
        ] {
            assert_eq!(status_of(&error).as_u16(), expected, "{error}");
        }
    }
}
