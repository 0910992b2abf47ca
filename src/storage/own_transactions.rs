//! Transactions that this adapter has committed lately, so that it can tell other adapters' from them, and need not read
//! back what it stored itself. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use parking_lot::Mutex;

use crate::model::sender::SenderNo;
use crate::storage::hot::SeriesAt;
use crate::storage::position::Position;
use crate::storage::server::Epoch;

/// Ids of the transactions in which this adapter has stored samples of a sender since it last observed the store. An id
/// that is missing only makes its transaction count as another adapter's.
#[derive(Debug, Default)]
pub struct OwnTransactions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Ids of an earlier epoch are of another server.
    epoch: Epoch,
    xids: HashMap<SenderNo, BTreeSet<u64>>,
    /// Times and series of samples that these transactions stored, until they are observed.
    unobserved: BTreeMap<u64, Vec<SeriesAt>>,
    /// Number of unobserved samples.
    samples: usize,
}

/// Maximum number of unobserved samples, 8 bytes each and 40 for each time of a sender. Samples of further transactions
/// are read back.
const UNOBSERVED_MAX: usize = 4_000_000;

/// The ids between two others, neither of them included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The largest id below the gap.
    pub after: u64,
    /// The smallest id above the gap.
    pub before: u64,
}

impl OwnTransactions {
    /// Records that transaction `xid`, with samples of `sender`, is committed. Forgets the sender's transactions that
    /// `observed` sees.
    pub fn committed(&self, epoch: Epoch, sender: SenderNo, observed: &Position, xid: u64) {
        let mut known = self.0.lock();
        if known.epoch < epoch {
            *known = Known { epoch, ..Known::default() };
        }
        if known.epoch == epoch {
            let xids = known.xids.entry(sender).or_default();
            *xids = xids.split_off(&observed.xmin());
            xids.insert(xid);
        }
    }

    /// Keeps what the committed transaction `xid` stored until it is observed, as far as there is memory. If it was
    /// observed before this call, it is observed once more.
    pub fn keep(&self, epoch: Epoch, xid: u64, stored: Vec<SeriesAt>) {
        let mut known = self.0.lock();
        let samples = stored.iter().map(|row| row.series.len()).sum::<usize>();
        if known.epoch == epoch && known.samples + samples <= UNOBSERVED_MAX {
            known.samples += samples;
            known.unobserved.insert(xid, stored);
        }
    }

    /// Takes out what was stored and is not observed yet, by transaction. A snapshot taken after this sees all of it.
    #[must_use]
    pub fn take(&self, epoch: Epoch) -> BTreeMap<u64, Vec<SeriesAt>> {
        let mut known = self.0.lock();
        if known.epoch != epoch {
            return BTreeMap::new();
        }
        known.samples = 0;
        std::mem::take(&mut known.unobserved)
    }

    /// Drops what is observed at `position`.
    pub fn observed(&self, epoch: Epoch, position: &Position) {
        let mut known = self.0.lock();
        if known.epoch == epoch {
            known.unobserved.retain(|xid, _| !position.sees(*xid));
            known.samples = known.unobserved.values().flatten().map(|row| row.series.len()).sum();
        }
    }

    /// Returns the gaps between this adapter's transactions with samples of `sender`, of which `xid` is the one in
    /// progress: another adapter's transactions are in the gaps, if `observed` does not see them.
    #[must_use]
    pub fn gaps(&self, epoch: Epoch, sender: SenderNo, observed: &Position, xid: u64) -> Vec<Gap> {
        let known = self.0.lock();
        let mut own = match known.xids.get(&sender) {
            Some(xids) if known.epoch == epoch => xids.range(observed.xmin()..).copied().collect(),
            _ => BTreeSet::new(),
        };
        own.insert(xid);
        let after = [observed.xmin() - 1].into_iter().chain(own.iter().copied());
        let before = own.iter().copied().chain([u64::MAX]);
        let gaps = after.zip(before).map(|(after, before)| Gap { after, before });
        gaps.filter(|gap| gap.before.saturating_sub(gap.after) > 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SENDER: SenderNo = SenderNo(7);

    fn position(xmax: u64) -> Position {
        Position { xmax, xip: Vec::new() }
    }

    #[test]
    fn the_transactions_of_another_epoch_or_sender_are_not_its_own() {
        let [first, second] = [Epoch::default(), Epoch::default().next()];
        let own = OwnTransactions::default();
        own.committed(first, SENDER, &position(10), 12);
        let gap = |after, before| Gap { after, before };
        let whole = vec![gap(9, 20), gap(20, u64::MAX)];
        assert_eq!(own.gaps(first, SENDER, &position(10), 20), [gap(9, 12), gap(12, 20), gap(20, u64::MAX)]);
        assert_eq!(own.gaps(first, SenderNo(8), &position(10), 20), whole);
        assert_eq!(own.gaps(second, SENDER, &position(10), 20), whole);
        own.committed(second, SenderNo(8), &position(10), 13);
        own.committed(first, SENDER, &position(10), 14);
        assert_eq!(own.gaps(second, SENDER, &position(10), 20), whole);
        assert_eq!(own.gaps(first, SENDER, &position(10), 20), whole);
    }

    #[test]
    fn what_is_stored_is_kept_until_it_is_observed() {
        let [epoch, second] = [Epoch::default(), Epoch::default().next()];
        let own = OwnTransactions::default();
        let stored = |count: usize| vec![SeriesAt { sender: SENDER, time_ms: 5, series: vec![1; count] }];
        own.keep(epoch, 12, stored(2));
        own.keep(epoch, 14, stored(UNOBSERVED_MAX - 2));
        own.keep(epoch, 15, stored(1));
        own.observed(epoch, &Position { xmax: 20, xip: vec![12, 15] });
        own.keep(epoch, 16, stored(1));
        own.keep(second, 17, stored(1));
        assert_eq!(own.take(second), BTreeMap::new());
        assert_eq!(own.take(epoch), BTreeMap::from([(12, stored(2)), (16, stored(1))]), "there was no memory for 15");
        assert_eq!(own.take(epoch), BTreeMap::new());
    }

    proptest! {
        #[test]
        fn an_id_is_in_one_gap_or_it_is_an_own_one(
            committed in prop::collection::vec((3_u64..40, 1_u64..40), 0..20),
            observed in 1_u64..40,
            xid in 40_u64..50,
        ) {
            let own = OwnTransactions::default();
            let mut observed_last = 1;
            for (committed, observed) in &committed {
                observed_last = observed_last.max(*observed);
                own.committed(Epoch::default(), SENDER, &position(observed_last), *committed);
            }
            let observed = observed.max(observed_last);
            let gaps = own.gaps(Epoch::default(), SENDER, &position(observed), xid);
            let is_own = |id| id == xid || committed.iter().any(|(committed, _)| *committed == id);
            for id in observed..60 {
                let containing = gaps.iter().filter(|gap| gap.after < id && id < gap.before).count();
                prop_assert_eq!(containing, usize::from(!is_own(id)), "{}", id);
            }
        }
    }
}
