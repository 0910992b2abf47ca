//! Matchers, by which a query selects series.
//!
//! The meaning is that of Prometheus: an absent label is the empty string, and a regular expression must match the
//! whole value. `storage` decides which database rows are read.

use regex::{Regex, RegexBuilder};
use thiserror::Error;

use crate::model::labels::Labels;

mod re2;

/// Maximum bytes of the compiled expressions of one read: enough for a few thousand alternatives.
pub const REGEX_BYTES_MAX: usize = 10 << 20;

/// Comparison of a matcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`
    Regex,
    /// `!~`
    NotRegex,
}

/// A condition on one label.
#[derive(Clone, Debug)]
pub struct Matcher {
    op: Op,
    name: String,
    value: String,
    /// Compiled `value`, for the two operators that take an expression.
    regex: Option<Regex>,
}

/// Error of a matcher without a valid regular expression.
#[derive(Clone, Debug, Error)]
#[error("the matcher {name:?}{op}{value:?} has no valid regular expression")]
pub struct MatcherError {
    name: String,
    op: &'static str,
    value: String,
    source: regex::Error,
}

impl Op {
    /// Returns `true` if the value is a regular expression.
    pub fn is_regex(self) -> bool {
        matches!(self, Self::Regex | Self::NotRegex)
    }

    /// Returns the operator as PromQL writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Regex => "=~",
            Self::NotRegex => "!~",
        }
    }
}

impl Matcher {
    /// Creates a matcher of the label `name`. A regular expression may take `regex_bytes_max` once it is compiled.
    ///
    /// # Errors
    ///
    /// `MatcherError` if `value` should be a regular expression and is not, or is one too large to compile.
    pub fn new(op: Op, name: String, value: String, regex_bytes_max: usize) -> Result<Self, MatcherError> {
        let regex = match op {
            Op::Equal | Op::NotEqual => Ok(None),
            Op::Regex | Op::NotRegex => anchored(&value, regex_bytes_max).map(Some),
        };
        match regex {
            Ok(regex) => Ok(Self { op, name, value, regex }),
            Err(source) => Err(MatcherError { name, op: op.as_str(), value, source }),
        }
    }

    /// Returns `true` if a label with this value is selected; "" stands for an absent label.
    pub fn matches_value(&self, value: &str) -> bool {
        let equal = match &self.regex {
            Some(regex) => regex.is_match(value),
            None => self.value == value,
        };
        equal == matches!(self.op, Op::Equal | Op::Regex)
    }

    /// Returns `true` if a series is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_value(labels.get(&self.name))
    }

    /// Returns `true` if series without the label are selected.
    pub fn matches_empty(&self) -> bool {
        self.matches_value("")
    }

    /// Returns the operator.
    pub fn op(&self) -> Op {
        self.op
    }

    /// Returns the label's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the value or the expression, as given.
    pub fn value(&self) -> &str {
        &self.value
    }
}

/// Compiles an expression with the meaning of RE2 that must match a whole value, and in which `.` also matches a
/// newline. The group keeps `a|b` together, and keeps the expression's own flags inside.
fn anchored(expression: &str, bytes_max: usize) -> Result<Regex, regex::Error> {
    let expression = re2::translate(expression)?;
    RegexBuilder::new(&format!("^(?s:{expression})$")).size_limit(bytes_max).dfa_size_limit(bytes_max).build()
}

#[cfg(test)]
mod tests;
