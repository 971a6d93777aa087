//! What goes wrong on request, and what is remembered of it.

use serde_json::json;
use teloxide::RequestError;
use teloxide::prelude::Requester;
use teloxide::types::ChatId as To;

use super::*;

const TO_ANN: To = To(ANN.0);

async fn met() -> (Handle, Bot) {
    let handle = started(options()).await;
    handle.say(BOT, ANN.chat(), ANN, "hello").unwrap();
    let bot = teloxide(&handle, TOKEN);
    (handle, bot)
}

fn texts(handle: &Handle) -> Vec<String> {
    handle.messages(BOT, ANN.chat()).iter().map(|message| message.text().to_owned()).collect()
}

fn ends(handle: &Handle) -> Vec<Ended> {
    handle.requests().iter().filter_map(|request| request.ended.map(|(_, how)| how)).collect()
}

fn send(bot: &Bot, text: &str) -> JoinHandle<Result<teloxide::types::Message, RequestError>> {
    let (bot, text) = (bot.clone(), text.to_owned());
    tokio::spawn(async move { bot.send_message(TO_ANN, text).await })
}

#[tokio::test]
async fn a_rule_is_for_its_bot_its_method_and_its_number_of_calls() {
    let (handle, bot) = met().await;
    let injection = handle.inject(Rule::once(Fault::RetryAfter(7)).bot(BOT).method(Method::SendMessage).times(2));
    teloxide(&handle, OTHER_TOKEN).get_me().await.unwrap();
    bot.get_me().await.unwrap();
    for _ in 0..2 {
        let error = bot.send_message(TO_ANN, "x").await.unwrap_err();
        assert!(matches!(error, RequestError::RetryAfter(seconds) if seconds.seconds() == 7), "{error}");
    }
    bot.send_message(TO_ANN, "x").await.unwrap();
    assert_eq!((injection.hits(), texts(&handle).len()), (2, 1));
}

#[tokio::test]
async fn a_status_is_answered_until_it_is_released() {
    let (handle, _) = met().await;
    let injection = handle.inject(Rule::always(Fault::Status(502)));
    for _ in 0..3 {
        let answer = call(&handle, "getMe", json!({})).await;
        assert_eq!(answer, json!({"ok": false, "error_code": 502, "description": "Bad Gateway"}));
    }
    injection.release();
    assert_eq!(call(&handle, "getMe", json!({})).await["ok"], true);
    let limited = handle.inject(Rule::once(Fault::RetryAfter(3)));
    let (status, head, body) = raw(&handle, "GET", &format!("/bot{TOKEN}/getMe"), "", "").await.unwrap();
    assert_eq!((status, &body["parameters"]["retry_after"]), (429, &json!(3)));
    assert!(head.contains("retry-after: 3"), "{head}");
    assert_eq!(limited.hits(), 1);
}

#[tokio::test]
async fn a_connection_is_closed_before_the_call_does_anything() {
    let (handle, bot) = met().await;
    handle.inject(Rule::once(Fault::Close));
    let error = bot.send_message(TO_ANN, "lost").await.unwrap_err();
    assert!(matches!(error, RequestError::Network(_)), "{error}");
    assert_eq!(texts(&handle), [""; 0]);
    assert_eq!(ends(&handle), [Ended::Aborted]);
    bot.send_message(TO_ANN, "next").await.unwrap();
    assert_eq!(texts(&handle), ["next"]);
}

#[tokio::test]
async fn a_call_may_have_happened_though_nobody_says_so() {
    let (handle, bot) = met().await;
    handle.inject(Rule::once(Fault::ActThenClose).method(Method::SendMessage));
    // On a connection that was used before, as a client in the wild would have it.
    bot.get_me().await.unwrap();
    let error = bot.send_message(TO_ANN, "sent").await.unwrap_err();
    assert!(matches!(error, RequestError::Network(_)), "{error}");
    assert_eq!(texts(&handle), ["sent"], "once: the client did not repeat it by itself");
    assert_eq!(ends(&handle), [Ended::Answered(200), Ended::Aborted]);
    assert!(raw(&handle, "GET", "/nothing", "", "").await.is_some());
    handle.inject(Rule::once(Fault::ActThenClose));
    assert!(raw(&handle, "GET", &format!("/bot{TOKEN}/getMe"), "", "").await.is_none(), "not even a status");
}

#[tokio::test]
async fn a_call_hangs_until_it_is_released() {
    let (handle, bot) = met().await;
    let injection = handle.inject(Rule::once(Fault::Hang));
    let sending = send(&bot, "late");
    injection.wait_for_hits(1, WITHIN).await.unwrap();
    assert_eq!((texts(&handle).len(), ends(&handle).len()), (0, 0));
    injection.release();
    within(sending).await.unwrap().unwrap();
    assert_eq!(texts(&handle), ["late"]);
}

#[tokio::test]
async fn a_call_that_its_client_gave_up_while_it_hung_does_nothing_unless_it_had() {
    let (handle, bot) = met().await;
    for (fault, expected) in [(Fault::Hang, vec![]), (Fault::ActThenHang, vec!["x".to_owned()])] {
        let injection = handle.inject(Rule::once(fault));
        let sending = send(&bot, "x");
        injection.wait_for_hits(1, WITHIN).await.unwrap();
        if !expected.is_empty() {
            handle.wait_for_message(BOT, |message| message.text() == "x", WITHIN).await.unwrap();
        }
        let seen = handle.requests().len();
        sending.abort();
        let gone = |recorded: &Recorded| {
            recorded.number + 1 == seen as u64 && recorded.ended.is_some_and(|(_, how)| how == Ended::ClientGone)
        };
        handle.wait_for_request(gone, WITHIN).await.unwrap();
        injection.release();
        assert_eq!(texts(&handle), expected);
    }
}

#[tokio::test]
async fn a_call_is_delayed() {
    let (handle, bot) = met().await;
    handle.inject(Rule::once(Fault::Delay(Duration::from_millis(30))));
    let started = Instant::now();
    bot.get_me().await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(30));
    assert_eq!(handle.requests().len(), 1);
}

#[tokio::test]
async fn every_request_is_remembered_without_its_token() {
    let handle = started(Options { remembered: 3, ..options() }).await;
    let text = format!("my token is {TOKEN}");
    call(&handle, "getMe", json!({})).await;
    call(&handle, "sendmessage", json!({"chat_id": 11, "text": text})).await;
    raw(&handle, "GET", "/bot7000001:wrong/getMe", "", "").await.unwrap();
    raw(&handle, "GET", "/elsewhere", "", "").await.unwrap();
    let requests = handle.requests();
    assert!(!format!("{requests:?}").contains("AAsecret"));
    let [sent, wrong, elsewhere] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!((sent.number, sent.bot, sent.method), (1, Some(BOT), Some(Method::SendMessage)));
    assert_eq!((sent.called.as_str(), sent.ended.unwrap().1), ("sendmessage", Ended::Answered(400)));
    assert_eq!(sent.parameters["text"], "my token is ***");
    let (ended, _) = sent.ended.unwrap();
    assert!(sent.started.at <= ended.at && sent.started.unix_ms <= ended.unix_ms);
    assert_eq!((wrong.bot, wrong.ended.unwrap().1), (None, Ended::Answered(401)));
    assert_eq!((elsewhere.bot, elsewhere.ended.unwrap().1), (None, Ended::Answered(404)));
}
