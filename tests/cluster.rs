//! The built binary, three processes at a time, as clients and operators meet it: conversations, kills, restarts, cuts.
//!
//! Each test waits for conditions with deadlines that a busy machine keeps too; what is fast is measured by
//! `cargo jepsen`, not here. When a test fails it prints where every instance's log is.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use jepsen_lite::client::{Answer, Client, Failure, Protocol, Reader, Reply, append_until};
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::commands::{self, turns};
use jepsen_lite::network::Balancer;
use jepsen_lite::workloads::append::{self, Load};
use jepsen_lite::workloads::register;
use openclaw_proto::http::{ChatRequest, Entry, ErrorCode, Role};
use openclaw_proto::ids::{IdempotencyKey, SessionKey};
use serde_json::Value;

/// For anything that ends by itself.
const SOON: Duration = Duration::from_secs(60);
/// Time limit of one request.
const REQUEST: Duration = Duration::from_secs(20);

fn options() -> Options {
    Options::new(env!("CARGO_BIN_EXE_openclaw"), 3)
}

fn soon() -> Instant {
    Instant::now() + SOON
}

fn session(name: &str) -> Result<SessionKey> {
    SessionKey::parse(name).context("session key")
}

fn key(text: &str) -> Result<IdempotencyKey> {
    IdempotencyKey::parse(text).context("idempotency key")
}

fn say(session: &SessionKey, message: &str) -> ChatRequest {
    ChatRequest { session_key: Some(session.to_string()), message: message.to_owned(), ..ChatRequest::default() }
}

fn clients(cluster: &Cluster) -> Vec<Client> {
    cluster.clients(Protocol::Http1, REQUEST)
}

/// A load that ends after `appends`, or when it is told to.
fn load(run: &str, clients: u32, appends: Option<u64>) -> append::Options {
    append::Options { clients, appends, ..append::Options::steady(run, SOON) }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(SOON, future).await.with_context(|| format!("{what} took longer than {SOON:?}"))
}

/// Runs a test on a fresh cluster. Whatever the clients saw, no log may tell of a panic; the logs of a test that fails stay.
async fn run(options: Options, test: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut cluster = Cluster::start(options, SOON).await?;
    let result = match test(&mut cluster).await {
        Ok(()) => cluster.alarms().and_then(|alarms| {
            ensure!(alarms.is_empty(), "{alarms:#?}");
            Ok(())
        }),
        Err(error) => Err(error),
    };
    if result.is_err() {
        cluster.keep();
    }
    result
}

async fn transcripts(cluster: &Cluster, session: &SessionKey) -> Result<Vec<Vec<Entry>>> {
    let mut all = Vec::new();
    for client in clients(cluster) {
        all.push(client.transcript(session).await?);
    }
    Ok(all)
}

/// Repeats what fails while a leader is being elected.
async fn retried<T>(attempt: impl AsyncFn() -> Result<T>) -> Result<T> {
    let deadline = soon();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[tokio::test]
async fn a_conversation_through_the_balancer_is_the_same_on_every_instance() -> Result<()> {
    run(options(), async |cluster| {
        let balancer = Balancer::start(cluster.instances().iter().map(|instance| instance.http).collect()).await?;
        let talk = session("talk")?;
        let mut answered_by = BTreeSet::new();
        let mut replies = Vec::new();
        for n in 1..=6 {
            // A fresh client makes a fresh connection, which the balancer gives to the next instance.
            let client = Client::new(balancer.address(), Protocol::Http1, REQUEST);
            let answer = client.chat(&say(&talk, &format!("message {n}")), &key(&format!("talk-{n}"))?).await.ok()?;
            assert_eq!(answer.session_key, talk.as_str());
            answered_by.insert(answer.instance_id);
            replies.push(answer.reply);
        }
        assert_eq!(answered_by.len(), 3, "each of the instances answers: {answered_by:?}");
        let transcripts = transcripts(cluster, &talk).await?;
        assert!(transcripts.iter().all(|transcript| *transcript == transcripts[0]));
        assert_eq!(transcripts[0].len(), 12);
        for (pair, (reply, n)) in transcripts[0].chunks(2).zip(replies.iter().zip(1..)) {
            assert_eq!((pair[0].role, pair[0].text.as_str()), (Role::User, format!("message {n}").as_str()));
            assert_eq!((pair[1].role, &pair[1].text, &pair[1].id), (Role::Assistant, &reply.text, &reply.entry_id));
        }
        Ok(())
    })
    .await
}

const NUMBERS: usize = 60;

/// The echo model counts to [`NUMBERS`] in about three seconds, so that a lost or doubled piece shows.
fn count() -> String {
    format!("[tokens={NUMBERS} delay=50ms]")
}

fn check_count(answer: &Answer) {
    let numbers: Vec<String> = (1..=NUMBERS).map(|n| n.to_string()).collect();
    assert_eq!(answer.text.split_whitespace().collect::<Vec<_>>(), numbers, "{answer:?}");
    assert_eq!(answer.streamed, answer.text);
}

#[derive(Parser)]
struct Arguments<T: clap::Args> {
    #[command(flatten)]
    options: T,
}

/// Some of the faults, each once: `cargo jepsen run` does all of them, for longer.
#[tokio::test]
async fn nothing_acknowledged_is_lost_whatever_is_done_to_the_cluster() -> Result<()> {
    let faults = "kill-leader,pause-leader,isolate-leader,ring,mute,kill-majority";
    let arguments = ["test", "--openclaw", env!("CARGO_BIN_EXE_openclaw"), "--nemesis", faults];
    let arguments = arguments.iter().chain(&["--time-limit", "40", "--seed", "5"]);
    let report = commands::run::run(Arguments::parse_from(arguments).options).await?;
    ensure!(report.passed(), "{}", report.text);
    Ok(())
}

#[tokio::test]
async fn a_reader_gets_one_whole_answer_when_the_leader_or_a_follower_dies_mid_stream() -> Result<()> {
    let arguments = ["test", "--openclaw", env!("CARGO_BIN_EXE_openclaw"), "--rounds", "2", "--seed", "3"];
    let report = turns::run(Arguments::parse_from(arguments).options).await?;
    ensure!(report.passed(), "{}", report.text);
    ensure!(report.json["leadersKilled"] == 1, "the leader first, then another: {}", report.text);
    Ok(())
}

#[tokio::test]
async fn a_reader_that_changes_instances_misses_nothing_and_sees_nothing_twice() -> Result<()> {
    run(options(), async |cluster| {
        let clients = clients(cluster);
        let request = say(&session("wandering")?, &count());
        let mut reader = Reader::start(&clients, 0, &request, &key("wander")?).await?;
        // The reader itself fails on a repeat and on a gap.
        for deltas in [5, 15, 25, 35] {
            reader.read_deltas(deltas, soon()).await?;
            reader.disconnect();
        }
        let turn = reader.turn().clone();
        let answer = reader.finish(soon()).await?;
        check_count(&answer);
        assert_eq!((answer.restarts, answer.reconnects), (0, 4), "the runner lived: {answer:?}");
        // A turn that has ended can still be read, from any instance.
        for client in &clients {
            let mut late = client.resume(&turn, None).await.ok()?;
            let mut last = None;
            while let Some(event) = within("a late stream", late.next()).await?? {
                last = Some(event.event.name());
            }
            assert_eq!(last, Some("done"));
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_instance_that_missed_ten_thousand_entries_catches_up_from_a_snapshot() -> Result<()> {
    const ENTRIES: u64 = 10_000;
    const SNAPSHOT_EVERY: u64 = 1000;
    const LOG_KEEP: u64 = 200;
    let options = options().settings(|settings| {
        settings.cluster.raft.snapshot_every = SNAPSHOT_EVERY;
        settings.cluster.raft.log_keep = LOG_KEEP;
    });
    run(options, async |cluster| {
        let absent = (cluster.leader(SOON).await? + 1) % 3;
        let clients = clients(cluster);
        let present: Vec<Client> =
            (0..3).filter(|&index| index != absent).map(|index| clients[index].clone()).collect();
        let before = present[0].cluster().await.ok()?.commit_index;
        cluster.instance(absent).process.kill()?;

        let load = Load::start(load("absence", 64, Some(ENTRIES)), &present)?;
        load.progress().reached(ENTRIES, SOON).await?;
        let verdict = load.judge().await?;
        assert_eq!(verdict.anomalies, []);
        let after = present[0].cluster().await.ok()?.commit_index;
        // So much more was committed than a log keeps that only a snapshot can bring it.
        assert!(after - before > 2 * (SNAPSHOT_EVERY + LOG_KEEP), "{before}..{after}");

        cluster.start_one(absent)?;
        cluster.instance(absent).wait_ready(SOON).await?;
        let late = &clients[absent];
        let name = cluster.instance(absent).id.to_string();
        retried(async || {
            let seen = late.cluster().await.ok()?;
            let own = seen.members.iter().find(|member| member.instance_id == name);
            let applied = own.and_then(|member| member.applied_index).unwrap_or_default();
            ensure!(applied >= after, "it has applied {applied} of {after}");
            Ok(())
        })
        .await?;
        for n in 0..4 {
            let session = session(&format!("absence-{n}"))?;
            assert_eq!(late.transcript(&session).await?, present[0].transcript(&session).await?);
        }
        // It takes part again: with another one gone it is needed.
        cluster.instance((absent + 1) % 3).process.kill()?;
        let writes = [late.clone()];
        let written = append_until(&writes, 0, &session("together")?, "x", &key("together")?, soon()).await;
        assert!(written.is_ok(), "{written:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn killing_all_instances_at_once_loses_nothing_acknowledged() -> Result<()> {
    run(options(), async |cluster| {
        let load = Load::start(load("power", 16, None), &clients(cluster))?;
        let progress = load.progress().clone();
        for writes in [300, 600, 900] {
            progress.reached(writes, SOON).await?;
            cluster.kill_all()?;
            cluster.start_all()?;
            cluster.wait_all_ready(SOON).await?;
        }
        progress.reached(1200, SOON).await?;
        progress.stop();
        let verdict = load.judge().await?;
        assert_eq!(verdict.anomalies, []);
        assert!(verdict.acknowledged >= 1200 && verdict.repeats > 0, "{verdict:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_killed_leader_is_replaced_long_before_the_election_timeout() -> Result<()> {
    // Its broken connections are evidence enough; by silence alone it would take longer than any wait here.
    let election_timeout = SOON;
    let options = options().settings(|settings| {
        settings.cluster.raft.heartbeat = Duration::from_secs(1);
        settings.cluster.raft.election_timeout = election_timeout;
    });
    run(options, async |cluster| {
        let clients = clients(cluster);
        let notes = session("notes")?;
        clients[0].append(&notes, "before", &key("before")?).await.ok()?;
        let leader = cluster.leader(SOON).await?;
        cluster.instance(leader).process.kill()?;
        let others: Vec<Client> = (0..3).filter(|&index| index != leader).map(|index| clients[index].clone()).collect();
        let written = append_until(&others, 0, &notes, "after", &key("after")?, soon()).await;
        assert!(written.is_ok(), "{written:?}");
        assert_eq!(others[1].transcript(&notes).await?.len(), 2);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_retry_on_another_instance_gets_the_first_answer() -> Result<()> {
    run(options(), async |cluster| {
        let clients = clients(cluster);
        let notes = session("notes")?;
        let first = clients[0].append(&notes, "once", &key("append")?).await.ok()?;
        for client in &clients {
            assert_eq!(client.append(&notes, "once", &key("append")?).await.ok()?, first);
        }
        let other = clients[1].append(&notes, "something else", &key("append")?).await;
        assert!(
            matches!(
                &other,
                Reply::Failed(Failure { status: Some(409), code: Some(ErrorCode::IdempotencyKeyReused), .. })
            ),
            "the key was used for another text: {other:?}"
        );

        let talk = session("talk")?;
        let answer = clients[0].chat(&say(&talk, "hello"), &key("chat")?).await.ok()?;
        let leader = cluster.leader(SOON).await?;
        cluster.instance(leader).process.kill()?;
        for (_, client) in clients.iter().enumerate().filter(|(index, _)| *index != leader) {
            let again = retried(async || client.chat(&say(&talk, "hello"), &key("chat")?).await.ok()).await?;
            assert_eq!((&again.turn_id, &again.reply, again.usage), (&answer.turn_id, &answer.reply, answer.usage));
            assert_eq!(retried(async || client.append(&notes, "once", &key("append")?).await.ok()).await?, first);
            assert_eq!(client.transcript(&talk).await?.len(), 2);
            assert_eq!(client.transcript(&notes).await?.len(), 1);
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_instance_without_quorum_says_so_quickly_and_recovers() -> Result<()> {
    /// Slow enough for a busy machine, and far from a hang.
    const QUICK: Duration = Duration::from_secs(5);
    run(options(), async |cluster| {
        let leader = cluster.leader(SOON).await?;
        let alone = clients(cluster)[leader].clone();
        let notes = session("notes")?;
        alone.append(&notes, "with a quorum", &key("before")?).await.ok()?;
        for other in (0..3).filter(|&other| other != leader) {
            cluster.instance(other).process.kill()?;
        }
        // A write that was under way when the quorum went is unknown; once the loss is noticed, writes are refused.
        let deadline = soon();
        for n in 0.. {
            let begin = Instant::now();
            let reply = alone.append(&notes, &format!("alone {n}"), &key(&format!("alone-{n}"))?).await;
            ensure!(begin.elapsed() < REQUEST && Instant::now() < deadline, "{reply:?} after {:?}", begin.elapsed());
            match reply {
                Reply::Ok(answer) => panic!("written without a quorum: {answer:?}"),
                Reply::Failed(Failure { status: Some(503), code: Some(ErrorCode::NoQuorum), .. }) => break,
                Reply::Failed(failure) => panic!("refused for another reason: {failure:?}"),
                Reply::Unknown(_) => {}
            }
        }
        let begin = Instant::now();
        let write = alone.append(&notes, "refused", &key("refused")?).await;
        assert!(matches!(&write, Reply::Failed(Failure { status: Some(503), .. })), "{write:?}");
        assert!(begin.elapsed() < QUICK, "the write was refused after {:?}", begin.elapsed());
        let begin = Instant::now();
        let read = alone.entries(&notes, 0, 10).await;
        assert!(matches!(&read, Reply::Failed(Failure { status: Some(503), .. })), "never stale as if fresh: {read:?}");
        assert!(begin.elapsed() < QUICK, "the read was refused after {:?}", begin.elapsed());
        assert!(!alone.is_ready().await);
        // Who was live before is listed still, but nobody leads.
        let url = format!("http://{}", cluster.instances()[leader].http);
        let status = Command::new(env!("CARGO_BIN_EXE_openclaw"))
            .args(["cluster", "status", "--json", "--url", &url])
            .output()?;
        let said: Value = serde_json::from_slice(&status.stdout)?;
        assert_eq!(status.status.code(), Some(1), "{said}");
        assert!(said.get("leader").is_none(), "{said}");
        assert!(
            said["members"].as_array().is_some_and(|all| all.iter().all(|one| one["role"] == "follower")),
            "{said}"
        );
        assert!(said["warnings"][0].as_str().is_some_and(|warning| warning.contains("hears of no majority")), "{said}");

        cluster.start_all()?;
        cluster.wait_all_ready(SOON).await?;
        let writes = [alone.clone()];
        let written = append_until(&writes, 0, &notes, "with a quorum again", &key("after")?, soon()).await;
        assert!(written.is_ok(), "{written:?}");
        let texts: Vec<String> = alone.transcript(&notes).await?.into_iter().map(|entry| entry.text).collect();
        assert_eq!(texts.first().map(String::as_str), Some("with a quorum"));
        assert_eq!(texts.last().map(String::as_str), Some("with a quorum again"));
        assert!(!texts.iter().any(|text| text == "refused"), "{texts:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_leader_that_is_cut_off_is_replaced_and_acknowledges_nothing_meanwhile() -> Result<()> {
    run(options().proxied(), async |cluster| {
        let load = Load::start(load("cut", 8, None), &clients(cluster))?;
        let progress = load.progress().clone();
        progress.reached(100, SOON).await?;
        let leader = cluster.leader(SOON).await?;
        cluster.network()?.isolate(leader)?;
        progress.mark();
        within("a write after the cut", progress.first_after_mark()).await?;
        assert_ne!(cluster.leader(SOON).await?, leader);
        progress.reached(progress.acknowledged() + 100, SOON).await?;
        cluster.network()?.heal()?;
        cluster.wait_all_ready(SOON).await?;
        progress.reached(progress.acknowledged() + 100, SOON).await?;
        progress.stop();
        // Had the old leader acknowledged anything on its own, it would be lost, doubled or out of order now.
        assert_eq!(load.judge().await?.anomalies, []);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn labels_are_linearizable_whatever_happens_to_their_leader() -> Result<()> {
    run(options().proxied(), async |cluster| {
        let options = register::Options {
            run: "labels".to_owned(),
            clients: 8,
            sharing: 4,
            calls: 200,
            changes: None,
            // Less than an election takes when a leader is silent, so that some calls are never answered.
            attempt_ms: 200..400,
            give_up: SOON,
            pause: Duration::from_millis(2),
            seed: 1,
        };
        let load = register::Load::start(options, &clients(cluster))?;
        let progress = load.progress().clone();
        progress.reached(100, SOON).await?;
        let leader = cluster.leader(SOON).await?;
        cluster.network()?.isolate(leader)?;
        progress.mark();
        within("a change after the cut", progress.first_after_mark()).await?;
        cluster.network()?.heal()?;
        cluster.wait_all_ready(SOON).await?;
        progress.reached(progress.acknowledged() + 100, SOON).await?;
        let leader = cluster.leader(SOON).await?;
        cluster.instance(leader).process.kill()?;
        progress.reached(progress.acknowledged() + 100, SOON).await?;
        cluster.start_all()?;
        cluster.wait_all_ready(SOON).await?;
        cluster.kill_all()?;
        cluster.start_all()?;
        cluster.wait_all_ready(SOON).await?;
        progress.reached(progress.acknowledged() + 100, SOON).await?;
        load.stop();
        let check = load.judge().await?;
        assert!(check.passed(), "{check:#?}");
        for figure in ["gets", "sets", "swaps", "mismatches", "unknown"] {
            assert!(check.figures[figure].as_u64() > Some(0), "{figure}: {check:#?}");
        }
        Ok(())
    })
    .await
}

/// What the command line prints as JSON when it ends with exit code 0, asking one instance.
async fn operate(cluster: &Cluster, index: usize, arguments: &[&str]) -> Result<serde_json::Value> {
    let url = format!("http://{}", cluster.instances()[index].http);
    let command = tokio::process::Command::new(env!("CARGO_BIN_EXE_openclaw"))
        .args(arguments)
        .args(["--json", "--url", &url])
        .kill_on_drop(true)
        .output();
    let output = within("a command", command).await?.context("run the command line")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{arguments:?} ended with {}: {printed}", output.status);
    serde_json::from_str(&printed).with_context(|| format!("{arguments:?} printed {printed}"))
}

#[tokio::test]
async fn operators_move_leadership_and_remove_an_instance() -> Result<()> {
    run(options(), async |cluster| {
        let leader = cluster.leader(SOON).await?;
        let (next, last) = ((leader + 1) % 3, (leader + 2) % 3);
        let name = |index: usize| format!("node-{}", index + 1);
        // Asked of neither the old nor the new leader.
        let moved = operate(cluster, last, &["cluster", "transfer-leader", &name(next)]).await?;
        assert_eq!(moved["leader"], name(next));

        cluster.instance(leader).process.kill()?;
        let without = operate(cluster, last, &["cluster", "remove", &name(leader)]).await?;
        let mut left = vec![name(next), name(last)];
        left.sort();
        let members = without["members"].as_array().context("members")?;
        assert_eq!(members.iter().map(|member| member["instanceId"].clone()).collect::<Vec<_>>(), left);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_instance_that_is_removed_while_it_runs_ends_and_says_so() -> Result<()> {
    run(options(), async |cluster| {
        let leader = cluster.leader(SOON).await?;
        let (other, removed) = ((leader + 1) % 3, (leader + 2) % 3);
        let name = format!("node-{}", removed + 1);
        operate(cluster, other, &["cluster", "remove", &name]).await?;
        let process = &mut cluster.instance(removed).process;
        let ended = process.wait_exit(SOON).await?;
        assert_eq!(ended.code(), Some(78), "starting it again cannot help: {}", process.log_tail());
        assert!(process.log_tail().contains("was removed from the cluster"), "{}", process.log_tail());
        // Not with the list that it was bootstrapped with either: somebody took it out.
        cluster.start_one(removed)?;
        let ended = cluster.instance(removed).process.wait_exit(SOON).await?;
        assert_eq!(ended.code(), Some(78));
        // What was given to it is taken back, once its epoch has ended.
        let talk = session("after")?;
        let client = &clients(cluster)[other];
        client.chat(&say(&talk, "hello"), &key("after")?).await.ok()?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_instance_in_maintenance_ends_its_turns_and_gives_new_ones_away() -> Result<()> {
    run(options(), async |cluster| {
        let clients = clients(cluster);
        let leader = cluster.leader(SOON).await?;
        let talk = session("long")?;
        let mut reader = Reader::start(&clients, leader, &say(&talk, &count()), &key("long")?).await?;
        reader.read_deltas(5, soon()).await?;
        // Ends when nothing runs there and another instance leads.
        let drained = operate(cluster, leader, &["maintenance", "on"]).await?;
        assert_eq!((&drained["on"], &drained["drained"]), (&true.into(), &true.into()));
        assert!(!clients[leader].is_ready().await);
        assert_ne!(cluster.leader(SOON).await?, leader);
        let answer = reader.finish(soon()).await?;
        check_count(&answer);
        assert_eq!((answer.restarts, answer.reconnects), (0, 0), "the turn ran to its end where it was: {answer:?}");

        let elsewhere = clients[leader].chat(&say(&session("new")?, "hello"), &key("new")?).await.ok()?;
        assert_ne!(elsewhere.instance_id, cluster.instance(leader).id.as_str());
        operate(cluster, leader, &["maintenance", "off"]).await?;
        cluster.instance(leader).wait_ready(SOON).await?;
        let here = clients[leader].chat(&say(&session("new")?, "again"), &key("again")?).await.ok()?;
        assert_eq!(here.instance_id, cluster.instance(leader).id.as_str());
        Ok(())
    })
    .await
}

/// Runs a command that is to be refused, asking one instance: its exit code, and what it says of why.
async fn refused(cluster: &Cluster, index: usize, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let url = format!("http://{}", cluster.instances()[index].http);
    let command = tokio::process::Command::new(env!("CARGO_BIN_EXE_openclaw"))
        .args(arguments)
        .args(["--url", &url])
        .kill_on_drop(true)
        .output();
    let output = within("a command", command).await?.context("run the command line")?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[tokio::test]
async fn an_instance_that_is_needed_does_not_go_into_maintenance() -> Result<()> {
    run(options(), async |cluster| {
        let leader = cluster.leader(SOON).await?;
        let (down, needed) = ((leader + 1) % 3, (leader + 2) % 3);
        cluster.instance(down).process.kill()?;
        let (exit, said) = refused(cluster, needed, &["maintenance", "on", "--timeout", "1"]).await?;
        let why = format!("without node-{} there would be no quorum (2 of 3 voters): node-{}", needed + 1, down + 1);
        assert_eq!(exit, Some(4), "{said}");
        assert!(said.contains(&why) && said.contains("nothing was changed"), "{said}");
        assert!(clients(cluster)[needed].is_ready().await);

        // It waits for the other to be back, and then goes by itself.
        cluster.start_one(down)?;
        let drained = operate(cluster, needed, &["maintenance", "on"]).await?;
        assert_eq!(drained["drained"], true);
        // Only one at a time, though the others would still be enough to commit.
        let (exit, said) = refused(cluster, leader, &["maintenance", "on", "--timeout", "0"]).await?;
        assert_eq!(exit, Some(4), "{said}");
        assert!(said.contains(&format!("node-{} drains itself", needed + 1)), "{said}");
        operate(cluster, leader, &["maintenance", "on", "--force"]).await?;
        // A restart ends it.
        let process = &mut cluster.instance(needed).process;
        process.terminate()?;
        assert!(process.wait_exit(SOON).await?.success());
        cluster.start_one(needed)?;
        cluster.instance(needed).wait_ready(SOON).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_instance_that_stops_finishes_what_runs_on_it() -> Result<()> {
    let options = options().settings(|settings| {
        // For a machine that is slow to ask.
        settings.gateway.shutdown.lame_duck = Duration::from_secs(10);
        settings.gateway.shutdown.drain = SOON;
    });
    run(options, async |cluster| {
        let clients = clients(cluster);
        let stopped = cluster.leader(SOON).await?;
        let talk = session("long")?;
        let mut reader = Reader::start(&clients, stopped, &say(&talk, &count()), &key("long")?).await?;
        reader.read_deltas(5, soon()).await?;
        cluster.instance(stopped).process.terminate()?;
        // Meanwhile it serves, and others lead and run what is new.
        retried(async || {
            ensure!(!clients[stopped].is_ready().await, "it has not taken the signal yet");
            Ok(())
        })
        .await?;
        let elsewhere = clients[stopped].chat(&say(&session("new")?, "hello"), &key("new")?).await.ok()?;
        assert_ne!(elsewhere.instance_id, cluster.instance(stopped).id.as_str());
        let answer = reader.finish(soon()).await?;
        check_count(&answer);
        assert_eq!((answer.restarts, answer.reconnects), (0, 0), "the stream was not broken: {answer:?}");
        assert!(cluster.instance(stopped).process.wait_exit(SOON).await?.success());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_does_not_end_in_time_is_handed_over_at_once() -> Result<()> {
    let lease = Duration::from_secs(20);
    let options = options().settings(|settings| {
        settings.gateway.shutdown.lame_duck = Duration::ZERO;
        settings.gateway.shutdown.drain = Duration::from_millis(500);
        // So long that only a hand-over explains how soon the turn goes on.
        settings.cluster.lease.wait = lease;
    });
    run(options, async |cluster| {
        let clients = clients(cluster);
        let stopped = cluster.leader(SOON).await?;
        let talk = session("long")?;
        let mut reader = Reader::start(&clients, stopped, &say(&talk, &count()), &key("long")?).await?;
        reader.read_deltas(5, soon()).await?;
        let begin = Instant::now();
        let process = &mut cluster.instance(stopped).process;
        process.terminate()?;
        assert!(process.wait_exit(SOON).await?.success());
        let answer = reader.finish(soon()).await?;
        check_count(&answer);
        assert!(answer.restarts == 1 && answer.reconnects >= 1, "begun again elsewhere: {answer:?}");
        assert!(begin.elapsed() < lease, "after {:?}", begin.elapsed());
        Ok(())
    })
    .await
}
