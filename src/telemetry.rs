//! Log, throttling of repeated log lines, and metrics as a value.

pub mod log;
pub mod log_throttle;
pub mod metrics;
