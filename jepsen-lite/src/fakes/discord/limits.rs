//! Rate limits: per route and channel, for everything together, for refused requests, and for starting sessions.
//!
//! Each is a window that opens with its first request. Discord's are undocumented but for their headers; these are near to what
//! its bots see.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::faults::Route;
use super::record::unix_ms;
use super::world::Id;

/// So many in so much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub requests: u32,
    pub per: Duration,
}

impl Limit {
    pub const fn new(requests: u32, per: Duration) -> Self {
        Self { requests, per }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Messages sent, per channel; messages edited, likewise.
    pub messages: Limit,
    /// Every other kind of request, per channel if it has one.
    pub others: Limit,
    /// All together.
    pub global: Limit,
    /// Answers 401, 403 and 429; past it the address is banned until the window ends.
    pub invalid: Limit,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            messages: Limit::new(5, Duration::from_secs(5)),
            others: Limit::new(50, Duration::from_secs(1)),
            global: Limit::new(50, Duration::from_secs(1)),
            invalid: Limit::new(10_000, Duration::from_secs(600)),
        }
    }
}

/// Different buckets that are kept; past it the windows that are over are forgotten.
const BUCKETS: usize = 10_000;

struct Window {
    from: Instant,
    used: u32,
}

impl Window {
    fn new() -> Self {
        Self { from: Instant::now(), used: 0 }
    }

    /// Opens anew once it is over.
    fn current(&mut self, limit: Limit) -> &mut Self {
        if self.from.elapsed() >= limit.per {
            *self = Self::new();
        }
        self
    }

    fn left(&self, limit: Limit) -> Duration {
        limit.per.saturating_sub(self.from.elapsed())
    }
}

/// What the headers of an answer say about its bucket.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bucket {
    pub(super) name: String,
    pub(super) limit: u32,
    pub(super) remaining: u32,
    pub(super) reset_after: Duration,
    pub(super) reset_unix_ms: u64,
}

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Limited {
    Bucket { bucket: Bucket, retry_after: Duration },
    Global { retry_after: Duration },
    Banned { retry_after: Duration },
}

pub(super) struct RateLimits {
    limits: Limits,
    buckets: HashMap<(Route, Option<Id>), Window>,
    global: Window,
    invalid: Window,
}

impl RateLimits {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, buckets: HashMap::new(), global: Window::new(), invalid: Window::new() }
    }

    pub(super) fn banned(&mut self) -> Option<Limited> {
        let limit = self.limits.invalid;
        let window = self.invalid.current(limit);
        (window.used >= limit.requests).then(|| Limited::Banned { retry_after: window.left(limit) })
    }

    /// Counts a request.
    pub(super) fn take(&mut self, route: Route, channel: Option<Id>) -> Result<Bucket, Limited> {
        let global = self.limits.global;
        let window = self.global.current(global);
        if window.used >= global.requests {
            return Err(Limited::Global { retry_after: window.left(global) });
        }
        window.used += 1;
        let limit = match route {
            Route::CreateMessage | Route::EditMessage => self.limits.messages,
            Route::GetGateway
            | Route::GetGatewayBot
            | Route::GetCurrentUser
            | Route::GetUser
            | Route::GetApplication
            | Route::CreateDm
            | Route::GetChannel
            | Route::GetMessages
            | Route::GetMessage
            | Route::DeleteMessage
            | Route::TriggerTyping
            | Route::StartThreadOnMessage
            | Route::StartThread
            | Route::Connect => self.limits.others,
        };
        if self.buckets.len() >= BUCKETS {
            let longest = self.limits.messages.per.max(self.limits.others.per);
            self.buckets.retain(|_, window| window.from.elapsed() < longest);
        }
        let window = self.buckets.entry((route, channel)).or_insert_with(Window::new).current(limit);
        let full = window.used >= limit.requests;
        if !full {
            window.used += 1;
        }
        let reset_after = window.left(limit);
        let bucket = Bucket {
            name: format!("fake-{route:?}"),
            limit: limit.requests,
            remaining: limit.requests - window.used,
            reset_after,
            reset_unix_ms: unix_ms() + u64::try_from(reset_after.as_millis()).unwrap_or(0),
        };
        if full { Err(Limited::Bucket { bucket, retry_after: reset_after }) } else { Ok(bucket) }
    }

    /// Counts an answer that Discord would rather not have given.
    pub(super) fn count_invalid(&mut self, status: u16) {
        if [401, 403, 429].contains(&status) {
            self.invalid.current(self.limits.invalid).used += 1;
        }
    }

    pub(super) fn invalid(&mut self) -> u32 {
        self.invalid.current(self.limits.invalid).used
    }
}

/// What starting sessions is bound by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartLimit {
    /// IDENTIFYs of all shards together; one more resets the token.
    pub starts: Limit,
    /// IDENTIFYs per `window` and shard modulo this.
    pub max_concurrency: u32,
    pub window: Duration,
}

impl Default for StartLimit {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Self { starts: Limit::new(1000, day), max_concurrency: 1, window: Duration::from_secs(5) }
    }
}

pub(super) struct Starts {
    limit: StartLimit,
    used: Window,
    last: HashMap<u64, Window>,
}

impl Starts {
    pub(super) fn new(limit: StartLimit) -> Self {
        Self { limit, used: Window::new(), last: HashMap::new() }
    }

    /// Counts an IDENTIFY; false: that was one too many.
    pub(super) fn take(&mut self) -> bool {
        let window = self.used.current(self.limit.starts);
        window.used = window.used.saturating_add(1);
        window.used <= self.limit.starts.requests
    }

    /// Whether this shard may identify now, beside those that did just before.
    pub(super) fn may_identify(&mut self, shard: u64) -> bool {
        let concurrency = u64::from(self.limit.max_concurrency.max(1));
        let one = Limit::new(1, self.limit.window);
        let window = self.last.entry(shard % concurrency).or_insert_with(Window::new).current(one);
        window.used += 1;
        window.used == 1
    }

    pub(super) fn limit(&self) -> StartLimit {
        self.limit
    }

    pub(super) fn remaining(&mut self) -> u32 {
        let window = self.used.current(self.limit.starts);
        self.limit.starts.requests.saturating_sub(window.used)
    }

    pub(super) fn reset_after(&mut self) -> Duration {
        self.used.current(self.limit.starts).left(self.limit.starts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1000);

    fn limits(messages: u32, global: u32) -> RateLimits {
        let of = |requests| Limit::new(requests, LONG);
        RateLimits::new(Limits { messages: of(messages), others: of(100), global: of(global), invalid: of(2) })
    }

    #[test]
    fn each_channel_has_a_bucket() {
        let mut limits = limits(1, 100);
        assert_eq!(limits.take(Route::CreateMessage, Some(Id(1))).unwrap().remaining, 0);
        assert!(limits.take(Route::CreateMessage, Some(Id(2))).is_ok());
        assert!(matches!(limits.take(Route::CreateMessage, Some(Id(1))), Err(Limited::Bucket { .. })));
        assert!(limits.take(Route::GetChannel, Some(Id(1))).is_ok());
    }

    #[test]
    fn everything_together_is_limited_too() {
        let mut limits = limits(100, 1);
        assert!(limits.take(Route::GetChannel, None).is_ok());
        assert!(matches!(limits.take(Route::GetUser, None), Err(Limited::Global { .. })));
    }

    #[test]
    fn refusals_lead_to_a_ban() {
        let mut limits = limits(1, 1);
        for status in [404, 401, 500, 403] {
            assert_eq!(limits.banned(), None);
            limits.count_invalid(status);
        }
        assert!(matches!(limits.banned(), Some(Limited::Banned { .. })));
    }

    #[test]
    fn sessions_start_one_by_one_and_not_for_ever() {
        let limit = StartLimit { starts: Limit::new(2, LONG), max_concurrency: 2, window: LONG };
        let mut starts = Starts::new(limit);
        assert!(starts.may_identify(0) && starts.may_identify(1) && !starts.may_identify(2));
        assert!(starts.take() && starts.take());
        assert_eq!(starts.remaining(), 0);
        assert!(!starts.take());
    }
}
