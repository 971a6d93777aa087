use super::*;

#[tokio::test]
async fn a_wrong_token_is_refused_and_counted() {
    let handle = fake(options()).await;
    let (status, _, body) = call(&handle, "wrong", "GET", "/users/@me", Value::Null).await.unwrap();
    assert_eq!((status.as_u16(), body), (401, json!({"message": "401: Unauthorized", "code": 0})));
    assert_eq!(handle.invalid_requests(), 1);
    let (status, headers, me) = call(&handle, TOKEN, "GET", "/users/@me", Value::Null).await.unwrap();
    assert_eq!((status.as_u16(), &me["id"]), (200, &json!(handle.bot())));
    for name in ["limit", "remaining", "reset", "reset-after", "bucket"] {
        assert!(headers.contains_key(format!("x-ratelimit-{name}")), "{name}");
    }
    let (status, _, body) = call(&handle, "none", "GET", "/gateway", Value::Null).await.unwrap();
    assert_eq!((status.as_u16(), body), (200, json!({"url": handle.gateway_url()})));
}

#[tokio::test]
async fn too_many_refusals_ban_the_address() {
    let limits = Limits { invalid: Limit::new(2, Duration::from_secs(1000)), ..Limits::default() };
    let handle = fake(Options { limits, ..options() }).await;
    for _ in 0..2 {
        call(&handle, "wrong", "GET", "/users/@me", Value::Null).await.unwrap();
    }
    let (status, headers, _) = call(&handle, TOKEN, "GET", "/users/@me", Value::Null).await.unwrap();
    assert_eq!(status, 429);
    assert!(headers.contains_key("retry-after") && !headers.contains_key("x-ratelimit-limit"));
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_in_discords_numbering() {
    let handle = fake(Options { limits: generous(), ..options() }).await;
    let channel = handle.channel(handle.guild("home"), "general").unwrap();
    let muted = handle.channel(handle.guild("away"), "rules").unwrap();
    handle.mute(muted, true);
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    handle.refuse_dms(user, true);
    let theirs = handle.say(channel, user, "mine").unwrap();
    let nothing = Id(1);
    let text = json!({"content": "x"});
    let cases = [
        ("POST", format!("/channels/{nothing}/messages"), text.clone(), 404, 10003),
        ("POST", format!("/channels/{muted}/messages"), text.clone(), 403, 50013),
        ("POST", format!("/channels/{muted}/typing"), Value::Null, 403, 50013),
        ("POST", format!("/channels/{dm}/messages"), text.clone(), 403, 50007),
        ("POST", format!("/channels/{channel}/messages"), json!({"content": "x".repeat(2001)}), 400, 50035),
        ("POST", format!("/channels/{channel}/messages"), json!({"content": 1}), 400, 50035),
        ("POST", format!("/channels/{channel}/messages"), json!({"content": " "}), 400, 50006),
        ("POST", format!("/channels/{channel}/messages"), json!({"content": "x", "nonce": "x".repeat(26)}), 400, 50035),
        (
            "POST",
            format!("/channels/{channel}/messages"),
            json!({"content": "x", "message_reference": {"message_id": nothing}}),
            400,
            50035,
        ),
        ("POST", "/users/@me/channels".to_owned(), json!({"recipient_id": nothing}), 400, 50033),
        ("PATCH", format!("/channels/{channel}/messages/{nothing}"), text.clone(), 404, 10008),
        ("PATCH", format!("/channels/{channel}/messages/{theirs}"), text.clone(), 403, 50005),
        ("POST", format!("/channels/{dm}/messages/{theirs}/threads"), json!({"name": "x"}), 400, 50024),
        ("POST", format!("/channels/{channel}/messages/{theirs}/threads"), json!({"name": ""}), 400, 50035),
        ("GET", format!("/channels/{nothing}"), Value::Null, 404, 10003),
        ("GET", format!("/users/{nothing}"), Value::Null, 404, 10013),
        ("GET", "/nowhere".to_owned(), Value::Null, 404, 0),
    ];
    for (method, path, body, status, code) in cases {
        let (got, _, answer) = call(&handle, TOKEN, method, &path, body.clone()).await.unwrap();
        assert_eq!((got.as_u16(), &answer["code"]), (status, &json!(code)), "{method} {path} {body}: {answer}");
    }
    let (_, _, long) = post(&handle, channel, json!({"content": "x".repeat(2001)})).await;
    let error = json!({"code": "BASE_TYPE_MAX_LENGTH", "message": "Must be 2000 or fewer in length."});
    assert_eq!(long["errors"], json!({"content": {"_errors": [error]}}));
    assert_eq!(post(&handle, channel, json!({"content": "ü".repeat(2000)})).await.0, 200);
}

fn generous() -> Limits {
    let many = Limit::new(10_000, Duration::from_secs(1));
    Limits { messages: many, others: many, global: many, ..Limits::default() }
}

#[tokio::test]
async fn an_enforced_nonce_gives_the_message_that_is_there() {
    let handle = fake(options()).await;
    let dm = handle.dm(handle.user("ada")).unwrap();
    let message = |text: &str, enforced: bool| json!({"content": text, "nonce": "n1", "enforce_nonce": enforced});
    let (_, _, first) = post(&handle, dm, message("once", true)).await;
    let (status, _, second) = post(&handle, dm, message("twice", true)).await;
    assert_eq!((status.as_u16(), &second["id"], &second["content"]), (200, &first["id"], &json!("once")));
    assert_eq!(handle.messages(dm).len(), 1);
    let (_, _, third) = post(&handle, dm, message("unasked", false)).await;
    assert_ne!(third["id"], first["id"]);

    let handle = fake(Options { nonce_lifetime: Duration::ZERO, ..options() }).await;
    let dm = handle.dm(handle.user("ada")).unwrap();
    for text in ["once", "after some minutes"] {
        post(&handle, dm, message(text, true)).await;
    }
    assert_eq!(handle.messages(dm).len(), 2);
}

#[tokio::test]
async fn a_full_bucket_says_how_long_to_wait() {
    let of = |requests| Limit::new(requests, Duration::from_secs(1000));
    let limits = Limits { messages: of(1), others: of(2), global: of(4), ..Limits::default() };
    let handle = fake(Options { limits, ..options() }).await;
    let guild = handle.guild("home");
    let (one, two) = (handle.channel(guild, "one").unwrap(), handle.channel(guild, "two").unwrap());
    let text = || json!({"content": "x"});
    assert_eq!(post(&handle, one, text()).await.0, 200);
    let (status, headers, body) = post(&handle, one, text()).await;
    assert_eq!((status.as_u16(), &body["global"]), (429, &json!(false)));
    assert!(body["retry_after"].as_f64().unwrap() > 900.0);
    assert_eq!(
        (&headers["retry-after"], &headers["x-ratelimit-scope"]),
        (&"1000".parse().unwrap(), &"user".parse().unwrap())
    );
    assert!(!headers.contains_key("x-ratelimit-global"));
    assert_eq!(post(&handle, two, text()).await.0, 200, "another channel has another bucket");
    call(&handle, TOKEN, "GET", "/users/@me", Value::Null).await.unwrap();
    let (status, headers, body) = call(&handle, TOKEN, "GET", "/users/@me", Value::Null).await.unwrap();
    assert_eq!((status.as_u16(), &body["global"]), (429, &json!(true)));
    assert_eq!(headers["x-ratelimit-global"], "true");
    assert_eq!(handle.invalid_requests(), 2);
}

fn answers(handle: &Handle) -> Vec<Option<Answer>> {
    let answer = |entry: Recorded| if let What::Request(request) = entry.what { Some(request.answer) } else { None };
    handle.record().into_iter().filter_map(answer).collect()
}

#[tokio::test]
async fn requests_fail_on_demand() {
    let handle = fake(options()).await;
    let dm = handle.dm(handle.user("ada")).unwrap();
    let path = format!("/channels/{dm}/messages");
    let send = async |text: &str| call(&handle, TOKEN, "POST", &path, json!({"content": text})).await;
    let count = || handle.messages(dm).len();

    handle.fail(Route::CreateMessage, 1, Fault::Status(503));
    assert_eq!(send("503").await.unwrap().0, 503);
    let retry_after = Duration::from_millis(1500);
    handle.fail(Route::CreateMessage, 1, Fault::RateLimited { retry_after, global: true });
    let (status, headers, body) = send("429").await.unwrap();
    assert_eq!(
        (status.as_u16(), &body["retry_after"], &headers["retry-after"]),
        (429, &json!(1.5), &"2".parse().unwrap())
    );
    handle.fail(Route::CreateMessage, 1, Fault::CloseBefore);
    assert!(send("unsent").await.is_err());
    assert_eq!(count(), 0);
    handle.fail(Route::CreateMessage, 1, Fault::ActAndClose);
    assert!(send("unknown").await.is_err());
    assert_eq!(count(), 1);
    handle.fail(Route::CreateMessage, 1, Fault::Delay(Duration::from_millis(1)));
    assert_eq!(send("late").await.unwrap().0, 200);
    let expected = [
        Answer::Status(503),
        Answer::Status(429),
        Answer::Cut { acted: false },
        Answer::Cut { acted: true },
        Answer::Status(200),
    ];
    assert_eq!(answers(&handle), expected.map(Some));

    handle.fail(Route::GetCurrentUser, 1, Fault::Hang);
    let mut asked = std::pin::pin!(call(&handle, TOKEN, "GET", "/users/@me", Value::Null));
    let asking = handle.wait(SOON, "request under way", |handle| answers(handle).contains(&None).then_some(()));
    tokio::select! {
        answer = &mut asked => panic!("{answer:?}"),
        asking = asking => asking.unwrap(),
    }
    handle.fail(Route::Connect, 1, Fault::Status(503));
    assert!(connect_async(handle.gateway_url()).await.is_err());
    handle.fail(Route::Connect, 1, Fault::CloseBefore);
    assert!(connect_async(handle.gateway_url()).await.is_err());
    Raw::ready(&handle, ALL).await;
}

#[tokio::test]
async fn a_client_that_gives_up_is_recorded_so() {
    let handle = fake(options()).await;
    handle.fail(Route::GetCurrentUser, 1, Fault::Hang);
    {
        let mut asked = std::pin::pin!(call(&handle, TOKEN, "GET", "/users/@me", Value::Null));
        let asking = handle.wait(SOON, "request under way", |handle| answers(handle).contains(&None).then_some(()));
        tokio::select! {
            answer = &mut asked => panic!("{answer:?}"),
            asking = asking => asking.unwrap(),
        }
    }
    let abandoned = |handle: &Handle| (answers(handle) == [Some(Answer::Abandoned)]).then_some(());
    handle.wait(SOON, "abandoned request", abandoned).await.unwrap();
}

#[tokio::test]
async fn messages_are_listed_newest_first() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let ids: Vec<Id> = (0..5).map(|n| handle.say(dm, user, &n.to_string()).unwrap()).collect();
    let list = async |query: &str| {
        let path = format!("/channels/{dm}/messages{query}");
        let (_, _, body) = call(&handle, TOKEN, "GET", &path, Value::Null).await.unwrap();
        body.as_array().unwrap().iter().map(|one| one["content"].as_str().unwrap().to_owned()).collect::<String>()
    };
    assert_eq!(list("").await, "43210");
    assert_eq!(list("?limit=2").await, "43");
    assert_eq!(list(&format!("?before={}&limit=2", ids[3])).await, "21");
    assert_eq!(list(&format!("?after={}&limit=2", ids[1])).await, "32");
}

#[tokio::test]
async fn the_bot_edits_deletes_types_and_opens_threads() {
    let handle = fake(options()).await;
    let channel = handle.channel(handle.guild("home"), "general").unwrap();
    let said = handle.say(channel, handle.user("ada"), "hi").unwrap();
    let (_, _, sent) = post(&handle, channel, json!({"content": "1", "message_reference": {"message_id": said}})).await;
    let sent = sent["id"].as_str().unwrap();
    let path = format!("/channels/{channel}/messages/{sent}");
    for text in ["2", "3"] {
        assert_eq!(call(&handle, TOKEN, "PATCH", &path, json!({"content": text})).await.unwrap().0, 200);
    }
    let message = handle.wait_for_message(channel, SOON, |message| message.content == "3").await.unwrap();
    assert_eq!((message.earlier.join(","), message.reference, message.by_bot), ("1,2".to_owned(), Some(said), true));
    let (status, ..) = call(&handle, TOKEN, "POST", &format!("/channels/{channel}/typing"), Value::Null).await.unwrap();
    assert_eq!((status.as_u16(), handle.typing(channel)), (204, 1));
    let path_of_thread = format!("/channels/{channel}/messages/{said}/threads");
    let (status, _, thread) = call(&handle, TOKEN, "POST", &path_of_thread, json!({"name": "aside"})).await.unwrap();
    assert_eq!((status.as_u16(), &thread["id"]), (201, &json!(said)));
    assert_eq!(post(&handle, said, json!({"content": "in here"})).await.0, 200);
    let (_, _, again) = call(&handle, TOKEN, "POST", &path_of_thread, json!({"name": "aside"})).await.unwrap();
    assert_eq!(again["code"], 160_004);
    assert_eq!(call(&handle, TOKEN, "DELETE", &path, Value::Null).await.unwrap().0, 204);
    assert_eq!(handle.messages(channel).len(), 1);
}
