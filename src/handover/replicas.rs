//! Other owners of the series that are sent to an adapter which serves one Prometheus. Pure: time is an argument.
//!
//! Where labels do not say who leads, all samples that are sent to an adapter count as one sender's, and a sender's own
//! samples never cover each other: the samples of two replicas would both be stored. An adapter without an election
//! compares with the samples of no group either.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::storage::sources::SourceId;

/// Owner of series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A replica that sends the series to this adapter.
    Replica(SourceId),
    /// A group that elects a leader, and stores the series by other adapters.
    Group(Arc<str>),
}

/// Series of each owner, as far as they are remembered.
#[derive(Debug, Default)]
pub struct Replicas {
    /// Owners of each series: groups, and then replicas in the order of their arrival.
    owners: HashMap<i64, Vec<Owner>>,
    counts: Counts,
    /// Time at which each owner was last heard and not refused.
    heard: HashMap<Owner, Instant>,
    /// Number of low bits that are zero in each remembered id.
    zero_bits: u32,
}

#[derive(Debug, Default)]
struct Counts {
    /// Number of series of each owner.
    all: HashMap<Owner, usize>,
    /// Number of series of the first owner that the second owner had before it.
    shared: HashMap<(Owner, Owner), usize>,
}

/// Maximum series that are remembered.
const SERIES_MAX: usize = 20_000;

/// Maximum owners that are remembered of one series.
const OWNERS_MAX: usize = 8;

/// Silence after which an owner gives way to another: its name was changed, or it is gone.
const SILENT_AFTER: Duration = Duration::from_secs(60);

impl Replicas {
    /// Notes that `replica` sends these series, which it was not known to send.
    pub fn sends(&mut self, replica: SourceId, series: impl Iterator<Item = i64>) {
        self.remember(&Owner::Replica(replica), series);
    }

    /// Notes that `group` has stored samples of these series.
    pub fn stores(&mut self, group: &str, series: impl Iterator<Item = i64>, now: Instant) {
        let owner = Owner::Group(group.into());
        self.remember(&owner, series);
        self.heard.insert(owner, now);
    }

    /// Notes a request of `replica`. Returns the owner of its series if that owner is still active: then the request
    /// must be refused. The series count as another owner's if that one had most of them before, because a single
    /// series may be anybody's. A replica that does not name itself may be any of the others.
    pub fn on_request(&mut self, replica: SourceId, now: Instant) -> Option<Owner> {
        let replica = Owner::Replica(replica);
        self.heard.retain(|_, heard| now.saturating_duration_since(*heard) < SILENT_AFTER);
        let may_be_same = |other: &Owner| {
            let unnamed = Owner::Replica(SourceId::NONE);
            matches!(other, Owner::Replica(_)) && [&replica, other].contains(&&unnamed)
        };
        let others = self.heard.keys().filter(|other| !may_be_same(other));
        let other = others.filter(|other| self.counts.is_mostly(&replica, other)).min().cloned();
        if other.is_none() {
            self.heard.insert(replica, now);
        }
        other
    }

    fn remember(&mut self, owner: &Owner, series: impl Iterator<Item = i64>) {
        for series_id in series.filter(|series_id| series_id.trailing_zeros() >= self.zero_bits) {
            let owners = self.owners.entry(series_id).or_default();
            if owners.contains(owner) || owners.len() == OWNERS_MAX {
                continue;
            }
            self.counts.remove(owners);
            let place = if matches!(owner, Owner::Group(_)) { 0 } else { owners.len() };
            owners.insert(place, owner.clone());
            self.counts.add(owners);
        }
        while self.owners.len() > SERIES_MAX {
            // Drops the series of all owners alike, so that the rest shows as much.
            self.zero_bits += 1;
            self.owners.retain(|series_id, _| series_id.trailing_zeros() >= self.zero_bits);
            self.counts = Counts::default();
            self.owners.values().for_each(|owners| self.counts.add(owners));
        }
    }
}

impl Counts {
    fn is_mostly(&self, replica: &Owner, other: &Owner) -> bool {
        let shared = self.shared.get(&(replica.clone(), other.clone())).copied().unwrap_or(0);
        2 * shared > self.all.get(replica).copied().unwrap_or(0)
    }

    fn add(&mut self, owners: &[Owner]) {
        self.change(owners, |count| count + 1);
    }

    fn remove(&mut self, owners: &[Owner]) {
        self.change(owners, |count| count - 1);
    }

    fn change(&mut self, owners: &[Owner], by: impl Fn(usize) -> usize) {
        for (n, owner) in owners.iter().enumerate() {
            let count = self.all.entry(owner.clone()).or_insert(0);
            *count = by(*count);
            for before in &owners[..n] {
                let count = self.shared.entry((owner.clone(), before.clone())).or_insert(0);
                *count = by(*count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::source::Source;
    use crate::storage::sources::Sources;

    fn sources<const N: usize>(names: [&str; N]) -> [SourceId; N] {
        let sources = Sources::default();
        names.map(|name| sources.number(Source { cluster: String::new(), replica: name.into() }).unwrap())
    }

    #[test]
    fn of_two_that_send_the_same_series_the_first_is_served() {
        let [a, b, other, stranger] = sources(["a", "b", "other", "stranger"]);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut replicas = Replicas::default();
        replicas.sends(a, 0..1_000);
        assert_eq!(replicas.on_request(a, at(0)), None);
        replicas.sends(other, 1_000..2_000);
        assert_eq!(replicas.on_request(other, at(0)), None, "its series are its own");
        replicas.sends(b, 500..1_000);
        let owner_a = Owner::Replica(a);
        for seconds in [1, 59] {
            assert_eq!(replicas.on_request(b, at(seconds)), Some(owner_a.clone()));
        }
        assert_eq!(replicas.on_request(a, at(59)), None);
        assert_eq!(replicas.on_request(b, at(118)), Some(owner_a.clone()));
        assert_eq!(replicas.on_request(b, at(119)), None, "it has fallen silent");
        assert_eq!(replicas.on_request(a, at(120)), None, "and comes back");
        assert_eq!(replicas.on_request(b, at(121)), Some(owner_a.clone()));
        // One series may be anybody's: its sender is served once most of its series are its own, and causes nobody else
        // to be refused.
        replicas.sends(stranger, 17..18);
        assert_eq!(replicas.on_request(stranger, at(122)), Some(owner_a));
        replicas.sends(stranger, 2_000..2_001);
        assert_eq!(replicas.on_request(stranger, at(122)), None, "half of them");
        replicas.sends(stranger, 0..5_000);
        for replica in [stranger, a, other] {
            assert_eq!(replicas.on_request(replica, at(123)), None, "who was there before is served");
        }
    }

    #[test]
    fn what_a_group_stores_is_refused_whoever_came_first() {
        let [alone] = sources(["alone"]);
        let start = Instant::now();
        let mut replicas = Replicas::default();
        replicas.sends(alone, 0..10);
        replicas.stores("lock 2", 100..1_000, start);
        assert_eq!(replicas.on_request(alone, start), None);
        replicas.stores("lock 1", 0..5, start);
        assert_eq!(replicas.on_request(alone, start), None, "half of them");
        replicas.stores("lock 1", 0..6, start);
        assert_eq!(replicas.on_request(alone, start), Some(Owner::Group("lock 1".into())));
        assert_eq!(replicas.on_request(alone, start + SILENT_AFTER), None);
        replicas.stores("lock 1", 0..1, start + SILENT_AFTER);
        assert_eq!(replicas.on_request(alone, start + SILENT_AFTER), Some(Owner::Group("lock 1".into())));
    }

    #[test]
    fn one_that_does_not_say_who_it_is_may_be_any() {
        let [a] = sources(["a"]);
        let now = Instant::now();
        let mut replicas = Replicas::default();
        for replica in [a, SourceId::NONE, a] {
            replicas.sends(replica, 0..10);
            assert_eq!(replicas.on_request(replica, now), None);
        }
        replicas.stores("lock 1", 0..10, now);
        assert_eq!(replicas.on_request(SourceId::NONE, now), Some(Owner::Group("lock 1".into())));
    }

    #[test]
    fn many_series_are_remembered_in_part() {
        let [a, b, other] = sources(["a", "b", "other"]);
        let (now, many) = (Instant::now(), 5 * i64::try_from(SERIES_MAX).unwrap());
        let mut replicas = Replicas::default();
        replicas.sends(a, 0..many);
        assert_eq!(replicas.on_request(a, now), None);
        replicas.sends(other, many..2 * many);
        assert_eq!(replicas.on_request(other, now), None);
        replicas.sends(b, 0..many);
        assert_eq!(replicas.on_request(b, now), Some(Owner::Replica(a)));
        let remembered = replicas.owners.len();
        assert!((SERIES_MAX / 4..=SERIES_MAX).contains(&remembered), "{remembered}");
    }
}
