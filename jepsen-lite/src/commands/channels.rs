//! Breaks the owner of a bot account under a stream of messages, round after round, and judges what the platform and its
//! users saw: one answer to each message, never two owners at once, and how long nobody listened.
//!
//! Everything is judged from the fake platform's own record, which knows each moment and, by way of the kernel, which instance
//! it was. What a platform is to the judge is [`Platform`]; the rounds and the judgement are the same for all.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openclaw_config::session::DmScope;
use openclaw_proto::http::ChannelStatus;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::{Common, READY, Report, SHOWN, rerun};
use crate::checkers::answers::Verdict;
use crate::checkers::single_owner::{self, Change};
use crate::client::{Protocol, Reply};
use crate::cluster::{self, Cluster, Environment, Names};
use crate::figures::Summary;
use crate::workloads::channels::{Discord, GIVE_UP, PEOPLE, POLL, Platform, Sessions, Talk, Telegram, judge_answers};

/// Answers between the healing of one round and the fault of the next.
const BETWEEN: usize = 10;
/// Time limit of a question to an instance.
const ASK: Duration = Duration::from_secs(5);
/// Messages without an answer at which the next fault may come.
const BACKLOG: usize = 2 * PEOPLE;
/// How long a paused owner stays so.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PlatformName {
    Telegram,
    Discord,
}

/// What happens to the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// kill -9, and a restart once another instance listens
    Kill,
    /// SIGSTOP for ten seconds, then SIGCONT
    Pause,
    /// Cut off from its peers; its way to the platform stays
    Isolate,
    /// A planned move to another instance
    Move,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Isolate => "isolate",
            Self::Move => "move",
        }
    }
}

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, value_enum, default_value_t = PlatformName::Telegram)]
    pub platform: PlatformName,
    #[arg(long, value_enum, default_value_t = Fault::Kill)]
    pub fault: Fault,
    #[arg(long, default_value_t = 20)]
    pub rounds: u32,
    /// Between two messages to the bot, in milliseconds
    #[arg(long, default_value_t = 200)]
    pub pause_ms: u64,
    /// Draws the moments of the faults
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Findings {
    #[serde(flatten)]
    verdict: Verdict,
    anomalies: Vec<String>,
    /// From the fault to the next owner's beginning.
    #[serde(skip)]
    gaps: Vec<Duration>,
    /// From the old owner's end to the next one's beginning: below zero, both listened.
    #[serde(skip)]
    margins_ms: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<Sessions>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures<'a> {
    seed: u64,
    platform: &'static str,
    fault: &'static str,
    rounds: usize,
    policy: &'static str,
    gap: Summary,
    smallest_margin_ms: Option<f64>,
    findings: &'a Findings,
    alarms: &'a [String],
    rerun: String,
}

/// Runs it.
///
/// # Errors
/// When the harness itself fails: instances that do not start, a bot that nobody listens for any more.
pub async fn run(options: Options) -> Result<Report> {
    let names = Names::default();
    let environment = options.common.environment(options.seed)?;
    match options.platform {
        PlatformName::Telegram => run_on(Telegram::start(&names).await?, &names, environment, &options).await,
        PlatformName::Discord => run_on(Discord::start(&names).await?, &names, environment, &options).await,
    }
}

async fn run_on<P: Platform>(
    platform: P,
    names: &Names,
    environment: Environment,
    options: &Options,
) -> Result<Report> {
    let openclaw = options.common.openclaw()?;
    let platform = Arc::new(platform);
    let start = cluster::Options::new(&openclaw, 3)
        .directory(options.common.directory()?)
        .names(names)
        .environment(environment)
        .settings(|settings| settings.session.dm_scope = DmScope::PerPeer)
        .written("channels", platform.settings());
    let start = if options.fault == Fault::Isolate { start.proxied() } else { start };
    let mut cluster = Cluster::start(start, READY).await?;
    let outcome = break_and_judge(&mut cluster, &platform, options).await;
    let alarms = cluster.alarms()?;
    let passed = alarms.is_empty()
        && outcome
            .as_ref()
            .is_ok_and(|found| found.anomalies.is_empty() && found.gaps.len() == options.rounds as usize);
    if !passed {
        cluster.keep();
    }
    report::<P>(&outcome?, &alarms, passed, &openclaw, options)
}

fn report<P: Platform>(
    found: &Findings,
    alarms: &[String],
    passed: bool,
    openclaw: &Path,
    options: &Options,
) -> Result<Report> {
    let (gap, fault) = (Summary::of(&found.gaps), options.fault.name());
    let smallest = found.margins_ms.iter().copied().reduce(f64::min);
    let Verdict { messages, answered_once, held, slowest_answer_ms, slowest, .. } = &found.verdict;
    let mut text = format!(
        "channels: {fault} of the owner of a bot on {}, {} rounds, 3 instances, seed {}, policy for unknown sends: hold\n\
         from the fault to the next owner's {}: {gap}\n\
         smallest time between the old owner's end and the next one's beginning: {}\n\
         {messages} messages: {answered_once} answered exactly once, {held} held as unknown; slowest answer \
         {slowest_answer_ms:.0} ms ({slowest})\n",
        P::NAME,
        found.gaps.len(),
        options.seed,
        P::BEGINNING,
        smallest.map_or_else(|| "none".to_owned(), |ms| format!("{ms:.1} ms")),
    );
    if let Some(Sessions { begun, resumed }) = found.sessions {
        text.push_str(&format!("sessions: {begun} begun, {resumed} times resumed\n"));
    }
    text.push_str(&format!("anomalies: {}; alarms in logs: {}\n", found.anomalies.len(), alarms.len()));
    for line in found.anomalies.iter().chain(alarms).take(SHOWN) {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(if passed { "passed" } else { "FAILED" });
    let arguments = format!(
        "--platform {} --fault {fault} --rounds {} --pause-ms {} --seed {}",
        P::NAME,
        options.rounds,
        options.pause_ms,
        options.seed
    );
    let figures = Figures {
        seed: options.seed,
        platform: P::NAME,
        fault,
        rounds: found.gaps.len(),
        policy: "hold",
        gap,
        smallest_margin_ms: smallest,
        findings: found,
        alarms,
        rerun: rerun("channels", openclaw, &options.common, &arguments),
    };
    Report::new(text, &figures, passed)
}

async fn break_and_judge<P: Platform>(cluster: &mut Cluster, platform: &Arc<P>, options: &Options) -> Result<Findings> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    platform.is_listened_to().await?;
    let talk = Talk::start(platform.clone(), Duration::from_millis(options.pause_ms));
    let mut found = Findings::default();
    settle(&**platform, &talk, &mut rng).await?;
    for round in 1..=options.rounds {
        let change = one_round(cluster, &**platform, options.fault).await.with_context(|| format!("round {round}"))?;
        let gap = change.began - change.fault;
        found.gaps.push(gap);
        eprintln!(
            "round {round} of {}: from {} to {} in {gap:?}, {} messages so far",
            options.rounds,
            change.old,
            change.next,
            talk.count()
        );
        settle(&**platform, &talk, &mut rng).await?;
        let change = Change { until: Instant::now(), ..change };
        let listened = platform.listened();
        found.margins_ms.extend(single_owner::margin_ms(&change, &listened));
        let anomalies = single_owner::check(&change, &listened, &platform.words());
        found.anomalies.extend(anomalies.into_iter().map(|anomaly| format!("round {round}: {anomaly}")));
    }
    let asked = talk.stop().await?;
    let mut verdict = judge_answers(&cluster.clients(Protocol::Http1, ASK), &**platform, &asked, GIVE_UP).await?;
    found.anomalies.append(&mut verdict.anomalies);
    found.verdict = verdict;
    found.sessions = platform.sessions();
    found.anomalies.extend(found.sessions.and_then(|sessions| too_many(sessions, options.fault)));
    Ok(found)
}

/// What gathered during a fault is answered first: faults that follow too closely only add up. The next one should not always
/// fall at the same distance from an answer.
async fn settle(platform: &impl Platform, talk: &Talk, rng: &mut StdRng) -> Result<()> {
    let enough = platform.answered().len() + BETWEEN;
    let calm = || {
        let answered = platform.answered().len();
        answered >= enough && talk.count().saturating_sub(answered) <= BACKLOG
    };
    until("answers before the next fault", calm).await?;
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
    Ok(())
}

/// Where the old owner is dead or lets go, each owner goes on with the session of the one before.
fn too_many(sessions: Sessions, fault: Fault) -> Option<String> {
    let Sessions { begun, resumed } = sessions;
    let resumable = match fault {
        Fault::Kill | Fault::Move => true,
        Fault::Pause | Fault::Isolate => false,
    };
    (resumable && begun > 1).then(|| format!("{begun} sessions were begun and {resumed} resumed: one is enough"))
}

async fn until(what: &str, mut met: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !met() {
        ensure!(begin.elapsed() < GIVE_UP, "{what}: not within {GIVE_UP:?}");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The index of the instance that owns the bot, once no move is under way.
async fn owner(cluster: &mut Cluster, account: &str) -> Result<usize> {
    let begin = Instant::now();
    loop {
        // An instance that has just begun may know an owner of long ago: the newest grant counts.
        let mut newest: Option<ChannelStatus> = None;
        for client in cluster.clients(Protocol::Http1, Duration::from_secs(2)) {
            let Reply::Ok(list) = client.channels().await else { continue };
            let channels = list.channels.into_iter().filter(|channel| channel.account == account).chain(newest.take());
            newest = channels.max_by_key(|channel| channel.fencing_token);
        }
        let settled = newest.filter(|channel| channel.moving_to.is_none()).and_then(|channel| channel.owner);
        let index = settled.and_then(|owner| cluster.instances().iter().position(|one| one.id.as_str() == owner));
        if let Some(index) = index {
            return Ok(index);
        }
        ensure!(begin.elapsed() < GIVE_UP, "nobody owns {account}");
        tokio::time::sleep(POLL).await;
    }
}

/// Does something to the owner, sees the next one begin, and undoes it.
async fn one_round(cluster: &mut Cluster, platform: &impl Platform, fault: Fault) -> Result<Change> {
    let account = platform.account();
    let victim = owner(cluster, &account).await?;
    let old = cluster.instance(victim).id.to_string();
    let began = Instant::now();
    match fault {
        Fault::Kill => cluster.instance(victim).process.kill()?,
        Fault::Pause => cluster.instance(victim).process.pause()?,
        Fault::Isolate => cluster.network()?.isolate(victim)?,
        Fault::Move => {
            let to = cluster.instances()[(victim + 1) % cluster.len()].id.to_string();
            let client = cluster.instance(victim).client().clone();
            client.move_channel(&account, &to).await.ok()?;
        }
    }
    let (next, next_began) = platform.next_owner(&old, began).await.context("another instance begins")?;
    match fault {
        Fault::Kill => cluster.start_one(victim)?,
        Fault::Pause => {
            tokio::time::sleep_until((began + PAUSE).into()).await;
            cluster.instance(victim).process.resume()?;
        }
        Fault::Isolate => cluster.network()?.heal()?,
        Fault::Move => {}
    }
    cluster.instance(victim).wait_ready(READY).await?;
    let paused = fault == Fault::Pause;
    Ok(Change { old, fault: began, paused, next, began: next_began, until: Instant::now() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_session_is_caught_where_the_first_could_be_resumed() {
        let two = Sessions { begun: 2, resumed: 3 };
        for fault in [Fault::Kill, Fault::Move] {
            assert!(too_many(two, fault).is_some());
            assert_eq!(too_many(Sessions { begun: 1, resumed: 9 }, fault), None);
        }
        assert_eq!(too_many(two, Fault::Pause), None);
    }
}
