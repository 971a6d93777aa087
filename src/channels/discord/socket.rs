//! A WebSocket to Discord's gateway: opened, read, written, left. What its payloads mean is `gateway`'s.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use reqwest::header::{CONNECTION, UPGRADE};
use reqwest::{StatusCode, Upgraded, Url};
use serde_json::json;
use serenity::constants::Opcode;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tracing::debug;

use crate::http_client::causes;

/// Anything but 1000 and 1001, which end the session.
const RESUMABLE: u16 = 4000;
/// A guild with all its channels comes in one message.
const MESSAGE_BYTES: usize = 32 << 20;
/// How long Discord may take to read what is sent.
const SENDING: Duration = Duration::from_secs(5);

/// Where a WebSocket of our version and encoding begins, in the scheme of HTTP.
pub(super) fn address(url: &str) -> Result<Url, String> {
    let rest = url.strip_prefix("ws").filter(|rest| rest.starts_with("://") || rest.starts_with("s://"));
    let rest = rest.ok_or_else(|| format!("{url:?} is neither a ws nor a wss URL"))?;
    let mut url = Url::parse(&format!("http{rest}")).map_err(|error| error.to_string())?;
    url.query_pairs_mut().clear().append_pair("v", "10").append_pair("encoding", "json");
    Ok(url)
}

pub(super) struct Socket(WebSocketStream<Upgraded>);

/// What came over a socket.
pub(super) enum Came {
    Payload(String),
    /// The connection is over, with a code or without.
    Closed(Option<u16>, String),
}

impl Socket {
    /// Upgrades a connection of the HTTP client, and so has its certificates, its proxies and its limits.
    pub(super) async fn open(http: &reqwest::Client, url: &str) -> Result<Self, String> {
        let key = generate_key();
        let request = http.get(address(url)?).header(CONNECTION, "Upgrade").header(UPGRADE, "websocket");
        let request = request.header("sec-websocket-version", "13").header("sec-websocket-key", &key);
        let response = request.send().await.map_err(causes)?;
        let accepted = response.headers().get("sec-websocket-accept").map(|accept| accept.as_bytes().to_owned());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(format!("it answers {} to a WebSocket", response.status()));
        }
        if accepted.as_deref() != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err("it is no WebSocket".to_owned());
        }
        let upgraded = response.upgrade().await.map_err(causes)?;
        let config = WebSocketConfig {
            max_message_size: Some(MESSAGE_BYTES),
            max_frame_size: Some(MESSAGE_BYTES),
            ..WebSocketConfig::default()
        };
        Ok(Self(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await))
    }

    /// Dropping it loses nothing.
    pub(super) async fn next(&mut self) -> Came {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => return Came::Payload(text),
                Some(Ok(Message::Close(frame))) => {
                    let reason = frame.as_ref().map_or_else(String::new, |frame| format!(": {}", frame.reason));
                    let code = frame.map(|frame| u16::from(frame.code));
                    let said = code.map_or_else(|| "without a code".to_owned(), |code| format!("with {code}{reason}"));
                    return Came::Closed(code, format!("Discord closed the connection {said}"));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Came::Closed(None, format!("the connection broke: {error}")),
                None => return Came::Closed(None, "the connection broke".to_owned()),
            }
        }
    }

    pub(super) async fn send(&mut self, op: Opcode, data: serde_json::Value) -> Result<(), String> {
        let payload = json!({"op": op, "d": data}).to_string();
        match timeout(SENDING, self.0.send(Message::Text(payload))).await {
            Ok(sent) => sent.map_err(|error| format!("the connection broke: {error}")),
            Err(_) => Err("Discord reads nothing".to_owned()),
        }
    }

    /// Says goodbye in a way that leaves the session, and is gone when it is dropped.
    pub(super) async fn close(mut self, by: Instant) {
        let frame = CloseFrame { code: RESUMABLE.into(), reason: "".into() };
        let closed = timeout_at(by, async {
            self.0.close(Some(frame)).await?;
            // Unread bytes would turn the end into a reset, which can overtake the goodbye.
            while self.0.next().await.transpose()?.is_some() {}
            Ok::<(), SocketError>(())
        });
        if let Ok(Err(error)) = closed.await {
            debug!(%error, "the connection was closed without a goodbye");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_asked_for_its_version_and_encoding() {
        assert_eq!(address("wss://g.discord.gg").unwrap().as_str(), "https://g.discord.gg/?v=10&encoding=json");
        assert_eq!(address("ws://[::1]:80/?a=b").unwrap().as_str(), "http://[::1]/?v=10&encoding=json");
        assert!(address("https://g.discord.gg").is_err() && address("wsx://g").is_err());
    }
}
