//! A session's label is a register: whatever clients are told, there is one order of all calls, each between its
//! invocation and its answer, in which every answer is right.
//!
//! Judged twice, and both must be content:
//! - [`search`] looks for such an order with a checker from a library, and looks at labels alone. It believes nothing
//!   that the server says about its log, so a server that lies about that is found out.
//! - [`witness`] takes the log indexes in the answers for that order, and replays it. It costs next to nothing, names
//!   what is wrong, and sees more: that real time holds over all sessions, that a revision is the index of its change.
//!
//! A call of unknown outcome may have its effect at any time after its invocation, or never. One that failed has none.

mod search;
#[cfg(test)]
mod tests;
mod witness;

use std::collections::{BTreeMap, HashMap};

use serde_json::json;

use super::{Check, Found};
use crate::history::{Answer, Call, Event, What};
use search::Judgement;

/// Sessions whose calls are tried one by one to say which answer has no place in any order. It is several searches.
const EXPLAINED: usize = 8;

/// One call. Moments are places in the history, which has one order.
#[derive(Debug, Clone)]
struct Operation<'a> {
    op: u64,
    session: &'a str,
    call: usize,
    kind: Kind<'a>,
    end: End<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind<'a> {
    Get,
    Set { label: &'a str },
    Cas { from: Option<&'a str>, revision: u64, label: &'a str },
}

impl<'a> Kind<'a> {
    /// What it sets.
    fn label(self) -> Option<&'a str> {
        match self {
            Self::Get => None,
            Self::Set { label } | Self::Cas { label, .. } => Some(label),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set { .. } => "set",
            Self::Cas { .. } => "cas",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End<'a> {
    /// The register as it is, or as the call left it.
    Shown {
        at: usize,
        label: Option<&'a str>,
        revision: u64,
        index: Option<u64>,
    },
    Mismatch {
        at: usize,
        index: Option<u64>,
    },
    Failed,
    Unknown,
}

impl End<'_> {
    /// When the answer came.
    fn at(&self) -> Option<usize> {
        match self {
            Self::Shown { at, .. } | Self::Mismatch { at, .. } => Some(*at),
            Self::Failed | Self::Unknown => None,
        }
    }
}

/// Judges all registers of a history. It knows what a search may cost and says `decided: false` where that is not enough.
pub fn check(history: &[Event]) -> Check {
    check_within(history, search::BUDGET)
}

fn check_within(history: &[Event], budget: u64) -> Check {
    let (operations, mut found) = operations(history);
    let mut sessions: BTreeMap<&str, Vec<&Operation<'_>>> = BTreeMap::new();
    for operation in &operations {
        sessions.entry(operation.session).or_default().push(operation);
    }
    let witnessed = witness::check(&operations, &sessions);
    found.extend(witnessed.found);
    let (mut undecided, mut steps, mut illegal) = (Vec::new(), 0, 0);
    for (session, operations) in &sessions {
        let searched = search::search(operations, budget);
        steps += searched.steps;
        match searched.judgement {
            Judgement::Linearizable => {}
            Judgement::Undecided => undecided.push(*session),
            Judgement::Not => {
                illegal += 1;
                found.push(not_linearizable(session, operations, illegal <= EXPLAINED, budget));
            }
        }
    }
    let count = |is: &dyn Fn(&Operation<'_>) -> bool| operations.iter().filter(|operation| is(operation)).count();
    let shown = |operation: &Operation<'_>| matches!(operation.end, End::Shown { .. });
    let figures = json!({
        "registers": sessions.len(),
        "operations": operations.len(),
        "gets": count(&|one| shown(one) && matches!(one.kind, Kind::Get)),
        "sets": count(&|one| shown(one) && matches!(one.kind, Kind::Set { .. })),
        "swaps": count(&|one| shown(one) && matches!(one.kind, Kind::Cas { .. })),
        "mismatches": count(&|one| matches!(one.end, End::Mismatch { .. })),
        "failed": count(&|one| one.end == End::Failed),
        "unknown": count(&|one| one.end == End::Unknown && one.kind != Kind::Get),
        "unknownSeen": witnessed.unknown_seen,
        "proposedAgain": witnessed.proposed_again,
        "mostOperationsOfARegister": sessions.values().map(Vec::len).max().unwrap_or_default(),
        "searchSteps": steps,
        "undecided": undecided,
    });
    Check { checker: "register".to_owned(), decided: undecided.is_empty(), figures, found }
}

/// The calls of registers, and what was answered in a form that its call cannot have.
fn operations(history: &[Event]) -> (Vec<Operation<'_>>, Vec<Found>) {
    let mut by_op: HashMap<u64, usize> = HashMap::new();
    let mut operations: Vec<Operation<'_>> = Vec::new();
    let mut found = Vec::new();
    for (at, event) in history.iter().enumerate() {
        match &event.what {
            What::Invoke { op, call, .. } => {
                let (session, kind) = match call {
                    Call::Get { session, .. } => (session, Kind::Get),
                    Call::Set { session, label, .. } => (session, Kind::Set { label }),
                    Call::Cas { session, from, revision, label, .. } => {
                        (session, Kind::Cas { from: from.as_deref(), revision: *revision, label })
                    }
                    Call::Append { .. }
                    | Call::Repeat { .. }
                    | Call::Read { .. }
                    | Call::Turn { .. }
                    | Call::Probe { .. }
                    | Call::Say { .. } => continue,
                };
                by_op.insert(*op, operations.len());
                operations.push(Operation { op: *op, session, call: at, kind, end: End::Unknown });
            }
            What::Ok { op, answer, .. } => {
                let Some(operation) = by_op.get(op).and_then(|index| operations.get_mut(*index)) else { continue };
                operation.end = match (answer, operation.kind) {
                    (Answer::Register { label, revision, index }, kind)
                        if kind.label().is_none_or(|own| label.as_deref() == Some(own)) =>
                    {
                        End::Shown { at, label: label.as_deref(), revision: *revision, index: *index }
                    }
                    (Answer::Mismatch { index }, Kind::Cas { .. }) => End::Mismatch { at, index: *index },
                    (
                        Answer::Register { .. }
                        | Answer::Mismatch { .. }
                        | Answer::Appended(_)
                        | Answer::Read { .. }
                        | Answer::Replied { .. }
                        | Answer::Ended { .. }
                        | Answer::Answered,
                        kind,
                    ) => {
                        found.push(Found {
                            anomaly: "wrong-answer".to_owned(),
                            message: format!("{}: {kind:?} was answered with {answer:?}", operation.session),
                            ops: vec![*op],
                        });
                        // What it did is anybody's guess.
                        End::Unknown
                    }
                };
            }
            What::Fail { op, .. } => {
                if let Some(operation) = by_op.get(op).and_then(|index| operations.get_mut(*index)) {
                    operation.end = End::Failed;
                }
            }
            What::Info { .. } | What::Fault { .. } | What::Leader { .. } | What::Owner { .. } => {}
        }
    }
    (operations, found)
}

/// The answer without which there still was an order, and who set the label in it.
fn not_linearizable(session: &str, operations: &[&Operation<'_>], explain: bool, budget: u64) -> Found {
    let culprit = if explain { search::first_impossible(operations, budget) } else { None };
    let (message, ops) = match culprit {
        Some(culprit) => {
            let shown = match culprit.end {
                End::Shown { label, .. } => format!("was shown {label:?}"),
                End::Mismatch { .. } => format!("was told that the label is another ({:?})", culprit.kind),
                End::Failed | End::Unknown => "was not answered".to_owned(),
            };
            let seen = match (culprit.kind, culprit.end) {
                (Kind::Get, End::Shown { label, .. }) => label,
                (Kind::Cas { from, .. }, _) => from,
                (Kind::Get | Kind::Set { .. }, _) => None,
            };
            let writers = operations.iter().filter(|one| seen.is_some() && one.kind.label() == seen);
            let message = format!(
                "{session}: up to operation {} there is an order that explains every answer; the {} that {shown} has \
                 no place in any",
                culprit.op,
                culprit.kind.name(),
            );
            (message, std::iter::once(culprit.op).chain(writers.map(|one| one.op)).collect())
        }
        None => (format!("{session}: no order of its calls explains every answer"), Vec::new()),
    };
    Found { anomaly: "not-linearizable".to_owned(), message, ops }
}
