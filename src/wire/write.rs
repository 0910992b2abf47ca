//! A remote-write request, in the form that all versions of the message share.
//!
//! Labels stay bytes as they arrived: most series are known by the hash of those bytes, and a label that is not UTF-8
//! must make its series fail and not its request. `model::labels` decides which series can be stored.

use std::borrow::Cow;
use std::ops::Range;

use crate::model::sample::Sample;
use crate::wire::protobuf::{DecodeError, Scanner};

pub mod v1;

/// A decoded request; borrows from the body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request<'a> {
    /// Series in the order of the message. Real senders repeat a series for each of its samples.
    pub series: Vec<Series<'a>>,
    /// Samples of all series, one series after the other.
    pub samples: Vec<Sample>,
    /// Number of exemplars of all series. Counted, not decoded.
    pub exemplars: usize,
    /// Number of native histograms of all series. Counted, not decoded.
    pub histograms: usize,
    /// Number of metadata entries of the request. Counted, not decoded.
    pub metadata: usize,
}

/// One series of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Series<'a> {
    /// Label fields of a 1.0 `TimeSeries` as on the wire, with tags and lengths, in order. [`label_pairs`] reads them,
    /// and a cache may hash them. Not validated. Borrowed unless other fields stand between them.
    pub labels: Cow<'a, [u8]>,
    /// Range of its samples in [`Request::samples`].
    pub samples: Range<u32>,
    /// Number of exemplars of the series.
    pub exemplars: u32,
    /// Number of native histograms of the series.
    pub histograms: u32,
}

/// Name and value of a label, as they arrived.
pub type Pair<'a> = (&'a [u8], &'a [u8]);

impl Request<'_> {
    /// Returns the samples of one series of the request.
    pub fn samples_of(&self, series: &Series<'_>) -> &[Sample] {
        &self.samples[series.samples.start as usize..series.samples.end as usize]
    }
}

/// Decodes [`Series::labels`] into names and values, in the order of the message, neither sorted nor validated.
///
/// # Errors
///
/// `DecodeError` if a label is malformed, with the offset within `labels`; nothing follows an error.
pub fn label_pairs(labels: &[u8]) -> impl Iterator<Item = Result<Pair<'_>, DecodeError>> {
    let mut fields = Scanner::new(labels);
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let pair = next_pair(&mut fields).transpose();
        failed = matches!(pair, Some(Err(_)));
        pair
    })
}

/// Reads the next `TimeSeries.labels` field: a message of name=1 and value=2.
fn next_pair<'a>(fields: &mut Scanner<'a>) -> Result<Option<Pair<'a>>, DecodeError> {
    let Some(field) = fields.next_field()? else {
        return Ok(None);
    };
    let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
    let mut label = fields.nested(field.bytes()?);
    while let Some(field) = label.next_field()? {
        match field.number {
            1 => name = field.bytes()?,
            2 => value = field.bytes()?,
            _ => {}
        }
    }
    Ok(Some((name, value)))
}
