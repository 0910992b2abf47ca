//! The chunk of streamed remote read: Prometheus' variant of Gorilla's compression, bit for bit.
//!
//! A chunk is a count of 16 bits, followed by a stream of bits. The first sample is its timestamp (zigzag varint) and
//! its value (64 bits). The second timestamp is the difference to the first (varint). From the third on, a timestamp is
//! the difference of differences, behind a prefix that tells its width. Each value but the first is the window of bits
//! in which it differs from the value before. Differences wrap, so timestamps in any order survive, and so does any
//! float. Source: Prometheus, `tsdb/docs/format/chunks.md` and `tsdb/chunkenc/xor.go`.

use thiserror::Error;

use crate::model::sample::Sample;

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
#[derive(Clone, Copy, Debug)]
struct Window {
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
        let bits = BitWriter { bytes: vec![0, 0], free: 0 };
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
        let mut bytes = self.bits.bytes;
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
        let change = value.to_bits() ^ self.last.value.to_bits();
        if change == 0 {
            self.bits.write(0b0, 1);
            return;
        }
        let needed = Window { leading: change.leading_zeros().min(LEADING_MAX), trailing: change.trailing_zeros() };
        let window = match self.window {
            Some(last) if needed.leading >= last.leading && needed.trailing >= last.trailing => {
                self.bits.write(0b10, 2);
                last
            }
            _ => {
                self.bits.write(0b11, 2);
                self.bits.write(u64::from(needed.leading), 5);
                // A length of 64 wraps to 0, which is free because a window of 0 bits is never written.
                self.bits.write(u64::from(needed.len()), 6);
                self.window = Some(needed);
                needed
            }
        };
        self.bits.write(change >> window.trailing, window.len());
    }
}

impl Window {
    fn len(self) -> u32 {
        64 - self.leading - self.trailing
    }
}

/// Returns `true` if Prometheus writes a change of differences in so many bits: the range of two's complement, moved up
/// by one.
fn fits(change: i64, bits: u32) -> bool {
    let half = 1 << (bits - 1);
    (1 - half..=half).contains(&change)
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
        bits: BitReader { bytes: stream, at: 0 },
        last: Sample { timestamp_ms: 0, value: 0.0 },
        delta: 0,
        window: Window { leading: 0, trailing: 0 },
    };
    let mut samples = Vec::with_capacity(count);
    for index in 0..count {
        samples.push(decoder.next(index).map_err(|what| DecodeError { sample: index, what })?);
    }
    Ok(samples)
}

/// Error text of a bit stream that ends too early.
const TRUNCATED: &str = "missing bits";

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
        self.last.value = f64::from_bits(self.last.value.to_bits() ^ self.read_value_change()?);
        Ok(self.last)
    }

    fn read_delta_of_delta(&mut self) -> Result<i64, &'static str> {
        let mut ones = 0;
        while ones < 4 && self.bits.read(1)? == 1 {
            ones += 1;
        }
        let bits = [0, 14, 17, 20, 64][ones];
        let raw = self.bits.read(bits)?.cast_signed();
        Ok(if bits == 64 || raw <= (1 << bits) / 2 { raw } else { raw - (1 << bits) })
    }

    fn read_value_change(&mut self) -> Result<u64, &'static str> {
        if self.bits.read(1)? == 0 {
            return Ok(0);
        }
        if self.bits.read(1)? == 1 {
            let leading = self.bits.read(5)? as u32;
            let len = match self.bits.read(6)? as u32 {
                0 => 64,
                len => len,
            };
            let trailing = (64 - leading).checked_sub(len).ok_or("a window wider than a value")?;
            self.window = Window { leading, trailing };
        }
        Ok(self.bits.read(self.window.len())? << self.window.trailing)
    }
}

/// Appends bits, the highest first.
#[derive(Clone, Debug)]
struct BitWriter {
    bytes: Vec<u8>,
    /// Number of unused bits of the last byte, 0 to 7.
    free: u32,
}

impl BitWriter {
    /// Writes the lowest `bits` of `value`, 0 to 64.
    fn write(&mut self, value: u64, bits: u32) {
        let mut left = bits;
        while left > 0 {
            if self.free == 0 {
                self.bytes.push(0);
                self.free = 8;
            }
            let now = left.min(self.free);
            let part = (value >> (left - now)) as u8 & (0xff >> (8 - now));
            if let Some(last) = self.bytes.last_mut() {
                *last |= part << (self.free - now);
            }
            self.free -= now;
            left -= now;
        }
    }

    fn write_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.write(value | 0x80, 8);
            value >>= 7;
        }
        self.write(value, 8);
    }
}

struct BitReader<'a> {
    bytes: &'a [u8],
    /// Number of bits read so far.
    at: usize,
}

impl BitReader<'_> {
    /// Reads the next `bits`, 0 to 64, as the lowest of the result.
    fn read(&mut self, bits: u32) -> Result<u64, &'static str> {
        let mut value = 0;
        let mut left = bits;
        while left > 0 {
            let byte = *self.bytes.get(self.at / 8).ok_or(TRUNCATED)?;
            let unread = 8 - (self.at % 8) as u32;
            let now = left.min(unread);
            let part = (byte >> (unread - now)) & (0xff >> (8 - now));
            value = value << now | u64::from(part);
            self.at += now as usize;
            left -= now;
        }
        Ok(value)
    }

    fn read_varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.read(8)?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a timestamp of more than 64 bits")
    }
}

#[cfg(test)]
mod tests;
