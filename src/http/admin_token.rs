//! The token of `-web-admin-token`.

use std::fmt;

use hyper::header::{AUTHORIZATION, HeaderMap};
use sha2::{Digest, Sha256};

/// The token that an operator must send. Its text is never shown: only its digest is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken([u8; 32]);

impl AdminToken {
    /// Returns the digest of the token that an operator chose.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Returns `true` if a request carries the token as `Authorization: Bearer …`.
    pub(super) fn is_shown(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token =
            shown.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        // Digests are compared, so the duration of the comparison tells nothing about the token.
        token.is_some_and(|(_, token)| Self::new(token.trim()) == *self)
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
