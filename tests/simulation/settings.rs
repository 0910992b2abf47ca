//! What a schedule is drawn from: the group, its timings, and what befalls it.

use std::time::Duration;

use prometheus_postgresql_adapter::election::{By, Config, PrometheusTimeout};

use crate::random::Random;
use crate::world::Ms;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    KillAdapter {
        adapter: usize,
        down_ms: Ms,
    },
    KillHost {
        adapter: usize,
        down_ms: Ms,
    },
    StopAdapter {
        adapter: usize,
        down_ms: Ms,
    },
    Freeze {
        adapter: usize,
        for_ms: Ms,
    },
    FreezeInWrite {
        adapter: usize,
        for_ms: Ms,
    },
    Cut {
        adapter: usize,
        for_ms: Ms,
    },
    CutAll {
        for_ms: Ms,
    },
    KillPrometheus {
        replica: usize,
        down_ms: Ms,
    },
    Silence {
        replica: usize,
        for_ms: Ms,
    },
    ServerCrash {
        down_ms: Ms,
    },
    KillLockSession,
    KillWrites,
    SlowServer {
        for_ms: Ms,
    },
    /// Somebody orders something, wisely or not.
    Order {
        adapter: usize,
        order: Ordered,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Ordered {
    Lead,
    Resign,
    HandOver { to: usize },
    Hold,
    Release,
}

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) replicas: usize,
    pub(crate) counters: usize,
    pub(crate) rules: usize,
    pub(crate) shards: usize,
    pub(crate) scrape_ms: Ms,
    pub(crate) send_deadline_ms: Ms,
    pub(crate) batch_max: usize,
    pub(crate) remote_timeout_ms: Ms,
    /// How often in a hundred a delivery is lost, repeated or late.
    pub(crate) lossy: i64,
    pub(crate) election: Config,
    pub(crate) memory_bytes_max: usize,
    /// How far each host's clock is ahead of the server's.
    pub(crate) offsets: Vec<i64>,
    pub(crate) begins_at: Vec<Ms>,
    pub(crate) faults: Vec<(Ms, Fault)>,
    /// From here on nothing more goes wrong.
    pub(crate) calm_at: Ms,
    pub(crate) scrape_until: Ms,
    pub(crate) end_at: Ms,
    phases: Vec<Vec<Ms>>,
}

impl Settings {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let replicas = if random.chance(75) { 2 } else { 3 };
        let scrape_ms = [1_000, 2_000, 4_000][random.below(3)];
        let (counters, rules) = (2, 1);
        let lease = Duration::from_secs([3, 5, 10][random.below(3)]);
        let timeout = match random.below(3) {
            0 => PrometheusTimeout::Automatic,
            _ => PrometheusTimeout::After(Duration::from_secs([6, 10][random.below(2)])),
        };
        let by = if random.chance(25) { By::Rest("1".to_owned()) } else { By::Lock(1) };
        let timeout = if by == By::Lock(1) { timeout } else { PrometheusTimeout::Never };
        let election = Config {
            by,
            is_held: false,
            prometheus_timeout: timeout,
            liveness_interval: Duration::from_secs(10),
            election_interval: Duration::from_millis([300, 1_000][random.below(2)]),
            lease,
        };
        let skewed = random.chance(40);
        let offsets: Vec<i64> =
            (0..replicas).map(|_| if skewed { random.between(-3_000, 3_000) } else { random.between(-5, 5) }).collect();
        // The clocks decide at which true time a rule has its timestamp; a target's own phase is anywhere.
        let rule_phase = random.between(0, scrape_ms - 1);
        let phases = offsets
            .iter()
            .map(|offset| {
                let mut phases: Vec<Ms> = (0..counters).map(|_| random.between(0, scrape_ms - 1)).collect();
                phases.extend((0..rules).map(|_| (rule_phase - offset).rem_euclid(scrape_ms)));
                phases
            })
            .collect();
        let calm_at = 30_000;
        let by_rest = matches!(election.by, By::Rest(_));
        let mut faults: Vec<(Ms, Fault)> = (0..random.between(1, 5))
            .map(|_| (random.between(5_000, calm_at), draw_fault(random, replicas, by_rest)))
            .collect();
        if faults.iter().any(|(_, fault)| matches!(fault, Fault::Order { order: Ordered::Hold, .. })) {
            faults.extend((0..replicas).map(|adapter| (calm_at, Fault::Order { adapter, order: Ordered::Release })));
        }
        faults.sort_by_key(|(at, _)| *at);
        let begins_at = (0..replicas).map(|_| random.spread(0, 5_000)).collect();
        Self {
            replicas,
            counters,
            rules,
            shards: usize::try_from(random.between(1, 2)).unwrap_or(1),
            scrape_ms,
            send_deadline_ms: random.between(100, 2_000),
            batch_max: usize::try_from(random.between(3, 12)).unwrap_or(3),
            remote_timeout_ms: random.between(4, 10) * 1_000,
            lossy: [0, 0, 1, 4][random.below(4)],
            election,
            memory_bytes_max: if random.chance(10) { 2_000 } else { 1 << 20 },
            offsets,
            begins_at,
            faults,
            calm_at,
            scrape_until: calm_at + 27_000,
            end_at: calm_at + 45_000,
            phases,
        }
    }

    pub(crate) fn series(&self) -> usize {
        self.counters + self.rules
    }

    pub(crate) fn is_counter(&self, series: usize) -> bool {
        series < self.counters
    }

    pub(crate) fn phase(&self, replica: usize, series: usize) -> Ms {
        self.phases[replica][series]
    }

    pub(crate) fn session_timeout_ms(&self) -> Ms {
        ms(self.election.session_timeout())
    }

    /// The largest difference between two hosts' clocks.
    pub(crate) fn skew_ms(&self) -> i64 {
        let largest = self.offsets.iter().max().copied().unwrap_or(0);
        largest - self.offsets.iter().min().copied().unwrap_or(0)
    }
}

pub(crate) fn ms(duration: Duration) -> Ms {
    Ms::try_from(duration.as_millis()).unwrap_or(Ms::MAX)
}

fn draw_fault(random: &mut Random, replicas: usize, by_rest: bool) -> Fault {
    let adapter = random.below(replicas);
    if by_rest {
        return draw_fault_by_rest(random, adapter);
    }
    match random.below(18) {
        0 | 1 => Fault::KillAdapter { adapter, down_ms: random.spread(50, 20_000) },
        2 => Fault::KillHost { adapter, down_ms: random.spread(1_000, 25_000) },
        3 => Fault::StopAdapter { adapter, down_ms: random.spread(50, 10_000) },
        4 => Fault::Freeze { adapter, for_ms: random.spread(100, 25_000) },
        5 => Fault::FreezeInWrite { adapter, for_ms: random.spread(100, 15_000) },
        6 => Fault::Cut { adapter, for_ms: random.spread(50, 25_000) },
        7 => Fault::CutAll { for_ms: random.spread(50, 15_000) },
        8 => Fault::KillPrometheus { replica: adapter, down_ms: random.spread(200, 25_000) },
        9 => Fault::Silence { replica: adapter, for_ms: random.spread(500, 25_000) },
        10 => Fault::ServerCrash { down_ms: random.spread(50, 10_000) },
        11 => Fault::KillLockSession,
        12 => Fault::KillWrites,
        13 => Fault::Order { adapter, order: Ordered::Resign },
        14 | 15 => Fault::Order { adapter, order: Ordered::HandOver { to: random.below(replicas) } },
        16 => Fault::Order { adapter, order: Ordered::Hold },
        _ => Fault::SlowServer { for_ms: random.spread(500, 10_000) },
    }
}

/// Whether a leader's Prometheus sends is for whoever tells who leads to see; here all do, or will again.
fn draw_fault_by_rest(random: &mut Random, adapter: usize) -> Fault {
    match random.below(6) {
        0 => Fault::Order { adapter, order: Ordered::Resign },
        1 | 2 => Fault::Order { adapter, order: Ordered::Lead },
        3 => Fault::Order { adapter, order: Ordered::Hold },
        _ => match draw_fault(random, adapter + 1, false) {
            Fault::KillPrometheus { replica, down_ms } => Fault::Silence { replica, for_ms: down_ms },
            Fault::Order { .. } => Fault::Order { adapter, order: Ordered::Lead },
            fault => fault,
        },
    }
}
