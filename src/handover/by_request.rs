//! Buffered samples, request by request, as a take-over stores them. Pure.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use uuid::Uuid;

use crate::handover::buffer::Buffered;

/// Divides a buffer, which is taken out part by part, into its requests.
#[derive(Debug, Default)]
pub struct ByRequest {
    /// Keys of the requests in the parts before.
    keys: HashSet<Uuid>,
}

impl ByRequest {
    /// Divides the next part. Returns the key and the samples of each request, in the order of arrival; and the samples
    /// of requests of which other samples were in a part before: under the key of their request nothing can be stored
    /// any more, so they are to be compared with what is stored.
    pub fn divide(&mut self, samples: &[Buffered]) -> (Vec<(Uuid, Vec<Buffered>)>, Vec<Buffered>) {
        let (mut requests, mut rest) = (BTreeMap::<(Instant, Uuid), Vec<Buffered>>::new(), Vec::new());
        for sample in samples {
            match self.keys.contains(&sample.key) {
                true => rest.push(sample.clone()),
                false => requests.entry((sample.arrived, sample.key)).or_default().push(sample.clone()),
            }
        }
        self.keys.extend(requests.keys().map(|(_, key)| *key));
        (requests.into_iter().map(|((_, key), samples)| (key, samples)).collect(), rest)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::sample::Value;
    use crate::storage::row::Row;

    #[test]
    fn what_comes_after_other_samples_of_its_request_is_compared() {
        let now = Instant::now();
        let [one, other] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let sample = |key, seconds, series_id| Buffered {
            row: Row { series_id, time_ms: 1_000, value: Value::Float(0.5) },
            is_stamped: false,
            arrived: now + Duration::from_secs(seconds),
            key,
        };
        let mut by_request = ByRequest::default();
        let mut divide = |samples: &[Buffered]| {
            let (requests, rest) = by_request.divide(samples);
            let ids = |samples: Vec<Buffered>| samples.iter().map(|sample| sample.row.series_id).collect::<Vec<_>>();
            (requests.into_iter().map(|(key, samples)| (key, ids(samples))).collect::<Vec<_>>(), ids(rest))
        };
        let first = [sample(other, 2, 3), sample(one, 1, 1), sample(other, 2, 4)];
        assert_eq!(divide(&first), (vec![(one, vec![1]), (other, vec![3, 4])], vec![]));
        // Taken out to be reconciled and put back, or sent again in the same bytes.
        let third = Uuid::from_u128(3);
        assert_eq!(
            divide(&[sample(one, 1, 2), sample(third, 3, 5), sample(one, 4, 1)]),
            (vec![(third, vec![5])], vec![2, 1])
        );
    }
}
