//! What is known of each series of one sender: the newest times that are stored, and how often its sender scrapes it. Pure.
//!
//! For each series there is an upper bound of the times that are stored, by whomever. A sample that is newer cannot be stored
//! yet, so a leader appends it without a look into the database; that raises the bound, whether or not the transaction ends
//! well. A bound that is too high costs one look; one that is too low would store a sample twice.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::handover::slots::Slot;
use crate::model::sender::SenderNo;

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

#[derive(Debug)]
struct Pages {
    all: Vec<Box<[Entry; PAGE]>>,
    /// Where each is there, by id / [`PAGE`].
    places: HashMap<i64, usize, BuildHasherDefault<IdHasher>>,
    /// That of the last entry, for most ids come in their order: its number, and where it is.
    last: (i64, usize),
}

/// What the steps of all series tell.
#[derive(Debug, Default)]
struct Intervals {
    /// The interval that most samples of this sender have, ms; 0 before a series has sent twice.
    usual_ms: u32,
    usual_votes: u8,
    shortest: Shortest,
}

/// Series in a page.
const PAGE: usize = 256;

/// Votes that a step of its length gives an interval, and one of another takes from it. A shorter one counts at once, for a sender's
/// samples are never closer than its interval.
const VOTES: u8 = 2;

/// Votes an interval has at most: after so many steps that are several of it, those count.
const VOTES_MAX: u8 = 12;

/// Votes that an interval has once it is relied on: the first steps may be as long as two, where scrapes were missed.
const VOTES_SURE: u8 = 8;

/// Votes of exactly its length that an interval has once it is known to the millisecond.
const EXACT_SURE: u8 = 3;
const EXACT_MAX: u8 = 15;

/// The same for the interval of most samples.
const USUAL_VOTES_MAX: u8 = 250;

/// A longer step is none of a series that is scraped: Prometheus itself takes one for gone after twice as long.
pub const STEP_MAX_MS: u32 = 150_000;

/// Samples that are farther apart, ms, need not be sent at the same interval: some may be history.
pub const GAP_MS: i64 = 3_600_000;

/// Steps that one looks like are off from it by such a part of them at most.
const STEP_PART: i64 = 20;

/// And are so many at most.
const STEPS_MAX: i64 = 5;

/// A scrape may be late by such a part of its interval.
const GRID_PART: i64 = 8;

/// Stored times known of a series.
const KNOWN: usize = 3;

/// `before` of a time that is not known.
const NONE_BEFORE: u32 = u32::MAX;

/// Flags: the n-th newest time is of this sender.
const OWN: u8 = (1 << KNOWN) - 1;

/// Flag: nothing later is stored than the newest time known.
const BOUNDED: u8 = 1 << 7;

/// Flag: the interval is that of others that were scraped at the same time.
const GIVEN: u8 = 1 << 6;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The newest stored time known, ms since 1970; [`i64::MIN`] is none.
    last_ms: i64,
    /// The newest time sent by this sender; [`i64::MIN`] is none.
    sent_ms: i64,
    /// The newest time observed of the leading sender; [`i64::MIN`] is none.
    led_ms: i64,
    /// How much earlier than `last_ms` the two stored times before it are, ms.
    before_ms: [u32; KNOWN - 1],
    /// The newest time from which its interval was learned.
    learned_ms: i64,
    /// The interval that the latest steps had, ms; 0 before the first.
    interval_ms: u32,
    /// For that interval.
    votes: u8,
    /// For exactly that interval.
    exact: u8,
    /// [`BOUNDED`], [`GIVEN`], [`OWN`].
    flags: u8,
    /// The lowest bits of the number of the sender that `led_ms` is of.
    led_by: u8,
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

/// The shortest interval seen, until it is not for so many steps.
#[derive(Debug, Default)]
struct Shortest {
    interval_ms: u32,
    steps: u32,
}

/// So many longer ones.
const SHORTEST_STEPS: u32 = 1_000_000;

impl Shortest {
    fn saw(&mut self, interval_ms: u32) {
        if self.steps == 0 || interval_ms <= self.interval_ms.saturating_add(self.interval_ms / 4) {
            let is_first = self.steps == 0;
            self.interval_ms = if is_first { interval_ms } else { self.interval_ms.min(interval_ms) };
            self.steps = SHORTEST_STEPS;
        } else {
            self.steps -= 1;
        }
    }
}

impl Intervals {
    /// One sender's samples of a series and these times came one right after the other.
    fn step(&mut self, entry: &mut Entry, before_ms: i64, time_ms: i64) {
        if before_ms == i64::MIN {
            return;
        }
        let step_ms = u32::try_from(time_ms.saturating_sub(before_ms)).ok().filter(|ms| *ms <= STEP_MAX_MS);
        // What is known of scrapes is known no better by history, which is sent at other intervals.
        let Some(step_ms) = step_ms.filter(|_| time_ms.saturating_add(GAP_MS) >= entry.learned_ms) else { return };
        if time_ms.saturating_sub(entry.learned_ms) > GAP_MS {
            entry.votes = 0;
        }
        entry.learned_ms = entry.learned_ms.max(time_ms);
        entry.step(step_ms);
        let (interval_ms, votes) = (entry.interval_ms, entry.votes);
        // Two samples alone may be anything.
        if votes > VOTES {
            self.shortest.saw(interval_ms);
        }
        vote(&mut self.usual_ms, &mut self.usual_votes, USUAL_VOTES_MAX, step_ms);
    }
}

fn low_bits(sender: SenderNo) -> u8 {
    sender.0.to_le_bytes()[0]
}

/// Whether a step is several of a shorter one, between which scrapes were missed or have not been seen: not so many that it may be by
/// chance.
fn are_several(step_ms: i64, shorter_ms: i64) -> bool {
    let off_ms = step_ms % shorter_ms.max(1);
    off_ms.min(shorter_ms - off_ms) <= shorter_ms / STEP_PART && step_ms < shorter_ms * (STEPS_MAX + 1)
}

impl Entry {
    const UNKNOWN: Self = Self {
        last_ms: i64::MIN,
        sent_ms: i64::MIN,
        led_ms: i64::MIN,
        learned_ms: i64::MIN,
        before_ms: [NONE_BEFORE; KNOWN - 1],
        interval_ms: 0,
        votes: 0,
        exact: 0,
        flags: 0,
        led_by: 0,
    };

    /// A sender's sample came right after another of it.
    fn step(&mut self, step_ms: u32) {
        if self.is_close(step_ms) {
            self.votes = (self.votes + VOTES).min(VOTES_MAX);
            self.vote_exactly(step_ms);
        } else if self.votes == 0 || step_ms < self.interval_ms {
            (self.interval_ms, self.votes, self.exact) = (step_ms, VOTES, 1);
            self.flags &= !GIVEN;
        } else {
            let votes = if are_several(step_ms.into(), self.interval_ms.into()) { 1 } else { VOTES };
            self.votes = self.votes.saturating_sub(votes);
        }
    }

    fn is_close(&self, step_ms: u32) -> bool {
        step_ms.abs_diff(self.interval_ms) <= self.interval_ms / 4
    }

    fn vote_exactly(&mut self, step_ms: u32) {
        match step_ms.abs_diff(self.interval_ms) {
            0 | 1 => self.exact = (self.exact + 1).min(EXACT_MAX),
            _ if self.exact <= 1 => (self.interval_ms, self.exact) = (step_ms, 1),
            _ => self.exact -= 1,
        }
    }

    /// Whether what was scraped at one time may have been scraped at the other, too: whole intervals lie between them. `None` if the
    /// interval is not known for sure, to the millisecond.
    fn is_in_step(&self, one_ms: i64, other_ms: i64) -> Option<bool> {
        let interval_ms = i64::from(self.interval_ms);
        if self.votes < VOTES_SURE || self.exact < EXACT_SURE {
            return None;
        }
        let off_ms = one_ms.saturating_sub(other_ms).saturating_abs() % interval_ms;
        Some(off_ms.min(interval_ms - off_ms) <= interval_ms / GRID_PART)
    }

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

    /// Whether no stored time is known that is another sender's.
    fn are_all_own(&self) -> bool {
        self.stored().all(|slot| slot.is_own)
    }

    /// Notes that a sample is stored.
    fn add(&mut self, new: Slot) {
        if let Some(after_ms) = new.time_ms.checked_sub(self.last_ms).and_then(|ms| u32::try_from(ms).ok())
            && (1..NONE_BEFORE).contains(&after_ms)
        {
            // Most are the newest.
            let [before_ms, _] = self.before_ms;
            self.before_ms = [after_ms, before_ms.saturating_add(after_ms)];
            let own = (self.flags << 1 | u8::from(new.is_own)) & OWN;
            self.flags = self.flags & (BOUNDED | GIVEN) | own;
            self.last_ms = new.time_ms;
            return;
        }
        self.merge(new);
    }

    /// The same of one that may be of any time.
    fn merge(&mut self, new: Slot) {
        let mut slots = [Slot { time_ms: i64::MIN, is_own: false }; KNOWN];
        let mut count = 0;
        let mut rest = self.stored().peekable();
        let mut new = Some(new);
        while count < KNOWN {
            let next = match (new, rest.peek()) {
                (Some(one), Some(known)) if one.time_ms == known.time_ms => {
                    new = None;
                    // Its own may have been only about to be stored; what others have stored is.
                    let is_own = one.is_own && known.is_own;
                    rest.next().map(|known| Slot { is_own, ..known })
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
        self.flags &= BOUNDED | GIVEN;
        for (n, slot) in slots[..count].iter().enumerate() {
            self.flags |= u8::from(slot.is_own) << n;
        }
    }
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

impl Default for Pages {
    fn default() -> Self {
        // No page has this number.
        Self { all: Vec::new(), places: HashMap::default(), last: (i64::MAX, 0) }
    }
}

impl Pages {
    fn find(&self, series_id: i64) -> Option<&Entry> {
        let (page, place) = split(series_id);
        self.places.get(&page).map(|page| &self.all[*page][place])
    }

    fn entry(&mut self, series_id: i64) -> &mut Entry {
        let (page, place) = split(series_id);
        if self.last.0 != page {
            let all = &mut self.all;
            let new = || {
                all.push(Box::new([Entry::UNKNOWN; PAGE]));
                all.len() - 1
            };
            self.last = (page, *self.places.entry(page).or_insert_with(new));
        }
        &mut self.all[self.last.1][place]
    }
}

/// The page of a series, and its place there.
fn split(series_id: i64) -> (i64, usize) {
    (series_id.div_euclid(PAGE as i64), series_id.rem_euclid(PAGE as i64) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::row::{TIME_MAX_MS, TIME_MIN_MS};

    fn slot(time_ms: i64) -> Slot {
        Slot { time_ms, is_own: time_ms % 2 == 1 }
    }

    #[test]
    fn an_entry_takes_48_bytes() {
        assert_eq!(size_of::<Entry>(), 48);
    }

    const LEADER: SenderNo = SenderNo(1);
    const OTHER: SenderNo = SenderNo(2);

    /// The interval of series 1 that is known for sure around a time, and the one it looks like.
    fn known(series: &SeriesTimes, time_ms: i64) -> (i64, i64) {
        let known = series.get(1, time_ms);
        (known.interval_ms, known.guess_ms)
    }

    #[test]
    fn the_shortest_of_the_latest_steps_is_the_interval() {
        let mut series = SeriesTimes::new(false);
        for (time_ms, expected) in [
            (0, (0, 0)),
            (30_000, (0, 30_000)),
            (45_000, (0, 15_000)),
            (60_100, (0, 15_100)),
            (90_000, (0, 15_100)),
            (105_000, (0, 15_000)),
            (120_000, (0, 15_000)),
            (135_000, (15_000, 15_000)),
            (195_000, (15_000, 15_000)),
        ] {
            assert!(matches!(series.sent(1, time_ms), Sent::Newer { .. }));
            assert_eq!(known(&series, time_ms), expected, "{time_ms}");
        }
        assert_eq!(known(&series, 195_000 + GAP_MS), (15_000, 15_000));
        assert_eq!(known(&series, 195_001 + GAP_MS), (0, 0), "history may have another");
        let unknown = SeriesHistory {
            last: None,
            is_bounded: false,
            interval_ms: 0,
            guess_ms: 0,
            is_repeated: false,
            is_led: false,
        };
        assert_eq!(series.get(2, 0), unknown);
        assert!((13_000..17_000).contains(&series.usual_ms()));
        assert_eq!(series.shortest_ms(), 15_000);
        for n in 1..5 {
            series.sent(1, 195_000 + n * 5_000);
            assert_eq!(known(&series, 200_000), (if n < 4 { 0 } else { 5_000 }, 5_000), "a shorter one counts at once");
        }
        for n in 1..14 {
            series.sent(1, 215_000 + n * 20_000);
        }
        assert_eq!(known(&series, 475_000).1, 20_000, "longer ones do after a while");
    }

    #[test]
    fn two_samples_alone_may_be_anything() {
        let mut series = SeriesTimes::new(false);
        series.sent(1, 0);
        series.sent(1, 700);
        assert_eq!((known(&series, 0), series.shortest_ms()), ((0, 700), 0));
        series.sent(1, 1_400);
        assert_eq!(series.shortest_ms(), 700);
    }

    #[test]
    fn an_interval_that_was_given_is_as_good_as_several_steps_until_its_own_are_seen() {
        let mut series = SeriesTimes::new(false);
        series.scraped_with(1, 0, 10_000);
        assert_eq!((known(&series, 0), series.get(1, 0).is_repeated), ((0, 10_000), true));
        series.sent(1, 0);
        series.sent(1, 7_000);
        assert_eq!((known(&series, 0), series.get(1, 0).is_repeated), ((0, 7_000), false));
        let mut led = SeriesTimes::new(true);
        led.led(LEADER, 0);
        for (n, is_repeated) in [(0, false), (1, false), (2, true), (3, true)] {
            led.observed(1, slot(n * 10_000), true);
            assert_eq!(led.get(1, 0).is_repeated, is_repeated, "{n}");
        }
    }

    #[test]
    fn the_latest_steps_tell_the_interval_to_the_millisecond() {
        let mut entry = Entry::UNKNOWN;
        (0..4).for_each(|_| entry.step(10_000));
        (0..3).for_each(|_| entry.step(10_100));
        assert_eq!(entry.interval_ms, 10_000);
        entry.step(10_100);
        assert_eq!(entry.interval_ms, 10_100);
        assert!(are_several(50_000, 10_000) && !are_several(60_000, 10_000) && !are_several(25_000, 10_000));
    }

    #[test]
    fn the_shortest_interval_counts_until_only_longer_ones_are_seen() {
        let mut shortest = Shortest::default();
        for (interval_ms, expected) in [(15_000, 15_000), (60_000, 15_000), (14_000, 14_000), (17_000, 14_000)] {
            shortest.saw(interval_ms);
            assert_eq!(shortest.interval_ms, expected);
        }
        (0..SHORTEST_STEPS).for_each(|_| shortest.saw(60_000));
        assert_eq!(shortest.interval_ms, 14_000);
        shortest.saw(60_000);
        assert_eq!(shortest.interval_ms, 60_000);
    }

    #[test]
    fn most_of_the_latest_steps_win_a_vote() {
        let (mut interval_ms, mut votes) = (0, 0);
        for (step_ms, expected) in [(10, 10), (10, 10), (10, 10), (30, 10), (30, 10), (30, 10), (30, 30)] {
            vote(&mut interval_ms, &mut votes, USUAL_VOTES_MAX, step_ms);
            assert_eq!(interval_ms, expected);
        }
    }

    #[test]
    fn a_bound_is_later_than_all_that_was_missed() {
        let mut series = SeriesTimes::new(false);
        for (series_id, time_ms) in [(1, 10), (2, 11)] {
            series.stored(series_id, slot(time_ms));
            series.bounded(series_id);
        }
        series.missed(10, 9);
        assert_eq!([1, 2, 9, 10].map(|series_id| series.get(series_id, 0).is_bounded), [false, true, false, true]);
    }

    #[test]
    fn history_teaches_scrapes_nothing() {
        let mut series = SeriesTimes::new(false);
        let week_ms = 7 * 86_400_000;
        for n in 0..9 {
            series.sent(1, n * 1_000);
        }
        assert_eq!(known(&series, 8_000).0, 1_000);
        for n in 0..6 {
            series.sent(1, week_ms + n * 30_000);
        }
        assert_eq!(known(&series, week_ms).0, 30_000);
        series.led(LEADER, 0);
        for n in 0..9 {
            series.observed(1, slot(n * 1_000), true);
        }
        assert_eq!(known(&series, week_ms).0, 30_000);
        assert_eq!(known(&series, 8_000), (0, 0));
    }

    #[test]
    fn of_what_comes_by_several_adapters_the_leaders_steps_count() {
        let mut series = SeriesTimes::new(true);
        for n in 0..6 {
            series.sent(1, n * 20_000);
        }
        assert_eq!(known(&series, 100_000), (0, 20_000), "half of it may come by way of another one");
        series.led(LEADER, 0);
        for n in 0..5 {
            assert_eq!(known(&series, 0).0, 0);
            series.observed(1, slot(n * 10_000), true);
            series.observed(2, slot(n * 10_000), false);
        }
        assert_eq!(series.get(2, 0).guess_ms, 0);
        assert!(series.get(1, 0).is_led);
        assert_eq!(known(&series, 0), (10_000, 10_000));
        series.led(OTHER, 40_700);
        series.observed(1, slot(40_700), true);
        series.sent(1, 120_000);
        series.sent(1, 120_500);
        assert_eq!(known(&series, 0), (10_000, 10_000), "from one of a sender to its next");
        series.led(LEADER, 50_000);
        assert!(!series.get(1, 0).is_led, "it does not lead any more");
    }

    #[test]
    fn what_a_new_leader_had_buffered_teaches_nothing() {
        let mut series = SeriesTimes::new(true);
        series.led(LEADER, 0);
        for n in 0..9 {
            series.observed(1, slot(n * 10_000), true);
        }
        // One of two adapters stores its half of a long buffer.
        series.led(OTHER, 500_000);
        for n in 5..25 {
            series.observed(1, slot(n * 20_000 + 300), true);
        }
        assert_eq!(known(&series, 500_000), (10_000, 10_000));
        for n in 0..14 {
            series.led(OTHER, 600_000);
            series.observed(1, slot(500_300 + n * 15_000), true);
        }
        assert_eq!(known(&series, 600_000), (15_000, 15_000), "what it sends since does");
    }

    #[test]
    fn what_another_ones_samples_stand_for_is_no_step() {
        let mut series = SeriesTimes::new(true);
        let (led, other) = (|time_ms| Slot { time_ms, is_own: true }, |time_ms| Slot { time_ms, is_own: false });
        series.led(LEADER, 0);
        for n in 0..9 {
            series.observed(1, led(n * 10_000), true);
        }
        // Every second one was stored by another sender, before and between.
        for n in 0..9 {
            series.observed(1, other(100_300 + n * 20_000), false);
        }
        for n in 0..20 {
            series.observed(1, led(90_000 + n * 20_000), true);
            series.observed(1, other(300_300 + n * 20_000), false);
        }
        assert_eq!(known(&series, 300_000), (10_000, 10_000));
    }

    #[test]
    fn what_lies_between_scrapes_is_not_in_step() {
        let mut series = SeriesTimes::new(false);
        let scrapes = |series: &mut SeriesTimes, numbers: std::ops::Range<i64>| {
            numbers.map(|n| series.sent(1, n * 10_000)).collect::<Vec<_>>()
        };
        scrapes(&mut series, 0..3);
        assert_eq!(series.is_in_step(1, 15_000, 20_000), None, "its interval is not known");
        scrapes(&mut series, 3..9);
        for (time_ms, is_in_step) in [(15_000, false), (11_251, false), (18_749, false), (11_250, true), (18_750, true)]
        {
            assert_eq!(series.is_in_step(1, time_ms, 80_000), Some(is_in_step), "{time_ms}");
        }
        assert_eq!(scrapes(&mut series, 0..9), [Sent::Again { newest_ms: 80_000 }; 9]);
        assert_eq!(series.sent(1, 100_000), Sent::Newer { is_in_step: Some(true) });
        assert_eq!(series.sent(1, 115_000), Sent::Newer { is_in_step: Some(false) });
    }

    #[test]
    fn what_others_stored_counts_before_what_is_about_to_be_stored() {
        let mut series = SeriesTimes::new(false);
        series.stored(1, Slot { time_ms: 10, is_own: true });
        assert_eq!(series.newest_of_others(1), None);
        series.stored(1, Slot { time_ms: 10, is_own: false });
        assert_eq!(series.newest_of_others(1), Some(10));
        series.stored(1, Slot { time_ms: 10, is_own: true });
        for time_ms in [20, 30] {
            series.stored(1, Slot { time_ms, is_own: true });
        }
        assert_eq!(series.newest_of_others(1), Some(10));
        series.stored(1, Slot { time_ms: 40, is_own: true });
        assert_eq!(series.newest_of_others(1), Some(20), "no earlier one is known any more");
    }

    #[test]
    fn a_bound_holds_until_something_was_missed() {
        let mut series = SeriesTimes::new(false);
        assert!(!series.get(1, 0).is_bounded, "nothing was observed yet");
        series.stored(1, slot(10));
        series.stored(2, slot(20));
        series.missed(15, 7);
        let bounded = |series: &SeriesTimes, id| series.get(id, 0).is_bounded;
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
        fn a_newer_time_is_noted_as_any_other(
            slots in prop::collection::vec((prop_oneof![-9_i64..9, TIME_MIN_MS..TIME_MAX_MS, 0..2 * i64::from(u32::MAX)], any::<bool>()), 1..9),
            flags in 0_u8..4,
        ) {
            let mut entry = Entry { flags: flags * GIVEN, ..Entry::UNKNOWN };
            for (time_ms, is_own) in slots {
                let mut merged = entry;
                merged.merge(Slot { time_ms, is_own });
                entry.add(Slot { time_ms, is_own });
                prop_assert!(entry.stored().eq(merged.stored()), "{:?} {:?}", entry, merged);
                prop_assert_eq!(entry.flags & (BOUNDED | GIVEN), flags * GIVEN);
                entry = merged;
            }
        }

        #[test]
        fn the_newest_times_are_known(times in prop::collection::vec(-5_000_000_000_i64..5_000_000_000, 1..12)) {
            let mut series = SeriesTimes::new(false);
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
