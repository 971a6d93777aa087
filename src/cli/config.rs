//! `openclaw config`: whether the settings are right, what they come to, and what may be set.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure};
use super::output::{self, note};
use super::settings;

/// Check and show the configuration
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether the gateway would accept file and environment: exit code 78 if not
    Check {
        #[command(flatten)]
        file: File,
    },
    /// Print the settings in force, with defaults; secrets as ***
    Show {
        #[command(flatten)]
        file: File,
    },
    /// Print the JSON Schema of the configuration file, for editors
    Schema,
}

#[derive(Debug, Clone, Args)]
struct File {
    /// Configuration file [default: OPENCLAW_CONFIG_PATH, then ~/.openclaw/openclaw.json]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accept keys that only upstream OpenClaw knows, with a warning each
    #[arg(long)]
    lenient_config: bool,
}

pub(super) fn run(arguments: Config, json: bool) -> Result<Exit, Failure> {
    match arguments.command {
        Command::Check { file } => {
            let loaded = settings::load(file.config, Vec::new(), file.lenient_config)?;
            let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
            if json {
                output::print_json(&serde_json::json!({ "ok": true, "file": loaded.file, "warnings": warnings }))?;
            } else {
                for warning in &warnings {
                    note(&format!("warning: {warning}"));
                }
                let from =
                    loaded.file.map_or_else(|| "no file, defaults".to_owned(), |file| file.display().to_string());
                output::print(&format!("ok: {from}\n"))?;
            }
        }
        Command::Show { file } => {
            let loaded = settings::load(file.config, Vec::new(), file.lenient_config)?;
            for warning in &loaded.warnings {
                note(&format!("warning: {warning}"));
            }
            output::print_json(&openclaw_config::effective(&loaded.config))?;
        }
        Command::Schema => output::print_json(&openclaw_config::schema())?,
    }
    Ok(Exit::Ok)
}
