//! The plots over the time of a run, as SVG: points, quantiles, rates. All have the same axis of time and the same shading
//! where a fault was, so that one can be read below the other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

use maud::{Markup, html};

use super::axis::{self, Log, Tick};
use super::data::{Data, End, Operation, Window};
use super::text::{counted, grouped, shown};
use super::{thin, windows};

/// Pixels of a picture before it is fitted to the page.
pub(super) const WIDTH: f64 = 1200.0;
/// Room for labels of rows and of latencies.
pub(super) const LEFT: f64 = 128.0;
pub(super) const RIGHT: f64 = 18.0;
/// Room for labels of the time.
pub(super) const BELOW: f64 = 24.0;
/// Height of one lane of fault labels.
const LANE: f64 = 15.0;
/// A cell of what is not drawn as points.
const CELL: (f64, f64) = (6.0, 6.0);
/// Steps of darkness of a cell.
const SHADES: usize = 8;
/// Acknowledged operations of a window of quantiles, on average: of fewer they would show only chance.
const PER_WINDOW: usize = 20;
/// With fewer of them a kind has no plot of quantiles.
const ENOUGH: usize = 10 * PER_WINDOW;
/// Letters of the kind of a fault over a plot.
const KIND: usize = 32;

/// Where moments of a run stand in a picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time {
    end: f64,
}

impl Time {
    pub(super) fn of(data: &Data<'_>) -> Self {
        Self { end: data.end.max(0.001) }
    }

    pub(super) fn x(self, seconds: f64) -> f64 {
        LEFT + (seconds / self.end).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }
}

/// A number of a picture, to a tenth of a pixel.
pub(super) fn n(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// The shading of all faults, one pixel high: drawn once in a page, and stretched in each picture.
pub(super) fn shading(data: &Data<'_>) -> Markup {
    let time = Time::of(data);
    let part = |class: &str, from: f64, to: f64, window: &Window<'_>| {
        let (x, to) = (time.x(from), time.x(to));
        html! {
            rect class=(class) x=(n(x)) width=(n((to - x).max(0.8))) height="1" { title { (told(window)) } }
        }
    };
    html! {
        svg.hidden width="0" height="0" aria-hidden="true" {
            defs {
                g id="shading" {
                    @for window in data.done() {
                        (part("fault", window.from, window.healed.unwrap_or(data.end), window))
                        @if let (Some(healed), Some(recovered)) = (window.healed, window.recovered) {
                            (part("after", healed, recovered, window))
                        }
                    }
                }
            }
        }
    }
}

/// The same, from `top` to `bottom` of a picture.
pub(super) fn shaded(top: f64, bottom: f64) -> Markup {
    html! { use.faults href="#shading" transform=(format!("translate(0 {}) scale(1 {})", n(top), n(bottom - top))) {} }
}

/// A fault in a sentence.
pub(super) fn told(window: &Window<'_>) -> String {
    let mut text = format!("fault {}", shown(&window.title(), 80));
    if !window.detail.is_empty() {
        text.push_str(&format!(" ({})", shown(window.detail, 200)));
    }
    text.push_str(&format!(", from {:.2} s", window.from));
    match window.healed {
        Some(healed) => text.push_str(&format!(" to {healed:.2} s")),
        None => text.push_str(" to the end"),
    }
    if let Some(recovered) = window.recovered {
        text.push_str(&format!(", all ready at {recovered:.2} s"));
    }
    text
}

/// Lines and labels of the time.
pub(super) fn time_axis(data: &Data<'_>, time: Time, top: f64, bottom: f64) -> Markup {
    html! {
        g.axis {
            @for Tick { at, label } in axis::time_ticks(data.end, 14) {
                @let x = n(time.x(at));
                line.grid x1=(x) x2=(x) y1=(n(top)) y2=(n(bottom)) {}
                text x=(x) y=(n(bottom + 16.0)) text-anchor="middle" { (label) }
            }
        }
    }
}

/// One plot: shading, axes, labels of faults in up to `lanes` above it, and what `draw` puts on the place from top to bottom.
fn plot(
    data: &Data<'_>,
    about: &str,
    lanes: usize,
    height: f64,
    ticks: &[(f64, String)],
    draw: impl FnOnce(Time, f64, f64) -> Markup,
) -> Markup {
    let time = Time::of(data);
    let wanted: Vec<_> = data
        .done()
        .map(|one| {
            let long = format!("{} {}", one.number, shown(one.kind, KIND));
            (time.x(one.from), long, one.number.to_string())
        })
        .collect();
    let labels = axis::labels(&wanted, lanes, WIDTH - 2.0);
    let top = labels.iter().map(|label| label.lane + 1).max().unwrap_or_default() as f64 * LANE + 8.0;
    let bottom = top + height;
    html! {
        svg viewBox=(format!("0 0 {} {}", n(WIDTH), n(bottom + BELOW))) role="img" aria-label=(about) {
            (shaded(top, bottom))
            g.labels {
                @for label in &labels {
                    text x=(n(label.x)) y=(n(top - 5.0 - label.lane as f64 * LANE)) { (label.text) }
                }
            }
            (time_axis(data, time, top, bottom))
            g.axis {
                @for (share, label) in ticks {
                    @let y = bottom - share * height;
                    line.grid x1=(n(LEFT)) x2=(n(WIDTH - RIGHT)) y1=(n(y)) y2=(n(y)) {}
                    @if !label.is_empty() { text x=(n(LEFT - 8.0)) y=(n(y + 4.0)) text-anchor="end" { (label) } }
                }
                path.frame d=(format!("M{} {}V{}H{}", n(LEFT), n(top), n(bottom), n(WIDTH - RIGHT))) {}
            }
            (draw(time, top, bottom))
        }
    }
}

/// Which operations anomalies are about, and the row of the page that says so.
pub(super) type Marks = HashMap<u64, String>;

/// Every operation of one kind, by when it was sent and how long it took.
pub(super) fn points(data: &Data<'_>, kind: &str, marks: &Marks) -> Markup {
    let of_kind = || data.operations.iter().filter(|operation| operation.kind() == kind);
    let marked: HashSet<u64> = marks.keys().copied().collect();
    let thinned = thin::thin(of_kind(), &marked, thin::DRAWN);
    let axis = Log::of(of_kind().filter_map(Operation::latency_ms));
    let ticks: Vec<_> = axis.ticks().into_iter().map(|tick| (axis.share(tick.at), tick.label)).collect();
    let open = of_kind().filter(|operation| operation.end == End::Open).count();
    let height = 220.0;
    let drawn = plot(data, &format!("latency of every {kind}"), 3, height, &ticks, |time, top, bottom| {
        let y = |operation: &Operation<'_>| bottom - axis.share(operation.latency_ms().unwrap_or(f64::MAX)) * height;
        let places = thinned.shaded.iter().map(|one| (one.end, time.x(one.from) - LEFT, y(one) - top));
        let cells = thin::cells(places, CELL.0, CELL.1);
        html! {
            @for ((end, shade), path) in shades(&cells, top) {
                path class={ "cell " (end.name()) } fill-opacity=(format!("{:.2}", 0.06 + 0.84 * shade as f64 / SHADES as f64)) d=(path) {}
            }
            // The rare ones are drawn last, so that they are not covered.
            @for end in End::ENDED {
                g class={ "p " (end.name()) } {
                    @for one in thinned.points.iter().filter(|one| one.end == end) {
                        path d=(shape(end, time.x(one.from), y(one))) { title { (point(one)) } }
                    }
                }
            }
            @for one in of_kind() {
                @if let Some(row) = marks.get(&one.op) {
                    (mark(one, row, time.x(one.from), y(one).max(top)))
                }
            }
        }
    });
    html! {
        figure {
            figcaption {
                b { (kind) }
                @for end in End::ENDED {
                    @let count = of_kind().filter(|one| one.end == end).count();
                    @if count > 0 { " · " (grouped(count as u64)) " " (end.name()) }
                }
                @if open > 0 { " · " (grouped(open as u64)) " never ended, not drawn" }
                @if !thinned.shaded.is_empty() {
                    " · "
                    (counted(thinned.shaded.len(), "operation is", "operations are"))
                    " not drawn as points but as shades: the darker, the more. All the slowest are points."
                }
            }
            (drawn)
        }
    }
}

/// The cells of a plot that begins at `top`, as one path for each end and darkness. The darkness is the root of the count:
/// by the count itself all but the fullest would be nearly white, by its logarithm all would be nearly full.
fn shades(cells: &BTreeMap<(End, u32, u32), usize>, top: f64) -> BTreeMap<(End, usize), String> {
    let most = cells.values().copied().max().unwrap_or(1) as f64;
    let mut paths: BTreeMap<(End, usize), String> = BTreeMap::new();
    for ((end, column, row), count) in cells {
        let shade = ((*count as f64 / most).sqrt() * SHADES as f64).ceil() as usize;
        let (x, y) = (LEFT + f64::from(*column) * CELL.0, top + f64::from(*row) * CELL.1);
        let wide = CELL.0.min(WIDTH - RIGHT - x);
        let path = paths.entry((*end, shade)).or_default();
        // Writing to a string cannot fail.
        let _written = write!(path, "M{} {}h{}v{}h-{}z", n(x), n(y), n(wide), n(CELL.1), n(wide));
    }
    paths
}

/// The shape that tells an end without its colour.
pub(super) fn shape(end: End, x: f64, y: f64) -> String {
    match end {
        End::Ok => format!("M{} {}h0", n(x), n(y)),
        End::Fail => format!("M{} {}l6 6m0-6l-6 6", n(x - 3.0), n(y - 3.0)),
        End::Info | End::Open => format!("M{} {}l4 7h-8z", n(x), n(y - 4.0)),
    }
}

/// What is read over a point. There are thousands of these in a page, so they are short.
fn point(one: &Operation<'_>) -> String {
    let mut text = format!("op {}, process {}, {:.3} s: ", one.op, one.process, one.from);
    match one.latency_ms() {
        Some(ms) => text.push_str(&format!("{}, {}", one.end.name(), axis::milliseconds(ms))),
        None => text.push_str("never ended"),
    }
    if one.end != End::Ok && one.to.is_some() {
        text.push_str(&format!(", {}", shown(&one.told(), 120)));
    }
    text
}

fn mark(one: &Operation<'_>, row: &str, x: f64, y: f64) -> Markup {
    html! {
        a.mark id=(format!("op-{}", one.op)) href=(format!("#{row}")) {
            path.halo d=(format!("M{} {}h0", n(x), n(y))) {}
            path.ring d=(format!("M{} {}l8 8-8 8-8-8z", n(x), n(y - 8.0))) { title { "anomaly: " (point(one)) } }
        }
    }
}

/// Quantiles of one kind; nothing if there are too few to speak of.
pub(super) fn quantiles(data: &Data<'_>, kind: &str) -> Option<Markup> {
    let of_kind = || data.operations.iter().filter(|operation| operation.kind() == kind);
    let acknowledged = of_kind().filter(|one| one.end == End::Ok).count();
    if acknowledged < ENOUGH {
        return None;
    }
    let length = windows::length(data.end, acknowledged / PER_WINDOW);
    let windows = windows::quantiles(of_kind(), length, data.end);
    let axis = Log::of(windows.iter().flatten().flat_map(|one| [one.p50, one.max]));
    let ticks: Vec<_> = axis.ticks().into_iter().map(|tick| (axis.share(tick.at), tick.label)).collect();
    let height = 150.0;
    let about = format!("latency quantiles of {kind}");
    let drawn = plot(data, &about, 1, height, &ticks, |time, _, bottom| {
        let line = |of: fn(&windows::Quantiles) -> f64| {
            let mut path = String::new();
            let mut going_on = false;
            for (at, window) in windows.iter().enumerate() {
                if let Some(window) = window {
                    let x = time.x((at as f64 + 0.5) * length);
                    let y = bottom - axis.share(of(window)) * height;
                    // A line of no length after each beginning shows a window that has no neighbours.
                    let end = if going_on { "" } else { "h0" };
                    let _written = write!(path, "{}{} {}{end}", if going_on { "L" } else { "M" }, n(x), n(y));
                }
                going_on = window.is_some();
            }
            path
        };
        html! {
            path.q.max d=(line(|one| one.max)) {}
            path.q.p99 d=(line(|one| one.p99)) {}
            path.q.p95 d=(line(|one| one.p95)) {}
            path.q.p50 d=(line(|one| one.p50)) {}
            @for (at, window) in windows.iter().enumerate() {
                @if let Some(one) = window {
                    @let (x, next) = (time.x(at as f64 * length), time.x((at + 1) as f64 * length));
                    rect.hover x=(n(x)) width=(n(next - x)) y=(n(bottom - height)) height=(n(height)) {
                        title {
                            (format!("{:.1} s: {} ok; p50 {}, p95 {}, p99 {}, max {}", at as f64 * length, one.count,
                                axis::milliseconds(one.p50), axis::milliseconds(one.p95), axis::milliseconds(one.p99),
                                axis::milliseconds(one.max)))
                        }
                    }
                }
            }
        }
    });
    Some(html! {
        figure {
            figcaption { b { (kind) } " · of what was sent in each " (super::text::duration(length)) " and acknowledged" }
            (drawn)
        }
    })
}

/// How many operations ended per second, and how.
pub(super) fn rates(data: &Data<'_>) -> Markup {
    let length = windows::length(data.end, usize::MAX);
    let windows = windows::ends(data.operations.iter(), length, data.end);
    // The last window may be short, and is not to look like a fall.
    let seconds = |at: usize| (data.end - at as f64 * length).clamp(length / 10.0, length);
    let largest = windows.iter().enumerate().map(|(at, ends)| ends.iter().sum::<usize>() as f64 / seconds(at));
    let largest = largest.fold(0.0, f64::max);
    let ticks = axis::count_ticks(largest.max(1.0), 5);
    let top_tick = ticks.last().map_or(1.0, |tick| tick.at);
    let ticks: Vec<_> = ticks.into_iter().map(|tick| (tick.at / top_tick, tick.label)).collect();
    let height = 130.0;
    let drawn = plot(data, "operations that ended per second", 1, height, &ticks, |time, _, bottom| {
        // Each outcome stands on the one before.
        let bars = |place: usize| {
            let mut path = String::new();
            for (at, ends) in windows.iter().enumerate() {
                let below: usize = ends.iter().take(place).sum();
                let own = ends.get(place).copied().unwrap_or_default();
                let pixels = |count: usize| count as f64 / seconds(at) / top_tick * height;
                let (x, next) = (time.x(at as f64 * length), time.x((at + 1) as f64 * length));
                if own > 0 && next > x {
                    // One failure among a thousand is seen too.
                    let high = pixels(own).max(1.2);
                    let (y, wide) = (bottom - pixels(below), next - x);
                    let _written = write!(path, "M{} {}v-{}h{}v{}z", n(x), n(y), n(high), n(wide), n(high));
                }
            }
            path
        };
        html! {
            @for (place, end) in End::ENDED.iter().enumerate() { path class={ "bar " (end.name()) } d=(bars(place)) {} }
            @for (at, ends) in windows.iter().enumerate() {
                @let (x, next) = (time.x(at as f64 * length), time.x((at + 1) as f64 * length));
                rect.hover x=(n(x)) width=(n(next - x)) y=(n(bottom - height)) height=(n(height)) {
                    title { (format!("{:.1} s: {} ok, {} fail, {} info", at as f64 * length, ends[0], ends[1], ends[2])) }
                }
            }
        }
    });
    html! {
        figure {
            figcaption {
                b { "operations that ended, per second" } " · all kinds, in windows of " (super::text::duration(length))
            }
            (drawn)
        }
    }
}
