//! Basis of tests, demo and benchmarks: a private PostgreSQL, real Prometheis, adapters as processes.
//!
//! Two rules hold everywhere:
//!
//! * Nothing outlives its owner. Servers, adapters and directories disappear when their value is dropped, and also when
//!   the owning process panics, is interrupted or is killed with SIGKILL ([`guard`]).
//! * Every wait has a deadline. A failed wait reports the expected event and the last output of the process. Waits
//!   panic, because a test could not handle the failure. Functions whose failure a test may expect return a `Result`.
//!
//! The rig uses no part of the adapter itself, so it can also measure and drive other programs.

pub mod adapter;
pub mod clock;
pub mod configs;
pub mod coverage;
pub mod exposition;
pub mod guard;
pub mod http;
pub mod network;
pub mod node_exporter;
pub mod port;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod random;
pub mod remote_write;
pub mod target;
