//! Chance that can be repeated: its output is the same on every machine and never changes, so that a seed always means
//! the same run.

/// Generator of random numbers. Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014
/// (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

/// What the state is advanced by.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns the number that a generator in `state` gives next: bits of which each depends on all of the state's.
#[must_use]
pub fn mixed(state: u64) -> u64 {
    let mut bits = state.wrapping_add(STEP);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

impl Random {
    /// Returns the generator of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(STEP) ^ 0x5851_f42d_4c95_7f2d);
        random.bits();
        random
    }

    /// Returns a random number.
    pub fn bits(&mut self) -> u64 {
        let bits = mixed(self.0);
        self.0 = self.0.wrapping_add(STEP);
        bits
    }

    /// Returns a number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// Returns an index of a list of `count` elements, which is not empty.
    pub fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).unwrap_or(0)
    }

    /// Returns a number from `low` to `high`, both included.
    #[expect(clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "spans are small")]
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as u64) as i64
    }

    /// Like [`Random::between`], but small values are about as frequent as large ones.
    pub fn spread(&mut self, low: i64, high: i64) -> i64 {
        let mut high_now = high;
        while high_now > low * 2 + 1 && self.chance(45) {
            high_now /= 2;
        }
        self.between(low, high_now.max(low))
    }

    /// Returns `true` in `percent` of the cases.
    pub fn chance(&mut self, percent: i64) -> bool {
        self.between(0, 99) < percent
    }

    /// Returns seconds from `from` to `to`.
    pub fn seconds(&mut self, from: f64, to: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "below a thousand")]
        let share = self.below(1_000) as f64 / 1_000.0;
        from + (to - from) * share
    }
}
