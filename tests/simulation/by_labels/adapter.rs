//! One adapter: the real cluster and a real ledger for each replica, and a model of the rounds and the receiver around them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_postgresql_adapter::election::by_labels::cluster::{Cluster, ROUND, STALE, Seen, Succession};
use prometheus_postgresql_adapter::election::role::Role;
use prometheus_postgresql_adapter::handover::cut::Cut;
use prometheus_postgresql_adapter::handover::held::HELD_AT_LEAST;
use prometheus_postgresql_adapter::handover::ledger::{Ledger, Term};
use prometheus_postgresql_adapter::handover::watermark::FAILED_ELSEWHERE_MS;
use prometheus_postgresql_adapter::storage::fence::Fence;
use prometheus_postgresql_adapter::storage::fill::Doubtful;
use prometheus_postgresql_adapter::storage::gaps::{Compared, Stored as StoredTimes};
use prometheus_postgresql_adapter::storage::row::Row;
use uuid::Uuid;

use crate::Bug;
use crate::adapter::span;
use crate::by_labels::settings::Settings;
use crate::by_labels::world::{Beginning, Event, Remote, Report, Sender, World};
use crate::prometheus::Batch;
use crate::settings::ms;
use crate::world::{Address, Ms};

/// Something that happens in an adapter; waits while it is frozen.
#[derive(Debug)]
pub(crate) enum Local {
    /// It is time for a round, or something cannot wait for it.
    Round(u64),
    Reply(u64, Reply),
    /// A statement's time is up.
    Expire(u64),
    /// A term could not be begun, and may be tried again.
    BeginAgain(Uuid),
    Deliver {
        replica: usize,
        life: u32,
        shard: usize,
        attempt: u64,
        batch: Batch,
    },
    /// A replica's connections are closed.
    Gone {
        replica: usize,
    },
    /// A request that waited for a role to settle has waited long enough.
    Settle(u64),
    /// The series of a request are found.
    Resolved(u64),
}

/// What the server answers.
#[derive(Debug)]
pub(crate) enum Reply {
    Read(Option<Seen>),
    Taken(bool),
    Opened,
    Beginning(Option<Beginning>),
    Around(StoredTimes),
    Copied,
    Committed,
    AlreadyThere,
    Failed,
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    /// The round; a read was asked for then.
    Round {
        asked: Ms,
    },
    /// The beginning of a term.
    Begin(Uuid),
    Fill(usize),
    Request(u64),
}

/// What a round is about.
#[derive(Debug)]
enum Round {
    Reading,
    TakingOver,
    ReadingAgain,
    OpeningHole,
    Beginning(Seen),
}

#[derive(Debug)]
struct Request {
    replica: usize,
    life: u32,
    shard: usize,
    attempt: u64,
    batch: Batch,
    role: Option<Role>,
    rows: Vec<Row>,
}

/// A term that is being begun.
#[derive(Debug)]
struct Begin {
    replica: usize,
    fence: Fence,
    cut: Arc<Cut>,
    /// By the requests' keys; the first is being stored.
    rest: Vec<(Uuid, Vec<Row>)>,
}

/// What is compared with what is stored, and what of it was missing.
#[derive(Debug)]
struct Fill {
    doubtful: Doubtful,
    compared: Compared,
}

pub(crate) struct Adapter {
    index: usize,
    pub(crate) life: u32,
    pub(crate) is_up: bool,
    /// Goes on until nothing is held that is not stored, at most until this, and is then down for so long.
    stops: Option<(Ms, Ms)>,
    pub(crate) frozen_until: Ms,
    /// Frozen for so long when next a transaction of its is between COPY and COMMIT.
    pub(crate) freeze_in_write_ms: Ms,
    /// The link to the server is cut before this.
    pub(crate) cut_until: Ms,
    cluster: Cluster,
    ledgers: Vec<Ledger>,
    /// How many requests came over a replica's own connection.
    connected: Vec<usize>,
    round: Option<Round>,
    round_began: Ms,
    is_contested: bool,
    wake: u64,
    /// The term that is just being begun; kept while a failed attempt rests.
    beginning: Option<Uuid>,
    begin: Option<Begin>,
    fills: Vec<Option<Fill>>,
    waiting: BTreeMap<u64, Waiting>,
    requests: BTreeMap<u64, Request>,
}

const SEND_TIMEOUT_MS: Ms = 10_000;
const SETTLE_MS: Ms = 2_000;
const BEGIN_AGAIN_MS: Ms = 500;
const TRY_AGAIN_MS: Ms = 100;
const STORED_WITHIN_MS: Ms = 25_000;
const FILL_ROWS: usize = 12;

impl Adapter {
    pub(crate) fn new(index: usize, life: u32, settings: &Settings) -> Self {
        let ledger = |_| Ledger::new(settings.memory_bytes_max, FAILED_ELSEWHERE_MS);
        Self {
            index,
            life,
            is_up: true,
            stops: None,
            frozen_until: 0,
            freeze_in_write_ms: 0,
            cut_until: 0,
            cluster: Cluster::new(settings.timeout),
            ledgers: (0..settings.replicas).map(ledger).collect(),
            connected: vec![0; settings.replicas],
            round: None,
            round_began: 0,
            is_contested: false,
            wake: 0,
            beginning: None,
            begin: None,
            fills: (0..settings.replicas).map(|_| None).collect(),
            waiting: BTreeMap::new(),
            requests: BTreeMap::new(),
        }
    }

    pub(crate) fn address(&self) -> Address {
        Address { adapter: self.index, life: self.life }
    }

    pub(crate) fn takes_connections(&self) -> bool {
        self.is_up && self.stops.is_none()
    }

    /// All of a replica that is acknowledged and not known to be stored.
    pub(crate) fn held(&self, replica: usize) -> Vec<Row> {
        let held = self.ledgers[replica].held();
        let mut rows = held.rows();
        rows.extend(held.doubtful());
        rows.extend(self.fills[replica].iter().flat_map(|fill| &fill.doubtful.rows));
        rows
    }

    /// Requests that wait for an answer: replica, its life, shard, attempt.
    pub(crate) fn in_hand(&self) -> Vec<(usize, u32, usize, u64)> {
        self.requests.values().map(|one| (one.replica, one.life, one.shard, one.attempt)).collect()
    }

    fn report(&mut self, now: Ms, instant: std::time::Instant, wall: i64) -> Option<Report> {
        let seen = self.cluster.seen()?;
        let (token, replica) = (seen.fence.token, seen.replica.parse::<usize>().unwrap_or(0));
        Some(Report {
            reported_at: now,
            token,
            has_begun: self.cluster.is_ready(token),
            heard_at: self.cluster.heard_ago(instant).map(|ago| now - ms(ago)),
            doubted_at: self.cluster.doubted_ago(instant).map(|ago| now - ms(ago)),
            progress: self.ledgers[replica].progress(wall),
        })
    }
}

impl World {
    pub(crate) fn on_local(&mut self, me: usize, local: Local) {
        match local {
            Local::Round(wake) => {
                if self.adapters[me].wake == wake && self.adapters[me].round.is_none() {
                    self.begin_round(me);
                }
            }
            Local::Reply(op, reply) => self.on_reply(me, op, reply),
            Local::Expire(op) => {
                if self.adapters[me].waiting.contains_key(&op) {
                    self.send_server(me, Remote::Abandon { op });
                    self.on_reply(me, op, Reply::Failed);
                }
            }
            Local::BeginAgain(token) => {
                let adapter = &mut self.adapters[me];
                adapter.beginning = adapter.beginning.filter(|beginning| *beginning != token);
            }
            Local::Deliver { replica, life, shard, attempt, batch } => {
                self.deliver(me, Request { replica, life, shard, attempt, batch, role: None, rows: Vec::new() });
            }
            Local::Gone { replica } => {
                let now = self.instant();
                let adapter = &mut self.adapters[me];
                let carried = std::mem::take(&mut adapter.connected[replica]);
                if carried > 0 {
                    adapter.cluster.on_closed(&replica.to_string(), carried > 1, now);
                }
                self.wake(me);
            }
            Local::Settle(id) => {
                if self.adapters[me].requests.get(&id).is_some_and(|request| request.role.is_none()) {
                    self.answer(me, id, false);
                }
            }
            Local::Resolved(id) => self.resolved(me, id),
        }
    }

    pub(crate) fn stop_adapter(&mut self, me: usize, down_ms: Ms) {
        if self.adapters[me].takes_connections() {
            self.adapters[me].stops = Some((self.now + STORED_WITHIN_MS, down_ms));
            self.wake(me);
        }
    }

    // ---- the rounds

    /// Something cannot wait for the next round.
    fn wake(&mut self, me: usize) {
        self.adapters[me].wake += 1;
        let wake = self.adapters[me].wake;
        if self.adapters[me].round.is_none() {
            self.local(me, 1, Local::Round(wake));
        }
    }

    fn begin_round(&mut self, me: usize) {
        let (now, instant, wall) = (self.now, self.instant(), self.wall());
        let adapter = &mut self.adapters[me];
        adapter.round_began = now;
        adapter.is_contested = false;
        adapter.round = Some(Round::Reading);
        let report = adapter.report(now, instant, wall);
        self.ask_round(me, |op| Remote::Round { op, report });
    }

    fn ask_round(&mut self, me: usize, remote: impl FnOnce(u64) -> Remote) {
        let op = self.id();
        let asked = self.now;
        self.adapters[me].waiting.insert(op, Waiting::Round { asked });
        let left = self.adapters[me].round_began + ms(STALE) - self.now;
        self.local(me, left.max(1), Local::Expire(op));
        self.send_server(me, remote(op));
    }

    fn on_round(&mut self, me: usize, asked: Ms, reply: Reply) {
        let now = self.instant();
        let Some(round) = self.adapters[me].round.take() else { return };
        match (round, reply) {
            (round @ (Round::Reading | Round::ReadingAgain), Reply::Read(seen)) => {
                if let Some(seen) = &seen {
                    self.observed(me, seen);
                }
                let asked = now - Duration::from_millis(u64::try_from(self.now - asked).unwrap_or(0));
                self.adapters[me].cluster.on_read(seen, asked, now);
                let succession = if matches!(round, Round::Reading) { self.succession(me) } else { None };
                if let Some(succession) = succession {
                    self.adapters[me].is_contested = true;
                    self.adapters[me].round = Some(Round::TakingOver);
                    self.say(format_args!("adapter {me}: wants {} to lead", succession.replica));
                    return self.ask_round(me, |op| Remote::TakeOver { op, succession });
                }
                self.after_read(me);
            }
            (Round::TakingOver, Reply::Taken(has_taken)) => {
                self.adapters[me].round = Some(Round::ReadingAgain);
                let wall = self.wall();
                let report = self.adapters[me].report(self.now, now, wall);
                // One that took over need not be told to try again.
                self.adapters[me].is_contested = !has_taken;
                self.ask_round(me, |op| Remote::Round { op, report });
            }
            (Round::OpeningHole, Reply::Opened) => {
                self.adapters[me].cluster.on_hole(now);
                self.begin_if_new(me);
            }
            (Round::Beginning(seen), Reply::Beginning(Some(beginning))) => {
                self.begin_term(me, &seen, beginning);
                self.end_round(me);
            }
            (Round::Beginning(_), _) => {
                self.adapters[me].beginning = None;
                self.end_round(me);
            }
            _ => self.end_round(me),
        }
    }

    fn succession(&self, me: usize) -> Option<Succession> {
        let now = self.instant();
        let cluster = &self.adapters[me].cluster;
        match cluster.seen() {
            Some(_) => cluster.succession(now),
            None => Some(Succession::first(1, cluster.candidate(None, now)?)),
        }
    }

    fn after_read(&mut self, me: usize) {
        let now = self.instant();
        let adapter = &mut self.adapters[me];
        if !adapter.is_contested
            && adapter.cluster.is_undisputed(now)
            && let Some(seen) = adapter.cluster.seen().cloned()
        {
            adapter.round = Some(Round::OpeningHole);
            let (token, watermark_ms) = (seen.fence.token, seen.watermark_ms);
            return self.ask_round(me, |op| Remote::OpenHole { op, token, watermark_ms });
        }
        self.begin_if_new(me);
    }

    fn begin_if_new(&mut self, me: usize) {
        let adapter = &mut self.adapters[me];
        if let Some(seen) = adapter.cluster.seen().cloned() {
            let token = seen.fence.token;
            if !adapter.cluster.is_ready(token) && adapter.beginning != Some(token) {
                adapter.beginning = Some(token);
                adapter.round = Some(Round::Beginning(seen));
                return self.ask_round(me, |op| Remote::Beginning { op, token });
            }
        }
        self.end_round(me);
    }

    fn end_round(&mut self, me: usize) {
        let now = self.instant();
        self.adapters[me].round = None;
        self.roles_changed(me);
        let adapter = &mut self.adapters[me];
        if let Some((until, down_ms)) = adapter.stops
            && (self.now >= until || adapter.ledgers.iter().all(Ledger::is_passed))
            && adapter.requests.is_empty()
        {
            return self.kill_adapter(me, down_ms);
        }
        let looks_at = adapter.cluster.looks_at(now);
        let mut next = adapter.round_began + if adapter.is_contested { TRY_AGAIN_MS } else { ms(ROUND) };
        adapter.wake += 1;
        let wake = adapter.wake;
        if let Some(looks_at) = looks_at {
            next = next.min(self.time_of(looks_at));
        }
        let after = (next - self.now).max(20);
        self.local(me, after, Local::Round(wake));
    }

    fn observed(&mut self, me: usize, seen: &Seen) {
        let (bug, now, wall) = (self.bug, self.instant(), self.wall());
        for (replica, ledger) in self.adapters[me].ledgers.iter_mut().enumerate() {
            if replica.to_string() == seen.replica {
                ledger.led(seen.watermark_ms, 0, seen.holes.clone());
            } else {
                let term = Term { fence: seen.fence, clock_offset_ms: 0, watermark_ms: seen.watermark_ms };
                let early = Term { watermark_ms: Some(wall), ..term };
                match bug {
                    Some(Bug::ForgetEarly) => ledger.observed(early, Vec::new(), now + HELD_AT_LEAST),
                    _ => ledger.observed(term, seen.holes.clone(), now),
                }
            }
        }
        for replica in 0..self.settings.replicas {
            self.fill_some(me, replica);
        }
    }

    // ---- the hand-over

    fn begin_term(&mut self, me: usize, seen: &Seen, beginning: Beginning) {
        let (bug, wall) = (self.bug, self.wall());
        let replica = seen.replica.parse::<usize>().unwrap_or(0);
        let cut = match bug {
            Some(Bug::ReplayUncut) => Cut::given([], i64::MIN),
            _ => Cut::given(beginning.last_ms, beginning.others_ms),
        };
        let term = Term { fence: seen.fence, clock_offset_ms: 0, watermark_ms: seen.watermark_ms };
        let adapter = &mut self.adapters[me];
        adapter.ledgers[replica].begin(term, seen.holes.clone(), wall);
        let requests = adapter.ledgers[replica].held().requests();
        let mut rest: Vec<(Uuid, Vec<Row>)> = requests.into_iter().collect();
        for (key, rows) in &mut rest {
            cut.apply(rows);
            if bug == Some(Bug::ReplayAnew) {
                *key = Uuid::from_u128(u128::from(self.id()) << 96);
            }
        }
        rest.retain(|(_, rows)| !rows.is_empty());
        self.adapters[me].begin = Some(Begin { replica, fence: seen.fence, cut: Arc::new(cut), rest });
        self.go_on_beginning(me);
    }

    fn go_on_beginning(&mut self, me: usize) {
        let (op, now) = (self.id(), self.instant());
        let adapter = &mut self.adapters[me];
        let Some(begin) = &adapter.begin else { return };
        let (replica, fence) = (begin.replica, begin.fence);
        let Some((key, rows)) = begin.rest.first().cloned() else {
            adapter.ledgers[replica].begun(Arc::clone(&begin.cut), now);
            adapter.begin = None;
            adapter.beginning = None;
            adapter.cluster.on_ready(fence.token);
            self.say(format_args!("adapter {me}: has begun term {}", fence.term));
            self.roles_changed(me);
            return self.wake(me);
        };
        adapter.waiting.insert(op, Waiting::Begin(fence.token));
        self.local(me, SEND_TIMEOUT_MS, Local::Expire(op));
        self.send_server(me, Remote::Begin { op, replica, key, rows, fence });
    }

    fn on_begin(&mut self, me: usize, token: Uuid, reply: &Reply) {
        let adapter = &mut self.adapters[me];
        let Some(begin) = adapter.begin.as_mut().filter(|begin| begin.fence.token == token) else { return };
        if matches!(reply, Reply::Committed | Reply::AlreadyThere) {
            begin.rest.remove(0);
            return self.go_on_beginning(me);
        }
        adapter.begin = None;
        self.local(me, BEGIN_AGAIN_MS, Local::BeginAgain(token));
    }

    fn fill_some(&mut self, me: usize, replica: usize) {
        let (op, now) = (self.id(), self.instant());
        let adapter = &mut self.adapters[me];
        if adapter.fills[replica].is_some() {
            return;
        }
        let Some(doubtful) = adapter.ledgers[replica].take_doubtful(FILL_ROWS, now) else { return };
        let Doubtful { rows, fence, clock_offset_ms, .. } = doubtful.clone();
        adapter.fills[replica] = Some(Fill { doubtful, compared: Compared::default() });
        adapter.waiting.insert(op, Waiting::Fill(replica));
        self.local(me, SEND_TIMEOUT_MS, Local::Expire(op));
        self.send_server(me, Remote::Compare { op, replica, rows, fence, clock_ms: clock_offset_ms });
    }

    fn on_fill(&mut self, me: usize, replica: usize, op: u64, reply: Reply) {
        let now = self.instant();
        let adapter = &mut self.adapters[me];
        let Some(mut fill) = adapter.fills[replica].take() else { return };
        match reply {
            Reply::Around(stored) => {
                let Doubtful { rows, clock_offset_ms, passed_ms, known, .. } = &fill.doubtful;
                fill.compared = stored.compare(rows, *clock_offset_ms, *passed_ms, known);
                if fill.compared.missing.is_empty() {
                    adapter.ledgers[replica].compared(&fill.doubtful, Some(&fill.compared), now);
                    return self.send_server(me, Remote::Abandon { op });
                }
                let rows = fill.compared.missing.clone();
                adapter.waiting.insert(op, Waiting::Fill(replica));
                adapter.fills[replica] = Some(fill);
                self.local(me, SEND_TIMEOUT_MS, Local::Expire(op));
                self.send_server(me, Remote::Fill { op, rows });
            }
            Reply::Committed => {
                adapter.ledgers[replica].compared(&fill.doubtful, Some(&fill.compared), now);
                self.fill_some(me, replica);
            }
            _ => adapter.ledgers[replica].compared(&fill.doubtful, None, now),
        }
    }

    fn on_reply(&mut self, me: usize, op: u64, reply: Reply) {
        // Too late: a transaction that nobody waits for is abandoned with its connection.
        let Some(waiting) = self.adapters[me].waiting.get(&op).copied() else { return };
        if let Reply::Copied = reply {
            if self.adapters[me].freeze_in_write_ms > 0 {
                let for_ms = std::mem::take(&mut self.adapters[me].freeze_in_write_ms);
                self.say(format_args!("adapter {me}: freezes before COMMIT"));
                self.adapters[me].frozen_until = self.now + for_ms;
                return self.local(me, 0, Local::Reply(op, Reply::Copied));
            }
            return self.send_server(me, Remote::Commit { op });
        }
        self.adapters[me].waiting.remove(&op);
        match waiting {
            Waiting::Round { asked } => self.on_round(me, asked, reply),
            Waiting::Begin(token) => self.on_begin(me, token, &reply),
            Waiting::Fill(replica) => self.on_fill(me, replica, op, reply),
            Waiting::Request(id) => self.on_request(me, id, &reply),
        }
    }

    // ---- the receiver

    fn deliver(&mut self, me: usize, request: Request) {
        let (now, wall, id) = (self.instant(), self.wall(), self.id());
        let (replica, connects) = (request.replica, self.settings.connects);
        let span = span(&request.batch.rows).unwrap_or_default();
        let adapter = &mut self.adapters[me];
        let name = replica.to_string();
        adapter.cluster.on_request(&name, span.1 - wall, now);
        if connects {
            adapter.connected[replica] += 1;
            if adapter.connected[replica] == 1 {
                adapter.cluster.on_connected(&name);
            }
        }
        adapter.ledgers[replica].storing(request.batch.key, span, wall);
        adapter.requests.insert(id, request);
        if matches!(adapter.cluster.role(&name, now), Role::Unknown | Role::TakingOver) {
            self.wake(me);
        }
        self.local(me, SETTLE_MS, Local::Settle(id));
        self.receive(me, id);
    }

    fn roles_changed(&mut self, me: usize) {
        let waits = |(id, request): (&u64, &Request)| request.role.is_none().then_some(*id);
        let waiting: Vec<u64> = self.adapters[me].requests.iter().filter_map(waits).collect();
        for id in waiting {
            self.receive(me, id);
        }
    }

    /// Decides by role, once it is one that can answer.
    fn receive(&mut self, me: usize, id: u64) {
        let now = self.instant();
        let adapter = &mut self.adapters[me];
        let Some(request) = adapter.requests.get_mut(&id) else { return };
        let role = adapter.cluster.role(&request.replica.to_string(), now);
        if !matches!(role, Role::Leader { .. } | Role::Standby { .. }) {
            return;
        }
        request.role = Some(role);
        let takes = if self.random.chance(4) { self.random.spread(1, 3_000) } else { 0 };
        if takes > 0 {
            return self.local(me, takes, Local::Resolved(id));
        }
        self.resolved(me, id);
    }

    fn resolved(&mut self, me: usize, id: u64) {
        let (op, bug, now) = (self.id(), self.bug, self.instant());
        let adapter = &mut self.adapters[me];
        let Some(request) = adapter.requests.get_mut(&id) else { return };
        let ledger = &mut adapter.ledgers[request.replica];
        let fence = match request.role {
            Some(Role::Leader { fence: Some(fence), .. }) => fence,
            _ => {
                let held =
                    bug == Some(Bug::HoldNothing) || ledger.hold(request.batch.key, &request.batch.rows, now).is_ok();
                return self.answer(me, id, held);
            }
        };
        request.rows.clone_from(&request.batch.rows);
        if let Some(cut) = ledger.cut() {
            let mut taken_out = cut.apply(&mut request.rows);
            taken_out.extend(ledger.overtaken(&mut request.rows));
            if ledger.doubt(&taken_out, now).is_err() {
                return self.answer(me, id, false);
            }
        }
        if request.rows.is_empty() {
            return self.answer(me, id, true);
        }
        let (replica, key, rows) = (request.replica, request.batch.key, request.rows.clone());
        adapter.waiting.insert(op, Waiting::Request(id));
        self.local(me, SEND_TIMEOUT_MS, Local::Expire(op));
        self.send_server(me, Remote::Begin { op, replica, key, rows, fence });
    }

    fn on_request(&mut self, me: usize, id: u64, reply: &Reply) {
        let is_stored = matches!(reply, Reply::Committed | Reply::AlreadyThere);
        if !is_stored {
            self.wake(me);
        }
        self.answer(me, id, is_stored);
    }

    fn answer(&mut self, me: usize, id: u64, accepted: bool) {
        let (now, wall) = (self.instant(), self.wall());
        let adapter = &mut self.adapters[me];
        let Some(request) = adapter.requests.remove(&id) else { return };
        let Request { replica, life, shard, attempt, ref batch, .. } = request;
        let latest_ms = span(&batch.rows).map(|(_, latest_ms)| latest_ms).filter(|_| accepted);
        adapter.ledgers[replica].stored(batch.key, latest_ms, wall);
        adapter.cluster.on_answer(&replica.to_string(), !accepted, now);
        let (word, rows) = (if accepted { "takes" } else { "refuses" }, crate::world::show(&batch.rows));
        self.say(format_args!("adapter {me}: {word} of replica {replica} {rows}"));
        if self.replicas[replica].silent_until <= self.now {
            let what = Sender::Answer { shard, attempt, accepted };
            let after = self.random.between(0, 2);
            self.at(self.now + after, Event::Sender { replica, life, what });
        }
    }
}
