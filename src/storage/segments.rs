//! Partitions of the sealed samples; each is a span of time.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::model::time::as_ms;
use crate::postgres::error::Error;
use crate::postgres::in_transaction;
use crate::storage::names::{Names, identifier};

/// Age from which samples share one segment, if they are also older than all samples stored before the first of them. A
/// stray ancient timestamp then does not need a partition of its own.
const OPEN_SPAN: Duration = Duration::from_secs(30 * 24 * 3600);

/// A span of time in ms since 1970, with the lower bound included and the upper bound excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Inclusive.
    pub lower_ms: i64,
    /// Exclusive.
    pub upper_ms: i64,
}

impl Span {
    /// Returns `true` if `time_ms` is within the span.
    #[must_use]
    pub fn contains(&self, time_ms: i64) -> bool {
        self.lower_ms <= time_ms && time_ms < self.upper_ms
    }
}

/// Returns the span of a new segment for `time_ms`: the span of `interval` around it, aligned to 1970, without the
/// parts that `existing` segments (in order) cover. Returns `None` if one of them contains `time_ms` already.
#[must_use]
pub fn span_for(time_ms: i64, interval: Duration, existing: &[Span]) -> Option<Span> {
    let interval_ms = as_ms(interval).max(1);
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

/// Returns the span without a lower bound if `time_ms` is to be the first time in it.
#[must_use]
pub fn ancient_for(time_ms: i64, now_ms: i64, interval: Duration, existing: &[Span]) -> Option<Span> {
    let interval_ms = as_ms(interval).max(1);
    let open_ms = now_ms.saturating_sub(as_ms(OPEN_SPAN));
    let upper_ms = open_ms.saturating_sub(open_ms.rem_euclid(interval_ms));
    let upper_ms = existing.first().map_or(upper_ms, |first| first.lower_ms.min(upper_ms));
    (time_ms < upper_ms).then_some(Span { lower_ms: i64::MIN, upper_ms })
}

/// Returns all segments, in order, including those for `times_ms`. Missing ones are created, in a transaction of this
/// function. `now_ms`, by the server's clock, decides which times are ancient when the first of them arrives.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn ensure(
    client: &Client,
    names: &Names,
    times_ms: &BTreeSet<i64>,
    now_ms: i64,
    interval: Duration,
) -> Result<Vec<Span>, Error> {
    let spans = list(client, names).await?;
    if times_ms.iter().all(|time_ms| find(&spans, *time_ms).is_some()) {
        return Ok(spans);
    }
    // A frozen adapter must not keep others from sealing.
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '10s'; \
                 SET LOCAL idle_in_transaction_session_timeout = '10s'";
    in_transaction(client, begin, async {
        client.batch_execute(&names.sql("LOCK TABLE {segments} IN SHARE ROW EXCLUSIVE MODE")).await?;
        let mut spans = list(client, names).await?;
        for time_ms in times_ms {
            let span = ancient_for(*time_ms, now_ms, interval, &spans).or_else(|| span_for(*time_ms, interval, &spans));
            if let Some(span) = span {
                make(client, names, span).await?;
                spans.push(span);
                spans.sort_unstable();
            }
        }
        Ok(spans)
    })
    .await
}

/// Returns the span in `spans` (in order) that contains `time_ms`.
#[must_use]
pub fn find(spans: &[Span], time_ms: i64) -> Option<Span> {
    let after = spans.partition_point(|span| span.upper_ms <= time_ms);
    spans.get(after).copied().filter(|span| span.contains(time_ms))
}

/// Creates and attaches a partition. ATTACH takes no lock that blocks readers of other segments, unlike CREATE TABLE …
/// PARTITION OF.
async fn make(client: &Client, names: &Names, span: Span) -> Result<(), Error> {
    // In milliseconds if the lower bound is not a whole second.
    let suffix = match span.lower_ms {
        i64::MIN => "_sealed_before".to_owned(),
        lower_ms if lower_ms % 1000 == 0 => format!("_sealed_{}", lower_ms / 1000),
        lower_ms => format!("_sealed_{lower_ms}ms"),
    };
    let relation = names.relation(&suffix);
    let (lower, upper) = (bound(span.lower_ms), bound(span.upper_ms));
    let table = format!("{}.{}", names.schema(), identifier(&relation));
    let statement = names.sql(&format!(
        "CREATE TABLE {table} (LIKE {{sealed}} INCLUDING STORAGE); \
         ALTER TABLE {{sealed}} ATTACH PARTITION {table} FOR VALUES FROM ({lower}) TO ({upper})"
    ));
    client.batch_execute(&statement).await?;
    let lower = if span.lower_ms == i64::MIN { "NULL".to_owned() } else { lower };
    let statement =
        names.sql(&format!("INSERT INTO {{segments}} (relation, lower, upper) VALUES ($1, {lower}, {upper})"));
    client.execute_typed(&statement, &[(&relation, Type::NAME)]).await?;
    log::info!(table = relation.as_str(); "made a segment");
    Ok(())
}

/// Returns all segments, in order.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn list(client: &Client, names: &Names) -> Result<Vec<Span>, Error> {
    let statement = names.sql(
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
            let now_ms = 31 * 24 * 3_600_000;
            for (time_ms, interval_ms) in times {
                let interval = Duration::from_millis(interval_ms);
                let span = ancient_for(time_ms * 90, now_ms, interval, &spans).or_else(|| span_for(time_ms * 90, interval, &spans));
                let time_ms = time_ms * 90;
                if let Some(span) = span {
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
