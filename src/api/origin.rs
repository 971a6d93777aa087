//! Which web pages may call.
//!
//! A browser lets any page send requests to any address, a gateway on loopback included. It says which page in
//! `Origin`; we believe it for that, since no page can change it. Allowed are pages of this gateway itself - the origin's
//! host and port are the request's `Host` - and the configured origins. Without a token even `Host` is checked, or a page
//! could point its own name at this machine (DNS rebinding). Requests that no browser sent have no `Origin`.

use http::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use http::{Uri, Version};
use openclaw_proto::http::ErrorCode;

use super::error::ApiError;

/// The configured origins, as browsers write them.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowed {
    origins: Vec<String>,
    /// Whether callers need a token. Without, only names of this machine may stand in `Host`.
    has_token: bool,
}

/// What a browser's request needs in its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No page sent it, or one of ours.
    SameOrigin,
    /// A page of this configured origin.
    CrossOrigin(String),
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

impl Allowed {
    pub(super) fn new(origins: &[String], has_token: bool) -> Self {
        let origins = origins.iter().map(|origin| origin.trim_end_matches('/').to_ascii_lowercase()).collect();
        Self { origins, has_token }
    }

    /// Judges a request.
    ///
    /// # Errors
    /// `forbidden_origin`, `invalid_request` for more than one `Host` or `Origin`.
    pub(super) fn check(&self, version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Verdict, ApiError> {
        let host = host(version, uri, headers)?;
        if !self.has_token && !host.as_deref().is_some_and(|host| self.is_local(host)) {
            let message =
                "the Host header does not name this machine; set gateway.auth.token to be reached by other names";
            return Err(ApiError::new(ErrorCode::ForbiddenOrigin, message));
        }
        let Some(origin) = one(headers, &ORIGIN)? else {
            let value = |name| headers.get(&name).map(http::HeaderValue::as_bytes);
            let cross_site = value(SEC_FETCH_SITE) == Some(b"cross-site");
            if cross_site && value(SEC_FETCH_MODE) != Some(b"navigate") {
                return Err(forbidden("another site"));
            }
            return Ok(Verdict::SameOrigin);
        };
        let origin = origin.to_ascii_lowercase();
        if self.origins.contains(&origin) {
            return Ok(Verdict::CrossOrigin(origin));
        }
        // A proxy that passes `Host` on without its port makes the comparison below fail. The browser itself knows whether the
        // page is of the address that it asks, and says so where it trusts the way there: no page can write this header.
        if one(headers, &SEC_FETCH_SITE)?.as_deref() == Some("same-origin") {
            return Ok(Verdict::SameOrigin);
        }
        let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        match (authority, host) {
            // Whether the page came over TLS is not known here: a proxy may have ended it.
            (Some(authority), Some(host)) if without_default_port(authority) == without_default_port(&host) => {
                Ok(Verdict::SameOrigin)
            }
            _ => Err(forbidden(&origin)),
        }
    }

    fn is_local(&self, host: &str) -> bool {
        let configured = |origin: &String| origin.split_once("://").is_some_and(|(_, authority)| authority == host);
        matches!(name(host), "localhost" | "127.0.0.1" | "[::1]") || self.origins.iter().any(configured)
    }
}

fn forbidden(origin: &str) -> ApiError {
    let origin: String = origin.chars().take(128).collect();
    ApiError::new(ErrorCode::ForbiddenOrigin, format!("pages of {origin} may not call; see gateway.allowedOrigins"))
}

/// The request's authority: HTTP/2 has it in the address, HTTP/1.1 in `Host`.
fn host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let host = one(headers, &HOST)?;
    let host = match uri.authority() {
        Some(authority) if version == Version::HTTP_2 || host.is_none() => Some(authority.as_str().to_owned()),
        Some(_) | None => host,
    };
    Ok(host.map(|host| host.to_ascii_lowercase()))
}

fn one(headers: &HeaderMap, header: &HeaderName) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(header).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::invalid(format!("there is more than one {header} header")));
    }
    match value.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(ApiError::invalid(format!("the {header} header is not ASCII"))),
    }
}

fn without_default_port(authority: &str) -> &str {
    authority.strip_suffix(":80").or_else(|| authority.strip_suffix(":443")).unwrap_or(authority)
}

/// The host without its port.
fn name(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if authority[colon + 1..].bytes().all(|byte| byte.is_ascii_digit()) => &authority[..colon],
        Some(_) | None => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(has_token: bool, host: &str, origin: Option<&str>) -> Result<Verdict, ErrorCode> {
        let allowed = Allowed::new(&["https://chat.example".into(), "http://lan.example:8080/".into()], has_token);
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        allowed.check(Version::HTTP_11, &Uri::from_static("/api/v1/chat"), &headers).map_err(|error| error.code)
    }

    #[test]
    fn our_own_pages_and_configured_ones_may_call() {
        for (host, origin) in [
            ("localhost:3000", "http://localhost:3000"),
            ("LOCALHOST:3000", "http://Localhost:3000"),
            ("127.0.0.1:3000", "http://127.0.0.1:3000"),
            ("[::1]:3000", "http://[::1]:3000"),
            ("gw.example", "https://gw.example"),
            ("gw.example:443", "https://gw.example"),
        ] {
            assert_eq!(verdict(true, host, Some(origin)), Ok(Verdict::SameOrigin), "{host} {origin}");
        }
        let cross = Verdict::CrossOrigin("https://chat.example".into());
        assert_eq!(verdict(true, "gw.example", Some("https://chat.example")), Ok(cross));
        assert_eq!(verdict(true, "gw.example", None), Ok(Verdict::SameOrigin));
    }

    #[test]
    fn other_pages_may_not() {
        for origin in [
            "null",
            "",
            "https://evil.example",
            "http://localhost:3001",
            "http://localhost",
            "https://localhost:3000.evil.example",
            "http://localhost:3000@evil.example",
            "file://",
            "chrome-extension://abcdef",
            "http://127.0.0.1:3000",
            "https://chat.example.evil.example",
            "http://chat.example",
            "https://chat.example:8443",
            "https://evilchat.example",
            "https://chat.example/",
            "ftp://localhost:3000",
            "localhost:3000",
            "//localhost:3000",
            "http:localhost:3000",
            "https://sub.chat.example",
            "http://lan.example",
            "http://lan.example:80800",
            "data:text/html,x",
            "http://localhost:3000, https://evil.example",
            "http://0.0.0.0:3000",
        ] {
            assert_eq!(verdict(true, "localhost:3000", Some(origin)), Err(ErrorCode::ForbiddenOrigin), "{origin}");
        }
    }

    #[test]
    fn behind_a_proxy_that_drops_the_port_the_browser_says_that_a_page_is_ours() {
        let check = |site: &str, host: &str, has_token| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            headers.insert(ORIGIN, "http://localhost:3000".parse().unwrap());
            headers.insert(SEC_FETCH_SITE, site.parse().unwrap());
            Allowed::new(&[], has_token).check(Version::HTTP_11, &Uri::from_static("/api/v1/chat"), &headers).is_ok()
        };
        assert!(check("same-origin", "localhost", false));
        // Another port of the same machine, another site, and a name that was pointed at this machine.
        assert!(!check("same-site", "localhost", true));
        assert!(!check("cross-site", "localhost", true));
        assert!(!check("same-origin", "evil.example", false));
    }

    #[test]
    fn without_a_token_only_this_machine_is_named() {
        for host in
            ["localhost:3000", "localhost", "127.0.0.1:1", "[::1]:3000", "[::1]", "chat.example", "lan.example:8080"]
        {
            assert!(verdict(false, host, None).is_ok(), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1:3000",
            "lan.example",
            "x:3000",
        ] {
            assert_eq!(verdict(false, host, None), Err(ErrorCode::ForbiddenOrigin), "{host}");
            assert!(verdict(true, host, None).is_ok(), "{host}");
        }
    }

    #[test]
    fn a_page_that_hides_its_origin_may_only_be_navigated_to() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, "localhost".parse().unwrap());
        headers.insert(SEC_FETCH_SITE, "cross-site".parse().unwrap());
        let check = |headers: &HeaderMap| Allowed::default().check(Version::HTTP_11, &Uri::from_static("/"), headers);
        assert!(check(&headers).is_err());
        headers.insert(SEC_FETCH_MODE, "navigate".parse().unwrap());
        assert!(check(&headers).is_ok());
        headers.append(ORIGIN, "http://localhost".parse().unwrap());
        assert!(check(&headers).is_ok());
        headers.append(ORIGIN, "http://localhost".parse().unwrap());
        assert!(check(&headers).is_err());
    }
}
