//! Arguments in, a subcommand's report out. Exit code 0: passed; 1: something was found; 2: the harness itself failed.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jepsen_lite::commands::{bench, channels, durability, failover, footprint, list, report, run, turns};
use jepsen_lite::fakes;
use jepsen_lite::run::verdict::Outcome;

/// Starts real instances, breaks or loads them, and judges what their clients were told.
#[derive(Debug, Parser)]
#[command(name = "jepsen-lite", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Append while faults drawn from a seed are done to the cluster, and judge what clients were told
    Run(run::Options),
    /// The faults there are
    List,
    /// Make the page of a run from its folder, or one page over several runs
    Report(report::Options),
    /// Append through repeated kill -9 of all instances; nothing acknowledged may be lost, doubled or reordered
    Durability(durability::Options),
    /// Kill the leader (or a follower) again and again; time until the next acknowledged write
    Failover(failover::Options),
    /// Durable writes per second and their latency, beside etcd and the disk's own fdatasync
    Bench(bench::Options),
    /// Kill the runner of a turn in the middle of its streamed answer; the client that reconnects gets one whole answer
    Turns(turns::Options),
    /// Kill, pause, cut off or relieve the owner of a bot on Telegram or Discord under a stream of messages; each gets one answer
    Channels(channels::Options),
    /// Idle memory, time from start to serving, size of the binary
    Footprint(footprint::Options),
    /// Serve a model provider, or Telegram's Bot API, that is not one: real HTTP, every failure on request
    Fake(fakes::cli::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let report = match Arguments::parse().command {
        Command::Run(options) => run::run(options).await.map(Some),
        Command::List => list::run().map(Some),
        Command::Report(options) => return pages(&options),
        Command::Durability(options) => durability::run(options).await.map(Some),
        Command::Failover(options) => failover::run(options).await.map(Some),
        Command::Bench(options) => bench::run(options).await.map(Some),
        Command::Turns(options) => turns::run(options).await.map(Some),
        Command::Channels(options) => channels::run(options).await.map(Some),
        Command::Footprint(options) => footprint::run(options).await.map(Some),
        Command::Fake(options) => fakes::cli::run(options).await.map(|()| None),
    };
    match report {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(report)) => {
            // A reader that goes away has read enough.
            let _read = writeln!(std::io::stdout(), "{}\n{}", report.text, report.json);
            if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("inconclusive: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Speaks for runs that are over: as each of them did when it ended.
fn pages(options: &report::Options) -> ExitCode {
    match report::run(options) {
        Ok(report::Reported { text, outcome }) => {
            // A reader that goes away has read enough.
            let _read = writeln!(std::io::stdout(), "{text}");
            match outcome {
                Outcome::Passed => ExitCode::SUCCESS,
                Outcome::Failed => ExitCode::FAILURE,
                Outcome::Inconclusive => ExitCode::from(2),
            }
        }
        Err(error) => {
            eprintln!("inconclusive: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
