//! Differences between the clocks by which senders stamp their samples. Pure.
//!
//! Each adapter measures its own clock against the server's, and stores the offset for the others. Every clock may be
//! set, the server's too; the change is measured, and read, a little later. An adapter that is gone stores no new
//! offset. So all clocks are kept as offsets from a clock that nobody sets, the monotonic one of [`Instant`]. An offset
//! that another adapter stored is combined with the server's clock as it was when the offset was first read.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::handover::coverage::CLOCK_ERROR_MS;
use crate::model::sender::SenderNo;
use crate::model::time::as_ms;

/// See the module.
#[derive(Debug)]
pub struct Clocks {
    start: Instant,
    /// Time of the last reading, ms after the start.
    read_at: i64,
    /// Clock of the sender whose samples are judged.
    own: Option<Clock>,
    /// The server's clock, ms ahead of the monotonic one.
    server_ms: i64,
    /// Offset that each other sender stored, and its clock.
    others: BTreeMap<SenderNo, (i64, Clock)>,
}

/// A clock as its offsets from the monotonic one.
#[derive(Clone, Debug)]
struct Clock {
    ahead_ms: i64,
    /// Time that the clock showed when it got its present offset, ms since 1970.
    from_ms: i64,
    /// Earlier offsets, in the order of setting: from and until which time the clock stamped with the offset, and how
    /// far it was ahead.
    before: Vec<(i64, i64, i64)>,
}

/// A setting of a clock: the times between which it was set, ms after the start, and how far ahead the server's clock
/// was then.
#[derive(Clone, Copy, Debug)]
struct Set {
    between: (i64, i64),
    server_ms: i64,
}

/// Maximum earlier offsets kept of a clock.
const BEFORE_MAX: usize = 8;

impl Clocks {
    /// Returns clocks of which nothing is known.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { start: now, read_at: 0, own: None, server_ms: 0, others: BTreeMap::new() }
    }

    /// Notes a reading. This sender's clock shows `wall_ms`, in ms since 1970, and was measured to be `offset_ms` ahead
    /// of the server's. `others` are the offsets that the other senders of its group stored.
    pub fn on_read(
        &mut self,
        wall_ms: i64,
        offset_ms: i64,
        others: impl Iterator<Item = (SenderNo, i64)>,
        now: Instant,
    ) {
        let since_start = as_ms(now.saturating_duration_since(self.start));
        let own_ms = wall_ms.saturating_sub(since_start);
        self.server_ms = own_ms.saturating_sub(offset_ms);
        let set = Set {
            between: (std::mem::replace(&mut self.read_at, since_start), since_start),
            server_ms: self.server_ms,
        };
        self.own.get_or_insert_with(|| Clock::new(own_ms)).set(own_ms, set);
        for (sender, offset_ms) in others {
            let ahead_ms = self.server_ms.saturating_add(offset_ms);
            let (written_ms, clock) = self.others.entry(sender).or_insert_with(|| (offset_ms, Clock::new(ahead_ms)));
            // An offset that was stored before may have been true only by the server's clock of that time.
            if *written_ms != offset_ms {
                *written_ms = offset_ms;
                clock.set(ahead_ms, set);
            }
        }
    }

    /// Returns how far the clock by which this sender stamped a sample of `time_ms` was ahead of the one by which
    /// `sender` stamped a sample that is stored at `stored_ms`; 0 if that is not known.
    #[must_use]
    pub fn skew_ms(&self, time_ms: i64, sender: SenderNo, stored_ms: i64) -> i64 {
        let (Some(own), Some((_, other))) = (&self.own, self.others.get(&sender)) else { return 0 };
        own.at(time_ms).saturating_sub(other.at(stored_ms))
    }

    /// Returns the other senders whose clocks are known.
    pub fn others(&self) -> impl Iterator<Item = SenderNo> {
        self.others.keys().copied()
    }

    /// Returns how far the clock by which this sender stamped a sample of `time_ms` was ahead of the server's present
    /// clock; 0 if that is not known.
    #[must_use]
    pub fn offset_ms(&self, time_ms: i64) -> i64 {
        self.own.as_ref().map_or(0, |own| own.at(time_ms).saturating_sub(self.server_ms))
    }

    /// Returns by how much the distance of two times that this sender stamped may exceed the real distance, ms: for
    /// each two settings of its clock, including twice the same one.
    pub fn own_shifts_ms(&self) -> impl Iterator<Item = i64> {
        let all = || self.own.iter().flat_map(Clock::all);
        let shifts = all().flat_map(move |one_ms| all().map(move |other_ms| one_ms.saturating_sub(other_ms)));
        shifts.chain(self.own.is_none().then_some(0))
    }

    /// Returns the maximum of [`Clocks::skew_ms`], in either direction.
    #[must_use]
    pub fn most_ms(&self) -> i64 {
        let own = || self.own.iter().flat_map(Clock::all);
        let most = |other_ms: i64| own().map(move |own_ms| own_ms.saturating_sub(other_ms).saturating_abs()).max();
        self.others.values().flat_map(|(_, clock)| clock.all()).filter_map(most).max().unwrap_or(0)
    }
}

impl Clock {
    fn new(ahead_ms: i64) -> Self {
        Self { ahead_ms, from_ms: i64::MIN, before: Vec::new() }
    }

    /// Sets the present offset.
    fn set(&mut self, ahead_ms: i64, Set { between, server_ms }: Set) {
        if !is_close(self.ahead_ms, ahead_ms) {
            // Samples stamped between the two readings count as stamped with the offset that is closer to the server's:
            // with the other one they would cover too much.
            let is_corrected = ahead_ms.abs_diff(server_ms) < self.ahead_ms.abs_diff(server_ms);
            let at = if is_corrected { between.0 } else { between.1 };
            self.before.truncate(BEFORE_MAX - 1);
            self.before.push((self.from_ms, self.ahead_ms.saturating_add(at), self.ahead_ms));
            self.from_ms = ahead_ms.saturating_add(between.0);
        }
        self.ahead_ms = ahead_ms;
    }

    /// Returns how far the clock was ahead when it showed `time_ms`; if it showed that time twice, the first time.
    fn at(&self, time_ms: i64) -> i64 {
        let before = self.before.iter().find(|(from_ms, until_ms, _)| (*from_ms..=*until_ms).contains(&time_ms));
        before.map_or(self.ahead_ms, |(.., before_ms)| *before_ms)
    }

    fn all(&self) -> impl Iterator<Item = i64> {
        self.before.iter().map(|(.., before_ms)| *before_ms).chain([self.ahead_ms])
    }
}

fn is_close(one_ms: i64, other_ms: i64) -> bool {
    one_ms.abs_diff(other_ms) <= CLOCK_ERROR_MS.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const A: SenderNo = SenderNo(1);
    const B: SenderNo = SenderNo(2);

    struct Scene {
        clocks: Clocks,
        start: Instant,
        second: u64,
    }

    impl Scene {
        fn new() -> Self {
            let start = Instant::now();
            Self { clocks: Clocks::new(start), start, second: 0 }
        }

        /// Advances by a second and reads: how far this sender's clock and the server's are off, and what others
        /// stored.
        fn read(&mut self, own_ms: i64, server_ms: i64, others: &[(SenderNo, i64)]) {
            self.second += 1;
            let now = self.start + Duration::from_secs(self.second);
            let wall_ms = i64::try_from(self.second).unwrap() * 1_000 + own_ms;
            self.clocks.on_read(wall_ms, own_ms - server_ms, others.iter().copied(), now);
        }

        fn skew(&self, time_ms: i64, sender: SenderNo, stored_ms: i64) -> i64 {
            self.clocks.skew_ms(time_ms, sender, stored_ms)
        }
    }

    #[test]
    fn clocks_differ_by_what_was_written_down() {
        let mut scene = Scene::new();
        assert_eq!((scene.skew(0, A, 0), scene.clocks.offset_ms(0), scene.clocks.most_ms()), (0, 0, 0));
        scene.read(3_000, 0, &[(A, 1_000)]);
        assert_eq!((scene.skew(0, A, 5), scene.skew(0, B, 5), scene.clocks.offset_ms(0)), (2_000, 0, 3_000));
        scene.read(3_050, 0, &[(A, 1_020), (B, -2_000)]);
        assert_eq!((scene.skew(0, A, 5), scene.skew(0, B, 5), scene.clocks.most_ms()), (2_030, 5_050, 5_050));
    }

    #[test]
    fn a_step_of_the_servers_clock_is_no_skew() {
        let mut scene = Scene::new();
        scene.read(2_000, 0, &[(A, 0), (B, 0)]);
        // B is gone.
        for a_ms in [0, -30_000, -30_000] {
            scene.read(2_000, 30_000, &[(A, a_ms), (B, 0)]);
        }
        assert_eq!([A, B].map(|sender| scene.skew(9_000, sender, 100)), [2_000, 2_000]);
        scene.read(2_000, 0, &[(A, -30_000), (B, 0)]);
        scene.read(2_000, 0, &[(A, 0), (B, 0)]);
        assert_eq!([A, B].map(|sender| scene.skew(9_000, sender, 9_000)), [2_000, 2_000]);
        assert_eq!(scene.clocks.offset_ms(9_000), 2_000);
    }

    #[test]
    fn what_was_stamped_before_a_clock_was_set_keeps_its_offset() {
        let mut scene = Scene::new();
        scene.read(0, 0, &[(A, 0), (B, 0)]);
        // At 2 s A is set forward and B back. These are the times that they show then.
        scene.read(0, 0, &[(A, 30_000), (B, -30_000)]);
        scene.read(0, 0, &[(A, 30_010), (B, -30_000)]);
        assert_eq!(
            [1_000, 2_000, 2_001, 32_000].map(|stored_ms| scene.skew(0, A, stored_ms)),
            [0, 0, -30_010, -30_010]
        );
        assert_eq!([-28_000, 2_000, 3_000].map(|stored_ms| scene.skew(0, B, stored_ms)), [0, 0, 30_000]);
        // Both clocks are corrected.
        scene.read(0, 0, &[(A, 0), (B, 0)]);
        let skews = [2_000, 20_000, 33_010, 33_011].map(|stored_ms| scene.skew(0, A, stored_ms));
        assert_eq!(skews, [0, 0, -30_010, 0], "what it did not show then was stamped later");
        assert_eq!([-28_000, 2_000, 5_000].map(|stored_ms| scene.skew(0, B, stored_ms)), [0, 0, 0]);
        scene.read(30_000, 0, &[(A, 0), (B, 0)]);
        assert_eq!([5_000, 35_001].map(|time_ms| scene.skew(time_ms, B, 5_000)), [0, 30_000]);
        assert_eq!([5_000, 35_001].map(|time_ms| scene.clocks.offset_ms(time_ms)), [0, 30_000]);
        assert_eq!(scene.clocks.most_ms(), 60_000);
    }

    #[test]
    fn a_few_settings_are_kept() {
        let mut scene = Scene::new();
        for minute in 0..20 {
            scene.read(minute * 60_000, 0, &[(A, 0)]);
        }
        assert_eq!(scene.clocks.own.as_ref().map(|own| own.before.len()), Some(BEFORE_MAX));
        assert_eq!([0, 1_160_000].map(|time_ms| scene.skew(time_ms, A, 0)), [0, 19 * 60_000]);
    }
}
