//! A transcript as upstream OpenClaw writes it: the pi session format, version 3.
//!
//! One header, then events that name their parent, so that an importer of either project reads it back. We keep the
//! committed text alone: thinking, tool arguments and costs are upstream's optional parts, written empty.

use jiff::Timestamp;
use openclaw_proto::http::{Entry, Role, Session, Usage};
use serde_json::{Value, json};

/// The first line.
pub(super) fn header(session: &Session) -> Value {
    json!({
        "type": "session",
        "version": 3,
        "id": session.session_key,
        "timestamp": iso(session.created_ms),
        "cwd": "/",
    })
}

/// Any later line; `parent` is the id of the entry before.
pub(super) fn event(entry: &Entry, parent: Option<&str>) -> Value {
    let timestamp = entry.created_ms;
    let text = json!([{ "type": "text", "text": entry.text }]);
    let message = match entry.role {
        Role::User => json!({ "role": "user", "content": text, "timestamp": timestamp }),
        Role::Assistant => {
            let (provider, model) = entry.model.as_deref().and_then(|model| model.split_once('/')).unwrap_or_default();
            json!({
                "role": "assistant",
                "content": text,
                "api": provider,
                "provider": provider,
                "model": model,
                "usage": usage(entry.usage.unwrap_or_default()),
                "stopReason": "stop",
                "timestamp": timestamp,
            })
        }
        Role::Tool => json!({
            "role": "toolResult",
            "toolCallId": entry.id,
            "toolName": "",
            "content": text,
            "isError": false,
            "timestamp": timestamp,
        }),
        // Upstream has no system messages in transcripts; a custom message is what its model sees as context.
        Role::System => {
            return json!({
                "type": "custom_message",
                "id": entry.id,
                "parentId": parent,
                "timestamp": iso(timestamp),
                "customType": "system",
                "content": entry.text,
                "display": true,
            });
        }
    };
    json!({ "type": "message", "id": entry.id, "parentId": parent, "timestamp": iso(timestamp), "message": message })
}

fn usage(usage: Usage) -> Value {
    json!({
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "cacheRead": 0,
        "cacheWrite": 0,
        "totalTokens": usage.total_tokens,
        "cost": { "input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0, "total": 0 },
    })
}

/// Unix milliseconds as JavaScript's `toISOString` writes them.
pub(super) fn iso(ms: u64) -> String {
    let timestamp =
        i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX);
    format!("{timestamp:.3}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{entry, example};
    use super::*;

    #[test]
    fn the_header_is_upstreams() {
        assert_eq!(
            header(&example()),
            json!({"type": "session", "version": 3, "id": "agent:main:main", "timestamp": "2026-05-28T20:26:40.000Z",
                   "cwd": "/"})
        );
    }

    #[test]
    fn events_name_their_parent_and_carry_both_timestamps() {
        let user = event(&entry(1, Role::User, "hi"), None);
        assert_eq!(
            user,
            json!({"type": "message", "id": "00000001", "parentId": null, "timestamp": "2026-05-28T20:26:40.001Z",
                   "message": {"role": "user", "content": [{"type": "text", "text": "hi"}], "timestamp": 1_780_000_000_001_u64}})
        );
        let reply = event(&entry(2, Role::Assistant, "hello"), Some("00000001"));
        assert_eq!(reply["parentId"], "00000001");
        assert_eq!(reply["message"]["provider"], "echo");
        assert_eq!(reply["message"]["stopReason"], "stop");
        assert_eq!(reply["message"]["usage"]["cost"]["total"], 0);
        assert_eq!(event(&entry(3, Role::System, "x"), None)["type"], "custom_message");
        assert_eq!(event(&entry(4, Role::Tool, "x"), None)["message"]["role"], "toolResult");
    }

    #[test]
    fn a_time_beyond_the_calendar_is_not_a_panic() {
        assert!(iso(u64::MAX).ends_with('Z'));
    }
}
