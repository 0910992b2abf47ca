//! Whether an adapter that serves one Prometheus is sent the same series by another replica, too. Pure: time is an argument.
//!
//! Where labels do not say who leads, all that an adapter is sent counts as one sender's, and a sender's own samples never stand for
//! each other: of two replicas both would be stored.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::storage::sources::SourceId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    /// Who sent a series first; of some series.
    first: HashMap<i64, SourceId>,
    /// When each was heard last and not refused.
    heard: HashMap<SourceId, Instant>,
    /// Who sends series of another one, and of whom.
    same: HashMap<SourceId, SourceId>,
}

/// Of so many series one is remembered: replicas share all of them.
const ONE_OF: i64 = 16;

/// So many are remembered at most; all are asked for anew within the hour.
const SERIES_MAX: usize = 100_000;

/// A replica that was silent for so long gives way to another: its name was changed, or it is gone.
const SILENT_AFTER: Duration = Duration::from_secs(60);

impl Replicas {
    /// `replica` sends these series, which it was not known to send. It counts as one of another if most of them are that one's: a single
    /// series may be anybody's.
    pub(super) fn sends(&mut self, replica: SourceId, series: impl Iterator<Item = i64>) {
        if self.first.len() > SERIES_MAX {
            self.first.clear();
        }
        let (mut count, mut same) = (0, HashMap::new());
        for series_id in series.filter(|series_id| series_id % ONE_OF == 0) {
            let first = *self.first.entry(series_id).or_insert(replica);
            count += 1;
            *same.entry(first).or_insert(0) += 1;
        }
        same.remove(&replica);
        if let Some((first, _)) = same.into_iter().find(|(_, same)| 2 * same > count) {
            self.same.insert(replica, first);
        }
    }

    /// A request of `replica` has come. Returns whose series these are, if that one is sending still: then it is to be refused.
    pub(super) fn heard(&mut self, replica: SourceId, now: Instant) -> Option<SourceId> {
        if let Some(first) = self.same.get(&replica).copied() {
            let is_silent = |at: &Instant| now.saturating_duration_since(*at) >= SILENT_AFTER;
            if !self.heard.get(&first).is_none_or(is_silent) {
                return Some(first);
            }
            // From now on these are its own.
            self.same.remove(&replica);
            self.same.insert(first, replica);
            self.first.values_mut().filter(|owner| **owner == first).for_each(|owner| *owner = replica);
        }
        self.heard.insert(replica, now);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::source::Source;
    use crate::storage::sources::Sources;

    #[test]
    fn of_two_that_send_the_same_series_the_first_is_served() {
        let sources = Sources::default();
        let replica = |name: &str| sources.number(Source { cluster: String::new(), replica: name.into() }).unwrap();
        let (a, b, other) = (replica("a"), replica("b"), replica("other"));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut replicas = Replicas::default();
        replicas.sends(a, 0..1_000);
        assert_eq!(replicas.heard(a, at(0)), None);
        replicas.sends(other, 1_000..2_000);
        assert_eq!(replicas.heard(other, at(0)), None, "its series are its own");
        replicas.sends(b, 500..1_000);
        assert_eq!([replicas.heard(b, at(1)), replicas.heard(b, at(59))], [Some(a); 2]);
        assert_eq!(replicas.heard(a, at(59)), None);
        assert_eq!(replicas.heard(b, at(118)), Some(a));
        assert_eq!(replicas.heard(b, at(119)), None, "it has fallen silent");
        assert_eq!(replicas.heard(a, at(120)), Some(b), "and comes back");
        replicas.sends(a, 0..1_000);
        assert_eq!(replicas.heard(a, at(121)), Some(b));
        assert_eq!(replicas.heard(other, at(121)), None);
        // Who sends one series of another makes nobody an intruder but itself.
        let (stranger, late) = (replica("stranger"), replica("late"));
        replicas.sends(stranger, 16..17);
        replicas.sends(stranger, 2_000..2_001);
        assert_eq!(replicas.heard(stranger, at(122)), Some(b));
        replicas.sends(late, 2_000..3_000);
        assert_eq!(replicas.heard(late, at(122)), None);
    }
}
