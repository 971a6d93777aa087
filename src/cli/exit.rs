//! How a command ends: one list of exit codes, and the one error type that every command returns.
//!
//! A failure is one line on stderr, `error: <what>; <what to do next>`, or with `--json` one object on stdout in
//! upstream's shape, `{"ok":false,"error":{..}}`. Nothing else in `cli/` writes errors or picks numbers.

use std::process::ExitCode;

use openclaw_proto::http::ErrorCode;
use serde_json::json;

/// What the process tells its caller. Scripts depend on these numbers: add, never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or the answer is yes.
    Ok = 0,
    /// It failed, or the answer is no: not found, not ready, the model failed.
    Failed = 1,
    /// The command line or a value on it is wrong.
    Usage = 2,
    /// No gateway answered; nothing was changed.
    Unreachable = 3,
    /// The gateway refused: token, permission, conflict.
    Refused = 4,
    /// The connection or the deadline ended before the answer; it may have taken effect.
    EffectUnknown = 5,
    /// Not now (no quorum, busy, draining); nothing was changed and the same command may succeed later.
    Unavailable = 6,
    /// `doctor`: nothing is wrong, and something should be looked at.
    Warned = 7,
    /// The data on disk, or a backup, is damaged or of another release (sysexits EX_DATAERR).
    Storage = 65,
    /// `gateway`: a fatal error while it ran; a supervisor should start it again (EX_SOFTWARE).
    Fatal = 70,
    /// An address or the data directory is in use by another process (EX_TEMPFAIL).
    InUse = 75,
    /// The configuration is wrong (EX_CONFIG).
    Config = 78,
    /// Ended by Ctrl-C, or by another signal that asks a process to end.
    Interrupted = 130,
}

impl Exit {
    /// For `--help`: what scripts may rely on.
    pub(crate) const HELP: &'static str = "\
Exit codes:
  0  done, or the answer is yes         4  refused: token, permission or conflict
  1  failed, or the answer is no        5  outcome unknown: it may have taken effect
  2  wrong command line                 6  not now (no quorum, busy): nothing changed, try again
  3  no gateway reached                 7  `doctor`: warnings alone
                                       78  wrong configuration
  gateway and backups also: 65 damaged storage or backup, 70 fatal error while running, 75 address or data directory in use";
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<ErrorCode> for Exit {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::InvalidRequest => Self::Usage,
            ErrorCode::Unauthorized
            | ErrorCode::ForbiddenOrigin
            | ErrorCode::PreconditionFailed
            | ErrorCode::IdempotencyKeyReused
            | ErrorCode::Conflict => Self::Refused,
            ErrorCode::Busy | ErrorCode::NoQuorum | ErrorCode::Draining | ErrorCode::Timeout => Self::Unavailable,
            ErrorCode::EffectUnknown => Self::EffectUnknown,
            ErrorCode::NotFound
            | ErrorCode::MethodNotAllowed
            | ErrorCode::TooLarge
            | ErrorCode::UnsupportedMediaType
            | ErrorCode::ModelFailed
            | ErrorCode::Cancelled
            | ErrorCode::TurnAbandoned
            | ErrorCode::Internal => Self::Failed,
        }
    }
}

/// What a person should try after the gateway answered `code`.
pub(crate) fn hint(code: ErrorCode) -> Option<&'static str> {
    match code {
        ErrorCode::Unauthorized => {
            Some("set OPENCLAW_GATEWAY_TOKEN, or give --token-file, to the gateway's gateway.auth.token")
        }
        ErrorCode::NoQuorum => {
            Some("most instances are down or cut off from each other: see `openclaw cluster status`, then try again")
        }
        ErrorCode::Busy | ErrorCode::Draining | ErrorCode::Timeout => Some("nothing was changed, try again"),
        ErrorCode::EffectUnknown => Some("look before you repeat it: it may have taken effect"),
        ErrorCode::Internal => Some("the gateway's log has more under the request id"),
        ErrorCode::ModelFailed => Some("check the provider's settings and its own status"),
        ErrorCode::InvalidRequest
        | ErrorCode::ForbiddenOrigin
        | ErrorCode::NotFound
        | ErrorCode::MethodNotAllowed
        | ErrorCode::PreconditionFailed
        | ErrorCode::IdempotencyKeyReused
        | ErrorCode::Conflict
        | ErrorCode::TooLarge
        | ErrorCode::UnsupportedMediaType
        | ErrorCode::Cancelled
        | ErrorCode::TurnAbandoned => None,
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub(crate) exit: Exit,
    /// Lower case, one line, with values.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
    /// The gateway's own word for it, when it answered.
    pub(crate) code: Option<ErrorCode>,
    pub(crate) request_id: Option<String>,
    /// Problems that are many by nature, such as those of a configuration; a line each after the first.
    pub(crate) details: Vec<String>,
    /// There is nothing to say: the reader of our output went away.
    pub(crate) silent: bool,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            hint: None,
            code: None,
            request_id: None,
            details: Vec::new(),
            silent: false,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The gateway answered with an error.
    pub(crate) fn answered(code: ErrorCode, message: impl Into<String>, request_id: Option<String>) -> Self {
        Self {
            hint: hint(code).map(str::to_owned),
            code: Some(code),
            request_id,
            ..Self::new(Exit::from(code), message)
        }
    }

    /// Ends with `exit` and no text: the output so far has said it.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self { silent: true, ..Self::new(exit, "") }
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub(crate) fn details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// For people, without the line end.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("error: {}", one_line(&self.message));
        if let Some(request_id) = &self.request_id {
            text.push_str(&format!(" (request {})", one_line(request_id)));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("; {hint}"));
        }
        for detail in &self.details {
            text.push_str(&format!("\n  {}", detail.trim_end().replace('\n', "\n  ")));
        }
        text
    }

    /// For programs.
    pub(crate) fn json(&self) -> serde_json::Value {
        let mut error = json!({ "type": "cli_error", "message": self.message, "exitCode": self.exit as u8 });
        let fields = error.as_object_mut();
        if let Some(fields) = fields {
            if let Some(code) = self.code {
                fields.insert("code".into(), json!(code));
                fields.insert("retryable".into(), json!(code.retryable()));
            }
            if let Some(hint) = &self.hint {
                fields.insert("hint".into(), json!(hint));
            }
            if let Some(request_id) = &self.request_id {
                fields.insert("requestId".into(), json!(request_id));
            }
            if !self.details.is_empty() {
                fields.insert("details".into(), json!(self.details));
            }
        }
        json!({ "ok": false, "error": error })
    }
}

/// What a server sent must neither break the one line nor drive the terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_that_says_what_to_do_next() {
        let failure = Failure::answered(ErrorCode::Unauthorized, "the token is wrong\n\x1b[31m", Some("r1".into()));
        assert_eq!(
            failure.text(),
            "error: the token is wrong  [31m (request r1); set OPENCLAW_GATEWAY_TOKEN, or give --token-file, to the gateway's \
             gateway.auth.token"
        );
        assert_eq!(failure.exit(), Exit::Refused);
    }

    #[test]
    fn json_failures_have_upstreams_shape() {
        let failure = Failure::answered(ErrorCode::NoQuorum, "no leader", None);
        let json = failure.json();
        assert_eq!(json["ok"], false);
        assert_eq!(json["error"]["type"], "cli_error");
        assert_eq!(json["error"]["message"], "no leader");
        assert_eq!(json["error"]["code"], "no_quorum");
        assert_eq!(json["error"]["retryable"], true);
        assert_eq!(json["error"]["exitCode"], 6);
    }

    #[test]
    fn details_are_a_line_each() {
        let failure = Failure::new(Exit::Config, "2 problems").details(vec!["a\nb".into(), "c".into()]);
        assert_eq!(failure.text(), "error: 2 problems\n  a\n  b\n  c");
    }
}
