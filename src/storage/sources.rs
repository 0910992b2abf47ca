//! Numbers of the sources that send series, for entries of the cache.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::model::source::Source;

/// Maximum number of sources. Bounds the memory that invented label values can take.
const SOURCES_MAX: usize = 65_536;

/// Number of a source in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(u32);

impl SourceId {
    /// No source: without an election by labels, or for series whose labels do not name it.
    pub const NONE: Self = Self(0);
}

/// All sources seen, numbered in the order of arrival.
#[derive(Debug, Default)]
pub struct Sources(RwLock<Numbered>);

#[derive(Debug, Default)]
struct Numbered {
    numbers: HashMap<Arc<Source>, SourceId>,
    sources: Vec<Arc<Source>>,
}

impl Sources {
    /// Returns the number of `source`, a new one if necessary; `None` if there are too many sources.
    #[must_use]
    pub fn number(&self, source: Source) -> Option<SourceId> {
        if let Some(number) = self.0.read().numbers.get(&source) {
            return Some(*number);
        }
        let mut numbered = self.0.write();
        if let Some(number) = numbered.numbers.get(&source) {
            return Some(*number);
        }
        if numbered.sources.len() == SOURCES_MAX {
            return None;
        }
        let source = Arc::new(source);
        numbered.sources.push(Arc::clone(&source));
        let number = SourceId(u32::try_from(numbered.sources.len()).unwrap_or(u32::MAX));
        numbered.numbers.insert(source, number);
        Some(number)
    }

    /// Returns the source of a number; `None` for [`SourceId::NONE`].
    #[must_use]
    pub fn source(&self, SourceId(number): SourceId) -> Option<Arc<Source>> {
        let place = number.checked_sub(1)? as usize;
        self.0.read().sources.get(place).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_keeps_its_number() {
        let sources = Sources::default();
        let source = |replica: &str| Source { cluster: "eu".into(), replica: replica.into() };
        let numbers = ["a", "b", "a"].map(|replica| sources.number(source(replica)).unwrap());
        assert_eq!(numbers[0], numbers[2]);
        assert_ne!(numbers[0], numbers[1]);
        assert_eq!(sources.source(numbers[1]).as_deref(), Some(&source("b")));
        assert_eq!(sources.source(SourceId::NONE), None);
    }
}
