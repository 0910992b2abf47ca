//! What an operator may ask of a running adapter, from its own host alone.

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};

use crate::http::{Answer, Service, method_not_allowed, text, unavailable, with_type};

/// Seals what is hot, and answers when that is done.
pub(super) async fn seal(service: &Service, request: &Request<Incoming>, is_local: bool) -> Answer {
    if request.method() != Method::POST {
        return method_not_allowed("POST");
    }
    if !is_local {
        return text(StatusCode::FORBIDDEN, "only from this host: call it by 127.0.0.1");
    }
    if service.read_only {
        return text(StatusCode::CONFLICT, "this adapter only reads: ask one that writes");
    }
    let Some(store) = service.store.get() else {
        return unavailable("the database has not been reached yet");
    };
    match store.seal(true).await {
        Ok(Some(outcome)) => {
            let json = serde_json::json!({
                "samples": outcome.samples,
                "chunks": outcome.chunks,
                "replaced_chunks": outcome.replaced,
                "dropped_samples": outcome.dropped,
            });
            with_type(StatusCode::OK, "application/json", json.to_string())
        }
        Ok(None) => text(StatusCode::CONFLICT, "another adapter is sealing: try again"),
        Err(error) => {
            log::warn!("sealing failed: {error}");
            unavailable(format!("sealing failed: {error}"))
        }
    }
}
