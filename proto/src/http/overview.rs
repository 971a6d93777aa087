//! The cluster at a glance: who is there, what everybody does, and what happened lately.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ChannelStatus, Member};

/// `GET /api/v1/overview`: put together by the answering instance from what all of them say, once a second at most.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    pub cluster_id: String,
    /// Who put it together.
    pub instance_id: String,
    /// Unix milliseconds by its clock.
    pub at_ms: u64,
    /// Who leads, as the instance with the highest term says; absent: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// In which it leads; without a leader the highest that an instance knows.
    pub term: u64,
    /// The highest log index that an instance knows to be committed.
    pub commit_index: u64,
    /// For how long the answering instance has known of no leader; absent: it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaderless_ms: Option<u64>,
    /// Unix milliseconds since when one of those that answered has been watching; what happened before is not in `events`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    pub instances: Vec<InstanceOverview>,
    pub channels: Vec<ChannelStatus>,
    /// Of all that answered.
    pub activity: Activity,
    /// Newest first.
    pub events: Vec<ClusterEvent>,
    /// With `?series=true` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<Series>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One instance, as it says itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceOverview {
    #[serde(flatten)]
    pub member: Member,
    /// Whether it answered the one that put this together. What it alone knows is absent otherwise.
    pub answered: bool,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence: Option<String>,
    /// Committed log entries that it has not applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// Unix milliseconds since when it watches the cluster: shortly after its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
}

/// What an instance has in hand now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    pub turns_running: u64,
    /// Runnable turns that wait for a free place.
    pub turns_waiting: u64,
    /// Event streams that are being read.
    pub streams: u64,
    pub connections: u64,
}

/// What was done in the last minute, or since the start if that was later. Counts of a second are averages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Activity {
    /// The time that it covers; 0: none yet.
    pub over_ms: u64,
    /// Requests that clients sent about conversations; not those about health, metrics or the cluster.
    pub requests_per_second: f64,
    /// Of them, those answered with 429 or 5xx.
    pub refused_per_second: f64,
    /// Turns that ended.
    pub turns_per_second: f64,
    /// Of them, those that failed.
    pub failed_turns_per_second: f64,
    pub input_tokens_per_second: f64,
    pub output_tokens_per_second: f64,
    /// From a request's head to its answer's; absent: there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_time: Option<Quantiles>,
    /// From a turn's start to its committed end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_time: Option<Quantiles>,
    /// From a command's proposal to its outcome, which a majority has on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_time: Option<Quantiles>,
}

/// Estimated from the buckets of the histograms in `/metrics`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quantiles {
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
}

/// The last minutes in equal steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    pub step_ms: u64,
    /// Unix milliseconds of the end of the last step.
    pub end_ms: u64,
    /// Of all that answered.
    pub total: Lines,
    /// By instance id.
    pub instances: std::collections::BTreeMap<String, Lines>,
}

/// One value per step, the oldest first; `null` where nothing is known, or took no time because there was nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lines {
    pub requests_per_second: Vec<Option<f64>>,
    pub turns_per_second: Vec<Option<f64>>,
    /// In and out.
    pub tokens_per_second: Vec<Option<f64>>,
    pub request_p95_ms: Vec<Option<f64>>,
    pub turn_p95_ms: Vec<Option<f64>>,
    pub commit_p95_ms: Vec<Option<f64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClusterEventKind {
    /// `to` leads in term `number`; `from` did before.
    LeaderChanged,
    /// `instance` has contact again with `to`, which has led all the while in term `number`; of the leader itself: with a quorum.
    LeaderReached,
    /// `instance` has registered, under the epoch `number`.
    InstanceCame,
    /// It stopped or fell silent.
    InstanceWent,
    /// It takes no new turns.
    InstanceDrains,
    /// It takes new turns again.
    InstanceWorks,
    /// `to` runs `account` under the fencing token `number`; `from` did before.
    ChannelMoved,
    /// Nobody runs `account`; `from` did before.
    ChannelUnowned,
}

/// Something that happened to the cluster. Several instances see the same; it is told once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterEvent {
    pub kind: ClusterEventKind,
    /// Unix milliseconds by the clock of who saw it.
    pub at_ms: u64,
    pub seen_by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The term, the instance's epoch or the account's fencing token.
    pub number: u64,
    /// How long nobody led, as `seenBy` saw it, or how long it is since the owner before was last heard. Absent: it was handed
    /// over, or is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_ms: Option<u64>,
    /// Of an instance that came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}
