//! Throttling of log lines: an error that lasts is logged when it begins and then at intervals, not each time. Pure:
//! time is an argument.

use std::time::{Duration, Instant};

/// Texts that were logged lately.
#[derive(Debug, Default)]
pub struct LogThrottle {
    said: Vec<(String, Instant)>,
}

/// Time after which an error that lasts is logged again.
const AGAIN: Duration = Duration::from_secs(30);

/// Maximum different texts logged within [`AGAIN`]: texts that are never the same twice must not fill the log.
const SAID_MAX: usize = 8;

impl LogThrottle {
    /// Returns `true` if `text` is to be logged at `now`; it then counts as logged.
    pub fn should_log(&mut self, text: &str, now: Instant) -> bool {
        self.said.retain(|(_, at)| now.saturating_duration_since(*at) < AGAIN);
        if self.said.len() >= SAID_MAX || self.said.iter().any(|(said, _)| said == text) {
            return false;
        }
        self.said.push((text.to_owned(), now));
        true
    }

    /// Notes that the error is over, so that it is logged at once if it comes again. Returns `true` if anything was
    /// logged of it lately.
    pub fn over(&mut self) -> bool {
        !std::mem::take(&mut self.said).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_each_half_minute() {
        let start = Instant::now();
        let mut trouble = LogThrottle::default();
        let mut at = |text: &str, seconds| trouble.should_log(text, start + Duration::from_secs(seconds));
        assert_eq!(
            [at("down", 0), at("full", 1), at("down", 2), at("down", 29), at("full", 30)],
            [true, true, false, false, false]
        );
        assert_eq!([at("down", 30), at("full", 31), at("down", 40)], [true, true, false]);
    }

    #[test]
    fn over_is_said_once() {
        let now = Instant::now();
        let mut trouble = LogThrottle::default();
        assert!(!trouble.over());
        assert!(trouble.should_log("down", now) && trouble.over() && !trouble.over());
        assert!(trouble.should_log("down", now), "it came again");
    }

    #[test]
    fn words_that_always_differ_do_not_fill_the_log() {
        let now = Instant::now();
        let mut trouble = LogThrottle::default();
        let lines = (0..1_000).filter(|pid| trouble.should_log(&format!("process {pid}"), now)).count();
        assert_eq!(lines, SAID_MAX);
        assert!(trouble.should_log("process 0", now + AGAIN));
    }
}
