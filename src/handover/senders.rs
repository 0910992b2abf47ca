//! All senders of this adapter, and what they share: what was observed of the store, and who leads each group.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::election::by_labels::group_name;
use crate::election::{Succession, Term};
use crate::handover::drain::{CHUNK_SAMPLES, Due, keep_first};
use crate::handover::group::{Group, NO_GROUP};
use crate::handover::memory::{Config, Memory};
use crate::handover::replicas::{Owner, Replicas};
use crate::handover::requests::Requests;
use crate::handover::sender::Sender;
use crate::handover::{Handover, Shared, State};
use crate::model::sender::SenderNo;
use crate::model::source::Source;
use crate::postgres::error::Error;
use crate::storage::Store;
use crate::storage::observe::Position;
use crate::storage::server::Epoch;
use crate::storage::sources::SourceId;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::Metrics;

/// See the module.
pub struct Senders {
    this: Weak<Self>,
    /// Group and name of the own Prometheus, where the adapter serves one; `None` by labels.
    pub(super) own: Option<(String, String)>,
    bytes_max: usize,
    pub(super) store: Arc<Store>,
    metrics: Arc<Metrics>,
    memory: Arc<Memory>,
    /// Members of each group.
    groups: RwLock<BTreeMap<String, Members>>,
    pub(super) observed: tokio::sync::Mutex<Observed>,
    /// Locked while numbers of senders are looked up, so that the lookups of several callers are one statement.
    numbering: tokio::sync::Mutex<()>,
    /// Number of observations begun.
    pub(super) begun: AtomicU64,
    /// Offset of this host's clock from the server's clock; the own Prometheus stamps by this host's clock. For a
    /// sender whose samples come by several adapters, the clock is not known.
    pub(super) clock_offset_ms: Mutex<Option<i64>>,
    /// Locked during a round.
    round: tokio::sync::Mutex<()>,
    /// Ends the round that is under way.
    round_ends: Notify,
    /// Owners of the series that the own Prometheus sends.
    pub(super) replicas: Mutex<Replicas>,
}

/// A group, and its senders on this adapter by name.
struct Members {
    group: Arc<Group>,
    senders: BTreeMap<String, Arc<Handover>>,
}

/// End of the last observation.
#[derive(Default)]
pub(super) struct Observed {
    pub(super) position: Option<Arc<Position>>,
    /// Number of that observation.
    pub(super) completed: u64,
    /// Group of each known sender number.
    pub(super) groups: HashMap<SenderNo, String>,
}

/// Divisor of the memory that one sender may use where an adapter has several: a sender with much to send must not keep
/// others from being buffered.
const PART_OF_MEMORY: usize = 4;

/// Pause between observations.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum senders whose samples are compared in one transaction, which keeps the writers of all their groups waiting.
const RECONCILED_MAX: usize = 64;

/// Time for which a take-over waits for a round that is under way, before it ends the round. A round takes far less
/// unless its connection is cut off, and TCP may send again only seconds after the connection works again.
const ROUND_PATIENCE: Duration = Duration::from_millis(300);

/// Minimum difference from the clock offset stored last, ms, at which the offset is stored again.
const OFFSET_NEWS_MS: i64 = 50;

impl Senders {
    /// Returns the senders of an adapter with one own Prometheus, called `name` in `group`. Without an election `group`
    /// is [`NO_GROUP`].
    #[must_use]
    pub fn own(config: Config, group: String, name: String, store: Arc<Store>, metrics: Arc<Metrics>) -> Arc<Self> {
        let senders = Self::new(config.memory_bytes_max, Some((group, name)), config, store, metrics);
        // The sender must exist before the first observation, so that it observes all that is hot.
        let _ = senders.of(None);
        senders
    }

    /// Returns the senders of an adapter to which replicas of any cluster send, each perhaps by other adapters too.
    #[must_use]
    pub fn by_labels(config: Config, store: Arc<Store>, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::new(config.memory_bytes_max / PART_OF_MEMORY, None, config, store, metrics)
    }

    fn new(
        bytes_max: usize,
        own: Option<(String, String)>,
        config: Config,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let memory = Arc::new(Memory::new(config, Arc::clone(&metrics)));
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            own,
            bytes_max,
            store,
            metrics,
            memory,
            groups: RwLock::default(),
            observed: tokio::sync::Mutex::default(),
            numbering: tokio::sync::Mutex::default(),
            begun: AtomicU64::new(0),
            clock_offset_ms: Mutex::default(),
            round: tokio::sync::Mutex::default(),
            round_ends: Notify::new(),
            replicas: Mutex::default(),
        })
    }

    /// Returns the hand-over of the own Prometheus where there is one; else that of the replica, or of one that does
    /// not name itself.
    #[must_use]
    pub fn of(&self, source: Option<&Source>) -> Arc<Handover> {
        match (&self.own, source) {
            (Some((group, name)), _) => self.named(group, name),
            (None, Some(source)) => self.named(&group_name(&source.cluster), &source.replica),
            (None, None) => self.named(NO_GROUP, ""),
        }
    }

    fn named(&self, group: &str, name: &str) -> Arc<Handover> {
        let groups = self.groups.read();
        if let Some(handover) = groups.get(group).and_then(|members| members.senders.get(name)) {
            return Arc::clone(handover);
        }
        drop(groups);
        let mut groups = self.groups.write();
        let members = groups
            .entry(group.to_owned())
            .or_insert_with(|| Members { group: Arc::new(Group::new(group)), senders: BTreeMap::new() });
        let new = || Handover {
            name: name.to_owned(),
            number: Mutex::default(),
            group: Arc::clone(&members.group),
            shared: Weak::clone(&self.this) as Weak<dyn Shared>,
            store: Arc::clone(&self.store),
            metrics: Arc::clone(&self.metrics),
            memory: Arc::clone(&self.memory),
            bytes_max: self.bytes_max,
            is_shared: self.own.is_none(),
            is_fresh: true.into(),
            leads: Mutex::default(),
            state: Mutex::new(State::new(
                self.store.server().identities(),
                match self.own {
                    Some(_) => Sender::new(self.bytes_max, group == NO_GROUP),
                    None => Sender::shared(self.bytes_max, group == NO_GROUP),
                },
            )),
            requests: Requests::default(),
            taking_out: tokio::sync::Mutex::default(),
        };
        Arc::clone(members.senders.entry(name.to_owned()).or_insert_with(|| Arc::new(new())))
    }

    /// Notes a request of `replica` with these series, which the replica was not known to send. Returns their owner if
    /// the samples of both would be stored: then the request must be refused.
    pub fn on_request(&self, replica: SourceId, series: impl Iterator<Item = i64>) -> Option<Owner> {
        // By labels, the samples of all senders are compared with each other.
        self.own.as_ref()?;
        let mut replicas = self.replicas.lock();
        replicas.sends(replica, series);
        replicas.on_request(replica, Instant::now())
    }

    /// Finds the numbers of all senders that have none in `epoch`.
    pub(super) async fn find_numbers(&self, epoch: Epoch) -> Result<(), Error> {
        let _numbering = self.numbering.lock().await;
        let all = self.members().into_values().flat_map(|(_, handovers)| handovers);
        let unknown: Vec<Arc<Handover>> = all.filter(|handover| handover.known_number(epoch).is_none()).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = unknown.iter().map(|handover| (handover.group.name(), handover.name())).collect();
        let numbers = self.store.sender_numbers(epoch, &names).await?;
        for (handover, number) in unknown.iter().zip(numbers) {
            *handover.number.lock() = Some((epoch, number));
        }
        Ok(())
    }

    pub(super) fn members(&self) -> BTreeMap<String, (Arc<Group>, Vec<Arc<Handover>>)> {
        let groups = self.groups.read();
        let cloned =
            |members: &Members| (Arc::clone(&members.group), members.senders.values().map(Arc::clone).collect());
        groups.iter().map(|(name, members)| (name.clone(), cloned(members))).collect()
    }

    /// About once a second, observes and reconciles what stayed uncovered. Once `stop` is cancelled, no more samples
    /// arrive, so everything buffered is reconciled; ends when nothing is left.
    pub async fn run(&self, stop: CancellationToken) {
        let mut trouble = LogThrottle::default();
        let mut told_offset = None;
        loop {
            let is_last = stop.is_cancelled();
            if is_last && self.is_drained() {
                return;
            }
            let round = tokio::select! {
                round = self.round(&mut told_offset, is_last) => round,
                // Dropping the round puts back what was taken out of a buffer.
                () = stop.cancelled(), if !is_last => continue,
                () = self.round_ends.notified(), if !is_last => continue,
            };
            match round {
                Ok(()) if trouble.over() => log::info!("what is stored is observed again"),
                Ok(()) => {}
                Err(error) => {
                    self.metrics.postgres_error(error.sqlstate());
                    if trouble.should_log(&error.to_string(), Instant::now()) {
                        log::warn!(err:% = error; "what is stored could not be observed, so nothing is let go of");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(OBSERVE_INTERVAL) => {}
                () = self.store.server().doubted() => {}
                () = stop.cancelled(), if !is_last => {}
            }
        }
    }

    async fn round(&self, told_offset: &mut Option<(Epoch, i64)>, is_last: bool) -> Result<(), Error> {
        let _round = self.round.lock().await;
        self.observe().await?;
        let members = self.members();
        // A group for which something fails affects no other group.
        let mut first = Ok(());
        for handover in members.values().flat_map(|(_, handovers)| handovers) {
            first = keep_first(first, self.prepare(handover, told_offset).await)?;
        }
        // What one sender of a group misses may be what another one is about to store.
        let most = members.values().map(|(_, handovers)| handovers.len()).max().unwrap_or(0);
        for place in 0..most {
            let of_groups = members.values().filter_map(|(group, handovers)| Some((group, handovers.get(place)?)));
            match self.look(of_groups, is_last).await {
                // The next observation shows the other server.
                Err(Error::Moved) => {}
                result => first = keep_first(first, result)?,
            }
        }
        first
    }

    /// Finds again what a sender has acknowledged on another server, and stores how far its clock is off.
    async fn prepare(&self, handover: &Handover, told_offset: &mut Option<(Epoch, i64)>) -> Result<(), Error> {
        handover.find_again().await?;
        let epoch = self.store.epoch();
        let number = handover.number().await?;
        let offset_ms = *self.clock_offset_ms.lock();
        // A server that replaces another one may lack the offset.
        let should_log = |offset_ms: i64| {
            told_offset.is_none_or(|(told_in, told_ms)| {
                told_in != epoch || told_ms.abs_diff(offset_ms) > OFFSET_NEWS_MS.unsigned_abs()
            })
        };
        if let Some(offset_ms) = offset_ms.filter(|offset_ms| should_log(*offset_ms)) {
            self.store.set_clock_offset(number, offset_ms, epoch).await?;
            *told_offset = Some((epoch, offset_ms));
        }
        Ok(())
    }

    /// Looks at the buffers of senders of different groups, and reconciles what stayed uncovered.
    async fn look<'a>(
        &self,
        handovers: impl Iterator<Item = (&'a Arc<Group>, &'a Arc<Handover>)>,
        is_last: bool,
    ) -> Result<(), Error> {
        let (mut first, mut together) = (Ok(()), Vec::new());
        for (group, handover) in handovers {
            // By right of whoever leads, even if that is this sender: its take-over may have been aborted half-way.
            let fence = || group.leading().map(|leading| leading.fence);
            loop {
                let due = match handover.due(fence(), is_last).await {
                    Ok(Some(due)) => due,
                    ended => {
                        first = keep_first(first, ended.map(drop))?;
                        break;
                    }
                };
                if due.is_quick() {
                    together.push(due);
                    break;
                }
                let is_all = due.count() < CHUNK_SAMPLES;
                match Due::reconcile(vec![due], is_last).await {
                    Ok(true) if !is_all => {}
                    ended => {
                        first = keep_first(first, ended.map(drop))?;
                        break;
                    }
                }
            }
            if together.len() == RECONCILED_MAX {
                first = keep_first(first, Due::reconcile(std::mem::take(&mut together), is_last).await.map(drop))?;
            }
        }
        keep_first(first, Due::reconcile(together, is_last).await.map(drop))?
    }
}

impl Shared for Senders {
    fn observe(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.observe().boxed()
    }

    fn idle(&self) -> BoxFuture<'_, ()> {
        async {
            if tokio::time::timeout(ROUND_PATIENCE, self.round.lock()).await.is_err() {
                self.round_ends.notify_waiters();
            }
        }
        .boxed()
    }

    fn find_numbers(&self, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>> {
        self.find_numbers(epoch).boxed()
    }
}

impl Succession for Senders {
    fn prepare(&self, term: Term) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        let handover = self.in_term(&term);
        async move { handover.drain(term.fence).await }
    }

    fn observed(&self, term: &Term) {
        let groups = self.groups.read();
        for (name, handover) in groups.get(&term.group).into_iter().flat_map(|members| &members.senders) {
            let leads = match &term.replica {
                Some(replica) => replica == name,
                None => handover.leads() == Some(term.fence.token),
            };
            if !leads {
                handover.open();
            }
        }
    }

    fn forget(&self, cluster: &str, replica: &str) {
        let group = group_name(cluster);
        let mut groups = self.groups.write();
        if let Some(members) = groups.get_mut(&group) {
            members.senders.remove(replica);
            if members.senders.is_empty() {
                groups.remove(&group);
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.members().values().flat_map(|(_, handovers)| handovers).all(|handover| handover.is_empty())
    }
}

impl Senders {
    fn in_term(&self, term: &Term) -> Arc<Handover> {
        match (&self.own, &term.replica) {
            (Some((_, name)), _) => self.named(&term.group, name),
            (None, replica) => self.named(&term.group, replica.as_deref().unwrap_or_default()),
        }
    }
}
