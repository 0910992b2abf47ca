//! A series' identity: its sorted label set.

/// The name of the label that holds a metric's name.
pub const METRIC_NAME: &str = "__name__";
