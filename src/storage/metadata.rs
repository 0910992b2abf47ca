//! What senders say of metrics: type, help and unit. Every adapter stores it, whoever leads, because its content is its
//! key.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::model::labels::identity;
use crate::postgres::error::Error;
use crate::postgres::{Pooled, within};
use crate::storage::Store;
use crate::storage::names::Names;
use crate::storage::server::Epoch;
use crate::storage::text::storable;
use crate::wire::write::Metadata;

/// Metadata that is stored, as far as this adapter knows.
#[derive(Debug)]
pub(super) struct StoredMetadata {
    /// Keeps a sender from choosing hashes.
    seed: u64,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    epoch: Epoch,
    /// By hash, when it was last written.
    written: HashMap<u128, Instant>,
}

/// Time after which metadata that is still sent is written again, so that the store knows which one is current.
const WRITTEN_EVERY: Duration = Duration::from_secs(600);

/// Maximum number of entries; then all are forgotten, and written again.
const ENTRIES_MAX: usize = 200_000;

/// Names of the types, as Prometheus numbers them in both versions of the message.
const TYPES: [&str; 8] = ["unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"];

/// Metadata as text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Texts {
    name: String,
    kind: &'static str,
    help: String,
    unit: String,
}

/// Metadata that is to be written.
#[derive(Debug, Default)]
struct Due {
    texts: BTreeMap<Uuid, Texts>,
    hashes: Vec<u128>,
    /// `true` if some of it may not be stored yet.
    has_new: bool,
}

impl Store {
    /// Stores metadata that is not known to be stored.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, if some of it may not be stored yet.
    pub async fn keep_metadata(&self, metadata: &[Metadata<'_>]) -> Result<(), Error> {
        if metadata.is_empty() {
            return Ok(());
        }
        let epoch = self.server.epoch();
        let due = self.metadata.due(epoch, metadata, self.encoding.is_some(), Instant::now());
        if due.texts.is_empty() {
            return Ok(());
        }
        match self.counted(within(self.config.send_timeout, self.write_metadata(&due.texts))).await {
            Ok(()) => self.metadata.written(epoch, due.hashes, Instant::now()),
            Err(error) if due.has_new => return Err(error),
            // It is stored; only when it was last seen is not.
            Err(error) => log::debug!(err:% = error; "metadata could not be written again"),
        }
        Ok(())
    }

    async fn write_metadata(&self, due: &BTreeMap<Uuid, Texts>) -> Result<(), Error> {
        // In the order of keys, so that two adapters that write the same wait for each other and never deadlock.
        let statement = self.names.sql(
            "WITH durable AS (SELECT set_config('synchronous_commit', \
             coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'local'), true)) \
             INSERT INTO {metadata_history} (key, name, type, help, unit) SELECT new.* FROM durable, \
             unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[]) AS new (key, name, type, help, unit) \
             ORDER BY new.key ON CONFLICT (key) DO UPDATE SET last_seen = clock_timestamp()",
        );
        let keys: Vec<Uuid> = due.keys().copied().collect();
        let column = |text: fn(&Texts) -> &str| -> Vec<&str> { due.values().map(text).collect() };
        let columns = [
            column(|texts| &texts.name),
            column(|texts| texts.kind),
            column(|texts| &texts.help),
            column(|texts| &texts.unit),
        ];
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&keys, Type::UUID_ARRAY)];
        parameters.extend(columns.iter().map(|column| (column as &(dyn ToSql + Sync), Type::TEXT_ARRAY)));
        let client = Pooled::take(&self.pool).await?;
        client.execute_typed(&statement, &parameters).await?;
        client.give_back();
        Ok(())
    }
}

impl StoredMetadata {
    /// Returns what of `metadata` is to be written. What is stored and is to be written again counts as written.
    fn due(&self, epoch: Epoch, metadata: &[Metadata<'_>], is_ascii_only: bool, now: Instant) -> Due {
        let mut known = self.known.lock();
        if known.epoch < epoch || known.written.len() > ENTRIES_MAX {
            *known = Known { epoch, written: HashMap::new() };
        }
        let is_current = known.epoch == epoch;
        let (mut due, mut bytes) = (Due::default(), Vec::new());
        for metadata in metadata {
            bytes.clear();
            for part in [metadata.name, &metadata.kind.to_be_bytes(), metadata.help, metadata.unit] {
                bytes.extend_from_slice(&part.len().to_be_bytes());
                bytes.extend_from_slice(part);
            }
            let hash = xxh3_128_with_seed(&bytes, self.seed);
            match known.written.get_mut(&hash).filter(|_| is_current) {
                Some(written) if now.saturating_duration_since(*written) < WRITTEN_EVERY => continue,
                Some(written) => *written = now,
                None => due.has_new = true,
            }
            due.hashes.push(hash);
            due.texts.insert(key(metadata), Texts::of(metadata, is_ascii_only));
        }
        due
    }

    fn written(&self, epoch: Epoch, hashes: Vec<u128>, now: Instant) {
        let mut known = self.known.lock();
        if known.epoch == epoch {
            known.written.extend(hashes.into_iter().map(|hash| (hash, now)));
        }
    }
}

impl Default for StoredMetadata {
    fn default() -> Self {
        Self { seed: Uuid::new_v4().as_u64_pair().0, known: Mutex::default() }
    }
}

impl Texts {
    fn of(metadata: &Metadata<'_>, is_ascii_only: bool) -> Self {
        // It is for people to read.
        let text = |bytes: &[u8]| storable(bytes, is_ascii_only);
        Self {
            name: text(metadata.name),
            kind: TYPES.get(metadata.kind as usize).copied().unwrap_or(TYPES[0]),
            help: text(metadata.help),
            unit: text(metadata.unit),
        }
    }
}

/// Deletes metadata that nobody has sent for longer than `retention`.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub(super) async fn forget(client: &Client, names: &Names, retention: Duration) -> Result<(), Error> {
    // What is sent is written at least once in this time.
    let kept = (retention + 2 * WRITTEN_EVERY).as_secs_f64();
    let statement =
        names.sql("DELETE FROM {metadata_history} WHERE last_seen < clock_timestamp() - make_interval(secs => $1)");
    client.execute_typed(&statement, &[(&kept, Type::FLOAT8)]).await?;
    Ok(())
}

/// Returns the key of metadata in the database. Every adapter computes it, so it must never change.
fn key(metadata: &Metadata<'_>) -> Uuid {
    let kind = metadata.kind.to_be_bytes();
    Uuid::from_bytes(identity([metadata.name, &kind, metadata.help, metadata.unit]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &'static str, help: &'static str) -> Metadata<'static> {
        Metadata { name: name.as_bytes(), kind: 1, help: help.as_bytes(), unit: b"" }
    }

    #[test]
    fn metadata_is_written_once_and_again_after_ten_minutes() {
        let [first, second] = [Epoch::default(), Epoch::default().next()];
        let (stored, start) = (StoredMetadata::default(), Instant::now());
        let all = [of("up", "one"), of("up", "two"), of("up", "one")];
        let due = stored.due(first, &all, false, start);
        assert_eq!((due.texts.len(), due.has_new), (2, true));
        assert!(stored.due(first, &all, false, start).has_new, "it may have failed");
        stored.written(first, due.hashes, start);
        assert!(stored.due(first, &all, false, start).texts.is_empty());
        let due = stored.due(first, &all, false, start + WRITTEN_EVERY);
        assert_eq!((due.texts.len(), due.has_new), (2, false));
        assert!(stored.due(first, &all, false, start + WRITTEN_EVERY).texts.is_empty());
        assert!(stored.due(second, &all, false, start).has_new, "another server may lack it");
        stored.written(first, vec![1], start);
        assert_eq!(stored.due(second, &all, false, start).texts.len(), 2);
        assert_eq!(stored.due(first, &all, false, start).texts.len(), 2, "of an epoch that is over");
    }

    #[test]
    fn what_is_no_text_is_shown_as_far_as_it_is() {
        let metadata = Metadata { name: b"up", kind: 99, help: b"a\0\xffb", unit: b"s" };
        let expected =
            Texts { name: "up".into(), kind: "unknown", help: "a\u{fffd}\u{fffd}b".into(), unit: "s".into() };
        assert_eq!(Texts::of(&metadata, false), expected);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let other = Metadata { unit: b"e", ..of("up", "on") };
        assert_ne!(key(&of("up", "one")), key(&other));
    }
}
