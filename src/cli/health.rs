//! `openclaw health`: one question whose answer is the exit code.

use clap::Args;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output;
use super::target::Connection;
use openclaw_proto::http::HealthStatus;

/// Ask whether the instance can serve: exit code 0 if so, 1 if not, 3 if it cannot be reached
#[derive(Debug, Args)]
pub(super) struct Health {
    /// Ask only whether the process lives, not whether it can serve
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(arguments: Health, json: bool) -> Result<Exit, Failure> {
    let client = Client::new(&arguments.connection)?;
    let health = client.health(if arguments.live { "live" } else { "ready" }).await?;
    let who = health.detail.as_ref().map_or_else(String::new, |detail| format!("{}: ", detail.instance_id));
    output::answer(json, &health, || format!("{}{}\n", output::printable(&who), word(health.status)))?;
    Ok(if health.ok { Exit::Ok } else { Exit::Failed })
}

/// As in JSON.
pub(super) fn word(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Live => "live",
        HealthStatus::Ready => "ready",
        HealthStatus::Draining => "draining",
        HealthStatus::Maintenance => "maintenance",
        HealthStatus::NoQuorum => "no_quorum",
    }
}
