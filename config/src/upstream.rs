//! Keys and words that upstream OpenClaw knows and this gateway does not. `--lenient-config` accepts them, so that an existing
//! `openclaw.json` loads. Source: upstream's configuration reference, 2026-08.

/// Sections of later versions of this gateway, by path.
const LATER: &[&str] = &["mcp", "channels.slack", "channels.whatsapp"];

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
            "identityLinks",
            "scope",
            "mainKey",
            "store",
            "reset",
            "resetByType",
            "resetByChannel",
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
    ("channels", CHANNELS),
    ("channels.telegram", TELEGRAM),
    ("channels.telegram.accounts.*", TELEGRAM),
    ("channels.telegram.groups.*", GROUP),
    ("channels.telegram.accounts.*.groups.*", GROUP),
    ("channels.telegram.streaming", STREAMING),
    ("channels.telegram.accounts.*.streaming", STREAMING),
    ("channels.discord", DISCORD),
    ("channels.discord.accounts.*", DISCORD),
    ("channels.discord.streaming", STREAMING),
    ("channels.discord.accounts.*.streaming", STREAMING),
    ("messages.queue", &["mode", "debounceMs", "drop", "byChannel", "debounceMsByChannel"]),
    ("diagnostics", &["enabled", "flags", "cacheTrace", "stuckSessionWarnMs"]),
    ("diagnostics.otel", &["protocol", "traces", "metrics", "logs", "flushIntervalMs", "captureContent"]),
    ("logging", &["file", "consoleLevel", "consoleStyle", "redactPatterns", "redactSensitive", "maxFileBytes"]),
];

/// Words in the place of one that both know.
const WORDS: &[(&str, &[&str])] = &[
    ("channels.*.streaming", PREVIEWS),
    ("channels.*.streaming.mode", PREVIEWS),
    ("channels.*.accounts.*.streaming", PREVIEWS),
    ("channels.*.accounts.*.streaming.mode", PREVIEWS),
];

const PREVIEWS: &[&str] = &["block", "progress"];

const CHANNELS: &[&str] = &[
    "defaults",
    "modelByChannel",
    "signal",
    "imessage",
    "bluebubbles",
    "msteams",
    "googlechat",
    "mattermost",
    "matrix",
    "feishu",
    "line",
    "irc",
    "nostr",
    "twitch",
    "sms",
    "qqbot",
    "zalo",
    "zalouser",
    "nextcloud-talk",
    "synology-chat",
    "tlon",
    "reef",
    "voice-call",
];

const STREAMING: &[&str] = &["chunkMode", "block", "preview", "progress", "nativeTransport"];

// These three lists are general knowledge of upstream and were not checked against its reference. A name too many costs
// little: under --lenient-config it is warned of, otherwise it is refused like any other.
const TELEGRAM: &[&str] = &[
    "name",
    "capabilities",
    "commands",
    "customCommands",
    "configWrites",
    "defaultAccount",
    "defaultTo",
    "tokenFile",
    "direct",
    "dms",
    "historyLimit",
    "dmHistoryLimit",
    "contextVisibility",
    "mentionPatterns",
    "replyToMode",
    "textChunkLimit",
    "chunkMode",
    "streamMode",
    "draftChunk",
    "blockStreaming",
    "blockStreamingCoalesce",
    "markdown",
    "linkPreview",
    "responsePrefix",
    "ackReaction",
    "reactionNotifications",
    "reactionLevel",
    "mediaMaxMb",
    "mediaGroupFlushMs",
    "trustedLocalFileRoots",
    "timeoutSeconds",
    "pollingStallThresholdMs",
    "retry",
    "network",
    "proxy",
    "webhookPath",
    "webhookHost",
    "webhookPort",
    "webhookCertPath",
    "actions",
    "threadBindings",
    "autoTopicLabel",
    "execApprovals",
    "heartbeat",
    "healthMonitor",
    "errorPolicy",
    "errorCooldownMs",
    "silentErrorReplies",
];

// What lets fewer people write into a group is no longer upstream's alone, since ignoring it would let more of them. Of topics all
// is ignored: what holds for their group holds there.
const GROUP: &[&str] = &[
    "skills",
    "systemPrompt",
    "topics",
    "tools",
    "toolsBySender",
    "ingest",
    "disableAudioPreflight",
    "errorPolicy",
    "errorCooldownMs",
];

const DISCORD: &[&str] = &[
    "name",
    "capabilities",
    "commands",
    "configWrites",
    "defaultAccount",
    "defaultTo",
    "applicationId",
    "guilds",
    "dm",
    "dms",
    "allowBots",
    "dangerouslyAllowNameMatching",
    "mentionAliases",
    "historyLimit",
    "dmHistoryLimit",
    "contextVisibility",
    "mentionPatterns",
    "replyToMode",
    "thread",
    "threadBindings",
    "textChunkLimit",
    "chunkMode",
    "maxLinesPerMessage",
    "streamMode",
    "draftChunk",
    "blockStreaming",
    "blockStreamingCoalesce",
    "markdown",
    "suppressEmbeds",
    "responsePrefix",
    "ackReaction",
    "ackReactionScope",
    "reactionNotifications",
    "mediaMaxMb",
    "retry",
    "proxy",
    "intents",
    "gatewayInfoTimeoutMs",
    "gatewayReadyTimeoutMs",
    "gatewayRuntimeReadyTimeoutMs",
    "eventQueue",
    "inboundWorker",
    "actions",
    "slashCommand",
    "agentComponents",
    "ui",
    "voice",
    "pluralkit",
    "status",
    "activity",
    "activityType",
    "activityUrl",
    "autoPresence",
    "execApprovals",
    "heartbeat",
    "healthMonitor",
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

/// Whose a key or word is that no type of this version knows.
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
    if LATER.iter().any(|later| matches(later, path)) {
        return Whose::Later;
    }
    let known = match section {
        [] => SECTIONS.contains(&key.as_str()),
        section => contains(KEYS, section, key),
    };
    if known { Whose::Upstream } else { Whose::Nobody }
}

/// Whose `word` is at `path`, where the types know others.
pub(crate) fn whose_word(path: &[String], word: &str) -> Whose {
    if contains(WORDS, path, word) { Whose::Upstream } else { Whose::Nobody }
}

fn contains(table: &[(&str, &[&str])], path: &[String], name: &str) -> bool {
    table.iter().any(|(pattern, names)| matches(pattern, path) && names.contains(&name))
}

fn matches(pattern: &str, path: &[String]) -> bool {
    let parts: Vec<&str> = pattern.split('.').collect();
    parts.len() == path.len() && parts.iter().zip(path).all(|(part, name)| *part == "*" || part == name)
}
