//! Names and descriptions of what can be chosen on the command line, for lists, files and reports.

use clap::ValueEnum;

/// As on the command line.
pub fn name<T: ValueEnum>(value: &T) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// What it is, in a sentence: its doc comment.
pub fn about<T: ValueEnum>(value: &T) -> String {
    let help = value.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
    help.unwrap_or_default()
}
