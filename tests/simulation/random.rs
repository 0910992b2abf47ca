//! A small seeded generator (splitmix64). Its output is the same on every machine and never changes, so that a seed
//! always means the same schedule.

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d);
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number from `low` to `high`, both included.
    #[expect(clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "spans are small")]
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }

    /// Like [`Random::between`], but small values are about as frequent as large ones.
    pub(crate) fn spread(&mut self, low: i64, high: i64) -> i64 {
        let mut high_now = high;
        while high_now > low * 2 + 1 && self.chance(45) {
            high_now /= 2;
        }
        self.between(low, high_now.max(low))
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).unwrap_or(0)
    }

    pub(crate) fn chance(&mut self, percent: i64) -> bool {
        self.between(0, 99) < percent
    }
}
