//! Driver of the pure hand-over of one adapter. Follows `src/handover.rs` and the modules `drain`, `observation` and
//! `senders` of `src/handover` step by step.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use prometheus_postgresql_adapter::handover::buffer::{Buffered, NotBuffered};
use prometheus_postgresql_adapter::handover::by_request::ByRequest;
use prometheus_postgresql_adapter::handover::sender::{Sender, Sorted, sort_and_dedup};
use prometheus_postgresql_adapter::model::sender::SenderNo;
use prometheus_postgresql_adapter::storage::fence::Fence;
use prometheus_postgresql_adapter::storage::position::Position;
use prometheus_postgresql_adapter::storage::row::Row;
use uuid::Uuid;

use crate::Bug;
use crate::kernel::{Ms, Mutex, Signal, all};
use crate::link::Lost;
use crate::server::{Right, Written};
use crate::store::Store;

const APPEND_ATTEMPTS: usize = 3;
const OFFSET_NEWS_MS: u64 = 50;
const OBSERVE_INTERVAL_MS: Ms = 1_000;

/// Reason why a request was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Fenced,
    Lost,
}

impl From<Lost> for Failure {
    fn from(_: Lost) -> Self {
        Self::Lost
    }
}

/// The leader as last observed.
#[derive(Clone, Copy, Debug)]
struct Leading {
    fence: Fence,
    sender: Option<SenderNo>,
}

/// All senders of an adapter, like `Senders` in `src/handover/senders.rs`.
pub(crate) struct Senders {
    pub(crate) store: Store,
    /// True if samples of a sender may also come by other adapters.
    is_shared: bool,
    is_grouped: bool,
    bytes_max: usize,
    chunk_samples: usize,
    members: RefCell<BTreeMap<usize, Rc<Member>>>,
    reconciled: Cell<i64>,
    leading: Cell<Option<Leading>>,
    position: RefCell<Option<Position>>,
    observing: Mutex,
    /// Number of observations begun, and number of the last completed observation.
    begun: Cell<u64>,
    completed: Cell<u64>,
}

/// One sender, like `Handover` in `src/handover.rs`.
pub(crate) struct Member {
    replica: usize,
    pub(crate) number: Cell<Option<SenderNo>>,
    is_fresh: Cell<bool>,
    pub(crate) leads: Cell<Option<Uuid>>,
    pub(crate) state: RefCell<Sender>,
    taking_out: Mutex,
    /// Requests that are being stored, in the order in which they were sorted.
    storing: RefCell<BTreeSet<u64>>,
    stored: Signal,
    /// Samples that were to be appended. Only an injected bug reads them.
    reserved: RefCell<HashSet<(i64, i64)>>,
}

/// Samples taken out of a buffer. They return to the buffer on drop.
struct TakenOut<'a> {
    member: &'a Member,
    samples: Vec<Buffered>,
}

impl Drop for TakenOut<'_> {
    fn drop(&mut self) {
        self.member.state.borrow_mut().put_back(&self.samples);
    }
}

/// A request that is being stored. Samples that it appends are late in later requests, so later requests wait for it.
struct Storing<'a> {
    member: &'a Member,
    ticket: u64,
}

impl Storing<'_> {
    async fn wait_for_earlier(&self) {
        while self.member.storing.borrow().first() != Some(&self.ticket) {
            self.member.stored.changed().await;
        }
    }
}

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        self.member.storing.borrow_mut().remove(&self.ticket);
        self.member.stored.tell();
    }
}

impl Member {
    fn begin_storing(&self, ticket: u64) -> Storing<'_> {
        self.storing.borrow_mut().insert(ticket);
        Storing { member: self, ticket }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Sender) -> T) -> T {
        work(&mut self.state.borrow_mut())
    }

    fn take_out(&self, samples: Vec<Buffered>) -> TakenOut<'_> {
        TakenOut { member: self, samples }
    }

    /// Notes that another sender leads.
    pub(crate) fn open(&self) {
        self.with(Sender::open);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state.borrow().buffered().samples() == 0 && !self.taking_out.is_taken()
    }
}

impl Senders {
    pub(crate) fn new(store: Store, is_shared: bool, is_grouped: bool) -> Self {
        let settings = &store.world.settings;
        Self {
            is_shared,
            is_grouped,
            bytes_max: settings.memory_bytes_max,
            chunk_samples: settings.chunk_samples,
            members: RefCell::default(),
            reconciled: Cell::new(0),
            leading: Cell::new(None),
            position: RefCell::new(None),
            observing: Mutex::new(&store.world.kernel),
            begun: Cell::new(0),
            completed: Cell::new(0),
            store,
        }
    }

    fn bug(&self) -> Option<Bug> {
        self.store.world.bug
    }

    fn instant(&self) -> std::time::Instant {
        self.store.world.kernel.instant()
    }

    pub(crate) fn of(&self, replica: usize) -> Rc<Member> {
        let new = || {
            Rc::new(Member {
                replica,
                number: Cell::new(None),
                is_fresh: Cell::new(true),
                leads: Cell::new(None),
                state: RefCell::new(match self.is_shared {
                    true => Sender::shared(self.bytes_max, !self.is_grouped),
                    false => Sender::new(self.bytes_max, !self.is_grouped),
                }),
                taking_out: Mutex::new(&self.store.world.kernel),
                storing: RefCell::default(),
                stored: Signal::new(&self.store.world.kernel),
                reserved: RefCell::default(),
            })
        };
        Rc::clone(self.members.borrow_mut().entry(replica).or_insert_with(new))
    }

    /// Notes, by labels, which replica was read to lead.
    pub(crate) fn open_others(&self, leading: usize) {
        self.all().iter().filter(|member| member.replica != leading).for_each(|member| member.open());
    }

    pub(crate) fn forget(&self, replica: usize) {
        self.members.borrow_mut().remove(&replica);
    }

    pub(crate) fn all(&self) -> Vec<Rc<Member>> {
        self.members.borrow().values().map(Rc::clone).collect()
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.all().iter().all(|member| member.is_empty())
    }

    pub(crate) async fn number(&self, member: &Member) -> Result<SenderNo, Lost> {
        if let Some(number) = member.number.get() {
            return Ok(number);
        }
        let number = self.store.sender_no(member.replica).await?;
        member.number.set(Some(number));
        Ok(number)
    }

    pub(crate) fn buffer(&self, member: &Member, key: Uuid, rows: &[Row]) -> Result<(), NotBuffered> {
        let now = self.instant();
        member.with(|sender| sender.buffer(rows.to_vec(), key, now))
    }

    pub(crate) async fn store(
        &self,
        member: &Member,
        key: Uuid,
        rows: Vec<Row>,
        fence: Option<Fence>,
    ) -> Result<(), Failure> {
        let number = self.number(member).await?;
        let storing = member.begin_storing(self.store.world.number());
        let (now, right) = (self.instant(), self.right(number, fence));
        let mut sorted = match self.bug() {
            Some(Bug::ReserveLate) => member.with(|sender| sender.sort_again(rows.clone(), now)),
            _ => member.with(|sender| sender.sort(&rows, now)),
        };
        if self.bug() == Some(Bug::ReservedCovers) {
            let mut reserved = member.reserved.borrow_mut();
            sorted.late.retain(|sample| !reserved.contains(&(sample.row.series_id, sample.row.time_ms)));
            reserved.extend(sorted.append.iter().map(|row| (row.series_id, row.time_ms)));
        }
        let appended = sorted.append.clone();
        self.store_sorted(member, key, sorted, right, Some(&storing)).await?;
        if self.bug() == Some(Bug::ReserveLate) {
            appended.iter().for_each(|row| {
                member.with(|state| state.on_stored(row.time_ms, true, false, std::iter::once(row.series_id), now))
            });
        }
        Ok(())
    }

    /// Returns the right under which samples of `sender` are stored if they are sorted from now on.
    fn right(&self, sender: SenderNo, fence: Option<Fence>) -> Right {
        let observed = || Rc::new(self.position.borrow().clone().unwrap_or_else(Position::none));
        let observed = self.is_shared.then(observed);
        Right { sender, fence, reconciled: self.reconciled.get(), observed, adapter: self.store.adapter }
    }

    async fn store_sorted(
        &self,
        member: &Member,
        key: Uuid,
        Sorted { mut append, mut late, .. }: Sorted,
        mut right: Right,
        storing: Option<&Storing<'_>>,
    ) -> Result<(), Failure> {
        for attempt in 1.. {
            if !late.is_empty() {
                if let Some(storing) = storing {
                    storing.wait_for_earlier().await;
                }
                self.reconcile_late(member, &late, &mut right).await?;
                late.clear();
            }
            if append.is_empty() {
                break;
            }
            match self.store.commit(key, append.to_vec(), right.clone()).await? {
                Written::Fenced => return Err(Failure::Fenced),
                Written::Overtaken => {
                    self.observe().await?;
                    // Taken before the rows are sorted again: later observations are not those by which the rows are
                    // sorted.
                    right = self.right(right.sender, right.fence);
                    if self.bug() != Some(Bug::SortAgainAll) {
                        (append, late) = self.sort_again(member, append.to_vec(), right.sender, attempt).await?;
                    }
                }
                _ => break,
            }
        }
        Ok(())
    }

    async fn reconcile_late(&self, member: &Member, late: &[Buffered], right: &mut Right) -> Result<(), Failure> {
        let told = self.reconcile(member, late, right.sender, right.fence, self.is_shared).await?;
        right.reconciled += i64::from(told == Some(right.reconciled + 1));
        Ok(())
    }

    async fn sort_again(
        &self,
        member: &Member,
        append: Vec<Row>,
        sender: SenderNo,
        attempt: usize,
    ) -> Result<(Arc<Vec<Row>>, Vec<Buffered>), Failure> {
        let now = self.instant();
        let Sorted { append, mut late, .. } = member.with(|state| state.sort_again(append, now));
        if !self.is_shared && attempt < APPEND_ATTEMPTS {
            return Ok((append, late));
        }
        let again = |row| Buffered { row, is_stamped: false, arrived: now, key: Uuid::nil() };
        late.extend(append.iter().cloned().map(again));
        sort_and_dedup(&mut late);
        if !self.is_shared {
            return Ok((Arc::default(), late));
        }
        let (window_ms, unbounded) = member.with(|state| (state.window_ms(&late), state.unbounded(&late)));
        let around = self.store.around(&rows(&late), window_ms, &unbounded).await?;
        Ok((Arc::new(rows(&member.with(|state| state.missing(&late, &around, sender)))), Vec::new()))
    }

    /// Returns the value to which the group's counter was raised.
    async fn reconcile(
        &self,
        member: &Member,
        samples: &[Buffered],
        sender: SenderNo,
        fence: Option<Fence>,
        is_told: bool,
    ) -> Result<Option<i64>, Failure> {
        if self.bug() == Some(Bug::DropLate) {
            return Ok(None);
        }
        let (window_ms, unbounded) = member.with(|state| (state.window_ms(samples), state.unbounded(samples)));
        let around = self.store.around(&rows(samples), window_ms, &unbounded).await?;
        let missing = member.with(|state| state.missing(samples, &around, sender));
        self.store.world.say(format_args!(
            "adapter {}: compares {} of {}",
            self.store.adapter,
            missing.len(),
            self.store.world.show_stored(&rows(samples))
        ));
        if missing.is_empty() {
            member.with(|state| state.on_reconciled(&[], &unbounded, &around, sender));
            return Ok(None);
        }
        let is_missing = |series_id: &i64| missing.iter().any(|sample| sample.row.series_id == *series_id);
        let (unbounded, settled): (Vec<i64>, Vec<i64>) = unbounded.into_iter().partition(is_missing);
        member.with(|state| state.on_reconciled(&[], &settled, &around, sender));
        let right = Right { sender, fence, reconciled: 0, observed: None, adapter: self.store.adapter };
        let judge = |around: &_| rows(&member.with(|state| state.missing(&missing, around, sender)));
        let done = self.store.reconcile(rows(&missing), right, is_told, window_ms, &unbounded, judge).await?;
        let Some(done) = done else { return Err(Failure::Fenced) };
        member.with(|state| state.on_reconciled(&done.inserted, &unbounded, &done.around, sender));
        let leads = self.leading.get().is_some_and(|leading| leading.sender == Some(sender));
        let told = Some(done.reconciled).filter(|_| is_told && !done.inserted.is_empty());
        if let Some(told) = told.filter(|told| leads && self.reconciled.get() == told - 1) {
            self.reconciled.set(told);
        }
        Ok(told)
    }

    async fn look(&self, member: &Member, fence: Option<Fence>) -> Result<(), Failure> {
        let Some(_taking_out) = member.taking_out.try_lock() else { return Ok(()) };
        if self.bug() == Some(Bug::DropUnobserved) {
            while member.with(|state| state.drain(1_000)).is_some() {}
            member.with(Sender::open);
        }
        loop {
            let count = if fence.is_some() { self.chunk_samples } else { 0 };
            let now = self.instant();
            let is_last = self.store.world.adapter(self.store.adapter).is_some_and(|adapter| adapter.is_stopping.get());
            let looked = member.with(|state| state.look(count, is_last, now));
            if self.store.world.is_traced() && looked.covered + looked.due.len() > 0 {
                self.store.world.say(format_args!(
                    "adapter {}: finds {} covered, {} due",
                    self.store.adapter,
                    looked.covered,
                    looked.due.len()
                ));
            }
            let is_last = looked.due.len() < self.chunk_samples;
            if looked.due.is_empty() {
                return Ok(());
            }
            let mut due = looked.due.clone();
            let mut taken_out = member.take_out(looked.due);
            sort_and_dedup(&mut due);
            let number = self.number(member).await?;
            self.reconcile(member, &due, number, fence, true).await?;
            taken_out.samples.clear();
            if is_last {
                return Ok(());
            }
        }
    }

    /// Stores the buffer of this sender, which leads now.
    pub(crate) async fn drain(&self, member: &Member, fence: Fence) -> Result<(), Failure> {
        let _taking_out = member.taking_out.lock().await;
        member.leads.set(Some(fence.token));
        self.observe().await?;
        let number = self.number(member).await?;
        let mut parts = ByRequest::default();
        while let Some(samples) = member.with(|state| state.drain(self.chunk_samples)) {
            let (by_request, mut late) = parts.divide(&samples);
            let mut taken_out = member.take_out(samples);
            let mut right = self.right(number, Some(fence));
            let mut requests = Vec::new();
            for (key, mut samples) in by_request {
                sort_and_dedup(&mut samples);
                let mut sorted = match self.bug() {
                    Some(Bug::DrainUncompared) => Sorted { append: Arc::new(rows(&samples)), ..Sorted::default() },
                    _ => member.with(|state| state.sort_buffered(&samples)),
                };
                late.append(&mut sorted.late);
                requests.push((key, sorted, member.begin_storing(self.store.world.number())));
            }
            let appended = requests.iter().flat_map(|(_, sorted, _)| sorted.append.iter());
            let appended: HashSet<(i64, i64)> = appended.map(|row| (row.series_id, row.time_ms)).collect();
            late.retain(|sample: &Buffered| !appended.contains(&(sample.row.series_id, sample.row.time_ms)));
            sort_and_dedup(&mut late);
            if !late.is_empty() {
                self.reconcile_late(member, &late, &mut right).await?;
            }
            let store = |(key, sorted, storing)| {
                let right = right.clone();
                let work = async move { self.store_sorted(member, key, sorted, right, Some(&storing)).await };
                Box::pin(work) as Pin<Box<dyn Future<Output = _>>>
            };
            all(requests.into_iter().map(store).collect()).await?;
            taken_out.samples.clear();
        }
        Ok(())
    }

    /// Observes about once a second, and reconciles samples that stayed uncovered. Never returns.
    pub(crate) async fn run(&self) {
        let mut told_offset_ms = None;
        loop {
            let _ = self.round(&mut told_offset_ms).await;
            self.store.world.kernel.sleep(OBSERVE_INTERVAL_MS).await;
        }
    }

    async fn round(&self, told_offset_ms: &mut Option<i64>) -> Result<(), Failure> {
        self.observe().await?;
        for member in self.all() {
            let number = self.number(&member).await?;
            let told_ms = *told_offset_ms;
            let should_log =
                |offset_ms: &i64| told_ms.is_none_or(|told_ms: i64| told_ms.abs_diff(*offset_ms) > OFFSET_NEWS_MS);
            if let Some(offset_ms) = self.store.clock_offset_ms().filter(should_log) {
                self.store.set_clock_offset(number, offset_ms).await?;
                *told_offset_ms = Some(offset_ms);
            }
            let fence = self.leading.get().map(|leading| leading.fence);
            match self.look(&member, fence).await {
                Ok(()) | Err(Failure::Fenced) => {}
                Err(Failure::Lost) => return Err(Failure::Lost),
            }
        }
        Ok(())
    }

    pub(crate) async fn observe(&self) -> Result<(), Lost> {
        let begun_before = self.begun.get();
        let _observing = self.observing.lock().await;
        if self.completed.get() > begun_before {
            return Ok(());
        }
        self.begun.set(self.begun.get() + 1);
        let number = self.begun.get();
        let members = self.all();
        for member in &members {
            self.number(member).await?;
        }
        let from = self.position.borrow().clone();
        let own = members.iter().filter(|_| !self.is_shared && from.is_some()).filter_map(|member| member.number.get());
        let (own, now) = (own.collect(), self.instant());
        let observed = self.store.observe(from.clone(), own).await?;
        if let Some(offset_ms) =
            observed.clock_offset_ms.filter(|_| !self.is_shared && self.bug() != Some(Bug::IgnoreClocks))
        {
            for member in &members {
                let others = observed.offsets_ms.iter().filter(|(sender, _)| Some(**sender) != member.number.get());
                let others: Vec<(SenderNo, i64)> = others.map(|(sender, offset_ms)| (*sender, *offset_ms)).collect();
                member
                    .with(|state| state.on_clocks(self.store.wall_ms(), offset_ms, others.into_iter(), self.instant()));
            }
        }
        let leading = match self.is_shared || from.is_none() {
            true => observed.group.sender,
            false => self.leading.get().and_then(|leading| leading.sender),
        };
        if let Some(leader) = leading {
            members.iter().for_each(|member| member.with(|state| state.on_leader(leader, observed.server_ms)));
        }
        let mut rows = observed.rows;
        self.store.world.say(format_args!(
            "adapter {}: observes {} rows, all of them: {}, counter {}",
            self.store.adapter,
            rows.len(),
            observed.is_complete,
            observed.group.reconciled
        ));
        rows.sort_by_key(|(.., time_ms)| *time_ms);
        for (sender, series_id, time_ms) in rows {
            for member in &members {
                let is_own = member.number.get() == Some(sender);
                let leads = leading == Some(sender);
                member.with(|state| state.on_stored(time_ms, is_own, leads, std::iter::once(series_id), now));
            }
        }
        for member in &members {
            member.with(|state| state.on_observed(now));
            let is_fresh = member.is_fresh.replace(false);
            if is_fresh || !observed.is_complete {
                let hot_ms = if is_fresh && from.is_some() { observed.hot_newest_ms } else { i64::MIN };
                let newest_ms = observed.sealed_newest_ms.max(hot_ms);
                member.with(|state| state.on_missed(newest_ms, observed.newest_series_no));
            }
        }
        if self.is_grouped {
            self.reconciled.set(observed.group.reconciled);
            let sender = observed.group.sender;
            self.leading.set(
                observed
                    .group
                    .token
                    .map(|token| Leading { fence: Fence { group_no: 1, term: observed.group.term, token }, sender }),
            );
        }
        *self.position.borrow_mut() = Some(observed.position);
        self.completed.set(number);
        Ok(())
    }
}

fn rows(samples: &[Buffered]) -> Vec<Row> {
    samples.iter().map(|sample| sample.row.clone()).collect()
}
