use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use tokio::time::{Instant, sleep_until};

use super::{Error, EventStream, FinishReason, ModelEvent, ModelProvider, Prompt, Role, Usage};

/// The model in the binary: it says back what it hears, word by word, and needs no key and no network.
///
/// The answer is a function of the prompt alone. It repeats the user's message and, from the second message on, says how many it
/// remembers, so that a person sees the conversation survive a change of instance.
///
/// A directive in the message asks for an answer of a given shape instead: `[tokens=64 delay=100ms]` gives the numbers 1 to 64
/// with 100 ms before each, so that a lost or doubled piece of a stream shows. Either part may be left out.
///
/// Units: a token is a word.
#[derive(Debug, Clone)]
pub struct Echo {
    token_delay: Duration,
}

const MAX_TOKENS: usize = 100_000;
const MAX_DELAY: Duration = Duration::from_secs(60);
/// The part of an earlier message that is quoted, in characters.
const QUOTED: usize = 80;

impl Echo {
    /// Waits `token_delay` before each word.
    pub fn new(token_delay: Duration) -> Self {
        Self { token_delay: token_delay.min(MAX_DELAY) }
    }
}

impl ModelProvider for Echo {
    fn stream<'a>(&'a self, _model: &'a str, prompt: Arc<Prompt>) -> BoxFuture<'a, Result<EventStream, Error>> {
        let (text, delay) = match Directive::find(prompt.last_user_text()) {
            Some(directive) => {
                let text = match directive.tokens {
                    Some(tokens) => numbers(tokens),
                    None => answer(&prompt),
                };
                (text, directive.delay.unwrap_or(self.token_delay))
            }
            None => (answer(&prompt), self.token_delay),
        };
        let mut words: Vec<String> = words(&text).map(str::to_owned).collect();
        let limit = prompt.max_output_tokens.map_or(usize::MAX, |limit| limit as usize);
        let reason = if words.len() > limit { FinishReason::Length } else { FinishReason::Stop };
        words.truncate(limit);
        let usage = Usage { input_tokens: input_tokens(&prompt), output_tokens: words.len() as u64 };

        let start = Instant::now();
        let deltas = stream::iter((1..).zip(words)).then(move |(n, word): (u32, String)| async move {
            // Counted from the start, so that what a slow reader cost is not added to the delays.
            if !delay.is_zero() {
                sleep_until(start + delay * n).await;
            }
            Ok(ModelEvent::Delta(word))
        });
        let finished = stream::iter([Ok(ModelEvent::Finished { usage, reason })]);
        Box::pin(async move { Ok(deltas.chain(finished).boxed()) })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        Box::pin(async { Ok(vec!["echo".to_owned()]) })
    }
}

fn answer(prompt: &Prompt) -> String {
    let mut heard =
        prompt.messages.iter().filter(|message| message.role == Role::User).map(|message| message.text.trim());
    let Some(last) = heard.next_back().filter(|text| !text.is_empty()) else {
        return "You said nothing, and I have nothing to add.".to_owned();
    };
    match heard.next_back() {
        None => format!(
            "You said: {last}\n\nI am echo, the model inside openclaw: I say back what I hear, one word at a time. Say something else, \
             and I will still know this, whichever instance answers."
        ),
        Some(before) => {
            let quoted: String = before.chars().take(QUOTED).collect();
            let more = if quoted.len() < before.len() { "…" } else { "" };
            let count = heard.count() + 2;
            format!("You said: {last}\n\nI remember {count} messages of yours; the one before this was: {quoted}{more}")
        }
    }
}

fn numbers(tokens: usize) -> String {
    (1..=tokens).map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
}

/// Each word with the white space after it: together they are the text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let word = rest.find(|c: char| !c.is_whitespace())?;
        let gap = word + rest[word..].find(char::is_whitespace).unwrap_or(rest.len() - word);
        let next = gap + rest[gap..].find(|c: char| !c.is_whitespace()).unwrap_or(rest.len() - gap);
        let (piece, after) = rest.split_at(next);
        rest = after;
        Some(piece)
    })
}

fn input_tokens(prompt: &Prompt) -> u64 {
    let texts = prompt.system.iter().chain(prompt.messages.iter().map(|message| &message.text));
    texts.map(|text| text.split_whitespace().count() as u64).sum()
}

/// What `[tokens=64 delay=100ms]` asks for.
#[derive(Debug, PartialEq)]
struct Directive {
    tokens: Option<usize>,
    delay: Option<Duration>,
}

impl Directive {
    /// The first bracket that is a directive as a whole; any other is ordinary text.
    fn find(text: &str) -> Option<Self> {
        text.match_indices('[').find_map(|(at, _)| {
            let inside = &text[at + 1..];
            Self::parse(&inside[..inside.find(']')?])
        })
    }

    fn parse(inside: &str) -> Option<Self> {
        let mut directive = Self { tokens: None, delay: None };
        for part in inside.split_whitespace() {
            match part.split_once('=')? {
                ("tokens", count) => directive.tokens = Some(count.parse::<usize>().ok()?.min(MAX_TOKENS)),
                ("delay", time) => {
                    let ms = time.strip_suffix("ms")?.parse().ok()?;
                    directive.delay = Some(Duration::from_millis(ms).min(MAX_DELAY));
                }
                (_, _) => return None,
            }
        }
        (directive.tokens.is_some() || directive.delay.is_some()).then_some(directive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::PromptMessage;

    fn prompt(texts: &[&str]) -> Prompt {
        let messages = texts.iter().map(|text| PromptMessage { role: Role::User, text: (*text).to_owned() }).collect();
        Prompt { messages, ..Prompt::default() }
    }

    async fn check(prompt: Prompt) -> (Vec<String>, Usage, FinishReason) {
        let echo = Echo::new(Duration::ZERO);
        let events: Vec<_> = echo.stream("echo", Arc::new(prompt)).await.unwrap().collect().await;
        let mut deltas = Vec::new();
        for event in events {
            match event.unwrap() {
                ModelEvent::Delta(text) => deltas.push(text),
                ModelEvent::Finished { usage, reason } => return (deltas, usage, reason),
            }
        }
        panic!("ended without Finished");
    }

    #[tokio::test]
    async fn says_back_what_it_hears_and_what_it_remembers() {
        let (deltas, usage, reason) = check(prompt(&["hello  there,\nyou"])).await;
        assert!(deltas.concat().starts_with("You said: hello  there,\nyou\n\nI am echo"), "{deltas:?}");
        assert_eq!((usage.input_tokens, usage.output_tokens), (3, deltas.len() as u64));
        assert_eq!(reason, FinishReason::Stop);

        let (deltas, ..) = check(prompt(&["one", "two", "three"])).await;
        assert_eq!(deltas.concat(), "You said: three\n\nI remember 3 messages of yours; the one before this was: two");
    }

    #[tokio::test]
    async fn a_directive_sets_the_number_of_tokens() {
        let (deltas, usage, _) = check(prompt(&["[x] load [tokens=5 delay=0ms]"])).await;
        assert_eq!(deltas, ["1 ", "2 ", "3 ", "4 ", "5"]);
        assert_eq!(usage.output_tokens, 5);
        let (deltas, ..) = check(prompt(&["[tokens=many]"])).await;
        assert!(deltas.concat().starts_with("You said: [tokens=many]"));
    }

    #[tokio::test]
    async fn the_output_limit_shortens_the_answer_and_says_so() {
        let limited = Prompt { max_output_tokens: Some(2), ..prompt(&["[tokens=5 delay=0ms]"]) };
        assert_eq!(
            check(limited).await,
            (vec!["1 ".into(), "2 ".into()], Usage { input_tokens: 2, output_tokens: 2 }, FinishReason::Length)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn waits_before_each_word() {
        let start = Instant::now();
        let (deltas, ..) = check(prompt(&["[tokens=64 delay=100ms]"])).await;
        assert_eq!(deltas.len(), 64);
        assert_eq!(start.elapsed(), Duration::from_millis(6400));
    }

    #[test]
    fn directives_are_bounded() {
        let directive = Directive::find("[tokens=99999999999 delay=999999999999ms]").unwrap();
        assert_eq!(directive, Directive { tokens: Some(MAX_TOKENS), delay: Some(MAX_DELAY) });
        for text in ["", "[", "[]", "[ ]", "[tokens=]", "[delay=5]", "[tokens=1 x]", "[tokens=-1]", "tokens=5"] {
            assert_eq!(Directive::find(text), None, "{text:?}");
        }
    }
}
