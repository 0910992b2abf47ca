//! An adapter beside each Prometheus of an HA pair that stores what the pair sends once, in PostgreSQL.
//!
//! # Layout
//!
//! Imports run one way, from the top of this list to the bottom; ARCHITECTURE.md draws it.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`app`] | builds every part, owns every task, stops them in order |
//! | [`config`] | argv and environment into typed settings |
//! | [`command`] | an order to a running adapter |
//! | [`http`] | routes and statuses |
//! | [`receiver`] | what becomes of a write request, by role |
//! | [`handover`] | what was acknowledged is stored once, whoever leads |
//! | [`election`] | who leads: a pure machine and its driver; by labels, a coordinator |
//! | [`storage`] | schema, series, ingest, sealing, query, upkeep |
//! | [`postgres`] | the only module that opens a connection |
//! | [`telemetry`] | log and metrics |
//! | [`clock`] | the wall clock |
//! | [`allocator`] | free memory that the allocator keeps |
//! | [`wire`] | bytes to model and back (pure) |
//! | [`model`] | labels, samples, matchers (pure) |

pub mod allocator;
pub mod app;
pub mod clock;
pub mod command;
pub mod config;
pub mod election;
pub mod handover;
pub mod http;
pub mod model;
pub mod postgres;
pub mod receiver;
pub mod storage;
pub mod telemetry;
pub mod wire;
