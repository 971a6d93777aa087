//! What a model's name asks the server to do: parts joined by `-`.
//!
//! | part | meaning |
//! |---|---|
//! | `m<tokens>x<ms>` | so many tokens, with so many milliseconds before each; without it 8 and 0 |
//! | `status<code>` | answers with this status; `after<s>` or `afterdate<s>` add `Retry-After`, `times<n>` does it n times only |
//! | `hang` | no first byte, ever |
//! | `break<n>`, `close<n>` | after n tokens the connection breaks, or the body ends as if it were complete |
//! | `garbage<n>`, `error<n>`, `stall<n>` | after n tokens comes broken JSON, an error object, or nothing more |
//! | `nousage`, `nodone`, `noreason` | leaves out the usage, the closing mark, the finish reason |
//! | `comments`, `crlf`, `split` | keep-alive comments, CRLF line ends, every byte in a chunk of its own and text beyond ASCII |
//! | `json` | answers in one piece although a stream was asked for |

use std::time::{Duration, SystemTime};

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderValue, StatusCode};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Behaviour {
    pub tokens: u32,
    pub delay: Duration,
    pub status: Option<Failure>,
    pub hang: bool,
    /// After so many tokens.
    pub fault: Option<(u32, Fault)>,
    pub usage: bool,
    pub done: bool,
    pub reason: bool,
    pub comments: bool,
    pub crlf: bool,
    pub split: bool,
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Break,
    Close,
    Garbage,
    Error,
    Stall,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Failure {
    pub status: StatusCode,
    pub retry_after: Option<RetryAfter>,
    /// Absent: always.
    pub times: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RetryAfter {
    Seconds(f64),
    Date(u32),
}

/// Enough for any test, and a bound for a process that others reach.
const MAX_TOKENS: u32 = 1_000_000;
const MAX_DELAY_MS: u64 = 60_000;

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            tokens: 8,
            delay: Duration::ZERO,
            status: None,
            hang: false,
            fault: None,
            usage: true,
            done: true,
            reason: true,
            comments: false,
            crlf: false,
            split: false,
            json: false,
        }
    }
}

impl Behaviour {
    /// `None`: there is no such model.
    pub fn parse(name: &str) -> Option<Self> {
        let mut behaviour = Self::default();
        for part in name.split('-') {
            behaviour.add(part)?;
        }
        Some(behaviour)
    }

    fn add(&mut self, part: &str) -> Option<()> {
        let digits = part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len());
        let (word, number) = part.split_at(digits);
        let fault = |fault| Some((number.parse().ok()?, fault));
        match (word, number) {
            ("m", size) => {
                let (tokens, ms) = size.split_once('x')?;
                self.tokens = tokens.parse().ok().filter(|tokens| *tokens <= MAX_TOKENS)?;
                self.delay = Duration::from_millis(ms.parse().ok().filter(|ms| *ms <= MAX_DELAY_MS)?);
            }
            ("status", code) => {
                let status = StatusCode::from_bytes(code.as_bytes()).ok()?;
                self.status = Some(Failure { status, retry_after: None, times: None });
            }
            ("after", seconds) => {
                self.status.as_mut()?.retry_after = Some(RetryAfter::Seconds(seconds.parse().ok()?));
            }
            ("afterdate", seconds) => {
                self.status.as_mut()?.retry_after = Some(RetryAfter::Date(seconds.parse().ok()?));
            }
            ("times", times) => self.status.as_mut()?.times = Some(times.parse().ok()?),
            ("break", _) => self.fault = Some(fault(Fault::Break)?),
            ("close", _) => self.fault = Some(fault(Fault::Close)?),
            ("garbage", _) => self.fault = Some(fault(Fault::Garbage)?),
            ("error", _) => self.fault = Some(fault(Fault::Error)?),
            ("stall", _) => self.fault = Some(fault(Fault::Stall)?),
            ("hang", "") => self.hang = true,
            ("nousage", "") => self.usage = false,
            ("nodone", "") => self.done = false,
            ("noreason", "") => self.reason = false,
            ("comments", "") => self.comments = true,
            ("crlf", "") => self.crlf = true,
            ("split", "") => self.split = true,
            ("json", "") => self.json = true,
            (_, _) => return None,
        }
        Some(())
    }

    /// Token `n`, from 1. Numbers, so that a lost or doubled one shows.
    pub fn token(&self, n: u32) -> String {
        let space = if n == 1 { "" } else { " " };
        if self.split { format!("{space}ü🦀{n}") } else { format!("{space}{n}") }
    }
}

impl Failure {
    pub(super) fn headers(&self) -> HeaderMap {
        let value = match self.retry_after {
            None => None,
            Some(RetryAfter::Seconds(seconds)) => Some(seconds.to_string()),
            Some(RetryAfter::Date(seconds)) => {
                Some(httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(seconds.into())))
            }
        };
        let value = value.and_then(|value| HeaderValue::from_str(&value).ok());
        value.into_iter().map(|value| (RETRY_AFTER, value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_to_do() {
        let slow = Behaviour::parse("m64x100").unwrap();
        assert_eq!((slow.tokens, slow.delay), (64, Duration::from_millis(100)));
        let limited = Behaviour::parse("m8x0-status429-after0.5-times2").unwrap().status.unwrap();
        assert_eq!((limited.status.as_u16(), limited.times), (429, Some(2)));
        assert_eq!(limited.headers()[RETRY_AFTER], "0.5");
        assert_eq!(Behaviour::parse("break3-comments").unwrap().fault, Some((3, Fault::Break)));
    }

    #[test]
    fn other_names_are_no_models() {
        let bad = [
            "",
            "gpt-5",
            "m8",
            "m8x",
            "mx0",
            "m99999999x0",
            "m1x99999999",
            "status9",
            "after1",
            "times1",
            "break",
            "hang1",
        ];
        for name in bad {
            assert_eq!(Behaviour::parse(name), None, "{name:?}");
        }
    }
}
