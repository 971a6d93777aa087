//! A turn whose runner died in the middle of its answer ends with one whole answer: what was streamed is what is committed,
//! once, and every later question about it is answered the same.

use std::fmt;

use openclaw_proto::http::{ChatResponse, Entry, Role, Turn, TurnState};

use crate::client::Answer;

/// All that clients saw of one turn, in a session of its own.
#[derive(Debug)]
pub struct Seen<'a> {
    pub question: &'a str,
    /// What the model says to that.
    pub expected: &'a str,
    /// As a reader put it together.
    pub answer: &'a Answer,
    pub row: &'a Turn,
    /// What the question got when it was asked again with its idempotency key.
    pub repeated: &'a ChatResponse,
    pub transcript: &'a [Entry],
}

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anomaly {
    /// The reader's text is not what the model says.
    Answer { expected: String, found: String },
    /// An attempt after a kill, and the reader was not told; or the kill met no attempt.
    Untold { attempt: u32, restarts: u32 },
    /// `done`, and the turn is not.
    State { state: TurnState },
    /// Not one entry of this role.
    Count { role: Role, found: usize },
    /// The entry of this role is not the one that was promised.
    Entry { role: Role, expected: (String, String), found: (String, String) },
    /// The answer comes before its question.
    Order,
    /// An entry that no client of this turn wrote.
    Stray { seq: u64 },
    /// The same question again was answered otherwise.
    Repeated { expected: (String, String), found: (String, String) },
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { expected, found } => write!(f, "the answer is {found:?} and not {expected:?}"),
            Self::Untold { attempt, restarts } => {
                write!(f, "attempt {attempt}, and the reader saw {restarts} restarts")
            }
            Self::State { state } => write!(f, "the reader saw done, and the turn is {state:?}"),
            Self::Count { role, found } => write!(f, "there are {found} {role:?} entries"),
            Self::Entry { role, expected, found } => write!(f, "the {role:?} entry is {found:?} and not {expected:?}"),
            Self::Order => f.write_str("the answer stands before its question"),
            Self::Stray { seq } => write!(f, "entry {seq} is of no turn of this session"),
            Self::Repeated { expected, found } => {
                write!(f, "the same question again was answered by {found:?} and not {expected:?}")
            }
        }
    }
}

/// Judges one turn.
pub fn check(seen: &Seen<'_>) -> Vec<Anomaly> {
    let Seen { question, expected, answer, row, repeated, transcript } = seen;
    let mut anomalies = Vec::new();
    if answer.text != *expected || answer.streamed != *expected {
        let found = if answer.text == *expected { &answer.streamed } else { &answer.text };
        anomalies.push(Anomaly::Answer { expected: (*expected).to_owned(), found: found.clone() });
    }
    if row.attempt < 2 || answer.restarts == 0 {
        anomalies.push(Anomaly::Untold { attempt: row.attempt, restarts: answer.restarts });
    }
    if row.state != TurnState::Done {
        anomalies.push(Anomaly::State { state: row.state });
    }
    let (of_turn, strays): (Vec<_>, Vec<_>) =
        transcript.iter().partition(|entry| entry.turn_id.as_deref() == Some(answer.turn.as_str()));
    anomalies.extend(strays.iter().map(|stray| Anomaly::Stray { seq: stray.seq }));
    let asked = one(&of_turn, Role::User, None, question, &mut anomalies);
    let replied = one(&of_turn, Role::Assistant, Some(&answer.entry_id), expected, &mut anomalies);
    if let (Some(asked), Some(replied)) = (asked, replied)
        && asked.seq >= replied.seq
    {
        anomalies.push(Anomaly::Order);
    }
    let (first, again) = (
        (answer.turn.to_string(), answer.entry_id.clone()),
        (repeated.turn_id.clone(), repeated.reply.entry_id.clone()),
    );
    if again != first || repeated.reply.text != answer.text {
        anomalies.push(Anomaly::Repeated { expected: first, found: again });
    }
    anomalies
}

/// The one entry of a role, which has this text, and this id where one was promised.
fn one<'a>(
    entries: &[&'a Entry],
    role: Role,
    id: Option<&str>,
    text: &str,
    anomalies: &mut Vec<Anomaly>,
) -> Option<&'a Entry> {
    let of_role: Vec<&Entry> = entries.iter().copied().filter(|entry| entry.role == role).collect();
    let [entry] = of_role.as_slice() else {
        anomalies.push(Anomaly::Count { role, found: of_role.len() });
        return None;
    };
    let expected = (id.unwrap_or(&entry.id).to_owned(), text.to_owned());
    let found = (entry.id.clone(), entry.text.clone());
    if found != expected {
        anomalies.push(Anomaly::Entry { role, expected, found });
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use openclaw_proto::http::{Reply, Usage};
    use openclaw_proto::ids::TurnId;

    use super::*;

    const TURN: &str = "0123456789abcdef0123456789abcdef";

    struct Record {
        answer: Answer,
        row: Turn,
        repeated: ChatResponse,
        transcript: Vec<Entry>,
    }

    fn entry(seq: u64, role: Role, text: &str) -> Entry {
        Entry {
            seq,
            id: format!("e{seq}"),
            role,
            text: text.into(),
            created_ms: 0,
            turn_id: Some(TURN.into()),
            model: None,
            usage: None,
        }
    }

    /// What is right, and what a bug makes of it.
    fn check_with(bug: impl FnOnce(&mut Record)) -> Vec<Anomaly> {
        let answer = Answer {
            turn: TurnId::parse(TURN).unwrap(),
            streamed: "1 2".into(),
            entry_id: "e2".into(),
            text: "1 2".into(),
            usage: Usage::default(),
            deltas: 3,
            restarts: 1,
            reconnects: 1,
            longest_gap: Duration::ZERO,
        };
        let row = Turn {
            turn_id: TURN.into(),
            session_key: "s".into(),
            state: TurnState::Done,
            attempt: 2,
            runner: "node-2".into(),
            accepted_ms: 0,
            started_ms: None,
            finished_ms: None,
            usage: Usage::default(),
            model: None,
            error: None,
        };
        let repeated = ChatResponse {
            turn_id: TURN.into(),
            session_key: "s".into(),
            reply: Reply { entry_id: "e2".into(), text: "1 2".into() },
            usage: Usage::default(),
            model: "echo/echo".into(),
            instance_id: "node-3".into(),
        };
        let transcript = vec![entry(1, Role::User, "count"), entry(2, Role::Assistant, "1 2")];
        let mut record = Record { answer, row, repeated, transcript };
        bug(&mut record);
        let Record { answer, row, repeated, transcript } = &record;
        check(&Seen { question: "count", expected: "1 2", answer, row, repeated, transcript })
    }

    #[test]
    fn one_whole_answer_is_as_it_should_be() {
        assert_eq!(check_with(|_| ()), []);
    }

    #[test]
    fn a_second_assistant_entry_is_caught() {
        let found = check_with(|record| record.transcript.push(entry(3, Role::Assistant, "1 2")));
        assert_eq!(found, [Anomaly::Count { role: Role::Assistant, found: 2 }]);
    }

    #[test]
    fn a_missing_entry_and_a_doubled_question_are_caught() {
        let found = check_with(|record| record.transcript.truncate(1));
        assert_eq!(found, [Anomaly::Count { role: Role::Assistant, found: 0 }]);
        let found = check_with(|record| record.transcript.insert(1, entry(1, Role::User, "count")));
        assert_eq!(found, [Anomaly::Count { role: Role::User, found: 2 }]);
    }

    #[test]
    fn an_answer_that_is_not_the_committed_one_is_caught() {
        let found = check_with(|record| record.answer.streamed = "1 1 2".into());
        assert_eq!(found, [Anomaly::Answer { expected: "1 2".into(), found: "1 1 2".into() }]);
        let found = check_with(|record| record.transcript[1].text = "1".into());
        assert!(matches!(found.as_slice(), [Anomaly::Entry { role: Role::Assistant, .. }]), "{found:?}");
        let found = check_with(|record| record.transcript[1].id = "e9".into());
        assert!(matches!(found.as_slice(), [Anomaly::Entry { role: Role::Assistant, .. }]), "{found:?}");
    }

    #[test]
    fn entries_in_the_wrong_order_or_of_another_turn_are_caught() {
        let swapped = check_with(|record| (record.transcript[0].seq, record.transcript[1].seq) = (2, 1));
        assert_eq!(swapped, [Anomaly::Order]);
        let stray =
            check_with(|record| record.transcript.push(Entry { turn_id: None, ..entry(3, Role::Assistant, "?") }));
        assert_eq!(stray, [Anomaly::Stray { seq: 3 }]);
    }

    #[test]
    fn an_attempt_that_the_reader_was_not_told_of_and_a_turn_that_is_not_over_are_caught() {
        assert_eq!(check_with(|record| record.answer.restarts = 0), [Anomaly::Untold { attempt: 2, restarts: 0 }]);
        assert_eq!(check_with(|record| record.row.attempt = 1), [Anomaly::Untold { attempt: 1, restarts: 1 }]);
        let running = check_with(|record| record.row.state = TurnState::Running);
        assert_eq!(running, [Anomaly::State { state: TurnState::Running }]);
    }

    #[test]
    fn a_repeated_question_that_becomes_another_turn_is_caught() {
        let found = check_with(|record| record.repeated.reply.entry_id = "e4".into());
        assert!(matches!(found.as_slice(), [Anomaly::Repeated { .. }]), "{found:?}");
    }
}
