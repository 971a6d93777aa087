//! The page of a run, or of several: folders in, `index.html` beside what it was made of, and a table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Report;
use crate::figures::Summary;
use crate::history::{self, Loaded};
use crate::report::availability::{self, Availability, availability};
use crate::report::{self, word, worst};
use crate::run::verdict::{Counts, Outcome, Verdict};

const PLAN: &str = "plan.json";
const HISTORY: &str = "history.jsonl";
const VERDICT: &str = "verdict.json";
pub(super) const PAGE: &str = "index.html";

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The folder of a run, a folder of such folders, or several of either
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Print availability and counts as JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Where the page over several runs goes; default: into the folder of folders, if one was named alone
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Of all together, where it is known better than from the worst of them.
    #[arg(skip)]
    outcome: Option<Outcome>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures<'a> {
    outcome: Outcome,
    runs: BTreeMap<&'static str, usize>,
    seconds: f64,
    operations: Counts,
    availability: &'a [Availability],
    anomalies: BTreeMap<&'a str, usize>,
    problems: usize,
    alarms: usize,
    list: Vec<Listed<'a>>,
    /// What could not be read.
    unreadable: &'a [String],
    page: Option<&'a Path>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    directory: &'a Path,
    outcome: Outcome,
    seed: u64,
    seconds: f64,
    operations: Counts,
    rerun: &'a str,
}

/// Writes the pages.
///
/// # Errors
/// When a folder is no run and has none, when a file of a run that was named is missing or damaged, or when a page cannot
/// be written. Of the runs in a folder of runs those that cannot be read are told on its page, which is then no pass.
pub fn run(options: &Options) -> Result<Report> {
    let (mut runs, mut unreadable) = (Vec::new(), Vec::new());
    let mut collections = Vec::new();
    for directory in &options.directories {
        if is_run(directory) {
            runs.push((directory.clone(), one(directory)?));
            continue;
        }
        for directory in runs_in(directory)? {
            match one(&directory) {
                Ok(verdict) => runs.push((directory, verdict)),
                Err(error) => unreadable.push(format!("{}: {error:#}", directory.display())),
            }
        }
        collections.push(directory);
    }
    let out = match (&options.out, &options.directories[..], &collections[..]) {
        (Some(out), _, _) => Some(out.clone()),
        (None, [_], [collection]) => Some(collection.join(PAGE)),
        (None, _, _) => None,
    };
    if let Some(out) = &out {
        write_summary(out, &runs, &unreadable)?;
    }
    let alone = || runs.first().map(|(directory, _)| directory.join(PAGE)).filter(|_| runs.len() == 1);
    let page = out.or_else(alone);
    let missing = (!unreadable.is_empty()).then_some(Outcome::Inconclusive);
    let outcome =
        options.outcome.unwrap_or_else(|| worst(runs.iter().map(|(_, verdict)| verdict.outcome).chain(missing)));
    let rows = availability(runs.iter().flat_map(|(_, verdict)| &verdict.faults));
    let figures = figures(&runs, &rows, &unreadable, outcome, page.as_deref());
    Report::of(table(&figures)?, &figures, outcome)
}

/// The same for a folder of runs, of which all together `outcome` came.
///
/// # Errors
/// As [`run`].
pub(super) fn over(directory: &Path, outcome: Outcome) -> Result<Report> {
    run(&Options { directories: vec![directory.to_owned()], json: false, out: None, outcome: Some(outcome) })
}

fn is_run(directory: &Path) -> bool {
    [VERDICT, HISTORY, PLAN].iter().any(|file| directory.join(file).exists())
}

/// The folders of runs in a folder, in the order of their names.
fn runs_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    let mut runs = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
        if path.is_dir() && is_run(&path) {
            runs.push(path);
        }
    }
    runs.sort();
    anyhow::ensure!(
        !runs.is_empty(),
        "{} has no {VERDICT}, and no folder in it has one: it is not the folder of a run",
        directory.display()
    );
    Ok(runs)
}

/// Reads one run, and writes its page.
fn one(directory: &Path) -> Result<Verdict> {
    let file = directory.join(HISTORY);
    if !file.exists() && !directory.join(VERDICT).exists() {
        bail!("{} has a {PLAN} and no {HISTORY}: its run ended before its clients began", directory.display());
    }
    let Loaded { events, cut } = history::load_cut(&file)?;
    let mut notes = Vec::new();
    if let Some(line) = cut {
        notes.push(format!(
            "line {line} of {HISTORY}, the last one, was begun and not finished, and is left out: the run was ended while it was written"
        ));
    }
    let verdict = if directory.join(VERDICT).exists() {
        read(&directory.join(VERDICT))?
    } else {
        // Whoever killed the run wants to see how far it came.
        let plan = read(&directory.join(PLAN)).with_context(|| format!("{} has no {VERDICT}", directory.display()))?;
        report::data::unjudged(plan, &events)
    };
    let page = report::page_with_notes(&verdict, &events, &notes);
    let out = directory.join(PAGE);
    std::fs::write(&out, page).with_context(|| format!("write {}", out.display()))?;
    Ok(verdict)
}

/// Reads a file of JSON. What is wrong with it is said with its line.
fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("open {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
}

fn write_summary(out: &Path, runs: &[(PathBuf, Verdict)], unreadable: &[String]) -> Result<()> {
    let folder = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let named = runs.iter().map(|(directory, verdict)| Ok((relative(folder, directory)?, verdict.clone())));
    let page = report::summary_with_notes(&named.collect::<Result<Vec<_>>>()?, unreadable);
    std::fs::write(out, page).with_context(|| format!("write {}", out.display()))
}

/// The way from one folder to another.
fn relative(from: &Path, to: &Path) -> Result<String> {
    let find = |path: &Path| std::fs::canonicalize(path).with_context(|| format!("find {}", path.display()));
    let (from, to) = (find(from)?, find(to)?);
    let common = from.components().zip(to.components()).take_while(|(one, other)| one == other).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(to.components().skip(common)).collect();
    Ok(way.to_string_lossy().into_owned())
}

fn figures<'a>(
    runs: &'a [(PathBuf, Verdict)],
    availability: &'a [Availability],
    unreadable: &'a [String],
    outcome: Outcome,
    page: Option<&'a Path>,
) -> Figures<'a> {
    let verdicts = || runs.iter().map(|(_, verdict)| verdict);
    let mut by_outcome = BTreeMap::new();
    for verdict in verdicts() {
        *by_outcome.entry(word(verdict.outcome)).or_default() += 1;
    }
    let listed = |(directory, verdict): &'a (PathBuf, Verdict)| Listed {
        directory,
        outcome: verdict.outcome,
        seed: verdict.plan.schedule.seed,
        seconds: verdict.seconds,
        operations: availability::total(std::iter::once(verdict)),
        rerun: &verdict.rerun,
    };
    Figures {
        outcome,
        runs: by_outcome,
        seconds: verdicts().map(|verdict| verdict.seconds).sum(),
        operations: availability::total(verdicts()),
        availability,
        anomalies: availability::anomalies(verdicts()),
        problems: verdicts().map(|verdict| verdict.problems.len()).sum(),
        alarms: verdicts().map(|verdict| verdict.alarms.len()).sum(),
        list: runs.iter().map(listed).collect(),
        unreadable,
        page,
    }
}

fn table(figures: &Figures<'_>) -> Result<String> {
    let mut text = String::new();
    for run in figures.list.iter().filter(|_| figures.list.len() > 1) {
        let Listed { directory, outcome, seed, operations: Counts { ok, fail, info }, .. } = run;
        let directory = directory.display();
        writeln!(text, "{:<12} seed {seed:<8} {ok:>9} ok {fail:>7} fail {info:>7} info  {directory}", word(*outcome))?;
    }
    let width = figures.availability.iter().map(|row| row.kind.len()).max().unwrap_or_default().max(5);
    writeln!(
        text,
        "{:<width$} {:>5} {:>8}   {:>26}   {:>26}",
        "fault", "done", "skipped", "next write p50 / p99 / max", "recovery p50 / p99 / max"
    )?;
    for row in figures.availability {
        let Availability { kind, installed, skipped, write_after, recovery, without_recovery } = row;
        let (write_after, recovery) = (three(write_after), three(recovery));
        write!(text, "{kind:<width$} {installed:>5} {skipped:>8}   {write_after:>26}   {recovery:>26}")?;
        if *without_recovery > 0 {
            write!(text, "   no write in time: {without_recovery}")?;
        }
        text.push('\n');
    }
    let Counts { ok, fail, info } = figures.operations;
    let anomalies: usize = figures.anomalies.values().sum();
    let Figures { problems, alarms, .. } = figures;
    writeln!(
        text,
        "{ok} ok, {fail} fail, {info} info in {:.0} s; anomalies: {anomalies}; problems: {problems}; alarms in logs: {alarms}",
        figures.seconds
    )?;
    for (kind, count) in &figures.anomalies {
        writeln!(text, "  {count} {kind}")?;
    }
    for error in figures.unreadable {
        writeln!(text, "  {error}")?;
    }
    if let [run] = &figures.list[..]
        && run.outcome != Outcome::Passed
        && !run.rerun.is_empty()
    {
        writeln!(text, "again: {}", run.rerun)?;
    }
    writeln!(text, "{}", if figures.outcome == Outcome::Failed { "FAILED" } else { word(figures.outcome) })?;
    match figures.page {
        Some(page) => write!(text, "page: {}", page.display())?,
        None => write!(text, "page: {PAGE} in each folder; --out FILE writes one over all")?,
    }
    Ok(text)
}

/// Milliseconds of a summary.
fn three(summary: &Summary) -> String {
    let Summary { count, p50_ms, p90_ms: _, p99_ms, max_ms } = summary;
    if *count == 0 { "-".to_owned() } else { format!("{p50_ms:.0} / {p99_ms:.0} / {max_ms:.0} ms") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::nemesis::Kind;
    use crate::nemesis::schedule::Schedule;
    use crate::run::plan::Plan;
    use crate::run::verdict::Fault;
    use crate::workloads::Workload;

    const LEADER: &str = r#"{"at_us":1,"type":"leader","instance":"node-1","term":1}"#;

    fn plan(seed: u64) -> Plan {
        Plan {
            workloads: vec![Workload::Append],
            environment: "loopback".into(),
            shape: None,
            clients: 2,
            pause_ms: 0,
            snapshot_every: 2000,
            log_keep: 200,
            schedule: Schedule::draw(seed, 3, &[Kind::Ring], std::time::Duration::ZERO),
        }
    }

    fn verdict(outcome: Outcome, seed: u64) -> Verdict {
        Verdict {
            outcome,
            plan: plan(seed),
            seconds: 1.0,
            faults: vec![Fault {
                number: 1,
                kind: "ring".into(),
                detail: String::new(),
                installed: true,
                write_after_ms: Some(20.0),
                recovery_ms: Some(3.0),
            }],
            operations: BTreeMap::from([("append".to_owned(), Counts { ok: 5, fail: 1, info: 2 })]),
            checks: Vec::new(),
            problems: Vec::new(),
            unjudged: Vec::new(),
            alarms: Vec::new(),
            rerun: "cargo jepsen run".into(),
        }
    }

    fn write(directory: &Path, outcome: Outcome, seed: u64) {
        std::fs::create_dir_all(directory).unwrap();
        let verdict = serde_json::to_vec(&verdict(outcome, seed)).unwrap();
        std::fs::write(directory.join(VERDICT), verdict).unwrap();
        std::fs::write(directory.join(HISTORY), format!("{LEADER}\n")).unwrap();
    }

    fn report(directories: &[&Path], json: bool, out: Option<PathBuf>) -> Result<Report> {
        run(&Options {
            directories: directories.iter().map(|path| (*path).to_owned()).collect(),
            json,
            out,
            outcome: None,
        })
    }

    #[test]
    fn a_run_gets_its_page_and_its_outcome() {
        let directory = tempfile::tempdir().unwrap();
        for outcome in [Outcome::Passed, Outcome::Failed, Outcome::Inconclusive] {
            write(directory.path(), outcome, 7);
            let reported = report(&[directory.path()], false, None).unwrap();
            assert_eq!(reported.outcome, outcome);
            assert!(reported.text.to_lowercase().contains(word(outcome)), "{}", reported.text);
            assert!(reported.text.contains("20 / 20 / 20 ms"), "{}", reported.text);
            let page = std::fs::read_to_string(directory.path().join(PAGE)).unwrap();
            assert!(page.contains(word(outcome)) && !page.contains("<h2>Notes</h2>"));
        }
    }

    #[test]
    fn a_file_that_is_missing_or_damaged_is_named_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let error = || format!("{:#}", report(&[directory.path()], false, None).unwrap_err());
        assert!(error().contains("not the folder of a run"), "{}", error());
        std::fs::write(directory.path().join(HISTORY), format!("{LEADER}\n")).unwrap();
        assert!(error().contains("has no verdict.json") && error().contains("plan.json"), "{}", error());
        write(directory.path(), Outcome::Passed, 7);
        std::fs::write(directory.path().join(HISTORY), format!("{LEADER}\nnothing\n{LEADER}\n")).unwrap();
        assert!(error().contains("line 2 of") && error().contains(HISTORY), "{}", error());
        std::fs::remove_file(directory.path().join(HISTORY)).unwrap();
        assert!(error().contains(HISTORY), "{}", error());
        std::fs::write(directory.path().join(HISTORY), "").unwrap();
        std::fs::write(directory.path().join(VERDICT), "{\n\"outcome\": 4}").unwrap();
        assert!(error().contains(VERDICT) && error().contains("line 2"), "{}", error());
    }

    #[test]
    fn a_run_that_ended_before_it_noted_anything_is_told_from_a_damaged_one() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(PLAN), serde_json::to_vec(&plan(7)).unwrap()).unwrap();
        let error = format!("{:#}", report(&[directory.path()], false, None).unwrap_err());
        assert!(error.contains("has a plan.json and no history.jsonl: its run ended before"), "{error}");
    }

    #[test]
    fn a_run_that_was_killed_has_a_page_and_proves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(PLAN), serde_json::to_vec(&plan(7)).unwrap()).unwrap();
        std::fs::write(directory.path().join(HISTORY), format!("{LEADER}\n{{\"at_us\":2,\"ty")).unwrap();
        let reported = report(&[directory.path()], false, None).unwrap();
        assert_eq!(reported.outcome, Outcome::Inconclusive);
        let page = std::fs::read_to_string(directory.path().join(PAGE)).unwrap();
        assert!(page.contains("line 2 of history.jsonl") && page.contains("it has no verdict.json"), "{page}");
    }

    #[test]
    fn a_folder_of_runs_gets_one_page_over_all() {
        let directory = tempfile::tempdir().unwrap();
        for (name, outcome, seed) in [("a", Outcome::Passed, 1), ("b", Outcome::Failed, 2)] {
            write(&directory.path().join(name), outcome, seed);
        }
        std::fs::create_dir(directory.path().join("something-else")).unwrap();
        let reported = report(&[directory.path()], true, None).unwrap();
        assert_eq!(reported.outcome, Outcome::Failed);
        let json = reported.json;
        assert_eq!(json["runs"], json!({"failed": 1, "passed": 1}));
        assert_eq!(json["operations"], json!({"ok": 10, "fail": 2, "info": 4}));
        assert_eq!(json["availability"][0]["writeAfter"]["count"], 2);
        assert_eq!(json["list"][1]["seed"], 2);
        let page = std::fs::read_to_string(directory.path().join(PAGE)).unwrap();
        assert!(page.contains("href=\"./a/index.html\"") && page.contains("href=\"./b/index.html\""), "{page}");
        assert!(directory.path().join("a").join(PAGE).exists());
    }

    #[test]
    fn a_run_in_a_folder_of_runs_that_cannot_be_read_is_told_and_is_no_pass() {
        let directory = tempfile::tempdir().unwrap();
        write(&directory.path().join("a"), Outcome::Passed, 1);
        write(&directory.path().join("b"), Outcome::Passed, 2);
        std::fs::remove_file(directory.path().join("b").join(HISTORY)).unwrap();
        let reported = report(&[directory.path()], false, None).unwrap();
        assert_eq!(reported.outcome, Outcome::Inconclusive);
        assert!(std::fs::read_to_string(directory.path().join(PAGE)).unwrap().contains(HISTORY));
    }

    #[test]
    fn the_page_over_runs_that_were_named_finds_them_from_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("x/one"), directory.path().join("other"));
        write(&one, Outcome::Passed, 1);
        write(&other, Outcome::Passed, 2);
        let out = directory.path().join("x/pages/all.html");
        report(&[&one, &other], false, Some(out.clone())).unwrap();
        let page = std::fs::read_to_string(out).unwrap();
        assert!(page.contains("\"./../one/index.html\"") && page.contains("\"./../../other/index.html\""), "{page}");
    }
}
