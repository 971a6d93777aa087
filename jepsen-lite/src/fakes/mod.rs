//! Servers of others that are not theirs: real HTTP, the protocols as their makers document them, and every failure on request.
//!
//! [`telegram`] and [`discord`] are chat platforms and stand for themselves, and so does the collector of traces, [`otlp`]. The others are model servers: what a request's
//! model is called says how the server behaves ([`behaviour`]), so that one server serves every test at once. It records what it
//! was asked, when, and how each answer ended, and counts how many it gave at once. README.md says what they do not model.

mod anthropic;
pub mod behaviour;
pub mod cli;
mod connection;
pub mod discord;
mod openai;
pub mod otlp;
mod record;
pub mod telegram;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use behaviour::{Behaviour, Fault};
pub use connection::Label;
pub use record::{Ended, Recorded};
use record::{Record, Running};

/// Which protocol a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    Openai,
    Anthropic,
}

#[derive(Debug, Clone)]
pub struct Options {
    /// Requests without it are refused; absent: none is asked for.
    pub api_key: Option<String>,
    /// How many requests are remembered; the oldest are forgotten first.
    pub remembered: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { api_key: None, remembered: 10_000 }
    }
}

/// A server that runs until it is stopped or dropped.
pub struct Handle {
    address: SocketAddr,
    protocol: Protocol,
    record: Arc<Record>,
    task: JoinHandle<()>,
}

/// Starts a server; port 0 takes a free one.
///
/// # Errors
/// When the address cannot be bound.
pub async fn start(protocol: Protocol, address: SocketAddr, options: Options) -> Result<Handle> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("bind {address}"))?;
    let address = listener.local_addr().context("read the bound address")?;
    let record = Arc::new(Record::new(options.remembered));
    let server = Arc::new(Server { api_key: options.api_key, record: record.clone() });
    let router = match protocol {
        Protocol::Openai => openai::router(server),
        Protocol::Anthropic => anthropic::router(server),
    };
    Ok(Handle { address, protocol, record, task: tokio::spawn(connection::serve(listener, router)) })
}

impl Handle {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a client of the protocol is configured with.
    pub fn base_url(&self) -> String {
        match self.protocol {
            Protocol::Openai => format!("http://{}/v1", self.address),
            Protocol::Anthropic => format!("http://{}", self.address),
        }
    }

    /// The requests that were remembered, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.record.requests()
    }

    /// Answers that are being given now.
    pub fn running(&self) -> usize {
        self.record.running()
    }

    /// The most answers that were given at one time.
    pub fn max_concurrent(&self) -> usize {
        self.record.max_concurrent()
    }

    /// Closes the listener and every connection, whatever is on it.
    pub async fn stop(mut self) {
        self.task.abort();
        // The task was cancelled: that is its only end.
        drop((&mut self.task).await);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Server {
    api_key: Option<String>,
    record: Arc<Record>,
}

impl Server {
    /// Whether `presented` is the key; `Err` quotes it whole, as the rudest of servers do.
    fn check_key(&self, presented: Option<&str>) -> Result<(), String> {
        match &self.api_key {
            Some(key) if presented != Some(key) => {
                Err(format!("Incorrect API key provided: {}", presented.unwrap_or("none")))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// What a request asks for, in every protocol.
struct Asked {
    model: String,
    streamed: bool,
    input_tokens: u64,
}

/// How a protocol writes an answer.
trait Answer: Send + 'static {
    /// Events before the first token.
    fn head(&self, asked: &Asked, behaviour: &Behaviour) -> Vec<String>;
    fn token(&self, asked: &Asked, text: &str) -> String;
    /// Events after the last token.
    fn tail(&self, asked: &Asked, behaviour: &Behaviour) -> Vec<String>;
    /// An error as an event of the stream.
    fn error_event(&self) -> String;
    /// The whole answer in one piece.
    fn whole(&self, asked: &Asked, behaviour: &Behaviour, text: &str) -> Value;
    /// An error as an answer of its own.
    fn error(&self, status: StatusCode, message: &str) -> Value;
}

/// Answers `body` as its model's name says.
async fn answer(server: &Server, path: &str, body: Value, asked: Asked, protocol: impl Answer) -> Response {
    let running = server.record.begin(path, &asked.model, body);
    let Some(behaviour) = Behaviour::parse(&asked.model) else {
        let message = format!("The model `{}` does not exist", asked.model);
        return refuse(running, StatusCode::NOT_FOUND, HeaderMap::new(), &protocol, &message);
    };
    if let Some(failure) = behaviour.status
        && failure.times.is_none_or(|times| server.record.count(&asked.model) <= times)
    {
        let message = format!("this model answers {}", failure.status.as_u16());
        return refuse(running, failure.status, failure.headers(), &protocol, &message);
    }
    if behaviour.hang {
        let _running = running;
        return std::future::pending().await;
    }
    if asked.streamed && !behaviour.json {
        return streamed(running, asked, behaviour, protocol);
    }
    sleep_until(Instant::now() + behaviour.delay * behaviour.tokens).await;
    let text: String = (1..=behaviour.tokens).map(|n| behaviour.token(n)).collect();
    let whole = protocol.whole(&asked, &behaviour, &text);
    running.end(Ended::Complete);
    json(StatusCode::OK, HeaderMap::new(), &whole)
}

fn refuse(running: Running, status: StatusCode, headers: HeaderMap, protocol: &impl Answer, message: &str) -> Response {
    running.end(Ended::Refused(status.as_u16()));
    json(status, headers, &protocol.error(status, message))
}

fn json(status: StatusCode, headers: HeaderMap, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    let kind = axum::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, kind);
    response
}

fn streamed(running: Running, asked: Asked, behaviour: Behaviour, protocol: impl Answer) -> Response {
    let start = Instant::now();
    let body = async_stream::stream! {
        for event in protocol.head(&asked, &behaviour) {
            yield Ok(event);
        }
        for n in 1..=behaviour.tokens {
            if let Some((after, fault)) = behaviour.fault && after < n {
                match fault {
                    Fault::Break => {
                        running.end(Ended::Broken);
                        yield Err(std::io::Error::other("broken on request"));
                        return;
                    }
                    Fault::Close => {
                        running.end(Ended::Broken);
                        return;
                    }
                    Fault::Garbage => yield Ok("data: {\"choices\": [\n\n".to_owned()),
                    Fault::Error => yield Ok(protocol.error_event()),
                    Fault::Stall => std::future::pending().await,
                }
                running.end(Ended::Broken);
                return;
            }
            if !behaviour.delay.is_zero() {
                sleep_until(start + behaviour.delay * n).await;
            }
            if behaviour.comments {
                yield Ok(": keep-alive\n\n".to_owned());
            }
            yield Ok(protocol.token(&asked, &behaviour.token(n)));
        }
        for event in protocol.tail(&asked, &behaviour) {
            yield Ok(event);
        }
        running.end(Ended::Complete);
    };
    let body = in_pieces(body, behaviour);
    let mut response = Response::new(Body::from_stream(body));
    let kind = axum::http::HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, kind);
    response
}

/// The same bytes, as the behaviour wants them on the wire.
fn in_pieces(
    events: impl futures::Stream<Item = std::io::Result<String>>,
    behaviour: Behaviour,
) -> impl futures::Stream<Item = std::io::Result<Bytes>> {
    async_stream::stream! {
        for await event in events {
            let event = match event {
                Ok(event) if behaviour.crlf => event.replace('\n', "\r\n"),
                Ok(event) => event,
                Err(error) => {
                    // What was yielded before must be on its way first: an error discards what is buffered.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    yield Err(error);
                    return;
                }
            };
            if behaviour.split {
                for byte in event.into_bytes() {
                    yield Ok(Bytes::copy_from_slice(&[byte]));
                    // Lets the connection send this byte alone.
                    tokio::task::yield_now().await;
                }
            } else {
                yield Ok(Bytes::from(event));
            }
        }
    }
}

fn event(name: Option<&str>, data: &Value) -> String {
    match name {
        Some(name) => format!("event: {name}\ndata: {data}\n\n"),
        None => format!("data: {data}\n\n"),
    }
}

fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}
