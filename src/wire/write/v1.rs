//! `prometheus.WriteRequest`, the message of remote write 1.0.
//!
//! It is scanned by hand because this is the hot path: a decoder that builds strings would spend its time on labels
//! that the next module already knows by their bytes. Source: Prometheus, `prompb/remote.proto` and
//! `prompb/types.proto`.

use std::borrow::Cow;

use crate::model::sample::Sample;
use crate::wire::protobuf::{DecodeError, Scanner};
use crate::wire::write::{
    Exemplar, Metadata, Request, SAMPLES_MAX, SERIES_BYTES, SERIES_MAX, Series, Version, decode_sample, index, kind_of,
};

/// Tag of a label in a `TimeSeries`: field 1, length-delimited.
const LABEL_TAG: u8 = 1 << 3 | 2;

/// Decodes a request. Label messages are left as they are, to be validated series by series.
///
/// The allocated memory grows with the body, by less than a byte for each byte of floats that Prometheus sends. For bodies of
/// nearly empty series, [`SERIES_MAX`] bounds it, and for histograms
/// [`HISTOGRAM_NUMBERS_MAX`](crate::wire::write::HISTOGRAM_NUMBERS_MAX).
///
/// # Errors
///
/// `DecodeError` if the body is no such message (a truncated or overlong value, a group, a known field of the wrong
/// type), or if it has more than [`SERIES_MAX`] series, [`SAMPLES_MAX`] samples, or than the other limits allow. A histogram
/// that can never be stored is no such error.
pub fn decode(body: &[u8]) -> Result<Request<'_>, DecodeError> {
    let mut request = Request::default();
    let expected = body.len() / SERIES_BYTES;
    request.series.reserve(expected.min(SERIES_MAX));
    request.samples.reserve(expected.min(SAMPLES_MAX));
    let mut fields = Scanner::new(body);
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => {
                let message = field.bytes()?;
                let series = decode_series(message, fields.nested(message), &mut request)?;
                request.add(series, field.offset)?;
            }
            3 => {
                let metadata = decode_metadata(fields.nested(field.bytes()?))?;
                if metadata.says_something() {
                    request.add_metadata(metadata, field.offset)?;
                }
            }
            _ => {}
        }
    }
    Ok(request)
}

/// Decodes a `TimeSeries` and appends its samples, histograms and exemplars to those of the request.
fn decode_series<'a>(
    message: &'a [u8],
    mut fields: Scanner<'a>,
    request: &mut Request<'a>,
) -> Result<Series<'a>, DecodeError> {
    let base = fields.offset();
    let (first_sample, first_exemplar) = (request.samples.len(), request.exemplars.len());
    let first_histogram = request.histograms.len();
    let place = index(request.series.len(), base)?;
    fields.skip_run(LABEL_TAG);
    let mut labels = LabelFields { message, run: 0..fields.offset() - base, copied: Vec::new() };
    while let Some(field) = fields.next_field()? {
        let payload = match field.number {
            1..=4 => field.bytes()?,
            _ => continue,
        };
        match field.number {
            1 => labels.push(field.offset - base..fields.offset() - base),
            2 => request.add_sample(decode_sample(fields.nested(payload))?, field.offset)?,
            3 => request.add_exemplar(decode_exemplar(payload, fields.nested(payload), place)?, field.offset)?,
            _ => request.add_histogram(fields.nested(payload), Version::One, field.offset)?,
        }
    }
    let samples = index(first_sample, base)?..index(request.samples.len(), base)?;
    let exemplars = index(request.exemplars.len() - first_exemplar, base)?;
    let histograms = index(first_histogram, base)?..index(request.histograms.len(), base)?;
    let kind = kind_of(&samples, &histograms);
    Ok(Series { labels: labels.finish(), kind, samples, exemplars, histograms, fault: None })
}

/// Decodes an `Exemplar` of the series at `place`.
fn decode_exemplar<'a>(message: &'a [u8], mut fields: Scanner<'a>, place: u32) -> Result<Exemplar<'a>, DecodeError> {
    let base = fields.offset();
    let mut labels = LabelFields { message, run: 0..0, copied: Vec::new() };
    let mut sample = Sample { timestamp_ms: 0, value: 0.0 };
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => {
                field.bytes()?;
                labels.push(field.offset - base..fields.offset() - base);
            }
            2 => sample.value = field.double()?,
            3 => sample.timestamp_ms = field.int64()?,
            _ => {}
        }
    }
    Ok(Exemplar { series: place, labels: labels.finish(), sample })
}

/// Decodes a `MetricMetadata`.
fn decode_metadata(mut fields: Scanner<'_>) -> Result<Metadata<'_>, DecodeError> {
    let mut metadata = Metadata { name: &[], kind: 0, help: &[], unit: &[] };
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => metadata.kind = field.uint32()?,
            2 => metadata.name = field.bytes()?,
            4 => metadata.help = field.bytes()?,
            5 => metadata.unit = field.bytes()?,
            _ => {}
        }
    }
    Ok(metadata)
}

/// Collects the label fields of a `TimeSeries` or an `Exemplar`; copies them only if other fields stand between them.
struct LabelFields<'a> {
    message: &'a [u8],
    /// Range of the fields since the last interruption.
    run: std::ops::Range<usize>,
    /// Fields before the last interruption.
    copied: Vec<u8>,
}

impl<'a> LabelFields<'a> {
    #[inline]
    fn push(&mut self, field: std::ops::Range<usize>) {
        if self.run.end != field.start {
            self.copied.extend_from_slice(&self.message[self.run.clone()]);
            self.run.start = field.start;
        }
        self.run.end = field.end;
    }

    fn finish(mut self) -> Cow<'a, [u8]> {
        let run = &self.message[self.run];
        if self.copied.is_empty() {
            return Cow::Borrowed(run);
        }
        self.copied.extend_from_slice(run);
        Cow::Owned(self.copied)
    }
}

#[cfg(test)]
mod tests;
