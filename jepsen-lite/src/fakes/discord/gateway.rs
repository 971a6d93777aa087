//! One connection to the gateway, from its upgrade to its end: moves frames, watches heartbeats. What they mean is in `state`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::super::connection::Connection;
use super::record::{By, Door};
use super::state::{Shared, Step};
use super::{HEARTBEAT_INTERVAL, close};

/// What the server reads of one message at most; more than Discord's 4096 bytes, so that it can say what was wrong.
const MESSAGE_BYTES: usize = 1 << 20;
/// How long a client may take to answer a close frame.
const CLOSING: Duration = Duration::from_secs(1);

pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Answers an upgrade, and leaves a connection to the gateway behind.
pub(super) fn upgrade(
    shared: &Arc<Shared>,
    door: Door,
    connection: &Connection,
    mut request: Request<Body>,
) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let of = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let version: u64 = of("v").and_then(|version| version.parse().ok()).unwrap_or(0);
    if of("encoding").is_some_and(|encoding| encoding != "json") || of("compress").is_some() {
        return plain(StatusCode::BAD_REQUEST, "the fake speaks JSON, without transport compression");
    }
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return plain(StatusCode::BAD_REQUEST, "no Sec-WebSocket-Key");
    };
    let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else {
        return plain(StatusCode::BAD_REQUEST, "bad Sec-WebSocket-Key");
    };
    let user_agent = text(request.headers(), &header::USER_AGENT);
    let upgraded = hyper::upgrade::on(&mut request);
    let (shared, peer, caller) = (shared.clone(), connection.peer(), shared.name(connection));
    connection.afterwards(Box::pin(async move {
        let Ok(upgraded) = upgraded.await else {
            return;
        };
        let config = WebSocketConfig {
            max_message_size: Some(MESSAGE_BYTES),
            max_frame_size: Some(MESSAGE_BYTES),
            ..WebSocketConfig::default()
        };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
        let number = shared.change(|state| state.connect(peer, caller, door, user_agent));
        let changes = shared.changes();
        Gateway { shared, number, socket, changes }.run(version).await;
    }));
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

fn plain(status: StatusCode, message: &'static str) -> Response {
    let mut response = Response::new(Body::from(message));
    *response.status_mut() = status;
    response
}

pub(super) fn text(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

struct Gateway {
    shared: Arc<Shared>,
    number: u64,
    socket: WebSocketStream<TokioIo<Upgraded>>,
    changes: watch::Receiver<u64>,
}

/// How a connection ends.
enum End {
    /// We say so, with this code.
    Close(u16),
    /// We go without a word.
    Drop,
    /// The client went, with a code or without.
    Gone(Option<u16>),
}

impl Gateway {
    async fn run(mut self, version: u64) {
        let end = if (8..=10).contains(&version) { self.talk().await } else { End::Close(close::INVALID_VERSION) };
        let (code, by) = match end {
            End::Close(code) => (Some(code), By::Server),
            End::Drop => (None, By::Server),
            End::Gone(code) => (code, By::Client),
        };
        // Recorded before the client can know of it: whatever it does next comes after.
        self.shared.change(|state| state.disconnect(self.number, code, by));
        match end {
            End::Close(code) => {
                let frame = CloseFrame { code: code.into(), reason: "".into() };
                // The connection is dropped next, whether the client answers or not.
                drop(timeout(CLOSING, self.close(frame)).await);
            }
            // Lets the answer to the client's close frame out.
            End::Gone(Some(_)) => drop(timeout(CLOSING, self.socket.flush()).await),
            End::Gone(None) | End::Drop => {}
        }
    }

    async fn close(&mut self, frame: CloseFrame<'static>) {
        if self.socket.close(Some(frame)).await.is_ok() {
            while let Some(Ok(_)) = self.socket.next().await {}
        }
    }

    async fn talk(&mut self) -> End {
        let interval = self.shared.look().options.heartbeat_interval.unwrap_or(HEARTBEAT_INTERVAL);
        // A client's timer may be late, and at a short interval by more than half of it.
        let patience = interval + (interval / 2).max(Duration::from_secs(1));
        let mut beat_by = Instant::now() + patience;
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        let hello = json!({"op": 10, "d": {"heartbeat_interval": interval_ms, "_trace": []}});
        if let Err(end) = self.send(vec![hello], beat_by).await {
            return end;
        }
        loop {
            self.changes.borrow_and_update();
            let step = self.step();
            match step {
                Step::Send(frames) => {
                    if let Err(end) = self.send(frames, beat_by).await {
                        return end;
                    }
                    continue;
                }
                Step::Close(code) => return End::Close(code),
                Step::Drop => return End::Drop,
                Step::Hang => return self.hang().await,
                Step::Wait => {}
            }
            let message = tokio::select! {
                message = self.socket.next() => message,
                // The sender is in `shared`, which we have.
                _ = self.changes.changed() => continue,
                () = sleep_until(beat_by) => return End::Close(close::SESSION_TIMED_OUT),
            };
            let text = match message {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Close(frame))) => return gone(frame.as_ref()),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Binary(_))) => return End::Close(close::DECODE),
                Some(Err(_)) | None => return End::Gone(None),
            };
            if serde_json::from_str(&text).is_ok_and(|message: Value| message["op"] == 1) {
                beat_by = Instant::now() + patience;
            }
            match self.shared.change(|state| state.receive(self.number, &text)) {
                Ok(frames) => {
                    if let Err(end) = self.send(frames, beat_by).await {
                        return end;
                    }
                }
                Err(code) => return End::Close(code),
            }
        }
    }

    /// Tells others only when something was done: our own news would wake us for ever.
    fn step(&mut self) -> Step {
        let step = self.shared.look().step(self.number);
        if step != Step::Wait {
            self.shared.change(|_| ());
        }
        step
    }

    /// A client that does not read is one that does not beat.
    async fn send(&mut self, frames: Vec<Value>, by: Instant) -> Result<(), End> {
        let sent = timeout_at(by, async {
            for frame in frames {
                self.socket.feed(Message::Text(frame.to_string())).await?;
            }
            self.socket.flush().await
        });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone(None)),
            Err(_) => Err(End::Close(close::SESSION_TIMED_OUT)),
        }
    }

    /// Says nothing more, and only sees when the client goes or the test wants an end.
    async fn hang(&mut self) -> End {
        loop {
            self.changes.borrow_and_update();
            if let Some(end) = self.shared.look().end_of_hanging(self.number) {
                return end.map_or(End::Drop, End::Close);
            }
            tokio::select! {
                message = self.socket.next() => match message {
                    Some(Ok(Message::Close(frame))) => return gone(frame.as_ref()),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return End::Gone(None),
                },
                _ = self.changes.changed() => {}
            }
        }
    }
}

fn gone(frame: Option<&CloseFrame<'_>>) -> End {
    // 1005: a close frame without a code.
    End::Gone(Some(frame.map_or(1005, |frame| frame.code.into())))
}
