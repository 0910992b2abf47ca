//! Parses `-pg-uri`.
//!
//! tokio-postgres parses URIs and key=value lists itself, but does not know `sslrootcert` or the verifying modes of
//! `sslmode`. These two settings are removed first. No error repeats any part of a text that may contain a password.

use std::borrow::Cow;
use std::error::Error;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use tokio_postgres::config::Host;

use crate::postgres::SslMode;

/// Settings that libpq has and the adapter does not. Only these names may be repeated in an error: any other name may
/// be part of a password that contains a blank.
const UNSUPPORTED: [&str; 18] = [
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "krbsrvname",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "service",
    "sslcert",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslpassword",
    "sslsni",
];

/// The settings of a URI or key=value list. Its `Debug` output never shows the password.
#[derive(Clone, Debug, Default)]
pub(super) struct Uri {
    pub(super) server: tokio_postgres::Config,
    pub(super) ssl_mode: Option<SslMode>,
    pub(super) ssl_root_cert: Option<PathBuf>,
}

impl Uri {
    /// Parses a `postgres://` URI or a key=value list.
    pub(super) fn parse(text: &str) -> Result<Uri, String> {
        let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
        let (rest, tls) = if is_url { split_url(text)? } else { split_pairs(text) };
        let server: tokio_postgres::Config = rest.parse().map_err(|error| explain(&error, is_url))?;
        // `@` ends the password. An `@` inside the password makes the rest of the password part of the host.
        let odd = |host: &Host| matches!(host, Host::Tcp(name) if name.contains('@'));
        if server.get_hosts().iter().any(odd) {
            return Err("has more than one @: write one inside a password as %40".to_owned());
        }
        let mut uri = Uri { server, ssl_mode: None, ssl_root_cert: None };
        for (key, value) in tls {
            match key {
                TlsKey::Mode => {
                    uri.ssl_mode = Some(value.parse().map_err(|error| format!("sslmode {error}"))?);
                }
                TlsKey::RootCert => uri.ssl_root_cert = Some(PathBuf::from(value)),
            }
        }
        Ok(uri)
    }
}

/// The settings that tokio-postgres does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TlsKey {
    Mode,
    RootCert,
}

impl TlsKey {
    fn of(key: &str) -> Option<TlsKey> {
        match key {
            "sslmode" => Some(TlsKey::Mode),
            "sslrootcert" => Some(TlsKey::RootCert),
            _ => None,
        }
    }
}

/// Returns a URI without these settings, and the settings.
fn split_url(text: &str) -> Result<(String, Vec<(TlsKey, String)>), String> {
    // Like tokio-postgres: the part before the first @ is the login, and may contain a question mark.
    let login = text.find('@').map_or(0, |at| at + 1);
    let Some(mark) = text[login..].find('?').map(|mark| login + mark) else {
        return Ok((text.to_owned(), Vec::new()));
    };
    let (mut kept, mut taken) = (Vec::new(), Vec::new());
    for pair in text[mark + 1..].split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match TlsKey::of(key) {
            Some(key) => {
                let value = percent_decode_str(value).decode_utf8().map_err(|_| "is not UTF-8")?;
                taken.push((key, value.into_owned()));
            }
            None => kept.push(pair),
        }
    }
    Ok((format!("{}?{}", &text[..mark], kept.join("&")), taken))
}

/// Returns a key=value list without these settings, and the settings. A text that is no such list is left for
/// tokio-postgres to reject.
fn split_pairs(text: &str) -> (String, Vec<(TlsKey, String)>) {
    let (mut kept, mut taken) = (String::new(), Vec::new());
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = leading_value(after.trim_start());
        match TlsKey::of(key.trim_end()) {
            Some(key) => taken.push((key, value.into_owned())),
            None => kept.push_str(&rest[..rest.len() - after.len()]),
        }
        if !kept.is_empty() {
            kept.push(' ');
        }
        rest = after.trim_start();
    }
    kept.push_str(rest);
    (kept, taken)
}

/// Returns the value at the start of `text`, with libpq's quotes and escapes resolved, and the rest of the text.
fn leading_value(text: &str) -> (Cow<'_, str>, &str) {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return (value.into(), &body[at + 1..]),
            _ if !quoted && char.is_whitespace() => return (value.into(), &body[at..]),
            _ => value.push(char),
        }
    }
    (value.into(), "")
}

/// Returns the error of tokio-postgres without any text of the operator's, except names from libpq's own list.
fn explain(error: &tokio_postgres::Error, is_url: bool) -> String {
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    let named = |prefix: &str| cause.strip_prefix(prefix).map(|name| name.trim_matches('`').to_owned());
    if let Some(name) = named("unknown option ").filter(|name| UNSUPPORTED.contains(&name.as_str())) {
        return format!("{name} is not supported");
    }
    match named("invalid value for option ") {
        Some(name) => format!("invalid value of {name}"),
        None if is_url => "not a URI as in postgres://user:password@host:5432/database?sslmode=require; write odd \
                           characters in a password as %40 for @, %2F for /"
            .to_owned(),
        None => "not a list as in host=db user=me password='a secret' dbname=metrics; values with blanks need quotes"
            .to_owned(),
    }
}
