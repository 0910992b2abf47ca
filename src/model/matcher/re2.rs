//! Translation of RE2's syntax, as Prometheus' Go uses it, into that of the `regex` crate.
//!
//! The two are similar, but the same text can mean something else. `\d`, `\w`, `\s` and `\b` are ASCII in RE2 and
//! Unicode here. `[[]`, `[a&&b]`, `a{`, `\Q…\E`, `\<` and `\101` mean something else here, or nothing. Expressions that
//! RE2 refuses are not checked for: Prometheus refuses them before it asks. Source: Go, `regexp/syntax`.

use std::fmt::Write;

use regex::Error;

/// Translates an expression. Errors in the expression are left for the `regex` crate to report, except parentheses that
/// would end a group around the expression.
pub(super) fn translate(expression: &str) -> Result<String, Error> {
    let mut translator = Translator { rest: expression, out: String::with_capacity(expression.len()) };
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
                depth = depth.checked_sub(1).ok_or_else(|| syntax("unopened group"))?;
                translator.out.push(')');
            }
            char => translator.out.push(char),
        }
    }
    if depth > 0 { Err(syntax("unclosed group")) } else { Ok(translator.out) }
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

    /// Translates the text after a backslash outside of a class.
    fn escape(&mut self) -> Result<(), Error> {
        if let Some(rest) = self.rest.strip_prefix('Q') {
            let (literal, rest) = rest.split_once(r"\E").ok_or_else(|| syntax(r"unclosed \Q"))?;
            self.out.push_str(&regex::escape(literal));
            self.rest = rest;
        } else if let Some(rest) = self.rest.strip_prefix(['b', 'B']) {
            self.out.push_str(if self.rest.starts_with('b') { r"(?-u:\b)" } else { r"(?-u:\B)" });
            self.rest = rest;
        } else if !self.class_escape() {
            self.char_escape()?;
        }
        Ok(())
    }

    /// Translates `d`, `s`, `w`, `p{…}` and their opposites, in a class and outside. Returns `false` if the text is
    /// none of them.
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
            // An unclosed name is left for the crate to report.
            let (name, rest) = self.rest.split_at(self.rest.find('}').map_or(self.rest.len(), |end| end + 1));
            self.out.push_str(name);
            self.rest = rest;
        }
        true
    }

    /// Translates the text after a backslash that stands for one char, in a class and outside.
    fn char_escape(&mut self) -> Result<(), Error> {
        let octal = self.rest.bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
        if octal > 1 || self.rest.starts_with('0') {
            let code = u32::from_str_radix(&self.rest[..octal], 8).map_err(|_| syntax("bad octal escape"))?;
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

    /// Translates the text after `[`: chars, ranges and classes. `[` and `&&` are plain chars in it, unless `[:` opens
    /// a name.
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
            if let Some(end) = class_name(self.rest) {
                let (name, rest) = self.rest.split_at(end);
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

    /// Translates one char or escape in a class. Returns `true` if a range may begin with it.
    fn class_item(&mut self) -> Result<bool, Error> {
        match self.next() {
            Some('\\') if self.class_escape() => return Ok(false),
            Some('\\') => self.char_escape()?,
            Some(char) => self.out.push_str(&regex::escape(char.encode_utf8(&mut [0; 4]))),
            None => return Err(syntax("unclosed character class")),
        }
        Ok(true)
    }
}

/// Returns the length of a name like `[:alpha:]` or `[:^alpha:]` at the begin of `rest`; `None` if there is none.
fn class_name(rest: &str) -> Option<usize> {
    let name = rest.strip_prefix("[:")?;
    let letters = name.strip_prefix('^').unwrap_or(name).trim_start_matches(|char: char| char.is_ascii_alphanumeric());
    letters.starts_with(":]").then(|| rest.len() - letters.len() + 2)
}

/// Returns `true` if `{` begins a repetition: `n}`, `n,}` or `n,m}`, with numbers without leading zeros. Otherwise `{`
/// is a char.
fn is_repetition(rest: &str) -> bool {
    // Nothing else is looked at, so that many of them take no longer than as many other chars.
    let counts = &rest[..rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b',').count()];
    if !rest[counts.len()..].starts_with('}') {
        return false;
    }
    let (min, max) = counts.split_once(',').unwrap_or((counts, ""));
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() < 2 || !text.starts_with('0'));
    !min.is_empty() && number(min) && number(max)
}

fn syntax(what: &str) -> Error {
    Error::Syntax(what.to_owned())
}

#[cfg(test)]
mod tests;
