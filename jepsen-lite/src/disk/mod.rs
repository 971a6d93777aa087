//! A disk of its own for an instance, and what disks do wrong.
//!
//! A killed process loses nothing that the kernel has, so `kill -9` never finds a missing fsync. An instance on a [`Disk`]
//! can lose its power, and then has exactly what it synced. The same disk can be full, and its end can be torn; syncs that
//! are slow or fail come from [`sync`], for any process.
//!
//! Only root may mount. All of it belongs into a mount and a PID namespace of the harness's own (`unshare --mount --pid
//! --fork --kill-child --mount-proc`): whatever ends the harness then also ends the mounts, and with them the loop
//! devices.
//!
//! Reading order: [`image`] (the disk, and the power cut), [`fill`] (full), [`tail`] (the end of the write-ahead log),
//! [`sync`] (slow and failing syncs), `faults` (the same, done to an instance of a cluster).

mod faults;
mod fill;
pub mod image;
pub mod sync;
pub mod tail;

use std::ffi::OsStr;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

pub use image::Disk;
pub use sync::SyncFault;

/// What the faults of disks need beside the kernel, and the packages that have it.
const TOOLS: [(&str, &str); 6] = [
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("xfs_io", "xfsprogs"),
    ("strace", "strace"),
];

/// Whether disks can be made here.
///
/// # Errors
/// Says what is missing: a right, a program with its package, or a loop device.
pub fn usable() -> Result<()> {
    ensure!(is_root()?, "only root can mount an instance's disk");
    for (program, package) in TOOLS {
        ensure!(on_path(program), "{program} is not installed; it is in the package {package}");
    }
    ensure!(std::path::Path::new("/dev/loop-control").exists(), "the kernel has no loop devices");
    Ok(())
}

/// Root administrates the machine, and /usr/sbin need not be in a PATH for that.
const MORE_PATH: &str = "/usr/sbin:/sbin";

fn path() -> String {
    format!("{}:{MORE_PATH}", std::env::var("PATH").unwrap_or_default())
}

fn on_path(program: &str) -> bool {
    path().split(':').any(|directory| std::path::Path::new(directory).join(program).is_file())
}

fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self").context("look at this process")?.uid() == 0)
}

/// Runs a program to its end and gives what it printed.
async fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    let mut command = tokio::process::Command::from(command(program, arguments));
    check(program, command.kill_on_drop(true).output().await)
}

fn command<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path()).env("LC_ALL", "C").stdin(std::process::Stdio::null());
    command
}

fn check(program: &str, output: std::io::Result<Output>) -> Result<()> {
    let package = || TOOLS.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package);
    let output = output.with_context(|| format!("start {program}, of the package {}", package()))?;
    if !output.status.success() {
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
