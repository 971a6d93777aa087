//! HTTP to a running gateway, over TCP or its admin socket, and what its answers mean for a command.
//!
//! Knows requests and errors, not commands. An answer that cannot be told apart from "it happened" is
//! [`Exit::EffectUnknown`], never a plain failure.

use std::time::Duration;

use openclaw_proto::http::{self, ErrorCode};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::exit::{Exit, Failure};
use super::target::{Connection, Place, Target, resolve};

/// Which question about an instance's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Does the process live?
    Live,
    /// Can it serve?
    Ready,
    /// Is all well with it?
    Health,
}

/// The longest answer read into memory; one page of a session's entries stays well below.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A gateway, reachable at one or several places.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    places: Vec<(Place, reqwest::Client)>,
    token: Option<String>,
    timeout: Duration,
}

impl Client {
    /// Finds the gateway as `connection` says; connects to nothing yet.
    ///
    /// # Errors
    /// What [`resolve`] refuses.
    pub(crate) fn new(connection: &Connection) -> Result<Self, Failure> {
        Self::to(resolve(connection)?, Duration::from_secs(connection.request_timeout))
    }

    /// # Errors
    /// A TLS set-up that this machine does not support.
    pub(crate) fn to(target: Target, timeout: Duration) -> Result<Self, Failure> {
        let places = target
            .places
            .into_iter()
            .map(|place| {
                let builder = reqwest::Client::builder()
                    .user_agent(concat!("openclaw-cli/", env!("CARGO_PKG_VERSION")))
                    .redirect(reqwest::redirect::Policy::none())
                    .connect_timeout(CONNECT_TIMEOUT);
                let builder = match &place {
                    Place::Socket(path) => builder.unix_socket(path.as_path()).no_proxy(),
                    Place::Http(url) if is_loopback(url) => builder.no_proxy(),
                    Place::Http(_) => builder,
                };
                let client = builder
                    .build()
                    .map_err(|error| Failure::failed(format!("no HTTP client for {place}: {}", causes(&error))))?;
                Ok((place, client))
            })
            .collect::<Result<_, Failure>>()?;
        Ok(Self { places, token: target.token, timeout })
    }

    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A request to the `place`-th address (counted modulo their number), without a deadline of its own.
    ///
    /// # Errors
    /// An address that has no paths.
    pub(crate) fn request(
        &self,
        place: usize,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<RequestBuilder, Failure> {
        let (place, client) = &self.places[place % self.places.len()];
        let mut url = match place {
            Place::Http(url) => url.clone(),
            Place::Socket(_) => Url::parse("http://localhost").map_err(|error| Failure::failed(error.to_string()))?,
        };
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(path),
            Err(()) => return Err(Failure::usage(format!("{place} cannot be asked for a path"))),
        };
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = client.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        Ok(request)
    }

    /// Asks for what changes nothing.
    ///
    /// # Errors
    /// Whatever keeps the answer away.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, String)]) -> Result<T, Failure> {
        let response = self.send(Effect::None, |place| self.request(place, Method::GET, path, query)).await?;
        read(response, Effect::None).await
    }

    /// Asks for a change.
    ///
    /// # Errors
    /// Whatever keeps the answer away; [`Exit::EffectUnknown`] once the request may have arrived.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        key: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let response = self
            .send(Effect::Possible, |place| {
                Ok(self.request(place, Method::POST, path, &[])?.header(http::IDEMPOTENCY_KEY, key).json(body))
            })
            .await?;
        read(response, Effect::Possible).await
    }

    /// Asks for a change of what is at `revision` still, if one is given.
    ///
    /// # Errors
    /// As [`Client::post`].
    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &[&str],
        key: &str,
        revision: Option<u64>,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let response = self
            .send(Effect::Possible, |place| {
                let request = self.request(place, Method::PATCH, path, &[])?.header(http::IDEMPOTENCY_KEY, key);
                Ok(match revision {
                    Some(revision) => request.header(reqwest::header::IF_MATCH, revision),
                    None => request,
                }
                .json(body))
            })
            .await?;
        read(response, Effect::Possible).await
    }

    /// # Errors
    /// As [`Client::post`].
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &[&str], key: &str) -> Result<T, Failure> {
        let response = self
            .send(Effect::Possible, |place| {
                Ok(self.request(place, Method::DELETE, path, &[])?.header(http::IDEMPOTENCY_KEY, key))
            })
            .await?;
        read(response, Effect::Possible).await
    }

    /// The health answer, which is a body of its own kind with 503 too.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) async fn health(&self, asked: Asked) -> Result<http::Health, Failure> {
        let path: &[&str] = match asked {
            Asked::Live => &["api", "v1", "health", "live"],
            Asked::Ready => &["api", "v1", "health", "ready"],
            Asked::Health => &["api", "v1", "health"],
        };
        let response = self.send(Effect::None, |place| self.request(place, Method::GET, path, &[])).await?;
        let status = response.status();
        let bytes = body(response, Effect::None).await?;
        match serde_json::from_slice(&bytes) {
            Ok(health) => Ok(health),
            Err(_) if status.is_success() => Err(foreign(status, Effect::None)),
            Err(_) => Err(refusal(status, &bytes, Effect::None)),
        }
    }

    /// Asks for an answer that may be long, to be read by [`Client::piece`].
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) async fn open(&self, path: &[&str], query: &[(&str, String)]) -> Result<Response, Failure> {
        let mut last = None;
        for (index, (place, _)) in self.places.iter().enumerate() {
            let asked = self.request(index, Method::GET, path, query)?.send();
            match tokio::time::timeout(self.timeout, asked).await {
                Ok(Ok(response)) if response.status().is_success() => return Ok(response),
                Ok(Ok(response)) => return Err(refused(response, Effect::None).await),
                Ok(Err(error)) if error.is_connect() => last = Some(unreachable(place, &error)),
                Ok(Err(error)) => return Err(lost(&error, Effect::None, self.timeout)),
                Err(_) => return Err(silent(self.timeout)),
            }
        }
        Err(last.unwrap_or_else(|| Failure::new(Exit::Unreachable, "no address of a gateway was given")))
    }

    /// The next bytes of a long answer; none at its end.
    ///
    /// # Errors
    /// An answer that broke off, or of which nothing came for as long as one answer may take.
    pub(crate) async fn piece(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, Failure> {
        match tokio::time::timeout(self.timeout, response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(Failure::new(Exit::Unreachable, format!("the answer broke off: {}", causes(&error)))
                .hint("try again; the gateway's log may say why")),
            Err(_) => Err(silent(self.timeout)),
        }
    }

    /// Sends to the first address that can be connected to.
    async fn send(
        &self,
        effect: Effect,
        build: impl Fn(usize) -> Result<RequestBuilder, Failure>,
    ) -> Result<Response, Failure> {
        let mut last = None;
        for (index, (place, _)) in self.places.iter().enumerate() {
            match build(index)?.timeout(self.timeout).send().await {
                Ok(response) => return Ok(response),
                Err(error) if error.is_connect() => last = Some(unreachable(place, &error)),
                Err(error) => return Err(lost(&error, effect, self.timeout)),
            }
        }
        Err(last.unwrap_or_else(|| Failure::new(Exit::Unreachable, "no address of a gateway was given")))
    }

    /// Why a connection to the `place`-th address failed.
    pub(crate) fn unreachable(&self, place: usize, error: &reqwest::Error) -> Failure {
        unreachable(&self.places[place % self.places.len()].0, error)
    }
}

/// Whether a request that got no answer can have changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    Possible,
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback()),
        None => false,
    }
}

fn unreachable(place: &Place, error: &reqwest::Error) -> Failure {
    Failure::new(Exit::Unreachable, format!("no gateway answers at {place}: {}", causes(error)))
        .hint("start one with `openclaw gateway`, or name another with --url")
}

fn silent(timeout: Duration) -> Failure {
    Failure::new(Exit::Unreachable, format!("nothing came for {} s", timeout.as_secs()))
        .hint("try again, or another instance with --url")
}

/// The request was sent, or may have been, and no answer came.
fn lost(error: &reqwest::Error, effect: Effect, timeout: Duration) -> Failure {
    let what = if error.is_timeout() {
        format!("no answer within {} s", timeout.as_secs())
    } else {
        format!("the connection broke before the answer: {}", causes(error))
    };
    match effect {
        Effect::None => Failure::new(Exit::Unreachable, what).hint("try again, or another instance with --url"),
        Effect::Possible => Failure::new(Exit::EffectUnknown, format!("{what}; it may have taken effect"))
            .hint("look before you repeat it"),
    }
}

async fn read<T: DeserializeOwned>(response: Response, effect: Effect) -> Result<T, Failure> {
    let status = response.status();
    let bytes = body(response, effect).await?;
    if !status.is_success() {
        return Err(refusal(status, &bytes, effect));
    }
    serde_json::from_slice(&bytes).map_err(|_| foreign(status, effect))
}

async fn body(mut response: Response, effect: Effect) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if bytes.len() + chunk.len() <= MAX_ANSWER_BYTES => bytes.extend_from_slice(&chunk),
            Ok(Some(_)) => return Err(Failure::failed(format!("the answer has more than {MAX_ANSWER_BYTES} bytes"))),
            Ok(None) => return Ok(bytes),
            Err(error) => return Err(lost(&error, effect, Duration::ZERO)),
        }
    }
}

/// Reads an answer that refuses.
///
/// # Errors
/// Always: the refusal.
pub(crate) async fn refused(response: Response, effect: Effect) -> Failure {
    let status = response.status();
    match body(response, effect).await {
        Ok(bytes) => refusal(status, &bytes, effect),
        Err(failure) => failure,
    }
}

fn refusal(status: StatusCode, bytes: &[u8], effect: Effect) -> Failure {
    /// As [`http::ErrorBody`], but a code that this release does not know is no reason to hide the message.
    #[derive(serde::Deserialize)]
    struct Body {
        error: Error,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Error {
        code: String,
        message: String,
        request_id: Option<String>,
    }
    match serde_json::from_slice::<Body>(bytes) {
        Ok(Body { error }) => Failure::answered(ErrorCode::from_stored(&error.code), error.message, error.request_id),
        Err(_) => foreign(status, effect),
    }
}

/// Something answered, and not as a gateway does: a balancer without a live instance, or another program.
fn foreign(status: StatusCode, effect: Effect) -> Failure {
    let what = format!("status {} from something that is not an openclaw gateway", status.as_u16());
    // A balancer that gave up waiting (504) or lost the connection (502) may have passed the request on.
    let passed_on = matches!(status, StatusCode::GATEWAY_TIMEOUT | StatusCode::BAD_GATEWAY) || status.is_success();
    if effect == Effect::Possible && passed_on {
        return Failure::new(Exit::EffectUnknown, format!("{what}; it may have taken effect"))
            .hint("look before you repeat it");
    }
    Failure::new(Exit::Unreachable, what).hint("check --url, and the balancer if there is one")
}

/// The innermost cause says what the operating system said; the outer ones repeat that a request failed.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> Client {
        let place = crate::cli::target::parse_place(url).unwrap();
        Client::to(Target { places: vec![place], token: None }, Duration::from_secs(1)).unwrap()
    }

    #[test]
    fn keys_are_one_path_segment_under_any_prefix() {
        let built = |url: &str, key: &str| {
            let _provider = rustls::crypto::ring::default_provider().install_default();
            client(url)
                .request(0, Method::GET, &["api", "v1", "sessions", key], &[("after", "a&b".into())])
                .unwrap()
                .build()
                .unwrap()
                .url()
                .to_string()
        };
        assert_eq!(built("http://h:1", "agent:main:main"), "http://h:1/api/v1/sessions/agent:main:main?after=a%26b");
        assert_eq!(built("http://h:1/gw/", "a b/../c"), "http://h:1/gw/api/v1/sessions/a%20b%2F..%2Fc?after=a%26b");
    }

    #[test]
    fn a_code_from_a_newer_release_keeps_its_message() {
        let failure = refusal(
            StatusCode::CONFLICT,
            br#"{"error":{"code":"brand_new","message":"no","retryable":false,"requestId":"r"}}"#,
            Effect::Possible,
        );
        assert_eq!((failure.exit(), failure.message.as_str()), (Exit::Failed, "no"));
    }

    #[test]
    fn a_balancers_own_page_is_not_taken_for_the_gateways_word() {
        assert_eq!(refusal(StatusCode::SERVICE_UNAVAILABLE, b"<html>", Effect::Possible).exit(), Exit::Unreachable);
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, b"<html>", Effect::Possible).exit(), Exit::EffectUnknown);
        assert_eq!(refusal(StatusCode::GATEWAY_TIMEOUT, b"<html>", Effect::Possible).exit(), Exit::EffectUnknown);
        assert_eq!(refusal(StatusCode::GATEWAY_TIMEOUT, b"<html>", Effect::None).exit(), Exit::Unreachable);
    }
}
