//! Whether a leader's writes reach the database.

use std::time::Instant;

use parking_lot::Mutex;

/// How the last writes of this adapter ended: told by the receiver, read by the election.
#[derive(Debug, Default)]
pub struct WritePath(Mutex<Option<Failing>>);

/// Writes have failed, and none has been committed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// When the first of them failed.
    pub since: Instant,
    /// When the last one did.
    pub last: Instant,
}

impl WritePath {
    /// A write was committed, or the database found that it was already there.
    pub fn succeeded(&self) {
        *self.0.lock() = None;
    }

    /// A write failed through the database or on the way to it. Not to be called where a newer term refused it.
    pub fn failed(&self, now: Instant) {
        let mut failing = self.0.lock();
        let since = failing.map_or(now, |failing| failing.since);
        *failing = Some(Failing { since, last: now });
    }

    /// Since when writes fail; `None` if the last one did not.
    #[must_use]
    pub fn failing(&self) -> Option<Failing> {
        *self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_that_is_committed_ends_the_failure() {
        let write_path = WritePath::default();
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        write_path.failed(start);
        write_path.failed(later);
        assert_eq!(write_path.failing(), Some(Failing { since: start, last: later }));
        write_path.succeeded();
        assert_eq!(write_path.failing(), None);
        write_path.failed(later);
        assert_eq!(write_path.failing(), Some(Failing { since: later, last: later }));
    }
}
