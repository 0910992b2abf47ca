//! Bit strings of sealed chunks, made by hand: only with the right check at its end a stream is read further.

use prometheus_postgresql_adapter::storage::chunk::Bits;

/// Returns the first `len` bits, or as many as there are.
pub(crate) fn bits(bytes: &[u8], len: usize) -> Bits {
    let len = len.min(bytes.len() * 8);
    let mut bytes = bytes[..len.div_ceil(8)].to_vec();
    if let Some(last) = bytes.last_mut() {
        *last &= 0xff << (bytes_to_bits(len) - len);
    }
    Bits { len, bytes }
}

fn bytes_to_bits(len: usize) -> usize {
    len.div_ceil(8) * 8
}

/// Appends the low `width` bits of `value`.
pub(crate) fn push(bits: &mut Bits, value: u64, width: u32) {
    for at in (0..width).rev() {
        if bits.len.is_multiple_of(8) {
            bits.bytes.push(0);
        }
        bits.bytes[bits.len / 8] |= (value >> at & 1) as u8 * (0x80 >> (bits.len % 8));
        bits.len += 1;
    }
}

/// Appends all bits of another string.
pub(crate) fn append(bits: &mut Bits, other: &Bits) {
    for at in 0..other.len {
        push(bits, u64::from(other.bytes[at / 8] >> (7 - at % 8) & 1), 1);
    }
}

/// Appends the check of a stream: the number of its set bits plus the place.
pub(crate) fn push_check(stream: &mut Bits, place: u32) {
    let ones: u32 = stream.bytes.iter().map(|byte| byte.count_ones()).sum();
    push(stream, u64::from((ones + place) % 256), 8);
}

/// Changes one bit, if there is any.
pub(crate) fn flip(bits: &mut Bits, at: usize) {
    if bits.len > 0 {
        let at = at % bits.len;
        bits.bytes[at / 8] ^= 0x80 >> (at % 8);
    }
}
