//! Where a case is played: one PostgreSQL, adapters, Prometheis that send to them, and a record of what was done.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rig::adapter::{self, Adapter};
use rig::network::Network;
use rig::port;
use rig::postgres::{self, Postgres};
use tokio_postgres::Client;

use crate::balancer::Balancer;
use crate::host::{Host, Identity, Shape, now_ms};
use crate::judge::{self, Findings, Promised};
use crate::mode::{Mode, REPLICAS, TOKEN};
use crate::pooler::Pooler;
use crate::reader::Reader;
use crate::watch::{ALL_LED, NO_CLUSTER, Watch};
use crate::witness;
use rig::random::Random;

/// A wait that takes longer has failed, and the case with it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// From so many scrapes on is it known how often a series is scraped.
const SCRAPES_UNTIL_KNOWN: f64 = 5.0;

/// Two intervals and so long after it was acknowledged a sample is covered: 5 s are the adapter's, the rest is for a busy machine.
const COVERED_WITHIN: Duration = Duration::from_secs(25);

/// What takes longer than this to be covered is worth a note.
const SOON: Duration = Duration::from_secs(3);

/// How a case is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// How the adapters agree who leads.
    pub(crate) mode: Mode,
    /// What is sent.
    pub(crate) shape: Shape,
    /// `-leader-election-lease`.
    pub(crate) lease_seconds: f64,
    /// PostgreSQL.
    pub(crate) postgres: postgres::Options,
    /// More words for the adapters, `HOST`, `PORT` and `SECOND` replaced by where PostgreSQL and its replica are.
    pub(crate) uri: String,
    /// More arguments of all adapters.
    pub(crate) arguments: Vec<String>,
    /// More environment of the second adapter.
    pub(crate) environment: Vec<(String, String)>,
    /// Whether a replica follows.
    pub(crate) replica: bool,
    /// Whether each adapter reaches PostgreSQL through a pgbouncer of its own in transaction mode, but for the lock.
    pub(crate) poolers: bool,
    /// Whether the Prometheis are started.
    pub(crate) senders: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let shape = Shape {
            series: 1_000,
            rules: 10,
            interval_ms: 1_000,
            shards: 3,
            batch: 200,
            deadline: Duration::from_millis(500),
            timeout: Duration::from_secs(30),
            stagger: Duration::ZERO,
            idle: Duration::ZERO,
        };
        Self {
            mode: Mode::AdvisoryLock,
            shape,
            lease_seconds: 3.0,
            postgres: postgres::Options::default(),
            uri: "postgres://postgres@HOST:PORT/postgres?sslmode=disable".to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            replica: false,
            poolers: false,
            senders: true,
        }
    }
}

/// One case under way.
pub(crate) struct Stage<'a> {
    // In the order in which they are to end.
    /// The Prometheis, cluster by cluster; of a pair as their adapters.
    pub(crate) hosts: Vec<Host>,
    watches: Vec<Watch>,
    reader: Reader,
    adapters: Vec<Option<Adapter>>,
    options: Vec<adapter::Options>,
    /// What the Prometheis send by; of a pair one each.
    balancers: Vec<Arc<Balancer>>,
    /// The pgbouncer of each adapter that has one and is not cut off from it, and the ports of all.
    poolers: Vec<Option<Pooler>>,
    pooler_ports: Vec<u16>,
    /// The replica, if any.
    pub(crate) replica: Option<Postgres>,
    /// The primary.
    pub(crate) postgres: Postgres,
    network: Option<&'a Network>,
    binary: PathBuf,
    /// How it was set up.
    pub(crate) setup: Setup,
    /// Where chance comes from.
    pub(crate) random: Random,
    began: Instant,
    record: Record,
    /// What adapters that are gone have written.
    past_logs: Vec<Vec<String>>,
}

/// One take-over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Takeover {
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// Seconds it may take.
    pub(crate) wanted: f64,
}

/// What was done and measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// When, in seconds of the case, what was done.
    pub(crate) events: Vec<(f64, String)>,
    /// Each take-over.
    pub(crate) takeovers: Vec<Takeover>,
    /// How many seconds a take-over may take.
    pub(crate) takeover_wanted: f64,
    /// Further findings that break a promise.
    pub(crate) broken: Vec<String>,
    /// Further findings.
    pub(crate) notes: Vec<String>,
}

/// How a case ended.
pub(crate) struct Outcome {
    /// What was done and measured.
    pub(crate) record: Record,
    /// What the judge found.
    pub(crate) findings: Findings,
    /// Samples the senders counted as failed.
    pub(crate) failed: usize,
    /// Samples sent again.
    pub(crate) retried: usize,
    /// Seconds in which no adapter said that it leads, or that a replica of every cluster does.
    pub(crate) leaderless: f64,
    /// Most samples held by a standby, and their bytes.
    pub(crate) held: (f64, f64),
    /// What the adapters wrote, and what they are called.
    pub(crate) logs: Vec<(&'static str, String)>,
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// For the picture: what each adapter said, by seconds of the case.
    pub(crate) bands: Vec<Vec<Band>>,
}

/// An adapter's role and what it stored meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Band {
    /// From, in seconds of the case.
    pub(crate) from: f64,
    /// To.
    pub(crate) to: f64,
    /// Its role; none while it did not answer.
    pub(crate) role: Option<&'static str>,
    /// Samples stored in it.
    pub(crate) stored: f64,
}

impl<'a> Stage<'a> {
    /// Sets everything up and waits until it is settled who leads, and known how often each series is scraped.
    pub(crate) async fn set(network: Option<&'a Network>, binary: &Path, setup: Setup, mut random: Random) -> Self {
        let options = setup.postgres.clone().with("listen_addresses", "*").with("track_commit_timestamp", "on");
        let postgres = Postgres::start(options.with("wal_level", "replica")).await;
        let replica = if setup.replica { Some(postgres.follow().await) } else { None };
        let server = network.map_or_else(|| "127.0.0.1".to_owned(), Network::server_address);
        let pooler_ports: Vec<u16> =
            (0..if setup.poolers { setup.mode.adapters() } else { 0 }).map(|_| port::free()).collect();
        let pooler = |port: &u16| Some(Pooler::start(&server, *port, postgres.port()));
        let poolers = pooler_ports.iter().map(pooler).collect();
        let second = replica.as_ref().map_or(0, Postgres::port);
        let fill = |text: &str, port: u16| {
            let text = text.replace("HOST", &server).replace("PORT", &port.to_string());
            text.replace("SECOND", &second.to_string())
        };
        let mode = setup.mode;
        let options: Vec<adapter::Options> = (0..mode.adapters())
            .map(|host| {
                let mut options = adapter::Options::new(binary)
                    .name(&format!("adapter {}", mode.adapter_name(host)))
                    .arg("-log-level=info")
                    // Sealed while it happens, in segments and portions as small as can be.
                    .arg("-pg-seal-samples=5000")
                    .arg("-pg-seal-after=1s")
                    .arg("-pg-prometheus-chunk-interval=10s")
                    .arg(format!(
                        "-pg-uri={}",
                        fill(&setup.uri, pooler_ports.get(host).copied().unwrap_or(postgres.port()))
                    ));
                if setup.poolers {
                    options = options.arg(format!("-pg-lock-uri={}", fill(&setup.uri, postgres.port())));
                }
                if let Some(network) = network {
                    options = options.namespace(&network.namespace(host));
                }
                if let Some(network) = network.filter(|_| mode.is_balanced()) {
                    options = options.address(&network.address(host));
                }
                for argument in mode.arguments(setup.lease_seconds).iter().chain(&setup.arguments) {
                    options = options.arg(argument.clone());
                }
                for (name, value) in setup.environment.iter().filter(|_| host == 1) {
                    options = options.env(name, value);
                }
                options
            })
            .collect();
        let adapters: Vec<Adapter> = options.iter().map(adapter::Options::spawn).collect();
        for adapter in &adapters {
            adapter.process().wait_for_log(r#"msg="listening""#, PATIENCE).await;
        }
        // Those of a pair and their Prometheis live on the same hosts; what is balanced is seen from this one.
        let namespace = |host: usize| network.filter(|_| !mode.is_balanced()).map(|network| network.namespace(host));
        let watch = |(host, adapter): (usize, &Adapter)| Watch::start(adapter.url(""), namespace(host));
        let watches = adapters.iter().enumerate().map(watch).collect();
        let targets: Vec<String> = adapters.iter().map(|adapter| adapter.url("")).collect();
        let balancers: Vec<Arc<Balancer>> = match mode.is_balanced() {
            true => vec![Arc::new(Balancer::new(targets))],
            false => targets.into_iter().map(|target| Arc::new(Balancer::new(vec![target]))).collect(),
        };
        let replicas =
            || mode.clusters().iter().flat_map(|cluster| (0..mode.replicas()).map(move |index| (*cluster, index)));
        let host = |(number, (cluster, index)): (usize, (&'static str, usize))| {
            let balancer = Arc::clone(&balancers[if mode.is_balanced() { 0 } else { number }]);
            let namespace = namespace(if mode.is_balanced() { index } else { number });
            let random = Random::new(random.bits());
            Host::new(Identity { cluster, index, namespace, balancer, number, random }, setup.shape)
        };
        let hosts: Vec<Host> = replicas().enumerate().map(host).collect();
        let skews_ms = hosts.chunks(mode.replicas()).map(|hosts| hosts.iter().map(Host::skew_ms).collect()).collect();
        let reader = Reader::start(postgres.uri("postgres"), mode, setup.shape, skews_ms);
        let mut stage = Self {
            hosts,
            watches,
            reader,
            past_logs: vec![Vec::new(); adapters.len()],
            adapters: adapters.into_iter().map(Some).collect(),
            options,
            balancers,
            poolers,
            pooler_ports,
            replica,
            postgres,
            network,
            binary: binary.to_owned(),
            setup,
            random,
            began: Instant::now(),
            record: Record { takeover_wanted: 1.0, ..Record::default() },
        };
        stage.witness().await;
        if stage.setup.senders {
            for host in &stage.hosts {
                host.start();
            }
            if stage.setup.mode == Mode::Rest {
                // Refused until its adapter has reached the database.
                let leads = async || stage.try_order(0, &["lead"]).await.ok();
                stage.adapter(0).process().wait_until("it is told to lead", PATIENCE, leads).await;
            }
            stage.began = Instant::now();
            stage.settled().await;
            // Before, two sides' scrapes in one interval may both be stored.
            sleep(SCRAPES_UNTIL_KNOWN * stage.interval()).await;
        }
        stage.began = Instant::now();
        stage
    }

    /// Waits for the schema, then adds the witness.
    async fn witness(&self) {
        let client = self.client().await;
        let there = "SELECT to_regclass('metrics_requests') IS NOT NULL AND to_regclass('metrics_leader') IS NOT NULL";
        let ready = async || client.query_one(there, &[]).await.ok()?.get::<_, bool>(0).then_some(());
        self.postgres.process().wait_until("the adapters have made their schema", PATIENCE, ready).await;
        let witness = witness::statements(self.setup.mode, &self.setup.shape);
        client.batch_execute(&witness).await.expect("cannot add the witness");
    }

    /// A session as superuser.
    pub(crate) async fn client(&self) -> Client {
        self.postgres.connect("postgres").await
    }

    /// Runs statements as superuser.
    pub(crate) async fn sql(&self, statements: &str) {
        let done = self.client().await.batch_execute(statements).await;
        done.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    /// Remembers a deed for the picture.
    pub(crate) fn event(&mut self, what: impl Into<String>) {
        self.record.events.push((self.began.elapsed().as_secs_f64(), what.into()));
    }

    /// What was done and measured so far.
    pub(crate) fn record(&mut self) -> &mut Record {
        &mut self.record
    }

    /// Waits until it is settled who leads.
    pub(crate) async fn settled(&self) {
        if !self.setup.mode.is_balanced() {
            self.healthy().await;
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let roles: Vec<_> = self.watches.iter().map(Watch::role).collect();
            let is_well = |role: &Option<&str>| matches!(*role, Some(ALL_LED | NO_CLUSTER));
            if roles.iter().all(is_well) && roles.contains(&Some(ALL_LED)) {
                return;
            }
            assert!(Instant::now() < deadline, "not all clusters led within {PATIENCE:?}: {roles:?}\n{}", self.logs());
            sleep(0.02).await;
        }
    }

    /// Waits until one adapter of a pair leads and the other stands by; which one leads.
    pub(crate) async fn healthy(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let roles = [self.watches[0].role(), self.watches[1].role()];
            match roles {
                [Some("leader"), Some("standby")] => return 0,
                [Some("standby"), Some("leader")] => return 1,
                _ if Instant::now() > deadline => {
                    panic!("no leader and standby within {PATIENCE:?}: {roles:?}\n{}", self.logs())
                }
                _ => sleep(0.02).await,
            }
        }
    }

    /// The adapter of a host.
    pub(crate) fn adapter(&self, host: usize) -> &Adapter {
        self.adapters[host].as_ref().expect("this adapter is dead")
    }

    /// Kills the adapter of a host.
    pub(crate) async fn kill(&mut self, host: usize) {
        if let Some(adapter) = self.adapters[host].take() {
            adapter.process().kill9().await;
            self.past_logs[host].extend(adapter.process().log().lines());
        }
    }

    /// Has an operator on a host order something of its adapter, and returns what that says.
    pub(crate) async fn order(&mut self, host: usize, words: &[&str]) -> String {
        self.try_order(host, words).await.unwrap_or_else(|said| {
            println!("election {}: {}", words.join(" "), said.trim());
            self.record.broken.push(format!("election {}: {}", words.join(" "), said.trim()));
            said
        })
    }

    /// The same; an error is what was said of an order that was refused.
    async fn try_order(&self, host: usize, words: &[&str]) -> Result<String, String> {
        let mut command = match self.network {
            Some(network) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &network.namespace(host)]).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        let url = format!("-url={}", self.adapter(host).url(""));
        command.arg("election").args(words).arg(url).env("TS_PROM_WEB_ADMIN_TOKEN", TOKEN);
        let ended = tokio::task::spawn_blocking(move || command.output().expect("the adapter's program cannot be run"));
        let ended = tokio::time::timeout(PATIENCE, ended).await.expect("an order takes for ever");
        let ended = ended.expect("the program that gives it is seen to end");
        let said = [&ended.stdout[..], &ended.stderr].map(String::from_utf8_lossy).concat();
        if ended.status.success() { Ok(said) } else { Err(said) }
    }

    /// Asks the adapter of a host to end.
    pub(crate) async fn terminate(&mut self, host: usize) {
        if let Some(adapter) = self.adapters[host].take() {
            let exit = adapter.process().terminate(PATIENCE).await;
            if exit != rig::process::Exit::Status(0) {
                self.record.broken.push(format!("asked to end, the adapter ended with {exit:?}"));
            }
            self.past_logs[host].extend(adapter.process().log().lines());
        }
    }

    /// Starts the adapter of a host again.
    pub(crate) async fn start(&mut self, host: usize) {
        let adapter = self.options[host].spawn();
        adapter.process().wait_for_log(r#"msg="listening""#, PATIENCE).await;
        self.adapters[host] = Some(adapter);
    }

    /// Puts a new adapter in the place of one, which is then asked to end: before it is taken out of the balancer, or after.
    pub(crate) async fn replace(&mut self, slot: usize, is_told_first: bool) {
        self.options[slot] = self.options[slot].clone().port(port::free());
        let new = self.options[slot].spawn();
        new.process().wait_for_log(r#"msg="listening""#, PATIENCE).await;
        let balancer = Arc::clone(self.balancer());
        balancer.add(new.url(""));
        self.watches[slot].follow(new.url(""));
        let Some(old) = self.adapters[slot].replace(new) else { return };
        if !is_told_first {
            balancer.remove(&old.url(""));
        }
        let end = old.process().terminate(PATIENCE);
        let remove = async {
            sleep(0.3).await;
            balancer.remove(&old.url(""));
        };
        let (exit, ()) = futures_util::future::join(end, remove).await;
        if exit != rig::process::Exit::Status(0) {
            self.record.broken.push(format!("asked to end, the adapter ended with {exit:?}"));
        }
        self.past_logs[slot].extend(old.process().log().lines());
    }

    /// What the Prometheis send by.
    pub(crate) fn balancers(&self) -> &[Arc<Balancer>] {
        &self.balancers
    }

    /// How many lines of the adapters that live have a text in them.
    pub(crate) fn lines_with(&self, text: &str) -> usize {
        let lines = self.adapters.iter().flatten().flat_map(|adapter| adapter.process().log().lines());
        lines.filter(|line| line.contains(text)).count()
    }

    /// What all send by.
    pub(crate) fn balancer(&self) -> &Arc<Balancer> {
        &self.balancers[0]
    }

    /// The Prometheus of a cluster's replica.
    pub(crate) fn host(&self, cluster: usize, replica: usize) -> &Host {
        &self.hosts[cluster * self.setup.mode.replicas() + replica]
    }

    /// How a replica is called.
    pub(crate) fn replica_name(&self, cluster: usize, replica: usize) -> String {
        format!("{}/{}", self.setup.mode.clusters()[cluster], REPLICAS[replica])
    }

    /// Which replica of a cluster leads, and its term.
    pub(crate) async fn leading(&self, cluster: usize) -> (usize, i64) {
        let found = witness::leading(&self.client().await, self.setup.mode.clusters()[cluster]).await;
        let (replica, term, _) = found.unwrap_or_else(|| panic!("no replica leads\n{}", self.logs()));
        (replica, term)
    }

    /// Waits until another replica of a cluster leads than in `term`, and an adapter has begun to store it; notes how long
    /// after `deed`.
    pub(crate) async fn succession(&mut self, cluster: usize, term: i64, deed: Instant) {
        let client = self.client().await;
        let name = self.setup.mode.clusters()[cluster];
        let replica = loop {
            match witness::leading(&client, name).await {
                Some((replica, now, true)) if now > term => break replica,
                _ => {}
            }
            assert!(deed.elapsed() < PATIENCE, "no other replica leads {name} within {PATIENCE:?}\n{}", self.logs());
            sleep(0.01).await;
        };
        let seconds = self.record.taken_over(deed, 0.0);
        self.event(format!("{} leads after {seconds:.2} s", self.replica_name(cluster, replica)));
    }

    /// Cuts a host off from the others, or joins it again.
    pub(crate) fn cut(&self, host: usize, cut: bool) {
        self.network.expect("cases that cut need a network").cut(host, cut);
    }

    /// Ends the pooler by which an adapter writes, or starts it again.
    pub(crate) fn cut_pooler(&mut self, adapter: usize, cut: bool) {
        let server = self.network.map_or_else(|| "127.0.0.1".to_owned(), Network::server_address);
        let start = || Pooler::start(&server, self.pooler_ports[adapter], self.postgres.port());
        self.poolers[adapter] = (!cut).then(start);
    }

    /// Samples that an adapter said last that it holds as standby.
    pub(crate) fn held(&self, adapter: usize) -> f64 {
        self.watches[adapter].observations().last().map_or(0.0, |last| last.held_samples)
    }

    /// How many lines the adapter of a host has written.
    pub(crate) fn mark(&self, host: usize) -> usize {
        self.adapter(host).process().log().len()
    }

    /// Waits until the adapter of `host` has become leader after `mark`; notes how long after `deed`.
    pub(crate) async fn takeover(&mut self, host: usize, mark: usize, deed: Instant) {
        self.later_takeover(host, mark, deed, 0.0).await;
    }

    /// The same, where it may take so many seconds more than is wanted of the case.
    pub(crate) async fn later_takeover(&mut self, host: usize, mark: usize, deed: Instant, later: f64) {
        self.adapter(host).process().wait_for_log_after(mark, "became leader", PATIENCE).await;
        let seconds = self.record.taken_over(deed, later);
        let name = ["a", "b"][host];
        self.event(format!("{name} leads after {seconds:.2} s"));
    }

    /// The last lines of all adapters.
    pub(crate) fn logs(&self) -> String {
        let of = |adapter: &Adapter| format!("{}:\n{}", adapter.process().name(), adapter.process().log().tail());
        self.adapters.iter().flatten().map(of).collect()
    }

    /// Waits until each Prometheus has been answered for everything.
    pub(crate) async fn drained(&mut self) {
        self.waiting_at_most(0).await;
    }

    /// The same while scrapes go on: no full batch waits. What is left of them goes with the next scrape, or at the deadline.
    pub(crate) async fn caught_up(&mut self) {
        let Shape { shards, batch, .. } = self.setup.shape;
        self.waiting_at_most(shards * (batch - 1)).await;
    }

    async fn waiting_at_most(&mut self, samples: usize) {
        let deadline = Instant::now() + PATIENCE + self.setup.shape.deadline;
        while self.hosts.iter().any(|host| host.waiting() > samples) {
            if Instant::now() > deadline {
                let waiting: Vec<usize> = self.hosts.iter().map(Host::waiting).collect();
                self.record.broken.push(format!("{waiting:?} samples were not answered for within {PATIENCE:?}"));
                return;
            }
            sleep(0.02).await;
        }
    }

    /// Seconds from one scrape to the next.
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of an interval")]
    pub(crate) fn interval(&self) -> f64 {
        self.setup.shape.interval_ms as f64 / 1_000.0
    }

    /// Waits until something is sealed: a round of sealing that fails is tried again 10 s later only.
    pub(crate) async fn sealed(&mut self) {
        let (client, began) = (self.client().await, Instant::now());
        while judge::sealed_samples(&client).await == 0 {
            if began.elapsed() > PATIENCE {
                self.record.broken.push(format!("nothing was sealed within {PATIENCE:?}"));
                return;
            }
            sleep(0.1).await;
        }
    }

    /// Ends the case: lets everything settle, stops the scraping, waits for the last answer, judges.
    pub(crate) async fn finish(mut self) -> (Outcome, Option<(Postgres, Promised)>) {
        sleep(2.5).await;
        if self.setup.mode.is_balanced() {
            self.settled().await;
        }
        self.sealed().await;
        self.covered().await;
        // All at once, where no side has scraped what the others are about to.
        let interval_ms = self.setup.shape.interval_ms;
        let until_ms = (now_ms() / interval_ms + 1) * interval_ms;
        for host in &self.hosts {
            host.scrape_until(until_ms);
        }
        tokio::time::sleep(Duration::from_millis(u64::try_from(until_ms - now_ms()).unwrap_or(0))).await;
        self.drained().await;
        self.covered().await;
        let promised = self.promised();
        let client = self.client().await;
        let stored =
            judge::read(&client, self.setup.mode, &self.setup.shape).await.expect("cannot read what is stored");
        let mut findings = judge::judge(&promised, &stored);
        self.reader.findings(&mut findings);
        let bands: Vec<Vec<Band>> = self.watches.iter().map(|watch| self.bands(watch)).collect();
        let held = self.watches.iter().flat_map(Watch::observations).map(|o| (o.held_samples, o.held_bytes));
        let mut outcome = Outcome {
            logs: Vec::new(),
            findings,
            failed: self.hosts.iter().map(|host| host.counts().failed).sum(),
            retried: self.hosts.iter().map(|host| host.counts().retried).sum(),
            leaderless: leaderless(&bands),
            held: held.fold((0.0, 0.0), |most, now| if now.0 > most.0 { now } else { most }),
            seconds: self.began.elapsed().as_secs_f64(),
            bands,
            record: self.record.clone(),
        };
        for (host, lines) in self.past_logs.iter_mut().enumerate() {
            if let Some(adapter) = &self.adapters[host] {
                lines.extend(adapter.process().log().lines());
            }
            outcome.logs.push((self.setup.mode.adapter_name(host), lines.join("\n")));
        }
        let Self { adapters, hosts, watches, reader, postgres, .. } = self;
        drop((adapters, hosts, watches, reader));
        (outcome, Some((postgres, promised)))
    }

    fn promised(&self) -> Promised {
        let replicas = self.hosts.chunks(self.setup.mode.replicas());
        let clusters = replicas.map(|hosts| judge::Cluster {
            journals: hosts.iter().map(Host::journal).collect(),
            skews_ms: hosts.iter().map(|host| host.skew_ms().load(Ordering::Relaxed)).collect(),
        });
        Promised { shape: self.setup.shape, mode: self.setup.mode, clusters: clusters.collect() }
    }

    /// Waits until all that was acknowledged so far is covered: what the leader has not scraped is a while later.
    pub(crate) async fn covered(&mut self) {
        let (promised, began, client) = (self.promised(), Instant::now(), self.client().await);
        let interval_ms = self.setup.shape.interval_ms.unsigned_abs();
        let (within, mut first) = (COVERED_WITHIN + 2 * Duration::from_millis(interval_ms), None);
        loop {
            let stored = judge::read(&client, self.setup.mode, &self.setup.shape).await;
            let findings = judge::judge(&promised, &stored.expect("cannot read what is stored"));
            let took = began.elapsed();
            if findings.lost == 0 || took > within {
                if let Some(first) = first.filter(|_| took > SOON) {
                    let note = format!("{first} missing at first, {} after {:.0} s", findings.lost, took.as_secs_f64());
                    self.record.notes.push(note);
                }
                return;
            }
            first.get_or_insert_with(|| format!("{} ({})", findings.lost, findings.examples.join("; ")));
            sleep(0.5).await;
        }
    }

    fn bands(&self, watch: &Watch) -> Vec<Band> {
        let mut bands: Vec<Band> = Vec::new();
        let mut stored = 0.0;
        let seconds = |at: Instant| at.saturating_duration_since(self.began).as_secs_f64();
        let observations = watch.observations();
        for pair in observations.windows(2).filter(|pair| pair[0].at >= self.began) {
            let (from, to, role) = (seconds(pair[0].at), seconds(pair[1].at), pair[0].role);
            // A restart begins the counter anew; silence says nothing of it.
            let more = if pair[1].role.is_some() { (pair[1].stored - stored).max(0.0) } else { 0.0 };
            if pair[1].role.is_some() {
                stored = pair[1].stored;
            }
            match bands.last_mut() {
                Some(last) if last.role == role && last.to - last.from < 1.0 => {
                    last.to = to;
                    last.stored += more;
                }
                _ => bands.push(Band { from, to, role, stored: more }),
            }
        }
        bands
    }
}

/// Every promise that was broken, in words.
pub(crate) fn problems(outcome: &Outcome) -> Vec<String> {
    let findings = &outcome.findings;
    let mut problems = outcome.record.broken.clone();
    let mut count = |what: &str, count: usize| {
        if count > 0 {
            problems.push(format!("{count} {what}"));
        }
    };
    count("lost", findings.lost);
    count("doubled", findings.doubled);
    count("of an old term", usize::try_from(findings.stale).unwrap_or(0));
    count("times backwards", findings.backwards);
    count("failed", outcome.failed);
    count("stored at all: none", usize::from(findings.stored == 0));
    let slow = outcome.record.takeovers.iter().filter(|takeover| takeover.seconds > takeover.wanted);
    problems.extend(
        slow.map(|takeover| format!("take-over in {:.2} s, wanted {:.1} s", takeover.seconds, takeover.wanted)),
    );
    let (samples, bytes) = outcome.held;
    if samples > 2_000.0 && bytes / samples >= 24.0 {
        problems.push(format!("{:.1} bytes per held sample", bytes / samples));
    }
    problems
}

impl Record {
    /// Notes a take-over that has just ended, so long after `deed`, which may take so many seconds more than is wanted of
    /// the case; returns the seconds it took.
    pub(crate) fn taken_over(&mut self, deed: Instant, later: f64) -> f64 {
        let seconds = deed.elapsed().as_secs_f64();
        self.takeovers.push(Takeover { seconds, wanted: self.takeover_wanted + later });
        seconds
    }

    /// Seconds of all take-overs, the fastest first.
    pub(crate) fn seconds(&self) -> Vec<f64> {
        let mut seconds: Vec<f64> = self.takeovers.iter().map(|takeover| takeover.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds
    }

    /// Seconds of the take-over in the middle; 0 without any.
    pub(crate) fn median(&self) -> f64 {
        let seconds = self.seconds();
        seconds.get(seconds.len() / 2).copied().unwrap_or(0.0)
    }
}

/// Seconds in which no adapter said that it leads, or all it knows of do.
fn leaderless(bands: &[Vec<Band>]) -> f64 {
    let mut edges: Vec<f64> = bands.iter().flatten().flat_map(|band| [band.from, band.to]).collect();
    edges.sort_by(f64::total_cmp);
    let leads = |at: f64| {
        let leads = |band: &Band| matches!(band.role, Some("leader" | ALL_LED));
        let holds = |band: &Band| leads(band) && band.from <= at && at < band.to;
        bands.iter().flatten().any(holds)
    };
    edges.windows(2).filter(|pair| !leads(pair[0].midpoint(pair[1]))).fold(0.0, |sum, pair| sum + pair[1] - pair[0])
}

/// Sleeps.
pub(crate) async fn sleep(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}
