//! The calls to Discord's REST API: which, how they are bounded, and what their answers mean.
//!
//! Bodies and answers are serenity's types; the calls are not its own. Its error for a 429 has lost the time after which
//! one may ask again, its rate limiter asks discord.com whatever its proxy is, and it would bring a second HTTP client.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use openclaw_config::Secret;
use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serenity::builder::{CreateMessage, EditMessage};
use serenity::model::gateway::BotGateway;
use serenity::model::id::{ChannelId, MessageId};
use tokio::time::Instant;

use super::parse::Channel;
use super::{BuildError, DEADLINE};
use crate::channels::{Tenure, guard};
use crate::http_client::{self, causes};

/// Discord asks for this form.
const USER_AGENT: &str = concat!("DiscordBot (https://github.com/openclaw/openclaw, ", env!("CARGO_PKG_VERSION"), ")");
/// The largest answer that is read.
const BODY_BYTES: usize = 256 * 1024;
const SHOWN_CHARS: usize = 200;
/// How long to wait after a 429 that does not say it.
const LIMITED: Duration = Duration::from_secs(1);
const LONGEST_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// Limits that are remembered; past it those that are over are forgotten.
const GATES: usize = 10_000;

/// Why a call did not do what was asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum CallError {
    /// Nothing was sent.
    #[error("Discord cannot be reached: {0}")]
    Unsent(String),
    /// Discord understood, and will not.
    #[error("Discord refuses it: {said} ({status}, code {code})")]
    Refused { status: u16, code: i64, said: String },
    /// The token is wrong, or the address is banned: not the fault of this call.
    #[error("Discord refuses the bot: {said} ({status})")]
    Unauthorized { status: u16, said: String },
    #[error("Discord asks to wait")]
    Limited { after: Duration },
    /// It may have been done.
    #[error("no answer from Discord: {0}")]
    NoAnswer(String),
}

/// Calls that Discord counts together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Bucket {
    All,
    Send(ChannelId),
    Edit(ChannelId),
    Typing(ChannelId),
    Lookup,
    Gateway,
}

/// Until when no call of a bucket may be made: asking all the same is counted, and too often is a ban.
#[derive(Debug, Default)]
struct Gates(HashMap<Bucket, Instant>);

impl Gates {
    fn closed(&self, bucket: &Bucket, now: Instant) -> Option<Duration> {
        let until = [&Bucket::All, bucket].into_iter().filter_map(|bucket| self.0.get(bucket)).max()?;
        Some(until.duration_since(now)).filter(|left| !left.is_zero())
    }

    fn close(&mut self, bucket: Bucket, now: Instant, after: Duration) {
        if self.0.len() >= GATES {
            self.0.retain(|_, until| *until > now);
        }
        if self.0.len() < GATES {
            self.0.insert(bucket, now + after);
        }
    }
}

/// Discord's REST API for one bot.
pub(super) struct Rest {
    http: reqwest::Client,
    api: Url,
    authorization: HeaderValue,
    /// Of every call; a test has less time.
    pub(super) deadline: Duration,
    gates: Mutex<Gates>,
}

impl Rest {
    pub(super) fn new(api_root: &str, token: &Secret) -> Result<Self, BuildError> {
        let bad_root = |said: &str| BuildError::ApiRoot(said.to_owned());
        let api = format!("{}/api/v10/", api_root.trim_end_matches('/'));
        let api = Url::parse(&api).map_err(|error| bad_root(&error.to_string()))?;
        if !matches!(api.scheme(), "http" | "https") {
            return Err(bad_root("neither http nor https"));
        }
        let token = token.expose();
        let token = token.strip_prefix("Bot ").unwrap_or(token);
        let mut authorization = HeaderValue::from_str(&format!("Bot {token}")).map_err(|_| BuildError::Token)?;
        authorization.set_sensitive(true);
        // WebSockets are upgrades, which HTTP/2 has not.
        let client = http_client::builder(&api, USER_AGENT, DEADLINE / 2).http1_only();
        let http = client.build().map_err(|error| BuildError::Client(causes(error)))?;
        Ok(Self { http, api, authorization, deadline: DEADLINE, gates: Mutex::default() })
    }

    /// For what is not a call: the gateway's connections.
    pub(super) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Where the gateway is, and how many sessions may still be started.
    pub(super) async fn gateway(&self) -> Result<BotGateway, CallError> {
        self.json(Bucket::Gateway, self.http.get(self.url("gateway/bot"))).await
    }

    /// Which channel this one is a thread of. Of one that may not be seen it is not known, and it counts as none.
    pub(super) async fn thread_of(&self, channel: ChannelId) -> Result<Option<ChannelId>, CallError> {
        let url = self.url(format_args!("channels/{channel}"));
        match self.json::<Channel>(Bucket::Lookup, self.http.get(url)).await {
            Ok(channel) => Ok(channel.thread_of()),
            Err(CallError::Refused { .. }) => Ok(None),
            Err(
                error @ (CallError::Unsent(_)
                | CallError::Unauthorized { .. }
                | CallError::Limited { .. }
                | CallError::NoAnswer(_)),
            ) => Err(error),
        }
    }

    pub(super) async fn create_message(
        &self,
        tenure: &Tenure,
        channel: ChannelId,
        message: &CreateMessage,
    ) -> Result<MessageId, CallError> {
        #[derive(Deserialize)]
        struct Created {
            id: MessageId,
        }
        let request = body(tenure, self.http.post(self.url(format_args!("channels/{channel}/messages"))), message)?;
        self.json::<Created>(Bucket::Send(channel), request).await.map(|created| created.id)
    }

    pub(super) async fn edit_message(
        &self,
        tenure: &Tenure,
        channel: ChannelId,
        message: MessageId,
        edit: &EditMessage,
    ) -> Result<(), CallError> {
        let url = self.url(format_args!("channels/{channel}/messages/{message}"));
        self.call(Bucket::Edit(channel), body(tenure, self.http.patch(url), edit)?).await.map(drop)
    }

    pub(super) async fn trigger_typing(&self, channel: ChannelId) -> Result<(), CallError> {
        let url = self.url(format_args!("channels/{channel}/typing"));
        self.call(Bucket::Typing(channel), self.http.post(url)).await.map(drop)
    }

    fn url(&self, path: impl fmt::Display) -> Url {
        let mut url = self.api.clone();
        url.set_path(&format!("{}{path}", self.api.path()));
        url
    }

    async fn json<T: DeserializeOwned>(&self, bucket: Bucket, request: RequestBuilder) -> Result<T, CallError> {
        let body = self.call(bucket, request).await?;
        // It was done, and there is nothing to show for it.
        serde_json::from_slice(&body).map_err(|_| CallError::NoAnswer("one of another form than documented".to_owned()))
    }

    /// The body of a 2xx answer.
    async fn call(&self, bucket: Bucket, request: RequestBuilder) -> Result<Vec<u8>, CallError> {
        if let Some(after) = self.gates.lock().closed(&bucket, Instant::now()) {
            return Err(CallError::Limited { after });
        }
        let request = request.header(AUTHORIZATION, self.authorization.clone()).timeout(self.deadline);
        let response = request.send().await.map_err(unanswered)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let now = Instant::now();
        if let Some(after) = exhausted(&headers) {
            self.gates.lock().close(bucket.clone(), now, after);
        }
        let body = read(response).await;
        if status.is_success() {
            return body;
        }
        // Without its words the status still says what to do.
        let said: Said = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        if status == StatusCode::TOO_MANY_REQUESTS {
            let after = said.retry_after().or_else(|| seconds(&headers, RETRY_AFTER.as_str())).unwrap_or(LIMITED);
            let bucket = if said.global || headers.contains_key("x-ratelimit-global") { Bucket::All } else { bucket };
            self.gates.lock().close(bucket, now, after);
            return Err(CallError::Limited { after });
        }
        Err(said.meaning(status))
    }
}

fn body(tenure: &Tenure, request: RequestBuilder, body: &impl Serialize) -> Result<RequestBuilder, CallError> {
    let unreadable = |error: serde_json::Error| CallError::Unsent(error.to_string());
    let body = serde_json::to_vec(body).map_err(unreadable)?;
    Ok(request.header(reqwest::header::CONTENT_TYPE, "application/json").body(guard::body(Some(tenure), body)))
}

async fn read(mut response: Response) -> Result<Vec<u8>, CallError> {
    let mut all = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(unanswered)? {
        all.extend_from_slice(&bytes);
        if all.len() > BODY_BYTES {
            return Err(CallError::NoAnswer(format!("one of more than {BODY_BYTES} bytes")));
        }
    }
    Ok(all)
}

fn unanswered(error: reqwest::Error) -> CallError {
    if error.is_connect() || error.is_builder() || guard::held_back(&error) {
        CallError::Unsent(causes(error))
    } else {
        CallError::NoAnswer(causes(error))
    }
}

/// How long a bucket is empty, after this answer.
fn exhausted(headers: &HeaderMap) -> Option<Duration> {
    let remaining = headers.get("x-ratelimit-remaining")?;
    if remaining == "0" { seconds(headers, "x-ratelimit-reset-after") } else { None }
}

fn seconds(headers: &HeaderMap, name: &str) -> Option<Duration> {
    bounded(headers.get(name)?.to_str().ok()?.parse().ok()?)
}

fn bounded(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok().map(|time| time.min(LONGEST_LIMIT))
}

/// What Discord says when it does not do something.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    message: String,
    code: i64,
    retry_after: Option<f64>,
    global: bool,
}

impl Said {
    fn retry_after(&self) -> Option<Duration> {
        bounded(self.retry_after?)
    }

    fn meaning(&self, status: StatusCode) -> CallError {
        let said = match self.code {
            50007 => "this person takes no direct messages from the bot",
            50013 => "the bot lacks a permission there",
            50001 => "the bot may not see that channel",
            10003 => "there is no such channel",
            0 if self.message.is_empty() => status.canonical_reason().unwrap_or("no reason"),
            _ => self.message.as_str(),
        };
        let said: String = said.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect();
        let status = status.as_u16();
        match status {
            // Without a code it is not Discord that answers 403, but what protects it.
            401 => CallError::Unauthorized { status, said },
            403 if self.code == 0 => CallError::Unauthorized { status, said },
            408 | 500..=599 => CallError::NoAnswer(format!("{said} ({status})")),
            _ => CallError::Refused { status, code: self.code, said },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, body: &str, expected: CallError) {
        let said: Said = serde_json::from_str(body).unwrap_or_default();
        assert_eq!(said.meaning(StatusCode::from_u16(status).unwrap()), expected);
    }

    #[test]
    fn an_answer_says_whose_fault_it_is() {
        let refused = |status, code, said: &str| CallError::Refused { status, code, said: said.to_owned() };
        let dm = r#"{"message": "Cannot send messages to this user", "code": 50007}"#;
        check(403, dm, refused(403, 50007, "this person takes no direct messages from the bot"));
        check(400, r#"{"message": "Invalid", "code": 50035}"#, refused(400, 50035, "Invalid"));
        check(404, "", refused(404, 0, "Not Found"));
        let unauthorized = |status, said: &str| CallError::Unauthorized { status, said: said.to_owned() };
        check(401, r#"{"message": "401: Unauthorized", "code": 0}"#, unauthorized(401, "401: Unauthorized"));
        check(403, "<html>", unauthorized(403, "Forbidden"));
        check(502, "<html>", CallError::NoAnswer("Bad Gateway (502)".to_owned()));
    }

    #[test]
    fn an_empty_bucket_is_left_alone_until_it_is_full() {
        let mut gates = Gates::default();
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let (one, two) = (Bucket::Send(ChannelId::new(1)), Bucket::Send(ChannelId::new(2)));
        gates.close(one.clone(), now, second);
        assert_eq!((gates.closed(&one, now), gates.closed(&two, now)), (Some(second), None));
        assert_eq!(gates.closed(&one, now + second), None);
        gates.close(Bucket::All, now, 2 * second);
        assert_eq!((gates.closed(&one, now), gates.closed(&two, now)), (Some(2 * second), Some(2 * second)));
    }

    #[test]
    fn limits_are_read_in_seconds_and_bounded() {
        let headers = |remaining: &str, after: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-ratelimit-remaining", remaining.parse().unwrap());
            headers.insert("x-ratelimit-reset-after", after.parse().unwrap());
            exhausted(&headers)
        };
        assert_eq!(headers("1", "3"), None);
        assert_eq!(headers("0", "0.25"), Some(Duration::from_millis(250)));
        assert_eq!(headers("0", "1e9"), Some(LONGEST_LIMIT));
        for odd in ["1e300", "-1", "soon"] {
            assert_eq!(headers("0", odd), None);
        }
    }
}
