//! What is known of one series: its latest stored times, and what the steps between them tell of its interval. Pure.

use crate::handover::slots::Slot;
use crate::model::sender::SenderNo;

/// A longer step is none of a series that is scraped: Prometheus itself takes one for gone after twice as long.
pub const STEP_MAX_MS: u32 = 150_000;

/// Samples that are farther apart, ms, need not be sent at the same interval: some may be history.
pub const GAP_MS: i64 = 3_600_000;

/// Votes that a step of its length gives an interval, and one of another takes from it. A shorter one counts at once, for a sender's
/// samples are never closer than its interval.
pub(super) const VOTES: u8 = 2;

/// Votes an interval has at most: after so many steps that are several of it, those count.
const VOTES_MAX: u8 = 12;

/// Votes that an interval has once it is relied on: the first steps may be as long as two, where scrapes were missed.
pub(super) const VOTES_SURE: u8 = 8;

/// Votes of exactly its length that an interval has once it is known to the millisecond.
const EXACT_SURE: u8 = 3;

const EXACT_MAX: u8 = 15;

/// The same for the interval of most samples.
const USUAL_VOTES_MAX: u8 = 250;

/// Steps that one looks like are off from it by such a part of them at most.
const STEP_PART: i64 = 20;

/// And are so many at most.
const STEPS_MAX: i64 = 5;

/// A scrape may be late by such a part of its interval.
const GRID_PART: i64 = 8;

/// Stored times known of a series.
pub(super) const KNOWN: usize = 3;

/// `before` of a time that is not known.
const NONE_BEFORE: u32 = u32::MAX;

/// Flags: the n-th newest time is of this sender.
const OWN: u8 = (1 << KNOWN) - 1;

/// Flag: nothing later is stored than the newest time known.
pub(super) const BOUNDED: u8 = 1 << 7;

/// Flag: the interval is that of others that were scraped at the same time.
pub(super) const GIVEN: u8 = 1 << 6;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// The newest stored time known, ms since 1970; [`i64::MIN`] is none.
    pub(super) last_ms: i64,
    /// The newest time sent by this sender; [`i64::MIN`] is none.
    pub(super) sent_ms: i64,
    /// The newest time observed of the leading sender; [`i64::MIN`] is none.
    pub(super) led_ms: i64,
    /// How much earlier than `last_ms` the two stored times before it are, ms.
    pub(super) before_ms: [u32; KNOWN - 1],
    /// The newest time from which its interval was learned.
    pub(super) learned_ms: i64,
    /// The interval that the latest steps had, ms; 0 before the first.
    pub(super) interval_ms: u32,
    /// For that interval.
    pub(super) votes: u8,
    /// For exactly that interval.
    pub(super) exact: u8,
    /// [`BOUNDED`], [`GIVEN`], [`OWN`].
    pub(super) flags: u8,
    /// The lowest bits of the number of the sender that `led_ms` is of.
    pub(super) led_by: u8,
}

/// What the steps of all series tell.
#[derive(Debug, Default)]
pub(super) struct Intervals {
    /// The interval that most samples of this sender have, ms; 0 before a series has sent twice.
    pub(super) usual_ms: u32,
    pub(super) usual_votes: u8,
    pub(super) shortest: Shortest,
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
pub(super) struct Shortest {
    pub(super) interval_ms: u32,
    steps: u32,
}

/// So many longer ones.
const SHORTEST_STEPS: u32 = 1_000_000;

impl Shortest {
    pub(super) fn saw(&mut self, interval_ms: u32) {
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
    pub(super) fn step(&mut self, entry: &mut Entry, before_ms: i64, time_ms: i64) {
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

pub(super) fn low_bits(sender: SenderNo) -> u8 {
    sender.0.to_le_bytes()[0]
}

/// Whether a step is several of a shorter one, between which scrapes were missed or have not been seen: not so many that it may be by
/// chance.
fn are_several(step_ms: i64, shorter_ms: i64) -> bool {
    let off_ms = step_ms % shorter_ms.max(1);
    off_ms.min(shorter_ms - off_ms) <= shorter_ms / STEP_PART && step_ms < shorter_ms * (STEPS_MAX + 1)
}

impl Entry {
    pub(super) const UNKNOWN: Self = Self {
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
    pub(super) fn step(&mut self, step_ms: u32) {
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

    pub(super) fn is_close(&self, step_ms: u32) -> bool {
        step_ms.abs_diff(self.interval_ms) <= self.interval_ms / 4
    }

    pub(super) fn vote_exactly(&mut self, step_ms: u32) {
        match step_ms.abs_diff(self.interval_ms) {
            0 | 1 => self.exact = (self.exact + 1).min(EXACT_MAX),
            _ if self.exact <= 1 => (self.interval_ms, self.exact) = (step_ms, 1),
            _ => self.exact -= 1,
        }
    }

    /// Whether what was scraped at one time may have been scraped at the other, too: whole intervals lie between them. `None` if the
    /// interval is not known for sure, to the millisecond.
    pub(super) fn is_in_step(&self, one_ms: i64, other_ms: i64) -> Option<bool> {
        let interval_ms = i64::from(self.interval_ms);
        if self.votes < VOTES_SURE || self.exact < EXACT_SURE {
            return None;
        }
        let off_ms = one_ms.saturating_sub(other_ms).saturating_abs() % interval_ms;
        Some(off_ms.min(interval_ms - off_ms) <= interval_ms / GRID_PART)
    }

    /// The stored times known, newest first.
    pub(super) fn stored(&self) -> impl Iterator<Item = Slot> + Clone + use<> {
        let times = [Some(0), self.before(0), self.before(1)];
        let (last_ms, flags) = (self.last_ms, self.flags);
        let slot = move |(n, before_ms): (usize, Option<i64>)| {
            let time_ms = last_ms.checked_sub(before_ms?)?;
            Some(Slot { time_ms, is_own: flags & (1 << n) != 0 })
        };
        times.into_iter().enumerate().filter_map(slot).take(if last_ms == i64::MIN { 0 } else { KNOWN })
    }

    pub(super) fn before(&self, n: usize) -> Option<i64> {
        (self.before_ms[n] != NONE_BEFORE).then(|| i64::from(self.before_ms[n]))
    }

    /// Whether no stored time is known that is another sender's.
    pub(super) fn are_all_own(&self) -> bool {
        self.stored().all(|slot| slot.is_own)
    }

    /// Notes that a sample is stored.
    pub(super) fn add(&mut self, new: Slot) {
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
    pub(super) fn merge(&mut self, new: Slot) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
