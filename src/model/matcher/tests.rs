use std::error::Error as _;

use super::*;

#[track_caller]
fn check(op: Op, value: &str, matching: &[&str], others: &[&str]) {
    let matcher = Matcher::new(op, "l".into(), value.into(), REGEX_BYTES_MAX).unwrap();
    for label in matching {
        assert!(matcher.matches_value(label), "{value:?} should match {label:?}");
    }
    for label in others {
        assert!(!matcher.matches_value(label), "{value:?} should not match {label:?}");
    }
    assert_eq!(matcher.matches_empty(), matching.contains(&""));
}

#[test]
fn equality() {
    check(Op::Equal, "a", &["a"], &["", "b", "aa"]);
    check(Op::Equal, "", &[""], &["a"]);
    check(Op::NotEqual, "a", &["", "b"], &["a"]);
    check(Op::NotEqual, "", &["a"], &[""]);
}

#[test]
fn an_expression_matches_whole_values() {
    check(Op::Regex, "a|b", &["a", "b"], &["", "ab", "ax", "xb"]);
    check(Op::Regex, "^a|b$", &["a", "b"], &["ax", "xb"]);
    check(Op::Regex, "a+", &["a", "aa"], &["", "baa", "aab"]);
    check(Op::Regex, "", &[""], &["a"]);
    check(Op::NotRegex, "a|b", &["", "ab"], &["a", "b"]);
    check(Op::NotRegex, ".+", &[""], &["a"]);
}

#[test]
fn the_dot_matches_a_newline_and_flags_stay_inside() {
    check(Op::Regex, ".*", &["", "a\nb", "\n"], &[]);
    check(Op::Regex, "a.b", &["a\nb"], &["a\nb\n", "\na\nb"]);
    check(Op::Regex, "(?i)up|down", &["UP", "Down"], &["upper"]);
    check(Op::Regex, "(?m)a", &["a"], &["a\n", "b\na"]);
    check(Op::Regex, "(?-s)a.b", &["axb"], &["a\nb"]);
    check(Op::Regex, "ä.", &["äö"], &["ä"]);
}

#[test]
fn an_absent_label_is_the_empty_string() {
    let labels = Labels::from_stored([("__name__".to_owned(), "up".to_owned())]);
    let matches =
        |op, value: &str| Matcher::new(op, "nope".into(), value.into(), REGEX_BYTES_MAX).unwrap().matches(&labels);
    assert!(matches(Op::Equal, ""));
    assert!(matches(Op::NotEqual, "v"));
    assert!(matches(Op::Regex, ".*"));
    assert!(matches(Op::NotRegex, "v.*"));
    assert!(!matches(Op::Regex, ".+"));
    assert!(!matches(Op::NotEqual, ""));
}

#[test]
fn a_bad_expression_is_named() {
    let error = Matcher::new(Op::NotRegex, "job".into(), "a(".into(), REGEX_BYTES_MAX).unwrap_err();
    assert_eq!(error.to_string(), r#"the matcher "job"!~"a(" has no valid regular expression"#);
    assert!(error.source().unwrap().to_string().contains("unclosed group"));
    assert!(Matcher::new(Op::Equal, "job".into(), "a(".into(), REGEX_BYTES_MAX).is_ok());
}

#[test]
fn an_expression_that_explodes_is_refused() {
    assert!(Matcher::new(Op::Regex, "job".into(), "((a{100}){100}){100}".into(), REGEX_BYTES_MAX).is_err());
}
