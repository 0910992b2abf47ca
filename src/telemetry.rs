//! Log, what is worth a line of it again, and metrics as a value.

pub mod log;
pub mod log_throttle;
pub mod metrics;
