//! An adapter over a database of its own, and what the database holds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rig::adapter::{self, Adapter};
use rig::exposition;
use rig::http::Client;
use rig::postgres::Postgres;

use crate::sender::Sender;
use crate::verdict::number;

/// How long sealing what is hot may take.
const SEAL_DEADLINE: Duration = Duration::from_secs(900);

/// How long an adapter may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Beside one Prometheus, which it does not find silent while a load is built.
const SIDECAR: [&str; 2] =
    ["-leader-election-pg-advisory-lock-id=1", "-leader-election-pg-advisory-lock-prometheus-timeout=10m"];

/// Behind a load balancer, as many of them as there are; the same.
const BY_LABELS: [&str; 2] = ["-metrics-high-availability", "-metrics-high-availability-timeout=5m"];

/// What adapters are started with.
#[derive(Debug)]
pub(crate) struct Setup {
    /// The server they store in.
    pub(crate) postgres: Postgres,
    /// The adapter's program; the one built beside this without it.
    pub(crate) binary: Option<PathBuf>,
    /// More arguments for every adapter.
    pub(crate) arguments: Vec<String>,
}

/// A running adapter and its database.
#[derive(Debug)]
pub(crate) struct Store<'a> {
    setup: &'a Setup,
    arguments: Vec<String>,
    /// Its name.
    pub(crate) database: String,
    /// The adapter.
    pub(crate) adapter: Adapter,
}

/// What an adapter says of samples that are not sealed yet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hot {
    /// What it saw when it last looked, before the round of sealing under way.
    pub(crate) gauge: f64,
    /// Samples stored less samples sealed, those of the round under way still counted.
    pub(crate) stored_less_sealed: f64,
}

/// A part of the store, in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Relation {
    /// The table; of a partition, what it is a partition of.
    pub(crate) table: String,
    /// Rows, with the free space and visibility maps.
    pub(crate) heap: i64,
    /// What is stored out of line, with its index.
    pub(crate) toast: i64,
    /// Indexes.
    pub(crate) indexes: i64,
}

impl Relation {
    /// All of it.
    pub(crate) fn total(&self) -> i64 {
        self.heap + self.toast + self.indexes
    }
}

impl Setup {
    /// An adapter beside its Prometheus, with `arguments`, over an empty database.
    pub(crate) async fn store(&self, arguments: &[&str]) -> Store<'_> {
        self.store_of(&[&SIDECAR, arguments].concat()).await
    }

    /// One that finds leaders by labels.
    pub(crate) async fn store_by_labels(&self) -> Store<'_> {
        self.store_of(&BY_LABELS).await
    }

    async fn store_of(&self, arguments: &[&str]) -> Store<'_> {
        let database = self.postgres.create_database().await;
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let adapter = self.start(&database, &arguments).await;
        Store { setup: self, arguments, database, adapter }
    }

    async fn start(&self, database: &str, arguments: &[String]) -> Adapter {
        let mut options = adapter::Options::new(self.binary.clone().unwrap_or_else(adapter::binary_beside_this))
            .arg(format!("-pg-uri={}", self.postgres.uri(database)))
            .arg("-log-level=warn");
        for argument in self.arguments.iter().chain(arguments) {
            options = options.arg(argument);
        }
        options.start().await
    }
}

impl Store<'_> {
    /// A sender to it.
    pub(crate) fn sender(&self, connections: usize) -> Sender {
        Sender::new(self.adapter.url("/write"), connections)
    }

    /// One more adapter over the same database, with the same arguments.
    pub(crate) async fn standby(&self) -> Adapter {
        self.setup.start(&self.database, &self.arguments).await
    }

    /// Replaces the adapter by a new one, whose memory is its own.
    pub(crate) async fn restart(&mut self) {
        self.adapter.process().terminate(STOP_DEADLINE).await;
        self.adapter = self.setup.start(&self.database, &self.arguments).await;
    }

    /// What is hot, as the adapter says.
    pub(crate) async fn hot(&self) -> Hot {
        let metrics =
            self.adapter.get("/metrics").await.unwrap_or_else(|error| self.adapter.process().fail(&error.to_string()));
        let text = metrics.text();
        let value = |name: &str| {
            exposition::sum(&text, &format!("prometheus_postgresql_adapter_{name}"), "").unwrap_or_default()
        };
        let stored_less_sealed = value("samples_stored_total") - value("sealed_samples_total");
        Hot { gauge: value("hot_samples"), stored_less_sealed }
    }

    /// Has everything sealed that is hot, and returns how long that took.
    pub(crate) async fn seal(&self) -> Duration {
        let client = Client::new(SEAL_DEADLINE);
        let url = self.adapter.url("/admin/storage/seal");
        let started = Instant::now();
        loop {
            match client.post(&url, &[], "").await {
                Ok(answer) if answer.status == 200 => return started.elapsed(),
                // The adapter is sealing by itself just now.
                Ok(answer) if answer.status == 409 && started.elapsed() < SEAL_DEADLINE => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Ok(answer) => self.adapter.process().fail(&format!("{url}: {}: {}", answer.status, answer.text())),
                Err(error) => self.adapter.process().fail(&error.to_string()),
            }
        }
    }

    /// Samples that are sealed, and samples that are hot.
    pub(crate) async fn counts(&self) -> (usize, usize) {
        let client = self.setup.postgres.connect(&self.database).await;
        let statement = "SELECT (SELECT coalesce(sum(length::bigint * bit_count(places::bit(32))), 0)::bigint FROM metrics_sealed), \
                         (SELECT coalesce(sum(cardinality(series)), 0)::bigint FROM metrics_hot)";
        let row = client.query_one(statement, &[]).await.expect("cannot count what is stored");
        let count = |column| usize::try_from(row.get::<_, i64>(column)).expect("a count is not negative");
        (count(0), count(1))
    }

    /// Stops unless exactly `samples` are stored.
    pub(crate) async fn check(&self, samples: usize) {
        let (sealed, hot) = self.counts().await;
        assert_eq!(sealed + hot, samples, "samples stored ({sealed} sealed, {hot} hot) and acknowledged differ");
    }

    /// Whether `question` is answered with true.
    pub(crate) async fn is(&self, question: &str) -> bool {
        let client = self.setup.postgres.connect(&self.database).await;
        client.query_one(question, &[]).await.expect("cannot look at the store").get(0)
    }

    /// What everything takes, the largest first. VACUUMs before.
    pub(crate) async fn sizes(&self) -> Vec<Relation> {
        let client = self.setup.postgres.connect(&self.database).await;
        client.batch_execute("VACUUM").await.expect("cannot vacuum");
        let statement = "SELECT coalesce(pg_partition_root(c.oid), c.oid)::regclass::text, \
             sum(pg_table_size(c.oid) - coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0))::bigint, \
             sum(coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0))::bigint, \
             sum(pg_indexes_size(c.oid))::bigint \
             FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'm') \
             GROUP BY 1 ORDER BY sum(pg_total_relation_size(c.oid)) DESC";
        let rows = client.query(statement, &[]).await.expect("cannot measure the store");
        let relation = |row: &tokio_postgres::Row| Relation {
            table: row.get(0),
            heap: row.get(1),
            toast: row.get(2),
            indexes: row.get(3),
        };
        rows.iter().map(relation).collect()
    }

    /// What the columns of sealed samples take, in words.
    pub(crate) async fn columns(&self) -> String {
        let client = self.setup.postgres.connect(&self.database).await;
        let columns = ["times", "data", "floats"];
        let sums = columns.map(|column| format!(", sum(pg_column_size({column}))::bigint"));
        let statement = format!(
            "SELECT count(*), sum(bit_count(places::bit(32)))::float8 / count(*), avg(length)::float8{} FROM metrics_sealed",
            sums.concat()
        );
        let row = client.query_one(&statement, &[]).await.expect("cannot measure the chunks");
        let (chunks, series, length): (i64, f64, f64) = (row.get(0), row.get(1), row.get(2));
        let bytes = |place: usize| {
            let bytes = row.get::<_, Option<i64>>(place + 3).unwrap_or_default();
            format!("{} {}", columns[place], number(bytes as f64))
        };
        let bytes = [0, 1, 2].map(bytes).join(", ");
        format!("{} chunks of {series:.1} series by {length:.1} samples; bytes: {bytes}", number(chunks as f64))
    }

    /// Ends the adapter, gives the room back, and leaves no work to what is measured next.
    pub(crate) async fn drop(self) {
        let Self { setup, database, adapter, .. } = self;
        drop(adapter);
        drop_database(&setup.postgres, &database).await;
    }
}

/// Gives the room of a database back, and leaves no checkpoint to what is measured next.
pub(crate) async fn drop_database(postgres: &Postgres, database: &str) {
    let client = postgres.connect("postgres").await;
    client.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await.expect("cannot drop a database");
    client.batch_execute("CHECKPOINT").await.expect("cannot write a checkpoint");
}
