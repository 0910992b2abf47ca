//! Numbers of senders.

/// The number under which the samples of one sender, a Prometheus replica of a group, are stored: from the senders table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SenderNo(pub i32);

impl SenderNo {
    /// Nobody known: of rows stored before senders were recorded.
    pub const UNKNOWN: Self = Self(0);
}
