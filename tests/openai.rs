//! The official `openai` Python package through a real Nginx to three instances, one of which is killed: what the package
//! gets is right, and a kill costs the requests after it no error.
//!
//! Needs Nginx and Python with its venv; scripts/python-openai.sh installs the package. Where one cannot be had the test
//! says so and is skipped; on CI it fails. The model is our fake of OpenAI's server, which keeps what it was asked.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::fakes::{self, Handle, Protocol};
use jepsen_lite::ports::Ports;
use openclaw_config::models::{Api, Provider};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{sleep, timeout};

/// For anything that ends by itself.
const SOON: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
const TOKEN: &str = "a-token-of-the-gateway";
const MODEL_KEY: &str = "sk-a-key-of-the-model-server";

/// Nginx's file as the published guide has it, where every session's store is shared.
const GUIDE: &str = "
upstream openclaw_backend {
    server openclaw-1:3000;
    server openclaw-2:3000;
    server openclaw-3:3000;
}
server {
    listen 80;
    server_name openclaw.example.com;
    location / {
        proxy_pass http://openclaw_backend;
        proxy_set_header Host $host;
        proxy_set_header X-Real-IP $remote_addr;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }
    location /api/v1/chat/stream {
        proxy_pass http://openclaw_backend;
        proxy_http_version 1.1;
        proxy_set_header Connection \"\";
        proxy_buffering off;
        proxy_cache off;
        proxy_read_timeout 300s;
    }
}
";

/// Which file is Nginx's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Front {
    /// `deploy/nginx/openclaw.conf`.
    Ours,
    Guide,
}

impl Front {
    fn file(self) -> String {
        match self {
            Self::Ours => {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx/openclaw.conf");
                std::fs::read_to_string(path).unwrap()
            }
            Self::Guide => GUIDE.to_owned(),
        }
    }
}

fn missing(what: &str) -> Option<String> {
    assert!(std::env::var_os("CI").is_none(), "{what}, and this is CI");
    eprintln!("skipped: {what}");
    None
}

/// The interpreter of the environment that has the package, if this machine can run these tests.
fn python() -> Option<String> {
    use std::process::Command;
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        return missing("nginx is not installed");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/python-openai.sh");
    match Command::new(script).stderr(Stdio::inherit()).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
        Ok(_) | Err(_) => missing("scripts/python-openai.sh could not install the openai package"),
    }
}

struct Nginx {
    child: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
    _ports: Ports,
}

impl Nginx {
    async fn start(front: Front, instances: &[SocketAddr]) -> Result<Self> {
        let ports = Ports::reserve(1)?;
        let address = SocketAddr::from(([127, 0, 0, 1], ports[0]));
        let mut http = front.file().replace("listen 80;", &format!("listen {address};"));
        for (n, instance) in (1..).zip(instances) {
            http = http.replace(&format!("openclaw-{n}:3000"), &instance.to_string());
        }
        let directory = tempfile::tempdir()?;
        let dir = directory.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {dir}/{kind};\n"))
            .concat();
        let config = format!(
            "worker_processes 1;\npid {dir}/pid;\nerror_log {dir}/error.log;\nevents {{}}\n\
             http {{\naccess_log off;\n{temporary}{http}\n}}\n"
        );
        std::fs::write(directory.path().join("nginx.conf"), config)?;
        let child = Command::new("nginx")
            .arg("-p")
            .arg(directory.path())
            .args(["-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"])
            .stdin(Stdio::null())
            .spawn()
            .context("start nginx")?;
        let mut nginx = Self { child, address, directory, _ports: ports };
        let deadline = Instant::now() + SOON;
        while TcpStream::connect(address).await.is_err() {
            ensure!(nginx.child.try_wait()?.is_none(), "nginx ended: {}", nginx.log());
            ensure!(Instant::now() < deadline, "nginx does not listen");
            sleep(POLL).await;
        }
        Ok(nginx)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("error.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its worker at SIGTERM; a killed one leaves it behind.
        let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < SOON {
            std::thread::sleep(POLL);
        }
    }
}

/// `tests/openai/client.py`, and its two ends.
struct Package {
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Package {
    fn start(python: &str, address: SocketAddr) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai/client.py");
        let mut child = Command::new(python)
            .arg(script)
            // Nothing of the caller's: no proxy, and no key that is not ours.
            .env_clear()
            .env("OPENAI_BASE_URL", format!("http://{address}/v1"))
            .env("OPENAI_API_KEY", TOKEN)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start python")?;
        let stdin = child.stdin.take().context("its standard input")?;
        let answers = BufReader::new(child.stdout.take().context("its standard output")?).lines();
        Ok(Self { stdin, answers, _child: child })
    }

    async fn ask(&mut self, command: &str, argument: Value) -> Result<Value> {
        let line = format!("{}\n", json!([command, argument]));
        self.stdin.write_all(line.as_bytes()).await.context("write to python")?;
        let answer =
            timeout(2 * SOON, self.answers.next_line()).await.with_context(|| format!("wait for {command}"))?;
        let answer = answer?.with_context(|| format!("python ended at {command}"))?;
        Ok(serde_json::from_str(&answer)?)
    }

    async fn calls(&mut self, calls: &[Value]) -> Result<Vec<Value>> {
        answers(self.ask("calls", json!(calls)).await?)
    }

    async fn call(&mut self, call: Value) -> Result<Value> {
        Ok(self.calls(&[call]).await?.remove(0))
    }
}

fn answers(answer: Value) -> Result<Vec<Value>> {
    answer["answers"].as_array().cloned().with_context(|| format!("no answers in {answer}"))
}

struct Stage {
    package: Package,
    nginx: Nginx,
    cluster: Cluster,
    model: Handle,
}

impl Stage {
    async fn start(front: Front, python: &str) -> Result<Self> {
        let options = fakes::Options { api_key: Some(MODEL_KEY.to_owned()), ..fakes::Options::default() };
        let model = fakes::start(Protocol::Openai, "127.0.0.1:0".parse()?, options).await?;
        let provider = Provider { api: Api::Openai, base_url: Some(model.base_url()), ..Provider::default() };
        let options = Options::new(env!("CARGO_BIN_EXE_openclaw"), 3).settings(|settings| {
            settings.gateway.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
            settings.models.providers.insert("fake".to_owned(), provider);
            settings.agents.defaults.model.primary = "fake/m16x20".parse().unwrap();
        });
        let mut cluster = Cluster::prepare(options).await?;
        for instance in cluster.instances() {
            add_secrets(Path::new(instance.process.program().arguments.get(2).context("its settings")?))?;
        }
        cluster.start_all()?;
        cluster.wait_all_ready(SOON).await?;
        let instances: Vec<_> = cluster.instances().iter().map(|instance| instance.http).collect();
        let nginx = Nginx::start(front, &instances).await?;
        let package = Package::start(python, nginx.address)?;
        Ok(Self { package, nginx, cluster, model })
    }

    /// The harness's client has no token, so the leader is asked for here.
    async fn leader(&self) -> Result<usize> {
        let deadline = Instant::now() + SOON;
        loop {
            for (index, instance) in self.cluster.instances().iter().enumerate() {
                let said = get(instance.http, "/api/v1/cluster").await.unwrap_or_default();
                if said["leader"] == instance.id.as_str() {
                    return Ok(index);
                }
            }
            ensure!(Instant::now() < deadline, "no leader");
            sleep(POLL).await;
        }
    }

    /// The texts of the last request to the model whose last message is `text`.
    fn history(&self, text: &str) -> Vec<String> {
        let texts = |request: &fakes::Recorded| -> Vec<String> {
            let messages = request.body["messages"].as_array().cloned().unwrap_or_default();
            messages.iter().map(|message| message["content"].as_str().unwrap_or_default().to_owned()).collect()
        };
        let requests = self.model.requests();
        requests.iter().rev().map(texts).find(|texts| texts.last().is_some_and(|last| last == text)).unwrap_or_default()
    }
}

/// Settings never write their secrets, so they are added to the files.
fn add_secrets(file: &Path) -> Result<()> {
    let mut settings: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    settings["gateway"]["auth"]["token"] = json!(TOKEN);
    settings["models"]["providers"]["fake"]["apiKey"] = json!(MODEL_KEY);
    Ok(std::fs::write(file, serde_json::to_vec_pretty(&settings)?)?)
}

async fn get(address: SocketAddr, path: &str) -> Result<Value> {
    let mut stream = TcpStream::connect(address).await?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await??;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    Ok(serde_json::from_str(body)?)
}

/// Runs a test on a fresh stage. No log of an instance may tell of a panic; the logs of a test that fails stay.
async fn run(front: Front, test: impl AsyncFnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    let Some(python) = python() else { return Ok(()) };
    let mut stage = Stage::start(front, &python).await?;
    let mut result = test(&mut stage).await;
    if result.is_ok() {
        let alarms = stage.cluster.alarms()?;
        result = if alarms.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("{alarms:#?}")) };
    }
    if result.is_err() {
        stage.cluster.keep();
        eprintln!("nginx says:\n{}", stage.nginx.log());
    }
    result
}

/// What the package's `create` is called with.
fn asking(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}]})
}

fn with(mut call: Value, more: Value) -> Value {
    let (Some(call_fields), Value::Object(more)) = (call.as_object_mut(), more) else { unreachable!() };
    call_fields.extend(more);
    call
}

fn streamed(call: Value) -> Value {
    with(call, json!({"stream": true, "stream_options": {"include_usage": true}}))
}

/// What the fake says for `m<tokens>x<ms>`.
fn numbers(tokens: u64) -> String {
    (1..=tokens).map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
}

fn check_usage(usage: &Value, tokens: u64) -> Result<()> {
    let [prompt, completion, total] =
        ["prompt_tokens", "completion_tokens", "total_tokens"].map(|name| usage[name].as_u64().unwrap_or_default());
    ensure!(prompt > 0 && completion == tokens && total == prompt + completion, "usage {usage}");
    Ok(())
}

/// A whole answer of `tokens` tokens, streamed or not.
fn check_answer(answer: &Value, tokens: u64) -> Result<()> {
    ensure!(answer.get("error").is_none(), "{answer}");
    let Some(chunks) = answer["chunks"].as_array() else {
        let completion = &answer["completion"];
        ensure!(completion["object"] == "chat.completion", "{answer}");
        ensure!(completion["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")), "{answer}");
        ensure!(completion["choices"].as_array().is_some_and(|choices| choices.len() == 1), "{answer}");
        let choice = &completion["choices"][0];
        ensure!(choice["message"]["content"] == numbers(tokens) && choice["finish_reason"] == "stop", "{answer}");
        return check_usage(&completion["usage"], tokens);
    };
    ensure!(chunks.len() >= 3, "{answer}");
    let mut text = String::new();
    for (at, chunk) in chunks.iter().enumerate() {
        ensure!(chunk["object"] == "chat.completion.chunk", "{chunk}");
        ensure!(["id", "created", "model"].iter().all(|name| chunk[name] == chunks[0][name]), "{chunk}");
        let choices = chunk["choices"].as_array().context("choices")?;
        // Texts, then the reason, then the usage.
        if at == chunks.len() - 1 {
            ensure!(choices.is_empty(), "the last chunk is {chunk}");
            check_usage(&chunk["usage"], tokens)?;
            continue;
        }
        ensure!(choices.len() == 1 && chunk["usage"].is_null(), "{chunk}");
        let reason = &choices[0]["finish_reason"];
        ensure!(if at == chunks.len() - 2 { reason == "stop" } else { reason.is_null() }, "chunk {at} is {chunk}");
        let delta = &choices[0]["delta"];
        ensure!(if at == 0 { delta["role"] == "assistant" } else { delta["role"].is_null() }, "chunk {at} is {chunk}");
        text += delta["content"].as_str().unwrap_or_default();
    }
    ensure!(text == numbers(tokens), "streamed {text:?}");
    Ok(())
}

/// The user's texts with the answers between them, as the model is given them at the last one.
fn conversation(texts: &[String], tokens: u64) -> Vec<String> {
    let mut all = Vec::new();
    for text in texts {
        all.extend([text.clone(), numbers(tokens)]);
    }
    all.pop();
    all
}

async fn check_conversations(stage: &mut Stage) -> Result<()> {
    let models = stage.package.ask("models", Value::Null).await?;
    let listed = models["listed"].as_array().with_context(|| models.to_string())?;
    let ids: BTreeSet<&str> = listed.iter().filter_map(|model| model["id"].as_str()).collect();
    ensure!(["openclaw", "fake/m8x0", "fake/m64x100", "echo/echo"].iter().all(|id| ids.contains(id)), "{models}");
    ensure!(models["listed"] == models["again"], "one by one they are the same: {models}");

    // Without state: by the agent's name, by the model's, and with parts for content.
    let parts = json!({"model": "openclaw", "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]});
    let calls = [asking("openclaw", "hello"), asking("fake/m16x20", "hello"), parts];
    let mut by = BTreeSet::new();
    for call in calls {
        for call in [streamed(call.clone()), call] {
            let answer = stage.package.call(call).await?;
            check_answer(&answer, 16)?;
            by.insert(answer["instance"].to_string());
        }
    }
    ensure!(by.len() == 3, "each instance answers: {by:?}");

    // Nginx keeps nothing back: 30 tokens at 50 ms each come over a second, not at its end.
    let answer = stage.package.call(streamed(asking("fake/m30x50", "slowly"))).await?;
    check_answer(&answer, 30)?;
    let arrived: Vec<u64> = answer["arrived_ms"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    ensure!(arrived[arrived.len() - 1] - arrived[0] > 500, "{arrived:?}");

    // The package's own reader of streams.
    let whole = stage.package.ask("accumulated", asking("openclaw", "hello")).await?;
    let choice = &whole["completion"]["choices"][0];
    ensure!(choice["message"]["content"] == numbers(16) && choice["finish_reason"] == "stop", "{whole}");
    ensure!(whole["events"].to_string().contains("content.done"), "{whole}");

    // A user has a session: each instance knows what was said through the others.
    let texts: Vec<String> = (1..=4).map(|n| format!("this is message {n}")).collect();
    for (n, text) in texts.iter().enumerate() {
        let call = with(asking("openclaw", text), json!({"user": "alice"}));
        let answer = stage.package.call(if n % 2 == 0 { call } else { streamed(call) }).await?;
        check_answer(&answer, 16)?;
        ensure!(stage.history(text) == conversation(&texts[..=n], 16), "{:?}", stage.history(text));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_are_what_the_package_expects() -> Result<()> {
    for front in [Front::Ours, Front::Guide] {
        run(front, check_conversations).await.with_context(|| format!("behind {front:?}"))?;
    }
    Ok(())
}

/// What the package raises.
struct Raised {
    error: &'static str,
    status: Option<u16>,
    kind: &'static str,
    says: &'static str,
}

async fn check_raised(stage: &mut Stage, call: Value, expected: Raised) -> Result<()> {
    let Raised { error, status, kind, says } = expected;
    let answer = stage.package.call(call.clone()).await?;
    let raised = (answer["error"].as_str(), answer["status"].as_u64(), answer["kind"].as_str());
    ensure!(raised == (Some(error), status.map(u64::from), Some(kind)), "{call}: {answer}");
    ensure!(answer["is_status_error"] == status.is_some(), "{call}: {answer}");
    let message = answer["message"].as_str().unwrap_or_default();
    ensure!(message.contains(says) && !message.contains(MODEL_KEY) && !message.contains(TOKEN), "{call}: {answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_the_errors_that_the_package_knows() -> Result<()> {
    run(Front::Ours, async |stage| {
        let ask = |model| asking(model, "hello");
        let raised = |error, status: u16, kind, says| Raised { error, status: Some(status), kind, says };
        let invalid = |says| raised("BadRequestError", 400, "invalid_request_error", says);
        let not_found = |says| raised("NotFoundError", 404, "invalid_request_error", says);
        let failed = |says| raised("InternalServerError", 502, "server_error", says);
        let whole: Vec<(Value, Raised)> = vec![
            (
                with(ask("openclaw"), json!({"api_key": "wrong"})),
                raised("AuthenticationError", 401, "authentication_error", "the token is not valid"),
            ),
            (ask("none/gpt"), not_found("there is no provider \"none\"")),
            (ask("gpt-5"), not_found("/v1/models")),
            (ask("openclaw/nobody"), not_found("there is no agent nobody")),
            (with(ask("openclaw"), json!({"messages": []})), invalid("messages must hold at least one text")),
            (
                with(ask("openclaw"), json!({"messages": [{"role": "boss", "content": "x"}]})),
                invalid("messages[0].role is \"boss\""),
            ),
            (with(ask("openclaw"), json!({"messages": "hello"})), invalid("\"messages\"")),
            (with(ask("openclaw"), json!({"temperature": 9})), invalid("temperature must be between 0 and 2")),
            (ask("fake/status500"), failed("this model answers 500")),
            (ask("fake/m16x0-break5"), failed("fake")),
        ];
        for (call, expected) in whole {
            check_raised(stage, call, expected).await?;
        }
        // Before any text a streamed request fails like a plain one; after it, by an event.
        check_raised(stage, streamed(ask("fake/status500")), failed("this model answers 500")).await?;
        check_raised(stage, streamed(ask("none/gpt")), not_found("there is no provider \"none\"")).await?;
        let by_event = |says| Raised { error: "APIError", status: None, kind: "server_error", says };
        check_raised(stage, streamed(ask("fake/m16x0-break5")), by_event("fake")).await?;
        // A turn is accepted before its model is asked, so its stream has begun.
        let turn = |model, user: &str| with(ask(model), json!({"user": user}));
        check_raised(stage, turn("fake/status500", "a"), failed("this model answers 500")).await?;
        check_raised(stage, streamed(turn("fake/status500", "b")), by_event("this model answers 500")).await?;

        // Absent and null are the same to OpenAI, and some callers write every argument.
        let nulls =
            json!({"stream": null, "stream_options": null, "max_tokens": null, "temperature": null, "user": null});
        check_answer(&stage.package.call(with(ask("openclaw"), nulls)).await?, 16)?;
        let null = json!({"stream_options": {"include_usage": null}, "stream": true});
        let answer = stage.package.call(with(ask("openclaw"), null)).await?;
        ensure!(answer.get("error").is_none(), "{answer}");
        // After a failure a session goes on.
        check_answer(&stage.package.call(turn("openclaw", "a")).await?, 16)
    })
    .await
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Leader,
    Follower,
}

/// When.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Idle,
    /// While streams and plain calls are under way through every instance.
    Busy,
}

/// Calls after each kill, of each of four kinds.
const ROUNDS: usize = 6;

/// Nginx leaves an instance out for a while after failures; waits until it asks all of them again.
async fn all_in_turn(stage: &mut Stage) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let answers = stage.package.calls(&vec![asking("fake/m1x0", "who?"); 3]).await?;
        let by: BTreeSet<String> = answers.iter().map(|answer| answer["instance"].to_string()).collect();
        if by.len() == 3 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "nginx asks {by:?} alone");
        sleep(POLL).await;
    }
}

async fn check_kill(stage: &mut Stage, front: Front, victim: Victim, moment: Moment) -> Result<Vec<Value>> {
    let leader = stage.leader().await?;
    let victim_index = match victim {
        Victim::Leader => leader,
        Victim::Follower => (leader + 1) % 3,
    };
    let name = stage.cluster.instance(victim_index).id.to_string();
    let run = format!("{victim:?}-{moment:?}");

    // Round robin gives every instance one stream and two plain calls.
    let mut begun = Vec::new();
    if moment == Moment::Busy {
        all_in_turn(stage).await?;
        let mut calls = Vec::new();
        for n in 0..3 {
            let of = |kind: &str| json!({"user": format!("{run}-{kind}-{n}")});
            calls.push(streamed(with(asking("fake/m60x40", "go on"), of("streamed"))));
        }
        for n in 0..3 {
            calls.push(with(asking("fake/m60x40", "go on"), json!({"user": format!("{run}-plain-{n}")})));
            calls.push(asking("fake/m60x40", "go on"));
        }
        let answer = stage.package.ask("begin", json!(calls)).await?;
        begun = serde_json::from_value(answer["streams"].clone()).with_context(|| answer.to_string())?;
        let through: BTreeSet<&String> = begun.iter().collect();
        ensure!(through.len() == 3, "each instance streams: {begun:?}");
        let deadline = Instant::now() + SOON;
        while stage.model.running() < calls.len() {
            ensure!(Instant::now() < deadline, "only {} calls are under way", stage.model.running());
            sleep(POLL).await;
        }
    }
    stage.cluster.instance(victim_index).process.kill()?;

    let texts: Vec<String> = (0..2 * ROUNDS).map(|n| format!("{run} {n}")).collect();
    let mut calls = Vec::new();
    for pair in texts.chunks(2) {
        let [even, odd] = [&pair[0], &pair[1]].map(|text| asking("openclaw", text));
        let of = json!({"user": format!("{run}-talk")});
        calls.extend([
            with(even.clone(), of.clone()),
            streamed(with(odd.clone(), of)),
            with(even, json!({"model": "fake/m8x0"})),
            streamed(with(odd, json!({"model": "fake/m8x0"}))),
        ]);
    }
    let after = stage.package.calls(&calls).await?;
    for (n, answer) in after.iter().enumerate() {
        check_answer(answer, if n % 4 < 2 { 16 } else { 8 }).with_context(|| format!("call {n} after the kill"))?;
    }
    let last = texts.last().unwrap();
    let requests = stage.model.requests();
    let talk = requests.iter().filter(|request| request.model == "m16x20");
    let asked: Vec<usize> = talk
        .filter(|request| request.body["messages"].as_array().unwrap().last().unwrap()["content"] == last.as_str())
        .map(|request| request.body["messages"].as_array().unwrap().len())
        .collect();
    ensure!(asked == [4 * ROUNDS - 1], "every message is in the session once: {asked:?}");

    if moment == Moment::Busy {
        check_under_way(stage, front, &name, &begun).await?;
    }
    stage.cluster.start_one(victim_index)?;
    stage.cluster.instance(victim_index).wait_ready(SOON).await?;
    Ok(after)
}

/// What became of the calls that were under way when `killed` was.
async fn check_under_way(stage: &mut Stage, front: Front, killed: &str, streams: &[String]) -> Result<()> {
    let finished = answers(stage.package.ask("finish", Value::Null).await?)?;
    for (answer, through) in finished.iter().zip(streams) {
        if through != killed {
            check_answer(answer, 60)
                .with_context(|| format!("a stream through {through}, while {killed} was killed"))?;
            continue;
        }
        // What went through the dead instance itself is gone, and does not pass for a whole answer: it raises, or, where
        // the guide's HTTP/1.0 to the instances has no word for a broken answer, it ends without a reason.
        match front {
            Front::Ours => ensure!(answer.get("error").is_some(), "{answer}"),
            Front::Guide => ensure!(!answer["chunks"].to_string().contains("\"stop\""), "{answer}"),
        }
    }
    let failed: Vec<&Value> =
        finished[streams.len()..].iter().filter(|answer| check_answer(answer, 60).is_err()).collect();
    match front {
        // It asks another instance, with the same key.
        Front::Ours => ensure!(failed.is_empty(), "plain calls failed: {failed:?}"),
        // It gives up on a POST that it has begun to send: the two that the dead instance had.
        Front::Guide => ensure!(failed.len() <= 2, "{failed:?}"),
    }
    Ok(())
}

async fn check_kills(front: Front) -> Result<()> {
    run(front, async |stage| {
        let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
        for (victim, moment) in [
            (Victim::Leader, Moment::Idle),
            (Victim::Follower, Moment::Idle),
            (Victim::Leader, Moment::Busy),
            (Victim::Follower, Moment::Busy),
        ] {
            let answered = check_kill(stage, front, victim, moment)
                .await
                .with_context(|| format!("{victim:?} killed, {moment:?}, behind {front:?}"))?;
            *tally.entry("answered").or_default() += answered.len();
            let slowest = answered.iter().filter_map(|answer| answer["ms"].as_u64()).max();
            eprintln!("{front:?}, {victim:?} killed {moment:?}: {} calls, slowest {slowest:?} ms", answered.len());
        }
        eprintln!("{front:?}: {tally:?}, errors 0");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_instance_costs_the_package_no_error_behind_our_nginx_file() -> Result<()> {
    check_kills(Front::Ours).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_instance_costs_the_package_no_error_on_the_next_request_behind_the_guides() -> Result<()> {
    check_kills(Front::Guide).await
}
