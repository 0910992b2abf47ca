//! One binary for every test that needs a server.

// Test helpers that not every module uses.
#![allow(dead_code)]

mod election;
mod setup;
mod write;
