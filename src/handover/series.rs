//! What is known of each series of one sender: the newest times that are stored, and how often its sender scrapes it. Pure.
//!
//! For each series there is an upper bound of the times that are stored, by whomever. A sample that is newer cannot be stored
//! yet, so a leader appends it without a look into the database; that raises the bound, whether or not the transaction ends
//! well. A bound that is too high costs one look; one that is too low would store a sample twice.

use crate::handover::slots::Slot;
use crate::model::sender::SenderNo;

use self::entry::{BOUNDED, Entry, GIVEN, Intervals, KNOWN, VOTES, VOTES_SURE, low_bits};
pub use self::entry::{GAP_MS, STEP_MAX_MS};
use self::pages::Pages;

mod entry;
mod pages;

/// See the module. 48 bytes a series, for ids are given in order.
#[derive(Debug)]
pub struct SeriesTimes {
    pages: Pages,
    /// Series with larger ids were made after the first observation: of those that have no entry nothing is stored.
    floor: i64,
    /// Of what others stored nothing later was missed, ms since 1970.
    missed_ms: i64,
    intervals: Intervals,
    /// The sender that leads, as last observed.
    leader: Option<SenderNo>,
    /// Of what it stored of earlier times, ms since 1970, steps teach nothing: that was buffered, and each adapter stores its part of it
    /// when it comes to it.
    led_from_ms: i64,
    /// Intervals are learned from what is sent; else from what is observed, where only a part of what is sent comes by this adapter.
    learns_from_sent: bool,
}

/// What is known of one series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesHistory {
    /// The newest stored time.
    pub last: Option<Slot>,
    /// Whether nothing later can be stored.
    pub is_bounded: bool,
    /// Its sender's interval, ms; 0 if that is not known for sure.
    pub interval_ms: i64,
    /// What its few steps make it look like, ms; 0 if there are none.
    pub guess_ms: i64,
    /// Whether several of these were steps of a sender that leads, or led, or it is that of others that were scraped at the same time.
    pub is_repeated: bool,
    /// Whether the sender that leads has been seen to store it.
    pub is_led: bool,
}

/// How a sample follows on what its sender had sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is newer.
    Newer {
        /// Whether whole intervals lie between it and the newest one before; `None` if that is not known.
        is_in_step: Option<bool>,
    },
    /// It is not.
    Again {
        /// The newest time, ms since 1970.
        newest_ms: i64,
    },
}

impl SeriesTimes {
    /// Nothing is known. `is_shared`: only a part of what is sent comes by this adapter.
    #[must_use]
    pub fn new(is_shared: bool) -> Self {
        Self {
            learns_from_sent: !is_shared,
            leader: None,
            led_from_ms: i64::MIN,
            pages: Pages::default(),
            floor: i64::MAX,
            missed_ms: i64::MIN,
            intervals: Intervals::default(),
        }
    }

    /// Forgets every series, not how often most are scraped: their ids are another server's.
    pub fn forget(&mut self) {
        self.pages = Pages::default();
        (self.floor, self.missed_ms) = (i64::MAX, i64::MIN);
        (self.leader, self.led_from_ms) = (None, i64::MIN);
    }

    /// `leader` is observed to lead when it is `server_ms`, in ms since 1970.
    pub fn led(&mut self, leader: SenderNo, server_ms: i64) {
        let before = self.leader.replace(leader);
        // What led before the first observation led a while, as far as is known.
        if before.is_some_and(|before| before != leader) {
            self.led_from_ms = server_ms;
        }
    }

    /// This sender sent a sample.
    pub fn sent(&mut self, series_id: i64, time_ms: i64) -> Sent {
        let entry = self.pages.entry(series_id);
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
            // What comes by other adapters is not seen, and perhaps never stored by one that leads.
            entry.votes = entry.votes.min(VOTES_SURE - 1);
        }
        Sent::Newer { is_in_step }
    }

    /// Whether a sample of this sender is later than anything that is stored in its series, none of which is known to be another's; it
    /// counts as stored then.
    pub fn append(&mut self, series_id: i64, time_ms: i64) -> bool {
        let entry = self.pages.entry(series_id);
        let is_bounded = entry.flags & BOUNDED != 0 || series_id > self.floor;
        let is_later = is_bounded && time_ms > entry.last_ms && entry.are_all_own();
        if is_later {
            entry.flags |= BOUNDED;
            entry.add(Slot { time_ms, is_own: true });
        }
        is_later
    }

    /// A series of which no step is known was scraped together with others that have this interval.
    pub fn scraped_with(&mut self, series_id: i64, time_ms: i64, interval_ms: i64) {
        let entry = self.pages.entry(series_id);
        (entry.interval_ms, entry.votes, entry.exact) = (u32::try_from(interval_ms).unwrap_or(0), 1, 0);
        entry.flags |= GIVEN;
        entry.learned_ms = entry.learned_ms.max(time_ms);
    }

    /// A sample was observed to be stored. Of the sender that leads (`leads`) all are, in the order of their times, but for those that
    /// another's stand for.
    pub fn observed(&mut self, series_id: i64, slot: Slot, leads: bool) {
        let entry = self.pages.entry(series_id);
        entry.add(slot);
        let Some(leader) = self.leader.filter(|_| leads) else { return };
        let (led_by, led_from_ms) = (low_bits(leader), self.led_from_ms);
        if entry.led_by != led_by {
            (entry.led_by, entry.led_ms) = (led_by, i64::MIN);
        }
        if entry.led_ms < slot.time_ms {
            let before_ms = std::mem::replace(&mut entry.led_ms, slot.time_ms);
            // Another's, or one of its own that is not observed yet; later ones only if they are another's.
            let is_between = |other: Slot| {
                other.time_ms > before_ms && (other.time_ms < slot.time_ms || other.is_own != slot.is_own)
            };
            if before_ms >= led_from_ms && !entry.stored().any(is_between) {
                self.intervals.step(entry, before_ms, slot.time_ms);
            }
        }
    }

    /// A sample is stored, or is about to be.
    pub fn stored(&mut self, series_id: i64, slot: Slot) {
        self.pages.entry(series_id).add(slot);
    }

    /// Nothing later is stored in this series than what is known of it.
    pub fn bounded(&mut self, series_id: i64) {
        self.pages.entry(series_id).flags |= BOUNDED;
    }

    /// Some of what others stored may not have been seen; nothing of it is later than `newest_ms`, and series with ids above
    /// `floor` were made since. So a newest time that is later is a bound, and no other is.
    pub fn missed(&mut self, newest_ms: i64, floor: i64) {
        (self.floor, self.missed_ms) = (floor, self.missed_ms.max(newest_ms));
        for entry in self.pages.all.iter_mut().flat_map(|page| page.iter_mut()) {
            if entry.last_ms > newest_ms { entry.flags |= BOUNDED } else { entry.flags &= !BOUNDED }
        }
    }

    /// What is known of a series around a time.
    #[must_use]
    pub fn get(&self, series_id: i64, time_ms: i64) -> SeriesHistory {
        let Some(entry) = self.pages.find(series_id) else {
            let is_bounded = series_id > self.floor;
            return SeriesHistory {
                last: None,
                is_bounded,
                interval_ms: 0,
                guess_ms: 0,
                is_repeated: false,
                is_led: false,
            };
        };
        let is_near =
            |other_ms: i64| other_ms != i64::MIN && time_ms.saturating_sub(other_ms).saturating_abs() <= GAP_MS;
        let is_led = is_near(entry.led_ms) && self.leader.map(low_bits) == Some(entry.led_by);
        let (interval_ms, votes) = match is_near(entry.learned_ms) {
            true => (i64::from(entry.interval_ms), entry.votes),
            false => (0, 0),
        };
        SeriesHistory {
            last: entry.stored().next(),
            // Of a series that was made later, an entry without a time says as much as no entry.
            is_bounded: entry.flags & BOUNDED != 0 || series_id > self.floor,
            interval_ms: if votes >= VOTES_SURE { interval_ms } else { 0 },
            guess_ms: if votes > 0 { interval_ms } else { 0 },
            is_repeated: entry.flags & GIVEN != 0 || entry.led_ms != i64::MIN && votes > VOTES,
            is_led,
        }
    }

    /// Whether one who scrapes a series at `one_ms` scrapes it at `other_ms`, too; `None` if that is not known.
    #[must_use]
    pub fn is_in_step(&self, series_id: i64, one_ms: i64, other_ms: i64) -> Option<bool> {
        self.pages.find(series_id)?.is_in_step(one_ms, other_ms)
    }

    /// The newest stored times known of a series, newest first.
    pub fn times(&self, series_id: i64) -> impl Iterator<Item = Slot> + Clone + use<> {
        self.pages.find(series_id).unwrap_or(&Entry::UNKNOWN).stored()
    }

    /// No sample of another sender is known to be stored that is later; `None` is that none is known at all.
    #[must_use]
    pub fn newest_of_others(&self, series_id: i64) -> Option<i64> {
        let times = self.times(series_id);
        let newest = times.clone().find(|slot| !slot.is_own);
        // Earlier ones are not kept.
        let earliest_kept = times.skip(KNOWN - 1).last();
        newest.or(earliest_kept).map(|slot| slot.time_ms)
    }

    /// The interval that most samples of this sender have, ms; 0 before a series has sent twice.
    #[must_use]
    pub fn usual_ms(&self) -> i64 {
        i64::from(self.intervals.usual_ms)
    }

    /// Whether a sample at this time may be among what others stored and was missed, though its series is bounded: by itself, for it is
    /// about to be stored.
    #[must_use]
    pub fn may_be_missed(&self, time_ms: i64) -> bool {
        time_ms <= self.missed_ms
    }

    /// Whether only a part of what is sent comes by this adapter.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !self.learns_from_sent
    }

    /// The shortest interval that any series of this sender had twice, ms; 0 if that is known of none.
    #[must_use]
    pub fn shortest_ms(&self) -> i64 {
        i64::from(self.intervals.shortest.interval_ms)
    }
}

#[cfg(test)]
mod tests;
