//! The order that the server claims: by the log indexes in its answers. If it holds, nothing has to be searched.
//!
//! - Real time: what was shown to be committed before a call was made has a smaller index than what the call does, over
//!   all sessions, and is reflected by what it reads.
//! - Replay: a get shows what was last set up to the index that it reflects; a compare-and-set that succeeded had its
//!   expected revision right before it; one that did not had not.
//! - A revision is the log index of its change. The index in the answer may be a later one: a command whose fate was
//!   unknown to the instance is proposed again, and finds its first answer.
//!
//! A change of unknown outcome has the revision with which somebody was shown its label; if nobody was, it is as if it
//! had not been, but for a mismatch, which it may explain.

use std::collections::{BTreeMap, HashMap};

use super::{End, Kind, Operation};
use crate::checkers::Found;

#[derive(Debug, Default)]
pub(super) struct Witnessed {
    pub(super) found: Vec<Found>,
    /// Changes of unknown outcome that somebody saw.
    pub(super) unknown_seen: usize,
    /// Acknowledged changes whose answer came from a later log entry than the change itself.
    pub(super) proposed_again: usize,
}

impl Witnessed {
    fn find(&mut self, anomaly: &str, message: String, ops: &[u64]) {
        self.found.push(Found { anomaly: anomaly.to_owned(), message, ops: ops.to_vec() });
    }
}

/// Something that is known to be committed: its index, and the operation whose answer said so.
type Known = (u64, u64);

pub(super) fn check(operations: &[Operation<'_>], sessions: &BTreeMap<&str, Vec<&Operation<'_>>>) -> Witnessed {
    let mut witnessed = Witnessed::default();
    let floors = floors(operations);
    for (session, operations) in sessions {
        Register::of(session, operations, &mut witnessed).check(operations, &floors, &mut witnessed);
    }
    witnessed
}

/// For each call, by its number: the highest index that an answer had named before it was made.
fn floors(operations: &[Operation<'_>]) -> HashMap<u64, Known> {
    let mut proofs: Vec<(usize, Known)> = operations
        .iter()
        .filter_map(|one| {
            let (at, index) = match one.end {
                End::Shown { at, revision, index, .. } => (at, revision.max(index.unwrap_or(0))),
                End::Mismatch { at, index } => (at, index?),
                End::Failed | End::Unknown => return None,
            };
            Some((at, (index, one.op)))
        })
        .collect();
    proofs.sort_unstable();
    let mut proofs = proofs.into_iter().peekable();
    let mut calls: Vec<(usize, u64)> = operations.iter().map(|one| (one.call, one.op)).collect();
    calls.sort_unstable();
    let mut floor = None;
    let mut floors = HashMap::new();
    for (call, op) in calls {
        while let Some((_, known)) = proofs.next_if(|(at, _)| *at < call) {
            floor = floor.max(Some(known));
        }
        if let Some(floor) = floor {
            floors.insert(op, floor);
        }
    }
    floors
}

/// A change that is known to have been.
#[derive(Debug, Clone, Copy)]
struct Change<'a> {
    label: &'a str,
    op: u64,
}

struct Register<'a> {
    session: &'a str,
    /// By revision.
    changes: BTreeMap<u64, Change<'a>>,
    /// Who set, or tried to set, a label.
    writers: HashMap<&'a str, &'a Operation<'a>>,
    /// Revisions that were shown of changes whose clients know nothing.
    resolved: HashMap<u64, u64>,
}

impl<'a> Register<'a> {
    fn of(session: &'a str, operations: &[&'a Operation<'a>], witnessed: &mut Witnessed) -> Self {
        let writers: HashMap<&str, &Operation<'_>> =
            operations.iter().filter_map(|one| Some((one.kind.label()?, *one))).collect();
        let mut register = Self { session, changes: BTreeMap::new(), writers, resolved: HashMap::new() };
        for one in operations {
            if let (Some(label), End::Shown { revision, index, .. }) = (one.kind.label(), one.end) {
                register.add(revision, Change { label, op: one.op }, witnessed);
                match index {
                    Some(index) if index == revision => {}
                    Some(index) if index > revision => witnessed.proposed_again += 1,
                    Some(_) | None => {
                        let message = format!("{session}: revision {revision} was answered with index {index:?}");
                        witnessed.find("wrong-index", message, &[one.op]);
                    }
                }
            }
        }
        for one in operations {
            if let (Kind::Get, End::Shown { label: Some(label), revision, .. }) = (one.kind, one.end)
                && let Some(writer) = register.writers.get(label).copied()
                && writer.end == End::Unknown
            {
                match register.resolved.insert(writer.op, revision) {
                    None => {
                        witnessed.unknown_seen += 1;
                        register.add(revision, Change { label, op: writer.op }, witnessed);
                    }
                    Some(before) if before == revision => {}
                    Some(before) => {
                        let message = format!("{session}: {label:?} was shown with revision {before} and {revision}");
                        witnessed.find("doubled", message, &[writer.op, one.op]);
                    }
                }
            }
        }
        register
    }

    fn add(&mut self, revision: u64, change: Change<'a>, witnessed: &mut Witnessed) {
        if let Some(other) = self.changes.insert(revision, change) {
            let message = format!("{}: {change:?} and {other:?} have one revision, {revision}", self.session);
            witnessed.find("one-revision", message, &[other.op, change.op]);
        }
    }

    fn last_before(&self, revision: u64) -> Option<(u64, Change<'a>)> {
        self.changes.range(..revision).next_back().map(|(revision, change)| (*revision, *change))
    }

    fn check(&self, operations: &[&Operation<'_>], floors: &HashMap<u64, Known>, witnessed: &mut Witnessed) {
        for one in operations {
            let floor = floors.get(&one.op).copied();
            match (one.kind, one.end) {
                (Kind::Get, End::Shown { label, revision, index, .. }) => {
                    self.check_get(one, label, revision, witnessed);
                    let reflected = revision.max(index.unwrap_or(0));
                    // The name of a session that nobody has set yet comes without an index: its own history says enough.
                    let known = self.shown_before(operations, one).max(floor.filter(|_| index.is_some()));
                    if let Some((known, by)) = known
                        && known > reflected
                    {
                        let message = format!(
                            "{}: revision {revision} was shown, as of index {index:?}, after {known} was known",
                            self.session
                        );
                        witnessed.find("stale-read", message, &[by, one.op]);
                    } else if let Some((last, change)) = self.last_before(reflected + 1)
                        && last > revision
                    {
                        let message = format!(
                            "{}: revision {revision} was shown as of index {reflected}, and {last} was set before",
                            self.session
                        );
                        witnessed.find("stale-read", message, &[change.op, one.op]);
                    }
                }
                (Kind::Set { .. } | Kind::Cas { .. }, End::Shown { revision, .. }) => {
                    self.check_change(one, revision, floor, witnessed);
                }
                (_, End::Mismatch { index: Some(index), .. }) => {
                    self.check_order(one, index, floor, witnessed);
                    self.check_mismatch(operations, one, index, witnessed);
                }
                (Kind::Set { .. } | Kind::Cas { .. }, End::Unknown) => {
                    if let Some(revision) = self.resolved.get(&one.op) {
                        self.check_change(one, *revision, floor, witnessed);
                    }
                }
                (Kind::Get, End::Unknown) | (_, End::Mismatch { index: None, .. } | End::Failed) => {}
            }
        }
    }

    /// The highest revision that an answer about this session had named before the call was made. A mismatch where
    /// nobody was to have set it yet says that somebody had.
    fn shown_before(&self, operations: &[&Operation<'_>], one: &Operation<'_>) -> Option<Known> {
        let earlier = operations.iter().filter_map(|other| match other.end {
            End::Shown { at, revision, .. } if at < one.call => Some((revision, other.op)),
            End::Mismatch { at, .. } if at < one.call && matches!(other.kind, Kind::Cas { revision: 0, .. }) => {
                Some((1, other.op))
            }
            End::Shown { .. } | End::Mismatch { .. } | End::Failed | End::Unknown => None,
        });
        earlier.max()
    }

    /// What was shown is what was set with that revision.
    fn check_get(&self, one: &Operation<'_>, label: Option<&str>, revision: u64, witnessed: &mut Witnessed) {
        let session = self.session;
        if let Some(change) = self.changes.get(&revision)
            && Some(change.label) == label
        {
            return;
        }
        match (label, label.and_then(|label| self.writers.get(label))) {
            (None, _) if revision == 0 => {}
            (_, Some(writer)) if writer.end == End::Failed => {
                let message = format!("{session}: {label:?} was shown, and setting it certainly failed");
                witnessed.find("effect-of-failed", message, &[writer.op, one.op]);
            }
            (_, Some(writer)) => {
                let message = format!("{session}: {label:?} was shown with revision {revision}, which is another's");
                witnessed.find("wrong-revision", message, &[writer.op, one.op]);
            }
            (_, None) => {
                let message = format!("{session}: {label:?} was shown with revision {revision}, and nobody set it");
                witnessed.find("from-nowhere", message, &[one.op]);
            }
        }
    }

    fn check_change(&self, one: &Operation<'_>, revision: u64, floor: Option<Known>, witnessed: &mut Witnessed) {
        self.check_order(one, revision, floor, witnessed);
        if let Kind::Cas { revision: expected, .. } = one.kind {
            let before = self.last_before(revision);
            if before.map_or(0, |(revision, _)| revision) != expected {
                let message = format!(
                    "{}: a compare-and-set that expected revision {expected} became {revision}, right after {before:?}",
                    self.session
                );
                let ops: Vec<u64> = before.iter().map(|(_, change)| change.op).chain([one.op]).collect();
                witnessed.find("lost-update", message, &ops);
            }
        }
    }

    fn check_order(&self, one: &Operation<'_>, index: u64, floor: Option<Known>, witnessed: &mut Witnessed) {
        if let Some((known, by)) = floor
            && known >= index
        {
            let message =
                format!("{}: {} was made at index {index}, after {known} was known", self.session, one.kind.name());
            witnessed.find("reordered", message, &[by, one.op]);
        }
    }

    /// Something else than the expected label was there, or may have been: a change that nobody saw, if it was not
    /// followed by somebody who met the expected label after all.
    fn check_mismatch(
        &self,
        operations: &[&Operation<'_>],
        one: &Operation<'_>,
        index: u64,
        witnessed: &mut Witnessed,
    ) {
        let (Kind::Cas { revision: expected, .. }, End::Mismatch { at, .. }) = (one.kind, one.end) else { return };
        let before = self.last_before(index);
        if before.map_or(0, |(revision, _)| revision) != expected {
            return;
        }
        let unseen = operations.iter().any(|other| {
            let may_follow = match other.kind {
                Kind::Get => false,
                Kind::Set { .. } => true,
                Kind::Cas { revision, .. } => revision == expected,
            };
            may_follow && other.end == End::Unknown && other.call < at && !self.resolved.contains_key(&other.op)
        });
        let met_later = operations.iter().find(|other| match (other.kind, other.end) {
            (Kind::Get, End::Shown { revision, index: Some(reflected), .. }) => {
                revision == expected && reflected >= index
            }
            (Kind::Cas { revision, .. }, End::Shown { revision: became, .. }) => revision == expected && became > index,
            (Kind::Cas { revision, .. }, End::Unknown) => {
                revision == expected && self.resolved.get(&other.op).is_some_and(|became| *became > index)
            }
            (Kind::Get | Kind::Set { .. } | Kind::Cas { .. }, _) => false,
        });
        if !unseen || met_later.is_some() {
            let message = format!("{}: revision {expected} was said to be another at {index}", self.session);
            let setter = before.iter().map(|(_, change)| change.op);
            let ops: Vec<u64> = setter.chain(met_later.map(|other| other.op)).chain([one.op]).collect();
            witnessed.find("wrong-mismatch", message, &ops);
        }
    }
}
