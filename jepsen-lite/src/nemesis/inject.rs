//! Does the faults of a schedule to a cluster, and undoes them.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use super::Kind;
use super::schedule::Step;
use crate::client::Reply;
use crate::cluster::Cluster;
use crate::disk::SyncFault;
use crate::lab::Shape;

/// How long a leader is waited for when a fault is meant for it.
const LEADER: Duration = Duration::from_secs(10);
/// Within one phase of flapping the leader is connected or not for so long.
const FLAP: Duration = Duration::from_millis(150);
/// Instances that were asked to end, or to start, do so in this time.
const RESTART: Duration = Duration::from_secs(60);
/// Between two moves of leadership.
const MOVE: Duration = Duration::from_millis(300);
/// How often an instance is looked at that starts or ends.
const LOOK: Duration = Duration::from_millis(10);
/// There and back it is less than the shortest election timeout (150 ms): over links that take longer a leader stays, but none is
/// ever elected.
const SLOW_MS: std::ops::RangeInclusive<u64> = 20..=50;
const SLOW_SYNC_MS: std::ops::RangeInclusive<u64> = 50..=500;
const JUMP_SECONDS: std::ops::RangeInclusive<i64> = 60..=3600;
/// Exit code of an instance whose data directory is damaged, and of one that cannot go on.
const DAMAGED: i32 = 65;
const STOPPED: i32 = 70;

/// What became of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injected {
    /// It is in force, or was and is over; it is described.
    Installed(String),
    /// It could not be: nothing was done.
    Skipped(String),
    /// An instance did what it must not.
    Wrong(String),
}

/// When a fault has its effect, and how long from then on.
struct Effect<'a> {
    in_force: &'a mut (dyn FnMut() + Send),
    since: Instant,
    lasts: Duration,
}

impl Effect<'_> {
    fn begins(&mut self) {
        (self.in_force)();
        self.since = Instant::now();
    }

    fn until(&self) -> Instant {
        self.since + self.lasts
    }
}

/// Breaks a cluster and mends it.
#[derive(Debug, Default)]
pub struct Nemesis {
    /// Processes whose syncs are slow or fail.
    syncs: Vec<SyncFault>,
    full: Vec<usize>,
    /// Whose disk was full in the fault that was healed last: what it met then may end it a little later.
    freed: Vec<usize>,
    jumped: Vec<usize>,
}

impl Nemesis {
    /// Does one fault, or one beside another. Those that are over when they are done - a rolling restart, say - take the
    /// time that `step` gives them, or what they need; the others stay in force until [`Self::heal`]. `in_force` is called at the
    /// moment from which on each of them has its effect, which may be long after a leader began to be looked for.
    ///
    /// What an instance must not do, such as not to start again, is [`Injected::Wrong`]. So is the end of one that the fault was
    /// meant for, just before it came.
    ///
    /// # Errors
    /// When the harness fails.
    pub async fn inject(
        &mut self,
        cluster: &mut Cluster,
        step: &Step,
        mut in_force: impl FnMut() + Send,
    ) -> Result<Injected> {
        let mut effect = Effect { in_force: &mut in_force, since: Instant::now(), lasts: step.lasts() };
        let mut rng = StdRng::seed_from_u64(step.choice);
        let mut beside = String::new();
        self.freed.clear();
        if let Some(kind) = step.beside {
            match self.begin(cluster, kind, &mut effect, &mut rng).await? {
                Injected::Installed(what) => beside = format!("; beside it {}: {what}", kind.name()),
                Injected::Skipped(why) => beside = format!("; not beside it {}: {why}", kind.name()),
                wrong @ Injected::Wrong(_) => return Ok(wrong),
            }
        }
        Ok(match self.begin(cluster, step.kind, &mut effect, &mut rng).await? {
            Injected::Installed(what) => {
                sleep(effect.until().saturating_duration_since(Instant::now())).await;
                Injected::Installed(what + &beside)
            }
            other @ (Injected::Skipped(_) | Injected::Wrong(_)) => other,
        })
    }

    /// Instances that ended since the last look, though nothing that was done to them lets them.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn ended(&self, cluster: &mut Cluster) -> Result<Vec<String>> {
        let may = |index: usize, status: ExitStatus| {
            status.code() == Some(STOPPED) && (self.full.contains(&index) || self.freed.contains(&index))
        };
        let ended = cluster.take_ended_by_themselves()?;
        let wrong = ended.into_iter().filter(|(index, status)| !may(*index, *status));
        Ok(wrong.map(|(index, status)| format!("{} ended by itself ({status})", name(cluster, index))).collect())
    }

    /// Undoes every fault: links are open, and whatever was stopped goes on or starts again. Returns which instances had ended
    /// though they must not; they start again too.
    ///
    /// # Errors
    /// When something cannot be undone.
    pub async fn heal(&mut self, cluster: &mut Cluster) -> Result<Vec<String>> {
        cluster.network().context("faults need a network between instances")?.heal()?;
        for fault in self.syncs.drain(..) {
            fault.heal().await?;
        }
        for index in self.full.drain(..) {
            cluster.free_disk(index).await?;
            self.freed.push(index);
        }
        for index in self.jumped.drain(..) {
            cluster.instance(index).clock()?.reset()?;
        }
        for index in 0..cluster.len() {
            let process = &mut cluster.instance(index).process;
            if process.is_paused() && process.is_running()? {
                process.resume()?;
            }
        }
        let ended = self.ended(cluster)?;
        cluster.start_all()?;
        Ok(ended)
    }

    /// [`Self::do_one`], where a failure that comes of an instance which ended by itself is what that instance did.
    async fn begin(
        &mut self,
        cluster: &mut Cluster,
        kind: Kind,
        effect: &mut Effect<'_>,
        rng: &mut StdRng,
    ) -> Result<Injected> {
        match self.do_one(cluster, kind, effect, rng).await {
            Ok(injected) => Ok(injected),
            Err(error) => match self.ended(cluster)?.as_slice() {
                [] => Err(error),
                ended => Ok(Injected::Wrong(format!("{}; so that {error:#}", ended.join(", ")))),
            },
        }
    }

    async fn do_one(
        &mut self,
        cluster: &mut Cluster,
        kind: Kind,
        effect: &mut Effect<'_>,
        rng: &mut StdRng,
    ) -> Result<Injected> {
        let count = cluster.len();
        if count < kind.least_instances() {
            return Ok(Injected::Skipped(format!("it needs {} instances", kind.least_instances())));
        }
        let chosen = rng.random_range(0..count);
        let leader = [Kind::KillLeader, Kind::PauseLeader, Kind::IsolateLeader, Kind::Flap];
        let target = if leader.contains(&kind) {
            match cluster.leader(LEADER).await {
                Ok(leader) => leader,
                Err(error) => return Ok(Injected::Skipped(format!("{error:#}"))),
            }
        } else {
            chosen
        };
        let done = match kind {
            Kind::KillOne | Kind::KillLeader => {
                kill(cluster, &[target], effect)?;
                name(cluster, target)
            }
            Kind::KillMajority => {
                // From one on: what they do last must not depend on who dies first.
                let killed: Vec<usize> = (0..count / 2 + 1).map(|offset| (target + offset) % count).collect();
                kill(cluster, &killed, effect)?;
                format!("{} of {count}, from {} on", killed.len(), name(cluster, target))
            }
            Kind::KillAll => {
                kill(cluster, &(0..count).collect::<Vec<_>>(), effect)?;
                "all".to_owned()
            }
            Kind::PauseOne | Kind::PauseLeader => {
                cluster.instance(target).process.pause()?;
                effect.begins();
                name(cluster, target)
            }
            Kind::IsolateOne | Kind::IsolateLeader => {
                cluster.network()?.isolate(target)?;
                effect.begins();
                name(cluster, target)
            }
            Kind::Halves => {
                let minority: Vec<usize> = (0..(count - 1) / 2).map(|offset| (target + offset) % count).collect();
                cluster.network()?.cut_all(&between(&minority, count))?;
                effect.begins();
                format!("{} of {count}, from {} on", minority.len(), name(cluster, target))
            }
            Kind::Ring => {
                cluster.network()?.cut_all(&ring(count, target))?;
                effect.begins();
                format!("around {}", name(cluster, target))
            }
            Kind::Link => {
                let next = (target + 1) % count;
                cluster.network()?.cut(target, next)?;
                effect.begins();
                format!("{} and {}", name(cluster, target), name(cluster, next))
            }
            Kind::Mute | Kind::Deaf => {
                let others = (0..count).filter(|other| *other != target);
                let pair = |other| if kind == Kind::Mute { (target, other) } else { (other, target) };
                cluster.network()?.cut_all(&others.map(pair).collect::<Vec<_>>())?;
                effect.begins();
                name(cluster, target)
            }
            Kind::CutClients => {
                cluster.network()?.cut_clients(target)?;
                effect.begins();
                name(cluster, target)
            }
            Kind::Slow | Kind::Rough => {
                let how = reshape(cluster, kind, rng)?;
                effect.begins();
                how
            }
            Kind::Flap => flap(cluster, target, effect).await?,
            Kind::RollingRestart => return rolling_restart(cluster, target, effect).await,
            Kind::MoveLeadership => return move_leadership(cluster, target, effect).await,
            Kind::WipeOne => {
                kill(cluster, &[target], effect)?;
                if let Some(wrong) = begin_anew(cluster, target).await? {
                    return Ok(wrong);
                }
                name(cluster, target)
            }
            Kind::ReplaceOne => return replace(cluster, target, effect).await,
            Kind::TornLog => {
                kill(cluster, &[target], effect)?;
                let what = cluster.tear_unsynced(target, rng).await?;
                cluster.start_one(target)?;
                if let Err(error) = cluster.instance(target).wait_ready(RESTART).await {
                    return Ok(Injected::Wrong(format!("{what}: {error:#}")));
                }
                what
            }
            Kind::DamagedLog => {
                kill(cluster, &[target], effect)?;
                let what = cluster.damage_synced(target, rng).await?;
                cluster.start_one(target)?;
                // Ready, it would serve what it has; so whichever comes first counts.
                let began = Instant::now();
                let ended = loop {
                    let instance = cluster.instance(target);
                    if !instance.process.is_running()? {
                        break instance.process.last_exit();
                    }
                    if instance.client().is_ready().await {
                        break None;
                    }
                    if began.elapsed() > RESTART {
                        return Ok(Injected::Wrong(format!("{what}: neither ready nor at its end after {RESTART:?}")));
                    }
                    sleep(LOOK).await;
                };
                // Whichever way it ended, that is judged here.
                cluster.instance(target).process.take_ended_by_itself();
                if ended != Some(DAMAGED) {
                    return Ok(Injected::Wrong(match ended {
                        Some(code) => format!("{what}: it ended with {code}, and not with {DAMAGED}"),
                        None => format!("{what}: it started with a damaged log"),
                    }));
                }
                if let Some(wrong) = begin_anew(cluster, target).await? {
                    return Ok(wrong);
                }
                what
            }
            Kind::ClockJump => {
                let seconds = rng.random_range(JUMP_SECONDS) * if rng.random() { 1 } else { -1 };
                self.jumped.push(target);
                cluster.instance(target).clock()?.jump(seconds)?;
                effect.begins();
                format!("{} by {seconds} s", name(cluster, target))
            }
            Kind::SlowFsync => {
                let delay = Duration::from_millis(rng.random_range(SLOW_SYNC_MS));
                self.syncs.push(cluster.slow_fsync(target, delay).await?);
                effect.begins();
                format!("{} by {delay:?}", name(cluster, target))
            }
            Kind::FailingFsync => {
                self.syncs.push(cluster.failing_fsync(target).await?);
                effect.begins();
                let id = name(cluster, target);
                let said = match cluster.instance(target).process.wait_exit(RESTART).await {
                    Ok(status) if status.code() == Some(STOPPED) => return Ok(Injected::Installed(id)),
                    Ok(status) => format!("it ended with {status}, and not with {STOPPED}"),
                    Err(error) => format!("{error:#}"),
                };
                return Ok(Injected::Wrong(format!("the syncs of {id} fail: {said}")));
            }
            Kind::PowerCutOne => {
                power_cut(cluster, &[target], effect).await?;
                name(cluster, target)
            }
            Kind::PowerCutAll => {
                power_cut(cluster, &(0..count).collect::<Vec<_>>(), effect).await?;
                "all".to_owned()
            }
            Kind::FullDisk => {
                self.full.push(target);
                cluster.fill_disk(target, 0).await?;
                effect.begins();
                name(cluster, target)
            }
        };
        Ok(Injected::Installed(done))
    }
}

async fn power_cut(cluster: &mut Cluster, indexes: &[usize], effect: &mut Effect<'_>) -> Result<()> {
    cluster.cut_power(indexes).await?;
    effect.begins();
    cluster.restore_power(indexes).await
}

fn name(cluster: &Cluster, index: usize) -> String {
    cluster.instances()[index].id.to_string()
}

/// SIGKILL to all of them before any is waited for.
fn kill(cluster: &mut Cluster, indexes: &[usize], effect: &mut Effect<'_>) -> Result<()> {
    let sent: Vec<Result<()>> = indexes.iter().map(|index| cluster.instance(*index).process.send_kill()).collect();
    effect.begins();
    for index in indexes {
        cluster.instance(*index).process.reap()?;
    }
    sent.into_iter().collect()
}

/// Every directed link between one of `inside` and one that is not.
fn between(inside: &[usize], count: usize) -> Vec<(usize, usize)> {
    let outside = |other: &usize| !inside.contains(other);
    let out = inside.iter().flat_map(|from| (0..count).filter(outside).map(move |to| (*from, to)));
    out.flat_map(|(from, to)| [(from, to), (to, from)]).collect()
}

/// Each lacks somebody: of three, one bridges the two others; of five, each sees its two neighbours.
fn ring(count: usize, first: usize) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for a in 0..count {
        for b in a + 2..count {
            if (b + 1) % count != a {
                let (a, b) = ((a + first) % count, (b + first) % count);
                pairs.extend([(a, b), (b, a)]);
            }
        }
    }
    if count == 3 {
        let next = (first + 1) % count;
        pairs.extend([(first, next), (next, first)]);
    }
    pairs
}

fn reshape(cluster: &Cluster, kind: Kind, rng: &mut StdRng) -> Result<String> {
    let (count, network) = (cluster.len(), cluster.network()?);
    let pairs = || (0..count).flat_map(|from| (0..count).filter(move |to| *to != from).map(move |to| (from, to)));
    if kind == Kind::Slow {
        let delay = Duration::from_millis(rng.random_range(SLOW_MS));
        pairs().try_for_each(|(from, to)| network.delay(from, to, delay))?;
        return Ok(format!("by {delay:?}"));
    }
    let text = format!(
        "delay={}ms,jitter={}ms,loss={:.3},duplicate={:.3},reorder={:.3}",
        rng.random_range(1..=10),
        rng.random_range(1..=10),
        rng.random_range(0.005..0.05),
        rng.random_range(0.0..0.05),
        rng.random_range(0.0..0.1),
    );
    let shape: Shape = text.parse()?;
    pairs().try_for_each(|(from, to)| network.shape(from, to, shape))?;
    Ok(text)
}

async fn flap(cluster: &Cluster, target: usize, effect: &mut Effect<'_>) -> Result<String> {
    let mut times = 0;
    loop {
        cluster.network()?.isolate(target)?;
        if times == 0 {
            effect.begins();
        }
        sleep(FLAP).await;
        cluster.network()?.heal()?;
        sleep(FLAP).await;
        times += 1;
        if Instant::now() >= effect.until() {
            return Ok(format!("{}, {times} times", name(cluster, target)));
        }
    }
}

async fn rolling_restart(cluster: &mut Cluster, first: usize, effect: &mut Effect<'_>) -> Result<Injected> {
    let count = cluster.len();
    for offset in 0..count {
        let index = (first + offset) % count;
        cluster.instance(index).process.terminate()?;
        if offset == 0 {
            effect.begins();
        }
        let instance = cluster.instance(index);
        match instance.process.wait_exit(RESTART).await {
            Ok(status) if status.success() => {}
            Ok(status) => return Ok(Injected::Wrong(format!("{} ended with {status}", instance.id))),
            Err(error) => return Ok(Injected::Wrong(format!("{error:#}"))),
        }
        cluster.start_one(index)?;
        if let Err(error) = cluster.instance(index).wait_ready(RESTART).await {
            return Ok(Injected::Wrong(format!("{error:#}")));
        }
    }
    Ok(Injected::Installed(format!("all, from {} on", name(cluster, first))))
}

async fn move_leadership(cluster: &Cluster, first: usize, effect: &mut Effect<'_>) -> Result<Injected> {
    let (mut moves, mut to) = (0, first);
    // The effect is over when it is told of.
    effect.begins();
    loop {
        let id = name(cluster, to);
        for instance in cluster.instances() {
            if let Reply::Ok(_) = instance.client().transfer_leader(&id).await {
                moves += 1;
                break;
            }
        }
        to = (to + 1) % cluster.len();
        sleep(MOVE).await;
        if Instant::now() >= effect.until() {
            break;
        }
    }
    if moves == 0 {
        return Ok(Injected::Skipped("no instance took the leadership".to_owned()));
    }
    Ok(Injected::Installed(format!("{moves} times")))
}

/// Removes the instance from the cluster; it ends by itself, and an empty one joins in its place.
async fn replace(cluster: &mut Cluster, target: usize, effect: &mut Effect<'_>) -> Result<Injected> {
    let id = name(cluster, target);
    effect.begins();
    let by = (target + 1) % cluster.len();
    match cluster.instance(by).client().with_timeout(RESTART).remove(&id).await {
        Reply::Ok(_) => {}
        Reply::Failed(failure) => return Ok(Injected::Skipped(format!("not removed: {}", failure.message))),
        // It may be removed in a moment, and must not be left half a member.
        Reply::Unknown(message) => {
            eprintln!("{id} may be removed: {message}");
        }
    }
    if let Err(error) = cluster.instance(target).process.wait_exit(RESTART).await {
        return Ok(Injected::Wrong(format!("it was removed: {error:#}")));
    }
    Ok(begin_anew(cluster, target).await?.unwrap_or(Injected::Installed(id)))
}

/// Starts a stopped instance with nothing, and waits until it is a member. Says what goes wrong with that.
async fn begin_anew(cluster: &mut Cluster, target: usize) -> Result<Option<Injected>> {
    cluster.wipe(target)?;
    cluster.start_one(target)?;
    let ready = cluster.instance(target).wait_ready(RESTART).await;
    Ok(ready.err().map(|error| Injected::Wrong(format!("with an empty directory: {error:#}"))))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;
    use crate::cluster::{Options, stand_in};

    /// Ends with 70 when it is told by SIGUSR1.
    const ENDS: &str = "trap 'exit 70' USR1\necho up\nwhile :; do sleep 0.02; done";

    async fn three(directory: &std::path::Path) -> Cluster {
        let mut cluster = Cluster::prepare(Options::new(stand_in(directory, ENDS), 3).proxied()).await.unwrap();
        cluster.start_all().unwrap();
        let deadline = Instant::now() + RESTART;
        while cluster.instances().iter().any(|instance| !instance.process.log_tail().contains("up")) {
            assert!(Instant::now() < deadline, "they do not start");
            sleep(LOOK).await;
        }
        cluster
    }

    /// As by a bug of its own: the harness did not ask for it.
    async fn end(cluster: &mut Cluster, index: usize, signal: Signal) {
        let process = &mut cluster.instance(index).process;
        kill(Pid::from_raw(i32::try_from(process.pid().unwrap()).unwrap()), signal).unwrap();
        let deadline = Instant::now() + RESTART;
        while process.is_running().unwrap() {
            assert!(Instant::now() < deadline, "it does not end");
            sleep(LOOK).await;
        }
    }

    #[tokio::test]
    async fn planted_an_instance_that_ends_by_itself() {
        let directory = tempfile::tempdir().unwrap();
        let (mut cluster, mut nemesis) = (three(directory.path()).await, Nemesis::default());
        cluster.instance(0).process.kill().unwrap();
        end(&mut cluster, 1, Signal::SIGSEGV).await;
        end(&mut cluster, 2, Signal::SIGUSR1).await;
        let ended = nemesis.heal(&mut cluster).await.unwrap();
        let [segfault, code] = ended.as_slice() else { panic!("{ended:?}") };
        assert!(segfault.starts_with("node-2 ended by itself (signal: 11"), "{segfault}");
        assert_eq!(code, "node-3 ended by itself (exit status: 70)");
        for index in 0..3 {
            assert!(cluster.instance(index).process.is_running().unwrap(), "{index}");
        }
        assert_eq!(nemesis.heal(&mut cluster).await.unwrap(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn on_a_full_disk_an_instance_may_end_by_70_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut cluster = three(directory.path()).await;
        let nemesis = Nemesis { full: vec![0], freed: vec![1], ..Nemesis::default() };
        for index in 0..2 {
            end(&mut cluster, index, Signal::SIGUSR1).await;
        }
        assert_eq!(nemesis.ended(&mut cluster).unwrap(), Vec::<String>::new());
        cluster.start_one(0).unwrap();
        end(&mut cluster, 0, Signal::SIGKILL).await;
        assert_eq!(nemesis.ended(&mut cluster).unwrap(), ["node-1 ended by itself (signal: 9 (SIGKILL))"]);
    }

    #[tokio::test]
    async fn a_kill_that_meets_an_instance_which_ended_by_itself_is_no_failure_of_the_harness() {
        let directory = tempfile::tempdir().unwrap();
        let (mut cluster, mut nemesis) = (three(directory.path()).await, Nemesis::default());
        end(&mut cluster, 1, Signal::SIGUSR1).await;
        let step = Step { quiet_ms: 0, kind: Kind::KillAll, lasts_ms: 0, beside: None, choice: 1 };
        let injected = nemesis.inject(&mut cluster, &step, || ()).await.unwrap();
        let Injected::Wrong(message) = injected else { panic!("{injected:?}") };
        assert!(message.starts_with("node-2 ended by itself (exit status: 70)"), "{message}");
    }

    #[tokio::test]
    async fn a_fault_is_in_force_once_it_was_done_and_lasts_from_then_on() {
        let directory = tempfile::tempdir().unwrap();
        let (mut cluster, mut nemesis) = (three(directory.path()).await, Nemesis::default());
        for kind in [Kind::KillOne, Kind::KillMajority, Kind::KillAll, Kind::PauseOne, Kind::IsolateOne, Kind::Slow] {
            let step = Step { quiet_ms: 0, kind, lasts_ms: 50, beside: None, choice: 1 };
            let mut begun = None;
            let injected = nemesis.inject(&mut cluster, &step, || begun = Some(Instant::now())).await.unwrap();
            assert!(matches!(injected, Injected::Installed(_)), "{injected:?}");
            assert!(begun.unwrap().elapsed() >= step.lasts(), "{kind:?}");
            nemesis.heal(&mut cluster).await.unwrap();
        }
        let step = Step { quiet_ms: 0, kind: Kind::Halves, lasts_ms: 50, beside: Some(Kind::Slow), choice: 1 };
        let mut begun = 0;
        nemesis.inject(&mut cluster, &step, || begun += 1).await.unwrap();
        assert_eq!(begun, 2, "the one beside it, and itself");
    }

    #[tokio::test]
    async fn of_two_instances_none_can_be_cut_off_as_a_minority_and_that_is_no_fault() {
        let directory = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::prepare(Options::new(stand_in(directory.path(), ENDS), 2).proxied()).await.unwrap();
        for kind in [Kind::Halves, Kind::Ring] {
            let step = Step { quiet_ms: 0, kind, lasts_ms: 0, beside: None, choice: 1 };
            let injected = Nemesis::default().inject(&mut cluster, &step, || panic!("nothing was done")).await.unwrap();
            assert_eq!(injected, Injected::Skipped("it needs 3 instances".to_owned()));
        }
    }

    #[tokio::test]
    async fn a_link_that_flaps_is_cut_once_at_least() {
        let directory = tempfile::tempdir().unwrap();
        let cluster = three(directory.path()).await;
        let mut begun = 0;
        let mut effect = Effect { in_force: &mut || begun += 1, since: Instant::now(), lasts: Duration::ZERO };
        assert_eq!(flap(&cluster, 0, &mut effect).await.unwrap(), "node-1, 1 times");
        assert_eq!(begun, 1);
    }

    #[test]
    fn in_a_ring_everybody_has_a_majority_and_no_two_the_same() {
        let cut: BTreeSet<(usize, usize)> = ring(5, 1).into_iter().collect();
        let sees = |a: usize| (0..5).filter(|b| !cut.contains(&(a, *b))).collect::<BTreeSet<_>>();
        let seen: BTreeSet<BTreeSet<usize>> = (0..5).map(sees).collect();
        assert!(seen.len() == 5 && seen.iter().all(|seen| seen.len() == 3), "{seen:?}");
        assert_eq!(ring(3, 2), [(2, 0), (0, 2)], "of three one is the bridge");
    }

    #[test]
    fn between_two_parts_every_link_is_cut_in_both_directions() {
        assert_eq!(between(&[1], 3), [(1, 0), (0, 1), (1, 2), (2, 1)]);
        assert_eq!(between(&[0, 1], 5).len(), 12);
    }
}
