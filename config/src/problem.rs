//! What is wrong with the settings, and where it was written.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Source {
    /// Nowhere: it has its default.
    #[default]
    Default,
    /// In a file, counted from 1; columns are characters.
    File {
        /// The file as it was named.
        file: Arc<Path>,
        /// Line.
        line: u32,
        /// Column.
        column: u32,
    },
    /// In an environment variable of this name.
    Variable(&'static str),
    /// In a command-line flag of this name.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong: `openclaw.json:3:5: gateway.prot: unknown key; did you mean `port`?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written; [`Source::Default`] when no place is known.
    pub source: Source,
    /// The key from the root, `gateway.port`; empty when it concerns a file as a whole.
    pub key: String,
    /// What is wrong. Never contains the value of a secret.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.source != Source::Default {
            write!(f, "{}: ", self.source)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Something odd that does not stop the start; it reads like a [`Problem`].
pub type Warning = Problem;

/// All that is wrong with the settings; one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors(pub Vec<Problem>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}
