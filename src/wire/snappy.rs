//! Snappy's block format; the decompressed size is known before a byte is allocated.

use thiserror::Error;

/// Reason why a body was not decompressed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// The body declares more than is allowed; a body of six bytes may declare 4 GiB.
    #[error("the body declares {declared} bytes when decompressed, more than the {max} allowed")]
    TooLarge {
        /// Bytes that the body declares.
        declared: usize,
        /// Bytes that the caller allows.
        max: usize,
    },
    /// The body is not a snappy block.
    #[error("the body is not a valid snappy block")]
    Corrupt(#[source] snap::Error),
}

/// Returns the decompressed bytes that the body declares, at most `u32::MAX`. Nothing else of the body is checked.
///
/// # Errors
///
/// [`Error::Corrupt`] if the length is missing or not valid; [`Error::TooLarge`] if `snap` refuses it as too big.
pub fn decompressed_len(body: &[u8]) -> Result<usize, Error> {
    if body.is_empty() {
        // snap accepts an empty body as an empty block; Go's decoder refuses it, because the length is missing.
        return Err(Error::Corrupt(snap::Error::Empty));
    }
    snap::raw::decompress_len(body).map_err(|error| match error {
        snap::Error::TooBig { given, max } => Error::TooLarge { declared: clamp(given), max: clamp(max) },
        error => Error::Corrupt(error),
    })
}

/// Decompresses a body into at most `max` bytes, which are allocated only after the declared length is known to fit.
/// `memory` is reused if it is large enough, whatever its contents: bytes that it has already need not be filled with
/// zeros.
///
/// # Errors
///
/// [`Error::TooLarge`] if the body declares more than `max` bytes; [`Error::Corrupt`] if it is not a snappy block.
pub fn decompress(body: &[u8], max: usize, mut memory: Vec<u8>) -> Result<Vec<u8>, Error> {
    let declared = decompressed_len(body)?;
    if declared > max {
        return Err(Error::TooLarge { declared, max });
    }
    if memory.capacity() < declared {
        memory = Vec::with_capacity(declared);
    }
    memory.resize(declared, 0);
    snap::raw::Decoder::new().decompress(body, &mut memory).map_err(Error::Corrupt)?;
    Ok(memory)
}

/// Compresses bytes into one block.
///
/// # Errors
///
/// [`Error::TooLarge`] for 4 GiB and more, which the format cannot express.
pub fn compress(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    snap::raw::Encoder::new()
        .compress_vec(bytes)
        .map_err(|_| Error::TooLarge { declared: bytes.len(), max: clamp(u64::from(u32::MAX)) })
}

fn clamp(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_small_body_cannot_claim_much_memory() {
        let bomb = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00];
        assert_eq!(decompressed_len(&bomb), Ok(u32::MAX as usize));
        assert_eq!(
            decompress(&bomb, 32 << 20, vec![]),
            Err(Error::TooLarge { declared: u32::MAX as usize, max: 32 << 20 })
        );
    }

    #[test]
    fn the_limit_is_inclusive() {
        let body = compress(&[7; 100]).unwrap();
        assert_eq!(decompressed_len(&body), Ok(100));
        assert_eq!(decompress(&body, 100, vec![]), Ok(vec![7; 100]));
        assert_eq!(decompress(&body, 99, vec![]), Err(Error::TooLarge { declared: 100, max: 99 }));
    }

    #[test]
    fn what_is_no_block_is_corrupt() {
        for body in [&b""[..], b"\xff\xff\xff\xff\xff\xff", b"\x05", b"\x05\x10abcd", b"\xff\x06\x00\x00sNaPpY"] {
            assert!(matches!(decompress(body, 1 << 20, vec![]), Err(Error::Corrupt(_))), "{body:?}");
        }
        assert_eq!(decompress(b"\x00", 0, vec![1]), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn blocks_survive(bytes in any::<Vec<u8>>(), memory in any::<Vec<u8>>()) {
            prop_assert_eq!(decompress(&compress(&bytes).unwrap(), bytes.len(), memory), Ok(bytes));
        }

        #[test]
        fn arbitrary_bytes_never_panic(body in any::<Vec<u8>>()) {
            if let Ok(bytes) = decompress(&body, 1 << 16, vec![]) {
                prop_assert_eq!(decompressed_len(&body), Ok(bytes.len()));
            }
        }
    }
}
