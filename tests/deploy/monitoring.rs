//! Prometheus' files and Grafana's dashboard: accepted by Prometheus, and asking for nothing that an instance does not say.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::fakes::telegram::{self, ChatId, UserId};
use openclaw_config::Secret;
use serde_json::{Value, json};

use crate::{
    LOOK, OPENCLAW, SOON, Server, chat, command, free, get, installed, path, published, run, text, wait_listening, yaml,
};

const GUIDE: &str = include_str!("guide/prometheus.yml");
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const BOT: &str = "7000001:harness-harness-harness-harness-h";
/// The series that is not ours but Prometheus' own.
const FOREIGN: &str = "up";
/// A label with few values, all of them words of the module that sets it.
const OUTCOMES: (&str, &str) = ("outcome", include_str!("../../src/sessions/runner.rs"));
/// Labels that Prometheus adds.
const ADDED: [&str; 2] = ["job", "instance"];

/// An instance that has done of everything a little, so that every series is on its page.
async fn busy() -> Result<(Cluster, telegram::Handle)> {
    let options = telegram::Options::with_bots(&[BOT]);
    let telegram = telegram::start(SocketAddr::from(([127, 0, 0, 1], 0)), options).await?;
    let bot = telegram::Account::new(BOT).id();
    let settings =
        json!({"telegram": {"botToken": BOT, "apiRoot": telegram.api_url(), "dmPolicy": "open", "allowFrom": ["*"]}});
    let options = Options::new(OPENCLAW, 1)
        .settings(|settings| settings.gateway.auth.token = Some(Secret::new(TOKEN)))
        .written("channels", settings);
    let cluster = Cluster::start(options, SOON).await?;
    telegram.wait_for_poll(bot, SOON).await?;
    telegram.say(bot, ChatId(11), UserId(11), "hello")?;
    telegram.wait_for_message(bot, |message| message.content.text.contains("hello"), SOON).await?;
    let (authorization, http) = (format!("Bearer {TOKEN}"), cluster.instances()[0].http);
    for path in ["/api/v1/chat", "/api/v1/chat/stream"] {
        let (status, answer) = chat(http, path, &[("Authorization", &authorization)], "hello")?;
        ensure!(status == 200, "{answer}");
    }
    // Errors are counted once there is one.
    let (status, answer) = chat(http, "/api/v1/chat", &[], "hello")?;
    ensure!(status == 401, "{answer}");
    // A delivery is counted after the platform's answer.
    let deadline = Instant::now() + SOON;
    while !page(http)?.contains("openclaw_channel_delivery_duration_seconds_count") {
        ensure!(Instant::now() < deadline, "the delivery is not counted");
        tokio::time::sleep(LOOK).await;
    }
    Ok((cluster, telegram))
}

/// An instance's page, as a caller on its own machine gets it.
fn page(http: SocketAddr) -> Result<String> {
    let (status, answer) = get(http, "/metrics")?;
    ensure!(status == 200, "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").context("a head and a body")?;
    Ok(body.to_owned())
}

/// The names of all series on a page, each with its labels.
fn series(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::<String, BTreeSet<String>>::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        for (name, labels) in selectors(line) {
            all.entry(name).or_default().extend(labels);
        }
    }
    all
}

/// The words of an expression, with `{` and `(` between them; what stands in quotes is left out.
fn words(expression: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in expression.chars() {
        quoted ^= c == '"';
        let is_word = !quoted && (c.is_ascii_alphanumeric() || c == '_' || c == ':');
        match (is_word, words.last_mut()) {
            (true, Some(word)) if word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':') => {
                word.push(c)
            }
            (true, _) => words.push(c.to_string()),
            (false, _) if !quoted && "{}()[]".contains(c) => words.push(c.to_string()),
            (false, Some(word)) if !word.is_empty() => words.push(String::new()),
            (false, _) => {}
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The series that an expression names, each with the labels that it selects by.
fn selectors(expression: &str) -> Vec<(String, Vec<String>)> {
    let words = words(expression);
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let next = words.get(at + 1).map(String::as_str);
        if word.starts_with("openclaw_") || (next == Some("{") && word != "}") {
            let labels = if next == Some("{") {
                words[at + 2..].iter().take_while(|word| *word != "}").cloned().collect()
            } else {
                Vec::new()
            };
            found.push((word.clone(), labels));
        }
    }
    found
}

/// What an expression compares a label with.
fn compared<'a>(expression: &'a str, label: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices(label) {
        let before = expression[..at].trim_end();
        let value = expression[at + label.len()..].trim_start_matches(['=', '!', '~']);
        if before.ends_with(['{', ','])
            && let Some(value) = value.strip_prefix('"')
        {
            found.extend(value.split('"').next());
        }
    }
    found
}

/// The labels that an expression groups or joins by.
fn groupings(expression: &str) -> Vec<String> {
    let words = words(expression);
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        if ["by", "without", "on", "ignoring", "group_left", "group_right"].contains(&word.as_str())
            && words.get(at + 1).is_some_and(|next| next == "(")
        {
            found.extend(words[at + 2..].iter().take_while(|word| *word != ")").cloned());
        }
    }
    found
}

#[test]
fn expressions_are_taken_apart_as_prometheus_does() {
    let expression =
        r#"sum by (le, route) (rate(openclaw_a_bucket{job="$job", route!~".*(x|y).*"}[5m])) / on (job) openclaw_b > 0"#;
    assert_eq!(
        selectors(expression),
        [("openclaw_a_bucket".into(), vec!["job".to_owned(), "route".into()]), ("openclaw_b".into(), Vec::new())]
    );
    assert_eq!(groupings(expression), ["le", "route", "job"]);
    assert_eq!(selectors(r#"up{job="a"} == 0"#), [("up".into(), vec!["job".to_owned()])]);
    assert_eq!(compared(r#"sum by (route) (a{route="x", b_route="y", c="z",route!~"w"})"#, "route"), ["x", "w"]);
}

/// Grafana's variables, as it would fill them in.
fn filled_in(expression: &str) -> String {
    expression.replace("$__rate_interval", "1m").replace("$job", "openclaw").replace("$instance", ".*")
}

/// Every expression of the dashboard, with the title of its panel.
fn dashboard() -> Result<Vec<(String, String)>> {
    let dashboard: Value = serde_json::from_str(&published("grafana/openclaw.json")?)?;
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((text(&panel["title"])?.to_owned(), filled_in(text(&target["expr"])?)));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().context("annotations")? {
        found.push((text(&annotation["name"])?.to_owned(), filled_in(text(&annotation["expr"])?)));
    }
    for variable in dashboard["templating"]["list"].as_array().context("variables")? {
        if let Some(values) = variable["definition"].as_str() {
            let (name, _) = values
                .strip_prefix("label_values(")
                .and_then(|values| values.rsplit_once(", "))
                .context("a variable")?;
            found.push((text(&variable["name"])?.to_owned(), filled_in(name)));
        }
    }
    Ok(found)
}

/// Every expression of the alerts, with its alert's name.
fn alerts() -> Result<Vec<(String, String)>> {
    let file = yaml(&published("prometheus/alerts.yml")?)?;
    let mut found = Vec::new();
    for group in file[0]["groups"].as_array().context("groups")? {
        for rule in group["rules"].as_array().context("rules")? {
            let annotations = &rule["annotations"];
            ensure!(
                annotations["summary"].is_string() && annotations["description"].is_string(),
                "{rule} says too little"
            );
            ensure!(["page", "ticket"].contains(&text(&rule["labels"]["severity"])?), "{rule}");
            found.push((text(&rule["alert"])?.to_owned(), text(&rule["expr"])?.to_owned()));
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboard_and_the_alerts_names_what_an_instance_says() -> Result<()> {
    let (cluster, _telegram) = busy().await?;
    let page = page(cluster.instances()[0].http)?;
    let series = series(&page);
    let labels: BTreeSet<&str> = series.values().flatten().map(String::as_str).chain(ADDED).collect();
    let (dashboard, alerts) = (dashboard()?, alerts()?);
    ensure!(dashboard.len() > 40 && alerts.len() > 10, "{} and {}", dashboard.len(), alerts.len());
    for (title, expression) in dashboard.iter().chain(&alerts) {
        let selectors = selectors(expression);
        ensure!(!selectors.is_empty(), "{title}: {expression} asks for nothing");
        for (name, selected) in selectors {
            if name == FOREIGN {
                continue;
            }
            let own = series.get(&name).with_context(|| format!("{title}: no instance says {name}"))?;
            for label in selected {
                ensure!(
                    own.contains(&label) || ADDED.contains(&label.as_str()),
                    "{title}: {name} has no label {label}"
                );
            }
        }
        for label in groupings(expression) {
            ensure!(labels.contains(label.as_str()), "{title}: no series has the label {label}");
        }
    }
    check_page(&page)
}

/// A word that the gateway never says matches nothing, or with `!=` everything, and nobody notices.
#[test]
fn outcomes_of_turns_are_those_that_the_gateway_has() -> Result<()> {
    let (label, source) = OUTCOMES;
    let tested = published("prometheus/alerts.test.yml")?;
    let tested = tested.lines().filter(|line| line.contains("series:")).map(|line| (line.to_owned(), line.to_owned()));
    let mut seen = BTreeSet::new();
    for (title, expression) in dashboard()?.into_iter().chain(alerts()?).chain(tested) {
        if expression.contains("openclaw_run_duration_seconds") {
            for word in compared(&expression, label) {
                ensure!(source.contains(&format!("\"{word}\"")), "{title}: no turn has the outcome {word}");
                seen.insert(word.to_owned());
            }
        }
    }
    ensure!(seen.len() == 3, "{seen:?}");
    Ok(())
}

/// `promtool check metrics`: names, units and help texts.
fn check_page(page: &str) -> Result<()> {
    if !installed("promtool") {
        return Ok(());
    }
    let mut check = command("promtool");
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = check.spawn().context("run promtool")?;
    child.stdin.take().context("its input")?.write_all(page.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "{}: {said}", output.status);
    Ok(())
}

/// The published configuration in a directory, with what differs for a test: where instances and the token are, and how often
/// they are asked.
fn configuration(directory: &Path, text: &str, instance: SocketAddr) -> Result<std::path::PathBuf> {
    let token = directory.join("openclaw.token");
    std::fs::write(&token, TOKEN)?;
    std::fs::copy(path("prometheus/alerts.yml"), directory.join("alerts.yml"))?;
    let mut text = text
        .replace("/etc/prometheus/openclaw.token", &token.display().to_string())
        .replace("interval: 15s", "interval: 1s")
        .replace("openclaw-1:3000", &instance.to_string());
    for other in ["          - \"openclaw-2:3000\"\n", "          - \"openclaw-3:3000\"\n"] {
        text = text.replace(other, "");
    }
    if !text.contains("interval:") {
        text = format!("global: {{ scrape_interval: 1s }}\n{text}");
    }
    let file = directory.join("prometheus.yml");
    std::fs::write(&file, text)?;
    Ok(file)
}

#[test]
fn prometheus_accepts_its_files_and_the_alerts_fire_when_they_should() -> Result<()> {
    if !installed("promtool") {
        return Ok(());
    }
    for name in ["prometheus.yml", "prometheus-api-path.yml"] {
        let directory = tempfile::tempdir()?;
        let file = configuration(directory.path(), &published(&format!("prometheus/{name}"))?, free()?)?;
        run(command("promtool").args(["check", "config"]).arg(file))?;
    }
    ensure!(!published("prometheus/prometheus.yml")?.contains("\n    metrics_path"), "it is the one without");
    run(command("promtool").args(["check", "rules"]).arg(path("prometheus/alerts.yml")))?;
    run(command("promtool").args(["test", "rules"]).arg(path("prometheus/alerts.test.yml")))?;
    // Each alert is in a test in which it fires.
    let tests = published("prometheus/alerts.test.yml")?;
    for (alert, _) in alerts()? {
        ensure!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} is not tested");
    }
    Ok(())
}

/// A running Prometheus.
struct Prometheus {
    address: SocketAddr,
    _server: Server,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    fn start(text: &str, instance: SocketAddr) -> Result<Self> {
        let (directory, address) = (tempfile::tempdir()?, free()?);
        let file = configuration(directory.path(), text, instance)?;
        let mut prometheus = command("prometheus");
        prometheus.arg(format!("--config.file={}", file.display()));
        prometheus.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
        prometheus.arg(format!("--web.listen-address={address}"));
        let log = std::fs::File::create(directory.path().join("log"))?;
        let server = Server::start(prometheus.stdout(log.try_clone()?).stderr(log))?;
        wait_listening(address)?;
        let deadline = Instant::now() + SOON;
        while get(address, "/-/ready")?.0 != 200 {
            ensure!(Instant::now() < deadline, "prometheus is not ready");
            std::thread::sleep(LOOK);
        }
        Ok(Self { address, _server: server, _directory: directory })
    }

    /// The samples that an expression gives now.
    fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let query: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (status, answer) = get(self.address, &format!("/api/v1/query?query={query}"))?;
        let (_, body) = answer.split_once("\r\n\r\n").context("a head and a body")?;
        ensure!(status == 200, "{expression}: {body}");
        let answer: Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
        answer["data"]["result"].as_array().cloned().with_context(|| format!("{expression}: {answer}"))
    }

    /// Waits until it gives samples, and gives them.
    async fn samples(&self, expression: &str) -> Result<Vec<Value>> {
        let deadline = Instant::now() + SOON;
        loop {
            let samples = self.query(expression)?;
            if !samples.is_empty() {
                return Ok(samples);
            }
            ensure!(Instant::now() < deadline, "no data: {expression}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// How much of the disk is free, of 1.
fn free_share(directory: &Path) -> Result<f64> {
    let disk = nix::sys::statvfs::statvfs(directory)?;
    Ok(disk.blocks_available() as f64 / disk.blocks() as f64)
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_with_the_guides_file_and_ours_and_every_panel_shows_something() -> Result<()> {
    if !installed("prometheus") {
        return Ok(());
    }
    let (cluster, _telegram) = busy().await?;
    let instance = cluster.instances()[0].http;
    // The guide's, as it stands: neither a path nor a token. It runs on the instance's machine here.
    let guide = Prometheus::start(GUIDE, instance)?;
    guide.samples(r#"up{job="openclaw"} == 1"#).await?;
    guide.samples(r#"openclaw_raft_has_quorum{job="openclaw"} == 1"#).await?;

    let ours = Prometheus::start(&published("prometheus/prometheus.yml")?, instance)?;
    ours.samples(r#"up{job="openclaw"} == 1"#).await?;
    // A rate needs two samples.
    ours.samples(r#"rate(openclaw_raft_commands_applied_total{job="openclaw"}[1m])"#).await?;
    for (title, expression) in dashboard()? {
        // What happens seldom is drawn when it happens.
        if expression.ends_with("> 0") {
            ours.query(&expression)?;
        } else {
            ours.samples(&expression).await.with_context(|| title)?;
        }
    }
    for (alert, expression) in alerts()? {
        let firing = ours.query(&expression)?;
        // Of a machine whose disk is that full it is the truth.
        let is_true = alert == "OpenclawDiskFillsUp" && free_share(&std::env::temp_dir())? < 0.1;
        ensure!(is_true || firing.is_empty(), "{alert} is about to fire on a healthy instance: {firing:?}");
    }
    Ok(())
}
