//! `openclaw health`: one question whose answer is the exit code.

use clap::Args;

use super::client::{Asked, Client};
use super::exit::{Exit, Failure};
use super::output;
use super::target::Connection;
use openclaw_proto::http::{self, HealthStatus};

/// Ask whether all is well with the instance, and say what is not: exit code 0 if it is, 1 if not, 3 if it cannot be reached
///
/// Beyond being able to serve, that is: the bot accounts that it runs hear their platforms, what they have to send goes out,
/// and its disk has room. None of those is a reason to take it out of a balancer (--ready) or to restart it (--live).
#[derive(Debug, Args)]
pub(super) struct Health {
    /// Ask only whether it can serve: for balancers, and for waiting after a start
    #[arg(long, conflicts_with = "live")]
    ready: bool,
    /// Ask only whether the process lives: for whoever restarts it
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(arguments: Health, json: bool) -> Result<Exit, Failure> {
    let asked = match (arguments.live, arguments.ready) {
        (true, _) => Asked::Live,
        (false, true) => Asked::Ready,
        (false, false) => Asked::Health,
    };
    let client = Client::new(&arguments.connection)?;
    let health = client.health(asked).await?;
    let who = health.detail.as_ref().map_or_else(String::new, |detail| format!("{}: ", detail.instance_id));
    output::answer(json, &health, || {
        format!("{}{}\n{}", output::printable(&who), word(health.status), reasons(&health))
    })?;
    Ok(if health.ok { Exit::Ok } else { Exit::Failed })
}

/// What is not as it should be, a line each.
pub(super) fn reasons(health: &http::Health) -> String {
    let reasons = health.detail.iter().flat_map(|detail| &detail.reasons);
    reasons.map(|reason| format!("{}: {}\n", reason.condition.as_str(), output::printable(&reason.message))).collect()
}

/// As in JSON.
pub(super) fn word(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Live => "live",
        HealthStatus::Ready => "ready",
        HealthStatus::Draining => "draining",
        HealthStatus::Maintenance => "maintenance",
        HealthStatus::NoQuorum => "no_quorum",
        HealthStatus::Starting => "starting",
        HealthStatus::ConsensusStopped => "consensus_stopped",
        HealthStatus::Unwell => "unwell",
    }
}
