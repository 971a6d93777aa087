//! What the providers that speak HTTP share: a client, time-outs, the meaning of a status, and events from a body.
//!
//! Time-outs are counted here on bytes, not on events, so that a server's keep-alive comments count as signs of life.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use openclaw_config::Secret;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use sse_stream::{Sse, SseByteStream};
use tokio::time::{Instant, timeout_at};

use super::{Error, Phase};
use crate::http_client::{self, causes};

/// How long a provider may take for each part of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// From sending the request.
    pub first_byte: Duration,
    pub next_byte: Duration,
    pub whole_answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(120),
            next_byte: Duration::from_secs(60),
            whole_answer: Duration::from_secs(600),
        }
    }
}

/// Where a provider is, and how it is asked.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// The provider's name in the configuration, for errors and logs.
    pub provider: String,
    pub base_url: String,
    pub api_key: Option<Secret>,
    /// Sent with every request, over headers of the same name that the protocol has.
    pub headers: BTreeMap<String, Secret>,
    pub timeouts: Timeouts,
}

/// The settings of a provider cannot work.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("models.providers.{provider}.baseUrl is not an http or https URL: {said}")]
    BaseUrl { provider: String, said: String },
    #[error("models.providers.{provider}.apiKey has characters that no HTTP header may carry")]
    ApiKey { provider: String },
    #[error("models.providers.{provider}.headers.{name} is not a header that HTTP can carry")]
    Header { provider: String, name: String },
    #[error("set up the HTTP client of provider {provider}: {said}")]
    Client { provider: String, said: String },
}

/// The largest error body that is read, and the part of it that is shown.
const ERROR_BODY_BYTES: usize = 16 * 1024;
const SHOWN_CHARS: usize = 300;
/// The largest event, and the largest answer that comes in one piece.
const EVENT_BYTES: usize = 1024 * 1024;
const BODY_BYTES: usize = 8 * 1024 * 1024;
/// The rest of an error's body is not worth a longer wait.
const ERROR_BODY_TIME: Duration = Duration::from_secs(5);

/// A provider's HTTP side.
pub(super) struct Http {
    provider: Arc<str>,
    client: reqwest::Client,
    base: Url,
    /// What no error may show.
    secrets: Vec<Secret>,
    timeouts: Timeouts,
}

impl Http {
    /// `key_header` carries the key, made by `key_value`, in every request.
    pub(super) fn new(
        options: HttpOptions,
        key_header: &'static str,
        key_value: impl Fn(&str) -> String,
    ) -> Result<Self, BuildError> {
        let HttpOptions { provider, base_url, api_key, headers: added, timeouts } = options;
        let bad_url = |said: &str| BuildError::BaseUrl { provider: provider.clone(), said: said.to_owned() };
        let base = Url::parse(base_url.trim_end_matches('/')).map_err(|error| bad_url(&error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(bad_url("another scheme"));
        }
        let mut headers = HeaderMap::new();
        if let Some(key) = &api_key {
            let value = sensitive(&key_value(key.expose()));
            headers.insert(key_header, value.ok_or_else(|| BuildError::ApiKey { provider: provider.clone() })?);
        }
        for (name, value) in &added {
            let header = HeaderName::try_from(name.as_str()).ok().zip(sensitive(value.expose()));
            let (header, value) =
                header.ok_or_else(|| BuildError::Header { provider: provider.clone(), name: name.clone() })?;
            headers.insert(header, value);
        }
        let user_agent = concat!("openclaw/", env!("CARGO_PKG_VERSION"));
        let client = http_client::builder(&base, user_agent, timeouts.connect).default_headers(headers);
        let client =
            client.build().map_err(|error| BuildError::Client { provider: provider.clone(), said: causes(error) })?;
        let secrets = api_key.into_iter().chain(added.into_values()).collect();
        Ok(Self { provider: provider.into(), client, base, secrets, timeouts })
    }

    pub(super) fn provider(&self) -> String {
        self.provider.as_ref().to_owned()
    }

    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    pub(super) fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(self.url(path))
    }

    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path))
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }

    /// Sends a request about `model`; an answer that is not 2xx is an error that says what the provider said.
    pub(super) async fn send(&self, request: RequestBuilder, model: &str) -> Result<Answer, Error> {
        let deadline = Instant::now() + self.timeouts.first_byte;
        let response = timeout_at(deadline, request.send())
            .await
            .map_err(|_| self.timeout(Phase::FirstByte, self.timeouts.first_byte))?
            .map_err(|error| self.transport(error))?;
        let status = response.status();
        if status.is_success() {
            let answer = Answer { response, deadline };
            return if answer.is_of_type("text/html") {
                Err(self.bad_answer("a web page; is baseUrl right?"))
            } else {
                Ok(answer)
            };
        }
        let retry_after = retry_after(response.headers(), SystemTime::now());
        let body = timeout_at(Instant::now() + ERROR_BODY_TIME, read_up_to(response, ERROR_BODY_BYTES)).await;
        let body = body.unwrap_or_default();
        Err(self.refused(status, &body, retry_after, model))
    }

    /// The events of an answer's body.
    pub(super) fn events(&self, answer: Answer) -> impl Stream<Item = Result<Sse, Stopped>> + Send + use<> {
        decode(self.watched(answer))
    }

    /// An answer's body while it shows signs of life.
    fn watched(&self, answer: Answer) -> impl Stream<Item = Result<Bytes, Stopped>> + Send + use<> {
        let Timeouts { first_byte, next_byte, .. } = self.timeouts;
        let Answer { response, deadline } = answer;
        let body = response.bytes_stream().boxed();
        stream::unfold((body, Some(deadline)), move |(mut body, first)| async move {
            let deadline = first.unwrap_or_else(|| Instant::now() + next_byte);
            let item = match timeout_at(deadline, body.next()).await {
                Ok(Some(Ok(bytes))) => Ok(bytes),
                Ok(Some(Err(error))) => Err(Stopped::Broken(causes(error))),
                Ok(None) => return None,
                Err(_) if first.is_some() => Err(Stopped::Silent(Phase::FirstByte, first_byte)),
                Err(_) => Err(Stopped::Silent(Phase::NextByte, next_byte)),
            };
            Some((item, (body, None)))
        })
    }

    /// The whole body of an answer that comes in one piece.
    pub(super) async fn body(&self, answer: Answer) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + self.timeouts.whole_answer;
        let mut body = answer.response.bytes_stream();
        let mut all = Vec::new();
        while let Some(bytes) = timeout_at(deadline, body.next())
            .await
            .map_err(|_| self.timeout(Phase::WholeAnswer, self.timeouts.whole_answer))?
        {
            all.extend_from_slice(&bytes.map_err(|error| self.transport(error))?);
            if all.len() > BODY_BYTES {
                return Err(self.bad_answer(&format!("more than {BODY_BYTES} bytes")));
            }
        }
        Ok(all)
    }

    pub(super) fn bad_answer(&self, said: &str) -> Error {
        Error::BadAnswer { provider: self.provider(), said: self.shown(said) }
    }

    pub(super) fn stopped(&self, stopped: Stopped) -> Error {
        match stopped {
            Stopped::Broken(said) => Error::Unavailable { provider: self.provider(), said: self.shown(&said) },
            Stopped::Silent(phase, waited) => self.timeout(phase, waited),
            Stopped::TooLarge => self.bad_answer(&format!("an event of more than {EVENT_BYTES} bytes")),
            Stopped::NotEvents(said) => self.bad_answer(&said),
        }
    }

    /// The meaning of an answer with this status.
    fn refused(&self, status: StatusCode, body: &[u8], retry_after: Option<Duration>, model: &str) -> Error {
        let (text, code) = message_of(body);
        // Not every status in use has a name.
        let name = status.canonical_reason().map(|name| format!(" {name}")).unwrap_or_default();
        let said = format!("{}{name}: {text}", status.as_u16());
        self.meaning(status, code.as_deref(), said.trim_end_matches([':', ' ']), retry_after, model)
    }

    /// The meaning of an error inside a stream that would have had this status as an answer of its own.
    pub(super) fn refused_in_stream(&self, status: StatusCode, body: &[u8], model: &str) -> Error {
        let (text, code) = message_of(body);
        self.meaning(status, code.as_deref(), &format!("{text} (in the stream)"), None, model)
    }

    fn meaning(
        &self,
        status: StatusCode,
        code: Option<&str>,
        said: &str,
        retry_after: Option<Duration>,
        model: &str,
    ) -> Error {
        let said = self.shown(said);
        let provider = self.provider();
        // OpenAI answers 429 for an empty account as well, where no wait helps.
        let out_of_money = matches!(code, Some("insufficient_quota" | "billing_hard_limit_reached"));
        match status.as_u16() {
            401..=403 => Error::Unauthorized { provider, said },
            429 if out_of_money => Error::Unauthorized { provider, said },
            404 => Error::NotFound { provider, model: model.to_owned(), said },
            429 => Error::RateLimited { provider, said, retry_after },
            503 | 529 => Error::Overloaded { provider, said, retry_after },
            408 | 425 | 500..=599 => Error::Unavailable { provider, said },
            400..=499 => Error::Invalid { provider, said },
            _ => Error::BadAnswer { provider, said },
        }
    }

    fn timeout(&self, phase: Phase, waited: Duration) -> Error {
        Error::Timeout { provider: self.provider(), phase, waited }
    }

    fn transport(&self, error: reqwest::Error) -> Error {
        if error.is_timeout() {
            return self.timeout(Phase::Connection, self.timeouts.connect);
        }
        Error::Unavailable { provider: self.provider(), said: self.shown(&causes(error)) }
    }

    /// A provider's words as a person may read them: one bounded line, without our secrets.
    fn shown(&self, text: &str) -> String {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(char::is_control, "");
        let text = self.secrets.iter().fold(text, |text, secret| redact(&text, secret.expose()));
        match text.char_indices().nth(SHOWN_CHARS) {
            Some((at, _)) => format!("{}…", &text[..at]),
            None => text,
        }
    }
}

/// The events in a body. A last one without its empty line counts, and none may be larger than [`EVENT_BYTES`].
fn decode(
    body: impl Stream<Item = Result<Bytes, Stopped>> + Send + 'static,
) -> impl Stream<Item = Result<Sse, Stopped>> + Send {
    // Bytes since the last event: the parser has no limit of its own, so it must not be fed without end.
    let unfinished = Arc::new(AtomicUsize::new(0));
    let fed = unfinished.clone();
    let bounded = body.map(move |bytes| {
        let bytes = bytes?;
        let before = fed.fetch_add(bytes.len(), Ordering::Relaxed);
        if before + bytes.len() > EVENT_BYTES { Err(Stopped::TooLarge) } else { Ok(bytes) }
    });
    let ended = bounded.chain(stream::iter([Ok(Bytes::from_static(b"\n\n"))]));
    SseByteStream::new(ended.boxed()).map(move |event| {
        unfinished.store(0, Ordering::Relaxed);
        event.map_err(Stopped::from_parser)
    })
}

/// The beginning of a 2xx answer.
pub(super) struct Answer {
    response: Response,
    /// The latest moment for its body's first byte.
    deadline: Instant,
}

impl Answer {
    /// Whether it comes in one piece. Servers that stream without saying so exist; those that do not stream say JSON.
    pub(super) fn is_json(&self) -> bool {
        self.is_of_type("application/json")
    }

    fn is_of_type(&self, prefix: &str) -> bool {
        let value = self.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with(prefix))
    }
}

/// Why a body gave no more events.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum Stopped {
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("no {0} within {1:?}")]
    Silent(Phase, Duration),
    #[error("an event is too large")]
    TooLarge,
    #[error("{0}")]
    NotEvents(String),
}

impl Stopped {
    fn from_parser(error: sse_stream::Error) -> Self {
        let sse_stream::Error::Body(error) = error else { return Self::NotEvents(error.to_string()) };
        match error.downcast::<Self>() {
            Ok(stopped) => *stopped,
            Err(error) => Self::Broken(error.to_string()),
        }
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A key's first characters give it away as well: providers quote keys partly masked.
const KEY_PREFIX: usize = 6;

/// `text` without `key`, and without words that begin like it.
fn redact(text: &str, key: &str) -> String {
    if key.is_empty() {
        return text.to_owned();
    }
    let text = text.replace(key, "***");
    let Some(prefix) = key.get(..KEY_PREFIX) else { return text };
    let hide = |word: &str| match word.find(prefix) {
        Some(at) => format!("{}***", &word[..at]),
        None => word.to_owned(),
    };
    text.split(' ').map(hide).collect::<Vec<_>>().join(" ")
}

/// The text for people in an error body, and the error's code. Servers agree on little, so several shapes are known.
fn message_of(body: &[u8]) -> (String, Option<String>) {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else {
        return (String::from_utf8_lossy(body).into_owned(), None);
    };
    let text = ["/error/message", "/error", "/message", "/detail"]
        .iter()
        .find_map(|at| json.pointer(at).and_then(|value| value.as_str()))
        .map_or_else(|| json.to_string(), str::to_owned);
    let code = ["/error/code", "/error/type"].iter().find_map(|at| json.pointer(at).and_then(|value| value.as_str()));
    (text, code.map(str::to_owned))
}

/// `Retry-After` in seconds or as a date; OpenAI's own header in milliseconds is more exact.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse::<u32>().ok()) {
        return Some(Duration::from_millis(ms.into()));
    }
    let text = text(RETRY_AFTER.as_str())?;
    match text.parse::<f64>() {
        Ok(seconds) if seconds >= 0.0 => Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
        Ok(_) => None,
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

async fn read_up_to(response: Response, limit: usize) -> Vec<u8> {
    let mut body = response.bytes_stream();
    let mut all = Vec::new();
    while let Some(Ok(bytes)) = body.next().await {
        all.extend_from_slice(&bytes[..bytes.len().min(limit - all.len())]);
        if all.len() == limit {
            break;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `text` as it would come in chunks of `size` bytes: the data of each event, and how it ended.
    async fn decoded(text: &[u8], size: usize) -> (Vec<String>, Option<Stopped>) {
        let chunks: Vec<_> = text.chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let mut events = Box::pin(decode(stream::iter(chunks)));
        let mut all = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => all.extend(event.data),
                Err(stopped) => return (all, Some(stopped)),
            }
        }
        (all, None)
    }

    #[tokio::test]
    async fn events_are_the_same_however_their_bytes_arrive() {
        for (text, expected) in [
            ("data: a\n\ndata: b\n\n", &["a", "b"][..]),
            ("data:a\r\n\r\ndata: b\r\rdata: c\n\n", &["a", "b", "c"]),
            (": ping\n\n: ping\n\ndata: a\n: in between\ndata: b\n\n", &["a\nb"]),
            ("event: x\nid: 7\nretry: 5\nunknown: y\ndata: ü🦀\n\n", &["ü🦀"]),
            ("\u{feff}data: {\"a\": \"b: c\"}\n\n", &["{\"a\": \"b: c\"}"]),
            ("data:  two spaces\n\ndata\n\ndata:\n\n", &[" two spaces", "", ""]),
            ("data: a\n\ndata: without an end", &["a", "without an end"]),
            ("data: a\n", &["a"]),
            ("", &[]),
            ("\n\n\n: nothing\n\n", &[]),
        ] {
            for size in [1, 2, 3, 5, 1000] {
                let (events, stopped) = decoded(text.as_bytes(), size).await;
                assert_eq!(
                    (events, stopped),
                    (expected.iter().map(|text| (*text).to_owned()).collect(), None),
                    "{text:?} by {size}"
                );
            }
        }
    }

    #[tokio::test]
    async fn an_event_without_end_is_refused_and_many_events_are_not() {
        let large = format!("data: {}\n\n", "x".repeat(EVENT_BYTES));
        assert_eq!(decoded(large.as_bytes(), 8192).await, (vec![], Some(Stopped::TooLarge)));
        let comments = ":\n".repeat(EVENT_BYTES);
        assert_eq!(decoded(comments.as_bytes(), 8192).await, (vec![], Some(Stopped::TooLarge)));
        let many = format!("data: {}\n\n", "x".repeat(1000)).repeat(5000);
        let (events, stopped) = decoded(many.as_bytes(), 8192).await;
        assert_eq!((events.len(), stopped), (5000, None));
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_end_the_stream() {
        let (events, stopped) = decoded(b"data: a\n\ndata: \xff\n\ndata: b\n\n", 7).await;
        assert_eq!(events, ["a"]);
        assert!(matches!(stopped, Some(Stopped::NotEvents(_))), "{stopped:?}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_nonsense_is_ignored() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let check = |name: &'static str, value: &str, expected: Option<f64>| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(retry_after(&headers, now).map(|time| time.as_secs_f64()), expected, "{value:?}");
        };
        check("retry-after", "7", Some(7.0));
        check("retry-after", " 0.5 ", Some(0.5));
        check("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT", Some(60.0));
        check("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT", Some(0.0));
        check("retry-after-ms", "250", Some(0.25));
        for nonsense in ["", "soon", "-1", "NaN", "1e400000"] {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", nonsense.parse().unwrap());
            let time = retry_after(&headers, now);
            assert!(time.is_none_or(|time| time > Duration::from_secs(60)), "{nonsense:?}: {time:?}");
        }
    }

    #[test]
    fn keys_are_not_shown_whole_nor_masked() {
        assert_eq!(redact("key sk-abc123def is wrong", "sk-abc123def"), "key *** is wrong");
        assert_eq!(redact("Incorrect API key: sk-abc1**********def.", "sk-abc123def"), "Incorrect API key: ***");
        assert_eq!(redact("Bearer=\"sk-abc999\"", "sk-abc123def"), "Bearer=\"***");
        assert_eq!(redact("nothing here", "ünï"), "nothing here");
        assert_eq!(redact("nothing here", ""), "nothing here");
    }

    #[test]
    fn error_bodies_of_several_shapes_give_their_message() {
        for (body, expected) in [
            (r#"{"error":{"message":"no","code":"x"}}"#, "no"),
            (r#"{"error":"no"}"#, "no"),
            (r#"{"message":"no"}"#, "no"),
            (r#"{"detail":"no"}"#, "no"),
            (r#"{"a":1}"#, r#"{"a":1}"#),
            ("<html>no</html>", "<html>no</html>"),
            ("", ""),
        ] {
            assert_eq!(message_of(body.as_bytes()).0, expected);
        }
    }
}
