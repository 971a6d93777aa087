//! Syncs that take long, or fail: strace stands between the process and the kernel.
//!
//! Every system call of the process is stopped at on its way, so the process is slower in all it does as long as the
//! fault lasts; only its syncs are changed.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::command;

const SYNCS: &str = "fsync,fdatasync";
/// strace attaches to each thread, and lets go of each.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// A fault that lasts until it is healed, or dropped.
#[derive(Debug)]
pub struct SyncFault {
    strace: Child,
}

/// Each sync of the process waits for `delay` before it begins.
///
/// # Errors
/// When strace cannot be started or does not attach.
pub async fn slow_fsync(pid: u32, delay: Duration) -> Result<SyncFault> {
    attach(pid, &format!("{SYNCS}:delay_enter={}", delay.as_micros())).await
}

/// Each sync of the process fails with EIO, and syncs nothing.
///
/// # Errors
/// When strace cannot be started or does not attach.
pub async fn failing_fsync(pid: u32) -> Result<SyncFault> {
    attach(pid, &format!("{SYNCS}:error=EIO")).await
}

/// Each sync of the process succeeds, and syncs nothing: a drive whose cache forgets, or a missing fsync. Nothing
/// can survive a power cut then, so this is for tests of the harness itself.
///
/// # Errors
/// When strace cannot be started or does not attach.
pub async fn lying_fsync(pid: u32) -> Result<SyncFault> {
    attach(pid, &format!("{SYNCS}:retval=0")).await
}

async fn attach(pid: u32, what: &str) -> Result<SyncFault> {
    let (trace, inject) = (format!("trace={SYNCS}"), format!("inject={what}"));
    let pid_text = pid.to_string();
    let arguments = ["-f", "-qqq", "-o", "/dev/null", "-e", &trace, "-e", &inject, "-p", &pid_text];
    let strace = command("strace", arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start strace, of the package strace")?;
    let mut fault = SyncFault { strace };
    let deadline = Instant::now() + PATIENCE;
    while !is_traced_by(pid, fault.strace.id())? {
        if let Some(status) = fault.strace.try_wait().context("look at strace")? {
            let mut said = String::new();
            if let Some(mut stderr) = fault.strace.stderr.take() {
                std::io::Read::read_to_string(&mut stderr, &mut said).context("read what strace said")?;
            }
            bail!("strace ended with {status}: {}", said.trim());
        }
        ensure!(Instant::now() < deadline, "strace has not attached to process {pid} within {PATIENCE:?}");
        tokio::time::sleep(POLL).await;
    }
    Ok(fault)
}

/// Whether all threads of `pid` are.
fn is_traced_by(pid: u32, tracer: u32) -> Result<bool> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("find process {pid}"))?;
    for thread in threads.flatten() {
        // One that has ended meanwhile cannot sync.
        let Ok(status) = std::fs::read_to_string(thread.path().join("status")) else { continue };
        let by = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).unwrap_or_default();
        if by.trim() != tracer.to_string() {
            return Ok(false);
        }
    }
    Ok(true)
}

impl SyncFault {
    /// Lets go of the process; syncs are the kernel's again.
    ///
    /// # Errors
    /// When strace does not end.
    pub async fn heal(mut self) -> Result<()> {
        self.ask_to_end();
        let deadline = Instant::now() + PATIENCE;
        while self.strace.try_wait().context("look at strace")?.is_none() {
            ensure!(Instant::now() < deadline, "strace has not let go within {PATIENCE:?}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// strace lets go in order: killed in the middle of a call it would leave that call undone.
    fn ask_to_end(&self) {
        if let Ok(pid) = i32::try_from(self.strace.id()) {
            // It is our child and not reaped yet, so nobody else has its id. It may have ended with the process.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
    }
}

impl Drop for SyncFault {
    fn drop(&mut self) {
        // Healed already.
        if !matches!(self.strace.try_wait(), Ok(None)) {
            return;
        }
        self.ask_to_end();
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.strace.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                drop(self.strace.kill());
                drop(self.strace.wait());
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}
