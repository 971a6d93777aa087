//! Rules of `channels`, and of what `cluster.channelBinding` says about them.

use std::collections::BTreeMap;
use std::time::Duration;

use openclaw_proto::ids::AgentId;

use super::{Check, Url, ms};
use crate::channels::{Account, DmPolicy, Group, GroupPolicy, Placed, TelegramAccount, TelegramMode, Token};
use crate::document::join;
use crate::session::DmScope;
use crate::{Agents, Channels, Config, Secret};

/// Telegram's own are of 35 characters.
const SHORT_TELEGRAM_SECRET: usize = 30;
const MAX_ACCOUNT_ID: usize = 64;
const MAX_WEBHOOK_SECRET: usize = 256;
const LONGEST_AGE: Duration = super::DAY.saturating_mul(7);

pub(super) fn check(config: &Config, check: &mut Check) {
    telegram(config, check);
    discord(config, check);
}

fn telegram(config: &Config, check: &mut Check) {
    let placed = config.channels.placed_telegram();
    let (mut tokens, mut webhooks) = (Unique::default(), Unique::default());
    for one in &placed {
        common(config, check, one, &one.account.account);
        group_ids(check, one, &one.account.account, "the id of a group, such as \"-1001234567890\"", |id| {
            id.parse::<i64>().is_ok_and(|number| number < 0 && number.to_string() == id)
        });
        let example = "https://api.telegram.org";
        api_root(check, &one.at("apiRoot"), &one.account.api_root, example, |path| {
            // The digits after it begin a token.
            path.split_once("/bot").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()))
        });
        if one.has_token {
            telegram_token(check, &one.own_key("botToken"), one.account.bot_token.expose());
        }
        webhook(check, one);
        if one.runs() {
            let id = &one.account.id;
            if let Some(other) = tokens.taken(one.account.bot_token.expose(), id) {
                check.refuse(&one.own_key("botToken"), same_token(other, id));
            }
            if let (TelegramMode::Webhook, Some(url)) = (one.account.mode, &one.account.webhook_url)
                && let Some(other) = webhooks.taken(url, id)
            {
                let message = format!("accounts `{other}` and `{id}` would share it; each needs its own");
                check.refuse(&one.at("webhookUrl"), message);
            }
        }
    }
}

fn discord(config: &Config, check: &mut Check) {
    let placed = config.channels.placed_discord();
    let mut tokens = Unique::default();
    for one in &placed {
        common(config, check, one, &one.account.account);
        group_ids(check, one, &one.account.account, "the id of a channel, such as \"200000000000000001\"", |id| {
            id.parse::<u64>().is_ok_and(|number| number.to_string() == id)
        });
        api_root(check, &one.at("apiRoot"), &one.account.api_root, "https://discord.com", |path| {
            path.split('/').any(|part| part == "api" || part.strip_prefix('v').is_some_and(is_number))
        });
        if let Some(url) = &one.account.gateway_url {
            let key = one.at("gatewayUrl");
            match Url::parse(url, &["wss", "ws"]) {
                Ok(url) if url.is_clear() => check.refuse(&key, "must begin with wss://, unless it is on this machine"),
                Ok(_) => {}
                Err(error) => check.refuse(&key, format!("not a URL such as \"wss://gateway.discord.gg\": {error}")),
            }
        }
        if one.has_token {
            let key = one.own_key("token");
            match one.account.token.expose().get(..4) {
                Some(scheme) if scheme.eq_ignore_ascii_case("bot ") => check.refuse(&key, "must be without \"Bot \""),
                Some(_) | None => check.secret(&key, Some(&one.account.token)),
            }
        }
        if one.runs()
            && let Some(other) = tokens.taken(one.account.token.expose(), &one.account.id)
        {
            check.refuse(&one.own_key("token"), same_token(other, &one.account.id));
        }
    }
}

/// What holds on every platform.
fn common<A>(config: &Config, check: &mut Check, one: &Placed<A>, account: &Account) {
    let Token { key: token, variable, .. } = one.token();
    if let Some(id) = one.name() {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
        if id.is_empty() || id.len() > MAX_ACCOUNT_ID || !id.chars().all(allowed) {
            let message = format!("an account's name has 1 to {MAX_ACCOUNT_ID} characters of a-z, 0-9, '_' and '-'");
            check.refuse(&one.section(), message);
        }
        if one.doubled {
            check.refuse(
                &one.section(),
                format!("{} is the token of this account already; keep one of them", one.channel_key(token)),
            );
        }
    }
    if one.enabled && one.needs_token && !one.has_token && !one.doubled {
        check.refuse(
            &one.section(),
            match one.name() {
                None | Some(Channels::DEFAULT_ACCOUNT) => {
                    format!("`{token}` is missing: write it here, or set {variable} in the environment")
                }
                Some(_) => format!("`{token}` is missing"),
            },
        );
    }
    check.millis(&one.at("maxAgeMs"), account.max_age, ms(1000)..=LONGEST_AGE);
    let agents = &config.agents;
    if !AgentId::parse(&*account.agent_id).is_ok_and(|id| agents.resolve(&id).is_some()) {
        let mut known: Vec<_> = agents.entries.keys().map(AgentId::as_str).chain([Agents::MAIN]).collect();
        known.sort_unstable();
        known.dedup();
        let known = known.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
        check.refuse(&one.at("agentId"), format!("there is no agent `{}`; there are {known}", account.agent_id));
    }
    if !one.runs() {
        return;
    }
    let everybody = account.allow_from.iter().any(|sender| sender == "*");
    match account.dm_policy {
        DmPolicy::Open if !everybody => {
            check.refuse(&one.at("dmPolicy"), "\"open\" lets everybody write and needs \"*\" in allowFrom as well");
        }
        DmPolicy::Allowlist if account.allow_from.is_empty() => {
            check.warn(&one.at("dmPolicy"), "\"allowlist\" with nobody in allowFrom: nobody can write in private");
        }
        DmPolicy::Pairing | DmPolicy::Allowlist if everybody => {
            check.warn(&one.at("allowFrom"), "\"*\" lets everybody write; dmPolicy \"open\" would say so");
        }
        DmPolicy::Pairing | DmPolicy::Allowlist | DmPolicy::Open | DmPolicy::Disabled => {}
    }
    let several = everybody || account.allow_from.len() > 1;
    if several && account.dm_policy != DmPolicy::Disabled && config.session.dm_scope == DmScope::Main {
        let message = "\"main\" lets all who write in private share one conversation; use \"per-account-channel-peer\"";
        check.warn("session.dmScope", message);
    }
    if account.group_policy == GroupPolicy::Allowlist
        && account.allow_from.is_empty()
        && account.group_allow_from.is_empty()
    {
        nobody_in_groups(check, one, account);
    }
}

/// What follows when only those who are listed may write in groups, and nobody is.
fn nobody_in_groups<A>(check: &mut Check, one: &Placed<A>, account: &Account) {
    let mut silent = true;
    for (id, group) in account.groups.iter().filter(|(_, group)| group.enabled) {
        match (group.group_policy.unwrap_or(account.group_policy), &group.allow_from) {
            (GroupPolicy::Disabled, _) => {}
            (GroupPolicy::Allowlist | GroupPolicy::Open, Some(people)) => silent &= people.is_empty(),
            (GroupPolicy::Open, None) => silent = false,
            (GroupPolicy::Allowlist, None) if id == Group::OTHERS => {}
            (GroupPolicy::Allowlist, None) => {
                silent = false;
                let message =
                    "nobody is listed, so everybody in this group may write; groupPolicy \"open\" would say so";
                check.warn(&group_key(one, id), message);
            }
        }
    }
    if silent {
        let message = "\"allowlist\" with nobody in groupAllowFrom or allowFrom: the bot is silent in groups; \"disabled\" says so";
        check.warn(&one.at("groupPolicy"), message);
    }
}

fn group_key<A>(one: &Placed<A>, id: &str) -> String {
    format!("{}.{}", one.at("groups"), join(&[id.to_owned()]))
}

/// `expected` says what `is_id` takes.
fn group_ids<A>(check: &mut Check, one: &Placed<A>, account: &Account, expected: &str, is_id: fn(&str) -> bool) {
    for id in account.groups.keys().filter(|id| *id != Group::OTHERS && !is_id(id)) {
        check.refuse(&group_key(one, id), format!("neither {expected}, nor \"*\"; names can change hands"));
    }
}

fn api_root(check: &mut Check, key: &str, root: &str, example: &str, goes_on: impl Fn(&str) -> bool) {
    // Not the URL itself: it may contain a token.
    match Url::parse(root, &["https", "http"]) {
        Ok(url) if url.is_clear() => {
            check.refuse(key, "must begin with https://, unless it is on this machine: the token goes with every call");
        }
        Ok(url) if goes_on(url.path) => {
            check.refuse(key, format!("goes on too far; what is meant is the base, such as \"{example}\""));
        }
        Ok(_) => {}
        Err(error) => check.refuse(key, format!("not a URL such as \"{example}\": {error}")),
    }
}

fn telegram_token(check: &mut Check, key: &str, token: &str) {
    let letters = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    match token.split_once(':') {
        None if token.is_empty() => check.refuse(key, "must not be empty"),
        Some((id, secret)) if is_number(id) && !secret.is_empty() && letters(secret) => {
            if secret.len() < SHORT_TELEGRAM_SECRET {
                check.warn(key, "shorter than Telegram's tokens are");
            }
        }
        Some(_) | None => {
            check.refuse(key, "not a token as @BotFather gives it: <digits>:<letters, digits, '_' and '-'>")
        }
    }
}

fn webhook(check: &mut Check, one: &Placed<TelegramAccount>) {
    let account = &one.account;
    if let Some(url) = &account.webhook_url {
        let key = one.at("webhookUrl");
        let example = "https://bot.example/api/v1/webhooks/telegram/default";
        match Url::parse(url, &["https", "http"]) {
            Ok(url) if url.is_clear() => check.refuse(&key, "must begin with https://, unless it is on this machine"),
            Ok(_) => {}
            Err(error) => check.refuse(&key, format!("not a URL such as \"{example}\": {error}")),
        }
    }
    if let Some(secret) = account.webhook_secret.as_ref().map(Secret::expose) {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        let key = one.at("webhookSecret");
        if secret.is_empty() {
            check.refuse(&key, "must not be empty");
        } else if secret.len() > MAX_WEBHOOK_SECRET || !secret.bytes().all(allowed) {
            check.refuse(&key, format!("must have 1 to {MAX_WEBHOOK_SECRET} letters, digits, '_' and '-'"));
        }
    }
    if !one.runs() {
        return;
    }
    match account.mode {
        TelegramMode::Webhook => {
            if account.webhook_url.is_none() {
                check.refuse(&one.at("mode"), "\"webhook\" needs webhookUrl");
            }
            if account.webhook_secret.is_none() {
                let message =
                    "needed for a webhook: without it anybody could speak for Telegram (`openssl rand -hex 32`)";
                check.refuse(&one.own_key("webhookSecret"), message);
            }
        }
        TelegramMode::Polling if account.webhook_url.is_some() => {
            check.warn(&one.at("mode"), "\"polling\" makes no use of webhookUrl");
        }
        TelegramMode::Polling => {}
    }
}

/// Warns of names in one instance's binding that mean no channel.
pub(super) fn bound(config: &Config, key: &str, names: &[String], check: &mut Check) {
    let channels = &config.channels;
    let telegram = channels.placed_telegram().into_iter().filter(Placed::runs).map(|one| ("telegram", one.account.id));
    let discord = channels.placed_discord().into_iter().filter(Placed::runs).map(|one| ("discord", one.account.id));
    let accounts: Vec<_> = telegram.chain(discord).collect();
    let means_one = |name: &str| {
        // Every instance serves WebChat, so there is nothing to prefer.
        let is = |(channel, id): &(&str, String)| match name.split_once(':') {
            Some((wanted, account)) => wanted == *channel && account == id,
            None => name == *channel,
        };
        name == "webchat" || accounts.iter().any(is)
    };
    let absent: Vec<_> = names.iter().filter(|name| !name.is_empty() && !means_one(name)).cloned().collect();
    if !absent.is_empty() {
        check.warn(key, format!("no such channel is configured: {}", absent.join(", ")));
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn same_token(one: &str, other: &str) -> String {
    format!("accounts `{one}` and `{other}` have the same token, which only one connection can use")
}

/// Whose each value is that only one account may have.
#[derive(Default)]
struct Unique<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Unique<'a> {
    /// Who has `value` already; else `id` has it from now on.
    fn taken(&mut self, value: &'a str, id: &'a str) -> Option<&'a str> {
        match self.0.get(value) {
            Some(other) => Some(other),
            None => {
                self.0.insert(value, id);
                None
            }
        }
    }
}
