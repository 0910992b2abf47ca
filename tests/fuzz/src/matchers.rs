//! Regular expressions of matchers: translated from RE2's syntax, and compiled within a bound.

use prometheus_postgresql_adapter::model::matcher::{Matcher, Op, REGEX_BYTES_MAX};

use crate::seeds::Captures;

/// Part of the bound that an expression has if a read has eight of them.
const BYTES_MAX: usize = REGEX_BYTES_MAX / 8;

/// Longest expression, and longest value.
const LEN_MAX: usize = 200;

pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    // An expression, and behind a newline a value.
    let (expression, value) = text.split_once('\n').unwrap_or((text, "a"));
    if expression.len() > LEN_MAX || value.len() > LEN_MAX {
        return;
    }
    let matches = |op: Op, expression: &str| {
        let matcher = Matcher::new(op, "name".to_owned(), expression.to_owned(), BYTES_MAX).ok()?;
        Some(matcher.matches_value(value))
    };
    let expected = matches(Op::Regex, expression);
    assert_eq!(matches(Op::NotRegex, expression), expected.map(|matches| !matches));
    // A group around the expression changes nothing, so nothing of the expression acts outside.
    if let (Some(alone), Some(grouped)) = (expected, matches(Op::Regex, &format!("(?:{expression})"))) {
        assert_eq!(alone, grouped);
    }
    // A quoted text is that text.
    if !expression.contains(r"\E") && !expression.ends_with('\\') {
        assert_eq!(matches(Op::Regex, &format!(r"\Q{expression}\E")), matches(Op::Equal, expression));
    }
    // An empty alternative matches the empty value, and no other one more.
    if expected.is_some()
        && let Some(or_empty) = matches(Op::Regex, &format!("{expression}|"))
    {
        assert!(or_empty == (expected == Some(true) || value.is_empty()));
    }
}

pub fn seeds(_: &Captures) -> Vec<Vec<u8>> {
    let expressions = [
        "a|b",
        "a.*",
        ".+",
        "[[:alpha:]-]+",
        r"\d{2,3}",
        r"\Qa.b\E",
        r"\pL\P{Greek}",
        "(?i:A)",
        "[^]a]",
        r"\x{61}\101",
        "a{,2}{",
        r"\bfoo\B",
        "((a*)*)*",
        "(?P<n>a)(?:b)",
        "[a&&b]",
        "[[]",
        r"[\w\-\]]",
        "(?s-i).",
        "^a$",
        "é",
        // Faults that must stay inside.
        "a)|(b",
        "a)(?:b",
        r"\Qa",
        "[a",
        r"a\",
    ];
    expressions.iter().map(|expression| format!("{expression}\nab-1").into_bytes()).collect()
}
