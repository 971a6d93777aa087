//! The system's own programs that set a lab up: found, run, and named when they are missing.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Where administrators' programs are; a user's `PATH` often lacks these.
const ALSO: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    name: &'static str,
    package: &'static str,
}

pub const IP: Tool = Tool { name: "ip", package: "iproute2" };
pub const NFT: Tool = Tool { name: "nft", package: "nftables" };
pub const UNSHARE: Tool = Tool { name: "unshare", package: "util-linux" };
pub const SETPRIV: Tool = Tool { name: "setpriv", package: "util-linux" };
/// All that a lab needs.
pub const ALL: [Tool; 4] = [IP, NFT, UNSHARE, SETPRIV];

impl Tool {
    /// Where it is.
    ///
    /// # Errors
    /// When it is not installed; the message names its package.
    pub fn path(self) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path)
            .chain(ALSO.into_iter().map(PathBuf::from))
            .map(|directory| directory.join(self.name))
            .find(|file| file.is_file());
        found.with_context(|| {
            format!("`{}` is missing (package {}; scripts/setup.sh --tests installs it)", self.name, self.package)
        })
    }

    /// A call of it.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn command(self) -> Result<Command> {
        Ok(Command::new(self.path()?))
    }
}

/// A program that has got its input and was not waited for yet, so that several work at once.
pub(super) struct Started {
    what: String,
    child: Child,
}

/// Starts a program and gives it all of its input.
pub(super) fn start(command: &mut Command, input: &str) -> Result<Started> {
    let what = format!("{:?} with the input\n{input}", command.get_program());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {what}"))?;
    // Dropped at the end of the statement, which is the end of its input.
    match child.stdin.take().context("no input")?.write_all(input.as_bytes()) {
        // It ended before it had read all, and says why itself.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written.with_context(|| format!("write to {what}"))?,
    }
    Ok(Started { what, child })
}

impl Started {
    pub(super) fn wait(self) -> Result<()> {
        let Self { what, child } = self;
        let output = child.wait_with_output().with_context(|| format!("wait for {what}"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{}: {what}: {}", output.status, said.trim());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let error = Tool { name: "no-such-tool", package: "some-package" }.path().unwrap_err().to_string();
        assert!(error.contains("no-such-tool") && error.contains("some-package"), "{error}");
    }

    #[test]
    fn what_a_failing_tool_says_is_in_the_error() {
        let run = |script: &str| start(Command::new("sh").args(["-c", script]), "hello\n").unwrap().wait();
        run("read word && test $word = hello").unwrap();
        let error = run("echo it is full >&2; exit 3").unwrap_err().to_string();
        assert!(error.contains("it is full") && error.contains("exit status: 3") && error.contains("hello"), "{error}");
    }
}
