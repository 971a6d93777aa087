//! What the built binary tells of itself: traces over instances, request ids in logs and errors, and health that is false when
//! it should be.

#![expect(clippy::unwrap_used, reason = "what a test sets up may panic like the test itself")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jepsen_lite::cluster::{Cluster, Instance, Options};
use jepsen_lite::fakes::otlp::{self, Mood, Span};
use jepsen_lite::fakes::telegram::{self, ChatId, Fault, Method, Rule, UserId};
use serde_json::{Value, json};

/// For anything that ends by itself.
const SOON: Duration = Duration::from_secs(60);
const BOT: &str = "7000001:harness-harness-harness-harness-h";
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
/// What somebody says, and nobody else may learn.
const MESSAGE: &str = "my-secret-words";

fn options(instances: usize) -> Options {
    Options::new(env!("CARGO_BIN_EXE_openclaw"), instances)
}

/// Asks an instance something over HTTP.
async fn ask(instance: &Instance, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Result<Said> {
    // The first test of the process installs it; the others find it there.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(SOON).build()?;
    let mut request = client.request(method.parse()?, format!("http://{}{path}", instance.http));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if !body.is_null() {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    let answer = request.send().await?;
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    Ok(Said { status, headers, text: answer.text().await? })
}

struct Said {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

/// Waits for a condition; the error says what was there in its place.
async fn until<T: std::fmt::Debug>(
    what: &str,
    look: impl AsyncFn() -> Result<T>,
    met: impl Fn(&T) -> bool,
) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        let seen = look().await?;
        if met(&seen) {
            return Ok(seen);
        }
        ensure!(Instant::now() < deadline, "{what}: {seen:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Lines of an instance's log.
fn log(instance: &Instance) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(&instance.process.program().log)?;
    // The last one may be half written.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn one<'a>(spans: &'a [Span], what: &str, wanted: impl Fn(&Span) -> bool) -> Result<&'a Span> {
    let found: Vec<_> = spans.iter().filter(|span| wanted(span)).collect();
    ensure!(found.len() == 1, "{} spans are {what}: {spans:#?}", found.len());
    Ok(found[0])
}

fn is(span: &Span, name: &str, attribute: &str, value: &str) -> bool {
    span.name == name && span.attributes.get(attribute).is_some_and(|found| found == value)
}

/// No attribute says what people said, or what opens a door.
fn ensure_discreet(spans: &[Span]) -> Result<()> {
    let all = format!("{spans:?}");
    ensure!(!all.contains(MESSAGE) && !all.contains(BOT) && !all.contains("harness-harness"), "{all}");
    Ok(())
}

async fn telegram_fake() -> Result<(telegram::Handle, telegram::BotId)> {
    let telegram = telegram::start(LOOPBACK, telegram::Options::with_bots(&[BOT])).await?;
    Ok((telegram, telegram::Account::new(BOT).id()))
}

fn with_bot(options: Options, telegram: &telegram::Handle) -> Options {
    let settings = json!({"botToken": BOT, "apiRoot": telegram.api_url(), "dmPolicy": "open", "allowFrom": ["*"]});
    options.written("channels", json!({"telegram": settings}))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_a_request_over_instances_to_its_reply_and_to_a_delivery() -> Result<()> {
    let collector = otlp::start(LOOPBACK).await?;
    let (telegram, bot) = telegram_fake().await?;
    let options = with_bot(options(3), &telegram)
        .variable("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .variable("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=t1")
        .variable("OTEL_SERVICE_NAME", "chat");
    let mut cluster = Cluster::start(options, SOON).await?;
    let leader = cluster.leader(SOON).await?;
    let (follower, leader) = (&cluster.instances()[(leader + 1) % 3], &cluster.instances()[leader]);
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let asked = json!({"sessionKey": "traced", "message": MESSAGE});
    let said =
        ask(follower, "POST", "/api/v1/chat", &[("traceparent", &parent), ("x-request-id", "r-1")], asked).await?;
    ensure!(said.status == 200, "{}", said.text);

    let whole = |spans: &[Span]| {
        let count = |name: &str| spans.iter().filter(|span| span.name == name).count();
        spans.iter().any(|span| span.name.starts_with("POST"))
            && count("turn") == 1
            && count("commit") == 2
            && count("propose") == 2
            && count("model") == 1
    };
    let spans = collector.trace(TRACE, whole, SOON).await?;
    ensure_discreet(&spans)?;
    let http = one(&spans, "the request", |span| span.name == "POST /api/v1/chat")?;
    ensure!(http.parent_id == SPAN && http.instance == follower.id.as_str() && http.service == "chat", "{http:?}");
    ensure!(is(http, &http.name, "status", "200") && is(http, &http.name, "request_id", "r-1"), "{http:?}");
    let accept = one(&spans, "the accept", |span| is(span, "propose", "command", "accept"))?;
    ensure!(accept.parent_id == http.span_id && accept.instance == follower.id.as_str(), "{accept:?}");
    let commit = one(&spans, "its commit", |span| span.name == "commit" && span.parent_id == accept.span_id)?;
    ensure!(commit.instance == leader.id.as_str() && commit.attributes["log_index"].parse::<u64>()? > 0, "{commit:?}");
    let turn = one(&spans, "the turn", |span| is(span, "turn", "outcome", "done"))?;
    ensure!(turn.parent_id == http.span_id, "{turn:?}");
    let model = one(&spans, "the model's", |span| is(span, "model", "outcome", "ok"))?;
    ensure!(model.parent_id == turn.span_id && is(model, "model", "provider", "echo"), "{model:?}");
    let complete = one(&spans, "the complete", |span| is(span, "propose", "command", "complete"))?;
    ensure!(complete.parent_id == turn.span_id, "{complete:?}");
    one(&spans, "its commit", |span| span.name == "commit" && span.parent_id == complete.span_id)?;
    ensure!(spans.iter().all(|span| span.start <= span.end && !span.failed), "{spans:#?}");
    ensure!(collector.headers()["x-tenant"] == "t1");

    // From a platform, by way of the account's owner and whoever runs the turn, and back.
    telegram.wait_for_poll(bot, SOON).await?;
    telegram.say(bot, ChatId(11), UserId(11), MESSAGE)?;
    telegram.wait_for_message(bot, |message| message.content.text.contains(MESSAGE), SOON).await?;
    let delivered = until(
        "a delivery",
        async || Ok(collector.spans()),
        |spans| spans.iter().any(|span| span.name == "deliver") && spans.iter().any(|span| span.name == "message"),
    );
    let message = delivered.await?.into_iter().find(|span| span.name == "message").context("a message")?;
    let whole = |spans: &[Span]| {
        let commands: BTreeSet<_> = spans.iter().filter_map(|span| span.attributes.get("command")).collect();
        spans.iter().any(|span| span.name == "deliver")
            && commands.contains(&"update_intent".to_owned())
            && spans.iter().any(|span| span.name == "turn")
            && spans.iter().any(|span| span.name == "message")
    };
    let spans = collector.trace(&message.trace_id, whole, SOON).await?;
    ensure_discreet(&spans)?;
    ensure!(message.parent_id.is_empty() || message.parent_id == "0".repeat(16), "{message:?}");
    let turn = one(&spans, "the turn", |span| span.name == "turn")?;
    let deliver = one(&spans, "the delivery", |span| span.name == "deliver")?;
    ensure!(turn.parent_id == message.span_id && deliver.parent_id == message.span_id, "{spans:#?}");
    ensure!(deliver.instance == message.instance, "the owner delivers");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_on_another_instance_is_part_of_its_own_trace() -> Result<()> {
    let collector = otlp::start(LOOPBACK).await?;
    let options = options(3).variable("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
    let cluster = Cluster::start(options, SOON).await?;
    let (runner, reader) = (&cluster.instances()[0], &cluster.instances()[1]);
    let asked = json!({"sessionKey": "relayed", "message": "[tokens=40 delay=50ms]"});
    let running = ask(runner, "POST", "/api/v1/chat", &[("idempotency-key", "k")], asked);
    let reading = async {
        let path = "/api/v1/sessions/relayed";
        let turn = until(
            "a running turn",
            async || Ok(ask(reader, "GET", path, &[], Value::Null).await?.json()["runningTurn"].clone()),
            Value::is_string,
        );
        let path = format!("/api/v1/chat/stream?turnId={}", turn.await?.as_str().unwrap_or_default());
        let parent = format!("00-{TRACE}-{SPAN}-01");
        ask(reader, "GET", &path, &[("traceparent", &parent)], Value::Null).await
    };
    let (ran, read) = tokio::join!(running, reading);
    ensure!(ran?.status == 200 && read?.text.contains("event: done"));
    let whole = |spans: &[Span]| spans.iter().any(|span| span.name == "relay") && spans.len() >= 2;
    let spans = collector.trace(TRACE, whole, SOON).await?;
    let http = one(&spans, "the reader", |span| span.name == "GET /api/v1/chat/stream")?;
    let relay = spans.iter().find(|span| span.name == "relay").context("a relay")?;
    ensure!(http.parent_id == SPAN && http.instance == reader.id.as_str(), "{http:?}");
    ensure!(relay.parent_id == http.span_id && relay.instance == runner.id.as_str(), "{relay:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_in_trouble_costs_spans_and_nothing_else() -> Result<()> {
    let collector = otlp::start(LOOPBACK).await?;
    let options = options(1).variable("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
    let mut cluster = Cluster::start(options, SOON).await?;
    let chat = async |instance: &Instance, n: usize| {
        let began = Instant::now();
        let asked = json!({"sessionKey": format!("s{n}"), "message": "x"});
        ensure!(ask(instance, "POST", "/api/v1/chat", &[], asked).await?.status == 200);
        // Far below the time that an export may take.
        ensure!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        Ok::<_, anyhow::Error>(())
    };
    let failed = async |instance: &Instance| {
        let page = ask(instance, "GET", "/metrics", &[], Value::Null).await?.text;
        let line = page.lines().find(|line| line.starts_with("openclaw_trace_spans_total{result=\"failed\"}"));
        Ok::<_, anyhow::Error>(line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or_default())
    };
    let instance = &cluster.instances()[0];
    let refusing = Mood::Refuse(400);
    for mood in [refusing, Mood::Hang] {
        collector.set_mood(mood);
        let before = failed(instance).await?;
        for n in 0..5 {
            chat(instance, n).await?;
        }
        until(&format!("{mood:?} is counted"), async || failed(instance).await, |now| *now > before).await?;
    }
    ensure!(collector.spans().is_empty());
    chat(instance, 6).await?;
    // And the process ends, though the last spans do not get away.
    cluster.instance(0).process.terminate()?;
    cluster.instance(0).process.wait_exit(SOON).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_called_the_same_in_its_answer_its_errors_and_the_logs_of_all_who_work_for_it() -> Result<()> {
    let cluster = Cluster::start(options(3).variable("OPENCLAW_LOG_LEVEL", "debug"), SOON).await?;
    let [first, others @ ..] = cluster.instances() else { unreachable!() };
    // A turn that is accepted in maintenance runs on another instance.
    let on = ask(first, "POST", "/api/v1/maintenance", &[], json!({"on": true})).await?;
    ensure!(on.status == 200, "{}", on.text);
    let asked = json!({"sessionKey": "named", "message": MESSAGE});
    let said = ask(first, "POST", "/api/v1/chat", &[("x-request-id", "r-77")], asked).await?;
    ensure!(said.status == 200 && said.header("x-request-id") == "r-77", "{}", said.text);
    let of_turn = |instance: &Instance| {
        let over = |line: &Value| line["requestId"] == "r-77" && line["message"] == "turn over";
        Ok::<_, anyhow::Error>(log(instance)?.into_iter().find(over))
    };
    let runner = said.json()["instanceId"].as_str().context("a runner")?.to_owned();
    let runner = others.iter().find(|one| one.id.as_str() == runner).context("another instance ran it")?;
    let line = until("the turn's line", async || of_turn(runner), Option::is_some).await?.context("a line")?;
    ensure!(line["instanceId"] == runner.id.as_str() && line["spans"][0]["name"] == "turn", "{line}");
    let answered = |line: &Value| line["requestId"] == "r-77" && line["message"] == "request answered";
    until("the request's line", async || Ok(log(first)?.iter().any(answered)), |found| *found).await?;

    let refused = ask(first, "POST", "/api/v1/chat", &[("x-request-id", "r-78")], json!({"message": ""})).await?;
    ensure!(refused.status == 400 && refused.json()["error"]["requestId"] == "r-78", "{}", refused.text);
    let absent = ask(first, "GET", "/api/v1/nothing", &[("x-request-id", &"x".repeat(65))], Value::Null).await?;
    let made = absent.header("x-request-id").to_owned();
    ensure!(absent.status == 404 && made.len() == 32 && absent.json()["error"]["requestId"] == made.as_str());
    for instance in cluster.instances() {
        let text = std::fs::read_to_string(&instance.process.program().log)?;
        ensure!(!text.contains(MESSAGE), "{} logs what people say", instance.id);
    }
    Ok(())
}

/// What `/api/v1/health` says: its status code, its status, and the conditions that it names.
async fn health(instance: &Instance) -> Result<(u16, String, BTreeSet<String>)> {
    let said = ask(instance, "GET", "/api/v1/health", &[], Value::Null).await?;
    let body = said.json();
    let conditions = body["reasons"].as_array().into_iter().flatten();
    let conditions = conditions.filter_map(|reason| Some(reason["condition"].as_str()?.to_owned())).collect();
    Ok((said.status, body["status"].as_str().unwrap_or_default().to_owned(), conditions))
}

/// Waits until each of these begins a line of the metrics, which may be a second old.
async fn shows(instance: &Instance, wanted: &[&str]) -> Result<()> {
    let missing = async || {
        let page = ask(instance, "GET", "/metrics", &[], Value::Null).await?.text;
        let has = |start: &str| page.lines().any(|line| line.starts_with(start));
        Ok(wanted.iter().filter(|start| !has(start)).map(|start| (*start).to_owned()).collect::<Vec<_>>())
    };
    until("metrics that are missing", missing, Vec::is_empty).await.map(drop)
}

fn unwell(conditions: &[&str]) -> (u16, String, BTreeSet<String>) {
    (503, "unwell".to_owned(), conditions.iter().map(|one| (*one).to_owned()).collect())
}

fn well() -> (u16, String, BTreeSet<String>) {
    (200, "ready".to_owned(), BTreeSet::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_bot_makes_its_owner_unwell_and_nobody_else_and_the_owner_goes_on_serving() -> Result<()> {
    let (telegram, bot) = telegram_fake().await?;
    // Telegram answers to all other calls, and the bot hears nothing, as upstream's bots did for weeks.
    let deaf = telegram.inject(Rule::always(Fault::Hang).method(Method::GetUpdates));
    let options = with_bot(options(3), &telegram).written("diagnostics", json!({"health": {"deafAfterMs": 2000}}));
    let cluster = Cluster::start(options, SOON).await?;
    deaf.wait_for_hits(1, SOON).await?;
    let channels = ask(&cluster.instances()[0], "GET", "/api/v1/channels", &[], Value::Null).await?.json();
    let owner = channels["channels"][0]["owner"].as_str().context("an owner")?.to_owned();
    let (owners, others): (Vec<_>, Vec<_>) =
        cluster.instances().iter().partition(|instance| instance.id.as_str() == owner);
    let owner = owners[0];
    until("deaf", async || health(owner).await, |seen| *seen == unwell(&["channel_deaf"])).await?;
    for path in ["/api/v1/health/ready", "/api/v1/health/live", "/readyz", "/healthz"] {
        ensure!(ask(owner, "GET", path, &[], Value::Null).await?.status == 200, "{path}");
    }
    for other in others {
        ensure!(health(other).await? == well(), "{} is not the owner", other.id);
    }
    shows(owner, &["openclaw_channel_connected{account=\"telegram:default\"} 0"]).await?;
    shows(owner, &["openclaw_health_failing{condition=\"channel_deaf\"} 1"]).await?;

    let cli = Command::new(env!("CARGO_BIN_EXE_openclaw"))
        .args(["health", "--url", &format!("http://{}", owner.http)])
        .output()?;
    let told = String::from_utf8(cli.stdout)?;
    ensure!(cli.status.code() == Some(1) && told.contains("unwell\nchannel_deaf: telegram:default"), "{told}");
    let cli = Command::new(env!("CARGO_BIN_EXE_openclaw"))
        .args(["status", "--url", &format!("http://{}", owner.http)])
        .output()?;
    ensure!(String::from_utf8(cli.stdout)?.contains("\nchannel_deaf: telegram:default"), "status says why");
    let cli = Command::new(env!("CARGO_BIN_EXE_openclaw"))
        .args(["health", "--ready", "--url", &format!("http://{}", owner.http)])
        .output()?;
    ensure!(cli.status.code() == Some(0));

    deaf.release();
    telegram.say(bot, ChatId(11), UserId(11), "hello")?;
    until("it hears again", async || health(owner).await, |seen| *seen == well()).await?;
    telegram.wait_for_message(bot, |message| message.content.text.contains("hello"), SOON).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_is_stuck_when_nothing_goes_out_but_not_while_the_platform_asks_to_wait() -> Result<()> {
    let (telegram, bot) = telegram_fake().await?;
    let options =
        with_bot(options(1), &telegram).written("diagnostics", json!({"health": {"outboxStuckAfterMs": 1500}}));
    let cluster = Cluster::start(options, SOON).await?;
    let instance = &cluster.instances()[0];
    telegram.wait_for_poll(bot, SOON).await?;
    let limited = telegram.inject(Rule::always(Fault::RetryAfter(3)).method(Method::SendMessage).times(2));
    telegram.say(bot, ChatId(11), UserId(11), "later")?;
    limited.wait_for_hits(1, SOON).await?;
    let until_second = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < until_second {
        ensure!(health(instance).await? == well(), "the platform asked for it");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    telegram.wait_for_message(bot, |message| message.content.text.contains("later"), SOON).await?;
    let broken = telegram.inject(Rule::always(Fault::Close).method(Method::SendMessage));
    telegram.say(bot, ChatId(11), UserId(11), "stuck")?;
    until("stuck", async || health(instance).await, |seen| *seen == unwell(&["outbox_stuck"])).await?;
    ensure!(ask(instance, "GET", "/readyz", &[], Value::Null).await?.status == 200);
    broken.release();
    until("it goes out", async || health(instance).await, |seen| *seen == well()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_with_too_little_room_makes_an_instance_unwell_before_it_is_full() -> Result<()> {
    let options = options(1).written("diagnostics", json!({"health": {"minFreeBytes": 1_u64 << 60}}));
    let cluster = Cluster::start(options, SOON).await?;
    let instance = &cluster.instances()[0];
    until("full", async || health(instance).await, |seen| *seen == unwell(&["disk_full"])).await?;
    ensure!(ask(instance, "GET", "/readyz", &[], Value::Null).await?.status == 200);
    let shown = [
        "openclaw_health_failing{condition=\"disk_full\"} 1",
        "openclaw_health_failing{condition=\"no_quorum\"} 0",
        "openclaw_build_info{version=",
        "openclaw_storage_free_bytes ",
        "openclaw_lease_validity_seconds ",
        "process_resident_memory_bytes ",
    ];
    shows(instance, &shown).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_an_instance_is_neither_ready_nor_well_and_lives() -> Result<()> {
    let mut cluster = Cluster::start(options(3), SOON).await?;
    let first = cluster.leader(SOON).await?;
    until("a well cluster", async || health(&cluster.instances()[first]).await, |seen| *seen == well()).await?;
    for index in (0..3).filter(|index| *index != first) {
        cluster.instance(index).process.kill()?;
    }
    let instance = &cluster.instances()[first];
    let lost = (503, "no_quorum".to_owned(), BTreeSet::from(["no_quorum".to_owned()]));
    until("no quorum", async || health(instance).await, |seen| *seen == lost).await?;
    ensure!(ask(instance, "GET", "/readyz", &[], Value::Null).await?.status == 503);
    ensure!(ask(instance, "GET", "/healthz", &[], Value::Null).await?.status == 200);
    Ok(())
}
