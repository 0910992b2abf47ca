//! What remote read asks for: series by matchers, and their samples, streamed.

use std::pin::Pin;
use std::time::Duration;

use deadpool_postgres::Pool;
use futures_util::{Stream, StreamExt};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CancelToken, RowStream};
use tokio_util::task::TaskTracker;

use crate::model::labels::{Labels, METRIC_NAME};
use crate::model::matcher::{Matcher, Op};
use crate::model::sample::Sample;
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Connector, Pooled};
use crate::storage::names::Names;
use crate::storage::row::{from_postgres_us, to_postgres_us};
use crate::storage::series::from_json;

/// Series one query may select: bounds the labels held in memory.
pub const SERIES_MAX: usize = 1_000_000;

/// How long one statement of a read may take: twice what Prometheus waits (1 m), for those who wait longer.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(120);

/// A read under way: one snapshot, one connection, given back by [`Reading::end`].
pub struct Reading {
    connection: Pooled,
    names: Names,
    /// Cancels what still runs when the reader has left.
    on_leave: OnLeave,
}

struct OnLeave {
    token: CancelToken,
    connector: Connector,
    tracker: TaskTracker,
    ended: bool,
}

/// Samples in the order of the series asked for, then of time.
pub struct Samples {
    rows: Pin<Box<RowStream>>,
    last: Option<(usize, i64)>,
}

impl Reading {
    /// Begins a read-only transaction that sees one state of the database throughout.
    ///
    /// # Errors
    ///
    /// What the server said, or that there is no connection.
    pub async fn begin(
        pool: &Pool,
        names: &Names,
        connector: &Connector,
        tracker: &TaskTracker,
    ) -> Result<Self, Error> {
        let connection = Pooled::take(pool).await?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = {}",
            STATEMENT_TIMEOUT.as_millis()
        );
        connection.batch_execute(&begin).await?;
        let on_leave = OnLeave {
            token: connection.cancel_token(),
            connector: connector.clone(),
            tracker: tracker.clone(),
            ended: false,
        };
        Ok(Self { connection, names: names.clone(), on_leave })
    }

    /// The series that all `matchers` match, in the order of their labels. PostgreSQL narrows by what it has indexes
    /// for; what a matcher means is decided here, over every label set it returns.
    ///
    /// # Errors
    ///
    /// [`Error::Unfit`] when they are more than [`SERIES_MAX`], or what the server said.
    pub async fn series(&self, matchers: &[Matcher]) -> Result<Vec<(Labels, i64)>, Error> {
        let (statement, parameters) = candidates(&self.names, matchers);
        let parameters = parameters.iter().map(|text| (text as &(dyn ToSql + Sync), Type::TEXT));
        let rows = self.connection.query_typed_raw(&statement, parameters).await?;
        tokio::pin!(rows);
        let mut series = Vec::new();
        while let Some(row) = rows.next().await {
            let row = row?;
            let labels = from_json(row.try_get(1)?, row.try_get(2)?)?;
            if matchers.iter().all(|matcher| matcher.matches(&labels)) {
                if series.len() == SERIES_MAX {
                    return Err(Error::Unfit(format!(
                        "the query selects more than {SERIES_MAX} series: narrow its matchers"
                    )));
                }
                series.push((labels, row.try_get(0)?));
            }
        }
        series.sort_unstable();
        Ok(series)
    }

    /// The samples of the series with these ids from `start_ms` to `end_ms`, both included.
    ///
    /// # Errors
    ///
    /// What the server said.
    pub async fn samples(&self, ids: &[i64], start_ms: i64, end_ms: i64) -> Result<Samples, Error> {
        let statement = self.names.fill(
            "SELECT wanted.place, s.\"time\", s.value \
             FROM unnest($1::bigint[]) WITH ORDINALITY AS wanted (id, place) JOIN {samples} s ON s.series_id = wanted.id \
             WHERE s.\"time\" >= $2 AND s.\"time\" <= $3 ORDER BY wanted.place, s.\"time\"",
        );
        let ids: Vec<i64> = ids.to_vec();
        let (start, end) = (Timestamp(to_postgres_us(start_ms)), Timestamp(to_postgres_us(end_ms)));
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&ids, Type::INT8_ARRAY), (&start, Type::TIMESTAMPTZ), (&end, Type::TIMESTAMPTZ)];
        let rows = self.connection.query_typed_raw(&statement, parameters).await?;
        Ok(Samples { rows: Box::pin(rows), last: None })
    }

    /// Ends the transaction and gives the connection back.
    ///
    /// # Errors
    ///
    /// What the server said; the connection is then closed.
    pub async fn end(mut self) -> Result<(), Error> {
        self.on_leave.ended = true;
        self.connection.batch_execute("COMMIT").await?;
        self.connection.give_back();
        Ok(())
    }
}

impl Samples {
    /// The next sample, with the place of its series among the ids asked for. Of equal times only one is returned.
    ///
    /// # Errors
    ///
    /// What the server said, in the midst of the stream too.
    pub async fn next(&mut self) -> Result<Option<(usize, Sample)>, Error> {
        loop {
            let Some(row) = std::future::poll_fn(|context| self.rows.as_mut().poll_next(context)).await else {
                return Ok(None);
            };
            let row = row?;
            let place: i64 = row.try_get(0)?;
            let place = usize::try_from(place - 1).unwrap_or_default();
            let Timestamp(time_us) = row.try_get(1)?;
            let timestamp_ms = from_postgres_us(time_us);
            if self.last.replace((place, timestamp_ms)) != Some((place, timestamp_ms)) {
                return Ok(Some((place, Sample { timestamp_ms, value: row.try_get(2)? })));
            }
        }
    }
}

impl Drop for OnLeave {
    fn drop(&mut self) {
        if !self.ended {
            let (connector, token) = (self.connector.clone(), self.token.clone());
            self.tracker.spawn(async move { connector.cancel(token).await });
        }
    }
}

/// The statement that fetches every series that might match, and its parameters.
fn candidates(names: &Names, matchers: &[Matcher]) -> (String, Vec<String>) {
    let mut statement = names.fill("SELECT id, name, labels::text FROM {series}");
    let mut parameters = Vec::new();
    // An empty value would match series without the label, which no index finds; U+0000 is none that the server takes.
    let has_index = |matcher: &&Matcher| {
        let texts = [matcher.name(), matcher.value()];
        matcher.op() == Op::Equal && !matcher.value().is_empty() && !texts.iter().any(|text| text.contains('\0'))
    };
    for matcher in matchers.iter().filter(has_index) {
        let word = if parameters.is_empty() { "WHERE" } else { "AND" };
        let number = parameters.len() + 1;
        if matcher.name() == METRIC_NAME {
            statement.push_str(&format!(" {word} name = ${number}"));
            parameters.push(matcher.value().to_owned());
        } else {
            statement.push_str(&format!(" {word} labels @> ${number}::jsonb"));
            parameters.push(serde_json::json!({ matcher.name(): matcher.value() }).to_string());
        }
    }
    (statement, parameters)
}
