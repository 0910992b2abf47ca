//! Every flag, once: name, type, default and help, in the groups of the help page.
//!
//! What a value may be is `value`'s, the rules between flags are `config`'s. structopt turns texts into types, once `go`
//! has taken the command line apart, and [`table`] tells the rest of the room what it knows of each flag.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ::log::LevelFilter;
use structopt::StructOpt;
use structopt::clap::{App, AppSettings};

use super::duration;
use super::go::{self, Kind};
use super::value::{self, Labels, MaybeUri, Secret, Unlabelled};
use crate::election::PrometheusTimeout;
use crate::postgres::SslMode;
use crate::storage::layout::UseTimescaledb;
use crate::telemetry::log::Format;

/// All flags with their values.
#[derive(Debug, StructOpt)]
#[structopt(setting = AppSettings::AllowLeadingHyphen)]
pub(super) struct Flags {
    #[structopt(flatten)]
    pub(super) web: Web,
    #[structopt(flatten)]
    pub(super) election: Election,
    #[structopt(flatten)]
    pub(super) postgres: Postgres,
    #[structopt(flatten)]
    pub(super) storage: Storage,
    #[structopt(flatten)]
    pub(super) log: Log,
    #[structopt(flatten)]
    pub(super) old: Old,
}

#[derive(Debug, StructOpt)]
pub(super) struct Web {
    /// Where to listen. Without an address before the colon, on every address of the host.
    #[structopt(long, value_name = "ADDRESS", default_value = ":9201", parse(try_from_str = value::listen_address))]
    pub(super) web_listen_address: SocketAddr,
    /// Path of the adapter's own metrics.
    #[structopt(long, value_name = "PATH", default_value = "/metrics", parse(try_from_str = value::path))]
    pub(super) web_telemetry_path: String,
    /// What requests under /admin/ that change something must show, as Authorization: Bearer TOKEN; better given by the
    /// environment. Empty: they must come from the adapter's own host.
    #[structopt(long, value_name = "TOKEN", default_value = "", parse(try_from_str = value::secret))]
    pub(super) web_admin_token: Secret,
    /// How long a write request may take from its first byte to its answer. Keep it no longer than remote_timeout in
    /// Prometheus' remote_write.
    #[structopt(long, value_name = "DURATION", default_value = "30s", parse(try_from_str = value::send_timeout))]
    pub(super) adapter_send_timeout: Duration,
    /// Samples a query may return when Prometheus asks for plain samples instead of a stream of chunks.
    #[structopt(long, value_name = "NUMBER", default_value = "5000000", parse(try_from_str = value::at_least_one))]
    pub(super) read_sample_limit: u64,
}

#[derive(Debug, StructOpt)]
pub(super) struct Election {
    /// Number of the PostgreSQL advisory lock the adapters of an HA pair contend for: the same for both, another for
    /// each pair. 0 is no election: this adapter always stores.
    #[structopt(long, value_name = "NUMBER", default_value = "0", parse(try_from_str = value::number))]
    pub(super) leader_election_pg_advisory_lock_id: i64,
    /// A leader whose Prometheus sends nothing for so long resigns. 0 is never; auto learns it from the interval
    /// between requests. Set it to a few scrape intervals, so that a slow request is no silence.
    #[structopt(long, value_name = "DURATION", default_value = "auto", parse(try_from_str = value::prometheus_timeout))]
    pub(super) leader_election_pg_advisory_lock_prometheus_timeout: PrometheusTimeout,
    /// How often a silent Prometheus is looked for, beside the exact deadline.
    #[structopt(long, value_name = "DURATION", default_value = "10s", parse(try_from_str = value::positive))]
    pub(super) leader_election_liveness_interval: Duration,
    /// The longest a frozen or unreachable leader keeps the lock, 3s to 5m. The server ends its session then; the
    /// lock of a leader that dies is free at once.
    #[structopt(long, value_name = "DURATION", default_value = "10s", parse(try_from_str = value::lease))]
    pub(super) leader_election_lease: Duration,
    /// How often a standby tries to take the lock, at least 10ms. A take-over begins within one interval.
    #[structopt(long, value_name = "DURATION", default_value = "100ms", parse(try_from_str = value::election_interval))]
    pub(super) scheduled_election_interval: Duration,
    /// Let an outside party tell who leads: PUT 1 or 0 to /admin/election/leader makes this adapter lead or resign, GET
    /// answers true or false. Of two told to lead, the later one does. Excludes the other elections.
    #[structopt(long, value_name = "true|false", default_value = "false", parse(try_from_str = go::parse_bool))]
    pub(super) leader_election_rest: bool,
    /// Name of the group whose leader is told: the same for both adapters of a pair, another for each pair.
    #[structopt(long, value_name = "NAME", default_value = "1", parse(try_from_str = value::group))]
    pub(super) leader_election_rest_group: String,
    /// Start held: out of elections until released by prometheus-postgresql-adapter election release.
    #[structopt(long, value_name = "true|false", default_value = "false", parse(try_from_str = go::parse_bool))]
    pub(super) leader_election_hold: bool,
    /// Find leaders by labels: every series names its cluster and its replica, any adapter may be sent any of them, and of
    /// each cluster one replica is stored. Excludes the other elections.
    #[structopt(long, value_name = "true|false", default_value = "false", parse(try_from_str = go::parse_bool))]
    pub(super) metrics_high_availability: bool,
    /// Name of the external label that all replicas of a cluster share. That which tells them apart is named by
    /// replica-labels.
    #[structopt(long, value_name = "LABEL", default_value = "cluster", parse(try_from_str = value::not_empty))]
    pub(super) metrics_high_availability_cluster_label: String,
    /// A leading replica that no adapter has heard for so long is followed by another one. auto learns it from the
    /// interval between requests.
    #[structopt(long, value_name = "DURATION", default_value = "15s", parse(try_from_str = value::replica_timeout))]
    pub(super) metrics_high_availability_timeout: PrometheusTimeout,
    /// Clusters at most, 1 to 100000. Of more, requests are answered 503 and stay with their sender.
    #[structopt(long, value_name = "NUMBER", default_value = "1000", parse(try_from_str = value::clusters))]
    pub(super) metrics_high_availability_clusters: usize,
    /// What becomes of series without these labels: refuse answers 400, store takes them as they are, from whoever sends
    /// them.
    #[structopt(long, value_name = "refuse|store", default_value = "refuse", parse(try_from_str = value::unlabelled))]
    pub(super) metrics_high_availability_unlabelled: Unlabelled,
    /// Memory a standby may take, in MiB, for what it was sent and the leader has not committed yet: 20 bytes a sample.
    /// When it is full the standby answers 503, and its Prometheus keeps the rest.
    #[structopt(long, value_name = "MIB", default_value = "256", parse(try_from_str = value::mebibytes))]
    pub(super) standby_memory_mib: usize,
    /// Names of external labels that tell the replicas of a pair or cluster apart, comma-separated. They are dropped
    /// before storing.
    #[structopt(long, value_name = "LABELS", default_value = "__replica__", parse(try_from_str = value::labels))]
    pub(super) replica_labels: Labels,
}

#[derive(Debug, StructOpt)]
pub(super) struct Postgres {
    /// Server and login in one, as postgres://user:password@host:port/database or as host=... user=..., with any
    /// setting of libpq's that applies. What it names wins over the flags below, which fill in the rest.
    #[structopt(long, value_name = "URI", default_value = "", parse(try_from_str = value::uri))]
    pub(super) pg_uri: MaybeUri,
    /// The same for the session that holds the advisory lock, straight to the primary when writes go through a
    /// pooler. What it leaves out is as for the other sessions.
    #[structopt(long, value_name = "URI", default_value = "", parse(try_from_str = value::uri))]
    pub(super) pg_lock_uri: MaybeUri,
    /// Host name or address, or the directory of a Unix socket.
    #[structopt(long, value_name = "HOST", default_value = "localhost", parse(try_from_str = value::not_empty))]
    pub(super) pg_host: String,
    /// Port of the server.
    #[structopt(long, value_name = "PORT", default_value = "5432", parse(try_from_str = value::port))]
    pub(super) pg_port: u16,
    /// User to log in as.
    #[structopt(long, value_name = "USER", default_value = "postgres", parse(try_from_str = value::not_empty))]
    pub(super) pg_user: String,
    /// Password of the user, better given by the environment.
    #[structopt(long, value_name = "PASSWORD", default_value = "", parse(try_from_str = value::secret))]
    pub(super) pg_password: Secret,
    /// Database to store in and read from.
    #[structopt(long, value_name = "NAME", default_value = "postgres", parse(try_from_str = value::not_empty))]
    pub(super) pg_database: String,
    /// TLS: disable, prefer, require (encrypted, server unverified unless a root certificate is set), verify-ca, or
    /// verify-full.
    #[structopt(long, value_name = "MODE", default_value = "disable")]
    pub(super) pg_ssl_mode: SslMode,
    /// PEM file of the authorities that may have signed the server's certificate. Empty is those of this machine.
    #[structopt(long, value_name = "FILE", default_value = "", parse(try_from_str = value::text))]
    pub(super) pg_ssl_root_cert: String,
    /// Connections at most, the lock session not counted.
    #[structopt(long, value_name = "NUMBER", default_value = "50", parse(try_from_str = value::connections))]
    pub(super) pg_max_open_conns: usize,
    /// Connections kept open while idle.
    #[structopt(long, value_name = "NUMBER", default_value = "10", parse(try_from_str = value::number))]
    pub(super) pg_max_idle_conns: usize,
    /// Connections that write, 1 to 64, no more than pg-max-open-conns.
    #[structopt(long, value_name = "NUMBER", default_value = "4", parse(try_from_str = value::write_connections))]
    pub(super) pg_write_connections: usize,
    /// Attempts to connect at start after the first one, one a second. 0 is no limit.
    #[structopt(long, value_name = "NUMBER", default_value = "0", parse(try_from_str = value::number))]
    pub(super) pg_db_connect_retries: u32,
}

#[derive(Debug, StructOpt)]
pub(super) struct Storage {
    /// Schema that holds everything; made if it is missing. Empty is the first one of the user's search_path.
    #[structopt(long, value_name = "NAME", default_value = "", parse(try_from_str = value::schema))]
    pub(super) pg_schema: String,
    /// Name of the view to query, and beginning of the names of the tables behind it.
    #[structopt(long, value_name = "NAME", default_value = "metrics", parse(try_from_str = value::table_name))]
    pub(super) pg_table: String,
    /// Span of time of one segment of samples, at least 1s. Old samples are dropped by whole segments.
    #[structopt(long, value_name = "DURATION", default_value = "12h", parse(try_from_str = value::chunk_interval))]
    pub(super) pg_prometheus_chunk_interval: Duration,
    /// Hot samples that are sealed into chunks at once, 1000 to 100000000: fewer are found sooner, more are smaller.
    #[structopt(long, value_name = "NUMBER", default_value = "2000000", parse(try_from_str = value::seal_samples))]
    pub(super) pg_seal_samples: u64,
    /// Longest time that fewer hot samples wait to be sealed, at least 1s.
    #[structopt(long, value_name = "DURATION", default_value = "1h", parse(try_from_str = value::chunk_interval))]
    pub(super) pg_seal_after: Duration,
    /// Age at which samples are dropped, no less than one segment. 0 keeps them for ever.
    #[structopt(long, value_name = "DURATION", default_value = "0", parse(try_from_str = duration::parse))]
    pub(super) pg_retention: Duration,
    /// Age at which exemplars are dropped. 0 keeps them for ever.
    #[structopt(long, value_name = "DURATION", default_value = "2w", parse(try_from_str = duration::parse))]
    pub(super) pg_exemplar_retention: Duration,
    /// The newest exemplars of a series that are kept. 0 stores none.
    #[structopt(long, value_name = "NUMBER", default_value = "1000", parse(try_from_str = value::number))]
    pub(super) pg_exemplars_per_series: u32,
    /// Whether a new store keeps sealed samples in a hypertable of TimescaleDB, where its columnstore can compress them: auto
    /// if the database has the extension, true or not at all. A store that is there stays as it is.
    #[structopt(long, value_name = "auto|true|false", default_value = "auto", parse(try_from_str = value::use_timescaledb))]
    pub(super) pg_use_timescaledb: UseTimescaledb,
    /// Serve reads only, from a replica for instance; take part in no election.
    #[structopt(long, value_name = "true|false", default_value = "false", parse(try_from_str = go::parse_bool))]
    pub(super) pg_read_only: bool,
    /// Log every sample at info before it is stored.
    #[structopt(long, value_name = "true|false", default_value = "false", parse(try_from_str = go::parse_bool))]
    pub(super) pg_prometheus_log_samples: bool,
}

#[derive(Debug, StructOpt)]
pub(super) struct Log {
    /// How much to log: debug, info, warn or error.
    #[structopt(long, value_name = "LEVEL", default_value = "debug", parse(try_from_str = value::log_level))]
    pub(super) log_level: LevelFilter,
    /// How a line looks: logfmt or json.
    #[structopt(long, value_name = "FORMAT", default_value = "logfmt", parse(try_from_str = value::log_format))]
    pub(super) log_format: Format,
}

#[derive(Debug, StructOpt)]
pub(super) struct Old {
    /// Has no effect: there is no intermediate table any more.
    #[structopt(long, value_name = "NAME", default_value = "", parse(try_from_str = value::text))]
    pub(super) pg_copy_table: String,
    /// Has no effect: labels are always stored once a series.
    #[structopt(long, value_name = "true|false", default_value = "true", parse(try_from_str = go::parse_bool))]
    pub(super) pg_prometheus_normalized_schema: bool,
}

impl Flags {
    /// Turns values into types, with the defaults of the flags not named. Each must have passed [`Flag::check`].
    ///
    /// # Errors
    ///
    /// clap's text, should it refuse what the checks let pass.
    pub(super) fn from_values(values: &BTreeMap<&'static str, String>) -> Result<Flags, String> {
        // Two words each, and not `--name=value`, of which clap would strip leading `=` from the value.
        let words = values.iter().flat_map(|(name, value)| [format!("--{name}"), value.clone()]);
        let words = std::iter::once(String::new()).chain(words);
        Flags::from_iter_safe(words).map_err(|error| error.message)
    }
}

/// What the rest of the room knows of a flag.
pub(super) struct Flag {
    /// The heading on the help page.
    pub(super) group: &'static str,
    /// With dashes, without the first one.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// What stands for the value on the help page.
    pub(super) value_name: &'static str,
    /// Empty if there is none.
    pub(super) default: &'static str,
    pub(super) help: &'static str,
    check: Rc<dyn Fn(String) -> Result<(), String>>,
}

impl Flag {
    /// Whether `value` is one for this flag; the error does not repeat it.
    pub(super) fn check(&self, value: &str) -> Result<(), String> {
        (self.check)(value.to_owned())
    }

    /// Whether a value may hold a password.
    pub(super) fn is_secret(&self) -> bool {
        matches!(self.value_name, "URI" | "PASSWORD" | "TOKEN")
    }

    /// The environment variable that sets it.
    pub(super) fn variable(&self) -> String {
        format!("TS_PROM_{}", self.name.to_uppercase().replace('-', "_"))
    }
}

/// All flags in the order of the help page, as the derives above declare them.
pub(super) fn table() -> Vec<Flag> {
    let groups = [
        ("Web", Web::clap()),
        ("Election", Election::clap()),
        ("PostgreSQL", Postgres::clap()),
        ("Storage", Storage::clap()),
        ("Log", Log::clap()),
        ("Old flags", Old::clap()),
    ];
    groups.into_iter().flat_map(|(group, app)| flags_of(group, app)).collect()
}

/// clap 2 lists its arguments only by fields it does not document. It is in its last version, and its successors have
/// a method for it; a second table of names beside the derives would be worse.
fn flags_of(group: &'static str, app: App<'static, 'static>) -> Vec<Flag> {
    let flags = app.p.opts.into_iter().filter_map(|option| {
        let value_name = option.v.val_names.as_ref().and_then(|names| names.values().next().copied())?;
        Some(Flag {
            group,
            name: option.s.long?,
            kind: if value_name.ends_with("true|false") { Kind::Switch } else { Kind::Value },
            value_name,
            default: option.v.default_val.and_then(|default| default.to_str())?,
            help: option.b.long_help.or(option.b.help)?,
            check: option.v.validator?,
        })
    });
    flags.collect()
}
