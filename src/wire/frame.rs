//! Frames of a streamed remote-read answer: length, checksum, payload.
//!
//! A frame is the payload's length as a varint, its CRC-32C as four bytes, the highest first, and the payload. The
//! stream ends with the connection. Source: Prometheus, `storage/remote/chunked.go`.

use bytes::{Buf, BufMut};
use prost::encoding::{decode_varint, encode_varint};
use thiserror::Error;

/// Error of bytes that are no frame.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The stream ends within a frame, or the length is no varint.
    #[error("the stream ends within a frame")]
    Truncated,
    /// The frame is longer than the reader allows.
    #[error("a frame declares {declared} bytes, more than the {max} allowed")]
    TooLarge {
        /// Bytes that the frame declares.
        declared: u64,
        /// Bytes that the reader allows.
        max: usize,
    },
    /// The payload differs from what was sent.
    #[error("a frame's checksum is wrong")]
    Checksum,
}

/// Appends a frame to a growing buffer. Prometheus reads frames of up to 50 MB.
pub fn write_frame(payload: &[u8], out: &mut impl BufMut) {
    encode_varint(payload.len() as u64, out);
    out.put_u32(crc32c::crc32c(payload));
    out.put_slice(payload);
}

/// Takes the payload of the next frame off the front of a stream; returns `None` at the end of the stream.
///
/// # Errors
///
/// `FrameError`; the stream is then left somewhere within the frame.
pub fn read_frame<'a>(stream: &mut &'a [u8], max: usize) -> Result<Option<&'a [u8]>, FrameError> {
    if stream.is_empty() {
        return Ok(None);
    }
    let declared = decode_varint(stream).map_err(|_| FrameError::Truncated)?;
    let len = usize::try_from(declared).ok().filter(|&len| len <= max);
    let len = len.ok_or(FrameError::TooLarge { declared, max })?;
    let checksum = stream.try_get_u32().map_err(|_| FrameError::Truncated)?;
    let (payload, rest) = stream.split_at_checked(len).ok_or(FrameError::Truncated)?;
    *stream = rest;
    if crc32c::crc32c(payload) == checksum { Ok(Some(payload)) } else { Err(FrameError::Checksum) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_frame(payload, &mut out);
        out
    }

    /// The checksum of "123456789" is the check value in every catalogue of CRCs.
    #[test]
    fn known_bytes() {
        assert_eq!(framed(b"123456789"), b"\x09\xe3\x06\x92\x83123456789");
        assert_eq!(framed(b""), b"\x00\0\0\0\0");
        assert_eq!(framed(&[0; 300])[..2], *b"\xac\x02");
    }

    #[test]
    fn a_bad_frame_is_an_error() {
        let read = |mut stream: &[u8]| read_frame(&mut stream, 9).map(|payload| payload.map(<[u8]>::to_vec));
        let frame = framed(b"123456789");
        assert_eq!(read(b""), Ok(None));
        assert_eq!(read(&frame), Ok(Some(b"123456789".to_vec())));
        for len in 1..frame.len() {
            assert_eq!(read(&frame[..len]), Err(FrameError::Truncated));
        }
        assert_eq!(read(&framed(&[0; 10])), Err(FrameError::TooLarge { declared: 10, max: 9 }));
        for at in 1..frame.len() {
            let mut frame = frame.clone();
            frame[at] ^= 0x10;
            assert_eq!(read(&frame), Err(FrameError::Checksum));
        }
    }

    proptest! {
        #[test]
        fn frames_survive(payloads in any::<Vec<Vec<u8>>>()) {
            let mut stream = Vec::new();
            for payload in &payloads {
                write_frame(payload, &mut stream);
            }
            let mut stream = &stream[..];
            for payload in &payloads {
                prop_assert_eq!(read_frame(&mut stream, 1 << 20), Ok(Some(&payload[..])));
            }
            prop_assert_eq!(read_frame(&mut stream, 0), Ok(None));
        }

        #[test]
        fn arbitrary_bytes_never_panic(stream in any::<Vec<u8>>()) {
            let _ = read_frame(&mut &stream[..], 1 << 20);
        }
    }
}
