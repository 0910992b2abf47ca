//! What a remote-write request says, whichever version of the message said it.
//!
//! Labels stay bytes as they came: most series are known by the hash of those bytes, and a label that is no UTF-8
//! must sink its series and not its request. What makes a series storable is `model::labels`' to say.

use std::borrow::Cow;
use std::ops::Range;

use crate::model::sample::Sample;
use crate::wire::protobuf::{DecodeError, Scanner};

pub mod v1;

/// A decoded request; borrows from the body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request<'a> {
    /// In the order of the message. Real senders repeat a series for each of its samples.
    pub series: Vec<Series<'a>>,
    /// The samples of all series, one series after the other.
    pub samples: Vec<Sample>,
    /// How many exemplars all series carry. Counted, not decoded.
    pub exemplars: usize,
    /// How many native histograms all series carry. Counted, not decoded.
    pub histograms: usize,
    /// How many entries of metadata the request carries. Counted, not decoded.
    pub metadata: usize,
}

/// One series of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Series<'a> {
    /// The label fields of a 1.0 `TimeSeries` as they stand on the wire, tags and lengths included, in order: what
    /// [`label_pairs`] reads, and what a cache may hash. Not validated. Borrowed unless other fields stand between.
    pub labels: Cow<'a, [u8]>,
    /// Where the samples are in [`Request::samples`].
    pub samples: Range<u32>,
    /// How many exemplars the series carries.
    pub exemplars: u32,
    /// How many native histograms the series carries.
    pub histograms: u32,
}

/// A label's name and value, as they came.
pub type Pair<'a> = (&'a [u8], &'a [u8]);

impl Request<'_> {
    /// The samples of one of the request's series.
    pub fn samples_of(&self, series: &Series<'_>) -> &[Sample] {
        &self.samples[series.samples.start as usize..series.samples.end as usize]
    }
}

/// Decodes [`Series::labels`] into names and values, in the order of the message, neither sorted nor validated.
///
/// # Errors
///
/// When a label is malformed, with the offset within `labels`; nothing comes after an error.
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

/// The next `TimeSeries.labels` field: a message of name=1 and value=2.
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
