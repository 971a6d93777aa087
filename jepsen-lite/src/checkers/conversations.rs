//! Turns: each that was accepted ends, in one completion; a session runs one at a time; what clients were told is what
//! is there.
//!
//! Messages are unique in a run, so a user entry names the operation that wrote it, and its turn names everything else.
//! What a stream showed on the way is judged by the reader itself, while it reads (`client::Reader`).

use std::collections::{BTreeMap, HashMap};

use openclaw_proto::http::{Entry, Role, Turn, TurnState};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Check, Found};
use crate::history::{Answer, Call, Event, What};

/// What the instances hold in the end.
#[derive(Debug, Default)]
pub struct Final {
    /// By session; what could not be read is not there.
    pub transcripts: BTreeMap<String, Vec<Entry>>,
    /// By id: every turn that an entry or an answer names.
    pub turns: BTreeMap<String, Turn>,
}

/// What the model in the binary says when it is asked for so many tokens.
pub fn expected(tokens: u64) -> String {
    let numbers: Vec<String> = (1..=tokens).map(|n| n.to_string()).collect();
    numbers.join(" ")
}

struct Asked<'a> {
    op: u64,
    session: &'a str,
    tokens: u64,
    told: Told<'a>,
}

enum Told<'a> {
    Replied { turn: &'a str, entry: &'a str, text: &'a str },
    Ended { turn: &'a str },
    Refused,
    Unknown,
}

/// The numbers of a verdict.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    sessions: usize,
    turns: usize,
    replied: u64,
    /// Ended without a reply, and told so.
    ended: u64,
    refused: u64,
    unknown: u64,
    /// Of those, how many were accepted.
    unknown_accepted: u64,
    restarts: u64,
    reconnects: u64,
}

/// Judges a history against what is there in the end.
pub fn check(history: &[Event], last: &Final) -> Check {
    let mut figures = Figures { sessions: last.transcripts.len(), turns: last.turns.len(), ..Figures::default() };
    let asked = asked(history, &mut figures);
    let mut found = Vec::new();
    for (message, one) in &asked {
        let Some(entries) = last.transcripts.get(one.session) else { continue };
        judge_one(message, one, entries, last, &mut figures, &mut found);
    }
    for (session, entries) in &last.transcripts {
        strays(session, entries, &asked, last, &mut found);
        one_at_a_time(session, last, &mut found);
    }
    found.sort_by(|a, b| (&a.anomaly, &a.message).cmp(&(&b.anomaly, &b.message)));
    Check { checker: "turns".to_owned(), decided: true, figures: json!(figures), found }
}

fn asked<'a>(history: &'a [Event], figures: &mut Figures) -> HashMap<&'a str, Asked<'a>> {
    let mut messages: HashMap<u64, &str> = HashMap::new();
    let mut asked: HashMap<&str, Asked> = HashMap::new();
    for event in history {
        let (op, told) = match &event.what {
            What::Invoke { op, call: Call::Turn { session, message, tokens, .. }, .. } => {
                messages.insert(*op, message);
                asked.insert(message, Asked { op: *op, session, tokens: *tokens, told: Told::Unknown });
                continue;
            }
            What::Ok { op, answer: Answer::Replied { turn, entry, text, restarts, reconnects }, .. } => {
                figures.restarts += u64::from(*restarts);
                figures.reconnects += u64::from(*reconnects);
                (op, Told::Replied { turn, entry, text })
            }
            What::Ok { op, answer: Answer::Ended { turn, .. }, .. } => (op, Told::Ended { turn }),
            What::Fail { op, .. } => (op, Told::Refused),
            What::Invoke { .. }
            | What::Ok { .. }
            | What::Info { .. }
            | What::Fault { .. }
            | What::Leader { .. }
            | What::Owner { .. } => continue,
        };
        if let Some(one) = messages.get(op).and_then(|message| asked.get_mut(message)) {
            one.told = told;
        }
    }
    for one in asked.values() {
        match one.told {
            Told::Replied { .. } => figures.replied += 1,
            Told::Ended { .. } => figures.ended += 1,
            Told::Refused => figures.refused += 1,
            Told::Unknown => figures.unknown += 1,
        }
    }
    asked
}

fn judge_one(
    message: &str,
    one: &Asked,
    entries: &[Entry],
    last: &Final,
    figures: &mut Figures,
    found: &mut Vec<Found>,
) {
    let mut say = |anomaly: &str, text: String| {
        let message = format!("{}: {message:?}: {text}", one.session);
        found.push(Found { anomaly: anomaly.to_owned(), message, ops: vec![one.op] });
    };
    let own: Vec<&Entry> = entries.iter().filter(|entry| entry.role == Role::User && entry.text == message).collect();
    if own.len() > 1 {
        let places: Vec<u64> = own.iter().map(|entry| entry.seq).collect();
        say("doubled-turn", format!("the message stands there as {places:?}"));
    }
    let told = match &one.told {
        Told::Refused => {
            if let Some(entry) = own.first() {
                say("refused-turn", format!("it was refused and stands there as {}", entry.seq));
            }
            return;
        }
        Told::Unknown => {
            figures.unknown_accepted += u64::from(!own.is_empty());
            own.first().and_then(|entry| entry.turn_id.as_deref())
        }
        Told::Replied { turn, .. } | Told::Ended { turn } => {
            if own.is_empty() {
                say("lost-turn", format!("turn {turn} was accepted, and the message is not there"));
            }
            Some(*turn)
        }
    };
    if let (Some(entry), Some(turn)) = (own.first(), told)
        && entry.turn_id.as_deref() != Some(turn)
    {
        say("moved-turn", format!("it was told to be turn {turn} and is {:?}", entry.turn_id));
    }
    let Some(turn) = told else { return };
    let state = last.turns.get(turn).map(|row| row.state);
    let replies: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.role == Role::Assistant && entry.turn_id.as_deref() == Some(turn))
        .collect();
    let ended_as = match (&one.told, state) {
        (_, Some(TurnState::Queued | TurnState::Running) | None) => {
            say("endless-turn", format!("turn {turn} was accepted and is {state:?} in the end"));
            return;
        }
        (Told::Replied { .. }, Some(TurnState::Failed | TurnState::Cancelled)) => {
            say("changed-end", format!("turn {turn} was told to be done and is {state:?}"));
            return;
        }
        (Told::Ended { .. }, Some(TurnState::Done)) => {
            say("changed-end", format!("turn {turn} was told to have no reply and is done"));
            return;
        }
        (_, Some(state)) => state,
    };
    match (ended_as, replies.as_slice()) {
        (TurnState::Done, [reply]) => {
            let right = expected(one.tokens);
            if reply.text != right {
                say("wrong-reply", format!("the reply is {:?} and not {right:?}", reply.text));
            }
            if let Told::Replied { entry, text, .. } = &one.told
                && (*entry, *text) != (reply.id.as_str(), reply.text.as_str())
            {
                say("other-reply", format!("told {:?}, and there is {:?}", (entry, text), (&reply.id, &reply.text)));
            }
            if own.first().is_some_and(|entry| entry.seq >= reply.seq) {
                say("early-reply", format!("the reply {} stands before its message", reply.seq));
            }
        }
        (TurnState::Done, replies) => {
            say("completions", format!("turn {turn} is done and has {} replies", replies.len()))
        }
        (_, []) => {}
        (_, replies) => say("completions", format!("turn {turn} failed and has {} replies", replies.len())),
    }
}

/// Entries that belong to nothing that a client did.
fn strays(session: &str, entries: &[Entry], asked: &HashMap<&str, Asked>, last: &Final, found: &mut Vec<Found>) {
    for (entry, place) in entries.iter().zip(1..) {
        let known = match entry.role {
            Role::User => asked.get(entry.text.as_str()).is_some_and(|one| one.session == session),
            Role::Assistant => entry.turn_id.as_ref().is_some_and(|turn| last.turns.contains_key(turn)),
            Role::System | Role::Tool => false,
        };
        if !known {
            let message = format!("{session}: nobody wrote {:?}, which is there as {}", entry.text, entry.seq);
            found.push(Found { anomaly: "invented-entry".to_owned(), message, ops: Vec::new() });
        }
        if entry.seq != place {
            let message = format!("{session}: {} stands where {place} should", entry.seq);
            found.push(Found { anomaly: "gap".to_owned(), message, ops: Vec::new() });
        }
    }
}

/// From the beginning of its last attempt to its end a turn has the session for itself.
fn one_at_a_time(session: &str, last: &Final, found: &mut Vec<Found>) {
    let mut times: Vec<(u64, u64, &str)> = last
        .turns
        .values()
        .filter(|turn| turn.session_key == session)
        .filter_map(|turn| Some((turn.started_ms?, turn.finished_ms?, turn.turn_id.as_str())))
        .collect();
    times.sort_unstable();
    for pair in times.windows(2) {
        let [(_, end, first), (start, _, second)] = pair else { continue };
        if start < end {
            let message = format!("{session}: turn {second} began {} ms before turn {first} had ended", end - start);
            found.push(Found { anomaly: "two-turns".to_owned(), message, ops: Vec::new() });
        }
    }
}

#[cfg(test)]
mod tests {
    use openclaw_proto::http::Usage;

    use super::*;

    fn entry(seq: u64, role: Role, text: &str, turn: &str) -> Entry {
        Entry {
            seq,
            id: format!("e{seq}"),
            role,
            text: text.into(),
            created_ms: 0,
            turn_id: Some(turn.into()),
            model: None,
            usage: None,
        }
    }

    fn turn(id: &str, state: TurnState, from: u64, to: u64) -> (String, Turn) {
        let ended = !matches!(state, TurnState::Queued | TurnState::Running);
        let turn = Turn {
            turn_id: id.into(),
            session_key: "s".into(),
            state,
            attempt: 1,
            runner: "node-1".into(),
            accepted_ms: from,
            started_ms: Some(from),
            finished_ms: ended.then_some(to),
            usage: Usage::default(),
            model: None,
            error: None,
        };
        (id.to_owned(), turn)
    }

    fn invoke(op: u64, message: &str) -> Event {
        let call = Call::Turn { session: "s".into(), message: message.into(), tokens: 2, key: message.into() };
        Event { at_us: op * 10, what: What::Invoke { op, process: 0, call } }
    }

    fn ok(op: u64, answer: Answer) -> Event {
        Event { at_us: op * 10 + 5, what: What::Ok { op, attempts: 1, answer } }
    }

    fn replied(op: u64, turn: &str, entry: &str) -> Event {
        let (turn, entry, text) = (turn.into(), entry.into(), "1 2".into());
        ok(op, Answer::Replied { turn, entry, text, restarts: 0, reconnects: 1 })
    }

    /// Two turns, one after the other.
    fn two() -> (Vec<Event>, Final) {
        let history = vec![invoke(0, "a"), replied(0, "t1", "e2"), invoke(1, "b"), replied(1, "t2", "e4")];
        let entries = vec![
            entry(1, Role::User, "a", "t1"),
            entry(2, Role::Assistant, "1 2", "t1"),
            entry(3, Role::User, "b", "t2"),
            entry(4, Role::Assistant, "1 2", "t2"),
        ];
        let turns = [turn("t1", TurnState::Done, 10, 20), turn("t2", TurnState::Done, 20, 30)].into();
        (history, Final { transcripts: [("s".to_owned(), entries)].into(), turns })
    }

    fn kinds(history: &[Event], last: &Final) -> Vec<String> {
        let mut kinds: Vec<String> = check(history, last).found.into_iter().map(|found| found.anomaly).collect();
        kinds.dedup();
        kinds
    }

    fn entries(last: &mut Final) -> &mut Vec<Entry> {
        last.transcripts.get_mut("s").unwrap()
    }

    #[test]
    fn turns_that_end_once_pass() {
        let (history, last) = two();
        let check = check(&history, &last);
        assert_eq!(check.found, []);
        assert_eq!((&check.figures["replied"], &check.figures["reconnects"]), (&json!(2), &json!(2)));
    }

    #[test]
    fn planted_a_turn_that_is_lost_or_doubled() {
        let (history, mut last) = two();
        entries(&mut last).truncate(2);
        assert_eq!(kinds(&history, &last), ["completions", "lost-turn"]);
        let (history, mut last) = two();
        entries(&mut last).push(entry(5, Role::User, "a", "t1"));
        assert_eq!(kinds(&history, &last), ["doubled-turn"]);
    }

    #[test]
    fn planted_a_turn_that_is_completed_twice_or_never() {
        let (history, mut last) = two();
        entries(&mut last).push(entry(5, Role::Assistant, "1 2", "t2"));
        assert_eq!(kinds(&history, &last), ["completions"]);
        let (history, mut last) = two();
        last.turns.extend([turn("t2", TurnState::Running, 20, 0)]);
        assert_eq!(kinds(&history, &last), ["endless-turn"]);
        let (history, mut last) = two();
        last.turns.extend([turn("t2", TurnState::Failed, 20, 30)]);
        assert_eq!(kinds(&history, &last), ["changed-end"]);
    }

    #[test]
    fn planted_two_turns_of_a_session_at_once() {
        let (history, mut last) = two();
        last.turns.extend([turn("t2", TurnState::Done, 15, 30)]);
        assert_eq!(kinds(&history, &last), ["two-turns"]);
    }

    #[test]
    fn planted_a_reply_that_is_not_the_promised_one() {
        let (history, mut last) = two();
        entries(&mut last)[3].id = "e9".into();
        assert_eq!(kinds(&history, &last), ["other-reply"]);
        let (history, mut last) = two();
        entries(&mut last)[3].text = "1 2 2".into();
        assert_eq!(kinds(&history, &last), ["other-reply", "wrong-reply"]);
        let (history, mut last) = two();
        entries(&mut last).swap(2, 3);
        for (entry, seq) in entries(&mut last).iter_mut().zip(1..) {
            (entry.seq, entry.id) = (seq, format!("e{}", [1, 2, 4, 3][seq as usize - 1]));
        }
        assert_eq!(kinds(&history, &last), ["early-reply"]);
    }

    #[test]
    fn planted_an_effect_of_a_refused_turn_and_an_entry_of_nobody() {
        let (mut history, last) = two();
        history[3] = Event { at_us: 15, what: What::Fail { op: 1, attempts: 1, message: String::new() } };
        assert_eq!(kinds(&history, &last), ["refused-turn"]);
        let (history, mut last) = two();
        entries(&mut last).push(entry(5, Role::User, "c", "t3"));
        assert_eq!(kinds(&history, &last), ["invented-entry"]);
    }

    #[test]
    fn an_unknown_turn_may_be_there_or_not_but_ends() {
        let (mut history, mut last) = two();
        history.pop();
        assert_eq!(kinds(&history, &last), Vec::<String>::new());
        last.turns.extend([turn("t2", TurnState::Queued, 20, 0)]);
        assert_eq!(kinds(&history, &last), ["endless-turn"]);
        entries(&mut last).truncate(2);
        assert_eq!(kinds(&history, &last), Vec::<String>::new());
    }

    #[test]
    fn a_turn_that_ended_without_a_reply_has_none() {
        let (mut history, mut last) = two();
        history[3] = ok(1, Answer::Ended { turn: "t2".into(), code: "turn_abandoned".into() });
        last.turns.extend([turn("t2", TurnState::Failed, 20, 30)]);
        assert_eq!(kinds(&history, &last), ["completions"]);
        entries(&mut last).truncate(3);
        assert_eq!(kinds(&history, &last), Vec::<String>::new());
    }
}
