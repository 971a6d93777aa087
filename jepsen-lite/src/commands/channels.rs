//! Breaks the owner of a Telegram bot under a stream of messages, round after round, and judges what Telegram and its users
//! saw: one answer to each message, never two pollers at once, and how long nobody listened.
//!
//! Everything is judged from the fake platform's own record, which knows each request's times and, by way of the kernel,
//! which instance made it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openclaw_config::session::DmScope;
use openclaw_proto::http::ChannelStatus;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinHandle;

use super::{Common, READY, Report, SHOWN, rerun};
use crate::client::{Protocol, Reply};
use crate::cluster::{self, Cluster, free_ports};
use crate::fakes::Label;
use crate::fakes::telegram::{self, BotId, ChatId, Handle, MessageId, Method, Recorded, UserId};
use crate::figures::Summary;
use crate::network::process_of;

const TOKEN: &str = "7000001:harness-harness-harness-harness-h";
const ACCOUNT: &str = "telegram:default";
/// People who write to the bot, in a chat of their own each.
const PEOPLE: i64 = 20;
/// Answers between the healing of one round and the fault of the next.
const BETWEEN: usize = 10;
/// Messages without an answer at which the next fault may come.
const BACKLOG: usize = 2 * PEOPLE as usize;
/// How long a bot may go without a poller, and a message without an answer, before the run is given up.
const GIVE_UP: Duration = Duration::from_secs(60);
/// How long a paused owner stays so.
const PAUSE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// What happens to the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// kill -9, and a restart once another instance polls
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
    messages: usize,
    answered_once: usize,
    /// Not answered, and listed by the gateway as a message that may or may not have been sent.
    held: usize,
    anomalies: Vec<String>,
    /// From the fault to the next owner's first poll.
    #[serde(skip)]
    gaps: Vec<Duration>,
    /// From the old owner's last poll to the new one's first: below zero, both listened.
    #[serde(skip)]
    margins_ms: Vec<f64>,
    slowest_answer_ms: f64,
    /// Whose question waited longest: chat, message and the second of the run in which it was asked.
    slowest: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures<'a> {
    seed: u64,
    fault: &'static str,
    rounds: usize,
    policy: &'static str,
    gap: Summary,
    smallest_margin_ms: Option<f64>,
    findings: &'a Findings,
    alarms: &'a [String],
    rerun: String,
}

/// The instances' processes, by pid, for the fake to name its callers.
type Names = Arc<Mutex<BTreeMap<u32, String>>>;

/// Runs it.
///
/// # Errors
/// When the harness itself fails: instances that do not start, a bot that nobody polls any more.
pub async fn run(options: Options) -> Result<Report> {
    let openclaw = options.common.openclaw()?;
    let names = Names::default();
    let address = SocketAddr::from(([127, 0, 0, 1], free_ports(1)?.first().copied().context("a port")?));
    let telegram = Arc::new(start_telegram(address, names.clone()).await?);
    let api_root = format!("http://{address}");
    let start = cluster::Options::new(&openclaw, 3)
        .directory(options.common.directory()?)
        .settings(|settings| settings.session.dm_scope = DmScope::PerPeer)
        .written(
            "channels",
            json!({"telegram": {
                "botToken": TOKEN,
                "apiRoot": api_root,
                "dmPolicy": "open",
                "allowFrom": ["*"],
                "unknown": "hold",
            }}),
        );
    let start = if options.fault == Fault::Isolate { start.proxied() } else { start };
    let mut cluster = Cluster::start(start, READY).await?;
    let outcome = break_and_judge(&mut cluster, &telegram, &names, &options).await;
    let alarms = cluster.alarms()?;
    let passed = alarms.is_empty()
        && outcome
            .as_ref()
            .is_ok_and(|found| found.anomalies.is_empty() && found.gaps.len() == options.rounds as usize);
    if !passed {
        cluster.keep();
    }
    let found = outcome?;
    let gap = Summary::of(&found.gaps);
    let smallest = found.margins_ms.iter().copied().reduce(f64::min);
    let mut text = format!(
        "channels: {} of the owner of a Telegram bot, {} rounds, 3 instances, seed {}, policy for unknown sends: hold\n\
         from the fault to the next owner's first poll: {gap}\n\
         smallest time between the old owner's last poll and the new one's first: {}\n\
         {} messages: {} answered exactly once, {} held as unknown; slowest answer {:.0} ms ({})\n\
         anomalies: {}; alarms in logs: {}\n",
        options.fault.name(),
        found.gaps.len(),
        options.seed,
        smallest.map_or_else(|| "none".to_owned(), |ms| format!("{ms:.1} ms")),
        found.messages,
        found.answered_once,
        found.held,
        found.slowest_answer_ms,
        found.slowest,
        found.anomalies.len(),
        alarms.len(),
    );
    for line in found.anomalies.iter().chain(&alarms).take(SHOWN) {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(if passed { "passed" } else { "FAILED" });
    let arguments = format!(
        "--fault {} --rounds {} --pause-ms {} --seed {}",
        options.fault.name(),
        options.rounds,
        options.pause_ms,
        options.seed
    );
    let figures = Figures {
        seed: options.seed,
        fault: options.fault.name(),
        rounds: found.gaps.len(),
        policy: "hold",
        gap,
        smallest_margin_ms: smallest,
        findings: &found,
        alarms: &alarms,
        rerun: rerun("channels", &openclaw, &arguments),
    };
    Report::new(text, &figures, passed)
}

async fn start_telegram(address: SocketAddr, names: Names) -> Result<Handle> {
    let label = Label::new(move |peer, _| {
        let names = names.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let pid = process_of(peer, address, names.keys().copied())?;
        names.get(&pid).cloned()
    });
    let options = telegram::Options { label: Some(label), remembered: 5000, ..telegram::Options::with_bots(&[TOKEN]) };
    let telegram = telegram::start(address, options).await?;
    for person in 1..=PEOPLE {
        telegram.add_user(UserId(person), "Ann", None);
    }
    Ok(telegram)
}

fn bot() -> BotId {
    telegram::Account::new(TOKEN).id()
}

/// A message to the bot, and when it was said.
struct Said {
    chat: ChatId,
    id: MessageId,
    at: Duration,
}

/// Says one thing after the other until it is told to stop.
struct Talk {
    said: Arc<Mutex<Vec<Said>>>,
    stop: Arc<tokio::sync::Notify>,
    task: JoinHandle<Result<()>>,
}

impl Talk {
    fn start(telegram: Arc<Handle>, pause: Duration) -> Self {
        let said: Arc<Mutex<Vec<Said>>> = Arc::default();
        let stop = Arc::new(tokio::sync::Notify::new());
        let (all, stopped) = (said.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let mut n: i64 = 0;
            loop {
                let person = n % PEOPLE + 1;
                let one = telegram.say(bot(), ChatId(person), UserId(person), format!("message {n}").as_str())?;
                let at = unix_now();
                all.lock().unwrap_or_else(PoisonError::into_inner).push(Said {
                    chat: ChatId(person),
                    id: one.message,
                    at,
                });
                n += 1;
                tokio::select! {
                    () = stopped.notified() => return Ok(()),
                    () = tokio::time::sleep(pause) => {}
                }
            }
        });
        Self { said, stop, task }
    }

    fn count(&self) -> usize {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    async fn stop(self) -> Result<Vec<Said>> {
        self.stop.notify_one();
        self.task.await.context("whoever talks panicked")??;
        Ok(std::mem::take(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn unix_now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

async fn break_and_judge(
    cluster: &mut Cluster,
    telegram: &Arc<Handle>,
    names: &Names,
    options: &Options,
) -> Result<Findings> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    for index in 0..cluster.len() {
        name(cluster, index, names);
    }
    telegram.wait_for_poll(bot(), READY).await?;
    let talk = Talk::start(telegram.clone(), Duration::from_millis(options.pause_ms));
    let mut found = Findings::default();
    for round in 1..=options.rounds {
        let answered = replies(telegram).values().sum::<usize>();
        // What gathered during the last fault is answered first: faults that follow too closely only add up.
        let open = || talk.count().saturating_sub(replies(telegram).values().sum());
        let progress = || replies(telegram).values().sum::<usize>() >= answered + BETWEEN;
        until("answers before the next fault", || progress() && open() <= BACKLOG).await?;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
        one_round(cluster, telegram, names, options.fault, &mut found)
            .await
            .with_context(|| format!("round {round}"))?;
        for overlap in telegram.overlapping_polls(bot()) {
            let (first, second) = (who(&overlap.first), who(&overlap.second));
            found
                .anomalies
                .push(format!("round {round}: {first} and {second} polled at once for {:?}", overlap.lasted));
        }
        eprintln!(
            "round {round} of {}: next poll after {:?}, {} messages so far",
            options.rounds,
            found.gaps.last(),
            talk.count()
        );
    }
    let said = talk.stop().await?;
    judge(cluster, telegram, &said, &mut found).await?;
    Ok(found)
}

fn name(cluster: &mut Cluster, index: usize, names: &Names) {
    let instance = cluster.instance(index);
    let id = instance.id.to_string();
    let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
    names.retain(|_, name| *name != id);
    names.extend(instance.process.pid().map(|pid| (pid, id)));
}

fn who(request: &Recorded) -> &str {
    request.poller.as_deref().unwrap_or("nobody known")
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
async fn owner(cluster: &mut Cluster) -> Result<usize> {
    let begin = Instant::now();
    loop {
        // An instance that has just begun may know an owner of long ago: the newest grant counts.
        let mut newest: Option<ChannelStatus> = None;
        for client in cluster.clients(Protocol::Http1, Duration::from_secs(2)) {
            let Reply::Ok(list) = client.channels().await else { continue };
            let channels = list.channels.into_iter().filter(|channel| channel.account == ACCOUNT).chain(newest.take());
            newest = channels.max_by_key(|channel| channel.fencing_token);
        }
        let settled = newest.filter(|channel| channel.moving_to.is_none()).and_then(|channel| channel.owner);
        let index = settled.and_then(|owner| cluster.instances().iter().position(|one| one.id.as_str() == owner));
        if let Some(index) = index {
            return Ok(index);
        }
        ensure!(begin.elapsed() < GIVE_UP, "nobody owns {ACCOUNT}");
        tokio::time::sleep(POLL).await;
    }
}

async fn one_round(
    cluster: &mut Cluster,
    telegram: &Handle,
    names: &Names,
    fault: Fault,
    found: &mut Findings,
) -> Result<()> {
    let victim = owner(cluster).await?;
    let old = cluster.instance(victim).id.to_string();
    let of = |request: &Recorded, name: &str| request.method == Some(Method::GetUpdates) && who(request) == name;
    let began = Instant::now();
    match fault {
        Fault::Kill => cluster.instance(victim).process.kill()?,
        Fault::Pause => cluster.instance(victim).process.pause()?,
        Fault::Isolate => cluster.network()?.isolate(victim),
        Fault::Move => {
            let to = cluster.instances()[(victim + 1) % cluster.len()].id.to_string();
            let client = cluster.instance(victim).client().clone();
            client.move_channel(ACCOUNT, &to).await.ok()?;
        }
    }
    let wanted = |request: &Recorded| {
        request.method == Some(Method::GetUpdates) && request.started.at > began && !of(request, &old)
    };
    let next = telegram.wait_for_request(wanted, GIVE_UP).await.context("another instance polls")?;
    found.gaps.push(next.started.at.duration_since(began));
    if let Some(last) =
        telegram.requests().iter().rfind(|request| of(request, &old) && request.started.at < next.started.at)
    {
        let margin = match last.ended {
            Some((ended, _)) if ended.at <= next.started.at => next.started.at.duration_since(ended.at).as_secs_f64(),
            Some((ended, _)) => -ended.at.duration_since(next.started.at).as_secs_f64(),
            None => f64::NEG_INFINITY,
        };
        // The socket of a paused process stays open: what counts there is that nothing leaves it.
        if fault != Fault::Pause {
            found.margins_ms.push(margin * 1000.0);
            if margin < 0.0 {
                found.anomalies.push(format!(
                    "{old} still polled {:.1} ms after {} had begun",
                    -margin * 1000.0,
                    who(&next)
                ));
            }
        }
    }
    match fault {
        Fault::Kill => {
            cluster.start_one(victim)?;
            name(cluster, victim, names);
        }
        Fault::Pause => {
            tokio::time::sleep_until((began + PAUSE).into()).await;
            let woken = Instant::now();
            cluster.instance(victim).process.resume()?;
            cluster.instance(victim).wait_ready(READY).await?;
            // It may own the bot again later, but not before its epoch is known to be over: nothing left it meanwhile.
            let spoke = |request: &&Recorded| {
                request.started.at > woken && who(request) == old && request.started.at < woken + Duration::from_secs(2)
            };
            for request in telegram.requests().iter().filter(spoke) {
                let called = &request.called;
                found.anomalies.push(format!(
                    "{old} called {called} {:?} after it woke",
                    request.started.at.duration_since(woken)
                ));
            }
        }
        Fault::Isolate => cluster.network()?.heal(),
        Fault::Move => {}
    }
    cluster.instance(victim).wait_ready(READY).await?;
    Ok(())
}

/// How often each message was answered.
fn replies(telegram: &Handle) -> BTreeMap<(ChatId, MessageId), usize> {
    let mut counts = BTreeMap::new();
    for person in 1..=PEOPLE {
        for message in telegram.messages(bot(), ChatId(person)) {
            if let Some(answered) = message.reply_to {
                *counts.entry((message.chat, answered)).or_default() += 1;
            }
        }
    }
    counts
}

/// Messages of each chat that the gateway says it may or may not have sent.
async fn held(cluster: &mut Cluster) -> Result<BTreeMap<String, usize>> {
    let clients = cluster.clients(Protocol::Http1, Duration::from_secs(5));
    let client = clients.first().context("a client")?;
    let mut held = BTreeMap::new();
    for letter in client.dead_letters(ACCOUNT).await.ok()?.dead_letters {
        *held.entry(letter.chat).or_default() += 1;
    }
    Ok(held)
}

async fn judge(cluster: &mut Cluster, telegram: &Handle, said: &[Said], found: &mut Findings) -> Result<()> {
    let begin = Instant::now();
    let missing = |counts: &BTreeMap<(ChatId, MessageId), usize>| {
        let mut missing: BTreeMap<String, usize> = BTreeMap::new();
        for one in said.iter().filter(|one| !counts.contains_key(&(one.chat, one.id))) {
            *missing.entry(one.chat.to_string()).or_default() += 1;
        }
        missing
    };
    // Answers that are on their way arrive; then what is missing is what is held.
    let (counts, held) = loop {
        let (counts, held) = (replies(telegram), held(cluster).await?);
        let open = missing(&counts).iter().any(|(chat, count)| *count > held.get(chat).copied().unwrap_or_default());
        if !open || begin.elapsed() > GIVE_UP {
            break (counts, held);
        }
        tokio::time::sleep(POLL * 10).await;
    };
    found.messages = said.len();
    found.answered_once = said.iter().filter(|one| counts.get(&(one.chat, one.id)) == Some(&1)).count();
    found.held = held.values().sum();
    for (chat, count) in missing(&counts) {
        let known = held.get(&chat).copied().unwrap_or_default();
        if count > known {
            found
                .anomalies
                .push(format!("chat {chat}: {count} messages have no answer, and {known} are listed as unknown"));
        }
    }
    for ((chat, message), count) in &counts {
        if *count > 1 {
            found.anomalies.push(format!("chat {chat}: message {message} was answered {count} times"));
        }
    }
    let mut slowest = Duration::ZERO;
    for person in 1..=PEOPLE {
        for reply in telegram.messages(bot(), ChatId(person)) {
            let asked = said.iter().find(|one| one.chat == reply.chat && Some(one.id) == reply.reply_to);
            let Some(asked) = asked.filter(|asked| reply.date.saturating_sub(asked.at) > slowest) else { continue };
            slowest = reply.date.saturating_sub(asked.at);
            let at = said.first().map_or(Duration::ZERO, |first| asked.at.saturating_sub(first.at));
            found.slowest = format!("chat {}, message {}, asked at {:.1} s", asked.chat, asked.id, at.as_secs_f64());
        }
    }
    found.slowest_answer_ms = slowest.as_secs_f64() * 1000.0;
    Ok(())
}
