//! The part of a request that can never be stored, with reasons for its sender. Pure.

use crate::model::sample::Kind;
use crate::wire::write::{Request, Series};

/// Numbers of what a request has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Floats.
    pub samples: usize,
    /// Native histograms.
    pub histograms: usize,
    /// Exemplars.
    pub exemplars: usize,
}

impl Counts {
    /// Counts one sample more of a series of this kind.
    pub fn add(&mut self, kind: Kind) {
        match kind {
            Kind::Float => self.samples += 1,
            Kind::Histogram => self.histograms += 1,
        }
    }
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            samples: self.samples + other.samples,
            histograms: self.histograms + other.histograms,
            exemplars: self.exemplars + other.exemplars,
        }
    }
}

impl std::ops::Sub for Counts {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            samples: self.samples - other.samples,
            histograms: self.histograms - other.histograms,
            exemplars: self.exemplars - other.exemplars,
        }
    }
}

/// Part of a request that can never be stored.
#[derive(Debug, Default)]
pub struct Rejected {
    /// Numbers of what is rejected.
    pub counts: Counts,
    /// Reasons for the first few.
    pub reasons: Vec<String>,
}

/// Maximum bytes of a name or value shown in an error text.
const SHOWN_BYTES: usize = 200;

/// Maximum number of reasons in an answer; further samples are only counted.
const REASONS_MAX: usize = 10;

impl Rejected {
    /// Counts one sample more of a series of this kind, with a reason.
    pub fn add(&mut self, kind: Kind, why: impl FnOnce() -> String) {
        self.counts.add(kind);
        self.explain(why);
    }

    /// Counts all samples of a series, with a reason, and all native histograms but those that are invalid: these are
    /// counted apart, as are its exemplars.
    pub fn add_series(&mut self, request: &Request<'_>, series: &Series<'_>, why: impl FnOnce() -> String) {
        self.counts.samples += series.samples.len();
        self.counts.histograms += request.histograms_of(series).iter().filter(|one| one.value.is_ok()).count();
        self.explain(why);
    }

    /// Counts one exemplar more, with a reason.
    pub fn add_exemplar(&mut self, why: impl FnOnce() -> String) {
        self.counts.exemplars += 1;
        self.explain(why);
    }

    fn explain(&mut self, why: impl FnOnce() -> String) {
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push(why());
        }
    }

    /// Returns `true` if nothing is rejected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Formats a series for a message: the readable labels, truncated.
#[must_use]
pub(super) fn show(request: &Request<'_>, series: &Series<'_>) -> String {
    let mut text = String::from("{");
    for (name, value) in request.label_pairs(series).map_while(Result::ok) {
        let separator = if text.len() > 1 { ", " } else { "" };
        // No more of the bytes is read than is shown.
        let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES)]).into_owned();
        text.push_str(&format!("{separator}{}={:?}", shown(name), shown(value)));
        if text.len() > SHOWN_BYTES {
            let cut = (0..=SHOWN_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(cut);
            text.push('…');
            break;
        }
    }
    text.push('}');
    text
}
