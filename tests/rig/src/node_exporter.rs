//! A scrape target beside the parts of a pair: a program with many series, each with one sample per second.

use std::process::Command;

use crate::process::Process;

/// Starts a node_exporter on a port of 127.0.0.1. Debian's name of the program differs from the upstream name.
///
/// # Panics
///
/// If `PATH` contains no node_exporter.
pub fn start(port: u16) -> Process {
    let programs = ["prometheus-node-exporter", "node_exporter"];
    let runs = |program: &&str| Command::new(program).arg("--version").output().is_ok();
    let program = programs.into_iter().find(runs).expect("no node_exporter: run make install-deps");
    let mut command = Command::new(program);
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    Process::spawn("node_exporter", command)
}
