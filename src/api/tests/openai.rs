//! OpenAI's interface.

use super::*;

#[tokio::test]
async fn openai_clients_are_served_without_state() {
    let model = Paced::new(3).free();
    let instance = Setup::new(model.clone()).one();
    let request = json!({
        "model": "openclaw", "temperature": 0.5, "top_p": 1, "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
    });
    let answer = body(instance.post("/v1/chat/completions", request.clone()).await).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"], json!({"role": "assistant", "content": model.text()}));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"], json!({"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}));
    assert_eq!(model.prompts.lock()[0].messages[1].text, "a\nb");

    let mut streamed = request;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let chunks = chunks(instance.post("/v1/chat/completions", streamed).await).await;
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(content(&chunks), model.text());
    let usage = &chunks[chunks.len() - 1];
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(6)));
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "stop");
    // None of it was stored.
    assert_eq!(instance.json("/api/v1/sessions").await["sessions"], json!([]));

    let failed = instance
        .post(
            "/v1/chat/completions",
            json!({"model": "paced/broken", "stream": true, "messages": [{"role": "user", "content": "x"}]}),
        )
        .await;
    assert_eq!(failed.status(), StatusCode::BAD_REQUEST);
    assert_eq!(body(failed).await["error"]["type"], "invalid_request_error");
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_by_its_place() {
    let instance = Setup::new(Paced::new(1).free()).one();
    let parts =
        json!([{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "data:"}}]);
    for user in [json!(null), json!("ann")] {
        let request = json!({"model": "openclaw", "user": user, "messages": [{"role": "user", "content": parts}]});
        let refused = instance.post("/v1/chat/completions", request).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        assert!(!refused.headers().contains_key("x-should-retry"), "nothing was committed");
        let message = body(refused).await["error"]["message"].to_string();
        assert!(message.contains("messages[0].content[1].type is") && message.contains("image_url"), "{message}");
    }
}

/// Its clients repeat by themselves, without a key, what failed after it was committed.
#[tokio::test]
async fn openai_clients_are_told_not_to_say_twice_what_is_committed() {
    let instance = Setup::new(Paced::new(1)).one();
    let request = json!({"model": "openclaw", "user": "ann", "messages": [{"role": "user", "content": "x"}]});
    let cancelled = async {
        let turn = loop {
            let session = instance.get("/api/v1/sessions/agent:main:openai-user:ann").await;
            if session.status() == StatusCode::OK
                && let Some(turn) = body(session).await["runningTurn"].as_str()
            {
                break turn.to_owned();
            }
            tokio::task::yield_now().await;
        };
        instance.post(&format!("/api/v1/turns/{turn}/cancel"), json!({})).await
    };
    let (answer, _) = tokio::join!(instance.post("/v1/chat/completions", request), cancelled);
    assert_eq!(answer.status(), StatusCode::CONFLICT);
    assert_eq!(answer.headers()["x-should-retry"], "false");
}

#[tokio::test]
async fn an_instance_that_stops_ends_completions_with_a_word() {
    let model = Paced::new(2);
    let instance = Setup::new(model.clone()).one();
    let request =
        |stream| json!({"model": "openclaw", "stream": stream, "messages": [{"role": "user", "content": "hello"}]});
    model.permits.add_permits(1);
    let begun = instance.post("/v1/chat/completions", request(true)).await;
    assert_eq!(begun.status(), StatusCode::OK);
    let (waits, ()) =
        tokio::join!(instance.post("/v1/chat/completions", request(false)), async { instance.stopping.cancel() });
    assert_eq!(waits.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body(waits).await["error"]["code"], "draining");
    let text = String::from_utf8(bytes(begun).await.to_vec()).unwrap();
    assert!(text.contains("w0é") && text.contains("\"code\":\"draining\""), "{text}");
}

/// The data lines of a streamed completion; the last must be `[DONE]`.
async fn chunks(response: Response) -> Vec<Value> {
    assert_eq!(response.status(), StatusCode::OK);
    let text = String::from_utf8(bytes(response).await.to_vec()).unwrap();
    let mut lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(lines.pop(), Some("[DONE]"), "{text}");
    lines.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn content(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn openai_clients_with_a_user_have_a_session() {
    let model = Paced::new(2).free();
    let instance = Setup::new(model.clone()).one();
    let request =
        |text: &str| json!({"model": "openclaw/ops", "user": "ann", "messages": [{"role": "user", "content": text}]});
    for text in ["one", "two"] {
        let answer = instance.post("/v1/chat/completions", request(text)).await;
        assert!(answer.headers().contains_key("x-openclaw-index"));
        assert_eq!(body(answer).await["choices"][0]["message"]["content"], model.text());
    }
    let session = instance.json("/api/v1/sessions/agent:ops:openai-user:ann").await;
    assert_eq!((&session["headSeq"], &session["agentId"]), (&json!(4), &json!("ops")));
    let mut streamed = request("three");
    streamed["stream"] = json!(true);
    let in_session = |request: &Value, key: &'static str| {
        let request = request.clone();
        let instance = &instance;
        async move { instance.post_with("/v1/chat/completions", request, &[("x-openclaw-session-key", key)]).await }
    };
    let response = in_session(&streamed, "agent:ops:x").await;
    assert_eq!(content(&chunks(response).await), model.text());
    assert_eq!(instance.json("/api/v1/sessions/agent:ops:x").await["headSeq"], 2);
    // The model names the agent of a session that does not, and contradicts one that does.
    assert_eq!(in_session(&request("four"), "plain").await.status(), StatusCode::OK);
    assert_eq!(instance.json("/api/v1/sessions/plain").await["agentId"], "ops");
    assert_eq!(in_session(&request("five"), "agent:main:x").await.status(), StatusCode::BAD_REQUEST);
    streamed["model"] = json!("openclaw");
    assert_eq!(content(&chunks(in_session(&streamed, "agent:main:x").await).await), model.text());
}

#[tokio::test]
async fn openai_models_are_listed() {
    let instance = Setup::new(Paced::new(1)).one();
    let list = instance.json("/v1/models").await;
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert!(["openclaw", "openclaw/ops", "paced/model"].iter().all(|id| ids.contains(id)), "{ids:?}");
    assert_eq!(instance.json("/v1/models/paced/model").await["owned_by"], "paced");
    let unknown = instance.get("/v1/models/none").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    assert_eq!(body(unknown).await["error"]["type"], "invalid_request_error");
}
