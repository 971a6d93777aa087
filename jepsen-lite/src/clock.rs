//! Clocks that are wrong: libfaketime stands between a process and the time, and reads from a file what to tell it.
//!
//! What a process can be told depends on how it was started. With [`Skew::Wall`] the time of day jumps, and the monotonic
//! clocks (among them CLOCK_BOOTTIME, by which leases are counted) stay the kernel's. With [`Skew::Rate`] all clocks and
//! sleeps of the process run faster or slower, which is how a bad oscillator shows.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Where distributions put it: Debian and Ubuntu by architecture, Fedora and Arch in one place.
const DIRECTORIES: [&str; 3] = ["/usr/lib", "/usr/lib64", "/usr/local/lib"];
/// The variant for programs with threads.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
/// How much a rate may differ: beyond this no promise of any lease holds.
const RATES: std::ops::RangeInclusive<f64> = 0.5..=2.0;

/// What of a process's time can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skew {
    /// The time of day jumps.
    Wall,
    /// All clocks run at another rate.
    Rate,
}

/// The clock of one process.
#[derive(Debug, Clone)]
pub struct FakeClock {
    library: PathBuf,
    file: PathBuf,
    skew: Skew,
}

impl FakeClock {
    /// A clock that is right until it is told otherwise; `file` is where the process reads.
    ///
    /// # Errors
    /// When libfaketime is not installed, or the file cannot be written.
    pub fn new(file: &Path, skew: Skew) -> Result<Self> {
        let clock = Self { library: library()?, file: file.to_owned(), skew };
        clock.reset()?;
        Ok(clock)
    }

    /// What the process must be started with.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut environment = vec![
            ("LD_PRELOAD".into(), self.library.clone().into()),
            ("FAKETIME_TIMESTAMP_FILE".into(), self.file.clone().into()),
            // Otherwise a change is seen up to ten seconds later.
            ("FAKETIME_NO_CACHE".into(), "1".into()),
        ];
        match self.skew {
            Skew::Wall => environment.push(("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into())),
            Skew::Rate => {}
        }
        environment
    }

    /// The time of day is off by so many seconds from now on.
    ///
    /// # Errors
    /// When the process was not started for it: its monotonic clocks would jump too, which no machine's do.
    pub fn jump(&self, seconds: i64) -> Result<()> {
        ensure!(self.skew == Skew::Wall, "the process was started for another rate, not for jumps");
        self.write(&format!("{seconds:+}s"))
    }

    /// All clocks run `rate` times as fast. It counts from the start of the process, so all clocks also jump by that: set it
    /// before the process starts.
    ///
    /// # Errors
    /// When the process was not started for it, or the rate is no machine's.
    pub fn run_at(&self, rate: f64) -> Result<()> {
        ensure!(self.skew == Skew::Rate, "the process was started for jumps, not for another rate");
        ensure!(RATES.contains(&rate), "a rate of {rate} is not within {RATES:?}");
        self.write(&format!("+0 x{rate}"))
    }

    /// The kernel's time again.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn reset(&self) -> Result<()> {
        self.write("+0")
    }

    /// In one step, since the process reads whenever it likes.
    fn write(&self, what: &str) -> Result<()> {
        let fresh = self.file.with_extension("new");
        std::fs::write(&fresh, format!("{what}\n")).with_context(|| format!("write {}", fresh.display()))?;
        std::fs::rename(&fresh, &self.file).with_context(|| format!("put {} in its place", self.file.display()))
    }
}

/// Whether clocks can be faked here.
///
/// # Errors
/// Names the package that is missing.
pub fn usable() -> Result<()> {
    library().map(drop)
}

fn library() -> Result<PathBuf> {
    for directory in DIRECTORIES.map(Path::new) {
        let by_architecture = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|item| item.path());
        for place in by_architecture.chain([directory.to_owned()]) {
            let path = place.join(LIBRARY);
            if path.is_file() {
                return Ok(path);
            }
        }
    }
    bail!("{LIBRARY} is not installed; it is in the package libfaketime")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    fn time_of_day(clock: &FakeClock) -> Duration {
        let output = Command::new("date").arg("+%s").envs(clock.environment()).output().unwrap();
        Duration::from_secs(String::from_utf8(output.stdout).unwrap().trim().parse().unwrap())
    }

    fn clock(directory: &Path, skew: Skew) -> Option<FakeClock> {
        match FakeClock::new(&directory.join("time"), skew) {
            Ok(clock) => Some(clock),
            Err(error) if std::env::var_os("CI").is_none() => {
                eprintln!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_process_sees_the_jump_and_the_way_back() {
        let directory = tempfile::tempdir().unwrap();
        let Some(clock) = clock(directory.path(), Skew::Wall) else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let near = |time: Duration, expected: Duration| time.abs_diff(expected) < Duration::from_secs(60);
        clock.jump(3600).unwrap();
        assert!(near(time_of_day(&clock), now + Duration::from_secs(3600)));
        clock.jump(-3600).unwrap();
        assert!(near(time_of_day(&clock), now - Duration::from_secs(3600)));
        clock.reset().unwrap();
        assert!(near(time_of_day(&clock), now));
        assert!(clock.run_at(1.1).is_err(), "its monotonic clock is not faked");
    }

    #[test]
    fn a_rate_is_a_machines_and_only_for_a_process_that_was_started_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let Some(clock) = clock(directory.path(), Skew::Rate) else { return };
        clock.run_at(1.1).unwrap();
        assert_eq!(std::fs::read_to_string(directory.path().join("time")).unwrap(), "+0 x1.1\n");
        assert!(clock.run_at(60.0).is_err());
        assert!(clock.jump(60).is_err(), "its monotonic clocks would jump as well");
    }
}
