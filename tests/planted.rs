//! A server that breaks a promise on purpose, and the harness that must find it: one test per planted bug, and one that
//! has none.
//!
//! Each bug is met by the fault that shows it, and what is found must be of its kind. What hangs on the moment is tried
//! with a few seeds, which are printed. `openclaw_raft::planted` lists the bugs; those whose fault or check is a matter of
//! `cargo jepsen` alone are not here.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use jepsen_lite::checkers::answers::{self, Answered, Asked, Question, Unsent};
use jepsen_lite::checkers::append::Anomaly;
use jepsen_lite::checkers::turn;
use jepsen_lite::client::{Client, Failure, Protocol, Reader, Reply, append_until};
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::commands::{self, channels, turns};
use jepsen_lite::fakes::telegram::{self, BotId, ChatId, Fault, Handle, Method, Rule, UserId};
use jepsen_lite::workloads::append::{self, Load};
use openclaw_proto::http::{ChatRequest, ErrorCode, TurnState};
use openclaw_proto::ids::{IdempotencyKey, SessionKey, TurnId};
use openclaw_raft::planted::{Bug, VARIABLE};
use serde_json::json;

/// For anything that ends by itself.
const SOON: Duration = Duration::from_secs(60);
/// Time limit of one request.
const REQUEST: Duration = Duration::from_secs(20);
/// What a client waits for an answer that may never come, and a test for something that must not happen.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
const LOOKS: usize = 50;
/// Runs in which a bug may stay unseen.
const SEEDS: u64 = 3;

fn soon() -> Instant {
    Instant::now() + SOON
}

fn session(name: &str) -> Result<SessionKey> {
    SessionKey::parse(name).context("session key")
}

fn key(text: &str) -> Result<IdempotencyKey> {
    IdempotencyKey::parse(text).context("idempotency key")
}

fn clients(cluster: &Cluster) -> Vec<Client> {
    cluster.clients(Protocol::Http1, REQUEST)
}

fn others(clients: &[Client], index: usize) -> Vec<Client> {
    clients.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, client)| client.clone()).collect()
}

/// Entries after which a snapshot is made: more than the log is cut by at once, so that already the first one cuts it.
const SNAPSHOT_EVERY: u64 = 1500;

/// The built binary, with proxies between three instances, and with snapshots that come soon and keep little log.
fn options(bug: Option<Bug>) -> Options {
    let options = Options::new(binary(), 3).proxied().settings(|settings| {
        settings.cluster.raft.snapshot_every = SNAPSHOT_EVERY;
        settings.cluster.raft.log_keep = 50;
    });
    match bug {
        Some(bug) => options.variable(VARIABLE, bug.name()),
        None => options,
    }
}

/// Has `provoke` look for `bug` with one seed after the other, until it found what shows it. A run that fails for another
/// reason has found nothing.
async fn found(bug: Bug, provoke: impl AsyncFn(u64) -> Result<Vec<String>>) -> Result<()> {
    for seed in 1..=SEEDS {
        let begin = Instant::now();
        let what = match provoke(seed).await {
            Ok(found) => found.first().cloned(),
            Err(error) => {
                eprintln!("{}, seed {seed}: inconclusive: {error:#}", bug.name());
                continue;
            }
        };
        eprintln!("{}, seed {seed}, {:.1?}: found {what:?}", bug.name(), begin.elapsed());
        if what.is_some() {
            return Ok(());
        }
    }
    bail!("{} was not found in {SEEDS} runs", bug.name())
}

/// Has `provoke` break a cluster that has `bug`.
async fn caught(bug: Bug, provoke: impl AsyncFn(&mut Cluster, u64) -> Result<Vec<String>>) -> Result<()> {
    found(bug, async |seed| {
        let mut cluster = Cluster::start(options(Some(bug)), SOON).await?;
        provoke(&mut cluster, seed).await
    })
    .await
}

/// Repeats what fails while a leader is being elected, or a state is not reached yet.
async fn retried<T>(attempt: impl AsyncFn() -> Result<T>) -> Result<T> {
    let deadline = soon();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Clients that append until they are stopped.
fn start_load(cluster: &Cluster, seed: u64, clients: u32, repeat_one_in: u32) -> Result<Load> {
    let steady = append::Options::steady(format!("planted-{seed}"), SOON);
    let options = append::Options { clients, repeat_one_in, seed, ..steady };
    Load::start(options, &self::clients(cluster))
}

/// Ends the load, and gives those anomalies that are of the kind.
async fn judge(load: Load, kind: impl Fn(&Anomaly) -> bool) -> Result<Vec<String>> {
    load.progress().stop();
    let verdict = load.judge().await?;
    Ok(verdict.anomalies.iter().filter(|anomaly| kind(anomaly)).map(ToString::to_string).collect())
}

/// Writes go on while their leader is cut off: what it acknowledges meanwhile is overwritten.
async fn lost_by_a_cut(cluster: &mut Cluster, seed: u64) -> Result<Vec<String>> {
    let load = start_load(cluster, seed, 24, 20)?;
    let progress = load.progress().clone();
    progress.reached(100, SOON).await?;
    let leader = cluster.leader(SOON).await?;
    cluster.network()?.isolate(leader)?;
    let deadline = soon();
    while cluster.leader(SOON).await? == leader {
        ensure!(Instant::now() < deadline, "the cut leader has no successor");
        tokio::time::sleep(POLL).await;
    }
    progress.reached(progress.acknowledged() + 50, SOON).await?;
    cluster.network()?.heal()?;
    cluster.wait_all_ready(SOON).await?;
    judge(load, |anomaly| matches!(anomaly, Anomaly::Lost { .. })).await
}

/// Each write is repeated, and some of them find the cluster restarted.
async fn repeats_over_restarts(cluster: &mut Cluster, seed: u64) -> Result<Vec<String>> {
    let load = start_load(cluster, seed, 16, 1)?;
    let progress = load.progress().clone();
    for writes in [200, 400] {
        progress.reached(writes, SOON).await?;
        cluster.kill_all()?;
        cluster.start_all()?;
        cluster.wait_all_ready(SOON).await?;
    }
    progress.reached(600, SOON).await?;
    judge(load, |anomaly| matches!(anomaly, Anomaly::AnswerChanged { .. } | Anomaly::Doubled { .. })).await
}

/// An instance is away for so long that only a snapshot can bring it what it missed.
async fn absent_until_a_snapshot(cluster: &mut Cluster, seed: u64) -> Result<Vec<String>> {
    let leader = cluster.leader(SOON).await?;
    // Others are compared with the first.
    let absent = (1..3).find(|index| *index != leader).context("a follower")?;
    cluster.instance(absent).process.kill()?;
    let load = start_load(cluster, seed, 16, 20)?;
    let progress = load.progress().clone();
    progress.reached(2 * SNAPSHOT_EVERY, SOON).await?;
    cluster.start_one(absent)?;
    cluster.instance(absent).wait_ready(SOON).await?;
    progress.reached(progress.acknowledged() + 200, SOON).await?;
    judge(load, |anomaly| matches!(anomaly, Anomaly::Diverged { .. })).await
}

/// Repeated keys, without any fault.
async fn repeats_alone(cluster: &mut Cluster, seed: u64) -> Result<Vec<String>> {
    let load = start_load(cluster, seed, 8, 2)?;
    load.progress().reached(200, SOON).await?;
    judge(load, |anomaly| matches!(anomaly, Anomaly::Diverged { .. })).await
}

/// A leader that was deposed, and does not know it, is read.
async fn read_of_a_deposed_leader(cluster: &mut Cluster, _: u64) -> Result<Vec<String>> {
    let (clients, notes) = (clients(cluster), session("notes")?);
    clients[0].append(&notes, "before", &key("before")?).await.ok()?;
    let leader = cluster.leader(SOON).await?;
    let entries = async |client: &Client| client.with_timeout(PATIENCE).entries(&notes, 0, 10).await;
    entries(&clients[leader]).await.ok()?;
    cluster.network()?.isolate(leader)?;
    let written = append_until(&others(&clients, leader), 0, &notes, "after", &key("after")?, soon()).await;
    ensure!(written.is_ok(), "{written:?}");
    Ok(match entries(&clients[leader]).await {
        Reply::Ok(list) if list.entries.len() < 2 => {
            vec![format!("head {} was read after 2 was acknowledged", list.head_seq)]
        }
        Reply::Ok(_) | Reply::Failed(_) | Reply::Unknown(_) => Vec::new(),
    })
}

/// A follower that is cut off is asked to write, once it knows that it is alone.
async fn write_in_a_minority(cluster: &mut Cluster, _: u64) -> Result<Vec<String>> {
    let alone = (cluster.leader(SOON).await? + 1) % 3;
    let client = clients(cluster)[alone].with_timeout(PATIENCE);
    cluster.network()?.isolate(alone)?;
    // For several looks: an answer that is late for another reason, or a leader that is just being elected, says nothing.
    retried(async || {
        for _ in 0..LOOKS {
            ensure!(!client.is_ready().await, "it has not noticed the cut");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    })
    .await?;
    let begin = Instant::now();
    Ok(match client.append(&session("notes")?, "alone", &key("alone")?).await {
        Reply::Failed(Failure { code: Some(ErrorCode::NoQuorum), .. }) => Vec::new(),
        other @ (Reply::Ok(_) | Reply::Failed(_) | Reply::Unknown(_)) => {
            vec![format!("a minority answered {other:?} after {:?}", begin.elapsed())]
        }
    })
}

/// What the model in the binary counts to.
fn count(tokens: u32, delay_ms: u32) -> String {
    format!("[tokens={tokens} delay={delay_ms}ms]")
}

fn counted(tokens: u32) -> String {
    (1..=tokens).map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
}

fn say(session: &SessionKey, message: String) -> ChatRequest {
    ChatRequest { session_key: Some(session.to_string()), message, ..ChatRequest::default() }
}

/// Has `client` run turns: an instance that has just begun gives them to others.
async fn runs_turns(client: &Client, instance: &str) -> Result<()> {
    let request = say(&session("warm-up")?, "hello".into());
    retried(async || {
        let answer = client.chat(&request, &IdempotencyKey::random()).await.ok()?;
        ensure!(answer.instance_id == instance, "{} runs what {instance} was asked", answer.instance_id);
        Ok(())
    })
    .await
}

/// Two messages to one session, the second while the first is answered.
async fn message_during_a_turn(cluster: &mut Cluster, _: u64) -> Result<Vec<String>> {
    let (clients, talk) = (clients(cluster), session("talk")?);
    let request = say(&talk, count(60, 50));
    let first = Reader::start(&clients, 0, &request, &key("first")?).await?;
    let second = Reader::start(&clients, 1, &request, &key("second")?).await?;
    let running =
        async |turn: &TurnId| -> Result<bool> { Ok(clients[2].turn(turn).await.ok()?.state == TurnState::Running) };
    // Asked in this order: the first began before the second did, and runs still.
    let both = running(second.turn()).await? && running(first.turn()).await?;
    Ok(if both { vec![format!("{} and {} run at once in {talk}", first.turn(), second.turn())] } else { Vec::new() })
}

/// The runner of a turn is cut off, and its own reader waits for the end.
async fn end_of_a_turn_without_a_quorum(cluster: &mut Cluster, _: u64) -> Result<Vec<String>> {
    const TOKENS: u32 = 20;
    let runner = (cluster.leader(SOON).await? + 1) % 3;
    let (clients, talk) = (clients(cluster), session("talk")?);
    runs_turns(&clients[runner], cluster.instances()[runner].id.as_str()).await?;
    let (request, once) = (say(&talk, count(TOKENS, 50)), key("once")?);
    let mut reader = Reader::start(&clients[runner..=runner], 0, &request, &once).await?;
    reader.read_deltas(3, soon()).await?;
    cluster.network()?.isolate(runner)?;
    let client = &others(&clients, runner)[0];
    let turn = reader.turn().clone();
    // A reader that is right waits until another instance has answered, or reads on where one is.
    let Ok(answer) = reader.finish(Instant::now() + PATIENCE / 2).await else { return Ok(Vec::new()) };
    let row = client.turn(&turn).await.ok()?;
    let repeated = client.chat(&request, &once).await.ok()?;
    let (transcript, expected) = (client.transcript(&talk).await?, counted(TOKENS));
    let seen = turn::Seen {
        question: &request.message,
        expected: &expected,
        answer: &answer,
        row: &row,
        repeated: &repeated,
        transcript: &transcript,
    };
    let early = |anomaly: &turn::Anomaly| matches!(anomaly, turn::Anomaly::State { .. });
    Ok(turn::check(&seen).into_iter().filter(early).map(|anomaly| anomaly.to_string()).collect())
}

/// Kinds of what a reader must never see, as it says them.
const DOES_NOT_ADD_UP: &str = "do not add up";

fn broken(answer: Result<impl Sized>) -> Vec<String> {
    let said = answer.err().map(|error| format!("{error:#}").replace('\n', " "));
    said.filter(|said| said.contains(DOES_NOT_ADD_UP)).into_iter().collect()
}

/// A reader goes from instance to instance.
async fn wandering_reader(cluster: &mut Cluster, _: u64) -> Result<Vec<String>> {
    let clients = clients(cluster);
    let mut reader = Reader::start(&clients, 0, &say(&session("talk")?, count(40, 50)), &key("once")?).await?;
    for deltas in [5, 15, 25] {
        reader.read_deltas(deltas, soon()).await?;
        reader.disconnect();
    }
    Ok(broken(reader.finish(soon()).await.map_err(anyhow::Error::from)))
}

/// A runner is cut off until its turn has been given to another, and comes back with the answer before that one has it.
async fn answer_of_a_lost_runner(cluster: &mut Cluster, _: u64) -> Result<Vec<String>> {
    const TOKENS: u32 = 60;
    let runner = (cluster.leader(SOON).await? + 1) % 3;
    let (clients, talk) = (clients(cluster), session("talk")?);
    runs_turns(&clients[runner], cluster.instances()[runner].id.as_str()).await?;
    let (request, once) = (say(&talk, count(TOKENS, 100)), key("once")?);
    let mut own = Reader::start(&clients[runner..=runner], 0, &request, &once).await?;
    let mut readers = Vec::new();
    for client in others(&clients, runner) {
        readers.push(Reader::start(&[client], 0, &request, &once).await?);
    }
    own.read_deltas(2, soon()).await?;
    cluster.network()?.isolate(runner)?;
    own.read_deltas(TOKENS.into(), soon()).await?;
    let client = others(&clients, runner)[0].clone();
    let row = client.turn(own.turn()).await.ok()?;
    ensure!(row.attempt == 2 && row.state == TurnState::Running, "it is another's meanwhile: {row:?}");
    cluster.network()?.heal()?;
    let mut found = Vec::new();
    for reader in readers {
        found.extend(broken(reader.finish(soon()).await.map_err(anyhow::Error::from)));
    }
    Ok(found)
}

/// A bot on a Telegram that is not Telegram, and one person who writes to it.
struct Bot {
    handle: Handle,
    id: BotId,
}

impl Bot {
    const TOKEN: &str = "7000001:planted-planted-planted-planted-plan";
    const PERSON: i64 = 1;

    async fn start() -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let handle = telegram::start(address, telegram::Options::with_bots(&[Self::TOKEN])).await?;
        handle.add_user(UserId(Self::PERSON), "Ann", None);
        Ok(Self { handle, id: telegram::Account::new(Self::TOKEN).id() })
    }

    fn settings(&self) -> serde_json::Value {
        json!({"telegram": {
            "botToken": Self::TOKEN,
            "apiRoot": self.handle.api_url(),
            "dmPolicy": "open",
            "allowFrom": ["*"],
            "unknown": "hold",
        }})
    }

    fn say(&self, text: &str) -> Result<Asked> {
        let said = self.handle.say(self.id, ChatId(Self::PERSON), UserId(Self::PERSON), text)?;
        let question = Question { chat: Self::PERSON.to_string(), message: said.message.to_string() };
        Ok(Asked { question, at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() })
    }

    fn answered(&self) -> Vec<Answered> {
        let messages = self.handle.messages(self.id, ChatId(Self::PERSON)).into_iter();
        let answered = |message: telegram::Message| Answered {
            chat: Self::PERSON.to_string(),
            to: message.reply_to.map(|to| to.to_string()),
            at: message.date,
        };
        messages.map(answered).collect()
    }

    /// Gives what may come its time, and judges.
    async fn judge(&self, cluster: &Cluster, asked: &Asked, over: impl Fn(usize) -> bool) -> Result<Vec<String>> {
        let begin = Instant::now();
        while !over(self.answered().len()) && begin.elapsed() < 2 * PATIENCE {
            tokio::time::sleep(POLL).await;
        }
        let mut unsent = Unsent::default();
        for letter in clients(cluster)[0].dead_letters("telegram:default").await.ok()?.dead_letters {
            *unsent.unknown.entry(letter.chat).or_default() += 1;
        }
        Ok(answers::check(std::slice::from_ref(asked), &self.answered(), &unsent).anomalies)
    }
}

async fn on_telegram(
    bug: Option<Bug>,
    provoke: impl AsyncFn(&mut Cluster, &Bot) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    let bot = Bot::start().await?;
    let mut cluster = Cluster::start(options(bug).written("channels", bot.settings()), SOON).await?;
    provoke(&mut cluster, &bot).await
}

/// All instances are killed as soon as Telegram forgets a message.
async fn kill_after_the_confirmation(cluster: &mut Cluster, bot: &Bot) -> Result<Vec<String>> {
    bot.handle.wait_for_poll(bot.id, SOON).await?;
    let asked = bot.say("hello")?;
    bot.handle.wait_until_confirmed(bot.id, SOON).await?;
    cluster.kill_all()?;
    cluster.start_all()?;
    cluster.wait_all_ready(SOON).await?;
    bot.judge(cluster, &asked, |answers| answers > 0).await
}

/// Telegram takes a message and does not say so.
async fn send_without_an_answer(cluster: &mut Cluster, bot: &Bot) -> Result<Vec<String>> {
    bot.handle.wait_for_poll(bot.id, SOON).await?;
    let lost = bot.handle.inject(Rule::once(Fault::ActThenClose).method(Method::SendMessage));
    let asked = bot.say("hello")?;
    lost.wait_for_hits(1, SOON).await?;
    bot.judge(cluster, &asked, |answers| answers > 1).await
}

/// Programs that have a bug whatever their environment: for commands of the harness, which start the binary themselves.
static PROGRAMS: LazyLock<Result<PathBuf>> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("planted");
    std::fs::create_dir_all(&directory).context("make a directory")?;
    for bug in Bug::ALL {
        write_program(&directory.join(bug.name()), bug).context("write a program")?;
    }
    Ok(directory)
});

fn write_program(program: &Path, bug: Bug) -> std::io::Result<()> {
    let script = format!("#!/bin/sh\n{VARIABLE}={} exec '{}' \"$@\"\n", bug.name(), env!("CARGO_BIN_EXE_openclaw"));
    if std::fs::read_to_string(program).is_ok_and(|known| known == script) {
        return Ok(());
    }
    std::fs::write(program, script)?;
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))
}

/// The binary under test. All programs are written before any is started: while another starts, it may hold a file open for
/// writing, and such a file cannot be run.
fn binary() -> &'static str {
    LazyLock::force(&PROGRAMS);
    env!("CARGO_BIN_EXE_openclaw")
}

#[derive(Parser)]
struct Arguments<T: clap::Args> {
    #[command(flatten)]
    options: T,
}

fn parse<T: clap::Args>(openclaw: impl Into<OsString>, arguments: &str) -> T {
    let openclaw = ["test".into(), "--openclaw".into(), openclaw.into()];
    let arguments = openclaw.into_iter().chain(arguments.split_whitespace().map(OsString::from));
    Arguments::parse_from(arguments).options
}

/// Has a command of the harness judge a bug; its report must say `anomaly`.
async fn reported<T: clap::Args>(
    bug: Bug,
    anomaly: &str,
    arguments: &str,
    run: impl AsyncFn(T) -> Result<commands::Report>,
) -> Result<()> {
    found(bug, async |seed| {
        let programs = PROGRAMS.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        // A run that does not pass leaves its logs, which nobody wants here.
        let directory = tempfile::tempdir().context("make a directory")?;
        let out = directory.path().join("run");
        let arguments = format!("{arguments} --seed {seed} --out {}", out.display());
        let report = run(parse(programs.join(bug.name()), &arguments)).await?;
        let lines = report.text.lines().filter(|line| !report.passed() && line.contains(anomaly));
        Ok(lines.map(|line| line.trim().to_owned()).collect())
    })
    .await
}

/// The owner is cut off. On Discord, where one that cannot commit what it hears is still seen to listen.
const OWNER_CUT_OFF: &str = "--platform discord --fault isolate --rounds 2";

#[tokio::test]
async fn a_leader_that_answers_without_a_quorum_is_caught() -> Result<()> {
    caught(Bug::AckBeforeCommit, lost_by_a_cut).await
}

#[tokio::test]
async fn a_deposed_leader_that_answers_reads_is_caught() -> Result<()> {
    caught(Bug::StaleRead, read_of_a_deposed_leader).await
}

#[tokio::test]
async fn a_read_that_asks_nobody_is_caught_beside_writes() -> Result<()> {
    let arguments = "--workload append --nemesis isolate-leader,slow --time-limit 12";
    reported(Bug::StaleRead, "stale: ", arguments, commands::run::run).await
}

#[tokio::test]
async fn a_condition_that_is_not_looked_at_is_caught() -> Result<()> {
    let arguments = "--workload register --nemesis link --time-limit 5";
    reported(Bug::IgnoredCondition, "lost-update: ", arguments, commands::run::run).await
}

#[tokio::test]
async fn states_that_differ_are_caught_by_their_hashes() -> Result<()> {
    let arguments = "--workload append --nemesis link --time-limit 5";
    reported(Bug::DivergingApply, "diverged: ", arguments, commands::run::run).await
}

#[tokio::test]
async fn a_damaged_log_that_is_accepted_is_caught() -> Result<()> {
    let arguments = "--workload append --nemesis damaged-log --time-limit 5";
    reported(Bug::AcceptedTail, "started with a damaged log", arguments, commands::run::run).await
}

/// A power cut needs a disk that can lose what was not synced, which the harness has in namespaces of its own.
#[tokio::test]
async fn an_acknowledgement_before_the_sync_is_caught_by_a_power_cut() -> Result<()> {
    let harness = Path::new(binary()).with_file_name("jepsen-lite");
    if let Err(error) = jepsen_lite::lab::enter::possible().and_then(|()| jepsen_lite::disk::usable()) {
        ensure!(std::env::var_os("CI").is_none(), "{error:#}");
        eprintln!("skipped: {error:#}");
        return Ok(());
    }
    if !harness.exists() {
        ensure!(std::env::var_os("CI").is_none(), "{} is not built", harness.display());
        eprintln!("skipped: {} is not built", harness.display());
        return Ok(());
    }
    let bug = Bug::AckBeforeFsync;
    found(bug, async |seed| {
        let programs = PROGRAMS.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        let directory = tempfile::tempdir().context("make a directory")?;
        let output = tokio::process::Command::new(&harness)
            .args(["run", "--environment", "namespaces", "--workload", "append", "--nemesis", "power-cut-all"])
            .args(["--time-limit", "8", "--seed", &seed.to_string(), "--openclaw"])
            .arg(programs.join(bug.name()))
            .arg("--out")
            .arg(directory.path().join("run"))
            .output()
            .await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lost = text.lines().filter(|line| output.status.code() == Some(1) && line.contains("lost: "));
        Ok(lost.map(|line| line.trim().to_owned()).collect())
    })
    .await
}

#[tokio::test]
async fn a_leader_that_gives_an_account_away_too_early_is_caught() -> Result<()> {
    reported(Bug::EarlyLease, "listened at once", OWNER_CUT_OFF, channels::run).await
}

#[tokio::test]
async fn an_owner_that_outlives_its_lease_is_caught() -> Result<()> {
    reported(Bug::OutlivedLease, "listened at once", OWNER_CUT_OFF, channels::run).await
}

#[tokio::test]
async fn a_write_with_an_old_fencing_token_is_caught() -> Result<()> {
    caught(Bug::StaleToken, answer_of_a_lost_runner).await
}

#[tokio::test]
async fn a_restart_that_forgets_keys_is_caught() -> Result<()> {
    caught(Bug::ForgottenKeys, repeats_over_restarts).await
}

#[tokio::test]
async fn a_snapshot_that_lacks_an_entry_is_caught() -> Result<()> {
    caught(Bug::ShortSnapshot, absent_until_a_snapshot).await
}

#[tokio::test]
async fn two_turns_of_a_session_at_once_are_caught() -> Result<()> {
    caught(Bug::TwoTurns, message_during_a_turn).await
}

#[tokio::test]
async fn a_done_that_is_not_committed_is_caught() -> Result<()> {
    caught(Bug::EarlyDone, end_of_a_turn_without_a_quorum).await
}

#[tokio::test]
async fn an_attempt_that_begins_without_a_word_is_caught() -> Result<()> {
    reported(Bug::SilentRestart, DOES_NOT_ADD_UP, "--rounds 1", turns::run).await
}

#[tokio::test]
async fn instances_that_apply_differently_are_caught() -> Result<()> {
    caught(Bug::DivergingApply, repeats_alone).await
}

#[tokio::test]
async fn a_stream_that_skips_a_delta_on_another_instance_is_caught() -> Result<()> {
    caught(Bug::SkippedDelta, wandering_reader).await
}

#[tokio::test]
async fn a_minority_that_lets_requests_hang_is_caught() -> Result<()> {
    caught(Bug::HangingMinority, write_in_a_minority).await
}

#[tokio::test]
async fn a_message_that_is_confirmed_before_it_is_stored_is_caught() -> Result<()> {
    let bug = Bug::EarlyOffset;
    found(bug, async |_| on_telegram(Some(bug), kill_after_the_confirmation).await).await
}

#[tokio::test]
async fn a_message_that_is_sent_twice_is_caught() -> Result<()> {
    let bug = Bug::RepeatedSend;
    found(bug, async |_| on_telegram(Some(bug), send_without_an_answer).await).await
}

#[tokio::test]
async fn a_bug_that_does_not_exist_is_not_planted() -> Result<()> {
    let misspelt = Options::new(binary(), 1).variable(VARIABLE, "stale-reads");
    let directory = tempfile::tempdir()?;
    let options = misspelt.directory(Some(directory.path().join("run")));
    let error = Cluster::start(options, SOON).await.err().context("it must not start")?;
    let said = format!("{error:#}");
    ensure!(said.contains("there is no bug") && said.contains(Bug::StaleRead.name()), "{said}");
    Ok(())
}

/// The same faults and judges, so that each of them is known to find the bug and nothing else.
#[tokio::test]
async fn without_a_bug_nothing_is_found() -> Result<()> {
    let faults = "--nemesis kill-leader,isolate-leader,kill-all --time-limit 15 --seed 1";
    let report = commands::run::run(parse(binary(), faults)).await?;
    ensure!(report.passed(), "{}", report.text);

    async fn check(name: &str, provoke: impl AsyncFn(&mut Cluster, u64) -> Result<Vec<String>>) -> Result<()> {
        let mut cluster = Cluster::start(options(None), SOON).await?;
        let found = provoke(&mut cluster, 1).await.with_context(|| name.to_owned())?;
        ensure!(found.is_empty(), "{name}: {found:#?}");
        Ok(())
    }
    check("lost by a cut", lost_by_a_cut).await?;
    check("repeats over restarts", repeats_over_restarts).await?;
    check("absent until a snapshot", absent_until_a_snapshot).await?;
    check("repeats alone", repeats_alone).await?;
    check("read of a deposed leader", read_of_a_deposed_leader).await?;
    check("write in a minority", write_in_a_minority).await?;
    check("message during a turn", message_during_a_turn).await?;
    check("end of a turn without a quorum", end_of_a_turn_without_a_quorum).await?;
    check("wandering reader", wandering_reader).await?;
    check("answer of a lost runner", answer_of_a_lost_runner).await?;

    for found in
        [on_telegram(None, kill_after_the_confirmation).await?, on_telegram(None, send_without_an_answer).await?]
    {
        ensure!(found.is_empty(), "{found:#?}");
    }
    Ok(())
}
