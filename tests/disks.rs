//! Three instances on disks of their own, under what disks and clocks do wrong: power cuts, no room, syncs that fail or take
//! long, torn and damaged logs, and a time of day that jumps.
//!
//! Only root can mount. Each test starts itself again in a mount and a PID namespace of its own, so that whatever ends it
//! ends its mounts and processes too. Where that cannot be, it says that it is skipped; root on CI has no excuse.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jepsen_lite::client::{Client, Protocol, append_until};
use jepsen_lite::clock::{self, Skew};
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::disk;
use jepsen_lite::workloads::append::{self, Load};
use openclaw_proto::ids::{IdempotencyKey, SessionKey};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// For anything that ends by itself.
const SOON: Duration = Duration::from_secs(40);
/// Time limit of one request.
const REQUEST: Duration = Duration::from_secs(10);
/// Sparse, so it costs what is written.
const DISK: u64 = 256 << 20;
/// Set in the namespaces.
const INSIDE: &str = "OPENCLAW_TEST_INSIDE";
const NAMESPACES: [&str; 5] = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Runs `test`, which is named `name`, in namespaces of its own.
fn alone(name: &str, usable: fn() -> Result<()>, test: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(test());
    }
    let is_root = std::fs::metadata("/proc/self")?.uid() == 0;
    let isolated = || {
        let tried = Command::new("unshare").args(NAMESPACES).arg("true").stderr(Stdio::null()).status();
        ensure!(tried.context("start unshare, of the package util-linux")?.success(), "no namespaces can be had here");
        Ok(())
    };
    if let Err(why) = usable().and_then(|()| isolated()) {
        ensure!(!is_root || std::env::var_os("CI").is_none(), "{name} must run on CI, but: {why:#}");
        eprintln!("skipped {name}: {why:#}");
        return Ok(());
    }
    let output = Command::new("unshare")
        .args(NAMESPACES)
        .arg(std::env::current_exe()?)
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}{err}");
    ensure!(output.status.success() && out.contains("1 passed"), "{name} ended with {}", output.status);
    Ok(())
}

fn options() -> Options {
    Options::new(std::env::var("OLD_BIN").unwrap_or(env!("CARGO_BIN_EXE_openclaw").to_owned()), 3)
}

fn session(name: &str) -> Result<SessionKey> {
    SessionKey::parse(name).context("session key")
}

fn key(text: &str) -> Result<IdempotencyKey> {
    IdempotencyKey::parse(text).context("idempotency key")
}

/// Clients that append until they are told to stop, and ask another instance when one is slow.
fn load(run: &str, cluster: &Cluster) -> Result<Load> {
    let options = append::Options {
        run: run.to_owned(),
        clients: 8,
        sessions: 4,
        appends: None,
        attempt_ms: 900..1100,
        give_up: SOON,
        pause: Duration::ZERO,
        repeat_one_in: 20,
        seed: 1,
    };
    Load::start(options, &cluster.clients(Protocol::Http1, REQUEST))
}

/// Waits for so many more writes.
async fn more(load: &Load, writes: u64) -> Result<()> {
    let progress = load.progress();
    progress.reached(progress.acknowledged() + writes, SOON).await
}

/// The time from now to the first write that is sent and acknowledged after it.
async fn gap(load: &Load) -> Result<Duration> {
    let mark = load.progress().mark();
    let first = tokio::time::timeout(SOON, load.progress().first_after_mark()).await.context("no write any more")?;
    Ok(first - mark)
}

/// Ends the load: nothing acknowledged may be missing, doubled or out of order, on any instance.
async fn judge(cluster: &mut Cluster, load: Load) -> Result<()> {
    cluster.wait_all_ready(SOON).await?;
    load.progress().stop();
    let verdict = load.judge().await?;
    ensure!(verdict.anomalies.is_empty(), "{:#?}", verdict.anomalies);
    let alarms = cluster.alarms()?;
    ensure!(alarms.is_empty(), "{alarms:#?}");
    Ok(())
}

/// How often an instance's log has a line with `text`.
fn lines(cluster: &Cluster, index: usize, text: &str) -> Result<usize> {
    let log = std::fs::read_to_string(&cluster.instances()[index].process.program().log)?;
    Ok(log.lines().filter(|line| line.contains(text)).count())
}

/// Leaves the logs of a failed test where they are.
async fn on(options: Options, test: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut cluster = Cluster::start(options, SOON).await?;
    let result = test(&mut cluster).await;
    if result.is_err() {
        cluster.keep();
    }
    result
}

#[test]
fn a_power_cut_loses_what_was_not_synced_and_nothing_else() -> Result<()> {
    alone("a_power_cut_loses_what_was_not_synced_and_nothing_else", disk::usable, async || {
        use std::io::Write;
        let directory = tempfile::tempdir()?;
        let mount_point = directory.path().join("data");
        let mut disk = disk::Disk::create(&directory.path().join("disk"), &mount_point, 64 << 20).await?;
        let (kept, lost) = (mount_point.join("kept"), mount_point.join("lost"));
        let mut file = std::fs::File::create(&kept)?;
        file.write_all(&[1; 10_000])?;
        file.sync_all()?;
        file.write_all(&[2; 10_000])?;
        std::fs::write(&lost, [3; 10_000])?;
        disk.cut_power().await?;
        assert!(std::fs::write(mount_point.join("after"), "x").is_err(), "the disk is gone");
        assert!(file.sync_all().is_err());
        drop(file);
        disk.restore_power().await?;
        assert_eq!(std::fs::read(&kept)?, [1; 10_000]);
        assert!(!lost.exists());
        disk.fill(1 << 20)?;
        let left = disk.free_bytes()?;
        assert!(left <= 1 << 20 && left > 900 << 10, "{left} bytes are left");
        assert!(std::fs::write(&lost, vec![0; 2 << 20]).is_err());
        disk.free()?;
        std::fs::write(&lost, vec![0; 2 << 20])?;
        disk.unmount().await?;
        assert!(!lost.exists());
        Ok(())
    })
}

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut_of_one_the_leader_or_all() -> Result<()> {
    alone("nothing_acknowledged_is_lost_by_a_power_cut_of_one_the_leader_or_all", disk::usable, async || {
        on(options().disks(DISK), async |cluster| {
            let load = load("power", cluster)?;
            more(&load, 100).await?;
            let leader = cluster.leader(SOON).await?;
            for cut in [vec![(leader + 1) % 3], vec![leader], vec![0, 1, 2]] {
                cluster.power_cut(&cut).await?;
                let started = Instant::now();
                cluster.start_all()?;
                cluster.wait_all_ready(SOON).await?;
                eprintln!("power cut of {cut:?}: ready after {:?}", started.elapsed());
                more(&load, 100).await?;
            }
            judge(cluster, load).await
        })
        .await
    })
}

#[test]
fn an_instance_whose_disk_is_full_ends_and_comes_back_once_there_is_room() -> Result<()> {
    alone("an_instance_whose_disk_is_full_ends_and_comes_back_once_there_is_room", disk::usable, async || {
        on(options().disks(DISK), async |cluster| {
            let load = load("full", cluster)?;
            more(&load, 100).await?;
            let leader = cluster.leader(SOON).await?;
            for full in [(leader + 1) % 3, leader] {
                cluster.fill_disk(full, 0).await?;
                let filled = Instant::now();
                let status = loop {
                    match cluster.instance(full).process.wait_exit(Duration::from_millis(500)).await {
                        Ok(status) => break status,
                        Err(_) => {
                            ensure!(filled.elapsed() < SOON, "{} neither ends nor needs room", full);
                            eprintln!("{:?} acknowledged {}", filled.elapsed(), load.progress().acknowledged());
                        }
                    }
                };
                eprintln!("full disk of {full}: {status} after {:?}, gap {:?}", filled.elapsed(), gap(&load).await?);
                assert_eq!(status.code(), Some(70), "{}", cluster.instance(full).process.log_tail());
                // Without room it cannot start, and says what it lacks; what is on the disk is not taken for damaged.
                cluster.start_one(full)?;
                let status = cluster.instance(full).process.wait_exit(SOON).await?;
                let said = cluster.instance(full).process.log_tail();
                assert_eq!(status.code(), Some(70), "{said}");
                assert!(said.contains("No space left on device"), "{said}");
                cluster.free_disk(full).await?;
                cluster.start_one(full)?;
                let ready = cluster.instance(full).wait_ready(SOON).await?;
                eprintln!("ready after {ready:?}; {} lines of errors", lines(cluster, full, "\"error\"")?);
                more(&load, 100).await?;
            }
            judge(cluster, load).await
        })
        .await
    })
}

#[test]
fn an_instance_whose_sync_failed_ends() -> Result<()> {
    alone("an_instance_whose_sync_failed_ends", disk::usable, async || {
        on(options(), async |cluster| {
            let load = load("eio", cluster)?;
            more(&load, 100).await?;
            let leader = cluster.leader(SOON).await?;
            for failing in [(leader + 1) % 3, leader] {
                let begin = Instant::now();
                let fault = cluster.failing_fsync(failing).await?;
                eprintln!("attached after {:?}", begin.elapsed());
                let status = cluster.instance(failing).process.wait_exit(SOON).await?;
                eprintln!(
                    "ended after {:?}, gap {:?}, {} lines of errors",
                    begin.elapsed(),
                    gap(&load).await?,
                    lines(cluster, failing, "\"error\"")?
                );
                let said = cluster.instance(failing).process.log_tail();
                assert_eq!(status.code(), Some(70), "{said}");
                assert!(said.contains("cannot make the log durable"), "{said}");
                fault.heal().await?;
                cluster.start_one(failing)?;
                cluster.instance(failing).wait_ready(SOON).await?;
                more(&load, 100).await?;
            }
            judge(cluster, load).await
        })
        .await
    })
}

#[test]
fn slow_syncs_of_one_instance_hold_the_others_up_for_a_moment_at_most() -> Result<()> {
    alone("slow_syncs_of_one_instance_hold_the_others_up_for_a_moment_at_most", disk::usable, async || {
        on(options(), async |cluster| {
            let load = load("slow", cluster)?;
            more(&load, 100).await?;
            let leader = cluster.leader(SOON).await?;
            for (slow, delay) in [((leader + 1) % 3, 200), ((leader + 1) % 3, 1000), (leader, 200), (leader, 1000)] {
                let before = load.progress().acknowledged();
                let fault = cluster.slow_fsync(slow, Duration::from_millis(delay)).await?;
                let gap1 = gap(&load).await?;
                tokio::time::sleep(Duration::from_secs(3)).await;
                let after = load.progress().acknowledged();
                let gap2 = gap(&load).await?;
                let now = cluster.leader(SOON).await?;
                fault.heal().await?;
                eprintln!(
                    "slow {slow} by {delay} ms, leader {leader} -> {now}: {} writes in 3 s, gaps {gap1:?} {gap2:?}",
                    after - before
                );
                more(&load, 50).await?;
            }
            judge(cluster, load).await
        })
        .await
    })
}

#[test]
fn a_torn_tail_is_dropped_and_damage_to_what_was_synced_is_refused() -> Result<()> {
    alone("a_torn_tail_is_dropped_and_damage_to_what_was_synced_is_refused", disk::usable, async || {
        on(options().disks(DISK), async |cluster| {
            let mut rng = StdRng::seed_from_u64(7);
            let load = load("tail", cluster)?;
            more(&load, 100).await?;
            for round in 0..3 {
                let torn = round % 3;
                cluster.power_cut(&[torn]).await?;
                let what = cluster.tear_unsynced(torn, &mut rng).await?;
                cluster.start_one(torn)?;
                let ready = cluster.instance(torn).wait_ready(SOON).await?;
                eprintln!("{what}: ready after {ready:?}");
                more(&load, 100).await?;
            }
            for hit in 0..2 {
                more(&load, 200).await?;
                cluster.instance(hit).process.kill()?;
                let what = cluster.damage_synced(hit, &mut rng).await?;
                cluster.start_one(hit)?;
                let status = cluster.instance(hit).process.wait_exit(SOON).await.with_context(|| what.clone())?;
                let said = cluster.instance(hit).process.log_tail();
                eprintln!("{what}: {status}: {}", said.lines().last().unwrap_or_default());
                assert_eq!(status.code(), Some(65), "{what}: {said}");
                assert!(said.contains("joins as a new member"), "{what}: {said}");
                cluster.wipe(hit)?;
                cluster.start_one(hit)?;
                let ready = cluster.instance(hit).wait_ready(SOON).await?;
                eprintln!("wiped: ready after {ready:?}");
            }
            judge(cluster, load).await
        })
        .await
    })
}

#[test]
fn a_time_of_day_that_jumps_by_days_ages_nothing_and_costs_no_lease() -> Result<()> {
    alone("a_time_of_day_that_jumps_by_days_ages_nothing_and_costs_no_lease", clock::usable, async || {
        on(options().clocks(Skew::Wall), async |cluster| {
            let load = load("time", cluster)?;
            more(&load, 100).await?;
            let clients: Vec<Client> = cluster.clients(Protocol::Http1, REQUEST);
            let notes = session("notes")?;
            for (n, seconds) in [3600, -3600, 48 * 3600, 0].into_iter().enumerate() {
                let leader = cluster.leader(SOON).await?;
                cluster.instance(leader).clock()?.jump(seconds)?;
                more(&load, 100).await?;
                let text = format!("after {seconds}");
                let written =
                    append_until(&clients, leader, &notes, &text, &key(&format!("n{n}"))?, Instant::now() + SOON).await;
                assert!(written.is_ok(), "{written:?}");
                let entries = clients[leader].transcript(&notes).await?;
                let at = entries.last().context("an entry")?.created_ms;
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as i64;
                eprintln!(
                    "jump of {leader} by {seconds}: stamped {} ms ahead; leader {}",
                    at as i64 - now,
                    cluster.leader(SOON).await?
                );
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
            for index in 0..3 {
                eprintln!(
                    "{index}: registered {}, epoch over {}, silent {}",
                    lines(cluster, index, "\"registered\"")?,
                    lines(cluster, index, "epoch is over")?,
                    lines(cluster, index, "fell silent")?
                );
            }
            judge(cluster, load).await
        })
        .await
    })
}
