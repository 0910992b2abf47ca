//! A remote-write request, in the form that all versions of the message share.
//!
//! Labels stay bytes as they arrived: most series are known by the hash of those bytes, and a label that is not UTF-8
//! must make its series fail and not its request. `model::labels` decides which series can be stored.

use std::borrow::Cow;
use std::ops::Range;

use prost::encoding::decode_varint;

use crate::model::sample::{Kind, Sample, Value};
use crate::wire::protobuf::{DecodeError, Scanner};

mod histogram;
pub mod v1;
pub mod v2;

/// Maximum series of one request. Prometheus sends 2,000 by default (`max_samples_per_send`).
pub const SERIES_MAX: usize = 500_000;

/// Maximum samples of one request.
pub const SAMPLES_MAX: usize = 2_000_000;

/// Maximum metadata entries of one request. Prometheus sends 2,000.
pub const METADATA_MAX: usize = 100_000;

/// Maximum exemplars of one request. Prometheus sends a few hundred.
pub const EXEMPLARS_MAX: usize = 10_000;

/// Maximum native histograms of one request. An empty one has two bytes in a body and takes 200 bytes of memory: 20 MB.
pub const HISTOGRAMS_MAX: usize = 100_000;

/// Maximum numbers of all native histograms of one request (see [`Numbers`](crate::model::histogram::Numbers)): 32 MB. A
/// bucket may have one byte in a body, so [`HISTOGRAMS_MAX`] bounds too little. By default Prometheus sends 2,000 histograms,
/// whose buckets its clients keep to 160.
pub const HISTOGRAM_NUMBERS_MAX: usize = 4_000_000;

/// Maximum buckets of a native histogram, and maximum bounds of its custom buckets; a histogram with more is refused, and
/// the request with others is not. Prometheus has no bound, but each bucket is stored and read again with every sample:
/// 10,000 take 160 kB of memory while they are decoded, and are far more than the 160 to which clients keep by default.
pub const HISTOGRAM_BUCKETS_MAX: usize = 10_000;

/// Maximum labels of a series or an exemplar. A series with more is refused, and the request with others is not.
pub const LABELS_MAX: usize = 1_000;

/// Maximum bytes of all metadata of one request of version 2.0, in which many entries may refer to one text.
pub const METADATA_BYTES_MAX: usize = 16 << 20;

/// Low estimate of the bytes that a series with one sample takes in a request.
const SERIES_BYTES: usize = 128;

/// A decoded request; borrows from the body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request<'a> {
    /// Symbols to which labels of 2.0 refer; `None` for 1.0.
    pub symbols: Option<Vec<&'a [u8]>>,
    /// Series in the order of the message. Real senders repeat a series for each of its samples.
    pub series: Vec<Series<'a>>,
    /// Samples of all series, one series after the other.
    pub samples: Vec<Sample>,
    /// Exemplars of all series.
    pub exemplars: Vec<Exemplar<'a>>,
    /// Native histograms of all series, one series after the other.
    pub histograms: Vec<HistogramSample>,
    /// Numbers of all histograms, at most [`HISTOGRAM_NUMBERS_MAX`].
    pub histogram_numbers: usize,
    /// What the request says of metrics.
    pub metadata: Vec<Metadata<'a>>,
}

/// One series of a request. What the message says of a series that has floats and histograms becomes two of these with the
/// same labels: the first has the floats and the exemplars, the second the histograms.
#[derive(Clone, Debug, PartialEq)]
pub struct Series<'a> {
    /// Labels as on the wire, not validated; [`Request::label_pairs`] reads them, and a cache may hash them. Of 1.0, the
    /// label fields of the `TimeSeries`, with tags and lengths, in order, borrowed unless other fields stand between
    /// them. Of 2.0, references to the request's symbols, each a varint.
    pub labels: Cow<'a, [u8]>,
    /// What it has: histograms if [`Series::histograms`] is not empty, else floats. A series that has nothing but exemplars
    /// may be of either kind, and counts as one of floats.
    pub kind: Kind,
    /// Range of its samples in [`Request::samples`].
    pub samples: Range<u32>,
    /// Number of exemplars of the series.
    pub exemplars: u32,
    /// Range of its native histograms in [`Request::histograms`].
    pub histograms: Range<u32>,
    /// Reason why nothing of the series can be stored, apart from its labels.
    pub fault: Option<&'static str>,
}

/// A native histogram at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramSample {
    /// Milliseconds since 1970-01-01 UTC, any i64.
    pub timestamp_ms: i64,
    /// A histogram, or a float with the bits of a stale marker; or the reason why it can never be stored.
    pub value: Result<Value, &'static str>,
}

/// An exemplar of a series.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar<'a> {
    /// Place of its series in [`Request::series`].
    pub series: u32,
    /// Its own labels, like [`Series::labels`].
    pub labels: Cow<'a, [u8]>,
    /// Time and value.
    pub sample: Sample,
}

/// What a sender says of a metric. Not validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata<'a> {
    /// Name of the metric; in 1.0 of the metric family, without `_bucket` and its like. Not empty.
    pub name: &'a [u8],
    /// Number of the type, the same in both versions.
    pub kind: u32,
    /// Text for people.
    pub help: &'a [u8],
    /// Unit; empty if it has none.
    pub unit: &'a [u8],
}

/// Version of the message, where it matters to what both have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Name and value of a label, as they arrived.
pub type Pair<'a> = (&'a [u8], &'a [u8]);

impl Metadata<'_> {
    /// Returns `true` if something is said of a metric.
    fn says_something(&self) -> bool {
        !self.name.is_empty() && (self.kind > 0 || !self.help.is_empty() || !self.unit.is_empty())
    }
}

impl<'a> Request<'a> {
    /// Returns the samples of one series of the request.
    #[must_use]
    pub fn samples_of(&self, series: &Series<'_>) -> &[Sample] {
        &self.samples[series.samples.start as usize..series.samples.end as usize]
    }

    /// Returns the native histograms of one series of the request.
    #[must_use]
    pub fn histograms_of(&self, series: &Series<'_>) -> &[HistogramSample] {
        &self.histograms[series.histograms.start as usize..series.histograms.end as usize]
    }

    /// Returns `true` if the message has no field that is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.series.is_empty() && self.metadata.is_empty() && self.symbols.as_ref().is_none_or(Vec::is_empty)
    }

    /// Decodes the labels of one series of the request into names and values, in the order of the message, neither
    /// sorted nor validated. See [`Request::pairs`].
    pub fn label_pairs<'r>(&'r self, series: &'r Series<'a>) -> impl Iterator<Item = Result<Pair<'r>, DecodeError>> {
        self.pairs(&series.labels)
    }

    /// Decodes the labels of a series or an exemplar of the request.
    ///
    /// The iterator returns a `DecodeError` if a label is malformed or refers to no symbol, with the offset within the
    /// labels; nothing follows an error.
    pub fn pairs<'r>(&'r self, labels: &'r [u8]) -> impl Iterator<Item = Result<Pair<'r>, DecodeError>> {
        let mut labels = Labels { symbols: self.symbols.as_deref(), fields: Scanner::new(labels), refs: labels };
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let pair = labels.next_pair().transpose();
            failed = matches!(pair, Some(Err(_)));
            pair
        })
    }

    /// Adds a series that stands at `offset` of the message, as two if it has floats and histograms.
    fn add(&mut self, series: Series<'a>, offset: usize) -> Result<(), DecodeError> {
        if series.kind == Kind::Float && !series.histograms.is_empty() {
            return self.add_both(series, offset);
        }
        self.add_one(series, offset)
    }

    /// Adds a series that has floats and histograms. No Prometheus sends one.
    #[cold]
    fn add_both(&mut self, mut series: Series<'a>, offset: usize) -> Result<(), DecodeError> {
        let none = series.histograms.end..series.histograms.end;
        let histograms = std::mem::replace(&mut series.histograms, none);
        let no_samples = series.samples.end..series.samples.end;
        let second = Series { kind: Kind::Histogram, samples: no_samples, exemplars: 0, histograms, ..series.clone() };
        self.add_one(series, offset)?;
        self.add_one(second, offset)
    }

    #[inline]
    fn add_one(&mut self, series: Series<'a>, offset: usize) -> Result<(), DecodeError> {
        if self.series.len() == SERIES_MAX {
            return Err(DecodeError { offset, what: "more series than one request may have" });
        }
        self.series.push(series);
        Ok(())
    }

    /// Adds a sample of a series at `offset`.
    #[inline]
    fn add_sample(&mut self, sample: Sample, offset: usize) -> Result<(), DecodeError> {
        if self.samples.len() == SAMPLES_MAX {
            return Err(DecodeError { offset, what: "more samples than one request may have" });
        }
        self.samples.push(sample);
        Ok(())
    }

    /// Decodes a native histogram and adds it. Not inlined, to keep the loop that decodes floats small.
    #[inline(never)]
    fn add_histogram(&mut self, fields: Scanner<'_>, version: Version, offset: usize) -> Result<(), DecodeError> {
        if self.histograms.len() == HISTOGRAMS_MAX {
            return Err(DecodeError { offset, what: "more histograms than one request may have" });
        }
        let sample = histogram::decode(fields, version)?;
        if let Ok(Value::Histogram(numbers)) = &sample.value {
            self.histogram_numbers += numbers.as_slice().len();
        }
        if self.histogram_numbers > HISTOGRAM_NUMBERS_MAX {
            return Err(DecodeError { offset, what: "more buckets than all histograms of one request may have" });
        }
        self.histograms.push(sample);
        Ok(())
    }

    /// Adds an exemplar of a series at `offset`.
    fn add_exemplar(&mut self, exemplar: Exemplar<'a>, offset: usize) -> Result<(), DecodeError> {
        if self.exemplars.len() == EXEMPLARS_MAX {
            return Err(DecodeError { offset, what: "more exemplars than one request may have" });
        }
        self.exemplars.push(exemplar);
        Ok(())
    }

    /// Adds metadata that stands at `offset`.
    fn add_metadata(&mut self, metadata: Metadata<'a>, offset: usize) -> Result<(), DecodeError> {
        if self.metadata.len() == METADATA_MAX {
            return Err(DecodeError { offset, what: "more metadata than one request may have" });
        }
        self.metadata.push(metadata);
        Ok(())
    }
}

/// Returns the kind of a series that has these; see [`Series::kind`].
#[inline]
fn kind_of(samples: &Range<u32>, histograms: &Range<u32>) -> Kind {
    if samples.is_empty() && !histograms.is_empty() { Kind::Histogram } else { Kind::Float }
}

/// Returns a place among the samples of a request, for a series at `offset` of the message.
fn index(at: usize, offset: usize) -> Result<u32, DecodeError> {
    u32::try_from(at).map_err(|_| DecodeError { offset, what: "more samples than can be counted" })
}

/// Decodes a `Sample`, which both versions have: a field may be absent (zero) or repeated (the last one counts). The start
/// timestamp of 2.0 is not kept.
#[inline]
fn decode_sample(mut fields: Scanner<'_>) -> Result<Sample, DecodeError> {
    let mut sample = Sample { timestamp_ms: 0, value: 0.0 };
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => sample.value = field.double()?,
            2 => sample.timestamp_ms = field.int64()?,
            _ => {}
        }
    }
    Ok(sample)
}

/// Reader of the labels of one series.
struct Labels<'r> {
    symbols: Option<&'r [&'r [u8]]>,
    /// Rest of the labels of 1.0.
    fields: Scanner<'r>,
    /// Rest of the labels of 2.0.
    refs: &'r [u8],
}

impl<'r> Labels<'r> {
    fn next_pair(&mut self) -> Result<Option<Pair<'r>>, DecodeError> {
        let Some(symbols) = self.symbols else { return self.next_field() };
        if self.refs.is_empty() {
            return Ok(None);
        }
        let name = self.next_symbol(symbols)?;
        if self.refs.is_empty() {
            return Err(DecodeError { offset: 0, what: "a label without value: an odd number of references" });
        }
        Ok(Some((name, self.next_symbol(symbols)?)))
    }

    fn next_symbol(&mut self, symbols: &[&'r [u8]]) -> Result<&'r [u8], DecodeError> {
        let reference = next_ref(&mut self.refs)?;
        let symbol = symbols.get(reference as usize).copied();
        symbol.ok_or(DecodeError { offset: 0, what: "a label refers to no symbol" })
    }

    /// Reads the next `TimeSeries.labels` field of 1.0: a message of name=1 and value=2.
    fn next_field(&mut self) -> Result<Option<Pair<'r>>, DecodeError> {
        let Some(field) = self.fields.next_field()? else {
            return Ok(None);
        };
        let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
        let mut label = self.fields.nested(field.bytes()?);
        while let Some(field) = label.next_field()? {
            match field.number {
                1 => name = field.bytes()?,
                2 => value = field.bytes()?,
                _ => {}
            }
        }
        Ok(Some((name, value)))
    }
}

/// Reads the next of the references to symbols that a series of 2.0 has as labels.
///
/// # Errors
///
/// `DecodeError` if the number is truncated or overlong.
#[inline(always)]
pub fn next_ref(refs: &mut &[u8]) -> Result<u32, DecodeError> {
    // Nearly all have one or two bytes.
    match *refs {
        [byte @ ..0x80, rest @ ..] => {
            *refs = rest;
            Ok(u32::from(*byte))
        }
        [low, high @ ..0x80, rest @ ..] => {
            *refs = rest;
            Ok(u32::from(low & 0x7f) | u32::from(*high) << 7)
        }
        _ => long_ref(refs),
    }
}

fn long_ref(refs: &mut &[u8]) -> Result<u32, DecodeError> {
    let reference =
        decode_varint(refs).map_err(|_| DecodeError { offset: 0, what: "truncated or overlong reference" })?;
    // The encoding demands that higher bits are dropped.
    #[expect(clippy::cast_possible_truncation, reason = "demanded")]
    Ok(reference as u32)
}
