//! The server's clock, extrapolated with a monotonic clock of this host, which nobody can set.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use crate::model::time::as_ms;

/// The server's clock, extrapolated from the last query. Setting the host's own clock does not affect it.
#[derive(Debug)]
pub struct ServerClock {
    began_at: Instant,
    /// Time of the server's clock at `began_at`, in ms since 1970.
    began_ms: AtomicI64,
}

impl ServerClock {
    /// Creates the clock of a server that showed `server_ms`, in ms since 1970, at `at`.
    #[must_use]
    pub fn new(server_ms: i64, at: Instant) -> Self {
        Self { began_at: at, began_ms: AtomicI64::new(server_ms) }
    }

    /// Records that the server's clock showed `server_ms` at `at`.
    pub fn set(&self, server_ms: i64, at: Instant) {
        self.began_ms.store(server_ms.saturating_sub(self.since_ms(at)), Ordering::Relaxed);
    }

    /// Returns the time of the server's clock at `now`, in ms since 1970.
    #[must_use]
    pub fn at(&self, now: Instant) -> i64 {
        self.began_ms.load(Ordering::Relaxed).saturating_add(self.since_ms(now))
    }

    fn since_ms(&self, at: Instant) -> i64 {
        as_ms(at.saturating_duration_since(self.began_at))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_goes_on_from_the_last_answer() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let clock = ServerClock::new(1_000, began);
        assert_eq!((clock.at(began), clock.at(after(5))), (1_000, 6_000));
        clock.set(-50_000, after(10));
        assert_eq!((clock.at(after(10)), clock.at(after(11))), (-50_000, -49_000));
    }
}
