//! A whole page: its frame, the page of one run, and the one over several.

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::availability::{anomalies, availability, total};
use super::data::{Data, End};
use super::text::{counted, duration, grouped, shown};
use super::timeline::timeline;
use super::{plot, tables};
use crate::history::Event;
use crate::run::plan::Plan;
use crate::run::verdict::{Counts, Outcome, Verdict};
use crate::workloads::Workload;

/// Lines of problems and of logs.
const LINES: usize = 50;

/// Nothing is loaded and nothing is run: what is shown comes from servers under test and is not trusted.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

fn frame(title: &str, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body { main { (body) } }
        }
    }
    .into_string()
}

pub(super) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "failed",
        Outcome::Inconclusive => "inconclusive",
    }
}

fn meaning(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "Nothing was found, every fault happened, and enough operations succeeded.",
        Outcome::Failed => "Something was found that must never be.",
        Outcome::Inconclusive => "Nothing was found, and the run proves too little. This is no pass.",
    }
}

fn listed(workloads: &[Workload]) -> String {
    let names: Vec<String> = workloads.iter().map(|workload| workload.name()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn rerun(command: &str) -> Markup {
    html! {
        @if !command.is_empty() {
            h2 { "Run it again" }
            pre.command title="one click selects it all" { (shown(command, 4000)) }
        }
    }
}

/// The facts of a run, beside each other.
fn facts(verdict: &Verdict) -> Markup {
    let Plan { workloads, environment, shape, clients, pause_ms, snapshot_every, log_keep: _, schedule } =
        &verdict.plan;
    let installed = verdict.faults.iter().filter(|fault| fault.installed).count();
    let kinds: std::collections::BTreeSet<&str> =
        verdict.faults.iter().filter(|fault| fault.installed).map(|fault| fault.kind.as_str()).collect();
    let skipped = verdict.faults.len() - installed;
    html! {
        dl.facts {
            div { dt { "workloads" } dd { (listed(workloads)) } }
            div { dt { "environment" } dd { (shown(environment, 80)) @if let Some(shape) = shape { ", " (shown(shape, 120)) } } }
            div { dt { "instances" } dd { (schedule.instances) } }
            div { dt { "clients" } dd { (clients) @if *pause_ms > 0 { " with pauses of " (pause_ms) " ms" } } }
            div { dt { "snapshots" } dd { "every " (snapshot_every) " log entries" } }
            div { dt { "seed" } dd { (schedule.seed) } }
            div { dt { "duration" } dd { (duration(verdict.seconds)) } }
            div {
                dt { "faults" }
                dd {
                    (installed) ", of " (counted(kinds.len(), "kind", "kinds"))
                    @if skipped > 0 { ", " (skipped) " skipped" }
                }
            }
        }
    }
}

/// Anomalies, problems and alarms in one line.
fn findings(verdict: &Verdict) -> Markup {
    let found = anomalies(std::iter::once(verdict));
    html! {
        p.findings {
            @if found.is_empty() { "No anomaly in " (counted(verdict.checks.len(), "check", "checks")) "." } @else {
                a href="#checks" { (counted(found.values().sum(), "anomaly", "anomalies")) }
                ": "
                @for (at, (kind, count)) in found.iter().enumerate() {
                    @if at > 0 { ", " }
                    (count) " " (shown(kind, 80))
                }
                "."
            }
            @if !verdict.problems.is_empty() { " " (counted(verdict.problems.len(), "problem", "problems")) "." }
            @if !verdict.alarms.is_empty() {
                " " a href="#alarms" { (counted(verdict.alarms.len(), "alarm", "alarms")) " in the logs" } "."
            }
        }
    }
}

/// The boxes that hide one kind of point each, and tell what its shape means. They need no script: the style sheet asks them.
fn legend(data: &Data<'_>) -> Markup {
    let count = |end: End| data.operations.iter().filter(|one| one.end == end).count() as u64;
    let about = |end: End| match end {
        End::Ok => "acknowledged",
        End::Fail => "certainly without effect",
        End::Info => "nobody knows",
        End::Open => "never ended",
    };
    html! {
        div.legend {
            @for end in End::ENDED {
                label {
                    input type="checkbox" id=(format!("show-{}", end.name())) checked;
                    svg.key viewBox="0 0 14 14" { path class={ "p " (end.name()) } d=(plot::shape(end, 7.0, 7.0)) {} }
                    (end.name()) ", " (about(end)) " (" (grouped(count(end))) ")"
                }
            }
            label {
                input type="checkbox" id="show-faults" checked;
                svg.key viewBox="0 0 14 14" { rect.fault width="14" height="14" {} }
                "a fault, "
                svg.key viewBox="0 0 14 14" { rect.after width="14" height="14" {} }
                "healed and not all ready"
            }
            span {
                svg.key viewBox="0 0 14 14" { path.ring d="M7 1l6 6-6 6-6-6z" {} }
                "an anomaly is about it"
            }
        }
    }
}

fn quantile_legend() -> Markup {
    html! {
        div.legend {
            @for name in ["p50", "p95", "p99", "max"] {
                span { svg.key viewBox="0 0 14 14" { path class={ "q " (name) } d="M0 7h14" {} } (name) }
            }
        }
    }
}

/// The page of one run.
pub(super) fn run(verdict: &Verdict, history: &[Event], notes: &[String]) -> String {
    let data = Data::of(history);
    let marks = tables::marks(verdict);
    let kinds = data.kinds();
    let quantiles: Vec<Markup> = kinds.iter().filter_map(|kind| plot::quantiles(&data, kind)).collect();
    let Plan { workloads, schedule, .. } = &verdict.plan;
    let title = format!("{}: {}, seed {}", word(verdict.outcome), listed(workloads), schedule.seed);
    let body = html! {
        header class=(word(verdict.outcome)) {
            h1 { span class={ "badge " (word(verdict.outcome)) } { (word(verdict.outcome)) } " " (listed(workloads)) ", seed " (schedule.seed) }
            p { (meaning(verdict.outcome)) }
            (findings(verdict))
        }
        @if !verdict.problems.is_empty() { section.problems { h2 { "Problems" } (tables::lines(&verdict.problems, LINES)) } }
        @if !notes.is_empty() { section.notes { h2 { "Notes" } (tables::lines(notes, LINES)) } }
        section.head {
            (facts(verdict))
            (tables::operations(verdict.operations.iter().map(|(name, counts)| (name.as_str(), counts))))
        }
        (rerun(&verdict.rerun))
        nav {
            a href="#latency" { "Latency" } a href="#time" { "Over time" } a href="#roles" { "Roles and faults" }
            a href="#availability" { "Availability" } a href="#checks" { "Checks" } a href="#faults" { "Faults" }
            @if !verdict.alarms.is_empty() { a href="#alarms" { "Alarms" } }
            span { "Files: " }
            a href="plan.json" { "plan.json" } a href="verdict.json" { "verdict.json" } a href="history.jsonl" { "history.jsonl" }
            @for n in 1..=schedule.instances.min(9) { a href=(format!("node-{n}/log")) { "node-" (n) "/log" } }
        }
        (plot::shading(&data))
        section id="latency" {
            h2 { "Latency of every operation" }
            p.note { "Each stands where it was sent. The labels above are the faults, by number and kind." }
            (legend(&data))
            @if kinds.is_empty() { p.note { "The history has no operations." } }
            @for kind in &kinds { (plot::points(&data, kind, &marks)) }
        }
        section id="time" {
            h2 { "Quantiles and rates over time" }
            @if !quantiles.is_empty() { (quantile_legend()) }
            @for figure in &quantiles { (figure) }
            (plot::rates(&data))
        }
        section id="roles" { h2 { "Who led, who owned, what was done" } (timeline(&data, schedule.instances)) }
        section id="availability" { h2 { "Availability" } (tables::availability(&availability(verdict.faults.iter()))) }
        section id="checks" { h2 { "Checks" } (tables::checks(verdict, &data)) }
        section id="faults" { h2 { "Faults" } (tables::faults(&verdict.faults, &data)) }
        @if !verdict.alarms.is_empty() {
            section id="alarms" { h2 { "Alarms in the logs" } (tables::lines(&verdict.alarms, LINES)) }
        }
    };
    frame(&title, &body)
}

/// The page over several runs, by the path to the folder of each from where the page is.
pub(super) fn summary(runs: &[(String, Verdict)], notes: &[String]) -> String {
    let verdicts = || runs.iter().map(|(_, verdict)| verdict);
    let count = |outcome| verdicts().filter(|verdict| verdict.outcome == outcome).count();
    let counts = [Outcome::Failed, Outcome::Inconclusive, Outcome::Passed].map(|outcome| (outcome, count(outcome)));
    // What wants to be looked at is first.
    let mut sorted: Vec<&(String, Verdict)> = runs.iter().collect();
    sorted.sort_by_key(|(name, verdict)| {
        (counts.iter().position(|(outcome, _)| *outcome == verdict.outcome), natural(name))
    });
    let mut operations: BTreeMap<&str, Counts> = BTreeMap::new();
    for (workload, Counts { ok, fail, info }) in verdicts().flat_map(|verdict| &verdict.operations) {
        let sum = operations.entry(workload).or_default();
        (sum.ok, sum.fail, sum.info) = (sum.ok + ok, sum.fail + fail, sum.info + info);
    }
    let rows = availability(verdicts().flat_map(|verdict| &verdict.faults));
    let faults: usize = rows.iter().map(|row| row.installed).sum();
    let seconds: f64 = verdicts().map(|verdict| verdict.seconds).sum();
    let found = anomalies(verdicts());
    let title = format!("{}: {} failed", counted(runs.len(), "run", "runs"), count(Outcome::Failed));
    // A run that cannot be read is no pass.
    let unreadable = notes.iter().map(|_| Outcome::Inconclusive);
    let worst = super::worst(verdicts().map(|verdict| verdict.outcome).chain(unreadable));
    let body = html! {
        header class=(word(worst)) {
            h1 { (counted(runs.len(), "run", "runs")) }
            p.counts {
                @for (outcome, count) in counts.into_iter().filter(|(_, count)| *count > 0) { span class={ "badge " (word(outcome)) } { (count) " " (word(outcome)) } " " }
            }
            p.findings {
                @if found.is_empty() { "No anomaly." } @else {
                    (counted(found.values().sum(), "anomaly", "anomalies")) ": "
                    @for (at, (kind, count)) in found.iter().enumerate() {
                        @if at > 0 { ", " }
                        (count) " " (shown(kind, 80))
                    }
                    "."
                }
            }
        }
        @if !notes.is_empty() { section.notes { h2 { "Notes" } (tables::lines(notes, LINES)) } }
        section.head {
            dl.facts {
                div { dt { "time of all runs" } dd { (duration(seconds)) } }
                div { dt { "faults" } dd { (grouped(faults as u64)) ", of " (counted(rows.len(), "kind", "kinds")) } }
            }
            (tables::operations(operations.iter().map(|(name, counts)| (*name, counts))))
        }
        section { h2 { "Availability over all runs" } (tables::availability(&rows)) }
        section {
            h2 { "Runs" }
            div.wide {
                table.runs {
                    thead {
                        tr {
                            th { "run" } th { "outcome" } th { "workloads" } th.number { "seed" } th { "environment" }
                            th.number { "instances" } th.number { "clients" } th.number { "duration" } th.number { "faults" }
                            th.number { "ok" } th.number { "fail" } th.number { "info" } th { "found" }
                        }
                    }
                    tbody { @for (name, verdict) in &sorted { (run_row(name, verdict)) } }
                }
            }
        }
    };
    frame(&title, &body)
}

fn run_row(name: &str, verdict: &Verdict) -> Markup {
    let Counts { ok, fail, info } = total(std::iter::once(verdict));
    let found = anomalies(std::iter::once(verdict));
    let undecided = verdict.checks.iter().filter(|check| !check.decided).map(|check| &check.checker);
    html! {
        tr {
            td { a href=(address(name)) { (shown(name, 120)) } }
            td { span class={ "badge " (word(verdict.outcome)) } { (word(verdict.outcome)) } }
            td { (listed(&verdict.plan.workloads)) }
            td.number { (verdict.plan.schedule.seed) }
            td { (shown(&verdict.plan.environment, 80)) }
            td.number { (verdict.plan.schedule.instances) }
            td.number { (verdict.plan.clients) }
            td.number { (duration(verdict.seconds)) }
            td.number { (verdict.faults.iter().filter(|fault| fault.installed).count()) }
            td.number { (grouped(ok)) }
            td.number { (grouped(fail)) }
            td.number { (grouped(info)) }
            td.text {
                @for (kind, count) in &found { div { (count) " " (shown(kind, 80)) } }
                @for checker in undecided { div { (shown(checker, 80)) ": no judgement" } }
                @for problem in verdict.problems.iter().take(3) { div { (shown(problem, 200)) } }
                @if verdict.problems.len() > 3 { div { "and " (verdict.problems.len() - 3) " more problems" } }
                @if !verdict.alarms.is_empty() { div { (counted(verdict.alarms.len(), "alarm", "alarms")) " in the logs" } }
                @if verdict.outcome != Outcome::Passed && !verdict.rerun.is_empty() {
                    code.command title="one click selects it all" { (shown(&verdict.rerun, 1000)) }
                }
            }
        }
    }
}

/// A path below or beside this page. It begins with a dot, so that no name of a folder is taken for another kind of address.
fn address(name: &str) -> String {
    let mut address = String::from("./");
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => address.push(char::from(byte)),
            other => address.push_str(&format!("%{other:02X}")),
        }
    }
    address + "/index.html"
}

/// Names with numbers in them in the order of the numbers: `run-2` before `run-10`.
fn natural(name: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(text);
        let digits = after.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(digits);
        parts.push((0, word.to_owned()));
        parts.push((number.parse().unwrap_or(u64::MAX), String::new()));
        rest = after;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_whatever_the_folder_is_called() {
        assert_eq!(address("../a b/r-1"), "./../a%20b/r-1/index.html");
        assert_eq!(address("javascript:alert(1)"), "./javascript%3Aalert%281%29/index.html");
    }

    #[test]
    fn runs_are_in_the_order_of_their_numbers() {
        let mut names = ["run-10", "run-2", "a", "run-2-b"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["a", "run-2", "run-2-b", "run-10"]);
    }
}
