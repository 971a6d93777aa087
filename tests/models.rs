//! The model providers against fake servers over real HTTP: what each failure becomes, and what reaches the server.

#![expect(clippy::unwrap_used, reason = "what a test sets up may panic like the test itself")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use jepsen_lite::fakes::{self, Ended, Handle, Protocol};
use openclaw::agent::turn::{self, TurnEvent};
use openclaw::models::{
    AttemptEvent, ChainError, Error, FinishReason, ModelRef, Models, Phase, Prompt, PromptMessage, Role, Usage,
};
use openclaw_config::models::{Api, Provider};
use openclaw_config::{Models as Config, Secret};
use openclaw_proto::http::ErrorCode;
use tokio_util::sync::CancellationToken;

const KEY: &str = "sk-test-0123456789abcdef";
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A fake of each protocol, and the real client set up for both: `o` is OpenAI's, `a` Anthropic's.
struct Bench {
    openai: Handle,
    anthropic: Handle,
    config: Config,
}

impl Bench {
    async fn start() -> Self {
        // The first test of the process installs it; the others find it there.
        drop(rustls::crypto::ring::default_provider().install_default());
        let fake = async |protocol| {
            let options = fakes::Options { api_key: Some(KEY.into()), ..fakes::Options::default() };
            fakes::start(protocol, "127.0.0.1:0".parse().unwrap(), options).await.unwrap()
        };
        let (openai, anthropic) = (fake(Protocol::Openai).await, fake(Protocol::Anthropic).await);
        let provider = |api, handle: &Handle| Provider {
            api,
            base_url: Some(handle.base_url()),
            api_key: Some(Secret::new(KEY)),
            ..Provider::default()
        };
        let providers = BTreeMap::from([
            ("o".to_owned(), provider(Api::Openai, &openai)),
            ("a".to_owned(), provider(Api::Anthropic, &anthropic)),
            ("echo".to_owned(), Provider::echo()),
        ]);
        Self { openai, anthropic, config: Config { providers } }
    }

    /// Changes a provider's settings.
    fn with(mut self, name: &str, change: impl FnOnce(&mut Provider)) -> Self {
        change(self.config.providers.get_mut(name).unwrap());
        self
    }

    fn models(&self) -> Models {
        Models::from_config(&self.config).unwrap()
    }

    async fn ask(&self, chain: &[&str]) -> Result<Answered, ChainError> {
        ask(&self.models(), chain).await
    }

    /// The one error of a chain of one model.
    async fn error(&self, model: &str) -> Error {
        let error = self.ask(&[model]).await.expect_err(model);
        assert!(!format!("{error} {error:?}").contains(&KEY[..8]), "{error:?}");
        match error {
            ChainError::AllFailed(mut failures) => failures.remove(0).error,
            ChainError::Interrupted(failure) => failure.error,
            ChainError::NoModel => panic!("no model"),
        }
    }
}

#[derive(Debug, PartialEq)]
struct Answered {
    text: String,
    usage: Usage,
    model: String,
    reason: FinishReason,
}

fn chain(refs: &[&str]) -> Vec<ModelRef> {
    refs.iter().map(|text| text.parse().unwrap()).collect()
}

fn prompt() -> Arc<Prompt> {
    let message = |role, text: &str| PromptMessage { role, text: text.to_owned() };
    Arc::new(Prompt {
        system: Some("be brief".into()),
        messages: vec![
            message(Role::User, "one two"),
            message(Role::Assistant, "three"),
            message(Role::User, "four"),
            message(Role::User, "five"),
        ],
        max_output_tokens: Some(100),
        temperature: Some(0.5),
    })
}

async fn ask(models: &Models, refs: &[&str]) -> Result<Answered, ChainError> {
    let answer = async {
        let mut events = models.stream(&chain(refs), prompt());
        let mut text = String::new();
        while let Some(event) = events.next().await {
            match event? {
                AttemptEvent::Started { .. } => assert_eq!(text, "", "a new attempt after output"),
                AttemptEvent::Delta(delta) => text.push_str(&delta),
                AttemptEvent::Finished { usage, model, reason } => {
                    assert_eq!(events.next().await, None);
                    return Ok(Answered { text, usage, model: model.to_string(), reason });
                }
            }
        }
        panic!("{refs:?} ended silently")
    };
    tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time")
}

fn numbers(count: u32) -> String {
    (1..=count).map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn both_protocols_stream_an_answer_with_its_usage() {
    let bench = Bench::start().await;
    for provider in ["o", "a"] {
        let model = format!("{provider}/m20x1");
        let expected = Answered {
            text: numbers(20),
            usage: Usage { input_tokens: 7, output_tokens: 20 },
            model: model.clone(),
            reason: FinishReason::Stop,
        };
        assert_eq!(bench.ask(&[&model]).await, Ok(expected));
    }
    let sent = &bench.openai.requests()[0].body;
    assert_eq!((sent["model"].as_str(), sent["max_tokens"].as_u64()), (Some("m20x1"), Some(100)));
    assert_eq!(sent["messages"].as_array().unwrap().len(), 5);
    let sent = &bench.anthropic.requests()[0].body;
    assert_eq!((sent["system"].as_str(), sent["max_tokens"].as_u64()), (Some("be brief"), Some(100)));
    assert_eq!(sent["messages"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn deltas_come_as_they_are_made() {
    let bench = Bench::start().await;
    for model in ["o/m2x0-stall1", "a/m2x0-stall1"] {
        let mut events = bench.models().stream(&chain(&[model]), prompt());
        assert!(matches!(events.next().await, Some(Ok(AttemptEvent::Started { .. }))));
        let first = tokio::time::timeout(PATIENCE, events.next()).await.expect("a delta before the end");
        assert_eq!(first, Some(Ok(AttemptEvent::Delta("1".into()))));
    }
}

#[tokio::test]
async fn servers_may_differ_in_everything_that_is_not_text() {
    let bench = Bench::start().await;
    for oddity in ["comments", "crlf", "nousage", "nodone", "comments-crlf-nodone-nousage"] {
        for provider in ["o", "a"] {
            let answered = bench.ask(&[&format!("{provider}/m8x0-{oddity}")]).await.unwrap();
            assert_eq!(answered.text, numbers(8), "{provider} {oddity}");
            let counted = if oddity.contains("nousage") { 0 } else { 8 };
            assert_eq!(answered.usage.output_tokens, counted, "{provider} {oddity}");
        }
    }
    for model in ["o/m8x0-noreason", "o/m8x0-json", "o/m8x0-json-nousage", "a/m8x0-noreason"] {
        assert_eq!(bench.ask(&[model]).await.unwrap().text, numbers(8), "{model}");
    }
}

#[tokio::test]
async fn characters_that_arrive_in_pieces_stay_whole() {
    let bench = Bench::start().await;
    for model in ["o/m5x0-split", "a/m5x0-split-crlf", "o/m5x0-split-crlf-comments"] {
        assert_eq!(bench.ask(&[model]).await.unwrap().text, "ü🦀1 ü🦀2 ü🦀3 ü🦀4 ü🦀5", "{model}");
    }
}

#[tokio::test]
async fn each_status_says_what_to_do_next() {
    let bench = Bench::start().await.with("o", |o| o.max_retries = 0).with("a", |a| a.max_retries = 0);
    for provider in ["o", "a"] {
        let check = async |status: u16, expected: fn(&Error) -> bool| {
            let error = bench.error(&format!("{provider}/status{status}")).await;
            assert!(expected(&error), "{status}: {error:?}");
            assert!(error.to_string().contains(&format!("{status}")), "{error}");
            assert!(error.to_string().contains("this model answers"), "{error}");
            assert_eq!(error.provider(), provider);
        };
        for status in [400, 413, 422] {
            check(status, |error| matches!(error, Error::Invalid { .. })).await;
        }
        for status in [401, 402, 403] {
            check(status, |error| matches!(error, Error::Unauthorized { .. })).await;
        }
        check(404, |error| matches!(error, Error::NotFound { .. })).await;
        check(429, |error| matches!(error, Error::RateLimited { retry_after: None, .. })).await;
        for status in [503, 529] {
            check(status, |error| matches!(error, Error::Overloaded { .. })).await;
        }
        for status in [408, 500, 502, 504] {
            check(status, |error| matches!(error, Error::Unavailable { .. })).await;
        }
        check(302, |error| matches!(error, Error::BadAnswer { .. })).await;
        let unknown = bench.error(&format!("{provider}/gpt-99")).await;
        assert!(matches!(&unknown, Error::NotFound { model, .. } if model == "gpt-99"), "{unknown:?}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_told_without_showing_it() {
    let wrong = "sk-test-wrong-key-42";
    let bench = Bench::start()
        .await
        .with("o", |o| o.api_key = Some(Secret::new(wrong)))
        .with("a", |a| a.api_key = Some(Secret::new(wrong)));
    for model in ["o/m8x0", "a/m8x0"] {
        let error = bench.error(model).await;
        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
        let shown = format!("{error} {error:?} {:?}", bench.config);
        assert!(!shown.contains("wrong-key") && shown.contains("Incorrect API key provided: ***"), "{shown}");
    }
}

#[tokio::test]
async fn what_breaks_before_output_is_tried_again() {
    let bench = Bench::start().await.with("o", |o| o.max_retries = 1);
    for fault in ["break0", "close0", "error0"] {
        let model = format!("m8x0-{fault}");
        let error = bench.error(&format!("o/{model}")).await;
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        let asked = bench.openai.requests().iter().filter(|request| request.model == model).count();
        assert_eq!(asked, 2, "{fault}");
    }
    let error = bench.error("o/m8x0-garbage0").await;
    assert!(matches!(error, Error::BadAnswer { .. }), "{error:?}");
    let error = bench.error("a/m8x0-error0").await;
    assert!(matches!(&error, Error::Overloaded { said, .. } if said.contains("Overloaded on request")), "{error:?}");
}

#[tokio::test]
async fn what_breaks_after_output_is_interrupted_and_never_tried_again() {
    let bench = Bench::start().await;
    for provider in ["o", "a"] {
        for fault in ["break3", "close3", "garbage3", "error3"] {
            let model = format!("{provider}/m8x0-{fault}");
            let error = bench.ask(&[&model, "echo/echo"]).await.unwrap_err();
            let ChainError::Interrupted(failure) = &error else { panic!("{model}: {error:?}") };
            assert!(matches!(failure.error, Error::Interrupted { .. }), "{model}: {error:?}");
            assert_eq!((failure.attempts, error.code()), (1, ErrorCode::ModelFailed));
        }
    }
    assert_eq!((bench.openai.requests().len(), bench.anthropic.requests().len()), (4, 4));
}

#[tokio::test]
async fn silence_ends_at_the_time_out_that_fits() {
    let short = |provider: &mut Provider| {
        provider.max_retries = 0;
        provider.first_byte_timeout = Duration::from_millis(150);
        provider.timeout = Duration::from_millis(600);
    };
    let bench = Bench::start().await.with("o", short).with("a", short);
    for provider in ["o", "a"] {
        let error = bench.error(&format!("{provider}/hang")).await;
        assert!(matches!(error, Error::Timeout { phase: Phase::FirstByte, .. }), "{error:?}");
        let start = Instant::now();
        let error = bench.error(&format!("{provider}/m8x0-stall2")).await;
        assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
        assert!(start.elapsed() >= Duration::from_millis(600));
        until("both connections closed", || bench.openai.running() + bench.anthropic.running() == 0).await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let gone = Bench::start().await;
    let url = gone.openai.base_url();
    gone.openai.stop().await;
    let bench = Bench::start().await.with("o", |o| {
        o.base_url = Some(url.replace("http://", "http://user:hunter2@"));
        o.max_retries = 0;
    });
    let error = bench.error("o/m8x0").await;
    assert!(matches!(&error, Error::Unavailable { said, .. } if said.contains("refused")), "{error:?}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_web_page_is_no_answer() {
    let bench = Bench::start().await;
    let page = axum::Router::new().fallback(async || axum::response::Html("<html>data: welcome</html>"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, page).await });
    let bench = bench.with("o", |o| o.base_url = Some(url));
    let error = bench.error("o/m8x0").await;
    assert!(matches!(&error, Error::BadAnswer { said, .. } if said.contains("baseUrl")), "{error:?}");
    server.abort();
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let bench = Bench::start().await;
    let check = async |model: &str, at_least: Duration| {
        assert_eq!(bench.ask(&[&format!("o/{model}")]).await.unwrap().text, numbers(8));
        let requests = bench.openai.requests();
        let times: Vec<_> =
            requests.iter().filter(|request| request.model == model).map(|request| request.at).collect();
        assert_eq!(times.len(), 2, "{model}");
        assert!(times[1] - times[0] >= at_least, "{model}: {:?}", times[1] - times[0]);
    };
    check("m8x0-status429-after1-times1", Duration::from_secs(1)).await;
    // A date has whole seconds: two of them from now are more than one.
    check("m8x0-status503-afterdate2-times1", Duration::from_millis(900)).await;
}

#[tokio::test]
async fn a_model_is_given_up_after_its_attempts_and_the_next_answers() {
    let bench = Bench::start().await.with("o", |o| o.max_retries = 1);
    let answered = bench.ask(&["o/status500", "o/status401", "a/status429-after61", "a/m3x0"]).await.unwrap();
    assert_eq!((answered.text.as_str(), answered.model.as_str()), ("1 2 3", "a/m3x0"));
    let asked = |handle: &Handle| handle.requests().into_iter().map(|request| request.model).collect::<Vec<_>>();
    assert_eq!(asked(&bench.openai), ["status500", "status500", "status401"]);
    assert_eq!(asked(&bench.anthropic), ["status429-after61", "m3x0"]);

    let error = bench.ask(&["o/status401", "a/status404", "nobody/x"]).await.unwrap_err();
    let text = error.to_string();
    for part in ["o/status401: o refuses our credentials", "a/status404: a has no model", "nobody/x: "] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn no_more_requests_reach_a_provider_than_allowed() {
    let bench = Bench::start().await.with("o", |o| o.max_concurrency = 3);
    let models = bench.models();
    let answers = futures::future::join_all((0..20).map(|_| ask(&models, &["o/m3x5"]))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!((bench.openai.requests().len(), bench.openai.max_concurrent()), (20, 3));
    // One slot, sixteen places in its queue: the rest is refused at once, without a request.
    let bench = bench.with("o", |o| o.max_concurrency = 1);
    let models = bench.models();
    let answers = futures::future::join_all((0..20).map(|_| ask(&models, &["o/m2x5"]))).await;
    let busy = answers.iter().filter_map(|answer| answer.as_ref().err()).map(ChainError::code).collect::<Vec<_>>();
    assert_eq!(busy, [ErrorCode::Busy; 3]);
    assert_eq!(bench.openai.requests().len(), 20 + 17);
}

#[tokio::test]
async fn cancelling_a_turn_closes_the_connection_to_the_provider() {
    let bench = Bench::start().await;
    for (handle, model) in [(&bench.openai, "o/m1000x20"), (&bench.anthropic, "a/m1000x20")] {
        let cancel = CancellationToken::new();
        let limits = turn::Limits::default();
        let mut events = turn::run(&bench.models(), &chain(&[model]), prompt(), limits, cancel.clone());
        assert_eq!(events.next().await, Some(TurnEvent::Delta("1".into())));
        cancel.cancel();
        assert!(matches!(events.next().await, Some(TurnEvent::Failed { code: ErrorCode::Cancelled, .. })));
        until("the fake sees the client leave", || handle.running() == 0).await;
        assert!(matches!(handle.requests()[0].ended, Some((_, Ended::Disconnected))));
    }
}

#[tokio::test]
async fn headers_of_the_configuration_are_sent_and_kept_secret() {
    let bench = Bench::start().await.with("o", |o| {
        o.api_key = None;
        o.headers.insert("Authorization".into(), Secret::new(format!("Bearer {KEY}")));
    });
    assert_eq!(bench.ask(&["o/m1x0"]).await.unwrap().text, "1");
    let bench = bench.with("o", |o| {
        o.headers.insert("bad name".into(), Secret::new("x"));
    });
    let error = Models::from_config(&bench.config).unwrap_err();
    assert_eq!(error.to_string(), "models.providers.o.headers.bad name is not a header that HTTP can carry");
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let check = async |change: fn(&mut Provider), expected: &str| {
        let error = Models::from_config(&Bench::start().await.with("o", change).config).unwrap_err();
        assert!(error.to_string().starts_with(expected) && !format!("{error:?}").contains(KEY), "{error}");
    };
    check(|o| o.base_url = None, "models.providers.o.baseUrl").await;
    check(|o| o.base_url = Some("ftp://x".into()), "models.providers.o.baseUrl").await;
    check(|o| o.base_url = Some("localhost:80".into()), "models.providers.o.baseUrl").await;
    check(|o| o.api_key = Some(Secret::new(format!("{KEY}\n"))), "models.providers.o.apiKey").await;
}

#[tokio::test]
async fn models_are_listed_from_every_provider_that_tells() {
    let bench = Bench::start().await;
    let models = bench.models();
    let expected = ["a/m8x0", "a/m64x100", "echo/echo", "o/m8x0", "o/m64x100"];
    let list = async || models.list().await.iter().map(ModelRef::to_string).collect::<Vec<_>>();
    assert_eq!(list().await, expected);
    // What a provider told lately is not asked for again.
    bench.openai.stop().await;
    assert_eq!(list().await, expected);
    let without = Bench::start().await.with("o", |o| o.api_key = Some(Secret::new("wrong")));
    assert_eq!(without.models().list().await.len(), 3);
}
