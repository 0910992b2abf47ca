//! One binary for every test that needs a server.

mod election;
mod http;
mod read;
mod reader;
mod setup;
mod write;
mod write_once;
