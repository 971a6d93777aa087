//! Is there an order? Asked of a library's checker, by labels alone.
//!
//! The search is exponential where much is under way at once, and a call of unknown outcome is under way for ever. Two
//! things keep it small. Labels are unique in a run, so a label that somebody was shown was set before they were
//! answered: that ends the call, whatever its client was told. And one whose label nobody ever saw is left out first,
//! since it may stand behind all others; it is put back only where no order is found without it.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

use super::{End, Kind, Operation};

/// Applications of a call to a state that one search may take: some ten times what 200 calls of ten clients need that
/// have no order, and about a second. A count and not a time, so that a judgement does not depend on the machine.
pub(super) const BUDGET: u64 = 1_500_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    Linearizable,
    Not,
    Undecided,
}

#[derive(Debug)]
pub(super) struct Searched {
    pub(super) judgement: Judgement,
    pub(super) steps: u64,
}

/// Labels are counted from 1; 0: none.
type Label = usize;

#[derive(Debug, Clone, Copy)]
enum Step {
    Shows(Label),
    Sets(Label),
    Swaps {
        from: Label,
        to: Label,
    },
    Differs {
        from: Label,
    },
    /// Nobody knows whether the label was the expected one.
    MaySwap {
        from: Label,
        to: Label,
    },
}

/// A call, and what is left of the budget. The library asks a function without a state, so the call brings it.
#[derive(Debug, Clone)]
struct Applied {
    step: Step,
    left: Rc<Cell<u64>>,
}

struct Register;

impl Specification for Register {
    type State = Label;
    type Operation = Applied;

    fn init() -> Label {
        0
    }

    /// Once the budget is spent nothing is right any more, so that the search comes to its end at once.
    fn apply(operation: &Applied, state: &Label) -> (bool, Label) {
        let left = operation.left.get();
        if left == 0 {
            return (false, *state);
        }
        operation.left.set(left - 1);
        match operation.step {
            Step::Shows(label) => (label == *state, *state),
            Step::Sets(label) => (true, label),
            Step::Swaps { from, to } if from == *state => (true, to),
            Step::Swaps { .. } => (false, *state),
            Step::Differs { from } => (from != *state, *state),
            Step::MaySwap { from, to } => (true, if from == *state { to } else { *state }),
        }
    }
}

/// Judges the calls of one register.
pub(super) fn search(operations: &[&Operation<'_>], budget: u64) -> Searched {
    let steps = Steps::of(operations);
    let left = Rc::new(Cell::new(budget));
    let spent = || budget - left.get();
    let judge = |with_unseen: bool| {
        if linearizable(&steps, with_unseen, &left) {
            Judgement::Linearizable
        } else if left.get() == 0 {
            Judgement::Undecided
        } else {
            Judgement::Not
        }
    };
    let judgement = match judge(false) {
        Judgement::Not if steps.calls.iter().any(|call| call.unseen) => judge(true),
        judgement @ (Judgement::Linearizable | Judgement::Not | Judgement::Undecided) => judgement,
    };
    Searched { judgement, steps: spent() }
}

/// The call whose answer is the first one that has no place in any order.
pub(super) fn first_impossible<'a, 'b>(operations: &[&'b Operation<'a>], budget: u64) -> Option<&'b Operation<'a>> {
    let mut answers: Vec<(usize, &Operation<'_>)> =
        operations.iter().filter_map(|one| Some((one.end.at()?, *one))).collect();
    answers.sort_unstable_by_key(|(at, _)| *at);
    // Without a later answer everything has an order that has one with it, so the first place can be halved for.
    let impossible = answers.partition_point(|(until, _)| {
        let shortened: Vec<Operation<'_>> = operations
            .iter()
            .filter(|one| one.call < *until)
            .map(|one| match one.end.at() {
                Some(at) if at > *until => Operation { end: End::Unknown, ..(*one).clone() },
                Some(_) | None => (*one).clone(),
            })
            .collect();
        let shortened: Vec<&Operation<'_>> = shortened.iter().collect();
        search(&shortened, budget).judgement != Judgement::Not
    });
    answers.get(impossible).map(|(_, one)| *one)
}

/// One call as the library gets it.
struct Placed {
    step: Step,
    call: usize,
    /// `usize::MAX`: it may come at any time.
    end: usize,
    /// It is of unknown outcome, and nobody was shown its label.
    unseen: bool,
}

struct Steps {
    calls: Vec<Placed>,
}

impl Steps {
    fn of(operations: &[&Operation<'_>]) -> Self {
        let mut writers: HashMap<&str, u32> = HashMap::new();
        for label in operations.iter().filter_map(|one| one.kind.label()) {
            *writers.entry(label).or_default() += 1;
        }
        // When somebody was first known to have met the label.
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for one in operations {
            let met = match (one.kind, one.end) {
                (Kind::Get, End::Shown { at, label: Some(label), .. })
                | (Kind::Cas { from: Some(label), .. }, End::Shown { at, .. }) => Some((label, at)),
                (Kind::Get | Kind::Set { .. } | Kind::Cas { .. }, _) => None,
            };
            if let Some((label, at)) = met {
                let first = seen.entry(label).or_insert(at);
                *first = at.min(*first);
            }
        }
        let mut labels = Labels::default();
        let mut calls = Vec::new();
        for one in operations {
            let (step, (end, unseen)) = match (one.kind, one.end) {
                (_, End::Failed) | (Kind::Get, End::Unknown | End::Mismatch { .. }) => continue,
                (Kind::Get, End::Shown { at, label, .. }) => (Step::Shows(labels.number(label)), (at, false)),
                (Kind::Set { label }, End::Shown { at, .. }) => (Step::Sets(labels.number(Some(label))), (at, false)),
                (Kind::Cas { from, label, .. }, End::Shown { at, .. }) => {
                    (Step::Swaps { from: labels.number(from), to: labels.number(Some(label)) }, (at, false))
                }
                (Kind::Cas { from, .. }, End::Mismatch { at, .. }) => {
                    (Step::Differs { from: labels.number(from) }, (at, false))
                }
                (Kind::Set { label }, End::Unknown | End::Mismatch { .. }) => {
                    (Step::Sets(labels.number(Some(label))), end_of_unknown(label, one.call, &writers, &seen))
                }
                (Kind::Cas { from, label, .. }, End::Unknown) => (
                    Step::MaySwap { from: labels.number(from), to: labels.number(Some(label)) },
                    end_of_unknown(label, one.call, &writers, &seen),
                ),
            };
            calls.push(Placed { step, call: one.call, end, unseen });
        }
        Self { calls }
    }
}

#[derive(Default)]
struct Labels<'a> {
    numbers: HashMap<&'a str, Label>,
}

impl<'a> Labels<'a> {
    fn number(&mut self, label: Option<&'a str>) -> Label {
        let next = self.numbers.len() + 1;
        label.map_or(0, |label| *self.numbers.entry(label).or_insert(next))
    }
}

/// By when a call of unknown outcome had its effect, and whether nobody saw one.
fn end_of_unknown(
    label: &str,
    call: usize,
    writers: &HashMap<&str, u32>,
    seen: &HashMap<&str, usize>,
) -> (usize, bool) {
    match seen.get(label) {
        None => (usize::MAX, true),
        // Another call may have set what was seen, or it was seen before anybody did: that is for the search to find.
        Some(at) if writers.get(label) != Some(&1) || *at < call => (usize::MAX, false),
        Some(at) => (*at, false),
    }
}

fn linearizable(steps: &Steps, with_unseen: bool, left: &Rc<Cell<u64>>) -> bool {
    let calls = || steps.calls.iter().filter(|call| with_unseen || !call.unseen).enumerate();
    // Of two at one place the call comes first: the effect of an unknown one may be at the moment of the answer in which
    // it was seen.
    let mut moments: Vec<(usize, u8, usize, Action<Applied>)> = Vec::new();
    for (process, placed) in calls() {
        let applied = Applied { step: placed.step, left: Rc::clone(left) };
        moments.push((placed.call, 0, process, Action::Call(applied.clone())));
        moments.push((placed.end, 1, process, Action::Response(applied)));
    }
    if moments.is_empty() {
        return true;
    }
    moments.sort_by_key(|(at, order, process, _)| (*at, *order, *process));
    // The library knows no calls without an answer, and wants one process for each call under way: here each call has one.
    let actions = moments.into_iter().map(|(_, _, process, action)| (process, action)).collect();
    WGLChecker::<Register>::is_linearizable(History::from_actions(actions))
}
