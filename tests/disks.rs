//! Three instances on disks of their own, under what disks and clocks do wrong: power cuts, no room, syncs that fail or take
//! long, torn and damaged logs, and a time of day that jumps.
//!
//! Only root can mount. Each test starts itself again in a mount and a PID namespace of its own, so that whatever ends it
//! ends its mounts and processes too. Where that cannot be, it says that it is skipped; root on CI has no excuse.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use jepsen_lite::checkers::append::Anomaly;
use jepsen_lite::client::{Client, Protocol, append_until};
use jepsen_lite::clock::{self, Skew};
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::disk;
use jepsen_lite::disk::sync::lying_fsync;
use jepsen_lite::workloads::append::{self, Load};
use openclaw_config::ByteCount;
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
    eprintln!("{out}{err}");
    ensure!(output.status.success() && out.contains("1 passed"), "{name} ended with {}", output.status);
    Ok(())
}

fn options() -> Options {
    Options::new(env!("CARGO_BIN_EXE_openclaw"), 3)
}

fn session(name: &str) -> Result<SessionKey> {
    SessionKey::parse(name).context("session key")
}

fn key(text: &str) -> Result<IdempotencyKey> {
    IdempotencyKey::parse(text).context("idempotency key")
}

fn load(run: &str, cluster: &Cluster) -> Result<Load> {
    Load::start(append::Options::steady(run, SOON), &cluster.clients(Protocol::Http1, REQUEST))
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
fn planted_syncs_that_sync_nothing_are_found_by_a_power_cut() -> Result<()> {
    alone("planted_syncs_that_sync_nothing_are_found_by_a_power_cut", disk::usable, async || {
        on(options().disks(DISK), async |cluster| {
            let load = load("lies", cluster)?;
            more(&load, 20).await?;
            let mut faults = Vec::new();
            for instance in cluster.instances() {
                faults.push(lying_fsync(instance.process.pid().context("it runs")?).await?);
            }
            more(&load, 50).await?;
            cluster.power_cut(&[0, 1, 2]).await?;
            drop(faults);
            cluster.start_all()?;
            cluster.wait_all_ready(SOON).await?;
            load.progress().stop();
            let verdict = load.judge().await?;
            let lost = verdict.count(|anomaly| matches!(anomaly, Anomaly::Lost { .. }));
            assert!(lost > 0, "acknowledged and not on disk: {verdict:?}");
            Ok(())
        })
        .await
    })
}

/// More than RocksDB has allocated ahead for its write-ahead log, which is the room that a full disk still has.
async fn large_writes(clients: Vec<Client>, run: String) -> Result<()> {
    let text = "x".repeat(500_000);
    for n in 0.. {
        let (session, key) = (session(&format!("{run}-{}", n % 10))?, key(&format!("{run}-{n}"))?);
        let written = append_until(&clients, n % clients.len(), &session, &text, &key, Instant::now() + SOON).await;
        ensure!(written.is_ok(), "{written:?}");
    }
    Ok(())
}

#[test]
fn an_instance_whose_disk_is_full_ends_and_comes_back_once_there_is_room() -> Result<()> {
    alone("an_instance_whose_disk_is_full_ends_and_comes_back_once_there_is_room", disk::usable, async || {
        on(options().disks(DISK), async |cluster| {
            let load = load("full", cluster)?;
            more(&load, 50).await?;
            let leader = cluster.leader(SOON).await?;
            for full in [(leader + 1) % 3, leader] {
                cluster.fill_disk(full, 0).await?;
                let clients = cluster.clients(Protocol::Http1, REQUEST);
                let status = tokio::select! {
                    status = cluster.instance(full).process.wait_exit(SOON) => status?,
                    written = large_writes(clients, format!("large-{full}")) => panic!("{written:?}"),
                };
                let said = cluster.instance(full).process.log_tail();
                assert_eq!(status.code(), Some(70), "{said}");
                eprintln!("the next write after the end of {full}: {:?}", gap(&load).await?);
                // Without room it cannot start either. What is on the disk must not be taken for damaged.
                cluster.start_one(full)?;
                let status = cluster.instance(full).process.wait_exit(SOON).await?;
                let said = cluster.instance(full).process.log_tail();
                assert_eq!(status.code(), Some(70), "{said}");
                assert!(said.contains("No space left on device") && !said.contains("move it away"), "{said}");
                cluster.free_disk(full).await?;
                cluster.start_one(full)?;
                let ready = cluster.instance(full).wait_ready(SOON).await?;
                eprintln!("ready with room after {ready:?}");
                more(&load, 50).await?;
                let errors = lines(cluster, full, "\"error\"")?;
                assert!(errors < 30, "{errors} lines of errors");
            }
            judge(cluster, load).await
        })
        .await
    })
}

#[test]
fn an_instance_says_that_its_disk_is_nearly_full_while_it_still_serves() -> Result<()> {
    alone("an_instance_says_that_its_disk_is_nearly_full_while_it_still_serves", disk::usable, async || {
        let limited = options().disks(DISK).settings(|settings| {
            settings.diagnostics.health.min_free_bytes = ByteCount::mib(64);
        });
        on(limited, async |cluster| {
            let well = async |cluster: &Cluster, wanted: bool| {
                let address = cluster.instances()[1].http;
                let deadline = Instant::now() + SOON;
                while status(address, "/api/v1/health").await? != if wanted { 200 } else { 503 } {
                    ensure!(Instant::now() < deadline, "health is not {wanted} within {SOON:?}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                ensure!(status(address, "/api/v1/health/ready").await? == 200, "it serves");
                Ok::<_, anyhow::Error>(())
            };
            well(cluster, true).await?;
            cluster.fill_disk(1, 32 << 20).await?;
            well(cluster, false).await?;
            let load = load("nearly", cluster)?;
            more(&load, 50).await?;
            cluster.free_disk(1).await?;
            well(cluster, true).await?;
            judge(cluster, load).await
        })
        .await
    })
}

/// The status code of a question.
async fn status(address: std::net::SocketAddr, path: &str) -> Result<u16> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(REQUEST).build()?;
    Ok(client.get(format!("http://{address}{path}")).send().await?.status().as_u16())
}

#[test]
fn an_instance_whose_sync_failed_ends_before_it_acknowledges_anything() -> Result<()> {
    alone("an_instance_whose_sync_failed_ends_before_it_acknowledges_anything", disk::usable, async || {
        on(options(), async |cluster| {
            let load = load("eio", cluster)?;
            more(&load, 100).await?;
            let leader = cluster.leader(SOON).await?;
            for failing in [(leader + 1) % 3, leader] {
                let fault = cluster.failing_fsync(failing).await?;
                let attached = Instant::now();
                let status = cluster.instance(failing).process.wait_exit(SOON).await?;
                let ended = attached.elapsed();
                eprintln!("{failing} ended after {ended:?}; the next write: {:?}", gap(&load).await?);
                let said = cluster.instance(failing).process.log_tail();
                assert_eq!(status.code(), Some(70), "{said}");
                assert_eq!(lines(cluster, failing, "cannot make the log durable")?, 1, "{said}");
                let errors = lines(cluster, failing, "\"error\"")?;
                // It once proposed what waited again and again, as fast as it could, until the process had ended.
                assert!(errors < 30, "{errors} lines of errors");
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
fn slow_syncs_of_one_instance_do_not_slow_the_others() -> Result<()> {
    alone("slow_syncs_of_one_instance_do_not_slow_the_others", disk::usable, async || {
        on(options(), async |cluster| {
            let load = load("slow", cluster)?;
            more(&load, 50).await?;
            let leader = cluster.leader(SOON).await?;
            for (slow, millis) in [((leader + 1) % 3, 200), (leader, 1000)] {
                let fault = cluster.slow_fsync(slow, Duration::from_millis(millis)).await?;
                let (begin, before) = (Instant::now(), load.progress().acknowledged());
                while begin.elapsed() < Duration::from_secs(3) {
                    // The two others are a majority, also for a leader that waits for its own disk.
                    let gap = gap(&load).await?;
                    assert!(gap < Duration::from_secs(3), "no write for {gap:?}");
                }
                eprintln!("{} writes with {slow} slow by {millis} ms", load.progress().acknowledged() - before);
                fault.heal().await?;
            }
            judge(cluster, load).await
        })
        .await
    })
}

#[test]
fn a_sync_that_hangs_is_seen_while_it_hangs() -> Result<()> {
    alone("a_sync_that_hangs_is_seen_while_it_hangs", disk::usable, async || {
        on(options(), async |cluster| {
            let load = load("hang", cluster)?;
            more(&load, 50).await?;
            let hanging = (cluster.leader(SOON).await? + 1) % 3;
            let address = cluster.instances()[hanging].http;
            assert_eq!(status(address, "/api/v1/health").await?, 200);
            let fault = cluster.slow_fsync(hanging, Duration::from_secs(25)).await?;
            let deadline = Instant::now() + SOON;
            while status(address, "/api/v1/health").await? == 200 {
                assert!(Instant::now() < deadline, "nobody sees it");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert_eq!(status(address, "/readyz").await?, 200, "it serves, by the others' disks");
            fault.heal().await?;
            more(&load, 50).await?;
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
            for torn in 0..3 {
                more(&load, 50).await?;
                cluster.power_cut(&[torn]).await?;
                let what = cluster.tear_unsynced(torn, &mut rng).await?;
                cluster.start_one(torn)?;
                let ready = cluster.instance(torn).wait_ready(SOON).await.with_context(|| what.clone())?;
                eprintln!("{what}: ready after {ready:?}");
            }
            more(&load, 200).await?;
            let hit = cluster.leader(SOON).await?;
            cluster.instance(hit).process.kill()?;
            let what = cluster.damage_synced(hit, &mut rng).await?;
            cluster.start_one(hit)?;
            let status = cluster.instance(hit).process.wait_exit(SOON).await.with_context(|| what.clone())?;
            let said = cluster.instance(hit).process.log_tail();
            assert_eq!(status.code(), Some(65), "{what}: {said}");
            assert!(said.contains("lost records that were acknowledged"), "{what}: {said}");
            // As an operator does what it says.
            cluster.wipe(hit)?;
            cluster.start_one(hit)?;
            let ready = cluster.instance(hit).wait_ready(SOON).await?;
            eprintln!("{what}: wiped, and ready after {ready:?}");
            more(&load, 50).await?;
            judge(cluster, load).await
        })
        .await
    })
}

/// Unix time in milliseconds, by this process's own clock.
fn now_ms() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

#[test]
fn a_leader_whose_time_of_day_jumps_ages_nothing_and_loses_no_lease() -> Result<()> {
    alone("a_leader_whose_time_of_day_jumps_ages_nothing_and_loses_no_lease", clock::usable, async || {
        on(options().clocks(Skew::Wall), async |cluster| {
            let load = load("time", cluster)?;
            let clients = cluster.clients(Protocol::Http1, REQUEST);
            let notes = session("notes")?;
            let begin = Instant::now();
            for (n, hours) in [1, -1, 48, 0].into_iter().enumerate() {
                let leader = cluster.leader(SOON).await?;
                cluster.instance(leader).clock()?.jump(hours * 3600)?;
                more(&load, 50).await?;
                let key = key(&format!("note-{n}"))?;
                let written = append_until(&clients, leader, &notes, "x", &key, Instant::now() + SOON).await;
                assert!(written.is_ok(), "{written:?}");
                let entries = clients[leader].transcript(&notes).await?;
                let stamped = entries.last().context("an entry")?.created_ms;
                let ahead = Duration::from_millis(stamped.saturating_sub(now_ms()?));
                eprintln!("{hours} h: stamped {ahead:?} ahead");
                // Twice as fast as time passes is the fastest.
                assert!(ahead <= begin.elapsed() + Duration::from_secs(1), "{hours} h: stamped {ahead:?} ahead");
            }
            for index in 0..cluster.len() {
                assert_eq!(lines(cluster, index, "\"registered\"")?, 1, "each epoch goes on");
                assert_eq!(lines(cluster, index, "stops to act as an owner")?, 0);
            }
            judge(cluster, load).await
        })
        .await
    })
}

#[test]
fn instances_whose_clocks_run_at_different_rates_keep_their_leases() -> Result<()> {
    alone("instances_whose_clocks_run_at_different_rates_keep_their_leases", clock::usable, async || {
        let mut cluster = Cluster::prepare(options().clocks(Skew::Rate)).await?;
        for (index, rate) in [0.9, 1.0, 1.1].into_iter().enumerate() {
            cluster.instance(index).clock()?.run_at(rate)?;
        }
        cluster.start_all()?;
        cluster.wait_all_ready(SOON).await?;
        let load = load("rate", &cluster)?;
        more(&load, 50).await?;
        // Longer than the time that a leader waits before it ends an epoch.
        tokio::time::sleep(Duration::from_secs(5)).await;
        for index in 0..cluster.len() {
            assert_eq!(lines(&cluster, index, "\"registered\"")?, 1, "each epoch goes on");
            assert_eq!(lines(&cluster, index, "stops to act as an owner")?, 0);
        }
        judge(&mut cluster, load).await
    })
}
