//! What a round of sealing did.

/// What one transaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Samples that were hot.
    pub samples: usize,
    /// Chunks made.
    pub chunks: usize,
    /// Chunks taken apart for it.
    pub replaced: usize,
    /// Hot samples left out, being there already or older than the retention.
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
