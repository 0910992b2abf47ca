//! Log on standard error, one line per event, as logfmt or JSON.
//!
//! This module decides the format of a line and which levels are written. The other modules decide what is logged.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::log::{Level, LevelFilter, SetLoggerError};

/// Log level and format.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `-log-level`.
    pub level: LevelFilter,
    /// `-log-format`.
    pub format: Format,
}

/// Format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `time=… level=… msg="…"`.
    Logfmt,
    /// The same keys, as a JSON object.
    Json,
}

/// Starts the logger of the process: lines of this crate from the configured level on, lines of dependencies from WARN
/// on. At DEBUG a line also names its module.
///
/// # Errors
///
/// `SetLoggerError` if the process already has a logger.
pub fn init(config: &Config) -> Result<(), SetLoggerError> {
    let format = config.format;
    let targets = config.level >= LevelFilter::Debug;
    env_logger::Builder::new()
        .filter_level(config.level.min(LevelFilter::Warn))
        .filter_module(env!("CARGO_CRATE_NAME"), config.level)
        .format(move |out, record| {
            let target = targets.then(|| record.target());
            let line = line(format, SystemTime::now(), record.level(), target, &record.args().to_string());
            writeln!(out, "{line}")
        })
        .try_init()
}

/// Formats one event, without the line's end. A message of several lines becomes one line.
fn line(format: Format, time: SystemTime, level: Level, target: Option<&str>, message: &str) -> String {
    // A clock before 1970 is shown as 1970: a line with a wrong time is better than no line.
    let time = rfc3339(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    // serde_json escapes control characters, quotes and backslashes; quoted values of logfmt need no more.
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let message = quote(message);
    match (format, target) {
        (Format::Logfmt, None) => format!("time={time} level={level} msg={message}"),
        (Format::Logfmt, Some(target)) => {
            format!("time={time} level={level} target={target} msg={message}")
        }
        (Format::Json, None) => format!(r#"{{"time":"{time}","level":"{level}","msg":{message}}}"#),
        (Format::Json, Some(target)) => {
            format!(r#"{{"time":"{time}","level":"{level}","target":{},"msg":{message}}}"#, quote(target))
        }
    }
}

/// Formats the time since 1970 as UTC with milliseconds.
fn rfc3339(since_epoch: Duration) -> String {
    let (days, second) = (since_epoch.as_secs() / 86_400, since_epoch.as_secs() % 86_400);
    // Days are counted from 0000-03-01, so that the leap day is the last day of its year. An era is 400 years, after
    // which the calendar repeats. Within a year the months from March on have 31, 30, 31, 30, 31 days, twice, and so
    // on: 153 days for every five months.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let millis = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(format: Format, target: Option<&str>, message: &str, expected: &str) {
        let time = UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
        assert_eq!(line(format, time, Level::Info, target, message), expected);
    }

    #[test]
    fn logfmt() {
        check(Format::Logfmt, None, "became leader", r#"time=2026-01-02T03:04:05.678Z level=INFO msg="became leader""#);
        check(
            Format::Logfmt,
            Some("a::b"),
            "say \"hi\"\\\nthere\u{1b}[0m é",
            "time=2026-01-02T03:04:05.678Z level=INFO target=a::b msg=\"say \\\"hi\\\"\\\\\\nthere\\u001b[0m é\"",
        );
    }

    #[test]
    fn json() {
        check(Format::Json, None, "a\tb", r#"{"time":"2026-01-02T03:04:05.678Z","level":"INFO","msg":"a\tb"}"#);
        let line = line(Format::Json, UNIX_EPOCH, Level::Warn, Some("a\"b"), "two\nlines");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["msg"], "two\nlines");
        assert_eq!(value["target"], "a\"b");
        assert_eq!(value["level"], "WARN");
        assert!(!line.contains('\n'));
    }

    #[track_caller]
    fn check_time(millis: u64, expected: &str) {
        assert_eq!(rfc3339(Duration::from_millis(millis)), expected);
    }

    #[test]
    fn times() {
        check_time(0, "1970-01-01T00:00:00.000Z");
        check_time(951_782_399_999, "2000-02-28T23:59:59.999Z");
        check_time(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check_time(951_868_800_000, "2000-03-01T00:00:00.000Z");
        check_time(1_798_761_599_000, "2026-12-31T23:59:59.000Z");
        check_time(4_107_542_400_000, "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn every_day_is_the_next_of_the_one_before() {
        let mut expected = (1970, 1, 1);
        for day in 0..150_000 {
            let text = rfc3339(Duration::from_secs(day * 86_400));
            let (year, month, date) = expected;
            assert_eq!(text, format!("{year:04}-{month:02}-{date:02}T00:00:00.000Z"));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + i32::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (month, date) {
                (12, 31) => (year + 1, 1, 1),
                (_, date) if date == length => (year, month + 1, 1),
                (_, date) => (year, month, date + 1),
            };
        }
    }
}
