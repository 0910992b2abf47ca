//! How far a replica's clock is ahead of this host's, as its samples tell. Pure: time is an argument.
//!
//! A sample looks as old when it comes if its sender lags as if the clock by which it was scraped is behind. What tells them
//! apart is time: a lag grows and is caught up with, the difference of two clocks stays.

use std::time::{Duration, Instant};

/// The least lag of each is taken: more than a scrape, or than a database or a host is slow for.
const WINDOW: Duration = Duration::from_secs(20);

/// As many windows that say the same are relied on, a minute.
const WINDOWS: usize = 3;

/// How exactly it is known: samples of two replicas may take times on their way that differ by so much.
pub const ERROR_MS: i64 = 2_000;

/// One replica's clock.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// When this window ends.
    window_ends: Option<Instant>,
    /// The most that samples were ahead in this window.
    most_ms: Option<i64>,
    /// The same of the last windows in which any came.
    before_ms: [Option<i64>; WINDOWS],
    known_ms: Option<i64>,
}

impl Clock {
    /// A request has come, the newest sample in it `ahead_ms` ahead of this host's clock.
    pub fn on_request(&mut self, ahead_ms: i64, now: Instant) {
        if self.window_ends.is_none_or(|ends| ends <= now) {
            self.window_ends = Some(now + WINDOW);
            if let Some(most_ms) = self.most_ms.take() {
                self.before_ms.rotate_left(1);
                self.before_ms[WINDOWS - 1] = Some(most_ms);
                self.known_ms = self.steady_ms().or(self.known_ms);
            }
        }
        self.most_ms = self.most_ms.max(Some(ahead_ms));
    }

    /// How far it is ahead of this host's, ms, less the shortest time on the way; `None` while it may as well be that its
    /// sender lags.
    #[must_use]
    pub fn ahead_ms(&self) -> Option<i64> {
        self.known_ms
    }

    /// What the last windows agree on.
    fn steady_ms(&self) -> Option<i64> {
        let least_ms = self.before_ms.iter().copied().min()??;
        let most_ms = self.before_ms.iter().copied().max()??;
        (most_ms - least_ms <= ERROR_MS).then_some(most_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After requests at these seconds, with samples so far ahead.
    fn ahead_ms(requests: impl IntoIterator<Item = (u64, i64)>) -> Option<i64> {
        let start = Instant::now();
        let mut clock = Clock::default();
        for (second, ahead_ms) in requests {
            clock.on_request(ahead_ms, start + Duration::from_secs(second));
        }
        clock.ahead_ms()
    }

    #[test]
    fn what_stays_for_a_minute_is_the_clock() {
        let steady = |second: u64| (second, -30_000 - i64::try_from(second % 5).unwrap() * 1_000);
        assert_eq!(ahead_ms((0..60).map(steady)), None, "not yet");
        assert_eq!(ahead_ms((0..=60).map(steady)), Some(-30_000));
        assert_eq!(ahead_ms((0..=5).map(|minute| (minute * 60, 4_000))), Some(4_000), "a request a minute");
    }

    #[test]
    fn a_lag_is_not_the_clock() {
        let catches_up = |second: u64| (second, -60_000 + i64::try_from(second).unwrap() * 200);
        assert_eq!(ahead_ms((0..=240).map(catches_up)), None);
        let falls_behind = |second: u64| (second, -i64::try_from(second).unwrap() * 200);
        assert_eq!(ahead_ms((0..=240).map(falls_behind)), None);
        let steady = (0..=100).map(|second| (second, 5_000));
        assert_eq!(ahead_ms(steady.chain((101..240).map(falls_behind))), Some(5_000), "it is known from before");
    }

    #[test]
    fn a_clock_that_is_set_is_known_anew() {
        let wrong = (0..=100).map(|second| (second, 90_000));
        assert_eq!(ahead_ms(wrong.chain((101..=200).map(|second| (second, -3)))), Some(-3));
    }
}
