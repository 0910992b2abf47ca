//! The valid values of each flag: texts are converted into types and checked against their bounds.
//!
//! Pure. Every error completes `invalid value "…" for flag -…: `. Rules between flags belong to `config`.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{IntErrorKind, ParseIntError};
use std::str::FromStr;
use std::time::Duration;

use ::log::LevelFilter;

use super::uri::Uri;
use super::{duration, go};
use crate::election::PrometheusTimeout;
use crate::model::labels::METRIC_NAME;
use crate::storage::layout::UseTimescaledb;
use crate::telemetry::log::Format;

/// A text that is never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Secret(pub(super) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Names of labels. A type alias, because structopt would read a field of type `Vec` as a flag that may be given many
/// times.
pub(super) type Labels = Vec<String>;

/// `None` if the flag is empty. A type alias, because structopt would read a field of type `Option` as a flag without a
/// default.
pub(super) type MaybeUri = Option<Uri>;

pub(super) fn text(value: &str) -> Result<String, String> {
    if value.contains('\0') { Err("must not hold a NUL byte".to_owned()) } else { Ok(value.to_owned()) }
}

pub(super) fn secret(value: &str) -> Result<Secret, String> {
    text(value).map(Secret)
}

pub(super) fn uri(value: &str) -> Result<MaybeUri, String> {
    if value.is_empty() { Ok(None) } else { Uri::parse(value).map(Some) }
}

pub(super) fn not_empty(value: &str) -> Result<String, String> {
    if value.is_empty() { Err("must not be empty".to_owned()) } else { text(value) }
}

/// Reads the name of a group. It is short because names of sessions contain it, and PostgreSQL truncates those.
pub(super) fn group(value: &str) -> Result<String, String> {
    match value {
        _ if value.len() > 20 => Err("is longer than 20 bytes".to_owned()),
        _ if !value.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err("must be of letters, digits and signs, without blanks".to_owned())
        }
        _ => not_empty(value),
    }
}

pub(super) fn number<T: FromStr<Err = ParseIntError>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => "is too large".to_owned(),
        IntErrorKind::NegOverflow => "is too small".to_owned(),
        // An unsigned number parser reports a minus sign as an invalid digit.
        _ if value.starts_with('-') && value[1..].parse::<u64>().is_ok() => "must not be negative".to_owned(),
        _ => "is not a whole number".to_owned(),
    })
}

pub(super) fn within(value: &str, least: usize, most: usize) -> Result<usize, String> {
    let number = number(value)?;
    if (least..=most).contains(&number) { Ok(number) } else { Err(format!("must be {least} to {most}")) }
}

pub(super) fn at_least_one(value: &str) -> Result<u64, String> {
    match number(value)? {
        0 => Err("must be at least 1".to_owned()),
        number => Ok(number),
    }
}

/// Reads a number of MiB, and returns it in bytes.
pub(super) fn mebibytes(value: &str) -> Result<usize, String> {
    match number::<usize>(value)? {
        mib @ 1..=1_048_576 => Ok(mib * 1024 * 1024),
        _ => Err("must be 1 to 1048576 MiB".to_owned()),
    }
}

pub(super) fn port(value: &str) -> Result<u16, String> {
    match number(value) {
        Ok(port @ 1..) => Ok(port),
        _ => Err("must be a port, 1 to 65535".to_owned()),
    }
}

pub(super) fn connections(value: &str) -> Result<usize, String> {
    within(value, 1, 10_000).map_err(|error| match value {
        "0" => {
            format!("{error}; 0, which was no limit once, would open more than any server takes")
        }
        _ => error,
    })
}

pub(super) fn write_connections(value: &str) -> Result<usize, String> {
    within(value, 1, 64)
}

pub(super) fn clusters(value: &str) -> Result<usize, String> {
    within(value, 1, 100_000)
}

pub(super) fn span(value: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = duration::parse(value).map_err(|error| error.to_string())?;
    match duration {
        _ if duration < least => Err(format!("must be at least {}", duration::display(least))),
        _ if duration > most => Err(format!("must be at most {}", duration::display(most))),
        _ => Ok(duration),
    }
}

/// Upper bound of a duration. It is longer than any useful value, and adding it to a time is far from an overflow.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Reads a timeout or an interval.
pub(super) fn positive(value: &str) -> Result<Duration, String> {
    span(value, Duration::from_millis(1), YEAR)
}

/// Reads a timeout that also becomes a timeout of PostgreSQL, which is an `i32` in milliseconds.
pub(super) fn send_timeout(value: &str) -> Result<Duration, String> {
    span(value, Duration::from_millis(1), Duration::from_secs(86_400))
}

pub(super) fn lease(value: &str) -> Result<Duration, String> {
    span(value, Duration::from_secs(3), Duration::from_secs(300))
}

pub(super) fn election_interval(value: &str) -> Result<Duration, String> {
    span(value, Duration::from_millis(10), Duration::from_secs(3_600))
}

pub(super) fn chunk_interval(value: &str) -> Result<Duration, String> {
    span(value, Duration::from_secs(1), YEAR)
}

pub(super) fn seal_samples(value: &str) -> Result<u64, String> {
    match value.parse() {
        Ok(number @ 1_000..=100_000_000) => Ok(number),
        _ => Err("must be a number from 1000 to 100000000".to_owned()),
    }
}

pub(super) fn prometheus_timeout(value: &str) -> Result<PrometheusTimeout, String> {
    match value {
        // In 0.6.0 an unset timeout was a duration of -1.
        "auto" | "-1" | "-1ns" => Ok(PrometheusTimeout::Automatic),
        _ => match duration::parse(value) {
            Ok(Duration::ZERO) => Ok(PrometheusTimeout::Never),
            Ok(_) => positive(value).map(PrometheusTimeout::After),
            Err(error) => Err(error.to_string()),
        },
    }
}

pub(super) fn replica_timeout(value: &str) -> Result<PrometheusTimeout, String> {
    match prometheus_timeout(value)? {
        PrometheusTimeout::Never => Err("must be more than 0, or auto".to_owned()),
        timeout => Ok(timeout),
    }
}

/// `-metrics-high-availability-unlabelled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unlabelled {
    Refuse,
    Store,
}

pub(super) fn unlabelled(value: &str) -> Result<Unlabelled, String> {
    match value {
        "refuse" => Ok(Unlabelled::Refuse),
        "store" => Ok(Unlabelled::Store),
        _ => Err("must be refuse or store".to_owned()),
    }
}

pub(super) fn use_timescaledb(value: &str) -> Result<UseTimescaledb, String> {
    match (value, go::parse_bool(value)) {
        ("auto", _) => Ok(UseTimescaledb::Auto),
        (_, Ok(true)) => Ok(UseTimescaledb::Always),
        (_, Ok(false)) => Ok(UseTimescaledb::Never),
        _ => Err("must be auto, true or false".to_owned()),
    }
}

pub(super) fn listen_address(value: &str) -> Result<SocketAddr, String> {
    let expected = "must be [ADDRESS]:PORT, as in :9201, 127.0.0.1:9201 or [::1]:9201";
    if let Ok(address) = value.parse() {
        return Ok(address);
    }
    let (host, port) = value.rsplit_once(':').ok_or(expected)?;
    let port = port.parse().map_err(|_| expected)?;
    match host {
        // On Linux this address accepts IPv4 too.
        "" => Ok((Ipv6Addr::UNSPECIFIED, port).into()),
        "localhost" => Ok((Ipv4Addr::LOCALHOST, port).into()),
        _ => Err(format!("{expected}; of names only localhost")),
    }
}

pub(super) fn path(value: &str) -> Result<String, String> {
    // The adapter's own routes, which the metrics page would hide.
    let taken = ["/", "/write", "/read", "/healthz", "/status.json"];
    match value {
        _ if !value.starts_with('/') => Err("must begin with /".to_owned()),
        _ if !value.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%".contains(&byte)) => {
            Err("must be a plain path, without blanks, ?, # or %".to_owned())
        }
        _ if taken.contains(&value) || ["/-/", "/api/", "/admin/"].iter().any(|prefix| value.starts_with(prefix)) => {
            Err("is taken by another page of the adapter".to_owned())
        }
        _ => Ok(value.to_owned()),
    }
}

pub(super) fn labels(value: &str) -> Result<Labels, String> {
    let labels: Labels = value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if labels.iter().any(|label| label == METRIC_NAME) {
        return Err(format!("{METRIC_NAME} is the name of the metric, which every series needs"));
    }
    Ok(labels)
}

/// PostgreSQL silently truncates longer names.
const NAME_BYTES_MAX: usize = 63;

pub(super) fn schema(value: &str) -> Result<String, String> {
    match value {
        _ if value.len() > NAME_BYTES_MAX => Err(format!("is longer than {NAME_BYTES_MAX} bytes")),
        _ if value.contains(['{', '}']) => Err("must not contain braces".to_owned()),
        _ if value.starts_with("pg_") => Err("must not begin with pg_, which PostgreSQL keeps for itself".to_owned()),
        _ => text(value),
    }
}

pub(super) fn table_name(value: &str) -> Result<String, String> {
    // The other bytes are for the additions in the names derived from it.
    let most = NAME_BYTES_MAX - 23;
    match value {
        _ if value.len() > most => Err(format!("is longer than {most} bytes")),
        _ if value.contains(['{', '}']) => Err("must not contain braces".to_owned()),
        _ => not_empty(value),
    }
}

pub(super) fn log_level(value: &str) -> Result<LevelFilter, String> {
    match value.to_ascii_lowercase().as_str() {
        "debug" => Ok(LevelFilter::Debug),
        "info" => Ok(LevelFilter::Info),
        "warn" => Ok(LevelFilter::Warn),
        "error" => Ok(LevelFilter::Error),
        _ => Err("must be debug, info, warn or error".to_owned()),
    }
}

pub(super) fn log_format(value: &str) -> Result<Format, String> {
    match value {
        "logfmt" => Ok(Format::Logfmt),
        "json" => Ok(Format::Json),
        _ => Err("must be logfmt or json".to_owned()),
    }
}
