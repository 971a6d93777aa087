use std::collections::{HashMap, HashSet};

use openclaw_proto::state;

use crate::models::{Prompt, PromptMessage, Role};

/// What a prompt is made of besides the transcript, and how much of the transcript it may hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub system_prompt: Option<String>,
    /// Most messages, and most bytes of their texts together; the system prompt comes on top.
    pub max_entries: usize,
    pub max_bytes: usize,
    /// Absent: the provider's own.
    pub max_output_tokens: Option<u32>,
    pub temperature: Option<f32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            system_prompt: None,
            max_entries: 200,
            max_bytes: 256 * 1024,
            max_output_tokens: None,
            temperature: None,
        }
    }
}

/// Makes the prompt of the turn whose message is entry `user_seq` of `history`.
///
/// Shape: the messages alternate as people read them, and the turn's own message is last. In a transcript they may not:
/// a message that was accepted while an earlier turn ran stands before that turn's reply. So each reply follows the
/// message it answers, and messages of later turns are left out.
/// Where several people wrote, each message begins with its sender's name.
/// The oldest go first when there are too many, and with them replies that have lost their question; the turn's own
/// message always stays, however long it is.
pub fn build(history: &[state::Entry], user_seq: u64, options: &Options) -> Prompt {
    let Some(own) = history.iter().find(|entry| entry.seq == user_seq) else {
        return prompt(history.iter().filter(|entry| entry.seq < user_seq).collect(), options);
    };
    let mut replies: HashMap<&str, Vec<&state::Entry>> = HashMap::new();
    let mut earlier: Vec<&state::Entry> = Vec::new();
    let asked: HashMap<&str, u64> = history
        .iter()
        .filter(|entry| entry.role() == state::Role::User && !entry.turn_id.is_empty())
        .map(|entry| (entry.turn_id.as_str(), entry.seq))
        .collect();
    for entry in history.iter().filter(|entry| entry.seq != user_seq) {
        let question = asked.get(entry.turn_id.as_str()).copied();
        match entry.role() {
            // A reply counts by its question's place.
            state::Role::Assistant | state::Role::Tool if question.is_some_and(|seq| seq < user_seq) => {
                replies.entry(&entry.turn_id).or_default().push(entry);
            }
            state::Role::Assistant | state::Role::Tool if question.is_some() => {}
            // Its question is of before a reset, or too long ago.
            state::Role::Assistant | state::Role::Tool if !entry.turn_id.is_empty() => {}
            state::Role::Assistant
            | state::Role::Tool
            | state::Role::User
            | state::Role::System
            | state::Role::Unspecified => {
                if entry.seq < user_seq {
                    earlier.push(entry);
                }
            }
        }
    }
    let mut ordered = Vec::with_capacity(history.len());
    for entry in earlier {
        ordered.push(entry);
        if entry.role() == state::Role::User {
            ordered.extend(replies.remove(entry.turn_id.as_str()).unwrap_or_default());
        }
    }
    ordered.push(own);
    prompt(ordered, options)
}

/// The newest of `entries` that fit, the last one in any case.
fn prompt(mut entries: Vec<&state::Entry>, options: &Options) -> Prompt {
    entries.retain(|entry| entry.role() != state::Role::Unspecified);
    let mut bytes = 0_usize;
    let fitting = entries
        .iter()
        .rev()
        .take(options.max_entries.max(1))
        .enumerate()
        .take_while(|(n, entry)| {
            bytes = bytes.saturating_add(entry.text.len());
            *n == 0 || bytes <= options.max_bytes
        })
        .count();
    let dropped = entries.len() - fitting;
    let mut kept = &entries[dropped..];
    if dropped > 0 {
        while let [first, rest @ ..] = kept
            && !rest.is_empty()
            && matches!(first.role(), state::Role::Assistant | state::Role::Tool)
        {
            kept = rest;
        }
    }
    let senders: HashSet<&str> =
        kept.iter().map(|entry| entry.sender.as_str()).filter(|name| !name.is_empty()).collect();
    let messages = kept.iter().filter_map(|entry| {
        let role = match entry.role() {
            state::Role::User => Role::User,
            state::Role::Assistant => Role::Assistant,
            state::Role::System => Role::System,
            state::Role::Tool => Role::Tool,
            state::Role::Unspecified => return None,
        };
        // Where several people write, who says what matters.
        let text = match entry.sender.as_str() {
            name if role == Role::User && senders.len() > 1 && !name.is_empty() => format!("{name}: {}", entry.text),
            _ => entry.text.clone(),
        };
        Some(PromptMessage { role, text })
    });
    Prompt {
        system: options.system_prompt.clone().filter(|text| !text.trim().is_empty()),
        messages: messages.collect(),
        max_output_tokens: options.max_output_tokens,
        temperature: options.temperature,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries as `u1:hello`: a role, the turn (`-` is none), a text. They count from 1.
    fn history(lines: &[&str]) -> Vec<state::Entry> {
        let parse = |(at, line): (usize, &&str)| {
            let (head, text) = line.split_once(':').unwrap();
            let (role, turn) = head.split_at(1);
            let role = match role {
                "u" => state::Role::User,
                "a" => state::Role::Assistant,
                "s" => state::Role::System,
                "t" => state::Role::Tool,
                other => panic!("{other}"),
            };
            state::Entry {
                seq: at as u64 + 1,
                role: role.into(),
                text: text.to_owned(),
                turn_id: turn.trim_matches('-').to_owned(),
                ..state::Entry::default()
            }
        };
        lines.iter().enumerate().map(parse).collect()
    }

    fn check(lines: &[&str], user_seq: u64, options: &Options, expected: &[&str]) {
        let prompt = build(&history(lines), user_seq, options);
        let texts: Vec<_> = prompt.messages.iter().map(|message| message.text.as_str()).collect();
        assert_eq!(texts, expected, "{lines:?} at {user_seq}");
    }

    fn budget(max_entries: usize, max_bytes: usize) -> Options {
        Options { max_entries, max_bytes, ..Options::default() }
    }

    #[test]
    fn a_conversation_stays_as_it_is() {
        let lines = ["s-:S", "u1:A", "a1:B", "u-:C", "a-:D", "u2:E"];
        check(&lines, 6, &Options::default(), &["S", "A", "B", "C", "D", "E"]);
        let prompt = build(&history(&lines), 6, &Options::default());
        let roles: Vec<_> = prompt.messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User, Role::Assistant, Role::User]);
    }

    #[test]
    fn replies_follow_their_questions_and_later_turns_are_left_out() {
        // Three messages were accepted before the first reply was committed.
        let lines = ["u1:A", "u2:B", "u3:C", "a1:a", "a2:b"];
        check(&lines[..3], 1, &Options::default(), &["A"]);
        check(&lines[..4], 2, &Options::default(), &["A", "a", "B"]);
        check(&lines, 3, &Options::default(), &["A", "a", "B", "b", "C"]);
        // An attempt after a crash sees its own turn's earlier tool results nowhere before its message.
        check(&["u1:A", "t1:x", "u-:later"], 1, &Options::default(), &["A"]);
    }

    #[test]
    fn the_oldest_are_dropped_first_with_replies_that_lost_their_question() {
        let lines = ["u1:A", "a1:B", "u2:C", "a2:D", "u3:E"];
        check(&lines, 5, &budget(4, 1000), &["C", "D", "E"]);
        check(&lines, 5, &budget(3, 1000), &["C", "D", "E"]);
        check(&lines, 5, &budget(2, 1000), &["E"]);
        check(&lines, 5, &budget(100, 3), &["C", "D", "E"]);
        check(&lines, 5, &budget(100, 2), &["E"]);
    }

    /// The message before it was running when somebody said `/new`: only what came after is read, and the reply came after.
    #[test]
    fn a_reply_whose_question_is_of_before_a_reset_is_left_out() {
        let mut after_reset = history(&["u1:A", "a1:B", "u2:C"]);
        after_reset.remove(0);
        let prompt = build(&after_reset, 3, &Options::default());
        assert_eq!(prompt.messages.iter().map(|message| &*message.text).collect::<Vec<_>>(), ["C"]);
    }

    #[test]
    fn where_several_people_write_each_is_named() {
        let mut of_ann = history(&["u1:I cannot eat nuts", "a1:Noted", "u2:What may I eat?"]);
        let texts = |entries: &[state::Entry]| -> Vec<String> {
            build(entries, 3, &Options::default()).messages.into_iter().map(|message| message.text).collect()
        };
        of_ann[0].sender = "Ann".to_owned();
        of_ann[2].sender = "Ann".to_owned();
        assert_eq!(texts(&of_ann), ["I cannot eat nuts", "Noted", "What may I eat?"]);
        of_ann[2].sender = "Bob".to_owned();
        assert_eq!(texts(&of_ann), ["Ann: I cannot eat nuts", "Noted", "Bob: What may I eat?"]);
    }

    #[test]
    fn the_turns_own_message_always_stays() {
        check(&["u1:A", "a1:B", "u2:a long message"], 3, &budget(0, 0), &["a long message"]);
        check(&["u1:A"], 1, &budget(1, 1), &["A"]);
    }

    #[test]
    fn a_missing_message_gives_what_was_before_it() {
        check(&["u1:A", "a1:B"], 9, &Options::default(), &["A", "B"]);
        check(&[], 1, &Options::default(), &[]);
    }

    #[test]
    fn the_system_prompt_is_kept_unless_blank() {
        let system = |text: &str| Options { system_prompt: Some(text.into()), ..Options::default() };
        assert_eq!(build(&[], 1, &system("be kind")).system.as_deref(), Some("be kind"));
        assert_eq!(build(&[], 1, &system(" \n")).system, None);
    }
}
