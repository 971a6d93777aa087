//! What is drawn and listed, made from a history. Pure.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::Value;

use crate::history::{Answer, Call, Event, Phase, What};
use crate::run::plan::Plan;
use crate::run::verdict::{Fault, Outcome, Verdict, count};

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum End {
    Ok,
    Fail,
    Info,
    /// It did not, before the history did.
    Open,
}

impl End {
    /// Those that have a latency, in the order of legends.
    pub(super) const ENDED: [Self; 3] = [Self::Ok, Self::Fail, Self::Info];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Fail => "fail",
            Self::Info => "info",
            Self::Open => "open",
        }
    }
}

/// One operation: its call, and its answer if there was one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Operation<'a> {
    pub(super) op: u64,
    pub(super) process: u32,
    pub(super) call: &'a Call,
    pub(super) end: End,
    /// When it was sent, and when it ended, in seconds of the run.
    pub(super) from: f64,
    pub(super) to: Option<f64>,
    pub(super) answer: Told<'a>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Told<'a> {
    Answer(&'a Answer),
    Message(&'a str),
    Nothing,
}

impl Operation<'_> {
    pub(super) fn kind(&self) -> &'static str {
        self.call.name()
    }

    pub(super) fn latency_ms(&self) -> Option<f64> {
        self.to.map(|to| (to - self.from).max(0.0) * 1000.0)
    }

    /// The call's fields.
    pub(super) fn asked(&self) -> String {
        fields(self.call, "f")
    }

    /// The answer's fields, or what was said instead.
    pub(super) fn told(&self) -> String {
        match self.answer {
            Told::Answer(answer) => fields(answer, "answer"),
            Told::Message(message) => message.to_owned(),
            Told::Nothing => String::new(),
        }
    }
}

/// The fields of a line of the history as people read them, without the one that names its form. A form that is new to the
/// history is written like the others.
fn fields(value: &impl Serialize, form: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::to_value(value) else { return String::new() };
    let field = |(name, value): (&String, &Value)| match value {
        Value::String(text) => format!("{name} {text}"),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            format!("{name} {value}")
        }
    };
    let words: Vec<String> = fields.iter().filter(|(name, _)| *name != form).map(field).collect();
    words.join(", ")
}

/// One fault, from its beginning to its end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Window<'a> {
    pub(super) number: u32,
    pub(super) kind: &'a str,
    pub(super) detail: &'a str,
    pub(super) from: f64,
    pub(super) healed: Option<f64>,
    pub(super) recovered: Option<f64>,
    /// It could not be done, and nothing was.
    pub(super) skipped: bool,
}

impl Window<'_> {
    /// `7 kill-leader`.
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.number, self.kind)
    }
}

/// A time in which somebody had a role.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reign<'a> {
    pub(super) instance: &'a str,
    /// The term or the token.
    pub(super) count: u64,
    pub(super) from: f64,
    pub(super) to: f64,
}

/// All that is drawn of a history.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Data<'a> {
    /// In the order in which they were sent.
    pub(super) operations: Vec<Operation<'a>>,
    /// In the order in which they began.
    pub(super) windows: Vec<Window<'a>>,
    pub(super) leaders: Vec<Reign<'a>>,
    /// By account.
    pub(super) owners: BTreeMap<&'a str, Vec<Reign<'a>>>,
    /// Nobody led, as far as anyone told.
    pub(super) leaderless: f64,
    /// The last moment of the history, in seconds.
    pub(super) end: f64,
}

impl<'a> Data<'a> {
    pub(super) fn of(history: &'a [Event]) -> Self {
        let mut data = Self { end: history.iter().map(seconds).fold(0.0, f64::max), ..Self::default() };
        let mut places: HashMap<u64, usize> = HashMap::new();
        let mut leader: Option<(Option<&str>, u64, f64)> = None;
        let mut owners: BTreeMap<&str, (Option<&str>, u64, f64)> = BTreeMap::new();
        for event in history {
            let at = seconds(event);
            match &event.what {
                What::Invoke { op, process, call } => {
                    places.insert(*op, data.operations.len());
                    let (op, process) = (*op, *process);
                    let (end, to, answer) = (End::Open, None, Told::Nothing);
                    data.operations.push(Operation { op, process, call, end, from: at, to, answer });
                }
                What::Ok { op, attempts: _, answer } => data.ended(&places, *op, End::Ok, at, Told::Answer(answer)),
                What::Fail { op, attempts: _, message } => {
                    data.ended(&places, *op, End::Fail, at, Told::Message(message));
                }
                What::Info { op, attempts: _, message } => {
                    data.ended(&places, *op, End::Info, at, Told::Message(message));
                }
                What::Fault { number, kind, phase, detail } => data.fault(*number, kind, *phase, detail, at),
                What::Leader { instance, term } => {
                    let before = leader.replace((instance.as_deref(), *term, at));
                    data.led(before, at);
                }
                What::Owner { account, instance, token } => {
                    if let Some(before) = owners.insert(account, (instance.as_deref(), *token, at)) {
                        data.owned(account, before, at);
                    }
                }
            }
        }
        data.led(leader, data.end);
        for (account, before) in owners {
            data.owned(account, before, data.end);
        }
        data
    }

    fn ended(&mut self, places: &HashMap<u64, usize>, op: u64, end: End, at: f64, answer: Told<'a>) {
        if let Some(operation) = places.get(&op).and_then(|place| self.operations.get_mut(*place)) {
            (operation.end, operation.to, operation.answer) = (end, Some(at), answer);
        }
    }

    fn fault(&mut self, number: u32, kind: &'a str, phase: Phase, detail: &'a str, at: f64) {
        // A number that comes again begins another window.
        let begun = self.windows.iter_mut().rev().find(|window| window.number == number && window.kind == kind);
        let (Phase::Healed | Phase::Recovered | Phase::Skipped, Some(window)) = (phase, begun) else {
            let skipped = phase == Phase::Skipped;
            self.windows.push(Window { number, kind, detail, from: at, healed: None, recovered: None, skipped });
            return;
        };
        if !detail.is_empty() {
            window.detail = detail;
        }
        match phase {
            Phase::Begin => {}
            Phase::Healed => window.healed = Some(at),
            Phase::Recovered => window.recovered = Some(at),
            Phase::Skipped => window.skipped = true,
        }
    }

    fn led(&mut self, before: Option<(Option<&'a str>, u64, f64)>, to: f64) {
        match before {
            Some((Some(instance), count, from)) => self.leaders.push(Reign { instance, count, from, to }),
            Some((None, _, from)) => self.leaderless += to - from,
            None => {}
        }
    }

    fn owned(&mut self, account: &'a str, before: (Option<&'a str>, u64, f64), to: f64) {
        let reigns = self.owners.entry(account).or_default();
        if let (Some(instance), count, from) = before {
            reigns.push(Reign { instance, count, from, to });
        }
    }

    /// The windows in which something was wrong.
    pub(super) fn done(&self) -> impl Iterator<Item = &Window<'a>> {
        self.windows.iter().filter(|window| !window.skipped)
    }

    /// Kinds of operations, the most frequent first.
    pub(super) fn kinds(&self) -> Vec<&'static str> {
        let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
        for operation in &self.operations {
            *counts.entry(operation.kind()).or_default() += 1;
        }
        let mut kinds: Vec<_> = counts.into_iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        kinds.into_iter().map(|(kind, _)| kind).collect()
    }
}

fn seconds(event: &Event) -> f64 {
    event.at_us as f64 / 1e6
}

/// What is to be said of a run that was ended before it was judged: that it proves nothing.
pub fn unjudged(plan: Plan, history: &[Event]) -> Verdict {
    let data = Data::of(history);
    let fault = |window: &Window<'_>| Fault {
        number: window.number,
        kind: window.kind.to_owned(),
        detail: window.detail.to_owned(),
        installed: !window.skipped,
        write_after_ms: None,
        recovery_ms: None,
    };
    Verdict {
        outcome: Outcome::Inconclusive,
        seconds: data.end,
        faults: data.windows.iter().map(fault).collect(),
        operations: count(history),
        plan,
        checks: Vec::new(),
        problems: vec!["the run was ended before it was judged: it has no verdict.json".to_owned()],
        unjudged: Vec::new(),
        alarms: Vec::new(),
        rerun: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64, what: What) -> Event {
        Event { at_us: ms * 1000, what }
    }

    fn read(op: u64) -> What {
        What::Invoke { op, process: 4, call: Call::Read { session: "s".into(), instance: 2, after: 0, limit: 20 } }
    }

    fn fault(number: u32, phase: Phase, detail: &str) -> What {
        What::Fault { number, kind: "halves".into(), phase, detail: detail.into() }
    }

    #[test]
    fn an_operation_ends_once_or_stays_open() {
        let answer = Answer::Read { head: 1, tail: vec![(1, "t".into())] };
        let history = [
            at(1000, read(7)),
            at(1500, read(8)),
            at(2500, What::Ok { op: 7, attempts: 1, answer }),
            at(2600, What::Fail { op: 99, attempts: 1, message: "of nobody".into() }),
        ];
        let data = Data::of(&history);
        let [first, second] = &data.operations[..] else { panic!("{data:?}") };
        assert_eq!((first.op, first.process, first.kind(), first.end), (7, 4, "read", End::Ok));
        assert_eq!((first.from, first.latency_ms()), (1.0, Some(1500.0)));
        assert_eq!(
            (first.asked().as_str(), first.told().as_str()),
            ("after 0, instance 2, limit 20, session s", "head 1, tail [[1,\"t\"]]")
        );
        assert_eq!((second.end, second.latency_ms(), second.told().as_str()), (End::Open, None, ""));
    }

    #[test]
    fn a_fault_lasts_from_its_beginning_until_all_are_ready() {
        let history = [
            at(1000, fault(1, Phase::Begin, "")),
            at(3000, fault(1, Phase::Healed, "node-1 | node-2")),
            at(3500, fault(1, Phase::Recovered, "")),
            at(4000, fault(2, Phase::Begin, "")),
            at(4001, fault(2, Phase::Skipped, "nobody leads")),
            at(5000, fault(3, Phase::Begin, "")),
            at(6000, fault(1, Phase::Begin, "again")),
        ];
        let data = Data::of(&history);
        let seen: Vec<_> = data
            .windows
            .iter()
            .map(|one| (one.number, one.from, one.healed, one.recovered, one.skipped, one.detail))
            .collect();
        assert_eq!(
            seen,
            [
                (1, 1.0, Some(3.0), Some(3.5), false, "node-1 | node-2"),
                (2, 4.0, None, None, true, "nobody leads"),
                (3, 5.0, None, None, false, ""),
                (1, 6.0, None, None, false, "again"),
            ]
        );
        assert_eq!(data.done().count(), 3);
    }

    #[test]
    fn who_leads_and_who_owns_does_so_until_it_is_told_otherwise() {
        let leader = |instance: Option<&str>, term| What::Leader { instance: instance.map(Into::into), term };
        let owner = |account: &str, instance: Option<&str>, token| What::Owner {
            account: account.into(),
            instance: instance.map(Into::into),
            token,
        };
        let history = [
            at(0, leader(Some("node-1"), 1)),
            at(500, owner("telegram:main", Some("node-2"), 4)),
            at(1000, leader(None, 1)),
            at(1200, owner("telegram:main", Some("node-3"), 9)),
            at(1700, leader(Some("node-2"), 3)),
            at(1800, owner("discord:main", None, 0)),
            at(2000, read(1)),
        ];
        let data = Data::of(&history);
        let reign = |instance, count, from, to| Reign { instance, count, from, to };
        assert_eq!(data.leaders, [reign("node-1", 1, 0.0, 1.0), reign("node-2", 3, 1.7, 2.0)]);
        assert!((data.leaderless - 0.7).abs() < 1e-9);
        assert_eq!(data.owners["telegram:main"], [reign("node-2", 4, 0.5, 1.2), reign("node-3", 9, 1.2, 2.0)]);
        assert_eq!(data.owners["discord:main"], [], "it has a row although nobody owned it");
    }
}
