//! Does the faults of a schedule to a cluster, and undoes them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::time::sleep;

use super::Kind;
use super::schedule::Step;
use crate::client::Reply;
use crate::cluster::Cluster;

/// How long a leader is waited for when a fault is meant for it.
const LEADER: Duration = Duration::from_secs(10);
/// Within one phase of flapping the leader is connected or not for so long.
const FLAP: Duration = Duration::from_millis(150);
/// Instances that were asked to end, or to start, do so in this time.
const RESTART: Duration = Duration::from_secs(60);
/// Between two moves of leadership.
const MOVE: Duration = Duration::from_millis(300);
const SLOW_MS: std::ops::RangeInclusive<u64> = 20..=100;

/// What became of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injected {
    /// It is in force, or was and is over; it is described.
    Installed(String),
    /// It could not be: nothing was done.
    Skipped(String),
}

/// Does one fault. Those that are over when they are done - a rolling restart, say - take the time that `step` gives them, or
/// what they need; the others stay in force until [`heal`], and `in_force` is called when they begin to be.
///
/// # Errors
/// When the harness fails: a process that cannot be signalled, an instance that does not start again.
pub async fn inject(cluster: &mut Cluster, step: &Step, in_force: impl FnOnce()) -> Result<Injected> {
    let count = cluster.len();
    let chosen = usize::try_from(step.choice % count as u64).unwrap_or(0);
    let until = Instant::now() + step.lasts();
    if count < 2 && !matches!(step.kind, Kind::KillOne | Kind::KillAll | Kind::PauseOne) {
        return Ok(Injected::Skipped("there is one instance only".to_owned()));
    }
    let target = match step.kind {
        Kind::KillLeader | Kind::PauseLeader | Kind::IsolateLeader | Kind::Flap => match cluster.leader(LEADER).await {
            Ok(leader) => leader,
            Err(error) => return Ok(Injected::Skipped(format!("{error:#}"))),
        },
        Kind::KillOne
        | Kind::KillMajority
        | Kind::KillAll
        | Kind::PauseOne
        | Kind::IsolateOne
        | Kind::Halves
        | Kind::Ring
        | Kind::Link
        | Kind::Mute
        | Kind::Deaf
        | Kind::Slow
        | Kind::RollingRestart
        | Kind::MoveLeadership => chosen,
    };
    let name = cluster.instance(target).id.to_string();
    let next = (target + 1) % count;
    let others = || (0..count).filter(move |other| *other != target);
    let done = match step.kind {
        Kind::KillOne | Kind::KillLeader => {
            cluster.instance(target).process.kill()?;
            name
        }
        Kind::KillMajority => {
            let killed: Vec<usize> = (0..count / 2 + 1).map(|offset| (target + offset) % count).collect();
            for index in &killed {
                cluster.instance(*index).process.send_kill()?;
            }
            for index in &killed {
                cluster.instance(*index).process.reap()?;
            }
            format!("{} of {count}, from {name} on", killed.len())
        }
        Kind::KillAll => {
            cluster.kill_all()?;
            "all".to_owned()
        }
        Kind::PauseOne | Kind::PauseLeader => {
            cluster.instance(target).process.pause()?;
            name
        }
        Kind::IsolateOne | Kind::IsolateLeader => {
            cluster.network()?.isolate(target)?;
            name
        }
        Kind::Halves => {
            let minority: Vec<usize> = (0..(count - 1) / 2).map(|offset| (target + offset) % count).collect();
            let mut pairs = Vec::new();
            for inside in &minority {
                for outside in (0..count).filter(|other| !minority.contains(other)) {
                    pairs.extend([(*inside, outside), (outside, *inside)]);
                }
            }
            cluster.network()?.cut_all(&pairs)?;
            format!("{} of {count}, from {name} on", minority.len())
        }
        Kind::Ring => {
            let network = cluster.network()?;
            // Of three, one bridges the two others; of five, each sees its two neighbours.
            for a in 0..count {
                for b in a + 2..count {
                    if (b + 1) % count != a {
                        network.cut((a + target) % count, (b + target) % count)?;
                    }
                }
            }
            if count == 3 {
                network.cut(target, next)?;
            }
            format!("around {name}")
        }
        Kind::Link => {
            cluster.network()?.cut(target, next)?;
            format!("{name} and {}", cluster.instance(next).id)
        }
        Kind::Mute => {
            let network = cluster.network()?;
            network.cut_all(&others().map(|other| (target, other)).collect::<Vec<_>>())?;
            name
        }
        Kind::Deaf => {
            let network = cluster.network()?;
            network.cut_all(&others().map(|other| (other, target)).collect::<Vec<_>>())?;
            name
        }
        Kind::Flap => {
            let mut times = 0;
            while Instant::now() < until {
                cluster.network()?.isolate(target)?;
                sleep(FLAP).await;
                cluster.network()?.heal()?;
                sleep(FLAP).await;
                times += 1;
            }
            format!("{name}, {times} times")
        }
        Kind::Slow => {
            let network = cluster.network()?;
            let span = SLOW_MS.end() - SLOW_MS.start() + 1;
            let delay = Duration::from_millis(SLOW_MS.start() + step.choice / 7 % span);
            for from in 0..count {
                (0..count).filter(|to| *to != from).try_for_each(|to| network.delay(from, to, delay))?;
            }
            format!("by {delay:?}")
        }
        Kind::RollingRestart => {
            for offset in 0..count {
                let index = (target + offset) % count;
                cluster.instance(index).process.terminate()?;
                let status = cluster.instance(index).process.wait_exit(RESTART).await?;
                ensure!(status.success(), "{} ended with {status}", cluster.instance(index).id);
                cluster.start_one(index)?;
                cluster.instance(index).wait_ready(RESTART).await?;
            }
            format!("all, from {name} on")
        }
        Kind::MoveLeadership => {
            let mut moves = 0;
            let mut to = target;
            while Instant::now() < until {
                let id = cluster.instance(to).id.to_string();
                for instance in cluster.instances() {
                    if let Reply::Ok(_) = instance.client().transfer_leader(&id).await {
                        moves += 1;
                        break;
                    }
                }
                to = (to + 1) % count;
                sleep(MOVE).await;
            }
            if moves == 0 {
                return Ok(Injected::Skipped("no instance took the leadership".to_owned()));
            }
            format!("{moves} times")
        }
    };
    let left = until.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        in_force();
    }
    sleep(left).await;
    Ok(Injected::Installed(done))
}

/// Undoes every fault: links are open, and whatever was stopped goes on or starts again.
///
/// # Errors
/// When an instance cannot be started.
pub fn heal(cluster: &mut Cluster) -> Result<()> {
    cluster.network().context("faults need a network between instances")?.heal()?;
    for index in 0..cluster.len() {
        if cluster.instance(index).process.is_paused() {
            cluster.instance(index).process.resume()?;
        }
    }
    cluster.start_all()
}
