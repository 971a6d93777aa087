//! `openclaw doctor` beside real instances: a sound cluster, and what it says of each thing that is broken.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jepsen_lite::cluster::{Cluster, Instance, Options};
use jepsen_lite::network::Balancer;
use openclaw_proto::ids::{ClusterId, InstanceId};
use openclaw_raft::certs::{Authority, Validity};
use serde_json::{Value, json};
use tokio::process::Command;

const SOON: Duration = Duration::from_secs(60);
const SECRET: &str = "a secret of the cluster for tests, long enough";
const TOKEN: &str = "a-token-for-tests";

/// Exit code, and what was found: level, what was seen and what to do, by check.
struct Said {
    code: i32,
    found: BTreeMap<String, Vec<Value>>,
}

impl Said {
    fn levels(&self, check: &str) -> Vec<&str> {
        self.found.get(check).into_iter().flatten().filter_map(|finding| finding["level"].as_str()).collect()
    }

    /// The texts of a check's problems.
    fn problems(&self, check: &str) -> String {
        let problems = self.found.get(check).into_iter().flatten().filter(|finding| finding["level"] == "problem");
        problems.map(|finding| format!("{} -> {}\n", finding["saw"], finding["do"])).collect()
    }

    /// Checks with problems.
    fn bad(&self) -> Vec<&str> {
        self.found.keys().map(String::as_str).filter(|check| self.levels(check).contains(&"problem")).collect()
    }
}

async fn doctor(home: PathBuf, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Said> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openclaw"));
    command.args(["doctor", "--json"]).args(arguments).env_clear().env("HOME", home).stdin(Stdio::null());
    command.envs(variables.iter().copied()).kill_on_drop(true);
    let output = tokio::time::timeout(SOON, command.output()).await.context("the doctor hangs")??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for finding in report["findings"].as_array().context("no findings")? {
        let check = finding["check"].as_str().context("a finding without a name")?;
        found.entry(check.to_owned()).or_default().push(finding.clone());
    }
    Ok(Said { code: output.status.code().context("it was killed")?, found })
}

/// Beside an instance, as whoever operates it.
async fn beside(instance: &Instance, arguments: &[&str], secret: &str, token: &str) -> Result<Said> {
    let home = instance.data.parent().context("an instance has a home")?.to_owned();
    let config = home.join("openclaw.json").display().to_string();
    let variables = [("OPENCLAW_CLUSTER_SECRET", secret), ("OPENCLAW_GATEWAY_TOKEN", token)];
    doctor(home, &[&["--config", &config], arguments].concat(), &variables).await
}

#[tokio::test]
async fn a_sound_cluster_is_right_and_each_fault_is_named() -> Result<()> {
    let options = Options::new(env!("CARGO_BIN_EXE_openclaw"), 3)
        .variable("OPENCLAW_CLUSTER_SECRET", SECRET)
        .variable("OPENCLAW_GATEWAY_TOKEN", TOKEN);
    let mut cluster = Cluster::start(options, SOON).await?;
    let balancer = Balancer::start(cluster.instances().iter().map(|instance| instance.http).collect()).await?;
    let url = format!("http://{}", balancer.address());
    let first = &cluster.instances()[0];

    let sound = beside(first, &["--url", &url], SECRET, TOKEN).await?;
    assert_eq!(sound.bad(), Vec::<&str>::new(), "{:#?}", sound.found);
    for check in
        ["configuration", "instance", "data directory", "sync time", "quorum", "voters", "members", "certificate"]
    {
        assert!(sound.levels(check).contains(&"ok"), "{check}: {:#?}", sound.found);
    }
    assert_eq!(sound.levels("peers"), ["ok", "ok"]);
    assert_eq!(sound.levels("clock"), ["ok", "ok"]);
    for check in ["balancer", "token", "streaming", "idempotency"] {
        assert_eq!(sound.levels(check), ["ok"], "{check}: {:#?}", sound.found);
    }
    // A limit of open files or a slow disk of the machine may be worth a warning.
    assert!([0, 7].contains(&sound.code), "{}", sound.code);

    let stranger = beside(first, &[], "another secret, which is long enough to be one", TOKEN).await?;
    assert_eq!((stranger.code, stranger.bad()), (1, vec!["peers"]));
    assert!(stranger.problems("peers").contains("the same cluster.peer.secret"), "{}", stranger.problems("peers"));

    let token = beside(first, &["--url", &url], SECRET, "another-token").await?;
    assert_eq!((token.code, token.bad()), (1, vec!["token"]), "{:#?}", token.found);

    let nobody = beside(first, &["--url", "http://127.0.0.1:1"], SECRET, TOKEN).await?;
    assert_eq!((nobody.code, nobody.bad()), (1, vec!["balancer"]));

    cluster.instance(2).process.kill()?;
    let begin = Instant::now();
    loop {
        let gone = beside(&cluster.instances()[0], &[], SECRET, TOKEN).await?;
        if gone.bad() == ["members", "peers"] {
            assert!(gone.problems("members").contains("node-3 is gone"), "{:#?}", gone.found);
            assert_eq!((gone.code, gone.levels("voters")), (1, vec!["warning"]));
            break;
        }
        ensure!(begin.elapsed() < SOON, "node-3 is not missed: {:#?}", gone.found);
    }
    cluster.instance(1).process.kill()?;
    let begin = Instant::now();
    loop {
        let lost = beside(&cluster.instances()[0], &[], SECRET, TOKEN).await?;
        if lost.bad().contains(&"quorum") {
            assert!(lost.problems("quorum").contains("nothing can be written"));
            break;
        }
        ensure!(begin.elapsed() < SOON, "the quorum is not missed: {:#?}", lost.found);
    }
    Ok(())
}

#[tokio::test]
async fn before_the_first_start_ports_files_and_certificates_are_looked_at() -> Result<()> {
    let home = tempfile::tempdir()?;
    let path = |name: &str| home.path().join(name).display().to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let write = |cluster: Value| {
        let settings = json!({
            "gateway": { "port": taken.local_addr()?.port() },
            "storage": { "dataDir": path("data") },
            "cluster": cluster,
        });
        std::fs::write(path("openclaw.json"), settings.to_string()).context("write the settings")
    };
    let list = format!("node-1={free},node-2=127.0.0.1:1,node-3=127.0.0.1:2");
    let peer = json!({ "listen": free.to_string() });
    write(json!({ "instanceId": "node-1", "bootstrap": list, "peer": peer }))?;
    let config = path("openclaw.json");
    let arguments = ["--config", &*config];
    let first = doctor(home.path().to_owned(), &arguments, &[]).await?;
    assert_eq!((first.code, first.bad()), (1, vec!["ports"]), "{:#?}", first.found);
    assert!(first.problems("ports").contains("in use, and the instance does not answer"));
    assert_eq!(first.levels("instance"), ["skipped"]);
    assert_eq!(first.levels("peers"), ["warning", "warning"], "they need not run yet");
    assert!(!home.path().join("data").exists(), "looking makes nothing");

    // A process that is frozen: its socket takes connections, and nobody answers.
    std::fs::create_dir_all(home.path().join("data/node-1"))?;
    let frozen = std::os::unix::net::UnixListener::bind(home.path().join("data/node-1/admin.sock"))?;
    let silent = doctor(home.path().to_owned(), &["--config", &*config, "--timeout", "1"], &[]).await?;
    assert_eq!((silent.code, silent.bad()), (1, vec!["instance", "peers"]), "{:#?}", silent.found);
    assert!(silent.problems("instance").contains("it accepts connections and does not answer"));
    assert_eq!(silent.levels("ports"), ["ok", "ok"], "they are its own");
    drop(frozen);
    std::fs::remove_dir_all(home.path().join("data"))?;

    // A certificate that is over as it is made.
    let id = ClusterId::parse("oc-test")?;
    let instance = InstanceId::parse("node-1")?;
    let authority = Authority::create(&id, Validity::starting_now(Duration::from_secs(3600)))?;
    authority.write_files(home.path())?;
    authority.issue(&instance, &[], Validity::starting_now(Duration::ZERO))?.write_files(home.path())?;
    let tls = json!({ "ca": path("ca.crt"), "cert": path("node-1.crt"), "key": path("node-1.key") });
    let peer = json!({ "listen": free.to_string(), "tls": tls });
    write(json!({ "instanceId": "node-1", "bootstrap": list, "peer": peer }))?;
    let begin = Instant::now();
    loop {
        // Its end has whole seconds.
        let expired = doctor(home.path().to_owned(), &arguments, &[]).await?;
        if expired.bad() == ["certificate", "ports"] {
            assert!(expired.problems("certificate").contains("expired on"), "{}", expired.problems("certificate"));
            break;
        }
        ensure!(begin.elapsed() < SOON, "the certificate is good: {:#?}", expired.found);
    }

    let unknown = json!({ "clutser": {} });
    std::fs::write(path("openclaw.json"), unknown.to_string())?;
    let wrong = doctor(home.path().to_owned(), &arguments, &[]).await?;
    assert_eq!((wrong.code, wrong.bad()), (1, vec!["configuration"]));
    assert!(wrong.problems("configuration").contains("clutser"));
    Ok(())
}
