//! What a schedule is drawn from.

use std::time::Duration;

use prometheus_postgresql_adapter::election::PrometheusTimeout;

use crate::random::Random;
use crate::world::Ms;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    KillAdapter {
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
    KillReplica {
        replica: usize,
        down_ms: Ms,
    },
    KillLeader {
        down_ms: Ms,
    },
    /// And the next one, as soon as it leads.
    KillLeaders {
        apart_ms: Ms,
        down_ms: Ms,
    },
    Silence {
        replica: usize,
        for_ms: Ms,
    },
    SilenceLeader {
        for_ms: Ms,
    },
    Reshuffle,
    ServerCrash {
        down_ms: Ms,
    },
    KillWrites,
    SlowServer {
        for_ms: Ms,
    },
    /// By order, another replica is to lead: this one, if one is named.
    Yield {
        to: Option<usize>,
    },
    /// By order, a replica is held out of elections.
    Hold {
        replica: usize,
        for_ms: Ms,
    },
}

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) adapters: usize,
    pub(crate) replicas: usize,
    pub(crate) series: usize,
    pub(crate) shards: usize,
    pub(crate) scrape_ms: Ms,
    pub(crate) send_deadline_ms: Ms,
    pub(crate) batch_max: usize,
    pub(crate) remote_timeout_ms: Ms,
    pub(crate) timeout: PrometheusTimeout,
    pub(crate) memory_bytes_max: usize,
    /// Each replica keeps a connection of its own to each adapter; else all share a proxy's.
    pub(crate) connects: bool,
    /// Each request goes to the next adapter; else all of a replica's to one, until the balancer reshuffles.
    pub(crate) in_turn: bool,
    pub(crate) faults: Vec<(Ms, Fault)>,
    /// From here on nothing more goes wrong.
    pub(crate) calm_at: Ms,
    pub(crate) scrape_until: Ms,
    pub(crate) end_at: Ms,
    phases: Vec<Vec<Ms>>,
}

impl Settings {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let (adapters, replicas) = (2 + random.below(2), 2 + random.below(2));
        let scrape_ms = [1_000, 2_000][random.below(2)];
        let series = 3;
        let timeout = match random.below(3) {
            0 => PrometheusTimeout::Automatic,
            _ => PrometheusTimeout::After(Duration::from_secs([4, 6][random.below(2)])),
        };
        let phases = (0..replicas).map(|_| (0..series).map(|_| random.between(0, scrape_ms - 1)).collect()).collect();
        // By then it is known how the replicas send.
        let (learned_at, calm_at) = (20_000, 45_000);
        let mut faults: Vec<(Ms, Fault)> = (0..random.between(1, 4))
            .map(|_| (random.between(learned_at, calm_at), draw_fault(random, adapters, replicas)))
            .collect();
        faults.sort_by_key(|(at, _)| *at);
        Self {
            adapters,
            replicas,
            series,
            shards: 1 + random.below(2),
            scrape_ms,
            send_deadline_ms: random.between(100, 1_500),
            batch_max: usize::try_from(random.between(3, 12)).unwrap_or(3),
            remote_timeout_ms: random.between(4, 10) * 1_000,
            timeout,
            memory_bytes_max: if random.chance(10) { 4_000 } else { 1 << 20 },
            connects: random.chance(50),
            in_turn: random.chance(70),
            faults,
            calm_at,
            scrape_until: calm_at + 27_000,
            end_at: calm_at + 45_000,
            phases,
        }
    }

    /// Behind a proxy nobody sees a replica restart that pauses for hardly longer than it does anyway; what it was not
    /// scraped meanwhile is missing.
    pub(crate) fn restarts_unnoticed(&self) -> bool {
        let is_short = |fault: &Fault| match fault {
            Fault::KillReplica { down_ms, .. } | Fault::KillLeader { down_ms } | Fault::KillLeaders { down_ms, .. } => {
                *down_ms < 2_000 + self.scrape_ms + self.send_deadline_ms
            }
            _ => false,
        };
        !self.connects && self.faults.iter().any(|(_, fault)| is_short(fault))
    }

    pub(crate) fn phase(&self, replica: usize, series: usize) -> Ms {
        self.phases[replica][series]
    }
}

fn draw_fault(random: &mut Random, adapters: usize, replicas: usize) -> Fault {
    let (adapter, replica) = (random.below(adapters), random.below(replicas));
    match random.below(18) {
        0 => Fault::KillAdapter { adapter, down_ms: random.spread(50, 20_000) },
        1 => Fault::StopAdapter { adapter, down_ms: random.spread(50, 10_000) },
        2 => Fault::Freeze { adapter, for_ms: random.spread(100, 20_000) },
        3 => Fault::FreezeInWrite { adapter, for_ms: random.spread(100, 15_000) },
        4 => Fault::Cut { adapter, for_ms: random.spread(50, 20_000) },
        5 => Fault::KillReplica { replica, down_ms: random.spread(200, 20_000) },
        6 | 7 => Fault::KillLeader { down_ms: random.spread(200, 20_000) },
        8 => Fault::Silence { replica, for_ms: random.spread(500, 20_000) },
        9 => Fault::SilenceLeader { for_ms: random.spread(500, 20_000) },
        10 => Fault::Reshuffle,
        11 => Fault::ServerCrash { down_ms: random.spread(50, 8_000) },
        12 => Fault::KillWrites,
        14 => Fault::Yield { to: None },
        15 => Fault::Yield { to: Some(replica) },
        16 => Fault::Hold { replica, for_ms: random.spread(500, 20_000) },
        13 => Fault::KillLeaders { apart_ms: random.between(100, 8_000), down_ms: random.spread(5_000, 20_000) },
        _ => Fault::SlowServer { for_ms: random.spread(500, 8_000) },
    }
}
