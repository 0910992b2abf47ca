//! Spans: how Prometheus lists which buckets a native histogram has.

/// Neighbouring buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Buckets between the end of the span before and this one; of the first span, its first index.
    pub(super) offset: i32,
    /// Number of buckets, also 0.
    pub(super) length: u32,
}

/// Returns the spans of buckets with these ascending indices.
pub(super) fn to_spans(indices: impl IntoIterator<Item = i32>) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    // The index after the last bucket.
    let mut end = 0;
    for index in indices.into_iter().map(i64::from) {
        let gap = index - end;
        match spans.last_mut() {
            Some(last) if gap == 0 => last.length += 1,
            _ => {
                // Buckets may be further apart than one offset can tell.
                let offset = i32::try_from(gap).unwrap_or(i32::MAX);
                spans.push(Span { offset, length: 1 });
                if let Ok(rest) = i32::try_from(gap - i64::from(offset))
                    && rest > 0
                    && let Some(last) = spans.last_mut()
                {
                    last.length = 0;
                    spans.push(Span { offset: rest, length: 1 });
                }
            }
        }
        end = index + 1;
    }
    spans
}

/// Returns the indices of the buckets that spans list.
///
/// # Errors
///
/// If an index is no i32, or there are more than `max` buckets.
pub(super) fn to_indices(spans: &[Span], max: usize) -> Result<Vec<i32>, &'static str> {
    let count = spans.iter().fold(0, |sum, span| u64::from(span.length) + sum);
    if count > max as u64 {
        return Err("more buckets than there can be");
    }
    let (mut indices, mut end) = (Vec::new(), 0_i64);
    for span in spans {
        let start = end + i64::from(span.offset);
        end = start + i64::from(span.length);
        for index in start..end {
            indices.push(i32::try_from(index).map_err(|_| "an index of more than 32 bits")?);
        }
    }
    Ok(indices)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_spans() {
        let spans = |indices: &[i32]| {
            let spans = to_spans(indices.iter().copied());
            assert_eq!(to_indices(&spans, indices.len()), Ok(indices.to_vec()));
            spans.iter().map(|span| (span.offset, span.length)).collect::<Vec<_>>()
        };
        assert_eq!(spans(&[]), []);
        assert_eq!(spans(&[0, 1, 3]), [(0, 2), (1, 1)]);
        assert_eq!(spans(&[-2, 5, 6]), [(-2, 1), (6, 2)]);
        assert_eq!(spans(&[i32::MIN, -1, i32::MAX]), [(i32::MIN, 1), (i32::MAX - 1, 1), (i32::MAX, 1)]);
        assert_eq!(spans(&[i32::MIN, i32::MAX]), [(i32::MIN, 1), (i32::MAX, 0), (i32::MAX, 1)]);
    }

    proptest! {
        #[test]
        fn indices_survive(indices in prop::collection::btree_set(prop_oneof![any::<i32>(), -9..9], 0..20)) {
            let spans = to_spans(indices.iter().copied());
            prop_assert_eq!(to_indices(&spans, indices.len()), Ok(indices.into_iter().collect()));
        }

        #[test]
        fn arbitrary_spans_never_panic(spans in prop::collection::vec(any::<(i32, u32)>(), 0..9)) {
            let spans: Vec<_> = spans.into_iter().map(|(offset, length)| Span { offset, length }).collect();
            let _ = to_indices(&spans, 100);
        }
    }
}
