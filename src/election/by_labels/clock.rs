//! How far a replica's clock is ahead of this host's, as its samples tell. Pure: time is an argument.
//!
//! A sender that lags makes samples look older than they are, and none makes them look newer. So what comes from the future
//! proves a clock that is ahead, at once; what comes late is laid to a clock that is behind only once it has come equally late
//! for minutes: a lag grows, or is caught up with. (One that stays is taken for a clock: samples of that time are then left in
//! doubt at a take-over, and filled in later, instead of being stored in it.)

use std::time::{Duration, Instant};

/// Of each the least lag is taken; one in which nothing comes does not count.
const WINDOW: Duration = Duration::from_secs(20);

/// So many windows, three minutes, tell a clock that is behind.
const WINDOWS: usize = 9;

/// What they tell may differ by so much.
const STEADY_MS: i64 = 500;

/// How exactly two clocks are told apart: samples of two replicas may take times on their way that differ by so much.
pub const ERROR_MS: i64 = 2_000;

/// One replica's clock.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// When this window ends.
    window_ends: Option<Instant>,
    /// The most that samples were ahead in this window.
    most_ms: Option<i64>,
    /// The same of the last windows.
    before_ms: [Option<i64>; WINDOWS],
    /// What they agreed on last.
    agreed_ms: i64,
}

impl Clock {
    /// A request has come, the newest sample in it `ahead_ms` ahead of this host's clock.
    pub fn on_request(&mut self, ahead_ms: i64, now: Instant) {
        if self.window_ends.is_none_or(|ends| ends <= now) {
            self.window_ends = Some(now + WINDOW);
            if let Some(most_ms) = self.most_ms.take() {
                self.before_ms.rotate_left(1);
                self.before_ms[WINDOWS - 1] = Some(most_ms);
                self.agreed_ms = self.steady_ms().unwrap_or(self.agreed_ms);
            }
        }
        self.most_ms = self.most_ms.max(Some(ahead_ms));
    }

    /// How far it is ahead of this host's, in ms, less the shortest time on the way; 0 as long as that is not known.
    #[must_use]
    pub fn ahead_ms(&self) -> i64 {
        let seen_ms = self.before_ms.iter().copied().max().flatten().max(self.most_ms);
        seen_ms.map_or(0, |seen_ms| seen_ms.max(self.agreed_ms))
    }

    /// What the last windows agree on.
    fn steady_ms(&self) -> Option<i64> {
        let least_ms = self.before_ms.iter().copied().min()??;
        let most_ms = self.before_ms.iter().copied().max()??;
        (most_ms.saturating_sub(least_ms) <= STEADY_MS).then_some(most_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After requests at these seconds, with samples so far ahead.
    fn ahead_ms(requests: impl IntoIterator<Item = (u64, i64)>) -> i64 {
        let start = Instant::now();
        let mut clock = Clock::default();
        for (second, ahead_ms) in requests {
            clock.on_request(ahead_ms, start + Duration::from_secs(second));
        }
        clock.ahead_ms()
    }

    #[test]
    fn what_comes_from_the_future_is_a_clock_at_once() {
        assert_eq!(ahead_ms([(0, 30_000)]), 30_000);
        assert_eq!(ahead_ms([(0, 29_000), (1, 30_000), (30, 10)]), 30_000, "the rest was on its way for long");
        let set_right = (0..=100).map(|second| (second, 90_000)).chain((101..=300).map(|second| (second, -3)));
        assert_eq!(ahead_ms(set_right), -3);
    }

    #[test]
    fn what_comes_late_for_minutes_is_a_clock() {
        let behind = |second: u64| (second, -30_000 - i64::try_from(second % 5).unwrap() * 1_000);
        assert_eq!(ahead_ms((0..=179).map(behind)), 0, "not yet");
        assert_eq!(ahead_ms((0..=180).map(behind)), -30_000);
        assert_eq!(ahead_ms((0..=9).map(|minute| (minute * 60, -4_000))), -4_000, "a request a minute");
        let set_right = (0..=180).map(behind).chain([(181, 4)]);
        assert_eq!(ahead_ms(set_right), 4);
    }

    #[test]
    fn a_lag_is_not() {
        let falls_behind =
            |ms_per_second: i64| move |second: u64| (second, -5 - i64::try_from(second).unwrap() * ms_per_second);
        for ms_per_second in [5, 20, 200, 1_000] {
            assert_eq!(ahead_ms((0..=900).map(falls_behind(ms_per_second))), 0, "{ms_per_second} ms/s");
            let catches_up = |second: u64| (second, -900_005 + i64::try_from(second).unwrap() * ms_per_second);
            assert_eq!(ahead_ms((0..=900).map(catches_up)), 0, "{ms_per_second} ms/s");
        }
        let behind = (0..=200).map(|second| (second, -5_000));
        assert_eq!(ahead_ms(behind.chain((201..500).map(falls_behind(200)))), -5_000, "it is known from before");
    }
}
