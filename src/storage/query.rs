//! Remote read: finds series by matchers, and streams their samples.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use deadpool_postgres::Pool;
use futures_util::StreamExt;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CancelToken, RowStream};
use tokio_util::task::TaskTracker;

use crate::model::histogram::Numbers;
use crate::model::labels::Labels;
use crate::model::matcher::Matcher;
use crate::model::sample::{Point, Value};
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Connector, Pooled};
use crate::storage::chunk::{Corrupt, Encoded, Places, bucket_of, histograms, place_of};
use crate::storage::fence::WITHOUT_JIT;
use crate::storage::layout::Layout;
use crate::storage::names::Names;
use crate::storage::query::candidates::candidates;
use crate::storage::row::{from_postgres_us, is_of_histograms, to_postgres_us};
use crate::storage::seal::chunks::{CHUNK_COLUMNS, read_chunk};
use crate::storage::series::from_json;

pub use self::series_ids::SeriesIds;

mod candidates;
mod series_ids;

/// Maximum number of series that one query may select. Bounds the memory for their labels.
pub const SERIES_MAX: usize = 1_000_000;

/// The chunks of the buckets $1 that have times from $2 to $3 and some of the places $4. Skips segments outside the
/// range.
const CHUNKS_IN_RANGE: &str = "FROM {sealed} c WHERE c.bucket = ANY ($1) AND c.places & $4 <> 0 AND c.last >= $2 AND c.first <= $3 \
     AND c.first >= (SELECT coalesce(max(lower), '-infinity') FROM {segments} WHERE lower <= $2)";

/// The sealed samples of the series $1 from $2 to $3 in a hypertable.
const ROWS_IN_RANGE: &str = "FROM {samples} WHERE series_id = ANY ($1) AND \"time\" >= $2 AND \"time\" <= $3";

/// The hot samples of the series $1 from $2 to $3, in the order of storing.
const HOT_IN_RANGE: &str = "SELECT h.id, h.\"time\", h.value FROM (SELECT \"time\", unnest(series) AS id, unnest(value) AS value, no FROM {hot} \
     WHERE \"time\" >= $2 AND \"time\" <= $3 AND array_ndims(value) = 1 AND series[1] <= (SELECT max(id) FROM unnest($1) AS u (id)) \
     AND series[cardinality(series)] >= (SELECT min(id) FROM unnest($1) AS u (id)) \
     AND (cardinality($1) > 8 OR series && $1)) h \
     JOIN unnest($1) AS wanted (id) ON wanted.id = h.id ORDER BY h.no";

/// The hot native histograms of the series $1 from $2 to $3.
const HOT_HISTOGRAMS: &str =
    "FROM {hot} WHERE \"time\" >= $2 AND \"time\" <= $3 AND series[1] = ANY ($1) AND array_ndims(value) = 2";

/// Bytes fetched at once; chunks count compressed. Bounds the memory of a reader, unless a single bucket, or a single
/// series of a hypertable, is larger.
const BATCH_BYTES: u64 = 16 * 1024 * 1024;

/// Timeout of one statement of a read: twice the timeout of Prometheus (1 m), for readers that wait longer.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(120);

/// A read in progress, on one connection, which [`Reading::end`] returns to the pool. With chunks it has one snapshot;
/// with a hypertable each statement takes its own.
pub struct Reading {
    connection: Pooled,
    names: Names,
    layout: Layout,
    /// Cancels the running statement if the reader is dropped early.
    on_leave: OnLeave,
}

struct OnLeave {
    token: CancelToken,
    connector: Connector,
    tracker: TaskTracker,
    ended: bool,
}

/// Samples in the order of the requested series, then of time.
pub struct Samples<'a> {
    reading: &'a Reading,
    ids: Vec<SeriesIds>,
    start_ms: i64,
    end_ms: i64,
    /// Bytes in the range, per bucket or per series of a hypertable.
    sizes: HashMap<i64, u64>,
    /// Index of the series whose samples are current.
    place: usize,
    current: std::vec::IntoIter<Point>,
    batch: Batch,
}

/// A part of the series: their chunks as stored, or their rows of a hypertable, and their hot samples.
#[derive(Default)]
struct Batch {
    places: Range<usize>,
    chunks: HashMap<i64, Vec<Encoded>>,
    sealed: HashMap<i64, Vec<Point>>,
    hot: HashMap<i64, Vec<Point>>,
}

impl Reading {
    /// Begins a read-only transaction. With chunks it sees one state of the database throughout.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, or that no connection is available.
    pub async fn begin(
        pool: &Pool,
        names: &Names,
        layout: Layout,
        connector: &Connector,
        tracker: &TaskTracker,
    ) -> Result<Self, Error> {
        let connection = Pooled::take(pool).await?;
        // TimescaleDB compresses a segment by truncating it, so an earlier snapshot would miss the segment's samples.
        let level = match layout {
            Layout::Chunks => "REPEATABLE READ",
            Layout::Hypertable => "READ COMMITTED",
        };
        let begin = format!(
            "BEGIN ISOLATION LEVEL {level} READ ONLY; {WITHOUT_JIT}; SET LOCAL statement_timeout = {}",
            STATEMENT_TIMEOUT.as_millis()
        );
        connection.batch_execute(&begin).await?;
        let on_leave = OnLeave {
            token: connection.cancel_token(),
            connector: connector.clone(),
            tracker: tracker.clone(),
            ended: false,
        };
        Ok(Self { connection, names: names.clone(), layout, on_leave })
    }

    /// Returns the series that all `matchers` match, in the order of their labels. PostgreSQL narrows the candidates by
    /// its indexes; the matchers are then applied here to every label set that it returns.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] for more than [`SERIES_MAX`] series; errors of the server or of the connection.
    pub async fn series(&self, matchers: &[Matcher]) -> Result<Vec<(Labels, SeriesIds)>, Error> {
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
                    return Err(Error::TooLarge(format!(
                        "the query selects more than {SERIES_MAX} series: narrow its matchers"
                    )));
                }
                series.push((labels, row.try_get(0)?));
            }
        }
        series.sort_unstable();
        let mut found: Vec<(Labels, SeriesIds)> = Vec::with_capacity(series.len());
        for (labels, id) in series {
            if found.last().is_none_or(|(last, _)| *last != labels) {
                found.push((labels, SeriesIds::default()));
            }
            if let Some((_, ids)) = found.last_mut() {
                ids.add(id);
            }
        }
        Ok(found)
    }

    /// Returns the samples of the series `series` from `start_ms` to `end_ms`, both included.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection.
    pub async fn samples(&self, series: &[SeriesIds], start_ms: i64, end_ms: i64) -> Result<Samples<'_>, Error> {
        let ids: Vec<i64> = series.iter().copied().flat_map(SeriesIds::iter).collect();
        let rows = match self.layout {
            Layout::Chunks => {
                let sizes =
                    format!("SELECT c.bucket, sum(pg_column_size(c))::bigint {CHUNKS_IN_RANGE} GROUP BY c.bucket");
                self.chunks_in_range(&self.names.sql(&sizes), &ids, start_ms, end_ms).await?
            }
            Layout::Hypertable => {
                let sizes = format!(
                    "SELECT series_id, sum(16 + 8 * coalesce(cardinality(histogram), 0)) {ROWS_IN_RANGE} GROUP BY series_id"
                );
                self.rows_in_range(&self.names.sql(&sizes), &ids, start_ms, end_ms).await?
            }
        };
        tokio::pin!(rows);
        let mut sizes = HashMap::new();
        while let Some(row) = rows.next().await {
            let row = row?;
            sizes.insert(row.try_get(0)?, row.try_get::<_, i64>(1)?.unsigned_abs());
        }
        for (id, bytes) in self.hot_histogram_sizes(&ids, start_ms, end_ms).await? {
            *sizes.entry(self.unit(id)).or_default() += bytes;
        }
        Ok(Samples {
            reading: self,
            ids: series.to_vec(),
            start_ms,
            end_ms,
            sizes,
            place: 0,
            current: Vec::new().into_iter(),
            batch: Batch::default(),
        })
    }

    /// Returns what is fetched together with a series: its bucket, or the series alone.
    fn unit(&self, id: i64) -> i64 {
        match self.layout {
            Layout::Chunks => bucket_of(id),
            Layout::Hypertable => id,
        }
    }

    /// Returns the bytes of hot native histograms in the range, by series. Those of floats are few.
    async fn hot_histogram_sizes(&self, ids: &[i64], start_ms: i64, end_ms: i64) -> Result<Vec<(i64, u64)>, Error> {
        let ids: Vec<i64> = ids.iter().copied().filter(|id| is_of_histograms(*id)).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let statement =
            self.names.sql(&format!("SELECT series[1], sum(8 * cardinality(value)) {HOT_HISTOGRAMS} GROUP BY 1"));
        let rows = self.rows_in_range(&statement, &ids, start_ms, end_ms).await?;
        tokio::pin!(rows);
        let mut sizes = Vec::new();
        while let Some(row) = rows.next().await {
            let row = row?;
            sizes.push((row.try_get(0)?, row.try_get::<_, i64>(1)?.unsigned_abs()));
        }
        Ok(sizes)
    }

    /// Returns the chunks of these series in the range.
    async fn chunks(&self, ids: &[i64], start_ms: i64, end_ms: i64) -> Result<HashMap<i64, Vec<Encoded>>, Error> {
        let statement = self.names.sql(&format!("SELECT {CHUNK_COLUMNS} {CHUNKS_IN_RANGE}"));
        let rows = self.chunks_in_range(&statement, ids, start_ms, end_ms).await?;
        tokio::pin!(rows);
        let mut chunks: HashMap<i64, Vec<Encoded>> = HashMap::new();
        while let Some(row) = rows.next().await {
            let chunk = read_chunk(&row?)?;
            chunks.entry(chunk.bucket).or_default().push(chunk);
        }
        Ok(chunks)
    }

    /// Returns samples by series; `statement` returns id, time, value, and perhaps the numbers of a histogram instead of it.
    async fn rows(
        &self,
        statement: &str,
        ids: &[i64],
        start_ms: i64,
        end_ms: i64,
    ) -> Result<HashMap<i64, Vec<Point>>, Error> {
        let rows = self.rows_in_range(&self.names.sql(statement), ids, start_ms, end_ms).await?;
        tokio::pin!(rows);
        let mut samples: HashMap<i64, Vec<Point>> = HashMap::new();
        while let Some(row) = rows.next().await {
            let row = row?;
            let Timestamp(time_us) = row.try_get(1)?;
            let numbers = if row.len() > 3 { row.try_get::<_, Option<Vec<f64>>>(3)? } else { None };
            let value = match numbers {
                Some(numbers) => Value::Histogram(Numbers::from_stored(numbers)),
                None => Value::Float(row.try_get(2)?),
            };
            let sample = Point { timestamp_ms: from_postgres_us(time_us), value };
            samples.entry(row.try_get(0)?).or_default().push(sample);
        }
        Ok(samples)
    }

    async fn rows_in_range(
        &self,
        statement: &str,
        ids: &[i64],
        start_ms: i64,
        end_ms: i64,
    ) -> Result<RowStream, tokio_postgres::Error> {
        let (start, end) = (Timestamp(to_postgres_us(start_ms)), Timestamp(to_postgres_us(end_ms)));
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&ids, Type::INT8_ARRAY), (&start, Type::TIMESTAMPTZ), (&end, Type::TIMESTAMPTZ)];
        self.connection.query_typed_raw(statement, parameters).await
    }

    async fn chunks_in_range(
        &self,
        statement: &str,
        ids: &[i64],
        start_ms: i64,
        end_ms: i64,
    ) -> Result<RowStream, tokio_postgres::Error> {
        let mut buckets: Vec<i64> = ids.iter().map(|id| bucket_of(*id)).collect();
        buckets.sort_unstable();
        buckets.dedup();
        let places = ids.iter().fold(Places::default(), |places, id| places.with(place_of(*id)));
        let (start, end) = (Timestamp(to_postgres_us(start_ms)), Timestamp(to_postgres_us(end_ms)));
        let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
            (&buckets, Type::INT8_ARRAY),
            (&start, Type::TIMESTAMPTZ),
            (&end, Type::TIMESTAMPTZ),
            (&places.0, Type::INT4),
        ];
        self.connection.query_typed_raw(statement, parameters).await
    }

    /// Ends the transaction and returns the connection to the pool.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, which is then closed.
    pub async fn end(mut self) -> Result<(), Error> {
        self.on_leave.ended = true;
        self.connection.batch_execute("COMMIT").await?;
        self.connection.give_back();
        Ok(())
    }
}

impl Samples<'_> {
    /// Returns the next sample, with the index of its series in the requested ids. Of samples with equal times it
    /// returns the one stored first.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, also in the middle of the stream; or that a chunk is corrupt.
    pub async fn next(&mut self) -> Result<Option<(usize, Point)>, Error> {
        loop {
            if let Some(sample) = self.current.next() {
                return Ok(Some((self.place, sample)));
            }
            match self.batch.places.next() {
                Some(place) => {
                    self.place = place;
                    self.current = self.series(self.ids[place])?.into_iter();
                }
                None if self.batch.places.end == self.ids.len() => return Ok(None),
                None => self.fetch().await?,
            }
        }
    }

    /// Fetches as many further series as fit into the bound, at least one.
    async fn fetch(&mut self) -> Result<(), Error> {
        let first = self.batch.places.end;
        self.batch = Batch::default();
        let mut seen = HashSet::new();
        let mut bytes = 0;
        let fits = |(place, ids): &(usize, &SeriesIds)| {
            for id in ids.iter() {
                let unit = self.reading.unit(id);
                if seen.insert(unit) {
                    bytes += self.sizes.get(&unit).copied().unwrap_or_default();
                }
            }
            bytes <= BATCH_BYTES || *place == 0
        };
        let count = self.ids[first..].iter().enumerate().take_while(fits).count();
        let ids: Vec<i64> = self.ids[first..first + count].iter().copied().flat_map(SeriesIds::iter).collect();
        let histogram_ids: Vec<i64> = ids.iter().copied().filter(|id| is_of_histograms(*id)).collect();
        let (reading, start_ms, end_ms) = (self.reading, self.start_ms, self.end_ms);
        // Hot samples are read first. If each statement takes its own snapshot, samples sealed meanwhile are then read
        // twice and never missed.
        let mut hot = reading.rows(HOT_IN_RANGE, &ids, start_ms, end_ms).await?;
        if !histogram_ids.is_empty() {
            let statement = format!(
                "SELECT series[1], \"time\", NULL::float8, ARRAY(SELECT unnest(value)) {HOT_HISTOGRAMS} ORDER BY no"
            );
            for (id, points) in reading.rows(&statement, &histogram_ids, start_ms, end_ms).await? {
                hot.entry(id).or_default().extend(points);
            }
        }
        let (chunks, sealed) = match reading.layout {
            Layout::Chunks => (reading.chunks(&ids, start_ms, end_ms).await?, HashMap::new()),
            Layout::Hypertable => {
                let statement = format!("SELECT series_id, \"time\", value, histogram {ROWS_IN_RANGE}");
                (HashMap::new(), reading.rows(&statement, &ids, start_ms, end_ms).await?)
            }
        };
        self.batch = Batch { places: first..first + count, chunks, sealed, hot };
        Ok(())
    }

    /// Returns one series of the batch, in the order of time. At one time a float counts, and not a histogram.
    fn series(&mut self, ids: SeriesIds) -> Result<Vec<Point>, Error> {
        let mut points = Vec::new();
        for id in ids.iter() {
            self.append(id, &mut points)?;
        }
        if !points.is_sorted_by(|one, next| one.timestamp_ms < next.timestamp_ms) {
            // Stable sort: sealed samples stay before hot ones, and hot ones in the order of storing.
            points.sort_by_key(|point| point.timestamp_ms);
            points.dedup_by_key(|point| point.timestamp_ms);
        }
        Ok(points)
    }

    /// Appends the samples of one id, the sealed ones first.
    fn append(&mut self, id: i64, samples: &mut Vec<Point>) -> Result<(), Error> {
        let place = place_of(id);
        for chunk in self.batch.chunks.get(&bucket_of(id)).into_iter().flatten() {
            let mut decode = || -> Result<(), Corrupt> {
                if !chunk.places.contains(place) {
                    return Ok(());
                }
                if is_of_histograms(id) {
                    let in_range = |time_ms| (self.start_ms..=self.end_ms).contains(&time_ms);
                    let points = histograms::decode(chunk)?.into_iter().filter(|(time_ms, _)| in_range(*time_ms));
                    samples.extend(points.map(|(timestamp_ms, value)| Point { timestamp_ms, value }));
                    return Ok(());
                }
                let times = chunk.times()?;
                let Some(values) = chunk.decode_series(place, &times)? else { return Ok(()) };
                let from = times.partition_point(|time_ms| *time_ms < self.start_ms);
                let to = times.partition_point(|time_ms| *time_ms <= self.end_ms);
                let both = times.iter().zip(values).take(to).skip(from);
                samples
                    .extend(both.map(|(time_ms, value)| Point { timestamp_ms: *time_ms, value: Value::Float(value) }));
                Ok(())
            };
            decode().map_err(|why| Error::Corrupt(format!("a chunk of series {id} is corrupt: {why}")))?;
        }
        samples.extend(self.batch.sealed.remove(&id).unwrap_or_default());
        samples.extend(self.batch.hot.remove(&id).unwrap_or_default());
        Ok(())
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
