//! Each message to a bot is answered once, or the gateway lists its answer as one that may or may not have been sent.
//!
//! An answer names its question, and so does what is held, if its conversation can be read: that excuses this question and no
//! other. What is held and names none is counted, chat by chat.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

/// A message to the bot, in the platform's own words: in which chat, and which one there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    pub chat: String,
    pub message: String,
}

/// Moments are since 1970, as platforms have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub question: Question,
    pub at: Duration,
}

/// A message of the bot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub chat: String,
    /// The message that it answers; absent: it does not say.
    pub to: Option<String>,
    pub at: Duration,
}

/// What the gateway says it did not send, or may not have sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unsent {
    /// Whose answer may not have been sent.
    pub questions: BTreeSet<Question>,
    /// How many more there are by chat, of which it is not known what they answer.
    pub unknown: BTreeMap<String, usize>,
    pub failed: BTreeMap<String, usize>,
}

/// What was checked and what was found.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub messages: usize,
    pub answered_once: usize,
    /// Listed by the gateway as messages that may or may not have been sent.
    pub held: usize,
    pub slowest_answer_ms: f64,
    /// Whose question waited longest: chat, message and the second of the run in which it was asked.
    pub slowest: String,
    #[serde(skip)]
    pub anomalies: Vec<String>,
}

/// Whether something is missing that the gateway does not list.
pub fn is_open(asked: &[Asked], answered: &[Answered], unsent: &Unsent) -> bool {
    let counts = counts(answered);
    missing(asked, &counts, &unsent.questions)
        .iter()
        .any(|(chat, count)| *count > unsent.unknown.get(*chat).copied().unwrap_or_default())
}

/// Judges what people asked against what they were told.
pub fn check(asked: &[Asked], answered: &[Answered], unsent: &Unsent) -> Verdict {
    let counts = counts(answered);
    let mut verdict = Verdict {
        held: unsent.questions.len() + unsent.unknown.values().sum::<usize>(),
        ..check_answers(asked, answered)
    };
    for (chat, count) in missing(asked, &counts, &unsent.questions) {
        let held = unsent.unknown.get(chat).copied().unwrap_or_default();
        if count > held {
            let anomaly = format!("chat {chat}: {count} messages have no answer, and {held} are listed as unknown");
            verdict.anomalies.push(anomaly);
        }
    }
    for (chat, count) in &unsent.failed {
        verdict.anomalies.push(format!("chat {chat}: {count} answers were given up"));
    }
    verdict
}

/// Judges the answers that there are, when nobody can say which are held.
pub fn check_answers(asked: &[Asked], answered: &[Answered]) -> Verdict {
    let counts = counts(answered);
    let mut verdict = Verdict {
        messages: asked.len(),
        answered_once: asked.iter().filter(|one| counts.get(&key(&one.question)) == Some(&1)).count(),
        ..Verdict::default()
    };
    let known = |chat, message| asked.iter().any(|one| key(&one.question) == (chat, message));
    for ((chat, message), count) in &counts {
        if *count > 1 {
            verdict.anomalies.push(format!("chat {chat}: message {message} was answered {count} times"));
        }
        if !known(chat, message) {
            verdict.anomalies.push(format!("chat {chat}: there is an answer to {message}, which nobody said"));
        }
    }
    for one in answered.iter().filter(|one| one.to.is_none()) {
        verdict.anomalies.push(format!("chat {}: a message answers nothing", one.chat));
    }
    slowest(asked, answered, &mut verdict);
    verdict
}

type Key<'a> = (&'a str, &'a str);

fn key(question: &Question) -> Key<'_> {
    (&question.chat, &question.message)
}

/// How often each message was answered.
fn counts(answered: &[Answered]) -> BTreeMap<Key<'_>, usize> {
    let mut counts = BTreeMap::new();
    for one in answered {
        if let Some(to) = &one.to {
            *counts.entry((one.chat.as_str(), to.as_str())).or_default() += 1;
        }
    }
    counts
}

/// How many messages of each chat have no answer, and none that is held.
fn missing<'a>(
    asked: &'a [Asked],
    counts: &BTreeMap<Key<'_>, usize>,
    held: &BTreeSet<Question>,
) -> BTreeMap<&'a str, usize> {
    let mut missing = BTreeMap::new();
    let is = |one: &&Asked| !counts.contains_key(&key(&one.question)) && !held.contains(&one.question);
    for one in asked.iter().filter(is) {
        *missing.entry(one.question.chat.as_str()).or_default() += 1;
    }
    missing
}

fn slowest(asked: &[Asked], answered: &[Answered], verdict: &mut Verdict) {
    let asked_at: BTreeMap<Key<'_>, Duration> = asked.iter().map(|one| (key(&one.question), one.at)).collect();
    let waits = answered.iter().filter_map(|one| {
        let (chat, message) = (one.chat.as_str(), one.to.as_deref()?);
        let at = asked_at.get(&(chat, message))?;
        Some((one.at.saturating_sub(*at), chat, message, *at))
    });
    let Some((wait, chat, message, at)) = waits.max() else { return };
    let begin = asked.first().map_or(Duration::ZERO, |first| first.at);
    let second = at.saturating_sub(begin).as_secs_f64();
    verdict.slowest_answer_ms = wait.as_secs_f64() * 1000.0;
    verdict.slowest = format!("chat {chat}, message {message}, asked at {second:.1} s");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(questions: &[(&str, &str)]) -> Vec<Asked> {
        let one = |n, (chat, message): &(&str, &str)| Asked {
            question: Question { chat: (*chat).into(), message: (*message).into() },
            at: Duration::from_secs(n),
        };
        (100..).zip(questions).map(|(n, question)| one(n, question)).collect()
    }

    fn answered(answers: &[(&str, Option<&str>)]) -> Vec<Answered> {
        let one = |(chat, to): &(&str, Option<&str>)| Answered {
            chat: (*chat).into(),
            to: to.map(str::to_owned),
            at: Duration::from_secs(103),
        };
        answers.iter().map(one).collect()
    }

    fn unsent(unknown: &[(&str, usize)], failed: &[(&str, usize)]) -> Unsent {
        let owned = |list: &[(&str, usize)]| list.iter().map(|(chat, count)| ((*chat).to_owned(), *count)).collect();
        Unsent { unknown: owned(unknown), failed: owned(failed), ..Unsent::default() }
    }

    const QUESTIONS: [(&str, &str); 3] = [("ann", "1"), ("ben", "1"), ("ann", "2")];

    fn anomalies(answers: &[(&str, Option<&str>)], unsent: &Unsent) -> Vec<String> {
        check(&asked(&QUESTIONS), &answered(answers), unsent).anomalies
    }

    #[test]
    fn one_answer_to_each_message_is_as_it_should_be() {
        let answers = answered(&[("ann", Some("1")), ("ben", Some("1")), ("ann", Some("2"))]);
        let verdict = check(&asked(&QUESTIONS), &answers, &Unsent::default());
        assert_eq!(verdict.anomalies, Vec::<String>::new());
        assert_eq!((verdict.messages, verdict.answered_once, verdict.held), (3, 3, 0));
        assert_eq!(
            (verdict.slowest_answer_ms, verdict.slowest.as_str()),
            (3000.0, "chat ann, message 1, asked at 0.0 s")
        );
    }

    #[test]
    fn a_second_answer_is_caught() {
        let answers = [("ann", Some("1")), ("ben", Some("1")), ("ann", Some("2")), ("ann", Some("1"))];
        assert_eq!(anomalies(&answers, &Unsent::default()), ["chat ann: message 1 was answered 2 times"]);
    }

    #[test]
    fn an_answer_that_is_missing_is_caught_unless_it_is_listed() {
        let answers = [("ann", Some("1")), ("ben", Some("1"))];
        let all = asked(&QUESTIONS);
        assert!(is_open(&all, &answered(&answers), &Unsent::default()));
        let said = "chat ann: 1 messages have no answer, and 0 are listed as unknown";
        assert_eq!(anomalies(&answers, &unsent(&[("ben", 1)], &[])), [said], "another chat's");

        let held = unsent(&[("ann", 1)], &[]);
        assert!(!is_open(&all, &answered(&answers), &held));
        assert_eq!(anomalies(&answers, &held), Vec::<String>::new());
        // Given up is not held: nobody will send it.
        let failed = anomalies(&answers, &unsent(&[], &[("ann", 1)]));
        assert_eq!(failed, [said, "chat ann: 1 answers were given up"]);
    }

    #[test]
    fn planted_a_lost_message_beside_another_that_was_answered_and_is_held() {
        let answers = [("ann", Some("1")), ("ben", Some("1"))];
        let held = |message: &str| Unsent {
            questions: [Question { chat: "ann".into(), message: message.into() }].into(),
            ..Unsent::default()
        };
        // It was sent after all, which nobody told the gateway: it excuses nothing else.
        let said = "chat ann: 1 messages have no answer, and 0 are listed as unknown";
        assert_eq!(anomalies(&answers, &held("1")), [said]);
        assert_eq!(anomalies(&answers, &held("2")), Vec::<String>::new());
        assert!(is_open(&asked(&QUESTIONS), &answered(&answers), &held("1")));
        assert!(!is_open(&asked(&QUESTIONS), &answered(&answers), &held("2")));
    }

    #[test]
    fn without_a_list_of_what_is_held_a_second_answer_is_caught_and_a_missing_one_is_not() {
        let answers = answered(&[("ann", Some("1")), ("ann", Some("1"))]);
        let found = check_answers(&asked(&QUESTIONS), &answers).anomalies;
        assert_eq!(found, ["chat ann: message 1 was answered 2 times"]);
    }

    #[test]
    fn what_nobody_asked_for_is_caught() {
        let answers = [("ann", Some("1")), ("ben", Some("1")), ("ann", Some("2")), ("ben", Some("2")), ("ben", None)];
        let said = ["chat ben: there is an answer to 2, which nobody said", "chat ben: a message answers nothing"];
        assert_eq!(anomalies(&answers, &Unsent::default()), said);
    }
}
