use proptest::prelude::*;

use crate::model::matcher::{Matcher, Op, REGEX_BYTES_MAX};

#[track_caller]
fn check(expression: &str, value: &str, expected: bool) {
    let matcher = Matcher::new(Op::Regex, "l".into(), expression.into(), REGEX_BYTES_MAX).unwrap();
    assert_eq!(matcher.matches_value(value), expected, "{expression:?} on {value:?}");
}

/// The expected results are those of Prometheus 2.42 (`promtool test rules`).
#[test]
fn as_prometheus_matches() {
    check(r"\d", "٣", false);
    check(r"\d", "3", true);
    check(r"\w", "ä", false);
    check(r"\W", "ä", true);
    check(r"\s", "\u{a0}", false);
    check(r"\s", "\u{b}", false);
    check(r"[\d]", "٣", false);
    check(r"[^\d]", "٣", true);
    check(r"a\b.*", "aä", true);
    check("[[]", "[", true);
    check("[a[b]", "[", true);
    check("[a&&b]", "&", true);
    check("[a&&b]", "a", true);
    check("a{", "a{", true);
    check("{foo}", "{foo}", true);
    check("a{,5}", "a{,5}", true);
    check("a{,5}", "aaa", false);
    check(r"\Qa.b\E", "a.b", true);
    check(r"\Qa.b\E", "axb", false);
    check(r"\<a", "<a", true);
    check(r"\01", "\u{1}", true);
    check(r"\123", "S", true);
    check("(?i)k", "K", true);
    check(r"\pN", "٣", true);
    check(r"\z", "", true);
    check(r"\x{61}", "a", true);
    check("[[:word:]]", "ä", false);
    check("(?U)a+", "a", true);
    check("(?P<n>a)", "a", true);
    check(r"\_", "_", true);
    check("[]a]", "]", true);
    check("[^]a]", "b", true);
    check("[a-]", "-", true);
    check(r"\p{Greek}", "α", true);
    check(r"\p{L}", "α", true);
    check(r"\p{^Greek}", "a", true);
    check(r"\P{^Greek}", "α", true);
    check("[[:^digit:]]", "٣", true);
    check(r"(?i)\w", "ſ", true);
    check("(?i)[a-z]", "ſ", true);
    check(r"\-", "-", true);
    check(r"\/", "/", true);
    check("a]", "a]", true);
    check("}", "}", true);
    check(r"\a", "\u{7}", true);
    check(r"\f\n\r\t\v", "\u{c}\n\r\t\u{b}", true);
    check(r"\b{start}a", "a", false);
    check("(?s-m:a)", "a", true);
    check("[a~~b]", "~", true);
    check(r"\0", "\0", true);
    check("[[a]]", "a]", true);
    check(r"[a\]]", "]", true);
    check(r"[\w-z]", "-", true);
    check("(?i:ſ)", "s", true);
    check("^*", "", true);
    check("$+", "", true);
    check("(|a)*", "aa", true);
    check("(?:)", "", true);
    check(r"\Q\\E", r"\", true);
    check(r"[\s\S]", "\n", true);
    check(r"\B", "", true);
    check(r"\b", "", false);
}

/// The same for classes, repetitions and case folding.
#[test]
fn as_prometheus_matches_more() {
    check("[+--]", ",", true);
    check("[+--]", "+", true);
    check("[--a]", "a", true);
    check("[--a]", "-", true);
    check(r"[a\-z]", "b", false);
    check(r"[a\-z]", "-", true);
    check(r"[\x41-\x43]", "B", true);
    check(r"[\101-\103]", "B", true);
    check("a{01}", "a", false);
    check("a{01}", "a{01}", true);
    check("a{2,}", "aaa", true);
    check("a{0}", "", true);
    check("[[:alpha:]-z]", "-", true);
    check("[a-c-e]", "d", false);
    check("[a-c-e]", "-", true);
    check(r"[\^a]", "^", true);
    check("[a^]", "^", true);
    check("[^^]", "^", false);
    check("[]-a]", "_", true);
    check(r"[\]-a]", "_", true);
    check("[^]]", "]", false);
    check("[[-a]", "_", true);
    check(r"[\D]", "ä", true);
    check(r"[\W\d]", "5", true);
    check(r"[^\W]", "ä", false);
    check("(?i)[^k]", "K", false);
    check(r"(?i)\W", "K", false);
    check(r"a\b", "a", true);
    check(r"\bä", "ä", false);
    check(r"\Bä", "ä", true);
    check(r"ä\Bö", "äö", true);
    check(r"a\B.", "ab", true);
    check(r"\07", "\u{7}", true);
    check(r"\1234", "S4", true);
    check("x{1,2}{", "xx{", true);
    check("{", "{", true);
    check("{,", "{,", true);
    check("{1", "{1", true);
    check("a{1,2", "a{1,2", true);
    check("a{ 1}", "a{ 1}", true);
    check(r"\{1}", "{1}", true);
    check(r"\Q[a-z]+\E+", "[a-z]++", true);
    check(r"\Q\E", "", true);
    check("a#b", "a#b", true);
    check("a b", "a b", true);
    check(r"\#", "#", true);
    check(r"\ ", " ", true);
    check("\\\"", "\"", true);
    check(r"\%", "%", true);
    check(r"\`", "`", true);
    check("[.]", "x", false);
    check("[$]", "$", true);
    check("[a|b]", "|", true);
    check(r"[\.]", ".", true);
    check("(?i)straße", "STRASSE", false);
    check("(?i)Σ", "ς", true);
    check(r"[\pN]", "٣", true);
    check(r"[^\p{Greek}]", "α", false);
    check(r"[\P{Greek}]", "a", true);
    check(r"\PN", "a", true);
    check("[[:space:]]", "\u{b}", true);
    check("(?m)^a$", "a", true);
    check(r"(?m)^a$\n^b", "a\nb", true);
    check(r"a$\nb", "a\nb", false);
    check(r"\Aa", "a", true);
    check("(?-s).", "\n", false);
    check("(?i:a)b", "AB", false);
    check("[&]", "&", true);
    check("[a-z&&[^b]]", "b", false);
    check("[a-z&&[^b]]", "b]", true);
    check("[~]", "~", true);
    check("()", "", true);
    check("(|a|)", "a", true);
}

#[test]
fn nothing_escapes_from_the_group() {
    for expression in ["a)|(b", ")(", "(a", r"\Qab", "[a", "[", r"[\", r"a\", "[a-", r"\p{Greek"] {
        assert!(Matcher::new(Op::Regex, "l".into(), expression.into(), REGEX_BYTES_MAX).is_err(), "{expression:?}");
    }
}

/// What `is_repetition` has to return, by looking at all of the rest.
fn is_repetition_in_all(rest: &str) -> bool {
    let Some((counts, _)) = rest.split_once('}') else {
        return false;
    };
    let (min, max) = counts.split_once(',').unwrap_or((counts, ""));
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() < 2 || !text.starts_with('0'));
    !min.is_empty() && number(min) && number(max)
}

proptest! {
    #[test]
    fn a_repetition_is_found_without_a_look_at_the_rest(rest in "[0-3,}a]{0,8}") {
        prop_assert_eq!(super::is_repetition(&rest), is_repetition_in_all(&rest), "{}", rest);
    }

    #[test]
    fn arbitrary_text_never_panics(text in r"[\[\](){}^&~\-\\,:|*+?.0-9a-zA-ZäQE<>]{0,20}|.*") {
        let _ = super::translate(&text);
    }

    #[test]
    fn quoted_text_matches_itself(text in "[^\u{0}]*") {
        check(&regex::escape(&text), &text, true);
        if !text.contains(r"\E") && !text.ends_with('\\') {
            check(&format!(r"\Q{text}\E"), &text, true);
        }
    }
}
