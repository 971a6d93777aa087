//! Keys that upstream OpenClaw knows and this gateway does not. `--lenient-config` accepts them, so that an existing
//! `openclaw.json` loads. Source: upstream's configuration reference, 2026-08.

/// Sections of later versions of this gateway.
const LATER: &[&str] = &["channels", "mcp", "diagnostics"];

/// Sections that this gateway has no use for.
const SECTIONS: &[&str] = &[
    "bindings",
    "auth",
    "tools",
    "skills",
    "plugins",
    "hooks",
    "cron",
    "commands",
    "env",
    "secrets",
    "broadcast",
    "accessGroups",
    "ui",
    "browser",
    "discovery",
    "update",
    "identity",
    "web",
    "talk",
    "memory",
    "acp",
    "wizard",
    "meta",
    "canvasHost",
    "audio",
    "media",
    "nodeHost",
];

/// Keys inside of sections that both know; `*` stands for one key of any name.
const KEYS: &[(&str, &[&str])] = &[
    (
        "gateway",
        &[
            "mode",
            "customBindHost",
            "tls",
            "reload",
            "remote",
            "controlUi",
            "tailscale",
            "nodes",
            "tools",
            "push",
            "channelHealthCheckMinutes",
            "allowRealIpFallback",
        ],
    ),
    ("gateway.auth", &["mode", "password", "rateLimit", "allowTailscale", "trustedProxy"]),
    ("gateway.http", &["securityHeaders"]),
    ("gateway.http.endpoints", &["responses", "embeddings"]),
    ("gateway.http.endpoints.chatCompletions", &["maxBodyBytes", "maxImageParts", "images"]),
    ("models", &["mode", "pricing", "bedrockDiscovery"]),
    ("models.providers.*", &["models", "auth", "authHeader", "request", "params"]),
    ("agents", &["list"]),
    ("agents.defaults", AGENT),
    ("agents.entries.*", AGENT),
    (
        "session",
        &[
            "dmScope",
            "groupScope",
            "identityLinks",
            "scope",
            "mainKey",
            "store",
            "reset",
            "resetByType",
            "resetByChannel",
            "resetTriggers",
            "idleMinutes",
            "maintenance",
            "sendPolicy",
            "typingMode",
            "typingIntervalSeconds",
            "agentToAgent",
            "threadBindings",
            "parentForkMaxTokens",
            "writeLock",
        ],
    ),
    (
        "messages",
        &[
            "inbound",
            "groupChat",
            "responsePrefix",
            "ackReaction",
            "ackReactionScope",
            "removeAckAfterReply",
            "statusReactions",
            "tts",
            "visibleReplies",
            "messagePrefix",
        ],
    ),
    ("messages.queue", &["mode", "debounceMs", "drop", "byChannel", "debounceMsByChannel"]),
    ("logging", &["file", "consoleLevel", "consoleStyle", "redactPatterns", "redactSensitive", "maxFileBytes"]),
];

const AGENT: &[&str] = &[
    "id",
    "name",
    "default",
    "workspace",
    "agentDir",
    "identity",
    "groupChat",
    "tools",
    "skills",
    "repoRoot",
    "skipBootstrap",
    "bootstrapMaxChars",
    "userTimezone",
    "timeFormat",
    "imageModel",
    "imageGenerationModel",
    "pdfModel",
    "models",
    "thinkingDefault",
    "verboseDefault",
    "reasoningDefault",
    "elevatedDefault",
    "timeoutSeconds",
    "mediaMaxMb",
    "contextTokens",
    "maxConcurrent",
    "compaction",
    "contextPruning",
    "heartbeat",
    "sandbox",
    "subagents",
    "memorySearch",
    "typingMode",
    "typingIntervalSeconds",
    "blockStreamingDefault",
    "blockStreamingBreak",
    "blockStreamingChunk",
    "blockStreamingCoalesce",
    "humanDelay",
    "envelopeTimezone",
    "cliBackends",
    "params",
    "runtime",
    "fastModeDefault",
];

/// Whose a key is that no type of this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Upstream's, and ours in a later version.
    Later,
    /// Upstream's alone.
    Upstream,
    Nobody,
}

pub(crate) fn whose(path: &[String]) -> Whose {
    let [section @ .., key] = path else { return Whose::Nobody };
    if section.is_empty() {
        return match key.as_str() {
            key if LATER.contains(&key) => Whose::Later,
            key if SECTIONS.contains(&key) => Whose::Upstream,
            _ => Whose::Nobody,
        };
    }
    let here = |pattern: &str| {
        let parts: Vec<&str> = pattern.split('.').collect();
        parts.len() == section.len() && parts.iter().zip(section).all(|(part, name)| *part == "*" || part == name)
    };
    match KEYS.iter().any(|(pattern, keys)| here(pattern) && keys.contains(&key.as_str())) {
        true => Whose::Upstream,
        false => Whose::Nobody,
    }
}
