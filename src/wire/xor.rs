//! The chunk that streamed remote read carries: Gorilla's compression as Prometheus varies it, bit for bit.
//!
//! A chunk is a u16 count and then, bit after bit: the first timestamp (zigzag varint) and value (64 bits); the
//! second's difference to it (varint); from the third on the difference of differences, behind a prefix that says
//! how wide it is; and each value but the first as the window of bits in which it differs from the one before.
//! Differences wrap, so any timestamps in any order survive, and so does any float.
//! Source: Prometheus, `tsdb/docs/format/chunks.md` and `tsdb/chunkenc/xor.go`.

use thiserror::Error;

use crate::model::sample::Sample;

/// Samples that one chunk can hold: its count has 16 bits.
pub const SAMPLES_MAX: usize = u16::MAX as usize;

/// Leading zeros that the five bits of a window can say.
const LEADING_MAX: u32 = 31;

/// Why bytes are no chunk.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{what} in sample {sample} of the XOR chunk")]
pub struct DecodeError {
    /// Which sample, from 0.
    pub sample: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Writes one chunk.
#[derive(Clone, Debug)]
pub struct Encoder {
    bits: BitWriter,
    count: u16,
    last: Sample,
    /// The last difference between timestamps, modulo 2^64.
    delta: u64,
    /// The window of the last value that did not fit into the window before it.
    window: Option<Window>,
}

/// The bits in which a value differs from the one before: all but so many at either end.
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
        // The count stands first and is filled in by `finish`.
        let bits = BitWriter { bytes: vec![0, 0], free: 0 };
        Self { bits, count: 0, last: Sample { timestamp_ms: 0, value: 0.0 }, delta: 0, window: None }
    }

    /// Appends a sample.
    ///
    /// # Panics
    ///
    /// When the chunk already holds [`SAMPLES_MAX`]; chunks of real servers hold 120.
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

    /// How many samples the chunk holds.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// The chunk's bytes, padded with zero bits.
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
                // 64 wraps to 0, and 0 bits are never written.
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

/// Whether Prometheus writes a change of differences in so many bits: the range of two's complement, moved up by
/// one.
fn fits(change: i64, bits: u32) -> bool {
    let half = 1 << (bits - 1);
    (1 - half..=half).contains(&change)
}

/// Reads a whole chunk; bytes after its last sample do not count.
///
/// # Errors
///
/// When the bytes end before the samples do, or no encoder can have written them.
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

/// What a bit stream that ends too early is reported as.
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
    /// Bits of the last byte not yet written, 0 to 7.
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
    /// Bits read so far.
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::sample::STALE_NAN_BITS;

    fn encode(samples: &[Sample]) -> Vec<u8> {
        let mut encoder = Encoder::new();
        for &sample in samples {
            encoder.push(sample);
        }
        assert_eq!(encoder.count(), samples.len());
        encoder.finish()
    }

    /// `bits` is what follows the count, as written in the format's description; spaces are for the reader.
    #[track_caller]
    fn check(samples: &[(i64, u64)], bits: &str) {
        let samples: Vec<_> =
            samples.iter().map(|&(timestamp_ms, bits)| Sample { timestamp_ms, value: f64::from_bits(bits) }).collect();
        let bits: Vec<u8> = bits.bytes().filter(|&bit| bit != b' ').map(|bit| bit - b'0').collect();
        let mut expected = (samples.len() as u16).to_be_bytes().to_vec();
        expected
            .extend(bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |sum, (at, bit)| sum | bit << (7 - at))));
        let encoded = encode(&samples);
        assert_eq!(encoded, expected, "{encoded:02x?} is not {expected:02x?}");
        assert_eq!(decode(&expected), Ok(samples));
    }

    fn zeros(len: usize) -> String {
        "0".repeat(len)
    }

    #[test]
    fn the_first_two_samples() {
        check(&[], "");
        check(&[(0, 0)], &format!("00000000 {}", zeros(64)));
        // Zigzag: -1 is 1, 64 is 128.
        check(&[(-1, u64::MAX)], &format!("00000001 {}", "1".repeat(64)));
        check(&[(64, 0)], &format!("10000000 00000001 {}", zeros(64)));
        check(&[(i64::MIN, 0)], &format!("{} 00000001 {}", "1".repeat(72), zeros(64)));
        // 15000 = 117 * 128 + 24.
        check(&[(0, 0), (15_000, 0)], &format!("{} 10011000 01110101 0", zeros(72)));
        // Backwards: 2^64 - 1.
        check(&[(0, 0), (-1, 0)], &format!("{} {} 00000001 0", zeros(72), "1".repeat(72)));
    }

    #[test]
    fn the_widths_of_a_change_of_differences() {
        // After the timestamps 0 and 0, the third one is its own difference of differences.
        let third =
            |timestamp, bits: &str| check(&[(0, 0), (0, 0), (timestamp, 0)], &format!("{} 0 {bits} 0", zeros(80)));
        third(0, "0");
        third(1, "10 00000000000001");
        third(-1, "10 11111111111111");
        third(8192, "10 10000000000000");
        third(-8191, "10 10000000000001");
        third(8193, "110 00010000000000001");
        third(-8192, "110 11110000000000000");
        third(65_536, "110 10000000000000000");
        third(65_537, "1110 00010000000000000001");
        third(-65_536, "1110 11110000000000000000");
        third(524_288, "1110 10000000000000000000");
        third(-524_287, "1110 10000000000000000001");
        third(524_289, &format!("1111 {} 10000000000000000001", zeros(44)));
        third(-524_288, &format!("1111 {} 10000000000000000000", "1".repeat(44)));
        third(i64::MIN, &format!("1111 1{}", zeros(63)));
    }

    #[test]
    fn the_windows_of_values() {
        // Timestamps stay 0, so each sample from the third on begins with a 0 for its time.
        let second = |value, bits: &str| check(&[(0, 0), (0, value)], &format!("{} {bits}", zeros(80)));
        // 1.0 = 0x3ff << 52: two leading zeros, ten ones.
        second(1.0_f64.to_bits(), "11 00010 001010 1111111111");
        // Leading zeros are cut to 31, and the 33 bits that are left begin with zeros.
        second(1, &format!("11 11111 100001 {}1", zeros(32)));
        // 64 bits wrap to 0.
        second(u64::MAX, &format!("11 00000 000000 {}", "1".repeat(64)));
        check(
            &[(0, 0), (0, 0x0ff0 << 48), (0, 0x0ff0 << 48), (0, 0x0f70 << 48), (0, 0x1f70 << 48)],
            &format!("{} 11 00100 001000 11111111 0 0 0 10 00001000 0 11 00011 000001 1", zeros(80)),
        );
    }

    #[test]
    fn known_bytes() {
        let sample = |timestamp_ms, value| Sample { timestamp_ms, value };
        let samples = [sample(0, 0.0), sample(15_000, 0.0), sample(30_000, 0.0), sample(45_000, 1.0)];
        let bytes = b"\x00\x04\x00\0\0\0\0\0\0\0\0\x98\x75\x0c\x45\x7f\xe0";
        assert_eq!(encode(&samples), bytes);
        assert_eq!(decode(bytes), Ok(samples.to_vec()));
    }

    #[test]
    fn what_no_encoder_writes_is_an_error() {
        let error = |bytes: &[u8]| decode(bytes).unwrap_err();
        assert_eq!(error(b"\0"), DecodeError { sample: 0, what: "no count" });
        assert_eq!(error(b"\0\x01\0"), DecodeError { sample: 0, what: "missing bits" });
        let overlong = [&b"\0\x01"[..], &[0xff; 9], b"\x02"].concat();
        assert_eq!(error(&overlong), DecodeError { sample: 0, what: "a timestamp of more than 64 bits" });
        // 11 11111 111111: 31 leading zeros and 63 bits.
        let wide = b"\0\x02\0\0\0\0\0\0\0\0\0\0\xff\xf8\0\0\0\0\0\0\0\0";
        assert_eq!(error(wide), DecodeError { sample: 1, what: "a window wider than a value" });
    }

    #[test]
    fn a_full_chunk() {
        let samples = vec![Sample { timestamp_ms: 5, value: f64::from_bits(STALE_NAN_BITS) }; SAMPLES_MAX];
        assert_eq!(decode(&encode(&samples)), Ok(samples));
    }

    #[test]
    #[should_panic(expected = "at most 65535")]
    fn a_chunk_that_is_full_takes_no_more() {
        encode(&vec![Sample { timestamp_ms: 0, value: 0.0 }; SAMPLES_MAX + 1]);
    }

    /// Timestamps as scrapes have them and as nobody should, values that move a little and at random.
    fn any_samples() -> impl Strategy<Value = Vec<Sample>> {
        let step = prop_oneof![Just(15_000), 14_990..15_010_i64, -600_000..600_000_i64, any::<i64>()];
        let bits = prop_oneof![Just(STALE_NAN_BITS), (0..1000_u32).prop_map(|n| f64::from(n).to_bits()), any::<u64>()];
        prop::collection::vec((step, bits), 0..200).prop_map(|steps| {
            let mut timestamp_ms = 1_700_000_000_000_i64;
            let sample = |(step, bits)| {
                timestamp_ms = timestamp_ms.wrapping_add(step);
                Sample { timestamp_ms, value: f64::from_bits(bits) }
            };
            steps.into_iter().map(sample).collect()
        })
    }

    proptest! {
        #[test]
        fn samples_survive(samples in any_samples()) {
            prop_assert_eq!(decode(&encode(&samples)), Ok(samples));
        }

        #[test]
        fn a_truncated_chunk_is_an_error(samples in any_samples(), at in any::<prop::sample::Index>()) {
            let chunk = encode(&samples);
            if !samples.is_empty() {
                prop_assert!(decode(&chunk[..at.index(chunk.len())]).is_err());
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(chunk in any::<Vec<u8>>()) {
            let _ = decode(&chunk);
        }
    }
}
