//! A clock that is wrong, for one process and not for the others.

/// What a process needs in its environment for its clock to be `ahead_ms` ahead (behind, if negative; whole seconds count), its
/// monotonic clock untouched; `None` where libfaketime is not installed.
#[must_use]
pub fn wrong_by(ahead_ms: i64) -> Option<Vec<(String, String)>> {
    let directories = std::fs::read_dir("/usr/lib").ok()?.flatten();
    // Where Debian keeps it.
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
