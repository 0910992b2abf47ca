//! The writers: requests that arrive together are stored together. Each transaction shows the fence.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use futures_util::future::{join, try_join};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_postgres::{Client, CopyInSink, Statement};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::model::sender::SenderNo;
use crate::postgres::error::{Class, Error, OVERTAKEN};
use crate::postgres::{Connector, Session, within};
use crate::storage::fence::{Fence, group_no};
use crate::storage::hot::{Gathered, SeriesAt, encode_copy, gather};
use crate::storage::names::Names;
use crate::storage::own_transactions::OwnTransactions;
use crate::storage::position::Position;
use crate::storage::row::Row;
use crate::storage::server::{Epoch, Server};
use crate::telemetry::metrics::Metrics;

mod transaction;

/// Number of rows from which no further request is added to a transaction, where a native histogram counts as much as it
/// has numbers. Bounds the memory of the transaction (32 bytes per row, and at least 24 more as COPY data) and the time that others wait for it.
const TRANSACTION_ROWS_MAX: usize = 50_000;

/// Maximum number of requests in one transaction.
const TRANSACTION_REQUESTS_MAX: usize = 64;

/// Age in ms that a sample has reached before its sender sends it a second time in another request: the sender has to
/// restart for that.
pub const SENT_AGAIN_MS: i64 = 2_000;

/// Samples of one request, resolved and checked.
#[derive(Debug)]
pub struct Batch {
    /// Request key: the same for a retry of the same bytes, whichever adapter receives it.
    pub key: Uuid,
    /// Rows in the order of series and time, without duplicates.
    pub rows: Arc<Vec<Row>>,
    /// Right to write the rows.
    pub right: Right,
}

impl Batch {
    /// Returns the samples, each with its sender.
    fn samples(&self) -> impl Iterator<Item = (SenderNo, &Row)> + Clone {
        self.rows.iter().map(|row| (self.right.sender, row))
    }
}

/// Sender of a write's samples, and the right to write them, as shown to the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// Sender of the samples.
    pub sender: SenderNo,
    /// Fence of the term by whose right the samples are written; `None` without an election.
    pub fence: Option<Fence>,
    /// Last observed value of the group's counter of writes by others than its leader; 0 without an election.
    pub reconciled: i64,
    /// Position up to which the store was observed. Samples of this sender that other adapters have stored in
    /// transactions after it are not stored again. `None` if no other adapter stores samples of this sender.
    pub observed: Option<Arc<Position>>,
    /// Epoch in which the sender's number and the series ids were found.
    pub epoch: Epoch,
}

impl Right {
    /// Returns the number of the group; [`NO_GROUP`](crate::storage::fence::NO_GROUP) without an election.
    pub(super) fn group_no(&self) -> i32 {
        group_no(self.fence)
    }
}

/// Outcome of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The rows of the batch are committed.
    Committed,
    /// An earlier attempt with the same request key is committed.
    AlreadyThere,
    /// The term is over, or the group's lock was not granted in time, for example because another term is being begun.
    /// Nothing of the batch is stored.
    Fenced,
    /// Others have stored samples of the group since the store was last observed. Nothing of the batch is stored,
    /// because its samples may be stored already.
    Overtaken,
}

/// Handle that queues batches for the writers.
#[derive(Clone)]
pub struct Ingest {
    queue: mpsc::Sender<Job>,
}

/// One of the few connections that store samples.
pub struct Writer {
    connector: Connector,
    names: Arc<Names>,
    server: Arc<Server>,
    metrics: Arc<Metrics>,
    queue: Arc<Mutex<mpsc::Receiver<Job>>>,
    own_transactions: Arc<OwnTransactions>,
    timeout: Duration,
}

struct Job {
    batch: Batch,
    reply: oneshot::Sender<Result<Stored, Arc<Error>>>,
}

impl Ingest {
    /// Returns the handle and `writers` writers, which the caller has to run. `timeout` bounds one transaction.
    #[must_use]
    pub fn new(
        connector: &Connector,
        names: &Arc<Names>,
        server: &Arc<Server>,
        metrics: &Arc<Metrics>,
        writers: usize,
        own_transactions: &Arc<OwnTransactions>,
        timeout: Duration,
    ) -> (Self, Vec<Writer>) {
        let (queue, receiver) = mpsc::channel(TRANSACTION_REQUESTS_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        let writers = (0..writers)
            .map(|_| Writer {
                connector: connector.clone(),
                names: Arc::clone(names),
                server: Arc::clone(server),
                metrics: Arc::clone(metrics),
                queue: Arc::clone(&receiver),
                own_transactions: Arc::clone(own_transactions),
                timeout,
            })
            .collect();
        (Self { queue }, writers)
    }

    /// Stores `batch` and returns when its transaction has ended. Dropping the future does not stop the transaction.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, none of them caused by the batch; `Error::Moved` if the epoch of
    /// the batch is over; `Error::Stopping` if the writers have ended.
    pub async fn store(&self, batch: Batch) -> Result<Stored, Arc<Error>> {
        let (reply, answer) = oneshot::channel();
        let stopped = || Arc::new(Error::Stopping("the adapter is stopping".into()));
        self.queue.send(Job { batch, reply }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

impl Writer {
    /// Stores batches until `stop`, then those that are still queued.
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

    /// Returns the next request and those queued behind it; none if the writer has to stop.
    async fn next_jobs(&self, stop: &CancellationToken) -> Vec<Job> {
        let mut queue = self.queue.lock().await;
        let first = tokio::select! {
            biased;
            job = queue.recv() => job,
            () = stop.cancelled() => None,
        };
        let Some(first) = first else { return Vec::new() };
        let numbers = |job: &Job| job.batch.rows.iter().map(|row| row.value.count()).sum::<usize>();
        let mut rows = numbers(&first);
        let mut jobs = vec![first];
        while jobs.len() < TRANSACTION_REQUESTS_MAX && rows < TRANSACTION_ROWS_MAX {
            let Ok(job) = queue.try_recv() else { break };
            rows += numbers(&job);
            jobs.push(job);
        }
        jobs
    }

    async fn store(&self, session: &mut Option<Session>, jobs: Vec<Job>) {
        let epoch = self.server.epoch();
        let (jobs, moved): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.batch.right.epoch == epoch);
        for job in moved {
            let _ = job.reply.send(Err(Arc::new(Error::Moved)));
        }
        if jobs.is_empty() {
            return;
        }
        let batches: Vec<&Batch> = jobs.iter().map(|job| &job.batch).collect();
        match self.attempt(session, &batches, epoch).await {
            Ok(outcomes) => {
                for (job, outcome) in jobs.into_iter().zip(outcomes) {
                    // A sender that hung up does not receive the answer; its samples are stored nevertheless.
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

    /// Runs one transaction. After any error the session is closed, which ends its unfinished work.
    async fn attempt(
        &self,
        session: &mut Option<Session>,
        batches: &[&Batch],
        epoch: Epoch,
    ) -> Result<Vec<Stored>, Error> {
        let result = within(self.timeout, async {
            let open = match session.take() {
                Some(open) if !open.client().is_closed() => open,
                _ => self.connector.write_session().await?,
            };
            // `session` is empty meanwhile: if this future is dropped, the session is dropped too.
            let outcomes = self.transaction(&open, batches, epoch).await?;
            *session = Some(open);
            Ok(outcomes)
        })
        .await;
        if let Err(error) = &result {
            self.metrics.postgres_error(error.sqlstate());
            if error.class() == Class::Moved {
                self.server.doubt();
            }
        }
        result
    }

    async fn transaction(&self, session: &Session, batches: &[&Batch], epoch: Epoch) -> Result<Vec<Stored>, Error> {
        let started = Instant::now();
        let client = session.client();
        let statement = copy_statement(&self.names);
        // Sent without waiting for the statements that begin the transaction: preparing stores nothing, and fails in a
        // failed transaction.
        let (begun, prepared) = join(self.begin(client, batches, epoch), client.prepare(&statement)).await;
        let Some(begun) = begun? else {
            return Ok(vec![Stored::Overtaken; batches.len()]);
        };
        let (standing, claimed) = (begun.standing, begun.claimed);
        let prepared = prepared?;
        let mut seen = HashSet::with_capacity(batches.len());
        let outcomes: Vec<Stored> = batches
            .iter()
            .zip(standing)
            .map(|(batch, standing)| match standing {
                Err(refused) => refused,
                Ok(()) if claimed.keys.contains(&batch.key) && seen.insert(batch.key) => Stored::Committed,
                Ok(()) => Stored::AlreadyThere,
            })
            .collect();
        let fresh = || batches.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Stored::Committed);
        let rows: usize = fresh().map(|(batch, _)| batch.rows.len()).sum();
        let gathered = gather(fresh().flat_map(|(batch, _)| batch.samples()));
        let copy = match rows {
            0 => None,
            _ => Some(copy(client, &prepared, &gathered).await?),
        };
        // Dropped before COMMIT, so that a pooler in transaction mode still routes the message to the same backend.
        drop(prepared);
        let copied = async {
            if let Some(mut copy) = copy {
                copy.as_mut().finish().await?;
            }
            Ok::<_, Error>(Instant::now())
        };
        let fresh_batches: Vec<&Batch> = fresh().map(|(batch, _)| *batch).collect();
        let end = match self.refuse_stored_by_others(&fresh_batches, epoch, claimed.xid) {
            Some(refuse) => format!("{refuse}; COMMIT"),
            None => "COMMIT".to_owned(),
        };
        // Sent without waiting for the end of the COPY: after a failed COPY, COMMIT rolls back.
        let ended = async { client.batch_execute(&end).await.map_err(Error::from) };
        let committing = match try_join(copied, ended).await {
            Ok((committing, ())) => committing,
            Err(error) if error.sqlstate() == Some(OVERTAKEN) => {
                client.batch_execute("ROLLBACK").await?;
                return Ok(vec![Stored::Overtaken; batches.len()]);
            }
            Err(error) => return Err(error),
        };
        let mut are_shared = false;
        for batch in fresh_batches {
            if let Right { sender, observed: Some(observed), .. } = &batch.right {
                self.own_transactions.committed(epoch, *sender, observed, claimed.xid);
                are_shared = true;
            }
        }
        // An adapter that alone stores the samples of its sender does not observe them.
        if are_shared {
            self.own_transactions.keep(epoch, claimed.xid, gathered.into_iter().map(SeriesAt::from).collect());
        }
        self.metrics.commit_duration_seconds.observe(committing.elapsed().as_secs_f64());
        self.metrics.transaction_duration_seconds.observe(started.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        self.metrics.batch_samples.observe(rows as f64);
        self.metrics.samples_stored_total.inc_by(rows as u64);
        Ok(outcomes)
    }
}

/// Returns the COPY statement that stores samples in the open transaction.
pub(super) fn copy_statement(names: &Names) -> String {
    names.sql("COPY {hot} (\"time\", series, value, sender) FROM STDIN BINARY")
}

/// Begins [`copy_statement`] and sends it samples. The caller has to finish the COPY.
pub(super) async fn copy(
    client: &Client,
    statement: &Statement,
    samples: &[Gathered],
) -> Result<Pin<Box<CopyInSink<Bytes>>>, Error> {
    let mut sink = Box::pin(client.copy_in(statement).await?);
    sink.send(encode_copy(samples)).await?;
    Ok(sink)
}
