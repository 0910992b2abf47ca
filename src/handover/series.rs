//! State of each series of one sender: the newest times that are stored, and the interval at which its sender scrapes
//! it. Pure.
//!
//! Each series has an upper bound of the times that are stored, whoever stored them. A sample that is newer cannot be
//! stored yet, so a leader appends it without a query. Appending raises the bound, whether or not the transaction
//! succeeds. A bound that is too high costs one query; a bound that is too low would store a sample twice.

use crate::handover::coverage::Slot;
use crate::model::sender::SenderNo;
use crate::storage::by_series::BySeries;
use crate::storage::row::creation_no;

use self::entry::{BOUNDED, Entry, GIVEN, Intervals, KNOWN, VOTES, VOTES_SURE, low_bits};
pub use self::entry::{GAP_MS, STEP_MAX_MS};

mod entry;

/// State of all series of one sender. 48 bytes a series, because ids are given in order.
#[derive(Debug)]
pub struct SeriesTimes {
    entries: BySeries<Entry>,
    /// Series with larger numbers were created after the first observation: if they have no entry, nothing of them is
    /// stored.
    floor: i64,
    /// Upper bound of the times of missed samples, which others stored and this adapter did not observe, ms since 1970;
    /// [`i64::MAX`] before the first observation.
    missed_ms: i64,
    intervals: Intervals,
    /// The sender that leads, as last observed.
    leader: Option<SenderNo>,
    /// Time from which steps of the leader's stored samples count, ms since 1970. Earlier samples were buffered, and
    /// each adapter stores its part of them at its own time, so their steps do not show the interval.
    led_from_ms: i64,
    /// `true` if intervals are learned from what is sent, beside what is observed. `false` where only a part of the
    /// samples comes by this adapter: then what is sent counts only until the leader was observed to store the series.
    learns_from_sent: bool,
}

/// State of one series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesHistory {
    /// The newest stored time.
    pub last: Option<Slot>,
    /// `true` if nothing later can be stored.
    pub is_bounded: bool,
    /// Interval of its sender, ms; 0 if it is not known for sure.
    pub interval_ms: i64,
    /// Interval that its few steps suggest, ms; 0 if there are none.
    pub guess_ms: i64,
    /// `true` if several of these steps were steps of a sender that leads, or led; or if the interval was given by
    /// other series that were scraped at the same time.
    pub is_repeated: bool,
    /// `true` if the sender that leads was observed to store it.
    pub is_led: bool,
}

/// Relation of a sample to what its sender had sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The sample is newer.
    Newer {
        /// `true` if whole intervals lie between it and the newest sample before; `None` if that is not known.
        is_in_step: Option<bool>,
    },
    /// The sample is not newer.
    Again {
        /// The newest time sent before, ms since 1970.
        newest_ms: i64,
    },
}

impl SeriesTimes {
    /// Returns a state in which nothing is known. `is_shared`: only a part of the samples comes by this adapter.
    #[must_use]
    pub fn new(is_shared: bool) -> Self {
        Self {
            learns_from_sent: !is_shared,
            leader: None,
            led_from_ms: i64::MIN,
            entries: BySeries::default(),
            floor: i64::MAX,
            missed_ms: i64::MAX,
            intervals: Intervals::default(),
        }
    }

    /// Forgets every series, because the ids are another server's, but not the usual interval.
    pub fn forget(&mut self) {
        self.entries = BySeries::default();
        (self.floor, self.missed_ms) = (i64::MAX, i64::MAX);
        (self.leader, self.led_from_ms) = (None, i64::MIN);
    }

    /// Notes that `leader` is observed to lead at `server_ms`, in ms since 1970.
    pub fn led(&mut self, leader: SenderNo, server_ms: i64) {
        let before = self.leader.replace(leader);
        // The leader of the first observation is taken to have led for a while.
        if before.is_some_and(|before| before != leader) {
            self.led_from_ms = server_ms;
        }
    }

    /// Notes that this sender sent a sample.
    pub fn sent(&mut self, series_id: i64, time_ms: i64) -> Sent {
        let entry = self.entries.entry(series_id);
        if time_ms <= entry.sent_ms {
            return Sent::Again { newest_ms: entry.sent_ms };
        }
        let before_ms = std::mem::replace(&mut entry.sent_ms, time_ms);
        let is_in_step = if before_ms == i64::MIN { None } else { entry.is_in_step(time_ms, before_ms) };
        let is_led = entry.led_ms != i64::MIN;
        if self.learns_from_sent || !is_led {
            self.intervals.step(entry, before_ms, time_ms);
        }
        if !self.learns_from_sent && !is_led {
            // Samples that come by other adapters are not seen, and a sender that leads may never store them.
            entry.votes = entry.votes.min(VOTES_SURE - 1);
        }
        Sent::Newer { is_in_step }
    }

    /// Returns `true` if a sample of this sender is later than anything stored in its series, and no stored sample
    /// known of the series is another sender's. Then it counts as stored.
    pub fn append(&mut self, series_id: i64, time_ms: i64) -> bool {
        let entry = self.entries.entry(series_id);
        let is_bounded = entry.flags & BOUNDED != 0 || creation_no(series_id) > self.floor;
        let is_later = is_bounded && time_ms > entry.last_ms && entry.are_all_own();
        if is_later {
            entry.flags |= BOUNDED;
            entry.add(Slot { time_ms, is_own: true });
        }
        is_later
    }

    /// Sets the interval of a series of which no step is known: other series that were scraped together with it have
    /// this interval.
    pub fn scraped_with(&mut self, series_id: i64, time_ms: i64, interval_ms: i64) {
        let entry = self.entries.entry(series_id);
        (entry.interval_ms, entry.votes, entry.exact) = (u32::try_from(interval_ms).unwrap_or(0), 1, 0);
        entry.flags |= GIVEN;
        entry.learned_ms = entry.learned_ms.max(time_ms);
    }

    /// Notes that a sample was observed to be stored. All samples of the sender that leads (`leads`) are observed, in
    /// the order of their times, except those that a sample of another sender covers.
    pub fn observed(&mut self, series_id: i64, slot: Slot, leads: bool) {
        let entry = self.entries.entry(series_id);
        entry.add(slot);
        // All that others stored later than what was missed is observed.
        if !slot.is_own && slot.time_ms > self.missed_ms {
            entry.flags |= BOUNDED;
        }
        let Some(leader) = self.leader.filter(|_| leads) else { return };
        let (led_by, led_from_ms) = (low_bits(leader), self.led_from_ms);
        if entry.led_by != led_by {
            (entry.led_by, entry.led_ms) = (led_by, i64::MIN);
        }
        if entry.led_ms < slot.time_ms {
            let before_ms = std::mem::replace(&mut entry.led_ms, slot.time_ms);
            // A sample of another sender, or an own one that is not observed yet; a later one only if it is another
            // sender's.
            let is_between = |other: Slot| {
                other.time_ms > before_ms && (other.time_ms < slot.time_ms || other.is_own != slot.is_own)
            };
            if before_ms >= led_from_ms && !entry.stored().any(is_between) {
                self.intervals.step(entry, before_ms, slot.time_ms);
            }
        }
    }

    /// Notes that a sample is stored, or is about to be.
    pub fn stored(&mut self, series_id: i64, slot: Slot) {
        self.entries.entry(series_id).add(slot);
    }

    /// Notes that nothing later is stored in this series than what is known of it.
    pub fn bounded(&mut self, series_id: i64) {
        self.entries.entry(series_id).flags |= BOUNDED;
    }

    /// Notes that some of what others stored may not have been observed. Nothing of it is later than `newest_ms`, and
    /// series with numbers above `floor` were created since. So a newest time is a bound only if it is later than
    /// `newest_ms`.
    pub fn missed(&mut self, newest_ms: i64, floor: i64) {
        let is_first = self.missed_ms == i64::MAX;
        let missed_ms = if is_first { newest_ms } else { self.missed_ms.max(newest_ms) };
        (self.floor, self.missed_ms) = (floor, missed_ms);
        for entry in self.entries.values_mut() {
            if entry.last_ms > missed_ms { entry.flags |= BOUNDED } else { entry.flags &= !BOUNDED }
        }
    }

    /// Returns what is known of a series around a time.
    #[must_use]
    pub fn get(&self, series_id: i64, time_ms: i64) -> SeriesHistory {
        let entry = self.entries.get(series_id).unwrap_or(&Entry::UNKNOWN);
        let is_near =
            |other_ms: i64| other_ms != i64::MIN && time_ms.saturating_sub(other_ms).saturating_abs() <= GAP_MS;
        let is_led = is_near(entry.led_ms) && self.leader.map(low_bits) == Some(entry.led_by);
        let (interval_ms, votes) = match is_near(entry.learned_ms) {
            true => (i64::from(entry.interval_ms), entry.votes),
            false => (0, 0),
        };
        SeriesHistory {
            last: entry.stored().next(),
            // For a series created since, an entry without a time means the same as no entry.
            is_bounded: entry.flags & BOUNDED != 0 || creation_no(series_id) > self.floor,
            interval_ms: if votes >= VOTES_SURE { interval_ms } else { 0 },
            guess_ms: if votes > 0 { interval_ms } else { 0 },
            is_repeated: entry.flags & GIVEN != 0 || entry.led_ms != i64::MIN && votes > VOTES,
            is_led,
        }
    }

    /// Returns `true` if a sender that scrapes a series at `one_ms` scrapes it at `other_ms` too; `None` if that is not
    /// known.
    #[must_use]
    pub fn is_in_step(&self, series_id: i64, one_ms: i64, other_ms: i64) -> Option<bool> {
        self.entries.get(series_id)?.is_in_step(one_ms, other_ms)
    }

    /// Returns the newest stored times known of a series, newest first.
    pub fn times(&self, series_id: i64) -> impl Iterator<Item = Slot> + Clone + use<> {
        self.entries.get(series_id).unwrap_or(&Entry::UNKNOWN).stored()
    }

    /// Returns a time after which no stored sample of another sender is known; `None` if none is known at all.
    #[must_use]
    pub fn newest_of_others(&self, series_id: i64) -> Option<i64> {
        let times = self.times(series_id);
        let newest = times.clone().find(|slot| !slot.is_own);
        // Earlier times are not kept.
        let earliest_kept = times.skip(KNOWN - 1).last();
        newest.or(earliest_kept).map(|slot| slot.time_ms)
    }

    /// Returns the interval of most samples of this sender, ms; 0 before a series has sent twice.
    #[must_use]
    pub fn usual_ms(&self) -> i64 {
        i64::from(self.intervals.usual_ms)
    }

    /// Returns `true` if a sample at this time may be among the samples that others stored and this adapter missed. Its
    /// series may be bounded all the same: by the sample itself, which is about to be stored.
    #[must_use]
    pub fn may_be_missed(&self, time_ms: i64) -> bool {
        time_ms <= self.missed_ms
    }

    /// Returns `true` if only a part of the samples comes by this adapter.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !self.learns_from_sent
    }

    /// Returns the shortest interval that any series of this sender had twice, ms; 0 if no such interval is known.
    #[must_use]
    pub fn shortest_ms(&self) -> i64 {
        i64::from(self.intervals.shortest.interval_ms)
    }
}

#[cfg(test)]
mod tests;
