//! What people set of a session: its label and its model, by compare-and-set where two of them are at it.

use super::*;

const PATH: &str = "/api/v1/sessions/notes";

fn index(response: &Response) -> u64 {
    response.headers()["x-openclaw-index"].to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_label_and_a_model_are_set_one_by_one_and_cleared_by_null() {
    let instance = Setup::new(Paced::new(1).free()).one();
    let first = instance.patch(PATH, json!({"label": "Shopping"}), &[("if-match", "0")]).await;
    assert_eq!(first.status(), StatusCode::OK);
    let revision = index(&first);
    let first = body(first).await;
    assert_eq!(
        (&first["label"], &first["revision"], &first["model"]),
        (&json!("Shopping"), &json!(revision), &Value::Null)
    );
    let read = instance.get(PATH).await;
    assert!(index(&read) >= revision);
    assert_eq!(body(read).await, first);

    let model = body(instance.patch(PATH, json!({"model": "paced/model"}), &[]).await).await;
    assert_eq!((&model["label"], &model["model"]), (&json!("Shopping"), &json!("paced/model")));
    assert!(model["revision"].as_u64().unwrap() > revision);
    let both = body(instance.patch(PATH, json!({"model": null, "label": null}), &[]).await).await;
    assert!(both.get("label").is_none() && both.get("model").is_none(), "{both}");
}

#[tokio::test]
async fn an_update_of_an_unseen_revision_is_refused_and_says_which_it_is() {
    let instance = Setup::new(Paced::new(1).free()).one();
    let absent = instance.patch(PATH, json!({"label": "x"}), &[("if-match", "7")]).await;
    assert_eq!(absent.status(), StatusCode::PRECONDITION_FAILED);
    assert_eq!(instance.get(PATH).await.status(), StatusCode::NOT_FOUND, "what was refused created nothing");
    let revision = index(&instance.patch(PATH, json!({"label": "x"}), &[]).await);
    let stale = instance.patch(PATH, json!({"label": "y"}), &[("if-match", "0")]).await;
    assert_eq!(stale.status(), StatusCode::PRECONDITION_FAILED);
    assert!(index(&stale) > revision, "the refusal has its place in the log too");
    let error = body(stale).await;
    assert_eq!(error["error"]["code"], "precondition_failed");
    assert_eq!(error["error"]["message"], format!("the session is at {revision}, not at 0"));
    let quoted = format!("\"{revision}\"");
    let seen = instance.patch(PATH, json!({"label": "y"}), &[("if-match", &quoted)]).await;
    assert_eq!(seen.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_repeated_update_gets_the_first_answer() {
    let instance = Setup::new(Paced::new(1).free()).one();
    let key = [("idempotency-key", "k"), ("if-match", "0")];
    let first = body(instance.patch(PATH, json!({"label": "x"}), &key).await).await;
    instance.patch(PATH, json!({"label": "y"}), &[]).await;
    assert_eq!(body(instance.patch(PATH, json!({"label": "x"}), &key).await).await, first);
    let other = instance.patch(PATH, json!({"label": null}), &key).await;
    assert_eq!(other.status(), StatusCode::CONFLICT);
    assert_eq!(instance.json(PATH).await["label"], "y");
}

#[tokio::test]
async fn a_session_that_was_labelled_first_is_talked_to_like_any_other() {
    let model = Paced::new(1).free();
    let instance = Setup::new(model.clone()).one();
    instance.patch("/api/v1/sessions/agent:main:main", json!({"label": "x", "model": "paced/other"}), &[]).await;
    let answer = body(instance.post("/api/v1/chat", json!({"message": "hello"})).await).await;
    assert_eq!(answer["model"], "paced/other");
    let session = instance.json("/api/v1/sessions/agent:main:main").await;
    assert_eq!((&session["label"], &session["agentId"]), (&json!("x"), &json!("main")));
    // The chat command changes the same thing.
    let said = instance.post("/api/v1/chat/command", json!({"text": "/model paced/third"})).await;
    assert_eq!(said.status(), StatusCode::OK);
    let after = instance.json("/api/v1/sessions/agent:main:main").await;
    assert_eq!((&after["label"], &after["model"]), (&json!("x"), &json!("paced/third")));
    assert!(after["revision"].as_u64().unwrap() > session["revision"].as_u64().unwrap());
}
