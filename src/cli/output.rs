//! What commands write on stdout: tables for people, JSON for programs, nothing that a stored text could smuggle in.
//!
//! A reader that goes away (`openclaw sessions list | head`) ends the command quietly, as other tools do.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::exit::{Exit, Failure};

/// Writes to stdout and flushes.
///
/// # Errors
/// A silent [`Failure`] when the reader is gone, an ordinary one when stdout cannot be written.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(unwritable)
}

/// Prints a value as indented JSON.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format!("the answer cannot be written as JSON: {error}")))?;
    text.push('\n');
    print(&text)
}

/// Prints what a command found: `value` for programs, with `--json`, else `text` for people.
///
/// # Errors
/// As [`print`].
pub(crate) fn answer(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
    if json { print_json(value) } else { print(&text()) }
}

pub(crate) fn unwritable(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::silent(Exit::Ok)
    } else {
        Failure::failed(format!("stdout cannot be written: {error}"))
    }
}

/// A line about progress, for people: on stderr, so that stdout stays the answer. Nobody may be reading it.
pub(crate) fn note(text: &str) {
    if writeln!(io::stderr().lock(), "{text}").is_err() {
        // Whoever closed stderr does not want to know.
    }
}

/// Whether `stream` shows colours: a terminal that can, and no `NO_COLOR` (<https://no-color.org>).
pub(crate) fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|value| value != "dumb")
}

/// `text` without control characters, line ends and tabs excepted: what a user or a model wrote must not be able to
/// move the cursor, rename the window or write to the clipboard of whoever reads it.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
    if text.chars().all(harmless) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.chars().map(|c| if harmless(c) { c } else { '\u{fffd}' }).collect())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Columns as wide as their widest cell, two spaces apart.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: impl IntoIterator<Item = (&'static str, Align)>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row = cells.into_iter().map(|cell| printable(&cell).replace(['\n', '\t'], " ")).collect();
        self.rows.push(row);
    }

    /// With a line end after every line.
    pub(crate) fn render(&self) -> String {
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let lines = || std::iter::once(&header).chain(&self.rows);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| lines().filter_map(|line| line.get(column)).map(|cell| cell.width()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for line in lines() {
            let mut rendered = String::new();
            for ((cell, width), (_, align)) in line.iter().zip(&widths).zip(&self.columns) {
                let padding = " ".repeat(width.saturating_sub(cell.width()));
                match align {
                    Align::Left => rendered.extend([cell.as_str(), &padding, "  "]),
                    Align::Right => rendered.extend([padding.as_str(), cell, "  "]),
                }
            }
            text.push_str(rendered.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `key: value` lines with the values in one column.
pub(crate) fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let facts: Vec<_> = facts.into_iter().collect();
    let width = facts.iter().map(|(name, _)| name.width()).max().unwrap_or(0) + 2;
    facts
        .iter()
        .map(|(name, value)| {
            let value = printable(value).replace('\n', " ");
            format!("{name}{}{value}\n", " ".repeat(width.saturating_sub(name.width())))
        })
        .collect()
}

/// `-` for what is not known.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A span as a person says it: `850 ms`, `12 s`, `3 min`, `5 h`, `2 d`.
pub(crate) fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        172_800_000.. => format!("{} d", ms / 86_400_000),
    }
}

/// Unix milliseconds by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_by_width_on_screen_and_lines_end_clean() {
        let mut table = Table::new([("NAME", Align::Left), ("N", Align::Right), ("NOTE", Align::Left)]);
        table.row(["a".into(), "1".into(), String::new()]);
        table.row(["日本".into(), "1000".into(), "x".into()]);
        assert_eq!(table.render(), "NAME     N  NOTE\na        1\n日本  1000  x\n");
    }

    #[test]
    fn stored_text_cannot_drive_the_terminal() {
        assert_eq!(printable("ok\n\tfine"), "ok\n\tfine");
        assert_eq!(printable("\x1b]52;c;eA==\x07\r"), "\u{fffd}]52;c;eA==\u{fffd}\u{fffd}");
        let mut table = Table::new([("A", Align::Left)]);
        table.row(["x\n\x1b[2J".into()]);
        assert_eq!(table.render(), "A\nx \u{fffd}[2J\n");
    }

    #[test]
    fn facts_share_a_column() {
        assert_eq!(facts([("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }

    #[test]
    fn spans_read_as_people_say_them() {
        for (ms, expected) in [(0, "0 ms"), (999, "999 ms"), (1_000, "1 s"), (119_999, "119 s"), (120_000, "2 min")] {
            assert_eq!(span(ms), expected);
        }
        assert_eq!(span(7_200_000), "2 h");
        assert_eq!(span(172_800_000), "2 d");
    }
}
