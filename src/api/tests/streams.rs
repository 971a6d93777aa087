//! Streams: every position, on any instance, however slow the reader.

use openclaw_proto::ids::StreamPosition;

use super::*;

/// The text that a client holds after these events: `restart` voids what came before.
fn text(events: &[SseEvent]) -> String {
    let mut text = String::new();
    for event in events {
        match event.name.as_str() {
            "delta" => text.push_str(event.data["text"].as_str().unwrap()),
            "restart" => text.clear(),
            _ => {}
        }
    }
    text
}

async fn resume(instance: &Instance, after: &str) -> SseClient {
    let request = Request::get("/api/v1/chat/stream").header("Last-Event-ID", after);
    SseClient::new(instance.send(request, Body::empty()).await)
}

#[tokio::test]
async fn a_stream_begins_with_start_and_ends_with_done() {
    let model = Paced::new(5).free();
    let instance = Setup::new(model.clone()).one();
    let response = instance.post("/api/v1/chat/stream", json!({"message": "hi", "user": "bob"})).await;
    assert!(response.headers().contains_key("x-openclaw-index"));
    let events = SseClient::new(response).all().await;
    assert_eq!(events[0].name, "start");
    assert_eq!(events[0].data["sessionKey"], "agent:main:openai-user:bob");
    assert_eq!(text(&events), model.text());
    let last = events.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["text"]), ("done", &json!(model.text())));
    assert!(last.data["entryId"].is_string() && last.data["usage"]["outputTokens"] == 5);
    let turn = events[0].data["turnId"].as_str().unwrap();
    for event in &events {
        let position: StreamPosition = event.id.parse().unwrap();
        assert_eq!((position.turn.as_str(), position.attempt), (turn, 1));
    }
}

/// Drops the stream at every position, resumes it on this or another instance, and puts both parts together.
#[tokio::test]
async fn a_stream_continues_at_every_position_on_any_instance() {
    const WORDS: usize = 12;
    for resume_on in [0, 1] {
        for keep in 0..=WORDS {
            let model = Paced::new(WORDS);
            let instances = Setup::new(model.clone()).cluster(2);
            let mut client = SseClient::new(instances[0].post("/api/v1/chat/stream", json!({"message": "go"})).await);
            let mut seen = vec![client.next().await.unwrap()];
            for _ in 0..keep {
                model.permits.add_permits(1);
                seen.push(client.next().await.unwrap());
            }
            drop(client);
            let last = seen.last().unwrap().id.clone();
            assert!(last.ends_with(&format!(".1-{keep}")), "{last}");
            let resumed = resume(&instances[resume_on], &last).await;
            model.permits.add_permits(WORDS - keep);
            let rest = resumed.all().await;
            assert!(rest.iter().all(|event| event.name != "restart" && event.name != "start"), "{rest:?}");
            assert_eq!(rest.last().unwrap().name, "done");
            seen.extend(rest);
            assert_eq!(text(&seen), model.text(), "after {keep} on instance {resume_on}");

            // Over, but still in memory on the runner: the same again, from any position.
            let again = resume(&instances[resume_on], &last).await.all().await;
            assert_eq!(text(&seen[..=keep]) + &text(&again), model.text());
            assert!(again.iter().all(|event| event.name != "restart"), "{again:?}");
        }
    }
}

#[tokio::test]
async fn a_finished_turn_is_read_from_the_committed_reply() {
    let model = Paced::new(4).free();
    let limits = live::Limits { linger: Duration::ZERO, ..live::Limits::default() };
    let instances = Setup { live: limits, ..Setup::new(model.clone()) }.cluster(2);
    let events = SseClient::new(instances[0].post("/api/v1/chat/stream", json!({"message": "go"})).await).all().await;
    let turn = events[0].data["turnId"].as_str().unwrap().to_owned();
    for instance in &instances {
        let path = format!("/api/v1/chat/stream?turnId={turn}");
        let fresh = SseClient::new(instance.get(&path).await).all().await;
        let names: Vec<_> = fresh.iter().map(|event| event.name.as_str()).collect();
        assert_eq!((names, text(&fresh)), (vec!["start", "delta", "done"], model.text()));
        // Whoever has all of it gets only the end; whoever has a part of it that nobody remembers begins again.
        for id in [&fresh[1].id, &fresh[2].id, &events.last().unwrap().id] {
            let names: Vec<_> = resume(instance, id).await.all().await.into_iter().map(|event| event.name).collect();
            assert_eq!(names, ["done"]);
        }
        let partial = resume(instance, &format!("{turn}.1-2")).await.all().await;
        let names: Vec<_> = partial.iter().map(|event| event.name.as_str()).collect();
        assert_eq!((names, text(&partial)), (vec!["restart", "delta", "done"], model.text()));
    }
}

#[tokio::test]
async fn a_reader_that_is_slow_gets_everything_later_and_holds_nobody_up() {
    let model = Paced::new(2000);
    let instance = Setup::new(model.clone()).one();
    let mut slow = SseClient::new(instance.post("/api/v1/chat/stream", json!({"message": "go"})).await);
    let start = slow.next().await.unwrap();
    model.permits.add_permits(2000);
    // Another reader sees the end while the slow one has read nothing.
    let fast = resume(&instance, &start.id).await.all().await;
    assert_eq!(text(&fast), model.text());
    let late = slow.all().await;
    assert_eq!(text(&late), model.text());
    assert!(late.len() < 10, "{} events were kept for it", late.len());
}

#[tokio::test]
async fn another_instance_takes_over_and_readers_are_told() {
    let model = Paced::new(6);
    let instances = Setup::new(model.clone()).cluster(3);
    let mut local = SseClient::new(instances[0].post("/api/v1/chat/stream", json!({"message": "go"})).await);
    let mut seen = vec![local.next().await.unwrap()];
    let mut remote = resume(&instances[1], &seen[0].id).await;
    let mut seen_there = Vec::new();
    model.permits.add_permits(2);
    while text(&seen) != "w0é w1é " {
        seen.push(local.next().await.unwrap());
    }
    while text(&seen_there) != "w0é w1é " {
        seen_there.push(remote.next().await.unwrap());
    }
    instances[0].kill();
    model.permits.add_permits(100);
    seen_there.extend(remote.all().await);
    let restarts: Vec<_> = seen_there.iter().filter(|event| event.name == "restart").collect();
    assert_eq!(restarts.len(), 1, "{seen_there:?}");
    assert_eq!(restarts[0].data, json!({"attempt": 2}));
    assert_eq!(text(&seen_there), model.text());
    assert_eq!(seen_there.last().unwrap().name, "done");

    // A reader of the first attempt continues with the second.
    let last = seen.last().unwrap().id.clone();
    seen.extend(resume(&instances[2], &last).await.all().await);
    assert_eq!(text(&seen), model.text());
    assert!(seen.iter().any(|event| event.name == "restart"));
    let turn = instances[1].json(&format!("/api/v1/turns/{}", seen[0].data["turnId"].as_str().unwrap())).await;
    assert_eq!((&turn["attempt"], &turn["state"]), (&json!(2), &json!("done")));
    let entries = instances[1].json("/api/v1/sessions/agent:main:main/entries").await;
    assert_eq!(entries["headSeq"], 2);
}
