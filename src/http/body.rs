//! Bodies: bounded before they are read, and again before they are decompressed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::CONTENT_ENCODING;
use hyper::{HeaderMap, Request, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::{Answer, text, unavailable};
use crate::wire::snappy;

/// The limit of Prometheus' own receiver, for a body as received and as declared when decompressed.
pub(super) const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A body as received and as decompressed, with what it takes of the budget.
pub(super) struct Received {
    /// As received.
    pub(super) compressed: Bytes,
    /// As decompressed.
    pub(super) plain: Vec<u8>,
    _permits: [OwnedSemaphorePermit; 2],
}

/// Refuses an encoding other than snappy.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Box<Answer>> {
    match headers.get(CONTENT_ENCODING) {
        None => Ok(()),
        Some(encoding) if encoding.as_bytes().eq_ignore_ascii_case(b"snappy") => Ok(()),
        Some(encoding) => Err(Box::new(text(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("the Content-Encoding {encoding:?} is not supported: send snappy (block format)"),
        ))),
    }
}

/// Reads and decompresses a body within `timeout`.
pub(super) async fn receive(
    request: Request<Incoming>,
    budget: &Arc<Semaphore>,
    timeout: Duration,
) -> Result<Received, Box<Answer>> {
    let body = request.into_body();
    let declared =
        body.size_hint().exact().map_or(BODY_BYTES_MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if declared > BODY_BYTES_MAX {
        return Err(Box::new(too_large()));
    }
    let work = async {
        let permit = acquire(budget, declared).await?;
        let compressed = match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
            Err(error) => return Err(unavailable(format!("the body did not arrive whole: {error}"))),
        };
        let bad = |error: snappy::Error| text(StatusCode::BAD_REQUEST, error.to_string());
        let length = snappy::decompressed_len(&compressed).map_err(bad)?;
        if length > BODY_BYTES_MAX {
            return Err(bad(snappy::Error::TooLarge { declared: length, max: BODY_BYTES_MAX }));
        }
        // Not waited for while the first permit is held: two bodies could wait for each other.
        let second = Arc::clone(budget).try_acquire_many_owned(kib(length)).map_err(|_| overloaded())?;
        let plain = snappy::decompress(&compressed, BODY_BYTES_MAX).map_err(bad)?;
        Ok(Received { compressed, plain, _permits: [permit, second] })
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(received) => received.map_err(Box::new),
        Err(_) => Err(Box::new(unavailable(format!("the body did not arrive within {timeout:?}")))),
    }
}

async fn acquire(budget: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Answer> {
    Arc::clone(budget).acquire_many_owned(kib(bytes)).await.map_err(|_| overloaded())
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

fn too_large() -> Answer {
    text(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {BODY_BYTES_MAX} bytes"))
}

fn overloaded() -> Answer {
    unavailable("too many requests are under way: their bodies fill the memory set aside for them")
}
