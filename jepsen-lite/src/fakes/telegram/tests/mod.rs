//! The server as its clients see it: teloxide where it can ask, bytes on a connection where it cannot.

mod faults;
mod polling;
mod sending;
mod users;
mod webhooks;

use std::time::Duration;

use serde_json::Value;
use teloxide::Bot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const TOKEN: &str = "7000001:AAsecret-of-one";
const BOT: BotId = BotId(7_000_001);
const OTHER_TOKEN: &str = "7000002:AAsecret-of-two";
const OTHER_BOT: BotId = BotId(7_000_002);
const ANN: UserId = UserId(11);
const BEN: UserId = UserId(12);
/// Far more than anything here takes.
const WITHIN: Duration = Duration::from_secs(20);

/// Two bots, without the waits that Telegram puts on who repeats himself.
fn options() -> Options {
    let zero = Duration::ZERO;
    let timing =
        Timing { repeated_poll: zero, repeated_poll_at_once: zero, between_webhooks: zero, ..Timing::default() };
    Options { timing, ..Options::with_bots(&[TOKEN, OTHER_TOKEN]) }
}

async fn started(options: Options) -> Handle {
    start("127.0.0.1:0".parse().unwrap(), options).await.unwrap()
}

/// A client with connections of its own.
fn teloxide(handle: &Handle, token: &str) -> Bot {
    let client = teloxide::net::default_reqwest_settings().no_proxy().build().unwrap();
    Bot::with_client(token, client).set_api_url(handle.api_url().parse().unwrap())
}

/// A request on a connection of its own; no answer when the connection is closed before there is one.
async fn raw(handle: &Handle, verb: &str, path: &str, kind: &str, body: &str) -> Option<(u16, String, Value)> {
    let mut connection = TcpStream::connect(handle.address()).await.unwrap();
    let length = body.len();
    let request = format!(
        "{verb} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some((status, head.to_ascii_lowercase(), serde_json::from_str(body).unwrap()))
}

/// A method of the first bot, with JSON.
async fn call(handle: &Handle, method: &str, parameters: Value) -> Value {
    let path = format!("/bot{TOKEN}/{method}");
    raw(handle, "POST", &path, "application/json", &parameters.to_string()).await.unwrap().2
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WITHIN, future).await.unwrap()
}
