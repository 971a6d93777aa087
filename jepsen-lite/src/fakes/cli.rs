//! A fake as a process: `jepsen-lite fake openai --listen 127.0.0.1:9100`.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::signal::unix::{SignalKind, signal};

use super::telegram::{BotId, UserId};
use super::{Options, Protocol, start, telegram};

/// Serves a fake model provider, or Telegram's Bot API, until SIGINT or SIGTERM.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What it is
    server: Server,
    /// Where it listens; loopback alone
    #[arg(long, default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// A model provider: the key that it asks for; without it, none
    #[arg(long, env = "FAKE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Telegram: the token of a bot, <id>:<secret>; several times for several bots
    #[arg(long = "token", value_name = "TOKEN")]
    tokens: Vec<String>,
    /// Telegram: the id of a user who says /start to every bot; several times for several users
    #[arg(long = "user", value_name = "ID")]
    users: Vec<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Server {
    Openai,
    Anthropic,
    Telegram,
}

/// Whichever runs.
enum Running {
    Model(super::Handle),
    Telegram(telegram::Handle),
}

impl Running {
    async fn start(args: Args) -> Result<Self> {
        // Nobody reads the record of a process.
        let remembered = 0;
        let protocol = match args.server {
            Server::Openai => Protocol::Openai,
            Server::Anthropic => Protocol::Anthropic,
            Server::Telegram => {
                ensure!(!args.tokens.is_empty(), "no bot: --token is missing");
                let tokens: Vec<_> = args.tokens.iter().map(String::as_str).collect();
                let options = telegram::Options { remembered, ..telegram::Options::with_bots(&tokens) };
                let bots: Vec<BotId> = options.bots.iter().map(telegram::Account::id).collect();
                let handle = telegram::start(args.listen, options).await?;
                for (bot, user) in bots.iter().flat_map(|bot| args.users.iter().map(|user| (*bot, UserId(*user)))) {
                    handle.say(bot, user.chat(), user, "/start")?;
                }
                return Ok(Self::Telegram(handle));
            }
        };
        let options = Options { api_key: args.api_key, remembered };
        Ok(Self::Model(start(protocol, args.listen, options).await?))
    }

    fn url(&self) -> String {
        match self {
            Self::Model(handle) => handle.base_url(),
            Self::Telegram(handle) => handle.api_url(),
        }
    }

    async fn stop(self) {
        match self {
            Self::Model(handle) => handle.stop().await,
            Self::Telegram(handle) => handle.stop().await,
        }
    }
}

/// Says on standard error where it listens, once it does.
///
/// # Errors
/// When the address is not a loopback one, or cannot be bound, or a token is none.
pub async fn run(args: Args) -> Result<()> {
    ensure!(args.listen.ip().is_loopback(), "{} is not a loopback address", args.listen);
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let running = Running::start(args).await?;
    eprintln!("listening on {}", running.url());
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("listen for SIGINT")?,
        _ = terminate.recv() => {}
    }
    running.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(server: Server, listen: &str, tokens: &[&str]) -> Args {
        let (tokens, users) = (tokens.iter().map(|token| (*token).to_owned()).collect(), vec![11]);
        Args { server, listen: listen.parse().unwrap(), api_key: None, tokens, users }
    }

    #[tokio::test]
    async fn only_loopback_is_listened_on() {
        let error = run(args(Server::Openai, "0.0.0.0:0", &[])).await.unwrap_err();
        assert_eq!(error.to_string(), "0.0.0.0:0 is not a loopback address");
    }

    #[tokio::test]
    async fn telegram_begins_with_users_who_said_start() {
        let running = Running::start(args(Server::Telegram, "127.0.0.1:0", &["7:secret", "8:secret"])).await.unwrap();
        let Running::Telegram(handle) = &running else { panic!() };
        assert_eq!([handle.pending_updates(BotId(7)).len(), handle.pending_updates(BotId(8)).len()], [1, 1]);
        assert_eq!(running.url(), format!("http://{}", handle.address()));
        running.stop().await;
        for (tokens, why) in [(&[][..], "no bot: --token is missing"), (&["secret"], "a token is <id>:<secret>")] {
            let error = run(args(Server::Telegram, "127.0.0.1:0", tokens)).await.unwrap_err();
            assert_eq!(error.to_string(), why);
        }
    }
}
