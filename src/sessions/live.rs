//! The text of running turns, in memory, for as long as somebody may read it.
//!
//! Owns one [`Slot`] per turn that runs here or is watched here: the numbered deltas of the attempt that runs on this
//! instance, and the newest row that an event showed. A reader holds a position, not a queue: the text exists once per
//! turn however many read it and however slowly, and whoever fell behind gets the missing deltas as one. Nothing here
//! is durable; what a reply finally is comes from the store. Deltas come from the runner, rows from store events.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use openclaw_proto::ids::TurnId;
use openclaw_proto::state::Turn;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Bounds of what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most text of one attempt; a longer reply fails its turn.
    pub turn_bytes: usize,
    /// Deltas of one attempt that keep their own number; later ones are joined up to [`Limits::joined_bytes`].
    pub turn_deltas: usize,
    pub joined_bytes: usize,
    /// How long an ended turn stays for readers that come back.
    pub linger: Duration,
    /// Most text of ended turns; past it the oldest go early.
    pub linger_bytes: usize,
    /// Most text that a reader gets as one delta.
    pub piece_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            turn_bytes: 4 << 20,
            turn_deltas: 16 << 10,
            joined_bytes: 256,
            linger: Duration::from_secs(10),
            linger_bytes: 32 << 20,
            piece_bytes: 64 << 10,
        }
    }
}

/// The reply is longer than [`Limits::turn_bytes`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the reply is longer than {limit} bytes")]
pub struct TooLong {
    pub limit: usize,
}

/// All slots of this instance. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limits: Limits,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    by_turn: HashMap<TurnId, Arc<Slot>>,
    /// Ended turns, oldest first, with the bytes that each holds.
    ended: VecDeque<(Instant, TurnId, Arc<Slot>, usize)>,
    ended_bytes: usize,
}

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    attempt: Option<Attempt>,
    row: Option<Turn>,
    /// Grows when `row` changes, or may have changed unseen.
    row_version: u64,
}

/// One attempt's text. Delta `n` (from 1) ends at `ends[n - 1]`; what lies behind the last end waits to be joined.
#[derive(Debug)]
struct Attempt {
    number: u32,
    text: String,
    ends: Vec<u32>,
    ended: bool,
}

impl Attempt {
    fn published(&self) -> usize {
        self.ends.last().map_or(0, |end| *end as usize)
    }

    /// How many deltas a reader at this position has read of this attempt; `None` where it knows a later one.
    fn read_at(&self, after_attempt: u32, after_n: u64) -> Option<usize> {
        match after_attempt.cmp(&self.number) {
            Ordering::Less => Some(0),
            Ordering::Equal => Some(usize::try_from(after_n).unwrap_or(usize::MAX)),
            Ordering::Greater => None,
        }
    }

    fn close_delta(&mut self) {
        if self.published() < self.text.len() {
            // `Limits::turn_bytes` keeps texts far below 4 GiB.
            self.ends.push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
        }
    }
}

/// What a reader finds after its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The deltas up to number `n`, joined.
    Delta { attempt: u32, n: u64, text: String },
    /// More may come.
    Waiting,
    /// The attempt is over and all of it was read; how it ended is in the replicated state.
    Ended { attempt: u32 },
    /// No attempt runs here that the reader has not read.
    Absent,
}

impl Hub {
    pub fn new(limits: Limits) -> Self {
        Self { inner: Arc::new(Inner { limits, slots: Mutex::default() }) }
    }

    /// Begins an attempt here. Readers of an earlier one see the new attempt's number.
    pub fn begin(&self, turn: &TurnId, attempt: u32) -> Publisher {
        let slot = self.slot(turn);
        slot.state.lock().attempt =
            Some(Attempt { number: attempt, text: String::new(), ends: Vec::new(), ended: false });
        slot.changed.notify_waiters();
        Publisher { hub: self.clone(), turn: turn.clone(), attempt, slot }
    }

    /// A reader's hold on a turn. It sees every row that is observed from here on.
    pub fn watch(&self, turn: &TurnId) -> Watch {
        let slot = self.slot(turn);
        Watch { hub: self.clone(), turn: turn.clone(), slot }
    }

    /// Shows a turn's row to those who watch it. An older row than the one they know is dropped.
    pub fn observe(&self, id: &TurnId, row: &Turn) {
        let Some(slot) = self.inner.slots.lock().by_turn.get(id).cloned() else { return };
        {
            let mut state = slot.state.lock();
            if state.row.as_ref().is_some_and(|known| !newer(row, known)) {
                return;
            }
            state.row = Some(row.clone());
            state.row_version += 1;
        }
        slot.changed.notify_waiters();
    }

    /// Tells everybody who watches to read the state again: events were missed.
    pub fn recheck(&self) {
        let slots: Vec<_> = self.inner.slots.lock().by_turn.values().cloned().collect();
        for slot in slots {
            slot.state.lock().row_version += 1;
            slot.changed.notify_waiters();
        }
    }

    /// Drops ended turns whose time has passed.
    pub fn expire(&self) {
        let now = Instant::now();
        let mut slots = self.inner.slots.lock();
        while let Some((at, ..)) = slots.ended.front() {
            if slots.ended_bytes <= self.inner.limits.linger_bytes && now < *at + self.inner.limits.linger {
                return;
            }
            let Some((_, turn, slot, bytes)) = slots.ended.pop_front() else { return };
            slots.ended_bytes -= bytes;
            // A later attempt may have taken the turn's place; and readers, who wait for its end to be committed, drop it
            // themselves. Otherwise the map and this function hold it.
            let idle = Arc::strong_count(&slot) == 2 && slot.is_over();
            if idle && slots.by_turn.get(&turn).is_some_and(|present| Arc::ptr_eq(present, &slot)) {
                slots.by_turn.remove(&turn);
            }
        }
    }

    /// Turns that run or are read here.
    pub fn len(&self) -> usize {
        self.inner.slots.lock().by_turn.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn slot(&self, turn: &TurnId) -> Arc<Slot> {
        self.inner.slots.lock().by_turn.entry(turn.clone()).or_default().clone()
    }
}

/// Whether `row` tells more than `known`: a later grant, or a later state of the same one.
fn newer(row: &Turn, known: &Turn) -> bool {
    (row.fencing_token, row.state) > (known.fencing_token, known.state)
}

impl Slot {
    fn is_over(&self) -> bool {
        self.state.lock().attempt.as_ref().is_none_or(|attempt| attempt.ended)
    }
}

/// The runner's end: publishes an attempt's deltas. Dropping it ends the attempt.
#[derive(Debug)]
pub struct Publisher {
    hub: Hub,
    turn: TurnId,
    attempt: u32,
    slot: Arc<Slot>,
}

impl Publisher {
    /// Appends text to the attempt.
    ///
    /// # Errors
    /// [`TooLong`] once the attempt's text would pass [`Limits::turn_bytes`].
    pub fn publish(&self, text: &str) -> Result<(), TooLong> {
        let limits = self.hub.inner.limits;
        {
            let mut state = self.slot.state.lock();
            let Some(attempt) = state.attempt.as_mut().filter(|attempt| attempt.number == self.attempt) else {
                return Ok(());
            };
            if attempt.text.len() + text.len() > limits.turn_bytes {
                return Err(TooLong { limit: limits.turn_bytes });
            }
            attempt.text.push_str(text);
            let waiting = attempt.text.len() - attempt.published();
            if attempt.ends.len() >= limits.turn_deltas && waiting < limits.joined_bytes {
                return Ok(());
            }
            attempt.close_delta();
        }
        self.slot.changed.notify_waiters();
        Ok(())
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let bytes = {
            let mut state = self.slot.state.lock();
            match state.attempt.as_mut().filter(|attempt| attempt.number == self.attempt) {
                Some(attempt) => {
                    attempt.close_delta();
                    attempt.ended = true;
                    attempt.text.len()
                }
                None => 0,
            }
        };
        self.slot.changed.notify_waiters();
        {
            let mut slots = self.hub.inner.slots.lock();
            slots.ended_bytes += bytes;
            let slot = std::mem::take(&mut self.slot);
            slots.ended.push_back((Instant::now(), self.turn.clone(), slot, bytes));
        }
        self.hub.expire();
    }
}

/// A reader's end.
#[derive(Debug)]
pub struct Watch {
    hub: Hub,
    turn: TurnId,
    slot: Arc<Slot>,
}

impl Watch {
    /// What follows the position (`attempt`, `n`). A position in an older attempt reads the present one from its start;
    /// an attempt older than the position's is of no interest.
    pub fn read(&self, after_attempt: u32, after_n: u64) -> Piece {
        let state = self.slot.state.lock();
        let Some(attempt) = &state.attempt else { return Piece::Absent };
        let Some(read) = attempt.read_at(after_attempt, after_n) else { return Piece::Absent };
        if read >= attempt.ends.len() {
            return if attempt.ended { Piece::Ended { attempt: attempt.number } } else { Piece::Waiting };
        }
        let from = if read == 0 { 0 } else { attempt.ends[read - 1] as usize };
        // At least one delta, however large; then as many as fit.
        let most = from.saturating_add(self.hub.inner.limits.piece_bytes);
        let last = read + attempt.ends[read + 1..].partition_point(|end| *end as usize <= most);
        Piece::Delta {
            attempt: attempt.number,
            n: last as u64 + 1,
            text: attempt.text[from..attempt.ends[last] as usize].to_owned(),
        }
    }

    /// The newest row that an event showed, and the version that [`Watch::changed`] compares.
    pub fn row(&self) -> (u64, Option<Turn>) {
        let state = self.slot.state.lock();
        (state.row_version, state.row.clone())
    }

    /// The version alone.
    pub fn row_version(&self) -> u64 {
        self.slot.state.lock().row_version
    }

    /// Waits until there is something after the position, or the row changed from `row_version`.
    pub async fn changed(&self, after_attempt: u32, after_n: u64, row_version: u64) {
        loop {
            let notified = self.slot.changed.notified();
            tokio::pin!(notified);
            // Registered before looking, so that no change falls between.
            notified.as_mut().enable();
            if self.row_version() != row_version || self.has_news(after_attempt, after_n) {
                return;
            }
            notified.await;
        }
    }

    /// Waits until the row changed from `row_version`, whatever happens to the text.
    pub async fn row_changed(&self, row_version: u64) {
        loop {
            let notified = self.slot.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.row_version() != row_version {
                return;
            }
            notified.await;
        }
    }

    fn has_news(&self, after_attempt: u32, after_n: u64) -> bool {
        let state = self.slot.state.lock();
        let Some(attempt) = &state.attempt else { return false };
        attempt.read_at(after_attempt, after_n).is_some_and(|read| attempt.ended || attempt.ends.len() > read)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut slots = self.hub.inner.slots.lock();
        // Given up while the map is locked: of two readers that leave at once, the second sees that it is the last.
        let slot = std::mem::take(&mut self.slot);
        let unused = slots.by_turn.get(&self.turn).is_some_and(|present| {
            // This reader and the map hold it; any more are other readers, a publisher or the list of ended turns.
            Arc::ptr_eq(present, &slot) && Arc::strong_count(present) == 2
        });
        if unused {
            slots.by_turn.remove(&self.turn);
        }
        drop(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(limits: Limits) -> (Hub, TurnId) {
        (Hub::new(limits), TurnId::random())
    }

    fn text_of(piece: Piece) -> (u64, String) {
        match piece {
            Piece::Delta { n, text, .. } => (n, text),
            other @ (Piece::Waiting | Piece::Ended { .. } | Piece::Absent) => panic!("{other:?} is not a delta"),
        }
    }

    #[test]
    fn a_reader_continues_after_any_position_without_gap_or_repeat() {
        let (hub, turn) = hub(Limits::default());
        let publisher = hub.begin(&turn, 1);
        let deltas: Vec<String> = (0..20).map(|n| format!("<{n}é>")).collect();
        for delta in &deltas {
            publisher.publish(delta).unwrap();
        }
        drop(publisher);
        let watch = hub.watch(&turn);
        for read in 0..deltas.len() {
            let (n, text) = text_of(watch.read(1, read as u64));
            assert_eq!((n, text), (20, deltas[read..].concat()));
        }
        assert_eq!(watch.read(1, 20), Piece::Ended { attempt: 1 });
        assert_eq!(watch.read(1, u64::MAX), Piece::Ended { attempt: 1 });
    }

    #[test]
    fn pieces_are_bounded_and_add_up() {
        let (hub, turn) = hub(Limits { piece_bytes: 10, ..Limits::default() });
        let publisher = hub.begin(&turn, 1);
        for delta in ["aaaa", "bbbb", "cccc", "a delta longer than a piece", "d"] {
            publisher.publish(delta).unwrap();
        }
        let watch = hub.watch(&turn);
        let mut got = Vec::new();
        let mut position = 0;
        while let Piece::Delta { n, text, .. } = watch.read(1, position) {
            position = n;
            got.push(text);
        }
        assert_eq!(got, ["aaaabbbb", "cccc", "a delta longer than a piece", "d"]);
        assert_eq!(watch.read(1, position), Piece::Waiting);
    }

    #[test]
    fn a_chatty_turn_is_joined_and_loses_nothing() {
        let (hub, turn) = hub(Limits { turn_deltas: 4, joined_bytes: 8, ..Limits::default() });
        let publisher = hub.begin(&turn, 1);
        for _ in 0..103 {
            publisher.publish("x").unwrap();
        }
        drop(publisher);
        let (n, text) = text_of(hub.watch(&turn).read(1, 0));
        assert_eq!(text.len(), 103);
        assert_eq!(n, 4 + 99u64.div_ceil(8));
    }

    #[test]
    fn a_reply_past_the_limit_is_refused() {
        let (hub, turn) = hub(Limits { turn_bytes: 10, ..Limits::default() });
        let publisher = hub.begin(&turn, 1);
        publisher.publish("0123456789").unwrap();
        assert_eq!(publisher.publish("0"), Err(TooLong { limit: 10 }));
    }

    #[test]
    fn a_later_attempt_replaces_the_text() {
        let (hub, turn) = hub(Limits::default());
        let first = hub.begin(&turn, 1);
        first.publish("old").unwrap();
        let second = hub.begin(&turn, 2);
        second.publish("new").unwrap();
        first.publish("late").unwrap();
        drop(first);
        let watch = hub.watch(&turn);
        assert_eq!(watch.read(1, 1), Piece::Delta { attempt: 2, n: 1, text: "new".into() });
        assert_eq!(watch.read(2, 1), Piece::Waiting);
        assert_eq!(watch.read(3, 0), Piece::Absent);
    }

    #[test]
    fn what_nobody_needs_is_dropped() {
        let (hub, turn) = hub(Limits { linger: Duration::ZERO, ..Limits::default() });
        let watch = hub.watch(&turn);
        drop(hub.watch(&turn));
        assert_eq!(hub.len(), 1);
        drop(watch);
        assert!(hub.is_empty());
        drop(hub.begin(&turn, 1));
        hub.expire();
        assert!(hub.is_empty());
    }

    #[test]
    fn readers_of_an_ended_text_are_still_told_what_becomes_of_the_turn() {
        let (hub, turn) = hub(Limits { linger: Duration::ZERO, ..Limits::default() });
        let watch = hub.watch(&turn);
        drop(hub.begin(&turn, 1));
        hub.expire();
        let row = Turn { fencing_token: 5, state: 3, ..Turn::default() };
        hub.observe(&turn, &row);
        assert_eq!(watch.row().1, Some(row));
        drop(watch);
        assert!(hub.is_empty());
    }

    #[test]
    fn two_readers_that_leave_at_once_leave_nothing() {
        for _ in 0..500 {
            let (hub, turn) = hub(Limits::default());
            let together = std::sync::Barrier::new(2);
            let watches = [hub.watch(&turn), hub.watch(&turn)];
            std::thread::scope(|scope| {
                for watch in watches {
                    let together = &together;
                    scope.spawn(move || {
                        together.wait();
                        drop(watch);
                    });
                }
            });
            assert!(hub.is_empty());
        }
    }

    #[test]
    fn ended_turns_beyond_the_byte_limit_go_early() {
        let limits = Limits { linger: Duration::from_secs(3600), linger_bytes: 10, ..Limits::default() };
        let hub = Hub::new(limits);
        let turns: Vec<_> = (0..4).map(|_| TurnId::random()).collect();
        for turn in &turns {
            hub.begin(turn, 1).publish("1234").unwrap();
        }
        assert_eq!(hub.len(), 2);
        assert_eq!(hub.watch(&turns[0]).read(1, 0), Piece::Absent);
        assert_eq!(text_of(hub.watch(&turns[3]).read(1, 0)).1, "1234");
    }

    #[tokio::test]
    async fn readers_wake_on_text_and_on_rows() {
        let (hub, turn) = hub(Limits::default());
        let watch = hub.watch(&turn);
        let (version, row) = watch.row();
        assert_eq!(row, None);
        let row = Turn { fencing_token: 5, state: 2, ..Turn::default() };
        let (_, ()) = tokio::join!(watch.changed(0, 0, version), async { hub.observe(&turn, &row) });
        let (version, seen) = watch.row();
        assert_eq!(seen, Some(row.clone()));
        // An older row changes nothing.
        hub.observe(&turn, &Turn { fencing_token: 4, state: 3, ..Turn::default() });
        assert_eq!(watch.row(), (version, Some(row)));
        let publisher = hub.begin(&turn, 1);
        let (_, result) = tokio::join!(watch.changed(1, 0, version), async { publisher.publish("x") });
        result.unwrap();
        hub.recheck();
        watch.row_changed(version).await;
    }
}
