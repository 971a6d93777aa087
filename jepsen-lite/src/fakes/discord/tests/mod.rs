//! The fake as a bot sees it: through raw WebSocket and HTTP, and through serenity.

mod gateway;
mod rest;
mod serenity;

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::*;

/// Longer than anything takes.
const SOON: Duration = Duration::from_secs(20);
const TOKEN: &str = "fake-token";
const ALL: u64 = intents::GUILDS | intents::GUILD_MESSAGES | intents::DIRECT_MESSAGES | MESSAGE_CONTENT;

/// As many sessions at once as a test wants.
fn options() -> Options {
    let start_limit = StartLimit { window: Duration::ZERO, ..StartLimit::default() };
    Options { start_limit, ..Options::default() }
}

async fn fake(options: Options) -> Handle {
    start("127.0.0.1:0".parse().unwrap(), options).await.unwrap()
}

/// Sends one request; `Err`: no answer came.
async fn call(
    handle: &Handle,
    token: &str,
    method: &str,
    path: &str,
    body: Value,
) -> Result<(StatusCode, HeaderMap, Value)> {
    let request = Request::builder()
        .method(method)
        .uri(format!("{}/api/v10{path}", handle.base_url()))
        .header("authorization", format!("Bot {token}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(if body.is_null() { String::new() } else { body.to_string() })))?;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
    let (parts, body) = client.request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    let json = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? };
    Ok((parts.status, parts.headers, json))
}

async fn post(handle: &Handle, channel: Id, body: Value) -> (StatusCode, HeaderMap, Value) {
    call(handle, TOKEN, "POST", &format!("/channels/{channel}/messages"), body).await.unwrap()
}

/// A connection to the gateway, greeted.
struct Raw {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    seq: u64,
}

impl Raw {
    async fn connect(url: &str) -> Self {
        let (socket, _) = connect_async(format!("{url}/?v=10&encoding=json")).await.unwrap();
        let mut raw = Self { socket, seq: 0 };
        assert_eq!(raw.next().await["op"], 10);
        raw
    }

    /// Connected and with a session, of which READY is the answer.
    async fn ready(handle: &Handle, wanted: u64) -> (Self, Value) {
        let mut raw = Self::connect(&handle.gateway_url()).await;
        raw.identify(wanted, [0, 1]).await;
        let ready = raw.event("READY").await;
        (raw, ready)
    }

    async fn resume(handle: &Handle, session: &Value, seq: u64) -> Self {
        let mut raw = Self::connect(&handle.resume_gateway_url()).await;
        raw.send(json!({"op": 6, "d": {"token": TOKEN, "session_id": session, "seq": seq}})).await;
        raw
    }

    fn address(&self) -> SocketAddr {
        let MaybeTlsStream::Plain(stream) = self.socket.get_ref() else {
            unreachable!("there is no TLS here");
        };
        stream.local_addr().unwrap()
    }

    async fn send(&mut self, value: Value) {
        self.socket.send(Frame::Text(value.to_string())).await.unwrap();
    }

    async fn identify(&mut self, wanted: u64, shard: [u64; 2]) {
        let properties = json!({"os": "linux", "browser": "test", "device": "test"});
        let data =
            json!({"token": TOKEN, "intents": wanted, "shard": shard, "properties": properties, "compress": true});
        self.send(json!({"op": 2, "d": data})).await;
    }

    /// `Err`: the connection is closed, with a code or without.
    async fn read(&mut self) -> Result<Value, Option<u16>> {
        match timeout(SOON, self.socket.next()).await.expect("something comes") {
            Some(Ok(Frame::Text(text))) => {
                let value: Value = serde_json::from_str(&text).unwrap();
                self.seq = value["s"].as_u64().unwrap_or(self.seq);
                Ok(value)
            }
            Some(Ok(Frame::Close(frame))) => Err(frame.map(|frame| frame.code.into())),
            Some(Ok(other)) => panic!("unexpected {other:?}"),
            Some(Err(_)) | None => Err(None),
        }
    }

    async fn next(&mut self) -> Value {
        self.read().await.expect("the connection is open")
    }

    /// The data of the next event, which is of this kind.
    async fn event(&mut self, kind: &str) -> Value {
        let mut value = self.next().await;
        assert_eq!((&value["op"], &value["t"]), (&json!(0), &json!(kind)), "{value}");
        value["d"].take()
    }

    /// With which code the connection closes, whatever comes before.
    async fn closed(&mut self) -> Option<u16> {
        loop {
            if let Err(code) = self.read().await {
                return code;
            }
        }
    }

    async fn close(mut self, code: u16) {
        let frame = tokio_tungstenite::tungstenite::protocol::CloseFrame { code: code.into(), reason: "".into() };
        self.socket.close(Some(frame)).await.unwrap();
        self.closed().await;
    }
}
