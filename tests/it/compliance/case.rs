//! A case: what is sent, and what must be answered.

use prost::Message;

use super::message::{Series, Version, v1, v2};

/// A request, and what must become of it. What must be stored follows from its series: see [`Series::is_stored`].
pub(super) struct Case {
    /// Of a case of the suite, its test and case there.
    pub(super) name: String,
    pub(super) versions: &'static [Version],
    pub(super) series: Vec<Series>,
    /// Headers that replace those of the version. Without a value, the header is not sent.
    pub(super) headers: Vec<(&'static str, Option<&'static str>)>,
    change: Option<fn(&mut v2::Request)>,
    first_byte: Option<u8>,
    pub(super) status: u16,
    /// `true` if the answer to a request of 1.0 has the headers that one to 2.0 has.
    counts_as_version_2: bool,
    /// Samples, histograms and exemplars that the answer reports as written, where it reports them.
    written: [u32; 3],
    /// Reason why the answer is not the one that the suite or Prometheus' own receiver gives.
    pub(super) why: &'static str,
}

pub(super) const BOTH: &[Version] = &[Version::One, Version::Two];

/// Returns a case that must be stored, in both versions.
pub(super) fn valid<const N: usize>(name: impl Into<String>, written: [u32; 3], series: [Series; N]) -> Case {
    Case {
        name: name.into(),
        versions: BOTH,
        series: series.into(),
        headers: Vec::new(),
        change: None,
        first_byte: None,
        status: 204,
        counts_as_version_2: false,
        written,
        why: "",
    }
}

/// Returns a case that must be answered 400, in both versions. Series that must be stored all the same count as written.
pub(super) fn refused<const N: usize>(name: impl Into<String>, written: [u32; 3], series: [Series; N]) -> Case {
    Case { status: 400, ..valid(name, written, series) }
}

impl Case {
    pub(super) fn only(mut self, version: Version) -> Self {
        self.versions = match version {
            Version::One => &[Version::One],
            Version::Two => &[Version::Two],
        };
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<Option<&'static str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sends the message of 2.0 as `change` leaves it.
    pub(super) fn changed(mut self, change: fn(&mut v2::Request)) -> Self {
        self.change = Some(change);
        self.only(Version::Two)
    }

    /// Replaces the first byte of the compressed body.
    pub(super) fn corrupt(mut self, first_byte: u8) -> Self {
        self.first_byte = Some(first_byte);
        self
    }

    pub(super) fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Expects the headers of an answer to 2.0.
    pub(super) fn counts_as_version_2(mut self) -> Self {
        self.counts_as_version_2 = true;
        self
    }

    pub(super) fn why(mut self, why: &'static str) -> Self {
        self.why = why;
        self
    }

    /// Returns the body of the request, at the time of the case. `reversed`: with the labels of each series in reversed
    /// order.
    pub(super) fn body(&self, version: Version, time_ms: i64, reversed: bool) -> Vec<u8> {
        let mut series = self.series.clone();
        if reversed {
            series.iter_mut().for_each(|series| series.labels.reverse());
        }
        let message = match version {
            Version::One => v1::request(&series, time_ms).encode_to_vec(),
            Version::Two => {
                let mut request = v2::request(&series, time_ms);
                self.change.iter().for_each(|change| change(&mut request));
                request.encode_to_vec()
            }
        };
        let mut body = rig::remote_write::compress(&message);
        if let Some(byte) = self.first_byte {
            body[0] = byte;
        }
        body
    }

    /// Returns `true` if the order of labels has no meaning for what is sent.
    pub(super) fn may_be_reversed(&self) -> bool {
        self.change.is_none()
    }

    /// Returns what must stand in the headers that tell how much was written. 2.0 demands all three in each answer to a
    /// message whose type and encoding are supported. To 1.0 none may be in a 2xx, or the sender counts what is missing as
    /// failed; in a 400 they tell how much of the request was stored, if it could be read.
    pub(super) fn written(&self, version: Version) -> [Option<String>; 3] {
        let has_headers = match (version, self.status) {
            (_, 415) | (Version::One, 204) => false,
            (Version::One, _) => self.first_byte.is_none() || self.counts_as_version_2,
            (Version::Two, _) => true,
        };
        self.written.map(|count| has_headers.then(|| count.to_string()))
    }
}
