//! Latencies and rates, window by window of a run. Pure.

use super::axis;
use super::data::{End, Operation};

/// Windows of one run: enough to see an election, few enough that each has some operations.
const WINDOWS: usize = 150;
/// Shorter windows would show the clients' rhythm.
const SHORTEST: f64 = 0.5;

/// How long a window is in a run of `end` seconds that is to have at most `most` of them.
pub(super) fn length(end: f64, most: usize) -> f64 {
    axis::time_step(end, most.clamp(1, WINDOWS)).max(SHORTEST)
}

/// Latencies of the operations that were sent in one window, in milliseconds, as nearest ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quantiles {
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// One entry per window; nothing where nothing that was sent was acknowledged.
pub(super) fn quantiles<'o>(
    operations: impl Iterator<Item = &'o Operation<'o>>,
    length: f64,
    end: f64,
) -> Vec<Option<Quantiles>> {
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); count(length, end)];
    for operation in operations.filter(|operation| operation.end == End::Ok) {
        if let (Some(ms), Some(window)) = (operation.latency_ms(), samples.get_mut((operation.from / length) as usize))
        {
            window.push(ms);
        }
    }
    samples.into_iter().map(of).collect()
}

fn of(mut samples: Vec<f64>) -> Option<Quantiles> {
    samples.sort_by(f64::total_cmp);
    let rank = |percent: usize| samples.get((samples.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    Some(Quantiles { count: samples.len(), p50: rank(50)?, p95: rank(95)?, p99: rank(99)?, max: rank(100)? })
}

/// How many operations ended in each window as ok, fail and info.
pub(super) fn ends<'o>(operations: impl Iterator<Item = &'o Operation<'o>>, length: f64, end: f64) -> Vec<[usize; 3]> {
    let mut windows = vec![[0; 3]; count(length, end)];
    for operation in operations {
        let place = End::ENDED.iter().position(|end| *end == operation.end);
        let window = operation.to.and_then(|to| windows.get_mut((to / length) as usize));
        if let (Some(place), Some(window)) = (place, window) {
            window[place] += 1;
        }
    }
    windows
}

fn count(length: f64, end: f64) -> usize {
    (end / length).floor() as usize + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Call;
    use crate::report::data::Told;

    fn operation(call: &Call, end: End, from: f64, to: f64) -> Operation<'_> {
        Operation { op: 0, process: 0, call, end, from, to: (end != End::Open).then_some(to), answer: Told::Nothing }
    }

    #[test]
    fn a_run_has_at_most_as_many_windows_as_can_be_seen() {
        for seconds in [1.0, 60.0, 119.0, 600.0, 3600.0, 86_400.0] {
            assert!((1..=WINDOWS + 1).contains(&count(length(seconds, usize::MAX), seconds)), "{seconds}");
        }
        let all = usize::MAX;
        assert_eq!((length(10.0, all), length(60.0, all), length(600.0, all), length(60.0, 7)), (0.5, 0.5, 5.0, 10.0));
    }

    #[test]
    fn quantiles_are_of_what_was_sent_in_a_window_and_acknowledged() {
        let call = Call::Read { session: "s".into(), instance: 1, after: 0, limit: 20 };
        let mut all: Vec<_> = (1..=100).map(|n| operation(&call, End::Ok, 0.2, 0.2 + f64::from(n) / 1000.0)).collect();
        all.push(operation(&call, End::Info, 0.2, 9.0));
        all.push(operation(&call, End::Ok, 2.5, 9.5));
        all.push(operation(&call, End::Open, 1.0, 0.0));
        let windows = quantiles(all.iter(), 1.0, 9.5);
        assert_eq!(windows.len(), 10);
        let first = windows[0].unwrap();
        let close = |value: f64, expected: f64| (value - expected).abs() < 1e-6;
        assert!(first.count == 100 && close(first.p50, 50.0) && close(first.p95, 95.0), "{first:?}");
        assert!(close(first.p99, 99.0) && close(first.max, 100.0), "{first:?}");
        assert_eq!(windows[1], None);
        assert!(windows[2].is_some_and(|one| one.p50 == one.max && close(one.max, 7000.0)));
    }

    #[test]
    fn every_operation_that_ended_is_counted_in_the_window_of_its_end() {
        let call = Call::Read { session: "s".into(), instance: 1, after: 0, limit: 20 };
        let all = [
            operation(&call, End::Ok, 0.0, 0.9),
            operation(&call, End::Ok, 0.0, 1.0),
            operation(&call, End::Fail, 0.5, 1.5),
            operation(&call, End::Info, 0.5, 3.0),
            operation(&call, End::Open, 0.5, 0.0),
        ];
        assert_eq!(ends(all.iter(), 1.0, 3.0), [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]);
    }
}
