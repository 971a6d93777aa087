//! Arguments in, a subcommand's report out. Exit code 0: passed; 1: something was found; 2: the harness itself failed.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jepsen_lite::commands::{bench, durability, failover, footprint};

/// Starts real instances, breaks or loads them, and judges what their clients were told.
#[derive(Debug, Parser)]
#[command(name = "jepsen-lite", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Append through repeated kill -9 of all instances; nothing acknowledged may be lost, doubled or reordered
    Durability(durability::Options),
    /// Kill the leader (or a follower) again and again; time until the next acknowledged write
    Failover(failover::Options),
    /// Durable writes per second and their latency, beside etcd and the disk's own fdatasync
    Bench(bench::Options),
    /// Idle memory, time from start to serving, size of the binary
    Footprint(footprint::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let report = match Arguments::parse().command {
        Command::Durability(options) => durability::run(options).await,
        Command::Failover(options) => failover::run(options).await,
        Command::Bench(options) => bench::run(options).await,
        Command::Footprint(options) => footprint::run(options).await,
    };
    match report {
        Ok(report) => {
            #[expect(clippy::print_stdout, reason = "the report is what the program is for")]
            {
                println!("{}", report.text);
                println!("{}", report.json);
            }
            if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("inconclusive: {error:#}");
            ExitCode::from(2)
        }
    }
}
