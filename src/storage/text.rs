//! Text of senders that is for people to read, as far as the database can store it. Pure.

/// Returns bytes as text that can be stored: what is no text, or no text of the database's, is replaced.
/// `is_ascii_only`: its encoding lacks other characters.
#[must_use]
pub(super) fn storable(bytes: &[u8], is_ascii_only: bool) -> String {
    let text = String::from_utf8_lossy(bytes);
    match is_ascii_only {
        true => text.chars().map(|char| if char.is_ascii() && char != '\0' { char } else { '?' }).collect(),
        false => text.replace('\0', "\u{fffd}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_stored_is_replaced() {
        assert_eq!(storable(b"a\0\xff\xc2\xb0", false), "a\u{fffd}\u{fffd}\u{b0}");
        assert_eq!(storable(b"a\0\xff\xc2\xb0", true), "a???");
    }
}
