//! The statement that finds the series of a read. Pure.

use crate::model::labels::METRIC_NAME;
use crate::model::matcher::{Matcher, Op};
use crate::storage::names::Names;

/// Returns the statement that fetches every series that might match, and its parameters.
pub(super) fn candidates(names: &Names, matchers: &[Matcher]) -> (String, Vec<String>) {
    let mut statement = names.sql("SELECT id, name, labels::text FROM {series}");
    let mut parameters = Vec::new();
    // An empty value also matches series without the label, which no index finds. The server does not accept U+0000.
    let has_index = |matcher: &&Matcher| {
        let texts = [matcher.name(), matcher.value()];
        matcher.op() == Op::Equal && !matcher.value().is_empty() && !texts.iter().any(|text| text.contains('\0'))
    };
    for matcher in matchers.iter().filter(has_index) {
        let word = if parameters.is_empty() { "WHERE" } else { "AND" };
        let number = parameters.len() + 1;
        if matcher.name() == METRIC_NAME {
            statement.push_str(&format!(" {word} name = ${number}"));
            parameters.push(matcher.value().to_owned());
        } else {
            statement.push_str(&format!(" {word} labels @> ${number}::jsonb"));
            parameters.push(serde_json::json!({ matcher.name(): matcher.value() }).to_string());
        }
    }
    (statement, parameters)
}
