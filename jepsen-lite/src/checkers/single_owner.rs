//! A bot account has one owner at a time: never do two instances listen to the platform at once, and who has lost the
//! account says nothing more.
//!
//! Judged from what the platform recorded, one change of owner at a time ([`check`]) or a whole run with all that was done
//! in it ([`check_run`]). A process that is stopped leaves its sockets open; only what it says after it wakes counts against it.

use std::fmt;
use std::time::{Duration, Instant};

/// A time in which an instance listened to the platform: a poll, or a connection with a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listened {
    pub who: String,
    pub from: Instant,
    /// Absent: it listens still.
    pub to: Option<Instant>,
}

/// Something that an instance said to the platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub who: String,
    pub what: String,
    pub at: Instant,
}

/// A change of owner, and the time after it in which nothing else was done to the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub old: String,
    /// When something was done to the old one.
    pub fault: Instant,
    /// It was stopped, for some time.
    pub paused: bool,
    pub next: String,
    /// When the next one began to listen.
    pub began: Instant,
    pub until: Instant,
}

/// A time in which an instance's process was stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub who: String,
    pub from: Instant,
}

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anomaly {
    /// Two instances listened at once.
    Overlap { first: String, second: String, lasted: Duration },
    /// The old owner said something after the next one had begun.
    Spoke { who: String, what: String, after: Duration },
    /// Somebody said something while another listened, before and after it.
    Interrupted { who: String, what: String, owner: String, at: Duration },
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { first, second, lasted } => {
                write!(f, "{first} and {second} listened at once for {:.1} ms", lasted.as_secs_f64() * 1000.0)
            }
            Self::Spoke { who, what, after } => {
                write!(f, "{who} said {what} {:.1} ms after the next owner had begun", after.as_secs_f64() * 1000.0)
            }
            Self::Interrupted { who, what, owner, at } => {
                write!(f, "{who} said {what} while {owner} listened, at {:.3} s of the run", at.as_secs_f64())
            }
        }
    }
}

/// Judges one change; what happened outside of its time is not looked at.
pub fn check(change: &Change, listened: &[Listened], words: &[Word]) -> Vec<Anomaly> {
    let mut anomalies = overlaps(change, listened);
    let late = |word: &&Word| word.who == change.old && word.at > change.began && word.at <= change.until;
    anomalies.extend(words.iter().filter(late).map(|word| Anomaly::Spoke {
        who: word.who.clone(),
        what: word.what.clone(),
        after: word.at - change.began,
    }));
    anomalies
}

/// Judges a whole run that began at `begin` and ended at `until`, with processes stopped as `stops` say.
///
/// A new owner may speak before it listens, so a word is wrong only where somebody else listens both before and after it.
pub fn check_run(
    begin: Instant,
    until: Instant,
    listened: &[Listened],
    words: &[Word],
    stops: &[Stop],
) -> Vec<Anomaly> {
    let mut listened = clipped(listened, stops, until);
    listened.sort_by_key(|one| one.from);
    let end = |one: &Listened| one.to.unwrap_or(until);
    let mut found = Vec::new();
    let mut open: Vec<&Listened> = Vec::new();
    for second in &listened {
        open.retain(|first| end(first) > second.from);
        found.extend(open.iter().filter(|first| first.who != second.who).map(|first| Anomaly::Overlap {
            first: first.who.clone(),
            second: second.who.clone(),
            lasted: end(first).min(end(second)) - second.from,
        }));
        open.push(second);
    }
    for word in words.iter().filter(|word| word.at <= until) {
        // All that began before the word, and all after it.
        let (before, after) = listened.split_at(listened.partition_point(|one| one.from <= word.at));
        let Some(owner) = before.last().filter(|owner| owner.who != word.who) else { continue };
        let listens_on = end(owner) > word.at;
        let again = after.iter().find(|one| one.who == word.who || one.who == owner.who);
        if listens_on || again.is_some_and(|one| one.who == owner.who) {
            found.push(Anomaly::Interrupted {
                who: word.who.clone(),
                what: word.what.clone(),
                owner: owner.who.clone(),
                at: word.at.saturating_duration_since(begin),
            });
        }
    }
    found
}

/// How long after `moment` somebody listens: zero if somebody does then, `None` if nobody does until the end.
pub fn unowned(moment: Instant, until: Instant, listened: &[Listened], stops: &[Stop]) -> Option<Duration> {
    // At that moment all processes go on: one that was stopped before, and not for long, has kept its bot and its connection.
    let stops: Vec<Stop> = stops.iter().filter(|stop| stop.from > moment).cloned().collect();
    let listened = clipped(listened, &stops, until);
    let later = listened.iter().filter(|one| one.to.unwrap_or(until) > moment);
    later.map(|one| one.from.saturating_duration_since(moment)).min()
}

/// What a stopped process had open ends, for what it means, when it was stopped.
fn clipped(listened: &[Listened], stops: &[Stop], until: Instant) -> Vec<Listened> {
    let clip = |one: &Listened| {
        let end = one.to.unwrap_or(until);
        let stop = stops.iter().filter(|stop| stop.who == one.who && stop.from >= one.from && stop.from < end);
        let stop = stop.map(|stop| stop.from).min();
        Listened { to: stop.or(one.to), ..one.clone() }
    };
    listened.iter().filter(|one| one.from < until).map(clip).collect()
}

/// From the old owner's end to the next one's beginning, in milliseconds: below zero, both listened. `None`: the old one
/// never listened, or was stopped and could not say when it ended.
pub fn margin_ms(change: &Change, listened: &[Listened]) -> Option<f64> {
    let of_old = listened.iter().filter(|one| one.who == change.old && one.from < change.began);
    let end = of_old.map(|one| one.to.unwrap_or(change.until)).max().filter(|_| !change.paused)?;
    let (after, before) = (change.began.saturating_duration_since(end), end.saturating_duration_since(change.began));
    Some((after.as_secs_f64() - before.as_secs_f64()) * 1000.0)
}

fn overlaps(change: &Change, listened: &[Listened]) -> Vec<Anomaly> {
    let end = |one: &Listened| one.to.unwrap_or(change.until).min(change.until);
    let stopped = |one: &Listened| change.paused && one.who == change.old && one.from <= change.fault;
    let mut within: Vec<&Listened> =
        listened.iter().filter(|one| end(one) > change.fault && one.from < change.until && !stopped(one)).collect();
    within.sort_by_key(|one| one.from);
    let mut found = Vec::new();
    let mut open: Vec<&Listened> = Vec::new();
    for second in within {
        open.retain(|first| end(first) > second.from);
        found.extend(open.iter().filter(|first| first.who != second.who).map(|first| Anomaly::Overlap {
            first: first.who.clone(),
            second: second.who.clone(),
            lasted: end(first).min(end(second)) - second.from.max(change.fault),
        }));
        open.push(second);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In milliseconds: the fault at 100, the next owner at 200, the end at 1000; `a` owns the account before, `b` after.
    struct Record {
        start: Instant,
        change: Change,
    }

    impl Record {
        fn new(paused: bool) -> Self {
            let start = Instant::now();
            let at = |ms| start + Duration::from_millis(ms);
            let (old, next) = ("a".to_owned(), "b".to_owned());
            Self { start, change: Change { old, fault: at(100), paused, next, began: at(200), until: at(1000) } }
        }

        fn listened(&self, times: &[(&str, u64, Option<u64>)]) -> Vec<Listened> {
            let at = |ms| self.start + Duration::from_millis(ms);
            times
                .iter()
                .map(|(who, from, to)| Listened { who: (*who).into(), from: at(*from), to: to.map(at) })
                .collect()
        }

        fn check(&self, times: &[(&str, u64, Option<u64>)], said: &[(&str, u64)]) -> Vec<Anomaly> {
            let word = |(who, ms): &(&str, u64)| Word {
                who: (*who).to_owned(),
                what: "hello".to_owned(),
                at: self.start + Duration::from_millis(*ms),
            };
            let words: Vec<Word> = said.iter().map(word).collect();
            check(&self.change, &self.listened(times), &words)
        }
    }

    fn overlap(first: &str, second: &str, ms: u64) -> Anomaly {
        Anomaly::Overlap { first: first.into(), second: second.into(), lasted: Duration::from_millis(ms) }
    }

    #[test]
    fn one_after_the_other_is_as_it_should_be() {
        let record = Record::new(false);
        let times = [("a", 0, Some(50)), ("a", 60, Some(150)), ("b", 200, Some(300)), ("b", 250, None)];
        assert_eq!(record.check(&times, &[("a", 150), ("b", 200), ("b", 500)]), []);
        assert_eq!(margin_ms(&record.change, &record.listened(&times)), Some(50.0));
    }

    #[test]
    fn two_instances_that_listen_at_once_are_caught() {
        let record = Record::new(false);
        let times = [("a", 0, Some(230)), ("b", 200, None)];
        assert_eq!(record.check(&times, &[]), [overlap("a", "b", 30)]);
        assert_eq!(margin_ms(&record.change, &record.listened(&times)), Some(-30.0));
        // The next owner, and a third one beside it.
        assert_eq!(record.check(&[("b", 200, None), ("c", 300, Some(400))], &[]), [overlap("b", "c", 100)]);
        assert_eq!(record.check(&[("a", 0, None), ("b", 200, None)], &[]), [overlap("a", "b", 800)]);
    }

    #[test]
    fn what_was_before_the_fault_and_after_the_end_belongs_to_other_changes() {
        let record = Record::new(false);
        assert_eq!(
            record.check(&[("c", 0, Some(90)), ("a", 10, Some(150)), ("b", 200, None), ("c", 1100, None)], &[]),
            []
        );
        assert_eq!(record.check(&[], &[("a", 1001)]), []);
    }

    #[test]
    fn an_old_owner_that_speaks_again_is_caught() {
        let spoke = |ms| Anomaly::Spoke { who: "a".into(), what: "hello".into(), after: Duration::from_millis(ms) };
        for paused in [false, true] {
            assert_eq!(Record::new(paused).check(&[], &[("a", 199), ("a", 700), ("b", 800)]), [spoke(500)]);
        }
    }

    fn run(times: &[(&str, u64, Option<u64>)], said: &[(&str, u64)], stops: &[(&str, u64)]) -> Vec<Anomaly> {
        let record = Record::new(false);
        let at = |ms| record.start + Duration::from_millis(ms);
        let words: Vec<Word> =
            said.iter().map(|(who, ms)| Word { who: (*who).into(), what: "hello".into(), at: at(*ms) }).collect();
        let stops: Vec<Stop> = stops.iter().map(|(who, ms)| Stop { who: (*who).into(), from: at(*ms) }).collect();
        check_run(record.start, at(1000), &record.listened(times), &words, &stops)
    }

    fn interrupted(who: &str, owner: &str, ms: u64) -> Anomaly {
        let at = Duration::from_millis(ms);
        Anomaly::Interrupted { who: who.into(), what: "hello".into(), owner: owner.into(), at }
    }

    #[test]
    fn owners_that_follow_each_other_pass_in_a_whole_run() {
        let times = [("a", 0, Some(50)), ("a", 60, Some(150)), ("b", 200, Some(300)), ("a", 400, None)];
        // Whoever has just become the owner may speak before it listens.
        assert_eq!(run(&times, &[("a", 70), ("b", 190), ("b", 250), ("a", 390), ("a", 900)], &[]), []);
    }

    #[test]
    fn planted_two_owners_in_a_whole_run() {
        assert_eq!(run(&[("a", 0, Some(230)), ("b", 200, None)], &[], &[]), [overlap("a", "b", 30)]);
        assert_eq!(run(&[("a", 0, None), ("b", 200, None), ("a", 300, Some(400))], &[], &[]).len(), 2);
    }

    #[test]
    fn planted_an_old_owner_that_speaks_in_a_whole_run() {
        let times = [("a", 0, Some(100)), ("b", 200, Some(300)), ("b", 350, Some(400)), ("a", 500, None)];
        assert_eq!(run(&times, &[("a", 250)], &[]), [interrupted("a", "b", 250)]);
        // Between two polls of the owner, too; after its last it may be the next one.
        assert_eq!(run(&times, &[("a", 320), ("a", 450)], &[]), [interrupted("a", "b", 320)]);
        assert_eq!(run(&times, &[("c", 800)], &[]), [interrupted("c", "a", 800)]);
    }

    #[test]
    fn in_a_whole_run_too_only_what_a_stopped_process_says_counts() {
        let times = [("a", 0, Some(600)), ("b", 200, None)];
        assert_eq!(run(&times, &[], &[("a", 100)]), []);
        assert_eq!(run(&times, &[("a", 590)], &[("a", 100)]), [interrupted("a", "b", 590)]);
        let again = [("a", 0, Some(600)), ("b", 200, None), ("a", 650, Some(700))];
        assert_eq!(run(&again, &[], &[("a", 100)]), [overlap("b", "a", 50)]);
    }

    #[test]
    fn the_time_without_an_owner_is_measured() {
        let record = Record::new(false);
        let at = |ms| record.start + Duration::from_millis(ms);
        let listened = record.listened(&[("a", 0, Some(100)), ("b", 400, Some(500))]);
        let unowned = |ms| unowned(at(ms), at(1000), &listened, &[]).map(|time| time.as_millis());
        assert_eq!([unowned(50), unowned(150), unowned(450), unowned(600)], [Some(0), Some(250), Some(0), None]);
        // Stopped for a moment, it goes on: what counts is whether it is stopped again.
        let stop = |ms| [Stop { who: "b".into(), from: at(ms) }];
        let after =
            |ms, stops: &[Stop]| super::unowned(at(ms), at(1000), &listened, stops).map(|time| time.as_millis());
        assert_eq!(after(450, &stop(420)), Some(0));
    }

    #[test]
    fn an_open_socket_of_a_stopped_process_is_no_listener_and_a_new_one_is() {
        let record = Record::new(true);
        let times = [("a", 0, Some(210)), ("b", 200, None)];
        assert_eq!(record.check(&times, &[]), []);
        assert_eq!(margin_ms(&record.change, &record.listened(&times)), None);
        assert_eq!(record.check(&[("b", 200, None), ("a", 600, Some(650))], &[]), [overlap("b", "a", 50)]);
    }
}
