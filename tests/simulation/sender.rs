//! Models of those who send samples: replicas, strangers, and users who post history. A replica scrapes, and sends what
//! it has scraped, shard by shard, repeatedly until it is acknowledged.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use prometheus_postgresql_adapter::storage::row::{Row, sort_and_dedup};

use crate::adapter::{Adapter, Answer, Batch, series_of};
use crate::judge::Tag;
use crate::kernel::{Channel, Ms, NodeId, Signal};
use crate::settings::{History, Kind, LATE_PART, Mode, Sending, Target};
use crate::world::{EPOCH_MS, World};

/// A replica: a Prometheus, or an agent that behaves like one.
pub(crate) struct Replica {
    pub(crate) index: usize,
    pub(crate) node: Cell<NodeId>,
    pub(crate) is_up: Cell<bool>,
    /// Until this time the replica is alive, but nothing that it sends arrives.
    pub(crate) silent_until: Cell<Ms>,
    /// By labels: the adapter that gets its requests; `None` if the adapters take turns.
    pub(crate) route: Cell<Option<usize>>,
    turn: Cell<usize>,
    shards: RefCell<Vec<Rc<Shard>>>,
    /// Number of requests by strangers and posters of history that are being sent from its host.
    others: Cell<usize>,
    /// Samples that it has scraped, as in its WAL.
    log: RefCell<Vec<Row>>,
    last_ms: RefCell<HashMap<usize, i64>>,
    /// By adapter.
    connections: RefCell<Vec<Connection>>,
}

#[derive(Clone, Debug, Default)]
struct Connection {
    is_open: bool,
    requests: u32,
    used_at: Ms,
}

struct Shard {
    queue: RefCell<VecDeque<Row>>,
    is_sending: Cell<bool>,
    filled: Signal,
}

/// Minimum and maximum pause between two attempts.
const BACKOFF_MS: (Ms, Ms) = (30, 5_000);

/// Age up to which a replica sends samples of its WAL again when it starts.
const RESENT_MS: i64 = 30 * 60_000;

/// A week.
const WEEK_MS: i64 = 7 * 86_400_000;

/// Tells the sender, on drop, that no more response will come.
struct Answering(Rc<Channel<Answer>>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.send(1, None);
    }
}

impl Replica {
    pub(crate) fn new(world: &World, index: usize) -> Self {
        Self {
            index,
            node: Cell::new(world.kernel.node()),
            is_up: Cell::new(true),
            silent_until: Cell::new(0),
            route: Cell::new(None),
            turn: Cell::new(index),
            shards: RefCell::default(),
            others: Cell::new(0),
            log: RefCell::default(),
            last_ms: RefCell::default(),
            connections: RefCell::new(vec![Connection::default(); world.settings.adapters]),
        }
    }

    /// True if all samples that it has are acknowledged.
    pub(crate) fn is_done(&self) -> bool {
        let is_done = |shard: &Rc<Shard>| shard.queue.borrow().is_empty() && !shard.is_sending.get();
        self.others.get() == 0 && self.shards.borrow().iter().all(is_done)
    }

    fn enqueue(&self, rows: &[Row]) {
        let shards = self.shards.borrow();
        for row in rows {
            let shard = &shards[series_of(row) % shards.len()];
            shard.queue.borrow_mut().push_back(row.clone());
            shard.filled.tell();
        }
    }
}

impl World {
    /// Starts the process of a replica.
    pub(crate) fn begin_replica(self: &Rc<Self>, index: usize, resends: bool) {
        let replica = &self.replicas[index];
        replica.is_up.set(true);
        replica.node.set(self.kernel.node());
        let sending = &self.settings.sending[index];
        let shard = || {
            Rc::new(Shard {
                queue: RefCell::default(),
                is_sending: Cell::new(false),
                filled: Signal::new(&self.kernel),
            })
        };
        *replica.shards.borrow_mut() = (0..sending.shards).map(|_| shard()).collect();
        let mut batch_max = sending.batch_max;
        if resends {
            // In other batches than before.
            batch_max = 2 + self.random.borrow_mut().index(40);
            let since = self.clock_ms(Some(index)) - RESENT_MS;
            let log = replica.log.borrow();
            let resent: Vec<Row> = log.iter().filter(|row| row.time_ms >= since).cloned().collect();
            self.say(format_args!("replica {index}: sends {} samples again", resent.len()));
            replica.enqueue(&resent);
        }
        for shard in replica.shards.borrow().iter() {
            let (world, shard) = (Rc::clone(self), Rc::clone(shard));
            self.kernel.spawn(replica.node.get(), async move { world.send_shard(index, &shard, batch_max).await });
        }
        for place in 0..self.settings.targets.len() {
            if !matches!(self.settings.targets[place].kind, Kind::Stranger { .. } | Kind::History) {
                let world = Rc::clone(self);
                self.kernel.spawn(replica.node.get(), async move { world.scrape(index, place).await });
            }
        }
    }

    /// Ends the process of a replica. The host closes the connections of the process, unless the host is gone too.
    pub(crate) fn kill_replica(self: &Rc<Self>, index: usize, host_too: bool) {
        let replica = &self.replicas[index];
        self.kernel.kill(replica.node.get());
        replica.is_up.set(false);
        replica.shards.borrow_mut().clear();
        if !host_too {
            self.close_connections(index);
        }
    }

    pub(crate) fn close_connections(self: &Rc<Self>, index: usize) {
        for adapter in 0..self.settings.adapters {
            self.close_connection(index, adapter);
        }
    }

    fn close_connection(self: &Rc<Self>, index: usize, adapter: usize) {
        let closed = std::mem::take(&mut self.replicas[index].connections.borrow_mut()[adapter]);
        if closed.is_open
            && let Some(adapter) = self.adapter(adapter)
        {
            self.kernel.spawn(adapter.node, {
                let adapter = Rc::clone(&adapter);
                async move { adapter.on_closed(index, closed.requests) }
            });
        }
    }

    // ---- scraping

    async fn scrape(self: Rc<Self>, index: usize, place: usize) {
        let target = &self.settings.targets[place];
        let scrapes = &target.scrapes[index];
        if !scrapes.is_known {
            return;
        }
        let begin = self.now().max(target.from);
        let mut at = begin + (scrapes.phase_ms - begin).rem_euclid(target.interval_ms);
        while at < target.until.min(self.settings.scrape_until) {
            let late_ms = {
                let mut random = self.random.borrow_mut();
                if random.chance(scrapes.late) { random.between(1, target.interval_ms / LATE_PART) } else { 0 }
            };
            self.kernel.sleep_until(at + late_ms).await;
            let is_blind = scrapes.blind.is_some_and(|(from, until)| (from..until).contains(&at));
            if !is_blind && !self.random.borrow_mut().chance(scrapes.missed) {
                self.scraped(index, target);
            }
            at += target.interval_ms;
        }
    }

    fn scraped(&self, index: usize, target: &Target) {
        let (now, wall_ms, interval_ms) = (self.now(), self.clock_ms(Some(index)), target.interval_ms);
        let tag = |true_ms, is_exact| Tag { true_ms, replica: index, is_exact };
        let on_grid = now - now.rem_euclid(interval_ms);
        // Time and tag. A sample is older than one already sent only if its exporter stamped it so.
        let mut samples: Vec<(i64, Tag)> = match target.kind {
            Kind::Exported { back_ms } => vec![(EPOCH_MS + on_grid - back_ms, tag(on_grid, true))],
            Kind::Late { off_grid } => {
                let came = |k: i64| -> Option<(i64, Tag)> {
                    // The same for all replicas.
                    let chance = (k / interval_ms).wrapping_mul(7_919).rem_euclid(97);
                    let after = if chance < 30 { (1 + chance % 6) * interval_ms } else { 0 };
                    let off_ms = if off_grid && after > 0 { chance * interval_ms / 97 } else { 0 };
                    let is_now = (now - interval_ms..now).contains(&(k + after)) || (after == 0 && k == on_grid);
                    is_now.then(|| (EPOCH_MS + k + off_ms, tag(k, after > 0)))
                };
                (0..=7).rev().filter_map(|n| came(on_grid - n * interval_ms)).collect()
            }
            _ => vec![(wall_ms, tag(now, false))],
        };
        let is_orderless = self.settings.sending[index].is_orderless;
        let replica = &self.replicas[index];
        let mut rows = Vec::new();
        samples.dedup_by_key(|(time_ms, _)| *time_ms);
        let is_one = target.scrapes[index].is_partly_known || now < target.others_from;
        let count = if is_one { 1 } else { target.series.len() };
        for series in &target.series[..count] {
            for (time_ms, tag) in &samples {
                let mut last = replica.last_ms.borrow_mut();
                let last = last.entry(*series).or_insert(i64::MIN);
                let is_taken =
                    time_ms > last || (is_orderless || matches!(target.kind, Kind::Late { .. })) && time_ms != last;
                if is_taken {
                    *last = (*last).max(*time_ms);
                    #[expect(clippy::cast_possible_wrap, reason = "small numbers")]
                    rows.push(Row { series_id: *series as i64, time_ms: *time_ms, value: tag.to_value(*series) });
                }
            }
        }
        replica.log.borrow_mut().extend(rows.iter().cloned());
        replica.enqueue(&rows);
    }

    // ---- sending

    async fn send_shard(self: Rc<Self>, index: usize, shard: &Shard, batch_max: usize) {
        let deadline_ms = self.settings.sending[index].deadline_ms;
        // Shards send at different times.
        let mut due = self.now() + self.random.borrow_mut().between(0, deadline_ms);
        loop {
            let seen = shard.filled.seen();
            let count = shard.queue.borrow().len();
            if count < batch_max && (count == 0 || self.now() < due) {
                while due <= self.now() {
                    due += deadline_ms;
                }
                self.kernel.within(due - self.now(), shard.filled.changed_since(seen)).await;
                continue;
            }
            shard.is_sending.set(true);
            let mut rows: Vec<Row> = shard.queue.borrow_mut().drain(..count.min(batch_max)).collect();
            sort_and_dedup(&mut rows);
            self.send_batch(index, Batch { key: self.uuid(), rows }).await;
            shard.is_sending.set(false);
            due = self.now() + deadline_ms;
        }
    }

    /// Sends a batch repeatedly until it is accepted or rejected as bad.
    async fn send_batch(self: &Rc<Self>, index: usize, batch: Batch) {
        let batch = Rc::new(batch);
        let mut backoff_ms = BACKOFF_MS.0;
        loop {
            match self.post(index, &batch).await {
                Some(Answer::Accepted | Answer::Bad) => return,
                _ => self.kernel.sleep(backoff_ms).await,
            }
            backoff_ms = (backoff_ms * 2).min(BACKOFF_MS.1);
        }
    }

    /// Makes one attempt. Returns `None` if no response arrived.
    async fn post(self: &Rc<Self>, index: usize, batch: &Rc<Batch>) -> Option<Answer> {
        let replica = &self.replicas[index];
        let Sending { timeout_ms, .. } = self.settings.sending[index];
        let lossy = if self.is_calm() { 0 } else { self.settings.lossy };
        let is_lost = self.random.borrow_mut().chance(lossy);
        if replica.silent_until.get() > self.now() || is_lost {
            self.kernel.sleep(timeout_ms).await;
            return None;
        }
        let to = match self.settings.mode {
            Mode::Labels => replica.route.get().unwrap_or_else(|| {
                replica.turn.set((replica.turn.get() + 1) % self.settings.adapters);
                replica.turn.get()
            }),
            _ => index,
        };
        let Some(adapter) = self.adapter(to).filter(|adapter| adapter.is_up() && !adapter.is_stopping.get()) else {
            self.kernel.sleep(1).await;
            return Some(Answer::Refused);
        };
        let is_new = self.carry(index, to);
        let (is_repeated, is_slow, is_unheard) = {
            let mut random = self.random.borrow_mut();
            (random.chance(lossy), random.chance(lossy), random.chance(lossy))
        };
        if is_repeated {
            let after = self.random.borrow_mut().spread(1, timeout_ms);
            self.deliver(&adapter, index, batch, after, false, None);
        }
        let after = if is_slow {
            self.random.borrow_mut().spread(1, timeout_ms + 2_000)
        } else {
            self.random.borrow_mut().between(0, 2)
        };
        let answer = Channel::new(&self.kernel);
        self.deliver(&adapter, index, batch, after, is_new, (!is_unheard).then(|| Answering(Rc::clone(&answer))));
        self.kernel.within(timeout_ms, answer.next()).await.flatten()
    }

    fn deliver(
        self: &Rc<Self>,
        adapter: &Rc<Adapter>,
        index: usize,
        batch: &Rc<Batch>,
        after: Ms,
        is_new: bool,
        answering: Option<Answering>,
    ) {
        let (world, adapter, batch) = (Rc::clone(self), Rc::clone(adapter), Rc::clone(batch));
        let node = adapter.node;
        self.kernel.spawn(node, async move {
            world.kernel.sleep(after).await;
            let answer = adapter.receive(index, &batch, is_new).await;
            if let Some(answering) = &answering {
                answering.0.send(1, Some(answer));
            }
        });
    }

    /// Sends a request on a connection; returns true if the connection is new.
    fn carry(self: &Rc<Self>, index: usize, to: usize) -> bool {
        let Sending { idle_ms, renewed_after, .. } = self.settings.sending[index];
        if renewed_after.is_some_and(|count| self.replicas[index].connections.borrow()[to].requests >= count) {
            self.close_connection(index, to);
        }
        let now = self.now();
        let is_new = {
            let connection = &mut self.replicas[index].connections.borrow_mut()[to];
            connection.requests += 1;
            connection.used_at = now;
            !std::mem::replace(&mut connection.is_open, true)
        };
        if let Some(idle_ms) = idle_ms {
            let world = Rc::clone(self);
            self.kernel.spawn(self.network, async move {
                world.kernel.sleep(idle_ms).await;
                if world.replicas[index].connections.borrow()[to].used_at == now {
                    world.close_connection(index, to);
                }
            });
        }
        is_new
    }

    /// Forgets the connections to an adapter, which ended together with the adapter.
    pub(crate) fn forget_connections(&self, adapter: usize) {
        for replica in &self.replicas {
            replica.connections.borrow_mut()[adapter] = Connection::default();
        }
    }

    // ---- others

    /// Posts a sample at each interval of the target, whoever leads.
    pub(crate) async fn be_stranger(self: Rc<Self>, index: usize, place: usize, ahead_ms: Ms) {
        let target = &self.settings.targets[place];
        while self.now() < self.settings.scrape_until {
            self.kernel.sleep(target.interval_ms).await;
            let time_ms = if ahead_ms == -EPOCH_MS { 0 } else { EPOCH_MS + self.now() + ahead_ms };
            let value = Tag { true_ms: self.now(), replica: index, is_exact: true }.to_value(target.series[0]);
            #[expect(clippy::cast_possible_wrap, reason = "small numbers")]
            let row = Row { series_id: target.series[0] as i64, time_ms, value };
            self.send_of_others(index, vec![row]).await;
        }
    }

    pub(crate) async fn post_history(self: Rc<Self>, history: History) {
        self.kernel.sleep_until(history.at).await;
        let row = |n: i64| {
            let true_ms = n * history.step_ms - WEEK_MS;
            let value = Tag { true_ms, replica: history.replica, is_exact: true }.to_value(history.series);
            #[expect(clippy::cast_possible_wrap, reason = "small numbers")]
            Row { series_id: history.series as i64, time_ms: EPOCH_MS + true_ms, value }
        };
        let mut rows: Vec<Row> = (0..history.count).map(row).collect();
        if history.newest_first {
            rows.reverse();
        }
        for rows in rows.chunks(self.settings.sending[history.replica].batch_max) {
            let mut rows = rows.to_vec();
            sort_and_dedup(&mut rows);
            self.send_of_others(history.replica, rows).await;
        }
    }

    async fn send_of_others(self: &Rc<Self>, index: usize, rows: Vec<Row>) {
        let others = &self.replicas[index].others;
        others.set(others.get() + 1);
        self.send_batch(index, Batch { key: self.uuid(), rows }).await;
        others.set(others.get() - 1);
    }
}
