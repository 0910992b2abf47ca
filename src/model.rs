//! Labels, samples, matchers. Pure.

pub mod labels;
pub mod matcher;
pub mod sample;
pub mod source;
