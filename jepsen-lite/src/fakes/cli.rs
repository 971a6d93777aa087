//! A fake as a process: `jepsen-lite fake openai --listen 127.0.0.1:9100`.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::signal::unix::{SignalKind, signal};

use super::{Options, Protocol, start};

/// Serves a fake model provider until SIGINT or SIGTERM.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The protocol it speaks
    protocol: Protocol,
    /// Where it listens; loopback alone
    #[arg(long, default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// The key that it asks for; without it, none
    #[arg(long, env = "FAKE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

/// Says on standard error where it listens, once it does.
///
/// # Errors
/// When the address is not a loopback one, or cannot be bound.
pub async fn run(args: Args) -> Result<()> {
    ensure!(args.listen.ip().is_loopback(), "{} is not a loopback address", args.listen);
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    // Nobody reads the record of a process.
    let options = Options { api_key: args.api_key, remembered: 0 };
    let handle = start(args.protocol, args.listen, options).await?;
    eprintln!("listening on {}", handle.base_url());
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("listen for SIGINT")?,
        _ = terminate.recv() => {}
    }
    handle.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_loopback_is_listened_on() {
        let args = Args { protocol: Protocol::Openai, listen: "0.0.0.0:0".parse().unwrap(), api_key: None };
        assert_eq!(run(args).await.unwrap_err().to_string(), "0.0.0.0:0 is not a loopback address");
    }
}
