//! The pages - WebChat at `/`, the dashboard at `/cluster` - and the files they need, out of the binary.
//!
//! Nothing in it is inline and nothing comes from elsewhere, so that the policy can say so.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, REFERRER_POLICY,
    X_FRAME_OPTIONS,
};
use sha2::{Digest, Sha256};

use super::Gateway;
use super::error::ApiError;
use super::extract::Name;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

const PAGE: &str = "index.html";
const DASHBOARD: &str = "dashboard.html";

macro_rules! files {
    ($($folder:ident / $name:literal: $media_type:expr),+ $(,)?) => {
        &[$(($name, $media_type, include_bytes!(concat!(stringify!($folder), "/", $name)))),+]
    };
}

/// Name, media type, contents. The names are one space, whatever their folder.
const FILES: &[(&str, &str, &[u8])] = files! {
    webchat/"index.html": HTML,
    webchat/"base.css": STYLE,
    webchat/"style.css": STYLE,
    webchat/"icon.svg": SVG,
    webchat/"app.js": SCRIPT,
    webchat/"api.js": SCRIPT,
    webchat/"cluster.js": SCRIPT,
    webchat/"markdown.js": SCRIPT,
    webchat/"sessions.js": SCRIPT,
    webchat/"sse.js": SCRIPT,
    webchat/"token.js": SCRIPT,
    webchat/"turn.js": SCRIPT,
    dashboard/"dashboard.html": HTML,
    dashboard/"dashboard.css": STYLE,
    dashboard/"dashboard.js": SCRIPT,
    dashboard/"charts.js": SCRIPT,
    dashboard/"words.js": SCRIPT,
};

/// The files with their tags, made once.
pub(super) struct Assets(Vec<Asset>);

struct Asset {
    name: &'static str,
    media_type: &'static str,
    bytes: Bytes,
    etag: HeaderValue,
}

impl Assets {
    pub(super) fn new() -> Self {
        let asset = |&(name, media_type, bytes): &(&'static str, &'static str, &'static [u8])| {
            let digits: String = Sha256::digest(bytes).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            let etag = HeaderValue::from_str(&format!("\"{digits}\"")).unwrap_or(HeaderValue::from_static("\"\""));
            Asset { name, media_type, bytes: Bytes::from_static(bytes), etag }
        };
        Self(FILES.iter().map(asset).collect())
    }

    fn serve(&self, name: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
        let asset = self.0.iter().find(|asset| asset.name == name).ok_or_else(|| ApiError::not_found("path"))?;
        let known = headers.get_all(IF_NONE_MATCH).iter().any(|value| {
            let listed = |text: &str| text.split(',').any(|tag| tag.trim().trim_start_matches("W/") == asset.etag);
            value.to_str().is_ok_and(|text| text.trim() == "*" || listed(text))
        });
        let mut response =
            if known { StatusCode::NOT_MODIFIED.into_response() } else { asset.bytes.clone().into_response() };
        let headers = response.headers_mut();
        if !known {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.media_type));
        }
        headers.insert(ETAG, asset.etag.clone());
        // Asked again each time, and answered with 304: another instance may run another release.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        Ok(response)
    }
}

pub(super) async fn page(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Response, ApiError> {
    gateway.inner.assets.serve(PAGE, &headers)
}

pub(super) async fn dashboard(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Response, ApiError> {
    gateway.inner.assets.serve(DASHBOARD, &headers)
}

pub(super) async fn asset(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    Name(name): Name,
) -> Result<Response, ApiError> {
    // Each page has one address.
    if name == PAGE || name == DASHBOARD {
        return Err(ApiError::not_found("path"));
    }
    gateway.inner.assets.serve(&name, &headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_the_page_names_is_served_and_nothing_is_inline() {
        let pages = FILES.iter().filter(|file| file.1 == HTML).map(|file| std::str::from_utf8(file.2).unwrap());
        for html in pages {
            for part in
                html.split(['"', '\'']).filter(|part| part.starts_with('/') && !["/", "/cluster"].contains(part))
            {
                assert!(FILES.iter().any(|(name, ..)| *name == &part[1..]), "{part}");
            }
            assert!(!html.contains("<style") && !html.contains(" style=") && !html.contains("onclick="));
            assert_eq!(html.matches("<script").count(), html.matches("<script type=\"module\" src=").count());
        }
        for file in FILES.iter().filter(|file| file.1 == SCRIPT) {
            let script = std::str::from_utf8(file.2).unwrap();
            for import in script.lines().filter(|line| line.starts_with("import ")) {
                let name = import.split("'./").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
                assert!(FILES.iter().any(|(served, ..)| *served == name), "{import}");
            }
        }
    }
}
