//! Channels: who runs which bot account, what waits to be sent, and who may write.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What of an account's messages is on its way out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutboxStatus {
    /// To be sent.
    pub waiting: u64,
    /// May have been sent: sent again or held, as the account's policy says.
    pub unknown: u64,
    /// Not sent, and waiting for an operator.
    pub failed: u64,
    /// Age of the oldest that is to be sent, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<u64>,
}

/// One bot account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChannelStatus {
    /// `telegram:default`.
    pub account: String,
    /// Every instance serves it, and none owns it: WebChat.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub everywhere: bool,
    /// The instance that runs it; absent: none can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Unix milliseconds of the grant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    pub fencing_token: u64,
    /// Where it goes once its owner has let go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_owner: Option<String>,
    /// Whether the platform answers. This and what follows is absent when its owner does not say so in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connected: Option<bool>,
    /// Unix milliseconds of what came in last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_inbound_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    pub outbox: OutboxStatus,
}

/// `GET /api/v1/channels`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChannelList {
    pub instance_id: String,
    pub channels: Vec<ChannelStatus>,
}

/// `POST /api/v1/channels/{account}/move`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MoveRequest {
    /// The instance that shall run it.
    pub to: String,
}

/// A message that was not delivered, or not known to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    pub id: String,
    pub account: String,
    pub chat: String,
    /// `failed` or `unknown`.
    pub state: String,
    pub error: String,
    /// Unix milliseconds.
    pub created_ms: u64,
    pub pieces_sent: u32,
    /// The conversation and the entry whose text it is; absent for a text of the gateway's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
}

/// `GET /api/v1/channels/{account}/dead-letters`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterList {
    pub dead_letters: Vec<DeadLetter>,
}

/// `POST /api/v1/channels/{account}/dead-letters/{id}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeadLetterRequest {
    pub action: DeadLetterAction,
}

/// What shall become of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeadLetterAction {
    /// Sent once more.
    Resubmit,
    /// Forgotten.
    Drop,
}

/// A person who asked to write to a bot, or may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pairing {
    pub account: String,
    pub sender_id: String,
    pub sender_name: String,
    pub approved: bool,
    /// What approves it, while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Unix milliseconds of the request or the approval.
    pub since_ms: u64,
}

/// `GET /api/v1/pairings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PairingList {
    pub pairings: Vec<Pairing>,
}

/// `POST /api/v1/pairings/approve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApproveRequest {
    /// `telegram`, or one account: `telegram:default`.
    pub channel: String,
    pub code: String,
}

/// `POST /api/v1/pairings/revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokeRequest {
    pub account: String,
    pub sender_id: String,
}
