//! Arguments in, a subcommand's report out. Exit code 0: passed; 1: something was found; 2: the harness itself
//! failed, or a run proved too little; 3: the command line cannot be read.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use jepsen_lite::commands::{
    Common, Report, bench, channels, durability, failover, footprint, list, replay, report, rolling, run, suite, turns,
};
use jepsen_lite::fakes;
use jepsen_lite::lab::enter::{self, Entered};
use jepsen_lite::run::verdict::Outcome;
use tokio::signal::unix::{SignalKind, signal};

/// Starts real instances, breaks or loads them, and judges what their clients were told.
#[derive(Debug, Parser)]
#[command(name = "jepsen-lite", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Have clients at work while faults drawn from a seed are done to the cluster, and judge what they were told
    Run(run::Options),
    /// Do again what an earlier run did
    Replay(replay::Options),
    /// Several runs, one after the other, and one page over all
    Suite(suite::Options),
    /// The workloads and faults there are
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
    /// Replace every instance again and again under load through a balancer; count what clients noticed
    Rolling(rolling::Options),
    /// Idle memory, time from start to serving, size of the binary
    Footprint(footprint::Options),
    /// Serve a model provider, or Telegram's Bot API, that is not one: real HTTP, every failure on request
    Fake(fakes::cli::Args),
}

impl Command {
    /// What it is told like every command that starts instances.
    fn common(&self) -> Option<&Common> {
        match self {
            Self::Run(options) => Some(&options.common),
            Self::Replay(options) => Some(&options.common),
            Self::Suite(options) => Some(&options.common),
            Self::Durability(options) => Some(&options.common),
            Self::Failover(options) => Some(&options.common),
            Self::Bench(options) => Some(&options.common),
            Self::Turns(options) => Some(&options.common),
            Self::Channels(options) => Some(&options.common),
            Self::Rolling(options) => Some(&options.common),
            Self::Footprint(options) => Some(&options.common),
            Self::List | Self::Report(_) | Self::Fake(_) => None,
        }
    }
}

/// How long tasks may take to end once a command has.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// Not the 2 that clap gives, which is a run without a verdict.
const UNREADABLE: u8 = 3;

fn main() -> ExitCode {
    let command = match Arguments::try_parse() {
        Ok(arguments) => arguments.command,
        Err(error) => {
            // To standard error, or for --help and --version to standard output; if that is gone nobody reads it.
            let _printed = error.print();
            return if error.use_stderr() { ExitCode::from(UNREADABLE) } else { ExitCode::SUCCESS };
        }
    };
    // Before there are other threads: namespaces are for a whole process, and are entered by starting it in them.
    if command.common().is_some_and(Common::needs_namespaces) {
        match enter::enter() {
            Ok(Entered::Inside) => {}
            Ok(Entered::Ended(code)) => return code,
            Err(error) => return inconclusive(&error),
        }
    }
    let is_fake = matches!(command, Command::Fake(_));
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let command = run_command(command);
            // A fake ends in order by itself when it is told.
            let code = if is_fake { runtime.block_on(command) } else { runtime.block_on(until_told_to_end(command)) };
            // What still blocks a thread must not keep instances that tasks hold.
            runtime.shutdown_timeout(SHUTDOWN);
            code
        }
        Err(error) => inconclusive(&error.into()),
    }
}

/// Dropped, a command ends every instance that it started, and a run keeps what it has seen so far.
async fn until_told_to_end(command: impl Future<Output = ExitCode>) -> ExitCode {
    let told = async |kind: SignalKind| match signal(kind) {
        Ok(mut told) => drop(told.recv().await),
        Err(error) => {
            eprintln!("cannot wait for signals: {error}");
            std::future::pending::<()>().await;
        }
    };
    // As shells report a program that a signal ended.
    let by = |number: u8| ExitCode::from(128 + number);
    tokio::select! {
        code = command => code,
        () = told(SignalKind::hangup()) => by(1),
        () = told(SignalKind::interrupt()) => by(2),
        () = told(SignalKind::terminate()) => by(15),
    }
}

fn inconclusive(error: &anyhow::Error) -> ExitCode {
    eprintln!("inconclusive: {error:#}");
    ExitCode::from(2)
}

async fn run_command(command: Command) -> ExitCode {
    let said = match command {
        Command::Run(options) => run::run(options).await.map(said),
        Command::Replay(options) => replay::run(options).await.map(said),
        Command::List => list::run().map(said),
        Command::Suite(options) => suite::run(options).await.map(said),
        Command::Report(options) => report::run(&options)
            .map(|report| (if options.json { report.json.to_string() } else { report.text }, report.outcome)),
        Command::Durability(options) => durability::run(options).await.map(said),
        Command::Failover(options) => failover::run(options).await.map(said),
        Command::Bench(options) => bench::run(options).await.map(said),
        Command::Turns(options) => turns::run(options).await.map(said),
        Command::Channels(options) => channels::run(options).await.map(said),
        Command::Rolling(options) => rolling::run(options).await.map(said),
        Command::Footprint(options) => footprint::run(options).await.map(said),
        Command::Fake(options) => fakes::cli::run(options).await.map(|()| (String::new(), Outcome::Passed)),
    };
    match said {
        Ok((text, outcome)) => {
            if !text.is_empty() {
                // A reader that goes away has read enough.
                let _read = writeln!(std::io::stdout(), "{text}");
            }
            match outcome {
                Outcome::Passed => ExitCode::SUCCESS,
                Outcome::Failed => ExitCode::FAILURE,
                Outcome::Inconclusive => ExitCode::from(2),
            }
        }
        Err(error) => inconclusive(&error),
    }
}

/// A table for people, and one line for programs.
fn said(report: Report) -> (String, Outcome) {
    (format!("{}\n{}", report.text, report.json), report.outcome)
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
