//! The way through the balancer: does it reach several instances, let streams flow, and keep headers?

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::future::join_all;
use openclaw_proto::http::{IDEMPOTENCY_KEY, INSTANCE};
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde_json::json;

use super::{Finding, Patient};
use crate::cli::client::causes;
use crate::cli::target::Place;

/// Connections that are made; any balancer of three shows more than one instance in so many.
const CALLS: usize = 9;
/// The answer that is watched as it comes: words, and the pause before each.
const WORDS: u32 = 12;
const PAUSE_MS: u32 = 50;
/// What must lie between the first word and the last.
const SPREAD: Duration = Duration::from_millis(200);
/// No key: the gateway says so, if it sees it. Nothing happens either way, since there is no such session.
const NO_KEY: &str = "two words";
const NO_SESSION: &str = "agent:main:openclaw-doctor-looks-at-nothing";

pub(super) struct Balancer {
    url: String,
    /// Who answered each call: the instance's name, or none when it was no gateway; or why nobody did.
    calls: Vec<Result<Option<String>, String>>,
    /// Instances that live, as the one on this machine knows; none: it does not answer.
    live: Option<usize>,
    /// Of a call that needs the token.
    token: Result<u16, String>,
    /// Between the first piece of a stream and its last; or why there is no stream.
    spread: Result<Duration, String>,
    /// Whether an idempotency key that is none was refused as such.
    key_seen: Result<bool, String>,
    trusts_proxies: bool,
}

pub(super) async fn measure(patient: &Patient, place: Place) -> Balancer {
    let live = patient.cluster.as_ref().map(|cluster| cluster.members.iter().filter(|member| member.live).count());
    let trusts_proxies = !patient.config.gateway.trusted_proxies.is_empty();
    let nothing = |why: &str| Balancer {
        url: place.to_string(),
        calls: vec![Err(why.to_owned())],
        live,
        token: Err(why.to_owned()),
        spread: Err(why.to_owned()),
        key_seen: Err(why.to_owned()),
        trusts_proxies,
    };
    let Place::Http(base) = &place else { return nothing("a socket is no balancer") };
    // A connection for each call, since a balancer chooses per connection.
    let client = Client::builder()
        .pool_max_idle_per_host(0)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(patient.timeout / 2)
        .timeout(patient.timeout)
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return nothing(&causes(&error)),
    };
    let way = Way { client, base: base.clone(), token: patient.token.clone() };
    let (calls, token, spread, key_seen) = tokio::join!(way.calls(), way.token(), way.spread(), way.key_seen());
    Balancer { url: place.to_string(), calls, live, token, spread, key_seen, trusts_proxies }
}

struct Way {
    client: Client,
    base: Url,
    token: Option<String>,
}

impl Way {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        let request = self.client.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn calls(&self) -> Vec<Result<Option<String>, String>> {
        // At once: one after the other, a balancer that tries a dead instance first would use up the topic's time.
        let call = async || {
            let answer = self.request(Method::GET, "api/v1/health/live").send().await;
            answer.map(|response| answered_by(&response)).map_err(|error| causes(&error))
        };
        join_all((0..CALLS).map(|_| call())).await
    }

    async fn token(&self) -> Result<u16, String> {
        let answer = self.request(Method::GET, "api/v1/cluster").send().await;
        answer.map(|response| response.status().as_u16()).map_err(|error| causes(&error))
    }

    /// A conversation that is not stored, with the model that is always there.
    async fn spread(&self) -> Result<Duration, String> {
        let say = format!("[tokens={WORDS} delay={PAUSE_MS}ms]");
        let body = json!({
            "model": "openclaw", "stream": true, "messages": [{ "role": "user", "content": say }],
        });
        let request = self.request(Method::POST, "v1/chat/completions").header("x-openclaw-model", "echo/echo");
        let mut response = request.json(&body).send().await.map_err(|error| causes(&error))?;
        if !response.status().is_success() {
            return Err(format!("status {}", response.status().as_u16()));
        }
        let mut first = None;
        let mut last = Instant::now();
        while let Some(piece) = response.chunk().await.map_err(|error| causes(&error))? {
            // Role and end come with neither pause nor word.
            if piece.windows(9).any(|bytes| bytes == b"\"content\"") {
                last = Instant::now();
                first.get_or_insert(last);
            }
        }
        first.map(|first| last - first).ok_or_else(|| "the stream had no words".to_owned())
    }

    async fn key_seen(&self) -> Result<bool, String> {
        let request = self.request(Method::POST, &format!("api/v1/sessions/{NO_SESSION}/reset"));
        let answer = request.header(IDEMPOTENCY_KEY, NO_KEY).send().await.map_err(|error| causes(&error))?;
        let status = answer.status().as_u16();
        match status {
            400 | 404 => Ok(status == 400),
            _ => Err(format!("status {status}")),
        }
    }
}

fn answered_by(response: &Response) -> Option<String> {
    Some(response.headers().get(INSTANCE)?.to_str().ok()?.to_owned())
}

pub(super) fn judge(balancer: &Balancer) -> Vec<Finding> {
    let mut findings = vec![reach(balancer)];
    if balancer.calls.iter().any(|call| matches!(call, Ok(Some(_)))) {
        findings.extend([token(balancer), stream(balancer), key(balancer), forwarded(balancer)]);
    }
    findings
}

fn reach(balancer: &Balancer) -> Finding {
    const CHECK: &str = "balancer";
    let url = &balancer.url;
    let failed: Vec<_> = balancer.calls.iter().filter_map(|call| call.as_ref().err()).collect();
    let foreign = balancer.calls.iter().filter(|call| matches!(call, Ok(None))).count();
    let names: BTreeSet<_> = balancer.calls.iter().filter_map(|call| call.as_ref().ok()?.as_deref()).collect();
    let listed = || names.iter().copied().collect::<Vec<_>>().join(", ");
    let all = balancer.calls.len();
    if let Some(error) = failed.first().filter(|_| failed.len() == all) {
        return Finding::problem(CHECK, format!("{url}: {error}"), "is it started, and the address right?");
    }
    if let Some(error) = failed.first() {
        return Finding::problem(
            CHECK,
            format!("{url}: {} of {all} connections failed: {error}", failed.len()),
            "an instance that is down must be left out: passive or active health checks (deploy/nginx/)",
        );
    }
    if foreign > 0 {
        return Finding::problem(
            CHECK,
            format!("{url}: {foreign} of {all} answers have no {INSTANCE} header: no gateway gave them"),
            "look at its list of instances and their ports, and that it passes response headers on",
        );
    }
    match (names.len(), balancer.live) {
        (1, Some(live)) if live > 1 => Finding::warning(
            CHECK,
            format!("{url}: {all} connections all went to {}, of {live} that live", listed()),
            "list all instances in it; with ip_hash one client always sees one, which nothing here needs",
        ),
        _ => Finding::ok(CHECK, format!("{url}: {all} connections went to {}", listed())),
    }
}

fn token(balancer: &Balancer) -> Finding {
    const CHECK: &str = "token";
    match &balancer.token {
        Ok(401 | 403) => Finding::problem(
            CHECK,
            "the gateway refuses this token through the balancer",
            "the same gateway.auth.token belongs on every instance, and in OPENCLAW_GATEWAY_TOKEN here; the balancer must pass \
             Authorization on",
        ),
        Ok(200..=299) => Finding::ok(CHECK, "the gateway takes it"),
        Ok(status) => Finding::problem(
            CHECK,
            format!("a call that needs it was answered with status {status}"),
            "look at the balancer's log, and that it passes /api/v1/ on to the gateways",
        ),
        Err(error) => Finding::problem(CHECK, error.clone(), "look at the balancer's log"),
    }
}

fn stream(balancer: &Balancer) -> Finding {
    const CHECK: &str = "streaming";
    match &balancer.spread {
        Ok(spread) if *spread >= SPREAD => {
            Finding::ok(CHECK, format!("words come as they are written, over {} ms", spread.as_millis()))
        }
        Ok(spread) => Finding::problem(
            CHECK,
            format!("{WORDS} words, written over {} ms, came within {} ms", WORDS * PAUSE_MS, spread.as_millis()),
            "the balancer keeps answers back: turn buffering off (proxy_buffering off; deploy/nginx/openclaw.conf)",
        ),
        Err(why) => Finding::skipped(CHECK, format!("there was no stream to watch: {why}")),
    }
}

fn key(balancer: &Balancer) -> Finding {
    const CHECK: &str = "idempotency";
    match &balancer.key_seen {
        Ok(true) => Finding::ok(CHECK, format!("{IDEMPOTENCY_KEY} reaches the gateway")),
        Ok(false) => Finding::problem(
            CHECK,
            format!("{IDEMPOTENCY_KEY} does not reach the gateway: a retry would be a second message"),
            "pass it on (proxy_set_header Idempotency-Key $http_idempotency_key)",
        ),
        Err(why) => Finding::skipped(CHECK, format!("it was not told: {why}")),
    }
}

fn forwarded(balancer: &Balancer) -> Finding {
    const CHECK: &str = "proxies";
    if balancer.trusts_proxies {
        return Finding::ok(CHECK, "gateway.trustedProxies names whose X-Forwarded-For is believed");
    }
    Finding::warning(
        CHECK,
        "gateway.trustedProxies is empty: in logs and traces all clients look like the balancer",
        "name the balancer's address there, on every instance",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn balancer() -> Balancer {
        let calls = ["node-1", "node-2", "node-3"].map(|name| Ok(Some(name.to_owned()))).to_vec();
        Balancer {
            url: "http://b".into(),
            calls,
            live: Some(3),
            token: Ok(200),
            spread: Ok(Duration::from_millis(550)),
            key_seen: Ok(true),
            trusts_proxies: true,
        }
    }

    fn found(change: impl FnOnce(&mut Balancer)) -> Vec<(&'static str, Level)> {
        let mut seen = balancer();
        change(&mut seen);
        judge(&seen).into_iter().map(|finding| (finding.check, finding.level)).collect()
    }

    #[test]
    fn a_good_way_is_right_in_all() {
        let all = ["balancer", "token", "streaming", "idempotency", "proxies"].map(|check| (check, Level::Ok));
        assert_eq!(found(|_| {}), all);
    }

    #[test]
    fn each_fault_is_told_under_its_name() {
        let down = |seen: &mut Balancer| seen.calls[1] = Err("connection refused".into());
        assert_eq!(found(down)[0], ("balancer", Level::Problem));
        assert_eq!(found(|seen| seen.calls = vec![Err("refused".into())]), [("balancer", Level::Problem)]);
        assert_eq!(found(|seen| seen.calls[0] = Ok(None))[0], ("balancer", Level::Problem));
        assert_eq!(found(|seen| seen.calls.truncate(1))[0], ("balancer", Level::Warning));
        for status in [301, 401, 404, 502] {
            assert_eq!(found(|seen| seen.token = Ok(status))[1], ("token", Level::Problem), "{status}");
        }
        assert_eq!(found(|seen| seen.spread = Ok(Duration::from_millis(3)))[2], ("streaming", Level::Problem));
        assert_eq!(found(|seen| seen.spread = Err("status 404".into()))[2], ("streaming", Level::Skipped));
        assert_eq!(found(|seen| seen.key_seen = Ok(false))[3], ("idempotency", Level::Problem));
        assert_eq!(found(|seen| seen.trusts_proxies = false)[4], ("proxies", Level::Warning));
    }
}
