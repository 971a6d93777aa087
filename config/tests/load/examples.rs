//! Every file in `examples/` loads, as an operator would use it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openclaw_config::channels::{GroupPolicy, TelegramMode, UnknownPolicy};
use openclaw_config::storage::Backend;
use openclaw_config::{Loaded, Sources, load};

fn example(name: &str) -> Loaded {
    let env = |name: &str| match name {
        "HOME" => Some("/home/test".to_owned()),
        "OPENCLAW_INSTANCE_ID" => Some("node-1".to_owned()),
        "OPENCLAW_GATEWAY_TOKEN" | "OPENAI_API_KEY" | "ANTHROPIC_API_KEY" => Some("0123456789abcdef".to_owned()),
        "TELEGRAM_BOT_TOKEN" => Some(format!("1:{}", "a".repeat(35))),
        "TELEGRAM_SUPPORT_TOKEN" => Some(format!("2:{}", "b".repeat(35))),
        "TELEGRAM_WEBHOOK_SECRET" | "DISCORD_BOT_TOKEN" => Some("c".repeat(64)),
        _ => None,
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let sources = Sources { file: Some(file), env: &env, overrides: Vec::new(), lenient: false };
    load(sources).unwrap_or_else(|errors| panic!("{errors}"))
}

fn warnings(loaded: &Loaded) -> Vec<String> {
    loaded.warnings.iter().map(|warning| format!("{}: {}", warning.key, warning.message)).collect()
}

const ALONE: &str = "cluster.enabled: no peers are named, so this instance is a cluster of one; name them with --bootstrap \
                     (OPENCLAW_CLUSTER_BOOTSTRAP, cluster.bootstrap) or --join (OPENCLAW_CLUSTER_JOIN, cluster.join)";

#[test]
fn every_example_loads() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let loaded = example(&name);
        // The guide gives neither peers nor the settings of channels.
        let expected: &[&str] = match name.as_str() {
            "guide-cluster.json5" | "guide.json5" => &[
                ALONE,
                "cluster.channelBinding.node-1: no such channel is configured: telegram, discord",
                "cluster.channelBinding.node-2: no such channel is configured: slack, whatsapp",
            ],
            _ => &[],
        };
        assert_eq!(warnings(&loaded), expected, "{name}");
        names.insert(name);
    }
    assert!(names.len() >= 10, "{names:?}");
}

#[test]
fn the_guide_means_what_it_says() {
    let config = example("guide.json5").config;
    assert_eq!(config.storage.data_dir, PathBuf::from("/mnt/shared/openclaw-data"));
    assert_eq!(config.storage.sessions.dir, Some(PathBuf::from("/mnt/shared/openclaw-data/sessions")));
    assert_eq!(config.storage.backend, Backend::Redis);
    let redis = config.storage.redis.unwrap();
    assert_eq!((redis.url.as_str(), redis.db, redis.pool_size), ("redis://redis-host:6379", 0, 10));
    assert_eq!((redis.key_prefix.as_str(), redis.password.unwrap().expose()), ("openclaw:", "..."));
    assert!(config.cluster.is_clustered());
    let bound = config.cluster.channel_binding.values().flatten().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(bound, ["telegram", "discord", "slack", "whatsapp", "webchat"]);
    assert!(config.logging.include_instance_id);
}

#[test]
fn three_instances_reach_each_other() {
    let config = example("three-instances.json5").config;
    assert_eq!(config.cluster.bootstrap.len(), 3);
    assert_eq!(config.cluster.peer_address().unwrap().to_string(), "10.0.0.1:3100");
    assert_eq!(config.http_address().unwrap().to_string(), "10.0.0.1:3000");
    assert_eq!(config.cluster.peer.tls.unwrap().cert, PathBuf::from("/etc/openclaw/node-1.pem"));
}

#[test]
fn bots_are_where_they_are_preferred() {
    let config = example("telegram.json5").config;
    let accounts = config.channels.telegram_accounts();
    let [default, support] = accounts.as_slice() else { panic!("{accounts:?}") };
    assert_eq!(
        (default.id.as_str(), default.mode, default.account.streaming),
        ("default", TelegramMode::Polling, true)
    );
    assert_eq!(default.account.allow_from, ["123456789", "987654321"]);
    assert_eq!(default.account.groups["-1001234567890"].require_mention, Some(false));
    assert_eq!(
        (support.id.as_str(), support.mode, support.account.streaming),
        ("support", TelegramMode::Webhook, true)
    );
    assert_eq!((support.account.unknown, support.account.max_age), (UnknownPolicy::Hold, Duration::from_secs(3600)));
    assert_eq!(support.account.agent_id, "support");
    let preferred = |instance: &str, account| config.cluster.preferred(&instance.parse().unwrap(), account);
    assert!(preferred("node-1", "telegram:default") && !preferred("node-2", "telegram:default"));
    assert!(preferred("node-2", "telegram:support") && !preferred("node-1", "telegram:support"));
    assert!(!preferred("node-3", "telegram:default") && !preferred("node-1", "discord:default"));

    let accounts = example("discord.json5").config.channels.discord_accounts();
    let [bot] = accounts.as_slice() else { panic!("{accounts:?}") };
    assert_eq!((bot.id.as_str(), bot.api_root.as_str()), ("default", "https://discord.com"));
    assert_eq!((bot.account.group_policy, bot.account.streaming), (GroupPolicy::Open, false));
    assert_eq!(
        (bot.account.require_mention, bot.account.groups["200000000000000002"].require_mention),
        (true, Some(false))
    );
}

#[test]
fn agents_take_from_the_defaults_what_they_do_not_say() {
    let agents = example("models.json5").config.agents;
    let agent = |id: &str| agents.resolve(&id.parse().unwrap());
    let cheap = agent("cheap").unwrap();
    assert_eq!(cheap.model.primary.to_string(), "local/qwen3");
    assert_eq!(cheap.model.fallbacks.len(), 2);
    assert_eq!((cheap.max_output_tokens, cheap.context_max_entries), (512, 100));
    assert!(agent("trial").unwrap().model.fallbacks.is_empty());
    assert_eq!(agent("main").unwrap().system_prompt.as_deref(), Some("You are a helpful assistant."));
    assert_eq!(agent("nobody"), None);
}
