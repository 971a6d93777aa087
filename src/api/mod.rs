//! The HTTP surface.
//!
//! Owns routes, what a request must look like, who may send it, and how answers and errors are written. It decides
//! nothing about conversations: a handler parses, asks `sessions`, the store or the [`ClusterView`], and writes what came
//! back. Requests come from [`server`]'s connections, or from tests straight into [`router`].
//!
//! A request passes, from the outside in: [`envelope`] (id, origin, panics, headers, metrics), the matched route,
//! [`auth`] where the route needs the token, the limit of concurrent requests, then its handler.

mod auth;
mod channels;
mod chat;
mod client;
mod cluster;
mod envelope;
mod error;
mod extract;
mod guesses;
mod health;
mod limits;
mod maintenance;
mod metrics;
mod openai;
mod openapi;
mod origin;
mod overview;
pub mod server;
mod sessions;
mod sse;
mod turns;
mod webchat;

pub use channels::ChannelView;
pub use cluster::{BackupStream, ClusterError, ClusterStatus, ClusterView};
pub use error::ApiError;
pub use health::{HealthView, standing};
pub use overview::OverviewView;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, patch, post};
use http::{HeaderMap, HeaderValue};
use openclaw_config::gateway;
use openclaw_config::{Agents, IpRange};
use openclaw_proto::http::ErrorCode;
use openclaw_proto::ids::InstanceId;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::models::Models;
use crate::sessions::commands::Commander;
use crate::sessions::follow::Follow;
use crate::sessions::runner::Load;
use crate::store::SessionStore;

/// Who is at the other end of a connection; the server puts it into every request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// Whoever may open the admin socket: its file permissions are the check.
    Operator,
}

impl Peer {
    /// A request without one came from somewhere unknown, which earns no trust.
    fn of(request: &Request) -> Self {
        request.extensions().get().copied().unwrap_or(Self::Tcp(SocketAddr::from(([0, 0, 0, 0], 0))))
    }
}

/// What the surface is made of.
pub struct Parts {
    pub instance_id: InstanceId,
    pub store: Arc<dyn SessionStore>,
    pub follow: Follow,
    pub load: Load,
    pub models: Models,
    pub agents: Agents,
    pub cluster: Arc<dyn ClusterView>,
    pub channels: Arc<dyn ChannelView>,
    pub health: Arc<dyn HealthView>,
    pub overview: Arc<dyn OverviewView>,
    pub metrics: Metrics,
    pub config: gateway::Gateway,
    /// Most turns that wait in one session.
    pub max_queued: u32,
    pub commander: Commander,
    /// Words that begin a conversation anew.
    pub reset_triggers: Vec<String>,
    /// Cancelled when what is open has to end.
    pub stopping: CancellationToken,
}

/// The state that handlers share. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    token: Option<auth::Token>,
    guesses: guesses::Guesses,
    origins: origin::Allowed,
    instance_header: HeaderValue,
    started: Instant,
    requests: Semaphore,
    streams: Arc<Semaphore>,
    assets: webchat::Assets,
    document: bytes::Bytes,
}

impl Gateway {
    pub fn new(parts: Parts) -> Self {
        let token = parts.config.auth.token.as_ref().map(|token| auth::Token::new(token.expose()));
        let origins = origin::Allowed::new(&parts.config.allowed_origins, token.is_some());
        let places = |limit: u32| Semaphore::new((limit as usize).clamp(1, Semaphore::MAX_PERMITS));
        Self {
            inner: Arc::new(Inner {
                origins,
                // Instance ids are visible ASCII.
                instance_header: HeaderValue::from_str(parts.instance_id.as_str())
                    .unwrap_or(HeaderValue::from_static("unknown")),
                started: Instant::now(),
                requests: places(parts.config.limits.max_concurrent_requests),
                streams: Arc::new(places(parts.config.limits.max_streams)),
                assets: webchat::Assets::new(),
                document: openapi::document(),
                token,
                guesses: guesses::Guesses::default(),
                parts,
            }),
        }
    }

    fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    fn store(&self) -> &Arc<dyn SessionStore> {
        &self.inner.parts.store
    }

    fn cluster(&self) -> &dyn ClusterView {
        &*self.inner.parts.cluster
    }

    fn metrics(&self) -> &Metrics {
        &self.inner.parts.metrics
    }

    fn limits(&self) -> &gateway::Limits {
        &self.inner.parts.config.limits
    }

    fn trusted_proxies(&self) -> &[IpRange] {
        &self.inner.parts.config.trusted_proxies
    }

    fn origins(&self) -> &origin::Allowed {
        &self.inner.origins
    }

    fn instance_header(&self) -> HeaderValue {
        self.inner.instance_header.clone()
    }

    /// Whether the caller may see and do everything.
    fn authorize(&self, peer: Peer, headers: &HeaderMap) -> Result<(), ApiError> {
        auth::check(self.inner.token.as_ref(), peer, headers).map_err(|refusal| {
            let client = client::address(peer, headers, self.trusted_proxies());
            self.inner.guesses.judge(&refusal, client)
        })
    }
}

/// All routes.
pub fn router(gateway: Gateway) -> Router {
    let work = Router::new()
        .route("/api/v1/chat", post(chat::chat))
        .route("/api/v1/chat/command", post(chat::command))
        .route("/api/v1/turns/{id}", get(turns::get))
        .route("/api/v1/turns/{id}/cancel", post(turns::cancel))
        .route("/api/v1/sessions", get(sessions::list))
        .route("/api/v1/sessions/{key}", get(sessions::get))
        .route("/api/v1/sessions/{key}", patch(sessions::update))
        .route("/api/v1/sessions/{key}", delete(sessions::delete))
        .route("/api/v1/sessions/{key}/reset", post(sessions::reset))
        .route("/api/v1/sessions/{key}/entries", get(sessions::entries))
        .route("/api/v1/sessions/{key}/entries", post(sessions::append))
        .route_layer(from_fn_with_state(gateway.clone(), limits::requests));
    // Streams have their own limit, which their bodies hold.
    let streams =
        Router::new().route("/api/v1/chat/stream", post(chat::stream)).route("/api/v1/chat/stream", get(chat::resume));
    // Whoever operates a full instance must still be able to ask it, and to take it out.
    let operate = Router::new()
        .route("/api/v1/cluster", get(cluster::get))
        .route("/api/v1/cluster/state-hash", get(cluster::state_hash))
        .route("/api/v1/cluster/backup", get(cluster::backup))
        .route("/api/v1/cluster/transfer-leader", post(cluster::transfer_leader))
        .route("/api/v1/cluster/remove", post(cluster::remove))
        .route("/api/v1/overview", get(overview::get))
        .route("/api/v1/channels", get(channels::list))
        .route("/api/v1/channels/{account}/move", post(channels::move_to))
        .route("/api/v1/channels/{account}/dead-letters", get(channels::dead_letters))
        .route("/api/v1/channels/{account}/dead-letters/{id}", post(channels::decide))
        .route("/api/v1/pairings", get(channels::pairings))
        .route("/api/v1/pairings/approve", post(channels::approve))
        .route("/api/v1/pairings/revoke", post(channels::revoke))
        .route("/api/v1/maintenance", get(maintenance::get))
        .route("/api/v1/maintenance", post(maintenance::set));
    let mut guarded = Router::new().merge(work).merge(streams).merge(operate);
    if gateway.parts().config.http.endpoints.chat_completions.enabled {
        guarded = guarded
            .route("/v1/chat/completions", post(openai::completions))
            .route("/v1/models", get(openai::models))
            .route("/v1/models/{*id}", get(openai::model));
    }
    let guarded = guarded.route_layer(from_fn_with_state(gateway.clone(), auth::require));

    let open = Router::new()
        // Its secret is its own.
        .route("/api/v1/webhooks/telegram/{account}", post(channels::telegram_webhook))
        .route("/", get(webchat::page))
        .route("/cluster", get(webchat::dashboard))
        .route("/{asset}", get(webchat::asset))
        .route("/api/v1/openapi.json", get(openapi::get))
        .route("/api/v1/health", get(health::health))
        .route("/api/v1/health/live", get(health::live))
        .route("/api/v1/health/ready", get(health::ready))
        .route("/health", get(health::live))
        .route("/healthz", get(health::live))
        .route("/ready", get(health::ready))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::get))
        .route("/api/v1/metrics", get(metrics::get));

    Router::new()
        .merge(open)
        .merge(guarded)
        .fallback(async || ApiError::new(ErrorCode::NotFound, "no such path; see /api/v1/openapi.json"))
        .method_not_allowed_fallback(async || {
            ApiError::new(ErrorCode::MethodNotAllowed, "this path does not know this method; see /api/v1/openapi.json")
        })
        .layer(from_fn_with_state(gateway.clone(), envelope::wrap))
        .with_state(gateway)
}

/// The same routes for whoever may open the admin socket.
pub fn operator_router(gateway: Gateway) -> Router {
    router(gateway).layer(from_fn(async |mut request: Request, next: axum::middleware::Next| {
        request.extensions_mut().insert(Peer::Operator);
        next.run(request).await
    }))
}

#[cfg(test)]
mod tests;
