//! What the parser accepts and refuses; `tests/cli.rs` runs the binary itself.

use std::sync::mpsc;
use std::time::Duration;

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

#[test]
fn a_blocking_thread_that_hangs_does_not_keep_a_command_from_ending() {
    let (hold, held) = mpsc::channel::<()>();
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let command = async {
            // Until the end of the test.
            drop(tokio::task::spawn_blocking(move || held.recv()));
            Ok(Exit::Ok)
        };
        ended.send(on_one_thread(command).is_ok())
    });
    assert_eq!(end.recv_timeout(Duration::from_secs(20)), Ok(true));
    drop(hold);
}
