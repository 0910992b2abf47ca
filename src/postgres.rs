//! The only room that opens a connection: TLS, session settings, classes of errors.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub mod error;
pub mod timestamp;
pub mod tls;

use crate::postgres::error::Error;

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

/// Opens connections, all with one configuration.
#[derive(Clone)]
pub struct Connector {
    config: Config,
    tls: MakeRustlsConnect,
    tracker: TaskTracker,
}

/// One connection with one owner. Dropping it closes the socket, and with that the server's session and its locks.
pub struct Session {
    client: Client,
    connection: JoinHandle<()>,
    ended: CancellationToken,
}

/// How long a close may take before the socket is simply dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a new connection may take, DNS and TLS and log-in together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Connector {
    /// Prepares the connector; opens nothing.
    ///
    /// # Errors
    ///
    /// When the root certificates cannot be read.
    pub fn new(config: Config, tracker: TaskTracker) -> Result<Self, tls::TlsError> {
        let tls = tls::connector(config.ssl_mode, config.ssl_root_cert.as_deref())?;
        Ok(Self { config, tls, tracker })
    }

    /// Opens the session that will hold a lock: to the primary itself, never pooled.
    ///
    /// # Errors
    ///
    /// When no writable server can be reached in time.
    pub async fn lock_session(&self, application_name: &str) -> Result<Session, Error> {
        let mut config = self.config.lock_server.clone();
        config.application_name(application_name);
        self.open(config).await
    }

    /// Opens a session that writes, to the primary, perhaps by a pooler.
    ///
    /// # Errors
    ///
    /// When no writable server can be reached in time.
    pub async fn write_session(&self) -> Result<Session, Error> {
        self.open(self.config.server.clone()).await
    }

    async fn open(&self, mut config: tokio_postgres::Config) -> Result<Session, Error> {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        bound_silence(&mut config);
        let opened =
            within(CONNECT_TIMEOUT, async { config.connect(self.tls.clone()).await.map_err(Error::from) }).await;
        let (client, connection) = opened?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let connection = self.tracker.spawn(async move {
            let _guard = guard;
            if let Err(error) = connection.await {
                log::debug!("connection to PostgreSQL ended: {}", Error::from(error));
            }
        });
        Ok(Session { client, connection, ended })
    }

    /// The pool for everything that is neither lock nor COPY: series, queries, jobs. `reserved` connections are the
    /// writers' own and are taken off `-pg-max-open-conns`. With `read_only`, any server will do, a replica too.
    #[must_use]
    pub fn pool(&self, reserved: usize, read_only: bool) -> Pool {
        let mut config = self.config.server.clone();
        if !read_only {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        bound_silence(&mut config);
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        Pool::builder(Manager::from_config(config, self.tls.clone(), recycling))
            .max_size(self.config.max_open_conns.saturating_sub(reserved).max(1))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a pool with timeouts has been given its runtime")
    }

    /// Asks the server to cancel what `token`'s session runs. Best effort: a failure is logged at debug.
    pub async fn cancel(&self, token: tokio_postgres::CancelToken) {
        if let Err(error) = token.cancel_query(self.tls.clone()).await {
            log::debug!("cancelling a query failed: {error}");
        }
    }
}

impl Session {
    /// The client to send statements by.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Ends when the connection has ended, whoever ended it: a server that goes down or terminates the backend is
    /// noticed here at once.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.ended.clone().cancelled_owned()
    }

    /// Says good-bye and waits until the socket is closed, so that the server gives the session's locks away now.
    pub async fn close(self) {
        let Self { client, mut connection, .. } = self;
        drop(client);
        if tokio::time::timeout(CLOSE_TIMEOUT, &mut connection).await.is_err() {
            connection.abort();
        }
    }

    /// Closes the socket without a word: for a session in doubt.
    pub fn abandon(self) {
        self.connection.abort();
    }
}

/// Runs `work`, at most `limit` long. What the server makes of a statement cut off here is unknown: drop the session.
///
/// # Errors
///
/// `work`'s own, or [`Error::Timeout`].
pub async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout { limit }),
    }
}

/// A peer that vanished without a word is noticed in seconds, not in Linux' two hours, unless the operator chose.
fn bound_silence(config: &mut tokio_postgres::Config) {
    let chosen = tokio_postgres::Config::new();
    if config.get_keepalives_idle() == chosen.get_keepalives_idle() {
        config.keepalives_idle(Duration::from_secs(5));
        config.keepalives_interval(Duration::from_secs(2));
        config.keepalives_retries(3);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(Duration::from_secs(15));
    }
}

/// A connection of the pool. Dropped before [`Pooled::give_back`] it is closed, not reused: nobody knows what it still
/// does.
pub struct Pooled {
    object: Option<deadpool_postgres::Object>,
}

impl Pooled {
    /// Takes one out of `pool`.
    ///
    /// # Errors
    ///
    /// When none comes free or can be opened in time.
    pub async fn take(pool: &Pool) -> Result<Self, Error> {
        Ok(Self { object: Some(pool.get().await?) })
    }

    /// Gives it back for others to use.
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
