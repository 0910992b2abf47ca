//! The results of this adapter's writes, by which a leader learns that it cannot store.

use std::time::Instant;

use parking_lot::Mutex;

/// The result of the last writes of this adapter: written by the receiver, read by the election.
#[derive(Debug, Default)]
pub struct WritePath(Mutex<Option<Failing>>);

/// A run of failed writes, with no committed write since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// When the first of the writes failed.
    pub since: Instant,
    /// When the last of the writes failed.
    pub last: Instant,
}

impl WritePath {
    /// Notes that a write was committed, or was found to be stored already.
    pub fn succeeded(&self) {
        *self.0.lock() = None;
    }

    /// Notes that a write failed in the database or on the way to it. Not to be called if a newer term refused the
    /// write.
    pub fn failed(&self, now: Instant) {
        let mut failing = self.0.lock();
        let since = failing.map_or(now, |failing| failing.since);
        *failing = Some(Failing { since, last: now });
    }

    /// Returns the present run of failed writes; `None` if the last write did not fail.
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
