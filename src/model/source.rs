//! Who sends a series: a replica of a cluster, by its external labels.

/// A replica of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// The value of the label that all replicas of the cluster share.
    pub cluster: String,
    /// The value of the label that tells them apart.
    pub replica: String,
}

/// Where a series says who sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLabels {
    /// The label that names the cluster; stored.
    pub cluster: String,
    /// The labels that may name the replica; the first in this order that a series has counts. Not stored.
    pub replica: Vec<String>,
}

/// A label that a series lacks, or has with an empty value or one that is not UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the label {0:?}, which says who sends the series, is missing")]
pub struct Missing(pub String);

impl SourceLabels {
    /// Who sends a series with these labels, in any order.
    ///
    /// # Errors
    ///
    /// The first label that is missing.
    pub fn source(&self, pairs: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)]) -> Result<Source, Missing> {
        let value = |name: &str| {
            let (_, value) = pairs.iter().find(|(other, _)| other.as_ref() == name.as_bytes())?;
            let value = std::str::from_utf8(value.as_ref()).ok()?;
            (!value.is_empty()).then(|| value.to_owned())
        };
        let cluster = value(&self.cluster).ok_or_else(|| Missing(self.cluster.clone()))?;
        let replica = self.replica.iter().find_map(|name| value(name));
        let replica = replica.ok_or_else(|| Missing(self.replica.first().cloned().unwrap_or_default()))?;
        Ok(Source { cluster, replica })
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
        let found = labels().source(pairs);
        let found = found.as_ref().map(|source| (source.cluster.as_str(), source.replica.as_str()));
        assert_eq!(found.map_err(|missing| missing.0.as_str()), expected);
    }

    #[test]
    fn the_first_label_for_the_replica_that_is_there_counts() {
        check(&[("__replica__", "a"), ("cluster", "eu")], Ok(("eu", "a")));
        check(&[("cluster", "eu"), ("prometheus_replica", "b")], Ok(("eu", "b")));
        check(&[("prometheus_replica", "b"), ("__replica__", "a"), ("cluster", "eu")], Ok(("eu", "a")));
    }

    #[test]
    fn what_is_missing_is_named() {
        check(&[("__replica__", "a")], Err("cluster"));
        check(&[("cluster", "eu"), ("replica", "a")], Err("__replica__"));
        check(&[("cluster", ""), ("__replica__", "a")], Err("cluster"));
    }
}
