//! One child process: started with a log file, signalled by its own pid only, dead when dropped.
//!
//! It knows nothing of what the program is; `cluster` starts gateways with it and `bench` etcd members.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How much of a log an error message shows.
const TAIL_BYTES: u64 = 4096;
/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(5);
/// Kernel ticks per second as user space sees them: `USER_HZ`, 100 on every Linux that Rust's std supports.
const TICKS_PER_SECOND: u64 = 100;

/// What to run.
#[derive(Debug, Clone)]
pub struct Program {
    pub executable: PathBuf,
    /// A program with arguments that becomes the executable, by exec: so the pid is the executable's own. Often empty.
    pub through: Vec<OsString>,
    pub arguments: Vec<OsString>,
    /// The whole environment apart from `PATH`: nothing of the caller's leaks in.
    pub environment: Vec<(OsString, OsString)>,
    /// Standard output and error are appended here, over restarts.
    pub log: PathBuf,
}

/// When a program was up, and when it was not: dead, stopped, or told to end. Cheap to clone; all clones know the same.
#[derive(Debug, Clone, Default)]
pub struct Lifeline(Arc<Mutex<Vec<(Instant, State)>>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Paused,
    Down,
}

impl Lifeline {
    /// Whether it was up from one moment to the other without a break.
    pub fn was_up(&self, from: Instant, to: Instant) -> bool {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = states.iter().rev().find(|(at, _)| *at <= from);
        before.is_some_and(|(_, state)| *state == State::Up)
            && states.iter().all(|(at, state)| *at <= from || *at > to || *state == State::Up)
    }

    /// The moments at which it was stopped by SIGSTOP.
    pub fn pauses(&self) -> Vec<Instant> {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.iter().filter(|(_, state)| *state == State::Paused).map(|(at, _)| *at).collect()
    }

    fn note(&self, state: State) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), state));
    }
}

/// A program that may be running.
#[derive(Debug)]
pub struct Process {
    program: Program,
    child: Option<Child>,
    paused: bool,
    lifeline: Lifeline,
    /// It was signalled to end.
    told_to_end: bool,
    last_end: Option<ExitStatus>,
    ended_by_itself: Option<ExitStatus>,
}

impl Process {
    pub fn new(program: Program) -> Self {
        Self {
            program,
            child: None,
            paused: false,
            lifeline: Lifeline::default(),
            told_to_end: false,
            last_end: None,
            ended_by_itself: None,
        }
    }

    pub fn lifeline(&self) -> &Lifeline {
        &self.lifeline
    }

    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Gives it an environment variable from its next start on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.program.environment.retain(|(known, _)| known != name);
        self.program.environment.push((name.into(), value.into()));
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it runs already, the log cannot be opened, or the system refuses to start it.
    pub fn start(&mut self) -> Result<()> {
        if self.is_running()? {
            bail!("{} runs already", self.name());
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.program.log)
            .with_context(|| format!("open the log {}", self.program.log.display()))?;
        let mut words =
            self.program.through.iter().map(OsString::as_os_str).chain([self.program.executable.as_os_str()]);
        let child = Command::new(words.next().unwrap_or_default())
            .args(words)
            .args(&self.program.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.program.environment.iter().map(|(name, value)| (name, value)))
            // Its end is the end of this program, however that came: for a program that looks.
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.name()))?;
        self.child = Some(child);
        self.paused = false;
        self.told_to_end = false;
        self.lifeline.note(State::Up);
        Ok(())
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The exit code with which [`Self::is_running`] found it to have ended last; a signal leaves none.
    pub fn last_exit(&self) -> Option<i32> {
        self.last_end.and_then(|status| status.code())
    }

    /// How it ended, if it did so without being signalled by [`Self::send_kill`] or [`Self::terminate`] and while nobody waited
    /// for that by [`Self::wait_exit`]. It is told once, also after a further start.
    pub fn take_ended_by_itself(&mut self) -> Option<ExitStatus> {
        self.ended_by_itself.take()
    }

    /// Reaps it if it has ended, so that a dead process is never taken for a live one.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn is_running(&mut self) -> Result<bool> {
        let Some(child) = &mut self.child else { return Ok(false) };
        if let Some(status) = child.try_wait().context("look at a child process")? {
            self.last_end = Some(status);
            self.child = None;
            if !self.told_to_end {
                self.lifeline.note(State::Down);
                self.ended_by_itself = Some(status);
            }
        }
        Ok(self.child.is_some())
    }

    /// An error with the end of the log, if it is not running any more.
    ///
    /// # Errors
    /// When it has ended by itself.
    pub fn ensure_running(&mut self) -> Result<()> {
        if self.is_running()? {
            return Ok(());
        }
        let status = self.last_end.map_or_else(|| "not started".to_owned(), |status| status.to_string());
        bail!("{} ended ({status}); its log ends:\n{}", self.name(), self.log_tail())
    }

    /// Sends SIGKILL and does not wait, so that several processes can be killed at one moment; [`Self::reap`] follows.
    ///
    /// # Errors
    /// When it is not running.
    pub fn send_kill(&mut self) -> Result<()> {
        self.lifeline.note(State::Down);
        self.signal(Signal::SIGKILL)?;
        self.told_to_end = true;
        Ok(())
    }

    /// Waits for the end of a process that was killed.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn reap(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            self.last_end = Some(child.wait().context("reap a child process")?);
        }
        self.paused = false;
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self) -> Result<()> {
        self.send_kill()?;
        self.reap()
    }

    /// SIGTERM: asks it to stop in its own order; [`Self::wait_exit`] sees it go.
    ///
    /// # Errors
    /// When it is not running.
    pub fn terminate(&mut self) -> Result<()> {
        self.lifeline.note(State::Down);
        self.signal(Signal::SIGTERM)?;
        self.told_to_end = true;
        Ok(())
    }

    /// SIGSTOP: it keeps its sockets and its memory, and does nothing.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&mut self) -> Result<()> {
        // Before it, so that nothing which the process does is counted to a time in which it was stopped.
        self.lifeline.note(State::Paused);
        self.signal(Signal::SIGSTOP)?;
        self.paused = true;
        Ok(())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)?;
        self.paused = false;
        self.lifeline.note(State::Up);
        Ok(())
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it still runs at the deadline.
    pub async fn wait_exit(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            let child = self.child.as_mut().context("it is not running")?;
            if let Some(status) = child.try_wait().context("look at a child process")? {
                self.child = None;
                self.last_end = Some(status);
                if !self.told_to_end {
                    self.lifeline.note(State::Down);
                }
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} still runs after {within:?}", self.name());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Resident memory, in bytes.
    ///
    /// # Errors
    /// When it is not running.
    pub fn resident_bytes(&self) -> Result<u64> {
        let pid = self.pid().context("it is not running")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read a process status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in the status")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("parse VmRSS")?;
        Ok(kib * 1024)
    }

    /// Processor time that it has used, user and system.
    ///
    /// # Errors
    /// When it is not running.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.pid().context("it is not running")?)
    }

    /// The end of its log, for an error message.
    pub fn log_tail(&self) -> String {
        tail(&self.program.log).unwrap_or_else(|error| format!("(no log: {error:#})"))
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        // A pid that was reaped may belong to someone else by now, so only a child that still waits for us is signalled.
        ensure!(self.is_running()?, "{} is not running", self.name());
        let pid = self.pid().context("it is not running")?;
        let pid = Pid::from_raw(i32::try_from(pid).context("a pid beyond i32")?);
        kill(pid, signal).with_context(|| format!("send {signal} to {}", self.name()))
    }

    fn name(&self) -> String {
        let executable = self.program.executable.file_name().unwrap_or_default().to_string_lossy();
        format!("{executable} ({})", self.program.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL also ends a stopped process. An error here means it is gone already.
        if let Some(child) = &mut self.child
            && child.kill().is_ok()
            && let Err(error) = child.wait()
        {
            eprintln!("cannot reap {}: {error}", self.program.log.display());
        }
    }
}

/// Processor time of a process, user and system.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read a process's times")?;
    // The second field is the program's name in parentheses and may contain anything, so count from its end.
    let (_, rest) = stat.rsplit_once(')').context("no name in /proc/<pid>/stat")?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut ticks =
        || fields.next().and_then(|field| field.parse::<u64>().ok()).context("no times in /proc/<pid>/stat");
    let ticks = ticks()? + ticks()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

fn tail(path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(directory: &Path, script: &str) -> Process {
        Process::new(Program {
            executable: "/bin/sh".into(),
            through: Vec::new(),
            arguments: vec!["-c".into(), script.into()],
            environment: Vec::new(),
            log: directory.join("log"),
        })
    }

    fn exists(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_dropped_process_is_gone_even_when_it_was_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell(directory.path(), "exec sleep 600");
        process.start().unwrap();
        assert!(process.start().is_err(), "a second start would lose the first child");
        let pid = process.pid().unwrap();
        process.pause().unwrap();
        assert!(process.is_paused() && exists(pid));
        drop(process);
        assert!(!exists(pid));
    }

    #[tokio::test]
    async fn the_standard_input_of_a_process_is_open_as_long_as_it_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell(directory.path(), "cat; exec sleep 600");
        process.start().unwrap();
        assert!(process.wait_exit(Duration::from_millis(50)).await.is_err(), "it reads");
        drop(process.child.as_mut().unwrap().stdin.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        let pid = process.pid().unwrap();
        while std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() != "sleep" {
            assert!(Instant::now() < deadline, "it reads on");
            tokio::time::sleep(POLL).await;
        }
    }

    #[test]
    fn a_lifeline_tells_when_a_process_was_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell(directory.path(), "exec sleep 600");
        let before = Instant::now();
        process.start().unwrap();
        let lifeline = process.lifeline().clone();
        let (started, later) = (Instant::now(), || Instant::now());
        assert!(!lifeline.was_up(before, started) && lifeline.was_up(started, later()));
        process.pause().unwrap();
        let paused = Instant::now();
        process.resume().unwrap();
        let resumed = Instant::now();
        assert!(!lifeline.was_up(started, paused) && !lifeline.was_up(paused, resumed));
        assert!(!lifeline.was_up(started, resumed), "a break in the middle counts");
        assert!(lifeline.was_up(resumed, later()));
        process.kill().unwrap();
        assert!(!lifeline.was_up(resumed, later()));
        assert_eq!(lifeline.pauses().len(), 1);
    }

    #[test]
    fn a_panicking_test_leaves_no_process() {
        let directory = tempfile::tempdir().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut process = shell(directory.path(), "exec sleep 600");
        let outcome = std::thread::spawn(move || {
            process.start().unwrap();
            sender.send(process.pid().unwrap()).unwrap();
            panic!("as a failing test does");
        })
        .join();
        assert!(outcome.is_err());
        assert!(!exists(receiver.recv().unwrap()));
    }

    #[tokio::test]
    async fn a_process_that_goes_through_another_program_keeps_its_pid() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell(directory.path(), "echo i am $$; exec sleep 600");
        process.program.through = vec!["/usr/bin/env".into(), "A=b".into()];
        process.start().unwrap();
        let (pid, deadline) = (process.pid().unwrap(), Instant::now() + Duration::from_secs(10));
        while !process.log_tail().contains(&format!("i am {pid}\n")) {
            assert!(Instant::now() < deadline, "{}", process.log_tail());
            tokio::time::sleep(POLL).await;
        }
    }

    #[tokio::test]
    async fn an_ended_process_is_noticed_with_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell(directory.path(), "echo the port is taken; exit 3");
        process.start().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let error = loop {
            assert!(Instant::now() < deadline);
            match process.ensure_running() {
                Ok(()) => tokio::time::sleep(POLL).await,
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("the port is taken") && error.contains("exit status: 3"), "{error}");
        assert!(process.kill().is_err(), "nobody else's pid is signalled");
    }

    #[tokio::test]
    async fn an_end_that_nobody_asked_for_is_told_once_and_its_moment_is_in_the_lifeline() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell(directory.path(), "exit 70");
        let ended = async |process: &mut Process| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while process.is_running().unwrap() {
                assert!(Instant::now() < deadline);
                tokio::time::sleep(POLL).await;
            }
        };
        process.start().unwrap();
        let started = Instant::now();
        ended(&mut process).await;
        assert!(!process.lifeline().was_up(started, Instant::now()));
        process.start().unwrap();
        assert_eq!(process.take_ended_by_itself().and_then(|status| status.code()), Some(70), "of before its start");
        assert_eq!(process.take_ended_by_itself(), None);
        process.wait_exit(Duration::from_secs(10)).await.unwrap();
        assert_eq!(process.take_ended_by_itself(), None, "somebody waited for it");
        process.program.arguments[1] = "exec sleep 600".into();
        process.start().unwrap();
        process.terminate().unwrap();
        ended(&mut process).await;
        assert_eq!(process.take_ended_by_itself(), None, "it was told to");
    }

    #[tokio::test]
    async fn sigterm_is_waited_for_with_a_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell(directory.path(), "exec sleep 600");
        process.start().unwrap();
        assert!(process.wait_exit(Duration::from_millis(20)).await.is_err());
        process.terminate().unwrap();
        assert!(!process.wait_exit(Duration::from_secs(10)).await.unwrap().success());
    }

    #[test]
    fn memory_and_processor_time_are_read_from_the_kernel() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell(directory.path(), "exec sleep 600");
        process.start().unwrap();
        assert!(process.resident_bytes().unwrap() > 0);
        assert!(process.cpu_time().unwrap() < Duration::from_secs(5));
    }
}
