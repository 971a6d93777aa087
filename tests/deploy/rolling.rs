//! Updates of a running cluster under load: by our script, and by the guide's own, which people copy as it stands.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{FuturesUnordered, StreamExt};
use jepsen_lite::client::{Client, Protocol, Reply};
use jepsen_lite::cluster::Cluster;
use openclaw_proto::http::{ChatRequest, Role};
use openclaw_proto::ids::{IdempotencyKey, SessionKey};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::balancers::{Nginx, ROUND_ROBIN};
use crate::docker::{Docker, Running, write_program};
use crate::{LOOK, SOON, addressed, addresses, installed, path, published, run, three_instances};

const GUIDE: &str = include_str!("guide/rolling-update.sh");
/// Longest time for a whole update; the guide's script sleeps for 30 s of it.
const UPDATE: Duration = Duration::from_secs(240);
/// What Docker gives a container that its file gives nothing, as in the guide.
const DOCKERS_GRACE: Duration = Duration::from_secs(10);
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(20);
/// Longest time in which no instance need be ready: an election on a machine that is busy with other tests.
const ELECTION: Duration = Duration::from_secs(5);
/// Longest time that an instance may take to say whether it is ready.
const ANSWER: Duration = Duration::from_millis(500);

/// Clients that talk through the balancer, and somebody who looks whether the cluster can serve.
struct Load {
    over: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    clients: JoinSet<Result<(SessionKey, u64)>>,
    watch: JoinSet<Result<Duration>>,
}

impl Load {
    fn start(balancer: SocketAddr, instances: [SocketAddr; 3]) -> Result<Self> {
        let (over, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = JoinSet::new();
        for n in 0..CLIENTS {
            let session = SessionKey::parse(format!("update-{n}")).context("session key")?;
            clients.spawn(talk(balancer, session, over.clone(), failed.clone()));
        }
        let mut watch = JoinSet::new();
        watch.spawn(look(instances, over.clone()));
        Ok(Self { over, failed, clients, watch })
    }

    /// Ends it, and compares what clients were told with what every instance holds: no message is missing, none is there twice,
    /// all are in order. Gives the number of requests that failed.
    async fn judge(mut self, cluster: &Cluster) -> Result<u64> {
        self.over.store(true, Ordering::Release);
        let mut messages = 0;
        while let Some(talked) = self.clients.join_next().await {
            let (session, sent) = talked??;
            ensure!(sent > 10, "{session} got {sent} answers only");
            messages += sent;
            let expected: Vec<String> = (1..=sent).map(|n| format!("message {n}")).collect();
            for client in cluster.clients(Protocol::Http1, SOON) {
                let entries = client.transcript(&session).await?;
                for role in [Role::User, Role::Assistant] {
                    let said: Vec<&str> =
                        entries.iter().filter(|entry| entry.role == role).map(|entry| entry.text.as_str()).collect();
                    ensure!(said.len() == expected.len(), "{session}, {role:?}: {} of {sent}: {said:?}", said.len());
                    ensure!(said.iter().zip(&expected).all(|(said, expected)| said.contains(expected)), "{said:?}");
                }
            }
        }
        let mut longest = Duration::ZERO;
        while let Some(looked) = self.watch.join_next().await {
            longest = longest.max(looked??);
        }
        let failed = self.failed.load(Ordering::Acquire);
        eprintln!("{messages} messages answered, {failed} requests failed, nobody was ready for at most {longest:?}");
        Ok(failed)
    }
}

/// One message after the other, each under its own key until it is answered.
async fn talk(
    balancer: SocketAddr,
    session: SessionKey,
    over: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
) -> Result<(SessionKey, u64)> {
    let client = Client::new(balancer, Protocol::Http1, SOON);
    let mut sent = 0;
    while !over.load(Ordering::Acquire) {
        sent += 1;
        let message = format!("message {sent}");
        let request = ChatRequest { session_key: Some(session.to_string()), message, ..ChatRequest::default() };
        let key = IdempotencyKey::parse(format!("{session}-{sent}")).context("idempotency key")?;
        let deadline = Instant::now() + SOON;
        loop {
            let reply = client.chat(&request, &key).await;
            if let Reply::Ok(_) = reply {
                break;
            }
            eprintln!("{session}, message {sent}: {reply:?}");
            failed.fetch_add(1, Ordering::AcqRel);
            ensure!(Instant::now() < deadline, "{session}: message {sent} is never answered: {reply:?}");
            tokio::time::sleep(PAUSE).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok((session, sent))
}

/// At every look an instance must be ready, which says that there is a quorum. Gives the longest time without.
async fn look(instances: [SocketAddr; 3], over: Arc<AtomicBool>) -> Result<Duration> {
    let clients = instances.map(|address| Client::new(address, Protocol::Http1, ANSWER));
    let (mut longest, mut since) = (Duration::ZERO, Instant::now());
    while !over.load(Ordering::Acquire) {
        // Whoever answers first: one that is about to end may take its time.
        let mut answers: FuturesUnordered<_> = clients.iter().map(Client::is_ready).collect();
        let mut ready = false;
        while let Some(answer) = answers.next().await
            && !ready
        {
            ready = answer;
        }
        longest = longest.max(since.elapsed());
        ensure!(longest <= ELECTION, "no instance was ready for {longest:?}");
        if ready {
            since = Instant::now();
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(longest)
}

/// Runs a script to its end, with the stand-ins in front of all other programs.
async fn script(docker: &Running, file: &Path, arguments: &[&str]) -> Result<Output> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command.arg(file).args(arguments).env("PATH", format!("{}:{path}", docker.programs.display()));
    command.current_dir(&docker.programs).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(UPDATE, command.output()).await.context("the script does not end")??;
    eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Every instance takes work again, whatever the script left behind.
async fn all_in_service(docker: &mut Docker) -> Result<()> {
    docker.cluster().wait_all_ready(SOON).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_script_as_it_stands_replaces_every_instance_and_no_message_is_lost() -> Result<()> {
    if !installed("nginx") || !installed("curl") {
        return Ok(());
    }
    let mut docker = Docker::new(three_instances().await?, DOCKERS_GRACE);
    let instances = addresses(docker.cluster())?;
    let nginx = Nginx::of_the_guide(ROUND_ROBIN, instances)?;
    let before = docker.pids();
    docker.publish();
    let programs = tempfile::tempdir()?;
    let docker = docker.start(programs.path()).await?;
    // The only address in the script, which is the balancer's.
    let curl = format!("#!/bin/bash\nexec /usr/bin/curl \"${{@/localhost:3000/{}}}\"\n", nginx.address);
    write_program(&programs.path().join("curl"), &curl)?;
    let file = programs.path().join("rolling-update.sh");
    std::fs::write(&file, GUIDE)?;

    let load = Load::start(nginx.address, instances)?;
    let output = script(&docker, &file, &[]).await?;
    let mut docker = docker.stop().await?;
    ensure!(output.status.success(), "{}", output.status);
    ensure!(docker.replaced == [0, 1, 2] && docker.killed.is_empty(), "{:?} {:?}", docker.replaced, docker.killed);
    ensure!(docker.pids().iter().zip(&before).all(|(now, then)| now != then));
    eprintln!("longest stop: {:?}", docker.longest_stop);
    // It never says `maintenance off`: a new process has forgotten it.
    all_in_service(&mut docker).await?;
    ensure!(load.judge(docker.cluster()).await? == 0, "nobody notices");
    let alarms = docker.cluster().alarms()?;
    ensure!(alarms.is_empty(), "{alarms:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn our_script_replaces_every_instance_goes_on_where_it_stopped_and_leaves_alone_what_is_current() -> Result<()> {
    if !installed("nginx") {
        return Ok(());
    }
    let grace = compose_grace()?;
    let mut docker = Docker::new(three_instances().await?, grace);
    let instances = addresses(docker.cluster())?;
    let nginx = Nginx::start(&addressed(&published("nginx/openclaw.conf")?, instances)?)?;
    let load = Load::start(nginx.address, instances)?;
    let (programs, update) = (tempfile::tempdir()?, path("rolling-update.sh"));
    std::fs::write(programs.path().join("docker-compose.yml"), "")?;

    // The second one cannot be replaced: it goes back into service, and the third is not touched.
    let before = docker.pids();
    docker.publish();
    docker.fails = Some(1);
    let running = docker.start(programs.path()).await?;
    let output = script(&running, &update, &["--pause", "0"]).await?;
    let mut docker = running.stop().await?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("error: openclaw-2 could not be replaced"));
    ensure!(docker.replaced == [0], "{:?}", docker.replaced);
    all_in_service(&mut docker).await?;

    // It goes on from there.
    let running = docker.start(programs.path()).await?;
    let output = script(&running, &update, &["--pause", "5"]).await?;
    let mut docker = running.stop().await?;
    ensure!(output.status.success() && said(&output).contains("openclaw-1 is current"));
    ensure!(said(&output).matches("waiting until balancers").count() == 1, "between two that are replaced");
    ensure!(docker.replaced == [0, 1, 2], "{:?}", docker.replaced);
    let after = docker.pids();
    ensure!(after.iter().zip(&before).all(|(now, then)| now != then));
    // The last thing that it waited for.
    ensure!(docker.cluster().instance(2).client().is_ready().await);

    // Nothing is new: nothing is touched.
    let running = docker.start(programs.path()).await?;
    let output = script(&running, &update, &["--pause", "0"]).await?;
    let docker = running.stop().await?;
    ensure!(output.status.success() && docker.replaced.len() == 3 && docker.pids() == after);

    // Unless that is wished.
    let running = docker.start(programs.path()).await?;
    let output = script(&running, &update, &["--pause", "0", "--all", "--no-pull", "openclaw-3"]).await?;
    let mut docker = running.stop().await?;
    ensure!(output.status.success() && docker.replaced == [0, 1, 2, 2], "{:?}", docker.replaced);

    // One that is down comes first; with a second one away nothing is touched.
    docker.publish();
    docker.cluster().instance(2).process.kill()?;
    let running = docker.start(programs.path()).await?;
    let output = script(&running, &update, &["--pause", "0", "--dry-run"]).await?;
    ensure!(output.status.success() && said(&output).contains("openclaw-3 would be replaced"));
    let output = script(&running, &update, &["--pause", "0"]).await?;
    let mut docker = running.stop().await?;
    ensure!(output.status.success() && docker.replaced[4..] == [2, 0, 1], "{:?}", docker.replaced);
    eprintln!("longest stop: {:?}", docker.longest_stop);
    ensure!(docker.killed.is_empty());
    all_in_service(&mut docker).await?;
    load.judge(docker.cluster()).await?;

    // Another tag in `.env`: the one before is here still, and is what all of them were started from.
    docker.publish_as("openclaw/gateway:0.2.0");
    let running = docker.start(programs.path()).await?;
    let output = script(&running, &update, &["--pause", "0"]).await?;
    ensure!(output.status.success() && !said(&output).contains("is current"));
    let output = script(&running, &update, &["--pause", "0", "--no-pull"]).await?;
    let mut docker = running.stop().await?;
    ensure!(output.status.success() && said(&output).contains("openclaw-3 is current"));
    ensure!(docker.replaced[7..] == [0, 1, 2], "{:?}", docker.replaced);

    docker.cluster().instance(0).process.kill()?;
    docker.cluster().instance(1).process.kill()?;
    let running = docker.start(programs.path()).await?;
    let output = script(&running, &update, &["--pause", "0", "--all"]).await?;
    let mut docker = running.stop().await?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("more than one instance is not ready"));
    ensure!(docker.replaced.len() == 10, "{:?}", docker.replaced);
    let alarms = docker.cluster().alarms()?;
    ensure!(alarms.is_empty(), "{alarms:#?}");
    Ok(())
}

/// What docker compose waits for after SIGTERM, with our file.
fn compose_grace() -> Result<Duration> {
    let compose = crate::yaml(&published("docker-compose.yml")?)?;
    let grace = crate::text(&compose[0]["services"]["openclaw-1"]["stop_grace_period"])?;
    Ok(Duration::from_secs(grace.strip_suffix('s').context("in seconds")?.parse()?))
}

#[test]
fn our_script_explains_itself_and_refuses_what_it_does_not_know() -> Result<()> {
    let file = path("rolling-update.sh");
    let bash = || {
        let mut command = std::process::Command::new("bash");
        command.arg(&file);
        command
    };
    let help = run(bash().arg("--help"))?;
    ensure!(
        ["--drain", "--ready", "--pause", "--via", "--hooks", "Exit codes"].iter().all(|word| help.contains(word)),
        "{help}"
    );
    for wrong in [
        &["--now"][..],
        &["--drain", "soon"],
        &["--pause", "-1"],
        &["--via", "carrier-pigeon"],
        &["--hooks", "/nowhere"],
        &["--via", "ssh"],
    ] {
        let output = bash().args(wrong).output()?;
        ensure!(output.status.code() == Some(2), "{wrong:?}: {output:?}");
        ensure!(said(&output).starts_with("error: "), "{wrong:?}: {output:?}");
    }
    Ok(())
}

/// A gateway and a service manager in ten lines, for what the script does over ssh: `state` holds what the instance is.
const MACHINE: &str = r#"#!/bin/bash
state="$HOME/$MACHINE"
case "${0##*/} $*" in
  "sudo sh -c "*) shift 2; exec sh -c "$*" ;;
  "systemctl restart openclaw") echo ready > "$state"; date +%s%3N > "$state.since"; echo "restart $MACHINE" >> "$HOME/done" ;;
  "systemctl show -P MainPID openclaw") echo 1 ;;
  "openclaw --json health --ready")
    echo "{\"ok\": true, \"status\": \"$(cat "$state")\", \"detail\": {\"version\": \"2\", \"appliedIndex\": 7,"
    echo "\"uptimeMs\": $(($(date +%s%3N) - $(cat "$state.since")))}}"
    ;;
  "openclaw maintenance on --timeout "*)
    # The first question comes at a bad time.
    [ -e "$state.asked" ] || { touch "$state.asked"; exit 6; }
    echo maintenance > "$state"; echo "drain $MACHINE" >> "$HOME/done"
    # Meanwhile another one is lost.
    [ ! -e "$state.loses" ] || echo starting > "$HOME/$(cat "$state.loses")" ;;
  "openclaw maintenance off") echo ready > "$state"; echo "back $MACHINE" >> "$HOME/done" ;;
  *) echo "unexpected: ${0##*/} $*" >&2; exit 1 ;;
esac
"#;

/// Three machines, and an update of them that waits for nothing for long.
fn three_machines() -> Result<(tempfile::TempDir, std::process::Command)> {
    let home = tempfile::tempdir()?;
    let programs = home.path().join("programs");
    std::fs::create_dir(&programs)?;
    for name in ["sudo", "systemctl", "openclaw"] {
        write_program(&programs.join(name), MACHINE)?;
    }
    write_program(&programs.join("ssh"), "#!/bin/bash\n[ \"$1\" = -- ] && MACHINE=\"$2\" exec sh -c \"${*:3}\"\n")?;
    for machine in ["one", "two", "three"] {
        std::fs::write(home.path().join(machine), "ready\n")?;
        std::fs::write(home.path().join(format!("{machine}.since")), "0\n")?;
    }
    let path_variable = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut update = std::process::Command::new("bash");
    update.arg(path("rolling-update.sh"));
    update.args(["--pause", "0", "--ready", "2", "--via", "ssh", "one", "two", "three"]);
    update.env("HOME", home.path()).env("PATH", path_variable).env("OPENCLAW_SSH", "ssh");
    Ok((home, update))
}

#[test]
fn over_ssh_each_machine_is_drained_before_its_unit_is_started_again() -> Result<()> {
    let (home, mut update) = three_machines()?;
    run(&mut update)?;
    let done = std::fs::read_to_string(home.path().join("done"))?;
    ensure!(done == "drain one\nrestart one\ndrain two\nrestart two\ndrain three\nrestart three\n", "{done}");
    Ok(())
}

#[test]
fn an_instance_that_never_becomes_ready_is_replaced_as_it_is() -> Result<()> {
    for state in ["starting", "consensus_stopped"] {
        let (home, mut update) = three_machines()?;
        std::fs::write(home.path().join("two"), state)?;
        run(&mut update)?;
        let done = std::fs::read_to_string(home.path().join("done"))?;
        ensure!(done == "restart two\ndrain one\nrestart one\ndrain three\nrestart three\n", "{state}: {done}");
    }
    Ok(())
}

#[test]
fn an_instance_goes_back_into_service_when_another_was_lost_while_it_drained() -> Result<()> {
    let (home, mut update) = three_machines()?;
    std::fs::write(home.path().join("one.loses"), "three")?;
    let output = update.output()?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("three is starting, so one is not replaced"));
    let done = std::fs::read_to_string(home.path().join("done"))?;
    ensure!(done == "drain one\nback one\n", "{done}");
    Ok(())
}
