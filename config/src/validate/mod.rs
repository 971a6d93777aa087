//! Rules between settings, and ranges. Each problem names the key that an operator would change.

mod channels;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::agents::{Agent, ModelOverride};
use crate::document::join;
use crate::models::{Api, Provider};
use crate::problem::{Errors, Problem, Source, Warning};
use crate::storage::Backend;
use crate::{ByteCount, Config, HostPort, ModelRef, Secret};

const DAY: Duration = Duration::from_secs(24 * 3600);
const MIN_SECRET_CHARACTERS: usize = 32;

impl Config {
    /// Checks ranges and the rules between settings; gives what is odd but allowed.
    ///
    /// # Errors
    /// Every rule that is broken, by the key to change.
    pub fn validate(&self) -> Result<Vec<Warning>, Errors> {
        match self.check() {
            (problems, warnings) if problems.is_empty() => Ok(warnings),
            (problems, _) => Err(Errors(problems)),
        }
    }

    pub(crate) fn check(&self) -> (Vec<Problem>, Vec<Warning>) {
        let mut check = Check::default();
        gateway(self, &mut check);
        storage(self, &mut check);
        cluster(self, &mut check);
        raft_and_lease(self, &mut check);
        models(self, &mut check);
        agents(self, &mut check);
        channels::check(self, &mut check);
        sessions(self, &mut check);
        diagnostics(self, &mut check);
        (check.problems, check.warnings)
    }
}

#[derive(Default)]
struct Check {
    problems: Vec<Problem>,
    warnings: Vec<Warning>,
}

/// Once, though several may share the setting that is wrong.
fn add(problems: &mut Vec<Problem>, key: &str, message: impl Into<String>) {
    let problem = Problem { source: Source::Default, key: key.to_owned(), message: message.into() };
    if !problems.contains(&problem) {
        problems.push(problem);
    }
}

impl Check {
    fn refuse(&mut self, key: &str, message: impl Into<String>) {
        add(&mut self.problems, key, message);
    }

    fn warn(&mut self, key: &str, message: impl Into<String>) {
        add(&mut self.warnings, key, message);
    }

    fn number(&mut self, key: &str, number: impl Into<u64>, range: RangeInclusive<u64>) {
        let number = number.into();
        if !range.contains(&number) {
            let (least, most) = range.into_inner();
            self.refuse(
                key,
                match most {
                    u64::MAX => format!("{number} is below {least}"),
                    most => format!("{number} is not between {least} and {most}"),
                },
            );
        }
    }

    fn bytes(&mut self, key: &str, bytes: ByteCount, range: RangeInclusive<ByteCount>) {
        self.number(key, bytes.0, range.start().0..=range.end().0);
    }

    fn millis(&mut self, key: &str, duration: Duration, range: RangeInclusive<Duration>) {
        if !range.contains(&duration) {
            let (least, most) = (range.start().as_millis(), range.end().as_millis());
            self.refuse(key, format!("{} ms is not between {least} and {most} ms", duration.as_millis()));
        }
    }

    fn secret(&mut self, key: &str, secret: Option<&Secret>) {
        let visible = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        match secret.map(Secret::expose) {
            Some("") => self.refuse(key, "must not be empty"),
            Some(text) if !visible(text) => self.refuse(key, "must consist of visible ASCII characters"),
            Some(_) | None => {}
        }
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn gateway(config: &Config, check: &mut Check) {
    let gateway = &config.gateway;
    check.number("gateway.port", gateway.port, 1..=65535);
    check.secret("gateway.auth.token", gateway.auth.token.as_ref());
    if !gateway.bind.is_loopback() && gateway.auth.token.is_none() {
        check.refuse(
            "gateway.bind",
            "an address that others can reach needs gateway.auth.token (OPENCLAW_GATEWAY_TOKEN)",
        );
    }
    if gateway.auth.token.as_ref().is_some_and(|token| (1..16).contains(&token.expose().len())) {
        check.warn("gateway.auth.token", "shorter than 16 characters; `openssl rand -hex 32` makes a good one");
    }
    for (n, origin) in gateway.allowed_origins.iter().enumerate() {
        let key = format!("gateway.allowedOrigins[{n}]");
        if let Err(error) = Url::parse(origin, &["http", "https"]).and_then(|url| match url.path {
            "" => Ok(()),
            _ => Err("an origin has no path".to_owned()),
        }) {
            check.refuse(&key, format!("{origin:?} is not an origin such as \"https://chat.example\": {error}"));
        }
    }

    let limits = &gateway.limits;
    let kib = ByteCount::kib;
    check.bytes("gateway.limits.bodyBytes", limits.body_bytes, kib(1)..=ByteCount::mib(64));
    check.bytes("gateway.limits.headerBytes", limits.header_bytes, kib(8)..=ByteCount::mib(1));
    check.millis("gateway.limits.headerReadMs", limits.header_read, ms(100)..=ms(600_000));
    check.millis("gateway.limits.requestMs", limits.request, ms(100)..=ms(600_000));
    check.millis("gateway.limits.chatRequestMs", limits.chat_request, ms(100)..=DAY);
    if limits.chat_request < limits.request {
        check.refuse("gateway.limits.chatRequestMs", "must not be below gateway.limits.requestMs");
    }
    check.number("gateway.limits.maxConnections", limits.max_connections, 1..=1_000_000);
    check.number("gateway.limits.maxConcurrentRequests", limits.max_concurrent_requests, 1..=1_000_000);
    check.number("gateway.limits.maxStreams", limits.max_streams, 1..=1_000_000);

    let shutdown = &gateway.shutdown;
    check.millis("gateway.shutdown.drainMs", shutdown.drain, ms(0)..=ms(3_600_000));
    if shutdown.lame_duck > shutdown.drain {
        check.refuse("gateway.shutdown.lameDuckMs", "must not be above gateway.shutdown.drainMs");
    }
}

fn storage(config: &Config, check: &mut Check) {
    let storage = &config.storage;
    if storage.data_dir.as_os_str().is_empty() {
        check.refuse("storage.dataDir", "must not be empty");
    }
    if let Some(redis) = &storage.redis {
        if let Err(error) = Url::parse(&redis.url, &["redis", "rediss"]) {
            let error = match error.as_str() {
                CREDENTIALS => "it contains a password; use storage.redis.password".to_owned(),
                _ => error,
            };
            check.refuse("storage.redis.url", format!("not a URL such as \"redis://host:6379\": {error}"));
        }
        if redis.password.as_ref().is_some_and(|password| password.expose().is_empty()) {
            check.refuse("storage.redis.password", "must not be empty");
        }
        check.number("storage.redis.poolSize", redis.pool_size, 1..=1000);
    } else if storage.backend == Backend::Redis {
        check.refuse("storage.backend", "\"redis\" needs storage.redis");
    }
}

fn cluster(config: &Config, check: &mut Check) {
    let cluster = &config.cluster;
    let clustered = cluster.is_clustered();
    let has_peers = !cluster.bootstrap.is_empty() || !cluster.join.is_empty();
    if has_peers && cluster.enabled == Some(false) {
        check.refuse("cluster.enabled", "is false, but cluster.bootstrap or cluster.join is given");
    }
    if !cluster.bootstrap.is_empty() && !cluster.join.is_empty() {
        check
            .refuse("cluster.join", "cluster.bootstrap is given as well; the first members bootstrap, later ones join");
    }
    if clustered && cluster.instance_id.is_none() {
        check.refuse("cluster.instanceId", "needed in a cluster (--instance-id, OPENCLAW_INSTANCE_ID)");
    }
    if clustered && !has_peers {
        check.warn("cluster.enabled", "no peers are named, so this instance is a cluster of one; name them with --bootstrap (OPENCLAW_CLUSTER_BOOTSTRAP, cluster.bootstrap) or --join (OPENCLAW_CLUSTER_JOIN, cluster.join)");
    }

    let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for (n, member) in cluster.bootstrap.iter().enumerate() {
        let key = format!("cluster.bootstrap[{n}]");
        if !ids.insert(&member.id) {
            check.refuse(&key, format!("instance {} is named twice", member.id));
        }
        if !addresses.insert(&member.address) {
            check.refuse(&key, format!("address {} is given twice", member.address));
        }
    }
    if let Some(id) = cluster.instance_id.as_ref().filter(|id| !ids.is_empty() && !ids.contains(id)) {
        check.refuse("cluster.bootstrap", format!("does not name this instance, {id}"));
    }
    if cluster.bootstrap.len() == 2 {
        check.warn(
            "cluster.bootstrap",
            "two voters tolerate no failure: without either of them nothing can be written; use one or three",
        );
    }

    let peer = &cluster.peer;
    match (&peer.tls, &peer.secret) {
        (Some(_), Some(_)) => check.refuse("cluster.peer.secret", "cluster.peer.tls is given as well; use one of them"),
        (None, None) if !peer.listen.ip().is_loopback() => {
            let message = format!(
                "{} can be reached by others and needs cluster.peer.tls or cluster.peer.secret (OPENCLAW_CLUSTER_SECRET)",
                peer.listen
            );
            check.refuse("cluster.peer.listen", message);
        }
        (Some(_), None) | (None, Some(_)) | (None, None) => {}
    }
    if let Some(tls) = &peer.tls {
        for (name, path) in [("ca", &tls.ca), ("cert", &tls.cert), ("key", &tls.key)] {
            if path.as_os_str().is_empty() {
                check.refuse(&format!("cluster.peer.tls.{name}"), "must not be empty");
            }
        }
    }
    if let Some(secret) = &peer.secret {
        let characters = secret.expose().chars().count();
        if characters < MIN_SECRET_CHARACTERS {
            let message = format!(
                "has {characters} characters; at least {MIN_SECRET_CHARACTERS} are needed (`openssl rand -hex 32`)"
            );
            check.refuse("cluster.peer.secret", message);
        }
    }
    if clustered && cluster.peer_address().is_none() {
        let message = format!("needed, because others cannot reach {}", peer.listen);
        check.refuse("cluster.peer.advertise", message);
    }
    let wildcard = |address: &HostPort| address.ip().is_some_and(|ip| ip.is_unspecified());
    if peer.advertise.as_ref().is_some_and(wildcard) {
        check.refuse("cluster.peer.advertise", "others cannot reach a wildcard address");
    }
    if cluster.advertise_http.as_ref().is_some_and(wildcard) {
        check.refuse("cluster.advertiseHttp", "others cannot reach a wildcard address");
    }
    let overlap = |ours: IpAddr| ours == peer.listen.ip() || ours.is_unspecified() || peer.listen.ip().is_unspecified();
    if peer.listen.port() == config.gateway.port && config.gateway.bind.addresses().into_iter().any(overlap) {
        check.refuse("cluster.peer.listen", format!("port {} is gateway.port as well", config.gateway.port));
    }

    let mut bound = BTreeMap::new();
    for (instance, channels) in &cluster.channel_binding {
        let key = join(&["cluster".into(), "channelBinding".into(), instance.to_string()]);
        if !ids.is_empty() && !ids.contains(instance) {
            check.warn(&key, "cluster.bootstrap names no such instance");
        }
        channels::bound(config, &key, channels, check);
        for channel in channels {
            match bound.insert(channel, instance) {
                Some(other) => check.refuse(&key, format!("channel {channel:?} is bound to {other} as well")),
                None if channel.is_empty() => check.refuse(&key, "a channel's name must not be empty"),
                None => {}
            }
        }
    }
    check.millis("cluster.failback.after", cluster.failback.after, Duration::ZERO..=DAY);
}

fn raft_and_lease(config: &Config, check: &mut Check) {
    let (raft, lease) = (&config.cluster.raft, &config.cluster.lease);
    check.millis("cluster.raft.heartbeatMs", raft.heartbeat, ms(5)..=ms(10_000));
    check.millis("cluster.raft.electionTimeoutMs", raft.election_timeout, ms(20)..=ms(60_000));
    if raft.heartbeat.saturating_mul(2) >= raft.election_timeout {
        let message = format!(
            "must be below half of cluster.raft.electionTimeoutMs: {} ms of {} ms",
            raft.heartbeat.as_millis(),
            raft.election_timeout.as_millis()
        );
        check.refuse("cluster.raft.heartbeatMs", message);
    }
    check.number("cluster.raft.snapshotEvery", raft.snapshot_every, 100..=u64::MAX);

    check.millis("cluster.lease.validityMs", lease.validity, ms(100)..=ms(600_000));
    check.millis("cluster.lease.waitMs", lease.wait, ms(150)..=ms(3_600_000));
    check.millis("cluster.lease.renewMs", lease.renew, ms(1)..=ms(150_000));
    check.millis("cluster.lease.stopBudgetMs", lease.stop_budget, ms(1)..=ms(75_000));
    let validity = lease.validity.as_millis();
    let parts = [
        // wait / validity >= 3 / 2 is the ratio of clock rates that is tolerated.
        ("waitMs", lease.wait.as_millis() * 2 >= validity * 3, "at least 1.5 times", lease.wait),
        ("renewMs", lease.renew.as_millis() * 4 <= validity, "at most a quarter of", lease.renew),
        ("stopBudgetMs", lease.stop_budget.as_millis() * 8 <= validity, "at most an eighth of", lease.stop_budget),
    ];
    for (key, holds, rule, value) in parts {
        if !holds {
            let message =
                format!("must be {rule} cluster.lease.validityMs: {} ms with {validity} ms", value.as_millis());
            check.refuse(&format!("cluster.lease.{key}"), message);
        }
    }
}

fn models(config: &Config, check: &mut Check) {
    for (id, provider) in &config.models.providers {
        let at = |key: &str| join(&["models".into(), "providers".into(), id.clone(), key.into()]);
        let whole = join(&["models".into(), "providers".into(), id.clone()]);
        if id.is_empty() || id.len() > 64 || id.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
            check.refuse(&whole, "a provider's name has 1 to 64 bytes without '/' and white space");
        }
        if id == Provider::ECHO && provider.api != Api::Echo {
            check.refuse(&at("api"), "the provider `echo` is built in and speaks nothing else; choose another name");
            continue;
        }
        match (provider.api, &provider.base_url) {
            (Api::Openai | Api::Anthropic, None) => check.refuse(&whole, "`baseUrl` is missing"),
            (Api::Openai | Api::Anthropic, Some(url)) => match Url::parse(url, &["http", "https"]) {
                Ok(url) if url.is_clear() && provider.api_key.is_some() => {
                    check.warn(&at("baseUrl"), "the API key is sent without encryption");
                }
                Ok(_) => {}
                // Not the URL itself: it may contain a password.
                Err(error) => {
                    check.refuse(&at("baseUrl"), format!("not a URL such as \"https://api.openai.com/v1\": {error}"))
                }
            },
            (Api::Echo, Some(_)) => check.refuse(&at("baseUrl"), "an echo provider calls nobody"),
            (Api::Echo, None) => {}
        }
        if provider.api != Api::Echo && provider.token_delay != Duration::ZERO {
            check.refuse(&at("tokenDelayMs"), "only for providers whose api is \"echo\"");
        }
        check.millis(&at("tokenDelayMs"), provider.token_delay, Duration::ZERO..=ms(60_000));
        check.secret(&at("apiKey"), provider.api_key.as_ref());
        check.millis(&at("timeoutMs"), provider.timeout, ms(100)..=DAY);
        check.millis(&at("firstByteTimeoutMs"), provider.first_byte_timeout, ms(100)..=DAY);
        check.number(&at("maxConcurrency"), provider.max_concurrency, 1..=100_000);
        check.number(&at("maxRetries"), provider.max_retries, 0..=10);
        headers(check, &["models".into(), "providers".into(), id.clone(), "headers".into()], &provider.headers);
    }
}

/// Headers that a client of ours adds to its requests, at the path `section`.
fn headers(check: &mut Check, section: &[String], headers: &BTreeMap<String, Secret>) {
    for (name, value) in headers {
        let key = join(&[section, std::slice::from_ref(name)].concat());
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            check.refuse(&key, "not the name of an HTTP header");
        }
        if !value.expose().bytes().all(|b| b == b' ' || b == b'\t' || b.is_ascii_graphic()) {
            check.refuse(&key, "must consist of visible ASCII characters and spaces");
        }
    }
}

fn diagnostics(config: &Config, check: &mut Check) {
    let otel = &config.diagnostics.otel;
    if let Some(endpoint) = &otel.endpoint {
        match Url::parse(endpoint, &["http", "https"]) {
            Ok(url) if url.is_clear() && !otel.headers.is_empty() => {
                check.warn("diagnostics.otel.endpoint", "the headers are sent without encryption");
            }
            Ok(_) => {}
            // Not the URL itself: it may contain a password.
            Err(error) => check
                .refuse("diagnostics.otel.endpoint", format!("not a URL such as \"http://collector:4318\": {error}")),
        }
    }
    headers(check, &["diagnostics".into(), "otel".into(), "headers".into()], &otel.headers);
    if otel.service_name.is_empty() || otel.service_name.len() > 128 || otel.service_name.contains(char::is_control) {
        check.refuse("diagnostics.otel.serviceName", "has 1 to 128 bytes without control characters");
    }
    if !(0.0..=1.0).contains(&otel.sample_rate.0) {
        check.refuse("diagnostics.otel.sampleRate", format!("{} is not between 0 and 1", otel.sample_rate.0));
    }
    let health = &config.diagnostics.health;
    check.millis("diagnostics.health.deafAfterMs", health.deaf_after, ms(1000)..=DAY);
    check.millis("diagnostics.health.outboxStuckAfterMs", health.outbox_stuck_after, ms(1000)..=DAY);
}

fn agents(config: &Config, check: &mut Check) {
    let model = |check: &mut Check, key: String, model: &ModelRef| {
        if !config.models.providers.contains_key(&model.provider) {
            let known: Vec<_> = config.models.providers.keys().map(|id| format!("`{id}`")).collect();
            check.refuse(
                &key,
                format!("`{model}` names no provider of models.providers; they are {}", known.join(", ")),
            );
        }
    };
    let sizes = |check: &mut Check, section: &str, agent: &Agent| {
        check.number(&format!("{section}.maxOutputTokens"), agent.max_output_tokens, 1..=10_000_000);
        check.number(&format!("{section}.contextMaxEntries"), agent.context_max_entries, 1..=100_000);
        check.bytes(
            &format!("{section}.contextMaxBytes"),
            agent.context_max_bytes,
            ByteCount::kib(1)..=ByteCount::mib(64),
        );
    };

    let defaults = &config.agents.defaults;
    model(check, "agents.defaults.model.primary".into(), &defaults.model.primary);
    for (n, fallback) in defaults.model.fallbacks.iter().enumerate() {
        model(check, format!("agents.defaults.model.fallbacks[{n}]"), fallback);
    }
    sizes(check, "agents.defaults", defaults);
    for (id, overrides) in &config.agents.entries {
        let section = join(&["agents".into(), "entries".into(), id.to_string()]);
        if let Some(ModelOverride { primary, fallbacks }) = &overrides.model {
            if let Some(primary) = primary {
                model(check, format!("{section}.model.primary"), primary);
            }
            for (n, fallback) in fallbacks.iter().flatten().enumerate() {
                model(check, format!("{section}.model.fallbacks[{n}]"), fallback);
            }
        }
        // Only its own numbers: those of the defaults were checked above.
        let own = Agent {
            max_output_tokens: overrides.max_output_tokens.unwrap_or(1),
            context_max_entries: overrides.context_max_entries.unwrap_or(1),
            context_max_bytes: overrides.context_max_bytes.unwrap_or(ByteCount::kib(1)),
            ..Agent::default()
        };
        sizes(check, &section, &own);
    }
}

fn sessions(config: &Config, check: &mut Check) {
    let triggers = &config.session.reset_triggers;
    if triggers.len() > 32 {
        check.refuse("session.resetTriggers", format!("has {} entries; at most 32 are allowed", triggers.len()));
    }
    for (n, trigger) in triggers.iter().enumerate() {
        let key = format!("session.resetTriggers[{n}]");
        if !(1..=64).contains(&trigger.len()) || trigger.trim() != trigger || trigger.contains(char::is_control) {
            check.refuse(&key, "a trigger has 1 to 64 bytes, such as \"/new\", and no white space around it");
        }
    }
    check.millis("session.turnTimeoutMs", config.session.turn_timeout, ms(1000)..=DAY);
    check.number("session.maxAttempts", config.session.max_attempts, 1..=10);
    check.number("messages.queue.cap", config.messages.queue.cap, 1..=1000);
}

const CREDENTIALS: &str = "it contains a user or a password";

/// As much of a URL as the rules need.
struct Url<'a> {
    scheme: &'a str,
    host: String,
    path: &'a str,
}

impl<'a> Url<'a> {
    fn parse(text: &'a str, schemes: &[&str]) -> Result<Self, String> {
        let wanted = || {
            format!(
                "it does not begin with {}",
                schemes.iter().map(|s| format!("{s}://")).collect::<Vec<_>>().join(" or ")
            )
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(wanted)?;
        if !schemes.contains(&scheme) {
            return Err(wanted());
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(CREDENTIALS.into());
        }
        if path.contains(['?', '#']) || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
            return Err("it contains a query, a fragment, white space or a backslash".into());
        }
        // Any port serves to tell whether the rest is a host.
        let host = authority.parse::<HostPort>().or_else(|_| format!("{authority}:1").parse());
        let host = host.map_err(|_| "it has no valid host".to_owned())?.host().to_owned();
        Ok(Self { scheme, host, path })
    }

    /// Whether what it carries can be read on the way.
    fn is_clear(&self) -> bool {
        let local = self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        matches!(self.scheme, "http" | "ws") && !local
    }
}
