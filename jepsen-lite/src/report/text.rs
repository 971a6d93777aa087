//! Texts and numbers as they stand on a page. Pure. What is markup in them is escaped where they are put into it, not here.

/// Letters of a message, a line of a log or a call.
pub(super) const LONG: usize = 600;

/// A text of somebody else's, fit to be read: of at most `letters`, without control characters and those that turn the
/// direction of what follows.
pub(super) fn shown(text: &str, letters: usize) -> String {
    let unseen = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown: String = text
        .chars()
        .take(letters)
        .map(|letter| match letter {
            '\n' | '\t' => ' ',
            letter if unseen(letter) => '\u{fffd}',
            letter => letter,
        })
        .collect();
    if text.chars().nth(letters).is_some() {
        shown.push('…');
    }
    shown
}

/// `12,345`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 fault`, `2 faults`.
pub(super) fn counted(number: usize, one: &str, more: &str) -> String {
    format!("{} {}", grouped(number as u64), if number == 1 { one } else { more })
}

/// `850 ms`, `42 s`, `12 min 30 s`, `2 h 5 min`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    let parts = |large: u64, unit: &str, small: u64, part: &str| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {part}"),
    };
    match whole {
        0 if seconds <= 0.0 => "0 s".to_owned(),
        0..=1 => super::axis::milliseconds(seconds * 1000.0),
        2..=119 => format!("{whole} s"),
        120..=7199 => parts(whole / 60, "min", whole % 60, "s"),
        7200.. => parts(whole / 3600, "h", whole / 60 % 60, "min"),
    }
}

/// A moment of a run, as exactly as the history has it: which came first is what an anomaly is about.
pub(super) fn moment(seconds: f64) -> String {
    format!("{seconds:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_text_is_short_and_turns_nothing_around() {
        assert_eq!(shown("a\u{1b}[31mred\u{202e}\nb\0", 99), "a\u{fffd}[31mred\u{fffd} b\u{fffd}");
        assert_eq!((shown("äöü", 3), shown("äöüß", 3)), ("äöü".to_owned(), "äöü…".to_owned()));
    }

    #[test]
    fn numbers_and_durations_are_written_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!((counted(1, "run", "runs"), counted(2, "run", "runs")), ("1 run".to_owned(), "2 runs".to_owned()));
        assert_eq!(
            [0.0, 0.85, 42.4, 750.0, 7500.0].map(duration),
            ["0 s", "850 ms", "42 s", "12 min 30 s", "2 h 5 min"]
        );
    }
}
