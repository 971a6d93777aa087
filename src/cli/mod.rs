//! The command line: what an operator types, and what he sees.
//!
//! Every command but `gateway` and the local ones talks HTTP to a running instance; none reads another process's data. The
//! directory of an instance that is stopped is opened by `cluster backup --offline` and made by `cluster restore`.
//! One file per subcommand; [`exit`] holds every exit code and error, [`target`] and [`client`] reach the instance,
//! [`output`] writes tables. Arguments come from the operating system and are parsed once, here.

mod channels;
mod chat;
mod client;
mod cluster;
mod completions;
mod config;
mod demo;
mod doctor;
mod exit;
mod gateway;
mod health;
mod interrupt;
mod maintenance;
mod output;
mod pairing;
mod sessions;
mod settings;
mod status;
mod target;

use std::ffi::OsString;
use std::future::Future;
use std::sync::LazyLock;

use clap::{CommandFactory, Parser, Subcommand};
use openclaw_raft::state_machine::STATE_FORMAT_VERSION;

pub use exit::{Exit, Failure};

/// A clustered gateway between chat channels and AI models.
#[derive(Debug, Parser)]
#[command(name = "openclaw", version = VERSION.as_str(), after_help = Exit::HELP, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON for programs; errors too, as {"ok":false,"error":{..}} on stdout
    #[arg(long, global = true)]
    json: bool,
}

/// The release, and what of it matters when releases are mixed: a state format that another one may not read.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (state format {STATE_FORMAT_VERSION})", env!("CARGO_PKG_VERSION")));

#[derive(Debug, Subcommand)]
enum Command {
    Gateway(gateway::Gateway),
    Demo(demo::Demo),
    Chat(chat::Chat),
    Status(status::Status),
    Health(health::Health),
    Doctor(doctor::Doctor),
    Cluster(cluster::Cluster),
    Channels(channels::Channels),
    Pairing(pairing::Pairing),
    Sessions(sessions::Sessions),
    Maintenance(maintenance::Maintenance),
    Config(config::Config),
    Completions(completions::Completions),
}

/// Parses `arguments` (the first is the program's name), runs the command and reports its failure.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Known before parsing, since parsing may be what fails.
    let json = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    let invoked = invoked(&arguments);
    let result = match Cli::try_parse_from(arguments) {
        Ok(cli) => run(cli),
        Err(error) => parse_failure(&error, &invoked),
    };
    match result {
        Ok(exit) => exit,
        Err(failure) => report(&failure, json),
    }
}

/// The command that the arguments name, as far as they name one: whose `--help` would help.
fn invoked(arguments: &[OsString]) -> String {
    let root = Cli::command();
    let mut command = &root;
    let mut names = vec!["openclaw"];
    for argument in arguments.iter().skip(1).filter(|argument| !argument.to_string_lossy().starts_with('-')) {
        let Some(next) = command.find_subcommand(argument) else { break };
        names.push(next.get_name());
        command = next;
    }
    names.join(" ")
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    let json = cli.json;
    match cli.command {
        Command::Gateway(command) => gateway::run(command),
        Command::Demo(command) => on_one_thread(demo::run(command, json)),
        Command::Chat(command) => on_one_thread(chat::run(command, json)),
        Command::Status(command) => on_one_thread(status::run(command, json)),
        Command::Health(command) => on_one_thread(health::run(command, json)),
        Command::Doctor(command) => on_one_thread(doctor::run(command, json)),
        Command::Cluster(command) => on_one_thread(cluster::run(command, json)),
        Command::Channels(command) => on_one_thread(channels::run(command, json)),
        Command::Pairing(command) => on_one_thread(pairing::run(command, json)),
        Command::Sessions(command) => on_one_thread(sessions::run(command, json)),
        Command::Maintenance(command) => on_one_thread(maintenance::run(command, json)),
        Command::Config(command) => config::run(command, json),
        Command::Completions(command) => completions::run(&command, Cli::command()),
    }
}

/// Commands wait for one answer at a time; only the gateway and the demo want worker threads.
fn on_one_thread(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no async runtime: {error}")))?;
    let result = runtime.block_on(command);
    // Dropping it would wait for its blocking threads, and one of them may be at a disk that hangs.
    runtime.shutdown_background();
    result
}

/// Help and version are answers; the rest becomes one line in our own form.
fn parse_failure(error: &clap::Error, invoked: &str) -> Result<Exit, Failure> {
    use clap::error::ErrorKind;
    let text = error.render().to_string();
    let kind = error.kind();
    if matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return output::print(&text).map(|()| Exit::Ok);
    }
    if kind == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        output::note(text.trim_end());
        return Err(Failure::silent(Exit::Usage));
    }
    Err(usage_failure(&text, invoked))
}

/// Clap says it in paragraphs: the error, perhaps tips, the usage, a pointer to `--help`.
fn usage_failure(text: &str, invoked: &str) -> Failure {
    let mut message = String::new();
    for part in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if part.starts_with("Usage: ") || part.starts_with("For more information") {
            break;
        }
        let part = part.strip_prefix("error: ").or(part.strip_prefix("tip: ")).unwrap_or(part);
        // "[possible values: ..]" and lists of missing arguments continue the sentence; tips are sentences of their own.
        let continues = message.ends_with(':') || part.starts_with(['[', '<']) || part.starts_with("--");
        let joint = match (message.is_empty(), continues) {
            (true, _) => "",
            (false, true) => " ",
            (false, false) => "; ",
        };
        message.push_str(joint);
        message.push_str(part);
    }
    Failure::usage(message).hint(format!("see `{invoked} --help`"))
}

fn report(failure: &Failure, json: bool) -> Exit {
    if failure.silent {
        return failure.exit();
    }
    if json {
        match output::print_json(&failure.json()) {
            Ok(()) => return failure.exit(),
            Err(unprinted) if unprinted.silent => return failure.exit(),
            Err(_) => {}
        }
    }
    output::note(&failure.text());
    failure.exit()
}

#[cfg(test)]
mod tests;
