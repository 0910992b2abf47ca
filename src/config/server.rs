//! Converts `-pg-uri` and the other connection flags to tokio-postgres settings.
//!
//! tokio-postgres parses URIs and key=value lists itself, but does not know `sslrootcert` or the verifying modes of
//! `sslmode`. These two settings are removed first. No error repeats any part of a text that may contain a password.

use std::borrow::Cow;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::config::Host;

use super::flags::Postgres;
use super::value;
use crate::postgres::{SslMode, tls};

/// The name in `pg_stat_activity`, unless the URI sets another one.
const APPLICATION_NAME: &str = "prometheus-postgresql-adapter";

/// The connect timeout, as in 0.6.0. A host that does not answer must not delay the start for minutes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
    server: tokio_postgres::Config,
    ssl_mode: Option<SslMode>,
    ssl_root_cert: Option<PathBuf>,
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
                    uri.ssl_mode = Some(value::ssl_mode(&value).map_err(|error| format!("sslmode {error}"))?);
                }
                TlsKey::RootCert => uri.ssl_root_cert = Some(PathBuf::from(value)),
            }
        }
        Ok(uri)
    }
}

/// The settings of both servers, and of the check of their certificates.
pub(super) struct Servers {
    pub(super) server: tokio_postgres::Config,
    pub(super) lock_server: tokio_postgres::Config,
    pub(super) ssl_mode: SslMode,
    pub(super) ssl_root_cert: Option<PathBuf>,
}

/// Merges the flags. A URI wins over the flags, which supply what it omits. Both supply what the URI of the lock
/// session omits. `is_set` returns `true` if a flag was given.
///
/// # Errors
///
/// The mistake in `-pg-lock-uri` in view of the other settings.
pub(super) fn resolve(
    flags: &Postgres,
    is_set: impl Fn(&str) -> bool,
    warnings: &mut Vec<String>,
) -> Result<Servers, String> {
    let Uri { mut server, ssl_mode, ssl_root_cert } = flags.pg_uri.clone().unwrap_or_default();
    let mut ignore = |flag: &str, in_uri: bool| {
        if in_uri && is_set(flag) {
            warnings.push(format!("-{flag} has no effect: -pg-uri says otherwise"));
        }
    };
    let has_host = !server.get_hosts().is_empty() || !server.get_hostaddrs().is_empty();
    ignore("pg-host", has_host);
    ignore("pg-port", !server.get_ports().is_empty());
    ignore("pg-user", server.get_user().is_some());
    ignore("pg-password", server.get_password().is_some());
    ignore("pg-database", server.get_dbname().is_some());
    ignore("pg-ssl-mode", ssl_mode.is_some());
    ignore("pg-ssl-root-cert", ssl_root_cert.is_some());
    if !has_host {
        server.host(&flags.pg_host);
    }
    if server.get_ports().is_empty() {
        server.port(flags.pg_port);
    }
    if server.get_user().is_none() {
        server.user(&flags.pg_user);
    }
    if server.get_password().is_none() && !flags.pg_password.0.is_empty() {
        server.password(&flags.pg_password.0);
    }
    if server.get_dbname().is_none() {
        server.dbname(&flags.pg_database);
    }
    let ssl_mode = ssl_mode.unwrap_or(flags.pg_ssl_mode);
    let flag_root_cert = Some(PathBuf::from(&flags.pg_ssl_root_cert)).filter(|path| !path.as_os_str().is_empty());
    let ssl_root_cert = ssl_root_cert.or(flag_root_cert);
    settle(&mut server, ssl_mode);
    let mut servers = Servers { lock_server: server.clone(), server, ssl_mode, ssl_root_cert };
    if let Some(uri) = flags.pg_lock_uri.clone() {
        lock_server(&mut servers, uri)?;
    }
    Ok(servers)
}

/// Sets the server of the lock session. Settings that `uri` omits are taken from the other server.
fn lock_server(servers: &mut Servers, uri: Uri) -> Result<(), String> {
    let (mut lock, other) = (uri.server, &servers.server);
    if lock.get_hosts().is_empty() && lock.get_hostaddrs().is_empty() {
        for host in other.get_hosts() {
            match host {
                Host::Tcp(name) => lock.host(name),
                Host::Unix(path) => lock.host_path(path),
            };
        }
        for address in other.get_hostaddrs() {
            lock.hostaddr(*address);
        }
        if lock.get_ports().is_empty() {
            for port in other.get_ports() {
                lock.port(*port);
            }
        }
    }
    if let (None, Some(user)) = (lock.get_user(), other.get_user()) {
        lock.user(user);
    }
    if let (None, Some(password)) = (lock.get_password(), other.get_password()) {
        lock.password(password);
    }
    if let (None, Some(database)) = (lock.get_dbname(), other.get_dbname()) {
        lock.dbname(database);
    }
    // One verifier serves both servers. A server without TLS needs no verifier.
    let mode = uri.ssl_mode.unwrap_or(servers.ssl_mode);
    settle(&mut lock, mode);
    match (servers.ssl_mode, mode) {
        (ours, theirs) if ours == theirs => {}
        (SslMode::Disable, theirs) => servers.ssl_mode = theirs,
        (_, SslMode::Disable) => {}
        _ => return Err("sslmode must be disable or that of the other sessions".to_owned()),
    }
    match (&servers.ssl_root_cert, uri.ssl_root_cert) {
        (Some(ours), Some(theirs)) if *ours != theirs => {
            return Err("sslrootcert must be that of the other sessions: put both authorities into one file".to_owned());
        }
        (None, theirs @ Some(_)) => servers.ssl_root_cert = theirs,
        _ => {}
    }
    servers.lock_server = lock;
    Ok(())
}

/// Sets the settings that are the same for every server.
fn settle(server: &mut tokio_postgres::Config, ssl_mode: SslMode) {
    server.ssl_mode(tls::sslmode(ssl_mode));
    if server.get_application_name().is_none() {
        server.application_name(APPLICATION_NAME);
    }
    if server.get_connect_timeout().is_none() {
        server.connect_timeout(CONNECT_TIMEOUT);
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

#[cfg(test)]
mod tests;
