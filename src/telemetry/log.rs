//! One line an event, as logfmt or JSON, on standard error.

/// Log level and format.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `-log-level`.
    pub level: ::log::LevelFilter,
    /// `-log-format`.
    pub format: Format,
}

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `time=… level=… msg="…"`.
    Logfmt,
    /// The same keys, as an object.
    Json,
}
