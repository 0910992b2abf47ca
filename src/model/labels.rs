//! A series' identity: its sorted label set.
//!
//! What a store may hold is decided here, label by label; what a sender may put around it is `wire`'s.

use sha2::{Digest, Sha256};
use thiserror::Error;

/// The name of the label that holds a metric's name.
pub const METRIC_NAME: &str = "__name__";

/// Characters of a label's name that an error shows; names are the sender's and may be as long as the request.
const SHOWN_CHARS: usize = 64;

/// A name and its value, neither of them empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    /// Any UTF-8 but the empty string.
    pub name: String,
    /// Any UTF-8 but the empty string: an empty value means that the label is absent.
    pub value: String,
}

/// A label set: sorted by name, each name once.
///
/// Ordered as Prometheus orders series: label by label, names before values, both byte by byte, and a set before
/// the sets that it begins. Merging clients rely on that order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Vec<Label>);

/// Why a label set can never be stored. Names are shown lossily and cut short.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LabelsError {
    /// A label without a name; holds its value.
    #[error("a label with the value {0:?} has an empty name")]
    EmptyName(String),
    /// A name that is no UTF-8.
    #[error("the label name {0:?} is not UTF-8")]
    NameNotUtf8(String),
    /// A value that is no UTF-8; holds the name.
    #[error("the value of the label {0:?} is not UTF-8")]
    ValueNotUtf8(String),
    /// U+0000 in a name: legal for Prometheus, but PostgreSQL's text has no room for it.
    #[error("the label name {0:?} contains U+0000, which PostgreSQL cannot store")]
    NameWithNul(String),
    /// U+0000 in a value; holds the name.
    #[error("the value of the label {0:?} contains U+0000, which PostgreSQL cannot store")]
    ValueWithNul(String),
    /// The same name twice, whatever the values.
    #[error("the label {0:?} occurs more than once")]
    Duplicate(String),
    /// No `__name__`, or an empty one.
    #[error("the series has no metric name (label \"__name__\")")]
    NoMetricName,
}

impl Labels {
    /// Makes the label set of a series that is to be stored, from labels in any order.
    ///
    /// Labels with an empty value count as absent, and those named in `dropped` (the replica labels) are left out:
    /// the replicas of a pair must come to the same set.
    ///
    /// # Errors
    ///
    /// Names the first label, in order of names, that can never be stored. Labels that are left out are held to the
    /// same rules as the others.
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

    /// Makes the label set of a series that was stored, whose labels [`Labels::new`] has seen.
    pub fn from_stored(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut labels: Vec<Label> = pairs.into_iter().map(|(name, value)| Label { name, value }).collect();
        labels.sort_unstable();
        Self(labels)
    }

    /// The metric's name, or "" without one.
    pub fn metric_name(&self) -> &str {
        self.get(METRIC_NAME)
    }

    /// The value of a label, or "" without it: to Prometheus the two are the same.
    pub fn get(&self, name: &str) -> &str {
        match self.0.binary_search_by(|label| label.name.as_str().cmp(name)) {
            Ok(at) => &self.0[at].value,
            Err(_) => "",
        }
    }

    /// The labels in order of their names.
    pub fn iter(&self) -> std::slice::Iter<'_, Label> {
        self.0.iter()
    }

    /// How many labels there are, the metric's name among them.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no label at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key of the series in the database: the first 16 bytes of SHA-256 over every label's name and value in
    /// order, each preceded by its length in bytes as a big-endian u64.
    ///
    /// Stored, and computed by every adapter of a group: it must never change. The lengths keep `a="bc"` and
    /// `ab="c"` apart; 128 bits of a cryptographic hash leave no collision to handle, neither by chance nor by a
    /// sender's will.
    pub fn identity(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        for part in self.0.iter().flat_map(|label| [&label.name, &label.value]) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest: [u8; 32] = hash.finalize().into();
        std::array::from_fn(|at| digest[at])
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = &'a Label;
    type IntoIter = std::slice::Iter<'a, Label>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The label as text, if it can be stored.
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

/// Enough of a sender's bytes to recognise them by in a message.
fn shown(bytes: &[u8]) -> String {
    // A char has at most 4 bytes, so this prefix holds every char that is shown, and no request is copied for a message.
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
