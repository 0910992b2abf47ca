//! Remote read on the wire: the request of a client, and in `series` the two forms of an answer.
//!
//! `storage` finds the series, and `http` chooses the status of an error.

use prost::Message;
use thiserror::Error;

use crate::model::matcher::{Matcher, MatcherError, Op, REGEX_BYTES_MAX};
use crate::wire::protobuf::{DecodeError, Scanner};
use crate::wire::read::messages::{LabelMatcher, MatcherType, Query, ReadRequest, ResponseType};

pub mod messages;
pub mod series;

/// Maximum bytes of a decompressed request.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Maximum queries of one request: Prometheus sends one.
pub const QUERIES_MAX: usize = 64;

/// Maximum matchers of one query: a person writes a handful.
pub const MATCHERS_MAX: usize = 64;

/// Maximum bytes of all regular expressions of one request.
pub const EXPRESSION_BYTES_MAX: usize = 64 << 10;

/// Error of a query that cannot be answered because of the query itself.
#[derive(Clone, Debug, Error)]
pub enum QueryError {
    /// A type of matcher that does not exist.
    #[error("the matcher of the label {name:?} has the unknown type {kind}")]
    MatcherType {
        /// The label's name.
        name: String,
        /// The number in the query.
        kind: i32,
    },
    /// An expression does not compile.
    #[error(transparent)]
    Matcher(#[from] MatcherError),
    /// More than [`EXPRESSION_BYTES_MAX`].
    #[error("the regular expressions of the request have {0} bytes, more than the {EXPRESSION_BYTES_MAX} allowed")]
    Expressions(usize),
}

/// Error of a body that is no request, or too large a one.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum RequestError {
    /// Bytes that are no such message.
    #[error(transparent)]
    Scan(#[from] DecodeError),
    /// Bytes that are no such message, or a string that is not UTF-8.
    #[error(transparent)]
    Message(#[from] prost::DecodeError),
    /// More than [`REQUEST_BYTES_MAX`].
    #[error("it has {0} bytes, more than the {REQUEST_BYTES_MAX} allowed")]
    TooLarge(usize),
    /// More than [`QUERIES_MAX`].
    #[error("it has more than the {QUERIES_MAX} queries allowed")]
    TooManyQueries,
    /// More than [`MATCHERS_MAX`].
    #[error("a query has more than the {MATCHERS_MAX} matchers allowed")]
    TooManyMatchers,
}

/// Decodes a request that is already decompressed. What exceeds a limit is refused before memory is allocated for it.
///
/// # Errors
///
/// `RequestError` if the body is no such message, or has more than is allowed.
pub fn decode_request(body: &[u8]) -> Result<ReadRequest, RequestError> {
    if body.len() > REQUEST_BYTES_MAX {
        return Err(RequestError::TooLarge(body.len()));
    }
    let (mut queries, mut fields) = (0, Scanner::new(body));
    while let Some(field) = fields.next_field()? {
        if field.number != 1 {
            continue;
        }
        queries += 1;
        if queries > QUERIES_MAX {
            return Err(RequestError::TooManyQueries);
        }
        let (mut matchers, mut query) = (0, fields.nested(field.bytes()?));
        while let Some(field) = query.next_field()? {
            matchers += usize::from(field.number == 3);
            if matchers > MATCHERS_MAX {
                return Err(RequestError::TooManyMatchers);
            }
        }
    }
    Ok(ReadRequest::decode(body)?)
}

/// Chooses the type of the answer: the first accepted type that is known here, or `None` if none is known. Clients
/// older than this choice list no type; they get samples.
pub fn negotiate(accepted: &[i32]) -> Option<ResponseType> {
    if accepted.is_empty() {
        return Some(ResponseType::Samples);
    }
    accepted.iter().find_map(|&kind| ResponseType::try_from(kind).ok())
}

impl ReadRequest {
    /// Compiles the matchers of each query. Takes up to [`REGEX_BYTES_MAX`], of which each regular expression has an
    /// equal part, and so long that a thread of its own should do it.
    ///
    /// # Errors
    ///
    /// `QueryError` if a matcher is not valid, or there are too many or too large regular expressions.
    pub fn compile_matchers(&self) -> Result<Vec<Vec<Matcher>>, QueryError> {
        let matchers = self.queries.iter().flat_map(|query| &query.matchers);
        let expressions = matchers.filter(|matcher| matcher.op().is_ok_and(Op::is_regex)).map(|one| one.value.len());
        let (count, bytes) = expressions.fold((0, 0), |(count, bytes), len| (count + 1, bytes + len));
        if bytes > EXPRESSION_BYTES_MAX {
            return Err(QueryError::Expressions(bytes));
        }
        let bytes_max = REGEX_BYTES_MAX / count.max(1);
        let compile = |query: &Query| query.matchers.iter().map(|matcher| matcher.compile(bytes_max)).collect();
        self.queries.iter().map(compile).collect()
    }
}

impl Query {
    /// Returns `true` if only the labels of series are asked for, so that samples need not be sent.
    pub fn wants_labels_only(&self) -> bool {
        self.hints.as_ref().is_some_and(|hints| hints.func == "series")
    }
}

impl LabelMatcher {
    fn op(&self) -> Result<Op, QueryError> {
        match MatcherType::try_from(self.kind) {
            Ok(MatcherType::Equal) => Ok(Op::Equal),
            Ok(MatcherType::NotEqual) => Ok(Op::NotEqual),
            Ok(MatcherType::Regex) => Ok(Op::Regex),
            Ok(MatcherType::NotRegex) => Ok(Op::NotRegex),
            Err(_) => Err(QueryError::MatcherType { name: self.name.clone(), kind: self.kind }),
        }
    }

    fn compile(&self, regex_bytes_max: usize) -> Result<Matcher, QueryError> {
        Ok(Matcher::new(self.op()?, self.name.clone(), self.value.clone(), regex_bytes_max)?)
    }
}

#[cfg(test)]
mod tests;
