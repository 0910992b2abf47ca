//! Converts `-pg-uri` and the other connection flags to tokio-postgres settings.

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::Host;

use super::flags::Postgres;
use super::uri::Uri;
use crate::postgres::{SslMode, tls};

/// The name in `pg_stat_activity`, unless the URI sets another one.
const APPLICATION_NAME: &str = "prometheus-postgresql-adapter";

/// The connect timeout, as in 0.6.0. A host that does not answer must not delay the start for minutes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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

#[cfg(test)]
mod tests;
