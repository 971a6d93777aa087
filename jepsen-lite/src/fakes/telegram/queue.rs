//! A bot's updates until they are confirmed, as TDLib's `TQueue` keeps them: pure, told what time it is.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::ids::{ChatId, UpdateId};

/// Updates that are kept at most; what comes after is lost, as with Telegram.
const MAX_UPDATES: usize = 100_000;
/// An offset that far after the last update counts as none.
const MAX_AHEAD: i64 = 10;
/// After a time without updates the numbers begin anew, somewhere.
const NUMBERS_HOLD: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: UpdateId,
    pub(super) body: Value,
    /// Updates of one chat are posted one after the other.
    chat: ChatId,
    /// Since 1970. `None`: never.
    expires: Option<Duration>,
    posting: Posting,
}

/// Where an update is on its way to a webhook.
#[derive(Debug, Clone, Copy)]
enum Posting {
    Waiting { fails: u32, since: Option<Instant> },
    Sent { fails: u32 },
}

const NEW: Posting = Posting::Waiting { fails: 0, since: None };

/// What a webhook may do next.
#[derive(Debug)]
pub(super) enum Next {
    Post {
        id: UpdateId,
        body: Value,
        fails: u32,
    },
    /// Nothing before then.
    At(Instant),
    Nothing,
}

#[derive(Debug)]
pub(super) struct Queue {
    pending: VecDeque<Pending>,
    /// The number of the next update.
    tail: i32,
    last_push: Option<Duration>,
    keep: Option<Duration>,
}

impl Queue {
    pub(super) fn new(keep: Option<Duration>) -> Self {
        Self { pending: VecDeque::new(), tail: somewhere(), last_push: None, keep }
    }

    /// `None`: the queue is full, and the update is lost.
    pub(super) fn push(&mut self, chat: ChatId, kind: &str, value: Value, now: Duration) -> Option<UpdateId> {
        self.drop_expired(now);
        if self.pending.len() >= MAX_UPDATES {
            return None;
        }
        if self.pending.is_empty() && self.last_push.is_some_and(|last| now > last + NUMBERS_HOLD) {
            self.tail = somewhere();
        }
        let id = UpdateId(self.tail);
        self.tail += 1;
        self.last_push = Some(now);
        let expires = self.keep.map(|keep| now + keep);
        let body = json!({"update_id": id.0, kind: value});
        self.pending.push_back(Pending { id, body, chat, expires, posting: NEW });
        Some(id)
    }

    /// Confirms everything below `offset`, and gives up to `limit` of what is left, with the offset that was meant.
    pub(super) fn take(&mut self, offset: i64, limit: usize, now: Duration) -> (i64, Vec<Value>) {
        if let Ok(kept) = usize::try_from(-offset)
            && offset < 0
        {
            self.pending.drain(..self.pending.len().saturating_sub(kept));
        }
        self.drop_expired(now);
        let head = i64::from(self.pending.front().map_or(self.tail, |first| first.id.0));
        let unknown = offset > i64::from(self.tail) + MAX_AHEAD || offset < head - MAX_UPDATES as i64;
        let offset = if offset <= 0 || unknown { head } else { offset };
        self.pending.retain(|pending| i64::from(pending.id.0) >= offset);
        (offset, self.pending.iter().take(limit).map(|pending| pending.body.clone()).collect())
    }

    pub(super) fn drop_expired(&mut self, now: Duration) {
        self.pending.retain(|pending| pending.expires.is_none_or(|expires| now < expires));
    }

    pub(super) fn clear(&mut self) {
        self.pending.clear();
    }

    pub(super) fn ids(&self) -> Vec<UpdateId> {
        self.pending.iter().map(|pending| pending.id).collect()
    }

    /// The next update to post when `most` may be under way; it counts as sent from now on.
    pub(super) fn next_post(&mut self, most: usize, at: Instant) -> Next {
        let mut busy = HashSet::new();
        let mut earliest: Option<Instant> = None;
        let sent = self.pending.iter().filter(|pending| matches!(pending.posting, Posting::Sent { .. })).count();
        if sent >= most {
            return Next::Nothing;
        }
        for pending in &mut self.pending {
            // Only the first of a chat may go.
            if !busy.insert(pending.chat) {
                continue;
            }
            match pending.posting {
                Posting::Sent { .. } => {}
                Posting::Waiting { since: Some(since), .. } if since > at => {
                    earliest = Some(earliest.map_or(since, |earliest| earliest.min(since)));
                }
                Posting::Waiting { fails, .. } => {
                    pending.posting = Posting::Sent { fails };
                    return Next::Post { id: pending.id, body: pending.body.clone(), fails };
                }
            }
        }
        earliest.map_or(Next::Nothing, Next::At)
    }

    pub(super) fn posted(&mut self, id: UpdateId) {
        self.pending.retain(|pending| pending.id != id);
    }

    pub(super) fn not_posted(&mut self, id: UpdateId, again: Instant) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.id == id)
            && let Posting::Sent { fails } = pending.posting
        {
            pending.posting = Posting::Waiting { fails: fails + 1, since: Some(again) };
        }
    }

    /// The webhook is another, or none: nothing is under way.
    pub(super) fn forget_posting(&mut self) {
        for pending in &mut self.pending {
            pending.posting = NEW;
        }
    }
}

/// Far from both ends, as `TQueue` chooses.
fn somewhere() -> i32 {
    rand::rng().random_range(2_000_001..i32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn queue(updates: u32) -> (Queue, i64) {
        let mut queue = Queue::new(Some(DAY));
        let first = i64::from(queue.tail);
        for n in 0..updates {
            queue.push(ChatId(1), "message", json!(n), Duration::ZERO).unwrap();
        }
        (queue, first)
    }

    fn taken(queue: &mut Queue, offset: i64, limit: usize) -> Vec<u64> {
        queue.take(offset, limit, Duration::ZERO).1.iter().map(|update| update["message"].as_u64().unwrap()).collect()
    }

    #[test]
    fn asking_with_an_offset_confirms_everything_below_it() {
        let (mut queue, first) = queue(4);
        assert_eq!(taken(&mut queue, 0, 2), [0, 1]);
        assert_eq!(taken(&mut queue, 0, 100), [0, 1, 2, 3], "nothing was confirmed");
        assert_eq!(taken(&mut queue, first + 3, 100), [3]);
        assert_eq!(taken(&mut queue, first, 100), [3], "what is confirmed is gone");
        assert_eq!(taken(&mut queue, first + 4, 100), [0; 0]);
        assert_eq!(queue.ids(), []);
    }

    #[test]
    fn a_negative_offset_forgets_all_but_the_last() {
        let (mut queue, _) = queue(4);
        assert_eq!(taken(&mut queue, -3, 2), [1, 2]);
        assert_eq!(taken(&mut queue, -1, 100), [3]);
    }

    #[test]
    fn an_offset_in_the_far_future_confirms_nothing() {
        let (mut queue, first) = queue(2);
        assert_eq!(taken(&mut queue, first + 2 + MAX_AHEAD + 1, 100), [0, 1]);
        assert_eq!(taken(&mut queue, first + 2 + MAX_AHEAD, 100), [0; 0]);
        assert_eq!(queue.ids(), []);
    }

    #[test]
    fn updates_are_kept_for_a_day_and_numbers_for_a_week() {
        let (mut queue, first) = queue(1);
        assert_eq!(queue.take(0, 100, DAY - Duration::from_secs(1)).1.len(), 1);
        assert_eq!(queue.take(0, 100, DAY).1.len(), 0);
        let next = queue.push(ChatId(1), "message", json!(1), DAY * 7).unwrap();
        assert_eq!(i64::from(next.0), first + 1);
        queue.clear();
        let next = queue.push(ChatId(1), "message", json!(1), DAY * 15).unwrap();
        assert_ne!(i64::from(next.0), first + 2);
    }

    #[test]
    fn a_chats_updates_are_posted_in_order_and_chats_beside_each_other() {
        let mut queue = Queue::new(None);
        for chat in [1, 1, 2, 3] {
            queue.push(ChatId(chat), "message", json!(chat), Duration::ZERO).unwrap();
        }
        let now = Instant::now();
        let ids = queue.ids();
        let post = |queue: &mut Queue, at| match queue.next_post(2, at) {
            Next::Post { id, .. } => ids.iter().position(|known| *known == id),
            Next::At(_) | Next::Nothing => None,
        };
        assert_eq!(post(&mut queue, now), Some(0));
        assert_eq!(post(&mut queue, now), Some(2), "the second of chat 1 waits for the first");
        assert_eq!(post(&mut queue, now), None, "two are under way");
        queue.posted(ids[2]);
        queue.not_posted(ids[0], now + DAY);
        assert_eq!(post(&mut queue, now), Some(3));
        assert!(matches!(queue.next_post(2, now), Next::At(at) if at == now + DAY));
        assert_eq!(post(&mut queue, now + DAY), Some(0));
    }
}
