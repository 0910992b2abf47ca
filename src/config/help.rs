//! The help page, generated from the table of flags.

use super::flags::Flag;

/// Width of the page in columns.
const WIDTH: usize = 90;

const INTRODUCTION: &str = "\
Stores what an HA pair of Prometheis sends once, in PostgreSQL. Run one adapter beside
each Prometheus of the pair, both with the same database and the same lock id:

  prometheus-postgresql-adapter -pg-host=db1 -leader-election-pg-advisory-lock-id=1

and let each Prometheus send to its own adapter:

  remote_write: [{url: http://localhost:9201/write}]

What is stored is read by SQL, and in PromQL by a third Prometheus, which scrapes nothing.
The two of the pair must not read it: they would mix it with samples of their own.

  remote_read:  [{url: http://localhost:9201/read, read_recent: true}]

Flags are written -flag=value, -flag value or --flag=value; dots in names are dashes, and
the last mention wins. A switch takes its value only after =; alone it means true.
Durations are written 30s, 1h30m, 500ms or 2w.

Every flag can come from the environment: -pg-host from TS_PROM_PG_HOST, and so on. The
command line wins, and an empty variable counts as unset. Keep the password there, in
TS_PROM_PG_PASSWORD: a command line can be read by everyone on the host.

A running adapter is asked or ordered by prometheus-postgresql-adapter election status,
resign, hand-over, hold, release or lead; election -h says how.
";

const OTHER: &str = "
Help
  -h, -help
      Show this page.
  -version
      Show the version.
";

/// Returns the page for `-h`.
pub(super) fn page(table: &[Flag]) -> String {
    let mut page = format!("{}\n\n{INTRODUCTION}", super::version());
    let mut group = "";
    for flag in table {
        if flag.group != group {
            group = flag.group;
            page += &format!("\n{group}\n");
        }
        let default = if flag.default.is_empty() { String::new() } else { format!(" (default {})", flag.default) };
        page += &format!("  -{}={}{default}\n", flag.name, flag.value_name);
        // structopt removes the full stop of a single sentence.
        let stop = if flag.help.ends_with('.') { "" } else { "." };
        for line in wrap(&format!("{}{stop}", flag.help), WIDTH - 6) {
            page += &format!("      {line}\n");
        }
    }
    page + OTHER
}

/// Breaks a text between words into lines of at most `width` characters. Only a longer word exceeds the width.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
