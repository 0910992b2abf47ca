//! One Prometheus: a thread, inside its host's namespace if it has one, that scrapes and sends as Prometheus does.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rig::http::{Client, WRITE_HEADERS};
use rig::network;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::balancer::Balancer;
use crate::message;
use crate::mode::REPLICAS;
use rig::random::Random;

/// Prometheus' `min_backoff` and `max_backoff`.
pub(crate) const BACKOFF: [Duration; 2] = [Duration::from_millis(30), Duration::from_secs(5)];

/// What a Prometheus scrapes and how it sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Scraped series; a quarter of them constant, the others the time of the scrape.
    pub(crate) series: usize,
    /// Series of recording rules, evaluated at the same times on both sides, with other values.
    pub(crate) rules: usize,
    /// Milliseconds between scrapes.
    pub(crate) interval_ms: i64,
    /// Shards; each sends one batch at a time, in order.
    pub(crate) shards: usize,
    /// `max_samples_per_send`.
    pub(crate) batch: usize,
    /// `batch_send_deadline`.
    pub(crate) deadline: Duration,
    /// `remote_timeout`.
    pub(crate) timeout: Duration,
    /// How much later each shard begins than the one before it.
    pub(crate) stagger: Duration,
    /// How long connections are kept that carry nothing; for good, if zero.
    pub(crate) idle: Duration,
}

/// What goes wrong where a Prometheus scrapes and sends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Targets that it does not reach.
    pub(crate) blind: Range<usize>,
    /// Of a hundred scrapes of a target, by chance, so many fail.
    pub(crate) missed: u64,
    /// Whether one that fails leaves stale markers, as where a target does not answer, or nothing, as where it was not made.
    pub(crate) has_markers: bool,
    /// Of a hundred scrapes of a target, by chance, so many are sent out of order: some scrapes later.
    pub(crate) late: u64,
    /// Every batch has a series in it that can never be stored.
    pub(crate) poison: bool,
    /// What is refused is sent again, with what has come since.
    pub(crate) repeats: bool,
}

/// How many scrapes later one is sent that is late.
const LATE_SCRAPES: u64 = 20;

/// Samples of one instant: those of a shard's series from one place to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// The samples' timestamp.
    pub(crate) time_ms: i64,
    /// The time it really was.
    pub(crate) true_ms: i64,
    /// Which shard.
    pub(crate) shard: usize,
    /// First place in the shard's list of series.
    pub(crate) from: usize,
    /// Place behind the last.
    pub(crate) to: usize,
    /// Whether these are stale markers.
    pub(crate) is_marker: bool,
}

impl Part {
    fn len(&self) -> usize {
        self.to - self.from
    }
}

/// What a Prometheus counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Samples scraped.
    pub(crate) produced: usize,
    /// Samples answered 2xx.
    pub(crate) acknowledged: usize,
    /// Samples of batches answered 4xx, those with poison in them apart.
    pub(crate) failed: usize,
    /// Samples of batches answered 4xx that had poison in them.
    pub(crate) poisoned: usize,
    /// Samples sent again.
    pub(crate) retried: usize,
    /// Whether the answer that came last, to whichever shard, was a refusal by 5xx.
    pub(crate) is_refused: bool,
}

/// Who a Prometheus is, and where it sends.
pub(crate) struct Identity {
    /// Its cluster.
    pub(crate) cluster: &'static str,
    /// Which of the cluster's replicas it is.
    pub(crate) index: usize,
    /// Its host's, if it has one.
    pub(crate) namespace: Option<String>,
    /// Where its requests go.
    pub(crate) balancer: Arc<Balancer>,
    /// Which of the balancer's senders it is.
    pub(crate) number: usize,
    /// Where its chance comes from.
    pub(crate) random: Random,
}

/// A Prometheus; ends with its owner.
pub(crate) struct Host {
    state: Arc<State>,
    orders: Option<mpsc::UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    /// Start Prometheus.
    Start,
    /// Kill it: what it has not sent is gone.
    Kill,
    /// Start it, for it to send again, from its log, what it has scraped since a time, in ms since 1970.
    Replay(i64),
    /// Post a body, and tell the status.
    Post(bytes::Bytes, oneshot::Sender<u16>),
}

struct State {
    index: usize,
    shape: Shape,
    balancer: Arc<Balancer>,
    number: usize,
    /// Its connections; none while it does not run.
    client: Mutex<Option<Client>>,
    /// Told when a request is over.
    sent: Notify,
    /// Labels of each series, as they stand in a message.
    labels: Vec<Vec<u8>>,
    /// The series of each shard: scraped ones, then rules.
    own: Vec<Vec<usize>>,
    queues: Vec<Queue>,
    waiting: AtomicUsize,
    /// Scrapes before this are made, ms since 1970.
    scrapes_until_ms: AtomicI64,
    frozen: AtomicBool,
    faults: Mutex<Faults>,
    random: Mutex<Random>,
    /// Targets whose last scrape failed.
    failing: Mutex<BTreeSet<usize>>,
    /// What is sent late, by when it is.
    late: Mutex<Vec<(i64, Part)>>,
    skew_ms: Arc<AtomicI64>,
    /// What was scraped, in order.
    log: Mutex<Vec<Part>>,
    acknowledged: Mutex<Vec<Part>>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Queue {
    parts: Mutex<VecDeque<Part>>,
    more: Notify,
}

impl Host {
    /// Not started.
    pub(crate) fn new(identity: Identity, shape: Shape) -> Self {
        let Identity { cluster, index, namespace, balancer, number, random } = identity;
        let all = shape.series + shape.rules;
        let replica = REPLICAS[index];
        let own: Vec<Vec<usize>> =
            (0..shape.shards).map(|shard| (shard..all).step_by(shape.shards).collect()).collect();
        let state = Arc::new(State {
            index,
            shape,
            balancer,
            number,
            client: Mutex::default(),
            sent: Notify::new(),
            labels: (0..all).map(|series| message::labels(&shape, series, cluster, replica)).collect(),
            queues: (0..shape.shards).map(|_| Queue::default()).collect(),
            own,
            waiting: AtomicUsize::new(0),
            scrapes_until_ms: AtomicI64::new(i64::MAX),
            frozen: AtomicBool::new(false),
            faults: Mutex::default(),
            random: Mutex::new(random),
            failing: Mutex::default(),
            late: Mutex::default(),
            skew_ms: Arc::default(),
            log: Mutex::default(),
            acknowledged: Mutex::default(),
            counts: Mutex::default(),
        });
        let (orders, received) = mpsc::unbounded_channel();
        let of_thread = Arc::clone(&state);
        let work = move || {
            if let Some(namespace) = namespace {
                network::enter(&namespace).expect("cannot enter the host's namespace");
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("cannot start tokio").block_on(live(of_thread, received));
        };
        let thread = std::thread::Builder::new().name(format!("host {replica}")).spawn(work);
        Self { state, orders: Some(orders), thread: Some(thread.expect("cannot start a thread")) }
    }

    /// Starts its Prometheus.
    pub(crate) fn start(&self) {
        self.state.scrapes_until_ms.store(i64::MAX, Ordering::Relaxed);
        self.order(Order::Start);
    }

    /// Kills its Prometheus.
    pub(crate) fn kill(&self) {
        self.order(Order::Kill);
    }

    /// Freezes its Prometheus, or lets it go on.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.state.frozen.store(frozen, Ordering::Relaxed);
    }

    /// Ends scraping at a time, in ms since 1970; what is waiting is sent still.
    pub(crate) fn scrape_until(&self, until_ms: i64) {
        self.state.scrapes_until_ms.store(until_ms, Ordering::Relaxed);
    }

    /// Sets its clock wrong from the next scrape on.
    pub(crate) fn skew(&self, skew_ms: i64) {
        self.state.skew_ms.store(skew_ms, Ordering::Relaxed);
    }

    /// How wrong its clock is, as long as it lives.
    pub(crate) fn skew_ms(&self) -> Arc<AtomicI64> {
        Arc::clone(&self.state.skew_ms)
    }

    /// Changes what goes wrong from now on.
    pub(crate) fn fault(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.state.faults));
    }

    /// Adds what it scraped before, as if it had been read from its log just now.
    pub(crate) fn remember(&self, scrapes: i64) {
        let interval_ms = self.state.shape.interval_ms;
        self.remember_of(next_ms(interval_ms, self.state.phase_ms()) - scrapes * interval_ms, scrapes);
    }

    /// The same from a time on, in ms since 1970.
    pub(crate) fn remember_of(&self, from_ms: i64, scrapes: i64) {
        let Shape { interval_ms, .. } = self.state.shape;
        let phase_ms = self.state.phase_ms();
        let from_ms = (from_ms - phase_ms).div_euclid(interval_ms) * interval_ms + phase_ms;
        for scrape in 0..scrapes {
            self.state.take_in(from_ms + scrape * interval_ms, true);
        }
    }

    /// Restarts its Prometheus, which sends again, in other batches, all that it has scraped since a time, in ms since 1970.
    pub(crate) fn replay(&self, since_ms: i64) {
        self.state.scrapes_until_ms.store(i64::MAX, Ordering::Relaxed);
        self.order(Order::Replay(since_ms));
    }

    /// Posts a request from its host to where it sends; the status of the answer, 0 if there was none.
    pub(crate) async fn post(&self, body: Vec<u8>) -> u16 {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Post(body.into(), answer));
        answered.await.unwrap_or(0)
    }

    /// Samples not yet answered.
    pub(crate) fn waiting(&self) -> usize {
        self.state.waiting.load(Ordering::Relaxed)
    }

    /// Ends when it has just been answered for all it has.
    pub(crate) async fn sent(&self) {
        let begun = self.counts().acknowledged;
        while self.counts().acknowledged == begun || self.waiting() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What it counted.
    pub(crate) fn counts(&self) -> Counts {
        *lock(&self.state.counts)
    }

    /// Every acknowledged sample: times by series, ascending.
    pub(crate) fn journal(&self) -> Vec<Vec<i64>> {
        let mut times = vec![Vec::new(); self.state.labels.len()];
        for part in lock(&self.state.acknowledged).iter().filter(|part| !part.is_marker) {
            for series in &self.state.own[part.shard][part.from..part.to] {
                times[*series].push(part.time_ms);
            }
        }
        for series in &mut times {
            series.sort_unstable();
            series.dedup();
        }
        times
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    /// Where in the interval this host scrapes.
    fn phase_ms(&self) -> i64 {
        phase_ms(&self.shape, self.index)
    }

    /// Takes one sample of each series, rules or scraped ones, into the queues; but for what goes wrong.
    fn scrape(&self, true_ms: i64, of_targets: bool) {
        let Faults { blind, missed, has_markers, late, .. } = lock(&self.faults).clone();
        if !of_targets || blind.is_empty() && missed == 0 && late == 0 && lock(&self.failing).is_empty() {
            return self.take_in(true_ms, of_targets);
        }
        let (mut random, mut failing) = (lock(&self.random), lock(&self.failing));
        for target in 0..message::targets(&self.shape) {
            let fails = blind.contains(&target) || random.below(100) < missed;
            let has_failed = if fails { !failing.insert(target) } else { failing.remove(&target) };
            let later_ms = match random.below(100) < late {
                true => i64::try_from(1 + random.below(LATE_SCRAPES)).unwrap_or(0) * self.shape.interval_ms,
                false => 0,
            };
            for part in self.parts(true_ms, message::series_of(&self.shape, target)) {
                match (fails, later_ms) {
                    // Prometheus has forgotten the series by the next one.
                    (true, _) if !has_markers || has_failed => {}
                    (true, _) => self.push(Part { is_marker: true, ..part }),
                    (false, 0) => self.push(part),
                    (false, _) => lock(&self.late).push((true_ms + later_ms, part)),
                }
            }
        }
        let mut late = lock(&self.late);
        late.extract_if(.., |(due_ms, _)| *due_ms <= true_ms).for_each(|(_, part)| self.push(part));
    }

    /// Takes one sample of each series, rules or scraped ones, into the queues.
    fn take_in(&self, true_ms: i64, of_targets: bool) {
        let all = self.labels.len();
        let series = if of_targets { 0..self.shape.series } else { self.shape.series..all };
        self.parts(true_ms, series).into_iter().for_each(|part| self.push(part));
    }

    /// A scrape of these series, by shard.
    fn parts(&self, true_ms: i64, series: Range<usize>) -> Vec<Part> {
        let time_ms = true_ms + self.skew_ms.load(Ordering::Relaxed);
        let part = |(shard, own): (usize, &Vec<usize>)| {
            let place = |bound: usize| own.partition_point(|series| *series < bound);
            Part { time_ms, true_ms, shard, from: place(series.start), to: place(series.end), is_marker: false }
        };
        self.own.iter().enumerate().map(part).filter(|part| part.len() > 0).collect()
    }

    fn push(&self, part: Part) {
        self.waiting.fetch_add(part.len(), Ordering::Relaxed);
        lock(&self.counts).produced += part.len();
        lock(&self.log).push(part);
        let queue = &self.queues[part.shard];
        lock(&queue.parts).push_back(part);
        queue.more.notify_one();
    }

    /// The next batch of a shard: full, or what there is once `deadline` is over.
    async fn next_batch(&self, shard: usize) -> Vec<Part> {
        let queue = &self.queues[shard];
        let ready_at = tokio::time::Instant::now() + self.shape.deadline;
        loop {
            let (waiting, late) = {
                let parts = lock(&queue.parts);
                (parts.iter().map(Part::len).sum::<usize>(), tokio::time::Instant::now() >= ready_at)
            };
            if waiting >= self.shape.batch || (late && waiting > 0) {
                return self.take(shard);
            }
            // Nothing waiting and the deadline over: the next sample goes at once, as a ticker's would within one.
            if late {
                queue.more.notified().await;
            } else {
                let _ = tokio::time::timeout_at(ready_at, queue.more.notified()).await;
            }
        }
    }

    fn take(&self, shard: usize) -> Vec<Part> {
        let mut parts = lock(&self.queues[shard].parts);
        let (mut batch, mut room) = (Vec::new(), self.shape.batch);
        while let Some(first) = parts.front_mut().filter(|_| room > 0) {
            let taken = Part { to: first.to.min(first.from + room), ..*first };
            room -= taken.len();
            first.from = taken.to;
            if first.len() == 0 {
                parts.pop_front();
            }
            batch.push(taken);
        }
        batch
    }

    /// Puts all that was scraped since `since_ms` into the queues, and nothing else, divided otherwise than before.
    fn replay(&self, since_ms: i64) {
        self.waiting.store(0, Ordering::Relaxed);
        for (shard, queue) in self.queues.iter().enumerate() {
            let is_sent = |part: &&Part| part.shard == shard && part.true_ms >= since_ms;
            let mut parts: VecDeque<Part> = lock(&self.log).iter().filter(is_sent).copied().collect();
            if let Some(first) = parts.front_mut() {
                first.from = first.from.midpoint(first.to);
            }
            self.waiting.fetch_add(parts.iter().map(Part::len).sum(), Ordering::Relaxed);
            *lock(&queue.parts) = parts;
            queue.more.notify_one();
        }
    }

    fn encode(&self, batch: &[Part], poison: bool) -> Vec<u8> {
        let samples = batch.iter().flat_map(|part| {
            self.own[part.shard][part.from..part.to].iter().map(|series| {
                let value = match part.is_marker {
                    true => message::MARKER,
                    false => message::value(&self.shape, *series, part.true_ms, self.index),
                };
                (self.labels[*series].as_slice(), part.time_ms, value)
            })
        });
        message::request(samples, poison.then_some(self.index))
    }

    fn ended(&self, batch: &[Part], acknowledged: bool) {
        self.waiting.fetch_sub(batch.iter().map(Part::len).sum(), Ordering::Relaxed);
        if acknowledged {
            lock(&self.acknowledged).extend_from_slice(batch);
        }
    }

    async fn thaw(&self) {
        while self.frozen.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Where in the interval replica `index` scrapes; rules are evaluated at its very beginning, on all.
pub(crate) fn phase_ms(shape: &Shape, index: usize) -> i64 {
    shape.interval_ms * [130, 570, 850][index] / 1000
}

/// By this machine's clock.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is before 1970");
    i64::try_from(since.as_millis()).expect("the clock is far ahead")
}

/// The next aligned time.
fn next_ms(interval_ms: i64, phase_ms: i64) -> i64 {
    (now_ms() - phase_ms).div_euclid(interval_ms) * interval_ms + phase_ms + interval_ms
}

/// The host's thread: follows orders until its owner is gone.
async fn live(state: Arc<State>, mut orders: mpsc::UnboundedReceiver<Order>) {
    let (mut prometheus, mut strangers) = (JoinSet::new(), JoinSet::new());
    while let Some(order) = orders.recv().await {
        let order = match order {
            Order::Post(body, answer) => {
                strangers.spawn(post(Arc::clone(&state), body, answer));
                continue;
            }
            order => order,
        };
        prometheus.shutdown().await;
        match order {
            Order::Kill => {
                // After a restart nothing old is sent; what was remembered before the first start is.
                state.queues.iter().for_each(|queue| lock(&queue.parts).clear());
                lock(&state.late).clear();
                *lock(&state.client) = None;
                state.waiting.store(0, Ordering::Relaxed);
                continue;
            }
            Order::Replay(since_ms) => state.replay(since_ms),
            Order::Start | Order::Post(..) => {}
        }
        *lock(&state.client) = Some(Client::new(state.shape.timeout));
        prometheus.spawn(reconnect(Arc::clone(&state)));
        prometheus.spawn(scrape(Arc::clone(&state), true));
        prometheus.spawn(scrape(Arc::clone(&state), false));
        for shard in 0..state.shape.shards {
            prometheus.spawn(send(Arc::clone(&state), shard));
        }
    }
}

/// Sends what somebody else does.
async fn post(state: Arc<State>, body: bytes::Bytes, answer: oneshot::Sender<u16>) {
    let url = format!("{}/write", state.balancer.pick(state.number, usize::MAX, 0));
    let answered = Client::new(state.shape.timeout).post(&url, &WRITE_HEADERS, body).await;
    let _ = answer.send(answered.map_or(0, |answered| answered.status));
}

/// Scrapes, or evaluates rules, at aligned times; late ones are made up for, unless it was frozen.
async fn scrape(state: Arc<State>, of_targets: bool) {
    let interval_ms = state.shape.interval_ms;
    let phase_ms = if of_targets { state.phase_ms() } else { 0 };
    let mut next = next_ms(interval_ms, phase_ms);
    loop {
        let wait_ms = u64::try_from(next - now_ms()).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        if state.frozen.load(Ordering::Relaxed) {
            state.thaw().await;
            next = next_ms(interval_ms, phase_ms);
        } else {
            if next < state.scrapes_until_ms.load(Ordering::Relaxed) {
                state.scrape(next, of_targets);
            }
            next += interval_ms;
        }
    }
}

/// Whenever connections are cut, idle ones are too; and those that are idle for too long.
async fn reconnect(state: Arc<State>) {
    let mut cuts = state.balancer.cuts();
    loop {
        let idle_for = async {
            let Shape { idle, .. } = state.shape;
            if idle.is_zero() {
                return std::future::pending().await;
            }
            // Unless something is sent meanwhile.
            while tokio::time::timeout(idle, state.sent.notified()).await.is_ok() {}
        };
        tokio::select! {
            cut = cuts.changed() => if cut.is_err() { return },
            () = idle_for => {}
        }
        *lock(&state.client) = Some(Client::new(state.shape.timeout));
    }
}

/// One shard: its batches in order, each until it is answered for good.
async fn send(state: Arc<State>, shard: usize) {
    tokio::time::sleep(state.shape.stagger * u32::try_from(shard).unwrap_or(0)).await;
    let mut cuts = state.balancer.cuts();
    // What was refused and is sent again.
    let mut refused = Vec::new();
    loop {
        let mut batch = std::mem::take(&mut refused);
        batch.extend(state.next_batch(shard).await);
        let samples: usize = batch.iter().map(Part::len).sum();
        let Faults { poison, repeats, .. } = lock(&state.faults).clone();
        let body = bytes::Bytes::from(state.encode(&batch, poison));
        let (mut backoff, mut attempt) = (BACKOFF[0], 0);
        loop {
            state.thaw().await;
            cuts.mark_unchanged();
            let url = format!("{}/write", state.balancer.pick(state.number, shard, attempt));
            let client = lock(&state.client).clone().unwrap_or_default();
            let answer = tokio::select! {
                answer = client.post(&url, &WRITE_HEADERS, body.clone()) => answer.ok(),
                _ = cuts.changed() => None,
            };
            drop(client);
            state.sent.notify_one();
            attempt += 1;
            state.thaw().await;
            let status = answer.as_ref().map_or(0, |answer| answer.status);
            lock(&state.counts).is_refused = status >= 500;
            match status {
                200..=299 => {
                    lock(&state.counts).acknowledged += samples;
                    break state.ended(&batch, true);
                }
                0 | 429 | 500..=599 => {
                    lock(&state.counts).retried += samples;
                    let asked = answer.and_then(|answer| answer.header("retry-after")?.parse().ok());
                    let asked = asked.map(Duration::from_secs).filter(|asked| !asked.is_zero());
                    tokio::time::sleep(asked.unwrap_or(backoff).min(BACKOFF[1])).await;
                    backoff = (backoff * 2).min(BACKOFF[1]);
                }
                _ if poison && repeats => {
                    lock(&state.counts).poisoned += 1;
                    refused = batch;
                    break;
                }
                _ if poison => {
                    // All but the poison must be stored for it.
                    lock(&state.counts).poisoned += 1;
                    break state.ended(&batch, true);
                }
                _ => {
                    lock(&state.counts).failed += samples;
                    break state.ended(&batch, false);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
