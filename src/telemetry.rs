//! Log, and metrics as a value.

pub mod log;
pub mod metrics;
