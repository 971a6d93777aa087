//! What operators and their tools see: health, the cluster, metrics, the page.

use http::header::AUTHORIZATION;

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
async fn metrics_are_for_this_machine_and_token_holders() {
    let instance = Setup::new(Paced::new(1)).with_token().one();
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
    let page = ask([10, 0, 0, 1], Some(("authorization", format!("Bearer {TOKEN}")))).await;
    assert!(page.headers()[CONTENT_TYPE].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let page = String::from_utf8(bytes(page).await.to_vec()).unwrap();
    assert!(page.contains(r#"openclaw_http_requests_total{method="GET",route="/metrics",status="401"} 2"#), "{page}");
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
    assert_eq!(instance.get("/app.js").await.headers()[CONTENT_TYPE], "text/javascript; charset=utf-8");
    assert_eq!(instance.get("/nothing.js").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(instance.get("/api/v1/openapi.json").await.status(), StatusCode::OK);
}
