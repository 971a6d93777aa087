//! How much is under way at once. Full is an answer, not a wait.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use openclaw_proto::http::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, SemaphorePermit};

use super::Gateway;
use super::error::ApiError;

/// Middleware of requests that are answered at once; it holds a place until the answer is made.
pub(super) async fn requests(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    match self::request(&gateway) {
        Ok(_place) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// A place for one request.
///
/// # Errors
/// `busy` when there are as many as allowed.
pub(super) fn request(gateway: &Gateway) -> Result<SemaphorePermit<'_>, ApiError> {
    gateway.inner.requests.try_acquire().map_err(|_| {
        let limit = gateway.limits().max_concurrent_requests;
        busy(&format!("{limit} requests are under way already"))
    })
}

/// A place for a stream, which its body holds as long as it is read.
///
/// # Errors
/// `busy` when there are as many streams as allowed.
pub(super) fn stream(gateway: &Gateway) -> Result<OwnedSemaphorePermit, ApiError> {
    gateway.inner.streams.clone().try_acquire_owned().map_err(|_| {
        let limit = gateway.limits().max_streams;
        busy(&format!("{limit} streams are open already"))
    })
}

fn busy(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Busy, message)
}
