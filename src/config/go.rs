//! Parses command lines as Go's `flag` package does: `-flag` and `--flag`, with `=value` or the next word as the value.
//!
//! Pure. The caller knows the flags and the meaning of their values. `.` and `-` are equal in names, because the old
//! adapter changed its spelling from dots to dashes.

/// The kind of a flag: a switch can stand alone, a value flag cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `-flag` is `-flag=true`, and the next word is never its value.
    Switch,
    /// The value follows `=` or is the next word.
    Value,
}

/// A parsed command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// Name and value of each flag, in the order given, so that the last one wins. Names have dashes, no dots.
    pub(crate) values: Vec<(String, String)>,
    /// `true` if `-h` or `-help` was given.
    pub(crate) help: bool,
    /// `true` if `-version` was given.
    pub(crate) version: bool,
    /// Mistakes in the words themselves, in Go's phrases. Values are never repeated.
    pub(crate) mistakes: Vec<String>,
}

/// Parses the words after the program's name. `kind` knows every flag except help and version.
///
/// Unlike Go it goes on after a mistake, so that one start shows all mistakes. It ends where Go ends: at the first word
/// that is no flag, or after `--`.
pub(crate) fn normalise(args: &[String], kind: impl Fn(&str) -> Option<Kind>) -> CommandLine {
    let mut line = CommandLine::default();
    let mut words = args.iter().map(String::as_str).peekable();
    let mut place = "as the first one".to_owned();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            line.mistakes.push(stray_word(&place));
            break;
        };
        if word == "--" {
            if words.peek().is_some() {
                line.mistakes.push(stray_word("after --"));
            }
            break;
        }
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (spelled, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        if spelled.is_empty() || spelled.starts_with('-') {
            line.mistakes.push(format!("bad flag syntax: {}", word.split('=').next().unwrap_or_default()));
            continue;
        }
        let name = spelled.replace('.', "-");
        place = format!("after -{spelled}");
        match (name.as_str(), kind(&name), value) {
            ("h" | "help", _, _) => line.help = true,
            ("version", _, value) => line.version = value.is_none_or(|value| parse_bool(value) != Ok(false)),
            (_, Some(_), Some(value)) => line.values.push((name, value.to_owned())),
            (_, Some(Kind::Switch), None) => line.values.push((name, "true".to_owned())),
            (_, Some(Kind::Value), None) => match words.next() {
                Some(value) => line.values.push((name, value.to_owned())),
                None => line.mistakes.push(format!("flag needs an argument: -{spelled}")),
            },
            (_, None, value) => {
                line.mistakes.push(format!("flag provided but not defined: -{spelled}"));
                // The next word is probably the value. If the flag is a misspelled switch, the next start reports that
                // word.
                if value.is_none() {
                    words.next_if(|next| !next.starts_with('-'));
                }
            }
        }
    }
    line
}

/// Returns the mistake for a word that is no flag. The word itself is not repeated: it may be part of a password that
/// contains a blank.
fn stray_word(place: &str) -> String {
    format!(
        "unexpected word {place}: a switch takes its value after =, as in -pg-read-only=false, and a value with blanks \
         needs quotes; nothing after it was read"
    )
}

/// Parses a boolean as Go's `strconv.ParseBool` does.
///
/// # Errors
///
/// Any other word. The message lists valid words.
pub(crate) fn parse_bool(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(name: &str) -> Option<Kind> {
        match name {
            "b" | "read-only" => Some(Kind::Switch),
            "id" | "log-level" | "pg-host" => Some(Kind::Value),
            _ => None,
        }
    }

    fn read(args: &[&str]) -> CommandLine {
        normalise(&args.iter().map(|&word| word.to_owned()).collect::<Vec<_>>(), kind)
    }

    #[track_caller]
    fn check(args: &[&str], values: &[(&str, &str)]) {
        let line = read(args);
        assert_eq!(line.mistakes, [""; 0]);
        let read: Vec<_> = line.values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(read, values);
    }

    #[test]
    fn one_dash_or_two_and_equals_or_a_blank() {
        check(&[], &[]);
        check(&["-id=1"], &[("id", "1")]);
        check(&["--id=1"], &[("id", "1")]);
        check(&["-id", "1"], &[("id", "1")]);
        check(&["--id", "1", "--pg-host", "db"], &[("id", "1"), ("pg-host", "db")]);
        check(&["-id=", "-pg-host", ""], &[("id", ""), ("pg-host", "")]);
        check(&["-pg-host=a=b"], &[("pg-host", "a=b")]);
        check(&["-id", "-1"], &[("id", "-1")]);
        check(&["-id", "--"], &[("id", "--")]);
        check(&["-id=1", "--"], &[("id", "1")]);
    }

    #[test]
    fn dots_are_dashes_in_names_only() {
        check(&["-log.level=a.b", "--pg.host", "db.example"], &[("log-level", "a.b"), ("pg-host", "db.example")]);
    }

    #[test]
    fn every_mention_is_kept_in_order() {
        check(&["-id=1", "-id=2"], &[("id", "1"), ("id", "2")]);
    }

    #[test]
    fn a_switch_stands_alone_or_takes_a_value_after_equals() {
        check(&["-b", "-id=1"], &[("b", "true"), ("id", "1")]);
        check(&["-b=false", "-read.only=F"], &[("b", "false"), ("read-only", "F")]);
        assert_eq!(read(&["-b", "false"]).mistakes, [stray_word("after -b")]);
    }

    #[test]
    fn help_and_version() {
        for word in ["-h", "-help", "--help", "--h"] {
            assert!(read(&["-nope", word]).help, "{word}");
        }
        assert!(!read(&["-pg-host", "-h"]).help);
        assert!(read(&["-version"]).version);
        assert!(read(&["--version=1"]).version);
        assert!(!read(&["--version=false"]).version);
    }

    #[track_caller]
    fn check_mistakes(args: &[&str], mistakes: &[&str]) {
        assert_eq!(read(args).mistakes, mistakes);
    }

    #[test]
    fn mistakes_in_gos_words() {
        check_mistakes(&["-x"], &["flag provided but not defined: -x"]);
        check_mistakes(
            &["-x.y", "1", "--z=2"],
            &["flag provided but not defined: -x.y", "flag provided but not defined: -z"],
        );
        check_mistakes(&["-id"], &["flag needs an argument: -id"]);
        check_mistakes(&["---id=secret", "-=secret"], &["bad flag syntax: ---id", "bad flag syntax: -"]);
        check_mistakes(&["word", "-x"], &[&stray_word("as the first one")]);
        check_mistakes(&["-id=1", "-", "-x"], &[&stray_word("after -id")]);
        check_mistakes(&["--", "word"], &[&stray_word("after --")]);
    }

    #[test]
    fn truths() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(parse_bool(text), Ok(true));
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(parse_bool(text), Ok(false));
        }
        for text in ["", "yes", "tRUE", "2"] {
            assert!(parse_bool(text).is_err());
        }
    }

    proptest! {
        #[test]
        fn never_panics(args in prop::collection::vec("\\PC*|-{0,3}(id|b|h|x)?[.=-]?\\PC{0,3}", 0..8)) {
            let line = normalise(&args, kind);
            prop_assert!(line.values.iter().all(|(name, _)| kind(name).is_some()));
        }
    }
}
