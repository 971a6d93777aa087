//! What is refused, each with its whole message: an operator reads nothing else.

use crate::written::Written;

pub(crate) fn check(written: &Written, expected: &[&str]) {
    let message = written.load().err().unwrap_or_default();
    assert_eq!(message.lines().collect::<Vec<_>>(), expected, "for {:?} {:?}", written.files, written.env);
}

#[test]
fn text_that_is_not_json5_is_refused_with_its_place() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["openclaw.json:1:1: not JSON5: a value is missing at the end of the file"]),
        ("[]", &["openclaw.json:1:1: expected an object with the sections of settings"]),
        ("{ gateway: }", &["openclaw.json:1:12: not JSON5: expected value"]),
        ("{ gateway: { port: 3000 }", &["openclaw.json:1:26: not JSON5: the file ends inside an object"]),
        (
            r#"{
  gateway: {
    port: 3000
    bind: "lan"
  }
}"#,
            &["openclaw.json:4:5: not JSON5: expected comma"],
        ),
        ("{ port: 01 }", &["openclaw.json:1:9: not JSON5: leading zero"]),
        (r#"{ "a: 1 }"#, &["openclaw.json:1:10: not JSON5: the file ends inside a string"]),
        ("/* no end", &["openclaw.json:1:10: not JSON5: the file ends inside a comment"]),
        ("{} {}", &["openclaw.json:1:4: not JSON5: trailing characters"]),
        (
            "{ gateway: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
            &["openclaw.json:1:75: more than 64 levels of nesting"],
        ),
        (
            "{\n  gateway: { port: 1 },\n  gateway: { port: 2 },\n}",
            &["openclaw.json:3:3: gateway: written twice; the first is at openclaw.json:2:3"],
        ),
        (r#"{ gateway: "\x" }"#, &["openclaw.json:1:13: not JSON5: invalid escape sequence"]),
        ("3", &["openclaw.json:1:1: expected an object with the sections of settings"]),
        ("null", &["openclaw.json:1:1: expected an object with the sections of settings"]),
    ];
    for (written, expected) in cases {
        check(&Written::file(*written), expected);
    }
}

#[test]
fn unknown_keys_are_refused_with_a_hint() {
    let cases: &[(&str, &[&str])] = &[
        (
            "{\n  gateway: {\n    prot: 3000,\n  },\n}",
            &["openclaw.json:3:5: gateway.prot: unknown key; did you mean `port`?"],
        ),
        ("{ gatway: {} }", &["openclaw.json:1:3: gatway: unknown key; did you mean `gateway`?"]),
        (
            r#"{ storage: { data_dir: "/x" } }"#,
            &["openclaw.json:1:14: storage.data_dir: unknown key; did you mean `dataDir`?"],
        ),
        (
            "{ storage: { zzzzzz: 1 } }",
            &[
                "openclaw.json:1:14: storage.zzzzzz: unknown key; known here are `dataDir`, `backend`, `redis`, `sessions`",
            ],
        ),
        (
            r#"{ cluster: { peer: { tls: { ca: "a", cert: "b", key: "c", chain: "d" } } } }"#,
            &["openclaw.json:1:59: cluster.peer.tls.chain: unknown key; known here are `ca`, `cert`, `key`"],
        ),
        (
            "{ mcp: {}, diagnostics: { otel: { sampleRate: 2, endpoint: \"collector:4318\", protocol: \"grpc\" } } }",
            &[
                "openclaw.json:1:3: mcp: not supported by this version yet",
                "openclaw.json:1:78: diagnostics.otel.protocol: only upstream OpenClaw knows this key; --lenient-config ignores such keys",
            ],
        ),
        (
            r#"{ diagnostics: { otel: { sampleRate: 2, endpoint: "collector:4318", headers: { "a b": "x" } }, health: { deafAfterMs: 1 } } }"#,
            &[
                "openclaw.json:1:38: diagnostics.otel.sampleRate: 2 is not between 0 and 1",
                r#"openclaw.json:1:51: diagnostics.otel.endpoint: not a URL such as "http://collector:4318": it does not begin with http:// or https://"#,
                r#"openclaw.json:1:87: diagnostics.otel.headers."a b": not the name of an HTTP header"#,
                "openclaw.json:1:119: diagnostics.health.deafAfterMs: 1 ms is not between 1000 and 86400000 ms",
            ],
        ),
        (
            r#"{ session: { mainKey: "main" } }"#,
            &[
                "openclaw.json:1:14: session.mainKey: only upstream OpenClaw knows this key; --lenient-config ignores such keys",
            ],
        ),
        (
            "{ bindings: [] }",
            &["openclaw.json:1:3: bindings: only upstream OpenClaw knows this key; --lenient-config ignores such keys"],
        ),
        (
            r#"{ models: { providers: { x: { baseurl: "http://h" } } } }"#,
            &["openclaw.json:1:31: models.providers.x.baseurl: unknown key; did you mean `baseUrl`?"],
        ),
        (
            r#"{ agents: { entries: { main: { sistemPrompt: "x" } } } }"#,
            &["openclaw.json:1:32: agents.entries.main.sistemPrompt: unknown key; did you mean `systemPrompt`?"],
        ),
        (
            r#"{ agents: { defaults: { model: { primery: "echo/echo" } } } }"#,
            &["openclaw.json:1:34: agents.defaults.model.primery: unknown key; did you mean `primary`?"],
        ),
        (
            r#"{
  gateway: { prot: 1, bnd: 2 },
  storge: {},
  logging: { level: "loud" },
}"#,
            &[
                "openclaw.json:2:14: gateway.prot: unknown key; did you mean `port`?",
                "openclaw.json:2:23: gateway.bnd: unknown key; did you mean `bind`?",
                "openclaw.json:3:3: storge: unknown key; did you mean `storage`?",
                r#"openclaw.json:4:21: logging.level: "loud" is none of "off", "silent", "error", "fatal", "warn", "info", "debug", "trace""#,
            ],
        ),
        (
            r#"{ cluster: { "\u0065nabled": true, "instance\u0049d": 5 } }"#,
            &["openclaw.json:1:55: cluster.instanceId: expected a text, found an integer"],
        ),
    ];
    for (written, expected) in cases {
        check(&Written::file(*written), expected);
    }
}

#[test]
fn values_of_the_wrong_kind_or_range_are_refused() {
    let cases: &[(&str, &[&str])] = &[
        (
            r#"{ gateway: { port: "3000" } }"#,
            &["openclaw.json:1:20: gateway.port: expected an integer from 0 to 65535, found a text"],
        ),
        (
            "{ gateway: { port: 70000 } }",
            &["openclaw.json:1:20: gateway.port: expected an integer from 0 to 65535, found 70000"],
        ),
        (
            "{ gateway: { port: -1 } }",
            &["openclaw.json:1:20: gateway.port: expected an integer from 0 to 65535, found -1"],
        ),
        (
            "{ gateway: { port: 30.5 } }",
            &[
                "openclaw.json:1:20: gateway.port: expected an integer from 0 to 65535, found a fraction or too large a number",
            ],
        ),
        ("{ gateway: { port: 0 } }", &["openclaw.json:1:20: gateway.port: 0 is not between 1 and 65535"]),
        (
            "{ gateway: { port: Infinity } }",
            &[
                "openclaw.json:1:20: gateway.port: expected an integer from 0 to 65535, found a fraction or too large a number",
            ],
        ),
        (
            "{ gateway: { port: 99999999999999999999999 } }",
            &[
                "openclaw.json:1:20: gateway.port: expected an integer from 0 to 65535, found a fraction or too large a number",
            ],
        ),
        ("{ gateway: 5 }", &["openclaw.json:1:12: gateway: expected an object, found an integer"]),
        (
            "{ gateway: [3000], storage: { redis: [] }, models: { providers: { x: [] } } }",
            &[
                "openclaw.json:1:12: gateway: expected an object, found a list",
                "openclaw.json:1:38: storage.redis: expected an object, found a list",
                "openclaw.json:1:70: models.providers.x: expected an object, found a list",
            ],
        ),
        (
            r#"{ gateway: { bind: "localhost" } }"#,
            &[
                r#"openclaw.json:1:20: gateway.bind: "localhost" is not "loopback", "lan", an IP address, or a list of IP addresses"#,
            ],
        ),
        (
            "{ gateway: { bind: [] } }",
            &[
                r#"openclaw.json:1:20: gateway.bind: expected "loopback", "lan", an IP address, or a list of IP addresses, found an empty list"#,
            ],
        ),
        (
            r#"{ gateway: { bind: ["127.0.0.1", "x"] } }"#,
            &[r#"openclaw.json:1:34: gateway.bind[1]: "x" is not an IP address"#],
        ),
        (
            "{ gateway: { auth: { token: 12345678 } } }",
            &["openclaw.json:1:29: gateway.auth.token: expected a text, found an integer"],
        ),
        (r#"{ gateway: { auth: { token: "" } } }"#, &["openclaw.json:1:29: gateway.auth.token: must not be empty"]),
        (
            r#"{ gateway: { auth: { token: "a b" } } }"#,
            &["openclaw.json:1:29: gateway.auth.token: must consist of visible ASCII characters"],
        ),
        (
            r#"{ gateway: { trustedProxies: ["10.0.0.0/33", "10.0.0.1", "x"] } }"#,
            &[
                r#"openclaw.json:1:31: gateway.trustedProxies[0]: "10.0.0.0/33" is not an IP address or a block such as "10.0.0.0/8""#,
                r#"openclaw.json:1:58: gateway.trustedProxies[2]: "x" is not an IP address or a block such as "10.0.0.0/8""#,
            ],
        ),
        (
            r#"{ gateway: { allowedOrigins: ["https://a/b", "ftp://a"] } }"#,
            &[
                r#"openclaw.json:1:31: gateway.allowedOrigins[0]: "https://a/b" is not an origin such as "https://chat.example": an origin has no path"#,
                r#"openclaw.json:1:46: gateway.allowedOrigins[1]: "ftp://a" is not an origin such as "https://chat.example": it does not begin with http:// or https://"#,
            ],
        ),
        (
            r#"{ gateway: { limits: { bodyBytes: "1 megabyte", headerBytes: 1, requestMs: 0, maxStreams: 0 } } }"#,
            &[
                r#"openclaw.json:1:35: gateway.limits.bodyBytes: "1 megabyte" is not a number of bytes such as 65536, "64KiB" or "1MiB""#,
            ],
        ),
        (
            "{ gateway: { limits: { bodyBytes: 0, headerReadMs: 18446744073709551615, maxConnections: 0 } } }",
            &[
                "openclaw.json:1:35: gateway.limits.bodyBytes: 0 is not between 1024 and 67108864",
                "openclaw.json:1:52: gateway.limits.headerReadMs: 18446744073709551615 ms is not between 100 and 600000 ms",
                "openclaw.json:1:90: gateway.limits.maxConnections: 0 is not between 1 and 1000000",
            ],
        ),
        (
            r#"{ gateway: { http: { endpoints: { chatCompletions: { enabled: "yes" } } } } }"#,
            &[
                "openclaw.json:1:63: gateway.http.endpoints.chatCompletions.enabled: expected true or false, found a text",
            ],
        ),
        (
            r#"{ storage: { backend: "postgres" } }"#,
            &[r#"openclaw.json:1:23: storage.backend: "postgres" is none of "raft", "redis", "fs""#],
        ),
        (
            r#"{ storage: { backend: "rafts" } }"#,
            &[r#"openclaw.json:1:23: storage.backend: "rafts" is none of "raft", "redis", "fs"; did you mean "raft"?"#],
        ),
        (
            "{ storage: { backend: 1 } }",
            &[r#"openclaw.json:1:23: storage.backend: expected one of "raft", "redis", "fs", found an integer"#],
        ),
        (
            r#"{ storage: { backend: "redis" } }"#,
            &[r#"openclaw.json:1:23: storage.backend: "redis" needs storage.redis"#],
        ),
        (r#"{ storage: { dataDir: "" } }"#, &["openclaw.json:1:23: storage.dataDir: must not be empty"]),
        (
            r#"{ storage: { redis: { url: "redis://user:hunter2@h:1" } } }"#,
            &[
                r#"openclaw.json:1:28: storage.redis.url: not a URL such as "redis://host:6379": it contains a password; use storage.redis.password"#,
            ],
        ),
        (
            r#"{ storage: { redis: { url: "http://h", poolSize: 0, password: "" } } }"#,
            &[
                r#"openclaw.json:1:28: storage.redis.url: not a URL such as "redis://host:6379": it does not begin with redis:// or rediss://"#,
                "openclaw.json:1:50: storage.redis.poolSize: 0 is not between 1 and 1000",
                "openclaw.json:1:63: storage.redis.password: must not be empty",
            ],
        ),
        (
            r#"{ logging: { output: "stdotu" } }"#,
            &[r#"openclaw.json:1:22: logging.output: "stdotu" is not "stdout", "stderr" or the path of a file"#],
        ),
        (
            r#"{ logging: { format: "jsno" } }"#,
            &[r#"openclaw.json:1:22: logging.format: "jsno" is none of "auto", "json", "text"; did you mean "json"?"#],
        ),
        (
            "{ session: { turnTimeoutMs: 1, maxAttempts: 0 }, messages: { queue: { cap: 0 } } }",
            &[
                "openclaw.json:1:29: session.turnTimeoutMs: 1 ms is not between 1000 and 86400000 ms",
                "openclaw.json:1:45: session.maxAttempts: 0 is not between 1 and 10",
                "openclaw.json:1:76: messages.queue.cap: 0 is not between 1 and 1000",
            ],
        ),
        (
            r#"{ session: { dmScope: "per-channel", groupScope: "per-peer" } }"#,
            &[
                r#"openclaw.json:1:23: session.dmScope: "per-channel" is none of "main", "per-peer", "per-channel-peer", "per-account-channel-peer""#,
                r#"openclaw.json:1:50: session.groupScope: "per-peer" is none of "per-group", "main""#,
            ],
        ),
        (
            r#"{ session: { resetTriggers: ["", " /new"] } }"#,
            &[
                r#"openclaw.json:1:30: session.resetTriggers[0]: a trigger has 1 to 64 bytes, such as "/new", and no white space around it"#,
                r#"openclaw.json:1:34: session.resetTriggers[1]: a trigger has 1 to 64 bytes, such as "/new", and no white space around it"#,
            ],
        ),
        (
            "{ session: { resetTriggers: [5] } }",
            &["openclaw.json:1:30: session.resetTriggers[0]: expected a text, found an integer"],
        ),
        (
            r#"{ session: { resetTriggers: "/new" } }"#,
            &["openclaw.json:1:29: session.resetTriggers: expected a list, found a text"],
        ),
        (
            r#"{ cluster: { failback: { after: "5 minutes" } } }"#,
            &[
                r#"openclaw.json:1:33: cluster.failback.after: "5 minutes" is not a duration such as "500ms", "60s", "5m" or "1h""#,
            ],
        ),
        (
            "{ cluster: { failback: { after: -5 } } }",
            &[
                r#"openclaw.json:1:33: cluster.failback.after: expected a duration such as "500ms", "60s", "5m" or "1h", found -5"#,
            ],
        ),
    ];
    for (written, expected) in cases {
        check(&Written::file(*written), expected);
    }
}

#[test]
fn reset_triggers_are_few() {
    let triggers = |number: usize| {
        let list = vec!["\"/n\""; number].join(",");
        Written::file(format!("{{ session: {{ resetTriggers: [{list}] }} }}")).load().err()
    };
    assert_eq!(triggers(32), None);
    let message = "openclaw.json:1:29: session.resetTriggers: has 33 entries; at most 32 are allowed";
    assert_eq!(triggers(33).as_deref(), Some(message));
}

#[test]
fn rules_of_the_cluster_name_the_key_to_change() {
    let cases: &[(&str, &[&str])] = &[
        (
            "{ cluster: { enabled: true } }",
            &["openclaw.json:1:12: cluster.instanceId: needed in a cluster (--instance-id, OPENCLAW_INSTANCE_ID)"],
        ),
        (
            r#"{ cluster: { instanceId: "Node 1" } }"#,
            &[
                "openclaw.json:1:26: cluster.instanceId: instance id has the character 'N' at byte 0; allowed are a-z, 0-9, '-' and '.', the first a letter or digit",
            ],
        ),
        (
            r#"{ cluster: { instanceId: "node-1", bootstrap: "node-1" } }"#,
            &[r#"openclaw.json:1:47: cluster.bootstrap: "node-1" is not <instance id>=<host>:<port>"#],
        ),
        (
            r#"{ cluster: { instanceId: "node-1", bootstrap: ["node-1=a:1", "node-1=b:1", "node-3=a:1"] } }"#,
            &[
                "openclaw.json:1:62: cluster.bootstrap[1]: instance node-1 is named twice",
                "openclaw.json:1:76: cluster.bootstrap[2]: address a:1 is given twice",
            ],
        ),
        (
            r#"{ cluster: { instanceId: "node-9", bootstrap: "node-1=a:1" } }"#,
            &["openclaw.json:1:47: cluster.bootstrap: does not name this instance, node-9"],
        ),
        (
            r#"{ cluster: { instanceId: "node-1", bootstrap: ["node-1=10.0.0.1:0", "x", "node-3=fd00::1:1"] } }"#,
            &[
                r#"openclaw.json:1:48: cluster.bootstrap[0]: "node-1=10.0.0.1:0": port 0 is not an address that others can reach"#,
                r#"openclaw.json:1:69: cluster.bootstrap[1]: "x" is not <instance id>=<host>:<port>"#,
                r#"openclaw.json:1:74: cluster.bootstrap[2]: "node-3=fd00::1:1": "fd00::1:1" is not host:port"#,
            ],
        ),
        (
            r#"{ cluster: { instanceId: "node-1", bootstrap: "node-1=a:1", join: "b:1" } }"#,
            &[
                "openclaw.json:1:67: cluster.join: cluster.bootstrap is given as well; the first members bootstrap, later ones join",
            ],
        ),
        (
            r#"{ cluster: { enabled: false, instanceId: "node-1", join: ["b:1"] } }"#,
            &["openclaw.json:1:23: cluster.enabled: is false, but cluster.bootstrap or cluster.join is given"],
        ),
        (r#"{ cluster: { join: ["b"] } }"#, &[r#"openclaw.json:1:21: cluster.join[0]: "b" is not host:port"#]),
        (
            r#"{ cluster: { peer: { listen: "0.0.0.0:3100" } } }"#,
            &[
                "openclaw.json:1:30: cluster.peer.listen: 0.0.0.0:3100 can be reached by others and needs cluster.peer.tls or cluster.peer.secret (OPENCLAW_CLUSTER_SECRET)",
            ],
        ),
        (
            r#"{ cluster: { peer: { listen: "localhost:3100" } } }"#,
            &[
                r#"openclaw.json:1:30: cluster.peer.listen: "localhost:3100" is not an IP address and port such as "0.0.0.0:3100""#,
            ],
        ),
        (
            r#"{ cluster: { peer: { listen: "127.0.0.1:3000" } } }"#,
            &["openclaw.json:1:30: cluster.peer.listen: port 3000 is gateway.port as well"],
        ),
        (
            r#"{ cluster: { peer: { secret: "short" } } }"#,
            &[
                "openclaw.json:1:30: cluster.peer.secret: has 5 characters; at least 32 are needed (`openssl rand -hex 32`)",
            ],
        ),
        (
            r#"{ cluster: { peer: { secret: "0123456789abcdef0123456789abcdef", tls: { ca: "a", cert: "b", key: "c" } } } }"#,
            &["openclaw.json:1:30: cluster.peer.secret: cluster.peer.tls is given as well; use one of them"],
        ),
        (
            r#"{ cluster: { peer: { tls: { ca: "a" } } } }"#,
            &["openclaw.json:1:27: cluster.peer.tls: `cert` is missing"],
        ),
        (
            r#"{ cluster: { peer: { tls: { ca: "", cert: "b", key: "c" } } } }"#,
            &["openclaw.json:1:33: cluster.peer.tls.ca: must not be empty"],
        ),
        (
            r#"{ cluster: { instanceId: "n", join: "b:1", peer: { listen: "0.0.0.0:3100", secret: "0123456789abcdef0123456789abcdef" } } }"#,
            &["openclaw.json:1:50: cluster.peer.advertise: needed, because others cannot reach 0.0.0.0:3100"],
        ),
        (
            r#"{ cluster: { peer: { advertise: "0.0.0.0:3100" }, advertiseHttp: "[::]:80" } }"#,
            &[
                "openclaw.json:1:33: cluster.peer.advertise: others cannot reach a wildcard address",
                "openclaw.json:1:66: cluster.advertiseHttp: others cannot reach a wildcard address",
            ],
        ),
        (
            "{ cluster: { raft: { heartbeatMs: 75 } } }",
            &[
                "openclaw.json:1:35: cluster.raft.heartbeatMs: must be below half of cluster.raft.electionTimeoutMs: 75 ms of 150 ms",
            ],
        ),
        (
            "{ cluster: { raft: { heartbeatMs: 0, electionTimeoutMs: 0, snapshotEvery: 0 } } }",
            &[
                "openclaw.json:1:35: cluster.raft.heartbeatMs: 0 ms is not between 5 and 10000 ms",
                "openclaw.json:1:35: cluster.raft.heartbeatMs: must be below half of cluster.raft.electionTimeoutMs: 0 ms of 0 ms",
                "openclaw.json:1:57: cluster.raft.electionTimeoutMs: 0 ms is not between 20 and 60000 ms",
                "openclaw.json:1:75: cluster.raft.snapshotEvery: 0 is below 100",
            ],
        ),
        (
            "{ cluster: { lease: { waitMs: 2999 } } }",
            &[
                "openclaw.json:1:31: cluster.lease.waitMs: must be at least 1.5 times cluster.lease.validityMs: 2999 ms with 2000 ms",
            ],
        ),
        (
            "{ cluster: { lease: { renewMs: 501, stopBudgetMs: 251 } } }",
            &[
                "openclaw.json:1:32: cluster.lease.renewMs: must be at most a quarter of cluster.lease.validityMs: 501 ms with 2000 ms",
                "openclaw.json:1:51: cluster.lease.stopBudgetMs: must be at most an eighth of cluster.lease.validityMs: 251 ms with 2000 ms",
            ],
        ),
        (
            "{ cluster: { lease: { validityMs: 0, waitMs: 0, renewMs: 0, stopBudgetMs: 0 } } }",
            &[
                "openclaw.json:1:35: cluster.lease.validityMs: 0 ms is not between 100 and 600000 ms",
                "openclaw.json:1:46: cluster.lease.waitMs: 0 ms is not between 150 and 3600000 ms",
                "openclaw.json:1:58: cluster.lease.renewMs: 0 ms is not between 1 and 150000 ms",
                "openclaw.json:1:75: cluster.lease.stopBudgetMs: 0 ms is not between 1 and 75000 ms",
            ],
        ),
        (
            r#"{ cluster: { channelBinding: { "node-1": ["telegram"], "node-2": ["telegram", ""], "Node": [] } } }"#,
            &[
                "openclaw.json:1:84: cluster.channelBinding.Node: instance id has the character 'N' at byte 0; allowed are a-z, 0-9, '-' and '.', the first a letter or digit",
            ],
        ),
        (
            r#"{ cluster: { channelBinding: { "node-1": "telegram", "node.2": ["x", 1] } } }"#,
            &[
                "openclaw.json:1:42: cluster.channelBinding.node-1: expected a list, found a text",
                r#"openclaw.json:1:70: cluster.channelBinding."node.2"[1]: expected a text, found an integer"#,
            ],
        ),
        (
            r#"{ cluster: { channelBinding: { "node-1": ["t"], "node-2": ["t", ""] } } }"#,
            &[
                r#"openclaw.json:1:59: cluster.channelBinding.node-2: channel "t" is bound to node-1 as well"#,
                "openclaw.json:1:59: cluster.channelBinding.node-2: a channel's name must not be empty",
            ],
        ),
        (
            r#"{ gateway: { bind: "lan" } }"#,
            &[
                "openclaw.json:1:20: gateway.bind: an address that others can reach needs gateway.auth.token (OPENCLAW_GATEWAY_TOKEN)",
            ],
        ),
        (
            r#"{ gateway: { bind: ["127.0.0.1", "10.0.0.1"] } }"#,
            &[
                "openclaw.json:1:20: gateway.bind: an address that others can reach needs gateway.auth.token (OPENCLAW_GATEWAY_TOKEN)",
            ],
        ),
        (
            r#"{ cluster: { id: "My Cluster" } }"#,
            &[
                "openclaw.json:1:18: cluster.id: cluster id has the character 'M' at byte 0; allowed are a-z, 0-9 and '-'",
            ],
        ),
    ];
    for (written, expected) in cases {
        check(&Written::file(*written), expected);
    }
}

#[test]
fn rules_of_models_and_agents_name_the_key_to_change() {
    let cases: &[(&str, &[&str])] = &[
        (
            r#"{ models: { providers: { x: { apiKey: "k" } } } }"#,
            &["openclaw.json:1:29: models.providers.x: `baseUrl` is missing"],
        ),
        (
            r#"{ models: { providers: { x: { baseUrl: "api.example" } } } }"#,
            &[
                r#"openclaw.json:1:40: models.providers.x.baseUrl: not a URL such as "https://api.openai.com/v1": it does not begin with http:// or https://"#,
            ],
        ),
        (
            r#"{ models: { providers: { x: { baseUrl: "https://user:hunter2@api.example/v1" } } } }"#,
            &[
                r#"openclaw.json:1:40: models.providers.x.baseUrl: not a URL such as "https://api.openai.com/v1": it contains a user or a password"#,
            ],
        ),
        (
            r#"{ models: { providers: { x: { baseUrl: "https://" } } } }"#,
            &[
                r#"openclaw.json:1:40: models.providers.x.baseUrl: not a URL such as "https://api.openai.com/v1": it has no valid host"#,
            ],
        ),
        (
            r#"{ models: { providers: { x: { baseUrl: "https://h/v1?key=1" } } } }"#,
            &[
                r#"openclaw.json:1:40: models.providers.x.baseUrl: not a URL such as "https://api.openai.com/v1": it contains a query, a fragment, white space or a backslash"#,
            ],
        ),
        (
            r#"{ models: { providers: { "a/b": { baseUrl: "https://h" } } } }"#,
            &[
                r#"openclaw.json:1:33: models.providers."a/b": a provider's name has 1 to 64 bytes without '/' and white space"#,
            ],
        ),
        (
            r#"{ models: { providers: { echo: { api: "openai" } } } }"#,
            &[
                "openclaw.json:1:39: models.providers.echo.api: the provider `echo` is built in and speaks nothing else; choose another name",
            ],
        ),
        (
            r#"{ models: { providers: { echo: { baseUrl: "http://h" } } } }"#,
            &["openclaw.json:1:43: models.providers.echo.baseUrl: an echo provider calls nobody"],
        ),
        (
            r#"{ models: { providers: { x: { baseUrl: "https://h", tokenDelayMs: 5 } } } }"#,
            &[r#"openclaw.json:1:67: models.providers.x.tokenDelayMs: only for providers whose api is "echo""#],
        ),
        (
            r#"{ models: { providers: { x: { baseUrl: "https://h", timeoutMs: 1000, maxConcurrency: 0, maxRetries: 11 } } } }"#,
            &[
                "openclaw.json:1:86: models.providers.x.maxConcurrency: 0 is not between 1 and 100000",
                "openclaw.json:1:101: models.providers.x.maxRetries: 11 is not between 0 and 10",
            ],
        ),
        (
            r#"{ models: { providers: { x: { baseUrl: "https://h", apiKey: "a\nb", headers: { "a b": "c", d: "\n" } } } } }"#,
            &[
                "openclaw.json:1:61: models.providers.x.apiKey: must consist of visible ASCII characters",
                r#"openclaw.json:1:87: models.providers.x.headers."a b": not the name of an HTTP header"#,
                "openclaw.json:1:95: models.providers.x.headers.d: must consist of visible ASCII characters and spaces",
            ],
        ),
        (
            r#"{ models: { providers: { x: { api: "gemini" } } } }"#,
            &[
                r#"openclaw.json:1:36: models.providers.x.api: "gemini" is none of "openai", "openai-completions", "anthropic", "anthropic-messages", "echo""#,
            ],
        ),
        (
            r#"{ agents: { defaults: { model: "gpt-5" } } }"#,
            &[r#"openclaw.json:1:32: agents.defaults.model: "gpt-5" is not <provider>/<model>"#],
        ),
        (
            r#"{ agents: { defaults: { model: "openai/gpt-5" } } }"#,
            &[
                "openclaw.json:1:32: agents.defaults.model.primary: `openai/gpt-5` names no provider of models.providers; they are `echo`",
            ],
        ),
        (
            "{ agents: { defaults: { model: 5 } } }",
            &[
                r#"openclaw.json:1:32: agents.defaults.model: expected "<provider>/<model>" or { primary, fallbacks }, found an integer"#,
            ],
        ),
        (
            r#"{ agents: { defaults: { model: { primary: "x/y", fallbacks: ["z/y", "echo/echo"] } } } }"#,
            &[
                "openclaw.json:1:43: agents.defaults.model.primary: `x/y` names no provider of models.providers; they are `echo`",
                "openclaw.json:1:62: agents.defaults.model.fallbacks[0]: `z/y` names no provider of models.providers; they are `echo`",
            ],
        ),
        (
            "{ agents: { entries: { Main: {} } } }",
            &[
                "openclaw.json:1:24: agents.entries.Main: agent id has the character 'M' at byte 0; allowed are a-z, 0-9, '_' and '-', the first a letter or digit",
            ],
        ),
        (
            r#"{ agents: { entries: { cheap: { model: "x/y", maxOutputTokens: 0, contextMaxBytes: 1, contextMaxEntries: 0 } } } }"#,
            &[
                "openclaw.json:1:40: agents.entries.cheap.model.primary: `x/y` names no provider of models.providers; they are `echo`",
                "openclaw.json:1:64: agents.entries.cheap.maxOutputTokens: 0 is not between 1 and 10000000",
                "openclaw.json:1:84: agents.entries.cheap.contextMaxBytes: 1 is not between 1024 and 67108864",
                "openclaw.json:1:106: agents.entries.cheap.contextMaxEntries: 0 is not between 1 and 100000",
            ],
        ),
        (
            "{ agents: { defaults: { maxOutputTokens: 0 }, entries: { cheap: {} } } }",
            &["openclaw.json:1:42: agents.defaults.maxOutputTokens: 0 is not between 1 and 10000000"],
        ),
    ];
    for (written, expected) in cases {
        check(&Written::file(*written), expected);
    }
}

#[test]
fn problems_name_the_variable_flag_or_file_they_came_from() {
    let cases: &[(Written, &[&str])] = &[
        (
            Written::file(r#"{ gateway: { auth: { token: "${NO_SUCH}" }, bind: "lan" } }"#),
            &["openclaw.json:1:29: gateway.auth.token: environment variable NO_SUCH is not set"],
        ),
        (
            Written::file(
                r#"{
  gateway: { port: "${PORT}" },
}"#,
            )
            .env("PORT", "many"),
            &[r#"openclaw.json:2:20: gateway.port: expected an integer from 0 to 65535, found "many""#],
        ),
        (
            Written::file(r#"{ logging: { output: "${" } }"#),
            &["openclaw.json:1:22: logging.output: `${` without `}`; write `$${` for the characters themselves"],
        ),
        (
            Written::file(r#"{ gateway: { auth: { token: "x${9}" } } }"#),
            &[
                "openclaw.json:1:29: gateway.auth.token: `${...}` does not name a variable; write `$${` for the characters themselves",
            ],
        ),
        (
            Written::default().env("OPENCLAW_GATEWAY_PORT", "http"),
            &[r#"OPENCLAW_GATEWAY_PORT: gateway.port: expected an integer from 0 to 65535, found "http""#],
        ),
        (
            Written::default()
                .env("OPENCLAW_GATEWAY_PORT", "-1")
                .env("OPENCLAW_LOG_LEVEL", "loud")
                .env("OPENCLAW_PEER_LISTEN", "x"),
            &[
                r#"OPENCLAW_PEER_LISTEN: cluster.peer.listen: "x" is not an IP address and port such as "0.0.0.0:3100""#,
                r#"OPENCLAW_GATEWAY_PORT: gateway.port: expected an integer from 0 to 65535, found "-1""#,
                r#"OPENCLAW_LOG_LEVEL: logging.level: "loud" is none of "off", "silent", "error", "fatal", "warn", "info", "debug", "trace""#,
            ],
        ),
        (
            Written::default()
                .env("OPENCLAW_CLUSTER_BOOTSTRAP", "node-1=h:1,node-2")
                .env("OPENCLAW_INSTANCE_ID", "node-1"),
            &[r#"OPENCLAW_CLUSTER_BOOTSTRAP: cluster.bootstrap: "node-2" is not <instance id>=<host>:<port>"#],
        ),
        (
            Written::default().env("OPENCLAW_CLUSTER_SECRET", "short").env("OPENCLAW_INSTANCE_ID", "NODE"),
            &[
                "OPENCLAW_INSTANCE_ID: cluster.instanceId: instance id has the character 'N' at byte 0; allowed are a-z, 0-9, '-' and '.', the first a letter or digit",
            ],
        ),
        (
            Written::default().env("OPENCLAW_CLUSTER_SECRET", "short"),
            &[
                "OPENCLAW_CLUSTER_SECRET: cluster.peer.secret: has 5 characters; at least 32 are needed (`openssl rand -hex 32`)",
            ],
        ),
        (
            Written::default().env("OPENCLAW_GATEWAY_BIND", "0.0.0.0"),
            &[
                "OPENCLAW_GATEWAY_BIND: gateway.bind: an address that others can reach needs gateway.auth.token (OPENCLAW_GATEWAY_TOKEN)",
            ],
        ),
        (
            Written::default().env("OPENCLAW_CONFIG_PATH", "/no/such/file.json5"),
            &["OPENCLAW_CONFIG_PATH: cannot read /no/such/file.json5: No such file or directory (os error 2)"],
        ),
        (
            Written::default().flag("--port", "gateway.port", "x"),
            &[r#"--port: gateway.port: expected an integer from 0 to 65535, found "x""#],
        ),
        (
            Written::file(r#"{ gateway: { bind: "lan" } }"#).flag("--bind", "gateway.bind", "10.0.0.1"),
            &[
                "--bind: gateway.bind: an address that others can reach needs gateway.auth.token (OPENCLAW_GATEWAY_TOKEN)",
            ],
        ),
        (
            Written::file(r#"{ $include: "no.json5" }"#),
            &["openclaw.json:1:13: cannot read no.json5: No such file or directory (os error 2)"],
        ),
        (Written::file(r#"{ $include: 5 }"#), &["openclaw.json:1:13: $include: expected a path or a list of paths"]),
        (Written::file(r#"{ $include: "openclaw.json" }"#), &["openclaw.json:1:13: openclaw.json includes itself"]),
        (
            Written::file(r#"{ $include: "a.json5" }"#)
                .and("a.json5", r#"{ gateway: { $include: ["b.json5"] } }"#)
                .and("b.json5", r#"{ $include: "a.json5" }"#),
            &["b.json5:1:13: a.json5 includes itself"],
        ),
        (
            Written::file(r#"{ $include: "a.json5", gateway: { bind: "lan" } }"#)
                .and("a.json5", "{\n  gateway: { prot: 1 } }"),
            &["a.json5:2:14: gateway.prot: unknown key; did you mean `port`?"],
        ),
        (
            Written::file(r#"{ $include: "a.json5" }"#).and("a.json5", "{ gateway: }"),
            &["a.json5:1:12: not JSON5: expected value"],
        ),
        (
            Written::file(r#"{ logging: { $include: "a.json5", level: "info" } }"#).and("a.json5", "[1]"),
            &["openclaw.json:1:14: logging.$include: only an object can be merged with other keys"],
        ),
        (
            Written::file(r#"{ gateway: { bind: 1 }, zzz: 1 }"#).lenient(),
            &[
                r#"openclaw.json:1:20: gateway.bind: expected "loopback", "lan", an IP address, or a list of IP addresses, found an integer"#,
                "openclaw.json:1:25: zzz: unknown key; known here are `gateway`, `storage`, `cluster`, `models`, `agents`, `channels`, `session`, `messages`, `logging`, `diagnostics`",
            ],
        ),
    ];
    for (written, expected) in cases {
        check(written, expected);
    }
}
