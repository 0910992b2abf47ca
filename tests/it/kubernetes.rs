//! The manifests under examples/kubernetes use only flags, variables and metrics that this adapter has.
//! examples/kubernetes/validate checks them against Kubernetes itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use prometheus_postgresql_adapter::config::{Config, Parsed};

/// Source file with the names of the metrics.
const METRICS: &str = include_str!("../../src/telemetry/metrics.rs");

/// Names and texts of the files in examples/kubernetes with these endings.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/kubernetes");
    let entries = fs::read_dir(folder).expect("the folder of the manifests");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|found| endings.iter().any(|ending| found == *ending)))
        .map(|path| (path.display().to_string(), fs::read_to_string(&path).expect("UTF-8")))
        .collect();
    files.sort();
    files
}

/// Returns the arguments of each adapter in a manifest: list items that begin with one dash. Arguments of Prometheus
/// begin with two dashes.
fn adapters(manifest: &str) -> Vec<Vec<String>> {
    let mut adapters = Vec::new();
    let mut args = Vec::new();
    for line in manifest.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("- ").filter(|item| item.starts_with('-') && !item.starts_with("--")) {
            Some(item) => args.push(item.to_owned()),
            None if !args.is_empty() => adapters.push(std::mem::take(&mut args)),
            None => {}
        }
    }
    adapters.extend(Some(args).filter(|args| !args.is_empty()));
    adapters
}

/// Returns every word of `text` that follows `prefix`, without the prefix.
fn words<'a>(text: &'a str, prefix: &'a str) -> BTreeSet<&'a str> {
    let is_inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let word = |(_, rest): (usize, &'a str)| rest.split(|c| !is_inside(c)).next().unwrap_or_default();
    text.match_indices(prefix).map(|(at, _)| word((at, &text[at + prefix.len()..]))).collect()
}

fn parse(args: &[String]) -> Result<Parsed, String> {
    Config::from(args.iter().map(OsString::from), |_| None).map_err(|error| error.to_string())
}

#[test]
fn each_adapter_of_the_manifests_would_run() {
    let mut found = 0;
    for (name, manifest) in files(&["yaml"]) {
        for args in adapters(&manifest) {
            found += 1;
            match parse(&args) {
                Ok(Parsed::Run(config, warnings)) => {
                    assert_eq!(warnings, Vec::<String>::new(), "{name}: {args:?}");
                    assert!(config.election.is_some() || config.by_labels.is_some(), "{name}: no election: {args:?}");
                }
                Ok(_) => panic!("{name}: {args:?} run nothing"),
                Err(error) => panic!("{name}: {args:?}: {error}"),
            }
        }
    }
    assert_eq!(found, 3, "adapters: a sidecar, one by labels, and the Operator's sidecar");
}

#[test]
fn variables_are_those_of_flags() {
    let Ok(Parsed::Help(help)) = parse(&["-h".to_owned()]) else { panic!("no help") };
    let mut found = BTreeSet::new();
    for (name, text) in files(&["yaml", "md"]) {
        for variable in words(&text, "TS_PROM_") {
            let flag = format!("\n  -{}=", variable.to_lowercase().replace('_', "-"));
            assert!(help.contains(&flag), "{name}: TS_PROM_{variable} is the variable of no flag");
            found.insert(variable.to_owned());
        }
    }
    assert!(found.contains("PG_PASSWORD"), "the secret of README.md: {found:?}");
}

#[test]
fn alerts_are_on_metrics_that_there_are() {
    let mut found = 0;
    for (name, text) in files(&["yaml", "md"]) {
        for metric in words(&text, "prometheus_postgresql_adapter_") {
            found += 1;
            assert!(METRICS.contains(&format!("\"{metric}\"")), "{name}: there is no metric {metric}");
        }
    }
    assert!(found > 0, "metrics in alerts");
}
