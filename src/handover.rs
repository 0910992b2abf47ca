//! Hand-over from one leader to the next: a sample that was acknowledged is not dropped before it was observed to be
//! stored.
//!
//! Pure parts: [`coverage`] is the rule of what is missing; [`series`] has what is known of each series; [`buffer`] keeps
//! the samples that were acknowledged for a sender that does not lead; [`sender`] ties them together; [`replicas`]
//! knows who else has the series of a sender. This module ties one sender to the store. [`senders`] has what all
//! senders of an adapter share: what was observed, and who leads.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Instant;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::handover::buffer::{Buffered, NotBuffered};
use crate::handover::group::Group;
use crate::handover::memory::Memory;
use crate::handover::requests::{InFlight, Requests};
use crate::handover::sender::{Sender, Sorted, sort_and_dedup};
use crate::handover::stranded::Stranded;
use crate::model::sender::SenderNo;
use crate::postgres::error::Error;
use crate::storage::Store;
use crate::storage::around::Near;
use crate::storage::fence::Fence;
use crate::storage::identities::Identities;
use crate::storage::ingest::{Right, Stored};
use crate::storage::row::Row;
use crate::storage::server::Epoch;
use crate::telemetry::metrics::Metrics;

pub use self::memory::Config;

pub mod buffer;
pub mod by_request;
pub mod clocks;
pub mod coverage;
mod drain;
pub mod group;
pub mod memory;
mod moved;
mod observation;
mod reconciling;
pub mod replicas;
mod requests;
pub mod ring;
pub mod sender;
pub mod senders;
pub mod series;
mod slab;
mod stranded;

/// Attempts to append samples that writes of others keep overtaking; then the samples are compared instead.
const APPEND_ATTEMPTS: usize = 3;

/// One sender on one adapter, and its way to the store.
pub struct Handover {
    /// Name of the sender.
    name: String,
    /// Number under which its samples are stored, and the epoch in which the number was found.
    number: Mutex<Option<(Epoch, SenderNo)>>,
    group: Arc<Group>,
    shared: Weak<dyn Shared>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    memory: Arc<Memory>,
    /// Maximum bytes that may be buffered for this sender.
    bytes_max: usize,
    /// `true` if its samples may come by other adapters too.
    is_shared: bool,
    /// `true` until the first observation after this sender appeared, or after the server became another one.
    is_fresh: AtomicBool,
    /// Token of the last term in which this sender came to lead.
    leads: Mutex<Option<Uuid>>,
    state: Mutex<State>,
    requests: Requests,
    /// Locked while samples that were taken out of the buffer are being stored.
    taking_out: tokio::sync::Mutex<()>,
}

/// Operations on what all senders of an adapter share, as far as one sender calls them.
trait Shared: Send + Sync {
    /// Observes what was committed since the last time.
    fn observe(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// Waits for a round of observing and reconciling that is under way. If it takes long, its connection may be cut
    /// off: then ends it. What it has taken out of buffers is put back.
    fn idle(&self) -> BoxFuture<'_, ()>;

    /// Finds the numbers of all senders that have none in `epoch`.
    fn find_numbers(&self, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>>;
}

/// State of one sender.
struct State {
    /// Epoch in which its series have the ids that are used here.
    epoch: Epoch,
    /// Identities of the series behind these ids.
    identities: Arc<Identities>,
    sender: Sender,
    /// Samples that were acknowledged in earlier epochs.
    stranded: Stranded,
}

impl Handover {
    /// Buffers the samples of the request `key` while another sender leads. The ids of their series were found in
    /// `epoch`.
    ///
    /// # Errors
    ///
    /// `NotBuffered::Full` if no more can be buffered, `NotBuffered::Closed` if a take-over has begun,
    /// `NotBuffered::Moved` if that epoch is over.
    pub fn buffer(&self, key: Uuid, epoch: Epoch, rows: Vec<Row>) -> Result<(), NotBuffered> {
        let count = rows.len() as u64;
        self.with_state(|state| match self.memory.is_full() {
            _ if state.epoch != epoch => Err(NotBuffered::Moved),
            true => Err(NotBuffered::Full),
            false => state.sender.buffer(rows, key, Instant::now()),
        })?;
        self.metrics.samples_standby_total.inc_by(count);
        Ok(())
    }

    /// Stores the samples of the request `key` while this sender leads, by right of `fence`; returns when all of them
    /// are stored. The ids of their series were found in `epoch`.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection; `Error::Fenced` if a newer term has begun; `Error::Moved` if this
    /// epoch is over. Some of the samples may be stored then; the next attempt finds them stored.
    pub async fn store(&self, key: Uuid, epoch: Epoch, rows: Vec<Row>, fence: Option<Fence>) -> Result<(), Error> {
        let sender = self.number_in(epoch).await?;
        // Read before the samples are sorted: the counter then shows whether others have stored something since.
        let right = self.right(sender, fence, epoch);
        let (came, sorted, in_flight) = self.in_epoch(epoch, |state| {
            let came = state.sender.came(rows, Uuid::nil(), Instant::now());
            let sorted = state.sender.sort_sent(&came);
            (came, sorted, self.requests.begin())
        })?;
        self.covered("leader", sorted.covered);
        self.store_sorted(key, sorted, right, Some(&in_flight)).await?;
        self.in_epoch(epoch, |state| state.sender.keep(came.samples(), Instant::now()))
    }

    /// Returns the right by which samples that are sorted from now on are stored.
    fn right(&self, sender: SenderNo, fence: Option<Fence>, epoch: Epoch) -> Right {
        let observed = self.is_shared.then(|| self.group.observed());
        Right { sender, fence, reconciled: self.group.reconciled(), observed, epoch }
    }

    /// Stores the late samples first: once the key of a request is claimed, all of the request is stored.
    async fn store_sorted(
        &self,
        key: Uuid,
        Sorted { mut append, mut late, .. }: Sorted,
        mut right: Right,
        in_flight: Option<&InFlight<'_>>,
    ) -> Result<(), Error> {
        for attempt in 1.. {
            if !late.is_empty() {
                // An earlier request may be about to append the same samples.
                if let Some(in_flight) = in_flight {
                    in_flight.is_first().await;
                }
                self.reconcile_late(&std::mem::take(&mut late), &mut right).await?;
            }
            if append.is_empty() {
                break;
            }
            match self.store.commit(key, Arc::clone(&append), right.clone()).await? {
                Stored::Committed => break,
                Stored::AlreadyThere => {
                    self.metrics.samples_duplicate_total.with_label_values(&["retry"]).inc_by(append.len() as u64);
                    break;
                }
                Stored::Fenced => return Err(Error::Fenced),
                Stored::Overtaken => {
                    self.observe().await?;
                    right = self.right(right.sender, right.fence, right.epoch);
                    (append, late) = self.sort_again(Arc::unwrap_or_clone(append), &right, attempt).await?;
                }
            }
        }
        Ok(())
    }

    /// Sorts samples again that were not appended because others had stored samples meanwhile, which have been observed
    /// since. Returns the samples that are still to be appended, and those that are to be compared.
    async fn sort_again(
        &self,
        append: Vec<Row>,
        &Right { sender, epoch, .. }: &Right,
        attempt: usize,
    ) -> Result<(Arc<Vec<Row>>, Vec<Buffered>), Error> {
        let sorted = self.in_epoch(epoch, |state| state.sender.sort_again(append, Instant::now()))?;
        let Sorted { append, mut late, .. } = sorted;
        if !self.is_shared && attempt < APPEND_ATTEMPTS {
            return Ok((append, late));
        }
        // Other adapters may have stored the very same samples.
        let now = Instant::now();
        let again = |row| Buffered { row, is_stamped: false, arrived: now, key: Uuid::nil() };
        late.extend(append.iter().cloned().map(again));
        sort_and_dedup(&mut late);
        if !self.is_shared {
            return Ok((Arc::default(), late));
        }
        let (window_ms, unbounded) =
            self.in_epoch(epoch, |state| (state.sender.window_ms(&late), state.sender.unbounded(&late)))?;
        let near = Near { rows: &rows(&late), window_ms, unbounded: &unbounded };
        let around = self.store.around(&[near], epoch).await?;
        Ok((Arc::new(rows(&self.with(|state| state.missing(&late, &around, sender)))), Vec::new()))
    }

    /// Allows buffering, because another sender leads.
    pub fn open(&self) {
        self.with(Sender::open);
    }

    /// Returns the token of the last term in which this sender came to lead by way of this adapter.
    #[must_use]
    pub fn leads(&self) -> Option<Uuid> {
        *self.leads.lock()
    }

    /// Returns the name of the sender.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns `true` if nothing is buffered, nor taken out of the buffer to be stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let is_idle = self.taking_out.try_lock().is_ok();
        is_idle && self.with_state(|state| state.samples() == 0)
    }

    /// Returns the number under which its samples are stored.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection.
    pub async fn number(&self) -> Result<SenderNo, Error> {
        self.number_in(self.store.epoch()).await
    }

    /// Returns the number, for use in `epoch`.
    async fn number_in(&self, epoch: Epoch) -> Result<SenderNo, Error> {
        if self.known_number(epoch).is_none()
            && let Some(shared) = self.shared.upgrade()
        {
            shared.find_numbers(epoch).await?;
        }
        match self.known_number(epoch) {
            Some(number) => Ok(number),
            // The sender was silent for long and is no longer one of this adapter's senders.
            None => Ok(self.store.sender_numbers(epoch, &[(self.group.name(), &self.name)]).await?[0]),
        }
    }

    /// Returns the number if it is already known.
    #[must_use]
    pub fn number_if_known(&self) -> Option<SenderNo> {
        self.known_number(self.store.epoch())
    }

    fn known_number(&self, epoch: Epoch) -> Option<SenderNo> {
        let known = *self.number.lock();
        known.filter(|(found, _)| *found == epoch).map(|(_, number)| number)
    }

    /// Observes what was committed since the last observation, for all senders of this adapter.
    async fn observe(&self) -> Result<(), Error> {
        match self.shared.upgrade() {
            Some(shared) => shared.observe().await,
            None => Ok(()),
        }
    }

    fn covered(&self, where_from: &str, count: usize) {
        if count > 0 {
            self.metrics.samples_covered_total.with_label_values(&[where_from]).inc_by(count as u64);
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Sender) -> T) -> T {
        self.with_state(|state| work(&mut state.sender))
    }

    fn in_epoch<T>(&self, epoch: Epoch, work: impl FnOnce(&mut State) -> T) -> Result<T, Error> {
        self.with_state(|state| if state.epoch == epoch { Ok(work(state)) } else { Err(Error::Moved) })
    }

    fn with_state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let (before, kept_before) = ((state.samples(), state.bytes()), state.sender.kept().bytes());
        let result = work(&mut state);
        self.memory.changed(before, (state.samples(), state.bytes()));
        let available = self.memory.available(kept_before).min(self.bytes_max.saturating_sub(state.bytes()));
        state.sender.trim(available, Instant::now());
        self.memory.kept(kept_before, state.sender.kept().bytes());
        result
    }
}

impl State {
    fn new((epoch, identities): (Epoch, Arc<Identities>), sender: Sender) -> Self {
        Self { epoch, identities, sender, stranded: Stranded::default() }
    }

    /// Returns the number of buffered samples, stranded ones included.
    fn samples(&self) -> usize {
        self.sender.buffered().samples() + self.stranded.samples()
    }

    /// Returns the bytes that they take.
    fn bytes(&self) -> usize {
        self.sender.buffered().bytes() + self.stranded.bytes()
    }
}

fn rows(samples: &[Buffered]) -> Vec<Row> {
    samples.iter().map(|sample| sample.row.clone()).collect()
}
