//! The tables of a page: what was found, the faults, how long writes were away.

use std::collections::HashMap;

use maud::{Markup, html};
use serde_json::Value;

use super::availability::Availability;
use super::axis::milliseconds;
use super::data::{Data, Operation, Window};
use super::plot::Marks;
use super::text::{LONG, counted, grouped, moment, shown};
use crate::checkers::{Check, Found};
use crate::figures::Summary;
use crate::run::verdict::{Fault, Verdict};

/// Anomalies of one check that are shown; the rest are counted.
const ANOMALIES: usize = 50;
/// Operations of one anomaly that are shown as rows; of the rest only the numbers.
const ROWS: usize = 20;
/// Numbers of operations that have no row.
const NUMBERS: usize = 200;

/// Why a list says less than it could.
pub(super) fn more(hidden: usize, one: &str, several: &str) -> Markup {
    html! { @if hidden > 0 { p.note { "and " (counted(hidden, one, several)) " more" } } }
}

/// The operations that have a row, and the first row of each.
pub(super) fn marks(verdict: &Verdict) -> Marks {
    let mut marks = Marks::new();
    for (check, one) in verdict.checks.iter().enumerate() {
        for (place, found) in one.found.iter().take(ANOMALIES).enumerate() {
            for op in found.ops.iter().take(ROWS) {
                marks.entry(*op).or_insert_with(|| row(check, place, *op));
            }
        }
    }
    marks
}

fn row(check: usize, place: usize, op: u64) -> String {
    format!("c{check}-{place}-{op}")
}

/// Every check, with its figures and what it found.
pub(super) fn checks(verdict: &Verdict, data: &Data<'_>) -> Markup {
    let operations: HashMap<u64, &Operation<'_>> = data.operations.iter().map(|one| (one.op, one)).collect();
    html! {
        @if verdict.checks.is_empty() { p.note { "Nothing was checked." } }
        @for (number, check) in verdict.checks.iter().enumerate() {
            section.check {
                h3 { (shown(&check.checker, 80)) " " (judgement(check)) }
                (figures(&check.figures))
                @for (place, found) in check.found.iter().take(ANOMALIES).enumerate() {
                    (anomaly(number, place, found, &operations))
                }
                (more(check.found.len().saturating_sub(ANOMALIES), "anomaly", "anomalies"))
            }
        }
    }
}

fn judgement(check: &Check) -> Markup {
    html! {
        @if !check.found.is_empty() {
            span.badge.failed { (counted(check.found.len(), "anomaly", "anomalies")) }
        } @else if check.decided {
            span.badge.passed { "passed" }
        }
        @if !check.decided { " " span.badge.inconclusive { "no judgement" } }
    }
}

/// A checker's own numbers, whatever they are.
fn figures(figures: &Value) -> Markup {
    let text = |value: &Value| match value {
        Value::String(text) => shown(text, LONG),
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), grouped),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => shown(&value.to_string(), LONG),
    };
    html! {
        @match figures {
            Value::Null => {}
            Value::Object(figures) => {
                dl.figures { @for (name, value) in figures { div { dt { (shown(name, 80)) } dd { (text(value)) } } } }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => p { (text(figures)) }
        }
    }
}

fn anomaly(check: usize, place: usize, found: &Found, operations: &HashMap<u64, &Operation<'_>>) -> Markup {
    let rest: Vec<String> = found.ops.iter().skip(ROWS).take(NUMBERS).map(u64::to_string).collect();
    html! {
        article.anomaly id=(format!("c{check}-{place}")) {
            p { b { (shown(&found.anomaly, 80)) } " " (shown(&found.message, LONG)) }
            @if !found.ops.is_empty() {
                div.wide {
                    table {
                        thead {
                            tr {
                                th.number { "operation" } th.number { "process" } th { "kind" } th { "end" }
                                th.number { "sent, s" } th.number { "ended, s" } th.number { "took" }
                                th { "asked" } th { "told" }
                            }
                        }
                        tbody {
                            @for op in found.ops.iter().take(ROWS) {
                                @match operations.get(op) {
                                    Some(one) => (operation(&row(check, place, *op), one)),
                                    None => tr { td.number { (op) } td colspan="8" { "not in this history" } }
                                }
                            }
                        }
                    }
                }
            }
            @if !rest.is_empty() {
                p.note {
                    "and operations " (rest.join(", "))
                    @if found.ops.len() > ROWS + NUMBERS { " and " (grouped((found.ops.len() - ROWS - NUMBERS) as u64)) " more" }
                }
            }
        }
    }
}

fn operation(row: &str, one: &Operation<'_>) -> Markup {
    html! {
        tr id=(row) {
            td.number { a href=(format!("#op-{}", one.op)) title="show it on the plot" { (one.op) } }
            td.number { (one.process) }
            td { (one.kind()) }
            td { span class={ "end " (one.end.name()) } { (one.end.name()) } }
            td.number { (moment(one.from)) }
            td.number { @if let Some(to) = one.to { (moment(to)) } @else { "never" } }
            td.number { @if let Some(ms) = one.latency_ms() { (milliseconds(ms)) } }
            td.text { (shown(&one.asked(), LONG)) }
            td.text { (shown(&one.told(), LONG)) }
        }
    }
}

/// How long writes were away, by kind of fault.
pub(super) fn availability(rows: &[Availability]) -> Markup {
    let summary = |of: &Summary| {
        let cell = |ms: f64| html! { td.number { @if of.count > 0 { (milliseconds(ms)) } @else { "-" } } };
        html! { (cell(of.p50_ms)) (cell(of.p99_ms)) (cell(of.max_ms)) }
    };
    html! {
        @if rows.is_empty() { p.note { "No faults." } } @else {
            div.wide {
                table {
                    thead {
                        tr {
                            th rowspan="2" { "kind" } th.number rowspan="2" { "done" } th.number rowspan="2" { "skipped" }
                            th.group colspan="3" { "fault to next write" }
                            th.group colspan="3" { "healing to next write" }
                            th.number rowspan="2" { "no write in time" }
                        }
                        tr { @for _ in 0..2 { th.number { "p50" } th.number { "p99" } th.number { "max" } } }
                    }
                    tbody {
                        @for row in rows {
                            tr {
                                td { (shown(&row.kind, 80)) }
                                td.number { (row.installed) }
                                td.number { @if row.skipped > 0 { (row.skipped) } @else { "-" } }
                                (summary(&row.write_after))
                                (summary(&row.recovery))
                                td.number.bad[row.without_recovery > 0] {
                                    @if row.without_recovery > 0 { (row.without_recovery) } @else { "-" }
                                }
                            }
                        }
                    }
                }
            }
            p.note {
                "A time is from the fault, or from its healing, to the next acknowledged write that was sent after it. "
                "Only kinds that leave a majority have a first one. Of few faults p99 is the slowest."
            }
        }
    }
}

/// Every fault, with when it was, as the history says.
pub(super) fn faults(faults: &[Fault], data: &Data<'_>) -> Markup {
    let window = |fault: &Fault| data.windows.iter().find(|one| one.number == fault.number && one.kind == fault.kind);
    let at = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2}"));
    let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), milliseconds);
    html! {
        @if faults.is_empty() { p.note { "No faults." } } @else {
            div.wide {
                table {
                    thead {
                        tr {
                            th.number { "no." } th { "kind" } th { "to whom" } th.number { "from, s" }
                            th.number { "healed, s" } th.number { "all ready, s" } th.number { "next write" } th.number { "recovery" }
                        }
                    }
                    tbody {
                        @for fault in faults {
                            @let times = window(fault);
                            tr.skipped[!fault.installed] {
                                td.number { (fault.number) }
                                td { (shown(&fault.kind, 80)) }
                                td.text { @if !fault.installed { "skipped: " } (shown(&fault.detail, LONG)) }
                                td.number { (at(times.map(|one: &Window<'_>| one.from))) }
                                td.number { (at(times.and_then(|one| one.healed))) }
                                td.number { (at(times.and_then(|one| one.recovered))) }
                                td.number { (ms(fault.write_after_ms)) }
                                td.number.bad[fault.installed && fault.recovery_ms.is_none()] {
                                    @if fault.installed && fault.recovery_ms.is_none() { "none in time" } @else { (ms(fault.recovery_ms)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Operations by workload and end.
pub(super) fn operations<'v>(rows: impl Iterator<Item = (&'v str, &'v crate::run::verdict::Counts)>) -> Markup {
    html! {
        table {
            thead { tr { th { "operations" } th.number { "ok" } th.number { "fail" } th.number { "info" } } }
            tbody {
                @for (name, counts) in rows {
                    tr {
                        td { (shown(name, 80)) }
                        td.number { (grouped(counts.ok)) }
                        td.number { (grouped(counts.fail)) }
                        td.number { (grouped(counts.info)) }
                    }
                }
            }
        }
    }
}

/// Texts, one below the other.
pub(super) fn lines(texts: &[String], most: usize) -> Markup {
    html! {
        ul.lines { @for text in texts.iter().take(most) { li { (shown(text, LONG)) } } }
        (more(texts.len().saturating_sub(most), "line", "lines"))
    }
}
