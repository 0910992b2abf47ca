//! Bit strings in the format of PostgreSQL's `bit varying`: the first bit is the most significant one of the first
//! byte.

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::Corrupt;

/// A value of `bit varying`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits {
    /// Number of bits.
    pub len: usize,
    /// The bits, padded with zeros to a whole byte.
    pub bytes: Vec<u8>,
}

type AnyError = Box<dyn std::error::Error + Sync + Send>;

/// Source: PostgreSQL, `varbit_send`.
impl ToSql for Bits {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, AnyError> {
        out.put_i32(i32::try_from(self.len)?);
        out.put_slice(&self.bytes);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::VARBIT
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Bits {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, AnyError> {
        let (len, bytes) = raw.split_first_chunk().ok_or("a bit string without a length")?;
        let len = usize::try_from(i32::from_be_bytes(*len))?;
        if bytes.len() != len.div_ceil(8) {
            return Err(format!("a bit string of {len} bits in {} bytes", bytes.len()).into());
        }
        Ok(Self { len, bytes: bytes.to_vec() })
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::VARBIT
    }
}

/// An unfinished bit string.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    ones: usize,
    /// The last bits, fewer than 64, right-aligned.
    rest: u64,
    rest_len: u32,
}

impl Writer {
    /// Appends the low `width` bits of `value`, at most 63. The other bits of `value` are zero.
    pub(super) fn put(&mut self, value: u64, width: u32) {
        debug_assert!(width < 64 && value >> width == 0, "{value} in {width} bits");
        let free = 64 - self.rest_len;
        if width < free {
            self.rest = self.rest << width | value;
            self.rest_len += width;
        } else {
            // Fewer than 64 bits are free: a width of at most 63 does not fit.
            let over = width - free;
            let word = self.rest << free | value >> over;
            self.ones += word.count_ones() as usize;
            self.bytes.extend_from_slice(&word.to_be_bytes());
            self.rest = value & ((1 << over) - 1);
            self.rest_len = over;
        }
    }

    /// Appends a number with its length.
    pub(super) fn put_unsigned(&mut self, value: u32) {
        let width = 32 - value.leading_zeros();
        debug_assert!(width < 32);
        self.put(u64::from(width), 5);
        self.put(u64::from(value), width);
    }

    /// Appends a number with its length, as two's complement.
    pub(super) fn put_signed(&mut self, value: i64) {
        let width = signed_width(value);
        self.put(u64::from(width), 6);
        self.put(value as u64 & ((1 << width) - 1), width);
    }

    /// Appends the bits of another bit string.
    pub(super) fn append(&mut self, bits: &Bits) {
        let (words, rest) = bits.bytes.as_chunks::<4>();
        let mut left = bits.len;
        for word in words.iter().copied().chain([word_of(rest)]) {
            let width = left.min(32);
            self.put(u64::from(u32::from_be_bytes(word)) >> (32 - width), width as u32);
            left -= width;
        }
    }

    /// Returns the number of bits.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() * 8 + self.rest_len as usize
    }

    /// Returns the number of set bits.
    pub(super) fn ones(&self) -> usize {
        self.ones + self.rest.count_ones() as usize
    }

    pub(super) fn finish(mut self) -> Bits {
        let len = self.len();
        if self.rest_len > 0 {
            self.bytes.extend_from_slice(&(self.rest << (64 - self.rest_len)).to_be_bytes());
        }
        self.bytes.truncate(len.div_ceil(8));
        Bits { len, bytes: self.bytes }
    }
}

/// Pads up to four bytes with zeros.
fn word_of(bytes: &[u8]) -> [u8; 4] {
    let mut word = [0; 4];
    word[..bytes.len()].copy_from_slice(bytes);
    word
}

/// Returns the bits of `value` in [`Writer::put_signed`], without its length.
pub(super) fn signed_width(value: i64) -> u32 {
    let width = if value == 0 { 0 } else { 65 - (value ^ value >> 63).leading_zeros() };
    debug_assert!(width < 64, "{value} is too large for a chunk");
    width
}

/// Reader of bits. Checks every read, except `take`.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    /// Creates a reader of the bits from `at` to `end`, if there are that many.
    pub(super) fn new(bits: &'a Bits, at: usize, end: usize) -> Result<Self, Corrupt> {
        if at > end || end > bits.len || bits.bytes.len() != bits.len.div_ceil(8) {
            return Err(Corrupt(format!("bits {at} to {end} of {} in {} bytes", bits.len, bits.bytes.len())));
        }
        Ok(Self { bytes: &bits.bytes, at, end })
    }

    /// Returns the number of unread bits.
    pub(super) fn left(&self) -> usize {
        self.end - self.at
    }

    /// Splits the last `len` bits off into another reader.
    pub(super) fn split_end(&mut self, len: usize) -> Result<Self, Corrupt> {
        self.require(len)?;
        self.end -= len;
        Ok(Self { bytes: self.bytes, at: self.end, end: self.end + len })
    }

    pub(super) fn require(&self, len: usize) -> Result<(), Corrupt> {
        if len > self.left() {
            return Err(Corrupt(format!("{len} bits wanted where {} are left", self.left())));
        }
        Ok(())
    }

    /// Reads the next `width` bits, at most 63.
    #[inline]
    pub(super) fn get(&mut self, width: u32) -> Result<u64, Corrupt> {
        self.require(width as usize)?;
        Ok(self.take(width))
    }

    /// Reads the next `width` bits, whose presence the caller has checked.
    #[inline]
    pub(super) fn take(&mut self, width: u32) -> u64 {
        debug_assert!(width < 64 && width as usize <= self.left());
        if width == 0 {
            return 0;
        }
        let (first, shift) = (self.at / 8, (self.at % 8) as u32);
        self.at += width as usize;
        let Some(nine) = self.bytes.get(first..).and_then(<[u8]>::first_chunk::<9>) else {
            return self.take_at_end(first, shift, width);
        };
        window(*nine, shift, width)
    }

    #[cold]
    fn take_at_end(&self, first: usize, shift: u32, width: u32) -> u64 {
        let mut nine = [0; 9];
        let last = self.bytes.get(first..).unwrap_or_default();
        let count = last.len().min(9);
        nine[..count].copy_from_slice(&last[..count]);
        window(nine, shift, width)
    }

    pub(super) fn get_unsigned(&mut self) -> Result<u32, Corrupt> {
        let width = self.get(5)? as u32;
        Ok(self.get(width)? as u32)
    }

    pub(super) fn get_signed(&mut self) -> Result<i64, Corrupt> {
        let width = self.get(6)? as u32;
        let raw = self.get(width)?;
        Ok(if width == 0 { 0 } else { (raw << (64 - width)) as i64 >> (64 - width) })
    }

    /// Returns the number of set bits among the unread ones.
    pub(super) fn ones(&self) -> usize {
        let mut rest = self.clone();
        let mut ones = 0;
        // First up to a whole byte, then by bytes, then the last few bits.
        let head = rest.left().min((8 - rest.at % 8) % 8);
        ones += rest.take(head as u32).count_ones() as usize;
        let whole = rest.left() / 8;
        let bytes = &rest.bytes[rest.at / 8..rest.at / 8 + whole];
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            ones += word.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)).count_ones() as usize;
        }
        ones += words.remainder().iter().map(|byte| byte.count_ones() as usize).sum::<usize>();
        rest.at += whole * 8;
        ones + rest.take(rest.left() as u32).count_ones() as usize
    }
}

/// Returns `width` bits, 1 to 63, after the first `shift` bits, 0 to 7.
#[inline]
fn window(nine: [u8; 9], shift: u32, width: u32) -> u64 {
    let [head @ .., last] = nine;
    let word = u64::from_be_bytes(head) << shift | u64::from(last) >> (8 - shift);
    word >> (64 - width)
}
