//! One cluster as one adapter knows it: which of its replicas leads, and when another is to. Pure: time is an argument.
//!
//! Every adapter may be sent every replica's samples. What leads is a replica, not an adapter: its samples are stored by
//! whichever adapter is sent them, under the token in the cluster's row, and the other replicas' are held. The adapters tell
//! each other once a [`ROUND`] when they last heard the leading replica, by the server's clock. The first to find it silent
//! that is sent another one's samples makes that one lead.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::election::by_labels::group_name;
use crate::election::liveness::{LATE, Liveness};
use crate::election::role::{Leader, Role};
use crate::election::{PrometheusTimeout, Term};
use crate::storage::fence::Fence;

/// How often adapters tell each other what they have heard.
pub const ROUND: Duration = Duration::from_secs(1);

/// What was read so long ago is relied on no more: three rounds.
pub const STALE: Duration = Duration::from_secs(3);

/// What was read is known to be older than it was by so much at most.
const TOLERANCE: Duration = Duration::from_millis(500);

/// A replica that was not heard for so long is not told of any more.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// The cluster's row, and what all adapters have told of its leading replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRow {
    /// The right to write of whoever is sent the leading replica's samples.
    pub fence: Fence,
    /// The replica that leads.
    pub replica: String,
    /// How long ago any adapter heard it in this term, by the server's clock; `None` if none has.
    pub heard_ago: Option<Duration>,
    /// How long after that it counts as silent, as the adapter has told that heard it.
    pub patience: Option<Duration>,
    /// Who is to lead next, silent or not, by order.
    pub next: Option<Next>,
    /// Replicas that are held out of elections, by order.
    pub held_out: Vec<String>,
}

/// To whom a leading replica is to leave the lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Whichever other replica is heard.
    AnyOther,
    /// This one.
    Named(String),
}

/// Another replica is to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The group's number in the leader table.
    pub group_no: i32,
    /// The token that is in force still.
    pub token: Option<Uuid>,
    /// Who is to lead.
    pub replica: String,
    /// Only if no adapter has heard the leading replica for so long.
    pub silent_for: Duration,
    /// Only if every adapter that lives has told within so long when it heard it; `None` is any time.
    pub told_within: Option<Duration>,
    /// By order: the leading replica may send, and its writes under way are to be waited for.
    pub is_ordered: bool,
}

impl ClusterRow {
    /// Whether the leading replica is to leave the lead, by order.
    #[must_use]
    pub fn is_to_yield(&self) -> bool {
        self.next.is_some() || self.held_out.contains(&self.replica)
    }

    /// The term, of `cluster`.
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
    /// The first replica that leads.
    #[must_use]
    pub fn first(group_no: i32, replica: &str) -> Self {
        let replica = replica.to_owned();
        let silent_for = Duration::ZERO;
        Self { group_no, token: None, replica, silent_for, told_within: None, is_ordered: false }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Cluster {
    timeout: PrometheusTimeout,
    seen: Option<ClusterRow>,
    /// When the statement that read `seen` was sent.
    read_at: Option<Instant>,
    /// Since when rounds have gone through: what was not heard before proves nothing.
    steady_since: Option<Instant>,
    /// Since when the leading replica is known to lead: no silence of its before tells anything, and no closed connection.
    leads_since: Option<Instant>,
    /// When any adapter last heard the leading replica, as far as is known here.
    heard_at: Option<Instant>,
    /// The token of the term in which this adapter stores: it has stored what it held.
    ready: Option<Uuid>,
    /// As heard here.
    replicas: BTreeMap<String, Liveness>,
}

impl Cluster {
    /// One of which nothing is known.
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

    /// A request with samples of `replica` has come.
    pub fn on_request(&mut self, replica: &str, now: Instant) {
        let new = || Liveness::new(self.timeout);
        self.replicas.entry(replica.to_owned()).or_insert_with(new).begin(now);
        self.hear(replica, now);
    }

    /// Such a request has been answered; `refused` by a 5xx.
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

    /// What is known of `replica` and its connections, if it has been heard here.
    pub fn heard(&mut self, replica: &str) -> Option<&mut Liveness> {
        self.replicas.get_mut(replica)
    }

    /// The cluster's row was read by a statement sent at `asked`.
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

    /// What this adapter held of the leading replica is stored: it may store under this token.
    pub fn on_ready(&mut self, token: Uuid) {
        self.ready = Some(token);
    }

    /// Whether this adapter may store under this token.
    #[must_use]
    pub fn is_ready(&self, token: Uuid) -> bool {
        self.ready == Some(token)
    }

    /// What is read of the cluster.
    #[must_use]
    pub fn seen(&self) -> Option<&ClusterRow> {
        self.seen.as_ref()
    }

    /// Whether `replica` leads, as was read lately.
    #[must_use]
    pub fn leads(&self, replica: &str, now: Instant) -> bool {
        self.leading() == Some(replica) && self.read_at.is_some_and(|read_at| now < read_at + STALE)
    }

    /// What this adapter may do with samples of `replica`.
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

    /// How long ago this adapter heard the leading replica, if it has in this term: for others to know.
    #[must_use]
    pub fn heard_ago(&self, now: Instant) -> Option<Duration> {
        let last = self.replicas.get(self.leading()?)?.last()?;
        (self.leads_since <= Some(last)).then(|| now.saturating_duration_since(last))
    }

    /// How long after it was heard last the leading replica counts as silent, as far as this adapter knows.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        let (seen, last) = (self.seen.as_ref()?, self.last_heard()?);
        let heard =
            self.replicas.get(&seen.replica).filter(|heard| heard.last().map(|last| last + TOLERANCE) >= self.heard_at);
        let Some(heard) = heard else {
            // Who hears it knows better.
            return seen.patience.or_else(|| Liveness::new(self.timeout).timeout());
        };
        // It may have closed its connections before it led, or use others to another adapter.
        let overdue_at = heard.overdue_at(last, heard.closed_at().filter(|closed_at| last <= *closed_at))?;
        Some(overdue_at.saturating_duration_since(last))
    }

    /// How long ago any adapter heard the leading replica, as far as is known here.
    #[must_use]
    pub fn silent_for(&self, now: Instant) -> Option<Duration> {
        self.heard_at.map(|heard_at| now.saturating_duration_since(heard_at))
    }

    /// Whether nobody leads, or the leading replica has been silent for its timeout.
    #[must_use]
    pub fn is_silent(&self, now: Instant) -> bool {
        self.seen.is_none() || self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Who is to lead, if that is to change now.
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
        // One that has closed its connections to those who told may have others to another adapter: by then that has told, too.
        let is_short = !matches!(self.timeout, PrometheusTimeout::After(timeout) if patience >= timeout);
        let told_within = is_short.then(|| now.saturating_duration_since(deadline) + LATE);
        Some(Succession { group_no, token: Some(token), replica, silent_for, told_within, is_ordered: false })
    }

    /// When [`Cluster::succession`] may have another answer without anything being read or heard before.
    #[must_use]
    pub fn next_check_at(&self, now: Instant) -> Option<Instant> {
        self.deadline().filter(|deadline| *deadline > now)
    }

    /// The replica heard here last that may lead, `but` this one, unless it is silent too.
    #[must_use]
    pub fn candidate(&self, but: Option<&str>, now: Instant) -> Option<&str> {
        let lives = |heard: &Liveness| heard.silent_at(now).is_none_or(|silent_at| silent_at > now);
        let may_follow = |name: &str| self.seen.as_ref().is_none_or(|seen| seen.may_follow(name));
        let others =
            self.replicas.iter().filter(|(name, heard)| Some(name.as_str()) != but && may_follow(name) && lives(heard));
        others.max_by_key(|(_, heard)| heard.last()).map(|(name, _)| name.as_str())
    }

    /// Replicas as heard here, and how long ago.
    pub fn replicas(&self, now: Instant) -> impl Iterator<Item = (&str, Option<Duration>)> {
        let ago = move |heard: &Liveness| heard.last().map(|last| now.saturating_duration_since(last));
        self.replicas.iter().map(move |(name, heard)| (name.as_str(), ago(heard)))
    }

    /// Lets go of replicas that have not been heard here for an hour, and names them.
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

    /// When the leading replica counts as silent.
    fn deadline(&self) -> Option<Instant> {
        Some(self.last_heard()? + self.patience()?)
    }

    /// When the leading replica was heard last, or could have been.
    fn last_heard(&self) -> Option<Instant> {
        self.heard_at.max(self.listened_since())
    }

    /// Since when its leading replica would have been heard as such.
    fn listened_since(&self) -> Option<Instant> {
        self.steady_since.max(self.leads_since)
    }
}

#[cfg(test)]
mod tests;
