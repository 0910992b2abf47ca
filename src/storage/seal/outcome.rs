//! Results of a round of sealing.

/// Result of one transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Number of samples that were hot.
    pub samples: usize,
    /// Number of chunks created.
    pub chunks: usize,
    /// Number of chunks that were decoded and replaced.
    pub replaced: usize,
    /// Number of hot samples left out because they were stored already or are older than the retention.
    pub dropped: usize,
}

impl std::ops::AddAssign for Outcome {
    fn add_assign(&mut self, more: Self) {
        self.samples += more.samples;
        self.chunks += more.chunks;
        self.replaced += more.replaced;
        self.dropped += more.dropped;
    }
}
