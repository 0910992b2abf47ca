//! Position of a read: the transactions that its snapshot sees. Pure.

use std::fmt;

use crate::postgres::error::Error;

/// Snapshot of a read. It does not see transactions from `xmax` on, nor those in `xip`; it sees all others that
/// committed. Of two positions of one server, the later one sees all that the earlier one sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// One more than the largest id of an ended transaction.
    pub xmax: u64,
    /// Ids below `xmax` of transactions in progress, ascending.
    pub xip: Vec<u64>,
}

/// A text that is not a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no snapshot of PostgreSQL's")]
pub struct NoSnapshot(String);

impl Position {
    /// Returns a position that sees no transaction.
    #[must_use]
    pub fn none() -> Self {
        // No transaction has the id 0.
        Self { xmax: 1, xip: Vec::new() }
    }

    /// Returns the id below which all transactions are seen.
    #[must_use]
    pub fn xmin(&self) -> u64 {
        self.xip.first().copied().unwrap_or(self.xmax)
    }

    /// Returns `true` if transaction `xid` is seen.
    #[must_use]
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && self.xip.binary_search(&xid).is_err()
    }

    /// Returns `true` if this position sees everything that `other`, of the same server, sees.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.xmax <= self.xmax && self.xip.iter().all(|xid| !other.sees(*xid))
    }

    /// Returns `true` if the rows that `now` sees beyond this position are complete. `removed` sees every transaction
    /// whose rows may have been removed. If `now` does not cover this position, it is of another server and nothing
    /// continues from it. If `removed` is ahead of `now`, it is of another server and has removed nothing here.
    #[must_use]
    pub fn is_followed(&self, now: &Self, removed: &Self) -> bool {
        now.covers(self) && (self.covers(removed) || removed.xmax > now.xmax)
    }
}

/// Parses the text of a snapshot from the server.
pub(super) fn read(text: &str) -> Result<Position, Error> {
    text.parse().map_err(|error: NoSnapshot| Error::Corrupt(error.to_string()))
}

impl std::str::FromStr for Position {
    type Err = NoSnapshot;

    /// Parses the text of a `pg_snapshot`: `xmin:xmax:xip,xip,…`.
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
    /// Formats the position like PostgreSQL's `pg_snapshot`.
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

    /// Returns a snapshot after each step of transactions that begin and end in some order.
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
