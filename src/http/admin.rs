//! Orders of an operator to a running adapter, and the check that the client may give them.

use hyper::body::Incoming;
use hyper::header::{HeaderMap, ORIGIN};
use hyper::{Method, Request, StatusCode};

use crate::http::answer::{Answer, method_not_allowed, text, unavailable, with_type};
use crate::http::election;
use crate::http::service::Service;
use crate::storage::SealedRows;

/// Answers all routes under `/admin/`.
pub(super) async fn answer(service: &Service, request: Request<Incoming>, is_local: bool) -> Answer {
    let is_reading = request.method() == Method::GET;
    if !is_reading && let Err(answer) = authorise(service, request.headers(), is_local) {
        return *answer;
    }
    match request.uri().path() {
        "/admin/storage/seal" => seal(service, &request).await,
        "/admin/election/leader" => election::leader(service, request).await,
        "/admin/election/resign" | "/admin/election/hand-over" | "/admin/election/hold" | "/admin/election/release" => {
            election::order(service, &request).await
        }
        path => text(StatusCode::NOT_FOUND, format!("no such path: {path}")),
    }
}

/// Checks that a client may change something. With a configured token, the client must send it. Without one, the client
/// must be on this host and no web page.
fn authorise(service: &Service, headers: &HeaderMap, is_local: bool) -> Result<(), Box<Answer>> {
    match &service.config.admin_token {
        Some(token) if token.is_shown(headers) => Ok(()),
        Some(_) => Err(Box::new(text(
            StatusCode::FORBIDDEN,
            "only with the adapter's -web-admin-token: send it as Authorization: Bearer TOKEN",
        ))),
        None if !is_local => Err(Box::new(text(
            StatusCode::FORBIDDEN,
            "only from this host: call it by 127.0.0.1, or start the adapter with -web-admin-token",
        ))),
        None if headers.contains_key(ORIGIN) => {
            Err(Box::new(text(StatusCode::FORBIDDEN, "not from a web page: start the adapter with -web-admin-token")))
        }
        None => Ok(()),
    }
}

/// Seals the hot samples, and answers when that is done.
async fn seal(service: &Service, request: &Request<Incoming>) -> Answer {
    if request.method() != Method::POST {
        return method_not_allowed("POST");
    }
    if service.read_only {
        return text(StatusCode::CONFLICT, "this adapter only reads: ask one that writes");
    }
    let Some(store) = service.store.get() else {
        return unavailable("the database has not been reached yet");
    };
    let sealed = tokio::select! {
        sealed = store.seal(SealedRows::All) => sealed,
        () = service.stopping.cancelled() => return unavailable("the adapter is stopping"),
    };
    match sealed {
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
            log::warn!(err:% = error; "sealing failed");
            unavailable(format!("sealing failed: {error}"))
        }
    }
}
