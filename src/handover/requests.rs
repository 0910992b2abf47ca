//! Requests of a leader that are being stored, in the order in which their samples were sorted.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Requests of a leader that are being stored, by the order in which their samples were sorted.
#[derive(Default)]
pub(super) struct Requests {
    numbers: Mutex<(u64, BTreeSet<u64>)>,
    ended: Notify,
}

/// A request that is being stored.
pub(super) struct InFlight<'a> {
    requests: &'a Requests,
    number: u64,
}

impl Requests {
    /// Adds a request; to be called while nobody else sorts samples.
    pub(super) fn begin(&self) -> InFlight<'_> {
        let mut numbers = self.numbers.lock();
        let (last, in_flight) = &mut *numbers;
        *last += 1;
        in_flight.insert(*last);
        InFlight { requests: self, number: *last }
    }
}

impl InFlight<'_> {
    /// Waits until all requests whose samples were sorted before its own have ended.
    pub(super) async fn is_first(&self) {
        loop {
            let ended = self.requests.ended.notified();
            let first = self.requests.numbers.lock().1.first().copied();
            if first.is_none_or(|first| first >= self.number) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.requests.numbers.lock().1.remove(&self.number);
        self.requests.ended.notify_waiters();
    }
}
