//! A table as lines of one width each column, which is all that Telegram can show of one.

use unicode_width::UnicodeWidthStr;

/// A wider one wraps on every screen: its columns are not aligned.
const MAX_WIDTH: usize = 100;
const BETWEEN: &str = " | ";

/// The first row is its head. Cells hold text alone.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn row(&mut self) {
        self.rows.push(Vec::new());
    }

    pub(super) fn cell(&mut self) {
        if let Some(row) = self.rows.last_mut() {
            row.push(String::new());
        }
    }

    pub(super) fn write(&mut self, text: &str) {
        if let Some(cell) = self.rows.last_mut().and_then(|row| row.last_mut()) {
            cell.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
        }
    }

    /// The words of a link were written: here is where it leads.
    pub(super) fn link(&mut self, url: &str) {
        let words = self.rows.last().and_then(|row| row.last()).map(String::as_str).unwrap_or_default();
        if words.is_empty() {
            self.write(url);
        } else if !words.ends_with(url) {
            self.write(&format!(" ({url})"));
        }
    }

    pub(super) fn lines(mut self) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for row in &mut self.rows {
            // A short row means as many empty cells as the head is long.
            while row.pop_if(|cell| cell.trim().is_empty()).is_some() {}
            for (column, cell) in row.iter().enumerate() {
                let width = cell.trim().width();
                match widths.get_mut(column) {
                    Some(widest) => *widest = width.max(*widest),
                    None => widths.push(width),
                }
            }
        }
        let whole = widths.iter().map(|width| width.saturating_add(BETWEEN.len())).fold(0, usize::saturating_add);
        let aligned = whole <= MAX_WIDTH;
        let mut lines = Vec::with_capacity(self.rows.len() + 1);
        for (number, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| {
                let cell = cell.trim();
                let missing = if aligned { width.saturating_sub(cell.width()) } else { 0 };
                format!("{cell}{}", " ".repeat(missing))
            });
            lines.push(cells.collect::<Vec<_>>().join(BETWEEN).trim_end().to_owned());
            if number == 0 && aligned {
                lines.push(widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>().join("-+-"));
            }
        }
        lines.retain(|line| !line.is_empty());
        lines.join("\n")
    }
}
