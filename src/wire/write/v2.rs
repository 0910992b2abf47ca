//! `io.prometheus.write.v2.Request`, the message of remote write 2.0.
//!
//! Like [`v1`](super::v1) it is scanned by hand. Labels refer to the request's symbols and stay references: most series
//! are known by the hashes of their symbols. Source: Prometheus, `prompb/io/prometheus/write/v2/types.proto`.

use std::borrow::Cow;

use crate::model::labels::METRIC_NAME;
use crate::model::sample::Sample;
use crate::wire::protobuf::{DecodeError, Field, Scanner, Value};
use crate::wire::write::{
    Exemplar, LABELS_MAX, METADATA_BYTES_MAX, Metadata, Request, SAMPLES_MAX, SERIES_BYTES, SERIES_MAX, Series,
    Version, decode_sample, index, kind_of, next_ref,
};

/// Maximum symbols of one request.
pub const SYMBOLS_MAX: usize = 500_000;

/// Metadata of a series, as references to the request's symbols.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct MetadataRefs {
    kind: u32,
    help: u32,
    unit: u32,
}

/// Decodes a request. Labels are left as they are, to be validated series by series.
///
/// The allocated memory is bounded by [`SERIES_MAX`], [`SAMPLES_MAX`], [`EXEMPLARS_MAX`](crate::wire::write::EXEMPLARS_MAX),
/// [`HISTOGRAM_NUMBERS_MAX`](crate::wire::write::HISTOGRAM_NUMBERS_MAX), [`METADATA_BYTES_MAX`] and [`SYMBOLS_MAX`].
///
/// # Errors
///
/// `DecodeError` if the body is no such message (a truncated or overlong value, a group, a known field of the wrong
/// type), or if it has more series, samples, histograms or symbols than allowed. A series that refers to no symbol is no such
/// error: see [`Series::fault`]. Neither is a histogram that can never be stored.
pub fn decode(body: &[u8]) -> Result<Request<'_>, DecodeError> {
    let mut request = Request::default();
    let mut symbols: Vec<&[u8]> = Vec::new();
    let expected = body.len() / SERIES_BYTES;
    request.series.reserve(expected.min(SERIES_MAX));
    request.samples.reserve(expected.min(SAMPLES_MAX));
    let mut metadata_refs = Vec::new();
    let mut fields = Scanner::new(body);
    while let Some(field) = fields.next_field()? {
        match field.number {
            4 => {
                if symbols.len() == SYMBOLS_MAX {
                    return Err(DecodeError { offset: field.offset, what: "more symbols than one request may have" });
                }
                symbols.push(field.bytes()?);
            }
            5 => {
                let message = field.bytes()?;
                let (series, refs) = decode_series(fields.nested(message), &mut request)?;
                let place = request.series.len();
                request.add(series, field.offset)?;
                metadata_refs.extend(refs.map(|refs| (place..request.series.len(), refs)));
            }
            _ => {}
        }
    }
    // The symbols may stand behind the series.
    let (mut last, mut bytes) = (None, 0);
    for (places, refs) in metadata_refs {
        let place = places.start;
        let MetadataRefs { kind, help, unit } = refs;
        // Reference 0 is the empty string, whatever the symbols are.
        let symbol = |at: u32| if at == 0 { Some(&[][..]) } else { symbols.get(at as usize).copied() };
        let Some((help, unit)) = symbol(help).zip(symbol(unit)) else {
            request.series[places].iter_mut().for_each(|series| series.fault = Some("metadata refers to no symbol"));
            continue;
        };
        if kind == 0 && help.is_empty() && unit.is_empty() {
            continue;
        }
        let Some(name_ref) = name_ref(&request.series[place].labels, &symbols) else { continue };
        // The series of a metric follow each other.
        if last.replace((refs, name_ref)) == Some((refs, name_ref)) {
            continue;
        }
        let metadata = Metadata { name: symbols.get(name_ref as usize).copied().unwrap_or_default(), kind, help, unit };
        bytes += metadata.name.len() + help.len() + unit.len();
        if bytes > METADATA_BYTES_MAX {
            return Err(DecodeError { offset: body.len(), what: "more bytes of metadata than one request may have" });
        }
        if metadata.says_something() {
            request.add_metadata(metadata, body.len())?;
        }
    }
    request.symbols = Some(symbols);
    Ok(request)
}

/// Returns `true` if `body`, in which [`v1::decode`](super::v1::decode) found neither series nor metadata, is a request
/// of version 2.0: that has its symbols and series in the fields 4 and 5, which 1.0 does not have.
#[must_use]
pub fn is_version_2(body: &[u8]) -> bool {
    has_field(body, |number| matches!(number, 4 | 5))
}

/// Returns `true` if `body`, in which [`decode`] found neither symbols nor series, is a request of version 1.0.
#[must_use]
pub fn is_version_1(body: &[u8]) -> bool {
    has_field(body, |number| matches!(number, 1 | 3))
}

fn has_field(body: &[u8], is_wanted: impl Fn(u32) -> bool) -> bool {
    let mut fields = Scanner::new(body);
    std::iter::from_fn(|| fields.next_field().ok().flatten()).any(|field| is_wanted(field.number))
}

/// Decodes a `TimeSeries` and appends its samples, histograms and exemplars to those of the request.
fn decode_series<'a>(
    mut fields: Scanner<'a>,
    request: &mut Request<'a>,
) -> Result<(Series<'a>, Option<MetadataRefs>), DecodeError> {
    let base = fields.offset();
    let (first_sample, first_exemplar) = (request.samples.len(), request.exemplars.len());
    let place = index(request.series.len(), base)?;
    let mut labels: Cow<'a, [u8]> = Cow::Borrowed(&[]);
    let first_histogram = request.histograms.len();
    let mut refs = None;
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => add_refs(&mut labels, field)?,
            2 => request.add_sample(decode_sample(fields.nested(field.bytes()?))?, field.offset)?,
            3 => request.add_histogram(fields.nested(field.bytes()?), Version::Two, field.offset)?,
            4 => request.add_exemplar(decode_exemplar(fields.nested(field.bytes()?), place)?, field.offset)?,
            5 => refs = Some(decode_metadata(fields.nested(field.bytes()?))?),
            _ => {}
        }
    }
    let samples = index(first_sample, base)?..index(request.samples.len(), base)?;
    let exemplars = index(request.exemplars.len() - first_exemplar, base)?;
    let histograms = index(first_histogram, base)?..index(request.histograms.len(), base)?;
    let is_empty = samples.is_empty() && histograms.is_empty() && exemplars == 0;
    let fault = is_empty.then_some("a series without sample, histogram or exemplar");
    let kind = kind_of(&samples, &histograms);
    Ok((Series { labels, kind, samples, exemplars, histograms, fault }, refs))
}

/// Adds a field of references to those read before: packed, or each reference in a field of its own.
#[inline]
fn add_refs<'a>(refs: &mut Cow<'a, [u8]>, field: Field<'a>) -> Result<(), DecodeError> {
    match field.value {
        Value::Varint(reference) => prost::encoding::encode_varint(reference, refs.to_mut()),
        _ if refs.is_empty() => *refs = Cow::Borrowed(field.bytes()?),
        _ => refs.to_mut().extend_from_slice(field.bytes()?),
    }
    Ok(())
}

/// Decodes an `Exemplar` of the series at `place`.
fn decode_exemplar<'a>(mut fields: Scanner<'a>, place: u32) -> Result<Exemplar<'a>, DecodeError> {
    let mut labels: Cow<'a, [u8]> = Cow::Borrowed(&[]);
    let mut sample = Sample { timestamp_ms: 0, value: 0.0 };
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => add_refs(&mut labels, field)?,
            2 => sample.value = field.double()?,
            3 => sample.timestamp_ms = field.int64()?,
            _ => {}
        }
    }
    Ok(Exemplar { series: place, labels, sample })
}

/// Returns the reference to the metric's name among the labels of a series.
fn name_ref(mut refs: &[u8], symbols: &[&[u8]]) -> Option<u32> {
    for _ in 0..LABELS_MAX {
        let (label, value) = (next_ref(&mut refs).ok()?, next_ref(&mut refs).ok()?);
        if *symbols.get(label as usize)? == METRIC_NAME.as_bytes() {
            return Some(value);
        }
    }
    None
}

fn decode_metadata(mut fields: Scanner<'_>) -> Result<MetadataRefs, DecodeError> {
    let mut refs = MetadataRefs::default();
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => refs.kind = field.uint32()?,
            3 => refs.help = field.uint32()?,
            4 => refs.unit = field.uint32()?,
            _ => {}
        }
    }
    Ok(refs)
}

#[cfg(test)]
mod tests;
