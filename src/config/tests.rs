use std::net::SocketAddr;
use std::time::Duration;

use ::log::LevelFilter;
use proptest::prelude::*;
use tokio_postgres::config::{Host, SslMode as WireSslMode};

use super::*;
use crate::postgres::SslMode;
use crate::storage::exemplars;
use crate::storage::layout::UseTimescaledb;
use crate::telemetry::log::Format;

pub(super) fn parse(args: &[&str], env: &[(&str, &str)]) -> Result<Parsed, UsageError> {
    let env: BTreeMap<_, _> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Config::from(args.iter().map(OsString::from), |name| env.get(name).cloned())
}

#[track_caller]
pub(super) fn run_with(args: &[&str], env: &[(&str, &str)]) -> (Config, Vec<String>) {
    match parse(args, env) {
        Ok(Parsed::Run(config, warnings)) => (*config, warnings),
        other => panic!("{other:?}"),
    }
}

/// Parses a command line that leads to no warning.
#[track_caller]
pub(super) fn run(args: &[&str]) -> Config {
    let (config, warnings) = run_with(args, &[]);
    assert_eq!(warnings, [""; 0]);
    config
}

#[track_caller]
pub(super) fn check_mistakes(args: &[&str], expected: &[&str]) {
    match parse(args, &[]) {
        Err(error) => assert_eq!(error.mistakes, expected),
        Ok(parsed) => panic!("{parsed:?}"),
    }
}

#[track_caller]
fn check_warnings(args: &[&str], expected: &[&str]) {
    assert_eq!(run_with(args, &[]).1, expected);
}

#[test]
fn defaults_are_those_of_0_6_0() {
    let config = run(&[]);
    assert_eq!(config.log, telemetry::log::Config { level: LevelFilter::Debug, format: Format::Logfmt });
    assert_eq!(
        config.http,
        http::Config {
            admin_token: None,
            listen_address: "[::]:9201".parse().unwrap(),
            telemetry_path: "/metrics".to_owned(),
            send_timeout: Duration::from_secs(30),
            read_sample_limit: 5_000_000,
        }
    );
    assert_eq!(
        config.storage,
        storage::Config {
            schema: None,
            table: "metrics".to_owned(),
            use_timescaledb: UseTimescaledb::Auto,
            chunk_interval: Duration::from_secs(12 * 3_600),
            seal_samples: 2_000_000,
            seal_after: Duration::from_secs(3_600),
            retention: None,
            exemplars: exemplars::Config { retention: Some(Duration::from_secs(14 * 86_400)), per_series_max: 1_000 },
            write_connections: 4,
            log_samples: false,
            read_only: false,
            replica_labels: vec!["__replica__".to_owned()],
            sources: None,
            send_timeout: Duration::from_secs(30),
        }
    );
    assert_eq!(config.election, None);
    assert_eq!(config.handover, handover::Config { memory_bytes_max: 256 * 1024 * 1024 });
    let postgres = config.postgres;
    assert_eq!((postgres.max_open_conns, postgres.max_idle_conns, postgres.connect_retries), (50, 10, 0));
    assert_eq!((postgres.ssl_mode, postgres.ssl_root_cert), (SslMode::Disable, None));
    assert_eq!(postgres.lock_server, postgres.server);
    let server = postgres.server;
    assert_eq!(server.get_hosts(), [Host::Tcp("localhost".to_owned())]);
    assert_eq!(server.get_ports(), [5432]);
    assert_eq!((server.get_user(), server.get_dbname()), (Some("postgres"), Some("postgres")));
    assert_eq!(server.get_password(), None);
    assert_eq!(server.get_ssl_mode(), WireSslMode::Disable);
    assert_eq!(server.get_application_name(), Some("prometheus-postgresql-adapter"));
    assert_eq!(server.get_connect_timeout(), Some(&Duration::from_secs(10)));
}

#[test]
fn the_two_command_lines_of_the_old_users() {
    let rest = ["-leader-election.pg-advisory-lock-id=1", "-leader-election.pg-advisory-lock.prometheus-timeout=6s"];
    let election = election::Config {
        method: Method::AdvisoryLock(1),
        is_held: false,
        prometheus_timeout: PrometheusTimeout::After(Duration::from_secs(6)),
        liveness_interval: Duration::from_secs(10),
        election_interval: Duration::from_millis(100),
        lease: Duration::from_secs(10),
    };
    let first = run(&["-log.level=debug", rest[0], rest[1]]);
    assert_eq!(first.election, Some(election.clone()));
    assert_eq!(first.log.level, LevelFilter::Debug);
    let second = run(&["-log.level=debug", "-web.listen-address=:9202", rest[0], rest[1]]);
    assert_eq!(second.election, Some(election));
    assert_eq!(second.http.listen_address, "[::]:9202".parse().unwrap());
}

#[test]
fn every_flag_can_be_set_in_every_way() {
    for flag in flags::table() {
        let value = flag.default;
        let dotted = flag.name.replacen('-', ".", 1);
        for args in [
            vec![format!("-{}={value}", flag.name)],
            vec![format!("--{}={value}", flag.name)],
            vec![format!("-{dotted}={value}")],
        ] {
            assert!(Config::from(args.iter().map(OsString::from), |_| None).is_ok(), "{args:?}");
        }
        let env = parse(&[], &[(&flag.variable(), value)]);
        assert!(env.is_ok(), "{}: {env:?}", flag.variable());
    }
}

#[test]
fn every_flag_of_0_6_0_is_known() {
    let known: Vec<_> = flags::table().iter().map(|flag| (flag.name, flag.default)).collect();
    for flag in [
        ("adapter-send-timeout", "30s"),
        ("web-listen-address", ":9201"),
        ("web-telemetry-path", "/metrics"),
        ("log-level", "debug"),
        ("leader-election-pg-advisory-lock-id", "0"),
        ("leader-election-pg-advisory-lock-prometheus-timeout", "auto"),
        ("leader-election-rest", "false"),
        ("scheduled-election-interval", "100ms"),
        ("pg-host", "localhost"),
        ("pg-port", "5432"),
        ("pg-user", "postgres"),
        ("pg-password", ""),
        ("pg-database", "postgres"),
        ("pg-schema", ""),
        ("pg-ssl-mode", "disable"),
        ("pg-table", "metrics"),
        ("pg-copy-table", ""),
        ("pg-max-open-conns", "50"),
        ("pg-max-idle-conns", "10"),
        ("pg-prometheus-normalized-schema", "true"),
        ("pg-prometheus-log-samples", "false"),
        ("pg-prometheus-chunk-interval", "12h"),
        ("pg-use-timescaledb", "auto"),
        ("pg-db-connect-retries", "0"),
        ("pg-read-only", "false"),
    ] {
        assert!(known.contains(&flag), "{flag:?}");
    }
}

#[test]
fn every_value_arrives_as_it_was_written() {
    for password in ["=a", "==", "-", "--", "-h", "--pg-host=x", "-1", "a,b", "a b", "'\"\\", "é", "true"] {
        for args in [vec![format!("-pg-password={password}")], vec!["-pg-password".to_owned(), password.to_owned()]] {
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            assert_eq!(run(&args).postgres.server.get_password(), Some(password.as_bytes()), "{args:?}");
        }
    }
    assert_eq!(run(&["-pg-schema="]).storage.schema, None);
    assert_eq!(run(&["-pg-schema", ""]).storage.schema, None);
}

#[test]
fn the_command_line_wins_over_the_environment() {
    assert_eq!(run(&["-pg-port=1", "--pg.port", "2"]).postgres.server.get_ports(), [2]);
    let env = [("TS_PROM_PG_PORT", "3"), ("TS_PROM_PG_PASSWORD", "hush"), ("TS_PROM_PG_HOST", "")];
    let (config, _) = run_with(&[], &env);
    assert_eq!(config.postgres.server.get_ports(), [3]);
    assert_eq!(config.postgres.server.get_password(), Some(b"hush".as_slice()));
    assert_eq!(config.postgres.server.get_hosts(), [Host::Tcp("localhost".to_owned())]);
    assert_eq!(run_with(&["-pg-port=1"], &env).0.postgres.server.get_ports(), [1]);
}

#[test]
fn a_bad_command_line_names_every_mistake() {
    let error = parse(
        &["-x", "-pg-port=70000", "-pg-read-only=maybe", "-adapter-send-timeout=30", "-pg-retention=1h", "-log-level"],
        &[("TS_PROM_WEB_LISTEN_ADDRESS", "nowhere")],
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"flag provided but not defined: -x
flag needs an argument: -log-level
invalid value "nowhere" for environment variable TS_PROM_WEB_LISTEN_ADDRESS: must be [ADDRESS]:PORT, as in :9201, 127.0.0.1:9201 or [::1]:9201
invalid value "30" for flag -adapter-send-timeout: missing unit, as in 30s, 1h30m or 500ms
invalid value "70000" for flag -pg-port: must be a port, 1 to 65535
invalid value "maybe" for flag -pg-read-only: must be true or false
-pg-retention (1h) must not be less than -pg-prometheus-chunk-interval (12h): samples are dropped by whole segments
see -h"#
    );
}

#[test]
fn a_bad_value_hides_only_the_rules_it_takes_part_in() {
    check_mistakes(
        &["-pg-retention=1h", "-pg-prometheus-chunk-interval=x", "-pg-write-connections=9", "-pg-max-open-conns=8"],
        &[
            "invalid value \"x\" for flag -pg-prometheus-chunk-interval: not a duration such as 30s, 1h30m or 500ms",
            "-pg-write-connections (9) must not be more than -pg-max-open-conns (8)",
        ],
    );
}

#[track_caller]
fn check_value(flag: &str, value: &str, expected: &str) {
    check_mistakes(&[&format!("-{flag}={value}")], &[&format!("invalid value {value:?} for flag -{flag}: {expected}")]);
}

#[test]
fn bounds() {
    check_value("adapter-send-timeout", "0", "must be at least 1ms");
    check_value("adapter-send-timeout", "-1s", "must not be negative");
    check_value("scheduled-election-interval", "9ms", "must be at least 10ms");
    check_value("leader-election-lease", "2s", "must be at least 3s");
    check_value("leader-election-lease", "301s", "must be at most 5m");
    check_value("leader-election-liveness-interval", "2y", "must be at most 8760h");
    check_value("leader-election-pg-advisory-lock-id", "9223372036854775808", "is too large");
    check_value("leader-election-pg-advisory-lock-id", "-9223372036854775809", "is too small");
    check_value("leader-election-pg-advisory-lock-id", "one", "is not a whole number");
    check_value("leader-election-pg-advisory-lock-prometheus-timeout", "-2s", "must not be negative");
    check_value("pg-port", "0", "must be a port, 1 to 65535");
    check_value("pg-host", "", "must not be empty");
    check_value("pg-db-connect-retries", "-1", "must not be negative");
    check_value("pg-max-idle-conns", "1.5", "is not a whole number");
    check_value(
        "pg-max-open-conns",
        "0",
        "must be 1 to 10000; 0, which was no limit once, would open more than any server takes",
    );
    check_value("pg-write-connections", "65", "must be 1 to 64");
    check_value("pg-prometheus-chunk-interval", "999ms", "must be at least 1s");
    check_value("pg-ssl-mode", "on", "must be disable, prefer, require, verify-ca or verify-full");
    check_value("pg-schema", &"x".repeat(64), "is longer than 63 bytes");
    check_value("pg-schema", "pg_x", "must not begin with pg_, which PostgreSQL keeps for itself");
    check_value("pg-table", &"x".repeat(41), "is longer than 40 bytes");
    check_value("pg-table", "", "must not be empty");
    check_value("read-sample-limit", "0", "must be at least 1");
    check_value("log-level", "trace", "must be debug, info, warn or error");
    check_value("log-format", "xml", "must be logfmt or json");
    check_value("replica-labels", "a,__name__", "__name__ is the name of the metric, which every series needs");
    check_value("web-telemetry-path", "metrics", "must begin with /");
    check_value("web-telemetry-path", "/a b", "must be a plain path, without blanks, ?, # or %");
    check_value("web-telemetry-path", "/write", "is taken by another page of the adapter");
}

#[test]
fn listen_addresses() {
    for (value, expected) in [
        (":9201", "[::]:9201"),
        ("0.0.0.0:9201", "0.0.0.0:9201"),
        ("[::]:9201", "[::]:9201"),
        ("[::1]:0", "[::1]:0"),
        ("localhost:1", "127.0.0.1:1"),
    ] {
        let address = run(&["-web-listen-address", value]).http.listen_address;
        assert_eq!(address, expected.parse::<SocketAddr>().unwrap(), "{value}");
    }
    for value in ["", "9201", ":", ":x", ":65536", "::1:9201x", "host:80"] {
        assert!(parse(&["-web-listen-address", value], &[]).is_err(), "{value}");
    }
}

#[track_caller]
fn check_timeout(value: &str, expected: PrometheusTimeout) {
    let args =
        ["-leader-election-pg-advisory-lock-id=-7", "-leader-election-pg-advisory-lock-prometheus-timeout", value];
    let election = run(&args).election.unwrap();
    assert_eq!((election.method, election.prometheus_timeout), (Method::AdvisoryLock(-7), expected));
}

#[test]
fn prometheus_timeouts() {
    check_timeout("0", PrometheusTimeout::Never);
    check_timeout("0s", PrometheusTimeout::Never);
    check_timeout("1m30s", PrometheusTimeout::After(Duration::from_secs(90)));
    check_timeout("auto", PrometheusTimeout::Automatic);
    check_timeout("-1", PrometheusTimeout::Automatic);
    check_timeout("-1ns", PrometheusTimeout::Automatic);
    let unset = run(&["-leader-election-pg-advisory-lock-id=1"]).election.unwrap();
    assert_eq!(unset.prometheus_timeout, PrometheusTimeout::Automatic);
}

#[test]
fn rules_between_flags() {
    check_warnings(
        &["-leader-election-pg-advisory-lock-prometheus-timeout=6s"],
        &["-leader-election-pg-advisory-lock-prometheus-timeout has no effect without \
           -leader-election-pg-advisory-lock-id"],
    );
    let (config, warnings) =
        run_with(&["-pg-read-only", "-leader-election-pg-advisory-lock-id=1", "-pg-retention=1d"], &[]);
    assert_eq!(config.election, None);
    assert!(config.storage.read_only);
    assert_eq!(
        warnings,
        [
            "-leader-election-pg-advisory-lock-id has no effect with -pg-read-only: a reader takes part in no election",
            "-pg-retention has no effect with -pg-read-only: a reader drops nothing",
        ]
    );
    assert_eq!(run(&["-pg-retention=12h"]).storage.retention, Some(Duration::from_secs(12 * 3_600)));
    assert_eq!(run(&["-pg-retention=0"]).storage.retention, None);
    let few = run(&["-pg-max-open-conns=2"]);
    assert_eq!((few.storage.write_connections, few.postgres.max_idle_conns), (2, 2));
    let timescaledb = |args: &[&str]| run(args).storage.use_timescaledb;
    assert_eq!(timescaledb(&["-pg-use-timescaledb"]), UseTimescaledb::Always, "a switch once");
    assert_eq!(timescaledb(&["-pg.use-timescaledb=T"]), UseTimescaledb::Always);
    assert_eq!(timescaledb(&["-pg-use-timescaledb=false"]), UseTimescaledb::Never);
    assert_eq!(timescaledb(&["-pg-use-timescaledb", "-pg-use-timescaledb=auto"]), UseTimescaledb::Auto);
    assert_eq!(run(&["-replica-labels=a, b,"]).storage.replica_labels, ["a", "b"]);
    assert_eq!(run(&["-replica-labels="]).storage.replica_labels, [""; 0]);
}

#[test]
fn flags_without_meaning_are_accepted_with_a_warning() {
    run(&["-pg-copy-table="]);
    check_warnings(
        &["-pg-copy-table=x", "-pg-prometheus-normalized-schema=false"],
        &[
            "-pg-copy-table has no effect: there is no intermediate table any more",
            "-pg-prometheus-normalized-schema has no effect: labels are always stored once a series",
        ],
    );
}

#[test]
fn who_leads_may_be_told_by_rest() {
    let election = run(&["-leader-election.rest", "-leader-election-hold"]).election.unwrap();
    assert_eq!((&election.method, election.is_held), (&Method::External("1".to_owned()), true));
    assert_eq!(election.prometheus_timeout, PrometheusTimeout::Never, "that is for others to judge");
    let election = run(&["-leader-election-rest", "-leader-election-rest-group=eu"]).election.unwrap();
    assert_eq!(election.group(), "rest eu");
    assert_eq!(run(&["-leader-election-rest=false"]).election, None);
    check_mistakes(
        &["-leader-election-rest", "-leader-election-pg-advisory-lock-id=1"],
        &["use either -leader-election-rest or -leader-election-pg-advisory-lock-id"],
    );
    check_mistakes(
        &["-leader-election-rest", "-metrics-high-availability"],
        &["use either -metrics-high-availability or -leader-election-rest"],
    );
    check_mistakes(
        &["-leader-election-rest", "-leader-election-rest-group=a b"],
        &["invalid value \"a b\" for flag -leader-election-rest-group: must be of letters, digits and signs, without \
           blanks"],
    );
    check_warnings(
        &["-leader-election-hold", "-leader-election-rest-group=eu"],
        &[
            "-leader-election-rest-group has no effect without -leader-election-rest",
            "-leader-election-hold has no effect without -leader-election-pg-advisory-lock-id or -leader-election-rest",
        ],
    );
}

#[test]
fn a_token_is_not_shown() {
    let http = run(&["-web-admin-token=hush"]).http;
    assert!(http.admin_token.is_some() && !format!("{http:?}").contains("hush"), "{http:?}");
    assert_eq!(run(&[]).http.admin_token, None);
}

#[test]
fn help_is_the_page_in_help_txt() {
    let Ok(Parsed::Help(page)) = parse(&["-nonsense", "--help"], &[]) else { panic!("no help") };
    // GIT_REVISION is the build's, so the first line is not pinned.
    let body = |page: &str| page.split_once('\n').map(|(_, body)| body.to_owned());
    let expected = include_str!("tests/help.txt");
    assert!(
        body(&page) == body(expected),
        "if this is the page you want, put it into src/config/tests/help.txt:\n{page}"
    );
    for line in page.lines() {
        assert!(line.chars().count() <= 90, "{line}");
    }
}

#[cfg(unix)]
#[test]
fn other_bytes_than_utf_8_are_refused() {
    use std::os::unix::ffi::OsStringExt;
    let word = OsString::from_vec(b"-pg-user=\xff".to_vec());
    let error = Config::from([word], |_| None).unwrap_err();
    assert_eq!(error.mistakes, ["the command line is not valid UTF-8"]);
}

#[test]
fn version_is_one_line() {
    let Ok(Parsed::Version(line)) = parse(&["-version"], &[]) else { panic!("no version") };
    assert!(line.starts_with(concat!("prometheus-postgresql-adapter ", env!("CARGO_PKG_VERSION"), " (")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn never_panics(args in prop::collection::vec("\\PC{0,9}|-{1,2}(pg-uri|pg.port|pg-read-only|log-level)(=.{0,9})?", 0..5)) {
        let _ = Config::from(args.into_iter().map(OsString::from), |_| None);
    }
}
