//! Labels, samples, matchers, senders, spans of time. Pure.

pub mod histogram;
pub mod labels;
pub mod matcher;
pub mod sample;
pub mod sender;
pub mod source;
pub mod time;
