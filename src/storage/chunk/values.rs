//! Encodes the values of one series in few bits: as integers on a scale, or as indices of unchanged floats.
//!
//! A series has its scale (two bits and a parameter), one bit that is set if some values are *exceptions*, the
//! positions and the indices of those, and a list of integers; on a rounded scale a second one. Every written value was
//! compared bit by bit with the value that a reader will get.

use std::collections::HashMap;

use super::Corrupt;
use super::bits::{Reader, Writer};
use super::integers::{self, Lists, blocks_cost, read_blocks, read_positions, unsigned_cost, write_blocks};

/// Bound of integers. Every integer up to it is exact as a float, and SQL rounds every quotient and product of it in
/// the same way as this program.
const INTEGER_MAX: i64 = 1 << 53;

/// From this value on every float is an integer.
const FRACTIONLESS: f64 = (1_i64 << 52) as f64;

/// Largest exponent of a decimal scale. The powers of ten up to it are exact as floats, and every float keeps 15
/// digits.
const EXPONENT_MAX: u8 = 15;

/// Largest exponent of intended decimals. With larger exponents a rounded sum looks like a decimal too.
const EXPONENT_PLAIN: u8 = 9;

/// Decimals with integers below this need no better scale.
const INTEGER_PLAIN: i64 = 1 << 40;

/// Range of powers of two that SQL computes by shifting: 2^62 twice, or once in the other direction.
const POWER_MIN: i16 = -62;
const POWER_MAX: i16 = 124;

/// Parameter of a binary scale from which the scale is a rounded one: the exponent is added to it. A reader that does not
/// know rounded scales finds no power of two here.
const ROUNDED: u64 = 240;

/// Largest relative difference of a float to a decimal that is the result of rounding: some hundred units in the last
/// place, as a sum of many thousands of decimals may have.
const ROUNDING: f64 = 1.0 / (1_i64 << 44) as f64;

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
    /// Integers times the float nearest to 10^-e: the result of exporters that multiply.
    Product(u8),
    /// Integers divided by 2^k: floats of full precision whose mantissas change in few bits.
    Binary(i16),
    /// Integers divided by 10^e, plus rests divided by 2^k: sums of decimals, whose last bits come from rounding.
    Rounded(u8, i16),
    /// Indices of floats in the row.
    Dictionary,
}

impl Scale {
    /// Returns the integer that represents exactly this float.
    #[inline]
    fn integer(self, value: f64) -> Option<i64> {
        let scaled = match self {
            Self::Decimal(exponent) | Self::Product(exponent) => value * TENS[usize::from(exponent)],
            Self::Binary(power) => value * power_of_two(power),
            Self::Rounded(..) | Self::Dictionary => return None,
        };
        // Rounds to the nearest; from 2^52 on there is nothing to round. The cast saturates, and converts NaN to zero.
        let half = if scaled.abs() < FRACTIONLESS { 0.5 } else { 0.0 };
        let integer = (scaled + f64::copysign(half, scaled)) as i64;
        let exact = integer.unsigned_abs() < INTEGER_MAX as u64 && self.float(integer).to_bits() == value.to_bits();
        exact.then_some(integer)
    }

    /// Returns the float that an integer represents.
    #[inline]
    fn float(self, integer: i64) -> f64 {
        match self {
            Self::Decimal(exponent) => integer as f64 / TENS[usize::from(exponent)],
            Self::Product(exponent) => integer as f64 * TENTHS[usize::from(exponent)],
            Self::Binary(power) => integer as f64 * power_of_two(-power),
            Self::Rounded(..) | Self::Dictionary => f64::NAN,
        }
    }
}

/// Returns the float that an integer and a rest represent on a rounded scale.
#[inline]
fn rounded_float(exponent: u8, power: i16, integer: i64, rest: i64) -> f64 {
    Scale::Decimal(exponent).float(integer) + Scale::Binary(power).float(rest)
}

/// Returns 2^power, a normal float.
#[inline]
fn power_of_two(power: i16) -> f64 {
    f64::from_bits(((i64::from(power) + 1023) as u64) << 52)
}

/// The values of a series on a scale.
struct Fit {
    scale: Scale,
    /// One integer per value. An exception has the integer of its neighbour.
    integers: Vec<i64>,
    /// The same for the rests of a rounded scale; empty on all others.
    rests: Vec<i64>,
    /// Positions of values for which the scale has no integer.
    exceptions: Vec<usize>,
}

/// Floats of a row that are stored unchanged, without duplicates.
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

    /// Removes all but the first `count` floats.
    pub(super) fn truncate(&mut self, count: usize) {
        for value in self.values.drain(count..) {
            self.indices.remove(&value.to_bits());
        }
    }

    /// Returns the bits that these values would add.
    fn cost(&self, values: impl Iterator<Item = f64>) -> usize {
        let mut new: Vec<_> = values.map(f64::to_bits).filter(|bits| !self.indices.contains_key(bits)).collect();
        new.sort_unstable();
        new.dedup();
        new.len() * 64
    }
}

/// Writes the values of a series, at least one.
pub(super) fn write(values: &[f64], lists: &mut Lists, floats: &mut Floats, out: &mut Writer) {
    let fit = choose(values, lists, floats);
    let (number, parameter, width) = match fit.scale {
        Scale::Decimal(exponent) => (0, u64::from(exponent), EXPONENT_BITS),
        Scale::Product(exponent) => (1, u64::from(exponent), EXPONENT_BITS),
        Scale::Binary(power) => (2, (power - POWER_MIN) as u64, POWER_BITS),
        Scale::Rounded(exponent, power) => {
            (2, (ROUNDED + u64::from(exponent)) << POWER_BITS | (power - POWER_MIN) as u64, 2 * POWER_BITS)
        }
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
    if !fit.rests.is_empty() {
        lists.write(&fit.rests, out);
    }
}

/// Reads the `count` values, at least one, that [`write()`] wrote. `integers` is reusable memory.
pub(super) fn read(
    from: &mut Reader<'_>,
    count: usize,
    floats: &[f64],
    integers: &mut Vec<i64>,
) -> Result<Vec<f64>, Corrupt> {
    let scale = match from.get(SCALE_BITS)? {
        0 => Scale::Decimal(from.get(EXPONENT_BITS)? as u8),
        1 => Scale::Product(from.get(EXPONENT_BITS)? as u8),
        2 => match from.get(POWER_BITS)? {
            exponent @ ROUNDED.. => Scale::Rounded((exponent - ROUNDED) as u8, read_power(from.get(POWER_BITS)?)?),
            power => Scale::Binary(read_power(power)?),
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
        Scale::Rounded(exponent, power) => {
            let mut rests = Vec::new();
            integers::read(from, count, &mut rests)?;
            check_mantissas(integers)?;
            check_mantissas(&rests)?;
            integers.iter().zip(rests).map(|(integer, rest)| rounded_float(exponent, power, *integer, rest)).collect()
        }
        _ => {
            check_mantissas(integers)?;
            integers.iter().map(|integer| scale.float(*integer)).collect()
        }
    };
    for (position, index) in exceptions.iter().zip(indices) {
        values[position - 1] = kept(index)?;
    }
    Ok(values)
}

fn read_power(parameter: u64) -> Result<i16, Corrupt> {
    match parameter as i16 + POWER_MIN {
        power @ ..=POWER_MAX => Ok(power),
        power => Err(Corrupt(format!("there is no scale 2^{power}"))),
    }
}

fn check_mantissas(integers: &[i64]) -> Result<(), Corrupt> {
    match integers.iter().find(|integer| integer.unsigned_abs() >= INTEGER_MAX as u64) {
        Some(integer) => Err(Corrupt(format!("{integer} is no mantissa"))),
        None => Ok(()),
    }
}

/// Returns the candidate scale that takes the fewest bits.
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
        rounded(values),
    ];
    let dictionary = Fit::new(Scale::Dictionary, 0);
    let mut best = (dictionary_cost(values, lists, floats), dictionary);
    for fit in candidates.into_iter().flatten() {
        let mut cost = lists.cost(&fit.integers);
        if !fit.rests.is_empty() {
            cost += POWER_BITS as usize + lists.cost(&fit.rests);
        }
        if !fit.exceptions.is_empty() {
            // The indices are not known yet, but are close to each other.
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

/// Returns `true` if no other scale is expected to be much better.
fn is_plain(fit: &Fit, values: &[f64]) -> bool {
    fit.exceptions.iter().all(|position| !is_ordinary(values[*position]))
        && (fit.scale == Scale::Decimal(0) || fit.integers.iter().all(|integer| integer.abs() < INTEGER_PLAIN))
}

/// Returns `true` if some scale may have an integer for the value.
fn is_ordinary(value: f64) -> bool {
    value.is_finite() && value.to_bits() != (-0.0_f64).to_bits()
}

/// Returns the series on the smallest scale from `least` to `most` that fits all values which any of these scales fits;
/// `None` if too many ordinary values are fitted by none.
fn fit(values: &[f64], scale: impl Fn(u8) -> Scale, least: u8, most: u8) -> Option<Fit> {
    let mut exponent = least;
    let mut fit = Fit::new(scale(exponent), values.len());
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

/// Returns the series on the binary scale with the smallest power at which all values are integers, or with a smaller
/// power at which the largest value is still below 2^53.
fn binary(values: &[f64]) -> Option<Fit> {
    let (mut needed, mut possible) = (POWER_MIN, POWER_MAX);
    for (least, most) in values.iter().filter(|value| is_ordinary(**value)).filter_map(|value| powers(*value)) {
        needed = needed.max(least);
        possible = possible.min(most);
    }
    let power = needed.min(possible);
    if power < POWER_MIN {
        return None;
    }
    let mut fit = Fit::new(Scale::Binary(power), values.len());
    for (position, value) in values.iter().enumerate() {
        match fit.scale.integer(*value) {
            Some(integer) => fit.integers.push(integer),
            None => fit.put_odd(position),
        }
    }
    fit.finish()
}

/// Returns the smallest power of two by which the value becomes an integer, and the largest by which that is below 2^53;
/// `None` for zero and subnormal floats.
fn powers(value: f64) -> Option<(i16, i16)> {
    let exponent = (value.to_bits() >> 52 & 0x7ff) as i16 - 1075;
    if exponent < -1074 {
        return None;
    }
    let mantissa = value.to_bits() & ((1 << 52) - 1) | 1 << 52;
    Some((-exponent - mantissa.trailing_zeros() as i16, -exponent))
}

/// Returns the series on the rounded scale with the smallest exponent at which all values are near decimals, and with the
/// power that their rests need; `None` if there is none, or no rest.
fn rounded(values: &[f64]) -> Option<Fit> {
    let nearest = |exponent: u8, value: f64| {
        let scaled = value * TENS[usize::from(exponent)];
        let integer = (scaled + f64::copysign(0.5, scaled)) as i64;
        // The difference of floats that are so close is exact.
        (integer, value - Scale::Decimal(exponent).float(integer))
    };
    let mut exponent = 0;
    for value in values.iter().filter(|value| is_ordinary(**value)) {
        while nearest(exponent, *value).1.abs() > value.abs() * ROUNDING {
            exponent += 1;
            if exponent > EXPONENT_PLAIN {
                return None;
            }
        }
    }
    let rests = values.iter().filter(|value| is_ordinary(**value)).map(|value| nearest(exponent, *value).1);
    let power = rests.filter_map(powers).map(|(least, _)| least).max()?;
    if !(POWER_MIN..=POWER_MAX).contains(&power) {
        return None;
    }
    let mut fit = Fit::new(Scale::Rounded(exponent, power), values.len());
    for (position, value) in values.iter().enumerate() {
        let (integer, rest) = nearest(exponent, *value);
        let rest = (rest * power_of_two(power)) as i64;
        let are_exact = integer.unsigned_abs().max(rest.unsigned_abs()) < INTEGER_MAX as u64;
        if are_exact && rounded_float(exponent, power, integer, rest).to_bits() == value.to_bits() {
            fit.integers.push(integer);
            fit.rests.push(rest);
        } else {
            fit.rests.push(fit.rests.last().copied().unwrap_or(0));
            fit.put_odd(position);
        }
    }
    fit.finish()
}

impl Fit {
    fn new(scale: Scale, count: usize) -> Self {
        Self { scale, integers: Vec::with_capacity(count), rests: Vec::new(), exceptions: Vec::new() }
    }

    fn put_odd(&mut self, position: usize) {
        self.exceptions.push(position);
        self.integers.push(self.integers.last().copied().unwrap_or(0));
    }

    /// Gives exceptions at the beginning the integer that follows them. Returns `None` if there is none.
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

/// Converts ascending positions, from 0, to the form that [`read_positions`] reads.
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
