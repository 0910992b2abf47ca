//! A native histogram: a sample with buckets.
//!
//! Source: Prometheus, `model/histogram` and `prompb/types.proto`.

use std::sync::Arc;

/// Schema of custom buckets: [`Histogram::bounds`] has their upper bounds.
pub const CUSTOM_BUCKETS: i8 = -53;

/// Least and greatest exponential schema: the upper bound of bucket `i` is `2^(i * 2^-schema)`.
pub const SCHEMA_MIN: i8 = -4;
/// See [`SCHEMA_MIN`].
pub const SCHEMA_MAX: i8 = 8;

/// Integer counts are below this: every one is a float too.
pub const COUNT_MAX: u64 = 1 << 53;

/// A native histogram in one canonical form: two that are equal have the same fields.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// [`SCHEMA_MIN`] to [`SCHEMA_MAX`], or [`CUSTOM_BUCKETS`].
    pub schema: i8,
    /// `true` if the counts are floats of any size; else they are whole numbers below [`COUNT_MAX`].
    pub is_float: bool,
    /// What is known of a counter's reset: 0 unknown, 1 yes, 2 no, 3 a gauge.
    pub reset_hint: u8,
    /// Start of the counting in ms since 1970; 0 if unknown.
    pub start_ms: i64,
    /// Width of the zero bucket; 0 with custom buckets.
    pub zero_threshold: f64,
    /// Count of the zero bucket; 0 with custom buckets.
    pub zero_count: f64,
    /// Count of all observations.
    pub count: f64,
    /// Sum of all observations, any float but a stale marker.
    pub sum: f64,
    /// Upper bounds of custom buckets, ascending; none with another schema.
    pub bounds: Vec<f64>,
    /// Buckets of positive observations, or custom buckets: index and count, ascending by index, without counts of zero.
    pub positive: Vec<(i32, f64)>,
    /// The same of negative observations; none with custom buckets.
    pub negative: Vec<(i32, f64)>,
}

impl PartialEq for Histogram {
    /// Compares bit for bit, so that a NaN equals itself.
    fn eq(&self, other: &Self) -> bool {
        self.to_numbers() == other.to_numbers()
    }
}

/// The numbers of a histogram in one list, in which they are buffered and stored.
///
/// It has the schema; 4 if the counts are floats plus the reset hint; the start; threshold and count of the zero bucket;
/// count; sum; the number of custom bounds, and these. Then the positive and the negative buckets, each as: the number of
/// runs of neighbouring buckets; of each run its first index and its length; the counts.
#[derive(Clone, Debug)]
pub struct Numbers(Arc<Box<[f64]>>);

impl PartialEq for Numbers {
    fn eq(&self, other: &Self) -> bool {
        let bits = |numbers: &Self| numbers.0.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        bits(self) == bits(other)
    }
}

impl Eq for Numbers {}

/// Numbers that are no histogram in canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the numbers of a native histogram are corrupt: {0}")]
pub struct Corrupt(&'static str);

impl Histogram {
    /// Returns its numbers.
    #[must_use]
    pub fn to_numbers(&self) -> Numbers {
        let flags = self.reset_hint | if self.is_float { FLOAT } else { 0 };
        #[expect(clippy::cast_precision_loss, reason = "a time in ms, which clocks show for 280,000 years")]
        let start = self.start_ms as f64;
        let mut numbers = vec![
            f64::from(self.schema),
            f64::from(flags),
            start,
            self.zero_threshold,
            self.zero_count,
            self.count,
            self.sum,
            number(self.bounds.len()),
        ];
        numbers.extend(&self.bounds);
        for buckets in [&self.positive, &self.negative] {
            let runs = || buckets.chunk_by(|(index, _), (next, _)| index.checked_add(1) == Some(*next));
            numbers.push(number(runs().count()));
            numbers.extend(runs().flat_map(|run| [f64::from(run[0].0), number(run.len())]));
            numbers.extend(buckets.iter().map(|(_, count)| *count));
        }
        Numbers(Arc::new(numbers.into()))
    }
}

/// Bit of the second number that tells float counts.
const FLOAT: u8 = 4;

#[expect(clippy::cast_precision_loss, reason = "a length, far below 2^53")]
fn number(length: usize) -> f64 {
    length as f64
}

impl Numbers {
    /// Returns numbers as they were stored. Not checked.
    #[must_use]
    pub fn from_stored(numbers: Vec<f64>) -> Self {
        Self(Arc::new(numbers.into()))
    }

    /// Returns the numbers.
    #[must_use]
    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }

    /// Returns the bytes of memory that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.as_slice()) + HEAD_BYTES
    }

    /// Returns the histogram.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if the numbers are not those of a histogram in canonical form.
    pub fn to_histogram(&self) -> Result<Histogram, Corrupt> {
        let mut rest = self.as_slice();
        let schema = take_whole(&mut rest)?;
        let flags = take_whole(&mut rest)?;
        let start_ms = take_whole(&mut rest)?;
        let [zero_threshold, zero_count, count, sum] = *take(&mut rest, 4)? else { return Err(Corrupt("too few")) };
        let bounds = take_length(&mut rest)?;
        let bounds = take(&mut rest, bounds)?.to_vec();
        let positive = take_buckets(&mut rest)?;
        let negative = take_buckets(&mut rest)?;
        if !rest.is_empty() {
            return Err(Corrupt("too many"));
        }
        let schema = i8::try_from(schema).map_err(|_| Corrupt("the schema"))?;
        if !(SCHEMA_MIN..=SCHEMA_MAX).contains(&schema) && schema != CUSTOM_BUCKETS {
            return Err(Corrupt("the schema"));
        }
        let flags = u8::try_from(flags).ok().filter(|flags| *flags < 2 * FLOAT).ok_or(Corrupt("the flags"))?;
        Ok(Histogram {
            schema,
            is_float: flags & FLOAT != 0,
            reset_hint: flags & !FLOAT,
            start_ms,
            zero_threshold,
            zero_count,
            count,
            sum,
            bounds,
            positive,
            negative,
        })
    }
}

/// Bytes of an allocation's two counters, its pointer, and the allocator's own.
const HEAD_BYTES: usize = 64;

fn take<'a>(rest: &mut &'a [f64], count: usize) -> Result<&'a [f64], Corrupt> {
    let (taken, left) = rest.split_at_checked(count).ok_or(Corrupt("too few"))?;
    *rest = left;
    Ok(taken)
}

/// Takes a whole number.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "compared afterwards")]
fn take_whole(rest: &mut &[f64]) -> Result<i64, Corrupt> {
    let number = take(rest, 1)?[0];
    let whole = number as i64;
    if whole as f64 == number { Ok(whole) } else { Err(Corrupt("a number is not whole")) }
}

fn take_length(rest: &mut &[f64]) -> Result<usize, Corrupt> {
    usize::try_from(take_whole(rest)?).map_err(|_| Corrupt("a length"))
}

fn take_buckets(rest: &mut &[f64]) -> Result<Vec<(i32, f64)>, Corrupt> {
    let runs = take_length(rest)?;
    let runs = take(rest, runs.checked_mul(2).ok_or(Corrupt("a length"))?)?;
    let mut indices: Vec<i32> = Vec::new();
    for mut run in runs.chunks_exact(2) {
        let (first, length) = (take_whole(&mut run)?, take_length(&mut run)?);
        if length > rest.len() - indices.len().min(rest.len()) {
            return Err(Corrupt("too few"));
        }
        for index in first..first.saturating_add(i64::try_from(length).unwrap_or(i64::MAX)) {
            let index = i32::try_from(index).map_err(|_| Corrupt("an index"))?;
            if indices.last().is_some_and(|last| *last >= index) {
                return Err(Corrupt("the indices do not ascend"));
            }
            indices.push(index);
        }
    }
    let counts = take(rest, indices.len())?;
    Ok(indices.into_iter().zip(counts.iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn buckets() -> impl Strategy<Value = Vec<(i32, f64)>> {
        prop::collection::btree_map(-40_i32..40, 1_u32.., 0..20)
            .prop_map(|buckets| buckets.into_iter().map(|(index, count)| (index, f64::from(count))).collect())
    }

    proptest! {
        #[test]
        fn a_histogram_survives_as_numbers(
            (schema, is_float, reset_hint, start_ms) in (SCHEMA_MIN..=SCHEMA_MAX, any::<bool>(), 0_u8..4, 0_i64..1 << 45),
            (zero_threshold, zero_count, count, sum) in (0.0_f64..1.0, 0.0_f64..9.0, any::<f64>(), any::<u64>().prop_map(f64::from_bits)),
            (bounds, positive, negative) in (prop::collection::vec(any::<f64>(), 0..9), buckets(), buckets()),
            (at, change) in (any::<prop::sample::Index>(), any::<f64>()),
        ) {
            let histogram = Histogram {
                schema, is_float, reset_hint, start_ms, zero_threshold, zero_count, count, sum, bounds, positive, negative,
            };
            let numbers = histogram.to_numbers();
            prop_assert_eq!(&numbers.to_histogram().unwrap(), &histogram);
            let mut damaged = numbers.as_slice().to_vec();
            *at.get_mut(&mut damaged) = change;
            // No damage makes it panic.
            let _ = Numbers::from_stored(damaged).to_histogram();
            for length in 0..numbers.as_slice().len() {
                prop_assert!(Numbers::from_stored(numbers.as_slice()[..length].to_vec()).to_histogram().is_err());
            }
        }
    }

    #[test]
    fn extreme_indices_survive() {
        let buckets = vec![(i32::MIN, 1.0), (-1, 2.0), (0, 3.0), (i32::MAX, 4.0)];
        let histogram = Histogram { positive: buckets.clone(), negative: buckets, ..Histogram::default() };
        assert_eq!(histogram.to_numbers().to_histogram().unwrap(), histogram);
    }
}
