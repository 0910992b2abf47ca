//! State of one series: its latest stored times, and the interval that the steps between its times show. Pure.

use crate::handover::coverage::Slot;
use crate::model::sender::SenderNo;

/// Maximum step of a series that is scraped: Prometheus itself takes a series for gone after twice as long.
pub const STEP_MAX_MS: u32 = 150_000;

/// Maximum distance, ms, of samples that are taken to be sent at the same interval. Samples farther apart may be
/// history.
pub const GAP_MS: i64 = 3_600_000;

/// Votes that a step adds to an interval of its length, and takes from a shorter one of which it is no multiple. A step
/// that is shorter than the interval replaces it at once, because a sender's samples are never closer than its
/// interval.
pub(super) const VOTES: u8 = 2;

/// Maximum votes of an interval: after as many steps that are multiples of it, the next step replaces it.
const VOTES_MAX: u8 = 12;

/// Votes from which an interval counts as known for sure. The first steps may be two intervals long, where scrapes were
/// missed.
pub(super) const VOTES_SURE: u8 = 8;

/// Votes for exactly its length from which an interval counts as known to the millisecond.
const EXACT_SURE: u8 = 3;

const EXACT_MAX: u8 = 15;

/// Maximum votes of the interval of most samples.
const USUAL_VOTES_MAX: u8 = 250;

/// A step counts as a multiple of a shorter one if it differs from the multiple by at most this fraction of the shorter
/// one.
const STEP_PART: i64 = 20;

/// Maximum factor of such a multiple.
const STEPS_MAX: i64 = 5;

/// Fraction of its interval by which a scrape may be late.
const GRID_PART: i64 = 8;

/// Number of stored times kept of a series.
pub(super) const KNOWN: usize = 3;

/// Value in `before_ms` for a time that is not known.
const NONE_BEFORE: u32 = u32::MAX;

/// Flags: the n-th newest time is of this sender.
const OWN: u8 = (1 << KNOWN) - 1;

/// Flag: nothing later is stored than the newest time known.
pub(super) const BOUNDED: u8 = 1 << 7;

/// Flag: the interval is that of other series that were scraped at the same time.
pub(super) const GIVEN: u8 = 1 << 6;

/// State of one series.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// The newest stored time known, ms since 1970; [`i64::MIN`] if there is none.
    pub(super) last_ms: i64,
    /// The newest time sent by this sender; [`i64::MIN`] if there is none.
    pub(super) sent_ms: i64,
    /// The newest time observed of the leading sender; [`i64::MIN`] if there is none.
    pub(super) led_ms: i64,
    /// Distances from `last_ms` to the two stored times before it, ms.
    pub(super) before_ms: [u32; KNOWN - 1],
    /// The newest time from which the interval was learned.
    pub(super) learned_ms: i64,
    /// Interval of the latest steps, ms; 0 before the first.
    pub(super) interval_ms: u32,
    /// Votes for that interval.
    pub(super) votes: u8,
    /// Votes for exactly that interval.
    pub(super) exact: u8,
    /// [`BOUNDED`], [`GIVEN`], [`OWN`].
    pub(super) flags: u8,
    /// Lowest bits of the number of the sender of `led_ms`.
    pub(super) led_by: u8,
}

/// Intervals that the steps of all series show.
#[derive(Debug, Default)]
pub(super) struct Intervals {
    /// Interval of most samples of this sender, ms; 0 before a series has sent twice.
    pub(super) usual_ms: u32,
    pub(super) usual_votes: u8,
    pub(super) shortest: Shortest,
}

/// Lets a step vote for the value of most of the latest steps (Boyer and Moore, "A Fast Majority Vote Algorithm").
fn vote(interval_ms: &mut u32, votes: &mut u8, votes_max: u8, step_ms: u32) {
    if *votes == 0 {
        (*interval_ms, *votes) = (step_ms, 1);
    } else if step_ms.abs_diff(*interval_ms) <= *interval_ms / 4 {
        *votes = (*votes + 1).min(votes_max);
    } else {
        *votes -= 1;
    }
}

/// The shortest interval seen, until it was not seen for `SHORTEST_STEPS` steps.
#[derive(Debug, Default)]
pub(super) struct Shortest {
    pub(super) interval_ms: u32,
    steps: u32,
}

/// Number of longer steps after which the shortest interval is forgotten.
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
    /// Notes that samples of a series at these times, both of one sender, followed each other directly.
    pub(super) fn step(&mut self, entry: &mut Entry, before_ms: i64, time_ms: i64) {
        if before_ms == i64::MIN {
            return;
        }
        let step_ms = u32::try_from(time_ms.saturating_sub(before_ms)).ok().filter(|ms| *ms <= STEP_MAX_MS);
        // History is sent at other intervals, so it must not change what is known of scrapes.
        let Some(step_ms) = step_ms.filter(|_| time_ms.saturating_add(GAP_MS) >= entry.learned_ms) else { return };
        if time_ms.saturating_sub(entry.learned_ms) > GAP_MS {
            entry.votes = 0;
        }
        entry.learned_ms = entry.learned_ms.max(time_ms);
        entry.step(step_ms);
        let (interval_ms, votes) = (entry.interval_ms, entry.votes);
        // Two samples alone show no interval.
        if votes > VOTES {
            self.shortest.saw(interval_ms);
        }
        vote(&mut self.usual_ms, &mut self.usual_votes, USUAL_VOTES_MAX, step_ms);
    }
}

pub(super) fn low_bits(sender: SenderNo) -> u8 {
    sender.0.to_le_bytes()[0]
}

/// Returns `true` if a step is a multiple of a shorter one, because scrapes between were missed or not seen. The factor
/// is limited, so that a match by chance is unlikely.
fn are_several(step_ms: i64, shorter_ms: i64) -> bool {
    let off_ms = step_ms % shorter_ms.max(1);
    off_ms.min(shorter_ms - off_ms) <= shorter_ms / STEP_PART && step_ms < shorter_ms * (STEPS_MAX + 1)
}

impl Default for Entry {
    fn default() -> Self {
        Self::UNKNOWN
    }
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

    /// Notes that a sample of a sender directly followed another one of it.
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

    /// Returns `true` if a sender that scraped at one time may have scraped at the other too, because whole intervals
    /// lie between them. `None` if the interval is not known for sure, to the millisecond.
    pub(super) fn is_in_step(&self, one_ms: i64, other_ms: i64) -> Option<bool> {
        let interval_ms = i64::from(self.interval_ms);
        if self.votes < VOTES_SURE || self.exact < EXACT_SURE {
            return None;
        }
        let off_ms = one_ms.saturating_sub(other_ms).saturating_abs() % interval_ms;
        Some(off_ms.min(interval_ms - off_ms) <= interval_ms / GRID_PART)
    }

    /// Returns the stored times known, newest first.
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

    /// Returns `true` if no known stored time is another sender's.
    pub(super) fn are_all_own(&self) -> bool {
        self.stored().all(|slot| slot.is_own)
    }

    /// Notes that a sample is stored.
    pub(super) fn add(&mut self, new: Slot) {
        if let Some(after_ms) = new.time_ms.checked_sub(self.last_ms).and_then(|ms| u32::try_from(ms).ok())
            && (1..NONE_BEFORE).contains(&after_ms)
        {
            // Most samples are the newest.
            let [before_ms, _] = self.before_ms;
            self.before_ms = [after_ms, before_ms.saturating_add(after_ms)];
            let own = (self.flags << 1 | u8::from(new.is_own)) & OWN;
            self.flags = self.flags & (BOUNDED | GIVEN) | own;
            self.last_ms = new.time_ms;
            return;
        }
        self.merge(new);
    }

    /// Notes that a sample of any time is stored.
    pub(super) fn merge(&mut self, new: Slot) {
        let mut slots = [Slot { time_ms: i64::MIN, is_own: false }; KNOWN];
        let mut count = 0;
        let mut rest = self.stored().peekable();
        let mut new = Some(new);
        while count < KNOWN {
            let next = match (new, rest.peek()) {
                (Some(one), Some(known)) if one.time_ms == known.time_ms => {
                    new = None;
                    // A sample noted as own may only have been about to be stored; a sample of another sender is
                    // stored.
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
    fn the_shortest_interval_counts_until_longer_ones_prevail() {
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
