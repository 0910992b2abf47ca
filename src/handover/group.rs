//! What is known of a group: who leads it, and what was observed of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

use crate::model::sender::SenderNo;
use crate::storage::fence::Fence;
use crate::storage::observe::{GroupState, Position};

/// What is known of a group.
#[derive(Debug)]
pub struct Group {
    name: String,
    /// The group's counter of reconciliations as last observed.
    reconciled: AtomicI64,
    /// See [`Group::observed`].
    observed: Mutex<Arc<Position>>,
    leading: Mutex<Option<Leading>>,
}

/// Who leads a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leading {
    /// The right to write.
    pub fence: Fence,
    /// Whose samples are stored as they come; `None` of a term begun by an adapter of before senders had numbers.
    pub sender: Option<SenderNo>,
}

/// The group of an adapter without an election.
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

    /// What it is called in the leader table.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its counter of reconciliations as last observed.
    #[must_use]
    pub fn reconciled(&self) -> i64 {
        self.reconciled.load(Ordering::Acquire)
    }

    /// What was observed of it.
    #[must_use]
    pub fn observed(&self) -> Arc<Position> {
        Arc::clone(&self.observed.lock())
    }

    /// Who leads it, as last observed.
    #[must_use]
    pub fn leading(&self) -> Option<Leading> {
        *self.leading.lock()
    }

    /// This adapter has raised the counter to `reconciled`. If it was as last observed before, nobody else has raised it.
    pub(super) fn told(&self, reconciled: i64) {
        let _ = self.reconciled.compare_exchange(reconciled - 1, reconciled, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// The server is another one: nothing is known of the group.
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
