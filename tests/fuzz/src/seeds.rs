//! Seeds: inputs from which a run begins. They are made when they are needed, so none is kept in the repository.

use std::fs;
use std::path::{Path, PathBuf};

use prometheus_postgresql_adapter::wire::snappy;

/// Largest body that becomes a seed whole: libFuzzer gets on faster with small ones.
const BODY_BYTES_MAX: usize = 4096;

/// Bodies of real requests, if they are at hand.
pub struct Captures(Option<PathBuf>);

/// Writes the seeds of a target to the directory `FUZZ_SEEDS`, if that is set, and ends the program. `FUZZ_CAPTURES` is
/// the directory with captured bodies.
#[expect(clippy::disallowed_methods, reason = "libFuzzer has the main function")]
pub fn write_if_asked(seeds: fn(&Captures) -> Vec<Vec<u8>>) {
    let Some(directory) = std::env::var_os("FUZZ_SEEDS").map(PathBuf::from) else { return };
    let captures = Captures(std::env::var_os("FUZZ_CAPTURES").map(PathBuf::from));
    for (number, seed) in seeds(&captures).into_iter().enumerate() {
        fs::write(directory.join(format!("seed-{number:04}")), seed)
            .expect("the directory for seeds can be written to");
    }
    std::process::exit(0);
}

impl Captures {
    /// Returns up to `count` bodies of each directory, as they were sent: those of files whose names end with `end`.
    pub(crate) fn bodies(&self, directories: &[&str], end: &str, count: usize) -> Vec<Vec<u8>> {
        let Some(captures) = &self.0 else { return Vec::new() };
        let of = |directory: &&str| {
            let mut paths: Vec<PathBuf> = fs::read_dir(captures.join(directory))
                .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
                .unwrap_or_default();
            paths.retain(|path| path.to_string_lossy().ends_with(end));
            paths.sort();
            paths.into_iter().take(count)
        };
        directories.iter().flat_map(of).filter_map(|path: PathBuf| fs::read(Path::new(&path)).ok()).collect()
    }

    /// The same, decompressed, and cut to a size that suits a seed; what is no snappy block is left out.
    pub(crate) fn messages(&self, directories: &[&str], end: &str, count: usize) -> Vec<Vec<u8>> {
        let bodies = self.bodies(directories, end, count);
        let messages = bodies.iter().filter_map(|body| snappy::decompress(body, 32 << 20, Vec::new()).ok());
        messages.map(|message| cut(&message)).collect()
    }
}

/// Leaves out fields of a message that stand behind its first kilobytes. Symbols (field 4) stay, for all series refer to
/// them.
fn cut(message: &[u8]) -> Vec<u8> {
    if message.len() <= BODY_BYTES_MAX {
        return message.to_vec();
    }
    const SYMBOL: u8 = 4 << 3 | 2;
    let (mut kept, mut bytes, mut rest) = (Vec::new(), 0, message);
    while let [tag, after @ ..] = rest {
        let mut payload = after;
        let Ok(len) = prost::encoding::decode_varint(&mut payload) else { break };
        let Some((_, next)) = usize::try_from(len).ok().and_then(|len| payload.split_at_checked(len)) else { break };
        let field = &rest[..rest.len() - next.len()];
        if *tag == SYMBOL || bytes + field.len() <= BODY_BYTES_MAX {
            kept.extend_from_slice(field);
            bytes += if *tag == SYMBOL { 0 } else { field.len() };
        }
        rest = next;
    }
    kept
}
