//! One run: workloads on a cluster, faults meanwhile, checks afterwards, and a folder with all that was seen.
//!
//! The folder has `plan.json`, written before anything begins, `history.jsonl`, `verdict.json`, and each instance's
//! directory with its log. [`execute`] does it; what it found is a [`verdict::Verdict`].

pub mod plan;
mod stage;
pub mod verdict;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::checkers::convergence::{self, Held};
use crate::checkers::{Check, Found, leases};
use crate::client::{Client, Protocol, Reply};
use crate::clock::Skew;
use crate::cluster::{self, Cluster, Names};
use crate::history::{self, Event, Phase, Recorder};
use crate::nemesis::Needs;
use crate::nemesis::inject::{Injected, Nemesis};
use crate::nemesis::schedule::Step;
use crate::workloads::Shared;
use crate::workloads::probe::Broken;

use plan::Plan;
use stage::{Said, Stage};
use verdict::{Counts, Fault, Outcome, Verdict, count};
use watch::Watch;

/// How long instances may take to be ready after a start, on a machine that is busy with something else.
const READY: Duration = Duration::from_secs(60);
/// Writes are acknowledged again within this time once everything is healed, or the run has found something.
const RECOVERY: Duration = Duration::from_secs(30);
/// Operations of each workload that must have succeeded, or the run proves nothing.
const ENOUGH: u64 = 20;
/// Deadline of a request inside an instance: less than its default, so that what hangs is seen in a short run.
const REQUEST: Duration = Duration::from_secs(5);
/// Patience with an instance that is asked for its state's hash; it reads all that it has.
const HASH: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// Of an instance that has a disk of its own.
const DISK: u64 = 256 << 20;

const PLAN: &str = "plan.json";
const HISTORY: &str = "history.jsonl";

/// Where a run happens.
#[derive(Debug, Clone)]
pub struct Place {
    pub openclaw: PathBuf,
    /// Absent: a temporary one, which stays when something was found.
    pub directory: Option<PathBuf>,
}

/// What a run leaves.
#[derive(Debug)]
pub struct Done {
    pub verdict: Verdict,
    pub history: Vec<Event>,
    /// Its folder, where that stays.
    pub directory: Option<PathBuf>,
}

/// Does what `plan` says. Progress goes to standard error.
///
/// # Errors
/// When the harness itself fails: instances that do not start, a fault that cannot be undone.
pub async fn execute(plan: &Plan, place: &Place, rerun: String) -> Result<Done> {
    if let Some(directory) = &place.directory {
        write(&directory.join(PLAN), plan)?;
    }
    let names = Names::default();
    let stage = Stage::set(&plan.workloads, &names).await?;
    let mut cluster = start(plan, place, &stage, &names).await?;
    let directory = cluster.directory().context("no directory")?.to_owned();
    write(&directory.join(PLAN), plan)?;
    let recorder = Arc::new(Recorder::writing(&directory.join(HISTORY))?);
    // Also when this future is dropped before it ends.
    cluster.keep();
    let written = Written(Arc::clone(&recorder));
    let shared = Shared { recorder, ..Shared::default() };
    let done = conduct(plan, place, &stage, &mut cluster, shared, rerun).await;
    drop(written);
    done
}

/// However a run ends, what its clients saw until then is in its folder.
struct Written(Arc<Recorder>);

impl Drop for Written {
    fn drop(&mut self) {
        if let Err(error) = self.0.close() {
            eprintln!("{error:#}");
        }
    }
}

async fn conduct(
    plan: &Plan,
    place: &Place,
    stage: &Stage,
    cluster: &mut Cluster,
    shared: Shared,
    rerun: String,
) -> Result<Done> {
    let broken = Broken::default();
    let directory = cluster.directory().context("no directory")?.to_owned();
    let begin = Instant::now();
    let clients = cluster.clients(Protocol::Http1, Duration::from_secs(10));
    let ids: Vec<String> = cluster.instances().iter().map(|instance| instance.id.to_string()).collect();
    let watch = Watch::start(&ids, &clients, stage.has_accounts(), &shared);
    let cast = stage.enter(plan, cluster.instances(), &clients, &broken, &shared).await?;
    let mut run = Run {
        cluster,
        shared: &shared,
        broken: &broken,
        nemesis: Nemesis::default(),
        problems: Vec::new(),
        wrong: Vec::new(),
        healed: Vec::new(),
    };
    let faults = run.schedule(plan).await?;
    shared.progress.stop();
    let seconds = begin.elapsed().as_secs_f64();
    let settled = run.settle().await;
    if let Err(error) = &settled {
        run.not_ready("in the end", error)?;
    }
    run.look_for_ended("in the end")?;
    let Run { mut problems, mut wrong, healed, nemesis, .. } = run;
    let Said { mut checks, mut unjudged } = cast.judge(cluster.instances(), &healed, settled.is_ok()).await;
    match settled {
        Ok(()) => checks.push(converged(&ids, &clients).await),
        Err(_) => unjudged.push("the cluster did not settle: what is there in the end was not looked at".to_owned()),
    }
    let told = watch.stop().await?;
    if stage.has_accounts() {
        checks.push(leases::check(&told));
    }
    wrong.extend(nemesis.ended(cluster)?.into_iter().map(|ended| format!("while it was judged: {ended}")));
    checks.insert(0, instances(&wrong));
    let events = shared.recorder.events();
    let operations = count(&events);
    let (alarms, lacks) = (cluster.alarms()?, lacks(plan, &faults, &operations));
    let broken = !alarms.is_empty() || !problems.is_empty() || checks.iter().any(|check| !check.found.is_empty());
    let outcome = match broken {
        true => Outcome::Failed,
        false if lacks.is_empty() && unjudged.is_empty() && checks.iter().all(Check::passed) => Outcome::Passed,
        false => Outcome::Inconclusive,
    };
    problems.extend(lacks);
    problems.extend(unjudged.clone());
    let plan = plan.clone();
    let verdict = Verdict { outcome, plan, seconds, faults, operations, checks, problems, unjudged, alarms, rerun };
    // Operations that the record of somebody else has are among them now, and all are in order.
    shared.recorder.close()?;
    history::save(&directory.join(HISTORY), &events)?;
    write(&directory.join("verdict.json"), &verdict)?;
    if outcome == Outcome::Passed {
        cluster.discard();
    }
    let stays = place.directory.is_some() || outcome != Outcome::Passed;
    Ok(Done { verdict, history: events, directory: stays.then_some(directory) })
}

async fn start(plan: &Plan, place: &Place, stage: &Stage, names: &Names) -> Result<Cluster> {
    let options = cluster::Options::new(&place.openclaw, plan.schedule.instances)
        .directory(place.directory.clone())
        .names(names)
        .environment(plan.environment()?)
        .settings(|settings| {
            settings.cluster.raft.snapshot_every = plan.snapshot_every;
            settings.cluster.raft.log_keep = plan.log_keep;
            settings.gateway.limits.request = REQUEST;
        });
    let needs = |what| plan.kinds().any(|kind| kind.needs() == what);
    let options = if needs(Needs::Disks) { options.disks(DISK) } else { options };
    let options = if needs(Needs::Clocks) { options.clocks(Skew::Wall) } else { options };
    Cluster::start(stage.settings(options), READY).await
}

fn write(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value).with_context(|| format!("encode {}", path.display()))?;
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// What a run lacks to prove something: faults that never happened, workloads that hardly got anywhere.
fn lacks(plan: &Plan, faults: &[Fault], operations: &BTreeMap<String, Counts>) -> Vec<String> {
    let met = |kind: &str| faults.iter().any(|fault| fault.installed && fault.kind == kind);
    let mut kinds: Vec<String> = plan.schedule.steps.iter().map(|step| step.kind.name()).collect();
    kinds.sort();
    kinds.dedup();
    let missing = kinds.into_iter().filter(|kind| !met(kind)).map(|kind| format!("{kind} never happened"));
    let few = plan.workloads.iter().flat_map(|workload| workload.operations()).filter_map(|name| {
        let ok = operations.get(*name).map_or(0, |counts| counts.ok);
        (ok < ENOUGH).then(|| format!("only {ok} operations {name:?} succeeded; {ENOUGH} are the least"))
    });
    missing.chain(few).collect()
}

/// That instances end, start and refuse as they must.
fn instances(wrong: &[String]) -> Check {
    let found = |message: &String| Found { anomaly: "instance".to_owned(), message: message.clone(), ops: Vec::new() };
    Check {
        checker: "instances".to_owned(),
        decided: true,
        figures: serde_json::json!({}),
        found: wrong.iter().map(found).collect(),
    }
}

/// Asks all instances for their state's hash until all are compared, or a difference is found.
async fn converged(ids: &[String], clients: &[Client]) -> Check {
    let deadline = Instant::now() + RECOVERY;
    let mut held: Vec<Held> = Vec::new();
    loop {
        let asked = clients.iter().map(async |client| client.with_timeout(HASH).state_hash().await);
        for (reply, id) in futures::future::join_all(asked).await.into_iter().zip(ids) {
            if let Reply::Ok(hash) = reply {
                let (instance, applied_index, sha256) = (id.clone(), hash.applied_index, hash.sha256);
                held.push(Held { instance, applied_index, sha256 });
            }
        }
        let check = convergence::check(&held, ids.len());
        if check.decided || Instant::now() > deadline {
            return check;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A run while things are being broken.
struct Run<'a> {
    cluster: &'a mut Cluster,
    shared: &'a Shared,
    broken: &'a Broken,
    nemesis: Nemesis,
    /// What did not come in time.
    problems: Vec<String>,
    /// What an instance did that it must not, however slow the machine is.
    wrong: Vec<String>,
    /// When what was broken was whole again.
    healed: Vec<Instant>,
}

impl Run<'_> {
    async fn schedule(&mut self, plan: &Plan) -> Result<Vec<Fault>> {
        let mut faults = Vec::new();
        let count = plan.schedule.steps.len();
        for (step, number) in plan.schedule.steps.iter().zip(1..) {
            tokio::time::sleep(step.quiet()).await;
            let fault =
                self.fault(number, step).await.with_context(|| format!("fault {number} ({})", step.kind.name()))?;
            let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"));
            eprintln!(
                "fault {number} of {count}: {} ({}); next write after {}, after its end {}; {} writes so far",
                fault.kind,
                fault.detail,
                ms(fault.write_after_ms),
                ms(fault.recovery_ms),
                self.shared.progress.acknowledged()
            );
            let lost = fault.recovery_ms.is_none();
            faults.push(fault);
            if lost {
                // What comes after would only be more of the same.
                self.problems.push(format!("fault {number}: no write within {RECOVERY:?} of its end"));
                break;
            }
        }
        Ok(faults)
    }

    async fn fault(&mut self, number: u32, step: &Step) -> Result<Fault> {
        let Shared { progress, recorder } = self.shared;
        let kind = step.kind.name();
        self.look_for_ended(&format!("before fault {number} ({kind})"))?;
        self.cluster.start_all()?;
        recorder.fault(number, &kind, Phase::Begin, "");
        // Leaders are looked for, tracers attach and rules are loaded, and what is written meanwhile was not kept up by anything.
        let mut begun = None;
        let in_force = || {
            let now = progress.mark();
            self.broken.set(Some(now));
            begun = Some(now);
        };
        let injected = self.nemesis.inject(self.cluster, step, in_force).await?;
        let during = tokio::time::timeout(Duration::ZERO, progress.first_after_mark()).await.ok();
        let ended = self.nemesis.heal(self.cluster).await?;
        self.wrong.extend(ended.into_iter().map(|ended| format!("in fault {number} ({kind}): {ended}")));
        let healed = progress.mark();
        self.broken.set(None);
        let (detail, installed) = match injected {
            Injected::Installed(what) => (what, true),
            Injected::Skipped(why) => (why, false),
            Injected::Wrong(what) => {
                self.wrong.push(format!("fault {number} ({kind}): {what}"));
                (what, true)
            }
        };
        recorder.fault(number, &kind, if installed { Phase::Healed } else { Phase::Skipped }, &detail);
        let again = tokio::time::timeout(RECOVERY, progress.first_after_mark()).await.ok();
        if let Err(error) = self.all_ready().await {
            self.not_ready(&format!("after fault {number} ({kind})"), &error)?;
        } else {
            recorder.fault(number, &kind, Phase::Recovered, "");
            self.healed.push(Instant::now());
        }
        let ms = |since: Instant, until: Instant| until.saturating_duration_since(since).as_secs_f64() * 1000.0;
        let write_after_ms =
            begun.zip(during).filter(|_| step.kind.leaves_a_majority()).map(|(begun, at)| ms(begun, at));
        Ok(Fault { number, kind, detail, installed, write_after_ms, recovery_ms: again.map(|at| ms(healed, at)) })
    }

    /// Instances that ended by themselves are what is wrong, whatever follows from it.
    fn look_for_ended(&mut self, when: &str) -> Result<()> {
        let ended = self.nemesis.ended(self.cluster)?;
        self.wrong.extend(ended.into_iter().map(|ended| format!("{when}: {ended}")));
        Ok(())
    }

    /// Waits until all are. An instance that may end of what the fault was, a little after it, starts again.
    async fn all_ready(&mut self) -> Result<()> {
        let Err(error) = self.cluster.wait_all_ready(READY).await else { return Ok(()) };
        let ended = self.nemesis.ended(self.cluster)?;
        let mut may = false;
        for index in 0..self.cluster.len() {
            may |= !self.cluster.instance(index).process.is_running()?;
        }
        if !ended.is_empty() || !may {
            self.wrong.extend(ended);
            return Err(error);
        }
        self.cluster.start_all()?;
        self.cluster.wait_all_ready(READY).await
    }

    /// An instance that has ended by itself is another matter than one that takes its time.
    fn not_ready(&mut self, when: &str, error: &anyhow::Error) -> Result<()> {
        let mut ended = false;
        for index in 0..self.cluster.len() {
            ended |= !self.cluster.instance(index).process.is_running()?;
        }
        let list = if ended { &mut self.wrong } else { &mut self.problems };
        list.push(format!("{when}: {error:#}"));
        Ok(())
    }

    /// Everything is healed: all instances come to the same log index.
    async fn settle(&mut self) -> Result<()> {
        self.all_ready().await?;
        self.cluster.wait_converged(RECOVERY).await?;
        Ok(())
    }
}
