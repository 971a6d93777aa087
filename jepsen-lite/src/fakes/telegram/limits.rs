//! How much a bot may send: about one message per second and chat, twenty per minute and group, thirty per second in all.
//!
//! Telegram promises no figures and forgives short bursts; these are the ones its support names, kept exactly. What was
//! refused does not count, so waiting as long as the answer says is always enough.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::ids::ChatId;

#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub count: usize,
    pub within: Duration,
}

#[derive(Debug, Clone)]
pub struct RateLimits {
    pub per_chat: Rate,
    /// Beside `per_chat`, in groups.
    pub per_group: Rate,
    pub overall: Rate,
}

impl Default for RateLimits {
    fn default() -> Self {
        let rate = |count, seconds| Rate { count, within: Duration::from_secs(seconds) };
        Self { per_chat: rate(1, 1), per_group: rate(20, 60), overall: rate(30, 1) }
    }
}

/// What one bot sent of late.
#[derive(Debug, Default)]
pub(super) struct Sent {
    overall: VecDeque<Instant>,
    /// As many chats as the test has.
    chats: HashMap<ChatId, VecDeque<Instant>>,
}

impl Sent {
    /// Counts one more, or says how long to wait for it.
    pub(super) fn admit(&mut self, limits: &RateLimits, chat: ChatId, now: Instant) -> Result<(), Duration> {
        let mut rates = vec![limits.per_chat];
        if chat.0 < 0 {
            rates.push(limits.per_group);
        }
        let in_chat = self.chats.entry(chat).or_default();
        let mut wait = wait(&self.overall, limits.overall, now);
        for rate in &rates {
            wait = wait.max(self::wait(in_chat, *rate, now));
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        for (log, kept) in [
            (in_chat, rates.iter().map(|rate| rate.count).max().unwrap_or(0)),
            (&mut self.overall, limits.overall.count),
        ] {
            log.push_back(now);
            while log.len() > kept {
                log.pop_front();
            }
        }
        Ok(())
    }
}

fn wait(log: &VecDeque<Instant>, rate: Rate, now: Instant) -> Duration {
    let oldest = log.len().checked_sub(rate.count).and_then(|at| log.get(at));
    oldest.map_or(Duration::ZERO, |oldest| (*oldest + rate.within).saturating_duration_since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_is_admitted_when_the_oldest_has_left_the_window() {
        let (mut sent, start) = (Sent::default(), Instant::now());
        let after = |millis| start + Duration::from_millis(millis);
        let limits = RateLimits { overall: Rate { count: 2, within: Duration::from_secs(1) }, ..RateLimits::default() };
        assert_eq!(sent.admit(&limits, ChatId(1), after(0)), Ok(()));
        assert_eq!(sent.admit(&limits, ChatId(1), after(400)), Err(Duration::from_millis(600)));
        assert_eq!(sent.admit(&limits, ChatId(2), after(500)), Ok(()));
        assert_eq!(sent.admit(&limits, ChatId(3), after(600)), Err(Duration::from_millis(400)));
        assert_eq!(sent.admit(&limits, ChatId(1), after(1000)), Ok(()));
    }

    #[test]
    fn a_group_has_a_limit_of_its_own() {
        let (mut sent, start, limits) = (Sent::default(), Instant::now(), RateLimits::default());
        for second in 0..20 {
            assert_eq!(sent.admit(&limits, ChatId(-1), start + Duration::from_secs(second)), Ok(()));
        }
        assert_eq!(sent.admit(&limits, ChatId(-1), start + Duration::from_secs(20)), Err(Duration::from_secs(40)));
    }
}
