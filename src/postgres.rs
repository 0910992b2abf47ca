//! The only module that opens a connection: TLS, session settings, classes of errors.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use deadpool_postgres::{Connect, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, TargetSessionAttrs};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub mod error;
pub mod timestamp;
pub mod tls;

use crate::postgres::error::Error;

/// Configuration of the connections to PostgreSQL.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address, user, password and database of the sessions that write and read: `-pg-uri`, or `-pg-host` and the like.
    pub server: tokio_postgres::Config,
    /// The same for the lock session, which connects directly to the primary: `-pg-lock-uri`, or `server`.
    pub lock_server: tokio_postgres::Config,
    /// `-pg-ssl-mode`, or `sslmode` in `-pg-uri`.
    pub ssl_mode: SslMode,
    /// `-pg-ssl-root-cert`, or `sslrootcert` in `-pg-uri`: PEM file of the trusted authorities; without it the system's
    /// are trusted.
    pub ssl_root_cert: Option<PathBuf>,
    /// `-pg-max-open-conns`: maximum connections, without the lock session; at least 1.
    pub max_open_conns: usize,
    /// `-pg-max-idle-conns`: connections kept open while idle.
    pub max_idle_conns: usize,
    /// `-pg-db-connect-retries`: attempts after the first one at start, one a second, before the adapter gives up; 0 =
    /// no limit.
    pub connect_retries: u32,
}

/// Verification of the server's certificate, as lib/pq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it, without verification.
    Prefer,
    /// TLS, without verification unless a root certificate is configured.
    Require,
    /// TLS; the certificate must come from a trusted authority.
    VerifyCa,
    /// As `VerifyCa`, and the certificate must name the host.
    VerifyFull,
}

impl FromStr for SslMode {
    type Err = &'static str;

    /// Parses a value of libpq's `sslmode`. `allow` is `prefer`: TLS whenever the server offers it.
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        match value {
            "disable" => Ok(Self::Disable),
            "allow" | "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            _ => Err("must be disable, prefer, require, verify-ca or verify-full"),
        }
    }
}

/// Opener of connections, all with one configuration.
#[derive(Clone)]
pub struct Connector {
    config: Config,
    tls: MakeRustlsConnect,
    tracker: TaskTracker,
}

/// A connection with one owner. Dropping it closes the socket, which ends the server's session and its locks.
pub struct Session {
    client: Option<Client>,
    connection: JoinHandle<()>,
    ended: CancellationToken,
}

/// Timeout of a close; after it the socket is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Timeout of connecting to one host, with DNS, TLS and log-in, unless `connect_timeout` sets it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout of waiting for a free connection of the pool.
const POOL_TIMEOUT: Duration = Duration::from_secs(10);

impl Connector {
    /// Prepares the connector; opens no connection.
    ///
    /// # Errors
    ///
    /// `tls::TlsError` if the root certificates cannot be read.
    pub fn new(config: Config, tracker: TaskTracker) -> Result<Self, tls::TlsError> {
        let tls = tls::connector(config.ssl_mode, config.ssl_root_cert.as_deref())?;
        Ok(Self { config, tls, tracker })
    }

    /// Opens the session for a lock: to the primary itself, never pooled.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, among them that no writable server can be reached in time.
    pub async fn lock_session(&self, application_name: &str) -> Result<Session, Error> {
        let mut config = self.config.lock_server.clone();
        config.application_name(application_name);
        self.open(config).await
    }

    /// Opens a session that writes: to the primary, possibly by a pooler.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, among them that no writable server can be reached in time.
    pub async fn write_session(&self) -> Result<Session, Error> {
        self.open(self.config.server.clone()).await
    }

    async fn open(&self, mut config: tokio_postgres::Config) -> Result<Session, Error> {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        let opening = async { connect(&config, &self.tls).await.map_err(Error::from) };
        let (client, connection) = within(connect_timeout(&config), opening).await?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let connection = self.tracker.spawn(async move {
            let _guard = guard;
            if let Err(error) = connection.await {
                log::debug!(err:% = Error::from(error); "connection to PostgreSQL ended");
            }
        });
        Ok(Session { client: Some(client), connection, ended })
    }

    /// Returns the pool for everything except lock and COPY: series, queries, jobs. `reserved` connections belong to
    /// the writers and are subtracted from `-pg-max-open-conns`. With `read_only` the pool connects to any server, also
    /// to a replica.
    #[must_use]
    pub fn pool(&self, reserved: usize, read_only: bool) -> Pool {
        let mut config = self.config.server.clone();
        if !read_only {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let create_timeout = connect_timeout(&config);
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let connect = PoolConnect { tls: self.tls.clone(), tracker: self.tracker.clone() };
        Pool::builder(Manager::from_connect(config, connect, recycling))
            .max_size(self.config.max_open_conns.saturating_sub(reserved).max(1))
            .create_timeout(Some(create_timeout))
            .wait_timeout(Some(POOL_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a pool with timeouts has been given its runtime")
    }

    /// Asks the server to cancel the query of `token`'s session. A failure is only logged, at debug.
    pub async fn cancel(&self, token: tokio_postgres::CancelToken) {
        if let Err(error) = token.cancel_query(self.tls.clone()).await {
            log::debug!(err:% = error; "cancelling a query failed");
        }
    }
}

impl Session {
    /// Returns the client that sends statements.
    #[must_use]
    pub fn client(&self) -> &Client {
        self.client.as_ref().expect("taken only by closing, by value")
    }

    /// Returns a future that ends when the connection has ended, whoever ended it: a shutdown of the server or a
    /// terminated backend is noticed at once.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.ended.clone().cancelled_owned()
    }

    /// Ends the session in order and waits until the socket is closed, so that the server releases the session's locks
    /// now.
    pub async fn close(mut self) {
        drop(self.client.take());
        // If the close is not complete by then, the drop closes the socket.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.connection).await;
    }
}

impl Drop for Session {
    /// Closes the socket at once: the connection's task would otherwise wait for outstanding answers.
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Runs `work` for at most `limit`. Whether the server completes a statement that is cut off here is unknown: drop the
/// session.
///
/// # Errors
///
/// Errors of `work`, or [`Error::Timeout`].
pub async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout { limit }),
    }
}

/// Runs `work` in the transaction that `begin` opens. It is committed if `work` succeeds, and rolled back if not: the first error
/// is returned then. The owner closes a session that cannot roll back.
///
/// # Errors
///
/// Errors of `work`, of the server or of the connection.
pub async fn in_transaction<T>(
    client: &Client,
    begin: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    client.batch_execute(begin).await?;
    let done = work.await;
    let ended = client.batch_execute(if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
    let done = done?;
    ended?;
    Ok(done)
}

type Connection = tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// Connector of the pool.
struct PoolConnect {
    tls: MakeRustlsConnect,
    tracker: TaskTracker,
}

type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>> + Send + 'a>>;

impl Connect for PoolConnect {
    fn connect(&self, config: &tokio_postgres::Config) -> Connecting<'_> {
        let config = config.clone();
        Box::pin(async move {
            let (client, connection) = connect(&config, &self.tls).await?;
            let connection = self.tracker.spawn(async move {
                if let Err(error) = connection.await {
                    log::debug!(err:% = Error::from(error); "connection to PostgreSQL ended");
                }
            });
            Ok((client, connection))
        })
    }
}

/// Connects to the first host that accepts. Each host has its own timeout: tokio-postgres bounds only a part of a
/// log-in, and one frozen host must not prevent an attempt at the next.
async fn connect(
    config: &tokio_postgres::Config,
    tls: &MakeRustlsConnect,
) -> Result<(Client, Connection), tokio_postgres::Error> {
    let limit = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
    let mut last = None;
    for mut host in hosts(config) {
        bound_silence(&mut host);
        match tokio::time::timeout(limit, host.connect(tls.clone())).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => last = Some(error),
            Err(_) => log::debug!(timeout:? = limit; "a host of PostgreSQL did not answer in time"),
        }
    }
    match last {
        Some(error) => Err(error),
        // No host answered: the caller's timeout for all hosts ends now.
        None => std::future::pending().await,
    }
}

/// Returns the timeout of [`connect`] for all hosts together.
fn connect_timeout(config: &tokio_postgres::Config) -> Duration {
    let limit = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
    let hosts = config.get_hosts().len().max(config.get_hostaddrs().len()).max(1);
    limit * u32::try_from(hosts).unwrap_or(u32::MAX) + Duration::from_millis(100)
}

/// Returns `config` once for each of its hosts.
fn hosts(config: &tokio_postgres::Config) -> Vec<tokio_postgres::Config> {
    let count = config.get_hosts().len().max(config.get_hostaddrs().len());
    let ports = config.get_ports();
    (0..count)
        .map(|at| {
            let mut one = tokio_postgres::Config::new();
            match config.get_hosts().get(at) {
                Some(Host::Tcp(host)) => one.host(host),
                Some(Host::Unix(path)) => one.host_path(path),
                None => &mut one,
            };
            if let Some(address) = config.get_hostaddrs().get(at) {
                one.hostaddr(*address);
            }
            if let Some(port) = ports.get(at).or(ports.first()) {
                one.port(*port);
            }
            config.get_user().map(|user| one.user(user));
            config.get_password().map(|password| one.password(password));
            config.get_dbname().map(|dbname| one.dbname(dbname));
            config.get_options().map(|options| one.options(options));
            config.get_application_name().map(|name| one.application_name(name));
            config.get_connect_timeout().map(|timeout| one.connect_timeout(*timeout));
            config.get_tcp_user_timeout().map(|timeout| one.tcp_user_timeout(*timeout));
            config.get_keepalives_interval().map(|interval| one.keepalives_interval(interval));
            config.get_keepalives_retries().map(|retries| one.keepalives_retries(retries));
            one.ssl_mode(config.get_ssl_mode())
                .ssl_negotiation(config.get_ssl_negotiation())
                .keepalives(config.get_keepalives())
                .keepalives_idle(config.get_keepalives_idle())
                .target_session_attrs(config.get_target_session_attrs())
                .channel_binding(config.get_channel_binding())
                .load_balance_hosts(config.get_load_balance_hosts());
            one
        })
        .collect()
}

/// Makes the connection notice in seconds that the peer has vanished, not after Linux' two hours, unless the operator
/// has set these options.
fn bound_silence(config: &mut tokio_postgres::Config) {
    let unset = tokio_postgres::Config::new();
    if config.get_keepalives_idle() == unset.get_keepalives_idle() {
        config.keepalives_idle(Duration::from_secs(5));
        config.keepalives_interval(Duration::from_secs(2));
        config.keepalives_retries(3);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(Duration::from_secs(15));
    }
}

/// A connection of the pool. If it is dropped before [`Pooled::give_back`], it is closed and not reused, because the
/// server may still work for it.
pub struct Pooled {
    object: Option<deadpool_postgres::Object>,
}

impl Pooled {
    /// Takes a connection out of `pool`.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, among them that no connection becomes free or can be opened in time.
    pub async fn take(pool: &Pool) -> Result<Self, Error> {
        Ok(Self { object: Some(pool.get().await?) })
    }

    /// Returns the connection to the pool.
    pub fn give_back(mut self) {
        drop(self.object.take());
    }
}

impl std::ops::Deref for Pooled {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.object.as_ref().expect("given back only by value")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(deadpool_postgres::Object::take(object));
        }
    }
}
