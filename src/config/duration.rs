//! Durations in the notation of Go and Prometheus: `1h30m`, `1.5s`, `100us`, `2w`, `0`.
//!
//! Pure. The grammar is that of Go's `time.ParseDuration`, with Prometheus' `d`, `w` and `y` (of 365 days) added.

use std::time::Duration;

/// The reason why a text is no duration. The messages show valid durations or name the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DurationError {
    /// An empty text, or no number with a unit.
    #[error("not a duration such as 30s, 1h30m or 500ms")]
    Malformed,
    /// A number without a unit.
    #[error("missing unit, as in 30s, 1h30m or 500ms")]
    NoUnit,
    /// Letters that are no unit.
    #[error("unknown unit: the units are ns, us, ms, s, m, h, d, w and y")]
    UnknownUnit,
    /// Less than 0.
    #[error("must not be negative")]
    Negative,
    /// More than 2^63-1 nanoseconds, about 292 years: the most that Go can hold.
    #[error("too long: at most about 292 years")]
    Overflow,
}

/// Units in nanoseconds, the longest first. µ has two code points, and Go accepts both.
const UNITS: [(&str, u64); 11] = [
    ("y", 365 * 86_400 * SECOND),
    ("w", 7 * 86_400 * SECOND),
    ("d", 86_400 * SECOND),
    ("h", 3_600 * SECOND),
    ("m", 60 * SECOND),
    ("s", SECOND),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ns", 1),
];
const SECOND: u64 = 1_000_000_000;

/// Parses a duration. Fractions of a nanosecond are truncated.
///
/// # Errors
///
/// The [`DurationError`] that applies.
pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    let (negative, unsigned) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut nanos, mut rest) = leading_part(unsigned)?;
    while !rest.is_empty() {
        let (part, after) = leading_part(rest)?;
        nanos = nanos.checked_add(part).ok_or(DurationError::Overflow)?;
        rest = after;
    }
    match nanos {
        0 => Ok(Duration::ZERO),
        _ if negative => Err(DurationError::Negative),
        _ if nanos > i64::MAX.unsigned_abs() => Err(DurationError::Overflow),
        _ => Ok(Duration::from_nanos(nanos)),
    }
}

/// Returns the first number with its unit, in nanoseconds, and the rest of the text.
fn leading_part(text: &str) -> Result<(u64, &str), DurationError> {
    let (whole, rest) = leading_digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => leading_digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(DurationError::Malformed);
    }
    let (unit, rest) = rest.split_at(rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len()));
    if unit.is_empty() {
        return Err(DurationError::NoUnit);
    }
    let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(DurationError::UnknownUnit)?;
    Ok((nanos(whole, fraction, *unit).ok_or(DurationError::Overflow)?, rest))
}

/// Returns `whole.fraction` times `unit`; `None` if it is too large. Both parts consist of digits and may be empty.
fn nanos(whole: &str, fraction: &str, unit: u64) -> Option<u64> {
    let digits = |digits: &str| {
        if digits.is_empty() { Some(0) } else { digits.parse::<u64>().ok() }
    };
    // A 19th digit is worth less than a nanosecond even in years, and 18 digits always fit into a `u64`.
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = u64::try_from(u128::from(digits(fraction)?) * u128::from(unit) / scale).ok()?;
    digits(whole)?.checked_mul(unit)?.checked_add(part)
}

fn leading_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Formats a duration in the notation that [`parse`] reads: `12h`, `1m30s`, `1s500ms`.
pub(crate) fn display(duration: Duration) -> String {
    let mut text = String::new();
    let mut rest = duration.as_nanos();
    for name in ["h", "m", "s", "ms", "us", "ns"] {
        let unit = UNITS.iter().find(|(known, _)| *known == name).map_or(1, |(_, unit)| u128::from(*unit));
        if rest >= unit {
            text += &format!("{}{name}", rest / unit);
            rest %= unit;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, nanos: u64) {
        assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
    }

    #[test]
    fn what_go_and_prometheus_read() {
        check("0", 0);
        check("-0", 0);
        check("+0s", 0);
        check("30s", 30 * SECOND);
        check("+5s", 5 * SECOND);
        check("1h30m", 5_400 * SECOND);
        check("1h30m30.5s", 5_430 * SECOND + SECOND / 2);
        check("500ms", SECOND / 2);
        check("1.5s", SECOND * 3 / 2);
        check(".5s", SECOND / 2);
        check("1.s", SECOND);
        check("100us", 100_000);
        check("100\u{b5}s", 100_000);
        check("100\u{3bc}s", 100_000);
        check("12ns", 12);
        check("0.3333333333333333333h", 1_199_999_999_999);
        check("1s1ms", SECOND + 1_000_000);
        check("1d", 86_400 * SECOND);
        check("2w", 14 * 86_400 * SECOND);
        check("1y", 365 * 86_400 * SECOND);
        check("9223372036854775807ns", i64::MAX.unsigned_abs());
    }

    #[track_caller]
    fn check_error(text: &str, error: DurationError) {
        assert_eq!(parse(text), Err(error), "{text}");
    }

    #[test]
    fn what_they_refuse() {
        for text in ["", "-", "+", "s", ".", ".s", "--1s", " 1s", "abc"] {
            check_error(text, DurationError::Malformed);
        }
        for text in ["30", "1.5", "1h30", "-1"] {
            check_error(text, DurationError::NoUnit);
        }
        for text in ["1x", "1s ", "1M", "1 s", "1é"] {
            check_error(text, DurationError::UnknownUnit);
        }
        check_error("-1s", DurationError::Negative);
        for text in ["9223372036854775808ns", "293y", "99999999999999999999s", "200y200y"] {
            check_error(text, DurationError::Overflow);
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn never_panics_on_near_durations(text in "[-+]?([0-9.]{0,25}(ns|us|µs|ms|s|m|h|d|w|y)?){0,4}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_can_be_read(nanos in 0..=i64::MAX.unsigned_abs()) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse(&display(duration)), Ok(duration));
        }
    }
}
