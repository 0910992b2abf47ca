//! The table of what was wanted and what was measured.

use std::process::ExitCode;

/// Bars in the order in which they were measured.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    wanted: String,
    measured: String,
    ok: Option<bool>,
}

impl Verdicts {
    /// A number that may not be below its bar.
    pub(crate) fn at_least(&mut self, what: &str, bar: f64, measured: f64) {
        self.push(what, format!("at least {}", number(bar)), number(measured), Some(measured >= bar));
    }

    /// A number that must be below its bar.
    pub(crate) fn below(&mut self, what: &str, bar: f64, measured: f64) {
        self.push(what, format!("below {}", number(bar)), number(measured), Some(measured < bar));
    }

    /// A number that may reach its bar.
    pub(crate) fn at_most(&mut self, what: &str, bar: f64, measured: f64) {
        self.push(what, format!("at most {}", number(bar)), number(measured), Some(measured <= bar));
    }

    /// A number without a bar.
    pub(crate) fn note(&mut self, what: &str, measured: f64) {
        self.push(what, String::new(), number(measured), None);
    }

    /// Something that was not measured, and why.
    pub(crate) fn skip(&mut self, what: &str, why: &str) {
        self.push(what, String::new(), format!("skipped: {why}"), None);
    }

    fn push(&mut self, what: &str, wanted: String, measured: String, ok: Option<bool>) {
        self.rows.push(Row { what: what.to_owned(), wanted, measured, ok });
    }

    /// Prints the table; success when no bar is missed.
    pub(crate) fn print(&self) -> ExitCode {
        println!("\n{:<66} {:>19} {:>12}", "", "wanted", "measured");
        for Row { what, wanted, measured, ok } in &self.rows {
            let verdict = ok.map_or("", |ok| if ok { "ok" } else { "MISSED" });
            println!("{what:<66} {wanted:>19} {measured:>12} {verdict}");
        }
        let missed = self.rows.iter().any(|row| row.ok == Some(false));
        if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// Large numbers in groups of three digits, small ones with two digits after the point.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 1000.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size for a table.
#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
