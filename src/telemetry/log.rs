//! Log on standard error, one line per event, as logfmt or JSON.
//!
//! This module decides the format of a line and which levels are written. The other modules decide what is logged.
//!
//! A message is constant, in lower case and without a full stop, so that it can be searched for; what varies follows as
//! keys. A key has one meaning in all lines: `group`, `cluster`, `replica`, `sender`, `leader` and `term` of the
//! election, `err` of an error, `reason` of a decision, `hint` for advice to the operator. A measured time is a number
//! in a key such as `after_ms`; a time that was set is a text such as `10s`.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::log::kv::{self, Key, Value, VisitSource, VisitValue};
use ::log::{LevelFilter, Record, SetLoggerError};

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
    /// `time=… level=… msg="…" key="…" …`.
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
            writeln!(out, "{}", line(format, SystemTime::now(), target, record))
        })
        .try_init()
}

/// Formats one event, without the line's end: the message, then the keys in the order given. A text of several lines
/// becomes one line.
fn line(format: Format, time: SystemTime, target: Option<&str>, record: &Record<'_>) -> String {
    // A clock before 1970 is shown as 1970: a line with a wrong time is better than no line.
    let time = rfc3339(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    let (level, message) = (record.level(), quote(&record.args().to_string()));
    let mut line = match (format, target) {
        (Format::Logfmt, None) => format!("time={time} level={level} msg={message}"),
        (Format::Logfmt, Some(target)) => {
            format!("time={time} level={level} target={target} msg={message}")
        }
        (Format::Json, None) => format!(r#"{{"time":"{time}","level":"{level}","msg":{message}"#),
        (Format::Json, Some(target)) => {
            format!(r#"{{"time":"{time}","level":"{level}","target":{},"msg":{message}"#, quote(target))
        }
    };
    // Appending to a text cannot fail.
    let _ = record.key_values().visit(&mut Keys { format, line: &mut line });
    if format == Format::Json {
        line.push('}');
    }
    line
}

/// Quotes a text. serde_json escapes control characters, quotes and backslashes; quoted values of logfmt need no more.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Appends keys with their values to a line.
struct Keys<'a> {
    format: Format,
    line: &'a mut String,
}

impl<'kvs> VisitSource<'kvs> for Keys<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let mut shown = Shown(None);
        value.visit(&mut shown)?;
        // A key without a value (`None`) is left out.
        if let Shown(Some(value)) = shown {
            self.line.push_str(&match self.format {
                Format::Logfmt => format!(" {key}={value}"),
                Format::Json => format!(",{}:{value}", quote(key.as_str())),
            });
        }
        Ok(())
    }
}

/// A value as it stands in the line: numbers and booleans bare, everything else quoted.
struct Shown(Option<String>);

impl<'v> VisitValue<'v> for Shown {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.0 = Some(quote(&value.to_string()));
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.0 = None;
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.0 = Some(value.to_string());
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.0 = Some(value.to_string());
        Ok(())
    }

    fn visit_u128(&mut self, value: u128) -> Result<(), kv::Error> {
        self.0 = Some(value.to_string());
        Ok(())
    }

    fn visit_i128(&mut self, value: i128) -> Result<(), kv::Error> {
        self.0 = Some(value.to_string());
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        // JSON has no number for the others.
        self.0 = Some(if value.is_finite() { value.to_string() } else { quote(&value.to_string()) });
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.0 = Some(value.to_string());
        Ok(())
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
    use ::log::Level;
    use ::log::kv::ToValue;

    use super::*;

    const NO_KEYS: &[(&str, Value<'static>)] = &[];

    fn line_of(
        format: Format,
        time: SystemTime,
        target: Option<&str>,
        message: &str,
        keys: &[(&str, Value<'_>)],
    ) -> String {
        let args = format_args!("{message}");
        line(format, time, target, &Record::builder().level(Level::Info).args(args).key_values(&keys).build())
    }

    #[track_caller]
    fn check(format: Format, target: Option<&str>, message: &str, keys: &[(&str, Value<'_>)], expected: &str) {
        let time = UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
        assert_eq!(line_of(format, time, target, message, keys), expected);
    }

    #[test]
    fn logfmt() {
        check(
            Format::Logfmt,
            None,
            "became leader",
            NO_KEYS,
            r#"time=2026-01-02T03:04:05.678Z level=INFO msg="became leader""#,
        );
        check(
            Format::Logfmt,
            Some("a::b"),
            "say \"hi\"\\\nthere\u{1b}[0m é",
            NO_KEYS,
            "time=2026-01-02T03:04:05.678Z level=INFO target=a::b msg=\"say \\\"hi\\\"\\\\\\nthere\\u001b[0m é\"",
        );
    }

    #[test]
    fn json() {
        check(
            Format::Json,
            None,
            "a\tb",
            NO_KEYS,
            r#"{"time":"2026-01-02T03:04:05.678Z","level":"INFO","msg":"a\tb"}"#,
        );
        let line = line_of(Format::Json, UNIX_EPOCH, Some("a\"b"), "two\nlines", NO_KEYS);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["msg"], "two\nlines");
        assert_eq!(value["target"], "a\"b");
        assert_eq!(value["level"], "INFO");
        assert!(!line.contains('\n'));
    }

    #[test]
    fn keys_follow_the_message_in_the_order_given() {
        let keys = [("group", "a 7".to_value()), ("term", 3_i64.to_value()), ("by", "it".to_value())];
        check(
            Format::Logfmt,
            None,
            "became leader",
            &keys,
            r#"time=2026-01-02T03:04:05.678Z level=INFO msg="became leader" group="a 7" term=3 by="it""#,
        );
        check(
            Format::Json,
            None,
            "leads",
            &keys,
            r#"{"time":"2026-01-02T03:04:05.678Z","level":"INFO","msg":"leads","group":"a 7","term":3,"by":"it"}"#,
        );
    }

    #[test]
    fn a_value_is_escaped() {
        let keys = [("err", "no \"such\"\nthing \\".to_value())];
        check(
            Format::Logfmt,
            None,
            "failed",
            &keys,
            r#"time=2026-01-02T03:04:05.678Z level=INFO msg="failed" err="no \"such\"\nthing \\""#,
        );
        let line = line_of(Format::Json, UNIX_EPOCH, None, "failed", &keys);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["err"], "no \"such\"\nthing \\");
        assert!(!line.contains('\n'));
    }

    #[track_caller]
    fn check_value(value: Value<'_>, expected: &str) {
        let shown = line_of(Format::Logfmt, UNIX_EPOCH, None, "m", &[("key", value.clone())]);
        assert_eq!(shown, format!(r#"time=1970-01-01T00:00:00.000Z level=INFO msg="m"{expected}"#));
        let line = line_of(Format::Json, UNIX_EPOCH, None, "m", &[("key", value)]);
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        let in_json = object.get("key").map(|value| format!(" key={value}")).unwrap_or_default();
        assert_eq!(in_json, expected, "the same in JSON");
    }

    #[test]
    fn numbers_and_booleans_are_bare() {
        check_value(5_usize.to_value(), " key=5");
        check_value((-5_i32).to_value(), " key=-5");
        check_value(Duration::from_millis(1_500).as_millis().to_value(), " key=1500");
        check_value(u64::MAX.to_value(), " key=18446744073709551615");
        check_value(0.25.to_value(), " key=0.25");
        check_value(true.to_value(), " key=true");
        check_value(f64::NAN.to_value(), " key=\"NaN\"");
        check_value(f64::NEG_INFINITY.to_value(), " key=\"-inf\"");
    }

    #[test]
    fn other_values_are_quoted() {
        check_value("elected".to_value(), " key=\"elected\"");
        check_value('x'.to_value(), " key=\"x\"");
        check_value(Value::from_display(&format_args!("{}", 7)), " key=\"7\"");
        check_value(Value::from_debug(&Duration::from_secs(15)), " key=\"15s\"");
    }

    #[test]
    fn a_key_without_a_value_is_left_out() {
        check_value(Some("127.0.0.1").to_value(), " key=\"127.0.0.1\"");
        check_value(None::<&str>.to_value(), "");
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
