//! Streams of bits, the highest bit of a byte first, and the numbers that chunks write into them. Source: Prometheus,
//! `tsdb/chunkenc/bstream.go` and `tsdb/chunkenc/varbit.go`.

/// Error text of a bit stream that ends too early.
pub(super) const TRUNCATED: &str = "missing bits";

/// Widths of a varbit number. The width at place `i` is announced by `i + 1` ones and a zero; before them comes a lone
/// zero for the number 0, after them eight ones for 64 bits.
const VARBIT_WIDTHS: [u32; 7] = [3, 6, 9, 12, 18, 25, 56];

/// Returns `true` if Prometheus writes a signed number in so many bits: the range of two's complement, moved up by one.
pub(super) fn fits(number: i64, bits: u32) -> bool {
    let half = 1 << (bits - 1);
    (1 - half..=half).contains(&number)
}

/// Appends bits, the highest first.
#[derive(Clone, Debug)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    /// Number of unused bits of the last byte, 0 to 7.
    free: u32,
}

impl BitWriter {
    /// Begins after a header of whole bytes, which [`BitWriter::finish`] returns for the caller to fill in.
    pub(super) fn after(header: Vec<u8>) -> Self {
        Self { bytes: header, free: 0 }
    }

    /// Returns all bytes, padded with zero bits.
    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes the lowest `bits` of `value`, 0 to 64.
    pub(super) fn write(&mut self, value: u64, bits: u32) {
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

    /// Writes seven bits at a time, the lowest first.
    pub(super) fn write_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.write(value | 0x80, 8);
            value >>= 7;
        }
        self.write(value, 8);
    }

    /// Writes a signed varbit number.
    pub(super) fn write_varbit_int(&mut self, value: i64) {
        self.write_varbit(value.cast_unsigned(), |width| fits(value, width));
    }

    /// Writes an unsigned varbit number.
    pub(super) fn write_varbit_uint(&mut self, value: u64) {
        self.write_varbit(value, |width| value >> width == 0);
    }

    fn write_varbit(&mut self, value: u64, fits: impl Fn(u32) -> bool) {
        if value == 0 {
            self.write(0, 1);
            return;
        }
        for (width, prefix_bits) in VARBIT_WIDTHS.into_iter().zip(2..) {
            if fits(width) {
                self.write((1 << prefix_bits) - 2, prefix_bits);
                self.write(value, width);
                return;
            }
        }
        self.write(0xff, 8);
        self.write(value, 64);
    }
}

/// Reads bits, the highest first.
#[derive(Clone, Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// Number of bits read so far.
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Returns the number of bits that are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() * 8 - self.at
    }

    /// Reads the next `bits`, 0 to 64, as the lowest of the result.
    pub(super) fn read(&mut self, bits: u32) -> Result<u64, &'static str> {
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

    /// Reads a signed number of so many bits in the range that [`fits`] tells.
    pub(super) fn read_signed(&mut self, bits: u32) -> Result<i64, &'static str> {
        let raw = self.read(bits)?.cast_signed();
        Ok(if bits == 64 || raw <= (1 << bits) / 2 { raw } else { raw - (1 << bits) })
    }

    /// Counts ones up to a zero, or up to `max` ones, after which no zero comes.
    pub(super) fn read_ones(&mut self, max: usize) -> Result<usize, &'static str> {
        let mut ones = 0;
        while ones < max && self.read(1)? == 1 {
            ones += 1;
        }
        Ok(ones)
    }

    pub(super) fn read_varint(&mut self) -> Result<u64, &'static str> {
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

    /// Reads a signed varbit number.
    pub(super) fn read_varbit_int(&mut self) -> Result<i64, &'static str> {
        let width = self.read_varbit_width()?;
        self.read_signed(width)
    }

    /// Reads an unsigned varbit number.
    pub(super) fn read_varbit_uint(&mut self) -> Result<u64, &'static str> {
        let width = self.read_varbit_width()?;
        self.read(width)
    }

    fn read_varbit_width(&mut self) -> Result<u32, &'static str> {
        Ok(match self.read_ones(VARBIT_WIDTHS.len() + 1)? {
            0 => 0,
            ones => VARBIT_WIDTHS.get(ones - 1).copied().unwrap_or(64),
        })
    }
}
