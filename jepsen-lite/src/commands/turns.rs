//! Kills the runner of a turn in the middle of its streamed answer, round after round. The client, which reads through a
//! balancer, reconnects with its Last-Event-ID and gets one whole answer; the transcript has it once, on every instance.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openclaw_proto::http::{ChatRequest, Entry};
use openclaw_proto::ids::{IdempotencyKey, SessionKey, TurnId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::{Common, READY, Report, SHOWN, rerun};
use crate::checkers::turn::{self, Seen};
use crate::client::{Answer, Client, Protocol, Reader};
use crate::cluster::{self, Cluster};
use crate::figures::Summary;
use crate::network::Balancer;

/// What the model in the binary counts to, and how slowly: two seconds of text.
const TOKENS: u64 = 40;
const DELAY_MS: u64 = 50;
/// The kill comes after at most so many, so that the answer is not complete before it.
const LATEST: u64 = 30;
/// Patience with an answer, and with a cluster that elects a leader.
const GIVE_UP: Duration = Duration::from_secs(60);
/// Time limit of one request, and of the head of a stream.
const REQUEST: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Draws how much of an answer is read before the kill, and which follower runs it
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What came of one kill.
#[derive(Debug)]
struct Round {
    /// Whether the runner led the cluster.
    led: bool,
    restarted: bool,
    reconnected: bool,
    /// From the kill to the first event after it, and to the committed end.
    next: Duration,
    done: Duration,
    anomalies: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures<'a> {
    seed: u64,
    rounds: usize,
    /// Answers of which the reader was told that they begin again.
    restarted: usize,
    /// Readers who had a connection to the runner, and lost it.
    reconnected: usize,
    leaders_killed: usize,
    /// From the kill to the next event that the client reads.
    next: Summary,
    next_leader: Summary,
    next_follower: Summary,
    /// From the kill to `done`; the whole answer is said anew.
    done: Summary,
    anomalies: &'a [String],
    alarms: &'a [String],
    rerun: String,
}

/// Runs it.
///
/// # Errors
/// When the harness itself fails: instances that do not start, a turn that is not accepted, no leader.
pub async fn run(options: Options) -> Result<Report> {
    let openclaw = options.common.openclaw()?;
    let start = cluster::Options::new(&openclaw, 3)
        .directory(options.common.directory()?)
        .environment(options.common.environment(options.seed)?);
    let mut cluster = Cluster::start(start, READY).await?;
    let outcome = break_and_judge(&mut cluster, &options).await;
    let alarms = cluster.alarms()?;
    let passed = alarms.is_empty()
        && outcome.as_ref().is_ok_and(|rounds| {
            rounds.len() == options.rounds as usize
                && rounds.iter().all(|round| round.reconnected && round.anomalies.is_empty())
        });
    if !passed {
        cluster.keep();
    }
    report(&outcome?, &alarms, passed, &openclaw, &options)
}

fn report(rounds: &[Round], alarms: &[String], passed: bool, openclaw: &Path, options: &Options) -> Result<Report> {
    let next = |is: fn(&Round) -> bool| -> Summary {
        Summary::of(&rounds.iter().filter(|round| is(round)).map(|round| round.next).collect::<Vec<_>>())
    };
    let (all, leader, follower) = (next(|_| true), next(|round| round.led), next(|round| !round.led));
    let done = Summary::of(&rounds.iter().map(|round| round.done).collect::<Vec<_>>());
    let count = |is: fn(&Round) -> bool| rounds.iter().filter(|round| is(round)).count();
    let (restarted, reconnected) = (count(|round| round.restarted), count(|round| round.reconnected));
    let leaders_killed = count(|round| round.led);
    let anomalies: Vec<String> = rounds.iter().flat_map(|round| round.anomalies.iter().cloned()).collect();
    let mut text = format!(
        "turns: kill -9 of the runner in the middle of a streamed answer, {} rounds, 3 instances, seed {}\n\
         {reconnected} of the readers had to reconnect, {restarted} saw restart; {leaders_killed} of the killed led the cluster\n\
         from the kill to the next event: {all}\n  of a leader: {leader}\n  of a follower: {follower}\n\
         from the kill to done, an answer of {} ms: {done}\nanomalies: {}; alarms in logs: {}\n",
        rounds.len(),
        options.seed,
        TOKENS * DELAY_MS,
        anomalies.len(),
        alarms.len(),
    );
    for line in anomalies.iter().chain(alarms).take(SHOWN) {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(if passed { "passed" } else { "FAILED" });
    let figures = Figures {
        seed: options.seed,
        rounds: rounds.len(),
        restarted,
        reconnected,
        leaders_killed,
        next: all,
        next_leader: leader,
        next_follower: follower,
        done,
        anomalies: &anomalies,
        alarms,
        rerun: rerun(
            "turns",
            openclaw,
            &options.common,
            &format!("--rounds {} --seed {}", options.rounds, options.seed),
        ),
    };
    Report::new(text, &figures, passed)
}

async fn break_and_judge(cluster: &mut Cluster, options: &Options) -> Result<Vec<Round>> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let balancer = Balancer::start(cluster.instances().iter().map(|instance| instance.http).collect()).await?;
    let token = cluster.token().map(ToOwned::to_owned);
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        let question = Question::new(&balancer, token.as_deref(), &format!("turns-{}-{number}", options.seed))?;
        // Leaders and followers by turns: that the log needs a new leader first is a case of its own.
        let mut round = one_round(cluster, &question, &mut rng, number % 2 == 1)
            .await
            .with_context(|| format!("round {number}"))?;
        for anomaly in &mut round.anomalies {
            *anomaly = format!("round {number}: {anomaly}");
        }
        eprintln!(
            "round {number} of {}: next event {:?} after the kill, done {:?}",
            options.rounds, round.next, round.done
        );
        rounds.push(round);
    }
    Ok(rounds)
}

/// One question to the cluster behind a balancer, in a session of its own.
struct Question<'a> {
    balancer: &'a Balancer,
    token: Option<&'a str>,
    session: SessionKey,
    key: IdempotencyKey,
    request: ChatRequest,
}

impl<'a> Question<'a> {
    fn new(balancer: &'a Balancer, token: Option<&'a str>, name: &str) -> Result<Self> {
        let request = ChatRequest {
            session_key: Some(name.to_owned()),
            message: format!("[tokens={TOKENS} delay={DELAY_MS}ms]"),
            ..ChatRequest::default()
        };
        Ok(Self {
            balancer,
            token,
            session: SessionKey::parse(name).context("session key")?,
            key: IdempotencyKey::parse(name).context("idempotency key")?,
            request,
        })
    }

    /// A client with connections of its own, which the balancer gives to whoever is next.
    fn client(&self) -> Client {
        Client::new(self.balancer.address(), Protocol::Http1, REQUEST).with_token(self.token)
    }
}

async fn one_round(cluster: &mut Cluster, question: &Question<'_>, rng: &mut StdRng, leader: bool) -> Result<Round> {
    let (leading, count) = (cluster.leader(GIVE_UP).await?, cluster.len());
    let follower = (leading + rng.random_range(1..count)) % count;
    let read = rng.random_range(1..=LATEST);
    let deadline = Instant::now() + GIVE_UP;
    let wanted = if leader { leading } else { follower };
    runs_its_turns(cluster, wanted, &question.session).await?;
    question.balancer.turn_to(wanted);
    let mut reader = Reader::start(&[question.client()], 0, &question.request, &question.key).await?;
    let id = reader.turn().clone();
    let runner = question.client().turn(&id).await.ok()?.runner;
    let victim = cluster.instances().iter().position(|one| one.id.as_str() == runner).context("an unknown runner")?;
    reader.read_deltas(read, deadline).await?;

    let killed = Instant::now();
    cluster.instance(victim).process.kill()?;
    let (next, answer) = match read_on(reader, deadline).await {
        Ok((next, answer)) => (next.saturating_duration_since(killed), Ok(answer)),
        Err(error) => (killed.elapsed(), Err(error)),
    };
    let done = killed.elapsed();
    let (restarted, reconnected) =
        answer.as_ref().map_or((false, false), |answer| (answer.restarts > 0, answer.reconnects > 0));
    let mut anomalies = match &answer {
        Ok(answer) => judge(question, &id, answer).await?,
        // What a reader must never see, or nothing for a long time: either is what this is about.
        Err(error) => vec![format!("the reader: {error:#}")],
    };
    let first = transcript(&question.client(), question).await?;
    cluster.start_one(victim)?;
    cluster.instance(victim).wait_ready(READY).await?;
    for client in cluster.clients(Protocol::Http1, REQUEST) {
        if transcript(&client, question).await? != first {
            anomalies.push(format!("{} shows another transcript than the others", client.address()));
        }
    }
    Ok(Round { led: victim == leading, restarted, reconnected, next, done, anomalies })
}

/// Whoever is asked runs the turn, but one that has just begun gives it to another until all know that it lives, although it
/// is ready.
async fn runs_its_turns(cluster: &mut Cluster, index: usize, session: &SessionKey) -> Result<()> {
    let instance = cluster.instance(index);
    let client = instance.client().with_timeout(REQUEST);
    let request = ChatRequest {
        session_key: Some(format!("{session}-before")),
        message: "hello".into(),
        ..ChatRequest::default()
    };
    let ask = async || {
        let answer = client.chat(&request, &IdempotencyKey::random()).await.ok()?;
        ensure!(answer.instance_id == instance.id.as_str(), "{} runs what was asked of another", answer.instance_id);
        Ok(())
    };
    retried(ask).await
}

/// When the answer went on after the kill, and the answer.
async fn read_on(mut reader: Reader, deadline: Instant) -> Result<(Instant, Answer)> {
    match reader.read_past_break(deadline).await? {
        (next, Some(answer)) => Ok((next, answer)),
        (next, None) => Ok((next, reader.finish(deadline).await?)),
    }
}

/// Asks for everything that is known of the turn, while its first runner is dead.
async fn judge(question: &Question<'_>, id: &TurnId, answer: &Answer) -> Result<Vec<String>> {
    let client = question.client();
    let numbers: Vec<String> = (1..=TOKENS).map(|n| n.to_string()).collect();
    let seen = Seen {
        question: &question.request.message,
        expected: &numbers.join(" "),
        answer,
        row: &retried(async || client.turn(id).await.ok()).await?,
        repeated: &retried(async || client.chat(&question.request, &question.key).await.ok()).await?,
        transcript: &transcript(&client, question).await?,
    };
    Ok(turn::check(&seen).iter().map(ToString::to_string).collect())
}

async fn transcript(client: &Client, question: &Question<'_>) -> Result<Vec<Entry>> {
    retried(async || client.transcript(&question.session).await).await
}

/// Repeats what fails while a leader is being elected, or a connection leads to who is dead.
async fn retried<T>(attempt: impl AsyncFn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + GIVE_UP;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
