//! Where a value stands on an axis, and what is written beside it. Pure.

/// Steps of an axis of time, in seconds: what people count in.
const TIME_STEPS: [f64; 23] = [
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0,
    7200.0, 14400.0, 28800.0, 86400.0,
];
/// A digit or letter of a label, in pixels; labels are 11 px high, and of the fonts that there may be this is a wide
/// one.
const LETTER: f64 = 6.8;

/// One mark beside an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) at: f64,
    /// Nothing: a line without a label.
    pub(super) label: String,
}

/// The smallest step of time that divides `span` into at most `most` parts.
pub(super) fn time_step(span: f64, most: usize) -> f64 {
    let fits = |step: &&f64| span / **step <= most as f64;
    TIME_STEPS.iter().find(fits).copied().unwrap_or_else(|| nice(span / most as f64))
}

/// Seconds from 0 to `end`. Up to ten minutes they are written as seconds, then as minutes and hours.
pub(super) fn time_ticks(end: f64, most: usize) -> Vec<Tick> {
    let step = time_step(end, most);
    ticks(end, step, |at| clock(at, end, step))
}

fn clock(at: f64, end: f64, step: f64) -> String {
    let whole = at.round() as u64;
    if end <= 600.0 || step < 1.0 {
        format!("{} s", short(at))
    } else if end <= 7200.0 {
        format!("{}:{:02}", whole / 60, whole % 60)
    } else {
        format!("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
    }
}

/// Round numbers from 0 to at least `largest`.
pub(super) fn count_ticks(largest: f64, most: usize) -> Vec<Tick> {
    let step = nice((largest / most as f64).max(f64::MIN_POSITIVE));
    ticks((largest / step).ceil() * step, step, short)
}

fn ticks(end: f64, step: f64, label: impl Fn(f64) -> String) -> Vec<Tick> {
    let count = (end / step + 1e-9).floor() as usize;
    (0..=count).map(|n| n as f64 * step).map(|at| Tick { at, label: label(at) }).collect()
}

/// The next larger of 1, 2, 5, 10, 20 and so on.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|part| part * power).into_iter().find(|step| *step >= value * 0.999_999).unwrap_or(value)
}

/// A number without zeros that say nothing.
fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// An axis of milliseconds of which each tenfold is equally long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Log {
    /// Whole powers of ten, or 2 or 5 times one.
    pub(super) from: f64,
    pub(super) to: f64,
}

impl Log {
    /// The smallest one that has all of `values`; at least one tenfold.
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.fold((f64::MAX, 0f64), |(low, high), one| (low.min(one), high.max(one)));
        if low > high {
            return Self { from: 1.0, to: 10.0 };
        }
        // A microsecond is all that the history can tell apart.
        let from = below(low.max(0.001));
        Self { from, to: nice(high.max(0.001)).max(from * 10.0) }
    }

    /// 0 at its beginning, 1 at its end.
    pub(super) fn share(self, ms: f64) -> f64 {
        ((ms.max(self.from) / self.from).log10() / (self.to / self.from).log10()).min(1.0)
    }

    /// A line at 1, 2 and 5 of each tenfold; labels at all of them when there is room, or at each tenfold.
    pub(super) fn ticks(self) -> Vec<Tick> {
        let tenfolds = (self.to / self.from).log10();
        let mut all = Vec::new();
        let mut power = 10f64.powf(self.from.log10().floor());
        while power <= self.to * 1.001 {
            for part in [1.0, 2.0, 5.0] {
                let at = part * power;
                if at >= self.from * 0.999 && at <= self.to * 1.001 {
                    let named = part == 1.0 || tenfolds <= 2.4;
                    all.push(Tick { at, label: if named { milliseconds(at) } else { String::new() } });
                }
            }
            power *= 10.0;
        }
        all
    }
}

/// The next smaller of 1, 2, 5, 10, 20 and so on.
fn below(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [5.0, 2.0, 1.0].map(|part| part * power).into_iter().find(|step| *step <= value * 1.000_001).unwrap_or(power)
}

/// Milliseconds with the unit that suits them and three digits: `850 µs`, `12.3 ms`, `2.5 s`.
pub(super) fn milliseconds(ms: f64) -> String {
    if !ms.is_finite() {
        return "-".to_owned();
    }
    let (value, unit) = match ms {
        ms if ms < 0.9995 => (ms * 1000.0, "µs"),
        ms if ms < 999.5 => (ms, "ms"),
        ms => (ms / 1000.0, "s"),
    };
    let text = match value {
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}

/// A text to be written over a plot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Label {
    /// Its left end, in pixels.
    pub(super) x: f64,
    /// 0 is the lane nearest to the plot.
    pub(super) lane: usize,
    pub(super) text: String,
}

/// Writes each of `wanted` (where it begins, its text, a shorter text) into the first of `lanes` that has room; as the
/// shorter text if the longer one would take the room of those that come next, and not at all if there is none.
/// `wanted` is in the order of where they begin. No two overlap, and none goes beyond `end`.
pub(super) fn labels(wanted: &[(f64, String, String)], lanes: usize, end: f64) -> Vec<Label> {
    let mut free = vec![f64::MIN; lanes];
    let mut placed = Vec::new();
    for (at, (x, long, short)) in wanted.iter().enumerate() {
        let next = wanted.get(at + lanes).map_or(f64::MAX, |next| next.0);
        let text = if x.min(end - width(long)) + width(long) + LETTER <= next { long } else { short };
        let x = x.min(end - width(text)).max(0.0);
        if let Some((lane, free)) = free.iter_mut().enumerate().find(|(_, free)| **free <= x) {
            *free = x + width(text) + LETTER;
            placed.push(Label { x, lane, text: text.clone() });
        }
    }
    placed
}

/// About how wide a label is, in pixels.
pub(super) fn width(text: &str) -> f64 {
    text.chars().count() as f64 * LETTER
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn ticks_of_time_are_round_and_few() {
        assert_eq!(written(&time_ticks(61.0, 8)), ["0 s", "10 s", "20 s", "30 s", "40 s", "50 s", "60 s"]);
        assert_eq!(written(&time_ticks(3600.0, 8)), ["0:00", "10:00", "20:00", "30:00", "40:00", "50:00", "60:00"]);
        assert_eq!(written(&time_ticks(9000.0, 6)), ["0:00:00", "0:30:00", "1:00:00", "1:30:00", "2:00:00", "2:30:00"]);
        assert_eq!(written(&time_ticks(0.25, 4)), ["0 s", "0.1 s", "0.2 s"]);
        for seconds in [0.05, 0.3, 7.0, 59.0, 601.0, 5000.0, 80_000.0, 5e7] {
            let ticks = time_ticks(seconds, 12);
            assert!((2..=13).contains(&ticks.len()), "{seconds}: {ticks:?}");
        }
        assert_eq!(time_ticks(0.0, 12).len(), 1);
    }

    #[test]
    fn ticks_of_counts_reach_the_largest() {
        assert_eq!(written(&count_ticks(930.0, 5)), ["0", "200", "400", "600", "800", "1000"]);
        assert_eq!(written(&count_ticks(3.0, 5)), ["0", "1", "2", "3"]);
        assert_eq!(written(&count_ticks(0.7, 4)), ["0", "0.2", "0.4", "0.6", "0.8"]);
        assert!(count_ticks(0.0, 5).len() < 7);
    }

    #[test]
    fn an_axis_of_latencies_begins_and_ends_at_round_values() {
        let axis = Log::of([0.83, 12.0, 4100.0].into_iter());
        assert_eq!(axis, Log { from: 0.5, to: 5000.0 });
        assert_eq!((axis.share(0.5), axis.share(5000.0), axis.share(50.0)), (0.0, 1.0, 0.5));
        assert_eq!((axis.share(0.0), axis.share(1e9)), (0.0, 1.0), "nothing is drawn outside");
        let ticks = axis.ticks();
        let named: Vec<&str> = written(&ticks).into_iter().filter(|label| !label.is_empty()).collect();
        assert_eq!(named, ["1 ms", "10 ms", "100 ms", "1 s"]);
        assert_eq!(ticks.len(), 13);
        assert_eq!(written(&Log::of([2.0, 9.0].into_iter()).ticks()), ["2 ms", "5 ms", "10 ms", "20 ms"]);
        assert_eq!(Log::of(std::iter::empty()), Log { from: 1.0, to: 10.0 });
        assert_eq!(Log::of(std::iter::once(0.0)).from, 0.001);
    }

    #[test]
    fn milliseconds_have_the_unit_that_suits_them() {
        let written = [0.0004, 0.85, 0.9999, 1.0, 12.34, 99.96, 312.4, 999.9, 2500.0, 61_000.0].map(milliseconds);
        assert_eq!(
            written,
            ["0.4 µs", "850 µs", "1 ms", "1 ms", "12.3 ms", "100 ms", "312 ms", "1 s", "2.5 s", "61 s"]
        );
        assert_eq!(milliseconds(f64::NAN), "-");
    }

    #[test]
    fn labels_never_overlap_and_give_way_to_short_ones() {
        let wanted: Vec<_> =
            (0..60).map(|n| (f64::from(n) * 17.0, format!("{n} kill-leader"), n.to_string())).collect();
        for lanes in 1..4 {
            let placed = labels(&wanted, lanes, 1000.0);
            for (at, one) in placed.iter().enumerate() {
                assert!(one.x >= 0.0 && one.x + width(&one.text) <= 1000.0 && one.lane < lanes, "{one:?}");
                for other in placed.iter().skip(at + 1).filter(|other| other.lane == one.lane) {
                    assert!(one.x + width(&one.text) <= other.x, "{one:?} and {other:?}");
                }
            }
            assert!(placed.len() > 20, "{placed:?}");
        }
        assert_eq!(labels(&wanted[..1], 1, 1000.0)[0].text, "0 kill-leader");
    }
}
