//! `logging`: what is written, how, and where.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{ParseError, as_text};

/// Logs. A restart is needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Logging {
    /// The least serious events that are written. Default `info`. Also `OPENCLAW_LOG_LEVEL`.
    pub level: Level,
    /// `json`, `text`, or `auto`: text on a terminal and JSON elsewhere. Default `auto`.
    pub format: Format,
    /// Whether each line names the instance. Default true.
    pub include_instance_id: bool,
    /// `stdout`, `stderr`, or the path of a file (absolute, or beginning with `./` or `~/`). Default `stdout`.
    pub output: Output,
}

impl Default for Logging {
    fn default() -> Self {
        Self { level: Level::Info, format: Format::Auto, include_instance_id: true, output: Output::Stdout }
    }
}

/// How serious an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing is written.
    #[serde(alias = "off")]
    Silent,
    /// Needs a person.
    #[serde(alias = "fatal")]
    Error,
    /// Odd, but it went on.
    Warn,
    /// A change of state.
    #[default]
    Info,
    /// A step.
    Debug,
    /// Everything.
    Trace,
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal and JSON elsewhere.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Output {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
    /// Appended to this file.
    File(PathBuf),
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::Stderr => f.write_str("stderr"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl FromStr for Output {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "stdout" => Ok(Self::Stdout),
            "stderr" => Ok(Self::Stderr),
            // A bare word is a misspelt stream sooner than a file.
            path if ["/", "./", "../", "~/"].iter().any(|start| path.starts_with(start)) => {
                Ok(Self::File(PathBuf::from(path)))
            }
            _ => Err(ParseError(format!("{text:?} is not \"stdout\", \"stderr\" or the path of a file"))),
        }
    }
}

as_text!(Output, "\"stdout\", \"stderr\" or the path of a file");
