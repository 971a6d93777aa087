//! Deliberate faults, one at a time, so that the harness can be shown to find each of them.
//!
//! A build with the feature `planted-bugs` reads [`VARIABLE`] once and breaks what the bug of that name breaks. Any other
//! build has no bug and does not look: [`planted`] is a constant there, and what it guards is compiled away. The code asks
//! where a guarantee is kept, and nowhere else.

/// The environment variable that names the bug; without it, or empty, there is none.
pub const VARIABLE: &str = "OPENCLAW_PLANTED_BUG";

/// The environment variable that makes such a build the release after this one, for tests of updates: it reads one format more,
/// and counts appended entries once that is active.
pub const NEXT_FORMAT_VARIABLE: &str = "OPENCLAW_NEXT_FORMAT";

/// A guarantee that can be broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The log is acknowledged without a sync: a power cut loses it, a kill does not.
    AckBeforeFsync,
    /// A leader answers for what its own log has, when no quorum confirms it in time.
    AckBeforeCommit,
    /// A linearizable read is answered from this instance's own state, without asking the leader.
    StaleRead,
    /// The leader ends the epoch of a silent instance long before its owner must have stopped.
    EarlyLease,
    /// An owner goes on long after its last renewal.
    OutlivedLease,
    /// A runner goes on after its turn was given to another, and writes with an old fencing token are accepted.
    StaleToken,
    /// A restart forgets the idempotency keys.
    ForgottenKeys,
    /// A snapshot lacks the newest entry of the last session.
    ShortSnapshot,
    /// A session begins a turn while another one runs.
    TwoTurns,
    /// A stream says `done` before the reply is committed.
    EarlyDone,
    /// A stream goes on with another attempt's text and does not say `restart`.
    SilentRestart,
    /// The sequence number that an append expects is not compared.
    IgnoredCondition,
    /// An instance whose directory has an odd last letter drops rows while it applies.
    DivergingApply,
    /// A stream that is continued on another instance lacks a delta.
    SkippedDelta,
    /// An instance without a quorum lets requests wait instead of refusing them.
    HangingMinority,
    /// Telegram is told that messages have arrived before they are committed.
    EarlyOffset,
    /// A message that may have been sent is sent again although the account holds such messages.
    RepeatedSend,
    /// A database that lost acknowledged records is opened as if it had not.
    AcceptedTail,
}

impl Bug {
    pub const ALL: [Self; 18] = [
        Self::AckBeforeFsync,
        Self::AckBeforeCommit,
        Self::StaleRead,
        Self::EarlyLease,
        Self::OutlivedLease,
        Self::StaleToken,
        Self::ForgottenKeys,
        Self::ShortSnapshot,
        Self::TwoTurns,
        Self::EarlyDone,
        Self::SilentRestart,
        Self::IgnoredCondition,
        Self::DivergingApply,
        Self::SkippedDelta,
        Self::HangingMinority,
        Self::EarlyOffset,
        Self::RepeatedSend,
        Self::AcceptedTail,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::AckBeforeFsync => "ack-before-fsync",
            Self::AckBeforeCommit => "ack-before-commit",
            Self::StaleRead => "stale-read",
            Self::EarlyLease => "early-lease",
            Self::OutlivedLease => "outlived-lease",
            Self::StaleToken => "stale-token",
            Self::ForgottenKeys => "forgotten-keys",
            Self::ShortSnapshot => "short-snapshot",
            Self::TwoTurns => "two-turns",
            Self::EarlyDone => "early-done",
            Self::SilentRestart => "silent-restart",
            Self::IgnoredCondition => "ignored-condition",
            Self::DivergingApply => "diverging-apply",
            Self::SkippedDelta => "skipped-delta",
            Self::HangingMinority => "hanging-minority",
            Self::EarlyOffset => "early-offset",
            Self::RepeatedSend => "repeated-send",
            Self::AcceptedTail => "accepted-tail",
        }
    }

    /// # Errors
    /// [`UnknownBug`] for a name that none has.
    pub fn parse(name: &str) -> Result<Self, UnknownBug> {
        Self::ALL.into_iter().find(|bug| bug.name() == name).ok_or_else(|| UnknownBug(name.to_owned()))
    }
}

/// [`VARIABLE`] names no bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE}: there is no bug {0:?}; there are {names}", names = Bug::ALL.map(Bug::name).join(", "))]
pub struct UnknownBug(String);

#[cfg(feature = "planted-bugs")]
mod chosen {
    use std::sync::OnceLock;

    use super::{Bug, UnknownBug, VARIABLE};

    static CHOSEN: OnceLock<Result<Option<Bug>, UnknownBug>> = OnceLock::new();

    fn chosen() -> &'static Result<Option<Bug>, UnknownBug> {
        CHOSEN.get_or_init(|| {
            let name = std::env::var_os(VARIABLE).unwrap_or_default();
            if name.is_empty() { Ok(None) } else { Bug::parse(&name.to_string_lossy()).map(Some) }
        })
    }

    /// Whether this process has `bug`.
    pub fn planted(bug: Bug) -> bool {
        *chosen() == Ok(Some(bug))
    }

    /// Whether this process is of the release after this one, as far as formats go: [`super::NEXT_FORMAT_VARIABLE`] is set.
    pub fn next_format() -> bool {
        static CHOSEN: OnceLock<bool> = OnceLock::new();
        *CHOSEN.get_or_init(|| std::env::var_os(super::NEXT_FORMAT_VARIABLE).is_some_and(|value| !value.is_empty()))
    }

    /// Says in the log which bug this process has.
    ///
    /// # Errors
    /// [`UnknownBug`]: the process must not start, since nobody would know what it shows.
    pub fn announce() -> Result<(), UnknownBug> {
        match chosen().clone()? {
            Some(bug) => tracing::warn!(bug = bug.name(), "A BUG IS PLANTED: this process breaks a promise on purpose"),
            None => tracing::warn!("this build can have planted bugs: it is for tests alone"),
        }
        Ok(())
    }
}

#[cfg(not(feature = "planted-bugs"))]
mod chosen {
    use super::{Bug, UnknownBug};

    /// Whether this process has `bug`: never, in this build.
    pub const fn planted(_: Bug) -> bool {
        false
    }

    /// Whether this process is of the release after this one: never, in this build.
    pub const fn next_format() -> bool {
        false
    }

    /// Nothing to say in this build.
    ///
    /// # Errors
    /// None.
    pub const fn announce() -> Result<(), UnknownBug> {
        Ok(())
    }
}

pub use chosen::{announce, next_format, planted};

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Runs a test in a process of its own that has `bug`: what is planted holds for a whole process.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn alone<T: FnOnce()>(bug: Bug, test: T) {
        if std::env::var_os(VARIABLE).is_some() {
            return test();
        }
        let path = std::any::type_name::<T>().trim_end_matches("::{{closure}}");
        let (_, name) = path.split_once("::").unwrap();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(VARIABLE, bug.name())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{name} with {}: {said}", bug.name());
    }

    #[cfg(not(feature = "planted-bugs"))]
    #[test]
    fn a_build_without_the_feature_has_no_bugs() {
        // Known at compile time, so that nothing of a bug is in the program.
        const { assert!(!planted(Bug::AckBeforeFsync)) };
        assert!(Bug::ALL.into_iter().all(|bug| !planted(bug)));
        assert_eq!(announce(), Ok(()));
    }

    #[cfg(feature = "planted-bugs")]
    #[test]
    fn a_process_has_the_bug_that_is_named_and_no_other() {
        alone(Bug::TwoTurns, || {
            let found: Vec<Bug> = Bug::ALL.into_iter().filter(|bug| planted(*bug)).collect();
            assert_eq!(found, [Bug::TwoTurns]);
            assert_eq!(announce(), Ok(()));
        });
    }

    #[test]
    fn every_bug_has_a_name_of_its_own() {
        assert_eq!(Bug::ALL.map(Bug::name).into_iter().collect::<BTreeSet<_>>().len(), Bug::ALL.len());
        for bug in Bug::ALL {
            assert_eq!(Bug::parse(bug.name()), Ok(bug));
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_a_list_of_those_there_are() {
        let error = Bug::parse("stale-reads").unwrap_err().to_string();
        assert!(error.contains("\"stale-reads\"") && error.contains("stale-read, early-lease"), "{error}");
    }
}
