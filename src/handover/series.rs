//! What is known of each series of one sender: the newest times that are stored, and how often its sender scrapes it. Pure.
//!
//! For each series there is an upper bound of the times that are stored, by whomever. A sample that is newer cannot be stored
//! yet, so a leader appends it without a look into the database; that raises the bound, whether or not the transaction ends
//! well. A bound that is too high costs one look; one that is too low would store a sample twice.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::handover::slots::{Order, Slot};

/// See the module. 32 bytes a series, for ids are given in order.
#[derive(Debug)]
pub struct SeriesTimes {
    /// By id / [`PAGE`].
    pages: HashMap<i64, Box<[Entry; PAGE]>, BuildHasherDefault<IdHasher>>,
    /// Series with larger ids were made after the first observation: of those that have no entry nothing is stored.
    floor: i64,
    /// The interval that most samples of this sender have, ms; 0 before a series has sent twice.
    usual_ms: u32,
    usual_votes: u8,
}

/// Series in a page.
const PAGE: usize = 256;

/// Votes an interval has at most: after so many steps of another length, that one counts.
const VOTES_MAX: u8 = 4;

/// The same for the interval of most samples.
const USUAL_VOTES_MAX: u8 = 250;

/// Stored times known of a series.
const KNOWN: usize = 3;

/// `before` of a time that is not known.
const NONE_BEFORE: u32 = u32::MAX;

/// Flag: nothing later is stored than the newest time known.
const BOUNDED: u8 = 1 << 7;

/// Flag: its sender has sent a sample newer than all that is stored, so it has sent nothing newer than it is known to have sent.
const AT_FRONT: u8 = 1 << 6;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The newest stored time known, ms since 1970; [`i64::MIN`] is none.
    last_ms: i64,
    /// The newest time sent by this sender; [`i64::MIN`] is none.
    sent_ms: i64,
    /// How much earlier than `last_ms` the two stored times before it are, ms.
    before_ms: [u32; KNOWN - 1],
    /// The interval that most of the latest steps had, ms; 0 before the first.
    interval_ms: u32,
    /// For that interval.
    votes: u8,
    /// [`BOUNDED`], [`AT_FRONT`]; bit n: whether the n-th newest time is of this sender.
    flags: u8,
}

/// What is known of one series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The newest stored time.
    pub last: Option<Slot>,
    /// Whether nothing later can be stored.
    pub is_bounded: bool,
    /// Its sender's interval, ms; 0 if no series of this sender has sent twice.
    pub interval_ms: i64,
}

/// Ids come from a sequence, so pages are few and their numbers spread by themselves. The map tells entries apart by the topmost bits
/// first, which page numbers do not use.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a page number hashes as one i64");
    }

    fn write_i64(&mut self, id: i64) {
        let id = id.cast_unsigned();
        self.0 = id ^ (id << 57);
    }
}

/// Lets a step vote for the value that most of the latest ones have (Boyer and Moore, "A Fast Majority Vote Algorithm").
fn vote(interval_ms: &mut u32, votes: &mut u8, votes_max: u8, step_ms: u32) {
    if *votes == 0 {
        (*interval_ms, *votes) = (step_ms, 1);
    } else if step_ms.abs_diff(*interval_ms) <= *interval_ms / 4 {
        *votes = (*votes + 1).min(votes_max);
    } else {
        *votes -= 1;
    }
}

impl Entry {
    const UNKNOWN: Self = Self {
        last_ms: i64::MIN,
        sent_ms: i64::MIN,
        before_ms: [NONE_BEFORE; KNOWN - 1],
        interval_ms: 0,
        votes: 0,
        flags: 0,
    };

    /// The stored times known, newest first.
    fn stored(&self) -> impl Iterator<Item = Slot> + Clone + use<> {
        let times = [Some(0), self.before(0), self.before(1)];
        let (last_ms, flags) = (self.last_ms, self.flags);
        let slot = move |(n, before_ms): (usize, Option<i64>)| {
            let time_ms = last_ms.checked_sub(before_ms?)?;
            Some(Slot { time_ms, is_own: flags & (1 << n) != 0 })
        };
        times.into_iter().enumerate().filter_map(slot).take(if last_ms == i64::MIN { 0 } else { KNOWN })
    }

    fn before(&self, n: usize) -> Option<i64> {
        (self.before_ms[n] != NONE_BEFORE).then(|| i64::from(self.before_ms[n]))
    }

    /// Notes that a sample is stored.
    fn add(&mut self, new: Slot) {
        let mut slots = [Slot { time_ms: i64::MIN, is_own: false }; KNOWN];
        let mut count = 0;
        let mut rest = self.stored().peekable();
        let mut new = Some(new);
        while count < KNOWN {
            let next = match (new, rest.peek()) {
                (Some(one), Some(known)) if one.time_ms == known.time_ms => {
                    new = None;
                    continue;
                }
                (Some(one), known) if known.is_none_or(|known| known.time_ms < one.time_ms) => {
                    new = None;
                    Some(one)
                }
                _ => rest.next(),
            };
            let Some(next) = next else { break };
            slots[count] = next;
            count += 1;
        }
        self.last_ms = slots[0].time_ms;
        let before = |n: usize| match n < count {
            true => u32::try_from(slots[0].time_ms - slots[n].time_ms).unwrap_or(NONE_BEFORE),
            false => NONE_BEFORE,
        };
        self.before_ms = [before(1), before(2)];
        self.flags &= BOUNDED | AT_FRONT;
        for (n, slot) in slots[..count].iter().enumerate() {
            self.flags |= u8::from(slot.is_own) << n;
        }
    }
}

impl Default for SeriesTimes {
    fn default() -> Self {
        Self { pages: HashMap::default(), floor: i64::MAX, usual_ms: 0, usual_votes: 0 }
    }
}

impl SeriesTimes {
    /// This sender sent a sample. Returns how it stands to those before.
    pub fn sent(&mut self, series_id: i64, time_ms: i64) -> Order {
        let is_new = series_id > self.floor;
        let entry = self.entry(series_id);
        if time_ms <= entry.sent_ms {
            return Order::Out;
        }
        if (is_new || entry.flags & BOUNDED != 0) && time_ms > entry.last_ms {
            entry.flags |= AT_FRONT;
        }
        let order = if entry.flags & AT_FRONT != 0 { Order::In } else { Order::Unknown };
        let step_ms = u32::try_from(time_ms.saturating_sub(entry.sent_ms)).ok();
        entry.sent_ms = time_ms;
        if let Some(step_ms) = step_ms {
            vote(&mut entry.interval_ms, &mut entry.votes, VOTES_MAX, step_ms);
            vote(&mut self.usual_ms, &mut self.usual_votes, USUAL_VOTES_MAX, step_ms);
        }
        order
    }

    /// A sample is stored, or is about to be.
    pub fn stored(&mut self, series_id: i64, slot: Slot) {
        self.entry(series_id).add(slot);
    }

    /// Nothing later is stored in this series than what is known of it.
    pub fn bounded(&mut self, series_id: i64) {
        self.entry(series_id).flags |= BOUNDED;
    }

    /// Some of what others stored may not have been seen; nothing of it is later than `newest_ms`, and series with ids above
    /// `floor` were made since. So a newest time that is later is a bound, and no other is.
    pub fn missed(&mut self, newest_ms: i64, floor: i64) {
        self.floor = floor;
        for entry in self.pages.values_mut().flat_map(|page| page.iter_mut()) {
            if entry.last_ms > newest_ms { entry.flags |= BOUNDED } else { entry.flags &= !BOUNDED }
        }
    }

    /// What is known of a series.
    #[must_use]
    pub fn get(&self, series_id: i64) -> Known {
        let Some(entry) = self.find(series_id) else {
            return Known { last: None, is_bounded: series_id > self.floor, interval_ms: self.usual_ms() };
        };
        let interval_ms = match entry.interval_ms {
            0 => self.usual_ms(),
            interval_ms => i64::from(interval_ms),
        };
        // Of a series that was made later, an entry without a time says as much as no entry.
        let is_bounded = entry.flags & BOUNDED != 0 || series_id > self.floor;
        Known { last: entry.stored().next(), is_bounded, interval_ms }
    }

    /// The newest stored times known of a series, newest first.
    pub fn times(&self, series_id: i64) -> impl Iterator<Item = Slot> + Clone + use<> {
        self.find(series_id).unwrap_or(&Entry::UNKNOWN).stored()
    }

    /// The interval that most samples of this sender have, ms; 0 before a series has sent twice.
    #[must_use]
    pub fn usual_ms(&self) -> i64 {
        i64::from(self.usual_ms)
    }

    fn find(&self, series_id: i64) -> Option<&Entry> {
        let (page, place) = split(series_id);
        self.pages.get(&page).map(|page| &page[place])
    }

    fn entry(&mut self, series_id: i64) -> &mut Entry {
        let (page, place) = split(series_id);
        &mut self.pages.entry(page).or_insert_with(|| Box::new([Entry::UNKNOWN; PAGE]))[place]
    }
}

/// The page of a series, and its place there.
fn split(series_id: i64) -> (i64, usize) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 256")]
    (series_id.div_euclid(PAGE as i64), series_id.rem_euclid(PAGE as i64) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(time_ms: i64) -> Slot {
        Slot { time_ms, is_own: time_ms % 2 == 1 }
    }

    #[test]
    fn an_entry_takes_32_bytes() {
        assert_eq!(size_of::<Entry>(), 32);
    }

    #[test]
    fn a_majority_of_steps_is_the_interval() {
        let mut series = SeriesTimes::default();
        for time_ms in [0, 15_000, 30_010, 60_000, 75_000, 75_500, 90_000, 105_000] {
            assert_eq!(series.sent(1, time_ms), Order::Unknown);
        }
        assert_eq!(series.get(1).interval_ms, 15_000);
        assert_eq!([series.sent(1, 105_000), series.sent(1, 20)], [Order::Out; 2]);
        assert_eq!(series.get(2).interval_ms, 15_000, "what most samples have");
        let faster = (1..20).map(|n| 105_000 + n * 5_000);
        for time_ms in faster {
            series.sent(1, time_ms);
        }
        assert_eq!(series.get(1).interval_ms, 5_000);
    }

    #[test]
    fn what_is_sent_is_in_order_once_it_is_newer_than_all_that_is_stored() {
        let mut series = SeriesTimes::default();
        series.stored(1, slot(100));
        assert_eq!([50, 60, 110, 105].map(|ms| series.sent(1, ms)), [Order::Unknown, Order::Unknown, Order::Unknown, Order::Out]);
        series.bounded(1);
        assert_eq!([120, 130, 130].map(|ms| series.sent(1, ms)), [Order::In, Order::In, Order::Out]);
        series.stored(1, slot(500));
        assert_eq!(series.sent(1, 140), Order::In, "others have stored ahead of it");
        series.missed(0, 7);
        assert_eq!([series.sent(7, 1), series.sent(8, 1)], [Order::Unknown, Order::In], "made since");
    }

    #[test]
    fn a_bound_holds_until_something_was_missed() {
        let mut series = SeriesTimes::default();
        assert!(!series.get(1).is_bounded, "nothing was observed yet");
        series.stored(1, slot(10));
        series.stored(2, slot(20));
        series.missed(15, 7);
        let bounded = |series: &SeriesTimes, id| series.get(id).is_bounded;
        assert_eq!([1, 2, 7, 8].map(|id| bounded(&series, id)), [false, true, false, true]);
        series.bounded(1);
        series.sent(8, 5);
        assert_eq!([1, 8].map(|id| bounded(&series, id)), [true, true]);
        series.stored(8, slot(30));
        series.missed(40, 9);
        assert_eq!([1, 2, 8, 9, 10].map(|id| bounded(&series, id)), [false, false, false, false, true]);
    }

    proptest! {
        #[test]
        fn the_newest_times_are_known(times in prop::collection::vec(-5_000_000_000_i64..5_000_000_000, 1..12)) {
            let mut series = SeriesTimes::default();
            for time_ms in &times {
                series.stored(3, slot(*time_ms));
            }
            let mut expected = times;
            expected.sort_unstable_by(|one, other| other.cmp(one));
            expected.dedup();
            let newest = expected[0];
            // Times too far from the newest are not kept.
            let expected: Vec<Slot> = expected.into_iter().take(3).take_while(|ms| newest - ms < i64::from(u32::MAX)).map(slot).collect();
            let known: Vec<Slot> = series.times(3).collect();
            prop_assert_eq!(known.first(), expected.first());
            prop_assert!(known.len() <= expected.len());
            prop_assert!(known.iter().all(|slot| expected.contains(slot)), "{:?} {:?}", known, expected);
        }
    }
}
