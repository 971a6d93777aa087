//! Anthropic's Messages API.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Json, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::behaviour::Behaviour;
use super::{Answer, Asked, Server, answer, event, words};

const PATH: &str = "/v1/messages";

pub(super) fn router(server: Arc<Server>) -> Router {
    Router::new().route(PATH, post(messages)).route("/v1/models", get(models)).with_state(server)
}

fn refuse(status: StatusCode, message: &str) -> Response {
    (status, Json(error_body(status, message))).into_response()
}

fn error_body(status: StatusCode, message: &str) -> Value {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": message}})
}

fn check_headers(server: &Server, headers: &HeaderMap) -> Result<(), Box<Response>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    server.check_key(text("x-api-key")).map_err(|message| Box::new(refuse(StatusCode::UNAUTHORIZED, &message)))?;
    match text("anthropic-version") {
        Some(_) => Ok(()),
        None => Err(Box::new(refuse(StatusCode::BAD_REQUEST, "anthropic-version: header is required"))),
    }
}

async fn models(State(server): State<Arc<Server>>, headers: HeaderMap) -> Response {
    if let Err(refusal) = check_headers(&server, &headers) {
        return *refusal;
    }
    let model = |id| json!({"id": id, "type": "model", "display_name": id, "created_at": "2025-01-01T00:00:00Z"});
    Json(json!({"data": [model("m8x0"), model("m64x100")], "has_more": false})).into_response()
}

async fn messages(State(server): State<Arc<Server>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    if let Err(refusal) = check_headers(&server, &headers) {
        return *refusal;
    }
    match asked(&body) {
        Ok(asked) => answer(&server, PATH, body, asked, Anthropic).await,
        Err(message) => refuse(StatusCode::BAD_REQUEST, &message),
    }
}

fn asked(body: &Value) -> Result<Asked, String> {
    let model = body["model"].as_str().ok_or("model: Field required")?.to_owned();
    if body["max_tokens"].as_u64().unwrap_or(0) == 0 {
        return Err("max_tokens: Field required".to_owned());
    }
    if body["temperature"].as_f64().is_some_and(|temperature| !(0.0..=1.0).contains(&temperature)) {
        return Err("temperature: range: 0..1".to_owned());
    }
    let messages = body["messages"].as_array().filter(|messages| !messages.is_empty());
    let messages = messages.ok_or("messages: at least one message is required")?;
    let mut input_tokens = body["system"].as_str().map_or(0, words);
    for (at, message) in messages.iter().enumerate() {
        // Stricter than the real one, which joins neighbours of one role: our client promises to alternate.
        let expected = if at % 2 == 0 { "user" } else { "assistant" };
        if message["role"] != expected {
            return Err(format!("messages.{at}.role: expected {expected:?}"));
        }
        let text = message["content"].as_str().filter(|text| !text.trim().is_empty());
        input_tokens += words(text.ok_or(format!("messages.{at}: text content blocks must be non-empty"))?);
    }
    Ok(Asked { model, streamed: body["stream"] == true, input_tokens })
}

struct Anthropic;

fn named(data: &Value) -> String {
    event(data["type"].as_str(), data)
}

impl Anthropic {
    fn message(asked: &Asked, behaviour: &Behaviour) -> Value {
        let mut message = json!({
            "id": "msg_fake", "type": "message", "role": "assistant", "model": asked.model, "content": [],
            "stop_reason": null, "stop_sequence": null,
        });
        if behaviour.usage {
            message["usage"] = json!({"input_tokens": asked.input_tokens, "output_tokens": 1});
        }
        message
    }
}

impl Answer for Anthropic {
    fn head(&self, asked: &Asked, behaviour: &Behaviour) -> Vec<String> {
        vec![
            named(&json!({"type": "message_start", "message": Self::message(asked, behaviour)})),
            named(&json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})),
            named(&json!({"type": "ping"})),
        ]
    }

    fn token(&self, _: &Asked, text: &str) -> String {
        let delta = json!({"type": "text_delta", "text": text});
        named(&json!({"type": "content_block_delta", "index": 0, "delta": delta}))
    }

    fn tail(&self, _: &Asked, behaviour: &Behaviour) -> Vec<String> {
        let mut events = vec![named(&json!({"type": "content_block_stop", "index": 0}))];
        let reason = behaviour.reason.then_some("end_turn");
        let mut end = json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}});
        if behaviour.usage {
            end["usage"] = json!({"output_tokens": behaviour.tokens});
        }
        events.push(named(&end));
        if behaviour.done {
            events.push(named(&json!({"type": "message_stop"})));
        }
        events
    }

    fn error_event(&self) -> String {
        named(&json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded on request"}}))
    }

    fn whole(&self, asked: &Asked, behaviour: &Behaviour, text: &str) -> Value {
        let mut message = Self::message(asked, behaviour);
        message["content"] = json!([{"type": "text", "text": text}]);
        message["stop_reason"] = json!("end_turn");
        if behaviour.usage {
            message["usage"]["output_tokens"] = json!(behaviour.tokens);
        }
        message
    }

    fn error(&self, status: StatusCode, message: &str) -> Value {
        error_body(status, message)
    }
}
