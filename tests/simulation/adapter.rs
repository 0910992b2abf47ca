//! One adapter: its handling of requests, and its knowledge of the leader.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use prometheus_postgresql_adapter::election::by_labels::cluster::Cluster;
use prometheus_postgresql_adapter::election::liveness::Liveness;
use prometheus_postgresql_adapter::election::orders::Order;
use prometheus_postgresql_adapter::election::role::Role;
use prometheus_postgresql_adapter::election::{Failing, WritePath};
use prometheus_postgresql_adapter::storage::fence::Fence;
use prometheus_postgresql_adapter::storage::row::{Row, sort_and_dedup};
use uuid::Uuid;

use crate::handover::{Failure, Member, Senders};
use crate::kernel::{Ms, NodeId, Signal};
use crate::settings::Mode;
use crate::store::Store;
use crate::world::World;

/// A request that is sent repeatedly until it is acknowledged. The rows have the judge's numbers of series.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) key: Uuid,
    pub(crate) rows: Vec<Row>,
}

/// Response to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Accepted,
    /// Some of its samples can never be stored.
    Bad,
    /// The sender is to retry.
    Refused,
}

/// One run of an adapter's process.
pub(crate) struct Adapter {
    pub(crate) world: Rc<World>,
    pub(crate) index: usize,
    pub(crate) node: NodeId,
    pub(crate) senders: Senders,
    /// Not used by labels.
    pub(crate) role: RefCell<Role>,
    pub(crate) liveness: RefCell<Liveness>,
    pub(crate) write_path: WritePath,
    pub(crate) cluster: RefCell<Cluster>,
    /// Signals that roles may have changed.
    pub(crate) changed: Signal,
    /// Signals an event that cannot wait: a request began, a connection was closed, a write was fenced, an order
    /// arrived.
    pub(crate) woken: Signal,
    pub(crate) is_fenced: Cell<bool>,
    pub(crate) orders: RefCell<Vec<Order>>,
    pub(crate) is_stopping: Cell<bool>,
    pub(crate) in_flight: Cell<usize>,
}

/// Maximum time for which a request waits for a role that can answer it.
const SETTLE_MS: Ms = 2_000;

/// Samples that are further ahead of the server's clock are refused.
const FUTURE_MS: i64 = 600_000;

impl Adapter {
    pub(crate) fn new(world: &Rc<World>, index: usize, node: NodeId) -> Rc<Self> {
        let mode = world.settings.mode;
        let timeout = world.settings.election.prometheus_timeout;
        let role = match mode {
            Mode::Alone => Role::Leader { fence: None, until: None },
            _ => Role::Unknown,
        };
        Rc::new(Self {
            world: Rc::clone(world),
            index,
            node,
            senders: Senders::new(Store::new(world, index, node), mode == Mode::Labels, mode != Mode::Alone),
            role: RefCell::new(role),
            liveness: RefCell::new(Liveness::new(timeout)),
            write_path: WritePath::default(),
            cluster: RefCell::new(Cluster::new(timeout)),
            changed: Signal::new(&world.kernel),
            woken: Signal::new(&world.kernel),
            is_fenced: Cell::new(false),
            orders: RefCell::default(),
            is_stopping: Cell::new(false),
            in_flight: Cell::new(0),
        })
    }

    pub(crate) fn begin(self: &Rc<Self>) {
        let world = &self.world;
        let observing = Rc::clone(self);
        if world.settings.mode != Mode::Labels {
            // The sender exists from the start.
            self.senders.of(self.index);
        }
        world.kernel.spawn(self.node, async move { observing.senders.run().await });
        let electing = Rc::clone(self);
        world.kernel.spawn(self.node, async move {
            match electing.world.settings.mode {
                Mode::Alone => electing.alone().await,
                Mode::Labels => electing.rounds().await,
                Mode::Lock | Mode::Rest => electing.elect().await,
            }
        });
    }

    async fn alone(&self) {
        while !self.is_stopping.get() || self.in_flight.get() > 0 {
            self.woken.changed().await;
        }
        self.world.adapter_ended(self.index);
    }

    pub(crate) fn is_up(&self) -> bool {
        !self.world.kernel.is_dead(self.node)
    }

    /// Returns the sender of a replica that sends to this adapter.
    pub(crate) fn member(&self, replica: usize) -> Rc<Member> {
        self.senders.of(replica)
    }

    fn role_of(&self, replica: usize) -> Role {
        let now = self.world.kernel.instant();
        match self.world.settings.mode {
            Mode::Labels => self.cluster.borrow().role(&replica.to_string(), now),
            _ if self.world.bug == Some(crate::Bug::WriteUnfenced) => self.role.borrow().clone(),
            _ => self.role.borrow().at(now),
        }
    }

    async fn settled_role(&self, replica: usize) -> Role {
        let until = self.world.now() + SETTLE_MS;
        loop {
            let seen = self.changed.seen();
            let role = self.role_of(replica);
            if matches!(role, Role::Leader { .. } | Role::Standby { .. }) || self.world.now() >= until {
                return role;
            }
            self.world.kernel.within(until - self.world.now(), self.changed.changed_since(seen)).await;
        }
    }

    /// Stores or buffers the samples of a replica's request.
    pub(crate) async fn receive(&self, replica: usize, batch: &Batch, is_new: bool) -> Answer {
        self.in_flight.set(self.in_flight.get() + 1);
        let (now, name) = (self.world.kernel.instant(), replica.to_string());
        self.liveness.borrow_mut().begin(now);
        if self.world.settings.mode == Mode::Labels {
            let mut cluster = self.cluster.borrow_mut();
            cluster.on_request(&name, now);
            if matches!(cluster.role(&name, now), Role::Unknown | Role::TakingOver) {
                self.woken.tell();
            }
        } else if matches!(*self.role.borrow(), Role::Resigned) {
            self.woken.tell();
        }
        if is_new {
            self.on_connected(replica);
        }
        let answer = self.take(replica, batch).await;
        let (now, is_refused) = (self.world.kernel.instant(), answer == Answer::Refused);
        self.liveness.borrow_mut().end(now, is_refused);
        self.cluster.borrow_mut().on_answer(&name, is_refused, now);
        self.in_flight.set(self.in_flight.get() - 1);
        if self.is_stopping.get() {
            self.woken.tell();
        }
        answer
    }

    async fn take(&self, replica: usize, batch: &Batch) -> Answer {
        let role = self.settled_role(replica).await;
        let silent_ms = self.world.now() - self.world.heartbeat_at.get();
        if !matches!(role, Role::Leader { .. } | Role::Standby { .. }) {
            return Answer::Refused;
        }
        let takes = {
            let mut random = self.world.random.borrow_mut();
            if !self.world.is_calm() && random.chance(3) { random.spread(1, 3_000) } else { 0 }
        };
        self.world.kernel.sleep(takes).await;
        let future_ms = self.senders.store.server_ms() + FUTURE_MS;
        let mut series: Vec<usize> = batch.rows.iter().map(series_of).collect();
        series.dedup();
        let Ok(ids) = self.senders.store.find_series(&series).await else { return Answer::Refused };
        let row = |row: &Row| Row { series_id: ids[&series_of(row)], ..row.clone() };
        let kept: Vec<Row> = batch.rows.iter().filter(|row| row.time_ms <= future_ms).cloned().collect();
        let is_bad = kept.len() < batch.rows.len();
        let mut rows: Vec<Row> = kept.iter().map(row).collect();
        sort_and_dedup(&mut rows);
        let member = self.member(replica);
        match role {
            Role::Leader { fence, .. } => {
                if let Err(failure) = self.store(&member, batch.key, rows, fence).await {
                    if failure == Failure::Fenced {
                        self.is_fenced.set(true);
                        self.woken.tell();
                    }
                    return Answer::Refused;
                }
                self.world.judge_stored(self, replica, &kept);
            }
            _ => {
                if self.senders.buffer(&member, batch.key, &rows).is_err() {
                    return Answer::Refused;
                }
                self.world.judge_buffered(self, replica, &kept, silent_ms);
            }
        }
        if is_bad { Answer::Bad } else { Answer::Accepted }
    }

    async fn store(&self, member: &Member, key: Uuid, rows: Vec<Row>, fence: Option<Fence>) -> Result<(), Failure> {
        let stored = self.senders.store(member, key, rows, fence).await;
        match stored {
            Ok(()) => self.write_path.succeeded(),
            Err(Failure::Lost) => self.write_path.failed(self.world.kernel.instant()),
            Err(Failure::Fenced) => {}
        }
        stored
    }

    pub(crate) fn failing(&self) -> Option<Failing> {
        self.write_path.failing()
    }

    /// Notes that a connection of a replica was closed after `requests` requests.
    pub(crate) fn on_closed(&self, replica: usize, requests: u32) {
        let now = self.world.kernel.instant();
        let mut tells = self.liveness.borrow_mut().closed(requests > 1, now);
        if let Some(heard) = self.cluster.borrow_mut().heard(&replica.to_string()) {
            tells = heard.closed(requests > 1, now);
        }
        if tells {
            self.woken.tell();
        }
    }

    /// Notes that a connection of a replica has carried its first request.
    pub(crate) fn on_connected(&self, replica: usize) {
        self.liveness.borrow_mut().connected();
        if let Some(heard) = self.cluster.borrow_mut().heard(&replica.to_string()) {
            heard.connected();
        }
    }
}

pub(crate) fn series_of(row: &Row) -> usize {
    usize::try_from(row.series_id).unwrap_or(0)
}
