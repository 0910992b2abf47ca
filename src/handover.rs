//! What passes from one leader to the next: what a standby holds, and where a new leader begins.
//!
//! [`held`] is a standby's memory, [`watermark`] what a leader lets it forget, [`cut`] where a term begins in each
//! series, [`ledger`] the rules between them: four pure parts, and here what ties them to the store. [`shares`] has one of
//! it for each replica, where leaders are found by labels.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::clock::now_ms;
use crate::election::advisory_lock::{Observation, Published, Succession, Takeover};
use crate::handover::cut::Cut;
use crate::handover::held::Refusal;
use crate::handover::ledger::{Ledger, Term};
use crate::handover::watermark::FAILED_KEPT_MS;
use crate::model::sender::SenderNo;
use crate::postgres::error::Error;
use crate::storage::Store;
use crate::storage::fence::Fence;
use crate::storage::fill::Doubtful;
use crate::storage::gaps::Hole;
use crate::storage::ingest::{Right, Stored};
use crate::storage::row::Row;
use crate::telemetry::metrics::Metrics;

pub mod cut;
pub mod held;
pub mod ledger;
pub mod shares;
pub mod watermark;

/// What a standby may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// `-standby-memory-mib`, in bytes.
    pub memory_bytes_max: usize,
}

/// Rows of one transaction of a replay.
const REPLAY_ROWS: usize = 50_000;

/// Rows compared with what is stored at once.
const FILL_ROWS: usize = 100_000;

/// Samples of several senders are compared together if they are no farther apart than this, 10 min.
const FILL_SPAN_MS: u64 = 10 * 60_000;

/// Held requests that are on their way to the writers at once.
const REPLAY_REQUESTS: usize = 64;

/// One adapter's side of the hand-over, for one sender.
pub struct Handover {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    memory: Arc<Memory>,
    ledger: Mutex<Ledger>,
    /// The watermark may have passed something that is in doubt.
    passed: Notify,
}

/// What is held for all senders together.
pub struct Memory {
    bytes_max: usize,
    bytes: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// A request that is not stored yet; dropped before [`Storing::done`] it counts as failed, to come again.
pub struct Storing<'a> {
    handover: &'a Handover,
    key: Uuid,
    latest_ms: i64,
    done: bool,
}

impl Handover {
    /// Before the first term.
    #[must_use]
    pub fn new(config: Config, store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        let ledger = Ledger::new(config.memory_bytes_max, FAILED_KEPT_MS);
        let memory = Arc::new(Memory::new(config, Arc::clone(&metrics)));
        Self { store, metrics, memory, ledger: Mutex::new(ledger), passed: Notify::new() }
    }

    /// Takes what a standby is sent in the request `key`.
    ///
    /// # Errors
    ///
    /// When it can hold no more, or a take-over has begun.
    pub fn hold(&self, key: Uuid, rows: &[Row]) -> Result<(), Refusal> {
        self.with(
            |ledger| if self.memory.is_full() { Err(Refusal::Full) } else { ledger.hold(key, rows, Instant::now()) },
        )?;
        self.metrics.samples_standby_total.inc_by(rows.len() as u64);
        Ok(())
    }

    /// Takes out of `rows` what the last leader stored: for each series, everything up to its last stored time. What is
    /// newer is from this adapter's own Prometheus alone, so the two never interleave. Returns what went, to be
    /// [doubted](Handover::doubt).
    ///
    /// # Errors
    ///
    /// What the server said; `rows` is as it was.
    pub async fn cut(&self, rows: &mut Vec<Row>) -> Result<Vec<Row>, Error> {
        let Some(cut) = self.with(|ledger| ledger.cut()) else { return Ok(Vec::new()) };
        let mut taken_out = self.apply(&cut, rows).await?;
        taken_out.extend(self.with(|ledger| ledger.overtaken(rows)));
        Ok(taken_out)
    }

    /// Holds what the cut took out and nobody may have stored.
    ///
    /// # Errors
    ///
    /// When it can hold no more.
    pub fn doubt(&self, rows: &[Row]) -> Result<(), Refusal> {
        if rows.is_empty() { Ok(()) } else { self.with(|ledger| ledger.doubt(rows, Instant::now())) }
    }

    /// Fills in what nobody stored, as leader or as standby, whenever the watermark passes something held in doubt. Does
    /// not end.
    pub async fn fill(&self) {
        loop {
            self.passed.notified().await;
            while fill_some(&[self], &self.store, &self.metrics).await {}
        }
    }

    async fn apply(&self, cut: &Cut, rows: &mut Vec<Row>) -> Result<Vec<Row>, Error> {
        if let Some(unknown) = cut.unknown(rows) {
            let found = self.store.last_times(&unknown.series, unknown.from_ms, cut.until_ms()).await?;
            cut.learn(&unknown, &found);
        }
        Ok(cut.apply(rows))
    }

    /// A request begins that is to be stored, now or at a later attempt: the watermark stays behind its times, of which
    /// `span` has the earliest and the latest, until [`Storing::done`].
    pub fn storing(&self, key: Uuid, span: (i64, i64)) -> Storing<'_> {
        self.with(|ledger| ledger.storing(key, span, now_ms()));
        Storing { handover: self, key, latest_ms: span.1, done: false }
    }

    /// Stores what was held and is newer than what the last leader stored, whole series at a time, so that whatever
    /// of it fails is found missing by the next attempt.
    async fn replay(&self, mut rows: Vec<Row>, cut: &Cut, takeover: &Takeover) -> Result<(), Error> {
        let held = rows.len();
        if held == 0 {
            return Ok(());
        }
        let dropped = self.apply(cut, &mut rows).await?.len();
        self.metrics.samples_duplicate_total.with_label_values(&["last_leader"]).inc_by(dropped as u64);
        let stored = rows.len();
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let whole = series_end(rest, REPLAY_ROWS);
            let (now, later) = rest.split_at(whole);
            let key = Uuid::new_v4();
            match self.store.commit(key, now.to_vec(), right(takeover.fence)).await {
                Ok(Stored::Committed | Stored::AlreadyThere) => {}
                Ok(Stored::Fenced | Stored::Overtaken) => {
                    return Err(Error::Unfit("another adapter has begun a newer term".into()));
                }
                Err(error) => return Err(Error::Unfit(error.to_string())),
            }
            rest = later;
        }
        self.metrics.samples_replayed_total.inc_by(stored as u64);
        log::info!("replayed {stored} of {held} samples held; the last leader had stored the others");
        Ok(())
    }

    /// As [`Succession::prepare`], for a term whose beginning is known, by way of whichever adapters.
    async fn begin(&self, term: Term, holes: Vec<Hole>, cut: Cut) -> Result<(), Error> {
        let cut = Arc::new(cut);
        let requests = self.with(|ledger| {
            ledger.begin(term, holes, now_ms());
            ledger.held().requests()
        });
        let held: usize = requests.values().map(Vec::len).sum();
        let store = async |(key, mut rows): (Uuid, Vec<Row>)| {
            cut.apply(&mut rows);
            let count = rows.len();
            if count == 0 {
                return Ok(0);
            }
            match self.store.commit(key, rows, right(term.fence)).await {
                Ok(Stored::Committed) => Ok(count),
                Ok(Stored::AlreadyThere) => Ok(0),
                Ok(Stored::Fenced | Stored::Overtaken) => Err(Error::Unfit("another replica leads now".into())),
                Err(error) => Err(Error::Unfit(error.to_string())),
            }
        };
        let stored = iter(requests).map(store).buffer_unordered(REPLAY_REQUESTS);
        let stored: usize = stored.try_fold(0, async |sum, stored| Ok(sum + stored)).await?;
        self.with(|ledger| ledger.begun(cut, Instant::now()));
        if held > 0 {
            self.metrics.samples_replayed_total.inc_by(stored as u64);
            let others = (held - stored) as u64;
            self.metrics.samples_duplicate_total.with_label_values(&["last_leader"]).inc_by(others);
            log::debug!("replayed {stored} of {held} samples held; the others are stored already");
        }
        Ok(())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let size = |ledger: &Ledger| (ledger.held().samples(), ledger.held().bytes());
        let before = size(&ledger);
        let result = work(&mut ledger);
        self.memory.changed(before, size(&ledger));
        result
    }
}

impl Memory {
    fn new(config: Config, metrics: Arc<Metrics>) -> Self {
        Self { bytes_max: config.memory_bytes_max, bytes: AtomicUsize::new(0), metrics }
    }

    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.bytes_max
    }

    fn changed(&self, (samples, bytes): (usize, usize), (samples_now, bytes_now): (usize, usize)) {
        if bytes_now != bytes {
            self.bytes.fetch_add(bytes_now.wrapping_sub(bytes), Ordering::Relaxed);
            let more = |now: usize, before: usize| now.wrapping_sub(before).cast_signed() as i64;
            self.metrics.standby_held_samples.add(more(samples_now, samples));
            self.metrics.standby_held_bytes.add(more(bytes_now, bytes));
        }
    }
}

impl Storing<'_> {
    /// It is stored, or held.
    pub fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        let committed = self.done.then_some(self.latest_ms);
        self.handover.with(|ledger| ledger.stored(self.key, committed, now_ms()));
    }
}

impl Succession for Handover {
    async fn prepare(&self, takeover: Takeover) -> Result<(), Error> {
        // After a fail-over of PostgreSQL, what is cached may never have reached the new primary.
        self.store.forget();
        let term = Term { fence: takeover.fence, clock_offset_ms: takeover.clock_offset_ms, watermark_ms: None };
        let (holes, behind_ms) = (takeover.holes.clone(), &takeover.behind_ms);
        let (cut, held) = self.with(|ledger| ledger.take_over(term, holes, now_ms(), behind_ms));
        self.replay(held, &cut, &takeover).await?;
        self.with(|ledger| ledger.replayed(cut, takeover.follows_itself, Instant::now()));
        Ok(())
    }

    fn published(&self) -> Published {
        let now_ms = now_ms();
        self.passed.notify_one();
        self.with(|ledger| Published { watermark_ms: ledger.watermark(now_ms), is_settled: ledger.is_settled(now_ms) })
    }

    fn observed(&self, Observation { fence, watermark_ms, holes, clock_offset_ms }: Observation) {
        self.with(|ledger| ledger.observed(Term { fence, clock_offset_ms, watermark_ms }, holes, Instant::now()));
        self.passed.notify_one();
    }
}

fn right(fence: Fence) -> Right {
    Right { sender: SenderNo::UNKNOWN, fence: Some(fence), reconciled: 0 }
}

/// Compares some of what is in doubt of each of these, and stores what is missing; returns whether there was anything.
async fn fill_some(handovers: &[&Handover], store: &Store, metrics: &Metrics) -> bool {
    let mut left = FILL_ROWS;
    let mut taken = Vec::new();
    for handover in handovers {
        if let Some(doubtful) = handover.with(|ledger| ledger.take_doubtful(left, Instant::now())) {
            left = left.saturating_sub(doubtful.rows.len());
            taken.push((*handover, doubtful));
        }
        if left == 0 {
            break;
        }
    }
    let is_idle = taken.is_empty();
    for (handovers, doubtful) in batches(taken) {
        fill_batch(&handovers, &doubtful, store, metrics).await;
    }
    !is_idle
}

/// What is compared in one transaction: of each group one sender's alone, for the next one's samples are to be compared with
/// what was filled in; and none that lie far from the others, lest so much of these be looked at.
fn batches<T>(taken: Vec<(T, Doubtful)>) -> Vec<(Vec<T>, Vec<Doubtful>)> {
    let middle_ms = |doubtful: &Doubtful| doubtful.rows.get(doubtful.rows.len() / 2).map_or(0, |row| row.time_ms);
    let mut batches: Vec<(Vec<T>, Vec<Doubtful>)> = Vec::new();
    for (of, doubtful) in taken {
        let may_join = |(_, others): &&mut (Vec<T>, Vec<Doubtful>)| {
            let is_far = middle_ms(&others[0]).abs_diff(middle_ms(&doubtful)) > FILL_SPAN_MS;
            !is_far && others.iter().all(|other| other.fence.group_no != doubtful.fence.group_no)
        };
        match batches.iter_mut().find(may_join) {
            Some((all, others)) => {
                all.push(of);
                others.push(doubtful);
            }
            None => batches.push((vec![of], vec![doubtful])),
        }
    }
    batches
}

async fn fill_batch(handovers: &[&Handover], doubtful: &[Doubtful], store: &Store, metrics: &Metrics) {
    let count: usize = doubtful.iter().map(|doubtful| doubtful.rows.len()).sum();
    let compared = store.fill(doubtful).await;
    if let (Err(error), true) = (&compared, doubtful.len() > 1) {
        // One of them may be what is wrong, or all together too much.
        log::warn!("{count} samples in doubt could not be compared together, so one sender's after another's: {error}");
        for (handover, doubtful) in handovers.iter().zip(doubtful) {
            Box::pin(fill_batch(&[handover], std::slice::from_ref(doubtful), store, metrics)).await;
        }
        return;
    }
    match &compared {
        Ok(compared) => {
            let missing: usize = compared.iter().flatten().map(|compared| compared.missing.len()).sum();
            metrics.samples_filled_total.inc_by(missing as u64);
            if missing > 0 {
                log::info!("filled in {missing} of {count} samples that a change of leader left in doubt");
            } else {
                log::debug!("compared {count} samples that a change of leader left in doubt");
            }
        }
        Err(error) => log::warn!("{count} samples in doubt could not be compared, to be tried again: {error}"),
    }
    let mut compared = compared.unwrap_or_default().into_iter();
    for (handover, doubtful) in handovers.iter().zip(doubtful) {
        let compared = compared.next().flatten();
        handover.with(|ledger| ledger.compared(doubtful, compared.as_ref(), Instant::now()));
    }
}

/// Where to split sorted rows: after about `count` of them, at the end of a series.
fn series_end(rows: &[Row], count: usize) -> usize {
    let Some(last) = rows.get(count) else { return rows.len() };
    let first_of_series = rows.partition_point(|row| row.series_id < last.series_id);
    if first_of_series > 0 { first_of_series } else { rows.partition_point(|row| row.series_id <= last.series_id) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn two_of_a_group_are_compared_one_after_the_other() {
        let doubtful = |group_no, time_ms| Doubtful {
            rows: vec![Row { series_id: 1, time_ms, value: 0.0 }],
            fence: Fence { group_no, term: 1, token: Uuid::nil() },
            clock_offset_ms: 0,
            passed_ms: 0,
            known: HashMap::new(),
        };
        let taken = vec![
            ("a of 1", doubtful(1, 0)),
            ("b of 1", doubtful(1, 0)),
            ("a of 2", doubtful(2, 5_000)),
            ("an hour later", doubtful(3, 3_600_000)),
            ("c of 1", doubtful(1, 0)),
        ];
        let batches: Vec<_> = batches(taken).into_iter().map(|(of, _)| of).collect();
        assert_eq!(batches, [vec!["a of 1", "a of 2"], vec!["b of 1"], vec!["an hour later"], vec!["c of 1"]]);
    }
}
