//! Sessions are lists: every acknowledged append is in its session once, where its answer said, and nothing else is.
//!
//! Texts are unique in a run, so an entry names the operation that wrote it and one pass over both sides is enough.
//! What is checked, per session:
//! - sequence numbers are 1, 2, 3 ... without a gap;
//! - an acknowledged append is present exactly once, at the sequence number and with the id that its answer named;
//! - an append of unknown outcome is present at most once; one that certainly failed is absent; an entry that nobody
//!   wrote is absent;
//! - real time: an append that was acknowledged before another was sent stands before it (which includes every
//!   client's own order). So does one of unknown outcome that is there: it had its effect at some time after it was sent;
//! - a repeated idempotency key got the first answer;
//! - a read shows the entries as they stand in the end, all that were acknowledged or seen by another read before it
//!   began, and none that was sent after it ended; and its page has every entry from where it begins to the head that it
//!   names, as far as a page goes. With the above that is linearizability: there is only one order in
//!   which entries can have come.
//!
//! Of a session that nobody could read in the end, what is known of its entries is what clients were told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use openclaw_proto::http::{AppendResponse, Entry};
use serde::Serialize;

use super::{Check, Found};
use crate::history::{Answer, Call, Event, What};

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "anomaly", rename_all = "kebab-case")]
pub enum Anomaly {
    /// Acknowledged, and not there.
    Lost { session: String, text: String, seq: u64 },
    /// There more than once.
    Doubled { session: String, text: String, seqs: Vec<u64> },
    /// There, but not where or as what the answer said.
    Moved { session: String, text: String, acknowledged: (u64, String), found: (u64, String) },
    /// Acknowledged before the other was sent, and behind it.
    Reordered { session: String, earlier: (String, u64), later: (String, u64) },
    /// The sequence number that should be at this place is another.
    Gap { session: String, expected: u64, found: u64 },
    /// There although it certainly failed.
    Refused { session: String, text: String, seq: u64 },
    /// There although nobody wrote it to this session.
    Invented { session: String, text: String, seq: u64 },
    /// A repeated key got another answer than the first.
    AnswerChanged { session: String, key: String, first: (u64, String), then: (u64, String) },
    /// A read showed less than was acknowledged, or read, before it began.
    Stale { op: u64, session: String, instance: usize, head: u64, expected: u64 },
    /// A read showed an entry that was sent only after it ended.
    Early { op: u64, session: String, instance: usize, seq: u64 },
    /// A read showed something else than what stands there.
    Misread { op: u64, session: String, instance: usize, seq: u64, text: String },
    /// A read's page does not have the entries that stand between where it begins and the head that it names.
    Short { op: u64, session: String, instance: usize, expected: (u64, u64), found: Vec<u64> },
    /// In the end an instance does not show the session, or not up to the head that it names.
    Unreadable { session: String, instance: String, why: String },
    /// Two instances show different transcripts.
    Diverged { session: String, instance: String, difference: String },
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { session, text, seq } => write!(f, "{session}: {text:?} was acknowledged as {seq} and is lost"),
            Self::Doubled { session, text, seqs } => write!(f, "{session}: {text:?} is there as {seqs:?}"),
            Self::Moved { session, text, acknowledged, found } => {
                write!(f, "{session}: {text:?} was acknowledged as {acknowledged:?} and is {found:?}")
            }
            Self::Reordered { session, earlier, later } => {
                write!(f, "{session}: {earlier:?} was acknowledged before {later:?} was sent, and stands behind it")
            }
            Self::Gap { session, expected, found } => write!(f, "{session}: {found} stands where {expected} should"),
            Self::Refused { session, text, seq } => {
                write!(f, "{session}: {text:?} certainly failed and is there as {seq}")
            }
            Self::Invented { session, text, seq } => {
                write!(f, "{session}: nobody wrote {text:?}, which is there as {seq}")
            }
            Self::AnswerChanged { session, key, first, then } => {
                write!(f, "{session}: key {key} was answered with {first:?}, then with {then:?}")
            }
            Self::Stale { op, session, instance, head, expected } => {
                write!(f, "{session}: read {op} of instance {instance} ended at {head}, though {expected} was there")
            }
            Self::Early { op, session, instance, seq } => {
                write!(f, "{session}: read {op} of instance {instance} showed {seq}, which was sent after it ended")
            }
            Self::Misread { op, session, instance, seq, text } => {
                write!(f, "{session}: read {op} of instance {instance} showed {text:?} as {seq}, which is another")
            }
            Self::Short { op, session, instance, expected: (from, to), found } => {
                write!(f, "{session}: read {op} of instance {instance} should have {from} to {to} and has {found:?}")
            }
            Self::Unreadable { session, instance, why } => write!(f, "{session} cannot be read from {instance}: {why}"),
            Self::Diverged { session, instance, difference } => write!(f, "{session} on {instance}: {difference}"),
        }
    }
}

/// What was checked and what was found.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub sessions: usize,
    pub entries: usize,
    pub acknowledged: u64,
    pub failed: u64,
    pub unknown: u64,
    /// Unknown ones that turned out to be there.
    pub unknown_present: u64,
    pub repeats: u64,
    /// Reads that were answered.
    pub reads: u64,
    pub anomalies: Vec<Anomaly>,
}

impl Verdict {
    /// How many anomalies are of the kind that `is` accepts.
    pub fn count(&self, is: impl Fn(&Anomaly) -> bool) -> usize {
        self.anomalies.iter().filter(|anomaly| is(anomaly)).count()
    }
}

struct Operation<'a> {
    session: &'a str,
    text: &'a str,
    key: &'a str,
    invoked_us: u64,
    end: End<'a>,
}

enum End<'a> {
    Ok { at_us: u64, answer: &'a AppendResponse },
    Failed,
    Unknown,
}

/// Judges `history` against `transcripts`, the final contents of every session.
pub fn check(history: &[Event], transcripts: &BTreeMap<String, Vec<Entry>>) -> Verdict {
    check_some(history, transcripts, &BTreeSet::new())
}

/// The same, when nobody could read the sessions named `unread`; any other that is not among the transcripts is empty.
pub fn check_some(history: &[Event], transcripts: &BTreeMap<String, Vec<Entry>>, unread: &BTreeSet<String>) -> Verdict {
    let mut verdict = Verdict { sessions: transcripts.len(), ..Verdict::default() };
    let (operations, repeats) = operations(history);
    let mut by_session: BTreeMap<&str, HashMap<&str, &Operation>> = BTreeMap::new();
    for operation in &operations {
        by_session.entry(operation.session).or_default().insert(operation.text, operation);
        match operation.end {
            End::Ok { .. } => verdict.acknowledged += 1,
            End::Failed => verdict.failed += 1,
            End::Unknown => verdict.unknown += 1,
        }
    }
    let unwritten = HashMap::new();
    for (session, entries) in transcripts {
        verdict.entries += entries.len();
        let written = by_session.get(session.as_str()).unwrap_or(&unwritten);
        check_session(session, written, entries, &mut verdict);
    }
    for (session, written) in &by_session {
        let entries = transcripts.get(*session).map_or(&[][..], Vec::as_slice);
        if !transcripts.contains_key(*session) && !unread.contains(*session) {
            check_session(session, written, &[], &mut verdict);
        }
        check_real_time(session, written, entries, &mut verdict);
    }
    check_reads(&reads(history), &by_session, transcripts, unread, &mut verdict);
    let first: HashMap<&str, &AppendResponse> = operations
        .iter()
        .filter_map(|operation| match operation.end {
            End::Ok { answer, .. } => Some((operation.key, answer)),
            End::Failed | End::Unknown => None,
        })
        .collect();
    for repeat in &repeats {
        if let (End::Ok { answer, .. }, Some(first)) = (&repeat.end, first.get(repeat.key)) {
            verdict.repeats += 1;
            if answer != first {
                verdict.anomalies.push(Anomaly::AnswerChanged {
                    session: repeat.session.to_owned(),
                    key: repeat.key.to_owned(),
                    first: pair(first),
                    then: pair(answer),
                });
            }
        }
    }
    verdict
}

/// A verdict as a check, in which each anomaly names the operations that it is about.
pub fn named(verdict: Verdict, history: &[Event]) -> Check {
    let mut of_text: HashMap<(&str, &str), u64> = HashMap::new();
    let mut of_key: HashMap<&str, Vec<u64>> = HashMap::new();
    for event in history {
        if let What::Invoke { op, call, .. } = &event.what {
            match call {
                Call::Append { session, text, key } => {
                    of_text.insert((session, text), *op);
                    of_key.entry(key).or_default().push(*op);
                }
                Call::Repeat { key, .. } => of_key.entry(key).or_default().push(*op),
                Call::Read { .. }
                | Call::Turn { .. }
                | Call::Probe { .. }
                | Call::Say { .. }
                | Call::Get { .. }
                | Call::Set { .. }
                | Call::Cas { .. } => {}
            }
        }
    }
    let writes = |session: &str, texts: &[&str]| -> Vec<u64> {
        texts.iter().filter_map(|text| of_text.get(&(session, *text)).copied()).collect()
    };
    let ops = |anomaly: &Anomaly| match anomaly {
        Anomaly::Lost { session, text, .. }
        | Anomaly::Doubled { session, text, .. }
        | Anomaly::Moved { session, text, .. }
        | Anomaly::Refused { session, text, .. }
        | Anomaly::Invented { session, text, .. } => writes(session, &[text]),
        Anomaly::Reordered { session, earlier, later } => writes(session, &[&earlier.0, &later.0]),
        Anomaly::AnswerChanged { key, .. } => of_key.get(key.as_str()).cloned().unwrap_or_default(),
        Anomaly::Stale { op, .. }
        | Anomaly::Early { op, .. }
        | Anomaly::Misread { op, .. }
        | Anomaly::Short { op, .. } => vec![*op],
        Anomaly::Gap { .. } | Anomaly::Unreadable { .. } | Anomaly::Diverged { .. } => Vec::new(),
    };
    let kind = |anomaly: &Anomaly| serde_json::to_value(anomaly).ok()?["anomaly"].as_str().map(str::to_owned);
    let found = verdict
        .anomalies
        .iter()
        .map(|anomaly| Found {
            anomaly: kind(anomaly).unwrap_or_default(),
            message: anomaly.to_string(),
            ops: ops(anomaly),
        })
        .collect();
    let mut figures = serde_json::json!(Verdict { anomalies: Vec::new(), ..verdict });
    if let Some(figures) = figures.as_object_mut() {
        figures.remove("anomalies");
    }
    Check { checker: "append".to_owned(), decided: true, figures, found }
}

/// Compares what one instance shows with what another showed.
pub fn compare(instance: &str, session: &str, expected: &[Entry], found: &[Entry]) -> Option<Anomaly> {
    let difference = if expected.len() != found.len() {
        format!("{} entries, elsewhere {}", found.len(), expected.len())
    } else {
        let (expected, found) = expected.iter().zip(found).find(|(expected, found)| expected != found)?;
        format!("{found:?}, elsewhere {expected:?}")
    };
    Some(Anomaly::Diverged { session: session.to_owned(), instance: instance.to_owned(), difference })
}

fn operations(history: &[Event]) -> (Vec<Operation<'_>>, Vec<Operation<'_>>) {
    let mut at: HashMap<u64, (bool, usize)> = HashMap::new();
    let (mut appends, mut repeats) = (Vec::new(), Vec::new());
    for event in history {
        match &event.what {
            What::Invoke { op, call, .. } => {
                let (repeat, session, text, key) = match call {
                    Call::Append { session, text, key } => (false, session, text, key),
                    Call::Repeat { session, text, key } => (true, session, text, key),
                    Call::Read { .. }
                    | Call::Turn { .. }
                    | Call::Probe { .. }
                    | Call::Say { .. }
                    | Call::Get { .. }
                    | Call::Set { .. }
                    | Call::Cas { .. } => continue,
                };
                let list = if repeat { &mut repeats } else { &mut appends };
                at.insert(*op, (repeat, list.len()));
                list.push(Operation { session, text, key, invoked_us: event.at_us, end: End::Unknown });
            }
            What::Ok { op, answer: Answer::Appended(answer), .. } => {
                end(&mut appends, &mut repeats, at.get(op), End::Ok { at_us: event.at_us, answer });
            }
            What::Fail { op, .. } => end(&mut appends, &mut repeats, at.get(op), End::Failed),
            What::Ok {
                answer:
                    Answer::Read { .. }
                    | Answer::Replied { .. }
                    | Answer::Ended { .. }
                    | Answer::Answered
                    | Answer::Register { .. }
                    | Answer::Mismatch { .. },
                ..
            }
            | What::Info { .. }
            | What::Fault { .. }
            | What::Leader { .. }
            | What::Owner { .. } => {}
        }
    }
    (appends, repeats)
}

fn end<'a>(appends: &mut [Operation<'a>], repeats: &mut [Operation<'a>], at: Option<&(bool, usize)>, end: End<'a>) {
    if let Some(&(repeat, index)) = at {
        let list = if repeat { repeats } else { appends };
        list[index].end = end;
    }
}

fn check_session(session: &str, written: &HashMap<&str, &Operation>, entries: &[Entry], verdict: &mut Verdict) {
    let mut found: HashMap<&str, Vec<&Entry>> = HashMap::new();
    let mut last = 0;
    for entry in entries {
        let expected = last + 1;
        last = entry.seq;
        if entry.seq != expected {
            verdict.anomalies.push(Anomaly::Gap { session: session.to_owned(), expected, found: entry.seq });
        }
        found.entry(&entry.text).or_default().push(entry);
        if !written.contains_key(entry.text.as_str()) {
            verdict.anomalies.push(Anomaly::Invented {
                session: session.to_owned(),
                text: entry.text.clone(),
                seq: entry.seq,
            });
        }
    }
    let mut anomalies = Vec::new();
    for (text, operation) in written {
        let (session, text) = (session.to_owned(), (*text).to_owned());
        let places = found.get(text.as_str()).map_or(&[][..], Vec::as_slice);
        if places.len() > 1 {
            let seqs = places.iter().map(|entry| entry.seq).collect();
            anomalies.push(Anomaly::Doubled { session: session.clone(), text: text.clone(), seqs });
        }
        match (&operation.end, places.first()) {
            (End::Ok { answer, .. }, None) => anomalies.push(Anomaly::Lost { session, text, seq: answer.seq }),
            (End::Ok { answer, .. }, Some(entry)) => {
                if !places.iter().any(|entry| (entry.seq, &entry.id) == (answer.seq, &answer.id)) {
                    let found = (entry.seq, entry.id.clone());
                    anomalies.push(Anomaly::Moved { session, text, acknowledged: pair(answer), found });
                }
            }
            (End::Failed, Some(entry)) => anomalies.push(Anomaly::Refused { session, text, seq: entry.seq }),
            (End::Unknown, Some(_)) => verdict.unknown_present += 1,
            (End::Failed | End::Unknown, None) => {}
        }
    }
    // A hash map's order is nobody's; a report should be the same each time.
    anomalies.sort_by_cached_key(ToString::to_string);
    verdict.anomalies.append(&mut anomalies);
}

/// Walks sends and acknowledgements in time order: what is sent must get a larger number than all acknowledged before.
/// One of unknown outcome is never known to have been there before anything, and all the same must not stand before what was
/// acknowledged before it was sent.
fn check_real_time(session: &str, written: &HashMap<&str, &Operation>, entries: &[Entry], verdict: &mut Verdict) {
    let mut sent = Vec::new();
    let mut acknowledged = Vec::new();
    for operation in written.values() {
        if let End::Ok { at_us, answer } = &operation.end {
            sent.push((operation.invoked_us, answer.seq, operation.text));
            acknowledged.push((*at_us, answer.seq, operation.text));
        }
    }
    let unknown = |entry: &&Entry| {
        written.get(entry.text.as_str()).filter(|operation| matches!(operation.end, End::Unknown)).copied()
    };
    sent.extend(entries.iter().filter_map(|entry| {
        let operation = unknown(&entry)?;
        Some((operation.invoked_us, entry.seq, operation.text))
    }));
    sent.sort_unstable();
    acknowledged.sort_unstable();
    let mut acknowledged = acknowledged.into_iter().peekable();
    let mut newest: Option<(u64, &str)> = None;
    for (invoked_us, seq, text) in sent {
        while let Some((_, seq, text)) = acknowledged.next_if(|(at_us, ..)| *at_us < invoked_us) {
            newest = newest.max(Some((seq, text)));
        }
        if let Some((newest_seq, newest_text)) = newest
            && newest_seq > seq
        {
            verdict.anomalies.push(Anomaly::Reordered {
                session: session.to_owned(),
                earlier: (newest_text.to_owned(), newest_seq),
                later: (text.to_owned(), seq),
            });
        }
    }
}

/// A read that was answered.
struct Read<'a> {
    op: u64,
    session: &'a str,
    instance: usize,
    invoked_us: u64,
    at_us: u64,
    /// Where its page begins, and how long it may be.
    after: u64,
    limit: u64,
    head: u64,
    tail: &'a [(u64, String)],
}

impl Read<'_> {
    /// The page has what stands after `after`, up to the head that it names, at most `limit`. The server reads the head first and
    /// then, at least as new, the entries; what came in between makes both larger.
    fn short(&self) -> Option<Anomaly> {
        let expected = (self.after + 1, self.head.min(self.after.saturating_add(self.limit)));
        let found = self.tail.iter().map(|(seq, _)| *seq);
        if found.clone().eq(expected.0..=expected.1) {
            return None;
        }
        let (op, session, instance) = (self.op, self.session.to_owned(), self.instance);
        Some(Anomaly::Short { op, session, instance, expected, found: found.collect() })
    }
}

fn reads(history: &[Event]) -> Vec<Read<'_>> {
    let mut open: HashMap<u64, Read> = HashMap::new();
    let mut reads = Vec::new();
    for event in history {
        match &event.what {
            What::Invoke { op, call: Call::Read { session, instance, after, limit }, .. } => {
                let (op, instance, invoked_us, after, limit) = (*op, *instance, event.at_us, *after, *limit);
                open.insert(op, Read { op, session, instance, invoked_us, at_us: 0, after, limit, head: 0, tail: &[] });
            }
            What::Ok { op, answer: Answer::Read { head, tail }, .. } => {
                if let Some(read) = open.remove(op) {
                    reads.push(Read { at_us: event.at_us, head: *head, tail, ..read });
                }
            }
            What::Invoke { .. }
            | What::Ok { .. }
            | What::Fail { .. }
            | What::Info { .. }
            | What::Fault { .. }
            | What::Leader { .. }
            | What::Owner { .. } => {}
        }
    }
    reads
}

fn check_reads(
    reads: &[Read],
    by_session: &BTreeMap<&str, HashMap<&str, &Operation>>,
    transcripts: &BTreeMap<String, Vec<Entry>>,
    unread: &BTreeSet<String>,
    verdict: &mut Verdict,
) {
    verdict.reads += reads.len() as u64;
    let mut of_session: BTreeMap<&str, Vec<&Read>> = BTreeMap::new();
    for read in reads {
        of_session.entry(read.session).or_default().push(read);
    }
    let (no_writes, no_entries) = (HashMap::new(), Vec::new());
    for (session, mut reads) in of_session {
        let written = by_session.get(session).unwrap_or(&no_writes);
        reads.sort_by_key(|read| read.invoked_us);
        let entries: HashMap<u64, &str> = match unread.contains(session) {
            true => told(written, &reads),
            false => transcripts
                .get(session)
                .unwrap_or(&no_entries)
                .iter()
                .map(|entry| (entry.seq, entry.text.as_str()))
                .collect(),
        };
        // What is known to be there, and since when: by acknowledgements, and by reads.
        let mut known: Vec<(u64, u64)> = written
            .values()
            .filter_map(|operation| match &operation.end {
                End::Ok { at_us, answer } => Some((*at_us, answer.seq)),
                End::Failed | End::Unknown => None,
            })
            .chain(reads.iter().map(|read| (read.at_us, read.head)))
            .collect();
        known.sort_unstable();
        let (mut known, mut expected) = (known.into_iter().peekable(), 0);
        for read in reads {
            while let Some((_, seq)) = known.next_if(|(at_us, _)| *at_us < read.invoked_us) {
                expected = expected.max(seq);
            }
            let (op, session, instance) = (read.op, session.to_owned(), read.instance);
            if read.head < expected {
                let (head, session) = (read.head, session.clone());
                verdict.anomalies.push(Anomaly::Stale { op, session, instance, head, expected });
            }
            verdict.anomalies.extend(read.short());
            let sent_later = |text: &str| written.get(text).is_some_and(|write| write.invoked_us > read.at_us);
            let last = entries.get(&read.head).copied().map(|text| (read.head, text));
            let shown = read.tail.iter().map(|(seq, text)| (*seq, text.as_str()));
            for (seq, text) in shown.clone() {
                if entries.get(&seq) != Some(&text) {
                    let (session, text) = (session.clone(), text.to_owned());
                    verdict.anomalies.push(Anomaly::Misread { op, session, instance, seq, text });
                }
            }
            if let Some((seq, _)) = shown.chain(last).find(|(_, text)| sent_later(text)) {
                verdict.anomalies.push(Anomaly::Early { op, session, instance, seq });
            }
        }
    }
}

/// What stands where, by what clients were told: by acknowledgements, and otherwise by the first read that showed it.
fn told<'a>(written: &HashMap<&'a str, &Operation<'a>>, reads: &[&Read<'a>]) -> HashMap<u64, &'a str> {
    let mut told = HashMap::new();
    for read in reads {
        for (seq, text) in read.tail {
            told.entry(*seq).or_insert(text.as_str());
        }
    }
    told.extend(written.values().filter_map(|operation| match &operation.end {
        End::Ok { answer, .. } => Some((answer.seq, operation.text)),
        End::Failed | End::Unknown => None,
    }));
    told
}

fn pair(answer: &AppendResponse) -> (u64, String) {
    (answer.seq, answer.id.clone())
}

#[cfg(test)]
mod tests {
    use openclaw_proto::http::Role;

    use super::*;

    fn entry(seq: u64, text: &str) -> Entry {
        Entry {
            seq,
            id: format!("id-{seq}"),
            role: Role::User,
            text: text.into(),
            created_ms: 0,
            turn_id: None,
            model: None,
            usage: None,
        }
    }

    fn event(at_us: u64, what: What) -> Event {
        Event { at_us, what }
    }

    fn invoke(at_us: u64, op: u64, text: &str) -> Event {
        let call = Call::Append { session: "s".into(), text: text.into(), key: text.into() };
        event(at_us, What::Invoke { op, process: 0, call })
    }

    fn ok(at_us: u64, op: u64, seq: u64) -> Event {
        event(
            at_us,
            What::Ok { op, attempts: 1, answer: Answer::Appended(AppendResponse { seq, id: format!("id-{seq}") }) },
        )
    }

    /// a, b and c one after the other, all acknowledged.
    fn three() -> (Vec<Event>, Vec<Entry>) {
        (
            vec![invoke(0, 0, "a"), ok(1, 0, 1), invoke(2, 1, "b"), ok(3, 1, 2), invoke(4, 2, "c"), ok(5, 2, 3)],
            vec![entry(1, "a"), entry(2, "b"), entry(3, "c")],
        )
    }

    fn judge(history: &[Event], entries: Vec<Entry>) -> Vec<Anomaly> {
        check(history, &BTreeMap::from([("s".to_owned(), entries)])).anomalies
    }

    #[test]
    fn a_correct_run_passes() {
        let (history, entries) = three();
        let verdict = check(&history, &BTreeMap::from([("s".to_owned(), entries)]));
        assert_eq!(verdict.anomalies, []);
        assert_eq!((verdict.acknowledged, verdict.entries, verdict.sessions), (3, 3, 1));
    }

    #[test]
    fn planted_a_dropped_append() {
        let (history, mut entries) = three();
        entries.pop();
        assert_eq!(judge(&history, entries), [Anomaly::Lost { session: "s".into(), text: "c".into(), seq: 3 }]);
        // A whole session that is gone is no excuse.
        let verdict = check(&history, &BTreeMap::new());
        assert_eq!(verdict.count(|anomaly| matches!(anomaly, Anomaly::Lost { .. })), 3);
    }

    #[test]
    fn planted_a_dropped_append_in_the_middle() {
        let (history, mut entries) = three();
        entries.remove(1);
        let anomalies = judge(&history, entries);
        assert!(anomalies.contains(&Anomaly::Gap { session: "s".into(), expected: 2, found: 3 }), "{anomalies:?}");
        assert!(anomalies.contains(&Anomaly::Lost { session: "s".into(), text: "b".into(), seq: 2 }), "{anomalies:?}");
    }

    #[test]
    fn planted_a_doubled_append() {
        let (history, mut entries) = three();
        entries.push(entry(4, "b"));
        assert_eq!(
            judge(&history, entries),
            [Anomaly::Doubled { session: "s".into(), text: "b".into(), seqs: vec![2, 4] }]
        );
    }

    #[test]
    fn planted_entries_in_another_order_than_acknowledged() {
        let (history, _) = three();
        let entries = vec![entry(1, "b"), entry(2, "a"), entry(3, "c")];
        let anomalies = judge(&history, entries);
        assert_eq!(anomalies.len(), 2, "{anomalies:?}");
        assert!(anomalies.iter().all(|anomaly| matches!(anomaly, Anomaly::Moved { .. })));
    }

    #[test]
    fn planted_a_later_append_that_was_given_an_earlier_place() {
        let history = [invoke(0, 0, "a"), ok(1, 0, 2), invoke(2, 1, "b"), ok(3, 1, 1)];
        assert_eq!(
            judge(&history, vec![entry(1, "b"), entry(2, "a")]),
            [Anomaly::Reordered { session: "s".into(), earlier: ("a".into(), 2), later: ("b".into(), 1) }]
        );
        // Where they overlap in time, either order is right.
        let history = [invoke(0, 0, "a"), invoke(1, 1, "b"), ok(2, 0, 2), ok(3, 1, 1)];
        assert_eq!(judge(&history, vec![entry(1, "b"), entry(2, "a")]), []);
    }

    #[test]
    fn planted_an_entry_that_nobody_wrote() {
        let (history, mut entries) = three();
        entries.push(entry(4, "d"));
        assert_eq!(judge(&history, entries), [Anomaly::Invented { session: "s".into(), text: "d".into(), seq: 4 }]);
    }

    #[test]
    fn planted_an_effect_of_a_refused_append() {
        let failed = event(1, What::Fail { op: 0, attempts: 1, message: String::new() });
        assert_eq!(
            judge(&[invoke(0, 0, "a"), failed], vec![entry(1, "a")]),
            [Anomaly::Refused { session: "s".into(), text: "a".into(), seq: 1 }]
        );
    }

    #[test]
    fn an_unknown_append_may_be_there_or_not_but_not_twice() {
        let info = event(1, What::Info { op: 0, attempts: 1, message: String::new() });
        for end in [Some(info), None] {
            let history: Vec<_> = std::iter::once(invoke(0, 0, "a")).chain(end).collect();
            assert_eq!(judge(&history, vec![]), []);
            assert_eq!(judge(&history, vec![entry(1, "a")]), []);
            assert_eq!(judge(&history, vec![entry(1, "a"), entry(2, "a")]).len(), 1);
        }
    }

    #[test]
    fn planted_a_changed_answer_to_a_repeated_key() {
        let (mut history, mut entries) = three();
        let call = Call::Repeat { session: "s".into(), text: "a".into(), key: "a".into() };
        history.push(event(6, What::Invoke { op: 3, process: 0, call }));
        history.push(ok(7, 3, 1));
        assert_eq!(judge(&history, entries.clone()), []);
        history.pop();
        history.push(ok(7, 3, 4));
        entries.push(entry(4, "a"));
        let anomalies = judge(&history, entries);
        assert!(anomalies.iter().any(|anomaly| matches!(anomaly, Anomaly::AnswerChanged { .. })), "{anomalies:?}");
        assert!(anomalies.iter().any(|anomaly| matches!(anomaly, Anomaly::Doubled { .. })), "{anomalies:?}");
    }

    /// Of what stands after the entry before the first one that it shows.
    fn read(at_us: u64, op: u64, head: u64, tail: &[(u64, &str)]) -> [Event; 2] {
        read_after(at_us, op, tail.first().map_or(head, |(seq, _)| seq - 1), head, tail)
    }

    fn read_after(at_us: u64, op: u64, after: u64, head: u64, tail: &[(u64, &str)]) -> [Event; 2] {
        let tail = tail.iter().map(|(seq, text)| (*seq, (*text).to_owned())).collect();
        let call = Call::Read { session: "s".into(), instance: 1, after, limit: 2 };
        [
            event(at_us, What::Invoke { op, process: 9, call }),
            event(at_us + 1, What::Ok { op, attempts: 1, answer: Answer::Read { head, tail } }),
        ]
    }

    #[test]
    fn a_read_shows_what_was_acknowledged_before_it() {
        let (mut history, entries) = three();
        history.extend(read(6, 7, 3, &[(2, "b"), (3, "c")]));
        assert_eq!(judge(&history, entries.clone()), []);
        // While c is being written, either is right.
        let (mut history, _) = three();
        history.splice(5..5, read(4, 7, 2, &[(2, "b")]).into_iter().chain(read(4, 8, 3, &[(3, "c")])));
        assert_eq!(judge(&history, entries), []);
    }

    #[test]
    fn planted_a_stale_read() {
        let stale = Anomaly::Stale { op: 7, session: "s".into(), instance: 1, head: 2, expected: 3 };
        let (mut history, entries) = three();
        history.extend(read(6, 7, 2, &[(2, "b")]));
        assert_eq!(judge(&history, entries.clone()), std::slice::from_ref(&stale));
        // What another read has shown is there too, even if its writer does not know yet.
        let (mut history, _) = three();
        history.truncate(5);
        history.extend(read(5, 6, 3, &[(3, "c")]));
        history.extend(read(7, 7, 2, &[(2, "b")]));
        assert_eq!(judge(&history, entries), [stale]);
    }

    #[test]
    fn planted_a_read_of_what_is_not_there() {
        let (mut history, entries) = three();
        history.extend(read(6, 7, 3, &[(2, "x"), (3, "c")]));
        let misread = Anomaly::Misread { op: 7, session: "s".into(), instance: 1, seq: 2, text: "x".into() };
        assert_eq!(judge(&history, entries.clone()), [misread]);
        let (history, _) = three();
        let early: Vec<Event> = read(0, 7, 3, &[]).into_iter().chain(history).collect();
        let mut shifted = early;
        for event in shifted.iter_mut().skip(2) {
            event.at_us += 10;
        }
        assert_eq!(judge(&shifted, entries), [Anomaly::Early { op: 7, session: "s".into(), instance: 1, seq: 3 }]);
    }

    #[test]
    fn planted_a_read_whose_page_lacks_entries_that_its_head_counts() {
        let (history, entries) = three();
        let judged = |after, head, tail: &[(u64, &str)]| {
            let history: Vec<Event> = history.iter().cloned().chain(read_after(6, 7, after, head, tail)).collect();
            judge(&history, entries.clone())
        };
        assert_eq!(judged(1, 3, &[(2, "b"), (3, "c")]), []);
        assert_eq!(judged(0, 3, &[(1, "a"), (2, "b")]), [], "a page is of two entries");
        assert_eq!(judged(3, 3, &[]), []);
        let short = |expected, found: &[u64]| {
            vec![Anomaly::Short { op: 7, session: "s".into(), instance: 1, expected, found: found.to_vec() }]
        };
        assert_eq!(judged(1, 3, &[(2, "b")]), short((2, 3), &[2]), "the end");
        assert_eq!(judged(1, 3, &[(3, "c")]), short((2, 3), &[3]), "the beginning");
        assert_eq!(judged(0, 3, &[(1, "a"), (3, "c")]), short((1, 2), &[1, 3]), "the middle");
        assert_eq!(judged(1, 3, &[]), short((2, 3), &[]), "all");
        assert_eq!(judged(2, 3, &[(2, "b"), (3, "c")]), short((3, 3), &[2, 3]), "more than was asked for");
    }

    #[test]
    fn planted_an_append_of_unknown_outcome_before_what_was_acknowledged_before_it_was_sent() {
        let info = event(4, What::Info { op: 1, attempts: 1, message: String::new() });
        let history = [invoke(0, 0, "a"), ok(1, 0, 2), invoke(2, 1, "b"), info];
        let reordered = Anomaly::Reordered { session: "s".into(), earlier: ("a".into(), 2), later: ("b".into(), 1) };
        assert_eq!(judge(&history, vec![entry(1, "b"), entry(2, "a")]), [reordered]);
        // Nobody knows when it had its effect, so nothing need stand behind it.
        let history = [invoke(0, 1, "b"), invoke(2, 0, "a"), ok(3, 0, 1)];
        assert_eq!(judge(&history, vec![entry(1, "a"), entry(2, "b")]), []);
    }

    #[test]
    fn of_a_session_that_nobody_can_read_in_the_end_answers_are_held_against_each_other() {
        let judge =
            |history: &[Event]| check_some(history, &BTreeMap::new(), &BTreeSet::from(["s".to_owned()])).anomalies;
        let (mut history, _) = three();
        history.extend(read(6, 7, 3, &[(2, "b"), (3, "c")]));
        history.extend(read(8, 8, 4, &[(4, "d")]));
        assert_eq!(judge(&history), [], "nothing is lost for not being read");
        history.extend(read(10, 9, 4, &[(3, "b"), (4, "x")]));
        let misread =
            |seq, text: &str| Anomaly::Misread { op: 9, session: "s".into(), instance: 1, seq, text: text.into() };
        assert_eq!(judge(&history), [misread(3, "b"), misread(4, "x")]);
        history.extend(read(12, 10, 3, &[(3, "c")]));
        let stale = Anomaly::Stale { op: 10, session: "s".into(), instance: 1, head: 3, expected: 4 };
        assert_eq!(judge(&history).last(), Some(&stale));
    }

    #[test]
    fn planted_a_difference_between_instances() {
        let (_, entries) = three();
        assert_eq!(compare("node-2", "s", &entries, &entries), None);
        assert!(compare("node-2", "s", &entries, &entries[..2]).is_some());
        assert!(compare("node-2", "s", &entries[..1], &[entry(1, "z")]).is_some());
    }
}
