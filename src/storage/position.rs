//! What a read of the database sees: a snapshot's transactions. Pure.

use std::fmt;

use crate::postgres::error::Error;

/// Where a read ended: transactions from `xmax` on, and those in `xip`, are not seen yet; all others are, if they committed.
/// Of two positions of one server the later one sees all that the earlier one does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// One more than the largest transaction that had ended.
    pub xmax: u64,
    /// Those below `xmax` that were in progress, ascending.
    pub xip: Vec<u64>,
}

/// A text that is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no snapshot of PostgreSQL's")]
pub struct NoSnapshot(String);

impl Position {
    /// Nothing is seen.
    #[must_use]
    pub fn none() -> Self {
        // There is no transaction 0.
        Self { xmax: 1, xip: Vec::new() }
    }

    /// All transactions below are seen.
    #[must_use]
    pub fn xmin(&self) -> u64 {
        self.xip.first().copied().unwrap_or(self.xmax)
    }

    /// Whether transaction `xid` is seen.
    #[must_use]
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && self.xip.binary_search(&xid).is_err()
    }

    /// Whether it sees everything that `other`, of the same server, sees.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.xmax <= self.xmax && self.xip.iter().all(|xid| !other.sees(*xid))
    }

    /// Whether what `now` sees beyond this position is all there to be seen, where rows have been removed that `removed` sees,
    /// at most. What `now` does not know of is another server's: it has removed nothing here, and nothing goes on from it.
    #[must_use]
    pub fn is_followed(&self, now: &Self, removed: &Self) -> bool {
        now.covers(self) && (self.covers(removed) || removed.xmax > now.xmax)
    }
}

/// Reads what the server said.
pub(super) fn read(text: &str) -> Result<Position, Error> {
    text.parse().map_err(|error: NoSnapshot| Error::Corrupt(error.to_string()))
}

impl std::str::FromStr for Position {
    type Err = NoSnapshot;

    /// From the text of a `pg_snapshot`: `xmin:xmax:xip,xip,…`.
    fn from_str(text: &str) -> Result<Self, NoSnapshot> {
        let read = || -> Option<Self> {
            let mut parts = text.split(':');
            let (xmin, xmax, xip) = (parts.next()?, parts.next()?, parts.next()?);
            let (xmin, xmax): (u64, u64) = (xmin.parse().ok()?, xmax.parse().ok()?);
            let in_progress = xip.split(',').filter(|_| !xip.is_empty()).map(|xid| xid.parse().ok());
            let xip = in_progress.collect::<Option<Vec<u64>>>()?;
            let is_valid = parts.next().is_none()
                && xmin <= xmax
                && xip.iter().all(|xid| (xmin..xmax).contains(xid))
                && xip.is_sorted_by(|one, next| one < next);
            is_valid.then_some(Self { xmax, xip })
        };
        read().ok_or_else(|| NoSnapshot(text.to_owned()))
    }
}

impl fmt::Display for Position {
    /// As PostgreSQL writes a `pg_snapshot`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:", self.xmin(), self.xmax)?;
        for (place, xid) in self.xip.iter().enumerate() {
            write!(out, "{}{xid}", if place > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn snapshots_are_read() {
        let read = |text: &str| text.parse::<Position>().ok().map(|position| (position.xmax, position.xip));
        assert_eq!(read("10:20:10,14,15"), Some((20, vec![10, 14, 15])), "as the documentation has it");
        assert_eq!(read("795:795:"), Some((795, vec![])));
        assert_eq!(read("1:18446744073709551615:1"), Some((u64::MAX, vec![1])));
        for text in [
            "",
            "10:20",
            "10:20:x",
            "10:20:10,",
            "10:20:5",
            "10:20:20",
            "10:20:12,11",
            "10:20:11,11",
            "20:10:",
            "1:2:3:4",
            "-1:2:",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn what_was_removed_is_missed_by_whoever_had_not_seen_it() {
        let position = |text: &str| text.parse::<Position>().unwrap();
        let is_followed = |now: &str, removed: &str| position("8:10:8").is_followed(&position(now), &position(removed));
        assert_eq!((position("8:10:8").xmin(), position("10:10:").xmin()), (8, 10));
        assert!(is_followed("20:20:", "8:10:8") && is_followed("20:20:", "5:5:"));
        assert!(!is_followed("20:20:", "9:9:") && !is_followed("20:20:", "15:15:") && !is_followed("20:20:", "20:20:"));
        assert!(is_followed("20:20:", "21:21:"), "that is out of another server's dump");
        assert!(!is_followed("9:9:", "5:5:"), "it is not the server that was seen");
    }

    /// Transactions that begin and end in some order; a snapshot after each step.
    fn history(steps: &[bool], ends: &[prop::sample::Index]) -> Vec<(Position, BTreeSet<u64>)> {
        let (mut next, mut running, mut ended) = (3, BTreeSet::new(), BTreeSet::new());
        let mut snapshots = Vec::new();
        for (begins, end) in steps.iter().zip(ends) {
            if *begins || running.is_empty() {
                running.insert(next);
                next += 1;
            } else {
                let xid = *end.get(&running.iter().copied().collect::<Vec<u64>>());
                running.remove(&xid);
                ended.insert(xid);
            }
            let xmax = ended.last().map_or(3, |last| last + 1);
            let xip = running.range(..xmax).copied().collect();
            snapshots.push((Position { xmax, xip }, ended.clone()));
        }
        snapshots
    }

    proptest! {
        #[test]
        fn a_later_position_covers_the_earlier_ones(
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..60)
        ) {
            let (steps, ends): (Vec<bool>, Vec<_>) = steps.into_iter().unzip();
            let snapshots = history(&steps, &ends);
            for (at, (position, ended)) in snapshots.iter().enumerate() {
                prop_assert_eq!(&position.to_string().parse::<Position>().unwrap(), position);
                for xid in 0..100 {
                    prop_assert_eq!(position.sees(xid), xid < 3 || ended.contains(&xid));
                }
                for (earlier, ended_then) in &snapshots[..at] {
                    prop_assert!(position.covers(earlier));
                    prop_assert_eq!(earlier.covers(position), ended_then == ended);
                }
            }
        }
    }
}
