use super::*;

#[tokio::test]
async fn a_session_begins_with_ready_and_its_guilds() {
    let handle = fake(options()).await;
    let guild = handle.guild("home");
    let channel = handle.channel(guild, "general").unwrap();
    let (mut raw, ready) = Raw::ready(&handle, ALL).await;
    assert_eq!(ready["user"]["id"], json!(handle.bot()));
    assert_eq!(ready["guilds"], json!([{"id": guild, "unavailable": true}]));
    assert_eq!(ready["resume_gateway_url"], handle.resume_gateway_url());
    assert_eq!(raw.event("GUILD_CREATE").await["channels"][0]["id"], json!(channel));
    let user = handle.user("ada");
    let said = handle.say(channel, user, "hello").unwrap();
    let message = raw.event("MESSAGE_CREATE").await;
    assert_eq!((&message["id"], &message["content"], raw.seq), (&json!(said), &json!("hello"), 3));
    assert_eq!((&message["guild_id"], &message["author"]["id"]), (&json!(guild), &json!(user)));
    let entry = handle.wait_for_entry(SOON, |entry| matches!(entry.what, What::Dispatch { seq: 3, .. })).await.unwrap();
    assert_eq!(entry.what, What::Dispatch { seq: 3, kind: "MESSAGE_CREATE", about: Some(said) });
    assert_eq!((entry.peer, entry.session.as_deref()), (raw.address(), ready["session_id"].as_str()));
}

#[tokio::test]
async fn a_resumed_session_gets_what_it_missed_and_nothing_twice() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let (mut raw, ready) = Raw::ready(&handle, ALL).await;
    handle.say(dm, user, "seen").unwrap();
    raw.event("MESSAGE_CREATE").await;
    let seq = raw.seq;
    drop(raw);
    handle.wait_for_sessions(0, SOON).await.unwrap();
    handle.say(dm, user, "missed").unwrap();
    let mut raw = Raw::resume(&handle, &ready["session_id"], seq).await;
    assert_eq!(raw.event("MESSAGE_CREATE").await["content"], "missed");
    raw.event("RESUMED").await;
    handle.say(dm, user, "new").unwrap();
    assert_eq!(raw.event("MESSAGE_CREATE").await["content"], "new");
    let resumed = |entry: &Recorded| matches!(entry.what, What::Resumed { replayed: 1, .. });
    handle.wait_for_entry(SOON, resumed).await.unwrap();
    let at = |entry: &Recorded| matches!(entry.what, What::Connected { door: Door::Resume, .. });
    assert_eq!(handle.wait_for_entry(SOON, at).await.unwrap().peer, raw.address());
    assert_eq!(handle.overlaps(|peer| peer).unwrap(), [], "one came after the other");
}

#[tokio::test]
async fn a_client_that_says_goodbye_ends_its_session() {
    for (code, resumable) in [(1000, false), (1001, false), (4000, true), (3000, true)] {
        let handle = fake(options()).await;
        let (raw, ready) = Raw::ready(&handle, ALL).await;
        raw.close(code).await;
        let closed = What::Closed { code: Some(code), by: By::Client };
        handle.wait_for_entry(SOON, |entry| entry.what == closed).await.unwrap();
        let mut raw = Raw::resume(&handle, &ready["session_id"], 1).await;
        let answer = raw.next().await;
        let expected = if resumable { json!("RESUMED") } else { Value::Null };
        assert_eq!(answer["t"], expected, "{code}: {answer}");
        if !resumable {
            assert_eq!(answer, json!({"op": 9, "d": false}));
            raw.identify(ALL, [0, 1]).await;
            raw.event("READY").await;
        }
    }
}

#[tokio::test]
async fn an_expired_session_is_invalid() {
    let handle = fake(options()).await;
    let (raw, ready) = Raw::ready(&handle, ALL).await;
    drop(raw);
    handle.wait_for_sessions(0, SOON).await.unwrap();
    handle.expire_sessions();
    let mut raw = Raw::resume(&handle, &ready["session_id"], 1).await;
    assert_eq!(raw.next().await, json!({"op": 9, "d": false}));
}

#[tokio::test]
async fn what_a_client_does_wrong_closes_the_connection_with_its_code() {
    let identify = |token: &str, wanted: u64, shard: [u64; 2]| {
        json!({"op": 2, "d": {"token": token, "intents": wanted, "shard": shard}}).to_string()
    };
    let good = identify(TOKEN, ALL, [0, 1]);
    let resume = |session: &str, token: &str| {
        json!({"op": 6, "d": {"token": token, "session_id": session, "seq": 1}}).to_string()
    };
    let cases: Vec<(u16, Vec<String>)> = vec![
        (close::AUTHENTICATION_FAILED, vec![identify("wrong", ALL, [0, 1])]),
        (close::AUTHENTICATION_FAILED, vec![resume("any", "wrong")]),
        (close::INVALID_SHARD, vec![identify(TOKEN, ALL, [1, 1])]),
        (close::INVALID_INTENTS, vec![identify(TOKEN, 1 << 17, [0, 1])]),
        (close::DISALLOWED_INTENTS, vec![identify(TOKEN, 1 << 8, [0, 1])]),
        (close::NOT_AUTHENTICATED, vec![json!({"op": 3, "d": {}}).to_string()]),
        (close::ALREADY_AUTHENTICATED, vec![good.clone(), good.clone()]),
        (close::UNKNOWN_OPCODE, vec![json!({"op": 99}).to_string()]),
        (close::DECODE, vec!["no json".to_owned()]),
        (close::DECODE, vec![json!({"op": 1, "d": "x".repeat(4096)}).to_string()]),
        (close::RATE_LIMITED, std::iter::once(good).chain(vec![json!({"op": 3, "d": {}}).to_string(); 120]).collect()),
    ];
    let handle = fake(options()).await;
    for (code, frames) in cases {
        let mut raw = Raw::connect(&handle.gateway_url()).await;
        for frame in &frames {
            // The last ones may find the connection closed.
            drop(raw.socket.send(Frame::Text(frame.clone())).await);
        }
        assert_eq!(raw.closed().await, Some(code), "{:?}", frames.first());
    }
    let (mut socket, _) = connect_async(format!("{}/?v=6", handle.gateway_url())).await.unwrap();
    let frame = socket.next().await.unwrap().unwrap();
    assert!(matches!(frame, Frame::Close(Some(frame)) if u16::from(frame.code) == close::INVALID_VERSION));
    assert!(connect_async(format!("{}/?v=10&compress=zlib-stream", handle.gateway_url())).await.is_err());
}

#[tokio::test]
async fn a_number_that_was_never_sent_needs_a_new_session() {
    let handle = fake(options()).await;
    let (raw, ready) = Raw::ready(&handle, ALL).await;
    drop(raw);
    handle.wait_for_sessions(0, SOON).await.unwrap();
    assert_eq!(Raw::resume(&handle, &ready["session_id"], 99).await.closed().await, Some(close::INVALID_SEQ));
    let again = Raw::resume(&handle, &ready["session_id"], 1).await.next().await;
    assert_eq!(again, json!({"op": 9, "d": false}));
}

#[tokio::test]
async fn heartbeats_are_answered_and_their_absence_ends_the_session() {
    let handle = fake(Options { heartbeat_interval: Some(Duration::from_millis(50)), ..options() }).await;
    let (mut raw, ready) = Raw::ready(&handle, ALL).await;
    raw.send(json!({"op": 1, "d": 1})).await;
    assert_eq!(raw.next().await["op"], 11);
    handle.acknowledge(&Which::All, false);
    raw.send(json!({"op": 1, "d": null})).await;
    assert_eq!(raw.closed().await, Some(close::SESSION_TIMED_OUT));
    let ignored = What::Heartbeat { seq: None, acknowledged: false };
    handle.wait_for_entry(SOON, |entry| entry.what == ignored).await.unwrap();
    let again = Raw::resume(&handle, &ready["session_id"], 1).await.next().await;
    assert_eq!(again, json!({"op": 9, "d": false}));
}

#[tokio::test]
async fn the_gateway_breaks_on_demand() {
    let handle = fake(options()).await;
    let (mut raw, ready) = Raw::ready(&handle, ALL).await;
    let session = ready["session_id"].as_str().unwrap().to_owned();
    assert_eq!(handle.reconnect(&Which::Session(session.clone())), 1);
    assert_eq!(raw.next().await["op"], 7);
    assert_eq!(handle.close(&Which::Peer(raw.address()), 4000), 1);
    assert_eq!(raw.closed().await, Some(4000));

    let mut raw = Raw::resume(&handle, &ready["session_id"], 1).await;
    raw.event("RESUMED").await;
    assert_eq!(handle.invalidate(&Which::All, true), 1);
    assert_eq!(raw.next().await, json!({"op": 9, "d": true}));
    raw.send(json!({"op": 6, "d": {"token": TOKEN, "session_id": session, "seq": raw.seq}})).await;
    raw.event("RESUMED").await;
    assert_eq!(handle.drop_connections(&Which::All), 1);
    assert_eq!(raw.closed().await, None);

    let mut raw = Raw::resume(&handle, &ready["session_id"], raw.seq).await;
    raw.event("RESUMED").await;
    handle.hang(&Which::All);
    raw.send(json!({"op": 1, "d": null})).await;
    raw.close(4000).await;
    let closed = What::Closed { code: Some(4000), by: By::Client };
    handle.wait_for_entry(SOON, |entry| entry.what == closed).await.unwrap();
    let beats = handle.record().iter().filter(|entry| matches!(entry.what, What::Heartbeat { .. })).count();
    assert_eq!(beats, 0, "who hangs does not read");
    assert_eq!(handle.held().unwrap().len(), 4);
}

#[tokio::test]
async fn identifying_too_fast_is_refused_and_too_often_resets_the_token() {
    let starts = Limit::new(2, Duration::from_secs(1000));
    let start_limit = StartLimit { starts, max_concurrency: 1, window: Duration::from_secs(1000) };
    let handle = fake(Options { start_limit, ..Options::default() }).await;
    let (mut first, _) = Raw::ready(&handle, ALL).await;
    let mut second = Raw::connect(&handle.gateway_url()).await;
    second.identify(ALL, [0, 1]).await;
    assert_eq!(second.next().await, json!({"op": 9, "d": false}));
    let (_, _, bot) = call(&handle, TOKEN, "GET", "/gateway/bot", Value::Null).await.unwrap();
    assert_eq!(bot["session_start_limit"]["remaining"], 0);
    assert_eq!((&bot["session_start_limit"]["total"], &bot["url"]), (&json!(2), &json!(handle.gateway_url())));
    second.identify(ALL, [0, 1]).await;
    assert_eq!(second.closed().await, Some(close::AUTHENTICATION_FAILED));
    assert_eq!(first.closed().await, Some(close::AUTHENTICATION_FAILED));
    assert!(handle.token_is_reset());
    let (status, ..) = call(&handle, TOKEN, "GET", "/users/@me", Value::Null).await.unwrap();
    assert_eq!(status, 401);
}

#[tokio::test]
async fn two_sessions_of_a_shard_both_hear_everything_and_the_record_shows_it() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let (mut one, _) = Raw::ready(&handle, ALL).await;
    let (mut two, _) = Raw::ready(&handle, ALL).await;
    handle.say(dm, user, "to whom?").unwrap();
    assert_eq!(one.event("MESSAGE_CREATE").await, two.event("MESSAGE_CREATE").await);
    let label = |of: SocketAddr| if of == one.address() { "one" } else { "two" };
    let overlaps = handle.overlaps(label).unwrap();
    assert_eq!(overlaps.len(), 1);
    assert_eq!(overlaps[0].labels, ("one", "two"));
    assert_eq!(handle.overlaps(|_| "the same instance").unwrap(), []);
    assert_eq!(handle.wait_for_sessions(2, SOON).await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_record_names_callers_at_either_door() {
    let label = Label::new(|_, local| Some(local.to_string()));
    let handle = fake(Options { label: Some(label), ..options() }).await;
    let (_one, ready) = Raw::ready(&handle, ALL).await;
    Raw::resume(&handle, &ready["session_id"], 1).await.event("RESUMED").await;
    let names = |is: fn(&What) -> bool| -> Vec<String> {
        handle.record().into_iter().filter(|entry| is(&entry.what)).filter_map(|entry| entry.caller).collect()
    };
    let (first, second) = (handle.address().to_string(), handle.resume_address.to_string());
    assert_eq!(names(|what| matches!(what, What::Request(_))), [first.clone(), second.clone()]);
    assert_eq!(names(|what| matches!(what, What::Identify { .. } | What::Resume { .. })), [first, second]);
}

#[tokio::test]
async fn who_resumes_a_session_takes_it_from_its_connection() {
    let handle = fake(options()).await;
    let (mut one, ready) = Raw::ready(&handle, ALL).await;
    let mut two = Raw::resume(&handle, &ready["session_id"], 1).await;
    two.event("RESUMED").await;
    assert_eq!(one.closed().await, Some(close::UNKNOWN));
    handle.wait_for_sessions(1, SOON).await.unwrap();
    assert_eq!(handle.overlaps(|peer| peer).unwrap(), [], "a session is one connection's");
}

#[tokio::test]
async fn without_the_intent_a_session_reads_only_what_is_meant_for_it() {
    let handle = fake(options()).await;
    let channel = handle.channel(handle.guild("home"), "general").unwrap();
    let user = handle.user("ada");
    let (mut raw, _) = Raw::ready(&handle, ALL & !MESSAGE_CONTENT & !intents::GUILDS).await;
    handle.say(channel, user, "secret").unwrap();
    assert_eq!(raw.event("MESSAGE_CREATE").await["content"], "");
    let text = format!("<@{}> hi", handle.bot());
    handle.say(channel, user, &text).unwrap();
    let message = raw.event("MESSAGE_CREATE").await;
    assert_eq!((&message["content"], &message["mentions"][0]["id"]), (&json!(text), &json!(handle.bot())));
    handle.say(handle.dm(user).unwrap(), user, "between us").unwrap();
    assert_eq!(raw.event("MESSAGE_CREATE").await["content"], "between us");
}

#[tokio::test]
async fn events_go_to_the_shard_of_their_guild() {
    let handle = fake(Options { shards: 2, ..options() }).await;
    let guild = handle.guild("home");
    let channel = handle.channel(guild, "general").unwrap();
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let of_guild = (guild.0 >> 22) % 2;
    for shard in [0, 1] {
        let mut raw = Raw::connect(&handle.gateway_url()).await;
        raw.identify(intents::GUILD_MESSAGES | intents::DIRECT_MESSAGES | MESSAGE_CONTENT, [shard, 2]).await;
        raw.event("READY").await;
        handle.say(channel, user, "guild").unwrap();
        handle.say(dm, user, "dm").unwrap();
        let expected: Vec<&str> = [("guild", of_guild), ("dm", 0)]
            .into_iter()
            .filter_map(|(text, of)| (of == shard).then_some(text))
            .collect();
        for text in expected {
            assert_eq!(raw.event("MESSAGE_CREATE").await["content"], text);
        }
        handle.close(&Which::All, 4000);
        assert_eq!(raw.read().await, Err(Some(4000)), "nothing else came");
    }
}

#[tokio::test]
async fn users_reply_edit_delete_and_open_threads() {
    let handle = fake(options()).await;
    let guild = handle.guild("home");
    let channel = handle.channel(guild, "general").unwrap();
    let user = handle.user("ada");
    let (mut raw, _) = Raw::ready(&handle, ALL).await;
    raw.event("GUILD_CREATE").await;
    let said = handle.say(channel, user, "one").unwrap();
    raw.event("MESSAGE_CREATE").await;
    let answer = handle.reply(channel, user, said, "two").unwrap();
    let message = raw.event("MESSAGE_CREATE").await;
    assert_eq!((&message["type"], &message["referenced_message"]["content"]), (&json!(19), &json!("one")));
    handle.edit(channel, answer, "three").unwrap();
    assert_eq!(raw.event("MESSAGE_UPDATE").await["content"], "three");
    handle.delete(channel, answer).unwrap();
    assert_eq!(raw.event("MESSAGE_DELETE").await["id"], json!(answer));
    let thread = handle.thread(channel, Some(said), user, "aside").unwrap();
    assert_eq!(thread, said);
    assert_eq!(raw.event("THREAD_CREATE").await["parent_id"], json!(channel));
    handle.say(thread, user, "in here").unwrap();
    let message = raw.event("MESSAGE_CREATE").await;
    assert_eq!((&message["channel_id"], &message["guild_id"]), (&json!(thread), &json!(guild)));
    assert!(handle.thread(channel, Some(said), user, "again").is_err());
    assert!(handle.say(handle.dm(user).unwrap(), handle.user("eve"), "psst").is_err());
}
