//! How far the clocks are apart by which senders stamp their samples. Pure.
//!
//! Each adapter measures its own against the server's and writes that down for the others. These offsets do not change at one time:
//! after a step of the server's clock, say, each is measured, and read, a second or two sooner or later than the others. So they
//! count once all of them have stayed as they are for a while. If all have changed by the same amount, it was the server's clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::handover::slots::CLOCK_ERROR_MS;
use crate::model::sender::SenderNo;

/// Offsets count when they have not changed for so long: less than a buffered sample waits before it is compared.
const SETTLED: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub struct Clocks {
    /// That of the sender whose samples are judged.
    own: Option<Own>,
    others: BTreeMap<SenderNo, Other>,
    /// The newest sample of each sender that was observed, ms since 1970.
    newest_ms: BTreeMap<SenderNo, i64>,
    /// What was read last, and since when it has been so.
    read: Option<(Offsets, Instant)>,
    /// Since when what is read is not what counts, and the newest samples observed then.
    differs: Option<(Instant, BTreeMap<SenderNo, i64>)>,
}

/// How far clocks are ahead of the server's, ms.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Offsets {
    own_ms: i64,
    others_ms: BTreeMap<SenderNo, i64>,
}

#[derive(Clone, Copy, Debug)]
struct Own {
    offset_ms: i64,
    /// That of samples that came before.
    before: Option<(Instant, i64)>,
}

#[derive(Clone, Copy, Debug)]
struct Other {
    offset_ms: i64,
    /// That of samples that are stored at this time or an earlier one.
    before: Option<(i64, i64)>,
}

impl Clocks {
    /// A sample was observed to be stored.
    pub fn on_stored(&mut self, sender: SenderNo, time_ms: i64) {
        let newest_ms = self.newest_ms.entry(sender).or_insert(time_ms);
        *newest_ms = time_ms.max(*newest_ms);
    }

    /// How far the clocks of this sender and of the others of its group are ahead of the server's, as measured, or written down, last.
    pub fn on_read(&mut self, own_ms: i64, others: impl Iterator<Item = (SenderNo, i64)>, now: Instant) {
        let offsets = Offsets { own_ms, others_ms: others.collect() };
        let since = match &self.read {
            Some((before, since)) if before.is_close(&offsets) => *since,
            _ => now,
        };
        let settled = now.saturating_duration_since(since) >= SETTLED;
        if self.counts(&offsets) {
            self.differs = None;
        } else if settled {
            self.settle(&offsets, now);
        } else if self.differs.is_none() {
            self.differs = Some((now, self.newest_ms.clone()));
        }
        let read =
            self.read.take().filter(|(before, _)| before.is_close(&offsets)).map_or(offsets, |(before, _)| before);
        self.read = Some((read, since));
    }

    fn counts(&self, offsets: &Offsets) -> bool {
        let known = |(sender, offset_ms): (&SenderNo, &i64)| {
            self.others.get(sender).is_some_and(|other| is_close(other.offset_ms, *offset_ms))
        };
        self.own.is_some_and(|own| is_close(own.offset_ms, offsets.own_ms)) && offsets.others_ms.iter().all(known)
    }

    fn settle(&mut self, offsets: &Offsets, now: Instant) {
        let (since, newest_ms) = self.differs.take().unwrap_or((now, BTreeMap::new()));
        // The server's clock was set by so much, if any was.
        let step_ms = self.own.map_or(0, |own| offsets.own_ms - own.offset_ms);
        let is_servers = self.others.iter().all(|(sender, other)| {
            offsets.others_ms.get(sender).is_none_or(|offset_ms| is_close(offset_ms - other.offset_ms, step_ms))
        });
        let server_ms = if is_servers && !self.others.is_empty() { step_ms } else { 0 };
        let own = self.own.map(|own| own.shifted(server_ms));
        self.own = Some(match own {
            Some(own) if is_close(own.offset_ms, offsets.own_ms) => Own { offset_ms: offsets.own_ms, ..own },
            own => Own { offset_ms: offsets.own_ms, before: own.map(|own| (since, own.offset_ms)) },
        });
        for (sender, offset_ms) in &offsets.others_ms {
            let offset_ms = *offset_ms;
            let known = self.others.get(sender).map(|other| other.shifted(server_ms));
            let other = match known {
                Some(other) if is_close(other.offset_ms, offset_ms) => Other { offset_ms, ..other },
                known => {
                    let until_ms = newest_ms.get(sender).copied().unwrap_or(i64::MIN);
                    Other { offset_ms, before: known.map(|other| (until_ms, other.offset_ms)) }
                }
            };
            self.others.insert(*sender, other);
        }
    }

    /// How far this sender's clock was ahead, when a sample came that `arrived` then, of the clock by which `sender` stamped one that
    /// is stored at `stored_ms`; 0 if that is not known.
    #[must_use]
    pub fn skew_ms(&self, arrived: Instant, sender: SenderNo, stored_ms: i64) -> i64 {
        let Some(other) = self.others.get(&sender) else { return 0 };
        let other_ms = other
            .before
            .filter(|(until_ms, _)| stored_ms <= *until_ms)
            .map_or(other.offset_ms, |(_, before_ms)| before_ms);
        self.own_ms(arrived).saturating_sub(other_ms)
    }

    /// How far this sender's clock was ahead of the server's when a sample came that `arrived` then; 0 if that is not known.
    #[must_use]
    pub fn own_ms(&self, arrived: Instant) -> i64 {
        let Some(own) = self.own else { return 0 };
        own.before.filter(|(until, _)| arrived < *until).map_or(own.offset_ms, |(_, before_ms)| before_ms)
    }

    /// The most that [`Clocks::skew_ms`] may be, either way.
    #[must_use]
    pub fn most_ms(&self) -> i64 {
        let own =
            self.own.iter().flat_map(|own| [Some(own.offset_ms), own.before.map(|(_, before_ms)| before_ms)]).flatten();
        let others = || {
            self.others.values().flat_map(|other| [Some(other.offset_ms), other.before.map(|(_, before_ms)| before_ms)])
        };
        own.flat_map(|own_ms| others().flatten().map(move |other_ms| own_ms.saturating_sub(other_ms).saturating_abs()))
            .max()
            .unwrap_or(0)
    }
}

impl Offsets {
    fn is_close(&self, other: &Self) -> bool {
        is_close(self.own_ms, other.own_ms)
            && self.others_ms.len() == other.others_ms.len()
            && self
                .others_ms
                .iter()
                .zip(&other.others_ms)
                .all(|(one, other)| one.0 == other.0 && is_close(*one.1, *other.1))
    }
}

impl Own {
    fn shifted(self, by_ms: i64) -> Self {
        let before = self.before.map(|(until, offset_ms)| (until, offset_ms.saturating_add(by_ms)));
        Self { offset_ms: self.offset_ms.saturating_add(by_ms), before }
    }
}

impl Other {
    fn shifted(self, by_ms: i64) -> Self {
        let before = self.before.map(|(until_ms, offset_ms)| (until_ms, offset_ms.saturating_add(by_ms)));
        Self { offset_ms: self.offset_ms.saturating_add(by_ms), before }
    }
}

fn is_close(one_ms: i64, other_ms: i64) -> bool {
    one_ms.abs_diff(other_ms) <= CLOCK_ERROR_MS.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SenderNo = SenderNo(1);
    const B: SenderNo = SenderNo(2);

    struct Scene {
        clocks: Clocks,
        start: Instant,
    }

    impl Scene {
        fn new() -> Self {
            Self { clocks: Clocks::default(), start: Instant::now() }
        }

        fn at(&self, second: u64) -> Instant {
            self.start + Duration::from_secs(second)
        }

        /// Reads these offsets once a second.
        fn read(&mut self, seconds: std::ops::Range<u64>, own_ms: i64, a_ms: i64, b_ms: i64) {
            for second in seconds {
                let now = self.at(second);
                self.clocks.on_read(own_ms, [(A, a_ms), (B, b_ms)].into_iter(), now);
            }
        }

        fn skew(&self, arrived: u64, sender: SenderNo, stored_ms: i64) -> i64 {
            self.clocks.skew_ms(self.at(arrived), sender, stored_ms)
        }
    }

    #[test]
    fn offsets_count_once_they_have_settled() {
        let mut scene = Scene::new();
        assert_eq!(scene.skew(0, A, 0), 0, "nothing is known");
        scene.read(0..5, 3_000, 0, -10);
        assert_eq!(scene.skew(0, A, 0), 0);
        scene.read(5..6, 3_050, 20, -10);
        assert_eq!((scene.skew(0, A, 0), scene.skew(9, B, 5), scene.clocks.most_ms()), (3_030, 3_060, 3_060));
        assert_eq!(scene.skew(0, SenderNo(3), 0), 0, "one that is not known");
    }

    #[test]
    fn one_slow_answer_does_not_count() {
        let mut scene = Scene::new();
        scene.read(0..9, 0, 0, 0);
        scene.read(9..10, 400, 0, 0);
        scene.read(10..14, 0, 0, 0);
        scene.read(14..18, 400, 0, 0);
        assert_eq!(scene.skew(20, A, 0), 0);
        scene.read(18..20, 450, 0, 0);
        assert_eq!(scene.skew(20, A, 0), 450);
    }

    #[test]
    fn a_step_of_the_servers_clock_is_no_skew() {
        let mut scene = Scene::new();
        scene.read(0..6, 2_000, 0, 0);
        scene.read(6..7, -28_000, 0, 0);
        scene.read(7..8, -28_000, -30_000, 0);
        scene.read(8..14, -28_000, -30_000, -30_000);
        for arrived in [3, 6, 20] {
            assert_eq!([A, B].map(|sender| scene.skew(arrived, sender, 100)), [2_000, 2_000], "{arrived}");
        }
    }

    #[test]
    fn what_was_stamped_before_a_step_keeps_its_offset() {
        let mut scene = Scene::new();
        scene.read(0..6, 0, 0, 0);
        scene.clocks.on_stored(A, 6_000);
        scene.read(6..7, 0, -30_000, 0);
        scene.clocks.on_stored(A, 7_000);
        scene.read(7..12, 0, -30_000, 0);
        assert_eq!([6_000, 6_001].map(|stored_ms| scene.skew(20, A, stored_ms)), [0, 30_000]);
        assert_eq!(scene.skew(20, B, 9_000), 0);
        scene.read(12..18, 30_000, -30_000, 0);
        assert_eq!([11, 12].map(|arrived| scene.skew(arrived, A, 8_000)), [30_000, 60_000]);
        assert_eq!([11, 12].map(|arrived| scene.skew(arrived, B, 8_000)), [0, 30_000]);
        assert_eq!(scene.clocks.most_ms(), 60_000);
    }
}
