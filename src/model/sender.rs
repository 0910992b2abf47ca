//! Numbers of senders.

/// The number under which the samples of one sender, a Prometheus replica of a group, are stored: from the senders table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SenderNo(pub i32);

impl SenderNo {
    /// Nobody known: of rows stored before senders were recorded.
    pub const UNKNOWN: Self = Self(0);

    /// The number under which its stale markers are stored: they say that a series has ended for this sender, so they stand for no
    /// other one's sample.
    #[must_use]
    pub fn of_markers(self) -> Self {
        Self(-self.0)
    }

    /// The sender, and whether the number is that of its stale markers.
    #[must_use]
    pub fn split(self) -> (Self, bool) {
        (Self(self.0.saturating_abs()), self.0 < 0)
    }
}
