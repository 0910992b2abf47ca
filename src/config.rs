//! Typed settings, and the rules between flags. The only reader of the command line and the environment.
//!
//! Both are arguments, so everything here is a pure function. `go` splits the command line. `flags` knows each flag,
//! and `value` its valid values. `server` merges the connection settings. This module converts the flags to the
//! settings of each module and checks them against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;

use self::flags::{Flag, Flags};
use crate::command::Command;
use crate::election::{Method, PrometheusTimeout, by_labels};
use crate::model::source::SourceLabels;
use crate::{election, handover, http, postgres, storage, telemetry};

mod command;
mod duration;
mod flags;
mod go;
mod help;
mod server;
mod uri;
mod value;

/// All settings of an operator, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Log level and format.
    pub log: telemetry::log::Config,
    /// The HTTP server.
    pub http: http::Config,
    /// The connection to PostgreSQL.
    pub postgres: postgres::Config,
    /// The store.
    pub storage: storage::Config,
    /// The election. `None` without one: this adapter always stores.
    pub election: Option<election::Config>,
    /// The election by labels. If it is set, there is no other election.
    pub by_labels: Option<by_labels::Config>,
    /// The limits of the buffer of a standby.
    pub handover: handover::Config,
}

/// The action that a command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// Run the adapter. Log each warning first.
    Run(Box<Config>, Vec<String>),
    /// Print this page on standard output and exit with success.
    Help(String),
    /// Print this line on standard output and exit with success.
    Version(String),
    /// Send a command to a running adapter, print the answer, and exit.
    Ask(Command),
}

/// All mistakes of a command line or environment with which the adapter cannot run, one per line. The exit status is 2.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct UsageError {
    /// In the order of the command line, then the environment, then the rules between flags. Never empty.
    pub mistakes: Vec<String>,
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.mistakes {
            writeln!(f, "{mistake}")?;
        }
        f.write_str("see -h")
    }
}

impl Config {
    /// Reads the words after the program's name, and the environment for flags that are not among them. An empty
    /// variable counts as unset, so that a template may leave it blank.
    ///
    /// # Errors
    ///
    /// [`UsageError`] with every mistake found. A request for help or the version takes precedence over mistakes.
    pub fn from(
        args: impl IntoIterator<Item = OsString>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Parsed, UsageError> {
        let table = flags::table();
        let args: Vec<OsString> = args.into_iter().collect();
        let is_text = args.iter().all(|word| word.to_str().is_some());
        let args: Vec<String> = args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        if let Some(("election", words)) = args.split_first().map(|(first, words)| (first.as_str(), words)) {
            return match command::parse(words, env) {
                Ok(Some(command)) => Ok(Parsed::Ask(command)),
                Ok(None) => Ok(Parsed::Help(command::usage())),
                Err(mistake) => Err(UsageError { mistakes: vec![mistake] }),
            };
        }
        let line = go::normalise(&args, |name| table.iter().find(|flag| flag.name == name).map(|flag| flag.kind));
        if line.help {
            return Ok(Parsed::Help(help::page(&table)));
        }
        if line.version {
            return Ok(Parsed::Version(version()));
        }
        let mut given = Given { mistakes: line.mistakes, ..Given::default() };
        if !is_text {
            given.mistakes.push("the command line is not valid UTF-8".to_owned());
        }
        given.collect(&table, line.values.into_iter().collect(), env);
        given.into_config()
    }
}

/// Returns the settings by which labels name the sender of a series, if labels name it.
fn sources(flags: &flags::Election) -> Option<storage::SourcesConfig> {
    flags.metrics_high_availability.then(|| storage::SourcesConfig {
        labels: SourceLabels {
            cluster: flags.metrics_high_availability_cluster_label.clone(),
            replica: flags.replica_labels.clone(),
        },
        stores_unlabelled: flags.metrics_high_availability_unlabelled == value::Unlabelled::Store,
    })
}

/// Returns the program's name, version and revision: the line that `-version` prints, and the first line of the log.
#[must_use]
pub fn version() -> String {
    let revision = option_env!("GIT_REVISION").unwrap_or("unknown");
    format!("{} {} (revision {revision})", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
}

/// The values that were set, with mistakes and warnings.
#[derive(Default)]
struct Given {
    /// Valid values by flag.
    values: BTreeMap<&'static str, String>,
    /// Flags with an invalid value. Rules between flags ignore them.
    bad: BTreeSet<&'static str>,
    mistakes: Vec<String>,
    warnings: Vec<String>,
}

impl Given {
    /// Takes each flag's value from the command line, or else from the environment, and checks it.
    fn collect(&mut self, table: &[Flag], mut line: BTreeMap<String, String>, env: impl Fn(&str) -> Option<String>) {
        for flag in table {
            let (source, value) = if let Some(value) = line.remove(flag.name) {
                (format!("flag -{}", flag.name), value)
            } else if let Some(value) = env(&flag.variable()).filter(|value| !value.is_empty()) {
                (format!("environment variable {}", flag.variable()), value)
            } else {
                continue;
            };
            if let Err(error) = flag.check(&value) {
                let shown = if flag.is_secret() { "value".to_owned() } else { format!("value {value:?}") };
                self.mistakes.push(format!("invalid {shown} for {source}: {error}"));
                self.bad.insert(flag.name);
            } else {
                self.values.insert(flag.name, value);
            }
        }
    }

    fn is_set(&self, flag: &str) -> bool {
        self.values.contains_key(flag)
    }

    /// Adds a mistake if a rule between `flags` is broken, unless one of these flags has an invalid value.
    fn demand(&mut self, flags: &[&str], kept: bool, mistake: impl FnOnce() -> String) {
        if !kept && !flags.iter().any(|flag| self.bad.contains(flag)) {
            self.mistakes.push(mistake());
        }
    }

    fn warn(&mut self, applies: bool, warning: &str) {
        if applies {
            self.warnings.push(warning.to_owned());
        }
    }

    /// Returns the settings of each module, if there was no mistake.
    fn into_config(mut self) -> Result<Parsed, UsageError> {
        let flags = match Flags::from_values(&self.values) {
            Ok(flags) => flags,
            Err(mistake) => {
                self.mistakes.push(mistake);
                return Err(UsageError { mistakes: self.mistakes });
            }
        };
        self.warn_of_lost_meanings(&flags);
        let election = self.election(&flags);
        let by_labels = self.by_labels(&flags);
        let storage = self.storage(&flags);
        let postgres = self.postgres(&flags);
        let Some(postgres) = postgres.filter(|_| self.mistakes.is_empty()) else {
            return Err(UsageError { mistakes: self.mistakes });
        };
        let http = http::Config {
            listen_address: flags.web.web_listen_address,
            telemetry_path: flags.web.web_telemetry_path,
            send_timeout: flags.web.adapter_send_timeout,
            admin_token: Some(&flags.web.web_admin_token.0)
                .filter(|token| !token.is_empty())
                .map(|token| http::AdminToken::new(token)),
            read_sample_limit: flags.web.read_sample_limit,
        };
        let handover = handover::Config { memory_bytes_max: flags.election.standby_memory_mib };
        let log = telemetry::log::Config { level: flags.log.log_level, format: flags.log.log_format };
        Ok(Parsed::Run(Box::new(Config { log, http, postgres, storage, election, by_labels, handover }), self.warnings))
    }

    fn warn_of_lost_meanings(&mut self, flags: &Flags) {
        self.warn(
            !flags.old.pg_copy_table.is_empty(),
            "-pg-copy-table has no effect: there is no intermediate table any more",
        );
        self.warn(
            !flags.old.pg_prometheus_normalized_schema,
            "-pg-prometheus-normalized-schema has no effect: labels are always stored once a series",
        );
    }

    fn election(&mut self, flags: &Flags) -> Option<election::Config> {
        let read_only = flags.storage.pg_read_only;
        let flags = &flags.election;
        let lock_id = flags.leader_election_pg_advisory_lock_id;
        let by_rest = flags.leader_election_rest;
        self.demand(&["leader-election-rest", "leader-election-pg-advisory-lock-id"], !by_rest || lock_id == 0, || {
            "use either -leader-election-rest or -leader-election-pg-advisory-lock-id".to_owned()
        });
        self.warn(
            lock_id == 0 && flags.leader_election_pg_advisory_lock_prometheus_timeout != PrometheusTimeout::Automatic,
            "-leader-election-pg-advisory-lock-prometheus-timeout has no effect without \
             -leader-election-pg-advisory-lock-id",
        );
        self.warn(
            !by_rest && self.is_set("leader-election-rest-group"),
            "-leader-election-rest-group has no effect without -leader-election-rest",
        );
        self.warn(
            !by_rest && lock_id == 0 && flags.leader_election_hold,
            "-leader-election-hold has no effect without -leader-election-pg-advisory-lock-id or -leader-election-rest",
        );
        let method = match by_rest {
            true => Method::External(flags.leader_election_rest_group.clone()),
            false if lock_id != 0 => Method::AdvisoryLock(lock_id),
            false => return None,
        };
        if read_only {
            let flag = if by_rest { "-leader-election-rest" } else { "-leader-election-pg-advisory-lock-id" };
            let warning = format!("{flag} has no effect with -pg-read-only: a reader takes part in no election");
            self.warn(true, &warning);
            return None;
        }
        Some(election::Config {
            // The external party judges if a Prometheus sends.
            prometheus_timeout: match method {
                Method::AdvisoryLock(_) => flags.leader_election_pg_advisory_lock_prometheus_timeout,
                Method::External(_) => PrometheusTimeout::Never,
            },
            method,
            is_held: flags.leader_election_hold,
            liveness_interval: flags.leader_election_liveness_interval,
            election_interval: flags.scheduled_election_interval,
            lease: flags.leader_election_lease,
        })
    }

    fn by_labels(&mut self, flags: &Flags) -> Option<by_labels::Config> {
        let read_only = flags.storage.pg_read_only;
        let flags = &flags.election;
        let by_labels = flags.metrics_high_availability;
        let cluster = &flags.metrics_high_availability_cluster_label;
        for other in ["cluster-label", "timeout", "clusters", "unlabelled"]
            .map(|other| format!("metrics-high-availability-{other}"))
        {
            self.warn(
                !by_labels && self.is_set(&other),
                &format!("-{other} has no effect without -metrics-high-availability"),
            );
        }
        let is_alone = flags.leader_election_pg_advisory_lock_id == 0;
        self.demand(
            &["metrics-high-availability", "leader-election-pg-advisory-lock-id"],
            !by_labels || is_alone,
            || "use either -metrics-high-availability or -leader-election-pg-advisory-lock-id".to_owned(),
        );
        self.demand(
            &["metrics-high-availability", "leader-election-rest"],
            !by_labels || !flags.leader_election_rest,
            || "use either -metrics-high-availability or -leader-election-rest".to_owned(),
        );
        self.demand(
            &["metrics-high-availability", "replica-labels"],
            !by_labels || !flags.replica_labels.is_empty(),
            || {
                "-metrics-high-availability needs -replica-labels, which tell the replicas of a cluster apart"
                    .to_owned()
            },
        );
        self.demand(
            &["metrics-high-availability-cluster-label", "replica-labels"],
            !by_labels || !flags.replica_labels.contains(cluster),
            || {
                format!(
                    "{cluster:?} cannot be both -metrics-high-availability-cluster-label and one of -replica-labels"
                )
            },
        );
        self.warn(
            by_labels && read_only,
            "-metrics-high-availability has no effect with -pg-read-only: a reader takes part in no election",
        );
        (by_labels && !read_only).then(|| by_labels::Config {
            cluster_label: cluster.clone(),
            timeout: flags.metrics_high_availability_timeout,
            clusters_max: flags.metrics_high_availability_clusters,
        })
    }

    fn storage(&mut self, flags: &Flags) -> storage::Config {
        let (storage, postgres) = (&flags.storage, &flags.postgres);
        let retention = Some(storage.pg_retention).filter(|retention| !retention.is_zero());
        let chunk_interval = storage.pg_prometheus_chunk_interval;
        self.demand(
            &["pg-retention", "pg-prometheus-chunk-interval"],
            retention.is_none_or(|retention| retention >= chunk_interval),
            || {
                format!(
                    "-pg-retention ({}) must not be less than -pg-prometheus-chunk-interval ({}): samples are dropped \
                     by whole segments",
                    duration::display(storage.pg_retention),
                    duration::display(chunk_interval)
                )
            },
        );
        self.warn(
            retention.is_some() && storage.pg_read_only,
            "-pg-retention has no effect with -pg-read-only: a reader drops nothing",
        );
        let (writers, most) = (postgres.pg_write_connections, postgres.pg_max_open_conns);
        // A command line of 0.6.0 may allow fewer connections than our default number of writers.
        self.demand(
            &["pg-write-connections", "pg-max-open-conns"],
            writers <= most || !self.is_set("pg-write-connections"),
            || format!("-pg-write-connections ({writers}) must not be more than -pg-max-open-conns ({most})"),
        );
        storage::Config {
            schema: Some(storage.pg_schema.clone()).filter(|schema| !schema.is_empty()),
            table: storage.pg_table.clone(),
            use_timescaledb: storage.pg_use_timescaledb,
            chunk_interval,
            seal_samples: storage.pg_seal_samples,
            seal_after: storage.pg_seal_after,
            retention,
            exemplars: storage::exemplars::Config {
                retention: Some(storage.pg_exemplar_retention).filter(|retention| !retention.is_zero()),
                per_series_max: storage.pg_exemplars_per_series,
            },
            write_connections: writers.min(most),
            log_samples: storage.pg_prometheus_log_samples,
            read_only: storage.pg_read_only,
            replica_labels: flags.election.replica_labels.clone(),
            sources: sources(&flags.election),
            send_timeout: flags.web.adapter_send_timeout,
        }
    }

    /// Returns the connection settings; `None` after a mistake.
    fn postgres(&mut self, flags: &Flags) -> Option<postgres::Config> {
        let flags = &flags.postgres;
        let mut warnings = Vec::new();
        let servers = server::resolve(flags, |flag| self.is_set(flag), &mut warnings);
        self.warnings.append(&mut warnings);
        let servers = match servers {
            Ok(servers) => servers,
            Err(mistake) => {
                self.demand(&["pg-uri", "pg-ssl-mode", "pg-ssl-root-cert"], false, || {
                    format!("-pg-lock-uri: {mistake}")
                });
                return None;
            }
        };
        Some(postgres::Config {
            server: servers.server,
            lock_server: servers.lock_server,
            ssl_mode: servers.ssl_mode,
            ssl_root_cert: servers.ssl_root_cert,
            max_open_conns: flags.pg_max_open_conns,
            // As in Go, where the smaller of the two wins.
            max_idle_conns: flags.pg_max_idle_conns.min(flags.pg_max_open_conns),
            connect_retries: flags.pg_db_connect_retries,
        })
    }
}

#[cfg(test)]
mod tests;
