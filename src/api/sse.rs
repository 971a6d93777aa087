//! Event streams: bytes of `text/event-stream`, from whatever yields events.
//!
//! Every event has an id, so that a client that loses the connection continues after the last one it read. A comment
//! every 15 s keeps proxies and clients from taking silence for death. A reader that takes nothing costs a position: the
//! connection, not the stream, ends it (see [`server`](super::server)).

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use openclaw_proto::http::StreamEvent;
use prometheus::IntGauge;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::Gateway;
use crate::sessions::follow::{Followed, Follower};

pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_COMMENT: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// How soon a browser's `EventSource` comes back.
const RETRY: Bytes = Bytes::from_static(b"retry: 500\n\n");

const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What makes the frames of one stream.
pub(super) trait Frames: Send + 'static {
    /// The next bytes; `None` ends the stream. It may be dropped at any await and called again.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;

    /// The last bytes of a stream whose time is over. None where events have ids, from which a client continues.
    fn late(&mut self) -> Option<Bytes> {
        None
    }
}

/// A response that streams `frames` until they end, or until the longest life of a stream is over: then the client
/// continues on another connection.
pub(super) fn respond(gateway: &Gateway, place: OwnedSemaphorePermit, frames: impl Frames) -> Response {
    let state = State {
        frames,
        until: Instant::now() + gateway.limits().chat_request,
        late: false,
        _counted: Counted::new(gateway.metrics().http_streams.clone()),
        _place: place,
    };
    let body = stream::unfold(state, |mut state| async move {
        let next = async {
            match timeout(KEEP_ALIVE, state.frames.next()).await {
                Ok(frame) => frame,
                Err(_) => Some(KEEP_ALIVE_COMMENT),
            }
        };
        let frame = match timeout_at(state.until, next).await {
            Ok(frame) => frame,
            Err(_) if state.late => None,
            Err(_) => {
                state.late = true;
                state.frames.late()
            }
        };
        Some((Ok::<_, Infallible>(frame?), state))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

struct State<F> {
    frames: F,
    until: Instant,
    /// The last bytes were given.
    late: bool,
    _counted: Counted,
    _place: OwnedSemaphorePermit,
}

struct Counted(IntGauge);

impl Counted {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A turn's events as they are read.
pub(super) struct TurnFrames {
    follower: Follower,
    begun: bool,
}

impl TurnFrames {
    pub(super) fn new(follower: Follower) -> Self {
        Self { follower, begun: false }
    }
}

impl Frames for TurnFrames {
    async fn next(&mut self) -> Option<Bytes> {
        if !self.begun {
            self.begun = true;
            return Some(RETRY);
        }
        self.follower.next().await.map(|followed| frame(&followed))
    }
}

#[derive(Serialize)]
struct DeltaData<'a> {
    text: &'a str,
}

/// One event: `id`, `event`, `data`. JSON has no raw line ends, so that the data is one line.
fn frame(followed: &Followed) -> Bytes {
    let data = match &followed.event {
        StreamEvent::Delta { text } => serde_json::to_string(&DeltaData { text }),
        event @ (StreamEvent::Start { .. }
        | StreamEvent::Tool { .. }
        | StreamEvent::Restart { .. }
        | StreamEvent::Done { .. }
        | StreamEvent::Error { .. }) => fields(event),
    };
    // Texts, numbers and enums always serialize.
    let data = data.unwrap_or_default();
    let name = followed.event.name();
    Bytes::from(format!("id: {}\nevent: {name}\ndata: {data}\n\n", followed.position))
}

/// A variant's fields without its name, which is the event's.
fn fields(event: &StreamEvent) -> serde_json::Result<String> {
    let value = serde_json::to_value(event)?;
    let inner = value.as_object().and_then(|object| object.values().next());
    serde_json::to_string(inner.unwrap_or(&value))
}

#[cfg(test)]
mod tests {
    use openclaw_proto::ids::{StreamPosition, TurnId};

    use super::*;

    #[test]
    fn events_are_one_line_of_data_with_an_id() {
        let turn = TurnId::parse("0123456789abcdef0123456789abcdef").unwrap();
        let position = StreamPosition { turn, attempt: 2, n: 7 };
        let event = StreamEvent::Delta { text: "a\r\n\u{2028}\"b".into() };
        let text = frame(&Followed { position: position.clone(), event });
        assert_eq!(
            text,
            "id: 0123456789abcdef0123456789abcdef.2-7\nevent: delta\ndata: {\"text\":\"a\\r\\n\u{2028}\\\"b\"}\n\n"
        );
        let event = StreamEvent::Restart { attempt: 2 };
        let text = frame(&Followed { position, event });
        assert!(text.ends_with(b"event: restart\ndata: {\"attempt\":2}\n\n"), "{text:?}");
    }
}
