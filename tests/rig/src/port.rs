//! Free loopback ports.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Ports that `free` returns: above the well-known services, and below the range that the kernel uses for outgoing
/// connections (32768 and up). So no outgoing connection takes a port between the check and its use.
const RANGE: std::ops::Range<u32> = 14_000..32_000;

/// Returns a port that nobody listens on, neither on loopback nor on all addresses. This process does not return it
/// twice.
///
/// # Panics
///
/// If the whole range is taken.
pub fn free() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let span = RANGE.end - RANGE.start;
    // Each process starts at a different offset, so that test binaries that run in parallel rarely check the same port.
    let offset = std::process::id().wrapping_mul(2_654_435_761) % span;
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(RANGE.start + (offset + step) % span).expect("the range lies within u16");
        if is_free(port) {
            return port;
        }
    }
    panic!("no free port between {} and {}", RANGE.start, RANGE.end);
}

/// True if a server could listen on `port` now.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("0.0.0.0", port)).is_ok()
}
