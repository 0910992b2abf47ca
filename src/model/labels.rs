//! Identity of a series: its sorted label set.
//!
//! This module decides which labels a store may contain; `wire` decides in which message a sender may send them.

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::model::sample::Kind;

/// Name of the label with a metric's name.
pub const METRIC_NAME: &str = "__name__";

/// Maximum characters of a label's name in an error text: names come from the sender and may be as long as the request.
const SHOWN_CHARS: usize = 64;

/// A label: a name and its value, both not empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    /// Any UTF-8 except the empty string.
    pub name: String,
    /// Any UTF-8 except the empty string: an empty value means that the label is absent.
    pub value: String,
}

/// A label set: sorted by name, each name once.
///
/// Ordered as Prometheus orders series: label by label, names before values, both byte by byte, and a set before the
/// longer sets that begin with it. Merging clients rely on that order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Vec<Label>);

/// Reason why a label set can never be stored. Names are shown lossily and cut short.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LabelsError {
    /// A label without a name; contains its value.
    #[error("a label with the value {0:?} has an empty name")]
    EmptyName(String),
    /// A name that is not UTF-8.
    #[error("the label name {0:?} is not UTF-8")]
    NameNotUtf8(String),
    /// A value that is not UTF-8; contains the name.
    #[error("the value of the label {0:?} is not UTF-8")]
    ValueNotUtf8(String),
    /// U+0000 in a name: legal for Prometheus, but PostgreSQL's text cannot store it.
    #[error("the label name {0:?} contains U+0000, which PostgreSQL cannot store")]
    NameWithNul(String),
    /// U+0000 in a value; contains the name.
    #[error("the value of the label {0:?} contains U+0000, which PostgreSQL cannot store")]
    ValueWithNul(String),
    /// The same name twice, with equal or different values.
    #[error("the label {0:?} occurs more than once")]
    Duplicate(String),
    /// No `__name__`, or an empty one.
    #[error("the series has no metric name (label \"__name__\")")]
    NoMetricName,
}

impl Labels {
    /// Creates the label set of a series that is to be stored, from labels in any order.
    ///
    /// Labels with an empty value count as absent. Labels named in `dropped` (the replica labels) are left out, because
    /// the replicas of a pair must result in the same set.
    ///
    /// # Errors
    ///
    /// `LabelsError` of a name that occurs twice, else of the first label, in the order of names, that can never be
    /// stored. The same rules apply to labels that are left out.
    pub fn new(
        pairs: impl IntoIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>,
        dropped: &[String],
    ) -> Result<Self, LabelsError> {
        let mut raw: Vec<_> = pairs.into_iter().collect();
        raw.sort_unstable_by(|(a, _), (b, _)| a.as_ref().cmp(b.as_ref()));
        if let Some(twice) = raw.windows(2).find(|two| two[0].0.as_ref() == two[1].0.as_ref()) {
            return Err(LabelsError::Duplicate(shown(twice[0].0.as_ref())));
        }
        let mut labels = Vec::with_capacity(raw.len());
        for (name, value) in &raw {
            let (name, value) = check_label(name.as_ref(), value.as_ref())?;
            if !value.is_empty() && !dropped.iter().any(|dropped| dropped == name) {
                labels.push(Label { name: name.to_owned(), value: value.to_owned() });
            }
        }
        let labels = Self(labels);
        if labels.metric_name().is_empty() { Err(LabelsError::NoMetricName) } else { Ok(labels) }
    }

    /// Creates the label set of a stored series, whose labels have passed [`Labels::new`].
    pub fn from_stored(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut labels: Vec<Label> = pairs.into_iter().map(|(name, value)| Label { name, value }).collect();
        labels.sort_unstable();
        Self(labels)
    }

    /// Returns the metric's name, or "" if there is none.
    pub fn metric_name(&self) -> &str {
        self.get(METRIC_NAME)
    }

    /// Returns the value of a label, or "" without it: for Prometheus both are the same.
    pub fn get(&self, name: &str) -> &str {
        match self.0.binary_search_by(|label| label.name.as_str().cmp(name)) {
            Ok(at) => &self.0[at].value,
            Err(_) => "",
        }
    }

    /// Returns the labels in the order of their names.
    pub fn iter(&self) -> std::slice::Iter<'_, Label> {
        self.0.iter()
    }

    /// Returns the number of labels, the metric's name included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns `true` if there is no label.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the key of the series of this kind in the database: the first 16 bytes of SHA-256 over the name and value
    /// of each label in order, each preceded by its length in bytes as a big-endian u64. For native histograms a word
    /// follows, which tells it from every key for floats: those are made from an even number of texts.
    ///
    /// The key is stored, and every adapter of a group computes it: it must never change. The lengths keep `a="bc"` and
    /// `ab="c"` apart. With 128 bits of a cryptographic hash no collision needs handling, neither by chance nor made by
    /// a sender.
    pub fn identity(&self, kind: Kind) -> [u8; 16] {
        let parts = self.0.iter().flat_map(|label| [label.name.as_bytes(), label.value.as_bytes()]);
        match kind {
            Kind::Float => identity(parts),
            Kind::Histogram => identity(parts.chain([&b"histogram"[..]])),
        }
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = &'a Label;
    type IntoIter = std::slice::Iter<'a, Label>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Returns the first 16 bytes of SHA-256 over `parts`, each preceded by its length in bytes as a big-endian u64.
pub fn identity<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    std::array::from_fn(|at| digest[at])
}

/// Returns the label as text, if it can be stored.
fn check_label<'a>(name: &'a [u8], value: &'a [u8]) -> Result<(&'a str, &'a str), LabelsError> {
    if name.is_empty() {
        return Err(LabelsError::EmptyName(shown(value)));
    }
    let name_text = str::from_utf8(name).map_err(|_| LabelsError::NameNotUtf8(shown(name)))?;
    let value_text = str::from_utf8(value).map_err(|_| LabelsError::ValueNotUtf8(shown(name)))?;
    if name.contains(&0) {
        return Err(LabelsError::NameWithNul(shown(name)));
    }
    if value.contains(&0) {
        return Err(LabelsError::ValueWithNul(shown(name)));
    }
    Ok((name_text, value_text))
}

/// Returns enough of a sender's bytes to recognise them in a message.
fn shown(bytes: &[u8]) -> String {
    // A char has at most 4 bytes, so this prefix contains every char that is shown, and no whole request is copied for
    // a message.
    let prefix = &bytes[..bytes.len().min(4 * SHOWN_CHARS)];
    let text = String::from_utf8_lossy(prefix);
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if prefix.len() < bytes.len() || text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests;
