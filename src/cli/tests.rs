//! What the parser accepts and refuses; `tests/cli.rs` runs the binary itself.

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_is_documented() {
    fn check(command: &clap::Command, path: &str) {
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
        }
        for sub in command.get_subcommands() {
            assert!(sub.get_about().is_some(), "{path} {} has no description", sub.get_name());
            check(sub, &format!("{path} {}", sub.get_name()));
        }
    }
    check(&Cli::command(), "openclaw");
}
