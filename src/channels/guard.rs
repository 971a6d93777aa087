//! Bodies of requests that ask the lease as they leave.
//!
//! Between a decision to send and the first byte lie a connection out of the pool and perhaps another thread. A process that
//! is paused in there, and goes on when its lease is another's, must not send. HTTP/1 writes a request's head and body at
//! once, after it has asked for the body: whose tenure is over then has none, and the connection ends without a request.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::Tenure;

/// Nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease was over before it was sent")]
struct HeldBack;

/// A body that `tenure` has to allow; without one, everything may leave.
pub(super) fn body(tenure: Option<&Tenure>, bytes: Vec<u8>) -> reqwest::Body {
    reqwest::Body::wrap(Guarded { tenure: tenure.cloned(), bytes: Some(bytes.into()) })
}

/// Whether a request failed because its body was held back.
pub(super) fn held_back(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<HeldBack>() {
            return true;
        }
        source = cause.source();
    }
    false
}

struct Guarded {
    tenure: Option<Tenure>,
    bytes: Option<Bytes>,
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = HeldBack;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HeldBack>>> {
        let Some(bytes) = self.bytes.take() else { return Poll::Ready(None) };
        let allowed = self.tenure.as_ref().is_none_or(|tenure| !tenure.is_over());
        Poll::Ready(Some(if allowed { Ok(Frame::data(bytes)) } else { Err(HeldBack) }))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// What a server reads of a request whose tenure is over, or not, when it leaves.
    async fn read(over: bool) -> (String, Result<reqwest::Response, reqwest::Error>) {
        // Another test was faster.
        let _provider = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut all = Vec::new();
            let whole =
                async { while !all.ends_with(b"{\"text\":1}") && socket.read_buf(&mut all).await.unwrap() > 0 {} };
            tokio::time::timeout(Duration::from_secs(20), whole).await.unwrap();
            String::from_utf8(all).unwrap()
        });
        let tenure = Tenure::endless(1);
        let body = body(Some(&tenure), b"{\"text\":1}".to_vec());
        if over {
            tenure.ended.cancel();
        }
        let client = reqwest::Client::builder().http1_only().no_proxy().build().unwrap();
        let answer = client.post(url).body(body).send().await;
        drop(client);
        (server.await.unwrap(), answer)
    }

    #[tokio::test]
    async fn a_request_leaves_whole_with_its_length() {
        let (request, answer) = read(false).await;
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.to_ascii_lowercase().contains("content-length: 10"), "{head}");
        assert_eq!(body, "{\"text\":1}");
        assert!(!held_back(&answer.unwrap_err()), "it was sent, and not answered");
    }

    #[tokio::test]
    async fn nothing_leaves_once_the_tenure_is_over() {
        let (request, answer) = read(true).await;
        assert_eq!(request, "");
        assert!(held_back(&answer.unwrap_err()));
    }
}
