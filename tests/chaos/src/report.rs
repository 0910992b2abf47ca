//! What came out, as text and as a table for docs/chaos.md.

use std::fmt::Write;
use std::process::Command;
use std::time::Duration;

use crate::case::Case;
use crate::stage::{Outcome, problems};

/// A case and how it ended; in words if it has no outcome.
pub(crate) struct Row<'a> {
    /// The case.
    pub(crate) case: &'a Case,
    /// How it ended.
    pub(crate) outcome: Result<Outcome, String>,
}

impl Row<'_> {
    /// Whether no promise was broken.
    pub(crate) fn is_well(&self) -> bool {
        match &self.outcome {
            Ok(outcome) => problems(outcome).is_empty(),
            Err(why) => why.starts_with("skipped"),
        }
    }

    /// What to print when it has ended.
    pub(crate) fn line(&self) -> String {
        let outcome = match &self.outcome {
            Ok(outcome) => outcome,
            Err(why) => return format!("{:24} WRONG: {why}", self.case.name),
        };
        let findings = &outcome.findings;
        let mut line = format!(
            "{:24} {} {:>8} stored, {} lost, {} doubled, {} stale, {} backwards, {} failed, {} retried, {} terms; {:.0} s",
            self.case.name,
            if self.is_well() { "ok   " } else { "WRONG" },
            findings.stored,
            findings.lost,
            findings.doubled,
            findings.stale,
            findings.backwards,
            outcome.failed,
            outcome.retried,
            findings.terms,
            outcome.seconds,
        );
        if !outcome.record.takeovers.is_empty() {
            let _ = write!(line, "; take-over {} (wanted {:.1})", takeovers(outcome), outcome.record.takeover_wanted);
        }
        let notes = outcome.record.notes.iter().chain(&findings.examples);
        for text in problems(outcome).iter().map(|problem| format!("broken: {problem}")).chain(notes.cloned()) {
            let _ = write!(line, "\n{:26}{text}", "");
        }
        line
    }
}

/// The table, for docs/chaos.md.
pub(crate) fn table(rows: &[Row<'_>], seed: u64, took: Duration) -> String {
    let mut text = format!(
        "`make chaos CHAOS=\"--seed {seed}\"`, {}, {}, {:.0} s\n\n\
         | case | what happens | lost | doubled | stale | failed | take-over | without leader | held | |\n\
         | --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- |\n",
        first_line("date", &["-u", "+%Y-%m-%d"]),
        machine(),
        took.as_secs_f64()
    );
    for row in rows {
        let (name, what) = (row.case.name, row.case.what);
        let _ = match &row.outcome {
            Ok(outcome) => {
                let findings = &outcome.findings;
                let verdict =
                    if row.is_well() { "ok".to_owned() } else { format!("**{}**", problems(outcome).join("; ")) };
                let (samples, bytes) = outcome.held;
                let held = if samples > 0.0 { format!("{samples} × {:.1} B", bytes / samples) } else { String::new() };
                writeln!(
                    text,
                    "| {name} | {what} | {} | {} | {} | {} | {} | {:.1} s | {held} | {verdict} |",
                    findings.lost,
                    findings.doubled + findings.backwards,
                    findings.stale,
                    outcome.failed,
                    takeovers(outcome),
                    outcome.leaderless
                )
            }
            Err(why) => writeln!(text, "| {name} | {what} | | | | | | | | {why} |"),
        };
    }
    let wrong = rows.iter().filter(|row| !row.is_well()).count();
    let _ = write!(
        text,
        "\nWanted everywhere: 0 lost, 0 doubled (counters that run backwards included), 0 stale, 0 failed; a take-over after \
         a crash within 0.3 s at p50 and 1 s at p99; less than 24 B a held sample.\n{}",
        if wrong == 0 { "No promise was broken.".to_owned() } else { format!("{wrong} cases broke a promise.") }
    );
    text
}

fn takeovers(outcome: &Outcome) -> String {
    let seconds = outcome.record.seconds();
    match seconds.as_slice() {
        [] => String::new(),
        [one] => format!("{one:.2} s"),
        // The 99th of a hundred is the slowest of fewer.
        [.., slowest] => format!("p50 {:.2} s, p99 {slowest:.2} s, of {}", outcome.record.median(), seconds.len()),
    }
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map_or("", |(_, m)| m.trim());
    format!(
        "{} × {model}, Linux {}",
        std::thread::available_parallelism().map_or(1, usize::from),
        first_line("uname", &["-r"])
    )
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).lines().next().unwrap_or_default().to_owned()).unwrap_or_default()
}
