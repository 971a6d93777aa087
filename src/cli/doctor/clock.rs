//! Clocks: this machine's against the other instances', and whether its own go on together.

use std::time::{Duration, SystemTime};

use futures::future::join_all;
use nix::time::{ClockId, clock_gettime};

use super::{Finding, Patient};

/// A `Date` header has whole seconds.
const STAMP: Duration = Duration::from_secs(1);
/// From here on what people and platforms see of time is wrong.
const APART: Duration = Duration::from_secs(3);
/// From here on certificates, retention and maximum ages are decided wrongly.
const FAR_APART: Duration = Duration::from_secs(60);
/// How long the clocks of this machine are compared, and how far they may drift apart meanwhile.
const LOOK: Duration = Duration::from_millis(300);
const STEP: Duration = Duration::from_millis(50);

pub(super) struct Clocks {
    peers: Vec<Peer>,
    /// How far each clock of this machine went in the same time.
    real: i128,
    monotonic: i128,
    boot: i128,
}

struct Peer {
    instance: String,
    /// Milliseconds that its clock is ahead, and by how much that may be wrong.
    ahead: Result<(i64, Duration), String>,
}

pub(super) async fn measure(patient: &Patient) -> Clocks {
    let others = patient.cluster.iter().flat_map(|cluster| &cluster.members);
    let others =
        others.filter(|member| member.instance_id != patient.instance.as_str() && !member.http_addr.is_empty());
    let http = reqwest::Client::builder().no_proxy().connect_timeout(patient.timeout).timeout(patient.timeout).build();
    let asking = others.map(|member| {
        let (instance, http) = (member.instance_id.clone(), http.as_ref().map_err(ToString::to_string));
        let url = format!("http://{}/api/v1/health/live", member.http_addr);
        async move {
            let ahead = match http {
                Ok(http) => ask(http, &url).await,
                Err(error) => Err(error),
            };
            Peer { instance, ahead }
        }
    });
    let (peers, (real, monotonic, boot)) = tokio::join!(join_all(asking), own());
    Clocks { peers, real, monotonic, boot }
}

async fn own() -> (i128, i128, i128) {
    let read =
        |clock| clock_gettime(clock).map_or(0, |at| i128::from(at.tv_sec()) * 1_000_000_000 + i128::from(at.tv_nsec()));
    let all = || [ClockId::CLOCK_REALTIME, ClockId::CLOCK_MONOTONIC, ClockId::CLOCK_BOOTTIME].map(read);
    let before = all();
    tokio::time::sleep(LOOK).await;
    let after = all();
    (after[0] - before[0], after[1] - before[1], after[2] - before[2])
}

async fn ask(http: &reqwest::Client, url: &str) -> Result<(i64, Duration), String> {
    let before = SystemTime::now();
    let response = http.get(url).send().await.map_err(|error| crate::cli::client::causes(&error))?;
    let after = SystemTime::now();
    let header = response.headers().get(reqwest::header::DATE).and_then(|value| value.to_str().ok());
    let date = header.and_then(|text| httpdate::parse_http_date(text).ok()).ok_or("its answer has no Date header")?;
    let ms = |at: SystemTime| {
        at.duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    };
    // In the middle of the second that it names, and of the question.
    let ahead = ms(date) + 500 - i64::midpoint(ms(before), ms(after));
    let took = after.duration_since(before).unwrap_or_default();
    Ok((ahead, STAMP / 2 + took / 2))
}

pub(super) fn judge(clocks: &Clocks) -> Vec<Finding> {
    let mut findings = vec![own_clocks(clocks)];
    if clocks.peers.is_empty() {
        findings.push(Finding::skipped("clock", "no other instance is known to compare with"));
    }
    findings.extend(clocks.peers.iter().map(against));
    findings
}

fn own_clocks(clocks: &Clocks) -> Finding {
    const CHECK: &str = "own clocks";
    let apart = |a: i128, b: i128| Duration::from_nanos(u64::try_from((a - b).unsigned_abs()).unwrap_or(u64::MAX));
    let stepped = apart(clocks.real, clocks.monotonic);
    if stepped > STEP {
        return Finding::warning(
            CHECK,
            format!("the time of day moved {stepped:.0?} against the monotonic clock within {LOOK:?}"),
            "something sets the clock: let one time service slew it (chrony, systemd-timesyncd)",
        );
    }
    if apart(clocks.boot, clocks.monotonic) > STEP {
        return Finding::warning(
            CHECK,
            "this machine was suspended just now",
            "an instance on a machine that sleeps loses its leases each time: keep it awake",
        );
    }
    Finding::ok(CHECK, "they go on together")
}

fn against(peer: &Peer) -> Finding {
    const CHECK: &str = "clock";
    const SET: &str = "run a time service on every instance's machine (chrony, systemd-timesyncd)";
    let Peer { instance, ahead } = peer;
    let (ahead, within) = match ahead {
        Ok(found) => *found,
        // Whether it can be reached is for the peers' own check to judge.
        Err(error) => return Finding::skipped(CHECK, format!("{instance} cannot be compared with: {error}")),
    };
    let apart = Duration::from_millis(ahead.unsigned_abs()).saturating_sub(within);
    let word = if ahead < 0 { "behind" } else { "ahead of" };
    let saw = format!(
        "{instance} is {:.1} s {word} this machine (within {:.1} s)",
        ahead.abs() as f64 / 1e3,
        within.as_secs_f64()
    );
    match apart {
        apart if apart >= FAR_APART => Finding::problem(CHECK, saw, SET),
        apart if apart >= APART => Finding::warning(CHECK, saw, SET),
        _ => Finding::ok(
            CHECK,
            format!("{instance} agrees within {:.1} s", within.as_secs_f64().max(ahead.abs() as f64 / 1e3)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const MS: i128 = 1_000_000;

    fn levels(clocks: &Clocks) -> Vec<Level> {
        judge(clocks).into_iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn clocks_that_go_on_together_are_right() {
        let clocks = |real, monotonic, boot| Clocks { peers: Vec::new(), real, monotonic, boot };
        assert_eq!(levels(&clocks(300 * MS, 301 * MS, 301 * MS)), [Level::Ok, Level::Skipped]);
        assert_eq!(levels(&clocks(-9000 * MS, 301 * MS, 301 * MS))[0], Level::Warning);
        assert_eq!(levels(&clocks(301 * MS, 301 * MS, 9000 * MS))[0], Level::Warning);
    }

    #[test]
    fn how_far_apart_is_judged_less_what_is_not_known() {
        let with = |ahead| {
            let ahead: Result<_, String> = ahead;
            against(&Peer { instance: "node-2".into(), ahead: ahead.map(|ms| (ms, Duration::from_millis(600))) })
        };
        assert_eq!(with(Ok(-500)).level, Level::Ok);
        assert_eq!(with(Ok(3500)).level, Level::Ok);
        assert_eq!(with(Ok(-3700)).level, Level::Warning);
        assert_eq!(with(Ok(-3700)).saw, "node-2 is 3.7 s behind this machine (within 0.6 s)");
        assert_eq!(with(Ok(90_000)).level, Level::Problem);
        assert_eq!(with(Err("refused".into())).level, Level::Skipped);
    }
}
