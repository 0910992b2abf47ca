//! The only room that opens a connection: TLS, session settings, classes of errors.

use std::path::PathBuf;

pub mod tls;

/// How to reach PostgreSQL.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address, user, password and database of the sessions that write and read: `-pg-uri`, or `-pg-host` and its kin.
    pub server: tokio_postgres::Config,
    /// The same for the lock session, straight to the primary: `-pg-lock-uri`, or `server`.
    pub lock_server: tokio_postgres::Config,
    /// `-pg-ssl-mode`, or `sslmode` in `-pg-uri`.
    pub ssl_mode: SslMode,
    /// `-pg-ssl-root-cert` or `sslrootcert` in `-pg-uri`: PEM file of the authorities to trust; the system's without it.
    pub ssl_root_cert: Option<PathBuf>,
    /// `-pg-max-open-conns`: connections at most, the lock session not counted; at least 1.
    pub max_open_conns: usize,
    /// `-pg-max-idle-conns`: connections kept open while idle.
    pub max_idle_conns: usize,
    /// `-pg-db-connect-retries`: attempts after the first at start, one a second, before giving up; 0 = try for ever.
    pub connect_retries: u32,
}

/// What lib/pq's `sslmode` means: how far the server's certificate is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it, unverified.
    Prefer,
    /// TLS, unverified, unless a root certificate is configured.
    Require,
    /// TLS; the certificate comes from a trusted authority.
    VerifyCa,
    /// As `VerifyCa`, and it names the host.
    VerifyFull,
}
