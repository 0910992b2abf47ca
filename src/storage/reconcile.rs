//! What is stored around some samples (types only, for the simulation to compile against).

use std::collections::HashMap;

use crate::model::sender::SenderNo;

/// A stored sample's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredTime {
    /// Its timestamp, ms since 1970.
    pub time_ms: i64,
    /// Who sent it; `None` for sealed samples and ones of before senders were recorded.
    pub sender: Option<SenderNo>,
}

/// What is stored around some samples.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// By series, ascending by time.
    pub times: HashMap<i64, Vec<StoredTime>>,
    /// By series, the last stored time at or after the window's beginning; of the series it was asked for.
    pub last_ms: HashMap<i64, StoredTime>,
    /// Who led when, ascending by the server's clock, ms since 1970.
    pub terms: Vec<(i64, SenderNo)>,
    /// How far senders' clocks are ahead of the server's, ms.
    pub clock_offsets_ms: HashMap<SenderNo, i64>,
}
