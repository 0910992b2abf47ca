//! The values of one series in few bits: as integers on a scale, or as indices of floats kept as they are.
//!
//! A series is its scale (two bits and a parameter), whether some values are *exceptions* (one bit), the positions and the
//! indices of those, and a list of integers. Whatever is written was compared bit by bit with what it will be read as.

use std::collections::HashMap;

use super::Corrupt;
use super::bits::{Reader, Writer};
use super::integers::{self, Lists, blocks_cost, read_blocks, read_positions, unsigned_cost, write_blocks};

/// Every integer up to here is a float, and so is every quotient and product that SQL forms of it, rounded as ours.
const INTEGER_MAX: i64 = 1 << 53;

/// From here on every float is an integer.
const FRACTIONLESS: f64 = (1_i64 << 52) as f64;

/// Exact as floats, though fewer would do: 15 digits are what every float keeps.
const EXPONENT_MAX: u8 = 15;

/// Exponents of decimals that somebody meant; beyond, a sum that was rounded looks like one too.
const EXPONENT_PLAIN: u8 = 9;

/// Decimals with integers below this need no better scale.
const INTEGER_PLAIN: i64 = 1 << 40;

/// Powers of two that SQL makes by shifting: 2^62 twice, or once the other way.
const POWER_MIN: i16 = -62;
const POWER_MAX: i16 = 124;

const SCALE_BITS: u32 = 2;
const EXPONENT_BITS: u32 = 4;
const POWER_BITS: u32 = 8;

/// 10^e.
const TENS: [f64; 16] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];

/// The float nearest to 10^-e.
const TENTHS: [f64; 16] =
    [1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-15];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    /// Integers divided by 10^e.
    Decimal(u8),
    /// Integers times the float nearest to 10^-e: what comes of exporters that multiply.
    Product(u8),
    /// Integers divided by 2^k: floats of full precision, whose mantissas change in few bits.
    Binary(i16),
    /// Indices of floats of the row.
    Dictionary,
}

impl Scale {
    /// The integer that stands for exactly this float.
    #[inline]
    fn integer(self, value: f64) -> Option<i64> {
        let scaled = match self {
            Self::Decimal(exponent) | Self::Product(exponent) => value * TENS[usize::from(exponent)],
            Self::Binary(power) => value * power_of_two(power),
            Self::Dictionary => return None,
        };
        // To the nearest; from 2^52 there is nothing to round. A cast is bounded and makes zero of NaN.
        let half = if scaled.abs() < FRACTIONLESS { 0.5 } else { 0.0 };
        let integer = (scaled + f64::copysign(half, scaled)) as i64;
        let exact = integer.unsigned_abs() < INTEGER_MAX as u64 && self.float(integer).to_bits() == value.to_bits();
        exact.then_some(integer)
    }

    /// The float that an integer stands for.
    #[inline]
    fn float(self, integer: i64) -> f64 {
        match self {
            Self::Decimal(exponent) => integer as f64 / TENS[usize::from(exponent)],
            Self::Product(exponent) => integer as f64 * TENTHS[usize::from(exponent)],
            Self::Binary(power) => integer as f64 * power_of_two(-power),
            Self::Dictionary => f64::NAN,
        }
    }
}

/// 2^power, a normal float.
#[inline]
fn power_of_two(power: i16) -> f64 {
    f64::from_bits(((i64::from(power) + 1023) as u64) << 52)
}

/// A series on a scale.
struct Fit {
    scale: Scale,
    /// One for each value. That of an exception is its neighbour's.
    integers: Vec<i64>,
    /// Positions of values that the scale has no integer for.
    exceptions: Vec<usize>,
}

/// Floats of a row that are kept as they are, none twice.
#[derive(Debug, Default)]
pub(super) struct Floats {
    pub(super) values: Vec<f64>,
    indices: HashMap<u64, usize>,
}

impl Floats {
    fn index(&mut self, value: f64) -> i64 {
        let next = self.values.len();
        let index = *self.indices.entry(value.to_bits()).or_insert(next);
        if index == next {
            self.values.push(value);
        }
        index as i64
    }

    /// Forgets all but the first `count`.
    pub(super) fn truncate(&mut self, count: usize) {
        for value in self.values.drain(count..) {
            self.indices.remove(&value.to_bits());
        }
    }

    /// The bits that these would take.
    fn cost(&self, values: impl Iterator<Item = f64>) -> usize {
        let mut new: Vec<_> = values.map(f64::to_bits).filter(|bits| !self.indices.contains_key(bits)).collect();
        new.sort_unstable();
        new.dedup();
        new.len() * 64
    }
}

/// Writes the values of a series, one or more.
pub(super) fn write(values: &[f64], lists: &mut Lists, floats: &mut Floats, out: &mut Writer) {
    let fit = choose(values, lists, floats);
    let (number, parameter, width) = match fit.scale {
        Scale::Decimal(exponent) => (0, u64::from(exponent), EXPONENT_BITS),
        Scale::Product(exponent) => (1, u64::from(exponent), EXPONENT_BITS),
        Scale::Binary(power) => (2, (power - POWER_MIN) as u64, POWER_BITS),
        Scale::Dictionary => (3, 0, 0),
    };
    out.put(number, SCALE_BITS);
    out.put(parameter, width);
    out.put(u64::from(!fit.exceptions.is_empty()), 1);
    if !fit.exceptions.is_empty() {
        out.put_unsigned(fit.exceptions.len() as u32);
        write_blocks(&distances(&fit.exceptions), out);
        let indices: Vec<_> = fit.exceptions.iter().map(|position| floats.index(values[*position])).collect();
        write_blocks(&indices, out);
    }
    match fit.scale {
        Scale::Dictionary => {
            let indices: Vec<_> = values.iter().map(|value| floats.index(*value)).collect();
            lists.write(&indices, out);
        }
        _ => lists.write(&fit.integers, out),
    }
}

/// Reads what [`write()`] wrote, `count` values, one or more. `integers` is memory to use.
pub(super) fn read(
    from: &mut Reader<'_>,
    count: usize,
    floats: &[f64],
    integers: &mut Vec<i64>,
) -> Result<Vec<f64>, Corrupt> {
    let scale = match from.get(SCALE_BITS)? {
        0 => Scale::Decimal(from.get(EXPONENT_BITS)? as u8),
        1 => Scale::Product(from.get(EXPONENT_BITS)? as u8),
        2 => match from.get(POWER_BITS)? as i16 + POWER_MIN {
            power @ ..=POWER_MAX => Scale::Binary(power),
            power => return Err(Corrupt(format!("there is no scale 2^{power}"))),
        },
        _ => Scale::Dictionary,
    };
    let (mut exceptions, mut indices) = (Vec::new(), Vec::new());
    if from.get(1)? == 1 {
        read_positions(from, count, &mut exceptions)?;
        read_blocks(from, exceptions.len(), &mut indices)?;
    }
    integers::read(from, count, integers)?;
    let kept = |index: i64| {
        let float = usize::try_from(index).ok().and_then(|index| floats.get(index));
        float.copied().ok_or_else(|| Corrupt(format!("float {index} of {}", floats.len())))
    };
    let mut values = match scale {
        Scale::Dictionary => integers.iter().map(|index| kept(*index)).collect::<Result<Vec<_>, _>>()?,
        _ => {
            if let Some(integer) = integers.iter().find(|integer| integer.unsigned_abs() >= INTEGER_MAX as u64) {
                return Err(Corrupt(format!("{integer} is no mantissa")));
            }
            integers.iter().map(|integer| scale.float(*integer)).collect()
        }
    };
    for (position, index) in exceptions.iter().zip(indices) {
        values[position - 1] = kept(index)?;
    }
    Ok(values)
}

/// The smallest of the scales that come into question.
fn choose(values: &[f64], lists: &mut Lists, floats: &Floats) -> Fit {
    let decimal = fit(values, Scale::Decimal, 0, EXPONENT_PLAIN);
    let decimal = match decimal {
        Some(fit) if is_plain(&fit, values) => return fit,
        other => other,
    };
    let candidates = [
        decimal,
        fit(values, Scale::Decimal, EXPONENT_PLAIN + 1, EXPONENT_MAX),
        fit(values, Scale::Product, 1, EXPONENT_PLAIN),
        binary(values),
    ];
    let dictionary = Fit { scale: Scale::Dictionary, integers: Vec::new(), exceptions: Vec::new() };
    let mut best = (dictionary_cost(values, lists, floats), dictionary);
    for fit in candidates.into_iter().flatten() {
        let mut cost = lists.cost(&fit.integers);
        if !fit.exceptions.is_empty() {
            // The indices are not known yet; they are near each other.
            cost += unsigned_cost(fit.exceptions.len()) + blocks_cost(&distances(&fit.exceptions));
            cost += fit.exceptions.len() * unsigned_cost(fit.exceptions.len());
            cost += floats.cost(fit.exceptions.iter().map(|position| values[*position]));
        }
        if cost < best.0 {
            best = (cost, fit);
        }
    }
    best.1
}

/// Whether no other scale can be expected to do better by much.
fn is_plain(fit: &Fit, values: &[f64]) -> bool {
    fit.exceptions.iter().all(|position| !is_ordinary(values[*position]))
        && (fit.scale == Scale::Decimal(0) || fit.integers.iter().all(|integer| integer.abs() < INTEGER_PLAIN))
}

/// Whether some scale may have an integer for it.
fn is_ordinary(value: f64) -> bool {
    value.is_finite() && value.to_bits() != (-0.0_f64).to_bits()
}

/// The series on the least of the scales from `least` to `most` that fits all values which any of them fits; `None` when
/// too many ordinary values are fit by none.
fn fit(values: &[f64], scale: impl Fn(u8) -> Scale, least: u8, most: u8) -> Option<Fit> {
    let mut exponent = least;
    let mut fit = Fit { scale: scale(exponent), integers: Vec::with_capacity(values.len()), exceptions: Vec::new() };
    'again: loop {
        fit.scale = scale(exponent);
        fit.integers.clear();
        fit.exceptions.clear();
        let mut unfit = 0;
        for (position, value) in values.iter().enumerate() {
            if let Some(integer) = fit.scale.integer(*value) {
                fit.integers.push(integer);
                continue;
            }
            if is_ordinary(*value) {
                if let Some(next) = (exponent + 1..=most).find(|next| scale(*next).integer(*value).is_some()) {
                    exponent = next;
                    continue 'again;
                }
                unfit += 1;
                if unfit > 2 + position / 4 {
                    return None;
                }
            }
            fit.put_odd(position);
        }
        return fit.finish();
    }
}

/// The series on the scale that just keeps the largest value whole.
fn binary(values: &[f64]) -> Option<Fit> {
    let (mut needed, mut possible) = (POWER_MIN, POWER_MAX);
    for value in values.iter().filter(|value| is_ordinary(**value) && **value != 0.0) {
        let exponent = (value.to_bits() >> 52 & 0x7ff) as i16 - 1075;
        if exponent < -1074 {
            // Subnormal.
            continue;
        }
        let mantissa = value.to_bits() & ((1 << 52) - 1) | 1 << 52;
        needed = needed.max(-exponent - mantissa.trailing_zeros() as i16);
        possible = possible.min(-exponent);
    }
    let power = needed.min(possible);
    if power < POWER_MIN {
        return None;
    }
    let mut fit =
        Fit { scale: Scale::Binary(power), integers: Vec::with_capacity(values.len()), exceptions: Vec::new() };
    for (position, value) in values.iter().enumerate() {
        match fit.scale.integer(*value) {
            Some(integer) => fit.integers.push(integer),
            None => fit.put_odd(position),
        }
    }
    fit.finish()
}

impl Fit {
    fn put_odd(&mut self, position: usize) {
        self.exceptions.push(position);
        self.integers.push(self.integers.last().copied().unwrap_or(0));
    }

    /// Gives exceptions values at the beginning the integer that follows. `None` when there is none.
    fn finish(mut self) -> Option<Self> {
        let ordinary = (0..).zip(&self.exceptions).find(|(place, position)| place != *position);
        let leading = ordinary.map_or(self.exceptions.len(), |(place, _)| place);
        let follows = *self.integers.get(leading)?;
        self.integers[..leading].fill(follows);
        Some(self)
    }
}

fn dictionary_cost(values: &[f64], lists: &mut Lists, floats: &Floats) -> usize {
    let cost = floats.cost(values.iter().copied());
    let mut indices = HashMap::new();
    let indices: Vec<_> = values
        .iter()
        .map(|value| {
            let next = floats.values.len() + indices.len();
            floats
                .indices
                .get(&value.to_bits())
                .copied()
                .unwrap_or_else(|| *indices.entry(value.to_bits()).or_insert(next)) as i64
        })
        .collect();
    cost + lists.cost(&indices)
}

/// Positions, from 0 and ascending, as [`read_positions`] wants them.
fn distances(positions: &[usize]) -> Vec<i64> {
    let mut last = -1;
    positions
        .iter()
        .map(|position| {
            let position = *position as i64;
            let distance = position - last;
            last = position;
            distance
        })
        .collect()
}
