//! The built binary with a bot, against platforms that are not Telegram and Discord: who owns it, who may write, and that each
//! message gets one answer while owners die and move. `cargo jepsen channels` does the same for longer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::commands::channels;
use jepsen_lite::fakes::telegram::{self, BotId, ChatId, Handle, Method, UserId};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const TOKEN: &str = "7000001:harness-harness-harness-harness-h";

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: channels::Options,
}

async fn broken(arguments: &[&str]) -> Result<()> {
    let openclaw = ["test", "--openclaw", env!("CARGO_BIN_EXE_openclaw")];
    let options = Arguments::parse_from(openclaw.iter().chain(arguments)).options;
    let report = channels::run(options).await?;
    ensure!(report.passed(), "{}", report.text);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_gets_one_answer_though_owners_are_killed() -> Result<()> {
    broken(&["--fault", "kill", "--rounds", "2", "--seed", "3"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_cut_off_stops_to_poll_before_the_next_begins() -> Result<()> {
    broken(&["--fault", "isolate", "--rounds", "1", "--seed", "3"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_move_loses_and_doubles_nothing() -> Result<()> {
    broken(&["--fault", "move", "--rounds", "5", "--seed", "3"]).await
}

/// Each owner goes on with the session of the one before, which the run counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_discord_session_outlives_its_owners_and_each_message_gets_one_answer() -> Result<()> {
    broken(&["--platform", "discord", "--fault", "kill", "--rounds", "2", "--seed", "3"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_move_of_a_discord_bot_loses_and_doubles_nothing() -> Result<()> {
    broken(&["--platform", "discord", "--fault", "move", "--rounds", "3", "--seed", "3"]).await
}

async fn fake() -> Result<(Handle, BotId)> {
    let options = telegram::Options::with_bots(&[TOKEN]);
    let telegram = telegram::start(SocketAddr::from(([127, 0, 0, 1], 0)), options).await?;
    Ok((telegram, telegram::Account::new(TOKEN).id()))
}

async fn cluster(telegram: &Handle, instances: usize, bot: Value) -> Result<Cluster> {
    let mut settings = json!({"botToken": TOKEN, "apiRoot": telegram.api_url()});
    let (Some(settings), Value::Object(bot)) = (settings.as_object_mut(), bot) else { unreachable!() };
    settings.extend(bot);
    let options = Options::new(env!("CARGO_BIN_EXE_openclaw"), instances);
    Cluster::start(options.written("channels", json!({"telegram": settings})), SOON).await
}

/// Runs the command line as an operator would, and gives what it printed as JSON.
fn operate(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    let url = format!("http://{}", cluster.instances()[0].http);
    let output = Command::new(PathBuf::from(env!("CARGO_BIN_EXE_openclaw")))
        .args(arguments)
        .args(["--url", &url, "--json"])
        .output()
        .context("run openclaw")?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{arguments:?} printed {}", String::from_utf8_lossy(&output.stdout)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_let_in_by_an_operator_and_has_a_conversation() -> Result<()> {
    let (telegram, bot) = fake().await?;
    let (ann, chat) = (UserId(11), ChatId(11));
    let cluster = cluster(&telegram, 1, json!({})).await?;
    telegram.wait_for_poll(bot, SOON).await?;
    telegram.say(bot, chat, ann, "hello")?;
    let told = telegram.wait_for_message(bot, |message| message.content.text.contains("Your id is 11"), SOON).await?;
    let waiting = operate(&cluster, &["pairing", "list"])?;
    let code = waiting["pairings"][0]["code"].as_str().context("a code")?.to_owned();
    ensure!(told.content.text.contains(&code), "{}", told.content.text);
    let wrong = operate(&cluster, &["pairing", "approve", "telegram", "WRONG222"])?;
    ensure!(wrong["error"]["code"] == "not_found", "{wrong}");
    let approved = operate(&cluster, &["pairing", "approve", "telegram", &code])?;
    ensure!(approved["approved"] == true, "{approved}");

    telegram.say(bot, chat, ann, "a **bold** word")?;
    let answer = telegram.wait_for_message(bot, |message| message.content.text.contains("a bold word"), SOON).await?;
    ensure!(!answer.content.entities.is_empty(), "the markup arrives as such: {answer:?}");
    // What was seen may have been the answer while it was written.
    let begin = Instant::now();
    loop {
        let listed = operate(&cluster, &["sessions", "list"])?;
        let session = &listed["sessions"][0];
        if session["headSeq"] == 2 && session["runningTurn"].is_null() {
            break;
        }
        ensure!(begin.elapsed() < SOON, "the answer is never complete: {listed}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    telegram.say(bot, chat, ann, "/status")?;
    telegram.wait_for_message(bot, |message| message.content.text.contains("Messages: 2"), SOON).await?;
    let channels = operate(&cluster, &["channels", "status"])?;
    ensure!(channels["channels"][0]["connected"] == true, "{channels}");
    ensure!(channels["channels"][0]["outbox"]["waiting"] == 0, "{channels}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_grows_in_a_message_is_finished_in_it_by_the_next_owner() -> Result<()> {
    const WORDS: usize = 100;
    let (telegram, bot) = fake().await?;
    let mut cluster = cluster(&telegram, 3, json!({"dmPolicy": "open", "allowFrom": ["*"], "unknown": "hold"})).await?;
    telegram.wait_for_poll(bot, SOON).await?;
    telegram.say(bot, ChatId(11), UserId(11), format!("[tokens={WORDS} delay=50ms]").as_str())?;
    // Once it was edited, it stands with the turn.
    let shown = telegram.wait_for_message(bot, |message| !message.edits.is_empty(), SOON).await?;
    let status = operate(&cluster, &["channels", "status"])?;
    let owner = status["channels"][0]["owner"].as_str().context("an owner")?.to_owned();
    let index = cluster.instances().iter().position(|one| one.id.as_str() == owner).context("an instance")?;
    cluster.instance(index).process.kill()?;
    let last = WORDS.to_string();
    let whole = |text: &str| text.split_whitespace().last() == Some(&last);
    let answer = telegram.wait_for_message(bot, |message| whole(&message.content.text), SOON).await?;
    ensure!(answer.id == shown.id, "{answer:?} is another message than {shown:?}");
    let words: Vec<String> = answer.content.text.split_whitespace().map(str::to_owned).collect();
    ensure!(words == (1..=WORDS).map(|n| n.to_string()).collect::<Vec<_>>(), "{words:?}");
    ensure!(telegram.messages(bot, ChatId(11)).len() == 1, "{:?}", telegram.messages(bot, ChatId(11)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_delivered_is_listed_and_sent_again_when_an_operator_says_so() -> Result<()> {
    let (telegram, bot) = fake().await?;
    let (ann, chat) = (UserId(11), ChatId(11));
    let cluster = cluster(&telegram, 1, json!({"dmPolicy": "allowlist", "allowFrom": [11]})).await?;
    telegram.wait_for_poll(bot, SOON).await?;
    // She leaves before the answer is complete.
    telegram.say(bot, chat, ann, "hello [tokens=20 delay=50ms]")?;
    telegram.wait_for_request(|request| request.method == Some(Method::SendChatAction), SOON).await?;
    telegram.block(bot, ann)?;
    let id = loop {
        let letters = operate(&cluster, &["channels", "dead-letters", "telegram"])?;
        if let Some(id) = letters["deadLetters"][0]["id"].as_str() {
            break id.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    telegram.unblock(bot, ann)?;
    let left = operate(&cluster, &["channels", "dead-letters", "telegram", "--resubmit", &id])?;
    ensure!(left["deadLetters"] == json!([]), "{left}");
    telegram.wait_for_message(bot, |message| !message.content.text.is_empty(), SOON).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_moves_a_bot_by_its_short_name() -> Result<()> {
    let (telegram, bot) = fake().await?;
    let cluster = cluster(&telegram, 2, json!({})).await?;
    telegram.wait_for_poll(bot, SOON).await?;
    let owner = || operate(&cluster, &["channels", "status"]).map(|status| status["channels"][0]["owner"].clone());
    let to = if owner()? == "node-1" { "node-2" } else { "node-1" };
    let moved = operate(&cluster, &["channels", "move", "telegram", to])?;
    ensure!(moved["account"] == "telegram:default", "{moved}");
    let begin = Instant::now();
    while owner()? != to {
        ensure!(begin.elapsed() < SOON, "{to} never owned it: {moved}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_taken_by_any_instance_with_the_secret_and_by_none_without() -> Result<()> {
    let (telegram, bot) = fake().await?;
    let ports = jepsen_lite::ports::Ports::reserve(1)?;
    let port = ports[0];
    let settings = json!({
        "dmPolicy": "open",
        "allowFrom": ["*"],
        "mode": "webhook",
        "webhookUrl": format!("http://127.0.0.1:{port}/api/v1/webhooks/telegram/default"),
        "webhookSecret": "a-long-enough-secret",
    });
    let cluster = cluster(&telegram, 3, settings).await?;
    let backends = cluster.instances().iter().map(|instance| instance.http).collect();
    let balancer = jepsen_lite::network::Balancer::start_at(SocketAddr::from(([127, 0, 0, 1], port)), backends).await?;
    telegram.wait_for_request(|request| request.method == Some(Method::SetWebhook), SOON).await?;
    for n in 0..6 {
        telegram.say(bot, ChatId(n + 1), UserId(n + 1), format!("message {n}").as_str())?;
    }
    for n in 0..6 {
        let text = format!("message {n}");
        telegram.wait_for_message(bot, |message| message.content.text.contains(&text), SOON).await?;
    }
    // The client wants one, though it speaks plain HTTP here.
    drop(rustls::crypto::ring::default_provider().install_default());
    let url = format!("http://{}/api/v1/webhooks/telegram/default", balancer.address());
    for secret in [None, Some("another")] {
        let mut request = reqwest::Client::new().post(&url).body("{}");
        if let Some(secret) = secret {
            request = request.header("x-telegram-bot-api-secret-token", secret);
        }
        ensure!(request.send().await?.status() == 401, "{secret:?} opened the webhook");
    }
    Ok(())
}
