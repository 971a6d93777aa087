//! WebChat as a person uses it: real Chromium, three real instances behind a balancer, and one of them killed while it answers.
//!
//! Needs Debian's packages `chromium` and `chromium-driver`, and node for the tests of the page's own modules. Where one is
//! missing the test says so and is skipped; on CI it fails.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fantoccini::{Client, ClientBuilder, Locator, key::Key};
use hyper_util::client::legacy::connect::HttpConnector;
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::network::Balancer;
use serde_json::{Value, json};

const READY: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Words of the long answer, and the pause before each: 6 s, of which a kill takes the middle.
const WORDS: usize = 120;
const QUESTION: &str = "Count for me, please [tokens=120 delay=50ms]";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_survives_the_death_of_its_instance_on_the_page() -> Result<()> {
    if !installed(&["chromium", "chromedriver"]) {
        return Ok(());
    }
    let mut cluster = Cluster::start(Options::new(env!("CARGO_BIN_EXE_openclaw"), 3), READY).await?;
    let balancer = Balancer::start(cluster.instances().iter().map(|instance| instance.http).collect()).await?;
    let browser = Browser::start().await?;
    let page = Page { client: &browser.client };
    browser.client.goto(&format!("http://{}/", balancer.address())).await?;

    page.until(
        "the page is ready",
        "return !document.getElementById('empty').hidden && !document.getElementById('send').hidden",
    )
    .await?;
    page.note_connection_states().await?;
    page.say(QUESTION).await?;
    page.until("the answer streams", "const words = answer().split(' ').length; return words > 10 && words < 60")
        .await?;

    // "from node-2": the instance that accepted the message is the one that runs its turn.
    let meta = page.text("document.querySelector('#messages li:last-child .meta').textContent").await?;
    let runner =
        meta.split(" · ").find_map(|part| part.strip_prefix("from ")).context("the page names no instance")?.to_owned();
    let index = cluster
        .instances()
        .iter()
        .position(|instance| instance.id.as_str() == runner)
        .context("an instance of ours")?;
    cluster.instance(index).process.kill()?;

    page.until("the answer is complete", "return document.getElementById('stop').hidden").await?;
    let whole: Vec<String> = (1..=WORDS).map(|n| n.to_string()).collect();
    page.expect_conversation(QUESTION, &whole).await?;
    let meta = page.text("document.querySelector('#messages li:last-child .meta').textContent").await?;
    ensure!(
        meta.contains("answered by node-") && !meta.contains(&runner),
        "killed {runner}, and the page says {meta:?}"
    );
    let states = page.text("window.connectionStates.join(' ')").await?;
    ensure!(states.contains("lost open"), "the connection went through {states:?}");

    browser.client.refresh().await?;
    page.until("the conversation is in the list", "return [...document.querySelectorAll('#sessions .session')].some(each => each.textContent.startsWith('Count for me'))").await?;
    page.until("the conversation is back", "return document.querySelectorAll('#messages .message').length === 2")
        .await?;
    page.expect_conversation(QUESTION, &whole).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_answered_by_the_gateway_and_paths_by_the_model() -> Result<()> {
    if !installed(&["chromium", "chromedriver"]) {
        return Ok(());
    }
    let cluster = Cluster::start(Options::new(env!("CARGO_BIN_EXE_openclaw"), 1), READY).await?;
    let browser = Browser::start().await?;
    let page = Page { client: &browser.client };
    browser.client.goto(&format!("http://{}/", cluster.instances()[0].http)).await?;
    page.until("the page is ready", "return !document.getElementById('send').hidden").await?;
    page.say("/status").await?;
    let last = "document.querySelector('#messages li:last-child .body')?.textContent";
    page.until("the gateway answers", &format!("return {last}?.includes('Model: echo/echo')")).await?;
    page.say("/usr/bin/env").await?;
    let answer = "document.querySelector('#messages li.assistant:last-child .body')?.textContent";
    page.until("the model answers", &format!("return {answer}?.includes('/usr/bin/env')")).await?;
    page.say("/new now something else").await?;
    page.until("the rest is asked", &format!("return {answer}?.includes('now something else')")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markup_in_an_answer_is_inert() -> Result<()> {
    if !installed(&["chromium", "chromedriver"]) {
        return Ok(());
    }
    let cluster = Cluster::start(Options::new(env!("CARGO_BIN_EXE_openclaw"), 1), READY).await?;
    let browser = Browser::start().await?;
    let page = Page { client: &browser.client };
    let address = cluster.instances()[0].http;
    browser.client.goto(&format!("http://{address}/")).await?;

    let policy = page
        .client
        .execute_async(
            "const [done] = arguments; fetch('/').then(r => done(r.headers.get('content-security-policy') ?? ''))",
            vec![],
        )
        .await?;
    let policy = policy.as_str().unwrap_or_default();
    for rule in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ] {
        ensure!(policy.contains(rule), "{rule} is missing in {policy:?}");
    }
    ensure!(!policy.contains("unsafe"), "{policy:?}");

    page.say("<img src=x onerror=alert(1)> <script>alert(2)</script> [a](javascript:alert(3)) [b](data:text/html,x) ![c](http://127.0.0.1:9/c.png) [d](https://safe.example/)").await?;
    page.until(
        "the answer is complete",
        "return answer().includes('onerror') && document.getElementById('stop').hidden",
    )
    .await?;
    ensure!(page.client.get_alert_text().await.is_err(), "a script of the answer ran");
    let made = page
        .text("document.querySelectorAll('#messages :is(img, script, iframe, object, [onerror], [style])').length")
        .await?;
    ensure!(made == "0", "{made} elements were made from the answer's markup");
    let links =
        page.text("[...document.querySelectorAll('#messages a')].map(a => `${a.href} ${a.rel}`).join('\\n')").await?;
    ensure!(
        links
            == "http://127.0.0.1:9/c.png noopener noreferrer nofollow\nhttps://safe.example/ noopener noreferrer nofollow",
        "{links}"
    );
    let foreign = page.text("performance.getEntriesByType('resource').map(each => each.name).filter(name => !name.startsWith(location.origin)).join(' ')").await?;
    ensure!(foreign.is_empty(), "the page loaded {foreign}");
    // Nothing secret is ever in the address, and nothing in it is obeyed.
    ensure!(page.text("location.pathname + location.search + location.hash").await? == "/");
    browser.client.goto(&format!("http://{address}/?gatewayUrl=http://127.0.0.1:9&token=stolen#token=stolen")).await?;
    page.until("the conversation is back", "return document.querySelectorAll('#messages .message').length === 2")
        .await?;
    ensure!(page.text("sessionStorage.getItem('openclaw.token') ?? 'none'").await? == "none");
    Ok(())
}

#[test]
fn the_modules_of_the_page_pass_their_own_tests() -> Result<()> {
    if !installed(&["node"]) {
        return Ok(());
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/webchat/tests");
    let mut command = Command::new("node");
    command.arg("--test");
    for entry in std::fs::read_dir(&tests)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "mjs") {
            command.arg(path);
        }
    }
    let output = command.output().context("run node")?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Whether the programs are there. On CI a missing one is a failure.
fn installed(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for program in programs {
        if !directories.iter().any(|directory| directory.join(program).is_file()) {
            assert!(std::env::var_os("CI").is_none(), "{program} is not installed, and CI needs it");
            eprintln!("skipped: {program} is not installed");
            return false;
        }
    }
    true
}

/// A headless Chromium with an empty profile, and the driver that holds it.
struct Browser {
    client: Client,
    // Dropped in this order: the driver ends Chromium, which then leaves its profile.
    _driver: Driver,
    _profile: tempfile::TempDir,
}

impl Browser {
    async fn start() -> Result<Self> {
        let driver = Driver::start()?;
        let profile = tempfile::Builder::new().prefix("openclaw-chromium-").tempdir()?;
        let arguments = json!([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1100,760",
            format!("--user-data-dir={}", profile.path().display()),
        ]);
        let Value::Object(capabilities) = json!({ "goog:chromeOptions": { "args": arguments } }) else {
            bail!("capabilities are an object");
        };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", driver.port))
            .await
            .context("start Chromium")?;
        Ok(Self { client, _driver: driver, _profile: profile })
    }
}

/// A chromedriver on a port of its own choice.
struct Driver {
    process: Child,
    port: u16,
}

impl Driver {
    fn start() -> Result<Self> {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = process.stdout.take().context("its output")?;
        let mut driver = Self { process, port: 0 };
        // "ChromeDriver was started successfully on port 39413."
        let mut lines = BufReader::new(output).lines();
        for line in &mut lines {
            if let Some((_, rest)) = line?.split_once("started successfully on port ") {
                driver.port = rest.trim_end_matches('.').parse().context("chromedriver's port")?;
                // Read on, or it would block once the pipe is full.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(driver);
            }
        }
        bail!("chromedriver ended before it listened");
    }
}

impl Drop for Driver {
    /// Asks the driver to end its browsers and itself, since killing it would leave them behind.
    fn drop(&mut self) {
        let asked = TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut stream| {
            stream.write_all(b"GET /shutdown HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").map(|()| stream)
        });
        let deadline = Instant::now() + Duration::from_secs(5);
        while asked.is_ok() && Instant::now() < deadline {
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(POLL);
        }
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait().map(drop)) {
            eprintln!("chromedriver could not be ended: {error}");
        }
    }
}

/// What a person sees and does.
struct Page<'a> {
    client: &'a Client,
}

impl Page<'_> {
    async fn say(&self, text: &str) -> Result<()> {
        let message = self.client.find(Locator::Id("message")).await?;
        message.send_keys(text).await?;
        message.send_keys(&char::from(Key::Enter).to_string()).await?;
        Ok(())
    }

    /// The value of an expression, as text.
    async fn text(&self, expression: &str) -> Result<String> {
        let value = self.client.execute(&format!("return String({expression})"), vec![]).await?;
        Ok(value.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until a script returns true. It may call `answer()`, the newest answer's text.
    async fn until(&self, what: &str, script: &str) -> Result<()> {
        let script = format!(
            "const answer = () => [...document.querySelectorAll('.assistant .body')].at(-1)?.innerText.trim() ?? '';\n{script}"
        );
        let begin = Instant::now();
        loop {
            // While a page is being loaded there is nothing to ask: that is "not yet", too.
            let value = self.client.execute(&script, vec![]).await;
            if matches!(value, Ok(Value::Bool(true))) {
                return Ok(());
            }
            if begin.elapsed() > DEADLINE {
                let seen = self.text("document.body.innerText").await.unwrap_or_default();
                bail!("after {DEADLINE:?}, not yet: {what}; the script gave {value:?}, and the page shows:\n{seen}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Keeps every state that the page's connection goes through.
    async fn note_connection_states(&self) -> Result<()> {
        let script = "window.connectionStates = []; const shown = document.getElementById('connection');
            new MutationObserver(() => window.connectionStates.at(-1) !== shown.dataset.state && window.connectionStates.push(shown.dataset.state))
                .observe(shown, { attributes: true });";
        self.client.execute(script, vec![]).await?;
        Ok(())
    }

    /// One question and one answer, in full and once.
    async fn expect_conversation(&self, question: &str, answer: &[String]) -> Result<()> {
        let said =
            self.text("[...document.querySelectorAll('.user .body')].map(each => each.innerText).join('|')").await?;
        ensure!(said == question, "the page shows the question as {said:?}");
        let answers = self
            .text("[...document.querySelectorAll('.assistant .body')].map(each => each.innerText).join('|')")
            .await?;
        let words: Vec<&str> = answers.split_whitespace().collect();
        ensure!(words == answer, "the page shows the answer as {answers:?}");
        Ok(())
    }
}
