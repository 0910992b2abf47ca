//! Numbers of senders.

/// Number under which the samples of one sender (a Prometheus replica of a group) are stored; it comes from the senders
/// table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SenderNo(pub i32);

impl SenderNo {
    /// Unknown sender: the sender of rows that were stored before senders were recorded.
    pub const UNKNOWN: Self = Self(0);

    /// Returns the number under which the sender's stale markers are stored. A marker says that a series has ended for
    /// this sender, so it covers no sample of another sender.
    #[must_use]
    pub fn of_markers(self) -> Self {
        Self(-self.0)
    }

    /// Returns the sender, and whether the number is that of its stale markers.
    #[must_use]
    pub fn split(self) -> (Self, bool) {
        (Self(self.0.saturating_abs()), self.0 < 0)
    }
}
