//! One binary for every test that needs a server.

// Test helpers that not every module uses.
#![allow(dead_code)]

mod http;
mod read;
mod reader;
mod setup;
mod storage;
mod write;
mod write_once;
mod write_read_random;
