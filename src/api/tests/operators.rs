//! What operators and their tools see: health, the cluster, metrics, the page.

use http::header::{AUTHORIZATION, CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use openclaw_proto::http::HealthCondition;

use super::*;

#[tokio::test]
async fn health_tells_strangers_little_and_the_truth() {
    let instance = Setup::new(Paced::new(1)).with_token().one();
    let request = |path: &str, token: bool| {
        let request = Request::get(path);
        if token { request.header(AUTHORIZATION, format!("Bearer {TOKEN}")) } else { request }
    };
    for path in ["/api/v1/health", "/api/v1/health/ready", "/ready", "/readyz"] {
        let answer = body(instance.send(request(path, false), Body::empty()).await).await;
        assert_eq!(answer, json!({"ok": true, "status": "ready"}), "{path}");
    }
    for path in ["/health", "/healthz", "/api/v1/health/live"] {
        let answer = body(instance.send(request(path, false), Body::empty()).await).await;
        assert_eq!(answer, json!({"ok": true, "status": "live"}), "{path}");
    }
    let detail = body(instance.send(request("/readyz", true), Body::empty()).await).await;
    assert_eq!(detail["instanceId"], "node-1");
    for (status, word) in [
        (ClusterStatus { has_quorum: false, ..ClusterStatus::default() }, "no_quorum"),
        (ClusterStatus { has_quorum: true, maintenance: true, ..ClusterStatus::default() }, "maintenance"),
        (ClusterStatus { has_quorum: true, draining: true, maintenance: true, ..ClusterStatus::default() }, "draining"),
    ] {
        *instance.cluster.status.lock() = status;
        let response = instance.send(request("/readyz", false), Body::empty()).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body(response).await, json!({"ok": false, "status": word}));
        assert_eq!(instance.send(request("/healthz", false), Body::empty()).await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn what_needs_a_person_makes_an_instance_unwell_and_neither_dead_nor_useless() {
    let instance = Setup::new(Paced::new(1)).with_token().one();
    let ask = async |path: &str, token: bool| {
        let mut request = Request::get(path);
        if token {
            request = request.header(AUTHORIZATION, format!("Bearer {TOKEN}"));
        }
        let response = instance.send(request, Body::empty()).await;
        (response.status().as_u16(), body(response).await)
    };
    *instance.cluster.reasons.lock() = vec![HealthReason {
        condition: HealthCondition::ChannelDeaf,
        account: Some("telegram:default".into()),
        message: "it hears nothing".into(),
    }];
    for path in ["/api/v1/health/live", "/healthz", "/api/v1/health/ready", "/readyz"] {
        assert_eq!(ask(path, false).await.0, 200, "{path}");
    }
    assert_eq!(ask("/api/v1/health", false).await, (503, json!({"ok": false, "status": "unwell"})));
    let (_, detail) = ask("/api/v1/health", true).await;
    let reason = json!([{"condition": "channel_deaf", "account": "telegram:default", "message": "it hears nothing"}]);
    assert_eq!((&detail["status"], &detail["reasons"]), (&json!("unwell"), &reason));
    assert_eq!(ask("/readyz", true).await.1["reasons"], reason, "whoever may know is told everywhere");

    *instance.cluster.status.lock() =
        ClusterStatus { has_quorum: true, failed: Some("disk".into()), ..ClusterStatus::default() };
    for path in ["/api/v1/health", "/api/v1/health/live", "/healthz", "/api/v1/health/ready", "/readyz"] {
        assert_eq!(ask(path, false).await, (503, json!({"ok": false, "status": "consensus_stopped"})), "{path}");
    }
    assert_eq!(ask("/healthz", true).await.1["reasons"][0]["condition"], "consensus_stopped");
    *instance.cluster.status.lock() = ClusterStatus::default();
    assert_eq!(ask("/api/v1/health", false).await, (503, json!({"ok": false, "status": "no_quorum"})));
    let (_, detail) = ask("/api/v1/health", true).await;
    let conditions: Vec<_> = detail["reasons"].as_array().unwrap().iter().map(|one| one["condition"].clone()).collect();
    assert_eq!(conditions, ["no_quorum", "channel_deaf"]);
}

#[tokio::test]
async fn errors_are_counted_by_their_code() {
    let instance = Setup::new(Paced::new(1)).one();
    for _ in 0..2 {
        assert_eq!(instance.post("/api/v1/chat", json!({"message": ""})).await.status(), StatusCode::BAD_REQUEST);
    }
    let failed = instance.post("/api/v1/chat", json!({"message": "x", "model": "paced/broken"})).await;
    assert_eq!(failed.status(), StatusCode::BAD_GATEWAY);
    let errors = |code| instance.metrics.http_errors.with_label_values(&[code]).get();
    assert_eq!((errors("invalid_request"), errors("model_failed"), errors("internal")), (2, 1, 0));
}

/// Or the next request meets a connection that is being closed: behind a balancer of TCP nobody repeats it.
#[tokio::test]
async fn connections_to_an_instance_that_drains_and_of_streams_are_not_kept() {
    let instance = Setup::new(Paced::new(1)).one();
    let closes = |response: Response| response.headers().get(CONNECTION).is_some_and(|value| value == "close");
    assert!(!closes(instance.get("/api/v1/health/live").await));
    assert!(!closes(instance.get("/api/v1/sessions").await));
    assert!(
        closes(instance.post("/api/v1/chat/stream", json!({"message": "x"})).await),
        "who knows what is at its end"
    );
    instance.post("/api/v1/maintenance", json!({"on": true})).await;
    assert!(closes(instance.get("/api/v1/health/live").await));
    assert!(closes(instance.get("/api/v1/sessions").await));
    instance.post("/api/v1/maintenance", json!({"on": false})).await;
    assert!(!closes(instance.get("/api/v1/health/live").await));
}

#[tokio::test]
async fn operators_reach_the_cluster() {
    let instance = Setup::new(Paced::new(1)).one();
    assert_eq!(instance.json("/api/v1/cluster").await["clusterId"], "test");
    assert_eq!(instance.json("/api/v1/cluster/state-hash").await["appliedIndex"], 7);
    for (path, expected) in [("", "fresh rows"), ("?consistency=stale", "stale rows")] {
        let backup = instance.get(&format!("/api/v1/cluster/backup{path}")).await;
        assert_eq!(backup.headers()[CONTENT_TYPE], "application/octet-stream");
        assert_eq!(backup.headers()["cache-control"], "no-store");
        assert_eq!(bytes(backup).await, expected);
    }
    let on = body(instance.post("/api/v1/maintenance", json!({"on": true})).await).await;
    assert_eq!(on["on"], true);
    assert_eq!(instance.json("/api/v1/maintenance").await["drained"], true);
    let cluster = body(instance.post("/api/v1/cluster/transfer-leader", json!({"to": "node-2"})).await).await;
    assert_eq!((&cluster["clusterId"], &cluster["leader"]), (&json!("test"), &json!("node-2")));
    let unknown = instance.post("/api/v1/cluster/remove", json!({"instanceId": "node-9"})).await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);

    let draining = Setup { refuses: true, ..Setup::new(Paced::new(1)) }.one();
    let refused = draining.post("/api/v1/chat", json!({"message": "x"})).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body(refused).await["error"]["code"], "draining");
}

#[tokio::test]
async fn the_overview_is_for_token_holders_and_its_series_for_who_asks() {
    let instance = Setup::new(Paced::new(1)).with_token().one();
    let ask = async |path: &str, token: bool| {
        let request = Request::get(path);
        let request = if token { request.header(AUTHORIZATION, format!("Bearer {TOKEN}")) } else { request };
        instance.send(request, Body::empty()).await
    };
    assert_eq!(ask("/api/v1/overview", false).await.status(), StatusCode::UNAUTHORIZED);
    let overview = body(ask("/api/v1/overview", true).await).await;
    assert_eq!((&overview["instanceId"], overview.get("series")), (&json!("node-1"), None));
    let overview = body(ask("/api/v1/overview?series=true", true).await).await;
    assert_eq!(overview["series"]["stepMs"], 5_000);
    let misspelt = ask("/api/v1/overview?serie=true", true).await;
    assert_eq!(misspelt.status(), StatusCode::BAD_REQUEST);
    assert!(body(misspelt).await["error"]["message"].as_str().unwrap().contains("serie"));
}

#[tokio::test]
async fn metrics_are_for_this_machine_whom_the_settings_name_and_token_holders() {
    let mut setup = Setup::new(Paced::new(1)).with_token();
    setup.config.metrics.allow_from = vec!["10.9.0.0/16".parse().unwrap()];
    let instance = setup.one();
    let ask = async |peer: [u8; 4], header: Option<(&str, String)>| {
        let mut request = Request::get("/metrics").extension(Peer::Tcp(SocketAddr::from((peer, 1))));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        instance.send(request, Body::empty()).await
    };
    assert_eq!(ask([127, 0, 0, 1], None).await.status(), StatusCode::OK);
    assert_eq!(
        ask([127, 0, 0, 1], Some(("x-forwarded-for", "10.0.0.1".into()))).await.status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(ask([10, 0, 0, 1], None).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(ask([10, 9, 8, 7], None).await.status(), StatusCode::OK);
    assert_eq!(
        ask([10, 9, 8, 7], Some(("x-real-ip", "10.0.0.1".into()))).await.status(),
        StatusCode::UNAUTHORIZED,
        "a balancer forwards for anybody"
    );
    let page = ask([10, 0, 0, 1], Some(("authorization", format!("Bearer {TOKEN}")))).await;
    assert!(page.headers()[CONTENT_TYPE].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let page = String::from_utf8(bytes(page).await.to_vec()).unwrap();
    assert!(page.contains(r#"openclaw_http_requests_total{method="GET",route="/metrics",status="401"} 3"#), "{page}");
}

#[tokio::test]
async fn who_guesses_tokens_is_told_to_wait_and_who_has_it_is_not() {
    let mut setup = Setup::new(Paced::new(1)).with_token();
    setup.config.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    let instance = setup.one();
    let ask = async |client: &str, token: &str| {
        let request = Request::get("/api/v1/cluster")
            .extension(Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 1))))
            .header("x-forwarded-for", client)
            .header(AUTHORIZATION, format!("Bearer {token}"));
        instance.send(request, Body::empty()).await
    };
    for _ in 0..20 {
        assert_eq!(ask("203.0.113.5", "wrong").await.status(), StatusCode::UNAUTHORIZED);
    }
    let limited = ask("203.0.113.5", "wrong").await;
    assert_eq!(limited.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = limited.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((50..=60).contains(&wait), "{wait}");
    assert!(!limited.headers().contains_key(WWW_AUTHENTICATE));
    assert_eq!(body(limited).await["error"]["code"], "busy");
    assert_eq!(ask("203.0.113.5", TOKEN).await.status(), StatusCode::OK);
    assert_eq!(ask("203.0.113.6", "wrong").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_page_is_served_with_a_policy_and_a_tag() {
    let instance = Setup::new(Paced::new(1)).with_token().one();
    let page = instance.get("/").await;
    assert_eq!(page.status(), StatusCode::OK);
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("script-src 'self'"));
    let tag = page.headers()["etag"].to_str().unwrap().to_owned();
    let again =
        instance.send(Request::get("/").header("if-none-match", format!("W/{tag}, \"x\"")), Body::empty()).await;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    let dashboard = instance.get("/cluster").await;
    assert_eq!(dashboard.headers()["content-security-policy"], page.headers()["content-security-policy"]);
    assert_eq!(dashboard.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
    assert_eq!(instance.get("/cluster.html").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(instance.get("/app.js").await.headers()[CONTENT_TYPE], "text/javascript; charset=utf-8");
    assert_eq!(instance.get("/nothing.js").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(instance.get("/api/v1/openapi.json").await.status(), StatusCode::OK);
}
