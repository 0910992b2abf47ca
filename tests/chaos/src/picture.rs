//! Who led and who stored, as a picture.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::stage::{Band, Outcome};
use crate::watch::{ALL_LED, NO_CLUSTER, SOME_SILENT};

const WIDTH: f64 = 1_000.0;
const LEFT: f64 = 30.0;

/// Colours of the roles.
const ROLES: [(&str, &str); 8] = [
    ("leader", "#2e7d32"),
    ("standby", "#90caf9"),
    ("taking_over", "#fbc02d"),
    ("resigned", "#bdbdbd"),
    ("unknown", "#ef9a9a"),
    (ALL_LED, "#66bb6a"),
    (SOME_SILENT, "#ef6c00"),
    (NO_CLUSTER, "#e0e0e0"),
];

/// Height of an adapter's share.
const ADAPTER: u32 = 55;

/// Draws a case into `directory`; where it is.
pub(crate) fn draw(directory: &Path, name: &str, what: &str, outcome: &Outcome) -> PathBuf {
    let scale = WIDTH / outcome.seconds.max(1.0);
    let below = 40 + ADAPTER * u32::try_from(outcome.bands.len()).unwrap_or(0);
    let height = below + 40;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{}' height='{height}' font-family='sans-serif' font-size='11'>\n\
         <rect width='100%' height='100%' fill='white'/><text x='{LEFT}' y='16' font-size='13'>{name}: {what}</text>\n",
        WIDTH + LEFT + 10.0
    );
    for (number, ((name, _), bands)) in (0_u32..).zip(outcome.logs.iter().zip(&outcome.bands)) {
        let top = f64::from(40 + ADAPTER * number);
        let _ = writeln!(svg, "<text x='8' y='{}'>{}</text>", top + 14.0, name);
        let most = bands.iter().map(rate).fold(1.0, f64::max);
        for band in bands {
            let (x, width) = (LEFT + band.from * scale, (band.to - band.from) * scale);
            let known = band.role.and_then(|role| ROLES.iter().find(|(name, _)| *name == role));
            let colour = known.map_or("#424242", |(_, colour)| colour);
            let _ = writeln!(svg, "<rect x='{x:.1}' y='{top}' width='{width:.1}' height='18' fill='{colour}'/>");
            let bar = 20.0 * rate(band) / most;
            let _ = writeln!(
                svg,
                "<rect x='{x:.1}' y='{:.1}' width='{width:.1}' height='{bar:.1}' fill='#5c6bc0'/>",
                top + 40.0 - bar
            );
        }
    }
    for (index, (at, what)) in outcome.record.events.iter().enumerate() {
        let x = LEFT + at * scale;
        // Neighbours at different heights, so that they can be read.
        let y = 36 - i32::try_from(index % 2).unwrap_or(0) * 9;
        let _ = writeln!(
            svg,
            "<line x1='{x:.1}' y1='{y}' x2='{x:.1}' y2='{}' stroke='#d32f2f' stroke-width='0.7'/>\
             <text x='{x:.1}' y='{y}' font-size='8'>{}</text>",
            below - 10,
            what.replace('<', " ")
        );
    }
    for second in (0..).step_by(5).take_while(|second| f64::from(*second) < outcome.seconds) {
        let x = LEFT + f64::from(second) * scale;
        let _ = writeln!(svg, "<text x='{x:.1}' y='{}' font-size='9'>{second} s</text>", below + 2);
    }
    for (index, (role, colour)) in ROLES.iter().chain(&[("no answer", "#424242"), ("stored", "#5c6bc0")]).enumerate() {
        let x = LEFT + 100.0 * f64::from(u32::try_from(index).unwrap_or(0));
        let _ = writeln!(
            svg,
            "<rect x='{x}' y='{}' width='12' height='12' fill='{colour}'/><text x='{}' y='{}'>{role}</text>",
            below + 15,
            x + 16.0,
            below + 25
        );
    }
    svg.push_str("</svg>\n");
    let path = directory.join(format!("{name}.svg"));
    std::fs::create_dir_all(directory).expect("cannot make the directory of the pictures");
    std::fs::write(&path, svg).expect("cannot write a picture");
    path
}

fn rate(band: &Band) -> f64 {
    band.stored / (band.to - band.from).max(0.05)
}
