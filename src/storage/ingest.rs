//! The writers: requests that arrive together are stored together, each transaction behind the fence.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use futures_util::future::{join, try_join};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, CopyInSink, Statement};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::postgres::error::Error;
use crate::postgres::{Connector, Session, within};
use crate::storage::fence::{Fence, begin, show_all};
use crate::storage::hot::encode_copy;
use crate::storage::names::Names;
use crate::storage::row::Row;
use crate::telemetry::metrics::Metrics;

/// Rows one transaction takes at most, beyond its first request: bounds its memory (24 bytes a row, 38 more as COPY)
/// and how long others wait for it.
const TRANSACTION_ROWS_MAX: usize = 50_000;

/// Requests one transaction takes at most.
const TRANSACTION_REQUESTS_MAX: usize = 64;

/// One request's samples, resolved and checked.
#[derive(Debug)]
pub struct Batch {
    /// The same for a retry of the same bytes, by whichever adapter it comes.
    pub key: Uuid,
    /// In the order of series and time, none twice.
    pub rows: Vec<Row>,
    /// The right to write; `None` without an election.
    pub fence: Option<Fence>,
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Its rows are committed.
    Committed,
    /// An earlier attempt with the same key is committed.
    AlreadyThere,
    /// Its term is over, or another is just being begun: nothing of it is stored.
    Fenced,
}

/// Hands batches to the writers.
#[derive(Clone)]
pub struct Ingest {
    queue: mpsc::Sender<Job>,
}

/// One of a few connections that store.
pub struct Writer {
    connector: Connector,
    names: Arc<Names>,
    metrics: Arc<Metrics>,
    queue: Arc<Mutex<mpsc::Receiver<Job>>>,
    timeout: Duration,
}

struct Job {
    batch: Batch,
    reply: oneshot::Sender<Result<Stored, Arc<Error>>>,
}

impl Ingest {
    /// `writers` writers, to be run, and what feeds them. `timeout` bounds one transaction.
    #[must_use]
    pub fn new(
        connector: &Connector,
        names: &Arc<Names>,
        metrics: &Arc<Metrics>,
        writers: usize,
        timeout: Duration,
    ) -> (Self, Vec<Writer>) {
        let (queue, receiver) = mpsc::channel(TRANSACTION_REQUESTS_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        let writers = (0..writers)
            .map(|_| Writer {
                connector: connector.clone(),
                names: Arc::clone(names),
                metrics: Arc::clone(metrics),
                queue: Arc::clone(&receiver),
                timeout,
            })
            .collect();
        (Self { queue }, writers)
    }

    /// Stores `batch` and returns when its transaction has ended. Dropping the future does not stop it.
    ///
    /// # Errors
    ///
    /// What the server said of the transaction; none of it is the batch's fault.
    pub async fn store(&self, batch: Batch) -> Result<Stored, Arc<Error>> {
        let (reply, answer) = oneshot::channel();
        let stopped = || Arc::new(Error::Unfit("the adapter is stopping".into()));
        self.queue.send(Job { batch, reply }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

impl Writer {
    /// Stores until `stop`, then what is queued.
    pub async fn run(self, stop: CancellationToken) {
        let mut session: Option<Session> = None;
        loop {
            let jobs = self.next_jobs(&stop).await;
            if jobs.is_empty() {
                break;
            }
            self.store(&mut session, jobs).await;
        }
        if let Some(session) = session {
            session.close().await;
        }
    }

    /// The next request and those that wait behind it; none when it is time to stop.
    async fn next_jobs(&self, stop: &CancellationToken) -> Vec<Job> {
        let mut queue = self.queue.lock().await;
        let first = tokio::select! {
            biased;
            job = queue.recv() => job,
            () = stop.cancelled() => None,
        };
        let Some(first) = first else { return Vec::new() };
        let mut rows = first.batch.rows.len();
        let mut jobs = vec![first];
        while jobs.len() < TRANSACTION_REQUESTS_MAX && rows < TRANSACTION_ROWS_MAX {
            let Ok(job) = queue.try_recv() else { break };
            rows += job.batch.rows.len();
            jobs.push(job);
        }
        jobs
    }

    async fn store(&self, session: &mut Option<Session>, jobs: Vec<Job>) {
        let batches: Vec<&Batch> = jobs.iter().map(|job| &job.batch).collect();
        match self.attempt(session, &batches).await {
            Ok(outcomes) => {
                for (job, outcome) in jobs.into_iter().zip(outcomes) {
                    // A sender that hung up has no use for the answer; its data is stored all the same.
                    let _ = job.reply.send(Ok(outcome));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for job in jobs {
                    let _ = job.reply.send(Err(Arc::clone(&error)));
                }
            }
        }
    }

    /// One transaction. After any error the session is gone, and with it whatever was left undone.
    async fn attempt(&self, session: &mut Option<Session>, batches: &[&Batch]) -> Result<Vec<Stored>, Error> {
        let result = within(self.timeout, async {
            let open = match session.take() {
                Some(open) if !open.client().is_closed() => open,
                _ => self.connector.write_session().await?,
            };
            // Kept out of `session` meanwhile: if this future is dropped, the session goes with it.
            let outcomes = self.transaction(&open, batches).await?;
            *session = Some(open);
            Ok(outcomes)
        })
        .await;
        if let Err(error) = &result {
            self.metrics.postgres_error(error.sqlstate());
        }
        result
    }

    async fn transaction(&self, session: &Session, batches: &[&Batch]) -> Result<Vec<Stored>, Error> {
        let started = Instant::now();
        let client = session.client();
        let claim = self
            .names
            .fill("INSERT INTO {requests} (key) SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING RETURNING key");
        let statement = copy_statement(&self.names);
        let in_force = self.begin(client, batches).await?;
        let is_fenced = |batch: &Batch| batch.fence.is_some_and(|fence| !in_force.contains(&fence.token));
        // In one order for all, so that two transactions that share keys wait for each other and never deadlock.
        let mut keys: Vec<Uuid> = batches.iter().filter(|batch| !is_fenced(batch)).map(|batch| batch.key).collect();
        keys.sort_unstable();
        let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&keys, Type::UUID_ARRAY)];
        // Sent in this order without waiting between.
        let (claimed, prepared) = join(client.query_typed(&claim, &parameters), client.prepare(&statement)).await;
        let claimed: HashSet<Uuid> =
            claimed?.iter().map(|row| row.try_get(0)).collect::<Result<_, tokio_postgres::Error>>()?;
        let prepared = prepared?;
        let mut seen = HashSet::with_capacity(batches.len());
        let outcomes: Vec<Stored> = batches
            .iter()
            .map(|batch| match batch {
                batch if is_fenced(batch) => Stored::Fenced,
                batch if claimed.contains(&batch.key) && seen.insert(batch.key) => Stored::Committed,
                _ => Stored::AlreadyThere,
            })
            .collect();
        let fresh = || batches.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Stored::Committed);
        let rows: usize = fresh().map(|(batch, _)| batch.rows.len()).sum();
        let copy = match rows {
            0 => None,
            _ => Some(copy(client, &prepared, fresh().flat_map(|(batch, _)| &batch.rows), rows).await?),
        };
        // Before COMMIT, so that a pooler in transaction mode still leads it to the same backend.
        drop(prepared);
        let copied = async {
            if let Some(mut copy) = copy {
                copy.as_mut().finish().await?;
            }
            Ok(Instant::now())
        };
        // Sent without waiting for the end of the COPY: behind one that failed, COMMIT rolls back.
        let (committing, ()) = try_join(copied, client.batch_execute("COMMIT")).await?;
        self.metrics.commit_duration_seconds.observe(committing.elapsed().as_secs_f64());
        self.metrics.transaction_duration_seconds.observe(started.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        self.metrics.batch_samples.observe(rows as f64);
        self.metrics.samples_stored_total.inc_by(rows as u64);
        Ok(outcomes)
    }
}

impl Writer {
    /// Opens a transaction behind the fences of `batches`; returns the tokens in force. Where all have one fence, a term
    /// that is over is an error.
    async fn begin(&self, client: &Client, batches: &[&Batch]) -> Result<HashSet<Uuid>, Error> {
        let fences: BTreeMap<Uuid, i32> =
            batches.iter().filter_map(|batch| batch.fence).map(|fence| (fence.token, fence.group_no)).collect();
        let is_one = fences.len() < 2 && batches.iter().all(|batch| batch.fence == batches[0].fence);
        let fence = batches[0].fence.filter(|_| is_one);
        // Waited for by itself: whatever comes after a BEGIN that failed would be a transaction of its own.
        client.batch_execute(&begin(&self.names, fence, self.timeout)).await?;
        if is_one {
            return Ok(fences.into_keys().collect());
        }
        let groups: BTreeSet<i32> = fences.values().copied().collect();
        let groups: Vec<i32> = groups.into_iter().collect();
        let tokens: Vec<Uuid> = fences.into_keys().collect();
        in_force(client, &self.names, &groups, &tokens).await
    }
}

/// Of these rights to write, in groups each given once, those that are in force, and stay so until the transaction ends.
pub(super) async fn in_force(
    client: &Client,
    names: &Names,
    groups: &[i32],
    tokens: &[Uuid],
) -> Result<HashSet<Uuid>, Error> {
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&groups, Type::INT4_ARRAY), (&tokens, Type::UUID_ARRAY)];
    let in_force: Vec<Uuid> = client.query_typed_one(&show_all(names), &parameters).await?.try_get(0)?;
    Ok(in_force.into_iter().collect())
}

/// Stores samples in the transaction that is open.
pub(super) fn copy_statement(names: &Names) -> String {
    names.fill("COPY {hot} (\"time\", series, value) FROM STDIN BINARY")
}

/// Begins [`copy_statement`] and sends it `rows`, of which there are `count`; it is yet to be finished.
pub(super) async fn copy<'a>(
    client: &Client,
    statement: &Statement,
    rows: impl Iterator<Item = &'a Row>,
    count: usize,
) -> Result<Pin<Box<CopyInSink<Bytes>>>, Error> {
    let mut sink = Box::pin(client.copy_in(statement).await?);
    sink.send(encode_copy(rows, count)).await?;
    Ok(sink)
}
