//! `agents`: what a turn is made with.

use std::collections::BTreeMap;
use std::fmt;

use openclaw_proto::ids::AgentId;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::values::{ByteCount, ModelRef};

/// Agents. A restart is needed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Agents {
    /// What holds for every agent that does not say otherwise.
    pub defaults: Agent,
    /// Agents by id; the agent `main` is always there. Each key that is absent is taken from `defaults`.
    #[schemars(with = "BTreeMap<String, AgentOverrides>")]
    pub entries: BTreeMap<AgentId, AgentOverrides>,
}

impl Agents {
    /// The agent that is always there.
    pub const MAIN: &str = "main";

    /// What `agent` works with, or `None` if there is no such agent.
    pub fn resolve(&self, agent: &AgentId) -> Option<Agent> {
        match self.entries.get(agent) {
            Some(overrides) => Some(overrides.over(&self.defaults)),
            None => (agent.as_str() == Self::MAIN).then(|| self.defaults.clone()),
        }
    }
}

/// What an agent works with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Agent {
    /// The model, and those to try when it fails.
    pub model: ModelChoice,
    /// Text before the conversation. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Longest reply, in tokens. Default 4096; at least 1.
    pub max_output_tokens: u32,
    /// Transcript entries given to the model, the newest ones. Default 200; at least 1.
    pub context_max_entries: u32,
    /// Text of transcript entries given to the model, in bytes. Default 256 KiB; at least 1 KiB.
    pub context_max_bytes: ByteCount,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            model: ModelChoice::default(),
            system_prompt: None,
            max_output_tokens: 4096,
            context_max_entries: 200,
            context_max_bytes: ByteCount::kib(256),
        }
    }
}

/// A model, and those to try when it fails.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelChoice {
    /// `<provider>/<model>`. Default `echo/echo`.
    pub primary: ModelRef,
    /// Tried in this order when the primary fails before it has streamed anything. Default none.
    pub fallbacks: Vec<ModelRef>,
}

impl Default for ModelChoice {
    fn default() -> Self {
        Self { primary: ModelRef { provider: "echo".into(), model: "echo".into() }, fallbacks: Vec::new() }
    }
}

impl<'de> Deserialize<'de> for ModelChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(ModelOverride::deserialize(deserializer)?.over(&Self::default()))
    }
}

/// What one agent does otherwise than `agents.defaults`; the same keys.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AgentOverrides {
    /// The model, and those to try when it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelOverride>,
    /// Text before the conversation; an empty text switches the default's off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Longest reply, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
    /// Transcript entries given to the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_max_entries: Option<u32>,
    /// Text of transcript entries given to the model, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_max_bytes: Option<ByteCount>,
}

impl AgentOverrides {
    fn over(&self, defaults: &Agent) -> Agent {
        let prompt = self.system_prompt.as_ref().or(defaults.system_prompt.as_ref());
        Agent {
            model: self.model.as_ref().map_or_else(|| defaults.model.clone(), |model| model.over(&defaults.model)),
            system_prompt: prompt.filter(|text| !text.is_empty()).cloned(),
            max_output_tokens: self.max_output_tokens.unwrap_or(defaults.max_output_tokens),
            context_max_entries: self.context_max_entries.unwrap_or(defaults.context_max_entries),
            context_max_bytes: self.context_max_bytes.unwrap_or(defaults.context_max_bytes),
        }
    }
}

/// One agent's model; a bare text is its `primary`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelOverride {
    /// `<provider>/<model>`. Default: that of `agents.defaults`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary: Option<ModelRef>,
    /// Tried in this order when the primary fails. Default: those of `agents.defaults`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallbacks: Option<Vec<ModelRef>>,
}

impl ModelOverride {
    fn over(&self, defaults: &ModelChoice) -> ModelChoice {
        ModelChoice {
            primary: self.primary.clone().unwrap_or_else(|| defaults.primary.clone()),
            fallbacks: self.fallbacks.clone().unwrap_or_else(|| defaults.fallbacks.clone()),
        }
    }
}

impl<'de> Deserialize<'de> for ModelOverride {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        struct Keys {
            primary: Option<ModelRef>,
            fallbacks: Option<Vec<ModelRef>>,
        }

        struct TextOrKeys;

        impl<'de> Visitor<'de> for TextOrKeys {
            type Value = ModelOverride;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"<provider>/<model>\" or { primary, fallbacks }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ModelOverride, E> {
                let primary = text.parse().map_err(E::custom)?;
                Ok(ModelOverride { primary: Some(primary), fallbacks: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ModelOverride, A::Error> {
                let Keys { primary, fallbacks } = Keys::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ModelOverride { primary, fallbacks })
            }
        }

        deserializer.deserialize_any(TextOrKeys)
    }
}
