//! Encodes a list of integers in few bits, by the cheapest of several shapes.
//!
//! Every list begins with its shape in three bits, and the parameters of the shape. The number of integers is stored
//! elsewhere. A *block* has up to [`BLOCK`] integers: their width (six bits), the least of them, and for each integer
//! its difference to the least in that width. The few integers that need more bits are *patched*. In a block of
//! [`PATCHED_MIN`] or more, one bit says if there are patches. If so, the number of additional bits (six) and the
//! number of patches less one (seven) follow it. After the other integers come for each patch its place in the block
//! (seven) and its upper bits. Source: Zukowski and others, Super-Scalar RAM-CPU Cache Compression, 2006 (patched frame
//! of reference).

use super::Corrupt;
use super::bits::{Reader, Writer, signed_width};

/// Maximum number of integers that share a width.
pub(super) const BLOCK: usize = 128;

/// Largest magnitude of an integer in a list: differences of differences of such integers fit 62 bits and a sign.
pub(super) const MAGNITUDE_MAX: i64 = 1 << 59;

const SHAPE_BITS: u32 = 3;
const WIDTH_BITS: u32 = 6;
/// Bits of a place in a block, or of a number of patches less one.
const PLACE_BITS: u32 = 7;
/// Minimum length of a block with patches. In a shorter block they would hardly ever be worth a bit.
const PATCHED_MIN: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// The first integer; all others are equal to it.
    Constant,
    /// The first integer, and the step to each next one.
    Line,
    /// Blocks of the integers themselves.
    Plain,
    /// The first integer; blocks of the differences.
    Deltas,
    /// The first integer, the first difference; blocks of the differences of the differences.
    Deltas2,
    /// The first integer, the usual step; the number of steps that differ; blocks of their positions (from 1, each as
    /// the distance from the one before); blocks of their differences to the usual step.
    Steps,
    /// An offset, a factor, and a list of another shape: each integer is the offset plus a multiple of the factor.
    /// Sizes are multiples of pages, packet lengths multiples of words.
    Multiples,
}

const SHAPES: [Shape; 7] =
    [Shape::Constant, Shape::Line, Shape::Plain, Shape::Deltas, Shape::Deltas2, Shape::Steps, Shape::Multiples];

/// Writes lists. Reuses its memory for the next list.
#[derive(Debug, Default)]
pub(super) struct Lists {
    deltas: Vec<i64>,
    deltas2: Vec<i64>,
    distances: Vec<i64>,
    changes: Vec<i64>,
    reduced: Vec<i64>,
}

impl Lists {
    /// Returns the number of bits that [`Lists::write`] takes.
    pub(super) fn cost(&mut self, integers: &[i64]) -> usize {
        let flat = self.plan(integers).1;
        self.reduce(integers).map_or(flat, |(_, cost)| flat.min(cost))
    }

    /// Writes a list of at least one integer, each within [`MAGNITUDE_MAX`].
    pub(super) fn write(&mut self, integers: &[i64], out: &mut Writer) {
        if let Some((factor, cost)) = self.reduce(integers)
            && cost < self.plan(integers).1
        {
            out.put(Shape::Multiples as u64, SHAPE_BITS);
            out.put_signed(integers[0]);
            out.put_signed(factor);
            let reduced = std::mem::take(&mut self.reduced);
            self.write_flat(&reduced, out);
            self.reduced = reduced;
        } else {
            self.write_flat(integers, out);
        }
    }

    /// Returns the common factor of all differences, if there is one, and the bits of the list as multiples of it.
    /// Leaves the multiples in `self`.
    fn reduce(&mut self, integers: &[i64]) -> Option<(i64, usize)> {
        let mut factor = 0;
        for pair in integers.windows(2) {
            factor = greatest_common_divisor(factor, pair[0].abs_diff(pair[1]));
            if factor == 1 {
                return None;
            }
        }
        let factor = i64::try_from(factor).ok().filter(|factor| *factor > 1)?;
        let first = integers[0];
        let mut reduced = std::mem::take(&mut self.reduced);
        reduced.clear();
        reduced.extend(integers.iter().map(|integer| (integer - first) / factor));
        let cost = SHAPE_BITS as usize + signed_cost(first) + signed_cost(factor) + self.plan(&reduced).1;
        self.reduced = reduced;
        Some((factor, cost))
    }

    fn write_flat(&mut self, integers: &[i64], out: &mut Writer) {
        let (shape, _) = self.plan(integers);
        out.put(shape as u64, SHAPE_BITS);
        match shape {
            Shape::Constant => out.put_signed(integers[0]),
            Shape::Line => {
                out.put_signed(integers[0]);
                out.put_signed(self.deltas[0]);
            }
            Shape::Plain | Shape::Multiples => write_blocks(integers, out),
            Shape::Deltas => {
                out.put_signed(integers[0]);
                write_blocks(&self.deltas, out);
            }
            Shape::Deltas2 => {
                out.put_signed(integers[0]);
                out.put_signed(self.deltas[0]);
                write_blocks(&self.deltas2, out);
            }
            Shape::Steps => {
                out.put_signed(integers[0]);
                out.put_signed(majority(&self.deltas));
                out.put_unsigned(self.changes.len() as u32);
                write_blocks(&self.distances, out);
                write_blocks(&self.changes, out);
            }
        }
    }

    /// Returns the cheapest shape and its bits. Leaves the parts of the shape in `self`.
    fn plan(&mut self, integers: &[i64]) -> (Shape, usize) {
        debug_assert!(integers.iter().all(|integer| integer.abs() <= MAGNITUDE_MAX));
        let first = integers[0];
        let constant = SHAPE_BITS as usize + signed_cost(first);
        if integers.iter().all(|integer| *integer == first) {
            return (Shape::Constant, constant);
        }
        self.deltas.clear();
        self.deltas.extend(integers.windows(2).map(|pair| pair[1] - pair[0]));
        let line = constant + signed_cost(self.deltas[0]);
        if self.deltas.iter().all(|delta| *delta == self.deltas[0]) {
            return (Shape::Line, line);
        }
        self.deltas2.clear();
        self.deltas2.extend(self.deltas.windows(2).map(|pair| pair[1] - pair[0]));
        let usual = majority(&self.deltas);
        self.distances.clear();
        self.changes.clear();
        let mut last = 0;
        for (position, delta) in (1..).zip(&self.deltas) {
            if *delta != usual {
                self.distances.push(position - last);
                self.changes.push(*delta - usual);
                last = position;
            }
        }
        let steps = constant + signed_cost(usual) + unsigned_cost(self.changes.len());
        let costs = [
            (Shape::Plain, SHAPE_BITS as usize + blocks_cost(integers)),
            (Shape::Deltas, constant + blocks_cost(&self.deltas)),
            (Shape::Deltas2, line + blocks_cost(&self.deltas2)),
            (Shape::Steps, steps + blocks_cost(&self.distances) + blocks_cost(&self.changes)),
        ];
        costs.into_iter().min_by_key(|(_, cost)| *cost).unwrap_or((Shape::Plain, usize::MAX))
    }
}

/// Reads the `count` integers, at least one, that [`Lists::write`] wrote, into `out`.
pub(super) fn read(from: &mut Reader<'_>, count: usize, out: &mut Vec<i64>) -> Result<(), Corrupt> {
    out.clear();
    let shape = read_shape(from)?;
    if shape != Shape::Multiples {
        return read_flat(from, shape, count, out);
    }
    let (offset, factor) = (from.get_signed()?, from.get_signed()?);
    let shape = read_shape(from)?;
    read_flat(from, shape, count, out)?;
    for integer in out {
        *integer = offset.wrapping_add(integer.wrapping_mul(factor));
    }
    Ok(())
}

fn read_shape(from: &mut Reader<'_>) -> Result<Shape, Corrupt> {
    let number = from.get(SHAPE_BITS)?;
    SHAPES.get(number as usize).copied().ok_or_else(|| Corrupt(format!("there is no shape {number}")))
}

fn read_flat(from: &mut Reader<'_>, shape: Shape, count: usize, out: &mut Vec<i64>) -> Result<(), Corrupt> {
    match shape {
        Shape::Plain => return read_blocks(from, count, out),
        Shape::Multiples => return Err(Corrupt("multiples of multiples".into())),
        _ => {}
    }
    let first = from.get_signed()?;
    out.reserve(count);
    out.push(first);
    match shape {
        Shape::Constant | Shape::Plain | Shape::Multiples => out.resize(count, first),
        Shape::Line => {
            let step = from.get_signed()?;
            out.resize(count, step);
            sum(&mut out[..]);
        }
        Shape::Deltas => {
            read_blocks(from, count - 1, out)?;
            sum(&mut out[..]);
        }
        Shape::Deltas2 => {
            out.push(from.get_signed()?);
            if count < 2 {
                return Err(Corrupt(format!("differences of differences for {count} integers")));
            }
            read_blocks(from, count - 2, out)?;
            sum(&mut out[1..]);
            sum(&mut out[..]);
        }
        Shape::Steps => {
            let usual = from.get_signed()?;
            out.resize(count, usual);
            let (mut positions, mut changes) = (Vec::new(), Vec::new());
            read_positions(from, count - 1, &mut positions)?;
            read_blocks(from, positions.len(), &mut changes)?;
            for (position, change) in positions.iter().zip(&changes) {
                out[*position] = out[*position].wrapping_add(*change);
            }
            sum(&mut out[..]);
        }
    }
    Ok(())
}

/// Reads a count, and then that many positions from 1 to `last`, ascending.
pub(super) fn read_positions(from: &mut Reader<'_>, last: usize, out: &mut Vec<usize>) -> Result<(), Corrupt> {
    let count = from.get_unsigned()? as usize;
    if count > last {
        return Err(Corrupt(format!("{count} positions in {last}")));
    }
    let mut distances = Vec::new();
    read_blocks(from, count, &mut distances)?;
    out.clear();
    let mut position = 0_usize;
    for distance in distances {
        match usize::try_from(distance) {
            Ok(distance) if distance > 0 && distance <= last - position => position += distance,
            _ => return Err(Corrupt(format!("{distance} after position {position} of {last}"))),
        }
        out.push(position);
    }
    Ok(())
}

/// Writes integers in blocks; the list may be empty.
pub(super) fn write_blocks(integers: &[i64], out: &mut Writer) {
    for block in integers.chunks(BLOCK) {
        let Frame { least, width, extra, patches, .. } = Frame::of(block);
        let above = |integer: &i64| (integer - least) as u64;
        out.put(u64::from(width), WIDTH_BITS);
        out.put_signed(least);
        if block.len() >= PATCHED_MIN {
            out.put(u64::from(patches > 0), 1);
        }
        if patches > 0 {
            out.put(u64::from(extra), WIDTH_BITS);
            out.put(patches as u64 - 1, PLACE_BITS);
        }
        if width > 0 {
            for integer in block {
                out.put(above(integer) & ((1 << width) - 1), width);
            }
        }
        if patches > 0 {
            for (place, integer) in (0..).zip(block).filter(|(_, integer)| above(integer) >> width > 0) {
                out.put(place, PLACE_BITS);
                out.put(above(integer) >> width, extra);
            }
        }
    }
}

/// Reads `count` integers in blocks and appends them to `out`.
pub(super) fn read_blocks(from: &mut Reader<'_>, count: usize, out: &mut Vec<i64>) -> Result<(), Corrupt> {
    let mut left = count;
    while left > 0 {
        let block = left.min(BLOCK);
        let width = from.get(WIDTH_BITS)? as u32;
        let least = from.get_signed()?;
        let (mut extra, mut patches) = (0, 0);
        if block >= PATCHED_MIN && from.get(1)? == 1 {
            extra = from.get(WIDTH_BITS)? as u32;
            patches = from.get(PLACE_BITS)? as usize + 1;
            if width + extra > 63 {
                return Err(Corrupt(format!("integers of {width} and {extra} bits")));
            }
        }
        let first = out.len();
        from.require(block * width as usize)?;
        if width == 0 {
            out.resize(first + block, least);
        } else {
            out.extend((0..block).map(|_| least.wrapping_add(from.take(width) as i64)));
        }
        for _ in 0..patches {
            let place = from.get(PLACE_BITS)? as usize;
            let upper = from.get(extra)?;
            let integer =
                out[first..].get_mut(place).ok_or_else(|| Corrupt(format!("a patch at {place} of {block}")))?;
            *integer = integer.wrapping_add((upper << width) as i64);
        }
        left -= block;
    }
    Ok(())
}

/// Returns the number of bits that [`write_blocks`] takes.
pub(super) fn blocks_cost(integers: &[i64]) -> usize {
    integers.chunks(BLOCK).map(|block| Frame::of(block).cost).sum()
}

/// Parameters of a block.
struct Frame {
    least: i64,
    /// Bits of each integer's difference to the least.
    width: u32,
    /// Additional bits of patched integers.
    extra: u32,
    /// Number of patched integers.
    patches: usize,
    /// Bits of the whole block.
    cost: usize,
}

impl Frame {
    /// Returns the cheapest frame of one to [`BLOCK`] integers.
    fn of(block: &[i64]) -> Self {
        let least = block.iter().fold(i64::MAX, |least, integer| if *integer < least { *integer } else { least });
        let mut counts = [0_u16; 65];
        for integer in block {
            counts[64 - ((integer - least) as u64).leading_zeros() as usize] += 1;
        }
        let most = counts.iter().rposition(|count| *count > 0).unwrap_or(0) as u32;
        let can_patch = block.len() >= PATCHED_MIN;
        let head = WIDTH_BITS as usize + signed_cost(least) + usize::from(can_patch);
        let mut best = Self { least, width: most, extra: 0, patches: 0, cost: head + most as usize * block.len() };
        if !can_patch {
            return best;
        }
        let (mut patches, head) = (0, head + (WIDTH_BITS + PLACE_BITS) as usize);
        for width in (0..most).rev() {
            patches += usize::from(counts[width as usize + 1]);
            let extra = most - width;
            let cost = head + width as usize * block.len() + patches * (PLACE_BITS + extra) as usize;
            if cost < best.cost {
                best = Self { least, width, extra, patches, cost };
            }
        }
        best
    }
}

fn signed_cost(integer: i64) -> usize {
    6 + signed_width(integer) as usize
}

/// Returns the bits of a count with its length.
pub(super) fn unsigned_cost(count: usize) -> usize {
    5 + (usize::BITS - count.leading_zeros()) as usize
}

/// Source: Euclid, Elements, VII.2. The divisor of zero and another integer is the other one.
fn greatest_common_divisor(mut one: u64, mut other: u64) -> u64 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

/// Returns the integer that has the majority, if there is one; else any of the integers. Source: Boyer and Moore,
/// MJRTY, 1981.
fn majority(integers: &[i64]) -> i64 {
    let (mut found, mut votes) = (0, 0_usize);
    for integer in integers {
        if *integer == found {
            votes += 1;
        } else if votes == 0 {
            (found, votes) = (*integer, 1);
        } else {
            votes -= 1;
        }
    }
    found
}

/// Replaces each integer by the sum of all up to it. A list that is not corrupt does not wrap.
fn sum(integers: &mut [i64]) {
    let mut sum = 0_i64;
    for integer in integers {
        sum = sum.wrapping_add(*integer);
        *integer = sum;
    }
}
