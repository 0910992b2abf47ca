//! Sender of a series: a replica of a cluster, by its external labels.

/// A replica of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// Value of the label that all replicas of the cluster share.
    pub cluster: String,
    /// Value of the label that differs between them.
    pub replica: String,
}

/// Labels by which a series names its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLabels {
    /// Label that names the cluster; stored.
    pub cluster: String,
    /// Labels that may name the replica, in order of preference: the first one that a series has counts. Not stored.
    pub replica: Vec<String>,
}

/// Maximum length of the name of a cluster or replica, in bytes: the names are in an index, whose entries are bounded.
pub const NAME_BYTES_MAX: usize = 256;

/// Reason why the sender of a series is not known; each variant names the label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unnamed {
    /// The series lacks the label, or its value is empty or not UTF-8.
    #[error("the label {0:?}, which says who sends the series, is missing")]
    Missing(String),
    /// The value is longer than [`NAME_BYTES_MAX`].
    #[error("the label {label:?}, which says who sends the series, has {bytes} bytes, more than {NAME_BYTES_MAX}")]
    TooLong {
        /// Name of the label.
        label: String,
        /// Length of its value.
        bytes: usize,
    },
    /// The value has a character that the database's encoding may lack.
    #[error(
        "the label {label:?}, which says who sends the series, is not ASCII: that needs a database with the encoding UTF8, and \
         this one has {encoding}"
    )]
    NotAscii {
        /// Name of the label.
        label: String,
        /// Encoding of the database.
        encoding: String,
    },
}

impl SourceLabels {
    /// Returns the sender of a series with these labels, in any order. `encoding` is the database's, if it lacks some
    /// characters. Then names must be ASCII: a name that cannot be converted would fail the statement that serves all
    /// clusters.
    ///
    /// # Errors
    ///
    /// `Unnamed` of the first label that is missing or not accepted.
    pub fn source(
        &self,
        pairs: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)],
        encoding: Option<&str>,
    ) -> Result<Source, Unnamed> {
        let value = |label: &str| {
            let (_, value) = pairs.iter().find(|(other, _)| other.as_ref() == label.as_bytes())?;
            let value = std::str::from_utf8(value.as_ref()).ok()?;
            (!value.is_empty()).then_some(value)
        };
        let name = |labels: &[String]| {
            let missing = || Unnamed::Missing(labels.first().cloned().unwrap_or_default());
            let (label, value) = labels.iter().find_map(|label| Some((label, value(label)?))).ok_or_else(missing)?;
            if value.len() > NAME_BYTES_MAX {
                return Err(Unnamed::TooLong { label: label.clone(), bytes: value.len() });
            }
            match encoding {
                Some(encoding) if !value.is_ascii() => {
                    Err(Unnamed::NotAscii { label: label.clone(), encoding: encoding.to_owned() })
                }
                _ => Ok(value.to_owned()),
            }
        };
        Ok(Source { cluster: name(std::slice::from_ref(&self.cluster))?, replica: name(&self.replica)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> SourceLabels {
        SourceLabels { cluster: "cluster".into(), replica: vec!["__replica__".into(), "prometheus_replica".into()] }
    }

    #[track_caller]
    fn check(pairs: &[(&str, &str)], expected: Result<(&str, &str), &str>) {
        let found = labels().source(pairs, None);
        let found = found.as_ref().map(|source| (source.cluster.as_str(), source.replica.as_str()));
        assert_eq!(found, expected.map_err(|label| Unnamed::Missing(label.to_owned())).as_ref().copied());
    }

    #[test]
    fn the_first_label_for_the_replica_that_is_there_counts() {
        check(&[("__replica__", "a"), ("cluster", "eu")], Ok(("eu", "a")));
        check(&[("cluster", "eu"), ("prometheus_replica", "b")], Ok(("eu", "b")));
        check(&[("prometheus_replica", "b"), ("__replica__", "a"), ("cluster", "eu")], Ok(("eu", "a")));
    }

    #[test]
    fn a_name_is_bounded_and_has_a_place_in_the_database() {
        let longest = "x".repeat(NAME_BYTES_MAX);
        check(&[("cluster", &longest), ("__replica__", &longest)], Ok((&longest, &longest)));
        let source = |cluster: &str, encoding| labels().source(&[("cluster", cluster), ("__replica__", "a")], encoding);
        let label = || "cluster".to_owned();
        let too_long = Unnamed::TooLong { label: label(), bytes: NAME_BYTES_MAX + 2 };
        assert_eq!(source(&format!("{longest}é"), None), Err(too_long));
        assert_eq!(source("é", None).map(|source| source.cluster), Ok("é".to_owned()));
        let not_ascii = Unnamed::NotAscii { label: label(), encoding: "LATIN1".into() };
        assert_eq!(source("é", Some("LATIN1")), Err(not_ascii));
        assert_eq!(source("e", Some("LATIN1")).map(|source| source.cluster), Ok("e".to_owned()));
    }

    #[test]
    fn what_is_missing_is_named() {
        check(&[("__replica__", "a")], Err("cluster"));
        check(&[("cluster", "eu"), ("replica", "a")], Err("__replica__"));
        check(&[("cluster", ""), ("__replica__", "a")], Err("cluster"));
    }
}
