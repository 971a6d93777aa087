//! `models`: who answers.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::values::{Secret, millis};

/// Providers of models. A restart is needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Models {
    /// Providers by the name that model references use: `<provider>/<model>`. The provider `echo`, which repeats the
    /// message, is always there.
    #[serde(deserialize_with = "with_echo")]
    pub providers: BTreeMap<String, Provider>,
}

impl Default for Models {
    fn default() -> Self {
        Self { providers: BTreeMap::from([(Provider::ECHO.to_owned(), Provider::echo())]) }
    }
}

fn with_echo<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Provider>, D::Error> {
    let mut providers = BTreeMap::<String, Provider>::deserialize(deserializer)?;
    providers.entry(Provider::ECHO.to_owned()).or_insert_with(Provider::echo);
    Ok(providers)
}

/// How to reach one provider.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Provider {
    /// What it speaks. Default `openai`, which most servers offer; for providers named `anthropic` and `echo`, their own.
    pub api: Api,
    /// Base URL, `http://` or `https://`, without user or password: `https://api.openai.com/v1`. Needed unless `api` is
    /// `echo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// The key it asks for. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<Secret>,
    /// Longest wait for the first byte of an answer, in milliseconds: models that reason say nothing until they have thought. Between
    /// two pieces it is the same, at least 60 s. Default 120000; range 100 to 24 h. `timeoutMs` ends the wait as well, whichever is sooner.
    #[serde(rename = "firstByteTimeoutMs", with = "millis")]
    #[schemars(with = "u64")]
    pub first_byte_timeout: Duration,
    /// Longest wait for a whole answer, in milliseconds. Default 300000; range 100 to 24 h.
    #[serde(rename = "timeoutMs", with = "millis")]
    #[schemars(with = "u64")]
    pub timeout: Duration,
    /// Requests under way at once from this instance; more wait. Default 64; at least 1.
    pub max_concurrency: u32,
    /// Further attempts after a failure that may pass (overload, lost connection) before anything was streamed. Default 2;
    /// at most 10.
    pub max_retries: u32,
    /// Headers added to every request; their values are secret. Default none.
    pub headers: BTreeMap<String, Secret>,
    /// `echo` alone: pause before each token, in milliseconds. Default 0; at most 60000.
    /// Also `OPENCLAW_ECHO_TOKEN_DELAY_MS` for the provider `echo`.
    #[serde(rename = "tokenDelayMs", with = "millis")]
    #[schemars(with = "u64")]
    pub token_delay: Duration,
}

impl Default for Provider {
    fn default() -> Self {
        Self {
            api: Api::Openai,
            base_url: None,
            api_key: None,
            first_byte_timeout: Duration::from_secs(120),
            timeout: Duration::from_secs(300),
            max_concurrency: 64,
            max_retries: 2,
            headers: BTreeMap::new(),
            token_delay: Duration::ZERO,
        }
    }
}

impl Provider {
    /// The name of the provider that is always there.
    pub const ECHO: &str = "echo";

    /// The provider that is always there.
    pub fn echo() -> Self {
        Self { api: Api::Echo, ..Self::default() }
    }
}

/// What a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// OpenAI's chat completions, as most servers offer them.
    #[serde(alias = "openai-completions")]
    Openai,
    /// Anthropic's messages.
    #[serde(alias = "anthropic-messages")]
    Anthropic,
    /// Nothing: the message comes back. For trials, demonstrations and tests.
    Echo,
}
