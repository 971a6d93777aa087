use std::collections::BTreeSet;

use super::sample::{failed, sample};
use super::*;
use crate::checkers::{Check, Found};
use crate::history::{Answer, Call, Phase, What};

/// Elements that have no end in HTML.
const VOID: [&str; 3] = ["meta", "input", "br"];

/// Fails on an element that is not closed, or not in its turn. Knows only what these pages use: no comments, and no `<`
/// in attributes or styles.
fn balanced(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let body = page.strip_prefix("<!DOCTYPE html>").unwrap();
    for part in body.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("no end: {part}"));
        assert!(!text.contains('>') || open.last() == Some(&"style"), "{part}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{part}");
        } else {
            let name = tag.split_whitespace().next().unwrap();
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if !VOID.contains(&name) {
                open.push(name);
            }
        }
    }
    assert_eq!(open, [""; 0]);
}

/// Each name is given once, and every link within the page leads somewhere.
fn linked(page: &str) {
    let values = |name: &str| -> Vec<String> {
        page.split(name).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
    };
    let ids = values(" id=\"");
    let set: BTreeSet<&String> = ids.iter().collect();
    assert_eq!(set.len(), ids.len(), "a name is given twice");
    for link in values("href=\"#") {
        assert!(set.contains(&link), "#{link} leads nowhere");
    }
}

#[test]
fn a_page_is_well_formed_and_asks_for_nothing() {
    for (verdict, history) in [sample(7, 60, 120.0), failed(8, 200, 150.0)] {
        let page = page(&verdict, &history);
        balanced(&page);
        linked(&page);
        for absent in ["http://", "https://", "<script", "url(", "@import", "src=", "style=\"", "NaN", "inf"] {
            let place = page.find(absent).map(|at| &page[at.saturating_sub(60)..(at + 60).min(page.len())]);
            // "inf" is the beginning of an outcome.
            let place = place.filter(|_| absent != "inf" || page.replace("info", "").contains(absent));
            assert_eq!(place, None, "{absent}");
        }
        assert!(page.contains("default-src 'none'"));
    }
}

#[test]
fn a_page_of_nothing_is_a_page() {
    let (mut verdict, _) = sample(7, 10, 1.0);
    (verdict.faults, verdict.checks) = (Vec::new(), Vec::new());
    verdict.operations.clear();
    let page = page(&verdict, &[]);
    balanced(&page);
    linked(&page);
    assert!(page.contains("The history has no operations.") && page.contains("No faults."), "{page}");
    balanced(&summary(&[]));
}

#[test]
fn what_others_said_is_never_markup() {
    const EVIL: &str = "<script>alert('\"&\u{1b}</title></svg>";
    let evil = || EVIL.to_owned();
    let call = Call::Append { session: evil(), text: evil(), key: evil() };
    let what = [
        What::Invoke { op: 0, process: 1, call },
        What::Fault { number: 1, kind: evil(), phase: Phase::Begin, detail: String::new() },
        What::Fail { op: 0, attempts: 1, message: evil() },
        What::Fault { number: 1, kind: evil(), phase: Phase::Healed, detail: evil() },
        What::Invoke { op: 1, process: 1, call: Call::Read { session: evil(), instance: 1, after: 0, limit: 20 } },
        What::Ok { op: 1, attempts: 1, answer: Answer::Read { head: 1, tail: vec![(1, evil())] } },
        What::Leader { instance: Some(evil()), term: 1 },
        What::Owner { account: evil(), instance: Some(evil()), token: 1 },
    ];
    let history: Vec<Event> = (1..).zip(what).map(|(at, what)| Event { at_us: at * 1_000_000, what }).collect();
    let (mut verdict, _) = failed(7, 10, 1.0);
    (verdict.plan.environment, verdict.rerun) = (evil(), evil());
    (verdict.problems, verdict.alarms) = (vec![evil()], vec![evil()]);
    verdict.operations = [(evil(), crate::run::verdict::Counts::default())].into();
    for fault in &mut verdict.faults {
        (fault.kind, fault.detail) = (evil(), evil());
    }
    let found = Found { anomaly: evil(), message: evil(), ops: vec![0, 1] };
    let figures = serde_json::json!({EVIL: EVIL, "list": [EVIL]});
    verdict.checks = vec![Check { checker: evil(), decided: false, figures, found: vec![found] }];
    let one = page_with_notes(&verdict, &history, &[evil()]);
    let all = summary_with_notes(&[(evil(), verdict)], &[evil()]);
    for page in [one, all] {
        balanced(&page);
        linked(&page);
        assert!(!page.contains("<script") && !page.contains('\u{1b}'), "{page}");
        assert!(page.matches("&lt;script&gt;alert('").count() > 8, "{page}");
    }
}

#[test]
fn every_operation_of_an_anomaly_has_a_row_and_a_mark() {
    let (verdict, history) = failed(8, 300, 150.0);
    let page = page(&verdict, &history);
    for (check, one) in verdict.checks.iter().enumerate() {
        for (place, found) in one.found.iter().enumerate() {
            assert!(page.contains(&found.anomaly), "{found:?}");
            for op in &found.ops {
                assert!(page.contains(&format!("<tr id=\"c{check}-{place}-{op}\">")), "row of {op}");
                assert!(page.contains(&format!("class=\"mark\" id=\"op-{op}\"")), "mark of {op}");
            }
        }
    }
}

#[test]
fn many_anomalies_with_many_operations_are_cut_and_counted() {
    let (mut verdict, history) = sample(7, 30, 50.0);
    let ops: Vec<u64> = (0..300).collect();
    verdict.checks[0].found = vec![Found { anomaly: "lost".into(), message: "m".into(), ops }; 53];
    let page = page(&verdict, &history);
    balanced(&page);
    linked(&page);
    assert_eq!(page.matches("<article").count(), 50);
    assert!(page.contains("and 3 anomalies more") && page.contains("53 anomalies"), "{page}");
    assert!(page.contains("and operations 20, 21, ") && page.contains(", 219 and 80 more"));
}

#[test]
fn of_very_many_operations_a_few_thousand_are_points_and_the_rest_is_counted() {
    let (verdict, history) = sample(7, 120, 1000.0);
    let page = page(&verdict, &history);
    let points = page.matches("<title>op ").count();
    assert!(points <= 3 * thin::DRAWN, "{points}");
    assert!(page.contains("operations are not drawn as points but as shades"));
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
}

#[test]
fn the_page_over_several_runs_begins_with_those_that_failed() {
    let runs: Vec<_> = [("run-1", sample(1, 60, 50.0)), ("run-2", failed(2, 60, 50.0)), ("run-3", sample(3, 60, 50.0))]
        .map(|(name, (verdict, _))| (name.to_owned(), verdict))
        .into();
    let page = summary_with_notes(&runs, &["run-4 has no verdict".to_owned()]);
    balanced(&page);
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is not in {page}"));
    assert!(place("./run-2/index.html") < place("./run-1/index.html"));
    assert!(place("./run-1/index.html") < place("./run-3/index.html"));
    place("run-4 has no verdict");
    place("1 failed");
    place("2 passed");
    let passed = [("run-1".to_owned(), sample(1, 60, 50.0).0)];
    assert!(summary_with_notes(&passed, &[]).contains("<header class=\"passed\">"));
    let missing = summary_with_notes(&passed, &["run-2 has no verdict".to_owned()]);
    assert!(missing.contains("<header class=\"inconclusive\">"), "one that cannot be read is no pass");
}

#[test]
fn the_worst_outcome_speaks_for_all() {
    use Outcome::{Failed, Inconclusive, Passed};
    assert_eq!(worst([Passed, Failed, Inconclusive].into_iter()), Failed);
    assert_eq!(worst([Passed, Inconclusive].into_iter()), Inconclusive);
    assert_eq!(worst([Passed, Passed].into_iter()), Passed);
    assert_eq!(worst(std::iter::empty()), Inconclusive);
}

/// Folders of runs to look at: `REPORT_SAMPLES=DIR cargo test -p jepsen-lite --lib -- --ignored samples`.
#[test]
#[ignore = "writes files to look at"]
fn samples_to_look_at() {
    let out = std::path::PathBuf::from(std::env::var("REPORT_SAMPLES").unwrap());
    let runs = [
        ("short", failed(7, 60, 60.0)),
        ("long", failed(11, 600, 90.0)),
        ("dense", sample(5, 240, 480.0)),
        ("hours", sample(6, 7500, 12.0)),
    ];
    for (name, (verdict, history)) in runs {
        let directory = out.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let write = |file: &str, bytes: Vec<u8>| std::fs::write(directory.join(file), bytes).unwrap();
        write("plan.json", serde_json::to_vec_pretty(&verdict.plan).unwrap());
        write("verdict.json", serde_json::to_vec_pretty(&verdict).unwrap());
        crate::history::save(&directory.join("history.jsonl"), &history).unwrap();
        let begin = std::time::Instant::now();
        let page = page(&verdict, &history);
        println!(
            "{name}: {} operations, {} bytes, {:?}",
            data::Data::of(&history).operations.len(),
            page.len(),
            begin.elapsed()
        );
        write("index.html", page.into_bytes());
    }
}
