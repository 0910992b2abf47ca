//! Values from the bytes of an input, for targets that take something else than bytes.

/// Reader of an input. After its end everything is zero.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let bytes = self.bytes(N);
        let mut array = [0; N];
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Returns a number from 0 to `max`, which is at most 65,535.
    pub(crate) fn up_to(&mut self, max: usize) -> usize {
        let number = if max < 256 { usize::from(self.byte()) } else { usize::from(u16::from_le_bytes(self.array())) };
        number % (max + 1)
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Returns any integer; one byte is enough for a small one.
    pub(crate) fn integer(&mut self) -> i64 {
        match self.byte() {
            0xff => i64::from_le_bytes(self.array()),
            0xfe => i64::from(i32::from_le_bytes(self.array())),
            0xfd => i64::from(i16::from_le_bytes(self.array())),
            small => i64::from(small.cast_signed()),
        }
    }

    /// Returns any float; one byte is enough for a small whole one, three for a decimal.
    pub(crate) fn float(&mut self) -> f64 {
        match self.byte() {
            0xff => f64::from_bits(u64::from_le_bytes(self.array())),
            0xfe => f64::from(i32::from_le_bytes(self.array())) / 1000.0,
            0xfd => f64::from(i16::from_le_bytes(self.array())) / 10.0,
            0xfc => f64::from_bits(prometheus_postgresql_adapter::model::sample::STALE_NAN_BITS),
            small => f64::from(small.cast_signed()),
        }
    }
}

/// The reverse of [`Input`], for seeds.
#[derive(Default)]
pub(crate) struct Output(pub(crate) Vec<u8>);

impl Output {
    pub(crate) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(crate) fn float(&mut self, float: f64) {
        self.0.push(0xff);
        self.0.extend(float.to_bits().to_le_bytes());
    }
}
