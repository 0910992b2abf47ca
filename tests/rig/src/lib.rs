//! What tests, demo and benchmarks stand on: a private PostgreSQL, real Prometheis, adapters as processes.
//!
//! Two rules hold throughout:
//!
//! * Nothing outlives its owner. Servers, adapters and directories vanish when their value is dropped, and also when
//!   the owning process panics, is interrupted or is killed with SIGKILL ([`guard`]).
//! * Every wait has a deadline, and says on failure what it waited for and what the process wrote last. Waits panic,
//!   because there is nothing a test could do about them; what a test may want to see fail returns a `Result`.
//!
//! No part of the adapter itself is used here, so the rig also measures and drives strangers.

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
