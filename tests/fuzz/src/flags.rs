//! The command line and the environment.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use prometheus_postgresql_adapter::config::{Config, Parsed};

use crate::seeds::Captures;

const PASSWORD: &str = "hush-5d1f";

/// An input is a word in each line; words like `TS_PROM_X=y` are the environment.
pub fn run(data: &[u8]) {
    let mut env = HashMap::from([("TS_PROM_PG_PASSWORD".to_owned(), PASSWORD.to_owned())]);
    let mut args = Vec::new();
    for word in data.split(|byte| *byte == b'\n') {
        let variable = str::from_utf8(word).ok().filter(|word| word.starts_with("TS_PROM_"));
        match variable.and_then(|word| word.split_once('=')) {
            Some(("TS_PROM_PG_PASSWORD", _)) => {}
            Some((name, value)) => {
                env.insert(name.to_owned(), value.to_owned());
            }
            None => args.push(OsString::from_vec(word.to_vec())),
        }
    }
    let shows = |text: &str| text.contains(PASSWORD) && !String::from_utf8_lossy(data).contains(PASSWORD);
    match Config::from(args, |name| env.get(name).cloned()) {
        Ok(Parsed::Run(config, warnings)) => {
            assert!(!shows(&format!("{config:?} {warnings:?}")));
            check(&config);
        }
        Ok(Parsed::Help(text) | Parsed::Version(text)) => assert!(!text.is_empty() && !shows(&text)),
        Ok(Parsed::Ask(command)) => assert!(!shows(&format!("{command:?}"))),
        Err(error) => assert!(!error.mistakes.is_empty() && !shows(&error.to_string())),
    }
}

fn check(config: &Config) {
    let storage = &config.storage;
    assert!(
        (1..=64).contains(&storage.write_connections) && storage.write_connections <= config.postgres.max_open_conns
    );
    assert!(storage.retention.is_none_or(|retention| retention >= storage.chunk_interval));
    assert!(!storage.table.is_empty() && !storage.chunk_interval.is_zero() && !storage.send_timeout.is_zero());
    assert!(config.handover.memory_bytes_max > 0);
    assert!(config.election.is_none() || config.by_labels.is_none());
    assert!(!storage.read_only || config.election.is_none() && config.by_labels.is_none());
}

pub fn seeds(_: &Captures) -> Vec<Vec<u8>> {
    // The page of -h has a line "  -flag=KIND (default value)" for each flag.
    let page = include_str!("../../../src/config/tests/help.txt");
    let lines = page.lines().filter_map(|line| line.strip_prefix("  -")).filter_map(|line| line.split_once('='));
    let mut seeds: Vec<Vec<u8>> = lines
        .map(|(flag, rest)| {
            let default = rest.split_once("(default ").map_or("a", |(_, default)| default.trim_end_matches(')'));
            format!("-{flag}={default}").into_bytes()
        })
        .collect();
    let others = [
        "-h",
        "-version",
        "-pg-uri=postgres://me:a%40b@[::1]:5432,db:1/x?sslmode=verify-full&sslrootcert=/a",
        "-pg-uri=host=db user=me password='a b' sslmode=disable",
        "-pg-lock-uri\nhost=db port=1",
        "--pg.host\ndb\n-pg.read-only\nTS_PROM_PG_RETENTION=2w",
        "-metrics-high-availability\n-replica-labels=a,b\n-metrics-high-availability-timeout=auto",
        "-leader-election-rest\n-leader-election-rest-group=x",
        "-leader-election-pg-advisory-lock-id=1\n-leader-election-lease=1m1.5s",
        "election\nhand-over\nb\n-cluster=eu\n-url=http://[::1]:9201",
        "election\nhold\n-cluster\neu\n-replica\na\nTS_PROM_WEB_ADMIN_TOKEN=t",
    ];
    seeds.extend(others.map(Vec::from));
    seeds
}
