//! Reads what is stored around samples.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::pin::{Pin, pin};

use futures_util::StreamExt;
use futures_util::future::try_join3;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row as Record, RowStream};

use crate::model::sample::Value;
use crate::model::sender::SenderNo;
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Pooled, within};
use crate::storage::Store;
pub use crate::storage::around::windows::Near;
use crate::storage::around::windows::{Span, Windows};
use crate::storage::chunk::{Corrupt, Encoded, Places, bucket_of, series_at};
use crate::storage::fence::BY_INDEX;
use crate::storage::hot::Elements;
use crate::storage::layout::Layout;
use crate::storage::row::{from_postgres_us, to_postgres_us};
use crate::storage::server::Epoch;

mod windows;

/// A time at which a series has a stored sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredTime {
    /// Milliseconds since 1970.
    pub time_ms: i64,
    /// Sender of the sample, if known. The sender of a sealed sample is not known.
    pub sender: Option<SenderNo>,
    /// `true` for a stale marker. Not known, and `false`, for a last time that is sealed and not around the samples.
    pub is_marker: bool,
}

/// Stored samples around some samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// Per series: the stored times within the window around one of the samples, ascending, without duplicates.
    pub times: HashMap<i64, Vec<StoredTime>>,
    /// Per series for which it was requested: the last stored time, unless it is before the window of the first sample.
    pub last_ms: HashMap<i64, StoredTime>,
}

/// Maximum number of time spans in which hot rows are searched: each is a condition on every row.
const SPANS_MAX: usize = 8;

impl Store {
    /// Returns what is stored around samples now; their series ids were found in `epoch`.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, or that `epoch` is over.
    pub async fn around(&self, parts: &[Near<'_>], epoch: Epoch) -> Result<Around, Error> {
        self.counted(within(self.config.send_timeout, async {
            let check = self.server.check(&self.names, epoch)?;
            let client = Pooled::take(&self.pool).await?;
            let begin = format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SELECT set_config('statement_timeout', '{}', true), \
                 {BY_INDEX}, {check}",
                self.config.send_timeout.as_millis()
            );
            let ((), around, ()) =
                try_join3(async { Ok(client.batch_execute(&begin).await?) }, self.read_around(&client, parts), async {
                    Ok(client.batch_execute("COMMIT").await?)
                })
                .await?;
            client.give_back();
            Ok(around)
        }))
        .await
    }

    /// Sends its statements at once, without waiting for answers in between. Each statement takes its own snapshot. Hot
    /// rows are read first, so that samples sealed meanwhile are read twice and never missed.
    pub(super) async fn read_around(&self, client: &Client, parts: &[Near<'_>]) -> Result<Around, Error> {
        let windows = &Windows::new(parts.iter().copied());
        let sealed = async {
            match self.layout {
                Layout::Chunks => self.chunks_around(client, windows).await,
                Layout::Hypertable => self.rows_around(client, windows).await,
            }
        };
        let (mut around, sealed, last) =
            try_join3(self.hot_around(client, windows), sealed, self.sealed_last(client, windows)).await?;
        for (series_id, stored) in sealed {
            around.times.entry(series_id).or_default().push(stored);
        }
        for times in around.times.values_mut() {
            // A sample sealed meanwhile is found twice; the entry that names its sender comes first and is kept.
            times.sort_unstable_by_key(|time| {
                (time.time_ms, time.sender.is_none(), time.is_marker, Reverse(time.sender))
            });
            times.dedup_by_key(|time| time.time_ms);
        }
        for (series_id, time_ms) in last {
            let times = around.times.get(&series_id).map_or(&[][..], Vec::as_slice);
            let place = times.binary_search_by_key(&time_ms, |stored| stored.time_ms);
            let is_marker = place.is_ok_and(|place| times[place].is_marker);
            around.later(series_id, StoredTime { time_ms, sender: None, is_marker });
        }
        Ok(around)
    }

    async fn hot_around(&self, client: &Client, windows: &Windows) -> Result<Around, Error> {
        let mut around = Around::default();
        let mut spans = windows.spans(SPANS_MAX);
        spans.extend(windows.unbounded().map(|(_, since_ms)| since_ms).min().map(|since_ms| (since_ms, i64::MAX)));
        let (lowers, uppers): (Vec<_>, Vec<_>) =
            spans.iter().map(|(from_ms, to_ms)| (at(*from_ms), at(*to_ms))).unzip();
        let ids = windows.ids();
        let (least, most): (Vec<i64>, Vec<i64>) = windows.ranges().iter().copied().unzip();
        if ids.is_empty() {
            return Ok(around);
        }
        let within = |n| format!("\"time\" >= ($1::timestamptz[])[{n}] AND \"time\" <= ($2::timestamptz[])[{n}]");
        let within: Vec<String> = (1..=spans.len()).map(within).collect();
        // The conditions on the first and last series skip rows cheaply; the arrays are searched only for a few series.
        let statement = self.names.sql(&format!(
            "SELECT \"time\", sender, series FROM {{hot}} WHERE ({}) AND EXISTS (SELECT FROM unnest($3::bigint[], $4::bigint[]) \
             AS r (least, most) WHERE series[1] <= r.most AND series[cardinality(series)] >= r.least) \
             AND (cardinality($5::bigint[]) > 8 OR series && $5)",
            within.join(" OR ")
        ));
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&lowers, Type::TIMESTAMPTZ_ARRAY),
            (&uppers, Type::TIMESTAMPTZ_ARRAY),
            (&least, Type::INT8_ARRAY),
            (&most, Type::INT8_ARRAY),
            (&ids, Type::INT8_ARRAY),
        ];
        let mut rows = pin!(client.query_typed_raw(&statement, parameters).await?);
        while let Some(row) = rows.next().await {
            let row = row?;
            let (Timestamp(time_us), sender): (_, i32) = (row.try_get(0)?, row.try_get(1)?);
            let series: Elements<'_> = row.try_get(2)?;
            let (sender, is_marker) = SenderNo(sender).split();
            let sender = Some(sender).filter(|sender| *sender != SenderNo::UNKNOWN);
            let stored = StoredTime { time_ms: from_postgres_us(time_us), sender, is_marker };
            windows.find(series.iter().map(i64::from_be_bytes), stored.time_ms, |series_id, is_near, is_last| {
                if is_near {
                    around.times.entry(series_id).or_default().push(stored);
                }
                if is_last {
                    around.later(series_id, stored);
                }
            });
        }
        Ok(around)
    }

    /// Returns series and times from chunks. Skips a chunk that cannot be decoded. Decodes values only of chunks that
    /// may have a stale marker.
    async fn chunks_around(&self, client: &Client, windows: &Windows) -> Result<Vec<(i64, StoredTime)>, Error> {
        let statement = self.names.sql(
            "SELECT c.bucket, c.first, c.last, c.places, c.times, n.data, n.floats FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) \
             AS w (bucket, lower, upper) JOIN {sealed} c ON c.bucket = w.bucket AND c.last >= w.lower AND c.first <= w.upper \
             LEFT JOIN LATERAL (SELECT c.data, c.floats WHERE 'NaN' = ANY (c.floats)) n ON true \
             WHERE c.first >= (SELECT coalesce(max(lower), '-infinity') FROM {segments} WHERE lower <= $4) AND c.first <= $5",
        );
        let mut found = Vec::new();
        let Some(mut rows) = self.in_windows(client, &statement, windows, bucket_of).await? else { return Ok(found) };
        while let Some(row) = rows.next().await {
            let row = row?;
            let (Timestamp(first_us), Timestamp(last_us)) = (row.try_get(1)?, row.try_get(2)?);
            let (bucket, places) = (row.try_get(0)?, Places(row.try_get(3)?));
            let chunk = Encoded {
                bucket,
                first_ms: from_postgres_us(first_us),
                last_ms: from_postgres_us(last_us),
                times: row.try_get(4)?,
                data: row.try_get::<_, Option<_>>(5)?.unwrap_or_default(),
                floats: row.try_get::<_, Option<_>>(6)?.unwrap_or_default(),
                places,
            };
            let mut find = || {
                let times_ms = chunk.times()?;
                for place in places.iter() {
                    let series_id = series_at(bucket, place);
                    let mut near = windows.near(series_id, &times_ms).peekable();
                    let markers = match near.peek() {
                        Some(_) if !chunk.floats.is_empty() => chunk.markers(place, &times_ms)?,
                        _ => Vec::new(),
                    };
                    let stored = |time_ms| {
                        let is_marker = markers.binary_search(&time_ms).is_ok();
                        (series_id, StoredTime { time_ms, sender: None, is_marker })
                    };
                    found.extend(near.map(stored));
                }
                Ok::<_, Corrupt>(())
            };
            match find() {
                Ok(()) => {}
                Err(why) => log::error!(
                    first_series = series_at(bucket, 0), last_series = series_at(bucket + 1, 0) - 1, err:% = why;
                    "a chunk is corrupt, and samples are compared with what is stored without it"
                ),
            }
        }
        Ok(found)
    }

    /// Returns series and times from a hypertable.
    async fn rows_around(&self, client: &Client, windows: &Windows) -> Result<Vec<(i64, StoredTime)>, Error> {
        let statement = self.names.sql(
            "SELECT s.series_id, s.\"time\", s.value FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) \
             AS w (id, lower, upper) JOIN {samples} s ON s.series_id = w.id AND s.\"time\" >= w.lower AND s.\"time\" <= w.upper \
             WHERE s.\"time\" >= $4 AND s.\"time\" <= $5",
        );
        let mut found = Vec::new();
        let Some(mut rows) = self.in_windows(client, &statement, windows, |id| id).await? else { return Ok(found) };
        while let Some(row) = rows.next().await {
            let row = row?;
            let Timestamp(time_us) = row.try_get(1)?;
            let is_marker = Value::Float(row.try_get(2)?).is_marker();
            let stored = StoredTime { time_ms: from_postgres_us(time_us), sender: None, is_marker };
            found.push((row.try_get(0)?, stored));
        }
        Ok(found)
    }

    /// Runs `statement` on the sealed samples in the windows, merged by `unit`. Its parameters are the units, the
    /// starts and ends of their windows, and the start and end of all windows. Returns `None` if there are no windows.
    async fn in_windows(
        &self,
        client: &Client,
        statement: &str,
        windows: &Windows,
        unit: impl Fn(i64) -> i64,
    ) -> Result<Option<Pin<Box<RowStream>>>, Error> {
        let Some((first_ms, last_ms)) = windows.spans(1).first().copied() else { return Ok(None) };
        let (units, spans): (Vec<i64>, Vec<Span>) = windows.by(unit).into_iter().unzip();
        let (lowers, uppers): (Vec<_>, Vec<_>) =
            spans.iter().map(|(from_ms, to_ms)| (at(*from_ms), at(*to_ms))).unzip();
        let (first, last) = (at(first_ms), at(last_ms));
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&units, Type::INT8_ARRAY),
            (&lowers, Type::TIMESTAMPTZ_ARRAY),
            (&uppers, Type::TIMESTAMPTZ_ARRAY),
            (&first, Type::TIMESTAMPTZ),
            (&last, Type::TIMESTAMPTZ),
        ];
        Ok(Some(Box::pin(client.query_typed_raw(statement, parameters).await?)))
    }

    /// Returns the last sealed times of the series for which they are wanted.
    async fn sealed_last(&self, client: &Client, windows: &Windows) -> Result<Vec<(i64, i64)>, Error> {
        let (ids, since): (Vec<i64>, Vec<Timestamp>) =
            windows.unbounded().map(|(id, since_ms)| (id, at(since_ms))).unzip();
        let Some(first) = since.iter().min() else { return Ok(Vec::new()) };
        // Reads the end of the index for each series.
        let statement = match self.layout {
            Layout::Chunks => {
                "SELECT w.id, l.last FROM unnest($1::bigint[], $2::timestamptz[]) AS w (id, since) CROSS JOIN LATERAL ( \
                 SELECT c.last FROM {sealed} c WHERE c.bucket = w.id >> 5 AND c.places >> (w.id & 31)::integer & 1 = 1 \
                 AND c.last >= w.since AND c.first >= (SELECT coalesce(max(lower), '-infinity') FROM {segments} \
                 WHERE lower <= $3) ORDER BY c.last DESC LIMIT 1) l"
            }
            Layout::Hypertable => {
                "SELECT w.id, l.last FROM unnest($1::bigint[], $2::timestamptz[]) AS w (id, since) CROSS JOIN LATERAL ( \
                 SELECT s.\"time\" AS last FROM {samples} s WHERE s.series_id = w.id AND s.\"time\" >= w.since \
                 AND s.\"time\" >= $3 ORDER BY s.\"time\" DESC LIMIT 1) l"
            }
        };
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&ids, Type::INT8_ARRAY), (&since, Type::TIMESTAMPTZ_ARRAY), (first, Type::TIMESTAMPTZ)];
        let rows = client.query_typed(&self.names.sql(statement), &parameters).await?;
        let last = |row: &Record| {
            let Timestamp(time_us) = row.try_get(1)?;
            Ok((row.try_get(0)?, from_postgres_us(time_us)))
        };
        rows.iter().map(last).collect()
    }
}

impl Around {
    /// Records a stored time of a series, which may be its last.
    fn later(&mut self, series_id: i64, stored: StoredTime) {
        let last = self.last_ms.entry(series_id).or_insert(stored);
        if last.time_ms < stored.time_ms {
            *last = stored;
        }
    }
}

fn at(time_ms: i64) -> Timestamp {
    Timestamp(to_postgres_us(time_ms))
}
