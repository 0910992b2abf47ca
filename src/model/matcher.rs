//! What a query selects series by.
//!
//! The meaning is Prometheus': an absent label is the empty string, and a regular expression must match the whole
//! value. Which database rows that touches is `storage`'s.

use regex::{Regex, RegexBuilder};
use thiserror::Error;

use crate::model::labels::Labels;

mod re2;

/// Bytes that one compiled expression may take: what a few thousand alternatives need, and no query may take more.
const REGEX_BYTES_MAX: usize = 10 << 20;

/// How a matcher compares.
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

/// One condition on one label.
#[derive(Clone, Debug)]
pub struct Matcher {
    op: Op,
    name: String,
    value: String,
    /// The compiled `value` of the two operators that take an expression.
    regex: Option<Regex>,
}

/// A matcher that means nothing.
#[derive(Clone, Debug, Error)]
#[error("the matcher {name:?}{op}{value:?} has no valid regular expression")]
pub struct MatcherError {
    name: String,
    op: &'static str,
    value: String,
    source: regex::Error,
}

impl Op {
    /// The operator as PromQL writes it.
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
    /// Makes a matcher of the label `name`.
    ///
    /// # Errors
    ///
    /// When `value` is to be a regular expression and is none, or one too large to compile.
    pub fn new(op: Op, name: String, value: String) -> Result<Self, MatcherError> {
        let regex = match op {
            Op::Equal | Op::NotEqual => Ok(None),
            Op::Regex | Op::NotRegex => anchored(&value).map(Some),
        };
        match regex {
            Ok(regex) => Ok(Self { op, name, value, regex }),
            Err(source) => Err(MatcherError { name, op: op.as_str(), value, source }),
        }
    }

    /// Whether a label of this value is selected; "" stands for an absent label.
    pub fn matches_value(&self, value: &str) -> bool {
        let equal = match &self.regex {
            Some(regex) => regex.is_match(value),
            None => self.value == value,
        };
        equal == matches!(self.op, Op::Equal | Op::Regex)
    }

    /// Whether a series is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_value(labels.get(&self.name))
    }

    /// Whether series without the label are selected.
    pub fn matches_empty(&self) -> bool {
        self.matches_value("")
    }

    /// How the matcher compares.
    pub fn op(&self) -> Op {
        self.op
    }

    /// The label's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value or the expression, as it was given.
    pub fn value(&self) -> &str {
        &self.value
    }
}

/// Compiles an expression that must match a whole value, in which `.` matches a newline too.
/// The meaning is RE2's. The group keeps `a|b` together, and the expression's own flags inside.
fn anchored(expression: &str) -> Result<Regex, regex::Error> {
    let expression = re2::translate(expression)?;
    RegexBuilder::new(&format!("^(?s:{expression})$")).size_limit(REGEX_BYTES_MAX).build()
}

#[cfg(test)]
mod tests;
