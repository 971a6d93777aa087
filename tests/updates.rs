//! One release after the other: the build before a new format beside the one after it, under load.
//!
//! The same binary is both: with `openclaw_raft::planted::NEXT_FORMAT_VARIABLE` it reads one format more, and does with it
//! what this one does not know. If anything of that reached the state too early, the instances' hashes would differ.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jepsen_lite::checkers::convergence::{self, Held};
use jepsen_lite::client::{Protocol, Reply};
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::workloads::append::{self, Load};
use openclaw_raft::planted::NEXT_FORMAT_VARIABLE;

const SOON: Duration = Duration::from_secs(60);
const REQUEST: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// Soon enough for both releases to make and take snapshots.
const SNAPSHOT_EVERY: u64 = 1500;
/// Entries that are appended between two steps of the update.
const BETWEEN: u64 = 100;

fn options() -> Options {
    Options::new(env!("CARGO_BIN_EXE_openclaw"), 3).settings(|settings| {
        settings.cluster.raft.snapshot_every = SNAPSHOT_EVERY;
        settings.cluster.raft.log_keep = 50;
    })
}

fn start_load(cluster: &Cluster, run: &str) -> Result<Load> {
    Load::start(append::Options::steady(run, SOON), &cluster.clients(Protocol::Http1, REQUEST))
}

/// Waits for so many more writes.
async fn more(load: &Load, writes: u64) -> Result<()> {
    load.progress().reached(load.progress().acknowledged() + writes, SOON).await
}

/// The format, as every instance names it.
async fn format(cluster: &Cluster) -> Result<u32> {
    let mut formats = Vec::new();
    for instance in cluster.instances() {
        formats.push(instance.client().cluster().await.ok()?.format);
    }
    ensure!(formats.windows(2).all(|pair| pair[0] == pair[1]), "instances name different formats: {formats:?}");
    formats.first().copied().context("no instance")
}

async fn until_format(cluster: &Cluster, expected: u32) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        match format(cluster).await {
            Ok(found) if found == expected => return Ok(()),
            found if Instant::now() > deadline => anyhow::bail!("format {found:?} and not {expected}"),
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

/// All instances hold the same rows at some log index.
async fn all_hold_the_same(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + SOON;
    let mut held: Vec<Held> = Vec::new();
    loop {
        for instance in cluster.instances() {
            if let Reply::Ok(hash) = instance.client().state_hash().await {
                let (applied_index, sha256) = (hash.applied_index, hash.sha256);
                held.push(Held { instance: instance.id.to_string(), applied_index, sha256 });
            }
        }
        let check = convergence::check(&held, cluster.len());
        ensure!(check.found.is_empty(), "{check:#?}");
        if check.decided {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no common log index within {SOON:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// Ends a load of which nothing was lost or doubled.
async fn sound(load: Load) -> Result<()> {
    load.progress().stop();
    let checked = load.judge_all().await?;
    ensure!(checked.found.is_empty() && checked.decided, "{checked:#?}");
    Ok(())
}

/// Stops an instance as an operator does, and starts it as another release.
async fn update(cluster: &mut Cluster, index: usize, next: &str) -> Result<()> {
    let process = &mut cluster.instance(index).process;
    process.terminate()?;
    let ended = process.wait_exit(SOON).await?;
    ensure!(ended.success(), "{} ended with {ended}: {}", index + 1, process.log_tail());
    process.set_variable(NEXT_FORMAT_VARIABLE, next);
    cluster.start_one(index)
}

#[tokio::test]
async fn an_update_uses_the_new_format_once_every_instance_reads_it_and_not_before() -> Result<()> {
    let mut cluster = Cluster::start(options(), SOON).await?;
    let load = start_load(&cluster, "update")?;
    let leader = cluster.leader(SOON).await?;
    // The leader in the middle, so that each release leads the other one.
    let order = [(leader + 1) % 3, leader, (leader + 2) % 3];
    for index in order {
        more(&load, BETWEEN).await?;
        assert_eq!(format(&cluster).await?, 1, "before the last one is updated");
        update(&mut cluster, index, "1").await?;
        cluster.instance(index).wait_ready(SOON).await?;
    }
    until_format(&cluster, 2).await?;
    more(&load, BETWEEN).await?;
    // While all three are those that lived through it.
    sound(load).await?;
    all_hold_the_same(&cluster).await?;

    let load = start_load(&cluster, "afterwards")?;
    // One that comes with nothing gets a snapshot of the new format.
    let fresh = order[0];
    cluster.instance(fresh).process.kill()?;
    more(&load, 2 * SNAPSHOT_EVERY).await?;
    cluster.wipe(fresh)?;
    cluster.start_one(fresh)?;
    cluster.instance(fresh).wait_ready(SOON).await?;

    // Back to the release before, which would not see what the others see.
    let back = order[2];
    update(&mut cluster, back, "").await?;
    let process = &mut cluster.instance(back).process;
    let ended = process.wait_exit(SOON).await?;
    ensure!(ended.code() == Some(65), "ended with {ended}: {}", process.log_tail());
    let said = process.log_tail();
    ensure!(said.contains("state format 2") && said.contains("reads up to 1"), "{said}");
    // With an empty directory the others do not take it in, and it says why until somebody ends it.
    cluster.wipe(back)?;
    cluster.start_one(back)?;
    let (process, deadline) = (&mut cluster.instance(back).process, Instant::now() + SOON);
    while !process.log_tail().contains("uses format 2, and this release reads 1: install the release") {
        process.ensure_running()?;
        ensure!(Instant::now() < deadline, "it does not say why it does not join: {}", process.log_tail());
        tokio::time::sleep(POLL).await;
    }
    process.terminate()?;
    process.wait_exit(SOON).await?;

    process.set_variable(NEXT_FORMAT_VARIABLE, "1");
    cluster.start_one(back)?;
    cluster.instance(back).wait_ready(SOON).await?;
    sound(load).await?;
    cluster.wait_all_ready(SOON).await?;
    all_hold_the_same(&cluster).await?;
    let alarms = cluster.alarms()?;
    ensure!(alarms.is_empty(), "{alarms:#?}");
    Ok(())
}
