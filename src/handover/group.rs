//! A group: who leads it, and what was observed of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

use crate::model::sender::SenderNo;
use crate::storage::fence::Fence;
use crate::storage::observe::{GroupState, Position};

/// A group as last observed.
#[derive(Debug)]
pub struct Group {
    name: String,
    /// The group's counter of reconciliations as last observed.
    reconciled: AtomicI64,
    /// See [`Group::observed`].
    observed: Mutex<Arc<Position>>,
    leading: Mutex<Option<Leading>>,
}

/// Leader of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leading {
    /// The right to write.
    pub fence: Fence,
    /// Sender whose samples are stored as they come; `None` for a term that was begun by an adapter from before senders
    /// had numbers.
    pub sender: Option<SenderNo>,
}

/// Group of an adapter without an election.
pub const NO_GROUP: &str = "";

impl Group {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            reconciled: AtomicI64::new(0),
            observed: Mutex::new(Arc::new(Position::none())),
            leading: Mutex::default(),
        }
    }

    /// Returns the group's name in the leader table.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the counter of reconciliations as last observed.
    #[must_use]
    pub fn reconciled(&self) -> i64 {
        self.reconciled.load(Ordering::Acquire)
    }

    /// Returns the position up to which the group was observed.
    #[must_use]
    pub fn observed(&self) -> Arc<Position> {
        Arc::clone(&self.observed.lock())
    }

    /// Returns the leader as last observed.
    #[must_use]
    pub fn leading(&self) -> Option<Leading> {
        *self.leading.lock()
    }

    /// Notes that this adapter has raised the counter to `reconciled`. If the last observed value is one less, nobody
    /// else has raised it meanwhile.
    pub(super) fn told(&self, reconciled: i64) {
        let _ = self.reconciled.compare_exchange(reconciled - 1, reconciled, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Forgets what is known of the group, because the server is another one.
    pub(super) fn moved(&self) {
        // No counter has this value, so a write that shows it is refused until the group was read.
        self.reconciled.store(-1, Ordering::Release);
        *self.observed.lock() = Arc::new(Position::none());
        *self.leading.lock() = None;
    }

    pub(super) fn on_read(&self, read: &GroupState, position: &Arc<Position>) {
        self.reconciled.store(read.reconciled, Ordering::Release);
        *self.observed.lock() = Arc::clone(position);
        let leading = read.token.map(|token| Leading {
            fence: Fence { group_no: read.group_no, term: read.term, token },
            sender: read.sender_no,
        });
        *self.leading.lock() = leading;
    }
}
