//! A schedule: all participants, and the faults that happen to them.

use std::cell::{Cell, RefCell};
use std::fmt::Arguments;
use std::rc::Rc;

use prometheus_postgresql_adapter::election::orders::Order;
use prometheus_postgresql_adapter::election::role::Role;
use prometheus_postgresql_adapter::storage::row::Row;
use uuid::Uuid;

use crate::Bug;
use crate::adapter::Adapter;
use crate::database::Database;
use crate::judge::Judge;
use crate::kernel::{Kernel, Ms, NodeId, Signal};
use crate::link::Way;
use crate::sender::Replica;
use crate::settings::{Befalls, Fault, Kind, Mode, Ordered, Settings};
use rig::random::Random;

/// Time that a correct clock shows at the beginning.
pub(crate) const EPOCH_MS: i64 = 1_700_000_000_000;

pub(crate) struct World {
    pub(crate) kernel: Rc<Kernel>,
    pub(crate) settings: Settings,
    pub(crate) bug: Option<Bug>,
    pub(crate) random: RefCell<Random>,
    /// Node of everything that is not on any host.
    pub(crate) network: NodeId,
    pub(crate) database: RefCell<Database>,
    /// Signals that a lock was released or that a transaction has ended.
    pub(crate) database_changed: Signal,
    /// Time at which a leader last sent a heartbeat or raised a term.
    pub(crate) heartbeat_at: Cell<Ms>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) judge: Judge,
    adapters: RefCell<Vec<Option<Rc<Adapter>>>>,
    hosts: Vec<Host>,
    /// Offset of the server's clock.
    server_off_ms: Cell<i64>,
    /// `true` once all samples are sent and stored.
    is_over: Cell<bool>,
    count: Cell<u64>,
    trace: Option<RefCell<Vec<String>>>,
}

/// Host of an adapter, and of its Prometheus unless leaders are found by labels.
#[derive(Default)]
struct Host {
    off_ms: Cell<i64>,
    /// Times until which the connections to the database are cut.
    writes_cut_until: Cell<Ms>,
    locks_cut_until: Cell<Ms>,
    /// `true` while the adapter's host is gone: its peers get no notice.
    is_gone: Cell<bool>,
    /// Time after which an adapter that was asked to stop starts again.
    down_ms: Cell<Ms>,
}

impl World {
    pub(crate) fn new(seed: u64, by_labels: bool, bug: Option<Bug>, with_trace: bool) -> Rc<Self> {
        let mut random = Random::new(seed);
        let settings = Settings::draw(&mut random, by_labels);
        let kernel = Kernel::new();
        let hosts =
            settings.offsets.iter().map(|offset| Host { off_ms: Cell::new(*offset), ..Host::default() }).collect();
        let mut world = Self {
            network: kernel.node(),
            database: RefCell::new(Database::new(kernel.node())),
            database_changed: Signal::new(&kernel),
            heartbeat_at: Cell::new(0),
            replicas: Vec::new(),
            judge: Judge::default(),
            adapters: RefCell::new(vec![None; settings.adapters]),
            hosts,
            server_off_ms: Cell::new(0),
            is_over: Cell::new(false),
            count: Cell::new(0),
            trace: with_trace.then(RefCell::default),
            random: RefCell::new(random),
            kernel,
            settings,
            bug,
        };
        world.replicas = (0..world.settings.replicas).map(|index| Replica::new(&world, index)).collect();
        Rc::new(world)
    }

    /// Runs the schedule to its end, or until a rule is broken.
    pub(crate) fn run(self: &Rc<Self>) {
        for index in 0..self.settings.adapters {
            let world = Rc::clone(self);
            let at = self.settings.begins_at[index];
            self.kernel.spawn(self.network, async move {
                world.kernel.sleep(at).await;
                world.begin_adapter(index);
            });
        }
        (0..self.settings.replicas).for_each(|index| self.begin_replica(index, false));
        self.begin_others();
        for befalls in self.settings.faults.clone() {
            let world = Rc::clone(self);
            self.kernel.spawn(self.network, async move { world.befall(befalls).await });
        }
        self.kernel.run(self.settings.end_at, || self.is_broken() || self.is_over.get());
        if !self.is_broken() {
            self.judge_end();
        }
        self.say_end();
        self.kernel.clear();
        self.adapters.borrow_mut().clear();
    }

    fn begin_others(self: &Rc<Self>) {
        for (place, target) in self.settings.targets.iter().enumerate() {
            let known = target.scrapes.iter().position(|scrapes| scrapes.is_known);
            if let (Kind::Stranger { ahead_ms }, Some(index)) = (target.kind, known) {
                let world = Rc::clone(self);
                self.kernel.spawn(self.network, async move { world.be_stranger(index, place, ahead_ms).await });
            }
        }
        for history in self.settings.histories.clone() {
            let world = Rc::clone(self);
            self.kernel.spawn(self.network, async move { world.post_history(history).await });
        }
        if let Some(every_ms) = self.settings.seal_every {
            let world = Rc::clone(self);
            self.kernel.spawn(self.network, async move { world.seal_often(every_ms).await });
        }
        if self.settings.mode == Mode::Rest {
            let world = Rc::clone(self);
            self.kernel.spawn(self.network, async move { world.tell_leaders().await });
        }
        let world = Rc::clone(self);
        self.kernel.spawn(self.network, async move { world.watch().await });
    }

    /// Checks that in steady state nothing is buffered for long.
    async fn watch(self: Rc<Self>) {
        let longest_ms = self.settings.longest_ms();
        let deadline_ms = self.settings.sending.iter().map(|sending| sending.deadline_ms).max().unwrap_or(0);
        self.kernel.sleep_until(self.settings.quiet_at + 5 * longest_ms + deadline_ms + 30_000).await;
        while self.now() < self.settings.scrape_until {
            self.judge_steady();
            self.kernel.sleep(1_000).await;
        }
        while !self.is_done() {
            self.kernel.sleep(1_000).await;
        }
        self.is_over.set(true);
    }

    /// True if every scraped sample is sent and no sample is buffered.
    fn is_done(&self) -> bool {
        self.replicas.iter().all(Replica::is_done)
            && self.adapters().iter().all(|adapter| adapter.senders.is_drained() && adapter.in_flight.get() == 0)
    }

    // ---- for everybody

    pub(crate) fn now(&self) -> Ms {
        self.kernel.now()
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.now() >= self.settings.quiet_at
    }

    pub(crate) fn say(&self, text: Arguments<'_>) {
        if let Some(trace) = &self.trace {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            trace.borrow_mut().push(format!("{:>9.3} {text}", self.now() as f64 / 1e3));
        }
    }

    pub(crate) fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        self.trace.as_ref().map(RefCell::take).unwrap_or_default()
    }

    pub(crate) fn number(&self) -> u64 {
        self.count.set(self.count.get() + 1);
        self.count.get()
    }

    pub(crate) fn uuid(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.number()))
    }

    /// Returns the host of an adapter.
    pub(crate) fn host_of(&self, adapter: usize) -> usize {
        if self.settings.mode == Mode::Labels { self.settings.replicas + adapter } else { adapter }
    }

    /// Returns the time that a host's clock shows; the server's clock if `host` is `None`.
    pub(crate) fn clock_ms(&self, host: Option<usize>) -> i64 {
        EPOCH_MS + self.now() + host.map_or(&self.server_off_ms, |host| &self.hosts[host].off_ms).get()
    }

    pub(crate) fn cut_until(&self, adapter: usize, way: Way) -> Ms {
        let host = &self.hosts[self.host_of(adapter)];
        match way {
            Way::Writes => host.writes_cut_until.get(),
            Way::Locks => host.locks_cut_until.get(),
        }
    }

    pub(crate) fn is_gone(&self, adapter: usize) -> bool {
        self.hosts[self.host_of(adapter)].is_gone.get()
    }

    pub(crate) fn adapter(&self, index: usize) -> Option<Rc<Adapter>> {
        self.adapters.borrow().get(index).and_then(Option::clone)
    }

    /// Returns the adapters that run.
    pub(crate) fn adapters(&self) -> Vec<Rc<Adapter>> {
        self.adapters.borrow().iter().flatten().map(Rc::clone).collect()
    }

    pub(crate) fn is_adapter_up(&self, index: usize) -> bool {
        self.adapter(index).is_some()
    }

    // ---- adapters

    fn begin_adapter(self: &Rc<Self>, index: usize) {
        if self.is_adapter_up(index) {
            return;
        }
        self.hosts[self.host_of(index)].is_gone.set(false);
        let adapter = Adapter::new(self, index, self.kernel.node());
        self.adapters.borrow_mut()[index] = Some(Rc::clone(&adapter));
        self.say(format_args!("adapter {index}: starts"));
        adapter.begin();
    }

    /// Ends the adapter's process, and its memory with it.
    fn kill_adapter(self: &Rc<Self>, index: usize, down_ms: Ms) {
        let Some(adapter) = self.adapters.borrow_mut()[index].take() else { return };
        // Samples that were taken out of a buffer are put back.
        self.kernel.kill(adapter.node);
        let mut died: Vec<Row> = Vec::new();
        for member in adapter.senders.all() {
            while let Some(samples) = member.state.borrow_mut().drain(1_000) {
                died.extend(samples.iter().map(|sample| sample.row.clone()));
            }
        }
        self.say(format_args!("adapter {index}: is gone, and with it {} samples", died.len()));
        self.judge_death(&died);
        self.forget_connections(index);
        let world = Rc::clone(self);
        self.kernel.spawn(self.network, async move {
            world.kernel.sleep(down_ms).await;
            world.begin_adapter(index);
        });
    }

    /// Ends an adapter that was asked to stop and has stopped.
    pub(crate) fn adapter_ended(self: &Rc<Self>, index: usize) {
        let down_ms = self.hosts[self.host_of(index)].down_ms.get();
        self.kill_adapter(index, down_ms);
    }

    // ---- continuous activities

    async fn seal_often(self: Rc<Self>, every_ms: Ms) {
        // The `xmin` of an earlier look. Rows committed after that look stay hot, as in `keep_sealed`.
        let mut xmin = 0;
        while self.now() < self.settings.end_at {
            self.kernel.sleep(every_ms - every_ms.min(3_000)).await;
            let now_xmin = self.database.borrow().xmin();
            self.kernel.sleep(every_ms.min(3_000)).await;
            xmin = now_xmin.max(xmin);
            self.seal(Some(xmin));
        }
    }

    fn seal(&self, below: Option<u64>) {
        if self.database.borrow().is_up {
            let count = self.database.borrow_mut().seal(below);
            self.say(format_args!("server: seals {count} samples"));
        }
    }

    /// The external party of `Mode::Rest`: makes sure that somebody leads.
    async fn tell_leaders(self: Rc<Self>) {
        self.kernel.sleep(6_000).await;
        loop {
            let now = self.kernel.instant();
            let adapters = self.adapters();
            let is_well = |adapter: &&Rc<Adapter>| {
                let host = &self.hosts[self.host_of(adapter.index)];
                host.writes_cut_until.get().max(host.locks_cut_until.get()) <= self.now() && !adapter.is_stopping.get()
            };
            let leads =
                |adapter: &Rc<Adapter>| matches!(adapter.role.borrow().at(now), Role::Leader { .. } | Role::TakingOver);
            if !adapters.iter().filter(is_well).any(leads)
                && let Some(adapter) = adapters.iter().find(is_well)
            {
                adapter.order(Order::Release);
                adapter.order(Order::Lead);
            }
            let pause = self.random.borrow_mut().between(500, 3_000);
            self.kernel.sleep(pause).await;
        }
    }

    // ---- faults

    async fn befall(self: Rc<Self>, Befalls { at, for_ms, fault }: Befalls) {
        self.kernel.sleep_until(at).await;
        self.say(format_args!("FAULT {fault:?} for {for_ms} ms"));
        let until = self.now() + for_ms;
        match fault {
            Fault::KillAdapter { adapter, host_too } => {
                self.hosts[self.host_of(adapter)].is_gone.set(host_too);
                self.kill_adapter(adapter, for_ms);
                if host_too && self.settings.mode != Mode::Labels {
                    self.restart_replica(adapter, true, false, for_ms).await;
                }
            }
            Fault::StopAdapter { adapter } => {
                self.hosts[self.host_of(adapter)].down_ms.set(for_ms);
                if let Some(adapter) = self.adapter(adapter) {
                    adapter.is_stopping.set(true);
                    adapter.woken.tell();
                }
            }
            Fault::Freeze { adapter } => {
                if let Some(adapter) = self.adapter(adapter) {
                    self.kernel.freeze(adapter.node, until);
                }
            }
            Fault::FreezeInWrite { adapter } => {
                if let Some(adapter) = self.adapter(adapter) {
                    adapter.senders.store.freeze_in_write_ms.set(for_ms);
                    self.kernel.sleep_until(until).await;
                    adapter.senders.store.freeze_in_write_ms.set(0);
                }
            }
            Fault::Cut { adapter, writes, locks } => {
                let host = &self.hosts[self.host_of(adapter)];
                if writes {
                    host.writes_cut_until.set(until);
                }
                if locks {
                    host.locks_cut_until.set(until);
                }
            }
            Fault::KillSender { replica, resends } => self.restart_replica(replica, false, resends, for_ms).await,
            Fault::Silence { replica } => self.replicas[replica].silent_until.set(until),
            Fault::CloseConnections { replica } => self.close_connections(replica),
            Fault::DatabaseDown => {
                let node = self.database.borrow().node;
                self.database.borrow_mut().is_up = false;
                self.kernel.kill(node);
                self.kernel.sleep_until(until).await;
                let node = self.kernel.node();
                let mut database = self.database.borrow_mut();
                (database.node, database.is_up) = (node, true);
            }
            Fault::DatabaseSlow => self.database.borrow_mut().slow_until = until,
            Fault::EndLockSession => self.end_sessions(true),
            Fault::EndWrites => self.end_sessions(false),
            Fault::Seal { all } => {
                let below = self.database.borrow().xmin();
                self.kernel.sleep(if all { 0 } else { 3_000 }).await;
                self.seal((!all).then_some(below));
            }
            Fault::Clock { host, by_ms } => {
                let off_ms = |world: &Self| match host {
                    Some(host) => world.hosts[host].off_ms.get(),
                    None => world.server_off_ms.get(),
                };
                let set = |world: &Self, off_ms| match host {
                    Some(host) => world.hosts[host].off_ms.set(off_ms),
                    None => world.server_off_ms.set(off_ms),
                };
                set(&self, off_ms(&self) + by_ms);
                self.kernel.sleep_until(until).await;
                set(&self, off_ms(&self) - by_ms);
            }
            Fault::Order { adapter, order } => self.order(adapter, order, until).await,
            Fault::Reshuffle => {
                for replica in &self.replicas {
                    let to = self.random.borrow_mut().index(self.settings.adapters);
                    replica.route.set(Some(to));
                }
            }
        }
    }

    async fn restart_replica(self: &Rc<Self>, index: usize, host_too: bool, resends: bool, down_ms: Ms) {
        if self.replicas[index].is_up.get() {
            self.kill_replica(index, host_too);
            self.kernel.sleep(down_ms).await;
            self.say(format_args!("replica {index}: starts"));
            self.begin_replica(index, resends);
        }
    }

    async fn order(self: &Rc<Self>, adapter: usize, order: Ordered, until: Ms) {
        if self.settings.mode == Mode::Labels {
            return self.order_by_labels(adapter, order, until).await;
        }
        let Some(ordered) = self.adapter(adapter) else { return };
        ordered.order(match order {
            Ordered::Lead => Order::Lead,
            Ordered::Resign => Order::Resign,
            Ordered::HandOver { to } => Order::HandOver { to: to.to_string() },
            Ordered::Hold => Order::Hold,
        });
        if order == Ordered::Hold {
            self.kernel.sleep_until(until).await;
            ordered.order(Order::Release);
        }
    }

    /// Terminates backends: that of the lock session, or those of all writers.
    fn end_sessions(&self, of_lock: bool) {
        let ended = match of_lock {
            true => self.database.borrow().lock_task().into_iter().collect(),
            false => self.database.borrow().writers(),
        };
        ended.into_iter().for_each(|task| self.kernel.kill_task(task));
    }
}
