//! Bot accounts: what is refused, what an account takes from its channel, and what upstream's files come to.

use std::time::Duration;

use openclaw_config::channels::{DmPolicy, Group, GroupPolicy, TelegramMode, UnknownPolicy};
use openclaw_config::session::{DmScope, GroupScope};
use openclaw_config::{Config, Source, effective, schema};

use crate::refused::check;
use crate::written::Written;

fn config(text: &str) -> Config {
    Written::file(text).load().unwrap_or_else(|message| panic!("{message}")).config
}

/// Settings of a channel, in one line behind its name.
fn section(channel: &str, settings: &str) -> Written {
    Written::file(format!("{{ channels: {{ {channel}: {{ {settings} }} }} }}"))
}

fn refused(channel: &str, settings: &str, expected: &[&str]) {
    check(&section(channel, &without_default(settings)), expected);
}

/// With another account that does not run, so that no token is missed where none is given.
fn without_default(settings: &str) -> String {
    if settings.contains("accounts") {
        settings.to_owned()
    } else {
        format!("{settings}, accounts: {{ off: {{ enabled: false }} }}")
    }
}

fn warnings(written: &Written) -> Vec<String> {
    let loaded = written.load().unwrap_or_else(|message| panic!("{message}"));
    loaded.warnings.iter().map(|warning| format!("{}: {}", warning.key, warning.message)).collect()
}

#[test]
fn telegram_settings_that_cannot_be_are_refused() {
    let cases: &[(&str, &[&str])] = &[
        (r#"botToken: """#, &["openclaw.json:1:37: channels.telegram.botToken: must not be empty"]),
        (
            r#"botToken: "hunter2""#,
            &[
                "openclaw.json:1:37: channels.telegram.botToken: not a token as @BotFather gives it: <digits>:<letters, digits, '_' and '-'>",
            ],
        ),
        (
            r#"botToken: "hunter:2""#,
            &[
                "openclaw.json:1:37: channels.telegram.botToken: not a token as @BotFather gives it: <digits>:<letters, digits, '_' and '-'>",
            ],
        ),
        (
            r#"botToken: "1:hunter 2""#,
            &[
                "openclaw.json:1:37: channels.telegram.botToken: not a token as @BotFather gives it: <digits>:<letters, digits, '_' and '-'>",
            ],
        ),
        ("botToken: 5", &["openclaw.json:1:37: channels.telegram.botToken: expected a text, found an integer"]),
        (
            r#"apiRoot: "api.telegram.org""#,
            &[
                r#"openclaw.json:1:36: channels.telegram.apiRoot: not a URL such as "https://api.telegram.org": it does not begin with https:// or http://"#,
            ],
        ),
        (
            r#"apiRoot: """#,
            &[
                r#"openclaw.json:1:36: channels.telegram.apiRoot: not a URL such as "https://api.telegram.org": it does not begin with https:// or http://"#,
            ],
        ),
        (
            r#"apiRoot: "http://bots.example""#,
            &[
                "openclaw.json:1:36: channels.telegram.apiRoot: must begin with https://, unless it is on this machine: the token goes with every call",
            ],
        ),
        (
            r#"apiRoot: "https://api.telegram.org/bot1:hunter2""#,
            &[
                r#"openclaw.json:1:36: channels.telegram.apiRoot: goes on too far; what is meant is the base, such as "https://api.telegram.org""#,
            ],
        ),
        (
            r#"apiRoot: "https://ann:hunter2@h""#,
            &[
                r#"openclaw.json:1:36: channels.telegram.apiRoot: not a URL such as "https://api.telegram.org": it contains a user or a password"#,
            ],
        ),
        (
            r#"apiRoot: "https://h/?a=hunter2""#,
            &[
                r#"openclaw.json:1:36: channels.telegram.apiRoot: not a URL such as "https://api.telegram.org": it contains a query, a fragment, white space or a backslash"#,
            ],
        ),
        (r#"mode: "push""#, &[r#"openclaw.json:1:33: channels.telegram.mode: "push" is none of "polling", "webhook""#]),
        (
            r#"botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", mode: "webhook""#,
            &[
                "openclaw.json:1:25: channels.telegram.webhookSecret: needed for a webhook: without it anybody could speak for Telegram (`openssl rand -hex 32`)",
                r#"openclaw.json:1:84: channels.telegram.mode: "webhook" needs webhookUrl"#,
            ],
        ),
        (
            r#"botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", webhookUrl: "https://bot.example/t""#,
            &[
                "openclaw.json:1:25: channels.telegram.webhookSecret: needed for a webhook: without it anybody could speak for Telegram (`openssl rand -hex 32`)",
            ],
        ),
        (
            r#"botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", accounts: { ops: { botToken: "2:BBbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", mode: "webhook" } }"#,
            &[
                "openclaw.json:1:95: channels.telegram.accounts.ops.webhookSecret: needed for a webhook: without it anybody could speak for Telegram (`openssl rand -hex 32`)",
                r#"openclaw.json:1:154: channels.telegram.accounts.ops.mode: "webhook" needs webhookUrl"#,
            ],
        ),
        (r#"webhookSecret: """#, &["openclaw.json:1:42: channels.telegram.webhookSecret: must not be empty"]),
        (
            r#"webhookSecret: "hunter 2""#,
            &["openclaw.json:1:42: channels.telegram.webhookSecret: must have 1 to 256 letters, digits, '_' and '-'"],
        ),
        (
            r#"webhookUrl: "http://bot.example/t""#,
            &[
                "openclaw.json:1:39: channels.telegram.webhookUrl: must begin with https://, unless it is on this machine",
            ],
        ),
        (
            r#"webhookUrl: "bot.example""#,
            &[
                r#"openclaw.json:1:39: channels.telegram.webhookUrl: not a URL such as "https://bot.example/api/v1/webhooks/telegram/default": it does not begin with https:// or http://"#,
            ],
        ),
        (
            r#"dmPolicy: "everyone""#,
            &[
                r#"openclaw.json:1:37: channels.telegram.dmPolicy: "everyone" is none of "pairing", "allowlist", "open", "disabled""#,
            ],
        ),
        (
            r#"dmPolicy: "allow-list""#,
            &[
                r#"openclaw.json:1:37: channels.telegram.dmPolicy: "allow-list" is none of "pairing", "allowlist", "open", "disabled"; did you mean "allowlist"?"#,
            ],
        ),
        (
            "dmPolicy: true",
            &[
                r#"openclaw.json:1:37: channels.telegram.dmPolicy: expected one of "pairing", "allowlist", "open", "disabled", found true or false"#,
            ],
        ),
        (
            r#"botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", dmPolicy: "open""#,
            &[
                r#"openclaw.json:1:88: channels.telegram.dmPolicy: "open" lets everybody write and needs "*" in allowFrom as well"#,
            ],
        ),
        (
            r#"botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", dmPolicy: "open", allowFrom: [5]"#,
            &[
                r#"openclaw.json:1:88: channels.telegram.dmPolicy: "open" lets everybody write and needs "*" in allowFrom as well"#,
            ],
        ),
        (
            r#"dmPolicy: "open", accounts: { a: { botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" }, b: { botToken: "2:BBbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb" } }"#,
            &[
                r#"openclaw.json:1:37: channels.telegram.dmPolicy: "open" lets everybody write and needs "*" in allowFrom as well"#,
            ],
        ),
        (
            r#"allowFrom: ["*"], accounts: { a: { botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", dmPolicy: "open", allowFrom: [] } }"#,
            &[
                r#"openclaw.json:1:123: channels.telegram.accounts.a.dmPolicy: "open" lets everybody write and needs "*" in allowFrom as well"#,
            ],
        ),
        (
            r#"allowFrom: ["@ann"]"#,
            &[
                r#"openclaw.json:1:39: channels.telegram.allowFrom[0]: "@ann" is not a numeric id or "*"; only numeric ids can be listed, names can change hands"#,
            ],
        ),
        (
            r#"allowFrom: ["ann", 5, "tg:@bob", -1001, 1.5, true, "discord:5", "", "99999999999999999999"]"#,
            &[
                r#"openclaw.json:1:39: channels.telegram.allowFrom[0]: "ann" is not a numeric id or "*"; only numeric ids can be listed, names can change hands"#,
                r#"openclaw.json:1:49: channels.telegram.allowFrom[2]: "tg:@bob" is not a numeric id or "*"; only numeric ids can be listed, names can change hands"#,
                r#"openclaw.json:1:60: channels.telegram.allowFrom[3]: "-1001" is the id of a group; only ids of people can be listed"#,
                r#"openclaw.json:1:67: channels.telegram.allowFrom[4]: expected a numeric id or "*", found a fraction or too large a number"#,
                r#"openclaw.json:1:72: channels.telegram.allowFrom[5]: expected a numeric id or "*", found true or false"#,
                r#"openclaw.json:1:78: channels.telegram.allowFrom[6]: "discord:5" is not a numeric id or "*"; only numeric ids can be listed, names can change hands"#,
                r#"openclaw.json:1:91: channels.telegram.allowFrom[7]: "" is not a numeric id or "*"; only numeric ids can be listed, names can change hands"#,
                r#"openclaw.json:1:95: channels.telegram.allowFrom[8]: "99999999999999999999" is not a numeric id or "*"; only numeric ids can be listed, names can change hands"#,
            ],
        ),
        (
            r#"allowFrom: "5""#,
            &["openclaw.json:1:38: channels.telegram.allowFrom: expected a list of numeric ids, found a text"],
        ),
        (
            "allowFrom: 5",
            &["openclaw.json:1:38: channels.telegram.allowFrom: expected a list of numeric ids, found an integer"],
        ),
        (
            "allowFrom: { ann: 5 }",
            &["openclaw.json:1:38: channels.telegram.allowFrom: expected a list of numeric ids, found an object"],
        ),
        (
            r#"groupPolicy: "pairing""#,
            &[
                r#"openclaw.json:1:40: channels.telegram.groupPolicy: "pairing" is none of "allowlist", "open", "disabled""#,
            ],
        ),
        (
            r#"groupAllowFrom: ["*", "-1001"]"#,
            &[
                r#"openclaw.json:1:49: channels.telegram.groupAllowFrom[1]: "-1001" is the id of a group; only ids of people can be listed"#,
            ],
        ),
        (
            r#"requireMention: "yes""#,
            &["openclaw.json:1:43: channels.telegram.requireMention: expected true or false, found a text"],
        ),
        ("enabled: 1", &["openclaw.json:1:36: channels.telegram.enabled: expected true or false, found an integer"]),
        (
            r#"streaming: "on""#,
            &[r#"openclaw.json:1:38: channels.telegram.streaming: "on" is none of "off", "partial""#],
        ),
        (
            r#"streaming: "progress""#,
            &[
                r#"openclaw.json:1:38: channels.telegram.streaming: only upstream OpenClaw knows "progress", here are "off", "partial"; --lenient-config ignores such settings"#,
            ],
        ),
        (
            r#"streaming: { mode: "block" }"#,
            &[
                r#"openclaw.json:1:46: channels.telegram.streaming.mode: only upstream OpenClaw knows "block", here are "off", "partial"; --lenient-config ignores such settings"#,
            ],
        ),
        (
            r#"streaming: { mode: "parital" }"#,
            &[
                r#"openclaw.json:1:46: channels.telegram.streaming.mode: "parital" is none of "off", "partial"; did you mean "partial"?"#,
            ],
        ),
        (
            r#"streaming: { mod: "off" }"#,
            &["openclaw.json:1:40: channels.telegram.streaming.mod: unknown key; did you mean `mode`?"],
        ),
        (
            r#"streaming: { chunkMode: "newline" }"#,
            &[
                "openclaw.json:1:40: channels.telegram.streaming.chunkMode: only upstream OpenClaw knows this key; --lenient-config ignores such keys",
            ],
        ),
        (
            "streaming: 5",
            &[
                r#"openclaw.json:1:38: channels.telegram.streaming: expected "off", "partial" or { mode }, found an integer"#,
            ],
        ),
        (
            r#"unknown: "retry""#,
            &[r#"openclaw.json:1:36: channels.telegram.unknown: "retry" is none of "resend", "hold""#],
        ),
        (
            "maxAgeMs: 999",
            &["openclaw.json:1:37: channels.telegram.maxAgeMs: 999 ms is not between 1000 and 604800000 ms"],
        ),
        (
            "maxAgeMs: 604800001",
            &["openclaw.json:1:37: channels.telegram.maxAgeMs: 604800001 ms is not between 1000 and 604800000 ms"],
        ),
        (
            r#"maxAgeMs: "1h""#,
            &["openclaw.json:1:37: channels.telegram.maxAgeMs: expected an integer from 0, found a text"],
        ),
        (
            r#"agentId: "nobody""#,
            &["openclaw.json:1:36: channels.telegram.agentId: there is no agent `nobody`; there are `main`"],
        ),
        (
            r#"agentId: "Main""#,
            &[
                "openclaw.json:1:36: channels.telegram.agentId: agent id has the character 'M' at byte 0; allowed are a-z, 0-9, '_' and '-', the first a letter or digit",
            ],
        ),
        (
            r#"accounts: { Ops: { botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } }"#,
            &[
                "openclaw.json:1:44: channels.telegram.accounts.Ops: an account's name has 1 to 64 characters of a-z, 0-9, '_' and '-'",
            ],
        ),
        (
            r#"accounts: { "a:b": { enabled: false }, "": { enabled: false } }"#,
            &[
                r#"openclaw.json:1:46: channels.telegram.accounts."a:b": an account's name has 1 to 64 characters of a-z, 0-9, '_' and '-'"#,
                r#"openclaw.json:1:70: channels.telegram.accounts."": an account's name has 1 to 64 characters of a-z, 0-9, '_' and '-'"#,
            ],
        ),
        ("accounts: { ops: {} }", &["openclaw.json:1:44: channels.telegram.accounts.ops: `botToken` is missing"]),
        (
            r#"accounts: { ops: { enabled: false, maxAgeMs: 1, agentId: "x", apiRoot: "x", webhookSecret: "" } }"#,
            &[
                "openclaw.json:1:72: channels.telegram.accounts.ops.maxAgeMs: 1 ms is not between 1000 and 604800000 ms",
                "openclaw.json:1:84: channels.telegram.accounts.ops.agentId: there is no agent `x`; there are `main`",
                r#"openclaw.json:1:98: channels.telegram.accounts.ops.apiRoot: not a URL such as "https://api.telegram.org": it does not begin with https:// or http://"#,
                "openclaw.json:1:118: channels.telegram.accounts.ops.webhookSecret: must not be empty",
            ],
        ),
        (
            r#"botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", accounts: { default: {} }"#,
            &[
                "openclaw.json:1:99: channels.telegram.accounts.default: channels.telegram.botToken is the token of this account already; keep one of them",
            ],
        ),
        (
            r#"botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", accounts: { default: { botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } }"#,
            &[
                "openclaw.json:1:99: channels.telegram.accounts.default: channels.telegram.botToken is the token of this account already; keep one of them",
            ],
        ),
        (
            r#"botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", accounts: { ops: { botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } }"#,
            &[
                "openclaw.json:1:107: channels.telegram.accounts.ops.botToken: accounts `default` and `ops` have the same token, which only one connection can use",
            ],
        ),
        (
            r#"accounts: { a: { botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" }, b: { botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } }"#,
            &[
                "openclaw.json:1:112: channels.telegram.accounts.b.botToken: accounts `a` and `b` have the same token, which only one connection can use",
            ],
        ),
        (
            r#"webhookUrl: "https://h/t", webhookSecret: "s", accounts: { a: { botToken: "1:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" }, b: { botToken: "2:BBbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb" } }"#,
            &[
                "openclaw.json:1:39: channels.telegram.webhookUrl: accounts `a` and `b` would share it; each needs its own",
            ],
        ),
        (
            r#"token: "x""#,
            &[
                "openclaw.json:1:27: channels.telegram.token: unknown key; known here are `enabled`, `botToken`, `apiRoot`, `mode`, `webhookUrl`, `webhookSecret`, `dmPolicy`, `allowFrom`, `groupPolicy`, `groupAllowFrom`, `requireMention`, `groups`, `streaming`, `unknown`, `maxAgeMs`, `agentId`, `accounts`",
            ],
        ),
        (r#"botTokn: "x""#, &["openclaw.json:1:27: channels.telegram.botTokn: unknown key; did you mean `botToken`?"]),
        (
            "historyLimit: 50",
            &[
                "openclaw.json:1:27: channels.telegram.historyLimit: only upstream OpenClaw knows this key; --lenient-config ignores such keys",
            ],
        ),
        (
            r#"groups: {}, webhookPath: "/t""#,
            &[
                "openclaw.json:1:39: channels.telegram.webhookPath: only upstream OpenClaw knows this key; --lenient-config ignores such keys",
            ],
        ),
        (
            r#"accounts: { a: { historyLimit: 5, botTokn: "x", accounts: {} } }"#,
            &[
                "openclaw.json:1:44: channels.telegram.accounts.a.historyLimit: only upstream OpenClaw knows this key; --lenient-config ignores such keys",
                "openclaw.json:1:61: channels.telegram.accounts.a.botTokn: unknown key; did you mean `botToken`?",
                "openclaw.json:1:75: channels.telegram.accounts.a.accounts: unknown key; known here are `enabled`, `botToken`, `apiRoot`, `mode`, `webhookUrl`, `webhookSecret`, `dmPolicy`, `allowFrom`, `groupPolicy`, `groupAllowFrom`, `requireMention`, `groups`, `streaming`, `unknown`, `maxAgeMs`, `agentId`",
            ],
        ),
    ];
    for (written, expected) in cases {
        refused("telegram", written, expected);
    }
}

#[test]
fn groups_that_cannot_be_are_refused() {
    let cases: &[(&str, &[&str])] = &[
        ("groups: []", &["openclaw.json:1:35: channels.telegram.groups: expected an object, found a list"]),
        (
            r#"groups: { "@ann": {}, "123": {}, "-0100": {}, "": {}, "*": {}, "-1001234567890": {} }"#,
            &[
                r#"openclaw.json:1:45: channels.telegram.groups."@ann": neither the id of a group, such as "-1001234567890", nor "*"; names can change hands"#,
                r#"openclaw.json:1:56: channels.telegram.groups.123: neither the id of a group, such as "-1001234567890", nor "*"; names can change hands"#,
                r#"openclaw.json:1:69: channels.telegram.groups.-0100: neither the id of a group, such as "-1001234567890", nor "*"; names can change hands"#,
                r#"openclaw.json:1:77: channels.telegram.groups."": neither the id of a group, such as "-1001234567890", nor "*"; names can change hands"#,
            ],
        ),
        (
            r#"groups: { "*": { requireMentions: true }, "-1": { requireMention: "no", allowFrom: ["discord:5"] } }"#,
            &[
                r#"openclaw.json:1:44: channels.telegram.groups."*".requireMentions: unknown key; did you mean `requireMention`?"#,
                "openclaw.json:1:93: channels.telegram.groups.-1.requireMention: expected true or false, found a text",
                r#"openclaw.json:1:111: channels.telegram.groups.-1.allowFrom[0]: "discord:5" is not a numeric id or "*"; only numeric ids can be listed, names can change hands"#,
            ],
        ),
        (
            r#"groups: { "*": { mention: true, topics: {}, groupPolicy: "pairing" } }"#,
            &[
                r#"openclaw.json:1:44: channels.telegram.groups."*".mention: unknown key; known here are `enabled`, `requireMention`, `groupPolicy`, `allowFrom`"#,
                r#"openclaw.json:1:59: channels.telegram.groups."*".topics: only upstream OpenClaw knows this key; --lenient-config ignores such keys"#,
                r#"openclaw.json:1:84: channels.telegram.groups."*".groupPolicy: "pairing" is none of "allowlist", "open", "disabled""#,
            ],
        ),
        (
            r#"accounts: { a: { enabled: false, groups: { ops: {} } } }"#,
            &[
                r#"openclaw.json:1:75: channels.telegram.accounts.a.groups.ops: neither the id of a group, such as "-1001234567890", nor "*"; names can change hands"#,
            ],
        ),
    ];
    for (written, expected) in cases {
        refused("telegram", written, expected);
    }
    let cases: &[(&str, &[&str])] = &[
        (
            r#"groups: { general: {}, "-5": {}, "200000000000000001": {}, "*": { allowFrom: ["discord:5"] } }"#,
            &[
                r#"openclaw.json:1:45: channels.discord.groups.general: neither the id of a channel, such as "200000000000000001", nor "*"; names can change hands"#,
                r#"openclaw.json:1:55: channels.discord.groups.-5: neither the id of a channel, such as "200000000000000001", nor "*"; names can change hands"#,
            ],
        ),
        (
            r#"groups: { "5": { topics: {} } }"#,
            &[
                "openclaw.json:1:43: channels.discord.groups.5.topics: unknown key; known here are `enabled`, `requireMention`, `groupPolicy`, `allowFrom`",
            ],
        ),
    ];
    for (written, expected) in cases {
        refused("discord", written, expected);
    }
}

#[test]
fn discord_settings_that_cannot_be_are_refused() {
    let cases: &[(&str, &[&str])] = &[
        (r#"token: """#, &["openclaw.json:1:33: channels.discord.token: must not be empty"]),
        (r#"token: "Bot hunter2""#, &[r#"openclaw.json:1:33: channels.discord.token: must be without "Bot ""#]),
        (
            r#"token: "hunter 2""#,
            &["openclaw.json:1:33: channels.discord.token: must consist of visible ASCII characters"],
        ),
        (
            r#"apiRoot: "https://discord.com/api/v10""#,
            &[
                r#"openclaw.json:1:35: channels.discord.apiRoot: goes on too far; what is meant is the base, such as "https://discord.com""#,
            ],
        ),
        (
            r#"apiRoot: "https://discord.com/v10/""#,
            &[
                r#"openclaw.json:1:35: channels.discord.apiRoot: goes on too far; what is meant is the base, such as "https://discord.com""#,
            ],
        ),
        (
            r#"apiRoot: "http://discord.example""#,
            &[
                "openclaw.json:1:35: channels.discord.apiRoot: must begin with https://, unless it is on this machine: the token goes with every call",
            ],
        ),
        (
            r#"gatewayUrl: "https://gateway.discord.gg""#,
            &[
                r#"openclaw.json:1:38: channels.discord.gatewayUrl: not a URL such as "wss://gateway.discord.gg": it does not begin with wss:// or ws://"#,
            ],
        ),
        (
            r#"gatewayUrl: "ws://gateway.example""#,
            &["openclaw.json:1:38: channels.discord.gatewayUrl: must begin with wss://, unless it is on this machine"],
        ),
        (
            r#"gatewayUrl: "wss://gateway.discord.gg/?v=10""#,
            &[
                r#"openclaw.json:1:38: channels.discord.gatewayUrl: not a URL such as "wss://gateway.discord.gg": it contains a query, a fragment, white space or a backslash"#,
            ],
        ),
        (
            r#"botToken: "x""#,
            &[
                "openclaw.json:1:26: channels.discord.botToken: unknown key; known here are `enabled`, `token`, `apiRoot`, `gatewayUrl`, `dmPolicy`, `allowFrom`, `groupPolicy`, `groupAllowFrom`, `requireMention`, `groups`, `streaming`, `unknown`, `maxAgeMs`, `agentId`, `accounts`",
            ],
        ),
        (
            r#"allowFrom: ["ann#1234", "tg:5"]"#,
            &[
                r#"openclaw.json:1:38: channels.discord.allowFrom[0]: "ann#1234" is not a numeric id or "*"; only numeric ids can be listed, names can change hands"#,
                r#"openclaw.json:1:50: channels.discord.allowFrom[1]: "tg:5" is not a numeric id or "*"; only numeric ids can be listed, names can change hands"#,
            ],
        ),
        (
            "guilds: {}",
            &[
                "openclaw.json:1:26: channels.discord.guilds: only upstream OpenClaw knows this key; --lenient-config ignores such keys",
            ],
        ),
        (
            r#"streaming: "block""#,
            &[
                r#"openclaw.json:1:37: channels.discord.streaming: only upstream OpenClaw knows "block", here are "off", "partial"; --lenient-config ignores such settings"#,
            ],
        ),
        (
            r#"accounts: { a: {}, b: { token: "x" } }"#,
            &["openclaw.json:1:41: channels.discord.accounts.a: `token` is missing"],
        ),
        (
            r#"token: "x", accounts: { default: { token: "y" } }"#,
            &[
                "openclaw.json:1:59: channels.discord.accounts.default: channels.discord.token is the token of this account already; keep one of them",
            ],
        ),
        (
            r#"token: "x", accounts: { a: { token: "x" } }"#,
            &[
                "openclaw.json:1:62: channels.discord.accounts.a.token: accounts `default` and `a` have the same token, which only one connection can use",
            ],
        ),
        (
            r#"token: "x", groupPolicy: "open", dmPolicy: "open", allowFrom: ["discord:5"]"#,
            &[
                r#"openclaw.json:1:69: channels.discord.dmPolicy: "open" lets everybody write and needs "*" in allowFrom as well"#,
            ],
        ),
        (
            r#"maxAgeMs: 0, mode: "webhook""#,
            &[
                "openclaw.json:1:39: channels.discord.mode: unknown key; known here are `enabled`, `token`, `apiRoot`, `gatewayUrl`, `dmPolicy`, `allowFrom`, `groupPolicy`, `groupAllowFrom`, `requireMention`, `groups`, `streaming`, `unknown`, `maxAgeMs`, `agentId`, `accounts`",
            ],
        ),
    ];
    for (written, expected) in cases {
        refused("discord", written, expected);
    }
}

#[test]
fn sections_that_cannot_be_are_refused() {
    let cases: &[(&str, &[&str])] = &[
        (
            "{ channels: { slak: {}, slack: {}, signal: {}, telegram: 5, discord: [] } }",
            &[
                "openclaw.json:1:15: channels.slak: unknown key; known here are `telegram`, `discord`",
                "openclaw.json:1:25: channels.slack: not supported by this version yet",
                "openclaw.json:1:36: channels.signal: only upstream OpenClaw knows this key; --lenient-config ignores such keys",
                "openclaw.json:1:58: channels.telegram: expected an object, found an integer",
                "openclaw.json:1:70: channels.discord: expected an object, found a list",
            ],
        ),
        ("{ channels: [] }", &["openclaw.json:1:13: channels: expected an object, found a list"]),
    ];
    for (written, expected) in cases {
        check(&Written::file(*written), expected);
    }
}

#[test]
fn sizes_are_bounded() {
    let telegram = |settings: &str| section("telegram", &without_default(settings)).load().err();
    let secret = |length: usize| telegram(&format!("webhookSecret: \"{}\"", "a".repeat(length)));
    assert_eq!(secret(256), None);
    let message =
        "openclaw.json:1:42: channels.telegram.webhookSecret: must have 1 to 256 letters, digits, '_' and '-'";
    assert_eq!(secret(257).as_deref(), Some(message));

    let account = |length: usize| {
        let message = telegram(&format!("accounts: {{ {}: {{ enabled: false }} }}", "a".repeat(length)));
        message.map(|message| message.rsplit_once(": ").unwrap().1.to_owned())
    };
    assert_eq!(account(64), None);
    let message = "an account's name has 1 to 64 characters of a-z, 0-9, '_' and '-'";
    assert_eq!(account(65).as_deref(), Some(message));
}

#[test]
fn an_account_takes_from_its_channel_what_it_does_not_say() {
    let accounts = config(
        r#"{ channels: { telegram: {
               botToken: "1:a", apiRoot: "https://bots.example/tg/", dmPolicy: "allowlist", allowFrom: [1], groupPolicy: "open",
               groupAllowFrom: [2], requireMention: false, streaming: "off", unknown: "hold", maxAgeMs: 5000, agentId: "a",
               webhookSecret: "s", mode: "polling",
               accounts: {
                 same: { botToken: "2:a" },
                 other: {
                   botToken: "3:a", apiRoot: "http://127.0.0.1:9100/", mode: "webhook", webhookUrl: "http://localhost/w",
                   webhookSecret: "t", dmPolicy: "open", allowFrom: ["*"], groupPolicy: "disabled", groupAllowFrom: [],
                   requireMention: true, streaming: true, unknown: "resend", maxAgeMs: 6000, agentId: "main",
                 },
                 // Runs not, and need not be complete.
                 off: { enabled: false, mode: "webhook" },
               },
             } }, agents: { entries: { a: {} } }, session: { dmScope: "per-peer" } }"#,
    )
    .channels
    .telegram_accounts();
    let [default, other, same] = accounts.as_slice() else { panic!("{accounts:?}") };
    assert_eq!((default.id.as_str(), default.bot_token.expose()), ("default", "1:a"));
    assert_eq!((same.id.as_str(), same.bot_token.expose()), ("same", "2:a"));
    for one in [default, same] {
        assert_eq!((one.api_root.as_str(), one.mode), ("https://bots.example/tg", TelegramMode::Polling));
        assert_eq!(one.webhook_secret.as_ref().unwrap().expose(), "s");
        let account = &one.account;
        assert_eq!((account.dm_policy, account.group_policy), (DmPolicy::Allowlist, GroupPolicy::Open));
        assert_eq!(
            (account.allow_from.as_slice(), account.group_allow_from.as_slice()),
            (["1".into()].as_slice(), ["2".into()].as_slice())
        );
        assert_eq!((account.require_mention, account.streaming, account.unknown), (false, false, UnknownPolicy::Hold));
        assert_eq!((account.max_age, account.agent_id.as_str()), (Duration::from_secs(5), "a"));
    }
    assert_eq!((other.id.as_str(), other.bot_token.expose()), ("other", "3:a"));
    assert_eq!((other.api_root.as_str(), other.mode), ("http://127.0.0.1:9100", TelegramMode::Webhook));
    assert_eq!(other.webhook_url.as_deref(), Some("http://localhost/w"));
    assert_eq!(other.webhook_secret.as_ref().unwrap().expose(), "t");
    let account = &other.account;
    assert_eq!((account.dm_policy, account.group_policy), (DmPolicy::Open, GroupPolicy::Disabled));
    assert_eq!((account.allow_from.as_slice(), account.group_allow_from.len()), (["*".into()].as_slice(), 0));
    assert_eq!((account.require_mention, account.streaming, account.unknown), (true, true, UnknownPolicy::Resend));
    assert_eq!((account.max_age, account.agent_id.as_str()), (Duration::from_secs(6), "main"));
}

#[test]
fn a_group_takes_from_all_groups_what_it_does_not_say() {
    let accounts = config(
        r#"{ channels: {
             telegram: {
               botToken: "1:a",
               groups: {
                 "*": { enabled: false, requireMention: true, allowFrom: ["tg:5"] },
                 "-1": { requireMention: false }, "-2": { groupPolicy: "open", allowFrom: [] },
               },
               accounts: { none: { botToken: "2:a", groups: {} }, own: { botToken: "3:a", groups: { "-3": {} } }, same: { botToken: "4:a" } },
             },
             discord: { token: "d", groups: { "200000000000000001": { requireMention: false, allowFrom: ["discord:6"] } } },
           } }"#,
    )
    .channels;
    let telegram = accounts.telegram_accounts();
    let [default, none, own, same] = telegram.as_slice() else { panic!("{telegram:?}") };
    let plain = Group { enabled: true, require_mention: None, group_policy: None, allow_from: None };
    let people = |ids: &[&str]| Some(ids.iter().map(|id| (*id).to_owned()).collect());
    assert_eq!(default.account.groups.len(), 3);
    let first = Group { require_mention: Some(false), allow_from: people(&["5"]), ..plain.clone() };
    assert_eq!(default.account.groups["-1"], first);
    let open = Some(GroupPolicy::Open);
    let second = Group { require_mention: Some(true), group_policy: open, allow_from: people(&[]), ..plain.clone() };
    assert_eq!(default.account.groups["-2"], second);
    let others = Group { enabled: false, require_mention: Some(true), allow_from: people(&["5"]), ..plain.clone() };
    assert_eq!(default.account.groups[Group::OTHERS], others);
    assert!(none.account.groups.is_empty());
    assert_eq!(own.account.groups, [("-3".to_owned(), plain.clone())].into());
    assert_eq!(same.account.groups, default.account.groups);
    let channel = Group { require_mention: Some(false), allow_from: people(&["6"]), ..plain };
    assert_eq!(accounts.discord_accounts()[0].account.groups, [("200000000000000001".to_owned(), channel)].into());
}

#[test]
fn discord_accounts_take_from_their_channel_too() {
    let accounts = config(
        r#"{ channels: { discord: {
               apiRoot: "http://127.0.0.1:9200", gatewayUrl: "ws://[::1]:9201", allowFrom: ["discord:1"], streaming: "partial",
               accounts: { b: { token: "b" }, default: { token: "d", gatewayUrl: "wss://g.example", streaming: false } },
             } } }"#,
    )
    .channels
    .discord_accounts();
    let [b, default] = accounts.as_slice() else { panic!("{accounts:?}") };
    assert_eq!((b.id.as_str(), b.token.expose(), b.gateway_url.as_deref()), ("b", "b", Some("ws://[::1]:9201")));
    assert_eq!((b.api_root.as_str(), b.account.streaming), ("http://127.0.0.1:9200", true));
    assert_eq!((default.id.as_str(), default.gateway_url.as_deref()), ("default", Some("wss://g.example")));
    assert_eq!((default.account.allow_from.as_slice(), default.account.streaming), (["1".into()].as_slice(), false));
}

#[test]
fn bots_run_when_they_have_a_token_and_are_not_switched_off() {
    let ids = |settings: &str| {
        let config = section("telegram", settings).load().unwrap_or_else(|message| panic!("{message}")).config;
        config.channels.telegram_accounts().into_iter().map(|account| account.id).collect::<Vec<_>>()
    };
    assert!(ids("enabled: false").is_empty());
    assert_eq!(ids(r#"botToken: "1:a""#), ["default"]);
    assert!(ids(r#"botToken: "1:a", enabled: false"#).is_empty());
    assert!(ids(r#"enabled: false, accounts: { a: { botToken: "1:a" }, b: {} }"#).is_empty());
    let accounts =
        r#"accounts: { z: { botToken: "1:a" }, a: { botToken: "2:a" }, off: { enabled: false, botToken: "1:a" } }"#;
    assert_eq!(ids(accounts), ["a", "z"]);
    assert_eq!(ids(&format!(r#"botToken: "3:a", {accounts}"#)), ["a", "default", "z"]);
    assert!(Config::default().channels.discord_accounts().is_empty());
}

#[test]
fn a_token_that_is_missing_is_an_error_that_says_where_it_may_come_from() {
    for settings in ["", "enabled: true", r#"streaming: "off""#, "accounts: {}"] {
        let expected = "openclaw.json:1:25: channels.telegram: `botToken` is missing: write it here, or set TELEGRAM_BOT_TOKEN in the environment";
        check(&section("telegram", settings), &[expected]);
        check(&section("telegram", settings).env("TELEGRAM_BOT_TOKEN", ""), &[expected]);
    }
    check(
        &section("discord", "accounts: { default: {}, a: {} }").env("TELEGRAM_BOT_TOKEN", "1:a"),
        &[
            "openclaw.json:1:47: channels.discord.accounts.default: `token` is missing: write it here, or set DISCORD_BOT_TOKEN in the environment",
            "openclaw.json:1:54: channels.discord.accounts.a: `token` is missing",
        ],
    );
}

#[test]
fn the_environment_gives_the_token_that_the_default_account_has_not() {
    let token = format!("1:{}", "e".repeat(35));
    let load = |channel: &str, settings: &str| {
        let written = section(channel, settings).env("TELEGRAM_BOT_TOKEN", &token).env("DISCORD_BOT_TOKEN", "from.env");
        written.load().unwrap_or_else(|message| panic!("{message}"))
    };
    let tokens = |channel: &str, settings: &str| {
        let channels = load(channel, settings).config.channels;
        let telegram = channels.telegram_accounts().into_iter().map(|one| (one.id, one.bot_token));
        let discord = channels.discord_accounts().into_iter().map(|one| (one.id, one.token));
        telegram.chain(discord).map(|(id, token)| format!("{id}={}", token.expose())).collect::<Vec<_>>()
    };
    let default = format!("default={token}");
    for settings in [
        "",
        "enabled: true",
        "allowFrom: [5], accounts: {}",
        "botToken: null",
        "accounts: { default: { dmPolicy: \"disabled\" } }",
    ] {
        assert_eq!(tokens("telegram", settings), [default.as_str()], "{settings}");
    }
    assert_eq!(tokens("discord", ""), ["default=from.env"]);
    assert_eq!(tokens("discord", r#"accounts: { a: { token: "a" }, default: {} }"#), ["a=a", "default=from.env"]);
    // What is written wins, and a bot that nobody asked for does not run.
    assert_eq!(tokens("telegram", r#"botToken: "2:w""#), ["default=2:w"]);
    assert_eq!(tokens("telegram", r#"accounts: { default: { botToken: "2:w" } }"#), ["default=2:w"]);
    assert_eq!(
        tokens("telegram", r#"accounts: { main: { botToken: "${TELEGRAM_BOT_TOKEN}" } }"#),
        [format!("main={token}")]
    );
    for off in ["enabled: false", r#"enabled: "${NO:-false}""#, "accounts: { default: { enabled: false } }"] {
        assert!(tokens("telegram", off).is_empty(), "{off}");
    }
    let nothing = Written::file("{ channels: {} }").env("TELEGRAM_BOT_TOKEN", "not a token").load().unwrap();
    assert!(nothing.config.channels.telegram_accounts().is_empty());

    let loaded = load("telegram", "");
    assert_eq!(loaded.sources["channels.telegram.botToken"], Source::Variable("TELEGRAM_BOT_TOKEN"));
    assert!(!format!("{loaded:?} {}", effective(&loaded.config)).contains(&token));
    check(
        &section("telegram", "").env("TELEGRAM_BOT_TOKEN", "hunter2"),
        &[
            "TELEGRAM_BOT_TOKEN: channels.telegram.botToken: not a token as @BotFather gives it: <digits>:<letters, digits, '_' and '-'>",
        ],
    );
}

#[test]
fn a_webhook_is_meant_when_its_url_is_given() {
    let mode = |settings: &str| {
        let settings = format!(r#"botToken: "1:a", webhookSecret: "s", {settings}"#);
        let config = section("telegram", &settings).load().unwrap_or_else(|message| panic!("{message}")).config;
        config.channels.telegram_accounts()[0].mode
    };
    assert_eq!(mode(""), TelegramMode::Polling);
    assert_eq!(mode(r#"webhookUrl: "https://h/t""#), TelegramMode::Webhook);
    assert_eq!(mode(r#"webhookUrl: "https://h/t", mode: "polling""#), TelegramMode::Polling);
}

#[test]
fn people_are_named_by_number_in_any_form_of_it() {
    let allowed = |channel: &str, list: &str| {
        let settings = format!("botToken: \"1:a\", allowFrom: {list}").replace(
            "botToken",
            match channel {
                "telegram" => "botToken",
                _ => "token",
            },
        );
        let config = section(channel, &settings).load().unwrap_or_else(|message| panic!("{message}")).config;
        let telegram = config.channels.telegram_accounts().into_iter().map(|one| one.account);
        telegram.chain(config.channels.discord_accounts().into_iter().map(|one| one.account)).next().unwrap().allow_from
    };
    assert_eq!(
        allowed("telegram", r#"[5, "6", " 7 ", "tg:8", "Telegram: 9", "007", "*", "tg:*"]"#),
        ["5", "6", "7", "8", "9", "7", "*", "*"]
    );
    // Beyond what a double holds exactly.
    assert_eq!(
        allowed("discord", r#"[1234567890123456789, "discord:18446744073709551615"]"#),
        ["1234567890123456789", "18446744073709551615"]
    );
}

#[test]
fn previews_are_written_in_upstreams_forms_too() {
    let shown = |channel: &str, settings: &str| {
        let written = section(
            channel,
            &format!("{settings} accounts: {{ a: {{ TOKEN: \"1:a\" }} }}")
                .replace("TOKEN", if channel == "telegram" { "botToken" } else { "token" }),
        );
        let channels = written.lenient().load().unwrap_or_else(|message| panic!("{message}")).config.channels;
        let telegram = channels.telegram_accounts().first().map(|one| one.account.streaming);
        telegram.or(channels.discord_accounts().first().map(|one| one.account.streaming)).unwrap()
    };
    for off in [r#""off""#, "false", r#"{ mode: "off" }"#, r#"{ mode: "off", chunkMode: "newline" }"#] {
        assert!(!shown("telegram", &format!("streaming: {off},")), "{off}");
    }
    for partial in [r#""partial""#, "true", r#"{ mode: "partial" }"#] {
        assert!(shown("discord", &format!("streaming: {partial},")), "{partial}");
    }
    // What upstream alone knows is ignored, so the default holds.
    for default in
        ["", "streaming: {},", r#"streaming: "progress","#, r#"streaming: { mode: "block" },"#, "streaming: null,"]
    {
        assert!(shown("telegram", default), "{default}");
        assert!(!shown("discord", default), "{default}");
    }
}

#[test]
fn a_file_of_upstream_loads_leniently_with_one_warning() {
    let written = Written::file(
        r#"{
          channels: {
            defaults: { groupPolicy: "open" },
            telegram: {
              enabled: true, botToken: "${TELEGRAM_BOT_TOKEN}", dmPolicy: "pairing", allowFrom: ["tg:123456789"],
              groups: { "*": { requireMention: true }, "-1001234567890": { groupPolicy: "open", topics: {} } },
              historyLimit: 50, replyToMode: "first", streaming: { mode: "progress", block: { enabled: true } },
              mediaMaxMb: 100, proxy: "socks5://localhost:9050",
              accounts: { alerts: { name: "Alerts", botToken: "${ALERTS}", streaming: "block" } },
            },
            discord: { token: "${DISCORD_BOT_TOKEN}", guilds: { "123": {} }, dm: { enabled: true }, allowFrom: ["5"] },
            signal: {},
          },
          session: { dmScope: "per-channel-peer", groupScope: "main", reset: { mode: "daily" }, resetTriggers: ["/new"] },
        }"#,
    )
    .env("TELEGRAM_BOT_TOKEN", "123456:ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghi")
    .env("ALERTS", "123457:ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghi")
    .env("DISCORD_BOT_TOKEN", "abc.def.ghi");
    assert!(written.load().is_err());
    let written = written.lenient();
    assert_eq!(
        warnings(&written),
        [": ignored under --lenient-config (only upstream OpenClaw knows them): channels.defaults, \
             channels.telegram.groups.-1001234567890.topics, channels.telegram.historyLimit, channels.telegram.replyToMode, \
             channels.telegram.streaming.mode \"progress\", channels.telegram.streaming.block, \
             channels.telegram.mediaMaxMb, channels.telegram.proxy, channels.telegram.accounts.alerts.name, \
             channels.telegram.accounts.alerts.streaming \"block\", channels.discord.guilds, channels.discord.dm, \
             channels.signal, session.reset"]
    );
    let config = written.load().unwrap().config;
    let accounts = config.channels.telegram_accounts();
    assert_eq!(accounts.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["alerts", "default"]);
    assert!(accounts.iter().all(|one| one.account.require_mention && one.account.streaming));
    assert_eq!(config.channels.discord_accounts().len(), 1);
    assert_eq!((config.session.dm_scope, config.session.group_scope), (DmScope::PerChannelPeer, GroupScope::Main));
    assert_eq!(config.session.reset_triggers, ["/new"]);
}

#[test]
fn what_is_odd_about_a_bot_is_warned_of() {
    const GROUPS: &str = "channels.telegram.groupPolicy: \"allowlist\" with nobody in groupAllowFrom or allowFrom: \
                          the bot is silent in groups; \"disabled\" says so";
    const SCOPE: &str = "session.dmScope: \"main\" lets all who write in private share one conversation; \
                         use \"per-account-channel-peer\"";
    let token = format!("1:{}", "a".repeat(35));
    let odd = |settings: &str| warnings(&section("telegram", &settings.replace("TOKEN", &token)));
    assert!(odd("streaming: \"off\", enabled: false").is_empty());
    assert!(odd(r#"botToken: "TOKEN", allowFrom: [5]"#).is_empty());
    assert_eq!(odd(r#"botToken: "TOKEN""#), [GROUPS]);
    assert!(odd(r#"botToken: "TOKEN", groupPolicy: "disabled""#).is_empty());
    for silent in [
        r#"groups: { "*": {} }"#,
        r#"groups: { "-1": { enabled: false } }"#,
        r#"groups: { "-1": { allowFrom: [] }, "-2": { groupPolicy: "disabled" } }"#,
    ] {
        assert_eq!(odd(&format!("botToken: \"TOKEN\", {silent}")), [GROUPS], "{silent}");
    }
    for heard in [r#"groups: { "*": { groupPolicy: "open" } }"#, r#"groups: { "-1": { allowFrom: [5] } }"#] {
        assert!(odd(&format!("botToken: \"TOKEN\", {heard}")).is_empty(), "{heard}");
    }
    assert_eq!(
        odd(r#"botToken: "TOKEN", groups: { "-1": { requireMention: false } }"#),
        [
            "channels.telegram.groups.-1: nobody is listed, so everybody in this group may write; groupPolicy \"open\" would say so"
        ]
    );
    assert!(odd(r#"botToken: "TOKEN", allowFrom: [5], groups: { "-1": {} }"#).is_empty());
    assert_eq!(
        odd(r#"botToken: "1:short", dmPolicy: "allowlist""#),
        [
            "channels.telegram.dmPolicy: \"allowlist\" with nobody in allowFrom: nobody can write in private",
            GROUPS,
            "channels.telegram.botToken: shorter than Telegram's tokens are",
        ]
    );
    assert_eq!(
        odd(r#"botToken: "TOKEN", allowFrom: ["*"]"#),
        ["channels.telegram.allowFrom: \"*\" lets everybody write; dmPolicy \"open\" would say so", SCOPE]
    );
    assert_eq!(odd(r#"botToken: "TOKEN", dmPolicy: "open", allowFrom: ["*"]"#), [SCOPE]);
    assert_eq!(odd(r#"botToken: "TOKEN", allowFrom: [5, 6]"#), [SCOPE]);
    assert_eq!(
        odd(r#"botToken: "TOKEN", allowFrom: [5], mode: "polling", webhookUrl: "https://h/t""#),
        ["channels.telegram.mode: \"polling\" makes no use of webhookUrl"]
    );
}

#[test]
fn a_binding_prefers_one_instance_and_names_what_there_is() {
    let text = r#"{
      channels: { telegram: { allowFrom: [5], accounts: { a: { botToken: "1:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } } } },
      cluster: { channelBinding: { n1: ["telegram", "webchat"], n2: ["telegram:a", "telegram:b", "discord"], n3: ["Slack"] } },
    }"#;
    assert_eq!(
        warnings(&Written::file(text)),
        [
            "cluster.channelBinding.n2: no such channel is configured: telegram:b, discord",
            "cluster.channelBinding.n3: no such channel is configured: Slack",
        ]
    );
    let cluster = config(text).cluster;
    let preferred = |account: &str| {
        let instances = ["n1", "n2", "n3", "n4"].into_iter();
        instances.filter(|instance| cluster.preferred(&instance.parse().unwrap(), account)).collect::<Vec<_>>()
    };
    assert_eq!(preferred("telegram:a"), ["n2"]);
    assert_eq!(preferred("telegram:other"), ["n1"]);
    assert_eq!(preferred("telegram"), ["n1"]);
    assert_eq!(preferred("discord:default"), ["n2"]);
    assert!(preferred("matrix:default").is_empty());
}

#[test]
fn tokens_are_masked_and_the_rest_loads_again() {
    let tokens = r#"{ channels: {
        telegram: { botToken: "1:hunter2", webhookSecret: "hunter2", accounts: { a: { botToken: "2:hunter2", webhookSecret: "hunter2x" } } },
        discord: { token: "hunter2", accounts: { a: { token: "hunter2a" } } } } }"#;
    let loaded = Written::file(tokens).load().unwrap();
    let shown = effective(&loaded.config);
    assert_eq!(shown["channels"]["telegram"]["botToken"], "***");
    assert_eq!(shown["channels"]["telegram"]["accounts"]["a"]["webhookSecret"], "***");
    assert_eq!(shown["channels"]["telegram"]["maxAgeMs"], 86_400_000);
    assert_eq!(shown["channels"]["discord"]["streaming"], "off");
    let accounts = loaded.config.channels.telegram_accounts();
    for text in [shown.to_string(), format!("{loaded:?}"), format!("{accounts:#?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }

    let first = config(
        r#"{ channels: {
             telegram: { enabled: false, apiRoot: "https://h/", streaming: true, allowFrom: ["tg:5", 6, "*"], mode: "webhook",
                         groups: { "*": { requireMention: false }, "-1": { enabled: false, groupPolicy: "open", allowFrom: ["tg:7"] } },
                         accounts: { a: { maxAgeMs: 5000, streaming: { mode: "off" }, groupAllowFrom: [], agentId: "main" } } },
             discord: { accounts: { a: { enabled: false, allowFrom: [7], dmPolicy: "disabled" } } } },
             session: { dmScope: "per-account-channel-peer", resetTriggers: [] } }"#,
    );
    assert_eq!(config(&effective(&first).to_string()), first);
}

#[test]
fn the_schema_knows_the_forms_of_a_channel() {
    let text = schema().to_string();
    for name in ["botToken", "webhookSecret", "groupAllowFrom", "per-account-channel-peer", "gatewayUrl", "maxAgeMs"] {
        assert!(text.contains(name), "{name}");
    }
}
