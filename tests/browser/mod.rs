//! A real Chromium, as a person uses it.
//!
//! Needs Debian's packages `chromium` and `chromium-driver`.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Whether the programs are there. On CI a missing one is a failure.
pub(crate) fn installed(programs: &[&str]) -> bool {
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
pub(crate) struct Browser {
    pub(crate) client: Client,
    // Dropped in this order: the driver ends Chromium, which then leaves its profile.
    driver: Driver,
    _profile: tempfile::TempDir,
}

impl Browser {
    pub(crate) async fn start() -> Result<Self> {
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
        let Value::Object(capabilities) =
            json!({ "goog:chromeOptions": { "args": arguments }, "goog:loggingPrefs": { "browser": "ALL" } })
        else {
            bail!("capabilities are an object");
        };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", driver.port))
            .await
            .context("start Chromium")?;
        Ok(Self { client, driver, _profile: profile })
    }

    /// A page whose scripts in [`Page::until`] may use what `prelude` defines.
    pub(crate) fn page(&self, prelude: &'static str) -> Page<'_> {
        Page { client: &self.client, prelude }
    }

    /// A command of the DevTools protocol.
    pub(crate) async fn devtools(&self, command: &str, parameters: Value) -> Result<Value> {
        self.ask("goog/cdp/execute", &json!({ "cmd": command, "params": parameters })).await
    }

    /// What the console says since it was last asked: errors, and what the page's policy refused.
    pub(crate) async fn console(&self) -> Result<Vec<String>> {
        let lines = self.ask("se/log", &json!({ "type": "browser" })).await?;
        let text = |line: &Value| format!("{} {} {}", line["level"], line["source"], line["message"]);
        Ok(lines.as_array().context("lines")?.iter().map(text).collect())
    }

    /// What of chromedriver's own interface fantoccini has no name for.
    async fn ask(&self, what: &str, body: &Value) -> Result<Value> {
        // The client wants one, though it speaks plain HTTP here.
        drop(rustls::crypto::ring::default_provider().install_default());
        let session = self.client.session_id().await?.context("a session")?;
        let url = format!("http://127.0.0.1:{}/session/{session}/{what}", self.driver.port);
        let request = reqwest::Client::new().post(url).timeout(DEADLINE).body(body.to_string());
        let answer = request.header("content-type", "application/json").send().await?.text().await?;
        let mut answer: Value = serde_json::from_str(&answer).with_context(|| format!("{what}: {answer}"))?;
        ensure!(answer["value"]["error"].is_null(), "{what}: {}", answer["value"]);
        Ok(answer["value"].take())
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
pub(crate) struct Page<'a> {
    pub(crate) client: &'a Client,
    prelude: &'static str,
}

impl Page<'_> {
    /// The value of an expression, as text.
    pub(crate) async fn text(&self, expression: &str) -> Result<String> {
        let value = self.client.execute(&format!("return String({expression})"), vec![]).await?;
        Ok(value.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until a script returns true.
    pub(crate) async fn until(&self, what: &str, script: &str) -> Result<()> {
        let script = format!("{}\n{script}", self.prelude);
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
}
