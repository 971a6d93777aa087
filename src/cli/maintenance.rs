//! `openclaw maintenance`: takes one instance out of service, waiting until nothing depends on it, and back.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use openclaw_proto::http::{self, ErrorCode};
use openclaw_proto::ids::IdempotencyKey;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::{self, facts, note};
use super::target::Connection;

/// Take this instance out of service for an update, and back
///
/// Maintenance is a property of the running process: a restart ends it.
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Maintenance {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stop taking new work, hand over leadership and bots, and wait until running turns have ended
    ///
    /// Waits first while the others could not do without this instance: one of them is down, behind, or in maintenance itself.
    On {
        /// Longest wait for the others and for running turns, in seconds. If the others were not ready by then nothing was
        /// changed, and the exit code is 4; if turns still run, or a bot is not handed over, maintenance stays on, and the exit code is 1
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
        timeout: u64,
        /// Do not wait for the others, even if nothing can be committed without this instance
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Take new work again
    Off {
        #[command(flatten)]
        connection: Connection,
    },
    /// Say whether maintenance is on and what still runs: exit code 0 if on and drained or off, 1 while draining
    Status {
        #[command(flatten)]
        connection: Connection,
    },
}

const PATH: [&str; 3] = ["api", "v1", "maintenance"];
const POLL_EVERY: Duration = Duration::from_millis(200);
const ASK_EVERY: Duration = Duration::from_millis(500);

pub(super) async fn run(arguments: Maintenance, json: bool) -> Result<Exit, Failure> {
    let state = match arguments.command {
        Command::On { timeout, force, connection } => {
            let client = Client::new(&connection)?;
            let deadline = Instant::now() + Duration::from_secs(timeout);
            let first = begin(&client, force, deadline).await?;
            drain(&client, first, deadline).await?
        }
        Command::Off { connection } => set(&Client::new(&connection)?, false, false).await?,
        Command::Status { connection } => Client::new(&connection)?.get(&PATH, &[]).await?,
    };
    output::answer(json, &state, || render(&state))?;
    Ok(if state.on && !state.drained { Exit::Failed } else { Exit::Ok })
}

async fn set(client: &Client, on: bool, force: bool) -> Result<http::Maintenance, Failure> {
    let key = IdempotencyKey::random();
    client.post(&PATH, key.as_str(), &http::MaintenanceRequest { on, force }).await
}

/// Asks until the others can do without the instance, telling why they cannot.
async fn begin(client: &Client, force: bool, deadline: Instant) -> Result<http::Maintenance, Failure> {
    let mut told = String::new();
    loop {
        match set(client, true, force).await {
            Err(failure) if matches!(failure.code, Some(ErrorCode::Conflict | ErrorCode::NoQuorum)) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(failure.hint("nothing was changed; bring the others up first, or give --force"));
                }
                if told != failure.message {
                    note(&format!("waiting: {}", output::printable(&failure.message)));
                    told = failure.message;
                }
                tokio::time::sleep(ASK_EVERY.min(left)).await;
            }
            answer => return answer,
        }
    }
}

/// Waits, telling when the number of running turns changes.
async fn drain(client: &Client, mut state: http::Maintenance, deadline: Instant) -> Result<http::Maintenance, Failure> {
    let mut told = None;
    while !state.drained {
        if told != Some((state.running_turns, state.channels)) {
            note(&waiting(&state));
            told = Some((state.running_turns, state.channels));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            note("still not drained: maintenance stays on; `openclaw maintenance off` ends it");
            break;
        }
        tokio::time::sleep(POLL_EVERY.min(left)).await;
        state = client.get(&PATH, &[]).await?;
        if !state.on {
            return Err(Failure::failed(format!("{} was taken out of maintenance meanwhile", state.instance_id)));
        }
    }
    Ok(state)
}

fn waiting(state: &http::Maintenance) -> String {
    match state.running_turns {
        0 if state.channels > 0 => {
            format!("{}: handing over {} bot account(s)", output::printable(&state.instance_id), state.channels)
        }
        0 => format!("{}: handing over leadership", output::printable(&state.instance_id)),
        1 => format!("{}: 1 turn is still running", output::printable(&state.instance_id)),
        n => format!("{}: {n} turns are still running", output::printable(&state.instance_id)),
    }
}

fn render(state: &http::Maintenance) -> String {
    let accounts = (state.channels > 0).then(|| ("bot accounts to hand over", state.channels.to_string()));
    let word = match (state.on, state.drained) {
        (false, _) => "off",
        (true, false) => "on, draining",
        (true, true) => "on, drained: safe to stop",
    };
    let all = [
        ("instance", state.instance_id.clone()),
        ("maintenance", word.to_owned()),
        ("running turns", state.running_turns.to_string()),
    ];
    facts(all.into_iter().chain(accounts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maintenance_reads_as_what_to_do() {
        let state =
            http::Maintenance { instance_id: "node-1".into(), on: true, running_turns: 0, channels: 0, drained: true };
        assert_eq!(
            render(&state),
            "instance       node-1\nmaintenance    on, drained: safe to stop\nrunning turns  0\n"
        );
        let waits = render(&http::Maintenance { channels: 2, drained: false, ..state.clone() });
        assert!(waits.contains("on, draining") && waits.contains("bot accounts to hand over  2"), "{waits}");
        assert_eq!(waiting(&http::Maintenance { running_turns: 2, ..state }), "node-1: 2 turns are still running");
    }
}
