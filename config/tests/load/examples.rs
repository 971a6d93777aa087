//! Every file in `examples/` loads, as an operator would use it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use openclaw_config::storage::Backend;
use openclaw_config::{Loaded, Sources, load};

fn example(name: &str) -> Loaded {
    let env = |name: &str| match name {
        "HOME" => Some("/home/test".to_owned()),
        "OPENCLAW_INSTANCE_ID" => Some("node-1".to_owned()),
        "OPENCLAW_GATEWAY_TOKEN" | "OPENAI_API_KEY" | "ANTHROPIC_API_KEY" => Some("0123456789abcdef".to_owned()),
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
        let expected: &[&str] =
            if name.starts_with("guide") && name.contains("cluster") || name == "guide.json5" { &[ALONE] } else { &[] };
        assert_eq!(warnings(&loaded), expected, "{name}");
        names.insert(name);
    }
    assert!(names.len() >= 8, "{names:?}");
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
