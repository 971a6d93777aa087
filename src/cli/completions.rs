//! `openclaw completions`: a script that teaches a shell our commands and flags.

use clap::{Args, ValueEnum};

use super::exit::{Exit, Failure};
use super::output;

/// Print shell completions
///
/// For bash: `openclaw completions bash > /etc/bash_completion.d/openclaw`.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Shell to write them for
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Elvish,
    Fish,
    #[value(name = "powershell")]
    Microsoft,
    Zsh,
}

pub(super) fn run(arguments: &Completions, mut command: clap::Command) -> Result<Exit, Failure> {
    let shell = match arguments.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Elvish => clap_complete::Shell::Elvish,
        Shell::Fish => clap_complete::Shell::Fish,
        Shell::Microsoft => clap_complete::Shell::PowerShell,
        Shell::Zsh => clap_complete::Shell::Zsh,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "openclaw", &mut script);
    let script = String::from_utf8(script).map_err(|error| Failure::failed(error.to_string()))?;
    output::print(&script)?;
    Ok(Exit::Ok)
}
