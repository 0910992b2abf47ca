//! Where a case is played: one PostgreSQL, two hosts with an adapter each, and a record of what was done.

use std::path::Path;
use std::time::{Duration, Instant};

use rig::adapter::{self, Adapter};
use rig::network::Network;
use rig::postgres::{self, Postgres};
use tokio_postgres::Client;

use crate::host::{Host, Shape};
use crate::judge::{self, Findings, Promised};
use crate::random::Random;

/// A wait that takes longer has failed, and the case with it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// How a case is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// What is sent.
    pub(crate) shape: Shape,
    /// `-leader-election-lease`.
    pub(crate) lease_seconds: f64,
    /// PostgreSQL.
    pub(crate) postgres: postgres::Options,
    /// More words for the adapters, `HOST`, `PORT` and `SECOND` replaced by where PostgreSQL and its replica are.
    pub(crate) uri: String,
    /// More arguments of both adapters.
    pub(crate) arguments: Vec<String>,
    /// More environment of the second adapter.
    pub(crate) environment: Vec<(String, String)>,
    /// Whether a replica follows.
    pub(crate) replica: bool,
    /// Whether PostgreSQL is reached through pgbouncer in transaction mode, but for the lock.
    pub(crate) pooler: bool,
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
        };
        Self {
            shape,
            lease_seconds: 3.0,
            postgres: postgres::Options::default(),
            uri: "postgres://postgres@HOST:PORT/postgres?sslmode=disable".to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            replica: false,
            pooler: false,
            senders: true,
        }
    }
}

/// One case under way.
pub(crate) struct Stage<'a> {
    // In the order in which they are to end.
    pub(crate) hosts: [Host; 2],
    adapters: [Option<Adapter>; 2],
    options: [adapter::Options; 2],
    /// pgbouncer, if any.
    _pooler: Option<crate::pooler::Pooler>,
    /// The replica, if any.
    pub(crate) replica: Option<Postgres>,
    /// The primary.
    pub(crate) postgres: Postgres,
    network: Option<&'a Network>,
    /// How it was set up.
    pub(crate) setup: Setup,
    /// Where chance comes from.
    pub(crate) random: Random,
    began: Instant,
    record: Record,
    /// What adapters that are gone have written.
    past_logs: [Vec<String>; 2],
}

/// What was done and measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// When, in seconds of the case, what was done.
    pub(crate) events: Vec<(f64, String)>,
    /// Seconds each take-over took.
    pub(crate) takeovers: Vec<f64>,
    /// How long a take-over may take.
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
    /// Seconds in which no adapter said that it leads.
    pub(crate) leaderless: f64,
    /// Most samples held by a standby, and their bytes.
    pub(crate) held: (f64, f64),
    /// What the adapters wrote.
    pub(crate) logs: [String; 2],
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// For the picture: for each host what its adapter said, by seconds of the case.
    pub(crate) bands: [Vec<Band>; 2],
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
    /// Sets everything up and waits until one adapter leads and the other stands by.
    pub(crate) async fn set(network: Option<&'a Network>, binary: &Path, setup: Setup, random: Random) -> Self {
        let options = setup.postgres.clone().with("listen_addresses", "*").with("track_commit_timestamp", "on");
        let postgres = Postgres::start(options.with("wal_level", "replica")).await;
        let replica = if setup.replica { Some(postgres.follow().await) } else { None };
        let server = network.map_or_else(|| "127.0.0.1".to_owned(), Network::server_address);
        let pooler = setup.pooler.then(|| crate::pooler::Pooler::start(&server, postgres.port()));
        let second = replica.as_ref().map_or(0, Postgres::port);
        let fill = |text: &str, port: u16| {
            let text = text.replace("HOST", &server).replace("PORT", &port.to_string());
            text.replace("SECOND", &second.to_string())
        };
        let options = [0, 1].map(|host| {
            let mut options = adapter::Options::new(binary)
                .name(["adapter a", "adapter b"][host])
                .arg("-leader-election-pg-advisory-lock-id=7")
                .arg(format!("-leader-election-lease={}ms", setup.lease_seconds * 1000.0))
                .arg("-log-level=info")
                // Sealed while it happens, in segments and portions as small as can be.
                .arg("-pg-seal-samples=5000")
                .arg("-pg-seal-after=1s")
                .arg("-pg-prometheus-chunk-interval=10s")
                .arg(format!("-pg-uri={}", fill(&setup.uri, pooler.as_ref().map_or(postgres.port(), |p| p.port()))));
            if pooler.is_some() {
                options = options.arg(format!("-pg-lock-uri={}", fill(&setup.uri, postgres.port())));
            }
            if let Some(network) = network {
                options = options.namespace(&network.namespace(host));
            }
            for argument in &setup.arguments {
                options = options.arg(argument.clone());
            }
            for (name, value) in setup.environment.iter().filter(|_| host == 1) {
                options = options.env(name, value);
            }
            options
        });
        let adapters = options.clone().map(|options| Some(options.spawn()));
        for adapter in adapters.iter().flatten() {
            adapter.process().wait_for_log("listening on", PATIENCE).await;
        }
        let hosts = [0, 1].map(|host| {
            let namespace = network.map(|network| network.namespace(host));
            Host::new(host, namespace, adapters[host].as_ref().map_or(0, Adapter::port), setup.shape)
        });
        let mut stage = Self {
            hosts,
            adapters,
            options,
            _pooler: pooler,
            replica,
            postgres,
            network,
            setup,
            random,
            began: Instant::now(),
            record: Record { takeover_wanted: 1.0, ..Record::default() },
            past_logs: [Vec::new(), Vec::new()],
        };
        stage.witness().await;
        if stage.setup.senders {
            for host in &stage.hosts {
                host.start();
            }
            stage.began = Instant::now();
            stage.healthy().await;
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
        client.batch_execute(judge::WITNESS).await.expect("cannot add the witness");
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

    /// Waits until one adapter leads and the other stands by; which one leads.
    pub(crate) async fn healthy(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let roles = [self.hosts[0].role(), self.hosts[1].role()];
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
        adapter.process().wait_for_log("listening on", PATIENCE).await;
        self.adapters[host] = Some(adapter);
    }

    /// Cuts a host off from the others, or joins it again.
    pub(crate) fn cut(&self, host: usize, cut: bool) {
        self.network.expect("cases that cut need a network").cut(host, cut);
    }

    /// How many lines the adapter of a host has written.
    pub(crate) fn mark(&self, host: usize) -> usize {
        self.adapter(host).process().log().len()
    }

    /// Waits until the adapter of `host` has become leader after `mark`; notes how long after `deed`.
    pub(crate) async fn takeover(&mut self, host: usize, mark: usize, deed: Instant) {
        self.adapter(host).process().wait_for_log_after(mark, "became leader of", PATIENCE).await;
        let seconds = deed.elapsed().as_secs_f64();
        self.record.takeovers.push(seconds);
        let name = ["a", "b"][host];
        self.event(format!("{name} leads after {seconds:.2} s"));
    }

    /// The last lines of both adapters.
    pub(crate) fn logs(&self) -> String {
        let of = |adapter: &Adapter| format!("{}:\n{}", adapter.process().name(), adapter.process().log().tail());
        self.adapters.iter().flatten().map(of).collect()
    }

    /// Waits until each Prometheus has been answered for everything.
    pub(crate) async fn drained(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.hosts.iter().any(|host| host.waiting() > 0) {
            if Instant::now() > deadline {
                let waiting = self.hosts.each_ref().map(Host::waiting);
                self.record.broken.push(format!("{waiting:?} samples were not answered for within {PATIENCE:?}"));
                return;
            }
            sleep(0.02).await;
        }
    }

    /// Ends the case: lets everything settle, stops the scraping, waits for the last answer, judges.
    pub(crate) async fn finish(mut self) -> (Outcome, Option<(Postgres, Promised)>) {
        sleep(2.5).await;
        for host in &self.hosts {
            host.stop_scraping();
        }
        self.drained().await;
        sleep(0.5).await;
        let promised = Promised {
            shape: self.setup.shape,
            journals: self.hosts.each_ref().map(Host::journal),
            skews_ms: self.hosts.each_ref().map(Host::skew_ms),
        };
        let stored = judge::read(&self.postgres, &self.setup.shape).await;
        let findings = judge::judge(&promised, &stored);
        let bands = self.hosts.each_ref().map(|host| self.bands(host));
        let held = self.hosts.iter().flat_map(Host::observations).map(|o| (o.held_samples, o.held_bytes));
        let mut outcome = Outcome {
            logs: Default::default(),
            findings,
            failed: self.hosts.iter().map(|host| host.counts().failed).sum(),
            retried: self.hosts.iter().map(|host| host.counts().retried).sum(),
            leaderless: leaderless(&bands),
            held: held.fold((0.0, 0.0), |most, now| if now.0 > most.0 { now } else { most }),
            seconds: self.began.elapsed().as_secs_f64(),
            bands,
            record: self.record.clone(),
        };
        for host in 0..2 {
            if let Some(adapter) = &self.adapters[host] {
                self.past_logs[host].extend(adapter.process().log().lines());
            }
        }
        outcome.logs = self.past_logs.clone().map(|lines| lines.join("\n"));
        let Self { adapters, hosts, postgres, .. } = self;
        drop((adapters, hosts));
        (outcome, Some((postgres, promised)))
    }

    fn bands(&self, host: &Host) -> Vec<Band> {
        let mut bands: Vec<Band> = Vec::new();
        let mut stored = 0.0;
        let seconds = |at: Instant| at.saturating_duration_since(self.began).as_secs_f64();
        let observations = host.observations();
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
    let slowest = outcome.record.takeovers.iter().copied().fold(0.0, f64::max);
    if slowest > outcome.record.takeover_wanted {
        problems.push(format!("take-over in {slowest:.2} s, wanted {:.1} s", outcome.record.takeover_wanted));
    }
    let (samples, bytes) = outcome.held;
    if samples > 2_000.0 && bytes / samples >= 24.0 {
        problems.push(format!("{:.1} bytes per held sample", bytes / samples));
    }
    problems
}

/// The one in the middle; none of none is 0.
pub(crate) fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Seconds in which neither adapter said that it leads.
fn leaderless(bands: &[Vec<Band>; 2]) -> f64 {
    let mut edges: Vec<f64> = bands.iter().flatten().flat_map(|band| [band.from, band.to]).collect();
    edges.sort_by(f64::total_cmp);
    let leads = |at: f64| {
        let holds = |band: &Band| band.role == Some("leader") && band.from <= at && at < band.to;
        bands.iter().flatten().any(holds)
    };
    edges.windows(2).filter(|pair| !leads(pair[0].midpoint(pair[1]))).fold(0.0, |sum, pair| sum + pair[1] - pair[0])
}

/// Sleeps.
pub(crate) async fn sleep(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}
