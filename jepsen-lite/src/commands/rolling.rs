//! Replaces every instance by a fresh process, one after the other, round after round, while clients are at work through a
//! balancer, and counts what they noticed: requests that failed, streams that broke, messages lost or doubled.
//!
//! Clients here do not retry. How an instance is replaced is as `deploy/rolling-update.sh` does it, which looks at what is true,
//! or as the published guide does it, which does not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::value_parser;
use openclaw_config::Secret;
use openclaw_config::session::DmScope;
use openclaw_proto::http::{ChatRequest, Role};
use openclaw_proto::ids::{IdempotencyKey, SessionKey};
use serde::Serialize;
use tokio::task::JoinSet;

use super::{Common, READY, Report, SHOWN, quoted, rerun};
use crate::checkers::answers::Verdict;
use crate::client::{Client, Failure, Protocol, Reader, Reply};
use crate::cluster::{self, Cluster, Names};
use crate::figures::{Summary, micros};
use crate::network::Balancer;
use crate::network::program::{Kind, Program};
use crate::process::Process;
use crate::workloads::channels::{GIVE_UP, Platform, Talk, Telegram, judge_answers};

const TOKEN: &str = "rolling-rolling-rolling-rolling-r";
/// A streamed answer: ten seconds of text.
const TOKENS: u64 = 100;
const DELAY_MS: u64 = 100;
/// Between two messages to the bot.
const SAY_EVERY: Duration = Duration::from_millis(200);
/// Time limit of a request, and of an answer.
const REQUEST: Duration = Duration::from_secs(60);
/// Of our script, and between two that are killed, after an instance is ready again: a balancer that hears of failures by meeting them, as Nginx does, leaves an
/// instance out for ten seconds after one refused connection, and with all of them left out serves nobody.
const PAUSE: Duration = Duration::from_secs(12);
/// What the guide waits after `maintenance on`.
const GUIDE_SLEEPS: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// Of the load before the first instance is touched, and between two rounds.
const BETWEEN: Duration = Duration::from_secs(2);

/// How an instance is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Procedure {
    /// Maintenance, a stop that is waited for, a start, until it is ready: deploy/rolling-update.sh
    Ours,
    /// Maintenance whatever it says, ten seconds, a stop (see --grace), a start, until the balancer answers
    Guide,
    /// kill -9, and a start once the balancer has served for two seconds
    Kill,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, value_enum, default_value_t = Procedure::Ours)]
    by: Procedure,
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(1..))]
    rounds: u32,
    /// Clients that ask and wait for the answer
    #[arg(long, default_value_t = 120, value_parser = value_parser!(u32).range(1..))]
    plain: u32,
    /// Clients that read streams of ten seconds
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u32).range(1..))]
    streams: u32,
    /// Between two requests of a plain client, in milliseconds
    #[arg(long, default_value_t = 500)]
    pause_ms: u64,
    /// Plain clients repeat what failed, with the same idempotency key, for a minute
    #[arg(long)]
    retry: bool,
    /// Seconds that the guide's procedure gives a container to stop before it is killed: 10 is Docker's own, 90 what
    /// deploy/docker-compose.yml says
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(1..))]
    grace: u64,
    /// Put Nginx in front, with this file inside of its http section
    #[arg(long, value_name = "FILE", group = "front")]
    nginx: Option<PathBuf>,
    /// Put Nginx in front, with this file beside its http section
    #[arg(long, value_name = "FILE", group = "front")]
    nginx_stream: Option<PathBuf>,
    /// Put HAProxy in front, with this file
    #[arg(long, value_name = "FILE", group = "front")]
    haproxy: Option<PathBuf>,
}

/// What stands in front of the instances.
enum Front {
    Program(Program),
    BuiltIn(Balancer),
}

impl Front {
    async fn start(options: &Options, cluster: &Cluster) -> Result<(Self, &'static str)> {
        let instances: Vec<_> = cluster.instances().iter().map(|instance| instance.http).collect();
        let directory = cluster.directory().context("no directory")?;
        let program = |kind, file: &Path| Program::start(kind, file, directory, &instances).map(Self::Program);
        Ok(match (&options.nginx, &options.nginx_stream, &options.haproxy) {
            (Some(file), _, _) => (program(Kind::Nginx, file)?, "nginx"),
            (_, Some(file), _) => (program(Kind::NginxStream, file)?, "nginx stream"),
            (_, _, Some(file)) => (program(Kind::Haproxy, file)?, "haproxy"),
            (None, None, None) => (Self::BuiltIn(Balancer::start(instances.clone()).await?), "built-in"),
        })
    }

    /// With a token: where a balancer passes another `Host` on, only an instance that has one can be reached.
    fn client(&self) -> Client {
        let address = match self {
            Self::Program(program) => program.address(),
            Self::BuiltIn(balancer) => balancer.address(),
        };
        Client::new(address, Protocol::Http1, REQUEST).with_token(Some(TOKEN))
    }
}

/// What clients of one kind met.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Met {
    ok: u64,
    /// Certainly without an effect.
    failed: u64,
    /// The connection or the deadline ended before the answer.
    unknown: u64,
    /// Streams that had to be continued, and those that began again.
    broken: u64,
    restarted: u64,
    repeated: u64,
    /// Requests that never were answered, however often they were repeated.
    given_up: u64,
    #[serde(skip)]
    latencies: Vec<u32>,
    /// What was said by whom, in order, and whether it was acknowledged.
    #[serde(skip)]
    said: Vec<(SessionKey, Vec<(String, bool)>)>,
    /// What no client may meet, whatever is done to the instances.
    #[serde(skip)]
    anomalies: Vec<String>,
    #[serde(skip)]
    examples: Vec<String>,
}

impl Met {
    fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.broken += other.broken;
        self.restarted += other.restarted;
        self.repeated += other.repeated;
        self.given_up += other.given_up;
        self.anomalies.extend(other.anomalies);
        self.latencies.extend(other.latencies);
        self.said.extend(other.said);
        self.examples.extend(other.examples);
        self.examples.truncate(SHOWN);
    }

    fn note(&mut self, example: String) {
        if self.examples.len() < SHOWN {
            self.examples.push(example);
        }
    }

    /// One client's work is over. A client that was never answered shows nothing.
    fn end(&mut self, session: SessionKey, said: Vec<(String, bool)>) {
        if !said.iter().any(|(_, acknowledged)| *acknowledged) {
            self.anomalies.push(format!("{session}: none of {} requests was answered", said.len()));
        }
        self.said.push((session, said));
    }

    /// Requests that a client without a second try would have lost.
    fn noticed(&self) -> u64 {
        self.failed + self.unknown + self.broken
    }
}

/// Clients at work until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    plain: JoinSet<Result<Met>>,
    streams: JoinSet<Result<Met>>,
}

impl Load {
    fn start(front: &Front, options: &Options) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (mut plain, mut streams) = (JoinSet::new(), JoinSet::new());
        let pause = Duration::from_millis(options.pause_ms);
        for n in 0..options.plain {
            plain.spawn(ask(front.client(), n, pause, options.retry, stop.clone(), done.clone()));
        }
        for n in 0..options.streams {
            streams.spawn(read(front.client(), n, stop.clone(), done.clone()));
        }
        Self { stop, done, plain, streams }
    }

    async fn stop(mut self) -> Result<(Met, Met)> {
        self.stop.store(true, Ordering::Relaxed);
        Ok((sum(&mut self.plain).await?, sum(&mut self.streams).await?))
    }
}

async fn sum(clients: &mut JoinSet<Result<Met>>) -> Result<Met> {
    let mut all = Met::default();
    while let Some(met) = clients.join_next().await {
        all.add(met.context("a client panicked")??);
    }
    Ok(all)
}

async fn ask(
    client: Client,
    n: u32,
    pause: Duration,
    retry: bool,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Result<Met> {
    let session = SessionKey::parse(format!("plain-{n}"))?;
    let (mut met, mut said) = (Met::default(), Vec::new());
    for count in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let message = format!("message {count} of {n}");
        let request =
            ChatRequest { session_key: Some(session.to_string()), message: message.clone(), ..ChatRequest::default() };
        let key = IdempotencyKey::parse(format!("plain-{n}-{count}"))?;
        let begin = Instant::now();
        let mut acknowledged = false;
        loop {
            match client.chat(&request, &key).await {
                Reply::Ok(_) => {
                    met.ok += 1;
                    acknowledged = true;
                }
                Reply::Failed(Failure { code, message, .. }) => {
                    met.failed += 1;
                    met.note(format!("plain: failed {code:?} {message}"));
                }
                Reply::Unknown(why) => {
                    met.unknown += 1;
                    met.note(format!("plain: unknown {why}"));
                }
            }
            if acknowledged || !retry || begin.elapsed() > REQUEST {
                break;
            }
            met.repeated += 1;
            tokio::time::sleep(POLL).await;
        }
        done.fetch_add(1, Ordering::Relaxed);
        met.given_up += u64::from(!acknowledged);
        met.latencies.push(micros(begin.elapsed()));
        said.push((message, acknowledged));
        tokio::time::sleep(pause).await;
    }
    met.end(session, said);
    Ok(met)
}

async fn read(client: Client, n: u32, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Result<Met> {
    let session = SessionKey::parse(format!("stream-{n}"))?;
    let numbers: Vec<String> = (1..=TOKENS).map(|n| n.to_string()).collect();
    let (mut met, mut said) = (Met::default(), Vec::new());
    for count in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let message = format!("stream {count} of {n} [tokens={TOKENS} delay={DELAY_MS}ms]");
        let request =
            ChatRequest { session_key: Some(session.to_string()), message: message.clone(), ..ChatRequest::default() };
        let key = IdempotencyKey::parse(format!("stream-{n}-{count}"))?;
        let begin = Instant::now();
        let opened = match client.stream(&request, &key).await {
            Reply::Ok(stream) => {
                Reader::over(std::slice::from_ref(&client), 0, stream).await.map_err(|e| e.to_string())
            }
            Reply::Failed(failure) => Err(format!("{:?} {}", failure.code, failure.message)),
            Reply::Unknown(why) => Err(why),
        };
        let read = match opened {
            Ok(reader) => reader.finish(begin + REQUEST).await.map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        let acknowledged = read.is_ok();
        match read {
            Ok(answer) => {
                met.ok += 1;
                met.broken += u64::from(answer.reconnects > 0);
                met.restarted += u64::from(answer.restarts > 0);
                if answer.reconnects + answer.restarts > 0 {
                    met.note(format!("stream: {} reconnects, {} restarts", answer.reconnects, answer.restarts));
                }
                if !answer.text.split_whitespace().eq(numbers.iter()) {
                    met.anomalies.push(format!("{session}: an answer is not whole: {answer:?}"));
                }
            }
            Err(why) => {
                met.failed += 1;
                met.note(format!("stream: {why}"));
            }
        }
        done.fetch_add(1, Ordering::Relaxed);
        met.given_up += u64::from(!acknowledged);
        said.push((message, acknowledged));
    }
    met.end(session, said);
    Ok(met)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures<'a> {
    procedure: &'a str,
    front: &'a str,
    rounds: u32,
    replaced: usize,
    plain: &'a Met,
    streams: &'a Met,
    channel: &'a Verdict,
    latency: Summary,
    replacement: Summary,
    anomalies: &'a [String],
    alarms: &'a [String],
    rerun: String,
}

/// Runs it.
///
/// # Errors
/// When the harness itself fails: instances that do not start, a balancer that is not installed, a command that is refused.
pub async fn run(options: Options) -> Result<Report> {
    ensure!(!options.common.needs_namespaces(), "balancers are on loopback: leave --environment away");
    let openclaw = options.common.openclaw()?;
    let names = Names::default();
    let platform = Arc::new(Telegram::start(&names).await?);
    let start = cluster::Options::new(&openclaw, 3)
        .directory(options.common.directory()?)
        .names(&names)
        .settings(|settings| {
            settings.session.dm_scope = DmScope::PerPeer;
            settings.gateway.auth.token = Some(Secret::new(TOKEN));
        })
        .written("channels", platform.settings());
    let mut cluster = Cluster::start(start, READY).await?;
    let (front, front_name) = Front::start(&options, &cluster).await?;
    let measured = measure(&mut cluster, &front, &platform, &openclaw, &options).await;
    let mut measured = measured.inspect_err(|_| cluster.keep())?;
    let alarms = cluster.alarms()?;
    let passed = measured.passed(&options) && alarms.is_empty();
    if !passed {
        cluster.keep();
    }
    let latency = Summary::of_micros(&mut measured.plain.latencies);
    let Measured { plain, streams, channel, anomalies, took } = &measured;
    let procedure = match options.by {
        Procedure::Ours => "ours",
        Procedure::Guide => "guide",
        Procedure::Kill => "kill",
    };
    let figures = Figures {
        procedure,
        front: front_name,
        rounds: options.rounds,
        replaced: took.len(),
        plain,
        streams,
        channel,
        latency,
        replacement: Summary::of(took),
        anomalies,
        alarms: &alarms,
        rerun: rerun("rolling", &openclaw, &options.common, &options.again(procedure)),
    };
    Report::new(text(&figures, passed), &figures, passed)
}

impl Options {
    /// The flags of its own, for the command that does it again.
    fn again(&self, procedure: &str) -> String {
        let Self { rounds, plain, streams, pause_ms, grace, .. } = self;
        let mut flags = format!(
            "--by {procedure} --rounds {rounds} --plain {plain} --streams {streams} --pause-ms {pause_ms} --grace {grace}"
        );
        if self.retry {
            flags.push_str(" --retry");
        }
        let fronts = [("--nginx", &self.nginx), ("--nginx-stream", &self.nginx_stream), ("--haproxy", &self.haproxy)];
        for (flag, file) in fronts {
            if let Some(file) = file {
                flags.push_str(&format!(" {flag} {}", quoted(file)));
            }
        }
        flags
    }
}

/// What came of the rounds.
struct Measured {
    plain: Met,
    streams: Met,
    channel: Verdict,
    anomalies: Vec<String>,
    took: Vec<Duration>,
}

impl Measured {
    fn passed(&self, options: &Options) -> bool {
        let Self { plain, streams, .. } = self;
        let unnoticed = match options.by {
            // What a client notices of a kill is what the run is to count; who asks again is answered.
            Procedure::Kill => !options.retry || plain.given_up == 0,
            Procedure::Ours | Procedure::Guide => plain.noticed() + streams.noticed() + streams.restarted == 0,
        };
        unnoticed && self.anomalies.is_empty()
    }
}

async fn measure(
    cluster: &mut Cluster,
    front: &Front,
    platform: &Arc<Telegram>,
    openclaw: &Path,
    options: &Options,
) -> Result<Measured> {
    platform.is_listened_to().await?;
    let talk = Talk::start(platform.clone(), SAY_EVERY);
    let load = Load::start(front, options);
    tokio::time::sleep(BETWEEN).await;
    let (mut took, mut anomalies) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        for index in 0..cluster.len() {
            let begin = Instant::now();
            let which = format!("round {round}, instance {}", index + 1);
            let replaced = replace(cluster, index, openclaw, front, options).await;
            took.push(begin.elapsed());
            anomalies.extend(replaced.with_context(|| which.clone())?.iter().map(|odd| format!("{which}: {odd}")));
            if options.by != Procedure::Guide {
                tokio::time::sleep(PAUSE).await;
            }
        }
        eprintln!("round {round} of {}: {} requests so far", options.rounds, load.done.load(Ordering::Relaxed));
        tokio::time::sleep(BETWEEN).await;
    }
    cluster.wait_all_ready(READY).await?;
    let (mut plain, mut streams) = load.stop().await?;
    let asked = talk.stop().await?;
    let clients = cluster.clients(Protocol::Http1, REQUEST);
    let channel = judge_answers(&clients, &**platform, &asked, GIVE_UP).await?;
    anomalies.extend(channel.anomalies.iter().cloned());
    anomalies.append(&mut plain.anomalies);
    anomalies.append(&mut streams.anomalies);
    let client = clients.first().context("a client")?;
    for (session, said) in plain.said.iter().chain(&streams.said) {
        anomalies.extend(judge(client, session, said).await?);
    }
    Ok(Measured { plain, streams, channel, anomalies, took })
}

fn text(figures: &Figures<'_>, passed: bool) -> String {
    let Figures { plain, streams, channel, .. } = figures;
    let mut text = format!(
        "rolling: {} rounds over 3 instances by {}, in front: {}; {} replaced, each in {}\n\
         plain requests: {} ok, {} failed, {} unknown, {} repeated, {} given up; {}\n\
         streams of ten seconds: {} ok, {} failed, {} broken, {} begun again\n\
         messages to a bot: {}, {} answered exactly once, {} held; slowest answer {:.0} ms\n\
         lost or doubled: {}; alarms in logs: {}\n",
        figures.rounds,
        figures.procedure,
        figures.front,
        figures.replaced,
        figures.replacement,
        plain.ok,
        plain.failed,
        plain.unknown,
        plain.repeated,
        plain.given_up,
        figures.latency,
        streams.ok,
        streams.failed + streams.unknown,
        streams.broken,
        streams.restarted,
        channel.messages,
        channel.answered_once,
        channel.held,
        channel.slowest_answer_ms,
        figures.anomalies.len(),
        figures.alarms.len(),
    );
    let lines = plain.examples.iter().chain(&streams.examples).chain(figures.anomalies).chain(figures.alarms);
    for line in lines.take(2 * SHOWN) {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(if passed { "passed" } else { "FAILED" });
    text
}

/// Each message once, in order, and none that was acknowledged missing.
async fn judge(client: &Client, session: &SessionKey, said: &[(String, bool)]) -> Result<Vec<String>> {
    let transcript = if said.is_empty() { Vec::new() } else { client.transcript(session).await? };
    let texts = |role| transcript.iter().filter(move |entry| entry.role == role).map(|entry| entry.text.as_str());
    let held: Vec<&str> = texts(Role::User).collect();
    let answers = texts(Role::Assistant).count();
    Ok(compare(said, &held, answers).into_iter().map(|odd| format!("{session}: {odd}")).collect())
}

fn compare(said: &[(String, bool)], held: &[&str], answers: usize) -> Vec<String> {
    let mut anomalies = Vec::new();
    for (message, acknowledged) in said {
        match held.iter().filter(|text| *text == message).count() {
            0 if *acknowledged => anomalies.push(format!("{message:?} is lost")),
            0 | 1 => {}
            times => anomalies.push(format!("{message:?} is there {times} times")),
        }
    }
    let place = |text: &&str| said.iter().position(|(message, _)| message == text);
    if let Some(strange) = held.iter().find(|text| place(text).is_none()) {
        anomalies.push(format!("{strange:?} was never said"));
    }
    if !held.iter().filter_map(place).is_sorted() {
        anomalies.push(format!("not in the order in which it was said: {held:?}"));
    }
    if answers != held.len() {
        anomalies.push(format!("{} messages and {answers} answers", held.len()));
    }
    anomalies
}

/// Says what is odd of how the old process ended.
async fn replace(
    cluster: &mut Cluster,
    index: usize,
    openclaw: &Path,
    front: &Front,
    options: &Options,
) -> Result<Vec<String>> {
    let mut odd = Vec::new();
    match options.by {
        Procedure::Ours => {
            let (ended, said) = maintenance(cluster, index, openclaw).await?;
            if !ended {
                odd.push(format!("maintenance on: {said}"));
            }
            match stop(&mut cluster.instance(index).process, READY).await? {
                Ended::Badly(what) | Ended::Late(what) => odd.push(what),
                Ended::Well => {}
            }
            cluster.start_one(index)?;
            cluster.instance(index).wait_ready(READY).await?;
        }
        Procedure::Guide => {
            let (ended, said) = maintenance(cluster, index, openclaw).await?;
            if !ended {
                eprintln!("maintenance on: {said}");
            }
            tokio::time::sleep(GUIDE_SLEEPS).await;
            match stop(&mut cluster.instance(index).process, Duration::from_secs(options.grace)).await? {
                Ended::Badly(what) => odd.push(what),
                // That it is killed in the end is the procedure.
                Ended::Well | Ended::Late(_) => {}
            }
            cluster.start_one(index)?;
            let client = front.client();
            let begin = Instant::now();
            while !client.is_ready().await {
                ensure!(begin.elapsed() < READY, "the balancer does not answer");
                tokio::time::sleep(POLL).await;
            }
        }
        Procedure::Kill => {
            cluster.instance(index).process.kill()?;
            tokio::time::sleep(BETWEEN).await;
            cluster.start_one(index)?;
            cluster.instance(index).wait_ready(READY).await?;
        }
    }
    Ok(odd)
}

/// How a process ended that was asked to.
enum Ended {
    Well,
    Badly(String),
    /// It had to be killed.
    Late(String),
}

async fn stop(process: &mut Process, within: Duration) -> Result<Ended> {
    process.terminate()?;
    Ok(match process.wait_exit(within).await {
        Ok(status) if status.success() => Ended::Well,
        Ok(status) => Ended::Badly(format!("ended with {status}: {}", process.log_tail())),
        Err(error) => {
            process.kill()?;
            Ended::Late(format!("{error:#}"))
        }
    })
}

/// Runs the command that scripts run, beside the instance.
async fn maintenance(cluster: &mut Cluster, index: usize, openclaw: &Path) -> Result<(bool, String)> {
    let url = format!("http://{}", cluster.instance(index).http);
    let command = tokio::process::Command::new(openclaw)
        .args(["maintenance", "on", "--url", &url])
        .env("OPENCLAW_GATEWAY_TOKEN", TOKEN)
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(2 * READY, command).await {
        Ok(output) => {
            let output = output.context("run openclaw maintenance on")?;
            Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
        }
        Err(_) => bail!("openclaw maintenance on does not end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_doubled_reordered_or_not_answered_is_told() {
        let said = [("a", true), ("b", false), ("c", true)].map(|(text, acknowledged)| (text.to_owned(), acknowledged));
        let found = |held: &[&str], answers| compare(&said, held, answers).len();
        assert_eq!(found(&["a", "b", "c"], 3), 0);
        assert_eq!(found(&["a", "c"], 2), 0, "what was not acknowledged may be missing");
        assert_eq!(found(&["a", "b"], 2), 1, "lost");
        assert_eq!(found(&["a", "a", "c"], 3), 1, "doubled");
        assert_eq!(found(&["c", "a"], 2), 1, "in another order");
        assert_eq!(found(&["a", "x", "c"], 3), 1, "of nobody");
        assert_eq!(found(&["a", "c"], 1), 1, "without an answer");
    }

    #[test]
    fn a_client_that_is_never_answered_shows_nothing() {
        let session = SessionKey::parse("plain-0").unwrap();
        let mut met = Met::default();
        met.end(session.clone(), vec![("a".into(), true), ("b".into(), false)]);
        assert!(met.anomalies.is_empty());
        met.end(session, vec![("a".into(), false)]);
        assert_eq!(met.anomalies.len(), 1);
    }
}
