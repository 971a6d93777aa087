//! The page of a run, for people: one file of HTML with everything in it. It comes from a verdict and a history and goes
//! beside them; it judges nothing itself. The page over several runs needs only their verdicts.
//!
//! A page loads nothing and has no script. What clients, servers and logs said is escaped, cut to a length, and freed of
//! control characters.
//!
//! Reading order: [`data`] (operations, faults and roles, from a history), [`availability`] (how long writes were away),
//! `windows` (quantiles and rates), `thin` (what is a point and what a shade), `axis` (ticks and labels), `plot` and
//! `timeline` (pictures), `tables`, `page`.

pub mod availability;
mod axis;
pub mod data;
mod page;
mod plot;
mod tables;
mod text;
mod thin;
mod timeline;
mod windows;

#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

use crate::history::Event;
use crate::run::verdict::{Outcome, Verdict};

/// The page of one run.
pub fn page(verdict: &Verdict, history: &[Event]) -> String {
    page_with_notes(verdict, history, &[])
}

/// The page of one run, with what its reader has to know about the files that it was made of.
pub fn page_with_notes(verdict: &Verdict, history: &[Event], notes: &[String]) -> String {
    page::run(verdict, history, notes)
}

/// The page over several runs, each with the path from this page's folder to its own.
pub fn summary(runs: &[(String, Verdict)]) -> String {
    summary_with_notes(runs, &[])
}

/// The page over several runs, with what its reader has to know about runs that are not on it.
pub fn summary_with_notes(runs: &[(String, Verdict)], notes: &[String]) -> String {
    page::summary(runs, notes)
}

/// In a word, as pages, tables and programs have it.
pub fn word(outcome: Outcome) -> &'static str {
    page::word(outcome)
}

/// Of several outcomes: failed if one is, else inconclusive if one is. No outcomes prove nothing.
pub fn worst(outcomes: impl Iterator<Item = Outcome>) -> Outcome {
    let rank = |outcome: &Outcome| match outcome {
        Outcome::Passed => 0,
        Outcome::Inconclusive => 1,
        Outcome::Failed => 2,
    };
    outcomes.max_by_key(rank).unwrap_or(Outcome::Inconclusive)
}
