//! A wrong clock for a single process.

/// Returns the environment variables that set a process' clock ahead by `ahead_ms` (behind if negative; whole seconds
/// only). The monotonic clock is not changed. Returns `None` if libfaketime is not installed.
#[must_use]
pub fn wrong_by(ahead_ms: i64) -> Option<Vec<(String, String)>> {
    let directories = std::fs::read_dir("/usr/lib").ok()?.flatten();
    // The directory that Debian uses.
    let library =
        directories.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())?;
    let environment = [
        ("LD_PRELOAD", library.to_string_lossy().into_owned()),
        ("FAKETIME", format!("{:+}", ahead_ms / 1_000)),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    Some(environment.map(|(name, value)| (name.to_owned(), value)).to_vec())
}
