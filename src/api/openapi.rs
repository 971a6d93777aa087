//! The surface as an OpenAPI document, made from the handlers' own types.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{Gateway, channels, chat, cluster, health, maintenance, metrics, openai, overview, sessions, turns};

#[derive(OpenApi)]
#[openapi(
    info(title = "openclaw", description = "A self-hosted, clustered gateway between chat channels and AI models"),
    paths(
        chat::chat,
        chat::stream,
        chat::resume,
        chat::command,
        turns::get,
        turns::cancel,
        sessions::list,
        sessions::get,
        sessions::update,
        sessions::delete,
        sessions::reset,
        sessions::entries,
        sessions::append,
        cluster::get,
        cluster::state_hash,
        cluster::backup,
        cluster::transfer_leader,
        cluster::remove,
        overview::get,
        channels::list,
        channels::move_to,
        channels::dead_letters,
        channels::decide,
        channels::telegram_webhook,
        channels::pairings,
        channels::approve,
        channels::revoke,
        maintenance::get,
        maintenance::set,
        health::health,
        health::live,
        health::ready,
        metrics::get,
        openai::completions,
        openai::models,
        openai::model,
        self::get,
    ),
    components(schemas(openclaw_proto::http::ErrorBody, openclaw_proto::http::StreamEvent)),
    modifiers(&BearerToken),
    security(("token" = []))
)]
struct Document;

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", token);
    }
}

/// The document as JSON.
pub(super) fn document() -> Bytes {
    // Made of texts and numbers: it always serializes.
    serde_json::to_vec(&Document::openapi()).unwrap_or_default().into()
}

/// This document.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "operation", responses((status = 200, description = "OpenAPI 3.1")))]
pub(super) async fn get(State(gateway): State<Gateway>) -> Response {
    ([(CONTENT_TYPE, "application/json")], gateway.inner.document.clone()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same answers under names that probes and scrapers expect.
    const ALIASES: [&str; 6] = ["/health", "/healthz", "/ready", "/readyz", "/metrics", "/v1/models/{*id}"];
    /// Files, not interface.
    const FILES: [&str; 3] = ["/", "/cluster", "/{asset}"];

    #[test]
    fn every_route_is_documented() {
        let document: serde_json::Value = serde_json::from_slice(&document()).unwrap();
        let mut routes = 0;
        for line in include_str!("mod.rs").lines().filter(|line| line.trim_start().starts_with(".route(\"")) {
            let mut parts = line.trim().trim_start_matches(".route(\"").splitn(2, "\", ");
            let (path, method) = (parts.next().unwrap(), parts.next().unwrap().split('(').next().unwrap());
            routes += 1;
            if ALIASES.contains(&path) || FILES.contains(&path) {
                continue;
            }
            let operation = &document["paths"][path][method];
            assert!(operation.is_object(), "{method} {path} is not in the document");
        }
        assert!(routes > 25, "{routes} routes found");
    }
}
