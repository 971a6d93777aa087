//! How much is under way at once. Full is an answer, not a wait.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use openclaw_proto::http::ErrorCode;
use tokio::sync::OwnedSemaphorePermit;

use super::Gateway;
use super::error::ApiError;

/// Middleware of requests that are answered at once; it holds a place until the answer is made.
pub(super) async fn requests(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let Ok(_place) = gateway.inner.requests.try_acquire() else {
        let limit = gateway.limits().max_concurrent_requests;
        return busy(&format!("{limit} requests are under way already")).into_response();
    };
    next.run(request).await
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
