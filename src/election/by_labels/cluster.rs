//! One cluster as one adapter knows it: which of its replicas leads, and when another is to. Pure: time is an argument.
//!
//! Every adapter may be sent every replica's samples. What leads is a replica, not an adapter: its samples are stored by
//! whichever adapter is sent them, under the token in the cluster's row, and the other replicas' are held. The adapters tell
//! each other once a [`ROUND`] when they last heard the leading replica, by the server's clock. The first to find it silent
//! that is sent another one's samples makes that one lead.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::election::PrometheusTimeout;
use crate::election::by_labels::clock::{self, Clock};
use crate::election::liveness::{Liveness, RECONNECT_TIME};
use crate::election::role::{Leader, Role};
use crate::storage::fence::Fence;
use crate::storage::gaps::Hole;

/// How often adapters tell each other what they have heard.
pub const ROUND: Duration = Duration::from_secs(1);

/// What was read so long ago is relied on no more: three rounds.
pub const STALE: Duration = Duration::from_secs(3);

/// A pause of the leading replica that is longer than this and than its usual ones may be a restart, after which it never
/// sends what it had not sent. Another replica has it.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const LONGER_MIN: Duration = Duration::from_secs(1);

/// A replica is heard for so long before a pause of its tells anything, if it is no longer than of one that has few samples:
/// a Prometheus sends those every five seconds.
const LEARNING: Duration = Duration::from_secs(12);
const UNLEARNED: Duration = Duration::from_secs(6);

/// The longest pause counts for one to two of these: scrapes are a minute apart at the most.
const RHYTHM_WINDOW: Duration = Duration::from_secs(60);

/// Two long pauses within this are a rhythm.
const REPEATED: Duration = Duration::from_secs(180);

/// A leading replica in doubt goes on when after so long nobody has let another one lead: by then every adapter has been told.
const UNDISPUTED: Duration = Duration::from_millis(2_500);

/// What was read is known to be older than it was by so much at most.
const TOLERANCE: Duration = Duration::from_millis(500);

/// A replica that was not heard for so long is not told of any more.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// The cluster's row, and what all adapters have told of its leading replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The right to write of whoever is sent the leading replica's samples.
    pub fence: Fence,
    /// The replica that leads.
    pub replica: String,
    /// How long ago any adapter heard it in this term, by the server's clock; `None` if none has.
    pub heard_ago: Option<Duration>,
    /// How long ago the silence began for which an adapter is in doubt of it, if one is.
    pub doubted_ago: Option<Duration>,
    /// Everything it will send up to here is stored, ms since 1970.
    pub watermark_ms: Option<i64>,
    /// What changes of leader left in doubt.
    pub holes: Vec<Hole>,
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
    /// See [`Seen::watermark_ms`].
    pub watermark_ms: Option<i64>,
    /// How far the clock of the leading replica is behind that of the next, if that is more than nothing.
    pub behind_ms: i64,
    /// By order: the leading replica may send, and its writes under way are to be waited for.
    pub is_ordered: bool,
}

impl Seen {
    /// Whether the leading replica is to leave the lead, by order.
    #[must_use]
    pub fn is_to_yield(&self) -> bool {
        self.next.is_some() || self.held_out.contains(&self.replica)
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
        Self { group_no, token: None, replica, silent_for, watermark_ms: None, behind_ms: 0, is_ordered: false }
    }
}

/// A replica as heard here.
#[derive(Clone, Debug)]
struct Heard {
    liveness: Liveness,
    rhythm: Rhythm,
    /// Open connections over which it alone sends to this adapter, and whether one of them was kept for a second request:
    /// a sender that opens one for each says nothing by closing it.
    connections: usize,
    are_kept: bool,
    clock: Clock,
}

/// Which pauses of a replica are usual.
#[derive(Clone, Debug)]
struct Rhythm {
    since: Instant,
    /// Since when it has led without a break.
    led_since: Option<Instant>,
    /// Of its pauses as all adapters together heard them while it led, and as this one alone did before.
    leading: Longest,
    standing_by: Longest,
    /// The last one that was longer than usual, and when it ended.
    odd: Option<(Instant, Duration)>,
}

/// The longest pause of one to two windows.
#[derive(Clone, Debug, Default)]
struct Longest {
    window_ends: Option<Instant>,
    pauses: [Duration; 2],
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Cluster {
    timeout: PrometheusTimeout,
    seen: Option<Seen>,
    /// When the statement that read `seen` was sent.
    read_at: Option<Instant>,
    /// Since when rounds have gone through: what was not heard before proves nothing.
    steady_since: Option<Instant>,
    /// Since when the leading replica is known to lead: no silence of its before tells anything, and no closed connection.
    leads_since: Option<Instant>,
    /// When any adapter last heard the leading replica, as far as is known here.
    heard_at: Option<Instant>,
    /// The leading replica has been silent since then, though not for its timeout, and may have lost what it had not sent:
    /// its samples wait until it is decided whether another is to lead.
    in_doubt_since: Option<Instant>,
    /// When others were first asked whether another replica is to lead.
    asked_at: Option<Instant>,
    /// The same as `in_doubt_since`, as another adapter has it.
    doubted_at: Option<Instant>,
    /// The token of the term in which this adapter stores: it has stored what it held.
    ready: Option<Uuid>,
    replicas: BTreeMap<String, Heard>,
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
            in_doubt_since: None,
            asked_at: None,
            doubted_at: None,
            ready: None,
            replicas: BTreeMap::new(),
        }
    }

    /// A request with samples of `replica` has come, the newest of them `ahead_ms` ahead of this host's clock; `None` if none
    /// of them can be stored: then it lives, and nothing is known of its clock.
    pub fn on_request(&mut self, replica: &str, ahead_ms: impl Into<Option<i64>>, now: Instant) {
        let timeout = self.timeout;
        let new = || Heard {
            liveness: Liveness::new(timeout),
            rhythm: Rhythm {
                since: now,
                led_since: None,
                leading: Longest::default(),
                standing_by: Longest::default(),
                odd: None,
            },
            connections: 0,
            are_kept: false,
            clock: Clock::default(),
        };
        let leads = self.seen.as_ref().is_some_and(|seen| seen.replica == replica);
        let heard = self.replicas.entry(replica.to_owned()).or_insert_with(new);
        let was_gone = heard.liveness.is_gone();
        // A leading one that has not been heard as such was heard before.
        let last = if leads { self.heard_at.or(self.leads_since) } else { heard.liveness.last() };
        heard.liveness.begin(now);
        if let Some(ahead_ms) = ahead_ms.into() {
            heard.clock.on_request(ahead_ms, now);
        }
        if leads && self.in_doubt_since.is_some() {
            return;
        }
        let is_usual = last.is_none_or(|last| heard.rhythm.is_usual(now.saturating_duration_since(last), leads, now));
        if !leads {
            return;
        }
        if was_gone && self.heard_at.is_some() || !is_usual {
            // If others have heard it meanwhile, the next read tells.
            self.in_doubt_since = last;
            return;
        }
        self.heard_at = self.heard_at.max(Some(now));
    }

    /// Such a request has been answered; `refused` by a 5xx.
    pub fn on_answer(&mut self, replica: &str, refused: bool, now: Instant) {
        if let Some(heard) = self.replicas.get_mut(replica) {
            heard.liveness.end(now, refused);
        }
        if self.leading() == Some(replica) && self.in_doubt_since.is_none() {
            self.heard_at = self.heard_at.max(Some(now));
        }
    }

    /// `replica` sends over a connection that nobody else has sent over.
    pub fn on_connected(&mut self, replica: &str) {
        if let Some(heard) = self.replicas.get_mut(replica) {
            heard.connections += 1;
        }
    }

    /// Such a connection carries others' requests too.
    pub fn on_proxied(&mut self, replica: &str) {
        if let Some(heard) = self.replicas.get_mut(replica) {
            heard.connections = heard.connections.saturating_sub(1);
        }
    }

    /// Such a connection has been closed; `kept` if it carried more than one request.
    pub fn on_closed(&mut self, replica: &str, kept: bool, now: Instant) {
        if let Some(heard) = self.replicas.get_mut(replica) {
            heard.connections = heard.connections.saturating_sub(1);
            heard.are_kept |= kept;
            if heard.connections == 0 && std::mem::take(&mut heard.are_kept) {
                heard.liveness.gone(now);
            }
        }
    }

    /// The cluster's row was read by a statement sent at `asked`.
    pub fn on_read(&mut self, seen: Option<Seen>, asked: Instant, now: Instant) {
        if self.read_at.is_none_or(|read_at| now.saturating_duration_since(read_at) > STALE) {
            self.steady_since = Some(now);
        }
        self.read_at = Some(asked);
        let token = |seen: &Option<Seen>| seen.as_ref().map(|seen| seen.fence.token);
        if token(&self.seen) != token(&seen) {
            self.leads_since = Some(now);
            (self.heard_at, self.in_doubt_since) = (None, None);
        }
        let elsewhere = seen.as_ref().and_then(|seen| asked.checked_sub(seen.heard_ago?));
        if self.in_doubt_since.is_none_or(|since| elsewhere > Some(since + TOLERANCE)) {
            // Heard elsewhere meanwhile, it has not been silent.
            self.in_doubt_since = None;
            self.heard_at = self.heard_at.max(elsewhere);
        }
        self.asked_at = self.asked_at.filter(|_| self.in_doubt_since.is_some());
        self.doubted_at = seen.as_ref().and_then(|seen| asked.checked_sub(seen.doubted_ago?));
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

    /// This adapter has nobody to take over from a leading replica that is in doubt. Returns whether no other adapter has
    /// had either for long enough: once a hole is open for what it may have lost, [it goes on](Cluster::on_hole).
    pub fn is_undisputed(&mut self, now: Instant) -> bool {
        if self.in_doubt_since.is_none() {
            return false;
        }
        let asked_at = *self.asked_at.get_or_insert(now);
        now.saturating_duration_since(asked_at) >= UNDISPUTED
    }

    /// A hole is open for what the leading replica, in doubt, may have lost: others will fill it, and it goes on.
    pub fn on_hole(&mut self, now: Instant) {
        (self.in_doubt_since, self.asked_at, self.heard_at) = (None, None, Some(now));
    }

    /// What is read of the cluster.
    #[must_use]
    pub fn seen(&self) -> Option<&Seen> {
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
                Some(token) if token == seen.fence.token && self.in_doubt_since.is_none() => {
                    Role::Leader { fence: Some(seen.fence), until: None }
                }
                _ => Role::TakingOver,
            };
        }
        let leader = Leader { holder: seen.replica.clone(), term: seen.fence.term };
        Role::Standby { leader, until: read_at + STALE }.at(now)
    }

    /// How long ago this adapter heard the leading replica, if it has in this term: for others to know.
    #[must_use]
    pub fn heard_ago(&self, now: Instant) -> Option<Duration> {
        let last = self.replicas.get(self.leading()?)?.liveness.last()?;
        self.heard_at.map(|heard_at| now.saturating_duration_since(heard_at.min(last)))
    }

    /// How long ago the silence began for which the leading replica is in doubt here: for others to let another one lead.
    #[must_use]
    pub fn doubted_ago(&self, now: Instant) -> Option<Duration> {
        let gone = || self.gone_since().filter(|gone_at| *gone_at + RECONNECT_TIME <= now);
        Some(now.saturating_duration_since(self.in_doubt_since.or_else(gone)?))
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
        let silent_since = self.silent_since(now)?;
        let replica = self.candidate(Some(&seen.replica), now)?;
        Some(Succession {
            group_no: seen.fence.group_no,
            token: Some(seen.fence.token),
            replica: replica.to_owned(),
            silent_for: now.saturating_duration_since(silent_since).saturating_sub(TOLERANCE),
            watermark_ms: seen.watermark_ms,
            behind_ms: self.behind_ms(&seen.replica, replica),
            is_ordered: seen.is_to_yield(),
        })
    }

    /// When [`Cluster::succession`] may have another answer without anything being read or heard before.
    #[must_use]
    pub fn looks_at(&self, now: Instant) -> Option<Instant> {
        self.deadline().filter(|deadline| *deadline > now)
    }

    /// The replica heard here last that may lead, `but` this one, unless it is silent too.
    #[must_use]
    pub fn candidate(&self, but: Option<&str>, now: Instant) -> Option<&str> {
        let lives = |heard: &Heard| heard.liveness.silent_at(now).is_none_or(|silent_at| silent_at > now);
        let may_follow = |name: &str| self.seen.as_ref().is_none_or(|seen| seen.may_follow(name));
        let others =
            self.replicas.iter().filter(|(name, heard)| Some(name.as_str()) != but && may_follow(name) && lives(heard));
        others.max_by_key(|(_, heard)| heard.liveness.last()).map(|(name, _)| name.as_str())
    }

    /// Replicas as heard here, and how long ago.
    pub fn replicas(&self, now: Instant) -> impl Iterator<Item = (&str, Option<Duration>)> {
        let ago = move |heard: &Heard| heard.liveness.last().map(|last| now.saturating_duration_since(last));
        self.replicas.iter().map(move |(name, heard)| (name.as_str(), ago(heard)))
    }

    /// Lets go of replicas that have not been heard here for an hour, and names them.
    pub fn forget(&mut self, now: Instant) -> Vec<String> {
        let is_old =
            |heard: &Heard| heard.liveness.last().is_some_and(|last| now.saturating_duration_since(last) > FORGOTTEN);
        let old: Vec<String> =
            self.replicas.iter().filter(|(_, heard)| is_old(heard)).map(|(name, _)| name.clone()).collect();
        self.replicas.retain(|name, _| !old.contains(name));
        old
    }

    /// How far the clock of `replica` is ahead of this host's; 0 where that may be the time its samples take.
    #[must_use]
    pub fn ahead_ms(&self, replica: &str) -> i64 {
        let ahead_ms = self.clock_ms(replica);
        if ahead_ms.saturating_abs() > clock::ERROR_MS { ahead_ms } else { 0 }
    }

    fn behind_ms(&self, leading: &str, next: &str) -> i64 {
        let behind_ms = self.clock_ms(next).saturating_sub(self.clock_ms(leading));
        if behind_ms > clock::ERROR_MS { behind_ms } else { 0 }
    }

    fn clock_ms(&self, replica: &str) -> i64 {
        self.replicas.get(replica).map_or(0, |heard| heard.clock.ahead_ms())
    }

    fn leading(&self) -> Option<&str> {
        self.seen.as_ref().map(|seen| seen.replica.as_str())
    }

    /// Since when the leading replica has been silent, if it has been for long enough. One that is to yield needs not be.
    fn silent_since(&self, now: Instant) -> Option<Instant> {
        if self.seen.as_ref().is_some_and(Seen::is_to_yield) {
            return Some(now);
        }
        let elsewhere = || self.doubted_at.filter(|since| self.heard_at <= Some(*since + TOLERANCE));
        if let Some(since) = self.in_doubt_since.or_else(elsewhere) {
            return Some(since);
        }
        let deadline = self.deadline()?;
        (deadline <= now).then(|| self.gone_since().or(self.heard_at).or(self.listened_since()).unwrap_or(now))
    }

    fn deadline(&self) -> Option<Instant> {
        if let Some(gone_at) = self.gone_since() {
            return Some(gone_at + RECONNECT_TIME);
        }
        let leading = self.replicas.get(self.leading()?);
        let unheard = Liveness::new(self.timeout);
        let timeout = leading.map_or(&unheard, |heard| &heard.liveness).timeout()?;
        Some(self.heard_at.max(self.listened_since())? + timeout)
    }

    /// Since when its leading replica would have been heard as such.
    fn listened_since(&self) -> Option<Instant> {
        self.steady_since.max(self.leads_since)
    }

    /// When the leading replica closed its last connection to this adapter, if it has done so as such and no adapter has
    /// heard it since.
    fn gone_since(&self) -> Option<Instant> {
        let gone_at = self.replicas.get(self.leading()?)?.liveness.gone_at()?;
        (self.heard_at.max(self.leads_since) <= Some(gone_at)).then_some(gone_at)
    }
}

impl Rhythm {
    /// Takes a pause that ended `now`.
    fn is_usual(&mut self, pause: Duration, leads: bool, now: Instant) -> bool {
        if !leads {
            self.led_since = None;
            self.standing_by.add(pause, now);
            return true;
        }
        let led_since = *self.led_since.get_or_insert(now);
        let mut longest = self.leading.get(now);
        if now.saturating_duration_since(led_since) < LEARNING {
            longest = longest.max(self.standing_by.get(now));
        }
        let is_long = |longest: Duration| pause > PAUSE_MIN.max(longest + LONGER_MIN.max(longest / 4));
        if !is_long(longest) {
            self.leading.add(pause, now);
            return true;
        }
        // Once is chance, twice is how it sends.
        let before = self.odd.replace((now, pause));
        let again = before.filter(|(ended, _)| now.saturating_duration_since(*ended) <= REPEATED);
        let again = again.map_or(Duration::ZERO, |(_, before)| before.min(pause));
        self.leading.add(again, now);
        !is_long(again) || (pause <= UNLEARNED && now.saturating_duration_since(self.since) < LEARNING)
    }
}

impl Longest {
    fn roll(&mut self, now: Instant) {
        let ends = *self.window_ends.get_or_insert(now + RHYTHM_WINDOW);
        if now >= ends {
            let is_recent = now < ends + RHYTHM_WINDOW;
            self.pauses = [Duration::ZERO, if is_recent { self.pauses[0] } else { Duration::ZERO }];
            self.window_ends = Some(now + RHYTHM_WINDOW);
        }
    }

    fn add(&mut self, pause: Duration, now: Instant) {
        self.roll(now);
        self.pauses[0] = self.pauses[0].max(pause);
    }

    fn get(&mut self, now: Instant) -> Duration {
        self.roll(now);
        self.pauses[0].max(self.pauses[1])
    }
}

#[cfg(test)]
mod tests;
