//! The data directory: whose it is, what it is on, how much fits, and how long it takes to be sure of a write.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statfs::{self, FsType};
use nix::sys::statvfs::statvfs;

use super::{Finding, Patient};

/// Writes that are waited for.
const SYNCS: usize = 40;
const SYNC_BYTES: usize = 512;
const MIB: u64 = 1 << 20;
const ROOT: u32 = 0;
/// Free space below which it is time, and below which it is late: RocksDB writes tables of tens of MiB.
const LITTLE: u64 = 1024 * MIB;
const TOO_LITTLE: u64 = 128 * MIB;
/// Each write waits for the disks of a majority.
const SLOW: Duration = Duration::from_millis(10);

pub(super) struct Disk {
    dir: PathBuf,
    /// The directory itself, if it exists: its owner and its mode; or why that is not known.
    exists: Result<Option<(u32, u32)>, String>,
    /// Who runs this program.
    user: u32,
    free: Result<u64, String>,
    kind: Option<&'static str>,
    syncs: Result<Vec<Duration>, String>,
    election_timeout: Duration,
}

pub(super) async fn measure(patient: &Patient) -> Disk {
    let dir = patient.home.clone();
    let election_timeout = patient.config.cluster.raft.election_timeout;
    let within = patient.timeout;
    let at = dir.clone();
    // A disk that hangs holds its thread, and nothing else.
    let looked = tokio::task::spawn_blocking(move || look(&at, within)).await;
    let failed = |error: String| (Err(error.clone()), Err(error.clone()), None, Err(error));
    let (exists, free, kind, syncs) = looked.unwrap_or_else(|error| failed(error.to_string()));
    Disk { dir, exists, user: nix::unistd::geteuid().as_raw(), free, kind, syncs, election_timeout }
}

type Looked =
    (Result<Option<(u32, u32)>, String>, Result<u64, String>, Option<&'static str>, Result<Vec<Duration>, String>);

fn look(dir: &Path, within: Duration) -> Looked {
    let exists = match fs::metadata(dir) {
        Ok(found) => Ok(Some((found.uid(), found.mode() & 0o7777))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    };
    // Before the first start: where it will be made.
    let ground = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let free = statvfs(ground)
        .map(|found| found.blocks_available().saturating_mul(found.fragment_size()))
        .map_err(|error| error.to_string());
    let kind = statfs::statfs(ground).ok().and_then(|found| unfit(found.filesystem_type()));
    let syncs = sync_times(ground, within).map_err(|error| error.to_string());
    (exists, free, kind, syncs)
}

/// A file system that does not keep what an instance needs kept.
fn unfit(kind: FsType) -> Option<&'static str> {
    [
        (statfs::NFS_SUPER_MAGIC, "NFS"),
        (statfs::SMB_SUPER_MAGIC, "SMB"),
        (statfs::OVERLAYFS_SUPER_MAGIC, "overlayfs"),
        (statfs::TMPFS_MAGIC, "tmpfs"),
    ]
    .into_iter()
    .find_map(|(magic, name)| (magic == kind).then_some(name))
}

fn sync_times(dir: &Path, within: Duration) -> io::Result<Vec<Duration>> {
    let mut file = tempfile::Builder::new().prefix(".openclaw-doctor-").tempfile_in(dir)?;
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < SYNCS && begin.elapsed() < within {
        let before = Instant::now();
        file.write_all(&[b'x'; SYNC_BYTES])?;
        file.as_file().sync_data()?;
        times.push(before.elapsed());
    }
    Ok(times)
}

pub(super) fn judge(disk: &Disk) -> Vec<Finding> {
    let directory = directory(disk);
    if disk.exists.is_err() {
        // What was measured then is some directory above it, perhaps on another disk.
        return vec![directory];
    }
    vec![directory, space(disk), file_system(disk), syncs(disk)]
}

fn directory(disk: &Disk) -> Finding {
    const CHECK: &str = "data directory";
    let dir = disk.dir.display();
    match &disk.exists {
        Err(error) => Finding::problem(
            CHECK,
            format!("{dir} cannot be looked at: {error}"),
            "run this as the user that runs the gateway; that user must be able to enter every directory on the way",
        ),
        Ok(None) => Finding::ok(CHECK, format!("{dir} does not exist yet: the first start makes it")),
        // Root may, and what the gateway runs as need not exist while it does not run.
        Ok(Some((owner, _))) if *owner != disk.user && disk.user != ROOT => Finding::warning(
            CHECK,
            format!("{dir} belongs to user {owner}, and this is user {}", disk.user),
            "run the gateway and its commands as the user that owns it",
        ),
        Ok(Some((_, mode))) if mode & 0o077 != 0 => Finding::warning(
            CHECK,
            format!("{dir} has mode {mode:04o}: others may read the conversations in it"),
            format!("chmod 700 {dir}"),
        ),
        Ok(Some((owner, mode))) if *owner != disk.user => {
            Finding::ok(CHECK, format!("{dir}, mode {mode:04o}, of user {owner}"))
        }
        Ok(Some((_, mode))) => Finding::ok(CHECK, format!("{dir}, mode {mode:04o}")),
    }
}

fn space(disk: &Disk) -> Finding {
    const CHECK: &str = "free space";
    const FREE: &str = "free some, or move storage.dataDir: a full disk ends the instance (exit code 70)";
    match &disk.free {
        Err(error) => Finding::problem(CHECK, format!("{}: {error}", disk.dir.display()), "look at the mount"),
        Ok(free) if *free < TOO_LITTLE => Finding::problem(CHECK, format!("{} MiB", free / MIB), FREE),
        Ok(free) if *free < LITTLE => Finding::warning(CHECK, format!("{} MiB", free / MIB), FREE),
        Ok(free) => Finding::ok(CHECK, format!("{} GiB", free / (1024 * MIB))),
    }
}

fn file_system(disk: &Disk) -> Finding {
    const CHECK: &str = "file system";
    let warn = |name: &str, why: &str, advice: &str| Finding::warning(CHECK, format!("{name}: {why}"), advice);
    match disk.kind {
        None => Finding::ok(CHECK, "a local one"),
        Some(name @ ("NFS" | "SMB")) => warn(
            name,
            "its locks and its syncs are the server's, and a pause of the server stops the instance",
            "give each instance a local disk; the instances replicate by themselves",
        ),
        Some(name @ "tmpfs") => warn(
            name,
            "it is gone with the machine's power, and an instance that lost its disk joins anew",
            "use a disk",
        ),
        Some(name) => warn(name, "what is written goes with the container", "mount a volume at storage.dataDir"),
    }
}

fn syncs(disk: &Disk) -> Finding {
    const CHECK: &str = "sync time";
    let mut times = match &disk.syncs {
        Err(error) => {
            return Finding::problem(
                CHECK,
                format!("a file in {} cannot be written: {error}", disk.dir.display()),
                "without this the instance does not start: look at space, owner and mount",
            );
        }
        Ok(times) if times.is_empty() => {
            return Finding::problem(
                CHECK,
                "no write reached the disk in time",
                "the disk hangs: look at the kernel's log",
            );
        }
        Ok(times) => times.clone(),
    };
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let saw = format!("{} syncs of {SYNC_BYTES} bytes: half within {median:.1?}, the longest {worst:.1?}", times.len());
    if worst >= disk.election_timeout {
        return Finding::warning(
            CHECK,
            saw,
            format!(
                "the longest is beyond cluster.raft.electionTimeoutMs ({}): such pauses can cost a leader its place; use a \
                 faster disk, or raise heartbeatMs and electionTimeoutMs on every instance",
                disk.election_timeout.as_millis()
            ),
        );
    }
    if median >= SLOW {
        return Finding::warning(
            CHECK,
            saw,
            "every write waits so long for a majority: use a disk with a faster sync (an SSD with a protected cache)",
        );
    }
    Finding::ok(CHECK, saw)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn disk() -> Disk {
        Disk {
            dir: "/data/node-1".into(),
            exists: Ok(Some((1000, 0o700))),
            user: 1000,
            free: Ok(20 * LITTLE),
            kind: None,
            syncs: Ok(vec![Duration::from_millis(1); SYNCS]),
            election_timeout: Duration::from_millis(150),
        }
    }

    fn levels(disk: &Disk) -> Vec<Level> {
        judge(disk).into_iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn a_sound_disk_is_right_also_before_the_first_start() {
        assert_eq!(levels(&disk()), [Level::Ok; 4]);
        assert_eq!(levels(&Disk { exists: Ok(None), ..disk() }), [Level::Ok; 4]);
    }

    #[test]
    fn what_is_wrong_with_the_directory_is_told() {
        assert_eq!(levels(&Disk { exists: Ok(Some((0, 0o700))), ..disk() })[0], Level::Warning);
        assert_eq!(levels(&Disk { exists: Ok(Some((1000, 0o755))), ..disk() })[0], Level::Warning);
        let root = judge(&Disk { user: ROOT, ..disk() }).remove(0);
        assert_eq!((root.level, root.saw.contains("of user 1000")), (Level::Ok, true), "{root:?}");
        assert_eq!(levels(&Disk { free: Ok(LITTLE - 1), ..disk() })[1], Level::Warning);
        assert_eq!(levels(&Disk { free: Ok(TOO_LITTLE - 1), ..disk() })[1], Level::Problem);
        for kind in ["NFS", "tmpfs", "overlayfs"] {
            assert_eq!(levels(&Disk { kind: Some(kind), ..disk() })[2], Level::Warning, "{kind}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_looked_at_is_not_one_that_does_not_exist() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (exists, ..) = look(&file.path().join("node-1"), Duration::ZERO);
        let found = judge(&Disk { exists, ..disk() });
        assert_eq!(found.len(), 1, "the disk above it says nothing: {found:?}");
        assert_eq!((found[0].check, found[0].level), ("data directory", Level::Problem));
        let home = tempfile::tempdir().unwrap();
        assert_eq!(look(&home.path().join("data/node-1"), Duration::ZERO).0, Ok(None));
    }

    #[test]
    fn a_pause_is_held_against_the_election_timeout_and_the_median_against_what_writers_wait() {
        let with = |ms: &[u64]| {
            let times = ms.iter().map(|ms| Duration::from_millis(*ms)).collect();
            judge(&Disk { syncs: Ok(times), ..disk() }).remove(3)
        };
        assert_eq!(with(&[1, 2, 3]).level, Level::Ok);
        assert!(with(&[1, 2, 200]).advice.unwrap().contains("electionTimeoutMs (150)"));
        assert!(with(&[20, 20, 30]).advice.unwrap().contains("every write waits"));
        assert_eq!(with(&[]).level, Level::Problem);
        assert_eq!(levels(&Disk { syncs: Err("no space left".into()), ..disk() })[3], Level::Problem);
    }

    #[test]
    fn syncs_are_measured_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let times = sync_times(dir.path(), Duration::from_secs(10)).unwrap();
        assert!(!times.is_empty() && times.iter().all(|time| !time.is_zero()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
