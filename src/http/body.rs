//! Request bodies. Their size is limited before they are read, and again before they are decompressed.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, HeaderValue};
use hyper::{HeaderMap, Request, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::answer::{Answer, text, unavailable};
use crate::wire::snappy;

/// Largest body, as received and as declared when decompressed. The limit of Prometheus' own receiver.
pub(super) const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// KiB that bodies in flight may use together, as received and as decompressed.
const BUDGET_KIB: usize = 256 * 1024;

/// Largest number of memory blocks that are kept for further bodies.
const KEPT_MAX: usize = 8;

/// Largest memory block that is kept, in bytes. Prometheus' own bodies are smaller.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// Time limit for reading the rest of an unwanted body.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes allocated for a body before any of it has arrived.
const UNSEEN_BYTES_MAX: usize = 64 * 1024;

/// The memory that all bodies use.
pub struct Bodies {
    /// The memory that bodies may still use, in KiB.
    budget: Arc<Semaphore>,
    /// Memory blocks of decompressed bodies, to be used again.
    kept: Mutex<Vec<Vec<u8>>>,
}

/// A body as received and as decompressed, with its share of the budget.
pub(super) struct Received {
    /// As received.
    pub(super) compressed: Bytes,
    /// As decompressed.
    pub(super) plain: Vec<u8>,
    bodies: Arc<Bodies>,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Default for Bodies {
    fn default() -> Self {
        Self { budget: Arc::new(Semaphore::new(BUDGET_KIB)), kept: Mutex::default() }
    }
}

impl Bodies {
    /// Returns a kept memory block with a capacity of at least `length` bytes, or an empty one.
    fn memory(&self, length: usize) -> Vec<u8> {
        let mut kept = self.kept.lock();
        let fitting = kept.iter().rposition(|memory| memory.capacity() >= length);
        fitting.map(|at| kept.remove(at)).unwrap_or_default()
    }

    /// Keeps a memory block. If too many are kept, the oldest one is freed.
    fn keep(&self, memory: Vec<u8>) {
        if !(1..=KEPT_BYTES_MAX).contains(&memory.capacity()) {
            return;
        }
        let mut kept = self.kept.lock();
        if kept.len() == KEPT_MAX {
            kept.remove(0);
        }
        kept.push(memory);
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.bodies.keep(std::mem::take(&mut self.plain));
    }
}

/// Reads the rest of a body and discards it, within limits. Without this, an answer that is sent before the body has
/// been read would reach the sender as a broken connection.
pub(super) async fn discard(request: Request<Incoming>) {
    let mut body = request.into_body();
    let work = async {
        let mut left = BODY_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // If the body is slower than this, its sender only misses the text of the answer.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, work).await;
}

/// Returns an error for an encoding other than snappy.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), String> {
    match headers.get(CONTENT_ENCODING) {
        None => Ok(()),
        Some(encoding) if encoding.as_bytes().eq_ignore_ascii_case(b"snappy") => Ok(()),
        Some(encoding) => {
            Err(format!("the Content-Encoding {} is not supported: send snappy (block format)", quoted(encoding)))
        }
    }
}

/// Returns a header's value for an error text. A long value is truncated, because the text is logged and shown.
pub(super) fn quoted(value: &HeaderValue) -> String {
    format!("{:?}", String::from_utf8_lossy(value.as_bytes()).chars().take(100).collect::<String>())
}

/// Reads and decompresses a body within `timeout`.
pub(super) async fn receive(
    request: Request<Incoming>,
    bodies: &Arc<Bodies>,
    timeout: Duration,
) -> Result<Received, Box<Answer>> {
    let body = request.into_body();
    let declared =
        body.size_hint().exact().map_or(BODY_BYTES_MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if declared > BODY_BYTES_MAX {
        return Err(Box::new(too_large()));
    }
    let work = async {
        let (compressed, permit) = collect(body, declared, &bodies.budget).await?;
        let bad = |error: snappy::Error| Box::new(text(StatusCode::BAD_REQUEST, error.to_string()));
        let length = snappy::decompressed_len(&compressed).map_err(bad)?;
        if length > BODY_BYTES_MAX {
            return Err(bad(snappy::Error::TooLarge { declared: length, max: BODY_BYTES_MAX }));
        }
        // A kept block may be larger than needed. All of it counts.
        let memory = bodies.memory(length);
        let second = take(&bodies.budget, kib(length.max(memory.capacity())))?;
        let plain = snappy::decompress(&compressed, BODY_BYTES_MAX, memory).map_err(bad)?;
        Ok(Received { compressed, plain, bodies: Arc::clone(bodies), _permits: [permit, second] })
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(received) => received,
        Err(_) => Err(Box::new(unavailable(format!("the body did not arrive within {timeout:?}")))),
    }
}

/// Reads a body. Only bytes that have arrived count against the budget, not the announced length, so many slow clients
/// block nobody.
async fn collect(
    mut body: Incoming,
    declared: usize,
    budget: &Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), Box<Answer>> {
    let mut permit = take(budget, 1)?;
    let mut received = BytesMut::with_capacity(declared.min(UNSEEN_BYTES_MAX));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Box::new(unavailable(format!("the body did not arrive whole: {error}"))))?;
        let Ok(data) = frame.into_data() else { continue };
        if received.len() + data.len() > BODY_BYTES_MAX {
            return Err(Box::new(too_large()));
        }
        received.extend_from_slice(&data);
        let more = kib(received.len()).saturating_sub(u32::try_from(permit.num_permits()).unwrap_or(u32::MAX));
        permit.merge(take(budget, more)?);
    }
    Ok((received.freeze(), permit))
}

/// Takes a share of the budget, or fails at once. It does not wait, because bodies that each hold a share could wait
/// for each other.
fn take(budget: &Arc<Semaphore>, kib: u32) -> Result<OwnedSemaphorePermit, Box<Answer>> {
    Arc::clone(budget).try_acquire_many_owned(kib).map_err(|_| Box::new(overloaded()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_within_bounds_and_given_to_what_fits() {
        let bodies = Bodies::default();
        bodies.keep(Vec::new());
        bodies.keep(Vec::with_capacity(KEPT_BYTES_MAX + 1));
        assert_eq!(bodies.memory(0).capacity(), 0, "neither of them is kept");
        (0..=KEPT_MAX).for_each(|n| bodies.keep(Vec::with_capacity(1000 + n)));
        assert_eq!(bodies.memory(1000 + KEPT_MAX + 1).capacity(), 0, "there is none so large");
        let given: Vec<usize> = (0..=KEPT_MAX).map(|_| bodies.memory(1).capacity()).collect();
        let mut expected: Vec<usize> = (1..=KEPT_MAX).rev().map(|n| 1000 + n).collect();
        expected.push(0);
        assert_eq!(given, expected, "the latest first, and the oldest is gone");
    }
}
