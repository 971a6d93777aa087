//! A run that never was, drawn from a seed: for tests, and for looking at pages.

use std::collections::BTreeMap;
use std::time::Duration;

use openclaw_proto::http::AppendResponse;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::checkers::{Check, Found};
use crate::history::{Answer, Call, Event, Phase, What};
use crate::nemesis::Kind;
use crate::nemesis::schedule::Schedule;
use crate::run::plan::Plan;
use crate::run::verdict::{Counts, Fault, Outcome, Verdict};
use crate::workloads::Workload;

const INSTANCES: usize = 3;

/// Its verdict and its history: about `per_second` operations in each of `seconds`.
pub(super) fn sample(seed: u64, seconds: u64, per_second: f64) -> (Verdict, Vec<Event>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let schedule = Schedule::draw(seed, INSTANCES, &Kind::ALL, Duration::from_secs(seconds));
    let mut events: Vec<(f64, What)> = Vec::new();
    let (mut windows, faults) = break_it(&schedule, &mut rng, &mut events);
    windows.push((f64::MAX, f64::MAX, f64::MAX));
    let counts = operate(&mut rng, seconds as f64, per_second, &windows, &mut events);
    rule(&mut rng, seconds as f64, &windows, &mut events);
    events.sort_by(|one, other| one.0.total_cmp(&other.0));
    let history: Vec<Event> = events.into_iter().map(|(at, what)| Event { at_us: (at * 1e6) as u64, what }).collect();
    let verdict = Verdict {
        outcome: Outcome::Passed,
        plan: Plan {
            workloads: vec![Workload::Append, Workload::Telegram],
            environment: "loopback".into(),
            shape: None,
            clients: 8,
            pause_ms: 10,
            snapshot_every: 2000,
            log_keep: 200,
            schedule,
        },
        seconds: seconds as f64,
        faults,
        operations: BTreeMap::from([
            ("append".to_owned(), counts),
            ("telegram".to_owned(), Counts { ok: 812, fail: 0, info: 3 }),
        ]),
        checks: vec![
            Check {
                checker: "append".into(),
                decided: true,
                figures: json!({"acknowledged": counts.ok, "sessions": 4, "unknown": counts.info, "keysRepeated": 1893}),
                found: Vec::new(),
            },
            Check { checker: "single-owner".into(), decided: true, figures: json!({"owners": 27}), found: Vec::new() },
        ],
        problems: Vec::new(),
        unjudged: Vec::new(),
        alarms: Vec::new(),
        rerun: format!(
            "cargo jepsen run --openclaw target/release/openclaw --workload append,telegram --time-limit {seconds} --instances 3 --clients 8 --pause-ms 10 --seed {seed}"
        ),
    };
    (verdict, history)
}

/// The same run, in which some things were found.
pub(super) fn failed(seed: u64, seconds: u64, per_second: f64) -> (Verdict, Vec<Event>) {
    let (mut verdict, history) = sample(seed, seconds, per_second);
    let ops: Vec<u64> = history
        .iter()
        .filter_map(|event| match &event.what {
            What::Invoke { op, .. } => Some(*op),
            What::Ok { .. }
            | What::Fail { .. }
            | What::Info { .. }
            | What::Fault { .. }
            | What::Leader { .. }
            | What::Owner { .. } => None,
        })
        .collect();
    let some = |parts: &[usize]| parts.iter().map(|part| ops[ops.len() * part / 100]).collect::<Vec<u64>>();
    let found = |anomaly: &str, message: &str, ops| Found { anomaly: anomaly.into(), message: message.into(), ops };
    verdict.outcome = Outcome::Failed;
    verdict.checks[0].found = vec![
        found("lost", "append of \"run-7-c3-118\" to s-2 was acknowledged at 41 and is on no instance", some(&[31])),
        found(
            "stale-read",
            "a read through node-2 ended at 57 after an append at 61 was acknowledged",
            some(&[52, 53, 54]),
        ),
    ];
    verdict.checks.push(Check {
        checker: "linearizable".into(),
        decided: false,
        figures: json!({"sessions": 4, "searched": 1_500_000, "gaveUp": ["s-3"]}),
        found: vec![found("order", "no order of these explains what they were told", some(&[70, 71, 72, 73, 74]))],
    });
    verdict.problems = vec!["fault 9 (kill-majority): no write within 30s of its end".into()];
    verdict.alarms =
        vec!["node-2/log:1182: thread 'raft' panicked at raft/src/storage/log_store.rs:211:14: index 4012".into()];
    if let Some(last) = verdict.faults.last_mut() {
        (last.write_after_ms, last.recovery_ms) = (None, None);
    }
    (verdict, history)
}

type Windows = Vec<(f64, f64, f64)>;

/// Begins, heals and recovers each step, and says when writes were away: from, until, healed.
fn break_it(schedule: &Schedule, rng: &mut StdRng, events: &mut Vec<(f64, What)>) -> (Windows, Vec<Fault>) {
    let (mut at, mut windows, mut faults) = (0.0, Vec::new(), Vec::new());
    for (step, number) in schedule.steps.iter().zip(1..) {
        let kind = step.kind.name();
        let detail = format!("node-{}", step.choice % INSTANCES as u64 + 1);
        let mut say = |at, phase, detail: &str| {
            events.push((at, What::Fault { number, kind: kind.clone(), phase, detail: detail.to_owned() }));
        };
        at += step.quiet().as_secs_f64();
        let installed = rng.random_bool(0.95);
        let (begin, healed) = (at, at + if installed { step.lasts().as_secs_f64() } else { 0.01 });
        let recovered = healed + rng.random_range(0.1..1.5);
        say(begin, Phase::Begin, "");
        if installed {
            say(healed, Phase::Healed, &detail);
            say(recovered, Phase::Recovered, "");
        } else {
            say(healed, Phase::Skipped, "nobody leads");
        }
        let hurts = matches!(step.kind, Kind::KillLeader | Kind::IsolateLeader | Kind::PauseLeader | Kind::Ring);
        let away = if step.kind.leaves_a_majority() {
            if hurts { rng.random_range(0.2..0.9) } else { rng.random_range(0.002..0.03) }
        } else {
            healed - begin + rng.random_range(0.2..1.2)
        };
        if installed {
            windows.push((begin, begin + away, healed));
        }
        let recovery =
            if step.kind.leaves_a_majority() { rng.random_range(0.001..0.02) } else { begin + away - healed };
        faults.push(Fault {
            number,
            kind,
            detail: if installed { detail } else { "nobody leads".to_owned() },
            installed,
            write_after_ms: (installed && step.kind.leaves_a_majority()).then_some(away * 1000.0),
            recovery_ms: installed.then_some(recovery * 1000.0),
        });
        at = recovered;
    }
    (windows, faults)
}

/// Appends, repeats and reads, slow and unsure while writes are away.
fn operate(
    rng: &mut StdRng,
    seconds: f64,
    per_second: f64,
    windows: &[(f64, f64, f64)],
    events: &mut Vec<(f64, What)>,
) -> Counts {
    let (mut at, mut op, mut counts, mut place) = (0.0, 0, Counts::default(), 0);
    loop {
        at += -rng.random_range(f64::EPSILON..1.0f64).ln() / per_second;
        if at >= seconds {
            return counts;
        }
        while windows[place].1 < at {
            place += 1;
        }
        let away = windows[place].0 <= at;
        if away && rng.random_bool(0.8) {
            continue;
        }
        let process = rng.random_range(0..8);
        let session = format!("s-{}", process / 2);
        let draw = rng.random_range(0..100);
        let append = |text: String| (session.clone(), text.clone(), format!("key-{text}"));
        let call = match draw {
            0..70 => {
                let (session, text, key) = append(format!("run-c{process}-{op}"));
                Call::Append { session, text, key }
            }
            70..75 => {
                let (session, text, key) = append(format!("run-c{process}-{}", op / 2));
                Call::Repeat { session, text, key }
            }
            _ => Call::Read { session, instance: rng.random_range(1..=INSTANCES), after: 0, limit: 20 },
        };
        let read = matches!(call, Call::Read { .. });
        let usual = if read { 0.0009 } else { 0.0042 };
        let tail = (rng.random_range(-1.0..1.0f64) + rng.random_range(-1.0..1.0f64)).exp();
        let slow = if rng.random_bool(0.004) { rng.random_range(4.0..20.0) } else { 1.0 };
        let took = usual * tail * slow + if away { windows[place].1 - at + 0.01 } else { 0.0 };
        events.push((at, What::Invoke { op, process, call }));
        let attempts = if away { 4 } else { 1 };
        if away && rng.random_bool(0.12) {
            let message = "504 effect_unknown: no acknowledgement within 5s; the append may still commit".to_owned();
            counts.info += 1;
            events.push((at + took.max(0.2), What::Info { op, attempts, message }));
        } else if away && rng.random_bool(0.3) {
            let message = "503 no_leader: nobody leads".to_owned();
            counts.fail += 1;
            events.push((at + usual * tail * 0.4, What::Fail { op, attempts, message }));
        } else {
            counts.ok += 1;
            let answer = if read {
                Answer::Read { head: op, tail: vec![(op, format!("run-c{process}-{op}"))] }
            } else {
                Answer::Appended(AppendResponse { seq: op, id: format!("{op:08x}") })
            };
            events.push((at + took, What::Ok { op, attempts, answer }));
        }
        op += 1;
    }
}

/// A new leader after some faults, a new owner of two bots after others.
fn rule(rng: &mut StdRng, seconds: f64, windows: &[(f64, f64, f64)], events: &mut Vec<(f64, What)>) {
    let name = |n: usize| Some(format!("node-{}", n % INSTANCES + 1));
    let accounts = ["telegram:main", "discord:announcements"];
    let (mut leader, mut term) = (0, 1);
    events.push((0.001, What::Leader { instance: name(leader), term }));
    for (owner, account) in accounts.iter().enumerate() {
        let token = 10 + owner as u64;
        events.push((0.3, What::Owner { account: (*account).into(), instance: name(owner), token }));
    }
    for (begin, until, _) in windows.iter().filter(|window| window.0 < seconds) {
        if until - begin > 0.1 {
            events.push((begin + 0.05, What::Leader { instance: None, term }));
            (leader, term) = (leader + rng.random_range(0..INSTANCES), term + rng.random_range(1..3));
            events.push((until.max(begin + 0.06), What::Leader { instance: name(leader), term }));
        }
        let account = accounts[rng.random_range(0..accounts.len())];
        if rng.random_bool(0.5) {
            let token = (until * 100.0) as u64;
            events.push((begin + 0.5, What::Owner { account: account.into(), instance: None, token: token - 1 }));
            events.push((until + 0.6, What::Owner { account: account.into(), instance: name(leader + 1), token }));
        }
    }
}
