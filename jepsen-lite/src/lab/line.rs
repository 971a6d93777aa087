//! One direction of a link between two ports: when does a frame arrive, if it does. Pure: no device, no clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::shape::Shape;

/// Frames on their way; a line that is full loses more, as the queue of a real switch does. Netem's limit, too.
const FRAMES: usize = 1000;
/// How much longer a frame takes that is held back.
const HELD_MS: std::ops::RangeInclusive<u64> = 2..=10;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passage {
    /// By the link's shape.
    Lost,
    /// Because too many are on their way.
    Full,
    Once(Instant),
    Twice(Instant, Instant),
}

/// What lines have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Frames that came in.
    pub frames: u64,
    pub lost: u64,
    pub full: u64,
    pub duplicated: u64,
    pub reordered: u64,
}

impl Counts {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            frames: self.frames + other.frames,
            lost: self.lost + other.lost,
            full: self.full + other.full,
            duplicated: self.duplicated + other.duplicated,
            reordered: self.reordered + other.reordered,
        }
    }
}

#[derive(Debug)]
pub(super) struct Line {
    shape: Shape,
    rng: StdRng,
    /// When the last byte so far has left, by the rate.
    sent: Option<Instant>,
    /// When the last frame so far arrives that keeps its place.
    last: Option<Instant>,
    /// Arrivals that are to come.
    under_way: BinaryHeap<Reverse<Instant>>,
    counts: Counts,
}

impl Line {
    pub(super) fn new(shape: Shape, seed: u64) -> Self {
        Self {
            shape,
            rng: StdRng::seed_from_u64(seed),
            sent: None,
            last: None,
            under_way: BinaryHeap::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Holds for frames to come; those under way arrive as they would have.
    pub(super) fn set_shape(&mut self, shape: Shape) {
        self.shape = shape;
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// What becomes of a frame of so many bytes that is sent now.
    pub(super) fn pass(&mut self, now: Instant, bytes: usize) -> Passage {
        self.counts.frames += 1;
        while self.under_way.peek().is_some_and(|Reverse(at)| *at <= now) {
            self.under_way.pop();
        }
        if self.happens(self.shape.loss) {
            self.counts.lost += 1;
            return Passage::Lost;
        }
        if self.under_way.len() >= FRAMES {
            self.counts.full += 1;
            return Passage::Full;
        }
        let mut leaves = now;
        if let Some(rate) = self.shape.rate {
            let begins = self.sent.map_or(now, |sent| sent.max(now));
            leaves = begins + Duration::from_secs_f64(bytes as f64 / rate as f64);
            self.sent = Some(leaves);
        }
        let mut at = leaves + self.travels();
        if self.happens(self.shape.reorder) {
            self.counts.reordered += 1;
            at += Duration::from_millis(self.rng.random_range(HELD_MS));
        } else {
            at = self.last.map_or(at, |last| last.max(at));
            self.last = Some(at);
        }
        self.wait(now, at);
        if self.happens(self.shape.duplicate) {
            self.counts.duplicated += 1;
            let again = at + self.travels();
            self.wait(now, again);
            return Passage::Twice(at, again);
        }
        Passage::Once(at)
    }

    fn wait(&mut self, now: Instant, at: Instant) {
        if at > now {
            self.under_way.push(Reverse(at));
        }
    }

    fn travels(&mut self) -> Duration {
        let Shape { delay, jitter, .. } = self.shape;
        if jitter.is_zero() {
            return delay;
        }
        let longest = jitter.saturating_mul(2).as_secs_f64();
        (delay + Duration::from_secs_f64(self.rng.random_range(0.0..=longest))).saturating_sub(jitter)
    }

    /// Draws nothing for what cannot happen, so that a line of the default shape costs little.
    fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.random_bool(share.min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 1000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Sends so many frames, one each millisecond, and returns when each was sent and what became of it.
    fn send(line: &mut Line, frames: u64) -> Vec<(Instant, Passage)> {
        let begin = Instant::now();
        (0..frames).map(|n| begin + ms(n)).map(|now| (now, line.pass(now, FRAME))).collect()
    }

    #[test]
    fn a_line_of_the_default_shape_delivers_each_frame_once_and_at_once() {
        for (now, passage) in send(&mut Line::new(Shape::default(), 1), 100) {
            assert_eq!(passage, Passage::Once(now));
        }
    }

    #[test]
    fn a_delay_with_jitter_stays_within_its_bounds_and_keeps_the_order() {
        let shape = Shape { delay: ms(20), jitter: ms(5), ..Shape::default() };
        let mut last = None;
        let sent = send(&mut Line::new(shape, 1), 1000);
        let takes = |(now, passage): &(Instant, Passage)| match passage {
            Passage::Once(at) => *at - *now,
            Passage::Lost | Passage::Full | Passage::Twice(..) => panic!("{passage:?}"),
        };
        for one in &sent {
            assert!((ms(15)..=ms(25)).contains(&takes(one)), "{one:?}");
            assert!(last <= Some(one.0 + takes(one)), "frames overtook each other");
            last = Some(one.0 + takes(one));
        }
        assert!(sent.iter().any(|one| takes(one) < ms(18)) && sent.iter().any(|one| takes(one) > ms(22)));
    }

    #[test]
    fn losses_and_repetitions_come_as_often_as_asked() {
        let shape = Shape { loss: 0.2, duplicate: 0.1, ..Shape::default() };
        let mut line = Line::new(shape, 1);
        let sent = send(&mut line, 10_000);
        let count = |of: &dyn Fn(&Passage) -> bool| sent.iter().filter(|(_, passage)| of(passage)).count();
        let (lost, twice) = (count(&|one| *one == Passage::Lost), count(&|one| matches!(one, Passage::Twice(..))));
        assert!((1800..2200).contains(&lost), "{lost} of 10000 lost");
        assert!((700..900).contains(&twice), "{twice} of 8000 repeated");
        let Counts { frames, lost: counted, duplicated, full, reordered } = line.counts();
        assert_eq!((frames, counted, duplicated, full, reordered), (10_000, lost as u64, twice as u64, 0, 0));
    }

    #[test]
    fn a_frame_that_is_held_back_is_overtaken() {
        let sent = send(&mut Line::new(Shape { reorder: 0.1, ..Shape::default() }, 1), 1000);
        let arrivals: Vec<Instant> = sent
            .iter()
            .map(|(_, passage)| match passage {
                Passage::Once(at) => *at,
                Passage::Lost | Passage::Full | Passage::Twice(..) => panic!("{passage:?}"),
            })
            .collect();
        let overtaken = arrivals.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!((50..150).contains(&overtaken), "{overtaken} of 1000 overtaken");
    }

    #[test]
    fn a_rate_spaces_frames_out_and_a_full_line_loses_them() {
        let mut line = Line::new(Shape { rate: Some(100_000), ..Shape::default() }, 1);
        let now = Instant::now();
        assert_eq!(line.pass(now, FRAME), Passage::Once(now + ms(10)));
        assert_eq!(line.pass(now, FRAME), Passage::Once(now + ms(20)));
        let full = (0..2 * FRAMES).filter(|_| line.pass(now, FRAME) == Passage::Full).count();
        assert_eq!(full, FRAMES + 2);
        // Half of what waits has arrived by then, and there is room again.
        assert!(matches!(line.pass(now + ms(5000), FRAME), Passage::Once(_)));
    }

    #[test]
    fn the_same_seed_gives_the_same_passages_and_another_others() {
        let shape = Shape { jitter: ms(5), loss: 0.1, duplicate: 0.1, reorder: 0.1, ..Shape::default() };
        let begin = Instant::now();
        let passages = |seed| {
            let mut line = Line::new(shape, seed);
            (0..100).map(|n| line.pass(begin + ms(n), FRAME)).collect::<Vec<_>>()
        };
        assert_eq!(passages(7), passages(7));
        assert_ne!(passages(7), passages(8));
    }
}
