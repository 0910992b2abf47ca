//! The database from an adapter's view: models of the statements behind `storage::Store`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use prometheus_postgresql_adapter::model::sender::SenderNo;
use prometheus_postgresql_adapter::storage::around::Around;
use prometheus_postgresql_adapter::storage::own_transactions::{Gap, OwnTransactions};
use prometheus_postgresql_adapter::storage::position::Position;
use prometheus_postgresql_adapter::storage::row::Row;
use prometheus_postgresql_adapter::storage::server::Epoch;
use prometheus_postgresql_adapter::storage::server_clock::ServerClock;
use uuid::Uuid;

use crate::Bug;
use crate::database::Observed;
use crate::kernel::{Ms, NodeId};
use crate::link::{End, Lost, Way};
use crate::server::{Compared, Right, Written};
use crate::settings::Mode;
use crate::world::World;

/// Timeout of a statement or a transaction.
const SEND_TIMEOUT_MS: Ms = 10_000;

/// Maximum round trip of an answer that is used to measure the clock offset.
const ROUND_TRIP_MAX_MS: Ms = 100;

/// Connection of an adapter to the database.
pub(crate) struct Store {
    pub(crate) world: Rc<World>,
    pub(crate) adapter: usize,
    pub(crate) node: NodeId,
    /// The server's clock according to the last answer.
    clock: ServerClock,
    /// Offset of the adapter's clock from the server's (positive if ahead), by the last answer with a short round trip.
    measured_ms: Cell<Option<i64>>,
    /// Ids of series by the judge's numbers.
    ids: RefCell<HashMap<usize, i64>>,
    own: OwnTransactions,
    /// Time for which the process freezes in its next open transaction.
    pub(crate) freeze_in_write_ms: Cell<Ms>,
}

/// A committed reconciliation.
pub(crate) struct Reconciled {
    pub(crate) inserted: Vec<Row>,
    pub(crate) around: Around,
    pub(crate) reconciled: i64,
}

impl Store {
    pub(crate) fn new(world: &Rc<World>, adapter: usize, node: NodeId) -> Self {
        Self {
            world: Rc::clone(world),
            adapter,
            node,
            clock: ServerClock::new(world.server_ms(), world.kernel.instant()),
            measured_ms: Cell::new(None),
            ids: RefCell::default(),
            own: OwnTransactions::default(),
            freeze_in_write_ms: Cell::new(0),
        }
    }

    pub(crate) fn wall_ms(&self) -> i64 {
        self.world.clock_ms(Some(self.world.host_of(self.adapter)))
    }

    /// Returns how far this adapter's clock is ahead of the server's. By labels there is no offset.
    pub(crate) fn clock_offset_ms(&self) -> Option<i64> {
        self.measured_ms.get()
    }

    pub(crate) fn server_ms(&self) -> i64 {
        self.clock.at(self.world.kernel.instant())
    }

    async fn ask<T: 'static>(&self, serve: impl FnOnce(&Rc<World>) -> T + 'static) -> Result<T, Lost> {
        self.world.ask(self.adapter, SEND_TIMEOUT_MS, serve).await
    }

    pub(crate) async fn sender_no(&self, replica: usize) -> Result<SenderNo, Lost> {
        self.ask(move |world| world.database.borrow_mut().sender_no(replica)).await
    }

    pub(crate) async fn set_clock_offset(&self, sender: SenderNo, offset_ms: i64) -> Result<(), Lost> {
        self.ask(move |world| {
            world.database.borrow_mut().offsets_ms.insert(sender, offset_ms);
        })
        .await
    }

    /// Returns the ids of series.
    pub(crate) async fn find_series(&self, series: &[usize]) -> Result<HashMap<usize, i64>, Lost> {
        let unknown: Vec<usize> =
            series.iter().filter(|series| !self.ids.borrow().contains_key(series)).copied().collect();
        if !unknown.is_empty() {
            let found = self.ask(move |world| world.database.borrow_mut().find_series(&unknown)).await?;
            self.ids.borrow_mut().extend(found);
        }
        Ok(self.ids.borrow().clone())
    }

    pub(crate) async fn observe(&self, from: Option<Position>, except: Vec<SenderNo>) -> Result<Observed, Lost> {
        let (asked_ms, asked_at) = (self.wall_ms(), self.world.now());
        let mut observed =
            self.ask(move |world| world.database.borrow().observe(from.as_ref(), &except, world.server_ms())).await?;
        let (answered_ms, is_by_labels) = (self.wall_ms(), self.world.settings.mode == Mode::Labels);
        let offset_ms = asked_ms.midpoint(answered_ms) - observed.server_ms;
        self.clock.set(observed.server_ms, self.world.kernel.instant());
        if self.world.now() - asked_at <= ROUND_TRIP_MAX_MS && !is_by_labels {
            self.measured_ms.set(Some(offset_ms));
            observed.clock_offset_ms = Some(offset_ms);
        }
        observed.is_complete |= self.world.bug == Some(Bug::IgnoreSealed);
        Ok(observed)
    }

    pub(crate) async fn commit(&self, key: Uuid, rows: Vec<Row>, right: Right) -> Result<Written, Lost> {
        let (sender, epoch, observed) = (right.sender, Epoch::default(), right.observed.clone());
        let end: End<(Vec<Row>, Vec<Gap>), Written> =
            self.world.connect(self.adapter, Way::Writes, move |world, end, task| world.write(end, task, key, right));
        let committing = async {
            match end.next().await {
                Some(Written::Ready(xid)) => {
                    let freeze_ms = self.freeze_in_write_ms.take();
                    if freeze_ms > 0 {
                        self.world.say(format_args!("adapter {}: freezes before COMMIT", self.adapter));
                        self.world.kernel.freeze(self.node, self.world.now() + freeze_ms);
                        self.world.kernel.sleep(1).await;
                    }
                    let gaps = observed.as_deref().map(|observed| self.own.gaps(epoch, sender, observed, xid));
                    end.send((rows, gaps.unwrap_or_default()));
                    let answer = end.next().await;
                    if let (Some(Written::Committed), Some(observed)) = (&answer, &observed) {
                        self.own.committed(epoch, sender, observed, xid);
                    }
                    answer
                }
                answer => answer,
            }
        };
        self.world.kernel.within(SEND_TIMEOUT_MS, committing).await.flatten().ok_or(Lost)
    }

    pub(crate) async fn around(&self, rows: &[Row], window_ms: i64, unbounded: &[i64]) -> Result<Around, Lost> {
        let (rows, unbounded) = (rows.to_vec(), unbounded.to_vec());
        self.ask(move |world| world.database.borrow().around(&rows, window_ms, &unbounded)).await
    }

    /// Returns `None` if another term is in force.
    pub(crate) async fn reconcile(
        &self,
        rows: Vec<Row>,
        right: Right,
        is_told: bool,
        window_ms: i64,
        unbounded: &[i64],
        judge: impl FnOnce(&Around) -> Vec<Row>,
    ) -> Result<Option<Reconciled>, Lost> {
        let (unbounded, reconciled) = (unbounded.to_vec(), right.reconciled);
        let end: End<Vec<Row>, Compared> = self.world.connect(self.adapter, Way::Writes, move |world, end, task| {
            world.reconcile(end, task, rows, (right, is_told), window_ms, unbounded)
        });
        let reconciling = async {
            let around = match end.next().await? {
                Compared::Around(around) => around,
                _ => return Some(None),
            };
            let inserted = judge(&around);
            if inserted.is_empty() {
                return Some(Some(Reconciled { inserted, around, reconciled }));
            }
            end.send(inserted.clone());
            match end.next().await? {
                Compared::Done(reconciled) => Some(Some(Reconciled { inserted, around, reconciled })),
                _ => None,
            }
        };
        self.world.kernel.within(SEND_TIMEOUT_MS, reconciling).await.flatten().ok_or(Lost)
    }
}
