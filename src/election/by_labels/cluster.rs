//! One cluster as one adapter knows it: the leading replica, and when another replica must lead. Pure: time is an
//! argument.
//!
//! Every adapter may receive the samples of every replica. The leader is a replica, not an adapter. Each adapter that
//! receives its samples stores them under the token in the cluster's row; the samples of other replicas are buffered.
//! Once per [`ROUND`] the adapters report to each other when they last heard the leading replica, by the server's
//! clock. If an adapter finds the leading replica silent and receives samples of another replica, it makes that replica
//! lead. The first adapter to do so wins.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::election::by_labels::group_name;
use crate::election::liveness::{LATE, Liveness};
use crate::election::role::{Leader, Role};
use crate::election::{PrometheusTimeout, Term};
use crate::storage::fence::Fence;

/// Interval at which adapters report to each other.
pub const ROUND: Duration = Duration::from_secs(1);

/// Age from which a row that was read is not relied on any more: three rounds.
pub const STALE: Duration = Duration::from_secs(3);

/// Error bound of a time of last hearing that was read: it may appear older than it is by at most this much.
const TOLERANCE: Duration = Duration::from_millis(500);

/// Time after which a replica that was not heard is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// The cluster's row, and the reports of all adapters on its leading replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRow {
    /// The right to write, for each adapter that receives the leading replica's samples.
    pub fence: Fence,
    /// The leading replica.
    pub replica: String,
    /// Time since any adapter heard the leading replica in this term, by the server's clock; `None` if none has.
    pub heard_ago: Option<Duration>,
    /// Time after which the leading replica counts as silent, as reported by the adapter that heard it last.
    pub patience: Option<Duration>,
    /// The ordered successor, which leads next even if the leading replica is not silent.
    pub next: Option<Next>,
    /// Replicas excluded from elections by order.
    pub held_out: Vec<String>,
}

/// The ordered successor of a leading replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Any other replica that is heard.
    AnyOther,
    /// The named replica.
    Named(String),
}

/// A take-over to be done: another replica shall lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The group's number in the leader table.
    pub group_no: i32,
    /// The token still in force.
    pub token: Option<Uuid>,
    /// The replica that shall lead.
    pub replica: String,
    /// Condition: no adapter has heard the leading replica for this long.
    pub silent_for: Duration,
    /// Condition: every living adapter has reported within this time when it heard the leading replica; `None` means at
    /// any time.
    pub told_within: Option<Duration>,
    /// By order: the leading replica may still send, so the take-over must wait for its writes in flight.
    pub is_ordered: bool,
}

impl ClusterRow {
    /// Returns `true` if the leading replica must give up the lead by order.
    #[must_use]
    pub fn is_to_yield(&self) -> bool {
        self.next.is_some() || self.held_out.contains(&self.replica)
    }

    /// Returns the term of `cluster`.
    #[must_use]
    pub fn term(&self, cluster: &str) -> Term {
        Term { group: group_name(cluster), fence: self.fence, replica: Some(self.replica.clone()) }
    }

    fn may_follow(&self, replica: &str) -> bool {
        let is_meant = !matches!(&self.next, Some(Next::Named(next)) if next != replica);
        is_meant && !self.held_out.iter().any(|held_out| held_out == replica)
    }
}

impl Succession {
    /// Returns the take-over by the first replica that leads.
    #[must_use]
    pub fn first(group_no: i32, replica: &str) -> Self {
        let replica = replica.to_owned();
        let silent_for = Duration::ZERO;
        Self { group_no, token: None, replica, silent_for, told_within: None, is_ordered: false }
    }
}

/// The state of one cluster. See the module.
#[derive(Clone, Debug)]
pub struct Cluster {
    timeout: PrometheusTimeout,
    seen: Option<ClusterRow>,
    /// When the statement that read `seen` was sent.
    read_at: Option<Instant>,
    /// Since when rounds have succeeded without a pause. Silence before this time proves nothing.
    steady_since: Option<Instant>,
    /// Since when the leading replica is known to lead. Its silence and its closed connections before this time prove
    /// nothing.
    leads_since: Option<Instant>,
    /// When any adapter last heard the leading replica, as far as this adapter knows.
    heard_at: Option<Instant>,
    /// The token of the term in which this adapter stores, after it has stored its buffered samples.
    ready: Option<Uuid>,
    /// The replicas that this adapter has heard.
    replicas: BTreeMap<String, Liveness>,
}

impl Cluster {
    /// Returns a cluster of which nothing is known.
    #[must_use]
    pub fn new(timeout: PrometheusTimeout) -> Self {
        Self {
            timeout,
            seen: None,
            read_at: None,
            steady_since: None,
            leads_since: None,
            heard_at: None,
            ready: None,
            replicas: BTreeMap::new(),
        }
    }

    /// Notes that a request with samples of `replica` has arrived.
    pub fn on_request(&mut self, replica: &str, now: Instant) {
        let new = || Liveness::new(self.timeout);
        self.replicas.entry(replica.to_owned()).or_insert_with(new).begin(now);
        self.hear(replica, now);
    }

    /// Notes that such a request was answered; `refused` means by a 5xx.
    pub fn on_answer(&mut self, replica: &str, refused: bool, now: Instant) {
        if let Some(heard) = self.replicas.get_mut(replica) {
            heard.end(now, refused);
        }
        self.hear(replica, now);
    }

    fn hear(&mut self, replica: &str, now: Instant) {
        if self.leading() == Some(replica) {
            self.heard_at = self.heard_at.max(Some(now));
        }
    }

    /// Returns the liveness of `replica`, if this adapter has heard it.
    pub fn heard(&mut self, replica: &str) -> Option<&mut Liveness> {
        self.replicas.get_mut(replica)
    }

    /// Notes the cluster's row, read by a statement sent at `asked`.
    pub fn on_read(&mut self, seen: Option<ClusterRow>, asked: Instant, now: Instant) {
        if self.read_at.is_none_or(|read_at| now.saturating_duration_since(read_at) > STALE) {
            self.steady_since = Some(now);
        }
        self.read_at = Some(asked);
        let token = |seen: &Option<ClusterRow>| seen.as_ref().map(|seen| seen.fence.token);
        if token(&self.seen) != token(&seen) {
            self.leads_since = Some(now);
            self.heard_at = None;
        }
        let elsewhere = seen.as_ref().and_then(|seen| asked.checked_sub(seen.heard_ago?));
        self.heard_at = self.heard_at.max(elsewhere);
        self.seen = seen;
    }

    /// Notes that the buffered samples of the leading replica are stored: this adapter may store under this token.
    pub fn on_ready(&mut self, token: Uuid) {
        self.ready = Some(token);
    }

    /// Returns `true` if this adapter may store under this token.
    #[must_use]
    pub fn is_ready(&self, token: Uuid) -> bool {
        self.ready == Some(token)
    }

    /// Returns the cluster's row as last read.
    #[must_use]
    pub fn seen(&self) -> Option<&ClusterRow> {
        self.seen.as_ref()
    }

    /// Returns `true` if `replica` leads according to a row that is not stale.
    #[must_use]
    pub fn leads(&self, replica: &str, now: Instant) -> bool {
        self.leading() == Some(replica) && self.read_at.is_some_and(|read_at| now < read_at + STALE)
    }

    /// Returns the role of this adapter for samples of `replica`.
    #[must_use]
    pub fn role(&self, replica: &str, now: Instant) -> Role {
        let (Some(seen), Some(read_at)) = (&self.seen, self.read_at) else { return Role::Unknown };
        if seen.replica == replica {
            return match self.ready {
                Some(token) if token == seen.fence.token => Role::Leader { fence: Some(seen.fence), until: None },
                _ => Role::TakingOver,
            };
        }
        let leader = Leader { holder: seen.replica.clone(), term: seen.fence.term };
        Role::Standby { leader, until: read_at + STALE }.at(now)
    }

    /// Returns the time since this adapter heard the leading replica in this term, for the report to others.
    #[must_use]
    pub fn heard_ago(&self, now: Instant) -> Option<Duration> {
        let last = self.replicas.get(self.leading()?)?.last()?;
        (self.leads_since <= Some(last)).then(|| now.saturating_duration_since(last))
    }

    /// Returns the time after which the leading replica counts as silent once it was last heard, as far as this adapter
    /// knows.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        let (seen, last) = (self.seen.as_ref()?, self.last_heard()?);
        let heard =
            self.replicas.get(&seen.replica).filter(|heard| heard.last().map(|last| last + TOLERANCE) >= self.heard_at);
        let Some(heard) = heard else {
            // The adapter that hears it knows better.
            return seen.patience.or_else(|| Liveness::new(self.timeout).timeout());
        };
        // The replica may have closed these connections before it led, or may use other connections to another adapter.
        let overdue_at = heard.overdue_at(last, heard.closed_at().filter(|closed_at| last <= *closed_at))?;
        Some(overdue_at.saturating_duration_since(last))
    }

    /// Returns the time since any adapter heard the leading replica, as far as this adapter knows.
    #[must_use]
    pub fn silent_for(&self, now: Instant) -> Option<Duration> {
        self.heard_at.map(|heard_at| now.saturating_duration_since(heard_at))
    }

    /// Returns `true` if nobody leads, or if the leading replica has been silent for its timeout.
    #[must_use]
    pub fn is_silent(&self, now: Instant) -> bool {
        self.seen.is_none() || self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Returns the take-over that is to be done now, if any.
    #[must_use]
    pub fn succession(&self, now: Instant) -> Option<Succession> {
        let seen = self.seen.as_ref()?;
        let replica = self.candidate(Some(&seen.replica), now)?.to_owned();
        let Fence { group_no, token, .. } = seen.fence;
        if seen.is_to_yield() {
            let (silent_for, token) = (Duration::ZERO, Some(token));
            return Some(Succession { group_no, token, replica, silent_for, told_within: None, is_ordered: true });
        }
        let (patience, deadline) = (self.patience()?, self.deadline().filter(|deadline| *deadline <= now)?);
        let silent_for = now.saturating_duration_since(self.last_heard()?).saturating_sub(TOLERANCE);
        // The leading replica may have closed its connections to the adapters that reported, but still use connections
        // to another adapter. By then that adapter has reported too.
        let is_short = !matches!(self.timeout, PrometheusTimeout::After(timeout) if patience >= timeout);
        let told_within = is_short.then(|| now.saturating_duration_since(deadline) + LATE);
        Some(Succession { group_no, token: Some(token), replica, silent_for, told_within, is_ordered: false })
    }

    /// Returns when [`Cluster::succession`] may change although nothing is read or heard before.
    #[must_use]
    pub fn next_check_at(&self, now: Instant) -> Option<Instant> {
        self.deadline().filter(|deadline| *deadline > now)
    }

    /// Returns the replica that this adapter heard last, among those that may lead, are not silent and are not `but`.
    #[must_use]
    pub fn candidate(&self, but: Option<&str>, now: Instant) -> Option<&str> {
        let lives = |heard: &Liveness| heard.silent_at(now).is_none_or(|silent_at| silent_at > now);
        let may_follow = |name: &str| self.seen.as_ref().is_none_or(|seen| seen.may_follow(name));
        let others =
            self.replicas.iter().filter(|(name, heard)| Some(name.as_str()) != but && may_follow(name) && lives(heard));
        others.max_by_key(|(_, heard)| heard.last()).map(|(name, _)| name.as_str())
    }

    /// Returns the replicas that this adapter has heard, with the time since it last heard each.
    pub fn replicas(&self, now: Instant) -> impl Iterator<Item = (&str, Option<Duration>)> {
        let ago = move |heard: &Liveness| heard.last().map(|last| now.saturating_duration_since(last));
        self.replicas.iter().map(move |(name, heard)| (name.as_str(), ago(heard)))
    }

    /// Forgets the replicas that this adapter has not heard for an hour, and returns their names.
    pub fn forget(&mut self, now: Instant) -> Vec<String> {
        let is_old =
            |heard: &Liveness| heard.last().is_some_and(|last| now.saturating_duration_since(last) > FORGOTTEN);
        let old: Vec<String> =
            self.replicas.iter().filter(|(_, heard)| is_old(heard)).map(|(name, _)| name.clone()).collect();
        self.replicas.retain(|name, _| !old.contains(name));
        old
    }

    fn leading(&self) -> Option<&str> {
        self.seen.as_ref().map(|seen| seen.replica.as_str())
    }

    /// Returns when the leading replica counts as silent.
    fn deadline(&self) -> Option<Instant> {
        Some(self.last_heard()? + self.patience()?)
    }

    /// Returns when the leading replica was last heard, or since when it could have been heard if that is later.
    fn last_heard(&self) -> Option<Instant> {
        self.heard_at.max(self.listened_since())
    }

    /// Returns since when this adapter would have heard the leading replica as such.
    fn listened_since(&self) -> Option<Instant> {
        self.steady_since.max(self.leads_since)
    }
}

#[cfg(test)]
mod tests;
