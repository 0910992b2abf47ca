//! The chunk of streamed remote read: Prometheus' variant of Gorilla's compression, bit for bit.
//!
//! A chunk is a count of 16 bits, followed by a stream of bits. The first sample is its timestamp (zigzag varint) and
//! its value (64 bits). The second timestamp is the difference to the first (varint). From the third on, a timestamp is
//! the difference of differences, behind a prefix that tells its width. Each value but the first is the window of bits
//! in which it differs from the value before. Differences wrap, so timestamps in any order survive, and so does any
//! float. Source: Prometheus, `tsdb/docs/format/chunks.md` and `tsdb/chunkenc/xor.go`.

use thiserror::Error;

use crate::model::sample::Sample;
use crate::wire::bits::{BitReader, BitWriter, fits};

/// Maximum samples of one chunk: its count has 16 bits.
pub const SAMPLES_MAX: usize = u16::MAX as usize;

/// Maximum of leading zeros that the five bits of a window can express.
const LEADING_MAX: u32 = 31;

/// Error of bytes that are no chunk.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{what} in sample {sample} of the XOR chunk")]
pub struct DecodeError {
    /// Number of the sample, from 0.
    pub sample: usize,
    /// The fault in it.
    pub what: &'static str,
}

/// Writer of one chunk.
#[derive(Clone, Debug)]
pub struct Encoder {
    bits: BitWriter,
    count: u16,
    last: Sample,
    /// The last difference between timestamps, modulo 2^64.
    delta: u64,
    /// Window of the last value that did not fit into the window before it.
    window: Option<Window>,
}

/// Bits in which a value differs from the one before: all but the leading and trailing ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    leading: u32,
    trailing: u32,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// Begins a chunk.
    pub fn new() -> Self {
        // The count stands first; `finish` fills it in.
        let bits = BitWriter::after(vec![0, 0]);
        Self { bits, count: 0, last: Sample { timestamp_ms: 0, value: 0.0 }, delta: 0, window: None }
    }

    /// Appends a sample.
    ///
    /// # Panics
    ///
    /// Panics if the chunk already has [`SAMPLES_MAX`] samples; chunks of real servers have 120.
    pub fn push(&mut self, sample: Sample) {
        let delta = sample.timestamp_ms.wrapping_sub(self.last.timestamp_ms).cast_unsigned();
        match self.count {
            0 => {
                let zigzag = (sample.timestamp_ms << 1) ^ (sample.timestamp_ms >> 63);
                self.bits.write_varint(zigzag.cast_unsigned());
                self.bits.write(sample.value.to_bits(), 64);
            }
            1 => {
                self.bits.write_varint(delta);
                self.write_value(sample.value);
            }
            u16::MAX => panic!("a chunk holds at most {SAMPLES_MAX} samples"),
            _ => {
                self.write_delta_of_delta(delta.wrapping_sub(self.delta).cast_signed());
                self.write_value(sample.value);
            }
        }
        self.count += 1;
        self.last = sample;
        self.delta = delta;
    }

    /// Returns the number of samples in the chunk.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Returns the chunk's bytes, padded with zero bits.
    pub fn finish(self) -> Vec<u8> {
        let mut bytes = self.bits.finish();
        bytes[..2].copy_from_slice(&self.count.to_be_bytes());
        bytes
    }

    fn write_delta_of_delta(&mut self, change: i64) {
        let (prefix, prefix_bits, bits) = match change {
            0 => (0b0, 1, 0),
            _ if fits(change, 14) => (0b10, 2, 14),
            _ if fits(change, 17) => (0b110, 3, 17),
            _ if fits(change, 20) => (0b1110, 4, 20),
            _ => (0b1111, 4, 64),
        };
        self.bits.write(prefix, prefix_bits);
        self.bits.write(change.cast_unsigned(), bits);
    }

    fn write_value(&mut self, value: f64) {
        write_change(&mut self.bits, value.to_bits() ^ self.last.value.to_bits(), &mut self.window);
    }
}

impl Window {
    fn len(self) -> u32 {
        64 - self.leading - self.trailing
    }
}

/// Writes the bits in which a float differs from the one before it.
pub(super) fn write_change(bits: &mut BitWriter, change: u64, window: &mut Option<Window>) {
    if change == 0 {
        bits.write(0b0, 1);
        return;
    }
    let needed = Window { leading: change.leading_zeros().min(LEADING_MAX), trailing: change.trailing_zeros() };
    let window = match *window {
        Some(last) if needed.leading >= last.leading && needed.trailing >= last.trailing => {
            bits.write(0b10, 2);
            last
        }
        _ => {
            bits.write(0b11, 2);
            bits.write(u64::from(needed.leading), 5);
            // A length of 64 wraps to 0, which is free because a window of 0 bits is never written.
            bits.write(u64::from(needed.len()), 6);
            *window = Some(needed);
            needed
        }
    };
    bits.write(change >> window.trailing, window.len());
}

/// Reads what [`write_change`] wrote.
pub(super) fn read_change(bits: &mut BitReader<'_>, window: &mut Window) -> Result<u64, &'static str> {
    if bits.read(1)? == 0 {
        return Ok(0);
    }
    if bits.read(1)? == 1 {
        let leading = bits.read(5)? as u32;
        let len = match bits.read(6)? as u32 {
            0 => 64,
            len => len,
        };
        let trailing = (64 - leading).checked_sub(len).ok_or("a window wider than a value")?;
        *window = Window { leading, trailing };
    }
    Ok(bits.read(window.len())? << window.trailing)
}

/// Decodes a whole chunk; bytes after its last sample are ignored.
///
/// # Errors
///
/// `DecodeError` if the bytes end before the samples do, or no encoder can have written them.
pub fn decode(chunk: &[u8]) -> Result<Vec<Sample>, DecodeError> {
    let Some((&count, stream)) = chunk.split_first_chunk() else {
        return Err(DecodeError { sample: 0, what: "no count" });
    };
    let count = usize::from(u16::from_be_bytes(count));
    let mut decoder = Decoder {
        bits: BitReader::new(stream),
        last: Sample { timestamp_ms: 0, value: 0.0 },
        delta: 0,
        window: Window::default(),
    };
    let mut samples = Vec::with_capacity(count);
    for index in 0..count {
        samples.push(decoder.next(index).map_err(|what| DecodeError { sample: index, what })?);
    }
    Ok(samples)
}

struct Decoder<'a> {
    bits: BitReader<'a>,
    last: Sample,
    delta: u64,
    window: Window,
}

impl Decoder<'_> {
    fn next(&mut self, index: usize) -> Result<Sample, &'static str> {
        match index {
            0 => {
                let zigzag = self.bits.read_varint()?;
                self.last.timestamp_ms = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
                self.last.value = f64::from_bits(self.bits.read(64)?);
                return Ok(self.last);
            }
            1 => self.delta = self.bits.read_varint()?,
            _ => self.delta = self.delta.wrapping_add(self.read_delta_of_delta()?.cast_unsigned()),
        }
        self.last.timestamp_ms = self.last.timestamp_ms.wrapping_add(self.delta.cast_signed());
        self.last.value = f64::from_bits(self.last.value.to_bits() ^ read_change(&mut self.bits, &mut self.window)?);
        Ok(self.last)
    }

    fn read_delta_of_delta(&mut self) -> Result<i64, &'static str> {
        let bits = [0, 14, 17, 20, 64][self.bits.read_ones(4)?];
        self.bits.read_signed(bits)
    }
}

#[cfg(test)]
mod tests;
