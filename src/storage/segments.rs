//! The partitions of the samples, each a span of time.

use std::sync::RwLock;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::postgres::error::Error;
use crate::storage::names::{Names, identifier};
use crate::storage::row::Row;

/// Samples older than this when the store was made share one segment, so that a stray ancient timestamp costs no
/// partition of its own.
const OPEN_SPAN: Duration = Duration::from_secs(30 * 24 * 3600);

/// A span of time, the lower bound included, the upper not; ms since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Inclusive.
    pub lower_ms: i64,
    /// Exclusive.
    pub upper_ms: i64,
}

/// Which segments exist, as far as this adapter knows.
#[derive(Debug, Default)]
pub struct Known {
    /// In order, without overlap.
    spans: RwLock<Vec<Span>>,
}

impl Span {
    /// Whether `time_ms` lies in it.
    #[must_use]
    pub fn contains(&self, time_ms: i64) -> bool {
        self.lower_ms <= time_ms && time_ms < self.upper_ms
    }
}

/// The span a new segment for `time_ms` takes: that of `interval` around it, aligned to 1970, cut where `existing` ones
/// (in order) begin and end. `None` if one of those holds it already.
#[must_use]
pub fn span_for(time_ms: i64, interval: Duration, existing: &[Span]) -> Option<Span> {
    let interval_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
    let lower_ms = time_ms - time_ms.rem_euclid(interval_ms);
    let mut span = Span { lower_ms, upper_ms: lower_ms.saturating_add(interval_ms) };
    for other in existing {
        if other.contains(time_ms) {
            return None;
        }
        if other.upper_ms <= time_ms {
            span.lower_ms = span.lower_ms.max(other.upper_ms);
        } else {
            span.upper_ms = span.upper_ms.min(other.lower_ms);
        }
    }
    Some(span)
}

impl Known {
    /// The first time among `rows` that no known segment holds.
    #[must_use]
    pub fn missing(&self, rows: &[Row]) -> Option<i64> {
        let spans = self.spans.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut last: Option<Span> = None;
        rows.iter().map(|row| row.time_ms).find(|time_ms| {
            if last.is_some_and(|span| span.contains(*time_ms)) {
                return false;
            }
            last = spans.iter().rev().find(|span| span.contains(*time_ms)).copied();
            last.is_none()
        })
    }

    /// Forgets everything: another adapter may have dropped a segment.
    pub fn forget(&self) {
        self.replace(Vec::new());
    }

    /// How many are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.read().unwrap_or_else(std::sync::PoisonError::into_inner).len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn replace(&self, spans: Vec<Span>) {
        *self.spans.write().unwrap_or_else(std::sync::PoisonError::into_inner) = spans;
    }
}

/// Makes the segment for `time_ms` unless there is one, by a transaction of its own, and learns of those that others
/// have made. `now_ms` decides, for the very first segment only, what counts as ancient.
///
/// # Errors
///
/// What the server said.
pub async fn ensure(
    client: &Client,
    names: &Names,
    known: &Known,
    time_ms: i64,
    now_ms: i64,
    interval: Duration,
) -> Result<(), Error> {
    client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '10s'").await?;
    let made = ensure_locked(client, names, time_ms, now_ms, interval).await;
    match made {
        Ok(spans) => {
            client.batch_execute("COMMIT").await?;
            known.replace(spans);
            Ok(())
        }
        Err(error) => {
            // The first error is the one to report; a session that cannot roll back is closed by its owner.
            let _ = client.batch_execute("ROLLBACK").await;
            Err(error)
        }
    }
}

async fn ensure_locked(
    client: &Client,
    names: &Names,
    time_ms: i64,
    now_ms: i64,
    interval: Duration,
) -> Result<Vec<Span>, Error> {
    client.batch_execute(&names.fill("LOCK TABLE {segments} IN SHARE ROW EXCLUSIVE MODE")).await?;
    let mut spans = list(client, names).await?;
    if spans.is_empty() {
        let open_ms = i64::try_from(OPEN_SPAN.as_millis()).unwrap_or(i64::MAX);
        let interval_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
        let upper_ms = (now_ms - open_ms).div_euclid(interval_ms) * interval_ms;
        let ancient = Span { lower_ms: i64::MIN, upper_ms };
        make(client, names, ancient).await?;
        spans.push(ancient);
    }
    if let Some(span) = span_for(time_ms, interval, &spans) {
        make(client, names, span).await?;
        spans.push(span);
        spans.sort_unstable();
    }
    Ok(spans)
}

/// Attaching takes no lock that a reader of the other segments would wait for, as CREATE TABLE … PARTITION OF would.
async fn make(client: &Client, names: &Names, span: Span) -> Result<(), Error> {
    let suffix = if span.lower_ms == i64::MIN {
        "_samples_before".to_owned()
    } else {
        format!("_samples_{}", span.lower_ms / 1000)
    };
    let relation = names.relation(&suffix);
    let (lower, upper) = (bound(span.lower_ms), bound(span.upper_ms));
    let table = format!("{}.{}", names.schema(), identifier(&relation));
    let statement = names.fill(&format!(
        "CREATE TABLE {table} (LIKE {{samples}} INCLUDING DEFAULTS); \
         ALTER TABLE {{samples}} ATTACH PARTITION {table} FOR VALUES FROM ({lower}) TO ({upper})"
    ));
    client.batch_execute(&statement).await?;
    let lower = if span.lower_ms == i64::MIN { "NULL".to_owned() } else { lower };
    let statement =
        names.fill(&format!("INSERT INTO {{segments}} (relation, lower, upper) VALUES ($1, {lower}, {upper})"));
    client.execute_typed(&statement, &[(&relation, Type::TEXT)]).await?;
    log::info!("made segment {relation}");
    Ok(())
}

/// All segments, in order.
async fn list(client: &Client, names: &Names) -> Result<Vec<Span>, Error> {
    let statement = names.fill(
        "SELECT (extract(epoch FROM lower) * 1000)::int8, (extract(epoch FROM upper) * 1000)::int8 \
         FROM {segments} ORDER BY upper",
    );
    let rows = client.query_typed(&statement, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Span { lower_ms: row.try_get::<_, Option<i64>>(0)?.unwrap_or(i64::MIN), upper_ms: row.try_get(1)? })
        })
        .collect()
}

fn bound(time_ms: i64) -> String {
    if time_ms == i64::MIN {
        return "MINVALUE".to_owned();
    }
    format!("to_timestamp({time_ms}::float8 / 1000)")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn segments_never_overlap_and_hold_what_they_were_made_for(
            times in prop::collection::vec((0_i64..1_000_000, 1_u64..50_000), 1..60)
        ) {
            let mut spans: Vec<Span> = Vec::new();
            for (time_ms, interval_ms) in times {
                if let Some(span) = span_for(time_ms, Duration::from_millis(interval_ms), &spans) {
                    prop_assert!(span.contains(time_ms));
                    spans.push(span);
                    spans.sort_unstable();
                }
                prop_assert!(spans.iter().any(|span| span.contains(time_ms)));
                prop_assert!(spans.windows(2).all(|pair| pair[0].upper_ms <= pair[1].lower_ms));
            }
        }
    }
}
