//! Bodies of the HTTP API, as JSON in camel case, and the error code that every surface shares.
//!
//! Requests refuse unknown fields, so that a misspelt one is an error and not a silent default.

mod channels;
mod error;
mod openai;
mod overview;

pub use channels::*;
pub use error::{Error, ErrorBody, ErrorCode};
pub use openai::*;
pub use overview::*;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Header that names a write across retries.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Header of every answer: which instance gave it.
pub const INSTANCE: &str = "x-openclaw-instance";
/// Header of every answer and of its log lines.
pub const REQUEST_ID: &str = "x-request-id";
/// Header of a request: the trace that it is part of, as W3C defines it.
pub const TRACE_PARENT: &str = "traceparent";
/// Header of a commit: its log index. Of a session that was read: the log index that the answer reflects at least.
pub const INDEX: &str = "x-openclaw-index";
/// Header of a read: the answer must reflect at least this log index.
pub const MIN_INDEX: &str = "x-openclaw-min-index";

/// `POST /api/v1/chat` and `/api/v1/chat/stream`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChatRequest {
    /// The conversation; absent: the agent's main one, or the user's own where `user` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// `<provider>/<model>`; absent: the agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// `POST /api/v1/chat/command`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommandRequest {
    /// What a person wrote: `/status`, say.
    pub text: String,
    /// The conversation, as in [`ChatRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// What became of it: one of the two is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommandResponse {
    pub session_key: String,
    /// The gateway's answer to a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// What is for the model, and to be sent as a message: the text itself where it is no command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub total_tokens: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    pub entry_id: String,
    pub text: String,
}

/// The answer to `POST /api/v1/chat`, once the reply is committed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChatResponse {
    pub turn_id: String,
    pub session_key: String,
    pub reply: Reply,
    pub usage: Usage,
    pub model: String,
    pub instance_id: String,
}

/// An event of `chat/stream`; the SSE event name is the variant's, the data is its fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum StreamEvent {
    /// The message is accepted: from here on nothing is lost.
    Start {
        turn_id: String,
        session_key: String,
        instance_id: String,
    },
    Delta {
        text: String,
    },
    Tool {
        name: String,
        phase: String,
    },
    /// Another attempt begins; what was streamed before is void.
    Restart {
        attempt: u32,
    },
    /// The reply is committed.
    Done {
        entry_id: String,
        text: String,
        usage: Usage,
        model: String,
    },
    Error {
        code: ErrorCode,
        message: String,
    },
}

impl StreamEvent {
    /// The SSE event name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Delta { .. } => "delta",
            Self::Tool { .. } => "tool",
            Self::Restart { .. } => "restart",
            Self::Done { .. } => "done",
            Self::Error { .. } => "error",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TurnState {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

/// `GET /api/v1/turns/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Turn {
    pub turn_id: String,
    pub session_key: String,
    pub state: TurnState,
    pub attempt: u32,
    pub runner: String,
    /// Unix milliseconds.
    pub accepted_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<u64>,
    pub usage: Usage,
    /// `<provider>/<model>` that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<TurnError>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TurnError {
    pub code: String,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    pub session_key: String,
    pub agent_id: String,
    /// Its name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Grows with each change of the label or the model, and with nothing else: the log index of the last one; 0: none.
    #[serde(default)]
    pub revision: u64,
    pub created_ms: u64,
    pub updated_ms: u64,
    pub head_seq: u64,
    /// Entries up to this one are not shown to the model.
    pub reset_seq: u64,
    pub turn_count: u64,
    pub usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_turn: Option<String>,
    pub queued_turns: Vec<String>,
}

/// `PATCH /api/v1/sessions/{key}`. What is absent stays as it is, `null` clears.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateSessionRequest {
    /// A name for people; at most 256 bytes.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub label: Option<Option<String>>,
    /// `<provider>/<model>` for the turns from now on.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub model: Option<Option<String>>,
}

/// Tells a field that is `null` from one that is absent.
fn present<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(field).map(Some)
}

/// `GET /api/v1/sessions`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionList {
    pub sessions: Vec<Session>,
    /// Give it back as `cursor` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    User,
    Assistant,
    System,
    Tool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub seq: u64,
    pub id: String,
    pub role: Role,
    pub text: String,
    pub created_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// `GET /api/v1/sessions/{key}/entries?after&limit`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EntryList {
    pub entries: Vec<Entry>,
    pub head_seq: u64,
}

/// `POST /api/v1/sessions/{key}/entries`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppendRequest {
    pub role: Role,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppendResponse {
    pub seq: u64,
    pub id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResetResponse {
    pub session_key: String,
    pub reset_seq: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeleteResponse {
    pub session_key: String,
    pub entry_count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    Live,
    Ready,
    Draining,
    Maintenance,
    NoQuorum,
    /// It has not caught up with the cluster since it started.
    Starting,
    /// The process takes part no more; only another start helps.
    ConsensusStopped,
    /// It serves, and something of it needs a person: `reasons` say what.
    Unwell,
}

/// What makes an instance unwell, or not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthCondition {
    ConsensusStopped,
    NoQuorum,
    Starting,
    Draining,
    Maintenance,
    /// A bot account that runs here does not hear its platform.
    ChannelDeaf,
    /// What a bot account that runs here has to send does not go out.
    OutboxStuck,
    /// The disk of the data directory has too little room.
    DiskFull,
    /// The disk of the data directory does not end what it was asked to do.
    DiskStalled,
}

impl HealthCondition {
    pub const ALL: [Self; 9] = [
        Self::ConsensusStopped,
        Self::NoQuorum,
        Self::Starting,
        Self::Draining,
        Self::Maintenance,
        Self::ChannelDeaf,
        Self::OutboxStuck,
        Self::DiskFull,
        Self::DiskStalled,
    ];

    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConsensusStopped => "consensus_stopped",
            Self::NoQuorum => "no_quorum",
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
            Self::ChannelDeaf => "channel_deaf",
            Self::OutboxStuck => "outbox_stuck",
            Self::DiskFull => "disk_full",
            Self::DiskStalled => "disk_stalled",
        }
    }
}

/// One reason, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthReason {
    pub condition: HealthCondition,
    /// The bot account that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    pub message: String,
}

/// `GET /api/v1/health`, `health/live` and `health/ready`; `docs/health.md` says which of them is false when. Callers
/// without a token get `ok` and `status` alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    pub ok: bool,
    pub status: HealthStatus,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub detail: Option<HealthDetail>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthDetail {
    pub instance_id: String,
    pub version: String,
    pub uptime_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    pub term: u64,
    pub applied_index: u64,
    pub running_turns: u64,
    /// All that is not as it should be on this instance, whichever of the three was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<HealthReason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    Leader,
    Follower,
    Learner,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    pub instance_id: String,
    pub role: MemberRole,
    pub http_addr: String,
    pub peer_addr: String,
    /// Known to the leader, and to each instance of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    pub live: bool,
    pub draining: bool,
    /// Milliseconds since its last renewal was committed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen_ms: Option<u64>,
}

/// `GET /api/v1/cluster`, as the answering instance sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    pub cluster_id: String,
    pub instance_id: String,
    /// Whom a majority follows; absent: this instance knows of nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    pub term: u64,
    pub commit_index: u64,
    /// In which the state is written: the newest format that every instance reads. Absent from releases that knew only one.
    #[serde(default = "first_format")]
    pub format: u32,
    pub members: Vec<Member>,
    /// What an operator should know, such as a number of voters that tolerates no failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

fn first_format() -> u32 {
    1
}

/// `GET /api/v1/cluster/state-hash`: what the answering instance holds. Where `appliedIndex` is the same, so is `sha256`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StateHash {
    pub instance_id: String,
    /// Log index of the last command that the hash covers.
    pub applied_index: u64,
    /// Over all rows, in hexadecimal.
    pub sha256: String,
}

/// `POST /api/v1/maintenance`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceRequest {
    pub on: bool,
    /// Even if the others could not do without this instance now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Maintenance {
    pub instance_id: String,
    pub on: bool,
    pub running_turns: u64,
    /// Bot accounts that still run here though another instance would take them.
    #[serde(default)]
    pub channels: u64,
    /// Maintenance is on, nothing runs here any more and another instance leads.
    pub drained: bool,
}

/// `POST /api/v1/cluster/transfer-leader`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferLeaderRequest {
    /// An instance id; absent: the best caught-up voter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// `POST /api/v1/cluster/remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemoveRequest {
    pub instance_id: String,
}
