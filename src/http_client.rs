//! The HTTP client as all want it who ask model providers and chat platforms, and its errors as people read them.

use std::error::Error as _;
use std::time::Duration;

use reqwest::{ClientBuilder, Url};

const KEEPALIVE: Duration = Duration::from_secs(30);

/// A client for what is at `base`.
pub fn builder(base: &Url, user_agent: &'static str, connect: Duration) -> ClientBuilder {
    let client = reqwest::Client::builder()
        .user_agent(user_agent)
        .connect_timeout(connect)
        .tcp_nodelay(true)
        .tcp_keepalive(KEEPALIVE)
        // A redirect would hand what is said, and the key, to a host that nobody configured.
        .redirect(reqwest::redirect::Policy::none());
    let client = if is_loopback(base) { client.no_proxy() } else { client };
    // Nothing to verify: the system's certificates need not be read, nor be there.
    if base.scheme() == "http" { client.tls_certs_only([]) } else { client }
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// An error with its causes, without the URL, which may carry credentials.
pub fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_this_machine_is_asked_without_a_proxy() {
        let loopback = |url: &str| is_loopback(&Url::parse(url).unwrap());
        assert!(loopback("http://localhost:8081") && loopback("http://127.9.9.9") && loopback("https://[::1]:1/x"));
        assert!(!loopback("https://api.telegram.org") && !loopback("http://localhost.example.org"));
    }
}
