//! RE2's syntax, as Prometheus' Go has it, into that of the `regex` crate.
//!
//! The two are siblings, but the same text can mean something else: `\d`, `\w`, `\s` and `\b` are ASCII in RE2 and
//! Unicode here, and `[[]`, `[a&&b]`, `a{`, `\Q…\E`, `\<` and `\101` are something else here or nothing at all. What RE2
//! refuses is not looked for: Prometheus has refused it before it asks. Source: Go, `regexp/syntax`.

use std::fmt::Write;

use regex::Error;

/// Translates an expression; what is wrong with it is left for the `regex` crate to say, but for parentheses that
/// would escape from a group around it.
pub(super) fn translate(expression: &str) -> Result<String, Error> {
    let mut translator = Translator {
        rest: expression,
        out: String::with_capacity(expression.len()),
    };
    let mut depth = 0_usize;
    while let Some(char) = translator.next() {
        match char {
            '\\' => translator.escape()?,
            '[' => translator.class()?,
            '{' if !is_repetition(translator.rest) => translator.out.push_str(r"\{"),
            '(' => {
                depth += 1;
                translator.out.push('(');
            }
            ')' => {
                depth = depth
                    .checked_sub(1)
                    .ok_or_else(|| syntax("unopened group"))?;
                translator.out.push(')');
            }
            char => translator.out.push(char),
        }
    }
    if depth > 0 {
        Err(syntax("unclosed group"))
    } else {
        Ok(translator.out)
    }
}

struct Translator<'a> {
    rest: &'a str,
    out: String,
}

impl Translator<'_> {
    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    /// What follows a backslash outside of a class.
    fn escape(&mut self) -> Result<(), Error> {
        if let Some(rest) = self.rest.strip_prefix('Q') {
            let (literal, rest) = rest
                .split_once(r"\E")
                .ok_or_else(|| syntax(r"unclosed \Q"))?;
            self.out.push_str(&regex::escape(literal));
            self.rest = rest;
        } else if let Some(rest) = self.rest.strip_prefix(['b', 'B']) {
            self.out.push_str(if self.rest.starts_with('b') {
                r"(?-u:\b)"
            } else {
                r"(?-u:\B)"
            });
            self.rest = rest;
        } else if !self.class_escape() {
            self.char_escape()?;
        }
        Ok(())
    }

    /// `d`, `s`, `w`, `p{…}` and their opposites, in a class and outside.
    fn class_escape(&mut self) -> bool {
        let (len, class) = match self.rest.as_bytes() {
            [b'd', ..] => (1, "[0-9]"),
            [b'D', ..] => (1, "[^0-9]"),
            [b's', ..] => (1, r"[\t\n\f\r ]"),
            [b'S', ..] => (1, r"[^\t\n\f\r ]"),
            [b'w', ..] => (1, "[0-9A-Za-z_]"),
            [b'W', ..] => (1, "[^0-9A-Za-z_]"),
            [b'p', b'{', b'^', ..] => (3, r"\P{"),
            [b'P', b'{', b'^', ..] => (3, r"\p{"),
            [b'p', b'{', ..] => (2, r"\p{"),
            [b'P', b'{', ..] => (2, r"\P{"),
            _ => return false,
        };
        self.out.push_str(class);
        self.rest = &self.rest[len..];
        if class.ends_with('{') {
            // An unclosed name is left for the crate to complain of.
            let (name, rest) = self
                .rest
                .split_at(self.rest.find('}').map_or(self.rest.len(), |end| end + 1));
            self.out.push_str(name);
            self.rest = rest;
        }
        true
    }

    /// What stands for one char after a backslash, in a class and outside.
    fn char_escape(&mut self) -> Result<(), Error> {
        let octal = self
            .rest
            .bytes()
            .take(3)
            .take_while(|byte| (b'0'..=b'7').contains(byte))
            .count();
        if octal > 1 || self.rest.starts_with('0') {
            let code = u32::from_str_radix(&self.rest[..octal], 8)
                .map_err(|_| syntax("bad octal escape"))?;
            self.rest = &self.rest[octal..];
            self.push_code(code);
            return Ok(());
        }
        match self.next() {
            Some(char @ ('<' | '>')) => self.push_code(char.into()),
            Some(char) => self.out.extend(['\\', char]),
            None => return Err(syntax("a backslash at the end")),
        }
        Ok(())
    }

    fn push_code(&mut self, code: u32) {
        // Writing to a string cannot fail.
        let _ = write!(self.out, r"\x{{{code:x}}}");
    }

    /// What follows `[`: chars, ranges and classes, of which `[` and `&&` are mere chars unless `[:` opens a name.
    fn class(&mut self) -> Result<(), Error> {
        self.out.push('[');
        if let Some(rest) = self.rest.strip_prefix('^') {
            self.out.push('^');
            self.rest = rest;
        }
        let mut first = true;
        loop {
            if !first && let Some(rest) = self.rest.strip_prefix(']') {
                self.out.push(']');
                self.rest = rest;
                return Ok(());
            }
            first = false;
            if self.rest.starts_with("[:")
                && let Some(end) = self.rest.find(":]")
            {
                let (name, rest) = self.rest.split_at(end + 2);
                self.out.push_str(name);
                self.rest = rest;
                continue;
            }
            if self.class_item()? && self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                self.out.push('-');
                self.rest = &self.rest[1..];
                self.class_item()?;
            }
        }
    }

    /// One char or escape in a class; whether a range may begin with it.
    fn class_item(&mut self) -> Result<bool, Error> {
        match self.next() {
            Some('\\') if self.class_escape() => return Ok(false),
            Some('\\') => self.char_escape()?,
            Some(char) => self
                .out
                .push_str(&regex::escape(char.encode_utf8(&mut [0; 4]))),
            None => return Err(syntax("unclosed character class")),
        }
        Ok(true)
    }
}

/// What makes `{` a repetition: `n}`, `n,}` or `n,m}`, numbers without leading zeros; otherwise it is a char.
fn is_repetition(rest: &str) -> bool {
    let Some((counts, _)) = rest.split_once('}') else {
        return false;
    };
    let (min, max) = counts.split_once(',').unwrap_or((counts, ""));
    let number = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() < 2 || !text.starts_with('0'))
    };
    !min.is_empty() && number(min) && number(max)
}

fn syntax(what: &str) -> Error {
    Error::Syntax(what.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::model::matcher::{Matcher, Op};

    #[track_caller]
    fn check(expression: &str, value: &str, expected: bool) {
        let matcher = Matcher::new(Op::Regex, "l".into(), expression.into()).unwrap();
        assert_eq!(
            matcher.matches_value(value),
            expected,
            "{expression:?} on {value:?}"
        );
    }

    /// What Prometheus 2.42 says of each (`promtool test rules`).
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

    /// The same of classes, repetitions and folding.
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
        for expression in [
            "a)|(b",
            ")(",
            "(a",
            r"\Qab",
            "[a",
            "[",
            r"[\",
            r"a\",
            "[a-",
            r"\p{Greek",
        ] {
            assert!(
                Matcher::new(Op::Regex, "l".into(), expression.into()).is_err(),
                "{expression:?}"
            );
        }
    }

    proptest! {
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
}
