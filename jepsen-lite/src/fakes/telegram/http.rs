//! One request over HTTP: whose it is, what goes wrong with it on request, and its answer in Telegram's shape.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::{Extension, Router};
use serde_json::{Value, json};

use super::error::Error;
use super::faults::{Fault, Injection};
use super::ids::BotId;
use super::methods::{Method, Reply, call};
use super::parameters::Parameters;
use super::record::{Ended, Running};
use super::server::Server;
use crate::fakes::connection::Connection;

/// The largest body of a request.
const MAX_BODY_BYTES: usize = 1 << 20;

pub(super) fn router(server: Arc<Server>) -> Router {
    Router::new().fallback(handle).with_state(server)
}

async fn handle(
    State(server): State<Arc<Server>>,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Response {
    let poller = connection.name(server.options.label.as_ref());
    let (token, called) = split(request.uri().path());
    let bot = server.read(|state| state.bot_of(&token));
    let running = server.record.begin(&connection, poller, bot, &called);
    let result = match parameters(request).await {
        Ok(parameters) => {
            running.set_parameters(parameters.clone().into_map(), &token);
            match whose(&token, &called, bot) {
                Ok((bot, method)) => act(&server, &connection, &running, bot, method, &parameters).await,
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    answer(&running, result)
}

/// The token and the method of `/bot<token>/<method>`.
fn split(path: &str) -> (String, String) {
    // A colon is the one character of a token that clients may encode.
    let rest = path.strip_prefix("/bot").unwrap_or_default().replace("%3A", ":").replace("%3a", ":");
    let (token, method) = rest.split_once('/').unwrap_or_default();
    (token.to_owned(), method.trim_matches('/').to_owned())
}

async fn parameters(request: Request) -> Result<Parameters, Error> {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, MAX_BODY_BYTES).await.map_err(|_| Error::TooLarge)?;
    let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    Parameters::read(head.uri.query(), kind, &body)
}

fn whose(token: &str, called: &str, bot: Option<BotId>) -> Result<(BotId, Method), Error> {
    if token.is_empty() && called.is_empty() {
        return Err(Error::NotFound);
    }
    let Some(bot) = bot else {
        let is_token = token.split_once(':').is_some_and(|(id, _)| id.parse::<u32>().is_ok_and(|id| id > 0));
        return Err(if is_token { Error::Unauthorized } else { Error::InvalidToken });
    };
    Ok((bot, Method::parse(called).ok_or(Error::MethodNotFound)?))
}

async fn act(
    server: &Arc<Server>,
    connection: &Connection,
    running: &Running,
    bot: BotId,
    method: Method,
    parameters: &Parameters,
) -> Result<Reply, Error> {
    let met = server.faults.meet(bot, method);
    match met.as_ref().map(Injection::fault) {
        None | Some(Fault::ActThenClose | Fault::ActThenHang) => {}
        Some(Fault::Status(status)) => return Err(Error::OnRequest(status)),
        Some(Fault::RetryAfter(seconds)) => return Err(Error::TooManyRequests(seconds)),
        Some(Fault::Close) => close(connection, running).await,
        Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
        Some(Fault::Hang) => released(met.as_ref()).await,
    }
    let result = call(server, bot, method, parameters).await;
    match met.as_ref().map(Injection::fault) {
        Some(Fault::ActThenClose) => close(connection, running).await,
        Some(Fault::ActThenHang) => released(met.as_ref()).await,
        None | Some(Fault::Status(_) | Fault::RetryAfter(_) | Fault::Close | Fault::Delay(_) | Fault::Hang) => {}
    }
    result
}

async fn released(met: Option<&Injection>) {
    if let Some(injection) = met {
        injection.released().await;
    }
}

/// Closes the connection, and with it ends this call.
async fn close(connection: &Connection, running: &Running) {
    running.end(Ended::Aborted);
    connection.hang_up();
    std::future::pending().await
}

fn answer(running: &Running, result: Result<Reply, Error>) -> Response {
    let (status, retry_after, body) = match result {
        Ok(Reply { result, description }) => {
            let mut body = json!({"ok": true, "result": result});
            if let Some(description) = description {
                body["description"] = Value::from(description);
            }
            (200, None, body)
        }
        Err(error) => (error.status(), error.retry_after(), error.body()),
    };
    running.end(Ended::Answered(status));
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}
