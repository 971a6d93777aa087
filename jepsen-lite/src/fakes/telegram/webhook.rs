//! Webhooks: updates are posted until they are answered with success, each chat's in order.
//!
//! Plain HTTP to loopback addresses alone, where Telegram insists on HTTPS and four ports. As in its `WebhookActor.cpp`, the
//! second try follows the first at once, and then each delay is twice the one before, unless `Retry-After` names one.

use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{Method, Request, Response, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::Timing;
use super::error::{Error, bad_request};
use super::ids::{BotId, UpdateId};
use super::methods::Reply;
use super::parameters::Parameters;
use super::queue::Next;
use super::server::Server;

pub(super) const SECRET_HEADER: &str = "x-telegram-bot-api-secret-token";
const MAX_SECRET: usize = 256;
/// The longest that a receiver may ask to be left alone, in its seconds.
const MAX_RETRY_AFTER_SECONDS: u64 = 3600;
/// Of an answer so much is read, for the connection's sake.
const MAX_ANSWER_BYTES: usize = 1 << 16;

pub(super) struct Webhook {
    target: Arc<Target>,
    max_connections: usize,
    wake: Arc<Notify>,
    /// When it first answered 410, if it has done nothing else since.
    gone_since: Option<Instant>,
    last_error: Option<(Duration, String)>,
    task: JoinHandle<()>,
}

struct Target {
    url: Uri,
    secret: String,
}

/// A bot's webhook as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookState {
    pub url: String,
    pub secret_token: String,
    /// Why the last attempt that failed did.
    pub last_error: Option<String>,
}

/// How one attempt went.
enum Outcome {
    Delivered,
    /// An answer that is no success, with what it said about trying again.
    Refused(StatusCode, Option<u64>),
    /// No answer.
    Failed(String),
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Webhook {
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(super) fn state(&self) -> WebhookState {
        WebhookState {
            url: self.target.url.to_string(),
            secret_token: self.target.secret.clone(),
            last_error: self.last_error.as_ref().map(|(_, what)| what.clone()),
        }
    }
}

pub(super) fn set(server: &Arc<Server>, bot: BotId, parameters: &Parameters) -> Result<Reply, Error> {
    let url = parameters.text("url").unwrap_or_default();
    if url.is_empty() {
        return delete(server, bot, parameters);
    }
    let target = Arc::new(target(&url, parameters.text("secret_token").unwrap_or_default())?);
    let most = usize::try_from(parameters.clamped("max_connections", 40, 1, 100)).unwrap_or(1);
    let timing = &server.options.timing;
    let set = server.change_bot(bot, |state| {
        let now = Instant::now();
        if state.webhook_set.is_some_and(|set| now < set + timing.between_webhooks) {
            return Err(Error::TooManyRequests(1));
        }
        state.webhook_set = Some(now);
        state.set_allowed(parameters.json("allowed_updates").as_ref());
        let drop_pending = parameters.flag("drop_pending_updates");
        let same = |webhook: &Webhook| {
            webhook.target.url == target.url
                && webhook.target.secret == target.secret
                && webhook.max_connections == most
        };
        if !drop_pending && state.webhook.as_ref().is_some_and(same) {
            return Ok(Reply::said(json!(true), "Webhook is already set"));
        }
        state.polls.abort_for_webhook(timing);
        state.webhook = None;
        state.queue.forget_posting();
        if drop_pending {
            state.queue.clear();
        }
        let wake = Arc::new(Notify::new());
        let task = tokio::spawn(deliver(server.clone(), bot, target.clone(), most, wake.clone()));
        let (gone_since, last_error) = (None, None);
        state.webhook = Some(Webhook { target, max_connections: most, wake, gone_since, last_error, task });
        Ok(Reply::said(json!(true), "Webhook was set"))
    });
    set.ok_or(Error::Unauthorized)?
}

fn target(url: &str, secret: String) -> Result<Target, Error> {
    let Ok(uri) = url.parse::<Uri>() else { return bad_request("invalid webhook URL specified") };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if uri.scheme_str() != Some("http") || !loopback {
        return bad_request("bad webhook: this server delivers over plain HTTP to loopback addresses alone");
    }
    if secret.len() > MAX_SECRET {
        return bad_request("secret token is too long");
    }
    if !secret.bytes().all(|byte| byte.is_ascii_alphanumeric() || [b'-', b'_'].contains(&byte)) {
        return bad_request("secret token contains unallowed characters");
    }
    Ok(Target { url: uri, secret })
}

pub(super) fn delete(server: &Server, bot: BotId, parameters: &Parameters) -> Result<Reply, Error> {
    let deleted = server.change_bot(bot, |bot| {
        let was = bot.webhook.take().is_some();
        bot.queue.forget_posting();
        if parameters.flag("drop_pending_updates") {
            bot.queue.clear();
        }
        Reply::said(json!(true), if was { "Webhook was deleted" } else { "Webhook is already deleted" })
    });
    deleted.ok_or(Error::Unauthorized)
}

pub(super) fn info(server: &Server, bot: BotId) -> Result<Value, Error> {
    let info = server.change_bot(bot, |bot| {
        bot.queue.drop_expired(server.options.clock.unix());
        let mut info =
            json!({"url": "", "has_custom_certificate": false, "pending_update_count": bot.queue.ids().len()});
        if let Some(webhook) = &bot.webhook {
            info["url"] = json!(webhook.target.url.to_string());
            info["max_connections"] = json!(webhook.max_connections);
            info["ip_address"] = json!(webhook.target.url.host());
            if let Some((at, what)) = &webhook.last_error {
                info["last_error_date"] = json!(at.as_secs());
                info["last_error_message"] = json!(what);
            }
        }
        if let Some(allowed) = &bot.allowed {
            info["allowed_updates"] = json!(allowed);
        }
        info
    });
    info.ok_or(Error::Unauthorized)
}

/// The life of one webhook: it ends when the webhook does.
async fn deliver(server: Arc<Server>, bot: BotId, target: Arc<Target>, most: usize, wake: Arc<Notify>) {
    let pool: Pool<HttpConnector, Full<Bytes>> =
        Pool::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http();
    // As many as may be under way.
    let mut posts = JoinSet::new();
    loop {
        let next = server.change_bot(bot, |bot| {
            bot.queue.drop_expired(server.options.clock.unix());
            bot.queue.next_post(most, Instant::now())
        });
        let at = match next {
            None => return,
            Some(Next::Post { id, body, fails }) => {
                let (pool, target, longest) = (pool.clone(), target.clone(), server.options.timing.webhook_answer);
                posts.spawn(async move { (id, fails, post(&pool, &target, &body, longest).await) });
                continue;
            }
            Some(Next::At(at)) => Some(at),
            Some(Next::Nothing) => None,
        };
        tokio::select! {
            Some(Ok((id, fails, outcome))) = posts.join_next() => settle(&server, bot, id, fails, outcome),
            () = wake.notified() => {}
            () = async { sleep_until(at.unwrap_or_else(Instant::now)).await }, if at.is_some() => {}
        }
    }
}

async fn post(pool: &Pool<HttpConnector, Full<Bytes>>, target: &Target, update: &Value, longest: Duration) -> Outcome {
    let mut request = Request::builder().method(Method::POST).uri(&target.url).header(CONTENT_TYPE, "application/json");
    if !target.secret.is_empty() {
        request = request.header(SECRET_HEADER, &target.secret);
    }
    let request = match request.body(Full::new(Bytes::from(update.to_string()))) {
        Ok(request) => request,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    let answer = async {
        let response = pool.request(request).await?;
        let (head, body) = response.into_parts();
        // What it says beside its status does not count, but the connection is free only when it was read.
        drop(Limited::new(body, MAX_ANSWER_BYTES).collect().await);
        Ok::<_, hyper_util::client::legacy::Error>(Response::from_parts(head, ()))
    };
    match timeout(longest, answer).await {
        Ok(Ok(answer)) if answer.status().is_success() => Outcome::Delivered,
        Ok(Ok(answer)) => {
            let retry_after =
                answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            Outcome::Refused(answer.status(), retry_after)
        }
        Ok(Err(error)) if error.is_connect() => Outcome::Failed("Connection refused".into()),
        Ok(Err(_)) => Outcome::Failed("Webhook connection closed".into()),
        Err(_) => Outcome::Failed("Read timeout expired".into()),
    }
}

fn settle(server: &Server, bot: BotId, id: UpdateId, fails: u32, outcome: Outcome) {
    let (timing, unix, now) = (&server.options.timing, server.unix(), Instant::now());
    server.change_bot(bot, |bot| {
        let Some(webhook) = &mut bot.webhook else { return };
        let (what, retry_after, gone) = match outcome {
            Outcome::Delivered => {
                webhook.gone_since = None;
                bot.queue.posted(id);
                return;
            }
            Outcome::Refused(status, retry_after) => {
                (format!("Wrong response from the webhook: {status}"), retry_after, status == StatusCode::GONE)
            }
            Outcome::Failed(what) => (what, None, false),
        };
        webhook.last_error = Some((unix, what));
        webhook.gone_since = gone.then(|| webhook.gone_since.unwrap_or(now));
        bot.queue.not_posted(id, now + delay(timing, fails, retry_after));
        if webhook.gone_since.is_some_and(|since| now > since + timing.webhook_gone) {
            bot.webhook = None;
            bot.queue.forget_posting();
        }
    });
}

/// How long an update waits that failed `fails` times before this once.
fn delay(timing: &Timing, fails: u32, retry_after: Option<u64>) -> Duration {
    match retry_after {
        Some(seconds) if seconds > 0 => {
            let seconds = seconds.min(MAX_RETRY_AFTER_SECONDS);
            timing.retry_after_second * u32::try_from(seconds).unwrap_or(u32::MAX)
        }
        Some(_) | None if fails == 0 => Duration::ZERO,
        Some(_) | None => (timing.webhook_retry * (1 << fails.min(16))).min(timing.webhook_retry_most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_unless_the_receiver_names_one() {
        let timing = Timing::default();
        let seconds: Vec<_> = (0..8).map(|fails| delay(&timing, fails, None).as_secs()).collect();
        assert_eq!(seconds, [0, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(delay(&timing, 3, Some(7)).as_secs(), 7);
        assert_eq!(delay(&timing, 3, Some(0)).as_secs(), 8);
        assert_eq!(delay(&timing, 0, Some(90_000)).as_secs(), 3600);
    }
}
