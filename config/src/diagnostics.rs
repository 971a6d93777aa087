//! `diagnostics`: what the gateway tells of itself besides its log, and when it calls itself unwell.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::values::{ByteCount, Secret, millis};

/// Traces, and the limits of health. A restart is needed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Diagnostics {
    /// Traces, by OpenTelemetry's protocol.
    pub otel: Otel,
    /// When `/api/v1/health` is false.
    pub health: Health,
}

/// Traces, sent as OTLP over HTTP with protobuf. Off unless `endpoint` is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Otel {
    /// False turns traces off although there is an endpoint. Default true.
    pub enabled: bool,
    /// Base URL of a collector, `http://` or `https://`: `http://collector:4318`. `/v1/traces` is added. Default none. Also
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Headers added to every export; their values are secret. Default none. `OTEL_EXPORTER_OTLP_HEADERS` adds to them.
    pub headers: BTreeMap<String, Secret>,
    /// The name under which traces appear. Default `openclaw`. Also `OTEL_SERVICE_NAME`.
    pub service_name: String,
    /// The part of the traces that begin here and are recorded, 0 to 1. Who brings a `traceparent` decides for itself.
    /// Default 1. Also `OTEL_TRACES_SAMPLER_ARG`.
    pub sample_rate: Ratio,
}

impl Otel {
    /// Where traces go, if anywhere.
    pub fn traces_endpoint(&self) -> Option<String> {
        let base = self.endpoint.as_deref().filter(|_| self.enabled)?;
        Some(format!("{}/v1/traces", base.trim_end_matches('/')))
    }
}

impl Default for Otel {
    fn default() -> Self {
        Self {
            enabled: true,
            endpoint: None,
            headers: BTreeMap::new(),
            service_name: "openclaw".to_owned(),
            sample_rate: Ratio(1.0),
        }
    }
}

/// When an instance calls itself unwell. None of it takes the instance out of a balancer, nor has it restarted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Health {
    /// A bot account that runs here counts as deaf when its platform has not answered for so long, in milliseconds.
    /// Default 180000; range 1000 to 24 h. Quiet platforms answer every 25 to 60 s.
    #[serde(rename = "deafAfterMs", with = "millis")]
    #[schemars(with = "u64")]
    pub deaf_after: Duration,
    /// What waits to be sent by an account that runs here counts as stuck when none of its chat was sent for so long, in
    /// milliseconds, unless the platform asked for a pause. Default 300000; range 1000 to 24 h.
    #[serde(rename = "outboxStuckAfterMs", with = "millis")]
    #[schemars(with = "u64")]
    pub outbox_stuck_after: Duration,
    /// Less room than this on the disk of the data directory counts as too little. Default 512MiB; 0 turns it off.
    pub min_free_bytes: ByteCount,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            deaf_after: Duration::from_secs(180),
            outbox_stuck_after: Duration::from_secs(300),
            min_free_bytes: ByteCount::mib(512),
        }
    }
}

/// A part of a whole. From a variable it comes as text.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Ratio(pub f64);

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0)
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;

        impl Visitor<'_> for NumberOrText {
            type Value = Ratio;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number from 0 to 1")
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Ratio, E> {
                Ok(Ratio(number))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Ratio, E> {
                // Anything above 1 is out of range however it is rounded.
                Ok(Ratio(f64::from(u32::try_from(number).unwrap_or(u32::MAX))))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ratio, E> {
                text.trim().parse().map(Ratio).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(NumberOrText)
    }
}

impl JsonSchema for Ratio {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Ratio".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "number", "minimum": 0, "maximum": 1 })
    }
}
