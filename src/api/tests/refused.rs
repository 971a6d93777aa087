//! What is refused: malformed requests, strangers, other pages; and a panic.

use http::Method;
use http::header::{AUTHORIZATION, ORIGIN};
use openclaw_proto::http::ErrorBody;

use super::*;

/// Method, path, headers, body, and the status of its answer.
type Malformed<'a> = (Method, String, Vec<(&'a str, &'a str)>, String, u16);

/// Each malformed request has its documented answer: a code, never a 500, and a body that says what is wrong.
#[tokio::test]
async fn malformed_requests_have_their_documented_answers() {
    let mut setup = Setup::new(Paced::new(1).free()).with_token();
    setup.config.limits.body_bytes = openclaw_config::ByteCount::kib(64);
    let instance = setup.one();
    let long = "x".repeat(300);
    let nested = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let large = format!(r#"{{"message":"{}"}}"#, "x".repeat(70 << 10));
    let turn = TurnId::random();
    let chat = "/api/v1/chat";
    let stream = "/api/v1/chat/stream";
    let completions = "/v1/chat/completions";
    let entries = "/api/v1/sessions/s/entries";
    let post = Method::POST;
    // Bodies.
    let bodies: Vec<(&str, &str, u16)> = vec![
        (completions, r#"{"model":"openclaw","n":2,"messages":[{"role":"user","content":"x"}]}"#, 400),
        (completions, r#"{"model":"openclaw","n":0,"messages":[{"role":"user","content":"x"}]}"#, 400),
        (chat, "", 400),
        (chat, "{", 400),
        (chat, "null", 400),
        (chat, "[]", 400),
        (chat, "\"x\"", 400),
        (chat, "5", 400),
        (chat, "{}", 400),
        (chat, r#"{"message":5}"#, 400),
        (chat, r#"{"message":null}"#, 400),
        (chat, r#"{"message":["x"]}"#, 400),
        (chat, r#"{"message":""}"#, 400),
        (chat, r#"{"message":" \n"}"#, 400),
        (chat, r#"{"message":"x"}}"#, 400),
        (chat, r#"{"message":"x",}"#, 400),
        (chat, r#"{'message':'x'}"#, 400),
        (chat, r#"{"message":"x","message":"y"}"#, 400),
        (chat, r#"{"message":"x","mesage":"y"}"#, 400),
        (chat, r#"{"message":"x","sessionKey":""}"#, 400),
        (chat, r#"{"message":"x","sessionKey":"a b"}"#, 400),
        (chat, r#"{"message":"x","sessionKey":"a/b"}"#, 400),
        (chat, r#"{"message":"x","sessionKey":"cron:x"}"#, 400),
        (chat, r#"{"message":"x","sessionKey":"subagent:x"}"#, 400),
        (chat, r#"{"message":"x","sessionKey":7}"#, 400),
        (chat, r#"{"message":"x","sessionKey":"a\u0000b"}"#, 400),
        (chat, r#"{"message":"\ud800"}"#, 400),
        (chat, r#"{"message":"x","agentId":"nobody"}"#, 400),
        (chat, r#"{"message":"x","agentId":"../x"}"#, 400),
        (chat, r#"{"message":"x","agentId":"ops","sessionKey":"agent:main:main"}"#, 400),
        (chat, r#"{"message":"x","model":"none"}"#, 400),
        (chat, r#"{"message":"x","model":"none/x"}"#, 400),
        (chat, r#"{"message":"x","model":"/"}"#, 400),
        (chat, r#"{"message":"x","user":""}"#, 400),
        (chat, &nested, 400),
        (chat, &large, 413),
        (stream, &large, 413),
        (stream, "{", 400),
        (stream, "{}", 400),
        (stream, r#"{"message":""}"#, 400),
        (stream, r#"{"message":"x","model":"none/x"}"#, 400),
        (entries, r#"{"role":"user"}"#, 400),
        (entries, r#"{"role":"boss","text":"x"}"#, 400),
        (entries, r#"{"role":"user","text":5}"#, 400),
        (entries, r#"{"role":"user","text":"x","seq":1}"#, 400),
        ("/api/v1/sessions/cron:x/entries", r#"{"role":"user","text":"x"}"#, 400),
        ("/api/v1/maintenance", r#"{"on":"yes"}"#, 400),
        ("/api/v1/maintenance", "{}", 400),
        ("/api/v1/cluster/remove", r#"{"instanceId":"../x"}"#, 400),
        ("/api/v1/cluster/remove", "{}", 400),
        ("/api/v1/cluster/transfer-leader", r#"{"to":""}"#, 400),
        ("/api/v1/cluster/transfer-leader", r#"{"to":"node-1","now":true}"#, 400),
        (completions, "{", 400),
        (completions, "{}", 400),
        (completions, r#"{"model":"openclaw","messages":[]}"#, 400),
        (completions, r#"{"model":"openclaw","messages":"x"}"#, 400),
        (completions, r#"{"model":"gpt-4o","messages":[{"role":"user","content":"x"}]}"#, 404),
        (completions, r#"{"model":"openclaw/none","messages":[{"role":"user","content":"x"}]}"#, 404),
        (completions, r#"{"model":"openclaw","messages":[{"role":"boss","content":"x"}]}"#, 400),
        (completions, r#"{"model":"openclaw","messages":[{"role":"user","content":5}]}"#, 400),
        (completions, r#"{"model":"openclaw","temperature":9,"messages":[{"role":"user","content":"x"}]}"#, 400),
        (completions, r#"{"model":"openclaw","max_tokens":0,"messages":[{"role":"user","content":"x"}]}"#, 400),
        (completions, r#"{"model":"openclaw","max_tokens":-1,"messages":[{"role":"user","content":"x"}]}"#, 400),
        (completions, r#"{"model":"openclaw","user":"u","messages":[{"role":"system","content":"x"}]}"#, 400),
    ];
    let ok = r#"{"message":"x"}"#;
    let json_type = ("content-type", "application/json");
    let mut cases: Vec<Malformed<'_>> = Vec::new();
    for (path, body, status) in bodies {
        cases.push((post.clone(), path.into(), vec![json_type], body.into(), status));
    }
    // Headers of a body that is fine.
    let headers: Vec<(Vec<(&str, &str)>, u16)> = vec![
        (vec![], 415),
        (vec![("content-type", "text/plain")], 415),
        (vec![("content-type", "application/x-www-form-urlencoded")], 415),
        (vec![("content-type", "multipart/form-data; boundary=x")], 415),
        (vec![("content-type", "application/jsonx")], 415),
        (vec![json_type, json_type], 400),
        (vec![json_type, ("content-encoding", "gzip")], 415),
        (vec![json_type, ("idempotency-key", "")], 400),
        (vec![json_type, ("idempotency-key", "a b")], 400),
        (vec![json_type, ("idempotency-key", &long)], 400),
        (vec![json_type, ("idempotency-key", "ü")], 400),
        (vec![json_type, ("idempotency-key", "a"), ("idempotency-key", "b")], 400),
        (vec![json_type, ("content-length", "999999999")], 413),
    ];
    for (headers, status) in headers {
        cases.push((post.clone(), chat.into(), headers, ok.into(), status));
    }
    let appended = r#"{"role":"user","text":"x"}"#;
    for value in ["x", "-1", "*", "\"1", "1.5", ""] {
        cases.push((post.clone(), entries.into(), vec![json_type, ("if-match", value)], appended.into(), 400));
    }
    // Updates.
    let session = "/api/v1/sessions/s";
    let long_label = format!(r#"{{"label":"{}"}}"#, "x".repeat(257));
    let long_model = format!(r#"{{"model":"paced/{}"}}"#, "x".repeat(300));
    for (path, body) in [
        (session, ""),
        (session, "{"),
        (session, "null"),
        (session, "{}"),
        (session, r#"{"label":5}"#),
        (session, r#"{"label":""}"#),
        (session, r#"{"label":"a\nb"}"#),
        (session, r#"{"label":["x"]}"#),
        (session, r#"{"label":"x","label":"y"}"#),
        (session, r#"{"label":"x","lable":"y"}"#),
        (session, r#"{"label":"x","revision":1}"#),
        (session, r#"{"model":""}"#),
        (session, r#"{"model":"none"}"#),
        (session, r#"{"model":"none/x"}"#),
        (session, &long_label),
        (session, &long_model),
        ("/api/v1/sessions/cron:x", r#"{"label":"x"}"#),
        ("/api/v1/sessions/a%20b", r#"{"label":"x"}"#),
    ] {
        cases.push((Method::PATCH, path.into(), vec![json_type], body.into(), 400));
    }
    let labelled = r#"{"label":"x"}"#;
    cases.push((Method::PATCH, session.into(), vec![], labelled.into(), 415));
    cases.push((Method::PATCH, session.into(), vec![json_type, ("if-match", "7")], labelled.into(), 412));
    cases.push((Method::PATCH, session.into(), vec![json_type, ("idempotency-key", "a b")], labelled.into(), 400));
    for value in ["x", "-1", "*", "\"1", ""] {
        cases.push((Method::PATCH, session.into(), vec![json_type, ("if-match", value)], labelled.into(), 400));
    }
    // Reads.
    let get = Method::GET;
    for (path, status) in [
        ("/api/v1/sessions?limit=0", 400),
        ("/api/v1/sessions?limit=201", 400),
        ("/api/v1/sessions?limit=-1", 400),
        ("/api/v1/sessions?limit=x", 400),
        ("/api/v1/sessions?limit=1&limit=2", 400),
        ("/api/v1/sessions?cursor=", 400),
        ("/api/v1/sessions?cursor=A%20B", 400),
        ("/api/v1/sessions?offset=1", 400),
        ("/api/v1/sessions?consistency=x", 400),
        ("/api/v1/sessions?limit=99999999999999999999999", 400),
        ("/api/v1/sessions/none", 404),
        ("/api/v1/sessions/a%20b", 400),
        ("/api/v1/sessions/%00", 400),
        ("/api/v1/sessions/%ff", 400),
        ("/api/v1/sessions/a%2Fb", 400),
        ("/api/v1/sessions/none/entries", 404),
        ("/api/v1/sessions/none/entries?after=-1", 400),
        ("/api/v1/turns/none", 400),
        ("/api/v1/turns/00", 404),
        ("/api/v1/turns/00?x=1", 400),
        ("/api/v1/chat/stream", 400),
        ("/api/v1/chat/stream?turnId=", 400),
        ("/api/v1/chat/stream?turnId=XYZ", 400),
        ("/api/v1/chat/stream?turnId=00", 404),
        ("/api/v1/chat/stream?turn=00", 400),
        ("/api/v1/none", 404),
        ("/api/v2/chat", 404),
        ("/v1/none", 404),
        ("/v1/models/none", 404),
        ("/../etc/passwd", 404),
        ("/index.html", 404),
        ("/api/v1/chat", 405),
        ("/v1/chat/completions", 405),
        ("/api/v1/cluster?x=1", 400),
        ("/api/v1/cluster/state-hash?x=1", 400),
        ("/api/v1/cluster/backup?consistency=old", 400),
        ("/api/v1/cluster/remove", 405),
    ] {
        cases.push((get.clone(), path.into(), vec![], String::new(), status));
    }
    for id in
        ["x", ".", "0.1-1", "00.1", "00.1-", "00.-1-1", "00.x-1", "00.99999999999-1", "00.1-99999999999999999999999"]
    {
        let status = if id == "0.1-1" { 404 } else { 400 };
        cases.push((get.clone(), stream.into(), vec![("last-event-id", id)], String::new(), status));
    }
    let other = format!("{turn}.1-1");
    cases.push((
        get.clone(),
        "/api/v1/chat/stream?turnId=00".into(),
        vec![("last-event-id", &other)],
        String::new(),
        400,
    ));
    for (name, value) in [("x-openclaw-min-index", "x"), ("x-openclaw-min-index", "-1"), ("x-openclaw-min-index", "")] {
        cases.push((get.clone(), "/api/v1/sessions".into(), vec![(name, value)], String::new(), 400));
    }
    for (method, path) in [
        (Method::PUT, chat),
        (Method::DELETE, chat),
        (Method::PATCH, "/api/v1/sessions"),
        (Method::OPTIONS, chat),
        (Method::POST, "/api/v1/sessions"),
        (Method::PUT, "/api/v1/sessions/s"),
        (Method::POST, "/metrics"),
        (Method::TRACE, "/"),
        (Method::POST, "/healthz"),
    ] {
        cases.push((method, path.into(), vec![], String::new(), 405));
    }
    assert!(cases.len() > 120);
    for (method, path, headers, sent, status) in cases {
        let case = format!("{method} {path} {headers:?} {}", sent.chars().take(60).collect::<String>());
        let mut request = Request::builder().method(method).uri(&path).header(AUTHORIZATION, format!("Bearer {TOKEN}"));
        for (name, value) in headers {
            request = request.header(name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let response = instance.send(request, sent).await;
        assert_eq!(response.status(), status, "{case}");
        assert!(response.headers().contains_key("x-request-id"), "{case}");
        let bytes = bytes(response).await;
        if path.starts_with("/v1/") {
            let body: Value = serde_json::from_slice(&bytes).unwrap();
            assert!(body["error"]["message"].is_string() && body["error"]["type"].is_string(), "{case}: {body}");
        } else {
            let body: ErrorBody = serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("{case}: {bytes:?}"));
            assert_eq!(body.error.code.status(), status, "{case}");
            assert!(!body.error.message.is_empty() && !body.error.request_id.is_empty(), "{case}");
        }
    }
}

#[tokio::test]
async fn callers_without_the_token_and_other_pages_are_refused() {
    let instance = Setup::new(Paced::new(1).free()).with_token().one();
    let guarded = [
        "/api/v1/sessions",
        "/api/v1/cluster",
        "/api/v1/cluster/state-hash",
        "/api/v1/cluster/backup",
        "/api/v1/maintenance",
        "/v1/models",
        "/api/v1/turns/00",
        "/api/v1/chat/stream?turnId=00",
        "/api/v1/sessions/s/entries",
    ];
    for path in guarded {
        for value in [
            None,
            Some("Bearer x"),
            Some("Bearer "),
            Some("Basic eDp5"),
            Some("s3cret-token"),
            Some("Bearer s3cret-tokem"),
        ] {
            let mut request = Request::get(path);
            if let Some(value) = value {
                request = request.header(AUTHORIZATION, value);
            }
            let response = instance.send(request, Body::empty()).await;
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path} {value:?}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
        }
    }
    let with_origin = async |origin: &str, method: Method| {
        let request = Request::builder()
            .method(method)
            .uri("/api/v1/sessions")
            .header(ORIGIN, origin)
            .header("access-control-request-method", "GET")
            .header(AUTHORIZATION, format!("Bearer {TOKEN}"));
        instance.send(request, Body::empty()).await
    };
    assert_eq!(with_origin("http://localhost:3000", Method::GET).await.status(), StatusCode::OK);
    let allowed = with_origin("https://chat.example", Method::GET).await;
    assert_eq!(
        (allowed.status(), allowed.headers()["access-control-allow-origin"].clone()),
        (StatusCode::OK, "https://chat.example".parse().unwrap())
    );
    assert_eq!(with_origin("https://chat.example", Method::OPTIONS).await.status(), StatusCode::NO_CONTENT);
    for origin in ["null", "https://evil.example", "http://localhost:3001", "https://chat.example.evil.example"] {
        for method in [Method::GET, Method::OPTIONS] {
            let refused = with_origin(origin, method).await;
            assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{origin}");
            assert!(!refused.headers().contains_key("access-control-allow-origin"));
        }
    }
    // Nothing was asked of the page's own files.
    let operator = operator_router(Gateway::clone(&gateway_of(&instance)));
    let request = Request::get("/api/v1/sessions").header(HOST, "localhost").body(Body::empty()).unwrap();
    assert_eq!(operator.oneshot(request).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    let instance = Setup::new(Paced::new(1)).one();
    let gateway = gateway_of(&instance);
    let router = Router::new()
        .route("/boom", get(async || -> StatusCode { panic!("planted") }))
        .layer(from_fn_with_state(gateway, envelope::wrap));
    let request = Request::get("/boom").header(HOST, "localhost").body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let error: ErrorBody = serde_json::from_value(body(response).await).unwrap();
    assert_eq!(error.error.code, ErrorCode::Internal);
    assert!(!error.error.request_id.is_empty());
}

#[tokio::test]
async fn the_body_of_a_stranger_at_a_webhook_is_not_read() {
    let instance = Setup::new(Paced::new(1)).one();
    let endless = Body::from_stream(stream::pending::<Result<bytes::Bytes, std::convert::Infallible>>());
    let refused = instance.send(Request::post("/api/v1/webhooks/telegram/default"), endless).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
}
