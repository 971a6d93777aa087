//! Which operations of a plot are drawn as points, and which only as shades. Pure.
//!
//! Up to [`DRAWN`] operations, all are points. Of more,
//! 1. every operation that an anomaly is about,
//! 2. every `fail` and every `info`, up to a quarter of [`DRAWN`] each; of more, every second, third and so on, so that the
//!    whole time of the run is shown,
//! 3. the slowest of the `ok`, as many as there is room for.
//!
//! All others are counted in the cells of a grid, which are drawn the darker the more they hold. So each operation is
//! either a point or in a cell, and a slow one is always a point.

use std::collections::{BTreeMap, HashSet};

use super::data::{End, Operation};

/// Points of one plot.
pub(super) const DRAWN: usize = 4000;

/// What is drawn how.
#[derive(Debug, Default)]
pub(super) struct Thinned<'o, 'a> {
    pub(super) points: Vec<&'o Operation<'a>>,
    pub(super) shaded: Vec<&'o Operation<'a>>,
}

/// Divides those of `operations` that ended. `marked` are the numbers of those that anomalies are about.
pub(super) fn thin<'o, 'a>(
    operations: impl Iterator<Item = &'o Operation<'a>>,
    marked: &HashSet<u64>,
    drawn: usize,
) -> Thinned<'o, 'a> {
    let ended: Vec<_> = operations.filter(|operation| operation.to.is_some()).collect();
    if ended.len() <= drawn {
        return Thinned { points: ended, shaded: Vec::new() };
    }
    let (mut points, rest): (Vec<_>, Vec<_>) = ended.into_iter().partition(|one| marked.contains(&one.op));
    let (mut ok, bad): (Vec<_>, Vec<_>) = rest.into_iter().partition(|one| one.end == End::Ok);
    let (fails, infos): (Vec<_>, Vec<_>) = bad.into_iter().partition(|one| one.end == End::Fail);
    let mut shaded = Vec::new();
    for some in [fails, infos] {
        let every = some.len().div_ceil((drawn / 4).max(1)).max(1);
        for (at, one) in some.into_iter().enumerate() {
            if at % every == 0 { points.push(one) } else { shaded.push(one) }
        }
    }
    ok.sort_by(|one, other| latency(other).total_cmp(&latency(one)));
    let room = drawn.saturating_sub(points.len()).min(ok.len());
    shaded.extend(ok.split_off(room));
    points.extend(ok);
    points.sort_by(|one, other| one.from.total_cmp(&other.from));
    Thinned { points, shaded }
}

fn latency(operation: &Operation<'_>) -> f64 {
    operation.latency_ms().unwrap_or_default()
}

/// How many of `places` (an end, and pixels) are in each cell of a grid: by end, column and row.
pub(super) fn cells(
    places: impl Iterator<Item = (End, f64, f64)>,
    width: f64,
    height: f64,
) -> BTreeMap<(End, u32, u32), usize> {
    let mut cells = BTreeMap::new();
    for (end, x, y) in places {
        *cells.entry((end, (x / width) as u32, (y / height) as u32)).or_default() += 1;
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Call;
    use crate::report::data::Told;

    fn operations<'a>(call: &'a Call, ends: impl Iterator<Item = (End, f64)>) -> Vec<Operation<'a>> {
        let operation = |(op, (end, ms)): (u64, (End, f64))| {
            let from = op as f64;
            let to = (end != End::Open).then_some(from + ms / 1000.0);
            Operation { op, process: 0, call, end, from, to, answer: Told::Nothing }
        };
        (0..).zip(ends).map(operation).collect()
    }

    fn call() -> Call {
        Call::Read { session: "s".into(), instance: 1, after: 0, limit: 20 }
    }

    #[test]
    fn few_operations_are_all_points_and_an_open_one_is_none() {
        let call = call();
        let all = operations(&call, [(End::Ok, 1.0), (End::Info, 9.0), (End::Open, 0.0)].into_iter());
        let thinned = thin(all.iter(), &HashSet::new(), 10);
        assert_eq!((thinned.points.len(), thinned.shaded.len()), (2, 0));
    }

    #[test]
    fn of_many_the_slowest_the_failed_and_the_marked_are_points_and_the_others_are_counted() {
        let call = call();
        // Each has its own latency, and every hundredth failed.
        let end = |n: u64| (if n.is_multiple_of(100) { End::Fail } else { End::Ok }, ((n * 7919) % 10_000) as f64);
        let all = operations(&call, (0..10_000).map(end));
        let marked = HashSet::from([1, 4321]);
        let Thinned { points, shaded } = thin(all.iter(), &marked, 1000);
        assert_eq!((points.len(), points.len() + shaded.len()), (1000, 10_000));
        assert!(shaded.iter().all(|one| one.end == End::Ok && !marked.contains(&one.op)));
        let slowest_shaded = shaded.iter().map(|one| latency(one)).fold(0.0, f64::max);
        let fast = points.iter().filter(|one| one.end == End::Ok && latency(one) <= slowest_shaded);
        assert!(fast.into_iter().all(|one| marked.contains(&one.op)));
        assert!(points.is_sorted_by(|one, other| one.from <= other.from));
    }

    #[test]
    fn of_too_many_failures_those_that_are_points_are_spread_over_the_run() {
        let call = call();
        let all = operations(&call, (0..10_000).map(|_| (End::Fail, 1.0)));
        let Thinned { points, shaded } = thin(all.iter(), &HashSet::new(), 1000);
        assert_eq!((points.len(), shaded.len()), (250, 9750));
        assert!(points.iter().filter(|one| one.from > 7500.0).count() > 60);
    }

    #[test]
    fn a_grid_counts_everything_once() {
        let places = [(End::Ok, 0.0, 0.0), (End::Ok, 7.9, 3.9), (End::Ok, 8.0, 0.0), (End::Info, 0.0, 0.0)];
        let cells = cells(places.into_iter(), 8.0, 4.0);
        assert_eq!(cells.values().sum::<usize>(), 4);
        assert_eq!((cells[&(End::Ok, 0, 0)], cells[&(End::Ok, 1, 0)], cells[&(End::Info, 0, 0)]), (2, 1, 1));
    }
}
