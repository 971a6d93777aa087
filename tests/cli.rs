//! The binary as a script meets it: exit codes, one-line errors, JSON, against a gateway that says whatever a test wants.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

/// No command of these tests may take longer.
const DEADLINE: Duration = Duration::from_secs(30);

fn openclaw(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openclaw"));
    command.args(arguments).env_clear().env("HOME", home).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn finish(mut command: Command) -> Output {
    tokio::time::timeout(DEADLINE, command.output()).await.expect("the command hangs").unwrap()
}

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

async fn run_with(arguments: &[&str], adapt: impl FnOnce(&mut Command)) -> Said {
    let home = tempfile::tempdir().unwrap();
    let mut command = openclaw(home.path(), arguments);
    adapt(&mut command);
    let output = finish(command).await;
    let text =
        |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace(&home.path().display().to_string(), "HOME");
    Said { code: output.status.code().unwrap(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

async fn run(arguments: &[&str]) -> Said {
    run_with(arguments, |_| {}).await
}

/// One answer: how far it gets, and what it says.
#[derive(Clone)]
enum Answer {
    Json(u16, Value),
    Text(u16, &'static str),
    /// An event stream; it breaks off at the end.
    Events(String),
    /// The connection breaks before any answer.
    Break,
}

#[derive(Debug, Clone)]
struct Asked {
    what: String,
    key: Option<String>,
    token: Option<String>,
    last_event: Option<String>,
    body: Bytes,
}

type Log = Arc<Mutex<Vec<Asked>>>;

type Script = dyn Fn(usize, &Asked) -> Answer + Send + Sync;

/// A gateway that answers as `script` says, given how many requests came before.
struct Fake {
    url: String,
    asked: Log,
}

impl Fake {
    async fn start(script: impl Fn(usize, &Asked) -> Answer + Send + Sync + 'static) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Script> = Arc::new(script);
        let app = Router::new().fallback(answer).with_state((script, asked.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    async fn run(&self, arguments: &[&str]) -> Said {
        run(&[arguments, &["--url", &self.url]].concat()).await
    }
}

async fn answer(State((script, asked)): State<(Arc<Script>, Log)>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let header = |name: &str| Some(parts.headers.get(name)?.to_str().unwrap().to_owned());
    let request = Asked {
        what: format!("{} {}", parts.method, parts.uri),
        key: header("idempotency-key"),
        token: header("authorization"),
        last_event: header("last-event-id"),
        body: axum::body::to_bytes(body, 1 << 20).await.unwrap(),
    };
    let before = {
        let mut asked = asked.lock().unwrap();
        asked.push(request.clone());
        asked.len() - 1
    };
    let response = |status: u16, kind: &str| Response::builder().status(status).header("content-type", kind);
    match script(before, &request) {
        Answer::Json(status, value) => {
            response(status, "application/json").body(Body::from(value.to_string())).unwrap()
        }
        Answer::Text(status, text) => response(status, "text/html").body(Body::from(text)).unwrap(),
        Answer::Events(text) => response(200, "text/event-stream").body(Body::from(text)).unwrap(),
        // A panic ends the connection's task, and with it the connection.
        Answer::Break => panic!("the script says so"),
    }
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    Answer::Json(
        status,
        json!({ "error": { "code": code, "message": message, "retryable": false, "requestId": "req-1" } }),
    )
}

fn cluster() -> Value {
    json!({
        "clusterId": "c1", "instanceId": "node-1", "leader": "node-1", "term": 2, "commitIndex": 10,
        "members": [{ "instanceId": "node-1", "role": "leader", "httpAddr": "127.0.0.1:3000", "peerAddr": "127.0.0.1:3100",
                      "appliedIndex": 10, "version": "0.1.0", "epoch": 1, "live": true, "draining": false, "lastSeenMs": 5 }],
    })
}

fn event(id: &str, name: &str, data: Value) -> String {
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n")
}

fn done(text: &str) -> Value {
    json!({ "entryId": "e2", "text": text, "model": "echo/echo",
            "usage": { "inputTokens": 1, "outputTokens": 2, "totalTokens": 3 } })
}

fn start() -> Value {
    json!({ "turnId": "0a", "sessionKey": "agent:main:main", "instanceId": "node-1" })
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_arguments_are_one_line_that_says_what_to_do() {
    let cases: &[(&str, &str)] = &[
        ("gatewai", "unrecognized subcommand 'gatewai'; a similar subcommand exists: 'gateway'; see `openclaw --help`"),
        (
            "gateway --prot 3001",
            "unexpected argument '--prot' found; a similar argument exists: '--port'; see `openclaw gateway --help`",
        ),
        (
            "gateway --port 0",
            "invalid value '0' for '--port <PORT>': 0 is not in 1..=65535; see `openclaw gateway --help`",
        ),
        (
            "gateway --port 70000",
            "invalid value '70000' for '--port <PORT>': 70000 is not in 1..=65535; see `openclaw gateway --help`",
        ),
        (
            "gateway --port x",
            "invalid value 'x' for '--port <PORT>': invalid digit found in string; see `openclaw gateway --help`",
        ),
        (
            "gateway --bind everywhere",
            "invalid value 'everywhere' for '--bind <WHERE>': \"everywhere\" is not \"loopback\", \"lan\", an IP address, or a list of IP addresses; see `openclaw gateway --help`",
        ),
        (
            "gateway --instance-id Node_1",
            "invalid value 'Node_1' for '--instance-id <ID>': instance id has the character 'N' at byte 0; allowed are a-z, 0-9, '-' and '.', the first a letter or digit; see `openclaw gateway --help`",
        ),
        (
            "gateway --instance-id",
            "a value is required for '--instance-id <ID>' but none was supplied; see `openclaw gateway --help`",
        ),
        (
            "gateway --bootstrap node-1",
            "invalid value 'node-1' for '--bootstrap <ID=HOST:PORT,..>': \"node-1\" is not <instance id>=<host>:<port>; see `openclaw gateway --help`",
        ),
        (
            "gateway --bootstrap node-1=10.0.0.1",
            "invalid value 'node-1=10.0.0.1' for '--bootstrap <ID=HOST:PORT,..>': \"node-1=10.0.0.1\": \"10.0.0.1\" is not host:port; see `openclaw gateway --help`",
        ),
        (
            "gateway --join here",
            "invalid value 'here' for '--join <HOST:PORT,..>': \"here\" is not host:port; see `openclaw gateway --help`",
        ),
        (
            "gateway --join 10.0.0.1:3100 --bootstrap node-1=10.0.0.1:3100",
            "the argument '--join <HOST:PORT,..>' cannot be used with '--bootstrap <ID=HOST:PORT,..>'; see `openclaw gateway --help`",
        ),
        (
            "gateway --peer-listen localhost:3100",
            "invalid value 'localhost:3100' for '--peer-listen <IP:PORT>': invalid socket address syntax; see `openclaw gateway --help`",
        ),
        (
            "gateway --log-format xml",
            "invalid value 'xml' for '--log-format <FORMAT>' [possible values: auto, json, text]; see `openclaw gateway --help`",
        ),
        ("gateway --token secret", "unexpected argument '--token' found; see `openclaw gateway --help`"),
        ("demo --port 65500", "--port 65500 leaves no room for the instances' ports; choose one below 65400"),
        (
            "demo --token-delay-ms 10001",
            "invalid value '10001' for '--token-delay-ms <MS>': 10001 is not in 0..=10000; see `openclaw demo --help`",
        ),
        ("chat", "the message on stdin is empty; give one with --message"),
        ("chat -m", "a value is required for '--message <TEXT>' but none was supplied; see `openclaw chat --help`"),
        (
            "chat -m x --session cron:1",
            "invalid value 'cron:1' for '--session <KEY>': session key \"cron:1\" is reserved; see `openclaw chat --help`",
        ),
        (
            "chat -m x --model gpt",
            "invalid value 'gpt' for '--model <MODEL>': \"gpt\" is not <provider>/<model>; see `openclaw chat --help`",
        ),
        (
            "chat -m x --agent Main",
            "invalid value 'Main' for '--agent <AGENT>': agent id has the character 'M' at byte 0; allowed are a-z, 0-9, '_' and '-', the first a letter or digit; see `openclaw chat --help`",
        ),
        ("status --url ftp://x", "--url (or OPENCLAW_URL): the scheme \"ftp\" is not http, https or unix"),
        (
            "health --url http://user:hunter2@h",
            "--url (or OPENCLAW_URL): credentials do not belong in a URL; set OPENCLAW_GATEWAY_TOKEN",
        ),
        (
            "health --request-timeout 0",
            "invalid value '0' for '--request-timeout <SECONDS>': 0 is not in 1..=3600; see `openclaw health --help`",
        ),
        (
            "cluster remove",
            "the following required arguments were not provided: <INSTANCE>; see `openclaw cluster remove --help`",
        ),
        ("cluster transfer-leader a b", "unexpected argument 'b' found; see `openclaw cluster transfer-leader --help`"),
        (
            "cluster certs --out /nonexistent/certs node-1",
            "/nonexistent/certs has no authority yet; name the cluster with --cluster-id to make one",
        ),
        (
            "cluster certs --out x --days 0 node-1",
            "invalid value '0' for '--days <DAYS>': 0 is not in 1..=3650; see `openclaw cluster certs --help`",
        ),
        (
            "sessions list --limit 0",
            "invalid value '0' for '--limit <N>': 0 is not in 1..=1000000; see `openclaw sessions list --help`",
        ),
        (
            "sessions export s --format xml",
            "invalid value 'xml' for '--format <FORMAT>' [possible values: jsonl, json]; see `openclaw sessions export --help`",
        ),
        (
            "maintenance of",
            "unrecognized subcommand 'of'; a similar subcommand exists: 'off'; see `openclaw maintenance --help`",
        ),
        ("config check --strict", "unexpected argument '--strict' found; see `openclaw config check --help`"),
        (
            "completions tcsh",
            "invalid value 'tcsh' for '<SHELL>' [possible values: bash, elvish, fish, powershell, zsh]; a similar value exists: 'zsh'; see `openclaw completions --help`",
        ),
        (
            "status --token-file /nonexistent",
            "the token file /nonexistent cannot be read: No such file or directory (os error 2)",
        ),
    ];
    for (arguments, expected) in cases {
        let said = run(&arguments.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(said.stderr, format!("error: {expected}\n"), "{arguments:?}");
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_arguments_are_json_for_programs() {
    let said = run(&["health", "--json", "--liv"]).await;
    let value: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(said.code, 2);
    assert_eq!(value["ok"], false);
    assert_eq!(value["error"]["type"], "cli_error");
    assert!(value["error"]["message"].as_str().unwrap().contains("--liv"), "{value}");
    // After `--` it is a value and asks for nothing.
    let said = run(&["sessions", "show", "--", "--json", "x"]).await;
    assert!(said.stdout.is_empty() && said.stderr.starts_with("error: "), "{}", said.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn help_and_version_are_answers() {
    for arguments in [&["--help"][..], &["gateway", "--help"], &["cluster", "certs", "--help"], &["--version"]] {
        let said = run(arguments).await;
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{arguments:?}");
        assert!(!said.stdout.is_empty());
    }
    assert!(run(&["--help"]).await.stdout.contains("Exit codes:"));
    assert!(run(&["--version"]).await.stdout.contains("(state format "));
    let said = run(&[]).await;
    assert_eq!((said.code, said.stdout.as_str()), (2, ""));
    assert!(said.stderr.contains("Usage: openclaw"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_of_the_gateway_has_its_exit_code() {
    for (status, code, expected) in [
        (400, "invalid_request", 2),
        (401, "unauthorized", 4),
        (403, "forbidden_origin", 4),
        (404, "not_found", 1),
        (405, "method_not_allowed", 1),
        (409, "conflict", 4),
        (409, "idempotency_key_reused", 4),
        (409, "cancelled", 1),
        (412, "precondition_failed", 4),
        (413, "too_large", 1),
        (415, "unsupported_media_type", 1),
        (429, "busy", 6),
        (500, "internal", 1),
        (502, "model_failed", 1),
        (502, "turn_abandoned", 1),
        (503, "no_quorum", 6),
        (503, "draining", 6),
        (504, "effect_unknown", 5),
        (504, "timeout", 6),
        (418, "from_the_future", 1),
    ] {
        let fake = Fake::start(move |_, _| error(status, code, "what the gateway said")).await;
        let said = fake.run(&["cluster", "transfer-leader"]).await;
        assert_eq!(said.code, expected, "{code}: {}", said.stderr);
        assert!(said.stderr.starts_with("error: what the gateway said (request req-1)"), "{code}: {}", said.stderr);
        assert_eq!(said.stderr.lines().count(), 1, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_told_apart_from_an_answer_never_asked_for() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = run(&["cluster", "status", "--url", &format!("http://{nobody}")]).await;
    assert_eq!(said.code, 3);
    assert!(said.stderr.starts_with(&format!("error: no gateway answers at http://{nobody}: ")), "{}", said.stderr);
    assert!(said.stderr.contains("; start one with `openclaw gateway`"), "{}", said.stderr);

    let fake = Fake::start(|_, _| Answer::Break).await;
    assert_eq!(fake.run(&["cluster", "status"]).await.code, 3);
    let said = fake.run(&["cluster", "remove", "node-3"]).await;
    assert_eq!(said.code, 5);
    assert!(said.stderr.contains("it may have taken effect"), "{}", said.stderr);

    let balancer = Fake::start(|_, _| Answer::Text(502, "<html>Bad Gateway</html>")).await;
    assert_eq!(balancer.run(&["cluster", "status"]).await.code, 3);
    assert_eq!(balancer.run(&["cluster", "remove", "node-3"]).await.code, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_address_that_answers_is_used() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fake = Fake::start(|_, _| Answer::Json(200, cluster())).await;
    let said = run(&["cluster", "members", "--url", &format!("http://{nobody},{}", fake.url)]).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stdout.starts_with("INSTANCE  ROLE"), "{}", said.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_answers_by_exit_code() {
    let ready = Fake::start(|_, asked| match asked.what.as_str() {
        "GET /api/v1/health/live" => Answer::Json(200, json!({ "ok": true, "status": "live" })),
        "GET /api/v1/health" | "GET /api/v1/health/ready" => {
            Answer::Json(503, json!({ "ok": false, "status": "no_quorum" }))
        }
        other => panic!("{other}"),
    })
    .await;
    let said = ready.run(&["health", "--live"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (0, "live\n"));
    let said = ready.run(&["health", "--ready"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (1, "no_quorum\n"));
    let said = ready.run(&["health"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (1, "no_quorum\n"));
    let said = ready.run(&["health", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&said.stdout).unwrap(), json!({ "ok": false, "status": "no_quorum" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_comes_from_environment_file_or_configuration_and_is_never_printed() {
    let fake = Fake::start(|_, _| error(401, "unauthorized", "wrong token")).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "from-file\n").unwrap();
    let config = dir.path().join("openclaw.json");
    std::fs::write(&config, "{ gateway: { auth: { token: 'from-config-0123456789' } } }").unwrap();

    let arguments = ["cluster", "status", "--url", fake.url.as_str()];
    let said = run_with(&arguments, |command| {
        command.env("OPENCLAW_GATEWAY_TOKEN", "from-environment");
    })
    .await;
    assert_eq!(said.code, 4);
    assert!(!said.stderr.contains("from-environment"));
    run(&[&arguments[..], &["--token-file", file.to_str().unwrap()]].concat()).await;
    run(&[&arguments[..], &["--config", config.to_str().unwrap()]].concat()).await;
    let tokens: Vec<_> = fake.asked().into_iter().map(|asked| asked.token.unwrap()).collect();
    assert_eq!(tokens, ["Bearer from-environment", "Bearer from-file", "Bearer from-config-0123456789"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_the_process_no_flag_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("node-1")).unwrap();
    let listener = tokio::net::UnixListener::bind(dir.path().join("node-1/admin.sock")).unwrap();
    let state = json!({ "instanceId": "node-1", "on": true, "runningTurns": 0, "drained": true });
    let app = Router::new().fallback(move || std::future::ready(axum::Json(state.clone())));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    for name in ["OPENCLAW_INSTANCE_ID", "UNRELATED"] {
        let said = run_with(&["maintenance", "on"], |command| {
            command.env("OPENCLAW_DATA_DIR", dir.path()).env(name, "node-1");
        })
        .await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert!(said.stdout.contains("on, drained: safe to stop"), "{}", said.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_waits_until_nothing_runs_and_says_when_it_gave_up() {
    let state =
        |turns: u64| json!({ "instanceId": "node-1", "on": true, "runningTurns": turns, "drained": turns == 0 });
    let fake = Fake::start(move |before, _| Answer::Json(200, state(2_u64.saturating_sub(before as u64)))).await;
    let said = fake.run(&["maintenance", "on"]).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert_eq!(said.stderr, "node-1: 2 turns are still running\nnode-1: 1 turn is still running\n");
    let asked = fake.asked();
    assert_eq!(asked[0].what, "POST /api/v1/maintenance");
    assert_eq!((asked[0].body.as_ref(), asked[1].what.as_str()), (&br#"{"on":true}"#[..], "GET /api/v1/maintenance"));

    let busy = Fake::start(move |_, _| Answer::Json(200, state(1))).await;
    let said = busy.run(&["maintenance", "on", "--timeout", "0"]).await;
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("maintenance stays on"), "{}", said.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_needs_a_yes_and_carries_a_key() {
    let fake = Fake::start(|_, _| Answer::Json(200, json!({ "sessionKey": "s", "entryCount": 4 }))).await;
    let said = fake.run(&["sessions", "delete", "agent:main:main"]).await;
    assert_eq!((said.code, fake.asked().len()), (2, 0));
    assert_eq!(said.stderr, "error: deleting a session cannot be undone; confirm it with --yes\n");
    let said = fake.run(&["sessions", "delete", "Agent:Main:Main", "--yes"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (0, "deleted agent:main:main with 4 entries\n"));
    let asked = fake.asked();
    assert_eq!(asked[0].what, "DELETE /api/v1/sessions/agent:main:main");
    assert!(asked[0].key.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_named_and_its_name_cleared() {
    let fake = Fake::start(|_, _| {
        Answer::Json(
            200,
            json!({ "sessionKey": "s", "agentId": "main", "revision": 7, "createdMs": 0, "updatedMs": 0, "headSeq": 3,
                    "resetSeq": 0, "turnCount": 1, "queuedTurns": [],
                    "usage": { "inputTokens": 0, "outputTokens": 0, "totalTokens": 0 } }),
        )
    })
    .await;
    let said = fake.run(&["sessions", "set", "S", "--label", "Ann", "--if-revision", "3"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (0, "s is at revision 7 now\n"), "{}", said.stderr);
    assert_eq!(fake.run(&["sessions", "set", "s", "--label", "", "--model", "echo/echo"]).await.code, 0);
    let asked = fake.asked();
    assert_eq!(
        (asked[0].what.as_str(), asked[0].body.as_ref()),
        ("PATCH /api/v1/sessions/s", &br#"{"label":"Ann"}"#[..])
    );
    assert!(asked[0].key.is_some());
    assert_eq!(asked[1].body.as_ref(), &br#"{"label":null,"model":"echo/echo"}"#[..]);
    assert_eq!(fake.run(&["sessions", "set", "s"]).await.code, 2, "there is nothing to set");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_upstreams_transcript_page_by_page() {
    let entry = |seq: u64| {
        let role = if seq % 2 == 1 { "user" } else { "assistant" };
        json!({ "seq": seq, "id": format!("e{seq}"), "role": role, "text": "t", "createdMs": 1_780_000_000_000_u64 })
    };
    let fake = Fake::start(move |_, asked| match asked.what.as_str() {
        "GET /api/v1/sessions/s" => Answer::Json(
            200,
            json!({ "sessionKey": "s", "agentId": "main", "createdMs": 0, "updatedMs": 0, "headSeq": 3, "resetSeq": 0,
                    "turnCount": 1, "usage": { "inputTokens": 0, "outputTokens": 0, "totalTokens": 0 }, "queuedTurns": [] }),
        ),
        "GET /api/v1/sessions/s/entries?after=0&limit=100" => {
            Answer::Json(200, json!({ "entries": [entry(1), entry(2)], "headSeq": 4 }))
        }
        // One more was appended meanwhile: it is not part of this export.
        "GET /api/v1/sessions/s/entries?after=2&limit=100" => {
            Answer::Json(200, json!({ "entries": [entry(3), entry(4)], "headSeq": 4 }))
        }
        _ => error(404, "not_found", "no such thing"),
    })
    .await;
    let said = fake.run(&["sessions", "export", "s"]).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    let lines: Vec<Value> = said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["type"], "session");
    let chain: Vec<_> = lines[1..].iter().map(|line| (&line["id"], &line["parentId"])).collect();
    assert_eq!(chain, [(&json!("e1"), &json!(null)), (&json!("e2"), &json!("e1")), (&json!("e3"), &json!("e2"))]);
    let array = fake.run(&["sessions", "export", "s", "--format", "json"]).await;
    assert_eq!(serde_json::from_str::<Vec<Value>>(&array.stdout).unwrap(), lines);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.jsonl");
    let file = file.to_str().unwrap();
    assert_eq!(fake.run(&["sessions", "export", "s", "--output", file]).await.code, 0);
    assert_eq!(std::fs::read_to_string(file).unwrap(), said.stdout);
    assert_eq!(fake.run(&["sessions", "export", "s", "--output", file]).await.code, 1, "no file is overwritten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_continued_at_the_next_address() {
    let dies = Fake::start(|_, _| {
        Answer::Events(event("0a.1-0", "start", start()) + &event("0a.1-1", "delta", json!({ "text": "half " })))
    })
    .await;
    let goes_on = Fake::start(|_, _| {
        Answer::Events(
            event("0a.2-0", "restart", json!({ "attempt": 2 }))
                + &event("0a.2-1", "delta", json!({ "text": "the whole" }))
                + ": keep-alive\n\n"
                + &event("0a.2-2", "done", done("the whole answer")),
        )
    })
    .await;
    let said = run(&["chat", "-m", "hi", "--url", &dies.url, "--url", &goes_on.url]).await;
    assert_eq!((said.code, said.stdout.as_str()), (0, "the whole answer\n"), "{}", said.stderr);
    assert!(said.stderr.contains("trying again") && said.stderr.contains("(attempt 2)"), "{}", said.stderr);
    assert_eq!(dies.asked().len(), 1);
    let asked = goes_on.asked();
    assert_eq!(asked[0].what, "GET /api/v1/chat/stream?turnId=0a");
    assert_eq!(asked[0].last_event.as_deref(), Some("0a.1-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_fate_is_unknown_is_sent_again_under_the_same_key() {
    let fake = Fake::start(|before, _| match before {
        0 => Answer::Break,
        1 => error(503, "no_quorum", "no leader"),
        _ => Answer::Events(event("0a.1-0", "start", start()) + &event("0a.1-1", "done", done("once"))),
    })
    .await;
    let said = fake.run(&["chat", "--message", "hi", "--session", "S1", "--json"]).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    let reply: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((&reply["reply"]["text"], &reply["turnId"]), (&json!("once"), &json!("0a")));
    let asked = fake.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked[0].key.is_some() && asked.iter().all(|request| request.key == asked[0].key));
    assert_eq!(
        serde_json::from_slice::<Value>(&asked[2].body).unwrap(),
        json!({ "sessionKey": "s1", "message": "hi" })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_had_says_what_became_of_the_message() {
    let failed = Fake::start(|_, _| {
        let failure = json!({ "code": "model_failed", "message": "openai: 401 bad key" });
        Answer::Events(event("0a.1-0", "start", start()) + &event("0a.1-1", "error", failure))
    })
    .await;
    let said = failed.run(&["chat", "-m", "hi"]).await;
    assert_eq!((said.code, failed.asked().len()), (1, 1), "a failed model is not asked again");
    assert!(said.stderr.starts_with("error: openai: 401 bad key"), "{}", said.stderr);

    let dying = Fake::start(|_, _| Answer::Events(event("0a.1-0", "start", start()))).await;
    let said = dying.run(&["chat", "-m", "hi", "--patience", "0"]).await;
    assert_eq!(said.code, 5);
    assert!(said.stderr.contains("the gateway has the message and answers it"), "{}", said.stderr);

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(run(&["chat", "-m", "hi", "--url", &format!("http://{nobody}")]).await.code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piped_message_is_read_whole() {
    let fake = Fake::start(|_, _| {
        Answer::Events(event("0a.1-0", "start", start()) + &event("0a.1-1", "done", done("ok\u{1b}[2J")))
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let mut child = openclaw(home.path(), &["chat", "--url", &fake.url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"two\nlines\n").await.unwrap();
    drop(stdin);
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success());
    assert_eq!(serde_json::from_slice::<Value>(&fake.asked()[0].body).unwrap(), json!({ "message": "two\nlines" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_lists_every_problem() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.json");
    std::fs::write(&config, "{ gateway: { prot: 1, bind: 7 } }").unwrap();
    let config = config.to_str().unwrap();
    for arguments in [&["config", "check", "--config", config][..], &["gateway", "--config", config]] {
        let said = run(arguments).await;
        assert_eq!(said.code, 78, "{arguments:?}: {}", said.stderr);
        assert!(said.stderr.starts_with("error: 2 problems in the configuration"), "{}", said.stderr);
        assert!(said.stderr.contains("gateway.prot") && said.stderr.contains("gateway.bind"), "{}", said.stderr);
    }
    let said = run(&["config", "check"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (0, "ok: no file, defaults\n"));
    let said = run_with(&["config", "show"], |command| {
        command.env("OPENCLAW_GATEWAY_TOKEN", "hunter2hunter2hunter2");
    })
    .await;
    assert!(said.stdout.contains("\"***\"") && !said.stdout.contains("hunter2"), "{}", said.stdout);
    let schema: Value = serde_json::from_str(&run(&["config", "schema"]).await.stdout).unwrap();
    assert!(schema["properties"]["gateway"].is_object());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_made_without_a_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("certs");
    let arguments = ["cluster", "certs", "--cluster-id", "c1", "--out", out.to_str().unwrap(), "node-1", "node-2"];
    let said = run(&arguments).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    for file in ["ca.crt", "ca.key", "node-1.crt", "node-1.key", "node-2.crt", "node-2.key"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert_eq!(run(&arguments).await.code, 4, "nothing is overwritten");
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_know_the_commands() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let said = run(&["completions", shell]).await;
        assert_eq!(said.code, 0);
        assert!(said.stdout.contains("transfer-leader"), "{shell}");
    }
}

/// The first command of the README: it comes up, stays up, and goes when it is told to.
#[tokio::test]
async fn the_demo_serves_until_it_is_asked_to_stop() {
    let home = tempfile::tempdir().unwrap();
    let mut command = openclaw(home.path(), &["demo", "--json", "--token-delay-ms", "0"]);
    let mut demo = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let announced = async {
        let mut text = String::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            text.push_str(&line);
            if let Ok(announced) = serde_json::from_str::<Value>(&text) {
                return announced;
            }
        }
        panic!("the demo ended before it said where it is: {text}");
    };
    let announced = tokio::time::timeout(DEADLINE, announced).await.expect("the demo does not come up");
    let url = announced["url"].as_str().unwrap();
    let members = finish(openclaw(home.path(), &["cluster", "members", "--json", "--url", url])).await;
    let members: Value = serde_json::from_slice(&members.stdout).unwrap();
    assert_eq!(members.as_array().unwrap().len(), 3, "{members}");

    let pid = i32::try_from(demo.id().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(DEADLINE, demo.wait()).await.expect("the demo does not stop").unwrap();
    assert!(status.success(), "{status}");
}
