//! One binary for all tests that need a server.

// Some tests print measurements, for `--nocapture`.
#![allow(clippy::print_stdout)]

mod by_labels;
mod chunks;
mod compliance;
mod configurations;
mod current;
mod election;
mod exemplars;
mod handover;
mod histogram_functions;
mod histograms;
mod http;
mod kubernetes;
mod metadata;
mod migrate;
mod native_histograms;
mod observe;
mod promoted;
mod read;
mod reader;
mod reconcile;
mod seal;
mod setup;
mod storage;
mod timescaledb;
mod write;
mod write_2;
mod write_once;
mod write_read_random;
