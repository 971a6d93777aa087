//! Tokens that were presented and are not the token: who presents them, and how often.
//!
//! A client that presents too many is told to wait, and the log names it. Who has the token is never refused, whatever others do
//! at the same address, so this is no defence of a token that can be guessed: it makes guessing seen, and cheap to turn away.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use openclaw_proto::http::ErrorCode;
use parking_lot::Mutex;
use tracing::warn;

use super::auth::Refusal;
use super::error::ApiError;

/// What a client may present in a minute before it is told to wait for the rest of it.
const PER_MINUTE: u32 = 20;
const MINUTE: Duration = Duration::from_secs(60);
/// Clients that are remembered; with more of them the one that began first is forgotten.
const CLIENTS: usize = 10_000;
/// Between two lines of the log.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Wrong tokens of the last minute.
#[derive(Default)]
pub(super) struct Guesses(Mutex<Lately>);

impl Guesses {
    /// What a refused caller is told, whose address is not known where it is a file.
    pub(super) fn judge(&self, refusal: &Refusal, client: Option<IpAddr>) -> ApiError {
        let refused = ApiError::new(ErrorCode::Unauthorized, refusal.message);
        let Some(client) = client.filter(|_| refusal.guessed) else { return refused };
        let seen = self.0.lock().see(client, Instant::now());
        if let Some(untold) = seen.tell {
            let count = seen.count;
            warn!(%client, count, before = untold, "a wrong token was presented; count: by this client within a minute; before: by anybody since the last such line");
        }
        // Tools on the machine itself: whoever is there has better ways.
        if seen.count <= PER_MINUTE || client.is_loopback() {
            return refused;
        }
        let message = format!("more than {PER_MINUTE} wrong tokens within a minute; the right one is still accepted");
        ApiError { retry_after: Some(seen.left), ..ApiError::new(ErrorCode::Busy, message) }
    }
}

#[derive(Default)]
struct Lately {
    clients: HashMap<IpAddr, Minute>,
    /// Each of them, in the order in which their minutes began.
    began: VecDeque<(Instant, IpAddr)>,
    told: Option<Instant>,
    untold: u64,
}

#[derive(Clone, Copy)]
struct Minute {
    began: Instant,
    count: u32,
}

struct Seen {
    count: u32,
    /// Of the client's minute.
    left: Duration,
    /// Whether to write a line, and how many have had none since the last one.
    tell: Option<u64>,
}

impl Lately {
    fn see(&mut self, client: IpAddr, now: Instant) -> Seen {
        while let Some((began, client)) = self.began.front()
            && now.saturating_duration_since(*began) >= MINUTE
        {
            self.clients.remove(client);
            self.began.pop_front();
        }
        let client = network(client);
        if !self.clients.contains_key(&client) {
            if self.began.len() >= CLIENTS
                && let Some((_, oldest)) = self.began.pop_front()
            {
                self.clients.remove(&oldest);
            }
            self.began.push_back((now, client));
        }
        let minute = self.clients.entry(client).or_insert(Minute { began: now, count: 0 });
        minute.count = minute.count.saturating_add(1);
        let Minute { began, count } = *minute;
        Seen { count, left: MINUTE.saturating_sub(now.saturating_duration_since(began)), tell: self.tell(now) }
    }

    fn tell(&mut self, now: Instant) -> Option<u64> {
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < TELL_EVERY) {
            self.untold += 1;
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

/// Who has one address of IPv6 has as many as there are in its network.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    #[test]
    fn counts_are_of_one_client_and_of_one_minute() {
        let (mut lately, begin) = (Lately::default(), Instant::now());
        for n in 1..=PER_MINUTE + 1 {
            assert_eq!(lately.see(client(1), begin).count, n);
        }
        let later = begin + Duration::from_secs(45);
        assert_eq!(lately.see(client(2), later).count, 1);
        let again = lately.see(client(1), later);
        assert_eq!((again.count, again.left), (PER_MINUTE + 2, Duration::from_secs(15)));
        assert_eq!(lately.see(client(1), begin + MINUTE).count, 1);
        assert_eq!(lately.see(client(2), begin + MINUTE).count, 2, "its own minute is not over");
    }

    #[test]
    fn so_many_clients_are_remembered_and_the_oldest_is_forgotten_first() {
        let (mut lately, now) = (Lately::default(), Instant::now());
        for n in 0..=u32::try_from(CLIENTS).unwrap() {
            lately.see(client(n), now);
        }
        assert_eq!((lately.clients.len(), lately.began.len()), (CLIENTS, CLIENTS));
        assert_eq!(lately.see(client(1), now).count, 2);
        assert_eq!(lately.see(client(0), now).count, 1, "forgotten");
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let (mut lately, now) = (Lately::default(), Instant::now());
        lately.see("2001:db8:0:1::1".parse().unwrap(), now);
        assert_eq!(lately.see("2001:db8:0:1:ffff::2".parse().unwrap(), now).count, 2);
        assert_eq!(lately.see("2001:db8:0:2::1".parse().unwrap(), now).count, 1);
    }

    #[test]
    fn the_log_is_told_now_and_then() {
        let (mut lately, now) = (Lately::default(), Instant::now());
        let mut told = |seconds| lately.see(client(1), now + Duration::from_secs(seconds)).tell;
        assert_eq!([told(0), told(1), told(9), told(10), told(11)], [Some(0), None, None, Some(2), None]);
    }

    #[test]
    fn who_presents_too_many_waits_and_who_presents_none_or_is_on_this_machine_does_not() {
        let (wrong, missing) =
            (Refusal { message: "wrong", guessed: true }, Refusal { message: "missing", guessed: false });
        for (address, refusal, last) in [
            (client(1), &wrong, ErrorCode::Busy),
            (client(2), &missing, ErrorCode::Unauthorized),
            ("127.0.0.1".parse().unwrap(), &wrong, ErrorCode::Unauthorized),
            ("::1".parse().unwrap(), &wrong, ErrorCode::Unauthorized),
        ] {
            let guesses = Guesses::default();
            for _ in 0..PER_MINUTE {
                assert_eq!(guesses.judge(refusal, Some(address)).code, ErrorCode::Unauthorized);
            }
            let judged = guesses.judge(refusal, Some(address));
            assert_eq!(judged.code, last, "{address}");
            assert_eq!(judged.retry_after.is_some(), last == ErrorCode::Busy);
        }
    }
}
