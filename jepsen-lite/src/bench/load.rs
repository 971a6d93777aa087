//! The client program: N clients, each with one request under way, over a number of shared connections.
//!
//! Requests are prepared before the clock runs; sending one clones reference-counted bytes and a small header map. The
//! gateway's HTTP and etcd's gRPC go through the same code, so neither pays for a heavier client: a gRPC call is an HTTP/2
//! request whose body is a length and a message, and whose verdict is in the trailers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderName, TE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use openclaw_proto::http::IDEMPOTENCY_KEY;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::client::Protocol;
use crate::figures::micros;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// A request that is not answered by then is an error and ends its client.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one client sends over and over.
#[derive(Debug, Clone)]
pub struct Call {
    path: String,
    content_type: HeaderValue,
    body: Bytes,
    success: Success,
    keys: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Success {
    Status(StatusCode),
    Grpc,
}

impl Call {
    /// A POST of JSON that is answered with `status`.
    pub fn json(path: impl Into<String>, body: impl Into<Bytes>, status: StatusCode) -> Self {
        let content_type = HeaderValue::from_static("application/json");
        Self { path: path.into(), content_type, body: body.into(), success: Success::Status(status), keys: None }
    }

    /// A unary gRPC call.
    ///
    /// # Errors
    /// When the message is too large for one.
    pub fn grpc(path: impl Into<String>, message: &impl prost::Message) -> Result<Self> {
        let length = message.encoded_len();
        let mut body = BytesMut::with_capacity(5 + length);
        body.put_u8(0); // not compressed
        body.put_u32(u32::try_from(length).context("a message beyond 4 GiB")?);
        message.encode(&mut body).context("encode the message")?;
        let content_type = HeaderValue::from_static("application/grpc");
        Ok(Self { path: path.into(), content_type, body: body.freeze(), success: Success::Grpc, keys: None })
    }

    /// Gives every request an idempotency key of its own, which begins with `prefix`.
    pub fn with_keys(self, prefix: impl Into<String>) -> Self {
        Self { keys: Some(prefix.into()), ..self }
    }

    fn prepare(&self, target: SocketAddr, protocol: Protocol) -> Result<Prepared> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, self.content_type.clone());
        if self.success == Success::Grpc {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        let uri = match protocol {
            Protocol::Http1 => {
                headers.insert(HOST, HeaderValue::try_from(target.to_string()).context("host header")?);
                self.path.clone()
            }
            Protocol::H2c => format!("http://{target}{}", self.path),
        };
        let uri = Uri::try_from(uri).context("address of a request")?;
        Ok(Prepared { uri, headers, body: self.body.clone(), success: self.success, keys: self.keys.clone(), sent: 0 })
    }
}

/// How hard.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections go to these in turn, the first one first.
    pub targets: Vec<SocketAddr>,
    pub protocol: Protocol,
    /// Connections that HTTP/2 clients share; with HTTP/1 every client has its own.
    pub connections: usize,
    /// Load before the clock runs.
    pub warm_up: Duration,
    pub duration: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Latencies of what was answered while the clock ran, in microseconds.
    pub samples: Vec<u32>,
    pub errors: u64,
    pub first_error: Option<String>,
}

/// Runs one client for each of `calls`; `measured` is called when the clock starts, and again when it stops.
///
/// # Errors
/// When a connection cannot be made. What goes wrong later is counted.
pub async fn run(options: &Options, calls: &[Call], mut measured: impl FnMut()) -> Result<Outcome> {
    ensure!(!options.targets.is_empty() && !calls.is_empty(), "a load needs a target and a client");
    let connections = match options.protocol {
        Protocol::Http1 => calls.len(),
        Protocol::H2c => options.connections.clamp(1, calls.len()),
    };
    let mut senders = Vec::with_capacity(connections);
    // Dropping the set ends the connections.
    let mut drivers = JoinSet::new();
    for number in 0..connections {
        let target = options.targets[number % options.targets.len()];
        senders.push(Some((target, connect(target, options.protocol, &mut drivers).await?)));
    }
    let mut clients = Vec::with_capacity(calls.len());
    for (number, call) in calls.iter().enumerate() {
        let slot = &mut senders[number % connections];
        let (target, sender) = match slot {
            Some((target, Sender::H2(sender))) => (*target, Sender::H2(sender.clone())),
            Some((_, Sender::H1(_))) => slot.take().context("connection of a client")?,
            None => bail!("two clients on one HTTP/1 connection"),
        };
        clients.push((sender, call.prepare(target, options.protocol)?));
    }
    let begin = Instant::now() + options.warm_up;
    let end = begin + options.duration;
    let mut tasks = JoinSet::new();
    for (sender, prepared) in clients {
        tasks.spawn(client(sender, prepared, begin, end));
    }
    tokio::time::sleep_until(begin.into()).await;
    measured();
    tokio::time::sleep_until(end.into()).await;
    measured();
    let mut outcome = Outcome::default();
    while let Some(one) = tasks.join_next().await {
        let mut one = one.context("a client panicked")?;
        outcome.samples.append(&mut one.samples);
        outcome.errors += one.errors;
        outcome.first_error = outcome.first_error.or(one.first_error);
    }
    Ok(outcome)
}

/// Sends one call once.
///
/// # Errors
/// When there is no connection, or the answer is not the one that the call wants.
pub async fn once(target: SocketAddr, protocol: Protocol, call: &Call) -> Result<()> {
    let mut drivers = JoinSet::new();
    let mut sender = connect(target, protocol, &mut drivers).await?;
    let mut prepared = call.prepare(target, protocol)?;
    tokio::time::timeout(PATIENCE, sender.call(&mut prepared)).await.context("no answer")?
}

enum Sender {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

struct Prepared {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    success: Success,
    keys: Option<String>,
    sent: u64,
}

impl Prepared {
    fn request(&mut self) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(prefix) = &self.keys {
            let key = HeaderValue::try_from(format!("{prefix}{}", self.sent)).context("idempotency key")?;
            request.headers_mut().insert(IDEMPOTENCY_KEY, key);
            self.sent += 1;
        }
        Ok(request)
    }
}

async fn connect(target: SocketAddr, protocol: Protocol, drivers: &mut JoinSet<()>) -> Result<Sender> {
    let stream = TcpStream::connect(target).await.with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let io = TokioIo::new(stream);
    // How a connection ended is seen by the requests on it.
    Ok(match protocol {
        Protocol::Http1 => {
            let (sender, driver) = http1::handshake(io).await.context("HTTP/1 handshake")?;
            drivers.spawn(async move { drop(driver.await) });
            Sender::H1(sender)
        }
        Protocol::H2c => {
            let (sender, driver) = http2::handshake(TokioExecutor::new(), io).await.context("HTTP/2 handshake")?;
            drivers.spawn(async move { drop(driver.await) });
            Sender::H2(sender)
        }
    })
}

async fn client(mut sender: Sender, mut prepared: Prepared, begin: Instant, end: Instant) -> Outcome {
    let mut outcome = Outcome::default();
    loop {
        let sent = Instant::now();
        if sent >= end {
            return outcome;
        }
        let result = tokio::time::timeout(PATIENCE, sender.call(&mut prepared)).await;
        let answered = Instant::now();
        let error = match result {
            Ok(Ok(())) => {
                if answered >= begin && answered < end {
                    outcome.samples.push(micros(answered - sent));
                }
                continue;
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        outcome.errors += 1;
        outcome.first_error.get_or_insert(error);
        if sender.is_closed() || answered - sent >= PATIENCE {
            return outcome;
        }
        // A refusal comes back at once; a client that spins on it would measure itself.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::H1(sender) => sender.is_closed(),
            Self::H2(sender) => sender.is_closed(),
        }
    }

    async fn call(&mut self, prepared: &mut Prepared) -> Result<()> {
        let request = prepared.request()?;
        let response = match self {
            Self::H1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::H2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        judge(response, prepared.success).await
    }
}

async fn judge(mut response: Response<Incoming>, success: Success) -> Result<()> {
    // A call that fails at once says so in its headers and has no trailers.
    let mut grpc = response.headers().get(GRPC_STATUS).cloned();
    let status = response.status();
    let right = match success {
        Success::Status(expected) => status == expected,
        Success::Grpc => status == StatusCode::OK,
    };
    let mut said = Vec::new();
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame?;
        if let Some(trailers) = frame.trailers_ref() {
            grpc = trailers.get(GRPC_STATUS).cloned().or(grpc);
        } else if let (false, Some(data)) = (right, frame.data_ref()) {
            said.extend_from_slice(&data[..data.len().min(200)]);
        }
    }
    ensure!(right, "answered {status}: {}", String::from_utf8_lossy(&said));
    ensure!(success != Success::Grpc || grpc.as_ref().is_some_and(|status| status == "0"), "gRPC status {grpc:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock_gateway::{Fake, Mischief};

    fn options(target: SocketAddr, protocol: Protocol) -> Options {
        Options {
            targets: vec![target],
            protocol,
            connections: 2,
            warm_up: Duration::from_millis(20),
            duration: Duration::from_millis(100),
        }
    }

    fn calls(status: StatusCode) -> Vec<Call> {
        let body = r#"{"role":"user","text":"x"}"#;
        (0..5).map(|client| Call::json(format!("/api/v1/sessions/s{client}/entries"), body, status)).collect()
    }

    #[tokio::test]
    async fn both_protocols_carry_load_and_the_clock_is_read_twice() {
        let fake = Fake::start(Mischief::None).await;
        for protocol in [Protocol::Http1, Protocol::H2c] {
            let mut reads = 0;
            let options = options(fake.address(), protocol);
            let calls = calls(StatusCode::CREATED);
            let calls: Vec<_> =
                (0..).zip(calls).map(|(n, call): (u32, Call)| call.with_keys(format!("{n}-"))).collect();
            let outcome = run(&options, &calls, || reads += 1).await.unwrap();
            assert_eq!((outcome.errors, outcome.first_error, reads), (0, None, 2));
            assert!(!outcome.samples.is_empty());
        }
    }

    #[tokio::test]
    async fn another_answer_than_expected_is_an_error_and_no_sample() {
        let fake = Fake::start(Mischief::None).await;
        let options = options(fake.address(), Protocol::H2c);
        let outcome = run(&options, &calls(StatusCode::OK), || ()).await.unwrap();
        assert!(outcome.samples.is_empty() && outcome.errors > 0);
        assert!(outcome.first_error.unwrap().contains("201"));
        // A plain HTTP answer is no gRPC answer.
        let call = Call::grpc("/api/v1/health/ready", &()).unwrap();
        assert!(once(fake.address(), Protocol::H2c, &call).await.is_err());
    }

    #[tokio::test]
    async fn no_server_is_an_error() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(run(&options(closed, Protocol::H2c), &calls(StatusCode::OK), || ()).await.is_err());
    }
}
