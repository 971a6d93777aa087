//! WebChat as a person uses it: real Chromium, three real instances behind a balancer, and one of them killed while it answers.
//!
//! Needs Debian's packages `chromium` and `chromium-driver`, and node for the tests of the page's own modules. Where one is
//! missing the test says so and is skipped; on CI it fails.

mod browser;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use browser::{Browser, Page, installed};
use fantoccini::Locator;
use fantoccini::key::Key;
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::network::Balancer;

const READY: Duration = Duration::from_secs(30);
/// The newest answer's text.
const PRELUDE: &str =
    "const answer = () => [...document.querySelectorAll('.assistant .body')].at(-1)?.innerText.trim() ?? '';";
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
    let page = browser.page(PRELUDE);
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
    let page = browser.page(PRELUDE);
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
    let page = browser.page(PRELUDE);
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
fn the_modules_of_the_pages_pass_their_own_tests() -> Result<()> {
    if !installed(&["node"]) {
        return Ok(());
    }
    let mut command = Command::new("node");
    command.arg("--test");
    for folder in ["src/api/webchat/tests", "src/api/dashboard/tests"] {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "mjs") {
                command.arg(path);
            }
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

impl Page<'_> {
    async fn say(&self, text: &str) -> Result<()> {
        let message = self.client.find(Locator::Id("message")).await?;
        message.send_keys(text).await?;
        message.send_keys(&char::from(Key::Enter).to_string()).await?;
        Ok(())
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
