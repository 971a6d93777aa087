//! One message and its streamed answer, over as many connections and instances as it takes.
//!
//! The message is sent under one idempotency key, so sending it again after a broken connection is safe; once the
//! gateway has named the turn, the stream is continued with `Last-Event-ID` on whichever address answers. The reply
//! is what `done` says: what was streamed before is a preview.

use std::time::{Duration, Instant};

use openclaw_proto::http::{self, ChatRequest, ChatResponse, ErrorCode, Reply, StreamEvent};
use openclaw_proto::ids::IdempotencyKey;
use rand::Rng;
use reqwest::{Method, Response};
use tokio::time::timeout;

use super::sse::{Event, Parser};
use crate::cli::client::{self, Client, Effect};
use crate::cli::exit::{Exit, Failure};

/// The gateway sends a comment every 15 s; three missed ones mean that the connection is dead.
const SILENCE: Duration = Duration::from_secs(45);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What the reader sees while the turn runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// Accepted: from here on nothing is lost.
    Accepted {
        instance: String,
    },
    Delta(String),
    Tool(String),
    /// What was streamed so far is void.
    Restart(u32),
    /// The connection broke; another one is tried.
    Reconnecting(String),
}

/// A connection's end, short of a reply.
enum End {
    /// Try again: `why`, and whether the gateway may have got the message.
    Again { why: String, sent: bool },
    /// Trying again would not help.
    Over(Failure),
}

pub(super) struct Turn<'a> {
    client: &'a Client,
    request: &'a ChatRequest,
    key: IdempotencyKey,
    /// Longest time without any progress.
    patience: Duration,
    /// Index of the address in use; kept by the caller from turn to turn.
    place: &'a mut usize,
    /// Something answered before, so that one refused connection is a restart and not a wrong address.
    known: bool,
    id: Option<String>,
    session: String,
    instance: String,
    last_event: Option<String>,
    progress: Instant,
}

impl<'a> Turn<'a> {
    pub(super) fn new(
        client: &'a Client,
        request: &'a ChatRequest,
        patience: Duration,
        place: &'a mut usize,
        known: bool,
    ) -> Self {
        Self {
            client,
            request,
            key: IdempotencyKey::random(),
            patience,
            place,
            known,
            id: None,
            session: request.session_key.clone().unwrap_or_default(),
            instance: String::new(),
            last_event: None,
            progress: Instant::now(),
        }
    }

    /// Whether the gateway has accepted the message.
    pub(super) fn accepted(&self) -> bool {
        self.id.is_some()
    }

    /// Asks the gateway to cancel; the stream then ends with its error.
    ///
    /// # Errors
    /// As any request.
    pub(super) async fn cancel(client: &Client, id: &str) -> Result<http::Turn, Failure> {
        client
            .post(&["api", "v1", "turns", id, "cancel"], IdempotencyKey::random().as_str(), &serde_json::json!({}))
            .await
    }

    /// Until the reply is committed, or cannot be had. `cancelled` is asked for at most once.
    ///
    /// # Errors
    /// Why there is no reply.
    pub(super) async fn run(
        &mut self,
        mut cancelled: impl AsyncFnMut(),
        mut on: impl FnMut(Seen),
    ) -> Result<ChatResponse, Failure> {
        let mut attempt = 0;
        let (mut sent, mut asked) = (false, false);
        loop {
            let before = self.progress;
            let end = tokio::select! {
                end = self.connection(&mut on) => end,
                () = cancelled(), if !asked => {
                    asked = true;
                    let Some(id) = self.id.clone() else { return Err(Failure::silent(Exit::Interrupted)) };
                    // The connection was dropped with the select; the next one reads how the turn ended.
                    match Self::cancel(self.client, &id).await {
                        Ok(_) => {}
                        // It has ended by itself: the stream says how.
                        Err(failure) if failure.code == Some(ErrorCode::Conflict) => {}
                        Err(failure) => return Err(failure),
                    }
                    continue;
                }
            };
            let why = match end {
                Ok(response) => return Ok(response),
                Err(End::Over(failure)) => return Err(failure),
                Err(End::Again { why, sent: this }) => {
                    sent |= this;
                    why
                }
            };
            if self.progress != before {
                attempt = 0;
            }
            attempt += 1;
            *self.place = self.place.wrapping_add(1);
            let tried_all = attempt >= self.client.places();
            if self.progress.elapsed() >= self.patience || (tried_all && !self.known && !sent && self.id.is_none()) {
                return Err(self.give_up(why, sent));
            }
            if self.known || self.accepted() || sent {
                on(Seen::Reconnecting(why));
            }
            // The first try of every other address costs nothing; then it is time to wait.
            if tried_all {
                tokio::time::sleep(pause(attempt - self.client.places())).await;
            }
        }
    }

    fn give_up(&self, why: String, sent: bool) -> Failure {
        if self.accepted() {
            return Failure::new(Exit::EffectUnknown, format!("{why}; the gateway has the message and answers it"))
                .hint(format!("read the reply with `openclaw sessions show {}`", self.session));
        }
        if sent {
            return Failure::new(Exit::EffectUnknown, format!("{why}; the message may have been accepted"))
                .hint("look with `openclaw sessions show` before you repeat it");
        }
        Failure::new(Exit::Unreachable, why).hint("start one with `openclaw gateway`, or name another with --url")
    }

    async fn connection(&mut self, on: &mut impl FnMut(Seen)) -> Result<ChatResponse, End> {
        let response = self.open().await?;
        self.known = true;
        self.read(response, on).await
    }

    async fn open(&self) -> Result<Response, End> {
        const STREAM: [&str; 4] = ["api", "v1", "chat", "stream"];
        let request = match &self.id {
            None => self
                .client
                .request(*self.place, Method::POST, &STREAM, &[])
                .map(|request| request.header(http::IDEMPOTENCY_KEY, self.key.as_str()).json(self.request)),
            Some(id) => {
                let query = [("turnId", id.clone())];
                self.client.request(*self.place, Method::GET, &STREAM, &query).map(|request| match &self.last_event {
                    Some(last) => request.header("last-event-id", last),
                    None => request,
                })
            }
        }
        .map_err(End::Over)?
        .header("accept", "text/event-stream");
        let response = match timeout(self.client.timeout(), request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_connect() => {
                return Err(End::Again { why: self.client.unreachable(*self.place, &error).message, sent: false });
            }
            Ok(Err(error)) => {
                let why = format!("the connection broke: {}", client::causes(&error));
                return Err(End::Again { why, sent: true });
            }
            Err(_) => {
                let why = format!("no answer within {} s", self.client.timeout().as_secs());
                return Err(End::Again { why, sent: true });
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let failure = client::refused(response, Effect::Possible).await;
        match (failure.code, failure.exit()) {
            // The same key makes every retry safe; a model that failed has ended this turn for good.
            (Some(code), _) if passes(code) => Err(End::Again { why: failure.message, sent: code.effect_unknown() }),
            // A balancer whose instances are all busy dying.
            (None, Exit::Unreachable) => Err(End::Again { why: failure.message, sent: false }),
            (None, Exit::EffectUnknown) => Err(End::Again { why: failure.message, sent: true }),
            _ => Err(End::Over(failure)),
        }
    }

    async fn read(&mut self, mut response: Response, on: &mut impl FnMut(Seen)) -> Result<ChatResponse, End> {
        let again = |why: String| Err(End::Again { why, sent: true });
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        loop {
            let chunk = match timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return again("the stream ended before the reply".into()),
                Ok(Err(error)) => return again(format!("the connection broke: {}", client::causes(&error))),
                Err(_) => return again(format!("nothing was heard for {} s", SILENCE.as_secs())),
            };
            parser.push(&chunk, &mut events).map_err(|error| End::Over(Failure::failed(error.to_string())))?;
            for event in events.drain(..) {
                if let Some(response) = self.event(event, on)? {
                    return Ok(response);
                }
            }
        }
    }

    fn event(&mut self, event: Event, on: &mut impl FnMut(Seen)) -> Result<Option<ChatResponse>, End> {
        let Some(decoded) = decode(&event) else { return Ok(None) };
        self.progress = Instant::now();
        if !event.id.is_empty() {
            self.last_event = Some(event.id);
        }
        match decoded {
            StreamEvent::Start { turn_id, session_key, instance_id } => {
                if self.id.is_none() {
                    on(Seen::Accepted { instance: instance_id.clone() });
                }
                (self.id, self.session, self.instance) = (Some(turn_id), session_key, instance_id);
            }
            StreamEvent::Delta { text } => on(Seen::Delta(text)),
            StreamEvent::Tool { name, .. } => on(Seen::Tool(name)),
            StreamEvent::Restart { attempt } => on(Seen::Restart(attempt)),
            StreamEvent::Done { entry_id, text, usage, model } => {
                return Ok(Some(ChatResponse {
                    turn_id: self.id.clone().unwrap_or_default(),
                    session_key: self.session.clone(),
                    reply: Reply { entry_id, text },
                    usage,
                    model,
                    instance_id: self.instance.clone(),
                }));
            }
            // The stream must end, the turn goes on: `last_event` continues it elsewhere.
            StreamEvent::Error { code, message } if passes(code) => {
                return Err(End::Again { why: message, sent: true });
            }
            StreamEvent::Error { code, message } => return Err(End::Over(Failure::answered(code, message, None))),
        }
        Ok(None)
    }
}

/// Worth sending again; what a model or a turn ended with is not.
fn passes(code: ErrorCode) -> bool {
    code.retryable() && !matches!(code, ErrorCode::ModelFailed | ErrorCode::TurnAbandoned)
}

/// `None` for an event of a newer release, which says nothing that this one needs.
fn decode(event: &Event) -> Option<StreamEvent> {
    let mut data: serde_json::Value = serde_json::from_str(&event.data).ok()?;
    if event.name == "error" {
        // A code that this release does not know still ends the stream.
        let code = ErrorCode::from_stored(data.get("code").and_then(|code| code.as_str()).unwrap_or_default());
        data["code"] = serde_json::json!(code);
    }
    serde_json::from_value(serde_json::json!({ event.name.as_str(): data })).ok()
}

/// Doubling, with up to a quarter of jitter so that many clients do not return at once.
fn pause(attempt: usize) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << attempt.min(10)).min(LONGEST_PAUSE);
    doubled.mul_f64(rand::rng().random_range(0.75..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(name: &str, data: &str) -> Option<StreamEvent> {
        decode(&Event { id: String::new(), name: name.into(), data: data.into() })
    }

    #[test]
    fn events_decode_by_name_and_unknown_ones_are_passed_over() {
        assert_eq!(decoded("delta", r#"{"text":"x"}"#), Some(StreamEvent::Delta { text: "x".into() }));
        assert_eq!(decoded("usage", "{}"), None);
        assert_eq!(decoded("delta", "not json"), None);
        assert_eq!(
            decoded("error", r#"{"code":"brand_new","message":"m"}"#),
            Some(StreamEvent::Error { code: ErrorCode::Internal, message: "m".into() })
        );
        assert_eq!(
            decoded("error", r#"{"message":"m"}"#),
            Some(StreamEvent::Error { code: ErrorCode::Internal, message: "m".into() })
        );
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        assert!(pause(0) <= FIRST_PAUSE);
        for attempt in 0..100 {
            assert!(pause(attempt) >= FIRST_PAUSE.mul_f64(0.75) && pause(attempt) <= LONGEST_PAUSE);
        }
    }
}
