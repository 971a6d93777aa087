//! What becomes of a message: accepted once, answered in order, limited, cancelled.

use std::collections::HashSet;

use futures::future::join_all;
use tokio::time::Instant;

use super::*;
use crate::store::memory::Fault;

#[tokio::test]
async fn a_chat_answers_with_the_committed_reply() {
    let model = Paced::new(3).free();
    let instance = Setup::new(model.clone()).one();
    let response = instance.post_with("/api/v1/chat", json!({"message": "hello"}), &[("x-request-id", "my-id")]).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-openclaw-instance"], "node-1");
    assert_eq!(response.headers()["x-request-id"], "my-id");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let index = response.headers()["x-openclaw-index"].to_str().unwrap().to_owned();
    let answer = body(response).await;
    assert_eq!(answer["sessionKey"], "agent:main:main");
    assert_eq!(answer["reply"]["text"], model.text());
    assert_eq!(answer["usage"], json!({"inputTokens": 3, "outputTokens": 3, "totalTokens": 6}));
    assert_eq!((&answer["model"], &answer["instanceId"]), (&json!("paced/model"), &json!("node-1")));

    let request = Request::get("/api/v1/sessions/agent:main:main/entries").header("x-openclaw-min-index", index);
    let entries = body(instance.send(request, Body::empty()).await).await;
    assert_eq!(entries["headSeq"], 2);
    assert_eq!((&entries["entries"][0]["text"], &entries["entries"][0]["role"]), (&json!("hello"), &json!("user")));
    assert_eq!(entries["entries"][1]["text"], model.text());
    assert_eq!(entries["entries"][1]["id"], answer["reply"]["entryId"]);
    let turn = instance.json(&format!("/api/v1/turns/{}", answer["turnId"].as_str().unwrap())).await;
    assert_eq!((&turn["state"], &turn["attempt"], &turn["runner"]), (&json!("done"), &json!(1), &json!("node-1")));
    let session = instance.json("/api/v1/sessions/Agent:Main:Main?consistency=stale").await;
    assert_eq!((&session["turnCount"], &session["usage"]["totalTokens"]), (&json!(1), &json!(6)));

    // The next turn knows the conversation.
    instance.post("/api/v1/chat", json!({"message": "and now?"})).await;
    let prompts = model.prompts.lock();
    let texts: Vec<_> = prompts[1].messages.iter().map(|message| message.text.clone()).collect();
    assert_eq!(texts, ["hello".to_owned(), model.text(), "and now?".to_owned()]);
}

#[tokio::test]
async fn a_repeated_key_gives_the_first_answer() {
    let model = Paced::new(2).free();
    let instance = Setup::new(model.clone()).one();
    let key = [("idempotency-key", "k1")];
    let first = body(instance.post_with("/api/v1/chat", json!({"message": "x"}), &key).await).await;
    let again =
        instance.post_with("/api/v1/chat", json!({"message": "x", "sessionKey": "AGENT:main:main"}), &key).await;
    assert_eq!(body(again).await, first);
    let followed =
        SseClient::new(instance.post_with("/api/v1/chat/stream", json!({"message": "x"}), &key).await).all().await;
    assert_eq!(followed.last().unwrap().data["entryId"], first["reply"]["entryId"]);
    let other = instance.post_with("/api/v1/chat", json!({"message": "y"}), &key).await;
    assert_eq!(other.status(), StatusCode::CONFLICT);
    assert_eq!(body(other).await["error"]["code"], "idempotency_key_reused");
    assert_eq!(model.prompts.lock().len(), 1);

    // At once, many times: one turn, one answer.
    let key = [("idempotency-key", "k2")];
    let all = join_all((0..20).map(|_| instance.post_with("/api/v1/chat", json!({"message": "z"}), &key))).await;
    let mut answers = HashSet::new();
    for response in all {
        answers.insert(body(response).await.to_string());
    }
    assert_eq!(answers.len(), 1);
    assert_eq!(model.prompts.lock().len(), 2);

    let path = "/api/v1/sessions/notes/entries";
    let append = json!({"role": "user", "text": "note"});
    let first = instance.post_with(path, append.clone(), &[("idempotency-key", "k3"), ("if-match", "0")]).await;
    assert_eq!(first.status(), StatusCode::CREATED);
    let first = body(first).await;
    let again = instance.post_with(path, append.clone(), &[("idempotency-key", "k3"), ("if-match", "0")]).await;
    assert_eq!(body(again).await, first);
    let stale = instance.post_with(path, append, &[("if-match", "\"0\"")]).await;
    assert_eq!(stale.status(), StatusCode::PRECONDITION_FAILED);
}

#[tokio::test]
async fn a_lost_answer_is_found_again_with_the_key() {
    let model = Paced::new(2).free();
    let instance = Setup::new(model.clone()).one();
    instance.store.inject([Fault::NoQuorum]);
    let key = [("idempotency-key", "k")];
    let refused = instance.post_with("/api/v1/chat", json!({"message": "x"}), &key).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    instance.store.inject([Fault::LostAnswer]);
    let unknown = instance.post_with("/api/v1/chat", json!({"message": "x"}), &key).await;
    assert_eq!(unknown.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(body(unknown).await["error"]["code"], "effect_unknown");
    let found = instance.post_with("/api/v1/chat", json!({"message": "x"}), &key).await;
    assert_eq!(found.status(), StatusCode::OK);
    let entries = instance.json("/api/v1/sessions/agent:main:main/entries").await;
    assert_eq!(entries["headSeq"], 2);
    assert_eq!(model.prompts.lock().len(), 1);
}

#[tokio::test]
async fn a_reply_whose_commit_is_in_doubt_is_recorded_once() {
    for faults in [vec![Fault::NoQuorum; 3], vec![Fault::LostAnswer], vec![Fault::LostAnswer, Fault::NoQuorum]] {
        let model = Paced::new(1);
        let instance = Setup::new(model.clone()).one();
        let client = SseClient::new(instance.post("/api/v1/chat/stream", json!({"message": "x"})).await);
        instance.store.inject(faults);
        model.permits.add_permits(1);
        let events = client.all().await;
        assert_eq!(events.last().unwrap().name, "done");
        let entries = instance.json("/api/v1/sessions/agent:main:main/entries").await;
        assert_eq!(entries["headSeq"], 2);
    }
}

#[tokio::test]
async fn a_session_answers_in_the_order_of_acceptance() {
    let model = Paced::new(1);
    let instance = Setup::new(model.clone()).one();
    let texts: Vec<_> = (0..15).map(|n| format!("message {n}")).collect();
    let streams =
        join_all(texts.iter().map(|text| instance.post("/api/v1/chat/stream", json!({"message": text})))).await;
    model.permits.add_permits(1000);
    let mut done = Vec::new();
    for response in streams {
        let events = SseClient::new(response).all().await;
        assert_eq!(events.last().unwrap().name, "done");
        done.push(events.last().unwrap().data["entryId"].as_str().unwrap().to_owned());
    }
    let entries = instance.json("/api/v1/sessions/agent:main:main/entries?limit=100").await;
    let entries = entries["entries"].as_array().unwrap();
    let of = |role: &str| {
        let found = entries.iter().filter(|entry| entry["role"] == role);
        found.map(|entry| entry["turnId"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of("user").len(), 15);
    assert_eq!(of("user"), of("assistant"));
    assert_eq!(done.iter().collect::<HashSet<_>>().len(), 15);
    // Each prompt ends with its own message and holds no later one.
    for (n, prompt) in model.prompts.lock().iter().enumerate() {
        assert_eq!(prompt.messages.len(), 2 * n + 1);
    }
}

#[tokio::test]
async fn limits_are_answers() {
    let model = Paced::new(1);
    let mut setup = Setup::new(model.clone());
    setup.max_queued = 2;
    setup.config.limits.max_streams = 3;
    setup.config.limits.max_concurrent_requests = 1;
    setup.config.limits.chat_request = Duration::from_millis(300);
    let instance = setup.one();
    let open = join_all((0..3).map(|_| instance.post("/api/v1/chat/stream", json!({"message": "x"})))).await;
    let full = instance.post("/api/v1/chat/stream", json!({"message": "x"})).await;
    assert_eq!(
        (full.status(), full.headers()["retry-after"].clone()),
        (StatusCode::TOO_MANY_REQUESTS, "1".parse().unwrap())
    );
    let queue = instance.post("/api/v1/chat", json!({"message": "x"})).await;
    assert_eq!(queue.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(body(queue).await["error"]["message"].as_str().unwrap().contains("waiting"));

    // One request waits for its model; meanwhile there is no other place, but for operators.
    let waiting = instance.post("/api/v1/chat", json!({"message": "x", "sessionKey": "other"}));
    let meanwhile = async {
        let until = Instant::now() + SOON;
        while instance.get("/api/v1/sessions").await.status() != StatusCode::TOO_MANY_REQUESTS {
            assert!(Instant::now() < until);
            tokio::task::yield_now().await;
        }
        assert_eq!(instance.get("/api/v1/cluster").await.status(), StatusCode::OK);
        assert_eq!(instance.get("/readyz").await.status(), StatusCode::OK);
    };
    let (late, ()) = tokio::join!(waiting, meanwhile);
    assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
    let error = body(late).await;
    assert_eq!(error["error"]["code"], "effect_unknown");
    assert!(error["error"]["message"].as_str().unwrap().contains("turn "));
    // A stream that has lived its time ends where it can be continued.
    for response in open {
        let events = SseClient::new(response).all().await;
        assert!(events.iter().all(|event| event.name == "start"), "{events:?}");
    }
    assert_eq!(instance.metrics.http_streams.get(), 0);
}

#[tokio::test]
async fn turns_can_be_cancelled_and_fail_with_words() {
    let model = Paced::new(3);
    let instance = Setup::new(model.clone()).one();
    let mut client = SseClient::new(instance.post("/api/v1/chat/stream", json!({"message": "x"})).await);
    let turn = client.next().await.unwrap().data["turnId"].as_str().unwrap().to_owned();
    let cancelled = instance.post(&format!("/api/v1/turns/{turn}/cancel"), json!({})).await;
    assert_eq!(body(cancelled).await["state"], "cancelled");
    let events = client.all().await;
    assert_eq!(events.last().unwrap().data["code"], "cancelled");
    let again = instance.post(&format!("/api/v1/turns/{turn}/cancel"), json!({})).await;
    assert_eq!(again.status(), StatusCode::OK);

    let failed = instance.post("/api/v1/chat", json!({"message": "x", "model": "paced/broken"})).await;
    // Not a 400, which would say that nothing was done: the message is part of the session.
    assert_eq!(failed.status(), StatusCode::BAD_GATEWAY);
    assert!(body(failed).await["error"]["message"].as_str().unwrap().contains("no such luck"));
    let events =
        SseClient::new(instance.post("/api/v1/chat/stream", json!({"message": "x", "model": "paced/broken"})).await);
    let last = events.all().await.pop().unwrap();
    assert_eq!(last.name, "error");
    assert!(last.data["message"].as_str().unwrap().contains("no such luck"));

    model.permits.add_permits(10);
    let done = body(instance.post("/api/v1/chat", json!({"message": "x"})).await).await;
    let late = instance.post(&format!("/api/v1/turns/{}/cancel", done["turnId"].as_str().unwrap()), json!({})).await;
    assert_eq!(late.status(), StatusCode::CONFLICT);
}

#[tokio::test]
async fn sessions_are_listed_reset_and_deleted() {
    let instance = Setup::new(Paced::new(1).free()).one();
    for n in 0..5 {
        instance.post("/api/v1/chat", json!({"message": "x", "sessionKey": format!("s{n}")})).await;
    }
    let mut keys = Vec::new();
    let mut path = "/api/v1/sessions?limit=2".to_owned();
    loop {
        let page = instance.json(&path).await;
        let sessions = page["sessions"].as_array().unwrap();
        assert!(sessions.len() <= 2);
        keys.extend(sessions.iter().map(|session| session["sessionKey"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["nextCursor"].as_str() else { break };
        path = format!("/api/v1/sessions?limit=2&cursor={cursor}");
    }
    assert_eq!(keys, ["s0", "s1", "s2", "s3", "s4"]);
    let reset = body(instance.post("/api/v1/sessions/s1/reset", json!({})).await).await;
    assert_eq!(reset, json!({"sessionKey": "s1", "resetSeq": 2}));
    let page = instance.json("/api/v1/sessions/s1/entries?after=1&limit=1").await;
    assert_eq!((page["entries"][0]["seq"].as_u64(), page["headSeq"].as_u64()), (Some(2), Some(2)));
    let deleted = instance.send(Request::delete("/api/v1/sessions/s1"), Body::empty()).await;
    assert_eq!(body(deleted).await, json!({"sessionKey": "s1", "entryCount": 2}));
    assert_eq!(instance.get("/api/v1/sessions/s1").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(instance.get("/api/v1/sessions/s1/entries").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn chat_commands_are_those_of_every_channel() {
    let instance = Setup::new(Paced::new(2).free()).one();
    let command = async |text: &str| {
        body(instance.post("/api/v1/chat/command", json!({"text": text, "sessionKey": "agent:main:web"})).await).await
    };
    assert_eq!(command("/retry").await["reply"], "There is nothing to retry.");
    instance.post("/api/v1/chat", json!({"message": "hello", "sessionKey": "agent:main:web"})).await;
    let status = command("/status").await["reply"].as_str().unwrap().to_owned();
    assert!(status.contains("Messages: 2") && status.contains("Model: paced/model"), "{status}");
    let model = command("/model echo/echo").await;
    assert_eq!(model, json!({"sessionKey": "agent:main:web", "reply": "The model is echo/echo from now on."}));
    assert!(command("/help").await["reply"].as_str().unwrap().contains("/retry"));
    // What is for the model comes back.
    assert_eq!(command("/new and now?").await["message"], "and now?");
    assert_eq!(command("/usr/bin/env is a path").await["message"], "/usr/bin/env is a path");
    assert!(command("/status").await["reply"].as_str().unwrap().contains("Messages: 0"));
    let refused = instance.post("/api/v1/chat/command", json!({"text": " "})).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
}
