//! The program runs itself again in namespaces of its own, and goes on there.
//!
//! ```text
//! jepsen-lite (outside) -> setpriv -> unshare -> jepsen-lite (inside: pid 1 of its own, no route to anywhere)
//! ```
//!
//! The kernel undoes all of it. Whoever dies takes the one that it started along by SIGKILL, and the end of the one inside is
//! the end of every process, interface and mount in its namespaces. So nothing is left when any of them ends, however it ends.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use tokio::signal::unix::{SignalKind, signal};

use super::ports::{CONTROLLER, LOOPBACK};
use super::tools;

/// Tells the program that it is inside: the namespaces that it came from, so that it can see that it left them.
const OUTSIDE: &str = "OPENCLAW_LAB_OUTSIDE";
/// What is unshared, by its names in /proc.
const UNSHARED: [&str; 3] = ["net", "mnt", "pid"];
/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

static INSIDE: AtomicBool = AtomicBool::new(false);

/// On which side the caller is.
#[derive(Debug)]
pub enum Entered {
    /// In the namespaces.
    Inside,
    /// Outside, and the one inside has ended like this.
    Ended(ExitCode),
}

/// Says what keeps this program from making namespaces.
///
/// # Errors
/// When it is not root, or a tool is missing.
pub fn possible() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run it by `sudo`, or stay on loopback");
    for tool in tools::ALL {
        tool.path()?;
    }
    let device = Path::new("/dev/net/tun");
    ensure!(device.exists(), "{} is missing: the kernel, or the container, gives no TAP devices", device.display());
    Ok(())
}

/// Runs this program again in namespaces, with the same arguments, and waits for it; the one inside returns at once. To be
/// called by the main thread before there are others: the one inside dies with the thread that started it.
///
/// # Errors
/// When namespaces cannot be made, and inside when they are not as they should be.
pub fn enter() -> Result<Entered> {
    if let Some(outside) = std::env::var_os(OUTSIDE) {
        prepare(&outside)?;
        return Ok(Entered::Inside);
    }
    possible()?;
    let program = std::env::current_exe().context("find this program")?;
    let command = command(&program, std::env::args_os().skip(1))?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?
        .block_on(wait(command))
        .map(Entered::Ended)
}

/// A call of `program` in fresh namespaces. It must call [`enter`] itself.
///
/// # Errors
/// When a tool is missing.
pub fn command(program: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Command> {
    let mut command = tools::SETPRIV.command()?;
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(tools::UNSHARE.path()?)
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program)
        .args(arguments)
        .env(OUTSIDE, namespaces()?);
    Ok(command)
}

async fn wait(command: Command) -> Result<ExitCode> {
    let mut interrupted = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut child = tokio::process::Command::from(command).spawn().context("start `unshare`")?;
    // Neither `unshare` nor the first process of a namespace heeds these signals by itself.
    let number = tokio::select! {
        status = child.wait() => {
            let status = status.context("wait for `unshare`")?;
            let Some(code) = status.code() else { bail!("the program in the namespaces ended by {status}") };
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        _ = interrupted.recv() => 2,
        _ = terminated.recv() => 15,
    };
    child.kill().await.context("end the program in the namespaces")?;
    // As shells report a program that a signal ended.
    Ok(ExitCode::from(128 + number))
}

/// Whether this program is in namespaces of its own, and may change their network as it likes.
pub(super) fn is_inside() -> bool {
    INSIDE.load(Ordering::Relaxed)
}

/// Sees that nothing of the machine's own network can be reached or changed from here, and makes ready what a lab needs.
fn prepare(outside: &OsStr) -> Result<()> {
    let (here, there) = (namespaces()?, outside.to_string_lossy());
    for (here, there) in here.to_string_lossy().split(' ').zip(there.split(' ')) {
        ensure!(here != there, "{OUTSIDE} is set, but this is the namespace {here} of the machine: unset it");
    }
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("read {path}"));
    // A kernel without IPv6 has no table of its routes.
    let v6 = if Path::new("/proc/net/ipv6_route").exists() { read("/proc/net/ipv6_route")? } else { String::new() };
    if let Some(device) = default_route(&read("/proc/net/route")?, &v6) {
        bail!("there is a default route, by {device}: a lab runs only where nothing outside can be reached");
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make the mounts private")?;
    // `ip netns exec` gives each instance a copy of the mounts. A disk that is unmounted here must be so there too.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).context("share the mounts with instances")?;
    // The mount point itself is made on the machine, as `ip netns` would; what is in it is ours alone.
    std::fs::create_dir_all(NAMES).with_context(|| format!("make {NAMES}"))?;
    mount(Some("tmpfs"), NAMES, Some("tmpfs"), MsFlags::empty(), none).with_context(|| format!("mount {NAMES}"))?;
    // On `lo`, the harness's addresses are there before any switch is, and stay over all of them.
    let set_up = format!("link set lo up\naddress add {CONTROLLER}/32 dev lo\naddress add {LOOPBACK}/32 dev lo\n");
    tools::start(tools::IP.command()?.args(["-batch", "-"]), &set_up)?.wait().context("set up `lo`")?;
    INSIDE.store(true, Ordering::Relaxed);
    Ok(())
}

/// The namespaces that this process is in.
fn namespaces() -> Result<OsString> {
    let mut all = OsString::new();
    for name in UNSHARED {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}")).context("look at a namespace")?;
        if !all.is_empty() {
            all.push(" ");
        }
        all.push(link);
    }
    Ok(all)
}

/// The device of a default route, from the texts of /proc/net/route and /proc/net/ipv6_route.
fn default_route<'a>(v4: &'a str, v6: &'a str) -> Option<&'a str> {
    let v4 = v4.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // A mask of its own makes the same destination something narrower than everything.
        (fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")).then(|| fields[0])
    });
    v4.or_else(|| {
        v6.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let everything =
                fields.first().is_some_and(|to| to.bytes().all(|b| b == b'0')) && fields.get(1) == Some(&"00");
            // The kernel keeps an entry by `lo` that says that there is no route.
            fields.last().filter(|device| everything && **device != "lo").copied()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
    const NO_ROUTE: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                            00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n";

    #[test]
    fn a_default_route_is_found_in_the_kernels_tables() {
        let local = format!("{HEAD}lab\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n");
        assert_eq!(default_route(HEAD, NO_ROUTE), None);
        assert_eq!(default_route(&local, NO_ROUTE), None);
        let v4 = format!("{local}eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n");
        assert_eq!(default_route(&v4, NO_ROUTE), Some("eth0"));
        let v6 = NO_ROUTE.replace("      lo", "    eth1");
        assert_eq!(default_route(&local, &v6), Some("eth1"));
    }

    #[test]
    fn the_machines_own_namespaces_are_refused() {
        let here = namespaces().unwrap();
        let error = prepare(&here).unwrap_err().to_string();
        assert!(error.contains("of the machine"), "{error}");
        assert!(!is_inside());
    }
}
