//! The election by labels. Follows `src/election/by_labels/coordinator.rs` and `cluster_table.rs` around the real rules
//! of a cluster.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use prometheus_postgresql_adapter::election::by_labels::cluster::{ClusterRow, Next, ROUND, STALE, Succession};
use prometheus_postgresql_adapter::model::sender::SenderNo;
use prometheus_postgresql_adapter::storage::fence::Fence;
use uuid::Uuid;

use crate::Bug;
use crate::adapter::Adapter;
use crate::by_lock::GRACE_MS;
use crate::kernel::{Ms, TaskId};
use crate::link::{End, Lost, Way};
use crate::server::yields;
use crate::settings::{Ordered, ms};
use crate::world::World;

/// Report of one adapter about the leading replica. Times are by the server's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    reported_ms: i64,
    token: Option<Uuid>,
    heard_ms: Option<i64>,
    patience: Option<Duration>,
}

/// The same report in the form in which it is sent.
#[derive(Clone, Copy, Debug)]
struct Tells {
    token: Option<Uuid>,
    heard_ago: Option<Duration>,
    patience: Option<Duration>,
}

/// A step of a take-over by order.
#[derive(Debug)]
enum Step {
    Drained,
    TakeOver,
    Taken(bool),
}

const ROUNDS_APART_MS: Ms = 50;
const TRY_AGAIN_MS: Ms = 100;
const BEGIN_AGAIN_MS: Ms = 500;
const DRAINED_WITHIN_MS: Ms = 1_000;

/// Age of the last report from which on nobody waits for the adapter.
const LIVES_MS: Ms = 3_000;

/// Duration of an order.
const ORDERED_MS: Ms = 10_000;

impl Adapter {
    /// Takes part in the election until the adapter is asked to stop and nothing is left to store.
    pub(crate) async fn rounds(self: &Rc<Self>) {
        let (kernel, life) = (&self.world.kernel, self.world.uuid());
        let beginning = Rc::new(Cell::new(None));
        let mut ends_at = None;
        loop {
            let (began, seen) = (self.world.now(), self.woken.seen());
            let have_taken = kernel.within(ms(STALE), self.round(life, &beginning)).await;
            let pause_ms = if matches!(have_taken, Some(Ok(false))) { TRY_AGAIN_MS } else { ms(ROUND) };
            self.changed.tell();
            if self.is_stopping.get() {
                let ends_at = *ends_at.get_or_insert(self.world.now() + GRACE_MS);
                if (self.senders.is_drained() && self.in_flight.get() == 0) || self.world.now() >= ends_at {
                    break;
                }
            }
            let next_check_at =
                self.cluster.borrow().next_check_at(kernel.instant()).map_or(Ms::MAX, |at| kernel.time_of(at));
            let next = (began + pause_ms).min(next_check_at).max(self.world.now());
            kernel.within(next - self.world.now(), self.woken.changed_since(seen)).await;
            kernel.sleep_until((began + ROUNDS_APART_MS).max(self.world.now() + 1)).await;
        }
        self.world.adapter_ended(self.index);
    }

    /// Returns `false` if a replica was to take over and did not.
    async fn round(self: &Rc<Self>, life: Uuid, beginning: &Rc<Cell<Option<Uuid>>>) -> Result<bool, Lost> {
        let mut have_taken = true;
        self.read(life).await?;
        if let Some(succession) = self.succession() {
            let member = self.senders.of(succession.replica.parse().unwrap_or(0));
            let sender = self.senders.number(&member).await?;
            self.world.say(format_args!("adapter {}: finds {succession:?}", self.index));
            have_taken = self.follow(succession, sender).await?;
            self.read(life).await?;
        }
        let fence = self.cluster.borrow().seen().map(|seen| (seen.fence, seen.replica.clone()));
        if let Some((fence, replica)) = fence
            && !self.cluster.borrow().is_ready(fence.token)
            && beginning.get() != Some(fence.token)
        {
            beginning.set(Some(fence.token));
            self.begin_term(fence, replica.parse().unwrap_or(0), beginning);
        }
        let now = self.world.kernel.instant();
        for replica in self.cluster.borrow_mut().forget(now) {
            self.senders.forget(replica.parse().unwrap_or(0));
        }
        Ok(have_taken)
    }

    fn begin_term(self: &Rc<Self>, fence: Fence, replica: usize, beginning: &Rc<Cell<Option<Uuid>>>) {
        let (adapter, beginning) = (Rc::clone(self), Rc::clone(beginning));
        self.world.kernel.spawn(self.node, async move {
            let member = adapter.senders.of(replica);
            let drained = adapter.senders.drain(&member, fence).await;
            if drained.is_err() {
                adapter.world.kernel.sleep(BEGIN_AGAIN_MS).await;
            }
            if beginning.get() == Some(fence.token) {
                beginning.set(None);
            }
            if drained.is_ok() {
                adapter.world.say(format_args!("adapter {}: has begun term {}", adapter.index, fence.term));
                adapter.cluster.borrow_mut().on_ready(fence.token);
                adapter.woken.tell();
            }
            adapter.changed.tell();
        });
    }

    /// Reports to the other adapters, and reads their reports.
    async fn read(&self, life: Uuid) -> Result<(), Lost> {
        let asked = self.world.kernel.instant();
        let tells = {
            let cluster = self.cluster.borrow();
            let token = cluster.seen().map(|seen| seen.fence.token);
            Tells { token, heard_ago: cluster.heard_ago(asked), patience: cluster.patience() }
        };
        let key = (self.index, life);
        let answer = self.world.ask(self.index, ms(STALE), move |world| world.board(key, tells)).await;
        let seen = answer?;
        if let Some(seen) = &seen {
            self.senders.open_others(seen.replica.parse().unwrap_or(0));
        }
        self.cluster.borrow_mut().on_read(seen, asked, self.world.kernel.instant());
        Ok(())
    }

    fn succession(&self) -> Option<Succession> {
        let (cluster, now) = (self.cluster.borrow(), self.world.kernel.instant());
        match cluster.seen() {
            Some(_) => cluster.succession(now),
            None => Some(Succession::first(1, cluster.candidate(None, now)?)),
        }
    }

    async fn follow(&self, succession: Succession, sender: SenderNo) -> Result<bool, Lost> {
        let is_ordered = succession.is_ordered;
        let end: End<Step, Step> = self
            .world
            .connect(self.index, Way::Writes, move |world, end, task| world.let_lead(end, task, succession, sender));
        if !is_ordered {
            return match end.next().await {
                Some(Step::Taken(is_taken)) => Ok(is_taken),
                _ => Err(Lost),
            };
        }
        match end.next().await {
            Some(Step::Drained) => end.send(Step::TakeOver),
            Some(_) => return Ok(false),
            None => return Err(Lost),
        }
        match end.next().await {
            Some(Step::Taken(is_taken)) => Ok(is_taken),
            _ => Err(Lost),
        }
    }
}

impl World {
    /// The two statements of a round.
    fn board(&self, of: (usize, Uuid), tells: Tells) -> Option<ClusterRow> {
        let server_ms = self.server_ms();
        let mut database = self.database.borrow_mut();
        let heard_ms = tells.heard_ago.map(|ago| server_ms - ms(ago));
        let report = Report { reported_ms: server_ms, token: tells.token, heard_ms, patience: tells.patience };
        database.reports.insert(of, report);
        let group = &database.group;
        let token = group.token?;
        let told = || database.reports.values().filter(|report| report.token == Some(token));
        let heard = told().filter(|report| report.heard_ms.is_some_and(|heard_ms| heard_ms <= server_ms));
        let heard = heard.max_by_key(|report| report.heard_ms);
        let after = |ms: Ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        Some(ClusterRow {
            fence: Fence { group_no: 1, term: group.term, token },
            replica: group.holder.to_string(),
            heard_ago: heard.and_then(|report| report.heard_ms).map(|heard_ms| after(server_ms - heard_ms)),
            patience: heard.and_then(|report| report.patience),
            next: group.successor.filter(|(_, until)| yields(*until, server_ms)).map(|(to, _)| match to {
                Some(to) => Next::Named(to.to_string()),
                None => Next::AnyOther,
            }),
            held_out: group.held_out.iter().map(ToString::to_string).collect(),
        })
    }

    async fn let_lead(self: Rc<Self>, end: End<Step, Step>, task: TaskId, succession: Succession, sender: SenderNo) {
        if !succession.is_ordered {
            let is_free = self.bug == Some(Bug::SkipDrain) || self.database.borrow().is_free();
            return end.send(Step::Taken(is_free && self.may_lead(&succession, sender)));
        }
        let locking = self.kernel.within(DRAINED_WITHIN_MS, self.lock_group(true, task));
        let Some(_exclusive) = locking.await else { return end.send(Step::Taken(false)) };
        end.send(Step::Drained);
        if let Some(Step::TakeOver) = end.next_within(DRAINED_WITHIN_MS).await {
            end.send(Step::Taken(self.may_lead(&succession, sender)));
        }
    }

    fn may_lead(&self, succession: &Succession, sender: SenderNo) -> bool {
        let (server_ms, replica) = (self.server_ms(), succession.replica.parse().unwrap_or(0));
        let may = {
            let database = self.database.borrow();
            let group = &database.group;
            let reports = database.reports.values();
            let heard_ms = reports.clone().filter(|report| report.token.is_some() && report.token == group.token);
            let heard_ms =
                heard_ms.filter_map(|report| report.heard_ms).filter(|heard_ms| *heard_ms <= server_ms).max();
            let is_behind = |report: &Report| {
                report.reported_ms > server_ms - LIVES_MS
                    && succession.told_within.is_some_and(|told| report.reported_ms < server_ms - ms(told))
            };
            let is_meant =
                |(to, until): (Option<usize>, i64)| to.is_none_or(|to| to == replica) || !yields(until, server_ms);
            group.token == succession.token
                && heard_ms.is_none_or(|heard_ms| heard_ms <= server_ms - ms(succession.silent_for))
                && !reports.clone().any(is_behind)
                && !group.held_out.contains(&replica)
                && group.successor.is_none_or(is_meant)
        };
        if may {
            self.raise(replica, sender);
        }
        may
    }

    /// Gives an operator's order. A hold lasts until the time `until`.
    pub(crate) async fn order_by_labels(self: &Rc<Self>, replica: usize, order: Ordered, until: Ms) {
        let server_ms = self.server_ms();
        {
            let group = &mut self.database.borrow_mut().group;
            match order {
                Ordered::Hold => group.held_out.push(replica),
                Ordered::Resign => group.successor = Some((None, server_ms + ORDERED_MS)),
                _ => group.successor = Some((Some(replica), server_ms + ORDERED_MS)),
            }
        }
        if order == Ordered::Hold {
            self.kernel.sleep_until(until).await;
            self.database.borrow_mut().group.held_out.retain(|held_out| *held_out != replica);
        }
    }
}
