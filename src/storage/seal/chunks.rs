//! Chunks in the database: finds those that samples reach into, takes them out, and stores new ones.

use std::collections::HashMap;

use tokio_postgres::Row as Record;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};

use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::storage::chunk::{self, Encoded, Places};
use crate::storage::names::Names;
use crate::storage::row::{Row, from_postgres_us, to_postgres_us};
use crate::storage::seal::chunk_batch::ChunkBatch;
use crate::storage::seal::hot_rows::{HotRows, Reach};
use crate::storage::segments::{self, Span};
use tokio_postgres::Client;

/// Columns that [`read_chunk`] reads, of a table with the alias `c`.
pub const CHUNK_COLUMNS: &str = "c.bucket, c.first, c.last, c.places, c.length, c.times, c.data, c.floats";

const CHUNK_COLUMNS_BARE: &str = "bucket, first, last, places, length, times, data, floats";

/// Columns that identify a chunk, without its data.
pub(super) struct ChunkKey {
    pub(super) bucket: i64,
    first_ms: i64,
    last_ms: i64,
    places: Places,
}

impl ChunkKey {
    pub(super) fn read(record: &Record) -> Result<Self, Error> {
        let (Timestamp(first), Timestamp(last)) = (record.try_get(1)?, record.try_get(2)?);
        Ok(Self {
            bucket: record.try_get(0)?,
            first_ms: from_postgres_us(first),
            last_ms: from_postgres_us(last),
            places: Places(record.try_get(3)?),
        })
    }
}

/// The chunks of a store, accessed by a session with an open transaction.
#[derive(Clone, Copy)]
pub(super) struct Chunks<'a> {
    pub(super) client: &'a Client,
    pub(super) names: &'a Names,
}

impl Chunks<'_> {
    /// Returns, by bucket, the chunks that hot samples reach into: a chunk and the hot samples share a series, and
    /// their times overlap.
    pub(super) async fn reached(&self, hot: &HotRows, spans: &[Span]) -> Result<HashMap<i64, Vec<ChunkKey>>, Error> {
        let mut reached: HashMap<i64, Vec<ChunkKey>> = HashMap::new();
        let (Some(earliest_ms), Some(latest_ms)) = (hot.times_ms().min(), hot.times_ms().max()) else {
            return Ok(reached);
        };
        let lower_ms = segments::find(spans, earliest_ms).map_or(i64::MIN, |span| span.lower_ms);
        let reaches: HashMap<i64, Reach> = hot.buckets().map(|bucket| (bucket, hot.reach(bucket))).collect();
        let ids: Vec<i64> = reaches.keys().copied().collect();
        let ends = |of: fn(&Reach) -> i64| -> Vec<Timestamp> {
            ids.iter().map(|bucket| Timestamp(to_postgres_us(of(&reaches[bucket])))).collect()
        };
        let (firsts, lasts) = (ends(|reach| reach.first_ms), ends(|reach| reach.last_ms));
        let (lower, upper) = (Timestamp(to_postgres_us(lower_ms)), Timestamp(to_postgres_us(latest_ms)));
        let statement = self.names.sql(
            "SELECT c.bucket, c.first, c.last, c.places \
             FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) AS w (bucket, first, last) \
             JOIN {sealed} c ON c.bucket = w.bucket AND c.last >= w.first AND c.first <= w.last \
             WHERE c.first >= $4 AND c.first <= $5",
        );
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&ids, Type::INT8_ARRAY),
            (&firsts, Type::TIMESTAMPTZ_ARRAY),
            (&lasts, Type::TIMESTAMPTZ_ARRAY),
            (&lower, Type::TIMESTAMPTZ),
            (&upper, Type::TIMESTAMPTZ),
        ];
        for record in self.client.query_typed(&statement, &parameters).await? {
            let head = ChunkKey::read(&record)?;
            let is_reached = |reach: &Reach| reach.is_into(head.places, head.first_ms, head.last_ms);
            if reaches.get(&head.bucket).is_some_and(is_reached) {
                reached.entry(head.bucket).or_default().push(head);
            }
        }
        Ok(reached)
    }

    /// Deletes chunks and returns their samples by bucket. A chunk that cannot be decoded is stored again unchanged.
    pub(super) async fn take(
        &self,
        heads: &[&ChunkKey],
        made: &mut ChunkBatch<'_>,
    ) -> Result<HashMap<i64, Vec<Row>>, Error> {
        let mut rows: HashMap<i64, Vec<Row>> = HashMap::new();
        if heads.is_empty() {
            return Ok(rows);
        }
        let times = |of: fn(&ChunkKey) -> i64| -> Vec<Timestamp> {
            heads.iter().map(|head| Timestamp(to_postgres_us(of(head)))).collect()
        };
        let (buckets, places): (Vec<i64>, Vec<i32>) = heads.iter().map(|head| (head.bucket, head.places.0)).unzip();
        let (firsts, lasts) = (times(|head| head.first_ms), times(|head| head.last_ms));
        let statement = self.names.sql(&format!(
            "DELETE FROM {{sealed}} c USING \
             (SELECT DISTINCT * FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[], $4::integer[]) \
             AS u (bucket, first, last, places)) w \
             WHERE c.bucket = w.bucket AND c.first = w.first AND c.last = w.last AND c.places = w.places RETURNING {CHUNK_COLUMNS}"
        ));
        let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
            (&buckets, Type::INT8_ARRAY),
            (&firsts, Type::TIMESTAMPTZ_ARRAY),
            (&lasts, Type::TIMESTAMPTZ_ARRAY),
            (&places, Type::INT4_ARRAY),
        ];
        for record in self.client.query_typed(&statement, &parameters).await? {
            let encoded = read_chunk(&record)?;
            made.replaced += 1;
            match encoded.rows() {
                Ok(decoded) => {
                    made.count(encoded.first_ms, decoded.len(), -1);
                    rows.entry(encoded.bucket).or_default().extend(decoded);
                }
                Err(why) => {
                    log::error!(
                        first_series = chunk::series_at(encoded.bucket, 0),
                        last_series = chunk::series_at(encoded.bucket + 1, 0) - 1, err:% = why;
                        "a chunk is corrupt, and left as it is"
                    );
                    made.chunks.push((encoded, record.try_get(4)?));
                }
            }
        }
        Ok(rows)
    }

    pub(super) async fn store(&self, mut made: ChunkBatch<'_>) -> Result<(), Error> {
        made.fill_pages();
        let copy = self.names.sql(&format!("COPY {{sealed}} ({CHUNK_COLUMNS_BARE}) FROM STDIN BINARY"));
        let sink = self.client.copy_in(&copy).await?;
        let types = [
            Type::INT8,
            Type::TIMESTAMPTZ,
            Type::TIMESTAMPTZ,
            Type::INT4,
            Type::INT2,
            Type::VARBIT,
            Type::VARBIT,
            Type::FLOAT8_ARRAY,
        ];
        let writer = BinaryCopyInWriter::new(sink, &types);
        tokio::pin!(writer);
        for (chunk, length) in &made.chunks {
            let (first, last) = (Timestamp(to_postgres_us(chunk.first_ms)), Timestamp(to_postgres_us(chunk.last_ms)));
            let floats = (!chunk.floats.is_empty()).then_some(&chunk.floats);
            let row: [&(dyn ToSql + Sync); 8] =
                [&chunk.bucket, &first, &last, &chunk.places.0, length, &chunk.times, &chunk.data, &floats];
            writer.as_mut().write(&row).await?;
        }
        writer.finish().await?;
        let (uppers, counts): (Vec<Timestamp>, Vec<i64>) =
            made.counts.iter().map(|(upper_ms, count)| (Timestamp(to_postgres_us(*upper_ms)), *count)).unzip();
        let statement = self.names.sql(
            "UPDATE {segments} s SET samples = s.samples + w.count \
             FROM unnest($1::timestamptz[], $2::bigint[]) AS w (upper, count) WHERE s.upper = w.upper",
        );
        self.client
            .execute_typed(&statement, &[(&uppers, Type::TIMESTAMPTZ_ARRAY), (&counts, Type::INT8_ARRAY)])
            .await?;
        Ok(())
    }
}

/// Reads a chunk as it is stored.
///
/// # Errors
///
/// If a column is not of the expected type.
pub fn read_chunk(record: &Record) -> Result<Encoded, Error> {
    let (Timestamp(first), Timestamp(last)) = (record.try_get(1)?, record.try_get(2)?);
    Ok(Encoded {
        bucket: record.try_get(0)?,
        first_ms: from_postgres_us(first),
        last_ms: from_postgres_us(last),
        places: Places(record.try_get(3)?),
        times: record.try_get(5)?,
        data: record.try_get(6)?,
        floats: record.try_get::<_, Option<_>>(7)?.unwrap_or_default(),
    })
}
