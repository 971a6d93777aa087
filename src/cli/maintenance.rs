//! `openclaw maintenance`: takes one instance out of service, waiting until nothing depends on it, and back.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use openclaw_proto::http;
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
    /// Stop taking new work, hand over leadership, and wait until running turns have ended
    On {
        /// Longest wait for running turns, in seconds; afterwards maintenance stays on and the exit code is 1
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
        timeout: u64,
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

pub(super) async fn run(arguments: Maintenance, json: bool) -> Result<Exit, Failure> {
    let state = match arguments.command {
        Command::On { timeout, connection } => {
            let client = Client::new(&connection)?;
            let first = set(&client, true).await?;
            drain(&client, first, Duration::from_secs(timeout)).await?
        }
        Command::Off { connection } => set(&Client::new(&connection)?, false).await?,
        Command::Status { connection } => Client::new(&connection)?.get(&PATH, &[]).await?,
    };
    output::answer(json, &state, || render(&state))?;
    Ok(if state.on && !state.drained { Exit::Failed } else { Exit::Ok })
}

async fn set(client: &Client, on: bool) -> Result<http::Maintenance, Failure> {
    let key = IdempotencyKey::random();
    client.post(&PATH, key.as_str(), &http::MaintenanceRequest { on }).await
}

/// Waits, telling when the number of running turns changes.
async fn drain(client: &Client, mut state: http::Maintenance, limit: Duration) -> Result<http::Maintenance, Failure> {
    let started = Instant::now();
    let mut told = None;
    while !state.drained {
        if told != Some(state.running_turns) {
            note(&waiting(&state));
            told = Some(state.running_turns);
        }
        let left = limit.saturating_sub(started.elapsed());
        if left.is_zero() {
            note(&format!(
                "still not drained after {} s: maintenance stays on; `openclaw maintenance off` ends it",
                limit.as_secs()
            ));
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
        0 => format!("{}: handing over leadership", output::printable(&state.instance_id)),
        1 => format!("{}: 1 turn is still running", output::printable(&state.instance_id)),
        n => format!("{}: {n} turns are still running", output::printable(&state.instance_id)),
    }
}

fn render(state: &http::Maintenance) -> String {
    let word = match (state.on, state.drained) {
        (false, _) => "off",
        (true, false) => "on, draining",
        (true, true) => "on, drained: safe to stop",
    };
    facts([
        ("instance", state.instance_id.clone()),
        ("maintenance", word.to_owned()),
        ("running turns", state.running_turns.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maintenance_reads_as_what_to_do() {
        let state = http::Maintenance { instance_id: "node-1".into(), on: true, running_turns: 0, drained: true };
        assert_eq!(
            render(&state),
            "instance       node-1\nmaintenance    on, drained: safe to stop\nrunning turns  0\n"
        );
        assert_eq!(waiting(&http::Maintenance { running_turns: 2, ..state }), "node-1: 2 turns are still running");
    }
}
