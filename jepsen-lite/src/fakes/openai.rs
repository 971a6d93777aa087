//! OpenAI's chat completions and model list.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Json, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::behaviour::Behaviour;
use super::{Answer, Asked, Server, answer, event, words};

const PATH: &str = "/v1/chat/completions";

pub(super) fn router(server: Arc<Server>) -> Router {
    Router::new().route(PATH, post(completions)).route("/v1/models", get(models)).with_state(server)
}

fn refuse(status: StatusCode, message: &str) -> Response {
    (status, Json(error_body(status, message))).into_response()
}

fn error_body(status: StatusCode, message: &str) -> Value {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        429 => "rate_limit_exceeded",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    };
    json!({"error": {"message": message, "type": kind, "param": null, "code": null}})
}

fn check_key(server: &Server, headers: &HeaderMap) -> Result<(), Box<Response>> {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    server.check_key(bearer).map_err(|message| Box::new(refuse(StatusCode::UNAUTHORIZED, &message)))
}

async fn models(State(server): State<Arc<Server>>, headers: HeaderMap) -> Response {
    if let Err(refusal) = check_key(&server, &headers) {
        return *refusal;
    }
    let model = |id| json!({"id": id, "object": "model", "created": 0, "owned_by": "fake"});
    Json(json!({"object": "list", "data": [model("m8x0"), model("m64x100")]})).into_response()
}

async fn completions(State(server): State<Arc<Server>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    if let Err(refusal) = check_key(&server, &headers) {
        return *refusal;
    }
    match asked(&body) {
        Ok(asked) => {
            let include_usage = body["stream_options"]["include_usage"] == true;
            answer(&server, PATH, body, asked, OpenAi { include_usage }).await
        }
        Err(message) => refuse(StatusCode::BAD_REQUEST, &message),
    }
}

fn asked(body: &Value) -> Result<Asked, String> {
    let model = body["model"].as_str().ok_or("you must provide a model parameter")?.to_owned();
    let messages = body["messages"].as_array().filter(|messages| !messages.is_empty()).ok_or("messages is empty")?;
    let mut input_tokens = 0;
    for (at, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if !["system", "developer", "user", "assistant"].contains(&role) {
            return Err(format!("invalid value {role:?} of messages[{at}].role"));
        }
        input_tokens += words(message["content"].as_str().ok_or(format!("messages[{at}].content is not a text"))?);
    }
    if body["max_tokens"].as_u64().is_some_and(|limit| limit == 0) {
        return Err("max_tokens must be at least 1".to_owned());
    }
    Ok(Asked { model, streamed: body["stream"] == true, input_tokens })
}

struct OpenAi {
    include_usage: bool,
}

impl OpenAi {
    fn chunk(asked: &Asked, choices: &Value) -> Value {
        json!({"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 0, "model": asked.model, "choices": choices})
    }

    fn usage(asked: &Asked, behaviour: &Behaviour) -> Value {
        let (input, output) = (asked.input_tokens, u64::from(behaviour.tokens));
        json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
    }
}

impl Answer for OpenAi {
    fn head(&self, asked: &Asked, _: &Behaviour) -> Vec<String> {
        let choices = json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]);
        vec![event(None, &Self::chunk(asked, &choices))]
    }

    fn token(&self, asked: &Asked, text: &str) -> String {
        event(None, &Self::chunk(asked, &json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}])))
    }

    fn tail(&self, asked: &Asked, behaviour: &Behaviour) -> Vec<String> {
        let mut events = Vec::new();
        if behaviour.reason {
            let choices = json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]);
            events.push(event(None, &Self::chunk(asked, &choices)));
        }
        if behaviour.usage && self.include_usage {
            let mut chunk = Self::chunk(asked, &json!([]));
            chunk["usage"] = Self::usage(asked, behaviour);
            events.push(event(None, &chunk));
        }
        if behaviour.done {
            // Without the space, as some servers write it.
            events.push("data:[DONE]\n\n".to_owned());
        }
        events
    }

    fn error_event(&self) -> String {
        event(None, &error_body(StatusCode::INTERNAL_SERVER_ERROR, "this model fails on request"))
    }

    fn whole(&self, asked: &Asked, behaviour: &Behaviour, text: &str) -> Value {
        let message = json!({"role": "assistant", "content": text});
        let mut whole = json!({
            "id": "chatcmpl-fake", "object": "chat.completion", "created": 0, "model": asked.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        });
        if behaviour.usage {
            whole["usage"] = Self::usage(asked, behaviour);
        }
        whole
    }

    fn error(&self, status: StatusCode, message: &str) -> Value {
        error_body(status, message)
    }
}
