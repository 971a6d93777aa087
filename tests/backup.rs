//! Backups by the built binary, and what is left to do when instances are lost: the procedures of `deploy/RECOVERY.md`.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jepsen_lite::client::{Client, Protocol};
use jepsen_lite::cluster::{Cluster, Instance, Options};
use jepsen_lite::workloads::append::{self, Load};
use openclaw_proto::http::MemberRole;
use openclaw_proto::ids::{IdempotencyKey, SessionKey};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// For anything that ends by itself.
const SOON: Duration = Duration::from_secs(60);
/// Time limit of one request.
const REQUEST: Duration = Duration::from_secs(20);
/// The id of every cluster that is restored here.
const NEW: &str = "second";
const SOMEBODY: u32 = 54_321;

fn options() -> Options {
    Options::new(env!("CARGO_BIN_EXE_openclaw"), 3)
}

fn clients(cluster: &Cluster) -> Vec<Client> {
    cluster.clients(Protocol::Http1, REQUEST)
}

fn session(name: &str) -> Result<SessionKey> {
    SessionKey::parse(name).context("session key")
}

/// What an instance was configured with.
fn settings(instance: &Instance) -> Result<PathBuf> {
    Ok(instance.data.parent().context("an instance has a home")?.join("openclaw.json"))
}

/// Changes the configuration of an instance that is not running.
fn configure(instance: &Instance, change: impl FnOnce(&mut Value)) -> Result<()> {
    let file = settings(instance)?;
    let mut value: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    change(&mut value);
    std::fs::write(&file, value.to_string())?;
    Ok(())
}

/// A command beside an instance, with its settings.
fn command(instance: &Instance, arguments: &[&str]) -> Result<Command> {
    let mut command = openclaw(arguments);
    command.arg("--config").arg(settings(instance)?);
    Ok(command)
}

fn openclaw(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openclaw"));
    command.args(arguments).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a command beside an instance.
async fn beside(instance: &Instance, arguments: &[&str]) -> Result<Output> {
    let mut command = command(instance, arguments)?;
    Ok(tokio::time::timeout(SOON, command.output()).await.context("the command hangs")??)
}

/// As [`beside`], and what it answered.
async fn answer(instance: &Instance, arguments: &[&str]) -> Result<Value> {
    let output = beside(instance, &[arguments, &["--json"]].concat()).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {} {text}", output.status);
    serde_json::from_str(&text).with_context(|| format!("{arguments:?}: {text}"))
}

/// Gives all that is in a directory to a user who runs nothing here; only root can.
fn give_away(tree: &Path) -> Result<()> {
    std::os::unix::fs::lchown(tree, Some(SOMEBODY), Some(SOMEBODY))?;
    if tree.is_dir() {
        for item in std::fs::read_dir(tree)? {
            give_away(&item?.path())?;
        }
    }
    Ok(())
}

fn owners(tree: &Path) -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::from([tree.symlink_metadata()?.uid()]);
    if tree.is_dir() {
        for item in std::fs::read_dir(tree)? {
            found.extend(owners(&item?.path())?);
        }
    }
    Ok(found)
}

/// Exit code and what it said on stderr.
async fn refusal(instance: &Instance, arguments: &[&str]) -> Result<(i32, String)> {
    let output = beside(instance, arguments).await?;
    let code = output.status.code().context("it was killed")?;
    Ok((code, String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Appends one after the other, each acknowledged before the next; the texts.
async fn talk(client: &Client, name: &str, count: usize) -> Result<Vec<String>> {
    let (session, mut texts) = (session(name)?, Vec::new());
    for n in 0..count {
        let text = format!("{name} {n}");
        let key = IdempotencyKey::parse(format!("{name}-{n}"))?;
        client.append(&session, &text, &key).await.ok()?;
        texts.push(text);
    }
    Ok(texts)
}

async fn texts(client: &Client, name: &str) -> Result<Vec<String>> {
    Ok(client.transcript(&session(name)?).await?.into_iter().map(|entry| entry.text).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for item in std::fs::read_dir(from)? {
        let item = item?;
        let target = to.join(item.file_name());
        match item.file_type()? {
            kind if kind.is_dir() => copy(&item.path(), &target)?,
            kind if kind.is_file() => drop(std::fs::copy(item.path(), target)?),
            // The admin socket.
            _ => {}
        }
    }
    Ok(())
}

/// Restores `file` into the first instance, and starts all of them as one cluster again.
async fn restore(cluster: &mut Cluster, file: &str) -> Result<Value> {
    for instance in cluster.instances() {
        configure(instance, |settings| settings["cluster"]["id"] = json!(NEW))?;
    }
    let restored = answer(&cluster.instances()[0], &["cluster", "restore", file]).await?;
    cluster.start_one(0)?;
    // The others have empty directories, and find the cluster formed without them.
    cluster.instance(0).wait_ready(SOON).await?;
    cluster.start_all()?;
    cluster.wait_all_ready(SOON).await?;
    // Ready is who has joined; a vote, without which the cluster tolerates no failure, comes when it has caught up.
    let deadline = Instant::now() + SOON;
    loop {
        let members = cluster.instance(0).client().cluster().await.ok()?.members;
        if members.iter().filter(|member| member.role != MemberRole::Learner).count() == cluster.len() {
            return Ok(restored);
        }
        ensure!(Instant::now() < deadline, "not all have a vote: {members:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Starts `command`, asks it to end once it works on something in `directory`, and says how it ended. Nothing may be left there.
async fn interrupted(mut command: Command, directory: &Path, unfinished: &str) -> Result<(i32, String)> {
    let begun = || -> Result<bool> {
        let mut names = std::fs::read_dir(directory)?.flatten().map(|item| item.file_name());
        Ok(names.any(|name| name.to_string_lossy().contains(unfinished)))
    };
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Waiting would close it, and a backup that ends is another matter.
    let _open = child.stdin.take();
    let deadline = Instant::now() + SOON;
    while !begun()? {
        ensure!(Instant::now() < deadline, "nothing is begun");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let pid = i32::try_from(child.id().context("it has ended")?)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
    let output = tokio::time::timeout(Duration::from_secs(10), child.wait_with_output()).await;
    let output = output.context("it does not heed the signal")??;
    ensure!(!begun()?, "something is left");
    Ok((output.status.code().context("it was killed")?, String::from_utf8_lossy(&output.stderr).into_owned()))
}

async fn run(test: impl AsyncFnOnce(&mut Cluster, &str) -> Result<()>) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("cluster.backup");
    let mut cluster = Cluster::start(options(), SOON).await?;
    let result = test(&mut cluster, file.to_str().context("a path in UTF-8")?).await;
    if result.is_err() {
        cluster.keep();
    }
    result
}

/// A load that goes on until it is stopped.
fn load(cluster: &Cluster) -> Result<Load> {
    let options =
        append::Options { clients: 4, pause: Duration::from_millis(5), ..append::Options::steady("load", SOON) };
    Load::start(options, &clients(cluster))
}

#[tokio::test]
async fn all_instances_lost_and_a_backup_that_was_made_under_load_brings_everything_back() -> Result<()> {
    run(async |cluster, file| {
        let said = talk(&clients(cluster)[0], "before", 60).await?;
        let load = load(cluster)?;
        load.progress().reached(50, SOON).await?;
        let follower = (cluster.leader(SOON).await? + 1) % 3;
        let made = answer(&cluster.instances()[follower], &["cluster", "backup", file]).await?;
        load.progress().reached(load.progress().acknowledged() + 20, SOON).await?;
        load.progress().stop();
        let verdict = load.judge().await?;
        assert!(verdict.anomalies.is_empty(), "{:#?}", verdict.anomalies);
        assert_eq!(made["source"], "cluster");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(file)?.permissions());
        assert_eq!(mode & 0o777, 0o600, "it holds conversations");

        // What the file says of itself, and the instance of itself at the same log index.
        let node = &cluster.instances()[follower];
        let deadline = Instant::now() + SOON;
        loop {
            let again = format!("{file}.again");
            let quiet = answer(node, &["cluster", "backup", &again, "--force"]).await?;
            let hash = node.client().state_hash().await.ok()?;
            if quiet["appliedIndex"] == hash.applied_index {
                assert_eq!(quiet["stateSha256"], hash.sha256);
                break;
            }
            ensure!(Instant::now() < deadline, "no two answers at the same log index");
        }
        let (code, text) = refusal(node, &["cluster", "backup", file]).await?;
        assert_eq!((code, text.contains("exists; name another file, or give --force")), (4, true), "{text}");

        // The disaster: all processes and all directories, but for a disk that somebody finds later.
        cluster.kill_all()?;
        let kept = tempfile::tempdir()?;
        copy(&cluster.instances()[2].data, kept.path())?;
        for index in 0..3 {
            cluster.wipe(index)?;
        }

        let restored = restore(cluster, file).await?;
        assert_eq!(restored["clusterId"], NEW);
        assert_eq!(restored["backup"]["keptSha256"], made["keptSha256"]);
        for client in clients(cluster) {
            assert_eq!(texts(&client, "before").await?, said);
            assert_eq!(client.cluster().await.ok()?.cluster_id, NEW);
        }
        talk(&clients(cluster)[1], "after", 5).await?;
        cluster.wait_converged(SOON).await?;

        // The disk that was found: not with the new settings, and not as it was.
        let third = cluster.instance(2);
        third.process.terminate()?;
        third.process.wait_exit(SOON).await?;
        cluster.wipe(2)?;
        copy(kept.path(), &cluster.instances()[2].data)?;
        cluster.start_one(2)?;
        let status = cluster.instance(2).process.wait_exit(SOON).await?;
        assert_eq!(status.code(), Some(78));
        assert!(cluster.instances()[2].process.log_tail().contains("not second"));
        configure(&cluster.instances()[2], |settings| {
            settings["cluster"].as_object_mut().map(|cluster| cluster.remove("id"));
        })?;
        cluster.start_one(2)?;
        let ready = cluster.instance(2).wait_ready(Duration::from_secs(3)).await;
        assert!(ready.is_err(), "an instance of the lost cluster serves");
        cluster.instance(2).process.kill()?;
        let seen = clients(cluster)[0].cluster().await.ok()?;
        assert!(seen.leader.is_some() && seen.members.len() == 3, "{seen:?}");
        assert_eq!(texts(&clients(cluster)[1], "after").await?.len(), 5);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_one_disk_that_survived_gives_all_that_was_acknowledged() -> Result<()> {
    run(async |cluster, file| {
        let leader = cluster.leader(SOON).await?;
        let said = talk(&clients(cluster)[leader], "before", 60).await?;
        let (code, text) = refusal(&cluster.instances()[leader], &["cluster", "backup", file, "--offline"]).await?;
        assert_eq!((code, text.contains("in use by another process")), (75, true), "{text}");
        cluster.kill_all()?;
        let survivor = &cluster.instances()[leader];
        let directory = Path::new(file).parent().context("it is in a directory")?;
        let slow = command(survivor, &["cluster", "backup", file, "--offline", "--limit-rate", "100"])?;
        let (code, text) = interrupted(slow, directory, ".unfinished").await?;
        assert_eq!((code, text.contains("interrupted: nothing was written")), (130, true), "{text}");

        // An address in the environment is not meant for it, and one on the command line is.
        let (code, text) =
            refusal(survivor, &["cluster", "backup", file, "--offline", "--url", "http://127.0.0.1:1"]).await?;
        assert_eq!((code, text.contains("--offline asks nobody")), (2, true), "{text}");
        let mut elsewhere = command(survivor, &["cluster", "backup", file, "--offline", "--json"])?;
        let made = elsewhere.env("OPENCLAW_URL", "http://127.0.0.1:1").output().await?;
        let made: Value = serde_json::from_slice(&made.stdout)?;
        assert_eq!(made["source"], "stopped instance", "{made}");
        for index in 0..3 {
            cluster.wipe(index)?;
        }
        restore(cluster, file).await?;
        for client in clients(cluster) {
            assert_eq!(texts(&client, "before").await?, said);
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_root_opens_or_restores_stays_with_the_user_that_runs_the_gateway() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    run(async |cluster, file| {
        talk(&clients(cluster)[0], "before", 5).await?;
        cluster.kill_all()?;
        let first = &cluster.instances()[0];
        give_away(&first.data)?;
        answer(first, &["cluster", "backup", file, "--offline"]).await?;
        assert_eq!(owners(&first.data)?, BTreeSet::from([SOMEBODY]), "opened");
        for item in std::fs::read_dir(&first.data)? {
            std::fs::remove_dir_all(item?.path())?;
        }
        configure(first, |settings| settings["cluster"]["id"] = json!(NEW))?;
        let made = answer(first, &["cluster", "restore", file]).await?;
        let dir = Path::new(made["dataDir"].as_str().context("a directory")?);
        assert_eq!(dir.parent(), Some(first.data.as_path()));
        assert_eq!(owners(&first.data)?, BTreeSet::from([SOMEBODY]), "restored");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_is_no_whole_backup_or_no_empty_directory_is_refused() -> Result<()> {
    run(async |cluster, file| {
        talk(&clients(cluster)[0], "before", 5).await?;
        answer(&cluster.instances()[0], &["cluster", "backup", file]).await?;
        let whole = std::fs::read(file)?;
        let first = &cluster.instances()[0];
        let mut verify = openclaw(&["cluster", "backup", "--json", "verify", file]);
        let verified = verify.env("OPENCLAW_URL", "http://127.0.0.1:1").output().await?;
        let verified: Value = serde_json::from_slice(&verified.stdout)?;
        let entries =
            verified["tables"].as_array().and_then(|tables| tables.iter().find(|table| table["table"] == "entries"));
        assert_eq!(entries.map(|entries| &entries["rows"]), Some(&json!(5)), "{verified}");

        let altered = format!("{file}.altered");
        let mut bytes = whole.clone();
        let text = b"before 3";
        let at = bytes.windows(text.len()).position(|bytes| bytes == text).context("the text is in the backup")?;
        bytes[at] ^= 1;
        std::fs::write(&altered, &bytes)?;
        let (code, text) = refusal(first, &["cluster", "restore", &altered, "--cluster-id", NEW]).await?;
        assert_eq!((code, text.contains("is not empty")), (4, true), "the instance runs there: {text}");
        cluster.kill_all()?;
        cluster.wipe(0)?;
        let first = &cluster.instances()[0];
        let (code, text) = refusal(first, &["cluster", "restore", &altered]).await?;
        assert_eq!((code, text.contains("damaged")), (65, true), "{text}");
        std::fs::write(&altered, &whole[..whole.len() - 1])?;
        let (code, text) = refusal(first, &["cluster", "restore", &altered]).await?;
        assert_eq!((code, text.contains("ends in the middle")), (65, true), "{text}");
        std::fs::write(&altered, "something else")?;
        let (code, text) = refusal(first, &["cluster", "restore", &altered]).await?;
        assert_eq!((code, text.contains("not a backup")), (65, true), "{text}");
        let own = answer(first, &["cluster", "restore", file]).await?["backup"]["clusterId"].clone();
        cluster.wipe(0)?;
        let own = own.as_str().context("an id")?;
        let (code, text) = refusal(&cluster.instances()[0], &["cluster", "restore", file, "--cluster-id", own]).await?;
        assert_eq!((code, text.contains("needs another id")), (4, true), "{text}");
        let left = std::fs::read_dir(&cluster.instances()[0].data)?.count();
        assert_eq!(left, 0, "what was not restored is gone");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn who_is_asked_to_end_in_the_middle_leaves_nothing() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name).display().to_string();
    // A gateway whose answer begins, and one whose reader waits for more.
    let gateway = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", gateway.local_addr()?);
    let _answering = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        let (mut stream, _) = gateway.accept().await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nabc").await?;
        std::future::pending::<std::io::Result<()>>().await
    }));
    let backup = openclaw(&["cluster", "backup", &path("file"), "--url", &url]);
    let (code, text) = interrupted(backup, directory.path(), ".unfinished").await?;
    assert_eq!((code, text.contains("interrupted: nothing was written")), (130, true), "{text}");

    let data = path("data");
    std::fs::create_dir(&data)?;
    let mut restore = openclaw(&["cluster", "restore", "-", "--instance-id", "node-1", "--data-dir", &data]);
    restore.stdin(Stdio::piped());
    let (code, text) = interrupted(restore, Path::new(&data), ".restoring-").await?;
    assert_eq!((code, text.contains("interrupted: nothing was restored")), (130, true), "{text}");

    let (verify, file) = (["cluster", "backup", "--force", "verify"], path("file"));
    let refused = openclaw(&[&verify[..], &[&file]].concat()).output().await?;
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!((refused.status.code(), text.contains("--force before `verify`")), (Some(2), true), "{text}");
    Ok(())
}
