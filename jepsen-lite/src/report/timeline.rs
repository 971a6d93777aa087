//! Who led, who owned, and what was done to them: rows over the time of a run.

use maud::{Markup, html};

use super::axis;
use super::data::{Data, Reign, Window};
use super::plot::{BELOW, LEFT, RIGHT, Time, WIDTH, n, shaded, time_axis, told};
use super::text::{counted, duration, shown};

const ROW: f64 = 24.0;
const HEADING: f64 = 22.0;
/// Rows of bot accounts; the rest are counted.
const ACCOUNTS: usize = 30;
/// Letters of a row's name that fit beside it.
const NAME: usize = 16;
/// Colours of instances; the next ones begin again.
const COLOURS: usize = 6;

/// One bar of a row.
struct Bar {
    from: f64,
    to: f64,
    class: String,
    /// As much of it is written as fits.
    texts: [String; 2],
    about: String,
}

struct Row {
    name: String,
    bars: Vec<Bar>,
}

/// The whole picture. `instances` is how many were started.
pub(super) fn timeline(data: &Data<'_>, instances: usize) -> Markup {
    let names = names(data, instances);
    let groups = [
        ("leader (term)", leaders(data, &names)),
        ("owner (token)", owners(data, &names)),
        ("fault (number)", faults(data)),
    ];
    let groups: Vec<_> = groups.into_iter().filter(|(_, rows)| !rows.is_empty()).collect();
    let time = Time::of(data);
    let top = 4.0;
    let bottom = top + groups.iter().map(|(_, rows)| HEADING + rows.len() as f64 * ROW).sum::<f64>();
    let mut y = top;
    let mut placed = Vec::new();
    for (heading, rows) in &groups {
        placed.push((y, html! { text.heading x=(n(LEFT - 8.0)) y=(n(y + 15.0)) text-anchor="end" { (heading) } }));
        y += HEADING;
        for row in rows {
            placed.push((y, row_markup(row, time, y)));
            y += ROW;
        }
    }
    let hidden = data.owners.len().saturating_sub(ACCOUNTS);
    html! {
        figure {
            figcaption {
                @if data.leaders.is_empty() { "the history does not say who led" } @else {
                    "without a known leader: " (duration(data.leaderless))
                }
                @if hidden > 0 { " · " (counted(hidden, "more account", "more accounts")) " not drawn" }
            }
            svg viewBox=(format!("0 0 {} {}", n(WIDTH), n(bottom + BELOW))) role="img" aria-label="timeline" {
                (shaded(top, bottom))
                (time_axis(data, time, top, bottom))
                @for (_, markup) in placed { (markup) }
                path.axis.frame d=(format!("M{} {}V{}H{}", n(LEFT), n(top), n(bottom), n(WIDTH - RIGHT))) {}
            }
        }
    }
}

fn row_markup(row: &Row, time: Time, y: f64) -> Markup {
    html! {
        line.grid x1=(n(LEFT)) x2=(n(WIDTH - RIGHT)) y1=(n(y + ROW)) y2=(n(y + ROW)) {}
        text.row x=(n(LEFT - 8.0)) y=(n(y + 16.0)) text-anchor="end" {
            (shown(&row.name, NAME))
            title { (shown(&row.name, 200)) }
        }
        @for bar in &row.bars {
            @let (x, wide) = (time.x(bar.from), (time.x(bar.to) - time.x(bar.from)).max(1.0));
            g {
                rect class={ "span " (bar.class) } x=(n(x)) y=(n(y + 3.0)) width=(n(wide)) height=(n(ROW - 6.0)) rx="2" {}
                @if let Some(text) = bar.texts.iter().find(|text| axis::width(text) + 6.0 <= wide) {
                    text.in x=(n(x + 4.0)) y=(n(y + 16.0)) { (text) }
                }
                title { (bar.about) }
            }
        }
    }
}

/// Instances as they name themselves, in the order of their numbers.
fn names<'a>(data: &Data<'a>, instances: usize) -> Vec<std::borrow::Cow<'a, str>> {
    let mut names: Vec<std::borrow::Cow<'a, str>> = (1..=instances).map(|n| format!("node-{n}").into()).collect();
    for reign in data.leaders.iter().chain(data.owners.values().flatten()) {
        if !names.iter().any(|name| name == reign.instance) {
            names.push(reign.instance.into());
        }
    }
    names
}

fn colour(names: &[std::borrow::Cow<'_, str>], instance: &str) -> String {
    format!("i{}", names.iter().position(|name| name == instance).unwrap_or_default() % COLOURS)
}

fn leaders(data: &Data<'_>, names: &[std::borrow::Cow<'_, str>]) -> Vec<Row> {
    let bar = |reign: &Reign<'_>| Bar {
        from: reign.from,
        to: reign.to,
        class: colour(names, reign.instance),
        texts: [format!("term {}", reign.count), reign.count.to_string()],
        about: about("leads", reign, &format!("term {}", reign.count)),
    };
    let row = |name: &std::borrow::Cow<'_, str>| Row {
        name: name.clone().into_owned(),
        bars: data.leaders.iter().filter(|reign| reign.instance == name).map(bar).collect(),
    };
    if data.leaders.is_empty() { Vec::new() } else { names.iter().map(row).collect() }
}

fn owners(data: &Data<'_>, names: &[std::borrow::Cow<'_, str>]) -> Vec<Row> {
    let bar = |reign: &Reign<'_>| Bar {
        from: reign.from,
        to: reign.to,
        class: colour(names, reign.instance),
        texts: [format!("{}, {}", shown(reign.instance, NAME), reign.count), reign.count.to_string()],
        about: about("owns it", reign, &format!("token {}", reign.count)),
    };
    let row = |(account, reigns): (&&str, &Vec<Reign<'_>>)| Row {
        name: (*account).to_owned(),
        bars: reigns.iter().map(bar).collect(),
    };
    data.owners.iter().take(ACCOUNTS).map(row).collect()
}

fn about(does: &str, reign: &Reign<'_>, count: &str) -> String {
    format!("{} {does}, {count}, from {:.2} s to {:.2} s", shown(reign.instance, 80), reign.from, reign.to)
}

fn faults(data: &Data<'_>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let bar = |window: &Window<'_>| Bar {
        from: window.from,
        to: window.healed.unwrap_or(data.end),
        class: "f".to_owned(),
        texts: [format!("{} {}", window.number, shown(window.detail, NAME)), window.number.to_string()],
        about: told(window),
    };
    for window in data.done() {
        match rows.iter_mut().find(|row| row.name == window.kind) {
            Some(row) => row.bars.push(bar(window)),
            None => rows.push(Row { name: window.kind.to_owned(), bars: vec![bar(window)] }),
        }
    }
    rows
}
