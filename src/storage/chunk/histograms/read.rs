//! Decoding of sealed native histograms.

use super::{
    AS_IT_IS, CELLS_MAX, EXPONENT_BITS, FLOAT, KIND_BITS, MANTISSA_BITS, NO_POWER, STALE, TimedValue, WHOLE, counts_of,
};
use crate::model::histogram::{COUNT_MAX, CUSTOM_BUCKETS, Histogram, Numbers, SCHEMA_MAX, SCHEMA_MIN};
use crate::model::sample::{Value, is_stale};
use crate::storage::chunk::bits::Reader;
use crate::storage::chunk::{Corrupt, Encoded, at_end, integers, take_check, values};

/// Decodes a row that `encode` has made.
///
/// # Errors
///
/// A description of the corruption.
pub fn decode(encoded: &Encoded) -> Result<Vec<TimedValue>, Corrupt> {
    let times_ms = encoded.times()?;
    let mut places = encoded.places.iter();
    let (Some(place), None) = (places.next(), places.next()) else {
        return Err(Corrupt(format!("histograms of {} series", encoded.places.count())));
    };
    let mut stream = take_check(Reader::new(&encoded.data, 0, encoded.data.len)?, place)?;
    let mut columns = Columns { stream: &mut stream, floats: &encoded.floats, count: times_ms.len(), list: Vec::new() };
    let values = match columns.stream.get(KIND_BITS)? {
        AS_IT_IS => columns.read_as_it_is()?,
        kind @ (WHOLE | FLOAT) => columns.read_histograms(kind == FLOAT)?,
        kind => return Err(Corrupt(format!("there is no kind {kind} of histograms"))),
    };
    at_end(&stream)?;
    Ok(times_ms.into_iter().zip(values).collect())
}

/// Reader of columns of `count` numbers each.
struct Columns<'a, 'b> {
    stream: &'a mut Reader<'b>,
    floats: &'a [f64],
    count: usize,
    list: Vec<i64>,
}

impl Columns<'_, '_> {
    fn integers(&mut self) -> Result<Vec<i64>, Corrupt> {
        integers::read(self.stream, self.count, &mut self.list)?;
        Ok(self.list.clone())
    }

    fn values(&mut self, count: usize) -> Result<Vec<f64>, Corrupt> {
        values::read(self.stream, count, self.floats, &mut self.list)
    }

    fn counts(&mut self, is_float: bool) -> Result<Vec<f64>, Corrupt> {
        if is_float {
            return self.values(self.count);
        }
        integers::read(self.stream, self.count, &mut self.list)?;
        self.list.iter().map(|count| whole(*count)).collect()
    }

    /// Reads a number of columns, or of what multiplies with the times like a column.
    fn width(&mut self) -> Result<usize, Corrupt> {
        let width = self.stream.get_unsigned()? as usize;
        if width.saturating_mul(self.count) > CELLS_MAX {
            return Err(Corrupt(format!("{width} columns of {} numbers", self.count)));
        }
        Ok(width)
    }

    fn threshold(&mut self) -> Result<f64, Corrupt> {
        match self.stream.get(EXPONENT_BITS)? {
            NO_POWER => Ok(self.values(1)?[0]),
            exponent => Ok(f64::from_bits(exponent << MANTISSA_BITS)),
        }
    }

    fn indices(&mut self) -> Result<Vec<i32>, Corrupt> {
        let width = self.width()?;
        if width == 0 {
            return Ok(Vec::new());
        }
        integers::read(self.stream, width, &mut self.list)?;
        let indices: Vec<i32> = self.list.iter().filter_map(|index| i32::try_from(*index).ok()).collect();
        if indices.len() < width || !indices.is_sorted_by(|one, next| one < next) {
            return Err(Corrupt("the indices of its buckets do not ascend".into()));
        }
        Ok(indices)
    }

    fn read_histograms(&mut self, is_float: bool) -> Result<Vec<Value>, Corrupt> {
        let schema = self.stream.get_signed()?;
        let schema = i8::try_from(schema)
            .ok()
            .filter(|schema| (SCHEMA_MIN..=SCHEMA_MAX).contains(schema) || *schema == CUSTOM_BUCKETS)
            .ok_or_else(|| Corrupt(format!("there is no schema {schema}")))?;
        let zero_threshold = self.threshold()?;
        let bounds = match self.width()? {
            0 => Vec::new(),
            width => self.values(width)?,
        };
        let (positive, negative) = (self.indices()?, self.indices()?);
        let width = bounds.len() + positive.len() + negative.len();
        if width * self.count > CELLS_MAX {
            return Err(Corrupt(format!("{width} columns of {} numbers", self.count)));
        }
        let (hints, starts, sums) = (self.integers()?, self.values(self.count)?, self.values(self.count)?);
        let (mut counts, mut rests) = (Vec::new(), Vec::new());
        if is_float {
            counts = self.values(self.count)?;
        } else {
            rests = self.integers()?;
        }
        let zero_counts = self.counts(is_float)?;
        let mut buckets = |indices: Vec<i32>| -> Result<Vec<_>, Corrupt> {
            indices.into_iter().map(|index| Ok((index, self.counts(is_float)?))).collect()
        };
        let (positive, negative) = (buckets(positive)?, buckets(negative)?);
        let at = |buckets: &[(i32, Vec<f64>)], time: usize| -> Vec<(i32, f64)> {
            let counts = buckets.iter().map(|(index, column)| (*index, column[time]));
            counts.filter(|(_, count)| *count != 0.0).collect()
        };
        let histogram = |time: usize| {
            if is_stale(sums[time]) {
                return Ok(Value::Float(STALE));
            }
            let mut histogram = Histogram {
                schema,
                is_float,
                reset_hint: u8::try_from(hints[time])
                    .ok()
                    .filter(|hint| *hint < 4)
                    .ok_or_else(|| Corrupt("a reset hint".into()))?,
                start_ms: starts[time] as i64,
                zero_threshold,
                zero_count: zero_counts[time],
                count: counts.get(time).copied().unwrap_or_default(),
                sum: sums[time],
                bounds: bounds.clone(),
                positive: at(&positive, time),
                negative: at(&negative, time),
            };
            if (histogram.start_ms as f64).to_bits() != starts[time].to_bits() {
                return Err(Corrupt(format!("{} is no start", starts[time])));
            }
            if let Some(rest) = rests.get(time) {
                let counted = counts_of(&histogram)
                    .fold(histogram.zero_count as i64, |sum, count| sum.saturating_add(count as i64));
                histogram.count = whole(rest.saturating_add(counted))?;
            }
            Ok(Value::Histogram(histogram.to_numbers()))
        };
        (0..self.count).map(histogram).collect()
    }

    fn read_as_it_is(&mut self) -> Result<Vec<Value>, Corrupt> {
        let mut rest = self.floats;
        let mut value = |length: i64| {
            if length == 0 {
                return Some(Value::Float(STALE));
            }
            let (numbers, left) = rest.split_at_checked(usize::try_from(length.checked_sub(1)?).ok()?)?;
            rest = left;
            Some(Value::Histogram(Numbers::from_stored(numbers.to_vec())))
        };
        let values = self.integers()?.into_iter().map(&mut value).collect::<Option<Vec<_>>>();
        values
            .filter(|_| rest.is_empty())
            .ok_or_else(|| Corrupt(format!("its lists do not have {} floats", self.floats.len())))
    }
}

/// Returns a whole count.
fn whole(count: i64) -> Result<f64, Corrupt> {
    match u64::try_from(count) {
        Ok(count @ ..COUNT_MAX) => Ok(count as f64),
        _ => Err(Corrupt(format!("{count} is no count"))),
    }
}
