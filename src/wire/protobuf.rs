//! A scanner of protobuf's wire format that borrows from the message and builds none.
//!
//! It is used for the one message of which millions are read. For everything else, `prost` derives the messages.
//! Source: protobuf.dev, "Encoding".

use prost::encoding::decode_varint;
use thiserror::Error;

/// Error of bytes that are no such message; a retry with the same bytes cannot succeed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{what} at byte {offset} of the message")]
pub struct DecodeError {
    /// Start of the faulty field or value, in bytes from the start of the decoded message.
    pub offset: usize,
    /// The fault.
    pub what: &'static str,
}

/// Payload of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2: a string, bytes, or a message.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32,
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    /// Field number, 1 or more.
    pub(crate) number: u32,
    /// Payload.
    pub(crate) value: Value<'a>,
    /// Start of its tag, for errors.
    pub(crate) offset: usize,
}

/// Reader of one field after another.
#[derive(Clone, Debug)]
pub(crate) struct Scanner<'a> {
    rest: &'a [u8],
    /// End of `rest`, counted like the offsets of errors.
    end: usize,
}

impl<'a> Scanner<'a> {
    /// Returns a scanner of a whole message.
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message, end: message.len() }
    }

    /// Returns a scanner of a message inside another: the payload of the field that this scanner has just read.
    #[inline]
    pub(crate) fn nested(&self, message: &'a [u8]) -> Self {
        Self { rest: message, end: self.offset() }
    }

    /// Returns the start of the next field.
    #[inline]
    pub(crate) fn offset(&self) -> usize {
        self.end - self.rest.len()
    }

    /// Returns the next field, or `None` at the end of the message.
    ///
    /// Inlined by force: its result then stays in registers, which makes decoding three times as fast.
    #[inline(always)]
    pub(crate) fn next_field(&mut self) -> Result<Option<Field<'a>>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let offset = self.offset();
        let tag = self.varint("truncated or overlong tag")?;
        let number = match u32::try_from(tag) {
            Ok(tag) if tag >= 8 => tag >> 3,
            _ => {
                return Err(DecodeError { offset, what: "field number out of range" });
            }
        };
        let value = match tag & 7 {
            0 => Value::Varint(self.varint("truncated or overlong varint")?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = self.varint("truncated or overlong length")?;
                Value::Bytes(self.take(len)?)
            }
            5 => {
                self.array::<4>()?;
                Value::Fixed32
            }
            3 | 4 => {
                return Err(DecodeError { offset, what: "group, which no message here has" });
            }
            _ => {
                return Err(DecodeError { offset, what: "unknown wire type" });
            }
        };
        Ok(Some(Field { number, value, offset }))
    }

    /// Skips fields with the one-byte `tag` of wire type 2 while they are short. [`Scanner::next_field`] would skip
    /// them too; this is faster for fields that come in runs and are read later, if at all.
    #[inline(always)]
    pub(crate) fn skip_run(&mut self, tag: u8) {
        while let [first, len @ ..0x80, rest @ ..] = self.rest
            && *first == tag
            && let Some(rest) = rest.get(usize::from(*len)..)
        {
            self.rest = rest;
        }
    }

    /// Reads a varint. Tags and lengths usually have one or two bytes, which is worth a shortcut that the compiler can
    /// inline.
    #[inline(always)]
    fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        match self.rest {
            [byte @ ..0x80, rest @ ..] => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            [low, high @ ..0x80, rest @ ..] => {
                self.rest = rest;
                Ok(u64::from(low & 0x7f) | u64::from(*high) << 7)
            }
            _ => self.long_varint(what),
        }
    }

    fn long_varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let offset = self.offset();
        decode_varint(&mut self.rest).map_err(|_| DecodeError { offset, what })
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((array, rest)) = self.rest.split_first_chunk() else {
            return Err(DecodeError { offset: self.offset(), what: "truncated fixed-width value" });
        };
        self.rest = rest;
        Ok(*array)
    }

    #[inline]
    fn take(&mut self, len: u64) -> Result<&'a [u8], DecodeError> {
        let split = usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len));
        let Some((taken, rest)) = split else {
            return Err(DecodeError { offset: self.offset(), what: "field longer than its message" });
        };
        self.rest = rest;
        Ok(taken)
    }
}

impl<'a> Field<'a> {
    /// Returns the payload of a field that has wire type 2 in the schema.
    #[inline]
    pub(crate) fn bytes(&self) -> Result<&'a [u8], DecodeError> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong_type()),
        }
    }

    /// Returns the payload of a field that is a `double` in the schema, bit for bit.
    #[inline]
    pub(crate) fn double(&self) -> Result<f64, DecodeError> {
        match self.value {
            Value::Fixed64(bits) => Ok(f64::from_bits(bits)),
            _ => Err(self.wrong_type()),
        }
    }

    /// Returns the payload of a field that is an `int64` in the schema.
    #[inline]
    pub(crate) fn int64(&self) -> Result<i64, DecodeError> {
        match self.value {
            Value::Varint(bits) => Ok(bits.cast_signed()),
            _ => Err(self.wrong_type()),
        }
    }

    /// Returns the payload of a field that is a `uint32` in the schema. Higher bits are dropped, as the encoding demands.
    #[inline]
    pub(crate) fn uint32(&self) -> Result<u32, DecodeError> {
        match self.value {
            #[expect(clippy::cast_possible_truncation, reason = "demanded")]
            Value::Varint(bits) => Ok(bits as u32),
            _ => Err(self.wrong_type()),
        }
    }

    /// Returns the payload of a field that is a `sint32` in the schema. Higher bits are dropped, as the encoding demands.
    pub(crate) fn sint32(&self) -> Result<i32, DecodeError> {
        let bits = self.uint32()?;
        Ok((bits >> 1).cast_signed() ^ -(bits & 1).cast_signed())
    }

    /// Calls `each` with every number of a field that is a repeated `sint64` in the schema: one, or many if it is packed.
    pub(crate) fn sint64s(&self, mut each: impl FnMut(i64)) -> Result<(), DecodeError> {
        let unfold = |bits: u64| (bits >> 1).cast_signed() ^ -(bits & 1).cast_signed();
        match self.value {
            Value::Varint(bits) => each(unfold(bits)),
            _ => {
                let mut packed = Scanner::new(self.bytes()?);
                while !packed.rest.is_empty() {
                    let bits = packed.varint("").map_err(|_| self.malformed("truncated or overlong packed number"))?;
                    each(unfold(bits));
                }
            }
        }
        Ok(())
    }

    /// Calls `each` with every number of a field that is a repeated `double` in the schema: one, or many if it is packed.
    pub(crate) fn doubles(&self, mut each: impl FnMut(f64)) -> Result<(), DecodeError> {
        match self.value {
            Value::Fixed64(bits) => each(f64::from_bits(bits)),
            _ => {
                let (numbers, rest) = self.bytes()?.as_chunks();
                if !rest.is_empty() {
                    return Err(self.malformed("truncated packed number"));
                }
                numbers.iter().for_each(|bytes| each(f64::from_le_bytes(*bytes)));
            }
        }
        Ok(())
    }

    fn malformed(&self, what: &'static str) -> DecodeError {
        DecodeError { offset: self.offset, what }
    }

    fn wrong_type(&self) -> DecodeError {
        DecodeError { offset: self.offset, what: "known field of the wrong wire type" }
    }
}
