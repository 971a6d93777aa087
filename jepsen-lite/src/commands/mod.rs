//! The program's subcommands, one file each: options in, a report out. Each starts what it measures or breaks, and ends it.
//!
//! A report is a table for people and one JSON value for programs, and it says whether the run passed. A run passes only
//! when the checkers found nothing, no log tells of a panic, and the faults that were asked for really happened.

pub mod bench;
pub mod channels;
pub mod durability;
pub mod failover;
pub mod footprint;
pub mod list;
pub mod replay;
pub mod report;
pub mod rolling;
pub mod run;
pub mod suite;
pub mod turns;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::checkers::append::Verdict;
use crate::cluster::{Cluster, Environment};
use crate::history::{self, Event};
use crate::lab::{self, Shape};
use crate::run::plan;
use crate::run::verdict::Outcome;

/// How long instances may take to be ready after a start, on a machine that is busy with something else.
const READY: Duration = Duration::from_secs(60);
/// Anomalies and log lines that a report shows; the rest are counted.
const SHOWN: usize = 10;

/// What every subcommand that starts instances is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// The built binary; default: `openclaw` beside this program
    #[arg(long, value_name = "PATH")]
    openclaw: Option<PathBuf>,
    /// Keep data, logs and history here; default: a temporary directory, removed when all went well
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where instances run
    #[arg(long, value_enum, default_value_t = Where::Loopback)]
    environment: Where,
    /// In namespaces, what every link between two instances does to frames:
    /// delay=20ms,jitter=5ms,loss=0.01,duplicate=0.01,reorder=0.05,rate=1000000 (bytes per second), or some of these
    #[arg(long, value_name = "SHAPE")]
    shape: Option<Shape>,
}

/// Where instances run, as on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Where {
    /// All on loopback, with proxies between them where faults need them
    Loopback,
    /// Each in a network namespace of its own, on a switch in this program; needs root
    Namespaces,
}

impl Common {
    /// # Errors
    /// When none was named and there is none beside this program.
    fn openclaw(&self) -> Result<PathBuf> {
        match &self.openclaw {
            Some(path) => Ok(path.clone()),
            None => {
                let beside = std::env::current_exe().context("find this program")?.with_file_name("openclaw");
                beside.exists().then_some(beside).context("no openclaw beside this program: name it by --openclaw PATH")
            }
        }
    }

    /// Whether the program must enter namespaces of its own before it does anything else.
    pub fn needs_namespaces(&self) -> bool {
        self.environment == Where::Namespaces
    }

    /// Where to start instances; `seed` draws what happens to frames.
    ///
    /// # Errors
    /// When loopback is asked for a shape.
    fn environment(&self, seed: u64) -> Result<Environment> {
        match self.environment {
            Where::Loopback => {
                ensure!(self.shape.is_none(), "--shape needs --environment namespaces");
                Ok(Environment::Loopback { proxied: false })
            }
            Where::Namespaces => {
                Ok(Environment::Namespaces(lab::Options { shape: self.shape.unwrap_or_default(), seed }))
            }
        }
    }

    /// The environment's name and the shape of its links, for a plan.
    ///
    /// # Errors
    /// As [`Self::environment`].
    fn place(&self) -> Result<(String, Option<String>)> {
        self.environment(0)?;
        let name = if self.needs_namespaces() { plan::NAMESPACES } else { plan::LOOPBACK };
        Ok((name.to_owned(), self.shape.map(|shape| shape.to_string())))
    }

    /// The directory of the run, fresh.
    fn directory(&self) -> Result<Option<PathBuf>> {
        if let Some(out) = &self.out {
            std::fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
            let empty = std::fs::read_dir(out).with_context(|| format!("read {}", out.display()))?.next().is_none();
            ensure!(empty, "{} is not empty: instances would go on with what an earlier run left", out.display());
            return Ok(Some(std::fs::canonicalize(out).with_context(|| format!("find {}", out.display()))?));
        }
        Ok(None)
    }
}

/// What a subcommand found.
#[derive(Debug)]
pub struct Report {
    pub text: String,
    pub json: Value,
    pub outcome: Outcome,
}

impl Report {
    fn new(text: String, json: impl Serialize, passed: bool) -> Result<Self> {
        Self::of(text, json, if passed { Outcome::Passed } else { Outcome::Failed })
    }

    fn of(text: String, json: impl Serialize, outcome: Outcome) -> Result<Self> {
        Ok(Self { text, json: serde_json::to_value(json).context("encode the report")?, outcome })
    }

    pub fn passed(&self) -> bool {
        self.outcome == Outcome::Passed
    }
}

/// Leaves the evidence of a run: the history, and everything else when it did not pass.
fn conclude(cluster: &mut Cluster, events: &[Event], passed: bool) -> Result<()> {
    if !passed {
        cluster.keep();
    }
    let directory = cluster.directory().context("no directory")?;
    history::save(&directory.join("history.jsonl"), events)
}

/// The lines of a report about a verdict and the logs.
fn findings(verdict: &Verdict, alarms: &[String]) -> String {
    let mut text = format!(
        "{} acknowledged, {} unknown ({} of them there), {} refused; {} entries in {} sessions on every instance; \
         {} keys repeated\nanomalies: {}; alarms in logs: {}\n",
        verdict.acknowledged,
        verdict.unknown,
        verdict.unknown_present,
        verdict.failed,
        verdict.entries,
        verdict.sessions,
        verdict.repeats,
        verdict.anomalies.len(),
        alarms.len()
    );
    for anomaly in verdict.anomalies.iter().take(SHOWN) {
        text.push_str(&format!("  {anomaly}\n"));
    }
    for alarm in alarms.iter().take(SHOWN) {
        text.push_str(&format!("  {alarm}\n"));
    }
    text
}

/// The command that does it again; `common` says where.
fn rerun(command: &str, openclaw: &Path, common: &Common, arguments: &str) -> String {
    let mut place = String::new();
    if common.needs_namespaces() {
        place.push_str("--environment namespaces ");
    }
    if let Some(shape) = common.shape {
        place.push_str(&format!("--shape {shape} "));
    }
    format!("cargo jepsen {command} --openclaw {} {place}{arguments}", quoted(openclaw))
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@".contains(c);
    if !path.is_empty() && path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}
