//! Exemplars. Every adapter stores them, whoever leads: two replicas send the same exemplar, at times that are less than
//! a scrape interval apart, and it is stored once.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::model::labels::identity;
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Pooled, within};
use crate::storage::Store;
use crate::storage::fence::{self, Limits};
use crate::storage::names::Names;
use crate::storage::row::to_postgres_us;
use crate::storage::server::Epoch;
use crate::storage::text::storable;
use crate::wire::write::Pair;

/// An exemplar, ready to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar {
    /// Series to which it belongs.
    pub series_id: i64,
    /// Hash of labels and value.
    key: Uuid,
    /// Time, ms since 1970.
    pub time_ms: i64,
    /// Observed value.
    pub value: f64,
    /// Labels, as a JSON object.
    labels: String,
}

/// Limits of the exemplars that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// `-pg-exemplar-retention`: exemplars older than this are dropped; `None` keeps them.
    pub retention: Option<Duration>,
    /// `-pg-exemplars-per-series`: the newest exemplars of a series that are kept; 0 stores none.
    pub per_series_max: u32,
}

/// Maximum bytes of the names and values of an exemplar's labels. OpenMetrics allows 128 characters.
const LABELS_BYTES_MAX: usize = 1024;

/// Exemplars of one series with the same labels and value are the same one if their times differ by less than this, ms:
/// without a timestamp of its own, an exemplar has the time of the scrape, which differs between replicas.
pub(super) const SAME_WITHIN_MS: i64 = 60_000;

/// Idle time after which the server ends a transaction that stores exemplars.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

impl Exemplar {
    /// Returns an exemplar of a series, from labels in any order. `is_ascii_only`: the database stores no other text.
    ///
    /// # Errors
    ///
    /// The reason why it can never be stored.
    pub fn new(
        series_id: i64,
        time_ms: i64,
        value: f64,
        pairs: Vec<Pair<'_>>,
        is_ascii_only: bool,
    ) -> Result<Self, String> {
        let bytes = pairs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if bytes > LABELS_BYTES_MAX {
            return Err(format!("an exemplar has labels of {bytes} bytes, more than {LABELS_BYTES_MAX}"));
        }
        let text = |bytes: &[u8]| storable(bytes, is_ascii_only);
        let pairs = pairs.iter().filter(|(_, value)| !value.is_empty());
        // Sorted by name, each name once.
        let labels: std::collections::BTreeMap<String, String> =
            pairs.map(|(name, value)| (text(name), text(value))).collect();
        let bits = value.to_bits().to_be_bytes();
        let parts = labels.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
        let key = Uuid::from_bytes(identity(parts.chain([&bits[..]])));
        let labels = serde_json::Value::Object(labels.into_iter().map(|(name, value)| (name, value.into())).collect());
        Ok(Self { series_id, key, time_ms, value, labels: labels.to_string() })
    }
}

/// Sorts exemplars, and drops those that are the same as an earlier one.
fn sort_and_dedup(exemplars: &mut Vec<Exemplar>) {
    let key = |exemplar: &Exemplar| (exemplar.series_id, exemplar.key);
    exemplars.sort_by_key(|exemplar| (key(exemplar), exemplar.time_ms));
    exemplars
        .dedup_by(|later, kept| key(later) == key(kept) && later.time_ms.saturating_sub(kept.time_ms) < SAME_WITHIN_MS);
}

impl Store {
    /// Stores exemplars that are not stored yet. The ids of their series were found in `epoch`.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection; or that the epoch is over.
    pub async fn keep_exemplars(&self, mut exemplars: Vec<Exemplar>, epoch: Epoch) -> Result<(), Error> {
        if exemplars.is_empty() {
            return Ok(());
        }
        sort_and_dedup(&mut exemplars);
        let timeout = self.config.send_timeout;
        let work = within(timeout, async {
            let client = Pooled::take(&self.pool).await?;
            // Two adapters store the same exemplar at the same time. The lock is taken before the statement that looks.
            let lock = self.names.sql("pg_advisory_xact_lock({exemplar_rows:literal}::regclass::oid::integer, 0)");
            let checks = format!("{}, {lock}", self.server.check(&self.names, epoch)?);
            // A frozen adapter must not hold the others up for long.
            let limits = Limits { idle: IDLE_TIMEOUT, ..Limits::of(timeout) };
            client.batch_execute(&fence::begin(limits, &checks)).await?;
            let stored = insert(&client, &self.names, &exemplars).await?;
            client.batch_execute("COMMIT").await?;
            client.give_back();
            self.metrics.exemplars_stored_total.inc_by(stored);
            Ok(())
        });
        self.counted(work).await
    }
}

/// Inserts those exemplars that are not stored, and returns their number.
async fn insert(client: &Client, names: &Names, exemplars: &[Exemplar]) -> Result<u64, Error> {
    let statement = names.sql(&format!(
        "INSERT INTO {{exemplar_rows}} (series, key, \"time\", value, labels) \
         SELECT series, key, \"time\", value, labels::jsonb \
         FROM unnest($1::bigint[], $2::uuid[], $3::timestamptz[], $4::float8[], $5::text[]) AS new (series, key, \"time\", value, labels) \
         WHERE NOT EXISTS (SELECT FROM {{exemplar_rows}} old WHERE old.series = new.series AND old.key = new.key \
         AND old.\"time\" > new.\"time\" - interval '{SAME_WITHIN_MS} ms' AND old.\"time\" < new.\"time\" + interval '{SAME_WITHIN_MS} ms')"
    ));
    let series: Vec<i64> = exemplars.iter().map(|exemplar| exemplar.series_id).collect();
    let keys: Vec<Uuid> = exemplars.iter().map(|exemplar| exemplar.key).collect();
    let times: Vec<Timestamp> = exemplars.iter().map(|exemplar| Timestamp(to_postgres_us(exemplar.time_ms))).collect();
    let values: Vec<f64> = exemplars.iter().map(|exemplar| exemplar.value).collect();
    let labels: Vec<&str> = exemplars.iter().map(|exemplar| exemplar.labels.as_str()).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&series, Type::INT8_ARRAY),
        (&keys, Type::UUID_ARRAY),
        (&times, Type::TIMESTAMPTZ_ARRAY),
        (&values, Type::FLOAT8_ARRAY),
        (&labels, Type::TEXT_ARRAY),
    ];
    Ok(client.execute_typed(&statement, &parameters).await?)
}

/// Deletes exemplars that are too old, or too many in their series.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub(super) async fn forget(client: &Client, names: &Names, config: Config) -> Result<(), Error> {
    if let Some(retention) = config.retention {
        let old =
            names.sql("DELETE FROM {exemplar_rows} WHERE \"time\" < clock_timestamp() - make_interval(secs => $1)");
        client.execute_typed(&old, &[(&retention.as_secs_f64(), Type::FLOAT8)]).await?;
    }
    let further = names.sql(
        "DELETE FROM {exemplar_rows} WHERE ctid = ANY (ARRAY(SELECT ctid FROM \
         (SELECT ctid, row_number() OVER (PARTITION BY series ORDER BY \"time\" DESC) AS place FROM {exemplar_rows}) ranked \
         WHERE place > $1))",
    );
    client.execute_typed(&further, &[(&i64::from(config.per_series_max), Type::INT8)]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(series_id: i64, time_ms: i64, value: f64, trace: &'static str) -> Exemplar {
        Exemplar::new(series_id, time_ms, value, vec![(b"trace_id", trace.as_bytes())], false).unwrap()
    }

    #[test]
    fn the_same_exemplar_within_a_minute_is_one() {
        let all = [
            of(1, 70_000, 0.5, "a"),
            of(1, 0, 0.5, "a"),
            of(1, 59_999, 0.5, "a"),
            of(1, 60_000, 0.5, "b"),
            of(2, 0, 0.5, "a"),
        ];
        let mut kept = all.to_vec();
        kept.push(of(1, 1, 0.25, "a"));
        sort_and_dedup(&mut kept);
        let mut times: Vec<_> = kept.iter().map(|one| (one.series_id, one.time_ms, one.value)).collect();
        times.sort_by_key(|(series_id, time_ms, _)| (*series_id, *time_ms));
        assert_eq!(times, [(1, 0, 0.5), (1, 1, 0.25), (1, 60_000, 0.5), (1, 70_000, 0.5), (2, 0, 0.5)]);
    }

    #[test]
    fn the_key_is_of_labels_in_any_order_and_of_every_bit_of_the_value() {
        let with = |pairs: &[(&'static str, &'static str)], value: f64| {
            let pairs = pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
            Exemplar::new(1, 5, value, pairs, false).unwrap()
        };
        let one = with(&[("a", "1"), ("b", "2")], f64::NAN);
        assert_eq!(one.key, with(&[("b", "2"), ("c", ""), ("a", "1")], f64::NAN).key);
        assert_ne!(one.key, with(&[("a", "1"), ("b", "2")], f64::from_bits(f64::NAN.to_bits() + 1)).key);
        assert_ne!(with(&[("a", "12")], 1.0).key, with(&[("a1", "2")], 1.0).key);
        assert_eq!(with(&[("z", "\0"), ("a", "\"")], 1.0).labels, "{\"a\":\"\\\"\",\"z\":\"\u{fffd}\"}");
        assert_eq!(with(&[], 1.0).labels, "{}");
    }

    #[test]
    fn labels_have_a_largest_size() {
        let value = "x".repeat(LABELS_BYTES_MAX);
        let of = |name: &str| Exemplar::new(1, 5, 1.0, vec![(name.as_bytes(), value.as_bytes())], false).map(drop);
        assert_eq!(of(""), Ok(()));
        assert_eq!(of("n").unwrap_err(), "an exemplar has labels of 1025 bytes, more than 1024");
    }
}
